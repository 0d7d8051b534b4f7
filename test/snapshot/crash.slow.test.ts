import { expect, test } from 'vitest';
import { KIB } from '../../lib/units.ts';
import { runSeed } from '../conformance/seed.ts';
import { everyCrash } from './crash-world.ts';

const ROUNDS = 12;

test('cut after any request to a disk, whatever the disks kept: every snapshot is its image', async () => {
  for (let round = 0; round < ROUNDS; round += 1) {
    const { crashed, invalid } = await everyCrash(runSeed + round, 512 * KIB, 18);
    expect(crashed).toBeGreaterThan(100);
    expect(invalid).toBe(0);
  }
});

test('cut after any request with a store too small: every snapshot is its image, or invalid', async () => {
  let invalid = 0;
  for (let round = 0; round < ROUNDS; round += 1)
    invalid += (await everyCrash(runSeed + round, 40 * KIB, 18)).invalid;
  expect(invalid).toBeGreaterThan(0);
});
