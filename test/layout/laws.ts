/**
 * What every layout owes, whatever its rule: it loses nothing, it puts nothing twice, and its inverse is its inverse. Each
 * function returns the first violation in words, or null; `expect` on every sector would be most of the time.
 */
import { RaidError } from '../../lib/errors.ts';
import type { CopiesLayout, ParityLayout } from '../../lib/layout/layout.ts';

export const SECTOR = 512;

/** Where a sector of the array belongs, by a rule written out independently: [member, sector on the member], copy by copy. */
export type DirectPlaces = (arraySector: number) => readonly (readonly [number, number])[];

/** Sector by sector over the whole array and the whole of every member. */
export function violationOfCopies(layout: CopiesLayout, direct: DirectPlaces): string | null {
  const { memberCount, arrayBytes, copyCount, memberBytes } = layout;
  const arraySectors = arrayBytes / SECTOR;
  const held = memberBytes.map((bytes) => new Int32Array(bytes / SECTOR).fill(-1));
  const copyOf = memberBytes.map((bytes) => new Int32Array(bytes / SECTOR));

  let extentEnd = 0;
  for (let sector = 0; sector < arraySectors; sector += 1) {
    const extent = layout.locate(sector * SECTOR);
    if (extent.arrayOffsetBytes !== sector * SECTOR) return `extent of sector ${sector} begins elsewhere`;
    const end = sector + extent.lengthBytes / SECTOR;
    if (sector === extentEnd) extentEnd = end;
    if (end !== extentEnd) return `extents of one run end differently at sector ${sector}`;
    if (end > arraySectors || end <= sector) return `extent of sector ${sector} ends outside the array`;
    if (extent.copies.length !== copyCount) return `sector ${sector} has ${extent.copies.length} copies`;
    if (new Set(extent.copies.map((place) => place.member)).size !== copyCount)
      return `copies of ${sector} share a member`;

    const expected = direct(sector);
    for (const [copy, place] of extent.copies.entries()) {
      const at = place.offsetBytes / SECTOR;
      const [member, memberSector] = expected[copy]!;
      if (place.member !== member || at !== memberSector) {
        return `sector ${sector} copy ${copy}: ${place.member}:${at}, by the formula ${member}:${memberSector}`;
      }
      if (at + extent.lengthBytes / SECTOR > held[member]!.length)
        return `extent of ${sector} leaves member ${member}`;
      if (held[member]![at] !== -1)
        return `member ${member} sector ${at} holds ${held[member]![at]} and ${sector}`;
      held[member]![at] = sector;
      copyOf[member]![at] = copy;
    }
  }

  let used = 0;
  for (let member = 0; member < memberCount; member += 1) {
    let runEnd = 0;
    for (let at = 0; at < held[member]!.length; at += 1) {
      const content = layout.contentAt(member, at * SECTOR);
      const end = at + content.lengthBytes / SECTOR;
      if (at === runEnd) runEnd = end;
      if (end !== runEnd || end > held[member]!.length)
        return `contents of one run end differently at ${member}:${at}`;
      const sector = held[member]![at]!;
      if (content.arrayOffsetBytes === null) {
        if (sector !== -1) return `${member}:${at} holds ${sector}, its inverse says nothing`;
        continue;
      }
      used += 1;
      if (content.arrayOffsetBytes !== sector * SECTOR)
        return `${member}:${at} holds ${sector}, its inverse differs`;
      if (content.copy !== copyOf[member]![at])
        return `${member}:${at} is copy ${copyOf[member]![at]}, not ${content.copy}`;
    }
  }
  return used === arraySectors * copyCount
    ? null
    : `${used} sectors are in use for ${arraySectors} x ${copyCount}`;
}

export interface DirectRow {
  readonly p: number;
  readonly q: number | null;
  readonly data: readonly number[];
  readonly qOrder: readonly (number | null)[];
}

/** Row by row over all rows given. */
export function violationOfParity(
  layout: ParityLayout,
  rowIndexes: Iterable<number>,
  direct: (rowIndex: number) => DirectRow,
): string | null {
  for (const rowIndex of rowIndexes) {
    const row = layout.row(rowIndex);
    const expected = direct(rowIndex);
    const found: DirectRow = { p: row.p, q: row.q, data: row.data, qOrder: row.qOrder };
    if (JSON.stringify(found) !== JSON.stringify(expected)) {
      return `row ${rowIndex}: ${JSON.stringify(found)}, by the formula ${JSON.stringify(expected)}`;
    }
    const members = [...row.data, row.p, ...(row.q === null ? [] : [row.q])].sort((a, b) => a - b);
    if (members.some((member, index) => member !== index) || members.length !== layout.memberCount) {
      return `row ${rowIndex} does not hold each member once`;
    }
    const weighed = row.qOrder.filter((index) => index !== null).sort((a, b) => a - b);
    if (weighed.length !== layout.dataCount || weighed.some((index, place) => index !== place)) {
      return `row ${rowIndex}: not every data chunk has one coefficient`;
    }
    for (let member = 0; member < layout.memberCount; member += 1) {
      const cell = layout.cellAt(member, rowIndex);
      const back = cell.kind === 'p' ? row.p : cell.kind === 'q' ? row.q : row.data[cell.index];
      if (back !== member)
        return `row ${rowIndex} member ${member} is ${cell.kind}, which is on member ${back}`;
    }
    if (!Object.isFrozen(row) || !Object.isFrozen(row.data) || !Object.isFrozen(row.qOrder))
      return 'a row can be changed';
    if (layout.row(rowIndex) !== row) return `row ${rowIndex} is made anew each time`;
  }
  return null;
}

/** The message with which `run` refuses a shape; null when it does not. */
export function refusalOf(run: () => unknown): string | null {
  try {
    run();
  } catch (error) {
    if (error instanceof RaidError && error.code === 'BAD_GEOMETRY') return error.message;
    throw error;
  }
  return null;
}

/** All lists of `length` values. */
export function listsOf<T>(values: readonly T[], length: number): T[][] {
  if (length === 0) return [[]];
  return listsOf(values, length - 1).flatMap((list) => values.map((value) => [...list, value]));
}
