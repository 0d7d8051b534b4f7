import { describe, expect, test } from 'vitest';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { SliceDevice } from '../../lib/device/slice.ts';
import { RaidError } from '../../lib/errors.ts';
import { KIB } from '../../lib/units.ts';

const badArgument = expect.objectContaining({ code: 'BAD_ARGUMENT' });

describe('MemoryDevice', () => {
  test('is done when the call returns', () => {
    const device = new MemoryDevice({ sizeBytes: 4096 });
    const source = new Uint8Array(16).fill(7);
    void device.write(100, source);
    source.fill(0);
    const seen = new Uint8Array(16);
    void device.read(100, seen);
    expect([...seen]).toEqual(new Array(16).fill(7));
  });

  test('opens memory again with what was in it', async () => {
    const first = new MemoryDevice({ sizeBytes: 4096 });
    await first.write(0, new Uint8Array(16).fill(7));
    await first.close();
    const second = new MemoryDevice({ sizeBytes: 4096, memory: first.memory });
    const seen = new Uint8Array(16);
    await second.read(0, seen);
    expect(seen[15]).toBe(7);
  });

  test('tells runs of zeros apart, page by page', async () => {
    const device = new MemoryDevice({ sizeBytes: 64 * KIB });
    await device.write(8 * KIB + 10, new Uint8Array(4 * KIB).fill(1));
    expect(await device.blockStatus(100, 40 * KIB)).toEqual([
      { offsetBytes: 100, lengthBytes: 8 * KIB - 100, allocated: true, zero: true },
      { offsetBytes: 8 * KIB, lengthBytes: 8 * KIB, allocated: true, zero: false },
      { offsetBytes: 16 * KIB, lengthBytes: 24 * KIB + 100, allocated: true, zero: true },
    ]);
  });

  test('grows as far as it was given room, and what it gains is zero', async () => {
    const device = new MemoryDevice({ sizeBytes: 8192, capacityBytes: 16384 });
    await device.write(0, new Uint8Array(8192).fill(1));
    await device.resize(4096);
    await device.resize(16384);
    const seen = new Uint8Array(12288).fill(1);
    await device.read(4096, seen);
    expect(seen.every((byte) => byte === 0)).toBe(true);
    await expect(device.resize(20480)).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
  });

  test('refuses a size that is not whole blocks or does not fit its memory', () => {
    expect(() => new MemoryDevice({ sizeBytes: 1000, blockBytes: 512 })).toThrow(RaidError);
    expect(() => new MemoryDevice({ sizeBytes: 1024, memory: new SharedArrayBuffer(512) })).toThrow(
      RaidError,
    );
  });
});

describe('SliceDevice', () => {
  test('reaches exactly its range of what is below, and lanes reach the same', async () => {
    const below = new MemoryDevice({ sizeBytes: 64 * KIB });
    const slice = new SliceDevice(new SliceDevice(below, { offsetBytes: 4096, lengthBytes: 32 * KIB }), {
      offsetBytes: 512,
      lengthBytes: 1024,
    });
    await slice.write(0, new Uint8Array(1024).fill(9));
    const bytes = new Uint8Array(below.memory);
    expect(bytes.indexOf(9)).toBe(4608);
    expect(bytes.lastIndexOf(9)).toBe(4608 + 1023);
    expect(slice.direct).toEqual({ kind: 'memory', memory: below.memory, offsetBytes: 4608 });
    expect(await slice.blockStatus(0, 1024)).toEqual([
      { offsetBytes: 0, lengthBytes: 1024, allocated: true, zero: false },
    ]);
  });

  test.each([
    [-512, 1024],
    [0, 0],
    [100, 512],
    [0, 100],
    [64 * KIB, 512],
    [512, 64 * KIB],
    [Number.NaN, 512],
    [0, Number.POSITIVE_INFINITY],
  ])('refuses the range %d + %d', (offsetBytes, lengthBytes) => {
    const below = new MemoryDevice({ sizeBytes: 64 * KIB, blockBytes: 512 });
    expect(() => new SliceDevice(below, { offsetBytes, lengthBytes })).toThrow(badArgument);
  });

  test('closes what is below, unless that is shared', async () => {
    const below = new MemoryDevice({ sizeBytes: 64 * KIB });
    const first = new SliceDevice(below, { offsetBytes: 0, lengthBytes: 4096, shared: true });
    const second = new SliceDevice(below, { offsetBytes: 4096, lengthBytes: 4096 });
    await first.close();
    expect(first.direct).toBeNull();
    expect(below.isClosed).toBe(false);
    await second.close();
    expect(below.isClosed).toBe(true);
  });
});
