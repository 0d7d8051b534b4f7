/**
 * The law of redundancy: of a group of packs with r parity files, any r files may be lost or rotten and are made again,
 * byte for byte; with one more, what is lost is named, and everything else stays as it is.
 */
import { expect } from 'vitest';
import { headerEnd } from '../../lib/backup/parity.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { seededRandom } from '../../lib/host.ts';
import { randomBytes } from '../conformance/seed.ts';
import { deviceOf, expectSame, MemoryStore, newRepository, restored } from './world.ts';

function packsOf({ files }: MemoryStore): readonly string[] {
  return [...files.keys()].filter((name) => name.startsWith('packs/')).sort();
}

/** Bits of byte `index` of a header: all of them, or one, each in its turn. */
export type BitsOf = (index: number) => readonly number[];

/**
 * Bits flipped in the header of one parity file: what it says is then mostly still a list of packs, which are not these. Nothing may be
 * concluded from that but that this file is damaged.
 */
export async function flipHeaders(redundancy: 1 | 2, bitsOf: BitsOf): Promise<void> {
  const { store: whole, image } = await groupOf(2, redundancy);
  for (const path of [...whole.files.keys()].filter((name) => name.startsWith('parity/'))) {
    const good = whole.files.get(path)!;
    for (let index = 0; index < headerEnd(good)!; index += 1) {
      for (const bit of bitsOf(index)) {
        const what = `bit ${bit} of byte ${index} of ${path}`;
        const store = new MemoryStore(whole.files);
        const bytes = good.slice();
        bytes[index]! ^= 1 << bit;
        store.files.set(path, bytes);
        const repository = await Repository.open(store);
        const [backup] = await repository.list();
        expectSame(await restored(repository, backup!), image, what);
        const before = await repository.verify({ readPercent: 100 });
        expect(
          before?.damaged.map(({ name }) => name),
          what,
        ).toEqual([path]);
        expect(before?.lost, what).toEqual([]);
        expect(await repository.repair(), what).toMatchObject({ damaged: [], lost: [] });
        expect(packsOf(store), what).toEqual(packsOf(whole));
        // Where there was another parity file, there still is a group of this name.
        if (redundancy === 2) expectSame(store.files.get(path)!, good, what);
        expect(await repository.verify({ readPercent: 100 }), what).toMatchObject({
          damaged: [],
          lost: [],
          unprotected: [],
        });
        expectSame(await restored(repository, backup!), image, what);
      }
    }
  }
}

/** All subsets of so many of the indices below `count`. */
export function subsets(count: number, size: number, from = 0): number[][] {
  if (size === 0) return [[]];
  const found: number[][] = [];
  for (let first = from; first <= count - size; first += 1) {
    for (const rest of subsets(count, size - 1, first + 1)) found.push([first, ...rest]);
  }
  return found;
}

/** A repository with one group of so many packs, and its image. */
async function groupOf(packs: number, redundancy: 1 | 2): Promise<{ store: MemoryStore; image: Uint8Array }> {
  const store = new MemoryStore();
  const repository = await newRepository(store, {
    redundancy,
    groupPacks: packs,
    packBytes: 2000,
    pageChunks: 1000,
  });
  // Incompressible, two chunks and their share of a table a pack; the page goes into the last one.
  const image = randomBytes(seededRandom(packs), packs * 2048 - 1030);
  await repository.createBackup({ source: deviceOf(image), array: 'demo' });
  expect([...store.files.keys()].filter((name) => name.startsWith('packs/'))).toHaveLength(packs);
  expect([...store.files.keys()].filter((name) => name.startsWith('parity/'))).toHaveLength(redundancy);
  return { store, image };
}

/** `turn` is another number each time. */
const hurts: readonly (readonly [string, (bytes: Uint8Array, turn: number) => Uint8Array | null])[] = [
  ['lost', () => null],
  ['rotten', (bytes) => bytes.map((byte, index) => (index === bytes.byteLength >> 1 ? byte ^ 4 : byte))],
  ['cut short', (bytes) => bytes.slice(0, bytes.byteLength - 5)],
  ['empty noise', () => new Uint8Array(100).fill(0x5a)],
  [
    'rotten where a parity file has its list',
    (bytes, turn) => {
      const at = 87 + ((37 * turn) % Math.min(300, bytes.byteLength - 87));
      return bytes.map((byte, index) => (index === at ? byte ^ (1 << (turn & 3)) : byte));
    },
  ],
];

function hurt(store: MemoryStore, name: string, how: number, turn: number): void {
  const bytes = hurts[how % hurts.length]![1](store.files.get(name)!, turn);
  if (bytes === null) store.files.delete(name);
  else store.files.set(name, bytes);
}

/** Every so many files of a group, in every way of being hurt. */
export async function loseAll(packs: number, redundancy: 1 | 2): Promise<void> {
  const { store: whole, image } = await groupOf(packs, redundancy);
  const files = [...whole.files.keys()].filter((name) => /^(packs|parity)\//.test(name));
  let how = 0;
  for (let count = 1; count <= redundancy; count += 1) {
    for (const lost of subsets(files.length, count)) {
      for (let turn = 0; turn < hurts.length; turn += 1) {
        const store = new MemoryStore(whole.files);
        const names = lost.map((index) => files[index]!);
        for (const [index, name] of names.entries()) hurt(store, name, turn + index * how, how + index);
        how += 1;
        const repository = await Repository.open(store);
        const before = await repository.verify({ readPercent: 100 });
        expect(before?.lost).toEqual([]);
        const [backup] = await repository.list();
        expectSame(await restored(repository, backup!), image, `restored without ${names}`);
        const report = await repository.repair();
        expect(report).toMatchObject({ damaged: [], lost: [] });
        const isAllParity = names.every((name) => name.startsWith('parity/')) && count === redundancy;
        for (const name of files) {
          // With all parity gone nobody knows what the group was called.
          if (isAllParity && name.startsWith('parity/')) continue;
          expectSame(store.files.get(name)!, whole.files.get(name)!, `${name} after ${names}`);
        }
        expect(await repository.verify({ readPercent: 100 })).toMatchObject({
          damaged: [],
          lost: [],
          unprotected: [],
        });
      }
    }
  }
}

/** One file too many of a group of five, packs or parity, and a pack at least: the first file lost, and the others hurt in some way. */
export async function loseTooMany(redundancy: 1 | 2): Promise<void> {
  const { store: whole, image } = await groupOf(5, redundancy);
  const files = [...whole.files.keys()].filter((name) => /^(packs|parity)\//.test(name));
  let how = 0;
  for (const lost of subsets(files.length, redundancy + 1)) {
    const store = new MemoryStore(whole.files);
    const names = lost.map((index) => files[index]!);
    const packs = names.filter((name) => name.startsWith('packs/'));
    if (packs.length === 0) continue;
    for (const [index, name] of names.entries()) {
      // A pack that is cut short has lost its table as well; this is about what every chunk of a pack is worth.
      hurt(store, name, index === 0 ? 0 : name.startsWith('packs/') ? 1 : how, how);
      how += 1;
    }
    const damaged = new Map(store.files);
    const repository = await Repository.open(store);
    const report = await repository.repair();
    const rotten = names.filter((name) => name.startsWith('parity/') && store.files.has(name));
    expect(report.damaged.map(({ name }) => name).sort(), `${names}`).toEqual([...packs, ...rotten].sort());
    for (const [name, bytes] of damaged) {
      if (!name.startsWith('locks/')) expectSame(store.files.get(name)!, bytes, `${name} after ${names}`);
    }
    const verified = await repository.verify({ readPercent: 100 });
    expect(verified?.lost).toEqual(report.lost);
    const [backup] = await repository.list();
    const target = deviceOf(new Uint8Array(image.byteLength).fill(0xee));
    const error = await repository.restore(backup!.id, target).then(
      () => null,
      (cause: unknown) => cause,
    );
    expect(error).toMatchObject({ code: 'REDUNDANCY_LOST', place: { lost: report.lost[0]?.lost } });
    const bytes = new Uint8Array(image.byteLength);
    await target.read(0, bytes);
    const wanted = image.slice();
    for (const { offsetBytes, lengthBytes } of report.lost[0]!.lost)
      wanted.fill(0xee, offsetBytes, offsetBytes + lengthBytes);
    expectSame(bytes, wanted, 'what was restored');
  }
}
