/**
 * Compression, chunk by chunk. Which codec a chunk has stands in its entry, so one repository may hold all of them.
 *
 *   0  stored    as it is: what does not shrink
 *   1  deflate   raw deflate (RFC 1951): written where Node has no zstd
 *   2  zstd      written where `node:zlib` has it (22.15 on); elsewhere read by fzstd
 *
 * A chunk that will not shrink costs a hundred times more to compress than to find out: a few pieces of it are tried first.
 */

import { promisify } from 'node:util';
import * as zlib from 'node:zlib';
import { constants, deflateRaw, deflateRawSync, inflateRaw } from 'node:zlib';
import { RaidError } from '../errors.ts';

export const codecs = { stored: 0, deflate: 1, zstd: 2 } as const;
export type Codec = (typeof codecs)[keyof typeof codecs];

interface ZstdFunctions {
  readonly compress: (bytes: Uint8Array) => Promise<Uint8Array>;
  readonly decompress: (bytes: Uint8Array, options: object) => Promise<Uint8Array>;
}

/** The types are those of the oldest Node, which has none of this. */
const zstd = ((): ZstdFunctions | null => {
  const found = zlib as unknown as Record<string, unknown>;
  const compress = found['zstdCompress'];
  const decompress = found['zstdDecompress'];
  if (typeof compress !== 'function' || typeof decompress !== 'function') return null;
  return {
    compress: promisify(
      compress as (bytes: Uint8Array, done: (error: Error | null, out: Buffer) => void) => void,
    ),
    decompress: promisify(
      decompress as (
        bytes: Uint8Array,
        options: object,
        done: (error: Error | null, out: Buffer) => void,
      ) => void,
    ),
  };
})();

const deflate = promisify<Uint8Array, object, Buffer>(deflateRaw);
const inflate = promisify<Uint8Array, object, Buffer>(inflateRaw);

const fast = { level: constants.Z_BEST_SPEED };
const SAMPLE_BYTES = 1024;
const SAMPLES = 3;
/** Of 100 bytes, at most so many may be left for it to be worth while. */
const WORTH = 0.9;

export async function compress(raw: Uint8Array): Promise<{ codec: Codec; bytes: Uint8Array }> {
  if (!looksCompressible(raw)) return { codec: codecs.stored, bytes: raw };
  const codec = zstd === null ? codecs.deflate : codecs.zstd;
  const bytes = zstd === null ? await deflate(raw, fast) : await zstd.compress(raw);
  return bytes.byteLength <= raw.byteLength * WORTH ? { codec, bytes } : { codec: codecs.stored, bytes: raw };
}

function looksCompressible(raw: Uint8Array): boolean {
  if (raw.byteLength <= SAMPLES * SAMPLE_BYTES) return true;
  const sample = new Uint8Array(SAMPLES * SAMPLE_BYTES);
  const step = Math.floor((raw.byteLength - SAMPLE_BYTES) / (SAMPLES - 1));
  for (let index = 0; index < SAMPLES; index += 1) {
    sample.set(raw.subarray(index * step, index * step + SAMPLE_BYTES), index * SAMPLE_BYTES);
  }
  return deflateRawSync(sample, fast).byteLength <= sample.byteLength * WORTH;
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
