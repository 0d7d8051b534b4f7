/**
 * Large payload is received into memory that the device lends. Whatever becomes of a connection, all of it comes back, and what is given
 * back is written to by nobody: it may be another client's by then.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { DelayDevice } from '../../lib/device/delay.ts';
import type { Lender } from '../../lib/device/device.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { realHost } from '../../lib/host.ts';
import {
  commands,
  encodeClientFlags,
  encodeOption,
  encodeRequest,
  REQUEST_BYTES,
} from '../../lib/nbd/protocol.ts';
import { NbdServer } from '../../lib/nbd/server.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { Client, StillHost, turn } from './wire.ts';

const UNUSED = 0x5a;

/** Lends buffers, and keeps those that come back, full of a byte that nobody writes. */
class LendingDevice extends DelayDevice {
  readonly out = new Set<Uint8Array>();
  readonly back: Uint8Array[] = [];
  readonly memory: MemoryDevice;

  constructor(memory = new MemoryDevice({ sizeBytes: 4 * MIB })) {
    super(memory, { host: realHost });
    this.memory = memory;
  }

  override get lender(): Lender {
    return {
      lend: (lengthBytes) => {
        const lent = new Uint8Array(lengthBytes);
        this.out.add(lent);
        return lent;
      },
      takeBack: (lent) => {
        expect(this.out.delete(lent)).toBe(true);
        this.back.push(lent.fill(UNUSED));
      },
    };
  }

  expectAllBack(): void {
    expect(this.out.size).toBe(0);
    expect(this.back.every((lent) => lent.every((byte) => byte === UNUSED))).toBe(true);
  }

  /** What the device holds of a range: the one byte that is all of it. */
  async valueAt(offsetBytes: number, lengthBytes: number): Promise<number | null> {
    const bytes = new Uint8Array(lengthBytes);
    await this.memory.read(offsetBytes, bytes);
    return bytes.every((byte) => byte === bytes[0]) ? (bytes[0] ?? null) : null;
  }
}

function head(offsetBytes: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(REQUEST_BYTES);
  const request = {
    command: commands.WRITE,
    flags: 0,
    cookieHigh: 0,
    cookieLow: 1,
    offsetBytes,
    lengthBytes,
  };
  encodeRequest(request, bytes);
  return bytes;
}

async function until(isSo: () => boolean): Promise<void> {
  for (const end = performance.now() + 10_000; !isSo() && performance.now() < end; ) await turn(1);
  expect(isSo()).toBe(true);
}

describe('a connection that ends in the middle of payload', () => {
  /** Over a socket, of which Node reads into the memory that it was given last. */
  const begun = async (folder: string) => {
    const device = new LendingDevice();
    const server = new NbdServer({ exports: [{ name: 'disk', device }] });
    const path = join(folder, 'nbd.sock');
    await server.listenUnix(path);
    const client = connect(path);
    client.on('error', () => undefined);
    let received = 0;
    client.on('data', (bytes: Buffer) => {
      received += bytes.byteLength;
    });
    const greetingBytes = 18;
    await until(() => received === greetingBytes);
    client.write(encodeClientFlags(3));
    client.write(encodeOption({ option: 'EXPORT_NAME', name: 'disk' }));
    const exportBytes = 10;
    await until(() => received === greetingBytes + exportBytes);
    // One is under way, so that the session has something to wait for.
    const hold = device.hold({ only: ({ op }) => op === 'write' });
    client.write(Buffer.concat([head(0, 4 * KIB), Buffer.alloc(4 * KIB, 1)]));
    client.write(Buffer.concat([head(MIB, MIB), Buffer.alloc(300 * KIB, 2)]));
    await until(() => hold.waiting.length === 1 && device.out.size === 1);
    return { device, server, client, hold };
  };

  test.each<[string, (server: NbdServer, client: Socket) => Promise<unknown> | undefined]>([
    ['the server finishes, and more of it comes', (server) => server.close(2000)],
    ['the server is closed at once', (server) => server.close(0)],
    ['the client ends its side', (_server, client) => void client.end()],
    ['the client is gone', (_server, client) => void client.destroy()],
  ])('%s', async (_how, end) => {
    const folder = await mkdtemp(join(tmpdir(), 'raidsim-payload-'));
    const { device, server, client, hold } = await begun(folder);
    try {
      const ending = end(server, client);
      await turn();
      for (let more = 0; more < 4; more += 1) {
        if (client.writable) client.write(Buffer.alloc(50 * KIB, 3));
        await turn(20);
      }
      hold.release();
      await ending;
      await until(() => server.clientCount === 0);
      await until(() => device.out.size === 0);
      device.expectAllBack();
      expect([await device.valueAt(0, 4 * KIB), await device.valueAt(MIB, MIB)]).toEqual([1, 0]);
    } finally {
      client.destroy();
      await server.close(0);
      await rm(folder, { recursive: true });
    }
  });
});

describe('of writes that share memory', () => {
  const stage = async () => {
    const device = new LendingDevice();
    const host = new StillHost();
    const server = new NbdServer({ exports: [{ name: 'disk', device }], host });
    const client = new Client((wire) => server.accept(wire, 'test', {}));
    await client.enter();
    const write = (index: number) =>
      client.request({ command: commands.WRITE, offsetBytes: index * 64 * KIB }, Buffer.alloc(64 * KIB, 7));
    return { device, host, server, client, write };
  };

  test('those that came whole are answered, and of the one that did not there is nothing', async () => {
    const { device, host, server, client, write } = await stage();
    const answers = [write(0), write(1)];
    client.send(Buffer.concat([head(128 * KIB, 64 * KIB), Buffer.alloc(1000, 9)]));
    client.wire.push(null);
    for (const answer of answers) expect((await answer).error).toBe(0);
    await host.advance(10, 5);
    await until(() => client.isClosed);
    expect([await device.valueAt(0, 128 * KIB), await device.valueAt(128 * KIB, 64 * KIB)]).toEqual([7, 0]);
    device.expectAllBack();
    await server.close(0);
  });

  test('none that the device was not given yet happens after the connection was cut off', async () => {
    const { device, host, server, client, write } = await stage();
    const hold = device.hold({ only: ({ op }) => op === 'write' });
    // The second waits for more, since the device is busy with the first.
    for (const index of [0, 1]) void write(index);
    await turn();
    expect(hold.waiting.length).toBe(1);
    client.send(Buffer.alloc(REQUEST_BYTES, 0x41));
    await host.advance(10, 5);
    hold.release();
    await until(() => client.isClosed);
    await host.advance(10, 5);
    expect([await device.valueAt(0, 64 * KIB), await device.valueAt(64 * KIB, 64 * KIB)]).toEqual([7, 0]);
    device.expectAllBack();
    await server.close(0);
  });
});
