/**
 * The copy of a disk that could not be read everywhere, as GNU ddrescue makes it: an image, and a map of what of it was read. The rest of the
 * image are zeros that nobody wrote. Here they are what they were on the disk: sectors that cannot be read, which an array computes from
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
import { readFile } from 'node:fs/promises';
import { RaidError } from '../errors.ts';
import { Device, type Extent, type Limits } from './device.ts';
import type { FileDevice } from './file.ts';

export interface UnreadRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

const HEADER = /^# (Mapfile|Rescue Logfile)\. Created by GNU ddrescue/;
/** After the name of the image, and in place of its ending. */
const ENDINGS = ['.map', '.mapfile', '.log'];
const IMAGE_ENDING = /\.(img|raw|dd|bin)$/;

export interface RescueMap {
  readonly path: string;
  /** In order, and apart. */
  readonly unread: readonly UnreadRange[];
}

/** The map that lies beside an image, by the names that ddrescue's manual gives them; null where there is none. */
export async function findRescueMap(imagePath: string, sizeBytes: number): Promise<RescueMap | null> {
  const stems = new Set([imagePath, imagePath.replace(IMAGE_ENDING, '')]);
  for (const path of [...stems].flatMap((stem) => ENDINGS.map((ending) => `${stem}${ending}`))) {
    const text = path === imagePath ? null : await readFile(path, 'latin1').catch(() => null);
    if (text === null || !HEADER.test(text)) continue;
    const unread = unreadIn(text, sizeBytes);
    if (unread === null)
      throw new RaidError('BAD_ARGUMENT', `${path} is a map of ddrescue, and cannot be understood`, {
        device: path,
      });
    return { path, unread };
  }
  return null;
}

/** Null where the text is no map. */
export function unreadIn(text: string, sizeBytes: number): readonly UnreadRange[] | null {
  const lines = text.split('\n').map((line) => line.replace(/#.*/, '').trim());
  const [state, ...parts] = lines.filter((line) => line !== '');
  if (state === undefined) return null;
  const read: { readonly from: number; readonly to: number }[] = [];
  for (const part of parts) {
    const [position = '', size = '', status = '', ...others] = part.split(/\s+/);
    const [from, length] = [numberOf(position), numberOf(size)];
    if (from === null || length === null || !/^[?*/+-]$/.test(status) || others.length > 0) return null;
    if (status === '+') read.push({ from, to: from + length });
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
  return unread;
}

function numberOf(text: string): number | null {
  const digits = /^0[0-7]+$/.test(text) ? `0o${text.slice(1)}` : text;
  const value = /^(0x[0-9a-fA-F]+|0o[0-7]+|0|[1-9][0-9]*)$/.test(digits) ? Number(digits) : Number.NaN;
  return Number.isSafeInteger(value) ? value : null;
}

export class RescuedDevice extends Device {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct = null;
  readonly identity: string;
  readonly map: RescueMap;
  readonly #below: FileDevice;

  constructor(below: FileDevice, map: RescueMap) {
    super();
    this.name = below.name;
    this.limits = { ...below.limits, readOnly: true };
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

  protected override doWrite(): Promise<void> {
    return Promise.reject(this.#refusal());
  }

  protected override doFlush(): Promise<void> {
    return Promise.resolve();
  }

  protected override doDiscard(): Promise<void> {
    return Promise.reject(this.#refusal());
  }

  protected override doWriteZeroes(): Promise<void> {
    return Promise.reject(this.#refusal());
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return Promise.resolve([{ offsetBytes, lengthBytes, allocated: true, zero: false }]);
  }

  protected override doResize(): Promise<void> {
    return Promise.reject(this.#refusal());
  }

  protected override doClose(): Promise<void> {
    return this.#below.close();
  }

  #refusal(): RaidError {
    return new RaidError('READ_ONLY', `${this.name} is what was saved of a disk, and is only read`, {
      device: this.name,
    });
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
