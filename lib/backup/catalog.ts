/**
 * What is in a repository, as its files tell: packs, the chunks in them, groups, and what is wrong with any of it.
 *
 * An index is nothing but a copy of pack tables, so that opening a repository does not read the end of every pack. Packs
 * that no index has (a backup was interrupted before it wrote one, or the index is lost) are asked themselves: so whatever
 * reached the store counts, and an interrupted backup goes on from there. A pack that an index has and the store has not is
 * lost: its chunks are not there for new backups, which store them again, but are known to have been in it.
 *
 *   index/<name>    body: for each pack its name (16), file size (4), entries (4), and its table (41 each)
 */
import { ChunkTable, type Place } from './chunks.ts';
import { type Group, groupsOf, readHeads, recoverPack } from './group.ts';
import { ENTRY_BYTES, type Entry, NAME_BYTES, PackTable, packPath, readTable, tableOf } from './pack.ts';
import { type ParityRole, parityPath } from './parity.ts';
import { decodeObject, encodeObject, type ObjectCodec, viewOf } from './seal.ts';
import { hexOf } from './settings.ts';
import { getOrNull, type Site } from './site.ts';
import { ofEach, type StoredFile } from './store.ts';

export interface Pack {
  readonly name: string;
  readonly number: number;
  /** Of the file, as it was written where that is known. */
  readonly sizeBytes: number;
  /** Null where nobody can tell what was in it. */
  readonly table: PackTable | null;
  /** `damaged`: the file is there, and is seen not to be what was written. */
  readonly state: 'there' | 'damaged' | 'missing';
}

/** A file that is there and says nothing that can be used. */
export interface BadFile {
  readonly name: string;
  readonly why: string;
}

const PACK_HEADER = NAME_BYTES + 8;

export class Catalog {
  readonly packs: Pack[] = [];
  readonly byName = new Map<string, Pack>();
  readonly groups: Group[] = [];
  readonly indexes: StoredFile[] = [];
  /** By the name of an index that can be read: the packs that stand in it. */
  readonly indexed = new Map<string, readonly string[]>();
  readonly bad: BadFile[] = [];
  /** Packs that stand in no index. */
  readonly unindexed: Pack[] = [];
  /** Chunks of packs that are there, as far as their sizes tell. */
  readonly #chunks = new ChunkTable();
  /** Where lost chunks were. */
  readonly #lost = new ChunkTable();

  static async load(site: Site): Promise<Catalog> {
    const catalog = new Catalog();
    const { store } = site;
    const [packs, indexes, parity] = await Promise.all([
      store.list('packs/'),
      store.list('index/'),
      store.list('parity/'),
    ]);
    const listed = new Map(packs.flatMap(packOf));
    const [rows, heads] = await Promise.all([catalog.#readIndexes(site, indexes), readHeads(store, parity)]);
    const told = [...namesOf(rows), ...heads.flatMap(({ members }) => namesOf(members ?? []))];
    // It is lost; or a backup was being made, and it was not there yet when packs were listed.
    if (told.some((name) => !listed.has(name))) {
      for (const [name, sizeBytes] of (await store.list('packs/')).flatMap(packOf))
        listed.set(name, sizeBytes);
    }
    const { groups, bad } = await groupsOf(site, heads, listed);
    catalog.groups.push(...groups);
    for (const name of bad) catalog.bad.push({ name, why: 'this parity file cannot be read' });
    catalog.#takeRows(rows, listed);
    const others = [...listed].filter(([name]) => !catalog.byName.has(name));
    const written = new Map(groups.flatMap(({ members }) => members.map((member) => [member.name, member])));
    const tables = await ofEach(others, async ([name, sizeBytes]) => {
      // Not what was written: a table that it has may be another pack's.
      if ((written.get(name)?.sizeBytes ?? sizeBytes) !== sizeBytes) return null;
      return await readTable(site, name, sizeBytes, (range) => getOrNull(store, packPath(name), range));
    });
    for (const [index, [name, sizeBytes]] of others.entries()) {
      catalog.#takeUnindexed(name, sizeBytes, tables[index]!);
    }
    await catalog.#loadLost(site);
    // Packs that are whole first: a chunk that is in two of them is first looked for in one that is there.
    for (const { number, table, state } of catalog.packs) {
      if (table !== null && state === 'there') catalog.#chunks.addPack(number, table);
    }
    for (const { number, table, state } of catalog.packs) {
      if (table !== null && state !== 'there') catalog.#lost.addPack(number, table);
    }
    return catalog;
  }

  /** A pack that was written just now. */
  add(name: string, sizeBytes: number, table: PackTable): Pack {
    const pack = this.#put({ name, sizeBytes, table, state: 'there' });
    this.unindexed.push(pack);
    this.#chunks.addPack(pack.number, table);
    return pack;
  }

  /** Parity files, by their paths, that turned out not to be whole: they count for nothing, nor does a group without any other. */
  distrust(rotten: ReadonlySet<string>): void {
    for (const group of this.groups.splice(0)) {
      const roles = new Set<ParityRole>();
      for (const role of group.roles) {
        const name = parityPath(group.name, role);
        if (rotten.has(name)) this.bad.push({ name, why: 'is not as it was written' });
        else roles.add(role);
      }
      if (roles.size > 0) this.groups.push({ ...group, roles });
    }
  }

  /** Whether a chunk is there: the one whose id begins at `at`. */
  has(ids: Uint8Array, at: number): boolean {
    return this.#chunks.has(ids, at);
  }

  find(id: Uint8Array): Place | null {
    return this.#chunks.find(id);
  }

  /** Everywhere where it is, and then where it was. */
  places(id: Uint8Array): readonly Place[] {
    return [...this.#chunks.places(id), ...this.#lost.places(id)];
  }

  pack({ pack }: Pick<Place, 'pack'>): Pack {
    return this.packs[pack]!;
  }

  entry({ pack, entry }: Place): Entry {
    return this.packs[pack]!.table!.entry(entry);
  }

  #put(pack: Omit<Pack, 'number'>): Pack {
    const numbered = { ...pack, number: this.packs.length };
    this.packs.push(numbered);
    this.byName.set(pack.name, numbered);
    return numbered;
  }

  /** The rows of all indexes that can be read. */
  async #readIndexes(site: Site, indexes: readonly StoredFile[]): Promise<readonly IndexRow[]> {
    this.indexes.push(...indexes);
    const read = await ofEach(indexes, async ({ name }) => {
      const bytes = await getOrNull(site.store, name);
      return { index: name, rows: bytes === null ? null : decodeIndex(site, name, bytes) };
    });
    return read.flatMap(({ index, rows }) => {
      if (rows === null) this.bad.push({ name: index, why: 'this index cannot be read' });
      else this.indexed.set(index, namesOf(rows));
      return rows ?? [];
    });
  }

  #takeRows(rows: readonly IndexRow[], listed: ReadonlyMap<string, number>): void {
    for (const { name, sizeBytes, table } of rows) {
      if (this.byName.has(name)) continue;
      const found = listed.get(name);
      const state = found === undefined ? 'missing' : found === sizeBytes ? 'there' : 'damaged';
      this.#put({ name, sizeBytes, table, state });
    }
  }

  #takeUnindexed(name: string, sizeBytes: number, table: PackTable | null): void {
    this.unindexed.push(this.#put({ name, sizeBytes, table, state: 'there' }));
    if (table === null) this.bad.push({ name: packPath(name), why: 'the table of this pack cannot be read' });
  }

  /**
   * Packs that only a group knows of, or whose table cannot be read, while no index has it: what they held is known when
   * they have been computed from the others. Only a repository that has lost files gets here.
   */
  async #loadLost(site: Site): Promise<void> {
    const members = new Map(
      this.groups.flatMap((group) => group.members.map((member) => [member.name, member])),
    );
    for (const { name, sizeBytes } of members.values()) {
      const known = this.byName.get(name);
      if (known !== undefined && known.table !== null) continue;
      const bytes = await recoverPack(site, this.groups, name);
      const table = bytes === null ? null : await tableOf(site, name, bytes);
      if (known === undefined) this.#put({ name, sizeBytes, table, state: 'missing' });
      else if (table !== null) {
        const damaged: Pack = { ...known, sizeBytes, table, state: 'damaged' };
        this.packs[known.number] = damaged;
        this.byName.set(name, damaged);
      }
    }
  }
}

function namesOf(packs: readonly { readonly name: string }[]): readonly string[] {
  return packs.map(({ name }) => name);
}

function packOf({ name, sizeBytes }: StoredFile): readonly (readonly [string, number])[] {
  const short = name.slice('packs/'.length);
  return /^[0-9a-f]{32}$/.test(short) ? [[short, sizeBytes]] : [];
}

interface IndexRow {
  readonly name: string;
  readonly sizeBytes: number;
  readonly table: PackTable;
}

/** Writes an index of these packs; its name. */
export async function writeIndex(site: Site, packs: readonly IndexRow[]): Promise<string> {
  const salt = site.host.randomBytes(NAME_BYTES);
  const name = `index/${hexOf(salt)}`;
  const total = packs.reduce((sum, { table }) => sum + PACK_HEADER + table.bytes.byteLength, 0);
  const body = new Uint8Array(total);
  let at = 0;
  for (const pack of packs) {
    body.set(Buffer.from(pack.name, 'hex'), at);
    viewOf(body).setUint32(at + NAME_BYTES, pack.sizeBytes, true);
    viewOf(body).setUint32(at + NAME_BYTES + 4, pack.table.count, true);
    body.set(pack.table.bytes, at + PACK_HEADER);
    at += PACK_HEADER + pack.table.bytes.byteLength;
  }
  await site.store.put(name, encodeObject(site, 'RAIDINDX', name, salt, body));
  return name;
}

function decodeIndex(codec: ObjectCodec, name: string, bytes: Uint8Array): readonly IndexRow[] | null {
  const body = decodeObject(codec, 'RAIDINDX', name, bytes);
  if (body === null) return null;
  const rows: IndexRow[] = [];
  const view = viewOf(body);
  for (let at = 0; at < body.byteLength; ) {
    if (at + PACK_HEADER > body.byteLength) return null;
    const sizeBytes = view.getUint32(at + NAME_BYTES, true);
    const end = at + PACK_HEADER + view.getUint32(at + NAME_BYTES + 4, true) * ENTRY_BYTES;
    if (end > body.byteLength) return null;
    const table = new PackTable(body.subarray(at + PACK_HEADER, end));
    if (table.endBytes > sizeBytes) return null;
    rows.push({ name: hexOf(body.subarray(at, at + NAME_BYTES)), sizeBytes, table });
    at = end;
  }
  return rows;
}
