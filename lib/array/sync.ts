/**
 * The loop that brings redundancy back, in the background: it knows no RAID, only that there is a next step, and when
 * to stop. Whoever wants to see it watches; nobody watching makes no difference.
 *
 * A step does one window, and then accounts for it: the array's health, a checkpoint. That takes a millisecond or so on
 * threads that have to wake each other, and a window of 4 MiB no more than three; so the window after it is begun
 * before, and whoever does the work never runs dry. Two short windows rather than one long: a request that comes
 * in meanwhile waits behind both.
 */
import type { Host } from '../host.ts';
import { MIB } from '../units.ts';

export interface SyncProgress {
  readonly action: 'recover' | 'resync';
  readonly doneBytes: number;
  readonly totalBytes: number;
}

/** Of each member, for a sync and for a scrub, unless the array was told another. */
export const WINDOW_BYTES = 4 * MIB;
const NAP_MS = 100;

/** What is done window by window, from low to high. */
export interface Walk<Result> {
  /** Where the next window begins, from here on: further up where there is nothing to do. */
  readonly from: (afterBytes: number) => number;
  readonly totalBytes: number;
  readonly work: (fromBytes: number, lengthBytes: number) => Promise<Result>;
}

interface Window<Result> {
  readonly fromBytes: number;
  readonly endBytes: number;
  /** Null for an empty one, at the end of the walk. */
  readonly result: Promise<Result> | null;
}

export interface DoneWindow<Result> {
  readonly fromBytes: number;
  readonly endBytes: number;
  readonly result: Result | null;
}

/** Carries out the windows of a walk, each with the next one begun before it is waited for. */
export class Windows<Result> {
  readonly #windowBytes: number;
  #ahead: { readonly window: Window<Result>; after: unknown } | null = null;

  constructor(windowBytes: number) {
    this.#windowBytes = windowBytes;
  }

  /**
   * The first window after `doneBytes`, done. `after`: what `precedes` was told after the window before. Where it was
   * told something else, things have changed since, and what was begun ahead does not count.
   */
  async next(walk: Walk<Result>, doneBytes: number, after: unknown): Promise<DoneWindow<Result>> {
    const fromBytes = walk.from(doneBytes);
    const ahead = this.#ahead;
    const counts = ahead !== null && ahead.after === after && ahead.window.fromBytes === fromBytes;
    if (!counts) await this.drain();
    const window = counts ? ahead.window : this.#begin(walk, fromBytes);
    const { endBytes } = window;
    this.#ahead =
      endBytes < walk.totalBytes ? { window: this.#begin(walk, walk.from(endBytes)), after: null } : null;
    try {
      return { fromBytes, endBytes, result: await window.result };
    } catch (error) {
      await this.drain();
      throw error;
    }
  }

  /** What was begun ahead counts if the next call of `next` says the same. */
  precedes(after: unknown): void {
    if (this.#ahead !== null) this.#ahead.after = after;
  }

  /** Until nothing is under way. Whether that went well is nobody's concern any more: it will be done again. */
  async drain(): Promise<void> {
    const ahead = this.#ahead;
    this.#ahead = null;
    await ahead?.window.result?.catch(() => undefined);
  }

  #begin({ totalBytes, work }: Walk<Result>, fromBytes: number): Window<Result> {
    const lengthBytes = Math.min(this.#windowBytes, totalBytes - fromBytes);
    const result = lengthBytes > 0 ? work(fromBytes, lengthBytes) : null;
    // Waited for later; until then its failure must not count as one that nobody handles.
    result?.catch(() => undefined);
    return { fromBytes, endBytes: fromBytes + lengthBytes, result };
  }
}

export class Sync {
  limitBytesPerSecond = Number.POSITIVE_INFINITY;
  readonly windows: Windows<void>;
  readonly #host: Host;
  readonly #step: () => Promise<SyncProgress | null>;
  #running: Promise<void> | null = null;
  #stopping = false;
  #again = false;
  #progress: SyncProgress | null = null;
  #failure: unknown = null;
  #bytesPerSecond: number | null = null;
  #watchers: (() => void)[] = [];

  /** `step` does one of `windows`; null: nothing is left to do. */
  constructor(host: Host, windowBytes: number, step: () => Promise<SyncProgress | null>) {
    this.#host = host;
    this.windows = new Windows(windowBytes);
    this.#step = step;
  }

  get isRunning(): boolean {
    return this.#running !== null;
  }

  /** Over the last seconds; null until something has been done. */
  get bytesPerSecond(): number | null {
    return this.#bytesPerSecond;
  }

  get progress(): SyncProgress | null {
    return this.#progress;
  }

  /** Starts it, or lets it look for work once more before it ends. */
  start(): void {
    this.#again = true;
    if (this.#stopping || this.#running !== null) return;
    this.#failure = null;
    this.#running = this.#run()
      .catch((error: unknown) => {
        // Kept for whoever watches; with nobody watching, the state of the array says enough.
        this.#failure = error;
      })
      .finally(() => {
        this.#running = null;
        this.#tell();
      });
  }

  /** After the step that is under way. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
  }

  /** Every step from now on, until there is nothing left to do. Throws what ended the sync before that. */
  async *watch(): AsyncGenerator<SyncProgress> {
    let seen: SyncProgress | null = null;
    while (this.#running !== null) {
      await new Promise<void>((resolve) => this.#watchers.push(resolve));
      if (this.#progress !== null && this.#progress !== seen) {
        seen = this.#progress;
        yield seen;
      }
    }
    if (this.#failure !== null) throw this.#failure;
  }

  async #run(): Promise<void> {
    // Not within the call that started it: its caller may still be changing what the first step looks at.
    await Promise.resolve();
    try {
      while (this.#again) {
        this.#again = false;
        await this.#runUntilDone();
        // Before it is asked whether there is more to do: who starts it while this waits is heard.
        await this.windows.drain();
      }
    } finally {
      await this.windows.drain();
    }
  }

  async #runUntilDone(): Promise<void> {
    while (!this.#stopping) {
      const start = this.#host.now();
      const before = this.#progress;
      const progress = await this.#step();
      if (progress === null) {
        this.#progress = null;
        return;
      }
      this.#progress = progress;
      this.#tell();
      const bytes = workDone(before, progress);
      if (this.limitBytesPerSecond !== Number.POSITIVE_INFINITY) await this.#pace(bytes, start);
      this.#measure(bytes, start);
    }
  }

  /** Sleeps in short naps, so that a stop need not wait for a slow limit. */
  async #pace(bytes: number, startMs: number): Promise<void> {
    while (!this.#stopping) {
      // The limit may be another one by now.
      const leftMs = startMs + (bytes / this.limitBytesPerSecond) * 1000 - this.#host.now();
      if (leftMs <= 0) return;
      await this.#host.sleep(Math.min(leftMs, NAP_MS));
    }
  }

  /** A moving average over some 16 steps, pauses included: what the person waiting will see. */
  #measure(bytes: number, startMs: number): void {
    const ms = this.#host.now() - startMs;
    if (bytes <= 0 || ms <= 0) return;
    const now = (bytes / ms) * 1000;
    this.#bytesPerSecond =
      this.#bytesPerSecond === null ? now : this.#bytesPerSecond + (now - this.#bytesPerSecond) / 16;
  }

  #tell(): void {
    const watchers = this.#watchers;
    this.#watchers = [];
    for (const resolve of watchers) resolve();
  }
}

/** Where a step begins is known from the one before; the first one only says where the sync has come to. */
function workDone(before: SyncProgress | null, after: SyncProgress): number {
  return before?.action === after.action ? Math.max(0, after.doneBytes - before.doneBytes) : 0;
}
