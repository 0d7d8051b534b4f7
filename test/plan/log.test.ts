/** What is logged, and that it is enough: the law is in log-law.ts, and over the whole space in log.slow.test.ts. */
import { expect, test } from 'vitest';
import { compileHealth } from '../../lib/plan/health.ts';
import { isLost, type Plan } from '../../lib/plan/plan.ts';
import { planRepair, planWrite } from '../../lib/plan/planner.ts';
import { SECTOR_BYTES } from '../../lib/units.ts';
import { CHUNK, COLUMNS, healths, judgeShape, ROWS } from './log-law.ts';
import { everyInterval, parityLayout } from './shapes.ts';

test.each(['left-symmetric', 'parity-first'] as const)(
  '%s of 3: every crash of a logged write leaves rows that the log mends',
  (name) => {
    const isAsked = (...ends: number[]): boolean => ends.every((at) => [0, 1, 5].includes(at % COLUMNS));
    expect(judgeShape(name, 3, isAsked)).toBeGreaterThan(10_000);
  },
);

test('a logged write leaves the same behind as one that is not', () => {
  for (const name of ['left-symmetric', 'parity-first'] as const) {
    const layout = parityLayout('raid5', name, 3, ROWS, CHUNK);
    for (const health of healths(3)) {
      const compiled = compileHealth(layout, health);
      for (const [from, to] of everyInterval(layout.arrayBytes / SECTOR_BYTES)) {
        const request = [from * SECTOR_BYTES, (to - from) * SECTOR_BYTES] as const;
        const logged = planWrite(layout, compiled, ...request, true);
        const plain = planWrite(layout, compiled, ...request);
        if (isLost(logged) || isLost(plain)) {
          expect(logged).toEqual(plain);
          continue;
        }
        const places = (plan: Plan): unknown =>
          plan.writes.map(({ member, offsetBytes, lengthBytes }) => [member, offsetBytes, lengthBytes]);
        expect(places(logged)).toEqual(places(plain));
        expect(logged.reads.length).toBe(plain.reads.length);
        expect(plain.log).toBeUndefined();
      }
    }
  }
});

test('a repair is logged as parity of all data, where that may be relied on', () => {
  const layout = parityLayout('raid5', 'left-symmetric', 4, ROWS, CHUNK);
  const members = Array.from({ length: 4 }, () => ({ state: 'in_sync' }) as const);
  const health = compileHealth(layout, { members, erased: [] });
  const plan = planRepair(layout, health, SECTOR_BYTES, 2 * SECTOR_BYTES, true);
  if (isLost(plan)) throw new Error('a healthy array can be repaired');
  expect(plan.log).toEqual([
    {
      parityMember: layout.row(0).p,
      arrayOffsetBytes: SECTOR_BYTES,
      lengthBytes: 2 * SECTOR_BYTES,
      chunkCount: 3,
      address: null,
    },
  ]);
  const unsynced = compileHealth(layout, { members, erased: [], unsyncedFromBytes: 0 });
  const resync = planRepair(layout, unsynced, SECTOR_BYTES, 2 * SECTOR_BYTES, true);
  expect(isLost(resync) ? null : resync.log).toBeUndefined();
});
