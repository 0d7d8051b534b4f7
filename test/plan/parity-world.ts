/**
 * A parity array that holds names, not bytes. Each member is a line of units; what a unit holds is a combination, over
 * GF(2^8), of the symbols of its column: the old data cells, the new ones, and one garbage symbol per member.
 * Whatever cannot be read is garbage, so a plan that relies on it leaves a trace; a plan that mixes columns,
 * reads a cell twice, touches a missing member or uses memory that nothing filled is stopped on the spot.
 */
import type { ParityLayout } from '../../lib/layout/layout.ts';
import { type CompiledHealth, compileHealth } from '../../lib/plan/health.ts';
import type { ArrayRange, Compute, Health, Inspect, Lost, Plan } from '../../lib/plan/plan.ts';
import { isLost } from '../../lib/plan/plan.ts';
import { invert, multiply, powerOfTwo, RowAlgebra } from './algebra.ts';

export const GOOD = 0;
export const ERASED = 1;
export const BEHIND = 2;
export const MISSING = 3;

export class Violation extends Error {}

const algebras = new Map<string, RowAlgebra>();

export class ParityWorld {
  readonly layout: ParityLayout;
  readonly unitBytes: number;
  readonly columns: number;
  readonly rows: number;
  /** Members of the cells of each row: data in array order, P, Q or -1. */
  readonly memberOf: readonly (readonly number[])[];
  readonly algebraOf: readonly RowAlgebra[];

  health!: CompiledHealth;
  /** GOOD..MISSING for each unit of each member. */
  readonly states: Uint8Array;
  /** By state and (row, column): the set of cells in that state. */
  readonly #cellsIn: readonly Uint16Array[];

  readonly #symbols: number;
  readonly #truth: Uint8Array;
  readonly #before: Uint8Array;
  readonly #after: Uint8Array;
  readonly #readCount: Uint8Array;
  readonly #writeCount: Uint8Array;
  #memory = new Uint8Array(0);
  #group = new Int16Array(0);
  #units = 0;
  #requestOffset = 0;
  /** Units (by row, column) at which an inspection found a difference. */
  readonly found = new Set<number>();
  readonly inspected = new Set<number>();

  constructor(layout: ParityLayout, unitBytes: number) {
    this.layout = layout;
    this.unitBytes = unitBytes;
    this.columns = layout.chunkBytes / unitBytes;
    this.rows = layout.rowCount;
    const rows = Array.from({ length: this.rows }, (_, index) => layout.row(index));
    this.memberOf = rows.map((row) => [...row.data, row.p, row.q ?? -1]);
    this.algebraOf = rows.map((row) => {
      const places = row.data.map((_, index) => powerOfTwo(row.qOrder.indexOf(index)));
      const key = places.join();
      if (!algebras.has(key)) algebras.set(key, new RowAlgebra(places));
      return algebras.get(key)!;
    });
    this.#symbols = 2 * layout.dataCount + layout.memberCount;
    const units = layout.memberCount * this.rows * this.columns;
    this.states = new Uint8Array(units);
    this.#cellsIn = [GOOD, ERASED, BEHIND, MISSING].map(() => new Uint16Array(this.rows * this.columns));
    this.#truth = new Uint8Array(units * this.#symbols);
    this.#before = new Uint8Array(units * this.#symbols);
    this.#after = new Uint8Array(units * this.#symbols);
    this.#readCount = new Uint8Array(units);
    this.#writeCount = new Uint8Array(units);
    for (let row = 0; row < this.rows; row += 1) {
      for (let cell = 0; cell < layout.dataCount + 2; cell += 1) {
        const member = this.memberOf[row]![cell]!;
        if (member < 0) continue;
        for (let column = 0; column < this.columns; column += 1) {
          this.#truth.set(
            this.algebraOf[row]!.vectors[cell]!,
            this.unitOf(member, row, column) * this.#symbols,
          );
        }
      }
    }
  }

  unitOf(member: number, row: number, column: number): number {
    return (member * this.rows + row) * this.columns + column;
  }

  /** The state of each unit, from the words of `Health` alone. */
  setHealth(health: Health): void {
    this.health = compileHealth(this.layout, health);
    const perMember = this.rows * this.columns;
    health.members.forEach((member, index) => {
      const trusted =
        member.state === 'in_sync'
          ? perMember
          : member.state === 'missing'
            ? 0
            : member.recoveredBytes / this.unitBytes;
      const beyond = member.state === 'missing' ? MISSING : BEHIND;
      for (let unit = 0; unit < perMember; unit += 1) {
        this.states[index * perMember + unit] = unit < trusted ? GOOD : beyond;
      }
    });
    for (const { member, offsetBytes, lengthBytes } of health.erased) {
      const end = (offsetBytes + lengthBytes) / this.unitBytes;
      for (let unit = offsetBytes / this.unitBytes; unit < end; unit += 1) {
        const at = member * perMember + unit;
        if (this.states[at] === GOOD) this.states[at] = ERASED;
      }
    }
    this.#before.set(this.#truth);
    for (let unit = 0; unit < this.states.length; unit += 1) {
      if (this.states[unit] !== GOOD) this.corrupt(unit);
    }
    for (const cells of this.#cellsIn) cells.fill(0);
    for (let row = 0; row < this.rows; row += 1) {
      for (let column = 0; column < this.columns; column += 1) {
        for (let cell = 0; cell < this.layout.dataCount + 2; cell += 1) {
          this.#cellsIn[this.stateOf(row, cell, column)]![row * this.columns + column]! |= 1 << cell;
        }
      }
    }
  }

  /** Puts the member's garbage into a unit, until the next `setHealth`. */
  corrupt(unit: number): void {
    const member = Math.floor(unit / (this.rows * this.columns));
    const start = unit * this.#symbols;
    this.#before.fill(0, start, start + this.#symbols);
    this.#before[start + 2 * this.layout.dataCount + member] = 1;
  }

  heal(unit: number): void {
    const start = unit * this.#symbols;
    this.#before.set(this.#truth.subarray(start, start + this.#symbols), start);
  }

  stateOf(row: number, cell: number, column: number): number {
    const member = this.memberOf[row]![cell]!;
    return member < 0 ? MISSING : this.states[this.unitOf(member, row, column)]!;
  }

  /** The set of cells of a row that are in `state` at a column. */
  cellsIn(state: number, row: number, column: number): number {
    return this.#cellsIn[state]![row * this.columns + column]!;
  }

  /** The data cells of a row that a request of array units `from` up to `to` covers at a column. */
  asked(from: number, to: number, row: number, column: number): number {
    let mask = 0;
    let unit = row * this.layout.dataCount * this.columns + column;
    for (let cell = 0; cell < this.layout.dataCount; cell += 1, unit += this.columns) {
      if (unit >= from && unit < to) mask |= 1 << cell;
    }
    return mask;
  }

  run(plan: Plan, requestOffset: number, direction: 'read' | 'write' | 'none'): void {
    const width = this.#symbols;
    const units = (plan.requestBytes + plan.scratchBytes) / this.unitBytes;
    const requestUnits = plan.requestBytes / this.unitBytes;
    if (!Number.isInteger(units)) throw new Violation('scratch is not whole units');
    this.#units = units;
    const all = units + 2 * this.columns;
    if (this.#memory.length < all * width) {
      this.#memory = new Uint8Array(all * width * 2);
      this.#group = new Int16Array(all * 2);
    }
    this.#memory.fill(0, 0, all * width);
    this.#group.fill(-1, 0, all);
    this.#after.set(this.#before);
    this.#readCount.fill(0);
    this.#writeCount.fill(0);
    this.found.clear();
    this.inspected.clear();
    this.#requestOffset = requestOffset / this.unitBytes;
    if (direction === 'write') {
      for (let unit = 0; unit < requestUnits; unit += 1) this.#fillNew(unit);
    } else if (direction === 'none' && requestUnits > 0) {
      throw new Violation('no request was made');
    }

    for (const { member, offsetBytes, lengthBytes, address } of plan.reads) {
      const at = this.#memberUnit(member, offsetBytes, lengthBytes);
      const into = this.#memoryUnit(address, lengthBytes, units);
      for (let unit = 0; unit < lengthBytes / this.unitBytes; unit += 1) {
        if (this.states[at + unit] !== GOOD) throw new Violation(`reads what cannot be read: m${member}`);
        if (this.#readCount[at + unit]!++ > 0) throw new Violation(`reads a cell twice: m${member}`);
        if (this.#group[into + unit] !== -1) throw new Violation('reads over what memory holds');
        this.#copy(this.#before, at + unit, this.#memory, into + unit);
        this.#group[into + unit] = this.#groupOf(at + unit);
      }
    }
    for (const step of plan.compute) {
      if (direction === 'write') this.#refuseChange(step, plan.requestBytes);
      for (let offset = 0; offset < step.lengthBytes; offset += this.unitBytes) this.#compute(step, offset);
    }
    for (const step of plan.inspect) {
      for (let offset = 0; offset < step.lengthBytes; offset += this.unitBytes) this.#inspect(step, offset);
    }
    for (const { member, offsetBytes, lengthBytes, address } of plan.writes) {
      const at = this.#memberUnit(member, offsetBytes, lengthBytes);
      const from = this.#memoryUnit(address, lengthBytes, units);
      for (let unit = 0; unit < lengthBytes / this.unitBytes; unit += 1) {
        if (this.states[at + unit] === MISSING) throw new Violation(`writes to a missing member: m${member}`);
        if (this.#writeCount[at + unit]!++ > 0) throw new Violation(`writes a cell twice: m${member}`);
        if (this.#group[from + unit] !== this.#groupOf(at + unit)) {
          throw new Violation(`writes what belongs elsewhere to m${member} unit ${at + unit}`);
        }
        this.#copy(this.#memory, from + unit, this.#after, at + unit);
      }
    }
    if (direction === 'read') {
      for (let unit = 0; unit < requestUnits; unit += 1) {
        if (!this.#holdsOld(unit)) throw new Violation(`the buffer is wrong at unit ${unit}`);
      }
    }
  }

  wasWritten(row: number, cell: number, column: number): boolean {
    return this.#writeCount[this.unitOf(this.memberOf[row]![cell]!, row, column)]! > 0;
  }

  /** How many cells were read of a row at a column. */
  readsAt(row: number, column: number): number {
    let count = 0;
    for (let member = 0; member < this.layout.memberCount; member += 1) {
      count += this.#readCount[this.unitOf(member, row, column)]!;
    }
    return count;
  }

  isUnchanged(row: number, cell: number, column: number): boolean {
    const start = this.unitOf(this.memberOf[row]![cell]!, row, column) * this.#symbols;
    for (let at = start; at < start + this.#symbols; at += 1) {
      if (this.#after[at] !== this.#before[at]) return false;
    }
    return true;
  }

  /** Whether the cell holds what the row demands once `written` data cells are new. */
  isRight(row: number, cell: number, column: number, written: number): boolean {
    const count = this.layout.dataCount;
    const start = this.unitOf(this.memberOf[row]![cell]!, row, column) * this.#symbols;
    const vector = this.algebraOf[row]!.vectors[cell]!;
    for (let index = 0; index < this.#symbols; index += 1) {
      const data = index < count ? index : index - count;
      const isNew = index >= count;
      const demanded = index < 2 * count && Boolean(written & (1 << data)) === isNew ? vector[data]! : 0;
      if (this.#after[start + index] !== demanded) return false;
    }
    return true;
  }

  // Execution.

  #copy(source: Uint8Array, from: number, target: Uint8Array, into: number): void {
    const width = this.#symbols;
    for (let index = 0; index < width; index += 1) {
      target[into * width + index] = source[from * width + index]!;
    }
  }

  #memberUnit(member: number, offsetBytes: number, lengthBytes: number): number {
    const perMember = this.rows * this.columns;
    const unit = offsetBytes / this.unitBytes;
    const count = lengthBytes / this.unitBytes;
    if (!Number.isInteger(unit) || !Number.isInteger(count) || count < 1 || unit + count > perMember) {
      throw new Violation(`a transfer off the member or off the units: ${offsetBytes} ${lengthBytes}`);
    }
    return member * perMember + unit;
  }

  #memoryUnit(address: number, lengthBytes: number, units: number): number {
    const unit = address / this.unitBytes;
    if (!Number.isInteger(unit) || unit < 0 || unit + lengthBytes / this.unitBytes > units) {
      throw new Violation(`an address off the plan's memory: ${address}`);
    }
    return unit;
  }

  #groupOf(memberUnit: number): number {
    return memberUnit % (this.rows * this.columns);
  }

  #arrayUnit(requestUnit: number): { cell: number; group: number } {
    const unit = this.#requestOffset + requestUnit;
    const chunk = Math.floor(unit / this.columns);
    const row = Math.floor(chunk / this.layout.dataCount);
    return { cell: chunk % this.layout.dataCount, group: row * this.columns + (unit % this.columns) };
  }

  #fillNew(requestUnit: number): void {
    const { cell, group } = this.#arrayUnit(requestUnit);
    this.#memory[requestUnit * this.#symbols + this.layout.dataCount + cell] = 1;
    this.#group[requestUnit] = group;
  }

  #holdsOld(requestUnit: number): boolean {
    const { cell, group } = this.#arrayUnit(requestUnit);
    if (this.#group[requestUnit] !== group) return false;
    for (let index = 0; index < this.#symbols; index += 1) {
      if (this.#memory[requestUnit * this.#symbols + index] !== Number(index === cell)) return false;
    }
    return true;
  }

  #refuseChange(step: Compute, requestBytes: number): void {
    const results =
      step.op === 'copy' || step.op === 'zero'
        ? [step.into]
        : step.op === 'recover'
          ? [...lostPlaces(step).map((place) => step.data[place] ?? null), step.p, step.q]
          : [step.p, step.q];
    for (const address of results) {
      if (address !== null && address < requestBytes) throw new Violation("changes the caller's bytes");
    }
  }

  /** target += factor * source; an unfilled source is a bug, an unfilled target takes the source's column. */
  #add(target: number, source: number, factor: number): void {
    const width = this.#symbols;
    const from = source / this.unitBytes;
    const into = target / this.unitBytes;
    if (this.#group[from] === -1) throw new Violation('computes with memory that nothing filled');
    if (this.#group[into] === -1) this.#group[into] = this.#group[from]!;
    if (this.#group[into] !== this.#group[from]) throw new Violation('mixes columns');
    for (let index = 0; index < width; index += 1) {
      this.#memory[into * width + index]! ^= multiply(factor, this.#memory[from * width + index]!);
    }
  }

  /** Memory for answers that nobody wants, past what the plan may address. */
  #spare(which: 0 | 1): number {
    return (this.#units + which * this.columns) * this.unitBytes;
  }

  #clear(address: number): void {
    const unit = address / this.unitBytes;
    this.#memory.fill(0, unit * this.#symbols, (unit + 1) * this.#symbols);
    this.#group[unit] = -1;
  }

  #scale(address: number, factor: number): void {
    const start = (address / this.unitBytes) * this.#symbols;
    for (let at = start; at < start + this.#symbols; at += 1) {
      this.#memory[at] = multiply(factor, this.#memory[at]!);
    }
  }

  #syndrome(
    data: readonly (number | null)[],
    offset: number,
    p: number | null,
    q: number | null,
    except: readonly number[] = [],
  ): void {
    if (p !== null) this.#clear(p + offset);
    if (q !== null) this.#clear(q + offset);
    data.forEach((address, place) => {
      if (address === null || except.includes(place)) return;
      if (p !== null) this.#add(p + offset, address + offset, 1);
      if (q !== null) this.#add(q + offset, address + offset, powerOfTwo(place));
    });
  }

  #compute(step: Compute, offset: number): void {
    switch (step.op) {
      case 'copy':
        this.#clear(step.into + offset);
        this.#add(step.into + offset, step.from + offset, 1);
        return;
      case 'zero':
        throw new Violation('nothing zeroes memory yet');
      case 'syndrome':
        this.#syndrome(step.data, offset, step.p, step.q);
        return;
      case 'update':
        for (const [parity, factor] of [
          [step.p, 1],
          [step.q, powerOfTwo(step.index)],
        ] as const) {
          if (parity === null) continue;
          if (this.#group[(parity + offset) / this.unitBytes] === -1) throw new Violation('updates nothing');
          this.#add(parity + offset, step.oldData + offset, factor);
          this.#add(parity + offset, step.newData + offset, factor);
        }
        return;
      case 'recover':
        this.#recover(step, offset);
    }
  }

  #recover(step: Compute & { op: 'recover' }, offset: number): void {
    const { data, p, q, erasure } = step;
    const [x, y] = lostPlaces(step);
    switch (erasure.kind) {
      case 'P':
        this.#syndrome(data, offset, p, null);
        return;
      case 'Q':
        this.#syndrome(data, offset, null, q);
        return;
      case 'PQ':
        this.#syndrome(data, offset, p, q);
        return;
      case 'D':
      case 'DQ': {
        const whole = data.with(x!, data[x!] ?? this.#spare(0));
        const target = whole[x!]!;
        this.#syndrome(whole, offset, target, null, [x!]);
        this.#add(target + offset, needed(p) + offset, 1);
        if (erasure.kind === 'DQ') this.#syndrome(whole, offset, null, q);
        return;
      }
      case 'DP': {
        const whole = data.with(x!, data[x!] ?? this.#spare(0));
        const target = whole[x!]!;
        this.#syndrome(whole, offset, null, target, [x!]);
        this.#add(target + offset, needed(q) + offset, 1);
        this.#scale(target + offset, invert(powerOfTwo(x!)));
        this.#syndrome(whole, offset, p, null);
        return;
      }
      case 'DD': {
        // a = Dx + Dy and b = 2^x Dx + 2^y Dy, so Dx = (b + 2^y a) / (2^x + 2^y).
        const first = data[x!] ?? this.#spare(0);
        const second = data[y!] ?? this.#spare(1);
        this.#syndrome(data, offset, second, first, [x!, y!]);
        this.#add(second + offset, needed(p) + offset, 1);
        this.#add(first + offset, needed(q) + offset, 1);
        this.#add(first + offset, second + offset, powerOfTwo(y!));
        this.#scale(first + offset, invert(powerOfTwo(x!) ^ powerOfTwo(y!)));
        this.#add(second + offset, first + offset, 1);
      }
    }
  }

  #inspect(step: Inspect, offset: number): void {
    if (step.op === 'compare') throw new Violation('parity arrays have no copies');
    const width = this.#symbols;
    const group = (step.offsetBytes + offset) / this.unitBytes;
    if (Math.floor(group / this.columns) !== step.row) throw new Violation('an inspection names another row');
    this.inspected.add(group);
    for (const [parity, isQ] of [
      [step.p, false],
      [step.q, true],
    ] as const) {
      if (parity === null) continue;
      const sum = new Uint8Array(width);
      const include = (address: number, factor: number): void => {
        const unit = (address + offset) / this.unitBytes;
        if (this.#group[unit] !== group) throw new Violation('inspects what belongs elsewhere');
        for (let index = 0; index < width; index += 1) {
          sum[index]! ^= multiply(factor, this.#memory[unit * width + index]!);
        }
      };
      include(parity, 1);
      step.data.forEach((address, place) => {
        if (address !== null) include(address, isQ ? powerOfTwo(place) : 1);
      });
      if (sum.some((value) => value !== 0)) this.found.add(group);
    }
  }
}

function needed(address: number | null): number {
  if (address === null) throw new Violation('an erasure is solved without its parity');
  return address;
}

function lostPlaces(step: Compute & { op: 'recover' }): number[] {
  const { erasure } = step;
  if (erasure.kind === 'DD') return [erasure.x, erasure.y];
  return 'x' in erasure ? [erasure.x] : [];
}

/** The units that a refusal names, and proof that it names them in the one agreed form. */
export function lostUnits(answer: Plan | Lost, unitBytes: number): Set<number> {
  const units = new Set<number>();
  if (!isLost(answer)) return units;
  let previous: ArrayRange | null = null;
  for (const range of answer.lost) {
    if (previous !== null && range.offsetBytes <= previous.offsetBytes + previous.lengthBytes) {
      throw new Violation('lost ranges are in order and joined');
    }
    if (range.lengthBytes <= 0) throw new Violation('a lost range is a range');
    previous = range;
    const end = (range.offsetBytes + range.lengthBytes) / unitBytes;
    for (let unit = range.offsetBytes / unitBytes; unit < end; unit += 1) units.add(unit);
  }
  if (units.size === 0) throw new Violation('a refusal names what is lost');
  return units;
}
