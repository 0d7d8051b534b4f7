/**
 * GF(2^8) with 0x11d by logarithms, for the constants that fast kernels need once a call. reference.ts has the field from its
 * definition, and a test holds the two against each other.
 *
 * 2 generates the field: 2^0, 2^1, ... 2^254 are its 255 non-zero elements, 2^255 = 1. So a*b = 2^(log a + log b), and
 * dividing subtracts.
 */
import { assert } from '../errors.ts';

const ORDER = 255;

const powers = new Uint8Array(2 * ORDER);
const logarithms = new Uint8Array(256);
for (let exponent = 0, value = 1; exponent < ORDER; exponent += 1) {
  powers[exponent] = value;
  powers[exponent + ORDER] = value;
  logarithms[value] = exponent;
  value = value < 0x80 ? value << 1 : (value << 1) ^ 0x11d;
}

/** 2^exponent; the exponent may be negative. */
export function powerOfTwo(exponent: number): number {
  return powers[((exponent % ORDER) + ORDER) % ORDER]!;
}

export function multiply(a: number, b: number): number {
  return a === 0 || b === 0 ? 0 : powers[logarithms[a]! + logarithms[b]!]!;
}

export function inverse(a: number): number {
  assert(a !== 0, 'zero has no inverse');
  return powers[ORDER - logarithms[a]!]!;
}

/**
 * The a and b of Dx = a*(P + Px) + b*(Q + Qx), with Px and Qx computed from what is left.
 *
 *   P + Px = Dx + Dy,  Q + Qx = 2^x*Dx + 2^y*Dy      divide the second by 2^x, with g = 2^(y-x):
 *   2^-x*(Q + Qx) = Dx + g*Dy                        add g times the first:
 *   g*(P + Px) + 2^-x*(Q + Qx) = (g + 1)*Dx
 *
 * x=0, y=1: g=02, g+1=03, 1/03=f4, so a=f5 and b=f4.
 */
export function solutionOfTwo(x: number, y: number): { readonly a: number; readonly b: number } {
  const ratio = powerOfTwo(y - x);
  assert(ratio !== 1, 'two chunks with the same coefficient in Q cannot be told apart');
  const scale = inverse(ratio ^ 1);
  return { a: multiply(ratio, scale), b: multiply(powerOfTwo(-x), scale) };
}
