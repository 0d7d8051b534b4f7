/**
 * Goal: whatever a logged write of raid5 has left behind when the power goes, parity made from the log turns it into
 * rows in which every sector that was not written is what it was, whoever is missing; written ones are old or new unless
 * their own member is missing.
 * Method: cells are sets of names (bit j: data cell j as it was; bit 8 + j: as it is to be), and XOR is the difference
 * of sets. Columns do not know of each other, so each column is judged by itself, over all subsets of its writes.
 */
import { expect } from 'vitest';
import { type Raid5Layout, raid5Layouts } from '../../lib/layout/geometry.ts';
import type { ParityLayout } from '../../lib/layout/layout.ts';
import { compileHealth } from '../../lib/plan/health.ts';
import { type Health, isLost, type Plan } from '../../lib/plan/plan.ts';
import { planWrite } from '../../lib/plan/planner.ts';
import { replayOf } from '../../lib/plan/replay.ts';
import { SECTOR_BYTES } from '../../lib/units.ts';
import { everyInterval, everyMask, parityLayout } from './shapes.ts';

export const CHUNK = 8 * SECTOR_BYTES;
export const COLUMNS = CHUNK / SECTOR_BYTES;
export const ROWS = 2;
/** What cannot be read is this: whatever depends on it shows. */
const GARBAGE = 1 << 20;

export const names = Object.keys(raid5Layouts) as Raid5Layout[];

/** Per sector of the plan's memory: what it holds, by plain execution. */
function memoryOf(layout: ParityLayout, plan: Plan, health: Health, offsetBytes: number): number[] {
  const memory: number[] = new Array((plan.requestBytes + plan.scratchBytes) / SECTOR_BYTES).fill(-1);
  for (let sector = 0; sector < plan.requestBytes / SECTOR_BYTES; sector += 1) {
    const at = offsetBytes / SECTOR_BYTES + sector;
    memory[sector] = 1 << (8 + (Math.floor(at / COLUMNS) % layout.dataCount));
  }
  for (const { member, offsetBytes: start, lengthBytes, address } of plan.reads) {
    for (let from = 0; from < lengthBytes; from += SECTOR_BYTES)
      memory[(address + from) / SECTOR_BYTES] = before(layout, health, member, start + from);
  }
  for (const step of plan.compute) {
    for (let from = 0; from < step.lengthBytes; from += SECTOR_BYTES) {
      const at = (address: number): number => (address + from) / SECTOR_BYTES;
      const value = (address: number): number => {
        const held = memory[at(address)] ?? -1;
        if (held < 0) throw new Error('computes with memory that nothing filled');
        return held;
      };
      if (step.op === 'syndrome' && step.q === null && step.p !== null) {
        memory[at(step.p)] = step.data.reduce<number>(
          (sum, each) => (each === null ? sum : sum ^ value(each)),
          0,
        );
      } else if (step.op === 'recover' && step.erasure.kind === 'D' && step.p !== null) {
        const { x } = step.erasure;
        const others = step.data.filter((_, place) => place !== x);
        const target = step.data[x] ?? null;
        const sum = others.reduce<number>(
          (all, each) => (each === null ? all : all ^ value(each)),
          value(step.p),
        );
        if (target !== null) memory[at(target)] = sum;
      } else {
        throw new Error(`a logged write has no ${step.op}`);
      }
    }
  }
  return memory;
}

/** What a member holds before the write: what it should, or garbage where it is not in sync. */
function before(layout: ParityLayout, health: Health, member: number, offsetBytes: number): number {
  const state = health.members[member]!;
  const isGood =
    state.state === 'in_sync' || (state.state === 'recovering' && offsetBytes < state.recoveredBytes);
  if (!isGood) return GARBAGE;
  const cell = layout.cellAt(member, Math.floor(offsetBytes / CHUNK));
  return cell.kind === 'data' ? 1 << cell.index : (1 << layout.dataCount) - 1;
}

interface Column {
  readonly row: number;
  readonly column: number;
  /** By member: what the write puts there; undefined where it writes nothing. */
  readonly writes: (number | undefined)[];
  readonly entries: { readonly written: readonly number[]; readonly parity: number; readonly pp: number }[];
}

function columnsOf(layout: ParityLayout, plan: Plan, memory: readonly number[]): Column[] {
  const columns: Column[] = [];
  for (let row = 0; row < ROWS; row += 1)
    for (let column = 0; column < COLUMNS; column += 1)
      columns.push({ row, column, writes: new Array(layout.memberCount).fill(undefined), entries: [] });
  const at = (offsetBytes: number): Column => columns[offsetBytes / SECTOR_BYTES]!;
  for (const { member, offsetBytes, lengthBytes, address } of plan.writes)
    for (let from = 0; from < lengthBytes; from += SECTOR_BYTES)
      at(offsetBytes + from).writes[member] = memory[(address + from) / SECTOR_BYTES]!;
  for (const entry of plan.log ?? []) {
    const { parity, written } = replayOf(layout, entry);
    expect(parity.member).toBe(entry.parityMember);
    for (let from = 0; from < entry.lengthBytes; from += SECTOR_BYTES) {
      at(parity.offsetBytes + from).entries.push({
        written: written.map(({ member }) => member),
        parity: parity.member,
        pp: entry.address === null ? 0 : memory[(entry.address + from) / SECTOR_BYTES]!,
      });
    }
  }
  return columns;
}

/** Judges one column in every state that a crash can leave it in; returns how many there were. */
function judge(layout: ParityLayout, health: Health, column: Column, from: number, to: number): number {
  const { row, writes, entries } = column;
  const { memberCount, dataCount } = layout;
  const offsetBytes = row * CHUNK + column.column * SECTOR_BYTES;
  const { data, p } = layout.row(row);
  const slots = Array.from({ length: memberCount }, (_, slot) => slot);
  const writers = slots.filter((slot) => writes[slot] !== undefined);
  const asked = data.map((_, index) => {
    const sector = (row * dataCount + index) * COLUMNS + column.column;
    return sector >= from && sector < to;
  });
  const trusted = (slot: number): boolean => before(layout, health, slot, offsetBytes) !== GARBAGE;
  const degraded = slots.filter((slot) => !trusted(slot));
  if (entries.length > 1) throw new Error('a column is logged twice');
  if (writers.includes(p) && trusted(p)) expect(entries.length).toBe(1);

  let states = 0;
  for (let landed = 0; landed < 1 << writers.length; landed += 1) {
    const held = slots.map((slot) => {
      const which = writers.indexOf(slot);
      return which >= 0 && (landed >> which) & 1 ? writes[slot]! : before(layout, health, slot, offsetBytes);
    });
    // Who is missing after the crash: who was missing already, and any one member where nobody was.
    for (const lost of degraded.length > 0 ? degraded : [null, ...slots]) {
      states += 1;
      const isHere = (slot: number): boolean => slot !== lost && trusted(slot);
      const now = [...held];
      for (const { written, parity, pp } of entries) {
        if (isHere(parity) && written.every(isHere))
          now[parity] = written.reduce((sum, slot) => sum ^ now[slot]!, pp);
      }
      const rest = slots.filter((slot) => slot !== lost).reduce((sum, slot) => sum ^ now[slot]!, 0);
      if (lost === null && rest !== 0) throw new Error('parity is wrong though everybody is here');
      for (const [index, member] of data.entries()) {
        const value = member === lost ? rest : now[member]!;
        const [old, fresh] = [1 << index, 1 << (8 + index)];
        // Only what is written on the member that is lost may be anything.
        if (asked[index] === true && member === lost) continue;
        if (value !== old && !(asked[index] === true && value === fresh))
          throw new Error(
            `row ${row} column ${column.column} cell ${index}: ${value.toString(2)} with ${writers} ${landed} landed, ${lost} lost`,
          );
      }
    }
  }
  return states;
}

export function* healths(memberCount: number): Generator<Health> {
  yield* everyMask(memberCount, 1, CHUNK);
  const members = Array.from({ length: memberCount }, () => ({ state: 'in_sync' }) as const);
  yield { members, erased: [], unsyncedFromBytes: 1.5 * CHUNK };
}

/** Every logged write of some shape, in every state that a crash can leave it in; returns how many there were. */
export function judgeShape(
  name: Raid5Layout,
  count: number,
  isAsked: (from: number, to: number) => boolean,
): number {
  const layout = parityLayout('raid5', name, count, ROWS, CHUNK);
  const intervals = everyInterval(layout.arrayBytes / SECTOR_BYTES).filter(([from, to]) => isAsked(from, to));
  let states = 0;
  for (const health of healths(count)) {
    const compiled = compileHealth(layout, health);
    for (const [from, to] of intervals) {
      const plan = planWrite(layout, compiled, from * SECTOR_BYTES, (to - from) * SECTOR_BYTES, true);
      if (isLost(plan)) continue;
      const memory = memoryOf(layout, plan, health, from * SECTOR_BYTES);
      for (const column of columnsOf(layout, plan, memory)) {
        if (column.writes.some((value) => value !== undefined))
          states += judge(layout, health, column, from, to);
      }
    }
  }
  return states;
}
