import { describe, expect, test } from 'vitest';
import { inverse, multiply, powerOfTwo, solutionOfTwo } from '../../lib/parity/field.ts';
import { inverseByDefinition, multiplyByDefinition, powerByDefinition } from '../../lib/parity/reference.ts';

const all = Array.from({ length: 256 }, (_, value) => value);
const table = all.map((a) => Uint8Array.from(all, (b) => multiplyByDefinition(a, b)));

/** How often `holds` is false over the whole space: one `expect` for 16 million cases. */
function failures(holds: (a: number, b: number, c: number) => boolean): number {
  let count = 0;
  for (let a = 0; a < 256; a += 1) {
    for (let b = 0; b < 256; b += 1) {
      for (let c = 0; c < 256; c += 1) if (!holds(a, b, c)) count += 1;
    }
  }
  return count;
}

describe('the field by definition', () => {
  test('multiplication is associative, for all triples', () => {
    expect(failures((a, b, c) => table[table[a]![b]!]![c] === table[a]![table[b]![c]!])).toBe(0);
  });

  test('multiplication distributes over addition, for all triples', () => {
    expect(failures((a, b, c) => table[a]![b ^ c] === (table[a]![b]! ^ table[a]![c]!))).toBe(0);
  });

  test('multiplication commutes, 1 is neutral and 0 absorbs', () => {
    for (const a of all) {
      expect(table[a]![1]).toBe(a);
      expect(table[a]![0]).toBe(0);
      expect(all.filter((b) => table[a]![b] !== table[b]![a])).toEqual([]);
    }
  });

  test('every element but 0 has exactly one inverse', () => {
    for (const a of all.slice(1)) {
      expect(all.filter((b) => table[a]![b] === 1)).toEqual([inverseByDefinition(a)]);
    }
    expect(() => inverseByDefinition(0)).toThrow();
  });

  test('the powers of 2 are all elements but 0, and then repeat', () => {
    const powers = Array.from({ length: 255 }, (_, exponent) => powerByDefinition(2, exponent));
    expect(new Set(powers).size).toBe(255);
    expect(powers).not.toContain(0);
    expect(powerByDefinition(2, 255)).toBe(1);
  });

  test('2 times 80 is the polynomial without its top bit', () => {
    expect(multiplyByDefinition(2, 0x80)).toBe(0x1d);
    expect(multiplyByDefinition(4, 0x80)).toBe(0x3a);
    expect(multiplyByDefinition(2, 3)).toBe(6);
  });
});

describe('the field by logarithms', () => {
  test('products are those of the definition, for all pairs', () => {
    for (const a of all) expect(Uint8Array.from(all, (b) => multiply(a, b))).toEqual(table[a]);
  });

  test('powers and inverses are those of the definition', () => {
    for (let exponent = 0; exponent < 600; exponent += 1) {
      expect(powerOfTwo(exponent)).toBe(powerByDefinition(2, exponent));
      expect(table[powerOfTwo(-exponent)]![powerOfTwo(exponent)]).toBe(1);
    }
    for (const a of all.slice(1)) expect(inverse(a)).toBe(inverseByDefinition(a));
  });

  test('the solution for two lost chunks gives back the first of them, for all pairs of chunks', () => {
    const [dataX, dataY] = [0xa7, 0x31];
    for (let x = 0; x < 255; x += 1) {
      for (let y = x + 1; y < 255; y += 1) {
        const { a, b } = solutionOfTwo(x, y);
        const deltaP = dataX ^ dataY;
        const deltaQ = table[powerOfTwo(x)]![dataX]! ^ table[powerOfTwo(y)]![dataY]!;
        if ((table[a]![deltaP]! ^ table[b]![deltaQ]!) !== dataX) expect.fail(`x=${x} y=${y}`);
      }
    }
    expect(solutionOfTwo(0, 1)).toEqual({ a: 0xf5, b: 0xf4 });
    expect(() => solutionOfTwo(0, 255)).toThrow(/same coefficient/);
  });
});
