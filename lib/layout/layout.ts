/**
 * What the planner asks of a layout. A `Layout` is compiled once from a `Geometry` (tables, no per-request
 * allocation beyond the answer) and is then a set of pure functions.
 */
import type { CopiesGeometry, ParityGeometry } from './geometry.ts';

/** A place on a member, from the start of its data. */
export interface Place {
  readonly member: number;
  readonly offsetBytes: number;
}

/** A run of array bytes that is contiguous on every member that holds it. */
export interface CopiesExtent {
  readonly arrayOffsetBytes: number;
  readonly lengthBytes: number;
  /** In md's order: the first is the one a healthy array would read first. At least one; on distinct members. */
  readonly copies: readonly Place[];
}

/** The inverse: what a place on a member holds. */
export interface CopyContent {
  readonly arrayOffsetBytes: number;
  readonly lengthBytes: number;
  /** Which of the copies this is. */
  readonly copy: number;
}

export interface CopiesLayout {
  readonly kind: 'copies';
  readonly geometry: CopiesGeometry;
  readonly memberCount: number;
  readonly arrayBytes: number;
  /** Copies of every byte; how many members may be missing depends on which ones. */
  readonly copyCount: number;
  /** Bytes of each member that the layout uses. */
  readonly memberBytes: readonly number[];
  /** The extent that begins at `arrayOffsetBytes` and ends at the next chunk (or zone, or member) boundary. */
  locate(arrayOffsetBytes: number): CopiesExtent;
  /** What begins at this place, up to the next boundary; `arrayOffsetBytes` null where the place holds nothing. */
  contentAt(
    member: number,
    offsetBytes: number,
  ): CopyContent | { readonly arrayOffsetBytes: null; readonly lengthBytes: number };
}

/**
 * One row of a parity layout, as md deals it out. All members hold their chunk of row r at r * chunkBytes.
 *
 *   Q = sum of 2^i * D over the data chunks, i being the chunk's place in *Q order*.
 */
export interface Row {
  /** Member of data chunk j of the row, j in array order. */
  readonly data: readonly number[];
  readonly p: number;
  /** Null below raid6. */
  readonly q: number | null;
  /**
   * Data chunk index j for each coefficient 2^0, 2^1, ..., or null where a coefficient is skipped (ddf layouts keep
   * the places of P and Q). For raid4/5 simply 0, 1, 2, ...: parity does not care.
   */
  readonly qOrder: readonly (number | null)[];
}

export type RowCell =
  | { readonly kind: 'data'; readonly index: number }
  | { readonly kind: 'p' }
  | { readonly kind: 'q' };

export interface ParityLayout {
  readonly kind: 'parity';
  readonly geometry: ParityGeometry;
  readonly memberCount: number;
  readonly arrayBytes: number;
  readonly chunkBytes: number;
  /** Data chunks in a row. */
  readonly dataCount: number;
  /** 1 for raid4/5, 2 for raid6. */
  readonly parityCount: 1 | 2;
  readonly rowCount: number;
  readonly memberBytes: readonly number[];
  /** The same object for the same pattern: rows repeat with a short period. */
  row(rowIndex: number): Row;
  /** The inverse of `row`: what the chunk of `member` in row `rowIndex` is. */
  cellAt(member: number, rowIndex: number): RowCell;
}

export type Layout = CopiesLayout | ParityLayout;
