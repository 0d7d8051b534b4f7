/**
 * An array of copies that holds names: every unit of every member is a number, `old(u)` or `new(u)` of the array unit
 * it keeps, garbage where it cannot be read, nothing where the layout leaves it unused.
 */
import type { CopiesLayout } from '../../lib/layout/layout.ts';
import { type CompiledHealth, compileHealth } from '../../lib/plan/health.ts';
import type { Health, Plan } from '../../lib/plan/plan.ts';
import { BEHIND, ERASED, GOOD, MISSING, Violation } from './parity-world.ts';

const NEW = 1 << 20;
const GARBAGE = 1 << 21;
const UNUSED = 1 << 22;
const UNFILLED = -1;

export class CopiesWorld {
  readonly layout: CopiesLayout;
  readonly unitBytes: number;
  readonly arrayUnits: number;
  /** Member units, all members one after the other. */
  readonly start: readonly number[];
  readonly states: Uint8Array;
  /** Array unit of each member unit, or -1. */
  readonly holds: Int32Array;
  /** Member units of each array unit, in md's order. */
  readonly copiesOf: readonly (readonly number[])[];
  health!: CompiledHealth;
  before: Int32Array;
  after: Int32Array;
  reads: Uint8Array;
  writes: Uint8Array;
  found: Set<string> = new Set();
  compared = 0;

  constructor(layout: CopiesLayout, unitBytes: number) {
    this.layout = layout;
    this.unitBytes = unitBytes;
    this.arrayUnits = layout.arrayBytes / unitBytes;
    const start: number[] = [];
    let units = 0;
    for (const bytes of layout.memberBytes) {
      start.push(units);
      units += bytes / unitBytes;
    }
    this.start = [...start, units];
    this.states = new Uint8Array(units);
    this.holds = new Int32Array(units).fill(-1);
    this.before = new Int32Array(units);
    this.after = new Int32Array(units);
    this.reads = new Uint8Array(units);
    this.writes = new Uint8Array(units);
    this.copiesOf = Array.from({ length: this.arrayUnits }, (_, unit) =>
      layout.locate(unit * unitBytes).copies.map(({ member, offsetBytes }) => {
        const at = start[member]! + offsetBytes / unitBytes;
        this.holds[at] = unit;
        return at;
      }),
    );
  }

  setHealth(health: Health): void {
    this.health = compileHealth(this.layout, health);
    health.members.forEach((member, index) => {
      const count = this.start[index + 1]! - this.start[index]!;
      for (let unit = 0; unit < count; unit += 1) {
        const at = this.start[index]! + unit;
        if (member.state === 'missing') this.states[at] = MISSING;
        else if (member.state === 'recovering' && unit * this.unitBytes >= member.recoveredBytes)
          this.states[at] = BEHIND;
        else this.states[at] = GOOD;
      }
    });
    for (const { member, offsetBytes, lengthBytes } of health.erased) {
      for (
        let unit = offsetBytes / this.unitBytes;
        unit * this.unitBytes < offsetBytes + lengthBytes;
        unit += 1
      ) {
        const at = this.start[member]! + unit;
        if (at < this.start[member + 1]! && this.states[at] === GOOD) this.states[at] = ERASED;
      }
    }
    for (let at = 0; at < this.before.length; at += 1) {
      const unit = this.holds[at]!;
      if (this.states[at] !== GOOD) this.before[at] = GARBAGE + at;
      else this.before[at] = unit < 0 ? UNUSED + at : unit;
    }
  }

  copiesIn(unit: number, ...states: number[]): number[] {
    return this.copiesOf[unit]!.filter((at) => states.includes(this.states[at]!));
  }

  memberOf(at: number): number {
    return this.start.findIndex((_, member) => at < this.start[member + 1]!);
  }

  isOld(at: number): boolean {
    return this.after[at] === this.holds[at];
  }

  isNew(at: number): boolean {
    return this.after[at] === NEW + this.holds[at]!;
  }

  run(plan: Plan, requestOffset: number, direction: 'read' | 'write' | 'none'): void {
    const { unitBytes } = this;
    const memory = new Int32Array((plan.requestBytes + plan.scratchBytes) / unitBytes).fill(UNFILLED);
    const requestUnits = plan.requestBytes / unitBytes;
    const firstUnit = requestOffset / unitBytes;
    if (direction === 'write') {
      for (let unit = 0; unit < requestUnits; unit += 1) memory[unit] = NEW + firstUnit + unit;
    }
    this.after.set(this.before);
    this.reads.fill(0);
    this.writes.fill(0);
    this.found.clear();
    this.compared = 0;
    if (plan.compute.length > 0) throw new Violation('copies need no arithmetic');
    for (const { member, offsetBytes, lengthBytes, address } of plan.reads) {
      for (let bytes = 0; bytes < lengthBytes; bytes += unitBytes) {
        const at = this.#at(member, offsetBytes + bytes);
        const into = (address + bytes) / unitBytes;
        if (this.states[at] !== GOOD) throw new Violation(`reads what cannot be read: m${member}`);
        if (this.reads[at]!++ > 0) throw new Violation('reads a cell twice');
        if (memory[into] !== UNFILLED) throw new Violation('reads over what memory holds');
        memory[into] = this.before[at]!;
      }
    }
    for (const step of plan.inspect) {
      if (step.op !== 'compare') throw new Violation('copies are compared');
      for (let bytes = 0; bytes < step.lengthBytes; bytes += unitBytes) {
        const cells = step.copies.map(({ member, offsetBytes }) => this.#at(member, offsetBytes + bytes));
        const values = step.copies.map(({ address }) => memory[(address + bytes) / unitBytes]);
        if (cells.some((cell, index) => values[index] !== this.before[cell]))
          throw new Violation('compares other bytes');
        const [first = -1, ...others] = cells;
        if (others.length === 0) throw new Violation('compares a copy with nothing');
        for (const [index, other] of others.entries()) {
          if (this.holds[first] !== this.holds[other]) throw new Violation('compares what are not copies');
          this.compared += 1;
          if (values[0] !== values[index + 1]) this.found.add(`${first}:${other}`);
        }
      }
    }
    for (const { member, offsetBytes, lengthBytes, address } of plan.writes) {
      for (let bytes = 0; bytes < lengthBytes; bytes += unitBytes) {
        const at = this.#at(member, offsetBytes + bytes);
        const value = memory[(address + bytes) / unitBytes];
        if (value === undefined || value === UNFILLED) throw new Violation('writes what nothing filled');
        if (this.states[at] === MISSING) throw new Violation('writes to a missing member');
        if (this.writes[at]!++ > 0) throw new Violation('writes a cell twice');
        this.after[at] = value;
      }
    }
    if (direction === 'read') {
      for (let unit = 0; unit < requestUnits; unit += 1) {
        if (memory[unit] !== firstUnit + unit) throw new Violation('the buffer is wrong');
      }
    }
  }

  #at(member: number, offsetBytes: number): number {
    const at = this.start[member]! + offsetBytes / this.unitBytes;
    if (!Number.isInteger(at) || at < this.start[member]! || at >= this.start[member + 1]!) {
      throw new Violation('a transfer off the member');
    }
    return at;
  }
}
