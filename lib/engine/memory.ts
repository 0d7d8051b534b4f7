/**
 * The one block of memory that everything shares: main thread, lanes, SIMD kernels and file I/O all work in it in place.
 *
 *   0        64 KiB of nothing, so that address 0 means "none" and a stray small address hits no data
 *   64 KiB   the state of the partial parity log, and the headers that are being written to it
 *   384 KiB  for each lane (the main thread counts as one, the last): a control block and scratch memory
 *   ...      the heap: buffers of requests, handed out by `Arena`
 *
 * Only the main thread allocates. A lane reads and writes where a job tells it to, and in its own scratch.
 *
 * The pages are virtual until touched: a 16 MiB scratch costs nothing until a degraded 16 MiB stripe needs it.
 */
import { assert } from '../errors.ts';
import { MIB, roundUp } from '../units.ts';

const WASM_PAGE_BYTES = 65536;
export const PAGE_BYTES = 4096;

/** Rings, the commit record and the kernels' pointer table of one lane; laid out in ring.ts. */
export const CONTROL_BYTES = 128 * 1024;
export const SCRATCH_BYTES = 16 * MIB;
const LANE_BYTES = CONTROL_BYTES + SCRATCH_BYTES;

/** As in Linux. */
export const LOG_MEMBERS = 64;
export const LOG_ADDRESS = WASM_PAGE_BYTES;
const LOG_BYTES = WASM_PAGE_BYTES + LOG_MEMBERS * PAGE_BYTES;
const LANES_ADDRESS = LOG_ADDRESS + LOG_BYTES;

/** Where things are. Plain data: it crosses to the lanes as it is. */
export interface MemoryMap {
  readonly memory: WebAssembly.Memory;
  readonly laneCount: number;
  readonly heapAddress: number;
  readonly heapBytes: number;
}

export function memoryBytesFor(laneCount: number, heapBytes: number): number {
  return LANES_ADDRESS + (laneCount + 1) * LANE_BYTES + roundUp(heapBytes, MIB);
}

/** The slot after the last lane belongs to the main thread, which runs plans itself when that is faster. */
export function createMemory(laneCount: number, heapBytes: number): MemoryMap {
  const heapAddress = LANES_ADDRESS + (laneCount + 1) * LANE_BYTES;
  const heapRounded = roundUp(heapBytes, MIB);
  const pages = (heapAddress + heapRounded) / WASM_PAGE_BYTES;
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  return { memory, laneCount, heapAddress, heapBytes: heapRounded };
}

export function controlAddress(lane: number): number {
  return LANES_ADDRESS + lane * LANE_BYTES;
}

export function scratchAddress(lane: number): number {
  return controlAddress(lane) + CONTROL_BYTES;
}

/**
 * Hands out blocks of 2^k pages (a buddy system), and makes those wait who ask for more than there is: that wait is
 * the back-pressure of the whole engine, first come first served.
 *
 *   order   0      1      2      3   ...
 *   bytes   4 K    8 K    16 K   32 K
 *
 * A freed block stays in its order's list, unmerged, since the next request is most likely of the same size. Only when
 * a request finds nothing are buddies merged, all at once. (Merging on every free cost 40 % of a 4 KiB read's time.)
 */
export class Arena {
  readonly #base: number;
  readonly #pageCount: number;
  /** Free blocks of each order, as page numbers. */
  readonly #free: number[][] = [];
  readonly #waiting: { order: number; resolve: (address: number) => void }[] = [];
  #pagesUsed = 0;

  constructor(map: MemoryMap) {
    this.#base = map.heapAddress;
    this.#pageCount = map.heapBytes / PAGE_BYTES;
    const top = 31 - Math.clz32(this.#pageCount);
    for (let order = 0; order <= top; order += 1) this.#free.push([]);
    this.#carve(0, this.#pageCount);
  }

  get largestBytes(): number {
    // Not a shift: it would wrap at 2 GiB.
    return PAGE_BYTES * 2 ** (this.#free.length - 1);
  }

  get bytesUsed(): number {
    return this.#pagesUsed * PAGE_BYTES;
  }

  get waitingCount(): number {
    return this.#waiting.length;
  }

  /** An address, or null when there is none to be had now. Never overtakes those who wait. */
  tryAcquire(lengthBytes: number): number | null {
    if (this.#waiting.length > 0) return null;
    return this.#take(orderOf(lengthBytes));
  }

  acquire(lengthBytes: number): Promise<number> {
    assert(lengthBytes <= this.largestBytes, 'requests are cut to what the arena can hold');
    const address = this.tryAcquire(lengthBytes);
    if (address !== null) return Promise.resolve(address);
    return new Promise((resolve) => this.#waiting.push({ order: orderOf(lengthBytes), resolve }));
  }

  release(address: number, lengthBytes: number): void {
    const order = orderOf(lengthBytes);
    this.#free[order]?.push((address - this.#base) / PAGE_BYTES);
    this.#pagesUsed -= 1 << order;
    while (this.#waiting.length > 0) {
      const next = this.#waiting[0];
      if (next === undefined) break;
      const found = this.#take(next.order);
      if (found === null) break;
      this.#waiting.shift();
      next.resolve(found);
    }
  }

  #take(order: number): number | null {
    const page = this.#takePage(order) ?? (this.#merge() ? this.#takePage(order) : null);
    if (page === null) return null;
    this.#pagesUsed += 1 << order;
    return this.#base + page * PAGE_BYTES;
  }

  #takePage(order: number): number | null {
    for (let from = order; from < this.#free.length; from += 1) {
      const page = this.#free[from]?.pop();
      if (page === undefined) continue;
      // The upper halves go back, from large to small.
      for (let split = from - 1; split >= order; split -= 1) this.#free[split]?.push(page + (1 << split));
      return page;
    }
    return null;
  }

  /** Joins every pair of free buddies. False when nothing changed. */
  #merge(): boolean {
    let merged = false;
    for (let order = 0; order + 1 < this.#free.length; order += 1) {
      const pages = this.#free[order] ?? [];
      const set = new Set(pages);
      const rest: number[] = [];
      for (const page of pages) {
        const buddy = page ^ (1 << order);
        if (!set.has(buddy)) rest.push(page);
        else if (page < buddy) {
          this.#free[order + 1]?.push(page);
          merged = true;
        }
      }
      this.#free[order] = rest;
    }
    return merged;
  }

  #carve(firstPage: number, endPage: number): void {
    let page = firstPage;
    while (page < endPage) {
      let order = this.#free.length - 1;
      while (page % (1 << order) !== 0 || page + (1 << order) > endPage) order -= 1;
      this.#free[order]?.push(page);
      page += 1 << order;
    }
  }
}

function orderOf(lengthBytes: number): number {
  const pages = Math.ceil(lengthBytes / PAGE_BYTES);
  return pages <= 1 ? 0 : 32 - Math.clz32(pages - 1);
}
