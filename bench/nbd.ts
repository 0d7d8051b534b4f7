/**
 * `npm run bench:nbd`: a raid5 of four files, served by raidsim, beside a plain file, served by nbdkit and by qemu-nbd. One
 * client for all of them: fio's nbd engine, one connection, 32 requests under way, over a Unix socket, with everything in memory.
 *
 * The others write no parity, and raidsim is written in TypeScript: what counts is the ratio in one run on one machine. `Node, bare`
 * (bare-nbd.ts) is the bound: the member I/O of a raid5 behind a socket of Node, on one thread, and nothing else. Servers
 * take turns, row by row, round by round; a row is the median of its rounds, of which the first is thrown away. `-- --only 'read 4'`: the
 * rows that are called so.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { outputFile, remove } from 'fs-extra/esm';
import { createArray } from '../lib/array/folder.ts';
import { formatSize, MIB } from '../lib/units.ts';
import { currentLoad, describeMachine, type Machine, makeFolder } from './machine.ts';

interface Work {
  readonly name: string;
  readonly rw: string;
  readonly blockBytes: number;
  /** What raidsim is to reach of nbdkit, and of qemu-nbd. */
  readonly aims: { readonly nbdkit: number; readonly qemu: number };
}

const works: readonly Work[] = [
  { name: 'random read 4 KiB', rw: 'randread', blockBytes: 4096, aims: { nbdkit: 1, qemu: 1 } },
  { name: 'random write 4 KiB', rw: 'randwrite', blockBytes: 4096, aims: { nbdkit: 0.7, qemu: 1 } },
  { name: 'read 1 MiB', rw: 'read', blockBytes: MIB, aims: { nbdkit: 1, qemu: 1 } },
  { name: 'write 1 MiB', rw: 'write', blockBytes: MIB, aims: { nbdkit: 0.7, qemu: 1 } },
];

const serverNames = ['raidsim', 'nbdkit', 'qemu', 'bare'] as const;
type ServerName = (typeof serverNames)[number];

interface Row {
  readonly work: string;
  readonly unit: 'requests/s' | 'bytes/s';
  readonly values: Readonly<Record<ServerName, number>>;
  readonly ratios: Readonly<Record<'nbdkit' | 'qemu' | 'bare', number>>;
  readonly aims: Work['aims'];
}

interface Result {
  readonly machine: Machine;
  readonly depth: number;
  readonly sizeBytes: number;
  readonly seconds: number;
  readonly rounds: number;
  readonly rows: readonly Row[];
}

const DEPTH = 32;
const MEMBER_BYTES = 128 * MIB;
const SIZE_BYTES = 3 * MEMBER_BYTES - 16 * MIB;

interface Server {
  readonly uri: string;
  stop(): Promise<void>;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { quick: { type: 'boolean' }, only: { type: 'string' }, json: { type: 'string' } },
  });
  const seconds = values.quick === true ? 1 : 5;
  const rounds = values.quick === true ? 2 : 4;
  const loadBefore = currentLoad();
  const folder = await makeFolder(undefined, 17 * MEMBER_BYTES);
  const servers = new Map<ServerName, Server>();
  try {
    servers.set('raidsim', await startRaidsim(folder.path));
    servers.set('nbdkit', await startNbdkit(folder.path));
    servers.set('qemu', await startQemu(folder.path));
    servers.set('bare', await startBare(folder.path));
    const rows: Row[] = [];
    for (const work of works.filter(({ name }) => name.includes(values.only ?? '')))
      rows.push(await measure(work, servers, seconds, rounds));
    const machine = describeMachine(folder, loadBefore);
    const result: Result = { machine, depth: DEPTH, sizeBytes: SIZE_BYTES, seconds, rounds, rows };
    process.stdout.write(`${textOf(result)}\n`);
    // dist/bench/nbd.js: the package is two folders up.
    const path = values.json ?? fileURLToPath(new URL('../../bench/results/nbd.json', import.meta.url));
    await outputFile(path, `${JSON.stringify(result, null, 2)}\n`);
    process.stdout.write(`\nall of it: ${path}\n`);
  } finally {
    for (const server of servers.values()) await server.stop();
    await remove(folder.path);
  }
}

async function measure(
  work: Work,
  servers: ReadonlyMap<ServerName, Server>,
  seconds: number,
  rounds: number,
): Promise<Row> {
  const seen = new Map<ServerName, number[]>(serverNames.map((name) => [name, []]));
  for (let round = 0; round < rounds; round += 1) {
    for (const [name, { uri }] of servers) {
      process.stderr.write(`${work.name}, ${name}, round ${round + 1} of ${rounds}\n`);
      seen.get(name)?.push(await fio(work, uri, seconds));
    }
  }
  const values = Object.fromEntries(
    serverNames.map((name) => [name, median(seen.get(name)?.slice(1) ?? [])]),
  ) as Record<ServerName, number>;
  return {
    work: work.name,
    unit: work.blockBytes === MIB ? 'bytes/s' : 'requests/s',
    values,
    ratios: {
      nbdkit: values.raidsim / values.nbdkit,
      qemu: values.raidsim / values.qemu,
      bare: values.raidsim / values.bare,
    },
    aims: work.aims,
  };
}

/** Requests a second; of large ones bytes a second. */
async function fio(work: Work, uri: string, seconds: number): Promise<number> {
  const { stdout } = await promisify(execFile)('fio', [
    '--name=row',
    '--ioengine=nbd',
    '--verify_state_save=0',
    `--uri=${uri}`,
    `--rw=${work.rw}`,
    `--bs=${work.blockBytes}`,
    `--size=${SIZE_BYTES}`,
    `--iodepth=${DEPTH}`,
    '--time_based',
    `--runtime=${seconds}`,
    '--output-format=json',
  ]);
  const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as {
    jobs: { read: Measured; write: Measured }[];
  };
  const job = jobs[0];
  if (job === undefined) throw new Error(`fio has measured nothing: ${stdout}`);
  const measured = work.rw.endsWith('read') ? job.read : job.write;
  return work.blockBytes === MIB ? measured.bw_bytes : measured.iops;
}

interface Measured {
  readonly iops: number;
  readonly bw_bytes: number;
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((left, right) => left - right);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

async function startRaidsim(folder: string): Promise<Server> {
  const array = await createArray(join(folder, 'array'), { level: 5, disks: 4, diskSize: MEMBER_BYTES });
  const content = new Uint8Array(4 * MIB).fill(0x5a);
  for (let at = 0; at < SIZE_BYTES; at += content.byteLength) await array.write(at, content);
  await array.close();
  // dist/bench/nbd.js
  const program = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  const path = join(folder, 'raidsim.sock');
  const args = [program, 'serve', join(folder, 'array'), '--quiet', '--socket', path];
  return await started(spawn(process.execPath, args, { stdio: 'ignore' }), path);
}

async function startNbdkit(folder: string): Promise<Server> {
  const path = join(folder, 'nbdkit.sock');
  const file = await plainFile(folder, 'nbdkit.img');
  return await started(spawn('nbdkit', ['--foreground', '--unix', path, 'file', file]), path);
}

async function startQemu(folder: string): Promise<Server> {
  const path = join(folder, 'qemu.sock');
  const file = await plainFile(folder, 'qemu.img');
  return await started(spawn('qemu-nbd', ['--persistent', '--format=raw', `--socket=${path}`, file]), path);
}

async function startBare(folder: string): Promise<Server> {
  const path = join(folder, 'bare.sock');
  const files = [await plainFile(folder, 'bare.img'), await plainFile(folder, 'bare-parity.img')];
  const program = fileURLToPath(new URL('./bare-nbd.js', import.meta.url));
  return await started(spawn(process.execPath, [program, path, ...files], { stdio: 'ignore' }), path);
}

async function plainFile(folder: string, name: string): Promise<string> {
  const path = join(folder, name);
  const file = await open(path, 'w');
  const content = new Uint8Array(4 * MIB).fill(0x5a);
  for (let at = 0; at < SIZE_BYTES; at += content.byteLength)
    await file.write(content, 0, content.byteLength, at);
  await file.close();
  return path;
}

async function started(child: ChildProcess, path: string): Promise<Server> {
  const failed = once(child, 'error').then(([error]) => {
    throw error;
  });
  failed.catch(() => undefined);
  const isThere = async (): Promise<boolean> => (await stat(path).catch(() => null)) !== null;
  for (let turn = 0; !(await isThere()); turn += 1) {
    if (turn > 200 || child.exitCode !== null) await failed;
    await Promise.race([sleep(50), failed]);
  }
  return {
    uri: `nbd+unix:///?socket=${path}`,
    async stop() {
      if (child.exitCode !== null) return;
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      await ended;
    },
  };
}

function textOf({ machine, rows, seconds, rounds }: Result): string {
  const value = (row: Row, name: ServerName): string =>
    row.unit === 'bytes/s'
      ? `${formatSize(Math.round(row.values[name]))}/s`
      : `${Math.round(row.values[name] / 100) / 10} k/s`;
  const cells = rows.map((row) => [
    row.work,
    ...serverNames.map((name) => value(row, name)),
    ...(['nbdkit', 'qemu'] as const).map(
      (name) =>
        `${row.ratios[name].toFixed(2)}${row.ratios[name] < row.aims[name] ? ` < ${row.aims[name]}` : ''}`,
    ),
    row.ratios.bare.toFixed(2),
  ]);
  const head = [
    'depth 32',
    'raidsim raid5',
    'nbdkit file',
    'qemu-nbd file',
    'Node, bare',
    'of nbdkit',
    'of qemu-nbd',
    'of bare',
  ];
  const widths = head.map((title, column) =>
    Math.max(title.length, ...cells.map((line) => line[column]?.length ?? 0)),
  );
  const line = (texts: readonly string[]): string =>
    texts
      .map((text, column) =>
        column === 0 ? text.padEnd(widths[0] ?? 0) : text.padStart(widths[column] ?? 0),
      )
      .join('  ');
  return [
    `${machine.cpu}, ${machine.cores} cores, ${machine.kernel}, Node ${machine.node}, on ${machine.fileSystem}; ${rounds - 1} rounds of ${seconds} s; load ${machine.loadBefore.toFixed(1)} before, ${machine.loadAfter.toFixed(1)} after`,
    '',
    line(head),
    ...cells.map(line),
  ].join('\n');
}

await main();
