/**
 * The snapshots of an array in a folder: where their store is, and what keeps them true while anybody at all may come by the
 * members.
 *
 * The store is one file beside the manifest, made with the first snapshot. From then on the array's own reads and writes go through
 * a `SnapshotOrigin` that lies within the array: `RaidArray.write` leads to it and it leads to the engine, so that there is no
 * way to write past it for whoever has the array from `openArray`. What redundancy needs, the sync and a scrub's repair, changes no byte
 * that the array shows, and goes below.
 *
 *   RaidArray.read, write ──▶ SnapshotOrigin ──▶ Below ──▶ engine ──▶ members
 *                                   │
 *                                   └──▶ snapshots.store
 *
 * Who writes past it. The kernel, mdadm, or raidsim in another folder know nothing of the store. Whoever updates superblocks
 * before writing gives itself away: raidsim does in each life, the kernel with arrays that were clean. The store has the witness
 * (md/update.ts) of every update that this array makes, durable before the superblocks are. A crash leaves the members with the last
 * or the one before; if assembly finds another, somebody was there, and all snapshots become invalid: they are listed, and read no more.
 * They do so too when somebody was there and wrote nothing, and when an assembly had to be forced: then bytes that they share with the
 * array may have changed without a write. What this cannot see:
 *
 *   raid0, linear    the kernel updates no superblock when it writes to them. So what was tracked counts only within one opening,
 *                    and a backup reads all again; snapshots stay, and whoever lists them is told
 *   dirty arrays     the kernel need not update any superblock of one that was not stopped before it writes to it
 *   same second      Linux takes its count of events back, and its time is in seconds: assembled, written and stopped again in the
 *                    very second in which this array was closed
 *   member files     bytes changed in them by hand; that is what a scrub finds
 *
 * A store that cannot be used (damaged, of another size or array) is no reason to keep people from their data: it can be read,
 * mended and rebuilt. Only writes are refused, until the store is repaired by bringing it back, or dropped.
 *
 * The order of an opening. What assembly found is judged first; then every update of superblocks is witnessed, from the one on with which
 * assembly itself begins (after a PPL recovery, or by force); only then a rollback that was cut short is finished. So this opening
 * may be cut short anywhere, and the next one knows that it was ours.
 *
 * An array that only is read, or writes to an overlay, leaves the store alone, and has no snapshots. While a rollback is to be finished
 * it is not read either.
 */
import { readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Device, type Extent, type Limits, type ZeroOptions } from '../device/device.ts';
import { syncFolder } from '../device/file.ts';
import { OverlayDevice, overlayTakes } from '../device/overlay.ts';
import { RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import { confirm, witnessOf } from '../md/update.ts';
import type { SnapshotDevice } from '../snapshot/device.ts';
import {
  type ChangedRange,
  isSnapshotName,
  type OpenedSnapshotOptions,
  type RollbackProgress,
  rollbackDueIn,
  type SnapshotInfo,
  SnapshotOrigin,
  type SnapshotUsage,
} from '../snapshot/origin.ts';
import { KIB, MIB, roundDown } from '../units.ts';
import type { Metadata } from './metadata.ts';
import { isThere } from './source.ts';

export const SNAPSHOT_STORE = 'snapshots.store';
/** What was written to the clone of a snapshot, by its name. Other files may be called so too: what is no overlay is somebody else's. */
const CLONE = '.clone';

/** Of the array, where nobody says how much all copies together may take; and never less than a MiB. */
const SHARE = 5;

/** The array's own requests, below its snapshots. */
interface BelowSnapshots {
  readonly read: (offsetBytes: number, targets: readonly Uint8Array[]) => Promise<void>;
  readonly write: (offsetBytes: number, sources: readonly Uint8Array[], fua: boolean) => Promise<void>;
  readonly writeZeroes: (
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ) => Promise<void>;
  readonly flush: () => Promise<void>;
  /** What was being written at the call has ended. */
  readonly settled: () => Promise<void>;
  readonly close: () => Promise<void>;
}

interface SnapshotsParts {
  readonly folder: string;
  readonly path: string;
  readonly name: string;
  readonly limits: Limits;
  readonly host: Host;
  readonly metadata: Metadata;
  readonly below: BelowSnapshots;
}

export interface CloneInfo {
  /** The name; such a snapshot need not be there any more. */
  readonly snapshot: string;
  /** On the disk. */
  readonly takenBytes: number;
}

/** What assembly found and decided. */
export interface Found {
  /** Null where superblocks are not of a kind that is written. */
  readonly witness: string | null;
  readonly isForced: boolean;
  /** Updates the superblocks where assembly decided something beyond what they say, before anything is written. */
  readonly update: () => Promise<void>;
}

export class ArraySnapshots {
  readonly #parts: SnapshotsParts;
  #below: Below;
  #origin: SnapshotOrigin | null = null;
  #problem: RaidError | null = null;
  #isBetween = false;
  readonly #clones = new Map<string, OverlayDevice>();
  /**
   * Making and dropping the store take turns, and a rollback: nothing may be written past it while it runs. So do all who make, open or
   * remove the file of a clone, or the snapshot below it.
   */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(parts: SnapshotsParts) {
    this.#parts = parts;
    this.#below = new Below(parts);
  }

  /** What reads and writes go through; null where there is no store. */
  get origin(): SnapshotOrigin | null {
    return this.#origin;
  }

  /** Why the store cannot be used: until it is dropped, nothing may be written. */
  get problem(): RaidError | null {
    return this.#problem;
  }

  /** The problem, where it is one for reading too: a rollback was cut short, and cannot be finished. */
  get problemOfReads(): RaidError | null {
    if (this.#isBetween) return this.#problem;
    const interrupted = this.#origin?.interrupted ?? null;
    if (interrupted === null) return null;
    const { name, isForked, error } = interrupted;
    const { folder } = this.#parts;
    return new RaidError(error.code, `${error.message}; ${finishing(folder, name, isForked)}`, {
      ...error.place,
      cause: error,
    });
  }

  /** Before anybody has the array. */
  async open({ witness, isForced, update }: Found): Promise<void> {
    const { path, host, metadata, folder } = this.#parts;
    let updated: Promise<void> | null = null;
    const updateOnce = (): Promise<void> => {
      updated ??= update();
      return updated;
    };
    if (!(await isThere(path))) return await updateOnce();
    try {
      this.#origin = await SnapshotOrigin.openFile(this.#below, path, host, {
        origin: metadata.array.setUuid,
        isAsLeft: (witnesses) => witness !== null && witnesses.includes(witness),
        isForced,
        isUnwitnessed: metadata.array.level <= 0,
        onLost: () => this.#disown(),
        onTrusted: async (origin) => {
          await this.#follow(origin);
          await updateOnce();
        },
      });
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
      this.#isBetween = (await halfWayTo(path)) !== null;
      this.#problem = new RaidError(
        error.code,
        `the snapshots of ${this.#parts.name} cannot be used: ${error.message}; while they are there nothing can be written. To let go of all of them: raidsim snapshot delete ${folder} --all`,
        { ...error.place, cause: error },
      );
    }
    // Also where there is nobody to hear of it; and what it threw is thrown again.
    await updateOnce();
  }

  get count(): number {
    return this.#origin?.count ?? 0;
  }

  /** Oldest first; without those that are gone and only tell what has changed since. */
  list(): readonly SnapshotInfo[] {
    return this.#origin?.list().filter(({ state }) => state !== 'tracking') ?? [];
  }

  usage(): SnapshotUsage | null {
    return this.#origin?.usage() ?? null;
  }

  /** Takes a snapshot of this instant. The first one makes the store, for which alone there is a limit to be said. */
  create(name: string, options: { readonly limitBytes?: number | undefined } = {}): Promise<SnapshotInfo> {
    return this.#inTurn(async () => {
      if (this.#problem !== null) throw this.#problem;
      const origin = this.#origin;
      if (origin !== null && options.limitBytes !== undefined) {
        throw new RaidError(
          'BAD_ARGUMENT',
          `the snapshots of ${this.#parts.name} have a store already, with a limit of ${origin.usage().limitBytes} bytes, which stays until all of them are let go`,
        );
      }
      return await (origin ?? (await this.#make(options.limitBytes))).take(name);
    });
  }

  /** See `SnapshotOrigin.openSnapshot`. */
  openSnapshot(name: string, options: OpenedSnapshotOptions = {}): SnapshotDevice {
    return this.#found(name).openSnapshot(name, options);
  }

  /**
   * The snapshot, to be written to. It stays as it is: what is written goes to a file beside the manifest, which is found again. While there is
   * one, the snapshot is not deleted.
   */
  openClone(name: string, options: OpenedSnapshotOptions = {}): Promise<OverlayDevice> {
    return this.#inTurn(async () => {
      const label = `${this.#parts.name}@${name}@clone`;
      const before = this.#clones.get(name);
      if (before?.isClosed === false)
        throw new RaidError('BUSY', `${label} is open already`, { device: label });
      // What that one has still to make durable is read below.
      await before?.close().catch(() => undefined);
      const below = this.openSnapshot(name, options);
      try {
        const origin = this.list().find((each) => each.name === name)?.point;
        const clone = await OverlayDevice.open(below, this.#clonePath(name), {
          create: true,
          origin,
          name: label,
        });
        this.#clones.set(name, clone);
        return clone;
      } catch (error) {
        await below.close();
        throw error;
      }
    });
  }

  /** False where there is none. */
  deleteClone(name: string): Promise<boolean> {
    return this.#inTurn(async () => {
      if (this.#clones.get(name)?.isClosed === false) {
        throw new RaidError('BUSY', `the clone of snapshot ${name} of ${this.#parts.name} is in use`, {
          device: this.#parts.name,
        });
      }
      if (!(await this.#hasClone(name))) return false;
      await rm(this.#clonePath(name), { force: true });
      await syncFolder(this.#parts.folder);
      return true;
    });
  }

  /** `force`: see `SnapshotOrigin.rollback`. */
  rollback(
    name: string,
    tell?: (progress: RollbackProgress) => void,
    options: { readonly force?: boolean } = {},
  ): Promise<void> {
    return this.#inTurn(() => this.#found(name).rollback(name, tell, options));
  }

  delete(name: string, options: { readonly keepTracking?: boolean } = {}): Promise<void> {
    return this.#inTurn(async () => {
      await this.refuseWhileUsed(name);
      await this.#found(name).delete(name, options);
    });
  }

  /** A snapshot that is read, or has a clone, is not deleted. */
  async refuseWhileUsed(name: string): Promise<void> {
    this.#found(name).refuseWhileRead(name);
    if (await this.#hasClone(name)) {
      const { folder, name: array } = this.#parts;
      throw new RaidError(
        'BUSY',
        `snapshot ${name} of ${array} has a clone, which is nothing without it; let go of what was written there first: raidsim snapshot delete ${folder} ${name} --clone`,
        { device: array },
      );
    }
  }

  /**
   * All of them, and the store: the array is one without snapshots again. `force`: although a rollback was cut short, whose copies
   * go too: it stays half and half; and with what was written to clones.
   */
  deleteAll(options: { readonly force?: boolean } = {}): Promise<void> {
    return this.#inTurn(async () => {
      const { folder, name, limits } = this.#parts;
      const origin = this.#origin;
      if (origin?.isRead === true)
        throw new RaidError('BUSY', `a snapshot of ${name} is being read`, { device: name });
      const clones = await clonesIn(folder, limits.sizeBytes);
      if (clones.length > 0 && options.force !== true) {
        const names = clones.map(({ snapshot }) => snapshot).join(', ');
        throw new RaidError(
          'BUSY',
          `snapshots of ${name} have clones (${names}), and what was written there would go too; if that is meant: raidsim snapshot delete ${folder} --all --force`,
          { device: name },
        );
      }
      const unfinished = this.problemOfReads;
      if (unfinished !== null && options.force !== true) {
        throw new RaidError(
          unfinished.code,
          `${unfinished.message}. Without its snapshots ${name} stays what it is, and can be read; if that is meant: raidsim snapshot delete ${folder} --all --force`,
          { ...unfinished.place, cause: unfinished },
        );
      }
      if (origin === null) await this.#remove();
      else {
        await origin.letGo(() => this.#remove(), options);
        this.#below.abandon();
        this.#below = new Below(this.#parts);
        this.#origin = null;
        await origin.close();
      }
      this.#problem = null;
      this.#isBetween = false;
      await removeClones(folder, limits.sizeBytes);
    });
  }

  /** See `SnapshotOrigin.changedSince`. */
  changedSince(point: string, until?: string): readonly ChangedRange[] | 'unknown' {
    return this.#origin?.changedSince(point, until) ?? 'unknown';
  }

  async forget(point: string): Promise<void> {
    await this.#origin?.forget(point);
  }

  /** Closes what lies below too. */
  async close(): Promise<void> {
    await this.#turn;
    await (this.#origin ?? this.#below).close();
  }

  #clonePath(name: string): string {
    return clonePath(this.#parts.folder, name);
  }

  /** Of a name that no snapshot can have there is none: it could be a path that leads elsewhere. */
  async #hasClone(name: string): Promise<boolean> {
    const { sizeBytes } = this.#parts.limits;
    return isSnapshotName(name) && (await overlayTakes(this.#clonePath(name), sizeBytes)) !== null;
  }

  async #remove(): Promise<void> {
    const { path, folder } = this.#parts;
    await rm(path, { force: true });
    await syncFolder(folder);
  }

  async #make(limitBytes: number | undefined): Promise<SnapshotOrigin> {
    const { path, host, metadata, folder, limits } = this.#parts;
    const usual = Math.max(MIB, roundDown(limits.sizeBytes / SHARE, 64 * KIB));
    const origin = metadata.array.setUuid;
    // It gets its name when it is whole: half a store would be one that cannot be used.
    const draft = `${path}.new`;
    await rm(draft, { force: true });
    const blank = new Below(this.#parts);
    blank.abandon();
    const made = await SnapshotOrigin.createFile(blank, draft, host, {
      origin,
      limitBytes: limitBytes ?? usual,
    });
    await made.close();
    await rename(draft, path);
    await syncFolder(folder);
    const kept = await SnapshotOrigin.openFile(this.#below, path, host, {
      origin,
      onLost: () => this.#disown(),
    });
    await this.#follow(kept);
    this.#origin = kept;
    // The last that went past it.
    await this.#parts.below.settled();
    return kept;
  }

  async #follow(origin: SnapshotOrigin): Promise<void> {
    // A store that takes nothing more does not hold up the array: the next assembly finds a witness that it does not know.
    await this.#parts.metadata.follow((array) => origin.witness(witnessOf(array)).catch(() => undefined));
  }

  /** An update that no witness tells of: the store takes none. */
  async #disown(): Promise<void> {
    await this.#parts.metadata.update(confirm);
  }

  #found(name: string): SnapshotOrigin {
    if (this.#problem !== null) throw this.#problem;
    if (this.#origin !== null) return this.#origin;
    throw new RaidError('BAD_ARGUMENT', `${this.#parts.name} has no snapshot ${name}`, {
      device: this.#parts.name,
    });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => undefined);
    return result;
  }
}

function clonePath(folder: string, snapshot: string): string {
  return join(folder, `${snapshot}${CLONE}`);
}

export async function removeClones(folder: string, sizeBytes: number): Promise<void> {
  const clones = await clonesIn(folder, sizeBytes);
  for (const { snapshot } of clones) await rm(clonePath(folder, snapshot), { force: true });
  if (clones.length > 0) await syncFolder(folder);
}

/** Also those of snapshots that are not there any more. `sizeBytes`: of the array. */
export async function clonesIn(folder: string, sizeBytes: number): Promise<readonly CloneInfo[]> {
  const clones: CloneInfo[] = [];
  for (const file of (await readdir(folder)).sort()) {
    const snapshot = file.slice(0, -CLONE.length);
    if (!file.endsWith(CLONE) || !isSnapshotName(snapshot)) continue;
    const takenBytes = await overlayTakes(join(folder, file), sizeBytes);
    if (takenBytes !== null) clones.push({ snapshot, takenBytes });
  }
  return clones;
}

/** What whoever has an array that is half-way back is told to do. */
function finishing(folder: string, name: string, isForked: boolean): string {
  return isForked
    ? `to finish that all the same, and lose what was written in between: raidsim snapshot rollback ${folder} ${name} --force`
    : `do now: raidsim snapshot rollback ${folder} ${name}`;
}

/** The snapshot that the array of a store is half-way back to, as far as the store can be read. */
async function halfWayTo(path: string): Promise<string | null> {
  if (!(await isThere(path))) return null;
  try {
    return await rollbackDueIn(path);
  } catch (error) {
    if (error instanceof RaidError) return null;
    throw error;
  }
}

/** Why an array is not read by whoever may not finish its rollback; null where there is none to be finished. */
export async function unfinishedIn(folder: string, name: string): Promise<RaidError | null> {
  const snapshot = await halfWayTo(join(folder, SNAPSHOT_STORE));
  return snapshot === null ? null : unfinished(folder, name, snapshot);
}

export function unfinished(folder: string, name: string, snapshot: string, isForked = false): RaidError {
  return new RaidError(
    'BUSY',
    `${name} is half-way through a rollback to snapshot ${snapshot}, and neither what it was nor what that holds; ${finishing(folder, snapshot, isForked)}`,
    { device: name },
  );
}

/** The array as it is without snapshots. Its close is the array's. */
class Below extends Device {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct = null;
  readonly #parts: SnapshotsParts;
  #isAbandoned = false;

  constructor(parts: SnapshotsParts) {
    super();
    this.name = parts.name;
    this.limits = parts.limits;
    this.#parts = parts;
  }

  /** Whoever closes it closes nothing. */
  abandon(): void {
    this.#isAbandoned = true;
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#parts.below.read(offsetBytes, targets);
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    return this.#parts.below.write(offsetBytes, sources, fua);
  }

  protected override doFlush(): Promise<void> {
    return this.#parts.below.flush();
  }

  /** As the array's: what is no longer needed stays. */
  protected override doDiscard(): Promise<void> {
    return Promise.resolve();
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#parts.below.writeZeroes(offsetBytes, lengthBytes, options);
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return Promise.resolve([{ offsetBytes, lengthBytes, allocated: true, zero: false }]);
  }

  protected override doResize(): Promise<void> {
    return Promise.reject(
      new RaidError('NOT_SUPPORTED', `the size of ${this.name} follows from its members`),
    );
  }

  protected override doClose(): Promise<void> {
    return this.#isAbandoned ? Promise.resolve() : this.#parts.below.close();
  }
}
