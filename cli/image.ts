/** What a backup or an image is made of, and where a backup goes: an array, a file, a block device. */
import { basename, resolve } from 'node:path';
import {
  type Backup,
  type ChangedSince,
  Device,
  type Extent,
  FileDevice,
  type Limits,
  processWitness,
  RaidError,
  type Repository,
  type RestoreBackupOptions,
  realHost,
  writeNewFile,
} from '../lib/index.ts';
import { checkFolder, commandLine, open, statOf } from './array.ts';
import { instantName, isLeftBehind } from './instants.ts';
import { connect, type Reached, type ReadableBytes, reach, resultOf } from './reach.ts';

export interface Source {
  readonly device: Device;
  readonly name: string;
  readonly uuid: string | null;
  readonly close: () => Promise<void>;
}

/** What is backed up, at an instant. */
export interface Instant {
  readonly device: Device;
  readonly name: string;
  readonly uuid: string | null;
  /** What the array calls this instant; null for what cannot be asked later what has changed since. */
  readonly point: string | null;
  readonly changedSince: ChangedSince | null;
  /** `isBackedUp`: what changes from here on is remembered, for the next backup. */
  readonly close: (isBackedUp: boolean) => Promise<void>;
}

/** An array, which stays this process's own until it is closed: nobody writes to it meanwhile. Or a file. `to`: where it goes. */
export async function openSource(path: string, to: string): Promise<Source> {
  const file = await openFile(path);
  if (file !== null) return file;
  await checkFolder(path);
  await refuseServed(
    path,
    `may be written to while it is read; to export what it holds at an instant, back it up:${commandLine('backup', 'create', path, '--repo', 'REPO')}${commandLine('export', 'latest', '--repo', 'REPO', '--to', to)}`,
  );
  const { array } = await open(path);
  return { device: array, name: array.name, uuid: array.status().uuid, close: () => array.close() };
}

/** For what wants an array to itself: with the verbs that do not. */
async function refuseServed(folder: string, why: string): Promise<void> {
  const control = await connect(folder);
  if (control === null) return;
  await control.close();
  throw new RaidError('BUSY', `${folder} is served, and ${why}`);
}

async function openFile(path: string): Promise<Source | null> {
  const found = await statOf(path);
  const isFile = found !== null && (found.isFile() || found.isBlockDevice());
  if (!isFile || basename(path) === 'raidsim.json') return null;
  const device = await FileDevice.open(path, { readOnly: true });
  return { device, name: basename(path), uuid: null, close: () => device.close() };
}

/**
 * An array at an instant: a snapshot of it, this one, or one that is taken now and goes with the backup. Without a snapshot (false) it
 * is the array itself, which must be nobody's then. A file is read as it is.
 */
export async function openInstant(path: string, snapshot: string | false | null): Promise<Instant> {
  const file = await openFile(path);
  if (file !== null) {
    if (typeof snapshot === 'string')
      throw new RaidError('BAD_ARGUMENT', `${path} is a file, and has no snapshots`);
    return { ...file, point: null, changedSince: null };
  }
  const reached = await reach(path);
  try {
    if (snapshot === false && reached.isLive) {
      throw new RaidError(
        'BUSY',
        `${path} is served, and may be written to while it is read; without --no-snapshot, a snapshot is backed up:${commandLine('backup', 'create', path)}`,
      );
    }
    if (typeof snapshot !== 'string' && (snapshot === false || !reached.facts.mayHaveSnapshots))
      return atRest(reached);
    return await atSnapshot(reached, snapshot);
  } catch (error) {
    await reached.close();
    throw error;
  }
}

/** Nobody else has it open, or nobody can write to it. */
function atRest(reached: Reached): Instant {
  const { facts, bytes } = reached;
  return {
    device: new BytesDevice(bytes, reached),
    name: facts.name,
    uuid: facts.uuid,
    point: null,
    changedSince: null,
    close: () => reached.close(),
  };
}

async function atSnapshot(reached: Reached, given: string | null): Promise<Instant> {
  const { facts } = reached;
  const name = given ?? instantName(realHost.wallClock(), await processWitness.self());
  const left = given === null ? await letGoOfLeft(reached) : [];
  if (given === null) await resultOf(reached.run('snapshotCreate', { name, limitBytes: null }));
  let base: string | null = null;
  const snapshot = await reached.openSnapshot(name);
  return {
    device: new BytesDevice(snapshot, reached),
    name: facts.name,
    uuid: facts.uuid,
    point: snapshot.point,
    changedSince: async (point) => {
      const ranges: { offsetBytes: number; lengthBytes: number }[] = [];
      const steps = reached.run('changedSince', { point, until: name });
      for (;;) {
        const { done, value } = await steps.next();
        if (done !== true) for (const range of value) ranges.push(range);
        else {
          if (!value) return 'unknown';
          base = point;
          return ranges;
        }
      }
    },
    close: async (isBackedUp) => {
      try {
        await snapshot.close();
        if (given === null) await resultOf(reached.run('snapshotDelete', { name, keepTracking: isBackedUp }));
        // The next backup begins where this one is.
        if (isBackedUp && base !== null) await resultOf(reached.run('forget', { point: base }));
        if (isBackedUp) for (const point of left) await resultOf(reached.run('forget', { point }));
      } finally {
        await reached.close();
      }
    },
  };
}

/**
 * What backups that were killed have left. It is remembered what changed since: one may have been killed when its record was
 * written already, and then this one begins there. Returns these points.
 */
async function letGoOfLeft(reached: Reached): Promise<readonly string[]> {
  const points: string[] = [];
  for (const { name, point } of await resultOf(reached.run('snapshotList', undefined))) {
    if (!(await isLeftBehind(name, reached.isLive, processWitness))) continue;
    try {
      await resultOf(reached.run('snapshotDelete', { name, keepTracking: true }));
      points.push(point);
    } catch (error) {
      // Somebody reads it, or was faster.
      if (!(error instanceof RaidError) || (error.code !== 'BUSY' && error.code !== 'BAD_ARGUMENT'))
        throw error;
    }
  }
  return points;
}

/** Reads that are under way at a time: a control socket takes few calls. */
const UNDER_WAY = 4;

/** Bytes that come from wherever the array is open. */
class BytesDevice extends Device {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct = null;
  readonly #bytes: ReadableBytes;
  readonly #queues: Promise<unknown>[] = Array.from({ length: UNDER_WAY }, () => Promise.resolve());
  #turn = 0;

  constructor(bytes: ReadableBytes, { facts }: Reached) {
    super();
    this.name = bytes.name;
    this.limits = {
      sizeBytes: facts.sizeBytes,
      blockBytes: facts.blockBytes,
      preferredBytes: facts.preferredBytes,
      readOnly: true,
    };
    this.#bytes = bytes;
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    this.#turn = (this.#turn + 1) % UNDER_WAY;
    const before = this.#queues[this.#turn] ?? Promise.resolve();
    const read = before.then(() => this.#readAll(offsetBytes, targets));
    this.#queues[this.#turn] = read.catch(() => undefined);
    return read;
  }

  async #readAll(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    let at = offsetBytes;
    for (const target of targets) {
      await this.#bytes.read(at, target);
      at += target.byteLength;
    }
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return Promise.resolve([{ offsetBytes, lengthBytes, allocated: true, zero: false }]);
  }

  protected override doFlush(): Promise<void> {
    return Promise.resolve();
  }

  protected override doWrite(): Promise<void> {
    return this.#refuse();
  }

  protected override doDiscard(): Promise<void> {
    return this.#refuse();
  }

  protected override doWriteZeroes(): Promise<void> {
    return this.#refuse();
  }

  protected override doResize(): Promise<void> {
    return this.#refuse();
  }

  protected override doClose(): Promise<void> {
    return Promise.resolve();
  }

  #refuse(): Promise<never> {
    return Promise.reject(new RaidError('READ_ONLY', `${this.name} is only read`, { device: this.name }));
  }
}

/** False where it was asked to stop. */
export async function restoreTo(
  repository: Repository,
  backup: Backup,
  to: string,
  options: RestoreBackupOptions,
): Promise<boolean> {
  const found = await statOf(to);
  if (found?.isDirectory() === true) {
    await checkFolder(to);
    await refuseServed(
      to,
      `is not restored under those who use it; to write the bytes of the backup over its own all the same:${commandLine('backup', 'restore', backup.id, '--repo', 'REPO', '--to', 'FILE')}${commandLine('write', to, '--from', 'FILE')}`,
    );
    const { array } = await open(to, { writes: true });
    try {
      return await repository.restore(backup.id, array, options);
    } finally {
      await array.close();
    }
  }
  if (found?.isBlockDevice() === true) {
    await using device = await FileDevice.open(to);
    return await repository.restore(backup.id, device, options);
  }
  return await restoreToFile(repository, backup, to, options);
}

/** A file that gets its name when it is whole; where data is lost, the rest of it is kept beside. */
async function restoreToFile(
  repository: Repository,
  backup: Backup,
  to: string,
  options: RestoreBackupOptions,
): Promise<boolean> {
  let lost: RaidError | null = null;
  const outcome = await writeNewFile(resolve(to), backup.sizeBytes, async (target) => {
    try {
      const isDone = await repository.restore(backup.id, target, { ...options, isBlank: true });
      return isDone ? 'whole' : 'discard';
    } catch (error) {
      if (!(error instanceof RaidError) || error.code !== 'REDUNDANCY_LOST') throw error;
      lost = error;
      return 'keep partial';
    }
  });
  if (lost !== null) throw lost;
  return outcome === 'whole';
}
