/**
 * One process writes to an array (I18). Ownership is about processes, so these tests start some: each runs the built code (`dist/`) and does what it is told
 * over IPC. What a host sleeps is counted instead of timed.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { link, mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { join } from 'node:path';
import { afterAll, describe, expect, onTestFinished, test } from 'vitest';
import {
  abstractPath,
  findKernelUse,
  identityOf,
  judgeLock,
  LOCK_NAME,
  type LockRecord,
  type LockVerdict,
  lockName,
  type Mechanism,
  Ownership,
  type OwnershipOptions,
} from '../../lib/array/ownership.ts';
import { RaidError } from '../../lib/errors.ts';
import { type Host, realHost } from '../../lib/host.ts';
import { scratchFolder } from '../device/scratch.ts';
import { needPeer } from '../peer.ts';

const scratch = await scratchFolder();
afterAll(() => rm(scratch, { recursive: true }));

let count = 0;

interface Place {
  readonly folder: string;
  readonly members: readonly { readonly path: string; readonly identity: string }[];
}

async function makePlace(memberCount = 2): Promise<Place> {
  const folder = join(scratch, `array${count++}`);
  await mkdir(folder);
  const members = [];
  for (let index = 0; index < memberCount; index += 1) {
    const path = join(folder, `disk${index}.img`);
    await writeFile(path, 'x');
    members.push({ path, identity: await identityOf(path) });
  }
  return { folder, members };
}

async function take(options: Omit<OwnershipOptions, 'host'>, host: Host = realHost): Promise<Ownership> {
  const taken = await Ownership.take({ ...options, host });
  onTestFinished(() => taken.release());
  return taken;
}

async function refusalOf(work: Promise<unknown>): Promise<RaidError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof RaidError) return error;
    throw error;
  }
  throw new Error('it was not refused');
}

const script = `
  const { Ownership } = await import(${JSON.stringify(new URL('../../dist/lib/array/ownership.js', import.meta.url).href)});
  const { realHost } = await import(${JSON.stringify(new URL('../../dist/lib/host.js', import.meta.url).href)});
  let taken = null;
  process.on('message', async (order) => {
    if (order === 'release') {
      await taken.release();
      process.send({});
    } else if (order === 'disconnect') {
      process.disconnect();
    } else {
      try {
        taken = await Ownership.take({ ...order, host: realHost });
        process.send({ won: true });
      } catch (error) {
        process.send({ won: false, code: error.code ?? 'none', message: error.stack });
      }
    }
  });
  process.send({});
`;

interface Reply {
  readonly won?: boolean;
  readonly code?: string;
  readonly message?: string;
}

/** A process that owns, or tries to. */
class Contender {
  readonly child: ChildProcess;
  readonly pid: number;

  private constructor(child: ChildProcess) {
    this.child = child;
    this.pid = child.pid ?? 0;
  }

  static async start(prefix: readonly string[] = []): Promise<Contender> {
    const [program = '', ...args] = [...prefix, process.execPath, '--input-type=module', '--eval', script];
    const child = spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const contender = new Contender(child);
    onTestFinished(() => contender.kill());
    await once(child, 'message');
    return contender;
  }

  async take(options: Omit<OwnershipOptions, 'host'>): Promise<Reply> {
    return await this.#ask(options);
  }

  async release(): Promise<void> {
    await this.#ask('release');
  }

  async kill(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const ended = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await ended;
  }

  async #ask(order: object | string): Promise<Reply> {
    const reply = once(this.child, 'message');
    this.child.send(order);
    const [message] = (await reply) as [Reply];
    return message;
  }
}

/** Returns when the process is stopped, which the signal alone does not promise. */
async function stop(pid: number): Promise<void> {
  process.kill(pid, 'SIGSTOP');
  for (;;) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    if (stat.slice(stat.lastIndexOf(')') + 2).startsWith('T')) return;
  }
}

const isLinux = process.platform === 'linux';
const guards: readonly { readonly name: string; readonly without: readonly Mechanism[] }[] = [
  ...(isLinux
    ? [
        { name: 'sockets and flock', without: [] },
        { name: 'flock alone', without: ['sockets'] as const },
        { name: 'sockets alone', without: ['flock'] as const },
      ]
    : []),
  { name: 'the words in the lock file alone', without: ['sockets', 'flock'] },
];

describe.each(guards)('by $name', ({ without }) => {
  const rounds = without.length === 0 ? 100 : 10;

  test(`of two processes that want one array, exactly one gets it, ${rounds} times`, async () => {
    const place = await makePlace();
    const both = await Promise.all([Contender.start(), Contender.start()]);
    const wins = [0, 0];
    for (let round = 0; round < rounds; round += 1) {
      const replies = await Promise.all(both.map((contender) => contender.take({ ...place, without })));
      expect(replies.map((reply) => reply.won === true).toSorted(), JSON.stringify(replies)).toEqual([
        false,
        true,
      ]);
      const winner = replies[0]?.won === true ? 0 : 1;
      wins[winner] = (wins[winner] ?? 0) + 1;
      expect(replies[1 - winner]?.code).toBe('BUSY');
      await both[winner]?.release();
    }
    expect((wins[0] ?? 0) + (wins[1] ?? 0)).toBe(rounds);
  });

  test('of three that find a lock file left by the dead, exactly one gets it', async () => {
    const place = await makePlace();
    const three = await Promise.all([Contender.start(), Contender.start(), Contender.start()]);
    for (let round = 0; round < 5; round += 1) {
      await writeFile(join(place.folder, LOCK_NAME), await lockOfTheDead());
      const replies = await Promise.all(three.map((contender) => contender.take({ ...place, without })));
      const winners = three.filter((_, index) => replies[index]?.won === true);
      expect(winners.length, JSON.stringify(replies)).toBe(1);
      await winners[0]?.release();
    }
  });

  test('kill -9 of the owner frees the array and its members at once', async () => {
    const place = await makePlace();
    const owner = await Contender.start();
    expect(await owner.take({ ...place, without })).toEqual({ won: true });
    const refusal = await refusalOf(take({ ...place, without }));
    expect(refusal.code).toBe('BUSY');
    expect(refusal.message).toContain(`process ${owner.pid}`);
    await owner.kill();
    await take({ ...place, without });
  });

  test('an owner that is stopped keeps the array, and its number is told in bounded time', async () => {
    const place = await makePlace();
    const owner = await Contender.start();
    expect(await owner.take({ ...place, without })).toEqual({ won: true });
    await stop(owner.pid);
    let sleptMs = 0;
    const host: Host = {
      ...realHost,
      sleep: (ms) => {
        sleptMs += ms;
        return realHost.sleep(ms);
      },
    };
    const refusal = await refusalOf(take({ ...place, without }, host));
    expect(refusal.code).toBe('BUSY');
    expect(refusal.message).toContain(`process ${owner.pid}`);
    expect(sleptMs).toBeLessThan(1000);
  });

  test('who owns it is free to come back, and leaves no lock file behind', async () => {
    const place = await makePlace();
    for (let round = 0; round < 3; round += 1) {
      const taken = await take({ ...place, without });
      const said = JSON.parse(await readFile(join(place.folder, LOCK_NAME), 'utf8')) as LockRecord;
      expect(said.pid).toBe(process.pid);
      await Promise.all([taken.release(), taken.release()]);
      await taken.release();
      await expect(readFile(join(place.folder, LOCK_NAME))).rejects.toThrow('ENOENT');
    }
  });

  test('two arrays of one process cannot share a member', async () => {
    const [one, other] = [await makePlace(), await makePlace()];
    const first = await take({ ...one, without });
    const shared = one.members.map(({ path, identity }) => ({ path, identity: `file:${identity}` }));
    const refusal = await refusalOf(take({ folder: other.folder, members: shared, without }));
    expect(refusal.code).toBe('BUSY');
    expect(refusal.message).toContain('disk0.img');
    expect(refusal.message).toContain(one.folder);
    await first.release();
    await take({ folder: other.folder, members: shared, without });
  });

  test('an empty lock file, left by a crash, stops nobody', async () => {
    const place = await makePlace();
    await writeFile(join(place.folder, LOCK_NAME), '');
    await take({ ...place, without });
  });
});

async function lockOfTheDead(): Promise<string> {
  const taken = await Ownership.take({ ...(await makePlace(0)), host: realHost });
  const record = JSON.parse(await readFile(join(taken.folder, LOCK_NAME), 'utf8')) as LockRecord;
  await taken.release();
  return JSON.stringify({ ...record, startTime: record.startTime === null ? null : '1', pid: 2 ** 22 + 1 });
}

describe('members', () => {
  test.skipIf(!isLinux)('a member of another array is refused, with the owner and its array', async () => {
    const [theirs, ours] = [await makePlace(), await makePlace()];
    const owner = await Contender.start();
    expect(await owner.take(theirs)).toEqual({ won: true });
    const mixed = { folder: ours.folder, members: [...ours.members, ...theirs.members.slice(1)] };
    const refusal = await refusalOf(take(mixed));
    expect(refusal.code).toBe('BUSY');
    expect(refusal.message).toContain(join(theirs.folder, 'disk1.img'));
    expect(refusal.message).toContain(`process ${owner.pid}`);
    expect(refusal.message).toContain(JSON.stringify(theirs.folder));

    await stop(owner.pid);
    expect((await refusalOf(take(mixed))).message).toContain(`process ${owner.pid}`);
  });

  test('a refusal leaves nothing taken', async () => {
    const [one, other] = [await makePlace(), await makePlace()];
    await take(one);
    await refusalOf(take({ folder: other.folder, members: [...other.members, ...one.members] }));
    await take(other);
  });

  test('one file twice is refused, by path, hard link and symbolic link', async () => {
    const { folder, members } = await makePlace(1);
    const path = join(folder, 'disk0.img');
    await link(path, join(folder, 'hard.img'));
    await symlink(path, join(folder, 'soft.img'));
    for (const name of ['disk0.img', 'hard.img', 'soft.img']) {
      const twin = { path: join(folder, name), identity: await identityOf(join(folder, name)) };
      for (const mode of ['own', 'read'] as const) {
        const refusal = await refusalOf(take({ folder, members: [...members, twin], mode }));
        expect(refusal.code).toBe('DUPLICATE_MEMBER');
        expect(refusal.message).toContain(name);
      }
    }
  });

  test('a member that is added later is guarded, and free again when it is given back', async () => {
    const [one, other, spare] = [await makePlace(), await makePlace(), await makePlace(1)];
    const [first, second] = [await take(one), await take(other)];
    const [disk] = spare.members;
    if (disk === undefined) throw new Error('a place has a member');
    await first.claim(disk);
    expect((await refusalOf(first.claim(disk))).code).toBe('DUPLICATE_MEMBER');
    expect((await refusalOf(second.claim(disk))).code).toBe('BUSY');
    await first.unclaim(disk.identity);
    await first.unclaim(disk.identity);
    await second.claim(disk);
    await second.release();
    await first.claim(disk);
  });

  test('a folder that is not there is the caller’s mistake', async () => {
    const refusal = await refusalOf(take({ folder: join(scratch, 'nowhere'), members: [] }));
    expect(refusal.code).toBe('BAD_ARGUMENT');
    expect(refusal.message).toContain('nowhere');
  });
});

describe('readers', () => {
  test('a reader takes nothing, disturbs nobody, and learns who the owner is', async () => {
    const place = await makePlace();
    expect((await take({ ...place, mode: 'read' })).owner).toBeNull();
    const owner = await Contender.start();
    expect(await owner.take(place)).toEqual({ won: true });
    const reader = await take({ ...place, mode: 'read' });
    expect(reader.owner).toEqual({ pid: owner.pid, folder: place.folder });
    const second = await take({ ...place, mode: 'read', without: ['sockets', 'flock'] });
    expect(second.owner).toEqual({ pid: owner.pid, folder: place.folder });
    await owner.release();
    expect((await take({ ...place, mode: 'read' })).owner).toBeNull();
    await take(place);
  });
});

describe('the process', () => {
  test('being an owner does not keep a process alive', async () => {
    const owner = await Contender.start();
    expect(await owner.take(await makePlace())).toEqual({ won: true });
    const ended = once(owner.child, 'exit');
    owner.child.send('disconnect');
    expect(await ended).toEqual([0, null]);
  });

  test('the lock reaches across network namespaces', async (context) => {
    const probe = spawnSync('unshare', ['--net', 'flock', '--version']);
    needPeer(probe.error === undefined, { program: 'unshare', from: 'util-linux' }, context);
    context.skip(probe.status !== 0, 'a network namespace of its own needs unshare(1), flock(1) and root');
    const place = await makePlace();
    const owner = await Contender.start(['unshare', '--net']);
    expect(await owner.take(place)).toEqual({ won: true });
    const refusal = await refusalOf(take(place));
    expect(refusal.code).toBe('BUSY');
    expect(refusal.message).toContain(`process ${owner.pid}`);
    await owner.kill();
    await take(place);
  });

  test.skipIf(!isLinux)(
    'the names of the sockets fill the address, so that every Node means the same',
    async () => {
      const place = await makePlace(1);
      await take(place);
      const table = await readFile('/proc/net/unix', 'utf8');
      const name = table
        .split('\n')
        .find((line) => line.includes(lockName(place.members[0] ?? { identity: '-' })));
      // The kernel writes `@` for each zero byte: the one at the start must be the only one.
      expect(name?.split(' ').at(-1)).toMatch(/^@[^@]{107}$/);
    },
  );

  test.skipIf(!isLinux)('a squatter on the name denies it, and what it says does no harm', async () => {
    const place = await makePlace();
    const said = `12x\n\u001b[2J\u009b31m${'y'.repeat(3000)}\n`;
    const server = net.createServer((socket) => socket.end(said));
    const path = abstractPath(lockName(place.members[0] ?? { identity: '' }));
    await new Promise<void>((listening) => server.listen({ path }, listening));
    onTestFinished(() => void server.close());
    const refusal = await refusalOf(take(place));
    expect(refusal.code).toBe('BUSY');
    expect([...refusal.message].every((letter) => letter >= ' ' && letter < '\u007f')).toBe(true);
  });
});

test('every combination of facts about a lock file has the verdict of the table', () => {
  const here: LockRecord = {
    pid: 1,
    startTime: '10',
    bootId: 'b',
    pidNamespace: 'pid:[1]',
    hostname: 'h',
  };
  const seen = new Set<LockVerdict>();
  for (const bootId of ['b', 'other', null]) {
    for (const hostname of ['h', 'other']) {
      for (const pidNamespace of ['pid:[1]', 'pid:[2]']) {
        for (const found of ['10', '11', 'alive', null]) {
          const verdict = judgeLock({ ...here, bootId, hostname, pidNamespace }, here, found);
          const expected = ((): LockVerdict => {
            if (bootId === 'b' && pidNamespace === 'pid:[2]') return 'unknown';
            if (bootId === 'b') return found === '10' ? 'alive' : 'stale';
            if (hostname === 'other') return 'unknown';
            if (bootId === 'other') return 'stale';
            return found === null ? 'stale' : 'alive';
          })();
          expect(verdict, JSON.stringify({ bootId, hostname, pidNamespace, found })).toBe(expected);
          seen.add(verdict);
        }
      }
    }
  }
  expect(seen.size).toBe(3);
});

describe('what the kernel holds', () => {
  /** A /proc and a /sys of our own. */
  async function kernelWith(files: Readonly<Record<string, string>>): Promise<string> {
    const root = join(scratch, `kernel${count++}`);
    for (const [path, text] of Object.entries(files)) {
      await mkdir(join(root, path, '..'), { recursive: true });
      await writeFile(join(root, path), text);
    }
    return root;
  }

  const disk = { path: '/dev/sdx', identity: 'block:2064', block: '8:16' };

  test('a loop device over the file, by whatever name', async () => {
    const [file] = (await makePlace(1)).members;
    if (file === undefined) throw new Error('a place has a member');
    const other = `${file.path} with a blank`;
    await link(file.path, other);
    const root = await kernelWith({
      'sys/block/sda/size': '100\n',
      'sys/block/loop3/loop/backing_file': `${other}\n`,
    });
    expect(await findKernelUse({ ...file, block: null }, root)).toContain('losetup -d /dev/loop3');
    expect(await findKernelUse({ ...file, identity: '1:1', block: null }, root)).toBeNull();
  });

  test('swap space, in a file with a blank in its name too', async () => {
    const [file] = (await makePlace(1)).members;
    if (file === undefined) throw new Error('a place has a member');
    const other = `${file.path} swap`;
    await link(file.path, other);
    const root = await kernelWith({
      'proc/swaps': `Filename\tType\tSize\tUsed\tPriority\n${other.replaceAll(' ', '\\040')}\tfile\t1\t0\t-2\n/dev/sdx\tpartition\t1\t0\t-3\n`,
    });
    expect(await findKernelUse({ ...file, block: null }, root)).toContain('swapoff');
    expect(await findKernelUse(disk, root)).toContain('swapoff');
  });

  test.each([
    ['by its number', '30 1 8:16 / /mnt/a\\040b rw - ext4 /dev/root rw', '/mnt/a b'],
    ['by its path', '30 1 0:45 / /mnt/c rw - btrfs /dev/sdx rw', '/mnt/c'],
    ['by a partition', '30 1 8:17 / /mnt/d rw - ext4 /dev/root rw', '/mnt/d'],
  ])('a mount of a block device, found %s', async (_, line, where) => {
    const root = await kernelWith({
      'proc/self/mountinfo': `29 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n${line}\n`,
      'sys/dev/block/8:16/sdx1/partition': '1\n',
      'sys/dev/block/8:16/sdx1/dev': '8:17\n',
    });
    expect(await findKernelUse(disk, root)).toContain(where);
    expect(await findKernelUse({ ...disk, path: '/dev/sdy', block: '8:32' }, root)).toBeNull();
  });

  test.each(['sys/dev/block/8:16/holders/md127', 'sys/dev/block/8:16/sdx1/holders/md127'])(
    'md over a block device or its partition: %s',
    async (holder) => {
      const root = await kernelWith({ [holder]: '', 'sys/dev/block/8:16/sdx1/partition': '1\n' });
      expect(await findKernelUse(disk, root)).toContain('md127');
    },
  );

  test('a machine without /proc and /sys says nothing', async () => {
    expect(await findKernelUse(disk, join(scratch, 'no-kernel'))).toBeNull();
    expect(await findKernelUse({ ...disk, block: null }, join(scratch, 'no-kernel'))).toBeNull();
  });

  test('a real loop device over a member makes it BUSY, and detaching it frees it', async (context) => {
    const place = await makePlace(1);
    const path = place.members[0]?.path ?? '';
    await writeFile(path, Buffer.alloc(1024 * 1024));
    const made = spawnSync('losetup', ['--find', '--show', '--read-only', path], { encoding: 'utf8' });
    needPeer(made.error === undefined, { program: 'losetup', from: 'mount' }, context);
    context.skip(made.status !== 0, `no loop device to be had: ${made.stderr ?? made.error?.message}`);
    const loop = made.stdout.trim();
    try {
      const refusal = await refusalOf(take(place));
      expect(refusal.code).toBe('BUSY');
      expect(refusal.message).toContain(`losetup -d ${loop}`);
      expect((await take({ ...place, mode: 'read' })).owner).toBeNull();
    } finally {
      spawnSync('losetup', ['--detach', loop]);
    }
    await take(place);
  });
});
