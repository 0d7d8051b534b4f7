/**
 * The logic of a job, with every transfer that may fail failing: for every level, every health that the array survives,
 * every operation, and one or two members that fail in each of the ways there are (job-cases.ts). Here a sample of
 * some thousand cases; run.slow.test.ts tries all.
 */
import { describe, expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { checkOneFault, checkTwoFaults, faultNames, healthsOf, ops, poolOf } from './job-cases.ts';
import { shapes } from './world.ts';

const CASES = 200;

describe('a job', () => {
  for (const [title, geometry] of shapes) {
    const layout = compileLayout(geometry);
    test(`on ${title}: with any member failing in any way, the answer is right or names what is lost`, () =>
      withSeed(runSeed, (random) => {
        const all = healthsOf(layout).length * layout.memberCount * faultNames.length * ops.length;
        const count = checkOneFault(layout, poolOf(layout, random), random, Math.ceil(all / CASES));
        expect(count).toBeGreaterThan(0);
      }));

    test(`on ${title}: with any two members failing, and scratch for a page of each member`, () =>
      withSeed(runSeed, (random) => {
        const pool = poolOf(layout, random);
        for (let round = 0; round < CASES; round += 1) checkTwoFaults(layout, pool, random);
      }));
  }
});
