/**
 * How much of the machine went to others while a row was measured. An array needs two threads or more where its bound needs
 * one, so a process beside them halves the one and leaves the other alone: such a row says more about that process.
 */
import { cpus } from 'node:os';

export class OthersWatch {
  readonly #cores = cpus().length;
  readonly #startMs = performance.now();
  readonly #busyMs = busyMs();
  readonly #own = process.cpuUsage();

  /** Of all cores together since the watch was made: 0 is none of it. The system counts in steps of 10 ms. */
  share(): number {
    const own = process.cpuUsage(this.#own);
    const wallMs = performance.now() - this.#startMs;
    const others = busyMs() - this.#busyMs - (own.user + own.system) / 1000;
    return Math.min(1, Math.max(0, others / (wallMs * this.#cores)));
  }
}

function busyMs(): number {
  return cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0);
}
