/**
 * Goal: on parity arrays reads and writes are right whoever is healthy, and refused exactly when they must be.
 * Method: plans run on names, and are judged (parity-judge.ts), cell by cell (I1, I10). The widest rows are in parity.slow.test.ts.
 */
import { describe, expect, test } from 'vitest';
import { isLost } from '../../lib/plan/plan.ts';
import { planWrite } from '../../lib/plan/planner.ts';
import { judge, judgeCells } from './parity-judge.ts';
import { ParityWorld } from './parity-world.ts';
import {
  CHUNK,
  everyInterval,
  everyMask,
  everyPairOfErasures,
  everyParityLayout,
  HALF,
  parityLayout,
} from './shapes.ts';

describe('reads and writes', () => {
  test.each([
    ['raid5', 3],
    ['raid5', 4],
    ['raid5', 5],
    ['raid6', 4],
    ['raid6', 5],
  ] as const)('%s of %i: every health, every request in two rows', (level, count) => {
    const layout = parityLayout(level, 'left-symmetric', count, 2);
    const world = new ParityWorld(layout, HALF);
    for (const health of everyMask(count, count)) {
      world.setHealth(health);
      for (const [from, to] of everyInterval(layout.arrayBytes / HALF)) {
        judge(world, level, health, from, to, true);
      }
    }
  });

  /** Each layout sees every health and every request, and each health sees every request in some layout. */
  test('every layout: every health up to one beyond redundancy', () => {
    const shapes = everyParityLayout(3, [2, 3, 4, 5, 6], [4, 5, 6, 7]);
    shapes.forEach(({ name, layout }, shape) => {
      const world = new ParityWorld(layout, HALF);
      const intervals = everyInterval(layout.arrayBytes / HALF);
      const stride = layout.memberCount < 5 ? 7 : layout.memberCount < 7 ? 61 : 211;
      let turn = shape;
      for (const health of everyMask(layout.memberCount, layout.parityCount + 1)) {
        world.setHealth(health);
        turn += 1;
        for (let at = turn % stride; at < intervals.length; at += stride) {
          judge(world, name, health, ...intervals[at]!);
        }
      }
    });
  });

  test.each([
    ['raid5', 3, true],
    ['raid5', 5, true],
    ['raid6', 4, true],
    ['raid6', 6, false],
  ] as const)(
    '%s of %i: every pair of erased parts of chunks, beside a missing or recovering member',
    (level, count, withMissing) => {
      const layout = parityLayout(level, 'left-symmetric', count, 2);
      const world = new ParityWorld(layout, CHUNK / 4);
      const intervals = everyInterval(layout.arrayBytes / HALF);
      let turn = 0;
      for (const health of everyPairOfErasures(count, withMissing)) {
        world.setHealth(health);
        turn += 1;
        const stride = count < 5 ? 5 : 13;
        for (let at = turn % stride; at < intervals.length; at += stride) {
          judge(world, level, health, intervals[at]![0] * 2, intervals[at]![1] * 2, count < 5);
        }
      }
    },
  );
});

test('canary: a wrong plan is noticed', () => {
  const layout = parityLayout('raid5', 'left-symmetric', 4, 2);
  const world = new ParityWorld(layout, HALF);
  world.setHealth({ members: Array.from({ length: 4 }, () => ({ state: 'in_sync' }) as const), erased: [] });
  const plan = planWrite(layout, world.health, 0, HALF);
  expect(isLost(plan)).toBe(false);
  if (isLost(plan)) return;
  world.run({ ...plan, writes: plan.writes.slice(0, 1) }, 0, 'write');
  expect(() => judgeCells(world, 0, 1, 0, 0, false)).toThrow('the wrong cells are written');
});
