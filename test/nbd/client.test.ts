/**
 * The NBD client against a server that does as it is told, over wires without sockets and with a clock that the test
 * moves. Real servers: client-peers.slow.test.ts; servers that lie: client-hostile.test.ts.
 */
import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import { NbdDevice, type NbdOptions } from '../../lib/nbd/client.ts';
import { ClientMemory } from '../../lib/nbd/client-memory.ts';
import { commands, nbdErrors, type Request, transmissionFlags } from '../../lib/nbd/protocol.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes, runSeed } from '../conformance/seed.ts';
import { conformance } from '../conformance/suite.ts';
import { fullFlags, HandHost, type ServerShape, settle, TestServer } from './client-world.ts';

const { SEND_FLUSH, SEND_FUA, SEND_FAST_ZERO, SEND_WRITE_ZEROES, READ_ONLY } = transmissionFlags;

async function world(
  shape: Partial<ServerShape> = {},
  options: NbdOptions = {},
): Promise<{ readonly server: TestServer; readonly host: HandHost; readonly device: NbdDevice }> {
  const server = new TestServer(shape);
  const host = new HandHost();
  const device = await NbdDevice.open(server, { host, timeoutMs: 800, ...options });
  return { server, host, device };
}

/** What a promise has come to by now. */
function watched(promise: Promise<unknown>): { outcome: string } {
  const watch = { outcome: 'pending' };
  promise.then(
    () => {
      watch.outcome = 'done';
    },
    (error: { code?: string }) => {
      watch.outcome = error.code ?? String(error);
    },
  );
  return watch;
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  const watch = watched(promise);
  await promise.catch(() => undefined);
  return watch.outcome;
}

const page = (byte: number): Uint8Array => new Uint8Array(4 * KIB).fill(byte);
const isWrite = ({ command }: Request): boolean => command === commands.WRITE;

async function firstByte(device: NbdDevice, offsetBytes: number): Promise<number> {
  const target = page(0xee);
  await device.read(offsetBytes, target);
  expect(target.every((byte) => byte === target[0])).toBe(true);
  return target[0] ?? -1;
}

const content = randomBytes(seededRandom(runSeed), 64 * KIB);
const subject =
  (shape: Partial<ServerShape>, set: (server: TestServer) => void = () => undefined) =>
  async () => {
    const server = new TestServer({ sizeBytes: 64 * KIB, ...shape });
    set(server);
    return { device: await NbdDevice.open(server, { host: new HandHost() }) };
  };

conformance('an export', subject({}), { requests: 40 });
conformance(
  'an export that answers backwards, in pieces and holes',
  subject({}, (server) => {
    server.pieceBytes = 3000;
    server.backwards = true;
    server.holes = true;
  }),
  { requests: 40 },
);
conformance(
  'an export of an old server: no chunks, no block sizes, no zeroing, no flush',
  subject({ isStructured: false, hasStatus: false, sizes: null, flags: 1 | SEND_FUA }),
  { requests: 40 },
);
conformance(
  'an export in blocks of 4096 that flushes and has no FUA',
  subject({
    flags: 1 | SEND_FLUSH,
    sizes: { minimumBytes: 4096, preferredBytes: 8192, maximumPayloadBytes: 16 * KIB },
  }),
  { requests: 40 },
);
conformance(
  'a read-only export',
  subject({ flags: 1 | READ_ONLY }, (server) => {
    server.content.set(content);
  }),
  { readOnly: true, content },
);

test('limits are what the server says, or what a server has to take that does not say', async () => {
  const told = await world({
    sizes: { minimumBytes: 512, preferredBytes: 65_536, maximumPayloadBytes: MIB },
  });
  expect(told.device.limits).toEqual({
    sizeBytes: 256 * KIB,
    blockBytes: 512,
    preferredBytes: 65_536,
    readOnly: false,
  });
  const untold = await world({ sizes: null, sizeBytes: 10_000 });
  expect(untold.device.limits).toEqual({
    sizeBytes: 10_000,
    blockBytes: 1,
    preferredBytes: 4096,
    readOnly: false,
  });
});

test('a server that can make nothing durable is refused for writing, and says what is missing', async () => {
  await expect(world({ flags: 1 })).rejects.toMatchObject({
    code: 'NOT_SUPPORTED',
    message: expect.stringContaining('neither flush nor FUA'),
  });
  const { device } = await world({ flags: 1 }, { readOnly: true });
  expect(device.limits.readOnly).toBe(true);
});

test('where a server has FUA and no flush, every change is sent with FUA, so that a flush has nothing to do', async () => {
  const { server, device } = await world({ flags: fullFlags & ~SEND_FLUSH });
  await device.write(0, page(1));
  await device.writeZeroes(4096, 4096);
  await device.flush();
  expect(server.log).toEqual(['write 0+4096 fua', 'write_zeroes 4096+4096 fua']);
});

test('fua without FUA is a flush behind the write', async () => {
  const { server, device } = await world({ flags: fullFlags & ~SEND_FUA });
  await device.write(0, page(1), { fua: true });
  expect(server.log).toEqual(['write 0+4096', 'flush']);
});

test('a discard is fast zeros, and nothing where those are not to be had or would not be fast', async () => {
  const fast = await world();
  await fast.device.write(0, page(1));
  await fast.device.discard(0, 4096);
  expect(await firstByte(fast.device, 0)).toBe(0);
  const slow = await world();
  slow.server.verdict = ({ command }) => (command === commands.WRITE_ZEROES ? nbdErrors.ENOTSUP : 'do');
  await slow.device.write(0, page(1));
  await slow.device.discard(0, 4096);
  expect(await firstByte(slow.device, 0)).toBe(1);
  const none = await world({ flags: fullFlags & ~SEND_FAST_ZERO });
  await none.device.discard(0, 4096);
  expect(none.server.log).toEqual([]);
});

test('many requests are on the wire at once, and answers in any order find theirs', async () => {
  const { server, device } = await world();
  server.verdict = () => 'hold';
  const targets = Array.from({ length: 40 }, () => page(0xee));
  for (let index = 0; index < 40; index += 1)
    server.content.fill(index + 1, index * 4096, (index + 1) * 4096);
  const reads = targets.map((target, index) => device.read(index * 4096, target));
  await settle();
  expect(server.session.held.length).toBe(40);
  server.session.held.reverse();
  server.session.release();
  await Promise.all(reads);
  expect(targets.map((target) => target[4095])).toEqual(targets.map((_, index) => index + 1));
});

test('a large request is cut in pieces, and settles when all of them have', async () => {
  const { server, device } = await world({ sizeBytes: 8 * MIB });
  const writes: Request[] = [];
  server.verdict = (request) => {
    writes.push(request);
    return request.offsetBytes === 0 ? nbdErrors.EIO : 'hold';
  };
  const write = watched(device.write(0, new Uint8Array(4 * MIB)));
  await settle();
  expect(writes.length).toBe(4);
  expect(write.outcome).toBe('pending');
  server.session.release();
  await settle();
  expect(write.outcome).toBe('WRITE_FAILED');
});

test('two changes of one place are never on the wire together', async () => {
  const { server, device } = await world();
  server.verdict = () => 'hold';
  const first = watched(device.write(0, page(1)));
  const second = watched(device.write(2048, page(2)));
  await settle();
  expect(server.log).toEqual(['write 0+4096']);
  server.session.release();
  await settle();
  expect(server.log).toEqual(['write 0+4096', 'write 2048+4096']);
  expect([first.outcome, second.outcome]).toEqual(['done', 'pending']);
  server.session.release();
  await settle();
  expect(second.outcome).toBe('done');
});

const refusals: readonly (readonly [keyof typeof nbdErrors, string, string])[] = [
  ['EIO', 'MEDIUM_ERROR', 'WRITE_FAILED'],
  ['ENOMEM', 'MEDIUM_ERROR', 'WRITE_FAILED'],
  ['EINVAL', 'MEDIUM_ERROR', 'WRITE_FAILED'],
  ['ENOSPC', 'MEDIUM_ERROR', 'NO_SPACE'],
  ['EPERM', 'MEDIUM_ERROR', 'WRITE_FAILED'],
];
for (const isStructured of [true, false]) {
  test(`what a server refuses is the error that the same would be of a disk (${isStructured ? 'chunks' : 'simple'})`, async () => {
    for (const [name, onRead, onWrite] of refusals) {
      const { server, device } = await world({ isStructured, hasStatus: isStructured });
      server.verdict = () => nbdErrors[name];
      expect(await codeOf(device.read(0, page(0)))).toBe(onRead);
      expect(await codeOf(device.write(0, page(0)))).toBe(onWrite);
      expect(await codeOf(device.writeZeroes(0, 4096))).toBe(onWrite);
      expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
      server.verdict = () => 'do';
      expect(await codeOf(device.flush()), 'and a flush fails for ever after').toBe('FLUSH_FAILED');
      expect(await codeOf(device.read(0, page(0)))).toBe('done');
    }
  });
}

test('extents come as they are told, and where nothing is told everything is data', async () => {
  const { device } = await world();
  await device.write(8192, page(1));
  expect(await device.blockStatus(4096, 12_288)).toEqual([
    { offsetBytes: 4096, lengthBytes: 4096, allocated: false, zero: true },
    { offsetBytes: 8192, lengthBytes: 4096, allocated: true, zero: false },
    { offsetBytes: 12_288, lengthBytes: 4096, allocated: false, zero: true },
  ]);
  const plain = await world({ hasStatus: false });
  expect(await plain.device.blockStatus(0, 8192)).toEqual([
    { offsetBytes: 0, lengthBytes: 8192, allocated: true, zero: false },
  ]);
});

test('close waits for what is in flight, then says goodbye', async () => {
  const { server, device } = await world();
  server.verdict = () => 'hold';
  const read = watched(device.read(0, page(0)));
  const close = watched(device.close());
  await settle();
  expect([read.outcome, close.outcome]).toEqual(['pending', 'pending']);
  server.session.release();
  await settle();
  expect([read.outcome, close.outcome]).toEqual(['done', 'done']);
  expect(server.log.at(-1)).toBe('disc');
});

test('a closed device leaves nothing behind that sleeps', async () => {
  const { host, device } = await world();
  await device.write(0, page(1));
  await device.close();
  await settle();
  expect(host.sleeping).toBe(0);
});

// A connection that is lost.

test('a server that was restarted is found again: reads and writes that were in flight are sent again', async () => {
  const { server, host, device } = await world();
  await device.write(0, page(1), { fua: true });
  server.verdict = () => 'hold';
  const target = page(0xee);
  const read = watched(device.read(0, target));
  const write = watched(device.write(8192, page(2)));
  await settle();
  server.die();
  server.verdict = () => 'do';
  await host.pass(120);
  expect([read.outcome, write.outcome]).toEqual(['pending', 'pending']);
  server.isUp = true;
  await host.pass(400);
  expect([read.outcome, write.outcome]).toEqual(['done', 'done']);
  expect(target[0]).toBe(1);
  expect(await firstByte(device, 8192)).toBe(2);
});

test('what was acknowledged and not flushed is written again, in its order, before anything else', async () => {
  const { server, host, device } = await world();
  await device.write(0, page(1));
  await device.flush();
  await device.write(0, page(2));
  await device.write(4096, page(3));
  await device.write(2048, page(4));
  await device.writeZeroes(16_384, 4096, { mayUnmap: false });
  server.die({ loses: 'unflushed' });
  server.isUp = true;
  server.log.length = 0;
  const flush = device.flush();
  await host.pass(1000);
  await flush;
  expect(server.log).toEqual([
    'write 0+4096',
    'write 4096+4096',
    'write 2048+4096',
    'write_zeroes 16384+4096',
    'flush',
  ]);
  expect(server.durable[0]).toBe(2);
  expect(server.durable[2048]).toBe(4);
  expect(server.durable[6144]).toBe(3);
});

test('a read after the loss sees what was acknowledged before it', async () => {
  const { server, host, device } = await world();
  await device.write(0, page(1), { fua: true });
  await device.write(0, page(2));
  server.die({ loses: 'unflushed' });
  server.isUp = true;
  const target = page(0xee);
  const read = device.read(0, target);
  await host.pass(100);
  await read;
  expect(target[0]).toBe(2);
});

test('what a flush has covered is not written again', async () => {
  const { server, host, device } = await world();
  await device.write(0, page(1));
  await device.flush();
  server.die();
  server.isUp = true;
  server.log.length = 0;
  const read = device.read(4096, page(0));
  await host.pass(100);
  await read;
  expect(server.log.filter((line) => line.startsWith('write'))).toEqual([]);
});

test('a flush covers what was acknowledged when it was sent, and not what came during it', async () => {
  const { server, host, device } = await world();
  await device.write(0, page(1));
  server.verdict = ({ command }) => (command === commands.FLUSH ? 'hold' : 'do');
  const flush = device.flush();
  await settle();
  await device.write(4096, page(2));
  server.session.release();
  await flush;
  server.die();
  server.isUp = true;
  server.log.length = 0;
  const read = device.read(8192, page(0));
  await host.pass(100);
  await read;
  expect(server.log.filter((line) => line.startsWith('write'))).toEqual(['write 4096+4096']);
});

test('where more is unflushed than is kept, a lost connection is the end, at once and not at the next flush', async () => {
  const { server, host, device } = await world({}, { keepBytes: 8 * KIB });
  for (let at = 0; at < 3; at += 1) await device.write(at * 4096, page(1));
  server.die({ loses: 'unflushed' });
  server.isUp = true;
  await host.pass(100);
  expect(await codeOf(device.read(0, page(0)))).toBe('MEMBER_GONE');
  expect(await codeOf(device.flush())).toBe('MEMBER_GONE');
  expect(server.dials).toBe(1);
});

test('after a flush, what is kept begins anew', async () => {
  const { server, host, device } = await world({}, { keepBytes: 8 * KIB });
  for (let at = 0; at < 3; at += 1) await device.write(at * 4096, page(1));
  await device.flush();
  await device.write(0, page(2));
  server.die({ loses: 'unflushed' });
  server.isUp = true;
  const target = page(0xee);
  const read = device.read(0, target);
  await host.pass(100);
  await read;
  expect(target[0]).toBe(2);
});

test('a write that failed may or may not have happened, so a connection lost before the next flush is the end', async () => {
  const { server, host, device } = await world();
  server.verdict = ({ command }) => (command === commands.WRITE ? nbdErrors.EIO : 'do');
  expect(await codeOf(device.write(0, page(1)))).toBe('WRITE_FAILED');
  server.die();
  server.isUp = true;
  await host.pass(100);
  expect(await codeOf(device.read(0, page(0)))).toBe('MEMBER_GONE');
});

test('attempts to connect again are bounded, and then every request ends', async () => {
  const { server, host, device } = await world();
  server.die();
  await settle();
  const read = watched(device.read(0, page(0)));
  const write = watched(device.write(0, page(0)));
  await host.pass(4700);
  expect([read.outcome, write.outcome]).toEqual(['pending', 'pending']);
  await host.pass(200);
  expect([read.outcome, write.outcome]).toEqual(['MEMBER_GONE', 'MEMBER_GONE']);
  expect(server.dials).toBe(9);
  server.isUp = true;
  expect(await codeOf(device.read(0, page(0))), 'a device that has failed stays so').toBe('MEMBER_GONE');
  await device.close();
});

test('a device that nobody uses connects again only when it is asked for something', async () => {
  const { server, host, device } = await world();
  server.die();
  server.isUp = true;
  await host.pass(10_000);
  expect(server.dials).toBe(1);
  const read = device.read(0, page(0));
  await host.pass(10);
  await read;
  expect(server.dials).toBe(2);
});

test('a request that the server dies of is sent a bounded number of times', async () => {
  const { server, host, device } = await world();
  server.verdict = (request) => {
    if (!isWrite(request)) return 'do';
    server.die();
    server.isUp = true;
    return 'hold';
  };
  const write = watched(device.write(0, page(1)));
  const reads: Promise<unknown>[] = [];
  for (let count = 0; count < 20; count += 1) {
    reads.push(device.read(8192, page(0)).catch(() => undefined));
    await host.pass(2000);
  }
  expect(write.outcome).toBe('MEMBER_GONE');
  expect(server.log.filter((line) => line === 'write 0+4096').length).toBe(4);
  await Promise.all(reads);
});

test('a request that a server is always too busy leaving for is sent a bounded number of times', async () => {
  const { server, host, device } = await world();
  server.verdict = (request) => (isWrite(request) ? nbdErrors.ESHUTDOWN : 'do');
  const write = watched(device.write(0, page(1)));
  for (let count = 0; count < 10; count += 1) {
    device.read(8192, page(0)).catch(() => undefined);
    await host.pass(100);
  }
  expect(write.outcome).toBe('MEMBER_GONE');
  expect(server.log.filter((line) => line === 'write 0+4096').length).toBe(4);
});

test('attempts are counted anew once something was answered', async () => {
  const { server, host, device } = await world();
  for (let count = 0; count < 20; count += 1) {
    server.die();
    server.isUp = true;
    const read = device.read(0, page(0));
    await host.pass(100);
    await read;
  }
  expect(server.dials).toBe(21);
});

test('what had been sent goes before what had not, so that of two changes of a place the later one stands', async () => {
  const { server, host, device } = await world();
  server.verdict = (request) => (isWrite(request) ? 'hold' : 'do');
  const writes = [device.write(0, page(1)), device.write(0, page(2))];
  await settle();
  server.die();
  server.verdict = () => 'do';
  server.isUp = true;
  await host.pass(100);
  await Promise.all(writes);
  expect(await firstByte(device, 0)).toBe(2);
});

test('what is written again is never twice at one place on the wire', async () => {
  const { server, host, device } = await world();
  await device.write(0, page(1));
  await device.write(2048, page(2));
  server.die({ loses: 'unflushed' });
  server.isUp = true;
  server.log.length = 0;
  server.verdict = (request) => (isWrite(request) ? 'hold' : 'do');
  const read = device.read(2048, page(0));
  await host.pass(10);
  expect(server.log).toEqual(['write 0+4096']);
  server.session.release();
  await settle();
  expect(server.log).toEqual(['write 0+4096', 'write 2048+4096']);
  server.session.release();
  await read;
});

test('a read that raced with a write is no witness of what is there now', async () => {
  const { server, host, device } = await world();
  await device.write(0, page(1), { fua: true });
  // The read is answered, but its answer comes after that of a write which it has not seen.
  server.verdict = ({ command }) => (command === commands.READ ? 'hold' : 'do');
  const old = Buffer.from(server.content);
  const read = device.read(0, page(0));
  await settle();
  await device.write(2048, page(2), { fua: true });
  const now = server.content;
  server.content = old;
  server.session.release();
  await read;
  server.content = now;
  server.verdict = () => 'do';
  server.die();
  server.isUp = true;
  const again = watched(device.read(2048, page(0)));
  await host.pass(100);
  expect(again.outcome).toBe('done');
});

test('an answer with the cookie of another connection ends the connection', async () => {
  const { server, device } = await world({ isStructured: false, hasStatus: false });
  server.verdict = () => 'mute';
  const write = watched(device.write(0, page(1)));
  await settle();
  const answer = Buffer.alloc(16);
  answer.writeUInt32BE(0x67446698, 0);
  answer.writeUInt32BE(1, 8);
  answer.writeUInt32BE(1, 12);
  server.session.send(answer);
  await settle();
  expect(write.outcome).toBe('PROTOCOL_VIOLATION');
});

const strangers: readonly (readonly [string, (server: TestServer) => void])[] = [
  ['another size', (server) => (server.shape = { ...server.shape, sizeBytes: 128 * KIB })],
  ['read-only', (server) => (server.shape = { ...server.shape, flags: server.shape.flags | READ_ONLY })],
  [
    'larger blocks',
    (server) =>
      (server.shape = {
        ...server.shape,
        sizes: { minimumBytes: 4096, preferredBytes: 4096, maximumPayloadBytes: MIB },
      }),
  ],
  [
    'no zeroing',
    (server) =>
      (server.shape = { ...server.shape, flags: server.shape.flags & ~(SEND_WRITE_ZEROES | SEND_FAST_ZERO) }),
  ],
  ['no flush', (server) => (server.shape = { ...server.shape, flags: server.shape.flags & ~SEND_FLUSH })],
  ['nothing in it', (server) => server.content.fill(0)],
  ['an older content', (server) => server.content.fill(7, 0, 4096)],
];
for (const [what, change] of strangers) {
  test(`an export that comes back with ${what} is not written to, and the device has failed`, async () => {
    const { server, host, device } = await world();
    await device.write(0, page(1));
    await device.flush();
    await device.write(65_536, page(2));
    server.die();
    server.isUp = true;
    change(server);
    server.log.length = 0;
    const read = watched(device.read(4096, page(0)));
    await host.pass(1000);
    expect(read.outcome).toBe('MEMBER_GONE');
    expect(server.log.filter((line) => line.startsWith('write'))).toEqual([]);
  });
}

test('a server that says it is shutting down is given time to end, and what it refused goes to the next one', async () => {
  const { server, host, device } = await world();
  let isOnItsWayOut = true;
  server.verdict = () => (isOnItsWayOut ? nbdErrors.ESHUTDOWN : 'do');
  const write = watched(device.write(0, page(5)));
  await settle();
  isOnItsWayOut = false;
  await host.pass(100);
  expect(write.outcome).toBe('done');
  expect(server.log.slice(0, 2)).toEqual(['write 0+4096', 'disc']);
  expect(await firstByte(device, 0)).toBe(5);
});

test('what was read after a change had to be sent twice is remembered like anything else', async () => {
  const { server, host, device } = await world();
  let isOnItsWayOut = true;
  server.verdict = () => (isOnItsWayOut ? nbdErrors.ESHUTDOWN : 'do');
  const write = watched(device.write(0, page(5)));
  await settle();
  isOnItsWayOut = false;
  await host.pass(100);
  expect(write.outcome).toBe('done');
  await device.flush();
  server.content.fill(9, 65_536, 69_632);
  await device.read(65_536, page(0));
  server.die();
  server.isUp = true;
  server.content.fill(8, 65_536, 69_632);
  const read = watched(device.read(4096, page(0)));
  await host.pass(1000);
  expect(read.outcome, 'another content').toBe('MEMBER_GONE');
});

// Silence.

test('a server that hangs is a member that failed: every request ends within the timeout, later ones at once', async () => {
  const { server, host, device } = await world();
  server.verdict = () => 'hold';
  const requests = [device.read(0, page(0)), device.write(0, page(1)), device.flush()].map(watched);
  await host.pass(790);
  expect(requests.map(({ outcome }) => outcome)).toEqual(['pending', 'pending', 'pending']);
  await host.pass(210);
  expect(requests.map(({ outcome }) => outcome)).toEqual(['MEMBER_GONE', 'MEMBER_GONE', 'MEMBER_GONE']);
  expect(await codeOf(device.read(0, page(0)))).toBe('MEMBER_GONE');
  await device.close();
  expect(server.dials, 'silence is never followed by another try').toBe(1);
});

test('one request that hangs among many that do not is enough', async () => {
  const { server, host, device } = await world();
  server.verdict = ({ offsetBytes }) => (offsetBytes === 0 ? 'hold' : 'do');
  const stuck = watched(device.read(0, page(0)));
  for (let count = 0; count < 10; count += 1) {
    const other = watched(device.read(4096, page(0)));
    await host.pass(95);
    expect(['done', 'MEMBER_GONE']).toContain(other.outcome);
  }
  expect(stuck.outcome).toBe('MEMBER_GONE');
});

test('a sleep of our own convicts nobody: what comes late because we looked late is in time', async () => {
  const { server, host, device } = await world();
  server.verdict = () => 'hold';
  const read = watched(device.read(0, page(0)));
  await host.pass(450);
  // As after SIGSTOP and SIGCONT: the clock has run on, and one timer is late.
  host.jump(60_000);
  await host.pass(50);
  expect(read.outcome).toBe('pending');
  server.session.release();
  await settle();
  expect(read.outcome).toBe('done');
});

test('nor does it end a connection that is being made', async () => {
  const host = new HandHost();
  const server = new TestServer();
  let arrive = (): void => undefined;
  const dial: TestServer['dial'] = async () => {
    await new Promise<void>((resolve) => {
      arrive = resolve;
    });
    return await server.dial();
  };
  const open = watched(NbdDevice.open({ ...endpoint(server), dial }, { host, connectMs: 500 }));
  host.jump(60_000);
  await host.pass(1);
  arrive();
  await settle();
  expect(open.outcome).toBe('done');
});

test('nor one that is looked at before it is used', async () => {
  const memory = new ClientMemory(MIB);
  const { server, host, device } = await world({}, { memory });
  await device.write(0, page(1));
  server.verdict = () => 'hold';
  const again = await NbdDevice.open(server, { host, memory, connectMs: 500 });
  const resumed = watched(again.resume({ isOnly: true }));
  await settle();
  host.jump(60_000);
  await host.pass(1);
  expect(resumed.outcome).toBe('pending');
  server.session.release();
  await settle();
  expect(resumed.outcome).toBe('done');
});

test('a late answer touches no buffer: it may be somebody else’s by then', async () => {
  const { server, host, device } = await world();
  server.content.fill(0x55);
  server.verdict = () => 'hold';
  const target = page(0);
  const read = codeOf(device.read(0, target));
  await host.pass(1000);
  expect(await read).toBe('MEMBER_GONE');
  target.fill(0xaa);
  server.session.release();
  await settle();
  expect(target.every((byte) => byte === 0xaa)).toBe(true);
});

test('what was not sent by the end is never sent: the buffer may hold something else by then', async () => {
  const { server, host, device } = await world({ sizeBytes: 4 * MIB });
  await settle();
  server.session.wire.isStopped = true;
  const source = new Uint8Array(MIB).fill(0x11);
  const write = codeOf(device.write(0, source));
  await host.pass(1000);
  expect(await write).toBe('MEMBER_GONE');
  source.fill(0x99);
  server.session.wire.goOn();
  await settle();
  expect(server.content.includes(0x99)).toBe(false);
});

test('a write that is answered before all of it has left is done when all of it has', async () => {
  const { server, device } = await world({ sizeBytes: 4 * MIB, isStructured: false, hasStatus: false });
  await settle();
  const { session } = server;
  session.wire.isStopped = true;
  const write = watched(device.write(0, new Uint8Array(512 * KIB)));
  await settle();
  const early = Buffer.alloc(16);
  early.writeUInt32BE(0x67446698, 0);
  early.writeUInt32BE(1, 12);
  session.send(early);
  await settle();
  expect(write.outcome).toBe('pending');
  // It has no use for a second answer.
  server.verdict = () => 'mute';
  session.wire.goOn();
  await settle();
  expect(write.outcome).toBe('done');
});

test('a write that is answered before it has left, and never leaves, ends too', async () => {
  const { server, host, device } = await world({ sizeBytes: 4 * MIB, isStructured: false, hasStatus: false });
  await settle();
  server.session.wire.isStopped = true;
  const write = watched(device.write(0, new Uint8Array(512 * KIB)));
  await settle();
  const early = Buffer.alloc(16);
  early.writeUInt32BE(0x67446698, 0);
  early.writeUInt32BE(1, 12);
  server.session.send(early);
  await host.pass(1100);
  expect(write.outcome).toBe('MEMBER_GONE');
});

test('a handshake that does not end is given up', async () => {
  const host = new HandHost();
  const server = new TestServer();
  const silent = { ...endpoint(server), dial: async () => (await import('./client-world.ts')).wire()[0] };
  const open = watched(NbdDevice.open(silent, { host, connectMs: 300 }));
  await host.pass(290);
  expect(open.outcome).toBe('pending');
  await host.pass(20);
  expect(open.outcome).toBe('MEMBER_GONE');
  expect(host.sleeping).toBe(0);
});

test('a server that hangs when it is asked for what was lost is a member that failed', async () => {
  const { server, host, device } = await world();
  await device.write(0, page(1));
  server.die();
  server.isUp = true;
  server.verdict = () => 'hold';
  const read = watched(device.read(8192, page(0)));
  await host.pass(1200);
  expect(read.outcome).toBe('MEMBER_GONE');
});

describe('a fence', () => {
  /** Asked of a server that has a write, and hears of nothing until its wire goes on. */
  async function fencing() {
    const { server, host, device } = await world();
    server.verdict = () => 'hold';
    const write = watched(device.write(0, page(1)));
    await settle();
    server.session.wire.isStopped = true;
    return { server, host, device, write, fence: watched(device.fence(500)) };
  }

  test('is sure at once where no change is without an answer', async () => {
    const { server, host, device } = await world();
    await device.write(0, page(1));
    server.verdict = () => 'hold';
    const target = page(0xee);
    const read = watched(device.read(0, target));
    await settle();
    const fence = watched(device.fence(500));
    await settle();
    expect([fence.outcome, read.outcome]).toEqual(['done', 'CLOSED']);
    expect(target.every((byte) => byte === 0xee)).toBe(true);
    expect(await codeOf(device.read(0, page(0)))).toBe('CLOSED');
    await device.close();
    expect(host.sleeping).toBe(0);
  });

  test('has the server end what it has, and close; what is answered meanwhile is done', async () => {
    const { server, host, device, write, fence } = await fencing();
    const late = watched(device.write(4096, page(2)));
    await host.pass(400);
    expect([fence.outcome, write.outcome, late.outcome]).toEqual(['pending', 'pending', 'CLOSED']);
    server.session.wire.goOn();
    await settle();
    expect([fence.outcome, write.outcome]).toEqual(['done', 'done']);
    expect([server.log, server.dials]).toEqual([['write 0+4096', 'disc'], 1]);
  });

  test('a server that dies has ended what it had', async () => {
    const { server, host, device } = await world({}, { retryMs: [] });
    server.verdict = () => 'hold';
    const write = watched(device.write(0, page(1)));
    await settle();
    server.die();
    await settle();
    expect(write.outcome).toBe('MEMBER_GONE');
    expect(await codeOf(device.fence(500))).toBe('done');
    expect(host.sleeping).toBe(0);
  });

  test('is had also where we slept before we looked at what the server said', async () => {
    const { server, host, write, fence } = await fencing();
    host.jump(60_000);
    await host.pass(1);
    server.session.wire.goOn();
    await settle();
    expect([fence.outcome, write.outcome]).toEqual(['done', 'done']);
  });

  test('cannot be had of one that is silent, before or when it is asked', async () => {
    for (const isConvicted of [false, true]) {
      const { server, host, device } = await world();
      server.verdict = () => 'hold';
      const write = watched(device.write(0, page(1)));
      await settle();
      server.session.wire.isStopped = true;
      if (isConvicted) await host.pass(1000);
      const fence = watched(device.fence(500));
      await host.pass(490);
      expect([fence.outcome, write.outcome]).toEqual(
        isConvicted ? ['MEMBER_GONE', 'MEMBER_GONE'] : ['pending', 'pending'],
      );
      await host.pass(20);
      expect([fence.outcome, write.outcome]).toEqual(['MEMBER_GONE', isConvicted ? 'MEMBER_GONE' : 'CLOSED']);
    }
  });
});

function endpoint({ name, identity, exportName, secure, dial }: TestServer) {
  return { name, identity, exportName, secure, dial };
}
