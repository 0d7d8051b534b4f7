/**
 * What a device seems to hold, told by the marks that file systems, volume managers and partition tables leave at
 * known places. For the refusal to make a member of something that is in use, so words are the result; whoever wants
 * to know more asks `blkid`.
 *
 * At most 1.25 MiB is read, whatever the size: all marks are in the first 512 KiB or the last 768 KiB (ZFS: two labels
 * of 256 KiB at the end of the last whole 256 KiB). Marks of two or four bytes are believed only where their
 * neighbours make sense too, or one device in some thousands of random content could not be used.
 *
 * Finding nothing proves nothing: a database on the bare device leaves no mark.
 */
import type { Device } from '../device/device.ts';
import { OVERLAY_MAGIC } from '../device/overlay.ts';
import { RaidError } from '../errors.ts';
import { readSuperblock, superblockPlaces } from '../md/member.ts';
import { KIB, roundDown, roundUp, SECTOR_BYTES } from '../units.ts';

const HEAD_BYTES = 512 * KIB;
const TAIL_BYTES = 768 * KIB;

/** The two ends of a device. */
interface Ends {
  readonly sizeBytes: number;
  /** Null where the device has no such bytes, or they are not among those that were read. */
  at(offsetBytes: number, lengthBytes: number): Buffer | null;
}

interface Signature {
  /** What it is; null where a closer look says that it is not. */
  readonly says: string | ((ends: Ends, at: number) => string | null);
  /** Bytes, as Latin-1. */
  readonly magics: readonly string[];
  /** From the start; negative from the end. */
  readonly places: readonly number[];
  /** Offset, relative to the magic, and length of a name that people gave it. */
  readonly label?: readonly [offsetBytes: number, lengthBytes: number];
}

const pages = [4, 8, 16, 32, 64].map((kib) => kib * KIB);

const signatures: readonly Signature[] = [
  { says: extKind, magics: ['\x53\xef'], places: [1080], label: [64, 16] },
  { says: 'an XFS file system', magics: ['XFSB'], places: [0], label: [108, 12] },
  { says: 'a btrfs file system', magics: ['_BHRfS_M'], places: [65_600], label: [235, 256] },
  { says: 'an F2FS file system', magics: ['\x10\x20\xf5\xf2'], places: [1024] },
  { says: 'an NTFS file system', magics: ['NTFS    '], places: [3] },
  { says: 'an exFAT file system', magics: ['EXFAT   '], places: [3] },
  { says: fatKind, magics: ['FAT12   ', 'FAT16   ', 'FAT     '], places: [54], label: [-11, 11] },
  { says: fatKind, magics: ['FAT32   '], places: [82], label: [-11, 11] },
  { says: 'a SquashFS file system', magics: ['hsqs', 'sqsh'], places: [0] },
  { says: 'an ISO 9660 file system', magics: ['CD001'], places: [32_769], label: [39, 32] },
  { says: swapKind, magics: ['SWAPSPACE2', 'SWAP-SPACE'], places: pages.map((bytes) => bytes - 10) },
  {
    says: 'a hibernated system in swap space',
    magics: ['S1SUSPEND', 'S2SUSPEND', 'ULSUSPEND', 'LINHIB0001'],
    places: pages.map((bytes) => bytes - 10),
  },
  { says: 'LUKS encryption', magics: ['LUKS\xba\xbe'], places: [0], label: [168, 40] },
  {
    says: 'LUKS encryption (its second header)',
    magics: ['SKUL\xba\xbe'],
    places: [16, 32, 64, 128, 256].map((kib) => kib * KIB),
  },
  { says: lvmKind, magics: ['LABELONE'], places: [0, 512, 1024, 1536] },
  { says: zfsKind, magics: [''], places: [0, 256 * KIB] },
  { says: 'a GPT partition table', magics: ['EFI PART'], places: [512, 4096] },
  { says: 'a backup GPT partition table', magics: ['EFI PART'], places: [-512, -4096] },
  { says: mbrKind, magics: ['\x55\xaa'], places: [510] },
  { says: 'a qcow2 disk image', magics: ['QFI\xfb'], places: [0] },
  { says: 'an overlay of raidsim', magics: [OVERLAY_MAGIC], places: [0] },
  { says: 'Intel firmware RAID metadata', magics: ['Intel Raid ISM Cfg Sig. '], places: [-1024] },
  { says: 'DDF firmware RAID metadata', magics: ['\xde\x11\xde\x11'], places: [-512] },
];

/** One phrase for each thing that is found; none when the device seems empty. Reads the device, and throws as it does. */
export async function whatIsOn(device: Device): Promise<string[]> {
  if (device.limits.sizeBytes === 0) return [];
  const ends = await readEnds(device);
  const found = new Set(mdSuperblocks(ends));
  for (const signature of signatures) {
    for (const place of signature.places) {
      const at = place < 0 ? ends.sizeBytes + place : place;
      const phrase = judge(signature, ends, at);
      if (phrase !== null) found.add(phrase);
    }
  }
  return [...found];
}

async function readEnds(device: Device): Promise<Ends> {
  const { sizeBytes, blockBytes } = device.limits;
  const headEnd = Math.min(sizeBytes, roundUp(HEAD_BYTES, blockBytes));
  const tailStart = Math.max(headEnd, roundDown(Math.max(0, sizeBytes - TAIL_BYTES), blockBytes));
  const head = Buffer.alloc(headEnd);
  const tail = Buffer.alloc(sizeBytes - tailStart);
  await device.read(0, head);
  if (tail.byteLength > 0) await device.read(tailStart, tail);
  // On a small device the two meet, and something may lie across.
  const whole = tailStart === headEnd ? Buffer.concat([head, tail]) : null;
  return {
    sizeBytes,
    at(offsetBytes, lengthBytes) {
      const endBytes = offsetBytes + lengthBytes;
      if (offsetBytes < 0 || endBytes > sizeBytes) return null;
      if (whole !== null) return whole.subarray(offsetBytes, endBytes);
      if (endBytes <= headEnd) return head.subarray(offsetBytes, endBytes);
      return offsetBytes < tailStart ? null : tail.subarray(offsetBytes - tailStart, endBytes - tailStart);
    },
  };
}

function judge({ says, magics, label }: Omit<Signature, 'places'>, ends: Ends, at: number): string | null {
  if (!magics.some((magic) => ends.at(at, magic.length)?.equals(Buffer.from(magic, 'latin1')) === true)) {
    return null;
  }
  const phrase = typeof says === 'string' ? says : says(ends, at);
  if (phrase === null || label === undefined) return phrase;
  const name = ends.at(at + label[0], label[1]);
  return phrase + quoted(name === null ? '' : textOf(name));
}

/** Of every version, however broken: who is asked whether it may go should see all of them. */
function mdSuperblocks(ends: Ends): readonly string[] {
  const memberSectors = Math.floor(ends.sizeBytes / SECTOR_BYTES);
  const found: string[] = [];
  for (const { version, offsetBytes, lengthBytes } of superblockPlaces(memberSectors)) {
    const bytes = ends.at(offsetBytes, lengthBytes);
    if (bytes === null) continue;
    try {
      const finding = readSuperblock(version, bytes, memberSectors);
      if (finding === null) continue;
      const { superblock, faults } = finding;
      const name = 'setName' in superblock ? quoted(superblock.setName) : '';
      const broken = faults.length > 0 ? ', broken' : '';
      found.push(`an md superblock ${version} of the array${name} (uuid ${superblock.setUuid}${broken})`);
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
      found.push(`a broken md superblock ${version}`);
    }
  }
  return found;
}

/** 0xef53 at 1080 of a superblock that begins at 1024; features as libblkid tells the three apart. */
function extKind(ends: Ends): string | null {
  const superblock = ends.at(1024, 1024);
  if (superblock === null) return null;
  const compat = superblock.readUInt32LE(92);
  const incompat = superblock.readUInt32LE(96);
  const readOnlyCompat = superblock.readUInt32LE(100);
  const makesSense =
    superblock.readUInt32LE(4) > 0 && superblock.readUInt32LE(24) <= 6 && superblock.readUInt32LE(76) <= 1;
  if (!makesSense) return null;
  if ((incompat & 0x8) !== 0) return 'an ext4 journal';
  // What ext3 knows: filetype, recover, meta_bg; sparse_super, large_file, btree_dir.
  if ((incompat & ~0x16) !== 0 || (readOnlyCompat & ~0x7) !== 0) return 'an ext4 file system';
  return (compat & 0x4) === 0 ? 'an ext2 file system' : 'an ext3 file system';
}

function fatKind(ends: Ends): string | null {
  return isBootSector(ends) ? 'a FAT file system' : null;
}

/** The magic moves with the page size of the machine that made it; the label does not. */
function swapKind(ends: Ends): string {
  return `swap space${quoted(textOf(ends.at(1052, 16) ?? Buffer.alloc(0)))}`;
}

function lvmKind(ends: Ends, at: number): string | null {
  return ends.at(at + 24, 8)?.toString('latin1') === 'LVM2 001' ? 'an LVM physical volume' : null;
}

/**
 * A ZFS label has its mark, u64 0x00bab10c in the byte order of its maker, in any of the slots of the ring in its second
 * half. Of the two labels at the end the last is enough.
 */
function zfsKind(ends: Ends, at: number): string | null {
  const labelBytes = 256 * KIB;
  const last = roundDown(ends.sizeBytes, labelBytes) - labelBytes;
  for (const start of [at, last - labelBytes, last]) {
    const ring = ends.at(start + 128 * KIB, 128 * KIB);
    if (ring === null) continue;
    for (let slot = 0; slot < ring.byteLength; slot += KIB) {
      if (ring.readBigUInt64LE(slot) === 0xbab10cn || ring.readBigUInt64BE(slot) === 0xbab10cn) {
        return 'a ZFS label';
      }
    }
  }
  return null;
}

/** File systems put their own boot sector where a partition table would be, with the same two bytes at its end. */
function mbrKind(ends: Ends): string | null {
  const sector = ends.at(0, 512);
  if (sector === null) return null;
  if (['NTFS    ', 'EXFAT   '].includes(sector.toString('latin1', 3, 11))) return null;
  if ([54, 82].some((at) => sector.toString('latin1', at, at + 3) === 'FAT')) return null;
  const entries = [446, 462, 478, 494].map((at) => sector.subarray(at, at + 16));
  const used = entries.filter((entry) => entry[4] !== 0);
  const makesSense = entries.every((entry) => entry[0] === 0 || entry[0] === 0x80);
  const areReal = used.every((entry) => entry.readUInt32LE(8) > 0 && entry.readUInt32LE(12) > 0);
  if (makesSense && areReal && used.length > 0) {
    const isProtective = used.every((entry) => entry[4] === 0xee);
    return isProtective ? 'the protective MBR of a GPT' : 'an MBR partition table';
  }
  // Code that a BIOS would start begins with a jump.
  const jumps = sector[0] === 0xe9 || (sector[0] === 0xeb && sector[2] === 0x90);
  return jumps || (makesSense && used.length === 0) ? 'a boot sector' : null;
}

function isBootSector(ends: Ends): boolean {
  return ends.at(510, 2)?.equals(Buffer.from([0x55, 0xaa])) === true;
}

function textOf(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  const text = bytes.toString('utf8', 0, end === -1 ? bytes.byteLength : end).trim();
  return text === 'NO NAME' ? '' : text;
}

/** Anybody may have written it: nothing in it reaches a terminal as more than letters. */
function quoted(name: string): string {
  return name === '' ? '' : ` ${JSON.stringify(name.replace(/\p{C}/gu, '?'))}`;
}
