/** How verbs come by an array and its disks: what a person types becomes a folder, a member, a file. */
import { constants, type Stats } from 'node:fs';
import { access, stat } from 'node:fs/promises';
import { basename, isAbsolute, join, resolve } from 'node:path';
import {
  type ErrorCode,
  type Inspection,
  inspectArray,
  isUri,
  MANIFEST_NAME,
  type Manifest,
  memberNames,
  openArray,
  placeOf,
  type RaidArray,
  RaidError,
  readManifest,
  realHost,
  sourceIn,
  updateManifest,
  wholeSource,
} from '../lib/index.ts';
import { closest } from './closest.ts';
import { COMMAND_MARK } from './render.ts';

/** A text as the shell would have to be given it. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./~-][\w@%+=:,./~#-]*$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A line of an error's message that is printed as the command to type now. */
export function commandLine(...words: readonly string[]): string {
  return `\n${COMMAND_MARK}raidsim ${words.map(shellWord).join(' ')}`;
}

/**
 * Refuses early what cannot be the folder of an array, and says what it looks like instead. `others` are the words that
 * came behind it: the array may be among them.
 */
export async function checkFolder(folder: string, others: readonly string[] = []): Promise<void> {
  const found = await statOf(folder);
  const isArray = found?.isDirectory() === true && (await statOf(join(folder, MANIFEST_NAME))) !== null;
  if (isArray) return;
  for (const other of others) {
    if ((await statOf(join(other, MANIFEST_NAME))) === null) continue;
    throw new RaidError(
      'NO_SUCH_ARRAY',
      `${folder} is no array, but ${other} is one: the array comes first, then its disks`,
    );
  }
  if (found === null) {
    throw new RaidError('NO_SUCH_ARRAY', `there is no folder ${folder}${await nearby(folder)}`);
  }
  if (!found.isDirectory()) {
    const isManifest = basename(folder) === MANIFEST_NAME;
    const hint = isManifest
      ? `an array is called by its folder: ${shellWord(join(folder, '..'))}`
      : 'ARRAY is the folder of an array, and comes first';
    throw new RaidError('BAD_ARGUMENT', `${folder} is a file; ${hint}`);
  }
  throw new RaidError(
    'NO_SUCH_ARRAY',
    `${folder} is a folder, but no array: it has no ${MANIFEST_NAME}. If disks of an array lie in it:${commandLine('assemble', folder)}`,
  );
}

/** For a folder that is to be made, or may be empty. */
export async function checkNewFolder(folder: string, verb: string): Promise<void> {
  const found = await statOf(folder);
  if (found === null || found.isDirectory()) return await checkWritable(folder);
  throw new RaidError(
    'BAD_ARGUMENT',
    `${folder} is a file; ARRAY is the folder for the array, and comes before the disks:${commandLine(verb, 'ARRAY', folder, '...')}`,
  );
}

/** Said before it is tried: a recursive mkdir on a read-only file system says ENOENT. */
async function checkWritable(folder: string): Promise<void> {
  let path = resolve(folder);
  while ((await statOf(path)) === null) path = join(path, '..');
  await access(path, constants.W_OK);
}

/** A folder beside it that is an array and is called nearly so. */
async function nearby(folder: string): Promise<string> {
  const { readdir } = await import('node:fs/promises');
  const above = join(folder, '..');
  const entries = await readdir(above, { withFileTypes: true }).catch(() => []);
  const names: string[] = [];
  for (const entry of entries) {
    if (entry.isDirectory() && (await statOf(join(above, entry.name, MANIFEST_NAME))) !== null)
      names.push(entry.name);
  }
  const close = closest(basename(folder), names);
  if (close !== null) return `; did you mean ${shellWord(join(above, close))}?`;
  return names.length === 0
    ? `; to make an array:${commandLine('create', folder, '--level', '5', '--disks', '4')}`
    : `; the arrays beside it are ${names.slice(0, 5).join(', ')}`;
}

export interface Opened {
  readonly array: RaidArray;
  readonly folder: string;
  readonly manifest: Manifest;
  /** Where a member's file is, relative to here. */
  readonly pathOf: (source: string) => string;
  /** Of an array that is served: who is connected. */
  readonly clientCount?: () => number;
}

export interface OpenHow {
  readonly readOnly?: boolean;
  /** Refused early, and in better words, where the array was assembled never to be written. */
  readonly writes?: boolean;
  /** No threads: for verbs that move next to no bytes. */
  readonly light?: boolean;
  /** What came behind the array on the command line: for the advice when it is the other way round. */
  readonly others?: readonly string[];
}

/**
 * The array, with no sync running: a verb that wants one starts it. A member that the manifest has and that is not
 * there is missing, and nobody needs to say so again.
 */
export async function open(folder: string, how: OpenHow = {}): Promise<Opened> {
  await checkFolder(folder, how.others);
  const manifest = await readManifest(folder);
  if (manifest.readOnly === true && how.writes === true) {
    throw new RaidError(
      'READ_ONLY',
      `${folder} was assembled with --readonly; to write beside its disks, which stay as they are:${commandLine('assemble', folder, '--overlay')}`,
    );
  }
  try {
    const array = await openArray(folder, {
      autoSync: false,
      run: true,
      ...(how.readOnly === true ? { readOnly: true } : {}),
      ...(how.light === true ? { cores: 1 } : {}),
    });
    return { array, folder, manifest, pathOf: (source) => pathIn(folder, source) };
  } catch (error) {
    if (how.writes !== true && how.readOnly !== true && isForbidden(error))
      return await openUnowned(folder, how);
    throw withNextStep(error, folder);
  }
}

/** Where nothing may be written, not even a lock: only for reading, and only while nobody else is at it. */
async function openUnowned(folder: string, how: OpenHow): Promise<Opened> {
  const { owner } = await inspectArray(folder);
  if (owner !== null) {
    throw new RaidError(
      'BUSY',
      `${folder} is in use by ${owner.pid === null ? 'another process' : `process ${owner.pid}`}; work through that process, or end it and try again`,
    );
  }
  return await open(folder, { ...how, readOnly: true });
}

function isForbidden(error: unknown): boolean {
  const cause = error instanceof RaidError ? error.cause : null;
  return cause instanceof Error && 'code' in cause && isForbiddenCode(cause.code);
}

const nextSteps: Partial<Record<ErrorCode, readonly string[]>> = {
  DIRTY_DEGRADED: ['--force'],
  EVENTS_DISAGREE: ['--force'],
  FORKED_HISTORY: ['--force'],
  MEMBERS_MISSING: ['--run'],
};

/** An assembly that was refused says which option would do: here, the whole command. */
export function withNextStep(error: unknown, folder: string): unknown {
  if (!(error instanceof RaidError)) return error;
  if (error.code === 'NOT_ENOUGH_MEMBERS') {
    return new RaidError(
      error.code,
      `${error.message}; to see which are missing:${commandLine('status', folder)}`,
      {
        ...error.place,
        cause: error,
      },
    );
  }
  const words = nextSteps[error.code];
  if (words === undefined) return error;
  const said = error.message.replace(/\n {2}--\w+ starts it all the same$/, '');
  return new RaidError(error.code, `${said}${commandLine('assemble', folder, ...words)}`, {
    ...error.place,
    cause: error,
  });
}

/** Data that is lost, and why each disk is out that went out while this process had the array. */
export function withReasons(error: unknown, array: RaidArray): unknown {
  if (!(error instanceof RaidError) || error.code !== 'REDUNDANCY_LOST') return error;
  const reasons = array.members.flatMap(({ name, state }) =>
    state.state === 'faulty' ? [`  ${name} is out: ${state.because.message}`] : [],
  );
  return new RaidError(error.code, [error.message, ...reasons].join('\n'), {
    ...error.place,
    cause: error.cause,
  });
}

/** A path from here, or the URI. */
export function pathIn(folder: string, source: string): string {
  return isUri(source) || isAbsolute(source) ? source : join(folder, source);
}

/** Refuses what is no file or device, and says what it looks like instead. */
export async function checkFile(path: string, wanted = 'a disk'): Promise<void> {
  if (isUri(path)) {
    wholeSource(path);
    return;
  }
  const place = await placeOf(path);
  const found = place === null ? null : await statOf(place.path);
  if (found === null) throw new RaidError('BAD_ARGUMENT', `there is no file ${path}`, { device: path });
  if (!found.isDirectory()) return;
  const isArray = (await statOf(join(path, MANIFEST_NAME))) !== null;
  const hint = isArray
    ? `it is the folder of an array, and ${wanted} is wanted${wanted === 'a disk' ? `, such as ${shellWord(join(path, 'disk0.img'))}` : ''}`
    : `it is a folder, and ${wanted} is wanted`;
  throw new RaidError('BAD_ARGUMENT', `${path}: ${hint}`, { device: path });
}

/**
 * Where a spare and an empty slot are, the spare takes the slot: that is the first step of a sync. The rest of it is left
 * to `rebuild`, which goes on where this stopped. The name of the spare, or null where there is none.
 */
export async function letSpareIn(array: RaidArray): Promise<string | null> {
  const spare = array.members.find(({ state }) => state.state === 'spare');
  if (spare === undefined || array.degraded === 0 || array.state === 'failed') return null;
  for await (const _step of array.rebuild({ limitBytesPerSecond: null })) break;
  return stateOf(array, spare.name) === 'spare' ? null : spare.name;
}

function stateOf(array: RaidArray, name: string): string | undefined {
  return array.members.find((member) => member.name === name)?.state.state;
}

/** A disk that the manifest has, whatever has become of it. */
export interface KnownDisk {
  readonly name: string;
  /** As the manifest has it. */
  readonly source: string;
}

export function knownDisks(manifest: Manifest): readonly KnownDisk[] {
  const names = memberNames(manifest.members);
  return manifest.members.map((source, index) => ({ name: names[index] ?? source, source }));
}

/**
 * The disk that a person means: its name, its path, or the slot it holds. `slotOf` says who is in a slot now.
 */
export function findDisk(
  text: string,
  { manifest, folder }: Pick<Opened, 'manifest' | 'folder'>,
  inSlot: (slot: number) => string | null,
): KnownDisk {
  const found = findDiskOrNull(text, { manifest, folder }, inSlot);
  if (found !== null) return found;
  const names = knownDisks(manifest).map(({ name }) => name);
  const close = closest(text, names);
  const hint =
    close === null ? `it has ${names.join(', ')}` : `did you mean ${close}? It has ${names.join(', ')}`;
  const what = /^\d+$/.test(text) ? `no disk in slot ${text}` : `no disk ${text}`;
  throw new RaidError('NO_SUCH_MEMBER', `${folder} has ${what}; ${hint}`, { device: text });
}

export function findDiskOrNull(
  text: string,
  { manifest, folder }: Pick<Opened, 'manifest' | 'folder'>,
  inSlot: (slot: number) => string | null,
): KnownDisk | null {
  const disks = knownDisks(manifest);
  const byName = disks.find(({ name }) => name === text);
  if (byName !== undefined) return byName;
  const name = /^\d+$/.test(text) ? inSlot(Number(text)) : null;
  if (name !== null) return disks.find((disk) => disk.name === name) ?? null;
  const whole = wholeSource(text);
  return disks.find(({ source }) => source === text || wholeSource(pathIn(folder, source)) === whole) ?? null;
}

/** For `findDisk`, of an array that is open. */
export function slotsOf(array: RaidArray): (slot: number) => string | null {
  return (slot) => array.members.find(({ state }) => 'slot' in state && state.slot === slot)?.name ?? null;
}

/**
 * The manifest has one disk more before `join` takes it into the array, and not if that fails. In the other order a disk that finds no room in
 * the manifest would be in the array until that is closed, may take the place of another, and would be missing from then on.
 */
export async function joinManifest<Result>(
  folder: string,
  path: string,
  join: () => Promise<Result>,
): Promise<Result> {
  const source = sourceIn(folder, path);
  let isNew = false;
  await updateManifest(folder, (manifest) => {
    isNew = !manifest.members.includes(source);
    return isNew ? { ...manifest, members: [...manifest.members, source] } : manifest;
  });
  try {
    return await join();
  } catch (error) {
    if (isNew) await dropFromManifest(folder, source).catch(() => undefined);
    throw error;
  }
}

export async function dropFromManifest(folder: string, source: string): Promise<void> {
  await updateManifest(folder, (manifest) => ({
    ...manifest,
    members: manifest.members.filter((member) => member !== source),
  }));
}

/** Where the folder can be written: who only may read the array can still scrub it, and a full disk does not keep from anybody what was found. */
export async function noteScrub(folder: string, mismatches: number): Promise<void> {
  const at = `${new Date(realHost.wallClock()).toISOString().slice(0, 19)}Z`;
  try {
    await updateManifest(folder, (manifest) => ({ ...manifest, scrubbed: { mismatches, at } }));
  } catch (error) {
    const isFull = error instanceof RaidError && error.code === 'NO_SPACE';
    if (!isFull && !(error instanceof Error && 'code' in error && isForbiddenCode(error.code))) throw error;
  }
}

function isForbiddenCode(code: unknown): boolean {
  return ['EACCES', 'EPERM', 'EROFS'].includes(String(code));
}

/** A path for one disk more, that nothing has yet: `demo/disk4.img`. */
export function newDiskPath(folder: string, manifest: Manifest): string {
  const taken = new Set(manifest.members);
  let number = manifest.members.length;
  while (taken.has(`disk${number}.img`)) number += 1;
  return join(folder, `disk${number}.img`);
}

/** As large as the largest disk that is there: the largest file, or where all are remote or partitions, the largest of those. */
export async function usualDiskBytes(folder: string, manifest: Manifest, array: RaidArray): Promise<number> {
  const places = await Promise.all(manifest.members.map((source) => placeOf(pathIn(folder, source))));
  const files = places.flatMap((place) => (place === null || place.partition !== null ? [] : [place.path]));
  const sizes = await Promise.all(files.map(async (path) => (await statOf(path))?.size ?? 0));
  if (files.length > 0) return Math.max(0, ...sizes);
  const devices = array.members.map(({ descriptor }) => array.metadata?.deviceOf(descriptor));
  return Math.max(0, ...devices.map((device) => device?.limits.sizeBytes ?? 0));
}

/** What the array's disks say, whoever has it open. */
export async function inspectFolder(folder: string): Promise<Inspection> {
  await checkFolder(folder);
  return await inspectArray(folder);
}

export async function statOf(path: string): Promise<Stats | null> {
  return await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return null;
    throw error;
  });
}
