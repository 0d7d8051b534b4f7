/** A plan in the making: where the planners of both families put their steps and what they cannot serve. */
import { roundUp } from '../units.ts';
import type { ArrayRange, Compute, Inspect, LogEntry, Lost, Plan, Transfer } from './plan.ts';

export interface Draft {
  readonly requestBytes: number;
  scratchBytes: number;
  readonly reads: Transfer[];
  readonly compute: Compute[];
  readonly inspect: Inspect[];
  readonly log: LogEntry[];
  readonly writes: Transfer[];
  readonly lost: ArrayRange[];
}

/** What O_DIRECT asks of memory on any disk. The engine's scratch base is aligned to it. */
const PAGE_BYTES = 4096;
/** One cache line: SIMD kernels then never straddle two. */
const LINE_BYTES = 64;

export function newDraft(requestBytes: number): Draft {
  return {
    requestBytes,
    scratchBytes: 0,
    reads: [],
    compute: [],
    inspect: [],
    log: [],
    writes: [],
    lost: [],
  };
}

/** Reserves scratch and returns its address. Nothing is ever released: all reads are done before any arithmetic. */
export function reserve(draft: Draft, lengthBytes: number): number {
  const startBytes = roundUp(draft.scratchBytes, lengthBytes >= PAGE_BYTES ? PAGE_BYTES : LINE_BYTES);
  draft.scratchBytes = startBytes + lengthBytes;
  return draft.requestBytes + startBytes;
}

/** Reads into fresh scratch and returns its address. */
export function readIntoScratch(
  draft: Draft,
  member: number,
  offsetBytes: number,
  lengthBytes: number,
): number {
  const address = reserve(draft, lengthBytes);
  draft.reads.push({ member, offsetBytes, lengthBytes, address });
  return address;
}

/** Adds a transfer, or lengthens the last one where this continues it on the member and in memory. */
export function append(transfers: Transfer[], transfer: Transfer): void {
  const last = transfers.at(-1);
  if (
    last !== undefined &&
    last.member === transfer.member &&
    last.offsetBytes + last.lengthBytes === transfer.offsetBytes &&
    last.address + last.lengthBytes === transfer.address
  ) {
    transfers[transfers.length - 1] = { ...last, lengthBytes: last.lengthBytes + transfer.lengthBytes };
  } else {
    transfers.push(transfer);
  }
}

export function finish(draft: Draft): Plan | Lost {
  if (draft.lost.length > 0) return { lost: joinRanges(draft.lost) };
  const { requestBytes, scratchBytes, reads, compute, inspect, log, writes } = draft;
  const plan = { requestBytes, scratchBytes, reads, compute, inspect, writes };
  return log.length === 0 ? plan : { ...plan, log };
}

/** In order, and neighbours made one. */
export function joinRanges(ranges: readonly ArrayRange[]): ArrayRange[] {
  const joined: ArrayRange[] = [];
  for (const range of ranges.toSorted((a, b) => a.offsetBytes - b.offsetBytes)) {
    const last = joined.at(-1);
    const lastEnd = last === undefined ? -1 : last.offsetBytes + last.lengthBytes;
    if (last === undefined || range.offsetBytes > lastEnd) {
      joined.push(range);
    } else {
      const endBytes = Math.max(lastEnd, range.offsetBytes + range.lengthBytes);
      joined[joined.length - 1] = {
        offsetBytes: last.offsetBytes,
        lengthBytes: endBytes - last.offsetBytes,
      };
    }
  }
  return joined;
}
