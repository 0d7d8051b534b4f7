/**
 * A backup onto a device. Every chunk is checked against its hash before it is written; zeros are not written where the
 * target is known to be zeros, and are a hole where it can have one.
 *
 * What is lost does not stop it: all the rest is written, and the error at the end names every range that is not.
 */
import type { Device } from '../device/device.ts';
import { type LostRange, RaidError } from '../errors.ts';
import { formatSize, MIB, roundUp } from '../units.ts';
import { isZeroId } from './chunks.ts';
import { type ChunkReader, idAt } from './reader.ts';
import { type BackupRecord, bytesOfChunk, idsOnPage, pageCount } from './record.ts';

export interface RestoreOptions {
  /** The target reads as zeros: a file that was just made. */
  readonly isBlank?: boolean;
  readonly signal?: AbortSignal;
  readonly progress?: (progress: RestoreProgress) => void;
}

export interface RestoreProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly writtenBytes: number;
}

const WINDOW_BYTES = 8 * MIB;

/** False where it was asked to stop. */
export async function restoreBackup(
  reader: ChunkReader,
  record: BackupRecord,
  target: Device,
  options: RestoreOptions,
): Promise<boolean> {
  const { limits } = target;
  if (limits.sizeBytes < roundUp(record.sizeBytes, limits.blockBytes)) {
    throw new RaidError(
      'OUT_OF_RANGE',
      `backup ${record.id} has ${record.sizeBytes} bytes (${formatSize(record.sizeBytes)}), and ${target.name} has room for ${limits.sizeBytes} (${formatSize(limits.sizeBytes)})`,
      { device: target.name },
    );
  }
  const lost: LostRange[] = [];
  let writtenBytes = 0;
  let doneBytes = 0;
  let writing: Promise<void> = Promise.resolve();
  try {
    for await (const window of windowsOf(reader, record)) {
      await writing;
      if (options.signal?.aborted === true) return false;
      for (const range of window.lost) addLost(lost, range);
      writing = writeWindow(target, window, options.isBlank === true).then((bytes) => {
        writtenBytes += bytes;
        doneBytes = window.endBytes;
        options.progress?.({ doneBytes, totalBytes: record.sizeBytes, writtenBytes });
      });
      // Waited for in the next turn, or below.
      writing.catch(() => undefined);
    }
    await writing;
  } finally {
    await writing.catch(() => undefined);
  }
  await target.flush();
  const [first] = lost;
  if (first !== undefined) throw lostError(record, target, lost, first);
  return true;
}

function lostError(
  record: BackupRecord,
  target: Device,
  lost: readonly LostRange[],
  first: LostRange,
): RaidError {
  const bytes = lost.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  const ranges = lost
    .slice(0, 8)
    .map(({ offsetBytes, lengthBytes }) => `${lengthBytes} bytes at ${offsetBytes}`)
    .join(', ');
  const more = lost.length > 8 ? `, and ${lost.length - 8} more ranges` : '';
  return new RaidError(
    'REDUNDANCY_LOST',
    `${formatSize(bytes)} of backup ${record.id} are lost: ${ranges}${more}; these were not written to ${target.name}, everything else was`,
    { device: target.name, ...first, lost },
  );
}

interface Window {
  readonly endBytes: number;
  /** Ranges in order; null for zeros. */
  readonly parts: readonly { readonly offsetBytes: number; readonly bytes: Uint8Array | number }[];
  readonly lost: readonly LostRange[];
}

/** Some megabytes at a time: the next is read while one is written. */
async function* windowsOf(reader: ChunkReader, record: BackupRecord): AsyncGenerator<Window> {
  const { settings } = reader.site;
  const { chunkBytes, pageChunks } = settings;
  const most = Math.max(1, Math.floor(WINDOW_BYTES / chunkBytes));
  let ahead: Promise<Window> | null = null;
  for (let page = 0; page < pageCount(record, settings); page += 1) {
    const count = idsOnPage(page, record, settings);
    const first = page * pageChunks;
    const ids = await reader.readPage(record, page);
    for (let from = 0; from < count; from += most) {
      const to = Math.min(count, from + most);
      const next = readWindow(reader, record, ids, first, from, to);
      next.catch(() => undefined);
      if (ahead !== null) yield await ahead;
      ahead = next;
    }
  }
  if (ahead !== null) yield await ahead;
}

async function readWindow(
  reader: ChunkReader,
  record: BackupRecord,
  ids: Uint8Array | null,
  first: number,
  from: number,
  to: number,
): Promise<Window> {
  const { settings } = reader.site;
  const places = Array.from({ length: to - from }, (_, turn) => {
    const chunk = first + from + turn;
    return {
      offsetBytes: chunk * settings.chunkBytes,
      lengthBytes: bytesOfChunk(chunk, record, settings),
      id: ids === null ? null : idAt(ids, from + turn),
    };
  });
  const wanted = places.flatMap(({ id }) => (id === null || isZeroId(id) ? [] : [id]));
  const chunks = await reader.readMany(wanted);
  const parts: { offsetBytes: number; bytes: Uint8Array | number }[] = [];
  const lost: LostRange[] = [];
  let turn = 0;
  for (const { id, offsetBytes, lengthBytes } of places) {
    if (id !== null && isZeroId(id)) {
      const last = parts.at(-1);
      if (typeof last?.bytes === 'number' && last.offsetBytes + last.bytes === offsetBytes)
        last.bytes += lengthBytes;
      else parts.push({ offsetBytes, bytes: lengthBytes });
      continue;
    }
    const bytes = id === null ? null : (chunks[turn++] ?? null);
    if (bytes?.byteLength === lengthBytes) parts.push({ offsetBytes, bytes });
    else lost.push({ offsetBytes, lengthBytes });
  }
  const last = places.at(-1)!;
  return { endBytes: last.offsetBytes + last.lengthBytes, parts, lost };
}

/** How many bytes were written, zeros not counted. */
async function writeWindow(target: Device, { parts }: Window, isBlank: boolean): Promise<number> {
  const { blockBytes } = target.limits;
  let written = 0;
  for (const { offsetBytes, bytes } of parts) {
    if (typeof bytes === 'number') {
      if (!isBlank) await target.writeZeroes(offsetBytes, roundUp(bytes, blockBytes));
      continue;
    }
    // The end of a backup need not be the end of a block.
    const padding = roundUp(bytes.byteLength, blockBytes) - bytes.byteLength;
    await target.write(offsetBytes, padding === 0 ? bytes : [bytes, new Uint8Array(padding)]);
    written += bytes.byteLength;
  }
  return written;
}

/** Neighbours become one. */
export function addLost(lost: LostRange[], range: LostRange): void {
  const last = lost.at(-1);
  if (last !== undefined && last.offsetBytes + last.lengthBytes === range.offsetBytes) {
    lost[lost.length - 1] = { ...last, lengthBytes: last.lengthBytes + range.lengthBytes };
  } else lost.push(range);
}
