/** The server's manners: what it says to whom, what it refuses, and what it costs to be bad to it. */
import { lstat, mkdtemp, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { describe, expect, test } from 'vitest';
import { DelayDevice } from '../../lib/device/delay.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RecordDevice } from '../../lib/device/record.ts';
import { RaidError } from '../../lib/errors.ts';
import { realHost } from '../../lib/host.ts';
import {
  commandFlags,
  commands,
  encodeClientFlags,
  encodeOption,
  encodeRequest,
  infos,
  nbdErrors,
  optionErrors,
  options,
  REQUEST_BYTES,
  transmissionFlags,
} from '../../lib/nbd/protocol.ts';
import { type NbdEvent, NbdServer, type NbdServerOptions } from '../../lib/nbd/server.ts';
import { sessionLimits } from '../../lib/nbd/session.ts';
import { listenAt } from '../../lib/socket/unix.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { Client, errorOf, StillHost, turn } from './wire.ts';

const { READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS } = commands;
const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO } = commandFlags;

class Stage implements AsyncDisposable {
  readonly host = new StillHost();
  readonly events: NbdEvent[] = [];
  readonly server: NbdServer;

  constructor(device: Device, more: Partial<NbdServerOptions> = {}) {
    this.server = new NbdServer({
      exports: [{ name: 'disk', device, description: 'a disk' }],
      host: this.host,
      onEvent: (event) => this.events.push(event),
      ...more,
    });
  }

  connect(how: { tls?: boolean } = {}): Client {
    return new Client((wire) => this.server.accept(wire, 'test', how));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = this.server.close(0);
    await this.host.advance(1000);
    await closed;
  }
}

function memory(sizeBytes = 4 * MIB): MemoryDevice {
  return new MemoryDevice({ sizeBytes, name: 'memory' });
}

function filled(lengthBytes: number, value: number): Buffer {
  return Buffer.alloc(lengthBytes, value);
}

describe('handshake', () => {
  test('GO tells size, flags and block sizes, and leads to transmission', async () => {
    await using stage = new Stage(memory());
    const client = stage.connect();
    const replies = await client.enter('disk');
    const [facts, sizes] = replies;
    expect(facts).toMatchObject({ reply: 'INFO', info: 'EXPORT', sizeBytes: 4 * MIB });
    const flags = facts?.reply === 'INFO' && facts.info === 'EXPORT' ? facts.flags : 0;
    for (const name of ['SEND_FLUSH', 'SEND_FUA', 'SEND_TRIM', 'SEND_WRITE_ZEROES', 'SEND_DF'] as const) {
      expect(flags & transmissionFlags[name], name).not.toBe(0);
    }
    expect(flags & transmissionFlags.CAN_MULTI_CONN).not.toBe(0);
    expect(sizes).toMatchObject({
      info: 'BLOCK_SIZE',
      minimumBytes: 1,
      preferredBytes: 4096,
      maximumPayloadBytes: 32 * MIB,
    });
    expect(await client.request({ command: WRITE, offsetBytes: 4096 }, filled(100, 5))).toMatchObject({
      error: 0,
    });
    const { data } = await client.request({ command: READ, offsetBytes: 4090, lengthBytes: 20 });
    expect(data.toString('hex')).toBe(`${'00'.repeat(6)}${'05'.repeat(14)}`);
    expect(stage.events).toEqual([{ event: 'connected', client: 1, peer: 'test', export: 'disk' }]);
  });

  test.each([
    ['with its zeroes', 1, 134],
    ['without, where the client asked for that', 3, 10],
  ])('EXPORT_NAME is answered %s', async (_how, flags, length) => {
    await using stage = new Stage(memory());
    const client = stage.connect();
    client.flags(flags);
    client.wire.onSent = null;
    await client.enterByName('disk');
    await turn();
    expect(client.wire.sentBytes.byteLength).toBe(18 + length);
    expect(client.wire.sentBytes.subarray(28).every((byte) => byte === 0)).toBe(true);
  });

  test('LIST names every export, INFO describes one, and an option nobody knows is unsupported', async () => {
    await using stage = new Stage(memory(), {
      exports: [
        { name: 'one', device: memory() },
        { name: 'two', device: memory(8 * MIB), description: 'second' },
      ],
    });
    const client = stage.connect();
    client.flags();
    expect((await client.option({ option: 'LIST' })).slice(0, -1)).toMatchObject([
      { reply: 'SERVER', name: 'one', description: '' },
      { reply: 'SERVER', name: 'two', description: 'second' },
    ]);
    const wants = [infos.NAME, infos.DESCRIPTION, infos.BLOCK_SIZE, 999];
    const told = await client.option({ option: 'INFO', name: 'two', wants });
    expect(told).toMatchObject([
      { info: 'EXPORT', sizeBytes: 8 * MIB },
      { info: 'BLOCK_SIZE' },
      { info: 'NAME', text: 'two' },
      { info: 'DESCRIPTION', text: 'second' },
      { reply: 'ACK' },
    ]);
    // The empty name is the first.
    const first = await client.option({ option: 'INFO', name: '', wants: [infos.NAME] });
    expect(first[1]).toMatchObject({ text: 'one' });
    expect(errorOf(await client.option({ option: 'OTHER', number: 77, data: new Uint8Array(9) }))).toBe(
      optionErrors.UNSUP,
    );
    expect((await client.option({ option: 'ABORT' }))[0]?.reply).toBe('ACK');
    await client.closed();
  });

  test.each([
    ['nothing', 'nothing'],
    ['with a path', '../disk'],
    ['that is a path', '/etc/passwd'],
    ['called nearly so', 'disk0'],
    ['with a space', 'disk '],
    ['__proto__', '__proto__'],
    ['constructor', 'constructor'],
    ['of 4096 letters', 'n'.repeat(4096)],
  ])('an export %s is not there', async (_what, name) => {
    await using stage = new Stage(memory());
    const client = stage.connect();
    client.flags();
    expect(errorOf(await client.option({ option: 'GO', name, wants: [] }))).toBe(optionErrors.UNKNOWN);
    await client.enterByName(name);
    await client.closed();
  });

  test.each(['a/b', '', 'x'.repeat(201), 'ä', '__proto__'.repeat(30)])(
    'no export can be called %j',
    (name) => {
      const make = (): NbdServer => new NbdServer({ exports: [{ name, device: memory() }] });
      expect(make).toThrow(RaidError);
    },
  );

  test('flags that nobody knows, and a 33rd option, end the connection', async () => {
    await using stage = new Stage(memory());
    const odd = stage.connect();
    odd.flags(4);
    await odd.closed();
    const eager = stage.connect();
    eager.flags();
    for (let count = 0; count < sessionLimits.options; count += 1) await eager.option({ option: 'LIST' });
    expect(eager.isClosed).toBe(false);
    eager.send(encodeOption({ option: 'LIST' }));
    await eager.closed();
  });

  test('block status needs its context, set for the export that is entered', async () => {
    const exports = [
      { name: 'one', device: memory() },
      { name: 'two', device: memory() },
    ];
    await using stage = new Stage(memory(), { exports });
    const early = stage.connect();
    early.flags();
    const context = { option: 'SET_META_CONTEXT', name: 'one', queries: ['base:allocation'] } as const;
    expect(errorOf(await early.option(context))).toBe(optionErrors.INVALID);

    const right = stage.connect();
    await right.enter('one', { context: true });
    const asked = { command: BLOCK_STATUS, lengthBytes: 4 * MIB };
    expect((await right.request(asked)).chunks).toMatchObject([
      { chunk: 'block-status', contextId: 1, descriptors: [{ lengthBytes: 4 * MIB, flags: 2 }] },
    ]);
    expect((await stage.connect().enter('two', { context: true })).at(-1)?.reply).toBe('ACK');

    const wrong = stage.connect();
    wrong.flags();
    await wrong.option({ option: 'STRUCTURED_REPLY' });
    await wrong.option(context);
    await wrong.go('two');
    expect(await wrong.request(asked)).toMatchObject({ error: nbdErrors.EINVAL });
  });

  test('a handshake that takes more than ten seconds is cut off, one that is done is not', async () => {
    await using stage = new Stage(memory());
    const slow = stage.connect();
    const quick = stage.connect();
    slow.flags();
    await quick.enter();
    await stage.host.advance(9_500);
    expect(slow.isClosed).toBe(false);
    await stage.host.advance(1_000);
    expect(slow.isClosed).toBe(true);
    await stage.host.advance(600_000, 10_000);
    expect(await quick.request({ command: FLUSH })).toMatchObject({ error: 0 });
  });

  test('the 101st connection is refused, and only that', async () => {
    await using stage = new Stage(memory());
    const clients = Array.from({ length: 100 }, () => stage.connect());
    expect(stage.connect().isClosed).toBe(true);
    await clients[99]?.enter();
    expect(await clients[99]?.request({ command: FLUSH })).toMatchObject({ error: 0 });
  });
});

describe('TLS', () => {
  const tls = { sharedKeys: new Map([['alice', Buffer.from('00112233445566778899aabbccddeeff', 'hex')]]) };

  test('nothing but STARTTLS and ABORT is answered in the clear', async () => {
    await using stage = new Stage(memory(), { tls });
    const client = stage.connect({ tls: true });
    client.flags();
    for (const request of [
      { option: 'LIST' },
      { option: 'STRUCTURED_REPLY' },
      { option: 'GO', name: 'disk', wants: [] },
      { option: 'OTHER', number: 99, data: new Uint8Array() },
    ] as const) {
      expect(errorOf(await client.option(request))).toBe(optionErrors.TLS_REQD);
    }
    await client.enterByName('disk');
    await client.closed();
  });

  test('what is sent in the clear behind STARTTLS ends the connection', async () => {
    await using stage = new Stage(memory(), { tls });
    const client = stage.connect({ tls: true });
    client.flags();
    await turn();
    const smuggled = encodeOption({ option: 'STRUCTURED_REPLY' });
    client.send(Buffer.concat([encodeOption({ option: 'STARTTLS' }), smuggled]));
    await client.closed();
    expect(client.wire.sentBytes.byteLength).toBe(18);
  });

  test('a server without TLS says so', async () => {
    await using stage = new Stage(memory());
    const client = stage.connect();
    client.flags();
    expect(errorOf(await client.option({ option: 'STARTTLS' }))).toBe(optionErrors.UNSUP);
  });

  test.each([
    ['with the key, everything is as without TLS', 'alice', true],
    ['with another name there is no way in', 'mallory', false],
  ])('%s', async (_what, identity, isLetIn) => {
    await using server = new NbdServer({ exports: [{ name: 'disk', device: memory() }], tls });
    const uri = await server.listenTcp('127.0.0.1', 0);
    expect(uri).toMatch(/^nbds:\/\/127\.0\.0\.1:\d+$/);
    const { Socket } = await import('node:net');
    const plain = new Socket();
    plain.on('error', () => undefined);
    const port = Number(uri.split(':').at(-1));
    const received = await new Promise<Buffer>((resolve) => {
      plain.connect(port, '127.0.0.1', () => {
        plain.write(Buffer.concat([encodeClientFlags(3), encodeOption({ option: 'STARTTLS' })]));
      });
      let clear = Buffer.alloc(0);
      plain.on('data', (chunk: Buffer) => {
        clear = Buffer.concat([clear, chunk]);
        if (clear.byteLength < 18 + 20) return;
        plain.removeAllListeners('data');
        const secret = connectTls({
          socket: plain,
          pskCallback: () => ({ identity, psk: tls.sharedKeys.get('alice') ?? Buffer.alloc(0) }),
          ciphers: 'PSK',
          maxVersion: 'TLSv1.2',
          checkServerIdentity: () => undefined,
        });
        let heard = Buffer.alloc(0);
        secret.on('error', () => resolve(heard));
        secret.on('close', () => resolve(heard));
        secret.on('data', (part: Buffer) => {
          heard = Buffer.concat([heard, part]);
          secret.end();
        });
        secret.write(encodeOption({ option: 'LIST' }));
      });
    });
    plain.destroy();
    expect(received.includes('disk')).toBe(isLetIn);
  });

  test('off loopback there must be TLS, unless that is spelled out', async () => {
    await using server = new NbdServer({ exports: [{ name: 'disk', device: memory() }] });
    await expect(server.listenTcp('0.0.0.0', 0)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    await using insecure = new NbdServer({ exports: [{ name: 'disk', device: memory() }], insecure: true });
    expect(await insecure.listenTcp('0.0.0.0', 0)).toMatch(/^nbd:/);
  });
});

describe('transmission', () => {
  const size = 4 * MIB;

  test.each([
    ['a read beyond the end', { command: READ, offsetBytes: size - 1, lengthBytes: 2 }, 'EINVAL'],
    [
      'a read far beyond the end',
      { command: READ, offsetBytes: Number.MAX_SAFE_INTEGER, lengthBytes: 2 },
      'EINVAL',
    ],
    ['a read of nothing', { command: READ, lengthBytes: 0 }, 'EINVAL'],
    ['a read with a flag of another command', { command: READ, lengthBytes: 1, flags: NO_HOLE }, 'EINVAL'],
    ['a read with a flag of none', { command: READ, lengthBytes: 1, flags: 1 << 9 }, 'EINVAL'],
    ['zeroes beyond the end', { command: WRITE_ZEROES, offsetBytes: size, lengthBytes: 1 }, 'ENOSPC'],
    ['zeroes of 4 GiB', { command: WRITE_ZEROES, lengthBytes: 0xffffffff }, 'ENOSPC'],
    ['zeroes that must be fast', { command: WRITE_ZEROES, lengthBytes: 1, flags: FAST_ZERO }, 'ENOTSUP'],
    ['a trim beyond the end', { command: TRIM, offsetBytes: size, lengthBytes: 1 }, 'EINVAL'],
    ['a flush with a length', { command: FLUSH, lengthBytes: 1 }, 'EINVAL'],
    ['a flush with an offset', { command: FLUSH, offsetBytes: 1 }, 'EINVAL'],
    ['status without its context', { command: BLOCK_STATUS, lengthBytes: 1 }, 'EINVAL'],
    ['a command that nobody knows', { command: 99 }, 'EINVAL'],
    ['a resize', { command: 8, offsetBytes: 1 }, 'EINVAL'],
  ] as const)('%s is refused, and the connection goes on', async (_what, asked, expected) => {
    await using stage = new Stage(memory());
    for (const structured of [true, false]) {
      const client = stage.connect();
      await client.enter('', { structured });
      expect(await client.request(asked)).toMatchObject({ error: nbdErrors[expected] });
      expect(await client.request({ command: FLUSH })).toMatchObject({ error: 0 });
    }
  });

  test.each([
    ['FUA on everything', { command: READ, lengthBytes: 1, flags: FUA }],
    ['FUA on a flush', { command: FLUSH, flags: FUA }],
    ['a read in one piece', { command: READ, lengthBytes: 65536, flags: DF }],
    ['the last byte', { command: READ, offsetBytes: size - 1, lengthBytes: 1 }],
    ['a trim of all', { command: TRIM, lengthBytes: size, flags: FUA }],
    ['zeroes that are to be allocated', { command: WRITE_ZEROES, lengthBytes: size, flags: NO_HOLE | FUA }],
    ['a cache', { command: CACHE, lengthBytes: size }],
    ['the status of one extent', { command: BLOCK_STATUS, lengthBytes: size, flags: REQ_ONE }],
  ] as const)('%s is taken', async (_what, asked) => {
    await using stage = new Stage(memory());
    const client = stage.connect();
    await client.enter('', { context: true });
    expect(await client.request(asked)).toMatchObject({ error: 0 });
  });

  test('a write that is refused is read to its end, and the next request is understood', async () => {
    await using stage = new Stage(memory(64 * KIB));
    const client = stage.connect();
    await client.enter();
    const beyond = client.request({ command: WRITE, offsetBytes: 64 * KIB - 10 }, filled(3000, 1));
    const odd = client.request({ command: WRITE, flags: DF }, filled(3000, 2));
    const large = client.request({ command: WRITE }, filled(33 * MIB, 3));
    expect(await beyond).toMatchObject({ error: nbdErrors.ENOSPC });
    expect(await odd).toMatchObject({ error: nbdErrors.EINVAL });
    expect(await large).toMatchObject({ error: nbdErrors.ENOSPC });
    const { data } = await client.request({ command: READ, lengthBytes: 64 * KIB });
    expect(data.every((byte) => byte === 0)).toBe(true);
  });

  test('what a device refuses is told by its kind, without names of files', async () => {
    const fault = new FaultDevice(new MemoryDevice({ sizeBytes: 4 * MIB, name: '/secret/path' }));
    fault.add({ on: 'read', fault: { kind: 'error', code: 'MEDIUM_ERROR' } });
    fault.add({ on: 'write', fault: { kind: 'error', code: 'NO_SPACE' } });
    await using stage = new Stage(fault);
    const client = stage.connect();
    await client.enter();
    const read = await client.request({ command: READ, lengthBytes: 4096 });
    expect(read).toMatchObject({ error: nbdErrors.EIO });
    expect(read.text).not.toContain('secret');
    expect(await client.request({ command: WRITE }, filled(1, 1))).toMatchObject({ error: nbdErrors.ENOSPC });
  });

  test('an export that is read only is not written to, and says so', async () => {
    await using stage = new Stage(memory(), {
      exports: [{ name: 'disk', device: memory(), readOnly: true }],
    });
    const client = stage.connect();
    const [facts] = await client.enter();
    const flags = facts?.reply === 'INFO' && facts.info === 'EXPORT' ? facts.flags : 0;
    expect(flags & transmissionFlags.READ_ONLY).not.toBe(0);
    expect(flags & transmissionFlags.SEND_TRIM).toBe(0);
    const refused = { error: nbdErrors.EPERM };
    expect(await client.request({ command: WRITE }, filled(1, 1))).toMatchObject(refused);
    expect(await client.request({ command: TRIM, lengthBytes: 1 })).toMatchObject(refused);
    expect(await client.request({ command: WRITE_ZEROES, lengthBytes: 1 })).toMatchObject(refused);
  });

  test('a device of blocks says how large they are, and half a block is refused', async () => {
    await using stage = new Stage(new MemoryDevice({ sizeBytes: 4 * MIB, blockBytes: 512 }));
    const client = stage.connect();
    client.flags();
    const replies = await client.option({ option: 'GO', name: '', wants: [] });
    // Also to one who did not ask.
    expect(replies[1]).toMatchObject({ info: 'BLOCK_SIZE', minimumBytes: 512 });
  });

  test('requests run side by side, and are answered as they are done', async () => {
    const delay = new DelayDevice(memory(), { host: realHost });
    const hold = delay.hold({ only: (operation) => operation.op === 'read' && operation.offsetBytes === 0 });
    await using stage = new Stage(delay);
    const client = stage.connect();
    await client.enter();
    const first = client.request({ command: READ, lengthBytes: 10 });
    const second = client.request({ command: READ, offsetBytes: 4096, lengthBytes: 10 });
    await second;
    expect(client.answered).toEqual([2]);
    hold.release();
    await first;
    expect(client.answered).toEqual([2, 1]);
  });

  test('a flush on one connection comes after what another has been acknowledged', async () => {
    const record = new RecordDevice(memory());
    await using stage = new Stage(record);
    const [one, other] = [stage.connect(), stage.connect()];
    await one.enter();
    await other.enter();
    await one.request({ command: WRITE, offsetBytes: 512 }, filled(512, 1));
    await other.request({ command: FLUSH });
    const done = record.log.filter(({ event }) => event === 'finish').map(({ operation }) => operation.op);
    expect(done).toEqual(['write', 'flush']);
    await one.request({ command: WRITE, offsetBytes: 1024, flags: FUA }, filled(512, 1));
    expect(record.log.at(-1)?.operation).toMatchObject({ op: 'write', fua: true });
  });

  test('a payload in crumbs is the same payload', async () => {
    const device = memory();
    await using stage = new Stage(device);
    const client = stage.connect();
    await client.enter();
    const payload = Buffer.from(Array.from({ length: 5000 }, (_, index) => index % 251));
    expect(await client.request({ command: WRITE, offsetBytes: 3 }, payload, 7)).toMatchObject({ error: 0 });
    const target = Buffer.alloc(5000);
    await device.read(3, target);
    expect(target.compare(payload)).toBe(0);
  });

  test('nothing of an earlier reply is in a later one', async () => {
    await using stage = new Stage(memory());
    const client = stage.connect();
    await client.enter();
    await client.request({ command: WRITE }, filled(4096, 0xaa));
    await client.request({ command: READ, lengthBytes: 4096 });
    const { data } = await client.request({ command: READ, offsetBytes: 8192, lengthBytes: 4096 });
    expect(data.includes(0xaa)).toBe(false);
    const before = client.wire.sentBytes.byteLength;
    await client.request({ command: READ, offsetBytes: 8192, lengthBytes: 100 });
    expect(client.wire.sentBytes.byteLength - before).toBe(28 + 100);
  });
});

describe('clients that do not behave', () => {
  test('one that asks and never reads costs a bounded amount, and is cut off after half a minute', async () => {
    await using stage = new Stage(memory(8 * MIB));
    const [greedy, other] = [stage.connect(), stage.connect()];
    await greedy.enter();
    await other.enter();
    greedy.wire.stopReading();
    const head = Buffer.alloc(REQUEST_BYTES);
    const asked = { flags: 0, command: READ, cookieHigh: 0, cookieLow: 1, offsetBytes: 0 };
    encodeRequest({ ...asked, lengthBytes: 8 * MIB }, head);
    greedy.send(Buffer.concat(Array.from({ length: 1000 }, () => head)));
    await turn(5);
    expect(stage.server.heldBytes).toBeLessThanOrEqual(sessionLimits.bytes);
    expect(greedy.wire.isPaused()).toBe(true);
    expect(await other.request({ command: FLUSH })).toMatchObject({ error: 0 });
    await stage.host.advance(sessionLimits.stallMs + 1000, 1000);
    expect(greedy.isClosed).toBe(true);
    await turn();
    expect(stage.server.heldBytes).toBe(0);
    expect(await other.request({ command: FLUSH })).toMatchObject({ error: 0 });
  });

  test('no more than 128 requests of one are under way', async () => {
    const delay = new DelayDevice(memory(), { host: realHost });
    const hold = delay.hold();
    await using stage = new Stage(delay);
    const client = stage.connect();
    await client.enter();
    const all = Array.from({ length: 300 }, () => client.request({ command: READ, lengthBytes: 1 }));
    await turn();
    expect(hold.waiting.length).toBe(sessionLimits.requests);
    hold.release();
    await Promise.all(all);
  });

  test('one that stops in the middle of a request is cut off after half a minute, one that waits is not', async () => {
    await using stage = new Stage(memory());
    const [half, idle] = [stage.connect(), stage.connect()];
    await half.enter();
    await idle.enter();
    half.send(Buffer.alloc(1, 0x25));
    await stage.host.advance(sessionLimits.stallMs + 1000, 1000);
    expect([half.isClosed, idle.isClosed]).toEqual([true, false]);
    expect(stage.server.heldBytes).toBe(0);
  });

  test('one that says goodbye, or closes its side, gets what it has asked for first', async () => {
    for (const goodbye of [false, true]) {
      const delay = new DelayDevice(memory(), { host: realHost });
      const hold = delay.hold();
      await using stage = new Stage(delay);
      const client = stage.connect();
      await client.enter();
      const asked = client.request({ command: READ, lengthBytes: 10 });
      if (goodbye) void client.request({ command: DISC });
      else client.wire.push(null);
      await turn();
      expect(client.isClosed).toBe(false);
      hold.release();
      expect(await asked).toMatchObject({ error: 0 });
      await client.closed();
    }
  });

  test('one that breaks the protocol is the only one that notices', async () => {
    await using stage = new Stage(memory());
    const [bad, good] = [stage.connect(), stage.connect()];
    await bad.enter();
    await good.enter();
    bad.send(Buffer.alloc(REQUEST_BYTES, 0x41));
    await bad.closed();
    expect(stage.events.at(-1)).toMatchObject({ event: 'disconnected', client: 1 });
    expect(await good.request({ command: FLUSH })).toMatchObject({ error: 0 });
  });

  test('shutting down waits for what is in flight, but not for ever', async () => {
    const delay = new DelayDevice(memory(), { host: realHost });
    const stage = new Stage(delay);
    const [quick, hanging] = [stage.connect(), stage.connect()];
    await quick.enter();
    await hanging.enter();
    const hold = delay.hold({
      only: (operation) => 'offsetBytes' in operation && operation.offsetBytes === 512,
    });
    void hanging.request({ command: READ, offsetBytes: 512, lengthBytes: 1 });
    await turn();
    let isDone = false;
    const closed = stage.server.close(5000).then(() => {
      isDone = true;
    });
    await turn();
    expect(quick.isClosed).toBe(true);
    expect([hanging.isClosed, isDone]).toEqual([false, false]);
    await stage.host.advance(5500);
    await closed;
    expect(hanging.isClosed).toBe(true);
    hold.release();
  });
});

describe('a connection that the server closes is a word: what came over it has happened, or never will', () => {
  test.each(['one that breaks the protocol', 'one that is left when the server ends'])('%s', async (who) => {
    const backing = memory();
    const delay = new DelayDevice(backing, { host: realHost });
    const stage = new Stage(delay);
    const client = stage.connect();
    await client.enter();
    const hold = delay.hold();
    void client.request({ command: WRITE, lengthBytes: 10 }, filled(10, 7));
    await turn();
    if (who.startsWith('one that breaks')) client.send(Buffer.alloc(REQUEST_BYTES, 0x41));
    const closed = stage.server.close(0);
    await stage.host.advance(1000);
    // The server waits for no device that hangs; nor does it say that it has done what it was given.
    await closed;
    expect([stage.server.clientCount, client.isClosed]).toEqual([0, false]);
    hold.release();
    await client.closed();
    const found = filled(10, 0);
    await backing.read(0, found);
    expect(found).toEqual(filled(10, 7));
  });

  test.each(['the server ends', 'the client says that this was all'])(
    'half a write, of which some is being written already, when %s',
    async (who) => {
      const backing = memory();
      const delay = new DelayDevice(backing, { host: realHost });
      const stage = new Stage(delay);
      const client = stage.connect();
      await client.enter();
      const hold = delay.hold();
      const unitBytes = MIB;
      void client.request({ command: WRITE, lengthBytes: 2 * unitBytes }, filled(unitBytes + 10, 7));
      await turn();
      let closed = Promise.resolve();
      if (who === 'the server ends') closed = stage.server.close(5000);
      else client.wire.push(null);
      await turn();
      await stage.host.advance(1000);
      // Not even its end of the stream is: that is all that a client can see.
      expect(client.wire.writableEnded).toBe(false);
      hold.release();
      await client.closed();
      await closed;
      await stage.server.close(0);
      const found = filled(unitBytes + 10, 0);
      await backing.read(0, found);
      // `toEqual` looks at a million bytes one by one, for seconds.
      expect(Buffer.compare(found, Buffer.concat([filled(unitBytes, 7), filled(10, 0)]))).toBe(0);
    },
  );
});

test('a device is exchanged between two requests, and clients only wait', async () => {
  const [before, after] = [memory(), memory()];
  await after.write(0, filled(10, 9));
  const delay = new DelayDevice(before, { host: realHost });
  const hold = delay.hold();
  await using stage = new Stage(delay);
  const client = stage.connect();
  await client.enter();
  const early = client.request({ command: READ, lengthBytes: 10 });
  await turn();
  let letGo = (): void => undefined;
  const made = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  const exchange = stage.server.exchange('disk', async (old) => {
    expect(old).toBe(delay);
    await made;
    return after;
  });
  const late = client.request({ command: READ, lengthBytes: 10 });
  await turn();
  expect(client.answered).toEqual([]);
  hold.release();
  expect((await early).data[0]).toBe(0);
  await turn();
  expect(client.answered).toEqual([1]);
  letGo();
  await exchange;
  expect((await late).data[0]).toBe(9);
});

describe('a Unix socket', () => {
  async function withFolder(run: (folder: string) => Promise<void>): Promise<void> {
    const folder = await mkdtemp(join(tmpdir(), 'raidsim-socket-'));
    try {
      await run(folder);
    } finally {
      await rm(folder, { recursive: true });
    }
  }

  test('is its owner’s, in a folder that is made for it alone, and goes when the server goes', async () => {
    await withFolder(async (folder) => {
      const path = join(folder, 'new', 'nbd.sock');
      await using server = new NbdServer({ exports: [{ name: 'disk', device: memory() }] });
      expect(await server.listenUnix(path)).toBe(`nbd+unix:///?socket=${path}`);
      expect((await stat(join(folder, 'new'))).mode & 0o777).toBe(0o700);
      expect((await lstat(path)).mode & 0o077).toBe(0);
      await server.close();
      await expect(lstat(path)).rejects.toMatchObject({ code: 'ENOENT' });
    });
  });

  test('takes the place of one that nobody listens at, and of nothing else', async () => {
    await withFolder(async (folder) => {
      const [stale, live, file, link] = ['stale', 'live', 'file', 'link'].map((name) => join(folder, name));
      const other = createServer();
      await using _open = { [Symbol.asyncDispose]: async () => void other.close() };
      const first = await listenAt(other, live ?? '');
      expect(first.path).toBe(live);
      await writeFile(file ?? '', 'text');
      await symlink(stale ?? '', link ?? '');
      for (const path of [live, file, link]) {
        await expect(listenAt(createServer(), path ?? '')).rejects.toMatchObject({ code: 'BUSY' });
        await lstat(path ?? '');
      }
      // A process that is killed leaves its socket: here by a rename, which its server does not know of.
      const { rename } = await import('node:fs/promises');
      const dying = createServer();
      const made = await listenAt(dying, join(folder, 'before'));
      await rename(join(folder, 'before'), stale ?? '');
      await made.close();
      const again = await listenAt(createServer(), stale ?? '');
      await again.close();
    });
  });

  test('is not put where others could put theirs', async () => {
    await withFolder(async (folder) => {
      const { chmod } = await import('node:fs/promises');
      await chmod(folder, 0o777);
      await expect(listenAt(createServer(), join(folder, 's'))).rejects.toMatchObject({
        code: 'BAD_ARGUMENT',
      });
    });
  });

  test('may lie deeper than an address is long', async () => {
    await withFolder(async (folder) => {
      const path = join(folder, 'd'.repeat(120), 'nbd.sock');
      const { connectTo } = await import('../../lib/socket/unix.ts');
      if (process.platform !== 'linux') return;
      const server = createServer((socket) => socket.end('hello'));
      const socket = await listenAt(server, path);
      const client = await connectTo(path);
      expect(client).not.toBeNull();
      client?.destroy();
      await socket.close();
      expect(await connectTo(path)).toBeNull();
    });
  });
});

test('options are numbered as the protocol numbers them', () => {
  expect(options).toMatchObject({ EXPORT_NAME: 1, GO: 7, SET_META_CONTEXT: 10 });
});
