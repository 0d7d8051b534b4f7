/**
 * The suite itself under test: every device here has one flaw, and some check must notice. A check that no flaw can
 * make fail would be decoration.
 */
import { describe, expect, test } from 'vitest';
import type { Device, Extent, Limits } from '../../lib/device/device.ts';
import { FaultDevice, type FaultRule } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { KIB } from '../../lib/units.ts';
import { type Capabilities, checksFor, runCheck } from './suite.ts';

/** Fixed: whether the suite notices a flaw must not depend on the run. */
const CANARY_SEED = 1;

const options = { sizeBytes: 128 * KIB, blockBytes: 512, capacityBytes: 256 * KIB };
const capabilities: Capabilities = { copies: true, resize: true };

class FillsFirstBuffer extends MemoryDevice {
  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return super.doRead(offsetBytes, targets.slice(0, 1));
  }
}
class ScribblesOnSources extends MemoryDevice {
  protected override async doWrite(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    await super.doWrite(offsetBytes, sources);
    for (const source of sources) source.fill(0);
  }
}
class WritesLater extends MemoryDevice {
  protected override async doWrite(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    await Promise.resolve();
    await super.doWrite(offsetBytes, sources);
  }
}
class MixesBlocks extends MemoryDevice {
  protected override async doWrite(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    let position = offsetBytes;
    for (const source of sources) {
      for (let done = 0; done < source.byteLength; done += 100) {
        const part = source.subarray(done, done + 100);
        await super.doWrite(position + done, [part]);
      }
      position += source.byteLength;
    }
  }
}
class OverrunsZeroes extends MemoryDevice {
  protected override doWriteZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    return super.doDiscard(offsetBytes, Math.min(lengthBytes + 512, this.limits.sizeBytes - offsetBytes));
  }
}
class KeepsSmallZeroes extends MemoryDevice {
  protected override async doWriteZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    if (lengthBytes > 512) await super.doDiscard(offsetBytes, lengthBytes);
  }
}
class DiscardsToGarbage extends MemoryDevice {
  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return super.doWrite(offsetBytes, [new Uint8Array(lengthBytes).fill(0xff)]);
  }
}
class DiscardsHalfABlock extends MemoryDevice {
  protected override doDiscard(offsetBytes: number): Promise<void> {
    return super.doDiscard(offsetBytes, 256);
  }
}
class DiscardsLate extends MemoryDevice {
  #later: readonly [number, number] | null = null;
  protected override async doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#later = [offsetBytes, lengthBytes];
  }
  protected override async doFlush(): Promise<void> {
    if (this.#later !== null) await super.doDiscard(...this.#later);
    this.#later = null;
  }
}
class CallsEverythingZero extends MemoryDevice {
  protected override async doBlockStatus(
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<readonly Extent[]> {
    return [{ offsetBytes, lengthBytes, allocated: false, zero: true }];
  }
}
class SplitsExtents extends MemoryDevice {
  protected override async doBlockStatus(
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<readonly Extent[]> {
    const half = lengthBytes - 512;
    const kind = { allocated: true, zero: false };
    if (half === 0) return [{ offsetBytes, lengthBytes, ...kind }];
    return [
      { offsetBytes, lengthBytes: half, ...kind },
      { offsetBytes: offsetBytes + half, lengthBytes: 512, ...kind },
    ];
  }
}
class CoversTooMuch extends MemoryDevice {
  protected override async doBlockStatus(
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<readonly Extent[]> {
    return [{ offsetBytes, lengthBytes: lengthBytes + 512, allocated: true, zero: false }];
  }
}
class ClosesUnderRequests extends MemoryDevice {
  protected override async doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    for (let turn = 0; turn < 20; turn += 1) await Promise.resolve();
    await super.doRead(offsetBytes, targets);
  }
}
class Throws extends MemoryDevice {
  override read(): Promise<void> {
    throw new Error('not a promise');
  }
}
class NeverRefuses extends MemoryDevice {
  override writeZeroes(): Promise<void> {
    return Promise.resolve();
  }
}
class ForgetsItsSize extends MemoryDevice {
  protected override async doResize(): Promise<void> {}
}
class LosesTheEnd extends MemoryDevice {
  protected override async doResize(sizeBytes: number): Promise<void> {
    await super.doResize(512);
    await super.doResize(sizeBytes);
  }
}
class HasOddLimits extends MemoryDevice {
  override get limits(): Limits {
    return { ...super.limits, preferredBytes: 1000 };
  }
}
class FailsFlushes extends MemoryDevice {
  protected override doFlush(): Promise<void> {
    return Promise.reject(new Error('no'));
  }
}

const flawed: readonly (new (made: typeof options) => Device)[] = [
  FillsFirstBuffer,
  ScribblesOnSources,
  WritesLater,
  MixesBlocks,
  OverrunsZeroes,
  KeepsSmallZeroes,
  DiscardsToGarbage,
  DiscardsHalfABlock,
  DiscardsLate,
  CallsEverythingZero,
  SplitsExtents,
  CoversTooMuch,
  ClosesUnderRequests,
  Throws,
  NeverRefuses,
  ForgetsItsSize,
  LosesTheEnd,
  HasOddLimits,
  FailsFlushes,
];

const faulty: readonly FaultRule[] = [
  { on: 'write', when: { every: 9 }, fault: { kind: 'lost' } },
  { on: 'write', when: { every: 9 }, fault: { kind: 'misdirected', byBytes: 512 } },
  { on: 'read', when: { every: 9 }, fault: { kind: 'misdirected', byBytes: -512 } },
  { on: 'read', when: { every: 9 }, fault: { kind: 'flip', mask: 0x80 } },
  { on: 'write', when: { nth: 5 }, fault: { kind: 'error', code: 'WRITE_FAILED' } },
];

async function failuresOf(make: () => Device): Promise<string[]> {
  const failed: string[] = [];
  for (const check of checksFor(capabilities)) {
    await runCheck(check, async () => ({ device: make() }), capabilities, CANARY_SEED).catch(() =>
      failed.push(check.claim),
    );
  }
  return failed;
}

describe('the conformance suite', () => {
  test('finds nothing wrong with a sound device', async () => {
    expect(await failuresOf(() => new MemoryDevice(options))).toEqual([]);
  });

  for (const Flawed of flawed) {
    test(`notices a device that is ${Flawed.name}`, async () => {
      expect(await failuresOf(() => new Flawed(options))).not.toEqual([]);
    });
  }

  for (const rule of faulty) {
    test(`notices ${JSON.stringify(rule)}`, async () => {
      expect(
        await failuresOf(() => new FaultDevice(new MemoryDevice(options), { rules: [rule] })),
      ).not.toEqual([]);
    });
  }
});
