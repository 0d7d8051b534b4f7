/**
 * An array as people meet it: a folder with `raidsim.json` and, by default, the members as files in it.
 *
 * The manifest says what superblocks cannot: which files are the members. What the array *is* (level, roles, events,
 * how far a recovery is) stands only in the superblocks: delete the manifest, assemble the files, and nothing is lost.
 *
 * One process at a time owns an array (ownership.ts). Every function here that returns a `RaidArray` has taken that
 * ownership, and closing the array gives it back.
 */
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, isAbsolute, join, relative, resolve } from 'node:path';
import type { Device } from '../device/device.ts';
import { FileDevice } from '../device/file.ts';
import { OverlayDevice } from '../device/overlay.ts';
import { RaidError } from '../errors.ts';
import { type Host, realHost, seededRandom } from '../host.ts';
import { parseSize } from '../units.ts';
import type { EngineChoice, RaidArray } from './array.ts';
import {
  type AssemblyReport,
  assembleDevices,
  formArray,
  type ShapeOptions,
  type Source,
  shapeArray,
} from './form.ts';
import type { GrowOptions } from './grow.ts';
import type { Hold } from './metadata.ts';
import { identityOf, type MemberFile, Ownership } from './ownership.ts';
import { whatIsOn } from './signatures.ts';
import { findSuperblock } from './superblocks.ts';

export const MANIFEST_NAME = 'raidsim.json';

/** What `raidsim.json` holds. Paths are relative to the folder, or absolute. */
export interface Manifest {
  readonly raidsim: 1;
  readonly members: readonly string[];
  /** Opened without ever writing a byte to the members. */
  readonly readOnly?: boolean;
  /** All writes go to copy-on-write files beside the manifest. */
  readonly overlay?: boolean;
}

export interface CreateOptions extends ShapeOptions, EngineChoice {
  /** Files, existing or not; or devices, for an array that is not in a folder's files. */
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
}

export interface OpenOptions extends EngineChoice {
  readonly readOnly?: boolean | undefined;
  readonly force?: boolean | undefined;
  readonly run?: boolean | undefined;
  readonly raid0Layout?: 'original' | 'alternate' | undefined;
  readonly direct?: boolean | undefined;
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
  const devices = options.members?.filter((member): member is Device => typeof member !== 'string') ?? [];
  if (devices.length > 0) {
    if (devices.length !== options.members?.length) {
      throw new RaidError('BAD_ARGUMENT', 'members are either all devices or all files');
    }
    return await formArray(devices.map(sourceOfDevice), { ...form, assumeClean: options.assumeClean });
  }
  const given = options.members as readonly string[] | undefined;
  const count = (options.disks ?? 0) + (options.spares ?? 0);
  if (given === undefined && count === 0) {
    throw new RaidError('BAD_ARGUMENT', 'say how many disks (--disks N), or which files are the members');
  }
  if (options.force !== true && (await exists(join(folder, MANIFEST_NAME)))) {
    throw new RaidError(
      'ALREADY_IN_ARRAY',
      `${folder} is an array already; take another folder, or --force to make it anew, with all its data lost`,
    );
  }
  const paths =
    given?.map((path) => resolve(path)) ??
    Array.from({ length: count }, (_, index) => join(folder, `disk${index}.img`));
  const diskBytes = parseSize(options.diskSize ?? DEFAULT_DISK_BYTES);
  const there = await Promise.all(paths.map(exists));
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
  const opened: FileDevice[] = [];
  let ownership: Ownership | null = null;
  try {
    // Before a single file is opened for writing: what is there may be somebody's running array.
    ownership = await Ownership.take({
      folder,
      host,
      members: await existing(paths.filter((_, index) => there[index] === true)),
    });
    const access = { direct: options.direct === true };
    for (const [index, path] of paths.entries()) {
      if (there[index] === true && given !== undefined) {
        opened.push(await FileDevice.open(path, access));
        continue;
      }
      const replace = there[index] === true;
      const device = await FileDevice.create(path, diskBytes, {
        ...access,
        preallocate: options.preallocate === true,
        replace,
      });
      opened.push(device);
      if (replace) continue;
      made.push(path);
      await ownership.claim({ path, identity: device.identity });
    }
    const isNew = given === undefined || made.length === opened.length;
    if (!isNew && options.force !== true) await refuseWhatHoldsSomething(opened);
    // Members that have just been made are zeros, and zeros agree: parity of zeros is zero.
    const array = await formArray(
      opened.map((device, index) => sourceOf(device, `disk${index}`)),
      { ...form, assumeClean: options.assumeClean === true || isNew, hold: holdOf(ownership) },
    );
    await writeManifest(folder, { raidsim: 1, members: paths.map((path) => inFolder(folder, path)) });
    return array;
  } catch (error) {
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
export async function openArray(
  folder: string,
  options: OpenOptions = {},
): Promise<{ readonly array: RaidArray; readonly report: AssemblyReport }> {
  const manifest = await readManifest(folder);
  const paths = manifest.members.map((path) => (isAbsolute(path) ? path : join(folder, path)));
  return await openMembers(folder, paths, {
    run: true,
    ...options,
    ...pick(manifest),
    ...(options.readOnly === true ? { readOnly: true } : {}),
  });
}

/** Makes the manifest for members that are there, and opens the array. */
export async function assembleArray(
  folder: string,
  files: readonly string[],
  options: AssembleOptions = {},
): Promise<{ readonly array: RaidArray; readonly report: AssemblyReport }> {
  const paths = files.map((path) => resolve(path));
  const madeFolder = await mkdir(folder, { recursive: true });
  try {
    const opened = await openMembers(folder, paths, options);
    // Members that are stale stay on the list, to be brought back; what belongs elsewhere does not come on it.
    const foreign = new Set(
      opened.report.members.filter(({ joins }) => joins === 'out').map(({ name }) => name),
    );
    const names = uniqueNames(paths);
    await writeManifest(folder, {
      raidsim: 1,
      members: paths
        .filter((_, index) => !foreign.has(names[index] ?? ''))
        .map((path) => inFolder(folder, path)),
      ...(options.readOnly === true ? { readOnly: true } : {}),
      ...(options.overlay === true ? { overlay: true } : {}),
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
): Promise<{ readonly array: RaidArray; readonly report: AssemblyReport }> {
  const { array } = await openArray(folder, { ...options, autoSync: false });
  try {
    await array.grow(growth);
  } finally {
    await array.close();
  }
  return await openArray(folder, { ...options, run: true });
}

/** Opens a file as a member to be added to an array in this folder; makes it, as large as the others, if it is not there. */
export async function openMember(path: string, sizeBytes: number): Promise<FileDevice> {
  return (await exists(path)) ? await FileDevice.open(path) : await FileDevice.create(path, sizeBytes);
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

/** Replaced in one step: a manifest is whole, or the old one. */
export async function writeManifest(folder: string, manifest: Manifest): Promise<void> {
  const path = join(folder, MANIFEST_NAME);
  await writeFile(`${path}.new`, `${JSON.stringify(manifest, null, 2)}\n`);
  await rename(`${path}.new`, path);
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
  options: AssembleOptions,
): Promise<{ readonly array: RaidArray; readonly report: AssemblyReport }> {
  const host = options.host ?? realHost;
  const keepsMembers = options.readOnly === true || options.overlay === true;
  const opened: FileDevice[] = [];
  const used: Device[] = [];
  let ownership: Ownership | null = null;
  try {
    // A member that is not there is a member that is missing; whether the array can do without, assembly decides.
    const there = await Promise.all(paths.map(exists));
    const found = paths.filter((_, index) => there[index] === true);
    if (found.length === 0) {
      throw new RaidError('NOT_ENOUGH_MEMBERS', `none of the members is there: ${paths.join(', ')}`);
    }
    // Whoever only reads takes nothing from others, and is not kept out by them.
    if (options.readOnly !== true)
      ownership = await Ownership.take({ folder, host, members: await existing(found) });
    for (const path of found) {
      opened.push(await FileDevice.open(path, { readOnly: keepsMembers, direct: options.direct === true }));
    }
    const names = uniqueNames(found);
    const sources: Source[] = [];
    for (const [index, device] of opened.entries()) {
      const name = names[index] ?? device.name;
      const above =
        options.overlay === true ? await overlayOver(device, join(folder, `${name}.overlay`)) : device;
      used.push(above);
      sources.push({ device: above, name, identity: device.identity });
    }
    const assembled = await assembleDevices(sources, {
      cores: availableParallelism(),
      ...options,
      host,
      name: basename(resolve(folder)),
      ...(ownership === null ? {} : { hold: holdOf(ownership) }),
    });
    // Free again: a stale member may be what is added, or brought back, next.
    for (const index of assembled.report.left) {
      await used[index]?.close();
      await ownership?.unclaim(opened[index]?.identity ?? '');
    }
    return assembled;
  } catch (error) {
    await Promise.all([...used, ...opened].map((device) => device.close().catch(() => undefined)));
    await ownership?.release();
    throw error;
  }
}

/** An overlay belongs to the member whose uuid it was made over, whatever the file is called now. */
async function overlayOver(device: FileDevice, path: string): Promise<OverlayDevice> {
  const found = await findSuperblock(device).catch(() => null);
  const origin = found === null || found.version === '0.90' ? undefined : found.superblock.deviceUuid;
  return await OverlayDevice.open(device, path, { create: true, origin });
}

async function existing(paths: readonly string[]): Promise<MemberFile[]> {
  return await Promise.all(paths.map(async (path) => ({ path, identity: await identityOf(path) })));
}

function holdOf(ownership: Ownership): Hold {
  const fileOf = (device: Device): MemberFile | null =>
    device instanceof FileDevice ? { path: device.name, identity: device.identity } : null;
  return {
    claim: async (device) => {
      const file = fileOf(device);
      if (file !== null) await ownership.claim(file);
    },
    unclaim: async (device) => {
      const file = fileOf(device);
      if (file !== null) await ownership.unclaim(file.identity);
    },
    release: () => ownership.release(),
  };
}

async function refuseWhatHoldsSomething(devices: readonly FileDevice[]): Promise<void> {
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

function parseManifest(text: string): Manifest | null {
  try {
    const value = JSON.parse(text) as Partial<Manifest> | null;
    const isOurs =
      value?.raidsim === 1 &&
      Array.isArray(value.members) &&
      value.members.every((path) => typeof path === 'string');
    return isOurs ? (value as Manifest) : null;
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

function sourceOf(device: FileDevice, name: string): Source {
  return { device, name, identity: device.identity };
}

function sourceOfDevice(device: Device, index: number): Source {
  return {
    device,
    name: `disk${index}`,
    identity: device instanceof FileDevice ? device.identity : `device:${index}`,
  };
}

/** `disk0` for `disk0.img`; the whole path where two would be called alike. */
function uniqueNames(paths: readonly string[]): readonly string[] {
  const short = paths.map((path) => basename(path).replace(/\.(img|raw|dd|bin)$/, ''));
  return paths.map((path, index) => {
    const name = short[index] ?? path;
    return short.filter((other) => other === name).length === 1 ? name : path;
  });
}

function inFolder(folder: string, path: string): string {
  const inside = relative(resolve(folder), path);
  return inside.startsWith('..') || isAbsolute(inside) ? path : inside;
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
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
