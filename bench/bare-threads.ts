/** The bound's threads: as many as the engine has lanes, each making its list of calls. */
import { createRequire } from 'node:module';
import { Worker } from 'node:worker_threads';
import type { BoundAnswer, BoundBirth, BoundOrder } from './bound.ts';
import type { CallLists } from './calls.ts';

export class BareThreads {
  readonly #workers: readonly Worker[];
  readonly #ready = new Int32Array(new SharedArrayBuffer(4));
  #started = 0;

  constructor(threads: number, memory: WebAssembly.Memory, descriptors: readonly number[]) {
    const birth: BoundBirth = { memory, descriptors, ready: this.#ready };
    this.#workers = Array.from(
      { length: threads },
      (_, thread) =>
        new Worker(createRequire(import.meta.url).resolve('#bound'), {
          name: `raidsim bound ${thread}`,
          workerData: birth,
        }),
    );
  }

  async load(batches: readonly CallLists[]): Promise<void> {
    await this.#order((thread) => ({ kind: 'load', batches: batches.map((lists) => lists[thread] ?? []) }));
  }

  /**
   * Milliseconds of the slowest thread, measured by itself: what it costs to wake the threads and to hear of their end is not in
   * it, so that the bound errs on the side of speed.
   */
  async run(batch: number): Promise<number> {
    this.#started = (this.#started + this.#workers.length) | 0;
    const start = this.#started;
    return Math.max(...(await this.#order(() => ({ kind: 'run', batch, start }))));
  }

  async close(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }

  #order(orderOf: (thread: number) => BoundOrder): Promise<readonly BoundAnswer[]> {
    return Promise.all(
      this.#workers.map(
        (worker, thread) =>
          new Promise<BoundAnswer>((resolve, reject) => {
            worker.once('error', reject);
            worker.once('message', (answer: BoundAnswer) => {
              worker.off('error', reject);
              resolve(answer);
            });
            worker.postMessage(orderOf(thread));
          }),
      ),
    );
  }
}
