import { expect, test } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import type { Level } from '../../lib/layout/geometry.ts';
import {
  failuresSurvived,
  layoutFromNumber,
  layoutName,
  layoutNames,
  layoutNumber,
  layoutShortName,
  levelFromNumber,
  levelNames,
  levelNumber,
  levels,
  parseLayout,
  parseLevel,
} from '../../lib/layout/levels.ts';

test('a level is found by its name, its number, its aliases and in capitals', () => {
  for (const level of levelNames) {
    for (const word of [level, level.toUpperCase(), ` ${level} `, ...levels[level].aliases]) {
      expect(parseLevel(word)).toBe(level);
    }
    expect(levelFromNumber(levelNumber(level))).toBe(level);
  }
  expect(parseLevel(5)).toBe('raid5');
  expect(parseLevel('RAID-6')).toBe('raid6');
  expect(parseLevel('mirror')).toBe('raid1');
  expect(parseLevel('stripe')).toBe('raid0');
  expect(levelFromNumber(-4)).toBeNull();
});

test('words that are no level are refused with the list of levels', () => {
  for (const word of ['', 'raid', 'raid7', '05', 'raid50', 'multipath', 'toString']) {
    expect(() => parseLevel(word)).toThrow(/there are linear, raid0, raid1, raid4, raid5, raid6, raid10/);
  }
});

test('every layout name and md number leads back to itself', () => {
  for (const level of levelNames) {
    for (const name of layoutNames(level)) {
      const choice = parseLayout(level, name);
      expect(layoutName(choice)).toBe(name);
      const number = layoutNumber(choice);
      expect(layoutFromNumber(level, number)).toEqual(choice);
      expect(parseLayout(level, number)).toEqual(choice);
      expect(parseLayout(level, `0x${number.toString(16)}`)).toEqual(choice);
      expect(parseLayout(level, layoutShortName(choice)!)).toEqual(choice);
    }
  }
});

test('every raid10 layout has a name and a number of its own', () => {
  const seen = new Set<string | number | null>();
  let count = 0;
  for (const near of [1, 2, 3, 9, 255]) {
    for (const far of [1, 2, 3, 9, 255]) {
      for (const offset of [false, true]) {
        for (const farSets of [0, 1, 2] as const) {
          const choice = { level: 'raid10', near, far, offset, farSets } as const;
          expect(parseLayout('raid10', layoutName(choice)!)).toEqual(choice);
          expect(layoutFromNumber('raid10', layoutNumber(choice))).toEqual(choice);
          seen.add(layoutName(choice)).add(layoutNumber(choice));
          count += 1;
        }
      }
    }
  }
  expect(seen.size).toBe(2 * count);
});

test.each([
  ['raid5', 'la', 0],
  ['raid5', 'ra', 1],
  ['raid5', 'ls', 2],
  ['raid5', 'rs', 3],
  ['raid5', 'default', 2],
  ['raid5', 'ddf-N-continue', 2],
  ['raid5', 'ddf-N-restart', 0],
  ['raid5', 'ddf-zero-restart', 1],
  ['raid6', 'ls', 2],
  ['raid6', 'ddf-N-continue', 10],
  ['raid6', 'DDF-n-restart', 9],
  ['raid6', 'left-symmetric-6', 18],
  ['raid10', 'n2', 0x102],
  ['raid10', 'near=2', 0x102],
  ['raid10', 'default', 0x102],
  ['raid10', 'f2', 0x201],
  ['raid10', 'o3', 0x10301],
  ['raid10', 'near=2, far=2', 0x202],
  ['raid10', 'far=2,far-sets=2', 0x40201],
  ['raid0', 'alternate', 2],
  ['raid0', 'default', 1],
] as const)('%s %s is number %i to md', (level: Level, word, number) => {
  expect(layoutNumber(parseLayout(level, word))).toBe(number);
});

test.each([
  ['raid5', 'left'],
  ['raid5', 'left-symmetric-6'],
  ['raid5', 6],
  ['raid6', 7],
  ['raid6', 21],
  ['raid6', 'toString'],
  ['raid0', 0],
  ['raid1', 'near=2'],
  ['raid1', 0],
  ['raid10', 'n0'],
  ['raid10', 'near=2,near=3'],
  ['raid10', 'far=2,offset=2'],
  ['raid10', 'far-sets=1'],
  ['raid10', 'near=256'],
  ['raid10', 0x80102],
  ['raid10', 2],
  ['raid10', ''],
] as const)('%s has no layout %s, and says which there are', (level: Level, word) => {
  expect(() => parseLayout(level, word)).toThrow(RaidError);
  expect(() => parseLayout(level, word)).toThrow(
    /is not a layout of .*; (there are|write|raid1 has only one)/,
  );
});

test('short names are as mdadm has them', () => {
  expect(layoutShortName(parseLayout('raid5', 2))).toBe('ls');
  expect(layoutShortName(parseLayout('raid5', 4))).toBe('parity-first');
  expect(layoutShortName(parseLayout('raid10', 'offset=3'))).toBe('o3');
  expect(layoutShortName(parseLayout('raid10', 'near=2,far=2'))).toBe('near=2,far=2');
  expect(layoutName({ level: 'raid1' })).toBeNull();
});

test('the table says what every level survives', () => {
  const shape = { memberCount: 6, chunkBytes: 4096, memberBytes: 65536 };
  expect(failuresSurvived({ level: 'raid1', memberCount: 3, memberBytes: 4096 })).toBe(2);
  expect(failuresSurvived({ level: 'raid4', ...shape })).toBe(1);
  expect(failuresSurvived({ level: 'raid6', layout: 'parity-last', ...shape })).toBe(2);
  expect(failuresSurvived({ level: 'raid10', ...shape, near: 2, far: 2, offset: false, farSets: 0 })).toBe(3);
  expect(failuresSurvived({ level: 'linear', chunkBytes: 0, memberBytes: [4096] })).toBe(0);
});
