/** Killed at some operations on the store, chosen by chance; crash.slow.test.ts has all of them. */
import { describe, test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { casesFor, killEverywhere } from './crash-world.ts';

describe.each(casesFor(2))('$title', (testCase) => {
  test('is killed in the middle, and nothing is lost', () =>
    withSeed(runSeed, async (random) => {
      await killEverywhere(testCase, () => random(40) === 0);
    }));
});
