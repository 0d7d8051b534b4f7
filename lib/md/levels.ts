/**
 * Geometry as md's superblocks spell it, and back.
 *
 *   level    -1 linear, 0, 1, 4, 5, 6, 10
 *   layout   raid5 0 to 5, raid6 0 to 5, 8 to 10, 16 to 20: the tables of layout/geometry.ts
 *            raid10  near + 256 far + 65536 offset + 131072 farSets;  n2 = 0x102, f2 = 0x201, o2 = 0x10201
 *            raid0   1 original, 2 alternate; counts only with the feature RAID0_LAYOUT
 *            raid4, raid1, linear: ignored
 *   size     sectors that the array uses on each member; 0 for raid0 and linear, where each gives its own data_size
 *
 * RAID0_LAYOUT came in 2019, after kernels had for years dealt out the later zones of unequal members in two ways. An
 * older superblock does not say which, and both read the wrong data without noticing when they guess wrong. The
 * kernel refuses to guess; so do we.
 */
import { RaidError } from '../errors.ts';
import { type Geometry, memberCountOf, raid5Layouts, raid6Layouts } from '../layout/geometry.ts';
import { roundDown } from '../units.ts';

export interface LevelNumbers {
  readonly level: number;
  readonly layout: number;
  readonly chunkSectors: number;
  readonly sizeSectors: number;
  readonly raidDisks: number;
  /** The feature RAID0_LAYOUT: `layout` counts for level 0. */
  readonly hasRaid0Layout: boolean;
}

const SECTOR = 512;

export const levelNames: ReadonlyMap<number, Geometry['level']> = new Map([
  [-1, 'linear'],
  [0, 'raid0'],
  [1, 'raid1'],
  [4, 'raid4'],
  [5, 'raid5'],
  [6, 'raid6'],
  [10, 'raid10'],
]);

/**
 * The geometry of the array that these numbers describe. `dataSectors` is what each slot's member has for data: only
 * raid0 and linear ask for it, and they need all. `raid0Layout` answers for superblocks that do not say.
 */
export function geometryOf(
  numbers: LevelNumbers,
  dataSectors: readonly number[],
  raid0Layout: 'original' | 'alternate' | null = null,
): Geometry {
  const { level, raidDisks: memberCount } = numbers;
  const chunkBytes = numbers.chunkSectors * SECTOR;
  const memberBytes = numbers.sizeSectors * SECTOR;
  if (level > 0 && memberBytes === 0) throw broken('size is 0');
  switch (level) {
    case -1:
    case 0: {
      if (dataSectors.length !== memberCount) {
        throw new RaidError(
          'NOT_ENOUGH_MEMBERS',
          `all ${memberCount} members are needed, ${dataSectors.length} are here`,
        );
      }
      const each = dataSectors.map((sectors) => sectors * SECTOR);
      if (level === -1) return { level: 'linear', chunkBytes, memberBytes: each };
      if (chunkBytes === 0) throw broken('chunksize is 0');
      return {
        level: 'raid0',
        chunkBytes,
        layout: raid0LayoutOf(numbers, each, raid0Layout),
        memberBytes: each,
      };
    }
    case 1:
      return { level: 'raid1', memberCount, memberBytes };
    case 4:
      return { level: 'raid4', memberCount, ...parityShape(numbers, 2) };
    case 5: {
      const layout = keyOf(raid5Layouts, numbers.layout);
      if (layout === null) throw broken(`layout ${numbers.layout} is not one of raid5`);
      return { level: 'raid5', layout, memberCount, ...parityShape(numbers, 2) };
    }
    case 6: {
      const layout = keyOf(raid6Layouts, numbers.layout);
      if (layout === null) throw broken(`layout ${numbers.layout} is not one of raid6`);
      return { level: 'raid6', layout, memberCount, ...parityShape(numbers, 4) };
    }
    case 10:
      return raid10Of(numbers);
    default:
      throw new RaidError('UNSUPPORTED_FEATURE', `level ${level} is not a RAID level that raidsim knows`);
  }
}

/** The inverse. The layout room checks geometries; this only spells them. */
export function levelNumbersOf(geometry: Geometry): LevelNumbers {
  const raidDisks = memberCountOf(geometry);
  const common = { raidDisks, hasRaid0Layout: false, layout: 0 };
  switch (geometry.level) {
    case 'linear':
      return { ...common, level: -1, sizeSectors: 0, chunkSectors: geometry.chunkBytes / SECTOR };
    case 'raid0': {
      const { memberBytes, chunkBytes } = geometry;
      return {
        ...common,
        level: 0,
        sizeSectors: 0,
        chunkSectors: chunkBytes / SECTOR,
        layout: geometry.layout === 'original' ? 1 : 2,
        hasRaid0Layout: memberBytes.some((bytes) => bytes !== memberBytes[0]),
      };
    }
    case 'raid1':
      return { ...common, level: 1, sizeSectors: geometry.memberBytes / SECTOR, chunkSectors: 0 };
    case 'raid4':
    case 'raid5':
    case 'raid6':
    case 'raid10': {
      const sizeSectors = geometry.memberBytes / SECTOR;
      const chunkSectors = geometry.chunkBytes / SECTOR;
      const level = { raid4: 4, raid5: 5, raid6: 6, raid10: 10 }[geometry.level];
      return { ...common, level, sizeSectors, chunkSectors, layout: layoutNumberOf(geometry) };
    }
  }
}

/** Sectors of the array above level 0, where members are alike: what mdadm prints and the bitmap of raid10 covers. */
export function arraySectorsOf(numbers: LevelNumbers): number {
  const { level, chunkSectors: chunk, raidDisks, sizeSectors: size } = numbers;
  switch (level) {
    case 4:
    case 5:
      return roundDown(size, chunk) * (raidDisks - 1);
    case 6:
      return roundDown(size, chunk) * (raidDisks - 2);
    case 10: {
      const { near, far } = raid10Copies(numbers.layout);
      const rows = Math.floor(Math.floor(size / chunk) / far);
      return Math.floor((rows * raidDisks) / near) * chunk;
    }
    default:
      return size;
  }
}

export function raid10Copies(layout: number): {
  readonly near: number;
  readonly far: number;
  readonly offset: boolean;
} {
  return { near: layout & 0xff, far: (layout >> 8) & 0xff, offset: (layout & 0x10000) !== 0 };
}

function layoutNumberOf(geometry: Exclude<Geometry, { level: 'linear' | 'raid0' | 'raid1' }>): number {
  switch (geometry.level) {
    case 'raid4':
      return 0;
    case 'raid5':
      return raid5Layouts[geometry.layout];
    case 'raid6':
      return raid6Layouts[geometry.layout];
    case 'raid10':
      return geometry.near + 256 * geometry.far + 65536 * Number(geometry.offset) + 131072 * geometry.farSets;
  }
}

function raid0LayoutOf(
  numbers: LevelNumbers,
  memberBytes: readonly number[],
  told: 'original' | 'alternate' | null,
): 'original' | 'alternate' {
  if (numbers.hasRaid0Layout) {
    if (numbers.layout === 1) return 'original';
    if (numbers.layout === 2) return 'alternate';
    throw broken(`layout ${numbers.layout} is not one of raid0`);
  }
  if (told !== null) return told;
  const chunkBytes = numbers.chunkSectors * SECTOR;
  const used = memberBytes.map((bytes) => roundDown(bytes, chunkBytes));
  const inSecondZone = used.filter((bytes) => bytes > Math.min(...used)).length;
  if (inSecondZone > 1) {
    throw new RaidError(
      'UNSUPPORTED_FEATURE',
      'the superblocks do not say how chunks are dealt out over the unequal members; say original or alternate',
    );
  }
  return 'original';
}

function parityShape(numbers: LevelNumbers, membersMin: number): { chunkBytes: number; memberBytes: number } {
  if (numbers.raidDisks < membersMin)
    throw broken(`raid_disks is ${numbers.raidDisks}, less than ${membersMin}`);
  const chunkBytes = chunkOf(numbers);
  return { chunkBytes, memberBytes: roundDown(numbers.sizeSectors * SECTOR, chunkBytes) };
}

/** A power of two from 4 KiB; and not more than a member has, or the array would be empty. */
function chunkOf(numbers: LevelNumbers): number {
  const { chunkSectors } = numbers;
  if (chunkSectors < 8 || !Number.isInteger(Math.log2(chunkSectors)))
    throw broken(`chunksize is ${chunkSectors}`);
  if (chunkSectors > numbers.sizeSectors) throw broken(`chunksize is ${chunkSectors}, more than size`);
  return chunkSectors * SECTOR;
}

function raid10Of(numbers: LevelNumbers): Geometry {
  const { layout, raidDisks: memberCount } = numbers;
  const { near, far, offset } = raid10Copies(layout);
  const farSets = layout >>> 17;
  const refused = (why: string): RaidError => broken(`raid10 layout 0x${layout.toString(16)}: ${why}`);
  if (farSets !== 0 && farSets !== 1 && farSets !== 2) throw refused('unknown variant');
  if (near * far < 2) throw refused('fewer than two copies');
  if (near * far > memberCount) throw refused(`more copies than ${memberCount} members`);
  // The kernel runs these and lets chunks overwrite each other.
  if (offset && near > 1 && memberCount % near !== 0) throw refused('its copies overlap');
  const chunkBytes = chunkOf(numbers);
  const memberBytes = numbers.sizeSectors * SECTOR;
  return { level: 'raid10', memberCount, chunkBytes, memberBytes, near, far, offset, farSets };
}

function keyOf<K extends string>(table: Readonly<Record<K, number>>, value: number): K | null {
  for (const key in table) if (table[key] === value) return key;
  return null;
}

function broken(detail: string): RaidError {
  return new RaidError('SUPERBLOCK_BROKEN', detail);
}
