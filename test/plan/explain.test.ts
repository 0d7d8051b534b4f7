import { expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Layout } from '../../lib/layout/layout.ts';
import { explain } from '../../lib/plan/explain.ts';
import { compileHealth } from '../../lib/plan/health.ts';
import { planCheck, planRead, planRecover, planRepair, planWrite } from '../../lib/plan/planner.ts';
import { KIB } from '../../lib/units.ts';
import { everyMask, parityLayout } from './shapes.ts';

const CHUNK = 64 * KIB;

function without(layout: Layout, ...missing: number[]) {
  const members = Array.from({ length: layout.memberCount }, (_, member) =>
    missing.includes(member) ? ({ state: 'missing' } as const) : ({ state: 'in_sync' } as const),
  );
  return compileHealth(layout, { members, erased: [] });
}

const raid5 = parityLayout('raid5', 'left-symmetric', 5, 16, CHUNK);
const raid6 = parityLayout('raid6', 'left-symmetric', 6, 16, CHUNK);

test('a small write is told as read-modify-write', () => {
  expect(explain(planWrite(raid5, without(raid5), 256 * KIB, 4 * KIB), raid5)).toBe(
    `\
1  read     disk4 +64K 4K      old D4
2  read     disk3 +64K 4K      old P1
3  compute  new P1 = old P1 + old D4 + new D4
4  write    disk4 +64K 4K      new D4
5  write    disk3 +64K 4K      new P1
2 reads (8K), 2 writes (8K), 8K of memory beside the request`,
  );
});

test('a write to a missing member is told as going into parity', () => {
  expect(explain(planWrite(raid5, without(raid5, 0), 0, CHUNK), raid5)).toBe(
    `\
1  read     disk1 +0 64K       D1
2  read     disk2 +0 64K       D2
3  read     disk3 +0 64K       D3
4  compute  new P0 = new D0 + D1 + D2 + D3
5  write    disk4 +0 64K       new P0
3 reads (192K), 1 write (64K), 256K of memory beside the request`,
  );
});

test('a read of two lost chunks is told as two equations', () => {
  expect(explain(planRead(raid6, without(raid6, 1, 3), 2 * KIB, 2 * KIB), raid6)).toBe(
    `\
1  read     disk2 +2K 2K       D1+2K
2  read     disk4 +2K 2K       D3+2K
3  read     disk5 +2K 2K       P0+2K
4  read     disk0 +2K 2K       Q0+2K
5  compute  D0+2K and D2+2K from P0+2K = D0+2K + D1+2K + D2+2K + D3+2K
6  compute                   and Q0+2K = 2^0 D0+2K + 2^1 D1+2K + 2^2 D2+2K + 2^3 D3+2K
4 reads (8K), 0 writes (0), 8K of memory beside the request`,
  );
});

test('a check says which equations it holds the row to, or which copies it compares', () => {
  const lines = explain(planCheck(raid6, without(raid6), 0, CHUNK), raid6).split('\n');
  expect(lines[6]).toBe('7  verify   P0 = D0 + D1 + D2 + D3, Q0 = 2^0 D0 + 2^1 D1 + 2^2 D2 + 2^3 D3');
  const raid1 = compileLayout({ level: 'raid1', memberCount: 2, memberBytes: CHUNK });
  const text = explain(planCheck(raid1, without(raid1), 4096, 512), raid1, {
    memberName: (m) => `sd${'ab'[m]}`,
  });
  expect(text.split('\n')[0]).toBe('1  read     sda +4K 512        array bytes at 4K');
  expect(text.split('\n')[2]).toBe('3  compare  sda +4K with sdb +4K');
});

test('a refusal names what is lost', () => {
  expect(explain(planRead(raid5, without(raid5, 0, 1), 0, 4 * CHUNK), raid5)).toBe(
    'refused: array bytes 0 to 128K have lost more than redundancy covers',
  );
});

test('every plan can be told, and every operand has a name', () => {
  for (const layout of [
    parityLayout('raid5', 'right-asymmetric', 4, 3),
    parityLayout('raid6', 'ddf-zero-restart', 5, 3),
    compileLayout({
      level: 'raid10',
      memberCount: 3,
      memberBytes: 3 * 4096,
      chunkBytes: 4096,
      near: 2,
      far: 1,
      offset: false,
      farSets: 0,
    }),
  ]) {
    for (const health of everyMask(layout.memberCount, 3)) {
      const compiled = compileHealth(layout, health);
      const answers = [
        planRead(layout, compiled, 2048, 12288),
        planWrite(layout, compiled, 2048, 12288),
        planWrite(layout, compiled, 6144, 2048),
        planCheck(layout, compiled, 2048, 6144),
        planRepair(layout, compiled, 2048, 6144),
      ];
      health.members.forEach(({ state }, member) => {
        if (state !== 'missing') answers.push(planRecover(layout, compiled, member, 2048, 6144));
      });
      for (const answer of answers) {
        const text = explain(answer, layout);
        if (/undefined|null|\[|NaN|\bQ\b|= 0/.test(text)) expect.fail(text);
      }
    }
  }
});
