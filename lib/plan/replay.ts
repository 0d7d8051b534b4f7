/**
 * After a crash: which bytes make the parity of a logged row again.
 *
 *   parity = partial parity + what the written chunks hold now, be it old or new
 *
 * That is the parity of what is on the members, so nothing that was not written changes, whoever is missing:
 *
 *   row D0 D1 D2 P, writing D0. D0 is new, P is old when the power goes, and the member of D1 dies.
 *   Without the log D1 = D0' + D2 + P is garbage. With it P' = (D1 + D2) + D0', and D1 = D0' + D2 + P' is what it was.
 *
 * Where the member of a *written* chunk is missing there is nothing to add: parity stays, and these very sectors are
 * what the two of them make of it. All else of the row is on members that are here.
 */
import { assert } from '../errors.ts';
import type { ParityLayout, Place } from '../layout/layout.ts';
import type { LogEntry } from './plan.ts';

export interface Replay {
  readonly parity: Place;
  /** Of the written chunks. */
  readonly written: readonly Place[];
}

export function replayOf(
  layout: ParityLayout,
  entry: Pick<LogEntry, 'arrayOffsetBytes' | 'chunkCount'>,
): Replay {
  const { chunkBytes, dataCount } = layout;
  const chunk = Math.floor(entry.arrayOffsetBytes / chunkBytes);
  const rowIndex = Math.floor(chunk / dataCount);
  const first = chunk % dataCount;
  assert(first + entry.chunkCount <= dataCount, 'an entry stays in its row');
  const row = layout.row(rowIndex);
  const offsetBytes = rowIndex * chunkBytes + (entry.arrayOffsetBytes % chunkBytes);
  return {
    parity: { member: row.p, offsetBytes },
    written: row.data.slice(first, first + entry.chunkCount).map((member) => ({ member, offsetBytes })),
  };
}
