import { describe, expect, test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { accesses, breakages, breakEach, ordeal, twoByTwo } from './san.ts';

describe.each(Object.entries(twoByTwo))('two HBAs, two controllers, %s', (_name, topology) => {
  describe.each(Object.keys(accesses))('%s', (access) => {
    test.each(Object.keys(breakages))(
      'whichever component breaks, nothing is lost or overtaken (%s)',
      async (breakage) => {
        for (const isQueueing of [false, true])
          await breakEach(topology, access, breakage, { steps: 12, isQueueing });
      },
    );
  });
});

test.each(['queue', '3', 'fail'])(
  'over a thousand histories in random fabrics no write is lost or overtaken, and no stall is longer than said (no_path_retry %s)',
  async (retry) => {
    for (let round = 0; round < 1000; round += 1) {
      await withSeed(runSeed + round, async (random) => {
        const { failed, longestMs, boundMs } = await ordeal(random, retry);
        expect(longestMs).toBeLessThanOrEqual(boundMs);
        if (retry === 'queue') expect(failed).toBe(0);
      });
    }
  },
);
