/**
 * A range of another device as a device of its own: a partition, or the data area of an array member behind its
 * superblock.
 *
 * Like every filter it owns what is below, and closing it closes that; `shared` is for several slices of one device,
 * whose owner then closes it.
 */
import { RaidError } from '../errors.ts';
import {
  Device,
  type DirectAccess,
  type Extent,
  type Limits,
  type WriteOptions,
  type ZeroOptions,
} from './device.ts';
import { InFlight } from './in-flight.ts';

export interface SliceOptions {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly name?: string;
  /** Default false: closing the slice closes what is below. */
  readonly shared?: boolean;
}

const fua: WriteOptions = { fua: true };

export class SliceDevice extends Device {
  override readonly name: string;
  override readonly limits: Limits;
  readonly #below: Device;
  readonly #startBytes: number;
  /** What a shared slice must wait for by itself when it closes; null where closing what is below does that. */
  readonly #inFlight: InFlight | null;

  constructor(below: Device, options: SliceOptions) {
    super();
    const { offsetBytes, lengthBytes } = options;
    const { sizeBytes, blockBytes, preferredBytes, readOnly } = below.limits;
    const fits =
      Number.isSafeInteger(offsetBytes) &&
      Number.isSafeInteger(lengthBytes) &&
      offsetBytes >= 0 &&
      lengthBytes > 0 &&
      lengthBytes <= sizeBytes - offsetBytes;
    if (!fits || offsetBytes % blockBytes !== 0 || lengthBytes % blockBytes !== 0) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${lengthBytes} bytes at ${offsetBytes} are no slice of ${below.name}: it has ${sizeBytes} bytes in blocks of ${blockBytes}`,
        { device: below.name, offsetBytes, lengthBytes },
      );
    }
    this.name = options.name ?? `${below.name}[${offsetBytes}+${lengthBytes}]`;
    this.limits = { sizeBytes: lengthBytes, blockBytes, preferredBytes, readOnly };
    this.#below = below;
    this.#startBytes = offsetBytes;
    this.#inFlight = options.shared === true ? new InFlight() : null;
  }

  override get direct(): DirectAccess | null {
    const below = this.isClosed ? null : this.#below.direct;
    return below === null ? null : { ...below, offsetBytes: below.offsetBytes + this.#startBytes };
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#track(() => this.#below.read(this.#startBytes + offsetBytes, targets));
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    durable: boolean,
  ): Promise<void> {
    return this.#track(() =>
      this.#below.write(this.#startBytes + offsetBytes, sources, durable ? fua : undefined),
    );
  }

  protected override doFlush(): Promise<void> {
    return this.#track(() => this.#below.flush());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#track(() => this.#below.discard(this.#startBytes + offsetBytes, lengthBytes));
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#track(() => this.#below.writeZeroes(this.#startBytes + offsetBytes, lengthBytes, options));
  }

  protected override async doBlockStatus(
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<readonly Extent[]> {
    const extents = await this.#track(() =>
      this.#below.blockStatus(this.#startBytes + offsetBytes, lengthBytes),
    );
    return extents.map((extent) => ({ ...extent, offsetBytes: extent.offsetBytes - this.#startBytes }));
  }

  /** What follows the slice belongs to somebody else. */
  protected override doResize(): Promise<void> {
    throw new RaidError('NOT_SUPPORTED', `${this.name} is a slice, whose size is fixed`, {
      device: this.name,
    });
  }

  protected override async doClose(): Promise<void> {
    if (this.#inFlight === null) await this.#below.close();
    else await this.#inFlight.whenIdle();
  }

  #track<T>(request: () => Promise<T>): Promise<T> {
    return this.#inFlight === null ? request() : this.#inFlight.run(request);
  }
}
