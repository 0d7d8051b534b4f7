/**
 * Real servers as paths: processes that are killed, stopped and started again under a load that checks everything it
 * reads. Two nbdkit or two qemu-nbd serve one file, whose cache is the kernel's; `raidsim serve` is one process with two
 * doors.
 */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { createArray, openArray } from '../../lib/array/folder.ts';
import { openPaths } from '../../lib/array/paths.ts';
import { DelayDevice } from '../../lib/device/delay.ts';
import type { Device } from '../../lib/device/device.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { realHost } from '../../lib/host.ts';
import { parseConf } from '../../lib/multipath/conf.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { startRaidsim } from '../cli/raidsim.ts';
import { type Random, randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { kit, Lab, type PeerServer, qemu } from '../nbd/client-peers.ts';
import { needPeer } from '../peer.ts';
import { Doors, disk } from './paths.ts';

const CONF = `defaults {
  polling_interval 1
  max_polling_interval 1
  checker_timeout 1
  path_grouping_policy multibus
  path_selector "queue-length 0"
  no_path_retry queue
}
`;

/** Writers with blocks of their own; each block holds what was written last. */
class Load {
  requests = 0;
  longestMs = 0;
  readonly #device: Device;
  #isOver = false;
  readonly #work: Promise<unknown>;

  constructor(device: Device, random: Random, writers = 8) {
    this.#device = device;
    this.#work = Promise.all(Array.from({ length: writers }, (_, index) => this.#write(index, random)));
    this.#work.catch(() => undefined);
  }

  /** Until so many requests have been done, or one has failed. */
  async reach(requests: number): Promise<void> {
    while (this.requests < requests) await Promise.race([sleep(20), this.#work]);
  }

  async end(): Promise<void> {
    this.#isOver = true;
    await this.#work;
  }

  async #write(index: number, random: Random): Promise<void> {
    const region = 256 * KIB;
    const last = new Map<number, Uint8Array>();
    while (!this.#isOver) {
      const at = index * region + random(16) * 16 * KIB;
      const known = last.get(at);
      if (known !== undefined && random(2) === 0) {
        const found = new Uint8Array(known.byteLength);
        await this.#timed(this.#device.read(at, found));
        if (Buffer.compare(found, known) !== 0) throw new Error(`${at} does not hold what was written last`);
      } else {
        const bytes = randomBytes(random, 512 * (1 + random(32)));
        await this.#timed(this.#device.write(at, bytes));
        last.set(at, bytes);
      }
      if (random(50) === 0) await this.#timed(this.#device.flush());
    }
    for (const [at, bytes] of last) {
      const found = new Uint8Array(bytes.byteLength);
      await this.#device.read(at, found);
      if (Buffer.compare(found, bytes) !== 0) throw new Error(`${at} has lost what was written last`);
    }
  }

  async #timed(request: Promise<unknown>): Promise<void> {
    const startMs = performance.now();
    await request;
    this.requests += 1;
    this.longestMs = Math.max(this.longestMs, performance.now() - startMs);
  }
}

async function mismatches(array: RaidArray): Promise<number> {
  let count = 0;
  for await (const step of array.scrub()) count = step.mismatchCount;
  return count;
}

type Serve = (lab: Lab, file: string) => Promise<PeerServer>;

const servers: Readonly<Record<string, { readonly peer: typeof kit; readonly serve: Serve }>> = {
  nbdkit: { peer: kit, serve: (lab, file) => lab.nbdkit('file', file) },
  'qemu-nbd': {
    peer: qemu,
    serve: (lab, file) =>
      lab.qemu('--image-opts', `driver=raw,file.driver=file,file.filename=${file},file.locking=off`),
  },
};

test.for(Object.keys(servers))(
  'killing a real server is a path failure: nothing is lost, nobody is told (%s)',
  async (name, context) => {
    const { peer, serve } = servers[name] ?? expect.fail();
    needPeer(peer.isThere, peer, context);
    await withSeed(runSeed, async (random) => {
      const lab = new Lab();
      try {
        const disks: (readonly PeerServer[])[] = [];
        for (let index = 0; index < 3; index += 1) {
          const file = lab.file(16 * MIB);
          disks.push([await serve(lab, file), await serve(lab, file)]);
        }
        const members = disks.map((paths) => paths.map(({ uri }) => uri).join('|'));
        const path = join(lab.folder, 'array');
        await (
          await createArray(path, { level: 5, members, chunk: '64K', assumeClean: false, autoSync: true })
        ).close();
        await writeFile(join(path, 'multipath.conf'), CONF);
        await using array = await openArray(path);
        const load = new Load(array, random);
        let kills = 0;
        for (const end = performance.now() + 12_000; performance.now() < end; kills += 1) {
          const paths = disks[random(disks.length)] ?? [];
          // Now and then all paths of one disk at once: its requests wait.
          const victims = random(5) === 0 ? paths : [paths[random(paths.length)] as PeerServer];
          for (const victim of victims) victim.signal('SIGKILL');
          await sleep(random(600));
          for (const victim of victims) await victim.start();
          // Time for a checker to find it again.
          await sleep(1200 + random(1500));
        }
        // As many as a slow machine needs time for.
        await load.reach(1000);
        await load.end();
        console.log(
          `${name}: ${kills} kills, ${load.requests} requests, the longest took ${load.longestMs.toFixed(0)} ms; seed ${runSeed}`,
        );
        expect(array.degraded).toBe(0);
        expect(await mismatches(array)).toBe(0);
      } finally {
        lab.remove();
      }
    });
  },
);

test('raidsim serve, killed and started again, is one server with two doors', async () => {
  await withSeed(runSeed, async (random) => {
    const lab = new Lab();
    let server: ChildProcess | null = null;
    try {
      const inner = await createArray(join(lab.folder, 'inner'), { level: 1, disks: 2, diskSize: '16M' });
      await inner.close();
      const port = await freePort();
      const serve = async (): Promise<ChildProcess> => {
        const child = startRaidsim(['serve', 'inner', '--listen', `127.0.0.1:${port}`], lab.folder);
        await new Promise<void>((resolve, reject) => {
          let said = '';
          child.once('exit', (code) => reject(new Error(`serve ended with ${code}: ${said}`)));
          child.stdout?.on('data', (chunk: Buffer) => {
            said += chunk.toString();
            if (said.includes(`also nbd://127.0.0.1:${port}`)) resolve();
          });
          child.stderr?.on('data', (chunk: Buffer) => {
            said += chunk.toString();
          });
        });
        return child;
      };
      server = await serve();
      const doors = [`nbd+unix:///?socket=${lab.folder}/inner/nbd.sock`, `nbd://127.0.0.1:${port}`];
      const path = join(lab.folder, 'outer');
      const members = [doors.join('|')];
      await (await createArray(path, { level: 1, members, force: true, assumeClean: true })).close();
      await writeFile(join(path, 'multipath.conf'), CONF);
      await using array = await openArray(path);
      const load = new Load(array, random);
      for (let kills = 0; kills < 3; kills += 1) {
        await sleep(700 + random(700));
        server.kill('SIGKILL');
        server = await serve();
      }
      await load.reach(load.requests + 500);
      await load.end();
      console.log(
        `raidsim serve: ${load.requests} requests, the longest took ${load.longestMs.toFixed(0)} ms; seed ${runSeed}`,
      );
      expect(array.state).not.toBe('failed');
      await array.close();
      server.kill('SIGTERM');
      await once(server, 'exit');
    } finally {
      server?.kill('SIGKILL');
      lab.remove();
    }
  });
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { readonly port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

test('a server that does not say that its connections share a cache is refused as one of several', async (context) => {
  needPeer(kit.isThere, kit, context);
  const lab = new Lab();
  try {
    const file = lab.file(8 * MIB);
    const alone = (): Promise<PeerServer> =>
      lab.nbdkit('--filter=multi-conn', 'file', file, 'multi-conn-mode=disable');
    const source = [(await alone()).uri, (await alone()).uri].join('|');
    await expect(openPaths(source)).rejects.toMatchObject({
      code: 'BAD_ARGUMENT',
      message: expect.stringContaining('CAN_MULTI_CONN'),
    });
  } finally {
    lab.remove();
  }
});

describe('a server that falls silent', () => {
  const silent = { conf: parseConf(CONF.replace('queue\n', 'fail\n')) };

  test('with reads alone under way: they are done by another path', async (context) => {
    needPeer(kit.isThere, kit, context);
    const lab = new Lab();
    try {
      const file = lab.file(8 * MIB);
      const paths = [await lab.nbdkit('file', file), await lab.nbdkit('file', file)];
      await using device = await openPaths(paths.map(({ uri }) => uri).join('|'), silent);
      paths[0]?.signal('SIGSTOP');
      const states = (): readonly string[] =>
        device.status().groups.flatMap((group) => group.paths.map(({ state }) => state));
      while (!states().includes('down')) {
        await Promise.all(
          Array.from({ length: 8 }, (_, index) => device.read(index * 4096, new Uint8Array(4096))),
        );
      }
      expect(states().toSorted()).toEqual(['down', 'up']);
    } finally {
      lab.remove();
    }
  });

  test('with a write under way: nobody can fence it, so the member has failed, and what it does late changes nothing', async (context) => {
    needPeer(kit.isThere, kit, context);
    const lab = new Lab();
    try {
      const disks: (readonly PeerServer[])[] = [];
      for (let index = 0; index < 3; index += 1) {
        const file = lab.file(8 * MIB);
        disks.push([await lab.nbdkit('file', file), await lab.nbdkit('file', file)]);
      }
      const members = disks.map((paths) => paths.map(({ uri }) => uri).join('|'));
      const path = join(lab.folder, 'array');
      await (
        await createArray(path, { level: 5, members, chunk: '64K', assumeClean: true, autoSync: false })
      ).close();
      await writeFile(join(path, 'multipath.conf'), CONF);
      await using array = await openArray(path, { autoSync: false });
      await withSeed(runSeed, async (random) => {
        const load = new Load(array, random);
        await sleep(300);
        disks[1]?.[0]?.signal('SIGSTOP');
        // Of the load it may have reads alone, which the other path does. So much at once goes by both.
        const stripeBytes = 2 * 64 * KIB;
        const writes = Array.from({ length: 32 }, (_, index) =>
          array.write(4 * MIB + index * stripeBytes, new Uint8Array(stripeBytes).fill(1)),
        );
        await Promise.all(writes);
        expect(array.degraded).toBe(1);
        await load.reach(load.requests + 500);
        // What it was given long ago happens now.
        disks[1]?.[0]?.signal('SIGCONT');
        await sleep(500);
        await load.end();
      });
      expect(array.degraded).toBe(1);
      expect(array.members.find(({ state }) => state.state === 'faulty')?.state).toMatchObject({
        because: { message: expect.stringContaining('could not be fenced') },
      });
    } finally {
      lab.remove();
    }
  });
});

test('all paths are lost, and with them what was not flushed: it is written again before they are used', async () => {
  await using doors = await Doors.make();
  const before = disk();
  const source = `${await doors.begin('a', before)}|${await doors.begin('b', before)}`;
  const device = await openPaths(source, { conf: parseConf(CONF) });
  const [flushed, late] = [new Uint8Array(4096).fill(1), new Uint8Array(8192).fill(2)];
  await device.write(0, flushed);
  await device.flush();
  // As the disk is after a power cut: it holds what was flushed, and no more.
  const after = await copyOf(before);
  await device.write(MIB, late);
  await device.writeZeroes(0, 512);
  for (const name of ['a', 'b']) await doors.end(name);
  const waits = device.write(2 * MIB, flushed);
  for (const name of ['b', 'a']) await doors.begin(name, after);
  await waits;
  await device.flush();
  const found = new Uint8Array(8192);
  await after.read(MIB, found);
  expect(Buffer.compare(found, late)).toBe(0);
  await after.read(0, found);
  expect([found[0], found[511], found[512], found[4095]]).toEqual([0, 0, 1, 1]);
  await device.close();
});

test('another disk at the same address is not taken for the one that was lost', async () => {
  await using doors = await Doors.make();
  const one = disk();
  const source = `${await doors.begin('a', one)}|${await doors.begin('b', one)}`;
  const device = await openPaths(source, { conf: parseConf(CONF) });
  await device.write(0, new Uint8Array(4096).fill(7));
  await device.flush();
  await doors.end('b');
  await doors.begin('b', disk());
  // Its path is found down, and looked at again by the checkers.
  const stateOf = () =>
    device
      .status()
      .groups.flatMap((group) => group.paths)
      .find(({ name }) => name === doors.uri('b'));
  for (const end = performance.now() + 10_000; performance.now() < end; await sleep(50)) {
    const { state, why } = stateOf() ?? expect.fail();
    if (state === 'down' && why?.includes('not the one that was lost') === true) break;
  }
  expect(stateOf()).toMatchObject({
    state: 'down',
    why: expect.stringContaining('not the one that was lost'),
  });
  const found = new Uint8Array(4096);
  for (let round = 0; round < 10; round += 1) {
    await device.read(0, found);
    expect(found[0]).toBe(7);
  }
  await device.close();
});

async function copyOf(device: MemoryDevice): Promise<MemoryDevice> {
  const { sizeBytes } = device.limits;
  const [bytes, copy] = [new Uint8Array(sizeBytes), new MemoryDevice({ sizeBytes })];
  await device.read(0, bytes);
  await copy.write(0, bytes);
  return copy;
}

describe('what was not flushed is written again by the first path that is back, and that hangs amid it', () => {
  /** All paths are lost with a write that is not flushed; the first that is back leads to a disk that takes no writes. */
  const lost = async (doors: Doors) => {
    const before = disk();
    const source = `${await doors.begin('a', before)}|${await doors.begin('b', before)}`;
    const device = await openPaths(source, { conf: parseConf(CONF), connectMs: 2000 });
    const late = new Uint8Array(8192).fill(2);
    const after = await copyOf(before);
    await device.write(MIB, late);
    for (const name of ['a', 'b']) await doors.end(name);
    const outcome = device.write(MIB, late.slice().fill(3)).then(
      () => 'done',
      (failure: { readonly code: string }) => failure.code,
    );
    const held = new DelayDevice(after, { host: realHost });
    const hold = held.hold({ only: ({ op }) => op === 'write' });
    await doors.begin('b', held);
    for (const end = performance.now() + 10_000; hold.waiting.length === 0 && performance.now() < end; )
      await sleep(20);
    expect(hold.waiting.length).toBe(1);
    const read = async (): Promise<readonly (number | undefined)[]> => {
      const found = new Uint8Array(8192);
      await after.read(MIB, found);
      return [found[0], found[8191]];
    };
    return { device, after, hold, outcome, read };
  };

  test('for a moment: it is written, and then what waited', async () => {
    await using doors = await Doors.make();
    const { device, hold, outcome, read } = await lost(doors);
    await sleep(500);
    hold.release();
    expect(await outcome).toBe('done');
    expect(await read()).toEqual([3, 3]);
    await device.close();
  });

  test('for good: nobody can fence it, so the member has failed, and what lands late changes nothing that is newer', async () => {
    await using doors = await Doors.make();
    const { device, after, hold, outcome, read } = await lost(doors);
    await doors.begin('a', after);
    expect(await Promise.race([outcome, sleep(15_000, 'waits')])).toBe('MEMBER_GONE');
    hold.release();
    await sleep(200);
    expect(await read()).toEqual([2, 2]);
    await device.close();
  });
});

describe('a server that takes connections and answers no read', () => {
  /** A checker that waits longer than the others are waited for. */
  const conf = parseConf(CONF.replace('checker_timeout 1\n', 'checker_timeout 5\n'));

  /** The same disk behind two servers, of which one may be told not to read. */
  const two = async (doors: Doors) => {
    const one = disk();
    const silent = new DelayDevice(one, { host: realHost });
    const uris = { well: await doors.begin('well', one), silent: await doors.begin('silent', silent) };
    const fallSilent = () => silent.hold({ only: ({ op }) => op === 'read' });
    return { one, uris, fallSilent };
  };

  test.each([
    ['first', (well: string, silent: string) => `${silent}|${well}`],
    ['last', (well: string, silent: string) => `${well}|${silent}`],
  ])('keeps nobody out when the member is opened, named %s', async (_where, join) => {
    await using doors = await Doors.make();
    const { uris, fallSilent } = await two(doors);
    const hold = fallSilent();
    const device = await openPaths(join(uris.well, uris.silent), { conf });
    const states = device
      .status()
      .groups.flatMap(({ paths }) => paths.map(({ name, state }) => [name, state]));
    expect(Object.fromEntries(states)).toEqual({ [uris.well]: 'up', [uris.silent]: 'pending' });
    await device.read(0, new Uint8Array(4096));
    await device.close();
    hold.release();
  });

  test('keeps nobody out when the path that was used comes back', async () => {
    await using doors = await Doors.make();
    const { one, uris, fallSilent } = await two(doors);
    const hold = fallSilent();
    const source = `${uris.well}|${uris.silent}`;
    const device = await openPaths(source, { conf, connectMs: 1000 });
    await device.write(0, new Uint8Array(4096).fill(7));
    await device.flush();
    // It is in its turn when the other one is lost, and in every turn after.
    for (const end = performance.now() + 10_000; hold.waiting.length === 0 && performance.now() < end; )
      await sleep(20);
    await doors.end('well');
    const found = new Uint8Array(4096);
    const read = device.read(0, found).then(
      () => 'done',
      (failure: { readonly code: string }) => failure.code,
    );
    await doors.begin('well', one);
    expect(await Promise.race([read, sleep(20_000, 'waits')])).toBe('done');
    expect(found[0]).toBe(7);
    await device.close();
    hold.release();
  });
});
