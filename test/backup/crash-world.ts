/**
 * Killed at every operation on the store, before it and after it: what was listed is whole, nothing that was listed before is
 * gone (but what prune was told to forget), and the same work done again ends as if nothing had happened.
 *
 * Who comes next finds the store and nothing else, so each store that a kill leaves is judged once: one killed at a read, or before
 * an operation, leaves what one that was killed after the write before it leaves. For this all kills draw the same lots.
 */
import { createHash } from 'node:crypto';
import { expect } from 'vitest';
import { Repository } from '../../lib/backup/repository.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import {
  deviceOf,
  expectSame,
  imageOf,
  MemoryStore,
  MortalStore,
  newRepository,
  restored,
  TestHost,
} from './world.ts';

export interface Case {
  readonly title: string;
  readonly redundancy: 0 | 1 | 2;
  readonly passphrase?: string;
  /** What was there before, by array name: each restores to this. */
  readonly prepare: (store: MemoryStore) => Promise<Map<string, Uint8Array>>;
  readonly work: (repository: Repository) => Promise<unknown>;
  /** What is there when the work has been done. */
  readonly after: (before: Map<string, Uint8Array>) => Map<string, Uint8Array>;
  /** Whether what was there before may be gone. */
  readonly forgets?: readonly string[];
}

const random = seededRandom(42);
const base = imageOf(random, 9000);
const variants = [1, 2, 3].map((turn) => {
  const image = base.slice();
  image.set(imageOf(seededRandom(turn), 3000), turn * 1500);
  return image;
});

async function history(
  store: MemoryStore,
  options: { redundancy: 0 | 1 | 2; passphrase?: string },
): Promise<Map<string, Uint8Array>> {
  const repository = await newRepository(store, options);
  const images = new Map<string, Uint8Array>();
  for (const [index, image] of [base, ...variants.slice(0, 2)].entries()) {
    await repository.createBackup({ source: deviceOf(image), array: `a${index}` });
    images.set(`a${index}`, image);
  }
  return images;
}

/** What a backup leaves of which there was room for the packs, and for their parity, and for nothing more. */
async function leaveUnfinished(
  store: MemoryStore,
  { passphrase }: { readonly passphrase?: string },
): Promise<void> {
  const full = new MemoryStore();
  Object.assign(full, { files: store.files });
  full.put = (name, bytes) =>
    /^(?:index|backups)\//.test(name)
      ? Promise.reject(new RaidError('NO_SPACE', 'full'))
      : store.put(name, bytes);
  const repository = await Repository.open(full, passphrase === undefined ? {} : { passphrase });
  const backup = repository.createBackup({
    source: deviceOf(imageOf(seededRandom(9), 12_000)),
    array: 'large',
  });
  await expect(backup).rejects.toMatchObject({ code: 'NO_SPACE' });
}

export function casesFor(redundancy: 0 | 1 | 2, passphrase?: string): readonly Case[] {
  const options = passphrase === undefined ? { redundancy } : { redundancy, passphrase };
  const where = `redundancy ${redundancy}${passphrase === undefined ? '' : ', encrypted'}`;
  const common = { ...options, prepare: (store: MemoryStore) => history(store, options) };
  return [
    {
      ...common,
      title: `create, ${where}`,
      work: (repository) => repository.createBackup({ source: deviceOf(variants[2]!), array: 'new' }),
      after: (before) => new Map([...before, ['new', variants[2]!]]),
    },
    {
      ...common,
      title: `prune, ${where}`,
      work: async (repository) => {
        const going = (await repository.list()).filter(({ array }) => array === 'a1');
        await repository.prune({ remove: going.map(({ id }) => id) });
      },
      after: (before) => new Map([...before].filter(([array]) => array !== 'a1')),
      forgets: ['a1'],
    },
    {
      ...common,
      title: `prune of what a backup left, ${where}`,
      prepare: async (store: MemoryStore) => {
        const images = await history(store, options);
        await leaveUnfinished(store, options);
        return images;
      },
      work: (repository) => repository.prune(),
      after: (before) => before,
    },
    ...(redundancy === 0
      ? []
      : [
          {
            ...common,
            title: `repair, ${where}`,
            prepare: async (store: MemoryStore) => {
              const images = await history(store, options);
              damage(store, redundancy);
              return images;
            },
            work: (repository: Repository) => repository.repair(),
            after: (before: Map<string, Uint8Array>) => before,
          },
        ]),
  ];
}

/** In the first group, as many files as it can lose; and one of each kind that has copies. */
function damage(store: MemoryStore, redundancy: number): void {
  const files = [...store.files.keys()].sort();
  const packs = files.filter((name) => name.startsWith('packs/'));
  store.files.delete(packs[0]!);
  if (redundancy === 2) store.files.delete(files.find((name) => name.endsWith('.p'))!);
  store.files.delete(files.find((name) => name.startsWith('backups/'))!);
  store.files.delete('settings.0');
  const index = files.find((name) => name.startsWith('index/'))!;
  store.files.set(index, new Uint8Array(50));
}

async function checkAll(
  store: MemoryStore,
  passphrase: string | undefined,
  wanted: Map<string, Uint8Array>,
  mayLack: readonly string[],
  what: string,
): Promise<void> {
  const repository = await Repository.open(store, passphrase === undefined ? {} : { passphrase });
  const backups = await repository.list();
  const names = backups.map(({ array }) => array);
  for (const name of wanted.keys()) {
    if (!mayLack.includes(name)) expect(names, `${what}: what was listed before`).toContain(name);
  }
  for (const backup of backups) {
    const image = wanted.get(backup.array);
    if (image === undefined) expect.fail(`${what}: backup ${backup.array} came from nowhere`);
    expectSame(await restored(repository, backup), image, `${what}: ${backup.array}`);
  }
  expect((await repository.verify({ readPercent: 100 }))?.lost, what).toEqual([]);
}

function contentOf({ files }: MemoryStore): string {
  const hash = createHash('sha256');
  for (const [name, bytes] of [...files].sort(([a], [b]) => (a < b ? -1 : 1)))
    hash.update(`${name} ${bytes.byteLength} `).update(bytes);
  return hash.digest('hex');
}

/** How many operations there were, and how many different stores were left by a kill at one of them. */
export async function killEverywhere({
  passphrase,
  prepare,
  work,
  after,
  forgets = [],
}: Case): Promise<{ readonly operations: number; readonly stores: number }> {
  const prepared = new MemoryStore();
  const before = await prepare(prepared);
  const wanted = after(before);
  const opening = passphrase === undefined ? {} : { passphrase };
  const judged = new Set<string>();
  let isOver = false;
  let n = 0;
  while (!isOver) {
    n += 1;
    for (const isDone of [false, true]) {
      const what = `killed ${isDone ? 'after' : 'before'} operation ${n}`;
      const store = new MemoryStore(prepared.files);
      const mortal = new MortalStore(store, n, isDone);
      const host = new TestHost(1);
      isOver = await Repository.open(mortal, { ...opening, host })
        .then(work)
        .then(
          () => mortal.operations < n,
          () => false,
        );
      const left = contentOf(store);
      if (judged.has(left)) continue;
      judged.add(left);
      await checkAll(store, passphrase, new Map([...before, ...wanted]), [...forgets, 'new'], what);
      // Again, by somebody else, who finds the lock of one who is gone.
      const again = await Repository.open(store, opening);
      if (!(await again.list()).some(({ array }) => array === 'new')) await work(again);
      await again.repair();
      await checkAll(store, passphrase, wanted, [], `${what}, and done again`);
      const report = await again.verify({ readPercent: 100 });
      expect(report, what).toMatchObject({ damaged: [], lost: [], unprotected: [] });
      expect((await again.list()).map(({ array }) => array).sort()).toEqual([...wanted.keys()].sort());
    }
  }
  return { operations: n, stores: judged.size };
}
