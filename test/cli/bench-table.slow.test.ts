import { expect, test } from 'vitest';
import { raidsim } from './raidsim.ts';

interface KernelsDocument {
  readonly kernels: readonly {
    readonly name: string;
    readonly supported: boolean;
    readonly why: string | null;
    readonly active: boolean;
    readonly gigabytesPerSecond: Readonly<Record<string, number>> | null;
  }[];
}

test('kernels --json says of each kernel whether it runs here, or why not, and how fast', async () => {
  const { code, stdout } = await raidsim(['kernels', '--json'], { RAIDSIM_KERNEL: 'fastest' });
  expect(code).toBe(0);
  const { kernels } = JSON.parse(stdout) as KernelsDocument;
  expect(kernels.map(({ name }) => name)).toEqual(['reference', 'scalar', 'simd', 'relaxed']);
  for (const { supported, why, gigabytesPerSecond } of kernels) {
    expect(why === null).toBe(supported);
    expect(gigabytesPerSecond !== null).toBe(supported);
    for (const speed of Object.values(gigabytesPerSecond ?? {})) expect(speed).toBeGreaterThan(0);
  }
  expect(kernels.filter(({ active }) => active)).toHaveLength(1);
});

test('kernels marks the one that the environment chose', async () => {
  const { code, stdout } = await raidsim(['kernels'], { RAIDSIM_KERNEL: 'scalar' });
  expect(code).toBe(0);
  expect(stdout).toMatch(/^\* {2}scalar/m);
});

test('kernels refuses a choice that is none, and says what there is', async () => {
  const { code, stderr } = await raidsim(['kernels'], { RAIDSIM_KERNEL: 'abacus' });
  expect(code).toBe(2);
  expect(stderr).toContain('"abacus"');
  expect(stderr).toContain('scalar');
});

test.each([
  [['--level', 'raid7'], 'raid7'],
  [['--level', 'raid6', '--members', '2'], 'raid6'],
  [['--members', 'many'], "'many'"],
  [['--chunk', 'large'], '"large"'],
  [['--chunk', '5K'], 'power of two'],
  [['--dir', '/nowhere/at/all'], '/nowhere/at/all'],
])('bench %j is a wrong call, and leaves nothing behind', async (args, named) => {
  const { code, stdout, stderr } = await raidsim(['bench', '--quick', ...args]);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
  expect(stderr).toContain(named);
});
