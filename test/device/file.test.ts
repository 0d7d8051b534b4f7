import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { link, mkdir, open, readdir, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest';
import { FileDevice } from '../../lib/device/file.ts';
import { type ErrorCode, RaidError } from '../../lib/errors.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { until } from '../engine/members.ts';
import { needPeer } from '../peer.ts';
import { directFolder, scratchFolder } from './scratch.ts';

const run = promisify(execFile);
const folder = await scratchFolder();
const direct = await directFolder(folder);
afterAll(() => rm(folder, { recursive: true }));
afterEach(() => vi.restoreAllMocks());

let count = 0;
const nextPath = () => `${folder}/disk${count++}.img`;
const pattern = (lengthBytes: number) =>
  Uint8Array.from({ length: lengthBytes }, (_, index) => (index * 7 + 1) & 0xff);

async function codeOf(request: Promise<unknown>): Promise<ErrorCode | 'done'> {
  return await request.then(
    () => 'done' as const,
    (failure: unknown) => {
      if (failure instanceof RaidError) return failure.code;
      throw failure;
    },
  );
}

function systemError(code: string, errno: number): NodeJS.ErrnoException {
  return Object.assign(new Error(`${code}: made up`), { code, errno });
}

type Callback = (cause: Error | null, count: number) => void;

/** Replaces a function of `fs` that ends in a callback; `act` gets the arguments before it. */
function intercept(
  name: 'read' | 'write' | 'readv' | 'writev',
  act: (args: unknown[], callback: Callback, real: (...args: unknown[]) => void) => void,
) {
  const real = fs[name] as (...args: unknown[]) => void;
  const fake = (...args: unknown[]) => act(args.slice(0, -1), args.at(-1) as Callback, real);
  return vi.spyOn(fs, name).mockImplementation(fake as never);
}

function interceptSync(
  act: (
    real: (callback: (cause: Error | null) => void) => void,
    callback: (cause: Error | null) => void,
  ) => void,
) {
  const real = fs.fdatasync;
  return vi
    .spyOn(fs, 'fdatasync')
    .mockImplementation((fd, callback) => act((then) => real(fd, then as never), callback as never));
}

describe('FileDevice.create', () => {
  test('makes a sparse file of the size that reads as zeros', async () => {
    const path = nextPath();
    await using device = await FileDevice.create(path, 8 * MIB);
    expect(device.limits).toEqual({
      sizeBytes: 8 * MIB,
      blockBytes: 1,
      preferredBytes: 4096,
      readOnly: false,
    });
    expect(await stat(path)).toMatchObject({ size: 8 * MIB, blocks: 0, mode: 0o100600 });
    expect(await device.blockStatus(0, 8 * MIB)).toEqual([
      { offsetBytes: 0, lengthBytes: 8 * MIB, allocated: false, zero: true },
    ]);
  });

  test('with preallocate, occupies every block before it is used', async () => {
    const path = nextPath();
    await using device = await FileDevice.create(path, 3 * MIB, { preallocate: true });
    expect((await stat(path)).blocks * 512).toBeGreaterThanOrEqual(3 * MIB);
    const seen = new Uint8Array(3 * MIB).fill(1);
    await device.read(0, seen);
    expect(seen.every((byte) => byte === 0)).toBe(true);
  });

  test('with preallocate but no fallocate, writes the blocks out', async () => {
    const path = nextPath();
    const search = process.env['PATH'];
    try {
      process.env['PATH'] = folder;
      await using device = await FileDevice.create(path, 2 * MIB + 4 * KIB, { preallocate: true });
      expect((await stat(path)).blocks * 512).toBeGreaterThanOrEqual(2 * MIB + 4 * KIB);
      expect(device.limits.sizeBytes).toBe(2 * MIB + 4 * KIB);
    } finally {
      process.env['PATH'] = search;
    }
  });

  test('refuses to take the place of a file, unless told to', async () => {
    const path = nextPath();
    await writeFile(path, 'precious');
    expect(await codeOf(FileDevice.create(path, 4096))).toBe('BAD_ARGUMENT');
    expect(fs.readFileSync(path, 'utf8')).toBe('precious');
    await using device = await FileDevice.create(path, 4096, { replace: true });
    const seen = new Uint8Array(8).fill(1);
    await device.read(0, seen);
    expect([...seen]).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
  });

  test('never replaces what is not a regular file', async () => {
    const path = nextPath();
    await mkdir(path);
    expect(await codeOf(FileDevice.create(path, 4096, { replace: true }))).toBe('BAD_ARGUMENT');
  });

  test.each([0, -4096, 0.5, Number.NaN, 2 ** 53])('refuses %d as a size and leaves no file', async (size) => {
    const path = nextPath();
    expect(await codeOf(FileDevice.create(path, size))).toBe('BAD_ARGUMENT');
    expect(fs.existsSync(path)).toBe(false);
  });

  test('leaves no file behind when it fails half way', async () => {
    const before = await readdir(folder);
    const failed = interceptSync((_real, callback) => callback(systemError('EIO', -5)));
    expect(await codeOf(FileDevice.create(nextPath(), 4096))).toBe('FLUSH_FAILED');
    expect(failed).toHaveBeenCalled();
    expect(await readdir(folder)).toEqual(before);
  });
});

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}

describe('FileDevice.open', () => {
  test('says what is wrong with a path, by a code', async () => {
    expect(await codeOf(FileDevice.open(`${folder}/missing.img`))).toBe('BAD_ARGUMENT');
    expect(await codeOf(FileDevice.open(folder))).toBe('BAD_ARGUMENT');
    expect(await codeOf(FileDevice.open('/dev/null'))).toBe('BAD_ARGUMENT');
  });

  test('refuses a FIFO instead of waiting for its other end', async () => {
    const path = nextPath();
    await run('mkfifo', [path]);
    expect(await codeOf(FileDevice.open(path, { readOnly: true }))).toBe('BAD_ARGUMENT');
  });

  test('rounds a size that is not whole blocks down', async () => {
    const path = nextPath();
    await writeFile(path, pattern(5000));
    await using device = await FileDevice.open(path, { blockBytes: 512 });
    expect(device.limits.sizeBytes).toBe(4608);
  });

  test('gives one identity to one file, whatever it is called', async () => {
    const path = nextPath();
    await using first = await FileDevice.create(path, 4096);
    await link(path, `${path}.hard`);
    await symlink(path, `${path}.soft`);
    await using hard = await FileDevice.open(`${path}.hard`);
    await using soft = await FileDevice.open(`${path}.soft`, { readOnly: true });
    await using other = await FileDevice.create(nextPath(), 4096);
    expect(hard.identity).toBe(first.identity);
    expect(soft.identity).toBe(first.identity);
    expect(other.identity).not.toBe(first.identity);
  });

  test('hands its descriptor to lanes for as long as it is open', async () => {
    const device = await FileDevice.create(nextPath(), 4096);
    const { direct: access } = device;
    if (access?.kind !== 'file') throw new Error('a file is reached by its descriptor');
    fs.writeSync(access.fd, pattern(16), 0, 16, 100);
    const seen = new Uint8Array(16);
    await device.read(100, seen);
    expect(seen).toEqual(pattern(16));
    await device.close();
    expect(device.direct).toBeNull();
  });
});

describe('FileDevice I/O', () => {
  test.each([
    ['read', 'one buffer'],
    ['readv', 'a vector'],
  ] as const)('%s goes on after short reads, into %s', async (name, shape) => {
    await using device = await FileDevice.create(nextPath(), 64 * KIB);
    await device.write(0, pattern(64 * KIB));
    const spy = intercept(name, ([fd, buffers, ...rest], callback, real) => {
      if (name === 'read')
        return real(fd, buffers, rest[0], Math.min(Number(rest[1]), 1000), rest[2], callback);
      const first = (buffers as Uint8Array[])[0] as Uint8Array;
      real(fd, [first.subarray(0, 777)], rest[0], callback);
    });
    const seen = new Uint8Array(10_000).fill(0xa5);
    const cut = [seen.subarray(0, 3000), seen.subarray(3000, 3001), seen.subarray(3001)];
    await device.read(5, shape === 'a vector' ? cut : seen);
    expect(seen).toEqual(pattern(64 * KIB).subarray(5, 10_005));
    expect(spy.mock.calls.length).toBeGreaterThan(1);
  });

  test.each([
    ['write', 'one buffer'],
    ['writev', 'a vector'],
  ] as const)('%s goes on after short writes, from %s', async (name, shape) => {
    await using device = await FileDevice.create(nextPath(), 64 * KIB);
    intercept(name, ([fd, buffers, ...rest], callback, real) => {
      if (name === 'write')
        return real(fd, buffers, rest[0], Math.min(Number(rest[1]), 1000), rest[2], callback);
      const first = (buffers as Uint8Array[])[0] as Uint8Array;
      real(fd, [first.subarray(0, 777)], rest[0], callback);
    });
    const data = pattern(10_000);
    await device.write(5, shape === 'a vector' ? [data.subarray(0, 4000), data.subarray(4000)] : data);
    const seen = new Uint8Array(10_000);
    await device.read(5, seen);
    expect(seen).toEqual(data);
  });

  test('takes more buffers than one system call does', async () => {
    await using device = await FileDevice.create(nextPath(), 16 * KIB, { blockBytes: 512 });
    const data = pattern(3 * 512 * 5);
    const pieces = Array.from({ length: data.byteLength / 3 }, (_, index) =>
      data.subarray(3 * index, 3 * index + 3),
    );
    const empties = Array.from({ length: 1100 }, () => new Uint8Array(0));
    await device.write(512, [...empties, ...pieces]);
    const seen = new Uint8Array(data.byteLength);
    const holes = pieces.map((_, index) => seen.subarray(3 * index, 3 * index + 3));
    await device.read(512, [...empties, ...holes]);
    expect(seen).toEqual(data);
  });

  test('a write that stops being taken is WRITE_FAILED', async () => {
    await using device = await FileDevice.create(nextPath(), 4096);
    intercept('write', (_args, callback) => callback(null, 0));
    expect(await codeOf(device.write(0, pattern(512)))).toBe('WRITE_FAILED');
  });

  test.each([
    ['EIO', -5, 'MEDIUM_ERROR', 'WRITE_FAILED'],
    ['ENODEV', -19, 'MEMBER_GONE', 'MEMBER_GONE'],
    ['ENOSPC', -28, 'MEDIUM_ERROR', 'NO_SPACE'],
  ] as const)('%s is told apart by what met it', async (code, errno, onRead, onWrite) => {
    await using device = await FileDevice.create(nextPath(), 4096);
    intercept('read', (_args, callback) => callback(systemError(code, errno), 0));
    intercept('write', (_args, callback) => callback(systemError(code, errno), 0));
    expect(await codeOf(device.read(0, new Uint8Array(16)))).toBe(onRead);
    expect(await codeOf(device.write(0, new Uint8Array(16)))).toBe(onWrite);
    expect(await codeOf(device.writeZeroes(0, 16))).toBe(onWrite);
  });

  test('a bug inside is not reported as a failing disk', async () => {
    await using device = await FileDevice.create(nextPath(), 4096);
    vi.spyOn(fs, 'read').mockImplementation(() => {
      throw new TypeError('a bug');
    });
    await expect(device.read(0, new Uint8Array(16))).rejects.toThrow(TypeError);
  });

  test('a file truncated under us is SHORT_READ, never an uninitialised tail', async () => {
    const path = nextPath();
    await using device = await FileDevice.create(path, 64 * KIB);
    await device.write(0, pattern(64 * KIB));
    await truncate(path, 10_000);
    expect(await codeOf(device.read(9000, new Uint8Array(1000)))).toBe('done');
    expect(await codeOf(device.read(9000, new Uint8Array(1001)))).toBe('SHORT_READ');
    expect(await codeOf(device.read(9000, [new Uint8Array(10), new Uint8Array(2000)]))).toBe('SHORT_READ');
    expect(await codeOf(device.read(32 * KIB, new Uint8Array(4096)))).toBe('SHORT_READ');
    expect(await codeOf(device.blockStatus(0, 64 * KIB))).toBe('SHORT_READ');
    const failure = await device.read(9000, new Uint8Array(1001)).catch((cause: RaidError) => cause);
    expect((failure as RaidError).place).toEqual({ device: path, offsetBytes: 9000, lengthBytes: 1001 });
  });

  test('a file truncated under us fails the next flush, and every later one, even when it was written since', async () => {
    const path = nextPath();
    await using device = await FileDevice.create(path, 64 * KIB);
    await device.write(0, pattern(64 * KIB));
    await device.flush();
    await truncate(path, 10_000);
    await device.write(20_000, new Uint8Array(100));
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
    await truncate(path, 64 * KIB);
    expect(await codeOf(device.write(0, new Uint8Array(100), { fua: true }))).toBe('FLUSH_FAILED');
  });

  test('closing waits for what is in flight', async () => {
    const device = await FileDevice.create(nextPath(), 4096);
    const held: (() => void)[] = [];
    intercept('read', (args, callback, real) => {
      held.push(() => real(...args, callback));
    });
    const seen = new Uint8Array(16).fill(1);
    const read = device.read(0, seen);
    let closed = false;
    const closing = device.close().then(() => {
      closed = true;
    });
    // Another file is opened and closed in the meantime; nothing but the read keeps the descriptor.
    await (await open(nextPath(), 'w')).close();
    expect(closed).toBe(false);
    for (const go of held) go();
    await Promise.all([read, closing]);
    expect(seen.every((byte) => byte === 0)).toBe(true);
  });
});

describe('FileDevice flush', () => {
  test('fails for ever once it failed', async () => {
    await using device = await FileDevice.create(nextPath(), 4096);
    let failures = 1;
    const spy = interceptSync((real, callback) => {
      if (failures-- > 0) callback(systemError('EIO', -5));
      else real(callback);
    });
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
    expect(await codeOf(device.write(0, pattern(16), { fua: true }))).toBe('FLUSH_FAILED');
    expect(await codeOf(device.writeZeroes(0, 16, { fua: true }))).toBe('FLUSH_FAILED');
    expect(await codeOf(device.write(0, pattern(16)))).toBe('done');
    expect(spy).toHaveBeenCalledTimes(1);
  });

  test('a failed fua write fails every later flush', async () => {
    await using device = await FileDevice.create(nextPath(), 4096);
    let failures = 1;
    interceptSync((real, callback) => (failures-- > 0 ? callback(systemError('EIO', -5)) : real(callback)));
    expect(await codeOf(device.write(0, pattern(16), { fua: true }))).toBe('FLUSH_FAILED');
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
  });

  test('one sync runs at a time, and all who ask meanwhile share the next', async () => {
    await using device = await FileDevice.create(nextPath(), 4096);
    const held: (() => void)[] = [];
    const spy = interceptSync((real, callback) => {
      held.push(() => real(callback));
    });
    const first = device.flush();
    const others = [device.flush(), device.flush(), device.flush()];
    expect(spy).toHaveBeenCalledTimes(1);
    held.shift()?.();
    await first;
    await until(() => held.length > 0);
    expect(spy).toHaveBeenCalledTimes(2);
    held.shift()?.();
    await Promise.all(others);
    expect(spy).toHaveBeenCalledTimes(2);
  });

  test('those who share a sync share its failure, and so does whoever comes after', async () => {
    await using device = await FileDevice.create(nextPath(), 4096);
    let calls = 0;
    interceptSync((real, callback) => {
      calls += 1;
      if (calls === 2) callback(systemError('EIO', -5));
      else real(callback);
    });
    const codes = await Promise.all([device.flush(), device.flush(), device.flush()].map(codeOf));
    expect(codes).toEqual(['done', 'FLUSH_FAILED', 'FLUSH_FAILED']);
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
  });

  test('a fua write is synced after it is written', async () => {
    await using device = await FileDevice.create(nextPath(), 4096);
    const order: string[] = [];
    intercept('write', (args, callback, real) =>
      real(...args, (cause: Error | null, done: number) => {
        order.push('written');
        callback(cause, done);
      }),
    );
    interceptSync((real, callback) => {
      order.push('sync');
      real(callback);
    });
    await device.write(0, pattern(16), { fua: true });
    expect(order).toEqual(['written', 'sync']);
  });
});

describe('FileDevice and space', () => {
  test('discard and writeZeroes release whole blocks, and say how', async (context) => {
    const path = nextPath();
    await using device = await FileDevice.create(path, 8 * MIB);
    expect(device.punch.via).not.toBe('fallocate');
    await device.write(0, pattern(8 * MIB));
    await device.flush();
    await device.discard(MIB, 2 * MIB);
    if (device.punch.via === 'none') return context.skip(device.punch.why);
    expect(device.punch).toEqual({ via: 'fallocate' });
    const used = async () => (await stat(path)).blocks * 512;
    expect(await used()).toBe(6 * MIB);
    await device.writeZeroes(4 * MIB + 100, 2 * MIB);
    expect(await used()).toBe(4 * MIB + 4 * KIB);

    const expected = pattern(8 * MIB)
      .fill(0, MIB, 3 * MIB)
      .fill(0, 4 * MIB + 100, 6 * MIB + 100);
    const seen = new Uint8Array(8 * MIB);
    await device.read(0, seen);
    expect(Buffer.compare(seen, expected)).toBe(0);
    expect((await stat(path)).size).toBe(8 * MIB);
  });

  test('writeZeroes that may not unmap keeps the space', async () => {
    const path = nextPath();
    await using device = await FileDevice.create(path, 4 * MIB);
    await device.write(0, pattern(4 * MIB));
    await device.flush();
    await device.writeZeroes(0, 4 * MIB, { mayUnmap: false });
    const seen = new Uint8Array(4 * MIB).fill(1);
    await device.read(0, seen);
    expect(seen.every((byte) => byte === 0)).toBe(true);
    await device.flush();
    expect((await stat(path)).blocks * 512).toBeGreaterThanOrEqual(4 * MIB);
  });

  test('without fallocate, zeros are written, a discard does nothing, and it says why', async () => {
    const search = process.env['PATH'];
    try {
      process.env['PATH'] = folder;
      await using device = await FileDevice.create(nextPath(), 4 * MIB);
      await device.write(0, pattern(4 * MIB));
      await device.discard(0, 4 * MIB);
      expect(device.punch).toMatchObject({ via: 'none', why: expect.stringContaining('fallocate') });
      const seen = new Uint8Array(4 * MIB);
      await device.read(0, seen);
      expect(Buffer.compare(seen, pattern(4 * MIB))).toBe(0);
      await device.writeZeroes(1, 4 * MIB - 1);
      await device.read(0, seen);
      expect(Buffer.compare(seen, pattern(4 * MIB).fill(0, 1))).toBe(0);
    } finally {
      process.env['PATH'] = search;
    }
  });

  test('a full file system is NO_SPACE, on writes and on preallocation', async (context) => {
    const mounted = `${folder}/small`;
    await mkdir(mounted);
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'raidsim-test', mounted], { stdio: 'ignore' });
    } catch (error) {
      needPeer(!isMissing(error), { program: 'mount', from: 'mount' }, context);
      return context.skip('only root can mount a small tmpfs');
    }
    try {
      await using device = await FileDevice.create(`${mounted}/sparse.img`, 4 * MIB);
      expect(await codeOf(device.write(0, pattern(2 * MIB)))).toBe('NO_SPACE');
      await device.close();
      await rm(`${mounted}/sparse.img`);
      expect(await codeOf(FileDevice.create(`${mounted}/full.img`, 4 * MIB, { preallocate: true }))).toBe(
        'NO_SPACE',
      );
      expect(await readdir(mounted)).toEqual([]);
    } finally {
      execFileSync('umount', [mounted]);
    }
  });
});

describe('FileDevice past the page cache', () => {
  test('bounces what is not aligned and moves what is in place', async (context) => {
    if (!direct.works) return context.skip(direct.why);
    await using device = await FileDevice.create(nextPath(), MIB, { direct: true });
    const { blockBytes } = device.limits;
    const shared = new WebAssembly.Memory({ initial: 8, maximum: 8, shared: true }).buffer;
    const aligned = new Uint8Array(shared, blockBytes, 4 * blockBytes);
    aligned.set(pattern(4 * blockBytes));
    const spy = vi.spyOn(fs, 'write');
    await device.write(0, aligned);
    expect(spy.mock.calls[0]?.[1]).toBe(aligned);
    const crooked = new Uint8Array(4 * blockBytes + 1).subarray(1);
    crooked.set(pattern(4 * blockBytes));
    await device.write(4 * blockBytes, crooked);
    expect(spy.mock.calls[1]?.[1]).not.toBe(crooked);
    const seen = new Uint8Array(8 * blockBytes);
    await device.read(0, seen);
    expect(seen).toEqual(Uint8Array.from([...pattern(4 * blockBytes), ...pattern(4 * blockBytes)]));
  });

  test('a file truncated in the middle of a block is SHORT_READ', async (context) => {
    if (!direct.works) return context.skip(direct.why);
    const path = nextPath();
    await using device = await FileDevice.create(path, 64 * KIB, { direct: true });
    await device.write(0, pattern(64 * KIB));
    await device.flush();
    await truncate(path, 4096 + 100);
    expect(await codeOf(device.read(0, new Uint8Array(4096)))).toBe('done');
    expect(await codeOf(device.read(0, new Uint8Array(8192)))).toBe('SHORT_READ');
    expect(await codeOf(device.read(8192, new Uint8Array(4096)))).toBe('SHORT_READ');
    // Going on from the middle of a block would be EINVAL on some kernels, and not say what happened.
    const spy = vi.spyOn(fs, 'read');
    expect(await codeOf(device.read(0, new Uint8Array(8192)))).toBe('SHORT_READ');
    expect(spy).toHaveBeenCalledTimes(1);
  });

  test('refuses a size and a block that the disk cannot have', async (context) => {
    if (!direct.works) return context.skip(direct.why);
    const path = nextPath();
    expect(await codeOf(FileDevice.create(path, 64 * KIB + 100, { direct: true }))).toBe('BAD_ARGUMENT');
    expect(await codeOf(FileDevice.create(path, 64 * KIB, { direct: true, blockBytes: 1 }))).toBe(
      'BAD_ARGUMENT',
    );
    expect(fs.existsSync(path)).toBe(false);
  });

  test('many bounced requests at once wait for each other and all arrive', async (context) => {
    if (!direct.works) return context.skip(direct.why);
    await using device = await FileDevice.create(nextPath(), 16 * MIB, { direct: true });
    const data = Array.from({ length: 32 }, (_, index) => new Uint8Array(512 * KIB).fill(index + 1));
    await Promise.all(data.map((bytes, index) => device.write(index * 512 * KIB, bytes)));
    const seen = data.map((bytes) => new Uint8Array(bytes.byteLength));
    await Promise.all(seen.map((bytes, index) => device.read(index * 512 * KIB, bytes)));
    expect(seen.map((bytes, index) => Buffer.compare(bytes, data[index] as Uint8Array))).toEqual(
      data.map(() => 0),
    );
  });
});

describe('FileDevice on a block device', () => {
  test('has its size, keeps it, and is held exclusively', async (context) => {
    const path = nextPath();
    await using file = await FileDevice.create(path, 4 * MIB);
    let loop: string;
    try {
      loop = (await run('losetup', ['--find', '--show', path])).stdout.trim();
    } catch (error) {
      needPeer(!isMissing(error), { program: 'losetup', from: 'mount' }, context);
      return context.skip('only root can set up a loop device');
    }
    try {
      await using device = await FileDevice.open(loop);
      expect(device.limits.sizeBytes).toBe(4 * MIB);
      expect(device.identity).not.toBe(file.identity);
      expect(await codeOf(FileDevice.open(loop))).toBe('BUSY');
      await using reader = await FileDevice.open(loop, { readOnly: true });
      expect(reader.identity).toBe(device.identity);
      await device.write(4000, pattern(2 * MIB));
      await device.writeZeroes(4096, MIB);
      await device.flush();
      const seen = new Uint8Array(2 * MIB);
      await reader.read(4000, seen);
      expect(Buffer.compare(seen, pattern(2 * MIB).fill(0, 96, 96 + MIB))).toBe(0);
      expect(await codeOf(device.resize(MIB))).toBe('NOT_SUPPORTED');
      await using past = await FileDevice.open(loop, { direct: true, exclusive: false });
      expect([512, 4096]).toContain(past.limits.blockBytes);
    } finally {
      await run('losetup', ['--detach', loop]);
    }
  });
});
