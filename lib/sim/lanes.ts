/**
 * Lanes that are no threads: the shipping rings, commit record, work and inheritance (engine/lanes.ts, work.ts), and instead
 * of a thread an actor on the clock. Its I/O takes the time that disks take, one transfer after the other, and so any lane
 * can die between any two of them: with jobs that it has not begun, has half written, or has done and told nobody of.
 *
 * What a lane does when it is killed in a system call is what a thread does: the call ends, and nothing follows. By lot
 * it had not begun. The main thread's own I/O, inline and for a dead lane's commit, takes no time.
 */
import type { DirectAccess } from '../device/device.ts';
import { addressIn, type Batch, type Failure, type Flush, runsOf, SynchronousIo } from '../engine/batch.ts';
import type { Crew, Hand, Hears } from '../engine/crew.ts';
import type { ControlMessage, LaneTask, ReportMessage } from '../engine/message.ts';
import type { Job } from '../engine/ring.ts';
import { driveAsynchronously, nothingToReport, type Report } from '../engine/run.ts';
import { LaneWork } from '../engine/work.ts';
import { assert } from '../errors.ts';
import type { Transfer } from '../plan/plan.ts';
import type { Clock, Process } from './clock.ts';
import { DiskCalls } from './disk.ts';

/** On average: until rings are looked at, a message is heard, somebody wakes, is born or is seen to be dead. */
const LOOK_MS = 0.05;
const POST_MS = 0.02;
const WAKE_MS = 0.01;
const BIRTH_MS = 0.5;
const DEATH_MS = 0.2;

/** Thrown by whoever is dead. */
const gone: unique symbol = Symbol('gone');
/** Thrown out of a call whose I/O is still under way. */
const unfinished: unique symbol = Symbol('unfinished');

export class SimulatedCrew implements Crew {
  readonly reaches = ['file', 'memory', 'calls'] as const;
  readonly #process: Process;
  readonly #deaths: number[] = [];

  constructor(process: Process) {
    this.#process = process;
  }

  get deaths(): number {
    return this.#deaths.reduce((sum, each) => sum + each, 0);
  }

  /** By lane, as far as the main thread has heard. */
  get deathsByLane(): readonly number[] {
    return [...this.#deaths];
  }

  hire(task: LaneTask, hears: Hears): Hand {
    this.#deaths[task.lane] ??= 0;
    const died = (isKilled: boolean): void => {
      if (isKilled) this.#deaths[task.lane] = (this.#deaths[task.lane] ?? 0) + 1;
      hears.died();
    };
    return new Actor(this.#process, task, { ...hears, died });
  }

  soon(look: () => void): void {
    laterBy(this.#process.clock, LOOK_MS, look, this.#process);
  }

  /** Whether a request of that time may have been given up: only who has seen a lane and its successor die. */
  hasDiedTwiceSince(before: readonly number[]): boolean {
    return this.#deaths.some((count, lane) => count - (before[lane] ?? 0) >= 2);
  }
}

function laterBy(clock: Clock, meanMs: number, run: () => void, process: Process): void {
  clock.after(meanMs * (0.5 + clock.random(1024) / 1024), run, process);
}

/** How I/O ended, and what it has read. */
interface Answer {
  readonly failures: readonly Failure[] | null;
  readonly read: readonly { readonly address: number; readonly bytes: Uint8Array }[];
}

interface Heard extends Omit<Hears, 'died'> {
  died(isKilled: boolean): void;
}

class Actor implements Hand {
  readonly #process: Process;
  readonly #clock: Clock;
  readonly #hears: Heard;
  readonly #io: SynchronousIo;
  readonly #bytes: Uint8Array;
  readonly #members: (DirectAccess | null)[];
  readonly #work: LaneWork;
  readonly #inbox: ControlMessage[] = [];
  #outbox: (ReportMessage | null)[] = [];
  #isGone = false;
  #isLeft = false;
  #wakes: (() => void) | null = null;
  /** What becomes of the system call that it is in. */
  #calls: ((isDone: boolean) => void) | null = null;

  constructor(process: Process, task: LaneTask, hears: Heard) {
    this.#process = process;
    this.#clock = process.clock;
    this.#hears = hears;
    this.#io = new SynchronousIo(task.map.memory, task.members);
    this.#bytes = new Uint8Array(task.map.memory.buffer);
    this.#members = [...task.members];
    this.#work = new LaneWork(task, {
      io: { setMember: (member, access) => this.#setMember(member, access) },
      post: (message) => this.#post(message),
      exit: () => {
        this.#die();
        throw gone;
      },
    });
    this.#later(BIRTH_MS, () => void this.#live());
  }

  post(message: ControlMessage): void {
    this.#inbox.push(message);
  }

  receive(): ReportMessage | null | undefined {
    return this.#outbox.shift();
  }

  wake(): void {
    const wakes = this.#wakes;
    if (wakes === null) return;
    this.#wakes = null;
    this.#later(WAKE_MS, wakes);
  }

  kill(): Promise<void> {
    if (!this.#isGone) {
      this.#die();
      this.#calls?.(this.#clock.random(2) === 0);
    }
    return Promise.resolve();
  }

  leave(): void {
    this.#isLeft = true;
    this.#outbox = [];
  }

  // Time passes whether anybody waits for it or not.
  ref(): void {}
  unref(): void {}
  refPosts(): void {}
  unrefPosts(): void {}

  async #live(): Promise<void> {
    const { control } = this.#work;
    try {
      for (let running = true; running; ) {
        while (!control.hasSubmissions()) {
          await new Promise<void>((resolve) => {
            this.#wakes = resolve;
          });
        }
        const { id, job } = control.peek();
        let report = nothingToReport;
        if (job.op === 'control') {
          const message = this.#inbox.shift();
          assert(message !== undefined, 'a control job has its message on the port');
          running = this.#work.obey(message);
        } else report = await this.#carryOut(job);
        // Done, and nobody has been told.
        await new Promise<void>((resolve) => this.#later(WAKE_MS, resolve));
        this.#work.finish(id, report);
      }
      this.#die(false);
    } catch (error) {
      if (error === gone) return;
      this.#hears.broke(error as Error);
      this.#die(false);
    }
  }

  async #carryOut(job: Job): Promise<Report> {
    return (
      (await this.#writeNow(job)) ?? driveAsynchronously(this.#work.run(job), (asked) => this.#perform(asked))
    );
  }

  /**
   * What ships is a call that blocks in its I/O, and here time passes in that. So it is left where it asks for I/O whose end is not
   * known, and called again from its start when it is. It asks for the same then, finds what it read where it was read to, though
   * it has computed there since, and so comes to the same.
   */
  async #writeNow(job: Job): Promise<Report | null> {
    const answers: Answer[] = [];
    for (;;) {
      let asked = 0;
      let next: Batch | null = null;
      try {
        return this.#work.writeNow(job, (batch) => {
          const answer = answers[asked];
          asked += 1;
          if (answer !== undefined) {
            for (const { address, bytes } of answer.read) this.#bytes.set(bytes, address);
            return answer.failures;
          }
          next = batch;
          throw unfinished;
        });
      } catch (error) {
        if (error !== unfinished || next === null) throw error;
      }
      answers.push(await this.#answerTo(next));
    }
  }

  async #answerTo(batch: Batch): Promise<Answer> {
    const failures = await this.#perform(batch);
    const read = batch.direction === 'read' ? batch.transfers : [];
    return {
      failures,
      read: read.map((transfer) => {
        const address = addressIn(batch, transfer.address);
        return { address, bytes: this.#bytes.slice(address, address + transfer.lengthBytes) };
      }),
    };
  }

  #die(isKilled = true): void {
    this.#isGone = true;
    laterBy(this.#clock, DEATH_MS, () => this.#hears.died(isKilled), this.#process);
  }

  #post(message: ReportMessage | null): void {
    this.#outbox.push(message);
    laterBy(
      this.#clock,
      POST_MS,
      () => {
        const next = this.#isLeft ? undefined : this.#outbox.shift();
        if (next !== undefined) this.#hears.posted(next);
      },
      this.#process,
    );
  }

  /** Unless it is gone by then. */
  #later(meanMs: number, run: () => void): void {
    const unlessGone = (): void => {
      if (!this.#isGone) run();
    };
    laterBy(this.#clock, meanMs, unlessGone, this.#process);
  }

  #setMember(member: number, access: DirectAccess | null): void {
    this.#io.setMember(member, access);
    this.#members[member] = access;
  }

  async #perform(asked: Batch | Flush): Promise<readonly Failure[] | null> {
    if (asked.direction === 'flush') return this.#io.perform(asked);
    const failures: Failure[] = [];
    for (const { transfers } of runsOf(asked.transfers))
      for (const transfer of transfers) failures.push(...((await this.#one(asked, transfer)) ?? []));
    return failures.length === 0 ? null : failures;
  }

  #one(batch: Batch, transfer: Transfer): Promise<readonly Failure[] | null> {
    const alone: Batch = { ...batch, transfers: [transfer] };
    const access = this.#members[transfer.member];
    const calls = access?.kind === 'calls' && access.calls instanceof DiskCalls ? access.calls : null;
    if (access === undefined || access === null || calls === null)
      return Promise.resolve(this.#io.perform(alone));
    const address = addressIn(batch, transfer.address);
    const under = calls.begin(
      batch.direction,
      access.offsetBytes + transfer.offsetBytes,
      this.#bytes.subarray(address, address + transfer.lengthBytes),
    );
    return new Promise((resolve) => {
      const end = (isDone: boolean): void => {
        this.#calls = null;
        under.end();
        const failures = isDone ? this.#io.perform(alone) : null;
        if (!this.#isGone) resolve(failures);
      };
      this.#calls = end;
      this.#clock.after(
        under.ms,
        () => {
          if (!this.#isGone) end(true);
        },
        this.#process,
      );
    });
  }
}
