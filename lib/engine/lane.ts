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
import { compileLayout } from '../layout/compile.ts';
import { selectKernels } from '../parity/select.ts';
import { addressIn, type Failure, type Request, SynchronousIo } from './batch.ts';
import { logOf, PartialParityLog } from './log.ts';
import { SCRATCH_BYTES, scratchAddress } from './memory.ts';
import { type ControlMessage, type Death, type LaneBirth, messageOf } from './message.ts';
import { DONE, DONE_WITH_REPORT, ExclusionNotes, LaneControl, tableAddress } from './ring.ts';
import { drive, nothingToReport, type Report, Runner, SharedHealth } from './run.ts';

/** Looks at the ring this often before it sleeps: about 20 µs. Waking a sleeper costs 10 µs and more. */
const SPINS = 2000;

function main(birth: LaneBirth): void {
  const { map, lane, port } = birth;
  const control = new LaneControl(map, lane);
  const io = new SynchronousIo(map.memory, birth.members);
  const layout = compileLayout(birth.geometry);
  const health = new SharedHealth(layout, birth.health, new ExclusionNotes(map, lane));
  const log = birth.log === null ? null : new PartialParityLog(map, birth.log, layout.memberCount);
  const runner = new Runner({
    layout,
    kernels: selectKernels(map.memory, tableAddress(lane), birth.kernel),
    scratchAddress: scratchAddress(lane),
    scratchBytes: SCRATCH_BYTES,
    health,
    readOnly: birth.readOnly,
    log,
  });
  let dies: Death | null = null;

  const perform = (batch: Request): readonly Failure[] | null => {
    if (batch.direction === 'release') return null;
    if (batch.direction === 'log') {
      assert(log !== null, 'who logs has a log');
      return drive(log.write([batch], health.compiled.health), (each) => io.perform(each));
    }
    if (batch.direction !== 'write') return io.perform(batch);
    if (dies === 'before-commit') process.exit(1);
    control.beginCommit(
      batch.transfers.map((transfer) => ({ ...transfer, address: addressIn(batch, transfer.address) })),
    );
    if (dies === 'in-commit') {
      io.perform({ ...batch, transfers: batch.transfers.slice(0, Math.ceil(batch.transfers.length / 2)) });
      process.exit(1);
    }
    const failures = io.perform(batch);
    if (failures !== null) {
      // Noted before the commit ends: there is no moment at which nobody would know that these lack the bytes.
      health.suspect(failures.map(({ transfer }) => transfer.member));
    }
    control.endCommit();
    if (dies === 'after-commit') process.exit(1);
    return failures;
  };

  /** False when the lane is to stop. */
  const obey = (message: ControlMessage): boolean => {
    switch (message.kind) {
      case 'health':
        health.set(message.health);
        return true;
      case 'member':
        io.setMember(message.member, message.access);
        io.setMember(logOf(layout.memberCount, message.member), message.logAccess);
        if (message.member < layout.memberCount) log?.restart(message.member);
        return true;
      case 'die':
        if (message.when === 'now') process.exit(1);
        dies = message.when;
        return true;
      case 'stop':
        return false;
    }
  };

  for (let running = true; running; ) {
    control.waitForSubmission(SPINS);
    const { id, job } = control.peek();
    let report: Report = nothingToReport;
    if (job.op === 'control') {
      const received = receiveMessageOnPort(port) as { message: ControlMessage } | undefined;
      assert(received !== undefined, 'a control job has its message on the port');
      running = obey(received.message);
    } else {
      report = drive(runner.run(job), perform);
      health.settle();
    }
    if (report === nothingToReport) {
      control.finish(id, DONE);
      if (control.takeDoorbell()) port.postMessage(null);
    } else {
      // The message first: whoever sees the completion knows that it is there or about to be.
      port.postMessage(messageOf(id, report));
      control.finish(id, DONE_WITH_REPORT);
      // The message is no doorbell: it may be heard before there is a completion to be seen.
      if (control.takeDoorbell()) port.postMessage(null);
    }
  }
  port.close();
}

main(workerData as LaneBirth);
