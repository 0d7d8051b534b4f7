/**
 * The parity kernels beside a plain copy that moves as many bytes; lib/parity/measure.ts says how bytes are counted.
 * 64 KiB chunks fit the L2 cache and show the arithmetic; 16 MiB chunks do not fit any, and show memory.
 *
 *   node dist/bench/kernels.js [chunks of data, default 4]
 */
import { pathToFileURL } from 'node:url';
import { realHost } from '../lib/host.ts';
import { type KernelMeasurement, type MeasureOptions, measureKernels } from '../lib/parity/measure.ts';
import { describeKernels } from '../lib/parity/select.ts';
import { formatSize } from '../lib/units.ts';

export interface KernelBench {
  readonly rows: readonly KernelMeasurement[];
  readonly table: string;
}

export function benchKernels(options: Partial<MeasureOptions> = {}): KernelBench {
  const rows = [...measureKernels({ now: realHost.now, ...options })];
  return { rows, table: tableOf(rows) };
}

/** One line for each kernel and operation; for each length: GB/s, the copy's GB/s, and their ratio. */
export function tableOf(rows: readonly KernelMeasurement[]): string {
  const lengths = [...new Set(rows.map((row) => row.lengthBytes))];
  const keys = [...new Set(rows.map(keyOf))];
  const header = lengths.map((length) => `${formatSize(length)}  copy ratio`.padStart(22)).join('');
  const lines = keys.map((key) => {
    const cells = lengths.map((length) => {
      const row = rows.find((candidate) => candidate.lengthBytes === length && keyOf(candidate) === key);
      return (row === undefined ? '-' : cellOf(row)).padStart(22);
    });
    return key + cells.join('');
  });
  return [`${'GB/s'.padEnd(24)}${header}`, ...lines].join('\n');
}

function keyOf(row: KernelMeasurement): string {
  return `${row.kernel.padEnd(11)}${row.operation.padEnd(13)}`;
}

function cellOf(row: KernelMeasurement): string {
  const figure = row.gigabytesPerSecond.toFixed(row.gigabytesPerSecond < 1 ? 2 : 1);
  return `${figure}${row.copyGigabytesPerSecond.toFixed(1).padStart(7)}${row.ratio.toFixed(2).padStart(6)}`;
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const chunkCount = Number(process.argv[2] ?? 4);
  for (const { name, supported, why, active } of describeKernels()) {
    process.stdout.write(`${active ? '*' : ' '} ${name.padEnd(10)} ${supported ? 'supported' : why}\n`);
  }
  process.stdout.write(`\nNode ${process.versions.node}, ${chunkCount} chunks of data\n`);
  process.stdout.write(`${benchKernels({ chunkCount }).table}\n`);
}
