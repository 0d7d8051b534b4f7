/**
 * A disk that is not there: content, a volatile cache, and everything that goes wrong with disks.
 *
 *   write acknowledged ──▶ cache (`cached`, in order) ──▶ flush ──▶ platter
 *                          reads see it                  survives a power cut
 *
 * At a power cut the platter stays, and of every write that is in the cache or under way any sectors may get there too,
 * each by itself: that is any subset of the writes, in any order, each torn at 512 bytes, since in the end a sector holds
 * one of the writes that covered it, or what was on the platter. A write with `fua` that was acknowledged is on the
 * platter. When a process is killed the cache stays, and only writes under way are torn.
 *
 * A flush that fails does what Linux does with the page cache (fsyncgate): some sectors reached the platter and some did
 * not, all are forgotten as dirty, reads go on seeing them until the power goes, and a flush by whoever opens the disk
 * next succeeds without them.
 *
 * A `Disk` is the hardware and outlives processes; `open` gives a process its `DiskDevice`. A request waits for a
 * latency drawn from the seed and happens, all of it, at the end of that time: so requests under way overtake each
 * other, and a buffer that is changed too early is seen to be.
 *
 * Content is kept by pages of 4 KiB, and only where something was written. `clone` shares them until one side writes:
 * it costs two copies of a table of pointers, a microsecond or two for a disk of a few MiB.
 *
 * The log of the clock gets every request when it happens, and every fault.
 */
import { gather } from '../device/buffers.ts';
import {
  type BlockingCalls,
  Device,
  type DirectAccess,
  type Extent,
  type Limits,
  totalBytes,
  type ZeroOptions,
} from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import { type ErrorCode, RaidError } from '../errors.ts';
import { KIB, SECTOR_BYTES } from '../units.ts';
import type { Clock, Process } from './clock.ts';

const PAGE_BYTES = 4 * KIB;

/** To copy, since to fill memory that is shared goes byte by byte. */
const zeros = new Uint8Array(PAGE_BYTES);

/** Most writes and pages are this long, or less. */
const PIECE_BYTES = 64 * KIB;

/** What new bytes are cut off: a buffer of its own costs more than what a page of it holds. */
let piece = new Uint8Array(PIECE_BYTES);
let pieceUsed = 0;

/** Zeros, and nobody else's. */
function newBytes(lengthBytes: number): Uint8Array {
  if (lengthBytes > PIECE_BYTES / 4) return new Uint8Array(lengthBytes);
  if (pieceUsed + lengthBytes > PIECE_BYTES) {
    piece = new Uint8Array(PIECE_BYTES);
    pieceUsed = 0;
  }
  const start = pieceUsed;
  pieceUsed += lengthBytes;
  return piece.subarray(start, pieceUsed);
}

/** `copy` is as long as all of them together. */
function copyInto(copy: Uint8Array, sources: readonly Uint8Array[]): Uint8Array {
  const [only] = sources;
  if (sources.length === 1 && only?.byteLength === copy.byteLength) copy.set(only);
  else gather(sources, 0, copy);
  return copy;
}

/** Bytes by page, shared between clones until written. */
class Image {
  readonly #pages: (Uint8Array | undefined)[];
  /** 1 where nobody else has the page. */
  #owned: Uint8Array;

  constructor(pages: (Uint8Array | undefined)[]) {
    this.#pages = pages;
    this.#owned = new Uint8Array(pages.length);
  }

  clone(): Image {
    this.#owned.fill(0);
    return new Image(this.#pages.slice());
  }

  /** From now on it holds what the other one does. Pages that it has for itself it keeps, with other bytes in them. */
  becomes(other: Image): void {
    for (let index = 0; index < other.#pages.length; index += 1) {
      const page = other.#pages[index];
      const own = this.#pages[index];
      if (own === page) continue;
      if (own !== undefined && page !== undefined && this.#owned[index] === 1) {
        own.set(page);
        continue;
      }
      this.#pages[index] = page;
      this.#owned[index] = 0;
      other.#owned[index] = 0;
    }
  }

  /** By page; undefined is zeros. Not to be written to. */
  get pages(): readonly (Uint8Array | undefined)[] {
    return this.#pages;
  }

  /** With zeros. */
  extend(pageCount: number): void {
    while (this.#pages.length < pageCount) this.#pages.push(undefined);
    const owned = new Uint8Array(pageCount);
    owned.set(this.#owned);
    this.#owned = owned;
  }

  read(offsetBytes: number, target: Uint8Array): void {
    for (let done = 0; done < target.byteLength; ) {
      const at = (offsetBytes + done) % PAGE_BYTES;
      const count = Math.min(PAGE_BYTES - at, target.byteLength - done);
      const page = this.#pages[(offsetBytes + done - at) / PAGE_BYTES];
      const from = page ?? zeros;
      target.set(count === PAGE_BYTES ? from : from.subarray(at, at + count), done);
      done += count;
    }
  }

  write(offsetBytes: number, source: Uint8Array): void {
    for (let done = 0; done < source.byteLength; ) {
      const at = (offsetBytes + done) % PAGE_BYTES;
      const count = Math.min(PAGE_BYTES - at, source.byteLength - done);
      const index = (offsetBytes + done - at) / PAGE_BYTES;
      const part = count === source.byteLength ? source : source.subarray(done, done + count);
      this.#writable(index, count === PAGE_BYTES).set(part, at);
      done += count;
    }
  }

  #writable(index: number, isWhole: boolean): Uint8Array {
    const page = this.#pages[index];
    if (page !== undefined && this.#owned[index] === 1) return page;
    const own = newBytes(PAGE_BYTES);
    if (page !== undefined && !isWhole) own.set(page);
    this.#pages[index] = own;
    this.#owned[index] = 1;
    return own;
  }
}

/** A write that a power cut may undo, wholly or in part. */
export interface CachedWrite {
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
  /** Acknowledged, and on the platter: always kept. It stands here for its place in the order. */
  readonly isDurable: boolean;
}

/** Whether a sector of a write in the cache survives; asked in the order of the writes, of later ones too. */
export type Keep = (write: CachedWrite, sectorInWrite: number) => boolean;

/** How much of a write that fails happens all the same; `late`: all of it, after the failure was told. */
export type Applied = 'none' | 'prefix' | 'all' | 'late';

/** What happens to one request, the next that it fits. */
export type DiskFault =
  | { readonly on: 'read'; readonly kind: 'error'; readonly code: ErrorCode }
  | { readonly on: 'write'; readonly kind: 'error'; readonly code: ErrorCode; readonly applied: Applied }
  /** Acknowledged, and never done. */
  | { readonly on: 'write'; readonly kind: 'lost' }
  /** Acknowledged, and done so many bytes further on. */
  | { readonly on: 'write'; readonly kind: 'misdirected'; readonly byBytes: number }
  | { readonly on: 'flush'; readonly kind: 'error'; readonly code: ErrorCode }
  /** Acknowledged, and never done: everything stays in the cache. */
  | { readonly on: 'flush'; readonly kind: 'lost' };

export interface Zone {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** For how long a fault is met, and how often at most. */
export interface Span {
  readonly fromMs: number;
  readonly untilMs: number;
  readonly times: number;
}

const ONCE: Span = { fromMs: 0, untilMs: Number.POSITIVE_INFINITY, times: 1 };

interface Armed {
  readonly fault: DiskFault;
  /** Requests that share a byte with it; null: anywhere. */
  readonly zone: Zone | null;
  readonly onHit: (places: readonly Zone[]) => void;
  readonly fromMs: number;
  readonly untilMs: number;
  timesLeft: number;
}

/** One that has met a request of this kind. */
type Met<On extends DiskFault['on']> = Armed & { readonly fault: Extract<DiskFault, { on: On }> };

interface Flight {
  readonly device: DiskDevice;
  readonly offsetBytes: number;
  readonly sources: readonly Uint8Array[];
  readonly lengthBytes: number;
}

/** Milliseconds, on average; each request takes 0.5 to 1.5 of it, and one in 32 eight times as long. */
export interface Timing {
  readonly readMs: number;
  readonly writeMs: number;
  readonly flushMs: number;
}

const TIMING: Timing = { readMs: 0.1, writeMs: 0.1, flushMs: 1 };

/** So many writes in the cache, and the disk writes the older half to the platter by itself, as disks do. */
const CACHED_MOST = 512;

/** What the log says happened. */
const events = { read: 1, write: 2, fua: 3, flush: 4, discard: 5, fault: 6, cut: 7, kill: 8 } as const;

export interface DiskOptions {
  readonly clock: Clock;
  readonly name: string;
  readonly sizeBytes: number;
  readonly timing?: Timing;
  /** In the log, to tell disks apart. */
  readonly number?: number;
}

export class Disk {
  readonly name: string;
  readonly number: number;
  readonly clock: Clock;
  readonly timing: Timing;
  /** Every request fails with MEMBER_GONE. */
  isGone = false;
  /** All latencies, times this. */
  slowness = 1;
  /** No request ends before this moment. */
  hangsUntilMs = 0;
  /** Every request that has arrived has ended by then. */
  busyUntilMs = 0;
  /** Every write fails from now on. */
  refusesWrites: ErrorCode | null = null;
  #sizeBytes: number;
  readonly #seen: Image;
  readonly #platter: Image;
  readonly #cached: CachedWrite[] = [];
  /** Where bytes of writes in the cache lie, while there is room: when the cache is empty it begins anew. */
  #piece: Uint8Array | null = null;
  #pieceUsed = 0;
  readonly #flights = new Set<Flight>();
  /** Sectors that cannot be read; whether a write heals them. */
  readonly #latent = new Map<number, boolean>();
  readonly #armed: Armed[] = [];

  constructor(options: DiskOptions, from?: { seen: Image; platter: Image; cached: readonly CachedWrite[] }) {
    this.clock = options.clock;
    this.name = options.name;
    this.number = options.number ?? 0;
    this.#sizeBytes = options.sizeBytes;
    this.timing = options.timing ?? TIMING;
    const pageCount = Math.ceil(options.sizeBytes / PAGE_BYTES);
    this.#seen = from?.seen ?? new Image(new Array<Uint8Array | undefined>(pageCount).fill(undefined));
    this.#platter = from?.platter ?? new Image(new Array<Uint8Array | undefined>(pageCount).fill(undefined));
    if (from !== undefined) this.#cached.push(...from.cached);
  }

  /** The same content and cache on another clock, or this one; nothing of what is armed, and nothing under way. */
  clone(clock: Clock = this.clock): Disk {
    const { name, number, sizeBytes, timing } = this;
    const copy = new Disk(
      { clock, name, number, sizeBytes, timing },
      { seen: this.#seen.clone(), platter: this.#platter.clone(), cached: this.#cached },
    );
    for (const [sector, isHealed] of this.#latent) copy.#latent.set(sector, isHealed);
    // The bytes in its cache lie there.
    this.#piece = null;
    return copy;
  }

  /** `isDirect`: for lanes, and whoever else does not go by the device's own requests. */
  open(process: Process, isDirect = false): DiskDevice {
    return new DiskDevice(this, process, isDirect);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** As a LUN grows at its array: there is more of it from now on, for whoever looks. */
  extend(sizeBytes: number): void {
    const pageCount = Math.ceil(sizeBytes / PAGE_BYTES);
    this.#sizeBytes = sizeBytes;
    this.#seen.extend(pageCount);
    this.#platter.extend(pageCount);
  }

  // Content, past all requests and faults.

  /** What a read would see. */
  peek(offsetBytes: number, lengthBytes: number): Uint8Array {
    const bytes = new Uint8Array(lengthBytes);
    this.#seen.read(offsetBytes, bytes);
    return bytes;
  }

  /** Changes what is read and what is on the platter, as rot does. */
  poke(offsetBytes: number, bytes: Uint8Array): void {
    this.#seen.write(offsetBytes, bytes);
    this.#platter.write(offsetBytes, bytes);
  }

  /** What survives a power cut for certain, by pages of 4 KiB; undefined is zeros. Not to be written to. */
  get platterPages(): readonly (Uint8Array | undefined)[] {
    return this.#platter.pages;
  }

  #underWay(): readonly CachedWrite[] {
    return [...this.#flights].map(({ offsetBytes, sources, lengthBytes }) => ({
      offsetBytes,
      bytes: copyInto(newBytes(lengthBytes), sources),
      isDurable: false,
    }));
  }

  // Catastrophes. The processes that had the disk open must be dead.

  powerCut(keep: Keep): void {
    this.clock.note(events.cut, this.number, this.#cached.length);
    const writes = [...this.#cached, ...this.#underWay()];
    this.#forgetFlights();
    for (const write of writes) {
      if (write.isDurable) this.#platter.write(write.offsetBytes, write.bytes);
      else this.#writeSome(this.#platter, write, keep);
    }
    this.#emptyCache();
    this.#seen.becomes(this.#platter);
  }

  /** The process that had it open is dead; what it had under way may have happened in part. */
  processKilled(keep: Keep): void {
    this.clock.note(events.kill, this.number, this.#flights.size);
    const under = this.#underWay();
    this.#forgetFlights();
    for (const write of under) {
      for (let at = 0; at < write.bytes.byteLength; at += SECTOR_BYTES) {
        if (!keep(write, at / SECTOR_BYTES)) continue;
        this.#accept(write.offsetBytes + at, write.bytes.slice(at, at + SECTOR_BYTES), false);
      }
    }
  }

  // Faults.

  /** Sectors that cannot be read, until they are written (or for ever). */
  addLatent(sector: number, count: number, isHealedByWrite = true): void {
    for (let each = sector; each < sector + count; each += 1) this.#latent.set(each, isHealedByWrite);
  }

  get latentSectors(): Iterable<number> {
    return this.#latent.keys();
  }

  /**
   * The fault meets the next request that fits, and only that, or those of a span; `onHit` is called when it has, with the
   * places whose content is not what it should be. What is misdirected stays inside the zone.
   */
  arm(
    fault: DiskFault,
    zone: Zone | null = null,
    onHit: (places: readonly Zone[]) => void = () => undefined,
    { fromMs, untilMs, times }: Span = ONCE,
  ): void {
    this.#armed.push({ fault, zone, onHit, fromMs, untilMs, timesLeft: times });
  }

  /** A disk that works from now on. What is spoiled stays so, but everything can be read. */
  heal(): void {
    this.isGone = false;
    this.slowness = 1;
    this.hangsUntilMs = 0;
    this.refusesWrites = null;
    this.#latent.clear();
    this.#armed.length = 0;
  }

  // For its devices.

  /** When a request that arrives now has been done. */
  latencyOf(op: 'read' | 'write' | 'flush'): number {
    const { readMs, writeMs, flushMs } = this.timing;
    const mean = op === 'read' ? readMs : op === 'write' ? writeMs : flushMs;
    const lot = this.clock.random(2 ** 16);
    const ms = mean * (0.5 + lot / 2 ** 16) * (lot % 32 === 0 ? 8 : 1) * this.slowness;
    const untilMs = Math.max(this.clock.nowMs + ms, this.hangsUntilMs);
    this.busyUntilMs = Math.max(this.busyUntilMs, untilMs);
    return untilMs - this.clock.nowMs;
  }

  read(offsetBytes: number, targets: readonly Uint8Array[], lengthBytes: number): void {
    this.clock.note(events.read + this.number * 16, offsetBytes, lengthBytes);
    if (this.isGone) throw this.#error('MEMBER_GONE', 'is gone', offsetBytes, lengthBytes);
    const hit = this.#met('read', offsetBytes, lengthBytes);
    if (hit !== null) {
      hit.onHit([{ offsetBytes, lengthBytes }]);
      throw this.#error(hit.fault.code, 'cannot be read', offsetBytes, lengthBytes);
    }
    if (this.#latent.size > 0) {
      const end = (offsetBytes + lengthBytes) / SECTOR_BYTES;
      for (let sector = offsetBytes / SECTOR_BYTES; sector < end; sector += 1) {
        if (!this.#latent.has(sector)) continue;
        throw this.#error('MEDIUM_ERROR', `has a bad sector ${sector}`, offsetBytes, lengthBytes);
      }
    }
    let at = offsetBytes;
    for (const target of targets) {
      this.#seen.read(at, target);
      at += target.byteLength;
    }
  }

  begin(flight: Flight): void {
    this.#flights.add(flight);
  }

  /** It does not happen. */
  forget(flight: Flight): void {
    this.#flights.delete(flight);
  }

  write(flight: Flight, fua: boolean): void {
    const { offsetBytes, sources, lengthBytes } = flight;
    this.#flights.delete(flight);
    this.clock.note((fua ? events.fua : events.write) + this.number * 16, offsetBytes, lengthBytes);
    const place = [offsetBytes, lengthBytes] as const;
    if (this.isGone) throw this.#error('MEMBER_GONE', 'is gone', ...place);
    if (this.refusesWrites !== null) throw this.#error(this.refusesWrites, 'takes no writes', ...place);
    const hit = this.#met('write', offsetBytes, lengthBytes);
    const bytes = copyInto(this.#newBytes(lengthBytes), sources);
    if (hit === null) {
      this.#accept(offsetBytes, bytes, fua);
      return;
    }
    const { fault, zone, onHit } = hit;
    const intended = { offsetBytes, lengthBytes };
    switch (fault.kind) {
      case 'lost':
        onHit([intended]);
        return;
      case 'misdirected': {
        const { offsetBytes: start, lengthBytes: room } = zone ?? {
          offsetBytes: 0,
          lengthBytes: this.sizeBytes,
        };
        const last = Math.max(start, start + room - lengthBytes);
        const elsewhere = Math.max(start, Math.min(last, offsetBytes + fault.byBytes));
        onHit([intended, { offsetBytes: elsewhere, lengthBytes }]);
        this.#accept(elsewhere, bytes, fua);
        return;
      }
      case 'error': {
        onHit([intended]);
        if (fault.applied === 'all') this.#accept(offsetBytes, bytes, false);
        if (fault.applied === 'prefix' && lengthBytes > SECTOR_BYTES) {
          const sectors = 1 + this.clock.random(lengthBytes / SECTOR_BYTES - 1);
          this.#accept(offsetBytes, bytes.slice(0, sectors * SECTOR_BYTES), false);
        }
        if (fault.applied === 'late') {
          // By then the cache may have been emptied.
          const late = bytes.slice();
          flight.device.lands(() => this.#accept(offsetBytes, late, false));
        }
        throw this.#error(fault.code, 'does not take a write', ...place);
      }
    }
  }

  flush(): void {
    this.clock.note(events.flush + this.number * 16, this.#cached.length);
    if (this.isGone) throw this.#error('MEMBER_GONE', 'is gone');
    const hit = this.#met('flush', 0, 0);
    hit?.onHit([]);
    if (hit?.fault.kind === 'lost') return;
    if (hit?.fault.kind === 'error') {
      for (const write of this.#cached) {
        if (write.isDurable) this.#platter.write(write.offsetBytes, write.bytes);
        else this.#writeSome(this.#platter, write, () => this.clock.random(2) === 0);
      }
      this.#emptyCache();
      throw this.#error(hit.fault.code, 'does not flush');
    }
    for (const write of this.#cached) this.#platter.write(write.offsetBytes, write.bytes);
    this.#emptyCache();
  }

  /** Reads as it was or as zeros: by seed. */
  discard(offsetBytes: number, lengthBytes: number): void {
    this.clock.note(events.discard + this.number * 16, offsetBytes, lengthBytes);
    if (this.isGone) throw this.#error('MEMBER_GONE', 'is gone', offsetBytes, lengthBytes);
    if (this.clock.random(2) === 0) this.#accept(offsetBytes, new Uint8Array(lengthBytes), false);
  }

  extents(offsetBytes: number, lengthBytes: number): readonly Extent[] {
    const end = offsetBytes + lengthBytes;
    const extents: Extent[] = [];
    for (let at = offsetBytes; at < end; ) {
      const next = Math.min(end, at - (at % PAGE_BYTES) + PAGE_BYTES);
      const allocated = this.#seen.pages[Math.floor(at / PAGE_BYTES)] !== undefined;
      const last = extents.at(-1);
      if (last?.allocated === allocated) {
        extents[extents.length - 1] = { ...last, lengthBytes: next - last.offsetBytes };
      } else {
        extents.push({ offsetBytes: at, lengthBytes: next - at, allocated, zero: !allocated });
      }
      at = next;
    }
    return extents;
  }

  #accept(offsetBytes: number, bytes: Uint8Array, isDurable: boolean): void {
    this.#seen.write(offsetBytes, bytes);
    this.#cached.push({ offsetBytes, bytes, isDurable });
    if (this.#latent.size > 0) this.healSectors(offsetBytes, bytes.byteLength);
    if (this.#cached.length < CACHED_MOST) return;
    for (const write of this.#cached.splice(0, CACHED_MOST / 2)) {
      this.#platter.write(write.offsetBytes, write.bytes);
    }
  }

  #emptyCache(): void {
    this.#cached.length = 0;
    this.#pieceUsed = 0;
  }

  /** For a write in the cache; not zeros. Most of what disks are given is flushed soon: a piece serves again and again. */
  #newBytes(lengthBytes: number): Uint8Array {
    if (lengthBytes > PIECE_BYTES / 4) return new Uint8Array(lengthBytes);
    if (this.#piece === null || this.#pieceUsed + lengthBytes > PIECE_BYTES) {
      this.#piece = new Uint8Array(PIECE_BYTES);
      this.#pieceUsed = 0;
    }
    const start = this.#pieceUsed;
    this.#pieceUsed += lengthBytes;
    return this.#piece.subarray(start, this.#pieceUsed);
  }

  /** Sectors that a write heals can be read again, as if there had been one. */
  healSectors(offsetBytes: number, lengthBytes: number): void {
    const end = (offsetBytes + lengthBytes) / SECTOR_BYTES;
    for (let sector = offsetBytes / SECTOR_BYTES; sector < end; sector += 1) {
      if (this.#latent.get(sector) === true) this.#latent.delete(sector);
    }
  }

  #writeSome(image: Image, write: CachedWrite, keep: Keep): void {
    const { offsetBytes, bytes } = write;
    for (let at = 0; at < bytes.byteLength; at += SECTOR_BYTES) {
      if (!keep(write, at / SECTOR_BYTES)) continue;
      image.write(offsetBytes + at, bytes.subarray(at, at + SECTOR_BYTES));
    }
  }

  #forgetFlights(): void {
    this.#flights.clear();
  }

  #met<On extends DiskFault['on']>(on: On, offsetBytes: number, lengthBytes: number): Met<On> | null {
    if (this.#armed.length === 0) return null;
    const index = this.#armed.findIndex(
      ({ fault, zone, fromMs, untilMs }) =>
        fault.on === on &&
        fromMs <= this.clock.nowMs &&
        this.clock.nowMs < untilMs &&
        (zone === null ||
          (zone.offsetBytes < offsetBytes + lengthBytes &&
            offsetBytes < zone.offsetBytes + zone.lengthBytes)),
    );
    if (index < 0) return null;
    this.clock.note(events.fault + this.number * 16, offsetBytes, lengthBytes);
    const hit = this.#armed[index] as Met<On>;
    hit.timesLeft -= 1;
    if (hit.timesLeft === 0) this.#armed.splice(index, 1);
    return hit;
  }

  #error(code: ErrorCode, what: string, offsetBytes?: number, lengthBytes?: number): RaidError {
    const where = offsetBytes === undefined || lengthBytes === undefined ? {} : { offsetBytes, lengthBytes };
    // Thousands of them, on purpose: nobody reads their stacks.
    const limit = Error.stackTraceLimit;
    Error.stackTraceLimit = 0;
    const error = new RaidError(code, `${this.name} ${what}`, {
      device: this.name,
      ...where,
      injected: true,
    });
    Error.stackTraceLimit = limit;
    return error;
  }
}

/** A disk as a process has it open. */
export class DiskDevice extends Device {
  override readonly name: string;
  readonly disk: Disk;
  #limits: Limits;
  readonly #calls: DiskCalls | null;
  readonly #process: Process;
  readonly #inFlight = new InFlight();
  #flushFailure: RaidError | null = null;

  constructor(disk: Disk, process: Process, isDirect: boolean) {
    super();
    this.disk = disk;
    this.#calls = isDirect ? new DiskCalls(this) : null;
    this.name = disk.name;
    this.#process = process;
    this.#limits = {
      sizeBytes: disk.sizeBytes,
      blockBytes: SECTOR_BYTES,
      preferredBytes: PAGE_BYTES,
      readOnly: false,
    };
  }

  override get limits(): Limits {
    const { sizeBytes } = this.disk;
    if (this.#limits.sizeBytes !== sizeBytes) this.#limits = { ...this.#limits, sizeBytes };
    return this.#limits;
  }

  override get direct(): DirectAccess | null {
    const calls = this.isClosed ? null : this.#calls;
    return calls === null ? null : { kind: 'calls', calls, offsetBytes: 0 };
  }

  /** Something that happens a while after the request it came with was answered; closing waits for it. */
  lands(work: () => void): void {
    void this.#in(20 * this.disk.latencyOf('write'), work);
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const { disk } = this;
    return this.#in(disk.latencyOf('read'), () => disk.read(offsetBytes, targets, totalBytes(targets)));
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    const { disk } = this;
    const flight = { device: this, offsetBytes, sources, lengthBytes: totalBytes(sources) };
    disk.begin(flight);
    const ms = disk.latencyOf('write') + (fua ? disk.latencyOf('flush') : 0);
    return this.#in(ms, () => disk.write(flight, fua));
  }

  protected override doFlush(): Promise<void> {
    return this.#in(this.disk.latencyOf('flush'), () => this.flushNow());
  }

  flushNow(): void {
    if (this.#flushFailure !== null) throw this.#flushFailure;
    try {
      this.disk.flush();
    } catch (error) {
      if (error instanceof RaidError) this.#flushFailure = error;
      throw error;
    }
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#in(this.disk.latencyOf('write'), () => this.disk.discard(offsetBytes, lengthBytes));
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.doWrite(offsetBytes, [new Uint8Array(lengthBytes)], options.fua);
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return Promise.resolve(this.disk.extents(offsetBytes, lengthBytes));
  }

  protected override doResize(): Promise<void> {
    return Promise.reject(
      new RaidError('NOT_SUPPORTED', `the size of ${this.name} is fixed`, { device: this.name }),
    );
  }

  protected override doClose(): Promise<void> {
    return this.#inFlight.whenIdle();
  }

  #in(ms: number, work: () => void): Promise<void> {
    this.#inFlight.begin();
    return new Promise((resolve, reject) => {
      this.disk.clock.after(
        ms,
        () => {
          try {
            work();
            resolve();
          } catch (error) {
            reject(error);
          }
          this.#inFlight.end();
        },
        this.#process,
      );
    });
  }
}

/** The same, in no time; or in time that the caller takes, between `begin` and the call. */
export class DiskCalls implements BlockingCalls {
  readonly #device: DiskDevice;

  constructor(device: DiskDevice) {
    this.#device = device;
  }

  read(offsetBytes: number, target: Uint8Array): void {
    this.#device.disk.read(offsetBytes, [target], target.byteLength);
  }

  write(offsetBytes: number, source: Uint8Array): void {
    this.#device.disk.write(this.#flightOf(offsetBytes, source), false);
  }

  flush(): void {
    this.#device.flushNow();
  }

  /** How long it takes, and what tells the disk that it is under way no more. */
  begin(
    direction: 'read' | 'write',
    offsetBytes: number,
    bytes: Uint8Array,
  ): { ms: number; end: () => void } {
    const { disk } = this.#device;
    const ms = disk.latencyOf(direction);
    if (direction === 'read') return { ms, end: () => undefined };
    const flight = this.#flightOf(offsetBytes, bytes);
    disk.begin(flight);
    return { ms, end: () => disk.forget(flight) };
  }

  #flightOf(offsetBytes: number, source: Uint8Array): Flight {
    return { device: this.#device, offsetBytes, sources: [source], lengthBytes: source.byteLength };
  }
}
