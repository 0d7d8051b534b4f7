/** Rollbacks that are cut short (I17): finished by whoever opens the array, cut short again wherever it be; or nobody reads it. */
import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleArray, createArray, openArray } from '../../lib/array/folder.ts';
import { inspectArray } from '../../lib/array/inspect.ts';
import { SNAPSHOT_STORE } from '../../lib/array/snapshots.ts';
import type { Device } from '../../lib/device/device.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { rollbackDueIn } from '../../lib/snapshot/origin.ts';
import { KIB, MIB } from '../../lib/units.ts';
import {
  bytesAt,
  bytesOf,
  copyFolder,
  expectSame,
  filled,
  newFolder,
  quiet,
  small,
  snapshotsOf,
} from './snapshot-folders.ts';

const PIECES = 6;
const PIECE = 64 * KIB;
const PIECE_STEP = 300 * KIB;

interface Cut {
  readonly folder: string;
  /** Of the snapshot. */
  readonly content: Uint8Array;
}

/** A folder as it is when a rollback to `one`, of pieces that lie apart, is killed half-way; `two` is a snapshot as well. */
async function cutRollback(options: object = small): Promise<Cut> {
  const folder = newFolder();
  const image = newFolder();
  await using array = await createArray(folder, { ...small, ...options });
  const content = filled(array.limits.sizeBytes, 1);
  await array.write(0, content);
  await snapshotsOf(array).create('two', { limitBytes: 8 * MIB });
  await snapshotsOf(array).create('one');
  for (let piece = 0; piece < PIECES; piece += 1) await array.write(piece * PIECE_STEP, filled(PIECE, 2));
  let isCut = false;
  await snapshotsOf(array).rollback('one', ({ doneBytes, totalBytes }) => {
    if (isCut || doneBytes < totalBytes / 2) return;
    isCut = true;
    copyFolder(folder, image);
  });
  expect(await rollbackDueIn(join(image, SNAPSHOT_STORE))).toBe('one');
  return { folder: image, content };
}

/** Opens it, with an image of the folder before each write to a member; returns where these are. */
async function imagesOfOpening(folder: string, open: (wrap: Wrap) => Promise<RaidArray>): Promise<string[]> {
  const images = newFolder();
  await mkdir(images);
  let count = 0;
  const opened = await open((device) => {
    const write = device.write.bind(device);
    device.write = (...request) => {
      count += 1;
      copyFolder(folder, join(images, String(count)));
      return write(...request);
    };
    return device;
  });
  await opened.close();
  return (await readdir(images)).map((name) => join(images, name));
}

/** Every copy that it has saved, which are all ones. */
async function rot(store: Device): Promise<void> {
  const bytes = await bytesOf(store);
  for (let at = 0; at < bytes.byteLength; at += 4096)
    if (bytes.subarray(at, at + 4096).every((byte) => byte === 1)) await store.write(at, filled(512, 3));
}

type Wrap = (device: Device) => Device;

const policies = [
  [
    'raid1 with a disk gone, which is put on record first',
    { level: 1, disks: 3, diskSize: '4M' },
    'disk1.img',
  ],
  ['raid5 with a partial parity log, which is replayed first', { ...small, consistencyPolicy: 'ppl' }, null],
  ['raid5 that is resynced', small, null],
  ['raid0', { ...small, level: 0 }, null],
] as const;

test.each(policies)(
  'finished, and killed at any write to a member meanwhile: %s',
  async (_what, shape, lost) => {
    const { folder, content } = await cutRollback(shape);
    if (lost !== null) await rm(join(folder, lost));
    const images = await imagesOfOpening(folder, (wrap) => openArray(folder, { ...quiet, wrap }));
    expect(images.length).toBeGreaterThan(PIECES);
    for (const image of images) {
      await using array = await openArray(image, quiet);
      expectSame(await bytesOf(array), content);
      for (const name of ['one', 'two']) expectSame(await bytesAt(array, name), content);
      await rm(image, { recursive: true });
    }
  },
  120_000,
);

test('with a disk gone that parity needs: forced, it is finished, killed at any write too, and no snapshot is valid', async () => {
  const { folder, content } = await cutRollback();
  await rm(join(folder, 'disk1.img'));
  await expect(openArray(folder, quiet)).rejects.toMatchObject({ code: 'DIRTY_DEGRADED' });
  const files = (at: string) => [0, 2].map((number) => join(at, `disk${number}.img`));
  const images = await imagesOfOpening(folder, (wrap) =>
    assembleArray(folder, files(folder), { ...quiet, wrap, force: true }),
  );
  expect(images.length).toBeGreaterThan(PIECES);
  for (const image of [folder, ...images]) {
    await using array = await openArray(image, quiet).catch(() =>
      assembleArray(image, files(image), { ...quiet, force: true }),
    );
    // Killed while a stripe is written, what the lost disk had of the rest of it may be lost.
    const found = await bytesOf(array);
    if (image === folder) expectSame(found, content);
    for (let piece = 0; piece < PIECES; piece += 1)
      expectSame(found.subarray(piece * PIECE_STEP, piece * PIECE_STEP + PIECE), filled(PIECE, 1));
    expect(snapshotsOf(array).list()).toMatchObject([{ state: 'invalid' }, { state: 'invalid' }]);
    await array.write(0, filled(1, 1));
  }
});

test('whoever may not finish it does not read half of each, and is told what does', async () => {
  const { folder, content } = await cutRollback();
  const told = expect.objectContaining({
    code: 'BUSY',
    message: expect.stringContaining(`raidsim snapshot rollback ${folder} one`),
  });
  expect((await inspectArray(folder)).snapshotProblem).toEqual(told);
  const files = [0, 1, 2].map((number) => join(folder, `disk${number}.img`));
  {
    await using array = await openArray(folder, { ...quiet, readOnly: true });
    await expect(bytesOf(array)).rejects.toEqual(told);
    expect(array.members).toHaveLength(3);
  }
  {
    await using array = await assembleArray(folder, files, { ...quiet, overlay: true });
    for (const refused of [bytesOf(array), array.write(0, filled(1, 1)), array.writeZeroes(0, 4096)])
      await expect(refused).rejects.toEqual(told);
  }
  await (await assembleArray(folder, files, quiet)).close();
  expect((await inspectArray(folder)).snapshotProblem).toBe(null);
  await using array = await openArray(folder, { ...quiet, readOnly: true });
  expectSame(await bytesOf(array), content);
});

test('the way out that leaves it half and half has to be asked for', async () => {
  const { folder } = await cutRollback();
  await using store = await FileDevice.open(join(folder, SNAPSHOT_STORE));
  await rot(store);
  await using array = await openArray(folder, quiet);
  await expect(snapshotsOf(array).deleteAll()).rejects.toThrow(/raidsim snapshot delete .* --all --force/);
  await expect(bytesOf(array)).rejects.toMatchObject({ code: 'BUSY' });
  await snapshotsOf(array).deleteAll({ force: true });
  expect([...new Set(await bytesOf(array))].toSorted()).toEqual([1, 2]);
  await array.write(0, filled(1, 1));
});

test('a forced assembly leaves no snapshot valid', async () => {
  const folder = newFolder();
  const image = newFolder();
  {
    await using array = await createArray(folder, small);
    await snapshotsOf(array).create('one', { limitBytes: 8 * MIB });
    await array.write(0, filled(MIB, 2));
    copyFolder(folder, image);
  }
  await rm(join(image, 'disk1.img'));
  const files = [0, 2].map((number) => join(image, `disk${number}.img`));
  await using array = await assembleArray(image, files, { ...quiet, force: true });
  expect(snapshotsOf(array).list()).toMatchObject([{ name: 'one', state: 'invalid' }]);
});

describe('something else wrote to the array before it was finished', () => {
  async function forked(): Promise<Cut> {
    const { folder, content } = await cutRollback();
    const files = [0, 1, 2].map((number) => join(folder, `disk${number}.img`));
    await using elsewhere = await assembleArray(newFolder(), files, quiet);
    await elsewhere.write(200 * KIB, filled(4 * KIB, 9));
    return { folder, content };
  }

  test('nobody reads or writes it, over openings, until that is asked for; then no snapshot is valid', async () => {
    const { folder, content } = await forked();
    for (let opening = 0; opening < 3; opening += 1) {
      await using array = await openArray(folder, quiet);
      const told = expect.objectContaining({
        code: 'FORKED_HISTORY',
        message: expect.stringContaining(`raidsim snapshot rollback ${folder} one --force`),
      });
      for (const refused of [bytesOf(array), array.write(0, filled(1, 1)), array.writeZeroes(0, 4096)])
        await expect(refused).rejects.toEqual(told);
      const snapshots = snapshotsOf(array);
      expect(() => snapshots.openSnapshot('one')).toThrow(
        expect.objectContaining({ code: 'FORKED_HISTORY' }),
      );
      await expect(snapshots.rollback('one')).rejects.toMatchObject({ code: 'FORKED_HISTORY' });
      await expect(snapshots.create('three')).rejects.toMatchObject({ code: 'FORKED_HISTORY' });
    }
    const images = await imagesOfOpening(folder, async (wrap) => {
      const array = await openArray(folder, { ...quiet, wrap });
      await snapshotsOf(array).rollback('one', undefined, { force: true });
      return array;
    });
    content.fill(9, 200 * KIB, 204 * KIB);
    for (const image of [folder, ...images]) {
      await using array = await openArray(image, quiet);
      const snapshots = snapshotsOf(array);
      if (snapshots.problemOfReads !== null) await snapshots.rollback('one', undefined, { force: true });
      expectSame(await bytesOf(array), content);
      expect(snapshots.list()).toMatchObject([{ state: 'invalid' }, { state: 'invalid' }]);
    }
  });
});

test('one that cannot be finished, as a copy has rotted: nobody reads or writes the array, over openings', async () => {
  const { folder } = await cutRollback();
  {
    await using store = await FileDevice.open(join(folder, SNAPSHOT_STORE));
    await rot(store);
  }
  for (let opening = 0; opening < 2; opening += 1) {
    expect((await inspectArray(folder)).status.rollbackTo).toBe('one');
    await using array = await openArray(folder, quiet);
    expect(array.status().rollbackTo).toBe('one');
    for (const refused of [bytesOf(array), array.write(0, filled(1, 1)), array.writeZeroes(0, 4096)])
      await expect(refused).rejects.toThrow(
        /half-way through a rollback to snapshot one .*raidsim snapshot rollback/,
      );
  }
});
