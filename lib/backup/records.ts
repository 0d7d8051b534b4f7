/** The records of all backups, each from the first of its copies that is whole. */

import { type BackupRecord, backupPath, backupPattern, decodeBackup } from './record.ts';
import { getOrNull, type Site } from './site.ts';
import { ofEach } from './store.ts';

export interface Records {
  /** Oldest first. */
  readonly records: readonly BackupRecord[];
  /** Copies that are there and cannot be read. */
  readonly badCopies: readonly string[];
  /** Copies that are not there, of backups that have another. */
  readonly missingCopies: readonly string[];
  /** Backups none of whose copies can be read. */
  readonly unreadable: readonly string[];
  /** The bytes of a whole copy, by id. */
  readonly copies: ReadonlyMap<string, Uint8Array>;
}

export async function readRecords(site: Site): Promise<Records> {
  const { store, settings } = site;
  const present = new Map<string, number[]>();
  for (const { name } of await store.list('backups/')) {
    const match = backupPattern.exec(name);
    const id = match?.[1];
    if (id !== undefined) present.set(id, [...(present.get(id) ?? []), Number(match?.[2])]);
  }
  const files = [...present].flatMap(([id, found]) => found.map((copy) => ({ id, copy })));
  let read = await ofEach(files, async ({ id, copy }) => {
    const bytes = await getOrNull(store, backupPath(id, copy));
    const record = bytes === null ? null : decodeBackup(site, id, bytes, settings);
    return { id, copy, bytes, record };
  });
  // What a prune has deleted since it was listed is not what cannot be read.
  if (read.some(({ bytes }) => bytes === null)) {
    const still = new Set((await store.list('backups/')).map(({ name }) => name));
    read = read.filter(({ id, copy, bytes }) => bytes !== null || still.has(backupPath(id, copy)));
    for (const id of present.keys()) if (!read.some((file) => file.id === id)) present.delete(id);
  }
  const records: BackupRecord[] = [];
  const badCopies: string[] = [];
  const missingCopies: string[] = [];
  const unreadable: string[] = [];
  const copies = new Map<string, Uint8Array>();
  for (const { id, copy, bytes, record } of read) {
    if (record === null) badCopies.push(backupPath(id, copy));
    else if (!copies.has(id)) {
      copies.set(id, bytes!);
      records.push(record);
    }
  }
  for (const [id, found] of present) {
    if (!copies.has(id)) unreadable.push(id);
    else {
      for (let copy = 0; copy <= settings.redundancy; copy += 1)
        if (!found.includes(copy)) missingCopies.push(backupPath(id, copy));
    }
  }
  records.sort((left, right) => left.number - right.number || (left.id < right.id ? -1 : 1));
  return { records, badCopies, missingCopies, unreadable, copies };
}
