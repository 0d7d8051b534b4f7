/**
 * Chunks out of packs. A chunk is handed out only if its SHA-256 is its id: what is wrong is never mistaken for what is
 * right, whatever happened to the store. One that is in two packs is read from the other. A pack that cannot be read is computed
 * from the others of its group, here and now; `repair` makes that last.
 *
 * A reader holds no lock. If `prune` moves chunks to another pack under it, a pack that was there is gone: then it looks at
 * the repository anew, once for each time that happens.
 */
import { webcrypto } from 'node:crypto';
import { MIB } from '../units.ts';
import { Catalog } from './catalog.ts';
import { isZeroId, type Place, sameId } from './chunks.ts';
import { decompress } from './codec.ts';
import { recoverPack } from './group.ts';
import { type Entry, ID_BYTES, packPath, packSealer } from './pack.ts';
import { type BackupRecord, idsOnPage } from './record.ts';
import { hexOf } from './settings.ts';
import { getOrNull, type Site } from './site.ts';
import type { Range } from './store.ts';

/** On the thread pool: several at a time use several cores. */
export async function idOf(bytes: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(await webcrypto.subtle.digest('SHA-256', bytes));
}

/** The most that is asked for at once: chunks that lie together are read together. */
const RUN_BYTES = 4 * MIB;
/** Recovered packs that are kept for the chunks that come next. */
const RECOVERED = 2;

export class ChunkReader {
  readonly site: Site;
  #catalog: Catalog;
  #reloading: Promise<Catalog> | null = null;
  readonly #recovered = new Map<string, Promise<Uint8Array | null>>();

  constructor(site: Site, catalog: Catalog) {
    this.site = site;
    this.#catalog = catalog;
  }

  get catalog(): Catalog {
    return this.#catalog;
  }

  async read(id: Uint8Array): Promise<Uint8Array | null> {
    return (await this.readMany([id]))[0] ?? null;
  }

  /** In the order of the ids; null for a chunk that is lost. No id is that of zeros. */
  async readMany(ids: readonly Uint8Array[]): Promise<readonly (Uint8Array | null)[]> {
    const found = await this.#readFrom(this.#catalog, ids);
    const absent = ids.filter((_, index) => found[index] === null);
    if (absent.length === 0) return found;
    const before = this.#catalog;
    const again = await this.#readFrom(await this.#reload(before), absent);
    const byId = new Map(absent.map((id, index) => [hexOf(id), again[index] ?? null]));
    const result: (Uint8Array | null)[] = [];
    for (const [index, id] of ids.entries()) {
      result.push(found[index] ?? byId.get(hexOf(id)) ?? (await this.#recover(id)));
    }
    return result;
  }

  /** Of the places of a chunk in this catalog the first where it can be read, or else computed, or else the first. */
  async soundPlace(catalog: Catalog, id: Uint8Array): Promise<Place | undefined> {
    const places = catalog.places(id);
    for (const read of [this.#stored, this.#computed]) {
      for (const place of places) if ((await this.#readAt(catalog, id, place, read)) !== null) return place;
    }
    return places[0];
  }

  /** The ids of a page, zeros for one that has nothing but zeros; null where it is lost. */
  async readPage(record: BackupRecord, page: number): Promise<Uint8Array | null> {
    const id = pageId(record, page);
    const lengthBytes = idsOnPage(page, record, this.site.settings) * ID_BYTES;
    if (isZeroId(id)) return new Uint8Array(lengthBytes);
    const bytes = await this.read(id);
    return bytes?.byteLength === lengthBytes ? bytes : null;
  }

  #reload(before: Catalog): Promise<Catalog> {
    if (this.#catalog !== before) return Promise.resolve(this.#catalog);
    this.#reloading ??= Catalog.load(this.site)
      .then((catalog) => {
        this.#catalog = catalog;
        return catalog;
      })
      .finally(() => {
        this.#reloading = null;
      });
    return this.#reloading;
  }

  async #readFrom(catalog: Catalog, ids: readonly Uint8Array[]): Promise<readonly (Uint8Array | null)[]> {
    const result: (Uint8Array | null)[] = ids.map(() => null);
    const wanted = ids.flatMap((id, index) => {
      const place = catalog.find(id);
      return place === null ? [] : [{ id, index, pack: place.pack, entry: catalog.entry(place) }];
    });
    wanted.sort(
      (left, right) => left.pack - right.pack || left.entry.range.offsetBytes - right.entry.range.offsetBytes,
    );
    const runs: (typeof wanted)[] = [];
    for (const chunk of wanted) {
      const run = runs.at(-1);
      const [first, last] = [run?.[0], run?.at(-1)];
      const isNext =
        last !== undefined &&
        first !== undefined &&
        last.pack === chunk.pack &&
        chunk.entry.range.offsetBytes <= endOf(last.entry) &&
        endOf(chunk.entry) - first.entry.range.offsetBytes <= RUN_BYTES;
      if (isNext) run?.push(chunk);
      else runs.push([chunk]);
    }
    await Promise.all(
      runs.map(async (run) => {
        const [first, last] = [run[0]!, run.at(-1)!];
        const { name } = catalog.packs[first.pack]!;
        const start = first.entry.range.offsetBytes;
        const bytes = await getOrNull(this.site.store, packPath(name), {
          offsetBytes: start,
          lengthBytes: endOf(last.entry) - start,
        });
        if (bytes === null) return;
        await Promise.all(
          run.map(async ({ id, index, entry }) => {
            const at = entry.range.offsetBytes - start;
            result[index] = await decodeChunk(
              this.site,
              name,
              id,
              entry,
              bytes.subarray(at, at + entry.range.lengthBytes),
            );
          }),
        );
      }),
    );
    return result;
  }

  /** From another pack, if there is one: a pack that is computed costs all of its group. */
  async #recover(id: Uint8Array): Promise<Uint8Array | null> {
    const catalog = this.#catalog;
    const places = catalog.places(id);
    // What `find` finds has been tried. In a pack that is not as long as it was, nothing has.
    for (const place of catalog.find(id) === null ? places : places.slice(1)) {
      const chunk = await this.#readAt(catalog, id, place, this.#stored);
      if (chunk !== null) return chunk;
    }
    for (const place of places) {
      const chunk = await this.#readAt(catalog, id, place, this.#computed);
      if (chunk !== null) return chunk;
    }
    return null;
  }

  readonly #stored = (pack: string, range: Range): Promise<Uint8Array | null> =>
    getOrNull(this.site.store, packPath(pack), range);

  readonly #computed = async (
    pack: string,
    { offsetBytes, lengthBytes }: Range,
  ): Promise<Uint8Array | null> => {
    const bytes = await this.#recoverPack(pack);
    return bytes?.subarray(offsetBytes, offsetBytes + lengthBytes) ?? null;
  };

  async #readAt(
    catalog: Catalog,
    id: Uint8Array,
    place: Place,
    read: (pack: string, range: Range) => Promise<Uint8Array | null>,
  ): Promise<Uint8Array | null> {
    const { name } = catalog.pack(place);
    const entry = catalog.entry(place);
    const sealed = await read(name, entry.range);
    return sealed === null ? null : await decodeChunk(this.site, name, id, entry, sealed);
  }

  #recoverPack(name: string): Promise<Uint8Array | null> {
    const known = this.#recovered.get(name);
    if (known !== undefined) return known;
    const work = recoverPack(this.site, this.#catalog.groups, name);
    this.#recovered.set(name, work);
    for (const old of [...this.#recovered.keys()].slice(0, -RECOVERED)) this.#recovered.delete(old);
    return work;
  }
}

function endOf({ range }: Entry): number {
  return range.offsetBytes + range.lengthBytes;
}

/** The chunk, if these bytes of this pack are it. */
export async function decodeChunk(
  site: Site,
  pack: string,
  id: Uint8Array,
  entry: Entry,
  sealed: Uint8Array,
): Promise<Uint8Array | null> {
  const { chunkBytes, pageChunks } = site.settings;
  if (entry.rawBytes === 0 || entry.rawBytes > Math.max(chunkBytes, pageChunks * ID_BYTES)) return null;
  if (sealed.byteLength !== entry.range.lengthBytes) return null;
  const compressed = packSealer(site.key, pack).open(entry.piece, sealed);
  if (compressed === null) return null;
  const raw = await decompress(entry.codec, compressed, entry.rawBytes);
  return raw !== null && sameId(await idOf(raw), id) ? raw : null;
}

export function pageId({ pages }: BackupRecord, page: number): Uint8Array {
  return pages.subarray(page * ID_BYTES, (page + 1) * ID_BYTES);
}

/** The i-th id of a page or a map. */
export function idAt(ids: Uint8Array, index: number): Uint8Array {
  return ids.subarray(index * ID_BYTES, (index + 1) * ID_BYTES);
}
