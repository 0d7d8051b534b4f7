/**
 * The kernels in WebAssembly SIMD: checks arguments, writes the list that a call works from, and calls. What runs is in
 * assembly/kernels.ts, which also explains passes and the work area.
 *
 * `relaxed` is the same source with relaxed SIMD, where multiplying by a constant is cheaper: updates are half again as fast
 * while data is in the cache, recovery of two a fifth. P+Q and XOR are the same, and so is everything once memory is the limit.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { assert, unreachable } from '../errors.ts';
import { checkErasure, known, withoutLost } from './erasure.ts';
import { powerOfTwo, solutionOfTwo } from './field.ts';
import { type Erasure, type KernelSite, type Kernels, maxChunks, workAreaBytes } from './kernels.ts';

export type WasmName = 'simd' | 'relaxed';

/** All take and give 32-bit numbers; addresses beyond 2 GiB wrap on the way in and mean the same there. */
interface Exports {
  xor(work: number, count: number, target: number, length: number): void;
  syndrome(work: number, passes: number, p: number, q: number, length: number): void;
  recoverDD(
    work: number,
    passes: number,
    x: number,
    y: number,
    p: number,
    q: number,
    a: number,
    b: number,
    length: number,
  ): void;
  recoverDP(work: number, passes: number, x: number, p: number, q: number, c: number, length: number): void;
  recoverDQ(work: number, passes: number, x: number, q: number, p: number, c: number, length: number): void;
  updatePQ(
    work: number,
    before: number,
    after: number,
    c: number,
    p: number,
    q: number,
    length: number,
  ): void;
  updateQ(work: number, before: number, after: number, c: number, q: number, length: number): void;
  compare(a: number, b: number, length: number): number;
  firstNonZero(address: number, length: number): number;
  verifyXor(work: number, count: number, length: number): number;
  verifyPQ(work: number, passes: number, p: number, q: number, length: number): number;
  copy(source: number, target: number, length: number): void;
  fill(target: number, byte: number, length: number): void;
}

const NONE = 0xffff_ffff;
const POLYNOMIAL = 0x1d;

const LIST = 128;
const LIST_WORDS = (4096 - LIST) / 4;
const PASS_WORDS = 6;
const SOURCES_PER_XOR_PASS = 6;
const SOURCES_PER_PASS = 4;

const modules = new Map<WasmName, WebAssembly.Module>();

/** Compiled once for each thread. Throws where the file is missing or this engine does not know its instructions. */
export function moduleOf(name: WasmName): WebAssembly.Module {
  const compiled = modules.get(name);
  if (compiled !== undefined) return compiled;
  const path = createRequire(import.meta.url).resolve(`#kernels/${name}`);
  const module = new WebAssembly.Module(readFileSync(path));
  modules.set(name, module);
  return module;
}

function instantiate(name: WasmName, memory: WebAssembly.Memory): Exports {
  const instance = new WebAssembly.Instance(moduleOf(name), { env: { memory } });
  return instance.exports as unknown as Exports;
}

export class WasmKernels implements Kernels {
  readonly name: WasmName;
  readonly #exports: Exports;
  readonly #work: number;
  readonly #list: Uint32Array;

  constructor(name: WasmName, site: KernelSite) {
    const { memory, tableAddress } = site;
    assert(tableAddress % 64 === 0, 'a work area begins on a cache line');
    assert(tableAddress + workAreaBytes <= memory.buffer.byteLength, 'a work area lies in its memory');
    this.name = name;
    this.#exports = instantiate(name, memory);
    this.#work = tableAddress;
    // The work area never moves, so neither does this view, even when the memory grows.
    this.#list = new Uint32Array(memory.buffer, tableAddress + LIST, LIST_WORDS);
    new Uint8Array(memory.buffer, tableAddress, 16).fill(POLYNOMIAL);
    new Uint8Array(memory.buffer, tableAddress + 16, 16).fill(0x0f);
  }

  xor(sources: readonly number[], target: number, lengthBytes: number): void {
    assert(sources.length > 0, 'a sum has at least one source');
    const count = this.#listSum(sources, target);
    this.#xorListed(count, target, lengthBytes);
  }

  syndrome(data: readonly (number | null)[], p: number | null, q: number | null, lengthBytes: number): void {
    if (q !== null) {
      const passes = this.#listPasses(data);
      this.#exports.syndrome(this.#work, passes, p ?? NONE, q, lengthBytes);
    } else if (p !== null) this.#xorListed(this.#listSum(data, p), p, lengthBytes);
  }

  update(
    oldData: number,
    newData: number,
    index: number,
    p: number | null,
    q: number | null,
    lengthBytes: number,
  ): void {
    if (q === null) {
      if (p !== null) this.xor([p, oldData, newData], p, lengthBytes);
      return;
    }
    const constant = powerOfTwo(index);
    if (p === null) this.#exports.updateQ(this.#work, oldData, newData, constant, q, lengthBytes);
    else this.#exports.updatePQ(this.#work, oldData, newData, constant, p, q, lengthBytes);
  }

  recover(
    data: readonly (number | null)[],
    p: number | null,
    q: number | null,
    erasure: Erasure,
    lengthBytes: number,
  ): void {
    checkErasure(data, p, q, erasure);
    const left = withoutLost(data, erasure);
    const work = this.#work;
    switch (erasure.kind) {
      case 'D':
        left[erasure.x] = known(p);
        this.syndrome(left, data[erasure.x]!, null, lengthBytes);
        return;
      case 'P':
        this.syndrome(left, p, null, lengthBytes);
        return;
      case 'Q':
        this.syndrome(left, null, q, lengthBytes);
        return;
      case 'PQ':
        this.syndrome(left, p, q, lengthBytes);
        return;
      case 'DP': {
        const x = data[erasure.x] ?? NONE;
        const constant = powerOfTwo(-erasure.x);
        this.#exports.recoverDP(work, this.#listPasses(left), x, p ?? NONE, known(q), constant, lengthBytes);
        return;
      }
      case 'DQ': {
        const x = data[erasure.x] ?? NONE;
        const constant = powerOfTwo(erasure.x);
        this.#exports.recoverDQ(work, this.#listPasses(left), x, q ?? NONE, known(p), constant, lengthBytes);
        return;
      }
      case 'DD': {
        const x = data[erasure.x] ?? NONE;
        const y = data[erasure.y] ?? NONE;
        const { a, b } = solutionOfTwo(erasure.x, erasure.y);
        const passes = this.#listPasses(left);
        this.#exports.recoverDD(work, passes, x, y, known(p), known(q), a, b, lengthBytes);
        return;
      }
      default:
        unreachable(erasure);
    }
  }

  compare(a: number, b: number, lengthBytes: number): number {
    return offsetOrNone(this.#exports.compare(a, b, lengthBytes));
  }

  verify(data: readonly (number | null)[], p: number, q: number | null, lengthBytes: number): number {
    if (q === null) {
      const count = this.#listSum([...data, p], null);
      return offsetOrNone(this.#exports.verifyXor(this.#work, count, lengthBytes));
    }
    const passes = this.#listPasses(data);
    return offsetOrNone(this.#exports.verifyPQ(this.#work, passes, p, q, lengthBytes));
  }

  isZero(address: number, lengthBytes: number): boolean {
    return this.#exports.firstNonZero(address, lengthBytes) === -1;
  }

  copy(source: number, target: number, lengthBytes: number): void {
    this.#exports.copy(source, target, lengthBytes);
  }

  fill(target: number, byte: number, lengthBytes: number): void {
    this.#exports.fill(target, byte, lengthBytes);
  }

  #xorListed(count: number, target: number, lengthBytes: number): void {
    if (count === 0) this.#exports.fill(target, 0, lengthBytes);
    else if (count > 1) this.#exports.xor(this.#work, count, target, lengthBytes);
    else if (this.#list[0] !== target) this.#exports.copy(this.#list[0]!, target, lengthBytes);
  }

  /**
   * Lists the addresses of a sum, and says how many there are. Passes after the first add to the target, so when there
   * will be several, a target that is also a source comes first: it must be read before anything is written.
   */
  #listSum(sources: readonly (number | null)[], target: number | null): number {
    const list = this.#list;
    assert(sources.length <= maxChunks + 1, 'more sources than a work area can list');
    let count = 0;
    let targetAt = -1;
    for (const source of sources) {
      if (source === null) continue;
      if (source === target) {
        // Twice the same is nothing.
        if (targetAt >= 0) {
          count -= 1;
          list[targetAt] = list[count]!;
          targetAt = -1;
          continue;
        }
        targetAt = count;
      }
      list[count] = source;
      count += 1;
    }
    if (targetAt > 0 && count > SOURCES_PER_XOR_PASS) {
      list[targetAt] = list[0]!;
      list[0] = target!;
    }
    return count;
  }

  /**
   * Lists the passes of P+Q, from the highest power of 2 to the lowest (Horner), and says how many there are. A pass is a run
   * of up to 4 chunks without a gap, and how often to double after it for the gap that follows. 6 chunks go as 3+3, not 4+2:
   * even passes are the cheapest. Gaps before the first chunk double nothing, and are left out.
   *
   *   D0 D1 -- D3 D4 --    ->    [D4 D3] double 1, [D1 D0]
   *   D0 -- D2             ->    [D2] double 1, [D0]
   *   -- D1                ->    [D1] double 1
   */
  #listPasses(data: readonly (number | null)[]): number {
    assert(data.length <= maxChunks, 'more chunks than a work area can list');
    const list = this.#list;
    let passes = 0;
    let index = data.length - 1;
    while (index >= 0 && data[index] === null) index -= 1;
    while (index >= 0) {
      let end = index;
      while (end >= 0 && data[end] !== null) end -= 1;
      let runPasses = Math.ceil((index - end) / SOURCES_PER_PASS);
      for (; runPasses > 0; runPasses -= 1) {
        const count = Math.ceil((index - end) / runPasses);
        const at = passes * PASS_WORDS;
        list[at] = count;
        list[at + 1] = 0;
        for (let k = 0; k < count; k += 1) list[at + 2 + k] = data[index - k]!;
        index -= count;
        passes += 1;
      }
      let doublings = 0;
      while (index >= 0 && data[index] === null) {
        doublings += 1;
        index -= 1;
      }
      list[(passes - 1) * PASS_WORDS + 1] = doublings;
    }
    return passes;
  }
}

function offsetOrNone(result: number): number {
  return result === -1 ? -1 : result >>> 0;
}
