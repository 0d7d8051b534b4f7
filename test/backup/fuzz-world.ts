/**
 * Files of a repository with anything in them: what is restored is right, or there is an error that says what is not; never
 * wrong bytes, never an error that is not ours. With redundancy, any one file may be anything, and nothing is lost.
 */
import { expect } from 'vitest';
import { Repository } from '../../lib/backup/repository.ts';
import { loadSum, putSum } from '../../lib/backup/seal.ts';
import { hexSum } from '../../lib/backup/settings.ts';
import { RaidError } from '../../lib/errors.ts';
import { type Host, realHost } from '../../lib/host.ts';
import { type Random, randomBytes } from '../conformance/seed.ts';
import { contentOf, deviceOf, expectSame, imageOf, MemoryStore, newRepository } from './world.ts';

const sum = await loadSum();
const passphrase = 'sesame';

/** Who doubts a lock does not wait for a minute and a half. */
const host: Host = {
  ...realHost,
  sleep: (_, signal) =>
    new Promise((resolve) => {
      if (signal === undefined) realHost.turn(resolve);
      else signal.addEventListener('abort', () => resolve());
    }),
};

export interface Mutation {
  readonly title: string;
  readonly apply: (bytes: Uint8Array, random: Random, others: readonly Uint8Array[]) => Uint8Array;
}

export const mutations: readonly Mutation[] = [
  {
    title: 'a bit flipped',
    apply: (bytes, random) => {
      const copy = bytes.slice();
      copy[random(copy.byteLength)]! ^= 1 << random(8);
      return copy;
    },
  },
  {
    title: 'a range of noise',
    apply: (bytes, random) => {
      const copy = bytes.slice();
      const at = random(copy.byteLength);
      copy.set(randomBytes(random, Math.min(copy.byteLength - at, 1 + random(64))), at);
      return copy;
    },
  },
  { title: 'cut short', apply: (bytes, random) => bytes.slice(0, random(bytes.byteLength)) },
  { title: 'longer', apply: (bytes, random) => Buffer.concat([bytes, randomBytes(random, 1 + random(100))]) },
  { title: 'nothing but zeros', apply: (bytes) => new Uint8Array(bytes.byteLength) },
  { title: 'noise', apply: (_, random) => randomBytes(random, 1 + random(2000)) },
  { title: 'another file', apply: (_, random, others) => others[random(others.length)]!.slice() },
];

/** Noise under a sum that is right: what only a stranger can do, and parsers have to stand. */
function forge(name: string, bytes: Uint8Array, random: Random): Uint8Array {
  if (name.startsWith('settings.')) {
    const text = Buffer.from(bytes).toString('latin1').slice(0, -17);
    const numbers = [...text.matchAll(/\d+/g)];
    const number = numbers[random(numbers.length)]!;
    const other = ['0', '1', '-5', '1e99', 'null', '"x"', '4096', '99999999999'][random(8)];
    const forged = `${text.slice(0, number.index)}${other}${text.slice(number.index + number[0].length)}`;
    return Buffer.from(`${forged}${hexSum(sum(Buffer.from(forged, 'latin1')))}\n`, 'latin1');
  }
  const copy = bytes.slice();
  for (let turn = 0; turn <= random(3); turn += 1) copy[random(copy.byteLength)] = random(256);
  if (copy.byteLength >= 8) putSum(copy, sum);
  return copy;
}

export const kinds = [
  { title: 'in clear', options: {}, all: false },
  { title: 'in clear, redundancy 1', options: { redundancy: 1 }, all: true },
  { title: 'in clear, redundancy 2', options: { redundancy: 2 }, all: true },
  { title: 'encrypted', options: { passphrase }, all: false },
  { title: 'encrypted, redundancy 2', options: { passphrase, redundancy: 2 }, all: true },
] as const;

async function make(options: (typeof kinds)[number]['options'], random: Random) {
  const store = new MemoryStore();
  const repository = await newRepository(store, { ...options, host });
  const images = new Map<string, Uint8Array>();
  for (const array of ['one', 'two']) {
    const image = imageOf(random, 5000 + random(3000));
    images.set(array, image);
    await repository.createBackup({ source: deviceOf(image), array });
  }
  return { store, images };
}

async function ours<T>(work: Promise<T>, what: string): Promise<T | RaidError> {
  return await work.catch((error: unknown) => {
    if (error instanceof RaidError) return error;
    throw new Error(`${what}: ${String(error)}`, { cause: error });
  });
}

/** Everything that can be restored is right, and the rest is named. How many backups were restored as a whole. */
async function check(
  store: MemoryStore,
  images: ReadonlyMap<string, Uint8Array>,
  what: string,
): Promise<number> {
  const repository = await ours(Repository.open(store, { passphrase, host }), what);
  if (repository instanceof RaidError) return 0;
  let whole = 0;
  const backups = await ours(repository.list(), what);
  if (backups instanceof RaidError) return 0;
  for (const backup of backups) {
    const wanted = images.get(backup.array)!.slice();
    expect(backup.sizeBytes, what).toBe(wanted.byteLength);
    const target = deviceOf(new Uint8Array(wanted.byteLength).fill(0xee));
    const outcome = await ours(repository.restore(backup.id, target), what);
    if (outcome instanceof RaidError) {
      expect(outcome.code, `${what}: ${outcome.message}`).toBe('REDUNDANCY_LOST');
      for (const { offsetBytes, lengthBytes } of outcome.place.lost ?? []) {
        wanted.fill(0xee, offsetBytes, offsetBytes + lengthBytes);
      }
    } else whole += 1;
    expectSame(await contentOf(target), wanted, what);
  }
  const report = await ours(repository.verify({ readPercent: 100 }), what);
  if (!(report instanceof RaidError) && whole === images.size) expect(report?.lost, what).toEqual([]);
  return whole;
}

export type Kind = (typeof kinds)[number];

/** Each file in turn, mutated. */
export async function mutateEach({ options, all }: Kind, { apply }: Mutation, random: Random): Promise<void> {
  const { store: good, images } = await make(options, random);
  for (const name of good.files.keys()) {
    const store = new MemoryStore(good.files);
    const mutated = apply(good.files.get(name)!, random, [...good.files.values()]);
    store.files.set(name, mutated);
    const whole = await check(store, images, name);
    if (all) expect(whole, `${name}: backups that are whole`).toBe(images.size);
    const repository = await ours(Repository.open(store, { passphrase, host }), name);
    if (repository instanceof RaidError) continue;
    const repaired = await ours(repository.repair(), name);
    expect(await check(store, images, `${name}, repaired`)).toBeGreaterThanOrEqual(whole);
    if (!all || repaired instanceof RaidError) continue;
    expect(await repository.verify({ readPercent: 100 }), name).toMatchObject({
      damaged: [],
      lost: [],
      unprotected: [],
    });
  }
}

export async function forgeEach({ options }: Kind, turns: number, random: Random): Promise<void> {
  const { store: good } = await make(options, random);
  for (const name of good.files.keys()) {
    for (let turn = 0; turn < turns; turn += 1) {
      const store = new MemoryStore(good.files);
      const copies = name.startsWith('settings.') ? ['settings.0', 'settings.1', 'settings.2'] : [name];
      const forged = forge(name, good.files.get(name)!, random);
      for (const copy of copies) store.files.set(copy, forged);
      const repository = await ours(Repository.open(store, { passphrase, host }), name);
      if (repository instanceof RaidError) continue;
      const backups = await ours(repository.list(), name);
      if (backups instanceof RaidError) continue;
      for (const { id, sizeBytes } of backups) {
        if (sizeBytes > 1_000_000) continue;
        await ours(repository.restore(id, deviceOf(new Uint8Array(sizeBytes))), name);
      }
      await ours(repository.verify({ readPercent: 100 }), name);
      await ours(repository.prune({ keep: { last: 1 } }), name);
      await ours(repository.repair(), name);
    }
  }
}

/** Several files at a time lost or mutated. Verify says what repair does: what it calls repairable is made again, and the rest stays, named. */
export async function hurtSeveral({ options }: Kind, rounds: number, random: Random): Promise<void> {
  const { store: good, images } = await make(options, random);
  for (let round = 0; round < rounds; round += 1) {
    const store = new MemoryStore(good.files);
    const names = [...good.files.keys()].filter((name) => !name.startsWith('locks/'));
    const whats: string[] = [];
    for (let count = 1 + random(5); count > 0; count -= 1) {
      const [name = ''] = names.splice(random(names.length), 1);
      // One copy of the settings stays: without any there is no repository.
      if (name === 'settings.2') continue;
      const mutation = mutations[random(mutations.length + 1)];
      if (mutation === undefined) store.files.delete(name);
      else store.files.set(name, mutation.apply(good.files.get(name)!, random, [...good.files.values()]));
      whats.push(`${name}: ${mutation?.title ?? 'lost'}`);
    }
    const what = whats.join(', ');
    const repository = await Repository.open(store, { passphrase, host });
    const before = (await repository.verify({ readPercent: 100 }))!;
    const report = await repository.repair();
    const after = (await repository.verify({ readPercent: 100 }))!;
    const lasting = before.damaged.filter(({ repairable }) => !repairable).map(({ name }) => name);
    expect(report.damaged.map(({ name }) => name).sort(), what).toEqual(lasting.toSorted());
    expect(after.damaged.map(({ name }) => name).sort(), what).toEqual(lasting.toSorted());
    expect(
      after.damaged.filter(({ repairable }) => repairable),
      what,
    ).toEqual([]);
    expect(report.lost, what).toEqual(before.lost);
    expect(after.lost, what).toEqual(before.lost);
    expect(after.unprotected, what).toEqual([]);
    for (const { id, array, sizeBytes } of await repository.list()) {
      const target = deviceOf(new Uint8Array(sizeBytes).fill(0xee));
      const outcome = await ours(repository.restore(id, target), what);
      const lost = before.lost.find((each) => each.id === id)?.lost ?? [];
      expect((outcome instanceof RaidError ? outcome.place.lost : null) ?? [], what).toEqual(lost);
      const wanted = images.get(array)!.slice();
      for (const { offsetBytes, lengthBytes } of lost)
        wanted.fill(0xee, offsetBytes, offsetBytes + lengthBytes);
      expectSame(await contentOf(target), wanted, what);
    }
  }
}
