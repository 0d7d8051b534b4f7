/**
 * A device that is only read, with some places of it as they should be: what a recovery would write to a disk that must
 * not be written to. The patches are few and small, and are kept in memory.
 */
import { type Device, type DirectAccess, type Extent, type Limits, ReadOnlyDevice } from './device.ts';

export interface Patch {
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
}

export class PatchDevice extends ReadOnlyDevice {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct: DirectAccess | null = null;
  readonly #below: Device;
  readonly #patches: readonly Patch[];

  /** Where patches overlap, the later one counts. */
  constructor(below: Device, patches: readonly Patch[]) {
    super();
    this.name = below.name;
    this.limits = { ...below.limits, readOnly: true };
    this.#below = below;
    this.#patches = patches;
  }

  protected override async doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    await this.#below.read(offsetBytes, targets);
    let start = offsetBytes;
    for (const target of targets) {
      for (const patch of this.#patches) {
        const from = Math.max(start, patch.offsetBytes);
        const to = Math.min(start + target.byteLength, patch.offsetBytes + patch.bytes.byteLength);
        if (from < to)
          target.set(patch.bytes.subarray(from - patch.offsetBytes, to - patch.offsetBytes), from - start);
      }
      start += target.byteLength;
    }
  }

  protected override doFlush(): Promise<void> {
    return this.#below.flush();
  }

  /** Whether a patch is all zeros is not worth knowing. */
  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return Promise.resolve([{ offsetBytes, lengthBytes, allocated: true, zero: false }]);
  }

  protected override doClose(): Promise<void> {
    return this.#below.close();
  }
}
