/**
 * What there is to know about each level, once: the CLI's words, the limits, the docs and the numbers in a superblock all
 * derive from these tables.
 *
 * A superblock says level and layout as two numbers. The layout number means something else at every level:
 *
 *   level    md   layout number
 *   linear   -1   0
 *   raid0     0   1 original, 2 alternate (0: never recorded, which only matters when members differ in size)
 *   raid1     1   0
 *   raid4     4   0, not looked at
 *   raid5     5   0..5
 *   raid6     6   0..5, 8..10, 16..20
 *   raid10   10   near + (far << 8) + (offset << 16) + (farSets << 17)
 *
 *   0x00102 = 258     near=2              n2   two copies side by side
 *   0x00201 = 513     far=2               f2   two copies, the second half a member away
 *   0x10201 = 66049   offset=2            o2   two copies, the second in the next row
 *   0x00202 = 514     near=2,far=2             four copies
 *   0x40201 = 262657  far=2,far-sets=2         far copies stay inside pairs of members
 *
 * Words are md's and mdadm's. mdadm has none for combinations of near and far, nor for far sets: ours are the
 * last two above.
 */
import { RaidError, unreachable } from '../errors.ts';
import type { Geometry, Level, Raid0, Raid5, Raid5Layout, Raid6, Raid10 } from './geometry.ts';
import { raid5Layouts, raid6Layouts } from './geometry.ts';

export interface LevelFacts {
  /** The number in a superblock. */
  readonly number: number;
  /** Other words for it, as mdadm takes them. */
  readonly aliases: readonly string[];
  readonly family: 'copies' | 'parity';
  /** The least that md runs. */
  readonly membersMin: number;
  /** The least that makes sense: below it, mdadm wants `--force`. */
  readonly membersUseful: number;
  readonly membersMax: number;
  /**
   * `none`: md has no chunk here. `rounding`: optional, any multiple of a sector. `sectors`: any multiple of a sector.
   * `power-of-two`: a power of two, 4 KiB or more.
   */
  readonly chunk: 'none' | 'rounding' | 'sectors' | 'power-of-two';
  /** What mdadm takes when nothing is said. */
  readonly chunkBytesDefault: number;
  readonly layoutDefault: string | null;
  readonly summary: string;
  readonly redundancy: string;
}

/** As many device roles as a version-1 superblock of 4 KiB has room for. */
const membersMax = 1920;
/** Copies of one byte: the engine notes all writes of a row together, those to replacements too, and has room for twice this. */
export const copiesMax = 512;
const chunkBytesDefault = 512 * 1024;

export const levels = {
  linear: {
    number: -1,
    aliases: ['-1'],
    family: 'copies',
    membersMin: 1,
    membersUseful: 2,
    membersMax,
    chunk: 'rounding',
    chunkBytesDefault: 0,
    layoutDefault: null,
    summary: 'members one after the other',
    redundancy: 'none: every member is needed',
  },
  raid0: {
    number: 0,
    aliases: ['0', 'stripe'],
    family: 'copies',
    membersMin: 1,
    membersUseful: 2,
    membersMax,
    chunk: 'sectors',
    chunkBytesDefault,
    layoutDefault: 'original',
    summary: 'chunks dealt out over all members',
    redundancy: 'none: every member is needed',
  },
  raid1: {
    number: 1,
    aliases: ['1', 'mirror'],
    family: 'copies',
    membersMin: 1,
    membersUseful: 2,
    membersMax: copiesMax,
    chunk: 'none',
    chunkBytesDefault: 0,
    layoutDefault: null,
    summary: 'the same bytes on every member',
    redundancy: 'a copy on every member: any one member is enough',
  },
  raid4: {
    number: 4,
    aliases: ['4'],
    family: 'parity',
    membersMin: 2,
    membersUseful: 3,
    membersMax,
    chunk: 'power-of-two',
    chunkBytesDefault,
    layoutDefault: null,
    summary: 'chunks dealt out, parity on the last member',
    redundancy: 'P, the XOR of a row: any one member may be missing',
  },
  raid5: {
    number: 5,
    aliases: ['5'],
    family: 'parity',
    membersMin: 2,
    membersUseful: 3,
    membersMax,
    chunk: 'power-of-two',
    chunkBytesDefault,
    layoutDefault: 'left-symmetric',
    summary: 'chunks dealt out, parity taking turns on all members',
    redundancy: 'P, the XOR of a row: any one member may be missing',
  },
  raid6: {
    number: 6,
    aliases: ['6'],
    family: 'parity',
    membersMin: 4,
    membersUseful: 4,
    // Q has 255 different coefficients; 256 members leave 254 data chunks.
    membersMax: 256,
    chunk: 'power-of-two',
    chunkBytesDefault,
    layoutDefault: 'left-symmetric',
    summary: 'chunks dealt out, two parities taking turns on all members',
    redundancy: 'P and Q in every row: any two members may be missing',
  },
  raid10: {
    number: 10,
    aliases: ['10', '1+0'],
    family: 'copies',
    membersMin: 2,
    membersUseful: 2,
    membersMax,
    chunk: 'power-of-two',
    chunkBytesDefault,
    layoutDefault: 'near=2',
    summary: 'chunks dealt out, each on two or more members',
    redundancy: 'near x far copies of every chunk: any (copies - 1) members may be missing, often more',
  },
} as const satisfies Record<Level, LevelFacts>;

export const levelNames = Object.keys(levels) as readonly Level[];

/** The part of a geometry that a layout name or number says; spread it into a geometry. Every `Geometry` is one, too. */
export type LayoutChoice =
  | { readonly level: 'linear' | 'raid1' | 'raid4' }
  | Pick<Raid0, 'level' | 'layout'>
  | Pick<Raid5, 'level' | 'layout'>
  | Pick<Raid6, 'level' | 'layout'>
  | Pick<Raid10, 'level' | 'near' | 'far' | 'offset' | 'farSets'>;

export type LayoutChoiceOf<L extends Level> =
  Extract<LayoutChoice, { readonly level: L }> extends never
    ? { readonly level: L }
    : Extract<LayoutChoice, { readonly level: L }>;

export const raid0Layouts = { original: 1, alternate: 2 } as const;

/** mdadm's short words. */
export const layoutShortNames = {
  'left-asymmetric': 'la',
  'right-asymmetric': 'ra',
  'left-symmetric': 'ls',
  'right-symmetric': 'rs',
} as const;

/** mdadm gives these DDF words to raid5 too, where without Q they come down to a layout that has a name already. */
const raid5Aliases: Readonly<Record<string, Raid5Layout>> = {
  'ddf-zero-restart': 'right-asymmetric',
  'ddf-n-restart': 'left-asymmetric',
  'ddf-n-continue': 'left-symmetric',
};

/** `raid5`, `5`, `RAID-5`, `mirror` ... */
export function parseLevel(text: string | number): Level {
  const word = String(text).trim().toLowerCase();
  const plain = word.replace(/^raid[-_ ]?/, '');
  for (const level of levelNames) {
    const { aliases }: LevelFacts = levels[level];
    if (level === word || aliases.includes(word) || (plain !== word && aliases.includes(plain))) return level;
  }
  throw new RaidError('BAD_ARGUMENT', `"${text}" is not a RAID level; there are ${levelNames.join(', ')}`);
}

/** Null for a number that is none of ours (multipath, faulty, container ...). */
export function levelFromNumber(number: number): Level | null {
  return levelNames.find((level) => levels[level].number === number) ?? null;
}

export function levelNumber(level: Level): number {
  return levels[level].number;
}

/** Every name that `layoutName` gives at this level; for raid10, the common ones. */
export function layoutNames(level: Level): readonly string[] {
  switch (level) {
    case 'linear':
    case 'raid1':
    case 'raid4':
      return [];
    case 'raid0':
      return Object.keys(raid0Layouts);
    case 'raid5':
      return Object.keys(raid5Layouts);
    case 'raid6':
      return Object.keys(raid6Layouts);
    case 'raid10':
      return ['near=2', 'far=2', 'offset=2', 'near=3', 'far=3', 'offset=3', 'near=2,far=2'];
    default:
      return unreachable(level);
  }
}

/** A name, a short name, md's number (`258`, `0x102`), or `default`. */
export function parseLayout<L extends Level>(level: L, text: string | number): LayoutChoiceOf<L>;
export function parseLayout(level: Level, text: string | number): LayoutChoice {
  const word = String(text).trim();
  const { layoutDefault }: LevelFacts = levels[level];
  if (word === 'default' && layoutDefault === null) return { level } as LayoutChoice;
  const choice = fromName(level, word === 'default' && layoutDefault !== null ? layoutDefault : word);
  if (choice !== null) return choice;

  const names = layoutNames(level);
  const right =
    names.length === 0
      ? `${level} has only one: leave it out`
      : level === 'raid10'
        ? `write n2, f2, o2, ${names.join(', ')} or md's number such as 0x102`
        : `there are ${names.join(', ')}`;
  throw new RaidError('BAD_ARGUMENT', `"${text}" is not a layout of ${level}; ${right}`);
}

/** In mdadm's words; null where a level has no choice of layout. */
export function layoutName(choice: LayoutChoice): string | null {
  switch (choice.level) {
    case 'linear':
    case 'raid1':
    case 'raid4':
      return null;
    case 'raid0':
    case 'raid5':
    case 'raid6':
      return choice.layout;
    case 'raid10': {
      const { near, far, offset, farSets } = choice;
      const parts = [];
      if (near > 1 || far === 1) parts.push(`near=${near}`);
      if (far > 1 || offset) parts.push(`${offset ? 'offset' : 'far'}=${far}`);
      if (farSets !== 0) parts.push(`far-sets=${farSets}`);
      return parts.join(',');
    }
    default:
      return unreachable(choice);
  }
}

/** As short as mdadm has it: `ls`, `n2`; the full name where there is nothing shorter. */
export function layoutShortName(choice: LayoutChoice): string | null {
  const name = layoutName(choice);
  if (choice.level === 'raid10') return name?.replace(/^(n|f|o)[a-z]+=(\d+)$/, '$1$2') ?? null;
  return name !== null && name in layoutShortNames
    ? layoutShortNames[name as keyof typeof layoutShortNames]
    : name;
}

/** The number that a superblock holds for this layout. */
export function layoutNumber(choice: LayoutChoice): number {
  switch (choice.level) {
    case 'linear':
    case 'raid1':
    case 'raid4':
      return 0;
    case 'raid0':
      return raid0Layouts[choice.layout];
    case 'raid5':
      return raid5Layouts[choice.layout];
    case 'raid6':
      return raid6Layouts[choice.layout];
    case 'raid10':
      return choice.near + (choice.far << 8) + (choice.offset ? 1 << 16 : 0) + (choice.farSets << 17);
    default:
      return unreachable(choice);
  }
}

/**
 * The inverse of `layoutNumber`. Null where md knows no such number, and for raid0's 0 ("never recorded"): there only the
 * caller can tell whether it matters.
 */
export function layoutFromNumber<L extends Level>(level: L, number: number): LayoutChoiceOf<L> | null;
export function layoutFromNumber(level: Level, number: number): LayoutChoice | null {
  switch (level) {
    case 'linear':
    case 'raid1':
    case 'raid4':
      return { level };
    case 'raid0': {
      const layout = nameOf(raid0Layouts, number);
      return layout === null ? null : { level, layout };
    }
    case 'raid5': {
      const layout = nameOf(raid5Layouts, number);
      return layout === null ? null : { level, layout };
    }
    case 'raid6': {
      const layout = nameOf(raid6Layouts, number);
      return layout === null ? null : { level, layout };
    }
    case 'raid10': {
      const { near, far, offset } = raid10Copies(number);
      const farSets = number >>> 17;
      if (!Number.isInteger(number) || number < 0 || near === 0 || far === 0) return null;
      if (farSets !== 0 && farSets !== 1 && farSets !== 2) return null;
      return { level, near, far, offset, farSets };
    }
    default:
      return unreachable(level);
  }
}

/** The copies that a layout number of raid10 speaks of, whether or not md has such a layout. */
export function raid10Copies(number: number): Pick<Raid10, 'near' | 'far' | 'offset'> {
  return { near: number & 0xff, far: (number >> 8) & 0xff, offset: (number & 0x10000) !== 0 };
}

/** However unlucky the choice: with this many members missing, every byte is still there. */
export function failuresSurvived(geometry: Geometry): number {
  switch (geometry.level) {
    case 'linear':
    case 'raid0':
      return 0;
    case 'raid1':
      return geometry.memberCount - 1;
    case 'raid4':
    case 'raid5':
      return 1;
    case 'raid6':
      return 2;
    case 'raid10':
      return geometry.near * geometry.far - 1;
    default:
      return unreachable(geometry);
  }
}

function fromName(level: Level, word: string): LayoutChoice | null {
  if (level === 'raid10') {
    const named = raid10FromName(word);
    if (named !== null) return named;
  } else {
    const typed = word.toLowerCase();
    const lower = (level === 'raid5' && raid5Aliases[typed]) || typed;
    for (const name of layoutNames(level)) {
      const short = (layoutShortNames as Record<string, string | undefined>)[name];
      if (lower === name.toLowerCase() || lower === short) {
        const choice: LayoutChoice | null = layoutFromNumber(level, numberOf(level, name));
        return choice;
      }
    }
  }
  return layoutNames(level).length > 0 && /^(\d+|0x[\da-f]+)$/i.test(word)
    ? layoutFromNumber<Level>(level, Number(word))
    : null;
}

function numberOf(level: Level, name: string): number {
  const numbers: Record<string, number> = level === 'raid0' ? raid0Layouts : raid6Layouts;
  return numbers[name] ?? -1;
}

/** `n2`, `near=2`, `near=2,far=2`, `offset=3,far-sets=2`: each word at most once. */
function raid10FromName(text: string): LayoutChoice | null {
  const short = /^([nfo])(\d{1,3})$/i.exec(text);
  const words = short === null ? text.toLowerCase() : `${short[1]?.toLowerCase()}=${short[2]}`;
  let near: number | null = null;
  let far: number | null = null;
  let offset = false;
  let farSets: 0 | 1 | 2 | null = null;

  for (const part of words.split(/\s*,\s*/)) {
    const match = /^(near|n|far|f|offset|o|far-sets)=(\d{1,3})$/.exec(part);
    if (match === null) return null;
    const value = Number(match[2]);
    if (match[1] === 'far-sets') {
      if (farSets !== null || (value !== 0 && value !== 1 && value !== 2)) return null;
      farSets = value;
    } else if (match[1]?.startsWith('n')) {
      if (near !== null || value < 1 || value > 255) return null;
      near = value;
    } else {
      if (far !== null || value < 1 || value > 255) return null;
      far = value;
      offset = match[1]?.startsWith('o') ?? false;
    }
  }
  if (near === null && far === null) return null;
  return { level: 'raid10', near: near ?? 1, far: far ?? 1, offset, farSets: farSets ?? 0 };
}

function nameOf<T extends Record<string, number>>(numbers: T, number: number): (keyof T & string) | null {
  for (const name in numbers) if (numbers[name] === number) return name;
  return null;
}
