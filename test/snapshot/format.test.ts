import { describe, expect, test } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import {
  decodeFrame,
  decodeHeader,
  encodeFrame,
  encodeHeader,
  type Frame,
  type Header,
  halfBytesFor,
  slotOffset,
  storeBytesFor,
  UNIT_BYTES,
} from '../../lib/snapshot/format.ts';
import type { Entry } from '../../lib/snapshot/history.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { type Random, randomBytes, runSeed, withSeed } from '../conformance/seed.ts';

const uuid = Uint8Array.from({ length: 16 }, (_, index) => index + 1);
const header: Header = { uuid, originBytes: MIB, chunkBytes: 4 * KIB, slotCount: 64, origin: 'an array ✓' };

function randomEntry(random: Random): Entry {
  const id = random(2 ** 32);
  const chunk = random(2 ** 48);
  const entries: readonly Entry[] = [
    { op: 'next', id },
    {
      op: 'snapshot',
      id,
      name: 'x'.repeat(random(128)),
      createdAtMs: random(2 ** 50),
      nonce: Buffer.from(randomBytes(random, 8)).toString('hex'),
      state: (['valid', 'invalid', 'tracking'] as const)[random(3)] ?? 'valid',
    },
    { op: 'copy', id, chunk, slot: random(2 ** 32), crc: random(2 ** 32) },
    { op: 'mark', id, chunk },
    { op: 'lost', id, chunk },
    { op: 'become', id, state: (['invalid', 'tracking', 'gone'] as const)[random(3)] ?? 'gone' },
    { op: 'rollback', id },
    { op: 'rollback', id, isLast: true },
    { op: 'witness', text: '✓'.repeat(random(20)) },
    { op: 'seal' },
  ];
  return entries[random(entries.length)] as Entry;
}

function randomFrame(random: Random): Frame {
  return {
    kind: (['checkpoint', 'batch', 'superseded'] as const)[random(3)] ?? 'batch',
    generation: random(2 ** 48),
    sequence: random(2 ** 48),
    entries: Array.from({ length: random(300) }, () => randomEntry(random)),
  };
}

describe('the header', () => {
  test('has the figures of the example in lib/snapshot/format.ts', () => {
    expect(halfBytesFor(64)).toBe(139264);
    expect(slotOffset(header, 0)).toBe(282624);
    expect(storeBytesFor(header)).toBe(544768);
  });

  test('comes back as it went', () => {
    expect(decodeHeader(encodeHeader(header), 'store')).toEqual(header);
  });

  test('with any bit turned is refused', () => {
    const bytes = encodeHeader(header);
    for (let bit = 0; bit < 8 * 128; bit += 1) {
      const broken = Buffer.from(bytes);
      broken[bit >> 3] = (broken[bit >> 3] as number) ^ (1 << (bit & 7));
      expect(() => decodeHeader(broken, 'store')).toThrow(RaidError);
    }
  });
});

describe('a frame', () => {
  test('comes back as it went, from anywhere in a half', async () => {
    await withSeed(runSeed, (random) => {
      for (let round = 0; round < 300; round += 1) {
        const frame = randomFrame(random);
        const bytes = encodeFrame(uuid, frame);
        const start = random(3) * UNIT_BYTES;
        const half = Buffer.concat([Buffer.alloc(start, 7), bytes, Buffer.alloc(UNIT_BYTES, 7)]);
        expect(decodeFrame(half, start, uuid)).toEqual({ frame, lengthBytes: bytes.byteLength });
      }
    });
  });

  test('with any byte of its content changed, cut off, or of another store is none', async () => {
    await withSeed(runSeed, (random) => {
      for (let round = 0; round < 2000; round += 1) {
        const frame = { ...randomFrame(random), entries: [randomEntry(random), randomEntry(random)] };
        const bytes = encodeFrame(uuid, frame);
        const used = 64 + bytes.readUInt32LE(12);
        const broken = Buffer.from(bytes);
        const at = random(used);
        broken[at] = (broken[at] as number) ^ (1 + random(255));
        expect(decodeFrame(broken, 0, uuid)).toBe(null);
        expect(decodeFrame(bytes.subarray(0, random(used)), 0, uuid)).toBe(null);
        expect(decodeFrame(bytes, 0, randomBytes(random, 16))).toBe(null);
      }
    });
  });

  test('torn anywhere between what was there before and what was written is the one, the other or none', async () => {
    await withSeed(runSeed, (random) => {
      for (let round = 0; round < 300; round += 1) {
        const before = encodeFrame(uuid, randomFrame(random));
        const after = encodeFrame(uuid, randomFrame(random));
        const torn = Buffer.alloc(Math.max(before.byteLength, after.byteLength));
        torn.set(before);
        for (let at = 0; at < after.byteLength; at += 512)
          if (random(2) === 0) torn.set(after.subarray(at, at + 512), at);
        const seen = decodeFrame(torn, 0, uuid);
        if (seen === null) continue;
        const again = encodeFrame(uuid, seen.frame);
        expect([before, after].some((each) => each.equals(again))).toBe(true);
      }
    });
  });

  test('of arbitrary bytes under a right checksum is read or refused, and nothing else is thrown', async () => {
    await withSeed(runSeed, async (random) => {
      const { crc32 } = await import('node:zlib');
      let read = 0;
      for (let round = 0; round < 3000; round += 1) {
        const bytes = encodeFrame(uuid, { ...randomFrame(random), entries: [randomEntry(random)] });
        const end = 64 + bytes.readUInt32LE(12);
        bytes.set(randomBytes(random, end - 64).subarray(0, random(8)), 64);
        bytes.writeUInt32LE(0, 32);
        bytes.writeUInt32LE(crc32(bytes.subarray(0, end)), 32);
        try {
          if (decodeFrame(bytes, 0, uuid) !== null) read += 1;
        } catch (cause) {
          expect(cause).toBeInstanceOf(RaidError);
        }
      }
      expect(read).toBeGreaterThan(0);
    });
  });
});
