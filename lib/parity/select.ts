/**
 * Which kernels there are, which of them run here, and which one runs. RAIDSIM_KERNEL chooses:
 *
 *   fastest   the last of the table that is supported (the default)
 *   <name>    exactly that one, or an error that says why not
 *   cycle     all that are supported, in turn, call by call
 *
 * The order of the table is fixed, not measured at start: measuring costs more than most processes live, and would make
 * two runs differ. bench/kernels.ts is where the order comes from.
 *
 * What is not supported says why, here and in `raidsim kernels`: slow arithmetic must not go unnoticed.
 */
import { RaidError } from '../errors.ts';
import { CycleKernels } from './cycle.ts';
import type { KernelSite, Kernels } from './kernels.ts';
import { ReferenceKernels } from './reference.ts';
import { ScalarKernels } from './scalar.ts';
import { moduleOf, WasmKernels } from './wasm.ts';

interface KernelEntry {
  readonly says: string;
  /** Why it cannot run here; null when it can. */
  readonly whyNot: () => string | null;
  readonly make: (site: KernelSite) => Kernels;
}

// From the slowest to the fastest.
const entries = {
  reference: {
    says: 'byte by byte from the definition',
    whyNot: () => null,
    make: (site) => new ReferenceKernels(site),
  },
  scalar: {
    says: 'plain JavaScript, 32 bits at a time',
    whyNot: () => null,
    make: (site) => new ScalarKernels(site),
  },
  simd: {
    says: 'WebAssembly SIMD, 128 bits at a time',
    whyNot: () => reasonOf(() => moduleOf('simd')),
    make: (site) => new WasmKernels('simd', site),
  },
  relaxed: {
    says: 'WebAssembly relaxed SIMD: as simd, with cheaper multiplication',
    whyNot: () => reasonOf(() => moduleOf('relaxed')),
    make: (site) => new WasmKernels('relaxed', site),
  },
} as const satisfies Record<string, KernelEntry>;

export type KernelName = keyof typeof entries;
export type KernelChoice = KernelName | 'fastest' | 'cycle';

export const kernelNames = Object.keys(entries) as readonly KernelName[];
export const kernelChoices: readonly KernelChoice[] = [...kernelNames, 'fastest', 'cycle'];

export interface KernelDescription {
  readonly name: KernelName;
  readonly says: string;
  readonly supported: boolean;
  /** Why it is not supported; null when it is. */
  readonly why: string | null;
  readonly active: boolean;
}

/** `tableAddress` is where the work area of this instance is: `workAreaBytes`, for this thread alone. */
export function selectKernels(
  memory: WebAssembly.Memory,
  tableAddress: number,
  choice: string = choiceOfEnvironment(),
): Kernels {
  const site = { memory, tableAddress };
  const all = active(choice).map((name) => entries[name].make(site));
  return choice === 'cycle' ? new CycleKernels(all) : all[0]!;
}

export function describeKernels(choice: string = choiceOfEnvironment()): readonly KernelDescription[] {
  const chosen = active(choice);
  return kernelNames.map((name) => {
    const why = whyNot(name);
    return { name, says: entries[name].says, supported: why === null, why, active: chosen.includes(name) };
  });
}

export function supportedKernels(): readonly KernelName[] {
  return kernelNames.filter((name) => whyNot(name) === null);
}

function choiceOfEnvironment(): string {
  return process.env['RAIDSIM_KERNEL'] || 'fastest';
}

function active(choice: string): readonly KernelName[] {
  if (choice === 'cycle') return supportedKernels();
  if (choice === 'fastest') return supportedKernels().slice(-1);
  const name = kernelNames.find((known) => known === choice);
  if (name === undefined) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `there are no kernels named "${choice}"; RAIDSIM_KERNEL is one of ${kernelChoices.join(', ')}`,
    );
  }
  const why = whyNot(name);
  if (why !== null) throw new RaidError('NOT_SUPPORTED', `the ${name} kernels cannot run here: ${why}`);
  return [name];
}

const reasons = new Map<KernelName, string | null>();

function whyNot(name: KernelName): string | null {
  const known = reasons.get(name);
  if (known !== undefined) return known;
  const reason = entries[name].whyNot();
  reasons.set(name, reason);
  return reason;
}

/** A missing file or an unknown instruction is a fact to report, in the engine's own words. */
function reasonOf(load: () => WebAssembly.Module): string | null {
  try {
    load();
    return null;
  } catch (error) {
    return `${error instanceof Error ? error.message : String(error)} (Node ${process.versions.node})`;
  }
}
