/**
 * How fast each kernel is here, in bytes moved: what an operation has to read plus what it has to write, once each.
 *
 *   xor of n         n reads + 1 write
 *   P+Q of n         n reads + 2 writes
 *   update P+Q       old, new, P, Q read + P, Q written
 *   recover D        n - 1 data and P read + 1 write        DP, DQ: n - 1 data and a parity read + 2 writes
 *   recover DD       n - 2 data, P and Q read + 2 writes
 *   verify P+Q       n + 2 reads
 *
 * Beside each stands a plain copy that moves as many bytes (half read, half written), measured in turns with it, so that
 * what else the machine does meets both. Memory does not know arithmetic: near 1.0 the kernel is as fast as memory, and
 * above it, because reading costs less than writing (a written line is first read), and most of these read more.
 *
 * The figure is the best of many calls: the least disturbed one.
 */
import type { Erasure, Kernels } from './kernels.ts';
import { workAreaBytes } from './kernels.ts';
import { type KernelName, selectKernels, supportedKernels } from './select.ts';

export interface MeasureOptions {
  /** Monotonic milliseconds. */
  readonly now: () => number;
  readonly kernels?: readonly KernelName[];
  readonly lengths?: readonly number[];
  readonly operations?: readonly MeasuredOperation[];
  /** Data chunks of a stripe. */
  readonly chunkCount?: number;
  /** For each row; a row takes at least one call. */
  readonly millisecondsPerRow?: number;
}

export interface KernelMeasurement {
  readonly kernel: KernelName;
  readonly operation: MeasuredOperation;
  /** Of one chunk. */
  readonly lengthBytes: number;
  readonly movedBytes: number;
  readonly gigabytesPerSecond: number;
  /** A plain copy that moves as many bytes. */
  readonly copyGigabytesPerSecond: number;
  readonly ratio: number;
}

interface Stripe {
  readonly data: readonly number[];
  readonly p: number;
  readonly q: number;
  /** Equal to the first chunk of data. */
  readonly twin: number;
  readonly zeros: number;
  /** Half of it is copied onto the other half. */
  readonly copyArea: number;
  readonly lengthBytes: number;
}

interface Operation {
  /** In chunks. */
  readonly moved: (chunkCount: number) => number;
  /** Leaves the stripe as it found it: every answer is written over itself. */
  readonly run: (kernels: Kernels, stripe: Stripe) => void;
}

const operations = {
  xor: { moved: (n) => n + 1, run: (kernels, s) => kernels.xor(s.data, s.p, s.lengthBytes) },
  syndrome: { moved: (n) => n + 2, run: (kernels, s) => kernels.syndrome(s.data, s.p, s.q, s.lengthBytes) },
  update: {
    moved: () => 6,
    run: (kernels, s) => kernels.update(s.data[0]!, s.twin, 1, s.p, s.q, s.lengthBytes),
  },
  'recover D': { moved: (n) => n + 1, run: recovering({ kind: 'D', x: 1 }) },
  'recover DP': { moved: (n) => n + 2, run: recovering({ kind: 'DP', x: 1 }) },
  'recover DQ': { moved: (n) => n + 2, run: recovering({ kind: 'DQ', x: 1 }) },
  'recover DD': { moved: (n) => n + 2, run: recovering({ kind: 'DD', x: 0, y: 1 }) },
  verify: { moved: (n) => n + 2, run: (kernels, s) => kernels.verify(s.data, s.p, s.q, s.lengthBytes) },
  compare: { moved: () => 2, run: (kernels, s) => kernels.compare(s.data[0]!, s.twin, s.lengthBytes) },
  isZero: { moved: () => 1, run: (kernels, s) => kernels.isZero(s.zeros, s.lengthBytes) },
  copy: { moved: () => 2, run: (kernels, s) => kernels.copy(s.data[0]!, s.twin, s.lengthBytes) },
  fill: { moved: () => 1, run: (kernels, s) => kernels.fill(s.zeros, 0, s.lengthBytes) },
} as const satisfies Record<string, Operation>;

export type MeasuredOperation = keyof typeof operations;

export const measuredOperations = Object.keys(operations) as readonly MeasuredOperation[];

/** The reference has one speed at any size, and 16 MiB of it would take seconds a call. */
const REFERENCE_BYTES_MAX = 64 * 1024;

/** Row by row, so that a caller can show each as it comes. */
export function* measureKernels(options: MeasureOptions): Generator<KernelMeasurement> {
  const {
    now,
    kernels: names = supportedKernels(),
    lengths = [64 * 1024, 16 * 1024 * 1024],
    operations: wanted = measuredOperations,
    chunkCount = 4,
    millisecondsPerRow = 40,
  } = options;
  for (const lengthBytes of lengths) {
    const memory = memoryFor(chunkCount, lengthBytes);
    const copier = selectKernels(memory, 0, 'fastest');
    const stripe = layOut(copier, memory, chunkCount, lengthBytes);
    for (const kernel of names) {
      if (kernel === 'reference' && lengthBytes > REFERENCE_BYTES_MAX) continue;
      const kernels = selectKernels(memory, 0, kernel);
      for (const operation of wanted) {
        const { moved, run } = operations[operation];
        const movedBytes = moved(chunkCount) * lengthBytes;
        const copied = movedBytes / 2;
        const [time, copyTime] = bestTimes(
          now,
          millisecondsPerRow,
          () => run(kernels, stripe),
          () => copier.copy(stripe.copyArea, stripe.copyArea + copied, copied),
        );
        yield {
          kernel,
          operation,
          lengthBytes,
          movedBytes,
          gigabytesPerSecond: movedBytes / time / 1e6,
          copyGigabytesPerSecond: movedBytes / copyTime / 1e6,
          ratio: copyTime / time,
        };
      }
    }
  }
}

function recovering(erasure: Erasure): (kernels: Kernels, stripe: Stripe) => void {
  return (kernels, stripe) => kernels.recover(stripe.data, stripe.p, stripe.q, erasure, stripe.lengthBytes);
}

function memoryFor(chunkCount: number, lengthBytes: number): WebAssembly.Memory {
  const bytes = workAreaBytes + (chunkCount + 4 + Math.max(chunkCount + 2, 6)) * lengthBytes;
  const pages = Math.ceil(bytes / 65_536);
  return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
}

function layOut(
  kernels: Kernels,
  memory: WebAssembly.Memory,
  chunkCount: number,
  lengthBytes: number,
): Stripe {
  const at = (index: number): number => workAreaBytes + index * lengthBytes;
  const data = Array.from({ length: chunkCount }, (_, index) => at(index));
  const [p, q, twin, zeros, copyArea] = [0, 1, 2, 3, 4].map((k) => at(chunkCount + k)) as [
    number,
    number,
    number,
    number,
    number,
  ];
  const bytes = new Uint8Array(memory.buffer);
  for (let k = 0; k < chunkCount * lengthBytes; k += 1)
    bytes[workAreaBytes + k] = Math.imul(k, 2_654_435_761) >>> 24;
  // Memory that was never written is not there yet: the first to touch it would pay for the system's page faults.
  kernels.fill(zeros, 0, lengthBytes);
  kernels.fill(copyArea, 1, memory.buffer.byteLength - copyArea);
  kernels.copy(data[0]!, twin, lengthBytes);
  kernels.syndrome(data, p, q, lengthBytes);
  return { data, p, q, twin, zeros, copyArea, lengthBytes };
}

/** The best time of each, in milliseconds a call, taken in turns until the time is up. */
function bestTimes(
  now: () => number,
  milliseconds: number,
  first: () => void,
  second: () => void,
): readonly [number, number] {
  const end = now() + milliseconds;
  const best: [number, number] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  let repeats = 1;
  do {
    for (const [index, run] of [first, second].entries()) {
      const from = now();
      for (let i = 0; i < repeats; i += 1) run();
      const each = (now() - from) / repeats;
      if (each < best[index]!) best[index] = each;
    }
    // As many calls a turn as make the clock's own cost small.
    if (Math.min(...best) * repeats < 0.25) repeats *= 2;
  } while (now() < end);
  return best;
}
