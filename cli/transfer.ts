/**
 * Bytes into an array and out of it, in pieces: a few are under way at a time, so that source, array and sink work side
 * by side, and memory stays bounded however large the array is. Pieces begin and end where stripes do: parity is then
 * computed from what is written, with nothing to be read first.
 */
import { open as openFile } from 'node:fs/promises';
import type { Bytes, ReadableBytes } from './reach.ts';

const PIECE_BYTES = 4 * 1024 * 1024;
const UNDER_WAY = 2;

/** Lengths of the pieces of a range, the last one open: whole stripes, but for the first and the last. */
export function pieceLength(preferredBytes: number, offsetBytes: number): number {
  const whole = Math.max(1, Math.floor(PIECE_BYTES / preferredBytes)) * preferredBytes;
  return whole - (offsetBytes % preferredBytes);
}

/**
 * Cuts a stream into pieces for the array, from this array offset on. A piece is good until so many later ones as are
 * under way have been asked for.
 */
export async function* piecesOf(
  stream: AsyncIterable<Uint8Array>,
  preferredBytes: number,
  offsetBytes: number,
): AsyncGenerator<Uint8Array> {
  const most = pieceLength(preferredBytes, 0);
  const buffers = Array.from({ length: UNDER_WAY + 1 }, () => new Uint8Array(most));
  let at = offsetBytes;
  let turn = 0;
  let filled = 0;
  const buffer = (): Uint8Array => buffers[turn % buffers.length] ?? new Uint8Array(most);
  for await (const chunk of stream) {
    for (let taken = 0; taken < chunk.byteLength; ) {
      const wanted = pieceLength(preferredBytes, at);
      const part = chunk.subarray(taken, taken + wanted - filled);
      buffer().set(part, filled);
      taken += part.byteLength;
      filled += part.byteLength;
      if (filled < wanted) continue;
      yield buffer().subarray(0, filled);
      at += filled;
      turn += 1;
      filled = 0;
    }
  }
  if (filled > 0) yield buffer().subarray(0, filled);
}

/** Writes pieces one behind the other. `done` is told how far all of it has been taken. */
export async function writePieces(
  array: Bytes,
  pieces: AsyncIterable<Uint8Array>,
  offsetBytes: number,
  done: (bytes: number) => void,
): Promise<number> {
  let at = offsetBytes;
  const underWay: { end: number; promise: Promise<void> }[] = [];
  const settleFirst = async (): Promise<void> => {
    const first = underWay.shift();
    if (first === undefined) return;
    await first.promise;
    done(first.end - offsetBytes);
  };
  try {
    for await (const piece of pieces) {
      const room = array.limits.sizeBytes - at;
      const fits = piece.subarray(0, room);
      if (fits.byteLength > 0) {
        const promise = array.write(at, fits);
        promise.catch(() => undefined);
        at += fits.byteLength;
        underWay.push({ end: at, promise });
      }
      while (underWay.length >= UNDER_WAY) await settleFirst();
      if (fits.byteLength < piece.byteLength) {
        while (underWay.length > 0) await settleFirst();
        const { RaidError } = await import('../lib/index.ts');
        throw new RaidError(
          'OUT_OF_RANGE',
          `${array.name} is full: ${at - offsetBytes} bytes were written, up to its end at ${at}, and there is more to write`,
          { offsetBytes: at },
        );
      }
    }
    while (underWay.length > 0) await settleFirst();
  } finally {
    await Promise.allSettled(underWay.map(({ promise }) => promise));
  }
  return at - offsetBytes;
}

export interface ByteRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** Whatever else of a page is left may be all that is left of it. */
const LOST_BYTES = 512;

/** Reads what can be read; zeros stand for the rest, which is told, sector by sector. */
async function readAround(
  array: ReadableBytes,
  offsetBytes: number,
  target: Uint8Array,
  lose: (range: ByteRange) => void,
): Promise<void> {
  try {
    await array.read(offsetBytes, target);
  } catch (error) {
    const { RaidError } = await import('../lib/index.ts');
    const isLost =
      error instanceof RaidError && ['REDUNDANCY_LOST', 'MEDIUM_ERROR', 'SHORT_READ'].includes(error.code);
    if (!isLost) throw error;
    const lengthBytes = target.byteLength;
    const middle = Math.ceil((offsetBytes + lengthBytes / 2) / LOST_BYTES) * LOST_BYTES - offsetBytes;
    if (middle <= 0 || middle >= lengthBytes) {
      target.fill(0);
      return lose({ offsetBytes, lengthBytes });
    }
    await readAround(array, offsetBytes, target.subarray(0, middle), lose);
    await readAround(array, offsetBytes + middle, target.subarray(middle), lose);
  }
}

/** In order, neighbours joined. */
export function joined(ranges: readonly ByteRange[]): readonly ByteRange[] {
  const found: ByteRange[] = [];
  for (const { offsetBytes, lengthBytes } of ranges.toSorted((a, b) => a.offsetBytes - b.offsetBytes)) {
    const last = found.at(-1);
    if (last !== undefined && last.offsetBytes + last.lengthBytes === offsetBytes)
      found[found.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
    else found.push({ offsetBytes, lengthBytes });
  }
  return found;
}

/**
 * Reads a range piece by piece; the next is on its way while one is taken. With `lose`, what is lost does not end it: zeros
 * come instead.
 */
export async function* readPieces(
  array: ReadableBytes,
  offsetBytes: number,
  lengthBytes: number,
  lose: ((range: ByteRange) => void) | null = null,
): AsyncGenerator<Uint8Array> {
  const { preferredBytes } = array.limits;
  const end = offsetBytes + lengthBytes;
  const buffers = Array.from({ length: UNDER_WAY }, () => new Uint8Array(pieceLength(preferredBytes, 0)));
  let turn = 0;
  const start = (at: number): { length: number; promise: Promise<Uint8Array> } | null => {
    if (at >= end) return null;
    const length = Math.min(pieceLength(preferredBytes, at), end - at);
    const target = (buffers[turn % buffers.length] ?? new Uint8Array(length)).subarray(0, length);
    turn += 1;
    const read = lose === null ? array.read(at, target) : readAround(array, at, target, lose);
    const promise = read.then(() => target);
    promise.catch(() => undefined);
    return { length, promise };
  };
  let at = offsetBytes;
  let next = start(at);
  while (next !== null) {
    const { length, promise } = next;
    const piece = await promise;
    at += length;
    next = start(at);
    yield piece;
  }
}

/** Where the bytes go. */
export interface Sink {
  write(piece: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

export function standardOutput(): Sink {
  return {
    write: (piece) =>
      new Promise((resolve, reject) => {
        process.stdout.write(piece, (error) => (error == null ? resolve() : reject(error)));
      }),
    close: () => Promise.resolve(),
  };
}

export async function fileSink(path: string): Promise<Sink> {
  const file = await openFile(path, 'w');
  let at = 0;
  return {
    async write(piece) {
      for (let done = 0; done < piece.byteLength; ) {
        const { bytesWritten } = await file
          .write(piece, done, piece.byteLength - done, at)
          // Node says which file it was only where it was opened.
          .catch((error: Error) => {
            throw Object.assign(error, { path });
          });
        done += bytesWritten;
        at += bytesWritten;
      }
    },
    close: () => file.close(),
  };
}
