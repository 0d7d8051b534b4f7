/**
 * The shape of an array, as a value: it crosses to worker threads, is compared and printed, and a reshape holds two.
 *
 * There are two kinds of redundancy, and so two families:
 *
 *   copies   linear, raid0, raid1, raid10: every array byte lives on one or more members, unchanged.
 *   parity   raid4, raid5, raid6: members are cut into chunks; the chunks at the same place on all members form a
 *            row, in which one (P) or two (P, Q) are computed from the others.
 *
 * All lengths are bytes, and all places on members count from the start of the member's data, not of its file.
 */
export const raid5Layouts = {
  'left-asymmetric': 0,
  'right-asymmetric': 1,
  'left-symmetric': 2,
  'right-symmetric': 3,
  'parity-first': 4,
  'parity-last': 5,
} as const;

/** md's numbers. `ddf-*` take Q's coefficients from the role number; `*-6` are a raid5 layout with Q on the last member. */
export const raid6Layouts = {
  ...raid5Layouts,
  'ddf-zero-restart': 8,
  'ddf-N-restart': 9,
  'ddf-N-continue': 10,
  'left-asymmetric-6': 16,
  'right-asymmetric-6': 17,
  'left-symmetric-6': 18,
  'right-symmetric-6': 19,
  'parity-first-6': 20,
} as const;

export type Raid5Layout = keyof typeof raid5Layouts;
export type Raid6Layout = keyof typeof raid6Layouts;

/** Members one after the other. With a chunk size each contributes whole chunks only; 0 means no rounding. */
export interface Linear {
  readonly level: 'linear';
  readonly chunkBytes: number;
  /** What each member contributes, in slot order. */
  readonly memberBytes: readonly number[];
}

/** Striped. Unequal members make zones, and `layout` says how chunks are dealt out in the second zone and later ones. */
export interface Raid0 {
  readonly level: 'raid0';
  readonly chunkBytes: number;
  readonly layout: 'original' | 'alternate';
  readonly memberBytes: readonly number[];
}

export interface Raid1 {
  readonly level: 'raid1';
  readonly memberCount: number;
  readonly memberBytes: number;
}

export interface Raid4 {
  readonly level: 'raid4';
  readonly memberCount: number;
  readonly chunkBytes: number;
  readonly memberBytes: number;
}

export interface Raid5 {
  readonly level: 'raid5';
  readonly layout: Raid5Layout;
  readonly memberCount: number;
  readonly chunkBytes: number;
  readonly memberBytes: number;
}

export interface Raid6 {
  readonly level: 'raid6';
  readonly layout: Raid6Layout;
  readonly memberCount: number;
  readonly chunkBytes: number;
  readonly memberBytes: number;
}

/** `near` copies side by side, `far` copies in far sections (or, with `offset`, in the next rows). */
export interface Raid10 {
  readonly level: 'raid10';
  readonly memberCount: number;
  readonly chunkBytes: number;
  readonly memberBytes: number;
  readonly near: number;
  readonly far: number;
  readonly offset: boolean;
  /** md's layout variant: 0 whole array as one far set, 1 sets of n/far members, 2 sets of near*far members. */
  readonly farSets: 0 | 1 | 2;
}

export type CopiesGeometry = Linear | Raid0 | Raid1 | Raid10;
export type ParityGeometry = Raid4 | Raid5 | Raid6;
export type Geometry = CopiesGeometry | ParityGeometry;
export type Level = Geometry['level'];

export function isParity(geometry: Geometry): geometry is ParityGeometry {
  return geometry.level === 'raid4' || geometry.level === 'raid5' || geometry.level === 'raid6';
}

export function memberCountOf(geometry: Geometry): number {
  return geometry.level === 'linear' || geometry.level === 'raid0'
    ? geometry.memberBytes.length
    : geometry.memberCount;
}
