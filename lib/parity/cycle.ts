/**
 * Every call goes to the next of several implementations, so that whatever runs on top of it exercises them all, and a
 * difference between two of them shows as a wrong byte in an ordinary test. (ZFS has this as zfs_vdev_raidz_impl=cycle.)
 * They may share one work area, as only one of them runs at a time.
 */
import { assert } from '../errors.ts';
import type { Erasure, Kernels } from './kernels.ts';

export class CycleKernels implements Kernels {
  readonly name = 'cycle';
  readonly #all: readonly Kernels[];
  #calls = 0;

  constructor(all: readonly Kernels[]) {
    assert(all.length > 0, 'there is something to cycle through');
    this.#all = all;
  }

  xor(sources: readonly number[], target: number, lengthBytes: number): void {
    this.#next().xor(sources, target, lengthBytes);
  }

  syndrome(data: readonly (number | null)[], p: number | null, q: number | null, lengthBytes: number): void {
    this.#next().syndrome(data, p, q, lengthBytes);
  }

  update(
    oldData: number,
    newData: number,
    index: number,
    p: number | null,
    q: number | null,
    lengthBytes: number,
  ): void {
    this.#next().update(oldData, newData, index, p, q, lengthBytes);
  }

  recover(
    data: readonly (number | null)[],
    p: number | null,
    q: number | null,
    erasure: Erasure,
    lengthBytes: number,
  ): void {
    this.#next().recover(data, p, q, erasure, lengthBytes);
  }

  compare(a: number, b: number, lengthBytes: number): number {
    return this.#next().compare(a, b, lengthBytes);
  }

  verify(data: readonly (number | null)[], p: number, q: number | null, lengthBytes: number): number {
    return this.#next().verify(data, p, q, lengthBytes);
  }

  isZero(address: number, lengthBytes: number): boolean {
    return this.#next().isZero(address, lengthBytes);
  }

  copy(source: number, target: number, lengthBytes: number): void {
    this.#next().copy(source, target, lengthBytes);
  }

  fill(target: number, byte: number, lengthBytes: number): void {
    this.#next().fill(target, byte, lengthBytes);
  }

  #next(): Kernels {
    const kernels = this.#all[this.#calls % this.#all.length]!;
    this.#calls += 1;
    return kernels;
  }
}
