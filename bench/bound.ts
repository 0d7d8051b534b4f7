/** A thread that does a lane's I/O and nothing else. `bare-threads.ts` tells it what and when. */
import { parentPort, workerData } from 'node:worker_threads';
import type { Call } from './calls.ts';
import { Replay } from './replay.ts';

/** What a bare thread is born with. */
export interface BoundBirth {
  readonly memory: WebAssembly.Memory;
  readonly descriptors: readonly number[];
  /** One word: how many threads are ready to start, ever. */
  readonly ready: Int32Array;
}

export type BoundOrder =
  | { readonly kind: 'load'; readonly batches: readonly (readonly Call[])[] }
  /** Starts when `ready` has counted up to `start`: all threads at once. */
  | { readonly kind: 'run'; readonly batch: number; readonly start: number };

/** In answer to `load`: 0. In answer to `run`: milliseconds. */
export type BoundAnswer = number;

function main(birth: BoundBirth): void {
  const port = parentPort;
  if (port === null) throw new Error('a bare thread is started by bare-threads.ts');
  let replays: readonly Replay[] = [];
  port.on('message', (order: BoundOrder) => {
    if (order.kind === 'load') {
      replays = order.batches.map((calls) => new Replay(birth.memory, birth.descriptors, calls));
      port.postMessage(0 satisfies BoundAnswer);
      return;
    }
    Atomics.add(birth.ready, 0, 1);
    while (((Atomics.load(birth.ready, 0) - order.start) | 0) < 0);
    port.postMessage((replays[order.batch]?.run() ?? 0) satisfies BoundAnswer);
  });
}

main(workerData as BoundBirth);
