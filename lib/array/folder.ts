/**
 * An array as people meet it: a folder with `raidsim.json` and, by default, the members as files in it.
 *
 * The manifest says what superblocks cannot: which files are the members. What the array *is* (level, roles, events,
 * how far a recovery is) stands only in the superblocks: delete the manifest, assemble the files, and nothing is lost.
 *
 * One process at a time owns an array (ownership.ts). Every function here that returns a `RaidArray` has taken that
 * ownership, and closing the array gives it back.
 */
import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import type { Device } from '../device/device.ts';
import { errorFromErrno } from '../device/errno.ts';
import { FileDevice, syncFolder } from '../device/file.ts';
import { OverlayDevice } from '../device/overlay.ts';
import { RaidError } from '../errors.ts';
import { type Host, realHost, seededRandom } from '../host.ts';
import type { Conf } from '../multipath/conf.ts';
import { defaultPlan, type FabricPlan, type San } from '../multipath/san.ts';
import { isUri } from '../nbd/uri.ts';
import { parseSize } from '../units.ts';
import type { EngineChoice, RaidArray } from './array.ts';
import {
  assembleDevices,
  checkCount,
  formArray,
  type ShapeOptions,
  type Source,
  shapeArray,
} from './form.ts';
import type { GrowOptions } from './grow.ts';
import type { Hold } from './metadata.ts';
import { type MemberFile, Ownership } from './ownership.ts';
import { hasPaths, proveOneDisk } from './paths.ts';
import { openSan, readMultipathConf, rememberSan } from './san.ts';
import { whatIsOn } from './signatures.ts';
import { removeClones, SNAPSHOT_STORE, unfinishedIn } from './snapshots.ts';
import {
  hasMap,
  isLocal,
  isThere,
  locksOf,
  locksOfDevice,
  type MemberDevice,
  memberNames,
  openNamed,
  openSource,
  refuseToMake,
  sourceIn,
  wholeSource,
} from './source.ts';
import { findSuperblock, superblockOn } from './superblocks.ts';

export const MANIFEST_NAME = 'raidsim.json';

/** What `raidsim.json` holds. Paths are relative to the folder, or absolute; exports are URIs (source.ts). */
export interface Manifest {
  readonly raidsim: 1;
  readonly members: readonly string[];
  /** Opened without ever writing a byte to the members. */
  readonly readOnly?: boolean;
  /** All writes go to copy-on-write files beside the manifest. */
  readonly overlay?: boolean;
  /** Members that lack what their disks did not give: without the map that says where, zeros would be data. */
  readonly mapped?: readonly string[];
  /** Of the last scrub that came to the end: superblocks have no place for it. */
  readonly scrubbed?: Scrubbed;
  /** Members are reached through it, each by several paths. */
  readonly fabric?: FabricPlan;
}

export interface Scrubbed {
  /** What it has left: none after a repair. */
  readonly mismatches: number;
  /** When it ended, in UTC: `2026-11-21T15:04:05Z`. */
  readonly at: string;
}

export interface CreateOptions extends ShapeOptions, EngineChoice {
  /** Files, existing or not, and URIs of NBD exports; or devices, for an array that is not in a folder's files. */
  readonly members?: readonly (string | Device)[] | undefined;
  /** Without `members`: so many files `disk0.img` ... are made, of `diskSize` each. */
  readonly disks?: number | undefined;
  readonly spares?: number | undefined;
  readonly diskSize?: string | number | undefined;
  readonly assumeClean?: boolean | undefined;
  /** Members may hold something. */
  readonly force?: boolean | undefined;
  /** Fixed UUIDs, for tests. */
  readonly seed?: number | undefined;
  readonly direct?: boolean | undefined;
  readonly preallocate?: boolean | undefined;
  /** Members are reached through a fabric of so many of each (1 where only the other is said). */
  readonly hbas?: number | undefined;
  readonly controllers?: number | undefined;
}

export interface OpenOptions extends EngineChoice {
  readonly readOnly?: boolean | undefined;
  readonly force?: boolean | undefined;
  readonly run?: boolean | undefined;
  readonly raid0Layout?: 'original' | 'alternate' | undefined;
  readonly direct?: boolean | undefined;
  /** Comes between the array and each member, for one that is to fail, or be slow, on cue. It owns what it is given. */
  readonly wrap?: ((device: Device, name: string) => Device) | undefined;
}

export interface AssembleOptions extends OpenOptions {
  /** All writes go to an overlay beside the manifest. */
  readonly overlay?: boolean | undefined;
}

const DEFAULT_DISK_BYTES = 256 * 1024 * 1024;

/** Makes an array in a folder, and its member files where none are given. */
export async function createArray(folder: string, options: CreateOptions): Promise<RaidArray> {
  const host =
    options.seed === undefined
      ? (options.host ?? realHost)
      : seededHost(options.host ?? realHost, options.seed);
  const name = basename(resolve(folder));
  const form = { cores: availableParallelism(), ...options, host, name };
  const { hbas, controllers } = options;
  const plan =
    hbas === undefined && controllers === undefined ? null : defaultPlan(hbas ?? 1, controllers ?? 1);
  const devices = options.members?.filter((member): member is Device => typeof member !== 'string') ?? [];
  if (devices.length > 0) {
    if (devices.length !== options.members?.length) {
      throw new RaidError('BAD_ARGUMENT', 'members are either all devices or all files');
    }
    if (plan !== null)
      throw new RaidError(
        'BAD_ARGUMENT',
        'a fabric leads to files and exports; over devices there is MultipathDevice',
      );
    if (options.force !== true) await refuseWhatHoldsSomething(devices);
    return await formArray(devices.map(sourceOfDevice), { ...form, assumeClean: options.assumeClean });
  }
  checkCount(options.disks, 'disks');
  checkCount(options.spares, 'spares');
  const given = options.members as readonly string[] | undefined;
  const count = (options.disks ?? 0) + (options.spares ?? 0);
  if (given === undefined && count === 0) {
    throw new RaidError('BAD_ARGUMENT', 'say how many disks (--disks N), or which files are the members');
  }
  if (options.force !== true && (await isThere(join(folder, MANIFEST_NAME)))) {
    throw new RaidError(
      'ALREADY_IN_ARRAY',
      `${folder} is an array already; take another folder, or --force to make it anew, with all its data lost`,
    );
  }
  const paths =
    given?.map((path) => wholeSource(path)) ??
    Array.from({ length: count }, (_, index) => join(folder, `disk${index}.img`));
  const twice = paths.find((path, index) => paths.indexOf(path) < index);
  if (twice !== undefined) {
    throw new RaidError('DUPLICATE_MEMBER', `${twice} is named twice; each member is a disk of its own`, {
      device: twice,
    });
  }
  const diskBytes = parseSize(options.diskSize ?? DEFAULT_DISK_BYTES);
  const there = await Promise.all(paths.map(isThere));
  const taken = paths.find((_, index) => there[index] === true && given === undefined);
  if (taken !== undefined && options.force !== true) {
    throw new RaidError(
      'HOLDS_DATA',
      `${taken} is there already; use --force to take it over, with what it holds lost`,
      { device: taken },
    );
  }
  if (given === undefined) shapeArray(new Array<number>(count).fill(diskBytes), form);
  const madeFolder = await mkdir(folder, { recursive: true });
  const made: string[] = [];
  const opened: MemberDevice[] = [];
  let ownership: Ownership | null = null;
  let san: San | null = null;
  try {
    // Before a single file is opened for writing: what is there may be somebody's running array.
    ownership = await Ownership.take({
      folder,
      host,
      members: await existing(paths.filter((_, index) => there[index] === true)),
    });
    const access = { direct: options.direct === true, conf: await confFor(folder, paths) };
    for (const [index, path] of paths.entries()) {
      if (there[index] === true && given !== undefined) {
        opened.push(await openNamed(path, access));
        continue;
      }
      const replace = there[index] === true;
      refuseToMake(path);
      const device = await FileDevice.create(path, diskBytes, {
        direct: access.direct,
        preallocate: options.preallocate === true,
        replace,
      });
      opened.push(device);
      if (replace) continue;
      made.push(path);
      await ownership.claim({ path, identity: device.identity });
    }
    const isNew = given === undefined || made.length === opened.length;
    const names = memberNames(paths);
    if (!isNew && options.force !== true) await refuseWhatHoldsSomething(opened);
    for (const device of opened) await proveOneDisk(device);
    // Members that have just been made are zeros, and zeros agree: parity of zeros is zero.
    const sources = opened.map((device, index) => sourceOf(device, names[index] ?? device.name));
    if (plan !== null) san = await openSan(folder, plan, host);
    for (const [index, { name, device, ...source }] of sources.entries())
      if (san !== null) sources[index] = { ...source, name, device: await san.attach(name, index, device) };
    const array = await formArray(sources, {
      ...form,
      assumeClean: options.assumeClean === true || isNew,
      hold: holdOf(ownership, new Map(), san),
      autoSync: false,
    });
    const alias = await aliasAmong(opened);
    if (alias !== null) {
      await array.close();
      throw alias;
    }
    // Of an array that was here before.
    await rm(join(folder, SNAPSHOT_STORE), { force: true });
    await removeClones(folder, array.limits.sizeBytes);
    await keepSnapshots(array, folder, options);
    await writeManifest(folder, {
      raidsim: 1,
      members: paths.map((path) => sourceIn(folder, path)),
      ...(plan === null ? {} : { fabric: plan }),
    });
    return rememberSan(array, san);
  } catch (error) {
    await san?.close();
    await Promise.all(opened.map((device) => device.close().catch(() => undefined)));
    await ownership?.release();
    // What this call has made goes again; what was there before stays.
    await Promise.all(made.map((path) => rm(path, { force: true })));
    if (madeFolder !== undefined) await rm(madeFolder, { recursive: true, force: true });
    throw error;
  }
}

/**
 * Opens the array in a folder. A member whose file is gone is a disk that was pulled: the array starts without it where it
 * can, as at boot. (`assembleArray` is more careful: whoever names files may have forgotten one.)
 */
export async function openArray(folder: string, options: OpenOptions = {}): Promise<RaidArray> {
  const manifest = await readManifest(folder);
  const paths = manifest.members.map((path) => wholeSource(path, folder));
  for (const source of manifest.mapped ?? []) {
    const path = wholeSource(source, folder);
    if (!(await isThere(path)) || (await hasMap(path))) continue;
    throw new RaidError(
      'BAD_MANIFEST',
      `${path} was opened with a map of ddrescue, which is not beside it any more; put it there, or assemble ${folder} anew`,
      { device: path },
    );
  }
  return await openMembers(folder, paths, {
    run: true,
    ...options,
    ...pick(manifest),
    ...(options.readOnly === true ? { readOnly: true } : {}),
    plan: manifest.fabric,
  });
}

/** Makes the manifest for members that are there, and opens the array. */
export async function assembleArray(
  folder: string,
  files: readonly string[],
  options: AssembleOptions = {},
): Promise<RaidArray> {
  const paths = files.map((path) => wholeSource(path));
  const madeFolder = await mkdir(folder, { recursive: true });
  try {
    // How members are reached stands nowhere else, and stays as it was.
    const fabric = (await readManifest(folder).catch(() => null))?.fabric;
    const opened = await openMembers(folder, paths, { ...options, plan: fabric });
    // Members that are stale stay on the list, to be brought back; what belongs elsewhere does not come on it.
    const foreign = new Set(
      opened.assembly?.members.filter(({ joins }) => joins === 'out').map(({ name }) => name),
    );
    const names = memberNames(paths);
    const members = paths.filter((_, index) => !foreign.has(names[index] ?? ''));
    const hasMaps = await Promise.all(members.map(hasMap));
    const mapped = members.filter((_, index) => hasMaps[index]).map((path) => sourceIn(folder, path));
    await writeManifest(folder, {
      raidsim: 1,
      members: members.map((path) => sourceIn(folder, path)),
      ...(mapped.length > 0 ? { mapped } : {}),
      ...(options.readOnly === true ? { readOnly: true } : {}),
      ...(options.overlay === true ? { overlay: true } : {}),
      ...(fabric === undefined ? {} : { fabric }),
    });
    return opened;
  } catch (error) {
    if (madeFolder !== undefined) await rm(madeFolder, { recursive: true, force: true });
    throw error;
  }
}

/** Grows the array in a folder, and opens it in its new shape. See grow.ts for what can grow. */
export async function growArray(
  folder: string,
  growth: GrowOptions,
  options: OpenOptions = {},
): Promise<RaidArray> {
  const array = await openArray(folder, { ...options, autoSync: false });
  try {
    await array.grow(growth);
  } finally {
    await array.close();
  }
  return await openArray(folder, { ...options, run: true });
}

/**
 * Opens a file or an export as a member to be added to an array in this folder; makes a file, as large as the others, if
 * it is not there.
 */
export async function openMember(path: string, sizeBytes: number, folder?: string): Promise<MemberDevice> {
  if (!(await isThere(path))) {
    refuseToMake(path);
    return await FileDevice.create(path, sizeBytes);
  }
  const device = await openNamed(path, folder === undefined ? {} : { conf: await confFor(folder, [path]) });
  await proveOneDisk(device).catch(async (error: unknown) => {
    await device.close();
    throw error;
  });
  return device;
}

export async function readManifest(folder: string): Promise<Manifest> {
  const path = join(folder, MANIFEST_NAME);
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw new RaidError(
      'NO_SUCH_ARRAY',
      `${folder} is no array: there is no ${MANIFEST_NAME}. To open existing members: raidsim assemble ${folder} FILE...`,
      { cause },
    );
  }
  const manifest = parseManifest(text);
  if (manifest === null) {
    throw new RaidError(
      'BAD_MANIFEST',
      `${path} is not a manifest of raidsim; delete it and assemble the members again`,
    );
  }
  return manifest;
}

/** Replaced in one step, and flushed before and after: a manifest is whole, or the old one, after a power cut too. */
export async function writeManifest(folder: string, manifest: Manifest): Promise<void> {
  const path = join(folder, MANIFEST_NAME);
  const draft = `${path}.new`;
  try {
    const file = await open(draft, 'w');
    try {
      await file.writeFile(`${JSON.stringify(manifest, null, 2)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
  } catch (cause) {
    if (errorFromErrno(cause, 'write').code !== 'NO_SPACE') throw cause;
    await rm(draft, { force: true });
    throw new RaidError(
      'NO_SPACE',
      `${path} cannot be written: the file system is full; make room and try again`,
      { device: path, cause },
    );
  }
  await rename(draft, path);
  await syncFolder(folder);
}

const lastUpdates = new Map<string, Promise<unknown>>();

/** One after the other: of two that read the same manifest, one would take back what the other has written. */
export async function updateManifest(
  folder: string,
  change: (manifest: Manifest) => Manifest,
): Promise<void> {
  const key = resolve(folder);
  const before = lastUpdates.get(key) ?? Promise.resolve();
  const update = before.then(async () => {
    const manifest = await readManifest(folder);
    const changed = change(manifest);
    if (changed !== manifest) await writeManifest(folder, changed);
  });
  const settled = update.catch(() => undefined);
  lastUpdates.set(key, settled);
  await settled;
  if (lastUpdates.get(key) === settled) lastUpdates.delete(key);
  await update;
}

/** The folders of arrays at and below this one. */
export async function listArrays(folder: string, depth = 3): Promise<readonly string[]> {
  const entries = await readdir(folder, { withFileTypes: true });
  const found = entries.some((entry) => entry.isFile() && entry.name === MANIFEST_NAME) ? [folder] : [];
  if (depth === 0) return found;
  const below = entries.filter(
    (entry) => entry.isDirectory() && !entry.name.startsWith('.') && entry.name !== 'node_modules',
  );
  const lists = await Promise.all(
    below.map((entry) => listArrays(join(folder, entry.name), depth - 1).catch(() => [])),
  );
  return [...found, ...lists.flat()];
}

async function openMembers(
  folder: string,
  paths: readonly string[],
  { plan, ...options }: AssembleOptions & { readonly plan?: FabricPlan | undefined },
): Promise<RaidArray> {
  const host = options.host ?? realHost;
  const keepsMembers = options.readOnly === true || options.overlay === true;
  const hasSnapshots = !keepsMembers;
  const opened: MemberDevice[] = [];
  const used: Device[] = [];
  let ownership: Ownership | null = null;
  let san: San | null = null;
  try {
    // A member that is not there is a member that is missing; whether the array can do without, assembly decides.
    const there = await Promise.all(paths.map(isThere));
    let found = paths.filter((_, index) => there[index] === true);
    if (found.length === 0) throw noneThere(paths);
    // Whoever only reads takes nothing from others, and is not kept out by them.
    if (options.readOnly !== true)
      ownership = await Ownership.take({ folder, host, members: await existing(found) });
    const conf = await confFor(folder, found);
    const answers = await Promise.allSettled(
      found.map((path) =>
        openSource(path, {
          ...{ readOnly: keepsMembers, overlaid: options.overlay === true },
          ...{ direct: options.direct, conf },
        }),
      ),
    );
    for (const answer of answers) if (answer.status === 'fulfilled') opened.push(answer.value);
    for (const [index, answer] of answers.entries()) {
      if (answer.status === 'fulfilled') continue;
      if (!isUri(found[index] ?? '') || !isGone(answer.reason)) throw answer.reason;
      for (const { identity } of await locksOf(found[index] ?? '')) await ownership?.unclaim(identity);
    }
    found = found.filter((_, index) => answers[index]?.status === 'fulfilled');
    if (found.length === 0) throw noneThere(paths);
    const names = memberNames(found);
    const sources: Source[] = [];
    const files = new Map<Device, readonly MemberFile[]>();
    /** By the numbers of sources: those of what is open. */
    const offered: number[] = [];
    if (plan !== undefined) san = await openSan(folder, plan, host);
    for (const [index, device] of opened.entries()) {
      const name = names[index] ?? device.name;
      const below =
        options.overlay === true ? await overlayOver(device, join(folder, `${name}.overlay`)) : device;
      used.push(below);
    }
    const numberOf = (index: number): number => paths.indexOf(found[index] ?? '');
    const reached = await Promise.all(
      used.map((device, index) => reachedBy(san, names[index] ?? device.name, numberOf(index), device)),
    );
    for (const [index, device] of opened.entries()) {
      const name = names[index] ?? device.name;
      const below = reached[index] ?? null;
      if (below === null) {
        // No path leads there: a disk that is missing, like one that was pulled.
        await used[index]?.close();
        for (const { identity } of locksOfDevice(device)) await ownership?.unclaim(identity);
        continue;
      }
      const above = options.wrap?.(below, name) ?? below;
      used[index] = above;
      offered.push(index);
      files.set(above, locksOfDevice(device));
      sources.push({ ...sourceOf(device, name), device: above });
    }
    if (sources.length === 0) throw noneThere(paths);
    const { array, report } = await assembleDevices(sources, {
      cores: availableParallelism(),
      ...options,
      host,
      name: basename(resolve(folder)),
      ...(hasSnapshots ? { autoSync: false, leaveUpdate: true } : {}),
      ...(ownership === null ? {} : { hold: holdOf(ownership, files, san) }),
    });
    // Free again: a stale member may be what is added, or brought back, next.
    for (const left of report.left) {
      const index = offered[left] ?? left;
      await used[index]?.close();
      const device = opened[index];
      for (const { identity } of device === undefined ? [] : locksOfDevice(device))
        await ownership?.unclaim(identity);
    }
    const unfinished = hasSnapshots ? null : await unfinishedIn(folder, array.name);
    if (unfinished !== null) array.refuseRequests(unfinished);
    if (hasSnapshots && array.metadata !== null) await keepSnapshots(array, folder, options);
    return rememberSan(array, san);
  } catch (error) {
    await san?.close();
    await Promise.all([...used, ...opened].map((device) => device.close().catch(() => undefined)));
    await ownership?.release();
    throw error;
  }
}

/** The one place where an array of a folder comes by its snapshots: see snapshots.ts. */
async function keepSnapshots(array: RaidArray, folder: string, { autoSync }: EngineChoice): Promise<void> {
  try {
    await array.keepSnapshots(folder, join(folder, SNAPSHOT_STORE), autoSync !== false);
  } catch (error) {
    await array.close().catch(() => undefined);
    throw error;
  }
}

function noneThere(paths: readonly string[]): RaidError {
  return new RaidError('NOT_ENOUGH_MEMBERS', `none of the members is there: ${paths.join(', ')}`);
}

/** null where no path works. */
async function reachedBy(
  san: San | null,
  name: string,
  index: number,
  device: Device,
): Promise<Device | null> {
  if (san === null) return device;
  return await san.attach(name, index, device).catch((error: unknown) => {
    if (isGone(error)) return null;
    throw error;
  });
}

function isGone(error: unknown): boolean {
  return error instanceof RaidError && error.code === 'MEMBER_GONE';
}

/** An overlay belongs to the member whose uuid it was made over, whatever the file is called now. */
async function overlayOver(device: Device, path: string): Promise<OverlayDevice> {
  const found = await findSuperblock(device).catch(() => null);
  const origin = found === null || found.version === '0.90' ? undefined : found.superblock.deviceUuid;
  return await OverlayDevice.open(device, path, { create: true, origin });
}

async function existing(paths: readonly string[]): Promise<MemberFile[]> {
  return (await Promise.all(paths.map(locksOf))).flat();
}

/** How the paths of members are used, where they have several. */
async function confFor(folder: string, paths: readonly string[]): Promise<Conf | undefined> {
  return paths.some(hasPaths) ? await readMultipathConf(folder) : undefined;
}

/** `files`: of devices that are not the files themselves, what lies below them. */
function holdOf(
  ownership: Ownership,
  files: ReadonlyMap<Device, readonly MemberFile[]>,
  san: San | null,
): Hold {
  const filesOf = (device: Device): readonly MemberFile[] => {
    const below = locksOfDevice(san?.backingOf(device) ?? device);
    return below.length > 0 ? below : (files.get(device) ?? []);
  };
  return {
    claim: async (device) => {
      const taken: MemberFile[] = [];
      try {
        for (const file of filesOf(device)) {
          await ownership.claim(file);
          taken.push(file);
        }
      } catch (error) {
        for (const { identity } of taken) await ownership.unclaim(identity);
        throw error;
      }
    },
    unclaim: async (device) => {
      for (const { identity } of filesOf(device)) await ownership.unclaim(identity);
    },
    release: () => ownership.release(),
  };
}

async function refuseWhatHoldsSomething(devices: readonly Device[]): Promise<void> {
  const held: string[] = [];
  for (const device of devices) {
    const what = await whatIsOn(device);
    if (what.length > 0) held.push(`  ${device.name}: ${what.join(', ')}`);
  }
  if (held.length === 0) return;
  throw new RaidError(
    'HOLDS_DATA',
    `these hold something, which would be lost; --force takes them all the same\n${held.join('\n')}`,
  );
}

/**
 * Two addresses of one export: nobody can tell before something is written, and then each says that it is the other. An
 * array of such members would be one disk and no redundancy.
 */
async function aliasAmong(devices: readonly MemberDevice[]): Promise<RaidError | null> {
  if (devices.every((device) => device instanceof FileDevice)) return null;
  const seen = new Map<string, string>();
  for (const device of devices) {
    const { deviceUuid } = await superblockOn(device);
    const other = seen.get(deviceUuid);
    if (other !== undefined) {
      return new RaidError(
        'DUPLICATE_MEMBER',
        `${other} and ${device.name} are the same export by two addresses; name each member once (a superblock has been written to it: --force takes it all the same)`,
        { device: device.name },
      );
    }
    seen.set(deviceUuid, device.name);
  }
  return null;
}

function parseManifest(text: string): Manifest | null {
  try {
    const value = JSON.parse(text) as Partial<Manifest> | null;
    const isOurs =
      value?.raidsim === 1 &&
      Array.isArray(value.members) &&
      value.members.every((path) => typeof path === 'string') &&
      (value.mapped ?? []).every((path) => typeof path === 'string');
    if (!isOurs) return null;
    const { scrubbed, ...manifest } = value as Manifest;
    // Only told to people: one that makes no sense is no reason to keep them from their array.
    const isScrubbed =
      Number.isSafeInteger(scrubbed?.mismatches) &&
      /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/.test(String(scrubbed?.at));
    return isScrubbed ? { ...manifest, scrubbed: scrubbed as Scrubbed } : manifest;
  } catch {
    return null;
  }
}

function pick(manifest: Manifest): Pick<AssembleOptions, 'readOnly' | 'overlay'> {
  return {
    ...(manifest.readOnly === true ? { readOnly: true } : {}),
    ...(manifest.overlay === true ? { overlay: true } : {}),
  };
}

function sourceOf(device: MemberDevice, name: string): Source {
  const identity = isLocal(device) ? device.identity : locksOfDevice(device)[0]?.identity;
  return { device, name, identity: identity ?? device.identity };
}

function sourceOfDevice(device: Device, index: number): Source {
  return {
    device,
    name: `disk${index}`,
    identity: locksOfDevice(device)[0]?.identity ?? `device:${index}`,
  };
}

/** Time stays the host's; chance comes from the seed, and so do the UUIDs. */
function seededHost(host: Host, seed: number): Host {
  const random = seededRandom(seed);
  return {
    ...host,
    random,
    randomBytes: (count) => Uint8Array.from({ length: count }, () => random(256)),
  };
}
