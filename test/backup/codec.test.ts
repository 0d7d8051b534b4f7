/** Whether a chunk is worth compressing is found out from a few pieces of it, and what is stored comes back. */
import { deflateRawSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { codecs, compress, decompress, looksCompressible } from '../../lib/backup/codec.ts';
import { KIB } from '../../lib/units.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';

const SIZE = 64 * KIB;

test('random bytes are stored as they are, and what deflate makes shorter by a fifth is compressed', () =>
  withSeed(runSeed, async (random) => {
    const noise = randomBytes(random, SIZE);
    const block = noise.subarray(0, 500);
    const samples: readonly [string, Uint8Array][] = [
      ['noise', noise],
      ['numbers below 128', noise.map((byte) => byte & 127)],
      ['mostly one byte', noise.map((byte, at) => (at % 3 === 0 ? byte : 0))],
      ['blocks of noise that come again', Uint8Array.from({ length: SIZE }, (_, at) => block[at % 500]!)],
      ['32-bit counters', new Uint8Array(Uint32Array.from({ length: SIZE / 4 }, (_, at) => at * 977).buffer)],
      ['text', Buffer.from('stripe parity member journal flush '.repeat(SIZE / 35))],
      ['words', Buffer.from(Array.from({ length: SIZE / 8 }, () => random(100_000)).join(' '))],
    ];
    for (const [name, bytes] of samples) {
      const left = deflateRawSync(bytes, { level: 1 }).byteLength / bytes.byteLength;
      if (left > 0.99) expect(looksCompressible(bytes), name).toBe(false);
      if (left < 0.8) expect(looksCompressible(bytes), name).toBe(true);
      const { codec, bytes: stored } = compress(bytes);
      expect(codec === codecs.stored, name).toBe(left > 0.9);
      const back = (await decompress(codec, stored, bytes.byteLength))!;
      expect(Buffer.compare(back, bytes), name).toBe(0);
    }
  }));
