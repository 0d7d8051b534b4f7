/**
 * The partial parity log at work: what is logged is durable before the first write of its rows (I8), and a header takes
 * the place of the one before it only when everything that one covers is durable. md/ppl.ts has the format, and what it
 * means after a crash.
 *
 *   [members that the last header here owes] → header and partial parity → [this member] → data and parity
 *
 * What stands in brackets is a flush. A log *owes* a member from the moment something is going to be written there under
 * its newest header until that member has been flushed. A flush of a log's member pays what all other logs owe it: so in
 * a steady stream of writes there are two flushes each, and not one for every member.
 *
 * The log of a slot is where its member is, and where its replacement is, so that these can change places.
 *
 * Where several jobs are under way (the event loop) they log in rounds: all that have come share the headers and the
 * flushes, and the next round begins when the last of them has written its rows. With lanes there is one lane, since two
 * that write to one log would wait for each other's rows anyway.
 *
 * The state is in shared memory, where it outlives a worker. While a log is being written its position says that it is
 * to begin a new lap: so whoever takes over never writes over half a header.
 */
import { assert, RaidError } from '../errors.ts';
import {
  encodePplHeader,
  PPL_ENTRIES_MAX,
  PPL_HEADER_BYTES,
  type PplEntry,
  pplChecksumOf,
  RESYNC_DUE,
} from '../md/ppl.ts';
import type { Health, LogEntry, Plan, Transfer } from '../plan/plan.ts';
import { KIB, SECTOR_BYTES } from '../units.ts';
import type { Batch, Failure, Flush, LogRequest } from './batch.ts';
import { LOG_ADDRESS, LOG_MEMBERS, type MemoryMap } from './memory.ts';
import { isWithout } from './run.ts';

export interface LogShape {
  /** Of the array: what its headers begin with. */
  readonly signature: number;
  /** What each member has for its log. */
  readonly areaBytes: number;
}

/** The number under which the log of a member, or of a replacement, is known beside them. */
export function logOf(memberCount: number, member: number): number {
  return 2 * memberCount + member;
}

/** Lap header, header, something to log. */
export const LOG_AREA_MIN = 16 * KIB;

const HEADERS_AT = 64 * KIB;
const GENERATION = 0;
const SLOTS = 16;
const SLOT_WORDS = 8;
/** 0: the next header begins a lap. */
const POSITION = 0;
const FLAGS = 1;
const OWED = 2;
const MARKED = 1;
const MIRRORED = 2;
/** Addresses below this are zeros for ever. */
const ZEROS_BYTES = 64 * KIB;

type Steps<Result> = Generator<Batch | Flush, Result, readonly Failure[] | null>;

export class PartialParityLog {
  readonly #shape: LogShape;
  readonly #memberCount: number;
  readonly #bytes: Uint8Array;
  readonly #words: Int32Array;

  constructor(map: MemoryMap, shape: LogShape, memberCount: number) {
    assert(memberCount <= LOG_MEMBERS, 'arrays with a partial parity log have at most 64 members');
    this.#shape = shape;
    this.#memberCount = memberCount;
    this.#bytes = new Uint8Array(map.memory.buffer);
    this.#words = new Int32Array(map.memory.buffer, LOG_ADDRESS, SLOTS + SLOT_WORDS * LOG_MEMBERS);
  }

  /** Every area holds an empty header of generation 1, and zeros after it. */
  begin(): void {
    this.#words[GENERATION] = 1;
    for (let slot = 0; slot < this.#memberCount; slot += 1) this.#set(slot, POSITION, PPL_HEADER_BYTES);
  }

  /** A slot has another member, whose area is empty. Only while nothing of that slot is logged. */
  restart(slot: number): void {
    this.#set(slot, POSITION, 0);
  }

  /** Whether all of this fits behind one header in each log. */
  fits(entries: readonly Pick<LogEntry, 'parityMember' | 'lengthBytes' | 'address'>[]): boolean {
    const count = new Map<number, number>();
    const bytes = new Map<number, number>();
    for (const { parityMember, lengthBytes, address } of entries) {
      count.set(parityMember, (count.get(parityMember) ?? 0) + 1);
      bytes.set(parityMember, (bytes.get(parityMember) ?? 0) + (address === null ? 0 : lengthBytes));
    }
    return (
      // One for RESYNC_DUE.
      [...count.values()].every((entry) => entry < PPL_ENTRIES_MAX) &&
      [...bytes.values()].every((partial) => PPL_HEADER_BYTES + partial <= this.#roomBytes)
    );
  }

  /** The request that goes with a plan; its addresses are real ones. */
  requestOf(plan: Plan, at: (address: number) => number, touched: readonly Transfer[]): LogRequest {
    const entries = (plan.log ?? []).map((entry) => ({
      ...entry,
      address: entry.address === null ? null : at(entry.address),
    }));
    return { direction: 'log', entries, touched: [...new Set(touched.map(({ member }) => member))] };
  }

  /**
   * When it returns null, the rows of these requests may be written. Otherwise nothing may be: the members named have
   * failed, by their own numbers.
   */
  *write(requests: readonly LogRequest[], health: Health): Steps<readonly Failure[] | null> {
    const isMarked = health.unsyncedFromBytes !== undefined || health.hidesDamage === true;
    const entries = new Map<number, LogEntry[]>();
    for (const entry of requests.flatMap((request) => request.entries)) {
      const list = entries.get(entry.parityMember) ?? [];
      entries.set(entry.parityMember, [...list, entry]);
    }
    const owed = new Set<number>();
    for (const slot of entries.keys()) for (const member of this.#owedBy(slot)) owed.add(member);
    // No resync is due any more: what it has written is made durable, and then no log says that one is.
    for (let slot = 0; !isMarked && slot < this.#memberCount; slot += 1) {
      if ((this.#get(slot, FLAGS) & MARKED) === 0 || isWithout(health, slot)) continue;
      if (!entries.has(slot)) entries.set(slot, []);
      for (let member = 0; member < 2 * this.#memberCount; member += 1) owed.add(member);
    }
    const paying = [...owed].filter((member) => !isWithout(health, member));
    const unpaid = yield* this.#flush(paying);
    if (unpaid !== null) return unpaid;

    const replacing = new Set(health.replacing ?? []);
    const slots = [...entries.keys()];
    const laps = slots.filter((slot) => {
      const position = this.#get(slot, POSITION);
      const isMirrored = (this.#get(slot, FLAGS) & MIRRORED) !== 0;
      const needed = this.#lengthOf(entries.get(slot) ?? []);
      return (
        position === 0 ||
        isMirrored !== replacing.has(slot) ||
        position + needed > PPL_HEADER_BYTES + this.#roomBytes
      );
    });
    for (const slot of slots) if (laps.includes(slot)) this.#set(slot, POSITION, 0);
    const lapped = yield* this.#beginLaps(laps, isMarked, replacing);
    if (lapped !== null) return lapped;

    const transfers: Transfer[] = [];
    const positions = new Map<number, number>();
    for (const [slot, list] of entries) {
      const position = this.#get(slot, POSITION);
      positions.set(slot, position + this.#lengthOf(list));
      this.#set(slot, POSITION, 0);
      let at = position + PPL_HEADER_BYTES;
      transfers.push(this.#header(slot, position, list, isMarked));
      for (const { lengthBytes, address } of list) {
        if (address === null) continue;
        transfers.push({ member: slot, offsetBytes: at, lengthBytes, address });
        at += lengthBytes;
      }
    }
    const failures = yield* this.#durably(transfers, replacing);
    if (failures !== null) return failures;
    for (const [slot, position] of positions) {
      this.#set(slot, POSITION, position);
      this.#set(slot, FLAGS, (isMarked ? MARKED : 0) | (replacing.has(slot) ? MIRRORED : 0));
    }
    for (const { entries: logged, touched } of requests) {
      for (const slot of new Set(logged.map(({ parityMember }) => parityMember))) this.#owe(slot, touched);
    }
    return null;
  }

  /** An empty header at the start of each, and then zeros up to the end. */
  *#beginLaps(
    slots: readonly number[],
    isMarked: boolean,
    replacing: ReadonlySet<number>,
  ): Steps<readonly Failure[] | null> {
    if (slots.length === 0) return null;
    const headers = slots.map((slot) => this.#header(slot, 0, [], isMarked));
    const failures = yield* this.#durably(headers, replacing);
    if (failures !== null) return failures;
    const zeros: Transfer[] = [];
    for (const member of slots) {
      for (let at = PPL_HEADER_BYTES; at < this.#shape.areaBytes; at += ZEROS_BYTES) {
        const lengthBytes = Math.min(ZEROS_BYTES, this.#shape.areaBytes - at);
        zeros.push({ member, offsetBytes: at, lengthBytes, address: 0 });
      }
    }
    const unzeroed = yield* this.#durably(zeros, replacing);
    if (unzeroed !== null) return unzeroed;
    for (const slot of slots) this.#set(slot, POSITION, PPL_HEADER_BYTES);
    return null;
  }

  /** Puts together a header, in memory of its own; `member` of the transfer is the slot. */
  #header(slot: number, offsetBytes: number, list: readonly LogEntry[], isMarked: boolean): Transfer {
    const entries = list.map((entry): PplEntry => {
      const { arrayOffsetBytes, lengthBytes, chunkCount, parityMember, address } = entry;
      const parityBytes = address === null ? 0 : lengthBytes;
      const bytes = this.#bytes.subarray(address ?? 0, (address ?? 0) + parityBytes);
      return {
        dataSector: arrayOffsetBytes / SECTOR_BYTES,
        parityBytes,
        dataBytes: lengthBytes * chunkCount,
        parityMember,
        checksum: pplChecksumOf(bytes),
      };
    });
    const header = encodePplHeader({
      signature: this.#shape.signature,
      generation: this.#nextGeneration(),
      entries: isMarked ? [RESYNC_DUE, ...entries] : entries,
    });
    const address = LOG_ADDRESS + HEADERS_AT + slot * PPL_HEADER_BYTES;
    this.#bytes.set(header, address);
    return { member: slot, offsetBytes, lengthBytes: PPL_HEADER_BYTES, address };
  }

  /** Transfers name slots: they go to the logs of the members there, and of replacements, which are flushed then. */
  *#durably(
    transfers: readonly Transfer[],
    replacing: ReadonlySet<number>,
  ): Steps<readonly Failure[] | null> {
    const count = this.#memberCount;
    const mirrored = transfers.flatMap((transfer) => {
      const { member } = transfer;
      const own = { ...transfer, member: logOf(count, member) };
      return replacing.has(member) ? [own, { ...own, member: logOf(count, count + member) }] : [own];
    });
    const plain = { requestBytes: 0, requestAddress: 0, scratchAddress: 0 };
    const failures = yield { direction: 'write', transfers: mirrored, ...plain };
    if (failures !== null) {
      return failures.map(({ transfer, error }) => ({
        transfer: { ...transfer, member: transfer.member - 2 * count },
        error: new RaidError(
          error.code,
          `the log of member ${transfer.member - 2 * count}: ${error.message}`,
          {
            cause: error,
          },
        ),
      }));
    }
    return yield* this.#flush([...new Set(mirrored.map(({ member }) => member - 2 * count))]);
  }

  *#flush(members: readonly number[]): Steps<readonly Failure[] | null> {
    if (members.length === 0) return null;
    const failures = yield { direction: 'flush', members };
    if (failures !== null) return failures;
    for (let slot = 0; slot < this.#memberCount; slot += 1) {
      for (const member of members) {
        const word = OWED + (member >> 5);
        this.#set(slot, word, this.#get(slot, word) & ~(1 << (member & 31)));
      }
    }
    return null;
  }

  #owe(slot: number, members: readonly number[]): void {
    for (const member of members) {
      const word = OWED + (member >> 5);
      this.#set(slot, word, this.#get(slot, word) | (1 << (member & 31)));
    }
  }

  #owedBy(slot: number): readonly number[] {
    const members: number[] = [];
    for (let member = 0; member < 2 * this.#memberCount; member += 1) {
      if ((this.#get(slot, OWED + (member >> 5)) >> (member & 31)) & 1) members.push(member);
    }
    return members;
  }

  #lengthOf(entries: readonly LogEntry[]): number {
    return entries.reduce(
      (sum, { lengthBytes, address }) => sum + (address === null ? 0 : lengthBytes),
      PPL_HEADER_BYTES,
    );
  }

  /** After the header that begins a lap. Linux 6.1 loses its way in what ends within the last 4 KiB. */
  get #roomBytes(): number {
    return this.#shape.areaBytes - 2 * PPL_HEADER_BYTES;
  }

  #nextGeneration(): number {
    const generation = this.generation + 1;
    this.#words[GENERATION] = generation % 2 ** 32;
    this.#words[GENERATION + 1] = Math.floor(generation / 2 ** 32);
    return generation;
  }

  get generation(): number {
    return ((this.#words[GENERATION] ?? 0) >>> 0) + (this.#words[GENERATION + 1] ?? 0) * 2 ** 32;
  }

  #get(slot: number, word: number): number {
    return this.#words[SLOTS + slot * SLOT_WORDS + word] ?? 0;
  }

  #set(slot: number, word: number, value: number): void {
    this.#words[SLOTS + slot * SLOT_WORDS + word] = value;
  }
}
