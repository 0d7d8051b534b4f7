/**
 * What reads and writes of a parity array must do, whoever is healthy: judged by linear algebra (algebra.ts) over plans that
 * run on names (parity-world.ts). Refused are exactly the ranges that nothing determines; every cell that a write must
 * change is right afterwards, every other one untouched; and where `counting`, no read is one too many.
 */
import { type Health, isLost } from '../../lib/plan/plan.ts';
import { planRead, planWrite } from '../../lib/plan/planner.ts';
import { bitCount } from './algebra.ts';
import { BEHIND, ERASED, GOOD, lostUnits, MISSING, type ParityWorld, Violation } from './parity-world.ts';

/** Rows and columns that a request of array units touches. */
function* touched(world: ParityWorld, from: number, to: number): Generator<[number, number, number]> {
  const rowUnits = world.layout.dataCount * world.columns;
  for (let row = Math.floor(from / rowUnits); row * rowUnits < to; row += 1) {
    for (let column = 0; column < world.columns; column += 1) {
      const asked = world.asked(from, to, row, column);
      if (asked !== 0) yield [row, column, asked];
    }
  }
}

function addUnits(world: ParityWorld, row: number, column: number, cells: number, units: Set<number>): void {
  for (let cell = 0; cell < world.layout.dataCount; cell += 1) {
    if (cells & (1 << cell)) units.add((row * world.layout.dataCount + cell) * world.columns + column);
  }
}

function same(a: ReadonlySet<number>, b: ReadonlySet<number>): boolean {
  return a.size === b.size && [...a].every((value) => b.has(value));
}

function judgeRead(world: ParityWorld, from: number, to: number, counting: boolean): void {
  const { unitBytes } = world;
  const plan = planRead(world.layout, world.health, from * unitBytes, (to - from) * unitBytes);
  const mustLose = new Set<number>();
  for (const [row, column, asked] of touched(world, from, to)) {
    const determined = world.algebraOf[row]!.span(world.cellsIn(GOOD, row, column));
    addUnits(world, row, column, asked & ~determined, mustLose);
  }
  if (!same(lostUnits(plan, unitBytes), mustLose)) throw new Violation('reads: refusal names other ranges');
  if (isLost(plan)) return;

  world.run(plan, from * unitBytes, 'read');
  if (plan.writes.length > 0 || plan.inspect.length > 0) throw new Violation('a read only reads');
  if (!counting) return;
  for (const [row, column, asked] of touched(world, from, to)) {
    const algebra = world.algebraOf[row]!;
    const targets = algebra.vectors.filter((_, cell) => asked & (1 << cell));
    const least = algebra.leastReads(world.cellsIn(GOOD, row, column), targets, `read ${asked}`);
    if (world.readsAt(row, column) !== least) throw new Violation('a read takes more than it needs');
  }
}

/** Whether the `written` cells of a row at a column can be written: no parity goes wrong, and all is held afterwards. */
function canWrite(world: ParityWorld, row: number, column: number, written: number): boolean {
  const { dataCount } = world.layout;
  const algebra = world.algebraOf[row]!;
  const good = world.cellsIn(GOOD, row, column);
  const erased = world.cellsIn(ERASED, row, column);
  let after = (good & ~written) | (written & (good | erased));
  for (const parity of [dataCount, dataCount + 1]) {
    const bit = 1 << parity;
    if (((good | erased) & bit) === 0) continue;
    if (!knowsNewParity(world, row, column, written, parity)) return false;
    after |= bit;
  }
  return (written & ~algebra.span(after)) === 0;
}

function knowsNewParity(
  world: ParityWorld,
  row: number,
  column: number,
  written: number,
  parity: number,
): boolean {
  return world.algebraOf[row]!.determinesNewParity(world.cellsIn(GOOD, row, column), parity, written);
}

function judgeWrite(world: ParityWorld, from: number, to: number, counting: boolean): void {
  const { unitBytes } = world;
  const { dataCount } = world.layout;
  const plan = planWrite(world.layout, world.health, from * unitBytes, (to - from) * unitBytes);
  const mustLose = new Set<number>();
  for (const [row, column, asked] of touched(world, from, to)) {
    if (canWrite(world, row, column, asked)) continue;
    for (let cell = 0; cell < dataCount; cell += 1) {
      const bit = 1 << cell;
      if (asked & bit && !canWrite(world, row, column, bit)) addUnits(world, row, column, bit, mustLose);
    }
  }
  if (!same(lostUnits(plan, unitBytes), mustLose)) throw new Violation('writes: refusal names other ranges');
  if (isLost(plan)) return;

  world.run(plan, from * unitBytes, 'write');
  if (plan.inspect.length > 0) throw new Violation('a write inspects nothing');
  for (let row = 0; row < world.rows; row += 1) {
    for (let column = 0; column < world.columns; column += 1)
      judgeCells(world, from, to, row, column, counting);
  }
}

export function judgeCells(
  world: ParityWorld,
  from: number,
  to: number,
  row: number,
  column: number,
  counting: boolean,
): void {
  const { dataCount } = world.layout;
  const asked = world.asked(from, to, row, column);
  const targets: Uint8Array[] = [];
  let parities = 0;
  for (let cell = 0; cell < dataCount + 2; cell += 1) {
    const state = world.stateOf(row, cell, column);
    if (state === MISSING) continue;
    const isParity = cell >= dataCount;
    const mayBeSkipped = isParity && state === BEHIND && !knowsNewParity(world, row, column, asked, cell);
    const changes = isParity ? asked !== 0 && !mayBeSkipped : Boolean(asked & (1 << cell));
    if (world.wasWritten(row, cell, column) !== changes) throw new Violation('the wrong cells are written');
    if (!changes && !world.isUnchanged(row, cell, column)) throw new Violation('a cell outside changed');
    if (changes && !world.isRight(row, cell, column, asked))
      throw new Violation('a cell holds what is wrong');
    if (changes && isParity) {
      targets.push(world.algebraOf[row]!.staying(cell, asked));
      parities |= 1 << cell;
    }
  }
  if (!counting || asked === 0) return;
  const good = world.cellsIn(GOOD, row, column);
  const least = world.algebraOf[row]!.leastReads(good, targets, `write ${asked} ${parities}`);
  if (world.readsAt(row, column) !== least) {
    throw new Violation(
      `a write of ${bitCount(asked)} takes ${world.readsAt(row, column)} reads, not ${least}`,
    );
  }
}

export function judge(
  world: ParityWorld,
  name: string,
  health: Health,
  from: number,
  to: number,
  counting = false,
): void {
  try {
    judgeRead(world, from, to, counting);
    judgeWrite(world, from, to, counting);
  } catch (error) {
    throw new Error(`${name}, units ${from}..${to}, ${JSON.stringify(health)}`, { cause: error });
  }
}
