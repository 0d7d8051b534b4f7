/** Which backups stay. */
import { expect, test } from 'vitest';
import type { Backup } from '../../lib/backup/record.ts';
import { type KeepRules, retained } from '../../lib/backup/retain.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

function backups(...times: readonly string[]): readonly Backup[] {
  return times.map((time, index) => {
    const [createdAt = '', array = 'demo'] = time.split(' ');
    return {
      id: time,
      number: index + 1,
      createdAt: createdAt.includes('T') ? `${createdAt}:00Z` : `${createdAt}T12:00:00Z`,
      array,
      uuid: null,
      sizeBytes: 1,
      point: null,
      addedBytes: 0,
      storedBytes: 0,
    };
  });
}

const kept = (all: readonly Backup[], rules: KeepRules): readonly string[] =>
  [...retained(all, rules).keys()].sort();

test('without a rule everything stays, and rules of 0 keep nothing', () => {
  const all = backups('2026-01-01', '2026-01-02');
  expect(kept(all, {})).toEqual(['2026-01-01', '2026-01-02']);
  expect(kept(all, { last: 0 })).toEqual([]);
});

test('the newest of each day, week and month that has one', () => {
  const all = backups('2026-01-01', '2026-01-02T08:00', '2026-01-02T09:00', '2026-01-05', '2026-02-01');
  expect(kept(all, { daily: 2 })).toEqual(['2026-01-05', '2026-02-01']);
  expect(kept(all, { daily: 3 })).toEqual(['2026-01-02T09:00', '2026-01-05', '2026-02-01']);
  expect(kept(all, { monthly: 5 })).toEqual(['2026-01-05', '2026-02-01']);
  expect(kept(all, { last: 1, monthly: 2 })).toEqual(['2026-01-05', '2026-02-01']);
});

test('weeks begin on Monday: 2026-01-04 is a Sunday', () => {
  const all = backups(
    '2026-01-03',
    '2026-01-04T23:59',
    '2026-01-05T00:00',
    '2026-01-11T23:59',
    '2026-01-12T00:00',
  );
  expect(kept(all, { weekly: 9 })).toEqual(['2026-01-04T23:59', '2026-01-11T23:59', '2026-01-12T00:00']);
});

test('each array by itself', () => {
  const all = backups('2026-01-01 a', '2026-01-02 b', '2026-01-03 a');
  expect(kept(all, { last: 1 })).toEqual(['2026-01-02 b', '2026-01-03 a']);
});

test('laws: more of a rule keeps more, more rules keep more, and the newest always stays', () =>
  withSeed(runSeed, (random) => {
    for (let round = 0; round < 200; round += 1) {
      const all = backups(
        ...Array.from({ length: 1 + random(30) }, (_, index) => {
          const day = new Date(
            Date.UTC(2025, 11, 1) + (index * 20 + random(20)) * 3_600_000 * (1 + random(3)),
          );
          return `${day.toISOString().slice(0, 16)}`;
        }),
      );
      const rules = { last: random(3), daily: random(4), weekly: random(4), monthly: random(4) };
      const before = kept(all, rules);
      const more = kept(all, { ...rules, daily: rules.daily + 1 });
      expect(more).toEqual(expect.arrayContaining([...before]));
      const { monthly: _, ...fewer } = rules;
      expect(before).toEqual(expect.arrayContaining([...kept(all, fewer)]));
      if (Object.values(rules).some((count) => count > 0)) expect(before).toContain(all.at(-1)!.id);
    }
  }));
