/** Lanes that die in simulated time, with jobs that they have not begun, half written, or done and told nobody of. */
import { expect, test } from 'vitest';
import { runAlone } from '../../lib/sim/simulate.ts';
import { type Case, pickCase } from '../../lib/sim/swarm.ts';

const steps = 250;
const cases: readonly Case[] = Array.from({ length: 200 }, (_, seed) =>
  pickCase(seed, { steps, mode: 'safe' }),
).filter(({ config }) => config.lanes !== undefined);

test('nothing is lost when they do, and nobody is told that he may have lost something', async () => {
  let deaths = 0;
  for (const one of cases.slice(0, 24)) {
    const { failure, tally } = await runAlone(one);
    expect(failure, `pickCase(${one.seed}, { steps: ${steps}, mode: 'safe' })`).toBeNull();
    deaths += tally.crashes.lane;
  }
  expect(deaths).toBeGreaterThan(50);
});

test('a request is given up, its outcome unknown, only where a lane and its successor died', async () => {
  const one = cases[0] as Case;
  const kill = { do: 'kill-lane', which: 0, when: 'in-commit', isTwice: true } as const;
  const write = { do: 'write', sector: 0, sectors: 64, fua: false } as const;
  const config = { ...one.config, lanes: 1, depth: 1, writeMs: 5 };
  let known = 0;
  let unknown = 0;
  for (let seed = 0; seed < 20; seed += 1) {
    const { failure, tally } = await runAlone({ ...one, seed, config, steps: [write, kill] });
    expect(failure, `seed ${seed}`).toBeNull();
    if (tally.recoveries.abandoned === 0) known += 1;
    else unknown += 1;
  }
  expect(known).toBeGreaterThan(0);
  expect(unknown).toBeGreaterThan(0);
});
