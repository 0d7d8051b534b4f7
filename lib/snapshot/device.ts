/**
 * A snapshot as a device: read-only, and the same bytes for ever, or an error. A writable clone of it is an `OverlayDevice`
 * over it (`ArraySnapshots.openClone`).
 *
 * Reading needs no lock. Before the first write to a chunk since the snapshot reaches the origin, the copy is in the history; so where,
 * after a chunk was read from the origin, the history still has no copy of it, no such write had begun. Where it has,
 * the chunk is read again from its slot. A snapshot that became invalid meanwhile is noticed at the same moment.
 *
 * Closing it leaves the snapshot and the origin open. While one is open the snapshot cannot be deleted.
 */
import { viewsOf } from '../device/buffers.ts';
import { type Device, type Extent, type Limits, ReadOnlyDevice, totalBytes } from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import { RaidError } from '../errors.ts';
import { roundDown } from '../units.ts';
import type { Copy } from './history.ts';
import type { SnapshotStore } from './store.ts';

/** Chunks of one read that are looked at together. */
const STRETCH_BYTES = 1024 * 1024;

export const INVALID_BECAUSE =
  'its store was full, or could not be written, and the origin went on; or something wrote to the origin past it';

export interface SnapshotDeviceParts {
  readonly origin: Device;
  readonly store: SnapshotStore;
  readonly id: number;
  readonly name: string;
  readonly onClose: () => void;
}

export class SnapshotDevice extends ReadOnlyDevice {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct = null;
  readonly #parts: SnapshotDeviceParts;
  readonly #inFlight = new InFlight();

  constructor(parts: SnapshotDeviceParts) {
    super();
    this.name = parts.name;
    this.limits = { ...parts.origin.limits, readOnly: true };
    this.#parts = parts;
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const endBytes = offsetBytes + totalBytes(targets);
    const { chunkBytes } = this.#parts.store.header;
    return this.#inFlight.run(async () => {
      for (let at = offsetBytes; at < endBytes; ) {
        const end = Math.min(endBytes, roundDown(at, chunkBytes) + Math.max(STRETCH_BYTES, chunkBytes));
        await this.#readStretch(at, viewsOf(targets, at - offsetBytes, end - at), end - at);
        at = end;
      }
    });
  }

  /** Nothing of it waits anywhere: what it reads was durable before there was a snapshot. */
  protected override doFlush(): Promise<void> {
    return Promise.resolve();
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    const { origin, store, id } = this.#parts;
    return this.#inFlight.run(async () => {
      const below = await origin.blockStatus(offsetBytes, lengthBytes);
      this.#checkValid();
      const extents: Extent[] = [];
      for (const extent of below) {
        const extentEnd = extent.offsetBytes + extent.lengthBytes;
        for (let at = extent.offsetBytes; at < extentEnd; ) {
          const end = Math.min(extentEnd, this.#nextChunk(at));
          const isCopied = store.history.lookup(id, this.#chunkOf(at)) !== null;
          append(extents, at, end, isCopied || extent.allocated, !isCopied && extent.zero);
          at = end;
        }
      }
      return extents;
    });
  }

  protected override async doClose(): Promise<void> {
    await this.#inFlight.whenIdle();
    this.#parts.onClose();
  }

  async #readStretch(
    offsetBytes: number,
    targets: readonly Uint8Array[],
    lengthBytes: number,
  ): Promise<void> {
    const { origin, store, id } = this.#parts;
    const { history } = store;
    const end = offsetBytes + lengthBytes;
    this.#checkValid();
    const copied: number[] = [];
    const shown: number[] = [];
    const reads: Promise<void>[] = [];
    for (let at = offsetBytes; at < end; ) {
      const isCopied = history.lookup(id, this.#chunkOf(at)) !== null;
      let stop = at;
      while (stop < end && (history.lookup(id, this.#chunkOf(stop)) !== null) === isCopied) {
        (isCopied ? copied : shown).push(stop);
        stop = Math.min(end, this.#nextChunk(stop));
      }
      if (!isCopied) reads.push(origin.read(at, viewsOf(targets, at - offsetBytes, stop - at)));
      at = stop;
    }
    const outcomes = await Promise.allSettled(reads);
    this.#checkValid();
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
    for (const at of shown) if (history.lookup(id, this.#chunkOf(at)) !== null) copied.push(at);
    for (const at of copied) {
      const length = Math.min(end, this.#nextChunk(at)) - at;
      await this.#readCopy(at, viewsOf(targets, at - offsetBytes, length));
    }
  }

  async #readCopy(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const { store, id } = this.#parts;
    const chunk = this.#chunkOf(offsetBytes);
    this.#checkValid();
    const bytes = new Uint8Array(store.header.chunkBytes);
    const copy = store.history.lookup(id, chunk) as Copy | 'lost';
    if (copy === 'lost') {
      throw new RaidError(
        'MEDIUM_ERROR',
        `${this.name}: what was at ${offsetBytes} could not be read any more when it was overwritten`,
        { device: this.name, offsetBytes, lengthBytes: totalBytes(targets) },
      );
    }
    const isWhole = await store.readSlot(copy, bytes);
    this.#checkValid();
    if (!isWhole) {
      throw new RaidError(
        'MEDIUM_ERROR',
        `${this.name}: what ${store.name} holds at ${offsetBytes} is not what was put there`,
        { device: this.name, offsetBytes, lengthBytes: totalBytes(targets) },
      );
    }
    let from = offsetBytes - chunk * store.header.chunkBytes;
    for (const target of targets) {
      target.set(bytes.subarray(from, from + target.byteLength));
      from += target.byteLength;
    }
  }

  #chunkOf(offsetBytes: number): number {
    return Math.floor(offsetBytes / this.#parts.store.header.chunkBytes);
  }

  #nextChunk(offsetBytes: number): number {
    return (this.#chunkOf(offsetBytes) + 1) * this.#parts.store.header.chunkBytes;
  }

  #checkValid(): void {
    const { store, id } = this.#parts;
    if (store.history.isValid(id)) return;
    throw new RaidError('REDUNDANCY_LOST', `${this.name} is invalid: ${INVALID_BECAUSE}`, {
      device: this.name,
    });
  }
}

function append(extents: Extent[], start: number, end: number, allocated: boolean, zero: boolean): void {
  const last = extents.at(-1);
  if (last !== undefined && last.allocated === allocated && last.zero === zero) {
    extents[extents.length - 1] = { ...last, lengthBytes: end - last.offsetBytes };
  } else {
    extents.push({ offsetBytes: start, lengthBytes: end - start, allocated, zero });
  }
}
