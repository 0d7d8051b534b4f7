/**
 * One process owns an array, and a member belongs to one array. Two that write to the same member, each with its own
 * idea of what is clean, lose data without an error.
 *
 *   guard                     of what           seen by                      gone when the owner dies
 *   a list in this process    folder, members   this process                 with it
 *   abstract unix sockets     folder, members   this network namespace       at once (Linux)
 *   flock on `raidsim.lock`   folder            every namespace; NFS too     at once (Linux)
 *   what `raidsim.lock` says  folder            everybody                    judged: pid, its start, the boot
 *
 * Each is taken where it is to be had. An abstract socket is the one lock without a trace that Node can take without
 * an addon: binding the name `\0raidsim-<dev>-<ino>` is the lock, and the kernel frees the name with the process. It
 * does not reach across network namespaces (containers), hence flock, by way of the `flock` program: it locks the open
 * file description that it shares with us, so the lock stays when the program ends and goes when we do.
 *
 * Where there is neither, the words in the lock file are all there is. A process number alone proves nothing, since
 * numbers are used again: the lock is stale when no process of that number started at that moment, or the machine has
 * been booted since. What was written on another machine or in another pid namespace cannot be judged and counts as
 * alive. There, members are guarded only within one process.
 *
 * Locks are taken in one order (the folder, then members by name) and never waited for: of several that want the same
 * things one gets them all, and nobody can block anybody. The kernel is looked at last, when nobody else of us can
 * change the picture. It keeps no promise about later: a `losetup` after that is not noticed.
 *
 * Hazard: abstract names have no owner. Any local user can squat on one, which denies service (what it then answers is
 * shown as a number and as quoted text, no more) but never lets a second owner in.
 */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { errnoName, errorFromErrno } from '../device/errno.ts';
import { assert, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';

export const LOCK_NAME = 'raidsim.lock';

/** `identity` is `dev:ino`, or what `FileDevice.identity` says: the same for the same bytes, by whatever path. */
export interface MemberFile {
  readonly path: string;
  readonly identity: string;
}

export interface Owner {
  /** Null where somebody holds the lock and nobody can say who. */
  readonly pid: number | null;
  readonly folder: string | null;
}

export type Mechanism = 'sockets' | 'flock';

export interface OwnershipOptions {
  readonly folder: string;
  readonly members: readonly MemberFile[];
  readonly host: Host;
  /** `read` takes nothing, refuses nothing that is in use, and says who the owner is. */
  readonly mode?: 'own' | 'read' | undefined;
  /** Does as on a platform that lacks these. */
  readonly without?: readonly Mechanism[] | undefined;
}

/** How long a process that holds a socket has to say its number: it may be stopped, or busy with something long. */
const ANSWER_MS = 500;
const STEP_MS = 20;
/** `sun_path`. */
const ADDRESS_BYTES = 108;
const ANSWER_CHARACTERS = 4096 + 64;
/** Owners that vanish between our attempt and our question. */
const BIND_ATTEMPTS = 5;
const LOCK_ATTEMPTS = 20;
/** Without a kernel lock: how long a lock file may be empty, and how long one must stay before it counts. */
const GRACE_MS = 200;
const SETTLE_MS = 60;

const openFile = promisify(fs.open);
const closeFile = promisify(fs.close);

const nobodyKnown: Owner = { pid: null, folder: null };

interface Holding {
  /** Null where there are no such sockets. */
  readonly server: net.Server | null;
  readonly path: string;
}

/** What this process holds: name of the lock to the folder of the array. */
const heldHere = new Map<string, string>();

export class Ownership implements AsyncDisposable {
  readonly folder: string;
  /** Of an array that is only read: whose it is, if anybody's. */
  readonly owner: Owner | null;
  readonly #host: Host;
  readonly #without: readonly Mechanism[];
  readonly #holdings = new Map<string, Holding>();
  #lock: LockFile | null = null;
  #releasing: Promise<void> | null = null;

  private constructor(options: OwnershipOptions, owner: Owner | null) {
    this.folder = resolve(options.folder);
    this.owner = owner;
    this.#host = options.host;
    this.#without = options.without ?? [];
  }

  /** All of it, or BUSY, with what is in use, by whom, and what to do; DUPLICATE_MEMBER for one file given twice. */
  static async take(options: OwnershipOptions): Promise<Ownership> {
    refuseDuplicates(options.members);
    if (options.mode === 'read') return new Ownership(options, await findOwner(options));
    const taken = new Ownership(options, null);
    try {
      await taken.#takeFolder();
      const byName = options.members.toSorted((a, b) => (lockName(a) < lockName(b) ? -1 : 1));
      for (const member of byName) await taken.#hold(lockName(member), member.path);
      await taken.#takeLockFile();
      for (const member of options.members) await refuseKernelUse(member);
      return taken;
    } catch (cause) {
      await taken.release();
      throw cause;
    }
  }

  /** One member more, for an array that is running. */
  async claim(member: MemberFile): Promise<void> {
    assert(this.#releasing === null, 'an ownership that was released claims nothing');
    const name = lockName(member);
    const held = this.#holdings.get(name);
    if (held !== undefined) throw duplicate(held.path, member.path);
    await this.#hold(name, member.path);
    try {
      await refuseKernelUse(member);
    } catch (cause) {
      await this.#letGo(name);
      throw cause;
    }
  }

  /** Gives back one member. Nothing happens for one that is not held. */
  async unclaim(identity: string): Promise<void> {
    await this.#letGo(lockName({ identity }));
  }

  /** Idempotent. Whoever comes next may have it when the promise resolves. */
  release(): Promise<void> {
    this.#releasing ??= this.#releaseAll();
    return this.#releasing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }

  async #releaseAll(): Promise<void> {
    // The file first: once a socket is free the next owner may have written its own.
    try {
      await this.#lock?.release();
    } finally {
      for (const name of [...this.#holdings.keys()]) await this.#letGo(name);
    }
  }

  async #takeFolder(): Promise<void> {
    try {
      const stats = await fs.promises.stat(this.folder, { bigint: true });
      await this.#hold(folderLockName(stats), this.folder);
    } catch (cause) {
      throw errorFromErrno(cause, 'open', { device: this.folder });
    }
  }

  async #hold(name: string, path: string): Promise<void> {
    const other = heldHere.get(name);
    if (other !== undefined) throw busy(path, { pid: process.pid, folder: other });
    heldHere.set(name, this.folder);
    try {
      this.#holdings.set(name, { server: await this.#bind(name, path), path });
    } catch (cause) {
      heldHere.delete(name);
      throw cause;
    }
    if (this.#releasing !== null) await this.#letGo(name);
  }

  async #bind(name: string, path: string): Promise<net.Server | null> {
    if (!this.#has('sockets')) return null;
    for (let attempt = 0; attempt < BIND_ATTEMPTS; attempt += 1) {
      const bound = await bindSocket(name, `${process.pid}\n${this.folder}\n`);
      if (bound === 'unsupported') return null;
      if (bound !== 'taken') return bound;
      const owner = await askSocket(name, this.#host);
      if (owner === 'gone') continue;
      throw busy(path, owner.pid === null ? await this.#identify(name, path) : owner);
    }
    throw busy(path, nobodyKnown);
  }

  /** Who holds a socket and does not answer. The lock file speaks of the folder only, and only while its writer lives. */
  async #identify(name: string, path: string): Promise<Owner> {
    const pid = await findSocketHolder(name);
    if (pid !== null || path !== this.folder) return { pid, folder: null };
    const record = await readLockFile(join(this.folder, LOCK_NAME));
    if (record === null || (await verdictOn(record, await describeSelf())) !== 'alive') return nobodyKnown;
    return { pid: record.pid, folder: null };
  }

  async #letGo(name: string): Promise<void> {
    const holding = this.#holdings.get(name);
    if (holding === undefined) return;
    this.#holdings.delete(name);
    const { server } = holding;
    if (server !== null) await new Promise((closed) => server.close(closed));
    heldHere.delete(name);
  }

  async #takeLockFile(): Promise<void> {
    const path = join(this.folder, LOCK_NAME);
    try {
      this.#lock = await LockFile.take(path, this.#has('flock'), this.#host);
    } catch (cause) {
      throw errorFromErrno(cause, 'open', { device: path });
    }
  }

  #has(mechanism: Mechanism): boolean {
    return process.platform === 'linux' && !this.#without.includes(mechanism);
  }
}

/** Of the file or block device at a path; throws what `stat` throws. */
export async function identityOf(path: string): Promise<string> {
  return identityFrom(await fs.promises.stat(path, { bigint: true }));
}

function identityFrom(stats: fs.BigIntStats): string {
  return stats.isBlockDevice() ? `block:${stats.rdev}` : `${stats.dev}:${stats.ino}`;
}

export function lockName({ identity }: Pick<MemberFile, 'identity'>): string {
  return `raidsim-${plain(identity).replaceAll(':', '-')}`;
}

function folderLockName(stats: fs.BigIntStats): string {
  return `raidsim-array-${stats.dev}-${stats.ino}`;
}

/** `FileDevice` says which kind it is, others may not: both must come to one name. */
function plain(identity: string): string {
  return identity.replace(/^file:/, '');
}

function refuseDuplicates(members: readonly MemberFile[]): void {
  const seen = new Map<string, string>();
  for (const member of members) {
    const first = seen.get(lockName(member));
    if (first !== undefined) throw duplicate(first, member.path);
    seen.set(lockName(member), member.path);
  }
}

function duplicate(first: string, second: string): RaidError {
  const detail =
    first === second
      ? `${first} is given twice; name each member once`
      : `${first} and ${second} are the same file by two names; name each member once`;
  return new RaidError('DUPLICATE_MEMBER', detail, { device: second });
}

function busy(path: string, { pid, folder }: Owner): RaidError {
  if (pid === process.pid) {
    return new RaidError(
      'BUSY',
      `${path} is in use by the array ${quoted(folder)} of this process (${pid}); close that array first`,
      { device: path },
    );
  }
  const who = pid === null ? 'another process, which does not say its number' : `process ${pid}`;
  const array = folder === null || folder === path ? '' : `, as part of the array ${quoted(folder)}`;
  return new RaidError(
    'BUSY',
    `${path} is in use by ${who}${array}; work through that process, or end it and try again`,
    { device: path },
  );
}

/** Text from elsewhere: whatever it holds, it moves no cursor. */
function quoted(text: string | null): string {
  return JSON.stringify(text ?? '').replace(/[\u007f-\u009f]/g, '?');
}

// Abstract sockets.

/**
 * As long as an address can be. A shorter one is sent with its length by Node 22 and padded with zeros by Node 20
 * (seen in /proc/net/unix): to the kernel these are two names, and two processes would own one array.
 */
export function abstractPath(name: string): string {
  return `\0${name.padEnd(ADDRESS_BYTES - 1, '.')}`;
}

/** `exclusive`: in a cluster the primary would lend one socket to all workers, and all would be owners. */
function bindSocket(name: string, answer: string): Promise<net.Server | 'taken' | 'unsupported'> {
  return new Promise((settle) => {
    const server = net.createServer((socket) => {
      socket.on('error', () => undefined);
      socket.unref();
      socket.end(answer, () => socket.destroy());
    });
    server.once('error', (cause) => settle(errnoName(cause) === 'EADDRINUSE' ? 'taken' : 'unsupported'));
    server.listen({ path: abstractPath(name), exclusive: true }, () => {
      server.unref();
      server.on('error', () => undefined);
      settle(server);
    });
  });
}

/** `gone` when nobody listens (any more): the name may be free now. */
function askSocket(name: string, host: Host): Promise<Owner | 'gone'> {
  return new Promise((settle) => {
    const socket = net.connect({ path: abstractPath(name) });
    let text = '';
    let asking = true;
    const end = (answer: Owner | 'gone'): void => {
      asking = false;
      socket.destroy();
      settle(answer);
    };
    socket.setEncoding('utf8');
    socket.on('data', (part) => {
      text += part;
      if (text.length > ANSWER_CHARACTERS) end(nobodyKnown);
    });
    // Hung up without a word: it ended between our two calls.
    socket.on('end', () => end(text === '' ? 'gone' : parseAnswer(text)));
    // EAGAIN is a queue that nobody empties: somebody is there.
    socket.on('error', (cause) => end(errnoName(cause) === 'EAGAIN' ? nobodyKnown : 'gone'));
    // In steps, so that an answer leaves no long timer behind that keeps the process alive.
    const giveUp = async (): Promise<void> => {
      for (let waitedMs = 0; asking && waitedMs < ANSWER_MS; waitedMs += STEP_MS) await host.sleep(STEP_MS);
      if (asking) end(nobodyKnown);
    };
    void giveUp();
  });
}

function parseAnswer(text: string): Owner {
  const [pid = '', folder] = text.split('\n');
  return {
    pid: /^[1-9]\d{0,9}$/.test(pid) ? Number(pid) : null,
    folder: folder === undefined || folder === '' ? null : folder,
  };
}

/** By way of /proc, without the holder's help: its name leads to an inode, and that to whose descriptor it is. */
async function findSocketHolder(name: string): Promise<number | null> {
  const table = await textOf('/proc/net/unix');
  // Connections that wait to be accepted stand there under the same name; flag 10000 is the one that listens.
  const line = table
    .split('\n')
    .find((entry) => / 00010000 .* @/.test(entry) && entry.endsWith(` @${abstractPath(name).slice(1)}`));
  const inode = line?.trim().split(/\s+/)[6];
  if (inode === undefined) return null;
  for (const pid of (await namesIn('/proc')).filter((entry) => /^\d+$/.test(entry))) {
    for (const fd of await namesIn(`/proc/${pid}/fd`)) {
      const target = await fs.promises.readlink(`/proc/${pid}/fd/${fd}`).catch(() => '');
      if (target === `socket:[${inode}]`) return Number(pid);
    }
  }
  return null;
}

// The lock file.

/** What a lock file says of the process that wrote it; null where its platform does not tell. */
export interface LockRecord {
  readonly pid: number;
  readonly startTime: string | null;
  readonly bootId: string | null;
  readonly pidNamespace: string | null;
  readonly hostname: string;
}

export type LockVerdict = 'alive' | 'stale' | 'unknown';

/**
 * Whether the process that wrote a lock file is still there. `found` is what this machine knows of a process with that
 * number: when it started, `alive` where only that is known, null if there is none.
 *
 *   boot         machine     pid namespace    process                verdict
 *   the same     any         the same         started when it says   alive
 *   the same     any         the same         did not, or is none    stale
 *   the same     any         another          any                    unknown
 *   another      the same    any              any                    stale: booted since
 *   another      another     any              any                    unknown
 *   not known    the same    any              some                   alive
 *   not known    the same    any              none                   stale
 *   not known    another     any              any                    unknown
 */
export function judgeLock(lock: LockRecord, here: LockRecord, found: string | null): LockVerdict {
  const sameMachine = lock.hostname === here.hostname;
  if (lock.bootId === null || here.bootId === null) {
    if (!sameMachine) return 'unknown';
    return found === null ? 'stale' : 'alive';
  }
  if (lock.bootId !== here.bootId) return sameMachine ? 'stale' : 'unknown';
  if (lock.pidNamespace !== here.pidNamespace) return 'unknown';
  return found !== null && (found === lock.startTime || lock.startTime === null) ? 'alive' : 'stale';
}

class LockFile {
  readonly #path: string;
  readonly #fd: number;

  private constructor(path: string, fd: number) {
    this.#path = path;
    this.#fd = fd;
  }

  static async take(path: string, tryFlock: boolean, host: Host): Promise<LockFile> {
    const here = await describeSelf();
    const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;
    // Undefined on Windows, where a link is not followed into somebody else's file either.
    const noFollow = fs.constants.O_NOFOLLOW ?? 0;
    for (let attempt = 0; attempt < LOCK_ATTEMPTS; attempt += 1) {
      const created = await openUnless('EEXIST', path, O_RDWR | O_CREAT | O_EXCL | noFollow);
      const fd = created ?? (await openUnless('ENOENT', path, O_RDWR | noFollow));
      if (fd === null) continue;
      let keep = false;
      try {
        const flock = tryFlock ? await flockDescriptor(fd) : 'unavailable';
        if (flock === 'taken') {
          // Somebody found our file before we had locked it, and may be about to remove it.
          if (created !== null) continue;
          throw await lockedBy(path, here);
        }
        if (flock === 'unavailable' && created === null) {
          await breakIfStale(path, here, host);
          continue;
        }
        // Locked is only what still has the name: an owner that ends removes the file under our hands.
        if (!(await hasName(fd, path))) continue;
        const found = created === null ? await readLockFile(path) : null;
        if (found !== null && found.pid !== process.pid && (await verdictOn(found, here)) === 'alive') {
          // Its owner had no flock to take.
          throw busy(path, { pid: found.pid, folder: null });
        }
        await writeText(fd, `${JSON.stringify(here)}\n`);
        if (flock === 'unavailable') {
          // Who judged an older file stale may take ours for it, see its error and put it back (`breakIfStale`).
          await host.sleep(SETTLE_MS);
          if (!(await hasName(fd, path))) continue;
        }
        keep = true;
        return new LockFile(path, fd);
      } finally {
        if (!keep) await closeFile(fd);
      }
    }
    throw new RaidError('BUSY', `${path} changes hands all the time; try again`, { device: path });
  }

  async release(): Promise<void> {
    try {
      if (await hasName(this.#fd, this.#path)) await fs.promises.rm(this.#path, { force: true });
    } finally {
      await closeFile(this.#fd);
    }
  }
}

/** Its words may be of an earlier owner: who took the lock just now has not written yet. */
async function lockedBy(path: string, here: LockRecord): Promise<RaidError> {
  const record = await readLockFile(path);
  const verdict = record === null ? 'stale' : await verdictOn(record, here);
  if (record === null || verdict === 'stale') return busy(path, nobodyKnown);
  if (verdict === 'alive') return busy(path, { pid: record.pid, folder: null });
  return new RaidError(
    'BUSY',
    `${path} is locked by process ${record.pid} on ${quoted(record.hostname)}, in another container or on another ` +
      'machine; work through that process, or end it there and try again',
    { device: path },
  );
}

async function writeText(fd: number, text: string): Promise<void> {
  await promisify(fs.ftruncate)(fd, 0);
  await promisify(fs.writev)(fd, [Buffer.from(text)], 0);
}

async function openUnless(expected: string, path: string, flags: number): Promise<number | null> {
  try {
    return await openFile(path, flags, 0o644);
  } catch (cause) {
    if (errnoName(cause) === expected) return null;
    throw cause;
  }
}

/**
 * Removes a lock file whose owner is gone; throws BUSY if it is not, or nobody can tell. Two may do this at once, and
 * the slower one would remove the file of the faster: so it is moved aside, looked at again, and put back if it was
 * not the one that was judged. Somebody who is held up in between for longer than `SETTLE_MS` can still break it.
 */
async function breakIfStale(path: string, here: LockRecord, host: Host): Promise<void> {
  let judged: string | null = null;
  for (let waitedMs = 0; waitedMs <= GRACE_MS; waitedMs += STEP_MS) {
    judged = await fs.promises.readFile(path, 'utf8').catch(() => null);
    if (judged === null) return;
    if (judged !== '') break;
    await host.sleep(STEP_MS);
  }
  const record = parseLock(judged ?? '');
  const verdict = record === null ? 'stale' : await verdictOn(record, here);
  if (record !== null && verdict !== 'stale') throw unlessSure(path, record, verdict);

  const aside = `${path}.${process.pid}-${host.random(2 ** 31)}`;
  const moved = await fs.promises.rename(path, aside).then(
    () => true,
    () => false,
  );
  if (!moved) return;
  const text = await fs.promises.readFile(aside, 'utf8');
  if (text !== judged) await fs.promises.link(aside, path).catch(() => undefined);
  await fs.promises.rm(aside, { force: true });
}

function unlessSure(path: string, record: LockRecord, verdict: LockVerdict): RaidError {
  if (verdict === 'alive') return busy(path, { pid: record.pid, folder: null });
  return new RaidError(
    'BUSY',
    `${path} was left by process ${record.pid} on ${quoted(record.hostname)}, which cannot be asked from here; ` +
      'if it is gone, delete the file and try again',
    { device: path },
  );
}

async function verdictOn(record: LockRecord, here: LockRecord): Promise<LockVerdict> {
  return judgeLock(record, here, await startOf(record.pid));
}

/** Does the path still lead to the open file? */
async function hasName(fd: number, path: string): Promise<boolean> {
  const named = await fs.promises.stat(path, { bigint: true }).catch(() => null);
  if (named === null) return false;
  const open = await promisify(fs.fstat)(fd, { bigint: true });
  return open.dev === named.dev && open.ino === named.ino;
}

/** Locks the open file that the child shares with us: see the top. */
function flockDescriptor(fd: number): Promise<'locked' | 'taken' | 'unavailable'> {
  return new Promise((settle) => {
    try {
      const child = spawn('flock', ['-x', '-n', '3'], {
        stdio: ['ignore', 'ignore', 'ignore', fd],
        env: { PATH: process.env['PATH'] },
      });
      child.on('error', () => settle('unavailable'));
      child.on('close', (status) => settle(status === 0 ? 'locked' : status === 1 ? 'taken' : 'unavailable'));
    } catch {
      settle('unavailable');
    }
  });
}

async function readLockFile(path: string): Promise<LockRecord | null> {
  return parseLock(await textOf(path));
}

function parseLock(text: string): LockRecord | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (typeof value !== 'object' || value === null) return null;
  const record = value as Record<string, unknown>;
  const textIn = (key: string): string | null => {
    const found = record[key];
    return typeof found === 'string' ? found : null;
  };
  const pid = record['pid'];
  if (typeof pid !== 'number' || !Number.isSafeInteger(pid) || pid <= 0) return null;
  return {
    pid,
    startTime: textIn('startTime'),
    bootId: textIn('bootId'),
    pidNamespace: textIn('pidNamespace'),
    hostname: textIn('hostname') ?? '',
  };
}

async function describeSelf(): Promise<LockRecord> {
  const bootId = (await textOf('/proc/sys/kernel/random/boot_id')).trim();
  return {
    pid: process.pid,
    startTime: await startTimeOf(process.pid),
    bootId: bootId === '' ? null : bootId,
    pidNamespace: await fs.promises.readlink('/proc/self/ns/pid').catch(() => null),
    hostname: os.hostname(),
  };
}

async function startOf(pid: number): Promise<string | null> {
  if (fs.existsSync('/proc/self/stat')) return await startTimeOf(pid);
  try {
    process.kill(pid, 0);
    return 'alive';
  } catch (cause) {
    // EPERM: there is one, of another user.
    return errnoName(cause) === 'EPERM' ? 'alive' : null;
  }
}

/**
 * Field 22 of /proc/<pid>/stat, in clock ticks since boot; null for a process that is gone, or dead and not yet
 * reaped. The name in field 2 may hold anything, parentheses and spaces too: fields count from its last `)`.
 */
async function startTimeOf(pid: number): Promise<string | null> {
  const stat = await textOf(`/proc/${pid}/stat`);
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const state = fields[0] ?? '';
  return state === '' || state === 'Z' || state === 'X' ? null : (fields[19] ?? null);
}

/** For one who only reads. */
async function findOwner({ folder, members, host, without = [] }: OwnershipOptions): Promise<Owner | null> {
  const stats = await fs.promises.stat(folder, { bigint: true }).catch(() => null);
  const names = [...(stats === null ? [] : [folderLockName(stats)]), ...members.map(lockName)];
  const here = names.map((name) => heldHere.get(name)).find((held) => held !== undefined);
  if (here !== undefined) return { pid: process.pid, folder: here };
  if (process.platform === 'linux' && !without.includes('sockets')) {
    for (const name of names) {
      const owner = await askSocket(name, host);
      if (owner === 'gone') continue;
      return owner.pid === null ? { pid: await findSocketHolder(name), folder: null } : owner;
    }
  }
  const record = await readLockFile(join(folder, LOCK_NAME));
  if (record === null || (await verdictOn(record, await describeSelf())) === 'stale') return null;
  return { pid: record.pid, folder: resolve(folder) };
}

// What the kernel holds.

/** A member as the kernel knows it; `block` is `major:minor` of a block device, null for a file. */
export interface KernelSubject extends MemberFile {
  readonly block: string | null;
}

async function refuseKernelUse(member: MemberFile): Promise<void> {
  const stats = await fs.promises.stat(member.path, { bigint: true }).catch(() => null);
  const use = await findKernelUse({ ...member, block: stats?.isBlockDevice() ? numberOf(stats.rdev) : null });
  if (use !== null) throw new RaidError('BUSY', `${member.path} ${use}`, { device: member.path });
}

/**
 * How the kernel uses a member, and what to do about it, as the end of a sentence; null if it does not. What cannot be
 * read is not in use: other platforms have none of this. `root` is where /proc and /sys are.
 */
export async function findKernelUse(subject: KernelSubject, root = ''): Promise<string | null> {
  return (
    (await findLoop(subject, root)) ??
    (await findSwap(subject, root)) ??
    (await findMount(subject, root)) ??
    (await findHolder(subject, root))
  );
}

async function findLoop(subject: KernelSubject, root: string): Promise<string | null> {
  for (const name of await namesIn(`${root}/sys/block`)) {
    // A path as it was when the loop was made; the file may have been renamed or deleted since.
    const file = (await textOf(`${root}/sys/block/${name}/loop/backing_file`)).replace(/\n$/, '');
    if (file !== '' && (await isSame(subject, file))) {
      return `is attached to the loop device /dev/${name}; detach it (losetup -d /dev/${name}) and try again`;
    }
  }
  return null;
}

async function findSwap(subject: KernelSubject, root: string): Promise<string | null> {
  const [, ...lines] = (await textOf(`${root}/proc/swaps`)).split('\n');
  for (const line of lines) {
    const path = unescapeOctal(line.split(/\s/)[0] ?? '');
    if (path !== '' && (await isSame(subject, path))) {
      return `is swap space in use; turn it off (swapoff ${path}) and try again`;
    }
  }
  return null;
}

/** mountinfo rather than mounts: it has the device number, which no rename or `/dev/root` hides. */
async function findMount(subject: KernelSubject, root: string): Promise<string | null> {
  if (subject.block === null) return null;
  const numbers = [subject.block];
  for (const partition of await partitionsOf(subject.block, root)) {
    numbers.push((await textOf(`${partition}/dev`)).trim());
  }
  for (const line of (await textOf(`${root}/proc/self/mountinfo`)).split('\n')) {
    const [before = '', after = ''] = line.split(' - ');
    const fields = before.split(' ');
    const place = unescapeOctal(fields[4] ?? '');
    // btrfs has device numbers of its own, but names its device.
    const source = unescapeOctal(after.split(' ')[1] ?? '');
    if (numbers.includes(fields[2] ?? '-') || (source.startsWith('/') && (await isSame(subject, source)))) {
      return `is mounted at ${place}; unmount it (umount ${place}) and try again`;
    }
  }
  return null;
}

/** md, device-mapper and bcache stand in `holders`, of the device or of one of its partitions. */
async function findHolder(subject: KernelSubject, root: string): Promise<string | null> {
  if (subject.block === null) return null;
  for (const folder of [blockFolder(subject.block, root), ...(await partitionsOf(subject.block, root))]) {
    const [holder] = await namesIn(`${folder}/holders`);
    if (holder !== undefined) {
      return `is held by the kernel's ${holder}; stop that (mdadm --stop, dmsetup remove) and try again`;
    }
  }
  return null;
}

async function partitionsOf(block: string, root: string): Promise<readonly string[]> {
  const folder = blockFolder(block, root);
  const partitions: string[] = [];
  for (const name of await namesIn(folder)) {
    if ((await textOf(`${folder}/${name}/partition`)) !== '') partitions.push(`${folder}/${name}`);
  }
  return partitions;
}

function blockFolder(block: string, root: string): string {
  return `${root}/sys/dev/block/${block}`;
}

async function isSame(subject: KernelSubject, path: string): Promise<boolean> {
  const identity = await identityOf(path).catch(() => null);
  return identity === null ? path === subject.path : identity === plain(subject.identity);
}

function numberOf(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  return `${major}:${(rdev & 0xffn) | ((rdev >> 12n) & ~0xffn)}`;
}

/** Spaces and the like in paths, as /proc writes them. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

async function textOf(path: string): Promise<string> {
  return await fs.promises.readFile(path, 'utf8').catch(() => '');
}

async function namesIn(path: string): Promise<readonly string[]> {
  return await fs.promises.readdir(path).catch(() => []);
}
