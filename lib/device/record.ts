/**
 * A device that writes down what is asked of it: a start and a finish for each request, in the order in which they
 * happened. Claims about order ("the bitmap is durable before the data is written") become claims about the log,
 * which is plain data.
 *
 * The log grows without bound, and with `capture` it holds a copy of everything written and read: it is for tests and
 * for simulations that end. It owns the device below: closing it closes that.
 */
import { type ErrorCode, RaidError } from '../errors.ts';
import { copyOf } from './buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from './device.ts';
import { InFlight } from './in-flight.ts';
import { describeOperation, type Operation } from './operation.ts';

export type RecordEntry =
  | {
      readonly event: 'start';
      /** Shared by a start and its finish; counts the requests from 1. */
      readonly request: number;
      readonly operation: Operation;
      /** With `capture`: what a write was given. */
      readonly data?: Uint8Array;
    }
  | {
      readonly event: 'finish';
      readonly request: number;
      readonly operation: Operation;
      readonly outcome: 'done' | ErrorCode | 'bug';
      /** With `capture`: what a read came back with. */
      readonly data?: Uint8Array;
    };

export interface RecordOptions {
  readonly name?: string;
  /** Keep the bytes too (default false). */
  readonly capture?: boolean;
}

/** `data`: what a write was given, with `capture`. */
type Matcher = (operation: Operation, data: Uint8Array | undefined) => boolean;

export class RecordDevice extends Device {
  override readonly name: string;
  override readonly direct = null;
  readonly #below: Device;
  readonly #capture: boolean;
  readonly #inFlight = new InFlight();
  #log: RecordEntry[] = [];
  #requests = 0;

  constructor(below: Device, options: RecordOptions = {}) {
    super();
    this.name = options.name ?? below.name;
    this.#below = below;
    this.#capture = options.capture === true;
  }

  override get limits(): Limits {
    return this.#below.limits;
  }

  get log(): readonly RecordEntry[] {
    return this.#log;
  }

  clear(): void {
    this.#log = [];
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = totalBytes(targets);
    return this.#note(
      { op: 'read', offsetBytes, lengthBytes },
      () => this.#below.read(offsetBytes, targets),
      {
        after: targets,
      },
    );
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    const lengthBytes = totalBytes(sources);
    return this.#note(
      { op: 'write', offsetBytes, lengthBytes, fua },
      () => this.#below.write(offsetBytes, sources, { fua }),
      { before: sources },
    );
  }

  protected override doFlush(): Promise<void> {
    return this.#note({ op: 'flush' }, () => this.#below.flush());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#note({ op: 'discard', offsetBytes, lengthBytes }, () =>
      this.#below.discard(offsetBytes, lengthBytes),
    );
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#note({ op: 'writeZeroes', offsetBytes, lengthBytes, ...options }, () =>
      this.#below.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#note({ op: 'blockStatus', offsetBytes, lengthBytes }, () =>
      this.#below.blockStatus(offsetBytes, lengthBytes),
    );
  }

  protected override doResize(sizeBytes: number): Promise<void> {
    return this.#note({ op: 'resize', sizeBytes }, () => this.#below.resize(sizeBytes));
  }

  protected override async doClose(): Promise<void> {
    const closed = this.#below.close();
    await this.#inFlight.whenIdle();
    await closed;
  }

  #note<T>(
    operation: Operation,
    run: () => Promise<T>,
    buffers: { readonly before?: readonly Uint8Array[]; readonly after?: readonly Uint8Array[] } = {},
  ): Promise<T> {
    return this.#inFlight.run(async () => {
      this.#requests += 1;
      const request = this.#requests;
      this.#log.push({ event: 'start', request, operation, ...this.#captured(buffers.before) });
      try {
        const result = await run();
        this.#log.push({
          event: 'finish',
          request,
          operation,
          outcome: 'done',
          ...this.#captured(buffers.after),
        });
        return result;
      } catch (cause) {
        const outcome = cause instanceof RaidError ? cause.code : 'bug';
        this.#log.push({ event: 'finish', request, operation, outcome });
        throw cause;
      }
    });
  }

  #captured(buffers: readonly Uint8Array[] | undefined): { readonly data?: Uint8Array } {
    return this.#capture && buffers !== undefined ? { data: copyOf(buffers, totalBytes(buffers)) } : {};
  }
}

/**
 * One line an entry, to compare and to read:
 *
 *   1 > write 4096+512 fua
 *   1 < write 4096+512 fua: done
 */
export function describeLog(log: readonly RecordEntry[]): string[] {
  return log.map((entry) => {
    const operation = describeOperation(entry.operation);
    return entry.event === 'start'
      ? `${entry.request} > ${operation}`
      : `${entry.request} < ${operation}: ${entry.outcome}`;
  });
}

/**
 * Whether everything that `first` matches had been done before anything that `then` matches was started. False also when
 * either matches nothing: a claim about order that meets no request proves nothing.
 */
export function happenedBefore(log: readonly RecordEntry[], first: Matcher, then: Matcher): boolean {
  let firstFound = false;
  let thenFound = false;
  const open = new Set<number>();
  for (const entry of log) {
    if (entry.event === 'finish') {
      // A request that failed was not done, and never will be.
      if (entry.outcome === 'done') open.delete(entry.request);
      continue;
    }
    if (first(entry.operation, entry.data)) {
      if (thenFound) return false;
      firstFound = true;
      open.add(entry.request);
    }
    if (then(entry.operation, entry.data)) {
      if (open.size > 0) return false;
      thenFound = true;
    }
  }
  return firstFound && thenFound;
}
