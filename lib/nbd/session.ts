/**
 * One client's connection, from greeting to goodbye.
 *
 *   flags ──▶ options ──────────────▶ requests ──▶ ending ──▶ ended
 *                │  ▲                    │            ▲
 *                ▼  │ from the start     └────────────┘ DISC, end of stream, shutdown: what is in flight is finished
 *             STARTTLS
 *
 * Requests run side by side, and each is answered when it is done. A stream that breaks the protocol, or stands still in
 * the middle of a message, is cut off, and nobody else notices.
 *
 * The end is a word. Where the server closes a connection, what came over it has happened or never will: a client that
 * was told nothing may do it again elsewhere, or something else (client.ts), and must not be overtaken. So even who is cut off
 * keeps the connection, in which nothing is read or sent any more, until the device has ended what it was given.
 *
 * Memory. A session takes the next request only while it has fewer than 128 under way and less than 64 MiB, and the
 * server less than 512 MiB; a request counts until the last byte of its answer has gone out. So a client that asks and
 * never reads comes to stand: nothing more is read from its socket, and after half a minute it is cut off. What is not counted is
 * what a write is received into before it is whole: one of the device's units, 8 MiB at most.
 *
 * Copies. Payload is not copied here. From 64 KiB on it is received into, and read into, memory that the device lends (gather.ts).
 * Of smaller writes the pieces in which they came from the socket (inbox.ts) are the buffers that the device is given; where they are
 * too small and too many they are put together first. A smaller read is done into the buffer that goes to the socket, behind
 * the room for its head. What is answered in one turn of the event loop goes out in one system call.
 */
import type { Duplex } from 'node:stream';
import { nbdErrorOf, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import { receiveInto } from '../socket/receive.ts';
import { KIB, MIB } from '../units.ts';
import type { Budget, Export, Loan, ReplyBuffers } from './export.ts';
import { Gatherer } from './gather.ts';
import { type Chunk, Inbox } from './inbox.ts';
import {
  ALLOCATION_CONTEXT,
  allocationFlags,
  type ClientMessage,
  ClientMessages,
  type Cookie,
  commandFlags,
  commands,
  DATA_CHUNK_BYTES,
  type Descriptor,
  encodeChunk,
  encodeDataChunk,
  encodeExport,
  encodeGreeting,
  encodeOptionReply,
  encodeSimpleReply,
  handshakeFlags,
  infos,
  limits,
  type NbdErrorName,
  nbdErrors,
  type OptionReply,
  type OptionRequest,
  optionErrors,
  options,
  type Request,
  SIMPLE_REPLY_BYTES,
} from './protocol.ts';

/** What a session needs of the server it belongs to. */
export interface SessionHome {
  readonly host: Pick<Host, 'now' | 'sleep' | 'turn'>;
  readonly exports: ReadonlyMap<string, Export>;
  /** What the empty name stands for. */
  readonly defaultExport: Export | null;
  readonly requiresTls: boolean;
  /** Null where there is no TLS. The stream that comes back is the same connection, in secret; none, where that fails. */
  readonly startTls: ((stream: Duplex) => Promise<Duplex | null>) | null;
  readonly budget: Budget;
  readonly buffers: ReplyBuffers;
  entered(session: Session, chosen: Export): void;
  ended(session: Session, because: string | null): void;
}

export const sessionLimits = {
  options: 32,
  requests: 128,
  bytes: 64 * MIB,
  handshakeMs: 10_000,
  /** No byte of a message that has begun, or none taken of what is sent. */
  stallMs: 30_000,
  /** Of a request without payload, done in one go; between two it can be given up. */
  sliceBytes: 32 * MIB,
  statusBytes: 256 * MIB,
  descriptors: 4096,
} as const;

const CONTEXT_ID = 1;
const OWN_FLAGS = handshakeFlags.FIXED_NEWSTYLE | handshakeFlags.NO_ZEROES;
const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO } = commandFlags;

/** Flags that a command may have. FUA is taken with all of them, as the protocol asks. */
const flagsOf: ReadonlyMap<number, number> = new Map([
  [commands.READ, FUA | DF],
  [commands.WRITE, FUA],
  [commands.DISC, FUA],
  [commands.FLUSH, FUA],
  [commands.TRIM, FUA],
  [commands.CACHE, FUA],
  [commands.WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO],
  [commands.BLOCK_STATUS, FUA | REQ_ONE],
]);

/** Pieces of payload: so many, and one more for each 16 KiB, before they are put together. */
const FEW_PIECES = 8;
const PIECE_BYTES = 16 * KIB;
const HANDSHAKE_BYTES = 4 * KIB;
/** From here on a request's payload has memory of its own: a loan, and a reply in two parts, cost less than a copy of it. */
const LARGE_BYTES = 64 * KIB;
/** Of what follows a large write no more than this is read before it is known where it goes. */
const LOOK_AHEAD_BYTES = 4 * KIB;

/** A write whose payload is coming. */
interface Writing {
  readonly request: Request;
  /** Null where it is refused and its payload thrown away. */
  pieces: Uint8Array[] | null;
  /** Once there are too many pieces. */
  whole: Buffer | null;
  wholeBytes: number;
  /** Where the pieces are. */
  readonly chunks: Chunk[];
  /** Its payload goes there, and not into pieces. */
  readonly gatherer: Gatherer | null;
  readonly refusal: NbdErrorName | null;
}

export class Session {
  readonly #home: SessionHome;
  #stream: Duplex;
  /** Null while nothing is read into it: over TLS, and from streams that are no sockets. */
  #inbox: Inbox | null = null;
  /** What the inbox gives is not where the next bytes go, but this. */
  #isDirect = false;
  #wasLarge = false;
  /** Null until there is a large write. */
  #gatherer: Gatherer | null = null;
  #messages = new ClientMessages();
  #phase: 'options' | 'requests' | 'ending' | 'ended' = 'options';
  #isSecure = false;
  #isUpgrading = false;
  #hasNoZeroes = false;
  #optionCount = 0;
  #isStructured = false;
  /** Whose block status the client has asked to be told. */
  #contextOf: Export | null = null;
  #export: Export | null = null;
  #writing: Writing | null = null;
  #requestCount = 0;
  /** What the device has begun and may still do, answers aside. */
  #changes = 0;
  #heldBytes = 0;
  /** Of a write that was given up: the socket goes on reading into its room until it is given another. */
  #leaveRoom: (() => void) | null = null;
  #isPaused = false;
  #isCorked = false;
  /** Replies that say so and nothing else, to be sent at the end of this turn. */
  #successes: (Cookie & { readonly heldBytes: number })[] = [];
  #hasSaidGoodbye = false;
  #waitsFor: 'export' | 'budget' | null = null;
  readonly #beganMs: number;
  #receivedMs: number;
  #sentMs: number;
  #unsentCount = 0;

  constructor(stream: Duplex, home: SessionHome) {
    this.#home = home;
    this.#beganMs = home.host.now();
    this.#receivedMs = this.#beganMs;
    this.#sentMs = this.#beganMs;
    // Where TLS may come, the handle of the socket is not ours to keep.
    const takesOver = home.startTls === null;
    this.#stream = takesOver
      ? receiveInto(stream, {
          room: () => this.#room(),
          received: (bytes) => this.#received(bytes),
        })
      : stream;
    this.#attach(this.#stream);
    if (!takesOver) this.#listen(stream);
    this.#send(encodeGreeting(OWN_FLAGS));
  }

  get export(): Export | null {
    return this.#export;
  }

  /** Nothing more comes of it: the device has ended what it was given. */
  get isOver(): boolean {
    return this.#phase === 'ended' && this.#changes === 0;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** Called now and then: cuts off who has been standing still for too long. */
  checkDeadlines(nowMs: number): void {
    if (this.#phase === 'options' && nowMs - this.#beganMs > sessionLimits.handshakeMs) {
      this.cut('its handshake took too long');
    } else if (this.#unsentCount > 0 && nowMs - this.#sentMs > sessionLimits.stallMs) {
      this.cut('it does not read what it is sent');
    } else if (
      this.#phase === 'requests' &&
      !this.#isPaused &&
      !this.#messages.isBetween &&
      nowMs - this.#receivedMs > sessionLimits.stallMs
    ) {
      this.cut('it stopped in the middle of a request');
    }
  }

  /** Takes no more requests, and ends when those in flight are answered. A handshake ends at once. */
  finish(): void {
    if (this.#phase === 'options') this.cut(null);
    else if (this.#phase === 'requests') this.#stopTaking();
  }

  /** Now, whatever is in flight. The connection is closed when the device has ended what came over it. */
  cut(because: string | null): void {
    if (this.#phase === 'ended') return;
    this.#phase = 'ended';
    this.#gatherer?.abandon(new RaidError('CLOSED', 'the connection has ended'));
    this.#abandonWriting();
    this.#stream.pause();
    // Nothing is read into it any more.
    this.#leftRoom();
    if (this.#changes === 0) this.#stream.destroy();
    this.#home.ended(this, because);
  }

  #listen(stream: Duplex): void {
    stream.on('data', (bytes: Buffer) => this.#received(bytes));
  }

  #attach(stream: Duplex): void {
    stream.on('end', () => this.#receivedEnd());
    stream.on('error', () => this.#lost(stream));
    stream.on('close', () => this.#lost(stream));
  }

  #lost(stream: Duplex): void {
    if (stream === this.#stream) this.cut(null);
  }

  #leftRoom(): void {
    this.#leaveRoom?.();
    this.#leaveRoom = null;
  }

  #room(): Uint8Array {
    this.#leftRoom();
    this.#inbox ??= new Inbox(HANDSHAKE_BYTES);
    const gatherer = this.#writing?.gatherer ?? null;
    this.#isDirect = gatherer !== null && this.#messages.awaitedBytes > 0 && this.#phase === 'requests';
    if (gatherer !== null && this.#isDirect) return gatherer.room();
    if (this.#phase !== 'requests') return this.#inbox.room(1);
    return this.#wasLarge ? this.#inbox.room().subarray(0, LOOK_AHEAD_BYTES) : this.#inbox.room();
  }

  #received(bytes: Uint8Array): void {
    if (this.#phase === 'ending' || this.#phase === 'ended') return;
    this.#receivedMs = this.#home.host.now();
    if (this.#isDirect) {
      this.#writing?.gatherer?.filled(bytes.byteLength);
      if (this.#messages.passed(bytes.byteLength)) this.#writing = null;
    } else {
      this.#inbox?.filled(bytes.byteLength);
      this.#messages.push(bytes);
    }
    this.#pump();
  }

  #receivedEnd(): void {
    if (this.#phase === 'options') this.cut(null);
    // Half a message is no message: what is whole is answered.
    else if (this.#phase === 'requests') this.#stopTaking();
  }

  /** Takes messages as long as there are some, and room for what they ask. */
  #pump(): void {
    try {
      while (this.#phase === 'options' || this.#phase === 'requests') {
        if (!this.#mayTake()) break;
        const message = this.#messages.next();
        if (message === null) break;
        this.#take(message);
      }
    } catch (error) {
      if (!(error instanceof RaidError) || error.code !== 'PROTOCOL_VIOLATION') throw error;
      this.cut(error.message);
      return;
    }
    this.#inbox?.setRead(!this.#messages.intake.hasChunks);
    this.#setFlow();
  }

  #mayTake(): boolean {
    // The rest of a request that was let in.
    if (this.#writing !== null) return true;
    if (this.#waitsFor !== null) return false;
    if (this.#requestCount >= sessionLimits.requests || this.#heldBytes >= sessionLimits.bytes) return false;
    if (this.#export?.isHeld === true) {
      this.#waitsFor = 'export';
      this.#export.whenReleased(() => this.#goOn());
      return false;
    }
    // Who holds nothing must not wait for room that only they could make; the others make theirs.
    if (!this.#home.budget.hasRoom && this.#phase === 'requests') {
      this.#waitsFor = 'budget';
      this.#home.budget.whenRoom(() => this.#goOn());
      return false;
    }
    return true;
  }

  #goOn(): void {
    this.#waitsFor = null;
    this.#pump();
  }

  #setFlow(): void {
    if (this.#phase === 'ended' || this.#phase === 'ending') return;
    const pause = this.#isUpgrading || !this.#mayTake();
    if (pause === this.#isPaused) return;
    this.#isPaused = pause;
    if (pause) this.#stream.pause();
    else {
      this.#receivedMs = this.#home.host.now();
      this.#stream.resume();
    }
  }

  #take(message: ClientMessage): void {
    switch (message.kind) {
      case 'client-flags':
        this.#takeFlags(message.flags);
        return;
      case 'bad-option':
        this.#countOption();
        if (message.option === options.EXPORT_NAME) this.cut(message.because);
        else {
          if (message.option === options.SET_META_CONTEXT) this.#contextOf = null;
          this.#answer({
            option: message.option,
            reply: 'ERROR',
            error: message.error,
            text: message.because,
          });
        }
        return;
      case 'option':
        this.#countOption();
        this.#takeOption(message.request);
        return;
      case 'request':
        this.#takeRequest(message.request);
        return;
      case 'data':
        this.#takeData(message.bytes, message.isLast);
        return;
    }
  }

  // Handshake.

  #takeFlags(flags: number): void {
    if ((flags & ~OWN_FLAGS) !== 0) this.cut('it has flags that nobody knows');
    this.#hasNoZeroes = (flags & handshakeFlags.NO_ZEROES) !== 0;
  }

  #countOption(): void {
    this.#optionCount += 1;
    if (this.#optionCount > sessionLimits.options) this.cut('it has too many options');
  }

  #takeOption(request: OptionRequest): void {
    if (this.#phase !== 'options') return;
    const { option } = request;
    const needsTls = this.#home.requiresTls && !this.#isSecure;
    if (needsTls && option !== 'ABORT' && option !== 'STARTTLS') {
      if (option === 'EXPORT_NAME') this.cut('it did not begin TLS');
      else this.#refuse(request, optionErrors.TLS_REQD, 'this server is to be talked to over TLS');
      return;
    }
    switch (option) {
      case 'EXPORT_NAME':
        this.#takeExportName(request.name);
        return;
      case 'ABORT':
        this.#acknowledge(request);
        this.#end();
        return;
      case 'LIST':
        for (const { name, description } of this.#home.exports.values()) {
          this.#answer({ option: options.LIST, reply: 'SERVER', name, description });
        }
        this.#acknowledge(request);
        return;
      case 'STARTTLS':
        this.#takeStartTls(request);
        return;
      case 'INFO':
      case 'GO':
        this.#takeGo(request);
        return;
      case 'STRUCTURED_REPLY':
        if (this.#isStructured) this.#refuse(request, optionErrors.INVALID, 'replies are structured already');
        else {
          this.#isStructured = true;
          this.#acknowledge(request);
        }
        return;
      case 'LIST_META_CONTEXT':
      case 'SET_META_CONTEXT':
        this.#takeMetaContext(request);
        return;
      case 'OTHER':
        this.#refuse(request, optionErrors.UNSUP, 'this server does not know the option');
        return;
    }
  }

  #takeExportName(name: string): void {
    const found = this.#find(name);
    if (found === null) {
      this.cut('it asked for an export that is not there');
      return;
    }
    const facts = { sizeBytes: found.device.limits.sizeBytes, flags: found.flags(this.#isStructured) };
    this.#send(encodeExport(facts, { withZeroes: !this.#hasNoZeroes }));
    this.#enter(found);
  }

  #takeGo(request: Extract<OptionRequest, { option: 'INFO' | 'GO' }>): void {
    const found = this.#find(request.name);
    if (found === null) {
      this.#refuse(request, optionErrors.UNKNOWN, 'there is no such export');
      return;
    }
    const option = options[request.option];
    const sizes = found.blockSizes();
    const facts = { sizeBytes: found.device.limits.sizeBytes, flags: found.flags(this.#isStructured) };
    this.#answer({ option, reply: 'INFO', info: 'EXPORT', ...facts });
    // Also to those who did not ask, where they would go wrong without.
    if (request.wants.includes(infos.BLOCK_SIZE) || sizes.minimumBytes > 1) {
      this.#answer({ option, reply: 'INFO', info: 'BLOCK_SIZE', ...sizes });
    }
    if (request.wants.includes(infos.NAME))
      this.#answer({ option, reply: 'INFO', info: 'NAME', text: found.name });
    if (request.wants.includes(infos.DESCRIPTION) && found.description !== '') {
      this.#answer({ option, reply: 'INFO', info: 'DESCRIPTION', text: found.description });
    }
    this.#acknowledge(request);
    if (request.option === 'GO') this.#enter(found);
  }

  #takeMetaContext(
    request: Extract<OptionRequest, { option: 'LIST_META_CONTEXT' | 'SET_META_CONTEXT' }>,
  ): void {
    const isSet = request.option === 'SET_META_CONTEXT';
    if (isSet) this.#contextOf = null;
    if (!this.#isStructured) {
      this.#refuse(request, optionErrors.INVALID, 'structured replies come first');
      return;
    }
    const found = this.#find(request.name);
    if (found === null) {
      this.#refuse(request, optionErrors.UNKNOWN, 'there is no such export');
      return;
    }
    const isWanted = isSet
      ? request.queries.includes(ALLOCATION_CONTEXT)
      : request.queries.length === 0 ||
        request.queries.some((query) => query === ALLOCATION_CONTEXT || query === 'base:');
    if (isWanted) {
      if (isSet) this.#contextOf = found;
      const id = isSet ? CONTEXT_ID : 0;
      this.#answer({ option: options[request.option], reply: 'META_CONTEXT', id, name: ALLOCATION_CONTEXT });
    }
    this.#acknowledge(request);
  }

  #takeStartTls(request: OptionRequest): void {
    const { startTls } = this.#home;
    if (startTls === null) {
      this.#refuse(request, optionErrors.UNSUP, 'this server has no TLS');
      return;
    }
    if (this.#isSecure) {
      this.#refuse(request, optionErrors.INVALID, 'TLS has begun already');
      return;
    }
    // Whoever can put bytes into the clear part must not speak in the secret one.
    if (!this.#messages.intake.isEmpty || this.#stream.readableLength > 0) {
      this.cut('it sent something between STARTTLS and TLS');
      return;
    }
    this.#isUpgrading = true;
    const plain = this.#stream;
    const ack: OptionReply = { option: options.STARTTLS, reply: 'ACK' };
    this.#send(encodeOptionReply(ack), () => {
      if (this.#phase !== 'options') return;
      plain.removeAllListeners('data');
      plain.removeAllListeners('end');
      void startTls(plain).then((secret) => this.#goOnOver(secret));
    });
  }

  /** From the start: nothing that was agreed in the clear counts. */
  #goOnOver(secret: Duplex | null): void {
    if (secret === null) this.cut('its TLS handshake failed');
    if (this.#phase === 'ended' || secret === null) {
      secret?.destroy();
      return;
    }
    this.#messages = ClientMessages.afterTls();
    this.#isStructured = false;
    this.#contextOf = null;
    this.#isSecure = true;
    this.#isUpgrading = false;
    this.#isPaused = false;
    this.#stream = secret;
    this.#attach(secret);
    this.#listen(secret);
  }

  #enter(chosen: Export): void {
    this.#export = chosen;
    if (this.#contextOf !== chosen) this.#contextOf = null;
    this.#phase = 'requests';
    this.#messages.transmit();
    this.#home.entered(this, chosen);
  }

  /** A name is looked up, and that is all that is ever done with it. */
  #find(name: string): Export | null {
    return name === '' ? this.#home.defaultExport : (this.#home.exports.get(name) ?? null);
  }

  #answer(reply: OptionReply): void {
    this.#send(encodeOptionReply(reply));
  }

  #acknowledge(request: OptionRequest): void {
    this.#answer({ option: numberOf(request), reply: 'ACK' });
  }

  #refuse(request: OptionRequest, error: number, text: string): void {
    this.#answer({ option: numberOf(request), reply: 'ERROR', error, text });
  }

  // Transmission.

  #takeRequest(request: Request): void {
    const served = this.#export;
    if (served === null) return;
    const refusal = this.#refusalOf(request, served);
    if (request.command === commands.WRITE && request.lengthBytes > 0) {
      this.#wasLarge = request.lengthBytes >= LARGE_BYTES;
      const gatherer = refusal === null && this.#wasLarge ? this.#gathererOf(served) : null;
      gatherer?.begin(request.offsetBytes ?? 0, request.lengthBytes, (request.flags & FUA) !== 0, (error) => {
        if (error === null) this.#succeed(request, request.lengthBytes, null);
        else this.#failed(request, error, request.lengthBytes);
      });
      this.#writing = {
        request,
        pieces: refusal === null ? [] : null,
        whole: null,
        wholeBytes: 0,
        chunks: [],
        gatherer,
        refusal,
      };
      if (refusal === null) this.#begin(request.lengthBytes);
      return;
    }
    if (request.command === commands.DISC) {
      this.#stopTaking();
      return;
    }
    if (refusal === null) this.#carryOut(request, served);
    else this.#fail(request, refusal, 'the request cannot be carried out as it is');
  }

  /** What is wrong with a request as such; null when nothing is. */
  #refusalOf(request: Request, { device, readOnly }: Export): NbdErrorName | null {
    const { command, flags, offsetBytes, lengthBytes } = request;
    const allowed = flagsOf.get(command);
    if (allowed === undefined || (flags & ~allowed) !== 0) return 'EINVAL';
    if (command === commands.DISC) return null;
    if ((flags & DF) !== 0 && !this.#isStructured) return 'EINVAL';
    if (command === commands.FLUSH) return offsetBytes === 0 && lengthBytes === 0 ? null : 'EINVAL';
    const writes = command === commands.WRITE || command === commands.WRITE_ZEROES;
    if (readOnly && (writes || command === commands.TRIM)) return 'EPERM';
    if (command === commands.BLOCK_STATUS && this.#contextOf === null) return 'EINVAL';
    const { sizeBytes, blockBytes } = device.limits;
    if (offsetBytes === null || offsetBytes > sizeBytes || lengthBytes > sizeBytes - offsetBytes) {
      return writes ? 'ENOSPC' : 'EINVAL';
    }
    if (lengthBytes === 0 || offsetBytes % blockBytes !== 0 || lengthBytes % blockBytes !== 0)
      return 'EINVAL';
    if (lengthBytes > limits.payloadBytes) {
      if (command === commands.READ) return this.#isStructured ? 'EOVERFLOW' : 'EINVAL';
      if (command === commands.WRITE) return 'EINVAL';
    }
    return null;
  }

  #takeData(bytes: Uint8Array, isLast: boolean): void {
    const writing = this.#writing;
    if (writing === null) return;
    if (writing.gatherer !== null) {
      if (isLast) this.#writing = null;
      fill(writing.gatherer, bytes);
      return;
    }
    if (writing.pieces !== null) {
      keep(writing, writing.pieces, bytes);
      const chunk = writing.whole === null ? (this.#inbox?.hold(bytes) ?? null) : null;
      if (chunk !== null) writing.chunks.push(chunk);
    }
    if (!isLast) return;
    this.#writing = null;
    const { request, refusal, whole, pieces, chunks } = writing;
    if (refusal !== null) this.#fail(request, refusal, 'the request cannot be carried out as it is');
    else this.#write(request, whole === null ? (pieces ?? []) : [whole], chunks);
  }

  #letGo(chunks: readonly Chunk[]): void {
    for (const chunk of chunks) this.#inbox?.release(chunk);
  }

  #abandonWriting(): void {
    if (this.#writing !== null && this.#writing.refusal === null) {
      this.#letGo(this.#writing.chunks);
      this.#leaveRoom = this.#writing.gatherer?.abandonWrite() ?? null;
      this.#done(this.#writing.request.lengthBytes);
    }
    this.#writing = null;
  }

  /** Only what `#refusalOf` finds nothing against; a write has its payload first. */
  #carryOut(request: Request, served: Export): void {
    if (request.command === commands.READ) {
      this.#read(request, served);
      return;
    }
    this.#begin(0);
    this.#run(request, 0, this.#effect(request, served));
  }

  #read(request: Request, served: Export): void {
    const { lengthBytes } = request;
    const loan = lengthBytes < LARGE_BYTES ? null : served.lend(lengthBytes);
    this.#begin(lengthBytes);
    if (loan === null) this.#readBehindHead(request, served);
    else this.#readIntoLoan(request, served, loan);
  }

  #readBehindHead(request: Request, served: Export): void {
    const { lengthBytes } = request;
    const headBytes = this.#dataHeadBytes;
    const { buffers } = this.#home;
    const whole = buffers.take(headBytes + lengthBytes);
    const reply = whole.subarray(0, headBytes + lengthBytes);
    served
      .use((device) => device.read(request.offsetBytes ?? 0, reply.subarray(headBytes)))
      .then(
        () => {
          this.#encodeDataHead(request, reply);
          this.#send(reply, () => {
            buffers.giveBack(whole);
            this.#done(lengthBytes);
          });
        },
        (error: unknown) => {
          buffers.giveBack(whole);
          this.#failed(request, error, lengthBytes);
        },
      );
  }

  #readIntoLoan(request: Request, served: Export, { bytes, giveBack }: Loan): void {
    served
      .use((device) => device.read(request.offsetBytes ?? 0, bytes))
      .then(
        () => {
          const head = Buffer.allocUnsafe(this.#dataHeadBytes);
          this.#encodeDataHead(request, head);
          this.#send(head);
          this.#send(bytes, () => {
            giveBack();
            this.#done(request.lengthBytes);
          });
        },
        (error: unknown) => {
          giveBack();
          this.#failed(request, error, request.lengthBytes);
        },
      );
  }

  get #dataHeadBytes(): number {
    return this.#isStructured ? DATA_CHUNK_BYTES : SIMPLE_REPLY_BYTES;
  }

  #encodeDataHead(request: Request, target: Buffer): void {
    const { offsetBytes, lengthBytes } = request;
    if (this.#isStructured) encodeDataChunk(request, offsetBytes ?? 0, lengthBytes, true, target);
    else encodeSimpleReply({ ...request, error: 0 }, target);
  }

  #write(request: Request, pieces: readonly Uint8Array[], chunks: readonly Chunk[]): void {
    const options = (request.flags & FUA) !== 0 ? { fua: true } : undefined;
    const written = this.#export?.use((device) => device.write(request.offsetBytes ?? 0, pieces, options));
    if (written === undefined) return;
    this.#run(request, request.lengthBytes, written, chunks);
  }

  #gathererOf(served: Export): Gatherer {
    this.#gatherer ??= new Gatherer(served.device.limits, {
      host: this.#home.host,
      lend: (lengthBytes) => served.lend(lengthBytes) ?? this.#home.buffers.lend(lengthBytes),
      write: (offsetBytes, bytes, fua) =>
        served.use((device) => device.write(offsetBytes, bytes, fua ? { fua } : undefined)),
      onChange: (change) => this.#watchChange(change),
    });
    return this.#gatherer;
  }

  #watchChange(change: Promise<unknown>): void {
    this.#changes += 1;
    const end = (): void => this.#endChange();
    change.then(end, end);
  }

  #endChange(): void {
    this.#changes -= 1;
    if (this.#changes > 0) return;
    if (this.#phase === 'ended') this.#stream.destroy();
    else if (this.#phase === 'ending') this.#endIfIdle();
  }

  /** What resolves to nothing is answered with success and nothing else. `chunks`: what holds its payload until then. */
  #run(
    request: Request,
    heldBytes: number,
    // biome-ignore lint/suspicious/noConfusingVoidType: what devices answer with.
    effect: Promise<readonly Descriptor[] | void>,
    chunks: readonly Chunk[] = [],
  ): void {
    this.#changes += 1;
    const end = (): void => {
      this.#letGo(chunks);
      this.#endChange();
    };
    effect.then(
      (descriptors) => {
        end();
        this.#succeed(request, heldBytes, descriptors ?? null);
      },
      (error: unknown) => {
        end();
        this.#failed(request, error, heldBytes);
      },
    );
  }

  #succeed(request: Request, heldBytes: number, descriptors: readonly Descriptor[] | null): void {
    const { cookieHigh, cookieLow } = request;
    if (descriptors === null) {
      this.#successes.push({ cookieHigh, cookieLow, heldBytes });
      this.#cork();
      return;
    }
    const reply = encodeChunk({
      chunk: 'block-status',
      cookieHigh,
      cookieLow,
      isDone: true,
      contextId: CONTEXT_ID,
      descriptors,
    });
    this.#send(reply, () => this.#done(heldBytes));
  }

  /** All of this turn in one buffer: a stream takes longer over each write than it takes to make the reply. */
  #sendSuccesses(): void {
    const replies = this.#successes;
    if (replies.length === 0) return;
    this.#successes = [];
    const bytes = Buffer.allocUnsafe(replies.length * SIMPLE_REPLY_BYTES);
    let at = 0;
    for (const { cookieHigh, cookieLow } of replies) {
      encodeSimpleReply({ cookieHigh, cookieLow, error: 0 }, bytes, at);
      at += SIMPLE_REPLY_BYTES;
    }
    this.#send(bytes, () => {
      for (const { heldBytes } of replies) this.#done(heldBytes);
    });
  }

  // biome-ignore lint/suspicious/noConfusingVoidType: what devices answer with.
  async #effect(request: Request, served: Export): Promise<readonly Descriptor[] | void> {
    const { command, flags, lengthBytes } = request;
    const offsetBytes = request.offsetBytes ?? 0;
    const fua = (flags & FUA) !== 0;
    switch (command) {
      case commands.FLUSH:
        return await served.use((device) => device.flush());
      case commands.TRIM:
        await this.#inSlices(offsetBytes, lengthBytes, (at, length) =>
          served.use((device) => device.discard(at, length)),
        );
        if (fua) await served.use((device) => device.flush());
        return;
      case commands.CACHE:
        return;
      case commands.WRITE_ZEROES: {
        // No device here says of itself that zeros are quicker than data.
        if ((flags & FAST_ZERO) !== 0) throw new NotFast();
        const mayUnmap = (flags & NO_HOLE) === 0;
        await this.#inSlices(offsetBytes, lengthBytes, (at, length) =>
          served.use((device) => device.writeZeroes(at, length, { mayUnmap, fua })),
        );
        return;
      }
      default: {
        const length = Math.min(lengthBytes, sessionLimits.statusBytes);
        const extents = await served.use((device) => device.blockStatus(offsetBytes, length));
        const most = (flags & REQ_ONE) !== 0 ? 1 : sessionLimits.descriptors;
        return extents.slice(0, most).map((extent) => ({
          lengthBytes: extent.lengthBytes,
          flags: (extent.allocated ? 0 : allocationFlags.HOLE) | (extent.zero ? allocationFlags.ZERO : 0),
        }));
      }
    }
  }

  async #inSlices(
    offsetBytes: number,
    lengthBytes: number,
    each: (offsetBytes: number, lengthBytes: number) => Promise<void>,
  ): Promise<void> {
    for (let done = 0; done < lengthBytes && this.#phase !== 'ended'; ) {
      const length = Math.min(sessionLimits.sliceBytes, lengthBytes - done);
      await each(offsetBytes + done, length);
      done += length;
    }
  }

  #failed(request: Request, error: unknown, heldBytes: number): void {
    if (error instanceof NotFast) this.#fail(request, 'ENOTSUP', 'zeros are no faster than data', heldBytes);
    else if (error instanceof RaidError) {
      const name = error.code === 'CLOSED' ? 'ESHUTDOWN' : nbdErrorOf(error.code);
      // What kind of error, without the names of files and machines that are in its message.
      this.#fail(request, name, new RaidError(error.code, '').message, heldBytes);
    } else throw error;
  }

  /** `heldBytes`: of a request that was begun; null of one that was refused before. */
  #fail(request: Request, name: NbdErrorName, text: string, heldBytes: number | null = null): void {
    const { cookieHigh, cookieLow } = request;
    const error = nbdErrors[name];
    let reply: Buffer;
    if (this.#isStructured) {
      reply = encodeChunk({
        chunk: 'error',
        cookieHigh,
        cookieLow,
        isDone: true,
        error,
        text,
        offsetBytes: null,
      });
    } else {
      reply = Buffer.allocUnsafe(SIMPLE_REPLY_BYTES);
      encodeSimpleReply({ cookieHigh, cookieLow, error }, reply);
    }
    if (heldBytes === null) this.#begin(0);
    this.#send(reply, () => this.#done(heldBytes ?? 0));
  }

  #begin(bytes: number): void {
    this.#requestCount += 1;
    this.#heldBytes += bytes;
    this.#home.budget.use(bytes);
  }

  #done(bytes: number): void {
    this.#requestCount -= 1;
    this.#heldBytes -= bytes;
    this.#home.budget.giveBack(bytes);
    if (this.#phase === 'ending') this.#endIfIdle();
    else if (this.#isPaused && this.#phase === 'requests') this.#pump();
  }

  #stopTaking(): void {
    this.#phase = 'ending';
    this.#abandonWriting();
    this.#stream.resume();
    this.#endIfIdle();
  }

  /** Of half a write nobody waits for the answer, and some of it may be with the device. */
  #endIfIdle(): void {
    if (this.#requestCount === 0 && this.#changes === 0) this.#end();
  }

  #end(): void {
    if (this.#phase === 'ended' || this.#hasSaidGoodbye) return;
    this.#hasSaidGoodbye = true;
    this.#phase = 'ending';
    this.#uncork();
    this.#stream.end(() => this.cut(null));
  }

  /** What is sent in one turn goes out together. `sent`: the bytes are no longer needed, sent or not. */
  #send(bytes: Uint8Array, sent?: () => void): void {
    if (this.#phase === 'ended') {
      sent?.();
      return;
    }
    this.#cork();
    if (this.#unsentCount === 0) this.#sentMs = this.#home.host.now();
    this.#unsentCount += 1;
    this.#stream.write(bytes, () => {
      this.#unsentCount -= 1;
      this.#sentMs = this.#home.host.now();
      sent?.();
    });
  }

  #cork(): void {
    if (this.#isCorked) return;
    this.#isCorked = true;
    this.#stream.cork();
    process.nextTick(() => this.#uncork());
  }

  #uncork(): void {
    if (!this.#isCorked) return;
    this.#sendSuccesses();
    this.#isCorked = false;
    this.#stream.uncork();
  }
}

/** A fast zero that would not be. */
class NotFast extends Error {}

function numberOf(request: OptionRequest): number {
  return request.option === 'OTHER' ? request.number : options[request.option];
}

function fill(gatherer: Gatherer, bytes: Uint8Array): void {
  for (let rest = bytes; rest.byteLength > 0; ) {
    const room = gatherer.room();
    const part = rest.subarray(0, room.byteLength);
    room.set(part);
    gatherer.filled(part.byteLength);
    rest = rest.subarray(part.byteLength);
  }
}

/** Views of the socket's chunks; or, where they come in crumbs, one buffer. */
function keep(writing: Writing, pieces: Uint8Array[], bytes: Uint8Array): void {
  const { lengthBytes } = writing.request;
  if (writing.whole === null && pieces.length >= FEW_PIECES + lengthBytes / PIECE_BYTES) {
    const whole = Buffer.alloc(lengthBytes);
    for (const piece of pieces) {
      whole.set(piece, writing.wholeBytes);
      writing.wholeBytes += piece.byteLength;
    }
    writing.whole = whole;
    pieces.length = 0;
  }
  if (writing.whole === null) {
    pieces.push(bytes);
    return;
  }
  writing.whole.set(bytes, writing.wholeBytes);
  writing.wholeBytes += bytes.byteLength;
}
