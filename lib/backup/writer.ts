/**
 * Puts chunks into packs, packs into the store, and parity over packs.
 *
 * A chunk counts as stored only when its pack is durable; until then its id is pending, so that the same chunk is not stored
 * twice. Which chunks are new is decided here, by one thread; to hash, compress and seal them is the work of several, where
 * there is enough of it to be worth starting them. Each thread fills a pack of its own.
 *
 * Memory. A pack needs a room from its first chunk until it is durable and in the parity, and each thread has two (this one three),
 * so that packs are written while others are filled. Where the store is slow, threads wait for rooms, and chunks for
 * threads: nothing piles up. With chunks of 256 KiB and packs of 16 MiB that is up to 52 MiB for this thread and 37 for each other.
 *
 * What is durable when, so that nothing that is listed can lack something:  packs, parity over them, index, and only then
 * what refers to them (create.ts) or what replaces others (prune.ts).
 */
import { assert } from '../errors.ts';
import { MIB } from '../units.ts';
import { type Catalog, type Pack, writeIndex } from './catalog.ts';
import type { Group } from './group.ts';
import type { Lock } from './lock.ts';
import { ID_BYTES, isWholePackOf, NAME_BYTES, type PackFile, packPath } from './pack.ts';
import { hashAll, Packer } from './packer.ts';
import type { NewCut } from './packer-message.ts';
import { PackerThread, TRAYS, type Tray } from './packer-threads.ts';
import {
  decodeParity,
  encodeParity,
  type GroupMember,
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
/** What a pack is given to begin with, if so much is to come; it grows when it needs more. */
const ROOM_MOST = 64 * MIB;
/** Several chunks are read, hashed and handed on together. */
const TRAY_BYTES = MIB;
/** One is filled while this thread packs what is in the other. */
const OWN_TRAYS = 2;
/** To start threads takes as long as to hash and pack so much. */
const THREADS_FROM_BYTES = 24 * MIB;

export class ChunkWriter {
  readonly #site: Site;
  readonly #catalog: Catalog;
  readonly #lock: Lock;
  readonly #protector: Protector;
  readonly #pending = new Set<string>();
  /** This thread's own. */
  readonly #packer: Packer;
  readonly #trays: Tray[] = [];
  readonly #rooms: Rooms;
  readonly #roomBytes: number;
  /** What a tray has room for. */
  readonly trayBytes: number;
  readonly #threads: PackerThread[] = [];
  /** Those who wait for a tray. */
  #waiting: (() => void)[] = [];
  #opening: Promise<void> | null = null;
  readonly #underWay = new Set<Promise<void>>();
  #failure: unknown = null;
  storedBytes = 0;

  constructor(site: Site, catalog: Catalog, lock: Lock, protector: Protector) {
    this.#site = site;
    this.#catalog = catalog;
    this.#lock = lock;
    this.#protector = protector;
    const { packBytes, chunkBytes, pageChunks } = site.settings;
    this.#packer = new Packer(site, packBytes);
    // Prune moves pages of maps too.
    this.trayBytes = Math.max(TRAY_BYTES, chunkBytes, pageChunks * ID_BYTES);
    for (let count = OWN_TRAYS; count > 0; count -= 1) this.#trays.push(this.#tray());
    // The last chunk goes past the end, and the table comes behind it.
    this.#roomBytes = Math.min(packBytes, ROOM_MOST) + 2 * chunkBytes;
    this.#rooms = new Rooms(1 + PACKS_UNDER_WAY, 2 * chunkBytes);
  }

  /** So much is to come, as far as anybody knows: more than one thread may be of use. */
  expect(lengthBytes: number): void {
    const { threads, settings } = this.#site;
    this.#rooms.makeLarger(Math.min(this.#roomBytes, lengthBytes + 2 * settings.chunkBytes));
    const count = threads.from === 'always' || lengthBytes >= THREADS_FROM_BYTES ? threads.count : 0;
    while (this.#threads.length < count) {
      this.#threads.push(
        new PackerThread({
          trayBytes: this.trayBytes,
          roomBytes: this.#roomBytes,
          key: this.#site.key,
          packBytes: this.#site.settings.packBytes,
          drawName: () => this.#site.host.randomBytes(NAME_BYTES),
          onPack: (pack) => this.#take(pack),
          onFree: () => this.#wake(),
          onDeath: (error) => this.#fail(error),
        }),
      );
    }
  }

  /** So many may wait for trays and keep all threads at work. */
  get width(): number {
    return OWN_TRAYS + this.#threads.length * TRAYS;
  }

  has(id: Uint8Array): boolean {
    return this.#catalog.find(id) !== null || this.#pending.has(hexOf(id));
  }

  /** To be released by whoever took it. */
  async tray(): Promise<Tray> {
    for (;;) {
      if (this.#failure !== null) throw this.#failure;
      const [freest] = [...this.#threads].sort((left, right) => right.freeTrays - left.freeTrays);
      if (freest !== undefined && freest.freeTrays > 0) return freest.takeTray();
      // The others have all that they can take: then this thread has time to help.
      const own =
        this.#threads.length > 0 && this.#site.threads.from === 'always' ? undefined : this.#trays.pop();
      if (own !== undefined) return own;
      await new Promise<void>((resolve) => {
        this.#waiting.push(resolve);
      });
    }
  }

  /** Those that are new of the chunks in a tray are stored; which they were. */
  async addFrom(tray: Tray, cuts: readonly NewCut[]): Promise<readonly NewCut[]> {
    const found: NewCut[] = [];
    for (const cut of cuts) {
      if (this.has(cut.id)) continue;
      this.#pending.add(hexOf(cut.id));
      found.push(cut);
    }
    if (found.length > 0) await tray.store(found);
    return found;
  }

  /** What comes one by one: by this thread. True where it was not there. */
  async add(id: Uint8Array, raw: Uint8Array): Promise<boolean> {
    if (this.has(id)) return false;
    this.#pending.add(hexOf(id));
    await this.#pack(id, raw);
    return true;
  }

  /** Everything that was added is durable, protected and indexed when it resolves. */
  async finish(): Promise<void> {
    await this.flush();
    await this.#protector.finish();
    await indexAll(this.#site, this.#catalog);
  }

  /** Everything that was added is durable, and the threads have ended. */
  async flush(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.finish()));
    this.#takeOwn(this.#packer.finish());
    await Promise.all(this.#underWay);
    if (this.#failure !== null) throw this.#failure;
    await this.#endThreads();
  }

  /** After a failure: nothing of it is under way any more when it resolves. */
  async abandon(): Promise<void> {
    this.#fail(new Error('given up'));
    await this.#endThreads();
    await Promise.allSettled(this.#underWay);
  }

  async #endThreads(): Promise<void> {
    const threads = this.#threads.splice(0);
    await Promise.all(threads.map((thread) => thread.end()));
    this.#wake();
  }

  #tray(): Tray {
    let bytes: Uint8Array | null = null;
    const { trayBytes } = this;
    const tray: Tray = {
      get bytes() {
        bytes ??= newMemory(trayBytes);
        return bytes;
      },
      hash: (cuts) => Promise.resolve(hashAll(tray.bytes, cuts)),
      store: async (cuts) => {
        for (const { id, at, lengthBytes } of cuts) {
          await this.#pack(id, tray.bytes.subarray(at, at + lengthBytes));
        }
      },
      release: () => {
        this.#trays.push(tray);
        this.#wake();
      },
    };
    return tray;
  }

  async #pack(id: Uint8Array, raw: Uint8Array): Promise<void> {
    while (this.#packer.needsRoom) {
      this.#opening ??= this.#rooms
        .take()
        .then((memory) => this.#packer.open({ name: this.#site.host.randomBytes(NAME_BYTES), memory }))
        .finally(() => {
          this.#opening = null;
        });
      await this.#opening;
    }
    if (this.#failure !== null) throw this.#failure;
    this.#takeOwn(this.#packer.add(id, raw));
  }

  #takeOwn(pack: PackFile | null): void {
    if (pack === null) return;
    void this.#take(pack).then(() => this.#rooms.give(new Uint8Array(pack.bytes.buffer)));
  }

  /** Resolves when nobody looks at its bytes any more, and never fails. */
  #take(pack: PackFile): Promise<void> {
    const work = this.#put(pack)
      .catch((error: unknown) => this.#fail(error))
      .finally(() => this.#underWay.delete(work));
    this.#underWay.add(work);
    return work;
  }

  async #put({ name, bytes, table, sum }: PackFile): Promise<void> {
    await this.#lock.touch();
    const isNew = await this.#site.store.put(packPath(name), bytes);
    assert(isNew, 'nobody draws the same 128 bits twice');
    this.#catalog.add(name, bytes.byteLength, table);
    this.storedBytes += bytes.byteLength;
    for (let entry = 0; entry < table.count; entry += 1) this.#pending.delete(hexOf(table.id(entry)));
    await this.#protector.add({ name, sizeBytes: bytes.byteLength, sum }, bytes);
  }

  #fail(error: unknown): void {
    this.#failure ??= error;
    this.#rooms.refuse(error);
    this.#wake();
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }
}

/**
 * As the threads' memory is. The collector counts an ArrayBuffer, and after a few MiB of them it runs: that takes as long as to pack
 * what a small backup has to pack. It does not count these.
 */
function newMemory(lengthBytes: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(lengthBytes));
}

/** Memory for packs, used again: new memory costs a page fault for every 4 KiB. */
class Rooms {
  readonly #most: number;
  #roomBytes: number;
  readonly #free: Uint8Array[] = [];
  #made = 0;
  readonly #waiting: {
    readonly give: (room: Uint8Array) => void;
    readonly refuse: (error: unknown) => void;
  }[] = [];
  #refusal: { readonly error: unknown } | null = null;

  constructor(most: number, roomBytes: number) {
    this.#most = most;
    this.#roomBytes = roomBytes;
  }

  /** Of rooms to come. Of a backup of which little is new, a room for a whole pack would be what takes longest. */
  makeLarger(roomBytes: number): void {
    this.#roomBytes = Math.max(this.#roomBytes, roomBytes);
  }

  take(): Promise<Uint8Array> {
    if (this.#refusal !== null) return Promise.reject(this.#refusal.error);
    const room = this.#free.pop();
    if (room !== undefined && room.byteLength >= this.#roomBytes) return Promise.resolve(room);
    if (room !== undefined) this.#made -= 1;
    if (this.#made < this.#most) {
      this.#made += 1;
      return Promise.resolve(newMemory(this.#roomBytes));
    }
    return new Promise((give, refuse) => {
      this.#waiting.push({ give, refuse });
    });
  }

  give(room: Uint8Array): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(room);
    else next.give(room);
  }

  refuse(error: unknown): void {
    this.#refusal ??= { error };
    for (const { refuse } of this.#waiting.splice(0)) refuse(error);
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

  add(member: GroupMember, bytes: Uint8Array): Promise<void> {
    if (this.#roles.length === 0) return Promise.resolve();
    this.#last = this.#last.then(async () => {
      this.#growing.add(member, bytes);
      if (this.#growing.members.length >= this.#site.settings.groupPacks) await this.#write();
    });
    return this.#last;
  }

  /** Packs that an interruption left without parity. */
  async adopt(catalog: Catalog): Promise<void> {
    if (this.#roles.length === 0) return;
    for (const pack of unprotected(catalog, this.#roles)) {
      const bytes = await getOrNull(this.#site.store, packPath(pack.name));
      // Parity over rot would make it look right.
      if (bytes !== null && (await isWholePackOf(this.#site, pack, bytes)))
        await this.add(memberOf(pack.name, bytes, this.#site.sum), bytes);
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
