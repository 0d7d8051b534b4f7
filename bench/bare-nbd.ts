/**
 * The bound of `npm run bench:nbd`: Node's sockets, and the member I/O of a raid5 of four without any RAID. A read is one of the file. A
 * small write is what a row costs that is not written whole: data and parity read, data and parity written. Of a large one a third more
 * is written. Synchronous calls on the thread that has the socket; of the protocol no more than libnbd needs; one connection;
 * payload goes from the memory it was received into to the file, and from the file into the buffer that is sent. It computes nothing
 * and checks nothing: not a server for anybody else.
 *
 *   node dist/bench/bare-nbd.js SOCKET FILE PARITY
 */
import { openSync, readSync, statSync, writeSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import {
  commands,
  decodeRequest,
  encodeGreeting,
  encodeOptionReply,
  encodeSimpleReply,
  optionErrors,
  options,
  REQUEST_BYTES,
  type Request,
  SIMPLE_REPLY_BYTES,
  transmissionFlags,
} from '../lib/nbd/protocol.ts';
import { receiveInto } from '../lib/socket/receive.ts';
import { KIB } from '../lib/units.ts';

const CLIENT_FLAGS_BYTES = 4;
const OPTION_HEADER_BYTES = 16;
const GREETING_FLAGS = 3;
const DATA_MEMBERS = 3;
/** Rows are written whole by clients that write from one end to the other, in requests of this length. */
const LARGE_BYTES = 64 * KIB;

class BareSession {
  readonly #file: number;
  readonly #parity: number;
  readonly #sizeBytes: number;
  readonly #stream: Duplex;
  readonly #room = Buffer.alloc(256 * KIB);
  readonly #old = Buffer.alloc(LARGE_BYTES);
  readonly #free: Buffer[] = [];
  #rest = Buffer.alloc(0);
  #phase: 'flags' | 'options' | 'requests' = 'flags';
  #writing: Request | null = null;
  #writtenBytes = 0;
  #isCorked = false;

  constructor(socket: Socket, file: number, parity: number) {
    this.#file = file;
    this.#parity = parity;
    this.#sizeBytes = statSync(`/proc/self/fd/${file}`).size;
    this.#stream = receiveInto(socket, {
      room: () => this.#room,
      received: (bytes) => this.#received(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)),
    });
    this.#stream.on('error', () => undefined);
    this.#send(encodeGreeting(GREETING_FLAGS));
  }

  #received(bytes: Buffer): void {
    let left = this.#rest.byteLength === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    for (let taken = -1; taken !== 0 && left.byteLength > 0; left = left.subarray(taken))
      taken = this.#take(left);
    this.#rest = Buffer.from(left);
  }

  /** How many bytes were of use; 0 where there must be more of them first. */
  #take(bytes: Buffer): number {
    if (this.#writing !== null) return this.#write(this.#writing, bytes);
    if (this.#phase === 'requests') return bytes.byteLength < REQUEST_BYTES ? 0 : this.#request(bytes);
    if (this.#phase === 'options') return this.#option(bytes);
    if (bytes.byteLength < CLIENT_FLAGS_BYTES) return 0;
    this.#phase = 'options';
    return CLIENT_FLAGS_BYTES;
  }

  #option(bytes: Buffer): number {
    if (bytes.byteLength < OPTION_HEADER_BYTES) return 0;
    const option = bytes.readUInt32BE(8);
    const wholeBytes = OPTION_HEADER_BYTES + bytes.readUInt32BE(12);
    if (bytes.byteLength < wholeBytes) return 0;
    if (option !== options.GO) {
      this.#send(encodeOptionReply({ option, reply: 'ERROR', error: optionErrors.UNSUP, text: '' }));
      return wholeBytes;
    }
    const flags = transmissionFlags.HAS_FLAGS | transmissionFlags.SEND_FLUSH;
    const facts = { sizeBytes: this.#sizeBytes, flags };
    this.#send(encodeOptionReply({ option, reply: 'INFO', info: 'EXPORT', ...facts }));
    this.#send(encodeOptionReply({ option, reply: 'ACK' }));
    this.#phase = 'requests';
    return wholeBytes;
  }

  #request(bytes: Buffer): number {
    const request = decodeRequest(bytes);
    const { command, lengthBytes, offsetBytes } = request;
    if (command === commands.DISC) this.#stream.end();
    else if (command === commands.WRITE) this.#writing = request;
    else if (command === commands.READ) {
      const wholeBytes = SIMPLE_REPLY_BYTES + lengthBytes;
      const kept = this.#free.pop();
      const reply = kept !== undefined && kept.byteLength === wholeBytes ? kept : Buffer.alloc(wholeBytes);
      encodeSimpleReply({ ...request, error: 0 }, reply);
      readSync(this.#file, reply, SIMPLE_REPLY_BYTES, lengthBytes, offsetBytes);
      this.#send(reply, () => this.#free.push(reply));
    } else this.#acknowledge(request);
    return REQUEST_BYTES;
  }

  #write(request: Request, bytes: Buffer): number {
    const count = Math.min(bytes.byteLength, request.lengthBytes - this.#writtenBytes);
    const at = (request.offsetBytes ?? 0) + this.#writtenBytes;
    if (request.lengthBytes >= LARGE_BYTES) {
      writeSync(this.#file, bytes, 0, count, at);
      writeSync(this.#parity, bytes, 0, Math.floor(count / DATA_MEMBERS), at);
    } else {
      for (const member of [this.#file, this.#parity]) readSync(member, this.#old, 0, count, at);
      for (const member of [this.#file, this.#parity]) writeSync(member, bytes, 0, count, at);
    }
    this.#writtenBytes += count;
    if (this.#writtenBytes === request.lengthBytes) {
      this.#writing = null;
      this.#writtenBytes = 0;
      this.#acknowledge(request);
    }
    return count;
  }

  #acknowledge(request: Request): void {
    const reply = Buffer.alloc(SIMPLE_REPLY_BYTES);
    encodeSimpleReply({ ...request, error: 0 }, reply);
    this.#send(reply);
  }

  #send(bytes: Buffer, sent?: () => void): void {
    if (!this.#isCorked) {
      this.#isCorked = true;
      this.#stream.cork();
      process.nextTick(() => {
        this.#isCorked = false;
        this.#stream.uncork();
      });
    }
    this.#stream.write(bytes, sent);
  }
}

const [socketPath, ...paths] = process.argv.slice(2);
const [file, parity] = paths.map((path) => openSync(path, 'r+'));
if (socketPath === undefined || file === undefined || parity === undefined)
  throw new Error('bare-nbd SOCKET FILE PARITY');
createServer((socket) => new BareSession(socket, file, parity)).listen(socketPath);
