/**
 * Workers that die: idle, with jobs waiting, in the middle of a commit, right after one, twice under one job, while
 * members fail too. Nothing acknowledged may be lost, redundancy must agree afterwards (I9), and every promise settles (I16).
 */
import { readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { afterAll, describe, expect, test } from 'vitest';
import type { Device } from '../../lib/device/device.ts';
import type { FileDevice } from '../../lib/device/file.ts';
import { Engine, type EngineOptions } from '../../lib/engine/engine.ts';
import { Lanes } from '../../lib/engine/lanes.ts';
import { createMemory } from '../../lib/engine/memory.ts';
import { type Exclusion, type Report, SharedHealth } from '../../lib/engine/run.ts';
import { RaidError } from '../../lib/errors.ts';
import { realHost } from '../../lib/host.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import { syncBytes } from '../../lib/plan/planner.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { type Random, randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { scratchFolder } from '../device/scratch.ts';
import { allInSync, deferred, fileMembers, memoryMembers, refuseWrites, turns, until } from './members.ts';
import { imagesOf } from './world.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

/** Small writes are rmw here, which trusts the old data and the old parity. */
const raid5: Geometry = {
  level: 'raid5',
  layout: 'left-symmetric',
  memberCount: 5,
  chunkBytes: 64 * KIB,
  memberBytes: 4 * 64 * KIB,
};
const raid6: Geometry = { ...raid5, level: 'raid6', layout: 'left-symmetric', memberCount: 6 };
const raid10: Geometry = {
  level: 'raid10',
  memberCount: 4,
  chunkBytes: 64 * KIB,
  memberBytes: 4 * 64 * KIB,
  near: 2,
  far: 1,
  offset: false,
  farSets: 0,
};

interface Made {
  readonly engine: Engine;
  readonly exclusions: Exclusion[];
  readonly content: Uint8Array;
}

function make(
  geometry: Geometry,
  members: readonly (Device | null)[],
  options: Partial<EngineOptions> = {},
): Made {
  const exclusions: Exclusion[] = [];
  const layout = compileLayout(geometry);
  const engine = new Engine({
    layout,
    members,
    health: allInSync(geometry),
    host: realHost,
    driver: 'lanes',
    lanes: 1,
    cores: 2,
    heapBytes: 8 * MIB,
    onExclusion: (news) => {
      exclusions.push(...news);
      return Promise.resolve();
    },
    onCorrection: () => undefined,
    onDamage: () => undefined,
    ...options,
  });
  return { engine, exclusions, content: new Uint8Array(layout.arrayBytes) };
}

/** Everything reads as the model says, and redundancy agrees with it. */
async function verify(geometry: Geometry, { engine, content }: Made): Promise<void> {
  const whole = new Uint8Array(content.length).fill(0xa5);
  await engine.read(0, [whole]);
  expect(Buffer.compare(whole, content)).toBe(0);
  expect((await engine.check(0, syncBytes(compileLayout(geometry)))).mismatchCount).toBe(0);
}

/** Writes that do not overlap, of many sizes, all at once; the model has them. */
function traffic(random: Random, { engine, content }: Made, count: number): Promise<void>[] {
  const writes: Promise<void>[] = [];
  for (let at = random(8) * 512; writes.length < count && at < content.length; ) {
    const length = Math.min(content.length - at, (1 + random(random(3) === 0 ? 300 : 20)) * 512);
    const bytes = randomBytes(random, length);
    content.set(bytes, at);
    writes.push(engine.write(at, [bytes]));
    at += length + random(40) * 512;
  }
  return writes;
}

describe('a worker that dies', () => {
  for (const [title, geometry, lanes] of [
    ['raid5', raid5, 1],
    ['raid6', raid6, 3],
    ['raid10', raid10, 2],
  ] as const) {
    test(`is replaced, again and again, under load, and nothing is lost (${title}, ${lanes} lanes)`, () =>
      withSeed(runSeed, async (random) => {
        const members = memoryMembers(geometry);
        const made = make(geometry, members, { lanes, heapBytes: MIB });
        const { engine } = made;
        for (let round = 0; round < 6; round += 1) {
          const lane = random(lanes);
          const when = (['now', 'in-commit', 'after-commit'] as const)[round % 3] ?? 'now';
          const killed: Promise<void>[] = [];
          if (when !== 'now') killed.push(engine.killLane(lane, when));
          const writes = traffic(random, made, 30);
          if (when === 'now') {
            await turns(random(4));
            killed.push(engine.killLane(lane, 'now'));
          }
          const reads = [0, 1, 2].map((part) => engine.read(part * 1024, [new Uint8Array(700)]));
          await Promise.all([...killed, ...writes, ...reads]);
        }
        await verify(geometry, made);
        const images = imagesOf(compileLayout(geometry), made.content);
        for (const [slot, member] of members.entries())
          expect(Buffer.compare(new Uint8Array(member.memory), images[slot] ?? new Uint8Array())).toBe(0);
        expect(engine.laneDeaths).toBeGreaterThan(0);
        await engine.close();
      }));
  }

  test('idle is replaced, and the next request is carried out', async () => {
    const made = make(raid5, memoryMembers(raid5));
    await made.engine.killLane(0, 'now');
    await made.engine.write(0, [new Uint8Array(128 * KIB).fill(3)]);
    made.content.fill(3, 0, 128 * KIB);
    await verify(raid5, made);
    await made.engine.close();
  });

  test('before it has begun to live is replaced too', async () => {
    const made = make(raid5, memoryMembers(raid5));
    const written = made.engine.write(0, [new Uint8Array(128 * KIB).fill(3)]);
    await made.engine.killLane(0, 'now');
    await written;
    made.content.fill(3, 0, 128 * KIB);
    await verify(raid5, made);
    await made.engine.close();
  });

  test('twice under one job gives that job up as of unknown outcome, and only that one; parity agrees whatever it is', async () => {
    const made = make(raid5, memoryMembers(raid5));
    const { engine, content } = made;
    await engine.killLane(0, 'in-commit');
    const cursed = engine.write(0, [new Uint8Array(20 * KIB).fill(9)]);
    const after = engine.write(256 * KIB, [new Uint8Array(20 * KIB).fill(5)]);
    const refused = expect(cursed).rejects.toMatchObject({ code: 'WRITE_MAYBE_APPLIED' });
    await until(() => engine.laneDeaths === 1);
    await engine.killLane(0, 'now');
    await refused;
    await after;
    expect(engine.laneDeaths).toBe(2);
    content.fill(5, 256 * KIB, 276 * KIB);
    const seen = new Uint8Array(20 * KIB);
    await engine.read(0, [seen]);
    // Each block old or new; the commit that had begun was finished by whoever took over.
    content.set(seen, 0);
    expect(seen.every((byte) => byte === 9)).toBe(true);
    await verify(raid5, made);
    await engine.close();
  });

  for (const when of ['in-commit', 'after-commit'] as const) {
    for (const victim of ['data', 'parity'] as const) {
      test(`${when}, with a ${victim} member that takes no writes: the write is not lost, and the member is out`, () =>
        withSeed(runSeed, async (random) => {
          const layout = compileLayout(raid5);
          const row = layout.kind === 'parity' ? layout.row(0) : null;
          const slot = (victim === 'data' ? row?.data[1] : row?.p) ?? 0;
          const files = await fileMembers(folder, raid5);
          const record = deferred();
          const told: number[] = [];
          const made = make(raid5, files, {
            onExclusion: (news) => {
              told.push(...news.map(({ member }) => member));
              return record.promise;
            },
          });
          const { engine, content } = made;
          const first = randomBytes(random, content.length);
          content.set(first);
          await engine.write(0, [first]);
          const refusing = files[slot];
          if (refusing !== undefined) refuseWrites(refusing);
          await engine.killLane(0, when);
          const bytes = randomBytes(random, 24 * KIB);
          content.set(bytes, 64 * KIB);
          let isAcknowledged = false;
          const written = engine.write(64 * KIB, [bytes]).then(() => {
            isAcknowledged = true;
          });
          await until(() => told.length > 0);
          await turns(50);
          expect(isAcknowledged).toBe(false);
          record.resolve();
          await written;
          expect(told).toEqual([slot]);
          expect(engine.laneDeaths).toBe(1);
          await verify(raid5, made);
          await engine.close();
        }));
    }
  }

  test('while the array closes is replaced until everything is done, and close waits for that', () =>
    withSeed(runSeed, async (random) => {
      const members = memoryMembers(raid6);
      const made = make(raid6, members);
      await made.engine.killLane(0, 'in-commit');
      const writes = traffic(random, made, 40);
      const closed = made.engine.close();
      await Promise.all(writes);
      await closed;
      expect(made.engine.laneDeaths).toBe(1);
      const images = imagesOf(compileLayout(raid6), made.content);
      for (const [slot, member] of members.entries())
        expect(Buffer.compare(new Uint8Array(member.memory), images[slot] ?? new Uint8Array())).toBe(0);
    }));
});

describe('two lanes', () => {
  test('a small read across the border of their territories sees nothing that the other has half done', async () => {
    const geometry: Geometry = { ...raid5, memberBytes: 8 * 64 * KIB };
    const layout = compileLayout(geometry);
    const members = memoryMembers(geometry);
    const border = MIB;
    const row = layout.kind === 'parity' ? layout.row(4) : null;
    const [lost = 0, written = 1] = row?.data ?? [];
    const health = allInSync(geometry);
    const degraded = { ...health, members: health.members.with(lost, { state: 'missing' as const }) };
    const { engine } = make(geometry, members, { lanes: 2, health: degraded });
    await engine.write(0, [new Uint8Array(layout.arrayBytes).fill(0x11)]);
    await engine.killLane(1, 'in-commit');
    const write = engine.write(border + 64 * KIB, [new Uint8Array(20 * KIB).fill(0x77)]);
    // The second lane has written the data and not the parity, and is dead; nobody has noticed yet.
    const seenByMember = new Uint8Array(members[written]?.memory ?? new SharedArrayBuffer(0));
    const sleeper = new Int32Array(new SharedArrayBuffer(4));
    for (let wait = 0; wait < 10_000 && seenByMember[4 * 64 * KIB] !== 0x77; wait += 1)
      Atomics.wait(sleeper, 0, 0, 1);
    // The first bytes behind the border are on the missing member, and computed from just that row.
    const seen = new Uint8Array(200);
    await engine.read(border - 100, [seen]);
    expect(seen.every((byte) => byte === 0x11)).toBe(true);
    await write;
    await engine.close();
  });

  test('that meet different members failing at the same moment do not both go without', async () => {
    const geometry: Geometry = { ...raid5, memberBytes: 8 * 64 * KIB };
    const members = await fileMembers(folder, geometry);
    // Before there are lanes: a thread that is being born opens descriptors too, and could be given these.
    for (const slot of [0, 1]) refuseWrites(members[slot] as FileDevice);
    const { engine, exclusions } = make(geometry, members, { lanes: 2 });
    // Rows 0 and 5 have their parity on member 4 and belong to different lanes; too large to run on this thread.
    const bytes = new Uint8Array(20 * KIB).fill(0x77);
    const places = [0, 5 * 4 * 64 * KIB + 64 * KIB];
    const writes = places.map((place) => engine.write(place, [bytes]));
    const answers = Promise.allSettled(writes);
    // This thread hears nothing until both have committed, all but what the two members refuse.
    const isCommitted = (row: number): boolean =>
      readFileSync(members[4]?.name ?? '')[row * 64 * KIB] === 0x77;
    const sleeper = new Int32Array(new SharedArrayBuffer(4));
    for (let wait = 0; wait < 10_000 && !(isCommitted(0) && isCommitted(5)); wait += 1)
      Atomics.wait(sleeper, 0, 0, 1);
    const outcomes = (await answers).map(({ status }) => status);
    await engine.idle();
    expect(exclusions.length).toBeLessThanOrEqual(1);
    expect(outcomes.filter((status) => status === 'rejected').length).toBe(2 - exclusions.length);
    // What neither write touched is still there, with one member out at most.
    const rest = new Uint8Array(2 * 64 * KIB).fill(0xa5);
    await engine.read(2 * 64 * KIB, [rest]);
    expect(rest.every((byte) => byte === 0)).toBe(true);
    await engine.close();
  });
});

describe('an exception in a lane', () => {
  test('fails what is under way, stops every lane, and lets the array close', async () => {
    const layout = compileLayout(raid5);
    const reports: Report[] = [];
    const map = createMemory(2, MIB);
    const lanes = new Lanes({
      host: realHost,
      map,
      layout,
      health: allInSync(raid5),
      members: memoryMembers(raid5).map((device) => device.direct),
      kernel: undefined,
      readOnly: false,
      log: null,
      mainHealth: new SharedHealth(layout, allInSync(raid5)),
      onReport: (report) => reports.push(report),
    });
    const ended: Report[] = [];
    const job = {
      op: 'read',
      offsetBytes: 0,
      lengthBytes: 4096,
      address: map.heapAddress,
      member: 0,
    } as const;
    // A health of no members is a programming error, which the lane asserts.
    const told = lanes.tell(0, { kind: 'health', health: { members: [], erased: [] } });
    lanes.submit(0, { job, done: (report) => ended.push(report) });
    await told;
    await until(() => ended.length === 1);
    lanes.submit(1, { job, done: (report) => ended.push(report) });
    lanes.submit(0, { job, done: (report) => ended.push(report) });
    expect([lanes.isIdle(0), lanes.isIdle(1)]).toEqual([false, false]);
    await until(() => ended.length === 3);
    for (const { error } of ended) {
      expect(error).toBeInstanceOf(RaidError);
      expect(error?.message).toContain('health speaks of every member');
    }
    await lanes.tellAll({ kind: 'health', health: allInSync(raid5) });
    expect([lanes.isIdle(0), lanes.isIdle(1)]).toEqual([false, false]);
    await lanes.close();
  });
});

describe('more jobs than a ring has slots', () => {
  test('are carried out in order of submission', async () => {
    const made = make(raid5, memoryMembers(raid5));
    const { engine, content } = made;
    const writes = Array.from({ length: 2000 }, (_, index) => {
      const at = (index % 64) * 1024;
      content.fill(index & 255, at, at + 1024);
      return engine.write(at, [new Uint8Array(1024).fill(index & 255)]);
    });
    await Promise.all(writes);
    await verify(raid5, made);
    await engine.close();
  });
});
