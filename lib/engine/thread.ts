/** Lanes that are worker threads. */
import { createRequire } from 'node:module';
import { MessageChannel, receiveMessageOnPort, Worker } from 'node:worker_threads';
import type { Crew, Hand } from './crew.ts';
import type { LaneBirth, ReportMessage } from './message.ts';
import { LaneControl } from './ring.ts';

export const threads: Crew = {
  reaches: ['file', 'memory'],
  hire(task, hears): Hand {
    const { port1: port, port2 } = new MessageChannel();
    const control = new LaneControl(task.map, task.lane);
    const workerData: LaneBirth = { ...task, port: port2 };
    const worker = new Worker(createRequire(import.meta.url).resolve('#lane'), {
      name: `raidsim lane ${task.lane}`,
      workerData,
      transferList: [port2],
      // None of the program's own: with `node --input-type=module -e` a worker does not even start.
      execArgv: [],
    });
    worker.unref();
    port.on('message', (message: ReportMessage | null) => hears.posted(message));
    port.unref();
    worker.on('error', (error: Error & { code?: string }) => {
      if (error.code !== 'ERR_WORKER_OUT_OF_MEMORY') hears.broke(error);
    });
    worker.on('exit', () => hears.died());
    return {
      post: (message) => port.postMessage(message),
      receive: () => {
        const received = receiveMessageOnPort(port) as { message: ReportMessage | null } | undefined;
        return received?.message;
      },
      wake: () => control.wake(),
      kill: async () => {
        await worker.terminate();
      },
      leave: () => port.close(),
      ref: () => worker.ref(),
      unref: () => worker.unref(),
      refPosts: () => port.ref(),
      unrefPosts: () => port.unref(),
    };
  },
  soon: (look) => {
    setImmediate(look);
  },
};
