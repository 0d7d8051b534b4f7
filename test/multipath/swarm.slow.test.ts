import { expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import type { Path } from '../../lib/multipath/device.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { wearOut } from './swarm.ts';

/** With 12 clients of 400 requests: 700 000 for each policy. */
const FABRICS = 150;
const EACH = 400;

test.each(['queue', '3', 'fail'] as const)(
  'millions of requests in random fabrics in which everything breaks: none is lost, late or out of order (no_path_retry %s)',
  async (retry) => {
    const sum = { requests: 0, failed: 0, refusedLate: 0, longestMs: 0 };
    for (let round = 0; round < FABRICS; round += 1) {
      await withSeed(runSeed + round, async (random) => {
        const { requests, failed, longestMs, boundMs, refusedLate } = await wearOut(random, retry, EACH);
        sum.requests += requests;
        sum.failed += failed;
        sum.refusedLate += refusedLate;
        sum.longestMs = Math.max(sum.longestMs, longestMs);
        expect(longestMs).toBeLessThanOrEqual(boundMs);
        if (retry === 'queue') expect(failed).toBe(0);
      });
    }
    console.log(
      `${retry}: ${sum.requests} requests, ${sum.failed} failed, the longest took ${(sum.longestMs / 1000).toFixed(1)} s; ${sum.refusedLate} came late and were refused; seed ${runSeed}`,
    );
    // It did come to what fences are for.
    expect(sum.refusedLate).toBeGreaterThan(100);
    if (retry === 'fail') expect(sum.failed).toBeGreaterThan(100);
  },
);

test('a fence that does nothing is found', async () => {
  const lying = (path: Path): Path => ({
    ...path,
    connect: async () => ({ ...(await path.connect()), fence: async () => undefined }),
  });
  let found = 0;
  for (let round = 0; round < 40 && found === 0; round += 1) {
    await wearOut(seededRandom(runSeed + round), 'queue', 400, lying).catch((failure: Error) => {
      expect(failure.message).toMatch(/overwritten|torn/);
      found += 1;
    });
  }
  expect(found, `seed ${runSeed}`).toBe(1);
});
