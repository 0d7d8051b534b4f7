/**
 * Goal: an array with partial parity logs comes through every power cut: whoever is missing afterwards, what was not
 * being written is what it was (L4), and nothing has to be resynced. Here in small; ppl.slow.test.ts has the space.
 */
import { expect, test } from 'vitest';
import { crashEverywhere, crashInTheNextLife } from './ppl-crash.ts';

test('a write, and another to its row: after a power cut at any moment, with anything kept that was not flushed', async () => {
  const steps = [
    { op: 'write', sector: 6, count: 4 },
    { op: 'write', sector: 1, count: 2 },
  ] as const;
  const tally = await crashEverywhere({ disks: 3, steps }, { subsets: 4, stride: 3 });
  expect(tally.states).toBeGreaterThan(50);
});

test('a close that reached one member, and a power cut at any moment of the next first write: no log was emptied that is needed', async () => {
  const steps = [{ op: 'write', sector: 6, count: 4 }] as const;
  const next = { sector: 7, count: 2 };
  const tally = await crashInTheNextLife({ disks: 3, steps }, [0], next, { subsets: 2, stride: 2 });
  expect(tally.states).toBeGreaterThan(50);
});
