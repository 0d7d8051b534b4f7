/** The same (I17), for what takes longer: stores that cannot be used, sizes that change, rollbacks that are cut short. */
import { existsSync } from 'node:fs';
import promises, { readFile, stat, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { afterEach, describe, expect, onTestFinished, test } from 'vitest';
import { assembleArray, createArray, growArray, openArray } from '../../lib/array/folder.ts';
import { inspectArray } from '../../lib/array/inspect.ts';
import { SNAPSHOT_STORE } from '../../lib/array/snapshots.ts';
import { superblockOn } from '../../lib/array/superblocks.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { RaidError } from '../../lib/errors.ts';
import { encodeSuperblock1 } from '../../lib/md/superblock1.ts';
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
  withSnapshot,
} from './snapshot-folders.ts';

describe('a snapshot stays what it was', () => {
  test('what a caller does to a buffer after the call is not written', async () => {
    const folder = newFolder();
    await withSnapshot(folder);
    const array = await openArray(folder, quiet);
    await using opened = array;
    const source = filled(50_000, 7);
    const written = opened.write(123, source);
    source.fill(9);
    await written;
    expectSame((await bytesOf(opened)).subarray(123, 50_123), filled(50_000, 7));
  });

  test('the spare of an array that has snapshots takes over by itself as ever', async () => {
    const folder = newFolder();
    await withSnapshot(folder, { ...small, spares: 1 });
    {
      const array = await openArray(folder, quiet);
      await using opened = array;
      await opened.fail('disk0');
    }
    const array = await openArray(folder, { driver: 'event-loop' });
    await using opened = array;
    for (const end = performance.now() + 60_000; opened.degraded > 0; ) {
      expect(performance.now()).toBeLessThan(end);
      await new Promise((turn) => setImmediate(turn));
    }
    expect(opened.members.find(({ name }) => name === 'disk3')?.state).toMatchObject({ slot: 0 });
  });
});

describe('who writes past the store is noticed', () => {
  test('Linux, which takes its count of events back: the time of its last update differs', async () => {
    const folder = newFolder();
    await withSnapshot(folder);
    for (const number of [0, 1, 2]) {
      await using file = await FileDevice.open(join(folder, `disk${number}.img`));
      const superblock = await superblockOn(file);
      const utime = { ...superblock.utime, seconds: superblock.utime.seconds + 1 };
      const bytes = encodeSuperblock1({ ...superblock, utime });
      await file.write(superblock.superSector * 512, bytes);
    }
    const array = await openArray(folder, quiet);
    await using opened = array;
    expect(snapshotsOf(opened).list()).toMatchObject([{ name: 'one', state: 'invalid' }]);
  });

  test('nobody was there: openings, writes and a failure leave snapshots valid', async () => {
    const folder = newFolder();
    const content = await withSnapshot(folder);
    for (let turn = 0; turn < 5; turn += 1) {
      const array = await openArray(folder, quiet);
      await using opened = array;
      if (turn % 2 === 1) await opened.write(turn * 100_000, filled(5000, turn));
      if (turn === 2) await opened.fail('disk2');
      expectSame(await bytesAt(opened, 'one'), content);
    }
  });
});

describe('a store that cannot be used', () => {
  test.each([
    ['damaged', (bytes: Buffer) => bytes.fill(0x5a, 0, 4096)],
    ['cut off', (bytes: Buffer) => bytes.subarray(0, 8192)],
  ])('%s: the array is read and rebuilt, writes are refused until it is dropped', async (_how, harm) => {
    const folder = newFolder();
    const content = await withSnapshot(folder);
    const path = join(folder, SNAPSHOT_STORE);
    await writeFile(path, harm(await readFile(path)));
    expect((await inspectArray(folder)).snapshotProblem).not.toBe(null);
    const array = await openArray(folder, quiet);
    await using opened = array;
    expectSame(await bytesOf(opened), content);
    await opened.fail('disk0');
    for (const refused of [opened.write(0, filled(1, 1)), opened.writeZeroes(0, 4096)])
      await expect(refused).rejects.toThrow(/raidsim snapshot delete .* --all/);
    await expect(snapshotsOf(opened).create('two')).rejects.toThrow(/cannot be used/);
    await snapshotsOf(opened).deleteAll();
    await opened.write(0, filled(1, 1));
    await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' });
    await snapshotsOf(opened).create('two');
  });

  test('of another array: the folder was made anew by copying disks into it', async () => {
    const folder = newFolder();
    await withSnapshot(folder);
    const other = newFolder();
    await withSnapshot(other);
    await writeFile(join(other, SNAPSHOT_STORE), await readFile(join(folder, SNAPSHOT_STORE)));
    const array = await openArray(other, quiet);
    await using opened = array;
    await expect(opened.write(0, filled(1, 1))).rejects.toThrow(/belongs to/);
  });
});

test('an array that only is read, or writes to an overlay, leaves the store alone', async () => {
  const folder = newFolder();
  const content = await withSnapshot(folder);
  const path = join(folder, SNAPSHOT_STORE);
  const before = await readFile(path);
  {
    const array = await openArray(folder, { ...quiet, readOnly: true });
    await using opened = array;
    expect(opened.snapshots).toBe(null);
  }
  const files = [0, 1, 2].map((number) => join(folder, `disk${number}.img`));
  {
    const array = await assembleArray(folder, files, { ...quiet, overlay: true });
    await using opened = array;
    expect(opened.snapshots).toBe(null);
    await opened.write(0, filled(MIB, 1));
  }
  expectSame(await readFile(path), before);
  const array = await assembleArray(folder, files, quiet);
  await using opened = array;
  expectSame(await bytesAt(opened, 'one'), content);
});

test('an array does not grow under its snapshots, and does when they are gone', async () => {
  const folder = newFolder();
  await withSnapshot(folder);
  await expect(growArray(folder, { size: '6M' }, quiet)).rejects.toMatchObject({ code: 'BUSY' });
  {
    const array = await openArray(folder, quiet);
    await using opened = array;
    await snapshotsOf(opened).delete('one', { keepTracking: true });
  }
  const grown = await growArray(folder, { size: '6M' }, quiet);
  await using opened = grown;
  await snapshotsOf(opened).create('two');
  await opened.write(opened.limits.sizeBytes - 4096, filled(4096, 1));
});

test('an array made anew in the place of another has none of its snapshots', async () => {
  const folder = newFolder();
  await withSnapshot(folder);
  const array = await createArray(folder, { ...small, force: true });
  await using opened = array;
  expect(snapshotsOf(opened).list()).toEqual([]);
  await opened.write(0, filled(1, 1));
});

test('dropping the store while writes are under way loses none of them', async () => {
  const folder = newFolder();
  await withSnapshot(folder);
  const array = await openArray(folder, quiet);
  await using opened = array;
  const lengthBytes = 32 * KIB;
  const writes = Array.from({ length: 60 }, (_, index) =>
    opened.write(index * lengthBytes, filled(lengthBytes, index + 1)),
  );
  const dropped = snapshotsOf(opened).deleteAll();
  const later = Array.from({ length: 40 }, (_, index) =>
    opened.write((60 + index) * lengthBytes, filled(lengthBytes, 61 + index)),
  );
  await Promise.all([...writes, dropped, ...later]);
  const bytes = await bytesOf(opened);
  for (let index = 0; index < 100; index += 1)
    expect([bytes[index * lengthBytes], bytes[(index + 1) * lengthBytes - 1]]).toEqual([
      index + 1,
      index + 1,
    ]);
});

test('dropping the store loses none of the small writes that it holds, whatever comes after', async () => {
  const folder = newFolder();
  await withSnapshot(folder);
  const array = await openArray(folder, quiet);
  await using opened = array;
  const lengthBytes = 4 * KIB;
  const write = (index: number, value: number) =>
    opened.write(index * lengthBytes, filled(lengthBytes, value));
  await Promise.all(Array.from({ length: 500 }, (_, index) => write(index, 1)));
  const dropped = snapshotsOf(opened).deleteAll();
  // Over what is held, by whichever way they go.
  for (let index = 0; index < 500; index += 1) await write(index, 2 + (index % 200));
  await dropped;
  for (let index = 0; index < 500; index += 5) await write(index, 255);
  const bytes = await bytesOf(opened);
  for (let index = 0; index < 500; index += 1)
    expect(bytes[index * lengthBytes]).toBe(index % 5 === 0 ? 255 : 2 + (index % 200));
  expect(existsSync(join(folder, SNAPSHOT_STORE))).toBe(false);
});

test.each([0, 5])(
  'raid%i: a store that records nothing more costs its snapshots, for ever, and not one write',
  async (level) => {
    const folder = newFolder();
    await withSnapshot(folder, { ...small, level });
    const image = newFolder();
    const real = FileDevice.prototype.flush;
    let expected: Uint8Array = new Uint8Array();
    {
      await using array = await openArray(folder, quiet);
      const isStore = (device: FileDevice) => device.name.endsWith(SNAPSHOT_STORE);
      FileDevice.prototype.flush = function (this: FileDevice) {
        if (isStore(this)) return Promise.reject(new RaidError('FLUSH_FAILED', 'no'));
        return real.call(this);
      };
      onTestFinished(() => {
        FileDevice.prototype.flush = real;
      });
      await Promise.all(
        Array.from({ length: 40 }, (_, index) => array.write(index * 64 * KIB, filled(4 * KIB, 100 + index))),
      );
      await array.write(3 * MIB, filled(MIB, 99));
      await array.flush();
      expect(snapshotsOf(array).list()).toMatchObject([{ name: 'one', state: 'invalid' }]);
      await expect(snapshotsOf(array).create('two')).rejects.toThrow('open it again');
      expected = await bytesOf(array);
      expect([expected[39 * 64 * KIB], expected[3 * MIB]]).toEqual([139, 99]);
      FileDevice.prototype.flush = real;
      copyFolder(folder, image);
    }
    for (const each of [folder, image]) {
      await using array = await openArray(each, quiet);
      expectSame(await bytesOf(array), expected);
      expect(snapshotsOf(array).list()).toMatchObject([{ name: 'one', state: 'invalid' }]);
    }
  },
);

describe('the store is dropped', () => {
  const remove = promises.rm;
  afterEach(() => {
    promises.rm = remove;
    syncBuiltinESMExports();
  });
  /** Before the store's file is removed. */
  function whenRemoved(removing: () => Promise<void>): void {
    promises.rm = async (path, options) => {
      if (String(path).endsWith(SNAPSHOT_STORE)) await removing();
      await remove(path, options);
    };
    syncBuiltinESMExports();
  }

  test('nothing goes past it before it is gone: killed in between, its snapshots are right', async () => {
    const folder = newFolder();
    const image = newFolder();
    const content = await withSnapshot(folder);
    {
      await using array = await openArray(folder, quiet);
      await array.write(4 * MIB, filled(512, 3));
      const writes: Promise<void>[] = [];
      whenRemoved(async () => {
        writes.push(array.write(0, filled(MIB, 9)));
        for (let turn = 0; turn < 200; turn += 1) await new Promise((done) => setImmediate(done));
        copyFolder(folder, image);
      });
      await snapshotsOf(array).deleteAll();
      await Promise.all(writes);
      expect(snapshotsOf(array).origin).toBe(null);
    }
    await using array = await openArray(image, quiet);
    expectSame(await bytesAt(array, 'one'), content);
  });

  test('where its file cannot be removed, it is in use as before', async () => {
    const folder = newFolder();
    const image = newFolder();
    const content = await withSnapshot(folder);
    await using array = await openArray(folder, quiet);
    whenRemoved(() => Promise.reject(Object.assign(new Error('EPERM'), { code: 'EPERM' })));
    await expect(snapshotsOf(array).deleteAll()).rejects.toThrow('EPERM');
    await array.write(0, filled(MIB, 9));
    copyFolder(folder, image);
    await using again = await openArray(image, quiet);
    for (const each of [array, again]) expectSame(await bytesAt(each, 'one'), content);
  });
});

test('a snapshot that is being read cannot be deleted, alone or with all', async () => {
  const folder = newFolder();
  await withSnapshot(folder);
  const array = await openArray(folder, quiet);
  await using opened = array;
  {
    await using _reading = snapshotsOf(opened).openSnapshot('one');
    await expect(snapshotsOf(opened).delete('one')).rejects.toMatchObject({ code: 'BUSY' });
    await expect(snapshotsOf(opened).deleteAll()).rejects.toMatchObject({ code: 'BUSY' });
  }
  await snapshotsOf(opened).delete('one');
});

test('a rollback that was cut short is finished by whoever opens the array, before anybody reads it', async () => {
  const folder = newFolder();
  const content = await withSnapshot(folder);
  const copy = newFolder();
  {
    const array = await openArray(folder, quiet);
    await using opened = array;
    await opened.write(0, filled(3 * MIB, 6));
    let isCopied = false;
    await snapshotsOf(opened).rollback('one', ({ doneBytes, totalBytes }) => {
      if (doneBytes === totalBytes || isCopied) return;
      copyFolder(folder, copy);
      isCopied = true;
    });
    expect(isCopied).toBe(true);
    expectSame(await bytesOf(opened), content);
  }
  const array = await openArray(copy, quiet);
  await using opened = array;
  expect(snapshotsOf(opened).problem).toBe(null);
  expectSame(await bytesOf(opened), content);
});

test('the store is dropped after a rollback that is under way, and writes come after both', async () => {
  const folder = newFolder();
  const content = await withSnapshot(folder);
  const array = await openArray(folder, quiet);
  await using opened = array;
  await opened.write(0, filled(3 * MIB, 6));
  const rolled = snapshotsOf(opened).rollback('one');
  const dropped = snapshotsOf(opened).deleteAll();
  await new Promise((turn) => setImmediate(turn));
  const written = opened.write(MIB, filled(100_000, 7));
  await Promise.all([rolled, dropped, written]);
  content.fill(7, MIB, MIB + 100_000);
  expectSame(await bytesOf(opened), content);
  expect(snapshotsOf(opened).usage()).toBe(null);
});
