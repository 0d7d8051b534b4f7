/**
 * What a backup is: a record, and a map.
 *
 * The map has the id of each chunk, in order, 32 zero bytes for a chunk of zeros. It is cut into pages of `pageChunks` ids,
 * and a page is stored as a chunk like any other: so pages that did not change are shared between backups, and parity
 * protects them. The record is a file of its own, `backups/<id>.<copy>`, with redundancy + 1 copies; it has the ids of the
 * pages, and a page of nothing but zero chunks is 32 zero bytes there too.
 *
 *   1 TiB in chunks of 256 KiB: 4 Mi ids on 1024 pages of 128 KiB, and a record of 44 KiB
 */
import { divCeil, KIB } from '../units.ts';
import { ID_BYTES } from './pack.ts';
import { decodeObject, encodeObject, type ObjectCodec } from './seal.ts';
import { isRecord, type Settings } from './settings.ts';

export interface Backup {
  readonly id: string;
  /** One more than the newest that was there: the order of backups, whatever clocks did. */
  readonly number: number;
  /** ISO 8601, UTC. */
  readonly createdAt: string;
  /** The name of what was backed up. */
  readonly array: string;
  readonly uuid: string | null;
  readonly sizeBytes: number;
  /** What the source calls this instant: later it can be asked what changed since. */
  readonly point: string | null;
  /** Of the source, what had not been in the repository; and what that took, compressed. */
  readonly addedBytes: number;
  readonly storedBytes: number;
}

/** A backup with its map. */
export interface BackupRecord extends Backup {
  readonly pages: Uint8Array;
}

export function backupPath(id: string, copy: number): string {
  return `backups/${id}.${copy}`;
}

export const backupPattern = /^backups\/([0-9a-f]{16})\.(\d)$/;

export function chunkCount({ sizeBytes }: Pick<Backup, 'sizeBytes'>, { chunkBytes }: Settings): number {
  return divCeil(sizeBytes, chunkBytes);
}

export function pageCount(backup: Pick<Backup, 'sizeBytes'>, settings: Settings): number {
  return divCeil(chunkCount(backup, settings), settings.pageChunks);
}

/** How many ids stand on a page: fewer only on the last. */
export function idsOnPage(page: number, backup: Pick<Backup, 'sizeBytes'>, settings: Settings): number {
  return Math.min(settings.pageChunks, chunkCount(backup, settings) - page * settings.pageChunks);
}

/** How long a chunk is: shorter only the last. */
export function bytesOfChunk(
  index: number,
  { sizeBytes }: Pick<Backup, 'sizeBytes'>,
  { chunkBytes }: Settings,
): number {
  return Math.min(chunkBytes, sizeBytes - index * chunkBytes);
}

export function encodeBackup(codec: ObjectCodec, record: BackupRecord, salt: Uint8Array): Uint8Array {
  const { pages, ...rest } = record;
  const text = JSON.stringify({ ...rest, pages: Buffer.from(pages).toString('base64') });
  let body = Buffer.from(text);
  // A power of two, so that names and sizes do not show in the length.
  if (codec.key !== null)
    body = Buffer.concat([body, Buffer.alloc(paddedBytes(body.byteLength) - body.byteLength, ' ')]);
  return encodeObject(codec, 'RAIDBKUP', `backups/${record.id}`, salt, body);
}

function paddedBytes(bytes: number): number {
  let padded = 4 * KIB;
  while (padded < bytes) padded *= 2;
  return padded;
}

/** Null where it is not whole, or not the backup of this id. */
export function decodeBackup(
  codec: ObjectCodec,
  id: string,
  bytes: Uint8Array,
  settings: Settings,
): BackupRecord | null {
  const body = decodeObject(codec, 'RAIDBKUP', `backups/${id}`, bytes);
  if (body === null) return null;
  let found: unknown;
  try {
    found = JSON.parse(Buffer.from(body).toString('utf8'));
  } catch {
    return null;
  }
  if (!isRecord(found) || found['id'] !== id) return null;
  const { number, createdAt, array, uuid, sizeBytes, point, addedBytes, storedBytes, pages } = found;
  if (!isCount(number) || !isCount(addedBytes) || !isCount(storedBytes)) return null;
  if (!isCount(sizeBytes) || sizeBytes === 0) return null;
  if (typeof createdAt !== 'string' || Number.isNaN(Date.parse(createdAt))) return null;
  if (typeof array !== 'string' || typeof pages !== 'string') return null;
  if (!isTextOrNull(uuid) || !isTextOrNull(point)) return null;
  const map = new Uint8Array(Buffer.from(pages, 'base64'));
  if (map.byteLength !== pageCount({ sizeBytes }, settings) * ID_BYTES) return null;
  return { id, number, createdAt, array, uuid, sizeBytes, point, addedBytes, storedBytes, pages: map };
}

function isCount(found: unknown): found is number {
  return typeof found === 'number' && Number.isSafeInteger(found) && found >= 0;
}

function isTextOrNull(found: unknown): found is string | null {
  return found === null || typeof found === 'string';
}

export function withoutPages({ pages: _, ...backup }: BackupRecord): Backup {
  return backup;
}
