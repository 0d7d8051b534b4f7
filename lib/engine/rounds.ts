/**
 * Group commit for the partial parity log, where jobs wait for their I/O: those that come while a round is under way
 * make up the next one, with one header and one flush for each log between them.
 *
 *   enter ─▶ waiting ─▶ the headers are written ─▶ inside: writes its rows ─▶ leave
 *
 * A round begins when nobody is inside: only then is what the headers before it cover written, and can be flushed.
 * Nobody inside waits for anybody who waits, so rounds go on.
 */
import { assert } from '../errors.ts';
import type { Health, LogEntry } from '../plan/plan.ts';
import type { Batch, Failure, Flush, LogRequest } from './batch.ts';
import type { PartialParityLog } from './log.ts';
import { driveAsynchronously } from './run.ts';

interface Waiting {
  readonly request: LogRequest;
  readonly resolve: (failures: readonly Failure[] | null) => void;
  readonly reject: (error: unknown) => void;
}

export class LogRounds {
  readonly #log: PartialParityLog;
  readonly #health: () => Health;
  readonly #perform: (asked: Batch | Flush) => Promise<readonly Failure[] | null>;
  #waiting: Waiting[] = [];
  #inside = 0;
  #isWriting = false;

  constructor(
    log: PartialParityLog,
    health: () => Health,
    perform: (asked: Batch | Flush) => Promise<readonly Failure[] | null>,
  ) {
    this.#log = log;
    this.#health = health;
    this.#perform = perform;
  }

  /** Null: what is asked for is in the log, and whoever asked is inside until it leaves. */
  enter(request: LogRequest): Promise<readonly Failure[] | null> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ request, resolve, reject });
      void this.#begin();
    });
  }

  leave(): void {
    this.#inside -= 1;
    assert(this.#inside >= 0, 'who leaves a round has entered it');
    void this.#begin();
  }

  async #begin(): Promise<void> {
    if (this.#isWriting || this.#inside > 0 || this.#waiting.length === 0) return;
    this.#isWriting = true;
    // A turn of the microtask queue: jobs that were submitted together log together.
    await Promise.resolve();
    const round = this.#takeRound();
    try {
      const requests = round.map(({ request }) => request);
      const failures = await driveAsynchronously(this.#log.write(requests, this.#health()), this.#perform);
      if (failures === null) this.#inside = round.length;
      for (const { resolve } of round) resolve(failures);
    } catch (error) {
      for (const { reject } of round) reject(error);
    }
    this.#isWriting = false;
    void this.#begin();
  }

  /** As many as fit into one header of each log, in the order in which they came. */
  #takeRound(): readonly Waiting[] {
    const entries: LogEntry[] = [];
    let count = 0;
    for (const { request } of this.#waiting) {
      if (count > 0 && !this.#log.fits([...entries, ...request.entries])) break;
      entries.push(...request.entries);
      count += 1;
    }
    return this.#waiting.splice(0, count);
  }
}
