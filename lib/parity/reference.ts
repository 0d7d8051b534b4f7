/**
 * The kernels from their definition, byte by byte. Every other implementation is held against this one, so it is written
 * to be checked by eye and is never made faster.
 *
 * The field. A byte is a polynomial over GF(2), bit i the coefficient of x^i. Adding is XOR, so every element is its own
 * negative, and minus is plus. Multiplying is multiplying polynomials and taking the remainder by x^8+x^4+x^3+x^2+1,
 * which is 0x11d. Times x (times 2) is a shift to the left, and where x^8 appears, 0x11d is added: 2*80 = 100 + 11d = 1d.
 * All elements but 0 have an inverse.
 *
 * The code. n data chunks; everywhere below, byte k of one chunk only ever meets byte k of the others.
 *
 *   P = D0 + D1 + ... + Dn-1
 *   Q = 1*D0 + 2*D1 + 4*D2 + ... + 2^(n-1)*Dn-1
 *
 * By hand, with D0=01 D1=02 D2=80:
 *
 *   P = 01 + 02 + 80 = 83
 *   Q = 01 + 2*02 + 4*80 = 01 + 04 + 3a = 3f          (2*80 = 1d, 4*80 = 2*1d = 3a)
 *
 * Recovery. Let P' and Q' be P and Q of the data that is left (what is lost counts as zero).
 *
 *   D    P + P' = Dx                                  or, from Q:  Q + Q' = 2^x*Dx
 *   P    P = P'
 *   Q    Q = Q'
 *   PQ   both
 *   DP   Dx = (Q + Q') / 2^x,  P = P' + Dx
 *   DQ   Dx = P + P',          Q = Q' + 2^x*Dx
 *   DD   two equations, two unknowns:
 *          P + P' = Dx + Dy
 *          Q + Q' = 2^x*Dx + 2^y*Dy
 *        Add 2^x times the first to the second, and Dx is gone:
 *          Dy = (Q + Q' + 2^x*(P + P')) / (2^x + 2^y),  Dx = P + P' + Dy
 *        The divisor is 0 only if 2^x = 2^y, which for 0 <= x < y < 255 never is.
 *
 * By hand again, D0 and D1 lost, D2=80 P=83 Q=3f left: P' = 80, Q' = 3a, so P + P' = 03 and Q + Q' = 05.
 *   D1 = (05 + 1*03) / (01 + 02) = 06 / 03 = 02       (02*03 = 06)
 *   D0 = 03 + 02 = 01
 * And from D2 and P lost: Q' = 01 + 04 = 05, D2 = (3f + 05) / 4 = 3a / 4 = 80, P = 03 + 80 = 83.
 */
import { assert, unreachable } from '../errors.ts';
import { checkErasure, known, withoutLost } from './erasure.ts';
import type { Erasure, KernelSite, Kernels } from './kernels.ts';

/** The product in GF(2^8): for each bit i of b, a*x^i is added. */
export function multiplyByDefinition(a: number, b: number): number {
  let product = 0;
  let shifted = a;
  for (let bit = 0; bit < 8; bit += 1) {
    if ((b >> bit) & 1) product ^= shifted;
    shifted <<= 1;
    if (shifted & 0x100) shifted ^= 0x11d;
  }
  return product;
}

export function powerByDefinition(base: number, exponent: number): number {
  let power = 1;
  for (let i = 0; i < exponent; i += 1) power = multiplyByDefinition(power, base);
  return power;
}

/** The one element whose product with `value` is 1. */
export function inverseByDefinition(value: number): number {
  for (let candidate = 1; candidate < 256; candidate += 1) {
    if (multiplyByDefinition(candidate, value) === 1) return candidate;
  }
  throw new RangeError('zero has no inverse');
}

export class ReferenceKernels implements Kernels {
  readonly name = 'reference';
  readonly #memory: WebAssembly.Memory;

  constructor(site: KernelSite) {
    this.#memory = site.memory;
  }

  xor(sources: readonly number[], target: number, lengthBytes: number): void {
    assert(sources.length > 0, 'a sum has at least one source');
    const bytes = this.#bytes();
    for (let k = 0; k < lengthBytes; k += 1) {
      let sum = 0;
      for (const source of sources) sum ^= bytes[source + k]!;
      bytes[target + k] = sum;
    }
  }

  syndrome(data: readonly (number | null)[], p: number | null, q: number | null, lengthBytes: number): void {
    const bytes = this.#bytes();
    const coefficients = data.map((_, index) => powerByDefinition(2, index));
    for (let k = 0; k < lengthBytes; k += 1) {
      if (p !== null) bytes[p + k] = sumOf(bytes, data, k);
      if (q !== null) bytes[q + k] = weightedSumOf(bytes, data, coefficients, k);
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
    const bytes = this.#bytes();
    const coefficient = powerByDefinition(2, index);
    for (let k = 0; k < lengthBytes; k += 1) {
      const change = bytes[oldData + k]! ^ bytes[newData + k]!;
      if (p !== null) bytes[p + k] = bytes[p + k]! ^ change;
      if (q !== null) bytes[q + k] = bytes[q + k]! ^ multiplyByDefinition(coefficient, change);
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
    const bytes = this.#bytes();
    const left = withoutLost(data, erasure);
    const coefficients = data.map((_, index) => powerByDefinition(2, index));
    const put = (target: number | null, k: number, value: number): void => {
      if (target !== null) bytes[target + k] = value;
    };

    switch (erasure.kind) {
      case 'D': {
        const readP = known(p);
        for (let k = 0; k < lengthBytes; k += 1) {
          put(data[erasure.x]!, k, bytes[readP + k]! ^ sumOf(bytes, left, k));
        }
        return;
      }
      case 'P':
      case 'Q':
      case 'PQ':
        for (let k = 0; k < lengthBytes; k += 1) {
          if (erasure.kind !== 'Q') put(p, k, sumOf(bytes, left, k));
          if (erasure.kind !== 'P') put(q, k, weightedSumOf(bytes, left, coefficients, k));
        }
        return;
      case 'DP': {
        const readQ = known(q);
        const divisor = inverseByDefinition(coefficients[erasure.x]!);
        for (let k = 0; k < lengthBytes; k += 1) {
          const deltaQ = bytes[readQ + k]! ^ weightedSumOf(bytes, left, coefficients, k);
          const dataX = multiplyByDefinition(deltaQ, divisor);
          put(p, k, sumOf(bytes, left, k) ^ dataX);
          put(data[erasure.x]!, k, dataX);
        }
        return;
      }
      case 'DQ': {
        const readP = known(p);
        const coefficient = coefficients[erasure.x]!;
        for (let k = 0; k < lengthBytes; k += 1) {
          const dataX = bytes[readP + k]! ^ sumOf(bytes, left, k);
          put(q, k, weightedSumOf(bytes, left, coefficients, k) ^ multiplyByDefinition(coefficient, dataX));
          put(data[erasure.x]!, k, dataX);
        }
        return;
      }
      case 'DD': {
        const readP = known(p);
        const readQ = known(q);
        const coefficientX = coefficients[erasure.x]!;
        const divisor = inverseByDefinition(coefficientX ^ coefficients[erasure.y]!);
        for (let k = 0; k < lengthBytes; k += 1) {
          const deltaP = bytes[readP + k]! ^ sumOf(bytes, left, k);
          const deltaQ = bytes[readQ + k]! ^ weightedSumOf(bytes, left, coefficients, k);
          const dataY = multiplyByDefinition(deltaQ ^ multiplyByDefinition(coefficientX, deltaP), divisor);
          put(data[erasure.x]!, k, deltaP ^ dataY);
          put(data[erasure.y]!, k, dataY);
        }
        return;
      }
      default:
        unreachable(erasure);
    }
  }

  compare(a: number, b: number, lengthBytes: number): number {
    const bytes = this.#bytes();
    for (let k = 0; k < lengthBytes; k += 1) {
      if (bytes[a + k] !== bytes[b + k]) return k;
    }
    return -1;
  }

  verify(data: readonly (number | null)[], p: number, q: number | null, lengthBytes: number): number {
    const bytes = this.#bytes();
    const coefficients = data.map((_, index) => powerByDefinition(2, index));
    for (let k = 0; k < lengthBytes; k += 1) {
      if (bytes[p + k] !== sumOf(bytes, data, k)) return k;
      if (q !== null && bytes[q + k] !== weightedSumOf(bytes, data, coefficients, k)) return k;
    }
    return -1;
  }

  isZero(address: number, lengthBytes: number): boolean {
    const bytes = this.#bytes();
    for (let k = 0; k < lengthBytes; k += 1) {
      if (bytes[address + k] !== 0) return false;
    }
    return true;
  }

  copy(source: number, target: number, lengthBytes: number): void {
    const bytes = this.#bytes();
    for (let k = 0; k < lengthBytes; k += 1) bytes[target + k] = bytes[source + k]!;
  }

  fill(target: number, byte: number, lengthBytes: number): void {
    const bytes = this.#bytes();
    for (let k = 0; k < lengthBytes; k += 1) bytes[target + k] = byte;
  }

  #bytes(): Uint8Array {
    return new Uint8Array(this.#memory.buffer);
  }
}

function sumOf(bytes: Uint8Array, data: readonly (number | null)[], k: number): number {
  let sum = 0;
  for (const address of data) {
    if (address !== null) sum ^= bytes[address + k]!;
  }
  return sum;
}

function weightedSumOf(
  bytes: Uint8Array,
  data: readonly (number | null)[],
  coefficients: readonly number[],
  k: number,
): number {
  let sum = 0;
  for (const [index, address] of data.entries()) {
    if (address !== null) sum ^= multiplyByDefinition(coefficients[index]!, bytes[address + k]!);
  }
  return sum;
}
