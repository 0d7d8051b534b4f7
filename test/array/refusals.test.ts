/** Verbs on arrays that cannot carry them out: all members gone, or open for reading only; and what a member that leaves gives back. */
import { expect, test } from 'vitest';
import { assembleDevices, formArray, type Source } from '../../lib/array/form.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { MIB } from '../../lib/units.ts';

test.each([
  ['1', 2],
  ['4', 3],
  ['5', 3],
  ['10', 4],
] as const)('raid%s of %i: a new disk is refused, in words', async (level, count) => {
  const disks = Array.from(
    { length: count },
    () => new FaultDevice(new MemoryDevice({ sizeBytes: 4 * MIB })),
  );
  const sources = disks.map((device, at) => ({ device, name: `disk${at}`, identity: `disk${at}` }));
  const array = await formArray(sources, { name: 'f', level, assumeClean: true, driver: 'event-loop' });
  for (const disk of disks) disk.add({ on: 'any', fault: { kind: 'error', code: 'MEMBER_GONE' } });
  await array.read(0, new Uint8Array(4096)).catch(() => undefined);
  await array.write(0, new Uint8Array(4096)).catch(() => undefined);
  const added = array.add(new MemoryDevice({ sizeBytes: 4 * MIB, name: 'new' }));
  await expect(added).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
  await array.close().catch(() => undefined);
});

test('the device of a member that leaves is whole again, and can be added at once', async () => {
  const disks = [0, 1, 2].map((at) => new MemoryDevice({ sizeBytes: 4 * MIB, name: `disk${at}` }));
  const sources = disks.map((device) => ({ device, name: device.name, identity: device.name }));
  const array = await formArray(sources, { name: 'f', level: 5, assumeClean: true });
  await array.fail('disk1');
  const device = await array.remove('disk1');
  expect(device).toBe(disks[1]);
  await array.add(device);
  for await (const { totalBytes } of array.rebuild()) expect(totalBytes).toBeGreaterThan(0);
  expect(array.degraded).toBe(0);
  await array.close();
});

test('an array that is open for reading only keeps its members as they are', async () => {
  const memories = [0, 1, 2].map(() => new SharedArrayBuffer(4 * MIB));
  const sources = (): Source[] =>
    memories.map((memory, at) => {
      const device = new MemoryDevice({ sizeBytes: 4 * MIB, memory, name: `disk${at}` });
      return { device, name: device.name, identity: device.name };
    });
  await (await formArray(sources(), { name: 'f', level: 5, assumeClean: true })).close();
  const { array } = await assembleDevices(sources(), { name: 'f', readOnly: true });
  const spare = (): MemoryDevice => new MemoryDevice({ sizeBytes: 4 * MIB });
  const verbs = {
    fail: () => array.fail('disk1'),
    remove: () => array.remove('disk1'),
    add: () => array.add(spare()),
    reAdd: () => array.reAdd(spare()),
    replace: () => array.replace('disk1'),
    grow: () => array.grow({ size: 'max' }),
  };
  for (const [name, verb] of Object.entries(verbs))
    await expect(verb(), name).rejects.toMatchObject({ code: 'READ_ONLY' });
  expect(array.members.map(({ state }) => state.state)).toEqual(['in_sync', 'in_sync', 'in_sync']);
  await array.close();
});
