/**
 * `kill -9` at random moments of `create` and `grow`, on real files. (test/array/cut-short goes through every moment of
 * what they write; here it is the whole of it: files, folder, manifest, lock.)
 *
 *   create   an array that is whole, or a folder that is none, and where a second try with --force makes it
 *   grow     the array as it was or larger, with all that was in it; and growing it once more goes through
 *
 * A failure prints its seed; RAIDSIM_SEED=n brings back the same moments, as far as the machine is as fast.
 */
import { spawn } from 'node:child_process';
import { access, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { type CreateOptions, createArray, growArray, openArray } from '../../lib/array/folder.ts';
import type { GrowOptions } from '../../lib/array/grow.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { type Random, randomBytes, runSeed } from '../conformance/seed.ts';
import { scratchFolder } from '../device/scratch.ts';
import type { ShapeTask } from './shaper.ts';

const program = resolve(import.meta.dirname, '../../dist/test/crash/shaper.js');
const KILLS = 8;

const scratch = await scratchFolder();
afterAll(() => rm(scratch, { recursive: true }));

/** Whether it was done by then, and how long it was at it: from when it was about to begin, as the time is. */
async function runAndKill(
  task: ShapeTask,
  afterMs: number,
): Promise<{ readonly end: 'killed' | 'done'; readonly ms: number }> {
  const child = spawn(process.execPath, [program, JSON.stringify(task)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const gone = new Promise<number | null>((done) => child.once('exit', done));
  await new Promise((ready) => child.stdout.once('data', ready));
  const start = performance.now();
  await Promise.race([new Promise((done) => setTimeout(done, afterMs)), gone]);
  child.kill('SIGKILL');
  const code = await gone;
  if (code !== null && code !== 0) throw new Error(`the child ended with ${code}`);
  return { end: code === 0 ? 'done' : 'killed', ms: performance.now() - start };
}

async function timed(task: ShapeTask): Promise<number> {
  const { end, ms } = await runAndKill(task, 60_000);
  expect(end).toBe('done');
  return ms;
}

/** Of kills one falls into each part of the time that it took when it was let be, and so the first at its beginning. */
function momentOf(kill: number, tookMs: number, random: Random): number {
  return ((kill + random(1000) / 1000) / KILLS) * tookMs;
}

async function expectWhole(array: RaidArray): Promise<void> {
  for await (const _ of array.rebuild());
  expect([array.degraded, array.state]).toEqual([0, 'clean']);
  for await (const { mismatchCount } of array.scrub()) expect(mismatchCount).toBe(0);
}

async function contentOf(array: RaidArray): Promise<Uint8Array> {
  const content = new Uint8Array(array.limits.sizeBytes);
  await array.read(0, content);
  return content;
}

async function refusalOf(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => 'nothing',
    (error: unknown) => {
      if (!(error instanceof RaidError)) throw error;
      return error.code;
    },
  );
}

const shapes: readonly (readonly [string, CreateOptions])[] = [
  ['raid1', { level: 1, disks: 2, diskSize: '4M' }],
  [
    'raid5 with a bitmap and a spare',
    { level: 5, disks: 3, spares: 1, chunk: '16K', diskSize: '4M', bitmap: 'internal' },
  ],
  ['raid6', { level: 6, disks: 4, chunk: '16K', diskSize: '4M' }],
  ['raid10', { level: 10, disks: 3, chunk: '16K', diskSize: '4M' }],
];

test.each(shapes)('create, %s: an array, or a folder that is none', async (name, create) => {
  const random = seededRandom(runSeed);
  const seen = { array: 0, none: 0 };
  const folder = join(scratch, name.replaceAll(' ', '-'));
  let tookMs = await timed({ folder: `${folder}-whole`, create });
  // On, until one has come in time.
  for (let kill = 0; kill < KILLS || seen.none === 0; kill += 1) {
    const { ms } = await runAndKill({ folder, create }, momentOf(kill % KILLS, tookMs, random));
    const isThere = await access(join(folder, 'raidsim.json')).then(
      () => true,
      () => false,
    );
    seen[isThere ? 'array' : 'none'] += 1;
    // The one that was let be may have been held up by others.
    if (isThere) tookMs = Math.min(tookMs, ms);
    if (!isThere) {
      expect(await refusalOf(openArray(folder)), `seed ${runSeed}`).toBe('NO_SUCH_ARRAY');
      await (await createArray(folder, { ...create, force: true, autoSync: false })).close();
    }
    const array = await openArray(folder, { autoSync: false });
    expect((await contentOf(array)).every((byte) => byte === 0)).toBe(true);
    await expectWhole(array);
    await array.close();
    await rm(folder, { recursive: true });
  }
});

const growths: readonly (readonly [string, CreateOptions, GrowOptions])[] = [
  ['raid1, larger', { level: 1, disks: 2, diskSize: '4M' }, { size: '6M' }],
  ['raid1, one leg more', { level: 1, disks: 2, diskSize: '4M' }, { disks: 3 }],
  ['raid5 with a spare', { level: 5, disks: 3, spares: 1, chunk: '16K', diskSize: '4M' }, { size: '6M' }],
  [
    'raid6 with a bitmap',
    { level: 6, disks: 4, chunk: '16K', diskSize: '4M', bitmap: 'internal' },
    { size: '6M' },
  ],
  ['raid10', { level: 10, disks: 3, chunk: '16K', diskSize: '4M' }, { size: '6M' }],
];

test.each(growths)('grow, %s: as it was or larger, and nothing is lost', async (name, create, grow) => {
  const random = seededRandom(runSeed);
  const seen = { old: 0, grown: 0 };
  let tookMs = 0;
  for (let kill = 0; kill <= KILLS; kill += 1) {
    const folder = join(scratch, `${name.replaceAll(/[ ,]/g, '-')}-${kill}`);
    const fresh = await createArray(folder, { ...create, autoSync: false });
    const content = randomBytes(random, fresh.limits.sizeBytes);
    await fresh.write(0, content);
    const before = { bytes: fresh.limits.sizeBytes, slots: fresh.layout.memberCount };
    await fresh.close();

    // The first one is let be, to know how long it takes.
    if (kill === 0) tookMs = await timed({ folder, grow });
    else await runAndKill({ folder, grow }, momentOf(kill - 1, tookMs, random));
    const array = await openArray(folder, { autoSync: false });
    const isOld = array.limits.sizeBytes === before.bytes && array.layout.memberCount === before.slots;
    seen[isOld ? 'old' : 'grown'] += 1;
    const says = `kill ${kill}, seed ${runSeed}, ${isOld ? 'old' : 'grown'}`;
    const read = async (from: RaidArray): Promise<number> =>
      Buffer.compare((await contentOf(from)).subarray(0, before.bytes), content);
    expect(await read(array), says).toBe(0);
    if (array.degraded === 0) await expectWhole(array);
    await array.close();
    if (isOld) {
      const grown = await growArray(folder, grow, { autoSync: false });
      expect(grown.limits.sizeBytes + grown.layout.memberCount, says).toBeGreaterThan(
        before.bytes + before.slots,
      );
      expect(await read(grown), says).toBe(0);
      if (grown.degraded === 0) await expectWhole(grown);
      await grown.close();
    }
    await rm(folder, { recursive: true });
  }
  expect(seen.grown, JSON.stringify(seen)).toBeGreaterThan(0);
});
