import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import {
  type GroupingPolicy,
  groupingPolicies,
  type Prio,
  parseConf,
  type SelectorName,
  selectorNames,
  settingsFor,
} from '../../lib/multipath/conf.ts';
import {
  aluaStates,
  bestGroup,
  groupPaths,
  makeSelector,
  type PathFacts,
  prioOfPath,
  type RankedPath,
  type Selector,
} from '../../lib/multipath/select.ts';
import { MIB } from '../../lib/units.ts';
import { type Random, runSeed, withSeed } from '../conformance/seed.ts';

const never = (): number => {
  throw new Error('chance was asked');
};

function prioFrom(...lines: readonly string[]): Prio {
  return settingsFor(parseConf(`defaults {\n${lines.join('\n')}\n}`), { wwid: '1' }).prio;
}

describe('a prioritizer', () => {
  const path: PathFacts = { name: 'sda', hbtl: '1:0:0:3', serial: '0395J1FR904324' };

  test('const gives 1, and random gives each of 1 to 10', () => {
    expect(prioOfPath({ kind: 'const' }, path, never)).toBe(1);
    const random = seededRandom(1);
    const drawn = new Set(Array.from({ length: 400 }, () => prioOfPath({ kind: 'random' }, path, random)));
    expect([...drawn].sort((a, b) => a - b)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  });

  test('alua ranks states, the preferred bit outweighs them, and an optimized path needs none', () => {
    const of = (exclusivePrefBit: boolean, isPreferred: boolean): number[] =>
      aluaStates.map((state) =>
        prioOfPath({ kind: 'alua', exclusivePrefBit }, { ...path, alua: { state, isPreferred } }, never),
      );
    expect(of(false, false)).toEqual([50, 10, 5, 1, 0, 0, 0]);
    expect(of(true, false)).toEqual([50, 10, 5, 1, 0, 0, 0]);
    expect(of(false, true)).toEqual([50, 90, 85, 81, 80, 80, 80]);
    expect(of(true, true)).toEqual([130, 90, 85, 81, 80, 80, 80]);
    expect(prioOfPath({ kind: 'alua', exclusivePrefBit: false }, path, never)).toBe(0);
  });

  test.each<[string, number]>([
    ['devname sda 5 sd. 3', 5],
    ['devname sdb 5 sd. 3', 3],
    ['devname sdb 5', 0],
    ['hbtl 1:0:.:. 7', 7],
    ['serial .*J1FR.*324 4', 4],
    ['wwn .* 9', 0],
  ])('weightedpath "%s" takes the first expression that matches: %i', (args, expected) => {
    expect(prioOfPath(prioFrom('prio weightedpath', `prio_args "${args}"`), path, never)).toBe(expected);
  });

  test.each<[number, number, number]>([
    [10, 0.0001, 8],
    [10, 0.001, 8],
    [10, 0.0011, 7],
    [10, 0.01, 7],
    [10, 0.1, 6],
    [10, 0.1001, 5],
    [10, 1, 5],
    [10, 10, 4],
    [10, 100, 3],
    [10, 1000, 2],
    [10, 10_000, 1],
    [10, 10_001, 0],
    [10, 1e6, 0],
    [2, 0.001, 26],
    [2, 0.002, 25],
  ])('path_latency with base %i gives %f ms the rank %i', (base, latencyMs, rank) => {
    const prio: Prio = { kind: 'path_latency', ioCount: 2, base };
    expect(prioOfPath(prio, { ...path, latenciesMs: [latencyMs, latencyMs] }, never)).toBe(rank);
    expect(prioOfPath(prio, path, never)).toBe(0);
  });
});

function ranked(prios: readonly number[], more: readonly Partial<RankedPath>[] = []): RankedPath[] {
  return prios.map((prio, index) => ({ name: `p${index}`, prio, isMarginal: false, ...more[index] }));
}

function grouped(policy: GroupingPolicy, paths: readonly RankedPath[]): (readonly number[])[] {
  return groupPaths(policy, paths).map((group) => group.paths);
}

describe('path groups', () => {
  const paths = ranked(
    [10, 50, 10, 50],
    [
      { serial: 'x', nodeName: 'n' },
      { serial: 'y', nodeName: 'n' },
      { serial: 'y', nodeName: 'm' },
      { serial: 'y', nodeName: 'm' },
    ],
  );

  test('are what the policy says, the best first', () => {
    expect(grouped('failover', paths)).toEqual([[1], [3], [0], [2]]);
    expect(grouped('multibus', paths)).toEqual([[0, 1, 2, 3]]);
    expect(grouped('group_by_prio', paths)).toEqual([
      [1, 3],
      [0, 2],
    ]);
    expect(grouped('group_by_serial', paths)).toEqual([[1, 2, 3], [0]]);
    expect(grouped('group_by_node_name', paths)).toEqual([
      [0, 1],
      [2, 3],
    ]);
  });

  test('hold every path exactly once, whatever the policy, with marginal ones apart and last', () =>
    withSeed(runSeed, (random) => {
      for (let round = 0; round < 150; round += 1) {
        const some = Array.from({ length: 1 + random(8) }, (_, index) => ({
          name: `p${index}`,
          prio: random(4),
          serial: `s${random(3)}`,
          nodeName: `n${random(3)}`,
          isMarginal: random(3) === 0,
        }));
        const works = some.map(() => random(3) > 0);
        for (const policy of groupingPolicies) {
          const groups = groupPaths(policy, some);
          expect(groups.flatMap((group) => group.paths).sort()).toEqual(some.map((_, index) => index));
          for (const group of groups) {
            for (const index of group.paths) expect(some[index]?.isMarginal).toBe(group.isMarginal);
          }
          const marginal = groups.map(({ isMarginal }) => Number(isMarginal));
          expect(marginal).toEqual([...marginal].sort());
          const best = bestGroup(groups, some, (path) => works[path] === true);
          expect(best >= 0).toBe(works.includes(true));
          const hasGood = some.some(({ isMarginal }, index) => !isMarginal && works[index] === true);
          if (best >= 0) expect(groups[best]?.isMarginal).toBe(!hasGood);
        }
      }
    }));

  test('are compared by the paths that work: average priority, then how many', () => {
    const groups = groupPaths(
      'group_by_serial',
      ranked([40, 10, 30, 30], [{ serial: 'a' }, { serial: 'a' }]),
    );
    const all = ranked([40, 10, 30, 30]);
    expect(groups.map((group) => group.paths)).toEqual([
      [2, 3],
      [0, 1],
    ]);
    expect(bestGroup(groups, all, () => true)).toBe(0);
    expect(bestGroup(groups, all, (path) => path !== 1)).toBe(1);
    expect(bestGroup(groups, ranked([30, 30, 30, 30]), (path) => path !== 2)).toBe(1);
    expect(bestGroup(groups, all, () => false)).toBe(-1);
  });
});

interface Simulated {
  readonly shares: readonly number[];
  readonly latenciesMs: readonly number[];
}

/**
 * So many requests through a selector, `depth` of them at a time; each path does one after the other, in the time that
 * is its own.
 */
function run(
  selector: Selector,
  serviceMs: readonly number[],
  depth: number,
  count: number,
  random?: Random,
): Simulated {
  const candidates = serviceMs.map((_, index) => index);
  const shares = serviceMs.map(() => 0);
  const freeAtMs = serviceMs.map(() => 0);
  const underWay: { path: number; startedMs: number; endMs: number; lengthBytes: number }[] = [];
  const latenciesMs: number[] = [];
  let nowMs = 0;
  const endOne = (): void => {
    underWay.sort((a, b) => a.endMs - b.endMs);
    const request = underWay.shift();
    if (request === undefined) return;
    nowMs = request.endMs;
    latenciesMs.push(request.endMs - request.startedMs);
    selector.end(request.path, { ...request, nowMs, failed: false });
  };
  for (let made = 0; made < count; made += 1) {
    if (underWay.length === depth) endOne();
    const lengthBytes = 4096 * (1 + (random?.(16) ?? 0));
    const path = selector.select({ candidates, offsetBytes: made * MIB, lengthBytes, nowMs });
    shares[path] = (shares[path] ?? 0) + 1;
    const endMs = Math.max(nowMs, freeAtMs[path] ?? 0) + (serviceMs[path] ?? 0);
    freeAtMs[path] = endMs;
    underWay.push({ path, startedMs: nowMs, endMs, lengthBytes });
  }
  while (underWay.length > 0) endOne();
  return { shares, latenciesMs: latenciesMs.sort((a, b) => a - b) };
}

interface Shape {
  readonly prios?: readonly number[];
  readonly throughput?: readonly number[];
  readonly rrMinIo?: number;
  readonly rrWeight?: 'uniform' | 'priorities';
}

function selectorOf(selector: SelectorName, paths: number, shape: Shape = {}): Selector {
  const { rrMinIo = 1, rrWeight = 'uniform' } = shape;
  return makeSelector({
    settings: { selector, rrMinIo, rrWeight },
    paths: Array.from({ length: paths }, (_, index) => ({
      name: `1:0:${index}:0`,
      prio: shape.prios?.[index] ?? 1,
      throughput: shape.throughput?.[index] ?? 1,
    })),
  });
}

function p99(latenciesMs: readonly number[]): number {
  return latenciesMs[Math.floor(latenciesMs.length * 0.99)] ?? Number.NaN;
}

describe('a selector', () => {
  test.each(selectorNames)(
    '%s only ever gives a candidate, also when candidates change all the time',
    (name) =>
      withSeed(runSeed, (random) => {
        const selector = selectorOf(name, 6, { rrMinIo: 3 });
        const open: { path: number; lengthBytes: number; startedMs: number }[] = [];
        for (let nowMs = 0; nowMs < 2000; nowMs += 1) {
          const candidates = [0, 1, 2, 3, 4, 5].filter(() => random(2) === 0);
          if (candidates.length === 0) continue;
          const lengthBytes = 512 * (1 + random(100));
          const path = selector.select({ candidates, offsetBytes: random(2 ** 30), lengthBytes, nowMs });
          if (!candidates.includes(path)) throw new Error(`${path} of ${candidates}`);
          open.push({ path, lengthBytes, startedMs: nowMs });
          while (open.length > random(10)) {
            const [request] = open.splice(random(open.length), 1);
            if (request !== undefined)
              selector.end(request.path, { ...request, nowMs, failed: random(4) === 0 });
          }
        }
      }),
  );

  test.each(['round-robin', 'queue-length', 'service-time', 'historical-service-time'] as const)(
    '%s gives equal paths equal shares, at every depth',
    (name) => {
      for (const depth of [1, 3, 4, 32]) {
        const { shares } = run(selectorOf(name, 4), [1, 1, 1, 1], depth, 4000);
        expect(shares, `depth ${depth}`).toEqual([1000, 1000, 1000, 1000]);
      }
    },
  );

  test('round-robin stays with a path for rr_min_io requests, and with rr_weight priorities for prio times as many', () => {
    const order = (shape: Shape): string => {
      const selector = selectorOf('round-robin', 3, shape);
      const ask = { candidates: [0, 1, 2], offsetBytes: 0, lengthBytes: 512, nowMs: 0 };
      return Array.from({ length: 12 }, () => selector.select(ask)).join('');
    };
    expect(order({})).toBe('012012012012');
    expect(order({ rrMinIo: 3 })).toBe('000111222000');
    expect(order({ prios: [1, 3, 0], rrWeight: 'priorities' })).toBe('011120111201');
    expect(order({ prios: [1, 2, 1], rrMinIo: 2, rrWeight: 'priorities' })).toBe('001111220011');
    expect(order({ prios: [1, 3, 0] })).toBe('012012012012');
  });

  test('queue-length keeps queues within one of each other', () =>
    withSeed(runSeed, (random) => {
      const selector = selectorOf('queue-length', 5);
      const queued = [0, 0, 0, 0, 0];
      const ask = { candidates: [0, 1, 2, 3, 4], offsetBytes: 0, lengthBytes: 512, nowMs: 0 };
      for (let step = 0; step < 5000; step += 1) {
        const busy = queued.findIndex((count) => count > 0 && random(9) === 0);
        if (busy >= 0) {
          queued[busy] = (queued[busy] ?? 0) - 1;
          selector.end(busy, { lengthBytes: 512, startedMs: 0, nowMs: 0, failed: false });
          continue;
        }
        const path = selector.select(ask);
        if (queued[path] !== Math.min(...queued)) throw new Error(`${path} of ${queued}`);
        queued[path] = (queued[path] ?? 0) + 1;
      }
    }));

  test('service-time shares by throughput, by bytes, and leaves alone what has none', () =>
    withSeed(runSeed, (random) => {
      const selector = selectorOf('service-time', 4, { throughput: [1, 2, 5, 0] });
      const bytes = [0, 0, 0, 0];
      const ask = { candidates: [0, 1, 2, 3], offsetBytes: 0, nowMs: 0 };
      for (let step = 0; step < 8_000; step += 1) {
        const lengthBytes = 512 * (1 + random(64));
        const path = selector.select({ ...ask, lengthBytes });
        bytes[path] = (bytes[path] ?? 0) + lengthBytes;
      }
      const sum = bytes.reduce((a, b) => a + b);
      // Never further apart than one request of 32 KiB.
      for (const [path, part] of [1 / 8, 2 / 8, 5 / 8, 0].entries()) {
        expect(Math.abs((bytes[path] ?? 0) - sum * part)).toBeLessThan(4 * 64 * 512);
      }
      expect(selector.select({ ...ask, candidates: [3], lengthBytes: 512 })).toBe(3);
    }));

  test.each(['queue-length', 'service-time', 'historical-service-time'] as const)(
    '%s: with one path ten times as slow, p99 is far below that of round-robin, and the slow path gets its part',
    (name) => {
      const serviceMs = [1, 1, 1, 10];
      const fair = run(selectorOf('round-robin', 4), serviceMs, 16, 8000);
      const clever = run(selectorOf(name, 4), serviceMs, 16, 8000);
      expect(fair.shares).toEqual([2000, 2000, 2000, 2000]);
      expect(p99(fair.latenciesMs)).toBeGreaterThan(100);
      expect(p99(clever.latenciesMs)).toBeLessThan(p99(fair.latenciesMs) / 2);
      expect(clever.shares[3]).toBeLessThan(600);
      expect(clever.shares[3]).toBeGreaterThan(0);
    },
  );

  test('historical-service-time finds out that a slow path has recovered', () => {
    const selector = selectorOf('historical-service-time', 2);
    const slow = run(selector, [1, 50], 4, 2000);
    expect(slow.shares[1]).toBeLessThan(200);
    let nowMs = 1e6;
    const shares = [0, 0];
    for (let made = 0; made < 20_000; made += 1) {
      const path = selector.select({ candidates: [0, 1], offsetBytes: 0, lengthBytes: 512, nowMs });
      shares[path] = (shares[path] ?? 0) + 1;
      selector.end(path, { lengthBytes: 512, startedMs: nowMs, nowMs: nowMs + 1, failed: false });
      nowMs += 1;
    }
    expect(shares[1]).toBeGreaterThan(7000);
  });

  test('hash keeps an address with its path; what a failure moves is its own, spread evenly, and it comes back', () => {
    const selector = selectorOf('hash', 4);
    const units = 8_000;
    const placed = (candidates: readonly number[]): number[] =>
      Array.from({ length: units }, (_, unit) =>
        selector.select({ candidates, offsetBytes: unit * MIB + 4096, lengthBytes: 512, nowMs: 0 }),
      );
    const all = placed([0, 1, 2, 3]);
    const without = placed([0, 1, 3]);
    const moved = without.filter((path, unit) => path !== all[unit]);
    expect(moved.length).toBe(all.filter((path) => path === 2).length);
    const countsOf = (paths: readonly number[]): number[] =>
      [0, 1, 2, 3].map((path) => paths.filter((each) => each === path).length);
    // Five standard deviations of a fair draw: 5 √(n p q).
    for (const count of countsOf(all))
      expect(Math.abs(count - units / 4)).toBeLessThan(5 * Math.sqrt((units * 3) / 16));
    const [a = 0, b = 0, , d = 0] = countsOf(moved);
    for (const count of [a, b, d]) {
      expect(Math.abs(count - moved.length / 3)).toBeLessThan(5 * Math.sqrt((moved.length * 2) / 9));
    }
    expect(placed([3, 2, 1, 0])).toEqual(all);
  });
});
