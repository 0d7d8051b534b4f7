/**
 * What to do with a slice: the decisions of parity RAID, as pure functions of a few facts.
 *
 * A slice is a range of columns of one row in which nothing changes: every data cell is wholly asked for or not at
 * all, and every cell is in one state. Requests are cut until only slices are left, so all of RAID 4, 5 and 6 is
 * decided here. RAID 4 and 5 are RAID 6 whose Q is missing for good.
 *
 * In any row the data cells and the readable ones of P and Q are linked by that many equations, and any two unknown data cells
 * can be told apart by P and Q. So unknowns can be solved for exactly when they are no more than the readable parities.
 *
 * Writing w of N data cells leaves parity to be made from one of
 *
 *   rcw   reconstruct-write: read the N - w cells that stay, compute parity from all. With w = N, nothing is read.
 *   rmw   read-modify-write: read the w old cells and the old parities, add the difference.
 *
 *   RAID 5 on 4 members (N = 3):   w   rmw reads   rcw reads
 *                                  1   1 + 1 = 2   2           tie: rcw
 *                                  2   2 + 1 = 3   1           rcw
 *                                  3   3 + 1 = 4   0           full stripe
 *
 * On 5 members (N = 4) writing one cell costs rmw 2 and rcw 3: rmw. Ties go to rcw, as in md: it does not read
 * what it is about to write (a disk would have to come round again), and it does not trust the old parity,
 * so that a wrong one is put right and not carried on.
 *
 * A degraded row may need a cell that stays but cannot be read. Then rmw (which never asks for it) competes with
 * reading everything readable, N cells in all with as many parities as there are cells lost, and solving for it:
 *
 *   RAID 6 on 6 members (N = 4), one cell missing, the 3 others written:  rmw 3 + 2 = 5,  solving 3 + 1 = 4.
 *
 * Both trust the old parity, so here a tie goes to rmw: less arithmetic. Where the two parities of a row may not agree, solving trusts
 * one of them and makes the other anew; rmw would leave both as they are, and what was just written, once its own member goes too, would
 * be computed from two that contradict each other.
 */
import type { CellState } from './health.ts';

/** Data cells in array order; the request asks for cells `first` up to but not including `end`. */
export interface SliceFacts {
  readonly data: readonly CellState[];
  readonly p: CellState;
  readonly q: CellState;
  readonly first: number;
  readonly end: number;
  /** A resync has still to pass here: parity may not match. */
  readonly unsynced: boolean;
}

/** Which parities lost data is solved from. */
export type Source = 'none' | 'p' | 'q' | 'pq';

export type ReadDecision =
  | { readonly how: 'direct' }
  | { readonly how: 'solve'; readonly source: Source }
  | { readonly how: 'lost'; readonly cells: readonly number[] };

/** `p` and `q` say which parities are written. */
export type WriteDecision =
  | { readonly how: 'data-only' }
  | { readonly how: 'rmw'; readonly p: boolean; readonly q: boolean }
  | { readonly how: 'rcw'; readonly p: boolean; readonly q: boolean; readonly source: Source }
  | { readonly how: 'lost'; readonly cells: readonly number[] };

/** `p` and `q` say which parities are computed for writing; lost data that is writable is written too. */
export type RepairDecision =
  | { readonly how: 'nothing' }
  | { readonly how: 'rewrite'; readonly p: boolean; readonly q: boolean; readonly source: Source }
  | { readonly how: 'lost'; readonly cells: readonly number[] };

export type RecoverDecision =
  | { readonly how: 'solve'; readonly source: Source }
  | { readonly how: 'lost'; readonly cells: readonly number[] };

/** `computeP`: P cannot be read, and is made from the data so that Q has company in a `verify`. */
export type CheckDecision =
  | { readonly how: 'look-only' }
  | { readonly how: 'verify'; readonly source: Source; readonly computeP: boolean; readonly q: boolean };

export function decideRead(facts: SliceFacts): ReadDecision {
  const wantedLost = lostCells(facts, facts.first, facts.end);
  if (wantedLost.length === 0) return { how: 'direct' };
  const source = sourceFor(lostCount(facts), facts);
  return source === null ? { how: 'lost', cells: wantedLost } : { how: 'solve', source };
}

export function decideWrite(facts: SliceFacts): WriteDecision {
  const { data, p, q, first, end } = facts;
  const lost = lostCount(facts);
  if (lost === 0 && isSettled(p) && isSettled(q)) return cheaperWrite(facts, 0, 'none');

  const lostWritten = lostCells(facts, first, end);
  const lostStaying = lost - lostWritten.length;
  const source = lostStaying === 0 ? 'none' : sourceFor(lost, facts);
  const wholeRowKnown = source !== null;

  if (!wholeRowKnown) {
    // A parity left as it is while its row changes would be a wrong one as soon as it can be read again.
    if (p === 'erased' || q === 'erased') return { how: 'lost', cells: range(first, end) };
    if (lostWritten.length > 0 && (p === 'good' || q === 'good')) return { how: 'lost', cells: lostWritten };
  }
  const writesP = wholeRowKnown ? p !== 'missing' : p === 'good';
  const writesQ = wholeRowKnown ? q !== 'missing' : q === 'good';

  // What no member will hold afterwards, the parities must.
  const unheld = lostWritten.filter((index) => data[index] !== 'erased');
  if (unheld.length > 0) {
    const parities = Number(writesP && p !== 'behind') + Number(writesQ && q !== 'behind');
    if (lostStaying + unheld.length > parities) return { how: 'lost', cells: unheld };
  }

  if (!wholeRowKnown)
    return writesP || writesQ ? { how: 'rmw', p: writesP, q: writesQ } : { how: 'data-only' };
  return cheaperWrite(facts, lostWritten.length, source);
}

/** Everything computable, only the costs differ. `source` is for the cells that stay; all writable parities are written. */
function cheaperWrite(facts: SliceFacts, lostWritten: number, source: Source): WriteDecision {
  const { data, p, q, first, end } = facts;
  const writesP = p !== 'missing';
  const writesQ = q !== 'missing';
  if (!writesP && !writesQ) return { how: 'data-only' };
  const oldKnown = lostWritten === 0 && isSettled(p) && isSettled(q);
  const rmwReads = end - first + Number(writesP) + Number(writesQ);
  const rcwReads = source === 'none' ? data.length - (end - first) : data.length;
  const mayContradict = facts.unsynced && (source === 'none' || (writesP && writesQ));
  const prefersRmw = !mayContradict && (source === 'none' ? rmwReads < rcwReads : rmwReads <= rcwReads);
  return oldKnown && prefersRmw
    ? { how: 'rmw', p: writesP, q: writesQ }
    : { how: 'rcw', p: writesP, q: writesQ, source };
}

/** `facts` with the cell to be recovered in a state other than good: it is never its own source. */
export function decideRecover(facts: SliceFacts): RecoverDecision {
  const source = sourceFor(lostCount(facts), facts);
  return source === null
    ? { how: 'lost', cells: lostCells(facts, 0, facts.data.length) }
    : { how: 'solve', source };
}

/** Afterwards every writable cell holds what the data says, lost data being what P says, or Q where P is lost too. */
export function decideRepair(facts: SliceFacts): RepairDecision {
  const { data, p, q } = facts;
  const lost = lostCells(facts, 0, data.length);
  const source = sourceFor(lost.length, facts);
  if (source === null) return { how: 'lost', cells: lost };
  const writesP = p !== 'missing' && source !== 'p' && source !== 'pq';
  const writesQ = q !== 'missing' && source !== 'q' && source !== 'pq';
  const writesData = lost.some((index) => data[index] !== 'missing');
  return writesP || writesQ || writesData
    ? { how: 'rewrite', p: writesP, q: writesQ, source }
    : { how: 'nothing' };
}

/** One parity more than there are lost cells is needed to hold anything against it. */
export function decideCheck(facts: SliceFacts): CheckDecision {
  const { p, q } = facts;
  const lost = lostCount(facts);
  const parities = Number(p === 'good') + Number(q === 'good');
  const source = sourceFor(lost, facts);
  if (source === null || parities <= lost) return { how: 'look-only' };
  return { how: 'verify', source, computeP: p !== 'good', q: q === 'good' };
}

export function lostCells(facts: SliceFacts, first: number, end: number): number[] {
  const cells: number[] = [];
  for (let index = first; index < end; index += 1) {
    if (facts.data[index] !== 'good') cells.push(index);
  }
  return cells;
}

function lostCount(facts: SliceFacts): number {
  let count = 0;
  for (const state of facts.data) {
    if (state !== 'good') count += 1;
  }
  return count;
}

function sourceFor(lost: number, facts: SliceFacts): Source | null {
  const { p, q } = facts;
  if (lost === 0) return 'none';
  if (lost === 1 && p === 'good') return 'p';
  if (lost === 1 && q === 'good') return 'q';
  if (lost === 2 && p === 'good' && q === 'good') return 'pq';
  return null;
}

/** Not writable without being readable. */
function isSettled(parity: CellState): boolean {
  return parity === 'good' || parity === 'missing';
}

function range(first: number, end: number): number[] {
  return Array.from({ length: end - first }, (_, index) => first + index);
}
