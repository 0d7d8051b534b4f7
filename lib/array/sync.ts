/**
 * The loop that brings redundancy back, in the background: it knows no RAID, only that there is a next step, and when
 * to stop. Whoever wants to see it watches; nobody watching makes no difference.
 */
import type { Host } from '../host.ts';
import { MIB, roundDown } from '../units.ts';

export interface SyncProgress {
  readonly action: 'recover' | 'resync';
  readonly doneBytes: number;
  readonly totalBytes: number;
}

const NAP_MS = 100;
const STEP_BYTES_MIN = 4 * MIB;

export class Sync {
  limitBytesPerSecond = Number.POSITIVE_INFINITY;
  readonly #host: Host;
  readonly #step: () => Promise<SyncProgress | null>;
  #running: Promise<void> | null = null;
  #stopping = false;
  #again = false;
  #progress: SyncProgress | null = null;
  #failure: unknown = null;
  #bytesPerSecond: number | null = null;
  #watchers: (() => void)[] = [];

  /** `step` does one window of work; null: nothing is left to do. */
  constructor(host: Host, step: () => Promise<SyncProgress | null>) {
    this.#host = host;
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

  /** How much the next step is to do: `most`, or what the limit lets through in a quarter of a second. */
  stepBytes(most: number): number {
    const limited = roundDown(Math.min(most, this.limitBytesPerSecond / 4), MIB);
    return Math.min(most, Math.max(STEP_BYTES_MIN, limited));
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
    while (this.#again) {
      this.#again = false;
      for (;;) {
        if (this.#stopping) return;
        const start = this.#host.now();
        const before = this.#progress;
        const progress = await this.#step();
        if (progress === null) break;
        this.#progress = progress;
        this.#tell();
        const bytes = workDone(before, progress);
        if (this.limitBytesPerSecond !== Number.POSITIVE_INFINITY) await this.#pace(bytes, start);
        this.#measure(bytes, start);
      }
      this.#progress = null;
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
