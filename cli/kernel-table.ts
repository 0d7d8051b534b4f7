/** Which parity kernels there are, which of them runs, and what each of them brings. */
import { benchKernels } from '../bench/kernels.ts';
import { describeKernels, type KernelDescription } from '../lib/index.ts';
import { paint, table } from './render.ts';

/** A chunk that fits the caches: the arithmetic shows, and not the memory. */
const CHUNK_BYTES = 64 * 1024;
const CHUNK_COUNT = 4;
const ROW_MS = 25;

const columns = ['xor', 'syndrome', 'recover DD'] as const;
type Measured = (typeof columns)[number];

interface KernelRow extends KernelDescription {
  /** Null where it cannot run. */
  readonly gigabytesPerSecond: Readonly<Record<Measured, number>> | null;
}

export function printKernels({ json }: { readonly json: boolean }): void {
  const rows = measured();
  process.stdout.write(json ? `${JSON.stringify(documentOf(rows), null, 2)}\n` : text(rows));
}

function measured(): readonly KernelRow[] {
  const { rows } = benchKernels({
    lengths: [CHUNK_BYTES],
    operations: columns,
    chunkCount: CHUNK_COUNT,
    millisecondsPerRow: ROW_MS,
  });
  return describeKernels().map((description) => {
    const speed = (operation: Measured): number =>
      rows.find((row) => row.kernel === description.name && row.operation === operation)
        ?.gigabytesPerSecond ?? 0;
    return {
      ...description,
      gigabytesPerSecond: description.supported
        ? { xor: speed('xor'), syndrome: speed('syndrome'), 'recover DD': speed('recover DD') }
        : null,
    };
  });
}

function documentOf(kernels: readonly KernelRow[]): object {
  return {
    schema: 'raidsim.kernels/1',
    node: process.versions.node,
    chunkBytes: CHUNK_BYTES,
    chunkCount: CHUNK_COUNT,
    kernels,
  };
}

function text(kernels: readonly KernelRow[]): string {
  const grid = table(
    [
      { title: '' },
      { title: 'kernel' },
      { title: 'xor', align: 'right' },
      { title: 'P+Q', align: 'right' },
      { title: 'recover', align: 'right' },
      { title: 'GB/s; what it is' },
    ],
    kernels.map((kernel) => [
      kernel.active ? paint('green', '*') : ' ',
      kernel.active ? paint('bold', kernel.name) : kernel.name,
      ...columns.map((column) => figure(kernel.gigabytesPerSecond?.[column])),
      kernel.supported ? kernel.says : paint('yellow', `not here: ${kernel.why}`),
    ]),
  );
  return `${grid}\n\n${paint('dim', '* runs here; RAIDSIM_KERNEL=<name> takes another. recover: two lost chunks of data')}\n`;
}

function figure(value: number | undefined): string {
  if (value === undefined) return '-';
  return value.toFixed(value < 1 ? 2 : 1);
}
