/**
 * What a manifest calls a member, and how one comes from there to a device: a path, relative to the folder where it can
 * be, or the URI of an NBD export, always written in the same way (nbd/uri.ts), or several that lead to one (paths.ts).
 * `sda.img#3` is the third partition in the image of a disk, as `/dev/sda3` is one of the disk; a file that is called so is that file.
 * Where the map of ddrescue lies beside an image, `sda.map`, what it says was not read is not taken for data.
 *
 * A file is there or not. An export is asked: one that nobody answers for is missing like a disk that was pulled, and
 * whether the array can do without decides assembly.
 */
import { stat } from 'node:fs/promises';
import { basename, isAbsolute, join, relative, resolve } from 'node:path';
import type { Device } from '../device/device.ts';
import { FileDevice } from '../device/file.ts';
import { PartitionDevice } from '../device/partition.ts';
import { findRescueMap, RescuedDevice, unreadBytes } from '../device/rescued.ts';
import { RaidError } from '../errors.ts';
import { MultipathDevice } from '../multipath/device.ts';
import { NbdDevice } from '../nbd/client.ts';
import { isUri, parseNbdUri } from '../nbd/uri.ts';
import { formatSize } from '../units.ts';
import { identityOf, type MemberFile } from './ownership.ts';
import { checkPaths, hasPaths, joined, openPaths, type PathsOptions, urisOf } from './paths.ts';

type LocalDevice = FileDevice | RescuedDevice | PartitionDevice;
export type MemberDevice = LocalDevice | NbdDevice | MultipathDevice;

export interface SourceOptions extends PathsOptions {
  /** O_DIRECT, for files. */
  readonly direct?: boolean | undefined;
  /** An overlay goes over it. */
  readonly overlaid?: boolean | undefined;
}

/** A path that leads there from anywhere, or a URI as it is always written. Refuses a URI that is none. */
export function wholeSource(text: string, folder?: string): string {
  if (isUri(text)) return joined(urisOf(text));
  return folder === undefined || isAbsolute(text) ? resolve(text) : join(folder, text);
}

/** As the manifest of this folder has it. */
export function sourceIn(folder: string, text: string): string {
  const whole = wholeSource(text);
  if (isUri(whole)) return whole;
  const inside = relative(resolve(folder), whole);
  return inside.startsWith('..') || isAbsolute(inside) ? whole : inside;
}

/** The file that a source is, or is a part of. */
export interface Place {
  readonly path: string;
  /** Null for all of it. */
  readonly partition: number | null;
}

/** Null where there is no such file, and for an export. */
export async function placeOf(source: string): Promise<Place | null> {
  if (isUri(source)) return null;
  if (await exists(source)) return { path: source, partition: null };
  const [, path = '', digits = ''] = PARTITION.exec(source) ?? [];
  return path !== '' && (await exists(path)) ? { path, partition: Number(digits) } : null;
}

const PARTITION = /^(.+)#([1-9][0-9]{0,3})$/;

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

/** A slip in the name of a disk must not make a file that is called like a partition of it. */
export function refuseToMake(source: string): void {
  const [, disk, number] = PARTITION.exec(source) ?? [];
  if (disk === undefined) return;
  throw new RaidError(
    'BAD_ARGUMENT',
    `there is no disk ${disk}, of which ${source} would be partition ${number}`,
    {
      device: source,
    },
  );
}

/** Whether there is something to open. Of an export only its server knows. */
export async function isThere(source: string): Promise<boolean> {
  return isUri(source) || (await placeOf(source)) !== null;
}

/** MEMBER_GONE where an export's server does not answer. */
export async function openSource(source: string, options: SourceOptions = {}): Promise<MemberDevice> {
  const { direct, overlaid, conf, ...remote } = options;
  if (hasPaths(source)) return await openPaths(source, { ...remote, conf });
  if (isUri(source)) return await NbdDevice.open(source, remote);
  return await openPlace((await placeOf(source)) ?? { path: source, partition: null }, options);
}

async function openPlace(
  { path, partition }: Place,
  { readOnly = false, direct = false, overlaid = false }: SourceOptions,
): Promise<LocalDevice> {
  const file = await FileDevice.open(path, { readOnly, direct });
  try {
    const map = await findRescueMap(path, file.limits.sizeBytes);
    const isWhole = map === null || map.unread.length === 0;
    const isRead = readOnly && !overlaid;
    const disk = isWhole || !isRead ? file : new RescuedDevice(file, map);
    const device = partition === null ? disk : await PartitionDevice.open(disk, partition);
    const sizeBytes = partition === null && map !== null ? map.sizeBytes : device.limits.sizeBytes;
    const unread = isWhole ? 0 : unreadBytes(map, startOf(device), sizeBytes);
    // An overlay takes whole blocks, and of a block in which two sectors were not read neither can be mended first.
    if (unread > 0 && !isRead) {
      throw new RaidError(
        'NOT_SUPPORTED',
        `${device.name} is not whole: ${formatSize(unread)} could not be read from the disk (${map?.path}). assemble --readonly has the array compute that from the other disks; to use the image anew, take the map away`,
        { device: device.name },
      );
    }
    return device;
  } catch (error) {
    await file.close();
    throw error;
  }
}

function startOf(device: Device): number {
  return device instanceof PartitionDevice ? device.partition.startBytes : 0;
}

/** Whether a map of ddrescue says that some of the image was not read. */
export async function hasMap(source: string): Promise<boolean> {
  const place = await placeOf(source);
  if (place === null) return false;
  const map = await findRescueMap(place.path, (await stat(place.path)).size);
  return map !== null && map.unread.length > 0;
}

/** What could not be read of a disk when it was copied, and what says so; null where all was. */
export function unreadOf(device: Device): { readonly bytes: number; readonly mapPath: string } | null {
  const disk = device instanceof PartitionDevice ? device.disk : device;
  if (!(disk instanceof RescuedDevice)) return null;
  const bytes = unreadBytes(disk.map, startOf(device), device.limits.sizeBytes);
  return bytes === 0 ? null : { bytes, mapPath: disk.map.path };
}

/** One that somebody has named just now: that it is not there is then a mistake in the call, and not a lost disk. */
export async function openNamed(source: string, options: SourceOptions = {}): Promise<MemberDevice> {
  try {
    const device = await openSource(source, options);
    if (device instanceof MultipathDevice) await checkPaths(device);
    return device;
  } catch (error) {
    if (!(error instanceof RaidError) || error.code !== 'MEMBER_GONE' || !isUri(source)) throw error;
    throw new RaidError('BAD_ARGUMENT', error.message, { ...error.place, cause: error });
  }
}

/** A file, a block device or a partition: two with one identity are the same bytes. */
export function isLocal(device: Device): device is LocalDevice {
  return device instanceof FileDevice || device instanceof RescuedDevice || device instanceof PartitionDevice;
}

/** For the locks on it, one for each path; it need not be open. Of a partition the whole disk: others may use that as a whole. */
export async function locksOf(source: string): Promise<readonly MemberFile[]> {
  if (!isUri(source)) {
    const { path } = (await placeOf(source)) ?? { path: source };
    return [{ path, identity: await identityOf(path) }];
  }
  return urisOf(source).map((uri) => ({ path: source, identity: parseNbdUri(uri).identity }));
}

/** The same for what has been opened here; none for another device. */
export function locksOfDevice(device: Device): readonly MemberFile[] {
  const { name } = device;
  if (device instanceof PartitionDevice) return [{ path: device.disk.name, identity: device.disk.identity }];
  if (isLocal(device) || device instanceof NbdDevice) return [{ path: name, identity: device.identity }];
  if (!(device instanceof MultipathDevice) || !isUri(name)) return [];
  return urisOf(name).map((uri) => ({ path: name, identity: parseNbdUri(uri).identity }));
}

/** `disk0` for `disk0.img`, `sda3` for `sda.img#3`, the export or the socket of a URI; all of it where two would be called alike. */
export function memberNames(sources: readonly string[]): readonly string[] {
  const short = sources.map((source) => (isUri(source) ? shortNameOf(source) : shortNameOfFile(source)));
  return sources.map((source, index) => {
    const name = short[index] ?? source;
    return short.filter((other) => other === name).length === 1 ? name : source;
  });
}

function shortNameOfFile(source: string): string {
  const [, disk, partition = ''] = PARTITION.exec(source) ?? [];
  const name = basename(disk ?? source).replace(/\.(img|raw|dd|bin)$/, '');
  // As Linux calls them.
  return `${name}${disk !== undefined && /[0-9]$/.test(name) ? 'p' : ''}${partition}`;
}

function shortNameOf(source: string): string {
  const [first = source] = urisOf(source);
  return parseNbdUri(first).shortName;
}
