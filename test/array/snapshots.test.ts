/** Snapshots of an array in a folder: nothing that is done to the array changes one, or the snapshot says so (I17). */
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { expect, test } from 'vitest';
import { assembleArray, createArray, openArray } from '../../lib/array/folder.ts';
import { inspectArray } from '../../lib/array/inspect.ts';
import { clonesIn, SNAPSHOT_STORE } from '../../lib/array/snapshots.ts';
import { OverlayDevice } from '../../lib/device/overlay.ts';
import { seededRandom } from '../../lib/host.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { codeOf } from '../snapshot/world.ts';
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

test('whatever way the array is written, over openings, with a member failing and rebuilt', async () => {
  const folder = newFolder();
  const content = await withSnapshot(folder, { ...small, spares: 1 });
  {
    const array = await openArray(folder, { driver: 'event-loop' });
    await using opened = array;
    await opened.write(1000, [filled(5000, 1), filled(7, 2)]);
    await opened.writeZeroes(100_000, 90_000);
    await opened.discard(200_000, 4096);
    await opened.write(300_001, filled(1, 3), { fua: true });
    await opened.fail('disk1');
    await opened.write(MIB, filled(200_000, 4));
    for await (const _step of opened.rebuild());
    await opened.write(2 * MIB, filled(200_000, 5));
    for await (const _step of opened.scrub({ repair: true }));
    expectSame(await bytesAt(opened, 'one'), content);
  }
  const array = await openArray(folder, quiet);
  await using opened = array;
  expect(opened.degraded).toBe(0);
  expect(snapshotsOf(opened).list()).toMatchObject([{ name: 'one', state: 'valid' }]);
  expectSame(await bytesAt(opened, 'one'), content);
  await snapshotsOf(opened).rollback('one');
  expectSame(await bytesOf(opened), content);
});

test('a clone is opened once, and its file removed under nobody, in whatever order that is asked for at once', async () => {
  type Work = 'open' | 'delete clone' | 'delete snapshot' | 'delete all';
  const works: readonly Work[] = ['open', 'delete clone', 'delete snapshot', 'delete all'];
  const orders = works.flatMap((other) => [['open', other] as const, [other, 'open'] as const]);
  for (const isThere of [false, true]) {
    for (const order of orders) {
      await using array = await createArray(newFolder(), { ...small, level: 1, disks: 2 });
      const snapshots = snapshotsOf(array);
      await snapshots.create('one');
      if (isThere) await (await snapshots.openClone('one')).close();
      const ask: Record<Work, () => Promise<unknown>> = {
        open: () => snapshots.openClone('one'),
        'delete clone': () => snapshots.deleteClone('one'),
        'delete snapshot': () => snapshots.delete('one'),
        'delete all': () => snapshots.deleteAll({ force: true }),
      };
      const outcomes = await Promise.allSettled(order.map((work) => ask[work]()));
      const open = outcomes.flatMap((outcome) =>
        outcome.status === 'fulfilled' && outcome.value instanceof OverlayDevice ? [outcome.value] : [],
      );
      expect(open.length).toBeLessThan(2);
      for (const clone of open) {
        await clone.write(0, filled(4096, 7));
        await clone.close();
        await using again = await snapshots.openClone('one');
        const found = new Uint8Array(4096);
        await again.read(0, found);
        expectSame(found, filled(4096, 7));
      }
    }
  }
});

test("a file that only is called like a clone is nobody's to remove, nor one elsewhere", async () => {
  const folder = newFolder();
  await using array = await createArray(folder, { ...small, level: 1, disks: 2 });
  const snapshots = snapshotsOf(array);
  const precious = filled(5000, 1);
  // As a member would begin: with nothing in its first page.
  const blank = new Uint8Array(9000);
  const files = ['two.clone', 'disk9.clone', '../elsewhere.clone'].map((name) => join(folder, name));
  for (const file of files) await writeFile(file, file.includes('disk9') ? blank : precious);
  await snapshots.create('one');
  await snapshots.create('two');
  await (await snapshots.openClone('one')).close();
  expect(await clonesIn(folder, array.limits.sizeBytes)).toMatchObject([{ snapshot: 'one' }]);
  for (const name of ['two', 'disk9', '../elsewhere', `../${basename(folder)}/one`])
    expect([name, await snapshots.deleteClone(name)]).toEqual([name, false]);
  expect(await codeOf(() => snapshots.openClone('two'))).toBe('BAD_MAGIC');
  await snapshots.delete('two');
  expect(await codeOf(() => snapshots.deleteAll())).toBe('BUSY');
  await snapshots.deleteAll({ force: true });
  expect((await readdir(folder)).filter((file) => file.endsWith('.clone'))).toEqual([
    'disk9.clone',
    'two.clone',
  ]);
  for (const file of files) expectSame(await readFile(file), file.includes('disk9') ? blank : precious);
});

test('an array that is made in the place of another has neither its snapshots nor their clones', async () => {
  const folder = newFolder();
  for (const force of [false, true]) {
    await using array = await createArray(folder, { ...small, force });
    const snapshots = snapshotsOf(array);
    await snapshots.create('one');
    expect(await clonesIn(folder, array.limits.sizeBytes)).toEqual([]);
    await using clone = await snapshots.openClone('one');
    await clone.write(0, filled(4096, 7));
  }
});

test('taken while writes are under way, the first one too, which makes the store', () =>
  withSeed(runSeed, async () => {
    const random = seededRandom(runSeed);
    await using array = await createArray(newFolder(), { ...small, level: 1, disks: 2 });
    const seen = new Map<string, Uint8Array>();
    let isOver = false;
    const writer = async (): Promise<void> => {
      while (!isOver) {
        const lengthBytes = 1 + random(60_000);
        const at = random(array.limits.sizeBytes - lengthBytes);
        const source = filled(lengthBytes, random(256));
        const written = array.write(at, source);
        // An array has copied what it was given.
        source.fill(random(256));
        await written;
      }
    };
    const writers = Array.from({ length: 6 }, writer);
    for (let number = 0; number < 6; number += 1) {
      await snapshotsOf(array).create(`s${number}`, number === 0 ? { limitBytes: 64 * MIB } : {});
      seen.set(`s${number}`, await bytesAt(array, `s${number}`));
    }
    isOver = true;
    await Promise.all(writers);
    for (const [name, bytes] of seen) expectSame(await bytesAt(array, name), bytes);
  }));

test('raidsim in another folder: what was taken is invalid, and what changed since is unknown', async () => {
  const folder = newFolder();
  await withSnapshot(folder);
  let point = '';
  {
    const array = await openArray(folder, quiet);
    await using opened = array;
    const snapshots = snapshotsOf(opened);
    point = (await snapshots.create('two')).point;
    await snapshots.delete('two', { keepTracking: true });
    expect(snapshots.changedSince(point)).toEqual([]);
  }
  {
    const files = [0, 1, 2].map((number) => join(folder, `disk${number}.img`));
    const array = await assembleArray(newFolder(), files, quiet);
    await using elsewhere = array;
    expect(snapshotsOf(elsewhere).list()).toEqual([]);
    await elsewhere.write(0, filled(10, 1));
  }
  expect((await inspectArray(folder)).status.snapshots).toMatchObject([{ name: 'one', state: 'invalid' }]);
  const array = await openArray(folder, quiet);
  await using opened = array;
  expect(snapshotsOf(opened).list()).toMatchObject([{ name: 'one', state: 'invalid' }]);
  expect(() => snapshotsOf(opened).openSnapshot('one')).toThrow(
    expect.objectContaining({ code: 'REDUNDANCY_LOST' }),
  );
  await expect(snapshotsOf(opened).rollback('one')).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
  expect(snapshotsOf(opened).changedSince(point)).toBe('unknown');
  // It goes on from here.
  await snapshotsOf(opened).create('three');
  const before = await bytesOf(opened);
  await opened.write(0, filled(MIB, 8));
  expectSame(await bytesAt(opened, 'three'), before);
});

test.each(['0', 'linear', '5'])(
  'raid%s elsewhere, after a crash in both folders: it is noticed',
  async (level) => {
    const folder = newFolder();
    const [cut, cutAgain] = [newFolder(), newFolder()];
    await withSnapshot(folder, { ...small, level });
    {
      const array = await openArray(folder, quiet);
      await using opened = array;
      await opened.write(4 * MIB, filled(512, 3));
      copyFolder(folder, cut);
    }
    {
      const files = [0, 1, 2].map((number) => join(cut, `disk${number}.img`));
      const array = await assembleArray(newFolder(), files, quiet);
      await using elsewhere = array;
      await elsewhere.write(0, filled(MIB, 9));
      copyFolder(cut, cutAgain);
    }
    const array = await openArray(cutAgain, quiet);
    await using opened = array;
    expect(snapshotsOf(opened).list()).toMatchObject([{ name: 'one', state: 'invalid' }]);
  },
);

test.each([
  ['raid5', '5', []],
  ['raid0, which the kernel may have written without a trace', '0', 'unknown'],
  ['linear, likewise', 'linear', 'unknown'],
])('what changed since a point, after another opening, of %s', async (_what, level, wanted) => {
  const folder = newFolder();
  const content = await withSnapshot(folder, { ...small, level });
  const points: string[] = [];
  {
    const array = await openArray(folder, quiet);
    await using opened = array;
    const { point } = await snapshotsOf(opened).create('two');
    points.push(point, (await snapshotsOf(opened).create('three')).point);
    await snapshotsOf(opened).delete('two', { keepTracking: true });
    expect(points.map((each) => snapshotsOf(opened).changedSince(each))).toEqual([[], []]);
  }
  const array = await openArray(folder, quiet);
  await using opened = array;
  expect(points.map((each) => snapshotsOf(opened).changedSince(each))).toEqual([wanted, wanted]);
  expectSame(await bytesAt(opened, 'one'), content);
  const { point } = await snapshotsOf(opened).create('four');
  await opened.write(0, filled(4096, 1));
  expect(snapshotsOf(opened).changedSince(point)).toEqual([{ offsetBytes: 0, lengthBytes: 4096 }]);
});

test('a folder that was copied and put back: what was taken in between is unknown there', async () => {
  const folder = newFolder();
  await withSnapshot(folder);
  const kept = newFolder();
  copyFolder(folder, kept);
  const tracked = async (at: string, name: string): Promise<string> => {
    const array = await openArray(at, quiet);
    await using opened = array;
    await opened.write(0, filled(MIB, 2));
    const { point } = await snapshotsOf(opened).create(name);
    await snapshotsOf(opened).delete(name, { keepTracking: true });
    return point;
  };
  const before = await tracked(folder, 'two');
  await tracked(kept, 'three');
  const array = await openArray(kept, quiet);
  await using opened = array;
  await opened.write(2 * MIB, filled(MIB, 3));
  await snapshotsOf(opened).create('four');
  expect(snapshotsOf(opened).changedSince(before)).toBe('unknown');
  expect(snapshotsOf(opened).changedSince(before, 'four')).toBe('unknown');
});

test("half a store, left by a crash while it was made, is in nobody's way", async () => {
  const folder = newFolder();
  await createArray(folder, small).then((array) => array.close());
  await writeFile(join(folder, `${SNAPSHOT_STORE}.new`), Buffer.alloc(100_000, 1));
  const array = await openArray(folder, quiet);
  await using opened = array;
  await opened.write(0, filled(1, 1));
  await snapshotsOf(opened).create('one');
  expect(snapshotsOf(opened).list()).toHaveLength(1);
});

test('the first snapshot waits for what was being written when its store was made', async () => {
  const folder = newFolder();
  await createArray(folder, { ...small, level: 1, disks: 2 }).then((array) => array.close());
  let release: () => void = () => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  let isHeld = false;
  const array = await openArray(folder, {
    ...quiet,
    wrap: (device) => {
      const write = device.write.bind(device);
      device.write = (at, source, options) => {
        const isData = !(source instanceof Uint8Array) || source.byteLength === 7 * KIB;
        if (!isData) return write(at, source, options);
        isHeld = true;
        return held.then(() => write(at, source, options));
      };
      return device;
    },
  });
  await using opened = array;
  const written = opened.write(0, filled(7 * KIB, 1));
  while (!isHeld) await new Promise((turn) => setImmediate(turn));
  let isTaken = false;
  const taken = snapshotsOf(opened)
    .create('one')
    .then(() => {
      isTaken = true;
    });
  while (snapshotsOf(opened).origin === null) await new Promise((turn) => setImmediate(turn));
  // What has its own store to wait for comes back by then.
  await opened.flush();
  await opened.flush();
  expect(isTaken).toBe(false);
  release();
  await Promise.all([written, taken]);
  expectSame((await bytesAt(opened, 'one')).subarray(0, 7 * KIB), filled(7 * KIB, 1));
});
