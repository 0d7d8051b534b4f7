/**
 * The life of members: recovery that fails in every way, while requests run; what a call with bad arguments, or after
 * the end, gets; and that nothing was written by what was refused.
 */
import { rm, symlink } from 'node:fs/promises';
import { afterAll, describe, expect, test } from 'vitest';
import { RaidArray, type RaidArrayOptions } from '../../lib/array/array.ts';
import { DelayDevice } from '../../lib/device/delay.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { ErrorCode } from '../../lib/errors.ts';
import { type Host, realHost } from '../../lib/host.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { type Random, randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { scratchFolder } from '../device/scratch.ts';
import { drivers, memoryMembers, turns, until } from '../engine/members.ts';
import { geometryNamed, sized } from '../engine/world.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

/** Several windows of recovery, and several jobs in each. */
const raid6 = sized(geometryNamed('raid6'), 5 * MIB);
const raid5 = sized(geometryNamed('raid5'), 5 * MIB);

const spare = (geometry: Geometry): MemoryDevice =>
  new MemoryDevice({
    sizeBytes: typeof geometry.memberBytes === 'number' ? geometry.memberBytes : 0,
    name: 'spare',
  });

async function scrub(array: RaidArray, repair = false): Promise<number> {
  let mismatchCount = 0;
  for await (const progress of array.scrub({ repair })) mismatchCount = progress.mismatchCount;
  return mismatchCount;
}

async function rebuild(array: RaidArray): Promise<void> {
  for await (const _progress of array.rebuild());
}

/** So long a sync that is limited sleeps at a time; whoever sleeps for less is let. */
const NAP_MS = 100;

/** Stops a recovery after its first window: a sync that is limited sleeps there, until this clock is put forward. */
class Pace {
  #sleeper: (() => void) | null = null;
  #rebuilt: Promise<void> = Promise.resolve();
  #aheadMs = 0;
  readonly host: Host = {
    ...realHost,
    now: () => realHost.now() + this.#aheadMs,
    sleep: (ms) =>
      ms < NAP_MS
        ? realHost.sleep(ms)
        : new Promise((resolve) => {
            this.#sleeper = resolve;
          }),
  };

  async untilHalf(array: RaidArray): Promise<void> {
    const watch = async (): Promise<void> => {
      for await (const _progress of array.rebuild({ limitBytesPerSecond: 1 }));
    };
    this.#rebuilt = watch();
    await until(() => this.#sleeper !== null);
  }

  /** To the end. */
  async goOn(array: RaidArray): Promise<void> {
    const rest = rebuild(array);
    await turns(1);
    this.#aheadMs = 1e12;
    this.#sleeper?.();
    await Promise.all([rest, this.#rebuilt]);
  }
}

/** Reads and writes, random and not overlapping at any time, checked against a model, until told to stop. */
function traffic(
  array: RaidArray,
  content: Uint8Array,
  random: Random,
): { readonly count: () => number; stop(): Promise<void> } {
  let running = true;
  let count = 0;
  const worker = async (from: number, to: number): Promise<void> => {
    while (running) {
      const at = from + random(to - from - 1);
      const length = Math.min(to - at, 1 + random(random(4) === 0 ? 200_000 : 6_000));
      if (random(2) === 0) {
        const bytes = randomBytes(random, length);
        content.set(bytes, at);
        await array.write(at, bytes);
      } else {
        const seen = new Uint8Array(length).fill(0xa5);
        await array.read(at, seen);
        if (Buffer.compare(seen, content.subarray(at, at + length)) !== 0)
          throw new Error(`wrong at ${at}+${length}`);
      }
      count += 1;
      await turns(1);
    }
  };
  const parts = 4;
  const share = Math.floor(content.length / parts);
  const workers = Array.from({ length: parts }, (_, part) => worker(part * share, (part + 1) * share));
  // Heard of at the end, by `stop`.
  for (const each of workers) each.catch(() => undefined);
  return {
    count: () => count,
    stop: async () => {
      running = false;
      await Promise.all(workers);
    },
  };
}

async function expectContent(array: RaidArray, content: Uint8Array): Promise<void> {
  const whole = new Uint8Array(content.length).fill(0xa5);
  await array.read(0, whole);
  expect(Buffer.compare(whole, content)).toBe(0);
}

for (const driver of drivers) {
  describe(`recovery on ${driver}`, () => {
    async function make(
      geometry: Geometry,
      random: Random,
      pace?: Pace,
    ): Promise<{ array: RaidArray; content: Uint8Array }> {
      const array = new RaidArray({
        geometry,
        members: memoryMembers(geometry),
        driver,
        lanes: 2,
        heapBytes: 8 * MIB,
        ...(pace === undefined ? {} : { host: pace.host, autoSync: false }),
      });
      const content = randomBytes(random, array.limits.sizeBytes);
      await array.write(0, content);
      return { array, content };
    }

    test('of two spares, one after the other, while requests run', () =>
      withSeed(runSeed, async (random) => {
        const { array, content } = await make(raid6, random);
        const busy = traffic(array, content, random);
        await array.fail(0);
        await array.fail(3);
        await array.add(spare(raid6));
        await array.add(spare(raid6));
        await rebuild(array);
        await busy.stop();
        expect(array.state).toBe('clean');
        expect(busy.count()).toBeGreaterThan(0);
        await expectContent(array, content);
        expect(await scrub(array)).toBe(0);
        await array.close();
      }));

    test('whose new member is failed in the middle: another spare takes over, and what was read was right', () =>
      withSeed(runSeed, async (random) => {
        const pace = new Pace();
        const { array, content } = await make(raid5, random, pace);
        const busy = traffic(array, content, random);
        await array.fail(2);
        const first = await array.add(spare(raid5));
        await pace.untilHalf(array);
        expect(first.state).toMatchObject({ state: 'recovering', recoveredBytes: 4 * MIB });
        await array.fail(first.name);
        await array.add(spare(raid5));
        await pace.goOn(array);
        await busy.stop();
        expect(first.state.state).toBe('faulty');
        expect(array.state).toBe('clean');
        await expectContent(array, content);
        expect(await scrub(array)).toBe(0);
        await array.close();
      }));

    test('during which one more member fails, as far as redundancy goes, and is refused beyond it', () =>
      withSeed(runSeed, async (random) => {
        const pace = new Pace();
        const { array, content } = await make(raid6, random, pace);
        const busy = traffic(array, content, random);
        await array.fail(1);
        await array.add(spare(raid6));
        await pace.untilHalf(array);
        await array.fail(4);
        await expect(array.fail(0)).rejects.toMatchObject({ code: 'LAST_COPY' });
        expect(array.state).toBe('recovering');
        await pace.goOn(array);
        await busy.stop();
        expect(array.degraded).toBe(1);
        await expectContent(array, content);
        expect(await scrub(array)).toBe(0);
        await array.close();
      }));

    test('and a repair may run while requests do, and find nothing', () =>
      withSeed(runSeed, async (random) => {
        const { array, content } = await make(sized(raid6, MIB), random);
        const busy = traffic(array, content, random);
        expect(await scrub(array, true)).toBe(0);
        expect(await scrub(array)).toBe(0);
        await busy.stop();
        await expectContent(array, content);
        await array.close();
      }));

    test('overlapping writes at once leave, block by block, one of them, and redundancy agrees', () =>
      withSeed(runSeed, async (random) => {
        // A level each on lanes: most of the time there is the birth of workers.
        for (const name of driver === 'lanes' ? ['raid6'] : ['raid1', 'raid5', 'raid6', 'raid10 offset']) {
          const geometry = geometryNamed(name);
          const array = new RaidArray({
            geometry,
            members: memoryMembers(geometry, 512),
            driver,
            lanes: 3,
            heapBytes: MIB,
          });
          const blocks = array.limits.sizeBytes / 512;
          const candidates = Array.from({ length: blocks }, () => new Set([0]));
          const writes: Promise<void>[] = [];
          for (let id = 1; id < 200; id += 1) {
            const first = random(blocks);
            const count = Math.min(blocks - first, 1 + random(60));
            for (let block = first; block < first + count; block += 1) candidates[block]?.add(id);
            writes.push(array.write(first * 512, new Uint8Array(count * 512).fill(id)));
          }
          await Promise.all(writes);
          const whole = new Uint8Array(array.limits.sizeBytes);
          await array.read(0, whole);
          for (let block = 0; block < blocks; block += 1) {
            const bytes = whole.subarray(block * 512, block * 512 + 512);
            const [id = -1] = bytes;
            if (candidates[block]?.has(id) !== true || bytes.some((byte) => byte !== id))
              throw new Error(`${name}: block ${block} is none of the writes`);
          }
          expect(await scrub(array)).toBe(0);
          await array.close();
        }
      }));
  });
}

describe('recovery', () => {
  async function degraded(newOne: Device, options: Partial<RaidArrayOptions> = {}): Promise<RaidArray> {
    const array = new RaidArray({
      geometry: raid5,
      members: memoryMembers(raid5),
      driver: 'event-loop',
      heapBytes: 8 * MIB,
      ...options,
    });
    await array.write(0, new Uint8Array(MIB).fill(9));
    await array.fail(1);
    await array.add(newOne);
    return array;
  }

  test('onto a member that takes no writes expels it, and the array stays degraded', async () => {
    const fault = { kind: 'error', code: 'WRITE_FAILED' } as const;
    for (const when of ['forever', { after: 5 }] as const) {
      const array = await degraded(new FaultDevice(spare(raid5), { rules: [{ on: 'write', when, fault }] }));
      await rebuild(array);
      expect(array.members.find(({ name }) => name === 'disk4')?.state.state).toBe('faulty');
      expect(array.state).toBe('degraded');
      await array.close();
    }
  });

  test('onto a member whose last flush fails does not end in sync', async () => {
    const fault = { kind: 'error', code: 'FLUSH_FAILED' } as const;
    const array = await degraded(new FaultDevice(spare(raid5), { rules: [{ on: 'flush', fault }] }));
    await rebuild(array);
    expect(array.members.find(({ name }) => name === 'disk4')?.state.state).toBe('faulty');
    expect(array.state).toBe('degraded');
    await array.add(spare(raid5));
    await rebuild(array);
    expect(array.state).toBe('clean');
    await array.close();
  });

  test('of a replacement whose last flush fails leaves the member in its place', async () => {
    const fault = { kind: 'error', code: 'FLUSH_FAILED' } as const;
    const array = new RaidArray({
      geometry: raid5,
      members: memoryMembers(raid5),
      driver: 'event-loop',
      heapBytes: 8 * MIB,
    });
    await array.add(new FaultDevice(spare(raid5), { rules: [{ on: 'flush', fault }] }));
    await array.replace(1);
    await rebuild(array);
    expect(array.members.find(({ name }) => name === 'disk4')?.state.state).toBe('faulty');
    expect(array.members.find(({ name }) => name === 'disk1')?.state.state).toBe('in_sync');
    expect(array.state).toBe('clean');
    await array.close();
  });

  test.each([
    ['another', 'disk1'],
    ['the new one', 'disk5'],
  ] as const)(
    'of a replacement, when %s fails while the two change places, does without it',
    async (_, which) => {
      const below = memoryMembers(raid6) as readonly Device[];
      const other = new FaultDevice(below[1] as Device);
      const fresh = new FaultDevice(spare(raid6));
      const slow = new DelayDevice(below[3] as Device, { host: realHost });
      const newOne = new DelayDevice(fresh, { host: realHost });
      const members = below.with(1, other).with(3, slow);
      const array = new RaidArray({ geometry: raid6, members, driver: 'event-loop', heapBytes: 8 * MIB });
      await array.add(newOne);
      const flushes = newOne.hold({ only: ({ op }) => op === 'flush' });
      await array.replace(0);
      await until(() => flushes.waiting.length > 0);
      const failing = which === 'disk1' ? other : fresh;
      failing.add({ on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } });
      const writes = slow.hold({ only: ({ op }) => op === 'write' });
      const written = array.write(0, new Uint8Array(MIB).fill(7));
      await until(() => writes.waiting.length > 0);
      flushes.release();
      const stateOf = (which: string): string | undefined =>
        array.members.find(({ name }) => name === which)?.state.state;
      await until(() => stateOf('disk0') === 'faulty');
      writes.release();
      await written;
      await rebuild(array);
      expect(stateOf(which)).toBe('faulty');
      const seen = new Uint8Array(MIB);
      await array.read(0, seen);
      expect(seen.findIndex((byte) => byte !== 7)).toBe(-1);
      await array.close();
    },
  );

  test('does not make a member of one that missed a write during its last flush', async () => {
    const faulty = new FaultDevice(spare(raid5));
    const slow = new DelayDevice(faulty, { host: realHost });
    const hold = slow.hold({ only: ({ op }) => op === 'flush' });
    const array = await degraded(slow);
    const rebuilt = rebuild(array);
    await until(() => hold.waiting.length > 0);
    faulty.add({ on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } });
    await array.write(0, new Uint8Array(4 * MIB).fill(1));
    hold.release();
    await rebuilt;
    expect(array.members.find(({ name }) => name === 'disk4')?.state.state).toBe('faulty');
    expect(array.state).toBe('degraded');
    const seen = new Uint8Array(4 * MIB);
    await array.read(0, seen);
    expect(seen.every((byte) => byte === 1)).toBe(true);
    await array.close();
  });

  test('of a spare that is removed or failed before its first step does not bring it back', async () => {
    for (const how of ['remove', 'fail'] as const) {
      const array = await degraded(spare(raid5), { autoSync: false });
      if (how === 'remove') await array.remove('disk4');
      else await array.fail('disk4');
      await rebuild(array);
      expect(array.members.find(({ name }) => name === 'disk4')?.state.state).toBe(
        how === 'fail' ? 'faulty' : undefined,
      );
      expect(array.degraded).toBe(1);
      await array.close();
    }
  });
});

describe('what is refused', () => {
  const base = (
    members: readonly (Device | null)[],
    more: Partial<RaidArrayOptions> = {},
  ): RaidArrayOptions => ({
    geometry: geometryNamed('raid5'),
    members,
    ...more,
  });
  const four = (): MemoryDevice[] => memoryMembers(geometryNamed('raid5'));

  async function expectRefusal(make: () => unknown, code: ErrorCode): Promise<void> {
    let outcome = 'it was done';
    try {
      await make();
    } catch (failure) {
      outcome = (failure as { code?: string }).code ?? String(failure);
    }
    expect(outcome).toBe(code);
  }

  test('the wrong number of members', async () => {
    await expectRefusal(() => new RaidArray(base(four().slice(1))), 'BAD_ARGUMENT');
    await expectRefusal(() => new RaidArray(base([...four(), null])), 'BAD_ARGUMENT');
    await expectRefusal(() => new RaidArray(base([])), 'BAD_ARGUMENT');
  });

  test('members that are too small, in a slot, as a spare, and added later', async () => {
    const small = new MemoryDevice({ sizeBytes: 8 * KIB });
    await expectRefusal(() => new RaidArray(base([...four().slice(1), small])), 'BAD_ARGUMENT');
    await expectRefusal(() => new RaidArray(base(four(), { spares: [small] })), 'BAD_ARGUMENT');
    await using array = new RaidArray(base(four()));
    await expectRefusal(() => array.add(small), 'BAD_ARGUMENT');
  });

  test('one device twice, also by two names of one file', async () => {
    const [a, b, c] = four();
    await expectRefusal(
      () => new RaidArray(base([a ?? null, b ?? null, c ?? null, a ?? null])),
      'BAD_ARGUMENT',
    );
    await expectRefusal(
      () => new RaidArray(base(four(), { spares: [b, b].flatMap((each) => each ?? []) })),
      'BAD_ARGUMENT',
    );
    const path = `${folder}/one.img`;
    const alias = `${folder}/alias.img`;
    await using file = await FileDevice.create(path, MIB);
    await symlink(path, alias);
    await using same = await FileDevice.open(alias);
    await expectRefusal(() => new RaidArray(base([file, same, a ?? null, b ?? null])), 'BAD_ARGUMENT');
    await using array = new RaidArray(base(four()));
    await expectRefusal(() => array.add(array.members[0]?.device ?? file), 'BAD_ARGUMENT');
  });

  test('a device that is closed, read-only where it would be written, or out of reach of the driver', async () => {
    const closed = new MemoryDevice({ sizeBytes: MIB });
    await closed.close();
    await expectRefusal(() => new RaidArray(base([closed, ...four().slice(1)])), 'CLOSED');
    const readOnly = new MemoryDevice({ sizeBytes: MIB, readOnly: true });
    const filtered = (): Device => new FaultDevice(new MemoryDevice({ sizeBytes: MIB }));
    for (const driver of ['lanes', 'inline'] as const) {
      await expectRefusal(
        () => new RaidArray(base([filtered(), ...four().slice(1)], { driver })),
        'BAD_ARGUMENT',
      );
      await using array = new RaidArray(base(four(), { driver }));
      await expectRefusal(() => array.add(filtered()), 'BAD_ARGUMENT');
      await expectRefusal(() => array.add(readOnly), 'READ_ONLY');
      await expectRefusal(() => array.add(closed), 'BAD_ARGUMENT');
    }
    // Without a driver that was asked for, the one that can reach all is taken.
    await using array = new RaidArray(base(four(), { spares: [filtered()], cores: 2 }));
    expect(array.engine.driver).toBe('event-loop');
  });

  test('a shape that no array can have, and one whose chunks are not whole blocks of a member', async () => {
    const geometry = { ...geometryNamed('raid5'), chunkBytes: 5000 } as Geometry;
    await expectRefusal(() => new RaidArray(base(four(), { geometry })), 'BAD_GEOMETRY');
    const fine = (bytes: number): MemoryDevice => new MemoryDevice({ sizeBytes: bytes, blockBytes: 4096 });
    const odd: Geometry[] = [
      { level: 'raid0', layout: 'original', chunkBytes: 512, memberBytes: [64 * KIB, 64 * KIB] },
      { level: 'linear', chunkBytes: 0, memberBytes: [64 * KIB - 512, 64 * KIB] },
      { level: 'raid1', memberCount: 2, memberBytes: 64 * KIB - 512 },
    ];
    for (const each of odd) {
      await expectRefusal(
        () => new RaidArray({ geometry: each, members: [fine(MIB), fine(MIB)] }),
        'BAD_GEOMETRY',
      );
    }
    await using array = new RaidArray(base(four()));
    await expectRefusal(() => array.add(fine(MIB)), 'BAD_ARGUMENT');
  });

  test('lanes and heaps that cannot be', async () => {
    for (const lanes of [0, -1, 1.5, 10_000])
      await expectRefusal(() => new RaidArray(base(four(), { driver: 'lanes', lanes })), 'BAD_ARGUMENT');
    for (const heapBytes of [0, 100, -1, Number.NaN, 2 ** 33])
      await expectRefusal(() => new RaidArray(base(four(), { heapBytes })), 'BAD_ARGUMENT');
    await expectRefusal(() => new RaidArray(base(four(), { kernel: 'abacus' })), 'BAD_ARGUMENT');
  });

  test('so few members that data is missing', async () => {
    await expectRefusal(() => new RaidArray(base([null, null, ...four().slice(2)])), 'ARRAY_FAILED');
    await expectRefusal(() => new RaidArray(base([null, null, null, null])), 'ARRAY_FAILED');
  });

  test('to write to an array of which a member is read-only; it reads, and its members stay as they are', async () => {
    const members = four();
    const readOnly = members.map(
      (device, slot) =>
        new MemoryDevice({ sizeBytes: device.limits.sizeBytes, memory: device.memory, readOnly: slot === 1 }),
    );
    await using array = new RaidArray(base(readOnly));
    await array.read(0, new Uint8Array(1000));
    await expectRefusal(() => array.write(0, new Uint8Array(1000)), 'READ_ONLY');
    await expectRefusal(() => scrub(array, true), 'READ_ONLY');
    await expectRefusal(() => rebuild(array), 'READ_ONLY');
    expect(await scrub(array)).toBe(0);
    for (const { memory } of members) expect(new Uint8Array(memory).every((byte) => byte === 0)).toBe(true);
  });

  for (const driver of drivers) {
    test(`everything, on ${driver}, once it is closed, twice too`, async () => {
      const array = new RaidArray(base(four(), { driver }));
      await array.close();
      await array.close();
      await expectRefusal(() => array.read(0, new Uint8Array(1)), 'CLOSED');
      await expectRefusal(() => array.write(0, new Uint8Array(1)), 'CLOSED');
      await expectRefusal(() => array.flush(), 'CLOSED');
      await expectRefusal(() => array.writeZeroes(0, 1), 'CLOSED');
      await expectRefusal(() => array.fail(0), 'CLOSED');
      await expectRefusal(() => array.add(spare(raid5)), 'CLOSED');
      await expectRefusal(() => array.remove(0), 'CLOSED');
      await expectRefusal(() => scrub(array), 'CLOSED');
      await expectRefusal(() => scrub(array, true), 'CLOSED');
      await expectRefusal(() => rebuild(array), 'CLOSED');
    });

    test(`closing on ${driver} under traffic, a scrub and a rebuild settles everything: done, or CLOSED`, () =>
      withSeed(runSeed, async (random) => {
        const array = new RaidArray({
          geometry: raid5,
          members: memoryMembers(raid5),
          driver,
          lanes: 2,
          heapBytes: MIB,
        });
        await array.fail(1);
        await array.add(spare(raid5));
        const requests: Promise<unknown>[] = [rebuild(array), scrub(array)];
        for (let index = 0; index < 60; index += 1)
          requests.push(array.write(random(12) * MIB, new Uint8Array(1 + random(2 * MIB))));
        await turns(random(20));
        const closed = array.close();
        const outcomes = await Promise.allSettled(requests);
        await closed;
        for (const outcome of outcomes) {
          if (outcome.status === 'rejected') expect(outcome.reason).toMatchObject({ code: 'CLOSED' });
        }
      }));
  }
});
