/**
 * What a crash explorer has to know of one life of an array: every write and flush that its disks were given and when
 * they answered, every request that the array was asked and when it answered, and who was in sync at each moment. In
 * that order, as one list: a prefix of it is a moment at which the power may go.
 *
 *   write ─▶ written          the disk took it; with `fua` it is durable from here on
 *   flush ─▶ flushed          what was written (answered) before the flush is durable from here on
 *   ask   ─▶ answered         a write to the array; one that is refused is never answered
 *   sync  ─▶ synced           a flush of the array
 *   live                      which disk is in sync in which slot has changed
 */
import { copyOf } from '../device/buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from '../device/device.ts';

export type TraceEvent =
  | {
      readonly what: 'write';
      readonly id: number;
      readonly disk: number;
      readonly offsetBytes: number;
      readonly bytes: Uint8Array;
      readonly fua: boolean;
    }
  | { readonly what: 'written'; readonly id: number }
  | { readonly what: 'flush'; readonly id: number; readonly disk: number }
  | { readonly what: 'flushed'; readonly id: number }
  | {
      readonly what: 'ask';
      readonly id: number;
      readonly sector: number;
      readonly bytes: Uint8Array;
      readonly fua: boolean;
    }
  | { readonly what: 'answered'; readonly id: number }
  | { readonly what: 'sync'; readonly id: number }
  | { readonly what: 'synced'; readonly id: number }
  /** By disk: the slot that it is in sync in; -1; or -2 - slot while it becomes a copy of that slot's member. */
  | { readonly what: 'live'; readonly slots: readonly number[] };

type Untimed = TraceEvent extends infer Event
  ? Event extends { id: number }
    ? Omit<Event, 'id'>
    : never
  : never;

export class Trace {
  readonly events: TraceEvent[] = [];
  readonly #liveSlots: () => readonly number[];
  #live = '';
  #nextId = 0;

  constructor(liveSlots: () => readonly number[]) {
    this.#liveSlots = liveSlots;
  }

  /** Notes the beginning of something, and returns its number. */
  begin(event: Untimed): number {
    const id = this.#nextId;
    this.#nextId += 1;
    this.#note({ ...event, id } as TraceEvent);
    return id;
  }

  end(what: 'written' | 'flushed' | 'answered' | 'synced', id: number): void {
    this.#note({ what, id });
  }

  #note(event: TraceEvent): void {
    const slots = this.#liveSlots();
    const live = slots.join();
    if (live !== this.#live) this.events.push({ what: 'live', slots });
    this.#live = live;
    this.events.push(event);
  }
}

/** A filter that notes what passes. */
export class TracedDevice extends Device {
  override readonly name: string;
  override readonly direct = null;
  readonly #below: Device;
  readonly #trace: Trace;
  readonly #disk: number;

  constructor(below: Device, trace: Trace, disk: number) {
    super();
    this.name = below.name;
    this.#below = below;
    this.#trace = trace;
    this.#disk = disk;
  }

  override get limits(): Limits {
    return this.#below.limits;
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#below.read(offsetBytes, targets);
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    const bytes = copyOf(sources, totalBytes(sources));
    return this.#write(offsetBytes, bytes, fua, () => this.#below.write(offsetBytes, sources, { fua }));
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#write(offsetBytes, new Uint8Array(lengthBytes), options.fua, () =>
      this.#below.writeZeroes(offsetBytes, lengthBytes, options),
    );
  }

  protected override async doFlush(): Promise<void> {
    const id = this.#trace.begin({ what: 'flush', disk: this.#disk });
    await this.#below.flush();
    this.#trace.end('flushed', id);
  }

  /** Reads as before: nothing to note. */
  protected override doDiscard(): Promise<void> {
    return Promise.resolve();
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#below.blockStatus(offsetBytes, lengthBytes);
  }

  protected override doResize(sizeBytes: number): Promise<void> {
    return this.#below.resize(sizeBytes);
  }

  protected override doClose(): Promise<void> {
    return this.#below.close();
  }

  async #write(
    offsetBytes: number,
    bytes: Uint8Array,
    fua: boolean,
    write: () => Promise<void>,
  ): Promise<void> {
    const id = this.#trace.begin({ what: 'write', disk: this.#disk, offsetBytes, bytes, fua });
    await write();
    this.#trace.end('written', id);
  }
}
