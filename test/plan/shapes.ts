/** The spaces that the laws of plans are proved over. */
import { compileLayout } from '../../lib/layout/compile.ts';
import {
  type ParityGeometry,
  type Raid5Layout,
  type Raid6Layout,
  raid5Layouts,
  raid6Layouts,
} from '../../lib/layout/geometry.ts';
import type { ParityLayout } from '../../lib/layout/layout.ts';
import type { ErasedRange, Health, MemberHealth } from '../../lib/plan/plan.ts';

export const CHUNK = 4096;
export const HALF = CHUNK / 2;

export function parityLayout(
  level: ParityGeometry['level'],
  name: Raid5Layout | Raid6Layout,
  memberCount: number,
  rows: number,
  chunkBytes = CHUNK,
): ParityLayout {
  const size = { memberCount, chunkBytes, memberBytes: rows * chunkBytes };
  if (level === 'raid4') return compileLayout({ level, ...size });
  if (level === 'raid5') return compileLayout({ level, layout: name as Raid5Layout, ...size });
  return compileLayout({ level, layout: name as Raid6Layout, ...size });
}

export interface Shape {
  readonly name: string;
  readonly layout: ParityLayout;
}

/** Every level, every layout, the given member counts. */
export function everyParityLayout(
  rows: number,
  raid5Counts: readonly number[],
  raid6Counts: readonly number[],
): Shape[] {
  const shapes: Shape[] = [];
  const add = (
    level: ParityGeometry['level'],
    name: Raid5Layout | Raid6Layout,
    counts: readonly number[],
  ): void => {
    for (const count of counts) {
      shapes.push({ name: `${level} ${name} of ${count}`, layout: parityLayout(level, name, count, rows) });
    }
  };
  add(
    'raid4',
    'parity-last',
    raid5Counts.filter((count) => count > 2),
  );
  for (const name of Object.keys(raid5Layouts) as Raid5Layout[]) add('raid5', name, raid5Counts);
  for (const name of Object.keys(raid6Layouts) as Raid6Layout[]) add('raid6', name, raid6Counts);
  return shapes;
}

/**
 * Every way for members to be in_sync, missing or recovering. Frontiers lie inside the first chunk for odd members and inside the
 * second for even ones, so a few rows show a member below, at and beyond its frontier.
 */
export function* everyMask(memberCount: number, troubleMax: number, chunkBytes = CHUNK): Generator<Health> {
  for (let code = 0; code < 3 ** memberCount; code += 1) {
    let trouble = 0;
    const members: MemberHealth[] = [];
    for (let member = 0, rest = code; member < memberCount; member += 1, rest = Math.floor(rest / 3)) {
      if (rest % 3 > 0) trouble += 1;
      if (rest % 3 === 0) members.push({ state: 'in_sync' });
      else if (rest % 3 === 1) members.push({ state: 'missing' });
      else members.push({ state: 'recovering', recoveredBytes: (member % 2 === 0 ? 1.5 : 0.5) * chunkBytes });
    }
    if (trouble <= troubleMax) yield { members, erased: [] };
  }
}

/** At most `missingMax` members missing, and every pair of erased quarter-chunk ranges among the first two chunks. */
export function* everyPairOfErasures(memberCount: number, withMissing: boolean): Generator<Health> {
  const quarter = CHUNK / 4;
  const ranges: ErasedRange[] = [];
  for (let member = 0; member < memberCount; member += 1) {
    for (const [from, to] of [
      [0, 2],
      [1, 3],
      [3, 5],
      [5, 8],
    ] as const) {
      ranges.push({ member, offsetBytes: from * quarter, lengthBytes: (to - from) * quarter });
    }
  }
  const trouble: readonly (MemberHealth | null)[] = withMissing
    ? [null, { state: 'missing' }, { state: 'recovering', recoveredBytes: 1.25 * CHUNK }]
    : [null];
  for (const state of trouble) {
    for (let first = 0; first < ranges.length; first += 1) {
      for (let second = first; second < ranges.length; second += 1) {
        for (let member = 0; member < (state === null ? 1 : memberCount); member += 1) {
          const members = Array.from(
            { length: memberCount },
            (_, index): MemberHealth => (state !== null && index === member ? state : { state: 'in_sync' }),
          );
          yield { members, erased: first === second ? [ranges[first]!] : [ranges[first]!, ranges[second]!] };
        }
      }
    }
  }
}

/** All [from, to) of at least one in `count` units. */
export function everyInterval(count: number): (readonly [number, number])[] {
  const intervals: [number, number][] = [];
  for (let from = 0; from < count; from += 1) {
    for (let to = from + 1; to <= count; to += 1) intervals.push([from, to]);
  }
  return intervals;
}
