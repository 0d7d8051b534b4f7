/**
 * Compression, chunk by chunk. Which codec a chunk has stands in its entry, so one repository may hold all of them.
 *
 *   0  stored    as it is: what does not shrink
 *   1  deflate   raw deflate (RFC 1951): written where Node has no zstd
 *   2  zstd      written where `node:zlib` has it (22.15 on); elsewhere read by fzstd
 *
 * A chunk that will not shrink costs a hundred times more to compress than to find out: a few pieces of it are looked at
 * first. Deflate makes things shorter in two ways, and so there are two questions. Are some bytes more frequent than others?
 * Do strings come again? To try deflate itself on the pieces takes twice as long.
 */

import { promisify } from 'node:util';
import * as zlib from 'node:zlib';
import { constants, deflateRawSync, inflateRaw } from 'node:zlib';
import { RaidError } from '../errors.ts';

export const codecs = { stored: 0, deflate: 1, zstd: 2 } as const;
export type Codec = (typeof codecs)[keyof typeof codecs];

interface ZstdFunctions {
  readonly compress: (bytes: Uint8Array) => Uint8Array;
  readonly decompress: (bytes: Uint8Array, options: object) => Promise<Uint8Array>;
}

/** The types are those of the oldest Node, which has none of this. */
const zstd = ((): ZstdFunctions | null => {
  const found = zlib as unknown as Record<string, unknown>;
  const compress = found['zstdCompressSync'];
  const decompress = found['zstdDecompress'];
  if (typeof compress !== 'function' || typeof decompress !== 'function') return null;
  return {
    compress: compress as (bytes: Uint8Array) => Buffer,
    decompress: promisify(
      decompress as (
        bytes: Uint8Array,
        options: object,
        done: (error: Error | null, out: Buffer) => void,
      ) => void,
    ),
  };
})();

const inflate = promisify<Uint8Array, object, Buffer>(inflateRaw);

const fast = { level: constants.Z_BEST_SPEED };
/** Of 100 bytes, at most so many may be left for it to be worth while. */
const WORTH = 0.9;

/** Keeps the thread busy until it is done: whoever has several of them, compresses on several. */
export function compress(raw: Uint8Array): { readonly codec: Codec; readonly bytes: Uint8Array } {
  if (!looksCompressible(raw)) return { codec: codecs.stored, bytes: raw };
  const codec = zstd === null ? codecs.deflate : codecs.zstd;
  const bytes = zstd === null ? deflateRawSync(raw, fast) : zstd.compress(raw);
  return bytes.byteLength <= raw.byteLength * WORTH ? { codec, bytes } : { codec: codecs.stored, bytes: raw };
}

const SAMPLE_BYTES = 1024;
const SAMPLES = 3;
/**
 * Of n equally frequent values, the squares of the counts in N bytes add up to N^2 / n. For 7.2 bits of entropy, which is what
 * 0.9 asks for, that is at least N^2 / 147 whatever the distribution; for random bytes N^2 / 256 + N, give or take 1 %.
 */
const SKEWED = 1 / 190;
/** Of 100 places, how many must have been seen before, for strings that come again to save a tenth. */
const REPEATED = 0.04;
const HASH_BITS = 10;

const counts = new Uint32Array(256);
const strings = new Int32Array(2 ** HASH_BITS);

export function looksCompressible(raw: Uint8Array): boolean {
  if (raw.byteLength <= SAMPLES * SAMPLE_BYTES) return true;
  counts.fill(0);
  strings.fill(0);
  const step = Math.floor((raw.byteLength - SAMPLE_BYTES) / (SAMPLES - 1));
  let repeated = 0;
  for (let sample = 0; sample < SAMPLES; sample += 1) {
    let string = 0;
    const end = sample * step + SAMPLE_BYTES;
    for (let at = sample * step; at < end; at += 1) {
      const byte = raw[at]!;
      counts[byte]! += 1;
      string = (string << 8) | byte;
      const slot = Math.imul(string, 0x9e37_79b1) >>> (32 - HASH_BITS);
      if (strings[slot] === string) repeated += 1;
      strings[slot] = string;
    }
  }
  const total = SAMPLES * SAMPLE_BYTES;
  if (repeated > total * REPEATED) return true;
  let squares = 0;
  for (const count of counts) squares += count * count;
  return squares > total * total * SKEWED;
}

/** Null where these bytes are not so many bytes compressed. Never takes more memory than that many. */
export async function decompress(
  codec: number,
  bytes: Uint8Array,
  rawBytes: number,
): Promise<Uint8Array | null> {
  let raw: Uint8Array;
  try {
    switch (codec) {
      case codecs.stored:
        raw = bytes;
        break;
      case codecs.deflate:
        raw = await inflate(bytes, { maxOutputLength: rawBytes });
        break;
      case codecs.zstd:
        raw = await inflateZstd(bytes, rawBytes);
        break;
      default:
        return null;
    }
  } catch (cause) {
    if (cause instanceof RaidError) throw cause;
    return null;
  }
  return raw.byteLength === rawBytes ? raw : null;
}

async function inflateZstd(bytes: Uint8Array, rawBytes: number): Promise<Uint8Array> {
  if (zstd !== null) return await zstd.decompress(bytes, { maxOutputLength: rawBytes });
  const { decompress: inflateFrame } = await import('fzstd').catch((cause: unknown) => {
    throw new RaidError(
      'NOT_SUPPORTED',
      `this repository holds zstd, which Node ${process.versions.node} cannot read by itself: npm install fzstd`,
      { cause },
    );
  });
  return inflateFrame(bytes, new Uint8Array(rawBytes));
}
