/**
 * The version-0.90 superblock: `mdp_super_t` of linux/raid/md_p.h, 4096 bytes of u32 words in the byte order of the
 * host that made it (little-endian in practice), at sector (N & ~127) - 128. Old NAS systems still boot from it. It is
 * read here, never written: whoever needs to write can let mdadm convert it (`--update=metadata`).
 *
 *    word                                  word
 *      0  magic 0xa92b4efc                  32  utime
 *      1  major 0                           33  state: 1 clean, 2 errors, 0x100 bitmap
 *      2  minor 90, 91 during a reshape     38  checksum
 *      5  set_uuid0, 13-15 the rest         39  events, u64
 *      6  ctime                             41  cp_events, u64
 *      7  level                             43  recovery_cp
 *      8  size, KiB                         44  reshape_position, u64; 46-49 new level, delta, layout, chunk
 *      9  nr_disks                          64  layout
 *     10  raid_disks                        65  chunk_size, bytes
 *                                          128  + 32 i: disks[i], i < 27: number, major, minor, raid_disk, state
 *                                          992  this_disk: which of them this member is
 *
 * Disk state bits: 1 faulty, 2 active, 4 in sync, 8 removed. Data begins at sector 0 of the member. The uuid is printed
 * as four words, not as bytes.
 *
 * The checksum is compared after folding both sides to 16 bits, as the kernel does: some old writers stored it so.
 */
import { RaidError } from '../errors.ts';
import { roundDown } from '../units.ts';
import { type Fields, type RecordOf, readRecord, viewOf } from './record.ts';
import { SUPERBLOCK_MAGIC } from './superblock1.ts';

export const SUPERBLOCK090_BYTES = 4096;
const DISKS_MAX = 27;
const DISKS_AT = 128 * 4;
const THIS_DISK_AT = 992 * 4;
const CHECKSUM_AT = 38 * 4;

export const diskStates090 = { FAULTY: 1, ACTIVE: 2, SYNC: 4, REMOVED: 8 } as const;
export const states090 = { CLEAN: 1, ERRORS: 2, BITMAP: 0x100 } as const;

const fields = {
  minorVersion: [8, 'u32'],
  ctimeSeconds: [24, 'u32'],
  level: [28, 's32'],
  sizeKib: [32, 'u32'],
  nrDisks: [36, 'u32'],
  raidDisks: [40, 'u32'],
  preferredMinor: [44, 'u32'],
  utimeSeconds: [128, 'u32'],
  state: [132, 'u32'],
  activeDisks: [136, 'u32'],
  workingDisks: [140, 'u32'],
  failedDisks: [144, 'u32'],
  spareDisks: [148, 'u32'],
  checksum: [CHECKSUM_AT, 'u32'],
  events: [156, 'u64'],
  /** Counts only while minor is 91; else it may be anything. */
  checkpointEvents: [164, 'position'],
  recoveryCheckpoint: [172, 'u32'],
  reshapePositionSectors: [176, 'position'],
  layout: [256, 'u32'],
  chunkBytes: [260, 'u32'],
} as const satisfies Fields;

const diskFields = {
  number: [0, 'u32'],
  major: [4, 'u32'],
  minor: [8, 'u32'],
  slot: [12, 'u32'],
  state: [16, 'u32'],
} as const satisfies Fields;

export type Disk090 = RecordOf<typeof diskFields>;

export interface Superblock090 extends RecordOf<typeof fields> {
  readonly setUuid: string;
  readonly disks: readonly Disk090[];
  readonly thisDisk: Disk090;
  readonly bytes: Uint8Array;
}

/** Null where the member is too small to carry one. */
export function superSector090Of(memberSectors: number): number | null {
  return memberSectors < 256 ? null : roundDown(memberSectors, 128) - 128;
}

/** Whether one begins here, whatever follows and whichever machine made it. */
export function beginsSuperblock090(source: Uint8Array): boolean {
  return beginsIn(source, 'little-endian') || beginsIn(source, 'big-endian');
}

function beginsIn(source: Uint8Array, order: 'little-endian' | 'big-endian'): boolean {
  if (source.byteLength < 8) return false;
  const view = viewOf(source);
  const isLittle = order === 'little-endian';
  return view.getUint32(0, isLittle) === SUPERBLOCK_MAGIC && view.getUint32(4, isLittle) === 0;
}

export function decodeSuperblock090(source: Uint8Array): Superblock090 {
  if (source.byteLength < SUPERBLOCK090_BYTES) throw broken('it is cut off');
  if (!beginsSuperblock090(source)) {
    throw new RaidError('BAD_MAGIC', 'there is no version-0.90 md superblock here');
  }
  if (beginsIn(source, 'big-endian')) {
    throw new RaidError('UNSUPPORTED_FEATURE', 'the 0.90 superblock was made on a big-endian machine');
  }
  const bytes = source.slice(0, SUPERBLOCK090_BYTES);
  const view = viewOf(bytes);
  const words = [5, 13, 14, 15].map((word) =>
    view
      .getUint32(word * 4, true)
      .toString(16)
      .padStart(8, '0'),
  );
  const diskAt = (at: number): Disk090 => readRecord(diskFields, bytes.subarray(at, at + 20), '0.90 disk');
  const disks = Array.from({ length: DISKS_MAX }, (_, index) => diskAt(DISKS_AT + index * 128));
  const record = readRecord(fields, bytes, '0.90 superblock');
  return { ...record, setUuid: words.join(':'), disks, thisDisk: diskAt(THIS_DISK_AT), bytes };
}

export function checksum090Of(bytes: Uint8Array): { readonly stored: number; readonly computed: number } {
  const view = viewOf(bytes);
  const stored = view.getUint32(CHECKSUM_AT, true);
  let sum = -stored;
  for (let at = 0; at < SUPERBLOCK090_BYTES; at += 4) sum += view.getUint32(at, true);
  return { stored, computed: ((sum % 2 ** 32) + Math.floor(sum / 2 ** 32)) % 2 ** 32 };
}

export function superblock090Faults(superblock: Superblock090, memberSectors: number): readonly RaidError[] {
  const faults: RaidError[] = [];
  const refuse = (wrong: boolean, why: string): void => {
    if (wrong) faults.push(broken(why));
  };
  const checksum = checksum090Of(superblock.bytes);
  refuse(foldTo16(checksum.stored) !== foldTo16(checksum.computed), 'the checksum is wrong');
  const { minorVersion, raidDisks, nrDisks, level, sizeKib, thisDisk } = superblock;
  refuse(minorVersion !== 90 && minorVersion !== 91, `minor_version is ${minorVersion}`);
  refuse(raidDisks < 1 || raidDisks > DISKS_MAX, `raid_disks is ${raidDisks}`);
  refuse(nrDisks > DISKS_MAX, `nr_disks is ${nrDisks}`);
  refuse(thisDisk.number >= DISKS_MAX, `this_disk is number ${thisDisk.number}`);
  const superSector = superSector090Of(memberSectors) ?? 0;
  refuse(level > 0 && sizeKib * 2 > superSector, `size is ${sizeKib} KiB, beyond the superblock`);
  refuse(superblock.chunkBytes % 512 !== 0, `chunk_size is ${superblock.chunkBytes}`);
  return faults;
}

/** Member sectors below which the array is in sync; Infinity is clean. */
export function resyncOffset090Of(superblock: Superblock090): number {
  if ((superblock.state & states090.CLEAN) !== 0) return Infinity;
  if (superblock.checkpointEvents !== superblock.events) return 0;
  return superblock.recoveryCheckpoint === 0xffff_ffff ? Infinity : superblock.recoveryCheckpoint;
}

function foldTo16(sum: number): number {
  const once = (sum & 0xffff) + (sum >>> 16);
  return (once & 0xffff) + (once >>> 16);
}

function broken(why: string): RaidError {
  return new RaidError('SUPERBLOCK_BROKEN', `0.90 superblock: ${why}`);
}
