/**
 * The tour. Each step does something to a real array over real files, prints what it claims, and checks the claim by
 * reading the bytes back: a demo that lies exits with 1.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, open, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { remove } from 'fs-extra/esm';
import xxhash from 'xxhash-wasm';
import {
  CONF_NAME,
  createArray,
  type Device,
  formatSize,
  openArray,
  openMember,
  type RaidArray,
  readManifest,
  sanOf,
  seededRandom,
  writeManifest,
} from '../lib/index.ts';
import { bar, paint } from './render.ts';

const DISK_BYTES = 32 * 1024 * 1024;

export async function takeTour(options: { keep?: boolean; quiet?: boolean }): Promise<void> {
  const tour = new Tour(options.quiet !== true);
  const parent = await mkdtemp(join(tmpdir(), 'raidsim-demo-'));
  const folder = join(parent, 'demo');
  try {
    await lifeAndDeath(tour, folder);
    await rotAndScrub(tour, folder);
    await pathsFail(tour, join(parent, 'san'));
    await backInTime(tour, folder);
    await seenByOthers(tour, folder);
  } finally {
    if (options.keep === true) tour.say(`\n  the array: ${folder}`);
    else await remove(parent);
  }
  tour.say(
    tour.failed === 0 ? '\n  every claim was checked' : `\n  ${tour.failed} of the claims above did NOT hold`,
  );
  if (tour.failed > 0) process.exitCode = 1;
}

async function lifeAndDeath(tour: Tour, folder: string): Promise<void> {
  tour.title('A raid5 of four disks and a spare');
  {
    await using array = await createArray(folder, {
      level: 5,
      disks: 4,
      spares: 1,
      diskSize: DISK_BYTES,
      chunk: '64K',
    });
    const { sizeBytes } = array.limits;
    tour.claim(
      `created: ${formatSize(sizeBytes)} of data on 4 files of ${formatSize(DISK_BYTES)}, a fifth to spare`,
      array.state === 'clean',
    );

    const written = pseudoRandom(sizeBytes);
    await array.write(0, written);
    await array.flush();
    tour.truth = digest(written);
    tour.claim(`written full: xxh64 ${tour.truth}`, digest(await all(array)) === tour.truth);

    await array.fail('disk1');
    tour.claim(`disk1 dies: ${map(array)}`, array.degraded === 1);
    tour.claim(
      'everything can still be read; what was on disk1 is computed from the others',
      digest(await all(array)) === tour.truth,
    );

    const edit = pseudoRandom(1_000_000).reverse();
    const writing = array.write(12_345_678, edit);
    written.set(edit, 12_345_678);
    for await (const { doneBytes, totalBytes } of array.rebuild()) {
      tour.progress(`rebuilding ${bar(doneBytes / totalBytes, 30)} ${formatSize(doneBytes)}`);
    }
    await writing;
    tour.truth = digest(written);
    tour.claim(
      `the spare has taken its place by itself, while a megabyte was written: ${map(array)}`,
      array.degraded === 0,
    );
    tour.claim('and holds the right bytes', digest(await all(array)) === tour.truth);

    await array.fail('disk2');
    tour.claim(
      `another disk dies: ${map(array)}, and the rebuilt one stands in`,
      digest(await all(array)) === tour.truth,
    );
    await array.fail('disk3').then(
      () => tour.claim('the array lets its last copy be taken', false),
      (error: Error & { code?: string }) =>
        tour.claim('a third is refused: it would take the last copy of data', error.code === 'LAST_COPY'),
    );
  }
  const array = await openArray(folder, { autoSync: false });
  await using opened = array;
  tour.claim(
    'closed and opened again, the array knows who has failed',
    opened.degraded === 1 && digest(await all(opened)) === tour.truth,
  );
}

async function rotAndScrub(tour: Tour, folder: string): Promise<void> {
  tour.title('A disk that lies');
  {
    const array = await openArray(folder);
    await using opened = array;
    await opened.add(await openMember(join(folder, 'disk5.img'), DISK_BYTES));
    const manifest = await readManifest(folder);
    await writeManifest(folder, { ...manifest, members: [...manifest.members, 'disk5.img'] });
    for await (const _progress of opened.rebuild());
    tour.claim(`a new disk is added and rebuilt: ${map(opened)}`, opened.degraded === 0);
  }
  const file = await open(join(folder, 'disk0.img'), 'r+');
  await file.write(new Uint8Array([0xde, 0xad]), 0, 2, 16 * 1024 * 1024 + 1234);
  await file.close();
  const array = await openArray(folder);
  await using opened = array;
  let found = 0;
  let place = '';
  for await (const { mismatches } of opened.scrub()) {
    found += mismatches.length;
    const [first] = mismatches;
    if (first !== undefined) place = `sector ${first.offsetBytes / 512} of its members' data`;
  }
  tour.claim(`two bytes rot behind its back; a scrub finds the stripe: ${place}`, found === 1);
}

async function pathsFail(tour: Tour, folder: string): Promise<void> {
  tour.title('Cables and controllers');
  {
    const shape = { level: 5, disks: 4, diskSize: '8M', chunk: '64K', hbas: 2, controllers: 2 } as const;
    await using array = await createArray(folder, shape);
    await array.write(0, pseudoRandom(array.limits.sizeBytes));
  }
  // Faster than the SANs that people have, so that nobody waits.
  await writeFile(join(folder, CONF_NAME), 'defaults {\n  fast_io_fail_tmo 0\n  polling_interval 1\n}\n');
  const array = await openArray(folder, { autoSync: false });
  await using opened = array;
  const san = sanOf(opened);
  if (san === null) return tour.claim('the array lies behind a fabric', false);
  const paths = () => san.status().luns.flatMap(({ groups }) => groups.flatMap((group) => group.paths));
  const working = (): number => paths().filter(({ link }) => link === 'running').length;
  tour.claim(
    `another raid5: ${working()} paths, four to each disk, by two HBAs and two controllers`,
    working() === 16,
  );
  const truth = pseudoRandom(opened.limits.sizeBytes).reverse();
  const half = truth.byteLength / 2;
  const writing = opened.write(0, truth.subarray(0, half));
  san.set('hba0', { state: 'failed' });
  await writing;
  tour.claim(
    `an HBA dies in the middle of a write: ${working()} paths are left, and no disk is lost: ${map(opened)}`,
    working() === 8 && opened.degraded === 0,
  );
  san.set('ctl0', { state: 'failed' });
  await opened.write(half, truth.subarray(half));
  tour.claim(
    `and a controller: ${working()} paths, one to each disk, and every byte is right`,
    working() === 4 && opened.degraded === 0 && digest(await all(opened)) === digest(truth),
  );
}

async function backInTime(tour: Tour, folder: string): Promise<void> {
  tour.title('A mistake, undone');
  {
    const array = await openArray(folder);
    await using opened = array;
    const { snapshots } = opened;
    if (snapshots === null) return tour.claim('the array can have snapshots', false);
    const before = digest(await all(opened));
    await snapshots.create('before');
    const { usedBytes = 1 } = snapshots.usage() ?? {};
    tour.claim('a snapshot is taken while the array is open; it takes no room yet', usedBytes === 0);
    await opened.write(3_000_000, pseudoRandom(4_000_000));
    const now = digest(await all(opened));
    {
      await using snapshot = snapshots.openSnapshot('before');
      tour.claim(
        `four megabytes are overwritten: xxh64 ${now}; read from the snapshot, the array is what it was: ${before}`,
        now !== before && digest(await all(snapshot)) === before,
      );
    }
    tour.claim(
      `what was overwritten was copied first: ${formatSize(snapshots.usage()?.usedBytes ?? 0)}, and no more`,
      (snapshots.usage()?.usedBytes ?? 0) <= 4_000_000 + 2 * 4096,
    );
    await snapshots.rollback('before');
    tour.claim('rolled back: the mistake was never made', digest(await all(opened)) === before);
    tour.truth = before;
  }
  const array = await openArray(folder);
  await using opened = array;
  tour.claim(
    'closed and opened again, the array and its snapshot still are',
    opened.snapshots?.list().length === 1 && digest(await all(opened)) === tour.truth,
  );
}

/** What other programs say of the images, where they are installed. */
async function seenByOthers(tour: Tour, folder: string): Promise<void> {
  const said = await promisify(execFile)('mdadm', ['--examine', join(folder, 'disk0.img')]).catch(() => null);
  if (said === null) return;
  tour.title('What mdadm says of it');
  const level = /Raid Level : (\S+)/.exec(said.stdout)?.[1];
  tour.claim(
    `a Linux md array: ${level}, checksum correct`,
    level === 'raid5' && /Checksum : \S+ - correct/.test(said.stdout),
  );
}

class Tour {
  failed = 0;
  /** Digest of what the array should hold. */
  truth = '';
  readonly #speaks: boolean;

  constructor(speaks: boolean) {
    this.#speaks = speaks;
  }

  say(text: string): void {
    if (this.#speaks) process.stdout.write(`${text}\n`);
  }

  title(text: string): void {
    this.say(`\n${paint('bold', text)}`);
  }

  progress(text: string): void {
    if (this.#speaks && process.stdout.isTTY) process.stdout.write(`\r  ${text}\u001b[K`);
  }

  claim(text: string, holds: boolean): void {
    if (!holds) this.failed += 1;
    if (this.#speaks && process.stdout.isTTY) process.stdout.write('\r\u001b[K');
    this.say(`  ${holds ? paint('green', '✓') : paint('red', '✗')} ${text}`);
  }
}

/** md's `[4/3] [UU_U]`. */
function map(array: RaidArray): string {
  const { memberCount } = array.layout;
  const up = Array.from({ length: memberCount }, (_, slot) =>
    array.members.some(({ state }) => state.state === 'in_sync' && state.slot === slot),
  );
  return `[${memberCount}/${up.filter(Boolean).length}] [${up.map((isUp) => (isUp ? 'U' : '_')).join('')}]`;
}

async function all(device: Device): Promise<Uint8Array> {
  const bytes = new Uint8Array(device.limits.sizeBytes);
  await device.read(0, bytes);
  return bytes;
}

/** XXH64: the demo compares its own bytes with its own bytes, several hundred MiB of them. */
const { h64Raw } = await xxhash();

function digest(bytes: Uint8Array): string {
  return h64Raw(bytes).toString(16).padStart(16, '0');
}

function pseudoRandom(length: number): Uint8Array {
  const random = seededRandom(1);
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let index = 0; index < words.length; index += 1) words[index] = random(2 ** 32);
  return new Uint8Array(words.buffer, 0, length);
}
