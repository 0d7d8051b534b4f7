/** Growing: what cannot be opened in its new shape is refused before that shape is on any disk (I13). */
import { expect, test } from 'vitest';
import { assembleDevices, formArray, type Source } from '../../lib/array/form.ts';
import { MdRecord } from '../../lib/array/record.ts';
import { superblockOn } from '../../lib/array/superblocks.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { InvariantViolation } from '../../lib/errors.ts';
import { realHost } from '../../lib/host.ts';
import { copiesMax } from '../../lib/layout/levels.ts';
import { addSlots } from '../../lib/md/update.ts';
import { MIB } from '../../lib/units.ts';

function memories(): readonly SharedArrayBuffer[] {
  return [0, 1].map(() => new SharedArrayBuffer(4 * MIB));
}

function sourcesOn(on: readonly SharedArrayBuffer[]): Source[] {
  return on.map((memory, at) => {
    const device = new MemoryDevice({ sizeBytes: memory.byteLength, memory, name: `disk${at}` });
    return { device, name: device.name, identity: device.name };
  });
}

const options = { name: 'g', level: 1, autoSync: false, driver: 'event-loop', assumeClean: true } as const;

test.each([copiesMax + 1, 1921, 5000, 2 ** 31])(
  'a mirror of %i disks is refused, and nothing of it is written',
  async (count) => {
    const disks = memories();
    const array = await formArray(sourcesOn(disks), options);
    await expect(array.grow({ disks: count })).rejects.toMatchObject({ code: 'BAD_GEOMETRY' });
    await array.close();
    for (const { device } of sourcesOn(disks)) expect((await superblockOn(device)).raidDisks).toBe(2);
  },
);

test('a mirror of as many disks as can be opens again', async () => {
  const disks = memories();
  const array = await formArray(sourcesOn(disks), options);
  await array.grow({ disks: copiesMax });
  await array.close();
  const { array: grown } = await assembleDevices(sourcesOn(disks), { ...options, run: true });
  expect(grown.layout.memberCount).toBe(copiesMax);
  await grown.close();
});

test('no superblock is written that its own reader would refuse, on any member', async () => {
  const disks = memories();
  const array = await formArray(sourcesOn(disks), options);
  const md = array.metadata?.array;
  await array.close();
  if (md === undefined) throw new Error('an array with metadata');
  const record = new MdRecord({
    array: md,
    devices: new Map(sourcesOn(disks).map(({ device }, number) => [number, device])),
    host: realHost,
    mayMiss: () => true,
    onFailure: () => undefined,
  });
  await expect(record.change((now, utime) => addSlots(now, 5000, utime))).rejects.toThrow(InvariantViolation);
  for (const { device } of sourcesOn(disks)) expect((await superblockOn(device)).raidDisks).toBe(2);
  expect(record.array.raidDisks).toBe(2);
});
