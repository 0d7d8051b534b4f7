/** Histories that once failed, as the simulator made them small: they do not fail any more. */
import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { parseCase, runAlone } from '../../lib/sim/simulate.ts';

const folder = new URL('./cases/', import.meta.url);
const files = readdirSync(folder).filter((name) => name.endsWith('.json'));

test.each(files)('%s', async (name) => {
  const { case: one } = parseCase(readFileSync(new URL(name, folder), 'utf8'));
  const { failure } = await runAlone(one);
  expect(failure, `raidsim simulate --replay test/sim/cases/${name}`).toBeNull();
});

test('who cannot be told from a fork is left out by who has seen the array run, and counted', async () => {
  const name = 'left-behind-and-not-told-from-a-fork.json';
  const { case: one } = parseCase(readFileSync(new URL(name, folder), 'utf8'));
  const { failure, tally } = await runAlone(one);
  expect(failure).toBeNull();
  expect(tally.recoveries.forksInDoubt).toBeGreaterThan(0);
});
