/** The explorer of crash points, where it is quick: that it passes what is right, and finds what must be found. */
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import { explore, type Findings, thorough } from '../../lib/sim/crash-points.ts';
import { Contents, Registers } from '../../lib/sim/crash-registers.ts';
import { type Choice, choicesOf, type FreeWrite, Prefixes, thinned } from '../../lib/sim/crash-states.ts';
import type { TraceEvent } from '../../lib/sim/crash-trace.ts';
import { worlds } from '../../lib/sim/crash-worlds.ts';

const sector = (value: number): Uint8Array => new Uint8Array(512).fill(value);

function worldOf(title: string): (typeof worlds)[number] {
  const world = worlds.find((each) => each.title === title);
  if (world === undefined) throw new Error(`there is no world ${title}`);
  return world;
}

function explored(title: string, script: number, forgivesNothing = false): Promise<Findings> {
  return explore(worldOf(title), { ...thorough, nested: [], dataChoices: 64, script, forgivesNothing });
}

describe('a sector may hold', () => {
  const contents = new Contents();
  const [old, first, second] = [sector(0), sector(1), sector(2)].map((bytes) => contents.idOf(bytes));
  const before = new Map([[0, new Set([old as number])]]);
  const ask = (id: number, value: number, fua = false): TraceEvent => ({
    what: 'ask',
    id,
    sector: 0,
    bytes: sector(value),
    fua,
  });
  const admitted = (events: readonly TraceEvent[]): unknown => [
    ...new Registers(events, contents, before).admitted(0, events.length),
  ];

  test('what was there, or a write that was acknowledged but not flushed', () => {
    expect(admitted([ask(1, 1), { what: 'answered', id: 1 }])).toEqual([old, first]);
  });

  test('after a flush, the newest write acknowledged before that was asked for, or what came later', () => {
    const events: TraceEvent[] = [
      ask(1, 1),
      { what: 'answered', id: 1 },
      { what: 'sync', id: 2 },
      ask(3, 2),
      { what: 'answered', id: 3 },
      { what: 'synced', id: 2 },
    ];
    expect(admitted(events)).toEqual([first, second]);
    expect(admitted(events.slice(0, -1))).toEqual([old, first, second]);
  });

  test('after a durable write, nothing acknowledged before it was asked for', () => {
    const fua: TraceEvent[] = [ask(1, 1), { what: 'answered', id: 1 }, ask(2, 2, true)];
    expect(admitted(fua)).toEqual([old, first, second]);
    expect(admitted([...fua, { what: 'answered', id: 2 }])).toEqual([second]);
  });
});

describe('after a power cut', () => {
  const image = new Uint8Array(4096);
  const write = (id: number, value: number, fua = false): TraceEvent => ({
    what: 'write',
    id,
    disk: 0,
    offsetBytes: 0,
    bytes: new Uint8Array(1024).fill(value),
    fua,
  });
  const prefixOf = (...events: readonly TraceEvent[]): Prefixes => {
    const prefixes = new Prefixes(events, [image], new Contents(), []);
    while (prefixes.moment < events.length) prefixes.advance();
    return prefixes;
  };

  test('a write may or may not be there, until it was answered before a flush was begun that was answered', () => {
    const flushed: TraceEvent[] = [
      write(1, 1),
      { what: 'written', id: 1 },
      { what: 'flush', id: 2, disk: 0 },
    ];
    expect(prefixOf(...flushed).free()).toHaveLength(1);
    expect(prefixOf(...flushed, { what: 'flushed', id: 2 }).free()).toHaveLength(0);
    const early: TraceEvent[] = [
      write(1, 1),
      { what: 'flush', id: 2, disk: 0 },
      { what: 'written', id: 1 },
      { what: 'flushed', id: 2 },
    ];
    expect(prefixOf(...early).free()).toHaveLength(1);
  });

  test('what lies below a durable write does not come back; what was under way with it may land later', () => {
    const below: TraceEvent[] = [
      write(1, 1),
      { what: 'written', id: 1 },
      write(2, 2, true),
      { what: 'written', id: 2 },
    ];
    expect(prefixOf(...below).free()).toHaveLength(0);
    const beside: TraceEvent[] = [write(1, 1), write(2, 2, true), { what: 'written', id: 2 }];
    expect(
      prefixOf(...beside)
        .free()
        .map(({ order }) => order),
    ).toEqual([0]);
  });

  test('of two writes of two sectors all subsets are tried, and each torn', () => {
    const writes = [0, 1].map((order): FreeWrite => {
      return { disk: 0, order, places: [2 * order, 2 * order + 1], versions: [1, 1], answered: 0 };
    });
    const choices = choicesOf(writes, seededRandom(1), 1000).map(({ masks }) => masks.join());
    expect(new Set(choices).size).toBe(choices.length);
    expect(choices).toEqual(expect.arrayContaining(['0,0', '3,0', '0,3', '3,3', '1,0', '2,3', '3,1']));
  });

  test.each([3, 6, 8, 15])(
    'of more choices %i are taken: nothing, everything, and in turn every other',
    (most) => {
      const writesFrom = (first: number): FreeWrite[] =>
        [0, 1, 2].map((index): FreeWrite => {
          const places = [2 * index, 2 * index + 1];
          return { disk: index, order: index === 0 ? first : 0, places, versions: [1, 1], answered: 0 };
        });
      const choices = choicesOf(writesFrom(0), seededRandom(1), 64);
      const taken = new Set<Choice>();
      for (let turn = 0; turn < choices.length; turn += 1) {
        const some = thinned(choices, writesFrom(turn), most);
        expect(new Set(some).size).toBe(most);
        expect(some.slice(0, 2).map(({ masks }) => masks.join())).toEqual(['0,0,0', '3,3,3']);
        for (const each of some) taken.add(each);
      }
      expect(taken.size).toBe(choices.length);
      expect(thinned(choices, writesFrom(5), choices.length)).toEqual(choices);
    },
  );
});

test('a mirror and a raid5 hold what they promise, at every moment of a few writes', async () => {
  for (const title of ['raid1 of 2, bitmap', 'raid5 of 3']) {
    const findings = await explored(title, 1);
    expect(findings.violations).toEqual([]);
    expect(findings.distinct).toBeGreaterThan(50);
  }
});

test('raid5 without a log has a write hole: forced, a sector that nobody wrote is lost with a missing member', async () => {
  const findings = await explored('raid5 of 3', 1, true);
  const [hole] = findings.violations;
  expect(hole?.what).toMatch(/which was not being written, holds content/);
  expect(hole?.forced).toBe(true);
  // And never without force: dirty and degraded, it was refused.
  expect(findings.violations.every(({ forced }) => forced)).toBe(true);
  expect(findings.refused).toBeGreaterThan(0);
});
