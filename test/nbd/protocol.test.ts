/** The codec of the NBD protocol, over the whole space of messages. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import {
  type Chunk,
  type ClientMessage,
  ClientMessages,
  commands,
  encodeChunk,
  encodeClientFlags,
  encodeExport,
  encodeGreeting,
  encodeOption,
  encodeOptionReply,
  encodeRequest,
  encodeSimpleReply,
  limits,
  type OptionReply,
  type OptionRequest,
  optionErrors,
  options,
  REQUEST_BYTES,
  type Request,
  type ServerMessage,
  ServerMessages,
  SIMPLE_REPLY_BYTES,
} from '../../lib/nbd/protocol.ts';

const SEED = 5;

const u16 = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.oneof(
  fc.integer({ min: 0, max: 0xffffffff }),
  fc.constantFrom(0, 1, 0x7fffffff, 0x80000000, 0xffffffff),
);
const safe = fc.oneof(fc.maxSafeNat(), fc.constantFrom(0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1));
const text = fc
  .string({ unit: 'grapheme', maxLength: 40 })
  .filter((found) => !found.includes('\0') && Buffer.from(found).toString() === found);
const query = text.filter((found) => Buffer.byteLength(found) <= limits.queryBytes);
const bytes = fc.uint8Array({ maxLength: 200 });
const cookie = { cookieHigh: u32, cookieLow: u32 };

const unknownOption = u32.filter((number) => !Object.values<number>(options).includes(number));
const optionRequest: fc.Arbitrary<OptionRequest> = fc.oneof(
  fc.record({ option: fc.constant('EXPORT_NAME' as const), name: text }),
  fc.record({ option: fc.constantFrom('ABORT' as const, 'LIST', 'STARTTLS', 'STRUCTURED_REPLY') }),
  fc.record({ option: fc.constantFrom('INFO' as const, 'GO'), name: text, wants: fc.array(u16) }),
  fc.record({
    option: fc.constantFrom('LIST_META_CONTEXT' as const, 'SET_META_CONTEXT'),
    name: text,
    queries: fc.array(query, { maxLength: limits.queries }),
  }),
  fc.record({ option: fc.constant('OTHER' as const), number: unknownOption, data: bytes }),
);

const optionReply: fc.Arbitrary<OptionReply> = fc.oneof(
  fc.record({ option: u32, reply: fc.constant('ACK' as const) }),
  fc.record({ option: u32, reply: fc.constant('SERVER' as const), name: text, description: text }),
  fc.record({
    option: u32,
    reply: fc.constant('INFO' as const),
    info: fc.constant('EXPORT' as const),
    sizeBytes: safe,
    flags: u16,
  }),
  fc.record({
    option: u32,
    reply: fc.constant('INFO' as const),
    info: fc.constantFrom('NAME' as const, 'DESCRIPTION'),
    text,
  }),
  fc.record({
    option: u32,
    reply: fc.constant('INFO' as const),
    info: fc.constant('BLOCK_SIZE' as const),
    minimumBytes: u32,
    preferredBytes: u32,
    maximumPayloadBytes: u32,
  }),
  fc.record({
    option: u32,
    reply: fc.constant('INFO' as const),
    info: fc.constant('OTHER' as const),
    number: fc.integer({ min: 4, max: 0xffff }),
    data: bytes,
  }),
  fc.record({ option: u32, reply: fc.constant('META_CONTEXT' as const), id: u32, name: text }),
  fc.record({
    option: u32,
    reply: fc.constant('ERROR' as const),
    error: fc.integer({ min: 0x80000000, max: 0xffffffff }),
    text,
  }),
  fc.record({
    option: u32,
    reply: fc.constant('OTHER' as const),
    number: fc.integer({ min: 5, max: 0x7fffffff }),
    data: bytes,
  }),
);

interface Sent<Message> {
  readonly wire: Buffer;
  readonly messages: readonly Message[];
}

const request: fc.Arbitrary<Sent<ClientMessage>> = fc
  .record({
    flags: u16,
    command: fc.oneof(fc.constantFrom(...Object.values(commands)), u16),
    ...cookie,
    offsetBytes: safe,
    lengthBytes: u32,
    payload: bytes,
  })
  .map(({ payload, ...rest }) => {
    const isWrite = rest.command === commands.WRITE;
    const asked: Request = isWrite ? { ...rest, lengthBytes: payload.byteLength } : rest;
    const head = Buffer.alloc(REQUEST_BYTES);
    encodeRequest(asked, head);
    return {
      wire: isWrite ? Buffer.concat([head, payload]) : head,
      messages: [{ kind: 'request', request: asked }, ...(isWrite ? dataOf(payload) : [])],
    };
  });

const chunk: fc.Arbitrary<Sent<ServerMessage>> = fc
  .tuple(
    fc.oneof(
      fc.record({ ...cookie, isDone: fc.constant(true), chunk: fc.constant('none' as const) }),
      fc.record({
        ...cookie,
        isDone: fc.boolean(),
        chunk: fc.constant('hole' as const),
        offsetBytes: safe,
        lengthBytes: u32.filter((length) => length > 0),
      }),
      fc.record({
        ...cookie,
        isDone: fc.boolean(),
        chunk: fc.constant('block-status' as const),
        contextId: u32,
        descriptors: fc.array(fc.record({ lengthBytes: u32.filter((length) => length > 0), flags: u32 }), {
          minLength: 1,
        }),
      }),
      fc.record({
        ...cookie,
        isDone: fc.boolean(),
        chunk: fc.constant('error' as const),
        error: u32.filter((error) => error > 0),
        text,
        offsetBytes: fc.option(safe),
      }),
      fc.record({
        ...cookie,
        isDone: fc.boolean(),
        chunk: fc.constant('data' as const),
        offsetBytes: safe,
        lengthBytes: fc.constant(1),
      }),
    ),
    fc.uint8Array({ minLength: 1, maxLength: 200 }),
  )
  .map(([made, payload]) => {
    const isData = made.chunk === 'data';
    const sent: Chunk = made.chunk === 'data' ? { ...made, lengthBytes: payload.byteLength } : made;
    return {
      wire: isData ? Buffer.concat([encodeChunk(sent), payload]) : encodeChunk(sent),
      messages: [{ kind: 'chunk', chunk: sent }, ...(isData ? dataOf(payload) : [])],
    };
  });

const simple: fc.Arbitrary<Sent<ServerMessage>> = fc.record({ ...cookie, error: u32 }).map((reply) => {
  const wire = Buffer.alloc(SIMPLE_REPLY_BYTES);
  encodeSimpleReply(reply, wire);
  return { wire, messages: [{ kind: 'simple', reply }] };
});

function dataOf(payload: Uint8Array): { kind: 'data'; bytes: Uint8Array; isLast: true }[] {
  return payload.byteLength === 0 ? [] : [{ kind: 'data', bytes: payload, isLast: true }];
}

/** Cuts, as fractions of what is left; small ones mostly. */
const cuts = fc.array(fc.nat(40), { minLength: 1, maxLength: 30 });

/** All messages, payload joined, whatever the pieces it came in. */
function readAll<Message extends { readonly kind: string }>(
  reader: { push(chunk: Uint8Array): void; next(): Message | null },
  wire: Uint8Array,
  lengths: readonly number[],
): { readonly messages: unknown[]; readonly error: unknown } {
  const messages: unknown[] = [];
  let pieces: Uint8Array[] = [];
  let turn = 0;
  try {
    for (let at = 0; at < wire.byteLength; ) {
      const length = 1 + (lengths[turn % lengths.length] ?? 0);
      turn += 1;
      reader.push(wire.subarray(at, at + length));
      at += length;
      for (let message = reader.next(); message !== null; message = reader.next()) {
        if (!('bytes' in message)) messages.push(plain(message));
        else {
          const data = message as unknown as { bytes: Uint8Array; isLast: boolean };
          pieces.push(data.bytes);
          if (data.isLast) messages.push({ kind: 'data', bytes: hex(Buffer.concat(pieces)), isLast: true });
          if (data.isLast) pieces = [];
        }
      }
    }
    return { messages, error: null };
  } catch (error) {
    return { messages, error };
  }
}

/** Comparable: buffers as text, whatever class they have. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return hex(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, field]) => [key, plain(field)]));
}

function hex(found: Uint8Array): string {
  return Buffer.from(found).toString('hex');
}

describe('what is encoded is what is decoded, however the stream is cut', () => {
  test('what a client sends', () => {
    fc.assert(
      fc.property(
        u32,
        fc.array(optionRequest),
        fc.array(request),
        cuts,
        (flags, asked, requests, lengths) => {
          const reader = new ClientMessages();
          const handshake = Buffer.concat([encodeClientFlags(flags), ...asked.map(encodeOption)]);
          const before = readAll(reader, handshake, lengths);
          expect(before).toEqual({
            messages: [
              { kind: 'client-flags', flags },
              ...asked.map((one) => plain({ kind: 'option', request: one })),
            ],
            error: null,
          });
          expect(reader.isBetween).toBe(true);
          reader.transmit();
          const after = readAll(reader, Buffer.concat(requests.map(({ wire }) => wire)), lengths);
          expect(after).toEqual({
            messages: requests.flatMap(({ messages }) => messages.map(plain)),
            error: null,
          });
          expect(reader.isBetween).toBe(true);
        },
      ),
      { seed: SEED, numRuns: 300 },
    );
  });

  test('what a server sends', () => {
    fc.assert(
      fc.property(
        u16,
        fc.array(optionReply),
        fc.array(fc.oneof(chunk, simple)),
        cuts,
        (flags, replies, sent, lengths) => {
          const reader = new ServerMessages();
          const handshake = Buffer.concat([encodeGreeting(flags), ...replies.map(encodeOptionReply)]);
          expect(readAll(reader, handshake, lengths)).toEqual({
            messages: [
              { kind: 'greeting', flags },
              ...replies.map((reply) => plain({ kind: 'option-reply', reply })),
            ],
            error: null,
          });
          reader.transmit();
          expect(readAll(reader, Buffer.concat(sent.map(({ wire }) => wire)), lengths)).toEqual({
            messages: sent.flatMap(({ messages }) => messages.map(plain)),
            error: null,
          });
          expect(reader.isBetween).toBe(true);
        },
      ),
      { seed: SEED, numRuns: 300 },
    );
  });

  test('the answer to EXPORT_NAME, with and without its zeroes', () => {
    fc.assert(
      fc.property(safe, u16, fc.boolean(), cuts, (sizeBytes, flags, withZeroes, lengths) => {
        const reader = new ServerMessages();
        readAll(reader, encodeGreeting(3), [17]);
        reader.expectExport({ withZeroes });
        const wire = encodeExport({ sizeBytes, flags }, { withZeroes });
        expect(wire.byteLength).toBe(withZeroes ? 134 : 10);
        expect(readAll(reader, wire, lengths)).toEqual({
          messages: [{ kind: 'export', facts: { sizeBytes, flags } }],
          error: null,
        });
      }),
      { seed: SEED, numRuns: 50 },
    );
  });

  test('the data behind a simple reply, whose length only the asker knows', () => {
    const reader = new ServerMessages();
    readAll(reader, encodeGreeting(3), [17]);
    reader.transmit();
    const wire = Buffer.alloc(SIMPLE_REPLY_BYTES + 5, 7);
    encodeSimpleReply({ error: 0, cookieHigh: 1, cookieLow: 2 }, wire);
    reader.push(wire);
    expect(reader.next()).toEqual({ kind: 'simple', reply: { error: 0, cookieHigh: 1, cookieLow: 2 } });
    reader.expectPayload(5);
    const data = reader.next();
    expect(data?.kind === 'data' && data.isLast && Buffer.from(data.bytes).toString('hex')).toBe(
      '0707070707',
    );
  });
});

describe('what is not of the protocol', () => {
  const client = (): ClientMessages => new ClientMessages();
  const inRequests = (): ClientMessages => {
    const reader = new ClientMessages();
    readAll(reader, encodeClientFlags(3), [3]);
    reader.transmit();
    return reader;
  };
  const server = (): ServerMessages => new ServerMessages();
  const inReplies = (): ServerMessages => {
    const reader = new ServerMessages();
    readAll(reader, encodeGreeting(3), [17]);
    reader.transmit();
    return reader;
  };

  test.each([
    ['handshake of a client', client],
    ['requests', inRequests],
    ['handshake of a server', server],
    ['replies', inReplies],
  ] as const)('random bytes in the %s end in messages or a typed error, nothing else', (_name, make) => {
    // Bytes of the protocol, spoilt here and there: plain noise does not come past the first magic.
    const real = Buffer.concat([
      encodeGreeting(3),
      encodeOption({ option: 'GO', name: 'a', wants: [1, 3] }),
      encodeOptionReply({ option: 7, reply: 'SERVER', name: 'a', description: 'b' }),
      encodeChunk({
        chunk: 'error',
        cookieHigh: 1,
        cookieLow: 2,
        isDone: true,
        error: 5,
        text: 'x',
        offsetBytes: 3,
      }),
    ]);
    const spoilt = fc
      .tuple(
        fc.nat(real.byteLength),
        fc.array(fc.tuple(fc.nat(real.byteLength - 1), fc.nat(255)), { maxLength: 6 }),
      )
      .map(([start, edits]) => {
        const copy = Buffer.from(real);
        for (const [at, value] of edits) copy[at] = value;
        return copy.subarray(start);
      });
    fc.assert(
      fc.property(fc.oneof(bytes, spoilt), cuts, (wire, lengths) => {
        const { error } = readAll<{ readonly kind: string }>(make(), wire, lengths);
        if (error !== null) {
          expect(error).toBeInstanceOf(RaidError);
          expect((error as RaidError).code).toBe('PROTOCOL_VIOLATION');
        }
        expect(String(readAll<{ readonly kind: string }>(make(), wire, [1e6]).error)).toBe(String(error));
      }),
      { seed: SEED, numRuns: 500 },
    );
  });

  const optionHeader = (option: number, lengthBytes: number): Buffer => {
    const wire = Buffer.concat([
      encodeClientFlags(3),
      encodeOption({ option: 'OTHER', number: option, data: new Uint8Array() }),
    ]);
    wire.writeUInt32BE(lengthBytes, 16);
    return wire;
  };

  test.each([8193, 65535, 65536])(
    'an option of %d bytes is read away and refused, and the next is read',
    (length) => {
      const reader = client();
      const next = encodeOption({ option: 'ABORT' });
      const wire = Buffer.concat([optionHeader(7, length), Buffer.alloc(length), next]);
      expect(readAll(reader, wire, [999]).messages).toEqual([
        { kind: 'client-flags', flags: 3 },
        { kind: 'bad-option', option: 7, error: optionErrors.TOO_BIG, because: 'the option is too long' },
        { kind: 'option', request: { option: 'ABORT' } },
      ]);
    },
  );

  test.each([65537, 2 ** 31, 2 ** 32 - 1])(
    'an option that says it has %d bytes ends the connection at its header',
    (length) => {
      const { error } = readAll(client(), optionHeader(7, length), [999]);
      expect((error as RaidError).code).toBe('PROTOCOL_VIOLATION');
    },
  );

  test.each([0, 1, 255, 256, 257, 4095, 4096])('a name of %d bytes is read', (length) => {
    const name = 'n'.repeat(length);
    const wire = Buffer.concat([encodeClientFlags(3), encodeOption({ option: 'GO', name, wants: [] })]);
    expect(readAll(client(), wire, [999]).messages[1]).toEqual({
      kind: 'option',
      request: { option: 'GO', name, wants: [] },
    });
  });

  test.each([4097, 2 ** 31, 2 ** 32 - 1])(
    'a name that says it has %d bytes is refused before it is read',
    (length) => {
      const wire = Buffer.concat([
        encodeClientFlags(3),
        encodeOption({ option: 'OTHER', number: options.GO, data: new Uint8Array(5000) }),
      ]);
      wire.writeUInt32BE(length, 4 + 16);
      const [, refused] = readAll(client(), wire, [999]).messages;
      expect(refused).toMatchObject({ kind: 'bad-option', option: options.GO, error: optionErrors.TOO_BIG });
    },
  );

  test.each([
    ['not UTF-8', Buffer.from([0xff, 0xfe])],
    ['with a zero byte in it', Buffer.from('a\0b')],
  ])('a name that is %s is a bad option', (_what, name) => {
    const wire = Buffer.concat([
      encodeClientFlags(3),
      encodeOption({ option: 'OTHER', number: 1, data: name }),
    ]);
    const [, refused] = readAll(client(), wire, [999]).messages;
    expect(refused).toMatchObject({ kind: 'bad-option', option: 1, error: optionErrors.INVALID });
  });

  test('an offset beyond 2^53 - 1 is told as none, the last that a Number holds as it is', () => {
    const wire = Buffer.alloc(2 * REQUEST_BYTES);
    const asked: Request = {
      flags: 0,
      command: commands.READ,
      cookieHigh: 0,
      cookieLow: 1,
      offsetBytes: Number.MAX_SAFE_INTEGER,
      lengthBytes: 1,
    };
    encodeRequest(asked, wire, 0);
    encodeRequest(asked, wire, REQUEST_BYTES);
    wire.writeUInt32BE(0x200000, REQUEST_BYTES + 16);
    wire.writeUInt32BE(0, REQUEST_BYTES + 20);
    expect(readAll(inRequests(), wire, [999]).messages).toEqual([
      { kind: 'request', request: asked },
      { kind: 'request', request: { ...asked, offsetBytes: null } },
    ]);
  });

  test('a write of more than 64 MiB ends the connection at its header', () => {
    const wire = Buffer.alloc(REQUEST_BYTES);
    const asked = { flags: 0, command: commands.WRITE, cookieHigh: 0, cookieLow: 1, offsetBytes: 0 };
    encodeRequest({ ...asked, lengthBytes: limits.hostilePayloadBytes }, wire);
    expect(readAll(inRequests(), wire, [999]).error).toBe(null);
    encodeRequest({ ...asked, lengthBytes: limits.hostilePayloadBytes + 1 }, wire);
    expect((readAll(inRequests(), wire, [999]).error as RaidError).code).toBe('PROTOCOL_VIOLATION');
  });

  test('an error text that is longer than anybody reads is cut between two characters', () => {
    const wire = encodeOptionReply({
      option: 7,
      reply: 'ERROR',
      error: optionErrors.UNKNOWN,
      text: 'é'.repeat(3000),
    });
    expect(wire.byteLength).toBe(20 + 1024);
    const odd = encodeOptionReply({
      option: 7,
      reply: 'ERROR',
      error: optionErrors.UNKNOWN,
      text: `x${'é'.repeat(3000)}`,
    });
    expect(odd.byteLength).toBe(20 + 1023);
  });
});
