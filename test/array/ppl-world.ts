/**
 * A raid5 with partial parity logs on disks that lose power: what the array does is recorded write by write and flush by
 * flush, and then every moment is a power cut, with all that a disk may have kept of what was not flushed.
 */

import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, formArray, type ShapeOptions } from '../../lib/array/form.ts';
import { Device, type Extent, type Limits } from '../../lib/device/device.ts';
import type { Host } from '../../lib/host.ts';
import { seededRandom } from '../../lib/host.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../lib/units.ts';

export const CHUNK = 4 * KIB;

/** Sectors that differ from the image below, by number. */
type Sectors = ReadonlyMap<number, Uint8Array>;

export type Event =
  | {
      readonly disk: number;
      readonly kind: 'write';
      readonly offsetBytes: number;
      readonly bytes: Uint8Array;
    }
  | { readonly disk: number; readonly kind: 'flush' };

const nothing = new Uint8Array(SECTOR_BYTES);

export class CrashDisk extends Device {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct = null;
  readonly sectors: Map<number, Uint8Array>;
  readonly #index: number;
  readonly #events: Event[];
  /** Of writes, by where they go. */
  fails: (offsetBytes: number) => boolean = () => false;

  constructor(index: number, sizeBytes: number, events: Event[], sectors: Sectors = new Map()) {
    super();
    this.name = `d${index}`;
    this.limits = { sizeBytes, blockBytes: SECTOR_BYTES, preferredBytes: 4096, readOnly: false };
    this.#index = index;
    this.#events = events;
    this.sectors = new Map(sectors);
  }

  protected override async doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    let sector = offsetBytes / SECTOR_BYTES;
    for (const target of targets) {
      for (let at = 0; at < target.byteLength; at += SECTOR_BYTES, sector += 1)
        target.set(this.sectors.get(sector) ?? nothing, at);
    }
  }

  protected override async doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    const bytes = Uint8Array.from(sources.length === 1 ? sources[0]! : Buffer.concat(sources));
    // An answer comes later: others may begin meanwhile.
    await Promise.resolve();
    this.#events.push({ disk: this.#index, kind: 'write', offsetBytes, bytes });
    put(this.sectors, offsetBytes, bytes);
    if (fua) await this.doFlush();
  }

  protected override async doFlush(): Promise<void> {
    await Promise.resolve();
    this.#events.push({ disk: this.#index, kind: 'flush' });
  }

  protected override doDiscard(): Promise<void> {
    return Promise.resolve();
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: { fua: boolean },
  ): Promise<void> {
    return this.doWrite(offsetBytes, [new Uint8Array(lengthBytes)], options.fua);
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return Promise.resolve([{ offsetBytes, lengthBytes, allocated: true, zero: false }]);
  }

  protected override doResize(): Promise<void> {
    return Promise.reject(new Error('disks do not grow'));
  }

  protected override doClose(): Promise<void> {
    return Promise.resolve();
  }
}

export function put(sectors: Map<number, Uint8Array>, offsetBytes: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.byteLength; at += SECTOR_BYTES) {
    const part = bytes.subarray(at, at + SECTOR_BYTES);
    // A log is emptied with a MiB of zeros.
    if (Buffer.compare(part, nothing) === 0) sectors.delete((offsetBytes + at) / SECTOR_BYTES);
    else sectors.set((offsetBytes + at) / SECTOR_BYTES, part);
  }
}

/** Time stands still, so that nothing happens by itself. */
export function stillHost(seed = 1): Host {
  const random = seededRandom(seed);
  return {
    now: () => 0,
    wallClock: () => 1_700_000_000_000,
    sleep: () => new Promise(() => undefined),
    turn: (run) => setImmediate(run),
    random,
    randomBytes: (count) => Uint8Array.from({ length: count }, () => random(256)),
  } as Host;
}

export const DISK_BYTES = 2 * MIB + 4 * CHUNK;

export async function makeArray(
  disks: readonly Device[],
  shape: Partial<ShapeOptions> = {},
): Promise<RaidArray> {
  return await formArray(
    disks.map((device, index) => ({ device, name: device.name, identity: `disk ${index}` })),
    {
      name: 'logged',
      level: 5,
      chunk: CHUNK,
      consistencyPolicy: 'ppl',
      assumeClean: true,
      host: stillHost(),
      heapBytes: MIB,
      autoSync: false,
      ...shape,
    },
  );
}

export async function startAgain(
  disks: readonly Device[],
  options: { readOnly?: boolean; force?: boolean } = {},
): Promise<RaidArray> {
  const { array } = await assembleDevices(
    disks.map((device) => ({ device, name: device.name, identity: device.name })),
    { name: 'logged', run: true, host: stillHost(2), heapBytes: MIB, autoSync: false, ...options },
  );
  return array;
}

export async function contentOf(array: RaidArray): Promise<Uint8Array> {
  const bytes = new Uint8Array(array.limits.sizeBytes);
  await array.read(0, bytes);
  return bytes;
}
