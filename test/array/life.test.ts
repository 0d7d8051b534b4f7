/** A few lives (life.ts) on every run; a few hundred are lived in life.slow.test.ts. */
import { test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { live } from './life.ts';

const LIVES = 3;

test('an array with metadata reads what was written to it, whatever life brings', async () => {
  for (let seed = runSeed; seed < runSeed + LIVES; seed += 1) await withSeed(seed, live);
});
