/**
 * Which path takes a request: paths have priorities, priorities make groups, one group is in use, and in it a selector
 * chooses. Nothing in here waits; whoever asks brings the time.
 *
 *   path ──prioritizer──▶ prio ──policy──▶ groups, the best first ──selector──▶ path
 *
 * The rules are those of multipath-tools (groups, priorities) and of dm-multipath (selectors):
 *
 *   round-robin               each path in turn, for so many requests
 *   queue-length              the one with the fewest requests under way
 *   service-time              the one with the fewest bytes under way, the new ones included, for its throughput
 *   historical-service-time   the one that will be done first, going by how long it took so far
 *   hash                      an address stays with its path (not in Linux; highest random weight)
 *
 * Where two are equal, the one that was chosen longest ago is taken: so an idle group still takes turns. One that comes back
 * counts as chosen just now, but for round-robin, whose turn it has missed.
 */
import { assert, unreachable } from '../errors.ts';
import { MIB } from '../units.ts';
import type { GroupingPolicy, Prio, SelectorName, Settings } from './conf.ts';

export const aluaStates = [
  'active/optimized',
  'active/non-optimized',
  'lba-dependent',
  'standby',
  'unavailable',
  'offline',
  'transitioning',
] as const;
export type AluaState = (typeof aluaStates)[number];

/** What is known of a path, apart from whether it works. */
export interface PathFacts {
  readonly name: string;
  /** Host, bus, target, LUN: `1:0:0:3`. */
  readonly hbtl?: string;
  /** Of the controller or the array behind it. */
  readonly serial?: string;
  readonly nodeName?: string;
  /** `host_wwnn:host_wwpn:target_wwnn:target_wwpn` */
  readonly wwn?: string;
  readonly alua?: { readonly state: AluaState; readonly isPreferred: boolean };
  /** Of the last reads that were measured, for `path_latency`. */
  readonly latenciesMs?: readonly number[];
}

// ── Priorities ───────────────────────────────────────────────────────────────────────────────────────────────────────

const aluaPrio: Readonly<Record<AluaState, number>> = {
  'active/optimized': 50,
  'active/non-optimized': 10,
  'lba-dependent': 5,
  standby: 1,
  unavailable: 0,
  offline: 0,
  transitioning: 0,
};

/** The preferred bit outweighs every state, except that an optimized path needs none; `exclusive_pref_bit` counts it there, too. */
const PREFERRED = 80;

/** Higher is better. `random(n)` draws from [0, n). */
export function prioOfPath(prio: Prio, path: PathFacts, random: (below: number) => number): number {
  switch (prio.kind) {
    case 'const':
      return 1;
    case 'random':
      return 1 + random(10);
    case 'alua': {
      if (path.alua === undefined) return 0;
      const { state, isPreferred } = path.alua;
      const counts = isPreferred && (prio.exclusivePrefBit || state !== 'active/optimized');
      return aluaPrio[state] + (counts ? PREFERRED : 0);
    }
    case 'weightedpath': {
      const text = prio.by === 'devname' ? path.name : path[prio.by];
      return prio.weights.find(({ pattern }) => text !== undefined && pattern.test(text))?.prio ?? 0;
    }
    case 'path_latency':
      return latencyPrio(path.latenciesMs ?? [], prio.base);
    default:
      return unreachable(prio);
  }
}

const MIN_US = 1;
const MAX_US = 100e6;

/**
 * Ranks of a logarithmic scale from 1 µs to 100 s; with base 10: up to 1 µs is 8, up to 10 µs is 7, …, up to 100 s is 0.
 * The average is that of the logarithms, so one outlier does not move a path by ranks.
 */
function latencyPrio(latenciesMs: readonly number[], base: number): number {
  if (latenciesMs.length === 0) return 0;
  let sum = 0;
  for (const ms of latenciesMs) sum += logOf(Math.min(Math.max(ms * 1000, MIN_US), MAX_US), base);
  const rank = logOf(MAX_US, base) - sum / latenciesMs.length;
  // log(1000) / log(10) is a bit less than 3, and a latency on a boundary belongs to the better rank.
  return Math.floor(rank + 1e-9);
}

function logOf(value: number, base: number): number {
  return Math.log(value) / Math.log(base);
}

// ── Groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────

export interface RankedPath extends PathFacts {
  readonly prio: number;
  /** It keeps failing, and is only used when nothing else is there. */
  readonly isMarginal: boolean;
}

export interface PathGroup {
  /** Indices into the paths that were grouped, in their order. */
  readonly paths: readonly number[];
  readonly isMarginal: boolean;
}

/**
 * Every path is in exactly one group, and no group is empty. Groups are in the order of their average priority, and of
 * their first paths where that is equal; marginal groups come last.
 */
export function groupPaths(policy: GroupingPolicy, paths: readonly RankedPath[]): readonly PathGroup[] {
  const groups = new Map<string, { readonly paths: number[]; readonly isMarginal: boolean }>();
  paths.forEach((path, index) => {
    const { isMarginal } = path;
    const key = `${isMarginal} ${keyOf(policy, path, index)}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { paths: [index], isMarginal });
    else group.paths.push(index);
  });
  const average = (group: PathGroup): number =>
    group.paths.reduce((sum, index) => sum + (paths[index]?.prio ?? 0), 0) / group.paths.length;
  return [...groups.values()].sort(
    (a, b) => Number(a.isMarginal) - Number(b.isMarginal) || average(b) - average(a),
  );
}

function keyOf(policy: GroupingPolicy, path: RankedPath, index: number): string {
  switch (policy) {
    case 'failover':
      return String(index);
    case 'multibus':
      return '';
    case 'group_by_prio':
      return String(path.prio);
    case 'group_by_serial':
      return path.serial ?? '';
    case 'group_by_node_name':
      return path.nodeName ?? '';
    default:
      return unreachable(policy);
  }
}

/**
 * The group that should be in use, or -1 where no path works: not marginal, then the highest average priority of its
 * working paths, then the most of them, then the first.
 */
export function bestGroup(
  groups: readonly PathGroup[],
  paths: readonly RankedPath[],
  works: (path: number) => boolean,
): number {
  let best = -1;
  let bestRank: readonly number[] = [];
  groups.forEach((group, index) => {
    const working = group.paths.filter(works);
    if (working.length === 0) return;
    const sum = working.reduce((total, path) => total + (paths[path]?.prio ?? 0), 0);
    const rank = [group.isMarginal ? 0 : 1, sum / working.length, working.length];
    if (best >= 0 && !isGreater(rank, bestRank)) return;
    best = index;
    bestRank = rank;
  });
  return best;
}

function isGreater(a: readonly number[], b: readonly number[]): boolean {
  for (let at = 0; at < a.length; at += 1) {
    const difference = (a[at] ?? 0) - (b[at] ?? 0);
    if (difference !== 0) return difference > 0;
  }
  return false;
}

// ── Selectors ────────────────────────────────────────────────────────────────────────────────────────────────────────

export interface Ask {
  /** What may be chosen: not empty. */
  readonly candidates: readonly number[];
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly nowMs: number;
}

/** Every `select` is followed by one `end` for the path that it gave, whether the request was done or not. */
export interface Selector {
  select(ask: Ask): number;
  /** `startedMs`: when it was selected. A request that failed tells nothing about how fast the path is. */
  end(
    path: number,
    request: {
      readonly lengthBytes: number;
      readonly startedMs: number;
      readonly nowMs: number;
      readonly failed: boolean;
    },
  ): void;
  /** A path that had failed works again, and may be among the candidates. */
  cameBack(path: number): void;
}

export interface SelectorOptions {
  readonly settings: Pick<Settings, 'selector' | 'rrMinIo' | 'rrWeight'>;
  /** By path: its priority (for `rr_weight priorities`) and its throughput, relative to the others (default 1; 0: only for want of others). */
  readonly paths: readonly { readonly prio: number; readonly throughput?: number; readonly name: string }[];
}

export function makeSelector(options: SelectorOptions): Selector {
  const { selector } = options.settings;
  return selectors[selector](options);
}

const selectors: Readonly<Record<SelectorName, (options: SelectorOptions) => Selector>> = {
  'round-robin': ({ settings, paths }) => new RoundRobin(settings, paths),
  'queue-length': ({ paths }) => new QueueLength(paths.length),
  'service-time': ({ paths }) => new ServiceTime(paths.map(({ throughput = 1 }) => throughput)),
  'historical-service-time': ({ paths }) => new HistoricalServiceTime(paths.length),
  hash: ({ paths }) => new HighestWeight(paths.map(({ name }) => name)),
};

/** Who was chosen longest ago. */
class Turns {
  readonly #last: number[];
  #count = 0;

  constructor(paths: number) {
    this.#last = new Array(paths).fill(0);
  }

  take(path: number): number {
    this.#count += 1;
    this.#last[path] = this.#count;
    return path;
  }

  /** Before all others, whoever had a turn longest ago. */
  giveNext(path: number): void {
    this.#count += 1;
    this.#last[path] = -this.#count;
  }

  /** Of those for which `isBetter` decides nothing, the one whose last turn is longest ago; then the first. */
  best(candidates: readonly number[], isBetter: (a: number, b: number) => number): number {
    assert(candidates.length > 0, 'a selector has something to choose from');
    let best = candidates[0] as number;
    for (const path of candidates) {
      const difference = isBetter(path, best) || (this.#last[path] ?? 0) - (this.#last[best] ?? 0);
      if (difference < 0) best = path;
    }
    return this.take(best);
  }
}

class RoundRobin implements Selector {
  readonly #repeats: readonly number[];
  readonly #turns: Turns;
  #current = -1;
  #left = 0;

  constructor(
    { rrMinIo, rrWeight }: Pick<Settings, 'rrMinIo' | 'rrWeight'>,
    paths: readonly { readonly prio: number }[],
  ) {
    this.#repeats = paths.map(({ prio }) =>
      rrWeight === 'priorities' ? Math.max(prio, 1) * rrMinIo : rrMinIo,
    );
    this.#turns = new Turns(paths.length);
  }

  select({ candidates }: Ask): number {
    if (this.#left === 0 || !candidates.includes(this.#current)) {
      this.#current = this.#turns.best(candidates, () => 0);
      this.#left = this.#repeats[this.#current] ?? 1;
    }
    this.#left -= 1;
    return this.#current;
  }

  end(): void {}

  cameBack(path: number): void {
    this.#turns.giveNext(path);
  }
}

class QueueLength implements Selector {
  readonly #queued: number[];
  readonly #turns: Turns;

  constructor(paths: number) {
    this.#queued = new Array(paths).fill(0);
    this.#turns = new Turns(paths);
  }

  select({ candidates }: Ask): number {
    const queued = this.#queued;
    const path = this.#turns.best(candidates, (a, b) => (queued[a] ?? 0) - (queued[b] ?? 0));
    queued[path] = (queued[path] ?? 0) + 1;
    return path;
  }

  end(path: number): void {
    this.#queued[path] = (this.#queued[path] ?? 0) - 1;
  }

  cameBack(path: number): void {
    this.#turns.take(path);
  }
}

class ServiceTime implements Selector {
  readonly #throughput: readonly number[];
  readonly #bytes: number[];
  readonly #turns: Turns;

  constructor(throughput: readonly number[]) {
    this.#throughput = throughput;
    this.#bytes = throughput.map(() => 0);
    this.#turns = new Turns(throughput.length);
  }

  select({ candidates, lengthBytes }: Ask): number {
    const path = this.#turns.best(candidates, (a, b) => this.#compare(a, b, lengthBytes));
    this.#bytes[path] = (this.#bytes[path] ?? 0) + lengthBytes;
    return path;
  }

  end(path: number, { lengthBytes }: { readonly lengthBytes: number }): void {
    this.#bytes[path] = (this.#bytes[path] ?? 0) - lengthBytes;
  }

  cameBack(path: number): void {
    this.#turns.take(path);
  }

  /** (bytes a + new) / throughput a against the same of b, multiplied out; of two equal, the faster one. */
  #compare(a: number, b: number, lengthBytes: number): number {
    const fastA = this.#throughput[a] ?? 1;
    const fastB = this.#throughput[b] ?? 1;
    const doneA = ((this.#bytes[a] ?? 0) + lengthBytes) * fastB;
    const doneB = ((this.#bytes[b] ?? 0) + lengthBytes) * fastA;
    // With both 0 nothing tells them apart but the bytes.
    if (fastA === 0 && fastB === 0) return (this.#bytes[a] ?? 0) - (this.#bytes[b] ?? 0);
    return doneA - doneB || fastB - fastA;
  }
}

/**
 * A path's service time is an average in which the last request counts for 5 %, and one that took longer for more:
 * (1 - 0.95^(1 + ms / 16.8)), so that what happened long ago fades by time and not by the number of requests. Requests
 * that were under way together share the time: one begins, for this purpose, when the one before it ended.
 *
 * A slow path would never be asked again, and so never be known to have recovered. So one that was not chosen for a
 * hundred times its own service time is asked once more, and its answer replaces what was known, which is too old to be
 * averaged with. At a depth of one that costs a slow path's time in a hundred.
 *
 * Linux averages alike, in steps of whole 16.8 ms, and probes otherwise: a path is stale once it has ended nothing for the average times
 * the number of paths, what a probe tells is averaged too, and of idle paths the one that is stale longest is taken. The
 * choices of the two are not compared: the kernel that tests boot has no such module.
 */
class HistoricalServiceTime implements Selector {
  readonly #paths: {
    averageMs: number;
    queued: number;
    lastEndMs: number;
    lastAskedMs: number;
    isProbed: boolean;
  }[];
  readonly #turns: Turns;

  constructor(paths: number) {
    this.#paths = Array.from({ length: paths }, () => ({
      averageMs: 0,
      queued: 0,
      lastEndMs: Number.NEGATIVE_INFINITY,
      lastAskedMs: Number.NEGATIVE_INFINITY,
      isProbed: false,
    }));
    this.#turns = new Turns(paths);
  }

  select({ candidates, nowMs }: Ask): number {
    const stale = candidates.filter((path) => this.#isStale(path, nowMs));
    const path = this.#turns.best(
      stale.length > 0 ? stale : candidates,
      (a, b) => this.#waitOf(a) - this.#waitOf(b),
    );
    const chosen = this.#at(path);
    chosen.queued += 1;
    if (stale.length > 0) chosen.isProbed = true;
    chosen.lastAskedMs = nowMs;
    return path;
  }

  end(
    path: number,
    {
      startedMs,
      nowMs,
      failed,
    }: { readonly startedMs: number; readonly nowMs: number; readonly failed: boolean },
  ): void {
    const of = this.#at(path);
    of.queued -= 1;
    if (failed) return;
    const tookMs = Math.max(0, nowMs - Math.max(startedMs, of.lastEndMs));
    of.lastEndMs = nowMs;
    const stays = of.isProbed ? 0 : 0.95 ** (1 + tookMs / BUCKET_MS);
    of.isProbed = false;
    of.averageMs = of.averageMs * stays + tookMs * (1 - stays);
  }

  cameBack(path: number): void {
    this.#turns.take(path);
  }

  #isStale(path: number, nowMs: number): boolean {
    const { averageMs, queued, lastAskedMs } = this.#at(path);
    return queued === 0 && averageMs > 0 && nowMs - lastAskedMs > STALE * averageMs;
  }

  #waitOf(path: number): number {
    const { averageMs, queued } = this.#at(path);
    return (queued + 1) * averageMs;
  }

  #at(path: number): {
    averageMs: number;
    queued: number;
    lastEndMs: number;
    lastAskedMs: number;
    isProbed: boolean;
  } {
    const found = this.#paths[path];
    assert(found !== undefined, 'a selector knows its paths');
    return found;
  }
}

const BUCKET_MS = 16.8;
const STALE = 100;

/** Neighbouring bytes share a path, so that what a path's other end keeps in its cache is of use. */
const HASH_UNIT_BYTES = MIB;

/**
 * Every path has a weight for every address, drawn by hash, and the heaviest takes it. When a path fails its addresses
 * spread over the others; no other address moves; and when it comes back it gets the same ones again.
 */
class HighestWeight implements Selector {
  readonly #seeds: readonly number[];

  constructor(names: readonly string[]) {
    this.#seeds = names.map((name) => {
      let hash = 0x811c9dc5;
      for (const char of name) hash = Math.imul(hash ^ (char.codePointAt(0) ?? 0), 0x01000193);
      return hash;
    });
  }

  select({ candidates, offsetBytes }: Ask): number {
    assert(candidates.length > 0, 'a selector has something to choose from');
    const unit = Math.floor(offsetBytes / HASH_UNIT_BYTES);
    let best = -1;
    let bestWeight = -1;
    for (const path of candidates) {
      const weight = mix(mix((this.#seeds[path] ?? 0) ^ (unit | 0)) ^ Math.floor(unit / 2 ** 32));
      if (weight <= bestWeight) continue;
      best = path;
      bestWeight = weight;
    }
    return best;
  }

  end(): void {}

  cameBack(): void {}
}

/** murmur3's finalizer: every bit of the input moves about half of the output's. */
function mix(value: number): number {
  let mixed = value >>> 0;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}
