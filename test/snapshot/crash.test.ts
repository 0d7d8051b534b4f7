import { expect, test } from 'vitest';
import { KIB } from '../../lib/units.ts';
import { runSeed } from '../conformance/seed.ts';
import { type Cut, everyCrash, mutants } from './crash-world.ts';

/** The worst for a store, and everything in between; the others are in crash.slow.test.ts. */
const QUICK: readonly Cut[] = ['origin only', 'some sectors'];

test('cut after any request to a disk, whatever the disks kept: every snapshot is its image (I17)', async () => {
  expect((await everyCrash(runSeed, 256 * KIB, 6, QUICK)).crashed).toBeGreaterThan(20);
});

test('cut after any request with a store too small: every snapshot is its image, or invalid', async () => {
  expect((await everyCrash(runSeed, 40 * KIB, 6, QUICK)).crashed).toBeGreaterThan(20);
});

test.each(mutants)('%s: caught', async (mutant) => {
  await expect(everyCrash(1, 256 * KIB, 8, QUICK, mutant)).rejects.toThrow(/should be|never written/);
});
