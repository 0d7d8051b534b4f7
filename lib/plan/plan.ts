/**
 * A plan is what an array does for one request: reads, then arithmetic (or, in a check, comparisons), then writes, over (member, offset, address).
 * It is data: it can be printed, compared, executed by something that knows no RAID, and executed on names instead of
 * bytes, which is how the laws in test/plan are proved.
 *
 * Addresses are virtual. [0, requestBytes) is the caller's buffer: where a read leaves its answer, and where a write
 * finds its bytes. From requestBytes on it is scratch memory that belongs to the plan alone. The engine adds
 * the two real bases. Scratch addresses less requestBytes are multiples of 64, and of 4096 for 4096 bytes or more, so that
 * a page-aligned base makes them fit for SIMD and O_DIRECT.
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
  /** Solves for what `erasure` names. There, null is an answer that is not wanted. */
  | {
      readonly op: 'recover';
      readonly data: readonly (number | null)[];
      readonly p: number | null;
      readonly q: number | null;
      readonly erasure: Erasure;
      readonly lengthBytes: number;
    };

/** A copy that is compared: where it is, and where it has been read to. */
export interface Copy extends Place {
  readonly address: number;
}

/** Whose chunks a row consists of, in Q order, and room for two slices more: what it takes to say which one is wrong. */
export interface Holders {
  readonly data: readonly (number | null)[];
  readonly p: number;
  readonly q: number;
  readonly deltaP: number;
  readonly deltaQ: number;
}

/**
 * What a check looks at; a difference is reported, never acted on. `verify` holds one row's slice against its parity;
 * `compare` holds copies against each other, of which there are at least two.
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
      /** Null where a chunk was not read but computed, or there is no Q: a difference is then nobody's in particular. */
      readonly holders: Holders | null;
    }
  | { readonly op: 'compare'; readonly copies: readonly Copy[]; readonly lengthBytes: number };

/**
 * What a partial parity log has to hold before the writes of a row begin: so many bytes of each of `chunkCount` data
 * chunks that follow each other, the first at `arrayOffsetBytes`, all in the same columns of a row. With the XOR of the
 * row's other data in these columns, parity can be made again from whatever the writes have left behind.
 */
export interface LogEntry {
  readonly parityMember: number;
  readonly arrayOffsetBytes: number;
  readonly lengthBytes: number;
  readonly chunkCount: number;
  /** Of that XOR; null where the row has no other data. */
  readonly address: number | null;
}

export interface Plan {
  readonly requestBytes: number;
  readonly scratchBytes: number;
  readonly reads: readonly Transfer[];
  readonly compute: readonly Compute[];
  readonly inspect: readonly Inspect[];
  /** Made durable after the arithmetic and before the writes. Absent where there is nothing to log. */
  readonly log?: readonly LogEntry[];
  readonly writes: readonly Transfer[];
}

export interface ArrayRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/**
 * What cannot be done: these array ranges have lost more than redundancy covers. In order, without overlaps,
 * neighbours joined. A request is refused as a whole, but only what is named stands in its way.
 */
export interface Lost {
  readonly lost: readonly ArrayRange[];
}

export function isLost(answer: Plan | Lost): answer is Lost {
  return 'lost' in answer;
}

/**
 * What the planner may rely on. `recovering` members take every write, but hold true content only below the frontier;
 * `missing` ones are not touched.
 */
export type MemberHealth =
  | { readonly state: 'in_sync' }
  | { readonly state: 'recovering'; readonly recoveredBytes: number }
  | { readonly state: 'missing' };

/**
 * A part of a member that cannot be read though the member works: a medium error, a bad-block entry. It stays so
 * until a plan has written all of it.
 */
export interface ErasedRange {
  readonly member: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface Health {
  readonly members: readonly MemberHealth[];
  /**
   * Slots whose writes also go to a replacement, which is on its way to become the member. Plans do not speak of it:
   * whoever carries out the writes adds them (`replacementOf`).
   */
  readonly replacing?: readonly number[];
  readonly erased: readonly ErasedRange[];
  /**
   * Some of these the next life would not hear of: no list on disk has them. What says then that parity is right (a log
   * that moves on) has to say that it is not.
   */
  readonly hidesDamage?: true;
  /**
   * The sync position (see `syncBytes`) from which a resync has still to pass: there, copies may differ and parity
   * may not match. Reads then keep to the first readable copy, so that they agree with each other and
   * with what the resync will keep; writes prefer rcw, which leaves a right parity behind whatever was there (md does
   * both). Absent: everything is in sync.
   */
  readonly unsyncedFromBytes?: number;
}

/** The number under which the replacement of a slot is known beside the members. */
export function replacementOf(memberCount: number, slot: number): number {
  return memberCount + slot;
}
