/**
 * Where the partitions of a disk are: what it takes to open one of them in the image of a whole disk. Tables are read, never written.
 *
 * GPT (UEFI, chapter 5). A header in the second sector, and another in the last one; each says where a list of entries is, has its sum, and
 * has one of its own. Which size a sector has stands nowhere: it is where the header is found. Two sums and the place it gives for itself make a
 * header that is believed one that was meant to be here. Partition n is entry n; empty ones have a number too.
 *
 *   header   0 "EFI PART"   12 its length   16 its sum (taken over zeros here)   24 which sector it is in   72 where the list is
 *            80 entries     84 bytes each   88 sum of the list
 *   entry    0 type, zeros where there is none   32 first sector   40 last one   56 name, UTF-16
 *
 * MBR. Four entries at 446 of the first sector, "55 aa" behind them: partitions 1 to 4. An entry may be a room for logical partitions, 5 and
 * so on: a chain of sectors with two entries each, a partition counted from that sector, and where the next such sector is, counted
 * from the beginning of the room. A chain comes from a disk that may be broken, so it only ever goes forward.
 *
 *   entry    4 type   8 first sector   12 sectors
 */
import { crc32 } from 'node:zlib';
import { RaidError } from '../errors.ts';
import { formatSize, SECTOR_BYTES } from '../units.ts';
import type { Device } from './device.ts';
import type { FileDevice } from './file.ts';
import type { RescuedDevice } from './rescued.ts';
import { SliceDevice } from './slice.ts';

export interface Partition {
  /** From 1, as it is called everywhere. */
  readonly number: number;
  readonly startBytes: number;
  readonly lengthBytes: number;
}

const GPT_MAGIC = Buffer.from('EFI PART', 'latin1');
const GPT_SECTOR_BYTES = [512, 4096];
const GPT_HEADER_BYTES = 92;
const GPT_ENTRY_BYTES = 128;
/** Tables have 128. */
const GPT_ENTRIES_MOST = 1024;

const MBR_ENTRIES = 446;
const MBR_ENTRY_BYTES = 16;
const PROTECTIVE = 0xee;
const ROOMS: readonly number[] = [0x05, 0x0f, 0x85];
const LOGICAL_MOST = 128;

/**
 * None where there is no table. That one ends behind the end of the disk is told as it stands there. A GPT counts only behind an MBR that
 * says so, or where none can be read: its copy at the end outlives those who have made another table.
 */
export async function readPartitions(device: Device): Promise<readonly Partition[]> {
  const entries = (await readMbrEntries(device, 0)) ?? [];
  const isMbr = entries.some(({ type }) => type !== 0) && !entries.some(({ type }) => type === PROTECTIVE);
  return isMbr ? await readMbr(device, entries) : await readEitherGpt(device);
}

async function readEitherGpt(device: Device): Promise<readonly Partition[]> {
  for (const sectorBytes of GPT_SECTOR_BYTES) {
    const sectors = Math.floor(device.limits.sizeBytes / sectorBytes);
    for (const sector of [1, sectors - 1]) {
      const found = await readGpt(device, sectorBytes, sector);
      if (found !== null) return found;
    }
  }
  return [];
}

async function readGpt(
  device: Device,
  sectorBytes: number,
  sector: number,
): Promise<readonly Partition[] | null> {
  const bytes = await readOrNull(device, sector * sectorBytes, SECTOR_BYTES);
  if (bytes === null || !bytes.subarray(0, GPT_MAGIC.byteLength).equals(GPT_MAGIC)) return null;
  const headerBytes = bytes.readUInt32LE(12);
  if (headerBytes < GPT_HEADER_BYTES || headerBytes > SECTOR_BYTES) return null;
  const header = Buffer.from(bytes.subarray(0, headerBytes));
  const sum = header.readUInt32LE(16);
  header.writeUInt32LE(0, 16);
  if (crc32(header) !== sum || header.readBigUInt64LE(24) !== BigInt(sector)) return null;
  const count = header.readUInt32LE(80);
  const entryBytes = header.readUInt32LE(84);
  if (count > GPT_ENTRIES_MOST || entryBytes < GPT_ENTRY_BYTES || entryBytes > SECTOR_BYTES) return null;
  if (count === 0) return [];
  const listBytes = count * entryBytes;
  const list = await readOrNull(device, Number(header.readBigUInt64LE(72)) * sectorBytes, listBytes);
  if (list === null || crc32(list) !== header.readUInt32LE(88)) return null;
  const partitions: Partition[] = [];
  for (let index = 0; index < count; index += 1) {
    const entry = list.subarray(index * entryBytes, (index + 1) * entryBytes);
    if (entry.subarray(0, 16).every((byte) => byte === 0)) continue;
    const first = Number(entry.readBigUInt64LE(32));
    const last = Number(entry.readBigUInt64LE(40));
    const startBytes = first * sectorBytes;
    const lengthBytes = (last - first + 1) * sectorBytes;
    if (lengthBytes <= 0 || !Number.isSafeInteger(startBytes + lengthBytes)) continue;
    partitions.push({ number: index + 1, startBytes, lengthBytes });
  }
  return partitions;
}

interface MbrEntry {
  readonly type: number;
  readonly first: number;
  readonly sectors: number;
}

async function readMbr(device: Device, entries: readonly MbrEntry[]): Promise<readonly Partition[]> {
  const partitions: Partition[] = [];
  for (const [index, { type, first, sectors }] of entries.entries()) {
    if (type === 0 || sectors === 0) continue;
    partitions.push(partitionAt(index + 1, first, sectors));
  }
  const room = entries.find(({ type }) => ROOMS.includes(type));
  if (room === undefined) return partitions;
  for (let at = room.first, number = 5, links = 0; links < LOGICAL_MOST; links += 1) {
    const [own, next] = (await readMbrEntries(device, at)) ?? [];
    if (own === undefined || next === undefined) break;
    if (own.type !== 0 && own.sectors !== 0) {
      partitions.push(partitionAt(number, at + own.first, own.sectors));
      number += 1;
    }
    const then = room.first + next.first;
    if (!ROOMS.includes(next.type) || then <= at) break;
    at = then;
  }
  return partitions;
}

function partitionAt(number: number, first: number, sectors: number): Partition {
  return { number, startBytes: first * SECTOR_BYTES, lengthBytes: sectors * SECTOR_BYTES };
}

async function readMbrEntries(device: Device, sector: number): Promise<readonly MbrEntry[] | null> {
  const bytes = await readOrNull(device, sector * SECTOR_BYTES, SECTOR_BYTES);
  if (bytes === null || bytes.readUInt16BE(510) !== 0x55aa) return null;
  return [0, 1, 2, 3].map((index) => {
    const at = MBR_ENTRIES + index * MBR_ENTRY_BYTES;
    const status = bytes.readUInt8(at);
    return {
      // A boot sector of a file system ends with the same two bytes, and has other things here.
      type: status === 0 || status === 0x80 ? bytes.readUInt8(at + 4) : 0,
      first: bytes.readUInt32LE(at + 8),
      sectors: bytes.readUInt32LE(at + 12),
    };
  });
}

/** Null where the disk has not so many bytes, or cannot be read: another copy of a table may be whole. */
async function readOrNull(device: Device, offsetBytes: number, lengthBytes: number): Promise<Buffer | null> {
  const { sizeBytes, blockBytes } = device.limits;
  if (offsetBytes < 0 || lengthBytes > sizeBytes - offsetBytes) return null;
  const start = offsetBytes - (offsetBytes % blockBytes);
  const end = Math.ceil((offsetBytes + lengthBytes) / blockBytes) * blockBytes;
  if (end > sizeBytes) return null;
  const bytes = Buffer.alloc(end - start);
  try {
    await device.read(start, bytes);
  } catch (error) {
    if (error instanceof RaidError && error.code === 'MEDIUM_ERROR') return null;
    throw error;
  }
  return bytes.subarray(offsetBytes - start, offsetBytes - start + lengthBytes);
}

export type Disk = FileDevice | RescuedDevice;

/** One partition of a disk, or of the image of one. */
export class PartitionDevice extends SliceDevice {
  /** Two with one identity are the same bytes. That of another partition, or of the whole disk, is another one. */
  readonly identity: string;
  readonly disk: Disk;
  readonly partition: Partition;

  private constructor(disk: Disk, partition: Partition) {
    const { number, startBytes, lengthBytes } = partition;
    super(disk, { offsetBytes: startBytes, lengthBytes, name: `${disk.name}#${number}` });
    this.identity = `${disk.identity}#${number}`;
    this.disk = disk;
    this.partition = partition;
  }

  /** The disk is closed with it. */
  static async open(disk: Disk, number: number): Promise<PartitionDevice> {
    const partitions = await readPartitions(disk);
    const found = partitions.find((partition) => partition.number === number);
    if (found === undefined) throw noSuchPartition(disk, number, partitions);
    if (found.lengthBytes > disk.limits.sizeBytes - found.startBytes) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `partition ${number} of ${disk.name} ends at ${formatSize(found.startBytes + found.lengthBytes)}, and there are ${formatSize(disk.limits.sizeBytes)} of it: the image is cut short`,
        { device: disk.name },
      );
    }
    return new PartitionDevice(disk, found);
  }
}

function noSuchPartition(disk: Disk, number: number, partitions: readonly Partition[]): RaidError {
  const { name } = disk;
  const has = partitions.map((each) => `${each.number} (${formatSize(each.lengthBytes)})`).join(', ');
  return new RaidError(
    'BAD_ARGUMENT',
    partitions.length === 0
      ? `${name} has no partition ${number}: no partition table is found on it`
      : `${name} has no partition ${number}; it has ${has}`,
    { device: name },
  );
}
