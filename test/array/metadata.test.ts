/**
 * What an array keeps on its members besides data, and in which order: the log of every member, kept in one trace, is
 * what these claims are about. Members are in memory; time stands still until a test moves it.
 *
 *   I5  nothing that relies on a member being out is acknowledged before all survivors say that it is out
 *   I6  a bit is on disk before the data that it covers, and goes only after every member has flushed that data
 *   I7  superblocks say "clean" only after every member has flushed
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, type FormOptions, formArray, type Source } from '../../lib/array/form.ts';
import { Intent } from '../../lib/array/intent.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RecordDevice } from '../../lib/device/record.ts';
import type { RaidError } from '../../lib/errors.ts';
import type { Host } from '../../lib/host.ts';
import { seededRandom } from '../../lib/host.ts';
import { Bits, decodeBitmapSuperblock, newBitmapSuperblock } from '../../lib/md/bitmap.ts';
import { decodeSuperblock1, features, ROLE_FAULTY, type Superblock1 } from '../../lib/md/superblock1.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../lib/units.ts';

const scratch = await mkdtemp(join(tmpdir(), 'raidsim-metadata-'));
afterAll(() => rm(scratch, { recursive: true, force: true }));

const SUPER_BYTE = 4096;
const BITMAP_BYTE = 8192;

type Kind = 'super' | 'bitmap' | 'data' | 'flush';

interface Entry {
  readonly member: number;
  readonly kind: Kind;
  readonly event: 'start' | 'done' | 'failed' | 'acknowledged';
  readonly offsetBytes: number;
  readonly superblock: Superblock1 | null;
}

/** Waits before a request goes on; null lets it go. */
type Hold = (
  member: number,
  kind: Kind,
  superblock: Superblock1 | null,
  offsetBytes: number,
) => Promise<void> | null;

interface Trace {
  readonly entries: Entry[];
  hold: Hold;
}

/** A member whose writes and flushes go to the trace that all share. */
class TracedDevice extends RecordDevice {
  readonly #member: number;
  readonly #trace: Trace;

  constructor(below: Device, member: number, trace: Trace) {
    super(below);
    this.#member = member;
    this.#trace = trace;
  }

  protected override doWrite(offset: number, sources: readonly Uint8Array[], fua: boolean): Promise<void> {
    const isSuper = offset === SUPER_BYTE;
    const kind: Kind = isSuper ? 'super' : offset >= BITMAP_BYTE && offset < 64 * KIB ? 'bitmap' : 'data';
    const superblock = isSuper && sources[0] !== undefined ? decodeSuperblock1(sources[0]) : null;
    return this.#note(kind, offset, superblock, () => super.doWrite(offset, sources, fua));
  }

  protected override doFlush(): Promise<void> {
    return this.#note('flush', 0, null, () => super.doFlush());
  }

  async #note(
    kind: Kind,
    offsetBytes: number,
    superblock: Superblock1 | null,
    run: () => Promise<void>,
  ): Promise<void> {
    const entry = { member: this.#member, kind, offsetBytes, superblock };
    this.#trace.entries.push({ ...entry, event: 'start' });
    await this.#trace.hold(this.#member, kind, superblock, offsetBytes);
    try {
      await run();
    } catch (error) {
      this.#trace.entries.push({ ...entry, event: 'failed' });
      throw error;
    }
    this.#trace.entries.push({ ...entry, event: 'done' });
  }
}

/** Time that moves when it is told to. */
class Clock implements Host {
  #ms = 0;
  #sleepers: { readonly dueMs: number; readonly wake: () => void }[] = [];
  readonly random = seededRandom(7);

  now(): number {
    return this.#ms;
  }

  wallClock(): number {
    return 1_700_000_000_000 + this.#ms;
  }

  sleep(ms: number): Promise<void> {
    return new Promise((wake) => this.#sleepers.push({ dueMs: this.#ms + ms, wake }));
  }

  turn(run: () => void): void {
    setImmediate(run);
  }

  randomBytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => this.random(256));
  }

  async pass(ms: number): Promise<void> {
    this.#ms += ms;
    const due = this.#sleepers.filter(({ dueMs }) => dueMs <= this.#ms);
    this.#sleepers = this.#sleepers.filter(({ dueMs }) => dueMs > this.#ms);
    for (const { wake } of due) wake();
    await turns();
  }
}

/** Long enough for anything that waits for nothing but other promises. */
async function turns(count = 40): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

interface World {
  readonly array: RaidArray;
  readonly clock: Clock;
  readonly trace: Trace;
  readonly faults: readonly FaultDevice[];
  readonly memories: readonly SharedArrayBuffer[];
}

const letGo: Hold = () => null;

function memberOn(
  memory: SharedArrayBuffer,
  index: number,
  trace: Trace,
): { readonly fault: FaultDevice; readonly source: Source } {
  const plain = new MemoryDevice({ sizeBytes: memory.byteLength, memory, name: `m${index}` });
  const fault = new FaultDevice(plain);
  const device = new TracedDevice(fault, index, trace);
  return { fault, source: { device, name: `m${index}`, identity: `m${index}` } };
}

async function make(
  options: Partial<FormOptions> & { readonly level: string },
  count: number,
  sizeBytes = 2 * MIB,
): Promise<World> {
  const clock = new Clock();
  const trace: Trace = { entries: [], hold: letGo };
  const memories = Array.from({ length: count }, () => new SharedArrayBuffer(sizeBytes));
  const made = memories.map((memory, index) => memberOn(memory, index, trace));
  const array = await formArray(
    made.map(({ source }) => source),
    {
      name: 'array',
      host: clock,
      assumeClean: true,
      ...(options.level === '1' ? {} : { chunk: '64K' }),
      ...options,
    },
  );
  trace.entries.length = 0;
  return { array, clock, trace, faults: made.map(({ fault }) => fault), memories };
}

async function becomeClean({ array, clock }: World): Promise<void> {
  for (let round = 0; array.metadata?.isActive === true && round < 10; round += 1) await clock.pass(250);
  expect(array.metadata?.isActive).toBe(false);
}

const bytes = (length: number, seed = 1): Uint8Array =>
  new Uint8Array(length).map((_, index) => (index * 31 + seed * 17 + (index >> 8)) & 0xff);

function isSettled(promise: Promise<unknown>): () => boolean {
  let settled = false;
  const note = (): void => {
    settled = true;
  };
  promise.then(note, note);
  return () => settled;
}

/** So many are out that somebody is left whom the array cannot do without: who that is. */
async function needOne(array: RaidArray, count: number): Promise<number> {
  for (const index of [2, 3, 0, 1].filter((each) => each < count)) {
    const refusal = await array.fail(`m${index}`).catch((error: RaidError) => error);
    if (refusal === undefined) continue;
    expect(refusal.code).toBe('LAST_COPY');
    return index;
  }
  return expect.unreachable();
}

interface Held {
  readonly gate: Promise<void>;
  release(): void;
}

function held(): Held {
  let release = (): void => undefined;
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  return { gate, release: () => release() };
}

const accuses = (superblock: Superblock1 | null, descriptor: number): boolean =>
  superblock?.devRoles[descriptor] === ROLE_FAULTY;

const levels = [
  ['raid1', { level: '1' }, 3],
  ['raid5', { level: '5' }, 3],
  ['raid6', { level: '6' }, 4],
  ['raid10', { level: '10' }, 4],
] as const;

/** Whom the freshest superblock counts on though its bitmap is not as memory has it. */
const lackingBits = ({ array, memories }: World): readonly string[] => {
  const said = memories.map((memory) => decodeSuperblock1(new Uint8Array(memory, SUPER_BYTE, 4096).slice()));
  const freshest = said.toSorted((left, right) => right.events - left.events)[0];
  const bits = array.metadata?.bitmap?.bits.area.subarray(256) ?? bytes(0);
  return memories.flatMap((memory, member) => {
    const there = new Uint8Array(memory, BITMAP_BYTE + 256, bits.byteLength);
    const isCounted = freshest?.devRoles[member] === member;
    return isCounted && Buffer.compare(there, bits) !== 0 ? [`m${member}`] : [];
  });
};

describe.each(levels)('%s', (_, shape, count) => {
  test('every superblock says "not clean" before the first byte of data is written', async () => {
    const { array, trace } = await make(shape, count);
    await array.write(0, bytes(4096));
    const first = trace.entries.findIndex(({ kind }) => kind === 'data');
    expect(first).toBeGreaterThan(0);
    for (let member = 0; member < count; member += 1) {
      const before = trace.entries
        .slice(0, first)
        .filter((entry) => entry.member === member && entry.event === 'done');
      expect(before.at(-1)?.superblock?.resyncOffsetSectors).toBe(0);
    }
    await array.close();
  });

  test('a write that waits for the array to become active when it is closed is flushed before "clean" too (I7)', async () => {
    const { array, trace } = await make(shape, count);
    const written = array.write(0, bytes(4096));
    await array.close();
    await written;
    const done = trace.entries.filter(({ event }) => event === 'done');
    const lastData = done.findLastIndex(({ kind }) => kind === 'data');
    const isClean = (entry: Entry): boolean =>
      entry.kind === 'super' && (entry.superblock?.resyncOffsetSectors ?? 0) > 0;
    const firstClean = done.findIndex(isClean);
    expect(lastData).toBeGreaterThan(0);
    expect(firstClean).toBeGreaterThan(lastData);
    const flushed = done.slice(lastData, firstClean).filter(({ kind }) => kind === 'flush');
    expect(new Set(flushed.map(({ member }) => member)).size).toBe(count);
  });

  test('superblocks say "clean" only after every member has flushed what it was given (I7)', async () => {
    const world = await make(shape, count);
    const { array, trace } = world;
    for (const end of ['idle', 'close'] as const) {
      trace.entries.length = 0;
      await Promise.all([array.write(0, bytes(4096)), array.write(200_000, bytes(70_000))]);
      if (end === 'idle') await becomeClean(world);
      else await array.close();
      const lastData = trace.entries.findLastIndex(({ kind, event }) => kind === 'data' && event === 'done');
      const saysClean = trace.entries.findIndex(
        ({ superblock }, index) =>
          index > lastData && superblock?.resyncOffsetSectors === Number.POSITIVE_INFINITY,
      );
      expect(saysClean).toBeGreaterThan(lastData);
      const between = trace.entries.slice(lastData, saysClean);
      for (let member = 0; member < count; member += 1) {
        const flushed = between.some(
          (entry) => entry.kind === 'flush' && entry.member === member && entry.event === 'done',
        );
        expect(flushed, `member ${member} before ${end}`).toBe(true);
      }
    }
  });

  test('no write is acknowledged while survivors do not say yet that a member is out (I5)', async () => {
    for (const how of ['data', 'superblock', 'bitmap', 'by hand'] as const) {
      const { array, trace, faults } = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K' }, count);
      // The array is active, so that nothing but the failure is to be recorded; and for a superblock that fails, it is not.
      if (how !== 'superblock') await array.write(512 * KIB, bytes(512));
      const error = { kind: 'error', code: 'WRITE_FAILED' } as const;
      const range = {
        data: { offsetBytes: MIB, lengthBytes: MIB },
        superblock: { offsetBytes: SUPER_BYTE, lengthBytes: 512 },
        bitmap: { offsetBytes: BITMAP_BYTE, lengthBytes: 4096 },
        'by hand': null,
      }[how];
      if (range !== null) faults[1]?.add({ on: 'write', range, fault: error });
      let letRecord = (): void => undefined;
      const gate = new Promise<void>((resolve) => {
        letRecord = resolve;
      });
      trace.hold = (_member, kind, superblock) => (kind === 'super' && accuses(superblock, 1) ? gate : null);
      const failing = how === 'by hand' ? array.fail(1) : Promise.resolve();
      await turns(5);
      // One write to each place of several stripes: whichever member has failed, some need not touch it at all.
      const writes = [0, 1, 2, 3, 4, 5].map((index) => array.write(index * 64 * KIB, bytes(64 * KIB, index)));
      const settled = writes.map(isSettled);
      await turns();
      const flush = array.flush();
      const flushed = isSettled(flush);
      await turns();
      expect(
        trace.entries.some(({ superblock }) => accuses(superblock, 1)),
        how,
      ).toBe(true);
      const early = settled.flatMap((each, index) => (each() ? [index] : []));
      expect(early, `${how}: acknowledged although the failure is not on record`).toEqual([]);
      expect(flushed(), `${how}: flushed`).toBe(false);
      letRecord();
      await Promise.all([...writes, flush, failing]);
      expect(array.members.find(({ name }) => name === 'm1')?.state.state).toBe('faulty');
      // Two events behind on every survivor: out for every kernel.
      const events = array.metadata?.array.events ?? 0;
      const accusing = trace.entries.filter(
        ({ superblock, event }) => event === 'done' && accuses(superblock, 1),
      );
      expect(accusing.length).toBeGreaterThanOrEqual(2 * (count - 1));
      expect(events).toBeGreaterThan(2);
      trace.hold = letGo;
      await array.close();
    }
  });

  test('a bit is on every member before the data that it covers (I6)', async () => {
    const { array, trace } = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K' }, count);
    await array.write(0, bytes(4096));
    // Each in a row of its own.
    for (const at of [256 * KIB, 512 * KIB, 768 * KIB]) {
      trace.entries.length = 0;
      await array.write(at, bytes(4096));
      const first = trace.entries.findIndex(({ kind }) => kind === 'data');
      const written = trace.entries
        .slice(0, first)
        .filter(({ kind, event }) => kind === 'bitmap' && event === 'done');
      expect(new Set(written.map(({ member }) => member)).size).toBe(count);
    }
    await array.close();
  });

  test('data is written only when whoever superblocks count on has the bits that cover it (I4), though one has refused them', async () => {
    for (const when of ['once', 'forever'] as const) {
      for (const isActive of [true, false]) {
        const world = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K' }, count);
        const { array, trace, faults } = world;
        if (isActive) await array.write(0, bytes(4096));
        const range = { offsetBytes: BITMAP_BYTE, lengthBytes: 4096 };
        faults[1]?.add({ on: 'write', range, when, fault: { kind: 'error', code: 'WRITE_FAILED' } });
        const without: string[] = [];
        trace.hold = (_member, kind) => {
          if (kind !== 'data') return turns(8);
          without.push(...lackingBits(world));
          return null;
        };
        await array.write(512 * KIB, bytes(300_000));
        expect(without, `${when}, active: ${isActive}`).toEqual([]);
        expect(array.members.find(({ name }) => name === 'm1')?.state.state).toBe('faulty');
        trace.hold = letGo;
        await array.close();
      }
    }
  });

  test('nor is it written where that one is gone cannot be put on record, at the first attempt or at any later one (I4)', async () => {
    const world = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K' }, count);
    const { array, trace, faults } = world;
    await array.write(0, bytes(4096));
    const fault = { kind: 'error', code: 'WRITE_FAILED' } as const;
    for (const [member, each] of faults.entries()) {
      const at = member === 1 ? BITMAP_BYTE : SUPER_BYTE;
      each.add({ on: 'write', range: { offsetBytes: at, lengthBytes: 4096 }, fault });
    }
    const without: string[] = [];
    trace.hold = (_member, kind) => {
      if (kind === 'data') without.push(...lackingBits(world));
      return null;
    };
    for (const at of [512 * KIB, 600 * KIB, 700 * KIB])
      await expect(array.write(at, bytes(4096))).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
    expect(without).toEqual([]);
    trace.hold = letGo;
    await array.close().catch(() => undefined);
  });

  test('bits go when the array is idle, after every member has flushed; but not while one is missing (I6)', async () => {
    const world = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K' }, count);
    const { array, trace } = world;
    await array.write(0, bytes(300_000));
    expect(array.metadata?.bitmap?.bits.count()).toBeGreaterThan(0);
    trace.entries.length = 0;
    await becomeClean(world);
    expect(array.metadata?.bitmap?.bits.count()).toBe(0);
    const cleared = trace.entries.findIndex(({ kind }) => kind === 'bitmap');
    const flushed = trace.entries
      .slice(0, cleared)
      .filter(({ kind, event }) => kind === 'flush' && event === 'done');
    expect(new Set(flushed.map(({ member }) => member)).size).toBe(count);

    await array.fail(1);
    const missed = array.metadata?.bitmap?.superblock.eventsCleared;
    await array.write(0, bytes(300_000));
    const bits = array.metadata?.bitmap?.bits.count();
    await becomeClean(world);
    expect(array.metadata?.bitmap?.bits.count()).toBe(bits);
    expect(array.metadata?.bitmap?.superblock.eventsCleared).toBe(missed);
    await array.close();
  });

  test('bits stay from the moment at which a member has not flushed, and not only when that is on record (I6)', async () => {
    const world = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K' }, count);
    const { array, trace, faults } = world;
    await array.write(0, bytes(300_000));
    const bits = array.metadata?.bitmap?.bits.count();
    const { gate, release } = held();
    trace.hold = (_member, kind, superblock) =>
      kind === 'super' && superblock !== null && accuses(superblock, 1) ? gate : null;
    faults[1]?.add({ on: 'flush', fault: { kind: 'error', code: 'WRITE_FAILED' } });
    const flush = array.flush();
    await world.clock.pass(250);
    await world.clock.pass(250);
    expect(array.metadata?.array.members.every(({ state }) => state === 'in_sync')).toBe(true);
    expect(array.metadata?.bitmap?.bits.count()).toBe(bits);
    release();
    await flush;
    await becomeClean(world);
    expect(array.metadata?.bitmap?.bits.count()).toBe(bits);
    await array.close();
  });

  test('superblocks that count on one who is out never say that the array is clean (I7), whether it rests or is closed', async () => {
    const world = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K', autoSync: false }, count);
    const { array, faults, memories } = world;
    await array.write(0, bytes(300_000));
    const error = { kind: 'error', code: 'WRITE_FAILED' } as const;
    faults[0]?.add({ on: 'flush', fault: error });
    // Nobody takes a bitmap, and so no record of the failure is begun.
    const range = { offsetBytes: BITMAP_BYTE, lengthBytes: 4096 };
    const rules = faults.map((fault) => fault.add({ on: 'write', range, fault: error }));
    const answers = [array.flush(), array.write(0, bytes(4096, 2))].map((work) =>
      work.catch(() => undefined),
    );
    const said = (): readonly Superblock1[] =>
      memories.map((memory) => decodeSuperblock1(new Uint8Array(memory, SUPER_BYTE, 4096).slice()));
    const isWrong = ({ devRoles, resyncOffsetSectors }: Superblock1): boolean =>
      devRoles[0] === 0 && resyncOffsetSectors === Number.POSITIVE_INFINITY;
    for (let round = 0; round < 4; round += 1) {
      await world.clock.pass(250);
      expect(said().some(isWrong)).toBe(false);
    }
    for (const [index, rule] of rules.entries()) faults[index]?.remove(rule);
    for (let round = 0; round < 4; round += 1) {
      await world.clock.pass(250);
      expect(said().some(isWrong)).toBe(false);
    }
    await Promise.all(answers);
    await array.close();
    const closed = said();
    const freshest = closed.toSorted((left, right) => right.events - left.events)[0];
    expect(freshest?.resyncOffsetSectors).toBe(Number.POSITIVE_INFINITY);
    expect(closed.some(isWrong)).toBe(false);
  });

  test('who refuses a call while the array is closed, and is not needed, is out on record', async () => {
    // One that is away in its own life is put on record by what closing writes first; how far a resync is, by what it writes last.
    const states = ['whole', 'half resynced', ...(shape.level === '5' ? [] : ['with one away'])];
    for (const state of states) {
      for (const on of ['write', 'flush'] as const) {
        let isMet = true;
        for (let nth = 1; isMet; nth += 1) {
          const isResynced = state !== 'half resynced';
          const form = { ...shape, bitmap: 'internal', assumeClean: isResynced, autoSync: false } as const;
          const { array: first, clock, memories } = await make(form, count);
          await first.write(0, bytes(300_000));
          await first.close();
          const trace: Trace = { entries: [], hold: letGo };
          const made = memories.map((memory, index) => memberOn(memory, index, trace));
          const sources = made.map(({ source }) => source);
          const { array } = await assembleDevices(
            state === 'with one away' ? sources.filter((_, index) => index !== 2) : sources,
            { name: 'array', host: clock, run: true, autoSync: false, windowBytes: 64 * KIB },
          );
          if (state === 'whole') await array.write(0, bytes(4096, 2));
          if (!isResynced) for await (const { doneBytes } of array.rebuild()) if (doneBytes > 0) break;
          // As disks do, they take a while.
          trace.hold = () => turns(8);
          const error = { kind: 'error', code: on === 'write' ? 'WRITE_FAILED' : 'FLUSH_FAILED' } as const;
          made[0]?.fault.add({ on, when: { nth }, fault: error });
          await array.close();
          isMet = made[0]?.fault.hits() === 1;
          const said = memories.map((memory) =>
            decodeSuperblock1(new Uint8Array(memory, SUPER_BYTE, 4096).slice()),
          );
          const freshest = said.toSorted((left, right) => right.events - left.events)[0];
          const where = `${on} ${nth}, ${state}`;
          expect(accuses(freshest ?? null, 0), where).toBe(isMet);
          expect(freshest?.resyncOffsetSectors === Number.POSITIVE_INFINITY, where).toBe(isResynced);
        }
      }
    }
  });

  test('a page of the bitmap is never being written twice at a time: the older one could land last', async () => {
    const world = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K' }, count);
    const { array, trace } = world;
    const random = seededRandom(3);
    trace.hold = (_member, kind) => (kind === 'bitmap' ? turns(random(4)) : null);
    for (let round = 0; round < 6; round += 1) {
      const writes = Array.from({ length: 8 }, async () => {
        await turns(random(6));
        await array.write(random(200) * 4096, bytes(4096));
      });
      await turns(random(8));
      await Promise.all([...writes, world.clock.pass(250)]);
      await world.clock.pass(250);
    }
    const open = new Map<string, number>();
    for (const { member, kind, event, offsetBytes } of trace.entries) {
      if (kind !== 'bitmap') continue;
      const key = `${member} ${offsetBytes}`;
      const now = (open.get(key) ?? 0) + (event === 'start' ? 1 : -1);
      open.set(key, now);
      expect(now, 'writes of one page under way on one member').toBeLessThanOrEqual(1);
    }
    await array.close();
  });

  test('a member that comes back by the bitmap gets what it missed, wherever that was', async () => {
    const world = await make({ ...shape, bitmap: 'internal', bitmapChunk: '4K' }, count);
    const { array, trace, memories } = world;
    const model = bytes(array.limits.sizeBytes);
    await array.write(0, model);
    await becomeClean(world);
    await array.fail(1);
    const random = seededRandom(11);
    const patch = async (at: number): Promise<void> => {
      const data = bytes(4096 + 512, at);
      model.set(data, at);
      await array.write(at, data);
    };
    for (let index = 0; index < 5; index += 1) await patch(random(model.byteLength - 5000));
    await patch(model.byteLength - 4608);
    await array.remove('m1');
    const memory = memories[1];
    if (memory === undefined) throw new Error('no such member');
    const { source } = memberOn(memory, 1, trace);
    await array.reAdd(source.device, 'm1');
    for await (const _ of array.rebuild());
    expect(array.degraded).toBe(0);
    const whole = new Uint8Array(model.byteLength);
    await array.read(0, whole);
    expect(Buffer.compare(whole, model)).toBe(0);
    for await (const _ of array.scrub());
    expect(array.mismatchCount).toBe(0);
    await array.close();
  });

  test('a member that was only left out at assembly comes back at once, before and after a write', async () => {
    for (const bitmap of ['none', 'internal'] as const) {
      for (const wrote of [false, true]) {
        if (wrote && bitmap === 'none') continue;
        const { array: first, memories, clock } = await make({ ...shape, bitmap }, count);
        await first.write(0, bytes(4096));
        await first.close();
        const trace: Trace = { entries: [], hold: letGo };
        const sources = memories.map((memory, index) => memberOn(memory, index, trace).source);
        const { array } = await assembleDevices(
          sources.filter((_, index) => index !== 1),
          { name: 'array', host: clock, run: true },
        );
        if (wrote) await array.write(0, bytes(8192, 5));
        const late = sources[1];
        if (late === undefined) throw new Error('no such member');
        await array.reAdd(late.device, late.name);
        for await (const _ of array.rebuild());
        expect(array.degraded).toBe(0);
        for await (const _ of array.scrub());
        expect(array.mismatchCount).toBe(0);
        await array.close();
        const again = memories.map((memory, index) => memberOn(memory, index, trace).source);
        const { array: last, report } = await assembleDevices(again, { name: 'array', host: clock });
        expect(report.members.map(({ joins }) => joins)).toEqual(memories.map(() => 'in_sync'));
        await last.close();
      }
    }
  });

  test('what a dead process has left in the caches of members is durable before any superblock or data is written', async () => {
    for (const bitmap of ['none', 'internal'] as const) {
      const { array: dead, memories, clock } = await make({ ...shape, bitmap }, count);
      await dead.write(0, bytes(4096));
      const trace: Trace = { entries: [], hold: letGo };
      const sources = memories.map((memory, index) => memberOn(memory, index, trace).source);
      const { array } = await assembleDevices(sources, { name: 'array', host: clock, autoSync: false });
      trace.entries.length = 0;
      await array.write(0, bytes(4096, 2));
      const written = trace.entries.findIndex(({ kind }) => kind === 'super' || kind === 'data');
      const flushed = trace.entries
        .slice(0, written)
        .filter(({ kind, event }) => kind === 'flush' && event === 'done')
        .map(({ member }) => member);
      expect(flushed.toSorted()).toEqual([...memories.keys()]);
      await array.close();
    }
  });

  test('a replacement has flushed all that it copied before a superblock calls it whole', async () => {
    const world = await make({ ...shape, spares: 1 }, count + 1);
    const { array, trace } = world;
    await array.write(0, bytes(array.limits.sizeBytes));
    trace.entries.length = 0;
    await array.replace('m1');
    for await (const _ of array.rebuild());
    const lastData = trace.entries.findLastIndex(({ member, kind }) => member === count && kind === 'data');
    const whole = trace.entries.findIndex(
      ({ superblock }, index) => index > lastData && superblock !== null && accuses(superblock, 1),
    );
    expect(lastData).toBeGreaterThan(0);
    expect(whole).toBeGreaterThan(lastData);
    const flushed = trace.entries
      .slice(lastData, whole)
      .findIndex(({ member, kind, event }) => member === count && kind === 'flush' && event === 'done');
    expect(flushed).toBeGreaterThan(0);
    await array.close();
  });

  test.each([
    ['what a killed process wrote, and not one that was clean', true],
    ['of a clean array, which holds nothing back', false],
  ])('a flush without a member, %s: recorded before it is acknowledged', async (_, isDirty) => {
    const world = await make({ ...shape, autoSync: false }, count);
    await world.array.write(0, bytes(4096));
    if (!isDirty) await becomeClean(world);
    const left = world.memories.map((memory) => memory.slice(0));
    await world.array.close();
    const trace: Trace = { entries: [], hold: letGo };
    const sources = left.map((memory, index) => memberOn(memory, index, trace).source).slice(1);
    const options = { name: 'array', run: true, autoSync: false, host: world.clock };
    // Forced, where parity may be wrong and there is no log: that is a record by itself.
    const { array } = await assembleDevices(sources, { ...options, force: true });
    await array.flush();
    const told = new Set(
      trace.entries.flatMap(({ member, event, superblock }) =>
        event === 'done' && superblock !== null && superblock.devRoles[0] !== 0 ? [member] : [],
      ),
    );
    expect(told.size).toBe(isDirty ? count - 1 : 0);
    await array.close();
  });

  test('a replacement whose original fails has its slot, and replaces nobody else', async () => {
    const world = await make({ ...shape, spares: 1, autoSync: false }, count + 1);
    const { array, memories, trace } = world;
    const content = bytes(array.limits.sizeBytes);
    await array.write(0, content);
    await array.replace('m0');
    await array.fail('m0');
    await expect(array.replace('m1')).rejects.toMatchObject({ code: 'NO_SUCH_MEMBER' });
    for await (const _ of array.rebuild());
    expect(array.degraded).toBe(0);
    expect(array.members.find(({ name }) => name === `m${count}`)?.state).toEqual({
      state: 'in_sync',
      slot: 0,
    });
    const now = memories.map((memory) => memory.slice(0));
    await array.close();

    const { array: again } = await assembleDevices(
      now.map((memory, index) => memberOn(memory, index, trace).source),
      { name: 'array', run: true },
    );
    const whole = new Uint8Array(content.byteLength);
    await again.read(0, whole);
    expect(Buffer.compare(whole, content)).toBe(0);
    expect(again.degraded).toBe(0);
    await again.close();
  });

  test('where a crash leaves a replacement about to take over, and its original away, the original does not count any more when it is back', async () => {
    const world = await make({ ...shape, spares: 1 }, count + 1);
    const { array, memories, trace } = world;
    // Not clean: then the next life goes on writing without a superblock that would say anything of who is there.
    await array.write(0, bytes(4096));
    let crashed: SharedArrayBuffer[] | null = null;
    trace.hold = (_member, kind, superblock) => {
      if (kind === 'super' && accuses(superblock, 1)) crashed ??= memories.map((memory) => memory.slice(0));
      return null;
    };
    await array.replace('m1');
    for await (const _ of array.rebuild());
    await array.close();
    const disks = crashed as SharedArrayBuffer[] | null;
    if (disks === null) return expect.unreachable('the replacement has taken over');
    trace.hold = letGo;
    const open = async (which: readonly number[]): Promise<RaidArray> => {
      const sources = which.map((index) => memberOn(disks[index] as SharedArrayBuffer, index, trace).source);
      return (await assembleDevices(sources, { name: 'array', run: true, autoSync: false })).array;
    };
    const everybody = disks.map((_, index) => index);
    const without = await open(everybody.filter((index) => index !== 1));
    const content = bytes(without.limits.sizeBytes, 3);
    await without.write(0, content);
    await without.flush();
    // Cut off here; the original comes back.
    const again = await open(everybody);
    const whole = new Uint8Array(content.byteLength);
    await again.read(0, whole);
    expect(Buffer.compare(whole, content)).toBe(0);
    await again.close();
    await without.close();
  });

  test('a replacement that has taken over is whole on record, when its original did not take the superblock before', async () => {
    const world = await make({ ...shape, spares: 1, autoSync: false }, count + 1);
    const { array, trace, faults } = world;
    await becomeClean(world);
    await array.replace('m1');
    let release: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    trace.hold = (member, kind) => (member === 1 && kind === 'super' ? gate : null);
    const written = array.write(0, bytes(4096));
    const rebuilt = (async () => {
      for await (const _ of array.rebuild());
    })();
    const stateOf = (name: string): string | undefined =>
      array.members.find((member) => member.name === name)?.state.state;
    for (let round = 0; stateOf('m1') !== 'faulty' && round < 100; round += 1) await turns(1);
    expect(stateOf(`m${count}`)).toBe('in_sync');
    faults[1]?.add({ on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } });
    release();
    await Promise.all([written, rebuilt]);
    const recorded = array.metadata?.array.members.map(({ descriptor, state }) => ({ descriptor, state }));
    expect(recorded).toContainEqual({ descriptor: count, state: 'in_sync' });
    await array.close();
  });

  test.each(['without snapshots', 'with one'])(
    'what only a replacement that takes over has is seen when its original is out on record, %s',
    async (how) => {
      const world = await make({ ...shape, spares: 1, autoSync: false }, count + 1);
      const { array, trace } = world;
      if (how === 'with one') {
        const folder = await mkdtemp(join(scratch, 'takeover-'));
        await array.keepSnapshots(folder, join(folder, 'snapshots.store'), false);
        await array.snapshots?.create('one', { limitBytes: 16 * MIB });
      }
      await array.write(0, bytes(array.limits.sizeBytes));
      let turnsOfARead = 1;
      let isRead = false;
      const earlier = array.read(0, new Uint8Array(array.limits.sizeBytes)).then(() => {
        isRead = true;
      });
      for (; !isRead; turnsOfARead += 1) await turns(1);
      await earlier;
      await array.replace('m1');
      let release: () => void = () => undefined;
      const gate = new Promise<void>((resolve) => {
        release = resolve;
      });
      let rebuilt: Promise<void> = Promise.resolve();
      await new Promise<void>((isHeld) => {
        trace.hold = (_member, kind, superblock) => {
          if (kind !== 'super' || !accuses(superblock, 1)) return null;
          isHeld();
          return gate;
        };
        rebuilt = (async () => {
          for await (const _ of array.rebuild());
        })();
      });
      const ended: string[] = [];
      const content = bytes(array.limits.sizeBytes, 7);
      const seen = new Uint8Array(content.byteLength);
      const written = array.write(0, content).then(() => ended.push('write'));
      await turns();
      const read = array.read(0, seen).then(() => ended.push('read'));
      await turns(20 * turnsOfARead);
      expect(ended).toEqual([]);
      release();
      await Promise.all([rebuilt, written, read]);
      expect(ended.toSorted()).toEqual(['read', 'write']);
      expect(Buffer.compare(seen, content)).toBe(0);
      await array.close();
    },
  );

  // Of mirrors whoever is left can be missed: the two that change places hold the same.
  test.each(shape.level === '1' ? [] : ['without snapshots', 'with one'])(
    'a takeover that a member keeps off the record is recorded, whole, before what only the replacement has is read, %s',
    async (how) => {
      const world = await make({ ...shape, spares: 1, autoSync: false }, count + 1);
      const { array, trace, faults, memories } = world;
      if (how === 'with one') {
        const folder = await mkdtemp(join(scratch, 'takeover-'));
        await array.keepSnapshots(folder, join(folder, 'snapshots.store'), false);
        await array.snapshots?.create('one', { limitBytes: 16 * MIB });
      }
      await array.write(0, bytes(array.limits.sizeBytes));
      const needed = await needOne(array, count);
      await array.replace('m1');
      const range = { offsetBytes: SUPER_BYTE, lengthBytes: 4096 };
      const refusal = { on: 'write', range, fault: { kind: 'error', code: 'WRITE_FAILED' } } as const;
      let rule = -1;
      trace.hold = (_member, kind) => {
        const isWhole = array.members.find(({ name }) => name === `m${count}`)?.state.state === 'in_sync';
        if (kind === 'super' && isWhole && rule < 0) rule = faults[needed]?.add(refusal) ?? -1;
        return null;
      };
      await expect(
        (async () => {
          for await (const _ of array.rebuild());
        })(),
      ).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
      // The first half is written now; of the second, everybody has what was there.
      const content = bytes(array.limits.sizeBytes);
      const half = content.byteLength / 2;
      content.set(bytes(half, 7));
      const seen = new Uint8Array(content.byteLength);
      await array.read(half, seen.subarray(half));
      await expect(array.write(0, content.subarray(0, half))).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
      await array.read(half, seen.subarray(half));
      expect(Buffer.compare(seen.subarray(half), content.subarray(half))).toBe(0);
      for (const [from, to] of [
        [0, content.byteLength],
        [0, 512],
        [half - 512, half + 512],
      ] as const)
        await expect(array.read(from, seen.subarray(from, to))).rejects.toMatchObject({
          code: 'ARRAY_FAILED',
        });
      trace.hold = letGo;
      faults[needed]?.remove(rule);
      await array.read(0, seen);
      expect(Buffer.compare(seen, content)).toBe(0);
      // Dead at this moment, it has another life in which nothing of that is taken back.
      const sources = memories.map((memory, index) => memberOn(memory.slice(0), index, trace).source);
      const { array: again } = await assembleDevices(sources, { name: 'array', run: true, force: true });
      expect(again.members.find(({ name }) => name === `m${count}`)?.state).toEqual({
        state: 'in_sync',
        slot: 1,
      });
      await again.read(0, seen);
      expect(Buffer.compare(seen, content)).toBe(0);
      await again.close();
      await array.close();
    },
  );

  // Of mirrors whoever is left can be missed.
  const trouble = {
    1: null,
    5: { out: null, failing: 0, needed: 2 },
    6: { out: 'm2', failing: 0, needed: 3 },
    10: { out: null, failing: 2, needed: 3 },
  }[shape.level];
  test.each(trouble === null ? [] : (['before it', 'in it'] as const))(
    'a failure %s that cannot be put on record does not end a takeover, and its original is out when the replacement is whole, on record',
    async (when) => {
      const { out, failing, needed } = trouble ?? expect.unreachable();
      const world = await make({ ...shape, spares: 1, autoSync: false }, count + 1);
      const { array, trace, faults } = world;
      await array.write(0, bytes(array.limits.sizeBytes));
      if (out !== null) await array.fail(out);
      await array.replace('m1');
      const gates = { data: held(), super: held() };
      const range = { offsetBytes: SUPER_BYTE, lengthBytes: 4096 };
      let written: Promise<void> = Promise.resolve();
      let flushed: Promise<unknown> = Promise.resolve();
      let rule = -1;
      const failsToRecord = (): void => {
        faults[failing]?.add({ on: 'flush', fault: { kind: 'error', code: 'WRITE_FAILED' } });
        rule =
          faults[needed]?.add({ on: 'write', range, fault: { kind: 'error', code: 'WRITE_FAILED' } }) ?? -1;
        flushed = array.flush().catch((error: RaidError) => error.code);
      };
      const rebuilt = (async () => {
        for await (const _ of array.rebuild());
      })();
      const rebuiltSettled = isSettled(rebuilt);
      // The copy is complete, and a write keeps the two from changing places.
      await new Promise<void>((isBegun) => {
        trace.hold = (member, kind) => {
          if (member !== count || kind !== 'flush') return null;
          trace.hold = (_member, each) =>
            each === 'data' ? gates.data.gate : each === 'super' ? gates.super.gate : null;
          written = array.write(0, bytes(4096, 3));
          if (when === 'before it') failsToRecord();
          isBegun();
          return null;
        };
      });
      await turns();
      expect(array.members.find(({ name }) => name === 'm1')?.state.state).toBe('faulty');
      if (when === 'in it') failsToRecord();
      gates.super.release();
      await turns();
      expect(rebuiltSettled(), 'the turn of the takeover').toBe(false);
      // The disk takes its superblock again, and somebody asks for what is not on record.
      faults[needed]?.remove(rule);
      const asked = array.flush().catch(() => undefined);
      await turns();
      gates.data.release();
      await Promise.all([rebuilt.catch(() => undefined), written.catch(() => undefined), asked]);
      expect(await flushed).toBe('ARRAY_FAILED');
      await array.flush();
      const first = trace.entries.findIndex(({ superblock }) => accuses(superblock, 1));
      const own = trace.entries
        .slice(0, first)
        .findLast(({ member, kind, event }) => member === count && kind === 'super' && event === 'done');
      expect(first).toBeGreaterThan(0);
      const { featureMap } = own?.superblock ?? expect.unreachable();
      expect(featureMap & features.RECOVERY_OFFSET).toBe(0);
      await array.close();
    },
  );

  test.each(trouble === null ? [] : ['begins'])(
    'a takeover that %s while another one is recorded again has its original until it is whole, on record',
    async () => {
      const world = await make({ ...shape, spares: 2, autoSync: false }, count + 2);
      const { array, trace, faults } = world;
      const content = bytes(array.limits.sizeBytes);
      await array.write(0, content);
      const needed = await needOne(array, count);
      await array.replace('m1');
      await array.replace('m0');
      const [first, second] = [count, count + 1];
      const range = { offsetBytes: SUPER_BYTE, lengthBytes: 4096 };
      const stateOf = (index: number) => array.members.find(({ name }) => name === `m${index}`)?.state.state;
      let rule = -1;
      trace.hold = (_member, kind) => {
        if (kind === 'super' && stateOf(first) === 'in_sync' && rule < 0)
          rule =
            faults[needed]?.add({ on: 'write', range, fault: { kind: 'error', code: 'WRITE_FAILED' } }) ?? -1;
        return null;
      };
      const rebuild = async (): Promise<void> => {
        for await (const _ of array.rebuild());
      };
      await expect(rebuild()).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
      faults[needed]?.remove(rule);
      // While the second copies, somebody asks for the record of the first. Then a write keeps the second from its slot.
      const gates = { data: held(), super: held() };
      let asked: Promise<void> | null = null;
      let written: Promise<void> | null = null;
      trace.hold = (member, kind) => {
        if (kind === 'super') return asked === null ? null : gates.super.gate;
        if (kind === 'data' && written !== null) return gates.data.gate;
        // That has flushed this member before it is known here.
        if (member === second && kind === 'flush' && asked !== null)
          written ??= array.write(0, content.subarray(0, 4096));
        if (member === second && kind === 'data') asked ??= array.flush();
        return null;
      };
      const rebuilt = rebuild();
      await turns();
      expect(stateOf(0)).toBe('faulty');
      gates.super.release();
      await turns();
      expect(trace.entries.some(({ superblock }) => accuses(superblock, 1))).toBe(true);
      expect(trace.entries.some(({ superblock }) => accuses(superblock, 0))).toBe(false);
      gates.data.release();
      await Promise.all([rebuilt, asked, written]);
      expect(trace.entries.some(({ superblock }) => accuses(superblock, 0))).toBe(true);
      const seen = new Uint8Array(content.byteLength);
      await array.read(0, seen);
      expect(Buffer.compare(seen, content)).toBe(0);
      await array.close();
    },
  );

  test.each(shape.level === '1' ? [] : ['straddles'])(
    'of a write that %s a takeover, nothing is read that only the replacement has while that is kept off the record',
    async () => {
      const sizeBytes = 4 * MIB;
      const world = await make(
        { ...shape, spares: 1, autoSync: false, heapBytes: MIB },
        count + 1,
        sizeBytes,
      );
      const { array, trace, faults } = world;
      const total = array.limits.sizeBytes;
      await array.write(0, bytes(total));
      const needed = await needOne(array, count);
      await array.replace('m1');
      const gates = { first: held(), last: held() };
      const range = { offsetBytes: SUPER_BYTE, lengthBytes: 4096 };
      const content = bytes(total, 7);
      let written: Promise<void> = Promise.resolve();
      let rule = -1;
      const rebuilt = (async () => {
        for await (const _ of array.rebuild());
      })().catch((error: RaidError) => error.code);
      await new Promise<void>((isBegun) => {
        trace.hold = (member, kind) => {
          if (member !== count || kind !== 'flush') return null;
          // As much as the arena holds is under way when the two change places; the rest is written afterwards, but for the end.
          trace.hold = (_member, each) => (each === 'data' ? gates.first.gate : null);
          written = array.write(0, content);
          isBegun();
          return null;
        };
      });
      await turns();
      const isWhole = (): boolean =>
        array.members.find(({ name }) => name === `m${count}`)?.state.state === 'in_sync';
      expect(isWhole()).toBe(true);
      trace.hold = (_member, kind, _superblock, offsetBytes) => {
        if (kind === 'super' && rule < 0)
          rule =
            faults[needed]?.add({ on: 'write', range, fault: { kind: 'error', code: 'WRITE_FAILED' } }) ?? -1;
        return kind === 'data' && offsetBytes >= sizeBytes - 256 * KIB ? gates.last.gate : null;
      };
      const writtenSettled = isSettled(written);
      gates.first.release();
      expect(await rebuilt).toBe('ARRAY_FAILED');
      await turns();
      expect(writtenSettled()).toBe(false);
      // Here the replacement has what is new, and the one that it replaces what was there before.
      const at = Math.floor(total / 2);
      const seen = new Uint8Array(64 * KIB);
      for (const offset of [0, at]) {
        const read = array.read(offset, seen).catch((error: RaidError) => error.code);
        expect(await read, `of the pending write, at ${offset}`).toBe('ARRAY_FAILED');
      }
      expect(writtenSettled()).toBe(false);
      faults[needed]?.remove(rule);
      gates.last.release();
      await written;
      const all = new Uint8Array(total);
      await array.read(0, all);
      expect(Buffer.compare(all, content)).toBe(0);
      await array.close();
    },
  );

  test('a replacement whose original fails while the array closes has copied nothing, on record', async () => {
    const windowBytes = 64 * KIB;
    const world = await make({ ...shape, spares: 1, autoSync: false, windowBytes }, count + 1);
    const { array, memories, faults, trace } = world;
    await array.write(0, bytes(array.limits.sizeBytes));
    await becomeClean(world);
    await array.replace('m1');
    for await (const { doneBytes } of array.rebuild()) if (doneBytes > 0) break;
    faults[1]?.add({ on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } });
    // It is not given the slot any more: what is written passes it by.
    const written = array.write(0, bytes(array.limits.sizeBytes, 5));
    await Promise.all([written, array.close()]);
    const sources = memories.map((memory, index) => memberOn(memory, index, trace).source);
    const { array: again } = await assembleDevices(sources, { name: 'array', run: true });
    for await (const _ of again.rebuild());
    expect(again.degraded).toBe(0);
    for await (const { mismatches } of again.scrub()) expect(mismatches).toEqual([]);
    await again.close();
  });

  test('a disk that fails while it is being added is none of the array, and another one takes the slot', async () => {
    const { array } = await make({ ...shape, autoSync: false }, count);
    await array.fail('m0');
    await array.remove('m0');
    const disk = (): FaultDevice => new FaultDevice(new MemoryDevice({ sizeBytes: 2 * MIB }));
    const bad = disk();
    bad.add({ on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } });
    const before = array.metadata?.array.members.map(({ descriptor, state }) => ({ descriptor, state }));
    await expect(array.add(bad, 'bad')).rejects.toMatchObject({ code: 'MEMBER_GONE' });
    expect(array.members.map(({ name }) => name)).not.toContain('bad');
    expect(array.metadata?.array.members.map(({ descriptor, state }) => ({ descriptor, state }))).toEqual(
      before,
    );
    await array.add(disk(), 'good');
    for await (const _ of array.rebuild());
    expect(array.degraded).toBe(0);
    await array.close();
  });

  test('a resync that is cut off by a kill goes on where it was last recorded', async () => {
    const world = await make({ ...shape, assumeClean: false, autoSync: false }, count, 20 * MIB);
    const { array, trace, clock } = world;
    for await (const { doneBytes, totalBytes } of array.rebuild()) {
      await clock.pass(1100);
      if (doneBytes >= totalBytes / 2) break;
    }
    const recorded = trace.entries
      .filter(({ event, superblock }) => event === 'done' && superblock !== null)
      .map(({ superblock }) => superblock?.resyncOffsetSectors ?? 0);
    expect(Math.max(0, ...recorded.filter(Number.isFinite))).toBeGreaterThan(0);
    await array.close();
  });
});

test('a bitmap that could not be believed is on the members in full before its superblock vouches for it', async () => {
  const owner = { setUuid: '01020304:05060708:090a0b0c:0d0e0f10', events: 7, syncSectors: 8 * 70_000 };
  const bits = Bits.empty(owner.syncSectors, 4096);
  const superblock = newBitmapSuperblock(owner, 4096);
  bits.setAll();
  const written: { readonly offsetBytes: number; readonly events: number | null }[] = [];
  const intent = new Intent({
    superblock,
    bits,
    mayDiffer: true,
    write: async (offsetBytes, page) => {
      const head = offsetBytes === 0 ? page.subarray(0, 256) : null;
      const hasHead = head !== null && head[0] !== 0;
      written.push({ offsetBytes, events: hasHead ? decodeBitmapSuperblock(head).events : null });
      await turns(1);
    },
  });
  await intent.follow(8, true);
  const vouches = written.findIndex(({ events }) => events === 8);
  expect(new Set(written.slice(0, vouches).map(({ offsetBytes }) => offsetBytes))).toEqual(
    new Set([0, 4096, 8192]),
  );
  written.length = 0;
  await intent.follow(9, true);
  expect(written).toEqual([{ offsetBytes: 0, events: 9 }]);
});

test.each([
  ['their bitmaps', BITMAP_BYTE],
  ['anything', SUPER_BYTE],
] as const)(
  'members that take no writes of %s, one more than can be missed: an error, and an end to it',
  async (_, fromByte) => {
    const { array, faults, trace } = await make({ level: '5', bitmap: 'internal', bitmapChunk: '64K' }, 3);
    const rule = { on: 'write', range: { offsetBytes: fromByte, lengthBytes: MIB } } as const;
    for (const slot of [0, 1]) faults[slot]?.add({ ...rule, fault: { kind: 'error', code: 'WRITE_FAILED' } });
    trace.hold = () => {
      if (trace.entries.length > 1000) throw new Error('it tries for ever');
      return null;
    };
    await expect(array.write(0, bytes(4096))).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
    await turns();
    expect(trace.entries.length).toBeLessThan(200);
    faults[0]?.clear();
    faults[1]?.clear();
    await array.write(0, bytes(4096));
    await array.close();
  },
);

describe('the last copy does not take its superblock, and then it does', () => {
  const refuse = ({ faults }: World, slot: number, offsetBytes: number, lengthBytes: number): void => {
    const range = { offsetBytes, lengthBytes };
    faults[slot]?.add({ on: 'write', range, fault: { kind: 'error', code: 'WRITE_FAILED' } });
  };
  const supers = ({ memories }: World): readonly Superblock1[] =>
    memories.map((memory) => decodeSuperblock1(new Uint8Array(memory, SUPER_BYTE, 4096)));
  const isOut = (world: World, slot: number, by: number): boolean => {
    const all = supers(world);
    return accuses(all[by] ?? null, slot) && (all[by]?.events ?? 0) - (all[slot]?.events ?? 0) >= 2;
  };

  test('a member that failed is on record before the next write is acknowledged, and the array goes on', async () => {
    const world = await make({ level: '1' }, 2);
    const { array, faults } = world;
    await array.write(0, bytes(4096));
    refuse(world, 0, MIB, MIB);
    refuse(world, 1, 0, 64 * KIB);
    for (let round = 0; round < 2; round += 1) {
      await expect(array.write(0, bytes(4096, 2))).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
      await expect(array.flush()).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
    }
    faults[1]?.clear();
    await array.write(0, bytes(4096, 3));
    expect(isOut(world, 0, 1)).toBe(true);
    await array.flush();
    await array.close();
  });

  test('nor is one acknowledged after a verb that could not be put on record', async () => {
    const world = await make({ level: '1' }, 2);
    const { array, faults } = world;
    await array.write(0, bytes(4096));
    refuse(world, 1, 0, 64 * KIB);
    await expect(array.fail('m0')).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
    await expect(array.write(0, bytes(4096, 2))).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
    faults[1]?.clear();
    await array.write(0, bytes(4096, 3));
    expect(isOut(world, 0, 1)).toBe(true);
    await array.close();
  });

  test('nor one before it says that it is not clean', async () => {
    const world = await make({ level: '5' }, 3);
    const { array, faults } = world;
    await array.fail('m0');
    await array.write(0, bytes(4096));
    await becomeClean(world);
    refuse(world, 1, 0, 64 * KIB);
    await expect(array.write(0, bytes(4096, 2))).rejects.toMatchObject({ code: 'ARRAY_FAILED' });
    faults[1]?.clear();
    await array.write(0, bytes(4096, 3));
    expect(supers(world).map(({ resyncOffsetSectors }) => resyncOffsetSectors)).toEqual([
      expect.any(Number),
      0,
      0,
    ]);
    await array.close();
  });

  test('nor one while another says that it is clean already', async () => {
    const world = await make({ level: '5' }, 3);
    const { array, faults, clock } = world;
    await array.fail('m0');
    await array.write(0, bytes(4096));
    refuse(world, 1, 0, 64 * KIB);
    await clock.pass(1000);
    expect(supers(world)[2]?.resyncOffsetSectors).toBe(Number.POSITIVE_INFINITY);
    faults[1]?.clear();
    await array.write(0, bytes(4096, 3));
    const [, one, other] = supers(world);
    expect([one?.resyncOffsetSectors, other?.resyncOffsetSectors]).toEqual([0, 0]);
    expect(one?.events).toBe(other?.events);
    await array.close();
  });
});

test.each([
  ['that is listed', 1, 'REDUNDANCY_LOST'],
  ['that cannot be listed', 0, 'DIRTY_DEGRADED'],
] as const)(
  'a place %s, where the last parity was not taken, is computed from in no later life',
  async (_, fromMib, code) => {
    const { array, faults, memories, clock } = await make({ level: '5' }, 3);
    await array.write(0, bytes(128 * KIB));
    await array.fail('m1');
    // Of the first row m0 has the first chunk, m1 had the second, and m2 has the parity. Its metadata is in the first MiB.
    const range = { offsetBytes: fromMib * MIB, lengthBytes: 2 * MIB - fromMib * MIB };
    faults[2]?.add({ on: 'write', range, fault: { kind: 'error', code: 'WRITE_FAILED' } });
    await expect(array.write(0, bytes(4096, 5))).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
    await array.close().catch(() => undefined);
    const trace: Trace = { entries: [], hold: letGo };
    const sources = memories.map((memory, index) => memberOn(memory, index, trace).source);
    const readAgain = async (): Promise<void> => {
      const { array: again } = await assembleDevices(sources, { name: 'array', host: clock });
      await again.read(64 * KIB, new Uint8Array(4096)).finally(() => again.close());
    };
    await expect(readAgain()).rejects.toMatchObject({ code });
  },
);

test('sectors that were rewritten are counted in the superblock of their member, with the next change, as md does', async () => {
  const { array, faults, memories, trace } = await make({ level: '1' }, 2);
  const dataOffset = (array.metadata?.array.members[0]?.superblock.dataOffsetSectors ?? 0) * SECTOR_BYTES;
  const range = { offsetBytes: dataOffset + 4096, lengthBytes: 512 };
  faults[0]?.add({
    on: 'read',
    range,
    clearedByWrite: true,
    fault: { kind: 'error', code: 'MEDIUM_ERROR' },
  });
  for await (const { mismatchCount } of array.scrub()) expect(mismatchCount).toBe(0);
  expect(array.members.map(({ errors }) => errors.corrected)).toEqual([1, 0]);
  // Not worth a write of its own.
  expect(trace.entries.filter(({ kind }) => kind === 'super')).toEqual([]);
  await array.write(0, bytes(512));
  await array.close();

  const onDisk = memories.map((memory) => decodeSuperblock1(new Uint8Array(memory, SUPER_BYTE, 4096)));
  expect(onDisk.map(({ correctedReads }) => correctedReads)).toEqual([1, 0]);
  const again = memories.map((memory, index) => memberOn(memory, index, trace).source);
  const { array: reopened } = await assembleDevices(again, { name: 'array' });
  expect(reopened.status().members.map(({ errors }) => errors)).toEqual([
    { read: 0, write: 0, corrected: 1 },
    { read: 0, write: 0, corrected: 0 },
  ]);
  await reopened.write(0, bytes(512));
  await reopened.fail(1);
  await reopened.close();
  expect(decodeSuperblock1(new Uint8Array(memories[0]!, SUPER_BYTE, 4096)).correctedReads).toBe(1);
});

test('a bad place leaves the list of its member only when what was written there is durable', async () => {
  const { array, faults, trace } = await make({ level: '1', spares: 1, autoSync: false }, 3);
  const spare = array.metadata?.array.members[2]?.superblock;
  const data = (spare?.dataOffsetSectors ?? 0) * SECTOR_BYTES;
  const list = ((spare?.superSector ?? 0) + (spare?.bblogOffsetSectors ?? 0)) * SECTOR_BYTES;
  const range = { offsetBytes: data + 4096, lengthBytes: 512 };
  faults[0]?.add({ on: 'read', range, fault: { kind: 'error', code: 'MEDIUM_ERROR' } });
  await array.fail(1);
  for await (const _ of array.rebuild());
  await expect(array.read(4096, new Uint8Array(512))).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });

  trace.entries.length = 0;
  await array.write(4096, bytes(512));
  const of = trace.entries.filter(({ member, event }) => member === 2 && event === 'done');
  const written = of.findIndex(({ offsetBytes }) => offsetBytes === range.offsetBytes);
  const listed = of.findIndex(({ offsetBytes }) => offsetBytes === list);
  expect(written).toBeGreaterThanOrEqual(0);
  expect(listed).toBeGreaterThan(written);
  expect(of.slice(written, listed).map(({ kind }) => kind)).toContain('flush');
  await array.close();
});

test('nor is data written without its bits while those who refuse the record of that are dealt with (I4)', async () => {
  const late: string[] = [];
  const fault = { kind: 'error', code: 'WRITE_FAILED' } as const;
  for (let delay = 0; delay < 120; delay += 1) {
    const world = await make({ level: '1', bitmap: 'internal', bitmapChunk: '4K' }, 3);
    const { array, trace, faults } = world;
    await array.write(0, bytes(4096));
    for (const [member, each] of faults.entries()) {
      const range =
        member === 1
          ? { offsetBytes: 64 * KIB, lengthBytes: MIB + 900 * KIB }
          : { offsetBytes: SUPER_BYTE, lengthBytes: 4096 };
      each.add({ on: 'write', range, fault });
    }
    trace.hold = (member, kind, _sectors, offset) => {
      if (kind !== 'data' || offset !== MIB + 700 * KIB) return null;
      late.push(
        ...lackingBits(world).map((without) => `${delay}: m${member} is written, and ${without} has no bits`),
      );
      return null;
    };
    const first = array.write(512 * KIB, bytes(4096)).catch(() => undefined);
    for (let turn = 0; turn < delay; turn += 1) await Promise.resolve();
    await array.write(700 * KIB, bytes(4096)).catch(() => undefined);
    await first;
    trace.hold = letGo;
    await array.close().catch(() => undefined);
  }
  expect(late).toEqual([]);
});
