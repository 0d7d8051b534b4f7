/**
 * Memory that O_DIRECT takes. JavaScript cannot see an address, and a large ArrayBuffer from the allocator is 16 bytes
 * off a page (measured: EINVAL on ext4). WebAssembly memory is mapped by V8 itself and begins on a page, which is
 * the only alignment a program can rely on without an addon.
 *
 * One memory for the whole thread and not one a device: V8 reserves some 10 GB of address space for the guard regions
 * of each, and an array may have hundreds of members.
 *
 *   0        zeros, never written: what writeZeroes sends
 *   1 MiB    slots, through which buffers that are not aligned are bounced
 */
import { KIB, MIB } from '../units.ts';

const WASM_PAGE_BYTES = 64 * KIB;
export const ZEROS_BYTES = MIB;
export const SLOT_BYTES = 256 * KIB;

/**
 * libuv has four threads unless told otherwise, so more slots than a few times that would only be waiting elsewhere. A
 * request holds one slot at a time, so those who wait cannot wait for each other.
 */
const SLOT_COUNT = 16;

interface AlignedMemory {
  readonly zeros: Uint8Array;
  readonly free: Uint8Array[];
  readonly waiting: ((slot: Uint8Array) => void)[];
}

let lazy: AlignedMemory | null = null;

function memory(): AlignedMemory {
  if (lazy === null) {
    const pages = (ZEROS_BYTES + SLOT_COUNT * SLOT_BYTES) / WASM_PAGE_BYTES;
    const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages });
    const slot = (index: number) => new Uint8Array(buffer, ZEROS_BYTES + index * SLOT_BYTES, SLOT_BYTES);
    lazy = {
      zeros: new Uint8Array(buffer, 0, ZEROS_BYTES),
      free: Array.from({ length: SLOT_COUNT }, (_, index) => slot(index)),
      waiting: [],
    };
  }
  return lazy;
}

/** `ZEROS_BYTES` of zeros, for reading only. */
export function zeros(): Uint8Array {
  return memory().zeros;
}

/** Runs `work` with a page-aligned buffer of `SLOT_BYTES` that is its own until it settles; its content is arbitrary. */
export async function withSlot<T>(work: (slot: Uint8Array) => Promise<T>): Promise<T> {
  const { free, waiting } = memory();
  const slot = free.pop() ?? (await new Promise<Uint8Array>((resolve) => waiting.push(resolve)));
  try {
    return await work(slot);
  } finally {
    const next = waiting.shift();
    if (next === undefined) free.push(slot);
    else next(slot);
  }
}

/**
 * Whether every buffer begins and ends on a multiple of `blockBytes` in memory, as far as that can be known. The buffer of a
 * shared WebAssembly memory is the only SharedArrayBuffer that is born frozen (the JavaScript API of the threads
 * proposal demands it), which is how the engine's memory is recognised; everything else is taken for unaligned.
 */
export function areAligned(buffers: readonly Uint8Array[], blockBytes: number): boolean {
  return buffers.every(
    ({ buffer, byteOffset, byteLength }) =>
      byteOffset % blockBytes === 0 &&
      byteLength % blockBytes === 0 &&
      (buffer === lazy?.zeros.buffer ||
        (buffer instanceof SharedArrayBuffer &&
          Object.isFrozen(buffer) &&
          buffer.byteLength % WASM_PAGE_BYTES === 0)),
  );
}
