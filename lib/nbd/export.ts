/** What a server offers under a name, and the memory in which it does so. */
import type { Device } from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import { RaidError } from '../errors.ts';
import { KIB, MIB, roundUp } from '../units.ts';
import { type BlockSizes, limits, transmissionFlags } from './protocol.ts';

export interface ExportOptions {
  /** What clients ask for; of letters, digits and `. _ - + : @`, at most 200. */
  readonly name: string;
  readonly device: Device;
  /** Refused to write to, whatever the device would take. */
  readonly readOnly?: boolean | undefined;
  readonly description?: string | undefined;
}

const NAME = /^[A-Za-z0-9._+:@-]{1,200}$/;

/** A name stands for a device that somebody gave it to: it is looked up in a map, and never becomes a path. */
export class Export {
  readonly name: string;
  readonly description: string;
  readonly #inFlight = new InFlight();
  readonly #readOnly: boolean;
  #device: Device;
  #isHeld = false;
  #waiting: (() => void)[] = [];

  constructor(options: ExportOptions) {
    if (!NAME.test(options.name)) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `an export cannot be called ${JSON.stringify(options.name)}: take letters, digits and . _ - + : @, at most 200`,
      );
    }
    this.name = options.name;
    this.description = options.description ?? '';
    this.#device = options.device;
    this.#readOnly = options.readOnly === true;
  }

  get device(): Device {
    return this.#device;
  }

  get readOnly(): boolean {
    return this.#readOnly || this.#device.limits.readOnly;
  }

  /** Requests wait until another device is there. */
  get isHeld(): boolean {
    return this.#isHeld;
  }

  /** `transmissionFlags`, to a client that has structured replies or has not. */
  flags(isStructured: boolean): number {
    const {
      HAS_FLAGS,
      READ_ONLY,
      SEND_FLUSH,
      SEND_FUA,
      SEND_TRIM,
      SEND_WRITE_ZEROES,
      SEND_DF,
      CAN_MULTI_CONN,
      SEND_CACHE,
      SEND_FAST_ZERO,
    } = transmissionFlags;
    // A flush goes to the device, which all connections share: it covers what any of them has written.
    const always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    const writing = this.readOnly ? READ_ONLY : SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    return always | writing | (isStructured ? SEND_DF : 0);
  }

  blockSizes(): BlockSizes {
    const { blockBytes, preferredBytes } = this.#device.limits;
    // The protocol wants powers of two; a stripe of three data members is none.
    const preferred = 2 ** Math.floor(Math.log2(Math.max(preferredBytes, blockBytes, 512)));
    return {
      minimumBytes: blockBytes,
      preferredBytes: Math.min(preferred, limits.payloadBytes),
      maximumPayloadBytes: limits.payloadBytes,
    };
  }

  /** Every request goes through here, so that an exchange can wait for those under way and hold up the others. */
  use<Result>(work: (device: Device) => Promise<Result>): Promise<Result> {
    if (this.#isHeld) {
      return new Promise<void>((goOn) => this.whenReleased(goOn)).then(() => this.use(work));
    }
    this.#inFlight.begin();
    const result = work(this.#device);
    const end = (): void => this.#inFlight.end();
    result.then(end, end);
    return result;
  }

  /** Memory of the device's own, which it need not copy from or to. */
  lend(lengthBytes: number): Loan | null {
    const { lender } = this.#device;
    const bytes = lender?.lend(lengthBytes) ?? null;
    return lender === null || bytes === null ? null : { bytes, giveBack: () => lender.takeBack(bytes) };
  }

  /** `goOn` is called when requests may come again. */
  whenReleased(goOn: () => void): void {
    this.#waiting.push(goOn);
  }

  /**
   * Another device takes the place of this one while clients stay connected: requests that come meanwhile wait. Where
   * `make` throws, the export goes on with the device that it had.
   */
  async exchange(make: (device: Device) => Promise<Device>): Promise<void> {
    if (this.#isHeld) throw new RaidError('BUSY', `${this.name} is being exchanged already`);
    this.#isHeld = true;
    try {
      await this.#inFlight.whenIdle();
      this.#device = await make(this.#device);
    } finally {
      this.#isHeld = false;
      const waiting = this.#waiting;
      this.#waiting = [];
      for (const goOn of waiting) goOn();
    }
  }
}

export interface Loan {
  readonly bytes: Uint8Array;
  readonly giveBack: () => void;
}

/** Memory that all connections of a server share. Who finds it used up waits until somebody gives some back. */
export class Budget {
  readonly #limitBytes: number;
  #usedBytes = 0;
  #waiting: (() => void)[] = [];

  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  get usedBytes(): number {
    return this.#usedBytes;
  }

  get hasRoom(): boolean {
    return this.#usedBytes < this.#limitBytes;
  }

  use(bytes: number): void {
    this.#usedBytes += bytes;
  }

  giveBack(bytes: number): void {
    this.#usedBytes -= bytes;
    if (this.#waiting.length === 0 || !this.hasRoom) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const goOn of waiting) goOn();
  }

  whenRoom(goOn: () => void): void {
    this.#waiting.push(goOn);
  }
}

/** As much as one connection may hold: with less, what a deep queue of large reads gives back would be made anew. */
const KEPT_BYTES = 64 * MIB;

/**
 * Buffers for replies, used again: making one costs more than filling it. They come as zeros, and with what an earlier
 * reply held, never with what the process had in its memory; and only what a device has filled is sent.
 */
export class ReplyBuffers {
  readonly #free = new Map<number, Buffer[]>();
  #keptBytes = 0;

  take(lengthBytes: number): Buffer {
    const kept = this.#free.get(capacityFor(lengthBytes))?.pop();
    if (kept === undefined) return Buffer.alloc(capacityFor(lengthBytes));
    this.#keptBytes -= kept.byteLength;
    return kept;
  }

  lend(lengthBytes: number): Loan {
    const whole = this.take(lengthBytes);
    return { bytes: whole.subarray(0, lengthBytes), giveBack: () => this.giveBack(whole) };
  }

  giveBack(buffer: Buffer): void {
    if (this.#keptBytes + buffer.byteLength > KEPT_BYTES) return;
    this.#keptBytes += buffer.byteLength;
    const list = this.#free.get(buffer.byteLength);
    if (list === undefined) this.#free.set(buffer.byteLength, [buffer]);
    else list.push(buffer);
  }
}

/** Powers of two, and from 64 KiB on multiples of it, with room for the head of a reply in front. */
function capacityFor(lengthBytes: number): number {
  const headBytes = 64;
  const dataBytes = Math.max(1, lengthBytes - headBytes);
  const rounded = dataBytes <= 64 * KIB ? 2 ** Math.ceil(Math.log2(dataBytes)) : roundUp(dataBytes, 64 * KIB);
  return headBytes + rounded;
}
