/**
 * The main thread's side of the lanes: submits jobs, hears of their end, and survives the death of a worker.
 *
 * Hearing of the end. A lane rings (one message on its port) only when asked to, because a message costs 5 µs to send
 * and 40 µs until it is heard. While jobs are under way the main thread looks at the rings itself, once in every turn
 * of its event loop; only after some turns without news (the members are slow) does it ask for a doorbell and
 * leave the loop to sleep. (`Atomics.waitAsync` would be the natural tool, but it does not keep Node alive.)
 *
 * Death. A worker that exits on its own account (terminated, out of memory) is replaced. First what it was committing is
 * committed again from the record (ring.ts says why), then its jobs are submitted anew, in their order. Members on which
 * it, or that commit, has met a failure that it has not told of are excluded by the successor from the start: a job that
 * ran again and trusted them would take old data for new, and carry that into the parity. One that the array cannot do
 * without stays, and the job in which it did not take a write is answered with the error that its lane owed: that row is
 * old in one place and new in another, and carried out again the job would take it for one that agrees. What the member did
 * not take is damaged, as run.ts says; where nobody knows what that was, all that the job had for it.
 *
 * A job at which two workers died is given up: its outcome is unknown, and it may well be the cause. It need not have been begun:
 * where no worker lives long enough to begin anything, this has an end. One that only waited, for a control
 * message before it, has not had a life. A worker that dies of an exception is a programming error: every lane refuses
 * what comes after it.
 *
 * Where there is a partial parity log, writes go back to whoever asked for them, to be asked for again: nothing may be
 * logged without a member before it is on record that it is out, and a successor, who is born without it, cannot tell.
 */
import type { DirectAccess } from '../device/device.ts';
import { assert, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import type { Layout } from '../layout/layout.ts';
import { compileHealth } from '../plan/health.ts';
import { type ErasedRange, type Health, isLost } from '../plan/plan.ts';
import { planWrite } from '../plan/planner.ts';
import { setApart } from '../plan/set-apart.ts';
import { KIB, roundDown, roundUp, SECTOR_BYTES } from '../units.ts';
import { SynchronousIo } from './batch.ts';
import type { Crew, Hand } from './crew.ts';
import { type LogShape, logOf, PartialParityLog } from './log.ts';
import type { MemoryMap } from './memory.ts';
import { type ControlMessage, type ReportMessage, reportOf } from './message.ts';
import { DONE, JOBS_PER_LANE, type Job, LaneControl } from './ring.ts';
import {
  type Exclusion,
  isWithout,
  nothingToReport,
  type Report,
  type SharedHealth,
  without,
} from './run.ts';
import { threads } from './thread.ts';

export interface Ticket {
  readonly job: Job;
  /** Exactly once. A failure that is no report (a programming error) comes as `error` of the report too. */
  readonly done: (report: Report) => void;
}

/**
 * How often the rings are looked at while all that is under way are jobs that walk the array, a sync or a scrub. They take
 * half a millisecond and more, and several are always waiting, so that nothing is gained by seeing the end of one at once. To look in
 * every turn keeps a core busy, which the lanes have better use for: a recovery by two lanes on two cores took 1.6 times as long.
 */
const WALK_POLL_MS = 1;
/**
 * So long without news, then the lanes are asked to ring. Longer than a large job takes from the page cache (1 MiB:
 * 0.3 ms): a doorbell costs its lane 10 to 15 µs, and rung for every such job it cost 5 % of a sequential read.
 */
const POLL_MS = 3;
/**
 * With one lane, and large reads alone under way, the rings are not looked at in every turn either. One lane is mostly two cores, and who
 * reads like that over a socket is a third that wants one: raid5, 32 reads of 1 MiB over NBD, 1.6 GiB/s looking and 2.0 not (medians
 * of five, side by side). One read alone in this process pays for it with a tenth, and takes a third less of processors.
 */
const LARGE_BYTES = 256 * KIB;
const LIVES_OF_A_JOB = 2;

const controlJob: Job = { op: 'control', offsetBytes: 0, lengthBytes: 0, address: 0, member: 0 };

export interface LanesOptions {
  readonly host: Host;
  /** Default: threads. */
  readonly crew?: Crew | undefined;
  readonly map: MemoryMap;
  readonly layout: Layout;
  readonly health: Health;
  readonly members: readonly (DirectAccess | null)[];
  readonly kernel: string | undefined;
  readonly readOnly: boolean;
  readonly log: LogShape | null;
  /** The main thread's, which answers for a lane between its death and its successor's birth. */
  readonly mainHealth: SharedHealth;
  /** Every report that says something, before the job that it is about is answered. */
  readonly onReport: (report: Report) => void;
}

/** What a dead lane leaves behind besides its jobs. */
interface Inheritance {
  readonly exclusions: readonly Exclusion[];
  readonly damaged: readonly ErasedRange[];
  /** Who failed and cannot be done without, and why; null where there is nobody. */
  readonly kept: { readonly member: number; readonly cause: RaidError } | null;
}

interface Polling {
  readonly isSlow: boolean;
}

export class Lanes {
  readonly #lanes: Lane[] = [];
  #newsMs = 0;
  /** The next look at the rings that is arranged; null when there is none. One that is dropped comes, and is not heeded. */
  #polling: Polling | null = null;
  readonly #host: Host;
  readonly #crew: Crew;

  constructor(options: LanesOptions) {
    this.#host = options.host;
    this.#crew = options.crew ?? threads;
    for (let index = 0; index < options.map.laneCount; index += 1) {
      const broke = (error: Error): void => this.refuse(error);
      this.#lanes.push(new Lane(index, options, () => this.#heard(), broke));
    }
  }

  get count(): number {
    return this.#lanes.length;
  }

  get deaths(): number {
    return this.#lanes.reduce((sum, lane) => sum + lane.deaths, 0);
  }

  /** True when the lane has nothing to do: then, and only then, others may touch its stripes. */
  isIdle(lane: number): boolean {
    const { inFlight, isRefusing } = this.#at(lane);
    return inFlight === 0 && !isRefusing;
  }

  /** Waiting in the kernel: to be woken costs a system call here and 10 µs and more there. */
  isAsleep(lane: number): boolean {
    return this.#at(lane).isAsleep;
  }

  /** Nothing is carried out from now on. */
  refuse(error: Error): void {
    for (const lane of this.#lanes) lane.refuse(error);
  }

  submit(lane: number, ticket: Ticket): void {
    this.#at(lane).submit(ticket);
    if (this.#polling?.isSlow === true && !isWalk(ticket.job)) this.#polling = null;
    if (this.#polling === null) this.#heard();
  }

  /** Takes effect on each lane after the jobs submitted before and before those submitted after. */
  tellAll(message: ControlMessage): Promise<void> {
    return Promise.all(this.#lanes.map((_, lane) => this.tell(lane, message))).then(() => undefined);
  }

  tell(lane: number, message: ControlMessage): Promise<void> {
    return new Promise((resolve) => {
      this.#at(lane).control(message, resolve);
      if (this.#polling === null) this.#poll();
    });
  }

  async close(): Promise<void> {
    await Promise.all(this.#lanes.map((lane) => lane.stop(() => this.#poll())));
    this.#polling = null;
  }

  /** For tests: the worker is gone between two instructions. */
  kill(lane: number): Promise<void> {
    return this.#at(lane).kill();
  }

  #at(lane: number): Lane {
    const found = this.#lanes[lane];
    if (found === undefined) throw new RangeError('no such lane');
    return found;
  }

  #heard(): void {
    this.#newsMs = this.#host.now();
    if (this.#polling === null) this.#poll();
  }

  #poll(): void {
    if (this.#polling !== null) return;
    const isSlow =
      this.#lanes.some((lane) => lane.walksInFlight > 0) && this.#lanes.every((lane) => !lane.isAsked);
    const polling: Polling = { isSlow };
    const look = (): void => {
      if (this.#polling !== polling) return;
      this.#polling = null;
      this.#look();
    };
    this.#polling = polling;
    if (isSlow) void this.#host.sleep(WALK_POLL_MS).then(look);
    else this.#crew.soon(look);
  }

  #look(): void {
    let news = 0;
    let busy = 0;
    for (const lane of this.#lanes) {
      news += lane.drain();
      busy += lane.inFlight;
    }
    const nowMs = this.#host.now();
    if (news > 0) this.#newsMs = nowMs;
    if (busy === 0) {
      for (const lane of this.#lanes) lane.rest();
      return;
    }
    const isLong = this.#lanes.length === 1 && this.#lanes.every((lane) => lane.hasOnlyLargeReads);
    if (!isLong && nowMs - this.#newsMs < POLL_MS) {
      this.#poll();
      return;
    }
    let missed = false;
    for (const lane of this.#lanes) missed = lane.arm() || missed;
    if (missed) this.#poll();
  }
}

class Lane {
  readonly #index: number;
  readonly #options: LanesOptions;
  readonly #control: LaneControl;
  readonly #heard: () => void;
  readonly #broke: (error: Error) => void;
  #hand: Hand;
  /** By job id, which is the ticket's slot. */
  readonly #tickets: (Ticket | undefined)[] = new Array(JOBS_PER_LANE).fill(undefined);
  readonly #freeIds: number[] = [];
  /** Waiting for a free slot. */
  #overflow: Ticket[] = [];
  /** Control messages under way, in order, for a successor that starts from what they say. */
  readonly #messages = new Map<Ticket, ControlMessage>();
  readonly #reports = new Map<number, Report>();
  /** In order of submission, which a successor keeps. */
  readonly #order = new Set<number>();
  #health: Health;
  readonly #members: (DirectAccess | null)[];
  /** Called when the worker is gone for good; null as long as it may live. */
  #stopped: (() => void) | null = null;
  #isGone = false;
  /** An exception, in this lane's worker or another's. */
  #broken: Error | null = null;
  /** A job keeps its identity when it is asked for again. */
  #lastVictim: Job | null = null;
  #lives = 0;
  deaths = 0;
  inFlight = 0;
  walksInFlight = 0;
  #controlsInFlight = 0;
  #largeReadsInFlight = 0;

  constructor(index: number, options: LanesOptions, heard: () => void, broke: (error: Error) => void) {
    this.#index = index;
    this.#options = options;
    this.#heard = heard;
    this.#broke = broke;
    this.#control = new LaneControl(options.map, index);
    this.#health = options.health;
    this.#members = [...options.members];
    for (let id = JOBS_PER_LANE - 1; id >= 0; id -= 1) this.#freeIds.push(id);
    this.#hand = this.#hire();
  }

  get isRefusing(): boolean {
    return this.#broken !== null;
  }

  submit(ticket: Ticket): void {
    this.#count(ticket.job, 1);
    const isControl = ticket.job.op === 'control';
    if (this.#isGone || (this.#broken !== null && !isControl)) {
      const cause = this.#broken ?? new Error('it was closed');
      const report = isControl ? nothingToReport : broken(ticket.job, cause);
      queueMicrotask(() => this.#finish(ticket, report));
      return;
    }
    if (this.#overflow.length > 0 || !this.#place(ticket)) this.#overflow.push(ticket);
  }

  get isAsleep(): boolean {
    return this.#control.isAsleep;
  }

  /** Somebody waits for the answer to a request. */
  get isAsked(): boolean {
    return this.inFlight > this.walksInFlight + this.#controlsInFlight;
  }

  get hasOnlyLargeReads(): boolean {
    return this.inFlight === this.#largeReadsInFlight;
  }

  #count(job: Job, by: 1 | -1): void {
    this.inFlight += by;
    if (isWalk(job)) this.walksInFlight += by;
    if (job.op === 'control') this.#controlsInFlight += by;
    if (job.op === 'read' && job.lengthBytes >= LARGE_BYTES) this.#largeReadsInFlight += by;
  }

  control(message: ControlMessage, done: () => void): void {
    const ticket: Ticket = { job: controlJob, done };
    this.#messages.set(ticket, message);
    // What a successor starts with.
    if (message.kind === 'health') this.#health = message.health;
    if (message.kind === 'member') {
      this.#members[message.member] = message.access;
      this.#members[logOf(this.#options.layout.memberCount, message.member)] = message.logAccess;
    }
    this.submit(ticket);
  }

  /** Resolves when everything under way has ended, and the worker too. */
  stop(poll: () => void): Promise<void> {
    if (this.#isGone) return Promise.resolve();
    return new Promise((resolve) => {
      this.#stopped = resolve;
      // Whoever awaits the end must get it: a worker that is not waited for would let Node end before.
      this.#hand.ref();
      this.#sendStop();
      poll();
    });
  }

  /** From now on, since nobody knows what an exception has left behind. */
  refuse(error: Error): void {
    this.#broken ??= error;
  }

  async kill(): Promise<void> {
    await this.#hand.kill();
  }

  /** Ends every job that the lane has finished. Returns how many. */
  drain(): number {
    const count = this.#control.drain((id, status) => {
      this.#end(id, status === DONE ? nothingToReport : this.#reportOn(id));
    });
    while (this.#overflow.length > 0) {
      const [next] = this.#overflow;
      if (next === undefined || !this.#place(next)) break;
      this.#overflow.shift();
    }
    return count;
  }

  /** Asks for a doorbell, and keeps Node alive until it rings. True when something came in meanwhile. */
  arm(): boolean {
    if (this.inFlight === 0) return false;
    this.#control.arm();
    this.#hand.refPosts();
    this.#hand.ref();
    if (!this.#control.hasCompletions()) return false;
    this.#control.disarm();
    return true;
  }

  /** Nothing under way: Node may end. */
  rest(): void {
    this.#hand.unrefPosts();
    if (this.#stopped === null) this.#hand.unref();
  }

  #sendStop(): void {
    // Not unreferenced, as an idle worker is: Node must not end before it has.
    this.#hand.ref();
    this.control({ kind: 'stop' }, () => undefined);
  }

  #place(ticket: Ticket): boolean {
    const id = this.#freeIds.pop();
    if (id === undefined) return false;
    // The message is on the port before the job that says so is in the ring.
    const message = this.#messages.get(ticket);
    if (message !== undefined) this.#hand.post(message);
    assert(this.#control.trySubmit(id, ticket.job), 'there are fewer ids than the ring has slots');
    this.#tickets[id] = ticket;
    this.#order.add(id);
    this.#hand.wake();
    return true;
  }

  /**
   * The report on a job that has one. The lane posted it before it published the completion, so it is on the port by
   * now; taking it here, and not when the event loop gets to it, keeps it in order with the completions after it,
   * which may rely on an exclusion that it tells of.
   */
  #reportOn(id: number): Report {
    for (;;) {
      const known = this.#reports.get(id);
      if (known !== undefined) return known;
      const message = this.#hand.receive();
      assert(message !== undefined, 'a completion with a report has its report on the port');
      this.#take(message);
    }
  }

  #take(message: ReportMessage | null): void {
    if (message !== null) this.#reports.set(message.id, reportOf(message));
  }

  #end(id: number, report: Report): void {
    const ticket = this.#tickets[id];
    if (ticket === undefined) return;
    this.#tickets[id] = undefined;
    this.#order.delete(id);
    this.#reports.delete(id);
    this.#freeIds.push(id);
    this.#finish(ticket, report);
  }

  #finish(ticket: Ticket, report: Report): void {
    this.#count(ticket.job, -1);
    this.#messages.delete(ticket);
    if (report !== nothingToReport) this.#options.onReport(report);
    ticket.done(report);
  }

  #hire(): Hand {
    const { crew = threads, map, layout, kernel, readOnly, log } = this.#options;
    const hand = crew.hire(
      {
        map,
        lane: this.#index,
        geometry: layout.geometry,
        health: this.#health,
        members: this.#members,
        kernel,
        readOnly,
        log,
      },
      {
        posted: (message) => {
          this.#take(message);
          this.#heard();
        },
        broke: (error) => this.#broke(error),
        died: () => this.#died(hand),
      },
    );
    return hand;
  }

  #died(hand: Hand): void {
    if (hand !== this.#hand) return;
    this.drain();
    const wasTold = this.#endReported();
    if (this.#stopped !== null && this.inFlight === 0) {
      this.#retire();
      return;
    }
    this.deaths += 1;
    this.#hand.leave();
    const pending = [...this.#order].map((id) => this.#tickets[id]).filter((ticket) => ticket !== undefined);
    const all = [...pending, ...this.#overflow];
    this.#overflow = [];
    this.#order.clear();
    this.#reports.clear();
    this.#tickets.fill(undefined);
    this.#freeIds.length = 0;
    for (let id = JOBS_PER_LANE - 1; id >= 0; id -= 1) this.#freeIds.push(id);

    if (this.#broken !== null) {
      const cause = this.#broken;
      this.#retire();
      for (const ticket of all)
        this.#finish(ticket, ticket.job.op === 'control' ? nothingToReport : broken(ticket.job, cause));
      return;
    }
    const [first] = pending;
    // Whatever the worker had begun, and not told the end of, is at the head of the line.
    const victim = wasTold || first === undefined || first.job.op === 'control' ? null : first;
    const inheritance = this.#inherit(victim?.job ?? null);
    // The successor is born with what the control messages said; sent again, an older one would undo a newer.
    for (const ticket of all) {
      if (ticket.job.op !== 'control') continue;
      this.#restartLog(this.#messages.get(ticket));
      this.#finish(ticket, nothingToReport);
    }
    const end = victim === null ? null : this.#endOf(victim, inheritance);
    const waiting = all.filter(
      (ticket) => ticket.job.op !== 'control' && (ticket !== victim || end === null),
    );
    const isOver = this.#stopped !== null && waiting.length === 0;
    if (isOver) this.#retire();
    else this.#hand = this.#hire();
    const { exclusions, damaged } = inheritance;
    if (exclusions.length + damaged.length > 0)
      this.#options.onReport({ ...nothingToReport, exclusions, damaged });
    for (const ticket of waiting) {
      if (this.#options.log !== null && (ticket.job.op === 'write' || ticket.job.op === 'repair'))
        this.#finish(ticket, { ...nothingToReport, again: true });
      else if (!this.#place(ticket)) this.#overflow.push(ticket);
    }
    if (victim !== null && end !== null) this.#finish(victim, end);
    if (isOver) return;
    if (this.#stopped !== null) this.#sendStop();
    this.#heard();
  }

  /**
   * What has been posted is a job's end, even if its lane died before it could say that the job is done. True where that
   * was so.
   */
  #endReported(): boolean {
    for (let message = this.#hand.receive(); message !== undefined; message = this.#hand.receive())
      this.#take(message);
    const [head] = this.#order;
    const report = head === undefined ? undefined : this.#reports.get(head);
    if (head === undefined || report === undefined) return false;
    this.#end(head, report);
    return true;
  }

  /** How the job ends at which the worker died; null where the successor carries it out. */
  #endOf(victim: Ticket, { kept }: Inheritance): Report | null {
    const { job } = victim;
    this.#lives = job === this.#lastVictim ? this.#lives + 1 : 1;
    this.#lastVictim = job;
    if (kept !== null && (job.op === 'write' || job.op === 'repair')) {
      const { member, cause } = kept;
      const why = `member ${member} did not take a write, and the array cannot do without it; what was to be written is old or new`;
      const { offsetBytes, lengthBytes } = job;
      const error = new RaidError('REDUNDANCY_LOST', why, { offsetBytes, lengthBytes, member, cause });
      return { ...nothingToReport, error };
    }
    if (this.#lives < LIVES_OF_A_JOB) return null;
    const why = `${LIVES_OF_A_JOB} workers died during this request; read the range to see what it holds`;
    return abandoned(job, why);
  }

  /** What outlives the worker does not say yet that a slot has another member, whose log is empty. */
  #restartLog(message: ControlMessage | undefined): void {
    const { map, log, layout } = this.#options;
    if (log === null || message?.kind !== 'member' || message.member >= layout.memberCount) return;
    new PartialParityLog(map, log, layout.memberCount).restart(message.member);
  }

  #retire(): void {
    this.#isGone = true;
    this.#stopped?.();
  }

  /**
   * What the dead worker was writing is written again, all of it. Who fails now, or had failed under the worker without
   * a report, is left out by the successor, where he can be; the answer is the report that is owed for them.
   */
  #inherit(job: Job | null): Inheritance {
    const noted = this.#control.excluded();
    const failed = new Map<number, RaidError>();
    for (const member of noted) {
      failed.set(
        member,
        new RaidError('WRITE_FAILED', `member ${member} failed, and then its lane`, { member }),
      );
    }
    const refused: ErasedRange[] = [];
    const entries = this.#control.unfinishedCommit();
    if (entries.length > 0) {
      const io = new SynchronousIo(this.#options.map.memory, this.#members);
      const plain = { requestBytes: 0, requestAddress: 0, scratchAddress: 0 };
      const failures = io.perform({ direction: 'write', transfers: entries, ...plain }) ?? [];
      for (const { transfer, error } of failures) {
        const { member, offsetBytes, lengthBytes } = transfer;
        failed.set(member, error);
        refused.push({ member, offsetBytes, lengthBytes });
      }
    }
    // Posted by the main thread before the lane's own notes go.
    const { mainHealth, layout } = this.#options;
    mainHealth.suspect(failed.keys());
    this.#control.reset();
    const exclusions: Exclusion[] = [];
    const leaving: number[] = [];
    const kept: number[] = [];
    for (const [member, error] of failed) {
      if (isWithout(this.#health, member)) continue;
      if (mainHealth.canMiss([...leaving, member])) {
        leaving.push(member);
        exclusions.push({ member, error });
      } else kept.push(member);
    }
    mainHealth.settle(leaving);
    const untaken = [...refused, ...this.#placesOf(job, new Set(noted))].filter(({ member }) =>
      kept.includes(member),
    );
    const left = without(this.#health, new Set(leaving));
    const damaged =
      layout.kind === 'parity'
        ? untaken
        : setApart(layout, compileHealth(layout, left), untaken, (member) => mainHealth.isInDoubt(member));
    // Nobody reads from replacements: the array alone is to know of theirs.
    const erased = damaged.filter(({ member }) => member < layout.memberCount);
    this.#health = { ...left, erased: [...left.erased, ...erased] };
    const [member] = kept;
    const cause = member === undefined ? undefined : failed.get(member);
    return {
      exclusions,
      damaged,
      kept: member === undefined || cause === undefined ? null : { member, cause },
    };
  }

  /** All that a write has for these members, whatever else cannot be read. */
  #placesOf(job: Job | null, members: ReadonlySet<number>): readonly ErasedRange[] {
    if (job?.op !== 'write' || members.size === 0) return [];
    const { layout, log } = this.#options;
    const block = log === null ? 1 : SECTOR_BYTES;
    const from = roundDown(job.offsetBytes, block);
    const to = roundUp(job.offsetBytes + job.lengthBytes, block);
    const plan = planWrite(layout, compileHealth(layout, { ...this.#health, erased: [] }), from, to - from);
    if (isLost(plan)) return [];
    return plan.writes
      .filter(({ member }) => members.has(member))
      .map(({ member, offsetBytes, lengthBytes }) => ({ member, offsetBytes, lengthBytes }));
  }
}

function isWalk({ op }: Job): boolean {
  return op !== 'read' && op !== 'write' && op !== 'control';
}

/** The report on a job that nobody will carry out any more, or carry on. */
export function abandoned(job: Job, why: string, cause?: Error): Report {
  const { offsetBytes, lengthBytes } = job;
  const code = job.op === 'read' || job.op === 'check' ? 'READ_ABANDONED' : 'WRITE_MAYBE_APPLIED';
  return { ...nothingToReport, error: new RaidError(code, why, { offsetBytes, lengthBytes, cause }) };
}

/** After an exception, which is a programming error: nobody knows what it has left behind. */
export function broken(job: Job, cause: Error): Report {
  return abandoned(job, `the array stopped on an internal error: ${cause.message}`, cause);
}
