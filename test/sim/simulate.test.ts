/** What the simulator promises about itself: one seed, one history, and a case is data. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { parseCase, runAlone, saveCase, simulate } from '../../lib/sim/simulate.ts';
import { pickCase } from '../../lib/sim/swarm.ts';

const steps = 60;

async function hashOf(seed: number, runs: number): Promise<string> {
  let hash = '';
  for await (const step of simulate({ seed, runs, steps })) hash = step.hash;
  return hash;
}

test('the same seed and number of cases is the same history, in one process and in two (I20)', async () => {
  const hash = await hashOf(11, 3);
  expect(await hashOf(11, 3)).toBe(hash);
  expect(await hashOf(12, 3)).not.toBe(hash);
  const program = `
    const { simulate } = await import('./dist/lib/index.js');
    let hash = '';
    for await (const step of simulate({ seed: 11, runs: 3, steps: ${steps} })) hash = step.hash;
    console.log(hash);`;
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program]);
  expect(stdout.trim()).toBe(hash);
});

test('a case is data: saved and parsed it has the same history', async () => {
  const one = pickCase(5, { steps });
  const outcome = await runAlone(one);
  const saved = parseCase(saveCase(one, outcome));
  expect(saved.case).toEqual(one);
  expect((await runAlone(saved.case)).hash).toBe(outcome.hash);
  for (const text of ['', '{}', '{"raidsim":"case","case":{}}', '[]', 'null'])
    expect(() => parseCase(text)).toThrow('not a case');
});

test('nothing is lost in three dozen short histories, crashed again while they recover (I14)', async () => {
  for await (const { one, outcome } of simulate({ seed: 1, runs: 36, steps })) {
    expect(outcome.failure, `pickCase(${one.seed}, { steps: ${steps} })`).toBeNull();
  }
});
