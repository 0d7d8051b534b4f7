/** Disks with partition tables, as their specifications have them. */
import { crc32 } from 'node:zlib';

/** In sectors. */
export interface Extent {
  readonly number: number;
  readonly first: number;
  readonly sectors: number;
}

/** Of so many sectors, with both copies of the table; what lies in the partitions is zeros. */
export function gptDisk(extents: readonly Extent[], diskSectors: number, sectorBytes = 512): Buffer {
  const disk = Buffer.alloc(diskSectors * sectorBytes);
  disk.writeUInt8(0xee, 446 + 4);
  disk.writeUInt32LE(1, 446 + 8);
  disk.writeUInt32LE(diskSectors - 1, 446 + 12);
  disk.writeUInt16BE(0x55aa, 510);
  const list = Buffer.alloc(128 * 128);
  for (const { number, first, sectors } of extents) {
    const entry = list.subarray((number - 1) * 128, number * 128);
    entry.fill(number, 0, 16);
    entry.writeBigUInt64LE(BigInt(first), 32);
    entry.writeBigUInt64LE(BigInt(first + sectors - 1), 40);
  }
  const listSectors = list.byteLength / sectorBytes;
  const put = (at: number, other: number, listAt: number): void => {
    const header = Buffer.alloc(92);
    header.write('EFI PART', 'latin1');
    header.writeUInt32LE(0x10000, 8);
    header.writeUInt32LE(92, 12);
    header.writeBigUInt64LE(BigInt(at), 24);
    header.writeBigUInt64LE(BigInt(other), 32);
    header.writeBigUInt64LE(BigInt(listAt), 72);
    header.writeUInt32LE(128, 80);
    header.writeUInt32LE(128, 84);
    header.writeUInt32LE(crc32(list), 88);
    header.writeUInt32LE(crc32(header), 16);
    header.copy(disk, at * sectorBytes);
    list.copy(disk, listAt * sectorBytes);
  };
  put(1, diskSectors - 1, 2);
  put(diskSectors - 1, 1, diskSectors - 1 - listSectors);
  return disk;
}

export function putMbrEntry(
  sector: Buffer,
  index: number,
  type: number,
  first: number,
  sectors: number,
): void {
  const at = 446 + index * 16;
  sector.writeUInt8(type, at + 4);
  sector.writeUInt32LE(first, at + 8);
  sector.writeUInt32LE(sectors, at + 12);
  sector.writeUInt16BE(0x55aa, 510);
}

/** Logical partitions each behind a sector of its own, in a room that begins there. */
export function mbrDisk(
  primary: readonly Extent[],
  room: Extent | null,
  logical: readonly Extent[],
  diskSectors: number,
): Buffer {
  const disk = Buffer.alloc(diskSectors * 512);
  for (const { number, first, sectors } of primary) putMbrEntry(disk, number - 1, 0xfd, first, sectors);
  if (room === null) return disk;
  putMbrEntry(disk, room.number - 1, 0x0f, room.first, room.sectors);
  for (const [index, { first, sectors }] of logical.entries()) {
    const at = index === 0 ? room.first : first - 1;
    const sector = disk.subarray(at * 512, (at + 1) * 512);
    putMbrEntry(sector, 0, 0xfd, first - at, sectors);
    const next = logical[index + 1];
    if (next !== undefined) putMbrEntry(sector, 1, 0x05, next.first - 1 - room.first, next.sectors + 1);
  }
  return disk;
}
