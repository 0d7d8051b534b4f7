/**
 * The NBD protocol as data: every message of both directions, encoded and decoded, and nothing that waits.
 * Written from the public text (github.com/NetworkBlockDevice/nbd, doc/proto.md). All numbers are big-endian.
 *
 *   server                              client
 *   NBDMAGIC IHAVEOPT flags (18)  ───▶
 *                                 ◀───  flags (4)
 *                                 ◀───  IHAVEOPT option length (16), data        again and again, until
 *   magic option type length (20) ───▶                                           GO is acknowledged or
 *   size flags [124 zeros]        ───▶                                           EXPORT_NAME is answered
 *   ---------------------------------------------------------------------------------------------------
 *                                 ◀───  magic flags type cookie offset length (28), data of a WRITE
 *   magic error cookie (16), data ───▶                                           simple reply
 *   magic flags type cookie length (20), payload ───▶                            chunk of a structured reply
 *
 * A stream is read by `ClientMessages` (what a client sends) or `ServerMessages` (what a server sends) from an `Intake`, to
 * which chunks are pushed as they come: however they are cut, the messages are the same. Payload of reads and writes is
 * handed on in the pieces in which it came, as `data` messages, so that it is copied once, to where it belongs, or not at all.
 *
 * The other end is not trusted. A length is compared with its limit before anything is computed or allocated by it; 64-bit
 * numbers that a Number cannot hold are refused before they become one (2^53 - 1 is the last that may; the high half is then
 * at most 0x1fffff). What breaks the protocol throws PROTOCOL_VIOLATION, after which the stream is of no more use; an option
 * whose *content* is wrong is a message (`bad-option`), since the stream goes on behind it.
 */
import { assert, RaidError, unreachable } from '../errors.ts';
import { KIB, MIB } from '../units.ts';

export const handshakeFlags = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;

export const transmissionFlags = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
} as const;

export const options = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
} as const;

const optionReplies = { ACK: 1, SERVER: 2, INFO: 3, META_CONTEXT: 4 } as const;

/** Bit 31 is what makes a reply to an option an error. */
const ERROR_BIT = 0x80000000;

export const optionErrors = {
  UNSUP: ERROR_BIT + 1,
  POLICY: ERROR_BIT + 2,
  INVALID: ERROR_BIT + 3,
  PLATFORM: ERROR_BIT + 4,
  TLS_REQD: ERROR_BIT + 5,
  UNKNOWN: ERROR_BIT + 6,
  SHUTDOWN: ERROR_BIT + 7,
  BLOCK_SIZE_REQD: ERROR_BIT + 8,
  TOO_BIG: ERROR_BIT + 9,
} as const;

export const infos = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

export const commands = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

export const commandFlags = { FUA: 1, NO_HOLE: 2, DF: 4, REQ_ONE: 8, FAST_ZERO: 16 } as const;

export const chunkFlags = { DONE: 1 } as const;

const chunkTypes = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

/** Of all chunks that say an error, whether they are known or not. */
const CHUNK_ERROR_BIT = 0x8000;

/** Flags of `base:allocation`. */
export const allocationFlags = { HOLE: 1, ZERO: 2 } as const;

export const ALLOCATION_CONTEXT = 'base:allocation';

/** The errno values that NBD has, on whatever system. */
export const nbdErrors = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

export type NbdErrorName = keyof typeof nbdErrors;

export const DEFAULT_PORT = 10809;

export const limits = {
  /** Of a name or a text; what the protocol allows. */
  textBytes: 4096,
  /** Error texts that we send. */
  errorTextBytes: 1 * KIB,
  /** Of an option that we know. 4096 of a name, and 16 queries. */
  optionBytes: 8 * KIB,
  /** So much of an option that is too long is read and thrown away; whoever sends more is cut off. */
  drainBytes: 64 * KIB,
  queries: 16,
  queryBytes: 256,
  /** Payload of a request; the protocol says that no less is an attack. */
  payloadBytes: 32 * MIB,
  /** A write that is too long is read, thrown away and refused up to here; beyond, whoever sends it is cut off. */
  hostilePayloadBytes: 64 * MIB,
  /** Of a reply to an option, as a client reads it. */
  optionReplyBytes: 16 * KIB,
  /** In a chunk of block status, which the protocol says are no more. */
  descriptors: 2 ** 20,
} as const;

const NBDMAGIC = [0x4e42444d, 0x41474943] as const;
const IHAVEOPT = [0x49484156, 0x454f5054] as const;
const OLDSTYLE = [0x00004202, 0x81861253] as const;
const OPTION_REPLY = [0x0003e889, 0x045565a9] as const;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const CHUNK_MAGIC = 0x668e33ef;

const GREETING_BYTES = 18;
const CLIENT_FLAGS_BYTES = 4;
const OPTION_HEADER_BYTES = 16;
const OPTION_REPLY_HEADER_BYTES = 20;
const EXPORT_BYTES = 10;
const EXPORT_ZEROES_BYTES = 124;
export const REQUEST_BYTES = 28;
export const SIMPLE_REPLY_BYTES = 16;
const CHUNK_HEADER_BYTES = 20;
/** A chunk of data: its header, and the offset that comes before the bytes. */
export const DATA_CHUNK_BYTES = CHUNK_HEADER_BYTES + 8;

/** Chosen by the client, told back by the server, and nothing else. Two halves, since a BigInt for each request is dear. */
export interface Cookie {
  readonly cookieHigh: number;
  readonly cookieLow: number;
}

/** What an option asks for. */
export type OptionRequest =
  | { readonly option: 'EXPORT_NAME'; readonly name: string }
  | { readonly option: 'ABORT' | 'LIST' | 'STARTTLS' | 'STRUCTURED_REPLY' }
  | { readonly option: 'INFO' | 'GO'; readonly name: string; readonly wants: readonly number[] }
  | {
      readonly option: 'LIST_META_CONTEXT' | 'SET_META_CONTEXT';
      readonly name: string;
      readonly queries: readonly string[];
    }
  | { readonly option: 'OTHER'; readonly number: number; readonly data: Uint8Array };

export interface BlockSizes {
  readonly minimumBytes: number;
  readonly preferredBytes: number;
  readonly maximumPayloadBytes: number;
}

export interface ExportFacts {
  readonly sizeBytes: number;
  /** `transmissionFlags` */
  readonly flags: number;
}

export type Info =
  | ({ readonly info: 'EXPORT' } & ExportFacts)
  | { readonly info: 'NAME' | 'DESCRIPTION'; readonly text: string }
  | ({ readonly info: 'BLOCK_SIZE' } & BlockSizes)
  | { readonly info: 'OTHER'; readonly number: number; readonly data: Uint8Array };

export type OptionReply = { readonly option: number } & (
  | { readonly reply: 'ACK' }
  | { readonly reply: 'SERVER'; readonly name: string; readonly description: string }
  | ({ readonly reply: 'INFO' } & Info)
  | { readonly reply: 'META_CONTEXT'; readonly id: number; readonly name: string }
  /** `error` is one of `optionErrors`, or one that we do not know. */
  | { readonly reply: 'ERROR'; readonly error: number; readonly text: string }
  | { readonly reply: 'OTHER'; readonly number: number; readonly data: Uint8Array }
);

export interface Request extends Cookie {
  /** `commandFlags` */
  readonly flags: number;
  /** `commands` */
  readonly command: number;
  /** Null for one that no Number can hold, which lies outside of every export. */
  readonly offsetBytes: number | null;
  readonly lengthBytes: number;
}

export interface Descriptor {
  readonly lengthBytes: number;
  /** For `base:allocation`: `allocationFlags`. */
  readonly flags: number;
}

/** A chunk of a structured reply; behind one of `data` come its bytes. */
export type Chunk = Cookie & {
  /** No other chunk of this reply follows. */
  readonly isDone: boolean;
} & (
    | { readonly chunk: 'none' }
    | { readonly chunk: 'data'; readonly offsetBytes: number; readonly lengthBytes: number }
    | { readonly chunk: 'hole'; readonly offsetBytes: number; readonly lengthBytes: number }
    | {
        readonly chunk: 'block-status';
        readonly contextId: number;
        readonly descriptors: readonly Descriptor[];
      }
    /** Where, if the server knows. */
    | {
        readonly chunk: 'error';
        readonly error: number;
        readonly text: string;
        readonly offsetBytes: number | null;
      }
  );

export interface SimpleReply extends Cookie {
  /** `nbdErrors`, 0 for none; of a client that is asked to take it as it is, anything. */
  readonly error: number;
}

/** A piece of payload: a view of what was pushed, not a copy. */
interface Data {
  readonly kind: 'data';
  readonly bytes: Uint8Array;
  readonly isLast: boolean;
}

export type ClientMessage =
  | { readonly kind: 'client-flags'; readonly flags: number }
  | { readonly kind: 'option'; readonly request: OptionRequest }
  /** To be answered with this error; the stream goes on. */
  | {
      readonly kind: 'bad-option';
      readonly option: number;
      readonly error: number;
      readonly because: string;
    }
  /** A write of some length is followed by its `data`. */
  | { readonly kind: 'request'; readonly request: Request }
  | Data;

export type ServerMessage =
  | { readonly kind: 'greeting'; readonly flags: number }
  | { readonly kind: 'option-reply'; readonly reply: OptionReply }
  | { readonly kind: 'export'; readonly facts: ExportFacts }
  | { readonly kind: 'simple'; readonly reply: SimpleReply }
  | { readonly kind: 'chunk'; readonly chunk: Chunk }
  | Data;

/** Bytes as they come, for a reader that takes them in pieces of its own. */
export class Intake {
  readonly #chunks: Uint8Array[] = [];
  /** Into the first chunk. */
  #position = 0;
  #assembly: Buffer | null = null;
  #assembledBytes = 0;

  /** The bytes are looked at later, not copied: they must stay as they are. */
  push(chunk: Uint8Array): void {
    if (chunk.byteLength > 0) this.#chunks.push(chunk);
  }

  /** Nothing has come that has not been taken. */
  get isEmpty(): boolean {
    return this.#chunks.length === 0 && this.#assembledBytes === 0;
  }

  /** What was pushed is still needed. */
  get hasChunks(): boolean {
    return this.#chunks.length > 0;
  }

  /**
   * Exactly so many bytes in one piece, or null until they are there. What asks must go on asking for the same. No more
   * than what has come is ever held, whatever length is asked for.
   */
  take(lengthBytes: number): Buffer | null {
    if (lengthBytes === 0) return Buffer.alloc(0);
    const [first] = this.#chunks;
    if (first === undefined) return null;
    if (this.#assembledBytes === 0 && first.byteLength - this.#position >= lengthBytes) {
      return bufferOf(this.#advance(first, lengthBytes));
    }
    while (this.#assembledBytes < lengthBytes) {
      const part = this.some(lengthBytes - this.#assembledBytes);
      if (part === null) return null;
      this.#assemble(part, lengthBytes);
    }
    const whole = (this.#assembly ?? Buffer.alloc(0)).subarray(0, lengthBytes);
    this.#assembly = null;
    this.#assembledBytes = 0;
    return whole;
  }

  /** What has come, in one piece, no more than `mostBytes`; null when nothing has. */
  some(mostBytes: number): Uint8Array | null {
    const [first] = this.#chunks;
    if (first === undefined || mostBytes === 0) return null;
    return this.#advance(first, Math.min(mostBytes, first.byteLength - this.#position));
  }

  #advance(first: Uint8Array, lengthBytes: number): Uint8Array {
    const start = this.#position;
    this.#position += lengthBytes;
    if (this.#position === first.byteLength) {
      this.#chunks.shift();
      this.#position = 0;
    }
    return start === 0 && lengthBytes === first.byteLength
      ? first
      : first.subarray(start, start + lengthBytes);
  }

  #assemble(part: Uint8Array, wantedBytes: number): void {
    const needed = this.#assembledBytes + part.byteLength;
    if (this.#assembly === null || this.#assembly.byteLength < needed) {
      const grown = Buffer.alloc(Math.min(wantedBytes, Math.max(2 * needed, 64)));
      if (this.#assembly !== null) grown.set(this.#assembly.subarray(0, this.#assembledBytes));
      this.#assembly = grown;
    }
    this.#assembly.set(part, this.#assembledBytes);
    this.#assembledBytes = needed;
  }
}

/** What is common to both directions: payload that is handed on as it comes. */
abstract class Messages<Message> {
  readonly intake = new Intake();
  #payloadBytes = 0;

  push(chunk: Uint8Array): void {
    this.intake.push(chunk);
  }

  /** The next message, or null until more has come. Throws PROTOCOL_VIOLATION. */
  next(): Message | Data | null {
    if (this.#payloadBytes === 0) return this.message();
    const bytes = this.intake.some(this.#payloadBytes);
    if (bytes === null) return null;
    this.#payloadBytes -= bytes.byteLength;
    return { kind: 'data', bytes, isLast: this.#payloadBytes === 0 };
  }

  /** So much of what comes next is payload, and nothing that has come waits before it. */
  get awaitedBytes(): number {
    return this.intake.isEmpty ? this.#payloadBytes : 0;
  }

  /** Payload that has come and was not pushed. True where it was the last. */
  passed(lengthBytes: number): boolean {
    assert(lengthBytes <= this.awaitedBytes, 'what passes is awaited');
    this.#payloadBytes -= lengthBytes;
    return this.#payloadBytes === 0;
  }

  /** Between two messages: where a stream may end. */
  get isBetween(): boolean {
    return this.#payloadBytes === 0 && this.intake.isEmpty && this.hasNoHeader();
  }

  protected payloadFollows(lengthBytes: number): void {
    this.#payloadBytes = lengthBytes;
  }

  protected abstract message(): Message | null;
  protected abstract hasNoHeader(): boolean;
}

/** What a client sends, as a server reads it: its flags, then options, then, once `transmit` was called, requests. */
export class ClientMessages extends Messages<ClientMessage> {
  #phase: 'flags' | 'options' | 'requests' = 'flags';
  #option: { readonly number: number; readonly lengthBytes: number } | null = null;
  #drainBytes = 0;

  /** The handshake is over. Only between two messages, as after every `next`. */
  transmit(): void {
    this.#phase = 'requests';
  }

  /** A new beginning over TLS: what came before it in clear counts for nothing. */
  static afterTls(): ClientMessages {
    const messages = new ClientMessages();
    messages.#phase = 'options';
    return messages;
  }

  protected override message(): ClientMessage | null {
    if (this.#phase === 'requests') return this.#request();
    if (this.#phase === 'options') return this.#readOption();
    const bytes = this.intake.take(CLIENT_FLAGS_BYTES);
    if (bytes === null) return null;
    this.#phase = 'options';
    return { kind: 'client-flags', flags: bytes.readUInt32BE(0) };
  }

  protected override hasNoHeader(): boolean {
    return this.#option === null;
  }

  #request(): ClientMessage | null {
    const bytes = this.intake.take(REQUEST_BYTES);
    if (bytes === null) return null;
    const request = decodeRequest(bytes);
    if (request.command === commands.WRITE) {
      if (request.lengthBytes > limits.hostilePayloadBytes) {
        throw violation(`a write of ${request.lengthBytes} bytes`);
      }
      this.payloadFollows(request.lengthBytes);
    }
    return { kind: 'request', request };
  }

  #readOption(): ClientMessage | null {
    if (this.#option === null) {
      const bytes = this.intake.take(OPTION_HEADER_BYTES);
      if (bytes === null) return null;
      checkMagic(bytes, IHAVEOPT, 'an option');
      const lengthBytes = bytes.readUInt32BE(12);
      if (lengthBytes > limits.drainBytes) throw violation(`an option of ${lengthBytes} bytes`);
      this.#option = { number: bytes.readUInt32BE(8), lengthBytes };
      this.#drainBytes = lengthBytes > limits.optionBytes ? lengthBytes : 0;
    }
    const { number, lengthBytes } = this.#option;
    if (lengthBytes > limits.optionBytes) return this.#drain(number);
    const data = this.intake.take(lengthBytes);
    if (data === null) return null;
    this.#option = null;
    try {
      return { kind: 'option', request: decodeOption(number, data) };
    } catch (error) {
      if (!(error instanceof BadContent)) throw error;
      return { kind: 'bad-option', option: number, error: error.reply, because: error.message };
    }
  }

  #drain(option: number): ClientMessage | null {
    while (this.#drainBytes > 0) {
      const bytes = this.intake.some(this.#drainBytes);
      if (bytes === null) return null;
      this.#drainBytes -= bytes.byteLength;
    }
    this.#option = null;
    return { kind: 'bad-option', option, error: optionErrors.TOO_BIG, because: 'the option is too long' };
  }
}

/**
 * What a server sends, as a client reads it. The client says what it expects: after its EXPORT_NAME it calls
 * `expectExport`, after an acknowledged GO `transmit`; and behind a simple reply to a read without error it calls
 * `expectPayload`, since only whoever asked knows how long it is.
 */
export class ServerMessages extends Messages<ServerMessage> {
  #phase: 'greeting' | 'options' | 'export' | 'replies' = 'greeting';
  #hasZeroes = false;
  #optionReply: { readonly option: number; readonly type: number; readonly lengthBytes: number } | null =
    null;
  #header: (Cookie & { readonly flags: number; readonly type: number }) | null = null;
  #lengthBytes: number | null = null;

  expectExport(options: { readonly withZeroes: boolean }): void {
    this.#phase = 'export';
    this.#hasZeroes = options.withZeroes;
  }

  transmit(): void {
    this.#phase = 'replies';
  }

  expectPayload(lengthBytes: number): void {
    this.payloadFollows(lengthBytes);
  }

  /** A new beginning over TLS: what came before it in clear counts for nothing. */
  static afterTls(): ServerMessages {
    const messages = new ServerMessages();
    messages.#phase = 'options';
    return messages;
  }

  protected override message(): ServerMessage | null {
    switch (this.#phase) {
      case 'greeting': {
        const bytes = this.intake.take(GREETING_BYTES);
        if (bytes === null) return null;
        this.#phase = 'options';
        return { kind: 'greeting', flags: decodeGreeting(bytes) };
      }
      case 'options':
        return this.#readOptionReply();
      case 'export': {
        const bytes = this.intake.take(EXPORT_BYTES + (this.#hasZeroes ? EXPORT_ZEROES_BYTES : 0));
        if (bytes === null) return null;
        this.#phase = 'replies';
        return { kind: 'export', facts: decodeExportFacts(bytes, 0) };
      }
      case 'replies':
        return this.#reply();
      default:
        return unreachable(this.#phase);
    }
  }

  protected override hasNoHeader(): boolean {
    return this.#optionReply === null && this.#header === null;
  }

  #readOptionReply(): ServerMessage | null {
    if (this.#optionReply === null) {
      const bytes = this.intake.take(OPTION_REPLY_HEADER_BYTES);
      if (bytes === null) return null;
      checkMagic(bytes, OPTION_REPLY, 'a reply to an option');
      const lengthBytes = bytes.readUInt32BE(16);
      if (lengthBytes > limits.optionReplyBytes)
        throw violation(`a reply to an option of ${lengthBytes} bytes`);
      this.#optionReply = { option: bytes.readUInt32BE(8), type: bytes.readUInt32BE(12), lengthBytes };
    }
    const { option, type, lengthBytes } = this.#optionReply;
    const data = this.intake.take(lengthBytes);
    if (data === null) return null;
    this.#optionReply = null;
    return { kind: 'option-reply', reply: strictly(() => decodeOptionReply(option, type, data)) };
  }

  #reply(): ServerMessage | null {
    if (this.#header === null) {
      const bytes = this.intake.take(SIMPLE_REPLY_BYTES);
      if (bytes === null) return null;
      const magic = bytes.readUInt32BE(0);
      const cookie = { cookieHigh: bytes.readUInt32BE(8), cookieLow: bytes.readUInt32BE(12) };
      if (magic === SIMPLE_REPLY_MAGIC) {
        return { kind: 'simple', reply: { error: bytes.readUInt32BE(4), ...cookie } };
      }
      if (magic !== CHUNK_MAGIC) throw violation(`a reply that begins with ${hex(magic)}`);
      this.#header = { flags: bytes.readUInt16BE(4), type: bytes.readUInt16BE(6), ...cookie };
    }
    if (this.#lengthBytes === null) {
      const bytes = this.intake.take(CHUNK_HEADER_BYTES - SIMPLE_REPLY_BYTES);
      if (bytes === null) return null;
      this.#lengthBytes = bytes.readUInt32BE(0);
      checkChunkLength(this.#header.type, this.#lengthBytes);
    }
    const { type } = this.#header;
    const isData = type === chunkTypes.OFFSET_DATA;
    const payload = this.intake.take(isData ? 8 : this.#lengthBytes);
    if (payload === null) return null;
    const chunk = strictly(() => decodeChunk(this.#header, this.#lengthBytes ?? 0, payload));
    if (chunk.chunk === 'data') this.payloadFollows(chunk.lengthBytes);
    this.#header = null;
    this.#lengthBytes = null;
    return { kind: 'chunk', chunk };
  }
}

// What a client sends.

export function encodeClientFlags(flags: number): Buffer {
  const bytes = Buffer.alloc(CLIENT_FLAGS_BYTES);
  bytes.writeUInt32BE(flags);
  return bytes;
}

export function encodeOption(request: OptionRequest): Buffer {
  const data = optionData(request);
  const header = Buffer.alloc(OPTION_HEADER_BYTES);
  writePair(header, 0, IHAVEOPT);
  header.writeUInt32BE(request.option === 'OTHER' ? request.number : options[request.option], 8);
  header.writeUInt32BE(data.byteLength, 12);
  return Buffer.concat([header, data]);
}

/** Into `target`, whose `REQUEST_BYTES` from `at` on are overwritten. */
export function encodeRequest(request: Request, target: Buffer, at = 0): void {
  target.writeUInt32BE(REQUEST_MAGIC, at);
  target.writeUInt16BE(request.flags, at + 4);
  target.writeUInt16BE(request.command, at + 6);
  target.writeUInt32BE(request.cookieHigh, at + 8);
  target.writeUInt32BE(request.cookieLow, at + 12);
  assert(request.offsetBytes !== null, 'only what was received can be out of range');
  write64(target, at + 16, request.offsetBytes);
  target.writeUInt32BE(request.lengthBytes, at + 24);
}

export function decodeRequest(bytes: Buffer): Request {
  if (bytes.readUInt32BE(0) !== REQUEST_MAGIC) {
    throw violation(`a request that begins with ${hex(bytes.readUInt32BE(0))}`);
  }
  return {
    flags: bytes.readUInt16BE(4),
    command: bytes.readUInt16BE(6),
    cookieHigh: bytes.readUInt32BE(8),
    cookieLow: bytes.readUInt32BE(12),
    offsetBytes: read64(bytes, 16),
    lengthBytes: bytes.readUInt32BE(24),
  };
}

function optionData(request: OptionRequest): Buffer {
  switch (request.option) {
    case 'EXPORT_NAME':
      return textOf(request.name);
    case 'ABORT':
    case 'LIST':
    case 'STARTTLS':
    case 'STRUCTURED_REPLY':
      return Buffer.alloc(0);
    case 'INFO':
    case 'GO': {
      const wants = Buffer.alloc(2 + 2 * request.wants.length);
      wants.writeUInt16BE(request.wants.length, 0);
      for (const [index, want] of request.wants.entries()) wants.writeUInt16BE(want, 2 + 2 * index);
      return Buffer.concat([countedText(request.name), wants]);
    }
    case 'LIST_META_CONTEXT':
    case 'SET_META_CONTEXT': {
      const count = Buffer.alloc(4);
      count.writeUInt32BE(request.queries.length);
      return Buffer.concat([countedText(request.name), count, ...request.queries.map(countedText)]);
    }
    case 'OTHER':
      return bufferOf(request.data);
    default:
      return unreachable(request);
  }
}

/** An option that cannot be read as what it says it is; how a server answers it. */
class BadContent extends Error {
  readonly reply: number;

  constructor(message: string, reply: number = optionErrors.INVALID) {
    super(message);
    this.reply = reply;
  }
}

function decodeOption(number: number, data: Buffer): OptionRequest {
  const option = optionNames.get(number);
  const fields = new Fields(data);
  switch (option) {
    case 'EXPORT_NAME':
      return { option, name: fields.text(data.byteLength) };
    // What comes with ABORT is ignored, as the protocol asks.
    case 'ABORT':
      return { option };
    case 'LIST':
    case 'STARTTLS':
    case 'STRUCTURED_REPLY':
      fields.end();
      return { option };
    case 'INFO':
    case 'GO': {
      const name = fields.countedText();
      const count = fields.u16();
      const wants = Array.from({ length: fields.atMost(count, 2) }, () => fields.u16());
      fields.end();
      return { option, name, wants };
    }
    case 'LIST_META_CONTEXT':
    case 'SET_META_CONTEXT': {
      const name = fields.countedText();
      const count = fields.u32();
      if (count > limits.queries) throw new BadContent(`${count} queries`, optionErrors.TOO_BIG);
      const queries = Array.from({ length: fields.atMost(count, 4) }, () =>
        fields.countedText(limits.queryBytes),
      );
      fields.end();
      return { option, name, queries };
    }
    case undefined:
      return { option: 'OTHER', number, data };
    default:
      return unreachable(option);
  }
}

const optionNames: ReadonlyMap<number, keyof typeof options> = new Map(
  Object.entries(options).map(([name, number]) => [number, name as keyof typeof options]),
);

// What a server sends.

export function encodeGreeting(flags: number): Buffer {
  const bytes = Buffer.alloc(GREETING_BYTES);
  writePair(bytes, 0, NBDMAGIC);
  writePair(bytes, 8, IHAVEOPT);
  bytes.writeUInt16BE(flags, 16);
  return bytes;
}

function decodeGreeting(bytes: Buffer): number {
  checkMagic(bytes, NBDMAGIC, 'a greeting');
  if (isPair(bytes, 8, OLDSTYLE))
    throw violation('the oldstyle handshake, which has no options; newstyle is needed');
  if (!isPair(bytes, 8, IHAVEOPT)) throw violation('a greeting that is not of the newstyle handshake');
  return bytes.readUInt16BE(16);
}

/** The answer to EXPORT_NAME. */
export function encodeExport(facts: ExportFacts, how: { readonly withZeroes: boolean }): Buffer {
  const bytes = Buffer.alloc(EXPORT_BYTES + (how.withZeroes ? EXPORT_ZEROES_BYTES : 0));
  write64(bytes, 0, facts.sizeBytes);
  bytes.writeUInt16BE(facts.flags, 8);
  return bytes;
}

function decodeExportFacts(bytes: Buffer, at: number): ExportFacts {
  return { sizeBytes: safe64(bytes, at, 'an export'), flags: bytes.readUInt16BE(at + 8) };
}

export function encodeOptionReply(reply: OptionReply): Buffer {
  const data = optionReplyData(reply);
  const header = Buffer.alloc(OPTION_REPLY_HEADER_BYTES);
  writePair(header, 0, OPTION_REPLY);
  header.writeUInt32BE(reply.option, 8);
  header.writeUInt32BE(optionReplyType(reply), 12);
  header.writeUInt32BE(data.byteLength, 16);
  return Buffer.concat([header, data]);
}

function optionReplyType(reply: OptionReply): number {
  if (reply.reply === 'ERROR') return reply.error;
  return reply.reply === 'OTHER' ? reply.number : optionReplies[reply.reply];
}

function optionReplyData(reply: OptionReply): Buffer {
  switch (reply.reply) {
    case 'ACK':
      return Buffer.alloc(0);
    case 'SERVER':
      return Buffer.concat([countedText(reply.name), textOf(reply.description)]);
    case 'INFO':
      return infoData(reply);
    case 'META_CONTEXT': {
      const id = Buffer.alloc(4);
      id.writeUInt32BE(reply.id);
      return Buffer.concat([id, textOf(reply.name)]);
    }
    case 'ERROR':
      return shortText(reply.text);
    case 'OTHER':
      return bufferOf(reply.data);
    default:
      return unreachable(reply);
  }
}

function infoData(info: Info): Buffer {
  const type = (number: number, restBytes: number): Buffer => {
    const bytes = Buffer.alloc(2 + restBytes);
    bytes.writeUInt16BE(number, 0);
    return bytes;
  };
  switch (info.info) {
    case 'EXPORT': {
      const bytes = type(infos.EXPORT, 10);
      write64(bytes, 2, info.sizeBytes);
      bytes.writeUInt16BE(info.flags, 10);
      return bytes;
    }
    case 'NAME':
    case 'DESCRIPTION':
      return Buffer.concat([type(infos[info.info], 0), textOf(info.text)]);
    case 'BLOCK_SIZE': {
      const bytes = type(infos.BLOCK_SIZE, 12);
      bytes.writeUInt32BE(info.minimumBytes, 2);
      bytes.writeUInt32BE(info.preferredBytes, 6);
      bytes.writeUInt32BE(info.maximumPayloadBytes, 10);
      return bytes;
    }
    case 'OTHER':
      return Buffer.concat([type(info.number, 0), info.data]);
    default:
      return unreachable(info);
  }
}

function decodeOptionReply(option: number, type: number, data: Buffer): OptionReply {
  const fields = new Fields(data);
  if (type >= ERROR_BIT) {
    // A text that is no text is no reason to miss the error.
    return { option, reply: 'ERROR', error: type, text: lenientText(data) };
  }
  switch (type) {
    case optionReplies.ACK:
      fields.end();
      return { option, reply: 'ACK' };
    case optionReplies.SERVER: {
      const name = fields.countedText();
      return { option, reply: 'SERVER', name, description: fields.text(fields.leftBytes) };
    }
    case optionReplies.INFO:
      return { option, reply: 'INFO', ...decodeInfo(fields, data) };
    case optionReplies.META_CONTEXT:
      return { option, reply: 'META_CONTEXT', id: fields.u32(), name: fields.text(fields.leftBytes) };
    default:
      return { option, reply: 'OTHER', number: type, data };
  }
}

function decodeInfo(fields: Fields, data: Buffer): Info {
  const number = fields.u16();
  switch (number) {
    case infos.EXPORT:
      fields.exactly(10);
      return { info: 'EXPORT', ...decodeExportFacts(data, 2) };
    case infos.NAME:
      return { info: 'NAME', text: fields.text(fields.leftBytes) };
    case infos.DESCRIPTION:
      return { info: 'DESCRIPTION', text: fields.text(fields.leftBytes) };
    case infos.BLOCK_SIZE:
      fields.exactly(12);
      return {
        info: 'BLOCK_SIZE',
        minimumBytes: fields.u32(),
        preferredBytes: fields.u32(),
        maximumPayloadBytes: fields.u32(),
      };
    default:
      return { info: 'OTHER', number, data: data.subarray(2) };
  }
}

/** Into `target`, whose `SIMPLE_REPLY_BYTES` from `at` on are overwritten. */
export function encodeSimpleReply(reply: SimpleReply, target: Buffer, at = 0): void {
  target.writeUInt32BE(SIMPLE_REPLY_MAGIC, at);
  target.writeUInt32BE(reply.error, at + 4);
  target.writeUInt32BE(reply.cookieHigh, at + 8);
  target.writeUInt32BE(reply.cookieLow, at + 12);
}

/** The head of a chunk of data that is the whole reply: the bytes come behind its `DATA_CHUNK_BYTES`. */
export function encodeDataChunk(
  cookie: Cookie,
  offsetBytes: number,
  lengthBytes: number,
  isDone: boolean,
  target: Buffer,
  at = 0,
): void {
  writeChunkHeader(target, at, cookie, isDone, chunkTypes.OFFSET_DATA, 8 + lengthBytes);
  write64(target, at + CHUNK_HEADER_BYTES, offsetBytes);
}

/** Of a chunk of data, the head only. */
export function encodeChunk(chunk: Chunk): Buffer {
  const { type, payload } = chunkPayload(chunk);
  const restBytes = chunk.chunk === 'data' ? chunk.lengthBytes : 0;
  const bytes = Buffer.alloc(CHUNK_HEADER_BYTES + payload.byteLength);
  writeChunkHeader(bytes, 0, chunk, chunk.isDone, type, payload.byteLength + restBytes);
  bytes.set(payload, CHUNK_HEADER_BYTES);
  return bytes;
}

function writeChunkHeader(
  target: Buffer,
  at: number,
  { cookieHigh, cookieLow }: Cookie,
  isDone: boolean,
  type: number,
  lengthBytes: number,
): void {
  target.writeUInt32BE(CHUNK_MAGIC, at);
  target.writeUInt16BE(isDone ? chunkFlags.DONE : 0, at + 4);
  target.writeUInt16BE(type, at + 6);
  target.writeUInt32BE(cookieHigh, at + 8);
  target.writeUInt32BE(cookieLow, at + 12);
  target.writeUInt32BE(lengthBytes, at + 16);
}

function chunkPayload(chunk: Chunk): { readonly type: number; readonly payload: Buffer } {
  switch (chunk.chunk) {
    case 'none':
      return { type: chunkTypes.NONE, payload: Buffer.alloc(0) };
    case 'data': {
      const payload = Buffer.alloc(8);
      write64(payload, 0, chunk.offsetBytes);
      return { type: chunkTypes.OFFSET_DATA, payload };
    }
    case 'hole': {
      const payload = Buffer.alloc(12);
      write64(payload, 0, chunk.offsetBytes);
      payload.writeUInt32BE(chunk.lengthBytes, 8);
      return { type: chunkTypes.OFFSET_HOLE, payload };
    }
    case 'block-status': {
      const payload = Buffer.alloc(4 + 8 * chunk.descriptors.length);
      payload.writeUInt32BE(chunk.contextId, 0);
      for (const [index, { lengthBytes, flags }] of chunk.descriptors.entries()) {
        payload.writeUInt32BE(lengthBytes, 4 + 8 * index);
        payload.writeUInt32BE(flags, 8 + 8 * index);
      }
      return { type: chunkTypes.BLOCK_STATUS, payload };
    }
    case 'error': {
      const text = shortText(chunk.text);
      const head = Buffer.alloc(6);
      head.writeUInt32BE(chunk.error, 0);
      head.writeUInt16BE(text.byteLength, 4);
      if (chunk.offsetBytes === null) return { type: chunkTypes.ERROR, payload: Buffer.concat([head, text]) };
      const tail = Buffer.alloc(8);
      write64(tail, 0, chunk.offsetBytes);
      return { type: chunkTypes.ERROR_OFFSET, payload: Buffer.concat([head, text, tail]) };
    }
    default:
      return unreachable(chunk);
  }
}

/** Before a byte of the payload is read: whether a chunk of this type can be so long. */
function checkChunkLength(type: number, lengthBytes: number): void {
  const isGood = (): boolean => {
    switch (type) {
      case chunkTypes.NONE:
        return lengthBytes === 0;
      case chunkTypes.OFFSET_DATA:
        return lengthBytes >= 9 && lengthBytes <= 8 + limits.hostilePayloadBytes;
      case chunkTypes.OFFSET_HOLE:
        return lengthBytes === 12;
      case chunkTypes.BLOCK_STATUS:
        return lengthBytes >= 12 && (lengthBytes - 4) % 8 === 0 && lengthBytes <= 4 + 8 * limits.descriptors;
      default:
        if ((type & CHUNK_ERROR_BIT) === 0) throw violation(`a chunk of type ${type}`);
        return lengthBytes >= 6 && lengthBytes <= 6 + limits.textBytes + 8;
    }
  };
  if (!isGood()) throw violation(`a chunk of type ${type} with ${lengthBytes} bytes`);
}

/** `payload`: all of it, but of data only the offset. */
function decodeChunk(
  header: (Cookie & { readonly flags: number; readonly type: number }) | null,
  lengthBytes: number,
  payload: Buffer,
): Chunk {
  assert(header !== null, 'a chunk has a header');
  const { cookieHigh, cookieLow, flags, type } = header;
  const head = { cookieHigh, cookieLow, isDone: (flags & chunkFlags.DONE) !== 0 };
  switch (type) {
    case chunkTypes.NONE:
      if (!head.isDone) throw violation('a chunk of nothing that is not the last');
      return { ...head, chunk: 'none' };
    case chunkTypes.OFFSET_DATA:
      return {
        ...head,
        chunk: 'data',
        offsetBytes: safe64(payload, 0, 'a chunk'),
        lengthBytes: lengthBytes - 8,
      };
    case chunkTypes.OFFSET_HOLE: {
      const holeBytes = payload.readUInt32BE(8);
      if (holeBytes === 0) throw violation('a hole of no bytes');
      return {
        ...head,
        chunk: 'hole',
        offsetBytes: safe64(payload, 0, 'a chunk'),
        lengthBytes: holeBytes,
      };
    }
    case chunkTypes.BLOCK_STATUS: {
      const descriptors: Descriptor[] = [];
      for (let at = 4; at < payload.byteLength; at += 8) {
        const extentBytes = payload.readUInt32BE(at);
        if (extentBytes === 0) throw violation('an extent of no bytes');
        descriptors.push({ lengthBytes: extentBytes, flags: payload.readUInt32BE(at + 4) });
      }
      return { ...head, chunk: 'block-status', contextId: payload.readUInt32BE(0), descriptors };
    }
    default:
      return { ...head, chunk: 'error', ...decodeChunkError(type, payload) };
  }
}

function decodeChunkError(
  type: number,
  payload: Buffer,
): { readonly error: number; readonly text: string; readonly offsetBytes: number | null } {
  const fields = new Fields(payload);
  const error = fields.u32();
  if (error === 0) throw violation('an error chunk without an error');
  const textBytes = fields.u16();
  if (textBytes > fields.leftBytes) throw violation('an error text that is longer than its chunk');
  const text = lenientText(fields.bytes(textBytes));
  if (type !== chunkTypes.ERROR_OFFSET) return { error, text, offsetBytes: null };
  fields.exactly(8);
  return { error, text, offsetBytes: read64(payload, payload.byteLength - 8) };
}

// Fields.

/** The fields of a small message, one behind the other; whatever is not there is BadContent. */
class Fields {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get leftBytes(): number {
    return this.#bytes.byteLength - this.#at;
  }

  u16(): number {
    return this.bytes(2).readUInt16BE(0);
  }

  u32(): number {
    return this.bytes(4).readUInt32BE(0);
  }

  bytes(lengthBytes: number): Buffer {
    if (lengthBytes > this.leftBytes) throw new BadContent('the option is shorter than it says');
    this.#at += lengthBytes;
    return this.#bytes.subarray(this.#at - lengthBytes, this.#at);
  }

  countedText(mostBytes: number = limits.textBytes): string {
    return this.text(this.u32(), mostBytes);
  }

  text(lengthBytes: number, mostBytes: number = limits.textBytes): string {
    if (lengthBytes > mostBytes) throw new BadContent(`a text of ${lengthBytes} bytes`, optionErrors.TOO_BIG);
    const bytes = this.bytes(lengthBytes);
    if (bytes.includes(0)) throw new BadContent('a text with a zero byte in it');
    try {
      return strictUtf8.decode(bytes);
    } catch {
      throw new BadContent('a text that is not UTF-8');
    }
  }

  /** `count`, if so many fields of that size can follow. */
  atMost(count: number, fieldBytes: number): number {
    if (count > this.leftBytes / fieldBytes) throw new BadContent('the option is shorter than it says');
    return count;
  }

  exactly(lengthBytes: number): void {
    if (this.leftBytes !== lengthBytes) throw new BadContent('a message is not as long as its kind must be');
  }

  end(): void {
    this.exactly(0);
  }
}

// A byte order mark is a character like any other: what was sent is what is read.
const strictUtf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const lenientUtf8 = new TextDecoder('utf-8', { ignoreBOM: true });

function lenientText(bytes: Buffer): string {
  return lenientUtf8.decode(bytes.subarray(0, limits.textBytes));
}

function textOf(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8');
  assert(bytes.byteLength <= limits.textBytes, 'a text on the wire has no more than 4096 bytes');
  return bytes;
}

function countedText(text: string): Buffer {
  const bytes = textOf(text);
  const count = Buffer.alloc(4);
  count.writeUInt32BE(bytes.byteLength);
  return Buffer.concat([count, bytes]);
}

/** For people: cut where it is too long, and not in the middle of a character. */
function shortText(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8');
  if (bytes.byteLength <= limits.errorTextBytes) return bytes;
  let end: number = limits.errorTextBytes;
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end -= 1;
  return bytes.subarray(0, end);
}

function read64(bytes: Buffer, at: number): number | null {
  const high = bytes.readUInt32BE(at);
  return high > 0x1fffff ? null : high * 2 ** 32 + bytes.readUInt32BE(at + 4);
}

function safe64(bytes: Buffer, at: number, what: string): number {
  const value = read64(bytes, at);
  if (value === null) throw violation(`${what} whose 64-bit number is beyond 2^53`);
  return value;
}

function write64(target: Buffer, at: number, value: number): void {
  assert(Number.isSafeInteger(value) && value >= 0, 'offsets and sizes are safe integers');
  target.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  target.writeUInt32BE(value % 2 ** 32, at + 4);
}

function writePair(target: Buffer, at: number, [high, low]: readonly [number, number]): void {
  target.writeUInt32BE(high, at);
  target.writeUInt32BE(low, at + 4);
}

function isPair(bytes: Buffer, at: number, [high, low]: readonly [number, number]): boolean {
  return bytes.readUInt32BE(at) === high && bytes.readUInt32BE(at + 4) === low;
}

function checkMagic(bytes: Buffer, magic: readonly [number, number], what: string): void {
  if (!isPair(bytes, 0, magic)) throw violation(`${what} that begins with ${hex(bytes.readUInt32BE(0))}`);
}

function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, '0')}`;
}

/** Of a server every wrong content is a violation: a client need not go on with it. */
function strictly<T>(decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    if (error instanceof BadContent) throw violation(error.message);
    throw error;
  }
}

function violation(what: string): RaidError {
  return new RaidError('PROTOCOL_VIOLATION', `the other end of an NBD connection sent ${what}`);
}
