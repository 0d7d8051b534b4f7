/**
 * What a client must remember to go on over a new connection as if nothing had been. Pure.
 *
 * Two things may have happened behind a connection that was lost. The server may have lost what it had acknowledged and not
 * made durable: so acknowledged writes that are not durable by themselves are kept, as copies, until a flush covers them, and are written again. And what is
 * there now may be another export of the same name and size, a blank one or an older copy: so some of what was last seen is
 * kept as checksums, *witnesses*, and looked at before anything else is done.
 *
 * Kept writes are written again in the order in which they were acknowledged. Of two that overlap the later one wins, as it
 * did: they are never in flight together (client.ts), so that order is the order in which the server did them. Beyond
 * `boundBytes` of copies nothing is kept, until the next flush: then a lost connection cannot be made good, and says so.
 * A write that failed may or may not have happened, and what is written again under it would turn it back; from then on
 * until the next flush a lost connection cannot be made good either.
 *
 * Witnesses are evidence, not proof. A page of zeros is none: that is what a blank export holds. What lies under a kept
 * write, or under one in flight, is none either.
 */
import { crc32 } from 'node:zlib';
import { copyOf, viewsOf } from '../device/buffers.ts';
import { KIB } from '../units.ts';
import type { Ask, Exchange } from './client-exchange.ts';
import { commandFlags, commands } from './protocol.ts';

interface Kept {
  readonly ask: Ask;
  /** The how-manieth acknowledgement it was. */
  readonly number: number;
}

/** A place, and the checksum of what it held. */
export interface Witness {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly crc: number;
}

/** What an entry costs besides its bytes, or thereabouts. */
const ENTRY_BYTES = 256;
const WITNESSES = 16;
const WITNESS_BYTES = 4 * KIB;

const zeros = Buffer.alloc(WITNESS_BYTES);

export class ClientMemory {
  readonly #boundBytes: number;
  #kept: Kept[] = [];
  #keptBytes = 0;
  #acknowledged = 0;
  #sent = 0;
  /** Up to this acknowledgement there is something that was not kept, or is not known. */
  #unknownUpTo = 0;
  #flushedUpTo = 0;
  readonly #witnesses: Witness[] = [];
  #nextWitness = 0;

  constructor(boundBytes: number) {
    this.#boundBytes = boundBytes;
  }

  /** Changes that were answered so far: what a flush covers that is sent now. */
  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** Whether what was acknowledged can be had again on a new connection. */
  get canReturn(): boolean {
    return this.#unknownUpTo <= this.#flushedUpTo;
  }

  get keptBytes(): number {
    return this.#keptBytes;
  }

  /** To be written again, in this order. */
  get kept(): readonly Ask[] {
    return this.#kept.map(({ ask }) => ask);
  }

  /** A change goes out: what is there is no longer known. */
  sending(change: Exchange): void {
    this.#sent += 1;
    for (let index = this.#witnesses.length - 1; index >= 0; index -= 1) {
      if (change.overlaps(this.#witnesses[index]!)) this.#witnesses.splice(index, 1);
    }
  }

  /**
   * A change is acknowledged. One that is durable by itself is not kept, and what older ones wrote at its place no longer is: written
   * again it would lie over what is durable, and might come to stay there.
   */
  changed(change: Exchange, isDurable: boolean): void {
    this.#acknowledged += 1;
    if (change.command === commands.WRITE) this.#witness(change);
    if (isDurable) {
      if (this.#kept.some(({ ask }) => change.overlaps(ask))) this.#cutOut(change);
      return;
    }
    const { command, flags, offsetBytes, lengthBytes } = change;
    if (this.#keptBytes + costOf(change) > this.#boundBytes) {
      this.#keepNothing();
      return;
    }
    const buffers = command === commands.WRITE ? [copyOf(change.buffers, lengthBytes)] : [];
    // Whether it was to be fast no longer matters.
    const ask = { command, flags: flags & commandFlags.NO_HOLE, offsetBytes, lengthBytes, buffers };
    this.#kept.push({ ask, number: this.#acknowledged });
    this.#keptBytes += costOf(ask);
  }

  #cutOut({ offsetBytes, lengthBytes }: Exchange): void {
    const end = offsetBytes + lengthBytes;
    this.#kept = this.#kept.flatMap(({ ask, number }) => {
      const askEnd = ask.offsetBytes + ask.lengthBytes;
      if (ask.offsetBytes >= end || offsetBytes >= askEnd) return [{ ask, number }];
      return [
        { from: ask.offsetBytes, to: offsetBytes },
        { from: end, to: askEnd },
      ]
        .filter(({ from, to }) => from < to)
        .map(({ from, to }) => ({ ask: partOf(ask, from, to), number }));
    });
    this.#keptBytes = this.#kept.reduce((sum, { ask }) => sum + costOf(ask), 0);
    if (this.#keptBytes > this.#boundBytes) this.#keepNothing();
  }

  #keepNothing(): void {
    this.#kept = [];
    this.#keptBytes = 0;
    this.#unknownUpTo = this.#acknowledged;
  }

  /** A change was refused, and has not happened. */
  undone(): void {
    this.#acknowledged += 1;
  }

  /** A change was refused: it may have happened in part. */
  failed(): void {
    this.#acknowledged += 1;
    this.#unknownUpTo = this.#acknowledged;
  }

  /** A connection is lost, and with it the answers to so many changes: they are sent again, over this or another one. */
  lost(unanswered: number): void {
    this.#sent -= unanswered;
  }

  /** A read goes out: which state of the content it may see, where there is only one. */
  get state(): number {
    return this.#sent === this.#acknowledged ? this.#sent : -1;
  }

  /** A read is answered that went out in this state. Where that is still the state, it saw what is there. */
  seen(read: Exchange, state: number): void {
    if (state === this.#sent) this.#witness(read);
  }

  /** A flush is answered, which was sent when so many changes had been acknowledged. */
  flushed(covers: number): void {
    this.#flushedUpTo = Math.max(this.#flushedUpTo, covers);
    let count = 0;
    while (count < this.#kept.length && this.#kept[count]!.number <= covers) {
      this.#keptBytes -= costOf(this.#kept[count]!.ask);
      count += 1;
    }
    if (count > 0) this.#kept.splice(0, count);
  }

  /** Of places that must be as they were, whatever the server has lost. */
  get witnesses(): readonly Witness[] {
    return this.#witnesses.filter((witness) => {
      const end = witness.offsetBytes + witness.lengthBytes;
      return !this.#kept.some(
        ({ ask }) => ask.offsetBytes < end && witness.offsetBytes < ask.offsetBytes + ask.lengthBytes,
      );
    });
  }

  #witness({ offsetBytes, lengthBytes, buffers }: Ask): void {
    const firstBytes = Math.min(lengthBytes, WITNESS_BYTES);
    const [first] = buffers;
    const whole = first !== undefined && first.byteLength >= firstBytes;
    const bytes = whole ? first.subarray(0, firstBytes) : copyOf(viewsOf(buffers, 0, firstBytes), firstBytes);
    if (zeros.compare(bytes, 0, firstBytes, 0, firstBytes) === 0) return;
    const witness = { offsetBytes, lengthBytes: firstBytes, crc: crc32(bytes) };
    const same = this.#witnesses.findIndex(
      (each) => each.offsetBytes === offsetBytes && each.lengthBytes === firstBytes,
    );
    if (same >= 0) this.#witnesses[same] = witness;
    else if (this.#witnesses.length < WITNESSES) this.#witnesses.push(witness);
    else {
      this.#witnesses[this.#nextWitness] = witness;
      this.#nextWitness = (this.#nextWitness + 1) % WITNESSES;
    }
  }
}

function costOf({ buffers, lengthBytes }: Ask): number {
  return ENTRY_BYTES + (buffers.length === 0 ? 0 : lengthBytes);
}

/** With bytes of its own: those of the whole could otherwise not be let go of. */
function partOf(ask: Ask, from: number, to: number): Ask {
  const lengthBytes = to - from;
  const [bytes] = ask.buffers;
  const start = from - ask.offsetBytes;
  const buffers = bytes === undefined ? [] : [bytes.slice(start, start + lengthBytes)];
  return { ...ask, offsetBytes: from, lengthBytes, buffers };
}
