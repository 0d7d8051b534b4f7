/**
 * Many histories of all levels; what is broken on purpose is found out; and the command line around it. Figures are
 * printed: what a machine does in a minute is part of what is promised.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { RaidArray } from '../../lib/array/array.ts';
import { Metadata } from '../../lib/array/metadata.ts';
import { levelNames } from '../../lib/layout/levels.ts';
import { shrink } from '../../lib/sim/shrink.ts';
import { operationsIn, runAlone, type SimulateStep, simulate } from '../../lib/sim/simulate.ts';
import { faultNames, type Mode, modes, pickCase, refusableCalls } from '../../lib/sim/swarm.ts';
import { emptyTally } from '../../lib/sim/world.ts';
import { raidsim, Scratch } from '../cli/raidsim.ts';

/** Of each level, in each mode: the same cases on every machine. */
const RUNS = 13;

describe('nothing is lost that may not be', () => {
  const faults = new Set<string>();
  const assemblies = { all: 0, inDoubt: 0 };
  let grown = 0;

  test.each(levelNames)('%s, in every mode', async (level) => {
    for (const mode of modes) {
      let last: SimulateStep | null = null;
      for await (const step of simulate({ seed: 1, runs: RUNS, level, mode })) {
        const replay = `raidsim simulate --seed ${step.one.seed} --runs 1 --level ${level}${mode === 'beyond' ? ' --beyond' : ''} (mode ${mode})`;
        expect(step.outcome.failure, replay).toBeNull();
        last = step;
      }
      const { faults: hit, recoveries } = last?.tally ?? emptyTally();
      for (const name of Object.keys(hit)) faults.add(name);
      assemblies.all += recoveries.assembled;
      assemblies.inDoubt += recoveries.forksInDoubt;
      grown += recoveries.grown;
      console.log(`${level} ${mode}: ${figures(last)}`);
    }
  });

  test('and every kind of fault has happened', () => {
    const lasting = [...faults].filter((name) => !name.startsWith('refused-'));
    expect(lasting.toSorted()).toEqual([...faultNames].toSorted());
  });

  test('nor where disks refuse calls for a while, of every kind', async () => {
    const refused = new Set<string>();
    const all = refusableCalls.map((calls) => `refused-${calls}`);
    for (let seed = 1; seed <= 400 && !all.every((name) => refused.has(name)); seed += 1) {
      for (const level of ['raid1', 'raid5'] as const) {
        const one = pickCase(seed, { level, mode: 'beyond' });
        if (!one.steps.some((step) => step.do === 'refuse')) continue;
        const { failure, tally } = await runAlone(one);
        expect(failure, `raidsim simulate --seed ${seed} --runs 1 --level ${level} --beyond`).toBeNull();
        for (const name of Object.keys(tally.faults)) refused.add(name);
      }
    }
    expect(all.filter((name) => !refused.has(name))).toEqual([]);
  });

  test('arrays have grown', () => {
    expect(grown).toBeGreaterThan(0);
  });

  test('hardly ever has a person to say who was left behind, and did not go on by itself', () => {
    console.log(`assemblies: ${assemblies.all}, of these with a fork in doubt: ${assemblies.inDoubt}`);
    expect(assemblies.inDoubt).toBeLessThanOrEqual(assemblies.all / 50);
  });

  function figures(step: SimulateStep | null): string {
    const { crashes, losses, recoveries, faults: hit } = step?.tally ?? emptyTally();
    const all = Object.values(hit).reduce((sum, count) => sum + count, 0);
    const operations = step === null ? 0 : operationsIn(step.tally);
    const perMinute = ((operations / (step?.seconds ?? 1)) * 60) / 1e6;
    return [
      `${step?.cases ?? 0} cases`,
      `${operations} operations (${perMinute.toFixed(2)} M a minute)`,
      `${all} faults`,
      `${crashes.kill + crashes.power} crashes`,
      `${crashes.lane} dead lanes`,
      `${recoveries.recovered} members recovered`,
      `${recoveries.grown} grown`,
      `losses allowed ${JSON.stringify(losses)}`,
    ].join(', ');
  }
});

test('without a log of partial parity the write hole is there, and is met', async () => {
  let met = 0;
  for await (const { tally } of simulate({ seed: 1, runs: 400, level: 5, mode: 'safe' })) {
    met = tally.losses.L3;
    if (met > 0) break;
  }
  expect(met).toBeGreaterThan(0);
});

describe('an array that is broken on purpose is found out', () => {
  afterEach(() => vi.restoreAllMocks());

  async function* foundOut(mode: Mode = 'safe'): AsyncGenerator<SimulateStep> {
    for (let seed = 1; seed < 300; ) {
      for await (const step of simulate({ seed, runs: 300, steps: 150, mode })) {
        seed = step.one.seed + 1;
        if (step.outcome.failure === null) continue;
        yield step;
        break;
      }
    }
  }

  async function firstFoundOut(): Promise<SimulateStep> {
    for await (const step of foundOut()) return step;
    return expect.unreachable('it was not found out');
  }

  test('a flush that flushes nothing; and of three cases, two shrink to a fifth of their steps, or less', async () => {
    vi.spyOn(RaidArray.prototype, 'flush').mockImplementation(() => Promise.resolve());
    const shares: number[] = [];
    for await (const { one, outcome } of foundOut()) {
      expect(outcome.failure).toMatchObject({ kind: 'wrong data' });
      if (outcome.failure === null) return;
      const { smallest } = await shrink(one, outcome.failure);
      shares.push(smallest.steps.length / one.steps.length);
      expect(smallest.steps.map((step) => step.do)).toContain('flush');
      expect((await runAlone(smallest)).failure?.kind).toBe('wrong data');
      if (shares.length === 3) break;
    }
    // Of a third, writes that nothing seems to need may keep what matters at its moment.
    expect(shares.toSorted((a, b) => a - b)[1]).toBeLessThanOrEqual(1 / 5);
  });

  test('writes that do not say first that the array is not clean', async () => {
    vi.spyOn(Metadata.prototype, 'enter').mockImplementation(() => null);
    vi.spyOn(Metadata.prototype, 'leave').mockImplementation(() => undefined);
    expect((await firstFoundOut()).outcome.failure).not.toBeNull();
  });

  test('a failure that is not put on record', async () => {
    vi.spyOn(Metadata.prototype, 'fail').mockImplementation(() => Promise.resolve());
    expect((await firstFoundOut()).outcome.failure).not.toBeNull();
  });

  test('a growth that is acknowledged, and not on record', async () => {
    vi.spyOn(RaidArray.prototype, 'grow').mockImplementation(() => Promise.resolve());
    expect((await firstFoundOut()).outcome.failure).toMatchObject({ kind: 'violation' });
  });

  test('a recovery that ends before its data is flushed', async () => {
    vi.spyOn(Metadata.prototype, 'finishRecovery').mockImplementation(() => Promise.resolve());
    expect((await firstFoundOut()).outcome.failure).not.toBeNull();
  });
});

describe('raidsim simulate', () => {
  test('ends with a summary, and the hash is the seed’s', async () => {
    const args = ['simulate', '--seed', '3', '--runs', '5'];
    const [text, json] = [await raidsim(args), await raidsim([...args, '--json'])];
    expect(text.code).toBe(0);
    const summary = JSON.parse(json.stdout) as {
      hash: string;
      cases: number;
      losses: { notAllowed: unknown[] };
    };
    expect(summary).toMatchObject({ seed: 3, cases: 5, losses: { notAllowed: [] } });
    expect(text.stdout).toContain(`hash: ${summary.hash}`);
  });

  test('a case that does not fail is said so when it is replayed, and what is no case is a wrong call', async () => {
    await using scratch = await Scratch.make();
    const saved = new URL('./cases/two-power-cuts-within-updates.json', import.meta.url);
    const replayed = await raidsim(['simulate', '--replay', saved.pathname]);
    expect(replayed).toMatchObject({ code: 0, stderr: '' });
    expect(replayed.stdout).toContain('does not fail here');
    expect((await raidsim(['simulate', '--replay', join(scratch.folder, 'none.json')])).code).toBe(2);
    expect(await readFile(saved, 'utf8')).toContain('"raidsim": "case"');
    expect((await raidsim(['simulate', '--seed', '1', '--replay', saved.pathname])).code).toBe(2);
  });
});
