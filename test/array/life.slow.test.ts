/** Lives (life.ts), as many as a minute has room for. */
import { test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { live } from './life.ts';

const LIVES = 200;

test('an array with metadata reads what was written to it, through hundreds of lives', async () => {
  for (let seed = runSeed; seed < runSeed + LIVES; seed += 1) await withSeed(seed, live);
});
