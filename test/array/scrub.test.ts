/**
 * What a scrub says of an array in which something is wrong: where, on whom, and what a repair would make of it. The members
 * are changed behind the array's back, one sector at a time, at every place of the layout.
 */
import { expect, test } from 'vitest';
import { RaidArray } from '../../lib/array/array.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { Mismatch } from '../../lib/engine/run.ts';
import { type Geometry, memberCountOf } from '../../lib/layout/geometry.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../lib/units.ts';

const CHUNK = 8 * KIB;
const memberBytes = 5 * CHUNK;

interface World {
  readonly array: RaidArray;
  readonly members: readonly MemoryDevice[];
}

async function filled(geometry: Geometry): Promise<World> {
  const members = Array.from(
    { length: memberCountOf(geometry) },
    () => new MemoryDevice({ sizeBytes: Number(geometry.memberBytes) }),
  );
  const array = new RaidArray({ geometry, members, heapBytes: 8 * MIB });
  await array.write(
    0,
    new Uint8Array(array.limits.sizeBytes).map((_, index) => (index >> 9) ^ index),
  );
  return { array, members };
}

/** One byte of a sector, changed; twice the same is none. */
async function spoil({ members }: World, member: number, sector: number, byte = 5): Promise<void> {
  const bytes = new Uint8Array(SECTOR_BYTES);
  await members[member]?.read(sector * SECTOR_BYTES, bytes);
  bytes[byte]! ^= 0x40;
  await members[member]?.write(sector * SECTOR_BYTES, bytes);
}

async function scrub({ array }: World, options: Parameters<RaidArray['scrub']>[0] = {}): Promise<Mismatch[]> {
  const found: Mismatch[] = [];
  for await (const { mismatches } of array.scrub(options)) found.push(...mismatches);
  return found;
}

const sectorsOf = (bytes: number): number[] =>
  Array.from({ length: bytes / CHUNK }, (_, row) => (row * CHUNK) / SECTOR_BYTES + (row % 16));

test.each(['left-symmetric', 'ddf-zero-restart', 'left-symmetric-6'] as const)(
  'raid6 %s: whichever member is wrong is named, with what it holds there',
  async (layout) => {
    const world = await filled({ level: 'raid6', layout, memberCount: 5, memberBytes, chunkBytes: CHUNK });
    const compiled = world.array.layout;
    if (compiled.kind !== 'parity') throw new Error('raid6 has parity');
    for (const sector of sectorsOf(memberBytes)) {
      const row = Math.floor((sector * SECTOR_BYTES) / CHUNK);
      for (let member = 0; member < 5; member += 1) {
        await spoil(world, member, sector);
        const wrong = compiled.cellAt(member, row).kind === 'data' ? 'data' : 'redundancy';
        const where = { offsetBytes: sector * SECTOR_BYTES, lengthBytes: SECTOR_BYTES };
        expect(await scrub(world)).toEqual([{ member, wrong, ...where }]);
        await spoil(world, member, sector);
      }
    }
    await world.array.close();
  },
);

test('raid6: neighbouring sectors are one mismatch where the same member is wrong, and two where not', async () => {
  const world = await filled({
    level: 'raid6',
    layout: 'left-symmetric',
    memberCount: 4,
    memberBytes,
    chunkBytes: CHUNK,
  });
  for (const sector of [3, 4, 5]) await spoil(world, 0, sector);
  await spoil(world, 1, 6);
  const named = (await scrub(world)).map(({ member, offsetBytes, lengthBytes }) => [
    member,
    offsetBytes / SECTOR_BYTES,
    lengthBytes / SECTOR_BYTES,
  ]);
  expect(named).toEqual([
    [0, 3, 3],
    [1, 6, 1],
  ]);
  await world.array.close();
});

test('raid6: two wrong members of a sector are found, and nobody is named', async () => {
  const world = await filled({
    level: 'raid6',
    layout: 'left-symmetric',
    memberCount: 5,
    memberBytes,
    chunkBytes: CHUNK,
  });
  await spoil(world, 1, 7, 100);
  await spoil(world, 3, 7, 101);
  expect(await scrub(world)).toMatchObject([{ member: null, wrong: null, offsetBytes: 7 * SECTOR_BYTES }]);
  await world.array.close();
});

test.each(['raid5', 'raid6'] as const)(
  '%s with one equation left finds what is wrong, and names nobody',
  async (level) => {
    const world = await filled({
      level,
      layout: 'left-symmetric',
      memberCount: 5,
      memberBytes,
      chunkBytes: CHUNK,
    });
    if (level === 'raid6') await world.array.fail(2);
    for (const [row, sector] of sectorsOf(memberBytes).entries()) {
      const member = row === 2 ? 1 : row;
      await spoil(world, member, sector);
      expect(await scrub(world)).toMatchObject([{ member: null, wrong: null }]);
      await spoil(world, member, sector);
    }
    await world.array.close();
  },
);

const raid10 = { level: 'raid10', chunkBytes: CHUNK, offset: false, farSets: 0 } as const;
const mirrors: readonly [string, Geometry][] = [
  ['raid1 of 3', { level: 'raid1', memberCount: 3, memberBytes }],
  ['raid10 near=3', { ...raid10, memberCount: 4, near: 3, far: 1, memberBytes }],
  ['raid10 far=3', { ...raid10, memberCount: 3, near: 1, far: 3, memberBytes: 6 * CHUNK }],
];

test.each(mirrors)(
  '%s: the copy that is unlike the two others is named, be it the first',
  async (_, geometry) => {
    const world = await filled(geometry);
    const { layout } = world.array;
    if (layout.kind !== 'copies') throw new Error('mirrors have copies');
    for (let at = 0; at < layout.arrayBytes; at += CHUNK + SECTOR_BYTES) {
      for (const [copy, { member, offsetBytes }] of layout.locate(at).copies.entries()) {
        await spoil(world, member, offsetBytes / SECTOR_BYTES);
        const wrong = copy === 0 ? 'data' : 'redundancy';
        expect(await scrub(world)).toEqual([{ member, wrong, offsetBytes, lengthBytes: SECTOR_BYTES }]);
        await spoil(world, member, offsetBytes / SECTOR_BYTES);
      }
    }
    await world.array.close();
  },
);

test('raid1 of 2: nobody can say which copy is wrong; the second is said to be unlike the first', async () => {
  const world = await filled({ level: 'raid1', memberCount: 2, memberBytes });
  for (const member of [0, 1]) {
    await spoil(world, member, 9);
    expect(await scrub(world)).toMatchObject([{ member: 1, wrong: null, offsetBytes: 9 * SECTOR_BYTES }]);
    await spoil(world, member, 9);
  }
  await world.array.close();
});

test('raid6: a repair takes data for right, as md does, and names the member whose data was wrong', async () => {
  const world = await filled({
    level: 'raid6',
    layout: 'left-symmetric',
    memberCount: 4,
    memberBytes,
    chunkBytes: CHUNK,
  });
  const before = new Uint8Array(SECTOR_BYTES);
  await world.array.read(0, before);
  const { layout } = world.array;
  if (layout.kind !== 'parity') throw new Error('raid6 has parity');
  await spoil(world, layout.row(0).data[0] ?? -1, 0, 5);
  expect(await scrub(world, { repair: true })).toMatchObject([
    { member: layout.row(0).data[0], wrong: 'data', offsetBytes: 0 },
  ]);
  expect(await scrub(world)).toEqual([]);
  const after = new Uint8Array(SECTOR_BYTES);
  await world.array.read(0, after);
  before[5]! ^= 0x40;
  expect(Buffer.compare(after, before)).toBe(0);
  await world.array.close();
});

test('a scrub that begins at a place leaves out what lies before, in steps of 4 MiB', async () => {
  const world = await filled({ level: 'raid1', memberCount: 2, memberBytes: 12 * MIB });
  for (const sector of [0, (5 * MIB) / SECTOR_BYTES, (9 * MIB) / SECTOR_BYTES]) await spoil(world, 1, sector);
  const count = async (fromBytes: number): Promise<number> => (await scrub(world, { fromBytes })).length;
  expect([await count(0), await count(6 * MIB), await count(8 * MIB), await count(12 * MIB)]).toEqual([
    3, 2, 1, 0,
  ]);
  await expect(count(12 * MIB + 1)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  await expect(count(-1)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  await world.array.close();
});

test('while a scrub is under way, the status says how far it is', async () => {
  const { array } = await filled({ level: 'raid1', memberCount: 2, memberBytes: 9 * MIB });
  expect(array.status().sync).toBeNull();
  const seen: unknown[] = [];
  for await (const { action } of array.scrub()) seen.push([action, array.status().sync?.doneBytes]);
  expect(seen).toEqual([
    ['check', 4 * MIB],
    ['check', 8 * MIB],
    ['check', 9 * MIB],
  ]);
  for await (const { action } of array.scrub({ repair: true })) {
    expect(array.status().sync).toMatchObject({ action, totalBytes: 9 * MIB });
    break;
  }
  expect(array.status().sync).toBeNull();
  await array.close();
});

const pairs = {
  level: 'raid10',
  memberCount: 4,
  memberBytes,
  chunkBytes: CHUNK,
  near: 2,
  far: 1,
  offset: false,
  farSets: 0,
} as const;

test.each([
  [{ level: 'raid1', memberCount: 2, memberBytes }, [0], 0],
  [{ level: 'raid1', memberCount: 3, memberBytes }, [0], 1],
  [{ level: 'raid5', layout: 'left-symmetric', memberCount: 4, memberBytes, chunkBytes: CHUNK }, [2], 0],
  [{ level: 'raid6', layout: 'left-symmetric', memberCount: 5, memberBytes, chunkBytes: CHUNK }, [2], 1],
  [{ level: 'raid6', layout: 'left-symmetric', memberCount: 5, memberBytes, chunkBytes: CHUNK }, [2, 3], 0],
  [pairs, [1], 0.5],
] as const)('%o without members %o: a scrub says how much it could compare', async (geometry, gone, part) => {
  for (const repair of [false, true]) {
    const { array } = await filled(geometry);
    let before = 0;
    for await (const step of array.scrub({ repair })) before = step.comparedBytes / step.totalBytes;
    expect(before).toBe(1);
    for (const member of gone) await array.fail(member);
    let compared = Number.NaN;
    for await (const step of array.scrub({ repair })) compared = step.comparedBytes / step.totalBytes;
    expect(compared).toBe(part);
    await array.close();
  }
});
