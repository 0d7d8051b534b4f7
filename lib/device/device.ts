/**
 * The one seam: everything that holds bytes is a `Device`. A file, memory, a fault injector, an array, a
 * multipath bundle, a snapshot and an NBD export are all this, and one conformance suite judges them.
 *
 * The contract
 * - Offsets and lengths are bytes, multiples of `limits.blockBytes`, inside the device, and not empty. The public
 *   methods check that once, here; `do…` methods get only what passed.
 * - A request is a list of buffers (one `Uint8Array` is a list of one): what is contiguous on the device need not be
 *   contiguous in memory.
 * - `read` fills all of its buffers or throws and leaves their content unspecified.
 * - `write` resolves when the device has accepted the bytes. Only `flush`, or `fua`, makes them durable: a flush
 *   covers every write that was acknowledged before the flush was called.
 * - A write that fails is *indeterminate*: each block of it may be old or new. So is one that was in flight when the
 *   power went.
 * - Requests in flight together are unordered. Overlapping writes leave, block by block, one of them.
 * - Buffers belong to the device until the promise settles, unless a device says that it copies (an array does).
 * - `flush` that failed once fails for ever after: what it did not write may be gone from the cache, and a second
 *   call that "succeeds" would lie. The answer to it is to fail the member.
 * - What the contract refuses, and everything else that goes wrong, is a rejected promise: no method throws.
 * - `close` refuses what comes after it with CLOSED, and resolves when everything in flight has settled: done, or
 *   CLOSED where a device knows that it had not begun.
 *
 * Operations are abstract, never defaulted to pass-through: a filter that has not thought about an operation must not
 * compile. A silent default is how an old filter corrupts new data.
 */
import { RaidError } from '../errors.ts';

export type Buffers = Uint8Array | readonly Uint8Array[];

export interface Limits {
  readonly sizeBytes: number;
  /** Every offset and length is a multiple of it; 1 where any byte can be addressed. */
  readonly blockBytes: number;
  /** The size at which a request costs no more than it must (a page, a chunk, a full stripe). */
  readonly preferredBytes: number;
  readonly readOnly: boolean;
}

export interface WriteOptions {
  /** Durable before the promise resolves, as if a flush of these bytes alone followed. */
  readonly fua?: boolean;
}

export interface ZeroOptions extends WriteOptions {
  /** May release the space below (default true); false keeps it allocated. */
  readonly mayUnmap?: boolean;
}

/** A run of blocks of one kind. `zero` promises that it reads as zeros; `allocated` false: no space is used for it. */
export interface Extent {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly allocated: boolean;
  readonly zero: boolean;
}

/**
 * Bytes that a worker thread can reach by itself, synchronously: plain data that crosses threads.
 * `offsetBytes` is where the device begins in the file or the memory.
 */
export type DirectAccess =
  | { readonly kind: 'file'; readonly fd: number; readonly offsetBytes: number }
  | { readonly kind: 'memory'; readonly memory: SharedArrayBuffer; readonly offsetBytes: number }
  /** By this thread only. */
  | { readonly kind: 'calls'; readonly calls: BlockingCalls; readonly offsetBytes: number };

/** Done when they return, all of it; who fails throws a `RaidError`. */
export interface BlockingCalls {
  read(offsetBytes: number, target: Uint8Array): void;
  write(offsetBytes: number, source: Uint8Array): void;
  flush(): void;
}

/**
 * Memory that a device reads into and writes from without a copy, given to it as the one buffer of a request; where the request
 * passes other devices on its way it may be copied all the same. Lent briefly, since the device works with what is left.
 */
export interface Lender {
  /** Null where there is too little just now. It holds what an earlier request left there. */
  lend(lengthBytes: number): Uint8Array | null;
  /** When no request uses it any more. */
  takeBack(lent: Uint8Array): void;
}

export abstract class Device implements AsyncDisposable {
  /** For messages: a path, a URI, or what the maker called it. */
  abstract readonly name: string;
  abstract readonly limits: Limits;
  /**
   * How a lane may reach the same bytes without this object, or null where every request must pass through it (a
   * filter that counts, delays or fails requests; a remote device).
   */
  abstract readonly direct: DirectAccess | null;

  /** Null where a copy is made in any case, or none. */
  get lender(): Lender | null {
    return null;
  }

  #closed = false;
  #closing: Promise<void> | null = null;

  get isClosed(): boolean {
    return this.#closed;
  }

  // Not `async`: each would add a promise and two turns of the microtask queue to every request of every layer.

  read(offsetBytes: number, target: Buffers): Promise<void> {
    try {
      const targets = listOf(target);
      this.#check(offsetBytes, totalBytes(targets));
      return this.doRead(offsetBytes, targets);
    } catch (refusal) {
      return Promise.reject(refusal);
    }
  }

  write(offsetBytes: number, source: Buffers, options?: WriteOptions): Promise<void> {
    try {
      const sources = listOf(source);
      this.#checkWritable();
      this.#check(offsetBytes, totalBytes(sources));
      return this.doWrite(offsetBytes, sources, options?.fua === true);
    } catch (refusal) {
      return Promise.reject(refusal);
    }
  }

  flush(): Promise<void> {
    return attempt(() => {
      this.#checkOpen();
      return this.doFlush();
    });
  }

  /** The content of the range is no longer needed: it reads as it was or as zeros, and stays so until written. */
  discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return attempt(() => {
      this.#checkWritable();
      this.#check(offsetBytes, lengthBytes);
      return this.doDiscard(offsetBytes, lengthBytes);
    });
  }

  /** The range reads as zeros afterwards. */
  writeZeroes(offsetBytes: number, lengthBytes: number, options: ZeroOptions = {}): Promise<void> {
    return attempt(() => {
      this.#checkWritable();
      this.#check(offsetBytes, lengthBytes);
      return this.doWriteZeroes(offsetBytes, lengthBytes, {
        fua: options.fua === true,
        mayUnmap: options.mayUnmap !== false,
      });
    });
  }

  /** Extents that cover exactly the range, in order; neighbours differ. */
  blockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return attempt(() => {
      this.#check(offsetBytes, lengthBytes);
      return this.doBlockStatus(offsetBytes, lengthBytes);
    });
  }

  /** NOT_SUPPORTED where the size is not this device's to change. What is gained has no promised content. */
  resize(sizeBytes: number): Promise<void> {
    return attempt(() => {
      this.#checkWritable();
      if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % this.limits.blockBytes !== 0) {
        throw new RaidError('BAD_ARGUMENT', `${sizeBytes} is not a size that ${this.name} can have`, {
          device: this.name,
        });
      }
      return this.doResize(sizeBytes);
    });
  }

  /** Idempotent. What was not flushed may not be durable: a device that must flush first says so. */
  close(): Promise<void> {
    if (this.#closing === null) {
      this.#closed = true;
      this.#closing = attempt(() => this.doClose());
    }
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  protected abstract doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void>;
  protected abstract doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void>;
  protected abstract doFlush(): Promise<void>;
  protected abstract doDiscard(offsetBytes: number, lengthBytes: number): Promise<void>;
  protected abstract doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void>;
  protected abstract doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]>;
  protected abstract doResize(sizeBytes: number): Promise<void>;
  protected abstract doClose(): Promise<void>;

  #checkOpen(): void {
    if (this.#closed) {
      throw new RaidError('CLOSED', `${this.name} is closed`, { device: this.name });
    }
  }

  #checkWritable(): void {
    this.#checkOpen();
    if (this.limits.readOnly) {
      throw new RaidError('READ_ONLY', `${this.name} is open for reading only`, { device: this.name });
    }
  }

  #check(offsetBytes: number, lengthBytes: number): void {
    this.#checkOpen();
    const { sizeBytes, blockBytes } = this.limits;
    const place = { device: this.name, offsetBytes, lengthBytes };
    if (lengthBytes === 0)
      throw new RaidError('ZERO_LENGTH', `a request to ${this.name} has no bytes`, place);
    if (
      !Number.isSafeInteger(offsetBytes) ||
      !Number.isSafeInteger(lengthBytes) ||
      offsetBytes < 0 ||
      lengthBytes < 0 ||
      lengthBytes > sizeBytes - offsetBytes
    ) {
      throw new RaidError(
        'OUT_OF_RANGE',
        `${lengthBytes} bytes at ${offsetBytes} lie outside ${this.name}, which has ${sizeBytes} bytes`,
        place,
      );
    }
    if (blockBytes > 1 && (offsetBytes % blockBytes !== 0 || lengthBytes % blockBytes !== 0)) {
      throw new RaidError(
        'UNALIGNED',
        `${lengthBytes} bytes at ${offsetBytes}: ${this.name} takes multiples of ${blockBytes} bytes`,
        place,
      );
    }
  }
}

/** Its limits say that it is only read, so the contract turns every change away before it comes here. */
export abstract class ReadOnlyDevice extends Device {
  protected override doWrite(): Promise<void> {
    return this.#never();
  }

  protected override doDiscard(): Promise<void> {
    return this.#never();
  }

  protected override doWriteZeroes(): Promise<void> {
    return this.#never();
  }

  protected override doResize(): Promise<void> {
    return this.#never();
  }

  #never(): Promise<never> {
    return Promise.reject(new Error(`${this.name} is only read, and its limits do not say so`));
  }
}

function attempt<T>(work: () => Promise<T>): Promise<T> {
  try {
    return work();
  } catch (refusal) {
    return Promise.reject(refusal);
  }
}

function listOf(buffers: Buffers): readonly Uint8Array[] {
  return buffers instanceof Uint8Array ? [buffers] : buffers;
}

export function totalBytes(buffers: readonly Uint8Array[]): number {
  let sum = 0;
  for (const buffer of buffers) sum += buffer.byteLength;
  return sum;
}
