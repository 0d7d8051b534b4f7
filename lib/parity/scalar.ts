/**
 * The kernels in plain JavaScript, for an engine without WebAssembly SIMD: four bytes in one 32-bit operation.
 *
 * Work goes strip by strip. What is accumulated stays in a private array of one strip (so a target that is also a source is
 * read before it is written), and is stored byte-wise at the end, which makes alignment and tails nobody else's concern. A
 * source that does not begin on a word, or whose strip ends within one, is first copied to a private strip; copying and then
 * adding words is still three times faster than adding bytes.
 *
 * Times 2 on four bytes at once: shift all left, clear what crossed into the neighbour, and add 1d to those bytes whose top
 * bit fell out, which `imul` spreads: (q >>> 7 & 01010101) * 1d.
 *
 *   q = 80014100 (bytes 80 01 41 00): shifted and masked 00028200, top bits 01000000 * 1d = 1d000000, sum 1d028200
 */
import { assert, unreachable } from '../errors.ts';
import { checkErasure, known, withoutLost } from './erasure.ts';
import { multiply, powerOfTwo, solutionOfTwo } from './field.ts';
import type { Erasure, KernelSite, Kernels } from './kernels.ts';

const STRIP_BYTES = 8192;

class Strip {
  readonly words = new Int32Array(STRIP_BYTES / 4);
  readonly bytes = new Uint8Array(this.words.buffer);
}

export class ScalarKernels implements Kernels {
  readonly name = 'scalar';
  readonly #memory: WebAssembly.Memory;
  #buffer: ArrayBufferLike;
  #bytes: Uint8Array;
  #words: Int32Array;
  readonly #sumP = new Strip();
  readonly #sumQ = new Strip();
  readonly #staged = new Strip();

  constructor(site: KernelSite) {
    this.#memory = site.memory;
    this.#buffer = site.memory.buffer;
    this.#bytes = new Uint8Array(this.#buffer);
    this.#words = new Int32Array(this.#buffer);
  }

  xor(sources: readonly number[], target: number, lengthBytes: number): void {
    assert(sources.length > 0, 'a sum has at least one source');
    this.#refresh();
    for (let from = 0; from < lengthBytes; from += STRIP_BYTES) {
      const bytes = Math.min(STRIP_BYTES, lengthBytes - from);
      this.#sum(sources, from, bytes);
      this.#store(this.#sumP, target + from, bytes);
    }
  }

  syndrome(data: readonly (number | null)[], p: number | null, q: number | null, lengthBytes: number): void {
    this.#refresh();
    for (let from = 0; from < lengthBytes; from += STRIP_BYTES) {
      const bytes = Math.min(STRIP_BYTES, lengthBytes - from);
      if (q === null) this.#sum(data, from, bytes);
      else this.#syndrome(data, from, bytes);
      if (p !== null) this.#store(this.#sumP, p + from, bytes);
      if (q !== null) this.#store(this.#sumQ, q + from, bytes);
    }
  }

  update(
    oldData: number,
    newData: number,
    index: number,
    p: number | null,
    q: number | null,
    lengthBytes: number,
  ): void {
    this.#refresh();
    const products = productsOf(powerOfTwo(index));
    const changed = [oldData, newData];
    for (let from = 0; from < lengthBytes; from += STRIP_BYTES) {
      const bytes = Math.min(STRIP_BYTES, lengthBytes - from);
      this.#sum(changed, from, bytes);
      if (q !== null) {
        this.#load(this.#sumQ, q + from, bytes);
        addProducts(this.#sumQ.bytes, this.#sumP.bytes, products, bytes);
        this.#store(this.#sumQ, q + from, bytes);
      }
      if (p !== null) {
        this.#add(p + from, bytes);
        this.#store(this.#sumP, p + from, bytes);
      }
    }
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
    switch (erasure.kind) {
      case 'D':
        this.syndrome([...left, known(p)], data[erasure.x]!, null, lengthBytes);
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
      case 'DP':
        this.#recoverDP(left, data[erasure.x]!, p, known(q), powerOfTwo(-erasure.x), lengthBytes);
        return;
      case 'DQ':
        this.#recoverDQ(left, data[erasure.x]!, known(p), q, powerOfTwo(erasure.x), lengthBytes);
        return;
      case 'DD':
        this.#recoverDD(left, data, erasure.x, erasure.y, known(p), known(q), lengthBytes);
        return;
      default:
        unreachable(erasure);
    }
  }

  compare(a: number, b: number, lengthBytes: number): number {
    this.#refresh();
    let k = 0;
    if (((a | b) & 3) === 0) {
      const words = this.#words;
      const wordA = a / 4;
      const wordB = b / 4;
      const end = lengthBytes >>> 2;
      let word = 0;
      while (word < end && words[wordA + word] === words[wordB + word]) word += 1;
      k = word * 4;
    }
    const bytes = this.#bytes;
    for (; k < lengthBytes; k += 1) {
      if (bytes[a + k] !== bytes[b + k]) return k;
    }
    return -1;
  }

  verify(data: readonly (number | null)[], p: number, q: number | null, lengthBytes: number): number {
    this.#refresh();
    for (let from = 0; from < lengthBytes; from += STRIP_BYTES) {
      const bytes = Math.min(STRIP_BYTES, lengthBytes - from);
      if (q === null) this.#sum(data, from, bytes);
      else this.#syndrome(data, from, bytes);
      const wrongP = this.#firstWrong(this.#sumP, p + from, bytes);
      const wrongQ = q === null ? -1 : this.#firstWrong(this.#sumQ, q + from, bytes);
      if (wrongP >= 0 && (wrongQ < 0 || wrongP < wrongQ)) return from + wrongP;
      if (wrongQ >= 0) return from + wrongQ;
    }
    return -1;
  }

  isZero(address: number, lengthBytes: number): boolean {
    this.#refresh();
    const bytes = this.#bytes;
    const words = this.#words;
    let k = 0;
    if ((address & 3) === 0) {
      const first = address / 4;
      const end = lengthBytes >>> 2;
      for (let word = 0; word < end; word += 1) {
        if (words[first + word] !== 0) return false;
      }
      k = end * 4;
    }
    for (; k < lengthBytes; k += 1) {
      if (bytes[address + k] !== 0) return false;
    }
    return true;
  }

  copy(source: number, target: number, lengthBytes: number): void {
    this.#refresh();
    this.#bytes.copyWithin(target, source, source + lengthBytes);
  }

  fill(target: number, byte: number, lengthBytes: number): void {
    this.#refresh();
    this.#bytes.fill(byte, target, target + lengthBytes);
  }

  #recoverDP(
    left: readonly (number | null)[],
    x: number | null,
    p: number | null,
    q: number,
    constant: number,
    lengthBytes: number,
  ): void {
    this.#refresh();
    const products = productsOf(constant);
    const sumP = this.#sumP.bytes;
    const sumQ = this.#sumQ.bytes;
    const staged = this.#staged.bytes;
    for (let from = 0; from < lengthBytes; from += STRIP_BYTES) {
      const bytes = Math.min(STRIP_BYTES, lengthBytes - from);
      this.#syndrome(left, from, bytes);
      this.#load(this.#staged, q + from, bytes);
      for (let k = 0; k < bytes; k += 1) {
        const dataX = products[sumQ[k]! ^ staged[k]!]!;
        sumQ[k] = dataX;
        sumP[k] = sumP[k]! ^ dataX;
      }
      if (x !== null) this.#store(this.#sumQ, x + from, bytes);
      if (p !== null) this.#store(this.#sumP, p + from, bytes);
    }
  }

  #recoverDQ(
    left: readonly (number | null)[],
    x: number | null,
    p: number,
    q: number | null,
    constant: number,
    lengthBytes: number,
  ): void {
    this.#refresh();
    const products = productsOf(constant);
    for (let from = 0; from < lengthBytes; from += STRIP_BYTES) {
      const bytes = Math.min(STRIP_BYTES, lengthBytes - from);
      this.#syndrome(left, from, bytes);
      this.#add(p + from, bytes);
      addProducts(this.#sumQ.bytes, this.#sumP.bytes, products, bytes);
      if (x !== null) this.#store(this.#sumP, x + from, bytes);
      if (q !== null) this.#store(this.#sumQ, q + from, bytes);
    }
  }

  #recoverDD(
    left: readonly (number | null)[],
    data: readonly (number | null)[],
    x: number,
    y: number,
    p: number,
    q: number,
    lengthBytes: number,
  ): void {
    this.#refresh();
    const { a, b } = solutionOfTwo(x, y);
    const productsA = productsOf(a);
    const productsB = productsOf(b);
    const targetX = data[x]!;
    const targetY = data[y]!;
    const sumP = this.#sumP.bytes;
    const sumQ = this.#sumQ.bytes;
    const staged = this.#staged.bytes;
    for (let from = 0; from < lengthBytes; from += STRIP_BYTES) {
      const bytes = Math.min(STRIP_BYTES, lengthBytes - from);
      this.#syndrome(left, from, bytes);
      this.#add(p + from, bytes);
      this.#load(this.#staged, q + from, bytes);
      for (let k = 0; k < bytes; k += 1) {
        const deltaP = sumP[k]!;
        const dataX = productsA[deltaP]! ^ productsB[sumQ[k]! ^ staged[k]!]!;
        sumQ[k] = dataX;
        sumP[k] = dataX ^ deltaP;
      }
      if (targetX !== null) this.#store(this.#sumQ, targetX + from, bytes);
      if (targetY !== null) this.#store(this.#sumP, targetY + from, bytes);
    }
  }

  /** A memory that grew has a new buffer; the old one ends where it ended. */
  #refresh(): void {
    if (this.#memory.buffer === this.#buffer) return;
    this.#buffer = this.#memory.buffer;
    this.#bytes = new Uint8Array(this.#buffer);
    this.#words = new Int32Array(this.#buffer);
  }

  /** sumP = the sum of a strip of all sources. */
  #sum(sources: readonly (number | null)[], from: number, bytes: number): void {
    this.#sumP.words.fill(0);
    for (const source of sources) {
      if (source !== null) this.#add(source + from, bytes);
    }
  }

  #add(address: number, bytes: number): void {
    const count = (bytes + 3) >>> 2;
    if (this.#isInWords(address, bytes)) addWords(this.#sumP.words, this.#words, address / 4, count);
    else {
      this.#load(this.#staged, address, bytes);
      addWords(this.#sumP.words, this.#staged.words, 0, count);
    }
  }

  /** sumP and sumQ of a strip of the data, from the highest power of 2 to the lowest (Horner). */
  #syndrome(data: readonly (number | null)[], from: number, bytes: number): void {
    const sumP = this.#sumP.words;
    const sumQ = this.#sumQ.words;
    const count = (bytes + 3) >>> 2;
    sumP.fill(0);
    sumQ.fill(0);
    for (let index = data.length - 1; index >= 0; index -= 1) {
      const source = data[index]!;
      if (source === null) doubleWords(sumQ, count);
      else if (this.#isInWords(source + from, bytes)) {
        addBothWords(sumP, sumQ, this.#words, (source + from) / 4, count);
      } else {
        this.#load(this.#staged, source + from, bytes);
        addBothWords(sumP, sumQ, this.#staged.words, 0, count);
      }
    }
  }

  #isInWords(address: number, bytes: number): boolean {
    return ((address | bytes) & 3) === 0;
  }

  #load(strip: Strip, address: number, bytes: number): void {
    strip.bytes.set(this.#bytes.subarray(address, address + bytes));
  }

  #store(strip: Strip, address: number, bytes: number): void {
    this.#bytes.set(bytes === STRIP_BYTES ? strip.bytes : strip.bytes.subarray(0, bytes), address);
  }

  #firstWrong(strip: Strip, address: number, bytes: number): number {
    const right = strip.bytes;
    const found = this.#bytes;
    for (let k = 0; k < bytes; k += 1) {
      if (right[k] !== found[address + k]) return k;
    }
    return -1;
  }
}

// Functions on arrays rather than methods: each loop then has its own type feedback and stays monomorphic.

function addWords(sum: Int32Array, from: Int32Array, at: number, count: number): void {
  for (let k = 0; k < count; k += 1) sum[k] = sum[k]! ^ from[at + k]!;
}

function addBothWords(sumP: Int32Array, sumQ: Int32Array, from: Int32Array, at: number, count: number): void {
  for (let k = 0; k < count; k += 1) {
    const data = from[at + k]!;
    sumP[k] = sumP[k]! ^ data;
    sumQ[k] = double(sumQ[k]!) ^ data;
  }
}

function doubleWords(words: Int32Array, count: number): void {
  for (let k = 0; k < count; k += 1) words[k] = double(words[k]!);
}

function double(word: number): number {
  return ((word << 1) & 0xfefefefe) ^ Math.imul((word >>> 7) & 0x01010101, 0x1d);
}

/** sum += constant * data, the constant given as its table. */
function addProducts(sum: Uint8Array, data: Uint8Array, products: Uint8Array, count: number): void {
  for (let k = 0; k < count; k += 1) sum[k] = sum[k]! ^ products[data[k]!]!;
}

const productTables: (Uint8Array | undefined)[] = [];

/** constant*0 ... constant*255. */
function productsOf(constant: number): Uint8Array {
  const made = productTables[constant];
  if (made !== undefined) return made;
  const table = Uint8Array.from({ length: 256 }, (_, value) => multiply(constant, value));
  productTables[constant] = table;
  return table;
}
