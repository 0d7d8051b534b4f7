/**
 * One connection of a client: from the greeting to its end, after which it is good for nothing. What was not answered by
 * then is handed back, and its owner decides (client.ts says by which rules).
 *
 *   open ──▶ [STARTTLS] ▶ STRUCTURED_REPLY ▶ SET_META_CONTEXT ▶ GO ──▶ requests ──▶ leave | ended | broken off
 *
 * An end is one of two kinds, and everything hangs on which: `mayReturn`, the other end closed the connection, so that it
 * is done with what it got over it; or not, we gave it up, and what the server still makes of it nobody knows.
 *
 * The fence. From the moment it ends no byte that arrives is looked at, and none that was not sent is sent: the stream is
 * destroyed *before* anybody hears of it, and a destroyed stream reads no buffer any more. So a caller who is told of a
 * failure may use the buffers for something else at once.
 *
 * A server may answer a write before it has all its bytes, out of error or malice. Told at once, the caller would reuse
 * the buffer, and the rest of the write would go out with other bytes in it. Such an answer is kept until the last byte has left.
 */
import type { Duplex } from 'node:stream';
import { assert, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import type { Endpoint } from './client-dial.ts';
import { type Exchange, type Outcome, quoted } from './client-exchange.ts';
import {
  ALLOCATION_CONTEXT,
  type BlockSizes,
  commands,
  type ExportFacts,
  encodeClientFlags,
  encodeOption,
  encodeRequest,
  handshakeFlags,
  infos,
  type OptionReply,
  type OptionRequest,
  optionErrors,
  options,
  REQUEST_BYTES,
  type ServerMessage,
  ServerMessages,
} from './protocol.ts';

export interface Ending {
  /** The other end closed: what it was sent over this connection it has done, or will never do. */
  readonly mayReturn: boolean;
  readonly error: RaidError;
}

/** What the handshake has come to. */
export interface Terms extends ExportFacts {
  /** Null where the server says nothing about it. */
  readonly sizes: BlockSizes | null;
  readonly isStructured: boolean;
  /** Of `base:allocation`; null where it is not to be had. */
  readonly contextId: number | null;
}

/** Who has the connection. */
export interface Owner {
  answered(exchange: Exchange, outcome: Outcome): void;
  /** Nothing more will be answered; `unanswered` in the order in which they were sent. */
  ended(ending: Ending, unanswered: readonly Exchange[]): void;
}

type Known = Exclude<OptionRequest, { option: 'OTHER' }>;

/** Replies to one option; a server that knows more has a reason that is not ours. */
const REPLIES_PER_OPTION = 64;
/** What a server may take to close when it was asked to. */
const FAREWELL_MS = 1000;

/** The other end is not there, or has gone: it may come back. All else is silence, and nobody knows what it means. */
const gone = new Set(['ECONNREFUSED', 'ECONNRESET', 'ECONNABORTED', 'EPIPE', 'ENOENT']);

/** Into so many ticks a time is cut that a server is given: see `Time` in client.ts. */
export const TICKS = 8;

/**
 * Whether so much time is over, before the signal. A sleep of our own is one tick of it, and what has come by then is looked
 * at before anybody is told.
 */
export async function waitedFor(host: Host, ms: number, signal: AbortSignal): Promise<boolean> {
  for (let tick = 0; tick < TICKS && !signal.aborted; tick += 1) await host.sleep(ms / TICKS, signal);
  if (!signal.aborted) await new Promise<void>((resolve) => host.turn(resolve));
  return !signal.aborted;
}

const nobody: Owner = { answered: () => undefined, ended: () => undefined };

export class Connection {
  readonly #name: string;
  readonly #host: Host;
  #wire: Duplex;
  #messages = new ServerMessages();
  #terms: Terms | null = null;
  #owner: Owner = nobody;
  #ending: Ending | null = null;
  #isLeaving = false;
  /** During the handshake: who waits for a message, or for the end. */
  #wake: (() => void) | null = null;
  /** Told apart from those of other connections of this device, so that an answer never meets a stranger's question. */
  readonly #cookieHigh: number;
  #cookieLow = 0;
  readonly #inFlight = new Map<number, Exchange>();
  #payloadInFlight = 0;
  /** The cookie of the answer that is being read. */
  #answering = 0;
  /** Whose bytes are coming in. */
  #receiving: Exchange | null = null;
  #isCorked = false;
  /** Bytes that the stream was given. */
  #given = 0;
  /** Answered before they were sent in full. */
  #early: Exchange[] = [];

  private constructor(name: string, host: Host, wire: Duplex, cookieHigh: number) {
    this.#name = name;
    this.#host = host;
    this.#wire = wire;
    this.#cookieHigh = cookieHigh;
    this.#listen();
  }

  /** A connection that is ready for requests; or how it ended before it was. */
  static async open(
    endpoint: Endpoint,
    host: Host,
    options: { readonly withinMs: number; readonly generation: number },
  ): Promise<Connection | Ending> {
    const { name } = endpoint;
    const inTime = new AbortController();
    const tooLate = new AbortController();
    const late = silence(name, `it did not answer within ${options.withinMs} ms`);
    void waitedFor(host, options.withinMs, inTime.signal).then((isOver) => {
      if (isOver) tooLate.abort();
    });
    try {
      const wire = await endpoint.dial(tooLate.signal);
      const connection = new Connection(name, host, wire, options.generation);
      tooLate.signal.addEventListener('abort', () => connection.breakOff(late));
      if (tooLate.signal.aborted) connection.breakOff(late);
      await connection
        .#shakeHands(endpoint)
        .catch((cause: unknown) => connection.#end(endingFrom(name, cause)));
      return connection.ending ?? connection;
    } catch (cause) {
      if (tooLate.signal.aborted) return { mayReturn: false, error: late };
      // Nothing has been sent: whatever stood in the way may have gone at the next attempt.
      return { ...endingFrom(name, cause), mayReturn: !(cause instanceof RaidError) };
    } finally {
      inTime.abort();
    }
  }

  get terms(): Terms {
    assert(this.#terms !== null, 'a connection is handed out when its handshake is over');
    return this.#terms;
  }

  get ending(): Ending | null {
    return this.#ending;
  }

  /** The server, or we, have said goodbye: nothing more is to be sent. */
  get isLeaving(): boolean {
    return this.#isLeaving;
  }

  get inFlight(): { readonly count: number; readonly payloadBytes: number } {
    return { count: this.#inFlight.size, payloadBytes: this.#payloadInFlight };
  }

  /** Sent first of those that wait. */
  get oldest(): Exchange | null {
    for (const exchange of this.#early) return exchange;
    for (const exchange of this.#inFlight.values()) return exchange;
    return null;
  }

  /** Whether a change of this place is under way. */
  isChanging(place: { readonly offsetBytes: number; readonly lengthBytes: number }): boolean {
    for (const exchange of this.#inFlight.values()) {
      if (exchange.isMutation && exchange.overlaps(place)) return true;
    }
    return false;
  }

  /** From now on it is the owner who hears. Told at once where the connection has ended already. */
  own(owner: Owner): void {
    this.#owner = owner;
    if (this.#ending !== null) owner.ended(this.#ending, []);
  }

  send(exchange: Exchange, tick: number): void {
    assert(this.#ending === null && !this.#isLeaving, 'nothing is sent over a connection that has ended');
    exchange.begin();
    exchange.sentTick = tick;
    this.#cookieLow = (this.#cookieLow + 1) >>> 0;
    assert(!this.#inFlight.has(this.#cookieLow), 'a cookie is used once');
    this.#inFlight.set(this.#cookieLow, exchange);
    this.#payloadInFlight += exchange.payloadBytes;

    const header = Buffer.allocUnsafe(REQUEST_BYTES);
    encodeRequest(
      {
        command: exchange.command,
        flags: exchange.flags,
        cookieHigh: this.#cookieHigh,
        cookieLow: this.#cookieLow,
        // NBD wants zeros there.
        offsetBytes: exchange.command === commands.FLUSH ? 0 : exchange.offsetBytes,
        lengthBytes: exchange.command === commands.FLUSH ? 0 : exchange.lengthBytes,
      },
      header,
    );
    this.#cork();
    this.#give(header);
    if (exchange.command === commands.WRITE) {
      for (const buffer of exchange.buffers) if (buffer.byteLength > 0) this.#give(buffer);
    }
    exchange.sentTo = this.#given;
  }

  /** We give it up. What the server makes of what it got, nobody will know. */
  breakOff(error: RaidError): void {
    this.#end({ mayReturn: false, error });
  }

  /** Asks the server to close when it has done everything, and waits for that, but not for long. */
  async leave(): Promise<void> {
    if (this.#ending !== null) return;
    this.goodbye();
    const closed = new AbortController();
    const { promise, resolve } = deferred();
    this.#owner = { answered: () => undefined, ended: resolve };
    void this.#host.sleep(FAREWELL_MS, closed.signal).then(resolve);
    await promise;
    closed.abort();
    this.#end({ mayReturn: false, error: silence(this.#name, 'it was left') });
  }

  /** The last message. The server does what it has, and closes. */
  goodbye(): void {
    if (this.#isLeaving || this.#ending !== null) return;
    this.#isLeaving = true;
    const header = Buffer.allocUnsafe(REQUEST_BYTES);
    const nothing = { flags: 0, offsetBytes: 0, lengthBytes: 0, cookieLow: 0 };
    encodeRequest({ ...nothing, command: commands.DISC, cookieHigh: this.#cookieHigh }, header);
    this.#give(header);
    this.#wire.end();
  }

  // The stream.

  readonly #onData = (chunk: Buffer): void => this.#arrive(chunk);
  readonly #onClose = (): void =>
    this.#end({ mayReturn: true, error: silence(this.#name, 'the server closed the connection') });
  readonly #onError = (cause: unknown): void => this.#end(endingFrom(this.#name, cause));

  #listen(): void {
    this.#wire.on('error', this.#onError);
    this.#wire.on('data', this.#onData);
    this.#wire.on('end', this.#onClose);
    this.#wire.on('close', this.#onClose);
  }

  #give(bytes: Uint8Array): void {
    this.#given += bytes.byteLength;
    this.#wire.write(bytes);
  }

  /** What is sent in one turn goes out in one system call. */
  #cork(): void {
    if (this.#isCorked) return;
    this.#isCorked = true;
    this.#wire.cork();
    queueMicrotask(() => {
      this.#isCorked = false;
      this.#wire.uncork();
    });
  }

  #arrive(chunk: Buffer): void {
    if (this.#ending !== null) return;
    try {
      this.#messages.push(chunk);
      if (this.#terms === null) this.#wake?.();
      else this.#dispatch();
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
      this.#end({ mayReturn: false, error: namedAfter(this.#name, error) });
    }
  }

  #end(ending: Ending): void {
    if (this.#ending !== null) return;
    this.#ending = ending;
    this.#wire.destroy();
    const unanswered = [...this.#early, ...this.#inFlight.values()];
    this.#early = [];
    this.#inFlight.clear();
    this.#receiving = null;
    this.#wake?.();
    this.#owner.ended(ending, unanswered);
  }

  // Requests.

  #dispatch(): void {
    for (;;) {
      const message = this.#messages.next();
      if (message === null || this.#ending !== null) return;
      switch (message.kind) {
        case 'data': {
          const exchange = this.#receiving;
          assert(exchange !== null, 'bytes come for somebody');
          if (message.isLast) this.#receiving = null;
          if (exchange.takeBytes(message.bytes, message.isLast)) this.#answered(exchange);
          break;
        }
        case 'simple': {
          const exchange = this.#asked(message.reply);
          if (exchange.takeSimple(message.reply.error, this.terms.isStructured)) {
            this.#messages.expectPayload(exchange.lengthBytes);
            this.#receiving = exchange;
          } else {
            this.#answered(exchange);
          }
          break;
        }
        case 'chunk': {
          if (!this.terms.isStructured) throw violation('a structured reply, which was not agreed on');
          const exchange = this.#asked(message.chunk);
          if (exchange.takeChunk(message.chunk, this.terms.contextId)) this.#receiving = exchange;
          else if (message.chunk.isDone) this.#answered(exchange);
          break;
        }
        default:
          throw violation(`a message of the handshake (${message.kind}) after it`);
      }
    }
  }

  #asked({ cookieHigh, cookieLow }: { readonly cookieHigh: number; readonly cookieLow: number }): Exchange {
    const exchange = cookieHigh === this.#cookieHigh ? this.#inFlight.get(cookieLow) : undefined;
    if (exchange === undefined) throw violation('an answer to nothing that was asked');
    this.#answering = cookieLow;
    return exchange;
  }

  #answered(exchange: Exchange): void {
    const outcome = exchange.outcome(this.#name);
    this.#inFlight.delete(this.#answering);
    this.#payloadInFlight -= exchange.payloadBytes;
    if (this.#isSent(exchange)) this.#owner.answered(exchange, outcome);
    else this.#waitUntilSent(exchange, outcome);
  }

  #isSent(exchange: Exchange): boolean {
    return this.#wire.writableLength === 0 || exchange.sentTo <= this.#given - this.#wire.writableLength;
  }

  #waitUntilSent(exchange: Exchange, outcome: Outcome): void {
    this.#early.push(exchange);
    const look = (): void => {
      if (this.#ending !== null) return;
      if (!this.#isSent(exchange)) {
        this.#host.turn(look);
        return;
      }
      this.#early.splice(this.#early.indexOf(exchange), 1);
      this.#owner.answered(exchange, outcome);
    };
    this.#host.turn(look);
  }

  // The handshake.

  async #shakeHands(endpoint: Endpoint): Promise<void> {
    const greeting = await this.#next();
    if (greeting.kind !== 'greeting') throw violation('something before its greeting');
    if ((greeting.flags & handshakeFlags.FIXED_NEWSTYLE) === 0) {
      throw this.#unusable('it does not know the fixed newstyle handshake, which is needed');
    }
    this.#wire.write(
      encodeClientFlags(greeting.flags & (handshakeFlags.FIXED_NEWSTYLE | handshakeFlags.NO_ZEROES)),
    );
    if (endpoint.secure !== null) await this.#secure(endpoint.secure);
    const isStructured = (await this.#tryOption({ option: 'STRUCTURED_REPLY' })) !== null;
    let contextId: number | null = null;
    if (isStructured) {
      const contexts = await this.#tryOption({
        option: 'SET_META_CONTEXT',
        name: endpoint.exportName,
        queries: [ALLOCATION_CONTEXT],
      });
      for (const reply of contexts ?? []) {
        if (reply.reply !== 'META_CONTEXT' || reply.name !== ALLOCATION_CONTEXT || contextId !== null) {
          throw violation('a context that was not asked for');
        }
        contextId = reply.id;
      }
    }
    const go = await this.#option({ option: 'GO', name: endpoint.exportName, wants: [infos.BLOCK_SIZE] });
    if (go.refusal !== null) throw this.#refused(go.refusal, endpoint.exportName);
    let facts: ExportFacts | null = null;
    let sizes: BlockSizes | null = null;
    for (const reply of go.replies) {
      if (reply.reply !== 'INFO') throw violation('an answer to GO that is none');
      if (reply.info === 'EXPORT') facts = reply;
      if (reply.info === 'BLOCK_SIZE') sizes = checkedSizes(reply);
    }
    if (facts === null) throw violation('nothing about the export that it agreed to');
    this.#messages.transmit();
    this.#terms = { sizeBytes: facts.sizeBytes, flags: facts.flags, sizes, isStructured, contextId };
    // What has come already would be an answer to nothing.
    this.#dispatch();
  }

  async #secure(secure: NonNullable<Endpoint['secure']>): Promise<void> {
    const { refusal } = await this.#option({ option: 'STARTTLS' });
    if (refusal !== null) {
      throw this.#unusable(
        `it does not do TLS, which the URI asks for${refusal.text === '' ? '' : `: ${quoted(refusal.text)}`}`,
      );
    }
    // In clear, and therefore anybody's.
    if (!this.#messages.intake.isEmpty) throw violation('something in clear behind its consent to TLS');
    const plain = this.#wire;
    plain.off('data', this.#onData);
    plain.off('end', this.#onClose);
    plain.off('close', this.#onClose);
    const wire = await secure(plain);
    plain.off('error', this.#onError);
    this.#wire = wire;
    this.#messages = ServerMessages.afterTls();
    this.#listen();
    if (this.#ending !== null) wire.destroy();
  }

  /** The replies; null where the server does not have the option. */
  async #tryOption(request: Known): Promise<readonly OptionReply[] | null> {
    const { replies, refusal } = await this.#option(request);
    if (refusal?.error === optionErrors.TLS_REQD) throw this.#refused(refusal, '');
    return refusal === null ? replies : null;
  }

  async #option(request: Known): Promise<{
    readonly replies: readonly OptionReply[];
    readonly refusal: Extract<OptionReply, { reply: 'ERROR' }> | null;
  }> {
    this.#wire.write(encodeOption(request));
    const replies: OptionReply[] = [];
    for (let count = 0; count < REPLIES_PER_OPTION; count += 1) {
      const message = await this.#next();
      if (message.kind !== 'option-reply' || message.reply.option !== options[request.option]) {
        throw violation('an answer to another option than was sent');
      }
      const { reply } = message;
      if (reply.reply === 'ACK') return { replies, refusal: null };
      if (reply.reply === 'ERROR') return { replies, refusal: reply };
      replies.push(reply);
    }
    throw violation(`more than ${REPLIES_PER_OPTION} replies to one option`);
  }

  async #next(): Promise<ServerMessage> {
    for (;;) {
      if (this.#ending !== null) throw this.#ending.error;
      const message = this.#messages.next();
      if (message !== null) return message;
      const { promise, resolve } = deferred();
      this.#wake = resolve;
      await promise;
      this.#wake = null;
    }
  }

  #refused(
    { error, text }: { readonly error: number; readonly text: string },
    exportName: string,
  ): RaidError {
    const said = text === '' ? '' : `: it says ${quoted(text)}`;
    switch (error) {
      case optionErrors.UNKNOWN:
        return this.#unusable(`it has no export ${quoted(exportName)}${said}`);
      case optionErrors.TLS_REQD:
        return this.#unusable(`it wants TLS; write nbds:// or nbds+unix://${said}`);
      case optionErrors.UNSUP:
        return this.#unusable('it does not know the option GO, which is needed');
      case optionErrors.SHUTDOWN:
        return new RaidError('MEMBER_GONE', `${this.#name}: the server is being shut down`, {
          device: this.#name,
        });
      default:
        return this.#unusable(`it does not let us in${said}`);
    }
  }

  #unusable(why: string): RaidError {
    return new RaidError('BAD_ARGUMENT', `${this.#name}: the server cannot be used: ${why}`, {
      device: this.#name,
    });
  }
}

/** What the protocol says they must be; from then on they are relied on. */
function checkedSizes(sizes: BlockSizes): BlockSizes {
  const { minimumBytes, preferredBytes, maximumPayloadBytes } = sizes;
  const isPower = (value: number): boolean => value > 0 && (value & (value - 1)) === 0 && value <= 2 ** 30;
  const areGood =
    isPower(minimumBytes) &&
    minimumBytes <= 65_536 &&
    isPower(preferredBytes) &&
    preferredBytes >= Math.max(minimumBytes, 512) &&
    maximumPayloadBytes >= preferredBytes;
  if (!areGood) {
    throw violation(
      `block sizes that cannot be (${minimumBytes}, ${preferredBytes}, ${maximumPayloadBytes})`,
    );
  }
  return { minimumBytes, preferredBytes, maximumPayloadBytes };
}

function endingFrom(name: string, cause: unknown): Ending {
  if (cause instanceof RaidError) {
    const mayReturn = cause.code === 'MEMBER_GONE';
    return { mayReturn, error: namedAfter(name, cause) };
  }
  if (!(cause instanceof Error)) throw cause;
  const code = 'code' in cause ? String(cause.code) : '';
  return { mayReturn: gone.has(code), error: silence(name, cause.message || code, cause) };
}

function silence(name: string, why: string, cause?: Error): RaidError {
  const options = { device: name, ...(cause === undefined ? {} : { cause }) };
  return new RaidError('MEMBER_GONE', `${name} cannot be reached: ${why}`, options);
}

function namedAfter(name: string, error: RaidError): RaidError {
  if (error.place.device !== undefined || error.message.startsWith(name)) return error;
  return new RaidError(error.code, `${name}: ${error.message}`, {
    ...error.place,
    device: name,
    cause: error,
  });
}

function violation(what: string): RaidError {
  return new RaidError('PROTOCOL_VIOLATION', `the other end of an NBD connection sent ${what}`);
}

function deferred(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}
