/**
 * The version-1 superblock: `struct mdp_superblock_1` of linux/raid/md_p.h. 256 bytes, then one u16 for every device
 * number the array ever gave out. Everything is little-endian; every offset and size is in sectors.
 *
 *   array, the same on all members               member, its own
 *     0  u32  magic 0xa92b4efc                   128  u64  data_offset
 *     4  u32  major_version 1                    136  u64  data_size
 *     8  u32  feature_map (partly per member)    144  u64  super_offset: the sector it was read from
 *    12  u32  pad0 = 0                           152  u64  recovery_offset   RECOVERY_OFFSET
 *    16  16B  set_uuid                           160  u32  dev_number: its index in dev_roles
 *    32  32B  set_name                           164  u32  cnt_corrected_read
 *    64  u64  ctime                              168  16B  device_uuid
 *    72  s32  level                              184  u8   devflags: 1 write-mostly, 2 failfast
 *    76  u32  layout                             185  u8   bblog_shift
 *    80  u64  size of every member's part        186  u16  bblog_size
 *    88  u32  chunksize                          188  s32  bblog_offset, from the superblock
 *    92  u32  raid_disks                       array state
 *    96  s32  bitmap_offset           BITMAP     192  u64  utime
 *        or s16 ppl.offset, u16 ppl.size  PPL    200  u64  events
 *   100  s32  new_level               RESHAPE    208  u64  resync_offset; all ones = clean
 *   104  u64  reshape_position        RESHAPE    216  u32  sb_csum
 *   112  s32  delta_disks             RESHAPE    220  u32  max_dev: entries in dev_roles, at most 1920
 *   116  u32  new_layout              RESHAPE    224  u32  logical_block_size (kernels from 2025), else 0
 *   120  u32  new_chunk               RESHAPE    228  28B  zero
 *   124  s32  new_offset           NEW_OFFSET    256  u16 x max_dev  dev_roles
 *
 * It lies at sector 8 (metadata 1.2), 0 (1.1), or 8 to 12 KiB before the end (1.0). A copy found anywhere else, say of
 * a partition seen through its whole disk, betrays itself by `super_offset`.
 *
 * A feature bit decides whether a field counts, never the field: kernels leave old values where the bit is clear.
 * `resync_offset` counts member sectors, but array sectors in raid10.
 *
 * Hazard: mdadm assembles without testing the checksum, the kernel does not.
 *
 * Verified against kernel 6.1 and mdadm 4.2 in test/linux; `logical_block_size` is known from reading only.
 */
import { assert, RaidError } from '../errors.ts';
import { roundDown, roundUp } from '../units.ts';
import {
  type Fields,
  isPosition,
  type RecordOf,
  readRecord,
  viewOf,
  writeRecord,
  zeroUuid,
} from './record.ts';

export const SUPERBLOCK_MAGIC = 0xa92b4efc;
export const SUPERBLOCK_BYTES_MAX = 4096;
const ROLES_AT = 256;
/** What fits into 4 KiB. */
export const ROLES_MAX = 1920;
const CHECKSUM_AT = 216;
const MAX_DEV_AT = 220;

export type Version1 = '1.0' | '1.1' | '1.2';

/** The entries of dev_roles that are not slots. */
export const ROLE_SPARE = 0xffff;
export const ROLE_FAULTY = 0xfffe;
export const ROLE_JOURNAL = 0xfffd;
export const ROLE_SLOT_MAX = 0xfeff;

export const features = {
  BITMAP: 1,
  RECOVERY_OFFSET: 2,
  RESHAPE: 4,
  BADBLOCKS: 8,
  REPLACEMENT: 16,
  BACKWARDS: 32,
  NEW_OFFSET: 64,
  RECOVERY_BITMAP: 128,
  CLUSTERED: 256,
  JOURNAL: 512,
  PPL: 1024,
  MULTI_PPL: 2048,
  RAID0_LAYOUT: 4096,
} as const;
export type Feature = keyof typeof features;

const KNOWN_FEATURES = 0x1fff;

/** The bits that say something about one member; all others are alike on every member. */
export const MEMBER_FEATURES =
  features.RECOVERY_OFFSET |
  features.BADBLOCKS |
  features.REPLACEMENT |
  features.NEW_OFFSET |
  features.RECOVERY_BITMAP;

export const memberFlags = { WRITE_MOSTLY: 1, FAILFAST: 2 } as const;

const fields = {
  featureMap: [8, 'u32'],
  pad0: [12, 'u32'],
  setUuid: [16, 'uuid'],
  setName: [32, 'text32'],
  ctime: [64, 'time'],
  level: [72, 's32'],
  layout: [76, 'u32'],
  sizeSectors: [80, 'u64'],
  chunkSectors: [88, 'u32'],
  raidDisks: [92, 'u32'],
  /** Bitmap or PPL, by feature: read it with `bitmapOffsetOf` and `pplAreaOf`. */
  consistencyArea: [96, 's32'],
  newLevel: [100, 's32'],
  reshapePositionSectors: [104, 'position'],
  deltaDisks: [112, 's32'],
  newLayout: [116, 'u32'],
  newChunkSectors: [120, 'u32'],
  newOffsetSectors: [124, 's32'],
  dataOffsetSectors: [128, 'u64'],
  dataSectors: [136, 'u64'],
  superSector: [144, 'u64'],
  recoveryOffsetSectors: [152, 'position'],
  descriptor: [160, 'u32'],
  correctedReads: [164, 'u32'],
  deviceUuid: [168, 'uuid'],
  flags: [184, 'u8'],
  bblogShift: [185, 'u8'],
  bblogSectors: [186, 'u16'],
  bblogOffsetSectors: [188, 's32'],
  utime: [192, 'time'],
  events: [200, 'u64'],
  resyncOffsetSectors: [208, 'position'],
  logicalBlockBytes: [224, 'u32'],
} as const satisfies Fields;

/**
 * `bytes` are those it was read from, `superblockBytesOf` of them: encoding starts from them, so what nobody here
 * knows is kept. The checksum is not a field: it is read by `checksumOf` and written by `encodeSuperblock1`.
 */
export interface Superblock1 extends RecordOf<typeof fields> {
  /** By device number. */
  readonly devRoles: readonly number[];
  readonly bytes: Uint8Array;
}

/** Where a superblock was found, or is to be. */
export interface MemberPlace {
  readonly version: Version1;
  readonly memberSectors: number;
}

/** Null where the member is too small to carry one. */
export function superSectorOf(version: Version1, memberSectors: number): number | null {
  if (memberSectors < 24) return null;
  switch (version) {
    case '1.0':
      return roundDown(memberSectors - 16, 8);
    case '1.1':
      return 0;
    case '1.2':
      return 8;
  }
}

/** Bytes that md writes for a superblock with this many device numbers: whole sectors. */
export function superblockBytesOf(maxDev: number): number {
  return roundUp(ROLES_AT + 2 * maxDev, 512);
}

/** Whether one begins here, whatever follows. */
export function beginsSuperblock1(source: Uint8Array): boolean {
  if (source.byteLength < 8) return false;
  const view = viewOf(source);
  return view.getUint32(0, true) === SUPERBLOCK_MAGIC && view.getUint32(4, true) === 1;
}

/**
 * Reads the fields; refuses only what cannot be read at all, so that `examine` can show a superblock that nobody may
 * use. `checkSuperblock1` is what stands between this and an array.
 */
export function decodeSuperblock1(source: Uint8Array): Superblock1 {
  if (source.byteLength < ROLES_AT) throw broken(`${source.byteLength} bytes are too few for a superblock`);
  if (!beginsSuperblock1(source)) {
    throw new RaidError('BAD_MAGIC', 'there is no version-1 md superblock here');
  }
  const view = viewOf(source);
  const maxDev = view.getUint32(MAX_DEV_AT, true);
  if (maxDev > ROLES_MAX) throw broken(`max_dev is ${maxDev}, more than a superblock holds`);
  const lengthBytes = superblockBytesOf(maxDev);
  if (source.byteLength < lengthBytes)
    throw broken(`the superblock is cut off after ${source.byteLength} bytes`);

  const bytes = source.slice(0, lengthBytes);
  const record = readRecord(fields, bytes, 'superblock');
  const devRoles = new Array<number>(maxDev);
  for (let number = 0; number < maxDev; number += 1)
    devRoles[number] = view.getUint16(ROLES_AT + 2 * number, true);
  return { ...record, devRoles, bytes };
}

/** The bytes to write, checksum included. */
export function encodeSuperblock1(superblock: Superblock1): Uint8Array {
  const { devRoles } = superblock;
  assert(devRoles.length <= ROLES_MAX, 'a superblock holds at most 1920 roles');
  const bytes = new Uint8Array(superblockBytesOf(devRoles.length));
  bytes.set(superblock.bytes.subarray(0, bytes.byteLength));

  const view = viewOf(bytes);
  view.setUint32(0, SUPERBLOCK_MAGIC, true);
  view.setUint32(4, 1, true);
  writeRecord(fields, bytes, superblock);
  view.setUint32(MAX_DEV_AT, devRoles.length, true);
  for (let number = 0; number < devRoles.length; number += 1) {
    const role = devRoles[number] as number;
    assert(role >= 0 && role <= 0xffff, 'a role is a u16');
    view.setUint16(ROLES_AT + 2 * number, role, true);
  }
  view.setUint32(CHECKSUM_AT, checksumOf(bytes).computed, true);
  return bytes;
}

/** A superblock of zeros with `devRoles` of the given length, all spare: the start of a new one. */
export function blankSuperblock1(maxDev: number): Superblock1 {
  const bytes = new Uint8Array(superblockBytesOf(maxDev));
  const devRoles = Array.from({ length: maxDev }, () => ROLE_SPARE);
  return { ...readRecord(fields, bytes, 'superblock'), devRoles, bytes };
}

/**
 * The sum of the little-endian u32 words up to the last role, the checksum itself taken as 0 and an odd last u16
 * added as it is; then high half plus low half.
 */
export function checksumOf(bytes: Uint8Array): { readonly stored: number; readonly computed: number } {
  const view = viewOf(bytes);
  const stored = view.getUint32(CHECKSUM_AT, true);
  const lengthBytes = ROLES_AT + 2 * Math.min(view.getUint32(MAX_DEV_AT, true), ROLES_MAX);
  assert(bytes.byteLength >= lengthBytes, 'the checksum covers every role');

  let sum = -stored;
  let offsetBytes = 0;
  for (; offsetBytes + 4 <= lengthBytes; offsetBytes += 4) sum += view.getUint32(offsetBytes, true);
  if (offsetBytes < lengthBytes) sum += view.getUint16(offsetBytes, true);
  return { stored, computed: ((sum % 2 ** 32) + Math.floor(sum / 2 ** 32)) % 2 ** 32 };
}

export function hasFeature(superblock: Superblock1, feature: Feature): boolean {
  return (superblock.featureMap & features[feature]) !== 0;
}

/** The entry for this member in its own table; a number outside of it means spare, as in the kernel. */
export function ownRoleOf(superblock: Superblock1): number {
  return superblock.devRoles[superblock.descriptor] ?? ROLE_SPARE;
}

/** Sectors from the superblock to the bitmap, may be negative; null without the feature. */
export function bitmapOffsetOf(superblock: Superblock1): number | null {
  return hasFeature(superblock, 'BITMAP') ? superblock.consistencyArea : null;
}

export interface PplArea {
  /** From the superblock; may be negative. */
  readonly offsetSectors: number;
  readonly lengthSectors: number;
  /** A ring of logs rather than one. */
  readonly multiple: boolean;
}

export function pplAreaOf(superblock: Superblock1): PplArea | null {
  const multiple = hasFeature(superblock, 'MULTI_PPL');
  if (!multiple && !hasFeature(superblock, 'PPL')) return null;
  const packed = superblock.consistencyArea;
  return { offsetSectors: (packed << 16) >> 16, lengthSectors: packed >>> 16, multiple };
}

/** 2^54 units at most, of which a shift of more makes more than a disk can have. */
const BBLOG_SHIFT_MAX = 32;

/**
 * Where a list of bad blocks may be written: from the superblock, in sectors. Null where there is no room for one; and where it would lie on
 * something else, or in units that nobody reads, which is no fault of a member that lists nothing: nobody has looked there, nor will anybody.
 */
export function bblogAreaOf(
  superblock: Superblock1,
  memberSectors: number,
  bitmapSectors: number,
): { readonly offsetSectors: number; readonly lengthSectors: number } | null {
  const { superSector, bblogOffsetSectors: offsetSectors, bblogSectors: lengthSectors } = superblock;
  if (lengthSectors === 0 || offsetSectors === 0 || superblock.bblogShift > BBLOG_SHIFT_MAX) return null;
  const log: Area = { name: 'bblog_offset', fromSector: superSector + offsetSectors, lengthSectors };
  const isTaken = areasOf(superblock, bitmapSectors).some(
    (area) =>
      area.name !== log.name &&
      area.fromSector < log.fromSector + lengthSectors &&
      log.fromSector < area.fromSector + area.lengthSectors,
  );
  return isTaken || misplaced(log, superblock, memberSectors) !== null
    ? null
    : { offsetSectors, lengthSectors };
}

/** The value of `consistencyArea` for a PPL area. */
export function packPplArea(offsetSectors: number, lengthSectors: number): number {
  assert(
    offsetSectors >= -0x8000 && offsetSectors <= 0x7fff,
    'a PPL area begins within 16 MiB of its superblock',
  );
  assert(lengthSectors >= 0 && lengthSectors <= 0xffff, 'a PPL area has less than 32 MiB');
  return (lengthSectors << 16) | (offsetSectors & 0xffff);
}

/**
 * What is wrong with a superblock at this place, each as the error that `checkSuperblock1` would raise. Everything
 * the kernel refuses in a single member is here, and more: data beyond its space, areas that overlap.
 */
export function superblock1Faults(superblock: Superblock1, place: MemberPlace): readonly RaidError[] {
  const faults: RaidError[] = [];
  // What is said with numbers is put together only when it is said: every superblock that is written comes by here.
  const refuse = (wrong: boolean, detail: string | (() => string)): void => {
    if (wrong) faults.push(broken(typeof detail === 'string' ? detail : detail()));
  };
  const has = (feature: Feature): boolean => hasFeature(superblock, feature);
  const { memberSectors, version } = place;
  const at = superSectorOf(version, memberSectors);
  const { superSector, dataOffsetSectors, dataSectors, sizeSectors, level } = superblock;

  const checksum = checksumOf(superblock.bytes);
  refuse(checksum.stored !== checksum.computed, 'sb_csum: the checksum is wrong');
  refuse(
    at === null || superSector !== at,
    () => `super_offset is ${superSector}, but it was read from sector ${at}`,
  );
  if ((superblock.featureMap & ~KNOWN_FEATURES) !== 0) {
    const bits = (superblock.featureMap & ~KNOWN_FEATURES) >>> 0;
    faults.push(new RaidError('UNSUPPORTED_FEATURE', `feature_map has unknown bits 0x${bits.toString(16)}`));
  }
  refuse(superblock.pad0 !== 0, 'pad0 is not zero');
  refuse(
    superblock.bytes.subarray(228, ROLES_AT).some((byte) => byte !== 0),
    'pad3 is not zero',
  );
  refuse(superblock.setUuid === zeroUuid, 'set_uuid is all zeros');
  refuse(has('PPL') && has('MULTI_PPL'), 'feature_map has both PPL and MULTI_PPL');
  refuse(
    (has('PPL') || has('MULTI_PPL')) && (has('BITMAP') || has('JOURNAL')),
    'feature_map has PPL together with a bitmap or a journal',
  );
  refuse(has('RAID0_LAYOUT') && level !== 0, 'feature_map has RAID0_LAYOUT, but level is not 0');
  refuse(
    superblock.raidDisks < 1 || superblock.raidDisks > ROLES_MAX,
    () => `raid_disks is ${superblock.raidDisks}`,
  );
  // The kernel takes such a member for a spare without a number; a table that long could not be written.
  refuse(superblock.descriptor >= ROLES_MAX, () => `dev_number is ${superblock.descriptor}`);
  refuse(!isPosition(superblock.resyncOffsetSectors), 'resync_offset is larger than any device');
  refuse(
    has('RECOVERY_OFFSET') && !isPosition(superblock.recoveryOffsetSectors),
    'recovery_offset is larger than any device',
  );
  refuse(
    has('RESHAPE') && !Number.isSafeInteger(superblock.reshapePositionSectors),
    'reshape_position is larger than any device',
  );

  const superEnd = superSector + superblock.bytes.byteLength / 512;
  const dataEnd = version === '1.0' ? superSector : memberSectors;
  refuse(dataSectors < 10, () => `data_size is ${dataSectors}, less than any array needs`);
  refuse(dataSectors < sizeSectors, () => `size is ${sizeSectors}, more than data_size ${dataSectors}`);
  refuse(
    version !== '1.0' && dataOffsetSectors < superEnd,
    () => `data_offset is ${dataOffsetSectors}, inside the superblock`,
  );
  refuse(
    dataOffsetSectors + dataSectors > dataEnd,
    () => `data_size is ${dataSectors} at ${dataOffsetSectors}, beyond sector ${dataEnd}`,
  );
  refuse(superblock.bblogSectors > 8, () => `bblog_size is ${superblock.bblogSectors}, more than 8`);
  refuse(has('BADBLOCKS') && superblock.bblogOffsetSectors === 0, 'bblog_offset is 0');
  refuse(
    has('BADBLOCKS') && superblock.bblogShift > BBLOG_SHIFT_MAX,
    () => `bblog_shift is ${superblock.bblogShift}`,
  );
  for (const area of areasOf(superblock)) {
    const reason = misplaced(area, superblock, memberSectors);
    refuse(reason !== null, () => `${area.name}: ${reason}`);
  }
  return faults;
}

/** Throws the first of the faults. */
export function checkSuperblock1(superblock: Superblock1, place: MemberPlace): void {
  const [fault] = superblock1Faults(superblock, place);
  if (fault !== undefined) throw fault;
}

/** What the array uses that raidsim does not have: it can be examined, not used. Null when there is nothing. */
export function unsupportedOf(superblock: Superblock1): RaidError | null {
  const unsupported = (detail: string): RaidError => new RaidError('UNSUPPORTED_FEATURE', detail);
  const { level } = superblock;
  if (level === -4 || level === -5) {
    return unsupported(`level ${level} (${level === -4 ? 'multipath' : 'faulty'}) is not a RAID level`);
  }
  if (![-1, 0, 1, 4, 5, 6, 10].includes(level)) return unsupported(`level ${level} is unknown`);
  if (hasFeature(superblock, 'CLUSTERED')) return unsupported('clustered arrays are not supported');
  if (hasFeature(superblock, 'JOURNAL')) return unsupported('arrays with a journal device are not supported');
  if (hasFeature(superblock, 'RESHAPE')) {
    return new RaidError(
      'RESHAPE_IN_PROGRESS',
      `a reshape stopped at array sector ${superblock.reshapePositionSectors}; let mdadm finish it first`,
    );
  }
  return null;
}

interface Area {
  readonly name: string;
  readonly fromSector: number;
  readonly lengthSectors: number;
}

/** The areas that count. How long a bitmap is says only its own superblock: one page at least. */
function areasOf(superblock: Superblock1, bitmapSectors = 8): readonly Area[] {
  const areas: Area[] = [];
  const add = (name: string, offsetSectors: number, lengthSectors: number): void => {
    areas.push({ name, fromSector: superblock.superSector + offsetSectors, lengthSectors });
  };
  const bitmap = bitmapOffsetOf(superblock);
  if (bitmap !== null) add('bitmap_offset', bitmap, bitmapSectors);
  const ppl = pplAreaOf(superblock);
  if (ppl !== null) add('ppl', ppl.offsetSectors, ppl.lengthSectors);
  if (hasFeature(superblock, 'BADBLOCKS')) {
    add('bblog_offset', superblock.bblogOffsetSectors, superblock.bblogSectors);
  }
  return areas;
}

/**
 * Data counts only as far as the array uses it: `mdadm --grow --bitmap` may put a bitmap of 1.0 into the room between
 * the used data and the superblock.
 */
function misplaced(area: Area, superblock: Superblock1, memberSectors: number): string | null {
  const { dataOffsetSectors, dataSectors, sizeSectors, superSector } = superblock;
  const usedSectors = sizeSectors === 0 ? dataSectors : sizeSectors;
  const end = area.fromSector + area.lengthSectors;
  if (area.fromSector < 0 || end > memberSectors) return 'lies outside the member';
  const overlaps = (from: number, length: number): boolean => area.fromSector < from + length && from < end;
  if (overlaps(superSector, superblock.bytes.byteLength / 512)) return 'overlaps the superblock';
  if (overlaps(dataOffsetSectors, usedSectors)) return 'overlaps the data';
  return null;
}

function broken(detail: string): RaidError {
  return new RaidError('SUPERBLOCK_BROKEN', detail);
}
