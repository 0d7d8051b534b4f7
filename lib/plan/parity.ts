/**
 * Plans for raid4, raid5 and raid6: a request is cut into slices, `slice.ts` decides what to do with each, and this
 * file turns the decision into steps.
 *
 * A row of three data chunks of 64K, and a write of 96K that starts 32K into D0:
 *
 *               D0     D1     D2     P        columns   asked for    slices
 *        0K   |      | new  |      |      |    0..32K   D1           one
 *       32K   | new  | new  |      |      |   32..64K   D0 D1        another
 *
 * Further cuts are made where the state of a member changes: at the frontier of a recovering member, at both ends of an
 * erased range, at the sync position. Neighbours that turn out to be treated alike are one slice again.
 *
 * In a row the request is an interval of array bytes, so at any column the cells asked for are consecutive: `first`
 * up to `end`, j being among them when from <= j * chunk + column < to.
 */
import { assert } from '../errors.ts';
import type { ParityLayout, Row } from '../layout/layout.ts';
import type { Erasure } from '../parity/kernels.ts';
import { SECTOR_BYTES } from '../units.ts';
import { type Draft, finish, newDraft, readIntoScratch, reserve } from './draft.ts';
import {
  type CellState,
  type CompiledHealth,
  collectEdges,
  isGoodThroughout,
  type MemberLine,
  stateAt,
} from './health.ts';
import type { Holders, Lost, Plan } from './plan.ts';
import {
  type CheckDecision,
  decideCheck,
  decideRead,
  decideRecover,
  decideRepair,
  decideWrite,
  lostCells,
  type ReadDecision,
  type RecoverDecision,
  type RepairDecision,
  type SliceFacts,
  type Source,
  type WriteDecision,
} from './slice.ts';

interface Slice extends SliceFacts {
  readonly rowIndex: number;
  readonly row: Row;
  /** Columns, from the start of the chunk. */
  readonly lo: number;
  hi: number;
}

type Decision = ReadDecision | WriteDecision | RecoverDecision | RepairDecision | CheckDecision;

export function readParity(
  layout: ParityLayout,
  health: CompiledHealth,
  offsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  const rowBytes = layout.chunkBytes * layout.dataCount;
  const draft = newDraft(lengthBytes);
  let rowIndex = Math.floor(offsetBytes / rowBytes);
  let rowAddress = rowIndex * rowBytes - offsetBytes;
  for (; rowAddress < lengthBytes; rowIndex += 1, rowAddress += rowBytes) {
    const from = Math.max(0, -rowAddress);
    const to = Math.min(rowBytes, lengthBytes - rowAddress);
    const row = layout.row(rowIndex);
    if (!health.usual && !isDirect(layout, health, rowIndex, row, from, to)) {
      forEachSlice(layout, health, rowIndex, from, to, decideRead, (slice, decision) =>
        readSlice(draft, layout, slice, decision, rowAddress),
      );
      continue;
    }
    const rowStart = rowIndex * layout.chunkBytes;
    for (let position = from; position < to; ) {
      const index = Math.floor(position / layout.chunkBytes);
      const column = position - index * layout.chunkBytes;
      const pieceBytes = Math.min(layout.chunkBytes - column, to - position);
      draft.reads.push({
        member: row.data[index]!,
        offsetBytes: rowStart + column,
        lengthBytes: pieceBytes,
        address: rowAddress + position,
      });
      position += pieceBytes;
    }
  }
  return finish(draft);
}

export function writeParity(
  layout: ParityLayout,
  health: CompiledHealth,
  offsetBytes: number,
  lengthBytes: number,
  isLogged: boolean,
): Plan | Lost {
  const rowBytes = layout.chunkBytes * layout.dataCount;
  const draft = newDraft(lengthBytes);
  let rowIndex = Math.floor(offsetBytes / rowBytes);
  let rowAddress = rowIndex * rowBytes - offsetBytes;
  for (; rowAddress < lengthBytes; rowIndex += 1, rowAddress += rowBytes) {
    const from = Math.max(0, -rowAddress);
    const to = Math.min(rowBytes, lengthBytes - rowAddress);
    const only = health.usual ? sliceOfOneCell(layout, health, rowIndex, from, to) : null;
    if (only !== null) {
      writeSlice(draft, layout, health, only, decideWrite(only), rowAddress, isLogged);
      continue;
    }
    forEachSlice(layout, health, rowIndex, from, to, decideWrite, (slice, decision) =>
      writeSlice(draft, layout, health, slice, decision, rowAddress, isLogged),
    );
  }
  return finish(draft);
}

export function recoverParity(
  layout: ParityLayout,
  health: CompiledHealth,
  member: number,
  memberOffsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  const blind = withoutReading(health, member);
  return overColumns(layout, blind, memberOffsetBytes, lengthBytes, decideRecover, (draft, slice, decision) =>
    recoverSlice(draft, layout, slice, decision, member),
  );
}

export function checkParity(
  layout: ParityLayout,
  health: CompiledHealth,
  syncOffsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  return overColumns(layout, health, syncOffsetBytes, lengthBytes, decideCheck, (draft, slice, decision) =>
    checkSlice(draft, layout, slice, decision),
  );
}

export function repairParity(
  layout: ParityLayout,
  health: CompiledHealth,
  syncOffsetBytes: number,
  lengthBytes: number,
  isLogged: boolean,
): Plan | Lost {
  return overColumns(layout, health, syncOffsetBytes, lengthBytes, decideRepair, (draft, slice, decision) =>
    repairSlice(draft, layout, slice, decision, isLogged),
  );
}

// Cutting.

function overColumns<D extends Decision>(
  layout: ParityLayout,
  health: CompiledHealth,
  memberOffsetBytes: number,
  lengthBytes: number,
  decide: (facts: SliceFacts) => D,
  emit: (draft: Draft, slice: Slice, decision: D) => void,
): Plan | Lost {
  const draft = newDraft(0);
  const endBytes = memberOffsetBytes + lengthBytes;
  const firstRow = Math.floor(memberOffsetBytes / layout.chunkBytes);
  for (let rowIndex = firstRow; rowIndex * layout.chunkBytes < endBytes; rowIndex += 1) {
    const rowStart = rowIndex * layout.chunkBytes;
    const cuts = [
      Math.max(0, memberOffsetBytes - rowStart),
      Math.min(layout.chunkBytes, endBytes - rowStart),
    ];
    overCuts(layout, health, rowIndex, cuts, null, decide, (slice, decision) => emit(draft, slice, decision));
  }
  return finish(draft);
}

/** What a small request comes to where nothing changes along a member: no cuts are looked for. Null where it is not in one chunk. */
function sliceOfOneCell(
  layout: ParityLayout,
  health: CompiledHealth,
  rowIndex: number,
  from: number,
  to: number,
): Slice | null {
  const { chunkBytes } = layout;
  const index = Math.floor(from / chunkBytes);
  const lo = from - index * chunkBytes;
  const hi = to - index * chunkBytes;
  if (hi > chunkBytes) return null;
  return sliceOf(layout, health, rowIndex, layout.row(rowIndex), lo, hi, index, index + 1);
}

/** Slices of a request for bytes `from` up to `to` of the row. */
function forEachSlice<D extends Decision>(
  layout: ParityLayout,
  health: CompiledHealth,
  rowIndex: number,
  from: number,
  to: number,
  decide: (facts: SliceFacts) => D,
  emit: (slice: Slice, decision: D) => void,
): void {
  const { chunkBytes } = layout;
  const firstIndex = Math.floor(from / chunkBytes);
  const lastIndex = Math.floor((to - 1) / chunkBytes);
  const lo = from - firstIndex * chunkBytes;
  const hi = to - lastIndex * chunkBytes;
  const cuts =
    firstIndex === lastIndex ? [lo, hi] : lo < hi ? [0, lo, hi, chunkBytes] : [0, hi, lo, chunkBytes];
  overCuts(layout, health, rowIndex, cuts, { from, to }, decide, emit);
}

function overCuts<D extends Decision>(
  layout: ParityLayout,
  health: CompiledHealth,
  rowIndex: number,
  cuts: number[],
  asked: { readonly from: number; readonly to: number } | null,
  decide: (facts: SliceFacts) => D,
  emit: (slice: Slice, decision: D) => void,
): void {
  const { chunkBytes } = layout;
  if (!health.usual) addHealthCuts(health, rowIndex * chunkBytes, cuts);
  const row = layout.row(rowIndex);

  let slice: Slice | null = null;
  let decision: D | null = null;
  for (let cut = 1; cut < cuts.length; cut += 1) {
    const lo = cuts[cut - 1]!;
    const hi = cuts[cut]!;
    const first = asked === null ? 0 : Math.max(0, Math.ceil((asked.from - lo) / chunkBytes));
    const end = asked === null ? 0 : Math.min(layout.dataCount, Math.ceil((asked.to - lo) / chunkBytes));
    if (lo === hi || (asked !== null && first >= end)) continue;

    const next = sliceOf(layout, health, rowIndex, row, lo, hi, first, end);
    const nextDecision = decide(next);
    if (slice !== null && decision !== null && continues(slice, decision, next, nextDecision)) {
      slice.hi = hi;
      continue;
    }
    if (slice !== null && decision !== null) emit(slice, decision);
    slice = next;
    decision = nextDecision;
  }
  if (slice !== null && decision !== null) emit(slice, decision);
}

function addHealthCuts(health: CompiledHealth, rowStart: number, cuts: number[]): void {
  const count = cuts.length;
  const lo = rowStart + cuts[0]!;
  const hi = rowStart + cuts[count - 1]!;
  for (const line of health.members) {
    if (line.edges.length > 0) collectEdges(line, lo, hi, rowStart, cuts);
  }
  if (health.unsyncedFromBytes > lo && health.unsyncedFromBytes < hi) {
    cuts.push(health.unsyncedFromBytes - rowStart);
  }
  if (cuts.length > count) cuts.sort((a, b) => a - b);
}

function sliceOf(
  layout: ParityLayout,
  health: CompiledHealth,
  rowIndex: number,
  row: Row,
  lo: number,
  hi: number,
  first: number,
  end: number,
): Slice {
  const at = rowIndex * layout.chunkBytes + lo;
  if (health.usual) {
    const q = row.q === null ? 'missing' : 'good';
    return {
      rowIndex,
      row,
      lo,
      hi,
      first,
      end,
      data: allGood(layout.dataCount),
      p: 'good',
      q,
      unsynced: false,
    };
  }
  const { members } = health;
  const data: CellState[] = [];
  for (const member of row.data) data.push(stateAt(members[member]!, at));
  const p = stateAt(members[row.p]!, at);
  const q = row.q === null ? 'missing' : stateAt(members[row.q]!, at);
  return { rowIndex, row, lo, hi, first, end, data, p, q, unsynced: at >= health.unsyncedFromBytes };
}

const allGoodCells: CellState[][] = [];

function allGood(dataCount: number): readonly CellState[] {
  allGoodCells[dataCount] ??= Array.from({ length: dataCount }, () => 'good' as const);
  return allGoodCells[dataCount];
}

/** Whether two neighbours get the same steps, so that they may be one slice. */
function continues(slice: Slice, decision: Decision, next: Slice, nextDecision: Decision): boolean {
  if (slice.hi !== next.lo || slice.first !== next.first || slice.end !== next.end) return false;
  if (decision.how === 'lost' || decision.how !== nextDecision.how) return false;
  for (const key of ['source', 'p', 'q', 'computeP'] as const) {
    if (Reflect.get(decision, key) !== Reflect.get(nextDecision, key)) return false;
  }
  const needsNothingLost =
    decision.how === 'direct' ||
    decision.how === 'rmw' ||
    decision.how === 'data-only' ||
    (decision.how === 'rcw' && decision.source === 'none');
  return needsNothingLost || sameStates(slice, next);
}

function sameStates(a: Slice, b: Slice): boolean {
  return a.p === b.p && a.q === b.q && a.data.every((state, index) => state === b.data[index]);
}

function isDirect(
  layout: ParityLayout,
  health: CompiledHealth,
  rowIndex: number,
  row: Row,
  from: number,
  to: number,
): boolean {
  const { chunkBytes } = layout;
  const rowStart = rowIndex * chunkBytes;
  for (let position = from; position < to; ) {
    const index = Math.floor(position / chunkBytes);
    const column = position - index * chunkBytes;
    const pieceBytes = Math.min(chunkBytes - column, to - position);
    if (!isGoodThroughout(health.members[row.data[index]!]!, rowStart + column, pieceBytes)) return false;
    position += pieceBytes;
  }
  return true;
}

function withoutReading(health: CompiledHealth, member: number): CompiledHealth {
  const line = health.members[member]!;
  assert(line.writable, 'only a member that takes writes is recovered');
  const behind: MemberLine = { ...line, edges: [], states: ['behind'] };
  return { ...health, usual: false, members: health.members.with(member, behind) };
}

// Steps.

function readSlice(
  draft: Draft,
  layout: ParityLayout,
  slice: Slice,
  decision: ReadDecision,
  rowAddress: number,
): void {
  switch (decision.how) {
    case 'lost':
      lose(draft, layout, slice, decision.cells);
      return;
    case 'solve':
      gather(draft, layout, slice, decision.source, rowAddress, {
        data: (index) => index >= slice.first && index < slice.end,
      });
      return;
    case 'direct': {
      const { offsetBytes, lengthBytes } = placeOf(layout, slice);
      for (let index = slice.first; index < slice.end; index += 1) {
        const address = rowAddress + index * layout.chunkBytes + slice.lo;
        draft.reads.push({ member: slice.row.data[index]!, offsetBytes, lengthBytes, address });
      }
    }
  }
}

function writeSlice(
  draft: Draft,
  layout: ParityLayout,
  health: CompiledHealth,
  slice: Slice,
  decision: WriteDecision,
  rowAddress: number,
  isLogged: boolean,
): void {
  if (decision.how === 'lost') {
    lose(draft, layout, slice, decision.cells);
    return;
  }

  const { row, lo, first, end } = slice;
  const { chunkBytes } = layout;
  const { offsetBytes, lengthBytes } = placeOf(layout, slice);
  for (let index = first; index < end; index += 1) {
    const member = row.data[index]!;
    if (!health.members[member]!.writable) continue;
    draft.writes.push({ member, offsetBytes, lengthBytes, address: rowAddress + index * chunkBytes + lo });
  }
  if (decision.how === 'data-only') return;

  // Parity that will be recovered from the data anyway has nobody who relies on it.
  const logs = isLogged && decision.p && slice.p !== 'behind';
  let p: number | null = null;
  let q: number | null = null;
  if (logs) {
    p = logSlice(draft, layout, slice, decision, rowAddress);
  } else if (decision.how === 'rmw') {
    const old: number[] = [];
    for (let index = first; index < end; index += 1) {
      old.push(readIntoScratch(draft, row.data[index]!, offsetBytes, lengthBytes));
    }
    if (decision.p) p = readIntoScratch(draft, row.p, offsetBytes, lengthBytes);
    if (decision.q) q = readIntoScratch(draft, row.q!, offsetBytes, lengthBytes);
    for (let index = first; index < end; index += 1) {
      draft.compute.push({
        op: 'update',
        oldData: old[index - first]!,
        newData: rowAddress + index * chunkBytes + lo,
        index: row.qOrder.indexOf(index),
        p,
        q,
        lengthBytes,
      });
    }
  } else {
    const stays = (index: number): boolean => index < first || index >= end;
    const solved =
      decision.source === 'none'
        ? null
        : gather(draft, layout, slice, decision.source, null, { data: stays });
    const data: number[] = [];
    for (let index = 0; index < layout.dataCount; index += 1) {
      if (!stays(index)) data.push(rowAddress + index * chunkBytes + lo);
      else
        data.push(solved?.data[index] ?? readIntoScratch(draft, row.data[index]!, offsetBytes, lengthBytes));
    }
    if (decision.p) p = solved?.p ?? reserve(draft, lengthBytes);
    if (decision.q) q = solved?.q ?? reserve(draft, lengthBytes);
    draft.compute.push({ op: 'syndrome', data: inQOrder(row, data), p, q, lengthBytes });
  }
  if (p !== null) draft.writes.push({ member: row.p, offsetBytes, lengthBytes, address: p });
  if (q !== null) draft.writes.push({ member: row.q!, offsetBytes, lengthBytes, address: q });
}

/**
 * As above for a row of raid5 whose write is logged. The XOR of what stays is wanted by itself, and is a step on the way:
 *
 *   rcw   stays = the other data        P = stays + new data
 *   rmw   stays = old P + old data      P = stays + new data
 *
 * Returns where the new parity is.
 */
function logSlice(
  draft: Draft,
  layout: ParityLayout,
  slice: Slice,
  decision: Extract<WriteDecision, { how: 'rmw' | 'rcw' }>,
  rowAddress: number,
): number {
  const { row, lo, first, end } = slice;
  const { chunkBytes, dataCount } = layout;
  const { offsetBytes, lengthBytes } = placeOf(layout, slice);
  assert(row.q === null, 'only raid5 has a partial parity log');
  const written: number[] = [];
  for (let index = first; index < end; index += 1) written.push(rowAddress + index * chunkBytes + lo);
  const sources: number[] = [];
  let p: number | null = null;
  if (decision.how === 'rmw') {
    for (let index = first; index < end; index += 1) {
      sources.push(readIntoScratch(draft, row.data[index]!, offsetBytes, lengthBytes));
    }
    sources.push(readIntoScratch(draft, row.p, offsetBytes, lengthBytes));
  } else {
    const stays = (index: number): boolean => index < first || index >= end;
    const solved =
      decision.source === 'none'
        ? null
        : gather(draft, layout, slice, decision.source, null, { data: stays });
    p = solved?.p ?? null;
    for (let index = 0; index < dataCount; index += 1) {
      if (!stays(index)) continue;
      sources.push(solved?.data[index] ?? readIntoScratch(draft, row.data[index]!, offsetBytes, lengthBytes));
    }
  }

  let staying: number | null = sources[0] ?? null;
  if (sources.length > 1) {
    staying = reserve(draft, lengthBytes);
    draft.compute.push({ op: 'syndrome', data: sources, p: staying, q: null, lengthBytes });
  }
  p ??= reserve(draft, lengthBytes);
  const data = staying === null ? written : [staying, ...written];
  draft.compute.push({ op: 'syndrome', data, p, q: null, lengthBytes });
  log(draft, layout, slice, first, end - first, staying);
  return p;
}

function log(
  draft: Draft,
  layout: ParityLayout,
  slice: Slice,
  first: number,
  chunkCount: number,
  address: number | null,
): void {
  const { row, rowIndex, lo, hi } = slice;
  const lengthBytes = hi - lo;
  const arrayOffsetBytes = (rowIndex * layout.dataCount + first) * layout.chunkBytes + lo;
  assert(arrayOffsetBytes % SECTOR_BYTES === 0 && lengthBytes % SECTOR_BYTES === 0, 'sectors are logged');
  draft.log.push({ parityMember: row.p, arrayOffsetBytes, lengthBytes, chunkCount, address });
}

function recoverSlice(
  draft: Draft,
  layout: ParityLayout,
  slice: Slice,
  decision: RecoverDecision,
  member: number,
): void {
  if (decision.how === 'lost') {
    lose(draft, layout, slice, decision.cells);
    return;
  }

  const { offsetBytes, lengthBytes } = placeOf(layout, slice);
  const cell = layout.cellAt(member, slice.rowIndex);
  const known = gather(draft, layout, slice, decision.source, null, {
    data: (index) => cell.kind === 'data' && cell.index === index,
    p: cell.kind === 'p',
    q: cell.kind === 'q',
  });
  let address: number;
  if (cell.kind === 'data') {
    address = known.data[cell.index]!;
  } else {
    const { p, q } = withParities(draft, slice, known, cell.kind === 'p', cell.kind === 'q', lengthBytes);
    address = (cell.kind === 'p' ? p : q)!;
  }
  draft.writes.push({ member, offsetBytes, lengthBytes, address });
}

function repairSlice(
  draft: Draft,
  layout: ParityLayout,
  slice: Slice,
  decision: RepairDecision,
  isLogged: boolean,
): void {
  if (decision.how === 'nothing') return;
  if (decision.how === 'lost') {
    lose(draft, layout, slice, decision.cells);
    return;
  }

  const { row } = slice;
  const { offsetBytes, lengthBytes } = placeOf(layout, slice);
  const known = gather(draft, layout, slice, decision.source, null, {
    data: (index) => slice.data[index] !== 'missing',
    p: decision.p,
    q: decision.q,
  });
  const { p, q } = withParities(draft, slice, known, decision.p, decision.q, lengthBytes);
  for (const index of lostCells(slice, 0, layout.dataCount)) {
    if (slice.data[index] === 'missing') continue;
    draft.writes.push({ member: row.data[index]!, offsetBytes, lengthBytes, address: known.data[index]! });
  }
  if (decision.p) draft.writes.push({ member: row.p, offsetBytes, lengthBytes, address: p! });
  if (decision.q) draft.writes.push({ member: row.q!, offsetBytes, lengthBytes, address: q! });
  // Parity that was wrong may have gone into the log with an earlier write (rmw): this takes that entry's place. In a
  // resync it cannot have, since writes there are rcw.
  const isNews = decision.p && slice.p !== 'behind' && decision.source === 'none' && !slice.unsynced;
  if (isLogged && isNews) log(draft, layout, slice, 0, layout.dataCount, null);
}

function checkSlice(draft: Draft, layout: ParityLayout, slice: Slice, decision: CheckDecision): void {
  const { rowIndex, row } = slice;
  const { offsetBytes, lengthBytes } = placeOf(layout, slice);
  if (decision.how === 'look-only') {
    row.data.forEach((member, index) => {
      if (slice.data[index] === 'good') readIntoScratch(draft, member, offsetBytes, lengthBytes);
    });
    if (slice.p === 'good') readIntoScratch(draft, row.p, offsetBytes, lengthBytes);
    if (slice.q === 'good') readIntoScratch(draft, row.q!, offsetBytes, lengthBytes);
    return;
  }
  const known = gather(draft, layout, slice, decision.source, null, { data: () => true });
  const q = decision.q ? (known.q ?? readIntoScratch(draft, row.q!, offsetBytes, lengthBytes)) : null;
  const p = decision.computeP
    ? withParities(draft, slice, known, true, false, lengthBytes).p!
    : (known.p ?? readIntoScratch(draft, row.p, offsetBytes, lengthBytes));
  const data = inQOrder(row, known.data);
  const isWhole = decision.source === 'none' && !decision.computeP && decision.q;
  const holders = isWhole ? holdersOf(draft, row, lengthBytes) : null;
  draft.inspect.push({ op: 'verify', data, p, q, row: rowIndex, offsetBytes, lengthBytes, holders });
}

function holdersOf(draft: Draft, row: Row, lengthBytes: number): Holders {
  return {
    data: inQOrder(row, row.data),
    p: row.p,
    q: row.q!,
    deltaP: reserve(draft, lengthBytes),
    deltaQ: reserve(draft, lengthBytes),
  };
}

interface Known {
  /** In array order; null for lost cells that were not wanted. */
  readonly data: readonly (number | null)[];
  readonly p: number | null;
  readonly q: number | null;
}

/** Which lost cells are worth computing. Parities count only where solving yields them along the way. */
interface Wanted {
  readonly data: (index: number) => boolean;
  readonly p?: boolean;
  readonly q?: boolean;
}

/**
 * Brings the data of the slice into memory, as it is on the members: read what is good, solve for the rest from
 * `source`. The cells asked for go to the request where there is a `rowAddress`, the others to scratch.
 */
function gather(
  draft: Draft,
  layout: ParityLayout,
  slice: Slice,
  source: Source,
  rowAddress: number | null,
  wanted: Wanted,
): Known {
  const { row, lo, first, end } = slice;
  const { offsetBytes, lengthBytes } = placeOf(layout, slice);
  const data: (number | null)[] = [];
  const lost: number[] = [];
  for (let index = 0; index < layout.dataCount; index += 1) {
    const isLost = slice.data[index] !== 'good';
    if (isLost) lost.push(index);
    if (isLost && !wanted.data(index)) {
      data.push(null);
      continue;
    }
    const asked = rowAddress !== null && index >= first && index < end;
    const address = asked ? rowAddress + index * layout.chunkBytes + lo : reserve(draft, lengthBytes);
    data.push(address);
    if (!isLost) draft.reads.push({ member: row.data[index]!, offsetBytes, lengthBytes, address });
  }
  if (source === 'none') return { data, p: null, q: null };

  const readsP = source !== 'q';
  const readsQ = source !== 'p';
  const p = readsP || wanted.p === true ? reserve(draft, lengthBytes) : null;
  const q = readsQ || wanted.q === true ? reserve(draft, lengthBytes) : null;
  if (readsP) draft.reads.push({ member: row.p, offsetBytes, lengthBytes, address: p! });
  if (readsQ) draft.reads.push({ member: row.q!, offsetBytes, lengthBytes, address: q! });
  const erasure = erasureOf(row, lost, source, wanted.q === true);
  draft.compute.push({ op: 'recover', data: inQOrder(row, data), p, q, erasure, lengthBytes });
  return { data, p, q };
}

function erasureOf(row: Row, lost: readonly number[], source: Source, wantsQ: boolean): Erasure {
  const places = lost.map((index) => row.qOrder.indexOf(index)).sort((a, b) => a - b);
  const x = places[0]!;
  if (source === 'pq') return { kind: 'DD', x, y: places[1]! };
  if (source === 'q') return { kind: 'DP', x };
  return wantsQ ? { kind: 'DQ', x } : { kind: 'D', x };
}

/** Computes from all data the wanted parities that are not known yet. */
function withParities(
  draft: Draft,
  slice: Slice,
  known: Known,
  wantsP: boolean,
  wantsQ: boolean,
  lengthBytes: number,
): { readonly p: number | null; readonly q: number | null } {
  const p = wantsP && known.p === null ? reserve(draft, lengthBytes) : null;
  const q = wantsQ && known.q === null ? reserve(draft, lengthBytes) : null;
  if (p !== null || q !== null) {
    draft.compute.push({ op: 'syndrome', data: inQOrder(slice.row, known.data), p, q, lengthBytes });
  }
  return { p: known.p ?? p, q: known.q ?? q };
}

function inQOrder(row: Row, data: readonly (number | null)[]): (number | null)[] {
  return row.qOrder.map((index) => (index === null ? null : data[index]!));
}

function placeOf(layout: ParityLayout, slice: Slice): { offsetBytes: number; lengthBytes: number } {
  return { offsetBytes: slice.rowIndex * layout.chunkBytes + slice.lo, lengthBytes: slice.hi - slice.lo };
}

function lose(draft: Draft, layout: ParityLayout, slice: Slice, cells: readonly number[]): void {
  for (const index of cells) {
    draft.lost.push({
      offsetBytes: (slice.rowIndex * layout.dataCount + index) * layout.chunkBytes + slice.lo,
      lengthBytes: slice.hi - slice.lo,
    });
  }
}
