/**
 * An array cut into *columns*: the smallest sets of sectors on disks between which redundancy computes. Recovery, degraded
 * reads and checks work byte by byte, so what becomes of a column depends on what the superblocks (and bitmap, and
 * log) say and on the column's own sectors, and on no other column.
 *
 *   parity   sector x of the data of every disk: one sector of each chunk of a row, with their P and Q
 *   copies   the places that hold one array sector; where a spare may take any slot, all that share an offset with it
 *
 * Whether a column agrees with itself is computed here from the definitions, without the kernels that the engine uses.
 */
import { assert } from '../errors.ts';
import type { Layout } from '../layout/layout.ts';
import { SECTOR_BYTES } from '../units.ts';

/** A sector of what a slot holds, from the start of its data. */
export interface SlotSector {
  readonly slot: number;
  readonly sector: number;
}

interface Cell {
  readonly arraySector: number;
  /** The places that hold it; one in parity levels. */
  readonly copies: readonly SlotSector[];
}

export interface Column {
  readonly cells: readonly Cell[];
  /** Parity levels: where P and Q are; null elsewhere. */
  readonly parity: {
    readonly p: SlotSector;
    readonly q: SlotSector | null;
    /** By coefficient 2^0, 2^1 ...: the cell, or null where a coefficient is skipped. */
    readonly qOrder: readonly (number | null)[];
  } | null;
}

export interface Columns {
  readonly columns: readonly Column[];
  /** By disk sector of data: the column; the same for every slot where `isByOffset`. */
  columnAt(slot: number | null, sector: number): number | null;
  /** The array sector that a place holds; null for parity, and where there is nothing. */
  arraySectorAt(slot: number, sector: number): number | null;
  columnOf(arraySector: number): number;
  /** Whether every array sector is in one of these slots, or can be computed from them. */
  holdsAll(isThere: (slot: number) => boolean): boolean;
}

/** `hasSpares`: a disk may come to hold what any slot holds. */
export function columnsOf(layout: Layout, hasSpares: boolean): Columns {
  return layout.kind === 'parity' ? parityColumns(layout) : copiesColumns(layout, hasSpares);
}

function parityColumns(layout: Extract<Layout, { kind: 'parity' }>): Columns {
  const chunk = layout.chunkBytes / SECTOR_BYTES;
  const columns: Column[] = [];
  for (let sector = 0; sector < layout.rowCount * chunk; sector += 1) {
    const rowIndex = Math.floor(sector / chunk);
    const row = layout.row(rowIndex);
    const cells = row.data.map((slot, index) => ({
      arraySector: (rowIndex * layout.dataCount + index) * chunk + (sector % chunk),
      copies: [{ slot, sector }],
    }));
    const q = row.q === null ? null : { slot: row.q, sector };
    columns.push({ cells, parity: { p: { slot: row.p, sector }, q, qOrder: row.qOrder } });
  }
  return {
    columns,
    columnAt: (_slot, sector) => (sector < columns.length ? sector : null),
    arraySectorAt: (slot, sector) =>
      columns[sector]?.cells.find(({ copies }) => copies[0]?.slot === slot)?.arraySector ?? null,
    columnOf: (arraySector) =>
      Math.floor(arraySector / (chunk * layout.dataCount)) * chunk + (arraySector % chunk),
    holdsAll: (isThere) => {
      const slots = Array.from({ length: layout.memberCount }, (_, slot) => slot);
      return slots.filter((slot) => !isThere(slot)).length <= layout.parityCount;
    },
  };
}

function copiesColumns(layout: Extract<Layout, { kind: 'copies' }>, hasSpares: boolean): Columns {
  const cells: Cell[] = [];
  const keyOf = ({ slot, sector }: SlotSector): string => (hasSpares ? `${sector}` : `${slot}:${sector}`);
  const parent = new Map<string, string>();
  const find = (key: string): string => {
    const up = parent.get(key);
    if (up === undefined || up === key) return key;
    const top = find(up);
    parent.set(key, top);
    return top;
  };
  const cellAt = new Map<string, number>();
  for (let arraySector = 0; arraySector < layout.arrayBytes / SECTOR_BYTES; arraySector += 1) {
    const { copies } = layout.locate(arraySector * SECTOR_BYTES);
    const places = copies.map(({ member, offsetBytes }) => ({
      slot: member,
      sector: Math.floor(offsetBytes / SECTOR_BYTES),
    }));
    cells.push({ arraySector, copies: places });
    const first = keyOf(places[0] as SlotSector);
    for (const place of places) {
      cellAt.set(`${place.slot}:${place.sector}`, arraySector);
      parent.set(keyOf(place), parent.get(keyOf(place)) ?? keyOf(place));
      parent.set(find(keyOf(place)), find(first));
    }
  }
  const indexOfTop = new Map<string, number>();
  const grouped: Cell[][] = [];
  const columnOf = new Map<number, number>();
  for (const cell of cells) {
    const top = find(keyOf(cell.copies[0] as SlotSector));
    const index = indexOfTop.get(top) ?? grouped.length;
    if (index === grouped.length) grouped.push([]);
    indexOfTop.set(top, index);
    grouped[index]?.push(cell);
    columnOf.set(cell.arraySector, index);
  }
  return {
    columns: grouped.map((each) => ({ cells: each, parity: null })),
    columnAt: (slot, sector) => {
      assert(slot !== null || hasSpares, 'a disk without a slot is a spare');
      const key = keyOf({ slot: slot ?? 0, sector });
      return parent.has(key) ? (indexOfTop.get(find(key)) ?? null) : null;
    },
    arraySectorAt: (slot, sector) => cellAt.get(`${slot}:${sector}`) ?? null,
    columnOf: (arraySector) => columnOf.get(arraySector) as number,
    holdsAll: (isThere) => cells.every(({ copies }) => copies.some(({ slot }) => isThere(slot))),
  };
}

/** What a place holds, as words of 32 bits; null where the slot has no disk that is in sync. */
export type SectorOf = (place: SlotSector) => Int32Array | null;

/** Whether copies are alike and parity is right, as far as there is something to compare. */
export function agrees(column: Column, sectorOf: SectorOf): boolean {
  if (column.parity === null) {
    return column.cells.every(({ copies }) => {
      const there = copies.map(sectorOf).filter((words) => words !== null);
      return there.every((words) => isAlike(words, there[0] as Int32Array));
    });
  }
  const data = column.cells.map(({ copies }) => sectorOf(copies[0] as SlotSector));
  if (data.includes(null)) return true;
  const { p, q, qOrder } = column.parity;
  const ps = sectorOf(p);
  const qs = q === null ? null : sectorOf(q);
  for (let at = 0; at < SECTOR_BYTES / 4; at += 1) {
    let sum = 0;
    for (const words of data) sum ^= (words as Int32Array)[at] as number;
    if (ps !== null && ps[at] !== sum) return false;
    if (qs === null) continue;
    let weighted = 0;
    // Horner's rule, four bytes at a time: from the highest coefficient, doubling in the field of x^8 + x^4 + x^3 + x^2 + 1.
    for (let power = qOrder.length - 1; power >= 0; power -= 1) {
      const carries = (weighted >>> 7) & 0x01010101;
      weighted = ((weighted << 1) & 0xfefefefe) ^ Math.imul(carries, 0x1d);
      const index = qOrder[power] ?? null;
      if (index !== null) weighted ^= (data[index] as Int32Array)[at] as number;
    }
    if (qs[at] !== weighted) return false;
  }
  return true;
}

function isAlike(a: Int32Array, b: Int32Array): boolean {
  for (let at = 0; at < a.length; at += 1) if (a[at] !== b[at]) return false;
  return true;
}
