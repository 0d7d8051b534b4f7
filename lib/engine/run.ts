/**
 * How a job is carried out, written once: a generator that yields batches of I/O and is told which transfers failed.
 * A lane drives it synchronously, the event loop drives it with promises, the simulator with virtual time. Nothing here
 * waits, and nothing here knows which of them it is. A write of an array that is whole needs no more than gather, compute and
 * commit, and where I/O blocks it goes straight through them (`writeNow`), until something is not as it should be.
 *
 *   gather    read what the plan needs. A transfer that fails is looked at page by page, and a page that fails sector by
 *             sector; sectors that stay unreadable are *erased*, and the plan is made anew without them. Each round
 *             costs a stripe one unit of its redundancy, so there are at most as many rounds as members.
 *   compute   in memory.
 *   commit    write everything the plan writes. All writes are tried. One that fails excludes its member, here
 *             and now, for every later job of this lane; the others have been written, so the row is what it should be
 *             with that member missing, and nothing needs to be read or planned again.
 *   heal      pages that were erased but could be recomputed are rewritten, and read back.
 *
 * Exclusion is local first: the next job on these stripes must not trust the member. It goes with the next report of
 * this thread, whichever job's that is, since any job that ends from now on may rely on it; and whoever gets the
 * report holds back acknowledgements until the array has recorded it (I5).
 *
 * A member that did not take a write, but whom the array cannot do without, stays. Its part of the row is then old and
 * the parity new: whatever is computed from both is garbage, in places that nobody has written. So what it did not take
 * is *damaged*, erased from now on for every job, and goes with the report too; the array decides how long it lasts.
 * Of copies, some are new and others not, and reads would take back what they have shown (I3): those that are unlike the one that
 * stays are damaged, whoever has the newer bytes (plan/set-apart.ts).
 *
 * A member that ends before its data does (SHORT_READ) is excluded like one that is gone: what is missing cannot be put
 * back piece by piece, since a file that is written beyond its end reads as zeros up to there, without an error.
 *
 * A job whose plan needs more scratch, or more commit entries, than there is, is cut in two and each half carried out
 * by itself: at a stripe boundary if there is one inside, else at a chunk boundary, else in the middle.
 */
import { assert, InvariantViolation, type LostRange, RaidError, unreachable } from '../errors.ts';
import type { CopiesLayout, Layout } from '../layout/layout.ts';
import { survives } from '../layout/survives.ts';
import type { Kernels } from '../parity/kernels.ts';
import { oddCopiesOf, suspectOf } from '../parity/suspect.ts';
import type { CompiledHealth } from '../plan/health.ts';
import { compileHealth } from '../plan/health.ts';
import { lostWithout } from '../plan/last-copy.ts';
import {
  type Compute,
  type ErasedRange,
  type Health,
  type Inspect,
  isLost,
  type Lost,
  type Plan,
  replacementOf,
  type Transfer,
} from '../plan/plan.ts';
import { planCheck, planRead, planRecover, planRepair, planWrite } from '../plan/planner.ts';
import { setApart } from '../plan/set-apart.ts';
import { KIB, MIB, roundDown, roundUp, SECTOR_BYTES } from '../units.ts';
import { addressIn, type Batch, type Failure, type Request } from './batch.ts';
import type { PartialParityLog } from './log.ts';
import { PAGE_BYTES } from './memory.ts';
import { COMMIT_SLOTS, type Job } from './ring.ts';

export interface Exclusion {
  /** A slot, or `replacementOf` one. */
  readonly member: number;
  readonly error: RaidError;
}

/** A part of a member that could not be read, was recomputed and rewritten. */
export interface Correction {
  readonly member: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** Redundancy that does not agree with the data: which stripe, and the members' places that disagree. */
export interface Mismatch {
  /** On the member named, or on every member of the row when `member` is null: parity cannot say who is wrong. */
  readonly member: number | null;
  /**
   * What is wrong on the member named, as far as that can be told (parity/suspect.ts): `redundancy`, which a repair puts
   * right, or `data`, which a repair takes for right, be it the first of several copies. Null for a copy that is
   * unlike the first one, when nobody can say which of them is wrong.
   */
  readonly wrong: 'data' | 'redundancy' | null;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** What there is to say about a job besides that it is done. */
export interface Report {
  readonly error: RaidError | null;
  /** It is not done: it is to be submitted once more when all exclusions are on record. */
  readonly again: boolean;
  readonly exclusions: readonly Exclusion[];
  readonly corrections: readonly Correction[];
  readonly damaged: readonly ErasedRange[];
  readonly mismatches: readonly Mismatch[];
  /** All of them; the list above is cut off at MISMATCHES_LISTED. */
  readonly mismatchCount: number;
}

/** One job lists so many mismatches; a job covers a few MiB, and beyond this a list helps nobody. */
const MISMATCHES_LISTED = 1024;

/**
 * What walks the whole array reads all members' shares of a place and looks at them once more: in slices of so much in
 * all, that second look finds them in a cache. Larger slices make fewer system calls: a recovery of 4 x 1 GiB on tmpfs by
 * one lane did 1.35 GB/s with 256 KiB, 1.43 with 512 KiB, 1.50 with 1 MiB and 1.57 with 2 MiB (L2 of 1 MiB, L3 of 32 MiB).
 */
const CACHE_BYTES = 2 * MIB;

/** How much of each member a check, repair or recovery looks at in one go. */
export function walkSliceBytes(layout: Layout): number {
  return Math.max(PAGE_BYTES, roundDown(CACHE_BYTES / layout.memberCount, PAGE_BYTES));
}

/** The piece in which a repair rewrites what does not agree. */
const REPAIR_BYTES = 64 * KIB;

export const nothingToReport: Report = {
  error: null,
  again: false,
  exclusions: [],
  corrections: [],
  damaged: [],
  mismatches: [],
  mismatchCount: 0,
};

export type Steps<Result> = Generator<Request, Result, readonly Failure[] | null>;

/** Where threads tell each other whom they do without. */
export interface Noticeboard {
  /** Replaces what this thread has said before. `suspects`: those of whom it has not decided yet. */
  note(excluded: Iterable<number>, suspects: Iterable<number>): void;
  /** Whether another thread has said so of this member. */
  isNotedElsewhere(member: number): boolean;
}

/** For whoever is alone. */
const nobodyElse: Noticeboard = { note: () => undefined, isNotedElsewhere: () => false };

/**
 * Who is healthy, as all runners of one thread see it: an exclusion by one holds for the next job of every other, and
 * until a health from outside confirms it. One that does not was made before its author knew.
 *
 * Two threads may want to exclude two members at the same moment, each of which could be missed, but not both. So a
 * thread first posts whom it is about to exclude, and only then looks at what the others have posted: whoever
 * is second sees the first, and refrains. If each sees the other, both refrain, and both members stay, with
 * the places that they did not take damaged. Notes are never taken down before a health that
 * says the same has been posted by its author.
 */
export class SharedHealth {
  readonly #layout: Layout;
  readonly #board: Noticeboard;
  readonly #unconfirmed = new Set<number>();
  /** Posted, and not decided about yet. */
  readonly #suspects = new Set<number>();
  #unreported: Exclusion[] = [];
  #damaged: ErasedRange[] = [];
  #unreportedDamage: ErasedRange[] = [];
  #compiled: CompiledHealth;

  constructor(layout: Layout, health: Health, board: Noticeboard = nobodyElse) {
    this.#layout = layout;
    this.#board = board;
    this.#compiled = compileHealth(layout, health);
  }

  get compiled(): CompiledHealth {
    return this.#compiled;
  }

  /** Whether this thread does without a member of which the health from outside does not say so yet. */
  get hasUnconfirmed(): boolean {
    return this.#unconfirmed.size > 0;
  }

  get hasUnreported(): boolean {
    return this.#unreported.length > 0 || this.#unreportedDamage.length > 0;
  }

  set(health: Health): void {
    for (const member of this.#unconfirmed) {
      if (isWithout(health, member)) this.#unconfirmed.delete(member);
    }
    for (const member of this.#suspects) if (isWithout(health, member)) this.#suspects.delete(member);
    this.#post();
    // What a member that is out had is on no list: it would be bad for ever, on whoever comes into its slot.
    this.#damaged = this.#damaged.filter(
      (range) => !isWithout(health, range.member) && !health.erased.some((other) => isSame(range, other)),
    );
    const known = this.#damaged.length === 0 ? health : withDamage(health, this.#damaged);
    this.#compiled = compileHealth(this.#layout, without(known, this.#unconfirmed));
  }

  /** Of a replacement too, which is for the array to know: nobody here reads from it. */
  damage(range: ErasedRange): void {
    this.#unreportedDamage.push(range);
    if (range.member >= this.#layout.memberCount) return;
    this.#damaged.push(range);
    this.#compiled = compileHealth(this.#layout, withDamage(this.#compiled.health, [range]));
  }

  /** Has failed a write, of which nobody has decided yet what it means: whoever takes over must do without it. */
  suspect(members: Iterable<number>): void {
    for (const member of members) this.#suspects.add(member);
    this.#post();
  }

  /** All suspects have been excluded or cannot be, but for these, whom the next health will be without. */
  settle(leaving: Iterable<number> = []): void {
    if (this.#suspects.size === 0) return;
    this.#suspects.clear();
    this.suspect(leaving);
  }

  /**
   * Whether no byte is lost without these members, whatever other threads exclude. If so they stay posted, and the caller
   * excludes them.
   */
  canMiss(members: readonly number[]): boolean {
    const { health } = this.#compiled;
    // A replacement is nobody's only copy. Nor is a member being recovered, but neither is it one that is missed.
    const copies = members.filter((member) => health.members[member]?.state === 'in_sync');
    if (copies.length === 0) return true;
    const posted = copies.filter((member) => !this.#suspects.has(member));
    this.suspect(posted);
    const isMissed = (other: number): boolean =>
      copies.includes(other) ||
      health.members[other]?.state !== 'in_sync' ||
      this.#board.isNotedElsewhere(other);
    if (survives(this.#layout, isMissed)) return true;
    for (const member of posted) this.#suspects.delete(member);
    this.#post();
    return false;
  }

  /** Whether something would be lost with this member, since it is bad on others, that can be had as long as it stays. */
  isLastWithout(member: number): boolean {
    return lostWithout(this.#layout, this.#compiled.health, [member]).length > 0;
  }

  /** Besides, who is out for another thread is missing, but for this one. */
  atWorst(member: number, erased: readonly ErasedRange[]): CompiledHealth {
    const { health } = this.#compiled;
    const members = health.members.map((each, other) =>
      other !== member && this.#board.isNotedElsewhere(other) ? { state: 'missing' as const } : each,
    );
    return compileHealth(this.#layout, { ...health, members, erased });
  }

  /** Of what a write has left unlike: see plan/set-apart.ts. */
  setApart(layout: CopiesLayout, refused: readonly ErasedRange[]): readonly ErasedRange[] {
    return setApart(layout, this.#compiled, refused, (member) => this.isInDoubt(member));
  }

  /** Whether another thread does without this member, or is about to. */
  isInDoubt(member: number): boolean {
    return this.#board.isNotedElsewhere(member);
  }

  exclude(exclusion: Exclusion): void {
    this.#unreported.push(exclusion);
    this.#unconfirmed.add(exclusion.member);
    this.#suspects.delete(exclusion.member);
    this.#post();
    this.#compiled = compileHealth(this.#layout, without(this.#compiled.health, this.#unconfirmed));
  }

  /** Each exclusion once: for the report of the job that ends now. */
  takeUnreported(): readonly Exclusion[] {
    const taken = this.#unreported;
    this.#unreported = [];
    return taken;
  }

  takeDamage(): readonly ErasedRange[] {
    const taken = this.#unreportedDamage;
    this.#unreportedDamage = [];
    return taken;
  }

  withErased(erased: readonly ErasedRange[]): CompiledHealth {
    const { health } = this.#compiled;
    return compileHealth(this.#layout, { ...health, erased: [...health.erased, ...erased] });
  }

  #post(): void {
    this.#board.note(this.#unconfirmed, this.#suspects);
  }
}

/** What nobody has heard of yet is on no list either. */
function withDamage(health: Health, damaged: readonly ErasedRange[]): Health {
  return { ...health, erased: [...health.erased, ...damaged], hidesDamage: true };
}

function isSame(a: ErasedRange, b: ErasedRange): boolean {
  return a.member === b.member && a.offsetBytes === b.offsetBytes && a.lengthBytes === b.lengthBytes;
}

/** Whether parity may be left unwritten: there is some to be recovered, and something that cannot be read. */
function isAnyBehind({ health: { members, erased } }: CompiledHealth): boolean {
  return erased.length > 0 && members.some(({ state }) => state === 'recovering');
}

/** A transfer in pieces that end where multiples of `unitBytes` on its member do. */
function cut(transfer: Transfer, unitBytes: number): readonly Transfer[] {
  const pieces: Transfer[] = [];
  const end = transfer.offsetBytes + transfer.lengthBytes;
  for (let at = transfer.offsetBytes; at < end; ) {
    const next = Math.min(end, roundDown(at, unitBytes) + unitBytes);
    const address = transfer.address + (at - transfer.offsetBytes);
    pieces.push({ member: transfer.member, offsetBytes: at, lengthBytes: next - at, address });
    at = next;
  }
  return pieces;
}

/** Where transfers of one member failed; neighbours become one place, so that they are rewritten in one write. */
function placesOf(failures: readonly Failure[]): readonly ErasedRange[] {
  const places: ErasedRange[] = [];
  const ordered = failures.map(({ transfer }) => transfer).sort((a, b) => a.offsetBytes - b.offsetBytes);
  for (const { member, offsetBytes, lengthBytes } of ordered) {
    const last = places.at(-1);
    if (last === undefined || last.offsetBytes + last.lengthBytes !== offsetBytes)
      places.push({ member, offsetBytes, lengthBytes });
    else places[places.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
  }
  return places;
}

interface Range {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

function meets(a: Range, b: Range): boolean {
  return a.offsetBytes < b.offsetBytes + b.lengthBytes && b.offsetBytes < a.offsetBytes + a.lengthBytes;
}

/** A job on a range of a member, in parts each of which can be read altogether or not at all. */
function partsOf(job: Job, erased: readonly ErasedRange[]): readonly Job[] {
  const end = job.offsetBytes + job.lengthBytes;
  const bounds = new Set([job.offsetBytes]);
  for (const range of erased) {
    if (range.member !== job.member || !meets(range, job)) continue;
    bounds.add(Math.max(job.offsetBytes, range.offsetBytes));
    bounds.add(Math.min(end, range.offsetBytes + range.lengthBytes));
  }
  bounds.delete(end);
  const starts = [...bounds].sort((a, b) => a - b);
  return starts.map((from, index) => ({
    ...job,
    offsetBytes: from,
    lengthBytes: (starts[index + 1] ?? end) - from,
  }));
}

/** What is left of a place without these others on the same member. */
function outside(others: readonly Transfer[], place: ErasedRange): readonly ErasedRange[] {
  const { member } = place;
  let end = place.offsetBytes;
  const left: ErasedRange[] = [];
  const keep = (to: number): void => {
    if (to > end) left.push({ member, offsetBytes: end, lengthBytes: to - end });
  };
  const placeEnd = place.offsetBytes + place.lengthBytes;
  for (const other of others.toSorted((a, b) => a.offsetBytes - b.offsetBytes)) {
    keep(Math.min(placeEnd, other.offsetBytes));
    end = Math.max(end, other.offsetBytes + other.lengthBytes);
  }
  keep(placeEnd);
  return left;
}

/** The same, but without these members and replacements. */
export function without(health: Health, gone: ReadonlySet<number>): Health {
  if (gone.size === 0) return health;
  const { members, replacing = [] } = health;
  return {
    ...health,
    members: members.map((member, slot) => (gone.has(slot) ? { state: 'missing' } : member)),
    replacing: replacing.filter((slot) => !gone.has(replacementOf(members.length, slot))),
  };
}

/** Whether nothing is read from or written to this member, or replacement, any more. */
export function isWithout(health: Health, member: number): boolean {
  const { members, replacing = [] } = health;
  return member < members.length
    ? members[member]?.state === 'missing'
    : !replacing.includes(member - members.length);
}

/** Carries out one job at a time: it has one scratch memory. */
export class Runner {
  readonly #layout: Layout;
  readonly #kernels: Kernels;
  readonly #scratchAddress: number;
  readonly #scratchBytes: number;
  readonly #health: SharedHealth;
  readonly #readOnly: boolean;
  readonly #log: PartialParityLog | null;
  readonly #isRecording: () => boolean;
  readonly #sliceBytes: number;
  #again = false;
  #corrections: Correction[] = [];
  #mismatches: Mismatch[] = [];
  #mismatchCount = 0;

  constructor(options: {
    readonly layout: Layout;
    readonly kernels: Kernels;
    readonly scratchAddress: number;
    readonly scratchBytes: number;
    readonly health: SharedHealth;
    /** Nothing is healed, since nothing can be written. */
    readonly readOnly: boolean;
    /** Null where the array keeps none. With it, the buffer of a write reaches to whole sectors on both sides. */
    readonly log?: PartialParityLog | null;
    /** Whether an exclusion is on its way into the superblocks, where that can begin in the middle of a job. */
    readonly isRecording?: () => boolean;
  }) {
    this.#layout = options.layout;
    this.#kernels = options.kernels;
    this.#scratchAddress = options.scratchAddress;
    this.#log = options.log ?? null;
    this.#scratchBytes = options.scratchBytes - (this.#log === null ? 0 : PAGE_BYTES);
    this.#health = options.health;
    this.#readOnly = options.readOnly;
    this.#isRecording = options.isRecording ?? (() => false);
    this.#sliceBytes = walkSliceBytes(this.#layout);
  }

  /** Carries out one job. The report is the shared `nothingToReport` when all went as planned. */
  *run(job: Job): Steps<Report> {
    const isWalk = job.op !== 'read' && job.op !== 'write';
    const error = isWalk
      ? yield* this.#slices(job)
      : job.op === 'write' && this.#log !== null
        ? yield* this.#wholeSectors(job)
        : yield* this.#execute(job);
    return this.#reportOn(error);
  }

  /**
   * A write as nearly all are, on an array that is whole, with I/O that blocks: the same steps, without a generator. Null: it is
   * for `run`, which begins at the start, and nothing has been written.
   */
  writeNow(job: Job, perform: (batch: Batch) => readonly Failure[] | null): Report | null {
    const health = this.#health.compiled;
    if (job.op !== 'write' || !health.usual || this.#log !== null) return null;
    const plan = planWrite(this.#layout, health, job.offsetBytes, job.lengthBytes);
    if (isLost(plan) || this.#isTooBig(plan)) return null;
    if (plan.reads.length > 0) {
      const unread = perform(this.#batch('read', plan.reads, plan.requestBytes, job.address));
      if (unread !== null) return null;
    }
    this.#compute(plan, job.address);
    const writes = this.#mirrored(plan.writes);
    const failures = perform(this.#batch('write', writes, plan.requestBytes, job.address));
    return this.#reportOn(failures === null ? null : this.#doWithout(failures, writes, job));
  }

  #reportOn(error: RaidError | null): Report {
    if (
      error === null &&
      !this.#again &&
      !this.#health.hasUnreported &&
      this.#corrections.length === 0 &&
      this.#mismatchCount === 0
    ) {
      return nothingToReport;
    }
    const report: Report = {
      error,
      again: this.#again && error === null,
      exclusions: this.#health.takeUnreported(),
      damaged: this.#health.takeDamage(),
      corrections: this.#corrections,
      mismatches: this.#mismatches,
      mismatchCount: this.#mismatchCount,
    };
    this.#again = false;
    this.#corrections = [];
    this.#mismatches = [];
    this.#mismatchCount = 0;
    return report;
  }

  /** Sectors are what is logged: the rest of the first and the last one is written as it is. */
  *#wholeSectors(job: Job): Steps<RaidError | null> {
    const { offsetBytes, lengthBytes, address } = job;
    const from = roundDown(offsetBytes, SECTOR_BYTES);
    const to = roundUp(offsetBytes + lengthBytes, SECTOR_BYTES);
    const head = offsetBytes - from;
    const tail = to - offsetBytes - lengthBytes;
    const edge = this.#scratchAddress + this.#scratchBytes;
    for (const [at, skip, target, count] of [
      [from, 0, address - head, head],
      [to - SECTOR_BYTES, SECTOR_BYTES - tail, address + lengthBytes, tail],
    ] as const) {
      if (count === 0) continue;
      const error = yield* this.#execute({
        op: 'read',
        offsetBytes: at,
        lengthBytes: SECTOR_BYTES,
        address: edge,
        member: 0,
      });
      if (error !== null) return error;
      this.#kernels.copy(edge + skip, target, count);
    }
    return yield* this.#execute({
      ...job,
      offsetBytes: from,
      lengthBytes: to - from,
      address: address - head,
    });
  }

  /** A check, repair, recovery or replacement, slice by slice; an error does not keep the others from being done. */
  *#slices(job: Job): Steps<RaidError | null> {
    const end = job.offsetBytes + job.lengthBytes;
    let failed: RaidError | null = null;
    for (let at = job.offsetBytes; at < end; ) {
      const next = Math.min(end, roundDown(at, this.#sliceBytes) + this.#sliceBytes);
      const error = yield* this.#execute({ ...job, offsetBytes: at, lengthBytes: next - at });
      failed = bothErrors(failed, error);
      if (this.#again) break;
      at = next;
    }
    return failed;
  }

  *#execute(job: Job): Steps<RaidError | null> {
    let health = this.#health.compiled;
    let erased: ErasedRange[] = [];
    for (;;) {
      if (this.#isGone(job, health)) return goneError(job);
      const parts = job.op === 'replace' ? partsOf(job, health.health.erased) : [];
      if (parts.length > 1) return yield* this.#oneByOne(parts);
      const plan = this.#plan(job, health);
      if ('lost' in plan) return yield* this.#around(plan, job);
      if (this.#isTooBig(plan)) return yield* this.#halves(job);

      const found = plan.reads.length === 0 ? null : yield* this.#gather(plan, job.address);
      if (found !== null) {
        erased = [...erased, ...found];
        health = this.#health.withErased(erased);
        continue;
      }
      this.#compute(plan, job.address);
      if (plan.writes.length > 0) {
        const error = yield* this.#commit(plan, job);
        if (error !== null) return error;
        if (job.op === 'write' && isAnyBehind(health)) this.#damageUnwritten(plan, job, health.health);
      }
      if (plan.inspect.length > 0) {
        const mismatches = this.#inspect(plan, job.address);
        if (mismatches.length > 0) {
          // A repair that goes on piece by piece notes each there.
          if (job.op === 'check' || job.lengthBytes <= REPAIR_BYTES) this.#note(mismatches);
          if (job.op === 'repair') {
            const error = yield* this.#repair(job, erased);
            if (error !== null) return error;
          }
        }
      }
      break;
    }
    for (const range of erased) yield* this.#heal(range, erased);
    return null;
  }

  /**
   * Parity that has still to be recovered is not written where it cannot be computed, because something else in its row
   * cannot be read. Recovery may have come by already (its frontier moves a window at a time, long after its jobs), and
   * may have listed the place, which this write would be taken to have made good: so what a write leaves behind is
   * damaged, from now on.
   */
  #damageUnwritten(plan: Plan, job: Job, health: Health): void {
    const members = health.members.map(({ state }) => ({
      state: state === 'missing' ? ('missing' as const) : ('in_sync' as const),
    }));
    const whole = compileHealth(this.#layout, { members, erased: [] });
    const planned = planWrite(this.#layout, whole, job.offsetBytes, job.lengthBytes, false);
    assert(!isLost(planned), 'what could be written with places unreadable can be without');
    for (const { member, offsetBytes, lengthBytes } of planned.writes) {
      const written = plan.writes.filter((write) => write.member === member);
      for (const place of outside(written, { member, offsetBytes, lengthBytes })) this.#health.damage(place);
    }
  }

  *#oneByOne(parts: readonly Job[]): Steps<RaidError | null> {
    let failed: RaidError | null = null;
    for (const part of parts) {
      failed = bothErrors(failed, yield* this.#execute(part));
      if (this.#again) break;
    }
    return failed;
  }

  /** Whether there is nobody left to be recovered, or copied, or copied to. */
  #isGone(job: Job, { health, members }: CompiledHealth): boolean {
    if (job.op !== 'recover' && job.op !== 'replace') return false;
    if (members[job.member]?.writable !== true) return true;
    return job.op === 'replace' && isWithout(health, replacementOf(this.#layout.memberCount, job.member));
  }

  /**
   * What is lost for certain, and in the rest of a read, whatever else is: the first plan that cannot be made knows only
   * of what had failed until then.
   */
  *#around(plan: Lost, job: Job): Steps<RaidError> {
    let error: RaidError | null = lostError(plan, job);
    if (job.op !== 'read' || plan.lost.length === 0) return error;
    const end = job.offsetBytes + job.lengthBytes;
    let at = job.offsetBytes;
    for (const hole of [...joined(plan.lost), { offsetBytes: end, lengthBytes: 0 }]) {
      const lengthBytes = hole.offsetBytes - at;
      if (lengthBytes > 0) {
        const address = job.address + (at - job.offsetBytes);
        error = bothErrors(error, yield* this.#execute({ ...job, offsetBytes: at, lengthBytes, address }));
      }
      at = hole.offsetBytes + hole.lengthBytes;
    }
    return error ?? lostError(plan, job);
  }

  #plan(job: Job, health: CompiledHealth): Plan | Lost {
    switch (job.op) {
      case 'read':
        return planRead(this.#layout, health, job.offsetBytes, job.lengthBytes);
      case 'write':
        return planWrite(this.#layout, health, job.offsetBytes, job.lengthBytes, this.#log !== null);
      case 'recover':
        return planRecover(this.#layout, health, job.member, job.offsetBytes, job.lengthBytes);
      case 'replace':
        return this.#planReplace(job, health);
      case 'check':
      case 'repair':
        return planCheck(this.#layout, health, job.offsetBytes, job.lengthBytes);
      default:
        throw new TypeError(`a runner does not carry out ${job.op}`);
    }
  }

  /**
   * Copies a part of a member to its replacement: as it is, where it can be read; recomputed from the others, where not.
   * Only the replacement is written.
   */
  #planReplace(job: Job, health: CompiledHealth): Plan | Lost {
    const { member, offsetBytes, lengthBytes } = job;
    const target = replacementOf(this.#layout.memberCount, member);
    const isReadable = !health.health.erased.some((range) => range.member === member && meets(range, job));
    if (isReadable && health.health.members[member]?.state === 'in_sync') {
      const transfer = { offsetBytes, lengthBytes, address: 0 };
      return {
        requestBytes: 0,
        scratchBytes: lengthBytes,
        reads: [{ ...transfer, member }],
        compute: [],
        inspect: [],
        writes: [{ ...transfer, member: target }],
      };
    }
    const plan = planRecover(this.#layout, health, member, offsetBytes, lengthBytes);
    if (isLost(plan)) return plan;
    return { ...plan, writes: plan.writes.map((transfer) => ({ ...transfer, member: target })) };
  }

  /** Writes to a slot that is being replaced go to its replacement too. */
  #mirrored(writes: readonly Transfer[]): readonly Transfer[] {
    const { replacing } = this.#health.compiled.health;
    if (replacing === undefined || replacing.length === 0) return writes;
    const { memberCount } = this.#layout;
    const copies = writes.filter((transfer) => replacing.includes(transfer.member));
    return [
      ...writes,
      ...copies.map((each) => ({ ...each, member: replacementOf(memberCount, each.member) })),
    ];
  }

  /** Half of the commit record is for what goes to replacements too. */
  #isTooBig(plan: Plan): boolean {
    if (plan.scratchBytes > this.#scratchBytes || plan.writes.length > COMMIT_SLOTS / 2) return true;
    return plan.log !== undefined && this.#log?.fits(plan.log) === false;
  }

  *#halves(job: Job): Steps<RaidError | null> {
    const cut = cutPoint(this.#layout, job);
    const first = yield* this.#execute({ ...job, lengthBytes: cut });
    if (this.#again) return first;
    const second = yield* this.#execute({
      ...job,
      offsetBytes: job.offsetBytes + cut,
      lengthBytes: job.lengthBytes - cut,
      address: job.address === 0 ? 0 : job.address + cut,
    });
    return bothErrors(first, second);
  }

  /** Reads; null when all is there, else what has to be done without. */
  *#gather(plan: Plan, requestAddress: number): Steps<ErasedRange[] | null> {
    const failures = yield this.#batch('read', plan.reads, plan.requestBytes, requestAddress);
    if (failures === null) return null;
    const erased: ErasedRange[] = [];
    for (const { transfer, error } of failures) {
      const isGone = error.reaction === 'fail-member' || error.code === 'SHORT_READ';
      if (isGone && this.#exclude(transfer.member, error)) {
        // The whole member is out, for this job too.
        erased.push({
          member: transfer.member,
          offsetBytes: transfer.offsetBytes,
          lengthBytes: transfer.lengthBytes,
        });
        continue;
      }
      erased.push(...(yield* this.#unreadableIn(plan, transfer, requestAddress)));
    }
    // Everything could be read the second time: then the buffers hold it after all.
    return erased.length === 0 ? null : erased;
  }

  /**
   * Reads a failed transfer again: the second try that a transient error deserves. A page at a time, and where that
   * fails each of its sectors. A disk loses a sector at a time (or eight, where they are what it stores), and the
   * others of the page may be all that is left of their stripes, or the copies that answer for places not resynced yet:
   * doing without them could lose data, or change it. A device of larger blocks refuses single sectors, and loses all of
   * the page; a device that has gone is not asked eight times more.
   */
  *#unreadableIn(plan: Plan, transfer: Transfer, requestAddress: number): Steps<ErasedRange[]> {
    const erased: ErasedRange[] = [];
    for (const page of cut(transfer, PAGE_BYTES)) {
      let failures = yield this.#batch('read', [page], plan.requestBytes, requestAddress);
      if (failures === null) continue;
      const sectors = cut(page, SECTOR_BYTES);
      if (sectors.length > 1 && failures.every(({ error }) => error.reaction !== 'fail-member'))
        failures = yield this.#batch('read', sectors, plan.requestBytes, requestAddress);
      if (failures !== null) erased.push(...placesOf(failures));
    }
    return erased;
  }

  /** Writes everything; null unless the array cannot do without a member that failed. */
  *#commit(plan: Plan, job: Job): Steps<RaidError | null> {
    const writes = this.#mirrored(plan.writes);
    if (this.#log !== null && (job.op === 'write' || job.op === 'repair')) {
      const error = yield* this.#enterLog(this.#log, plan, job, writes);
      if (error !== null || this.#again) return error;
    }
    const failures = yield this.#batch('write', writes, plan.requestBytes, job.address);
    if (plan.log !== undefined) yield { direction: 'release' };
    return failures === null ? null : this.#doWithout(failures, writes, job);
  }

  /** What becomes of members that did not take their part of a commit. */
  #doWithout(failures: readonly Failure[], writes: readonly Transfer[], job: Job): RaidError | null {
    let fatal: RaidError | null = null;
    const refused: ErasedRange[] = [];
    for (const { transfer, error } of failures) {
      const { member, offsetBytes, lengthBytes } = transfer;
      const place = { member, offsetBytes, lengthBytes };
      if (this.#isWanted(member, error) && this.#isElsewhere(place, writes, failures)) {
        // The write is done, once the array has put the place on record.
        this.#health.damage(place);
        refused.push(place);
        continue;
      }
      if (this.#exclude(member, error)) continue;
      refused.push(place);
      if (this.#layout.kind === 'parity') this.#health.damage(place);
      fatal ??= new RaidError(
        'REDUNDANCY_LOST',
        `member ${member} did not take a write, and the array cannot do without it; what was to be written is old or new`,
        { ...placeOf(job), member, cause: error },
      );
    }
    if (fatal !== null && this.#layout.kind === 'copies')
      for (const place of this.#health.setApart(this.#layout, refused)) this.#health.damage(place);
    return fatal;
  }

  /** Whether what a member did not take can be had from the others, of which some have just been written. */
  #isElsewhere(place: ErasedRange, writes: readonly Transfer[], failures: readonly Failure[]): boolean {
    const { member, offsetBytes, lengthBytes } = place;
    const untaken = failures
      .map(({ transfer }) => transfer)
      .filter((transfer) => transfer.member < this.#layout.memberCount);
    const { erased } = this.#health.compiled.health;
    const bad = erased.flatMap((each) =>
      outside(
        writes.filter((write) => write.member === each.member),
        each,
      ),
    );
    const after = this.#health.atWorst(member, [...bad, ...untaken]);
    return !isLost(planRecover(this.#layout, after, member, offsetBytes, lengthBytes));
  }

  /**
   * Whether a member that did not take a write stays all the same, with a bad place: without it something would be lost that is bad
   * elsewhere. One that is gone has nothing to give.
   */
  #isWanted(member: number, error: RaidError): boolean {
    const { health } = this.#health.compiled;
    if (health.erased.length === 0 || health.members[member]?.state !== 'in_sync') return false;
    return error.code !== 'MEMBER_GONE' && this.#health.isLastWithout(member);
  }

  /**
   * What the plan logs is durable afterwards, or the job is to be done again, when who failed is on record: until then a
   * crash would bring that member back, and its log would not know of what is written without it.
   */
  *#enterLog(
    log: PartialParityLog,
    plan: Plan,
    job: Job,
    writes: readonly Transfer[],
  ): Steps<RaidError | null> {
    if (this.#health.hasUnconfirmed || this.#isRecording()) this.#again = true;
    if (this.#again || plan.log === undefined) return null;
    const base = { requestBytes: plan.requestBytes, requestAddress: job.address };
    const at = (address: number): number =>
      addressIn({ ...base, scratchAddress: this.#scratchAddress }, address);
    const failures = yield log.requestOf(plan, at, writes);
    if (failures === null) return null;
    const { offsetBytes, lengthBytes } = job;
    for (const { transfer, error } of failures) {
      if (this.#exclude(transfer.member, error)) continue;
      return new RaidError(
        'REDUNDANCY_LOST',
        `member ${transfer.member} failed before a write, and the array cannot do without it; nothing was written: ${error.message}`,
        { offsetBytes, lengthBytes, member: transfer.member, cause: error },
      );
    }
    this.#again = true;
    return null;
  }

  /**
   * From now on this lane does without the member. False when that would lose data: the last copy stays, and the
   * error is the caller's.
   */
  #exclude(member: number, error: RaidError): boolean {
    if (isWithout(this.#health.compiled.health, member)) return true;
    if (!this.#health.canMiss([member])) return false;
    this.#health.exclude({ member, error });
    return true;
  }

  /** Rewrites what could not be read. Trouble here is not the caller's: their answer is already known. */
  *#heal(range: ErasedRange, erased: readonly ErasedRange[]): Steps<void> {
    if (this.#readOnly) return;
    if (this.#health.compiled.health.members[range.member]?.state !== 'in_sync') return;
    const health = this.#health.withErased(erased);
    const plan = planRecover(this.#layout, health, range.member, range.offsetBytes, range.lengthBytes);
    if ('lost' in plan || this.#isTooBig(plan)) return;
    if (plan.reads.length > 0) {
      const failures = yield this.#batch('read', plan.reads, plan.requestBytes, 0);
      if (failures !== null) return;
    }
    this.#compute(plan, 0);
    const failures = yield this.#batch('write', this.#mirrored(plan.writes), plan.requestBytes, 0);
    const refused = failures ?? (yield this.#batch('read', plan.writes, plan.requestBytes, 0));
    if (refused !== null) {
      for (const { transfer, error } of refused) {
        const { member, offsetBytes, lengthBytes } = transfer;
        if (this.#isWanted(member, error)) this.#health.damage({ member, offsetBytes, lengthBytes });
        else this.#exclude(member, error);
      }
      return;
    }
    this.#corrections.push(range);
  }

  /**
   * Makes redundancy agree with the data again, in a range where a check found that it does not. Piece by piece,
   * since most of the range is right, and what is right is not rewritten.
   */
  *#repair(job: Job, unreadable: readonly ErasedRange[]): Steps<RaidError | null> {
    if (job.lengthBytes > REPAIR_BYTES) {
      const end = job.offsetBytes + job.lengthBytes;
      for (let at = job.offsetBytes; at < end; at += REPAIR_BYTES) {
        const piece = { ...job, offsetBytes: at, lengthBytes: Math.min(REPAIR_BYTES, end - at) };
        const error = yield* this.#execute(piece);
        if (error !== null) return error;
      }
      return null;
    }
    for (let erased = unreadable; ; ) {
      const plan = planRepair(
        this.#layout,
        this.#health.withErased(erased),
        job.offsetBytes,
        job.lengthBytes,
        this.#log !== null,
      );
      if ('lost' in plan) return lostError(plan, job);
      if (this.#isTooBig(plan)) return yield* this.#halves(job);
      const found = plan.reads.length === 0 ? null : yield* this.#gather(plan, 0);
      if (found !== null) {
        erased = [...erased, ...found];
        continue;
      }
      this.#compute(plan, 0);
      return yield* this.#commit(plan, job);
    }
  }

  #batch(
    direction: 'read' | 'write',
    transfers: readonly Transfer[],
    requestBytes: number,
    requestAddress: number,
  ): Batch {
    return { direction, transfers, requestBytes, requestAddress, scratchAddress: this.#scratchAddress };
  }

  #compute(plan: Plan, requestAddress: number): void {
    if (plan.compute.length === 0) return;
    const base = { requestBytes: plan.requestBytes, requestAddress, scratchAddress: this.#scratchAddress };
    for (const step of plan.compute) compute(this.#kernels, step, (address) => addressIn(base, address));
  }

  /** How many stripes or copies do not agree; each is noted. */
  #inspect(plan: Plan, requestAddress: number): readonly Mismatch[] {
    const base = { requestBytes: plan.requestBytes, requestAddress, scratchAddress: this.#scratchAddress };
    return plan.inspect.flatMap((step) =>
      mismatchesOf(this.#kernels, step, (address) => addressIn(base, address)),
    );
  }

  #note(mismatches: readonly Mismatch[]): void {
    this.#mismatchCount += mismatches.length;
    this.#mismatches.push(...mismatches.slice(0, MISMATCHES_LISTED - this.#mismatches.length));
  }
}

function compute(kernels: Kernels, step: Compute, at: (address: number) => number): void {
  switch (step.op) {
    case 'copy':
      kernels.copy(at(step.from), at(step.into), step.lengthBytes);
      return;
    case 'zero':
      kernels.fill(at(step.into), 0, step.lengthBytes);
      return;
    case 'syndrome':
      kernels.syndrome(all(step.data, at), maybe(step.p, at), maybe(step.q, at), step.lengthBytes);
      return;
    case 'update':
      kernels.update(
        at(step.oldData),
        at(step.newData),
        step.index,
        maybe(step.p, at),
        maybe(step.q, at),
        step.lengthBytes,
      );
      return;
    case 'recover':
      kernels.recover(
        all(step.data, at),
        maybe(step.p, at),
        maybe(step.q, at),
        step.erasure,
        step.lengthBytes,
      );
      return;
    default:
      unreachable(step);
  }
}

/** Sector by sector from the first difference on, neighbours joined: a scrub that says "somewhere" helps nobody. */
function mismatchesOf(kernels: Kernels, step: Inspect, at: (address: number) => number): readonly Mismatch[] {
  const found: Mismatch[] = [];
  /** By member, the last one found: what the next may be joined to. */
  const last = new Map<number | null, number>();
  for (let from = 0; from < step.lengthBytes; ) {
    const first = firstDifference(kernels, step, at, from);
    if (first < 0) break;
    const sector = roundDown(from + first, SECTOR_BYTES);
    const lengthBytes = Math.min(SECTOR_BYTES, step.lengthBytes - sector);
    for (const mismatch of whoDiffers(kernels, step, at, sector, lengthBytes)) {
      const index = last.get(mismatch.member) ?? -1;
      const before = found[index];
      if (
        before !== undefined &&
        before.wrong === mismatch.wrong &&
        before.offsetBytes + before.lengthBytes === mismatch.offsetBytes
      ) {
        found[index] = { ...before, lengthBytes: before.lengthBytes + lengthBytes };
      } else {
        last.set(mismatch.member, found.push(mismatch) - 1);
      }
    }
    from = sector + SECTOR_BYTES;
  }
  return found;
}

/** From `from` on, or -1. */
function firstDifference(
  kernels: Kernels,
  step: Inspect,
  at: (address: number) => number,
  from: number,
): number {
  const lengthBytes = step.lengthBytes - from;
  const shifted = (address: number): number => at(address) + from;
  if (step.op === 'verify') {
    return kernels.verify(all(step.data, shifted), shifted(step.p), maybe(step.q, shifted), lengthBytes);
  }
  const [first, ...others] = step.copies.map(({ address }) => shifted(address));
  let least = -1;
  for (const other of others) {
    const found = kernels.compare(first!, other, least < 0 ? lengthBytes : least);
    if (found >= 0) least = found;
  }
  return least;
}

/** One sector in which there is a difference. */
function whoDiffers(
  kernels: Kernels,
  step: Inspect,
  at: (address: number) => number,
  sector: number,
  lengthBytes: number,
): readonly Mismatch[] {
  const shifted = (address: number): number => at(address) + sector;
  if (step.op === 'compare') {
    const addresses = step.copies.map(({ address }) => shifted(address));
    const { places, outvoted } = oddCopiesOf(kernels, addresses, lengthBytes);
    return places.map((place) => {
      const { member, offsetBytes } = step.copies[place]!;
      const wrong = !outvoted ? null : place === 0 ? 'data' : 'redundancy';
      return { member, wrong, offsetBytes: offsetBytes + sector, lengthBytes };
    });
  }
  const { holders } = step;
  const offsetBytes = step.offsetBytes + sector;
  if (holders === null) return [{ member: null, wrong: null, offsetBytes, lengthBytes }];
  const row = {
    data: all(step.data, shifted),
    p: shifted(step.p),
    q: shifted(step.q!),
    deltaP: at(holders.deltaP),
    deltaQ: at(holders.deltaQ),
  };
  const suspect = suspectOf(kernels, row, lengthBytes);
  if (suspect === null) return [{ member: null, wrong: null, offsetBytes, lengthBytes }];
  return suspect.kind === 'data'
    ? [{ member: holders.data[suspect.place]!, wrong: 'data', offsetBytes, lengthBytes }]
    : [{ member: holders[suspect.kind], wrong: 'redundancy', offsetBytes, lengthBytes }];
}

function all(data: readonly (number | null)[], at: (address: number) => number): (number | null)[] {
  return data.map((address) => (address === null ? null : at(address)));
}

function maybe(address: number | null, at: (address: number) => number): number | null {
  return address === null ? null : at(address);
}

function goneError(job: Job): RaidError {
  return new RaidError('MEMBER_GONE', `member ${job.member} is no longer there to be recovered`, {
    member: job.member,
    offsetBytes: job.offsetBytes,
    lengthBytes: job.lengthBytes,
  });
}

function lostError(plan: Lost, job: Job): RaidError {
  return lossOf(plan.lost.length === 0 ? [placeOf(job)] : plan.lost);
}

function placeOf(job: Job): LostRange {
  return { offsetBytes: job.offsetBytes, lengthBytes: job.lengthBytes };
}

/** So many places are said in words; the error's list has them all. */
const PLACES_SAID = 8;

function lossOf(ranges: readonly LostRange[]): RaidError {
  const lost = joined(ranges);
  const said = lost
    .slice(0, PLACES_SAID)
    .map((range) => `${range.lengthBytes} bytes at ${range.offsetBytes}`);
  if (lost.length > PLACES_SAID) said.push(`and ${lost.length - PLACES_SAID} more places`);
  const first = lost[0] ?? { offsetBytes: 0, lengthBytes: 0 };
  return new RaidError(
    'REDUNDANCY_LOST',
    `more members are missing or unreadable than redundancy covers: ${said.join(', ')}`,
    { ...first, ...(lost.length > 1 ? { lost } : {}) },
  );
}

/** In order, and neighbours made one. */
function joined(ranges: readonly LostRange[]): readonly LostRange[] {
  const sorted = [...ranges].sort((a, b) => a.offsetBytes - b.offsetBytes);
  const found: LostRange[] = [];
  for (const range of sorted) {
    const last = found.at(-1);
    const end = last === undefined ? -1 : last.offsetBytes + last.lengthBytes;
    if (last === undefined || range.offsetBytes > end) found.push(range);
    else {
      const lengthBytes = Math.max(end, range.offsetBytes + range.lengthBytes) - last.offsetBytes;
      found[found.length - 1] = { offsetBytes: last.offsetBytes, lengthBytes };
    }
  }
  return found;
}

/**
 * The error of two parts of one request. Of losses, one that names all of them (I19); anything else goes before a loss,
 * since it says nothing about where.
 */
export function bothErrors(a: RaidError | null, b: RaidError | null): RaidError | null {
  if (a === null || b === null) return a ?? b;
  if (a.code !== 'REDUNDANCY_LOST') return a;
  if (b.code !== 'REDUNDANCY_LOST') return b;
  return lossOf([...lostIn(a), ...lostIn(b)]);
}

function lostIn({ place }: RaidError): readonly LostRange[] {
  if (place.lost !== undefined) return place.lost;
  return [{ offsetBytes: place.offsetBytes ?? 0, lengthBytes: place.lengthBytes ?? 0 }];
}

/** Where a job too large for one plan is cut, from its start: see the top of the file. */
function cutPoint(layout: Layout, job: Job): number {
  const middle = job.offsetBytes + Math.floor(job.lengthBytes / 2);
  const boundaries: number[] = [];
  if (layout.kind === 'parity') {
    const onArray = job.op === 'read' || job.op === 'write';
    if (onArray) boundaries.push(layout.chunkBytes * layout.dataCount);
    boundaries.push(layout.chunkBytes);
  } else if ('chunkBytes' in layout.geometry && layout.geometry.chunkBytes > 0) {
    boundaries.push(layout.geometry.chunkBytes);
  }
  boundaries.push(PAGE_BYTES, SECTOR_BYTES, 1);
  for (const boundary of boundaries) {
    const below = roundDown(middle, boundary);
    const cut = below > job.offsetBytes ? below : below + boundary;
    if (cut > job.offsetBytes && cut < job.offsetBytes + job.lengthBytes) return cut - job.offsetBytes;
  }
  throw new InvariantViolation('one byte never needs more scratch than there is');
}

/** Carries out a job with I/O that blocks. */
export function drive<Result, Asked = Request>(
  steps: Generator<Asked, Result, readonly Failure[] | null>,
  perform: (request: Asked) => readonly Failure[] | null,
): Result {
  let step = steps.next(null);
  while (step.done !== true) step = steps.next(perform(step.value));
  return step.value;
}

/** Carries out a job with I/O that answers later. */
export async function driveAsynchronously<Result, Asked = Request>(
  steps: Generator<Asked, Result, readonly Failure[] | null>,
  perform: (request: Asked) => Promise<readonly Failure[] | null>,
): Promise<Result> {
  let step = steps.next(null);
  while (step.done !== true) step = steps.next(await perform(step.value));
  return step.value;
}
