/**
 * Servers that lie, by chance: each session is one seed. Messages are made as they should be, and then some are not sent,
 * sent twice, to somebody else, with other numbers, with bytes changed, cut off, or put together from nothing; and however
 * they are, they come in pieces of any size.
 *
 * What must hold, whatever comes: every request ends, with success or a typed error; a read that succeeds has every byte from
 * the server (what was in the buffer before is a byte that the server has never sent); no byte outside of a request's buffers changes,
 * and none inside once it has ended; a stream that was refused is closed; nothing sleeps on.
 */
import { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { RaidError } from '../../lib/errors.ts';
import { type Host, seededRandom } from '../../lib/host.ts';
import { NbdDevice } from '../../lib/nbd/client.ts';
import {
  type Chunk,
  ClientMessages,
  commands,
  encodeChunk,
  encodeGreeting,
  encodeOptionReply,
  encodeSimpleReply,
  infos,
  type OptionReply,
  type OptionRequest,
  optionErrors,
  options,
  type Request,
  SIMPLE_REPLY_BYTES,
} from '../../lib/nbd/protocol.ts';
import type { Random } from '../conformance/seed.ts';
import { fullFlags } from './client-world.ts';

/** What buffers hold before, and what these servers do not send as data. */
const POISON = 0xa5;
const SIZE_BYTES = 64 * 1024;

/** Sleeps until it is told that time is up. */
class ImpatientHost implements Host {
  #sleepers = new Set<() => void>();
  now(): number {
    return 0;
  }
  wallClock(): number {
    return 0;
  }
  sleep(_ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        this.#sleepers.delete(wake);
        signal?.removeEventListener('abort', wake);
        resolve();
      };
      if (signal?.aborted === true) resolve();
      else {
        this.#sleepers.add(wake);
        signal?.addEventListener('abort', wake);
      }
    });
  }
  turn(run: () => void): void {
    setImmediate(run);
  }
  random(below: number): number {
    return below - 1;
  }
  randomBytes(count: number): Uint8Array {
    return new Uint8Array(count);
  }
  wakeAll(): void {
    for (const wake of [...this.#sleepers]) wake();
  }
  get sleeping(): number {
    return this.#sleepers.size;
  }
}

class HostileWire extends Duplex {
  readonly #random: Random;
  readonly #messages = new ClientMessages();
  readonly #isStructured: boolean;
  /** In so many of a hundred messages something is wrong. */
  readonly #malice: number;
  readonly #hasStatus: boolean;
  #isOver = false;
  /** The byte was in a number or in junk: what looks like a byte that was not filled may then be one of those. */
  saidPoison = false;

  constructor(random: Random) {
    super({ allowHalfOpen: false });
    this.#random = random;
    this.#isStructured = random(4) > 0;
    this.#hasStatus = random(3) > 0;
    this.#malice = [0, 3, 10, 40][random(4)] ?? 0;
    this.on('error', () => undefined);
    this.#say(encodeGreeting(random(8) === 0 ? random(8) : 3));
  }

  override _read(): void {
    // It pushes when it likes.
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    try {
      this.#messages.push(Buffer.from(chunk));
      for (let message = this.#messages.next(); message !== null; message = this.#messages.next()) {
        if (message.kind === 'option') this.#option(message.request);
        if (message.kind === 'request') this.#request(message.request);
      }
    } catch (error) {
      // An honest server can read whatever the client sends; one that lied about an answer may have led it astray.
      if (this.#malice === 0) throw error;
      this.destroy();
    }
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#isOver = true;
    done(error);
  }

  #option(request: OptionRequest): void {
    const random = this.#random;
    const option = request.option === 'OTHER' ? request.number : options[request.option];
    const replies: OptionReply[] = [];
    if (request.option === 'GO') {
      replies.push({ option, reply: 'INFO', info: 'EXPORT', sizeBytes: SIZE_BYTES, flags: fullFlags });
      if (random(2) === 0) {
        const sizes = { minimumBytes: 1, preferredBytes: 4096, maximumPayloadBytes: 1 << (12 + random(12)) };
        replies.push({ option, reply: 'INFO', info: 'BLOCK_SIZE', ...sizes });
      }
      if (random(6) === 0)
        replies.push({ option, reply: 'INFO', info: 'DESCRIPTION', text: 'a description' });
      if (random(20) === 0) {
        replies.push({
          option,
          reply: 'INFO',
          info: 'OTHER',
          number: infos.BLOCK_SIZE,
          data: this.#junk(12),
        });
      }
    }
    if (request.option === 'SET_META_CONTEXT' && this.#hasStatus) {
      replies.push({ option, reply: 'META_CONTEXT', id: 7, name: 'base:allocation' });
    }
    const isRefused = request.option === 'STRUCTURED_REPLY' && !this.#isStructured;
    if (isRefused || random(100) < this.#malice) {
      const errors = Object.values(optionErrors);
      const error = isRefused ? optionErrors.UNSUP : (errors[random(errors.length)] ?? 0x80000001);
      replies.push({ option, reply: 'ERROR', error, text: 'no' });
    } else {
      replies.push({ option, reply: 'ACK' });
    }
    if (random(100) < this.#malice) {
      const odd: OptionReply[] = [
        { option: option + 1, reply: 'ACK' },
        { option, reply: 'SERVER', name: 'x', description: '' },
        { option, reply: 'OTHER', number: random(2 ** 31), data: this.#junk(random(40)) },
        { option, reply: 'META_CONTEXT', id: random(9), name: 'base:allocation' },
      ];
      replies.splice(random(replies.length + 1), 0, odd[random(odd.length)]!);
    }
    for (const reply of replies) this.#say(encodeOptionReply(reply));
    if (request.option === 'GO' && replies.at(-1)?.reply === 'ACK') this.#messages.transmit();
  }

  #request(request: Request): void {
    const random = this.#random;
    if (request.command === commands.DISC) {
      if (random(4) > 0) this.push(null);
      return;
    }
    const isWrong = random(100) < this.#malice;
    const kind = isWrong ? random(12) : -1;
    const cookie =
      kind === 0
        ? { cookieHigh: request.cookieHigh + random(2), cookieLow: request.cookieLow + 1 + random(3) }
        : { cookieHigh: request.cookieHigh, cookieLow: request.cookieLow };
    // Silence.
    if (kind === 1) return;
    const times = kind === 2 ? 2 : 1;
    for (let time = 0; time < times; time += 1) {
      const useChunks = kind === 3 ? !this.#isStructured : this.#isStructured;
      if (useChunks) this.#chunks({ ...request, ...cookie }, kind);
      else this.#simple({ ...request, ...cookie }, kind);
    }
    if (kind === 4) this.destroy();
    if (kind === 5) this.push(null);
  }

  #simple(request: Request, kind: number): void {
    const random = this.#random;
    const { cookieHigh, cookieLow, command, lengthBytes } = request;
    const error = kind === 6 ? 1 + random(120) : 0;
    const bytes = Buffer.alloc(SIMPLE_REPLY_BYTES);
    encodeSimpleReply({ cookieHigh, cookieLow, error }, bytes);
    this.#say(bytes);
    if (command === commands.READ && error === 0) {
      this.#say(this.#data(kind === 7 ? random(2 * lengthBytes) : lengthBytes));
    }
  }

  #chunks(request: Request, kind: number): void {
    const random = this.#random;
    const { cookieHigh, cookieLow, command, lengthBytes } = request;
    const from = request.offsetBytes ?? 0;
    const head = { cookieHigh, cookieLow, isDone: false };
    const chunks: Chunk[] = [];
    if (command === commands.READ) {
      for (let at = from; at < from + lengthBytes; ) {
        const count = Math.min(from + lengthBytes - at, 1 + random(2 * lengthBytes));
        chunks.push({
          ...head,
          chunk: random(3) === 0 ? 'hole' : 'data',
          offsetBytes: at,
          lengthBytes: count,
        });
        at += count;
      }
      if (random(2) === 0) chunks.reverse();
    } else if (command === commands.BLOCK_STATUS) {
      const descriptors = Array.from({ length: 1 + random(4) }, () => ({
        lengthBytes: 1 + random(lengthBytes),
        flags: random(5),
      }));
      chunks.push({ ...head, chunk: 'block-status', contextId: 7, descriptors });
    } else {
      chunks.push({ ...head, chunk: 'none', isDone: true });
    }
    const somewhere = (): number => Math.max(0, from - lengthBytes + random(3 * lengthBytes));
    const extremes = [0, 1, SIZE_BYTES - 1, SIZE_BYTES, 2 ** 31, 2 ** 32 - 1, 2 ** 53 - 1];
    const extreme = (): number => extremes[random(extremes.length)]!;
    const odd: readonly (() => Chunk)[] = [
      () => ({ ...head, chunk: 'data', offsetBytes: somewhere(), lengthBytes: 1 + random(lengthBytes) }),
      () => ({ ...head, chunk: 'hole', offsetBytes: somewhere(), lengthBytes: 1 + random(2 ** 32 - 1) }),
      () => ({ ...head, chunk: 'hole', offsetBytes: extreme(), lengthBytes: 1 + random(lengthBytes) }),
      () => ({
        ...head,
        chunk: 'error',
        error: 1 + random(120),
        text: 'x'.repeat(random(50)),
        offsetBytes: random(2) === 0 ? null : extreme(),
      }),
      () => ({ ...head, chunk: 'none', isDone: true }),
      () => ({
        ...head,
        chunk: 'block-status',
        contextId: random(9),
        descriptors: [{ lengthBytes: 1 + random(2 ** 32 - 1), flags: 0 }],
      }),
    ];
    if (kind === 6) chunks.splice(random(chunks.length), 1);
    if (kind >= 7) chunks.splice(random(chunks.length + 1), kind === 9 ? 1 : 0, odd[random(odd.length)]!());
    const last = chunks.length - 1;
    for (const [index, chunk] of chunks.entries()) {
      const isDone = kind === 8 ? random(2) === 0 : index === last;
      const said = chunk.chunk === 'none' ? chunk : { ...chunk, isDone };
      this.#say(encodeChunk(said));
      if (said.chunk === 'data') this.#say(this.#data(said.lengthBytes));
    }
  }

  #data(lengthBytes: number): Buffer {
    return Buffer.alloc(lengthBytes, this.#random(POISON));
  }

  #junk(lengthBytes: number): Buffer {
    return Buffer.from(Array.from({ length: lengthBytes }, () => this.#random(256)));
  }

  /** As it is, or not; in one piece, or several. */
  #say(whole: Buffer): void {
    const random = this.#random;
    let bytes = whole;
    if (random(400) < this.#malice && bytes.byteLength > 0) {
      const at = random(bytes.byteLength);
      const kind = random(6);
      bytes = Buffer.from(bytes);
      if (kind === 0) bytes[at] = random(POISON);
      else if (kind === 1) bytes = bytes.subarray(0, at);
      else if (kind === 2)
        bytes = Buffer.concat([bytes.subarray(0, at), this.#junk(1 + random(30)), bytes.subarray(at)]);
      else if (kind === 3) bytes = this.#junk(1 + random(60));
      else if (bytes.byteLength >= 4) {
        const words = [0, 1, 0x7fffffff, 0x80000000, 0xffffffff, SIZE_BYTES];
        bytes.writeUInt32BE(words[random(words.length)]!, 4 * random(Math.floor(bytes.byteLength / 4)));
      }
    }
    while (bytes.byteLength > 0 && !this.destroyed && !this.readableEnded) {
      const count = random(3) === 0 ? 1 + random(bytes.byteLength) : bytes.byteLength;
      this.push(bytes.subarray(0, count));
      bytes = bytes.subarray(count);
    }
  }

  override push(chunk: Buffer | null): boolean {
    if (this.#isOver) return false;
    if (chunk === null) this.#isOver = true;
    else if (chunk.includes(POISON)) this.saidPoison = true;
    return super.push(chunk);
  }
}

/** Guards on both sides of buffers that lie apart in one piece of memory. */
class Guarded {
  readonly memory: Uint8Array;
  readonly buffers: readonly Uint8Array[];

  constructor(random: Random, lengthBytes: number) {
    this.memory = new Uint8Array(lengthBytes + 64).fill(POISON);
    const cut = random(lengthBytes + 1);
    this.buffers = [this.memory.subarray(16, 16 + cut), this.memory.subarray(48 + cut, 48 + lengthBytes)];
  }

  check(isFilled: boolean): void {
    const { memory } = this;
    const [first, second] = this.buffers as [Uint8Array, Uint8Array];
    const gap = first.byteOffset + first.byteLength;
    for (let index = 0; index < memory.byteLength; index += 1) {
      const isPoison = memory[index] === POISON;
      const isOutside =
        index < first.byteOffset ||
        (index >= gap && index < second.byteOffset) ||
        index >= second.byteOffset + second.byteLength;
      if (isOutside && !isPoison) throw new Error(`a byte outside of the buffers was written, at ${index}`);
      if (!isOutside && isFilled && isPoison) throw new Error(`a byte was not filled, at ${index}`);
    }
  }
}

export interface Tally {
  opened: number;
  refused: number;
  done: number;
  failed: number;
}

/** Throws where something does not hold. */
export async function hostileSession(seed: number, tally: Tally): Promise<void> {
  const random = seededRandom(seed);
  const host = new ImpatientHost();
  const wires: HostileWire[] = [];
  const endpoint = {
    name: 'nbd://hostile/',
    identity: 'nbd:hostile',
    exportName: '',
    secure: null,
    dial: async () => {
      if (random(10) === 0) throw Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });
      wires.push(new HostileWire(random));
      return wires.at(-1)!;
    },
  };
  const until = async <T>(work: Promise<T>): Promise<T | RaidError> => {
    let isOver = false;
    const outcome = work.then(
      (value) => value,
      (error: unknown) => {
        if (!(error instanceof RaidError)) throw error;
        return error;
      },
    );
    const over = (): void => {
      isOver = true;
    };
    outcome.then(over, over);
    // A few turns without time, then time, until it has ended: it must, or there is a request that does not.
    for (let round = 0; !isOver; round += 1) {
      if (round > 400) throw new Error('a request does not end');
      await turn();
      if (round % 2 === 1) host.wakeAll();
    }
    return await outcome;
  };

  const device = await until(NbdDevice.open(endpoint, { host, retryMs: [0, 1] }));
  if (device instanceof RaidError) {
    tally.refused += 1;
  } else {
    tally.opened += 1;
    const requests: Promise<unknown>[] = [];
    const guards: Guarded[] = [];
    for (let count = 1 + random(5); count > 0; count -= 1) {
      const { blockBytes } = device.limits;
      const blocks = SIZE_BYTES / blockBytes;
      const first = random(blocks);
      const offsetBytes = first * blockBytes;
      const lengthBytes = (1 + random(Math.min(blocks - first, Math.ceil(600 / blockBytes)))) * blockBytes;
      const kind = random(8);
      if (kind < 4) {
        const guarded = new Guarded(random, lengthBytes);
        guards.push(guarded);
        requests.push(
          device.read(offsetBytes, guarded.buffers).then(
            () => {
              guarded.check(!wires.some(({ saidPoison }) => saidPoison));
              guarded.memory.fill(POISON);
            },
            (error: unknown) => {
              guarded.check(false);
              guarded.memory.fill(POISON);
              throw error;
            },
          ),
        );
      } else if (kind === 4) requests.push(device.write(offsetBytes, new Uint8Array(lengthBytes)));
      else if (kind === 5) requests.push(device.writeZeroes(offsetBytes, lengthBytes));
      else if (kind === 6) requests.push(device.blockStatus(offsetBytes, lengthBytes));
      else requests.push(device.flush());
    }
    // Looked at one by one; that others have failed by then is no news.
    for (const request of requests) request.catch(() => undefined);
    for (const request of requests) {
      if ((await until(request)) instanceof RaidError) tally.failed += 1;
      else tally.done += 1;
    }
    await until(device.close());
    for (const guarded of guards) {
      if (guarded.memory.some((byte) => byte !== POISON))
        throw new Error('a buffer was written after its request');
    }
  }
  await turn();
  if (host.sleeping > 0) throw new Error(`${host.sleeping} sleeps are left`);
  if (wires.some((each) => !each.destroyed)) throw new Error('a connection was left open');
}

/** Sessions side by side: they share nothing, and the turns of the event loop cost less. */
export async function hostileSessions(firstSeed: number, count: number): Promise<Tally> {
  const tally: Tally = { opened: 0, refused: 0, done: 0, failed: 0 };
  const width = 200;
  for (let start = 0; start < count; start += width) {
    const seeds = Array.from(
      { length: Math.min(width, count - start) },
      (_, index) => firstSeed + start + index,
    );
    await Promise.all(
      seeds.map(async (seed) => {
        try {
          await hostileSession(seed, tally);
        } catch (cause) {
          const message = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause);
          throw new Error(
            `${message}\nreplay: RAIDSIM_SEED=${seed} npx vitest run test/nbd/client-hostile.test.ts`,
            {
              cause,
            },
          );
        }
      }),
    );
  }
  return tally;
}
