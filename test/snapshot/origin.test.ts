import { copyFile, rm, stat, writeFile } from 'node:fs/promises';
import { afterAll, describe, expect, onTestFinished, test } from 'vitest';
import { DelayDevice, type Hold } from '../../lib/device/delay.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { Operation } from '../../lib/device/operation.ts';
import { OverlayDevice } from '../../lib/device/overlay.ts';
import { RecordDevice } from '../../lib/device/record.ts';
import { assert } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { decodeHeader, halfBytesFor, slotOffset, UNIT_BYTES } from '../../lib/snapshot/format.ts';
import { HeldWrites } from '../../lib/snapshot/held.ts';
import { SnapshotOrigin, type SnapshotStoreOptions } from '../../lib/snapshot/origin.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { conformance } from '../conformance/suite.ts';
import { scratchFolder } from '../device/scratch.ts';
import { turns, until } from '../engine/members.ts';
import { codeOf, contentOf, expectSame, imageOf, randomPiece } from './world.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

let count = 0;
const nextPath = () => `${folder}/store${count++}`;
const CHUNK = 4 * KIB;
const SIZE = 32 * CHUNK;
const host = { wallClock: () => 1_800_000_000_000, randomBytes: (n: number) => new Uint8Array(n).fill(7) };
const sleepless = { host: { sleep: () => Promise.resolve() } };
const ID = { origin: 'array' };
const filled = (chunks: number, value: number) => new Uint8Array(chunks * CHUNK).fill(value);

interface Made {
  readonly origin: SnapshotOrigin;
  readonly below: MemoryDevice;
  readonly store: MemoryDevice;
  /** After `origin` was closed, or a crash that kept everything. */
  readonly again: () => Promise<SnapshotOrigin>;
}

interface Around {
  readonly below?: (device: Device) => Device;
  readonly store?: (device: Device) => Device;
  readonly options?: Partial<SnapshotStoreOptions>;
}

/** Chunk c is full of c + 1. */
async function make(around: Around = {}): Promise<Made> {
  const below = new MemoryDevice({ sizeBytes: SIZE, blockBytes: 512 });
  for (let chunk = 0; chunk < 32; chunk += 1) await below.write(chunk * CHUNK, filled(1, chunk + 1));
  const store = new MemoryDevice({ sizeBytes: 2 * MIB });
  const options = { ...ID, limitBytes: 256 * CHUNK, ...around.options };
  const over = (device: Device, wrap: ((device: Device) => Device) | undefined) => wrap?.(device) ?? device;
  const origin = await SnapshotOrigin.create(
    over(below, around.below),
    over(store, around.store),
    host,
    options,
  );
  const again = () => {
    const low = new MemoryDevice({ sizeBytes: SIZE, memory: below.memory, blockBytes: 512 });
    const side = new MemoryDevice({ sizeBytes: 2 * MIB, memory: store.memory });
    return SnapshotOrigin.open(low, side, host, ID);
  };
  return { origin, below, store, again };
}

const start = Buffer.concat(Array.from({ length: 32 }, (_, chunk) => filled(1, chunk + 1)));

conformance('an origin with two snapshots', async () => {
  const { origin } = await make();
  await origin.take('one');
  await origin.write(3 * CHUNK, filled(5, 200));
  await origin.take('two');
  return { device: origin };
});
conformance('an origin whose store is too small', async () => {
  const { origin } = await make({ options: { limitBytes: 5 * CHUNK } });
  await origin.take('one');
  return { device: origin };
});
conformance(
  'a snapshot of what has been written over since, in part',
  async () => {
    const { origin } = await make({ options: { chunkBytes: 8 * KIB } });
    await origin.take('one');
    await origin.write(3 * CHUNK + 512, filled(5, 200));
    await origin.writeZeroes(20 * CHUNK, 3 * CHUNK);
    return { device: origin.openSnapshot('one'), dispose: () => origin.close() };
  },
  { readOnly: true, content: start },
);
conformance(
  'a clone of a snapshot',
  async () => {
    const { origin } = await make();
    await origin.take('one');
    await origin.write(3 * CHUNK, filled(5, 200));
    const clone = await OverlayDevice.open(origin.openSnapshot('one'), nextPath(), { create: true });
    return { device: clone, dispose: () => origin.close() };
  },
  { content: start },
);

describe('an instant between writes', () => {
  test('writes under way are in it, those that come while it is taken are not, and it is flushed before it is on record', async () => {
    const delay = { current: null as DelayDevice | null };
    const record = { current: null as RecordDevice | null };
    const { origin } = await make({
      below: (device) => {
        record.current = new RecordDevice(device);
        delay.current = new DelayDevice(record.current, sleepless);
        return delay.current;
      },
    });
    const hold = delay.current?.hold({ only: ({ op }) => op === 'write' });
    const early = origin.write(0, filled(1, 201));
    const taking = origin.take('one');
    await Promise.resolve();
    await Promise.resolve();
    const late = origin.write(0, filled(1, 202));
    hold?.release();
    await Promise.all([early, taking, late]);
    const expected = Buffer.from(start);
    expected.set(filled(1, 201));
    expectSame('one', (await imageOf(origin, 'one')) as Buffer, expected);
    const operations = (record.current?.log ?? [])
      .filter(({ event }) => event === 'finish')
      .map(({ operation }) => operation.op);
    expect(operations.filter((op) => op !== 'read')).toEqual(['write', 'flush', 'write']);
    await origin.close();
  });

  test('two writers to one chunk that is saved: saved once, both arrive, are read at once, and neither reaches the origin before it is safe', async () => {
    const delay = { current: null as DelayDevice | null };
    const record = { current: null as RecordDevice | null };
    const { origin, below } = await make({
      below: (device) => {
        record.current = new RecordDevice(device);
        return record.current;
      },
      store: (device) => {
        delay.current = new DelayDevice(device, sleepless);
        return delay.current;
      },
    });
    await origin.take('one');
    record.current?.clear();
    const hold = delay.current?.hold({ only: ({ op }) => op === 'flush' });
    const first = origin.write(5 * CHUNK, new Uint8Array(512).fill(201));
    const second = origin.write(5 * CHUNK + 512, new Uint8Array(512).fill(202));
    const elsewhere = origin.read(9 * CHUNK, new Uint8Array(512));
    await elsewhere;
    await first;
    for (let turn = 0; turn < 50; turn += 1) await Promise.resolve();
    expect(hold?.waiting).toHaveLength(1);
    const seen = new Uint8Array(512);
    await origin.read(5 * CHUNK, seen);
    expect(seen).toEqual(new Uint8Array(512).fill(201));
    expect(Buffer.from(below.memory).compare(start)).toBe(0);
    hold?.release();
    await second;
    await origin.flush();
    const log = record.current?.log ?? [];
    const reads = log.filter(
      ({ event, operation }) =>
        event === 'start' &&
        operation.op === 'read' &&
        operation.offsetBytes === 5 * CHUNK &&
        operation.lengthBytes === CHUNK,
    );
    expect(reads).toHaveLength(1);
    const expected = Buffer.from(start);
    expected.fill(201, 5 * CHUNK, 5 * CHUNK + 512).fill(202, 5 * CHUNK + 512, 5 * CHUNK + 1024);
    expectSame('origin', await contentOf(origin), expected);
    expectSame('one', (await imageOf(origin, 'one')) as Buffer, start);
    await origin.close();
  });

  test('a read of a snapshot that is overtaken by a write still sees what was there', async () => {
    const delay = { current: null as DelayDevice | null };
    const { origin } = await make({
      below: (device) => {
        delay.current = new DelayDevice(device, sleepless);
        return delay.current;
      },
    });
    await origin.take('one');
    await using snapshot = origin.openSnapshot('one');
    const hold = delay.current?.hold({ only: (each) => each.op === 'read' && each.lengthBytes === SIZE });
    const seen = Buffer.alloc(SIZE);
    const reading = snapshot.read(0, seen);
    await origin.write(4 * CHUNK + 512, filled(3, 200));
    expect(hold?.waiting).toHaveLength(1);
    hold?.release();
    await reading;
    expectSame('one', seen, start);
    await snapshot.close();
    await origin.close();
  });

  test('a second write to a chunk asks nothing of the store, with ten snapshots as with one', async () => {
    const record = { current: null as RecordDevice | null };
    const { origin } = await make({
      store: (device) => {
        record.current = new RecordDevice(device);
        return record.current;
      },
    });
    const costs: number[] = [];
    for (let index = 0; index < 10; index += 1) {
      await origin.take(`s${index}`);
      record.current?.clear();
      await origin.write(0, filled(1, 100 + index));
      await origin.flush();
      costs.push(record.current?.log.length ?? 0);
      record.current?.clear();
      await origin.write(0, filled(1, 150 + index));
      await origin.flush();
      expect(record.current?.log).toHaveLength(0);
    }
    expect(new Set(costs).size).toBe(1);
    expect(origin.usage().usedBytes).toBe(10 * CHUNK);
    await origin.close();
  });
});

describe('a store that has no room, or does not work', () => {
  test('when it is full the oldest snapshot becomes invalid, whoever reads it is told, and the others stay', async () => {
    const { origin, again } = await make({ options: { limitBytes: 6 * CHUNK } });
    await origin.take('one');
    await origin.write(0, filled(4, 201));
    await origin.take('two');
    const two = await contentOf(origin);
    const reader = origin.openSnapshot('one');
    await origin.write(0, filled(4, 202));
    await origin.flush();
    expect(origin.list().map(({ name, state }) => `${name} ${state}`)).toEqual(['one invalid', 'two valid']);
    expect(await codeOf(() => reader.read(SIZE - 512, new Uint8Array(512)))).toBe('REDUNDANCY_LOST');
    await reader.close();
    expectSame('two', (await imageOf(origin, 'two')) as Buffer, two);
    await origin.write(0, filled(32, 203));
    expect(origin.list().map(({ state }) => state)).toEqual(['invalid', 'invalid']);
    expect(origin.usage()).toEqual({ limitBytes: 6 * CHUNK, usedBytes: 0 });
    await origin.close();
    await using reopened = await again();
    expect(reopened.list().map(({ state }) => state)).toEqual(['invalid', 'invalid']);
    expect(await codeOf(async () => reopened.openSnapshot('two'))).toBe('REDUNDANCY_LOST');
    await reopened.delete('one');
    await reopened.delete('two');
    await reopened.take('one');
    expect(reopened.list()).toHaveLength(1);
  });

  test('a file system that is full costs the snapshot, durably, and not the write', async () => {
    const fault = { current: null as FaultDevice | null };
    const { origin, again } = await make({
      store: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await origin.take('one');
    const slots = 2 * MIB - 256 * CHUNK;
    fault.current?.add({
      on: 'write',
      range: {
        offsetBytes: UNIT_BYTES + 2 * halfBytesFor(256),
        lengthBytes: slots - UNIT_BYTES - 2 * halfBytesFor(256),
      },
      fault: { kind: 'error', code: 'NO_SPACE' },
    });
    await origin.write(0, filled(1, 201));
    await origin.flush();
    expect(origin.list()[0]?.state).toBe('invalid');
    // As a crash leaves it.
    await using reopened = await again();
    expect(reopened.list()[0]?.state).toBe('invalid');
    expect((await contentOf(reopened))[0]).toBe(201);
    await origin.close();
  });

  test.each([1, 2])(
    'of copies that find no room one after the other, the first costs a snapshot, and none a write: %i snapshots',
    async (snapshotCount) => {
      const slotsFrom = UNIT_BYTES + 2 * halfBytesFor(256);
      const range = { offsetBytes: slotsFrom, lengthBytes: 2 * MIB - 256 * CHUNK - slotsFrom };
      const made = { full: null as FaultDevice | null, delay: null as DelayDevice | null };
      const { origin } = await make({
        store: (device) => {
          made.full = new FaultDevice(device);
          made.delay = new DelayDevice(made.full, sleepless);
          return made.delay;
        },
      });
      for (let snapshot = 0; snapshot < snapshotCount; snapshot += 1) await origin.take(`${snapshot}`);
      const holds: Hold[] = [];
      const writes: Promise<void>[] = [];
      for (const [turn, chunk] of [0, 8].entries()) {
        let copies = 0;
        // The first hold is for one copy; whatever comes after it waits in the second.
        const only = (operation: Operation): boolean => {
          if (operation.op !== 'write' || operation.offsetBytes < slotsFrom) return false;
          copies += 1;
          return turn > 0 || copies === 1;
        };
        const hold = made.delay?.hold({ only });
        assert(hold !== undefined, 'the store has been made');
        writes.push(origin.write(chunk * CHUNK, filled(8, 201), { fua: true }));
        await until(() => hold.waiting.length === 1);
        holds.push(hold);
      }
      for (const hold of holds) {
        made.full?.add({ on: 'write', range, when: 'once', fault: { kind: 'error', code: 'NO_SPACE' } });
        hold.release();
        await turns(50);
      }
      await Promise.all(writes);
      await origin.flush();
      const states = origin.list().map(({ state }) => state);
      expect(states).toEqual(snapshotCount === 1 ? ['invalid'] : ['invalid', 'valid']);
      if (snapshotCount === 2) expectSame('1', (await imageOf(origin, '1')) as Buffer, start);
      await origin.close();
    },
  );

  test('a store that does not flush: who flushes is told, later writes that need it are too, no others, and the snapshot stays right', async () => {
    const fault = { current: null as FaultDevice | null };
    const { origin, below, again } = await make({
      store: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await origin.take('one');
    await origin.write(0, filled(1, 201));
    await origin.flush();
    fault.current?.add({ on: 'flush', fault: { kind: 'error', code: 'FLUSH_FAILED' } });
    expect(await codeOf(() => origin.write(CHUNK, filled(1, 202)))).toBe('done');
    for (let time = 0; time < 3; time += 1) expect(await codeOf(() => origin.flush())).toBe('WRITE_FAILED');
    expect(await codeOf(() => origin.write(2 * CHUNK, filled(1, 203)))).toBe('WRITE_FAILED');
    expect(await codeOf(() => origin.write(CHUNK, filled(1, 204)))).toBe('WRITE_FAILED');
    expect(await codeOf(() => origin.write(0, filled(1, 205)))).toBe('done');
    expect(await codeOf(() => origin.take('two'))).toBe('WRITE_FAILED');
    // What was acknowledged is read for as long as it is held, and is not where it would be past the snapshot.
    const expected = Buffer.from(start)
      .fill(205, 0, CHUNK)
      .fill(202, CHUNK, 2 * CHUNK);
    expectSame('origin', await contentOf(origin), expected);
    expect(Buffer.from(below.memory)[CHUNK]).toBe(2);
    expectSame('one', (await imageOf(origin, 'one')) as Buffer, start);
    await using reopened = await again();
    expectSame('one', (await imageOf(reopened, 'one')) as Buffer, start);
    expect(await codeOf(() => origin.close())).toBe('WRITE_FAILED');
  });

  test('what a store that does not flush keeps from leaving is in the origin when all snapshots are let go', async () => {
    const fault = { current: null as FaultDevice | null };
    const { origin, below } = await make({
      store: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await origin.take('one');
    fault.current?.add({ on: 'flush', fault: { kind: 'error', code: 'FLUSH_FAILED' } });
    for (const chunk of [1, 2, 5]) await origin.write(chunk * CHUNK, filled(1, 202));
    expect(await codeOf(() => origin.flush())).toBe('WRITE_FAILED');
    const expected = Buffer.from(start);
    for (const chunk of [1, 2, 5]) expected.fill(202, chunk * CHUNK, (chunk + 1) * CHUNK);
    let whenRemoved: Uint8Array = new Uint8Array();
    await origin.letGo(() => {
      whenRemoved = Buffer.from(below.memory.slice(0, SIZE));
      return Promise.resolve();
    });
    expectSame('when the store is removed', whenRemoved, start);
    expectSame('below', new Uint8Array(below.memory, 0, SIZE), expected);
  });

  test('however many writes come at once, what is held is two batches at most', async () => {
    let most = 0;
    const { hold } = HeldWrites.prototype;
    HeldWrites.prototype.hold = function (this: HeldWrites, ...args) {
      hold.apply(this, args);
      most = Math.max(most, this.size);
    };
    onTestFinished(() => {
      HeldWrites.prototype.hold = hold;
    });
    const sizeBytes = 12 * MIB;
    const below = new MemoryDevice({ sizeBytes, blockBytes: 512 });
    const store = new MemoryDevice({ sizeBytes: 16 * MIB });
    await using origin = await SnapshotOrigin.create(below, store, host, { ...ID, limitBytes: 13 * MIB });
    await origin.take('one');
    const writes = Array.from({ length: sizeBytes / CHUNK }, (_, chunk) =>
      origin.write(chunk * CHUNK, filled(1, 1 + (chunk % 200))),
    );
    await Promise.all(writes);
    await origin.flush();
    expect(most).toBeLessThanOrEqual(2 * 512);
    expect(Buffer.from(below.memory).every((byte, at) => byte === 1 + (Math.floor(at / CHUNK) % 200))).toBe(
      true,
    );
  });

  test('an origin that does not take what is held: who flushes is told until it does, and nothing is lost', async () => {
    const fault = { current: null as FaultDevice | null };
    const { origin } = await make({
      below: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await origin.take('one');
    const rule = fault.current?.add({
      on: 'write',
      range: { offsetBytes: CHUNK, lengthBytes: CHUNK },
      fault: { kind: 'error', code: 'WRITE_FAILED' },
    });
    await Promise.all([0, 1, 2].map((chunk) => origin.write(chunk * 2 * CHUNK, filled(1, 201))));
    expect(await codeOf(() => origin.write(CHUNK + 512, new Uint8Array(512).fill(202)))).toBe('done');
    expect(await codeOf(() => origin.flush())).toBe('WRITE_FAILED');
    const expected = Buffer.from(start);
    for (const chunk of [0, 2, 4]) expected.fill(201, chunk * CHUNK, (chunk + 1) * CHUNK);
    expected.fill(202, CHUNK + 512, CHUNK + 1024);
    expectSame('origin', await contentOf(origin), expected);
    if (rule !== undefined) fault.current?.remove(rule);
    expect(await codeOf(() => origin.flush())).toBe('done');
    expectSame('origin', await contentOf(origin), expected);
    expectSame('one', (await imageOf(origin, 'one')) as Buffer, start);
    await origin.close();
  });

  test('a place that takes no write is the business of who writes there, and of who flushes: everybody else goes on', () =>
    withSeed(runSeed, async () => {
      const random = seededRandom(runSeed);
      for (let round = 0; round < 60; round += 1) {
        const fault = { current: null as FaultDevice | null };
        const { origin, below } = await make({
          below: (device) => {
            fault.current = new FaultDevice(device);
            return fault.current;
          },
        });
        await origin.take('one');
        const bad = { offsetBytes: random(31) * CHUNK + 512 * random(8), lengthBytes: 512 * (1 + random(8)) };
        const isHit = (offsetBytes: number, lengthBytes: number) =>
          offsetBytes < bad.offsetBytes + bad.lengthBytes && bad.offsetBytes < offsetBytes + lengthBytes;
        const rule = fault.current?.add({
          on: 'write',
          range: bad,
          fault: { kind: 'error', code: 'WRITE_FAILED' },
        });
        const expected = Buffer.from(start);
        let mayBeStuck = false;
        for (let step = 0; step < 30; step += 1) {
          const { offsetBytes, bytes } = randomPiece(random, SIZE, 512);
          const lengthBytes = bytes.byteLength;
          const what = random(5);
          const outcome = await codeOf(() =>
            what === 0
              ? origin.flush()
              : what === 1
                ? origin.writeZeroes(offsetBytes, lengthBytes)
                : origin.write(offsetBytes, bytes, { fua: what === 2 }),
          );
          const which = `round ${round}, step ${step}`;
          // Also where it fails: a part of it may be held.
          mayBeStuck ||= what > 2 && isHit(offsetBytes, lengthBytes);
          if (what === 0) {
            // Only what was written there can be in the way.
            if (!mayBeStuck) expect(outcome, which).toBe('done');
          } else if (outcome === 'done') {
            expected.set(what === 1 ? new Uint8Array(lengthBytes) : bytes, offsetBytes);
          } else {
            expect(isHit(offsetBytes, lengthBytes), which).toBe(true);
            // What of it arrived is known to nobody else: the origin may have taken the beginning, and what is held is as it was.
            const seen = Buffer.alloc(lengthBytes);
            await origin.read(offsetBytes, seen);
            expected.set(seen, offsetBytes);
          }
          expectSame(`origin, ${which}`, await contentOf(origin), expected);
        }
        expectSame('one', (await imageOf(origin, 'one')) as Buffer, start);
        if (rule !== undefined) fault.current?.remove(rule);
        await origin.flush();
        expectSame(`below, round ${round}`, new Uint8Array(below.memory, 0, SIZE), expected);
        await origin.close();
      }
    }));

  test('bytes that the origin refused are replaced by what it takes in their place, and then nobody is told of them', async () => {
    const fault = { current: null as FaultDevice | null };
    const { origin } = await make({
      below: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await origin.take('one');
    const rule = fault.current?.add({
      on: 'write',
      range: { offsetBytes: CHUNK, lengthBytes: 512 },
      fault: { kind: 'error', code: 'WRITE_FAILED' },
    });
    await origin.write(0, filled(3, 201));
    for (let time = 0; time < 2; time += 1) expect(await codeOf(() => origin.flush())).toBe('WRITE_FAILED');
    expect(await codeOf(() => origin.take('two'))).toBe('WRITE_FAILED');
    expect(await codeOf(() => origin.write(CHUNK, filled(1, 202)))).toBe('WRITE_FAILED');
    expect(await codeOf(() => origin.letGo(() => Promise.reject(new Error('removed'))))).toBe('WRITE_FAILED');
    const expected = Buffer.from(start);
    expected.fill(201, 0, 3 * CHUNK);
    expectSame('origin', await contentOf(origin), expected);
    if (rule !== undefined) fault.current?.remove(rule);
    // Half of it now, the other half with a flush.
    await origin.write(CHUNK + 512, filled(1, 203).subarray(0, CHUNK - 512), { fua: true });
    expected.fill(203, CHUNK + 512, 2 * CHUNK);
    expectSame('origin', await contentOf(origin), expected);
    await origin.flush();
    expectSame('origin', await contentOf(origin), expected);
    await origin.take('two');
    await origin.close();
  });
});

describe('a place that the origin does not take, and then cannot read either', () => {
  /** As a raid5 without a member is, whose other member refuses a write: nobody knows what is there. */
  const bad = { offsetBytes: 3 * CHUNK, lengthBytes: 1024 };

  test('is read as it was written, whatever else of it is asked for', async () => {
    const fault = { current: null as FaultDevice | null };
    const { origin } = await make({
      below: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await origin.take('one');
    fault.current?.add({ on: 'write', range: bad, fault: { kind: 'error', code: 'WRITE_FAILED' } });
    const expected = Buffer.from(start);
    for (const [offsetBytes, lengthBytes, value] of [
      [bad.offsetBytes, bad.lengthBytes, 201],
      // Held from both sides of it, the later chunk first.
      [5 * CHUNK, 512, 202],
      [2 * CHUNK + 512, 512, 203],
    ] as const) {
      await origin.write(offsetBytes, new Uint8Array(lengthBytes).fill(value));
      expected.fill(value, offsetBytes, offsetBytes + lengthBytes);
    }
    expect(await codeOf(() => origin.flush())).toBe('WRITE_FAILED');
    fault.current?.add({ on: 'read', range: bad, fault: { kind: 'error', code: 'REDUNDANCY_LOST' } });
    for (let from = 0; from < 8 * CHUNK; from += 512) {
      for (const lengthBytes of [512, 1024, 1536, CHUNK, 3 * CHUNK]) {
        // In two buffers, of which neither ends where anything else does.
        const targets = [new Uint8Array(300), new Uint8Array(lengthBytes - 300)];
        await origin.read(from, targets);
        const which = `${lengthBytes} bytes at ${from}`;
        expectSame(which, Buffer.concat(targets), expected.subarray(from, from + lengthBytes));
      }
    }
    await expect(origin.close()).rejects.toMatchObject({ code: 'WRITE_FAILED' });
  });

  test('is an error where more of it is asked for than was written', async () => {
    const fault = { current: null as FaultDevice | null };
    const { origin } = await make({
      below: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await origin.take('one');
    fault.current?.add({ on: 'write', range: bad, fault: { kind: 'error', code: 'WRITE_FAILED' } });
    await origin.write(bad.offsetBytes, new Uint8Array(512).fill(201));
    expect(await codeOf(() => origin.flush())).toBe('WRITE_FAILED');
    fault.current?.add({ on: 'read', range: bad, fault: { kind: 'error', code: 'REDUNDANCY_LOST' } });
    for (const [from, lengthBytes, outcome] of [
      [bad.offsetBytes, 512, 'done'],
      [bad.offsetBytes - 512, 1024, 'done'],
      [bad.offsetBytes, 1024, 'REDUNDANCY_LOST'],
      [bad.offsetBytes + 512, 512, 'REDUNDANCY_LOST'],
      [bad.offsetBytes + 1024, 512, 'done'],
    ] as const)
      expect(await codeOf(() => origin.read(from, new Uint8Array(lengthBytes)))).toBe(outcome);
    await expect(origin.close()).rejects.toMatchObject({ code: 'WRITE_FAILED' });
  });
});

describe('old bytes that cannot be read', () => {
  /** Sectors at the start of chunk 3, until they are written. */
  async function makeBad(): Promise<Made & { readonly fault: FaultDevice }> {
    const fault = { current: null as FaultDevice | null };
    const made = await make({
      below: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await made.origin.take('one');
    const range = { offsetBytes: 3 * CHUNK, lengthBytes: 512 };
    fault.current?.add({
      on: 'read',
      range,
      clearedByWrite: true,
      fault: { kind: 'error', code: 'MEDIUM_ERROR' },
    });
    return { ...made, fault: fault.current as FaultDevice };
  }

  async function judge(origin: SnapshotOrigin, name: string, lost: number): Promise<void> {
    await using snapshot = origin.openSnapshot(name);
    for (let chunk = 0; chunk < 32; chunk += 1) {
      const bytes = new Uint8Array(CHUNK);
      const code = await codeOf(() => snapshot.read(chunk * CHUNK, bytes));
      expect(code).toBe(chunk === lost ? 'MEDIUM_ERROR' : 'done');
      if (chunk !== lost) expectSame(`${name}, chunk ${chunk}`, bytes, filled(1, chunk + 1));
    }
  }

  test.each<[string, number, number, (origin: SnapshotOrigin) => Promise<void>]>([
    ['a sector', 3 * CHUNK, 512, (origin) => origin.write(3 * CHUNK, new Uint8Array(512))],
    ['a chunk', 3 * CHUNK, CHUNK, (origin) => origin.write(3 * CHUNK, new Uint8Array(CHUNK))],
    [
      'parts of three',
      2 * CHUNK + 512,
      2 * CHUNK,
      (origin) => origin.write(2 * CHUNK + 512, new Uint8Array(2 * CHUNK)),
    ],
    ['much', 0, 24 * CHUNK, (origin) => origin.write(0, new Uint8Array(24 * CHUNK))],
    ['durably', 3 * CHUNK, 512, (origin) => origin.write(3 * CHUNK, new Uint8Array(512), { fua: true })],
    ['zeros', CHUNK, 4 * CHUNK, (origin) => origin.writeZeroes(CHUNK, 4 * CHUNK)],
  ])('are written over (%s), and no snapshot has them, now or later', async (_, at, length, write) => {
    const { origin, again } = await makeBad();
    await write(origin);
    await origin.flush();
    const wanted = Buffer.from(start).fill(0, at, at + length);
    expectSame('the origin', await contentOf(origin), wanted);
    await judge(origin, 'one', 3);
    expect(origin.list()).toMatchObject([{ name: 'one', state: 'valid', lostBytes: CHUNK }]);
    expect(origin.changedSince(origin.list()[0]?.point ?? '')).toMatchObject([
      { offsetBytes: Math.floor(at / CHUNK) * CHUNK },
    ]);
    await origin.close();

    const reopened = await again();
    expectSame('the origin', await contentOf(reopened), wanted);
    await judge(reopened, 'one', 3);
    expect(reopened.list()).toMatchObject([{ lostBytes: CHUNK }]);
    await reopened.close();
  });

  test('beside the place that is written make the chunk a loss for snapshots, and nothing else', async () => {
    const { origin } = await makeBad();
    await origin.write(3 * CHUNK + 1024, filled(1, 99).subarray(0, 512));
    await origin.flush();
    const bytes = new Uint8Array(CHUNK - 512);
    await origin.read(3 * CHUNK + 512, bytes);
    expectSame('the rest', bytes, filled(1, 4).fill(99, 1024, 1536).subarray(512));
    expect(await codeOf(() => origin.read(3 * CHUNK, new Uint8Array(512)))).toBe('MEDIUM_ERROR');
    await judge(origin, 'one', 3);
    await origin.close();
  });

  test('are lost to all snapshots that shared them, and to none that came later, whichever is deleted', async () => {
    const { origin } = await makeBad();
    await origin.take('two');
    await origin.write(3 * CHUNK, filled(1, 50));
    await origin.flush();
    await origin.take('three');
    await origin.write(3 * CHUNK, filled(1, 60));
    await origin.flush();
    const three = Buffer.from(start).fill(50, 3 * CHUNK, 4 * CHUNK);
    const lost = () => origin.list().map(({ name, lostBytes }) => [name, lostBytes / CHUNK]);
    expect(lost()).toEqual([
      ['one', 1],
      ['two', 1],
      ['three', 0],
    ]);
    expectSame('three', (await imageOf(origin, 'three')) ?? Buffer.alloc(0), three);
    await origin.delete('two');
    await judge(origin, 'one', 3);
    await origin.delete('one');
    expect(lost()).toEqual([['three', 0]]);
    expectSame('three', (await imageOf(origin, 'three')) ?? Buffer.alloc(0), three);
    await origin.close();
  });

  test('are said before a rollback, which leaves what was written there, and brings back all else', async () => {
    const { origin, again } = await makeBad();
    await origin.write(2 * CHUNK, filled(4, 77));
    await origin.flush();
    const before = await contentOf(origin);
    await expect(origin.rollback('one')).rejects.toMatchObject({
      code: 'REDUNDANCY_LOST',
      place: { offsetBytes: 3 * CHUNK, lengthBytes: CHUNK },
    });
    expectSame('the origin', await contentOf(origin), before);
    await origin.rollback('one', undefined, { force: true });
    const wanted = Buffer.from(start).fill(77, 3 * CHUNK, 4 * CHUNK);
    expectSame('the origin', await contentOf(origin), wanted);
    await origin.close();
    const reopened = await again();
    expectSame('the origin', await contentOf(reopened), wanted);
    await judge(reopened, 'one', 3);
    await reopened.close();
  });

  test('of a member that is gone are no loss: it may come back', async () => {
    const { origin, fault } = await makeBad();
    fault.add({ on: 'read', fault: { kind: 'error', code: 'MEMBER_GONE' } });
    expect(await codeOf(() => origin.write(5 * CHUNK, filled(1, 9)))).toBe('WRITE_FAILED');
    expect(await codeOf(() => origin.writeZeroes(5 * CHUNK, CHUNK))).toBe('WRITE_FAILED');
    fault.clear();
    expect(origin.list()).toMatchObject([{ lostBytes: 0 }]);
    await origin.close();
  });

  test('take room in the list only; where that is full the oldest snapshot gives way', async () => {
    const sizeBytes = 6000 * CHUNK;
    const below = new FaultDevice(new MemoryDevice({ sizeBytes, blockBytes: 512 }));
    const store = new MemoryDevice({ sizeBytes: 2 * MIB });
    const origin = await SnapshotOrigin.create(below, store, host, { ...ID, limitBytes: 300 * CHUNK });
    await origin.take('one');
    below.add({ on: 'read', fault: { kind: 'error', code: 'MEDIUM_ERROR' } });
    await origin.writeZeroes(0, 4000 * CHUNK);
    expect(origin.usage().usedBytes).toBe(0);
    expect(origin.list()).toMatchObject([{ state: 'valid', lostBytes: 4000 * CHUNK }]);
    await origin.writeZeroes(0, sizeBytes);
    expect(origin.list()).toMatchObject([{ state: 'invalid', lostBytes: 0 }]);
    await origin.close();
  });
});

describe('rot', () => {
  test('in a slot it is an error of exactly that chunk, and a rollback over it changes nothing', async () => {
    const { origin, store } = await make();
    await origin.take('one');
    await origin.write(0, filled(3, 201));
    await origin.flush();
    const header = decodeHeader(Buffer.from(store.memory, 0, UNIT_BYTES), 'store');
    Buffer.from(store.memory)[slotOffset(header, 1) + 17] = 99;
    await using snapshot = origin.openSnapshot('one');
    expect(await codeOf(() => snapshot.read(CHUNK, new Uint8Array(CHUNK)))).toBe('MEDIUM_ERROR');
    expect(await codeOf(() => snapshot.read(2 * CHUNK, new Uint8Array(30 * CHUNK)))).toBe('done');
    const before = await contentOf(origin);
    expect(await codeOf(() => origin.rollback('one'))).toBe('MEDIUM_ERROR');
    expectSame('origin', await contentOf(origin), before);
    await snapshot.close();
    await origin.close();
  });

  test('of any byte of what the journal says is refused, or was not needed: no snapshot is ever wrong', async () => {
    const { origin, below, store } = await make({ options: { limitBytes: 32 * CHUNK } });
    await origin.take('one');
    for (let chunk = 0; chunk < 5; chunk += 1) await origin.write(chunk * CHUNK, filled(1, 201));
    await origin.close();
    const half = halfBytesFor(32);
    let refused = 0;
    let opened = 0;
    const content = Buffer.from(store.memory);
    const kept = Buffer.from(content.subarray(0, UNIT_BYTES + 2 * half));
    for (let unit = UNIT_BYTES; unit < UNIT_BYTES + 2 * half; unit += UNIT_BYTES) {
      for (const at of [0, 20, 40, 70]) {
        content.set(kept);
        content[unit + at] = (content[unit + at] as number) ^ 1;
        const low = new MemoryDevice({ sizeBytes: SIZE, memory: below.memory, blockBytes: 512 });
        const side = new MemoryDevice({ sizeBytes: 2 * MIB, memory: store.memory });
        let again: SnapshotOrigin;
        try {
          again = await SnapshotOrigin.open(low, side, host, ID);
        } catch {
          refused += 1;
          continue;
        }
        opened += 1;
        expectSame('one', (await imageOf(again, 'one')) as Buffer, start);
      }
    }
    expect(refused).toBeGreaterThan(10);
    expect(opened).toBeGreaterThan(10);
  });
});

describe('names, deletion and space', () => {
  test('what a snapshot has alone and what it shares, and deleting frees exactly the one', async () => {
    const { origin } = await make();
    await origin.take('one');
    await origin.write(0, filled(1, 201));
    await origin.take('two');
    await origin.write(0, filled(3, 202));
    await origin.flush();
    const spaces = () =>
      origin.list().map((each) => [each.name, each.uniqueBytes / CHUNK, each.sharedBytes / CHUNK]);
    expect(spaces()).toEqual([
      ['one', 1, 2],
      ['two', 1, 2],
    ]);
    await origin.delete('two');
    expect(spaces()).toEqual([['one', 3, 0]]);
    expectSame('one', (await imageOf(origin, 'one')) as Buffer, start);
    await origin.delete('one');
    expect(origin.usage().usedBytes).toBe(0);
    await origin.close();
  });

  test('a copy takes its room before it is on record, and has given it back when a deletion returns', async () => {
    const delay = { current: null as DelayDevice | null };
    const { origin } = await make({
      store: (device) => {
        delay.current = new DelayDevice(device, sleepless);
        return delay.current;
      },
    });
    const spaces = () => [origin.usage().usedBytes / CHUNK, (origin.list()[0]?.uniqueBytes ?? 0) / CHUNK];
    await origin.take('one');
    const recording = delay.current?.hold({ only: ({ op }) => op === 'flush' });
    await origin.write(3 * CHUNK, filled(1, 201));
    for (let turn = 0; turn < 50; turn += 1) await Promise.resolve();
    expect(recording?.waiting).toHaveLength(1);
    // Else another would be put into the same place meanwhile.
    expect(spaces()).toEqual([1, 0]);
    recording?.release();
    await origin.flush();
    expect(spaces()).toEqual([1, 1]);
    const discarding = delay.current?.hold({ only: ({ op }) => op === 'discard' });
    const deleting = origin.delete('one');
    for (let turn = 0; turn < 50; turn += 1) await Promise.resolve();
    expect(discarding?.waiting).toHaveLength(1);
    expect(origin.list()).toEqual([]);
    // Else the discard could hit what another has put there.
    expect(spaces()).toEqual([1, 0]);
    discarding?.release();
    await deleting;
    expect(spaces()).toEqual([0, 0]);
    await origin.close();
  });

  test('one that is being read is not deleted; names are taken, unknown or no names', async () => {
    const { origin } = await make();
    await origin.take('one');
    const snapshot = origin.openSnapshot('one');
    expect(await codeOf(() => origin.delete('one'))).toBe('BUSY');
    await snapshot.close();
    expect(await codeOf(() => origin.take('one'))).toBe('BAD_ARGUMENT');
    expect(await codeOf(() => origin.take('a/b'))).toBe('BAD_ARGUMENT');
    expect(await codeOf(() => origin.take(''))).toBe('BAD_ARGUMENT');
    expect(await codeOf(() => origin.delete('two'))).toBe('BAD_ARGUMENT');
    expect(await codeOf(() => origin.rollback('two'))).toBe('BAD_ARGUMENT');
    expect(await codeOf(() => origin.delete('one'))).toBe('done');
    await origin.close();
    expect(await codeOf(() => origin.take('two'))).toBe('CLOSED');
    expect(await codeOf(async () => origin.openSnapshot('two'))).toBe('CLOSED');
  });

  test('a list that is full takes no more, and loses nothing', async () => {
    const { origin } = await make({ options: { limitBytes: CHUNK } });
    let taken = 0;
    while ((await codeOf(() => origin.take(`s${'x'.repeat(120)}${taken}`))) === 'done') taken += 1;
    expect(taken).toBeGreaterThan(400);
    expect(origin.list()).toHaveLength(taken);
    await origin.close();
  });
});

describe('what has changed', () => {
  test('is known since any point and up to any snapshot, after its deletion, and after opening again', async () => {
    const { origin, again } = await make();
    const one = (await origin.take('one')).point;
    await origin.write(0, filled(1, 201));
    await origin.take('two');
    await origin.write(4 * CHUNK, filled(2, 202));
    const ranges = (from: number, chunks: number) => ({
      offsetBytes: from * CHUNK,
      lengthBytes: chunks * CHUNK,
    });
    expect(origin.changedSince(one, 'one')).toEqual([]);
    expect(origin.changedSince(one, 'two')).toEqual([ranges(0, 1)]);
    expect(origin.changedSince(one)).toEqual([ranges(0, 1), ranges(4, 2)]);
    await origin.delete('one', { keepTracking: true });
    expect(origin.list()[0]?.state).toBe('tracking');
    expect(origin.usage().usedBytes).toBe(2 * CHUNK);
    await origin.delete('two');
    await origin.write(8 * CHUNK, filled(1, 203));
    await origin.close();
    await using reopened = await again();
    expect(reopened.changedSince(one)).toEqual([ranges(0, 1), ranges(4, 2), ranges(8, 1)]);
    expect(reopened.usage().usedBytes).toBe(0);
    await reopened.forget(one);
    expect(reopened.changedSince(one)).toBe('unknown');
  });

  test('is unknown since a point of another store, or none', async () => {
    const { origin } = await make();
    const { point } = await origin.take('one');
    for (const other of ['', 'one', '1', `${point}1`, point.replace(/^./, 'f'), point.split('/')[0] ?? ''])
      expect(origin.changedSince(other)).toBe('unknown');
    expect(origin.changedSince(point)).toEqual([]);
    await origin.close();
  });

  test('is forgotten, oldest first, where its room is needed, and never wrong', async () => {
    const below = new MemoryDevice({ sizeBytes: 64 * MIB });
    const store = new MemoryDevice({ sizeBytes: 2 * MIB });
    const origin = await SnapshotOrigin.create(below, store, host, { ...ID, limitBytes: 2 * CHUNK });
    const { point } = await origin.take('one');
    await origin.delete('one', { keepTracking: true });
    let written = 0;
    while (origin.changedSince(point) !== 'unknown') {
      await origin.write(written * CHUNK, new Uint8Array(256 * CHUNK).fill(1));
      written += 256;
    }
    expect(written).toBeGreaterThan(5000);
    expect(origin.list()).toEqual([]);
    await origin.close();
  });
});

describe('rollback', () => {
  test('brings the image back, keeps newer snapshots, and says how far it is', async () => {
    const { origin } = await make();
    await origin.take('one');
    await origin.write(0, filled(3, 201));
    await origin.take('two');
    const two = await contentOf(origin);
    await origin.write(20 * CHUNK, filled(3, 202));
    const told: number[] = [];
    await origin.rollback('one', ({ doneBytes }) => told.push(doneBytes / CHUNK));
    expect(told).toEqual([3, 6]);
    expectSame('origin', await contentOf(origin), start);
    expectSame('one', (await imageOf(origin, 'one')) as Buffer, start);
    expectSame('two', (await imageOf(origin, 'two')) as Buffer, two);
    await origin.rollback('two');
    expectSame('origin', await contentOf(origin), two);
    await origin.close();
  });

  test('in a store too small costs newer snapshots, not the one that is restored', async () => {
    const { origin } = await make({ options: { limitBytes: 4 * CHUNK } });
    await origin.take('one');
    await origin.write(0, filled(3, 201));
    await origin.take('two');
    await origin.rollback('one');
    expectSame('origin', await contentOf(origin), start);
    expect(origin.list().map(({ state }) => state)).toEqual(['valid', 'invalid']);
    expectSame('one', (await imageOf(origin, 'one')) as Buffer, start);
    await origin.close();
  });

  test('that fails half-way refuses everything until it is done again, or opened again', async () => {
    const fault = { current: null as FaultDevice | null };
    const { origin, again } = await make({
      below: (device) => {
        fault.current = new FaultDevice(device);
        return fault.current;
      },
    });
    await origin.take('one');
    await origin.write(0, filled(1, 201));
    await origin.write(9 * CHUNK, filled(1, 201));
    await origin.flush();
    const id = fault.current?.add({
      on: 'write',
      range: { offsetBytes: 9 * CHUNK, lengthBytes: CHUNK },
      when: 'once',
      fault: { kind: 'error', code: 'WRITE_FAILED' },
    });
    expect(id).toBeDefined();
    expect(await codeOf(() => origin.rollback('one'))).toBe('WRITE_FAILED');
    expect(await codeOf(() => origin.read(0, new Uint8Array(512)))).toBe('BUSY');
    expect(await codeOf(() => origin.write(0, new Uint8Array(512)))).toBe('BUSY');
    expect(await codeOf(() => origin.take('two'))).toBe('BUSY');
    expect(await codeOf(() => origin.delete('one'))).toBe('BUSY');
    await using reopened = await again();
    expectSame('origin', await contentOf(reopened), start);
    await origin.rollback('one');
    expectSame('origin', await contentOf(origin), start);
    await origin.close();
  });

  test('during which the store fails keeps the copies that it is made of, and is finished when it is opened again', async () => {
    const { origin, below, store, again } = await make();
    await origin.take('one');
    for (const chunk of [0, 9]) await origin.write(chunk * CHUNK, filled(1, 201));
    await origin.take('two');
    const two = await contentOf(origin);
    await origin.close();
    const side = new FaultDevice(new MemoryDevice({ sizeBytes: 2 * MIB, memory: store.memory }));
    let lost = 0;
    const half = await SnapshotOrigin.open(
      new MemoryDevice({ sizeBytes: SIZE, memory: below.memory, blockBytes: 512 }),
      side,
      host,
      {
        ...ID,
        onLost: async () => {
          lost += 1;
        },
      },
    );
    const fail = (): void => void side.add({ on: 'flush', fault: { kind: 'error', code: 'FLUSH_FAILED' } });
    // What `two` needs is saved before it is overwritten: the first of two places is back when this cannot be done any more.
    expect(await codeOf(() => half.rollback('one', fail))).toBe('WRITE_FAILED');
    expect(lost).toBe(0);
    expect(await codeOf(() => half.read(0, new Uint8Array(512)))).toBe('BUSY');
    await using reopened = await again();
    expectSame('origin', await contentOf(reopened), start);
    expectSame('two', (await imageOf(reopened, 'two')) as Buffer, two);
  });
});

describe('files', () => {
  const disk = () => new MemoryDevice({ sizeBytes: SIZE, blockBytes: 512 });
  const options = { ...ID, limitBytes: 256 * CHUNK };

  test('a store in a file is found again, and takes the space of what it holds', async () => {
    const path = nextPath();
    const below = disk();
    const large = { ...ID, limitBytes: 64 * MIB };
    {
      await using origin = await SnapshotOrigin.createFile(below, path, host, large);
      await origin.take('one');
      await origin.write(0, filled(1, 201));
    }
    const again = new MemoryDevice({ sizeBytes: SIZE, memory: below.memory, blockBytes: 512 });
    await using origin = await SnapshotOrigin.openFile(again, path, host, ID);
    expectSame('one', (await imageOf(origin, 'one')) as Buffer, Buffer.alloc(SIZE));
    const { size, blocks } = await stat(path);
    expect(size).toBeGreaterThan((64 * MIB) / 1024);
    expect(blocks * 512).toBeLessThan(8 * MIB);
  });

  test('of another device, cut off, foreign or there already is refused, and not changed', async () => {
    const path = nextPath();
    await (await SnapshotOrigin.createFile(disk(), path, host, options)).close();
    expect(await codeOf(() => SnapshotOrigin.openFile(disk(), path, host, { origin: 'other' }))).toBe(
      'BAD_ARGUMENT',
    );
    const small = new MemoryDevice({ sizeBytes: CHUNK, blockBytes: 512 });
    expect(await codeOf(() => SnapshotOrigin.openFile(small, path, host, ID))).toBe('BAD_ARGUMENT');
    expect(await codeOf(() => SnapshotOrigin.createFile(disk(), path, host, options))).not.toBe('done');
    await (await SnapshotOrigin.openFile(disk(), path, host, ID)).close();
    const cut = nextPath();
    await copyFile(path, cut);
    {
      await using file = await FileDevice.open(cut);
      await file.resize(file.limits.sizeBytes - CHUNK);
    }
    expect(await codeOf(() => SnapshotOrigin.openFile(disk(), cut, host, ID))).toBe('SUPERBLOCK_BROKEN');
    const foreign = nextPath();
    await writeFile(foreign, 'not a store');
    expect(await codeOf(() => SnapshotOrigin.openFile(disk(), foreign, host, ID))).toBe('BAD_MAGIC');
  });

  test('sizes that make no store are refused', async () => {
    for (const wrong of [
      { limitBytes: 0 },
      { limitBytes: 100 },
      { chunkBytes: 512 },
      { chunkBytes: 5000 },
      { chunkBytes: 64 * MIB },
    ]) {
      const path = nextPath();
      expect(
        await codeOf(() => SnapshotOrigin.createFile(disk(), path, host, { ...options, ...wrong })),
      ).toBe('BAD_ARGUMENT');
    }
  });
});
