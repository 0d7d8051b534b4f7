/**
 * What is lost, at most, when a degraded array of parity that was not stopped cleanly is declared clean: in rows that were
 * being written, what a missing member held is computed from data and parity of which one may be new and the other old.
 * Everything else is as it was, and so is what the members that are here hold themselves.
 */
import type { ParityLayout } from '../layout/layout.ts';
import type { ArrayRange } from '../plan/plan.ts';

/** Member bytes, on every member alike. */
export interface RowRange {
  readonly fromBytes: number;
  readonly toBytes: number;
}

/** In order; neighbours joined. */
export function* rangesAtRisk(
  layout: ParityLayout,
  isMissing: (slot: number) => boolean,
  rows: readonly RowRange[],
): Generator<ArrayRange> {
  const { chunkBytes, dataCount } = layout;
  let last: ArrayRange | null = null;
  for (const { fromBytes, toBytes } of rows) {
    const end = Math.min(toBytes, layout.rowCount * chunkBytes);
    for (let row = Math.floor(fromBytes / chunkBytes); row * chunkBytes < end; row += 1) {
      const lo = Math.max(0, fromBytes - row * chunkBytes);
      const hi = Math.min(chunkBytes, end - row * chunkBytes);
      for (const [index, member] of layout.row(row).data.entries()) {
        if (!isMissing(member)) continue;
        const offsetBytes = (row * dataCount + index) * chunkBytes + lo;
        if (last !== null && last.offsetBytes + last.lengthBytes === offsetBytes) {
          last = { offsetBytes: last.offsetBytes, lengthBytes: last.lengthBytes + hi - lo };
          continue;
        }
        if (last !== null) yield last;
        last = { offsetBytes, lengthBytes: hi - lo };
      }
    }
  }
  if (last !== null) yield last;
}
