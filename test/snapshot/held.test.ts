import { expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import { gapsOf, type HeldChunk, HeldWrites, overlay } from '../../lib/snapshot/held.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { expectSame } from './world.ts';

const CHUNK = 16;
const SIZE = 10 * CHUNK;

/** Something that can be waited for, and let go of. */
function gate(): { readonly opened: Promise<void>; readonly open: () => void } {
  let open: () => void = () => undefined;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}

async function turns(count = 20): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await Promise.resolve();
}

test('what is read over what is held, and what arrives, is what plain memory holds, for pieces in any order', () =>
  withSeed(runSeed, async () => {
    const random = seededRandom(runSeed);
    for (let round = 0; round < 200; round += 1) {
      const below = Buffer.alloc(SIZE, 1);
      const model = Buffer.from(below);
      const writes: number[] = [];
      const first = gate();
      const held = new HeldWrites({
        chunkBytes: CHUNK,
        save: () => first.opened,
        write: async (offsetBytes, sources) => {
          writes.push(offsetBytes);
          below.set(Buffer.concat(sources), offsetBytes);
        },
      });
      // The first one is on its way at once, and nothing goes onto it.
      held.hold(null, { chunk: 9, at: 0, bytes: new Uint8Array(CHUNK).fill(7) });
      model.fill(7, 9 * CHUNK, 10 * CHUNK);
      for (let step = 0; step < 12; step += 1) {
        const offsetBytes = random(9 * CHUNK - 1);
        const lengthBytes = 1 + random(9 * CHUNK - offsetBytes);
        const bytes = randomBytes(random, lengthBytes);
        model.set(bytes, offsetBytes);
        const cut = random(lengthBytes);
        const sources = [bytes.subarray(0, cut), bytes.subarray(cut)];
        for (const piece of held.piecesOf(offsetBytes, sources)) {
          if (!held.put(piece)) held.hold(null, piece);
        }
        bytes.fill(0);
        const seen = Buffer.from(below);
        overlay(held.piecesWithin(0, SIZE), CHUNK, 0, [seen.subarray(0, 5), seen.subarray(5)]);
        expectSame('read', seen, model);
      }
      const all = held.empty();
      first.open();
      await all;
      expect(held.size).toBe(0);
      expectSame('below', below, model);
      // Neighbours go together: never more writes than there are chunks, and the one that left before.
      expect(writes.length).toBeLessThanOrEqual(10);
    }
  }));

test('what no piece covers is what is asked of those below, in whatever order chunks came to be held', () =>
  withSeed(runSeed, async () => {
    const random = seededRandom(runSeed);
    for (let round = 0; round < 200; round += 1) {
      const held = new HeldWrites({
        chunkBytes: CHUNK,
        save: () => new Promise(() => undefined),
        write: () => Promise.resolve(),
      });
      const isHeld = new Uint8Array(SIZE);
      const chunks = new Set<number>();
      for (let step = 0; step < 6; step += 1) {
        const chunk = random(10);
        const at = random(CHUNK);
        const bytes = new Uint8Array(1 + random(CHUNK - at));
        const piece = { chunk, at, bytes };
        const isNew = !chunks.has(chunk);
        if (isNew) held.hold(null, piece);
        chunks.add(chunk);
        const start = chunk * CHUNK + at;
        if (isNew || held.put(piece)) isHeld.fill(1, start, start + bytes.byteLength);
      }
      const from = random(SIZE - 1);
      const lengthBytes = 1 + random(SIZE - from);
      const asked = new Uint8Array(SIZE);
      for (const gap of gapsOf(held.piecesWithin(from, from + lengthBytes), CHUNK, from, lengthBytes))
        asked.fill(1, gap.offsetBytes, gap.offsetBytes + gap.lengthBytes);
      const wanted = isHeld.map((byte, index) =>
        byte === 0 && index >= from && index < from + lengthBytes ? 1 : 0,
      );
      expectSame('asked', Buffer.from(asked), Buffer.from(wanted));
    }
  }));

test('nothing is written before it is saved, and what comes meanwhile is saved together', async () => {
  const saved: number[][] = [];
  const written: number[] = [];
  const gates = [gate(), gate()];
  const held = new HeldWrites({
    chunkBytes: CHUNK,
    save: async (chunks: readonly HeldChunk[]) => {
      saved.push(chunks.map(({ chunk }) => chunk));
      await gates[saved.length - 1]?.opened;
    },
    write: async (offsetBytes) => {
      written.push(offsetBytes / CHUNK);
    },
  });
  for (const chunk of [5, 1, 7, 3]) {
    held.hold(null, { chunk, at: 0, bytes: new Uint8Array(CHUNK) });
    await turns();
  }
  expect([saved, written]).toEqual([[[5]], []]);
  expect(held.put({ chunk: 5, at: 0, bytes: new Uint8Array(1) })).toBe(false);
  expect(held.put({ chunk: 7, at: 0, bytes: new Uint8Array(1) })).toBe(true);
  gates[0]?.open();
  await turns();
  expect([saved, written]).toEqual([[[5], [1, 3, 7]], [5]]);
  gates[1]?.open();
  await held.empty();
  expect(new Set(written)).toEqual(new Set([5, 1, 3, 7]));
});

test('a buffer that is used again changes nothing for who read what was in it', async () => {
  const held = new HeldWrites({
    chunkBytes: CHUNK,
    save: () => Promise.resolve(),
    write: () => Promise.resolve(),
  });
  for (const piece of held.piecesOf(0, [new Uint8Array(CHUNK).fill(1)])) held.hold(null, piece);
  const seen = held.piecesWithin(0, CHUNK);
  await held.empty();
  const [next] = held.piecesOf(0, [new Uint8Array(CHUNK).fill(2)]);
  expect(next?.bytes[0]).toBe(2);
  expect(seen[0]?.bytes).toEqual(new Uint8Array(CHUNK).fill(1));
});

test('bytes that are tried again never land on what has been written over them meanwhile', async () => {
  const below = Buffer.alloc(CHUNK);
  const tries: (() => Promise<void>)[] = [() => Promise.reject(new Error('not now'))];
  const again = gate();
  const held = new HeldWrites({
    chunkBytes: CHUNK,
    save: () => Promise.resolve(),
    write: async (_, sources) => {
      await (tries.shift()?.() ?? again.opened);
      below.set(Buffer.concat(sources));
    },
  });
  held.hold(null, { chunk: 0, at: 0, bytes: new Uint8Array(CHUNK).fill(1) });
  await held.untilGone();
  expect(held.isStuckWithin(0, CHUNK)).toBe(true);
  const flushed = held.empty();
  await turns();
  const written = held.past(4, 8, async () => {
    below.fill(2, 4, 12);
  });
  await turns();
  again.open();
  await Promise.all([flushed, written]);
  expectSame('below', below, Buffer.alloc(CHUNK, 1).fill(2, 4, 12));
  expect(held.size).toBe(0);
});
