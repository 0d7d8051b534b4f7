/** The arena against a naive model: blocks never overlap, nothing is lost, and those who wait are served in order. */
import { describe, expect, test } from 'vitest';
import { Arena, createMemory, PAGE_BYTES } from '../../lib/engine/memory.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

function arenaOf(heapBytes: number): Arena {
  return new Arena(createMemory(0, heapBytes));
}

/** What the arena sets aside for a request. */
function footprint(lengthBytes: number): number {
  let bytes = PAGE_BYTES;
  while (bytes < lengthBytes) bytes *= 2;
  return bytes;
}

interface Block {
  readonly address: number;
  readonly lengthBytes: number;
}

function overlap(a: Block, b: Block): boolean {
  return a.address < b.address + b.lengthBytes && b.address < a.address + a.lengthBytes;
}

describe('the arena', () => {
  for (const heapBytes of [MIB, 3 * MIB, 7 * MIB]) {
    test(`hands out blocks of ${heapBytes / MIB} MiB that never overlap and lie inside the heap`, () =>
      withSeed(runSeed, (random) => {
        const map = createMemory(2, heapBytes);
        const arena = new Arena(map);
        const held: Block[] = [];
        for (let step = 0; step < 4000; step += 1) {
          if (random(5) < 3) {
            const lengthBytes = 1 + random(random(3) === 0 ? 900 * KIB : 20 * KIB);
            const address = arena.tryAcquire(lengthBytes);
            if (address === null) continue;
            const block = { address, lengthBytes };
            expect(address % PAGE_BYTES).toBe(0);
            expect(address).toBeGreaterThanOrEqual(map.heapAddress);
            expect(address + lengthBytes).toBeLessThanOrEqual(map.heapAddress + map.heapBytes);
            if (held.some((other) => overlap(other, block))) throw new Error(`overlap at step ${step}`);
            held.push(block);
          } else if (held.length > 0) {
            const [block] = held.splice(random(held.length), 1);
            if (block !== undefined) arena.release(block.address, block.lengthBytes);
          }
          const used = held.reduce((sum, { lengthBytes }) => sum + footprint(lengthBytes), 0);
          if (arena.bytesUsed !== used) throw new Error(`${arena.bytesUsed} used, not ${used}`);
        }
      }));

    test(`gives all ${heapBytes / MIB} MiB out again after any history, in any sizes`, () =>
      withSeed(runSeed, (random) => {
        const arena = arenaOf(heapBytes);
        for (let round = 0; round < 12; round += 1) {
          const held: Block[] = [];
          for (;;) {
            const lengthBytes = 1 + random(60 * KIB);
            const address = arena.tryAcquire(lengthBytes);
            if (address === null) break;
            held.push({ address, lengthBytes });
          }
          while (held.length > 0) {
            const [block] = held.splice(random(held.length), 1);
            if (block !== undefined) arena.release(block.address, block.lengthBytes);
          }
          expect(arena.bytesUsed).toBe(0);
          const unit = PAGE_BYTES * 2 ** random(8);
          const whole = Array.from({ length: heapBytes / unit }, () => arena.tryAcquire(unit));
          expect(whole.includes(null)).toBe(false);
          expect(new Set(whole).size).toBe(whole.length);
          expect(arena.tryAcquire(1)).toBe(null);
          for (const address of whole) arena.release(address ?? 0, unit);
        }
      }));
  }

  test('can always give its largest block when nothing is out', () => {
    const arena = arenaOf(5 * MIB);
    const pages = Array.from({ length: (5 * MIB) / PAGE_BYTES }, () => arena.tryAcquire(1) ?? 0);
    for (const page of pages) arena.release(page, 1);
    expect(arena.largestBytes).toBe(4 * MIB);
    expect(arena.tryAcquire(arena.largestBytes)).not.toBe(null);
  });

  test('knows its largest block also where it has more than 31 bits', () => {
    expect(arenaOf(2048 * MIB).largestBytes).toBe(2048 * MIB);
  });

  test('serves those who wait in the order in which they came, and nobody overtakes', () =>
    withSeed(runSeed, async (random) => {
      const arena = arenaOf(MIB);
      const held: Block[] = [];
      const served: number[] = [];
      const asked: number[] = [];
      for (let request = 0; request < 400; request += 1) {
        const lengthBytes = 1 + random(random(4) === 0 ? 700 * KIB : 90 * KIB);
        asked.push(request);
        void arena.acquire(lengthBytes).then((address) => {
          served.push(request);
          held.push({ address, lengthBytes });
        });
        if (arena.waitingCount > 0) expect(arena.tryAcquire(1)).toBe(null);
        await Promise.resolve();
        if (random(3) > 0 && held.length > 0) {
          const [block] = held.splice(random(held.length), 1);
          if (block !== undefined) arena.release(block.address, block.lengthBytes);
        }
      }
      // Once everything given comes back, everybody is served: nobody starves.
      while (served.length < asked.length) {
        await Promise.resolve();
        const block = held.shift();
        if (block === undefined && arena.waitingCount > 0) throw new Error('those who wait wait for nothing');
        if (block !== undefined) arena.release(block.address, block.lengthBytes);
      }
      expect(served).toEqual(asked);
    }));

  test('lets a request for everything through a stream of small ones', async () => {
    const arena = arenaOf(MIB);
    const small: number[] = [];
    for (let count = 0; count < 200; count += 1) small.push(arena.tryAcquire(PAGE_BYTES) ?? 0);
    let whole = false;
    void arena.acquire(MIB).then(() => {
      whole = true;
    });
    let behind = 0;
    for (const address of small) {
      void arena.acquire(PAGE_BYTES).then(() => {
        behind += 1;
      });
      arena.release(address, PAGE_BYTES);
      await Promise.resolve();
      if (!whole) expect(behind).toBe(0);
    }
    expect(whole).toBe(true);
  });
});
