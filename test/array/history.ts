/**
 * Histories of arrays, for fast-check: random reads, writes, failures, recoveries, scrubs and deaths of workers, several
 * requests in flight at once, against plain memory. No byte may ever differ (I1), nor redundancy from data in the end (I9).
 */
import fc from 'fast-check';
import { expect } from 'vitest';
import { RaidArray } from '../../lib/array/array.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { DriverKind } from '../../lib/engine/engine.ts';
import type { Death } from '../../lib/engine/message.ts';
import { RaidError } from '../../lib/errors.ts';
import { type Geometry, memberCountOf } from '../../lib/layout/geometry.ts';

const KIB = 1024;
const chunkBytes = 4 * KIB;

export const shapes: readonly [string, Geometry][] = [
  ['linear', { level: 'linear', chunkBytes: 4096, memberBytes: [32, 48, 20].map((k) => k * KIB) }],
  [
    'raid0',
    { level: 'raid0', layout: 'original', chunkBytes, memberBytes: [64, 64, 64].map((k) => k * KIB) },
  ],
  [
    'raid0 zones',
    { level: 'raid0', layout: 'alternate', chunkBytes, memberBytes: [32, 64, 48].map((k) => k * KIB) },
  ],
  ['raid1 x3', { level: 'raid1', memberCount: 3, memberBytes: 96 * KIB }],
  ['raid4', { level: 'raid4', memberCount: 4, chunkBytes, memberBytes: 64 * KIB }],
  [
    'raid5 ls',
    { level: 'raid5', layout: 'left-symmetric', memberCount: 4, chunkBytes, memberBytes: 64 * KIB },
  ],
  [
    'raid5 ra',
    { level: 'raid5', layout: 'right-asymmetric', memberCount: 3, chunkBytes, memberBytes: 64 * KIB },
  ],
  [
    'raid6 ls',
    { level: 'raid6', layout: 'left-symmetric', memberCount: 5, chunkBytes, memberBytes: 64 * KIB },
  ],
  [
    'raid6 ddf',
    { level: 'raid6', layout: 'ddf-N-continue', memberCount: 6, chunkBytes: 8 * KIB, memberBytes: 64 * KIB },
  ],
  [
    'raid10 n2',
    {
      level: 'raid10',
      memberCount: 4,
      chunkBytes,
      memberBytes: 64 * KIB,
      near: 2,
      far: 1,
      offset: false,
      farSets: 0,
    },
  ],
  [
    'raid10 f2 odd',
    {
      level: 'raid10',
      memberCount: 3,
      chunkBytes,
      memberBytes: 64 * KIB,
      near: 1,
      far: 2,
      offset: false,
      farSets: 0,
    },
  ],
  [
    'raid10 o2',
    {
      level: 'raid10',
      memberCount: 5,
      chunkBytes,
      memberBytes: 64 * KIB,
      near: 1,
      far: 2,
      offset: true,
      farSets: 0,
    },
  ],
];

function memory(bytes: number): MemoryDevice {
  return new MemoryDevice({ sizeBytes: bytes });
}

/** On the event loop behind a filter, so that it can fail. */
function disk(bytes: number, driver: DriverKind): Device {
  return driver === 'event-loop' ? new FaultDevice(memory(bytes)) : memory(bytes);
}

function membersOf(geometry: Geometry, driver: DriverKind): Device[] {
  return Array.from({ length: memberCountOf(geometry) }, (_, slot) =>
    disk(
      typeof geometry.memberBytes === 'number' ? geometry.memberBytes : (geometry.memberBytes[slot] ?? 0),
      driver,
    ),
  );
}

interface Model {
  readonly bytes: Uint8Array;
}

interface Real {
  readonly array: RaidArray;
  /** A recovery that goes on while other commands run. */
  background: Promise<void> | null;
}

type Command = fc.AsyncCommand<Model, Real>;

/** Fractions, so that one command fits every array. */
interface Span {
  readonly at: number;
  readonly length: number;
  readonly byte: number;
}

function place(model: Model, span: Span): { offset: number; length: number } {
  const offset = Math.floor(span.at * (model.bytes.length - 1));
  return { offset, length: Math.max(1, Math.min(span.length, model.bytes.length - offset)) };
}

/** Bytes that differ everywhere, so that a chunk in the wrong place shows. */
function pattern(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let index = 0; index < length; index += 1) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    bytes[index] = state >>> 16;
  }
  return bytes;
}

function command(title: string, run: (model: Model, real: Real) => Promise<void>): Command {
  return { check: () => true, run, toString: () => title };
}

const write = (span: Span): Command =>
  command(`write(${JSON.stringify(span)})`, async (model, { array }) => {
    const { offset, length } = place(model, span);
    const bytes = pattern(length, span.byte);
    model.bytes.set(bytes, offset);
    await array.write(offset, bytes);
  });

const read = (span: Span): Command =>
  command(`read(${JSON.stringify(span)})`, async (model, { array }) => {
    const { offset, length } = place(model, span);
    const target = new Uint8Array(length).fill(0xa5);
    await array.read(offset, target);
    expect(Buffer.compare(target, model.bytes.subarray(offset, offset + length))).toBe(0);
  });

/** Many at once, then all of them compared. The buffers are scribbled over as soon as `write` has returned. */
const burst = (spans: readonly Span[]): Command =>
  command(`burst(${JSON.stringify(spans)})`, async (model, { array }) => {
    const taken: { offset: number; end: number }[] = [];
    const under: Promise<void>[] = [];
    for (const span of spans) {
      const { offset, length } = place(model, span);
      if (taken.some((other) => offset < other.end && other.offset < offset + length)) continue;
      taken.push({ offset, end: offset + length });
      if (span.byte % 3 === 0) {
        const before = model.bytes.slice(offset, offset + length);
        const target = new Uint8Array(length).fill(0x5a);
        under.push(array.read(offset, target).then(() => expect(Buffer.compare(target, before)).toBe(0)));
      } else {
        const bytes = pattern(length, span.byte);
        model.bytes.set(bytes, offset);
        under.push(array.write(offset, bytes));
        bytes.fill(0xee);
      }
    }
    await Promise.all(under);
  });

const zeroes = (span: Span): Command =>
  command(`zeroes(${JSON.stringify(span)})`, async (model, { array }) => {
    const { offset, length } = place(model, span);
    await array.writeZeroes(offset, length);
    model.bytes.fill(0, offset, offset + length);
  });

const flush: Command = command('flush', (_model, { array }) => array.flush());

const fail = (which: number): Command =>
  command(`fail(${which})`, async (_model, { array }) => {
    try {
      await array.fail(which % array.layout.memberCount);
    } catch (error) {
      // The last copy is never taken, and a slot may be empty already.
      expect(error).toBeInstanceOf(RaidError);
      expect(['LAST_COPY', 'NO_SUCH_MEMBER']).toContain((error as RaidError).code);
    }
  });

const recover = (inBackground: boolean): Command =>
  command(inBackground ? 'recover in background' : 'recover', async (_model, real) => {
    const { array } = real;
    if (array.layout.kind === 'copies' && array.layout.copyCount === 1) return;
    if (real.background !== null) await real.background;
    for (let count = array.degraded; count > 0; count -= 1) {
      // Garbage on the new disk must never be read.
      const device = disk(Math.max(...array.layout.memberBytes), array.engine.driver);
      await device.write(0, pattern(device.limits.sizeBytes, 77));
      await array.add(device);
    }
    real.background = (async () => {
      for await (const _progress of array.rebuild());
    })();
    if (!inBackground) await real.background;
  });

const scrub = (repair: boolean): Command =>
  command(repair ? 'repair' : 'check', async (_model, { array }) => {
    let mismatchCount = 0;
    for await (const progress of array.scrub({ repair })) mismatchCount = progress.mismatchCount;
    expect(mismatchCount).toBe(0);
  });

const killLane = (lane: number, when: Death): Command =>
  command(`killLane(${lane}, ${when})`, async (_model, { array }) => {
    if (array.engine.lanes > 0) await array.killLane(lane % array.engine.lanes, when);
  });

/** A member of a clean, redundant array that can be made to fail: then any failure of it alone is survivable. */
async function victim({ array, background }: Real, which: number): Promise<FaultDevice | null> {
  if (background !== null) await background;
  if (array.state !== 'clean' || (array.layout.kind === 'copies' && array.layout.copyCount === 1))
    return null;
  const slot = which % array.layout.memberCount;
  const found = array.members.find(({ state }) => state.state === 'in_sync' && state.slot === slot)?.device;
  return found instanceof FaultDevice ? found : null;
}

/** Sectors that cannot be read, until they are rewritten: whoever meets them heals them, and a check meets all. */
const badSectors = (which: number, spans: readonly Span[]): Command =>
  command(`badSectors(${which}, ${JSON.stringify(spans)})`, async (model, real) => {
    const device = await victim(real, which);
    if (device === null) return;
    const sectors = device.limits.sizeBytes / 512;
    const ids = spans.map(({ at, length }) => {
      const first = Math.floor(at * (sectors - 1));
      const count = Math.min(sectors - first, 1 + (length % 20));
      const range = { offsetBytes: first * 512, lengthBytes: count * 512 };
      const fault = { kind: 'error', code: 'MEDIUM_ERROR' } as const;
      return device.add({ on: 'read', range, clearedByWrite: true, fault });
    });
    await burst(spans).run(model, real);
    await scrub(false).run(model, real);
    const hits = device.hits();
    await scrub(false).run(model, real);
    expect(device.hits()).toBe(hits);
    for (const id of ids) device.remove(id);
    expect(real.array.state).toBe('clean');
  });

/** A member that takes no writes while many are under way: it is out, and nothing is lost. */
const refusal = (which: number, spans: readonly Span[]): Command =>
  command(`refusal(${which}, ${JSON.stringify(spans)})`, async (model, real) => {
    const device = await victim(real, which);
    if (device === null) return;
    const id = device.add({ on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } });
    await burst(spans).run(model, real);
    const wasHit = device.hits(id) > 0;
    device.remove(id);
    const member = real.array.members.find((each) => each.device === device);
    expect(member?.state.state).toBe(wasHit ? 'faulty' : 'in_sync');
  });

const span = fc.record({
  at: fc.double({ min: 0, max: 1, noNaN: true }),
  length: fc.oneof(
    fc.integer({ min: 1, max: 600 }),
    fc.constantFrom(512, 4096, 8192, 12288),
    fc.integer({ min: 1, max: 60_000 }),
  ),
  byte: fc.nat(0xffff),
});

const spans = fc.array(span, { minLength: 2, maxLength: 24 });

const commands = fc.commands<Model, Real, false>(
  [
    span.map(write),
    span.map(write),
    span.map(read),
    span.map(zeroes),
    spans.map(burst),
    fc.tuple(fc.nat(8), spans).map(([which, each]) => badSectors(which, each)),
    fc.tuple(fc.nat(8), spans).map(([which, each]) => refusal(which, each)),
    fc.constant(flush),
    fc.nat(8).map(fail),
    fc.nat(8).map(fail),
    fc.boolean().map(recover),
    fc.boolean().map(scrub),
    fc
      .tuple(fc.nat(8), fc.constantFrom<Death>('now', 'in-commit', 'after-commit'))
      .map(([lane, when]) => killLane(lane, when)),
  ],
  { maxCommands: 40 },
);

const seed = process.env['RAIDSIM_SEED'];
const path = process.env['RAIDSIM_PATH'];

/** So many histories of one array; `RAIDSIM_SEED` and `RAIDSIM_PATH`, as a failure prints them, bring one back. */
export async function neverDiffers(geometry: Geometry, driver: DriverKind, numRuns: number): Promise<void> {
  await fc.assert(
    fc.asyncProperty(commands, async (sequence) => {
      const array = new RaidArray({
        geometry,
        members: membersOf(geometry, driver),
        driver,
        lanes: 2,
        heapBytes: 8 * 1024 * KIB,
        windowBytes: 64 * KIB,
      });
      const model: Model = { bytes: new Uint8Array(array.limits.sizeBytes) };
      const real: Real = { array, background: null };
      try {
        await fc.asyncModelRun(() => ({ model, real }), sequence);
        if (real.background !== null) await real.background;
        const whole = new Uint8Array(model.bytes.length);
        await array.read(0, whole);
        expect(Buffer.compare(whole, model.bytes)).toBe(0);
      } finally {
        await array.close();
      }
    }),
    {
      numRuns,
      ...(seed === undefined ? {} : { seed: Number(seed) }),
      ...(path === undefined ? {} : { path }),
    },
  );
}
