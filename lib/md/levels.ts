/**
 * Geometry as md's superblocks spell it, and back.
 *
 *   level    layout/levels.ts has the numbers
 *   layout   likewise; raid0's counts only with the feature RAID0_LAYOUT; raid4, raid1 and linear ignore it
 *   size     sectors that the array uses on each member; 0 for raid0 and linear, where each gives its own data_size
 *
 * RAID0_LAYOUT came in 2019, after kernels had for years dealt out the later zones of unequal members in two ways. An
 * older superblock does not say which, and both read the wrong data without noticing when they guess wrong. The
 * kernel refuses to guess; so do we.
 */
import { assert, RaidError } from '../errors.ts';
import { type Geometry, memberCountOf } from '../layout/geometry.ts';
import { layoutFromNumber, layoutNumber, levelNumber, raid10Copies } from '../layout/levels.ts';
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
      const choice = layoutFromNumber('raid5', numbers.layout);
      if (choice === null) throw broken(`layout ${numbers.layout} is not one of raid5`);
      return { ...choice, memberCount, ...parityShape(numbers, 2) };
    }
    case 6: {
      const choice = layoutFromNumber('raid6', numbers.layout);
      if (choice === null) throw broken(`layout ${numbers.layout} is not one of raid6`);
      return { ...choice, memberCount, ...parityShape(numbers, 4) };
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
  const level = levelNumber(geometry.level);
  const common = { level, raidDisks, hasRaid0Layout: false, layout: layoutNumber(geometry) };
  switch (geometry.level) {
    case 'linear':
      return { ...common, sizeSectors: 0, chunkSectors: geometry.chunkBytes / SECTOR };
    case 'raid0': {
      const { memberBytes, chunkBytes } = geometry;
      return {
        ...common,
        sizeSectors: 0,
        chunkSectors: chunkBytes / SECTOR,
        hasRaid0Layout: memberBytes.some((bytes) => bytes !== memberBytes[0]),
      };
    }
    case 'raid1':
      return { ...common, sizeSectors: geometry.memberBytes / SECTOR, chunkSectors: 0 };
    case 'raid4':
    case 'raid5':
    case 'raid6':
    case 'raid10': {
      const sizeSectors = geometry.memberBytes / SECTOR;
      const chunkSectors = geometry.chunkBytes / SECTOR;
      return { ...common, sizeSectors, chunkSectors };
    }
  }
}

/**
 * Sectors of the array above level 0, where members are alike: what mdadm prints and the bitmap of raid10 covers. (Of
 * raid0 only the layout knows them, since members differ.)
 */
export function arraySectorsOf(numbers: LevelNumbers): number {
  const { level, chunkSectors: chunk, raidDisks, sizeSectors: size } = numbers;
  assert(level > 0, 'the size of raid0 and linear does not follow from these numbers');
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

function raid0LayoutOf(
  numbers: LevelNumbers,
  memberBytes: readonly number[],
  told: 'original' | 'alternate' | null,
): 'original' | 'alternate' {
  if (numbers.hasRaid0Layout) {
    const choice = layoutFromNumber('raid0', numbers.layout);
    if (choice === null) throw broken(`layout ${numbers.layout} is not one of raid0`);
    return choice.layout;
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
  const refused = (why: string): RaidError => broken(`raid10 layout 0x${layout.toString(16)}: ${why}`);
  const choice = layoutFromNumber('raid10', layout);
  if (choice === null) throw refused('md has none like it');
  const { near, far, offset } = choice;
  if (near * far < 2) throw refused('fewer than two copies');
  if (near * far > memberCount) throw refused(`more copies than ${memberCount} members`);
  // The kernel runs these and lets chunks overwrite each other.
  if (offset && near > 1 && memberCount % near !== 0) throw refused('its copies overlap');
  const chunkBytes = chunkOf(numbers);
  const memberBytes = numbers.sizeSectors * SECTOR;
  return { ...choice, memberCount, chunkBytes, memberBytes };
}

function broken(detail: string): RaidError {
  return new RaidError('SUPERBLOCK_BROKEN', detail);
}
