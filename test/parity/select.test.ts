import { afterEach, describe, expect, test, vi } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import { measuredOperations, measureKernels } from '../../lib/parity/measure.ts';
import {
  describeKernels,
  kernelChoices,
  kernelNames,
  selectKernels,
  supportedKernels,
} from '../../lib/parity/select.ts';

const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });

function codeOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof RaidError) return error.code;
    throw error;
  }
  return 'none';
}

afterEach(() => vi.unstubAllEnvs());

describe('choosing kernels', () => {
  test('the default is the last that is supported, and is what "fastest" names', () => {
    vi.stubEnv('RAIDSIM_KERNEL', '');
    const best = supportedKernels().at(-1);
    expect(selectKernels(memory, 0).name).toBe(best);
    expect(selectKernels(memory, 0, 'fastest').name).toBe(best);
  });

  test('the environment chooses where the caller does not', () => {
    vi.stubEnv('RAIDSIM_KERNEL', 'scalar');
    expect(selectKernels(memory, 0).name).toBe('scalar');
    expect(selectKernels(memory, 0, undefined).name).toBe('scalar');
    expect(selectKernels(memory, 0, 'cycle').name).toBe('cycle');
    expect(describeKernels().filter((row) => row.active)).toMatchObject([{ name: 'scalar' }]);
  });

  test('every name is either made or refused with the reason that its row gives', () => {
    for (const row of describeKernels('fastest')) {
      if (row.supported) {
        expect(row.why).toBeNull();
        expect(selectKernels(memory, 0, row.name).name).toBe(row.name);
      } else {
        expect(row.why).not.toBe('');
        expect(codeOf(() => selectKernels(memory, 0, row.name))).toBe('NOT_SUPPORTED');
        expect(() => selectKernels(memory, 0, row.name)).toThrow(row.why!);
      }
    }
  });

  test('baseline SIMD runs on every Node that raidsim runs on', () => {
    expect(supportedKernels()).toContain('simd');
  });

  test('a name that is none is the mistake of whoever set it, and the answer lists what there is', () => {
    expect(codeOf(() => selectKernels(memory, 0, 'mmx'))).toBe('BAD_ARGUMENT');
    expect(() => selectKernels(memory, 0, 'mmx')).toThrow(kernelChoices.join(', '));
  });

  test('cycling makes everything active that is supported', () => {
    expect(
      describeKernels('cycle')
        .filter((row) => row.active)
        .map((row) => row.name),
    ).toEqual(supportedKernels());
    expect(describeKernels('cycle').map((row) => row.name)).toEqual(kernelNames);
  });

  test('a work area must lie in the memory, on a cache line', () => {
    expect(() => selectKernels(memory, 1, 'simd')).toThrow(/cache line/);
    expect(() => selectKernels(memory, 65_536 - 64, 'simd')).toThrow(/lies in its memory/);
  });
});

test('measuring gives a row for every kernel and operation, by the clock that it is given', () => {
  // A clock on which every look takes 2 ms: each batch then takes 2 ms, whatever really ran.
  let time = 0;
  const now = (): number => {
    time += 2;
    return time;
  };
  const rows = [...measureKernels({ now, lengths: [1000], millisecondsPerRow: 1, chunkCount: 3 })];
  expect(rows).toHaveLength(supportedKernels().length * measuredOperations.length);
  const xor = rows.find((row) => row.operation === 'xor');
  expect(xor).toMatchObject({ movedBytes: 4000, gigabytesPerSecond: 4000 / 2 / 1e6, ratio: 1 });
});
