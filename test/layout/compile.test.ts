import { expect, test } from 'vitest';
import { InvariantViolation } from '../../lib/errors.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Geometry, Level, Raid1 } from '../../lib/layout/geometry.ts';
import { copiesMax, levelNames, levels } from '../../lib/layout/levels.ts';
import { refusalOf } from './laws.ts';

function geometryOf(level: Level, memberCount: number, chunkBytes: number, memberBytes: number): Geometry {
  const shape = { memberCount, chunkBytes, memberBytes };
  const each = new Array<number>(Math.max(0, memberCount)).fill(memberBytes);
  switch (level) {
    case 'linear':
      return { level, chunkBytes, memberBytes: each };
    case 'raid0':
      return { level, chunkBytes, layout: 'original', memberBytes: each };
    case 'raid1':
      return { level, memberCount, memberBytes };
    case 'raid4':
      return { level, ...shape };
    case 'raid5':
    case 'raid6':
      return { level, layout: 'left-symmetric', ...shape };
    case 'raid10':
      return { level, ...shape, near: 2, far: 1, offset: false, farSets: 0 };
  }
}

test.each(levelNames)('%s has the least members that its table says, and not one less', (level) => {
  const { membersMin, membersMax } = levels[level];
  expect(refusalOf(() => compileLayout(geometryOf(level, membersMin, 4096, 65536)))).toBeNull();
  expect(refusalOf(() => compileLayout(geometryOf(level, membersMin - 1, 4096, 65536)))).toContain(
    `needs ${membersMin} members or more, not ${membersMin - 1}`,
  );
  expect(refusalOf(() => compileLayout(geometryOf(level, membersMax, 4096, 65536)))).toBeNull();
  expect(refusalOf(() => compileLayout(geometryOf(level, membersMax + 1, 4096, 65536)))).toContain('at most');
});

test('no layout makes more copies than can be written together', () => {
  const mirror = (memberCount: number) => geometryOf('raid1', memberCount, 0, 65536);
  expect(compileLayout(mirror(copiesMax) as Raid1).copyCount).toBe(copiesMax);
  expect(refusalOf(() => compileLayout(mirror(copiesMax + 1)))).toContain('512 members at most');
  for (const [near, far] of [
    [255, 2],
    [255, 3],
    [3, 255],
    [2, 255],
    [64, 8],
    [64, 9],
  ] as const) {
    const shape = { memberCount: 1024, chunkBytes: 4096, memberBytes: far * 4096 };
    const geometry = { level: 'raid10', ...shape, near, far, offset: false, farSets: 0 } as const;
    const refusal = refusalOf(() => compileLayout(geometry));
    if (near * far > copiesMax) expect(refusal).toContain('512 copies at most');
    else expect(compileLayout(geometry).copyCount).toBe(near * far);
  }
});

test.each(levelNames)('%s takes the chunks that its table says', (level) => {
  const takes = (chunkBytes: number) =>
    refusalOf(() => compileLayout(geometryOf(level, 4, chunkBytes, 2 ** 24))) === null;
  const bytes = [
    0,
    1,
    512,
    1000,
    1536,
    2048,
    4096,
    5120,
    12288,
    65536,
    98304,
    2 ** 20,
    -4096,
    4096.5,
    Number.NaN,
  ];
  const expected = {
    none: bytes,
    rounding: [0, 512, 1536, 2048, 4096, 5120, 12288, 65536, 98304, 2 ** 20],
    sectors: [512, 1536, 2048, 4096, 5120, 12288, 65536, 98304, 2 ** 20],
    'power-of-two': [4096, 65536, 2 ** 20],
  }[levels[level].chunk];
  expect(bytes.filter(takes)).toEqual(expected);
});

test('a refused chunk comes with one that is possible', () => {
  expect(refusalOf(() => compileLayout(geometryOf('raid5', 3, 98304, 2 ** 20)))).toBe(
    'a chunk of 96 KiB is not possible at raid5: it is a power of two, 4 KiB or more; take 64 KiB or 128 KiB',
  );
  expect(refusalOf(() => compileLayout(geometryOf('raid10', 4, 2048, 2 ** 20)))).toContain('take 4 KiB');
  expect(refusalOf(() => compileLayout(geometryOf('raid0', 4, 2 ** 41, 2 ** 45)))).toContain('take 512 KiB');
});

test.each(levelNames)(
  '%s refuses members that are no whole sectors, are too small, or make more than 8 PiB',
  (level) => {
    for (const memberBytes of [65537, -512, Number.NaN, 512.5, 2 ** 60]) {
      expect(
        refusalOf(() => compileLayout(geometryOf(level, 4, 4096, memberBytes))),
        `${memberBytes}`,
      ).not.toBeNull();
    }
    expect(refusalOf(() => compileLayout(geometryOf(level, 4, 4096, 0)))).toContain('too small');
    if (level !== 'raid1') {
      expect(refusalOf(() => compileLayout(geometryOf(level, 4, 4096, 3584)))).toContain(
        '4 KiB is the least',
      );
      expect(refusalOf(() => compileLayout(geometryOf(level, 5, 4096, 2 ** 52)))).toContain('8 PiB');
    }
  },
);

test.each(levelNames)('%s throws an InvariantViolation for a place outside the array', (level) => {
  const layout = compileLayout(geometryOf(level, 4, 4096, 65536));
  for (const [member, at] of [
    [-1, 0],
    [4, 0],
    [0, -1],
    [0, 2 ** 40],
  ] as const) {
    const ask = () => (layout.kind === 'copies' ? layout.contentAt(member, at) : layout.cellAt(member, at));
    expect(ask).toThrow(InvariantViolation);
  }
  for (const at of [-1, 2 ** 40]) {
    expect(() => (layout.kind === 'copies' ? layout.locate(at) : layout.row(at))).toThrow(InvariantViolation);
  }
});

test('a compiled layout keeps the geometry it came from', () => {
  for (const level of levelNames) {
    const geometry = geometryOf(level, 4, 4096, 65536);
    expect(compileLayout(geometry).geometry).toBe(geometry);
    expect(compileLayout(geometry).kind).toBe(levels[level].family);
  }
});
