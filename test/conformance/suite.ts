/**
 * What every `Device` must do, whatever it is made of. A new kind of device hands a factory to `conformance` and has
 * its tests:
 *
 *   conformance('raid5 of 4, one missing', async () => ({ device, dispose }), { ... });
 *
 * The checks judge the contract at the top of lib/device/device.ts and nothing else: what a device does beyond it is
 * tested beside it. Each check gets a fresh device. They are also a list (`checksFor`), so that flawed devices can be
 * held against them and the suite itself is tested (canary.test.ts).
 *
 * Of a device larger than `WINDOW_BYTES` a window at its start or its end is looked at, by chance.
 */
import { describe, expect, test } from 'vitest';
import type { Buffers, Device } from '../../lib/device/device.ts';
import { type ErrorCode, RaidError } from '../../lib/errors.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { checkExtents, Model } from './model.ts';
import { type Random, randomBytes, runSeed, withSeed } from './seed.ts';

export interface Subject {
  readonly device: Device;
  /** Runs when the check is over, whether it passed or not; the device is closed by then. */
  readonly dispose?: () => Promise<void> | void;
}

export interface Capabilities {
  /** Every mutation must be refused with READ_ONLY (default false). */
  readonly readOnly?: boolean;
  /** `resize` works (default false: it must be refused with NOT_SUPPORTED). */
  readonly resize?: boolean;
  /** Buffers may change as soon as the call returned (default false: not before the promise settles). */
  readonly copies?: boolean;
  /** What the device holds when it is made, from its start; nothing is assumed by default. */
  readonly content?: Uint8Array;
  /** Requests of the model test (default 150): less for devices that are slow to ask. */
  readonly requests?: number;
}

export interface Context {
  readonly device: Device;
  readonly random: Random;
  readonly capabilities: Capabilities;
}

export interface Check {
  readonly claim: string;
  readonly run: (context: Context) => Promise<void>;
}

const WINDOW_BYTES = 4 * MIB;

export function conformance(
  name: string,
  make: () => Promise<Subject>,
  capabilities: Capabilities = {},
): void {
  describe(`${name} keeps the device contract`, () => {
    for (const check of checksFor(capabilities)) {
      test(check.claim, () => runCheck(check, make, capabilities));
    }
  });
}

export async function runCheck(
  check: Check,
  make: () => Promise<Subject>,
  capabilities: Capabilities = {},
  seed = runSeed,
): Promise<void> {
  await withSeed(seed, async (random) => {
    const subject = await make();
    try {
      await check.run({ device: subject.device, random, capabilities });
    } finally {
      await subject.device.close();
      await subject.dispose?.();
    }
  });
}

export function checksFor(capabilities: Capabilities): readonly Check[] {
  const always = [
    check('its limits make sense', limitsMakeSense),
    check('a range outside the device is OUT_OF_RANGE and changes nothing', refusesOutside),
    check('a range that is not whole blocks is UNALIGNED and changes nothing', refusesUnaligned),
    check('a request without bytes is ZERO_LENGTH', refusesEmpty),
    check('a size that no device can have is BAD_ARGUMENT', refusesBadSizes),
    check('reads fill vectors of any shape, exactly', readsVectors),
    check('reads fill buffers of every kind of memory', readsEveryKindOfMemory),
    check('extents cover exactly what was asked, in order, and zero extents read as zeros', extentsHold),
    check('close is idempotent, and everything after it is CLOSED', closes),
    check('what is in flight when it is closed has settled when close resolves', settlesBeforeClose),
  ];
  if (capabilities.readOnly === true) {
    return [...always, check('every mutation is READ_ONLY and changes nothing', refusesMutations)];
  }
  return [
    ...always,
    check('what was written is read back, at every boundary', readsBack),
    check('writes take vectors of any shape and leave them as they were', writesVectors),
    check('writeZeroes leaves zeros, and nothing else changes', writesZeroes),
    check('discarded blocks read as they were or as zeros, and stay so', discards),
    check('flush and fua resolve', flushes),
    check('it agrees with plain memory over a random history', agreesWithModel),
    check('requests in flight together that do not overlap do not disturb each other', runsConcurrently),
    check('overlapping writes in flight leave, block by block, one of them', settlesOverlaps),
    ...(capabilities.copies === true ? [check('buffers may change once the call returned', copies)] : []),
    capabilities.resize === true
      ? check('resize keeps what remains, and the new end is real', resizes)
      : check('resize is NOT_SUPPORTED', refusesResize),
  ];
}

function check(claim: string, run: (context: Context) => Promise<void>): Check {
  return { claim, run };
}

async function limitsMakeSense({ device, capabilities }: Context): Promise<void> {
  const { sizeBytes, blockBytes, preferredBytes, readOnly } = device.limits;
  for (const value of [sizeBytes, blockBytes, preferredBytes]) {
    expect(Number.isSafeInteger(value)).toBe(true);
    expect(value).toBeGreaterThan(0);
  }
  expect(sizeBytes % blockBytes).toBe(0);
  expect(preferredBytes % blockBytes).toBe(0);
  expect(readOnly).toBe(capabilities.readOnly === true);
  expect(device.name).not.toBe('');
  expect(device.isClosed).toBe(false);
  if (device.direct !== null) expect(device.direct.offsetBytes).toBeGreaterThanOrEqual(0);
}

async function refusesOutside(context: Context): Promise<void> {
  const { device } = context;
  const { sizeBytes, blockBytes } = device.limits;
  const model = await startModel(context);
  const one = blockBytes;
  const outside: readonly (readonly [number, number])[] = [
    [-one, one],
    [sizeBytes, one],
    [sizeBytes - one, 2 * one],
    [sizeBytes + one, one],
    [0.5, one],
    [Number.NaN, one],
    [Number.POSITIVE_INFINITY, one],
    [Number.NEGATIVE_INFINITY, one],
    [2 ** 53, one],
    [Number.MAX_SAFE_INTEGER, one],
  ];
  for (const [offset, length] of outside) {
    for (const request of requestsAt(context, offset, length)) await expectRefusal(request, 'OUT_OF_RANGE');
  }
  const lengths = [-one, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, sizeBytes + one];
  for (const length of lengths) {
    await expectRefusal(() => device.blockStatus(0, length), 'OUT_OF_RANGE');
    if (context.capabilities.readOnly === true) continue;
    await expectRefusal(() => device.discard(0, length), 'OUT_OF_RANGE');
    await expectRefusal(() => device.writeZeroes(0, length), 'OUT_OF_RANGE');
  }
  await readAll(device, model);
}

async function refusesUnaligned(context: Context): Promise<void> {
  const { blockBytes } = context.device.limits;
  if (blockBytes === 1) return;
  const model = await startModel(context);
  const crooked: readonly (readonly [number, number])[] = [
    [1, blockBytes],
    [blockBytes - 1, blockBytes],
    [0, 1],
    [0, blockBytes - 1],
    [0, blockBytes + 1],
    [blockBytes / 2, blockBytes / 2],
  ];
  for (const [offset, length] of crooked) {
    for (const request of requestsAt(context, offset, length)) await expectRefusal(request, 'UNALIGNED');
  }
  await readAll(context.device, model);
}

async function refusesEmpty(context: Context): Promise<void> {
  const { device, capabilities } = context;
  const nothing: readonly Buffers[] = [new Uint8Array(0), [], [new Uint8Array(0), new Uint8Array(0)]];
  for (const empty of nothing) {
    await expectRefusal(() => device.read(0, empty), 'ZERO_LENGTH');
    if (capabilities.readOnly !== true) await expectRefusal(() => device.write(0, empty), 'ZERO_LENGTH');
  }
  await expectRefusal(() => device.blockStatus(0, 0), 'ZERO_LENGTH');
  if (capabilities.readOnly === true) return;
  await expectRefusal(() => device.discard(0, 0), 'ZERO_LENGTH');
  await expectRefusal(() => device.writeZeroes(0, 0), 'ZERO_LENGTH');
}

async function refusesBadSizes({ device, capabilities }: Context): Promise<void> {
  const { sizeBytes, blockBytes } = device.limits;
  const bad = [0, -blockBytes, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53];
  if (blockBytes > 1) bad.push(sizeBytes + 1);
  const code = capabilities.readOnly === true ? 'READ_ONLY' : 'BAD_ARGUMENT';
  for (const size of bad) await expectRefusal(() => device.resize(size), code);
  expect(device.limits.sizeBytes).toBe(sizeBytes);
}

async function readsVectors(context: Context): Promise<void> {
  const model = await startModel(context);
  for (let round = 0; round < 30; round += 1) {
    const { offsetBytes, lengthBytes } = randomRange(context, model);
    // Guards on either side of every buffer would show a read that runs over.
    const poison = 1 + context.random(255);
    const arena = new Uint8Array(lengthBytes + 2 * 64).fill(poison);
    const middle = arena.subarray(64, 64 + lengthBytes).fill(context.random(256));
    await context.device.read(offsetBytes, split(context.random, middle));
    model.look(offsetBytes, middle);
    expect(arena.subarray(0, 64).every((byte) => byte === poison)).toBe(true);
    expect(arena.subarray(64 + lengthBytes).every((byte) => byte === poison)).toBe(true);
  }
}

async function readsEveryKindOfMemory(context: Context): Promise<void> {
  const model = await startModel(context);
  const { blockBytes } = context.device.limits;
  const lengthBytes = Math.min(model.lengthBytes, Math.max(blockBytes, 4 * KIB));
  const pages = Math.ceil((lengthBytes + Math.max(8, blockBytes)) / (64 * KIB));
  const shared = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }).buffer;
  const owned = new WebAssembly.Memory({ initial: pages }).buffer;
  const targets = [
    Buffer.alloc(lengthBytes, 0xa5),
    Buffer.from(new SharedArrayBuffer(lengthBytes)).fill(0xa5),
    new Uint8Array(new ArrayBuffer(lengthBytes + 1), 1).fill(0xa5),
    new Uint8Array(shared, 0, lengthBytes).fill(0xa5),
    new Uint8Array(shared, blockBytes, lengthBytes).fill(0xa5),
    // Not where O_DIRECT would take them from, though each looks like something that is.
    new Uint8Array(shared, 8, lengthBytes).fill(0xa5),
    new Uint8Array(new SharedArrayBuffer(pages * 64 * KIB), 0, lengthBytes).fill(0xa5),
    new Uint8Array(owned, 0, lengthBytes).fill(0xa5),
  ];
  for (const target of targets) {
    await context.device.read(model.startBytes, target);
    model.look(model.startBytes, target);
    if (context.capabilities.readOnly === true) continue;
    target.set(randomBytes(context.random, lengthBytes));
    await context.device.write(model.startBytes, target);
    model.write(model.startBytes, target);
  }
  await readAll(context.device, model);
}

async function extentsHold(context: Context): Promise<void> {
  const { device, capabilities } = context;
  const model = await startModel(context);
  if (capabilities.readOnly !== true) {
    const { offsetBytes, lengthBytes } = randomRange(context, model);
    await device.writeZeroes(model.startBytes, model.lengthBytes);
    model.zero(model.startBytes, model.lengthBytes);
    const data = randomBytes(context.random, lengthBytes);
    await device.write(offsetBytes, data);
    model.write(offsetBytes, data);
  }
  model.lookAtExtents(
    model.startBytes,
    model.lengthBytes,
    await device.blockStatus(model.startBytes, model.lengthBytes),
  );
  for (let round = 0; round < 10; round += 1) {
    const { offsetBytes, lengthBytes } = randomRange(context, model);
    model.lookAtExtents(offsetBytes, lengthBytes, await device.blockStatus(offsetBytes, lengthBytes));
  }
  const { sizeBytes, blockBytes } = device.limits;
  checkExtents(0, sizeBytes, blockBytes, await device.blockStatus(0, sizeBytes));
}

async function closes({ device, capabilities }: Context): Promise<void> {
  const { sizeBytes, blockBytes } = device.limits;
  await device.close();
  await device.close();
  await device[Symbol.asyncDispose]();
  expect(device.isClosed).toBe(true);
  const block = new Uint8Array(blockBytes);
  await expectRefusal(() => device.read(0, block), 'CLOSED');
  await expectRefusal(() => device.flush(), 'CLOSED');
  await expectRefusal(() => device.blockStatus(0, blockBytes), 'CLOSED');
  await expectRefusal(() => device.write(0, block), 'CLOSED');
  await expectRefusal(() => device.discard(0, blockBytes), 'CLOSED');
  await expectRefusal(() => device.writeZeroes(0, blockBytes), 'CLOSED');
  if (capabilities.resize === true) await expectRefusal(() => device.resize(sizeBytes), 'CLOSED');
}

async function settlesBeforeClose(context: Context): Promise<void> {
  const { device, capabilities } = context;
  const { blockBytes } = device.limits;
  const block = () => new Uint8Array(blockBytes);
  const mutates = capabilities.readOnly !== true;
  const inFlight = [
    device.read(0, block()),
    ...(mutates ? [device.write(0, block()), device.write(0, block(), { fua: true })] : []),
    ...(mutates ? [device.writeZeroes(0, blockBytes), device.discard(0, blockBytes)] : []),
    device.flush(),
    device.blockStatus(0, blockBytes),
    device.read(0, block()),
  ];
  const outcomes: unknown[] = [];
  for (const request of inFlight as readonly Promise<unknown>[]) {
    request.then(
      () => outcomes.push('done'),
      (failure) => outcomes.push(failure instanceof RaidError ? failure.code : failure),
    );
  }
  await Promise.all([device.close(), device.close()]);
  expect(outcomes).toHaveLength(inFlight.length);
  for (const outcome of outcomes) expect(['done', 'CLOSED']).toContain(outcome);
}

async function refusesMutations(context: Context): Promise<void> {
  const { device } = context;
  const { sizeBytes, blockBytes } = device.limits;
  const model = await startModel(context);
  const block = new Uint8Array(blockBytes).fill(0x5a);
  await expectRefusal(() => device.write(0, block), 'READ_ONLY');
  await expectRefusal(() => device.write(0, block, { fua: true }), 'READ_ONLY');
  await expectRefusal(() => device.writeZeroes(0, blockBytes), 'READ_ONLY');
  await expectRefusal(() => device.discard(0, blockBytes), 'READ_ONLY');
  await expectRefusal(() => device.resize(sizeBytes - blockBytes), 'READ_ONLY');
  await device.flush();
  await readAll(device, model);
}

async function readsBack(context: Context): Promise<void> {
  const { device, random } = context;
  const model = await startModel(context);
  for (const { offsetBytes, lengthBytes } of boundaries(context, model)) {
    const data = randomBytes(random, lengthBytes);
    await device.write(offsetBytes, data);
    model.write(offsetBytes, data);
    const seen = new Uint8Array(lengthBytes).fill(0xa5);
    await device.read(offsetBytes, seen);
    model.look(offsetBytes, seen);
  }
  await readAll(device, model);
}

async function writesVectors(context: Context): Promise<void> {
  const { device, random } = context;
  const model = await startModel(context);
  for (let round = 0; round < 20; round += 1) {
    const { offsetBytes, lengthBytes } = randomRange(context, model);
    const data = randomBytes(random, lengthBytes);
    const kept = data.slice();
    await device.write(offsetBytes, split(random, data));
    expect(Buffer.compare(data, kept)).toBe(0);
    model.write(offsetBytes, kept);
  }
  await readAll(device, model);
}

async function writesZeroes(context: Context): Promise<void> {
  const { device, random } = context;
  const model = await startModel(context);
  await scribble(context, model);
  const ranges = [...boundaries(context, model).slice(1), randomRange(context, model), wholeOf(model)];
  for (const { offsetBytes, lengthBytes } of ranges) {
    await device.writeZeroes(offsetBytes, lengthBytes, { mayUnmap: random(2) === 0, fua: random(3) === 0 });
    model.zero(offsetBytes, lengthBytes);
    await readAll(device, model);
  }
}

async function discards(context: Context): Promise<void> {
  const { device } = context;
  const model = await startModel(context);
  for (let round = 0; round < 6; round += 1) {
    await scribble(context, model);
    const { offsetBytes, lengthBytes } = round === 0 ? wholeOf(model) : randomRange(context, model);
    await device.discard(offsetBytes, lengthBytes);
    model.discard(offsetBytes, lengthBytes);
    // The first look pins, the second and the third must agree.
    await readAll(device, model);
    await device.flush();
    await readAll(device, model);
    await readAll(device, model);
  }
}

async function flushes(context: Context): Promise<void> {
  const { device, random } = context;
  const model = await startModel(context);
  await device.flush();
  const { offsetBytes, lengthBytes } = randomRange(context, model);
  const data = randomBytes(random, lengthBytes);
  await device.write(offsetBytes, data, { fua: true });
  model.write(offsetBytes, data);
  await Promise.all([device.flush(), device.flush(), device.flush()]);
  await device.writeZeroes(offsetBytes, lengthBytes, { fua: true });
  model.zero(offsetBytes, lengthBytes);
  await device.flush();
  await readAll(device, model);
}

async function agreesWithModel(context: Context): Promise<void> {
  const { device, random, capabilities } = context;
  const model = await startModel(context);
  const history: string[] = [];
  const step = async (): Promise<void> => {
    const { offsetBytes, lengthBytes } = randomRange(context, model);
    const where = `${offsetBytes}+${lengthBytes}`;
    const dice = random(100);
    if (dice < 40) {
      const fua = random(8) === 0;
      history.push(`write ${where}${fua ? ' fua' : ''}`);
      const data = randomBytes(random, lengthBytes);
      await device.write(offsetBytes, random(2) === 0 ? data : split(random, data), { fua });
      model.write(offsetBytes, data);
    } else if (dice < 68) {
      history.push(`read ${where}`);
      const seen = new Uint8Array(lengthBytes).fill(random(256));
      await device.read(offsetBytes, random(2) === 0 ? seen : split(random, seen));
      model.look(offsetBytes, seen);
    } else if (dice < 78) {
      const mayUnmap = random(2) === 0;
      history.push(`writeZeroes ${where}${mayUnmap ? '' : ' no-unmap'}`);
      await device.writeZeroes(offsetBytes, lengthBytes, { mayUnmap });
      model.zero(offsetBytes, lengthBytes);
    } else if (dice < 86) {
      history.push(`discard ${where}`);
      await device.discard(offsetBytes, lengthBytes);
      model.discard(offsetBytes, lengthBytes);
    } else if (dice < 96) {
      history.push(`blockStatus ${where}`);
      model.lookAtExtents(offsetBytes, lengthBytes, await device.blockStatus(offsetBytes, lengthBytes));
    } else {
      history.push('flush');
      await device.flush();
    }
  };
  try {
    for (let count = 0; count < (capabilities.requests ?? 150); count += 1) await step();
    history.push('read everything');
    await readAll(device, model);
  } catch (failure) {
    const message = failure instanceof Error ? failure.message : String(failure);
    throw new Error(
      `${message}\nafter ${history.length} requests, the last of them:\n  ${history.slice(-12).join('\n  ')}`,
      {
        cause: failure,
      },
    );
  }
}

async function runsConcurrently(context: Context): Promise<void> {
  const { device, random } = context;
  const model = await startModel(context);
  for (let round = 0; round < 4; round += 1) {
    const requests: Promise<unknown>[] = [];
    for (const { offsetBytes, lengthBytes } of shuffle(random, partition(context, model, 24))) {
      const kind = random(5);
      if (kind <= 1) {
        const data = randomBytes(random, lengthBytes);
        requests.push(
          device.write(offsetBytes, split(random, data)).then(() => model.write(offsetBytes, data)),
        );
      } else if (kind <= 3) {
        const seen = new Uint8Array(lengthBytes).fill(random(256));
        requests.push(
          device.read(offsetBytes, split(random, seen)).then(() => model.look(offsetBytes, seen)),
        );
      } else {
        requests.push(
          device.writeZeroes(offsetBytes, lengthBytes).then(() => model.zero(offsetBytes, lengthBytes)),
        );
      }
    }
    if (random(2) === 0) requests.push(device.flush());
    await allOf(requests);
    await readAll(device, model);
  }
}

async function settlesOverlaps(context: Context): Promise<void> {
  const { device, random } = context;
  const model = await startModel(context);
  const { blockBytes } = device.limits;
  for (let round = 0; round < 4; round += 1) {
    const before = Buffer.from(model.bytes);
    // Tags tell the writers apart; a read in between may see, byte by byte, what was there or any of them.
    const centre = randomRange(context, model);
    const writers = Array.from({ length: 2 + random(4) }, (_, index) => ({
      ...nearby(context, model, centre),
      tag: 1 + index + 16 * round,
    }));
    const seen = new Uint8Array(model.lengthBytes).fill(0xa5);
    const requests = writers.map(({ offsetBytes, lengthBytes, tag }) =>
      device.write(offsetBytes, split(random, new Uint8Array(lengthBytes).fill(tag))),
    );
    await allOf([...requests, device.read(model.startBytes, seen)]);
    const after = await readWindow(device, model);
    const blame = (bytes: Uint8Array, mayBeOld: boolean, unitBytes: number): number => {
      const first = Math.min(...writers.map(({ offsetBytes }) => offsetBytes)) - model.startBytes;
      const last = Math.max(...writers.map(endOf)) - model.startBytes;
      if (before.compare(bytes, 0, first, 0, first) !== 0) return model.startBytes;
      if (before.compare(bytes, last, undefined, last) !== 0) return model.startBytes + last;
      for (let at = first; at < last; at += unitBytes) {
        const offset = model.startBytes + at;
        const tag = uniform(bytes, at, unitBytes);
        let written = false;
        let fits = false;
        for (const writer of writers) {
          if (offset < writer.offsetBytes || offset >= endOf(writer)) continue;
          written = true;
          if (tag === writer.tag) fits = true;
        }
        if (!fits && (mayBeOld || !written)) fits = isSame(bytes, before, at, unitBytes);
        if (!fits) return offset;
      }
      return -1;
    };
    expect(
      blame(after, false, blockBytes),
      'offset of a block that is none of what was written there, entire',
    ).toBe(-1);
    // Linux locks writers of a file against each other, and nobody who reads: a page that is being copied may be seen in part.
    expect(blame(seen, true, 1), 'offset of a byte that was none of theirs, and not there before').toBe(-1);
    model.write(model.startBytes, after);
  }
}

async function copies(context: Context): Promise<void> {
  const { device, random } = context;
  const model = await startModel(context);
  for (let round = 0; round < 10; round += 1) {
    const { offsetBytes, lengthBytes } = randomRange(context, model);
    const data = randomBytes(random, lengthBytes);
    const handed = data.slice();
    const written = device.write(offsetBytes, split(random, handed));
    handed.fill(0xbd);
    await written;
    model.write(offsetBytes, data);
  }
  await readAll(device, model);
}

async function resizes(context: Context): Promise<void> {
  const { device, random } = context;
  const { sizeBytes, blockBytes } = device.limits;
  const growBytes = blockBytes * Math.ceil((8 * KIB) / blockBytes);
  const block = new Uint8Array(blockBytes).fill(0xa5);
  const model = await startModel(context);
  await scribble(context, model);

  await device.resize(sizeBytes + growBytes);
  expect(device.limits.sizeBytes).toBe(sizeBytes + growBytes);
  await readAll(device, model);
  const tail = randomBytes(random, growBytes);
  await device.write(sizeBytes, tail);
  const seen = new Uint8Array(growBytes);
  await device.read(sizeBytes, seen);
  expect(Buffer.compare(seen, tail)).toBe(0);
  await expectRefusal(() => device.read(sizeBytes + growBytes, block), 'OUT_OF_RANGE');

  await device.resize(sizeBytes);
  expect(device.limits.sizeBytes).toBe(sizeBytes);
  await expectRefusal(() => device.read(sizeBytes, block), 'OUT_OF_RANGE');
  await expectRefusal(() => device.write(sizeBytes, block), 'OUT_OF_RANGE');
  await device.flush();
  await readAll(device, model);
}

async function refusesResize({ device }: Context): Promise<void> {
  const { sizeBytes, blockBytes } = device.limits;
  await expectRefusal(() => device.resize(sizeBytes + blockBytes), 'NOT_SUPPORTED');
  expect(device.limits.sizeBytes).toBe(sizeBytes);
}

interface Range {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

function endOf(range: Range): number {
  return range.offsetBytes + range.lengthBytes;
}

function isSame(left: Uint8Array, right: Uint8Array, offset: number, length: number): boolean {
  for (let index = offset; index < offset + length; index += 1)
    if (left[index] !== right[index]) return false;
  return true;
}

/** The byte that a block consists of, or -1. */
function uniform(bytes: Uint8Array, offset: number, length: number): number {
  const first = bytes[offset] ?? -1;
  for (let index = offset + 1; index < offset + length; index += 1) if (bytes[index] !== first) return -1;
  return first;
}

/** A model of the window, made from two readings that must agree. */
async function startModel({ device, random, capabilities }: Context): Promise<Model> {
  const { sizeBytes, blockBytes } = device.limits;
  const lengthBytes = Math.min(sizeBytes, WINDOW_BYTES - (WINDOW_BYTES % blockBytes));
  const startBytes = random(2) === 0 ? 0 : sizeBytes - lengthBytes;
  const content = new Uint8Array(lengthBytes).fill(0xa5);
  await device.read(startBytes, content);
  const model = new Model(startBytes, blockBytes, content);
  await readAll(device, model);
  if (capabilities.content !== undefined) {
    const expected = capabilities.content.subarray(startBytes, startBytes + lengthBytes);
    expect(Buffer.compare(content.subarray(0, expected.byteLength), expected)).toBe(0);
  }
  return model;
}

async function readWindow(device: Device, model: Model): Promise<Uint8Array> {
  const seen = new Uint8Array(model.lengthBytes).fill(0x5a);
  await device.read(model.startBytes, seen);
  return seen;
}

async function readAll(device: Device, model: Model): Promise<void> {
  model.look(model.startBytes, await readWindow(device, model));
}

/** Something everywhere, so that what vanishes is missed. */
async function scribble({ device, random }: Context, model: Model): Promise<void> {
  const data = randomBytes(random, model.lengthBytes);
  await device.write(model.startBytes, data);
  model.write(model.startBytes, data);
}

function wholeOf(model: Model): Range {
  return { offsetBytes: model.startBytes, lengthBytes: model.lengthBytes };
}

/** The first and the last blocks, the whole, and both sides of the places where a device changes its mind. */
function boundaries({ device }: Context, model: Model): Range[] {
  const { blockBytes, preferredBytes } = device.limits;
  const end = model.startBytes + model.lengthBytes;
  const ranges: Range[] = [
    wholeOf(model),
    { offsetBytes: model.startBytes, lengthBytes: blockBytes },
    { offsetBytes: end - blockBytes, lengthBytes: blockBytes },
  ];
  for (const stepBytes of [preferredBytes, 4 * KIB, 64 * KIB, MIB]) {
    const edge = Math.ceil(model.startBytes / stepBytes) * stepBytes + stepBytes;
    for (const [from, to] of [
      [edge - blockBytes, edge + blockBytes],
      [edge - blockBytes, edge],
      [edge, edge + blockBytes],
      [edge - stepBytes, edge + stepBytes],
      [edge - stepBytes + blockBytes, edge + stepBytes - blockBytes],
    ] as const) {
      if (
        from >= model.startBytes &&
        to <= end &&
        from < to &&
        from % blockBytes === 0 &&
        to % blockBytes === 0
      ) {
        ranges.push({ offsetBytes: from, lengthBytes: to - from });
      }
    }
  }
  return ranges;
}

/** Mostly small, sometimes across a preferred boundary, sometimes large, now and then everything. */
function randomRange(context: Context, model: Model): Range {
  const { random } = context;
  const { blockBytes, preferredBytes } = context.device.limits;
  const blocks = model.lengthBytes / blockBytes;
  const dice = random(100);
  if (dice < 2) return wholeOf(model);
  let first = random(blocks);
  let count = 1 + random(Math.max(1, Math.min(blocks, Math.ceil((2 * preferredBytes) / blockBytes))));
  if (dice < 30) count = 1 + random(4);
  else if (dice < 40) count = 1 + random(Math.max(1, Math.floor(blocks / 2)));
  else if (dice < 60) {
    const edge = (1 + random(Math.max(1, Math.floor(model.lengthBytes / preferredBytes)))) * preferredBytes;
    first = Math.max(0, Math.min(blocks - 1, Math.floor(edge / blockBytes) - 1 - random(2)));
  }
  if (random(10) === 0) first = Math.max(0, blocks - count);
  count = Math.min(count, blocks - first);
  return { offsetBytes: model.startBytes + first * blockBytes, lengthBytes: count * blockBytes };
}

/** A range that overlaps another one, more or less. */
function nearby({ device, random }: Context, model: Model, centre: Range): Range {
  const { blockBytes } = device.limits;
  const end = model.startBytes + model.lengthBytes;
  const blocks = centre.lengthBytes / blockBytes;
  const from = Math.max(model.startBytes, centre.offsetBytes - random(blocks + 1) * blockBytes);
  const to = Math.min(end, from + (1 + random(2 * blocks)) * blockBytes);
  return { offsetBytes: from, lengthBytes: to - from };
}

/** Cuts the window into at most `count` ranges, of unequal lengths. */
function partition({ device, random }: Context, model: Model, count: number): Range[] {
  const { blockBytes } = device.limits;
  const blocks = model.lengthBytes / blockBytes;
  const cuts = new Set([0, blocks]);
  for (let index = 1; index < count; index += 1) cuts.add(random(blocks));
  const sorted = [...cuts].sort((left, right) => left - right);
  return sorted.slice(1).map((to, index) => {
    const from = sorted[index] ?? 0;
    return { offsetBytes: model.startBytes + from * blockBytes, lengthBytes: (to - from) * blockBytes };
  });
}

/** The same bytes as up to six buffers, some of which may be empty. */
function split(random: Random, bytes: Uint8Array): Uint8Array[] {
  const cuts = Array.from({ length: random(6) }, () => random(bytes.byteLength + 1));
  const sorted = [0, ...cuts.sort((left, right) => left - right), bytes.byteLength];
  return sorted.slice(1).map((to, index) => bytes.subarray(sorted[index], to));
}

function shuffle<T>(random: Random, items: T[]): T[] {
  for (let index = items.length - 1; index > 0; index -= 1) {
    const other = random(index + 1);
    const item = items[index] as T;
    items[index] = items[other] as T;
    items[other] = item;
  }
  return items;
}

/** As `Promise.all`, but nothing is left in flight when it throws: a check's device is about to be closed. */
async function allOf(requests: readonly Promise<unknown>[]): Promise<void> {
  const outcomes = await Promise.allSettled(requests);
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
}

/** Every kind of request that the device allows, at one place. */
function requestsAt(
  { device, capabilities }: Context,
  offsetBytes: number,
  lengthBytes: number,
): (() => Promise<unknown>)[] {
  const buffer = new Uint8Array(lengthBytes).fill(0x5a);
  const requests: (() => Promise<unknown>)[] = [
    () => device.read(offsetBytes, buffer),
    () => device.read(offsetBytes, [buffer.subarray(0, 1), buffer.subarray(1)]),
    () => device.blockStatus(offsetBytes, lengthBytes),
  ];
  if (capabilities.readOnly !== true) {
    requests.push(
      () => device.write(offsetBytes, buffer),
      () => device.write(offsetBytes, [buffer], { fua: true }),
      () => device.discard(offsetBytes, lengthBytes),
      () => device.writeZeroes(offsetBytes, lengthBytes),
    );
  }
  return requests;
}

/** The refusal must be a rejected promise: a call that throws would pass by the `catch` of whoever collects promises. */
async function expectRefusal(request: () => Promise<unknown>, code: ErrorCode): Promise<void> {
  let promise: Promise<unknown>;
  try {
    promise = request();
  } catch (thrown) {
    throw new Error(`${request} threw instead of rejecting`, { cause: thrown });
  }
  const outcome = await promise.then(
    () => 'it was done',
    (failure: unknown) => (failure instanceof RaidError ? failure.code : String(failure)),
  );
  expect(`${request}: ${outcome}`).toBe(`${request}: ${code}`);
}
