/**
 * A device in shared memory, for tests, for the simulator, and wherever a disk would only be in the way. Lanes reach
 * it as they reach a file, through `direct`.
 *
 * Every operation is done when the call returns, and its promise is resolved already: buffers are copied at the call,
 * so what the caller does to them afterwards no longer matters.
 */
import { RaidError } from '../errors.ts';
import { KIB, roundUp } from '../units.ts';
import { Device, type DirectAccess, type Extent, type Limits, type ZeroOptions } from './device.ts';

export interface MemoryOptions {
  readonly sizeBytes: number;
  readonly name?: string;
  readonly blockBytes?: number;
  readonly readOnly?: boolean;
  /** How far `resize` can grow it (default: not at all). */
  readonly capacityBytes?: number;
  /** Content that outlives this device, as a disk outlives the process that had it open; by default new zeros. */
  readonly memory?: SharedArrayBuffer;
}

const PAGE_BYTES = 4 * KIB;
const zeroPage = Buffer.alloc(PAGE_BYTES);
const done = Promise.resolve();

export class MemoryDevice extends Device {
  override readonly name: string;
  readonly memory: SharedArrayBuffer;
  readonly #bytes: Buffer;
  #limits: Limits;

  constructor(options: MemoryOptions) {
    super();
    const { sizeBytes, blockBytes = 1, readOnly = false } = options;
    this.name = options.name ?? 'memory';
    this.memory = options.memory ?? new SharedArrayBuffer(options.capacityBytes ?? sizeBytes);
    if (sizeBytes % blockBytes !== 0 || sizeBytes > this.memory.byteLength) {
      throw new RaidError('BAD_ARGUMENT', `${this.name}: ${sizeBytes} is not a size that it can have`, {
        device: this.name,
      });
    }
    this.#bytes = Buffer.from(this.memory);
    const preferredBytes = roundUp(PAGE_BYTES, blockBytes);
    this.#limits = { sizeBytes, blockBytes, preferredBytes, readOnly };
  }

  override get limits(): Limits {
    return this.#limits;
  }

  override get direct(): DirectAccess | null {
    return this.isClosed ? null : { kind: 'memory', memory: this.memory, offsetBytes: 0 };
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    let position = offsetBytes;
    for (const target of targets) {
      target.set(this.#bytes.subarray(position, position + target.byteLength));
      position += target.byteLength;
    }
    return done;
  }

  protected override doWrite(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    let position = offsetBytes;
    for (const source of sources) {
      this.#bytes.set(source, position);
      position += source.byteLength;
    }
    return done;
  }

  protected override doFlush(): Promise<void> {
    return done;
  }

  /** Zeros, and not "as it was": whoever relies on discarded content should find out here. */
  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
    return done;
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    _options: Required<ZeroOptions>,
  ): Promise<void> {
    this.#bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
    return done;
  }

  /** Looks at the bytes, page by page: a page is told apart from zeros at the speed of memory. */
  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    const extents: Extent[] = [];
    const end = offsetBytes + lengthBytes;
    const stepBytes = this.#limits.preferredBytes;
    let start = offsetBytes;
    let zero = false;
    for (let position = offsetBytes; position < end; ) {
      const next = Math.min(end, position - (position % stepBytes) + stepBytes);
      const isZero = this.#isZero(position, next);
      if (position > start && isZero !== zero) {
        extents.push({ offsetBytes: start, lengthBytes: position - start, allocated: true, zero });
        start = position;
      }
      zero = isZero;
      position = next;
    }
    extents.push({ offsetBytes: start, lengthBytes: end - start, allocated: true, zero });
    return Promise.resolve(extents);
  }

  protected override doResize(sizeBytes: number): Promise<void> {
    if (sizeBytes > this.memory.byteLength) {
      throw new RaidError(
        'NOT_SUPPORTED',
        `${this.name} was made with room for ${this.memory.byteLength} bytes, not ${sizeBytes}`,
        { device: this.name },
      );
    }
    this.#bytes.fill(0, Math.min(sizeBytes, this.#limits.sizeBytes));
    this.#limits = { ...this.#limits, sizeBytes };
    return done;
  }

  protected override doClose(): Promise<void> {
    return done;
  }

  #isZero(start: number, end: number): boolean {
    for (let position = start; position < end; position += PAGE_BYTES) {
      const stop = Math.min(end, position + PAGE_BYTES);
      if (this.#bytes.compare(zeroPage, 0, stop - position, position, stop) !== 0) return false;
    }
    return true;
  }
}
