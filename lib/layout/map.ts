/**
 * The placement as a picture: which chunk is in which row of which member. `drawLayout` returns data, so that text, HTML
 * and SVG can be drawn from the same cells; `formatMap` is the text.
 *
 *   raid5 left-symmetric, 4 members       raid10 far=2, 4 members
 *
 *          m0  m1  m2  m3                        m0   m1   m2   m3
 *   row 0  D0  D1  D2  P                  row 0  D0   D1   D2   D3
 *   row 1  D4  D5  P   D3                 row 1  D4   D5   D6   D7
 *   ...                                   ...
 *                                         row 8  D3'  D0'  D1'  D2'
 *                                         row 9  D7'  D4'  D5'  D6'
 *                                         ...
 *
 * D5 is array chunk 5, D5' and D5'' are its further copies, - is a chunk that holds nothing, and a blank is past the
 * member's end. Where placement starts anew further down (a zone of raid0, a far section of raid10) the rows there
 * are a section of their own.
 */
import { unreachable } from '../errors.ts';
import { KIB } from '../units.ts';
import { compileLayout } from './compile.ts';
import type { Geometry, Level } from './geometry.ts';
import type { CopiesLayout, ParityLayout } from './layout.ts';
import { layoutName } from './levels.ts';
import { zonesOf } from './raid0.ts';

export type MapCell =
  | { readonly kind: 'data'; readonly label: string; readonly chunk: number; readonly copy: number }
  | { readonly kind: 'p' | 'q'; readonly label: string }
  /** Inside the member, but nothing of the array is there. */
  | { readonly kind: 'unused'; readonly label: string }
  /** Past the member's end. */
  | { readonly kind: 'end'; readonly label: string };

export interface MapRow {
  readonly rowIndex: number;
  readonly offsetBytes: number;
  /** One a member, in slot order. */
  readonly cells: readonly MapCell[];
}

export interface LayoutMap {
  readonly level: Level;
  readonly layoutName: string | null;
  readonly memberCount: number;
  /** The height of a row: the chunk, or a unit chosen for the picture where the level has none. */
  readonly unitBytes: number;
  readonly arrayBytes: number;
  /** All rows, or the first of each section, in order. */
  readonly rows: readonly MapRow[];
  /** Rows of the longest member, shown or not. */
  readonly rowCount: number;
}

/** The first `rows` rows of every section. */
export function drawLayout(geometry: Geometry, rows: number): LayoutMap {
  const layout = compileLayout(geometry);
  const unitBytes = unitOf(geometry);
  const rowCount = Math.max(...layout.memberBytes) / unitBytes;

  const shown = new Set<number>();
  for (const start of sectionRowsOf(geometry, layout.memberBytes[0]!)) {
    for (let row = start; row < start + rows && row < rowCount; row += 1) shown.add(row);
  }
  return {
    level: geometry.level,
    layoutName: layoutName(geometry),
    memberCount: layout.memberCount,
    unitBytes,
    arrayBytes: layout.arrayBytes,
    rowCount,
    rows: [...shown]
      .sort((a, b) => a - b)
      .map((rowIndex) => ({
        rowIndex,
        offsetBytes: rowIndex * unitBytes,
        cells: Array.from({ length: layout.memberCount }, (_, member) =>
          layout.kind === 'parity'
            ? parityCell(layout, member, rowIndex)
            : copiesCell(layout, member, rowIndex, unitBytes),
        ),
      })),
  };
}

/** A table of left-justified columns, `...` where rows are left out; no trailing spaces, no newline at the end. */
export function formatMap(map: LayoutMap): string {
  const header = ['', ...Array.from({ length: map.memberCount }, (_, member) => `m${member}`)];
  const lines = map.rows.map((row) => [`row ${row.rowIndex}`, ...row.cells.map((cell) => cell.label)]);
  const widths = header.map((_, column) =>
    Math.max(...[header, ...lines].map((line) => line[column]!.length)),
  );
  const text = (line: readonly string[]): string =>
    line
      .map((label, column) => label.padEnd(widths[column]!))
      .join('  ')
      .trimEnd();

  const out = [text(header)];
  let next = 0;
  map.rows.forEach((row, index) => {
    if (row.rowIndex !== next) out.push('...');
    out.push(text(lines[index]!));
    next = row.rowIndex + 1;
  });
  if (next !== map.rowCount) out.push('...');
  return out.join('\n');
}

/** The rows at which placement starts anew. */
function sectionRowsOf(geometry: Geometry, usedBytes: number): readonly number[] {
  switch (geometry.level) {
    case 'raid0':
      return zonesOf(geometry).map((zone) => zone.memberStartBytes / geometry.chunkBytes);
    case 'raid10': {
      if (geometry.offset) return [0];
      const sectionRows = usedBytes / geometry.chunkBytes / geometry.far;
      return Array.from({ length: geometry.far }, (_, section) => section * sectionRows);
    }
    case 'linear':
    case 'raid1':
    case 'raid4':
    case 'raid5':
    case 'raid6':
      return [0];
    default:
      return unreachable(geometry);
  }
}

/** Without a chunk: the largest power of two, 64 KiB at most, that divides every member. */
function unitOf(geometry: Geometry): number {
  if (geometry.level !== 'raid1' && geometry.chunkBytes > 0) return geometry.chunkBytes;
  const memberBytes =
    typeof geometry.memberBytes === 'number' ? [geometry.memberBytes] : geometry.memberBytes;
  let unitBytes = 64 * KIB;
  while (memberBytes.some((bytes) => bytes % unitBytes !== 0)) unitBytes /= 2;
  return unitBytes;
}

function parityCell(layout: ParityLayout, member: number, rowIndex: number): MapCell {
  const cell = layout.cellAt(member, rowIndex);
  if (cell.kind !== 'data') return { kind: cell.kind, label: cell.kind.toUpperCase() };
  const chunk = rowIndex * layout.dataCount + cell.index;
  return { kind: 'data', label: `D${chunk}`, chunk, copy: 0 };
}

function copiesCell(layout: CopiesLayout, member: number, rowIndex: number, unitBytes: number): MapCell {
  const offsetBytes = rowIndex * unitBytes;
  if (offsetBytes >= layout.memberBytes[member]!) return { kind: 'end', label: '' };
  const content = layout.contentAt(member, offsetBytes);
  if (content.arrayOffsetBytes === null) return { kind: 'unused', label: '-' };
  const chunk = content.arrayOffsetBytes / unitBytes;
  return { kind: 'data', label: `D${chunk}${copyMark(content.copy)}`, chunk, copy: content.copy };
}

/** `'` `''` `'''` `'4` `'5`: every further copy can be told from the others. */
function copyMark(copy: number): string {
  return copy <= 3 ? "'".repeat(copy) : `'${copy}`;
}
