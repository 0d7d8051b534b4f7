/**
 * Goal: on arrays of copies every plan is right whoever is healthy, and refused exactly when it must be.
 * Method: plans run on names (copies-world.ts). What a plan changes is accounted for cell by cell (I1, I10).
 */
import { describe, expect, test } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { CopiesGeometry } from '../../lib/layout/geometry.ts';
import type { CopiesLayout } from '../../lib/layout/layout.ts';
import { compileHealth } from '../../lib/plan/health.ts';
import { type ErasedRange, type Health, isLost, type Lost, type Plan } from '../../lib/plan/plan.ts';
import {
  planCheck,
  planRead,
  planRecover,
  planRepair,
  planWrite,
  syncBytes,
} from '../../lib/plan/planner.ts';
import { MIB } from '../../lib/units.ts';
import { CopiesWorld } from './copies-world.ts';
import { ERASED, GOOD, lostUnits, MISSING, Violation } from './parity-world.ts';
import { CHUNK, everyInterval, everyMask, HALF } from './shapes.ts';

function everyCopiesLayout(): { readonly name: string; readonly layout: CopiesLayout }[] {
  const geometries: CopiesGeometry[] = [
    { level: 'linear', chunkBytes: 0, memberBytes: [2 * CHUNK, 3 * HALF, CHUNK] },
    { level: 'linear', chunkBytes: CHUNK, memberBytes: [2 * CHUNK, 3 * HALF] },
    { level: 'raid0', chunkBytes: CHUNK, layout: 'original', memberBytes: [2 * CHUNK, 4 * CHUNK, 3 * CHUNK] },
    {
      level: 'raid0',
      chunkBytes: CHUNK,
      layout: 'alternate',
      memberBytes: [2 * CHUNK, 4 * CHUNK, 3 * CHUNK],
    },
  ];
  for (const memberCount of [1, 2, 3, 4]) {
    geometries.push({ level: 'raid1', memberCount, memberBytes: 4 * CHUNK });
  }
  for (const memberCount of [2, 3, 4, 5, 6]) {
    for (const near of [1, 2, 3]) {
      for (const far of [1, 2, 3]) {
        for (const offset of [false, true]) {
          for (const farSets of [0, 1, 2] as const) {
            const size = { memberCount, chunkBytes: CHUNK, memberBytes: (far === 1 ? 3 : 2 * far) * CHUNK };
            geometries.push({ level: 'raid10', ...size, near, far, offset, farSets });
          }
        }
      }
    }
  }
  return geometries.flatMap((geometry) => {
    try {
      return [{ name: JSON.stringify(geometry), layout: compileLayout(geometry) }];
    } catch (error) {
      if (error instanceof RaidError && error.code === 'BAD_GEOMETRY') return [];
      throw error;
    }
  });
}

function expectLost(world: CopiesWorld, answer: Plan | Lost, must: ReadonlySet<number>): void {
  const units = lostUnits(answer, world.unitBytes);
  if (units.size !== must.size || [...units].some((unit) => !must.has(unit))) {
    throw new Violation('refusal names other ranges');
  }
}

function unitsOf(from: number, to: number, isLostUnit: (unit: number) => boolean): Set<number> {
  const units = new Set<number>();
  for (let unit = from; unit < to; unit += 1) if (isLostUnit(unit)) units.add(unit);
  return units;
}

function judgeRead(world: CopiesWorld, from: number, to: number): void {
  const { layout, health, unitBytes } = world;
  const plan = planRead(layout, health, from * unitBytes, (to - from) * unitBytes);
  expectLost(
    world,
    plan,
    unitsOf(from, to, (unit) => world.copiesIn(unit, GOOD).length === 0),
  );
  if (isLost(plan)) return;
  world.run(plan, from * unitBytes, 'read');
  if (plan.writes.length + plan.inspect.length > 0) throw new Violation('a read only reads');
  if (plan.reads.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0) !== plan.requestBytes) {
    throw new Violation('a read reads one copy');
  }
}

function judgeWrite(world: CopiesWorld, from: number, to: number): void {
  const { layout, health, unitBytes } = world;
  const plan = planWrite(layout, health, from * unitBytes, (to - from) * unitBytes);
  expectLost(
    world,
    plan,
    unitsOf(from, to, (unit) => world.copiesIn(unit, GOOD, ERASED).length === 0),
  );
  if (isLost(plan)) return;
  world.run(plan, from * unitBytes, 'write');
  if (plan.reads.length > 0 || plan.scratchBytes > 0) throw new Violation('a write only writes');
  for (let at = 0; at < world.after.length; at += 1) {
    const unit = world.holds[at]!;
    const changes = unit >= from && unit < to && world.states[at] !== MISSING;
    if (changes ? !world.isNew(at) : world.after[at] !== world.before[at]) {
      throw new Violation('a cell holds what is wrong');
    }
  }
}

/** Every used cell in `cells` must hold what the array holds, every other one what it held. */
function judgeCells(world: CopiesWorld, cells: (at: number) => boolean): void {
  for (let at = 0; at < world.after.length; at += 1) {
    const demanded = world.holds[at]! >= 0 && cells(at);
    if (demanded ? !world.isOld(at) : world.after[at] !== world.before[at]) {
      throw new Violation('a cell holds what is wrong');
    }
  }
}

function judgeRecover(world: CopiesWorld, member: number, from: number, to: number): void {
  const { layout, health, unitBytes } = world;
  const plan = planRecover(layout, health, member, from * unitBytes, (to - from) * unitBytes);
  const first = world.start[member]!;
  const mustLose = new Set<number>();
  for (let at = first + from; at < first + to; at += 1) {
    const unit = world.holds[at]!;
    if (unit >= 0 && world.copiesIn(unit, GOOD).every((copy) => copy === at)) mustLose.add(unit);
  }
  expectLost(world, plan, mustLose);
  if (isLost(plan)) return;
  world.run(plan, 0, 'none');
  if (plan.reads.some((read) => read.member === member)) throw new Violation('recovers a member from itself');
  judgeCells(world, (at) => at >= first + from && at < first + to);
}

function judgeSync(world: CopiesWorld, from: number, to: number): void {
  const { layout, health, unitBytes } = world;
  const check = planCheck(layout, health, from * unitBytes, (to - from) * unitBytes);
  world.run(check, 0, 'none');
  let readable = 0;
  let comparable = 0;
  for (let unit = from; unit < to; unit += 1) {
    const good = world.copiesIn(unit, GOOD);
    readable += good.length;
    comparable += Math.max(0, good.length - 1);
  }
  if (check.writes.length > 0) throw new Violation('a check writes');
  if (world.reads.reduce((sum, count) => sum + count, 0) !== readable)
    throw new Violation('leaves out copies');
  if (world.compared !== comparable || world.found.size > 0)
    throw new Violation('compares too little or too much');

  const repair = planRepair(layout, health, from * unitBytes, (to - from) * unitBytes);
  expectLost(
    world,
    repair,
    unitsOf(from, to, (unit) => world.copiesIn(unit, GOOD).length === 0),
  );
  // Every good copy but the first goes bad in silence: a check names it, a repair overwrites it.
  const bad: number[] = [];
  for (let unit = from; unit < to; unit += 1) bad.push(...world.copiesIn(unit, GOOD).slice(1));
  for (const at of bad) world.before[at] = (1 << 23) + at;
  world.run(check, 0, 'none');
  if (world.found.size !== bad.length) throw new Violation('a wrong copy goes unseen');
  if (!isLost(repair)) {
    world.run(repair, 0, 'none');
    judgeCells(world, (at) => {
      const unit = world.holds[at]!;
      return unit >= from && unit < to && world.states[at] !== MISSING;
    });
  }
  for (const at of bad) world.before[at] = world.holds[at]!;
}

function judgeAll(world: CopiesWorld, name: string, health: Health, turn: number, stride: number): void {
  world.setHealth(health);
  const intervals = everyInterval(world.arrayUnits);
  try {
    for (let at = turn % stride; at < intervals.length; at += stride) {
      judgeRead(world, ...intervals[at]!);
      judgeWrite(world, ...intervals[at]!);
    }
    const [from, to] = intervals[turn % intervals.length]!;
    if (syncBytes(world.layout) > 0) judgeSync(world, from, to);
    health.members.forEach(({ state }, member) => {
      const units = world.start[member + 1]! - world.start[member]!;
      const begin = turn % 3 === 0 ? 0 : turn % units;
      if (state !== 'missing' && units > 0) judgeRecover(world, member, begin, units);
    });
  } catch (error) {
    throw new Error(`${name}, turn ${turn}, ${JSON.stringify(health)}`, { cause: error });
  }
}

const shapes = everyCopiesLayout();

describe('every level and layout', () => {
  test('the space is what it should be', () => {
    expect(new Set(shapes.map(({ layout }) => layout.geometry.level))).toEqual(
      new Set(['linear', 'raid0', 'raid1', 'raid10']),
    );
    expect(shapes.length).toBeGreaterThan(80);
  });

  test('every health, every request in some of them', () => {
    shapes.forEach(({ name, layout }, shape) => {
      const world = new CopiesWorld(layout, HALF);
      let turn = shape;
      for (const health of everyMask(layout.memberCount, layout.memberCount < 5 ? 4 : layout.copyCount + 1)) {
        judgeAll(world, name, health, turn, layout.memberCount < 4 ? 5 : 61);
        turn += 1;
      }
    });
  });

  test('every pair of erased halves of chunks, beside a missing or recovering member', () => {
    shapes.forEach(({ name, layout }, shape) => {
      if (layout.memberCount > 4) return;
      const world = new CopiesWorld(layout, HALF);
      const ranges: ErasedRange[] = layout.memberBytes.flatMap((bytes, member) =>
        Array.from({ length: Math.min(4, bytes / HALF) }, (_, half) => ({
          member,
          offsetBytes: half * HALF,
          lengthBytes: half % 2 === 0 ? HALF : CHUNK,
        })),
      );
      let turn = shape;
      for (const first of ranges) {
        for (const second of ranges) {
          turn += 1;
          const odd = ([null, 'missing', 'recovering'] as const)[turn % 3]!;
          const members = layout.memberBytes.map((_, member) => {
            if (odd === null || member !== turn % layout.memberCount) return { state: 'in_sync' as const };
            return odd === 'missing'
              ? { state: 'missing' as const }
              : { state: 'recovering' as const, recoveredBytes: 1.5 * CHUNK };
          });
          judgeAll(world, name, { members, erased: [first, second] }, turn, 37);
        }
      }
    });
  });
});

describe('the choice of a copy', () => {
  const sync = { state: 'in_sync' } as const;

  function membersRead(
    layout: CopiesLayout,
    health: Health,
    offsetBytes: number,
    lengthBytes: number,
  ): number[] {
    const plan = planRead(layout, compileHealth(layout, health), offsetBytes, lengthBytes);
    return isLost(plan) ? [] : plan.reads.map(({ member }) => member);
  }

  test('raid1 reads stay on one member within 1 MiB and share the members beyond', () => {
    const layout = compileLayout({ level: 'raid1', memberCount: 3, memberBytes: 12 * MIB });
    const health: Health = { members: [sync, sync, sync], erased: [] };
    expect(membersRead(layout, health, 0, 6 * MIB)).toEqual([0, 1, 2, 0, 1, 2]);
    expect(membersRead(layout, health, MIB + 4096, 65536)).toEqual([1]);
    const degraded: Health = { members: [sync, { state: 'missing' }, sync], erased: [] };
    expect(membersRead(layout, degraded, 0, 4 * MIB)).toEqual([0, 2, 0, 2]);
  });

  test('raid1 takes the first good copy where a resync has still to pass', () => {
    const layout = compileLayout({ level: 'raid1', memberCount: 2, memberBytes: 8 * MIB });
    const health: Health = { members: [sync, sync], erased: [], unsyncedFromBytes: 1.5 * MIB };
    const plan = planRead(layout, compileHealth(layout, health), 0, 8 * MIB);
    if (isLost(plan)) throw new Error('refused');
    expect(plan.reads.map(({ member, lengthBytes }) => [member, lengthBytes / MIB])).toEqual([
      [0, 1],
      [1, 0.5],
      [0, 6.5],
    ]);
  });

  test('far reads keep to the first section while it is good', () => {
    const size = { memberCount: 4, chunkBytes: 65536, memberBytes: 8 * MIB } as const;
    const layout = compileLayout({ level: 'raid10', ...size, near: 1, far: 2, offset: false, farSets: 0 });
    const health: Health = { members: [sync, sync, sync, sync], erased: [] };
    const plan = planRead(layout, compileHealth(layout, health), 0, 8 * MIB);
    if (isLost(plan)) throw new Error('refused');
    expect(plan.reads.every(({ offsetBytes }) => offsetBytes < 4 * MIB)).toBe(true);
    const degraded: Health = { members: [{ state: 'missing' }, sync, sync, sync], erased: [] };
    expect(membersRead(layout, degraded, 0, 4 * 65536)).toEqual([1, 1, 2, 3]);
  });

  test('a refused write names only the part that no member would hold', () => {
    const layout = compileLayout({ level: 'raid1', memberCount: 2, memberBytes: 4 * CHUNK });
    const health: Health = {
      members: [{ state: 'missing' }, { state: 'recovering', recoveredBytes: CHUNK }],
      erased: [],
    };
    expect(planWrite(layout, compileHealth(layout, health), 0, 2 * CHUNK)).toEqual({
      lost: [{ offsetBytes: CHUNK, lengthBytes: CHUNK }],
    });
  });
});
