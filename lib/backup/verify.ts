/**
 * Is everything there, is it what it was, and if not, what is lost: which backup, which bytes of it.
 *
 *   structure     every record, page, index and group can be read, and every pack is there and as long as it was
 *   read data     of all packs or a share of them: every file is read, its sum, and each chunk's hash; parity files too
 *
 * A file that is missing or wrong is *damage* if the repository can make it again, and only what depends on files beyond
 * that is *lost*. An interrupted backup or prune leaves packs that no parity protects, and copies that were not made yet:
 * that is less redundancy, and no damage.
 *
 * No lock is held. Who prunes meanwhile takes away what is not needed any more and moves what is, so that it is not where it was looked
 * for, and nothing is wrong: what is told was found by two looks at the whole repository, one after the other, and a file that reading
 * found wrong was read again in each.
 */
import type { LostRange } from '../errors.ts';
import { Catalog, type Pack } from './catalog.ts';
import { isZeroId, type Place } from './chunks.ts';
import { readSettingsCopies, type SettingsCopies } from './copies.ts';
import { readGroup, rottenParity } from './group.ts';
import { isWholePack, packPath } from './pack.ts';
import { isMemberFile } from './parity.ts';
import { ChunkReader, decodeChunk, idAt, pageId } from './reader.ts';
import {
  type Backup,
  type BackupRecord,
  bytesOfChunk,
  idsOnPage,
  pageCount,
  withoutPages,
} from './record.ts';
import { type Records, readRecords } from './records.ts';
import { addLost } from './restore.ts';
import { hexOf } from './settings.ts';
import { getOrNull, type Site } from './site.ts';
import { rolesFor, unprotected } from './writer.ts';

export interface Damage {
  /** The file. */
  readonly name: string;
  readonly why: string;
  /** Whether what is left is enough to make it again. */
  readonly repairable: boolean;
}

export interface LostBackup {
  /** Null where not even its record can be read. */
  readonly backup: Backup | null;
  readonly id: string;
  readonly lost: readonly LostRange[];
}

export interface VerifyReport {
  readonly backups: number;
  readonly packs: number;
  readonly packsRead: number;
  readonly storedBytes: number;
  readonly damaged: readonly Damage[];
  readonly lost: readonly LostBackup[];
  /** Files that are there, and would have redundancy if it had not been interrupted: `repair`, or the next backup, gives it. */
  readonly unprotected: readonly string[];
}

export interface VerifyOptions {
  /** Of 100 packs, so many are read (default 0: only what is where). */
  readonly readPercent?: number;
  readonly progress?: (progress: { readonly doneBytes: number; readonly totalBytes: number }) => void;
  readonly signal?: AbortSignal;
}

/** What is wrong with a pack: the whole of it, or these entries. */
export type BadPacks = ReadonlyMap<string, 'all' | ReadonlySet<number>>;

/** So many times it is looked anew whether what is wrong still is. */
const LOOKS = 8;

export async function verifyRepository(site: Site, options: VerifyOptions): Promise<VerifyReport | null> {
  const before = await lookAt(site);
  const { catalog } = before;
  const faults: Faults = { packs: new Map(), parity: new Set(), lists: [] };
  const packsRead = await readPacks(site, catalog, options, async (pack, bytes) => {
    const fault = await faultOf(site, catalog, pack, bytes);
    if (fault !== null) faults.packs.set(pack.name, fault);
  });
  if (packsRead === null) return null;
  if ((options.readPercent ?? 0) > 0) {
    await distrust(site, catalog, faults, () => true);
  }
  let found = await judge(site, before, faults);
  for (let turn = 0; turn < LOOKS && found.damaged.length + found.lost.length > 0; turn += 1) {
    const last = found;
    const now = await lookAt(site);
    await readAgain(site, now, faults);
    found = await judge(site, now, faults);
    // The first of them was of a time before all the reading.
    if (turn === 0) continue;
    const damaged = found.damaged.filter(({ name }) => last.damaged.some((other) => other.name === name));
    const lost = found.lost.filter(({ id }) => last.lost.some((other) => other.id === id));
    const isSure = damaged.length === found.damaged.length && lost.length === found.lost.length;
    if (isSure || turn === LOOKS - 1) found = { ...found, damaged, lost };
    if (isSure) break;
  }
  return { ...found, packsRead };
}

/** What there is. Records before the packs that they need: of a backup that is made meanwhile nothing is asked. */
interface Look {
  readonly settings: SettingsCopies;
  readonly records: Records;
  readonly catalog: Catalog;
}

async function lookAt(site: Site): Promise<Look> {
  const settings = await readSettingsCopies(site);
  const records = await readRecords(site);
  return { settings, records, catalog: await Catalog.load(site) };
}

interface PackFault {
  readonly bad: 'all' | ReadonlySet<number>;
  readonly why: string;
}

/** What reading found: packs by name, parity files by path. */
interface Faults {
  readonly packs: Map<string, PackFault>;
  parity: ReadonlySet<string>;
  /** Of groups none of whose parity is whole: what stands there, and the packs that do not bear it out. */
  lists: readonly { readonly group: string; readonly unlike: readonly string[] }[];
}

async function distrust(
  site: Site,
  catalog: Catalog,
  faults: Faults,
  asked: (path: string) => boolean,
): Promise<void> {
  const before = [...catalog.groups];
  faults.parity = await rottenParity(site, before, asked);
  catalog.distrust(faults.parity);
  const lists: { readonly group: string; readonly unlike: readonly string[] }[] = [];
  for (const group of before) {
    if (catalog.groups.some(({ name }) => name === group.name)) continue;
    const { packs } = await readGroup(site, group);
    const unlike = group.members.filter((_, index) => packs[index] === null);
    lists.push({ group: group.name, unlike: unlike.map(({ name }) => name) });
  }
  faults.lists = lists;
}

async function faultOf(
  site: Site,
  catalog: Catalog,
  pack: Pack,
  bytes: Uint8Array | null,
): Promise<PackFault | null> {
  const bad = await badEntries(site, catalog, pack, bytes);
  return bad === null ? null : { bad, why: bytes === null ? 'cannot be read' : 'is not as it was written' };
}

/** What is still there, and still wrong. Parity first: a pack may have been found wrong by what a rotten file says. */
async function readAgain(site: Site, { catalog }: Look, faults: Faults): Promise<void> {
  const { packs, parity } = faults;
  await distrust(site, catalog, faults, (path) => parity.has(path));
  for (const name of [...packs.keys()]) {
    const pack = catalog.byName.get(name);
    const fault =
      pack === undefined
        ? null
        : await faultOf(site, catalog, pack, await getOrNull(site.store, packPath(name)));
    if (fault === null) packs.delete(name);
    else packs.set(name, fault);
  }
}

async function judge(
  site: Site,
  { settings, records, catalog }: Look,
  { packs, lists }: Pick<Faults, 'packs' | 'lists'>,
): Promise<Omit<VerifyReport, 'packsRead'>> {
  const roles = rolesFor(site.settings.redundancy);
  const whys = new Map<string, string>();
  const badPacks = new Map<string, 'all' | ReadonlySet<number>>();
  for (const pack of catalog.packs) {
    if (pack.state === 'there' && pack.table !== null) continue;
    badPacks.set(pack.name, 'all');
    whys.set(pack.name, pack.state === 'missing' ? 'is missing' : 'is not as it was written');
  }
  for (const { members } of catalog.groups) {
    for (const { name } of members) {
      if (catalog.byName.has(name)) continue;
      badPacks.set(name, 'all');
      whys.set(name, 'is missing');
    }
  }
  for (const [name, { bad, why }] of packs) {
    badPacks.set(name, bad);
    whys.set(name, why);
  }
  const hopeless = beyondParity(catalog, badPacks);
  const lost = await lostBackups(site, catalog, records, hopeless, badPacks);
  const groups = new Map(catalog.groups.map((group) => [group.name, group]));
  /** Computed anew where all packs of the list are there then; what says nothing goes where nothing is lost, and otherwise stays (repair.ts). */
  const isAgain = (path: string): boolean => {
    const name = path.slice('parity/'.length, -'.p'.length);
    const group = groups.get(name);
    if (group !== undefined) return !group.members.some((member) => hopeless.has(member.name));
    const unlike = lists.find((list) => list.group === name)?.unlike;
    if (unlike?.every((pack) => badPacks.has(pack) && !hopeless.has(pack)) === true) return true;
    return hopeless.size + lost.length === 0;
  };
  const damaged: Damage[] = [
    ...settings.bad.map((name) => ({ name, why: 'is not as it was written', repairable: true })),
    ...records.badCopies.map((name) => {
      const id = /([0-9a-f]{16})/.exec(name)?.[1] ?? '';
      return { name, why: 'is not as it was written', repairable: records.copies.has(id) };
    }),
    ...[...badPacks.keys()].map((name) => ({
      name: packPath(name),
      why: whys.get(name) ?? '',
      repairable: !hopeless.has(name),
    })),
    ...catalog.bad
      .filter(({ name }) => !name.startsWith('packs/'))
      .map(({ name, why }) => ({ name, why, repairable: !name.startsWith('parity/') || isAgain(name) })),
  ];
  return {
    backups: records.records.length + records.unreadable.length,
    packs: catalog.packs.length,
    storedBytes: catalog.packs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    damaged,
    lost,
    unprotected: [
      ...settings.missing,
      ...records.missingCopies,
      ...(roles.length === 0 ? [] : unprotected(catalog, roles))
        .filter(({ name }) => !hopeless.has(name))
        .map(({ name }) => packPath(name)),
    ],
  };
}

/** Reads a share of the packs; how many, or null where it was asked to stop. */
async function readPacks(
  site: Site,
  catalog: Catalog,
  { readPercent = 0, progress, signal }: VerifyOptions,
  look: (pack: Pack, bytes: Uint8Array | null) => Promise<void>,
): Promise<number | null> {
  const present = catalog.packs.filter(({ state }) => state !== 'missing');
  const count = Math.ceil((present.length * readPercent) / 100);
  // A different share each time: in the long run, everything is read.
  for (let index = 0; index < count; index += 1) {
    const other = index + site.host.random(present.length - index);
    [present[index], present[other]] = [present[other]!, present[index]!];
  }
  // What is seen to be wrong is read in any case: of a pack of another length some chunks may be as they were.
  const chosen = present.filter(({ state }, index) => index < count || state === 'damaged');
  const totalBytes = chosen.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  let doneBytes = 0;
  for (const pack of chosen) {
    if (signal?.aborted === true) return null;
    await look(pack, await getOrNull(site.store, packPath(pack.name)));
    doneBytes += pack.sizeBytes;
    progress?.({ doneBytes, totalBytes });
  }
  return count;
}

/** Which chunks of a pack are not what they should be: null where all is well, also with what surrounds them. */
export async function badEntries(
  site: Site,
  catalog: Catalog,
  { name, table }: Pack,
  bytes: Uint8Array | null,
): Promise<'all' | ReadonlySet<number> | null> {
  if (bytes === null || table === null) return 'all';
  const bad = new Set<number>();
  for (let index = 0; index < table.count; index += 1) {
    const entry = table.entry(index);
    const { offsetBytes, lengthBytes } = entry.range;
    const sealed = bytes.subarray(offsetBytes, offsetBytes + lengthBytes);
    if ((await decodeChunk(site, name, table.id(index), entry, sealed)) === null) bad.add(index);
  }
  const isMember = catalog.groups
    .flatMap(({ members }) => members)
    .filter((member) => member.name === name)
    .every((member) => isMemberFile(member, bytes, site.sum));
  return bad.size === 0 && isMember && isWholePack(bytes, site.sum) ? null : bad;
}

/** The bad packs that no group can bring back, as far as is known. */
export function beyondParity({ groups }: Catalog, badPacks: BadPacks): ReadonlySet<string> {
  const hopeless = new Set(badPacks.keys());
  for (let before = -1; before !== hopeless.size; ) {
    before = hopeless.size;
    for (const { members, roles } of groups) {
      const lost = members.filter(({ name }) => hopeless.has(name));
      if (lost.length <= roles.size) for (const { name } of lost) hopeless.delete(name);
    }
  }
  return hopeless;
}

/** Which bytes of which backup are lost with the packs that are. */
export async function lostBackups(
  site: Site,
  catalog: Catalog,
  { records, unreadable }: Records,
  hopeless: ReadonlySet<string>,
  badPacks: BadPacks,
): Promise<readonly LostBackup[]> {
  const isLost = (place: Place): boolean => {
    const { name } = catalog.pack(place);
    const bad = hopeless.has(name) ? badPacks.get(name) : undefined;
    return bad === 'all' || bad?.has(place.entry) === true;
  };
  const reader = new ChunkReader(site, catalog);
  const found: LostBackup[] = unreadable.map((id) => ({ backup: null, id, lost: [] }));
  const goodPages = new Set<string>();
  for (const record of records) {
    const lost = await lostOf(reader, record, (id) => catalog.places(id).every(isLost), goodPages);
    if (lost.length > 0) found.push({ backup: withoutPages(record), id: record.id, lost });
  }
  return found;
}

async function lostOf(
  reader: ChunkReader,
  record: BackupRecord,
  isLost: (id: Uint8Array) => boolean,
  goodPages: Set<string>,
): Promise<readonly LostRange[]> {
  const { settings } = reader.site;
  const { chunkBytes, pageChunks } = settings;
  const lost: LostRange[] = [];
  for (let page = 0; page < pageCount(record, settings); page += 1) {
    const count = idsOnPage(page, record, settings);
    // Backups share most of their pages. A page of another length is another page.
    const key = `${hexOf(pageId(record, page))} ${count}`;
    if (goodPages.has(key)) continue;
    const ids = await reader.readPage(record, page);
    let isGood = true;
    for (let index = 0; index < count; index += 1) {
      const chunk = page * pageChunks + index;
      const id = ids === null ? null : idAt(ids, index);
      if (id !== null && (isZeroId(id) || !isLost(id))) continue;
      isGood = false;
      addLost(lost, {
        offsetBytes: chunk * chunkBytes,
        lengthBytes: bytesOfChunk(chunk, record, settings),
      });
    }
    if (isGood) goodPages.add(key);
  }
  return lost;
}
