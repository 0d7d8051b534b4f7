/**
 * What verbs do to an array, each said once. A verb calls an operation by its name and does not know where it is carried
 * out: here, where it has opened the array itself, or in the process that serves it (reach.ts). So an operation knows
 * nothing of terminals: what it takes, yields and returns is plain data.
 */
import {
  type ArraySnapshots,
  type ArrayStatus,
  type Inspection,
  inspectArray,
  type MemberStatus,
  pathsStatus,
  type RaidArray,
  RaidError,
  type RollbackProgress,
  type SanStatus,
  type ScrubProgress,
  type SnapshotInfo,
  sanOf,
  sparedFailures,
} from '../lib/index.ts';
import { addDisk, reAddDisk } from './adding.ts';
import {
  commandLine,
  dropFromManifest,
  findDisk,
  findDiskOrNull,
  letSpareIn,
  newDiskPath,
  noteScrub,
  type Opened,
  slotsOf,
  withReasons,
} from './array.ts';
import { closest } from './closest.ts';

import { changePaths, type PathChange, planOf } from './paths.ts';

/** One place where redundancy and data do not agree. */
export interface Place {
  /** Null where it is one of a stripe's members, and nobody can say which. */
  readonly member: string | null;
  /** What is wrong on that member; null where it may as well be another that is wrong. */
  readonly wrong: 'data' | 'redundancy' | null;
  readonly sector: number;
  readonly sectors: number;
  readonly stripe: number | null;
}

export interface Range {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** What does not change while an array is open. */
export interface Facts {
  readonly name: string;
  readonly uuid: string | null;
  readonly layoutKind: 'copies' | 'parity';
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly preferredBytes: number;
  /** Not one that is only read, or writes to an overlay. */
  readonly mayHaveSnapshots: boolean;
}

/** Ranges that cross in one step. */
const RANGES = 1000;

/** Steps that are texts say, for people, what was done. */
export const operations = {
  async *fail(opened: Opened, { disks }: { readonly disks: readonly string[] }): AsyncGenerator<string> {
    const { array } = opened;
    const found = disks.map((text) => findDisk(text, opened, slotsOf(array)));
    let failure: unknown = null;
    try {
      for (const { name } of found) yield await failDisk(array, name);
    } catch (error) {
      failure = error;
    }
    const spare = await letSpareIn(array);
    if (spare !== null) yield `${spare}, a spare, takes over`;
    if (failure !== null) throw failure;
  },

  async *remove(opened: Opened, { disks }: { readonly disks: readonly string[] }): AsyncGenerator<string> {
    const { array, folder } = opened;
    for (const { name, source } of disks.map((text) => findDisk(text, opened, slotsOf(array)))) {
      const member = array.members.find((each) => each.name === name);
      if (member !== undefined) {
        const { state } = member.state;
        if (state !== 'faulty' && state !== 'spare') {
          throw new RaidError(
            'BUSY',
            `${name} is in use (${state}); fail it first:${commandLine('fail', folder, name)}`,
            { device: source },
          );
        }
        const device = await array.remove(name);
        await device.close();
      }
      await dropFromManifest(folder, source);
      yield `${name} is removed; its file ${opened.pathOf(source)} stays as it is`;
    }
  },

  async *add(
    opened: Opened,
    { files, force }: { readonly files: readonly string[]; readonly force: boolean },
  ): AsyncGenerator<string> {
    const command = (file: string): readonly string[] => ['add', opened.folder, file];
    for (const file of files) yield await addDisk(opened, file, { force, command });
    const spare = await letSpareIn(opened.array);
    if (spare !== null) yield `${spare} takes the empty slot`;
  },

  async *reAdd(opened: Opened, { disks }: { readonly disks: readonly string[] }): AsyncGenerator<string> {
    for (const disk of disks) yield await reAddDisk(opened, disk);
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *paths({ array }: Opened): AsyncGenerator<never, SanStatus | null> {
    return pathsStatus(array);
  },

  async *path({ array, folder }: Opened, change: PathChange): AsyncGenerator<string> {
    yield* await changePaths(folder, sanOf(array), change);
  },

  async *pathSwitch(
    { array, folder, manifest }: Opened,
    { names }: { readonly names: readonly string[] },
  ): AsyncGenerator<string> {
    planOf(folder, manifest);
    for (const name of names) {
      for (const moved of (await sanOf(array)?.switchTo(name)) ?? []) yield `${moved}: by ${name}`;
    }
  },

  async *replace(
    opened: Opened,
    { disk, onto, force }: { readonly disk: string; readonly onto: string | null; readonly force: boolean },
  ): AsyncGenerator<string> {
    const { array, folder } = opened;
    const { name } = findDisk(disk, opened, slotsOf(array));
    let spare: string | undefined;
    if (onto !== null) {
      const known = findDiskOrNull(onto, opened, slotsOf(array));
      const member = array.members.find((each) => each.name === known?.name);
      if (member === undefined) {
        const before = new Set(array.members.map((each) => each.name));
        const command = (file: string): readonly string[] => ['replace', folder, disk, '--with', file];
        yield await addDisk(opened, onto, { force, command, toReplace: name });
        spare = array.members.find((each) => !before.has(each.name))?.name;
      } else spare = member.name;
    }
    if (spare === undefined && !array.members.some(({ state }) => state.state === 'spare')) {
      const file = newDiskPath(folder, opened.manifest);
      throw new RaidError(
        'NO_SUCH_MEMBER',
        `${array.name} has no spare to replace ${name} with; with a new disk:${commandLine('replace', folder, disk, '--with', file)}`,
      );
    }
    await array.replace(name, spare);
    const copy = array.members.find(({ state }) => state.state === 'replacement')?.name ?? 'the spare';
    yield `${copy} becomes a copy of ${name}, and then takes its place`;
  },

  async *rebuild(
    opened: Opened,
    how: {
      readonly onto: string | null;
      readonly force: boolean;
      readonly limitBytesPerSecond: number | null;
    },
  ): AsyncGenerator<
    | { readonly said: string }
    | {
        readonly said: null;
        readonly action: string;
        readonly doneBytes: number;
        readonly totalBytes: number;
      }
  > {
    const { onto, force, limitBytesPerSecond } = how;
    const command = (file: string): readonly string[] => ['rebuild', opened.folder, '--onto', file];
    if (onto !== null) yield { said: await addDisk(opened, onto, { force, command }) };
    const steps = opened.array.rebuild({
      limitBytesPerSecond: limitBytesPerSecond ?? Number.POSITIVE_INFINITY,
    });
    for await (const step of steps) yield { said: null, ...step };
  },

  async *scrub(
    { array, folder }: Opened,
    how: { readonly repair: boolean; readonly fromBytes: number },
  ): AsyncGenerator<{
    readonly action: 'check' | 'repair';
    readonly doneBytes: number;
    readonly totalBytes: number;
    readonly comparedBytes: number;
    readonly mismatchCount: number;
    readonly places: readonly Place[];
  }> {
    let last: ScrubProgress | null = null;
    for await (const { mismatches, ...step } of array.scrub(how)) {
      last = { mismatches, ...step };
      yield { ...step, places: mismatches.map((mismatch) => placeOf(array, mismatch)) };
    }
    const isWhole = how.fromBytes === 0 && last !== null && last.comparedBytes > 0;
    if (isWhole && last !== null) await noteScrub(folder, how.repair ? 0 : last.mismatchCount);
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *facts({ array }: Opened): AsyncGenerator<never, Facts> {
    const { sizeBytes, blockBytes, preferredBytes } = array.limits;
    return {
      name: array.name,
      uuid: array.status().uuid,
      layoutKind: array.layout.kind,
      sizeBytes,
      blockBytes,
      preferredBytes,
      mayHaveSnapshots: array.snapshots !== null,
    };
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *read({ array }: Opened, { offsetBytes, lengthBytes }: Range): AsyncGenerator<never, string> {
    const target = new Uint8Array(lengthBytes);
    await telling(array, array.read(offsetBytes, target));
    return Buffer.from(target.buffer).toString('base64');
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *write(
    { array }: Opened,
    { offsetBytes, data }: { readonly offsetBytes: number; readonly data: string },
  ): AsyncGenerator<never, void> {
    await telling(array, array.write(offsetBytes, Buffer.from(data, 'base64')));
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *flush({ array }: Opened): AsyncGenerator<never, void> {
    await telling(array, array.flush());
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *snapshotCreate(
    opened: Opened,
    { name, limitBytes }: { readonly name: string; readonly limitBytes: number | null },
  ): AsyncGenerator<never, SnapshotInfo> {
    const options = limitBytes === null ? {} : { limitBytes };
    return await telling(opened.array, snapshotsOf(opened).create(name, options));
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *snapshotList(opened: Opened): AsyncGenerator<never, readonly SnapshotInfo[]> {
    return snapshotsOf(opened).list();
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *snapshotFind(
    opened: Opened,
    { name }: { readonly name: string },
  ): AsyncGenerator<never, SnapshotInfo> {
    const found = findSnapshot(opened, name);
    // One that is invalid is told as such.
    await snapshotsOf(opened).openSnapshot(name).close();
    return found;
  },

  /** `point`: of the snapshot that is meant, should another have got its name meanwhile. */
  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *snapshotRead(
    opened: Opened,
    { name, point, offsetBytes, lengthBytes }: Range & { readonly name: string; readonly point: string },
  ): AsyncGenerator<never, string> {
    if (findSnapshot(opened, name).point !== point) throw noSnapshot(opened, name);
    await using snapshot = snapshotsOf(opened).openSnapshot(name);
    const target = new Uint8Array(lengthBytes);
    await telling(opened.array, snapshot.read(offsetBytes, target));
    return Buffer.from(target.buffer).toString('base64');
  },

  async *snapshotRollback(
    opened: Opened,
    { name, force, isMerge }: { readonly name: string; readonly force: boolean; readonly isMerge: boolean },
  ): AsyncGenerator<RollbackProgress> {
    const clients = opened.clientCount?.() ?? 0;
    if (clients > 0 && !force) {
      throw new RaidError(
        'BUSY',
        `${opened.array.name} has ${clients === 1 ? 'a client' : `${clients} clients`}, which would not know that its bytes have changed; let them go (umount, disconnect), or if that is meant:${commandLine('snapshot', isMerge ? 'merge' : 'rollback', opened.folder, name, '--force')}`,
      );
    }
    findSnapshot(opened, name);
    if (isMerge) await snapshotsOf(opened).refuseWhileUsed(name);
    let last: RollbackProgress = { doneBytes: 0, totalBytes: 0 };
    let wake: () => void = () => undefined;
    let isDone = false;
    const work = snapshotsOf(opened)
      .rollback(
        name,
        (progress) => {
          last = progress;
          wake();
        },
        { force },
      )
      .finally(() => {
        isDone = true;
        wake();
      });
    work.catch(() => undefined);
    while (!isDone) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
      if (last.doneBytes < last.totalBytes) yield last;
    }
    await telling(opened.array, work);
    if (isMerge) await snapshotsOf(opened).delete(name);
    yield last;
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *snapshotDelete(
    opened: Opened,
    { name, keepTracking }: { readonly name: string; readonly keepTracking: boolean },
  ): AsyncGenerator<never, void> {
    findSnapshot(opened, name);
    await snapshotsOf(opened).delete(name, { keepTracking });
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *cloneDelete(opened: Opened, { name }: { readonly name: string }): AsyncGenerator<never, void> {
    if (await snapshotsOf(opened).deleteClone(name)) return;
    findSnapshot(opened, name);
    throw new RaidError(
      'BAD_ARGUMENT',
      `snapshot ${name} of ${opened.folder} has no clone; to make one, and write to it:${commandLine('serve', opened.folder, '--clone', name)}`,
    );
  },

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *snapshotDeleteAll(
    opened: Opened,
    { force }: { readonly force: boolean },
  ): AsyncGenerator<never, number> {
    const snapshots = snapshotsOf(opened);
    const count = snapshots.list().length;
    await snapshots.deleteAll({ force });
    return count;
  },

  /** What differs between a point and a snapshot; false where that is not known. */
  async *changedSince(
    opened: Opened,
    { point, until }: { readonly point: string; readonly until: string },
  ): AsyncGenerator<readonly Range[], boolean> {
    const changed = snapshotsOf(opened).changedSince(point, until);
    if (changed === 'unknown') return false;
    for (let at = 0; at < changed.length; at += RANGES) yield changed.slice(at, at + RANGES);
    return true;
  },

  /** Nobody will ask what has changed since. */
  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *forget(opened: Opened, { point }: { readonly point: string }): AsyncGenerator<never, void> {
    await snapshotsOf(opened).forget(point);
  },
};

function snapshotsOf({ array, folder, manifest }: Opened): ArraySnapshots {
  if (array.snapshots !== null) return array.snapshots;
  const why =
    manifest.overlay === true
      ? 'writes to an overlay'
      : manifest.readOnly === true || array.limits.readOnly
        ? 'is open for reading only'
        : 'is not kept in a folder';
  throw new RaidError('NOT_SUPPORTED', `${folder} ${why}: its snapshots are left alone`);
}

function findSnapshot(opened: Opened, name: string): SnapshotInfo {
  const snapshots = snapshotsOf(opened);
  if (snapshots.problem !== null) throw snapshots.problem;
  const found = snapshots.list().find((each) => each.name === name);
  if (found === undefined) throw noSnapshot(opened, name);
  return found;
}

function noSnapshot(opened: Opened, name: string): RaidError {
  const names = snapshotsOf(opened)
    .list()
    .map((each) => each.name);
  const close = closest(name, names);
  const hint =
    names.length === 0
      ? 'it has none'
      : close === null
        ? `it has ${names.join(', ')}`
        : `did you mean ${close}? It has ${names.join(', ')}`;
  return new RaidError('BAD_ARGUMENT', `${opened.folder} has no snapshot ${name}; ${hint}`);
}

export type OperationName = keyof typeof operations;
export type InputOf<Name extends OperationName> = Parameters<(typeof operations)[Name]>[1];
type StepsOf<Name extends OperationName> = ReturnType<(typeof operations)[Name]>;
export type StepOf<Name extends OperationName> =
  StepsOf<Name> extends AsyncGenerator<infer Step> ? Step : never;
export type ResultOf<Name extends OperationName> =
  StepsOf<Name> extends AsyncGenerator<unknown, infer Result> ? Result : never;

/** With data that is lost, why each disk is out. */
export async function telling<Result>(array: RaidArray, work: Promise<Result>): Promise<Result> {
  try {
    return await work;
  } catch (error) {
    throw withReasons(error, array);
  }
}

/**
 * An array that is open in this process, as `status` tells it: what its superblocks say, and on top what only whoever has
 * it open knows: why a disk failed, how fast a rebuild is, what it met.
 */
export async function inspectLive({ array, folder }: Opened, served: string | null): Promise<Inspection> {
  const found = await inspectArray(folder);
  const live = array.status();
  const source = (name: string): string | null =>
    found.status.members.find((member) => member.name === name)?.source ?? null;
  const here = live.members
    .filter(({ name }) => name !== '-')
    .map((member): MemberStatus => ({ ...member, source: source(member.name) ?? member.source }));
  const isHere = new Set(here.map(({ name }) => name));
  const isFilled = new Set(here.filter(({ state }) => state !== 'faulty').map(({ slot }) => slot));
  const away = found.status.members.filter(
    ({ name, slot }) => !isHere.has(name) && (slot === null || !isFilled.has(slot)),
  );
  const rank = ({ slot, state }: MemberStatus): number =>
    slot === null || state === 'faulty'
      ? 1e6 + Number(state !== 'spare')
      : slot + Number(state === 'replacement') / 2;
  const status: ArrayStatus = {
    ...found.status,
    state: live.state,
    events: live.events,
    degraded: live.degraded,
    sync: live.sync,
    // A slot is what a disk has: one that failed has none any more.
    members: [
      ...here.map((member) => (member.state === 'faulty' ? { ...member, slot: null } : member)),
      ...away,
    ].toSorted((left, right) => rank(left) - rank(right)),
    served,
  };
  // What lies in the store may be under way; whoever has it open knows.
  const { snapshots: _seen, ...rest } = status;
  const { snapshots } = live;
  return {
    ...found,
    status: snapshots === undefined ? rest : { ...rest, snapshots },
    refusal: null,
    needs: null,
    // Superblocks trail what the engine has stopped to trust.
    sparedFailures: sparedFailures(
      array.layout,
      (slot) => !live.members.some((each) => each.slot === slot && each.state === 'in_sync'),
    ),
    snapshotUsage: array.snapshots?.usage() ?? null,
    snapshotProblem: (array.snapshots?.problem ?? array.snapshots?.problemOfReads)?.toRecord() ?? null,
  };
}

async function failDisk(array: RaidArray, name: string): Promise<string> {
  const member = array.members.find((each) => each.name === name);
  if (member === undefined || member.state.state === 'faulty') return `${name} is out of use already`;
  if (array.status().consistencyPolicy === 'none') {
    throw new RaidError(
      'LAST_COPY',
      `${array.name} is a ${array.layout.geometry.level}, which keeps nothing twice: without ${name} its data is lost`,
      { device: name },
    );
  }
  await array.fail(name);
  return `${name} is failed`;
}

function placeOf(
  { layout, members }: RaidArray,
  {
    member: slot,
    wrong,
    offsetBytes,
    lengthBytes,
  }: Pick<Place, 'wrong'> & { member: number | null; offsetBytes: number; lengthBytes: number },
): Place {
  const { geometry } = layout;
  const chunkBytes = 'chunkBytes' in geometry ? geometry.chunkBytes : 0;
  const named = members.find(({ state }) => 'slot' in state && state.slot === slot);
  return {
    member: slot === null ? null : (named?.name ?? `slot ${slot}`),
    wrong,
    sector: offsetBytes / 512,
    sectors: lengthBytes / 512,
    stripe: chunkBytes === 0 ? null : Math.floor(offsetBytes / chunkBytes),
  };
}
