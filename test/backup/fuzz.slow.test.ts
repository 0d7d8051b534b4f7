/** Anything in any file of a repository: fuzz-world.ts says what must hold. */
import { describe, test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { forgeEach, kinds, mutateEach, mutations } from './fuzz-world.ts';

const ROUNDS = 2;

describe.each(kinds)('$title', (kind) => {
  test.each(mutations)('any one file is $title: what is restored is right', (mutation) =>
    withSeed(runSeed, async (random) => {
      for (let round = 0; round < ROUNDS; round += 1) await mutateEach(kind, mutation, random);
    }),
  );

  test('files with forged sums: an error of ours, or an answer', () =>
    withSeed(runSeed, (random) => forgeEach(kind, 40, random)));
});
