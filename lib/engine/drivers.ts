/**
 * The three ways to carry out jobs; engine.ts says when which. All of them keep jobs on the same stripes in order, and
 * all of them run the same logic (run.ts).
 */
import type { Device } from '../device/device.ts';
import { assert, InvariantViolation } from '../errors.ts';
import type { Host } from '../host.ts';
import type { Layout } from '../layout/layout.ts';
import type { Kernels } from '../parity/kernels.ts';
import { type Health, isLost, type Transfer } from '../plan/plan.ts';
import { planRead } from '../plan/planner.ts';
import { KIB, roundDown } from '../units.ts';
import { AsynchronousIo, type Failure, type Request, SynchronousIo } from './batch.ts';
import type { Crew } from './crew.ts';
import { Gate } from './gate.ts';
import { broken, Lanes } from './lanes.ts';
import { type LogShape, logOf, PartialParityLog } from './log.ts';
import { type MemoryMap, PAGE_BYTES, SCRATCH_BYTES, scratchAddress } from './memory.ts';
import type { Death } from './message.ts';
import { ExclusionNotes, type Job } from './ring.ts';
import { LogRounds } from './rounds.ts';
import { drive, driveAsynchronously, nothingToReport, type Report, Runner, SharedHealth } from './run.ts';
import { memberRun, territoryOf } from './territory.ts';

/** Jobs that walk the array rather than serve a request. */
export type SyncOp = 'recover' | 'replace' | 'check' | 'repair';

export type Done = (report: Report) => void;

export interface DriverOptions {
  readonly layout: Layout;
  readonly members: readonly (Device | null)[];
  readonly health: Health;
  readonly host: Host;
  readonly map: MemoryMap;
  readonly kernels: Kernels;
  readonly kernel?: string | undefined;
  readonly laneCount: number;
  readonly crew?: Crew | undefined;
  /** Array bytes that are dealt to a lane together: whole stripes. */
  readonly territoryBytes: number;
  readonly readOnly: boolean;
  /** Null where the array keeps no partial parity log. With one there is one lane at most. */
  readonly log: LogShape | null;
  /** Whether an exclusion is on its way into the superblocks; only asked where there is a log. */
  readonly isRecording: () => boolean;
  /** Every report that says something, as soon as it is there and before its job is answered. */
  readonly onReport: (report: Report) => void;
}

export interface Driver {
  readonly laneCount: number;
  readonly laneDeaths: number;
  submit(job: Job, done: Done): void;
  /**
   * A small read that is one place of one member, at once and into the caller's own memory. False: it is to be submitted, be it
   * that it takes more, or that something was not as it should be.
   */
  readNow(offsetBytes: number, target: Uint8Array): boolean;
  /** How many array bytes from here on may be one job, at most `limitBytes` or a little more. */
  pieceAt(offsetBytes: number, limitBytes: number): number;
  syncPieceAt(op: SyncOp, member: number, offsetBytes: number, limitBytes: number): number;
  setHealth(health: Health): Promise<void>;
  /** Whether no byte is lost without these members, whatever else fails just now; if so, the caller excludes them. */
  canMiss(members: readonly number[]): boolean;
  /** `log`: where its partial parity log is, if it has one. */
  setMember(member: number, device: Device | null, log: Device | null): Promise<void>;
  close(): Promise<void>;
  killLane(lane: number, when: Death): Promise<void>;
}

/** Requests up to this size may run on the caller's thread though there are lanes. */
const INLINE_BYTES = 16 * KIB;
/**
 * Slower than this on average is not the page cache: then the caller's thread is spared for the next so many requests.
 * An average over about 16, in which none counts for more than four times as much: so it takes five slow ones in a row. Where a
 * client keeps the other core busy, a single one is the scheduler (3 ms and more), and not the disk: if that were
 * enough, lanes would be third on two cores, and that makes more of these. 4 KiB reads over NBD: 89 and 68 k/s with one, 114 and 78 k/s so.
 */
const INLINE_SLOW_MS = 0.1;
const INLINE_COUNTED_MS = 4 * INLINE_SLOW_MS;
const INLINE_PENALTY = 1000;
/** A sleeping lane is woken for small jobs no oftener than this: 10 µs in 2 ms, where a lane that stays asleep is noise. */
const WAKE_MS = 2;
/** So many answers without a turn of the event loop, then the next one waits for it. */
const STREAK = 64;

/** Answers on the spot, but never so often in a row that timers and sockets starve. */
class Answers {
  readonly #host: Pick<Host, 'turn'>;
  #streak = 0;

  constructor(host: Pick<Host, 'turn'>) {
    this.#host = host;
  }

  give(report: Report, done: Done): void {
    if (this.mayGive()) done(report);
    else this.#host.turn(() => done(report));
  }

  /** Whether one more may be given on the spot. */
  mayGive(): boolean {
    this.#streak += 1;
    if (this.#streak === 1) {
      this.#host.turn(() => {
        this.#streak = 0;
      });
    }
    return this.#streak < STREAK;
  }
}

/** Members that any thread can reach: on lanes, or on the caller's thread when there are none or none is needed. */
export class DirectDriver implements Driver {
  readonly #options: DriverOptions;
  readonly #io: SynchronousIo;
  readonly #runner: Runner;
  readonly #log: PartialParityLog | null;
  readonly #health: SharedHealth;
  readonly #lanes: Lanes | null;
  /** Slots without a member, in the health that was set last. */
  #missing: readonly number[] = [];
  /** An answer was given on the spot, and its caller has not run since. */
  #settling = false;
  #penalty = 0;
  /** An exception on this thread: nothing is carried out any more. */
  #broken: Error | null = null;
  #averageMs = 0;
  #wokenMs = 0;
  readonly #answers: Answers;

  constructor(options: DriverOptions) {
    this.#options = options;
    this.#answers = new Answers(options.host);
    const access = options.members.map((device) => device?.direct ?? null);
    this.#io = new SynchronousIo(options.map.memory, access);
    const notes = new ExclusionNotes(options.map, options.laneCount);
    this.#health = new SharedHealth(options.layout, options.health, {
      // What this thread has told the lanes of stands here until all of them have heard it.
      note: (excluded, suspects) => notes.note([...this.#missing, ...excluded], suspects),
      isNotedElsewhere: (member) => notes.isNotedElsewhere(member),
    });
    this.#log = newLog(options);
    this.#runner = new Runner({
      layout: options.layout,
      kernels: options.kernels,
      scratchAddress: scratchAddress(options.laneCount),
      scratchBytes: SCRATCH_BYTES,
      health: this.#health,
      readOnly: options.readOnly,
      log: this.#log,
    });
    this.#lanes =
      options.laneCount === 0
        ? null
        : new Lanes({
            host: options.host,
            crew: options.crew,
            map: options.map,
            layout: options.layout,
            health: options.health,
            members: access,
            kernel: options.kernel,
            readOnly: options.readOnly,
            log: options.log,
            mainHealth: this.#health,
            onReport: options.onReport,
          });
  }

  get laneCount(): number {
    return this.#lanes?.count ?? 0;
  }

  get laneDeaths(): number {
    return this.#lanes?.deaths ?? 0;
  }

  submit(job: Job, done: Done): void {
    if (this.#lanes === null) {
      this.#answer(this.#carryOut(job), done);
      return;
    }
    const lane = this.#laneOf(job);
    if (this.#isQuickHere(job, lane) || this.#isNoLaneWorth(job, lane)) this.#runHere(job, done);
    else this.#lanes.submit(lane, { job, done });
  }

  readNow(offsetBytes: number, target: Uint8Array): boolean {
    const { byteLength: lengthBytes } = target;
    if (lengthBytes > PAGE_BYTES || this.#broken !== null || this.#health.hasUnreported) return false;
    const job: Job = { op: 'read', offsetBytes, lengthBytes, address: 0, member: 0 };
    if (this.#lanes !== null && !this.#isQuickHere(job, this.#laneOf(job))) return false;
    const plan = planRead(this.#options.layout, this.#health.compiled, offsetBytes, lengthBytes);
    if (isLost(plan) || plan.reads.length !== 1 || plan.compute.length > 0) return false;
    const [{ member, offsetBytes: from }] = plan.reads as readonly [Transfer];
    return this.#answers.mayGive() && this.#timed(() => this.#io.readInto(member, from, target));
  }

  /** A look that changes nothing: what is declined where it is asked first is asked about again. */
  #isQuickHere(job: Job, lane: number): boolean {
    if (this.#penalty > 0 || !this.#mayBeHere(job, lane)) return false;
    return !this.#settling || this.#isQuickest(job);
  }

  /** Counts: to be asked once for each job. */
  #isNoLaneWorth(job: Job, lane: number): boolean {
    if (!this.#mayBeHere(job, lane)) return false;
    if (this.#penalty === 0) return !this.#mayWake(lane);
    this.#penalty -= 1;
    return false;
  }

  #mayBeHere({ lengthBytes }: Job, lane: number): boolean {
    return lengthBytes <= INLINE_BYTES && this.#lanes?.isIdle(lane) === true;
  }

  pieceAt(offsetBytes: number, limitBytes: number): number {
    if (this.laneCount > 1) {
      const { territoryBytes } = this.#options;
      return Math.min(limitBytes, territoryBytes - (offsetBytes % territoryBytes));
    }
    return pieceOfOneLane(offsetBytes, limitBytes);
  }

  syncPieceAt(op: SyncOp, member: number, offsetBytes: number, limitBytes: number): number {
    const { layout, territoryBytes } = this.#options;
    if (this.laneCount <= 1) return limitBytes;
    if (op === 'recover' || op === 'replace' || layout.kind === 'parity') {
      return memberRun(layout, member, offsetBytes, limitBytes, territoryBytes);
    }
    return Math.min(limitBytes, territoryBytes - (offsetBytes % territoryBytes));
  }

  setHealth(health: Health): Promise<void> {
    this.#missing = health.members.flatMap(({ state }, slot) => (state === 'missing' ? [slot] : []));
    this.#health.set(health);
    return this.#lanes?.tellAll({ kind: 'health', health }) ?? Promise.resolve();
  }

  canMiss(members: readonly number[]): boolean {
    return this.#health.canMiss(members);
  }

  setMember(member: number, device: Device | null, log: Device | null): Promise<void> {
    const access = device?.direct ?? null;
    const logAccess = log?.direct ?? null;
    const { memberCount } = this.#options.layout;
    this.#io.setMember(member, access);
    this.#io.setMember(logOf(memberCount, member), logAccess);
    if (this.#lanes !== null) return this.#lanes.tellAll({ kind: 'member', member, access, logAccess });
    if (member < memberCount) this.#log?.restart(member);
    return Promise.resolve();
  }

  async close(): Promise<void> {
    await this.#lanes?.close();
  }

  async killLane(lane: number, when: Death): Promise<void> {
    if (when === 'now') await this.#lanes?.kill(lane);
    else await this.#lanes?.tell(lane, { kind: 'die', when });
  }

  #laneOf(job: Job): number {
    if (this.laneCount === 1) return 0;
    const { layout, territoryBytes } = this.#options;
    return Math.floor(territoryOf(layout, job).from / territoryBytes) % this.laneCount;
  }

  /**
   * A small read takes this thread little longer than to hand it over and to hear of its end. Where there is one lane only there are two
   * cores, and whoever asks has a use for the other one.
   */
  #isQuickest(job: Job): boolean {
    return job.op === 'read' && this.laneCount === 1;
  }

  /**
   * Whether a small job is worth a lane. One that is awake takes it at no cost. Waking one costs this thread more than
   * doing the job itself, and pays only if the lane then finds enough to stay awake: it is tried now and then.
   */
  #mayWake(lane: number): boolean {
    if (this.#lanes?.isAsleep(lane) !== true) return true;
    const now = this.#options.host.now();
    if (now - this.#wokenMs < WAKE_MS) return false;
    this.#wokenMs = now;
    return true;
  }

  #runHere(job: Job, done: Done): void {
    const report = this.#timed(() => this.#carryOut(job));
    this.#answer(report, done);
  }

  #timed<Result>(carryOut: () => Result): Result {
    const { host } = this.#options;
    const start = host.now();
    const result = carryOut();
    const countedMs = Math.min(host.now() - start, INLINE_COUNTED_MS);
    this.#averageMs += (countedMs - this.#averageMs) / 16;
    if (this.#averageMs > INLINE_SLOW_MS) {
      this.#penalty = INLINE_PENALTY;
      this.#averageMs = 0;
    }
    if (!this.#settling) {
      this.#settling = true;
      queueMicrotask(() => {
        this.#settling = false;
      });
    }
    return result;
  }

  #carryOut(job: Job): Report {
    if (this.#broken !== null) return broken(job, this.#broken);
    try {
      const perform = (asked: Request): readonly Failure[] | null => this.#perform(asked);
      return this.#runner.writeNow(job, perform) ?? drive(this.#runner.run(job), perform);
    } catch (error) {
      this.#broken = error as Error;
      this.#lanes?.refuse(this.#broken);
      return broken(job, this.#broken);
    }
  }

  #perform(asked: Request): readonly Failure[] | null {
    if (asked.direction === 'release') return null;
    if (asked.direction !== 'log') return this.#io.perform(asked);
    assert(this.#log !== null, 'who logs has a log');
    return drive(this.#log.write([asked], this.#health.compiled.health), (each) => this.#io.perform(each));
  }

  #answer(report: Report, done: Done): void {
    if (report !== nothingToReport) this.#options.onReport(report);
    this.#answers.give(report, done);
  }
}

/** Jobs that are under way at once; each has scratch memory of its own. */
export const EVENT_LOOP_WIDTH = 16;

/** Any members, through their own operations. */
export class EventLoopDriver implements Driver {
  readonly laneCount = 0;
  readonly laneDeaths = 0;
  readonly #options: DriverOptions;
  readonly #io: AsynchronousIo;
  readonly #health: SharedHealth;
  readonly #gate = new Gate(EVENT_LOOP_WIDTH);
  readonly #answers: Answers;
  readonly #idle: Runner[] = [];
  readonly #log: PartialParityLog | null;
  readonly #rounds: LogRounds | null;
  #broken: Error | null = null;

  constructor(options: DriverOptions) {
    this.#options = options;
    this.#answers = new Answers(options.host);
    this.#io = new AsynchronousIo(options.map.memory, options.members);
    this.#health = new SharedHealth(options.layout, options.health);
    const log = newLog(options);
    this.#log = log;
    this.#rounds =
      log === null
        ? null
        : new LogRounds(
            log,
            () => this.#health.compiled.health,
            (asked) => this.#io.perform(asked),
          );
    for (let slot = 0; slot < EVENT_LOOP_WIDTH; slot += 1) {
      this.#idle.push(
        new Runner({
          layout: options.layout,
          kernels: options.kernels,
          scratchAddress: scratchAddress(slot),
          scratchBytes: SCRATCH_BYTES,
          health: this.#health,
          readOnly: options.readOnly,
          log,
          isRecording: options.isRecording,
        }),
      );
    }
  }

  submit(job: Job, done: Done): void {
    void this.#run(job).then((report) => {
      if (report !== nothingToReport) this.#options.onReport(report);
      this.#answers.give(report, done);
    });
  }

  readNow(): boolean {
    return false;
  }

  pieceAt(offsetBytes: number, limitBytes: number): number {
    return pieceOfOneLane(offsetBytes, limitBytes);
  }

  syncPieceAt(_op: string, _member: number, _offsetBytes: number, limitBytes: number): number {
    return limitBytes;
  }

  async setHealth(health: Health): Promise<void> {
    this.#health.set(health);
    await this.#quiesce();
  }

  canMiss(members: readonly number[]): boolean {
    return this.#health.canMiss(members);
  }

  async setMember(member: number, device: Device | null, log: Device | null): Promise<void> {
    await this.#quiesce();
    const { memberCount } = this.#options.layout;
    this.#io.setMember(member, device);
    this.#io.setMember(logOf(memberCount, member), log);
    if (member < memberCount) this.#log?.restart(member);
  }

  async close(): Promise<void> {
    await this.#quiesce();
  }

  async killLane(): Promise<void> {
    // There are none.
  }

  /** Until every job of before has left. */
  async #quiesce(): Promise<void> {
    const leave = await this.#gate.enter(0, Number.POSITIVE_INFINITY, true);
    leave();
  }

  async #run(job: Job): Promise<Report> {
    const { from, to } = territoryOf(this.#options.layout, job);
    const leave = await this.#gate.enter(from, to, job.op !== 'read' && job.op !== 'check');
    const runner = this.#idle.pop();
    if (runner === undefined)
      throw new InvariantViolation('the gate admits no more jobs than there are runners');
    let isInside = false;
    const perform = async (asked: Request): Promise<readonly Failure[] | null> => {
      if (asked.direction === 'log') {
        assert(this.#rounds !== null, 'who logs has a log');
        const failures = await this.#rounds.enter(asked);
        isInside = failures === null;
        return failures;
      }
      if (asked.direction !== 'release') return await this.#io.perform(asked);
      isInside = false;
      this.#rounds?.leave();
      return null;
    };
    try {
      if (this.#broken !== null) return broken(job, this.#broken);
      return await driveAsynchronously(runner.run(job), perform);
    } catch (error) {
      this.#broken ??= error as Error;
      return broken(job, this.#broken);
    } finally {
      if (isInside) this.#rounds?.leave();
      this.#idle.push(runner);
      leave();
    }
  }
}

function newLog({ log, map, layout }: DriverOptions): PartialParityLog | null {
  if (log === null) return null;
  const made = new PartialParityLog(map, log, layout.memberCount);
  made.begin();
  return made;
}

/** One job for what is little more than the limit: cutting it would cost more than it brings. */
function pieceOfOneLane(offsetBytes: number, limitBytes: number): number {
  return roundDown(offsetBytes, limitBytes) + 2 * limitBytes - offsetBytes;
}
