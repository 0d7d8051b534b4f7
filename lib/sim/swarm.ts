/**
 * From a seed to a case: an array, and what happens to it. A case is plain data, so it can be saved, replayed and made
 * smaller: any of its steps can be left out and what remains is a history too, since a step that does not apply when its
 * turn comes does nothing.
 *
 * Swarm testing: each case draws which kinds of steps and faults it has at all, and their weights. Most bugs need a few
 * kinds often, and not all kinds now and then: a case without flushes, one with nothing but faults of flushes, one of
 * three members that fail and come back all the time.
 *
 *   safe     damage stays within what the array promises to survive (atlas.ts keeps account): any loss is a bug
 *   silent   safe, but disks lie too: rot, lost and misdirected writes. Without checksums an array cannot tell; what may
 *            be wrong then are the sectors that share their redundancy with the damage, and no others
 *   beyond   damage knows no bounds: what is lost must be refused with an error, and never be wrong
 */
import { shapeArray } from '../array/form.ts';
import type { Death } from '../engine/message.ts';
import { RaidError } from '../errors.ts';
import { realHost, seededRandom } from '../host.ts';
import type { Level } from '../layout/geometry.ts';
import { layoutNames } from '../layout/levels.ts';
import { KIB, MIB, roundUp, SECTOR_BYTES } from '../units.ts';

/** Faults of disks. `which` disk and where are drawn with the step. */
export const faultNames = [
  'latent', // sectors that cannot be read until they are written
  'sticky-latent', // and for ever
  'read-error', // one read fails
  'short-read',
  'write-error', // one write fails; none, a part or all of it happened, or it happens later
  'no-space', // writes fail from now on
  'flush-error',
  'gone', // every request fails
  'slow',
  'hang', // no request ends for a while
  'metadata-read', // the superblock, or the bitmap, cannot be read
  'metadata-rot', // the superblock is not what it was
  'rot', // bytes of data are not what they were
  'lost-write',
  'misdirected-write',
] as const;
export type FaultName = (typeof faultNames)[number];

/** Calls that a disk may refuse for a while, after which it works again. */
export const refusableCalls = [
  'any', // as if it were gone
  'read',
  'write',
  'flush',
  'data', // writes to its part of the array
  'superblock', // writes to it; and so on
  'bitmap',
  'bad-blocks',
  'log',
] as const;
export type RefusableCalls = (typeof refusableCalls)[number];

export const silentFaults: readonly FaultName[] = ['rot', 'lost-write', 'misdirected-write'];

export const modes = ['safe', 'silent', 'beyond'] as const;
export type Mode = (typeof modes)[number];

export interface Config {
  readonly level: Level;
  readonly layout: string | null;
  readonly disks: number;
  readonly spares: number;
  readonly chunkBytes: number;
  readonly diskBytes: number;
  readonly metadata: '1.0' | '1.1' | '1.2';
  readonly bitmapChunkBytes: number | null;
  /** raid5 with partial parity logs; absent: without. */
  readonly isLogged?: boolean | undefined;
  readonly assumeClean: boolean;
  /** Of each member, that a sync or a scrub does in one step; absent: what arrays do by themselves, more than there is. */
  readonly windowBytes?: number | undefined;
  /** Absent: the driver is the event loop's. */
  readonly lanes?: number | undefined;
  /** Requests under way at once. */
  readonly depth: number;
  readonly readMs: number;
  readonly writeMs: number;
  readonly flushMs: number;
}

/** `which` is taken modulo what there is to choose from. */
export type Step =
  | { readonly do: 'write'; readonly sector: number; readonly sectors: number; readonly fua: boolean }
  | { readonly do: 'zero'; readonly sector: number; readonly sectors: number; readonly fua: boolean }
  | { readonly do: 'read'; readonly sector: number; readonly sectors: number }
  | { readonly do: 'flush' }
  /** Everything under way ends, and then nothing happens for a while. */
  | { readonly do: 'wait'; readonly ms: number }
  | { readonly do: 'fail'; readonly which: number }
  | { readonly do: 'remove'; readonly which: number }
  | { readonly do: 'add' }
  /** A disk that failed, or was away, works again and is brought back. */
  | { readonly do: 'return'; readonly which: number; readonly asNew: boolean }
  | { readonly do: 'replace'; readonly which: number }
  | { readonly do: 'scrub'; readonly repair: boolean }
  /** Until the sync that runs has ended. */
  | { readonly do: 'rebuild' }
  | {
      readonly do: 'fault';
      readonly fault: FaultName;
      readonly which: number;
      readonly sector: number;
      readonly sectors: number;
      readonly kind: number;
    }
  /** Of a disk, from a moment on and for a while; at most so many calls, or all there are. */
  | {
      readonly do: 'refuse';
      readonly calls: RefusableCalls;
      readonly which: number;
      readonly inMs: number;
      readonly forMs: number;
      readonly times: number | null;
      /** What becomes of a write that is refused. */
      readonly applied: 'none' | 'prefix' | 'all';
    }
  /** A lane dies: now, or at the next commit; and its successor perhaps too, soon. */
  | { readonly do: 'kill-lane'; readonly which: number; readonly when: Death; readonly isTwice: boolean }
  /** All disks become so much larger, or a mirror gets a leg more, and the array uses it once it is assembled again. */
  | { readonly do: 'grow'; readonly byBytes: number; readonly isByLeg: boolean }
  /** Closed, and assembled again; a member may be absent. */
  | { readonly do: 'stop'; readonly absent: number | null }
  /** The process is killed, or the power goes, in so many milliseconds, whatever is going on; and perhaps once more. */
  | {
      readonly do: 'crash';
      readonly how: 'kill' | 'power';
      readonly inMs: number;
      readonly absent: number | null;
      readonly againInMs: number | null;
    };

export interface Case {
  /** Of everything that is not said below: latencies, the order of events, what a power cut leaves. */
  readonly seed: number;
  readonly mode: Mode;
  readonly config: Config;
  readonly steps: readonly Step[];
}

export interface Wishes {
  readonly level?: Level | undefined;
  readonly mode?: Mode | undefined;
  /** At most so many steps. */
  readonly steps?: number | undefined;
  /** False: no disk refuses calls for a while. */
  readonly refusals?: boolean | undefined;
}

type Random = (below: number) => number;

/** As often as they shall be simulated: redundancy is what there is to test. */
const swarmLevels: readonly Level[] = [
  ...(['raid5', 'raid5', 'raid5', 'raid6', 'raid6', 'raid6', 'raid1', 'raid1', 'raid10', 'raid10'] as const),
  ...(['raid4', 'raid0', 'linear'] as const),
];

const membersMin: Readonly<Record<Level, number>> = {
  linear: 2,
  raid0: 2,
  raid1: 2,
  raid4: 3,
  raid5: 3,
  raid6: 4,
  raid10: 2,
};

export function pickCase(seed: number, wishes: Wishes = {}): Case {
  const random = seededRandom(seed ^ 0x5eed);
  // Mixed first: neighbouring seeds begin alike.
  for (let count = 0; count < 4; count += 1) random(2);
  const level = wishes.level ?? pick(random, swarmLevels);
  const mode = wishes.mode ?? pick(random, ['safe', 'safe', 'safe', 'safe', 'silent', 'beyond'] as const);
  for (;;) {
    const config = pickConfig(random, level);
    const sectorCount = arraySectorsOf(config);
    if (sectorCount === null) continue;
    const plain = { seed, mode, config, steps: pickSteps(random, config, mode, sectorCount) };
    const lasting = withGrowth(withLog(withLanes(plain)));
    const one = wishes.refusals === false ? lasting : withRefusals(lasting);
    return { ...one, steps: one.steps.slice(0, wishes.steps) };
  }
}

/** By a chance of its own: a case without lanes is the same whether others have them or not. */
function withLanes(one: Case): Case {
  const random = seededRandom(one.seed ^ 0x1a7e5);
  for (let count = 0; count < 4; count += 1) random(2);
  if (random(4) !== 0) return one;
  const inThousand = pick(random, [4, 15, 50]);
  const steps = one.steps.flatMap((step): readonly Step[] => {
    if (random(1000) >= inThousand) return [step];
    const when = pick(random, ['now', 'now', 'before-commit', 'in-commit', 'after-commit'] as const);
    return [{ do: 'kill-lane', which: random(16), when, isTwice: random(6) === 0 }, step];
  });
  return { ...one, config: { ...one.config, lanes: pick(random, [1, 2, 2, 3]) }, steps };
}

/** By a chance of its own too. */
function withLog(one: Case): Case {
  const random = seededRandom(one.seed ^ 0x10663d);
  for (let count = 0; count < 4; count += 1) random(2);
  // The logs take a MiB of each disk.
  const config = { ...one.config, isLogged: true, diskBytes: one.config.diskBytes + MIB };
  const isPossible = config.level === 'raid5' && config.bitmapChunkBytes === null;
  if (!isPossible || random(3) === 0) return one;
  return arraySectorsOf(config) === arraySectorsOf(one.config) ? { ...one, config } : one;
}

/** And so are those that grow. */
function withGrowth(one: Case): Case {
  const random = seededRandom(one.seed ^ 0x96203);
  for (let count = 0; count < 4; count += 1) random(2);
  const { level, metadata, chunkBytes } = one.config;
  if (level === 'raid0' || level === 'linear' || metadata === '1.0' || random(5) !== 0) return one;
  const unit = level === 'raid1' ? 64 * KIB : chunkBytes;
  const steps = [...one.steps];
  for (let count = 1 + random(3); count > 0; count -= 1) {
    const step: Step = {
      do: 'grow',
      byBytes: unit * random(5) + (random(3) === 0 ? 4 * KIB : 0),
      isByLeg: random(2) === 0,
    };
    // It grows only while it is clean.
    steps.splice(random(steps.length + 1), 0, { do: 'wait', ms: pick(random, [0, 1500]) }, step);
  }
  return { ...one, steps };
}

/** Faults after which a disk that cannot be missed is of no use any more, or the array does not start. */
const lasting: readonly FaultName[] = [
  'latent',
  'sticky-latent',
  'no-space',
  'gone',
  'metadata-read',
  'metadata-rot',
];

/**
 * And those whose disks refuse something for a while. What matters is what comes on top of it while it lasts: another
 * refusal, the end of the array's life and the beginning of the next, a rest.
 */
function withRefusals(one: Case): Case {
  const random = seededRandom(one.seed ^ 0x4ef05e);
  for (let count = 0; count < 4; count += 1) random(2);
  const { level, isLogged, bitmapChunkBytes } = one.config;
  const redundant = level !== 'raid0' && level !== 'linear';
  if (random(4) !== 0 || (!redundant && one.mode !== 'beyond')) return one;
  const possible = refusableCalls.filter(
    (calls) =>
      (calls !== 'log' || isLogged === true) &&
      (calls !== 'bitmap' || bitmapChunkBytes !== null) &&
      (calls !== 'bad-blocks' || one.mode === 'beyond'),
  );
  const chosen = possible.filter(() => random(2) === 0);
  const inThousand = pick(random, [5, 15, 40]);
  const soonMs = pick(random, [0.5, 5, 300]);
  const oftenBack = random(2) === 0;
  const refusal = (): Step => ({
    do: 'refuse',
    calls: pick(random, chosen.length === 0 ? possible : chosen),
    which: random(16),
    inMs: random(2) === 0 ? 0 : (random(1000) / 1000) * soonMs,
    forMs: pick(random, [0.5, 5, 50, 300, 2000]),
    times: pick(random, [1, 1, 2, 4, null]),
    applied: pick(random, ['none', 'none', 'prefix', 'all'] as const),
  });
  const rest = (): Step => ({ do: 'wait', ms: pick(random, [1, 50, 250, 1500]) });
  const stop: Step = { do: 'stop', absent: null };
  const crash = (): Step => ({
    do: 'crash',
    how: pick(random, ['kill', 'power'] as const),
    inMs: (random(1000) / 1000) * soonMs,
    absent: null,
    againInMs: random(3) === 0 ? random(1000) / 50 : null,
  });
  const back = (): Step => ({ do: 'return', which: random(16), asNew: false });
  const isAlone = random(2) === 0;
  const steps = one.steps.flatMap((step): readonly Step[] => {
    if (isAlone && step.do === 'fault' && lasting.includes(step.fault)) return [];
    if (random(1000) >= inThousand) return [step];
    return [
      ...Array.from({ length: pick(random, [1, 1, 2, 3]) }, refusal),
      ...pick(random, [() => [], () => [{ do: 'flush' } as const], () => [rest()]])(),
      ...pick(random, [() => [], () => [], () => [rest()], () => [stop], () => [crash()]])(),
      ...(oftenBack ? [step, back()] : [step]),
    ];
  });
  return { ...one, steps };
}

function pickConfig(random: Random, level: Level): Config {
  const least = membersMin[level];
  const disks = least + Math.min(random(3), random(4));
  const hasChunk = level !== 'raid1' && level !== 'linear';
  const names = layoutNames(level);
  const redundant = level !== 'raid0' && level !== 'linear';
  const chunkBytes = hasChunk ? pick(random, [4, 4, 8, 16]) * KIB : 0;
  // A mirror is made in units of 64 KiB, and 1.0 has its superblock behind the data.
  const dataBytes = hasChunk ? chunkBytes * (3 + random(14)) : pick(random, [72, 140, 200]) * KIB;
  const quiet = random(4) === 0;
  return {
    level,
    layout: names.length === 0 ? null : pick(random, names),
    disks,
    spares: redundant ? Math.min(random(2), random(3)) : 0,
    chunkBytes,
    diskBytes: MIB + dataBytes + pick(random, [0, 0, 4, 32]) * KIB,
    metadata: pick(random, ['1.2', '1.2', '1.1', '1.0'] as const),
    bitmapChunkBytes: redundant && random(2) === 0 ? pick(random, [4, 4, 8, 64]) * KIB : null,
    assumeClean: random(4) !== 0,
    windowBytes: windowOf(dataBytes, pick(random, [1, 1, 1, 2, 2, 3, 4, 64])),
    depth: pick(random, [1, 2, 4, 8, 8, 16]),
    readMs: quiet ? 0.02 : pick(random, [0.05, 0.1, 0.5]),
    writeMs: quiet ? 0.02 : pick(random, [0.05, 0.1, 0.5]),
    flushMs: quiet ? 0.02 : pick(random, [0.2, 1, 5]),
  };
}

/** About so many windows for a member, of whole pages. */
function windowOf(dataBytes: number, count: number): number {
  return roundUp(Math.ceil(dataBytes / count), 4 * KIB);
}

/** Null where no array can have this shape. */
function arraySectorsOf(config: Config): number | null {
  try {
    const sizes = new Array<number>(config.disks + config.spares).fill(config.diskBytes);
    return shapeArray(sizes, { ...shapeOptionsOf(config), host: realHost }).layout.arrayBytes / SECTOR_BYTES;
  } catch (error) {
    if (error instanceof RaidError) return null;
    throw error;
  }
}

/** For `formArray`. */
export function shapeOptionsOf(config: Config) {
  const { level, layout, spares, chunkBytes, metadata, bitmapChunkBytes, isLogged, assumeClean } = config;
  return {
    name: 'sim',
    level,
    spares,
    metadata,
    assumeClean,
    ...(layout === null ? {} : { layout }),
    ...(chunkBytes === 0 ? {} : { chunk: chunkBytes }),
    ...(bitmapChunkBytes === null ? {} : { bitmap: 'internal' as const, bitmapChunk: bitmapChunkBytes }),
    ...(isLogged === true ? { consistencyPolicy: 'ppl' as const } : {}),
  };
}

interface Kind {
  readonly weight: number;
  readonly make: () => Step;
}

function pickSteps(random: Random, config: Config, mode: Mode, sectorCount: number): readonly Step[] {
  const redundant = config.level !== 'raid0' && config.level !== 'linear';
  const chunk = Math.max(8, config.chunkBytes / SECTOR_BYTES);
  /** A kind that this case has in three of four cases, from seldom to often. */
  const weight = (most: number): number => (random(4) === 0 ? 0 : 1 + random(most * 10)) / 10;
  const hot = random(sectorCount);
  const isHot = random(2) === 0;
  const isLarge = random(8) === 0;

  const place = (): { sector: number; sectors: number } => {
    const sectors = Math.min(
      sectorCount,
      pick(random, [
        1 + random(8),
        8,
        8 * (1 + random(4)),
        chunk,
        Math.max(1, chunk + random(3) - 1),
        ...(isLarge ? [1 + random(4 * chunk)] : [1]),
      ]),
    );
    const about = isHot && random(4) !== 0 ? hot + random(4 * chunk) : random(sectorCount);
    const sector = random(3) === 0 ? about : random(2) === 0 ? about - (about % chunk) : about - (about % 8);
    return { sector: Math.max(0, Math.min(sector % sectorCount, sectorCount - sectors)), sectors };
  };
  const crashMs = pick(random, [0.5, 2, 10, 50]);
  const absent = (): number | null => (redundant && random(4) === 0 ? random(16) : null);
  const faults = faultsOf(random, mode, redundant);
  const kinds: readonly Kind[] = [
    { weight: weight(60) + 5, make: () => ({ do: 'write', ...place(), fua: random(12) === 0 }) },
    { weight: weight(60) + 5, make: () => ({ do: 'read', ...place() }) },
    { weight: weight(4), make: () => ({ do: 'zero', ...place(), fua: random(12) === 0 }) },
    { weight: weight(6), make: () => ({ do: 'flush' }) },
    { weight: weight(1), make: () => ({ do: 'wait', ms: pick(random, [1, 5, 50, 250, 1500]) }) },
    { weight: weight(0.3), make: () => ({ do: 'stop', absent: absent() }) },
    {
      weight: weight(0.8),
      make: () => ({
        do: 'crash',
        how: pick(random, ['kill', 'power', 'power'] as const),
        inMs: (random(1000) / 1000) * crashMs,
        absent: absent(),
        againInMs: random(3) === 0 ? random(1000) / 50 : null,
      }),
    },
    ...(redundant
      ? ([
          { weight: weight(0.6), make: () => ({ do: 'fail', which: random(16) }) },
          { weight: weight(0.5), make: () => ({ do: 'remove', which: random(16) }) },
          { weight: weight(0.5), make: () => ({ do: 'add' }) },
          { weight: weight(1), make: () => ({ do: 'return', which: random(16), asNew: random(3) === 0 }) },
          { weight: weight(0.4), make: () => ({ do: 'replace', which: random(16) }) },
          { weight: weight(0.3), make: () => ({ do: 'scrub', repair: random(2) === 0 }) },
          { weight: weight(0.4), make: () => ({ do: 'rebuild' }) },
        ] satisfies Kind[])
      : []),
    ...(faults.length === 0
      ? []
      : [
          {
            weight: weight(4),
            make: (): Step => ({
              do: 'fault',
              fault: pick(random, faults),
              which: random(16),
              sector: random(2 ** 16),
              sectors: pick(random, [1, 1, 3, 8, 20, 64]),
              kind: random(64),
            }),
          },
        ]),
  ];
  const total = kinds.reduce((sum, kind) => sum + kind.weight, 0);
  const count = 300 + random(1200);
  return Array.from({ length: count }, () => {
    let left = (random(2 ** 20) / 2 ** 20) * total;
    const kind = kinds.find((each) => {
      left -= each.weight;
      return left < 0;
    });
    return (kind ?? (kinds[0] as Kind)).make();
  });
}

function faultsOf(random: Random, mode: Mode, redundant: boolean): readonly FaultName[] {
  const possible = faultNames.filter((name) => {
    if (silentFaults.includes(name)) return mode === 'silent';
    return redundant || mode === 'beyond' || name === 'slow' || name === 'hang' || name === 'read-error';
  });
  const chosen = possible.filter(() => random(2) === 0);
  return chosen.length === 0 ? possible : chosen;
}

function pick<T>(random: Random, from: readonly T[]): T {
  return from[random(from.length)] as T;
}
