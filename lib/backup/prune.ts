/**
 * Forgets backups, and gives back the space that only they needed.
 *
 *   1  the records that are to go, all copies: from here on there is only more in the repository than needed. What somebody reads for
 *      long stays (hold.ts)
 *   2  which chunks the remaining backups need. One page of one of them that cannot be read, and nothing more is done
 *   3  packs of which nothing is needed go at once where nothing has to be written for that: such as those that a backup left that
 *      filled the disk. First the indexes and groups that know of no other packs, then these packs
 *   4  packs of which too little is needed are written anew, with what is
 *   5  new packs, parity for them and for those whose group loses a pack, one new index: durable before anything goes
 *   6  then the old indexes, the groups that lose a pack, the packs
 *
 * Killed anywhere, every backup that is listed is whole: a pack goes when nothing refers to it any more, and after the
 * parity that was computed over it, so that no group ever lacks a pack that it needs. What is left over goes the next time.
 */
import { RaidError } from '../errors.ts';
import { Catalog, type Pack, writeIndex } from './catalog.ts';
import { isZeroId } from './chunks.ts';
import { type Group, type GroupFiles, isWholeGroup, readGroup, recoverGroup } from './group.ts';
import { holdersOf, refuseIfHeld, whileGoing } from './hold.ts';
import type { Lock, Witness } from './lock.ts';
import { ENTRY_BYTES, isWholePackOf, packPath } from './pack.ts';
import { isMemberFile, memberOf } from './parity.ts';
import { ChunkReader, idAt, pageId } from './reader.ts';
import { type Backup, type BackupRecord, backupPath, idsOnPage, pageCount, withoutPages } from './record.ts';
import { readRecords } from './records.ts';
import { containedGroups } from './repair.ts';
import { type KeepRules, retained } from './retain.ts';
import { getOrNull, type Site } from './site.ts';
import { ChunkWriter, deleteGroup, Protector, rolesFor } from './writer.ts';

export interface PruneOptions {
  /** Without any rule no backup goes, and only what no backup needs does. */
  readonly keep?: KeepRules;
  /** Ids of backups that go whatever the rules say. */
  readonly remove?: readonly string[];
  /** Says what would happen, and does nothing. */
  readonly dryRun?: boolean;
  readonly progress?: (progress: { readonly doneBytes: number; readonly totalBytes: number }) => void;
}

export interface PruneReport {
  readonly removed: readonly Backup[];
  readonly kept: readonly (Backup & { readonly because: readonly string[] })[];
  readonly packsDeleted: number;
  readonly packsRewritten: number;
  /** Of packs alone, parity not counted. */
  readonly freedBytes: number;
}

/** A pack is written anew when this share of it is of no use. */
const WASTE = 0.25;

export async function pruneRepository(
  site: Site,
  lock: Lock | null,
  witness: Witness,
  options: PruneOptions,
): Promise<PruneReport> {
  const { records, unreadable } = await readRecords(site);
  const counts = Object.values(options.keep ?? {});
  if (counts.length > 0 && counts.every((count) => count === 0)) {
    throw new RaidError(
      'BAD_ARGUMENT',
      'to keep 0 backups would let all of them go: name those that are to go',
    );
  }
  const rules = retained(records, options.keep ?? {});
  const holders = await holdersOf(site, witness, options.dryRun !== true);
  for (const id of options.remove ?? []) refuseIfHeld(site.store.name, id, holders);
  const leaves = (id: string): boolean =>
    options.remove?.includes(id) === true || !(rules.has(id) || holders.has(id));
  const unread = unreadable.filter((id) => options.remove?.includes(id) !== true);
  if (unread.length > 0) {
    throw new RaidError(
      'BAD_REPOSITORY',
      `the record of backup ${unread.join(', ')} in ${site.store.name} cannot be read, so nobody knows what it needs; repair the repository, or let that backup go (remove)`,
      { device: site.store.name },
    );
  }
  const going = records.filter(({ id }) => leaves(id));
  const staying = records.filter(({ id }) => !leaves(id));
  await lock?.touch();
  const catalog = await Catalog.load(site);
  await lock?.touch();
  const plan = planPacks(catalog, await neededEntries(site, lock, catalog, staying));
  const becauseOf = (id: string): readonly string[] =>
    rules.get(id) ?? (holders.get(id) ?? []).map((who) => `read by ${who}`);
  const report = {
    removed: going.map(withoutPages),
    kept: staying.map((record) => ({ ...withoutPages(record), because: becauseOf(record.id) })),
    packsDeleted: plan.dead.length,
    packsRewritten: plan.wasteful.length,
  };
  const oldBytes = bytesOf([...plan.dead, ...plan.wasteful.map(({ pack }) => pack)]);
  if (options.dryRun === true || lock === null) {
    const moved = plan.wasteful.reduce((sum, { neededBytes }) => sum + neededBytes, 0);
    return { ...report, freedBytes: oldBytes - moved };
  }
  const gone = new Set<string>();
  const isDone = await letGo(site, lock, witness, [...going.map(({ id }) => id), ...unreadable], gone);
  if (!isDone) {
    // Somebody has come: with what that one reads, other packs are needed.
    const again = await pruneRepository(site, lock, witness, options);
    return { ...again, removed: [...report.removed.filter(({ id }) => gone.has(id)), ...again.removed] };
  }
  const left = await clear(site, lock, catalog, plan);
  const movedBytes = await rewrite(site, lock, catalog, left, options);
  return { ...report, freedBytes: Math.max(0, oldBytes - movedBytes) };
}

/**
 * Step 1. False where somebody holds one of them. Mostly all go at once, and then nothing is deleted; where there is no room for a mark of each, or the
 * store takes its time, some go after the others, each time with a new look at who holds, and `gone` says which have.
 */
async function letGo(
  site: Site,
  lock: Lock,
  witness: Witness,
  backups: readonly string[],
  gone: Set<string>,
): Promise<boolean> {
  // In the end one mark at a time: that one counts, however slow the store.
  for (let most = backups.length, before = -1; ; before = gone.size) {
    if (gone.size === before) most = Math.ceil(most / 2);
    const left = backups.filter((id) => !gone.has(id)).slice(0, most);
    await lock.touch();
    const isFree = await whileGoing(site, witness, left, async (marks) => {
      if (marks.backups.length > 0) {
        const holders = await holdersOf(site, witness, true);
        if (marks.backups.some((id) => holders.has(id))) return false;
      }
      await lock.check();
      for (const id of marks.backups) {
        await lock.touch();
        if (!(await deleteRecord(site, id, marks.areBelieved))) break;
        gone.add(id);
      }
      return true;
    });
    if (!isFree) return false;
    if (gone.size === backups.length) return true;
  }
}

/** The last copy last: until then the backup is listed, and whole. False where it stays so, and `repair` makes the copies again. */
async function deleteRecord({ store, settings }: Site, id: string, mayGoOn: () => boolean): Promise<boolean> {
  for (let copy = 0; copy <= settings.redundancy; copy += 1) {
    if (!mayGoOn()) return false;
    await store.delete(backupPath(id, copy));
  }
  return true;
}

/** For each pack, by number, the entries that some backup needs. */
type Needed = ReadonlyMap<number, ReadonlySet<number>>;

async function neededEntries(
  site: Site,
  lock: Lock | null,
  catalog: Catalog,
  records: readonly BackupRecord[],
): Promise<Needed> {
  const { settings, store } = site;
  const needed = new Map<number, Set<number>>();
  const reader = new ChunkReader(site, catalog);
  const seen = new Set<string>();
  const mark = async (id: Uint8Array): Promise<void> => {
    const places = catalog.places(id);
    if (places.some(({ pack, entry }) => needed.get(pack)?.has(entry) === true)) return;
    // The others go: what stays must be what can be read.
    const place = places.length > 1 ? await reader.soundPlace(catalog, id) : places[0];
    if (place === undefined) return;
    const entries = needed.get(place.pack);
    if (entries === undefined) needed.set(place.pack, new Set([place.entry]));
    else entries.add(place.entry);
  };
  for (const record of records) {
    for (let page = 0; page < pageCount(record, settings); page += 1) {
      const id = pageId(record, page);
      if (isZeroId(id)) continue;
      // Pages are shared between backups; but a page of another length is not this page.
      const key = `${Buffer.from(id).toString('latin1')}${idsOnPage(page, record, settings)}`;
      if (seen.has(key)) continue;
      seen.add(key);
      await lock?.touch();
      const ids = await reader.readPage(record, page);
      if (ids === null) {
        throw new RaidError(
          'BAD_REPOSITORY',
          `backup ${record.id} in ${store.name} has lost a page of its map, so nobody knows what it needs; repair the repository, or let that backup go (remove)`,
          { device: store.name },
        );
      }
      await mark(id);
      for (let index = 0; index < idsOnPage(page, record, settings); index += 1) {
        const chunk = idAt(ids, index);
        if (!isZeroId(chunk)) await mark(chunk);
      }
    }
  }
  return needed;
}

interface PackPlan {
  readonly dead: readonly Pack[];
  /** Packs that are missing, and are not missed. */
  readonly unneeded: ReadonlySet<string>;
  readonly wasteful: readonly {
    readonly pack: Pack;
    readonly entries: ReadonlySet<number>;
    readonly neededBytes: number;
  }[];
}

function planPacks(catalog: Catalog, needed: Needed): PackPlan {
  const dead: Pack[] = [];
  const unneeded = new Set<string>();
  const wasteful: PackPlan['wasteful'][number][] = [];
  for (const pack of catalog.packs) {
    // Of what cannot be read nobody knows whether it is needed.
    if (pack.table === null) continue;
    const entries = needed.get(pack.number) ?? new Set<number>();
    if (entries.size === 0) {
      if (pack.state === 'missing') unneeded.add(pack.name);
      else dead.push(pack);
      continue;
    }
    // What is missing may come back.
    if (pack.state !== 'there') continue;
    let neededBytes = 0;
    // Small chunks cost more in the table than by themselves.
    for (const entry of entries) neededBytes += pack.table.entry(entry).range.lengthBytes + ENTRY_BYTES;
    const chunkBytes = pack.table.endBytes + pack.table.bytes.byteLength;
    if (neededBytes < chunkBytes * (1 - WASTE)) wasteful.push({ pack, entries, neededBytes });
  }
  return { dead, unneeded, wasteful };
}

function bytesOf(packs: readonly Pack[]): number {
  return packs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}

/** What is left of the plan, and of the groups. */
interface Left extends PackPlan {
  readonly groups: readonly Group[];
}

/** Step 3: room is made before any is taken. */
async function clear(site: Site, lock: Lock, catalog: Catalog, plan: PackPlan): Promise<Left> {
  const { store } = site;
  for (const { name } of await store.list('tmp/')) await store.delete(name);
  const dead = new Set(plan.dead.map(({ name }) => name));
  const isOfNoUse = (name: string): boolean => dead.has(name) || plan.unneeded.has(name);
  const held = new Set<string>();
  for (const [index, packs] of catalog.indexed) {
    await lock.touch();
    if (packs.every(isOfNoUse)) await store.delete(index);
    else for (const name of packs) held.add(name);
  }
  const groups: Group[] = [];
  for (const group of catalog.groups) {
    await lock.touch();
    if (group.members.every(({ name }) => isOfNoUse(name))) await deleteGroup(store, group);
    else {
      groups.push(group);
      for (const { name } of group.members) held.add(name);
    }
  }
  for (const { name } of plan.dead) {
    await lock.touch();
    if (!held.has(name)) await store.delete(packPath(name));
  }
  return { ...plan, dead: plan.dead.filter(({ name }) => held.has(name)), groups };
}

/** Steps 4 to 6; how many bytes were written anew. */
async function rewrite(
  site: Site,
  lock: Lock,
  catalog: Catalog,
  plan: Left,
  { progress }: PruneOptions,
): Promise<number> {
  const { store } = site;
  const going = new Set(plan.dead.map(({ name }) => name));
  const moved = new Protector(site, lock, []);
  // Its own catalog: what is moved counts as stored only where it has been moved to.
  const writer = new ChunkWriter(site, new Catalog(), lock, moved);
  try {
    const reader = new ChunkReader(site, catalog);
    const totalBytes = plan.wasteful.reduce((sum, { neededBytes }) => sum + neededBytes, 0);
    let doneBytes = 0;
    writer.expect(totalBytes);
    for (const { pack, entries, neededBytes } of plan.wasteful) {
      await lock.touch();
      if (await move(reader, writer, pack, entries)) going.add(pack.name);
      doneBytes += neededBytes;
      progress?.({ doneBytes, totalBytes });
    }
    await writer.flush();
  } catch (error) {
    await writer.abandon();
    throw error;
  }
  const broken = plan.groups.filter(({ members }) => members.some(({ name }) => going.has(name)));
  const roles = rolesFor(site.settings.redundancy);
  const bereft = new Set(broken.flatMap(({ members }) => members.map(({ name }) => name)));
  const safe = new Set<string>();
  for (const group of plan.groups.filter((other) => !broken.includes(other))) {
    const names = group.members.map(({ name }) => name);
    if (!names.some((name) => bereft.has(name))) continue;
    await lock.touch();
    if (await isWholeGroup(site, group, roles)) for (const name of names) safe.add(name);
  }
  for (const group of broken) await regroup(site, catalog, group, going, safe, moved);
  await moved.finish();
  await replaceIndexes(site, lock, going, plan.unneeded);
  await lock.check();
  for (const group of broken) await deleteGroup(store, group);
  for (const group of await containedGroups(site, await Catalog.load(site), roles)) {
    await lock.check();
    await deleteGroup(store, group);
  }
  for (const name of going) {
    await lock.touch();
    await store.delete(packPath(name));
  }
  return writer.storedBytes;
}

const CHUNKS_UNDER_WAY = 16;

/** Stores what is needed of a pack anew; false where a part of that cannot be read, and the pack has to stay. */
async function move(
  reader: ChunkReader,
  writer: ChunkWriter,
  { table }: Pack,
  entries: ReadonlySet<number>,
): Promise<boolean> {
  const ids = [...entries].sort((left, right) => left - right).map((entry) => table!.id(entry));
  for (let from = 0; from < ids.length; from += CHUNKS_UNDER_WAY) {
    const some = ids.slice(from, from + CHUNKS_UNDER_WAY);
    const chunks = await reader.readMany(some);
    if (chunks.includes(null)) return false;
    await settleAll(some.map((id, index) => store(writer, id, chunks[index]!)));
  }
  return true;
}

async function store(writer: ChunkWriter, id: Uint8Array, chunk: Uint8Array): Promise<void> {
  const tray = await writer.tray();
  try {
    tray.bytes.set(chunk);
    await writer.addFrom(tray, [{ id, at: 0, lengthBytes: chunk.byteLength }]);
  } finally {
    tray.release();
  }
}

/** None of them is under way any more when it fails. */
async function settleAll(works: readonly Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(works)).find(({ status }) => status === 'rejected');
  if (failed?.status === 'rejected') throw failed.reason;
}

/**
 * Parity anew for the packs of a group that remain. One that is not what it was is repaired in passing, while the group can
 * still do that; where it cannot, nothing is lost with the group.
 */
async function regroup(
  site: Site,
  catalog: Catalog,
  group: Group,
  going: ReadonlySet<string>,
  safe: Set<string>,
  protector: Protector,
): Promise<void> {
  let files: GroupFiles | undefined;
  let recovered: ReadonlyMap<string, Uint8Array> | null | undefined;
  for (const listed of group.members) {
    const { name } = listed;
    if (going.has(name) || safe.has(name)) continue;
    let [member, bytes] = [listed, await getOrNull(site.store, packPath(name))];
    if (bytes === null || !isMemberFile(listed, bytes, site.sum)) {
      files ??= await readGroup(site, group);
      const pack = catalog.byName.get(name) ?? { name, table: null };
      if (files.parity.size === 0 && bytes !== null && (await isWholePackOf(site, pack, bytes))) {
        // Nobody vouches for the list (group.ts), but the pack does for itself.
        member = memberOf(name, bytes, site.sum);
      } else {
        recovered ??= recoverGroup(site, group, files);
        bytes = recovered?.get(name) ?? null;
        if (bytes !== null) await site.store.replace(packPath(name), bytes);
      }
    }
    if (bytes === null) continue;
    safe.add(name);
    await protector.add(member, bytes);
  }
}

/** One index of all packs that stay, in the place of those that there are. */
async function replaceIndexes(
  site: Site,
  lock: Lock,
  going: ReadonlySet<string>,
  unneeded: ReadonlySet<string>,
): Promise<void> {
  const { packs, indexes, unindexed } = await Catalog.load(site);
  if (indexes.length <= 1 && going.size === 0 && unneeded.size === 0 && unindexed.length === 0) return;
  const rows = packs.flatMap(({ name, sizeBytes, table }) =>
    table === null || going.has(name) || unneeded.has(name) ? [] : [{ name, sizeBytes, table }],
  );
  if (rows.length > 0) await writeIndex(site, rows);
  await lock.check();
  for (const { name } of indexes) await site.store.delete(name);
}
