/**
 * A plan is what an array does for one request: reads, then arithmetic (or, in a check, comparisons), then writes, over (member, offset, address).
 * It is data: it can be printed, compared, executed by something that knows no RAID, and executed on names instead of
 * bytes, which is how the laws in test/plan are proved.
 *
 * Addresses are virtual. [0, requestBytes) is the caller's buffer: where a read leaves its answer, and where a write
 * finds its bytes. From requestBytes on it is scratch memory that belongs to the plan alone. The engine adds
 * the two real bases.
 *
 * Three phases and no more are enough because every decision of RAID is "gather what is needed, compute, put it
 * where it belongs": rmw and rcw, degraded reads and writes, recovery and repair differ only in what they gather.
 * And the order is a safety property: nothing is written before everything that will be written is known, so
 * a failed read never leaves a half-changed row, and a failed write needs no re-reading.
 */
import type { Place } from '../layout/layout.ts';
import type { Erasure } from '../parity/kernels.ts';

export interface Transfer {
  readonly member: number;
  /** On the member, from the start of its data. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly address: number;
}

export type Compute =
  | { readonly op: 'copy'; readonly from: number; readonly into: number; readonly lengthBytes: number }
  | { readonly op: 'zero'; readonly into: number; readonly lengthBytes: number }
  /** `data` in Q order; null is a chunk of zeros. */
  | {
      readonly op: 'syndrome';
      readonly data: readonly (number | null)[];
      readonly p: number | null;
      readonly q: number | null;
      readonly lengthBytes: number;
    }
  | {
      readonly op: 'update';
      readonly oldData: number;
      readonly newData: number;
      readonly index: number;
      readonly p: number | null;
      readonly q: number | null;
      readonly lengthBytes: number;
    }
  | {
      readonly op: 'recover';
      readonly data: readonly (number | null)[];
      readonly p: number | null;
      readonly q: number | null;
      readonly erasure: Erasure;
      readonly lengthBytes: number;
    };

/**
 * What a check looks at; a difference is reported, never acted on. `verify` holds one row's slice against its parity;
 * `compare` holds one copy against the first.
 */
export type Inspect =
  | {
      readonly op: 'verify';
      readonly data: readonly (number | null)[];
      readonly p: number;
      readonly q: number | null;
      readonly row: number;
      /** Where the slice begins, on every member. */
      readonly offsetBytes: number;
      readonly lengthBytes: number;
    }
  | {
      readonly op: 'compare';
      readonly first: number;
      readonly other: number;
      readonly firstPlace: Place;
      readonly otherPlace: Place;
      readonly lengthBytes: number;
    };

export interface Plan {
  readonly requestBytes: number;
  readonly scratchBytes: number;
  readonly reads: readonly Transfer[];
  readonly compute: readonly Compute[];
  readonly inspect: readonly Inspect[];
  readonly writes: readonly Transfer[];
}

/** What cannot be done: these array ranges have lost more than redundancy covers. */
export interface Lost {
  readonly lost: readonly { readonly offsetBytes: number; readonly lengthBytes: number }[];
}

/**
 * What the planner may rely on. `recovering` members take every write, but hold true content only below the frontier;
 * `missing` ones are not touched.
 */
export type MemberHealth =
  | { readonly state: 'in_sync' }
  | { readonly state: 'recovering'; readonly recoveredBytes: number }
  | { readonly state: 'missing' };

/** A part of a member that cannot be read just now though the member works: a medium error, a bad-block entry. */
export interface ErasedRange {
  readonly member: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface Health {
  readonly members: readonly MemberHealth[];
  readonly erased: readonly ErasedRange[];
}
