/** The laws of an answer: which pieces make one, what extents say, and what a client remembers. All of it is pure. */
import { describe, expect, test } from 'vitest';
import { Coverage, Exchange, extentsOf } from '../../lib/nbd/client-exchange.ts';
import { ClientMemory } from '../../lib/nbd/client-memory.ts';
import { commandFlags, commands } from '../../lib/nbd/protocol.ts';
import { type Random, runSeed, withSeed } from '../conformance/seed.ts';

describe('coverage', () => {
  test('of every sequence of three pieces in a range of five, it refuses what is outside or twice, and knows the whole', () => {
    const pieces: (readonly [number, number])[] = [];
    for (let from = -1; from <= 6; from += 1)
      for (let to = from + 1; to <= 6; to += 1) pieces.push([from, to]);
    expect(() => new Coverage(0, 5).add(2, 2)).toThrow();
    expect(() => new Coverage(0, 5).add(3, 2)).toThrow();
    for (const first of pieces) {
      for (const second of pieces) {
        for (const third of pieces) {
          const coverage = new Coverage(0, 5);
          const seen = new Set<number>();
          for (const [from, to] of [first, second, third]) {
            const cells = Array.from({ length: Math.max(0, to - from) }, (_, index) => from + index);
            const isBad = from < 0 || to > 5 || cells.some((cell) => seen.has(cell));
            let refused = false;
            try {
              coverage.add(from, to);
            } catch {
              refused = true;
            }
            if (refused !== isBad) throw new Error(`${[first, second, third].join(' | ')}: at ${from}-${to}`);
            if (isBad) break;
            for (const cell of cells) seen.add(cell);
          }
          if (coverage.isWhole !== (seen.size === 5)) throw new Error([first, second, third].join(' | '));
        }
      }
    }
  });

  test('any order of any cut is the whole, and nothing less is', async () => {
    await withSeed(runSeed, (random) => {
      for (let round = 0; round < 200; round += 1) {
        const sizeBytes = 1 + random(500);
        const cuts = [
          ...new Set([0, sizeBytes, ...Array.from({ length: random(40) }, () => random(sizeBytes))]),
        ];
        cuts.sort((a, b) => a - b);
        const pieces = cuts.slice(1).map((to, index) => [cuts[index]!, to] as const);
        shuffle(random, pieces);
        const coverage = new Coverage(1000, 1000 + sizeBytes);
        for (const [index, [from, to]] of pieces.entries()) {
          expect(coverage.isWhole).toBe(false);
          coverage.add(1000 + from, 1000 + to);
          expect(coverage.isWhole).toBe(index === pieces.length - 1);
          expect(() => coverage.add(1000 + from, 1000 + to)).toThrow();
        }
      }
    });
  });

  test('an answer in many thousands of crumbs is refused before it becomes a burden', () => {
    const coverage = new Coverage(0, 100_000);
    expect(() => {
      for (let at = 0; at < 100_000; at += 2) coverage.add(at, at + 1);
    }).toThrow(/scattered/);
  });
});

function shuffle<T>(random: Random, items: T[]): void {
  for (let index = items.length - 1; index > 0; index -= 1) {
    const other = random(index + 1);
    [items[index], items[other]] = [items[other]!, items[index]!];
  }
}

describe('extents', () => {
  test('of any descriptors: whole blocks, in order, no further than told, and only what is zero throughout is zero', async () => {
    await withSeed(runSeed, (random) => {
      for (let round = 0; round < 500; round += 1) {
        const blockBytes = [1, 4, 8][random(3)]!;
        const offsetBytes = blockBytes * random(10);
        const lengthBytes = blockBytes * (1 + random(12));
        const descriptors: { lengthBytes: number; flags: number }[] = [];
        const flagsAt: number[] = [];
        while (flagsAt.length < lengthBytes && (descriptors.length === 0 || random(5) > 0)) {
          const descriptor = { lengthBytes: 1 + random(20), flags: random(4) };
          descriptors.push(descriptor);
          for (let count = 0; count < descriptor.lengthBytes; count += 1) flagsAt.push(descriptor.flags);
        }
        const extents = extentsOf(descriptors, offsetBytes, lengthBytes, blockBytes);
        let at = offsetBytes;
        for (const [index, extent] of extents.entries()) {
          expect(extent.offsetBytes).toBe(at);
          expect(extent.lengthBytes % blockBytes).toBe(0);
          const flags = (extent.allocated ? 0 : 1) | (extent.zero ? 2 : 0);
          for (let count = 0; count < extent.lengthBytes; count += 1) {
            // Never more than was said: each flag holds for every byte of the block.
            expect(flags & ~flagsAt[at - offsetBytes + count]!).toBe(0);
          }
          const before = extents[index - 1];
          if (before !== undefined) {
            expect([before.allocated, before.zero]).not.toEqual([extent.allocated, extent.zero]);
          }
          at += extent.lengthBytes;
        }
        const told = Math.min(flagsAt.length, lengthBytes);
        expect(at - offsetBytes).toBe(told - (told % blockBytes));
      }
    });
  });
});

function change(offsetBytes: number, bytes: Uint8Array, flags = 0): Exchange {
  const { WRITE } = commands;
  const ask = { command: WRITE, flags, offsetBytes, lengthBytes: bytes.byteLength, buffers: [bytes] };
  return new Exchange(ask, () => undefined);
}

/**
 * A server that may lose any of what was not flushed, and a client that writes again what it kept: what was
 * acknowledged must be there afterwards, whichever writes were lost.
 */
test('whatever a server loses of what was not flushed, what is kept brings every acknowledged byte back', async () => {
  await withSeed(runSeed, (random) => {
    for (let round = 0; round < 300; round += 1) {
      const memory = new ClientMemory(random(3) === 0 ? 2000 : 2 ** 20);
      const size = 64;
      const acknowledged = new Uint8Array(size);
      const durable = new Uint8Array(size);
      let unflushed: Exchange[] = [];
      for (let step = 0; step < 30; step += 1) {
        if (random(6) === 0) {
          memory.flushed(memory.acknowledged);
          durable.set(acknowledged);
          unflushed = [];
          continue;
        }
        const offset = random(size);
        const bytes = new Uint8Array(1 + random(size - offset)).fill(1 + random(255));
        const isDurable = random(4) === 0;
        const write = change(offset, bytes, isDurable ? commandFlags.FUA : 0);
        memory.sending(write);
        memory.changed(write, isDurable);
        acknowledged.set(bytes, offset);
        if (isDurable) durable.set(bytes, offset);
        unflushed.push(write);
        // The caller's buffer is the caller's again.
        if (random(2) === 0) unflushed[unflushed.length - 1] = change(offset, bytes.slice(), write.flags);
      }
      if (!memory.canReturn) continue;
      // Any of them may have come to the disk all the same; what was to be durable has.
      const disk = Uint8Array.from(durable);
      const start = Uint8Array.from(durable);
      for (const { offsetBytes, buffers, flags } of unflushed) {
        if ((flags & commandFlags.FUA) !== 0 || random(2) === 0) start.set(buffers[0]!, offsetBytes);
      }
      disk.set(start);
      for (const { crc: _crc, offsetBytes, lengthBytes } of memory.witnesses) {
        // A witness lies where nothing is in doubt.
        const seen = disk.subarray(offsetBytes, offsetBytes + lengthBytes);
        expect(Buffer.compare(seen, acknowledged.subarray(offsetBytes, offsetBytes + lengthBytes))).toBe(0);
      }
      for (const { offsetBytes, buffers } of memory.kept) disk.set(buffers[0]!, offsetBytes);
      expect(Buffer.compare(disk, acknowledged)).toBe(0);
    }
  });
});

test('what is kept is a copy, is bounded, and is let go by the flush that covers it', () => {
  const memory = new ClientMemory(3000);
  const bytes = new Uint8Array(1000).fill(1);
  memory.changed(change(0, bytes), false);
  bytes.fill(9);
  expect(memory.kept[0]?.buffers[0]?.[0]).toBe(1);
  memory.changed(change(1000, bytes), false);
  const covers = memory.acknowledged;
  expect(memory.canReturn).toBe(true);
  memory.changed(change(2000, bytes), false);
  expect([memory.canReturn, memory.keptBytes]).toEqual([false, 0]);
  memory.flushed(covers);
  expect(memory.canReturn, 'what was not kept is not covered').toBe(false);
  memory.flushed(memory.acknowledged);
  expect(memory.canReturn).toBe(true);
});
