/** All of what run.test.ts tries a sample of. */
import { describe, expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { checkOneFault, checkTwoFaults, poolOf } from './job-cases.ts';
import { shapes } from './world.ts';

describe('a job', () => {
  for (const [title, geometry] of shapes) {
    const layout = compileLayout(geometry);
    test(`on ${title}: with any member failing in any way, in every health`, () =>
      withSeed(runSeed, (random) => {
        expect(checkOneFault(layout, poolOf(layout, random), random, 1)).toBeGreaterThan(0);
      }));

    test(`on ${title}: with any two members failing, twenty thousand times`, () =>
      withSeed(runSeed, (random) => {
        const pool = poolOf(layout, random);
        for (let round = 0; round < 20_000; round += 1) checkTwoFaults(layout, pool, random);
      }));
  }
});
