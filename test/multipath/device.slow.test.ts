import { expect, test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { history } from './history.ts';

test.each(['queue', '2', 'fail'] as const)(
  'over thousands of histories no write is lost or overtaken, and no stall is longer than said (no_path_retry %s)',
  async (retry) => {
    for (let round = 0; round < 700; round += 1) {
      await withSeed(runSeed + round, async (random) => {
        const { longestMs, boundMs, failed } = await history(random, retry);
        expect(longestMs).toBeLessThanOrEqual(boundMs);
        if (retry === 'queue') expect(failed).toBe(0);
      });
    }
  },
);
