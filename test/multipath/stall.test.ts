/** How long a request waits when a part of the fabric fails: to the millisecond, since the clock is the fabric's. */
import { expect, test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { exercise, settings } from './history.ts';
import { quick, type San, san, survives, twoByTwo } from './san.ts';

const FAST_IO_FAIL_MS = 1000;
const HBA_MS = 4;
/** Asked, and asked again by another path, after a login there and behind those who went before. */
const ORDINARY_MS = 10 * HBA_MS;

async function untilAllAreUp({ clock, paths, states }: San): Promise<void> {
  const up = paths.map(() => 'up').join(' ');
  while (states() !== up) await new Promise<void>((resolve) => clock.after(20, resolve));
}

test.each(Object.entries(twoByTwo))(
  '%s: while one part after another fails and comes back, no request waits for longer than fast_io_fail_tmo',
  (_, topology) =>
    withSeed(runSeed, async (random) => {
      const w = await san(random(2 ** 31), settings(...quick, 'no_path_retry fail'), { topology });
      const { clock, fabric, device } = w;
      for (const hba of w.named('hba')) fabric.set(hba, { delayMs: HBA_MS });
      const parts = fabric.components().map(({ name }) => name);
      const after = (ms: number) => new Promise<void>((resolve) => clock.after(ms, resolve));
      const run = async () => {
        const work = exercise(clock, random, device, 400);
        for (let round = 0; round < 60; round += 1) {
          const part = parts[random(parts.length)] as string;
          if (!survives(topology, [part])) continue;
          fabric.set(part, { state: 'failed' });
          // For longer than it takes to notice, or for a moment: then the same frames are sent again.
          await after(random(3) === 0 ? 20 + random(400) : FAST_IO_FAIL_MS + random(500));
          fabric.set(part, { state: 'up' });
          await untilAllAreUp(w);
          await after(200);
        }
        return await work;
      };
      const { failed, longestMs } = await clock.drive(run(), 3_600_000);
      await clock.drive(device.close());
      fabric.close();
      expect(failed).toBe(0);
      expect(longestMs).toBeGreaterThan(FAST_IO_FAIL_MS / 2);
      expect(longestMs).toBeLessThanOrEqual(FAST_IO_FAIL_MS + ORDINARY_MS);
    }),
);
