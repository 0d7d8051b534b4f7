import { test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { fuzzServer } from './server-fuzz.ts';

test('100 000 sessions of nonsense leave nothing behind, and disturb nobody', async () => {
  await withSeed(runSeed, (random) => fuzzServer(100_000, random));
});
