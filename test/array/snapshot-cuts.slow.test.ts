/**
 * The array's own half of I17, cut short everywhere. A life of an array with snapshots does one thing; at every write to a
 * member or to the store, in the opening and the close too, the folder is copied as a kill would leave it. Each copy is
 * opened as it is; and some with a disk gone, cut short once more within that opening, or after another folder wrote to the members.
 *
 *   the array       holds the old or the new, sector by sector; after a rollback wholly the one or the other
 *   each snapshot   is what it was, or is said to be invalid; and that only where somebody else wrote
 *   changedSince    covers what really differs, or does not know; of a point of another line it never knows
 */
import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleArray, createArray, openArray } from '../../lib/array/folder.ts';
import { SNAPSHOT_STORE } from '../../lib/array/snapshots.ts';
import type { Device } from '../../lib/device/device.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { RaidError } from '../../lib/errors.ts';
import { rollbackDueIn } from '../../lib/snapshot/origin.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../lib/units.ts';
import { bytesAt, bytesOf, copyFolder, filled, newFolder, quiet, snapshotsOf } from './snapshot-folders.ts';

interface Shape {
  readonly level: number;
  readonly disks: number;
  readonly chunk?: string;
}

const shapes: readonly (readonly [string, Shape])[] = [
  ['raid1', { level: 1, disks: 2 }],
  ['raid5', { level: 5, disks: 3, chunk: '64K' }],
];

/** What a life does, and what the array holds then. */
interface Verb {
  readonly name: string;
  readonly run: (array: RaidArray) => Promise<void>;
  readonly after: (before: Uint8Array, one: Uint8Array) => Uint8Array;
  readonly deletes?: true;
}

const pieces = [
  [0, 16 * KIB],
  [300 * KIB, 512],
  [304 * KIB, 4 * KIB],
  [500 * KIB + 512, 9 * KIB],
] as const;

const same = (before: Uint8Array): Uint8Array => before;

const verbs: readonly Verb[] = [
  {
    name: 'write',
    run: async (array) => {
      await Promise.all(pieces.map(([at, length]) => array.write(at, filled(length, 251))));
      await array.write(40 * KIB, filled(128 * KIB, 252));
      await array.flush();
    },
    after: (before) => {
      const after = before.slice();
      for (const [at, length] of pieces) after.fill(251, at, at + length);
      return after.fill(252, 40 * KIB, 168 * KIB);
    },
  },
  {
    name: 'take',
    run: async (array) => {
      await snapshotsOf(array).create('two');
    },
    after: same,
  },
  { name: 'delete', run: (array) => snapshotsOf(array).delete('one'), after: same, deletes: true },
  { name: 'delete all', run: (array) => snapshotsOf(array).deleteAll(), after: same, deletes: true },
  { name: 'rollback', run: (array) => snapshotsOf(array).rollback('one'), after: (_, one) => one.slice() },
  { name: 'fail', run: (array) => array.fail('disk0'), after: same },
];

interface Line {
  readonly one: Uint8Array;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
  readonly isWhole: boolean;
  readonly mayLackOne: boolean;
  /** Of a snapshot that was taken after the copy was made, by now. */
  readonly foreignPoint: string | null;
}

/** With a copy of the folder before each write to one of its members or its store; `work` closes the array. */
async function cutAt(
  folder: string,
  images: string,
  work: (wrap: (device: Device) => Device) => Promise<unknown>,
): Promise<readonly string[]> {
  await mkdir(images, { recursive: true });
  let count = 0;
  const note = (): void => {
    count += 1;
    copyFolder(folder, join(images, String(count).padStart(4, '0')));
  };
  const noting = (device: Device): Device => {
    const write = device.write.bind(device);
    device.write = (...request) => {
      note();
      return write(...request);
    };
    return device;
  };
  const { open } = FileDevice;
  FileDevice.open = async (path, options) => {
    const file = await open.call(FileDevice, path, options);
    if (path === join(folder, SNAPSHOT_STORE)) noting(file);
    return file;
  };
  try {
    await work(noting);
  } finally {
    FileDevice.open = open;
  }
  return (await readdir(images)).sort().map((name) => join(images, name));
}

function mixed(found: Uint8Array, before: Uint8Array, after: Uint8Array): number | null {
  for (let at = 0; at < found.byteLength; at += SECTOR_BYTES) {
    const sector = found.subarray(at, at + SECTOR_BYTES);
    const isOld = Buffer.compare(sector, before.subarray(at, at + SECTOR_BYTES)) === 0;
    if (!isOld && Buffer.compare(sector, after.subarray(at, at + SECTOR_BYTES)) !== 0) return at;
  }
  return null;
}

function judgeTracking(array: RaidArray, point: string, then: Uint8Array, content: Uint8Array): void {
  const changed = snapshotsOf(array).changedSince(point);
  if (changed === 'unknown') return;
  const covered = then.slice();
  for (const { offsetBytes, lengthBytes } of changed)
    covered.set(content.subarray(offsetBytes, offsetBytes + lengthBytes), offsetBytes);
  if (Buffer.compare(covered, content) !== 0) throw new Error('something has changed that nobody knows of');
}

async function judge(array: RaidArray, line: Line, isOthers: boolean): Promise<void> {
  const content = await bytesOf(array);
  const at = mixed(content, line.before, line.after);
  if (at !== null) throw new Error(`the array holds neither the old nor the new at ${at}`);
  const isOne = [line.before, line.after].some((each) => Buffer.compare(content, each) === 0);
  if (line.isWhole && !isOne) throw new Error('the array holds some of the old and some of the new');
  const list = snapshotsOf(array).list();
  const one = list.find(({ name }) => name === 'one');
  if (one === undefined && !line.mayLackOne) throw new Error('the snapshot is gone');
  if (one !== undefined && one.state !== 'valid' && !isOthers) throw new Error('the snapshot is invalid');
  if (one?.state === 'valid') {
    if (isOthers) throw new Error('the snapshot is valid, though another wrote');
    if (Buffer.compare(await bytesAt(array, 'one'), line.one) !== 0) throw new Error('the snapshot is wrong');
    judgeTracking(array, one.point, line.one, content);
  }
  const two = list.find(({ name }) => name === 'two');
  if (two?.state === 'valid' && Buffer.compare(await bytesAt(array, 'two'), line.before) !== 0)
    throw new Error('the second snapshot is wrong');
  const { foreignPoint } = line;
  if (foreignPoint !== null && two?.point !== foreignPoint)
    expect(snapshotsOf(array).changedSince(foreignPoint)).toBe('unknown');
}

/** Another two, of another instant, in a folder that was put back: nothing is known of what came of the first. */
async function goOn(array: RaidArray, line: Line): Promise<void> {
  if (
    line.foreignPoint === null ||
    snapshotsOf(array)
      .list()
      .some(({ name }) => name === 'two')
  )
    return;
  await array.write(700 * KIB, filled(4 * KIB, 9));
  await snapshotsOf(array).create('two');
  expect(snapshotsOf(array).changedSince(line.foreignPoint)).toBe('unknown');
}

async function judgeImage(image: string, line: Line, isOthers = false): Promise<void> {
  await using array = await openArray(image, quiet);
  await judge(array, line, isOthers);
  if (!isOthers) await goOn(array, line);
}

/** One disk less; and within the opening that finds this out, cut short again, at one in four of its writes. */
async function judgeDegraded(
  image: string,
  line: Line,
  lost: string,
  tally: { refused: number; again: number },
): Promise<void> {
  await rm(join(image, lost));
  const images = newFolder();
  let cuts: readonly string[] = [];
  try {
    cuts = await cutAt(image, images, async (wrap) => {
      await using array = await openArray(image, { ...quiet, wrap });
      await judge(array, line, false);
      await array.write(line.before.byteLength - 4 * KIB, line.before.slice(-4 * KIB));
    });
  } catch (error) {
    if (!(error instanceof RaidError) || error.code !== 'DIRTY_DEGRADED') throw error;
    tally.refused += 1;
  }
  for (const [index, cut] of cuts.entries()) {
    if (index % 4 !== 0) continue;
    tally.again += 1;
    await judgeImage(cut, line).catch((error: unknown) => {
      if (!(error instanceof RaidError) || error.code !== 'DIRTY_DEGRADED') throw error;
    });
  }
  await rm(images, { recursive: true, force: true });
}

/** raidsim in another folder, which knows nothing of the store, wrote to the members. */
async function judgeAfterOthers(image: string, line: Line, disks: number): Promise<void> {
  const isDue = (await rollbackDueIn(join(image, SNAPSHOT_STORE)).catch(() => null)) !== null;
  const members = Array.from({ length: disks }, (_, disk) => join(image, `disk${disk}.img`));
  const other = newFolder();
  const at = 800 * KIB;
  const piece = filled(8 * KIB, 7);
  await using array = await assembleArray(other, members, quiet);
  await array.write(at, piece);
  await array.close();
  const written = (bytes: Uint8Array): Uint8Array => {
    const copy = bytes.slice();
    copy.set(piece, at);
    return copy;
  };
  await using again = await openArray(image, quiet);
  if (isDue) {
    await expect(again.read(0, new Uint8Array(512))).rejects.toMatchObject({ code: 'FORKED_HISTORY' });
    return;
  }
  await judge(again, { ...line, before: written(line.before), after: written(line.after) }, true);
}

test.each(shapes)(
  '%s: at every write of every verb',
  async (_, shape) => {
    const base = newFolder();
    const { level, disks } = shape;
    const made = await createArray(base, { ...shape, level, disks, diskSize: '2M', driver: 'event-loop' });
    const one = new Uint8Array(made.limits.sizeBytes).map((_value, index) => 1 + ((index >> 9) % 200));
    await made.write(0, one);
    await snapshotsOf(made).create('one', { limitBytes: 2 * MIB });
    await made.write(32 * KIB, filled(64 * KIB, 250));
    const before = await bytesOf(made);
    await made.close();
    const tally = { images: 0, refused: 0, again: 0, others: 0 };
    for (const { name, run, after, deletes } of verbs) {
      const folder = newFolder();
      copyFolder(base, folder);
      let foreignPoint: string | null = null;
      const images = await cutAt(folder, newFolder(), async (wrap) => {
        await using array = await openArray(folder, { ...quiet, wrap });
        await run(array);
        foreignPoint =
          snapshotsOf(array)
            .list()
            .find((each) => each.name === 'two')?.point ?? null;
      });
      const line: Line = {
        one,
        before,
        after: after(before, one),
        isWhole: name === 'rollback',
        mayLackOne: deletes === true,
        foreignPoint,
      };
      expect(images.length, name).toBeGreaterThan(0);
      for (const [index, image] of images.entries()) {
        const said = `${name}, before write ${index + 1} of ${images.length}`;
        const spare = newFolder();
        try {
          copyFolder(image, spare);
          tally.images += 1;
          await judgeImage(image, line);
          if (index % 3 === 0)
            await judgeDegraded(spare, line, name === 'fail' ? 'disk0.img' : 'disk1.img', tally);
          else if (index % 3 === 1 && deletes !== true) {
            tally.others += 1;
            await judgeAfterOthers(spare, line, disks);
          }
        } catch (error) {
          throw new Error(`${said}: ${error instanceof Error ? error.message : String(error)}`, {
            cause: error,
          });
        }
        await rm(image, { recursive: true });
        await rm(spare, { recursive: true });
      }
    }
    process.stdout.write(`snapshots cut short, ${_}: ${JSON.stringify(tally)}\n`);
    expect(tally.images).toBeGreaterThan(50);
    expect(tally.again).toBeGreaterThan(20);
  },
  120_000,
);
