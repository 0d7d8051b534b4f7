/**
 * The arithmetic of redundancy over one block of memory, addressed by number: all kernels work in place on one shared
 * WebAssembly memory, which is also the buffer of file I/O, so nothing is copied between thread, kernel and file.
 *
 * Field: GF(2^8) with polynomial x^8+x^4+x^3+x^2+1 (0x11d), generator 2.
 *
 *   P = D0 + D1 + ... + Dn-1             (+ is XOR)
 *   Q = 2^0*D0 + 2^1*D1 + ... + 2^(n-1)*Dn-1
 *
 * Addresses are byte offsets into the memory; any alignment is right, 16-byte alignment is fast. Ranges either coincide
 * or do not overlap. In a list of data addresses `null` stands for a chunk of zeros.
 */

/** What is lost of a stripe, by Q-order index of the data chunks. */
export type Erasure =
  | { readonly kind: 'D'; readonly x: number }
  | { readonly kind: 'P' }
  | { readonly kind: 'Q' }
  | { readonly kind: 'DD'; readonly x: number; readonly y: number }
  | { readonly kind: 'DP'; readonly x: number }
  | { readonly kind: 'DQ'; readonly x: number }
  | { readonly kind: 'PQ' };

export interface Kernels {
  readonly name: string;
  /** target = XOR of all sources. `target` may be one of them. With one source, a copy. */
  xor(sources: readonly number[], target: number, lengthBytes: number): void;
  /** Computes P and Q of `data` in Q order; either may be null when it is not wanted. */
  syndrome(data: readonly (number | null)[], p: number | null, q: number | null, lengthBytes: number): void;
  /** One chunk changes: P += old + new, Q += 2^index * (old + new). */
  update(
    oldData: number,
    newData: number,
    index: number,
    p: number | null,
    q: number | null,
    lengthBytes: number,
  ): void;
  /**
   * Recomputes what is lost. `data`, `p` and `q` name all chunks of the stripe, the lost ones being where the answer
   * goes (their content on entry is ignored); `q` is null below raid6. What `erasure` does not name is only read.
   */
  recover(
    data: readonly (number | null)[],
    p: number | null,
    q: number | null,
    erasure: Erasure,
    lengthBytes: number,
  ): void;
  /** Offset of the first byte that differs, or -1. */
  compare(a: number, b: number, lengthBytes: number): number;
  /** Checks P (and Q, when not null) of `data` without writing: offset of the first byte at which either is wrong, or -1. */
  verify(data: readonly (number | null)[], p: number, q: number | null, lengthBytes: number): number;
  isZero(address: number, lengthBytes: number): boolean;
  copy(source: number, target: number, lengthBytes: number): void;
  fill(target: number, byte: number, lengthBytes: number): void;
}
