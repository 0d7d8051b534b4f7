/** Groups of packs as they are in the store: who is in them, what is left of them, and what that brings back. */
import { packPath } from './pack.ts';
import {
  decodeParity,
  type GroupMember,
  headerEnd,
  isMemberFile,
  membersOf,
  type ParityRole,
  parityPath,
  recoverPacks,
} from './parity.ts';
import { getOrNull, type Site } from './site.ts';
import type { Store } from './store.ts';

export interface Group {
  readonly name: string;
  readonly members: readonly GroupMember[];
  readonly roles: ReadonlySet<ParityRole>;
}

/** Enough for the header of a group of any size that is made here. */
const HEADER_GUESS = 8192;

export async function readMembers(
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
    const bytes = await getOrNull(site.store, parityPath(group.name, role));
    const file = bytes === null ? null : decodeParity(group.name, role, bytes, site.sum);
    if (file !== null) parity.set(role, file.parity);
  }
  return { packs, parity };
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
