/** What a repository promises when nothing goes wrong. */
import { describe, expect, test } from 'vitest';
import { Repository } from '../../lib/backup/repository.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { conformance } from '../conformance/suite.ts';
import {
  cheapScrypt,
  contentOf,
  deviceOf,
  expectSame,
  imageOf,
  MemoryStore,
  newRepository,
  restored,
  smallShape,
} from './world.ts';

const passphrase = 'correct horse';
const kinds = [
  { title: 'in clear', options: {} },
  { title: 'in clear, redundancy 1', options: { redundancy: 1 } },
  { title: 'in clear, redundancy 2', options: { redundancy: 2 } },
  { title: 'encrypted', options: { passphrase } },
  { title: 'encrypted, redundancy 2', options: { passphrase, redundancy: 2 } },
  { title: 'in clear, with two threads', options: { threads: 2 } },
  { title: 'encrypted, redundancy 1, with a thread', options: { passphrase, redundancy: 1, threads: 1 } },
] as const;

describe.each(kinds)('a repository $title', ({ options }) => {
  test('gives back every backup of a random history, onto whatever was there', () =>
    withSeed(runSeed, async (random) => {
      const store = new MemoryStore();
      await newRepository(store, options);
      const images: Uint8Array[] = [];
      let image = imageOf(random, 1 + random(20_000));
      for (let turn = 0; turn < 5; turn += 1) {
        const repository = await Repository.open(store, { ...options, passphrase });
        const backup = await repository.createBackup({ source: deviceOf(image), array: 'demo' });
        expect(backup?.sizeBytes).toBe(image.byteLength);
        images.push(image);
        image = imageOf(random, 1 + random(20_000));
        image.set(images[0]!.subarray(0, image.byteLength));
      }
      const repository = await Repository.open(store, { passphrase });
      const backups = await repository.list();
      expect(backups.map(({ number }) => number)).toEqual([1, 2, 3, 4, 5]);
      for (const [index, backup] of backups.entries()) {
        expectSame(await restored(repository, backup), images[index]!, `backup ${index}`);
        await using device = await repository.openBackup(backup.id);
        expectSame(await contentOf(device), images[index]!, `backup ${index} as a device`);
      }
      const report = await repository.verify({ readPercent: 100 });
      expect(report).toMatchObject({ damaged: [], lost: [], unprotected: [], packsRead: report?.packs });
    }));

  test('stores nothing twice, and nothing of zeros', async () => {
    const store = new MemoryStore();
    const repository = await newRepository(store, options);
    const image = imageOf(seededRandom(7), 16_384);
    await repository.createBackup({ source: deviceOf(image), array: 'one' });
    const again = await repository.createBackup({ source: deviceOf(image), array: 'two' });
    expect(again).toMatchObject({ addedBytes: 0, storedBytes: 0 });
    const zeros = await repository.createBackup({ source: deviceOf(new Uint8Array(50_000)), array: 'zeros' });
    expect(zeros).toMatchObject({ addedBytes: 0, storedBytes: 0, sizeBytes: 50_000 });
  });
});

describe('incremental backups', () => {
  async function tracked(): Promise<{ repository: Repository; image: Uint8Array }> {
    const repository = await newRepository(new MemoryStore());
    const image = imageOf(seededRandom(3), 20_000).fill(9, 0, 20_000);
    for (let at = 0; at < image.byteLength; at += 64) image[at] = at >> 6;
    await repository.createBackup({ source: deviceOf(image), array: 'demo', point: 'p1' });
    return { repository, image };
  }

  test('read what changed, and nothing else', async () => {
    const { repository, image } = await tracked();
    image.fill(1, 5000, 5100);
    let readBytes = 0;
    const backup = await repository.createBackup({
      source: deviceOf(image),
      array: 'demo',
      point: 'p2',
      changedSince: async (point) => {
        expect(point).toBe('p1');
        return [{ offsetBytes: 5000, lengthBytes: 100 }];
      },
      progress: (progress) => {
        ({ readBytes } = progress);
      },
    });
    expect(readBytes).toBe(1024);
    expectSame(await restored(repository, backup!), image, 'the second backup');
  });

  test('read all of it where the source does not know', async () => {
    const { repository, image } = await tracked();
    image.fill(1, 5000, 5100);
    const backup = await repository.createBackup({
      source: deviceOf(image),
      array: 'demo',
      changedSince: () => Promise.resolve('unknown'),
    });
    expectSame(await restored(repository, backup!), image, 'the second backup');
  });

  test('take no chunk over that the repository has lost: it is read and stored again', async () => {
    const store = new MemoryStore();
    const repository = await newRepository(store);
    const image = imageOf(seededRandom(5), 20_000);
    await repository.createBackup({ source: deviceOf(image), array: 'demo', point: 'p1' });
    const pack = [...store.files.keys()].find((name) => name.startsWith('packs/'))!;
    store.files.delete(pack);
    const backup = await repository.createBackup({
      source: deviceOf(image),
      array: 'demo',
      changedSince: () => Promise.resolve([]),
    });
    expectSame(await restored(repository, backup!), image, 'the second backup');
    expect(await repository.verify({ readPercent: 100 })).toMatchObject({ lost: [] });
  });

  test('follow a source that grew or shrank', async () => {
    const { repository, image } = await tracked();
    for (const size of [20_001, 24_576, 1500, 20_480]) {
      const other = new Uint8Array(size);
      other.set(image.subarray(0, size));
      const backup = await repository.createBackup({
        source: deviceOf(other),
        array: 'demo',
        point: `p${size}`,
        changedSince: () =>
          Promise.resolve(size > 20_000 ? [{ offsetBytes: 20_000, lengthBytes: size - 20_000 }] : []),
      });
      expectSame(await restored(repository, backup!), other, `${size} bytes`);
    }
  });
});

test('a chunk that is not what it was is never handed out: every byte of every pack, changed', async () => {
  const store = new MemoryStore();
  const repository = await newRepository(store, { packBytes: 4000 });
  const image = imageOf(seededRandom(13), 6000);
  const backup = (await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!;
  for (const [name, bytes] of [...store.files].filter(([file]) => file.startsWith('packs/'))) {
    for (let at = 0; at < bytes.byteLength; at += 7) {
      const changed = new Uint8Array(bytes);
      changed[at]! ^= 0x10;
      store.files.set(name, changed);
      const target = deviceOf(new Uint8Array(image.byteLength).fill(0xee));
      const wanted = image.slice();
      const failure = await repository.restore(backup.id, target).then(
        () => null,
        (error: unknown) => error,
      );
      if (failure !== null) expect(failure).toMatchObject({ code: 'REDUNDANCY_LOST' });
      for (const { offsetBytes, lengthBytes } of (failure as RaidError | null)?.place.lost ?? [])
        wanted.fill(0xee, offsetBytes, offsetBytes + lengthBytes);
      expectSame(await contentOf(target), wanted, `byte ${at} of ${name}`);
    }
    store.files.set(name, bytes);
  }
});

test.each([0, 1, 2] as const)(
  'a pack that got longer, or lost its end, costs no chunk that is still in it, with redundancy %i',
  async (redundancy) => {
    const store = new MemoryStore();
    const repository = await newRepository(store, { redundancy });
    const image = randomBytes(seededRandom(14), 6000);
    const backup = (await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!;
    for (const [name, bytes] of [...store.files]) {
      if (name.startsWith('parity/')) store.files.set(name, bytes.subarray(0, 20));
      // Of what is behind the chunks, all is known from the index.
      if (name.startsWith('packs/'))
        store.files.set(
          name,
          redundancy === 1 ? bytes.slice(0, -60) : Buffer.concat([bytes, new Uint8Array(9)]),
        );
    }
    const again = await Repository.open(store);
    expectSame(await restored(again, backup), image, 'the backup');
    for (const readPercent of [0, 100])
      expect((await again.verify({ readPercent }))?.lost, `${readPercent} %`).toEqual([]);
  },
);

test('verify names copies of the settings that are not what they were, or not there', async () => {
  for (const path of ['settings.0', 'settings.1', 'settings.2']) {
    const store = new MemoryStore();
    await newRepository(store);
    const other = new MemoryStore();
    await newRepository(other);
    const good = store.files.get(path)!;
    const wrong = path === 'settings.0' ? [] : [other.files.get(path)!];
    for (const bytes of [
      good.map((byte, at) => (at === 40 ? byte ^ 1 : byte)),
      new Uint8Array(9),
      ...wrong,
    ]) {
      store.files.set(path, bytes);
      const repository = await Repository.open(store);
      expect(await repository.verify()).toMatchObject({ damaged: [{ name: path, repairable: true }] });
      expect(await repository.repair()).toMatchObject({ repaired: [path], damaged: [] });
      expectSame(store.files.get(path)!, good, path);
    }
    store.files.delete(path);
    const repository = await Repository.open(store);
    expect(await repository.verify()).toMatchObject({ damaged: [], unprotected: [path] });
    await repository.repair();
    expect(await repository.verify()).toMatchObject({ damaged: [], unprotected: [] });
  }
});

test('an interrupted backup goes on from what was stored', async () => {
  const store = new MemoryStore();
  const repository = await newRepository(store, { redundancy: 2 });
  const image = imageOf(seededRandom(11), 60_000);
  const stop = new AbortController();
  const first = await repository.createBackup({
    source: deviceOf(image),
    array: 'demo',
    signal: stop.signal,
    progress: ({ doneBytes }) => {
      if (doneBytes > 30_000) stop.abort();
    },
  });
  expect(first).toBeNull();
  expect(await repository.list()).toEqual([]);
  const whole = await (await newRepository(new MemoryStore(), { redundancy: 2 })).createBackup({
    source: deviceOf(image),
    array: 'demo',
  });
  const second = await repository.createBackup({ source: deviceOf(image), array: 'demo' });
  expect(second!.addedBytes).toBeLessThan(whole!.addedBytes * 0.7);
  expectSame(await restored(repository, second!), image, 'the backup');
});

describe('what cannot be done says why', () => {
  async function codeOf(work: Promise<unknown>): Promise<string> {
    const error = await work.then(
      () => null,
      (cause: unknown) => cause,
    );
    if (error instanceof RaidError) return error.code;
    throw new Error(`expected a RaidError, got ${String(error)}`);
  }

  test('a repository that is not there, or is something else', async () => {
    const empty = new MemoryStore();
    expect(await codeOf(Repository.open(empty))).toBe('NO_SUCH_REPOSITORY');
    const foreign = new MemoryStore(new Map([['photos', new Uint8Array(3)]]));
    expect(await codeOf(Repository.open(foreign))).toBe('NO_SUCH_REPOSITORY');
    expect(await codeOf(newRepository(foreign))).toBe('HOLDS_DATA');
    expect([...foreign.files.keys()]).toEqual(['photos']);
  });

  test('a wrong passphrase, and none', async () => {
    const store = new MemoryStore();
    await newRepository(store, { passphrase });
    expect(await codeOf(Repository.open(store))).toBe('WRONG_PASSPHRASE');
    expect(await codeOf(Repository.open(store, { passphrase: 'Correct horse' }))).toBe('WRONG_PASSPHRASE');
    await Repository.open(store, { passphrase });
  });

  test('a format from the future', async () => {
    const store = new MemoryStore();
    await newRepository(store);
    const { loadSum } = await import('../../lib/backup/seal.ts');
    const { hexSum } = await import('../../lib/backup/settings.ts');
    const sum = await loadSum();
    for (let copy = 0; copy < 3; copy += 1) {
      const text = Buffer.from(store.files.get(`settings.${copy}`)!)
        .toString()
        .slice(0, -17);
      const newer = text.replace('"version": 1', '"version": 2');
      store.files.set(`settings.${copy}`, Buffer.from(`${newer}${hexSum(sum(Buffer.from(newer)))}\n`));
    }
    expect(await codeOf(Repository.open(store))).toBe('UNSUPPORTED_FEATURE');
  });

  test('a backup that is not there, or is not named', async () => {
    const repository = await newRepository(new MemoryStore());
    expect(await codeOf(repository.find('latest'))).toBe('NO_SUCH_BACKUP');
    await repository.createBackup({ source: deviceOf(new Uint8Array(10).fill(1)), array: 'a' });
    expect(await codeOf(repository.find('zz'))).toBe('NO_SUCH_BACKUP');
    expect(await codeOf(repository.find(''))).toBe('NO_SUCH_BACKUP');
    expect(await repository.find('latest')).toMatchObject({ array: 'a', sizeBytes: 10 });
  });

  test('a target that is too small, and it stays as it was', async () => {
    const repository = await newRepository(new MemoryStore());
    await repository.createBackup({ source: deviceOf(new Uint8Array(10).fill(1)), array: 'a' });
    const target = deviceOf(new Uint8Array(9).fill(7));
    expect(await codeOf(repository.restore('latest', target))).toBe('OUT_OF_RANGE');
    expect(await contentOf(target)).toEqual(new Uint8Array(9).fill(7));
  });
});

test('names, sizes and content of what is encrypted are in no file', async () => {
  const store = new MemoryStore();
  const repository = await newRepository(store, { passphrase, redundancy: 2 });
  const words = 'attack at dawn, bring the ladders. '.repeat(200);
  const image = Buffer.from(words);
  await repository.createBackup({ source: deviceOf(image), array: 'secret-name' });
  const everything = Buffer.concat([...store.files.values()]).toString('latin1');
  for (const word of ['secret-name', 'attack', 'ladders', 'sizeBytes":7'])
    expect(everything).not.toContain(word);
  for (const [name, bytes] of store.files) {
    if (name.startsWith('packs/')) expect(bytes.byteLength % 65_536).toBe(0);
    if (name.startsWith('backups/')) expect(bytes.byteLength).toBe(4096 + 8 + 16 + 16 + 8);
  }
});

const content = imageOf(seededRandom(runSeed), 300_000);
conformance(
  'a backup',
  async () => {
    const repository = await newRepository(new MemoryStore(), {
      ...smallShape,
      chunkBytes: 4096,
      packBytes: 30_000,
      passphrase,
      scrypt: cheapScrypt,
    });
    await repository.createBackup({ source: deviceOf(content), array: 'demo' });
    return { device: await repository.openBackup('latest') };
  },
  { readOnly: true, content },
);

test('verify finds nothing wrong with a sound repository that is pruned at any moment of it', async () => {
  const images = [1, 2].map((seed) => imageOf(seededRandom(seed), 9000));
  // Half of the older one is needed: packs are written anew, and others go.
  images[1]!.set(images[0]!.subarray(0, 5000));
  const made = new MemoryStore();
  const maker = await newRepository(made, { redundancy: 1 });
  for (const image of images) await maker.createBackup({ source: deviceOf(image), array: 'demo' });
  let calls = 1;
  for (let call = 0; call < calls; call += 1) {
    const store = new MemoryStore(made.files);
    const pruner = await Repository.open(store);
    let asked = 0;
    const before = async <T>(operation: () => Promise<T>): Promise<T> => {
      asked += 1;
      if (asked === call) await pruner.prune({ keep: { last: 1 } });
      return await operation();
    };
    const watched = new MemoryStore();
    watched.get = (...given) => before(() => store.get(...given));
    watched.list = (...given) => before(() => store.list(...given));
    const report = await (await Repository.open(watched)).verify({ readPercent: 100 });
    expect(report, `pruned before call ${call} of verify`).toMatchObject({ damaged: [], lost: [] });
    if (call === 0) calls = asked;
  }
});
