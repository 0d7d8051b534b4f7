/**
 * The bytes of a device as a file that other programs know: raw, with holes for zeros, or qcow2. Written beside it as
 * `<file>.partial` and renamed when it is whole and durable: a file of that name is never half an image, and what had the
 * name before stays until then.
 */
import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Device } from '../device/device.ts';
import { errorFromErrno } from '../device/errno.ts';
import { FileDevice } from '../device/file.ts';
import { RaidError } from '../errors.ts';
import { KIB, MIB } from '../units.ts';
import { type Backing, type ExportOptions, qcow2BytesAtMost, writeQcow2 } from './qcow2.ts';

export type ImageFormat = 'raw' | 'qcow2';
export const imageFormats: readonly ImageFormat[] = ['raw', 'qcow2'];

export interface ExportImageOptions extends ExportOptions {
  readonly format: ImageFormat;
  /** Only what changed, on top of an image that there is: qcow2 only. */
  readonly backing?: Backing;
}

/** False where `signal` asked to stop: there is no new file then. */
export async function exportImage(
  source: Device,
  path: string,
  options: ExportImageOptions,
): Promise<boolean> {
  const { format, backing } = options;
  if (format === 'raw') {
    if (backing !== undefined)
      throw new RaidError('BAD_ARGUMENT', 'a raw image stands alone; only qcow2 can have a backing file');
    return await isWritten(path, source.limits.sizeBytes, (target) => writeRaw(source, target, options));
  }
  const most = qcow2BytesAtMost(source.limits.sizeBytes);
  return await isWritten(path, most, (target) => writeQcow2(source, target, options));
}

async function isWritten(
  path: string,
  sizeBytes: number,
  write: (target: FileDevice) => Promise<boolean>,
): Promise<boolean> {
  const outcome = await writeNewFile(path, sizeBytes, async (target) =>
    (await write(target)) ? 'whole' : 'discard',
  );
  return outcome === 'whole';
}

/** What becomes of a file that was being written: it gets its name, goes, or stays as `<file>.partial`. */
export type Outcome = 'whole' | 'discard' | 'keep partial';

/**
 * Makes a file of zeros for `write` to fill, and gives it its name when that says so. Whatever fails, what had the name
 * before is still there.
 */
export async function writeNewFile(
  path: string,
  sizeBytes: number,
  write: (target: FileDevice) => Promise<Outcome>,
): Promise<Outcome> {
  const unfinished = `${path}.partial`;
  const target = await FileDevice.create(unfinished, sizeBytes, { replace: true });
  let outcome: Outcome = 'discard';
  try {
    try {
      const wanted = await write(target);
      if (wanted !== 'discard') await target.flush();
      outcome = wanted;
    } finally {
      await target.close();
    }
    if (outcome === 'whole') {
      await rename(unfinished, path);
      await syncFolder(dirname(path));
    }
  } catch (cause) {
    outcome = 'discard';
    throw errorFromErrno(cause, 'write', { device: path });
  } finally {
    if (outcome === 'discard') await rm(unfinished, { force: true });
  }
  return outcome;
}

async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return;
  const handle = await open(folder);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

const PIECE_BYTES = 4 * MIB;
/** Zeros are left out in runs of this: a file system has holes in its own blocks. */
const HOLE_BYTES = 64 * KIB;
const zeros = Buffer.alloc(HOLE_BYTES);

async function writeRaw(
  source: Device,
  target: Device,
  { signal, progress }: ExportOptions,
): Promise<boolean> {
  const totalBytes = source.limits.sizeBytes;
  const buffers = [new Uint8Array(PIECE_BYTES), new Uint8Array(PIECE_BYTES)];
  let writtenBytes = 0;
  let writing: Promise<void> = Promise.resolve();
  try {
    for (let at = 0, turn = 0; at < totalBytes; at += PIECE_BYTES, turn += 1) {
      if (signal?.aborted === true) return false;
      const length = Math.min(PIECE_BYTES, totalBytes - at);
      const piece = buffers[turn % 2]!.subarray(0, length);
      const isZero = (await source.blockStatus(at, length)).every(({ zero }) => zero);
      if (!isZero) await source.read(at, piece);
      await writing;
      progress?.({ doneBytes: at, totalBytes, writtenBytes });
      if (isZero) continue;
      const start = at;
      writing = writeData(target, start, piece).then((bytes) => {
        writtenBytes += bytes;
      });
      writing.catch(() => undefined);
    }
    await writing;
  } finally {
    await writing.catch(() => undefined);
  }
  progress?.({ doneBytes: totalBytes, totalBytes, writtenBytes });
  return true;
}

/** Onto zeros: the zeros of a piece are not written. */
async function writeData(target: Device, start: number, piece: Uint8Array): Promise<number> {
  let written = 0;
  for (let at = 0; at < piece.byteLength; ) {
    let end = at;
    while (end < piece.byteLength && !isZeroAt(piece, end)) end += HOLE_BYTES;
    end = Math.min(end, piece.byteLength);
    if (end > at) await target.write(start + at, piece.subarray(at, end));
    written += end - at;
    at = end;
    while (at < piece.byteLength && isZeroAt(piece, at)) at += HOLE_BYTES;
  }
  return written;
}

function isZeroAt(piece: Uint8Array, at: number): boolean {
  const part = piece.subarray(at, at + HOLE_BYTES);
  return Buffer.compare(part, zeros.subarray(0, part.byteLength)) === 0;
}
