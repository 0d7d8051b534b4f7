/** Repositories for tests: stores that can be cut off, sources, and what must hold whatever happened. */
import { expect } from 'vitest';
import type { Backup } from '../../lib/backup/record.ts';
import { type CreateRepositoryOptions, Repository } from '../../lib/backup/repository.ts';
import { checkName, type Range, type Store, type StoredFile } from '../../lib/backup/store.ts';
import type { Device } from '../../lib/device/device.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { type Host, realHost, seededRandom } from '../../lib/host.ts';
import { type Random, randomBytes } from '../conformance/seed.ts';

export class MemoryStore implements Store {
  readonly name = 'memory';
  readonly files: Map<string, Uint8Array>;

  constructor(files: ReadonlyMap<string, Uint8Array> = new Map()) {
    this.files = new Map(files);
  }

  get(name: string, range?: Range): Promise<Uint8Array | null> {
    checkName(name);
    const bytes = this.files.get(name);
    if (bytes === undefined) return Promise.resolve(null);
    if (range === undefined) return Promise.resolve(new Uint8Array(bytes));
    const end = range.offsetBytes + range.lengthBytes;
    return Promise.resolve(new Uint8Array(bytes.subarray(range.offsetBytes, end)));
  }

  put(name: string, bytes: Uint8Array): Promise<boolean> {
    checkName(name);
    if (this.files.has(name)) return Promise.resolve(false);
    this.files.set(name, new Uint8Array(bytes));
    return Promise.resolve(true);
  }

  replace(name: string, bytes: Uint8Array): Promise<void> {
    checkName(name);
    this.files.set(name, new Uint8Array(bytes));
    return Promise.resolve();
  }

  list(prefix: string): Promise<readonly StoredFile[]> {
    const found = [...this.files].filter(([name]) => name.startsWith(prefix));
    return Promise.resolve(
      found
        .map(([name, bytes]) => ({ name, sizeBytes: bytes.byteLength }))
        .sort((a, b) => (a.name < b.name ? -1 : 1)),
    );
  }

  delete(name: string): Promise<void> {
    this.files.delete(name);
    return Promise.resolve();
  }
}

/** What a store does when the process behind it is killed: operations up to the n-th happen, none after it. */
export class MortalStore implements Store {
  readonly name = 'memory';
  readonly #below: Store;
  readonly #diesAt: number;
  /** Whether the n-th itself still happens. */
  readonly #isDone: boolean;
  operations = 0;

  constructor(below: Store, diesAt: number, isDone = false) {
    this.#below = below;
    this.#diesAt = diesAt;
    this.#isDone = isDone;
  }

  get(name: string, range?: Range): Promise<Uint8Array | null> {
    return this.#live(() => this.#below.get(name, range));
  }

  put(name: string, bytes: Uint8Array): Promise<boolean> {
    return this.#live(() => this.#below.put(name, bytes));
  }

  replace(name: string, bytes: Uint8Array): Promise<void> {
    return this.#live(() => this.#below.replace(name, bytes));
  }

  list(prefix: string): Promise<readonly StoredFile[]> {
    return this.#live(() => this.#below.list(prefix));
  }

  delete(name: string): Promise<void> {
    return this.#live(() => this.#below.delete(name));
  }

  async #live<T>(operation: () => Promise<T>): Promise<T> {
    this.operations += 1;
    if (this.operations < this.#diesAt) return await operation();
    if (this.operations === this.#diesAt && this.#isDone) await operation();
    throw new RaidError('STORE_FAILED', 'killed');
  }
}

/** Small enough that a few chunks make a page, a pack and a group. */
export const smallShape = {
  chunkBytes: 1024,
  pageChunks: 4,
  packBytes: 3000,
  groupPacks: 3,
} as const;

export const cheapScrypt = { cost: 16, blockSize: 8, parallelization: 1 };

/** Time stands still unless a test moves it, and bytes come from a seed. */
export class TestHost implements Host {
  ms = Date.UTC(2026, 0, 1);
  readonly #random: Random;

  constructor(seed: number) {
    this.#random = seededRandom(seed);
  }

  now(): number {
    return this.ms;
  }
  wallClock(): number {
    return this.ms;
  }
  sleep(ms: number): Promise<void> {
    this.ms += ms;
    return Promise.resolve();
  }
  turn(run: () => void): void {
    realHost.turn(run);
  }
  random(below: number): number {
    return this.#random(below);
  }
  randomBytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => this.#random(256));
  }
}

export async function newRepository(
  store: Store,
  options: CreateRepositoryOptions = {},
): Promise<Repository> {
  return await Repository.create(store, { ...smallShape, scrypt: cheapScrypt, ...options });
}

export function deviceOf(bytes: Uint8Array): MemoryDevice {
  const device = new MemoryDevice({ sizeBytes: bytes.byteLength, name: 'source' });
  new Uint8Array(device.memory).set(bytes);
  return device;
}

/** Like a disk: zeros, text, noise, and the same things again. */
export function imageOf(random: Random, sizeBytes: number): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  const noise = randomBytes(random, 4096);
  for (let at = 0; at < sizeBytes; ) {
    const length = Math.min(sizeBytes - at, 200 + random(3000));
    const kind = random(4);
    if (kind === 1) bytes.set(randomBytes(random, length), at);
    else if (kind === 2) bytes.fill(65 + random(20), at, at + length);
    else if (kind === 3) bytes.set(noise.subarray(0, Math.min(length, 4096)), at);
    at += length;
  }
  return bytes;
}

export function expectSame(found: Uint8Array, wanted: Uint8Array, what: string): void {
  if (Buffer.compare(found, wanted) === 0) return;
  let at = 0;
  while (found[at] === wanted[at]) at += 1;
  expect.fail(
    `${what}: byte ${at} is ${found[at]}, not ${wanted[at]}; lengths ${found.length}, ${wanted.length}`,
  );
}

export async function contentOf(device: Device): Promise<Uint8Array> {
  const bytes = new Uint8Array(device.limits.sizeBytes);
  await device.read(0, bytes);
  return bytes;
}

/** Restored onto a disk full of something else. */
export async function restored(repository: Repository, backup: Backup): Promise<Uint8Array> {
  const target = deviceOf(new Uint8Array(backup.sizeBytes).fill(0xee));
  await repository.restore(backup.id, target);
  return await contentOf(target);
}

/** A small file with every bit flipped in its turn, cut short anywhere, and of zeros; what the bytes say mostly is something else then. */
export function* everyHurt(bytes: Uint8Array): Generator<readonly [string, Uint8Array]> {
  for (let bit = 0; bit < 8 * bytes.byteLength; bit += 1) {
    const flipped = bytes.slice();
    flipped[bit >> 3]! ^= 1 << (bit & 7);
    yield [`bit ${bit & 7} of byte ${bit >> 3} flipped`, flipped];
  }
  for (let length = 0; length < bytes.byteLength; length += 1)
    yield [`cut to ${length} bytes`, bytes.slice(0, length)];
  yield ['nothing but zeros', new Uint8Array(bytes.byteLength)];
}
