/**
 * Makes a list of system calls, as fast as Node can: nothing is planned, computed, allocated or awaited while it runs.
 * The same four functions of `node:fs` that a lane calls, with the same arguments.
 */
import { readSync, readvSync, writeSync, writevSync } from 'node:fs';
import type { Call } from './calls.ts';

export class Replay {
  readonly #bytes: Uint8Array;
  readonly #descriptors: readonly number[];
  readonly #writes: readonly boolean[];
  readonly #positions: readonly number[];
  readonly #addresses: readonly number[];
  readonly #lengths: readonly number[];
  /** Null where one plain buffer is enough. */
  readonly #vectors: readonly (Uint8Array[] | null)[];
  readonly #totalBytes: number;

  /** `descriptors` by member. */
  constructor(memory: WebAssembly.Memory, descriptors: readonly number[], calls: readonly Call[]) {
    this.#bytes = new Uint8Array(memory.buffer);
    this.#descriptors = calls.map(({ member }) => descriptors[member] ?? -1);
    this.#writes = calls.map(({ direction }) => direction === 'write');
    this.#positions = calls.map(({ offsetBytes }) => offsetBytes);
    this.#addresses = calls.map(({ buffers }) => buffers[0]?.address ?? 0);
    this.#lengths = calls.map(({ buffers }) => buffers[0]?.lengthBytes ?? 0);
    this.#vectors = calls.map(({ vectored, buffers }) =>
      vectored
        ? buffers.map(({ address, lengthBytes }) => new Uint8Array(memory.buffer, address, lengthBytes))
        : null,
    );
    this.#totalBytes = calls.reduce(
      (sum, { buffers }) => sum + buffers.reduce((bytes, { lengthBytes }) => bytes + lengthBytes, 0),
      0,
    );
  }

  /** Milliseconds. */
  run(): number {
    const bytes = this.#bytes;
    const descriptors = this.#descriptors;
    const writes = this.#writes;
    const positions = this.#positions;
    const addresses = this.#addresses;
    const lengths = this.#lengths;
    const vectors = this.#vectors;
    let moved = 0;
    const start = performance.now();
    for (let index = 0; index < descriptors.length; index += 1) {
      const descriptor = descriptors[index]!;
      const vector = vectors[index]!;
      if (vector !== null) {
        moved += writes[index]!
          ? writevSync(descriptor, vector, positions[index]!)
          : readvSync(descriptor, vector, positions[index]!);
      } else {
        moved += writes[index]!
          ? writeSync(descriptor, bytes, addresses[index]!, lengths[index]!, positions[index]!)
          : readSync(descriptor, bytes, addresses[index]!, lengths[index]!, positions[index]!);
      }
    }
    const elapsed = performance.now() - start;
    if (moved !== this.#totalBytes) {
      throw new Error(`the bound moved ${moved} bytes, and should have moved ${this.#totalBytes}`);
    }
    return elapsed;
  }
}
