/**
 * A device that is slow, or that hangs until it is told to go on. A delay passes before the request goes down, so what
 * is delayed has not happened yet: a write that was held back and released lands late, after whatever was done in the
 * meantime (the zombie write).
 *
 * What a delayed write carries is copied when it arrives, as a wire would have carried it: the layer above may have
 * given the request up long before it lands, and used the buffer for something else.
 *
 * It owns the device below: closing it closes that. What was still waiting to go down fails with CLOSED; what had
 * been done and waits only for its answer to be let through gets its answer.
 */
import { RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import { copyOf } from './buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from './device.ts';
import { InFlight } from './in-flight.ts';
import type { Operation, OperationName } from './operation.ts';

/** Milliseconds for every request, for each kind (none where a kind is not named), or as a function says. */
export type Delay = number | { readonly [op in OperationName]?: number } | ((operation: Operation) => number);

export interface DelayOptions {
  readonly host: Pick<Host, 'sleep'>;
  readonly delayMs?: Delay;
  readonly name?: string;
}

export interface HoldOptions {
  /** Which requests (default: all that arrive from now on). */
  readonly only?: (operation: Operation) => boolean;
  /** `before`: it has not happened yet (default). `after`: it has, and only the answer does not come. */
  readonly when?: 'before' | 'after';
}

/** A hang in force. */
export interface Hold {
  /** The requests that are stuck in it, in the order in which they got there. */
  readonly waiting: readonly Operation[];
  /** Lets through all that wait, in their order, and everything after them. */
  release(): void;
}

interface Waiter {
  readonly operation: Operation;
  readonly goOn: () => void;
}

interface Gate {
  readonly operation: Operation;
  readonly delayMs: number;
  readonly points: readonly HoldPoint[];
  /** Something passes before the request goes down. */
  readonly holdsUp: boolean;
}

class HoldPoint implements Hold {
  readonly only: (operation: Operation) => boolean;
  readonly when: 'before' | 'after';
  readonly #forget: (point: HoldPoint) => void;
  #waiters: Waiter[] = [];
  #released = false;

  constructor(options: HoldOptions, forget: (point: HoldPoint) => void) {
    this.only = options.only ?? (() => true);
    this.when = options.when ?? 'before';
    this.#forget = forget;
  }

  get waiting(): readonly Operation[] {
    return this.#waiters.map(({ operation }) => operation);
  }

  /** A request may get here only after the release, when another hold or a delay came first. */
  wait(operation: Operation): Promise<void> {
    if (this.#released) return Promise.resolve();
    return new Promise((goOn) => this.#waiters.push({ operation, goOn }));
  }

  release(): void {
    this.#released = true;
    this.#forget(this);
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const { goOn } of waiters) goOn();
  }
}

export class DelayDevice extends Device {
  override readonly name: string;
  override readonly direct = null;
  readonly #below: Device;
  readonly #host: Pick<Host, 'sleep'>;
  readonly #holds = new Set<HoldPoint>();
  readonly #abandon = new Set<() => void>();
  readonly #inFlight = new InFlight();
  #delay: Delay;

  constructor(below: Device, options: DelayOptions) {
    super();
    this.name = options.name ?? below.name;
    this.#below = below;
    this.#host = options.host;
    this.#delay = options.delayMs ?? 0;
  }

  override get limits(): Limits {
    return this.#below.limits;
  }

  /** For requests that arrive from now on. */
  setDelay(delayMs: Delay): void {
    this.#delay = delayMs;
  }

  /** From now on requests hang, until the hold is released. Several holds are passed one after the other. */
  hold(options: HoldOptions = {}): Hold {
    const point = new HoldPoint(options, (released) => this.#holds.delete(released));
    this.#holds.add(point);
    return point;
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const operation: Operation = { op: 'read', offsetBytes, lengthBytes: totalBytes(targets) };
    return this.#pass(this.#gateFor(operation), () => this.#below.read(offsetBytes, targets));
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    const lengthBytes = totalBytes(sources);
    const operation: Operation = { op: 'write', offsetBytes, lengthBytes, fua };
    const gate = this.#gateFor(operation);
    const sent = gate.holdsUp ? copyOf(sources, lengthBytes) : sources;
    return this.#pass(gate, () => this.#below.write(offsetBytes, sent, { fua }));
  }

  protected override doFlush(): Promise<void> {
    return this.#pass(this.#gateFor({ op: 'flush' }), () => this.#below.flush());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#pass(this.#gateFor({ op: 'discard', offsetBytes, lengthBytes }), () =>
      this.#below.discard(offsetBytes, lengthBytes),
    );
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#pass(this.#gateFor({ op: 'writeZeroes', offsetBytes, lengthBytes, ...options }), () =>
      this.#below.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#pass(this.#gateFor({ op: 'blockStatus', offsetBytes, lengthBytes }), () =>
      this.#below.blockStatus(offsetBytes, lengthBytes),
    );
  }

  protected override doResize(sizeBytes: number): Promise<void> {
    return this.#pass(this.#gateFor({ op: 'resize', sizeBytes }), () => this.#below.resize(sizeBytes));
  }

  protected override async doClose(): Promise<void> {
    for (const abandon of this.#abandon) abandon();
    for (const point of this.#holds) point.release();
    // First told to close, then waited for: what is in flight may hang in a device below that closing wakes.
    const closed = this.#below.close();
    await this.#inFlight.whenIdle();
    await closed;
  }

  /** What stands in the way of a request is settled when it arrives; a hold that begins later is for later ones. */
  #gateFor(operation: Operation): Gate {
    const delayMs = this.#delayOf(operation);
    const points = [...this.#holds].filter((point) => point.only(operation));
    return {
      operation,
      delayMs,
      points,
      holdsUp: delayMs > 0 || points.some(({ when }) => when === 'before'),
    };
  }

  #pass<T>(gate: Gate, run: () => Promise<T>): Promise<T> {
    return this.#inFlight.run(async () => {
      const { operation, delayMs, points } = gate;
      if (delayMs > 0) await this.#unlessClosed(this.#host.sleep(delayMs));
      for (const point of points)
        if (point.when === 'before') await this.#unlessClosed(point.wait(operation));
      const result = await run();
      for (const point of points) if (point.when === 'after') await point.wait(operation);
      return result;
    });
  }

  #delayOf(operation: Operation): number {
    if (typeof this.#delay === 'number') return this.#delay;
    return typeof this.#delay === 'function' ? this.#delay(operation) : (this.#delay[operation.op] ?? 0);
  }

  #unlessClosed(waited: Promise<void>): Promise<void> {
    return new Promise((resolve, reject) => {
      const abandon = () =>
        reject(
          new RaidError('CLOSED', `${this.name} was closed before a delayed request went down`, {
            device: this.name,
          }),
        );
      this.#abandon.add(abandon);
      waited.then(resolve, reject).finally(() => this.#abandon.delete(abandon));
    });
  }
}
