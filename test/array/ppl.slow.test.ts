/** As ppl.test.ts, over more shapes and moments, and with a second power cut at every step of the recovery. */
import { describe, expect, test } from 'vitest';
import { crashEverywhere, crashInTheNextLife, type Step } from './ppl-crash.ts';

const write = (sector: number, count: number): Step => ({ op: 'write', sector, count });
const together = (...writes: readonly [number, number][]): Step => ({
  op: 'together',
  writes: writes.map(([sector, count]) => ({ sector, count })),
});

describe('after a power cut at any moment, with anything kept of what was not flushed', () => {
  test.each<[string, number, string, readonly Step[]]>([
    ['a write within a chunk, twice', 4, 'left-symmetric', [write(3, 2), write(3, 2)]],
    ['two chunks of a row, then the third', 4, 'right-asymmetric', [write(6, 4), write(17, 3)]],
    ['a whole row, then a part of it', 3, 'parity-first', [write(0, 16), write(9, 3)]],
    ['one chunk of many', 5, 'left-asymmetric', [write(12, 1), write(20, 1)]],
    [
      'writes that share a round, before and after a flush',
      4,
      'left-symmetric',
      [together([0, 3], [25, 2], [50, 1]), { op: 'flush' }, together([1, 1], [27, 3])],
    ],
  ])('%s', async (_, disks, layout, steps) => {
    const tally = await crashEverywhere({ disks, layout, steps }, { subsets: 6, again: 3 });
    expect(tally.states).toBeGreaterThan(100);
    console.log(`${tally.states} states, ${tally.different} of them different`);
  });
});

test.each([[[]], [[0]], [[1]], [[2]], [[0, 1]], [[1, 2]]])(
  'a close that reached %j of three members, and a power cut at any moment of the next first write',
  async (reached) => {
    const steps = [write(6, 4), write(1, 2)];
    const next = { sector: 7, count: 2 };
    const tally = await crashInTheNextLife({ disks: 3, steps }, reached, next, { subsets: 6 });
    expect(tally.states).toBeGreaterThan(100);
  },
);
