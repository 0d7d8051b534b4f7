/** Folders that cannot take a repository, or not all of it: a clear error, and nothing is lost that was there. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, stat, statfs, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, type TestContext, test } from 'vitest';
import { DirectoryStore } from '../../lib/backup/directory.ts';
import type { Backup } from '../../lib/backup/record.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { Scratch, startRaidsim } from '../cli/raidsim.ts';
import { randomBytes } from '../conformance/seed.ts';
import { needPeer } from '../peer.ts';
import { deviceOf, expectSame, restored } from './world.ts';

const scratch = await mkdtemp(join(tmpdir(), 'raidsim-places-'));
afterAll(() => rm(scratch, { recursive: true }));
const shape = { chunkBytes: 16 * KIB, pageChunks: 64, packBytes: 128 * KIB, groupPacks: 3 } as const;

async function onMount(
  context: TestContext,
  name: string,
  options: string,
  run: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = join(scratch, name);
  await mkdir(folder);
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', options, 'raidsim-test', folder], { stdio: 'ignore' });
  } catch (error) {
    needPeer(
      (error as NodeJS.ErrnoException).code !== 'ENOENT',
      { program: 'mount', from: 'mount' },
      context,
    );
    return context.skip('only root can mount a tmpfs');
  }
  try {
    await run(folder);
  } finally {
    execFileSync('umount', [folder]);
  }
}

async function failureOf(work: Promise<unknown>): Promise<RaidError> {
  const error = await work.then(
    () => null,
    (cause: unknown) => cause,
  );
  if (error instanceof RaidError) return error;
  throw new Error(`expected a RaidError, got ${String(error)}`);
}

test('a read-only file system is named as what it is, however deep the folder would be', (context) =>
  onMount(context, 'ro', 'size=1m,ro', async (folder) => {
    for (const path of [folder, join(folder, 'repo'), join(folder, 'a', 'b', 'repo')]) {
      const { code, message } = await failureOf(Repository.create(new DirectoryStore(path)));
      expect([code, message]).toEqual(['READ_ONLY', expect.stringContaining('the file system is read-only')]);
    }
    await using typed = await Scratch.make();
    await writeFile(typed.path('disk.img'), randomBytes(seededRandom(1), 50_000));
    const outcome = await typed.type(`backup create disk.img --repo ${join(folder, 'a', 'repo')}`);
    expect(outcome).toMatchObject({ code: 2, stderr: expect.stringContaining('READ_ONLY') });
  }));

test('a folder that takes no names is an error at once', async () => {
  const { code } = await failureOf(Repository.create(new DirectoryStore('/proc/raidsim/repo')));
  expect(code).toBe('STORE_FAILED');
});

test('a repository that has become read-only is read and verified; who would write is told', (context) =>
  onMount(context, 'frozen', 'size=8m', async (folder) => {
    const image = randomBytes(seededRandom(2), MIB);
    const repository = await Repository.create(new DirectoryStore(folder), shape);
    const backup = (await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!;
    execFileSync('mount', ['-o', 'remount,ro', folder]);
    const works = [
      () => repository.createBackup({ source: deviceOf(image), array: 'demo' }),
      () => repository.prune({ keep: { last: 1 } }),
      () => repository.repair(),
    ];
    for (const work of works) expect(await failureOf(work())).toMatchObject({ code: 'READ_ONLY' });
    expectSame(await restored(repository, backup), image, 'what was there');
    expect(await repository.verify({ readPercent: 100 })).toMatchObject({ damaged: [], lost: [] });
    // It can be mounted, though nobody can be told so.
    await using typed = await Scratch.make();
    const mount = startRaidsim(['backup', 'mount', 'latest', '--repo', folder], typed.folder);
    const ended = once(mount, 'exit');
    let said = '';
    mount.stderr?.on('data', (text: Buffer) => {
      said += text.toString();
    });
    await once(mount.stdout as NodeJS.ReadableStream, 'data');
    mount.kill('SIGTERM');
    expect(await ended).toEqual([0, null]);
    expect(said).toContain(`will not know that ${backup.id} is being read`);
  }));

test.for([0, 1, 2] as const)(
  'a full disk ends create, prune and repair with NO_SPACE; what was listed is whole, with redundancy %i',
  (redundancy, context) =>
    onMount(context, `full${redundancy}`, 'size=6m', async (folder) => {
      const random = seededRandom(3 + redundancy);
      const store = new DirectoryStore(folder);
      const repository = await Repository.create(store, { ...shape, redundancy });
      const images = [randomBytes(random, MIB), randomBytes(random, MIB)];
      images[1]!.set(images[0]!.subarray(0, MIB / 4));
      const backups: Backup[] = [];
      for (const image of images)
        backups.push((await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!);
      const check = async (): Promise<void> => {
        expect((await repository.list()).map(({ id }) => id)).toEqual(backups.map(({ id }) => id));
        for (const [index, backup] of backups.entries())
          expectSame(await restored(repository, backup), images[index]!, backup.id);
        expect(await repository.verify({ readPercent: 100 })).toMatchObject({ damaged: [], lost: [] });
      };

      const large = randomBytes(random, 6 * MIB);
      const failed = repository.createBackup({ source: deviceOf(large), array: 'large' });
      expect(await failureOf(failed)).toMatchObject({
        code: 'NO_SPACE',
        message: expect.stringContaining('the file system is full'),
      });
      await check();
      // Not a byte is left.
      await fill(folder);
      const remove = [backups[0]!.id];
      expect(await failureOf(repository.prune({ remove }))).toMatchObject({ code: 'NO_SPACE' });
      expect(await failureOf(repository.repair())).toMatchObject({ code: 'NO_SPACE' });
      await using typed = await Scratch.make();
      const outcome = await typed.type(`backup prune --repo ${folder} --keep-last 1`);
      expect(outcome).toMatchObject({
        code: 4,
        stderr: expect.stringContaining('room for a few small files'),
      });
      await check();

      // With room again, everything goes on.
      await rm(join(folder, 'filler'));
      execFileSync('mount', ['-o', 'remount,size=16m', folder]);
      await repository.prune({ remove });
      backups.shift();
      images.shift();
      await check();
    }),
);

test.for([0, 1, 2] as const)(
  'what a backup has left that filled the disk goes with a few KiB to spare, and makes the room that prune needs, with redundancy %i',
  (redundancy, context) =>
    onMount(context, `left${redundancy}`, 'size=8m', async (folder) => {
      const random = seededRandom(13 + redundancy);
      const repository = await Repository.create(new DirectoryStore(folder), { ...shape, redundancy });
      const image = randomBytes(random, MIB);
      const going = (await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!;
      // Every other chunk: all packs of the first are to be written anew.
      for (let at = 0; at < MIB; at += 32 * KIB) image.set(randomBytes(random, 16 * KIB), at);
      const kept = (await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!;
      const failed = repository.createBackup({
        source: deviceOf(randomBytes(random, 8 * MIB)),
        array: 'large',
      });
      expect(await failureOf(failed)).toMatchObject({ code: 'NO_SPACE' });
      await fill(folder);
      const filler = join(folder, 'filler');
      await truncate(filler, (await stat(filler)).size - 32 * KIB);
      const before = await freeBytes(folder);
      const { packsDeleted, packsRewritten } = await repository.prune({ remove: [going.id] });
      expect(packsDeleted).toBeGreaterThan(8);
      expect(packsRewritten).toBeGreaterThan(3);
      expect((await freeBytes(folder)) - before).toBeGreaterThan(2 * MIB);
      expectSame(await restored(repository, kept), image, 'what was kept');
      const report = await repository.verify({ readPercent: 100 });
      expect(report).toMatchObject({ damaged: [], lost: [], unprotected: [] });
    }),
);

test('who has no room for a backup is told how to get back what it took', (context) =>
  onMount(context, 'typed', 'size=2m', async (folder) => {
    await using typed = await Scratch.make();
    await writeFile(typed.path('disk.img'), randomBytes(seededRandom(1), 40 * MIB));
    const outcome = await typed.type(`backup create disk.img --repo ${folder}`);
    expect(outcome).toMatchObject({ code: 4, stderr: expect.stringContaining('NO_SPACE') });
    expect(outcome.stderr).toContain(`raidsim backup prune --repo ${folder}`);
    expect(await typed.type(`backup prune --repo ${folder}`)).toMatchObject({ code: 0 });
  }));

async function freeBytes(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
}

async function fill(folder: string): Promise<void> {
  await writeFile(join(folder, 'filler'), new Uint8Array(8 * MIB)).catch((error: NodeJS.ErrnoException) => {
    expect(error.code).toBe('ENOSPC');
  });
}
