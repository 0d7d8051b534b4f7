/** The NBD client with servers that others wrote, alone and as members of arrays, while servers fail, die and come back. */
import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { createArray, openArray } from '../../lib/array/folder.ts';
import { RaidError } from '../../lib/errors.ts';
import { type Host, realHost, seededRandom } from '../../lib/host.ts';
import { NbdDevice } from '../../lib/nbd/client.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { conformance } from '../conformance/suite.ts';
import { needPeer } from '../peer.ts';
import { kit, Lab, openssl, type PeerServer, qemu } from './client-peers.ts';

const lab = new Lab();
afterAll(() => lab.remove());

/** One server for all checks of a suite, started by the first of them. */
function exportOf(start: () => Promise<PeerServer>): () => Promise<{ readonly device: NbdDevice }> {
  let server: Promise<PeerServer> | null = null;
  return async () => {
    server ??= start();
    return { device: await NbdDevice.open((await server).uri) };
  };
}

const suites: readonly (readonly [string, typeof kit, () => Promise<PeerServer>])[] = [
  ['nbdkit memory', kit, () => lab.nbdkit('memory', '2M')],
  ['nbdkit file', kit, () => lab.nbdkit('file', lab.file(2 * MIB))],
  ['nbdkit without structured replies', kit, () => lab.nbdkit('--no-sr', 'memory', '2M')],
  [
    'nbdkit that takes blocks of 4096 only',
    kit,
    () =>
      lab.nbdkit(
        '--filter=blocksize-policy',
        'memory',
        '2M',
        'blocksize-minimum=4096',
        'blocksize-preferred=65536',
        'blocksize-maximum=128K',
        'blocksize-error-policy=error',
      ),
  ],
  ['nbdkit that has no zeroing', kit, () => lab.nbdkit('--filter=nozero', 'memory', '2M')],
  ['qemu-nbd', qemu, () => lab.qemu('-f', 'raw', lab.file(2 * MIB))],
];
for (const [name, peer, start] of suites) {
  if (peer.isThere) conformance(name, exportOf(start), { requests: 60 });
  else test(name, (context) => needPeer(false, peer, context));
}

/**
 * The time of clients, until the server is meant to be too slow: till then a busy machine may well make it slow, and no request
 * should fail of that. From then on every sleep is a sixtieth of what it was, and 30 s are over in half a second.
 */
class Patience {
  readonly #over = new AbortController();
  readonly host: Host = {
    ...realHost,
    sleep: async (ms, signal) => {
      const signals = [this.#over.signal, ...(signal === undefined ? [] : [signal])];
      if (!this.#over.signal.aborted) await realHost.sleep(ms, AbortSignal.any(signals));
      else await realHost.sleep(ms / 60, signal);
    },
  };

  end(): void {
    this.#over.abort();
  }
}

async function codeOf(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => 'done',
    (error: unknown) => {
      if (!(error instanceof RaidError)) throw error;
      return error.code;
    },
  );
}

test('errors of a real server are the errors of a disk, and go when it is well again', async (context) => {
  needPeer(kit.isThere, kit, context);
  const trigger = join(lab.folder, 'trigger');
  const server = await lab.nbdkit(
    '--filter=error',
    'memory',
    '1M',
    'error-rate=100%',
    `error-file=${trigger}`,
  );
  await using device = await NbdDevice.open(server.uri);
  const page = new Uint8Array(4 * KIB).fill(7);
  await device.write(0, page);
  writeFileSync(trigger, '');
  expect(await codeOf(device.read(0, page.slice()))).toBe('MEDIUM_ERROR');
  expect(await codeOf(device.write(0, page))).toBe('WRITE_FAILED');
  expect(await codeOf(device.writeZeroes(0, 4 * KIB))).toBe('WRITE_FAILED');
  rmSync(trigger);
  expect(await codeOf(device.read(0, page.slice()))).toBe('done');
});

test('a server that fails half of all reads behind its own retries is only slow', async (context) => {
  needPeer(kit.isThere, kit, context);
  const filters = ['--filter=retry-request', '--filter=error'];
  const server = await lab.nbdkit(
    ...filters,
    'memory',
    '1M',
    'retry-request-retries=30',
    'retry-request-delay=1',
    'error-pread-rate=50%',
  );
  await using device = await NbdDevice.open(server.uri);
  const page = new Uint8Array(4 * KIB).fill(7);
  await device.write(0, page);
  const reads = Array.from({ length: 8 }, () => new Uint8Array(4 * KIB));
  await Promise.all(reads.map((target) => device.read(0, target)));
  for (const target of reads) expect(Buffer.compare(target, page)).toBe(0);
});

test('a server that is too slow is a member that failed, and closing it takes no time', async (context) => {
  needPeer(kit.isThere, kit, context);
  const server = await lab.nbdkit('--filter=delay', 'memory', '1M', 'delay-read=20');
  const patience = new Patience();
  const device = await NbdDevice.open(server.uri, { host: patience.host });
  await device.write(0, new Uint8Array(4 * KIB));
  patience.end();
  expect(await codeOf(device.read(0, new Uint8Array(4 * KIB)))).toBe('MEMBER_GONE');
  await device.close();
});

test('a server of files that is killed and started again under load is found again, and nothing is lost', async (context) => {
  needPeer(kit.isThere, kit, context);
  await withSeed(runSeed, async (random) => {
    const server = await lab.nbdkit('file', lab.file(4 * MIB));
    await using device = await NbdDevice.open(server.uri);
    const model = Buffer.alloc(4 * MIB);
    for (let round = 0; round < 10; round += 1) {
      const writes: Promise<void>[] = [];
      for (let place = 0; place < 64; place += 1) {
        const offsetBytes = (place * 64 + random(8)) * KIB;
        const bytes = randomBytes(random, (1 + random(48)) * KIB);
        model.set(bytes, offsetBytes);
        writes.push(device.write(offsetBytes, bytes));
        if (place === 32) server.signal('SIGKILL');
      }
      await server.start();
      await Promise.all(writes);
      if (round % 3 === 0) await device.flush();
    }
    const seen = new Uint8Array(4 * MIB);
    await device.read(0, seen);
    expect(Buffer.compare(seen, model)).toBe(0);
  });
});

test('a server that comes back empty is not believed: no zeros are read for data', async (context) => {
  needPeer(kit.isThere, kit, context);
  const server = await lab.nbdkit('memory', '1M');
  const device = await NbdDevice.open(server.uri);
  await device.write(0, new Uint8Array(64 * KIB).fill(7));
  await device.flush();
  server.signal('SIGKILL');
  await server.start();
  await expect(device.read(0, new Uint8Array(4 * KIB))).rejects.toMatchObject({
    code: 'MEMBER_GONE',
    message: expect.stringContaining('holds something else'),
  });
  await device.close();
});

// Arrays.

const DISK_BYTES = 8 * MIB;

function fileServers(count: number): Promise<PeerServer[]> {
  return Promise.all(Array.from({ length: count }, () => lab.nbdkit('file', lab.file(DISK_BYTES))));
}

/** Writes all over the array until it is told to stop, and knows what it holds. */
class Load {
  readonly model: Buffer;
  readonly #array: RaidArray;
  readonly #random: (below: number) => number;
  #isOver = false;
  readonly #running: Promise<void>[] = [];
  writes = 0;

  constructor(array: RaidArray, random: (below: number) => number) {
    this.#array = array;
    this.#random = random;
    this.model = Buffer.alloc(array.limits.sizeBytes);
    const partBytes = Math.floor(array.limits.sizeBytes / 4 / (64 * KIB)) * 64 * KIB;
    for (let part = 0; part < 4; part += 1) this.#running.push(this.#run(part * partBytes, partBytes));
  }

  async #run(startBytes: number, lengthBytes: number): Promise<void> {
    const random = seededRandom(this.#random(2 ** 31));
    while (!this.#isOver) {
      const count = 4 * KIB * (1 + random(24));
      const offsetBytes = startBytes + 4 * KIB * random((lengthBytes - count) / (4 * KIB));
      const bytes = randomBytes(random, count);
      await this.#array.write(offsetBytes, bytes);
      this.model.set(bytes, offsetBytes);
      this.writes += 1;
      if (random(20) === 0) await this.#array.flush();
      if (random(3) > 0) continue;
      const seen = new Uint8Array(count);
      await this.#array.read(offsetBytes, seen);
      if (Buffer.compare(seen, bytes) !== 0)
        throw new Error(`a read at ${offsetBytes} is not what was written`);
    }
  }

  /** Until so many more have been written. */
  async goOn(writes: number): Promise<void> {
    const end = this.writes + writes;
    while (this.writes < end) await new Promise<void>((resolve) => setImmediate(resolve));
  }

  async stop(): Promise<void> {
    this.#isOver = true;
    await Promise.all(this.#running);
  }
}

async function expectContent(array: RaidArray, model: Buffer): Promise<void> {
  const seen = Buffer.alloc(model.byteLength);
  await array.read(0, seen);
  let first = 0;
  if (Buffer.compare(seen, model) !== 0) while (seen[first] === model[first]) first += 1;
  else first = -1;
  expect(first, 'offset of the first byte that is wrong').toBe(-1);
}

async function mismatchesOf(array: RaidArray): Promise<number> {
  let count = 0;
  for await (const step of array.scrub()) count = step.mismatchCount;
  return count;
}

async function synced(array: RaidArray): Promise<void> {
  for await (const _step of array.rebuild()) {
    // Until it is done.
  }
}

test('an array over four servers, one of which dies under load, is added again and is whole', async (context) => {
  needPeer(kit.isThere, kit, context);
  await withSeed(runSeed, async (random) => {
    const servers = await fileServers(4);
    const members = servers.map(({ uri }) => uri);
    const folder = join(lab.folder, 'dies');
    const shape = { level: 5, chunk: '64K', bitmap: 'internal' as const, assumeClean: true };
    const array = await createArray(folder, { ...shape, members });
    const load = new Load(array, random);
    await load.goOn(50);
    servers[2]!.signal('SIGKILL');
    await load.goOn(200);
    expect(array.state).toBe('degraded');
    const gone = array.members.find(({ state }) => state.state === 'faulty')!;
    expect(gone.errors.write + gone.errors.read).toBeGreaterThan(0);
    await servers[2]!.start();
    const back = await NbdDevice.open(servers[2]!.uri);
    await array.remove(gone.name);
    await array.reAdd(back, gone.name);
    await load.goOn(50);
    await load.stop();
    await synced(array);
    expect(array.state === 'clean' || array.state === 'active').toBe(true);
    expect(await mismatchesOf(array)).toBe(0);
    await expectContent(array, load.model);
    await array.close();

    const again = await openArray(folder);
    await expectContent(again, load.model);
    expect(again.status().degraded).toBe(0);
    await again.close();
  });
});

test('an array over servers that are restarted, one after the other, under load, misses none of them', async (context) => {
  needPeer(kit.isThere, kit, context);
  await withSeed(runSeed, async (random) => {
    const servers = await fileServers(4);
    const folder = join(lab.folder, 'restarts');
    const members = servers.map(({ uri }) => uri);
    const array = await createArray(folder, { level: 6, chunk: '64K', members, assumeClean: true });
    const load = new Load(array, random);
    for (const server of [...servers, ...servers]) {
      await load.goOn(30);
      server.signal('SIGKILL');
      await server.start();
    }
    await load.goOn(30);
    await load.stop();
    expect(array.degraded).toBe(0);
    expect(await mismatchesOf(array)).toBe(0);
    await expectContent(array, load.model);
    await array.close();
  });
});

test('a member that hangs is failed, the array goes on, and closing it does not wait for it', async (context) => {
  needPeer(kit.isThere, kit, context);
  await withSeed(runSeed, async (random) => {
    const servers = await fileServers(3);
    const patience = new Patience();
    const members = await Promise.all(
      servers.map(({ uri }, index) => NbdDevice.open(uri, index === 1 ? { host: patience.host } : {})),
    );
    const array = await createArray('hangs', { level: 5, chunk: '64K', members, assumeClean: true });
    const load = new Load(array, random);
    await load.goOn(30);
    servers[1]!.signal('SIGSTOP');
    patience.end();
    await load.goOn(100);
    expect(array.state).toBe('degraded');
    await load.stop();
    await expectContent(array, load.model);
    await array.close();
    servers[1]!.signal('SIGCONT');
  });
});

test('an array whose last servers all hang ends every request and closes', async (context) => {
  needPeer(kit.isThere, kit, context);
  const servers = await fileServers(3);
  const patience = new Patience();
  const { host } = patience;
  const members = await Promise.all(servers.map(({ uri }) => NbdDevice.open(uri, { host })));
  const array = await createArray('all-hang', { level: 5, chunk: '64K', members, assumeClean: true });
  await array.write(0, new Uint8Array(64 * KIB));
  for (const server of servers) server.signal('SIGSTOP');
  patience.end();
  expect(await codeOf(array.write(0, new Uint8Array(64 * KIB)))).not.toBe('done');
  expect(await codeOf(array.read(256 * KIB, new Uint8Array(4 * KIB)))).not.toBe('done');
  await codeOf(array.close());
  for (const server of servers) server.signal('SIGCONT');
});

// TLS.

function certificates(): string {
  const folder = join(lab.folder, 'pki');
  const run = (...args: readonly string[]): void => {
    execFileSync('openssl', args, { cwd: folder, stdio: 'ignore' });
  };
  execFileSync('mkdir', [folder]);
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  run(
    'req',
    '-x509',
    ...key,
    '-keyout',
    'ca-key.pem',
    '-out',
    'ca-cert.pem',
    '-days',
    '2',
    '-subj',
    '/CN=test CA',
  );
  for (const who of ['server', 'client']) {
    run('req', ...key, '-keyout', `${who}-key.pem`, '-out', `${who}.csr`, '-subj', `/CN=${who}`);
    writeFileSync(join(folder, `${who}.ext`), 'subjectAltName=DNS:disk.example\n');
    const sign = ['-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial', '-days', '2'];
    run('x509', '-req', '-in', `${who}.csr`, ...sign, '-extfile', `${who}.ext`, '-out', `${who}-cert.pem`);
  }
  return folder;
}

test('over TLS with certificates, and only with the right ones', async (context) => {
  needPeer(kit.isThere, kit, context);
  needPeer(openssl.isThere, openssl, context);
  const folder = certificates();
  const server = await lab.nbdkit(
    '--tls=require',
    `--tls-certificates=${folder}`,
    '--tls-verify-peer',
    'memory',
    '4M',
  );
  const socket = server.uri.slice(server.uri.indexOf('socket='));
  const secure = `nbds+unix:///?${socket}`;
  await using device = await NbdDevice.open(`${secure}&tls-certificates=${folder}&tls-hostname=disk.example`);
  const bytes = randomBytes(seededRandom(runSeed), 3 * MIB);
  await device.write(4096, bytes);
  const seen = new Uint8Array(3 * MIB);
  await device.read(4096, seen);
  expect(Buffer.compare(seen, bytes)).toBe(0);

  const plain = await NbdDevice.open(server.uri).catch((error: RaidError) => error);
  expect(plain).toMatchObject({ code: 'BAD_ARGUMENT', message: expect.stringContaining('it wants TLS') });
  const otherName = `${secure}&tls-certificates=${folder}&tls-hostname=other.example`;
  expect(await codeOf(NbdDevice.open(otherName))).toBe('MEMBER_GONE');
  expect(await codeOf(NbdDevice.open(`${secure}&tls-hostname=disk.example`))).toBe('MEMBER_GONE');
  const clear = (await lab.nbdkit('memory', '1M')).uri.replace('nbd+unix', 'nbds+unix');
  await expect(NbdDevice.open(`${clear}&tls-hostname=disk.example`)).rejects.toMatchObject({
    code: 'BAD_ARGUMENT',
    message: expect.stringContaining('it does not do TLS'),
  });
});

test('over TLS with a shared key, and only with the right one', async (context) => {
  needPeer(kit.isThere, kit, context);
  const file = join(lab.folder, 'keys.psk');
  const wrong = join(lab.folder, 'wrong.psk');
  writeFileSync(file, `alice:${'5a'.repeat(32)}\n`);
  writeFileSync(wrong, `alice:${'a5'.repeat(32)}\n`);
  const server = await lab.nbdkit('--tls=require', `--tls-psk=${file}`, 'memory', '4M');
  const socket = server.uri.slice(server.uri.indexOf('socket='));
  const withKeys = (path: string): string =>
    `nbds+unix://alice@/?${socket}&tls-type=psk&tls-psk-file=${path}`;
  await using device = await NbdDevice.open(withKeys(file));
  const bytes = randomBytes(seededRandom(runSeed), MIB);
  await device.write(0, bytes);
  const seen = new Uint8Array(MIB);
  await device.read(0, seen);
  expect(Buffer.compare(seen, bytes)).toBe(0);
  expect(await codeOf(NbdDevice.open(withKeys(wrong)))).toBe('MEMBER_GONE');
  expect(readFileSync(file, 'utf8')).toContain('alice');
});
