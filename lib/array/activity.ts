/**
 * Clean and active: whether redundancy can be trusted after a crash.
 *
 *              enter                    marked                          200 ms without a write
 *     clean ──────────▶ marking ────────────────▶ active ──────────────────────────────▶ cleaning ──▶ clean
 *                       the writers wait                        flush all members, then say so
 *
 * An array that says "clean" promises that all copies agree and all parity is right. So before the first write it has to
 * stop saying so, durably; and it may say so again only when every member has flushed what it was given (I7): a
 * superblock that says clean on one member while another's cache still holds a parity block would, after a power cut,
 * be a lie that nobody looks behind.
 *
 * The delay is md's safe_mode_delay. Without it each write of a database would cost two superblock updates.
 */
import type { Host } from '../host.ts';

export interface ActivityOptions {
  readonly host: Host;
  readonly delayMs: number;
  /** Durable on all members when it resolves. */
  readonly markActive: () => Promise<void>;
  /** Flushes all members, then records that the array is clean. False where something has to be on record before. */
  readonly markClean: () => Promise<boolean>;
}

type State = 'clean' | 'marking' | 'active' | 'cleaning';

export class Activity {
  readonly #options: ActivityOptions;
  #state: State = 'clean';
  #inFlight = 0;
  #hasBegun = false;
  #lastEnd = 0;
  #isWatching = false;
  /** What `marking` and `cleaning` wait for. */
  #transition: Promise<void> = Promise.resolve();
  #stopped = false;

  /**
   * "Clean" at first, though superblocks may say otherwise: nothing has been written yet in this life, and the first write
   * waits until every member says that there will be (record.ts, `begin`).
   */
  constructor(options: ActivityOptions) {
    this.#options = options;
  }

  get isActive(): boolean {
    return this.#state !== 'clean';
  }

  /** Whether there has been a write in this life, or one waits to be let in. */
  get hasBegun(): boolean {
    return this.#hasBegun;
  }

  /** Before a write. Null when it may start at once, as it may on an array that is active. */
  enter(): Promise<void> | null {
    this.#inFlight += 1;
    this.#hasBegun = true;
    return this.#state === 'active' ? null : this.#becomeActive();
  }

  /** After it, however it ended. */
  leave(): void {
    this.#inFlight -= 1;
    if (this.#inFlight === 0) this.#rest();
  }

  /**
   * Records how far redundancy is right, if nobody has been writing: what a resync does now and then. Writers that come
   * meanwhile wait, as they do for becoming clean: what is recorded must be true until they have said otherwise.
   */
  async checkpoint(): Promise<void> {
    const isQuiet = this.#inFlight === 0 && this.#options.host.now() - this.#lastEnd >= this.#options.delayMs;
    if (this.#stopped || !(this.#state === 'clean' || (this.#state === 'active' && isQuiet))) return;
    await this.#becomeClean();
  }

  /** Clean, now: at close. No write may be under way, and none may follow. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#transition.catch(() => undefined);
    if (this.#state === 'active') await this.#becomeClean();
  }

  async #becomeActive(): Promise<void> {
    while (this.#state !== 'active') {
      if (this.#state === 'clean') {
        this.#state = 'marking';
        this.#transition = this.#options.markActive().then(
          () => {
            this.#state = 'active';
            // Whoever asked for it may have left meanwhile, because something else that it needed was refused.
            if (this.#inFlight === 0) this.#rest();
          },
          (error: unknown) => {
            this.#state = 'clean';
            throw error;
          },
        );
      }
      await this.#transition;
    }
  }

  async #becomeClean(): Promise<void> {
    const before = this.#state;
    this.#state = 'cleaning';
    let failure: unknown = null;
    // Writers wait for the end of it, whatever that is: why the array could not rest is for whoever asked it to.
    this.#transition = this.#options.markClean().then(
      (isDone) => {
        this.#state = isDone ? 'clean' : before;
        if (this.#state === 'active') this.#rest();
      },
      (error: unknown) => {
        // Some members may say "clean" by then, and the next write has to see to that.
        this.#state = 'clean';
        failure = error;
      },
    );
    await this.#transition;
    if (failure !== null) throw failure;
  }

  #rest(): void {
    this.#lastEnd = this.#options.host.now();
    if (!this.#isWatching) void this.#watch();
  }

  /** Until the array is clean again. */
  async #watch(): Promise<void> {
    const { host, delayMs } = this.#options;
    this.#isWatching = true;
    while (this.#state === 'active' && !this.#stopped) {
      const left = this.#inFlight > 0 ? delayMs : this.#lastEnd + delayMs - host.now();
      if (left > 0) await host.sleep(left);
      // A failure is met again by whatever comes next.
      else await this.#becomeClean().catch(() => undefined);
    }
    this.#isWatching = false;
  }
}
