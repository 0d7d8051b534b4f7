/**
 * Puts chunks into packs, packs into the store, and parity over packs.
 *
 * A chunk counts as stored only when its pack is durable; until then its id is pending, so that the same chunk is not stored
 * twice. Two packs may be on their way at a time: one is written while the next is filled.
 *
 * What is durable when, so that nothing that is listed can lack something:  packs, parity over them, index, and only then
 * what refers to them (create.ts) or what replaces others (prune.ts).
 */
import { assert } from '../errors.ts';
import { MIB } from '../units.ts';
import { type Catalog, type Pack, writeIndex } from './catalog.ts';
import { compress } from './codec.ts';
import type { Group } from './group.ts';
import type { Lock } from './lock.ts';
import { isWholePack, NAME_BYTES, PackBuilder, type PackFile, packPath } from './pack.ts';
import {
  decodeParity,
  encodeParity,
  GroupParity,
  longest,
  memberOf,
  type ParityFile,
  type ParityRole,
  parityPath,
  parityRoles,
} from './parity.ts';
import { hexOf, type Redundancy } from './settings.ts';
import { getOrNull, type Site } from './site.ts';

const PACKS_UNDER_WAY = 2;
/** What a pack is given to begin with; it grows when it needs more. */
const ROOM_MOST = 64 * MIB;

export class ChunkWriter {
  readonly #site: Site;
  readonly #catalog: Catalog;
  readonly #lock: Lock;
  readonly #protector: Protector;
  readonly #pending = new Set<string>();
  #builder: PackBuilder | null = null;
  /** Memory of packs that have been written: new memory costs a page fault for every 4 KiB. */
  readonly #rooms: Uint8Array[] = [];
  #underWay: Promise<void>[] = [];
  #failure: unknown = null;
  storedBytes = 0;

  constructor(site: Site, catalog: Catalog, lock: Lock, protector: Protector) {
    this.#site = site;
    this.#catalog = catalog;
    this.#lock = lock;
    this.#protector = protector;
  }

  has(id: Uint8Array): boolean {
    return this.#catalog.find(id) !== null || this.#pending.has(hexOf(id));
  }

  /** True where it was not there. The bytes may be reused when the promise resolves, and not before. */
  async add(id: Uint8Array, raw: Uint8Array): Promise<boolean> {
    if (this.has(id)) return false;
    this.#pending.add(hexOf(id));
    const { codec, bytes } = await compress(raw);
    if (this.#failure !== null) throw this.#failure;
    this.#builder ??= this.#newPack();
    this.#builder.add(id, codec, raw.byteLength, bytes);
    if (this.#builder.sizeBytes >= this.#site.settings.packBytes) await this.#close();
    return true;
  }

  /** Everything that was added is durable, protected and indexed when it resolves. */
  async finish(): Promise<void> {
    await this.flush();
    await this.#protector.finish();
    await indexAll(this.#site, this.#catalog);
  }

  /** Everything that was added is durable. */
  async flush(): Promise<void> {
    await this.#close();
    await this.#settle(0);
  }

  /** After a failure: nothing of it is under way any more when it resolves. */
  async abandon(): Promise<void> {
    await Promise.allSettled(this.#underWay);
  }

  #newPack(): PackBuilder {
    const { key, host, settings } = this.#site;
    // The last chunk goes past the end, and the table comes behind it.
    const roomBytes = Math.min(settings.packBytes, ROOM_MOST) + 2 * settings.chunkBytes;
    const room = this.#rooms.pop() ?? Buffer.allocUnsafeSlow(roomBytes);
    return new PackBuilder(key, host.randomBytes(NAME_BYTES), room);
  }

  async #close(): Promise<void> {
    const builder = this.#builder;
    this.#builder = null;
    if (builder === null) return;
    await this.#settle(PACKS_UNDER_WAY - 1);
    const pack = builder.finish(this.#site.sum);
    const work = this.#put(pack);
    work.catch((error: unknown) => {
      this.#failure ??= error;
    });
    this.#underWay.push(work);
  }

  async #settle(most: number): Promise<void> {
    while (this.#underWay.length > most) await this.#underWay.shift();
    if (this.#failure !== null) throw this.#failure;
  }

  async #put({ name, bytes, table }: PackFile): Promise<void> {
    await this.#lock.touch();
    const isNew = await this.#site.store.put(packPath(name), bytes);
    assert(isNew, 'nobody draws the same 128 bits twice');
    this.#catalog.add(name, bytes.byteLength, table);
    this.storedBytes += bytes.byteLength;
    for (let entry = 0; entry < table.count; entry += 1) this.#pending.delete(hexOf(table.id(entry)));
    await this.#protector.add(name, bytes);
    this.#rooms.push(new Uint8Array(bytes.buffer));
  }
}

/** One index more, of all packs that stand in none. */
export async function indexAll(site: Site, catalog: Catalog): Promise<void> {
  const rows = catalog.unindexed.flatMap(({ name, sizeBytes, table }) =>
    table === null ? [] : [{ name, sizeBytes, table }],
  );
  if (rows.length > 0) await writeIndex(site, rows);
  catalog.unindexed.length = 0;
}

export function rolesFor(redundancy: Redundancy): readonly ParityRole[] {
  return parityRoles.slice(0, redundancy);
}

/** So many times the bytes of new parity may be read and written again, to have one group in the place of two. */
const MERGE_COST = 4;

/** Brings packs into groups. Does nothing in a repository without redundancy. */
export class Protector {
  readonly #site: Site;
  readonly #lock: Lock;
  readonly #roles: readonly ParityRole[];
  /** Groups with room, that another may be merged into. */
  readonly #groups: readonly Group[];
  #growing: GroupParity;
  /** One pack after the other. */
  #last: Promise<void> = Promise.resolve();

  constructor(site: Site, lock: Lock, groups: readonly Group[]) {
    this.#site = site;
    this.#lock = lock;
    this.#roles = rolesFor(site.settings.redundancy);
    this.#groups = groups;
    this.#growing = new GroupParity(this.#roles);
  }

  add(name: string, bytes: Uint8Array): Promise<void> {
    if (this.#roles.length === 0) return Promise.resolve();
    this.#last = this.#last.then(async () => {
      this.#growing.add(memberOf(name, bytes, this.#site.sum), bytes);
      if (this.#growing.members.length >= this.#site.settings.groupPacks) await this.#write();
    });
    return this.#last;
  }

  /** Packs that an interruption left without parity. */
  async adopt(catalog: Catalog): Promise<void> {
    if (this.#roles.length === 0) return;
    for (const { name } of unprotected(catalog, this.#roles)) {
      const bytes = await getOrNull(this.#site.store, packPath(name));
      // Parity over rot would make it look right.
      if (bytes !== null && isWholePack(bytes, this.#site.sum)) await this.add(name, bytes);
    }
  }

  async finish(): Promise<void> {
    await this.#last;
    if (this.#growing.members.length === 0) return;
    const found = await this.#findRoom();
    const merged = found === null ? null : GroupParity.from(found.files);
    merged?.merge(this.#growing);
    if (merged !== null) this.#growing = merged;
    await this.#write();
    if (found === null) return;
    await this.#lock.check();
    await deleteGroup(this.#site.store, found.group);
  }

  async #write(): Promise<void> {
    const { store, host, sum } = this.#site;
    await this.#lock.touch();
    const group = hexOf(host.randomBytes(NAME_BYTES));
    for (const file of this.#growing.files(group)) {
      await store.put(parityPath(group, file.role), encodeParity(file, sum));
    }
    this.#growing = new GroupParity(this.#roles);
  }

  /** The fullest group that takes what is growing, and is not much longer: or a small backup would rewrite large files. */
  async #findRoom(): Promise<{ readonly group: Group; readonly files: readonly ParityFile[] } | null> {
    const { store, settings, sum } = this.#site;
    const { members, sizeBytes } = this.#growing;
    const candidates = this.#groups
      .filter((group) => group.members.length + members.length <= settings.groupPacks)
      .filter((group) => longest(group.members) <= MERGE_COST * sizeBytes)
      .sort((left, right) => right.members.length - left.members.length);
    for (const group of candidates) {
      const files: ParityFile[] = [];
      for (const role of this.#roles) {
        const bytes = await getOrNull(store, parityPath(group.name, role));
        const file = bytes === null ? null : decodeParity(group.name, role, bytes, sum);
        if (file !== null) files.push(file);
      }
      if (files.length === this.#roles.length) return { group, files };
    }
    return null;
  }
}

/** All of its packs are there, and all of its parity. */
export function isSound(group: Group, catalog: Catalog, roles: readonly ParityRole[]): boolean {
  return (
    roles.every((role) => group.roles.has(role)) &&
    group.members.every(({ name }) => catalog.byName.get(name)?.state === 'there')
  );
}

export function soundGroups({ settings }: Site, catalog: Catalog): readonly Group[] {
  const roles = rolesFor(settings.redundancy);
  return catalog.groups.filter((group) => isSound(group, catalog, roles));
}

/** Packs that are there and in no group that has all of its parity. */
export function unprotected(catalog: Catalog, roles: readonly ParityRole[] = []): readonly Pack[] {
  const safe = new Set(
    catalog.groups
      .filter((group) => roles.every((role) => group.roles.has(role)))
      .flatMap(({ members }) => members.map(({ name }) => name)),
  );
  return catalog.packs.filter(({ name, state }) => state === 'there' && !safe.has(name));
}

export async function deleteGroup(store: Site['store'], { name }: Pick<Group, 'name'>): Promise<void> {
  for (const role of parityRoles) await store.delete(parityPath(name, role));
}
