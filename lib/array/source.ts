/**
 * What a manifest calls a member, and how one comes from there to a device: a path, relative to the folder where it can
 * be, or the URI of an NBD export, always written in the same way (nbd/uri.ts), or several that lead to one (paths.ts).
 *
 * A file is there or not. An export is asked: one that nobody answers for is missing like a disk that was pulled, and
 * whether the array can do without decides assembly.
 */
import { stat } from 'node:fs/promises';
import { basename, isAbsolute, join, relative, resolve } from 'node:path';
import type { Device } from '../device/device.ts';
import { FileDevice } from '../device/file.ts';
import { RaidError } from '../errors.ts';
import { MultipathDevice } from '../multipath/device.ts';
import { NbdDevice } from '../nbd/client.ts';
import { isUri, parseNbdUri } from '../nbd/uri.ts';
import { identityOf, type MemberFile } from './ownership.ts';
import { checkPaths, hasPaths, joined, openPaths, type PathsOptions, urisOf } from './paths.ts';

export type MemberDevice = FileDevice | NbdDevice | MultipathDevice;

export interface SourceOptions extends PathsOptions {
  /** O_DIRECT, for files. */
  readonly direct?: boolean | undefined;
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

/** Whether there is something to open. Of an export only its server knows. */
export async function isThere(source: string): Promise<boolean> {
  if (isUri(source)) return true;
  return await stat(source).then(
    () => true,
    () => false,
  );
}

/** MEMBER_GONE where an export's server does not answer. */
export async function openSource(source: string, options: SourceOptions = {}): Promise<MemberDevice> {
  const { direct, conf, ...remote } = options;
  if (hasPaths(source)) return await openPaths(source, { ...remote, conf });
  if (isUri(source)) return await NbdDevice.open(source, remote);
  return await FileDevice.open(source, {
    readOnly: options.readOnly === true,
    direct: direct === true,
  });
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

/** For the locks on it, one for each path; it need not be open. */
export async function locksOf(source: string): Promise<readonly MemberFile[]> {
  if (!isUri(source)) return [{ path: source, identity: await identityOf(source) }];
  return urisOf(source).map((uri) => ({ path: source, identity: parseNbdUri(uri).identity }));
}

/** The same for what has been opened here; none for another device. */
export function locksOfDevice(device: Device): readonly MemberFile[] {
  const { name } = device;
  if (device instanceof FileDevice || device instanceof NbdDevice)
    return [{ path: name, identity: device.identity }];
  if (!(device instanceof MultipathDevice) || !isUri(name)) return [];
  return urisOf(name).map((uri) => ({ path: name, identity: parseNbdUri(uri).identity }));
}

/** `disk0` for `disk0.img`, the export or the socket of a URI; all of it where two would be called alike. */
export function memberNames(sources: readonly string[]): readonly string[] {
  const short = sources.map((source) =>
    isUri(source) ? shortNameOf(source) : basename(source).replace(/\.(img|raw|dd|bin)$/, ''),
  );
  return sources.map((source, index) => {
    const name = short[index] ?? source;
    return short.filter((other) => other === name).length === 1 ? name : source;
  });
}

function shortNameOf(source: string): string {
  const [first = source] = urisOf(source);
  return parseNbdUri(first).shortName;
}
