/**
 * One request of a client, and what has come of its answer. Pure: whoever owns the connection feeds it, and hears what it
 * makes of that.
 *
 * The server is not trusted. An answer to a read may come in pieces, in any order, as bytes and as holes; every byte that
 * was asked for must come exactly once, and none that was not. Until that is shown nothing is believed: a piece that lies
 * outside, or on another one, or that is missing at the end, is a violation, and ends the connection. So no byte outside
 * the buffers of the request is ever written, and no read succeeds with a byte in it that nobody sent.
 */
import { scatter, viewsOf } from '../device/buffers.ts';
import type { Extent } from '../device/device.ts';
import { type ErrorCode, RaidError } from '../errors.ts';
import { roundDown, roundUp } from '../units.ts';
import {
  allocationFlags,
  type Chunk,
  commandFlags,
  commands,
  type Descriptor,
  nbdErrors,
} from './protocol.ts';

/** What is asked for. */
export interface Ask {
  /** `commands` */
  readonly command: number;
  /** `commandFlags` */
  readonly flags: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  /** To be filled by a read, or sent by a write; of other commands none. */
  readonly buffers: readonly Uint8Array[];
}

/** Null: done. `again`: the server is on its way out, and has not done it, or not said so. */
export type Outcome = RaidError | 'again' | null;

/** Pieces of one answer that do not touch each other: who sends more than this wants to be a burden. */
const SCATTERED = 4096;

export class Exchange implements Ask {
  readonly command: number;
  readonly flags: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly buffers: readonly Uint8Array[];
  readonly settle: (error: RaidError | null) => void;
  /** How often it has been put on a wire. */
  sends = 0;
  /** When it was sent last, in ticks of the watch. */
  sentTick = 0;
  /** Where it ends in all the bytes that its connection was given to send. */
  sentTo = 0;
  /** What the memory said when it was sent: of a flush, what it covers; of a read, the state it saw. */
  mark = 0;
  /** Of a block status. */
  descriptors: readonly Descriptor[] | null = null;
  #arrived: Coverage | null = null;
  #refusal: { readonly error: number; readonly text: string } | null = null;
  /** Where in the buffers the next bytes go. */
  #position = 0;
  #isLast = false;

  constructor(ask: Ask, settle: (error: RaidError | null) => void) {
    this.command = ask.command;
    this.flags = ask.flags;
    this.offsetBytes = ask.offsetBytes;
    this.lengthBytes = ask.lengthBytes;
    this.buffers = ask.buffers;
    this.settle = settle;
  }

  get isMutation(): boolean {
    return this.command === commands.WRITE || this.command === commands.WRITE_ZEROES;
  }

  /** Of what goes over the wire with it, in either direction. */
  get payloadBytes(): number {
    return this.buffers.length === 0 ? 0 : this.lengthBytes;
  }

  overlaps(other: { readonly offsetBytes: number; readonly lengthBytes: number }): boolean {
    return (
      this.offsetBytes < other.offsetBytes + other.lengthBytes &&
      other.offsetBytes < this.offsetBytes + this.lengthBytes
    );
  }

  /** It goes on a wire: what came of it on another one counts for nothing. */
  begin(): void {
    this.sends += 1;
    this.descriptors = null;
    this.#arrived = null;
    this.#refusal = null;
  }

  /** An answer without chunks. True: bytes follow, as many as were asked for. */
  takeSimple(error: number, isStructured: boolean): boolean {
    if (this.command === commands.READ && isStructured) throw violation('a simple reply to a read');
    if (error !== 0) this.#refusal = { error, text: '' };
    else if (this.command === commands.READ) {
      this.#cover(this.offsetBytes, this.lengthBytes);
      this.#isLast = true;
      return true;
    }
    return false;
  }

  /** A chunk. True: its bytes follow. */
  takeChunk(chunk: Chunk, contextId: number | null): boolean {
    switch (chunk.chunk) {
      case 'none':
        return false;
      case 'data':
        this.#cover(chunk.offsetBytes, chunk.lengthBytes);
        this.#isLast = chunk.isDone;
        return true;
      case 'hole': {
        this.#cover(chunk.offsetBytes, chunk.lengthBytes);
        const skipBytes = chunk.offsetBytes - this.offsetBytes;
        for (const view of viewsOf(this.buffers, skipBytes, chunk.lengthBytes)) view.fill(0);
        return false;
      }
      case 'block-status':
        if (this.command !== commands.BLOCK_STATUS) throw violation('a block status that was not asked for');
        if (chunk.contextId !== contextId || this.descriptors !== null) {
          throw violation('a block status of a context that was not asked for');
        }
        this.descriptors = chunk.descriptors;
        return false;
      case 'error': {
        const { offsetBytes } = chunk;
        const end = this.offsetBytes + this.lengthBytes;
        if (offsetBytes !== null && (offsetBytes < this.offsetBytes || offsetBytes >= end)) {
          throw violation('an error at a place that was not asked about');
        }
        this.#refusal ??= { error: chunk.error, text: chunk.text };
        return false;
      }
    }
  }

  /** True when these bytes are the last of the answer. */
  takeBytes(bytes: Uint8Array, isEndOfChunk: boolean): boolean {
    const [only] = this.buffers;
    if (this.buffers.length === 1 && only !== undefined) only.set(bytes, this.#position);
    else scatter(bytes, this.buffers, this.#position);
    this.#position += bytes.byteLength;
    return isEndOfChunk && this.#isLast;
  }

  /** The answer is over. Throws where it was none. */
  outcome(device: string): Outcome {
    if (this.#refusal !== null) {
      const { error, text } = this.#refusal;
      return error === nbdErrors.ESHUTDOWN ? 'again' : refusal(this, error, text, device);
    }
    if (this.command === commands.READ && this.#arrived?.isWhole !== true) {
      throw violation('an answer to a read with bytes missing');
    }
    if (this.command === commands.BLOCK_STATUS && this.descriptors === null) {
      throw violation('an answer to a block status without one');
    }
    return null;
  }

  #cover(offsetBytes: number, lengthBytes: number): void {
    if (this.command !== commands.READ) throw violation('bytes that were not asked for');
    this.#arrived ??= new Coverage(this.offsetBytes, this.offsetBytes + this.lengthBytes);
    this.#arrived.add(offsetBytes, offsetBytes + lengthBytes);
    this.#position = offsetBytes - this.offsetBytes;
  }
}

/** Which part of a range has come, in pieces that must not overlap. */
export class Coverage {
  readonly #from: number;
  readonly #to: number;
  /** Where runs begin and end, by turns, in order; runs that touch are one. */
  readonly #edges: number[] = [];

  constructor(from: number, to: number) {
    this.#from = from;
    this.#to = to;
  }

  get isWhole(): boolean {
    return this.#edges.length === 2 && this.#edges[0] === this.#from && this.#edges[1] === this.#to;
  }

  add(from: number, to: number): void {
    if (from < this.#from || to > this.#to || from >= to)
      throw violation('bytes outside of what was asked for');
    const edges = this.#edges;
    // The first edge behind `from`; what comes in order, as nearly all does, lands at the end at once.
    let index = edges.length;
    if ((edges[index - 1] ?? Number.NEGATIVE_INFINITY) > from) {
      let low = 0;
      while (low < index) {
        const middle = (low + index) >> 1;
        if ((edges[middle] ?? 0) > from) index = middle;
        else low = middle + 1;
      }
    }
    const isInside = index % 2 === 1;
    if (isInside || to > (edges[index] ?? Number.POSITIVE_INFINITY))
      throw violation('bytes that came before');
    const joinsLeft = edges[index - 1] === from;
    const joinsRight = edges[index] === to;
    if (joinsLeft && joinsRight) edges.splice(index - 1, 2);
    else if (joinsLeft) edges[index - 1] = to;
    else if (joinsRight) edges[index] = from;
    else edges.splice(index, 0, from, to);
    if (edges.length > 2 * SCATTERED) throw violation(`an answer in more than ${SCATTERED} scattered pieces`);
  }
}

/**
 * What descriptors say of a range, in whole blocks, as far as they go. A
 * block that two extents share is said to be data, which is always true enough.
 */
export function extentsOf(
  descriptors: readonly Descriptor[],
  offsetBytes: number,
  lengthBytes: number,
  blockBytes: number,
): readonly Extent[] {
  const end = offsetBytes + lengthBytes;
  const extents: Extent[] = [];
  let done = offsetBytes;
  let at = offsetBytes;
  for (const descriptor of descriptors) {
    if (at >= end) throw violation('extents behind the end of what was asked about');
    const next = at + descriptor.lengthBytes;
    const from = roundUp(at, blockBytes);
    const to = next >= end ? end : roundDown(next, blockBytes);
    if (to > from) {
      if (from > done) addExtent(extents, done, from, 0);
      addExtent(extents, from, to, descriptor.flags);
      done = to;
    }
    at = next;
  }
  const told = Math.min(end, roundDown(at, blockBytes));
  if (told > done) addExtent(extents, done, told, 0);
  return extents;
}

/** Neighbours of one kind are one. */
export function addExtent(extents: Extent[], from: number, to: number, flags: number): void {
  const allocated = (flags & allocationFlags.HOLE) === 0;
  const zero = (flags & allocationFlags.ZERO) !== 0;
  const last = extents.at(-1);
  if (last !== undefined && last.allocated === allocated && last.zero === zero) {
    extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + (to - from) };
  } else {
    extents.push({ offsetBytes: from, lengthBytes: to - from, allocated, zero });
  }
}

const verbs: ReadonlyMap<number, string> = new Map<number, string>([
  [commands.READ, 'read'],
  [commands.WRITE, 'write'],
  [commands.WRITE_ZEROES, 'write zeros'],
  [commands.FLUSH, 'flush'],
  [commands.BLOCK_STATUS, 'tell the extents of'],
]);

/** `read 4096 bytes at 8192` */
export function describeAsk(ask: Ask): string {
  const verb = verbs.get(ask.command) ?? `command ${ask.command}`;
  return ask.command === commands.FLUSH ? verb : `${verb} ${ask.lengthBytes} bytes at ${ask.offsetBytes}`;
}

/** What a server's no means here. The same errno asks for different reactions on different paths, as with files. */
function refusal(ask: Ask, error: number, text: string, device: string): RaidError {
  const name = Object.entries(nbdErrors).find(([, number]) => number === error)?.[0] ?? `error ${error}`;
  const said = text === '' ? name : `${name}, ${quoted(text)}`;
  const place =
    ask.command === commands.FLUSH ? {} : { offsetBytes: ask.offsetBytes, lengthBytes: ask.lengthBytes };
  return new RaidError(codeOf(ask, error), `${device}: cannot ${describeAsk(ask)}: the server says ${said}`, {
    device,
    ...place,
  });
}

function codeOf(ask: Ask, error: number): ErrorCode {
  switch (ask.command) {
    case commands.READ:
    case commands.BLOCK_STATUS:
      return 'MEDIUM_ERROR';
    case commands.FLUSH:
      return 'FLUSH_FAILED';
    default:
      // A zeroing that would not have been fast, and therefore was not done.
      if (error === nbdErrors.ENOTSUP && (ask.flags & commandFlags.FAST_ZERO) !== 0) return 'NOT_SUPPORTED';
      return error === nbdErrors.ENOSPC ? 'NO_SPACE' : 'WRITE_FAILED';
  }
}

/** Text from elsewhere: whatever it holds, it moves no cursor, and it fills no screen. */
export function quoted(text: string): string {
  const short = text.length > 200 ? `${text.slice(0, 200)}...` : text;
  return JSON.stringify(short).replace(/[\u007f-\u009f]/g, '?');
}

function violation(what: string): RaidError {
  return new RaidError('PROTOCOL_VIOLATION', `the other end of an NBD connection sent ${what}`);
}
