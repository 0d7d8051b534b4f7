/** Snapshots next to plain copies: a history of requests that runs on both, and what must be true after it. */
import type { Device } from '../../lib/device/device.ts';
import { RaidError } from '../../lib/errors.ts';
import type { SnapshotOrigin } from '../../lib/snapshot/origin.ts';
import { type Random, randomBytes } from '../conformance/seed.ts';

export async function contentOf(device: Device): Promise<Buffer> {
  const bytes = Buffer.alloc(device.limits.sizeBytes, 0xa5);
  await device.read(0, bytes);
  return bytes;
}

export function expectSame(what: string, seen: Uint8Array, expected: Uint8Array): void {
  if (Buffer.compare(seen, expected) === 0) return;
  const at = seen.findIndex((byte, index) => byte !== expected[index]);
  throw new Error(`${what}: byte ${at} is ${seen[at]} and should be ${expected[at]}`);
}

/** The image of a snapshot; null where it is invalid, or becomes so while it is read: what is held leaves when it will. */
export async function imageOf(origin: SnapshotOrigin, name: string): Promise<Buffer | null> {
  let image: Buffer | null = null;
  const isThere = await unlessInvalid(async () => {
    await using snapshot = origin.openSnapshot(name);
    image = await contentOf(snapshot);
  });
  return isThere ? image : null;
}

/** False where the snapshot is, or becomes, invalid, and nothing was done. */
export async function unlessInvalid(request: () => Promise<void>): Promise<boolean> {
  try {
    await request();
    return true;
  } catch (cause) {
    if (cause instanceof RaidError && cause.code === 'REDUNDANCY_LOST') return false;
    throw cause;
  }
}

export async function codeOf(request: () => Promise<unknown>): Promise<string> {
  try {
    await request();
    return 'done';
  } catch (cause) {
    if (cause instanceof RaidError) return cause.code;
    throw cause;
  }
}

export interface Piece {
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
}

/** Whole blocks, mostly few, now and then many. */
export function randomPiece(random: Random, sizeBytes: number, blockBytes: number): Piece {
  const blocks = sizeBytes / blockBytes;
  const most = random(8) === 0 ? blocks : Math.min(blocks, 12);
  const first = random(blocks);
  const count = Math.min(1 + random(most), blocks - first);
  return { offsetBytes: first * blockBytes, bytes: randomBytes(random, count * blockBytes) };
}
