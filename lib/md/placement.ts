/**
 * A new array: where `mdadm --create` would put everything, and the superblocks that say so. Nothing here is needed
 * to be *accepted* by md, which has much looser limits; it is what keeps arrays made here indistinguishable from its own.
 *
 *   metadata 1.2   sector 0        8            16 ...             data_offset            N
 *                  ├ untouched ────┼ superblock ┼ bitmap | PPL ─┬──┼ data ────────────────┤
 *                                                 bad-block log ┘
 *   metadata 1.0   0                            (N - 16) & ~7      N
 *                  ├ data ── bitmap, log or PPL ┼ superblock ──────┤
 *
 *   bmspace(s)    sectors kept for a bitmap that may come later: 0 below 64 KiB, 8 to 8 GiB, 128, 256 from 200 GiB
 *   data_offset   up(24 + reserve + headroom, 2048); headroom 262144, halved until it is under 1/1024 of the member, but
 *                 it stays four to eight chunks; from the size of the *first* device. So 2048 for small members of raid1,
 *                 4096 with a 512 KiB chunk, 264192 from 128 GiB on
 *   size          the least room of all members, in whole chunks; raid1 in units of 64 KiB
 *
 * mdadm makes raid4 and raid5 in a way of its own (`recover-last`): the last slot stays empty, its device is a spare with
 * a number one higher than expected, and the array is clean, so that the kernel *recovers* the slot, which is faster
 * than a resync: reads on all but one, writes on one.
 *
 * Checked field by field against what mdadm 4.2 writes, in test/linux.
 */
import { assert, RaidError } from '../errors.ts';
import { raid10Copies } from '../layout/levels.ts';
import { divCeil, formatSize, roundDown, roundUp, SECTOR_BYTES } from '../units.ts';
import { bitmapAreaBytes, bitmapUnitSectorsOf } from './bitmap.ts';
import type { LevelNumbers } from './levels.ts';
import type { Time } from './record.ts';
import {
  blankSuperblock1,
  features,
  packPplArea,
  type Superblock1,
  superSectorOf,
  type Version1,
} from './superblock1.ts';
import { type MdArray, type MdMember, type MdMemberState, maxDevFor, withSuperblocks } from './update.ts';

export type ConsistencyPolicy =
  | { readonly policy: 'resync' }
  /** Null leaves the chunk to the rule: the smallest that fits, but at least 64 MiB. */
  | { readonly policy: 'bitmap'; readonly chunkBytes: number | null }
  | { readonly policy: 'ppl' };

export interface ArrayShape {
  readonly version: Version1;
  /** As in the superblock; `chunkSectors` 0 for raid1. `sizeSectors` is chosen here. */
  readonly numbers: Omit<LevelNumbers, 'sizeSectors' | 'hasRaid0Layout'>;
  readonly consistency: ConsistencyPolicy;
  /** In the order of the command line: slots, then spares. */
  readonly memberSectors: readonly number[];
}

export interface Placement {
  readonly sizeSectors: number;
  readonly dataOffsetSectors: number;
  readonly bitmap: {
    readonly offsetSectors: number;
    readonly chunkBytes: number;
    readonly syncSectors: number;
  } | null;
  readonly ppl: { readonly offsetSectors: number; readonly lengthSectors: number } | null;
  /** By member, in the order given. */
  readonly members: readonly MemberPlacement[];
}

export interface MemberPlacement {
  readonly superSector: number;
  readonly dataSectors: number;
  readonly bblogOffsetSectors: number;
}

const PPL_SECTORS = 2048;
const BBLOG_SECTORS = 8;
const BITMAP_CHUNK_MIN = 4096;
const BITMAP_CHUNK_DEFAULT_MIN = 64 * 1024 * 1024;

/** Of each member. */
const BITMAP_DEFAULT_ABOVE_SECTORS = 100 * 2 ** 21;

/**
 * What mdadm takes where nobody says: a bitmap if the members hold more than 100 GiB each, where to make all of them agree again after
 * every crash would take hours.
 */
export function defaultConsistency(
  shape: Omit<ArrayShape, 'consistency'>,
  chunkBytes: number | null = null,
): ConsistencyPolicy {
  const { sizeSectors } = placeArray({ ...shape, consistency: { policy: 'resync' } });
  return sizeSectors > BITMAP_DEFAULT_ABOVE_SECTORS ? { policy: 'bitmap', chunkBytes } : { policy: 'resync' };
}

/** Where everything goes; refuses members that are too small to hold anything. */
export function placeArray(shape: ArrayShape): Placement {
  const { memberSectors, numbers } = shape;
  const [first] = memberSectors;
  assert(first !== undefined, 'an array has a member');
  const dataOffsetSectors = shape.version === '1.0' ? 0 : dataOffsetFor(shape, first);
  const sizeSectors = numbers.level > 0 ? sizeFor(shape, dataOffsetSectors) : 0;
  if (numbers.level > 0 && sizeSectors === 0)
    throw tooSmall(shape, memberSectors.indexOf(Math.min(...memberSectors)));

  const bitmap =
    shape.consistency.policy === 'bitmap'
      ? placeBitmap(shape, sizeSectors, shape.consistency.chunkBytes)
      : null;
  const ppl =
    shape.consistency.policy === 'ppl'
      ? { offsetSectors: shape.version === '1.0' ? -8 - PPL_SECTORS : 8, lengthSectors: PPL_SECTORS }
      : null;
  const bitmapSectors =
    bitmap === null ? null : roundUp(bitmapAreaBytes(bitmap.syncSectors, bitmap.chunkBytes), 4096) / 512;
  const reserved = bitmapSectors ?? (ppl === null ? bitmapRoomSectors(sizeSectors) : PPL_SECTORS);

  const members = memberSectors.map((sectors, index): MemberPlacement => {
    const superSector = superSectorOf(shape.version, sectors);
    if (superSector === null) throw tooSmall(shape, index);
    if (shape.version === '1.0') {
      const dataSectors = superSector - Math.min(8 + reserved, superSector - sizeSectors);
      return { superSector, dataSectors, bblogOffsetSectors: -8 };
    }
    const dataSectors = sectors - dataOffsetSectors;
    if (dataSectors < 10) throw tooSmall(shape, index);
    const fits = dataOffsetSectors >= superSector + 8 + reserved + BBLOG_SECTORS;
    const bblogOffsetSectors = fits ? 8 + reserved : dataOffsetSectors - 8 - superSector;
    return { superSector, dataSectors, bblogOffsetSectors };
  });
  return { sizeSectors, dataOffsetSectors, bitmap, ppl, members };
}

/**
 * What the redundancy of the new array rests on: nothing yet (`resync` computes it, `recover-last` too, in mdadm's
 * way), or the caller's word that all members are alike or zero (`clean`).
 */
export type FirstSync = 'resync' | 'recover-last' | 'clean';

export interface NewArray extends ArrayShape {
  readonly setUuid: string;
  /** With mdadm's `host:` prefix if there is to be one. At most 32 bytes. */
  readonly setName: string;
  readonly ctime: Time;
  /** In the order of `memberSectors`. */
  readonly deviceUuids: readonly string[];
  readonly firstSync: FirstSync;
}

/** A new array with the superblocks to write, `array.members` in the order of `memberSectors`. */
export function newArray(request: NewArray): { readonly array: MdArray; readonly placement: Placement } {
  const { numbers, memberSectors, firstSync } = request;
  assert(memberSectors.length >= numbers.raidDisks, 'every slot has a member');
  assert(memberSectors.length === request.deviceUuids.length, 'every member has a uuid');
  assert(
    firstSync !== 'recover-last' || numbers.level === 4 || numbers.level === 5,
    'only raid4 and raid5 do this',
  );
  const placement = placeArray(request);
  const recoversLast = firstSync === 'recover-last';
  const maxDev = maxDevFor(memberSectors.length + (recoversLast ? 1 : 0));
  const featureMap = featuresOf(request, placement);

  const members = memberSectors.map((_, index): MdMember => {
    const isLast = recoversLast && index === numbers.raidDisks - 1;
    const state: MdMemberState =
      index < numbers.raidDisks && !isLast ? { state: 'in_sync', slot: index } : { state: 'spare' };
    const descriptor = isLast ? memberSectors.length : index;
    const superblock = { ...blankSuperblock1(maxDev), ...memberFields(request, placement, index) };
    return { ...state, descriptor, superblock };
  });
  const array: MdArray = {
    version: request.version,
    setUuid: request.setUuid,
    ctime: request.ctime,
    level: numbers.level,
    layout: numbers.layout,
    sizeSectors: placement.sizeSectors,
    chunkSectors: numbers.chunkSectors,
    raidDisks: numbers.raidDisks,
    featureMap,
    events: 0,
    resyncOffsetSectors: numbers.level > 0 && firstSync === 'resync' ? 0 : Infinity,
    hasUnrecordedLoss: false,
    members: members.sort((left, right) => left.descriptor - right.descriptor),
  };
  return { array: withSuperblocks(array, request.ctime), placement };
}

/** What mdadm stores as `set_name`: `host:name` where that fits and the name has no colon of its own. */
export function setNameOf(host: string, name: string): string {
  const joined = `${host}:${name}`;
  if (!name.includes(':') && new TextEncoder().encode(joined).byteLength < 32) return joined;
  let short = name;
  while (new TextEncoder().encode(short).byteLength > 31) short = short.slice(0, -1);
  return short;
}

/** Sectors that mdadm keeps for a bitmap on a member of this size. */
export function bitmapRoomSectors(sectors: number): number {
  if (sectors < 128) return 0;
  if (sectors - 128 >= 200 * 2 ** 21) return 256;
  return sectors - 8 > 8 * 2 ** 21 ? 128 : 8;
}

function featuresOf(request: NewArray, placement: Placement): number {
  const { numbers } = request;
  const unequal = placement.members.some((each) => each.dataSectors !== placement.members[0]?.dataSectors);
  let map = 0;
  if (placement.bitmap !== null) map |= features.BITMAP;
  if (placement.ppl !== null) map |= features.PPL;
  if (numbers.level === 0 && unequal && numbers.layout !== 0) map |= features.RAID0_LAYOUT;
  return map;
}

function memberFields(request: NewArray, placement: Placement, index: number): Partial<Superblock1> {
  const { bitmap, ppl } = placement;
  const member = placement.members[index] as MemberPlacement;
  const ofPpl = ppl === null ? 0 : packPplArea(ppl.offsetSectors, ppl.lengthSectors);
  return {
    setName: request.setName,
    deviceUuid: request.deviceUuids[index] as string,
    superSector: member.superSector,
    dataOffsetSectors: placement.dataOffsetSectors,
    dataSectors: member.dataSectors,
    consistencyArea: bitmap === null ? ofPpl : bitmap.offsetSectors,
    bblogSectors: BBLOG_SECTORS,
    bblogOffsetSectors: member.bblogOffsetSectors,
  };
}

function reserveFor(shape: ArrayShape, sectors: number): number {
  return shape.consistency.policy === 'ppl' ? PPL_SECTORS : bitmapRoomSectors(sectors);
}

function dataOffsetFor(shape: ArrayShape, firstSectors: number): number {
  const chunkKib = shape.numbers.chunkSectors / 2;
  let headroom = 262144;
  while (headroom * 1024 > firstSectors && (chunkKib === 0 || Math.floor(headroom / 2) >= 4 * chunkKib)) {
    headroom = Math.floor(headroom / 2);
    if (headroom === 0) break;
  }
  return roundUp(24 + reserveFor(shape, firstSectors) + headroom, 2048);
}

function sizeFor(shape: ArrayShape, dataOffsetSectors: number): number {
  const { level, chunkSectors } = shape.numbers;
  const each = shape.memberSectors.map((sectors) => {
    const freeSectors =
      shape.version === '1.0'
        ? roundDown(sectors, 8) - 24 - reserveFor(shape, sectors)
        : sectors - dataOffsetSectors;
    const kib = Math.floor(Math.max(0, freeSectors) / 2);
    return roundDown(kib, Math.max(1, chunkSectors / 2));
  });
  const least = Math.min(...each);
  return (level === 1 ? roundDown(least, 64) : least) * 2;
}

function placeBitmap(
  shape: ArrayShape,
  sizeSectors: number,
  chunkBytes: number | null,
): NonNullable<Placement['bitmap']> {
  if (shape.numbers.level <= 0)
    throw new RaidError('BAD_ARGUMENT', 'raid0 and linear have no use for a bitmap');
  const syncSectors = syncSectorsFor(shape, sizeSectors);
  const roomSectors = Math.min(256, bitmapRoomSectors(sizeSectors));
  const bitsMax = Math.max(0, roomSectors * 512 - 256) * 8;
  const fits = (chunk: number): boolean => Math.floor((syncSectors * 512) / chunk) + 1 <= bitsMax;
  if (bitsMax === 0) {
    throw new RaidError(
      'BAD_ARGUMENT',
      'the members are too small for a bitmap; make them larger, or leave it out',
    );
  }

  let smallest = BITMAP_CHUNK_MIN;
  while (!fits(smallest)) smallest *= 2;
  const chosen = chunkBytes ?? Math.max(smallest, BITMAP_CHUNK_DEFAULT_MIN);
  if (chosen < smallest || !Number.isInteger(Math.log2(chosen))) {
    throw new RaidError('BAD_ARGUMENT', `a bitmap chunk here is a power of two from ${smallest} bytes on`);
  }
  const bits = divCeil(syncSectors, bitmapUnitSectorsOf(chosen));
  const areaSectors = roundUp(256 + divCeil(bits, 8), 4096) / 512;
  return { offsetSectors: shape.version === '1.0' ? -areaSectors - 8 : 8, chunkBytes: chosen, syncSectors };
}

/** What the bitmap covers: member sectors, but in raid10 those of the array, as mdadm computes them. */
function syncSectorsFor(shape: ArrayShape, sizeSectors: number): number {
  const { level, layout, raidDisks } = shape.numbers;
  if (level !== 10) return sizeSectors;
  const { near, far } = raid10Copies(layout);
  return Math.floor((sizeSectors * raidDisks) / (near * far));
}

function tooSmall(shape: ArrayShape, member: number): RaidError {
  const bytes = (shape.memberSectors[member] ?? 0) * SECTOR_BYTES;
  const leastBytes = leastSectors(shape) * SECTOR_BYTES;
  return new RaidError(
    'BAD_ARGUMENT',
    `${formatSize(bytes)} is too small: a member of this array needs ${formatSize(leastBytes)} or more`,
    { member },
  );
}

/** Of members that are all alike, to the next step of 64 KiB. Where the data begins depends on it, so it is tried. */
function leastSectors(shape: ArrayShape): number {
  const { numbers, version } = shape;
  const holds = (sectors: number): boolean => {
    const alike = { ...shape, memberSectors: shape.memberSectors.map(() => sectors) };
    const dataOffsetSectors = version === '1.0' ? 0 : dataOffsetFor(alike, sectors);
    const isPlaced = superSectorOf(version, sectors) !== null && sectors - dataOffsetSectors >= 10;
    return isPlaced && (numbers.level <= 0 || sizeFor(alike, dataOffsetSectors) > 0);
  };
  let sectors = 128;
  while (!holds(sectors)) sectors *= 2;
  for (let step = sectors / 4; step >= 128; step /= 2) if (holds(sectors - step)) sectors -= step;
  return sectors;
}
