/**
 * The atlas of damage: what is wrong where, so that what is added stays within what the array promises to survive. Then
 * any loss is a bug, and no argument about bad luck is possible.
 *
 *   impaired   a slot whose member is missing, not yet whole, or certain to fail: it counts as lost
 *   latent     a sector of a member that cannot be read until it is written
 *
 * A member may fail if the array survives without it and all that are impaired, and still does at every sector that
 * another member cannot read. A sector may become unreadable if the array survives the loss of all that is impaired or
 * unreadable there. In parity levels and raid1 a sector stands at the same place on all members; in raid10 copies are
 * elsewhere, and a member with a bad sector counts as lost altogether.
 *
 * Some damage is survived only if redundancy was right before, and after a crash it may not be: in parity levels the
 * chunks of an impaired member in rows `atRisk` (written since the last flush before the crash, until a resync has gone
 * over them) are computed from parity that may be wrong. That is the write hole, which a policy of resync or bitmap
 * leaves open: those sectors are lost, and no others (L3 of the table of allowed losses).
 */
import type { Layout } from '../layout/layout.ts';
import { survives } from '../layout/survives.ts';
import { SECTOR_BYTES } from '../units.ts';

export interface Damage {
  /** By slot. */
  readonly impaired: ReadonlySet<number>;
  /** Slots by the sector, from the start of the data, that cannot be read on them. */
  readonly latent: ReadonlyMap<number, ReadonlySet<number>>;
}

/** Whether the array is sure to hold all data with this member lost as well. */
export function mayLose(layout: Layout, damage: Damage, slot: number): boolean {
  const { impaired } = damage;
  const isHeld = (others: ReadonlySet<number>): boolean =>
    survives(layout, (each) => each === slot || impaired.has(each) || others.has(each));
  if (!isHeld(impaired)) return false;
  if (hasRows(layout)) return [...damage.latent.values()].every(isHeld);
  return isHeld(union(damage.latent.values()));
}

/** Whether it is, with these sectors of the member unreadable. */
export function maySpoil(
  layout: Layout,
  damage: Damage,
  slot: number,
  dataSectors: readonly number[],
): boolean {
  const { impaired, latent } = damage;
  const isHeld = (others: ReadonlySet<number>): boolean =>
    survives(layout, (each) => each === slot || impaired.has(each) || others.has(each));
  if (hasRows(layout)) return dataSectors.every((each) => isHeld(latent.get(each) ?? impaired));
  return isHeld(union(latent.values()));
}

function hasRows(layout: Layout): boolean {
  return layout.kind === 'parity' || layout.geometry.level === 'raid1';
}

function union(sets: Iterable<ReadonlySet<number>>): ReadonlySet<number> {
  const all = new Set<number>();
  for (const set of sets) for (const each of set) all.add(each);
  return all;
}

/** The row of an array sector; in levels without rows, the sector itself. */
export function rowOf(layout: Layout, sector: number): number {
  if (layout.kind === 'copies') return sector;
  return Math.floor((sector * SECTOR_BYTES) / (layout.chunkBytes * layout.dataCount));
}

/** The array sectors whose data this member holds in a row, or at one of its sectors only. */
export function sectorsOn(
  layout: Layout,
  slot: number,
  row: number,
  dataSector: number | null = null,
): number[] {
  if (layout.kind === 'copies') return [];
  const cell = layout.cellAt(slot, row);
  if (cell.kind !== 'data') return [];
  const chunk = layout.chunkBytes / SECTOR_BYTES;
  const first = (row * layout.dataCount + cell.index) * chunk;
  const sectors = Array.from({ length: chunk }, (_, index) => first + index);
  if (dataSector === null) return sectors;
  return sectors.filter((_, index) => row * chunk + index === dataSector);
}

/**
 * The array sectors that share their redundancy with a sector of a member's data, that one first: whatever is computed
 * from it may be wrong. Empty where the place holds nothing.
 */
export function columnOf(layout: Layout, slot: number, dataSector: number): readonly number[] {
  if (layout.kind === 'copies') {
    const { arrayOffsetBytes } = layout.contentAt(slot, dataSector * SECTOR_BYTES);
    return arrayOffsetBytes === null ? [] : [Math.floor(arrayOffsetBytes / SECTOR_BYTES)];
  }
  const chunk = layout.chunkBytes / SECTOR_BYTES;
  const row = Math.floor(dataSector / chunk);
  if (row >= layout.rowCount) return [];
  const cell = layout.cellAt(slot, row);
  const at = (index: number): number => (row * layout.dataCount + index) * chunk + (dataSector % chunk);
  const all = Array.from({ length: layout.dataCount }, (_, index) => at(index));
  if (cell.kind !== 'data') return all;
  return [at(cell.index), ...all.filter((_, index) => index !== cell.index)];
}
