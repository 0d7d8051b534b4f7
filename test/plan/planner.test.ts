/** What is said of plans beyond their being right: their form, their cost, and that out of range is refused. */
import { describe, expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Layout } from '../../lib/layout/layout.ts';
import { compileHealth } from '../../lib/plan/health.ts';
import { type Health, isLost, type Lost, type Plan } from '../../lib/plan/plan.ts';
import {
  planCheck,
  planRead,
  planRecover,
  planRepair,
  planWrite,
  syncBytes,
} from '../../lib/plan/planner.ts';
import { KIB } from '../../lib/units.ts';
import { everyInterval, everyMask, parityLayout } from './shapes.ts';

const CHUNK = 64 * KIB;

function planned(answer: Plan | Lost): Plan {
  if (isLost(answer)) throw new Error(`refused: ${JSON.stringify(answer.lost)}`);
  return answer;
}

function healthy(layout: Layout, unsyncedFromBytes?: number) {
  const members = Array.from({ length: layout.memberCount }, () => ({ state: 'in_sync' }) as const);
  const health: Health = {
    members,
    erased: [],
    ...(unsyncedFromBytes === undefined ? {} : { unsyncedFromBytes }),
  };
  return compileHealth(layout, health);
}

describe('how a healthy write gets its parity', () => {
  // members, data cells written, reads, ops
  test.each([
    ['raid5', 3, 1, 1, 'syndrome'],
    ['raid5', 4, 1, 2, 'syndrome'],
    ['raid5', 4, 2, 1, 'syndrome'],
    ['raid5', 4, 3, 0, 'syndrome'],
    ['raid5', 5, 1, 2, 'update'],
    ['raid5', 5, 2, 2, 'syndrome'],
    ['raid6', 6, 1, 3, 'syndrome'],
    ['raid6', 7, 1, 3, 'update'],
    ['raid6', 7, 2, 3, 'syndrome'],
  ] as const)('%s of %i, %i cells written: %i reads, %s', (level, count, cells, reads, op) => {
    const layout = parityLayout(level, 'left-symmetric', count, 4, CHUNK);
    const plan = planned(planWrite(layout, healthy(layout), 0, cells * CHUNK));
    expect(plan.reads.length).toBe(reads);
    expect(new Set(plan.compute.map((step) => step.op))).toEqual(new Set([op]));
    const resync = planned(planWrite(layout, healthy(layout, 0), 0, cells * CHUNK));
    expect(resync.compute.map((step) => step.op)).toEqual(['syndrome']);
  });

  test('a row of a full stripe is one slice, whatever parts of it are erased', () => {
    const layout = parityLayout('raid6', 'left-symmetric', 6, 4, CHUNK);
    const members = Array.from({ length: 6 }, () => ({ state: 'in_sync' }) as const);
    const erased = [
      { member: 1, offsetBytes: 4 * KIB, lengthBytes: 4 * KIB },
      { member: 5, offsetBytes: 6 * KIB, lengthBytes: 8 * KIB },
    ];
    for (const health of [healthy(layout), compileHealth(layout, { members, erased })]) {
      const plan = planned(planWrite(layout, health, 0, 4 * CHUNK));
      expect([plan.reads.length, plan.compute.length, plan.writes.length]).toEqual([0, 1, 6]);
    }
  });

  test('a healthy read is one transfer a chunk, straight into the request', () => {
    const layout = parityLayout('raid5', 'left-symmetric', 4, 8, CHUNK);
    const plan = planned(planRead(layout, healthy(layout), CHUNK / 2, 3 * CHUNK));
    expect(plan.reads.map(({ address, lengthBytes }) => [address, lengthBytes])).toEqual([
      [0, CHUNK / 2],
      [CHUNK / 2, CHUNK],
      [1.5 * CHUNK, CHUNK],
      [2.5 * CHUNK, CHUNK / 2],
    ]);
    expect([plan.scratchBytes, plan.compute.length, plan.writes.length]).toEqual([0, 0, 0]);
  });
});

test('scratch is aligned for O_DIRECT, overlaps nothing, and members are read and written in order', () => {
  const layout = parityLayout('raid6', 'left-symmetric', 6, 3, 16 * KIB);
  const step = 8 * KIB;
  const intervals = everyInterval(layout.arrayBytes / step);
  let turn = 0;
  for (const health of everyMask(6, 2, 16 * KIB)) {
    turn += 1;
    const compiled = compileHealth(layout, health);
    for (let at = turn % 11; at < intervals.length; at += 11) {
      const [from, to] = intervals[at]!;
      for (const cutBytes of [0, 512]) {
        const requestBytes = (to - from) * step - cutBytes;
        for (const plan of [
          planRead(layout, compiled, from * step, requestBytes),
          planWrite(layout, compiled, from * step, requestBytes),
        ]) {
          if (!isLost(plan)) judgeForm(plan);
        }
      }
    }
    const sync = [planCheck(layout, compiled, 512, 32 * KIB), planRepair(layout, compiled, 512, 32 * KIB)];
    for (const plan of sync) if (!isLost(plan)) judgeForm(plan);
  }
});

function judgeForm(plan: Plan): void {
  const ends = new Map<number, number>();
  for (const { address, lengthBytes } of plan.reads) {
    const scratch = address - plan.requestBytes;
    if (scratch < 0) continue;
    if (scratch % (lengthBytes >= 4096 ? 4096 : 64) !== 0) expect.fail('scratch is not aligned');
    if (scratch + lengthBytes > plan.scratchBytes) expect.fail('beyond scratch');
  }
  for (const [index, transfers] of [plan.reads, plan.writes].entries()) {
    for (const { member, offsetBytes, lengthBytes } of transfers) {
      const key = member * 2 + index;
      if (offsetBytes < (ends.get(key) ?? 0)) expect.fail('a member is visited out of order');
      ends.set(key, offsetBytes + lengthBytes);
    }
  }
  const taken = plan.reads
    .map(({ address, lengthBytes }) => [address, address + lengthBytes] as const)
    .sort((a, b) => a[0] - b[0]);
  for (let index = 1; index < taken.length; index += 1) {
    if (taken[index]![0] < taken[index - 1]![1]) expect.fail('two reads overlap in memory');
  }
}

test('the sync position runs over members, over the array for raid10, and nowhere without redundancy', () => {
  const size = { memberCount: 4, memberBytes: 8 * CHUNK };
  const raid10 = { near: 2, far: 1, offset: false, farSets: 0, chunkBytes: CHUNK } as const;
  const raid0 = compileLayout({
    level: 'raid0',
    chunkBytes: CHUNK,
    layout: 'original',
    memberBytes: [CHUNK, CHUNK],
  });
  expect(syncBytes(compileLayout({ level: 'raid1', ...size }))).toBe(8 * CHUNK);
  expect(syncBytes(parityLayout('raid5', 'left-symmetric', 4, 8, CHUNK))).toBe(8 * CHUNK);
  expect(syncBytes(compileLayout({ level: 'raid10', ...size, ...raid10 }))).toBe(16 * CHUNK);
  expect(syncBytes(raid0)).toBe(0);
  expect(planCheck(raid0, healthy(raid0), 0, CHUNK).reads).toEqual([]);
  expect(planned(planRepair(raid0, healthy(raid0), 0, CHUNK)).writes).toEqual([]);
});

test('a range outside, an empty one, and a member that takes no writes are programmer errors', () => {
  const layout = parityLayout('raid5', 'left-symmetric', 3, 2, CHUNK);
  const health = healthy(layout);
  expect(() => planRead(layout, health, layout.arrayBytes, 512)).toThrow('inside');
  expect(() => planWrite(layout, health, 0, 0)).toThrow('inside');
  expect(() => planCheck(layout, health, syncBytes(layout) - 512, 1024)).toThrow('inside');
  expect(() => planRecover(layout, health, 3, 0, 512)).toThrow('inside');
  const sync = { state: 'in_sync' } as const;
  const degraded = compileHealth(layout, { members: [sync, { state: 'missing' }, sync], erased: [] });
  expect(() => planRecover(layout, degraded, 1, 0, 512)).toThrow('takes writes');
});
