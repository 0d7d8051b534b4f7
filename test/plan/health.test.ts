import { expect, test } from 'vitest';
import { collectEdges, compileHealth, isGoodThroughout, stateAt, stateEnd } from '../../lib/plan/health.ts';
import type { ErasedRange, MemberHealth } from '../../lib/plan/plan.ts';
import { parityLayout } from './shapes.ts';

const layout = parityLayout('raid5', 'left-symmetric', 3, 4);
const sync: MemberHealth = { state: 'in_sync' };

function lineOf(member: MemberHealth, erased: readonly (readonly [number, number])[]) {
  const ranges = erased.map(
    ([from, to]): ErasedRange => ({ member: 1, offsetBytes: from, lengthBytes: to - from }),
  );
  return compileHealth(layout, { members: [sync, member, sync], erased: ranges }).members[1]!;
}

test('a line says of every byte what the words of Health say, for every pair of erased ranges and every frontier', () => {
  const ranges = [0, 1, 2, 4, 5, 8].flatMap((from) =>
    [1, 2, 3].map((length) => [from, from + length] as const),
  );
  const states: MemberHealth[] = [sync, { state: 'missing' }];
  for (const recoveredBytes of [0, 1, 3, 4, 6, 20]) states.push({ state: 'recovering', recoveredBytes });
  for (const member of states) {
    const trusted = member.state === 'in_sync' ? 100 : member.state === 'missing' ? 0 : member.recoveredBytes;
    for (const first of ranges) {
      for (const second of ranges) {
        const line = lineOf(member, [first, second]);
        const stateOf = (at: number): string => {
          if (member.state === 'missing') return 'missing';
          if (at >= trusted) return 'behind';
          return [first, second].some(([from, to]) => at >= from && at < to) ? 'erased' : 'good';
        };
        const edges: number[] = [];
        for (let at = 1; at < 30; at += 1) if (stateOf(at) !== stateOf(at - 1)) edges.push(at);
        expect(line.edges).toEqual(edges);
        for (let at = 0; at < 30; at += 1) {
          const goodBytes = [...Array(30 - at).keys()].findIndex((step) => stateOf(at + step) !== 'good');
          if (stateAt(line, at) !== stateOf(at)) expect.fail(`${at}`);
          if (stateEnd(line, at) !== (edges.find((edge) => edge > at) ?? Number.POSITIVE_INFINITY))
            expect.fail();
          for (const lengthBytes of [1, 3, 30 - at]) {
            if (isGoodThroughout(line, at, lengthBytes) !== (goodBytes < 0 || goodBytes >= lengthBytes)) {
              expect.fail(`${at} ${lengthBytes}`);
            }
          }
        }
        const cuts: number[] = [];
        collectEdges(line, 2, 7, 1, cuts);
        expect(cuts).toEqual(edges.filter((edge) => edge > 2 && edge < 7).map((edge) => edge - 1));
      }
    }
  }
});

test('health is usual only when there is nothing at all to look up', () => {
  const members = [sync, sync, sync];
  expect(compileHealth(layout, { members, erased: [] }).usual).toBe(true);
  expect(compileHealth(layout, { members, erased: [], unsyncedFromBytes: 0 }).usual).toBe(false);
  const erased = [{ member: 0, offsetBytes: 0, lengthBytes: 512 }];
  expect(compileHealth(layout, { members, erased }).usual).toBe(false);
  expect(compileHealth(layout, { members: [sync, sync, { state: 'missing' }], erased: [] }).usual).toBe(
    false,
  );
});

test('health that does not fit the array is refused', () => {
  expect(() => compileHealth(layout, { members: [sync], erased: [] })).toThrow('every member');
  const erased = [{ member: 7, offsetBytes: 0, lengthBytes: 512 }];
  expect(() => compileHealth(layout, { members: [sync, sync, sync], erased })).toThrow('names a member');
});
