/** Prune takes what nobody needs, and leaves everything else as safe as it was. */
import { describe, expect, test } from 'vitest';
import { Catalog } from '../../lib/backup/catalog.ts';
import { type Holder, STALE_MS, type Witness } from '../../lib/backup/lock.ts';
import { type PackTable, packPath } from '../../lib/backup/pack.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { loadSum } from '../../lib/backup/seal.ts';
import { hexOf } from '../../lib/backup/settings.ts';
import { RaidError } from '../../lib/errors.ts';
import { realHost, seededRandom } from '../../lib/host.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import {
  contentOf,
  deviceOf,
  everyHurt,
  expectSame,
  imageOf,
  MemoryStore,
  MortalStore,
  newRepository,
  restored,
  smallShape,
  TestHost,
} from './world.ts';

const sizeOf = (store: MemoryStore, folder: string): number =>
  [...store.files].reduce((sum, [name, bytes]) => sum + (name.startsWith(folder) ? bytes.byteLength : 0), 0);

/** What the tables at the ends of packs say, by the paths of these. */
async function chunksByPack(store: MemoryStore): Promise<ReadonlyMap<string, ReadonlySet<string>>> {
  const { settings } = await Repository.open(store);
  const site = {
    store,
    settings,
    key: null,
    sum: await loadSum(),
    host: realHost,
    threads: { count: 0, from: 'always' },
  } as const;
  const packs = (await Catalog.load(site)).packs.filter(({ state }) => state === 'there');
  const idsOf = (table: PackTable): string[] =>
    Array.from({ length: table.count }, (_, entry) => hexOf(table.id(entry)));
  return new Map(packs.map(({ name, table }) => [packPath(name), new Set(idsOf(table!))]));
}

describe.each([0, 1, 2] as const)('redundancy %i', (redundancy) => {
  test('random histories: what stays is whole and protected, also when files of it are lost then', () =>
    withSeed(runSeed, async (random) => {
      for (let round = 0; round < 3; round += 1) {
        const store = new MemoryStore();
        const repository = await newRepository(store, { redundancy });
        const images = new Map<string, Uint8Array>();
        let image = imageOf(random, 12_000);
        for (let turn = 0; turn < 5; turn += 1) {
          const backup = await repository.createBackup({ source: deviceOf(image), array: 'demo' });
          images.set(backup!.id, image);
          image = image.slice();
          image.set(imageOf(random, 4000), random(8000));
        }
        const keep = { last: 1 + random(3) };
        const would = await repository.prune({ keep, dryRun: true });
        expect(await repository.list()).toHaveLength(5);
        const report = await repository.prune({ keep });
        expect(report.removed).toEqual(would.removed);
        expect(report.kept.map(({ id }) => id)).toEqual([...images.keys()].slice(5 - keep.last));
        expect(await repository.verify({ readPercent: 100 })).toMatchObject({
          backups: keep.last,
          damaged: [],
          lost: [],
          unprotected: [],
        });
        for (let lost = 0; lost < redundancy; lost += 1) {
          const packs = [...store.files.keys()].filter((name) => name.startsWith('packs/'));
          store.files.delete(packs[random(packs.length)]!);
        }
        const again = await Repository.open(store);
        for (const backup of await again.list())
          expectSame(await restored(again, backup), images.get(backup.id)!, `${backup.number} of 5`);
      }
    }));

  test('gives back the space: as much is left as a new repository of the same backup takes, and a quarter', () =>
    withSeed(runSeed, async (random) => {
      const store = new MemoryStore();
      const repository = await newRepository(store, { redundancy });
      for (let turn = 0; turn < 4; turn += 1)
        await repository.createBackup({ source: deviceOf(imageOf(random, 20_000)), array: 'demo' });
      const image = imageOf(random, 20_000);
      await repository.createBackup({ source: deviceOf(image), array: 'demo' });
      await repository.prune({ keep: { last: 1 } });
      const fresh = new MemoryStore();
      await (await newRepository(fresh, { redundancy })).createBackup({
        source: deviceOf(image),
        array: 'demo',
      });
      // 48 bytes of each pack are neither chunks nor table.
      const packs = [...store.files.keys()].filter((name) => name.startsWith('packs/')).length;
      expect(sizeOf(store, 'packs/')).toBeLessThan(sizeOf(fresh, 'packs/') / 0.75 + 48 * packs);
      expect([...store.files.keys()].filter((name) => name.startsWith('index/'))).toHaveLength(1);
      // Once more finds nothing to do.
      const before = new Map(store.files);
      expect(await repository.prune()).toMatchObject({ removed: [], packsDeleted: 0, packsRewritten: 0 });
      for (const [name, bytes] of before) {
        if (!name.startsWith('locks/')) expectSame(store.files.get(name)!, bytes, name);
      }
    }));
});

test('a backup whose map cannot be read stops it before anything goes, unless that backup goes', async () => {
  await withSeed(runSeed, async (random) => {
    const store = new MemoryStore();
    const repository = await newRepository(store);
    for (const array of ['one', 'two'])
      await repository.createBackup({ source: deviceOf(imageOf(random, 8000)), array });
    const [one] = await repository.list();
    const record = `backups/${one!.id}.0`;
    store.files.set(record, new Uint8Array(100));
    const before = new Map(store.files);
    await expect(repository.prune({ keep: { last: 1 } })).rejects.toMatchObject({ code: 'BAD_REPOSITORY' });
    for (const [name, bytes] of before) {
      if (!name.startsWith('locks/')) expectSame(store.files.get(name)!, bytes, name);
    }
    await repository.prune({ remove: [one!.id] });
    expect(store.files.has(record)).toBe(false);
    expect(await repository.verify({ readPercent: 100 })).toMatchObject({
      backups: 1,
      damaged: [],
      lost: [],
    });
  });
});

test('at each file that it takes away, what stays can lose a file, and is known without asking packs', async () => {
  for (let seed = 1; seed <= 4; seed += 1) {
    const random = seededRandom(seed);
    const store = new MemoryStore();
    const repository = await newRepository(store, { redundancy: 1 });
    let image = imageOf(random, 9000);
    for (let turn = 0; turn < 3; turn += 1) {
      // Some of it stays in packs of which the rest is not needed.
      image = image.slice();
      image.set(randomBytes(random, 4000), random(4000));
      await repository.createBackup({ source: deviceOf(image), array: 'demo' });
    }
    const before = new Set(store.files.keys());
    const { id } = (await repository.list()).at(-1)!;
    const stops: ReadonlyMap<string, Uint8Array>[] = [];
    const deleting = store.delete.bind(store);
    store.delete = async (name) => {
      await deleting(name);
      if (/^(index|parity|packs)/.test(name)) stops.push(new Map(store.files));
    };
    await repository.prune({ keep: { last: 1 } });
    expect(stops.length, `seed ${seed}`).toBeGreaterThan(0);
    for (const [stop, files] of stops.entries()) {
      const what = `seed ${seed}, stopped after deletion ${stop + 1}`;
      const watched = new MemoryStore(files);
      const then = await Repository.open(watched);
      const asked: string[] = [];
      const getting = watched.get.bind(watched);
      watched.get = (name, range) => {
        asked.push(name);
        return getting(name, range);
      };
      await then.openBackup(id);
      const isKnown = (name: string): boolean => before.has(name) && store.files.has(name);
      expect(
        asked.filter((name) => name.startsWith('packs/') && isKnown(name)),
        what,
      ).toEqual([]);
      expect(await then.verify(), what).toMatchObject({ damaged: [], lost: [] });
      for (const name of files.keys()) {
        if (!name.startsWith('packs/')) continue;
        const less = new MemoryStore(files);
        await less.delete(name);
        const backup = await (await Repository.open(less)).find(id);
        expectSame(
          await restored(await Repository.open(less), backup),
          image,
          `${what}, then ${name} is lost`,
        );
      }
    }
  }
});

test('cut off anywhere, it leaves chunks in two packs, and then one of these may rot', async () => {
  for (let seed = 1; seed <= 2; seed += 1) {
    const random = seededRandom(seed);
    const before = new MemoryStore();
    const host = new TestHost(seed);
    const repository = await newRepository(before, { host });
    const first = imageOf(random, 16_000);
    const second = Uint8Array.from(first);
    for (let at = 0; at < second.byteLength; at += 2 * smallShape.chunkBytes)
      second.set(randomBytes(random, smallShape.chunkBytes), at);
    await repository.createBackup({ source: deviceOf(first), array: 'demo' });
    await repository.createBackup({ source: deviceOf(second), array: 'demo' });
    let doubled = 0;
    for (let diesAt = 1; ; diesAt += 1) {
      const cut = new MemoryStore(before.files);
      const mortal = new MortalStore(cut, diesAt);
      const isDone = await Repository.open(mortal, { host })
        .then((opened) => opened.prune({ keep: { last: 1 } }))
        .then(
          () => true,
          () => false,
        );
      const packs = [...cut.files.keys()].filter((name) => name.startsWith('packs/'));
      const holds = await chunksByPack(cut);
      for (const rotten of packs) {
        const others = new Set([...holds].flatMap(([name, ids]) => (name === rotten ? [] : [...ids])));
        // What only this one has is lost, and that is not what this is about.
        if (![...holds.get(rotten)!].every((id) => others.has(id))) continue;
        doubled += 1;
        const store = new MemoryStore(cut.files);
        const bytes = store.files.get(rotten)!;
        store.files.set(rotten, new Uint8Array(bytes.byteLength));
        const again = await Repository.open(store);
        const [latest] = (await again.list()).slice(-1);
        const what = `seed ${seed}, cut at ${diesAt}, ${rotten}`;
        expectSame(await restored(again, latest!), second, what);
        expect((await again.verify({ readPercent: 100 }))?.lost, what).toEqual([]);
        await again.prune();
        expectSame(await restored(again, latest!), second, `${what}, pruned`);
      }
      if (isDone) break;
    }
    expect(doubled).toBeGreaterThan(0);
  }
});

test('where a sum in the only list of a group is rotten, what stays of the group is protected anew', async () => {
  const good = new MemoryStore();
  const repository = await newRepository(good, { redundancy: 1 });
  const images = [1, 2].map((seed) => randomBytes(seededRandom(seed), 2000));
  for (const image of images) await repository.createBackup({ source: deviceOf(image), array: 'demo' });
  const [path, ...others] = [...good.files.keys()].filter((name) => name.startsWith('parity/'));
  expect(others).toEqual([]);
  const [oldest, newest] = await repository.list();
  const sums = [
    ...Buffer.from(good.files.get(path!)!)
      .toString('latin1')
      .matchAll(/"sum":"([0-9a-f]{16})"/dg),
  ];
  expect(sums).toHaveLength(2);
  for (const start of sums.map((match) => match.indices![1]![0])) {
    for (let at = start; at < start + 16; at += 1) {
      const store = new MemoryStore(good.files);
      store.files.set(
        path!,
        good.files.get(path!)!.map((byte, index) => (index === at ? byte ^ 1 : byte)),
      );
      const hurt = await Repository.open(store);
      await hurt.prune({ remove: [oldest!.id] });
      expect(await hurt.verify({ readPercent: 100 }), `byte ${at}`).toMatchObject({
        packs: 1,
        damaged: [],
        lost: [],
        unprotected: [],
      });
      expectSame(await restored(hurt, newest!), images[1]!, `byte ${at}`);
    }
  }
});

/**
 * What a prune leaves that was killed holds packs that are in two groups. One of these may be rotten, or have a pack that is, which nobody
 * has noticed; the other is then what a pack comes back from.
 */
test('takes no parity away for the sake of parity that is rotten, or has lost a pack already', async () => {
  let judged = 0;
  for (const seed of [1, 2]) {
    const random = seededRandom(seed);
    const host = new TestHost(seed);
    const made = new MemoryStore();
    const maker = await newRepository(made, { redundancy: 1, host });
    const images = [1, 2, 3].map(() => randomBytes(random, 2500));
    for (const image of images) await maker.createBackup({ source: deviceOf(image), array: 'demo' });
    const { id } = (await maker.list()).at(-1)!;
    const remove = (await maker.list()).slice(0, 1).map((backup) => backup.id);
    const image = images.at(-1)!;
    const canLose = async (store: MemoryStore, lost: string): Promise<boolean> => {
      const less = new MemoryStore(store.files);
      await less.delete(lost);
      const target = deviceOf(new Uint8Array(image.byteLength));
      return await (await Repository.open(less)).restore(id, target).then(
        async () => Buffer.compare(await contentOf(target), image) === 0,
        () => false,
      );
    };
    const namesIn = (store: MemoryStore, folder: string): readonly string[] =>
      [...store.files.keys()].filter((name) => name.startsWith(folder));
    let last = '';
    for (let diesAt = 1; ; diesAt += 1) {
      const cut = new MemoryStore(made.files);
      const mortal = new MortalStore(cut, diesAt);
      const isDone = await Repository.open(mortal, { host })
        .then((killed) => killed.prune({ remove }))
        .then(
          () => true,
          () => false,
        );
      const files = [...namesIn(cut, 'parity/'), ...namesIn(cut, 'packs/')];
      const now = files.join(' ');
      if (now !== last && namesIn(cut, 'parity/').length > 1) {
        for (const hurt of files) {
          const store = new MemoryStore(cut.files);
          const rotten = cut.files.get(hurt)!.slice();
          rotten[rotten.byteLength - 20]! ^= 1;
          store.files.set(hurt, rotten);
          const before = new Map<string, boolean>();
          for (const pack of namesIn(store, 'packs/')) before.set(pack, await canLose(store, pack));
          await (await Repository.open(store)).prune();
          const could = [...before.values()].every((can) => can);
          for (const pack of namesIn(store, 'packs/')) {
            if (!(before.get(pack) ?? could)) continue;
            judged += 1;
            expect(
              await canLose(store, pack),
              `seed ${seed}, killed at ${diesAt}, ${hurt} rotten, ${pack} lost`,
            ).toBe(true);
          }
        }
      }
      last = now;
      if (isDone) break;
    }
  }
  expect(judged).toBeGreaterThan(50);
});

describe('what is read for long', () => {
  const images = [1, 2].map((seed) => imageOf(seededRandom(seed), 12_000));
  const witness = (pid: number, isAlive: (holder: Holder) => boolean | 'unknown'): Witness => ({
    self: () => Promise.resolve({ host: 'far', pid, startTime: '1', bootId: 'b', pidNamespace: 'n' }),
    isAlive: (holder) => Promise.resolve(isAlive(holder)),
  });

  async function twoBackups(
    store: MemoryStore,
    redundancy: 0 | 1 | 2 = 0,
    sizeBytes = 12_000,
  ): Promise<string> {
    const repository = await newRepository(store, { redundancy });
    for (const image of images.map((whole) => whole.subarray(0, sizeBytes)))
      await repository.createBackup({ source: deviceOf(image), array: 'demo' });
    return (await repository.list())[0]!.id;
  }

  test('stays, with the reason, until it is closed; and is not let go of by name', async () => {
    const store = new MemoryStore();
    const id = await twoBackups(store);
    const repository = await Repository.open(store, { witness: witness(7, () => true) });
    const device = await repository.openBackup(id, { hold: true });
    const { kept, removed } = await repository.prune({ keep: { last: 1 } });
    expect(removed).toEqual([]);
    expect(kept.map(({ because }) => because)).toEqual([['read by process 7 on "far"'], ['last']]);
    await expect(repository.prune({ remove: [id] })).rejects.toMatchObject({
      code: 'BUSY',
      message: expect.stringContaining(`backup ${id} in memory is read by process 7 on "far"`),
    });
    expectSame(await contentOf(device), images[0]!, 'what is mounted');
    await device.close();
    expect((await repository.prune({ keep: { last: 1 } })).removed).toMatchObject([{ id }]);
    expect([...store.files.keys()].filter((name) => name.startsWith('mounts/'))).toEqual([]);
  });

  test('goes however little room there is for marks, and where there is none nothing goes', async () => {
    for (let room = 0; room <= 4; room += 1) {
      // Who comes between two rounds keeps what is left.
      for (const comes of [false, true]) {
        const store = new MemoryStore();
        const repository = await newRepository(store);
        for (let turn = 0; turn < 4; turn += 1)
          await repository.createBackup({ source: deviceOf(images[turn % 2]!), array: 'demo' });
        const ids = (await repository.list()).map(({ id }) => id);
        const reader = await Repository.open(store, { witness: witness(7, () => true) });
        const count = (prefix: string): number =>
          [...store.files.keys()].filter((name) => name.startsWith(prefix)).length;
        const [replace, remove] = [store.replace.bind(store), store.delete.bind(store)];
        store.replace = async (name, bytes) => {
          if (name.startsWith('going/') && count('going/') >= room)
            throw new RaidError('NO_SPACE', 'memory is full');
          await replace(name, bytes);
        };
        let isHeld = false;
        store.delete = async (name) => {
          if (comes && room < 3 && !isHeld && name.startsWith('backups/')) {
            isHeld = true;
            await reader.openBackup(ids[2]!, { hold: true });
          }
          await remove(name);
        };
        const pruned = repository.prune({ keep: { last: 1 } });
        const what = `room for ${room}, ${comes}`;
        if (room === 0) {
          await expect(pruned, what).rejects.toMatchObject({ code: 'NO_SPACE' });
          expect(count('backups/'), what).toBe(4);
        } else {
          const { removed, kept } = await pruned;
          const gone = isHeld ? ids.slice(0, 2) : ids.slice(0, 3);
          expect(isHeld, what).toBe(comes && room < 3);
          expect(removed.map(({ id }) => id).sort(), what).toEqual(gone.toSorted());
          expect(
            kept.map(({ id }) => id),
            what,
          ).toEqual(ids.slice(gone.length));
        }
        expect(count('going/'), what).toBe(0);
        const { backups, damaged, lost } = (await repository.verify({ readPercent: 100 }))!;
        expect([backups, damaged, lost], what).toEqual([count('backups/'), [], []]);
      }
    }
  });

  test('stays while it is restored, and is restored where nothing can be written', async () => {
    const store = new MemoryStore();
    const id = await twoBackups(store);
    const repository = await Repository.open(store);
    const target = deviceOf(new Uint8Array(images[0]!.byteLength));
    const write = target.write.bind(target);
    let pruned: readonly unknown[] | null = null;
    target.write = async (...given) => {
      if (pruned === null) {
        pruned = [];
        pruned = (await repository.prune({ keep: { last: 1 } })).removed;
      }
      await write(...given);
    };
    await repository.restore(id, target);
    expect(pruned).toEqual([]);
    expectSame(await contentOf(target), images[0]!, 'what is restored');
    store.put = () => Promise.reject(new RaidError('READ_ONLY', 'memory is full of holes'));
    const told: string[] = [];
    await repository.restore(id, target, { unheld: ({ code }) => void told.push(code) });
    expect(told).toEqual(['READ_ONLY']);
    await expect(repository.openBackup(id, { hold: true })).rejects.toMatchObject({ code: 'READ_ONLY' });
    Reflect.deleteProperty(store, 'put');
    expect([...store.files.keys()].filter((name) => name.startsWith('mounts/'))).toEqual([]);
    expect((await repository.prune({ keep: { last: 1 } })).removed).toMatchObject([{ id }]);
  });

  test('goes where whoever had it is gone, or was not heard of for half an hour', async () => {
    for (const [verdict, silentMs, wanted] of [
      [false, 0, 1],
      ['unknown', STALE_MS - 1000, 0],
      ['unknown', STALE_MS + 1000, 1],
    ] as const) {
      const store = new MemoryStore();
      const id = await twoBackups(store);
      const clock = new TestHost(1);
      clock.sleep = () => new Promise(() => undefined);
      const reader = await Repository.open(store, { host: clock, witness: witness(7, () => verdict) });
      await reader.openBackup(id, { hold: true });
      clock.ms += silentMs;
      const other = await Repository.open(store, { host: clock, witness: witness(8, () => verdict) });
      const { removed } = await other.prune({ keep: { last: 1 } });
      expect(removed, String([verdict, silentMs])).toHaveLength(wanted);
      const left = [...store.files.keys()].filter((name) => name.startsWith('mounts/'));
      expect(left).toHaveLength(1 - wanted);
    }
  });

  test('is let go of where a store takes its time, and whoever prunes is heard of all the while', async () => {
    const many = 40;
    for (const redundancy of [0, 2] as const) {
      const made = new MemoryStore();
      const maker = await newRepository(made, { redundancy });
      for (let turn = 0; turn < many; turn += 1)
        await maker.createBackup({ source: deviceOf(images[turn & 1]!.subarray(0, 2000)), array: 'demo' });
      const clock = new TestHost(1);
      const store = new MemoryStore(made.files);
      let calls = 0;
      let silentMs = 0;
      const slowly = async <T>(ms: number, operation: () => Promise<T>): Promise<T> => {
        calls += 1;
        if (calls > 100 * many) throw new RaidError('STORE_FAILED', 'it has no end');
        clock.ms += ms;
        const lock = [...made.files.keys(), ...store.files.keys()].filter((name) =>
          name.startsWith('locks/'),
        );
        const bytes = store.files.get(lock.sort().at(-1)!);
        const { holder, heardMs } = JSON.parse(Buffer.from(bytes ?? 'null').toString()) ?? {};
        if (holder != null) silentMs = Math.max(silentMs, clock.ms - heardMs);
        return await operation();
      };
      const slow = new MemoryStore();
      slow.get = (...given) => slowly(1000, () => store.get(...given));
      slow.put = (...given) => slowly(25_000, () => store.put(...given));
      slow.replace = (...given) => slowly(25_000, () => store.replace(...given));
      slow.list = (...given) => slowly(1000, () => store.list(...given));
      slow.delete = (...given) => slowly(25_000, () => store.delete(...given));
      const pruner = await Repository.open(slow, { host: clock, witness: witness(8, () => 'unknown') });
      const { removed } = await pruner.prune({ keep: { last: 1 } });
      expect(removed).toHaveLength(many - 1);
      expect(silentMs).toBeLessThan(STALE_MS);
      expect(await pruner.verify()).toMatchObject({ backups: 1, damaged: [], lost: [] });
    }
  });

  test('stays where its file is hurt in any way, until nothing was heard for half an hour', async () => {
    const made = new MemoryStore();
    const id = await twoBackups(made, 0, 1000);
    const clock = new TestHost(1);
    clock.sleep = () => new Promise(() => undefined);
    const isReader = ({ pid, host, startTime, bootId }: Holder): boolean =>
      `${pid} ${host} ${startTime} ${bootId}` === '7 far 1 b';
    const reader = await Repository.open(made, { host: clock, witness: witness(7, isReader) });
    await reader.openBackup(id, { hold: true });
    const [path] = [...made.files.keys()].filter((name) => name.startsWith('mounts/'));
    const keep = { last: 1 };
    for (const [hurt, bytes] of everyHurt(made.files.get(path!)!)) {
      const store = new MemoryStore(made.files);
      store.files.set(path!, bytes);
      const later = new TestHost(1);
      const other = await Repository.open(store, { host: later, witness: witness(8, isReader) });
      expect((await other.prune({ keep, dryRun: true })).removed, hurt).toEqual([]);
      expect((await other.prune({ keep })).removed, hurt).toEqual([]);
      const error = await other.prune({ remove: [id] }).catch((cause: unknown) => cause);
      expect(error, hurt).toMatchObject({ code: 'BUSY', message: expect.stringContaining('is read by') });
      later.ms += STALE_MS + 1000;
      const gone = await Repository.open(store, { host: later, witness: witness(8, () => false) });
      expect((await gone.prune({ keep })).removed, hurt).toMatchObject([{ id }]);
      expect([...store.files.keys()].filter((name) => name.startsWith('mounts/'))).toEqual([]);
    }
  });

  test('is not to be had while it may be going, however the mark is hurt; the next prune takes that away', async () => {
    const made = new MemoryStore();
    const id = await twoBackups(made, 0, 1000);
    const isPrune = ({ pid, host, startTime, bootId }: Holder): boolean =>
      `${pid} ${host} ${startTime} ${bootId}` === '8 far 1 b';
    const halted = new HaltedStore(made);
    const pruner = await Repository.open(halted, { host: new TestHost(2), witness: witness(8, isPrune) });
    halted.haltAt(Number.POSITIVE_INFINITY);
    let mark: Uint8Array | undefined;
    const deleting = halted.delete;
    halted.delete = (name) => {
      mark ??= made.files.get(`going/${id}`);
      return name.startsWith('backups/')
        ? Promise.reject(new RaidError('STORE_FAILED', 'killed'))
        : deleting(name);
    };
    await expect(pruner.prune({ keep: { last: 1 } })).rejects.toMatchObject({ code: 'STORE_FAILED' });
    for (const [hurt, bytes] of everyHurt(mark!)) {
      const store = new MemoryStore(made.files);
      store.files.set(`going/${id}`, bytes);
      const clock = new TestHost(3);
      clock.sleep = untilAborted;
      const reader = await Repository.open(store, { host: clock, witness: witness(7, isPrune) });
      const code = await reader.openBackup(id, { hold: true }).catch((error: RaidError) => error.code);
      expect(code, hurt).toBe('BUSY');
      await reader.prune();
      await (await reader.openBackup(id, { hold: true })).close();
    }
  });

  test('is told as long as it is mounted', async () => {
    const store = new MemoryStore();
    const id = await twoBackups(store);
    const clock = new TestHost(1);
    const sleepers = new Set<{ readonly untilMs: number; readonly wake: () => void }>();
    clock.sleep = (ms: number, signal?: AbortSignal) =>
      new Promise<void>((resolve) => {
        sleepers.add({ untilMs: clock.ms + ms, wake: resolve });
        signal?.addEventListener('abort', () => resolve());
      });
    const reader = await Repository.open(store, { host: clock, witness: witness(7, () => 'unknown') });
    const device = await reader.openBackup(id, { hold: true });
    for (let minutes = 0; minutes < 40; minutes += 1) {
      clock.ms += 60_000;
      for (const sleeper of sleepers) {
        if (sleeper.untilMs > clock.ms) continue;
        sleepers.delete(sleeper);
        sleeper.wake();
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect((await reader.prune({ keep: { last: 1 } })).removed).toEqual([]);
    await device.close();
    expect((await reader.prune({ keep: { last: 1 } })).removed).toHaveLength(1);
  });

  test('stays or is not to be had, whoever is held up at whatever call, and whatever becomes of prune there', async () => {
    const small = images.map((image) => image.subarray(0, 3000));
    const made = new MemoryStore();
    const maker = await newRepository(made);
    for (const image of small) await maker.createBackup({ source: deviceOf(image), array: 'demo' });
    const id = (await maker.list())[0]!.id;
    const keep = { last: 1 };
    const never = Number.POSITIVE_INFINITY;
    /** Prune is held up before its n-th call; the reader goes on to its m-th; prune ends, or is killed some calls later; the reader goes on. */
    const run = async (n: number, m: number, callsLeft: number): Promise<readonly string[]> => {
      let isGone = false;
      const what = `prune held up at call ${n}, the reader at ${m}, prune killed after ${callsLeft} more`;
      const store = new MemoryStore(made.files);
      const as = (pid: number): Witness => witness(pid, (holder) => holder.pid !== 8 || !isGone);
      const [pruning, reading] = [new HaltedStore(store), new HaltedStore(store)];
      const pruner = await Repository.open(pruning, { witness: as(8) });
      const reader = await Repository.open(reading, { witness: as(7) });
      pruning.haltAt(n);
      reading.haltAt(m);
      const pruned = pruner.prune({ keep }).catch(() => null);
      await Promise.race([pruning.halted, pruned]);
      const opening = reader.openBackup(id, { hold: true }).catch((error: RaidError) => error.code);
      await Promise.race([reading.halted, opening]);
      pruning.goOn(callsLeft);
      await pruned;
      isGone = true;
      reading.goOn();
      const device = await opening;
      const other = await Repository.open(store, { witness: as(9) });
      await other.prune({ keep });
      const listed = (await other.list()).map((backup) => backup.id);
      if (typeof device === 'string') expect(['BUSY', 'NO_SUCH_BACKUP'], what).toContain(device);
      else {
        expect(listed, what).toContain(id);
        expectSame(await contentOf(device), small[0]!, what);
        await device.close();
      }
      expect(await other.verify({ readPercent: 100 }), what).toMatchObject({ damaged: [], lost: [] });
      const left = [...store.files.keys()].filter((name) => /^(mounts|going)/.test(name));
      expect(left, what).toEqual([]);
      return [...pruning.calls];
    };
    const calls = await run(never, 1, never);
    for (const [index, call] of [...calls, 'the end'].entries()) {
      const isNear = /mounts|going|backups/.test(call);
      for (const m of isNear ? [4, 5, 6, never] : [never]) {
        const lefts = isNear && m === never ? [0, 1, 2, 3, 4, 5, 6, never] : [0, never];
        for (const left of lefts) await run(index + 1, m, left);
      }
    }
  });

  test.each([0, 1, 2] as const)(
    'stays where a prune slept so long that its marks count for nothing, with redundancy %i',
    async (redundancy) => {
      const keep = { last: 1 };
      let held = 0;
      const run = async (n: number): Promise<readonly string[]> => {
        const store = new MemoryStore();
        const id = await twoBackups(store, redundancy);
        const clock = new TestHost(1);
        clock.sleep = () => new Promise(() => undefined);
        const pruning = new HaltedStore(store);
        const unknown = (pid: number): Witness => witness(pid, () => 'unknown');
        const pruner = await Repository.open(pruning, { host: clock, witness: unknown(8) });
        const reader = await Repository.open(store, { host: clock, witness: unknown(7) });
        pruning.haltAt(n);
        const pruned = pruner.prune({ keep });
        await Promise.race([pruning.halted, pruned]);
        clock.ms += STALE_MS + 1000;
        const device = await reader.openBackup(id, { hold: true }).catch((error: RaidError) => error.code);
        pruning.goOn();
        await pruned;
        // What has been sent to the store nobody can call back; before the last copy goes it is still whole.
        const isSent = pruning.calls[n - 1] === `delete backups/${id}.${redundancy}`;
        if (typeof device !== 'string' && !isSent) {
          held += 1;
          const what = `prune slept at call ${n}, ${pruning.calls[n - 1]}`;
          expect(
            (await reader.list()).map((backup) => backup.id),
            what,
          ).toContain(id);
          expectSame(await contentOf(device), images[0]!, what);
        }
        return pruning.calls;
      };
      const { length } = await run(Number.POSITIVE_INFINITY);
      for (let n = 1; n <= length; n += 1) await run(n);
      expect(held).toBeGreaterThan(10);
    },
  );
});

function untilAborted(_: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => signal?.addEventListener('abort', () => resolve()));
}

/** Holds up whoever comes with the n-th call from now, and all calls behind it. */
class HaltedStore extends MemoryStore {
  readonly calls: string[] = [];
  readonly halted: Promise<void>;
  /** So many calls: behind them it is killed. */
  goOn: (calls?: number) => void = () => undefined;

  #n = Number.POSITIVE_INFINITY;

  constructor(below: MemoryStore) {
    super();
    let halt = (): void => undefined;
    this.halted = new Promise((resolve) => {
      halt = resolve;
    });
    let left = Number.POSITIVE_INFINITY;
    const going = new Promise<void>((resolve) => {
      this.goOn = (calls = left) => {
        left = calls;
        resolve();
      };
    });
    const held = async <T>(call: string, operation: () => Promise<T>): Promise<T> => {
      this.calls.push(call);
      if (this.calls.length >= this.#n) {
        halt();
        await going;
        if (left === 0) throw new RaidError('STORE_FAILED', 'killed');
        left -= 1;
      }
      return await operation();
    };
    this.get = (...given) => held(`get ${given[0]}`, () => below.get(...given));
    this.put = (...given) => held(`put ${given[0]}`, () => below.put(...given));
    this.replace = (...given) => held(`replace ${given[0]}`, () => below.replace(...given));
    this.list = (...given) => held(`list ${given[0]}`, () => below.list(...given));
    this.delete = (...given) => held(`delete ${given[0]}`, () => below.delete(...given));
  }

  haltAt(n: number): void {
    this.calls.length = 0;
    this.#n = n;
  }
}
