/**
 * Copy-on-write snapshots of any device, taken while it is written to.
 *
 * `SnapshotOrigin` lies over the device and everything goes through it. Whoever writes to the device past it changes snapshots.
 * Nothing here can notice that; who keeps the device may, by witnesses: words that change whenever somebody writes to it
 * who knows nothing of snapshots. They are recorded here (`witness`) and judged when the store is opened (`isAsLeft`).
 *
 *   write ──▶ exposed? ──no──────────────────────────────────────────────▶ origin
 *               │ yes                                                        ▲
 *               └▶ read what is there ▶ slot ▶ record ▶ flush of the store ──┘
 *
 * Small writes are acknowledged when what is there has been read, and share what comes after (held.ts). Large ones, and those that
 * are to be durable at once (`fua`), are acknowledged by the origin.
 *
 * A snapshot is the image at one instant between writes: those under way end, new ones wait, the origin is flushed, and the
 * record of the snapshot is made durable. The flush is what makes the image survive a power cut, since blocks that are never
 * written again are read from the origin itself.
 *
 * A chunk is saved once after the newest snapshot, for all of them; history.ts has the theory. Writes that touch a chunk
 * that is being saved wait for that, and nothing is written past what is held.
 *
 * What cannot be read. A place of the origin that cannot be read can be written, which mends it, and then no snapshot has what was there:
 * the loss is recorded in place of a copy, a whole chunk of it, and reads of the snapshot there fail. A rollback to it has to be
 * asked for with `force`, and leaves there what was written since.
 *
 * A full store. Before a write goes on without its copy, a snapshot is given up, durably: the oldest first, until there is room or
 * none is left. The origin goes on. The snapshot that a rollback restores is never the one, and it needs no room of its own.
 * A store that cannot even record that fails the writes that need it, since the alternative is a snapshot that is silently wrong; but where
 * whoever keeps the origin can make it durable elsewhere that this store is not to be believed (`onLost`), as an array does by an update of
 * superblocks that no witness tells of, all snapshots become invalid, and the origin goes on.
 *
 * Rollback. Every chunk that was written since is written again, as any write is: what newer snapshots need is saved first. It is on record
 * from before the first to after the last write, and whoever opens the store finishes it first. Doing it again changes
 * nothing: the copies it reads from are not touched by it. All of them are read once before anything is written. Until it is
 * finished the origin is refused to everybody, and its copies are kept, whatever else has happened: there is no other way out.
 * Where something else wrote meanwhile, whoever keeps the origin has to ask for it (`force`); and then, as where assembly had
 * to be forced, no snapshot is valid after it, since what they share with the origin may have changed.
 *
 * Change tracking needs nothing more. The list of what has been saved since a snapshot is the list of what was written since,
 * durable before the write; a snapshot that is deleted can leave that behind. It is forgotten, and the answer is `unknown`, where
 * its room is needed. It may name more than has changed: a crash can come between record and write.
 */
import fs from 'node:fs';
import { crc32 } from 'node:zlib';
import { viewsOf } from '../device/buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from '../device/device.ts';
import { FileDevice } from '../device/file.ts';
import { InFlight } from '../device/in-flight.ts';
import { assert, type ErrorCode, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import { KIB, MIB, roundUp } from '../units.ts';
import { INVALID_BECAUSE, SnapshotDevice } from './device.ts';
import {
  CHUNK_NUMBERS,
  type Header,
  hasRoom,
  NONCE_BYTES,
  storeBytesFor,
  UNIT_BYTES,
  UUID_BYTES,
  WITNESS_BYTES_MAX,
} from './format.ts';
import { gapsOf, type HeldChunk, HeldWrites, overlay, type Piece } from './held.ts';
import type { Entry, History, SnapshotRecord } from './history.ts';
import { SnapshotStore } from './store.ts';

export interface SnapshotStoreOptions {
  /** Which device it belongs to, in a way that outlives its path: an array's uuid. */
  readonly origin: string;
  /** What all copies together may take. */
  readonly limitBytes: number;
  /** What is saved at a time; by default 4 KiB, and more where the store would have more than a million of them. */
  readonly chunkBytes?: number;
}

export interface OpenSnapshotOptions extends Pick<SnapshotStoreOptions, 'origin'> {
  /** Makes it durable that whoever opens the store next finds nothing valid in it, though the store itself records nothing more. */
  readonly onLost?: () => Promise<void>;
  /** Whether nobody has written to the origin past the store, going by the last two witnesses. Absent: nobody can have. */
  readonly isAsLeft?: (witnesses: readonly string[]) => boolean;
  /** What the origin holds may have changed without a write: no snapshot stays valid. */
  readonly isForced?: boolean;
  /** Before the first write to the origin, and before the store believes that nobody else has written: who keeps watch begins. */
  readonly onTrusted?: (origin: SnapshotOrigin) => Promise<void>;
  /** Whoever writes past the store may leave no witness: what was there at points from before this opening is not relied on. */
  readonly isUnwitnessed?: boolean;
}

export interface OpenedSnapshotOptions {
  readonly mayBeInvalid?: boolean;
}

export interface SnapshotInfo {
  readonly name: string;
  readonly createdAtMs: number;
  /** `tracking`: deleted, and still known for what changed since. */
  readonly state: SnapshotRecord['state'];
  /** What `changedSince` is asked with; outlives the name. */
  readonly point: string;
  /** What deleting it would free. */
  readonly uniqueBytes: number;
  /** What it shares with other snapshots. */
  readonly sharedBytes: number;
  /** What of it cannot be read any more, since the origin could not read it when it was overwritten. */
  readonly lostBytes: number;
}

export interface SnapshotUsage {
  readonly limitBytes: number;
  /** Also what is on its way: a copy takes its room before it is on record, and gives it back after that. */
  readonly usedBytes: number;
}

export interface ChangedRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface RollbackProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
}

type OriginHost = Pick<Host, 'wallClock' | 'randomBytes'>;

const CHUNK_BYTES = 4 * KIB;
const CHUNK_BYTES_MAX = 16 * MIB;
const SLOTS_WANTED = 2 ** 20;
const SLOTS_MAX = 2 ** 32 - 1;
/** Saved at a time by one write. */
const STRETCH_BYTES = MIB;
/** Writes up to this length are held, where chunks are no larger; what a larger one saves is worth a flush of its own. */
const HELD_BYTES = 64 * KIB;
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,127}$/;

export function isSnapshotName(text: string): boolean {
  return NAME.test(text);
}

export class SnapshotOrigin extends Device {
  override readonly name: string;
  override readonly direct = null;
  readonly #origin: Device;
  readonly #store: SnapshotStore;
  readonly #host: OriginHost;
  readonly #chunkBytes: number;
  readonly #requests = new InFlight();
  readonly #mutations = new InFlight();
  /** Chunks that are being saved. */
  readonly #saving = new Map<number, Promise<void>>();
  /** By id, how many devices are open. */
  readonly #open = new Map<number, number>();
  /** Set while writes wait for an instant between them. */
  #barrier: Promise<void> | null = null;
  /** Verbs take turns. */
  #turn: Promise<unknown> = Promise.resolve();
  #givingWay: Promise<void> | null = null;
  /** Set where a rollback was cut short: what the origin holds is neither the one nor the other. */
  #isBetween = false;
  readonly #held: HeldWrites;
  #mayHold: boolean;
  /** Set when all snapshots are on their way out, and somebody else takes the origin over. */
  #isLetGo = false;
  /** Why it could not be finished. */
  #hindrance: RaidError | null = null;
  /** Something else wrote meanwhile: it is finished only where that is asked for. */
  #isForked = false;
  #onTrusted: (() => Promise<void>) | null = null;
  #onLost: (() => Promise<void>) | null = null;
  #losing: Promise<boolean> | null = null;
  /** Of older points nobody knows for certain what has changed since. */
  #trackedFrom = 0;

  private constructor(origin: Device, store: SnapshotStore, host: OriginHost) {
    super();
    this.name = origin.name;
    this.#origin = origin;
    this.#store = store;
    this.#host = host;
    this.#chunkBytes = store.header.chunkBytes;
    this.#held = new HeldWrites({
      chunkBytes: this.#chunkBytes,
      save: (chunks) => this.#saveHeld(chunks),
      write: (offsetBytes, sources) => this.#origin.write(offsetBytes, sources),
    });
    this.#mayHold = this.#chunkBytes <= HELD_BYTES;
  }

  /** Makes a store on a device that begins with zeros. Both devices are this one's from then on: closing it closes them. */
  static async create(
    origin: Device,
    store: Device,
    host: OriginHost,
    options: SnapshotStoreOptions,
  ): Promise<SnapshotOrigin> {
    const header = headerFor(origin, host, options);
    if (store.limits.sizeBytes < storeBytesFor(header)) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${store.name} has ${store.limits.sizeBytes} bytes, and the snapshot store would have ${storeBytesFor(header)}`,
        { device: store.name },
      );
    }
    return new SnapshotOrigin(origin, await SnapshotStore.create(store, header), host);
  }

  /** Finishes a rollback that was cut short first; see `interrupted` for where that is not possible. */
  static async open(
    origin: Device,
    store: Device,
    host: OriginHost,
    options: OpenSnapshotOptions,
  ): Promise<SnapshotOrigin> {
    const opened = await SnapshotStore.open(store);
    const { header } = opened;
    if (header.origin !== options.origin || header.originBytes !== origin.limits.sizeBytes) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${store.name} belongs to ${JSON.stringify(header.origin)} of ${header.originBytes} bytes, ` +
          `not to ${JSON.stringify(options.origin)} of ${origin.limits.sizeBytes}`,
        { device: store.name },
      );
    }
    const made = new SnapshotOrigin(origin, opened, host);
    const isAsLeft = options.isAsLeft?.(opened.history.witnesses) !== false;
    if (!isAsLeft || options.isForced === true) await made.#giveUpAll();
    if (options.isUnwitnessed === true) await made.#forgetAll();
    made.#onLost = options.onLost ?? null;
    const { onTrusted } = options;
    made.#onTrusted = onTrusted === undefined ? null : () => onTrusted(made);
    const { rollbackTo } = opened.history;
    made.#isBetween = rollbackTo !== 0;
    made.#isForked = made.#isBetween && !isAsLeft;
    if (made.#isForked) return made;
    if (options.isForced === true && made.#isBetween)
      await opened.commit([{ op: 'rollback', id: rollbackTo, isLast: true }]);
    await made.#onTrusted?.();
    if (made.#isBetween) {
      try {
        await made.#restore(rollbackTo, () => undefined);
      } catch (error) {
        if (!(error instanceof RaidError)) throw error;
        made.#hindrance = error;
      }
    }
    return made;
  }

  /** The same with a new file as the store. */
  static async createFile(
    origin: Device,
    path: string,
    host: OriginHost,
    options: SnapshotStoreOptions,
  ): Promise<SnapshotOrigin> {
    const sizeBytes = storeBytesFor(headerFor(origin, host, options));
    const file = await FileDevice.create(path, sizeBytes);
    try {
      return await SnapshotOrigin.create(origin, file, host, options);
    } catch (cause) {
      await file.close();
      // It is new, and nothing is in it.
      await fs.promises.rm(path, { force: true });
      throw cause;
    }
  }

  static async openFile(
    origin: Device,
    path: string,
    host: OriginHost,
    options: OpenSnapshotOptions,
  ): Promise<SnapshotOrigin> {
    const file = await FileDevice.open(path);
    try {
      return await SnapshotOrigin.open(origin, file, host, options);
    } catch (cause) {
      await file.close();
      throw cause;
    }
  }

  override get limits(): Limits {
    return this.#origin.limits;
  }

  /** Durable when it resolves. To be recorded before what it speaks of happens. */
  witness(text: string): Promise<void> {
    assert(Buffer.byteLength(text) <= WITNESS_BYTES_MAX, 'a witness is short');
    return this.#store.commit([{ op: 'witness', text }]);
  }

  /** Of those that are listed with their names, valid or not. */
  get count(): number {
    return this.#store.history.snapshots.filter(({ state }) => state !== 'tracking').length;
  }

  /** Oldest first. */
  list(): readonly SnapshotInfo[] {
    return infosOf(this.#store.header, this.#store.history);
  }

  /** The rollback that is to be finished before anything else; null where there is none, or it is under way. */
  get interrupted(): { readonly name: string; readonly isForked: boolean; readonly error: RaidError } | null {
    if (!this.#isBetween || this.#barrier !== null) return null;
    return { name: this.#target(), isForked: this.#isForked, error: this.#between() };
  }

  usage(): SnapshotUsage {
    const { slotCount } = this.#store.header;
    return usageOf(this.#store.header, slotCount - this.#store.freeSlots);
  }

  /** Takes a snapshot of this instant. */
  take(name: string): Promise<SnapshotInfo> {
    return this.#inTurn(async () => {
      if (!isSnapshotName(name)) {
        throw new RaidError(
          'BAD_ARGUMENT',
          `"${name}" is no name for a snapshot: letters, digits and _ . : + - are, up to 128 of them`,
        );
      }
      if (this.#named(name) !== null) {
        throw new RaidError('BAD_ARGUMENT', `${this.name} has a snapshot ${name} already`, {
          device: this.name,
        });
      }
      this.#refuseBetween();
      await this.#makeListRoom(name);
      await this.#betweenWrites(async () => {
        await this.#held.empty();
        await this.#origin.flush();
        const { history } = this.#store;
        const createdAtMs = Math.floor(this.#host.wallClock());
        const nonce = Buffer.from(this.#host.randomBytes(NONCE_BYTES)).toString('hex');
        const id = history.nextId;
        await this.#store.commit([{ op: 'snapshot', id, name, createdAtMs, nonce, state: 'valid' }]);
      });
      return this.list().find((info) => info.name === name && info.state !== 'tracking') as SnapshotInfo;
    });
  }

  /** Whether a snapshot is open as a device. */
  get isRead(): boolean {
    return [...this.#open.values()].some((count) => count > 0);
  }

  /** The snapshot as a read-only device. `mayBeInvalid`: for whoever had it open before, and is told by each read. */
  openSnapshot(name: string, { mayBeInvalid = false }: OpenedSnapshotOptions = {}): SnapshotDevice {
    if (this.isClosed || this.#isLetGo)
      throw new RaidError('CLOSED', `${this.name} is closed`, { device: this.name });
    const { id } =
      this.#found(name).state === 'invalid' && mayBeInvalid ? this.#found(name) : this.#valid(name);
    this.#open.set(id, (this.#open.get(id) ?? 0) + 1);
    return new SnapshotDevice({
      origin: this.#origin,
      store: this.#store,
      id,
      name: `${this.name}@${name}`,
      onClose: () => {
        this.#open.set(id, (this.#open.get(id) ?? 1) - 1);
      },
    });
  }

  /** What is open as a device is not deleted. */
  refuseWhileRead(name: string): void {
    const isRead = (this.#open.get(this.#found(name).id) ?? 0) > 0;
    if (isRead)
      throw new RaidError('BUSY', `snapshot ${name} of ${this.name} is being read`, { device: this.name });
  }

  /** What older snapshots read through it stays; the rest is free. `keepTracking` lets it be asked what changed since. */
  delete(name: string, options: { readonly keepTracking?: boolean } = {}): Promise<void> {
    return this.#inTurn(async () => {
      const { id, state } = this.#found(name);
      this.refuseWhileRead(name);
      if (this.#store.history.rollbackTo === id) {
        throw new RaidError('BUSY', `${this.name} is on its way back to snapshot ${name}`, {
          device: this.name,
        });
      }
      const isTracked = options.keepTracking === true && state === 'valid';
      await this.#become(id, isTracked ? 'tracking' : 'gone');
    });
  }

  /** The snapshot is gone already; what changed since is not kept any longer. */
  forget(point: string): Promise<void> {
    return this.#inTurn(async () => {
      const record = this.#recordOf(point);
      if (record?.state !== 'tracking') return;
      await this.#store.commit([{ op: 'become', id: record.id, state: 'gone' }]);
    });
  }

  /**
   * Where the origin, or the later snapshot `until`, may differ from what was there at a point; `unknown` for a point that is not
   * known any more, or never was.
   */
  changedSince(point: string, until?: string): readonly ChangedRange[] | 'unknown' {
    const { history, header } = this.#store;
    const record = this.#recordOf(point);
    if (record === null || record.id < this.#trackedFrom) return 'unknown';
    if (record.state === 'invalid' || this.#isBetween) return 'unknown';
    const end = until === undefined ? Number.POSITIVE_INFINITY : this.#valid(until).id;
    if (end < record.id) return 'unknown';
    const ranges: { offsetBytes: number; lengthBytes: number }[] = [];
    const chunks = history.changed(record.id, end);
    // What is held was written after the newest point.
    if (until === undefined && this.#held.size > 0) chunks.push(...this.#held.chunks());
    for (const chunk of [...new Set(chunks)].sort((one, other) => one - other)) {
      const offsetBytes = chunk * this.#chunkBytes;
      const lengthBytes = Math.min(this.#chunkBytes, header.originBytes - offsetBytes);
      const last = ranges.at(-1);
      if (last !== undefined && last.offsetBytes + last.lengthBytes === offsetBytes)
        last.lengthBytes += lengthBytes;
      else ranges.push({ offsetBytes, lengthBytes });
    }
    return ranges;
  }

  /**
   * Makes the origin what the snapshot holds. Requests to the origin wait meanwhile. Where it fails half-way the origin refuses
   * everything with BUSY, until a rollback has been finished, to this snapshot or another, or it is opened again. `force`:
   * finishes one during which something else has written; and leaves what was written since where the snapshot lacks it.
   */
  rollback(
    name: string,
    tell: (progress: RollbackProgress) => void = () => undefined,
    options: { readonly force?: boolean } = {},
  ): Promise<void> {
    return this.#inTurn(async () => {
      await this.#betweenWrites(async () => {
        await this.#held.empty();
        // What was held may just have taken its room.
        const { id } = this.#isForked && options.force === true ? this.#found(name) : this.#valid(name);
        const isLast = this.#isForked || this.#store.history.isLastRollback;
        if (options.force !== true) this.#refuseLoss(id, name);
        await this.#verify(id);
        await this.#store.commit([isLast ? { op: 'rollback', id, isLast } : { op: 'rollback', id }]);
        if (this.#isForked) await this.#onTrusted?.();
        this.#isForked = false;
        this.#isBetween = true;
        await this.#restore(id, tell);
      });
    });
  }

  /**
   * For whoever writes to the origin itself from then on: no snapshot can be opened, nothing is held any more, and `remove` has removed
   * the store durably, so that no crash brings back a snapshot that was written past. Where what is held
   * cannot be saved it is written without: nobody will ask for what was there. Where the origin does not take it, nothing is removed,
   * unless `force` lets go of these bytes as well.
   */
  letGo(remove: () => Promise<void>, options: { readonly force?: boolean } = {}): Promise<void> {
    this.#isLetGo = true;
    const letting = this.#inTurn(() =>
      this.#betweenWrites(async () => {
        const isSaved = await this.#held.untilGone().then(
          () => true,
          () => false,
        );
        if (options.force === true) this.#held.dropStuck();
        else if (isSaved) await this.#held.empty().catch((cause: unknown) => this.#refuseToDrop(cause));
        await remove();
        this.#mayHold = false;
        if (!isSaved) await this.#held.release();
      }),
    );
    letting.catch(() => {
      this.#isLetGo = false;
    });
    return letting;
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#request(() => {
      const read = this.#origin.read(offsetBytes, targets);
      if (this.#held.size === 0) return read;
      // What is held at this moment may be in the origin, and held no more, when the read is over: these are the same bytes.
      const pieces = this.#held.piecesWithin(offsetBytes, offsetBytes + totalBytes(targets));
      if (pieces.length === 0) return read;
      return read
        .catch(() => this.#readBetween(pieces, offsetBytes, targets))
        .then(() => overlay(pieces, this.#chunkBytes, offsetBytes, targets));
    });
  }

  /**
   * What is not held of a range that the origin could not read. Where it refused a write it may not be able to read either (a raid5
   * without a member has then lost the place), and needs not: the bytes that were to be there are here.
   */
  async #readBetween(
    pieces: readonly Piece[],
    offsetBytes: number,
    targets: readonly Uint8Array[],
  ): Promise<void> {
    const gaps = gapsOf(pieces, this.#chunkBytes, offsetBytes, totalBytes(targets));
    await Promise.all(
      gaps.map((gap) =>
        this.#origin.read(gap.offsetBytes, viewsOf(targets, gap.offsetBytes - offsetBytes, gap.lengthBytes)),
      ),
    );
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    const lengthBytes = totalBytes(sources);
    if (this.#isFree(offsetBytes, lengthBytes))
      return this.#pass(() => this.#origin.write(offsetBytes, sources, { fua }));
    if (!fua && this.#mayHold && lengthBytes <= HELD_BYTES) {
      const pieces = this.#held.piecesOf(offsetBytes, sources);
      return this.#holdOne(pieces) ?? this.#mutation(() => this.#hold(pieces));
    }
    // An origin that copies does so when it is called; until then the bytes must not change either.
    const kept = sources.map((source) => source.slice());
    return this.#mutateSafely(offsetBytes, lengthBytes, () => this.#origin.write(offsetBytes, kept, { fua }));
  }

  /** The store needs none of its own: what it has taken is durable. */
  protected override doFlush(): Promise<void> {
    return this.#request(async () => {
      await this.#held.empty();
      await this.#origin.flush();
    });
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#mutate(offsetBytes, lengthBytes, () => this.#origin.discard(offsetBytes, lengthBytes));
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#mutate(offsetBytes, lengthBytes, () =>
      this.#origin.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#request(async () => {
      await this.#held.untilGone();
      if (this.#held.isStuckWithin(offsetBytes, lengthBytes))
        return [{ offsetBytes, lengthBytes, allocated: true, zero: false }];
      return await this.#origin.blockStatus(offsetBytes, lengthBytes);
    });
  }

  protected override doResize(): Promise<void> {
    throw new RaidError('NOT_SUPPORTED', `${this.name} has snapshots, which are of its size`, {
      device: this.name,
    });
  }

  protected override async doClose(): Promise<void> {
    await this.#turn;
    await this.#requests.whenIdle();
    const outcomes = [...(await Promise.allSettled([this.#held.empty()]))];
    // The origin may still have something to be witnessed.
    outcomes.push(...(await Promise.allSettled([this.#origin.close()])));
    outcomes.push(...(await Promise.allSettled([this.#store.close()])));
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
  }

  #request<T>(work: () => Promise<T>): Promise<T> {
    return this.#requests.run(async () => {
      // A snapshot does not stand in the way of reads; a rollback does.
      while (this.#isBetween && this.#barrier !== null) await this.#barrier;
      this.#refuseBetween();
      return await work();
    });
  }

  #mutate(offsetBytes: number, lengthBytes: number, work: () => Promise<void>): Promise<void> {
    const isFree = this.#isFree(offsetBytes, lengthBytes);
    return isFree ? this.#pass(work) : this.#mutateSafely(offsetBytes, lengthBytes, work);
  }

  #isFree(offsetBytes: number, lengthBytes: number): boolean {
    return this.#barrier === null && !this.#isBetween && !this.#isExposed(offsetBytes, lengthBytes);
  }

  /** The way of most writes: without a promise of its own. */
  #pass(work: () => Promise<void>): Promise<void> {
    this.#requests.begin();
    this.#mutations.begin();
    const end = () => {
      this.#mutations.end();
      this.#requests.end();
    };
    const done = work();
    done.then(end, end);
    return done;
  }

  #isExposed(offsetBytes: number, lengthBytes: number): boolean {
    const { history } = this.#store;
    const end = Math.ceil((offsetBytes + lengthBytes) / this.#chunkBytes);
    for (let chunk = Math.floor(offsetBytes / this.#chunkBytes); chunk < end; chunk += 1) {
      if (history.needs(chunk) !== 'nothing') return true;
      // It may be recorded, and its bytes on their way.
      if (this.#held.size > 0 && this.#held.has(chunk)) return true;
    }
    return false;
  }

  #mutation(work: () => Promise<void>): Promise<void> {
    return this.#requests.run(async () => {
      while (this.#barrier !== null) await this.#barrier;
      this.#refuseBetween();
      await this.#mutations.run(work);
    });
  }

  #mutateSafely(offsetBytes: number, lengthBytes: number, work: () => Promise<void>): Promise<void> {
    return this.#mutation(() => this.#mutateBelow(offsetBytes, lengthBytes, work));
  }

  async #mutateBelow(offsetBytes: number, lengthBytes: number, work: () => Promise<void>): Promise<void> {
    await this.#protect(offsetBytes, lengthBytes);
    await this.#held.past(offsetBytes, lengthBytes, work);
  }

  /** The way of most first writes, with as few promises as there can be; null where it is not that simple. */
  #holdOne(pieces: readonly Piece[]): Promise<void> | null {
    const [piece] = pieces;
    const held = this.#held;
    const isSimple = this.#barrier === null && !this.#isBetween && pieces.length === 1 && held.accepts;
    if (piece === undefined || !isSimple) return null;
    const { chunk } = piece;
    if (held.put(piece)) return Promise.resolve();
    if (held.has(chunk) || this.#saving.has(chunk) || !held.hasRoomFor(1)) return null;
    const needs = this.#store.history.needs(chunk);
    if (needs === 'nothing') return null;
    if (needs === 'mark') {
      held.hold(null, piece);
      return Promise.resolve();
    }
    const old = held.buffer();
    held.reserve(1);
    this.#requests.begin();
    this.#mutations.begin();
    const end = () => {
      this.#mutations.end();
      this.#requests.end();
    };
    const bringing = this.#readOld(chunk, [old]).then(
      () => {
        held.giveBackPlaces(1);
        held.hold(old, piece);
        this.#saving.delete(chunk);
        end();
      },
      (cause) => {
        held.giveBackPlaces(1);
        this.#saving.delete(chunk);
        return this.#writeUnread([piece], cause).finally(end);
      },
    );
    this.#saving.set(chunk, bringing);
    return bringing;
  }

  /** Returns when the origin has the pieces, or they are held. */
  async #hold(pieces: readonly Piece[]): Promise<void> {
    for (let left = pieces; left.length > 0; ) {
      const [rest, waits] = this.#place(left);
      await allOf(waits);
      left = rest;
    }
  }

  /** What has found no place yet, and what to wait for. */
  #place(pieces: readonly Piece[]): readonly [rest: Piece[], waits: ReadonlySet<Promise<void>>] {
    const rest: Piece[] = [];
    const waits = new Set<Promise<void>>();
    const fresh: Piece[] = [];
    for (const piece of pieces) {
      const { chunk, at, bytes } = piece;
      const offsetBytes = chunk * this.#chunkBytes + at;
      const write = () =>
        this.#held.past(offsetBytes, bytes.byteLength, () => this.#origin.write(offsetBytes, bytes));
      if (!this.#held.accepts || !this.#mayHold) {
        waits.add(this.#protect(offsetBytes, bytes.byteLength).then(write));
      } else if (this.#held.put(piece)) {
        // As good as written.
      } else if (this.#held.isStuckWithin(offsetBytes, bytes.byteLength)) {
        waits.add(write());
      } else if (this.#held.has(chunk)) {
        rest.push(piece);
        waits.add(this.#held.untilLeft());
      } else if (this.#store.history.needs(chunk) === 'nothing') {
        waits.add(write());
      } else if (this.#saving.has(chunk) || fresh.at(-1)?.chunk === chunk) {
        rest.push(piece);
        waits.add(this.#saving.get(chunk) ?? Promise.resolve());
      } else if (this.#held.hasRoomFor(fresh.length + 1)) {
        fresh.push(piece);
      } else {
        rest.push(piece);
        waits.add(this.#held.untilLeft());
      }
    }
    if (fresh.length > 0) waits.add(this.#bring(fresh));
    return [rest, waits];
  }

  /** Reads what the pieces are going to overwrite, and holds them. Of each chunk there is one piece. */
  #bring(pieces: readonly Piece[]): Promise<void> {
    const { history } = this.#store;
    const olds = pieces.map(({ chunk }) => (history.needs(chunk) === 'copy' ? this.#held.buffer() : null));
    this.#held.reserve(pieces.length);
    const bringing = this.#readOlds(pieces, olds)
      .finally(() => this.#held.giveBackPlaces(pieces.length))
      .then(() => {
        for (const [index, piece] of pieces.entries()) this.#held.hold(olds[index] ?? null, piece);
      })
      .finally(() => {
        for (const { chunk } of pieces) this.#saving.delete(chunk);
      });
    for (const { chunk } of pieces) this.#saving.set(chunk, bringing);
    return bringing.catch((cause: unknown) => this.#writeUnread(pieces, cause));
  }

  /** Something of what these overwrite cannot be read: that is not held, but written, and the loss is on record first. */
  async #writeUnread(pieces: readonly Piece[], cause: unknown): Promise<void> {
    if (!(cause instanceof Unreadable)) throw cause;
    await allOf(
      pieces.map(async ({ chunk, at, bytes }) => {
        const offsetBytes = chunk * this.#chunkBytes + at;
        const { byteLength } = bytes;
        await this.#mutateBelow(offsetBytes, byteLength, () => this.#origin.write(offsetBytes, bytes));
      }),
    );
  }

  /** The pieces rise; neighbours are read together. */
  async #readOlds(pieces: readonly Piece[], olds: readonly (Uint8Array | null)[]): Promise<void> {
    const runs: { readonly first: number; end: number; readonly targets: Uint8Array[] }[] = [];
    for (const [index, { chunk }] of pieces.entries()) {
      const old = olds[index] ?? null;
      if (old === null) continue;
      const last = runs.at(-1);
      if (last?.end === chunk) {
        last.targets.push(old);
        last.end += 1;
      } else runs.push({ first: chunk, end: chunk + 1, targets: [old] });
    }
    await allOf(runs.map(({ first, targets }) => this.#readOld(first, targets)));
  }

  #saveHeld(held: readonly HeldChunk[]): Promise<void> {
    const old = new Map(held.map((each) => [each.chunk, each.old]));
    return this.#save(
      held.map(({ chunk }) => chunk),
      (chunks) =>
        Promise.resolve(
          chunks.map((chunk) => {
            const bytes = old.get(chunk) ?? null;
            assert(bytes !== null, 'what a snapshot needs does not become more while a write is held');
            return bytes;
          }),
        ),
    );
  }

  /** Returns when everything that the range holds, and that a snapshot needs, is safe, and nothing of it is held. */
  async #protect(offsetBytes: number, lengthBytes: number): Promise<void> {
    const stretch = Math.max(1, STRETCH_BYTES / this.#chunkBytes);
    const end = Math.ceil((offsetBytes + lengthBytes) / this.#chunkBytes);
    for (let first = Math.floor(offsetBytes / this.#chunkBytes); first < end; first += stretch) {
      for (;;) {
        const waits = this.#saveExposed(first, Math.min(end, first + stretch));
        if (waits.size === 0) break;
        await allOf(waits);
      }
    }
  }

  #saveExposed(first: number, end: number): ReadonlySet<Promise<void>> {
    const waits = new Set<Promise<void>>();
    if (this.#held.size > 0 && this.#held.leavesWithin(first, end)) waits.add(this.#held.untilGone());
    const own: number[] = [];
    for (let chunk = first; chunk < end; chunk += 1) {
      if (this.#store.history.needs(chunk) === 'nothing' || this.#held.has(chunk)) continue;
      const other = this.#saving.get(chunk);
      if (other === undefined) own.push(chunk);
      else waits.add(other);
    }
    if (own.length === 0) return waits;
    const saving = this.#save(own, (chunks) => this.#readChunks(chunks)).finally(() => {
      for (const chunk of own) this.#saving.delete(chunk);
    });
    for (const chunk of own) this.#saving.set(chunk, saving);
    return waits.add(saving);
  }

  /** The chunks rise; null is one that cannot be read. A snapshot that gives way meanwhile can only make it less. */
  async #save(
    chunks: readonly number[],
    read: (chunks: readonly number[]) => Promise<readonly (Uint8Array | null)[]>,
  ): Promise<void> {
    try {
      await this.#record(chunks, read);
    } catch (cause) {
      // Without any valid snapshot nothing needs to be saved.
      if (!(await this.#lose())) throw cause;
    }
  }

  /** Whether no snapshot is valid any more, since the store takes nothing and everybody will know. */
  #lose(): Promise<boolean> {
    if (!(this.#store.failure instanceof RaidError) || this.#onLost === null) return Promise.resolve(false);
    // Its copies are what the origin is made whole from.
    if (this.#store.history.rollbackTo !== 0) return Promise.resolve(false);
    this.#losing ??= this.#onLost().then(
      () => {
        this.#store.abandon();
        return true;
      },
      () => {
        this.#losing = null;
        return false;
      },
    );
    return this.#losing;
  }

  async #record(
    chunks: readonly number[],
    read: (chunks: readonly number[]) => Promise<readonly (Uint8Array | null)[]>,
  ): Promise<void> {
    const store = this.#store;
    const { history } = store;
    for (;;) {
      const copies = chunks.filter((chunk) => history.needs(chunk) === 'copy');
      const marks = chunks.filter((chunk) => history.needs(chunk) === 'mark');
      const slots = store.takeSlots(copies.length);
      if (slots === null) {
        await this.#giveWay('slots');
        continue;
      }
      const id = history.newestPoint;
      const validCount = countValid(history.snapshots);
      const entries: Entry[] = marks.map((chunk) => ({ op: 'mark', chunk, id }));
      const found = await read(copies).catch((cause: unknown) => {
        store.giveBack(slots);
        throw cause;
      });
      const there = copies.flatMap((chunk, index) => {
        const bytes = found[index] ?? null;
        if (bytes !== null) return [{ chunk, bytes }];
        entries.push({ op: 'lost', chunk, id });
        return [];
      });
      store.giveBack(slots.splice(there.length));
      if (entries.length > 0 && !this.#hasRoomFor(entries.length)) {
        store.giveBack(slots);
        await this.#giveWay('list');
        continue;
      }
      try {
        const bytes = there.map((each) => each.bytes);
        const crcs = await this.#copy(bytes, slots);
        for (const [index, { chunk }] of there.entries())
          entries.push({ op: 'copy', chunk, id, slot: slots[index] as number, crc: crcs[index] as number });
      } catch (cause) {
        store.giveBack(slots);
        if (!(cause instanceof SlotsRefused)) throw cause;
        // Others that found no room have given one up meanwhile: that may be enough, or these copies may not be needed any more.
        if (countValid(history.snapshots) < validCount) continue;
        if (!hasValid(history.snapshots, history.rollbackTo)) throw cause;
        await this.#giveWay('slots');
        continue;
      }
      if (entries.length > 0) await store.commit(entries);
      return;
    }
  }

  /** Returns the checksums of what was copied. */
  async #copy(chunks: readonly Uint8Array[], slots: readonly number[]): Promise<number[]> {
    const writing = this.#store.writeSlots(slots, chunks);
    // While they are on their way.
    const sums = chunks.map((bytes) => crc32(bytes));
    try {
      await writing;
    } catch (cause) {
      throw new SlotsRefused('WRITE_FAILED', `${this.#store.name} took no copy for a snapshot`, { cause });
    }
    return sums;
  }

  /** The chunks rise; neighbours are read together, and where that fails one by one. */
  async #readChunks(chunks: readonly number[]): Promise<readonly (Uint8Array | null)[]> {
    const chunkBytes = this.#chunkBytes;
    const bytes = new Uint8Array(chunks.length * chunkBytes);
    const unread = new Set<number>();
    const read = async (first: number, end: number): Promise<void> => {
      try {
        const target = bytes.subarray(first * chunkBytes, end * chunkBytes);
        await this.#readOld(chunks[first] as number, [target]);
      } catch (cause) {
        if (!(cause instanceof Unreadable)) throw cause;
        if (end - first === 1) unread.add(first);
        else for (let index = first; index < end; index += 1) await read(index, index + 1);
      }
    };
    const reads: Promise<void>[] = [];
    for (let first = 0; first < chunks.length; ) {
      let end = first + 1;
      while (end < chunks.length && chunks[end] === (chunks[end - 1] as number) + 1) end += 1;
      reads.push(read(first, end));
      first = end;
    }
    await allOf(reads);
    return chunks.map((_, index) =>
      unread.has(index) ? null : bytes.subarray(index * chunkBytes, (index + 1) * chunkBytes),
    );
  }

  /** Whole chunks from here on; what lies behind the end of the origin is zeros. */
  #readOld(chunk: number, targets: readonly Uint8Array[]): Promise<void> {
    const offsetBytes = chunk * this.#chunkBytes;
    const wantedBytes = totalBytes(targets);
    const lengthBytes = Math.min(wantedBytes, this.#origin.limits.sizeBytes - offsetBytes);
    let views = targets;
    if (lengthBytes < wantedBytes) {
      for (const beyond of viewsOf(targets, lengthBytes, wantedBytes - lengthBytes)) beyond.fill(0);
      views = viewsOf(targets, 0, lengthBytes);
    }
    return this.#origin.read(offsetBytes, views).catch((cause: unknown) => {
      if (!(cause instanceof RaidError) || cause.reaction === 'fix-call') throw cause;
      // To whoever writes, old bytes that cannot be saved are a write that was not taken.
      const Failure = UNREADABLE.includes(cause.code) ? Unreadable : RaidError;
      throw new Failure(
        'WRITE_FAILED',
        `${this.name}: what a snapshot needs of the place that is written cannot be read: ${cause.message}`,
        { device: this.name, offsetBytes, lengthBytes, cause },
      );
    });
  }

  /** What is being saved by others may all become marks. */
  #hasRoomFor(markCount: number, name?: string): boolean {
    const { history, header } = this.#store;
    const names = history.snapshots.map((each) => each.name);
    if (name !== undefined) names.push(name);
    return hasRoom(header.slotCount, history.markCount + this.#saving.size + markCount, names);
  }

  /** Those who find no room together give up one thing, not one each. */
  #giveWay(lacking: 'slots' | 'list'): Promise<void> {
    this.#givingWay ??= this.#giveUpOne(lacking).finally(() => {
      this.#givingWay = null;
    });
    return this.#givingWay;
  }

  /** Tracking takes no slots, and without it there are no marks: then it is losses that fill the list. */
  async #giveUpOne(lacking: 'slots' | 'list'): Promise<void> {
    const { snapshots, rollbackTo } = this.#store.history;
    const tracking = lacking === 'list' ? snapshots.find(({ state }) => state === 'tracking') : undefined;
    const victim = tracking ?? snapshots.find(({ id, state }) => state === 'valid' && id !== rollbackTo);
    if (victim === undefined) {
      throw new RaidError('WRITE_FAILED', `${this.#store.name} is full, and nothing is left to give up`, {
        device: this.#store.name,
      });
    }
    await this.#become(victim.id, tracking === undefined ? 'invalid' : 'gone');
  }

  /** Copies that nobody needs any more may become marks, and these may become too many. */
  async #become(id: number, state: 'invalid' | 'tracking' | 'gone'): Promise<void> {
    await this.#store.commit([{ op: 'become', id, state }]);
    for (;;) {
      const oldest = this.#store.history.snapshots.find((each) => each.state === 'tracking');
      if (oldest === undefined || this.#hasRoomFor(0)) return;
      await this.#store.commit([{ op: 'become', id: oldest.id, state: 'gone' }]);
    }
  }

  async #forgetAll(): Promise<void> {
    const { snapshots, nextId } = this.#store.history;
    this.#trackedFrom = nextId;
    const entries = snapshots.flatMap(({ id, state }): Entry[] =>
      state === 'tracking' ? [{ op: 'become', id, state: 'gone' }] : [],
    );
    if (entries.length > 0) await this.#store.commit(entries);
  }

  /** Somebody has written to the origin past the store: what any snapshot reads from there may be wrong. */
  async #giveUpAll(): Promise<void> {
    const { snapshots, rollbackTo } = this.#store.history;
    const entries = snapshots.flatMap(({ id, state }): Entry[] => {
      // What its copies hold is still what a rollback needs.
      if (state === 'invalid' || id === rollbackTo) return [];
      return [{ op: 'become', id, state: state === 'valid' ? 'invalid' : 'gone' }];
    });
    if (entries.length > 0) await this.#store.commit(entries);
  }

  async #makeListRoom(name: string): Promise<void> {
    while (!this.#hasRoomFor(0, name)) {
      if (!this.#store.history.snapshots.some(({ state }) => state === 'tracking')) {
        throw new RaidError(
          'BAD_ARGUMENT',
          `${this.#store.name} has no room for another snapshot in its list`,
        );
      }
      await this.#giveWay('list');
    }
  }

  #refuseLoss(id: number, name: string): void {
    const { history } = this.#store;
    const lost = history.changed(id).filter((chunk) => history.lookup(id, chunk) === 'lost');
    const [first] = lost;
    if (first === undefined) return;
    const bytes = lost.length * this.#chunkBytes;
    const offsetBytes = first * this.#chunkBytes;
    throw new RaidError(
      'REDUNDANCY_LOST',
      `snapshot ${name} of ${this.name} lacks ${bytes} bytes, the first at ${offsetBytes}: they could not be read when they were overwritten; force rolls back all else, and leaves there what was written since`,
      { device: this.name, offsetBytes, lengthBytes: this.#chunkBytes },
    );
  }

  /** Every copy that a rollback would read. */
  async #verify(id: number): Promise<void> {
    await using snapshot = this.#snapshotDevice(id);
    for (const { at, lengthBytes } of this.#stretchesSince(id)) {
      await snapshot.read(at, new Uint8Array(lengthBytes));
    }
  }

  async #restore(id: number, tell: (progress: RollbackProgress) => void): Promise<void> {
    await using snapshot = this.#snapshotDevice(id);
    const stretches = this.#stretchesSince(id);
    const total = stretches.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
    let done = 0;
    for (const { at, lengthBytes } of stretches) {
      const bytes = new Uint8Array(lengthBytes);
      await snapshot.read(at, bytes);
      await this.#protect(at, lengthBytes);
      await this.#origin.write(at, bytes);
      done += lengthBytes;
      tell({ doneBytes: done, totalBytes: total });
    }
    await this.#origin.flush();
    const arrived: Entry[] = [{ op: 'rollback', id: 0 }];
    if (this.#store.history.isLastRollback) arrived.push({ op: 'become', id, state: 'invalid' });
    await this.#store.commit(arrived);
    this.#isBetween = false;
    this.#hindrance = null;
  }

  #snapshotDevice(id: number): SnapshotDevice {
    const onClose = () => undefined;
    return new SnapshotDevice({ origin: this.#origin, store: this.#store, id, name: this.name, onClose });
  }

  /** What was written since, and is not lost, in pieces that fit into memory. */
  #stretchesSince(id: number): readonly { readonly at: number; readonly lengthBytes: number }[] {
    const { originBytes } = this.#store.header;
    const stretches: { at: number; lengthBytes: number }[] = [];
    for (const chunk of this.#store.history.changed(id)) {
      if (this.#store.history.lookup(id, chunk) === 'lost') continue;
      const at = chunk * this.#chunkBytes;
      const lengthBytes = Math.min(this.#chunkBytes, originBytes - at);
      const last = stretches.at(-1);
      if (
        last !== undefined &&
        last.at + last.lengthBytes === at &&
        last.lengthBytes + lengthBytes <= STRETCH_BYTES
      )
        last.lengthBytes += lengthBytes;
      else stretches.push({ at, lengthBytes });
    }
    return stretches;
  }

  /** One after the other, whatever became of the one before. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    if (this.isClosed) {
      return Promise.reject(new RaidError('CLOSED', `${this.name} is closed`, { device: this.name }));
    }
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => undefined);
    return result;
  }

  async #betweenWrites(work: () => Promise<void>): Promise<void> {
    let open: () => void = () => undefined;
    this.#barrier = new Promise((resolve) => {
      open = resolve;
    });
    try {
      await this.#mutations.whenIdle();
      await work();
    } finally {
      this.#barrier = null;
      open();
    }
  }

  #refuseToDrop(cause: unknown): never {
    if (!(cause instanceof RaidError)) throw cause;
    throw new RaidError(
      cause.code,
      `bytes that were written to ${this.name} are in memory only, since it does not take them: ${cause.message}; write over them first, or let go of them as well (--force)`,
      { ...cause.place, cause },
    );
  }

  #refuseBetween(): void {
    if (this.#isBetween) throw this.#between();
  }

  #target(): string {
    const { history } = this.#store;
    return history.snapshot(history.rollbackTo)?.name ?? '';
  }

  #between(): RaidError {
    if (this.#isForked) {
      return new RaidError(
        'FORKED_HISTORY',
        `${this.name} was on its way back to snapshot ${this.#target()} when something else wrote to it: it holds neither the one nor the other`,
        { device: this.name },
      );
    }
    const because = this.#hindrance === null ? '' : ` (${this.#hindrance.message})`;
    return new RaidError(
      'BUSY',
      `${this.name} is half-way through a rollback to snapshot ${this.#target()}${because}; roll back again, or open it again`,
      { device: this.name, ...(this.#hindrance === null ? {} : { cause: this.#hindrance }) },
    );
  }

  #named(name: string): SnapshotRecord | null {
    const { snapshots } = this.#store.history;
    return snapshots.find((each) => each.name === name && each.state !== 'tracking') ?? null;
  }

  #found(name: string): SnapshotRecord {
    const found = this.#named(name);
    if (found !== null) return found;
    throw new RaidError('BAD_ARGUMENT', `${this.name} has no snapshot ${name}`, { device: this.name });
  }

  #valid(name: string): SnapshotRecord {
    const found = this.#found(name);
    if (this.#isForked) throw this.#between();
    if (found.state === 'valid') return found;
    throw new RaidError(
      'REDUNDANCY_LOST',
      `snapshot ${name} of ${this.name} is invalid: ${INVALID_BECAUSE}`,
      { device: this.name },
    );
  }

  #recordOf(point: string): SnapshotRecord | null {
    const { header, history } = this.#store;
    return history.snapshots.find((each) => pointOf(header, each) === point) ?? null;
  }
}

function pointOf({ uuid }: Header, { id, nonce }: SnapshotRecord): string {
  return `${Buffer.from(uuid).toString('hex')}/${id}/${nonce}`;
}

function infosOf(header: Header, history: History): readonly SnapshotInfo[] {
  const usage = history.usage();
  return history.snapshots.map((record) => {
    const { id, name, createdAtMs, state } = record;
    const { uniqueSlots = 0, sharedSlots = 0, lostChunks = 0 } = usage.get(id) ?? {};
    return {
      name,
      createdAtMs,
      state,
      point: pointOf(header, record),
      uniqueBytes: uniqueSlots * header.chunkBytes,
      sharedBytes: sharedSlots * header.chunkBytes,
      lostBytes: lostChunks * header.chunkBytes,
    };
  });
}

function usageOf({ slotCount, chunkBytes }: Header, usedSlots: number): SnapshotUsage {
  return { limitBytes: slotCount * chunkBytes, usedBytes: usedSlots * chunkBytes };
}

/** What a store tells that is looked at, and not opened: nothing is written to it. */
export async function peekSnapshots(path: string): Promise<{
  readonly list: readonly SnapshotInfo[];
  readonly usage: SnapshotUsage;
  readonly witnesses: readonly string[];
  /** See `rollbackDueIn`. */
  readonly rollbackTo: string | null;
}> {
  await using file = await FileDevice.open(path, { readOnly: true });
  const { header, history } = await SnapshotStore.peek(file);
  let used = 0;
  for (const _slot of history.slots()) used += 1;
  const { witnesses } = history;
  const rollbackTo = history.snapshot(history.rollbackTo)?.name ?? null;
  return { list: infosOf(header, history), usage: usageOf(header, used), witnesses, rollbackTo };
}

/** The snapshot that the origin of the store in this file is half-way back to; null: it is what it was, or has arrived. */
export async function rollbackDueIn(path: string): Promise<string | null> {
  return (await peekSnapshots(path)).rollbackTo;
}

/** Ends when all of them have, and then fails as the first that did. */
async function allOf(works: Iterable<Promise<void>>): Promise<void> {
  for (const outcome of await Promise.allSettled(works))
    if (outcome.status === 'rejected') throw outcome.reason;
}

/** What is there is lost, whatever is tried. Not what a member says that is gone: it may come back, and have it. */
const UNREADABLE: readonly ErrorCode[] = ['MEDIUM_ERROR', 'SHORT_READ', 'REDUNDANCY_LOST'];

class Unreadable extends RaidError {}

/** The store does not take the bytes of a copy. What it has recorded, and what it can record, is another matter. */
class SlotsRefused extends RaidError {}

function countValid(snapshots: readonly SnapshotRecord[]): number {
  return snapshots.filter(({ state }) => state === 'valid').length;
}

function hasValid(snapshots: readonly SnapshotRecord[], except: number): boolean {
  return snapshots.some(({ id, state }) => state === 'valid' && id !== except);
}

function headerFor(
  origin: Device,
  host: Pick<Host, 'randomBytes'>,
  { origin: id, limitBytes, chunkBytes }: SnapshotStoreOptions,
): Header {
  const { sizeBytes, blockBytes } = origin.limits;
  let chunk = chunkBytes ?? CHUNK_BYTES;
  if (chunkBytes === undefined) {
    while (chunk < CHUNK_BYTES_MAX && (limitBytes / chunk > SLOTS_WANTED || chunk % blockBytes !== 0))
      chunk *= 2;
  }
  const slotCount = Math.floor(Math.min(limitBytes, roundUp(sizeBytes, chunk) * 1024) / chunk);
  const isPower = Number.isSafeInteger(chunk) && 2 ** Math.round(Math.log2(chunk)) === chunk;
  if (!isPower || chunk < UNIT_BYTES || chunk > CHUNK_BYTES_MAX || chunk % blockBytes !== 0) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `a snapshot store saves a power of two from ${UNIT_BYTES} to ${CHUNK_BYTES_MAX} bytes at a time, in whole blocks of ${origin.name} (${blockBytes}), not ${chunk}`,
    );
  }
  if (!(slotCount >= 1 && slotCount <= SLOTS_MAX) || sizeBytes / chunk >= CHUNK_NUMBERS) {
    throw new RaidError('BAD_ARGUMENT', `${limitBytes} bytes are no room for copies of ${chunk} bytes`);
  }
  return {
    uuid: host.randomBytes(UUID_BYTES),
    originBytes: sizeBytes,
    chunkBytes: chunk,
    slotCount,
    origin: id,
  };
}
