/** Anything in any file of a repository: fuzz-world.ts says what must hold. */
import { describe, test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { forgeEach, hurtSeveral, kinds, mutateEach, mutations } from './fuzz-world.ts';

const ROUNDS = 2;

describe.each(kinds)('$title', (kind) => {
  test.each(mutations)('any one file is $title: what is restored is right', (mutation) =>
    withSeed(runSeed, async (random) => {
      for (let round = 0; round < ROUNDS; round += 1) await mutateEach(kind, mutation, random);
    }),
  );

  test('several files are hurt: what verify calls repairable is repaired, and the rest stays lost', () =>
    withSeed(runSeed, (random) => hurtSeveral(kind, 60, random)));

  test('files with forged sums: an error of ours, or an answer', () =>
    withSeed(runSeed, (random) => forgeEach(kind, 40, random)));
});
