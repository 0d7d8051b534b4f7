/**
 * What a lane and the main thread share besides data: two rings and a commit record, in the lane's control block.
 *
 * Both rings have one producer and one consumer, so an index each is all the locking there is: the producer writes a
 * record, then publishes it by storing `head`; the consumer reads it, then frees the slot by storing `tail`. Indices
 * run freely (mod 2^32) and are masked on use. The lane stores the submission ring's `tail` only when a job is *done*:
 * after the death of a worker everything from `tail` on has not been completed.
 *
 * The commit record makes the death of a worker harmless. A parity write changes several members; a worker that dies
 * between two of them leaves a row whose parity is wrong, and rmw would then carry the error on. So before the first
 * write of a plan the lane notes here what it is going to write (member, place, address: the data itself is in
 * shared memory and outlives the worker), and whoever takes over writes all of it again. That is idempotent, and it
 * costs some stores in memory.
 *
 *   word 0   submission head      word 16  submission tail       (a cache line each)
 *   word 32  completion head      word 48  completion tail
 *   word 64  sleeping (1: the lane waits on this word)    word 80  armed (1: main wants a doorbell)
 *   word 96  commit count (0: nothing being written)
 *   then     submissions (16 words each), completions (4), commit entries (5), excluded members and suspects (a bit
 *            each), the kernels' pointer table
 *
 * The excluded members are those whom the lane has met failing and of whom the main thread may not know yet. What has
 * been written since lacks them, so whoever takes over must lack them too, and must say so. Every thread has such
 * notes, the main thread in the block after the last lane's; they read each other's before they exclude anybody.
 */
import { assert } from '../errors.ts';
import { CONTROL_BYTES, controlAddress, type MemoryMap } from './memory.ts';

export const RING_SLOTS = 512;
/**
 * So many jobs may be with a lane. One less than the ring holds: a lane publishes that a job is done before it frees the
 * job's slot, and in between, main may already have heard of it and submit the next.
 */
export const JOBS_PER_LANE = RING_SLOTS - 1;
export const COMMIT_SLOTS = 1024;

const SUBMISSION_WORDS = 16;
const COMPLETION_WORDS = 4;
const COMMIT_WORDS = 5;

const SUBMIT_HEAD = 0;
const SUBMIT_TAIL = 16;
const COMPLETE_HEAD = 32;
const COMPLETE_TAIL = 48;
const SLEEPING = 64;
const ARMED = 80;
const COMMIT_COUNT = 96;
const SUBMISSIONS = 128;
const COMPLETIONS = SUBMISSIONS + RING_SLOTS * SUBMISSION_WORDS;
const COMMITS = COMPLETIONS + RING_SLOTS * COMPLETION_WORDS;
const EXCLUDED = COMMITS + COMMIT_SLOTS * COMMIT_WORDS;
/** 4096 numbers: more than md knows members, and replacements of them. */
const EXCLUDED_WORDS = 128;
const SUSPECTS = EXCLUDED + EXCLUDED_WORDS;
const TABLE = SUSPECTS + EXCLUDED_WORDS;

/** What remains of the control block is the kernels' pointer table. */
export const TABLE_BYTES = CONTROL_BYTES - TABLE * 4;

export function tableAddress(lane: number): number {
  return controlAddress(lane) + TABLE * 4;
}

/** `control`: a message waits on the lane's port, and takes effect in its place in the order of jobs. */
export const jobOps = ['control', 'read', 'write', 'recover', 'replace', 'check', 'repair'] as const;
export type JobOp = (typeof jobOps)[number];

export interface Job {
  readonly op: JobOp;
  /** On the array; on the member for `recover` and `replace`; a sync position for `check` and `repair`. */
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** The request's buffer; 0 for jobs without one. */
  readonly address: number;
  readonly member: number;
}

export interface CommitEntry {
  readonly member: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly address: number;
}

/** How a job ended. With `report`, what else there is to say comes as a message on the lane's port. */
export const DONE = 0;
export const DONE_WITH_REPORT = 1;

export class LaneControl {
  readonly #words: Int32Array;

  constructor(map: MemoryMap, lane: number) {
    this.#words = new Int32Array(map.memory.buffer, controlAddress(lane), CONTROL_BYTES / 4);
  }

  /** For the successor of a lane that died: both rings empty, nothing to commit, nobody excluded. */
  reset(): void {
    this.#words.fill(0, 0, SUBMISSIONS);
    this.noteExcluded([]);
  }

  // Submissions: main produces, the lane consumes.

  trySubmit(id: number, job: Job): boolean {
    const words = this.#words;
    const head = Atomics.load(words, SUBMIT_HEAD);
    if (((head - Atomics.load(words, SUBMIT_TAIL)) | 0) >= RING_SLOTS) return false;
    const at = SUBMISSIONS + (head & (RING_SLOTS - 1)) * SUBMISSION_WORDS;
    words[at] = id;
    words[at + 1] = jobOps.indexOf(job.op);
    words[at + 2] = job.offsetBytes % 2 ** 32;
    words[at + 3] = Math.floor(job.offsetBytes / 2 ** 32);
    words[at + 4] = job.lengthBytes % 2 ** 32;
    words[at + 5] = Math.floor(job.lengthBytes / 2 ** 32);
    words[at + 6] = job.address;
    words[at + 7] = job.member;
    Atomics.store(words, SUBMIT_HEAD, (head + 1) | 0);
    return true;
  }

  get isAsleep(): boolean {
    return Atomics.load(this.#words, SLEEPING) === 1;
  }

  /** Wakes the lane if it sleeps. One call for a batch of submissions is enough. */
  wake(): void {
    // Looked at before it is exchanged: nearly always the lane is awake, and a look does not take its cache line.
    if (!this.isAsleep) return;
    if (Atomics.exchange(this.#words, SLEEPING, 0) === 1) Atomics.notify(this.#words, SLEEPING);
  }

  hasSubmissions(): boolean {
    return Atomics.load(this.#words, SUBMIT_HEAD) !== Atomics.load(this.#words, SUBMIT_TAIL);
  }

  /** The oldest job, which stays in the ring until `finish`. */
  peek(): { readonly id: number; readonly job: Job } {
    const words = this.#words;
    const at = SUBMISSIONS + (Atomics.load(words, SUBMIT_TAIL) & (RING_SLOTS - 1)) * SUBMISSION_WORDS;
    const op = jobOps[words[at + 1] ?? 0];
    assert(op !== undefined, 'a submission names a job that exists');
    return {
      id: words[at] ?? 0,
      job: {
        op,
        offsetBytes: unsigned(words[at + 2]) + unsigned(words[at + 3]) * 2 ** 32,
        lengthBytes: unsigned(words[at + 4]) + unsigned(words[at + 5]) * 2 ** 32,
        address: unsigned(words[at + 6]),
        member: words[at + 7] ?? 0,
      },
    };
  }

  /** Waits until there is something to do: first by looking, then asleep. */
  waitForSubmission(spins: number): void {
    const words = this.#words;
    for (let spin = 0; spin < spins; spin += 1) if (this.hasSubmissions()) return;
    for (;;) {
      // Announce, then look once more: a submission published in between finds the announcement and clears it.
      Atomics.store(words, SLEEPING, 1);
      if (this.hasSubmissions()) break;
      Atomics.wait(words, SLEEPING, 1);
    }
    Atomics.store(words, SLEEPING, 0);
  }

  // Completions: the lane produces, main consumes. The ring is as long as the submission ring: it cannot overflow.

  finish(id: number, status: number): void {
    const words = this.#words;
    const head = Atomics.load(words, COMPLETE_HEAD);
    const at = COMPLETIONS + (head & (RING_SLOTS - 1)) * COMPLETION_WORDS;
    words[at] = id;
    words[at + 1] = status;
    Atomics.store(words, COMPLETE_HEAD, (head + 1) | 0);
    Atomics.store(words, SUBMIT_TAIL, (Atomics.load(words, SUBMIT_TAIL) + 1) | 0);
  }

  /** Calls `each` for every completion there is; returns how many. */
  drain(each: (id: number, status: number) => void): number {
    const words = this.#words;
    let tail = Atomics.load(words, COMPLETE_TAIL);
    const head = Atomics.load(words, COMPLETE_HEAD);
    const count = (head - tail) | 0;
    for (; tail !== head; tail = (tail + 1) | 0) {
      const at = COMPLETIONS + (tail & (RING_SLOTS - 1)) * COMPLETION_WORDS;
      const id = words[at] ?? 0;
      const status = words[at + 1] ?? 0;
      Atomics.store(words, COMPLETE_TAIL, (tail + 1) | 0);
      each(id, status);
    }
    return count;
  }

  /** Asks the lane for a doorbell with its next completion. */
  arm(): void {
    Atomics.store(this.#words, ARMED, 1);
  }

  disarm(): void {
    Atomics.store(this.#words, ARMED, 0);
  }

  hasCompletions(): boolean {
    return Atomics.load(this.#words, COMPLETE_HEAD) !== Atomics.load(this.#words, COMPLETE_TAIL);
  }

  /** True once for every `arm`: whoever gets it rings. */
  takeDoorbell(): boolean {
    return Atomics.load(this.#words, ARMED) === 1 && Atomics.exchange(this.#words, ARMED, 0) === 1;
  }

  // The commit record.

  beginCommit(entries: Iterable<CommitEntry>): void {
    const words = this.#words;
    let count = 0;
    for (const entry of entries) {
      assert(count < COMMIT_SLOTS, 'a plan writes no more places than a commit record holds');
      const at = COMMITS + count * COMMIT_WORDS;
      words[at] = entry.member;
      words[at + 1] = entry.offsetBytes % 2 ** 32;
      words[at + 2] = Math.floor(entry.offsetBytes / 2 ** 32);
      words[at + 3] = entry.lengthBytes;
      words[at + 4] = entry.address;
      count += 1;
    }
    Atomics.store(words, COMMIT_COUNT, count);
  }

  endCommit(): void {
    Atomics.store(this.#words, COMMIT_COUNT, 0);
  }

  unfinishedCommit(): readonly CommitEntry[] {
    const words = this.#words;
    const entries: CommitEntry[] = [];
    for (let index = 0; index < Atomics.load(words, COMMIT_COUNT); index += 1) {
      const at = COMMITS + index * COMMIT_WORDS;
      entries.push({
        member: words[at] ?? 0,
        offsetBytes: unsigned(words[at + 1]) + unsigned(words[at + 2]) * 2 ** 32,
        lengthBytes: unsigned(words[at + 3]),
        address: unsigned(words[at + 4]),
      });
    }
    return entries;
  }

  // Excluded members.

  noteExcluded(excluded: Iterable<number>, suspects: Iterable<number> = []): void {
    // Suspects first: one that becomes excluded is never missing from both.
    this.#note(SUSPECTS, suspects, excluded);
    this.#note(EXCLUDED, excluded, []);
    this.#note(SUSPECTS, suspects, []);
  }

  isNoted(member: number): boolean {
    return this.#has(EXCLUDED, member) || this.#has(SUSPECTS, member);
  }

  /** Those whom later jobs did without first, then those of whom nobody had decided yet. */
  excluded(): readonly number[] {
    // Suspects first, as they are written: one that becomes excluded meanwhile is in one of the two.
    const suspects = this.#noted(SUSPECTS);
    const excluded = this.#noted(EXCLUDED);
    return [...excluded, ...suspects.filter((member) => !excluded.includes(member))];
  }

  #noted(at: number): readonly number[] {
    const members: number[] = [];
    for (let word = 0; word < EXCLUDED_WORDS; word += 1) {
      for (let bits = Atomics.load(this.#words, at + word); bits !== 0; bits &= bits - 1)
        members.push(word * 32 + 31 - Math.clz32(bits & -bits));
    }
    return members;
  }

  #has(at: number, member: number): boolean {
    return ((Atomics.load(this.#words, at + (member >> 5)) >> (member & 31)) & 1) === 1;
  }

  #note(at: number, ...members: readonly Iterable<number>[]): void {
    const noted = new Int32Array(EXCLUDED_WORDS);
    for (const each of members) {
      for (const member of each) {
        assert(member < EXCLUDED_WORDS * 32, 'there is a bit for every member that md can have');
        noted[member >> 5] = (noted[member >> 5] ?? 0) | (1 << (member & 31));
      }
    }
    for (let word = 0; word < EXCLUDED_WORDS; word += 1)
      Atomics.store(this.#words, at + word, noted[word] as number);
  }
}

/** The excluded members of one thread, and what the others say: `slot` is a lane, or the lane count for main. */
export class ExclusionNotes {
  readonly #own: LaneControl;
  readonly #others: readonly LaneControl[];

  constructor(map: MemoryMap, slot: number) {
    const all = Array.from({ length: map.laneCount + 1 }, (_, each) => new LaneControl(map, each));
    this.#own = all[slot] ?? new LaneControl(map, slot);
    this.#others = all.filter((_, each) => each !== slot);
  }

  note(excluded: Iterable<number>, suspects: Iterable<number>): void {
    this.#own.noteExcluded(excluded, suspects);
  }

  isNotedElsewhere(member: number): boolean {
    return this.#others.some((other) => other.isNoted(member));
  }
}

function unsigned(word: number | undefined): number {
  return (word ?? 0) >>> 0;
}
