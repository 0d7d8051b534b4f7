/**
 * raid4, raid5 and raid6: a row is the chunks at the same place on all members; one of them is P, at raid6 another is Q,
 * the rest are data.
 *
 *   raid5 left-symmetric       raid6 left-symmetric           raid6 ddf-N-continue           raid6 left-asymmetric-6
 *
 *          m0  m1  m2  m3             m0  m1  m2  m3  m4             m0  m1  m2  m3  m4             m0  m1  m2  m3  m4
 *   row 0  D0  D1  D2  P       row 0  Q   D0  D1  D2  P       row 0  D0  D1  D2  Q   P       row 0  D0  D1  D2  P   Q
 *   row 1  D4  D5  P   D3      row 1  D3  D4  D5  P   Q       row 1  D4  D5  Q   P   D3      row 1  D3  D4  P   D5  Q
 *   row 2  D8  P   D6  D7      row 2  D7  D8  P   Q   D6      row 2  D8  Q   P   D6  D7      row 2  D6  P   D7  D8  Q
 *
 * All 14 layouts of md are four independent choices, which is how they are written below:
 *
 *   where P is     it walks left (starts on the last member), walks right, or stays first or last;
 *                  `left-ahead` walks left but is one row ahead
 *   where Q is     just after P (wrapping), just before P, or always on the last member while the others form a raid5
 *   where data     `restart`: the data chunks fill the members in order, passing over P and Q ("asymmetric")
 *     begins       `continue`: they begin after the parity and wrap, so that a long sequential read visits all
 *                  members evenly ("symmetric")
 *   Q order        `after-q`: coefficients count the data chunks from the member after Q on, wrapping
 *                  `by-member`: the coefficient is the member number; P and Q leave gaps (DDF's way)
 *
 * In every case a row's data visits the members cyclically from one start, passing over P and Q:
 *
 *   raid6 left-symmetric, 5 members, row 1:  P = 4 - 1 = 3, Q = 4, start = 0:  D3 D4 D5 on members 0 1 2
 *   raid5 left-symmetric, 4 members, row 1:  P = 3 - 1 = 2, start = 3:         D3 D4 D5 on members 3 0 1
 *
 * Rows repeat every `memberCount` rows (`*-6`: one less; parity that stays: every row).
 */
import { assert } from '../errors.ts';
import {
  checkArrayBytes,
  checkAtLeast,
  checkChunk,
  checkMemberBytes,
  checkMemberCount,
  refuse,
} from './checks.ts';
import type { ParityGeometry, Raid6Layout } from './geometry.ts';
import type { ParityLayout, Row, RowCell } from './layout.ts';

interface Deal {
  readonly p: 'left' | 'left-ahead' | 'right' | 'first' | 'last';
  readonly q: 'after-p' | 'before-p' | 'last-member';
  readonly data: 'restart' | 'continue';
  readonly qOrder: 'after-q' | 'by-member';
}

const deals = {
  'left-asymmetric': { p: 'left', q: 'after-p', data: 'restart', qOrder: 'after-q' },
  'right-asymmetric': { p: 'right', q: 'after-p', data: 'restart', qOrder: 'after-q' },
  'left-symmetric': { p: 'left', q: 'after-p', data: 'continue', qOrder: 'after-q' },
  'right-symmetric': { p: 'right', q: 'after-p', data: 'continue', qOrder: 'after-q' },
  'parity-first': { p: 'first', q: 'after-p', data: 'restart', qOrder: 'after-q' },
  'parity-last': { p: 'last', q: 'after-p', data: 'restart', qOrder: 'after-q' },
  'ddf-zero-restart': { p: 'right', q: 'after-p', data: 'restart', qOrder: 'by-member' },
  'ddf-N-restart': { p: 'left-ahead', q: 'after-p', data: 'restart', qOrder: 'by-member' },
  'ddf-N-continue': { p: 'left', q: 'before-p', data: 'continue', qOrder: 'by-member' },
  'left-asymmetric-6': { p: 'left', q: 'last-member', data: 'restart', qOrder: 'after-q' },
  'right-asymmetric-6': { p: 'right', q: 'last-member', data: 'restart', qOrder: 'after-q' },
  'left-symmetric-6': { p: 'left', q: 'last-member', data: 'continue', qOrder: 'after-q' },
  'right-symmetric-6': { p: 'right', q: 'last-member', data: 'continue', qOrder: 'after-q' },
  'parity-first-6': { p: 'first', q: 'last-member', data: 'restart', qOrder: 'after-q' },
} as const satisfies Record<Raid6Layout, Deal>;

export function compileParity(geometry: ParityGeometry): ParityLayout {
  const { level, memberCount, chunkBytes } = geometry;
  const deal: Deal = deals[geometry.level === 'raid4' ? 'parity-last' : geometry.layout];
  checkMemberCount(level, memberCount);
  checkChunk(level, chunkBytes);
  checkMemberBytes(level, geometry.memberBytes, null);
  checkAtLeast(level, geometry.memberBytes, chunkBytes, null);
  if (level === 'raid6' && deal.qOrder === 'by-member' && memberCount > 255) {
    refuse(`the ddf layouts of raid6 have 255 members at most, not ${memberCount}; take left-symmetric`);
  }

  const parityCount = level === 'raid6' ? 2 : 1;
  const dataCount = memberCount - parityCount;
  const rowCount = Math.floor(geometry.memberBytes / chunkBytes);
  const arrayBytes = rowCount * chunkBytes * dataCount;
  checkArrayBytes(arrayBytes);

  const periodRows = periodOf(deal, memberCount, parityCount);
  // Filled as rows are met: a table for 1920 members, all at once, would be millions of cells.
  const rows: (Row | undefined)[] = new Array(periodRows).fill(undefined);
  const cells: (readonly RowCell[] | undefined)[] = new Array(periodRows).fill(undefined);
  const dataCells = Array.from(
    { length: dataCount },
    (_, index): RowCell => Object.freeze({ kind: 'data', index }),
  );

  function row(rowIndex: number): Row {
    assert(rowIndex >= 0 && rowIndex < rowCount, 'a row index lies inside the array');
    const phase = rowIndex % periodRows;
    rows[phase] ??= dealRow(deal, memberCount, parityCount, phase);
    return rows[phase];
  }

  function cellAt(member: number, rowIndex: number): RowCell {
    assert(member >= 0 && member < memberCount, 'a member number lies inside the array');
    assert(rowIndex >= 0 && rowIndex < rowCount, 'a row index lies inside the array');
    const phase = rowIndex % periodRows;
    cells[phase] ??= cellsOf(row(phase), memberCount, dataCells);
    return cells[phase][member]!;
  }

  return {
    kind: 'parity',
    geometry,
    memberCount,
    arrayBytes,
    chunkBytes,
    dataCount,
    parityCount,
    rowCount,
    memberBytes: Object.freeze(new Array<number>(memberCount).fill(rowCount * chunkBytes)),
    row,
    cellAt,
  };
}

function periodOf(deal: Deal, memberCount: number, parityCount: 1 | 2): number {
  if (deal.p === 'first' || deal.p === 'last') return 1;
  return parityCount === 2 && deal.q === 'last-member' ? memberCount - 1 : memberCount;
}

/** `phase` is the row modulo the period. */
function dealRow(deal: Deal, memberCount: number, parityCount: 1 | 2, phase: number): Row {
  const p = pMemberOf(deal, memberCount, parityCount, phase);
  const q = parityCount === 1 ? null : qMemberOf(deal, memberCount, p);
  const isData = (member: number): boolean => member !== p && member !== q;

  const lastParity = q === null || deal.q !== 'after-p' ? p : q;
  const data = membersFrom(deal.data === 'restart' ? 0 : lastParity + 1, memberCount).filter(isData);
  const indexOf = (member: number): number => data.indexOf(member);
  const qOrder =
    q === null
      ? data.map((_, index) => index)
      : deal.qOrder === 'after-q'
        ? membersFrom(q + 1, memberCount)
            .filter(isData)
            .map(indexOf)
        : membersFrom(0, memberCount).map((member) => (isData(member) ? indexOf(member) : null));

  return Object.freeze({ data: Object.freeze(data), p, q, qOrder: Object.freeze(qOrder) });
}

function pMemberOf(deal: Deal, memberCount: number, parityCount: 1 | 2, phase: number): number {
  const isAside = parityCount === 2 && deal.q === 'last-member';
  const width = isAside ? memberCount - 1 : memberCount;
  switch (deal.p) {
    case 'left':
      return width - 1 - phase;
    case 'left-ahead':
      return width - 1 - ((phase + 1) % width);
    case 'right':
      return phase;
    case 'first':
      return 0;
    case 'last':
      return memberCount - parityCount;
  }
}

function qMemberOf(deal: Deal, memberCount: number, p: number): number {
  switch (deal.q) {
    case 'after-p':
      return (p + 1) % memberCount;
    case 'before-p':
      return (p + memberCount - 1) % memberCount;
    case 'last-member':
      return memberCount - 1;
  }
}

/** All members, cyclically. */
function membersFrom(first: number, memberCount: number): number[] {
  return Array.from({ length: memberCount }, (_, step) => (first + step) % memberCount);
}

/** The inverse of `dealRow`. */
function cellsOf(row: Row, memberCount: number, dataCells: readonly RowCell[]): readonly RowCell[] {
  const cells = new Array<RowCell>(memberCount).fill(pCell);
  if (row.q !== null) cells[row.q] = qCell;
  row.data.forEach((member, index) => {
    cells[member] = dataCells[index]!;
  });
  return Object.freeze(cells);
}

const pCell: RowCell = Object.freeze({ kind: 'p' });
const qCell: RowCell = Object.freeze({ kind: 'q' });
