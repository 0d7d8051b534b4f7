import { expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Raid0 } from '../../lib/layout/geometry.ts';
import { layoutMatters, zonesOf } from '../../lib/layout/raid0.ts';
import { type DirectPlaces, listsOf, refusalOf, SECTOR, violationOfCopies } from './laws.ts';

/** The rule as md has it: find the zone, then deal by the chunk's number in the array or in the zone. In sectors. */
function directPlaces(
  sizes: readonly number[],
  chunk: number,
  layout: 'original' | 'alternate',
): DirectPlaces {
  const used = sizes.map((size) => Math.floor(size / chunk) * chunk);
  return (sector) => {
    let zoneStart = 0;
    let low = 0;
    for (const high of [...new Set(used)].sort((a, b) => a - b)) {
      const members = used.flatMap((size, member) => (size > low ? [member] : []));
      const count = members.length;
      if (sector < zoneStart + count * (high - low)) {
        const off = sector - zoneStart;
        const address = low + Math.floor(off / (chunk * count)) * chunk + (sector % chunk);
        const turn =
          layout === 'original' ? Math.floor(sector / chunk) % count : Math.floor(off / chunk) % count;
        return [[members[turn]!, address]];
      }
      zoneStart += count * (high - low);
      low = high;
    }
    throw new Error(`sector ${sector} is past the last zone`);
  };
}

function geometryOf(sizes: readonly number[], chunk: number, layout: 'original' | 'alternate'): Raid0 {
  return {
    level: 'raid0',
    chunkBytes: chunk * SECTOR,
    layout,
    memberBytes: sizes.map((size) => size * SECTOR),
  };
}

function violationsOver(
  sizesOf: readonly number[],
  memberCount: number,
  chunk: number,
  leftOver: number,
): number {
  let arrays = 0;
  for (const chunks of listsOf(sizesOf, memberCount)) {
    for (const layoutName of ['original', 'alternate'] as const) {
      const sizes = chunks.map((count, member) => count * chunk + (member % 2 === 0 ? leftOver : 0));
      const layout = compileLayout(geometryOf(sizes, chunk, layoutName));
      const violation = violationOfCopies(layout, directPlaces(sizes, chunk, layoutName));
      if (violation !== null) throw new Error(`${layoutName} chunk ${chunk} members ${sizes}: ${violation}`);
      const size = chunks.reduce((sum, count) => sum + ((count * chunk) & ~(chunk - 1)), 0);
      if (layout.arrayBytes !== size * SECTOR)
        throw new Error(`chunk ${chunk} members ${sizes}: wrong array size`);
      arrays += 1;
    }
  }
  return arrays;
}

test.each([
  { chunk: 1, leftOver: 0 },
  { chunk: 3, leftOver: 2 },
  { chunk: 8, leftOver: 5 },
])(
  'raid0 with chunks of $chunk sectors follows md over 1 to 4 members of 1 to 4 chunks',
  ({ chunk, leftOver }) => {
    let arrays = 0;
    for (const memberCount of [1, 2, 3, 4])
      arrays += violationsOver([1, 2, 3, 4], memberCount, chunk, leftOver);
    expect(arrays).toBe(2 * (4 + 16 + 64 + 256));
  },
);

test.each([1, 3, 24])(
  'raid0 with chunks of %i sectors follows md over 5 members of 1, 2, 4 or 7 chunks',
  (chunk) => {
    expect(violationsOver(chunk === 24 ? [1, 4, 7] : [1, 2, 4, 7], 5, chunk, 0)).toBe(
      2 * (chunk === 24 ? 243 : 1024),
    );
  },
);

test('raid0 of equal members follows md with up to 9 of them', () => {
  for (let memberCount = 1; memberCount <= 9; memberCount += 1) violationsOver([5], memberCount, 8, 3);
});

test('raid0 loses the end where the chunk is not a power of two, as md does', () => {
  // Two members of 10 chunks of 24 sectors: 240 & ~23 = 224 each.
  const layout = compileLayout(geometryOf([240, 240], 24, 'original'));
  expect(layout.arrayBytes).toBe(448 * SECTOR);
  expect(layout.memberBytes).toEqual([240 * SECTOR, 240 * SECTOR]);
  // Chunk 18 begins at array sector 432: sixteen sectors of it are left, and nothing of chunk 19.
  expect(layout.locate(432 * SECTOR)).toEqual({
    arrayOffsetBytes: 432 * SECTOR,
    lengthBytes: 16 * SECTOR,
    copies: [{ member: 0, offsetBytes: 216 * SECTOR }],
  });
  expect(layout.contentAt(0, 232 * SECTOR)).toEqual({ arrayOffsetBytes: null, lengthBytes: 8 * SECTOR });
  expect(layout.contentAt(1, 216 * SECTOR)).toEqual({ arrayOffsetBytes: null, lengthBytes: 24 * SECTOR });
});

test('the bit mask of the array size is right beyond 32 bits', () => {
  const sectors = 24 * 2 ** 36;
  const layout = compileLayout(geometryOf([sectors + 24 * 10], 24, 'original'));
  expect(BigInt(layout.arrayBytes) / 512n).toBe(BigInt(sectors + 240) & ~23n);
});

test('the layout matters exactly where a chunk moves', () => {
  for (const memberCount of [1, 2, 3, 4]) {
    for (const sizes of listsOf([1, 2, 3], memberCount)) {
      const original = geometryOf(sizes, 1, 'original');
      const layouts = [compileLayout(original), compileLayout(geometryOf(sizes, 1, 'alternate'))] as const;
      let moves = false;
      for (let at = 0; at < layouts[0].arrayBytes; at += SECTOR) {
        moves ||= layouts[0].locate(at).copies[0]!.member !== layouts[1].locate(at).copies[0]!.member;
      }
      expect(layoutMatters(original), `${sizes}`).toBe(moves);
    }
  }
});

test('members of 1, 3 and 3 chunks make two zones, the second turned by one in the original layout', () => {
  expect(zonesOf(geometryOf([8, 24, 24], 8, 'original'))).toEqual([
    { arrayStartBytes: 0, memberStartBytes: 0, memberEndBytes: 4096, dealt: [0, 1, 2] },
    { arrayStartBytes: 12288, memberStartBytes: 4096, memberEndBytes: 12288, dealt: [2, 1] },
  ]);
});

test('raid0 refuses chunks that are not whole sectors and members below one chunk', () => {
  expect(refusalOf(() => compileLayout(geometryOf([8], 0, 'original')))).toContain('multiple of 512');
  expect(
    refusalOf(() =>
      compileLayout({ level: 'raid0', chunkBytes: 1000, layout: 'original', memberBytes: [4096] }),
    ),
  ).toContain('take 1 KiB');
  expect(refusalOf(() => compileLayout(geometryOf([16, 7], 8, 'original')))).toContain('member 1');
});
