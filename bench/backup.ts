/**
 * `npm run bench:backup`: how fast backups are, how large, and in how much memory.
 *
 * The first table is against two bounds, of the same bytes in the same chunks, on one thread, times the cores. One is SHA-256 alone. The other is all that
 * cannot be left out: to read the array, SHA-256, to copy a chunk into its pack, xxHash64 of the pack, to write the pack and make it durable. What
 * it leaves between itself and the backup is this program's; what is between the bounds is not. Bounds and backup take turns; the ratio is the
 * median of pairs (pairs.ts). Random bytes, which do not compress. The second backup is of an array of which 1 % has changed, once in one place, once in 4 KiB blocks all over it.
 *
 * The second table is beside restic and borg, where they are installed: one file, the same for all, through their command lines, which is how
 * people run them: half random, a quarter text, a quarter zeros. Then 1 % of it in one place is new, and it is backed up again.
 */
import { execFile, spawn } from 'node:child_process';
import { createHash, randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, fsyncSync, openSync, rmSync, writeSync } from 'node:fs';
import { open, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { outputFile, remove } from 'fs-extra/esm';
import type { RaidArray } from '../lib/array/array.ts';
import { createArray } from '../lib/array/folder.ts';
import type { ArraySnapshots } from '../lib/array/snapshots.ts';
import { DirectoryStore } from '../lib/backup/directory.ts';
import { Repository } from '../lib/backup/repository.ts';
import { loadSum } from '../lib/backup/seal.ts';
import { assert } from '../lib/errors.ts';
import { seededRandom } from '../lib/host.ts';
import { formatSize, KIB, MIB } from '../lib/units.ts';
import { currentLoad, describeMachine, makeFolder } from './machine.ts';
import { median, type Pair, summarise } from './pairs.ts';

const FIRST_AIM = 0.5;
/** Of the first one's time. */
const SECOND_AIM = 0.03;
const CHUNK_BYTES = 256 * KIB;
const PACK_BYTES = 16 * MIB;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { quick: { type: 'boolean' }, dir: { type: 'string' }, json: { type: 'string' } },
  });
  const sizeBytes = values.quick === true ? 256 * MIB : 512 * MIB;
  const rounds = values.quick === true ? 2 : 7;
  const loadBefore = currentLoad();
  const folder = await makeFolder(values.dir, 6 * sizeBytes);
  try {
    const own = await measureOwn(folder.path, sizeBytes, rounds);
    const others = await measureTools(folder.path, sizeBytes, 1);
    const machine = describeMachine(folder, loadBefore);
    process.stdout.write(
      `${machine.cpu}, ${machine.cores} cores, ${machine.kernel}, Node ${machine.node}, on ${machine.fileSystem} (${machine.directory}); load ${machine.loadBefore.toFixed(1)} before, ${machine.loadAfter.toFixed(1)} after\n\n`,
    );
    const { first, sha256, ratio, needed, second, scattered } = own;
    process.stdout.write(
      [
        `an array of ${formatSize(sizeBytes)} of random bytes, ${rounds} rounds`,
        `SHA-256 alone, one core     ${formatSize(Math.round(sha256))}/s`,
        `first backup                ${formatSize(Math.round(first))}/s, ${(ratio * machine.cores).toFixed(2)} of that, ${ratio.toFixed(2)} of ${machine.cores} cores of it${ratio < FIRST_AIM ? ` < ${FIRST_AIM}` : ''}`,
        `  of what it cannot do without ${needed.ratio.toFixed(2)} of ${machine.cores} cores: ${needed.parts.map(({ what, share }) => `${what} ${(share * 100).toFixed(0)} %`).join(', ')}`,
        `second, 1 % in one place    ${(second * 100).toFixed(1)} % of the first's time${second > SECOND_AIM ? ` > ${SECOND_AIM * 100}` : ''}`,
        `second, 1 % in 4 KiB blocks ${(scattered.time * 100).toFixed(1)} % of the first's time, for ${(scattered.share * 100).toFixed(0)} % of the chunks`,
        '',
        `a file of ${formatSize(sizeBytes)}: half random, a quarter text, a quarter zeros`,
        'tool                          first    second  repository     memory',
        ...others.map(({ tool, firstMs, secondMs, repositoryBytes, memoryBytes }) =>
          [
            tool.padEnd(24),
            `${(firstMs / 1000).toFixed(2)} s`.padStart(9),
            `${(secondMs / 1000).toFixed(2)} s`.padStart(8),
            formatSize(repositoryBytes).padStart(10),
            formatSize(memoryBytes).padStart(9),
          ].join('  '),
        ),
        '',
      ].join('\n'),
    );
    // dist/bench/backup.js: the package is two folders up.
    const path = values.json ?? fileURLToPath(new URL('../../bench/results/backup.json', import.meta.url));
    await outputFile(path, `${JSON.stringify({ machine, sizeBytes, own, others }, null, 2)}\n`);
    process.stdout.write(`\nall of it: ${path}\n`);
  } finally {
    await remove(folder.path);
  }
}

interface Own {
  /** Bytes a second. */
  readonly sha256: number;
  readonly first: number;
  readonly ratio: number;
  /** All that a backup consists of, done by hand. */
  readonly needed: { readonly ratio: number; readonly parts: readonly Part[] };
  /** Of the first one's time. */
  readonly second: number;
  readonly scattered: { readonly time: number; readonly share: number };
}

const parts = ['read', 'SHA-256', 'copy', 'xxHash', 'write'] as const;

interface Part {
  readonly what: (typeof parts)[number];
  readonly share: number;
}

async function measureOwn(folder: string, sizeBytes: number, rounds: number): Promise<Own> {
  const path = join(folder, 'array');
  await using array = await createArray(path, { level: 5, disks: 3, diskSize: sizeBytes / 2 + 16 * MIB });
  const random = seededRandom(1);
  // Made once, and filled by OpenSSL: garbage of this bench would be collected within the second backup, which takes a few hundredths of a second.
  const changed = new Uint8Array(Math.floor(sizeBytes / 100));
  const [part, block] = [changed.subarray(0, MIB), changed.subarray(0, 4096)];
  for (let at = 0; at < sizeBytes; at += MIB) await array.write(at, randomFillSync(part));
  const { snapshots } = array;
  assert(snapshots !== null, 'an array in a folder can have snapshots');
  const cores = availableParallelism();
  const pairs: Pair[] = [];
  const neededPairs: Pair[] = [];
  const shares: number[][] = [];
  const seconds: number[] = [];
  const scattered: number[] = [];
  let share = 0;
  for (let round = 0; round <= rounds; round += 1) {
    process.stderr.write(`backups, round ${round} of ${rounds}\n`);
    const repository = await Repository.create(new DirectoryStore(join(folder, `repo${round}`)));
    const spent = await doByHand(array, join(folder, `packs${round}`));
    const neededMs = spent.reduce((sum, ms) => sum + ms, 0);
    const boundMs = spent[parts.indexOf('SHA-256')]! / cores;
    const first = await backUp(repository, snapshots, null);
    await array.write(random(sizeBytes - changed.byteLength), randomFillSync(changed));
    const second = await backUp(repository, snapshots, first.point);
    const places = Array.from({ length: sizeBytes / 100 / 4096 }, () => random(sizeBytes / 4096) * 4096);
    for (const at of places) await array.write(at, randomFillSync(block));
    const third = await backUp(repository, snapshots, second.point);
    await snapshots.forget(third.point);
    await remove(join(folder, `repo${round}`));
    if (round === 0) continue;
    pairs.push({ arrayMs: first.ms, boundMs });
    neededPairs.push({ arrayMs: first.ms, boundMs: neededMs / cores });
    shares.push(spent.map((ms) => ms / neededMs));
    seconds.push(second.ms / first.ms);
    scattered.push(third.ms / first.ms);
    share = new Set(places.map((at) => Math.floor(at / CHUNK_BYTES))).size / (sizeBytes / CHUNK_BYTES);
  }
  const summary = summarise(pairs);
  return {
    sha256: (array.limits.sizeBytes / (summary.boundMs * cores)) * 1000,
    first: (array.limits.sizeBytes / summary.arrayMs) * 1000,
    ratio: summary.ratio,
    needed: {
      ratio: summarise(neededPairs).ratio,
      parts: parts.map((what, part) => ({ what, share: median(shares.map((row) => row[part]!)) })),
    },
    second: median(seconds),
    scattered: { time: median(scattered), share },
  };
}

/** As `backup create` does it, from the snapshot to letting go of it. */
async function backUp(
  repository: Repository,
  snapshots: ArraySnapshots,
  base: string | null,
): Promise<{ readonly ms: number; readonly point: string }> {
  const begin = performance.now();
  const { point } = await snapshots.create(
    'backup',
    snapshots.origin === null ? { limitBytes: 256 * MIB } : {},
  );
  const source = snapshots.openSnapshot('backup');
  await repository.createBackup({
    source,
    array: 'array',
    point,
    changedSince: (since) => Promise.resolve(snapshots.changedSince(since, 'backup')),
  });
  await source.close();
  await snapshots.delete('backup', { keepTracking: true });
  if (base !== null) await snapshots.forget(base);
  return { ms: performance.now() - begin, point };
}

/** Milliseconds for each of `parts`, one thread, one after the other. */
async function doByHand(array: RaidArray, path: string): Promise<number[]> {
  const bytes = new Uint8Array(16 * CHUNK_BYTES);
  const pack = new Uint8Array(PACK_BYTES);
  const sum = (await loadSum()).start();
  const spent = parts.map(() => 0);
  let last = performance.now();
  const took = (what: Part['what']): void => {
    const now = performance.now();
    spent[parts.indexOf(what)]! += now - last;
    last = now;
  };
  const file = openSync(path, 'w');
  const sizeBytes = array.limits.sizeBytes;
  for (let at = 0; at < sizeBytes; at += bytes.byteLength) {
    const part = bytes.subarray(0, Math.min(bytes.byteLength, sizeBytes - at));
    const room = pack.subarray(at % PACK_BYTES, (at % PACK_BYTES) + part.byteLength);
    await array.read(at, part);
    took('read');
    for (let from = 0; from < part.byteLength; from += CHUNK_BYTES)
      createHash('sha256')
        .update(part.subarray(from, from + CHUNK_BYTES))
        .digest();
    took('SHA-256');
    room.set(part);
    took('copy');
    sum.update(room);
    took('xxHash');
    writeSync(file, room, 0, room.byteLength, at);
    if ((at + part.byteLength) % PACK_BYTES === 0) fsyncSync(file);
    took('write');
  }
  fsyncSync(file);
  took('write');
  closeSync(file);
  rmSync(path);
  return spent;
}

function randomBytes(random: (below: number) => number, lengthBytes: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(lengthBytes / 4));
  for (let index = 0; index < words.length; index += 1) words[index] = random(2 ** 32);
  return new Uint8Array(words.buffer, 0, lengthBytes);
}

interface Tool {
  readonly tool: string;
  readonly firstMs: number;
  readonly secondMs: number;
  readonly repositoryBytes: number;
  readonly memoryBytes: number;
}

interface Command {
  readonly tool: string;
  readonly environment: Readonly<Record<string, string>>;
  /** Not measured. */
  readonly init: (repository: string) => readonly string[];
  readonly create: (repository: string, file: string, number: number) => readonly string[];
}

async function commandsOf(folder: string): Promise<readonly Command[]> {
  // dist/bench/backup.js
  const program = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  const passphraseFile = join(folder, 'passphrase');
  await writeFile(passphraseFile, 'secret\n');
  const raidsim = (tool: string, create: readonly string[]): Command => ({
    tool,
    environment: {},
    init: () => ['true'],
    create: (repository, file) => {
      const args = ['backup', 'create', file, '--repo', repository, '--quiet', ...create];
      return [process.execPath, program, ...args];
    },
  });
  const commands: Command[] = [
    raidsim('raidsim', []),
    raidsim('raidsim, encrypted', ['--passphrase-file', passphraseFile]),
    raidsim('raidsim, redundancy 2', ['--redundancy', '2']),
  ];
  const cache = { HOME: folder, XDG_CACHE_HOME: join(folder, 'cache') };
  if (await isInstalled('restic')) {
    commands.push({
      tool: 'restic, encrypted',
      environment: { ...cache, RESTIC_PASSWORD: 'secret' },
      init: (repository) => ['restic', '-q', '-r', repository, 'init'],
      create: (repository, file) => ['restic', '-q', '-r', repository, 'backup', file],
    });
  }
  for (const [tool, encryption] of [
    ['borg', 'none'],
    ['borg, encrypted', 'repokey'],
  ] as const) {
    if (!(await isInstalled('borg'))) continue;
    commands.push({
      tool,
      environment: { ...cache, BORG_PASSPHRASE: 'secret', BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes' },
      init: (repository) => ['borg', 'init', '-e', encryption, repository],
      create: (repository, file, number) => ['borg', 'create', `${repository}::${number}`, file],
    });
  }
  return commands;
}

async function measureTools(folder: string, sizeBytes: number, rounds: number): Promise<readonly Tool[]> {
  const file = join(folder, 'image');
  const tools: Tool[] = [];
  const seen = new Map<string, { first: number[]; second: number[]; repository: number; memory: number }>();
  for (let round = 0; round < rounds; round += 1) {
    for (const command of await commandsOf(folder)) {
      process.stderr.write(`${command.tool}, round ${round + 1} of ${rounds}\n`);
      // The same for all, each time.
      await writeImage(file, sizeBytes);
      const repository = join(folder, 'repository');
      await run(command.init(repository), command.environment);
      const first = await run(command.create(repository, file, 1), command.environment);
      const handle = await open(file, 'r+');
      const changed = randomBytes(seededRandom(99), Math.floor(sizeBytes / 100));
      await handle.write(changed, 0, changed.byteLength, sizeBytes / 4);
      await handle.close();
      const second = await run(command.create(repository, file, 2), command.environment);
      const row = seen.get(command.tool) ?? { first: [], second: [], repository: 0, memory: 0 };
      row.first.push(first.ms);
      row.second.push(second.ms);
      row.repository = await sizeOf(repository);
      row.memory = Math.max(row.memory, first.memoryBytes, second.memoryBytes);
      seen.set(command.tool, row);
      await remove(repository);
      await remove(join(folder, 'cache'));
      await remove(join(folder, '.config'));
    }
  }
  for (const [tool, { first, second, repository, memory }] of seen) {
    tools.push({
      tool,
      firstMs: median(first),
      secondMs: median(second),
      repositoryBytes: repository,
      memoryBytes: memory,
    });
  }
  return tools;
}

async function writeImage(file: string, sizeBytes: number): Promise<void> {
  const random = seededRandom(7);
  const words = ['stripe', 'parity', 'member', 'journal', 'flush', 'chunk', 'spare', 'bitmap'];
  const handle = await open(file, 'w');
  try {
    for (let at = 0; at < (sizeBytes * 3) / 4; at += MIB) {
      if (at < sizeBytes / 2) await handle.write(randomBytes(random, MIB), 0, MIB, at);
      else {
        let text = '';
        while (text.length < MIB) text += `${words[random(words.length)]} ${random(100_000)} `;
        await handle.write(Buffer.from(text, 'latin1'), 0, MIB, at);
      }
    }
    await handle.truncate(sizeBytes);
  } finally {
    await handle.close();
  }
}

/** Its time, and the most memory that its process had at one time. */
async function run(
  [program = '', ...args]: readonly string[],
  environment: Readonly<Record<string, string>>,
): Promise<{ readonly ms: number; readonly memoryBytes: number }> {
  const begin = performance.now();
  const child = spawn(program, args, {
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { ...process.env, ...environment },
  });
  let memoryBytes = 0;
  const look = setInterval(() => {
    readFile(`/proc/${child.pid}/status`, 'latin1').then(
      (text) => {
        memoryBytes = Math.max(memoryBytes, KIB * Number(/VmHWM:\s*(\d+)/.exec(text)?.[1] ?? 0));
      },
      () => undefined,
    );
  }, 10);
  try {
    const [code] = (await once(child, 'exit')) as [number | null];
    const ms = performance.now() - begin;
    assert(code === 0, `${program} ${args.join(' ')} works`);
    return { ms, memoryBytes };
  } finally {
    clearInterval(look);
  }
}

async function isInstalled(program: string): Promise<boolean> {
  return await promisify(execFile)(program, [program === 'restic' ? 'version' : '--version']).then(
    () => true,
    () => false,
  );
}

async function sizeOf(folder: string): Promise<number> {
  let sum = 0;
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) sum += (await stat(join(entry.parentPath ?? entry.path, entry.name))).size;
  }
  return sum;
}

await main();
