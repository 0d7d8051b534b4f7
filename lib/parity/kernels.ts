/**
 * The arithmetic of redundancy over one block of memory, addressed by number: all kernels work in place on one shared
 * WebAssembly memory, which is also the buffer of file I/O, so nothing is copied between thread, kernel and file.
 *
 * Field: GF(2^8) with polynomial x^8+x^4+x^3+x^2+1 (0x11d), generator 2.
 *
 *   P = D0 + D1 + ... + Dn-1             (+ is XOR)
 *   Q = 2^0*D0 + 2^1*D1 + ... + 2^(n-1)*Dn-1
 *
 * Addresses are byte offsets into the memory, up to 4 GiB - 2; any alignment is right, 16-byte alignment is fast. Ranges
 * either coincide, where that is allowed below, or do not overlap. In a list of data addresses `null` stands for a chunk of
 * zeros. A length of 0 does nothing. Nothing outside the named ranges is written, but for the instance's own work area.
 *
 * Instances do not lock. Two threads may work in one memory at once when each has its own instance and work area, and what
 * one writes the other does not touch.
 */

/** What is lost of a stripe, by Q-order index of the data chunks; x < y, and both < 255, where 2^i begins to repeat. */
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
  /** target = XOR of all sources, of which there is at least one. `target` may be among them. With one source, a copy. */
  xor(sources: readonly number[], target: number, lengthBytes: number): void;
  /** Computes P and Q of `data` in Q order; either may be null when it is not wanted. */
  syndrome(data: readonly (number | null)[], p: number | null, q: number | null, lengthBytes: number): void;
  /** One chunk changes: P += old + new, Q += 2^index * (old + new). A parity that is null is left alone. */
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
   * goes (their content on entry is ignored) or null where that answer is not wanted; at least one is. `q` is null below
   * raid6. What `erasure` does not name is only read, and only as far as the erasure needs it: D takes P and never Q.
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

/** Where an instance works. */
export interface KernelSite {
  readonly memory: WebAssembly.Memory;
  /** The instance's work area: `workAreaBytes` bytes, a multiple of 64, that nobody else touches. One for each thread. */
  readonly tableAddress: number;
}

/**
 * Constants, the list of addresses or passes of a call, and two strips of 4 KiB that stand in for results that are not
 * wanted; assembly/kernels.ts has the map.
 */
export const workAreaBytes = 12_288;

/** P+Q takes this many chunks whatever the gaps between them, XOR this many sources. More than 255 have no two-failure recovery. */
export const maxChunks = 320;
