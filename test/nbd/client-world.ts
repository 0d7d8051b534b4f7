/**
 * What the tests of the NBD client are made of: a clock that the test moves, wires without sockets, and a server that does
 * as it is told: it holds answers back, dies with or without what was not flushed, comes back as another.
 */
import { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { type Host, seededRandom } from '../../lib/host.ts';
import type { Endpoint } from '../../lib/nbd/client-dial.ts';
import {
  type BlockSizes,
  ClientMessages,
  commandFlags,
  commands,
  DATA_CHUNK_BYTES,
  encodeChunk,
  encodeDataChunk,
  encodeGreeting,
  encodeOptionReply,
  encodeSimpleReply,
  type OptionRequest,
  optionErrors,
  options,
  type Request,
  SIMPLE_REPLY_BYTES,
  transmissionFlags,
} from '../../lib/nbd/protocol.ts';

/** Time moves when the test says so. */
export class HandHost implements Host {
  readonly random = seededRandom(1);
  #nowMs = 0;
  #sleepers: { readonly atMs: number; readonly wake: () => void }[] = [];

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
        this.#sleepers = this.#sleepers.filter((each) => each !== sleeper);
        resolve();
      };
      const sleeper = { atMs: this.#nowMs + ms, wake };
      this.#sleepers.push(sleeper);
      signal?.addEventListener('abort', wake);
      if (signal?.aborted === true) wake();
    });
  }

  turn(run: () => void): void {
    setImmediate(run);
  }

  randomBytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => this.random(256));
  }

  /** Sleepers wake one after the other, and what follows from each happens before the next. */
  async pass(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    await settle();
    for (;;) {
      const [next] = this.#sleepers.toSorted((a, b) => a.atMs - b.atMs);
      if (next === undefined || next.atMs > endMs) break;
      this.#sleepers = this.#sleepers.filter((each) => each !== next);
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      next.wake();
      await settle();
    }
    this.#nowMs = endMs;
  }

  /** As when this process was stopped for a while: the clock has gone on, and nothing else. */
  jump(ms: number): void {
    this.#nowMs += ms;
  }

  get sleeping(): number {
    return this.#sleepers.length;
  }
}

/** Everything that can go on without time passing has gone on. */
export async function settle(): Promise<void> {
  for (let count = 0; count < 12; count += 1) await turn();
}

/** One end of a wire. What is written is copied when it leaves, as a kernel would; a full other end holds it up. */
export class WireEnd extends Duplex {
  peer: WireEnd | null = null;
  #resume: (() => void) | null = null;
  /** Takes nothing in, as a program that is stopped. */
  isStopped = false;
  #held: { readonly chunk: Buffer; readonly taken: () => void }[] = [];

  constructor() {
    super({ allowHalfOpen: false });
  }

  override _write(chunk: Buffer, _encoding: string, taken: () => void): void {
    const { peer } = this;
    if (peer === null || peer.destroyed) {
      this.destroy(Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }));
      return;
    }
    peer.arrive(chunk, taken);
  }

  override _final(done: () => void): void {
    this.peer?.push(null);
    done();
  }

  override _read(): void {
    const resume = this.#resume;
    this.#resume = null;
    resume?.();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    const { peer } = this;
    this.#held = [];
    if (peer !== null && !peer.destroyed) setImmediate(() => peer.push(null));
    done(error);
  }

  arrive(chunk: Buffer, taken: () => void): void {
    if (this.isStopped) {
      this.#held.push({ chunk, taken });
      return;
    }
    if (this.push(Buffer.from(chunk))) process.nextTick(taken);
    else this.#resume = taken;
  }

  /** Goes on, with what has waited, unless whoever sent it has taken it back. */
  goOn(): void {
    this.isStopped = false;
    for (const { chunk, taken } of this.#held.splice(0)) {
      if (this.peer?.destroyed === true) return;
      this.arrive(chunk, taken);
    }
  }
}

export function wire(): readonly [WireEnd, WireEnd] {
  const [near, far] = [new WireEnd(), new WireEnd()];
  near.peer = far;
  far.peer = near;
  return [near, far];
}

export interface ServerShape {
  readonly sizeBytes: number;
  readonly flags: number;
  readonly isStructured: boolean;
  readonly hasStatus: boolean;
  readonly sizes: BlockSizes | null;
}

const { HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_WRITE_ZEROES, SEND_FAST_ZERO, SEND_TRIM } = transmissionFlags;

export const fullFlags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_WRITE_ZEROES | SEND_FAST_ZERO | SEND_TRIM;

export const plainShape: ServerShape = {
  sizeBytes: 256 * 1024,
  flags: fullFlags,
  isStructured: true,
  hasStatus: true,
  sizes: { minimumBytes: 1, preferredBytes: 4096, maximumPayloadBytes: 32 * 1024 * 1024 },
};

/** `hold`: nothing happens. `mute`: it happens, and no answer comes. A number: that error. */
export type Verdict = 'do' | 'hold' | 'mute' | number;

export class TestServer implements Endpoint {
  readonly name = 'nbd://test/';
  readonly identity = 'nbd:test';
  readonly exportName = '';
  readonly secure = null;
  shape: ServerShape;
  /** What it holds, and what of that a power cut would leave. */
  content: Buffer;
  durable: Buffer;
  isUp = true;
  verdict: (request: Request) => Verdict = () => 'do';
  /** Requests as they came, `write 0+512`. */
  readonly log: string[] = [];
  readonly sessions: TestSession[] = [];
  dials = 0;
  /** Answers reads in pieces of this size, last piece first where `backwards`. */
  pieceBytes = Number.POSITIVE_INFINITY;
  backwards = false;
  /** Zeros are told as holes. */
  holes = false;

  constructor(shape: Partial<ServerShape> = {}) {
    this.shape = { ...plainShape, ...shape };
    this.content = Buffer.alloc(this.shape.sizeBytes);
    this.durable = Buffer.alloc(this.shape.sizeBytes);
  }

  readonly dial = async (): Promise<Duplex> => {
    this.dials += 1;
    if (!this.isUp) {
      throw Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });
    }
    const [near, far] = wire();
    this.sessions.push(new TestSession(this, far));
    return near;
  };

  get session(): TestSession {
    const last = this.sessions.at(-1);
    if (last === undefined) throw new Error('nobody has connected');
    return last;
  }

  /** As a process that was killed: connections end, and nothing of it acts any more. */
  die(how: { readonly loses: 'nothing' | 'unflushed' | 'everything' } = { loses: 'nothing' }): void {
    this.isUp = false;
    if (how.loses === 'unflushed') this.content = Buffer.from(this.durable);
    if (how.loses === 'everything') this.content = Buffer.alloc(this.content.byteLength);
    for (const session of this.sessions) session.end();
  }
}

export class TestSession {
  readonly wire: WireEnd;
  readonly #server: TestServer;
  readonly #messages = new ClientMessages();
  readonly held: Request[] = [];
  #writing: { readonly request: Request; readonly bytes: Buffer; done: number } | null = null;
  readonly #payloads = new Map<Request, Buffer>();
  #hasEnded = false;

  constructor(server: TestServer, end: WireEnd) {
    this.#server = server;
    this.wire = end;
    end.on('error', () => undefined);
    end.on('data', (chunk: Buffer) => this.#arrive(chunk));
    end.write(encodeGreeting(3));
  }

  end(): void {
    this.#hasEnded = true;
    this.wire.destroy();
  }

  send(bytes: Uint8Array): void {
    if (!this.#hasEnded) this.wire.write(bytes);
  }

  /** Does what was held back, now: late, perhaps after its client has gone. */
  release(): void {
    for (const request of this.held.splice(0)) this.#do(request, true);
  }

  #arrive(chunk: Buffer): void {
    this.#messages.push(chunk);
    for (let message = this.#messages.next(); message !== null; message = this.#messages.next()) {
      if (message.kind === 'option') this.#option(message.request);
      else if (message.kind === 'request') this.#request(message.request);
      else if (message.kind === 'data' && this.#writing !== null) {
        const writing = this.#writing;
        writing.bytes.set(message.bytes, writing.done);
        writing.done += message.bytes.byteLength;
        if (!message.isLast) continue;
        this.#writing = null;
        this.#judge(writing.request, writing.bytes);
      }
    }
  }

  #option(request: OptionRequest): void {
    const { shape } = this.#server;
    const option = request.option === 'OTHER' ? request.number : options[request.option];
    const refuse = (): void =>
      this.send(encodeOptionReply({ option, reply: 'ERROR', error: optionErrors.UNSUP, text: 'no' }));
    const ack = (): void => this.send(encodeOptionReply({ option, reply: 'ACK' }));
    switch (request.option) {
      case 'STRUCTURED_REPLY':
        if (shape.isStructured) ack();
        else refuse();
        return;
      case 'SET_META_CONTEXT':
        if (shape.hasStatus) {
          this.send(encodeOptionReply({ option, reply: 'META_CONTEXT', id: 7, name: 'base:allocation' }));
        }
        ack();
        return;
      case 'GO': {
        const { sizeBytes, flags, sizes } = shape;
        this.send(encodeOptionReply({ option, reply: 'INFO', info: 'EXPORT', sizeBytes, flags }));
        if (sizes !== null)
          this.send(encodeOptionReply({ option, reply: 'INFO', info: 'BLOCK_SIZE', ...sizes }));
        ack();
        this.#messages.transmit();
        return;
      }
      default:
        refuse();
    }
  }

  #request(request: Request): void {
    const { command, offsetBytes, lengthBytes } = request;
    const name = Object.entries(commands)
      .find(([, number]) => number === command)?.[0]
      .toLowerCase();
    const fua = (request.flags & commandFlags.FUA) === 0 ? '' : ' fua';
    this.#server.log.push(
      command === commands.FLUSH || command === commands.DISC
        ? `${name}`
        : `${name} ${offsetBytes}+${lengthBytes}${fua}`,
    );
    if (command === commands.WRITE) {
      this.#writing = { request, bytes: Buffer.alloc(lengthBytes), done: 0 };
    } else if (command === commands.DISC) {
      // Everything that was asked is done, and then it closes: that is what NBD says.
      this.release();
      this.end();
    } else {
      this.#judge(request, null);
    }
  }

  #judge(request: Request, bytes: Buffer | null): void {
    if (bytes !== null) this.#payloads.set(request, bytes);
    const verdict = this.#server.verdict(request);
    if (verdict === 'hold') this.held.push(request);
    else if (typeof verdict === 'number') this.refuse(request, verdict);
    else this.#do(request, verdict === 'do');
  }

  refuse(request: Request, error: number): void {
    const { isStructured } = this.#server.shape;
    if (isStructured) {
      const head = { cookieHigh: request.cookieHigh, cookieLow: request.cookieLow, isDone: true };
      this.send(encodeChunk({ ...head, chunk: 'error', error, text: 'as told', offsetBytes: null }));
    } else {
      this.#simple(request, error);
    }
  }

  #simple({ cookieHigh, cookieLow }: Request, error: number): void {
    const bytes = Buffer.alloc(SIMPLE_REPLY_BYTES);
    encodeSimpleReply({ cookieHigh, cookieLow, error }, bytes);
    this.send(bytes);
  }

  #do(request: Request, answers: boolean): void {
    const server = this.#server;
    const { command, lengthBytes, flags } = request;
    const offsetBytes = request.offsetBytes ?? 0;
    const end = offsetBytes + lengthBytes;
    if (command === commands.WRITE) this.#payloads.get(request)?.copy(server.content, offsetBytes);
    if (command === commands.WRITE_ZEROES) server.content.fill(0, offsetBytes, end);
    if (command === commands.FLUSH) server.content.copy(server.durable);
    if ((flags & commandFlags.FUA) !== 0) server.content.copy(server.durable, offsetBytes, offsetBytes, end);
    this.#payloads.delete(request);
    if (!answers) return;
    if (command === commands.READ) this.#answerRead(request, offsetBytes, lengthBytes);
    else if (command === commands.BLOCK_STATUS) this.#answerStatus(request, offsetBytes, lengthBytes);
    else if (server.shape.isStructured && command !== commands.WRITE) {
      const { cookieHigh, cookieLow } = request;
      this.send(encodeChunk({ chunk: 'none', isDone: true, cookieHigh, cookieLow }));
    } else this.#simple(request, 0);
  }

  #answerRead(request: Request, offsetBytes: number, lengthBytes: number): void {
    const server = this.#server;
    if (!server.shape.isStructured) {
      this.#simple(request, 0);
      this.send(server.content.subarray(offsetBytes, offsetBytes + lengthBytes));
      return;
    }
    const pieces: (readonly [number, number])[] = [];
    for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += server.pieceBytes) {
      pieces.push([at, Math.min(server.pieceBytes, offsetBytes + lengthBytes - at)]);
    }
    if (server.backwards) pieces.reverse();
    for (const [index, [at, count]] of pieces.entries()) {
      const isDone = index === pieces.length - 1;
      const bytes = server.content.subarray(at, at + count);
      if (server.holes && bytes.every((byte) => byte === 0)) {
        const { cookieHigh, cookieLow } = request;
        this.send(
          encodeChunk({ cookieHigh, cookieLow, isDone, chunk: 'hole', offsetBytes: at, lengthBytes: count }),
        );
        continue;
      }
      const head = Buffer.alloc(DATA_CHUNK_BYTES);
      encodeDataChunk(request, at, count, isDone, head);
      this.send(head);
      this.send(bytes);
    }
  }

  /** In pieces of 4 KiB, neighbours joined, the last one beyond what was asked. */
  #answerStatus(request: Request, offsetBytes: number, lengthBytes: number): void {
    const server = this.#server;
    const descriptors: { lengthBytes: number; flags: number }[] = [];
    for (let at = offsetBytes; at < offsetBytes + lengthBytes; ) {
      const next = Math.min(server.content.byteLength, at - (at % 4096) + 4096);
      const isZero = server.content.subarray(at, next).every((byte) => byte === 0);
      descriptors.push({ lengthBytes: next - at, flags: isZero ? 3 : 0 });
      at = next;
    }
    const { cookieHigh, cookieLow } = request;
    this.send(
      encodeChunk({ cookieHigh, cookieLow, isDone: true, chunk: 'block-status', contextId: 7, descriptors }),
    );
  }
}
