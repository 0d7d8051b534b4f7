/**
 * The copy of a disk that could not be read everywhere, as GNU ddrescue makes it: an image, and a map of what of it was read. The rest of the
 * image is zeros that nobody wrote, or not there. Here they are what they were on the disk: sectors that cannot be read, which an array computes from
 * its other members. So several disks, each broken elsewhere, are as good as whole ones.
 *
 * The map is text: lines that begin with `#`, a line with the state of the copy, and then what is known of each part,
 *
 *   0x00117000  0x00000200  -       where it begins, how long it is, and what became of it; only `+` was read
 *
 * in bytes, decimal, octal (0...) or hexadecimal. What no line speaks of was not read.
 *
 * Read-only: what is written would have to be noted in the map, which belongs to somebody else.
 */
import { open, readdir, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { RaidError } from '../errors.ts';
import { roundDown, SECTOR_BYTES } from '../units.ts';
import { type Extent, type Limits, ReadOnlyDevice } from './device.ts';
import { errnoName, errorFromErrno } from './errno.ts';
import type { FileDevice } from './file.ts';

export interface UnreadRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

const HEADER = /^# (Mapfile|Rescue Logfile)\. Created by GNU ddrescue/;
const HEADER_BYTES = 64;
/** After the name of the image, and in place of its ending. */
const ENDINGS = ['.map', '.mapfile', '.log'];
const IMAGE_ENDING = /\.(img|raw|dd|bin)$/;
/** As the manual of ddrescue calls it: it may be that of another image. */
const USUAL_NAME = 'mapfile';
/** Places in the map are those on the disk: with this, others in the image. */
const MOVES = /^# Command line: .*\s(-[A-Za-z]*o|--o)/m;

export interface RescueMap {
  readonly path: string;
  /** What the image would hold if all had been read: copies end where the last part was read. */
  readonly sizeBytes: number;
  /** In order, and apart. */
  readonly unread: readonly UnreadRange[];
}

/** The map that lies beside an image, or beside the file that its name leads to; null where there is none. More than one is for a person. */
export async function findRescueMap(imagePath: string, imageBytes: number): Promise<RescueMap | null> {
  const found: RescueMap[] = [];
  const images = [imagePath, await realpath(imagePath).catch(() => imagePath)];
  for (const path of namesOf(images)) {
    const text = await textOf(path);
    if (text === null) continue;
    if (basename(path) === USUAL_NAME && (await isOfAnother(text, path, images))) continue;
    const map = MOVES.test(text) ? null : mapIn(text, imageBytes);
    if (map === null) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${path} is a map of ddrescue that cannot be followed${MOVES.test(text) ? ': places in the image are others than on the disk (-o)' : ''}`,
        { device: path },
      );
    }
    found.push({ path, ...map });
  }
  const [first = null, second] = found;
  if (second === undefined) return first;
  throw new RaidError(
    'BAD_ARGUMENT',
    `${first?.path} and ${second.path} are both maps of ${imagePath}; leave the right one there`,
    { device: imagePath },
  );
}

/** Which image it is of only its command line tells. Where it names none that is here, an image may have been renamed. */
async function isOfAnother(text: string, path: string, images: readonly string[]): Promise<boolean> {
  if (images.some((image) => text.includes(basename(image)))) return false;
  const others = await readdir(dirname(path)).catch(() => []);
  if (others.some((name) => name !== USUAL_NAME && text.includes(name))) return true;
  throw new RaidError(
    'BAD_ARGUMENT',
    `${path} is a map of ddrescue, and of none of the images beside it; call it like its image, with .map behind`,
    { device: path },
  );
}

function namesOf(images: readonly string[]): ReadonlySet<string> {
  const stems = images.flatMap((image) => [image, image.replace(IMAGE_ENDING, '')]);
  const names = [
    ...stems.flatMap((stem) => ENDINGS.map((ending) => `${stem}${ending}`)),
    ...images.map((image) => join(dirname(image), USUAL_NAME)),
  ];
  return new Set(names.map((name) => resolve(name)).filter((name) => !images.includes(name)));
}

/** Null where there is no map. One that is there and cannot be read is an error: without it zeros would be data. */
async function textOf(path: string): Promise<string | null> {
  try {
    if (!(await stat(path)).isFile()) return null;
    const file = await open(path, 'r');
    try {
      const head = Buffer.alloc(HEADER_BYTES);
      const { bytesRead } = await file.read(head, 0, HEADER_BYTES, 0);
      if (!HEADER.test(head.toString('latin1', 0, bytesRead))) return null;
      return await file.readFile('latin1');
    } finally {
      await file.close();
    }
  } catch (cause) {
    const name = errnoName(cause);
    if (name === 'ENOENT' || name === 'ENOTDIR') return null;
    throw errorFromErrno(cause, 'open', { device: path });
  }
}

/** Null where the text is no map. What lies behind the end of the image was not read, whatever the map says. */
export function mapIn(text: string, imageBytes: number): Omit<RescueMap, 'path'> | null {
  const lines = text.split('\n').map((line) => line.replace(/#.*/, '').trim());
  const [state, ...parts] = lines.filter((line) => line !== '');
  if (state === undefined) return null;
  const read: { readonly from: number; readonly to: number }[] = [];
  let sizeBytes = imageBytes;
  for (const part of parts) {
    const [position = '', size = '', status = '', ...others] = part.split(/\s+/);
    const [from, length] = [numberOf(position), numberOf(size)];
    if (from === null || length === null || !/^[?*/+-]$/.test(status) || others.length > 0) return null;
    const to = from + length;
    sizeBytes = Math.max(sizeBytes, roundDown(to, SECTOR_BYTES));
    if (status === '+' && from < imageBytes) read.push({ from, to: Math.min(to, imageBytes) });
  }
  const unread: UnreadRange[] = [];
  let at = 0;
  const skip = (to: number): void => {
    const end = Math.min(to, sizeBytes);
    if (end > at) unread.push({ offsetBytes: at, lengthBytes: end - at });
  };
  for (const { from, to } of read.sort((left, right) => left.from - right.from)) {
    skip(from);
    at = Math.max(at, to);
  }
  skip(sizeBytes);
  return { sizeBytes, unread };
}

function numberOf(text: string): number | null {
  const digits = /^0[0-7]+$/.test(text) ? `0o${text.slice(1)}` : text;
  const value = /^(0x[0-9a-fA-F]+|0o[0-7]+|0|[1-9][0-9]*)$/.test(digits) ? Number(digits) : Number.NaN;
  return Number.isSafeInteger(value) ? value : null;
}

export class RescuedDevice extends ReadOnlyDevice {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct = null;
  readonly identity: string;
  readonly map: RescueMap;
  readonly #below: FileDevice;

  constructor(below: FileDevice, map: RescueMap) {
    super();
    this.name = below.name;
    this.limits = { ...below.limits, sizeBytes: map.sizeBytes, readOnly: true };
    this.identity = below.identity;
    this.map = map;
    this.#below = below;
  }

  protected override async doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const endBytes = offsetBytes + targets.reduce((sum, target) => sum + target.byteLength, 0);
    const hole = firstBehind(this.map.unread, offsetBytes);
    if (hole !== undefined && hole.offsetBytes < endBytes) {
      throw new RaidError(
        'MEDIUM_ERROR',
        `${this.name}: ${hole.lengthBytes} bytes at ${hole.offsetBytes} could not be read from the disk (${this.map.path})`,
        { device: this.name, offsetBytes, lengthBytes: endBytes - offsetBytes },
      );
    }
    await this.#below.read(offsetBytes, targets);
  }

  protected override doFlush(): Promise<void> {
    return Promise.resolve();
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return Promise.resolve([{ offsetBytes, lengthBytes, allocated: true, zero: false }]);
  }

  protected override doClose(): Promise<void> {
    return this.#below.close();
  }
}

/** Of a part of the image: how much was not read. */
export function unreadBytes({ unread }: RescueMap, offsetBytes: number, lengthBytes: number): number {
  const endBytes = offsetBytes + lengthBytes;
  return unread.reduce((sum, range) => {
    const from = Math.max(offsetBytes, range.offsetBytes);
    const to = Math.min(endBytes, range.offsetBytes + range.lengthBytes);
    return sum + Math.max(0, to - from);
  }, 0);
}

/** The first that does not end before this place. */
function firstBehind(ranges: readonly UnreadRange[], offsetBytes: number): UnreadRange | undefined {
  let [low, high] = [0, ranges.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    const { offsetBytes: start, lengthBytes } = ranges[middle]!;
    if (start + lengthBytes > offsetBytes) high = middle;
    else low = middle + 1;
  }
  return ranges[low];
}
