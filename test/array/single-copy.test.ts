/** Disks of raid0 and linear, which have each byte once, give way to others: no byte moves, or becomes another. */
import { describe, expect, test } from 'vitest';
import { assembleDevices, formArray, type Source } from '../../lib/array/form.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { bytesOf, expectSame, quiet } from './snapshot-folders.ts';

const SIZES = [2, 3, 4, 5, 6, 9];

function disksOf(memories: readonly SharedArrayBuffer[]): Source[] {
  return memories.map((memory, index) => {
    const device = new MemoryDevice({ sizeBytes: memory.byteLength, memory });
    return { device, name: `m${index}`, identity: `m${index}` };
  });
}

function patterned(lengthBytes: number, seed: number): Uint8Array {
  return new Uint8Array(lengthBytes).map((_, index) => 1 + (((index >> 9) * seed) % 250));
}

/** Of disks of 4 and 5 MiB, full, and a spare. */
async function formed(level: string, spareMib: number) {
  const memories = [4, 5, spareMib].map((mib) => new SharedArrayBuffer(mib * MIB));
  const disks = disksOf(memories);
  const array = await formArray(disks.slice(0, 2), {
    ...quiet,
    level,
    name: 'demo',
    ...(level === '0' ? { chunk: '64K' } : {}),
    windowBytes: 64 * KIB,
  });
  const content = patterned(array.limits.sizeBytes, 7);
  await array.write(0, content);
  await array.add(disks[2]!.device, 'm2');
  return { memories, array, content };
}

describe.each(['0', 'linear'])('level %s', (level) => {
  describe.each([0, 1])('the disk in slot %i', (slot) => {
    test.each(SIZES)('gives way to one of %i MiB, or that one is too small', async (spareMib) => {
      const { memories, array, content } = await formed(level, spareMib);
      const left = [0, 1, 2].filter((index) => index !== slot);
      if (spareMib < 4 + slot) {
        await expect(array.replace(slot)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
        left.splice(0, 2, 0, 1);
      } else {
        await array.replace(slot);
        for await (const _ of array.rebuild());
      }
      await array.close();
      const { array: again } = await assembleDevices(
        left.map((index) => disksOf(memories)[index]!),
        { ...quiet, name: 'demo' },
      );
      expect(again.degraded).toBe(0);
      expectSame(await bytesOf(again), content);
      await again.close();
    });
  });

  test('of spares, the first that is large enough is taken', async () => {
    const { array, content } = await formed(level, 3);
    await array.add(new MemoryDevice({ sizeBytes: 6 * MIB }), 'm3');
    await array.replace(0);
    for await (const _ of array.rebuild());
    expect(array.members.find(({ state }) => state.state === 'in_sync' && state.slot === 0)?.name).toBe('m3');
    expectSame(await bytesOf(array), content);
    await array.close();
  });

  test('what a power cut has left on the original only is copied, though the copy had been there', async () => {
    const { memories, array, content } = await formed(level, 4);
    await array.replace(0);
    let steps = 0;
    for await (const _ of array.rebuild({ limitBytesPerSecond: MIB })) {
      steps += 1;
      if (steps === 4) break;
    }
    await array.close();
    const { array: next } = await assembleDevices(disksOf(memories), {
      ...quiet,
      name: 'demo',
      autoSync: false,
    });
    const copy = new Uint8Array(memories[2]!).slice();
    const later = patterned(8 * KIB, 3);
    await next.write(0, later);
    new Uint8Array(memories[2]!).set(copy);
    content.set(later);
    const { array: last } = await assembleDevices(disksOf(memories), { ...quiet, name: 'demo' });
    expectSame(await bytesOf(last), content);
    for await (const _ of last.rebuild());
    expect(last.members.find(({ state }) => state.state === 'in_sync' && state.slot === 0)?.name).toBe('m2');
    expectSame(await bytesOf(last), content);
    await last.close();
  });
});
