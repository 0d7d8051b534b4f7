import { expect, test } from 'vitest';
import { Latencies } from '../../lib/multipath/latency.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

test('percentiles are within 10 % of what a sorted list says, and the longest is exact', () =>
  withSeed(runSeed, (random) => {
    for (let round = 0; round < 50; round += 1) {
      const latencies = new Latencies();
      const all = Array.from({ length: 1 + random(500) }, () => 10 ** (random(7000) / 1000 - 3));
      for (const ms of all) latencies.add(ms);
      const sorted = all.toSorted((a, b) => a - b);
      const { p50, p99, max } = latencies.summary() ?? expect.fail('there are some');
      for (const [found, share] of [
        [p50, 0.5],
        [p99, 0.99],
      ] as const) {
        const exact = sorted[Math.ceil(sorted.length * share) - 1] as number;
        expect(found / exact).toBeGreaterThan(1 / 1.1);
        expect(found / exact).toBeLessThan(1.1);
      }
      expect(max).toBe(sorted.at(-1));
    }
  }));

test('of nothing there is no percentile, and nothing is too short or too long', () => {
  const latencies = new Latencies();
  expect(latencies.summary()).toBe(null);
  latencies.add(0);
  latencies.add(1e9);
  expect(latencies.summary()?.max).toBe(1e9);
});
