/**
 * What a device should hold, as plain bytes: the oracle of the conformance suite.
 *
 * A discarded block is *open*: it reads as it was or as zeros, and the first look at it decides which for good. So the
 * model keeps a flag for each block, and looking is what clears it.
 */
import type { Extent } from '../../lib/device/device.ts';

export class Model {
  /** Where on the device the model begins. */
  readonly startBytes: number;
  readonly blockBytes: number;
  readonly bytes: Buffer;
  readonly #open: Uint8Array;

  constructor(startBytes: number, blockBytes: number, content: Uint8Array) {
    this.startBytes = startBytes;
    this.blockBytes = blockBytes;
    this.bytes = Buffer.from(content);
    this.#open = new Uint8Array(content.byteLength / blockBytes);
  }

  get lengthBytes(): number {
    return this.bytes.byteLength;
  }

  write(offsetBytes: number, data: Uint8Array): void {
    const start = offsetBytes - this.startBytes;
    this.bytes.set(data, start);
    this.#open.fill(0, start / this.blockBytes, (start + data.byteLength) / this.blockBytes);
  }

  zero(offsetBytes: number, lengthBytes: number): void {
    const start = offsetBytes - this.startBytes;
    this.bytes.fill(0, start, start + lengthBytes);
    this.#open.fill(0, start / this.blockBytes, (start + lengthBytes) / this.blockBytes);
  }

  discard(offsetBytes: number, lengthBytes: number): void {
    const start = offsetBytes - this.startBytes;
    this.#open.fill(1, start / this.blockBytes, (start + lengthBytes) / this.blockBytes);
  }

  /** Throws unless `seen` is what the range may read as; pins what was open. */
  look(offsetBytes: number, seen: Uint8Array): void {
    const start = offsetBytes - this.startBytes;
    const { blockBytes } = this;
    const end = (start + seen.byteLength) / blockBytes;
    let block = this.#open.indexOf(1, start / blockBytes);
    while (block >= 0 && block < end) {
      const at = block * blockBytes;
      if (isZero(seen, at - start, blockBytes)) this.bytes.fill(0, at, at + blockBytes);
      this.#open[block] = 0;
      block = this.#open[block + 1] === 1 ? block + 1 : this.#open.indexOf(1, block + 1);
    }
    this.#expectSame(start, seen);
  }

  /** Throws unless the extents cover the range exactly, in order, unlike neighbours, and call zero only what is. */
  lookAtExtents(offsetBytes: number, lengthBytes: number, extents: readonly Extent[]): void {
    checkExtents(offsetBytes, lengthBytes, this.blockBytes, extents);
    for (const extent of extents) {
      if (extent.zero) this.look(extent.offsetBytes, new Uint8Array(extent.lengthBytes));
    }
  }

  #expectSame(start: number, seen: Uint8Array): void {
    if (this.bytes.compare(seen, 0, seen.byteLength, start, start + seen.byteLength) === 0) return;
    const index = seen.findIndex((byte, position) => byte !== this.bytes[start + position]);
    const wrong = seen.reduce(
      (sum, byte, position) => sum + (byte === this.bytes[start + position] ? 0 : 1),
      0,
    );
    throw new Error(
      `byte ${this.startBytes + start + index} is ${seen[index]} and should be ${this.bytes[start + index]}; ` +
        `${wrong} of ${seen.byteLength} bytes at ${this.startBytes + start} are wrong`,
    );
  }
}

function isZero(bytes: Uint8Array, offset: number, length: number): boolean {
  for (let index = offset; index < offset + length; index += 1) if (bytes[index] !== 0) return false;
  return true;
}

export function checkExtents(
  offsetBytes: number,
  lengthBytes: number,
  blockBytes: number,
  extents: readonly Extent[],
): void {
  let position = offsetBytes;
  let before: Extent | undefined;
  for (const extent of extents) {
    const text = JSON.stringify(extent);
    if (extent.offsetBytes !== position) throw new Error(`${text} should begin at ${position}`);
    if (!(extent.lengthBytes > 0)) throw new Error(`${text} is empty`);
    if (extent.lengthBytes % blockBytes !== 0)
      throw new Error(`${text} is not whole blocks of ${blockBytes}`);
    if (before?.allocated === extent.allocated && before.zero === extent.zero) {
      throw new Error(`${text} is like its neighbour ${JSON.stringify(before)}`);
    }
    position += extent.lengthBytes;
    before = extent;
  }
  if (position !== offsetBytes + lengthBytes) {
    throw new Error(`the extents end at ${position}, the range at ${offsetBytes + lengthBytes}`);
  }
}
