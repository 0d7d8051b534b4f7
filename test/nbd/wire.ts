/** An NBD connection without a socket, and a client that says exactly what a test wants to be said. */
import { Duplex } from 'node:stream';
import type { Host } from '../../lib/host.ts';
import {
  type Chunk,
  commands,
  encodeClientFlags,
  encodeOption,
  encodeRequest,
  type OptionReply,
  type OptionRequest,
  options,
  REQUEST_BYTES,
  type Request,
  ServerMessages,
  type SimpleReply,
} from '../../lib/nbd/protocol.ts';

/** A server's end of a connection. What comes is pushed by the test; what is sent is taken as long as it `reads`. */
export class Wire extends Duplex {
  readonly sent: Buffer[] = [];
  #reads = true;
  #held: ((error: Error) => void)[] = [];
  onSent: ((bytes: Buffer) => void) | null = null;

  constructor() {
    super({ allowHalfOpen: true, writableHighWaterMark: 1 });
  }

  get sentBytes(): Buffer {
    return Buffer.concat(this.sent);
  }

  /** A client that does not read: its side of the socket is full. */
  stopReading(): void {
    this.#reads = false;
  }

  override _read(): void {
    // What comes is pushed.
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this._writev([{ chunk }], done);
  }

  override _writev(chunks: readonly { chunk: Buffer }[], done: (error?: Error | null) => void): void {
    if (!this.#reads) {
      this.#held.push(done);
      return;
    }
    for (const { chunk } of chunks) {
      // A copy, as a socket's peer has one: the sender may use its buffer again.
      const copy = Buffer.from(chunk);
      this.sent.push(copy);
      this.onSent?.(copy);
    }
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    for (const give of this.#held.splice(0)) give(new Error('the connection is gone'));
    done(error);
  }
}

export interface Reply {
  readonly error: number;
  readonly text: string;
  readonly data: Buffer;
  readonly chunks: readonly Chunk[];
}

/** Speaks properly, unless it is given bytes to send as they are. */
export class Client {
  readonly wire = new Wire();
  readonly #messages = new ServerMessages();
  readonly #optionReplies: OptionReply[] = [];
  readonly #waiting: (() => void)[] = [];
  readonly #pending = new Map<
    number,
    { readonly lengthBytes: number; chunks: Chunk[]; data: Buffer; resolve: (reply: Reply) => void }
  >();
  /** Cookies in the order in which their replies ended. */
  readonly answered: number[] = [];
  #reading: number | null = null;
  #offsetBytes = 0;
  #isSimple = false;
  #lastCookie = 0;

  constructor(accept: (wire: Wire) => void) {
    this.wire.onSent = (bytes) => this.#receive(bytes);
    accept(this.wire);
  }

  send(bytes: Uint8Array): void {
    this.wire.push(bytes);
  }

  flags(flags = 3): void {
    this.send(encodeClientFlags(flags));
  }

  /** All replies to an option, the last of which ends it. */
  async option(request: OptionRequest): Promise<OptionReply[]> {
    this.send(encodeOption(request));
    const replies: OptionReply[] = [];
    for (;;) {
      const reply = await this.nextOptionReply();
      replies.push(reply);
      if (reply.reply === 'ACK' || reply.reply === 'ERROR') return replies;
    }
  }

  async nextOptionReply(): Promise<OptionReply> {
    for (;;) {
      const reply = this.#optionReplies.shift();
      if (reply !== undefined) return reply;
      await new Promise<void>((wake) => this.#waiting.push(wake));
    }
  }

  /** To the end of the handshake, as most clients go there. */
  async enter(name = '', how: { structured?: boolean; context?: boolean } = {}): Promise<OptionReply[]> {
    this.flags();
    if (how.structured !== false) await this.option({ option: 'STRUCTURED_REPLY' });
    if (how.context === true) {
      await this.option({ option: 'SET_META_CONTEXT', name, queries: ['base:allocation'] });
    }
    return await this.go(name);
  }

  async go(name: string): Promise<OptionReply[]> {
    const replies = await this.option({ option: 'GO', name, wants: [3] });
    if (replies.at(-1)?.reply === 'ACK') this.#messages.transmit();
    return replies;
  }

  async enterByName(name: string): Promise<void> {
    await turn();
    this.send(encodeOption({ option: 'EXPORT_NAME', name }));
    this.#messages.expectExport({ withZeroes: false });
  }

  request(
    asked: Partial<Request> & { readonly command: number },
    payload: Uint8Array = new Uint8Array(),
    crumbBytes = Number.POSITIVE_INFINITY,
  ): Promise<Reply> {
    this.#lastCookie += 1;
    const request: Request = {
      flags: 0,
      cookieHigh: 7,
      cookieLow: this.#lastCookie,
      offsetBytes: 0,
      lengthBytes: payload.byteLength,
      ...asked,
    };
    const head = Buffer.alloc(REQUEST_BYTES);
    encodeRequest(request, head);
    const answered = new Promise<Reply>((resolve) => {
      const lengthBytes = request.command === commands.READ ? request.lengthBytes : 0;
      this.#pending.set(request.cookieLow, {
        lengthBytes,
        chunks: [],
        data: Buffer.alloc(Math.min(lengthBytes, 1 << 26)),
        resolve,
      });
      this.#offsets.set(request.cookieLow, request.offsetBytes ?? 0);
    });
    const all = payload.byteLength === 0 ? head : Buffer.concat([head, payload]);
    for (let at = 0; at < all.byteLength; at += crumbBytes) this.send(all.subarray(at, at + crumbBytes));
    return answered;
  }

  readonly #offsets = new Map<number, number>();

  get isClosed(): boolean {
    return this.wire.destroyed;
  }

  closed(): Promise<void> {
    if (this.wire.destroyed) return Promise.resolve();
    return new Promise((resolve) => this.wire.once('close', () => resolve()));
  }

  #receive(bytes: Buffer): void {
    this.#messages.push(bytes);
    for (let message = this.#messages.next(); message !== null; message = this.#messages.next()) {
      if (message.kind === 'option-reply') {
        this.#optionReplies.push(message.reply);
        for (const wake of this.#waiting.splice(0)) wake();
      } else if (message.kind === 'simple') this.#simple(message.reply);
      else if (message.kind === 'chunk') this.#chunk(message.chunk);
      else if (message.kind === 'data') this.#data(message.bytes, message.isLast);
    }
  }

  #simple({ error, cookieLow }: SimpleReply): void {
    const pending = this.#pending.get(cookieLow);
    if (pending === undefined) throw new Error(`an answer to ${cookieLow}, which nobody has asked`);
    if (error === 0 && pending.lengthBytes > 0) {
      this.#reading = cookieLow;
      this.#offsetBytes = 0;
      this.#isSimple = true;
      this.#messages.expectPayload(pending.lengthBytes);
    } else this.#finish(cookieLow, error, '');
  }

  #chunk(chunk: Chunk): void {
    const { cookieLow } = chunk;
    const pending = this.#pending.get(cookieLow);
    if (pending === undefined) throw new Error(`a chunk for ${cookieLow}, which nobody has asked`);
    pending.chunks.push(chunk);
    if (chunk.chunk === 'data') {
      this.#reading = cookieLow;
      this.#offsetBytes = chunk.offsetBytes - (this.#offsets.get(cookieLow) ?? 0);
      this.#isSimple = false;
      return;
    }
    if (!chunk.isDone) return;
    if (chunk.chunk === 'error') this.#finish(cookieLow, chunk.error, chunk.text);
    else this.#finish(cookieLow, 0, '');
  }

  #data(bytes: Uint8Array, isLast: boolean): void {
    const cookie = this.#reading ?? 0;
    const pending = this.#pending.get(cookie);
    pending?.data.set(bytes, this.#offsetBytes);
    this.#offsetBytes += bytes.byteLength;
    if (isLast && (this.#isSimple || pending?.chunks.at(-1)?.isDone === true)) this.#finish(cookie, 0, '');
  }

  #finish(cookie: number, error: number, text: string): void {
    const pending = this.#pending.get(cookie);
    this.#pending.delete(cookie);
    this.answered.push(cookie);
    pending?.resolve({ error, text, data: pending.data, chunks: pending.chunks });
  }
}

export function errorOf(replies: readonly OptionReply[]): number | null {
  const last = replies.at(-1);
  return last?.reply === 'ERROR' ? last.error : null;
}

export { options };

/** A clock that stands still until a test moves it. */
export class StillHost implements Host {
  #nowMs = 0;
  #sleepers: { readonly untilMs: number; readonly wake: () => void }[] = [];

  now(): number {
    return this.#nowMs;
  }

  wallClock(): number {
    return this.#nowMs;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        signal?.removeEventListener('abort', wake);
        resolve();
      };
      this.#sleepers.push({ untilMs: this.#nowMs + ms, wake });
      signal?.addEventListener('abort', wake);
    });
  }

  turn(run: () => void): void {
    setImmediate(run);
  }

  random(): number {
    return 0;
  }

  randomBytes(count: number): Uint8Array {
    return new Uint8Array(count);
  }

  /** Step by step, so that who sleeps in a loop wakes as often as it would. */
  async advance(ms: number, stepMs = 250): Promise<void> {
    for (const endMs = this.#nowMs + ms; this.#nowMs < endMs; ) {
      this.#nowMs = Math.min(endMs, this.#nowMs + stepMs);
      const due = this.#sleepers.filter(({ untilMs }) => untilMs <= this.#nowMs);
      this.#sleepers = this.#sleepers.filter(({ untilMs }) => untilMs > this.#nowMs);
      for (const { wake } of due) wake();
      await turn();
    }
  }
}

/** Everything that can go on without time passing has gone on. */
export async function turn(times = 3): Promise<void> {
  for (let index = 0; index < times; index += 1) await new Promise<void>((resolve) => setImmediate(resolve));
}
