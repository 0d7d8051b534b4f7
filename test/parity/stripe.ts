/**
 * A stripe in a memory of its own, and the truth about it: what every byte of that memory must be. Kernels are judged
 * by the whole memory outside their work area, so a byte written in the wrong place fails as surely as one not written.
 */
import { expect } from 'vitest';
import { type Erasure, type Kernels, workAreaBytes } from '../../lib/parity/kernels.ts';
import { ReferenceKernels } from '../../lib/parity/reference.ts';

export const tableAddress = 64;
const firstAddress = tableAddress + workAreaBytes + 64;
const GUARD = 64;

export interface StripeShape {
  /** In Q order; false is a chunk of zeros that is nowhere. */
  readonly chunks: readonly boolean[];
  readonly lengthBytes: number;
  readonly aligned: boolean;
}

export interface Stripe {
  readonly data: readonly (number | null)[];
  readonly p: number;
  readonly q: number;
  /** Room for one more chunk. */
  readonly extra: number;
  readonly lengthBytes: number;
}

/** One memory for all stripes of a file: making shared memories is what takes time. */
export class Judge {
  readonly memory: WebAssembly.Memory;
  readonly bytes: Buffer;
  readonly truth: Buffer;
  readonly #after: Buffer;
  readonly reference: ReferenceKernels;
  #end = 0;

  constructor(pages: number) {
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    this.bytes = Buffer.from(this.memory.buffer as SharedArrayBuffer);
    this.truth = Buffer.alloc(pages * 65_536);
    this.#after = Buffer.alloc(pages * 65_536);
    this.reference = new ReferenceKernels({ memory: this.memory, tableAddress });
  }

  /** Lays a stripe out, fills memory with what looks random, and computes its parities with the reference. */
  layOut(shape: StripeShape): Stripe {
    const { chunks, lengthBytes, aligned } = shape;
    let next = firstAddress;
    let count = 0;
    const place = (): number => {
      // Misaligned, every chunk differently: 1, 14, 11, 8 ... modulo 16.
      const address = aligned ? next : next + ((1 + 13 * count) % 16);
      count += 1;
      next = Math.ceil((address + lengthBytes + GUARD) / 64) * 64;
      return address;
    };
    const data = chunks.map((there) => (there ? place() : null));
    const [p, q, extra] = [place(), place(), place()];
    this.#end = next;
    expect(this.#end).toBeLessThanOrEqual(this.bytes.length);
    let state = 12_345 + lengthBytes;
    for (let k = 0; k < this.#end; k += 1) {
      state = (Math.imul(state, 1_103_515_245) + 12_345) | 0;
      if (k < tableAddress || k >= tableAddress + workAreaBytes) this.bytes[k] = state >>> 16;
    }
    this.reference.syndrome(data, p, q, lengthBytes);
    this.learn();
    return { data, p, q, extra, lengthBytes };
  }

  /** What memory is now is the truth. */
  learn(): void {
    this.bytes.copy(this.truth, 0, 0, this.#end);
  }

  restore(): void {
    this.truth.copy(this.bytes, 0, 0, tableAddress);
    this.truth.copy(this.bytes, firstAddress - GUARD, firstAddress - GUARD, this.#end);
  }

  poison(address: number | null, lengthBytes: number): void {
    if (address !== null) this.bytes.fill(0xba, address, address + lengthBytes);
  }

  check(claim: () => string): void {
    this.#checkIs(this.truth, claim);
  }

  /** Whatever `act` does to memory, it does the same with `kernels` as with the reference. Memory is then the truth again. */
  checkAgrees(kernels: Kernels, act: (which: Kernels) => void, claim: () => string): void {
    act(this.reference);
    this.bytes.copy(this.#after, 0, 0, this.#end);
    this.restore();
    act(kernels);
    this.#checkIs(this.#after, claim);
    this.restore();
  }

  /** Poisons what is lost, recovers it, and checks all of memory. */
  checkRecovery(kernels: Kernels, stripe: Stripe, erasure: Erasure): void {
    const { data, p, q, lengthBytes } = stripe;
    for (const address of lostOf(stripe, erasure)) this.poison(address, lengthBytes);
    kernels.recover(data, p, q, erasure, lengthBytes);
    this.check(
      () => `${kernels.name} ${JSON.stringify(erasure)} of ${data.length} chunks, ${lengthBytes} bytes`,
    );
  }

  /** Cheap when all is well: `expect` is only asked for the message. */
  #checkIs(expected: Buffer, claim: () => string): void {
    const workEnd = tableAddress + workAreaBytes;
    const same =
      this.bytes.compare(expected, workEnd, this.#end, workEnd, this.#end) === 0 &&
      this.bytes.compare(expected, 0, tableAddress, 0, tableAddress) === 0;
    if (same) return;
    for (let k = 0; k < this.#end; k += 1) {
      if (k >= tableAddress && k < workEnd) continue;
      expect(this.bytes[k], `${claim()}: byte at ${k}`).toBe(expected[k]);
    }
  }
}

export function lostOf(stripe: Stripe, erasure: Erasure): (number | null)[] {
  const lost: (number | null)[] = [];
  if ('x' in erasure) lost.push(stripe.data[erasure.x]!);
  if (erasure.kind === 'DD') lost.push(stripe.data[erasure.y]!);
  if (erasure.kind === 'P' || erasure.kind === 'PQ' || erasure.kind === 'DP') lost.push(stripe.p);
  if (erasure.kind === 'Q' || erasure.kind === 'PQ' || erasure.kind === 'DQ') lost.push(stripe.q);
  return lost;
}

/** Everything that two parities can bring back. Chunks that are nowhere cannot be lost. */
export function everyErasure(chunks: readonly boolean[]): Erasure[] {
  const all: Erasure[] = [{ kind: 'P' }, { kind: 'Q' }, { kind: 'PQ' }];
  for (let x = 0; x < chunks.length; x += 1) {
    if (!chunks[x]) continue;
    all.push({ kind: 'D', x }, { kind: 'DP', x }, { kind: 'DQ', x });
    for (let y = x + 1; y < chunks.length; y += 1) {
      if (chunks[y]) all.push({ kind: 'DD', x, y });
    }
  }
  return all;
}

export function solid(count: number): boolean[] {
  return new Array<boolean>(count).fill(true);
}
