/** A backup as a device that can be read: served over NBD, exported, compared, without restoring it. */
import { type DirectAccess, type Extent, type Limits, ReadOnlyDevice } from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import { RaidError } from '../errors.ts';
import { isZeroId, sameId } from './chunks.ts';
import { type ChunkReader, idAt } from './reader.ts';
import { type BackupRecord, bytesOfChunk } from './record.ts';
import { hexOf } from './settings.ts';
import type { Range } from './store.ts';

/** Chunks that are kept: a file system above reads the same places again and again. */
const CACHE_BYTES = 32 * 1024 * 1024;

export class BackupDevice extends ReadOnlyDevice {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct: DirectAccess | null = null;
  readonly #record: BackupRecord;
  readonly #reader: ChunkReader;
  readonly #inFlight = new InFlight();
  readonly #chunks = new Map<string, Promise<Uint8Array | null>>();
  readonly #pages = new Map<number, Promise<Uint8Array | null>>();
  readonly #letGo: () => Promise<void>;

  constructor(
    record: BackupRecord,
    reader: ChunkReader,
    letGo: () => Promise<void> = () => Promise.resolve(),
  ) {
    super();
    this.#letGo = letGo;
    this.name = `backup ${record.id}`;
    this.limits = {
      sizeBytes: record.sizeBytes,
      blockBytes: 1,
      preferredBytes: reader.site.settings.chunkBytes,
      readOnly: true,
    };
    this.#record = record;
    this.#reader = reader;
  }

  /** The id of chunk i, zero bytes where the chunk is zeros. */
  async chunkId(index: number): Promise<Uint8Array> {
    const { pageChunks, chunkBytes } = this.#reader.site.settings;
    const page = Math.floor(index / pageChunks);
    const ids = await this.#page(page);
    if (ids === null) {
      throw this.#lost(page * pageChunks * chunkBytes, pageChunks * chunkBytes, 'where its chunks are');
    }
    return idAt(ids, index % pageChunks);
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#inFlight.run(async () => {
      let at = offsetBytes;
      for (const target of targets) {
        await this.#fill(at, target);
        at += target.byteLength;
      }
    });
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#inFlight.run(async () => {
      const { chunkBytes } = this.#reader.site.settings;
      const end = offsetBytes + lengthBytes;
      const extents: Extent[] = [];
      for (let at = offsetBytes; at < end; ) {
        const next = Math.min(end, (Math.floor(at / chunkBytes) + 1) * chunkBytes);
        const zero = isZeroId(await this.chunkId(Math.floor(at / chunkBytes)));
        const last = extents.at(-1);
        if (last?.zero === zero)
          extents[extents.length - 1] = { ...last, lengthBytes: next - last.offsetBytes };
        else extents.push({ offsetBytes: at, lengthBytes: next - at, allocated: !zero, zero });
        at = next;
      }
      return extents;
    });
  }

  protected override doFlush(): Promise<void> {
    return Promise.resolve();
  }

  protected override async doClose(): Promise<void> {
    await this.#inFlight.whenIdle();
    await this.#letGo();
  }

  async #fill(offsetBytes: number, target: Uint8Array): Promise<void> {
    const { chunkBytes } = this.#reader.site.settings;
    const end = offsetBytes + target.byteLength;
    const parts: Promise<void>[] = [];
    for (let at = offsetBytes; at < end; ) {
      const index = Math.floor(at / chunkBytes);
      const next = Math.min(end, (index + 1) * chunkBytes);
      const start = at - index * chunkBytes;
      const part = target.subarray(at - offsetBytes, next - offsetBytes);
      parts.push(
        this.#chunk(index).then((chunk) => void part.set(chunk.subarray(start, start + part.byteLength))),
      );
      at = next;
    }
    // All of them settle before the buffers are the caller's again.
    const failed = (await Promise.allSettled(parts)).find(({ status }) => status === 'rejected');
    if (failed?.status === 'rejected') throw failed.reason;
  }

  async #chunk(index: number): Promise<Uint8Array> {
    const id = await this.chunkId(index);
    const { chunkBytes } = this.#reader.site.settings;
    const lengthBytes = bytesOfChunk(index, this.#record, this.#reader.site.settings);
    if (isZeroId(id)) return new Uint8Array(lengthBytes);
    const chunk = await this.#cached(this.#chunks, hexOf(id), () => this.#reader.read(id));
    if (chunk?.byteLength !== lengthBytes) throw this.#lost(index * chunkBytes, lengthBytes, 'a chunk');
    return chunk;
  }

  #page(page: number): Promise<Uint8Array | null> {
    return this.#cached(this.#pages, page, () => this.#reader.readPage(this.#record, page));
  }

  /** The latest that were used stay; what failed is tried again. */
  #cached<K>(
    cache: Map<K, Promise<Uint8Array | null>>,
    key: K,
    load: () => Promise<Uint8Array | null>,
  ): Promise<Uint8Array | null> {
    const known = cache.get(key);
    cache.delete(key);
    const entry = known ?? load();
    cache.set(key, entry);
    if (known === undefined) {
      const forget = (): void => {
        if (cache.get(key) === entry) cache.delete(key);
      };
      entry.then((bytes) => (bytes === null ? forget() : undefined), forget);
      const most = Math.max(4, Math.floor(CACHE_BYTES / this.#reader.site.settings.chunkBytes));
      for (const oldest of cache.keys()) {
        if (cache.size <= most) break;
        cache.delete(oldest);
      }
    }
    return entry;
  }

  #lost(offsetBytes: number, lengthBytes: number, what: string): RaidError {
    const length = Math.min(lengthBytes, this.#record.sizeBytes - offsetBytes);
    return new RaidError(
      'REDUNDANCY_LOST',
      `${this.name}: ${what} is lost, and with it ${length} bytes at ${offsetBytes}`,
      { device: this.name, offsetBytes, lengthBytes: length, lost: [{ offsetBytes, lengthBytes: length }] },
    );
  }
}

/**
 * Where two backups of one repository differ, in whole chunks, by their maps alone. What the older one has not got, or has
 * only part of the chunk, differs.
 */
export async function changedBetween(
  older: BackupDevice,
  newer: BackupDevice,
  chunkBytes: number,
): Promise<readonly Range[]> {
  const changed: Range[] = [];
  const { sizeBytes } = newer.limits;
  for (let at = 0; at < sizeBytes; at += chunkBytes) {
    const lengthBytes = Math.min(chunkBytes, sizeBytes - at);
    const isWhole = at + lengthBytes <= older.limits.sizeBytes;
    const index = at / chunkBytes;
    if (isWhole && sameId(await older.chunkId(index), await newer.chunkId(index))) continue;
    const last = changed.at(-1);
    if (last !== undefined && last.offsetBytes + last.lengthBytes === at)
      changed[changed.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
    else changed.push({ offsetBytes: at, lengthBytes });
  }
  return changed;
}
