/**
 * The write-intent bitmap inside the members: which chunks may be out of sync. `bitmap_super_s` of
 * drivers/md/md-bitmap.h, 256 bytes, then the bits. Every member that holds a slot has an equal copy, at the sector
 * super_offset + bitmap_offset.
 *
 *     0  u32  magic 0x6d746962 "bitm"          48  u32  state: 2 stale, 4 write error, 0x8000 host-endian
 *     4  u32  version 4 (3 host-endian,        52  u32  chunksize, *bytes* per bit, a power of two from 512
 *             5 clustered, 6 lockless)         56  u32  daemon_sleep, seconds
 *     8  16B  uuid = set_uuid                  60  u32  write_behind, at most 16383
 *    24  u64  events                           64  u32  sectors_reserved
 *    32  u64  events_cleared                   68  u32  nodes
 *    40  u64  sync_size, sectors covered      256  bits: bit i is byte 256 + i / 8, bit i % 8
 *
 *   area = up(256 + bits / 8, 4096) bytes. mdadm fills it with ones, also the tail.
 *
 * A bit covers chunksize bytes of *member data* in raid1, 4, 5 and 6 (the address of the stripe row), but of the
 * *array* in raid10. A worked case: 40960 member sectors at 4 MiB a bit are 5 bits, in one page of 4 KiB.
 *
 * `events` is that of the superblocks at the last update. Less means that somebody wrote to the array without
 * keeping the bitmap: then every bit counts as set. `events_cleared` stands still while a member is missing; the
 * member may return by copying only set bits if its own events have reached `events_cleared`.
 */
import { assert, RaidError } from '../errors.ts';
import { divCeil, roundUp } from '../units.ts';
import { type Fields, type RecordOf, readRecord, viewOf, writeRecord } from './record.ts';

export const BITMAP_MAGIC = 0x6d746962;
export const BITMAP_SUPERBLOCK_BYTES = 256;
/** 2^30 chunks: no bitmap that md makes comes near; a forged sync_size must not make us allocate it. */
export const BITMAP_BYTES_MAX = 128 * 1024 * 1024;

const STATE_STALE = 2;

const fields = {
  version: [4, 'u32'],
  uuid: [8, 'uuid'],
  events: [24, 'u64'],
  eventsCleared: [32, 'u64'],
  syncSectors: [40, 'u64'],
  state: [48, 'u32'],
  chunkBytes: [52, 'u32'],
  daemonSleepSeconds: [56, 'u32'],
  writeBehind: [60, 'u32'],
  sectorsReserved: [64, 'u32'],
  nodes: [68, 'u32'],
} as const satisfies Fields;

export interface BitmapSuperblock extends RecordOf<typeof fields> {
  readonly bytes: Uint8Array;
}

/** What the array's own superblocks say; the bitmap has to agree, and cannot be believed about the size. */
export interface BitmapOwner {
  readonly setUuid: string;
  readonly events: number;
  /** Member data sectors, or array sectors in raid10. */
  readonly syncSectors: number;
}

export function decodeBitmapSuperblock(source: Uint8Array): BitmapSuperblock {
  if (source.byteLength < BITMAP_SUPERBLOCK_BYTES) throw broken('it is cut off');
  const bytes = source.slice(0, BITMAP_SUPERBLOCK_BYTES);
  if (viewOf(bytes).getUint32(0, true) !== BITMAP_MAGIC) {
    throw new RaidError('BAD_MAGIC', 'there is no write-intent bitmap here');
  }
  return { ...readRecord(fields, bytes, 'bitmap'), bytes };
}

export function encodeBitmapSuperblock(superblock: BitmapSuperblock): Uint8Array {
  const bytes = superblock.bytes.slice();
  viewOf(bytes).setUint32(0, BITMAP_MAGIC, true);
  writeRecord(fields, bytes, superblock);
  return bytes;
}

export function newBitmapSuperblock(owner: BitmapOwner, chunkBytes: number): BitmapSuperblock {
  const bytes = new Uint8Array(BITMAP_SUPERBLOCK_BYTES);
  return {
    ...readRecord(fields, bytes, 'bitmap'),
    version: 4,
    uuid: owner.setUuid,
    events: owner.events,
    eventsCleared: owner.events,
    syncSectors: owner.syncSectors,
    chunkBytes,
    daemonSleepSeconds: 5,
    bytes,
  };
}

/** Throws for what makes md refuse to run the array; `isStale` says when the bits cannot be believed. */
export function checkBitmap(bitmap: BitmapSuperblock, owner: BitmapOwner): void {
  if (bitmap.version === 5 || bitmap.nodes !== 0) {
    throw new RaidError('UNSUPPORTED_FEATURE', 'the bitmap is that of a clustered array');
  }
  if (bitmap.version === 6) throw new RaidError('UNSUPPORTED_FEATURE', 'the bitmap is of the lockless kind');
  if (bitmap.version !== 3 && bitmap.version !== 4) throw broken(`version is ${bitmap.version}`);
  if (bitmap.uuid !== owner.setUuid) throw broken('its uuid is that of another array');
  if (bitmap.chunkBytes < 512 || !Number.isInteger(Math.log2(bitmap.chunkBytes))) {
    throw broken(`chunksize is ${bitmap.chunkBytes}`);
  }
  if (bitmap.daemonSleepSeconds < 1) throw broken('daemon_sleep is 0');
  if (bitmap.writeBehind > 16383) throw broken(`write_behind is ${bitmap.writeBehind}`);
  if (bitmapAreaBytes(owner.syncSectors, bitmap.chunkBytes) > BITMAP_BYTES_MAX) {
    throw broken(`chunksize ${bitmap.chunkBytes} makes more bits than any array needs`);
  }
}

/** True when the array went on without its bitmap, or the bitmap says so itself: all bits count as set. */
export function isStale(bitmap: BitmapSuperblock, owner: BitmapOwner): boolean {
  return bitmap.events < owner.events || (bitmap.state & STATE_STALE) !== 0;
}

/** The bitmap superblock that goes with an update of the superblocks, written before them. */
export function withEvents(bitmap: BitmapSuperblock, events: number, isComplete: boolean): BitmapSuperblock {
  return { ...bitmap, events, eventsCleared: isComplete ? events : Math.min(bitmap.eventsCleared, events) };
}

export function bitmapUnitSectorsOf(chunkBytes: number): number {
  return chunkBytes / 512;
}

export function bitCountOf(syncSectors: number, chunkBytes: number): number {
  return divCeil(syncSectors, bitmapUnitSectorsOf(chunkBytes));
}

/** The whole area, superblock included. */
export function bitmapAreaBytes(syncSectors: number, chunkBytes: number): number {
  return roundUp(BITMAP_SUPERBLOCK_BYTES + divCeil(bitCountOf(syncSectors, chunkBytes), 8), 4096);
}

/** A range of sectors of what the bitmap covers; `toSector` is the first one after it. */
export interface SectorRange {
  readonly fromSector: number;
  readonly toSector: number;
}

/**
 * The bits. Mutable: the array sets and clears them in place and writes the pages that changed. `area` is the whole
 * area as on disk, the 256 bytes of the superblock included, so that page n is bytes 4096 n of both.
 */
export class Bits {
  readonly area: Uint8Array;
  readonly chunkSectors: number;
  readonly bitCount: number;
  readonly syncSectors: number;

  constructor(area: Uint8Array, syncSectors: number, chunkBytes: number) {
    assert(area.byteLength >= bitmapAreaBytes(syncSectors, chunkBytes), 'the area holds every bit');
    this.area = area;
    this.syncSectors = syncSectors;
    this.chunkSectors = bitmapUnitSectorsOf(chunkBytes);
    this.bitCount = bitCountOf(syncSectors, chunkBytes);
  }

  static empty(syncSectors: number, chunkBytes: number): Bits {
    return new Bits(new Uint8Array(bitmapAreaBytes(syncSectors, chunkBytes)), syncSectors, chunkBytes);
  }

  has(bit: number): boolean {
    return ((this.area[this.#byteOf(bit)] as number) & (1 << (bit & 7))) !== 0;
  }

  /** True when the bit was clear: its page has to be written. */
  set(bit: number): boolean {
    if (this.has(bit)) return false;
    const at = this.#byteOf(bit);
    this.area[at] = (this.area[at] as number) | (1 << (bit & 7));
    return true;
  }

  clear(bit: number): boolean {
    if (!this.has(bit)) return false;
    const at = this.#byteOf(bit);
    this.area[at] = (this.area[at] as number) & ~(1 << (bit & 7));
    return true;
  }

  setAll(): void {
    this.area.fill(0xff, BITMAP_SUPERBLOCK_BYTES);
  }

  /** Sets every bit that covers anything from this sector on, and what lies behind the last bit. */
  setFrom(sector: number): void {
    const first = Math.floor(sector / this.chunkSectors);
    for (let bit = first; bit < this.bitCount && (bit & 7) !== 0; bit += 1) this.set(bit);
    const at = BITMAP_SUPERBLOCK_BYTES + Math.ceil(first / 8);
    this.area.fill(0xff, at);
  }

  count(): number {
    let total = 0;
    for (let bit = 0; bit < this.bitCount; bit += 1) total += Number(this.has(bit));
    return total;
  }

  /** First and last bit of a range that is not empty. */
  bitsOf(range: SectorRange): { readonly firstBit: number; readonly lastBit: number } {
    assert(range.fromSector >= 0 && range.fromSector < range.toSector, 'a range has a length');
    assert(range.toSector <= this.syncSectors, 'a range lies inside what the bitmap covers');
    const bitOf = (sector: number): number => Math.floor(sector / this.chunkSectors);
    return { firstBit: bitOf(range.fromSector), lastBit: bitOf(range.toSector - 1) };
  }

  rangeOf(bit: number): SectorRange {
    const fromSector = bit * this.chunkSectors;
    return { fromSector, toSector: Math.min(fromSector + this.chunkSectors, this.syncSectors) };
  }

  /** The set bits as ranges, neighbours joined, rising. */
  *dirtyRanges(): Generator<SectorRange> {
    let fromSector: number | null = null;
    for (let bit = 0; bit <= this.bitCount; bit += 1) {
      const isSet = bit < this.bitCount && this.has(bit);
      if (isSet && fromSector === null) fromSector = bit * this.chunkSectors;
      if (!isSet && fromSector !== null) {
        yield { fromSector, toSector: Math.min(bit * this.chunkSectors, this.syncSectors) };
        fromSector = null;
      }
    }
  }

  /** The page of 4 KiB that holds a bit. */
  pageOf(bit: number): number {
    return Math.floor(this.#byteOf(bit) / 4096);
  }

  #byteOf(bit: number): number {
    assert(bit >= 0 && bit < this.bitCount, 'a bit lies inside the bitmap');
    return BITMAP_SUPERBLOCK_BYTES + (bit >>> 3);
  }
}

/** The same bits for an array that has grown to this, with all of what is new set. */
export function grownBits(bits: Bits, fromSector: number, syncSectors: number): Bits {
  const chunkBytes = bits.chunkSectors * 512;
  const grown = Bits.empty(syncSectors, chunkBytes);
  grown.area.set(bits.area);
  grown.setFrom(fromSector);
  return grown;
}

/** A new bitmap as mdadm leaves it on every member: all bits set. */
export function newBitmapArea(owner: BitmapOwner, chunkBytes: number): Uint8Array {
  const area = new Uint8Array(bitmapAreaBytes(owner.syncSectors, chunkBytes)).fill(0xff);
  area.set(encodeBitmapSuperblock(newBitmapSuperblock(owner, chunkBytes)));
  return area;
}

function broken(why: string): RaidError {
  return new RaidError('SUPERBLOCK_BROKEN', `write-intent bitmap: ${why}`);
}
