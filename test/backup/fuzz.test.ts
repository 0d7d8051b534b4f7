/** Anything in any file of a repository, a little of it; fuzz.slow.test.ts has more. */
import { describe, test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { forgeEach, kinds, mutateEach, mutations } from './fuzz-world.ts';

describe.each(kinds)('$title', (kind) => {
  test('any one file is anything: what is restored is right', () =>
    withSeed(runSeed, (random) => mutateEach(kind, mutations[random(mutations.length)]!, random)));

  test('a file with a forged sum: an error of ours, or an answer', () =>
    withSeed(runSeed, (random) => forgeEach(kind, 1, random)));
});
