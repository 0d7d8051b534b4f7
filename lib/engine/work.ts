/**
 * What a lane does with a job, whoever the lane is: the note of a commit around its writes, what control messages change,
 * and the end that is published. Each request that it yields is I/O, and nothing else.
 */
import { assert } from '../errors.ts';
import { compileLayout } from '../layout/compile.ts';
import { selectKernels } from '../parity/select.ts';
import { addressIn, type Batch, type Failure, type Flush, type SynchronousIo } from './batch.ts';
import { logOf, PartialParityLog } from './log.ts';
import { SCRATCH_BYTES, scratchAddress } from './memory.ts';
import { type ControlMessage, type Death, type LaneTask, messageOf, type ReportMessage } from './message.ts';
import { DONE, DONE_WITH_REPORT, ExclusionNotes, type Job, LaneControl, tableAddress } from './ring.ts';
import { nothingToReport, type Report, Runner, SharedHealth } from './run.ts';

export interface Surroundings {
  /** Where the job's I/O is done. */
  readonly io: Pick<SynchronousIo, 'setMember'>;
  post(message: ReportMessage | null): void;
  /** The lane is gone, here and now. */
  exit(): never;
}

export class LaneWork {
  readonly control: LaneControl;
  readonly #around: Surroundings;
  readonly #memberCount: number;
  readonly #health: SharedHealth;
  readonly #log: PartialParityLog | null;
  readonly #runner: Runner;
  #dies: Death | null = null;

  constructor(task: LaneTask, around: Surroundings) {
    const { map, lane } = task;
    const layout = compileLayout(task.geometry);
    this.control = new LaneControl(map, lane);
    this.#around = around;
    this.#memberCount = layout.memberCount;
    this.#health = new SharedHealth(layout, task.health, new ExclusionNotes(map, lane));
    this.#log = task.log === null ? null : new PartialParityLog(map, task.log, layout.memberCount);
    this.#runner = new Runner({
      layout,
      kernels: selectKernels(map.memory, tableAddress(lane), task.kernel),
      scratchAddress: scratchAddress(lane),
      scratchBytes: SCRATCH_BYTES,
      health: this.#health,
      readOnly: task.readOnly,
      log: this.#log,
    });
  }

  *run(job: Job): Generator<Batch | Flush, Report, readonly Failure[] | null> {
    const steps = this.#runner.run(job);
    let step = steps.next(null);
    while (step.done !== true) {
      const asked = step.value;
      let failures: readonly Failure[] | null = null;
      if (asked.direction === 'log') {
        assert(this.#log !== null, 'who logs has a log');
        failures = yield* this.#log.write([asked], this.#health.compiled.health);
      } else if (asked.direction === 'write') {
        this.#beginCommit(asked);
        if (this.#dies === 'in-commit') {
          yield firstHalf(asked);
          this.#around.exit();
        }
        failures = yield asked;
        this.#endCommit(failures);
      } else if (asked.direction !== 'release') failures = yield asked;
      step = steps.next(failures);
    }
    return step.value;
  }

  /** As `run`, of a write that can be done so where I/O blocks (`Runner.writeNow`); null where it cannot. */
  writeNow(job: Job, perform: (batch: Batch) => readonly Failure[] | null): Report | null {
    return this.#runner.writeNow(job, (asked) => {
      if (asked.direction === 'read') return perform(asked);
      this.#beginCommit(asked);
      if (this.#dies === 'in-commit') {
        perform(firstHalf(asked));
        this.#around.exit();
      }
      const failures = perform(asked);
      this.#endCommit(failures);
      return failures;
    });
  }

  #beginCommit(asked: Batch): void {
    if (this.#dies === 'before-commit') this.#around.exit();
    this.control.beginCommit(
      asked.transfers.map((transfer) => ({ ...transfer, address: addressIn(asked, transfer.address) })),
    );
  }

  #endCommit(failures: readonly Failure[] | null): void {
    // Noted before the commit ends: there is no moment at which nobody would know that these lack the bytes.
    if (failures !== null) this.#health.suspect(failures.map(({ transfer }) => transfer.member));
    this.control.endCommit();
    if (this.#dies === 'after-commit') this.#around.exit();
  }

  /** False when the lane is to stop. */
  obey(message: ControlMessage): boolean {
    const { io } = this.#around;
    switch (message.kind) {
      case 'health':
        this.#health.set(message.health);
        return true;
      case 'member':
        io.setMember(message.member, message.access);
        io.setMember(logOf(this.#memberCount, message.member), message.logAccess);
        if (message.member < this.#memberCount) this.#log?.restart(message.member);
        return true;
      case 'die':
        if (message.when === 'now') this.#around.exit();
        this.#dies = message.when;
        return true;
      case 'stop':
        return false;
    }
  }

  finish(id: number, report: Report): void {
    const { control } = this;
    // The message first: whoever sees the completion knows that it is there or about to be.
    if (report !== nothingToReport) this.#around.post(messageOf(id, report));
    // Not before: who has failed and cannot be missed is in the report, and is known by this note alone until then.
    this.#health.settle();
    control.finish(id, report === nothingToReport ? DONE : DONE_WITH_REPORT);
    // A report is no doorbell: it may be heard before there is a completion to be seen.
    if (control.takeDoorbell()) this.#around.post(null);
  }
}

function firstHalf(batch: Batch): Batch {
  return { ...batch, transfers: batch.transfers.slice(0, Math.ceil(batch.transfers.length / 2)) };
}
