/**
 * What a manifest calls a member, and how one comes from there to a device: a path, relative to the folder where it can
 * be, or the URI of an NBD export, always written in the same way (nbd/uri.ts).
 *
 * A file is there or not. An export is asked: one that nobody answers for is missing like a disk that was pulled, and
 * whether the array can do without decides assembly.
 */
import { stat } from 'node:fs/promises';
import { basename, isAbsolute, join, relative, resolve } from 'node:path';
import { FileDevice } from '../device/file.ts';
import { RaidError } from '../errors.ts';
import { NbdDevice, type NbdOptions } from '../nbd/client.ts';
import { isUri, parseNbdUri } from '../nbd/uri.ts';
import { identityOf, type MemberFile } from './ownership.ts';

export type MemberDevice = FileDevice | NbdDevice;

export interface SourceOptions extends Pick<NbdOptions, 'readOnly' | 'connectMs' | 'timeoutMs'> {
  /** O_DIRECT, for files. */
  readonly direct?: boolean | undefined;
}

/** A path that leads there from anywhere, or a URI as it is always written. Refuses a URI that is none. */
export function wholeSource(text: string, folder?: string): string {
  if (isUri(text)) return parseNbdUri(text).text;
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
  const { direct, ...remote } = options;
  if (isUri(source)) return await NbdDevice.open(source, remote);
  return await FileDevice.open(source, {
    readOnly: options.readOnly === true,
    direct: direct === true,
  });
}

/** One that somebody has named just now: that it is not there is then a mistake in the call, and not a lost disk. */
export async function openNamed(source: string, options: SourceOptions = {}): Promise<MemberDevice> {
  try {
    return await openSource(source, options);
  } catch (error) {
    if (!(error instanceof RaidError) || error.code !== 'MEMBER_GONE' || !isUri(source)) throw error;
    throw new RaidError('BAD_ARGUMENT', error.message, { ...error.place, cause: error });
  }
}

/** For the lock on it; it need not be open. */
export async function lockOf(source: string): Promise<MemberFile> {
  const identity = isUri(source) ? parseNbdUri(source).identity : await identityOf(source);
  return { path: source, identity };
}

/** `disk0` for `disk0.img`, the export or the socket of a URI; all of it where two would be called alike. */
export function memberNames(sources: readonly string[]): readonly string[] {
  const short = sources.map((source) =>
    isUri(source) ? parseNbdUri(source).shortName : basename(source).replace(/\.(img|raw|dd|bin)$/, ''),
  );
  return sources.map((source, index) => {
    const name = short[index] ?? source;
    return short.filter((other) => other === name).length === 1 ? name : source;
  });
}
