/**
 * A raid6 that was being written when the power went, started by force without one member: what is left of its redundancy
 * is made to agree, so that later losses read what was read before.
 */
import { expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, formArray, type Source } from '../../lib/array/form.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { KIB, MIB } from '../../lib/units.ts';

const DISKS = 5;
const options = { name: 'f', autoSync: false, driver: 'event-loop' } as const;

type Memories = readonly SharedArrayBuffer[];

function sourcesOn(memories: Memories): Source[] {
  return memories.map((memory, at) => {
    const device = new MemoryDevice({ sizeBytes: memory.byteLength, memory, name: `m${at}` });
    return { device, name: device.name, identity: device.name };
  });
}

async function contentOf(array: RaidArray): Promise<Buffer> {
  const content = Buffer.alloc(array.limits.sizeBytes);
  await array.read(0, content);
  return content;
}

/** As the disks are in the middle of a write: in every row, one data chunk is new, and nothing else. */
async function torn(bitmap: 'internal' | 'none'): Promise<Memories> {
  const memories = Array.from({ length: DISKS }, () => new SharedArrayBuffer(2 * MIB));
  const array = await formArray(sourcesOn(memories), {
    ...options,
    ...{ level: 6, chunk: '16K', assumeClean: true, bitmap },
  });
  const { layout } = array;
  const bytes = new Uint8Array(array.limits.sizeBytes).map((_, index) => (index >> 8) ^ (index * 7));
  await array.write(0, bytes);
  const kept = memories.map((memory) => memory.slice(0));
  await array.close();
  if (layout.kind !== 'parity') throw new Error('raid6 has parity');
  const dataAt = 2 * MIB - (layout.memberBytes[0] as number);
  for (let row = 0; row < layout.rowCount; row += 1) {
    const member = layout.row(row).data[row % layout.dataCount] as number;
    new Uint8Array(kept[member] as SharedArrayBuffer, dataAt + row * 16 * KIB, 8 * KIB).fill(row + 1);
  }
  return kept;
}

test.each(['internal', 'none'] as const)('with a bitmap: %s, whichever member is missing', async (bitmap) => {
  const disks = await torn(bitmap);
  for (let gone = 0; gone < DISKS; gone += 1) {
    const memories = disks.map((memory) => memory.slice(0)).filter((_, at) => at !== gone);
    const { array } = await assembleDevices(sourcesOn(memories), { ...options, force: true });
    const before = await contentOf(array);
    for await (const _ of array.rebuild());
    await array.add(new MemoryDevice({ sizeBytes: 2 * MIB, name: 'new' }));
    for await (const _ of array.rebuild());
    expect(array.degraded).toBe(0);
    let mismatches = 0;
    for await (const step of array.scrub({ repair: false })) mismatches += step.mismatches.length;
    expect(mismatches).toBe(0);
    expect(Buffer.compare(await contentOf(array), before)).toBe(0);
    await array.fail('m0');
    await array.fail('m1');
    expect(Buffer.compare(await contentOf(array), before)).toBe(0);
    await array.close();
  }
});

test('a raid5 started by force makes the replacement of a member anew: a write may have reached only one of the two', async () => {
  const memories = Array.from({ length: 5 }, () => new SharedArrayBuffer(16 * MIB));
  const shape = { level: 5, chunk: '16K', assumeClean: true, spares: 1 };
  const array = await formArray(sourcesOn(memories), { ...options, ...shape });
  await array.replace('m0');
  for await (const _ of array.rebuild()) break;
  await array.close();
  const copied = ({ members }: RaidArray): number[] =>
    members.flatMap(({ state }) => (state.state === 'replacement' ? [state.recoveredBytes] : []));
  const { array: again } = await assembleDevices(sourcesOn(memories), options);
  expect(copied(again)).toEqual([expect.any(Number)]);
  expect(copied(again)).not.toEqual([0]);
  await again.write(0, new Uint8Array(4 * KIB));
  const kept = memories.map((memory) => memory.slice(0)).filter((_, at) => at !== 1);
  await again.close();
  const { array: forced } = await assembleDevices(sourcesOn(kept), { ...options, force: true });
  expect(copied(forced)).toEqual([0]);
  await forced.close();
});
