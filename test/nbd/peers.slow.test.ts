/**
 * The server with clients that nobody here has written: libnbd's tools, QEMU's, fio, and the kernel with a file system on top.
 *
 * The array is open in this process, so that a test can take a disk away, rebuild and scrub while a client is at it; the
 * clients are processes of their own, never waited for synchronously, since it is we who answer them.
 */
import { execFile, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { cp, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { createArray } from '../../lib/array/folder.ts';
import { seededRandom } from '../../lib/host.ts';
import { NbdServer, type NbdTls } from '../../lib/nbd/server.ts';
import { MIB } from '../../lib/units.ts';
import { startRaidsim } from '../cli/raidsim.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { needPeer, type Skipping } from '../peer.ts';

interface Program {
  readonly program: string;
  readonly from: string;
}

const nbdinfo = { program: 'nbdinfo', from: 'libnbd-bin' };
const nbdcopy = { program: 'nbdcopy', from: 'libnbd-bin' };
const nbdfuse = { program: 'nbdfuse', from: 'libnbd-bin fuse3' };
const qemuImg = { program: 'qemu-img', from: 'qemu-utils' };
const qemuIo = { program: 'qemu-io', from: 'qemu-utils' };
const fio = { program: 'fio', from: 'fio' };
const openssl = { program: 'openssl', from: 'openssl' };
const ext4 = { program: 'mke2fs', from: 'e2fsprogs' };
const libnbd = { program: 'python3 with libnbd', from: 'python3-libnbd' };
/** The one whose modules the distribution installs. */
const PYTHON = '/usr/bin/python3';

function need(context: Skipping, ...programs: readonly Program[]): void {
  for (const each of programs) {
    const isThere =
      each === libnbd
        ? spawnSync(PYTHON, ['-c', 'import nbd']).status === 0
        : spawnSync(each.program, ['--version']).error === undefined;
    needPeer(isThere, each, context);
  }
}

interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function run(program: string, args: readonly string[], timeoutMs = 120_000): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const options = { maxBuffer: 2 ** 26, timeout: timeoutMs, killSignal: 'SIGKILL' as const };
    execFile(program, args, options, (error, stdout, stderr) => {
      const code = error === null ? 0 : error.code;
      if (typeof code === 'number') resolve({ code, stdout, stderr });
      else reject(new Error(`${program} ${args.join(' ')}: ${error?.message}\n${stderr}`));
    });
  });
}

/** What it says, where it ends well. */
async function done(program: string, args: readonly string[], timeoutMs?: number): Promise<string> {
  const { code, stdout, stderr } = await run(program, args, timeoutMs);
  if (code !== 0) throw new Error(`${program} ${args.join(' ')} ended with ${code}: ${stderr}${stdout}`);
  return stdout;
}

/** An array on files in memory, served on a Unix socket. */
class Served implements AsyncDisposable {
  readonly folder: string;
  readonly array: RaidArray;
  readonly server: NbdServer;
  readonly uri: string;

  private constructor(folder: string, array: RaidArray, server: NbdServer, uri: string) {
    this.folder = folder;
    this.array = array;
    this.server = server;
    this.uri = uri;
  }

  static async make(
    shape: Parameters<typeof createArray>[1],
    tls?: (folder: string) => Promise<NbdTls>,
  ): Promise<Served> {
    const folder = await scratch();
    const array = await createArray(join(folder, 'array'), { chunk: '64K', ...shape });
    const server = new NbdServer({
      exports: [
        { name: 'disk', device: array, description: 'under test' },
        { name: 'shut', device: array, readOnly: true },
      ],
      tls: await tls?.(folder),
    });
    const uri = await server.listenUnix(join(folder, 'nbd.sock'));
    return new Served(folder, array, server, uri);
  }

  get shutUri(): string {
    return this.uri.replace(':///', ':///shut');
  }

  path(...names: readonly string[]): string {
    return join(this.folder, ...names);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close(1000);
    await this.array.close();
    await rm(this.folder, { recursive: true, force: true });
  }
}

async function scratch(): Promise<string> {
  const isThere = await stat('/dev/shm').catch(() => null);
  return await mkdtemp(join(isThere === null ? tmpdir() : '/dev/shm', 'raidsim-nbd-'));
}

async function sha256(path: string, lengthBytes?: number): Promise<string> {
  const hash = createHash('sha256');
  const end = lengthBytes === undefined ? {} : { end: lengthBytes - 1 };
  for await (const chunk of createReadStream(path, end)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

async function mismatches(array: RaidArray): Promise<number> {
  let count = 0;
  for await (const step of array.scrub()) count = step.mismatchCount;
  return count;
}

const raid5 = { level: 5, disks: 4, spares: 1, diskSize: '32M' } as const;

describe('libnbd', () => {
  test('nbdinfo is told everything there is to tell', async (context) => {
    need(context, nbdinfo);
    await using served = await Served.make(raid5);
    const told = JSON.parse(await done('nbdinfo', ['--json', served.uri])) as Record<string, unknown>;
    expect(told).toMatchObject({ protocol: 'newstyle-fixed', TLS: false, structured: true });
    const [one] = told['exports'] as Record<string, unknown>[];
    expect(one).toMatchObject({
      'export-size': served.array.limits.sizeBytes,
      contexts: ['base:allocation'],
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_fast_zero: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 1,
      block_size_maximum: 32 * MIB,
    });
    const list = JSON.parse(await done('nbdinfo', ['--list', '--json', served.uri])) as {
      exports: Record<string, unknown>[];
    };
    expect(
      list.exports.map((each) => [each['export-name'], each['is_read_only'], each['description']]),
    ).toEqual([
      ['disk', false, 'under test'],
      ['shut', true, undefined],
    ]);
    const map = JSON.parse(await done('nbdinfo', ['--map', '--json', served.uri])) as { length: number }[];
    expect(map.reduce((sum, extent) => sum + extent.length, 0)).toBe(served.array.limits.sizeBytes);
  });

  test('nbdcopy in and out again, on several connections, gives the same bytes', async (context) => {
    need(context, nbdcopy);
    await withSeed(runSeed, async (random) => {
      await using served = await Served.make(raid5);
      const { sizeBytes } = served.array.limits;
      await writeFile(served.path('in'), randomBytes(random, sizeBytes));
      await done('nbdcopy', ['--connections=4', '--flush', served.path('in'), served.uri]);
      await served.array.fail('disk1');
      await done('nbdcopy', ['--connections=4', served.shutUri, served.path('out')]);
      expect(await sha256(served.path('out'))).toBe(await sha256(served.path('in')));
      const refused = await run('nbdcopy', [served.path('in'), served.shutUri]);
      expect(refused.code).not.toBe(0);
    });
  });

  test('what libnbd would not send by itself is refused, and the connection goes on', async (context) => {
    need(context, libnbd);
    await using served = await Served.make(raid5);
    const script = `
import errno, nbd, sys
uri, = sys.argv[1:]
def connect():
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    h.set_strict_mode(0)
    return h
def refused(name, expected, call):
    try:
        call()
        print(name, 'was not refused')
    except nbd.Error as error:
        if error.errnum != expected: print(name, 'was refused with', error.errno, error.string)
    # The same connection answers still.
    if h.pread(4, 0) != b'good': print(name, 'spoilt the connection')
h = connect()
size = h.get_size()
h.pwrite(b'good', 0)
refused('a read beyond the end', errno.EINVAL, lambda: h.pread(10, size - 5))
refused('a read at 2^63 - 1', errno.EINVAL, lambda: h.pread(1, 2**63 - 1))
refused('a write beyond the end', errno.ENOSPC, lambda: h.pwrite(b'x' * 10, size - 5))
refused('zeroes beyond the end', errno.ENOSPC, lambda: h.zero(10, size - 5))
refused('a trim beyond the end', errno.EINVAL, lambda: h.trim(10, size - 5))
refused('a cache beyond the end', errno.EINVAL, lambda: h.cache(10, size - 5))
refused('status beyond the end', errno.EINVAL, lambda: h.block_status(10, size - 5, lambda *a: 0))
refused('a read of nothing', errno.EINVAL, lambda: h.pread(0, 0))
refused('a write of nothing', errno.EINVAL, lambda: h.pwrite(b'', 0))
refused('zeroes of nothing', errno.EINVAL, lambda: h.zero(0, 0))
refused('an unknown flag on a read', errno.EINVAL, lambda: h.pread(4, 0, 0x8000))
refused('an unknown flag on a write', errno.EINVAL, lambda: h.pwrite(b'evil', 0, 0x8000))
refused('an unknown flag on a flush', errno.EINVAL, lambda: h.flush(0x8000))
refused('an unknown flag on a trim', errno.EINVAL, lambda: h.trim(4, 0, 0x8000))
refused('zeroes that must be fast', errno.ENOTSUP, lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO))
refused('a write that is too long', errno.EINVAL, lambda: h.pwrite(bytes(33 * 1024 * 1024), 0))
refused('a read that is too long', errno.EOVERFLOW, lambda: h.pread(33 * 1024 * 1024, 0))
print('whole', h.pread(32 * 1024 * 1024, 0)[:4] == b'good')
# Goodbye with requests under way, and a side that closes with requests under way.
g = connect()
cookies = [g.aio_pread(nbd.Buffer(65536), 0) for _ in range(50)]
g.shutdown()
# Many that never say goodbye.
for _ in range(20): connect()
print('end', h.pread(4, 0) == b'good')
`;
    // 33 MiB fit: the array is larger than what one request may carry.
    expect(served.array.limits.sizeBytes).toBeGreaterThan(64 * MIB);
    expect(await done(PYTHON, ['-c', script, served.uri])).toBe('whole True\nend True\n');
  });

  test.for([
    ['certificates', 'nbds+unix:///?socket=SOCKET&tls-certificates=FOLDER/pki'],
    ['shared keys', 'nbds+unix://alice@/?socket=SOCKET&tls-psk-file=FOLDER/keys.psk'],
  ])('TLS with %s', async ([kind = '', pattern = ''], context) => {
    need(context, nbdinfo, nbdcopy, openssl);
    await using served = await Served.make(raid5, kind === 'certificates' ? certificates : sharedKeys);
    const path = served.path('tls.sock');
    await served.server.listenUnix(path, { tls: true });
    const uri = pattern.replaceAll('SOCKET', path).replaceAll('FOLDER', served.folder);
    const told = JSON.parse(await done('nbdinfo', ['--json', uri])) as Record<string, unknown>;
    expect(told).toMatchObject({ TLS: true, structured: true });
    await writeFile(served.path('in'), randomBytes(seededRandom(1), 8 * MIB));
    await done('nbdcopy', [served.path('in'), uri]);
    await done('nbdcopy', [uri, served.path('out')]);
    expect(await sha256(served.path('out'), 8 * MIB)).toBe(await sha256(served.path('in')));
    const clear = await run('nbdinfo', [`nbd+unix:///?socket=${path}`]);
    expect(clear.code).not.toBe(0);
  });
});

/** An authority, and the server's certificate by it, as libnbd looks for them. */
async function certificates(folder: string): Promise<NbdTls> {
  const pki = join(folder, 'pki');
  await mkdir(pki);
  const at = (name: string): string => join(pki, name);
  const fresh = ['-newkey', 'rsa:2048', '-nodes', '-days', '2'];
  await done('openssl', [
    'req',
    '-x509',
    ...fresh,
    '-subj',
    '/CN=authority',
    '-keyout',
    at('ca-key.pem'),
    '-out',
    at('ca-cert.pem'),
  ]);
  await done('openssl', [
    'req',
    ...fresh.slice(0, 3),
    '-subj',
    '/CN=localhost',
    '-keyout',
    at('server-key.pem'),
    '-out',
    at('server.csr'),
  ]);
  await writeFile(at('names'), 'subjectAltName=DNS:localhost\n');
  const by = [
    '-CA',
    at('ca-cert.pem'),
    '-CAkey',
    at('ca-key.pem'),
    '-CAcreateserial',
    '-extfile',
    at('names'),
  ];
  await done('openssl', [
    'x509',
    '-req',
    '-in',
    at('server.csr'),
    ...by,
    '-days',
    '2',
    '-out',
    at('server-cert.pem'),
  ]);
  const [certificate, key] = await Promise.all(
    ['server-cert.pem', 'server-key.pem'].map((name) => readFile(at(name), 'utf8')),
  );
  return { certificate, key };
}

async function sharedKeys(folder: string): Promise<NbdTls> {
  const key = '00112233445566778899aabbccddeeff';
  await writeFile(join(folder, 'keys.psk'), `alice:${key}\n`);
  return { sharedKeys: new Map([['alice', Buffer.from(key, 'hex')]]) };
}

describe('QEMU', () => {
  test('qemu-io reads what it wrote, zeroed and discarded', async (context) => {
    need(context, qemuIo);
    await using served = await Served.make(raid5);
    const commands = [
      'write -P 7 4k 300k',
      'read -P 7 4k 300k',
      'write -z 8k 4k',
      'read -P 0 8k 4k',
      'write -zu 64k 64k',
      'read -P 0 64k 64k',
      'write -f -P 9 1M 1M',
      'aio_write -P 1 2M 64k',
      'aio_write -P 2 3M 64k',
      'aio_flush',
      'discard 4M 1M',
      'read -P 9 1M 1M',
      'read -P 1 2M 64k',
      'read -P 2 3M 64k',
      'flush',
    ].flatMap((command) => ['-c', command]);
    const said = await done('qemu-io', ['-f', 'raw', ...commands, served.uri]);
    expect(said).not.toMatch(/failed|error/i);
  });

  test('qemu-img converts to it and from it, compares, and finds nothing wrong', async (context) => {
    need(context, qemuImg);
    await withSeed(runSeed, async (random) => {
      await using served = await Served.make(raid5);
      const { sizeBytes } = served.array.limits;
      const content = randomBytes(random, sizeBytes);
      content.fill(0, 1 * MIB, 20 * MIB);
      await writeFile(served.path('in'), content);
      const raw = ['-f', 'raw'];
      await done('qemu-img', [
        'convert',
        '-n',
        ...raw,
        '-O',
        'raw',
        '-m',
        '16',
        '-W',
        served.path('in'),
        served.uri,
      ]);
      await done('qemu-img', ['compare', ...raw, '-F', 'raw', served.path('in'), served.uri]);
      await done('qemu-img', ['convert', ...raw, '-O', 'qcow2', served.uri, served.path('out.qcow2')]);
      await done('qemu-img', ['check', served.path('out.qcow2')]);
      await done('qemu-img', ['compare', ...raw, '-F', 'qcow2', served.uri, served.path('out.qcow2')]);
    });
  });
});

describe('fio, which verifies what it reads, while a disk fails, a spare is rebuilt and a scrub runs', () => {
  test.for([
    ['raid1', { level: 1, disks: 2, spares: 1, diskSize: '64M' }],
    ['raid5', { level: 5, disks: 4, spares: 1, diskSize: '32M' }],
    ['raid6', { level: 6, disks: 5, spares: 1, diskSize: '32M' }],
    ['raid10', { level: 10, disks: 4, spares: 1, diskSize: '32M' }],
  ] as const)('%s', async ([_level, shape], context) => {
    need(context, fio);
    await using served = await Served.make(shape);
    const { array } = served;
    // Two connections, each with half of the array; every block is checked soon after it was written.
    const half = Math.floor(array.limits.sizeBytes / 2 / MIB);
    const job = [
      '--name=mixed',
      '--ioengine=nbd',
      '--verify_state_save=0',
      `--uri=${served.uri}`,
      '--rw=randrw',
      '--rwmixread=30',
      '--bsrange=512-128k',
      '--iodepth=32',
      '--numjobs=2',
      `--size=${half}M`,
      `--offset_increment=${half}M`,
      '--verify=crc32c',
      '--verify_backlog=64',
      '--verify_fatal=1',
      '--time_based',
      '--runtime=6',
      `--randseed=${runSeed}`,
      '--output-format=json',
    ];
    const fioDone = run('fio', job);
    expect(await until(async () => served.server.clientCount >= 2, 30_000)).toBe(true);
    await array.fail('disk1');
    for await (const _step of array.rebuild());
    expect(array.degraded).toBe(0);
    expect(await mismatches(array)).toBe(0);
    const { code, stdout, stderr } = await fioDone;
    expect(`${code} ${stderr}`).toBe('0 ');
    const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as {
      jobs: { error: number; read: { total_ios: number }; write: { total_ios: number } }[];
    };
    expect(jobs.map(({ error }) => error)).toEqual([0, 0]);
    for (const { read, write } of jobs) expect(Math.min(read.total_ios, write.total_ios)).toBeGreaterThan(10);
    expect(await mismatches(array)).toBe(0);
  });
});

describe('a file system', () => {
  test('ext4 and a database on it outlive a disk that dies in mid-write', async (context) => {
    need(context, nbdfuse, ext4);
    await using served = await Served.make({ level: 5, disks: 4, spares: 1, diskSize: '48M' });
    const { array } = served;
    const image = served.path('fuse', 'disk');
    await mkdir(served.path('fuse'));
    const source = served.path('source');
    await mkdir(source);
    for (let index = 0; index < 40; index += 1) {
      await writeFile(join(source, `file${index}`), randomBytes(seededRandom(index), 1 + index * 40_000));
    }
    const fuse = run('nbdfuse', [image, served.uri], 300_000);
    const shown = await until(async () => (await stat(image).catch(() => null)) !== null, 10_000);
    if (!shown) {
      fuse.catch(() => undefined);
      needPeer(false, { program: '/dev/fuse', from: 'fuse3' }, context);
    }
    try {
      const isMounted = await mounted(image, served.path('mnt'));
      if (isMounted) await onMount(array, source, served.path('mnt'));
      else await withoutMount(array, source, image);
      if (isMounted) await done('umount', [served.path('mnt')]);
      for await (const _step of array.rebuild());
      expect(array.degraded).toBe(0);
      await done('e2fsck', ['-fn', image]);
      await mkdir(served.path('out'));
      await done('debugfs', ['-R', `rdump / ${served.path('out')}`, image]);
      for (let index = 0; index < 40; index += 1) {
        const [before, after] = [join(source, `file${index}`), join(served.path('out'), `file${index}`)];
        expect(await sha256(after), `file${index}`).toBe(await sha256(before));
      }
    } finally {
      await run('umount', [served.path('mnt')]).catch(() => undefined);
      await run('fusermount3', ['-u', served.path('fuse')]).catch(() => undefined);
      await fuse.catch(() => undefined);
    }
    expect(await mismatches(array)).toBe(0);
  });
});

async function mounted(image: string, target: string): Promise<boolean> {
  await mkdir(target);
  await done('mke2fs', ['-q', '-F', '-t', 'ext4', image]);
  return (await run('mount', ['-o', 'loop', image, target])).code === 0;
}

/** Files are copied and a database is filled; in the midst of it a disk goes. */
async function onMount(array: RaidArray, source: string, target: string): Promise<void> {
  const copied = cp(source, target, { recursive: true });
  const fill = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute('pragma journal_mode=wal')
db.execute('create table t (id integer primary key, text)')
for start in range(0, 3000, 100):
    with db: db.executemany('insert into t values (?, ?)', [(i, 'x' * (i % 500)) for i in range(start, start + 100)])
print(db.execute('pragma integrity_check').fetchone()[0], db.execute('select count(*), sum(length(text)) from t').fetchone())
`;
  const filled = done(PYTHON, ['-c', fill, join(target, 'base.db')]);
  const isUnderWay = async (): Promise<boolean> =>
    (await stat(join(target, 'base.db')).catch(() => null)) !== null;
  expect(await until(isUnderWay, 30_000)).toBe(true);
  await array.fail('disk2');
  await copied;
  expect(await filled).toBe(
    `ok (3000, ${[...Array(3000).keys()].reduce((sum, id) => sum + (id % 500), 0)})\n`,
  );
  await done('sync', ['-f', target]);
}

/** Where nothing can be mounted, the tool that makes the file system also fills it. */
async function withoutMount(array: RaidArray, source: string, image: string): Promise<void> {
  const filled = done('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', source, image]);
  expect(await until(async () => (await stat(image)).mtimeMs > 0, 30_000)).toBe(true);
  await array.fail('disk2');
  await filled;
}

async function until(isSo: () => Promise<boolean>, timeoutMs: number): Promise<boolean> {
  for (const end = performance.now() + timeoutMs; performance.now() < end; await sleep(50)) {
    if (await isSo()) return true;
  }
  return false;
}

test('serve ends clean within its bound though a client hangs in the middle of a request', async () => {
  const folder = await scratch();
  try {
    await using made = await createArray(join(folder, 'demo'), raid5);
    await made.close();
    const process_ = startRaidsim(['serve', 'demo'], folder);
    const ended = new Promise<number | null>((resolve) => process_.once('exit', (code) => resolve(code)));
    let said = '';
    process_.stdout?.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    await until(async () => said.includes('\n'), 20_000);
    expect(said.split('\n')[0]).toBe(`ready nbd+unix:///?socket=${join(folder, 'demo', 'nbd.sock')}`);
    const socket = createConnection(join(folder, 'demo', 'nbd.sock'));
    socket.on('error', () => undefined);
    await new Promise((resolve) => socket.once('data', resolve));
    // Its flags, GO, and a write of which the data never comes.
    const go = 'IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00';
    const write = Buffer.from('2560951300000001000000000000000100000000000000000000ffff', 'hex');
    socket.write(Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.from(go, 'latin1'), write]));
    await until(async () => said.includes('client 1 connected'), 20_000);
    process_.kill('SIGTERM');
    expect(await ended).toBe(0);
    expect(said).toContain('stopped\n');
    socket.destroy();
    const { inspectArray } = await import('../../lib/array/inspect.ts');
    expect((await inspectArray(join(folder, 'demo'))).status.state).toBe('clean');
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
