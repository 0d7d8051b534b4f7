/**
 * What the engine owes its array on every driver: no acknowledgement passes an exclusion that is not on record (I5), an
 * excluded member never comes back by itself, memory is bounded, nobody starves, and closing waits for all.
 */
import { rm } from 'node:fs/promises';
import { afterAll, describe, expect, test } from 'vitest';
import { RaidArray } from '../../lib/array/array.ts';
import { DelayDevice } from '../../lib/device/delay.ts';
import type { BlockingCalls, Device, DirectAccess } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { type DriverKind, Engine, type EngineOptions } from '../../lib/engine/engine.ts';
import type { Correction, Exclusion } from '../../lib/engine/run.ts';
import { assert, InvariantViolation, RaidError } from '../../lib/errors.ts';
import { realHost } from '../../lib/host.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import type { ErasedRange } from '../../lib/plan/plan.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { scratchFolder } from '../device/scratch.ts';
import {
  allInSync,
  deferred,
  drivers,
  fileMembers,
  memoryMembers,
  refuseWrites,
  turns,
  until,
} from './members.ts';
import { geometryNamed, imagesOf, sized, slotsOf } from './world.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

/** Small writes are rmw here, which trusts the old data and the old parity: what goes wrong, goes wrong here. */
const raid5: Geometry = {
  level: 'raid5',
  layout: 'left-symmetric',
  memberCount: 5,
  chunkBytes: 64 * KIB,
  memberBytes: 4 * 64 * KIB,
};
const rowBytes = 4 * 64 * KIB;

interface Made {
  readonly engine: Engine;
  readonly exclusions: Exclusion[];
  readonly corrections: Correction[];
  readonly damaged: ErasedRange[];
}

function make(
  geometry: Geometry,
  members: readonly (Device | null)[],
  driver: DriverKind,
  options: Partial<EngineOptions> = {},
): Made {
  const exclusions: Exclusion[] = [];
  const corrections: Correction[] = [];
  const damaged: ErasedRange[] = [];
  const engine = new Engine({
    layout: compileLayout(geometry),
    members,
    health: allInSync(geometry),
    host: realHost,
    driver,
    cores: 2,
    heapBytes: 8 * MIB,
    onExclusion: (news) => {
      exclusions.push(...news);
      return Promise.resolve();
    },
    onCorrection: (news) => corrections.push(...news),
    onDamage: (news) => damaged.push(...news),
    ...options,
  });
  return { engine, exclusions, corrections, damaged };
}

/** A settled flag for each promise, without waiting for them. */
function watch(promises: readonly Promise<unknown>[]): { readonly settled: boolean }[] {
  return promises.map((promise) => {
    const seen = { settled: false };
    promise.then(
      () => {
        seen.settled = true;
      },
      () => {
        seen.settled = true;
      },
    );
    return seen;
  });
}

/** Members whose slot 1 takes no writes, in a way that this driver meets. */
async function membersThatRefuse(driver: DriverKind, geometry: Geometry, slot: number): Promise<Device[]> {
  if (driver === 'event-loop') {
    return memoryMembers(geometry).map((device, index) =>
      index === slot
        ? new FaultDevice(device, {
            rules: [{ on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } }],
          })
        : device,
    );
  }
  const files = await fileMembers(folder, geometry);
  const refusing = files[slot];
  if (refusing !== undefined) refuseWrites(refusing);
  return files;
}

async function contentOf(engine: Engine, lengthBytes: number): Promise<Uint8Array> {
  const whole = new Uint8Array(lengthBytes).fill(0xa5);
  await engine.read(0, [whole]);
  return whole;
}

test('what a member failed to write is not written to it once more: the first may still land, over what comes later', async () => {
  const below: readonly Device[] = memoryMembers(raid5);
  const faulty = new FaultDevice(below[1] as Device, {
    rules: [{ on: 'write', when: { nth: 1 }, fault: { kind: 'error', code: 'WRITE_FAILED' } }],
  });
  const { engine, exclusions } = make(raid5, below.with(1, faulty), 'event-loop');
  // Two rows in one request: their chunks follow each other on the members, and are written together.
  await engine.write(0, [new Uint8Array(2 * rowBytes).fill(7)]);
  expect(exclusions.map(({ member }) => member)).toEqual([1]);
  expect(faulty.rules().map(({ seen }) => seen)).toEqual([1]);
  await engine.close();
});

for (const driver of drivers) {
  describe(`on ${driver}`, () => {
    for (const lanes of driver === 'lanes' ? [1, 3] : [1]) {
      test(`no write is acknowledged before the exclusion that it relies on is on record (I5), ${lanes} at work`, async () => {
        const record = deferred();
        let called = 0;
        const members = await membersThatRefuse(driver, raid5, 1);
        const { engine } = make(raid5, members, driver, {
          lanes,
          onExclusion: () => {
            called += 1;
            return record.promise;
          },
        });
        const bytes = new Uint8Array(40 * KIB).fill(7);
        // Large and small ones, to every row: jobs for lanes, and jobs that the caller's thread runs itself.
        const writes = [0, 1, 2, 3].flatMap((row) => [
          engine.write(row * rowBytes, [bytes]),
          engine.write(row * rowBytes + 130 * KIB, [bytes.subarray(0, 512)]),
          engine.writeZeroes(row * rowBytes + 200 * KIB, 8 * KIB),
        ]);
        const seen = watch(writes);
        await until(() => called > 0);
        await turns(300);
        // Those that ended before anybody knew relied on nothing; from now on all do.
        const lent = engine.lend(rowBytes);
        assert(lent !== null, 'there is memory to be lent');
        const late = [
          engine.write(0, [lent]),
          ...[0, 1, 2, 3].map((row) => engine.write(row * rowBytes + 64 * KIB, [bytes.subarray(0, 4096)])),
          engine.write(0, [new Uint8Array(4 * rowBytes)]),
          engine.check(0, 64 * KIB),
        ];
        const lateSeen = watch(late);
        await turns(300);
        expect(lateSeen.map(({ settled }) => settled)).toEqual(late.map(() => false));
        expect(seen.some(({ settled }) => !settled)).toBe(true);
        // Reads rely on nothing that a crash could undo.
        await engine.read(0, [new Uint8Array(4096)]);
        record.resolve();
        await Promise.all([...writes, ...late]);
        expect(engine.health.members[1]?.state).toBe('missing');
        await engine.close();
      });
    }

    test('when an exclusion cannot be recorded, no write is acknowledged, then or later (I5)', async () => {
      const { engine } = make(raid5, await membersThatRefuse(driver, raid5, 1), driver, {
        onExclusion: () => Promise.reject(new RaidError('ARRAY_FAILED', 'no superblock was written')),
      });
      const write = (row: number) => engine.write(row * rowBytes, [new Uint8Array(4 * 64 * KIB)]);
      await expect(write(0)).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
      await expect(write(1)).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
      await engine.close();
    });

    // Inline there is no moment in between: the exclusion is known when the call returns.
    if (driver !== 'inline') {
      test('a health that was sent before an exclusion was known does not bring the member back', () =>
        withSeed(runSeed, async (random) => {
          const members = await membersThatRefuse(driver, raid5, 1);
          const layout = compileLayout(raid5);
          const { engine } = make(raid5, members, driver, { lanes: 1 });
          const content = new Uint8Array(layout.arrayBytes);
          const row = layout.kind === 'parity' ? layout.row(0) : null;
          const at = (row?.data.indexOf(1) ?? 0) * 64 * KIB;
          const first = randomBytes(random, 48 * KIB);
          const second = randomBytes(random, 20 * KIB);
          content.set(first, at);
          content.set(second, at + 8 * KIB);
          // All at once: the lane meets the failure, then the old health, then a write that would read what is stale.
          const old = engine.health;
          const jobs = [
            engine.write(at, [first]),
            engine.setHealth(old),
            engine.write(at + 8 * KIB, [second]),
          ];
          await Promise.all(jobs);
          expect(engine.health.members[1]?.state).toBe('missing');
          expect(Buffer.compare(await contentOf(engine, content.length), content)).toBe(0);
          await engine.close();
        }));
    }

    test('closing waits for every request, those that wait for memory too, and refuses what comes after', async () => {
      const geometry = sized(geometryNamed('raid5'), MIB);
      const members = memoryMembers(geometry);
      const { engine } = make(geometry, members, driver, { heapBytes: MIB });
      const requests = Array.from({ length: 40 }, (_, index) =>
        engine.write((index % 3) * MIB, [new Uint8Array(MIB).fill(index + 1)]),
      );
      const closed = engine.close();
      const seen = watch(requests);
      await closed;
      await turns(1);
      expect(seen.every(({ settled }) => settled)).toBe(true);
      await Promise.all(requests);
      await expect(engine.read(0, [new Uint8Array(512)])).rejects.toMatchObject({ code: 'CLOSED' });
      await expect(engine.write(0, [new Uint8Array(512)])).rejects.toMatchObject({ code: 'CLOSED' });
      await expect(engine.check(0, 4096)).rejects.toMatchObject({ code: 'CLOSED' });
      await expect(engine.setHealth(engine.health)).resolves.toBe(undefined);
    });

    test('two thousand requests of a megabyte go through a heap of eight', async () => {
      const geometry = sized(geometryNamed('raid0'), 2 * MIB);
      const { engine } = make(geometry, memoryMembers(geometry), driver);
      const buffer = new Uint8Array(MIB);
      let most = 0;
      let done = 0;
      await Promise.all(
        Array.from({ length: 2000 }, async (_, index) => {
          const work = index % 4 === 0 ? engine.write.bind(engine) : engine.read.bind(engine);
          // Most of them are refused nothing and wait: none of them may hold memory.
          await work((index % 5) * MIB, [index % 100 === 0 ? buffer : buffer.subarray(0, 64 * KIB)]);
          most = Math.max(most, engine.bytesInFlight);
          done += 1;
        }),
      );
      expect(done).toBe(2000);
      expect(most).toBeLessThanOrEqual(8 * MIB);
      expect(engine.bytesInFlight).toBe(0);
      await engine.close();
    });

    test('what the caller does to a buffer after write returned changes nothing, even when memory is short', () =>
      withSeed(runSeed, async (random) => {
        const geometry = sized(geometryNamed('raid6'), MIB);
        const layout = compileLayout(geometry);
        const { engine } = make(geometry, memoryMembers(geometry), driver, { heapBytes: 8 * MIB });
        const content = randomBytes(random, layout.arrayBytes);
        const buffer = content.slice();
        const written = engine.write(0, [buffer]);
        buffer.fill(0xee);
        await written;
        expect(Buffer.compare(await contentOf(engine, content.length), content)).toBe(0);
        // Far more than there is memory for, each over the one before, in parts that lie across the pieces.
        const more = Array.from({ length: 20 }, () => {
          const each = randomBytes(random, layout.arrayBytes);
          content.set(each);
          const cut = 1 + random(layout.arrayBytes - 1);
          const promise = engine.write(0, [each.subarray(0, cut), each.subarray(cut)]);
          each.fill(0x11);
          return promise;
        });
        await Promise.all(more);
        expect(Buffer.compare(await contentOf(engine, content.length), content)).toBe(0);
        expect((await engine.check(0, MIB)).mismatchCount).toBe(0);
        await engine.close();
      }));

    if (driver !== 'lanes') {
      test('an exception fails what is under way, refuses what comes after, and lets the array close', async () => {
        const layout = compileLayout(raid5);
        let isBroken = false;
        const brittle = new Proxy(layout, {
          get: (target, key, receiver) => {
            if (isBroken && key === 'row') throw new InvariantViolation('rows have come apart');
            return Reflect.get(target, key, receiver);
          },
        });
        const { engine } = make(raid5, memoryMembers(raid5), driver, { layout: brittle });
        const bytes = new Uint8Array(64 * KIB);
        await engine.write(0, [bytes]);
        isBroken = true;
        const refused = {
          code: 'WRITE_MAYBE_APPLIED',
          message: expect.stringContaining('rows have come apart'),
        };
        await expect(engine.write(0, [bytes])).rejects.toMatchObject(refused);
        await expect(engine.read(0, [bytes])).rejects.toMatchObject({ code: 'READ_ABANDONED' });
        isBroken = false;
        await expect(engine.write(0, [bytes])).rejects.toMatchObject(refused);
        expect(engine.bytesInFlight).toBe(0);
        await engine.close();
      });
    }

    test('a read that loses several places, in several jobs, names each of them and nothing else (I19)', async () => {
      const geometry = { ...raid5, memberBytes: 32 * 64 * KIB };
      const layout = compileLayout(geometry);
      const health = allInSync(geometry);
      const at = (row: number, from: number): ErasedRange => ({
        member: 1,
        offsetBytes: row * 64 * KIB + from,
        lengthBytes: 4 * KIB,
      });
      const { engine } = make(geometry, memoryMembers(geometry), driver, {
        health: {
          members: health.members.with(0, { state: 'missing' }),
          erased: [at(1, 0), at(14, 8 * KIB), at(30, 60 * KIB)],
        },
      });
      const isLost = async (offset: number): Promise<boolean> =>
        await engine.read(offset, [new Uint8Array(4 * KIB)]).then(
          () => false,
          () => true,
        );
      const lost: number[] = [];
      for (let offset = 0; offset < layout.arrayBytes; offset += 4 * KIB)
        if (await isLost(offset)) lost.push(offset);
      const error = await engine.read(0, [new Uint8Array(layout.arrayBytes)]).catch((thrown) => thrown);
      expect(error).toMatchObject({ code: 'REDUNDANCY_LOST' });
      const named = (error as RaidError).place.lost ?? [];
      expect(named.length).toBeGreaterThan(2);
      expect(
        named.flatMap((range) =>
          Array.from(
            { length: range.lengthBytes / (4 * KIB) },
            (_, page) => range.offsetBytes + page * 4 * KIB,
          ),
        ),
      ).toEqual(lost);
      await engine.close();
    });

    test('a loop of awaited reads lets timers and immediates run', async () => {
      const geometry = sized(geometryNamed('raid5'), MIB);
      const { engine } = make(geometry, memoryMembers(geometry), driver);
      let immediates = 0;
      let timers = 0;
      let running = true;
      const tick = (): void => {
        immediates += 1;
        if (running) setImmediate(tick);
      };
      const tock = (): void => {
        timers += 1;
        if (running) setTimeout(tock, 0);
      };
      setImmediate(tick);
      setTimeout(tock, 0);
      const target = new Uint8Array(4 * KIB);
      // Bounded by the number of reads, not by a clock: they alone must let others in.
      for (let read = 0; read < 200_000 && (immediates < 5 || timers < 2); read += 1)
        await engine.read(0, [target]);
      running = false;
      expect(immediates).toBeGreaterThanOrEqual(5);
      expect(timers).toBeGreaterThanOrEqual(2);
      await engine.close();
    });

    for (const [title, geometry] of [
      ['a heap that holds no whole row', { ...raid5, chunkBytes: 256 * KIB, memberBytes: 2 * MIB }],
      ['rows that do not fit a quarter of the heap evenly', { ...raid5, memberCount: 4, memberBytes: MIB }],
    ] as const) {
      for (const heapBytes of [MIB, 3 * MIB - 1]) {
        test(`${title}: ${heapBytes} bytes of heap, blocks of 4096, and every stripe on one lane`, () =>
          withSeed(runSeed, async (random) => {
            const layout = compileLayout(geometry);
            const members = memoryMembers(geometry, 4 * KIB);
            // Through their own operations the members refuse what is not whole blocks.
            const { engine, exclusions } = make(geometry, members, driver, { heapBytes, lanes: 3 });
            const content = new Uint8Array(layout.arrayBytes);
            for (let round = 0; round < 3; round += 1) {
              const writes: Promise<void>[] = [];
              // Neighbours: their ends meet in one row again and again.
              for (let at = 0; at < content.length; ) {
                const count = Math.min(content.length - at, (1 + random(60)) * 4 * KIB);
                const bytes = randomBytes(random, count);
                content.set(bytes, at);
                writes.push(engine.write(at, [bytes]));
                at += count;
              }
              await Promise.all(writes);
            }
            expect(exclusions).toEqual([]);
            expect(Buffer.compare(await contentOf(engine, content.length), content)).toBe(0);
            expect((await engine.check(0, layout.memberBytes[0] ?? 0)).mismatchCount).toBe(0);
            const images = imagesOf(layout, content);
            for (const [slot, member] of members.entries())
              expect(Buffer.compare(new Uint8Array(member.memory), images[slot] ?? new Uint8Array())).toBe(0);
            await engine.close();
          }));
      }
    }

    test('a recovering member that takes no writes is reported, and nothing breaks', async () => {
      const geometry = sized(geometryNamed('raid5'), MIB);
      const members = await membersThatRefuse(driver, geometry, 2);
      const health = allInSync(geometry);
      const recovering = {
        ...health,
        members: health.members.with(2, { state: 'recovering', recoveredBytes: 0 }),
      };
      const { engine, exclusions } = make(geometry, members, driver, { health: recovering });
      // Many jobs at once: the first excludes the member, the others find it gone.
      await engine.recover(2, 0, MIB).catch((error: unknown) => {
        expect(error).toMatchObject({ code: 'MEMBER_GONE' });
      });
      expect(exclusions.map(({ member }) => member)).toEqual([2]);
      await engine.read(0, [new Uint8Array(64 * KIB)]);
      await engine.close();
    });

    test('parity that a write cannot compute on a recovering member counts for nothing when recovery is said to have passed', async () => {
      const layout = compileLayout(raid5);
      assert(layout.kind === 'parity', 'raid5 has parity');
      const members = memoryMembers(raid5);
      const row = layout.row(0);
      const [lost = 0, other = 1] = row.data;
      const page = 4 * KIB;
      const bad: ErasedRange = { member: lost, offsetBytes: page, lengthBytes: page };
      const health = allInSync(raid5);
      const { engine, damaged } = make(raid5, members, driver, {
        health: {
          members: health.members.with(row.p, { state: 'recovering', recoveredBytes: 0 }),
          erased: [bad],
        },
      });
      // All that there was to recover has been, when the neighbour of a bad page is written.
      await engine.recover(row.p, 0, page);
      await engine.recover(row.p, 2 * page, layout.chunkBytes - 2 * page);
      await engine.write(layout.chunkBytes, [new Uint8Array(3 * page).fill(7)]);
      const unwritten = damaged.map(({ member, offsetBytes, lengthBytes }) => [
        member,
        offsetBytes,
        lengthBytes,
      ]);
      expect(unwritten).toEqual([[row.p, page, page]]);
      await engine.setHealth({ ...health, erased: [bad, ...damaged] });
      await expect(engine.read(page, [new Uint8Array(page)])).rejects.toMatchObject({
        code: 'REDUNDANCY_LOST',
      });
      const found = new Uint8Array(3 * page);
      await engine.read(layout.chunkBytes, [found]);
      expect(found.every((byte) => byte === 7)).toBe(true);
      expect(new Uint8Array(members[other]?.memory ?? new ArrayBuffer(0))[0]).toBe(7);
      await engine.close();
    });

    test('on an array that is only read, what cannot be read is recomputed, and nobody is excluded for not being rewritten', async () => {
      const geometry = sized(geometryNamed('raid5'), MIB);
      const content = new Uint8Array(3 * MIB).map((_, index) => index >> 9);
      const images = imagesOf(compileLayout(geometry), content);
      const members = slotsOf(geometry).map((slot) => {
        const memory = new SharedArrayBuffer(MIB);
        new Uint8Array(memory).set(images[slot] ?? []);
        const device = new MemoryDevice({ sizeBytes: MIB, memory, readOnly: true });
        const rule = {
          on: 'read',
          range: { offsetBytes: 8 * KIB, lengthBytes: 512 },
          fault: { kind: 'error', code: 'MEDIUM_ERROR' },
        } as const;
        return slot === 0 && driver === 'event-loop' ? new FaultDevice(device, { rules: [rule] }) : device;
      });
      const { engine, exclusions, corrections } = make(geometry, members, driver, { readOnly: true });
      expect(Buffer.compare(await contentOf(engine, content.length), content)).toBe(0);
      expect(exclusions).toEqual([]);
      expect(corrections).toEqual([]);
      await engine.close();
    });
  });
}

describe('on event-loop', () => {
  test('a write that ends while the job that excluded a member is still at work waits for the record too (I5)', async () => {
    const record = deferred();
    let called = 0;
    const raid6: Geometry = { ...raid5, level: 'raid6', layout: 'left-symmetric', memberCount: 6 };
    const layout = compileLayout(raid6);
    // In row 0 the member of D0 has a bad page, that of D1 takes no writes, and that of D3 hangs when D0 is healed.
    const data = layout.kind === 'parity' ? layout.row(0).data : [];
    const below = memoryMembers(raid6);
    const range = { offsetBytes: 0, lengthBytes: 4096 };
    const members = below.map((device, slot): Device => {
      if (slot === data[0]) {
        const fault = { kind: 'error', code: 'MEDIUM_ERROR' } as const;
        return new FaultDevice(device, { rules: [{ on: 'read', range, clearedByWrite: true, fault }] });
      }
      if (slot === data[1]) {
        const fault = { kind: 'error', code: 'WRITE_FAILED' } as const;
        return new FaultDevice(device, { rules: [{ on: 'write', fault }] });
      }
      if (slot !== data[3]) return device;
      return new DelayDevice(device, { host: realHost });
    });
    const { engine } = make(raid6, members, 'event-loop', {
      onExclusion: () => {
        called += 1;
        return record.promise;
      },
    });
    const refusing = members[data[1] ?? 0];
    const isHealing = (): boolean => refusing instanceof FaultDevice && refusing.hits() > 0;
    const hanging = members[data[3] ?? 0];
    if (!(hanging instanceof DelayDevice)) throw new Error('there is a member that can hang');
    const hold = hanging.hold({ only: ({ op }) => op === 'read' && isHealing() });
    const first = engine.write(64 * KIB, [new Uint8Array(128 * KIB).fill(1)]);
    await until(() => hold.waiting.length > 0);
    expect(called).toBe(0);
    // A full row elsewhere, without D1's member: it needs no reads, and is done long before the first one.
    const second = engine.write(2 * rowBytes, [new Uint8Array(rowBytes).fill(2)]);
    const [seen] = watch([second]);
    await turns(50);
    expect(called).toBe(1);
    expect(seen?.settled).toBe(false);
    record.resolve();
    await second;
    hold.release();
    await first;
    await engine.close();
  });
});

describe.each(drivers)('memory that is lent, %s', (driver) => {
  test('is written from and read into in place, in any state of the members', () =>
    withSeed(runSeed, async (random) => {
      const members = memoryMembers(raid5);
      const { engine } = make(raid5, members, driver);
      const layout = compileLayout(raid5);
      const expected = Buffer.alloc(layout.arrayBytes);
      for (let round = 0; round < 60; round += 1) {
        if (round === 40) {
          const health = allInSync(raid5);
          await engine.setHealth({
            ...health,
            members: health.members.map((member, slot) => (slot === 1 ? { state: 'missing' } : member)),
          });
        }
        const lengthBytes = 1 + random(3 * rowBytes);
        const at = random(layout.arrayBytes - lengthBytes);
        const lent = engine.lend(lengthBytes);
        assert(lent !== null, 'there is memory to be lent');
        lent.fill(round + 1);
        expected.fill(round + 1, at, at + lengthBytes);
        await engine.write(at, [lent]);
        expect(lent.every((byte) => byte === round + 1)).toBe(true);
        lent.fill(0xee);
        await engine.read(at, [lent]);
        expect(lent.every((byte) => byte === round + 1)).toBe(true);
        engine.takeBack(lent);
        // Some of it, behind a part that stays as it is.
        const part = engine.lend(3 * 4096);
        assert(part !== null, 'there is memory to be lent');
        part.fill(0xee);
        await engine.read(0, [part.subarray(100, 5000)]);
        expect(Buffer.compare(part.subarray(100, 5000), expected.subarray(0, 4900))).toBe(0);
        expect([part[99], part[5000]]).toEqual([0xee, 0xee]);
        engine.takeBack(part);
      }
      const seen = Buffer.alloc(layout.arrayBytes);
      await engine.read(0, [seen]);
      expect(Buffer.compare(seen, expected)).toBe(0);
      await engine.close();
    }));

  test('is none of what requests take: they go on when all of it is lent, and none is left unlent', async () => {
    const { engine } = make(raid5, memoryMembers(raid5), driver, { heapBytes: 2 * MIB });
    const lent: Uint8Array[] = [];
    for (let one = engine.lend(64 * KIB); one !== null; one = engine.lend(64 * KIB)) lent.push(one);
    expect(lent.length).toBe(32);
    const buffer = new Uint8Array(2 * rowBytes).fill(9);
    await Promise.all([0, 1, 2, 3].map(() => engine.write(0, [buffer])));
    for (const one of lent) engine.takeBack(one);
    expect(engine.lend(3 * MIB)).toBeNull();
    const whole = engine.lend(2 * MIB);
    expect(whole?.byteLength).toBe(2 * MIB);
    await engine.close();
  });
});

test('members that one thread reaches, and others do not, are for the calling thread', async () => {
  class OneThreadDevice extends MemoryDevice {
    override get direct(): DirectAccess {
      const bytes = new Uint8Array(this.memory);
      const calls: BlockingCalls = {
        read: (at, target) => target.set(bytes.subarray(at, at + target.byteLength)),
        write: (at, source) => bytes.set(source, at),
        flush: () => undefined,
      };
      return { kind: 'calls', calls, offsetBytes: 0 };
    }
  }
  const geometry = geometryNamed('raid1');
  const members = memoryMembers(geometry).map(
    ({ limits: { sizeBytes } }) => new OneThreadDevice({ sizeBytes }),
  );
  const lanes = (): RaidArray => new RaidArray({ geometry, members, driver: 'lanes', cores: 2 });
  expect(lanes).toThrow(/can be reached by one thread only, and not by the driver lanes; take inline/);
  const array = new RaidArray({ geometry, members, cores: 2 });
  expect(array.engine.driver).toBe('inline');
  const content = new Uint8Array(array.limits.sizeBytes).fill(7);
  await array.write(0, content);
  const found = new Uint8Array(content.byteLength);
  await array.read(0, found);
  expect(Buffer.compare(found, content)).toBe(0);
  await array.close();
});

test('slow requests, and not a single one, which is the scheduler, leave the calling thread to others', async () => {
  let takesMs = 0;
  let clockMs = 0;
  // Each look at the clock finds it so much later: the two around a request that is carried out at once.
  const now = (): number => {
    clockMs += takesMs;
    return clockMs;
  };
  const { engine } = make(raid5, memoryMembers(raid5), 'lanes', { lanes: 1, host: { ...realHost, now } });
  /** Whether it ended without a turn of the event loop. */
  const isReadHere = async (ms: number): Promise<boolean> => {
    takesMs = ms;
    let isRead = false;
    const reading = engine.read(0, [new Uint8Array(4096)]).then(() => {
      isRead = true;
    });
    takesMs = 0;
    for (let step = 0; step < 10; step += 1) await Promise.resolve();
    const wasHere = isRead;
    await reading;
    await turns(1);
    return wasHere;
  };
  const reads = async (count: number, ms: number): Promise<boolean[]> => {
    const seen: boolean[] = [];
    for (let index = 0; index < count; index += 1) seen.push(await isReadHere(ms));
    return seen;
  };
  const all = (count: number, value: boolean): boolean[] => new Array<boolean>(count).fill(value);
  for (const ms of [1, 10, 1000]) {
    // Once in a while one waits for its turn.
    for (let round = 0; round < 10; round += 1) {
      expect(await reads(1, ms)).toEqual([true]);
      expect(await reads(20, 0)).toEqual(all(20, true));
    }
  }
  // A disk whose every request takes that long.
  expect(await reads(5, 5)).toEqual(all(5, true));
  expect(await reads(1000, 0)).toEqual(all(1000, false));
  expect(await reads(20, 0)).toEqual(all(20, true));
  await engine.close();
});

test('of small reads that are asked for at once a sleeping lane gets some, where there are others to sleep', async () => {
  let clockMs = 0;
  const host = { ...realHost, now: () => clockMs };
  const { engine } = make(raid5, memoryMembers(raid5), 'lanes', { lanes: 2, host });
  for (let round = 0; round < 20; round += 1) {
    clockMs += 10;
    let ended = 0;
    const reads = [0, 0].map(() => engine.read(0, [new Uint8Array(4096)]).then(() => (ended += 1)));
    for (let step = 0; step < 10; step += 1) await Promise.resolve();
    expect(ended).toBe(1);
    await Promise.all(reads);
    await turns(300);
  }
  await engine.close();
});

test.each([
  ['a sector that cannot be read', 'MEDIUM_ERROR'],
  ['a member that ends early', 'SHORT_READ'],
  ['a member that is gone', 'MEMBER_GONE'],
] as const)(
  'small reads, one by one, over %s: all is there, and what was wrong is told',
  async (_what, code) => {
    const bad = { from: 70 * KIB, to: 70 * KIB + 512 };
    let isBad = false;
    class CalledDevice extends MemoryDevice {
      override get direct(): DirectAccess {
        const bytes = new Uint8Array(this.memory);
        const calls: BlockingCalls = {
          read: (at, target) => {
            const meets = code === 'MEMBER_GONE' || (at < bad.to && at + target.byteLength > bad.from);
            if (isBad && meets && this.name === 'm2') throw new RaidError(code, 'as it was told', {});
            target.set(bytes.subarray(at, at + target.byteLength));
          },
          write: (at, source) => {
            if (at <= bad.from && at + source.byteLength >= bad.to) isBad = false;
            bytes.set(source, at);
          },
          flush: () => undefined,
        };
        return { kind: 'calls', calls, offsetBytes: 0 };
      }
    }
    const members = memoryMembers(raid5).map(
      ({ limits: { sizeBytes } }, index) => new CalledDevice({ sizeBytes, name: `m${index}` }),
    );
    const { engine, exclusions, corrections } = make(raid5, members, 'inline');
    const content = new Uint8Array(4 * rowBytes).map((_, index) => 1 + ((index >> 9) % 250));
    await engine.write(0, [content]);
    isBad = true;
    for (let at = 0; at < content.byteLength; at += 4096) {
      const seen = new Uint8Array(4096);
      await engine.read(at, [seen]);
      expect(Buffer.compare(seen, content.subarray(at, at + 4096))).toBe(0);
    }
    const isGone = code !== 'MEDIUM_ERROR';
    expect(exclusions.map(({ member }) => member)).toEqual(isGone ? [2] : []);
    expect(corrections.map(({ member }) => member)).toEqual(isGone ? [] : [2]);
    await engine.close();
  },
);
