/**
 * The linear algebra that plans are judged by, written from the definition and without a thought of RAID: a row is
 * N unknowns, every cell is a known combination of them, and what can be known from some cells is their span.
 */

const logs = new Uint8Array(256);
const powers = new Uint8Array(512);
for (let exponent = 0, value = 1; exponent < 255; exponent += 1) {
  powers[exponent] = value;
  powers[exponent + 255] = value;
  logs[value] = exponent;
  value = value & 0x80 ? ((value << 1) ^ 0x11d) & 0xff : value << 1;
}

/** 2 to the power of `exponent` in GF(2^8). */
export function powerOfTwo(exponent: number): number {
  return powers[exponent % 255]!;
}

export function multiply(a: number, b: number): number {
  return a === 0 || b === 0 ? 0 : powers[logs[a]! + logs[b]!]!;
}

export function invert(a: number): number {
  return powers[255 - logs[a]!]!;
}

/** Cells 0..N-1 are the data, N is P, N+1 is Q. Sets of cells are bit masks. */
export class RowAlgebra {
  readonly dataCount: number;
  readonly vectors: readonly Uint8Array[];
  readonly #bases = new Map<number, readonly Uint8Array[]>();
  readonly #spans = new Map<number, number>();
  readonly #parities = new Map<number, boolean>();
  readonly #least = new Map<string, number>();

  constructor(qCoefficients: readonly number[]) {
    const count = qCoefficients.length;
    this.dataCount = count;
    const unit = (index: number) => Uint8Array.from({ length: count }, (_, at) => Number(at === index));
    this.vectors = [
      ...Array.from({ length: count }, (_, index) => unit(index)),
      new Uint8Array(count).fill(1),
      Uint8Array.from(qCoefficients),
    ];
  }

  determines(known: number, target: Uint8Array): boolean {
    let basis = this.#bases.get(known);
    if (basis === undefined) {
      basis = this.#basisOf(known);
      this.#bases.set(known, basis);
    }
    return reduce(target, basis).every((value) => value === 0);
  }

  /** All cells that `known` determines. */
  span(known: number): number {
    let span = this.#spans.get(known);
    if (span === undefined) {
      span = 0;
      this.vectors.forEach((vector, cell) => {
        if (this.determines(known, vector)) span! |= 1 << cell;
      });
      this.#spans.set(known, span);
    }
    return span;
  }

  /** Whether what parity `cell` will be is determined once `written` data cells are replaced by known ones. */
  determinesNewParity(known: number, cell: number, written: number): boolean {
    const key = (((cell << 10) | written) << 10) | known;
    let answer = this.#parities.get(key);
    if (answer === undefined) {
      answer = this.determines(known, this.staying(cell, written));
      this.#parities.set(key, answer);
    }
    return answer;
  }

  rank(known: number): number {
    this.determines(known, new Uint8Array(this.dataCount));
    return this.#bases.get(known)!.length;
  }

  /** What of parity `cell` comes from the data cells that stay, those not in `written`. */
  staying(cell: number, written: number): Uint8Array {
    return this.vectors[cell]!.map((value, index) => (written & (1 << index) ? 0 : value));
  }

  /** The least number of cells of `candidates` that determine all targets; `name` tells one set of targets from another. */
  leastReads(candidates: number, targets: readonly Uint8Array[], name: string): number {
    const key = `${candidates} ${name}`;
    let least = this.#least.get(key);
    if (least === undefined) {
      least = Number.POSITIVE_INFINITY;
      for (let subset = candidates; ; subset = (subset - 1) & candidates) {
        const count = bitCount(subset);
        if (count < least && targets.every((target) => this.determines(subset, target))) least = count;
        if (subset === 0) break;
      }
      this.#least.set(key, least);
    }
    return least;
  }

  #basisOf(known: number): Uint8Array[] {
    const basis: Uint8Array[] = [];
    this.vectors.forEach((vector, cell) => {
      if ((known & (1 << cell)) === 0) return;
      const rest = reduce(vector, basis);
      const pivot = rest.findIndex((value) => value !== 0);
      if (pivot < 0) return;
      const scale = invert(rest[pivot]!);
      basis.push(rest.map((value) => multiply(value, scale)));
    });
    return basis;
  }
}

export function bitCount(mask: number): number {
  let count = 0;
  for (let rest = mask; rest !== 0; rest &= rest - 1) count += 1;
  return count;
}

/** `basis` in the order it was found: each vector has a leading 1 where all later ones have been cleared. */
function reduce(vector: Uint8Array, basis: readonly Uint8Array[]): Uint8Array {
  const rest = vector.slice();
  for (const row of basis) {
    const factor = rest[row.findIndex((value) => value !== 0)]!;
    if (factor === 0) continue;
    for (let index = 0; index < rest.length; index += 1) rest[index]! ^= multiply(factor, row[index]!);
  }
  return rest;
}
