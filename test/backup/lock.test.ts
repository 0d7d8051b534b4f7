/** One writer at a time, and never none because of one that is gone. */
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { DirectoryStore } from '../../lib/backup/directory.ts';
import {
  HEARTBEAT_MS,
  type Holder,
  judgeHolder,
  Lock,
  processWitness,
  STALE_MS,
  type Witness,
} from '../../lib/backup/lock.ts';
import { Repository } from '../../lib/backup/repository.ts';
import type { Range, Store, StoredFile } from '../../lib/backup/store.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import {
  deviceOf,
  everyHurt,
  expectSame,
  imageOf,
  MemoryStore,
  newRepository,
  restored,
  TestHost,
} from './world.ts';

const here: Holder = { host: 'here', pid: 7, startTime: '100', bootId: 'b', pidNamespace: 'n' };

/** A process of its own: `alive` says which others are. */
function witness(
  self: Partial<Holder>,
  alive: (holder: Holder) => boolean | 'unknown' = () => true,
): Witness {
  return { self: () => Promise.resolve({ ...here, ...self }), isAlive: async (holder) => alive(holder) };
}

async function codeOf(work: Promise<unknown>): Promise<string | null> {
  return await work.then(
    () => null,
    (error: unknown) => (error instanceof RaidError ? error.code : String(error)),
  );
}

test('the verdict on a holder is the table in lock.ts, in every combination', () => {
  const table: readonly (readonly [Partial<Holder>, Partial<Holder>, string | null, boolean | 'unknown'])[] =
    [
      [{}, {}, '100', true],
      [{ host: 'other' }, {}, '100', true],
      [{}, {}, '101', false],
      [{}, {}, null, false],
      [{ startTime: null }, {}, '101', true],
      [{ pidNamespace: 'm' }, {}, null, 'unknown'],
      [{ pidNamespace: 'm' }, {}, '100', 'unknown'],
      [{ bootId: 'a' }, {}, '100', false],
      [{ bootId: 'a', host: 'other' }, {}, '100', 'unknown'],
      [{ bootId: null }, {}, 'some', true],
      [{}, { bootId: null }, 'some', true],
      [{ bootId: null }, {}, null, false],
      [{ bootId: null, host: 'other' }, {}, 'some', 'unknown'],
      [{ bootId: null, host: 'other' }, {}, null, 'unknown'],
    ];
  for (const [holder, self, started, wanted] of table) {
    const found = judgeHolder({ ...here, ...holder }, { ...here, ...self }, started);
    expect(found, JSON.stringify({ holder, self, started })).toBe(wanted);
  }
});

test('this process is alive, and one that is gone is not', async () => {
  const self = await processWitness.self();
  expect(await processWitness.isAlive(self)).toBe(true);
  expect(await processWitness.isAlive({ ...self, pid: 2 ** 22 + 1 })).toBe(false);
  if (self.startTime !== null) expect(await processWitness.isAlive({ ...self, startTime: '1' })).toBe(false);
});

const scratch = await mkdtemp(join(tmpdir(), 'raidsim-lock-'));
afterAll(() => rm(scratch, { recursive: true, force: true }));

function lockFile(number: number): string {
  return `locks/${String(number).padStart(12, '0')}`;
}

describe('a lock', () => {
  const host = new TestHost(1);

  test('is held by one, and free when that releases it', async () => {
    const store = new MemoryStore();
    const lock = await Lock.take(store, host, witness({ pid: 1 }));
    expect(await codeOf(Lock.take(store, host, witness({ pid: 2 })))).toBe('BUSY');
    expect(await codeOf(Lock.take(store, host, witness({ pid: 1 })))).toBe('BUSY');
    await lock.release();
    const next = await Lock.take(store, host, witness({ pid: 2 }));
    await next.check();
    expect(await codeOf(lock.check())).toBe('BUSY');
    // Releasing what one has not got takes nothing from who has it.
    await lock.release();
    await next.check();
  });

  test('of a process that is gone is taken over, and that one notices if it was not', async () => {
    const store = new MemoryStore();
    const lock = await Lock.take(store, host, witness({ pid: 1 }));
    const next = await Lock.take(
      store,
      host,
      witness({ pid: 2 }, ({ pid }) => pid !== 1),
    );
    await next.check();
    expect(await codeOf(lock.check())).toBe('BUSY');
  });

  test('of another machine is taken over when nothing was heard of it for half an hour, and not before', async () => {
    const store = new MemoryStore();
    const clock = new TestHost(2);
    const lock = await Lock.take(store, clock, witness({ host: 'far', pid: 1 }));
    const other = witness({ pid: 2 }, () => 'unknown');
    clock.ms += STALE_MS - 1000;
    expect(await codeOf(Lock.take(store, clock, other))).toBe('BUSY');
    await lock.touch();
    clock.ms += STALE_MS - 1000;
    expect(await codeOf(Lock.take(store, clock, other))).toBe('BUSY');
    clock.ms += 2000;
    await (await Lock.take(store, clock, other)).check();
    expect(await codeOf(lock.touch())).toBe('BUSY');
  });

  test('is not held by what nobody can read', async () => {
    const store = new MemoryStore();
    for (const text of ['', '{', '{}', 'null', '{"holder":7,"nonce":"x","heardMs":1}']) {
      store.files.set('locks/000000000005', Buffer.from(text));
      const lock = await Lock.take(store, host, witness({ pid: 1 }));
      await lock.release();
      store.files.clear();
    }
  });

  test('whose file is hurt in any way is still had by one: the holder, or who comes, when that has waited', async () => {
    const alive = ({ pid, startTime, bootId }: Holder): boolean =>
      pid === 1 && startTime === here.startTime && bootId === here.bootId;
    const stands = { taken: 0, kept: 0 };
    for (const isReleased of [false, true]) {
      const made = new MemoryStore();
      const maker = await Lock.take(made, new TestHost(1), witness({ pid: 1 }));
      if (isReleased) await maker.release();
      const [path] = [...made.files.keys()];
      for (const [hurt, bytes] of everyHurt(made.files.get(path!)!)) {
        const store = new MemoryStore();
        const clock = new TestHost(1);
        const lock = await Lock.take(store, clock, witness({ pid: 1 }));
        if (isReleased) await lock.release();
        store.files.set(path!, bytes);
        if (!isReleased) await lock.check();
        const before = clock.ms;
        const next = await Lock.take(store, clock, witness({ pid: 2 }, alive)).catch((error: unknown) => {
          expect(error, hurt).toMatchObject({ code: 'BUSY' });
          return null;
        });
        if (isReleased) expect(next, hurt).not.toBeNull();
        if (next === null) {
          stands.kept += 1;
          await lock.check();
          continue;
        }
        stands.taken += 1;
        await next.check();
        if (isReleased) continue;
        // The holder has looked meanwhile, before what it does next.
        expect(clock.ms - before, hurt).toBeGreaterThan(HEARTBEAT_MS);
        expect(await codeOf(lock.touch()), hurt).toBe('BUSY');
      }
    }
    expect(Math.min(stands.taken, stands.kept)).toBeGreaterThan(0);
  });

  test('of another boot, or not heard of for long, is had when its holder has had the time to look', async () => {
    for (const [far, verdict, silentMs] of [
      [{ bootId: 'a' }, false, 0],
      [{ host: 'far', bootId: 'a' }, 'unknown', STALE_MS + 1],
    ] as const) {
      const store = new MemoryStore();
      const clock = new TestHost(1);
      const lock = await Lock.take(store, clock, witness({ ...far, pid: 1 }));
      clock.ms += silentMs;
      const before = clock.ms;
      await (
        await Lock.take(
          store,
          clock,
          witness({ pid: 2 }, () => verdict),
        )
      ).check();
      expect(clock.ms - before).toBeGreaterThan(HEARTBEAT_MS);
      expect(await codeOf(lock.touch())).toBe('BUSY');
    }
  });

  test('is not held by files without a byte, which are in no list and whose names are taken', async () => {
    for (const links of ['try', 'never'] as const) {
      const store = new DirectoryStore(join(scratch, links), { links });
      const gone = witness({ pid: 2 }, ({ pid }) => pid !== 99);
      await Lock.take(store, host, witness({ pid: 99 }));
      for (let number = 2; number < 9; number += 1) await writeFile(join(store.name, lockFile(number)), '');
      const lock = await Lock.take(store, host, gone);
      expect(await codeOf(Lock.take(store, host, gone))).toBe('BUSY');
      await lock.release();
      expect((await readdir(join(store.name, 'locks'))).map(Number)).toEqual([10]);
    }
  });

  test('is never held by two, however their steps are mixed', () =>
    withSeed(runSeed, async (random) => {
      for (let round = 0; round < 150; round += 1) {
        const store = new MemoryStore();
        // Some lock is there already, and everybody but the taker seems to be gone: the hardest case.
        if (random(2) === 0) await Lock.take(store, host, witness({ pid: 99 }));
        const hasLinks = random(2) === 0;
        const slow = new SlowStore(store, random, hasLinks);
        // Who waits for less than others are slow takes them for dead: then nobody may have the lock, and never two.
        const isPatient = random(2) === 0;
        const waiting = new (class extends TestHost {
          override sleep(): Promise<void> {
            return turns(isPatient ? 2 * TURNS_MOST : 0);
          }
        })(round);
        // Its writer is no more.
        if (random(2) === 0) slow.empty.add(lockFile(store.files.size + 1));
        let holders = 0;
        let most = 0;
        const work = async (pid: number): Promise<void> => {
          const alive = (holder: Holder): boolean => holder.pid !== 99;
          const lock = await Lock.take(slow, waiting, witness({ pid }, alive)).catch((error: unknown) => {
            expect(error).toMatchObject({ code: 'BUSY' });
            return null;
          });
          if (lock === null) return;
          holders += 1;
          most = Math.max(most, holders);
          try {
            for (let turn = random(4); turn > 0; turn -= 1) await lock.check();
          } catch (error) {
            if (hasLinks || isPatient) throw error;
            expect(error).toMatchObject({ code: 'BUSY' });
          }
          holders -= 1;
          await lock.release();
          if (pid < 10) await work(pid + 10);
        };
        await Promise.all([1, 2, 3, 4].map(work));
        expect(most).toBeLessThanOrEqual(1);
        if (hasLinks || isPatient) expect(most).toBe(1);
      }
    }));
});

/** Any operation may be overtaken by others before it happens; without links also where a file has a name, and no byte. */
class SlowStore implements Store {
  readonly name = 'slow';
  readonly empty = new Set<string>();
  readonly #below: MemoryStore;
  readonly #random: (below: number) => number;
  readonly #hasLinks: boolean;

  constructor(below: MemoryStore, random: (below: number) => number, hasLinks: boolean) {
    this.#below = below;
    this.#random = random;
    this.#hasLinks = hasLinks;
  }

  async get(name: string, range?: Range): Promise<Uint8Array | null> {
    await this.#pause();
    return await this.#below.get(name, range);
  }

  async put(name: string, bytes: Uint8Array): Promise<boolean> {
    await this.#pause();
    if (this.empty.has(name)) return false;
    if (this.#hasLinks || this.#below.files.has(name)) return await this.#below.put(name, bytes);
    this.empty.add(name);
    await this.#pause();
    this.empty.delete(name);
    await this.#below.replace(name, bytes);
    return true;
  }

  async replace(name: string, bytes: Uint8Array): Promise<void> {
    await this.#pause();
    await this.#below.replace(name, bytes);
  }

  async list(prefix: string): Promise<readonly StoredFile[]> {
    await this.#pause();
    return await this.#below.list(prefix);
  }

  async delete(name: string): Promise<void> {
    await this.#pause();
    this.empty.delete(name);
    await this.#below.delete(name);
  }

  async #pause(): Promise<void> {
    // Now and then for as long as others take to take the lock, release it, and take it again.
    await turns(this.#random(6) === 0 ? this.#random(TURNS_MOST) : this.#random(4));
  }
}

const TURNS_MOST = 150;

async function turns(count: number): Promise<void> {
  for (let turn = count; turn > 0; turn -= 1) await new Promise((resolve) => setImmediate(resolve));
}

test('of two writers at once one is refused, and loses nothing', async () => {
  const store = new MemoryStore();
  await newRepository(store);
  const random = seededRandom(4);
  const images = [imageOf(random, 9000).fill(1, 0, 100), imageOf(random, 9000)];
  const [one, other] = [await Repository.open(store), await Repository.open(store)];
  const late = { source: deviceOf(images[1]!), array: '1' };
  const source = new Sleepy(images[0]!, async () => {
    await expect(other.createBackup(late)).rejects.toMatchObject({ code: 'BUSY' });
  });
  await one.createBackup({ source, array: '0' });
  await other.createBackup(late);
  const repository = await Repository.open(store);
  expect(await repository.list()).toHaveLength(2);
  for (const backup of await repository.list())
    expectSame(await restored(repository, backup), images[Number(backup.array)]!, backup.array);
});

test('who lost the lock while it slept makes no backup appear', async () => {
  const store = new MemoryStore();
  const clock = new TestHost(3);
  const sleeper = await newRepository(store, { host: clock, witness: witness({ host: 'far', pid: 1 }) });
  const other = await Repository.open(store, { host: clock, witness: witness({ pid: 2 }, () => 'unknown') });
  const image = imageOf(seededRandom(5), 20_000).fill(1, 0, 100);
  const asleep = sleeper.createBackup({
    source: new Sleepy(image, async () => {
      clock.ms += 2 * STALE_MS;
      await other.prune();
    }),
    array: 'late',
  });
  await expect(asleep).rejects.toMatchObject({ code: 'BUSY' });
  expect(await other.list()).toEqual([]);
  expect(await other.createBackup({ source: deviceOf(image), array: 'next' })).not.toBeNull();
});

/** Something happens while it is read for the first time. */
class Sleepy extends MemoryDevice {
  #sleep: (() => Promise<void>) | null;

  constructor(bytes: Uint8Array, sleep: () => Promise<void>) {
    super({ sizeBytes: bytes.byteLength });
    new Uint8Array(this.memory).set(bytes);
    this.#sleep = sleep;
  }

  protected override async doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const sleep = this.#sleep;
    this.#sleep = null;
    await sleep?.();
    await super.doRead(offsetBytes, targets);
  }
}

test('who reads while a backup is made misses nothing, whichever list is late', async () => {
  for (const redundancy of [0, 2] as const) {
    for (const late of ['index/', 'parity/']) {
      const store = new MemoryStore();
      await newRepository(store, { redundancy });
      const writer = await Repository.open(store);
      const slow = new MemoryStore();
      Object.assign(slow, { files: store.files });
      let wrote: Promise<unknown> | null = null;
      slow.list = async (prefix) => {
        const found = await store.list(prefix);
        if (prefix === 'packs/')
          wrote ??= writer.createBackup({ source: deviceOf(imageOf(seededRandom(8), 9000)), array: 'new' });
        if (prefix !== late) return found;
        await wrote;
        return await store.list(prefix);
      };
      const report = await (await Repository.open(slow)).verify();
      expect(report, `${late} ${redundancy}`).toMatchObject({ damaged: [], lost: [] });
      expect((await wrote)!).not.toBeNull();
    }
  }
});

test('a repository that somebody was making when it was ended, without a byte, is named with what to do', async () => {
  const store = new DirectoryStore(join(scratch, 'begun'), { links: 'never' });
  await mkdir(store.name);
  await writeFile(join(store.name, 'settings.0'), '');
  await expect(Repository.create(store)).rejects.toThrow(
    /settings\.0 in .* is an empty file.*delete the file/,
  );
  await rm(join(store.name, 'settings.0'));
  expect(await (await Repository.create(store)).list()).toEqual([]);
});
