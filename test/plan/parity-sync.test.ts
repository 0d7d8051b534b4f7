/**
 * Goal: recover, check and repair do on parity arrays what their names say, whoever is healthy.
 * Method: as in parity.test.ts.
 */
import { describe, expect, test } from 'vitest';
import { type Health, type Inspect, isLost, type Lost, type Plan } from '../../lib/plan/plan.ts';
import { planCheck, planRecover, planRepair, syncBytes } from '../../lib/plan/planner.ts';
import { bitCount } from './algebra.ts';
import { BEHIND, GOOD, lostUnits, MISSING, ParityWorld, Violation } from './parity-world.ts';
import {
  CHUNK,
  everyMask,
  everyPairOfErasures,
  everyParityLayout,
  HALF,
  parityLayout,
  type Shape,
} from './shapes.ts';

function undetermined(world: ParityWorld, row: number, column: number, known: number): Set<number> {
  const { dataCount } = world.layout;
  const span = world.algebraOf[row]!.span(known);
  const units = new Set<number>();
  for (let cell = 0; cell < dataCount; cell += 1) {
    if ((span & (1 << cell)) === 0) {
      units.add((row * dataCount + cell) * world.columns + column);
    }
  }
  return units;
}

function expectLost(world: ParityWorld, answer: Plan | Lost, must: ReadonlySet<number>): void {
  const units = lostUnits(answer, world.unitBytes);
  if (units.size !== must.size || [...units].some((unit) => !must.has(unit))) {
    throw new Violation('refusal names other ranges');
  }
}

/** Every cell that `demands` must be right, every other one as before. */
function judgeCells(
  world: ParityWorld,
  demands: (row: number, cell: number, column: number) => boolean,
): void {
  for (let row = 0; row < world.rows; row += 1) {
    for (let cell = 0; cell < world.layout.dataCount + 2; cell += 1) {
      for (let column = 0; column < world.columns; column += 1) {
        if (world.memberOf[row]![cell]! < 0) continue;
        if (demands(row, cell, column)) {
          if (!world.isRight(row, cell, column, 0)) throw new Violation('a cell holds what is wrong');
        } else if (!world.isUnchanged(row, cell, column)) {
          throw new Violation('a cell outside changed');
        }
      }
    }
  }
}

function judgeRecover(world: ParityWorld, member: number, from: number, to: number): void {
  const { layout, health, unitBytes } = world;
  const plan = planRecover(layout, health, member, from * unitBytes, (to - from) * unitBytes);
  const mustLose = new Set<number>();
  for (let unit = from; unit < to; unit += 1) {
    const row = Math.floor(unit / world.columns);
    const column = unit % world.columns;
    const target = world.memberOf[row]!.indexOf(member);
    const known = world.cellsIn(GOOD, row, column) & ~(1 << target);
    if ((world.algebraOf[row]!.span(known) & (1 << target)) === 0) {
      for (const lost of undetermined(world, row, column, known)) mustLose.add(lost);
    }
  }
  expectLost(world, plan, mustLose);
  if (isLost(plan)) return;

  world.run(plan, 0, 'none');
  if (plan.reads.some((read) => read.member === member)) throw new Violation('recovers a member from itself');
  judgeCells(world, (row, cell, column) => {
    const unit = row * world.columns + column;
    return world.memberOf[row]![cell] === member && unit >= from && unit < to;
  });
}

function judgeCheck(world: ParityWorld, from: number, to: number): void {
  const { layout, health, unitBytes } = world;
  const plan = planCheck(layout, health, from * unitBytes, (to - from) * unitBytes);
  if (plan.writes.length > 0) throw new Violation('a check writes');
  world.run(plan, 0, 'none');
  if (world.found.size > 0) throw new Violation('a check finds a difference in a consistent row');
  for (let unit = from; unit < to; unit += 1) {
    const row = Math.floor(unit / world.columns);
    const column = unit % world.columns;
    const good = world.cellsIn(GOOD, row, column);
    if (world.readsAt(row, column) !== bitCount(good))
      throw new Violation('a check leaves out what is readable');
    const dependent = world.algebraOf[row]!.rank(good) < bitCount(good);
    if (world.inspected.has(unit) !== dependent)
      throw new Violation('inspects where it cannot, or not where it can');
  }
  for (const step of plan.inspect) {
    if (step.op === 'verify') judgeHolders(plan, step);
  }
  for (const group of new Set(world.inspected)) {
    const row = Math.floor(group / world.columns);
    const column = group % world.columns;
    for (let cell = 0; cell < layout.dataCount + 2; cell += 1) {
      if (world.stateOf(row, cell, column) !== GOOD) continue;
      const unit = world.unitOf(world.memberOf[row]![cell]!, row, column);
      world.corrupt(unit);
      world.run(plan, 0, 'none');
      world.heal(unit);
      if (world.found.size !== 1 || !world.found.has(group))
        throw new Violation('a corrupted cell goes unseen');
    }
  }
}

/** Members are named where a row has two parities and all of it is read, and they are those it was read from. */
function judgeHolders(plan: Plan, step: Inspect & { op: 'verify' }): void {
  const { data, p, q, holders } = step;
  const holderAt = (address: number | null): number | null =>
    plan.reads.find((read) => read.address === address)?.member ?? null;
  const isWhole = [...data, p].every((address) => address === null || holderAt(address) !== null);
  if ((holders !== null) !== (isWhole && holderAt(q) !== null))
    throw new Violation('names holders where it cannot, or not where it can');
  if (holders === null) return;
  const told = [...holders.data, holders.p, holders.q];
  const right = [...data, p, q].map(holderAt);
  if (right.some((member, index) => told[index] !== member)) throw new Violation('names other holders');
  const taken = [...data, p, q].filter((address) => address !== null);
  const clear = (a: number, b: number): boolean => Math.abs(a - b) >= step.lengthBytes;
  if (![...taken, holders.deltaQ].every((address) => clear(address, holders.deltaP)))
    throw new Violation('the room for differences is not free');
  if (!taken.every((address) => clear(address, holders.deltaQ)))
    throw new Violation('the room for differences is not free');
}

function judgeRepair(world: ParityWorld, from: number, to: number): void {
  const { layout, health, unitBytes } = world;
  const { dataCount } = layout;
  const plan = planRepair(layout, health, from * unitBytes, (to - from) * unitBytes);
  const mustLose = new Set<number>();
  for (let unit = from; unit < to; unit += 1) {
    const row = Math.floor(unit / world.columns);
    const column = unit % world.columns;
    for (const lost of undetermined(world, row, column, world.cellsIn(GOOD, row, column))) mustLose.add(lost);
  }
  expectLost(world, plan, mustLose);
  if (isLost(plan)) return;

  const isInside = (row: number, column: number): boolean =>
    row * world.columns + column >= from && row * world.columns + column < to;
  const isRewritten = (row: number, cell: number, column: number): boolean =>
    isInside(row, column) && world.stateOf(row, cell, column) !== MISSING;
  world.run(plan, 0, 'none');
  judgeCells(world, isRewritten);

  // Once more over wrong parities, all that lost data is not solved from.
  for (let row = 0; row < world.rows; row += 1) {
    for (let column = 0; column < world.columns; column += 1) {
      if (!isInside(row, column)) continue;
      const lost = dataCount - bitCount(world.cellsIn(GOOD, row, column) & ((1 << dataCount) - 1));
      const parities = [dataCount, dataCount + 1].filter((cell) => world.stateOf(row, cell, column) === GOOD);
      for (const cell of parities.slice(lost)) {
        world.corrupt(world.unitOf(world.memberOf[row]![cell]!, row, column));
      }
    }
  }
  world.run(plan, 0, 'none');
  judgeCells(world, isRewritten);
}

function told(name: string, health: Health, what: string, judge: () => void): void {
  try {
    judge();
  } catch (error) {
    throw new Error(`${name}, ${what}, ${JSON.stringify(health)}`, { cause: error });
  }
}

const shapes = everyParityLayout(3, [2, 3, 4, 5, 6], [4, 5, 6]);
const ranges = [
  [0, 6],
  [0, 1],
  [1, 4],
  [3, 6],
] as const;

function overHealths(judge: (world: ParityWorld, health: Health, name: string, turn: number) => void): void {
  for (const { name, layout } of shapes) {
    const world = new ParityWorld(layout, HALF);
    let turn = 0;
    for (const health of everyMask(layout.memberCount, layout.parityCount + 1)) {
      world.setHealth(health);
      judge(world, health, name, turn);
      turn += 1;
    }
  }
}

describe('every layout, every health up to one beyond redundancy', () => {
  test('recover restores every cell of every member that takes writes', () => {
    overHealths((world, health, name, turn) => {
      const [from, to] = ranges[turn % ranges.length]!;
      health.members.forEach(({ state }, member) => {
        if (state === 'missing') return;
        told(name, health, `recover m${member} ${from}..${to}`, () => judgeRecover(world, member, from, to));
      });
    });
  });

  test('check reads all that is readable, finds nothing in consistent rows and any single corrupted cell', () => {
    overHealths((world, health, name, turn) => {
      if (world.layout.memberCount === 6 && turn % 5 > 0) return;
      const [from, to] = ranges[turn % ranges.length]!;
      told(name, health, `check ${from}..${to}`, () => judgeCheck(world, from, to));
    });
  });

  test('repair makes every row agree with its data', () => {
    overHealths((world, health, name, turn) => {
      const [from, to] = ranges[turn % ranges.length]!;
      told(name, health, `repair ${from}..${to}`, () => judgeRepair(world, from, to));
      world.setHealth(health);
    });
  });
});

test.each([
  ['raid5', 4],
  ['raid6', 5],
] as const)(
  '%s of %i: recover, check and repair beside every pair of erased parts of chunks',
  (level, count) => {
    const layout = parityLayout(level, 'left-symmetric', count, 2);
    const world = new ParityWorld(layout, CHUNK / 4);
    const units = syncBytes(layout) / world.unitBytes;
    let turn = 0;
    for (const health of everyPairOfErasures(count, true)) {
      world.setHealth(health);
      turn += 1;
      const member = turn % count;
      told(level, health, 'sync', () => {
        if (health.members[member]!.state !== 'missing') judgeRecover(world, member, 0, units);
        if (turn % 4 === 0) judgeCheck(world, 0, units);
        judgeRepair(world, 0, units);
      });
    }
  },
);

test('a bad area of an in_sync member is recovered from the others, and only there', () => {
  const { layout }: Shape = { name: 'raid5', layout: parityLayout('raid5', 'left-symmetric', 4, 2) };
  const world = new ParityWorld(layout, HALF);
  world.setHealth({
    members: Array.from({ length: 4 }, () => ({ state: 'in_sync' }) as const),
    erased: [{ member: 1, offsetBytes: HALF, lengthBytes: HALF }],
  });
  const plan = planRecover(layout, world.health, 1, HALF, HALF);
  expect(isLost(plan)).toBe(false);
  if (isLost(plan)) return;
  expect(plan.reads.map(({ member }) => member).sort()).toEqual([0, 2, 3]);
  expect(plan.writes).toEqual([expect.objectContaining({ member: 1, offsetBytes: HALF, lengthBytes: HALF })]);
});

test('a recovering member is healed by what recovery writes, whatever it held', () => {
  const layout = parityLayout('raid6', 'left-symmetric', 5, 2);
  const world = new ParityWorld(layout, HALF);
  world.setHealth({
    members: [0, 1, 2, 3, 4].map((member) =>
      member === 3 ? ({ state: 'recovering', recoveredBytes: 0 } as const) : ({ state: 'in_sync' } as const),
    ),
    erased: [],
  });
  expect(world.cellsIn(BEHIND, 0, 0)).not.toBe(0);
  judgeRecover(world, 3, 0, syncBytes(layout) / HALF);
});
