/**
 * A device whose writes go to a file beside it: reads merge the two, and the device below is never written. That is
 * how a recovery can be tried and thrown away, and what a first look at a damaged disk should go through.
 *
 * The file, all numbers little-endian:
 *
 *   0          header, 4096 bytes
 *                0   "raidsim overlay\n"
 *               16   u32   version, 1
 *               20   u32   block size, 4096
 *               24   u64   size of the device below, in bytes
 *               32   u64   where the blocks begin
 *               40   u32   length of the origin
 *               44   u32   CRC-32 of the header with this field zero
 *               48         origin, UTF-8, at most 1024 bytes: which device it belongs to
 *   4096       bitmap, whole pages: bit b % 8 of byte b / 8 is block b; 1: the block is here
 *   (32)       blocks: block b at (32) + 4096 b. The file is sparse: what is not here takes no space
 *
 *   Example: 1 MiB below is 256 blocks, 32 bytes of bitmap, blocks from 8192 on, and a file of 1056768 bytes.
 *
 * A write to part of a block that is not here yet brings the rest of it up from below, in the same write. If that rest
 * cannot be read, the write fails: the block could not be whole.
 *
 * Crash safety. Bits are only ever set. A block's bit is set in memory when its data has been written, and gets to the
 * file only in a flush: data durable, then bits, then bits durable. So whichever bytes of a bitmap page an
 * interrupted write left new or old, every bit that is set has its data behind it; no checksum or second copy is needed
 * for that, and none could say more. A crash takes back what was not flushed: such a block reads as below, even if it
 * had been read otherwise before. `close` flushes, for its bits would be lost with it.
 *
 * A flush that failed fails for ever: of what was on its way nobody knows whether it arrived. Not so where bits were only refused for want of
 * space: they are sent again by the next flush.
 *
 * `discardAll` is the one way back. It cuts the file behind the header, bits and data in one step.
 *
 * A discard changes nothing that can be seen: giving a block up would show what is below again, and that is neither
 * what was here nor zeros. Space of blocks that are here is released.
 *
 * Limits. The bitmap is held in memory: 32 MiB for each TiB below. Whoever writes to the device below while an overlay
 * is in use mixes two histories, and nothing here can notice.
 */
import fs from 'node:fs';
import { crc32 } from 'node:zlib';
import { RaidError } from '../errors.ts';
import { KIB, roundUp, SECTOR_BYTES } from '../units.ts';
import { viewsOf } from './buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from './device.ts';
import { errnoName, errorFromErrno } from './errno.ts';
import { FileDevice } from './file.ts';
import { InFlight } from './in-flight.ts';

export interface OverlayOptions {
  /** Makes the file if there is none; by default that is an error. */
  readonly create?: boolean | undefined;
  /**
   * Says which device it is, in a way that outlives its path: a member's uuid. Members of one array are of one size, so
   * nothing else would tell that an overlay is put over the wrong one.
   */
  readonly origin?: string | undefined;
  readonly name?: string | undefined;
}

export const OVERLAY_MAGIC = 'raidsim overlay\n';
const VERSION = 1;
const BLOCK_BYTES = 4 * KIB;
const HEADER_BYTES = 4 * KIB;
const PAGE_BYTES = 4 * KIB;
const ORIGIN_AT = 48;
const ORIGIN_MAX = 1024;
const CRC_AT = 44;
/** Parts of one read in flight together. */
const PARTS_MAX = 64;

/** Blocks [first, end), all of them here or none. */
interface Run {
  readonly first: number;
  readonly end: number;
  readonly isHere: boolean;
}

/** A write that brings blocks here. Others that touch the same blocks wait: each brings the rest of them up. */
interface Filling {
  readonly first: number;
  readonly end: number;
  readonly done: Promise<void>;
}

interface Opened {
  readonly below: Device;
  readonly store: Device;
  readonly path: string | null;
  readonly bits: Uint8Array;
  readonly name: string;
}

export class OverlayDevice extends Device {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct = null;
  readonly #below: Device;
  readonly #store: Device;
  readonly #path: string | null;
  readonly #bits: Uint8Array;
  readonly #dataBytes: number;
  readonly #dirtyPages = new Set<number>();
  readonly #fillings = new Set<Filling>();
  readonly #inFlight = new InFlight();
  /** Set while `discardAll` has the device to itself. */
  #exclusive: Promise<void> | null = null;
  #isDeleted = false;

  #flushFailure: RaidError | null = null;
  #flushRunning: Promise<void> | null = null;
  #flushNext: Promise<void> | null = null;

  private constructor({ below, store, path, bits, name }: Opened) {
    super();
    const { sizeBytes, blockBytes, preferredBytes } = below.limits;
    this.name = name;
    this.limits = {
      sizeBytes,
      blockBytes,
      preferredBytes: roundUp(preferredBytes, BLOCK_BYTES),
      readOnly: false,
    };
    this.#below = below;
    this.#store = store;
    this.#path = path;
    this.#bits = bits;
    this.#dataBytes = dataBytesFor(sizeBytes);
  }

  /** Puts the file over `below`, which belongs to the overlay from then on: closing it closes that. */
  static async open(below: Device, path: string, options: OverlayOptions = {}): Promise<OverlayDevice> {
    refuseMisfit(below, 1, options);
    const store = await openStore(path, overlayBytesFor(below.limits.sizeBytes), options.create === true);
    try {
      return await OverlayDevice.#over(below, store, path, options);
    } catch (cause) {
      await store.close();
      throw cause;
    }
  }

  /** The same with the content of the file on any device, which is the overlay's from then on. */
  static async over(below: Device, store: Device, options: OverlayOptions = {}): Promise<OverlayDevice> {
    refuseMisfit(below, store.limits.blockBytes, options);
    return await OverlayDevice.#over(below, store, null, options);
  }

  static async #over(
    below: Device,
    store: Device,
    path: string | null,
    options: OverlayOptions,
  ): Promise<OverlayDevice> {
    const { sizeBytes } = below.limits;
    const origin = Buffer.from(options.origin ?? '');
    const header = await readHeader(store);
    if (options.create === true && isBlank(store, header, sizeBytes)) {
      await store.write(0, headerFor(sizeBytes, origin), { fua: true });
    } else {
      checkHeader(store.name, header, below, options.origin === undefined ? null : origin);
      await mendSize(store, overlayBytesFor(sizeBytes));
    }
    const bits = new Uint8Array(bitmapBytesFor(sizeBytes));
    await store.read(HEADER_BYTES, bits);
    return new OverlayDevice({ below, store, path, bits, name: options.name ?? `${below.name} (overlay)` });
  }

  /** How much the overlay holds, in whole blocks. */
  get divergedBytes(): number {
    let blocks = 0;
    for (const run of this.#runs(0, blockEnd(this.limits.sizeBytes))) {
      if (run.isHere) blocks += run.end - run.first;
    }
    return blocks * BLOCK_BYTES;
  }

  /** Reads as the device below again, durably. Waits for what is in flight, and what comes meanwhile waits for it. */
  async discardAll(): Promise<void> {
    while (this.#exclusive !== null) await this.#exclusive;
    if (this.isClosed) throw new RaidError('CLOSED', `${this.name} is closed`, { device: this.name });
    let open: () => void = () => undefined;
    this.#exclusive = new Promise((resolve) => {
      open = resolve;
    });
    try {
      await this.#inFlight.whenIdle();
      await this.#revert();
    } finally {
      this.#exclusive = null;
      open();
    }
  }

  /** Closes the overlay and the device below, and removes the file. */
  async delete(): Promise<void> {
    if (this.#path === null) {
      throw new RaidError('NOT_SUPPORTED', `${this.name} is in no file that could be deleted`, {
        device: this.name,
      });
    }
    this.#isDeleted = true;
    const closing = await Promise.allSettled([this.close()]);
    try {
      await fs.promises.rm(this.#path, { force: true });
    } catch (cause) {
      throw errorFromErrno(cause, 'write', { device: this.#path });
    }
    throwFirst(closing);
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#run(async () => {
      const endBytes = offsetBytes + totalBytes(targets);
      let parts: Promise<void>[] = [];
      for (const run of this.#runs(blockOf(offsetBytes), blockEnd(endBytes))) {
        const start = Math.max(offsetBytes, run.first * BLOCK_BYTES);
        const lengthBytes = Math.min(endBytes, run.end * BLOCK_BYTES) - start;
        const views = viewsOf(targets, start - offsetBytes, lengthBytes);
        parts.push(
          run.isHere ? this.#store.read(this.#dataBytes + start, views) : this.#below.read(start, views),
        );
        if (parts.length === PARTS_MAX) {
          await allOf(parts);
          parts = [];
        }
      }
      await allOf(parts);
    });
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    return this.#run(async () => {
      const endBytes = offsetBytes + totalBytes(sources);
      await this.#fill(offsetBytes, endBytes, (before, after) =>
        this.#store.write(this.#dataBytes + offsetBytes - before.byteLength, [before, ...sources, after]),
      );
      if (fua) await this.#sync();
    });
  }

  protected override doFlush(): Promise<void> {
    return this.#run(() => this.#sync());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#run(async () => {
      const endBytes = offsetBytes + lengthBytes;
      for (const run of this.#runs(blockOf(offsetBytes), blockEnd(endBytes))) {
        if (!run.isHere) continue;
        const start = Math.max(offsetBytes, run.first * BLOCK_BYTES);
        await this.#store.discard(this.#dataBytes + start, Math.min(endBytes, run.end * BLOCK_BYTES) - start);
      }
    });
  }

  /** Zeros are data here: a block of them hides what is below. With `mayUnmap` it takes no space. */
  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    { fua, mayUnmap }: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#run(async () => {
      const endBytes = offsetBytes + lengthBytes;
      await this.#fill(offsetBytes, endBytes, async (before, after) => {
        const at = this.#dataBytes + offsetBytes;
        if (before.byteLength > 0) await this.#store.write(at - before.byteLength, before);
        if (after.byteLength > 0) await this.#store.write(at + lengthBytes, after);
        await this.#store.writeZeroes(at, lengthBytes, { mayUnmap });
      });
      if (fua) await this.#sync();
    });
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#run(async () => {
      const below = await this.#below.blockStatus(offsetBytes, lengthBytes);
      const endBytes = offsetBytes + lengthBytes;
      const extents: Extent[] = [];
      let index = 0;
      for (const run of this.#runs(blockOf(offsetBytes), blockEnd(endBytes))) {
        const start = Math.max(offsetBytes, run.first * BLOCK_BYTES);
        const end = Math.min(endBytes, run.end * BLOCK_BYTES);
        if (run.isHere) {
          append(extents, start, end, true, false);
          continue;
        }
        for (; index < below.length; index += 1) {
          const extent = below[index] as Extent;
          const extentEnd = extent.offsetBytes + extent.lengthBytes;
          const from = Math.max(start, extent.offsetBytes);
          if (from < Math.min(end, extentEnd)) {
            append(extents, from, Math.min(end, extentEnd), extent.allocated, extent.zero);
          }
          if (extentEnd > end) break;
        }
      }
      return extents;
    });
  }

  protected override doResize(): Promise<void> {
    throw new RaidError('NOT_SUPPORTED', `${this.name} has the size of what it lies over`, {
      device: this.name,
    });
  }

  protected override async doClose(): Promise<void> {
    while (this.#exclusive !== null) await this.#exclusive;
    await this.#inFlight.whenIdle();
    const isDurable = this.#isDeleted || this.#dirtyPages.size === 0;
    const flushing = await Promise.allSettled(isDurable ? [] : [this.#sync()]);
    const closing = await Promise.allSettled([this.#store.close(), this.#below.close()]);
    throwFirst([...flushing, ...closing]);
  }

  async #run<T>(work: () => Promise<T>): Promise<T> {
    while (this.#exclusive !== null) await this.#exclusive;
    return await this.#inFlight.run(work);
  }

  /**
   * Writes [offsetBytes, endBytes) with `put`, which also gets what its first and its last block need from below to
   * be whole; then these blocks are here.
   */
  async #fill(
    offsetBytes: number,
    endBytes: number,
    put: (before: Uint8Array, after: Uint8Array) => Promise<void>,
  ): Promise<void> {
    const first = blockOf(offsetBytes);
    const end = blockEnd(endBytes);
    // A block that is here stays here, and nobody brings anything up for it: no need to wait for each other.
    if (this.#isAll(first, end)) return await put(nothing, nothing);
    await this.#alone(first, end, async () => {
      const lastEndBytes = Math.min(end * BLOCK_BYTES, this.limits.sizeBytes);
      const [before, after] = await allOf([
        this.#isHere(first) ? nothing : this.#bringUp(first * BLOCK_BYTES, offsetBytes),
        this.#isHere(end - 1) ? nothing : this.#bringUp(endBytes, lastEndBytes),
      ]);
      await put(before ?? nothing, after ?? nothing);
      this.#mark(first, end);
    });
  }

  async #alone(first: number, end: number, work: () => Promise<void>): Promise<void> {
    for (;;) {
      const other = [...this.#fillings].find((filling) => filling.first < end && first < filling.end);
      if (other === undefined) break;
      await other.done;
    }
    let finish: () => void = () => undefined;
    const done = new Promise<void>((resolve) => {
      finish = resolve;
    });
    const filling = { first, end, done };
    this.#fillings.add(filling);
    try {
      await work();
    } finally {
      this.#fillings.delete(filling);
      finish();
    }
  }

  async #bringUp(offsetBytes: number, endBytes: number): Promise<Uint8Array> {
    if (offsetBytes === endBytes) return nothing;
    const bytes = new Uint8Array(endBytes - offsetBytes);
    try {
      await this.#below.read(offsetBytes, bytes);
    } catch (cause) {
      if (!(cause instanceof RaidError) || cause.reaction !== 'reconstruct') throw cause;
      // To whoever writes, an unreadable neighbour is a write that was not taken.
      throw new RaidError(
        'WRITE_FAILED',
        `${this.name}: what shares a block of ${BLOCK_BYTES} bytes with the write cannot be read: ${cause.message}`,
        { device: this.name, offsetBytes, lengthBytes: bytes.byteLength, cause },
      );
    }
    return bytes;
  }

  /** One at a time: a second one that overtook the first would find its bits clean, and not yet durable. */
  #sync(): Promise<void> {
    if (this.#flushNext !== null) return this.#flushNext;
    if (this.#flushRunning === null) return this.#startSync();
    this.#flushNext = this.#flushRunning.then(
      () => this.#startSync(),
      () => this.#startSync(),
    );
    return this.#flushNext;
  }

  #startSync(): Promise<void> {
    this.#flushNext = null;
    this.#flushRunning = this.#commit().finally(() => {
      this.#flushRunning = null;
    });
    return this.#flushRunning;
  }

  async #commit(): Promise<void> {
    if (this.#flushFailure !== null) throw this.#flushFailure;
    const pages = [...this.#dirtyPages].sort((a, b) => a - b);
    this.#dirtyPages.clear();
    // As they are now: a bit that is set from here on has its data behind the flush that follows.
    const copies = consecutive(pages).map(({ first, end }) => ({
      offsetBytes: HEADER_BYTES + first * PAGE_BYTES,
      bytes: this.#bits.slice(first * PAGE_BYTES, end * PAGE_BYTES),
    }));
    try {
      await this.#store.flush();
      if (copies.length === 0) return;
      await allOf(copies.map(({ offsetBytes, bytes }) => this.#store.write(offsetBytes, bytes)));
      await this.#store.flush();
    } catch (cause) {
      if (!(cause instanceof RaidError) || cause.code !== 'NO_SPACE') throw this.#failFlush(cause);
      // The data is durable, and the bits are here: nothing is lost but time.
      for (const page of pages) this.#dirtyPages.add(page);
      throw new RaidError(
        'FLUSH_FAILED',
        `${this.name}: what was written since the last flush is not durable yet: ${cause.message}; make room, and flush again`,
        { device: this.name, cause },
      );
    }
  }

  async #revert(): Promise<void> {
    if (this.#flushFailure !== null) throw this.#flushFailure;
    try {
      await this.#store.resize(HEADER_BYTES);
      this.#bits.fill(0);
      this.#dirtyPages.clear();
      await this.#store.resize(overlayBytesFor(this.limits.sizeBytes));
      await this.#store.flush();
    } catch (cause) {
      throw this.#failFlush(cause);
    }
  }

  #failFlush(cause: unknown): unknown {
    if (!(cause instanceof RaidError)) return cause;
    this.#flushFailure = new RaidError(
      'FLUSH_FAILED',
      `${this.name}: what was written since the last flush may be lost: ${cause.message}`,
      { device: this.name, cause },
    );
    return this.#flushFailure;
  }

  *#runs(first: number, end: number): Generator<Run> {
    for (let start = first; start < end; ) {
      const isHere = this.#isHere(start);
      const stop = this.#runEnd(start, end, isHere);
      yield { first: start, end: stop, isHere };
      start = stop;
    }
  }

  #runEnd(first: number, end: number, isHere: boolean): number {
    const eight = isHere ? 0xff : 0;
    let block = first;
    while (block < end && this.#isHere(block) === isHere) {
      // No shifts: block numbers have more than 32 bits.
      if (block % 8 === 0 && this.#bits[block / 8] === eight) block += 8;
      else block += 1;
    }
    return Math.min(block, end);
  }

  #isAll(first: number, end: number): boolean {
    return this.#isHere(first) && this.#runEnd(first, end, true) === end;
  }

  #isHere(block: number): boolean {
    return ((this.#bits[Math.floor(block / 8)] ?? 0) & (1 << (block % 8))) !== 0;
  }

  #mark(first: number, end: number): void {
    for (let block = first; block < end; block += 1) {
      const at = Math.floor(block / 8);
      this.#bits[at] = (this.#bits[at] ?? 0) | (1 << (block % 8));
    }
    const lastPage = pageOf(end - 1);
    for (let page = pageOf(first); page <= lastPage; page += 1) this.#dirtyPages.add(page);
  }
}

const nothing = new Uint8Array(0);

function blockOf(offsetBytes: number): number {
  return Math.floor(offsetBytes / BLOCK_BYTES);
}

function blockEnd(endBytes: number): number {
  return Math.ceil(endBytes / BLOCK_BYTES);
}

/** Of the bitmap. */
function pageOf(block: number): number {
  return Math.floor(block / (8 * PAGE_BYTES));
}

function bitmapBytesFor(sizeBytes: number): number {
  return roundUp(Math.ceil(blockEnd(sizeBytes) / 8), PAGE_BYTES);
}

function dataBytesFor(sizeBytes: number): number {
  return HEADER_BYTES + bitmapBytesFor(sizeBytes);
}

/** The length of the file over a device of so many bytes. */
export function overlayBytesFor(sizeBytes: number): number {
  return dataBytesFor(sizeBytes) + roundUp(sizeBytes, BLOCK_BYTES);
}

function refuseMisfit(below: Device, storeBlockBytes: number, { origin = '' }: OverlayOptions): void {
  const { blockBytes } = below.limits;
  if (BLOCK_BYTES % blockBytes !== 0 || blockBytes % storeBlockBytes !== 0) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${below.name} has blocks of ${blockBytes} bytes, which do not fit into those of an overlay (${BLOCK_BYTES})`,
      { device: below.name },
    );
  }
  if (Buffer.byteLength(origin) > ORIGIN_MAX) {
    throw new RaidError('BAD_ARGUMENT', `the origin of an overlay has at most ${ORIGIN_MAX} bytes`);
  }
}

async function openStore(path: string, lengthBytes: number, create: boolean): Promise<FileDevice> {
  const isThere = await fs.promises.stat(path).then(
    () => true,
    (cause) => {
      if (errnoName(cause) === 'ENOENT') return false;
      throw errorFromErrno(cause, 'open', { device: path });
    },
  );
  if (!isThere && create) return await FileDevice.create(path, lengthBytes);
  const store = await FileDevice.open(path);
  try {
    // Made by a `create` that a crash cut short.
    if (create && store.limits.sizeBytes === 0) await store.resize(lengthBytes);
    return store;
  } catch (cause) {
    await store.close();
    throw cause;
  }
}

/**
 * What the file of an overlay takes on its disk; null where there is no file, or another one. The beginning of an overlay over a device of
 * this size, which a crash left without a byte, is one: `create` takes it for its own.
 */
export async function overlayTakes(path: string, belowBytes: number): Promise<number | null> {
  const found = await fs.promises.stat(path).catch((cause: unknown) => {
    if (errnoName(cause) === 'ENOENT') return null;
    throw errorFromErrno(cause, 'open', { device: path });
  });
  if (found?.isFile() !== true) return null;
  await using store = await FileDevice.open(path, { readOnly: true });
  const header = await readHeader(store);
  const isOne =
    store.limits.sizeBytes === 0 ||
    isBlank(store, header, belowBytes) ||
    header.toString('latin1', 0, OVERLAY_MAGIC.length) === OVERLAY_MAGIC;
  return isOne ? found.blocks * SECTOR_BYTES : null;
}

async function readHeader(store: Device): Promise<Buffer> {
  const header = Buffer.alloc(HEADER_BYTES);
  const lengthBytes = Math.min(HEADER_BYTES, store.limits.sizeBytes);
  if (lengthBytes > 0) await store.read(0, header.subarray(0, lengthBytes));
  return header;
}

/** New, or a crash came before the header was durable: then nothing else was written either. */
function isBlank(store: Device, header: Buffer, sizeBytes: number): boolean {
  return store.limits.sizeBytes === overlayBytesFor(sizeBytes) && header.every((byte) => byte === 0);
}

function headerFor(sizeBytes: number, origin: Uint8Array): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write(OVERLAY_MAGIC, 0, 'latin1');
  header.writeUInt32LE(VERSION, 16);
  header.writeUInt32LE(BLOCK_BYTES, 20);
  header.writeBigUInt64LE(BigInt(sizeBytes), 24);
  header.writeBigUInt64LE(BigInt(dataBytesFor(sizeBytes)), 32);
  header.writeUInt32LE(origin.byteLength, 40);
  header.set(origin, ORIGIN_AT);
  header.writeUInt32LE(crc32(header), CRC_AT);
  return header;
}

function checkHeader(path: string, header: Buffer, below: Device, origin: Buffer | null): void {
  const place = { device: path };
  if (header.toString('latin1', 0, OVERLAY_MAGIC.length) !== OVERLAY_MAGIC) {
    throw new RaidError('BAD_MAGIC', `${path} is not an overlay of raidsim; nothing was changed`, place);
  }
  const version = header.readUInt32LE(16);
  if (version !== VERSION) {
    throw new RaidError(
      'UNSUPPORTED_FEATURE',
      `${path} is an overlay of version ${version}, and this raidsim knows version ${VERSION}`,
      place,
    );
  }
  const plain = Buffer.from(header);
  plain.writeUInt32LE(0, CRC_AT);
  if (crc32(plain) !== header.readUInt32LE(CRC_AT)) {
    throw new RaidError(
      'SUPERBLOCK_BROKEN',
      `${path}: the header of the overlay has a wrong checksum`,
      place,
    );
  }
  const { sizeBytes } = below.limits;
  const itsBytes = header.readBigUInt64LE(24);
  if (itsBytes !== BigInt(sizeBytes)) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${path} lies over a device of ${itsBytes} bytes, and ${below.name} has ${sizeBytes}`,
      place,
    );
  }
  const blockBytes = header.readUInt32LE(20);
  const isPlaced = header.readBigUInt64LE(32) === BigInt(dataBytesFor(sizeBytes));
  const originBytes = header.readUInt32LE(40);
  if (blockBytes !== BLOCK_BYTES || !isPlaced || originBytes > ORIGIN_MAX) {
    throw new RaidError('SUPERBLOCK_BROKEN', `${path}: the header of the overlay contradicts itself`, place);
  }
  const itsOrigin = header.subarray(ORIGIN_AT, ORIGIN_AT + originBytes);
  if (origin !== null && !itsOrigin.equals(origin)) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${path} belongs to ${JSON.stringify(itsOrigin.toString())}, not to ${JSON.stringify(origin.toString())}`,
      place,
    );
  }
}

/** Between its two steps `discardAll` leaves the header alone. Any other length is a copy that lost something. */
async function mendSize(store: Device, lengthBytes: number): Promise<void> {
  const { sizeBytes } = store.limits;
  if (sizeBytes === lengthBytes) return;
  if (sizeBytes !== HEADER_BYTES) {
    throw new RaidError(
      'SUPERBLOCK_BROKEN',
      `${store.name} has ${sizeBytes} bytes, and the overlay in it has ${lengthBytes}: it was cut off or is incomplete`,
      { device: store.name },
    );
  }
  await store.resize(lengthBytes);
}

function append(extents: Extent[], start: number, end: number, allocated: boolean, zero: boolean): void {
  const last = extents.at(-1);
  if (last !== undefined && last.allocated === allocated && last.zero === zero) {
    extents[extents.length - 1] = { ...last, lengthBytes: end - last.offsetBytes };
  } else {
    extents.push({ offsetBytes: start, lengthBytes: end - start, allocated, zero });
  }
}

/** Sorted numbers as ranges. */
function consecutive(
  numbers: readonly number[],
): readonly { readonly first: number; readonly end: number }[] {
  const ranges: { first: number; end: number }[] = [];
  for (const number of numbers) {
    const last = ranges.at(-1);
    if (last !== undefined && last.end === number) last.end += 1;
    else ranges.push({ first: number, end: number + 1 });
  }
  return ranges;
}

/** Settles when all have: buffers in flight are not the caller's yet, whatever failed first. */
async function allOf<T>(promises: readonly (T | Promise<T>)[]): Promise<T[]> {
  const outcomes = await Promise.allSettled(promises);
  throwFirst(outcomes);
  return outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []));
}

function throwFirst(outcomes: readonly PromiseSettledResult<unknown>[]): void {
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
}
