/** Millions of requests in random fabrics in which everything breaks. Figures are printed. */
import { expect, test } from 'vitest';
import type { PathCase } from '../../lib/sim/paths.ts';
import { type PathOutcome, runPathCase } from '../../lib/sim/paths-world.ts';
import { operationsIn, simulate } from '../../lib/sim/simulate.ts';
import { raidsim } from '../cli/raidsim.ts';

/** Of some 2400 requests each, and other fabrics in each half. */
const CASES = 450;
const OPERATIONS_LEAST = 1_000_000;

test.each([1, 100_001])(
  'a million requests in random fabrics from seed %i on: none is lost, late or out of order',
  async (seed) => {
    const faults = new Set<string>();
    const most = {
      longestMs: 0,
      refusedLate: 0,
      waited: 0,
      failed: 0,
      operations: 0,
      returned: 0,
      seconds: 0,
    };
    for await (const { one, outcome, tally, seconds } of simulate({ seed, runs: CASES, paths: true })) {
      expect(outcome.failure, `raidsim simulate --paths --seed ${one.seed} --runs 1`).toBeNull();
      const { longestMs, refusedLate, waited } = outcome as PathOutcome;
      most.longestMs = Math.max(most.longestMs, longestMs);
      most.refusedLate += refusedLate;
      most.waited += waited;
      most.failed = tally.losses.L1;
      most.operations = operationsIn(tally);
      most.returned = tally.recoveries.assembled;
      most.seconds = seconds;
      for (const name of Object.keys(tally.faults)) faults.add(name);
    }
    const { longestMs, refusedLate, waited, failed, operations, returned, seconds } = most;
    console.log(
      `from seed ${seed}: ${operations} requests in ${seconds.toFixed(0)} s, ${failed} failed for want of a path, ${waited} waited for one, the longest took ${(longestMs / 1000).toFixed(1)} s; ${refusedLate} came late and were refused; ${returned} members came back to their arrays`,
    );
    expect(operations).toBeGreaterThan(OPERATIONS_LEAST);
    // All of it has happened.
    expect([...faults].toSorted()).toEqual([
      'alua',
      'failed',
      'flap',
      'hand fail',
      'hand reinstate',
      'hand switch',
      'hung',
      'lie',
      'narrow',
      'slow',
    ]);
    for (const count of [refusedLate, waited, failed, returned]) expect(count).toBeGreaterThan(0);
  },
);

/** All ways go at once, between requests and amid them; each time for longer than anything but a queue would wait. */
function outage(retry: string): PathCase {
  const ways = ['hba0', 'hba1'];
  const cut = ways.map((part) => ({ do: 'break', part, how: { state: 'failed' }, forMs: 60_000 }) as const);
  const load = Array.from({ length: 200 }, (_, index) => [
    { do: 'write', sector: index * 3, sectors: 4, fua: false } as const,
    { do: 'read', sector: index * 5, sectors: 8 } as const,
  ]).flat();
  return {
    seed: 1,
    mode: 'paths',
    config: {
      topology: {
        hbas: ways,
        switches: [],
        controllers: [{ name: 'ctl0', ports: ['ctl0p0', 'ctl0p1'] }],
        cables: [
          ['hba0', 'ctl0p0'],
          ['hba1', 'ctl0p1'],
        ],
      },
      preferred: null,
      secondary: 'active/non-optimized',
      transitionMs: 0,
      conf: [`no_path_retry ${retry}`, 'polling_interval 1', 'fast_io_fail_tmo 1', 'dev_loss_tmo 10'],
      array: null,
      lunBytes: 49_152,
      depth: 16,
      lunMs: 5,
      hbaMs: 1,
    },
    steps: [
      ...load,
      { do: 'wait', ms: 2000 },
      ...cut,
      { do: 'wait', ms: 5000 },
      ...load,
      { do: 'wait', ms: 70_000 },
      ...load,
      ...cut,
      ...load,
    ],
  };
}

test('all paths gone and back with queue: nothing fails and nothing is lost, and what waited goes in its order', async () => {
  const { failure, tally, waited } = await runPathCase(outage('queue'));
  expect(failure).toBeNull();
  expect(tally.losses.L1).toBe(0);
  expect(waited).toBeGreaterThan(0);
});

test('all paths gone with fail: requests fail in time, and what was acknowledged is there when they are back', async () => {
  const { failure, tally, longestMs, boundMs } = await runPathCase(outage('fail'));
  expect(failure).toBeNull();
  expect(tally.losses.L1).toBeGreaterThan(0);
  expect(longestMs).toBeLessThanOrEqual(boundMs);
});

test('an array loses the member whose paths are gone, serves everything without it, and has it back when they are', async () => {
  const base = outage('fail');
  const steps = base.steps.map((step) => (step.do === 'break' ? { ...step, part: 'lun1' } : step));
  for (const level of ['raid1', 'raid5', 'raid6', 'raid10'] as const) {
    const members = { raid1: 2, raid5: 3, raid6: 4, raid10: 4 }[level];
    const array = { level, members, bitmap: true, assumeClean: true };
    const { failure, tally } = await runPathCase({
      ...base,
      config: { ...base.config, array, lunBytes: 1_376_256 },
      steps: [...steps, { do: 'wait', ms: 100_000 }, { do: 'return', which: 0 }, ...base.steps.slice(0, 200)],
    });
    expect(failure, level).toBeNull();
    expect(tally.losses.L1, level).toBe(0);
    expect(tally.recoveries.assembled, level).toBeGreaterThan(0);
  }
});

test('raidsim simulate --paths ends with a summary, and the hash is the seed’s', async () => {
  const args = ['simulate', '--paths', '--seed', '3', '--runs', '5', '--json'];
  const [one, other] = [await raidsim(args), await raidsim(args)];
  expect(one.code).toBe(0);
  const summary = JSON.parse(one.stdout) as { readonly hash: string };
  expect(summary).toMatchObject({ seed: 3, cases: 5, losses: { notAllowed: [] } });
  expect((JSON.parse(other.stdout) as { readonly hash: string }).hash).toBe(summary.hash);
  expect((await raidsim(['simulate', '--paths', '--level', '5'])).code).toBe(2);
});
