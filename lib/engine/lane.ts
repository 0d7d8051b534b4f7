/**
 * A lane: a worker thread that owns stripes and carries out their jobs one after the other, synchronously, in the
 * order in which they were submitted. That order is the only lock stripes need.
 *
 * A lane never returns to its event loop while it works: it looks at its ring, spins briefly, then sleeps in
 * `Atomics.wait`. So messages cannot reach it by events; a `control` job says that one is waiting on the port, which
 * is then taken from it synchronously. That also gives control messages their place in the order of jobs: a change
 * of health is a barrier.
 */
import { receiveMessageOnPort, workerData } from 'node:worker_threads';
import { assert } from '../errors.ts';
import { type Batch, type Failure, type Flush, SynchronousIo } from './batch.ts';
import type { ControlMessage, LaneBirth } from './message.ts';
import { drive, nothingToReport, type Report } from './run.ts';
import { LaneWork } from './work.ts';

/** Looks at the ring this often before it sleeps: about 20 µs. Waking a sleeper costs 10 µs and more. */
const SPINS = 2000;

function main(birth: LaneBirth): void {
  const { port } = birth;
  const io = new SynchronousIo(birth.map.memory, birth.members);
  const work = new LaneWork(birth, {
    io,
    post: (message) => port.postMessage(message),
    exit: () => process.exit(1),
  });
  const { control } = work;
  const perform = (asked: Batch | Flush): readonly Failure[] | null => io.perform(asked);
  for (let running = true; running; ) {
    control.waitForSubmission(SPINS);
    const { id, job } = control.peek();
    let report: Report = nothingToReport;
    if (job.op === 'control') {
      const received = receiveMessageOnPort(port) as { message: ControlMessage } | undefined;
      assert(received !== undefined, 'a control job has its message on the port');
      running = work.obey(received.message);
    } else report = work.writeNow(job, perform) ?? drive(work.run(job), perform);
    work.finish(id, report);
  }
  port.close();
}

main(workerData as LaneBirth);
