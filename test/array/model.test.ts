/**
 * Arrays of every level, on every driver, against a plain memory model: random reads, writes, failures, recoveries and
 * scrubs, several in flight at once, and no byte may ever differ. A failure prints the seed and the path of
 * fast-check; `RAIDSIM_SEED=n RAIDSIM_PATH=p npx vitest run test/array/model.test.ts -t '<title>'` replays it.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RaidArray } from '../../lib/array/array.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { DriverKind } from '../../lib/engine/engine.ts';
import { RaidError } from '../../lib/errors.ts';
import { type Geometry, memberCountOf } from '../../lib/layout/geometry.ts';

const KIB = 1024;
const chunkBytes = 4 * KIB;

const shapes: readonly [string, Geometry][] = [
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

const drivers: readonly DriverKind[] = ['inline', 'lanes', 'event-loop'];

function memory(bytes: number): MemoryDevice {
  return new MemoryDevice({ sizeBytes: bytes });
}

function membersOf(geometry: Geometry): MemoryDevice[] {
  return Array.from({ length: memberCountOf(geometry) }, (_, slot) =>
    memory(
      typeof geometry.memberBytes === 'number' ? geometry.memberBytes : (geometry.memberBytes[slot] ?? 0),
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
      const device = memory(Math.max(...array.layout.memberBytes));
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

const killLane = (inCommit: boolean): Command =>
  command(inCommit ? 'kill lane in commit' : 'kill lane', async (_model, { array }) => {
    if (array.engine.lanes > 0) await array.killLane(0, inCommit ? 'in-commit' : 'now');
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

const commands = fc.commands<Model, Real, false>(
  [
    span.map(write),
    span.map(write),
    span.map(read),
    span.map(zeroes),
    fc.array(span, { minLength: 2, maxLength: 24 }).map(burst),
    fc.constant(flush),
    fc.nat(8).map(fail),
    fc.nat(8).map(fail),
    fc.boolean().map(recover),
    fc.boolean().map(scrub),
    fc.boolean().map(killLane),
  ],
  { maxCommands: 40 },
);

const seed = process.env['RAIDSIM_SEED'];
const path = process.env['RAIDSIM_PATH'];

for (const driver of drivers) {
  describe(`on ${driver}`, () => {
    for (const [title, geometry] of shapes) {
      test(`${title} never differs from plain memory`, async () => {
        await fc.assert(
          fc.asyncProperty(commands, async (sequence) => {
            const array = new RaidArray({
              geometry,
              members: membersOf(geometry),
              driver,
              cores: 3,
              heapBytes: 8 * 1024 * KIB,
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
            numRuns: driver === 'lanes' ? 6 : 25,
            ...(seed === undefined ? {} : { seed: Number(seed) }),
            ...(path === undefined ? {} : { path }),
          },
        );
      });
    }
  });
}
