/** Every store does what the interface says, also when the network does not. */
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { DirectoryStore } from '../../lib/backup/directory.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { S3Store } from '../../lib/backup/s3.ts';
import type { Store } from '../../lib/backup/store.ts';
import { RaidError } from '../../lib/errors.ts';
import { realHost, seededRandom } from '../../lib/host.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { ACCESS_KEY, type Fault, S3Server, SECRET_KEY, type ServerOptions } from './s3-server.ts';
import { deviceOf, expectSame, imageOf, MemoryStore, newRepository, restored } from './world.ts';

const folder = await mkdtemp(join(tmpdir(), 'raidsim-backup-'));
afterAll(() => rm(folder, { recursive: true }));
let count = 0;
const nextFolder = (): string => {
  count += 1;
  return join(folder, String(count), 'nested', 'repo');
};

const host = { sleep: () => Promise.resolve(), random: seededRandom(1) };

async function openS3(server: S3Server, path = '/bucket/some prefix/x+y'): Promise<S3Store> {
  return await S3Store.open({
    url: server.url + path,
    accessKeyId: ACCESS_KEY,
    secretAccessKey: SECRET_KEY,
    host,
  });
}

async function s3(options: ServerOptions = {}): Promise<{ store: Store; server: S3Server }> {
  const server = await S3Server.start(options);
  return { store: await openS3(server), server };
}

/** Every third request fails in some way, but none for ever. */
function badNetwork(): NonNullable<ServerOptions['fault']> {
  const faults: readonly Fault[] = ['unavailable', 'lost answer', 'broken body', 'slow down'];
  const random = seededRandom(runSeed);
  const inARow = new Map<string, number>();
  return ({ method, path }) => {
    const key = `${method} ${path}`;
    const before = inARow.get(key) ?? 0;
    const fails = before < 3 && random(3) === 0;
    inARow.set(key, fails ? before + 1 : 0);
    return fails ? (faults[random(faults.length)] ?? null) : null;
  };
}

interface Kind {
  readonly title: string;
  readonly open: () => Promise<{ store: Store; dispose?: () => Promise<void> }>;
}

const kinds: readonly Kind[] = [
  { title: 'in memory', open: async () => ({ store: new MemoryStore() }) },
  { title: 'a folder', open: async () => ({ store: new DirectoryStore(nextFolder()) }) },
  {
    title: 'a folder without links',
    open: async () => ({ store: new DirectoryStore(nextFolder(), { links: 'never' }) }),
  },
  {
    title: 'a bucket',
    open: async () => {
      const { store, server } = await s3();
      return { store, dispose: () => server[Symbol.asyncDispose]() };
    },
  },
  {
    title: 'a bucket behind a bad network',
    open: async () => {
      const { store, server } = await s3({ fault: badNetwork() });
      return { store, dispose: () => server[Symbol.asyncDispose]() };
    },
  },
];

const bytes = (text: string): Uint8Array => new Uint8Array(Buffer.from(text));

describe.each(kinds)('$title', ({ open }) => {
  async function withStore(run: (store: Store) => Promise<void>): Promise<void> {
    const { store, dispose } = await open();
    try {
      await run(store);
    } finally {
      await dispose?.();
    }
  }

  test('has nothing where nothing was put', () =>
    withStore(async (store) => {
      expect(await store.get('packs/a')).toBeNull();
      expect(await store.list('')).toEqual([]);
      await store.delete('packs/a');
    }));

  test('gives back what was put, whole and in ranges', () =>
    withStore(async (store) => {
      expect(await store.put('packs/a', bytes('0123456789'))).toBe(true);
      expect(await store.get('packs/a')).toEqual(bytes('0123456789'));
      const part = (offsetBytes: number, lengthBytes: number) =>
        store.get('packs/a', { offsetBytes, lengthBytes });
      expect(await part(2, 3)).toEqual(bytes('234'));
      expect(await part(8, 30)).toEqual(bytes('89'));
      expect(await part(10, 5)).toEqual(bytes(''));
      expect(await part(3, 0)).toEqual(bytes(''));
    }));

  test('puts a name once; replaces it always', () =>
    withStore(async (store) => {
      expect(await store.put('settings.0', bytes('first'))).toBe(true);
      expect(await store.put('settings.0', bytes('second'))).toBe(false);
      expect(await store.get('settings.0')).toEqual(bytes('first'));
      await store.replace('settings.0', bytes('third'));
      await store.replace('index/b', bytes('new'));
      expect(await store.get('settings.0')).toEqual(bytes('third'));
      expect(await store.get('index/b')).toEqual(bytes('new'));
    }));

  test('lists what begins so, sorted, and what was deleted no more', () =>
    withStore(async (store) => {
      const names = ['packs/b', 'settings.0', 'packs/a', 'parity/a.p', 'packs/c', 'backups/x.1', 'packs/ab'];
      for (const name of names) await store.put(name, bytes(name));
      expect((await store.list('packs/')).map(({ name }) => name)).toEqual([
        'packs/a',
        'packs/ab',
        'packs/b',
        'packs/c',
      ]);
      expect(await store.list('')).toEqual(
        names.toSorted().map((name) => ({ name, sizeBytes: name.length })),
      );
      await store.delete('packs/a');
      expect((await store.list('packs/a')).map(({ name }) => name)).toEqual(['packs/ab']);
      expect(await store.get('packs/a')).toBeNull();
    }));

  test('lets one of many win a name', () =>
    withStore(async (store) => {
      const answers = await Promise.all(
        Array.from({ length: 8 }, (_, index) => store.put('locks/1', bytes(`w${index}`))),
      );
      expect(answers.filter(Boolean)).toHaveLength(1);
      expect(await store.get('locks/1')).toEqual(bytes(`w${answers.indexOf(true)}`));
    }));

  test.each([0, 1])('carries a repository, packed by %i threads', (threads) =>
    withStore((store) =>
      withSeed(runSeed, async (random) => {
        const repository = await newRepository(store, { redundancy: 2, threads });
        const images = [imageOf(random, 8000), imageOf(random, 8000)];
        for (const image of images) await repository.createBackup({ source: deviceOf(image), array: 'demo' });
        const opened = await Repository.open(store);
        const [first, second] = await opened.list();
        expectSame(await restored(opened, first!), images[0]!, 'the first backup');
        await opened.prune({ keep: { last: 1 } });
        expect(await opened.list()).toEqual([second]);
        expectSame(await restored(opened, second!), images[1]!, 'the second backup');
        expect(await opened.verify({ readPercent: 100 })).toMatchObject({
          damaged: [],
          lost: [],
          unprotected: [],
        });
      }),
    ),
  );
});

async function errorOf(work: Promise<unknown>): Promise<RaidError> {
  const error = await work.then(
    () => null,
    (cause: unknown) => cause,
  );
  if (error instanceof RaidError) return error;
  throw new Error(`expected a RaidError, got ${String(error)}`);
}

describe('a folder', () => {
  test('has no unfinished file when a put is over, and files that only their owner can read', async () => {
    const path = nextFolder();
    const store = new DirectoryStore(path);
    await store.put('packs/a', bytes('x'));
    await store.put('packs/a', bytes('y'));
    expect(await readdir(join(path, 'tmp'))).toEqual([]);
    expect((await stat(join(path, 'packs', 'a'))).mode & 0o777).toBe(0o600);
    expect((await stat(join(path, 'packs'))).mode & 0o777).toBe(0o700);
  });

  test('reads what a crash can leave of a name, an empty file, as no file', async () => {
    const path = nextFolder();
    const store = new DirectoryStore(path);
    await store.put('packs/b', bytes('x'));
    await writeFile(join(path, 'packs', 'a'), '');
    expect(await store.get('packs/a')).toBeNull();
    expect((await store.list('packs/')).map(({ name }) => name)).toEqual(['packs/b']);
  });

  test('a folder in the place of a file is damage to that file alone', async () => {
    const path = nextFolder();
    const store = new DirectoryStore(path);
    await store.put('packs/b', bytes('x'));
    const { mkdir } = await import('node:fs/promises');
    await mkdir(join(path, 'packs', 'a'));
    expect((await errorOf(store.get('packs/a'))).code).toBe('MEDIUM_ERROR');
  });
});

describe('a bucket', () => {
  test('signs what it sends as the specification says', async () => {
    await using server = await S3Server.start();
    const store = await openS3(server);
    await store.put('packs/a', bytes('x'));
    expect(server.refusals).toEqual([]);
    expect([...server.objects.keys()]).toEqual(['some prefix/x+y/packs/a']);
  });

  test('says what is not permitted, and that a bucket is not there', async () => {
    await using server = await S3Server.start();
    const stranger = await S3Store.open({
      url: `${server.url}/bucket`,
      accessKeyId: ACCESS_KEY,
      secretAccessKey: 'no',
      host,
    });
    expect((await errorOf(stranger.put('packs/a', bytes('x')))).code).toBe('READ_ONLY');
    const elsewhere = await openS3(server, '/bocket');
    expect((await errorOf(elsewhere.get('packs/a'))).message).toContain('NoSuchBucket');
    expect((await errorOf(elsewhere.list(''))).code).toBe('STORE_FAILED');
    for (const url of ['nonsense', 'https://host', 'ftp://host/bucket', 'https://a:b@host/bucket'])
      expect((await errorOf(S3Store.open({ url, accessKeyId: '', secretAccessKey: '' }))).code).toBe(
        'BAD_ARGUMENT',
      );
  });

  test('gives up after some attempts, and concludes nothing from it', async () => {
    await using server = await S3Server.start({ fault: () => 'lost answer' });
    const store = await openS3(server);
    expect((await errorOf(store.get('packs/a'))).code).toBe('STORE_FAILED');
    expect(server.requests).toBe(6);
  });

  test('knows its own object again when the answer was lost, and another as another', async () => {
    await using server = await S3Server.start({
      fault: ({ method, count: n }) => (method === 'PUT' && n % 2 === 1 ? 'lost answer' : null),
    });
    const store = await openS3(server);
    expect(await store.put('packs/a', bytes('mine'))).toBe(true);
    server.requests = 0;
    expect(await store.put('packs/a', bytes('theirs'))).toBe(false);
  });

  test('that ignores conditions still has one writer: who is overwritten sees it', async () => {
    await using server = await S3Server.start({ conditional: false });
    const store = await openS3(server);
    const settling = { ...realHost, sleep: () => realHost.sleep(50) };
    const repository = await newRepository(store, { host: settling });
    const image = imageOf(seededRandom(1), 5000);
    const both = await Promise.allSettled(
      ['a', 'b'].map((array) => repository.createBackup({ source: deviceOf(image), array })),
    );
    for (const outcome of both) {
      if (outcome.status === 'rejected') expect(outcome.reason).toMatchObject({ code: 'BUSY' });
    }
    for (const backup of await repository.list())
      expectSame(await restored(repository, backup), image, backup.array);
  });
});
