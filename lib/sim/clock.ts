/**
 * Time that moves only when everything waits. The clock holds what is still to happen, each event with its moment and
 * a lot drawn from the seed; between two events every promise that can go on has gone on. So one seed is one history,
 * and another seed is another order of the same events: those of one moment happen in the order of their lots.
 *
 *   event ──▶ microtasks, until none is left ──▶ turns asked for (`Host.turn`), one by one ──▶ the next event
 *
 * That no microtask is left is not guessed by waiting a while: Node runs a tick that was asked for within a microtask
 * only when the whole queue of microtasks is empty, and that tick is where the next event happens. No timer and no turn
 * of the event loop takes part, which is also why it is fast: an event costs well under a microsecond.
 *
 * A `Process` is one life of a program on this clock, and its `Host`. What dies with it, its sleeps and the answers of
 * its devices, is never delivered once it was killed: its promises just stay as they are.
 */
import { createHash, type Hash } from 'node:crypto';
import { InvariantViolation } from '../errors.ts';
import { type Host, seededRandom } from '../host.ts';

const resolved = Promise.resolve();

interface Event {
  readonly atMs: number;
  readonly lot: number;
  readonly process: Process | null;
  readonly run: () => void;
}

/** Where wall clocks begin: 2026-01-01T00:00:00Z. */
const EPOCH_MS = Date.UTC(2026, 0, 1);

/** Events in the log are four words each; so many are hashed at once. */
const LOG_WORDS = 4 * 4096;

/**
 * Who asks for so much before the next event can happen goes round in microtasks, and that event never comes; and where so
 * much happens within a millisecond, time stands still. Both are a hundred times what arrays of a few disks do.
 */
const ASKED_MOST = 100_000;
const HAPPENED_MOST = 200_000;

/** A day: whoever is still coming on after that goes round in circles. */
const LONGEST_MS = 86_400_000;

/** Nothing is left that could happen, too much time has passed, or none passes any more, and somebody still waits (I16). */
export class Stuck extends InvariantViolation {}

export class Clock {
  /** Chance of the world outside: latencies, lots, faults. A process has its own. */
  readonly random: (below: number) => number;
  readonly #events: Event[] = [];
  #turns: { readonly process: Process; readonly run: () => void }[] = [];
  #nowMs = 0;
  #count = 0;
  #pumping = false;
  /** Hands over the result of what is driven; null until there is one. */
  #settle: (() => void) | null = null;
  #fail: (error: Error) => void = () => undefined;
  #untilMs = Number.POSITIVE_INFINITY;
  /** Since when it is driven. */
  #drivenMs = 0;
  /** Since the last event. */
  #asked = 0;
  /** When a millisecond began, and the number of the event with which it did. */
  #markMs = 0;
  #markCount = 0;
  readonly #runsByItself: boolean;
  #hash: Hash | null = null;
  readonly #log = new Uint32Array(LOG_WORDS);
  #logged = 0;

  /** `runsByItself`: time moves whenever there is something to happen, and not only within `drive`. */
  constructor(seed: number, options: { readonly runsByItself?: boolean } = {}) {
    this.random = seededRandom(seed);
    this.#runsByItself = options.runsByItself === true;
  }

  /** Milliseconds since the clock was made. */
  get nowMs(): number {
    return this.#nowMs;
  }

  /** Events that have happened. */
  get eventCount(): number {
    return this.#count;
  }

  /** Events that are still to happen. */
  get pending(): number {
    return this.#events.length;
  }

  /** In so many milliseconds. With a process: unless that is dead by then. */
  after(delayMs: number, run: () => void, process: Process | null = null): void {
    this.#asked += 1;
    if (this.#asked > ASKED_MOST) throw this.#standsStill();
    this.#push({ atMs: this.#nowMs + delayMs, lot: this.random(2 ** 30), process, run });
    this.#runIfAlone();
  }

  /** After all that is going on at this moment, and before time moves. */
  turn(process: Process, run: () => void): void {
    this.#turns.push({ process, run });
    this.#runIfAlone();
  }

  /**
   * Lets time pass until the work is done, and no longer. Throws `Stuck` where nothing is left to happen before that, or
   * where it takes more than `limitMs`.
   */
  drive<T>(work: Promise<T>, limitMs = Number.POSITIVE_INFINITY): Promise<T> {
    if (this.#pumping) return Promise.reject(new InvariantViolation('a clock is driven by one at a time'));
    return new Promise<T>((resolve, reject) => {
      this.#settle = null;
      this.#fail = reject;
      work.then(
        (value) => {
          this.#settle = () => resolve(value);
        },
        (error: unknown) => {
          this.#settle = () => reject(error);
        },
      );
      this.#drivenMs = this.#nowMs;
      this.#untilMs = this.#nowMs + limitMs;
      this.#pumping = true;
      this.#soon();
    });
  }

  /** What is driven has come on: from now it may take so much more, but not go on for ever. */
  renew(limitMs: number): void {
    this.#untilMs = Math.min(this.#nowMs + limitMs, this.#drivenMs + LONGEST_MS);
  }

  /** Lets so much time pass. */
  pass(ms: number): Promise<void> {
    return this.drive(new Promise<void>((resolve) => this.after(ms, resolve)));
  }

  /** Puts an event into the log, of which `digest` is the hash; the moment goes with it. */
  note(kind: number, a = 0, b = 0): void {
    const log = this.#log;
    log[this.#logged] = kind;
    log[this.#logged + 1] = a;
    log[this.#logged + 2] = b;
    log[this.#logged + 3] = this.#nowMs * 1e3;
    this.#logged += 4;
    if (this.#logged === LOG_WORDS) this.#hashLog();
  }

  /** Of all that was noted so far, as 32 hex digits. */
  digest(): string {
    this.#hashLog();
    return this.#hash?.copy().digest('hex').slice(0, 32) ?? '';
  }

  #hashLog(): void {
    this.#hash ??= createHash('sha256');
    this.#hash.update(this.#log.subarray(0, this.#logged));
    this.#logged = 0;
  }

  #runIfAlone(): void {
    if (!this.#runsByItself || this.#pumping) return;
    this.#pumping = true;
    this.#soon();
  }

  /** As a microtask. A promise's: `queueMicrotask` notes who asked, with each event. */
  #soon(): void {
    void resolved.then(this.#afterMicrotasks);
  }

  readonly #afterMicrotasks = (): void => {
    process.nextTick(this.#pump);
  };

  readonly #pump = (): void => {
    if (this.#settle !== null) {
      this.#pumping = false;
      this.#settle();
      this.#settle = null;
      return;
    }
    const turn = this.#turns.shift();
    if (turn !== undefined) {
      if (turn.process.isAlive) turn.run();
    } else if (!this.#next()) {
      this.#pumping = false;
      return;
    }
    this.#soon();
  };

  /** The next event; false where there is none, or none in time. */
  #next(): boolean {
    const event = this.#pop();
    if (event === null && this.#runsByItself) return false;
    if (event === null || event.atMs > this.#untilMs) {
      if (event !== null) this.#push(event);
      this.#fail(
        new Stuck(
          event === null
            ? `at ${this.#nowMs.toFixed(3)} ms nothing is left that could happen, and somebody waits`
            : `at ${this.#nowMs.toFixed(3)} ms somebody still waits, beyond all patience`,
        ),
      );
      return false;
    }
    this.#nowMs = event.atMs;
    this.#count += 1;
    this.#asked = 0;
    if (this.#nowMs >= this.#markMs + 1) {
      this.#markMs = this.#nowMs;
      this.#markCount = this.#count;
    } else if (this.#count - this.#markCount > HAPPENED_MOST) {
      this.#standsStill();
      return false;
    }
    if (event.process === null || event.process.isAlive) event.run();
    return true;
  }

  /** What is driven fails with it. */
  #standsStill(): Stuck {
    const stuck = new Stuck(
      `at ${this.#nowMs.toFixed(3)} ms time stands still, and somebody goes on for ever`,
    );
    this.#fail(stuck);
    return stuck;
  }

  // A binary heap.

  #push(event: Event): void {
    const heap = this.#events;
    let at = heap.length;
    heap.push(event);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = heap[parent] as Event;
      if (!isBefore(event, above)) break;
      heap[at] = above;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): Event | null {
    const heap = this.#events;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined) return null;
    const { length } = heap;
    if (length === 0) return top;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= length) break;
      if (child + 1 < length && isBefore(heap[child + 1] as Event, heap[child] as Event)) child += 1;
      if (!isBefore(heap[child] as Event, last)) break;
      heap[at] = heap[child] as Event;
      at = child;
    }
    heap[at] = last;
    return top;
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.lot < b.lot);
}

/** A program that runs on this clock, until it is killed. */
export class Process implements Host {
  readonly clock: Clock;
  readonly random: (below: number) => number;
  #isAlive = true;

  constructor(clock: Clock) {
    this.clock = clock;
    this.random = seededRandom(clock.random(2 ** 32));
  }

  get isAlive(): boolean {
    return this.#isAlive;
  }

  /** Nothing that it waits for comes any more. Its devices have to be told by themselves: see disk.ts. */
  kill(): void {
    this.#isAlive = false;
  }

  now(): number {
    return this.clock.nowMs;
  }

  wallClock(): number {
    return EPOCH_MS + this.clock.nowMs;
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.clock.after(ms, resolve, this));
  }

  turn(run: () => void): void {
    this.clock.turn(this, run);
  }

  randomBytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => this.random(256));
  }
}
