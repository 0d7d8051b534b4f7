/** Threads that pack: what comes out is what one thread makes of it, and when one of them dies nothing is lost. */
import { Worker } from 'node:worker_threads';
import { expect, test, vi } from 'vitest';
import { Repository } from '../../lib/backup/repository.ts';
import { seededRandom } from '../../lib/host.ts';
import { KIB } from '../../lib/units.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { deviceOf, expectSame, imageOf, MemoryStore, newRepository, restored } from './world.ts';

/** Trays of many chunks, and packs of several: a thread waits for rooms, and its packs outgrow them. */
const shape = { chunkBytes: 4 * KIB, pageChunks: 64, packBytes: 100 * KIB, groupPacks: 4 } as const;

test('store the same chunks as one thread does, each once, and give back every byte', () =>
  withSeed(runSeed, async (random) => {
    const image = imageOf(random, 1_000_000 + random(500_000));
    const added: number[] = [];
    for (const threads of [0, 1, 2]) {
      const store = new MemoryStore();
      const repository = await newRepository(store, { ...shape, threads, redundancy: 2 });
      const backup = (await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!;
      added.push(backup.addedBytes);
      expectSame(await restored(repository, backup), image, `${threads} threads`);
      expect(await repository.verify({ readPercent: 100 })).toMatchObject({
        damaged: [],
        lost: [],
        unprotected: [],
      });
      const again = await repository.createBackup({ source: deviceOf(image), array: 'demo' });
      expect(again).toMatchObject({ addedBytes: 0, storedBytes: 0 });
    }
    expect(new Set(added).size).toBe(1);
  }));

test('prune moves chunks and pages by threads too', async () => {
  const repository = await newRepository(new MemoryStore(), { ...shape, threads: 2 });
  const image = imageOf(seededRandom(5), 1_000_000);
  const other = imageOf(seededRandom(6), 1_000_000);
  const going = (await repository.createBackup({ source: deviceOf(other), array: 'demo' }))!;
  other.set(image.subarray(0, 600_000));
  const last = (await repository.createBackup({ source: deviceOf(other), array: 'demo' }))!;
  const { packsRewritten } = await repository.prune({ remove: [going.id] });
  expect(packsRewritten).toBeGreaterThan(0);
  expectSame(await restored(repository, last), other, 'what was kept');
  expect(await repository.verify({ readPercent: 100 })).toMatchObject({ damaged: [], lost: [] });
});

test('one that dies while somebody reads into its memory is an error too', async () => {
  const repository = await newRepository(new MemoryStore(), { ...shape, threads: 1 });
  const image = imageOf(seededRandom(3), 2_000_000);
  const source = deviceOf(image);
  const read = source.read.bind(source);
  const terminated: Promise<unknown>[] = [];
  const { postMessage } = Worker.prototype;
  let packer: Worker | null = null;
  const post = vi.spyOn(Worker.prototype, 'postMessage').mockImplementation(function (this: Worker, order) {
    packer = this;
    postMessage.call(this, order);
  });
  let reads = 0;
  source.read = async (offsetBytes, target) => {
    reads += 1;
    if (packer !== null && reads > 6) {
      // Whoever waits has been told by then; this read has not ended.
      terminated.push(packer.terminate());
      await terminated.at(-1);
    }
    return await read(offsetBytes, target);
  };
  try {
    await expect(repository.createBackup({ source, array: 'demo' })).rejects.toThrow(
      'has ended; nothing is lost',
    );
    expect(terminated.length).toBeGreaterThan(0);
  } finally {
    post.mockRestore();
  }
});

/** Takes its time, and reads what it is given only when that is over, as a disk and a network do. */
class LateStore extends MemoryStore {
  readonly underWay = new Set<string>();
  /** What was written over while it was under way. */
  readonly changed: string[] = [];
  /** What was under way when something that refers to packs was begun. */
  readonly early: string[] = [];

  override async put(name: string, bytes: Uint8Array): Promise<boolean> {
    if (!isData(name)) this.early.push(...[...this.underWay].map((each) => `${name} before ${each}`));
    const given = bytes.slice();
    this.underWay.add(name);
    for (let turn = 0; turn < 2000; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    this.underWay.delete(name);
    if (Buffer.compare(bytes, given) !== 0) this.changed.push(name);
    return await super.put(name, bytes);
  }
}

function isData(name: string): boolean {
  return name.startsWith('packs/') || name.startsWith('parity/');
}

test.each([0, 1, 2])(
  'nothing is listed before what it needs is durable, and nothing is written over that is under way (%i threads)',
  async (threads) => {
    const store = new LateStore();
    const repository = await newRepository(store, { ...shape, threads, redundancy: 2 });
    const image = imageOf(seededRandom(4), 3_000_000);
    const backup = (await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!;
    expect([...store.files.keys()].filter(isData).length).toBeGreaterThan(10);
    expect([store.changed, store.early]).toEqual([[], []]);
    expectSame(await restored(repository, backup), image, 'what was backed up');
  },
);

test('one that dies is an error; what was listed stays whole, nothing waits for ever, and the next backup goes on', async () => {
  const store = new MemoryStore();
  const first = imageOf(seededRandom(1), 1_000_000);
  const second = imageOf(seededRandom(2), 2_000_000);
  await newRepository(store, { ...shape, redundancy: 1 });
  const repository = await Repository.open(store, { threads: 2 });
  const kept = (await repository.createBackup({ source: deviceOf(first), array: 'demo' }))!;
  const { postMessage } = Worker.prototype;
  let orders = 0;
  const post = vi.spyOn(Worker.prototype, 'postMessage').mockImplementation(function (this: Worker, order) {
    orders += 1;
    if (orders === 12) void this.terminate();
    postMessage.call(this, order);
  });
  try {
    await expect(repository.createBackup({ source: deviceOf(second), array: 'demo' })).rejects.toThrow(
      'a thread that packs chunks has ended; nothing is lost',
    );
  } finally {
    post.mockRestore();
  }
  expect((await repository.list()).map(({ id }) => id)).toEqual([kept.id]);
  expectSame(await restored(repository, kept), first, 'what was listed');
  const next = (await repository.createBackup({ source: deviceOf(second), array: 'demo' }))!;
  expectSame(await restored(repository, next), second, 'the next');
  expect(await repository.verify({ readPercent: 100 })).toMatchObject({ damaged: [], lost: [] });
});
