/**
 * Large writes of one connection, on their way from the socket to the device.
 *
 * A client that writes from one end to the other sends requests of its own size, and what the device likes best has another:
 * a whole stripe, for which nothing has to be read. So payload is received into *parts* that end where the device's own units end,
 * and one write may lie in several parts and one part hold several writes:
 *
 *   writes   |---- 1 ----|---- 2 ----|---- 3 ----|
 *   parts    |------- a -------|------- b -------|
 *
 * A part goes to the device when it is full. One that is not waits for the rest only where that is likely to come (this write began where
 * the one before it ended) and while waiting costs nothing: the rest is being received, or the device is busy with other parts; and never
 * longer than HOLD_MS: then it is cut where the last whole write in it ends. Never amid a write: where a socket's bytes
 * end is no place where a device's blocks do, and a connection that broke then would leave half a sector written.
 *
 * A write is answered when all its parts are done. Where a part of several writes is refused, each of them is tried alone: what
 * one of them has met is not the others' business. That none of them is answered before is not enough for it: whoever asked may be gone,
 * and another have written there since. So it is one change with the first attempt, which who closes the connection waits for, and where
 * nobody is told any more nothing is tried again.
 *
 * Where the device lends memory (device.ts), parts are in it, and payload is copied by nobody but the kernel.
 */

import { assert } from '../errors.ts';
import type { Host } from '../host.ts';
import { MIB, roundUp } from '../units.ts';
import type { Loan } from './export.ts';

/** Units of a device that are larger than this are not waited for: memory for them is held by every connection. */
const UNIT_BYTES_MAX = 8 * MIB;
const HOLD_MS = 2;
/** With more than this kept for what did not come, parts are no larger than what they are for. */
const SLACK_BYTES = 8 * MIB;

export interface GatherOptions {
  readonly host: Pick<Host, 'turn' | 'sleep'>;
  readonly lend: (lengthBytes: number) => Loan;
  /** The bytes are the device's until the promise settles. */
  readonly write: (offsetBytes: number, bytes: Uint8Array, fua: boolean) => Promise<void>;
  /** Something is being written, until this settles: a part, and what is tried again of it. */
  readonly onChange: (change: Promise<void>) => void;
}

/** Of one write. */
interface Gathered {
  readonly fua: boolean;
  readonly done: (error: unknown) => void;
  openParts: number;
  isComplete: boolean;
  error: unknown;
}

/** Several parts may share one, where a part was cut in two because its end did not come. */
interface SharedLoan {
  readonly loan: Loan;
  userCount: number;
}

interface Part {
  readonly memory: SharedLoan;
  /** In the memory. */
  readonly from: number;
  to: number;
  readonly end: number;
  /** Of the first byte. */
  readonly offsetBytes: number;
  readonly pieces: Piece[];
  /** Up to here writes are complete. */
  completeTo: number;
}

/** What of a write is in a part. */
interface Piece {
  readonly write: Gathered;
  /** In the memory; it ends where the next one begins. */
  readonly from: number;
}

export class Gatherer {
  readonly #options: GatherOptions;
  readonly #unitBytes: number;
  /** What is being received, and how much of it is still to come. */
  #write: (Gathered & { at: number; readonly end: number; readonly isNext: boolean }) | null = null;
  #part: Part | null = null;
  /** Where the last write ended. */
  #lastEnd = -1;
  /** With the device. */
  #partsUnderWay = 0;
  /** Of them, memory that was kept for what did not come. */
  #slackBytes = 0;
  #isAbandoned = false;

  constructor(
    limits: { readonly preferredBytes: number; readonly blockBytes: number },
    options: GatherOptions,
  ) {
    this.#options = options;
    const unit = roundUp(limits.preferredBytes, limits.blockBytes);
    this.#unitBytes =
      unit > UNIT_BYTES_MAX ? roundUp(MIB, limits.blockBytes) : unit * Math.max(1, Math.floor(MIB / unit));
  }

  /** The payload of a write comes next; `done` is called with null when it is written, or with what went wrong. */
  begin(offsetBytes: number, lengthBytes: number, fua: boolean, done: (error: unknown) => void): void {
    assert(this.#write === null, 'payload of one write comes at a time');
    const part = this.#part;
    if (part !== null && part.offsetBytes + part.to - part.from !== offsetBytes) this.#submit();
    const isNext = offsetBytes === this.#lastEnd;
    this.#write = {
      fua,
      done,
      openParts: 0,
      isComplete: false,
      error: null,
      at: offsetBytes,
      end: offsetBytes + lengthBytes,
      isNext,
    };
  }

  /** Where the next of the payload goes: not empty, and no more than is still to come. */
  room(): Uint8Array {
    const write = this.#write;
    assert(write !== null, 'there is room for the payload of a write');
    const part = this.#part ?? this.#makePart(write);
    if (part.pieces.at(-1)?.write !== write) {
      part.pieces.push({ write, from: part.to });
      write.openParts += 1;
    }
    const to = Math.min(part.end, part.to + write.end - write.at);
    return part.memory.loan.bytes.subarray(part.to, to);
  }

  /** So much of the room holds payload. */
  filled(lengthBytes: number): void {
    const [write, part] = [this.#write, this.#part];
    assert(write !== null && part !== null, 'who fills has been given room');
    part.to += lengthBytes;
    write.at += lengthBytes;
    if (write.at === write.end) {
      part.completeTo = part.to;
      write.isComplete = true;
      this.#write = null;
      this.#lastEnd = write.end;
    }
    if (part.to === part.end || (write.isComplete && write.fua)) this.#submit();
    else if (write.isComplete) this.#holdBriefly(part);
  }

  /**
   * What is being received ends in the middle: of it nothing more is written, and it is not answered. The room that was given last stays
   * as it is until the function is called that is returned: somebody may still be told to read into it.
   */
  abandonWrite(): () => void {
    const part = this.#part;
    if (part !== null) part.memory.userCount += 1;
    if (this.#forgetWrite()) this.#submit();
    return () => {
      if (part !== null) this.#letGo(part);
    };
  }

  /** Nothing that the device has not been given is written any more. */
  abandon(error: unknown): void {
    this.#isAbandoned = true;
    this.#forgetWrite();
    const part = this.#part;
    this.#part = null;
    if (part === null) return;
    this.#letGo(part);
    this.#end(part, error);
  }

  /** True where there was some of it in the part. */
  #forgetWrite(): boolean {
    const [write, part] = [this.#write, this.#part];
    this.#write = null;
    this.#lastEnd = -1;
    if (write === null || part === null || part.pieces.at(-1)?.write !== write) return false;
    part.pieces.pop();
    part.to = part.completeTo;
    return true;
  }

  #makePart(write: { readonly at: number; readonly end: number; readonly isNext: boolean }): Part {
    const unitEnd = (Math.floor(write.at / this.#unitBytes) + 1) * this.#unitBytes;
    const mayGrow = write.isNext && this.#slackBytes < SLACK_BYTES;
    const end = (mayGrow ? unitEnd : Math.min(unitEnd, write.end)) - write.at;
    const memory = { loan: this.#options.lend(end), userCount: 1 };
    this.#part = { memory, from: 0, to: 0, end, offsetBytes: write.at, pieces: [], completeTo: 0 };
    return this.#part;
  }

  /** What there is of the part goes to the device. */
  #submit(): void {
    const part = this.#part;
    this.#part = null;
    if (part === null) return;
    if (part.to === part.from) {
      this.#letGo(part);
      this.#end(part, null);
      return;
    }
    const slackBytes = part.end - part.to;
    this.#partsUnderWay += 1;
    this.#slackBytes += slackBytes;
    const change = this.#carryOut(part).then((answer) => {
      this.#partsUnderWay -= 1;
      this.#slackBytes -= slackBytes;
      this.#letGo(part);
      answer();
      if (this.#partsUnderWay === 0 && this.#write === null) this.#submit();
    });
    this.#options.onChange(change);
  }

  /** Resolves to what tells those who asked. */
  async #carryOut(part: Part): Promise<() => void> {
    const { from, to, pieces } = part;
    const isDurable = pieces.some(({ write }) => write.fua);
    const error = await this.#writeOf(part, from, to, isDurable);
    // What nobody is told of any more is not tried again: its asker may have done so by another way, and written since.
    if (error === null || pieces.length === 1 || this.#isAbandoned) return () => this.#end(part, error);
    const refusals = await Promise.all(
      pieces.map((piece, index) =>
        this.#writeOf(part, piece.from, pieces[index + 1]?.from ?? to, piece.write.fua),
      ),
    );
    return () => {
      for (const [index, piece] of pieces.entries()) endPiece(piece, refusals[index] ?? null);
    };
  }

  /** What was wrong, or null. */
  #writeOf({ memory, from, offsetBytes }: Part, start: number, end: number, fua: boolean): Promise<unknown> {
    const bytes = memory.loan.bytes.subarray(start, end);
    return this.#options.write(offsetBytes + start - from, bytes, fua).then(
      () => null,
      (error: unknown) => error,
    );
  }

  /** See the top of the file. */
  #holdBriefly(part: Part): void {
    this.#options.host.turn(() => {
      if (this.#part !== part) return;
      if (this.#write === null && this.#partsUnderWay === 0) this.#submit();
      else void this.#options.host.sleep(HOLD_MS).then(() => this.#cut(part));
    });
  }

  /** The rest has not come in time. What is whole goes to the device, and a write that has begun is a part of its own. */
  #cut(part: Part): void {
    if (this.#part !== part) return;
    const { memory, from, to, end, completeTo, offsetBytes, pieces } = part;
    const piece = pieces.at(-1);
    const isBegun = piece !== undefined && piece.write === this.#write;
    if (isBegun) {
      memory.userCount += 1;
      pieces.pop();
      part.to = completeTo;
    }
    this.#submit();
    if (!isBegun) return;
    const rest = { from: completeTo, to, end, completeTo };
    this.#part = { memory, ...rest, offsetBytes: offsetBytes + completeTo - from, pieces: [piece] };
  }

  #letGo({ memory }: Part): void {
    memory.userCount -= 1;
    if (memory.userCount === 0) memory.loan.giveBack();
  }

  #end(part: Part, error: unknown): void {
    for (const piece of part.pieces) endPiece(piece, error);
  }
}

function endPiece({ write }: Piece, error: unknown): void {
  write.error ??= error;
  write.openParts -= 1;
  if (write.isComplete && write.openParts === 0) write.done(write.error);
}
