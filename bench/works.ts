/** What is compared: which levels, doing what, and which share of the bound is the aim. */
import { stripeBytes } from '../lib/engine/territory.ts';
import { RaidError } from '../lib/errors.ts';
import { seededRandom } from '../lib/host.ts';
import type { Geometry, Level } from '../lib/layout/geometry.ts';
import type { Layout } from '../lib/layout/layout.ts';
import { levels, parseLevel } from '../lib/layout/levels.ts';
import { KIB, MIB } from '../lib/units.ts';

export interface Shape {
  readonly members: number;
  readonly chunkBytes: number;
  readonly memberBytes: number;
}

export interface BenchLevel {
  readonly level: Level;
  /** md's word for the layout, where there is one. */
  readonly layout: string | null;
  /** Short, for tables and charts. */
  readonly label: string;
  readonly redundant: boolean;
  readonly geometry: (shape: Shape) => Geometry;
}

function raid10(label: string, layout: string, near: number, far: number): BenchLevel {
  return {
    level: 'raid10',
    layout,
    label,
    redundant: true,
    geometry: ({ members, chunkBytes, memberBytes }) => ({
      level: 'raid10',
      memberCount: members,
      chunkBytes,
      memberBytes,
      near,
      far,
      offset: false,
      farSets: 0,
    }),
  };
}

export const benchLevels: readonly BenchLevel[] = [
  {
    level: 'linear',
    layout: null,
    label: 'linear',
    redundant: false,
    geometry: ({ members, chunkBytes, memberBytes }) => ({
      level: 'linear',
      chunkBytes,
      memberBytes: Array.from({ length: members }, () => memberBytes),
    }),
  },
  {
    level: 'raid0',
    layout: null,
    label: 'raid0',
    redundant: false,
    geometry: ({ members, chunkBytes, memberBytes }) => ({
      level: 'raid0',
      chunkBytes,
      layout: 'original',
      memberBytes: Array.from({ length: members }, () => memberBytes),
    }),
  },
  {
    level: 'raid1',
    layout: null,
    label: 'raid1',
    redundant: true,
    geometry: ({ members, memberBytes }) => ({ level: 'raid1', memberCount: members, memberBytes }),
  },
  raid10('raid10 n2', 'near=2', 2, 1),
  raid10('raid10 f2', 'far=2', 1, 2),
  {
    level: 'raid4',
    layout: null,
    label: 'raid4',
    redundant: true,
    geometry: ({ members, chunkBytes, memberBytes }) => ({
      level: 'raid4',
      memberCount: members,
      chunkBytes,
      memberBytes,
    }),
  },
  {
    level: 'raid5',
    layout: 'left-symmetric',
    label: 'raid5',
    redundant: true,
    geometry: ({ members, chunkBytes, memberBytes }) => ({
      level: 'raid5',
      layout: 'left-symmetric',
      memberCount: members,
      chunkBytes,
      memberBytes,
    }),
  },
  {
    level: 'raid6',
    layout: 'left-symmetric',
    label: 'raid6',
    redundant: true,
    geometry: ({ members, chunkBytes, memberBytes }) => ({
      level: 'raid6',
      layout: 'left-symmetric',
      memberCount: members,
      chunkBytes,
      memberBytes,
    }),
  },
];

/** `raid5`, `5`, `mirror`, `raid10` (both layouts), `raid10-f2`. */
export function parseBenchLevel(text: string): readonly BenchLevel[] {
  const byLabel = benchLevels.filter(({ label }) => label.replace(' ', '-') === text.toLowerCase());
  if (byLabel.length > 0) return byLabel;
  const level = parseLevel(text);
  return benchLevels.filter((candidate) => candidate.level === level);
}

/** Members that the level can have; said before anything is made. */
export function checkMembers({ level }: BenchLevel, members: number): void {
  const { membersUseful, membersMax } = levels[level];
  if (members >= membersUseful && members <= membersMax) return;
  throw new RaidError(
    'BAD_ARGUMENT',
    `${level} is compared with ${membersUseful} members or more, not ${members}`,
  );
}

/** One thing that an array does for a caller. */
export interface Request {
  readonly op: 'read' | 'write';
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export type Unit = 'GB/s' | 'k/s' | 'µs';

export interface Aim {
  readonly measure: 'ratio' | 'value';
  readonly sense: 'at least' | 'at most';
  readonly limit: number;
}

export type WorkKind =
  | {
      readonly kind: 'sequential';
      readonly op: 'read' | 'write';
      readonly requestBytes: (layout: Layout) => number;
      readonly startBytes?: (layout: Layout) => number;
    }
  | { readonly kind: 'random'; readonly op: 'read' | 'write' }
  | { readonly kind: 'check' }
  | { readonly kind: 'recover' };

export interface Work {
  /** Stable: the `work` of a result. */
  readonly name: string;
  /** Over a column, in two lines. */
  readonly short: readonly [string, string];
  readonly does: WorkKind;
  /** With one member missing. */
  readonly degraded: boolean;
  readonly unit: Unit;
  /** Requests under way at once. */
  readonly depth: number;
  readonly aim: Aim | null;
  readonly applies: (level: BenchLevel, layout: Layout) => boolean;
}

export const SEQUENTIAL_DEPTH = 8;
export const RANDOM_DEPTH = 32;
const RANDOM_BYTES = 4 * KIB;

const ratioOf = (limit: number): Aim => ({ measure: 'ratio', sense: 'at least', limit });
const always = (): boolean => true;
const redundant = (level: BenchLevel): boolean => level.redundant;

export const works: readonly Work[] = [
  {
    name: 'sequential read 1 MiB',
    short: ['seq', 'read'],
    does: { kind: 'sequential', op: 'read', requestBytes: () => MIB },
    degraded: false,
    unit: 'GB/s',
    depth: SEQUENTIAL_DEPTH,
    aim: ratioOf(0.9),
    applies: always,
  },
  {
    name: 'sequential write, whole stripes',
    short: ['seq', 'write'],
    does: { kind: 'sequential', op: 'write', requestBytes: wholeStripes },
    degraded: false,
    unit: 'GB/s',
    depth: SEQUENTIAL_DEPTH,
    aim: ratioOf(0.85),
    applies: always,
  },
  {
    name: 'sequential write 1 MiB',
    short: ['1 MiB', 'write'],
    does: { kind: 'sequential', op: 'write', requestBytes: () => MIB, startBytes: besideStripes },
    degraded: false,
    unit: 'GB/s',
    depth: SEQUENTIAL_DEPTH,
    aim: null,
    // Elsewhere it is the row above, or differs from it by nothing that matters.
    applies: (_level, layout) => layout.kind === 'parity',
  },
  {
    name: 'random read 4 KiB',
    short: ['rand', 'read'],
    does: { kind: 'random', op: 'read' },
    degraded: false,
    unit: 'k/s',
    depth: RANDOM_DEPTH,
    aim: ratioOf(0.7),
    applies: always,
  },
  {
    name: 'random write 4 KiB',
    short: ['rand', 'write'],
    does: { kind: 'random', op: 'write' },
    degraded: false,
    unit: 'k/s',
    depth: RANDOM_DEPTH,
    aim: ratioOf(0.7),
    applies: always,
  },
  {
    name: 'random read 4 KiB, depth 1',
    short: ['read', 'alone'],
    does: { kind: 'random', op: 'read' },
    degraded: false,
    unit: 'µs',
    depth: 1,
    aim: { measure: 'value', sense: 'at most', limit: 25 },
    applies: always,
  },
  {
    name: 'check',
    short: ['check', ''],
    does: { kind: 'check' },
    degraded: false,
    unit: 'GB/s',
    depth: 1,
    aim: ratioOf(0.85),
    applies: redundant,
  },
  {
    name: 'degraded sequential read 1 MiB',
    short: ['degr.', 'seq'],
    does: { kind: 'sequential', op: 'read', requestBytes: () => MIB },
    degraded: true,
    unit: 'GB/s',
    depth: SEQUENTIAL_DEPTH,
    aim: null,
    applies: redundant,
  },
  {
    name: 'degraded random read 4 KiB',
    short: ['degr.', 'rand'],
    does: { kind: 'random', op: 'read' },
    degraded: true,
    unit: 'k/s',
    depth: RANDOM_DEPTH,
    aim: null,
    applies: redundant,
  },
  {
    name: 'recover',
    short: ['recov.', ''],
    does: { kind: 'recover' },
    degraded: true,
    unit: 'GB/s',
    depth: 1,
    aim: ratioOf(0.85),
    applies: redundant,
  },
];

/** As many whole stripes as come nearest to 1 MiB: 960 KiB for a raid5 of 4 members with 64 KiB chunks. */
function wholeStripes(layout: Layout): number {
  const rowBytes = stripeBytes(layout);
  return Math.max(1, Math.round(MIB / rowBytes)) * rowBytes;
}

/** Where 1 MiB happens to be whole stripes, it is not from half a chunk on. */
function besideStripes(layout: Layout): number {
  return layout.kind === 'parity' && MIB % stripeBytes(layout) === 0 ? layout.chunkBytes / 2 : 0;
}

/** Array bytes of a batch of sequential requests, and requests of a random one: some 5 to 20 ms of work. */
const BATCH_BYTES = 32 * MIB;
const BATCH_REQUESTS = 2048;

/** So many different batches, in turn: more than a processor's caches hold of the members. */
const BATCHES = 4;

/** Batches of requests, the same ones every time. */
export function batchesOf(work: WorkKind, layout: Layout): readonly (readonly Request[])[] {
  if (work.kind === 'random') {
    const random = seededRandom(4);
    const pages = Math.floor(layout.arrayBytes / RANDOM_BYTES);
    return Array.from({ length: BATCHES }, () =>
      Array.from({ length: BATCH_REQUESTS }, () => ({
        op: work.op,
        offsetBytes: random(pages) * RANDOM_BYTES,
        lengthBytes: RANDOM_BYTES,
      })),
    );
  }
  if (work.kind !== 'sequential') return [[]];
  const lengthBytes = work.requestBytes(layout);
  const shift = work.startBytes?.(layout) ?? 0;
  const total = Math.floor((layout.arrayBytes - shift) / lengthBytes);
  const count = Math.min(total, Math.max(1, Math.floor(BATCH_BYTES / lengthBytes)));
  return Array.from({ length: Math.min(BATCHES, Math.ceil(total / count)) }, (_, batch) =>
    Array.from({ length: count }, (_, index) => ({
      op: work.op,
      offsetBytes: shift + ((batch * count + index) % total) * lengthBytes,
      lengthBytes,
    })),
  );
}
