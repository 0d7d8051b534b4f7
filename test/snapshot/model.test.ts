/** Histories of writes, snapshots, deletions, rollbacks and openings, and beside them the same with plain copies. */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { seededRandom } from '../../lib/host.ts';
import { SnapshotOrigin } from '../../lib/snapshot/origin.ts';
import { SnapshotStore } from '../../lib/snapshot/store.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { type Random, randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { contentOf, expectSame, imageOf, randomPiece, unlessInvalid } from './world.ts';

const SIZE = 200 * KIB - 512;
const ID = { origin: 'array' };

interface Point {
  readonly point: string;
  readonly image: Buffer;
}

class World {
  readonly random: Random;
  readonly host: { wallClock(): number; randomBytes(count: number): Uint8Array };
  readonly memory = new SharedArrayBuffer(SIZE);
  readonly storeMemory = new SharedArrayBuffer(4 * MIB);
  readonly model = Buffer.alloc(SIZE);
  readonly images = new Map<string, Buffer>();
  readonly points: Point[] = [];
  origin!: SnapshotOrigin;
  #names = 0;

  constructor(random: Random) {
    this.random = random;
    this.host = { wallClock: () => 1_800_000_000_000, randomBytes: (count) => randomBytes(random, count) };
  }

  devices(): readonly [MemoryDevice, MemoryDevice] {
    const below = new MemoryDevice({ sizeBytes: SIZE, memory: this.memory, blockBytes: 512 });
    const store = new MemoryDevice({ sizeBytes: this.storeMemory.byteLength, memory: this.storeMemory });
    return [below, store];
  }

  async create(limitBytes: number): Promise<void> {
    const chunkBytes = 4 * KIB * 2 ** this.random(2);
    this.origin = await SnapshotOrigin.create(...this.devices(), this.host, {
      ...ID,
      limitBytes,
      chunkBytes,
    });
  }

  pick<T>(items: readonly T[]): T {
    return items[this.random(items.length)] as T;
  }

  async step(): Promise<void> {
    const { random, origin, model, images } = this;
    const dice = random(100);
    const names = [...images.keys()];
    if (dice < 50 || names.length === 0) {
      // Together, and not over each other: which of two would win is not decided.
      const pieces = Array.from({ length: 1 + random(4) }, () => randomPiece(random, SIZE, 512));
      const apart = pieces.filter(
        (piece, index) =>
          !pieces
            .slice(0, index)
            .some(
              (other) =>
                other.offsetBytes < piece.offsetBytes + piece.bytes.byteLength &&
                piece.offsetBytes < other.offsetBytes + other.bytes.byteLength,
            ),
      );
      await Promise.all(apart.map(({ offsetBytes, bytes }) => origin.write(offsetBytes, bytes)));
      for (const { offsetBytes, bytes } of apart) model.set(bytes, offsetBytes);
      if (names.length === 0) await this.take();
    } else if (dice < 58) {
      const { offsetBytes, bytes } = randomPiece(random, SIZE, 512);
      await (random(2) === 0
        ? origin.writeZeroes(offsetBytes, bytes.byteLength)
        : origin.discard(offsetBytes, bytes.byteLength));
      model.fill(0, offsetBytes, offsetBytes + bytes.byteLength);
    } else if (dice < 70) {
      await this.take();
    } else if (dice < 82) {
      const name = this.pick(names);
      await origin.delete(name, { keepTracking: random(2) === 0 });
      images.delete(name);
    } else if (dice < 88) {
      const name = this.pick(names);
      if (await unlessInvalid(() => origin.rollback(name))) model.set(images.get(name) as Buffer);
    } else if (dice < 92) {
      await origin.close();
      this.origin = await SnapshotOrigin.open(...this.devices(), this.host, ID);
    } else if (dice < 94 && this.points.length > 0) {
      await origin.forget(this.pick(this.points).point);
    } else {
      const name = this.pick(names);
      const image = await imageOf(origin, name);
      if (image !== null) expectSame(name, image, images.get(name) as Buffer);
    }
  }

  async take(): Promise<void> {
    if (this.images.size > 8) return;
    this.#names += 1;
    const name = `s${this.#names}`;
    const { point } = await this.origin.take(name);
    this.images.set(name, Buffer.from(this.model));
    this.points.push({ point, image: Buffer.from(this.model) });
  }

  /** Returns how many snapshots are invalid. */
  async judge(): Promise<number> {
    const { origin } = this;
    expectSame('origin', await contentOf(origin), this.model);
    let invalid = 0;
    for (const [name, image] of this.images) {
      const seen = await imageOf(origin, name);
      if (seen === null) invalid += 1;
      else expectSame(name, seen, image);
    }
    for (const { point, image } of this.points) this.#judgeTracking(point, image);
    await this.#judgeSpace();
    return invalid;
  }

  /** Everything that differs is named. */
  #judgeTracking(point: string, image: Buffer): void {
    const changed = this.origin.changedSince(point);
    if (changed === 'unknown') return;
    const rest = Buffer.from(this.model);
    for (const { offsetBytes, lengthBytes } of changed)
      rest.set(image.subarray(offsetBytes, offsetBytes + lengthBytes), offsetBytes);
    expectSame(`not named as changed since ${point}`, rest, image);
  }

  /**
   * What is used is what is on record, and what is on its way there: a write is acknowledged while its copy has a slot, and no record
   * yet. So at any moment it is no less than what snapshots need, and when nothing is on its way it is exactly that.
   */
  async #judgeSpace(): Promise<void> {
    const sumOf = (sizes: readonly number[]) => sizes.reduce((sum, bytes) => sum + bytes, 0);
    const uniqueNow = sumOf(this.origin.list().map(({ uniqueBytes }) => uniqueBytes));
    expect(uniqueNow).toBeLessThanOrEqual(this.origin.usage().usedBytes);
    await this.origin.flush();
    const { usedBytes } = this.origin.usage();
    const { header, history } = await SnapshotStore.peek(this.devices()[1]);
    expect(usedBytes).toBe([...history.slots()].length * header.chunkBytes);
    const infos = this.origin.list();
    const unique = sumOf(infos.map(({ uniqueBytes }) => uniqueBytes));
    const shared = sumOf(infos.map(({ sharedBytes }) => sharedBytes));
    // Whatever is shared is counted for at least two, and at most for all.
    const validCount = infos.filter(({ state }) => state === 'valid').length;
    expect(usedBytes).toBeLessThanOrEqual(unique + shared / 2);
    expect(usedBytes).toBeGreaterThanOrEqual(unique + shared / Math.max(1, validCount));
  }
}

async function run(seed: number, limitBytes: number, steps: number): Promise<number> {
  let invalid = 0;
  await withSeed(seed, async () => {
    const world = new World(seededRandom(seed));
    await world.create(limitBytes);
    for (let step = 0; step < steps; step += 1) {
      await world.step();
      if (step % 10 === 9) invalid = Math.max(invalid, await world.judge());
    }
    await world.judge();
    await world.origin.close();
  });
  return invalid;
}

test('with room enough every snapshot is its image for ever, and tracking names every change', async () => {
  for (let round = 0; round < 12; round += 1) expect(await run(runSeed + round, 3 * MIB, 80)).toBe(0);
});

test('with too little room snapshots become invalid, none is ever wrong, and the origin goes on', async () => {
  let invalid = 0;
  for (let round = 0; round < 12; round += 1) invalid += await run(runSeed + round, 128 * KIB, 80);
  expect(invalid).toBeGreaterThan(0);
});
