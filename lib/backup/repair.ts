/**
 * Makes again what is missing or rotten, from the redundancy that there is, and says what it cannot.
 *
 *   1  copies of settings and records, from a copy that is whole
 *   2  packs, group by group: those that are not what they were when their parity was made. A pack that came back may be
 *      what another group lacks, so this goes on for as long as something comes back
 *   3  parity files, of groups whose packs are all there
 *   4  parity for packs that have none; groups that others contain go
 *   5  an index for packs that are in none; indexes that cannot be read go
 *   6  parity files that say nothing, of groups that have no other
 *
 * Each file is replaced in one step, by what it was. So it may be interrupted anywhere, and begun again. Nothing is thrown
 * away that somebody could still want: of a group that has lost too much, everything stays as it is. And step 6 is left out while
 * anything at all is lost: a parity file with a rotten byte still has the others, and who was in its group nobody may know.
 */
import { Catalog } from './catalog.ts';
import { readSettingsCopies } from './copies.ts';
import { type Group, isWholeGroup, readGroup, recoverGroup, rottenParity } from './group.ts';
import type { Lock } from './lock.ts';
import { packPath } from './pack.ts';
import { encodeParity, GroupParity, type ParityRole, parityPath } from './parity.ts';
import { readRecords } from './records.ts';
import { getOrNull, type Site } from './site.ts';
import { badEntries, type Damage, type LostBackup, lostBackups } from './verify.ts';
import { deleteGroup, indexAll, isSound, Protector, rolesFor, soundGroups, unprotected } from './writer.ts';

export interface RepairReport {
  /** Files that were made again. */
  readonly repaired: readonly string[];
  /** What remains, and cannot be repaired. */
  readonly damaged: readonly Damage[];
  readonly lost: readonly LostBackup[];
}

export interface RepairOptions {
  readonly progress?: (progress: { readonly doneBytes: number; readonly totalBytes: number }) => void;
}

export async function repairRepository(
  site: Site,
  lock: Lock,
  options: RepairOptions,
): Promise<RepairReport> {
  const repaired: string[] = [];
  await repairCopies(site, lock, repaired);
  const beyond = await repairGroups(site, lock, options, repaired);
  const rotten = await rottenParity(site, beyond);
  await repairProtection(site, lock, rotten, repaired);
  await repairIndexes(site, repaired);
  const report = await remaining(site, rotten, repaired);
  const silent = (await load(site, rotten)).bad.flatMap(({ name, why }) =>
    name.startsWith('parity/') ? [{ name, why, repairable: false }] : [],
  );
  if (report.damaged.length + report.lost.length > 0)
    return { ...report, damaged: [...report.damaged, ...silent] };
  await lock.check();
  for (const { name } of silent) await site.store.delete(name);
  return report;
}

/** Parity that is not whole has been made again where that could be done; what is left of it says nothing. */
async function load(site: Site, rotten: ReadonlySet<string>): Promise<Catalog> {
  const catalog = await Catalog.load(site);
  catalog.distrust(rotten);
  return catalog;
}

async function repairCopies(site: Site, lock: Lock, repaired: string[]): Promise<void> {
  const { store } = site;
  const { whole, bad, missing } = await readSettingsCopies(site);
  for (const name of whole === null ? [] : [...bad, ...missing].sort()) {
    await store.replace(name, whole!);
    repaired.push(name);
  }
  const records = await readRecords(site);
  for (const name of [...records.badCopies, ...records.missingCopies]) {
    const bytes = records.copies.get(/[0-9a-f]{16}/.exec(name)?.[0] ?? '');
    if (bytes === undefined) continue;
    await lock.touch();
    await store.replace(name, bytes);
    repaired.push(name);
  }
}

/** The groups that have lost more than they can bring back, or whose list is wrong. */
async function repairGroups(
  site: Site,
  lock: Lock,
  { progress }: RepairOptions,
  repaired: string[],
): Promise<readonly Group[]> {
  const { groups } = await Catalog.load(site);
  const totalBytes = groups.reduce((sum, { members }) => sum + bytesOf(members), 0);
  let doneBytes = 0;
  let left: readonly Group[] = groups;
  for (;;) {
    const failed: Group[] = [];
    const before = repaired.length;
    for (const group of left) {
      await lock.touch();
      if (!(await repairGroup(site, group, repaired))) failed.push(group);
      doneBytes = Math.min(totalBytes, doneBytes + bytesOf(group.members));
      progress?.({ doneBytes, totalBytes });
    }
    if (failed.length === 0 || repaired.length === before) return failed;
    left = failed;
  }
}

function bytesOf(members: Group['members']): number {
  return members.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}

/** False where that cannot be done. */
async function repairGroup(site: Site, group: Group, repaired: string[]): Promise<boolean> {
  const { store, sum, settings } = site;
  const files = await readGroup(site, group);
  const packs = [...files.packs];
  if (packs.includes(null)) {
    const recovered = recoverGroup(site, group, files);
    if (recovered === null) return false;
    for (const [index, { name }] of group.members.entries()) {
      const bytes = recovered.get(name);
      if (bytes === undefined) continue;
      await store.replace(packPath(name), bytes);
      packs[index] = bytes;
      repaired.push(packPath(name));
    }
  }
  const lostRoles = rolesFor(settings.redundancy).filter((role) => !files.parity.has(role));
  if (lostRoles.length === 0) return true;
  const parity = new GroupParity(lostRoles);
  for (const [index, member] of group.members.entries()) parity.add(member, packs[index]!);
  for (const file of parity.files(group.name)) {
    const path = parityPath(group.name, file.role);
    await store.replace(path, encodeParity(file, sum));
    repaired.push(path);
  }
  return true;
}

async function repairProtection(
  site: Site,
  lock: Lock,
  rotten: ReadonlySet<string>,
  repaired: string[],
): Promise<void> {
  const roles = rolesFor(site.settings.redundancy);
  const before = await load(site, rotten);
  const bare = unprotected(before, roles);
  if (roles.length > 0 && bare.length > 0) {
    const protector = new Protector(site, lock, soundGroups(site, before));
    await protector.adopt(before);
    await protector.finish();
    const safe = new Set(
      (await load(site, rotten)).groups.flatMap(({ members }) => members.map(({ name }) => name)),
    );
    for (const { name } of bare) if (safe.has(name)) repaired.push(`parity for ${packPath(name)}`);
  }
  const catalog = await load(site, rotten);
  for (const group of await containedGroups(site, catalog, roles)) {
    await lock.check();
    await deleteGroup(site.store, group);
  }
}

/** Sound groups whose packs are all in another one, and that has been read: what a crash leaves when a group has just grown. */
export async function containedGroups(
  site: Site,
  catalog: Catalog,
  roles: readonly ParityRole[],
): Promise<readonly Group[]> {
  const sound = catalog.groups.filter((group) => isSound(group, catalog, roles));
  const names = new Map(sound.map((group) => [group, new Set(group.members.map(({ name }) => name))]));
  const whole = new Map<Group, boolean>();
  const contained: Group[] = [];
  for (const [index, group] of sound.entries()) {
    const others = sound.filter((other, otherIndex) => {
      if (other === group) return false;
      const [mine, its] = [names.get(group)!, names.get(other)!];
      if (![...mine].every((name) => its.has(name))) return false;
      // Of two with the same packs, one stays.
      return mine.size < its.size || otherIndex < index;
    });
    for (const other of others) {
      const isWhole = whole.get(other) ?? (await isWholeGroup(site, other, roles));
      whole.set(other, isWhole);
      if (!isWhole) continue;
      contained.push(group);
      break;
    }
  }
  return contained;
}

async function repairIndexes(site: Site, repaired: string[]): Promise<void> {
  const catalog = await Catalog.load(site);
  const isShort = catalog.unindexed.some(({ table }) => table !== null);
  await indexAll(site, catalog);
  const bad = catalog.bad.filter(({ name }) => name.startsWith('index/'));
  for (const { name } of bad) await site.store.delete(name);
  if (isShort || bad.length > 0) repaired.push('index');
}

/** Reads everything once more: what it says is so. */
async function remaining(
  site: Site,
  rotten: ReadonlySet<string>,
  repaired: readonly string[],
): Promise<RepairReport> {
  const catalog = await load(site, rotten);
  const records = await readRecords(site);
  const bad = new Map<string, 'all' | ReadonlySet<number>>();
  for (const pack of catalog.packs) {
    if (pack.state === 'missing') bad.set(pack.name, 'all');
    else {
      const found = await badEntries(site, catalog, pack, await getOrNull(site.store, packPath(pack.name)));
      if (found !== null) bad.set(pack.name, found);
    }
  }
  for (const { name } of catalog.groups.flatMap(({ members }) => members)) {
    if (!catalog.byName.has(name)) bad.set(name, 'all');
  }
  // What could be brought back has been, whoever else seems able to.
  const hopeless = new Set(bad.keys());
  return {
    repaired,
    damaged: [
      ...[...bad].map(([name, which]) => ({
        name: packPath(name),
        why: which === 'all' ? 'is lost' : 'is not as it was written',
        repairable: false,
      })),
      ...records.badCopies.map((name) => ({ name, why: 'is not as it was written', repairable: false })),
    ],
    lost: await lostBackups(site, catalog, records, hopeless, bad),
  };
}
