/** A disk comes into an array: a new one, one that held something else, or one that was here before. */
import { rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import {
  type Device,
  formatSize,
  isThere,
  isUri,
  memberNames,
  OverlayDevice,
  openMember,
  openNamed,
  RaidError,
  readMultipathConf,
  sourceIn,
  throughSan,
  whatIsOn,
  wholeSource,
} from '../lib/index.ts';
import {
  checkFile,
  commandLine,
  findDiskOrNull,
  joinManifest,
  knownDisks,
  type Opened,
  slotsOf,
  usualDiskBytes,
} from './array.ts';
import { closest } from './closest.ts';

interface Found {
  readonly name: string;
  readonly path: string;
  readonly isThere: boolean;
}

interface Wishes {
  readonly force: boolean;
  /** Words of the command that asks for it, with another file. */
  readonly command: (file: string) => readonly string[];
  /** The name of a disk that it is to replace next; one that could not is not added. */
  readonly toReplace?: string;
}

/** Says what was done. */
export async function addDisk(
  opened: Opened,
  text: string,
  { force, command, toReplace }: Wishes,
): Promise<string> {
  const { array, folder, manifest } = opened;
  const found = await findFile(opened, text, command);
  const { name, path } = found;
  if (found.isThere) {
    const former = await tryReAdd(opened, found);
    if (former !== null) return former;
    const held = await holdings(path);
    if (held.length > 0 && !force && !(await isFormer(opened, path))) {
      throw new RaidError(
        'HOLDS_DATA',
        `${path} holds something, which would be lost: ${held.join(', ')}; to take it all the same:${commandLine(...command(text), '--force')}`,
        { device: path },
      );
    }
  }
  const bytes = await usualDiskBytes(folder, manifest, array);
  const file = await openMember(path, bytes, folder);
  let device: Device = file;
  try {
    device = await overlaid(opened, file, name);
    await joinManifest(folder, path, () => array.add(device, name, { toReplace }));
  } catch (error) {
    await device.close();
    if (!found.isThere) await rm(path, { force: true });
    const fileBytes = file.limits.sizeBytes;
    // What names a member says already for whose place the file is too small.
    const isForAny = error instanceof RaidError && error.place.member === undefined;
    if (isForAny && error.code === 'BAD_ARGUMENT' && fileBytes < bytes) {
      throw new RaidError(
        error.code,
        `${path} is too small: it has ${formatSize(fileBytes)}, and the other disks of ${array.name} have ${formatSize(bytes)}`,
        { device: path, cause: error },
      );
    }
    throw error;
  }
  return found.isThere ? `${name} is added` : `${name} is added: ${path} is made`;
}

export async function reAddDisk(opened: Opened, text: string): Promise<string> {
  const { folder } = opened;
  const found = await findFile(opened, text, (file) => ['add', folder, file]);
  if (!found.isThere)
    throw new RaidError('BAD_ARGUMENT', `there is no file ${found.path}`, { device: found.path });
  if (!(await isFormer(opened, found.path))) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${found.path} was never in ${opened.array.name}; as a new disk it can come:${commandLine('add', folder, text)}`,
      { device: found.path },
    );
  }
  try {
    return await bringBack(opened, found);
  } catch (error) {
    if (!(error instanceof RaidError) || error.code !== 'EVENTS_DISAGREE') throw error;
    throw new RaidError(
      error.code,
      `${found.name} has been away, and what it has missed is not known; as a new disk it can come:${commandLine('add', folder, text)}`,
      { device: found.path, cause: error },
    );
  }
}

/** As mdadm --add: who may come back with little, does. */
async function tryReAdd(opened: Opened, found: Found): Promise<string | null> {
  if (!(await isFormer(opened, found.path))) return null;
  try {
    return await bringBack(opened, found);
  } catch (error) {
    if (error instanceof RaidError && error.code === 'EVENTS_DISAGREE') return null;
    throw error;
  }
}

async function bringBack(opened: Opened, { name, path }: Found): Promise<string> {
  const file = await openNamed(path, { conf: await readMultipathConf(opened.folder) });
  let device: Device = file;
  try {
    device = await overlaid(opened, file, name);
    const { state } = await joinManifest(opened.folder, path, () => opened.array.reAdd(device, name));
    return state.state === 'in_sync'
      ? `${name} is back, and has missed nothing`
      : `${name} is back, and gets what it has missed`;
  } catch (error) {
    await device.close();
    throw error;
  }
}

async function findFile(opened: Opened, text: string, command: Wishes['command']): Promise<Found> {
  const { array, manifest, folder } = opened;
  const known = findDiskOrNull(text, opened, slotsOf(array));
  if (known !== null) {
    const member = array.members.find(({ name }) => name === known.name);
    if (member !== undefined && member.state.state !== 'faulty') {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${known.name} is in ${array.name} already (${member.state.state})`,
        {
          device: known.source,
        },
      );
    }
    const path = opened.pathOf(known.source);
    return { name: known.name, path, isThere: await isThere(path) };
  }
  const path = await existingPath(folder, text);
  // A name without a folder and without an ending, of nothing that is there, is rather a slip than a new file.
  if (path === null && !/[./]/.test(text)) {
    const names = knownDisks(manifest).map(({ name }) => name);
    const close = closest(text, names);
    const hint = close === null ? `it has ${names.join(', ')}.` : `did you mean ${close}?`;
    throw new RaidError(
      'NO_SUCH_MEMBER',
      `${folder} has no disk ${text}, and there is no file of that name; ${hint} To make a new file:${commandLine(...command(join(folder, `${text}.img`)))}`,
      { device: text },
    );
  }
  if (path !== null) await checkFile(path);
  const used = path ?? text;
  const names = memberNames([...manifest.members, sourceIn(folder, used)]);
  return { name: names.at(-1) ?? basename(used), path: used, isThere: path !== null };
}

/** As it is typed; else a file in the array's folder, such as a disk that was removed: `disk1` is `demo/disk1.img`. */
async function existingPath(folder: string, text: string): Promise<string | null> {
  if (isUri(text)) return wholeSource(text);
  const inFolder = text.includes('/') ? [] : [join(folder, text), join(folder, `${text}.img`)];
  for (const path of [text, ...inFolder]) if (await isThere(path)) return path;
  return null;
}

/** Whether it says of itself that it is, or was, a member of this array. */
async function isFormer({ array }: Opened, path: string): Promise<boolean> {
  const { examineMember } = await import('../lib/index.ts');
  const uuid = array.metadata?.array.setUuid;
  try {
    return uuid !== undefined && (await examineMember(path)).json['arrayUuid'] === uuid;
  } catch (error) {
    if (error instanceof RaidError) return false;
    throw error;
  }
}

async function holdings(path: string): Promise<readonly string[]> {
  const file = await openNamed(path, { readOnly: true });
  try {
    return await whatIsOn(file);
  } finally {
    await file.close();
  }
}

/** As the array is to see it: with what lies between them. */
async function overlaid({ array, manifest, folder }: Opened, file: Device, name: string): Promise<Device> {
  const known = knownDisks(manifest).findIndex((disk) => disk.name === name);
  const index = known < 0 ? manifest.members.length : known;
  if (manifest.overlay !== true) return await throughSan(array, file, name, index);
  const overlay = await OverlayDevice.open(file, join(folder, `${name}.overlay`), { create: true });
  return await throughSan(array, overlay, name, index);
}
