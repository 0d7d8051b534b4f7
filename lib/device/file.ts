/**
 * A device over a regular file or a block device: one descriptor, opened once and held until `close`.
 *
 * - Nothing of the content is remembered here: lanes write through `direct`, the same descriptor, behind this
 *   object's back. For the same reason whoever uses `direct` must have stopped before `close`: a descriptor number is
 *   reused, and a late `pwrite` would land in somebody else's file.
 * - Linux reports a lost write-back once for each open file description. `fdatasync` on `direct` can therefore take
 *   the report away from `flush` here: whoever sees it there must fail the member itself.
 * - Buffered I/O can address any byte. With `direct` (O_DIRECT) the page cache is bypassed, offsets and lengths are
 *   multiples of the logical block, and buffers that are not known to be aligned are bounced.
 * - A file that was truncated under us fails reads past its end with SHORT_READ. Writes there extend it again, and
 *   what lies between reads as zeros: that cannot be noticed here.
 */
import fs from 'node:fs';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { RaidError } from '../errors.ts';
import { formatSize, GIB, KIB, MIB, roundDown, roundUp } from '../units.ts';
import { areAligned, SLOT_BYTES, withSlot, ZEROS_BYTES, zeros } from './aligned.ts';
import { gather, scatter, viewsOf } from './buffers.ts';
import {
  Device,
  type DirectAccess,
  type Extent,
  type Limits,
  totalBytes,
  type ZeroOptions,
} from './device.ts';
import { errnoName, errorFromErrno } from './errno.ts';
import { HolePuncher, type Punch } from './hole.ts';
import { InFlight } from './in-flight.ts';

export type FileBlockBytes = 1 | 512 | 4096;

export interface FileOptions {
  readonly readOnly?: boolean;
  /** O_DIRECT. */
  readonly direct?: boolean;
  /** Default: 1, and with `direct` the smallest that the storage below is known to take. */
  readonly blockBytes?: FileBlockBytes;
  /** Default true: a block device that is mounted, or that md or another raidsim holds, is refused with BUSY. */
  readonly exclusive?: boolean;
}

export interface CreateOptions {
  readonly direct?: boolean;
  readonly blockBytes?: FileBlockBytes;
  /** Allocates every block now, so that no write meets a full file system later (default false: a sparse file). */
  readonly preallocate?: boolean;
  /** What is there already is emptied first; by default it is refused. */
  readonly replace?: boolean;
}

/** One system call moves at most this much: the kernel cuts at 2 GiB − 4 KiB, and a cut read must stay aligned. */
const CALL_BYTES = GIB;
/** IOV_MAX on every platform that Node runs on. */
const CALL_BUFFERS = 1024;

/** Space is released in pages; what sticks out on either side is written. */
const HOLE_BYTES = 4 * KIB;
/**
 * Below this, writing zeros is cheaper than starting a process (2.5 ms here; a megabyte of zeros takes 0.4 to 0.7 ms,
 * but also occupies a megabyte).
 */
const HOLE_MIN_BYTES = MIB;

/**
 * File systems whose `st_blocks` counts what is still in the page cache, and inline data too, so that 0 means
 * "nothing was ever written". Elsewhere (btrfs, NFS, ZFS, FUSE) 0 has been seen on files full of data.
 */
const honestBlocks: readonly bigint[] = [
  0xef53n /* ext2-4 */,
  0x58465342n /* XFS */,
  0x01021994n /* tmpfs */,
];

interface Opened {
  readonly fd: number;
  readonly kind: 'file' | 'block';
  readonly identity: string;
  readonly limits: Limits;
  readonly direct: boolean;
  readonly honestBlocks: boolean;
}

const openFile = promisify(fs.open);
const closeFile = promisify(fs.close);
const syncFile = promisify(fs.fsync);
const truncateFile = promisify(fs.ftruncate);

export class FileDevice extends Device {
  override readonly name: string;
  readonly #fd: number;
  readonly #kind: 'file' | 'block';
  readonly #isDirect: boolean;
  readonly #honestBlocks: boolean;
  readonly #puncher: HolePuncher;
  readonly #identity: string;
  /**
   * The descriptor stays open until every request has settled, also between its system calls: closed under a request,
   * the next call would hit whatever file got the number.
   */
  readonly #inFlight = new InFlight();
  #limits: Limits;

  #flushFailure: RaidError | null = null;
  #flushRunning: Promise<void> | null = null;
  #flushNext: Promise<void> | null = null;

  private constructor(path: string, opened: Opened) {
    super();
    this.name = path;
    this.#fd = opened.fd;
    this.#kind = opened.kind;
    this.#isDirect = opened.direct;
    this.#honestBlocks = opened.honestBlocks;
    this.#identity = opened.identity;
    this.#limits = opened.limits;
    this.#puncher = new HolePuncher(opened.fd);
  }

  /** Opens what is there. The size is the file's, rounded down to `blockBytes`. */
  static async open(path: string, options: FileOptions = {}): Promise<FileDevice> {
    const readOnly = options.readOnly === true;
    const place = { device: path };
    try {
      // Looked at before it is opened: opening a FIFO waits for ever, and opening a tape rewinds it.
      const kind = kindOf(await fs.promises.stat(path), path);
      let flags = readOnly ? fs.constants.O_RDONLY : fs.constants.O_RDWR;
      if (kind === 'block' && !readOnly && options.exclusive !== false) flags |= fs.constants.O_EXCL;
      const fd = await openWith(path, flags, options.direct === true);
      try {
        return await FileDevice.#from(fd, path, options);
      } catch (cause) {
        await closeFile(fd);
        throw cause;
      }
    } catch (cause) {
      throw errorFromErrno(cause, 'open', place);
    }
  }

  /**
   * Makes a regular file that reads as zeros. It and its name are durable when the promise resolves; after a failure
   * there is no file where there was none before.
   */
  static async create(path: string, sizeBytes: number, options: CreateOptions = {}): Promise<FileDevice> {
    const place = { device: path };
    const blockBytes = options.blockBytes ?? 1;
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % blockBytes !== 0) {
      throw new RaidError('BAD_ARGUMENT', `${path}: ${sizeBytes} is not a size that it can have`, place);
    }
    const replace = options.replace === true;
    try {
      if (replace) await refuseSpecial(path);
      // Without O_DIRECT at first: where a file system does not have it, some kernels fail the open only after they
      // have made the file, and then nobody knows whose it is.
      const { O_RDWR, O_CREAT, O_EXCL, O_TRUNC } = fs.constants;
      const fd = await openFile(path, O_RDWR | O_CREAT | (replace ? O_TRUNC : O_EXCL), 0o600);
      try {
        await truncateFile(fd, sizeBytes).finally(() => closeFile(fd));
        return await FileDevice.#finishNew(path, sizeBytes, options);
      } catch (cause) {
        if (!replace) await fs.promises.rm(path, { force: true });
        throw cause;
      }
    } catch (cause) {
      throw errorFromErrno(cause, 'open', place);
    }
  }

  static async #finishNew(path: string, sizeBytes: number, options: CreateOptions): Promise<FileDevice> {
    const device = await FileDevice.open(path, options);
    try {
      if (device.limits.sizeBytes !== sizeBytes) {
        throw new RaidError(
          'BAD_ARGUMENT',
          `${path}: ${sizeBytes} is not a multiple of ${device.limits.blockBytes}, which O_DIRECT needs here`,
          { device: path },
        );
      }
      if (options.preallocate === true) await device.#preallocate();
      await device.flush();
      await syncFolder(dirname(path));
      return device;
    } catch (cause) {
      await device.close();
      throw cause;
    }
  }

  static async #from(fd: number, path: string, options: FileOptions): Promise<FileDevice> {
    const stats = await fstat(fd);
    const kind = kindOf(stats, path);
    const direct = options.direct === true;
    const blockBytes = direct
      ? await directBlockBytes(fd, kind === 'block' ? stats.rdev : stats.dev, options.blockBytes, path)
      : (options.blockBytes ?? 1);
    const sizeBytes = kind === 'block' ? await blockDeviceBytes(stats.rdev, path) : Number(stats.size);
    return new FileDevice(path, {
      fd,
      kind,
      direct,
      honestBlocks: kind === 'file' && (await countsBlocksHonestly(fd)),
      identity: kind === 'block' ? `block:${stats.rdev}` : `file:${stats.dev}:${stats.ino}`,
      limits: {
        sizeBytes: roundDown(sizeBytes, blockBytes),
        blockBytes,
        preferredBytes: roundUp(Math.max(Number(stats.blksize), HOLE_BYTES), blockBytes),
        readOnly: options.readOnly === true,
      },
    });
  }

  override get limits(): Limits {
    return this.#limits;
  }

  /** Null once closed: the number may belong to another file by then. */
  override get direct(): DirectAccess | null {
    return this.isClosed ? null : { kind: 'file', fd: this.#fd, offsetBytes: 0 };
  }

  /** Two devices with one identity are the same bytes, whatever links or device nodes they were opened by. */
  get identity(): string {
    return this.#identity;
  }

  /** How space is released. `untried` until the first discard or writeZeroes that is big enough. */
  get punch(): Punch {
    return this.#puncher.punch;
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    if (this.#isDirect && !areAligned(targets, this.#limits.blockBytes)) {
      return this.#inFlight.run(() => this.#readBounced(offsetBytes, targets));
    }
    return this.#transfer('read', offsetBytes, targets);
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    if (!fua) return this.#put(offsetBytes, sources);
    return this.#inFlight.run(async () => {
      await this.#put(offsetBytes, sources);
      await this.#sync();
    });
  }

  protected override doFlush(): Promise<void> {
    return this.#inFlight.run(() => this.#sync());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#inFlight.run(async () => {
      const hole = holeIn(offsetBytes, lengthBytes);
      // A discard is advice: where space cannot be released there is nothing to do, and nothing to report.
      if (hole !== null) await this.#puncher.run('punch-hole', hole.offsetBytes, hole.lengthBytes);
    });
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#inFlight.run(async () => {
      const mode = options.mayUnmap ? 'punch-hole' : 'zero-range';
      const hole = holeIn(offsetBytes, lengthBytes);
      if (hole !== null && (await this.#puncher.run(mode, hole.offsetBytes, hole.lengthBytes)) === null) {
        const holeEnd = hole.offsetBytes + hole.lengthBytes;
        await this.#putZeros(offsetBytes, hole.offsetBytes - offsetBytes);
        await this.#putZeros(holeEnd, offsetBytes + lengthBytes - holeEnd);
      } else {
        await this.#putZeros(offsetBytes, lengthBytes);
      }
      if (options.fua) await this.#sync();
    });
  }

  /**
   * Node has no SEEK_HOLE, so there are two answers: a file without a single block is one hole, and everything else is
   * data throughout.
   */
  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#inFlight.run(async () => {
      const place = { device: this.name, offsetBytes, lengthBytes };
      let hole = false;
      if (this.#kind === 'file') {
        const stats = await fstat(this.#fd).catch((cause) => {
          throw errorFromErrno(cause, 'read', place);
        });
        if (Number(stats.size) < offsetBytes + lengthBytes) {
          throw this.#endedEarly(offsetBytes, lengthBytes, Math.max(0, Number(stats.size) - offsetBytes));
        }
        hole = this.#honestBlocks && stats.blocks === 0n;
      }
      return [{ offsetBytes, lengthBytes, allocated: !hole, zero: hole }];
    });
  }

  protected override doResize(sizeBytes: number): Promise<void> {
    return this.#inFlight.run(async () => {
      if (this.#kind !== 'file') {
        throw new RaidError('NOT_SUPPORTED', `${this.name}: a block device has the size it has`, {
          device: this.name,
        });
      }
      try {
        await truncateFile(this.#fd, sizeBytes);
      } catch (cause) {
        throw errorFromErrno(cause, 'write', { device: this.name });
      }
      this.#limits = { ...this.#limits, sizeBytes };
    });
  }

  protected override async doClose(): Promise<void> {
    await this.#inFlight.whenIdle();
    try {
      await closeFile(this.#fd);
    } catch (cause) {
      throw errorFromErrno(cause, 'flush', { device: this.name });
    }
  }

  #put(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    if (this.#isDirect && !areAligned(sources, this.#limits.blockBytes)) {
      return this.#inFlight.run(() => this.#writeBounced(offsetBytes, sources));
    }
    return this.#transfer('write', offsetBytes, sources);
  }

  /** Callbacks on a bare descriptor: `fs.promises` gave 0.6 to 0.7 of the 4 KiB reads at depth 8 and 32 on tmpfs. */
  #transfer(operation: 'read' | 'write', offsetBytes: number, buffers: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = totalBytes(buffers);
    const fd = this.#fd;
    return new Promise((resolve, reject) => {
      this.#inFlight.begin();
      let done = 0;

      const settle = (failure: unknown): void => {
        this.#inFlight.end();
        if (failure === null) resolve();
        else reject(failure);
      };

      const step = (): void => {
        try {
          const rest =
            done === 0 && lengthBytes <= CALL_BYTES && buffers.length <= CALL_BUFFERS
              ? buffers
              : viewsOf(buffers, done, Math.min(lengthBytes - done, CALL_BYTES), CALL_BUFFERS);
          const only = rest.length === 1 ? rest[0] : undefined;
          const position = offsetBytes + done;
          if (operation === 'read') {
            if (only === undefined) fs.readv(fd, rest, position, after);
            else fs.read(fd, only, 0, only.byteLength, position, after);
          } else {
            if (only === undefined) fs.writev(fd, rest, position, after);
            else fs.write(fd, only, 0, only.byteLength, position, after);
          }
        } catch (bug) {
          settle(bug);
        }
      };

      const after = (cause: Error | null, count: number): void => {
        if (cause !== null) {
          try {
            settle(errorFromErrno(cause, operation, { device: this.name, offsetBytes, lengthBytes }));
          } catch (bug) {
            settle(bug);
          }
          return;
        }
        done += count;
        if (done === lengthBytes) settle(null);
        // O_DIRECT stops in the middle of a block only where the file ends, and could not go on from there.
        else if (count === 0 || (this.#isDirect && done % this.#limits.blockBytes !== 0)) {
          settle(this.#stopped(operation, offsetBytes, lengthBytes, done));
        } else step();
      };

      step();
    });
  }

  #stopped(operation: 'read' | 'write', offsetBytes: number, lengthBytes: number, done: number): RaidError {
    if (operation === 'read') return this.#endedEarly(offsetBytes, lengthBytes, done);
    return new RaidError(
      'WRITE_FAILED',
      `${this.name} took ${done} of ${lengthBytes} bytes at ${offsetBytes}`,
      {
        device: this.name,
        offsetBytes,
        lengthBytes,
      },
    );
  }

  #endedEarly(offsetBytes: number, lengthBytes: number, done: number): RaidError {
    return new RaidError(
      'SHORT_READ',
      `${this.name} ends at ${offsetBytes + done}, inside ${lengthBytes} bytes at ${offsetBytes}: it was truncated`,
      { device: this.name, offsetBytes, lengthBytes },
    );
  }

  async #readBounced(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = totalBytes(targets);
    for (let done = 0; done < lengthBytes; done += SLOT_BYTES) {
      await withSlot(async (slot) => {
        const part = slot.subarray(0, Math.min(SLOT_BYTES, lengthBytes - done));
        await this.#transfer('read', offsetBytes + done, [part]);
        scatter(part, targets, done);
      });
    }
  }

  async #writeBounced(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = totalBytes(sources);
    for (let done = 0; done < lengthBytes; done += SLOT_BYTES) {
      await withSlot(async (slot) => {
        const part = slot.subarray(0, Math.min(SLOT_BYTES, lengthBytes - done));
        gather(sources, done, part);
        await this.#transfer('write', offsetBytes + done, [part]);
      });
    }
  }

  async #putZeros(offsetBytes: number, lengthBytes: number): Promise<void> {
    for (let done = 0; done < lengthBytes; done += ZEROS_BYTES) {
      const part = zeros().subarray(0, Math.min(ZEROS_BYTES, lengthBytes - done));
      await this.#transfer('write', offsetBytes + done, [part]);
    }
  }

  async #preallocate(): Promise<void> {
    const { sizeBytes } = this.#limits;
    const failure = await this.#puncher.run('allocate', 0, sizeBytes);
    if (failure === null) return;
    if (/no space left|quota exceeded|file too large/i.test(failure)) {
      throw new RaidError('NO_SPACE', `${this.name}: cannot allocate ${formatSize(sizeBytes)}: ${failure}`, {
        device: this.name,
      });
    }
    await this.#putZeros(0, sizeBytes);
  }

  /**
   * One `fdatasync` at a time; whoever asks meanwhile shares the next one. That is group commit, and it is also what
   * makes a failure certain to be seen: of two that run side by side the kernel may report a lost write to only one,
   * and the other would resolve over the same lost bytes.
   *
   * A file that has been truncated under us is noticed here at the latest. What was cut off and then written beyond reads as
   * zeros without an error, and nobody could vouch for it; cut off and grown again between two flushes, it is not
   * noticed at all.
   */
  #sync(): Promise<void> {
    if (this.#flushNext !== null) return this.#flushNext;
    if (this.#flushRunning === null) return this.#startSync();
    this.#flushNext = this.#flushRunning.then(
      () => this.#startSync(),
      () => this.#startSync(),
    );
    return this.#flushNext;
  }

  #truncation(): RaidError | null {
    if (this.#kind !== 'file') return null;
    const sizeBytes = fs.fstatSync(this.#fd).size;
    if (sizeBytes >= this.#limits.sizeBytes) return null;
    return new RaidError(
      'FLUSH_FAILED',
      `${this.name} has been cut to ${formatSize(sizeBytes)} while it was in use; what was written beyond is gone`,
      { device: this.name },
    );
  }

  #startSync(): Promise<void> {
    this.#flushNext = null;
    if (this.#flushFailure !== null) return Promise.reject(failedBefore(this.#flushFailure, this.name));
    this.#flushRunning = new Promise<void>((resolve, reject) => {
      fs.fdatasync(this.#fd, (cause) => {
        this.#flushRunning = null;
        try {
          const failure =
            cause === null ? this.#truncation() : errorFromErrno(cause, 'flush', { device: this.name });
          if (failure === null) return resolve();
          this.#flushFailure = failure;
          reject(failure);
        } catch (bug) {
          reject(bug);
        }
      });
    });
    return this.#flushRunning;
  }
}

function failedBefore(first: RaidError, device: string): RaidError {
  return new RaidError(
    first.code,
    `${device} failed an earlier flush, and what that one did not write may be lost; replace the member`,
    { device, cause: first },
  );
}

/** The whole pages inside the range, or null if they are not worth a process. */
function holeIn(
  offsetBytes: number,
  lengthBytes: number,
): { readonly offsetBytes: number; readonly lengthBytes: number } | null {
  const start = roundUp(offsetBytes, HOLE_BYTES);
  const end = roundDown(offsetBytes + lengthBytes, HOLE_BYTES);
  return end - start >= HOLE_MIN_BYTES ? { offsetBytes: start, lengthBytes: end - start } : null;
}

function kindOf(stats: fs.Stats | fs.BigIntStats, path: string): 'file' | 'block' {
  if (stats.isFile()) return 'file';
  if (stats.isBlockDevice()) return 'block';
  throw new RaidError('BAD_ARGUMENT', `${path} is neither a regular file nor a block device`, {
    device: path,
  });
}

async function refuseSpecial(path: string): Promise<void> {
  const stats = await fs.promises.stat(path).catch((cause) => {
    if (errnoName(cause) === 'ENOENT') return null;
    throw cause;
  });
  if (stats !== null && !stats.isFile()) {
    throw new RaidError('BAD_ARGUMENT', `${path} is not a regular file, so it cannot be made anew`, {
      device: path,
    });
  }
}

async function openWith(path: string, flags: number, direct: boolean): Promise<number> {
  if (!direct) return await openFile(path, flags);
  const bit = fs.constants.O_DIRECT;
  if (bit === undefined) throw noDirect(path, `${process.platform} has no O_DIRECT`);
  try {
    return await openFile(path, flags | bit);
  } catch (cause) {
    if (errnoName(cause) === 'EINVAL') throw noDirect(path, 'its file system has no O_DIRECT', cause);
    throw cause;
  }
}

function noDirect(path: string, why: string, cause?: unknown): RaidError {
  return new RaidError('NOT_SUPPORTED', `${path}: ${why}; open it without direct`, { device: path, cause });
}

function fstat(fd: number): Promise<fs.BigIntStats> {
  return new Promise((resolve, reject) => {
    fs.fstat(fd, { bigint: true }, (cause, stats) => (cause === null ? resolve(stats) : reject(cause)));
  });
}

/**
 * The block that O_DIRECT needs. Trying alone does not tell: a read of a hole succeeds at any alignment (measured on
 * ext4), and a file that was just created is all hole. So the logical block of the disk below decides where sysfs
 * knows it; where it does not (btrfs, overlayfs, tmpfs have no disk of their own) it is 4096, which everything
 * takes. The trial then catches file systems that accept the flag and refuse the I/O.
 */
async function directBlockBytes(
  fd: number,
  deviceNumber: bigint,
  wanted: FileBlockBytes | undefined,
  path: string,
): Promise<number> {
  if (wanted === 1)
    throw new RaidError('BAD_ARGUMENT', `${path}: O_DIRECT has no 1-byte blocks`, { device: path });
  const logical = Number(await readSysfs(deviceNumber, 'queue/logical_block_size'));
  const least = logical === 512 || logical === 4096 ? logical : null;
  if (least !== null && wanted !== undefined && wanted < least) {
    throw new RaidError('BAD_ARGUMENT', `${path}: its disk has blocks of ${least} bytes, not ${wanted}`, {
      device: path,
    });
  }
  const first = wanted ?? least ?? 4096;
  for (const blockBytes of first === 512 && wanted === undefined ? [512, 4096] : [first]) {
    if (await takesBlocksOf(fd, blockBytes)) return blockBytes;
  }
  throw noDirect(path, `its file system refuses O_DIRECT in blocks of ${first} bytes`);
}

function takesBlocksOf(fd: number, blockBytes: number): Promise<boolean> {
  return withSlot(
    (slot) =>
      new Promise((resolve) => {
        // From the second block on: offset 0 would be aligned to everything.
        fs.read(fd, slot, 0, blockBytes, blockBytes, (cause) => resolve(errnoName(cause) !== 'EINVAL'));
      }),
  );
}

async function blockDeviceBytes(deviceNumber: bigint, path: string): Promise<number> {
  const sectors = await readSysfs(deviceNumber, 'size');
  if (sectors === null) {
    throw new RaidError('NOT_SUPPORTED', `${path}: the size of a block device cannot be found out here`, {
      device: path,
    });
  }
  return Number(sectors) * 512;
}

/** An attribute of a block device, or null. A partition has no queue of its own; its disk, the folder above, has. */
async function readSysfs(deviceNumber: bigint, attribute: string): Promise<string | null> {
  const major = ((deviceNumber >> 8n) & 0xfffn) | ((deviceNumber >> 32n) & ~0xfffn);
  const minor = (deviceNumber & 0xffn) | ((deviceNumber >> 12n) & ~0xffn);
  const folder = `/sys/dev/block/${major}:${minor}`;
  // Strings, not `join`: the folder is a link, and `..` must be taken after it.
  for (const path of [`${folder}/${attribute}`, `${folder}/../${attribute}`]) {
    const text = await fs.promises.readFile(path, 'utf8').catch(() => null);
    if (text !== null) return text.trim();
  }
  return null;
}

async function countsBlocksHonestly(fd: number): Promise<boolean> {
  if (process.platform !== 'linux') return false;
  const { type } = await fs.promises
    .statfs(`/proc/self/fd/${fd}`, { bigint: true })
    .catch(() => ({ type: 0n }));
  return honestBlocks.includes(type);
}

/** A new name is durable only when its folder is. Best effort: not every file system lets a folder be synced. */
export async function syncFolder(path: string): Promise<void> {
  try {
    const fd = await openFile(path, fs.constants.O_RDONLY);
    await syncFile(fd).finally(() => closeFile(fd));
  } catch (cause) {
    if (errnoName(cause) === 'EIO') throw cause;
  }
}
