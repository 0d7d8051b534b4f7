/** Writes that follow each other reach the device in its own units, each byte once, and each write is answered once. */
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import { Gatherer } from '../../lib/nbd/gather.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { StillHost, turn } from './wire.ts';

const SIZE_BYTES = 16 * MIB;
const ROW_BYTES = 192 * KIB;
const UNIT_BYTES = 5 * ROW_BYTES;
const BLOCK_BYTES = 512;

interface Asked {
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
  readonly fua: boolean;
  readonly settle: (error?: Error) => void;
}

const refused = new Error('that place takes no write');

/** A device that does what it is told when the test says so. */
class World {
  readonly host = new StillHost();
  readonly disk = Buffer.alloc(SIZE_BYTES);
  readonly expected = Buffer.alloc(SIZE_BYTES);
  readonly asked: Asked[] = [];
  readonly answers: (readonly [number, unknown])[] = [];
  lentCount = 0;
  /** A place where nothing can be written: of what is written across it nobody knows how much is. */
  bad = { from: 0, to: 0 };
  /** Of which the gatherer says that they are still under way. */
  changes = 0;
  #count = 0;
  readonly gatherer = new Gatherer(
    { preferredBytes: ROW_BYTES, blockBytes: BLOCK_BYTES },
    {
      host: this.host,
      lend: (lengthBytes) => {
        this.lentCount += 1;
        const giveBack = (): void => {
          this.lentCount -= 1;
        };
        return { bytes: Buffer.alloc(lengthBytes, 0xee), giveBack };
      },
      write: (offsetBytes, bytes, fua) =>
        new Promise((resolve, reject) => {
          // What is less than a block can be written by nobody, or is half a sector.
          expect([offsetBytes % BLOCK_BYTES, bytes.byteLength % BLOCK_BYTES]).toEqual([0, 0]);
          const settle = (error?: Error): void => {
            // Who waits for the end of all that came over a connection waits for this.
            expect(this.changes).toBeGreaterThan(0);
            const isBad = offsetBytes < this.bad.to && this.bad.from < offsetBytes + bytes.byteLength;
            if (error !== undefined || isBad) {
              this.disk.fill(0xbb, offsetBytes, offsetBytes + bytes.byteLength);
              reject(error ?? refused);
            } else {
              // As late as it may be: until here the memory is the device's.
              this.disk.set(bytes, offsetBytes);
              resolve();
            }
          };
          this.asked.push({ offsetBytes, bytes, fua, settle });
        }),
      onChange: (change) => {
        this.changes += 1;
        void change.then(() => {
          this.changes -= 1;
        });
      },
    },
  );

  begin(offsetBytes: number, lengthBytes: number, fua = false): number {
    const number = this.#count;
    this.#count += 1;
    this.gatherer.begin(offsetBytes, lengthBytes, fua, (error) => this.answers.push([number, error]));
    return number;
  }

  /** Some of the payload of the write that was begun last. */
  receive(at: number, lengthBytes: number, value: number): void {
    for (let done = 0; done < lengthBytes; ) {
      const room = this.gatherer.room().subarray(0, lengthBytes - done);
      room.fill(value);
      this.expected.fill(value, at + done, at + done + room.byteLength);
      this.gatherer.filled(room.byteLength);
      done += room.byteLength;
    }
  }

  write(offsetBytes: number, lengthBytes: number, value: number, fua = false): number {
    const number = this.begin(offsetBytes, lengthBytes, fua);
    this.receive(offsetBytes, lengthBytes, value);
    return number;
  }

  async settleAll(): Promise<void> {
    while (this.asked.length > 0 || this.lentCount > 0) {
      for (const { settle } of this.asked.splice(0)) settle();
      await turn();
      await this.host.advance(10, 5);
    }
  }

  get ranges(): readonly (readonly [number, number])[] {
    return this.asked.map(({ offsetBytes, bytes }) => [offsetBytes, bytes.byteLength]);
  }
}

describe('writes from one end to the other', () => {
  test('are whole units to the device, but for where they begin and end', async () => {
    const world = new World();
    for (let index = 0; index < 8; index += 1) world.write(index * MIB, MIB, index + 1);
    await turn();
    const [first, second, ...others] = world.ranges;
    // Nobody could know that the first write would be followed by another.
    expect([first, second]).toEqual([
      [0, UNIT_BYTES],
      [UNIT_BYTES, MIB - UNIT_BYTES],
    ]);
    expect(others[0]).toEqual([MIB, 2 * UNIT_BYTES - MIB]);
    for (const [offsetBytes, lengthBytes] of others.slice(1)) {
      expect([offsetBytes % UNIT_BYTES, lengthBytes]).toEqual([0, UNIT_BYTES]);
    }
    await world.settleAll();
    expect(world.answers.map(([number]) => number)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(Buffer.compare(world.disk, world.expected)).toBe(0);
  });

  test('do not wait for the next where the device has nothing else to do', async () => {
    const world = new World();
    for (const index of [0, 1, 2]) {
      world.write(index * 64 * KIB, 64 * KIB, 7);
      await turn();
      expect(world.ranges).toEqual([[index * 64 * KIB, 64 * KIB]]);
      for (const { settle } of world.asked.splice(0)) settle();
      await turn();
      expect(world.answers.length).toBe(index + 1);
    }
    expect(world.lentCount).toBe(0);
  });

  test('wait no longer than the device is busy, or two milliseconds', async () => {
    for (const how of ['settles', 'hangs'] as const) {
      const world = new World();
      world.write(0, 64 * KIB, 1);
      world.write(64 * KIB, 64 * KIB, 2);
      await turn();
      expect(world.ranges).toEqual([[0, 64 * KIB]]);
      if (how === 'settles') world.asked[0]?.settle();
      else await world.host.advance(2, 1);
      await turn();
      expect(world.ranges.slice(1)).toEqual([[64 * KIB, 64 * KIB]]);
      await world.settleAll();
      expect(world.answers.length).toBe(2);
    }
  });

  test('are cut before the write whose rest is long in coming, which goes on as one', async () => {
    const world = new World();
    world.write(0, 64 * KIB, 1);
    world.write(64 * KIB, 64 * KIB, 2);
    world.begin(128 * KIB, 64 * KIB);
    world.receive(128 * KIB, 1000, 3);
    await turn();
    await world.host.advance(2, 1);
    expect(world.ranges.slice(1)).toEqual([[64 * KIB, 64 * KIB]]);
    for (const { settle } of world.asked.splice(0)) settle();
    await turn();
    expect(world.answers.map(([number]) => number)).toEqual([0, 1]);
    await world.host.advance(100, 100);
    expect(world.ranges).toEqual([]);
    world.receive(128 * KIB + 1000, 64 * KIB - 1000, 4);
    await turn();
    expect(world.ranges).toEqual([[128 * KIB, 64 * KIB]]);
    await world.settleAll();
    expect(world.answers.map(([number]) => number)).toEqual([0, 1, 2]);
    expect(Buffer.compare(world.disk, world.expected)).toBe(0);
  });

  test('that are to be durable at once do not wait, and what shares a part with one is durable too', async () => {
    const world = new World();
    world.write(0, 64 * KIB, 1);
    world.write(64 * KIB, 64 * KIB, 2);
    world.write(128 * KIB, 64 * KIB, 3, true);
    expect(world.asked.map(({ fua }) => fua)).toEqual([false, true]);
    expect(world.ranges[1]).toEqual([64 * KIB, 128 * KIB]);
    await world.settleAll();
  });
});

test('a place that takes no write fails those that write there, and no other that shared a part with them', async () => {
  for (let bad = 0; bad < 24; bad += 1) {
    const world = new World();
    world.bad = { from: bad * 100 * KIB, to: bad * 100 * KIB + BLOCK_BYTES };
    const lengthBytes = 200 * KIB;
    // Many to a part, and some in two.
    for (let index = 0; index < 12; index += 1) world.write(index * lengthBytes, lengthBytes, index + 1);
    await world.settleAll();
    const failing = Math.floor(world.bad.from / lengthBytes);
    expect(world.answers.length).toBe(12);
    expect(world.answers.filter(([, error]) => error !== null)).toEqual([[failing, refused]]);
    for (const image of [world.disk, world.expected])
      image.fill(0, failing * lengthBytes, (failing + 1) * lengthBytes);
    expect(Buffer.compare(world.disk, world.expected)).toBe(0);
    expect(world.lentCount).toBe(0);
  }
});

test('what is to be durable is so when it is tried again, too', async () => {
  const world = new World();
  world.bad = { from: 64 * KIB, to: 64 * KIB + BLOCK_BYTES };
  // The device is busy, so the others share a part.
  world.write(8 * MIB, 64 * KIB, 9);
  await world.host.advance(1, 5);
  for (let index = 0; index < 3; index += 1) world.write(index * 64 * KIB, 64 * KIB, index + 1, index === 2);
  for (const { settle } of world.asked.splice(0, 2)) settle();
  await turn();
  await world.host.advance(10, 5);
  expect(world.ranges).toEqual([[64 * KIB, 128 * KIB]]);
  for (const { settle } of world.asked.splice(0)) settle();
  await turn();
  expect(world.asked.map(({ offsetBytes, fua }) => [offsetBytes, fua])).toEqual([
    [64 * KIB, false],
    [128 * KIB, true],
  ]);
  await world.settleAll();
});

test('what is refused when all has been given up is not tried again, and what is being tried again is waited for', async () => {
  for (const isLate of [false, true]) {
    const world = new World();
    world.bad = { from: 100 * KIB, to: 100 * KIB + BLOCK_BYTES };
    // The device is busy, so the others share a part.
    world.write(8 * MIB, 64 * KIB, 9);
    await world.host.advance(1, 5);
    for (let index = 0; index < 3; index += 1) world.write(index * 64 * KIB, 64 * KIB, index + 1);
    const first = world.asked.splice(0);
    for (const { settle } of first) settle();
    await turn();
    await world.host.advance(10, 5);
    expect(world.ranges).toEqual([[64 * KIB, 128 * KIB]]);
    const [part] = world.asked.splice(0);
    if (!isLate) world.gatherer.abandon(new Error('over'));
    part?.settle();
    await turn();
    if (isLate) {
      world.gatherer.abandon(new Error('over'));
      expect(world.ranges.length).toBe(2);
      expect(world.changes).toBe(1);
    } else {
      expect(world.ranges).toEqual([]);
      expect(world.changes).toBe(0);
    }
    await world.settleAll();
    const failed = world.answers.filter(([, error]) => error !== null).map(([number]) => number);
    expect(failed).toEqual(isLate ? [2] : [2, 3]);
    expect(world.changes).toBe(0);
  }
});

test('what ends in the middle is not answered; what is complete is written, unless all is given up', async () => {
  for (const isOver of [false, true]) {
    const world = new World();
    world.write(0, 64 * KIB, 1);
    world.write(64 * KIB, 64 * KIB, 2);
    world.begin(128 * KIB, 64 * KIB);
    world.receive(128 * KIB, 999, 3);
    world.expected.fill(0, 128 * KIB);
    if (isOver) {
      world.expected.fill(0, 64 * KIB);
      world.gatherer.abandon(new Error('over'));
    } else {
      const leaveRoom = world.gatherer.abandonWrite();
      while (world.asked.length > 0) {
        for (const { settle } of world.asked.splice(0)) settle();
        await turn();
      }
      // Whoever was told to receive into it may still do so.
      expect(world.lentCount).toBe(1);
      leaveRoom();
    }
    await world.settleAll();
    expect(world.answers.map(([number, error]) => [number, error === null])).toEqual(
      isOver
        ? [
            [1, false],
            [0, true],
          ]
        : [
            [0, true],
            [1, true],
          ],
    );
    expect(Buffer.compare(world.disk, world.expected)).toBe(0);
  }
});

test.each([1, 2, 3, 4, 5, 6])(
  'any writes at any pace, half of the times with a place that takes none: every byte, every answer once, all memory back (seed %i)',
  async (seed) => {
    const random = seededRandom(seed);
    const world = new World();
    const badAt = BLOCK_BYTES * random(SIZE_BYTES / BLOCK_BYTES);
    if (seed % 2 === 0) world.bad = { from: badAt, to: badAt + 100 * BLOCK_BYTES };
    const spared: (readonly [number, number])[] = [];
    const hit: number[] = [];
    let at = 0;
    let count = 0;
    while (at < SIZE_BYTES - 4 * MIB) {
      const lengthBytes = BLOCK_BYTES * (1 + random([140, 600, 6 * KIB][random(3)] ?? 1));
      const number = world.begin(at, lengthBytes, random(10) === 0);
      if (at < world.bad.to && world.bad.from < at + lengthBytes) hit.push(number);
      else spared.push([at, at + lengthBytes]);
      count += 1;
      for (let done = 0; done < lengthBytes; ) {
        const part = Math.min(lengthBytes - done, 1 + random(random(2) === 0 ? 200_000 : 5000));
        world.receive(at + done, part, 1 + random(255));
        done += part;
        if (random(3) === 0) await turn(1);
        if (random(10) === 0) await world.host.advance(1, 1);
        while (world.asked.length > random(12))
          world.asked.splice(random(world.asked.length), 1)[0]?.settle();
      }
      at += lengthBytes + (random(3) === 0 ? BLOCK_BYTES * random(1000) : 0);
    }
    await world.settleAll();
    expect(world.answers.map(([number]) => number).sort((a, b) => a - b)).toEqual(
      Array.from({ length: count }, (_, number) => number),
    );
    const failed = world.answers.filter(([, error]) => error !== null).map(([number]) => number);
    expect(failed.sort((a, b) => a - b)).toEqual(hit);
    for (const [from, to] of spared)
      expect(
        Buffer.compare(world.disk.subarray(from, to), world.expected.subarray(from, to)),
        `${from}`,
      ).toBe(0);
    expect(world.lentCount).toBe(0);
  },
);
