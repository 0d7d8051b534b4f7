import { test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { fuzzServer } from './server-fuzz.ts';

test('3000 sessions of nonsense leave nothing behind, and disturb nobody', async () => {
  await withSeed(runSeed, (random) => fuzzServer(3000, random));
});
