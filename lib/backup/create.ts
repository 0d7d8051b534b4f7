/**
 * Making a backup: read, hash, store what is not there, and last of all the record that makes it a backup.
 *
 * What is read. Where the source can say what changed since an earlier backup of it, only that; the rest of the map is taken
 * over from there, chunk by chunk, and only where the repository still has the chunk. Otherwise everything that is not
 * known to be zeros is read, and what is in the repository already is recognised by its hash.
 *
 * Interrupted. Packs that were written stay, and are found again by the next backup, of whatever source: it reads and
 * hashes the same chunks and stores only the others. There is no state of an unfinished backup to be kept or to go stale.
 *
 * The record is written when everything that it needs is durable, protected and indexed. Until then there is no backup; from
 * its first copy on there is one, and it is whole.
 */
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import { KIB } from '../units.ts';
import type { Catalog } from './catalog.ts';
import { isZeroId } from './chunks.ts';
import type { Lock } from './lock.ts';
import { ID_BYTES } from './pack.ts';
import { hashAll } from './packer.ts';
import type { Cut } from './packer-message.ts';
import { type ChunkReader, idAt } from './reader.ts';
import {
  type Backup,
  type BackupRecord,
  backupPath,
  bytesOfChunk,
  encodeBackup,
  idsOnPage,
  pageCount,
  withoutPages,
} from './record.ts';
import { SALT_BYTES } from './seal.ts';
import { hexOf } from './settings.ts';
import type { Site } from './site.ts';
import type { Range } from './store.ts';
import { ChunkWriter, Protector, soundGroups } from './writer.ts';

/** Where the source was different at a later instant, or `unknown` where it cannot tell. May name more than differs. */
export type ChangedSince = (point: string) => Promise<readonly Range[] | 'unknown'>;

export interface CreateBackupOptions {
  /** Read while nobody writes to it: a snapshot, or a device that is at rest. */
  readonly source: Device;
  /** What it is called in the list. */
  readonly array: string;
  /** What tells it from another of the same name. */
  readonly uuid?: string | null;
  /** What the source calls the instant that is backed up, for later backups to ask what changed since. */
  readonly point?: string | null;
  readonly changedSince?: ChangedSince;
  /** Asks to stop. What has been stored stays, and the next backup does not store it again. */
  readonly signal?: AbortSignal;
  readonly progress?: (progress: CreateProgress) => void;
}

export interface CreateProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** New in the repository, as it was read. */
  readonly addedBytes: number;
  /** How much of the source was looked at: less than done where tracking answers for the rest. */
  readonly readBytes: number;
}

/** `null`: it was asked to stop. */
export async function createBackup(
  site: Site,
  reader: ChunkReader,
  lock: Lock,
  earlier: readonly BackupRecord[],
  options: CreateBackupOptions,
): Promise<Backup | null> {
  const { blockBytes } = options.source.limits;
  if (site.settings.chunkBytes % blockBytes !== 0) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${options.source.name} is read in blocks of ${blockBytes} bytes, and the repository has chunks of ${site.settings.chunkBytes}`,
    );
  }
  const protector = new Protector(site, lock, soundGroups(site, reader.catalog));
  const writer = new ChunkWriter(site, reader.catalog, lock, protector);
  try {
    await protector.adopt(reader.catalog);
    return await new Creation(site, reader, lock, writer, options).run(earlier);
  } catch (error) {
    await writer.abandon();
    throw error;
  }
}

class Creation {
  readonly #site: Site;
  readonly #reader: ChunkReader;
  readonly #catalog: Catalog;
  readonly #lock: Lock;
  readonly #writer: ChunkWriter;
  readonly #options: CreateBackupOptions;
  readonly #size: Pick<Backup, 'sizeBytes'>;
  readonly #zeros: Uint8Array;
  #doneBytes = 0;
  #addedBytes = 0;
  #readBytes = 0;

  constructor(
    site: Site,
    reader: ChunkReader,
    lock: Lock,
    writer: ChunkWriter,
    options: CreateBackupOptions,
  ) {
    this.#site = site;
    this.#reader = reader;
    this.#catalog = reader.catalog;
    this.#lock = lock;
    this.#writer = writer;
    this.#options = options;
    this.#size = { sizeBytes: options.source.limits.sizeBytes };
    this.#zeros = new Uint8Array(site.settings.chunkBytes);
  }

  async run(earlier: readonly BackupRecord[]): Promise<Backup | null> {
    const { settings, host } = this.#site;
    const { source, array, uuid = null, point = null } = this.#options;
    const base = await this.#chooseBase(earlier);
    const pages = new Uint8Array(pageCount(this.#size, settings) * ID_BYTES);
    for (let page = 0; page < pages.byteLength / ID_BYTES; page += 1) {
      const ids = await this.#readPage(page, base);
      if (ids === null) {
        await this.#writer.finish();
        return null;
      }
      if (isAllZero(ids)) continue;
      const id = hashAll(ids, [{ at: 0, lengthBytes: ids.byteLength }]);
      if (!this.#writer.has(id)) await this.#writer.add(id, ids);
      pages.set(id, page * ID_BYTES);
    }
    await this.#writer.finish();
    const record: BackupRecord = {
      id: hexOf(host.randomBytes(8)),
      number: Math.max(0, ...earlier.map(({ number }) => number)) + 1,
      createdAt: new Date(host.wallClock()).toISOString(),
      array,
      uuid,
      sizeBytes: source.limits.sizeBytes,
      point,
      addedBytes: this.#addedBytes,
      storedBytes: this.#writer.storedBytes,
      pages,
    };
    await this.#lock.check();
    await putBackup(this.#site, record);
    return withoutPages(record);
  }

  /** The newest backup of this source from which it knows what changed, and that. */
  async #chooseBase(earlier: readonly BackupRecord[]): Promise<Base | null> {
    const { array, uuid = null, changedSince } = this.#options;
    if (changedSince === undefined) return null;
    const candidates = earlier
      .filter((record) => record.array === array && record.uuid === uuid && record.point !== null)
      .sort((left, right) => right.number - left.number);
    for (const record of candidates) {
      const changed = await changedSince(record.point ?? '');
      if (changed !== 'unknown') return { record, changed: this.#chunksOf(changed) };
    }
    return null;
  }

  /** The chunks that ranges touch. */
  #chunksOf(ranges: readonly Range[]): ReadonlySet<number> {
    const { chunkBytes } = this.#site.settings;
    const chunks = new Set<number>();
    for (const { offsetBytes, lengthBytes } of ranges) {
      const end = Math.min(offsetBytes + lengthBytes, this.#size.sizeBytes);
      for (let index = Math.floor(offsetBytes / chunkBytes); index * chunkBytes < end; index += 1) {
        chunks.add(index);
      }
    }
    return chunks;
  }

  /** The ids of a page; null where it was asked to stop. */
  async #readPage(page: number, base: Base | null): Promise<Uint8Array | null> {
    const { settings } = this.#site;
    const count = idsOnPage(page, this.#size, settings);
    const first = page * settings.pageChunks;
    const ids = new Uint8Array(count * ID_BYTES);
    const wanted: number[] = [];
    const old = base === null ? null : await this.#oldPage(page, base.record);
    for (let index = 0; index < count; index += 1) {
      if (old === null || base === null || !this.#isStill(old, index, first + index, base))
        wanted.push(index);
      else {
        ids.set(idAt(old, index), index * ID_BYTES);
        this.#doneBytes += bytesOfChunk(first + index, this.#size, settings);
      }
    }
    const zero = await this.#zeroChunks(wanted, first);
    const present = wanted.filter((index) => !zero.has(index));
    for (const index of zero) this.#doneBytes += bytesOfChunk(first + index, this.#size, settings);
    this.#writer.expect(present.length * settings.chunkBytes);
    const loads = loadsOf(present, Math.floor(this.#writer.trayBytes / settings.chunkBytes));
    let next = 0;
    const work = async (): Promise<void> => {
      while (next < loads.length && this.#options.signal?.aborted !== true) {
        const load = loads[next]!;
        next += 1;
        await this.#store(load, first, ids);
        for (const index of load) this.#doneBytes += bytesOfChunk(first + index, this.#size, settings);
        this.#tell();
        await this.#lock.touch();
      }
    };
    const workers = Array.from({ length: Math.min(this.#writer.width, loads.length) }, work);
    const failed = (await Promise.allSettled(workers)).find(({ status }) => status === 'rejected');
    if (failed?.status === 'rejected') throw failed.reason;
    this.#tell();
    return this.#options.signal?.aborted === true ? null : ids;
  }

  async #oldPage(page: number, record: BackupRecord): Promise<Uint8Array | null> {
    return page < pageCount(record, this.#site.settings) ? await this.#reader.readPage(record, page) : null;
  }

  /** Whether it is sure that a chunk has the id that it had, and that the repository has the chunk. */
  #isStill(old: Uint8Array, index: number, chunk: number, base: Base): boolean {
    if (base.changed.has(chunk)) return false;
    const { settings } = this.#site;
    const lengthBytes = bytesOfChunk(chunk, this.#size, settings);
    // The last chunk of a source that has changed its size since.
    if (index * ID_BYTES >= old.byteLength || bytesOfChunk(chunk, base.record, settings) !== lengthBytes)
      return false;
    return this.#catalog.has(old, index * ID_BYTES) || isZeroId(idAt(old, index));
  }

  /** Which of these chunks the source says are zeros, without reading them. */
  async #zeroChunks(wanted: readonly number[], first: number): Promise<ReadonlySet<number>> {
    const zero = new Set<number>();
    if (wanted.length === 0) return zero;
    const { source } = this.#options;
    const { chunkBytes } = this.#site.settings;
    const { sizeBytes } = this.#size;
    const start = (first + wanted[0]!) * chunkBytes;
    const end = Math.min(sizeBytes, (first + wanted.at(-1)! + 1) * chunkBytes);
    const extents = (await source.blockStatus(start, end - start)).filter((extent) => extent.zero);
    let turn = 0;
    for (const index of wanted) {
      const from = (first + index) * chunkBytes;
      const to = from + bytesOfChunk(first + index, this.#size, this.#site.settings);
      while (turn < extents.length && endOf(extents[turn]!) <= from) turn += 1;
      const extent = extents[turn];
      if (extent !== undefined && extent.offsetBytes <= from && endOf(extent) >= to) zero.add(index);
    }
    return zero;
  }

  /** What goes into one tray: the ids are put into the page, and zeros left as they are. */
  async #store(load: readonly number[], first: number, ids: Uint8Array): Promise<void> {
    const { chunkBytes } = this.#site.settings;
    const tray = await this.#writer.tray();
    try {
      await this.#read(load, first, tray.bytes);
      const cuts: (Cut & { readonly index: number })[] = [];
      for (const [turn, index] of load.entries()) {
        const at = turn * chunkBytes;
        const lengthBytes = bytesOfChunk(first + index, this.#size, this.#site.settings);
        const chunk = tray.bytes.subarray(at, at + lengthBytes);
        if (Buffer.compare(chunk, this.#zeros.subarray(0, lengthBytes)) !== 0)
          cuts.push({ at, lengthBytes, index });
      }
      if (cuts.length === 0) return;
      const hashes = await tray.hash(cuts);
      const found = cuts.map((cut, turn) => ({
        ...cut,
        id: hashes.slice(turn * ID_BYTES, (turn + 1) * ID_BYTES),
      }));
      for (const { lengthBytes: added } of await this.#writer.addFrom(tray, found)) this.#addedBytes += added;
      for (const { index, id } of found) ids.set(id, index * ID_BYTES);
    } finally {
      tray.release();
    }
  }

  /** Chunks of a page, one behind the other into `tray`. What lies together is read together. */
  async #read(load: readonly number[], first: number, tray: Uint8Array): Promise<void> {
    const { source } = this.#options;
    const { chunkBytes } = this.#site.settings;
    const reads = runsOf(load).map(async ({ turn, count }) => {
      const start = (first + load[turn]!) * chunkBytes;
      const lengthBytes = Math.min(count * chunkBytes, this.#size.sizeBytes - start);
      const at = turn * chunkBytes;
      await source.read(start, tray.subarray(at, at + lengthBytes));
      this.#readBytes += lengthBytes;
    });
    // A tray is not released while something is read into it.
    const failed = (await Promise.allSettled(reads)).find(({ status }) => status === 'rejected');
    if (failed?.status === 'rejected') throw failed.reason;
  }

  #tell(): void {
    this.#options.progress?.({
      doneBytes: this.#doneBytes,
      totalBytes: this.#size.sizeBytes,
      addedBytes: this.#addedBytes,
      readBytes: this.#readBytes,
    });
  }
}

/** What goes into a tray, by their order in a page. Chunks that lie far from each other fill one as well: it is handed on as a whole. */
function loadsOf(indexes: readonly number[], most: number): readonly (readonly number[])[] {
  const loads: number[][] = [];
  for (let at = 0; at < indexes.length; at += most) loads.push(indexes.slice(at, at + most));
  return loads;
}

/** Of a load: `count` chunks from the `turn`th on lie one behind the other. */
interface Run {
  readonly turn: number;
  count: number;
}

function runsOf(load: readonly number[]): readonly Run[] {
  const runs: Run[] = [];
  for (const [turn, index] of load.entries()) {
    const last = runs.at(-1);
    if (last !== undefined && load[turn - 1] === index - 1) last.count += 1;
    else runs.push({ turn, count: 1 });
  }
  return runs;
}

interface Base {
  readonly record: BackupRecord;
  readonly changed: ReadonlySet<number>;
}

function endOf({ offsetBytes, lengthBytes }: Range): number {
  return offsetBytes + lengthBytes;
}

const zeroPage = Buffer.alloc(64 * KIB);

function isAllZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.byteLength; at += zeroPage.byteLength) {
    const part = bytes.subarray(at, at + zeroPage.byteLength);
    if (Buffer.compare(part, zeroPage.subarray(0, part.byteLength)) !== 0) return false;
  }
  return true;
}

/** As many copies as redundancy asks for. Copies of a record are the same bytes. */
async function putBackup(site: Site, record: BackupRecord): Promise<void> {
  const bytes = encodeBackup(site, record, site.host.randomBytes(SALT_BYTES));
  for (let copy = 0; copy <= site.settings.redundancy; copy += 1) {
    const isNew = await site.store.put(backupPath(record.id, copy), bytes);
    if (!isNew) {
      throw new RaidError(
        'STORE_FAILED',
        `${site.store.name}: ${backupPath(record.id, copy)} is there already`,
      );
    }
  }
}
