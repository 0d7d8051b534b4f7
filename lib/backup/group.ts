/**
 * Groups of packs as they are in the store: who is in them, what is left of them, and what that brings back.
 *
 * Who vouches for a list of packs. It stands at the head of a parity file, and the sum of the whole file is all that holds it: a bit that
 * flips in a list mostly leaves a list, with a pack in it that never was, or that is not so long, or has another sum. To read all parity
 * whenever a repository is opened is too dear. So
 *
 *   P's and Q's are alike     believed: nothing damages two files alike
 *   they differ, or           doubted: these files are read as a whole, and count only if they are whole
 *   one alone speaks of a
 *   pack that is not there
 *   one alone                 believed as far as nobody concludes from it that anything is wrong
 *
 * What is left then is a wrong sum in the only list there is. It makes a pack look wrong that is not; whoever finds one so (verify,
 * repair, prune) looks whether any parity file of the group is whole. If none is, the group can bring back nothing, and says nothing.
 */
import { isDeepStrictEqual } from 'node:util';
import { packPath } from './pack.ts';
import {
  decodeParity,
  type GroupMember,
  headerEnd,
  isMemberFile,
  membersOf,
  type ParityFile,
  type ParityRole,
  parityPath,
  recoverPacks,
} from './parity.ts';
import { getOrNull, type Site } from './site.ts';
import { ofEach, type Store, type StoredFile } from './store.ts';

export interface Group {
  readonly name: string;
  readonly members: readonly GroupMember[];
  readonly roles: ReadonlySet<ParityRole>;
}

/** Enough for the header of a group of any size that is made here. */
const HEADER_GUESS = 8192;

/** What the head of a parity file says. */
export interface ParityHead {
  readonly path: string;
  readonly group: string;
  readonly role: ParityRole;
  /** Null where it says nothing. */
  readonly members: readonly GroupMember[] | null;
}

export async function readHeads(store: Store, files: readonly StoredFile[]): Promise<readonly ParityHead[]> {
  const named = files.flatMap(({ name: path }) => {
    const match = /^parity\/([0-9a-f]{32})\.([pq])$/.exec(path);
    const [group, role] = [match?.[1], match?.[2] as ParityRole | undefined];
    return group === undefined || role === undefined ? [] : [{ path, group, role }];
  });
  return await ofEach(named, async (file) => ({
    ...file,
    members: await readMembers(store, file.group, file.role),
  }));
}

async function readMembers(
  store: Store,
  group: string,
  role: ParityRole,
): Promise<readonly GroupMember[] | null> {
  const path = parityPath(group, role);
  let start = await getOrNull(store, path, { offsetBytes: 0, lengthBytes: HEADER_GUESS });
  const end = start === null ? null : headerEnd(start);
  if (start === null || end === null) return null;
  if (end > start.byteLength) start = await getOrNull(store, path, { offsetBytes: 0, lengthBytes: end });
  return start === null ? null : membersOf(group, role, start);
}

/** Null where it is not whole. */
export async function readParity(
  { store, sum }: Site,
  group: string,
  role: ParityRole,
): Promise<ParityFile | null> {
  const bytes = await getOrNull(store, parityPath(group, role));
  return bytes === null ? null : decodeParity(group, role, bytes, sum);
}

/** The paths of parity files that are not whole, of those that are `asked` about. */
export async function rottenParity(
  site: Site,
  groups: readonly Group[],
  asked: (path: string) => boolean = () => true,
): Promise<ReadonlySet<string>> {
  const rotten = new Set<string>();
  for (const { name, roles } of groups) {
    for (const role of roles) {
      const path = parityPath(name, role);
      if (asked(path) && (await readParity(site, name, role)) === null) rotten.add(path);
    }
  }
  return rotten;
}

export interface GroupsFound {
  readonly groups: readonly Group[];
  /** Paths of parity files that say nothing that can be used. */
  readonly bad: readonly string[];
}

/** The groups that there are, by what stands at their heads, where the packs that are listed (their sizes by name) bear that out. */
export async function groupsOf(
  site: Site,
  heads: readonly ParityHead[],
  listed: ReadonlyMap<string, number>,
): Promise<GroupsFound> {
  const byGroup = new Map<string, ParityHead[]>();
  for (const head of heads) byGroup.set(head.group, [...(byGroup.get(head.group) ?? []), head]);
  const groups: Group[] = [];
  const bad: string[] = [];
  for (const [name, said] of byGroup) {
    const lists = said.flatMap(({ members }) => (members === null ? [] : [members]));
    const isBelieved =
      lists.length > 1
        ? isDeepStrictEqual(lists[0], lists[1])
        : lists.flat().every((member) => listed.get(member.name) === member.sizeBytes);
    let vouched: readonly GroupMember[] | null = null;
    const roles = new Set<ParityRole>();
    for (const { path, role, members: told } of said) {
      const isDoubted = told !== null && !isBelieved;
      const members = isDoubted ? ((await readParity(site, name, role))?.members ?? null) : told;
      if (members === null) bad.push(path);
      else {
        vouched = members;
        roles.add(role);
      }
    }
    if (vouched !== null) groups.push({ name, members: vouched, roles });
  }
  return { groups, bad };
}

/** What is left of a group, each file held against what it was when its parity was made. */
export interface GroupFiles {
  readonly packs: readonly (Uint8Array | null)[];
  readonly parity: ReadonlyMap<ParityRole, Uint8Array>;
}

export async function readGroup(site: Site, group: Group): Promise<GroupFiles> {
  const packs: (Uint8Array | null)[] = [];
  for (const member of group.members) {
    const bytes = await getOrNull(site.store, packPath(member.name));
    packs.push(bytes !== null && isMemberFile(member, bytes, site.sum) ? bytes : null);
  }
  const parity = new Map<ParityRole, Uint8Array>();
  for (const role of group.roles) {
    const file = await readParity(site, group.name, role);
    if (file !== null) parity.set(role, file.parity);
  }
  return { packs, parity };
}

/** Everything of it has been read, and is as it was: what its head says may be relied upon where something else goes for it. */
export async function isWholeGroup(site: Site, group: Group, roles: readonly ParityRole[]): Promise<boolean> {
  const { packs, parity } = await readGroup(site, group);
  return !packs.includes(null) && roles.every((role) => parity.has(role));
}

/** The lost packs of a group as they were, or null where too much is lost. */
export function recoverGroup(
  site: Site,
  group: Group,
  { packs, parity }: GroupFiles,
): ReadonlyMap<string, Uint8Array> | null {
  const found = recoverPacks({
    members: group.members,
    packs,
    p: parity.get('p') ?? null,
    q: parity.get('q') ?? null,
  });
  if (found === null) return null;
  const byName = new Map<string, Uint8Array>();
  for (const [index, bytes] of found) {
    const member = group.members[index]!;
    if (!isMemberFile(member, bytes, site.sum)) return null;
    byName.set(member.name, bytes);
  }
  return byName;
}

/** From the first group that can; null where none can. */
export async function recoverPack(
  site: Site,
  groups: readonly Group[],
  name: string,
): Promise<Uint8Array | null> {
  for (const group of groups) {
    if (!group.members.some((member) => member.name === name)) continue;
    const bytes = recoverGroup(site, group, await readGroup(site, group))?.get(name);
    if (bytes !== undefined) return bytes;
  }
  return null;
}
