/**
 * Arrays whose members fail: through fault filters on the event loop, and real files that are truncated, closed or made
 * read-only under lanes and under the caller's thread. Reads are reconstructed, what is expelled stays out, and what
 * the array cannot do is an error, never wrong bytes.
 */
import { closeSync, truncateSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { afterAll, describe, expect, test } from 'vitest';
import { RaidArray } from '../../lib/array/array.ts';
import { DelayDevice } from '../../lib/device/delay.ts';
import { FaultDevice, type FaultRule } from '../../lib/device/fault.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { RaidError } from '../../lib/errors.ts';
import { realHost } from '../../lib/host.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { directFolder, scratchFolder } from '../device/scratch.ts';
import {
  drivers,
  fileMembers,
  memoryMembers,
  refuseReads,
  refuseWrites,
  turns,
  until,
} from '../engine/members.ts';
import { geometryNamed, memberBytesOf, sized, slotsOf } from '../engine/world.ts';

const folder = await scratchFolder();
const direct = await directFolder(folder);
afterAll(() => rm(folder, { recursive: true }));

const redundant = ['raid1', 'raid4', 'raid5', 'raid6', 'raid10 near', 'raid10 far', 'raid10 offset'] as const;

async function scrub(array: RaidArray, repair = false): Promise<number> {
  let mismatchCount = 0;
  for await (const progress of array.scrub({ repair })) mismatchCount = progress.mismatchCount;
  return mismatchCount;
}

async function expectContent(array: RaidArray, content: Uint8Array): Promise<void> {
  const whole = new Uint8Array(content.length).fill(0xa5);
  await array.read(0, whole);
  expect(Buffer.compare(whole, content)).toBe(0);
}

interface Faulty {
  readonly array: RaidArray;
  readonly members: readonly FaultDevice[];
  readonly content: Uint8Array;
}

/** On the event loop, filled, then with these rules on one member. */
async function faulty(geometry: Geometry, slot: number, rules: readonly FaultRule[]): Promise<Faulty> {
  const members = memoryMembers(geometry).map((device) => new FaultDevice(device));
  const array = new RaidArray({ geometry, members, heapBytes: 8 * MIB });
  const content = new Uint8Array(array.limits.sizeBytes).map((_, index) => (index >> 9) ^ index);
  await array.write(0, content);
  for (const rule of rules) members[slot]?.add(rule);
  return { array, members, content };
}

const error = (code: 'MEDIUM_ERROR' | 'MEMBER_GONE' | 'WRITE_FAILED' | 'FLUSH_FAILED') =>
  ({ kind: 'error', code }) as const;

describe('on event-loop', () => {
  for (const name of redundant) {
    const geometry = geometryNamed(name);

    test(`${name}: a sector that cannot be read is recomputed, rewritten and counted, once`, async () => {
      const range = { offsetBytes: 4 * KIB + 512, lengthBytes: 512 };
      const { array, members, content } = await faulty(geometry, 0, [
        { on: 'read', range, clearedByWrite: true, fault: error('MEDIUM_ERROR') },
      ]);
      // A scrub reads everything, whichever copy a read would have taken.
      expect(await scrub(array)).toBe(0);
      expect(array.members[0]?.errors).toEqual({ read: 1, write: 0, corrected: 1 });
      const hits = members[0]?.hits() ?? 0;
      expect(hits).toBeGreaterThan(0);
      await expectContent(array, content);
      expect(await scrub(array)).toBe(0);
      expect(members[0]?.hits()).toBe(hits);
      expect(array.state).toBe('clean');
      await array.close();
    });

    test(`${name}: a member that is pulled is out, and everything still reads and writes`, async () => {
      const { array, content } = await faulty(geometry, 1, [{ on: 'any', fault: error('MEMBER_GONE') }]);
      expect(await scrub(array)).toBe(0);
      await expectContent(array, content);
      content.fill(0x77, 1000, 9000);
      await array.write(1000, content.subarray(1000, 9000));
      await expectContent(array, content);
      expect(array.members[1]?.state.state).toBe('faulty');
      expect(array.state).toBe('degraded');
      await array.close();
    });

    test(`${name}: a member whose flush fails once is out for good, and the flush is the others'`, async () => {
      const { array, content } = await faulty(geometry, 1, [
        { on: 'flush', when: 'once', fault: { ...error('FLUSH_FAILED'), forgets: true } },
      ]);
      await array.flush();
      expect(array.members[1]?.state.state).toBe('faulty');
      await array.flush();
      await expectContent(array, content);
      expect(array.degraded).toBe(1);
      await array.close();
    });
  }

  test('when too few members make their writes durable, flush says so, every time, and nobody is expelled', async () => {
    const { array, members } = await faulty(geometryNamed('raid5'), 1, [
      { on: 'flush', fault: error('FLUSH_FAILED') },
    ]);
    members[2]?.add({ on: 'flush', fault: error('FLUSH_FAILED') });
    await expect(array.flush()).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
    await expect(array.flush()).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
    expect(array.degraded).toBe(0);
    await expect(array.close()).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
  });

  test('the last copy is never expelled: its errors are the request’s', async () => {
    const { array, members, content } = await faulty(geometryNamed('raid1'), 0, []);
    await array.fail(1);
    await array.fail(2);
    await expect(array.fail(0)).rejects.toMatchObject({ code: 'LAST_COPY' });
    const range = { offsetBytes: 4096, lengthBytes: 4096 };
    members[0]?.add({ on: 'read', range, fault: error('MEDIUM_ERROR') });
    members[0]?.add({ on: 'write', range, fault: error('WRITE_FAILED') });
    await expect(array.read(0, new Uint8Array(12 * KIB))).rejects.toMatchObject({
      code: 'REDUNDANCY_LOST',
      place: range,
    });
    await expect(array.write(4096, new Uint8Array(100))).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
    const rest = new Uint8Array(4096);
    await array.read(8192, rest);
    expect(Buffer.compare(rest, content.subarray(8192, 12288))).toBe(0);
    expect(array.members[0]?.state.state).toBe('in_sync');
    await array.close();
  });

  test.each(['raid10 far', 'raid10 offset'] as const)(
    '%s: what one copy has been read to hold, another that did not take it is not read to deny',
    async (name) => {
      const { array, members, content } = await faulty(geometryNamed(name), 0, []);
      // From here on everybody holds something that nobody else does.
      for (const slot of members.keys())
        await array.fail(slot).catch((failure: RaidError) => expect(failure.code).toBe('LAST_COPY'));
      const isIn = (slot: number): boolean => array.members[slot]?.state.state === 'in_sync';
      const inSync = members.flatMap((_, slot) => (isIn(slot) ? [slot] : []));
      for (const refusing of inSync) {
        const id = members[refusing]?.add({ on: 'write', fault: error('WRITE_FAILED') });
        let refused = 0;
        for (let at = 0; at < content.length; at += 4096) {
          const failure = await array.write(at, new Uint8Array(4096).fill(refusing + 1)).catch((why) => why);
          if (failure === undefined) continue;
          expect(failure).toMatchObject({ code: 'REDUNDANCY_LOST' });
          refused += 1;
        }
        expect(refused).toBeGreaterThan(0);
        expect(isIn(refusing)).toBe(true);
        const seen = new Uint8Array(content.length);
        await array.read(0, seen);
        for (const unreadable of inSync.filter((slot) => slot !== refusing)) {
          const rule = members[unreadable]?.add({ on: 'read', fault: error('MEDIUM_ERROR') });
          for (let at = 0; at < content.length; at += 4096) {
            const again = new Uint8Array(4096);
            const failure = await array.read(at, again).catch((why) => why);
            if (failure === undefined) expect(Buffer.compare(again, seen.subarray(at, at + 4096))).toBe(0);
            else expect(failure).toMatchObject({ code: 'REDUNDANCY_LOST' });
          }
          if (rule !== undefined) members[unreadable]?.remove(rule);
        }
        if (id !== undefined) members[refusing]?.remove(id);
        await array.write(0, content);
        await expectContent(array, content);
      }
      await array.close();
    },
  );

  test('a write that the last members did not take leaves no garbage behind: what cannot be known cannot be read, until it is written', async () => {
    const { array, members, content } = await faulty(geometryNamed('raid5'), 0, []);
    const { layout } = array;
    const row = layout.kind === 'parity' ? layout.row(0) : null;
    const [lost = 0, refusing = 1] = row?.data ?? [];
    await array.fail(lost);
    const id = members[refusing]?.add({ on: 'write', fault: error('WRITE_FAILED') });
    await expect(array.write(4096, new Uint8Array(4096).fill(1))).rejects.toMatchObject({
      code: 'REDUNDANCY_LOST',
    });
    // D0 is on the missing member, and its row is now half new: nobody has written it, and nobody can compute it.
    await expect(array.read(0, new Uint8Array(4096))).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
    const next = new Uint8Array(4096);
    await array.read(8192, next);
    expect(Buffer.compare(next, content.subarray(8192, 12288))).toBe(0);
    // A whole row needs nothing of the old one.
    if (id !== undefined) members[refusing]?.remove(id);
    content.fill(0x42, 0, 12288);
    await array.write(0, content.subarray(0, 12288));
    await expectContent(array, content);
    await array.close();
  });

  test('a repair goes on over a place that cannot be read', async () => {
    const geometry = sized(geometryNamed('raid6'), 256 * KIB);
    const { array, members, content } = await faulty(geometry, 0, []);
    // Wrong parity in a row, and a bad page in another row of the same piece.
    const { layout } = array;
    const q = layout.kind === 'parity' ? (layout.row(1).q ?? 0) : 0;
    await members[q]?.write(4096 + 100, new Uint8Array(10).fill(0xff));
    const bad = members[layout.kind === 'parity' ? (layout.row(2).data[0] ?? 0) : 0];
    bad?.add({
      on: 'read',
      range: { offsetBytes: 2 * 4096, lengthBytes: 4096 },
      clearedByWrite: true,
      fault: error('MEDIUM_ERROR'),
    });
    expect(await scrub(array, true)).toBeGreaterThan(0);
    expect(await scrub(array)).toBe(0);
    await expectContent(array, content);
    await array.close();
  });

  test('a flush waits for the flush of every member, and a write with fua for both', async () => {
    const geometry = geometryNamed('raid5');
    const members = memoryMembers(geometry).map((device) => new DelayDevice(device, { host: realHost }));
    const array = new RaidArray({ geometry, members, heapBytes: MIB });
    const holds = members.map((member) => member.hold({ only: ({ op }) => op === 'flush' }));
    let flushed = 0;
    const requests = [array.flush(), array.write(0, new Uint8Array(512), { fua: true })].map((request) =>
      request.then(() => {
        flushed += 1;
      }),
    );
    await until(() => holds.every((hold) => hold.waiting.length === 2));
    for (const hold of holds.slice(1)) hold.release();
    await turns(20);
    expect(flushed).toBe(0);
    holds[0]?.release();
    await Promise.all(requests);
    await array.close();
  });
});

for (const driver of drivers) {
  describe(`files on ${driver}`, () => {
    async function make(
      geometry: Geometry,
    ): Promise<{ array: RaidArray; members: FileDevice[]; content: Uint8Array }> {
      const members = await fileMembers(folder, geometry);
      // So small a heap cuts requests so small that each lane has had one of the first, and none is still being born.
      const array = new RaidArray({ geometry, members, driver, lanes: 2, heapBytes: MIB });
      const content = new Uint8Array(array.limits.sizeBytes).map((_, index) => (index >> 9) * 3 + index);
      await array.write(0, content);
      return { array, members, content };
    }

    for (const name of ['raid1', 'raid5', 'raid6', 'raid10 far'] as const) {
      const geometry = sized(geometryNamed(name), 512 * KIB);

      test(`${name}: a member that takes no writes is out, and what was acknowledged is there`, async () => {
        const { array, members, content } = await make(geometry);
        const refusing = members[1];
        if (refusing !== undefined) refuseWrites(refusing);
        content.fill(0x99, 5000, 200_000);
        await Promise.all(
          [0, 1, 2, 3, 4].map((part) => {
            const from = 5000 + part * 39_000;
            return array.write(from, content.subarray(from, from + 39_000));
          }),
        );
        await expectContent(array, content);
        expect(array.members[1]?.state.state).toBe('faulty');
        expect(await scrub(array)).toBe(0);
        await array.close();
      });

      test(`${name}: a member that is gone for reads is out, and everything reads as it should`, async () => {
        const { array, members, content } = await make(geometry);
        const gone = members[1];
        if (gone !== undefined) refuseReads(gone);
        expect(await scrub(array)).toBe(0);
        await expectContent(array, content);
        expect(array.members[1]?.state.state).toBe('faulty');
        await array.close();
      });

      test(`${name}: a member whose file was closed under it is out`, async () => {
        const { array, members, content } = await make(geometry);
        const access = members[1]?.direct;
        if (access?.kind === 'file') closeSync(access.fd);
        expect(await scrub(array)).toBe(0);
        content.fill(0x31, 0, 70_000);
        await array.write(0, content.subarray(0, 70_000));
        await expectContent(array, content);
        expect(array.members[1]?.state.state).toBe('faulty');
        // The number may belong to somebody else by now; the array must not close it again. The device will try to.
        await array.close().catch((failure: unknown) => expect(failure).toBeInstanceOf(RaidError));
      });

      test(`${name}: a member whose file was truncated is out, and no zeros are ever read for data`, async () => {
        const { array, members, content } = await make(geometry);
        // Healed piece by piece, the first rewritten piece would extend the file, and what lies before it read as zeros.
        truncateSync(members[1]?.name ?? '', 64 * KIB);
        const last = new Uint8Array(4 * KIB);
        await array.read(content.length - 4 * KIB, last);
        expect(Buffer.compare(last, content.subarray(content.length - 4 * KIB))).toBe(0);
        expect(await scrub(array)).toBe(0);
        await expectContent(array, content);
        expect(array.members[1]?.state.state).toBe('faulty');
        await array.close();
      });
    }

    test('two members that fail beyond redundancy: an error, and never wrong bytes', async () => {
      const { array, members, content } = await make(sized(geometryNamed('raid5'), 512 * KIB));
      for (const slot of [1, 2]) {
        const member = members[slot];
        if (member !== undefined) refuseReads(member);
      }
      let failures = 0;
      for (let at = 0; at < content.length; at += 4096) {
        const seen = new Uint8Array(4096).fill(0xa5);
        try {
          await array.read(at, seen);
          expect(Buffer.compare(seen, content.subarray(at, at + 4096))).toBe(0);
        } catch (failure) {
          expect(failure).toMatchObject({
            code: 'REDUNDANCY_LOST',
            place: { offsetBytes: at, lengthBytes: 4096 },
          });
          failures += 1;
        }
      }
      expect(failures).toBeGreaterThan(0);
      expect(array.degraded).toBe(1);
      await array.close().catch((failure: unknown) => expect(failure).toBeInstanceOf(RaidError));
    });
  });

  for (const blockBytes of direct.works ? direct.blockBytes : []) {
    for (const name of ['linear', 'raid0', 'raid1', 'raid5', 'raid6', 'raid10 far'] as const) {
      test(`${name} on ${driver}, past the page cache in blocks of ${blockBytes}: no request is refused by a member`, () =>
        withSeed(runSeed, async (random) => {
          const geometry = geometryNamed(name);
          const path = `${folder}/direct-${driver}-${blockBytes}-${name}`;
          const members = await Promise.all(
            slotsOf(geometry).map((slot) =>
              FileDevice.create(`${path}-${slot}.img`, memberBytesOf(geometry, slot), {
                direct: true,
                blockBytes,
              }),
            ),
          );
          const array = new RaidArray({ geometry, members, driver, heapBytes: 8 * MIB });
          expect(array.limits.blockBytes).toBe(blockBytes);
          const content = new Uint8Array(array.limits.sizeBytes);
          const blocks = content.length / blockBytes;
          for (let round = 0; round < 40; round += 1) {
            if (round === 20 && array.layout.kind === 'parity') await array.fail(0);
            const first = random(blocks);
            const count = Math.min(blocks - first, 1 + random(random(2) === 0 ? 2 : 20));
            const bytes = randomBytes(random, count * blockBytes);
            content.set(bytes, first * blockBytes);
            await array.write(first * blockBytes, bytes);
          }
          await expectContent(array, content);
          expect(await scrub(array)).toBe(0);
          const faultyMembers = array.members.filter(({ state }) => state.state === 'faulty');
          expect(faultyMembers).toHaveLength(array.layout.kind === 'parity' ? 1 : 0);
          await array.close();
        }));
    }
  }
}

if (!direct.works) test(`O_DIRECT members: not tried, ${direct.why}`, (context) => context.skip(direct.why));
