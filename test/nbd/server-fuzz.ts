/**
 * Sessions that no client would have: handshakes and requests that are nearly right, cut anywhere, at any pace, left at any
 * moment. What is demanded of the server after so many of them is what it had before: no connection, no memory, no handle
 * more, and a client beside them all that has noticed nothing.
 */
import { expect } from 'vitest';
import { MemoryDevice } from '../../lib/device/memory.ts';
import {
  commands,
  encodeClientFlags,
  encodeOption,
  encodeRequest,
  type OptionRequest,
  REQUEST_BYTES,
} from '../../lib/nbd/protocol.ts';
import { NbdServer } from '../../lib/nbd/server.ts';
import { KIB } from '../../lib/units.ts';
import { until } from '../engine/members.ts';
import { heldHandles, heldMemory } from './held.ts';
import { Client, StillHost, turn, Wire } from './wire.ts';

export type Random = (below: number) => number;

const SIZE_BYTES = 256 * KIB;
const TOGETHER = 64;

export async function fuzzServer(sessions: number, random: Random): Promise<void> {
  const host = new StillHost();
  const device = new MemoryDevice({ sizeBytes: SIZE_BYTES });
  const tls = { sharedKeys: new Map([['alice', Buffer.alloc(16, 1)]]) };
  const server = new NbdServer({
    exports: [
      { name: 'disk', device },
      { name: 'shut', device, readOnly: true },
    ],
    tls,
    host,
  });
  const unhandled: unknown[] = [];
  const note = (error: unknown): void => void unhandled.push(error);
  process.on('unhandledRejection', note);
  process.on('uncaughtException', note);
  const bystander = new Client((wire) => server.accept(wire));
  await bystander.enter('shut');
  try {
    await together(server, random, host, 4 * TOGETHER);
    const before = { memory: await heldMemory(), handles: heldHandles() };
    await together(server, random, host, sessions);
    const asked = bystander.request({ command: commands.READ, lengthBytes: 100 });
    expect(await asked).toMatchObject({ error: 0 });
    expect(unhandled).toEqual([]);
    expect(server.clientCount).toBe(1);
    expect(server.heldBytes).toBe(0);
    await until(() => heldHandles() <= before.handles);
    // A hundred bytes for each session would show: with 5000 of them half a megabyte.
    expect(await heldMemory()).toBeLessThan(before.memory + 4 * 1024 * KIB);
  } finally {
    process.off('unhandledRejection', note);
    process.off('uncaughtException', note);
    const closed = server.close(0);
    await host.advance(500);
    await closed;
  }
}

async function together(server: NbdServer, random: Random, host: StillHost, sessions: number): Promise<void> {
  for (let done = 0; done < sessions; done += TOGETHER) {
    const wires = Array.from({ length: Math.min(TOGETHER, sessions - done) }, () => {
      const wire = new Wire();
      if (random(8) === 0) wire.stopReading();
      server.accept(wire, 'fuzz', { tls: random(50) === 0 });
      speak(wire, session(random), random);
      return wire;
    });
    await turn(4);
    // Whoever is still there is left alone by the server until its deadline, and by us from here on.
    for (const wire of wires) {
      wire.sent.length = 0;
      if (!wire.destroyed) {
        if (random(2) === 0) wire.destroy();
        else wire.push(null);
      }
    }
    await turn(4);
    for (const wire of wires) if (!wire.destroyed) wire.destroy();
    await host.advance(250);
  }
}

/** In chunks of any size, some of them a byte. */
function speak(wire: Wire, bytes: Buffer, random: Random): void {
  const most = [1, 3, 17, 100, 5000][random(5)] ?? 1;
  for (let at = 0; at < bytes.byteLength && !wire.destroyed; ) {
    const length = most === 1 && bytes.byteLength > 400 ? 64 : 1 + random(most);
    wire.push(bytes.subarray(at, at + length));
    at += length;
  }
  if (random(3) === 0 && !wire.destroyed) wire.push(null);
}

/** What a client may say, with mistakes of every kind. */
function session(random: Random): Buffer {
  const parts: Buffer[] = [encodeClientFlags(random(20) === 0 ? random(2 ** 32) : random(4))];
  for (let count = random(5); count > 0; count -= 1) parts.push(encodeOption(option(random)));
  if (random(6) !== 0) {
    parts.push(encodeOption({ option: 'GO', name: random(9) === 0 ? 'x' : 'disk', wants: [3] }));
    for (let count = random(8); count > 0; count -= 1) parts.push(request(random));
  }
  const bytes = Buffer.concat(parts);
  if (random(2) === 0) for (let count = 1 + random(4); count > 0; count -= 1) spoil(bytes, random);
  return random(5) === 0 ? bytes.subarray(0, random(bytes.byteLength + 1)) : bytes;
}

function option(random: Random): OptionRequest {
  const name = ['disk', 'shut', '', 'nothing', 'n'.repeat(300)][random(5)] ?? '';
  const queries = ['base:allocation', 'base:', 'x:y', 'base', 'q'.repeat(256)].slice(random(5));
  switch (random(10)) {
    case 0:
      return { option: 'STRUCTURED_REPLY' };
    case 1:
      return { option: 'LIST' };
    case 2:
      return { option: 'STARTTLS' };
    case 3:
      return { option: 'INFO', name, wants: Array.from({ length: random(6) }, () => random(6)) };
    case 4:
    case 5:
      return { option: 'SET_META_CONTEXT', name, queries };
    case 6:
      return { option: 'LIST_META_CONTEXT', name, queries };
    case 7:
      return {
        option: 'OTHER',
        number: random(2 ** 32),
        data: Buffer.alloc(random(4) === 0 ? 9000 : random(50)),
      };
    case 8:
      return random(4) === 0 ? { option: 'ABORT' } : { option: 'STRUCTURED_REPLY' };
    default:
      return { option: 'EXPORT_NAME', name };
  }
}

function request(random: Random): Buffer {
  const command = random(10);
  const extremes = [0, 1, SIZE_BYTES - 1, SIZE_BYTES, 2 ** 31, 2 ** 32 - 1, 2 ** 53 - 1];
  const offsetBytes = random(3) === 0 ? (extremes[random(7)] ?? 0) : random(SIZE_BYTES);
  const lengthBytes = random(6) === 0 ? (extremes[random(6)] ?? 0) : random(4096);
  const head = Buffer.alloc(REQUEST_BYTES);
  const flags = random(3) === 0 ? random(2 ** 16) : random(2);
  encodeRequest(
    { flags, command, cookieHigh: random(2 ** 32), cookieLow: random(2 ** 32), offsetBytes, lengthBytes },
    head,
  );
  if (command !== commands.WRITE || lengthBytes > 4096) return head;
  return Buffer.concat([head, Buffer.alloc(lengthBytes, random(256))]);
}

/** A byte, or a field of extremes, somewhere. */
function spoil(bytes: Buffer, random: Random): void {
  const at = random(bytes.byteLength);
  if (random(2) === 0 || at + 4 > bytes.byteLength) bytes[at] = random(256);
  else bytes.writeUInt32BE([0, 1, 0xffffffff, 0x7fffffff, 0x80000000, 4097][random(6)] ?? 0, at);
}
