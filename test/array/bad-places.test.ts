/** Bad places of members, as their logs list them: made good by what is written, kept by who comes back, not inherited. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { joinManifest } from '../../cli/array.ts';
import type { RaidArray } from '../../lib/array/array.ts';
import { createArray, openArray } from '../../lib/array/folder.ts';
import { assembleDevices, formArray } from '../../lib/array/form.ts';
import { badPlacesOn } from '../../lib/array/superblocks.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { confirm } from '../../lib/md/update.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { turns, until } from '../engine/members.ts';
import { bytesOf, expectSame, filled, newFolder, quiet } from './snapshot-folders.ts';

const BAD = 12 * KIB;
const shapes = [
  { level: 1, disks: 2 },
  { level: 5, disks: 3, chunk: '64K' },
  { level: 6, disks: 4, chunk: '64K' },
  { level: 10, disks: 4, chunk: '64K' },
] as const;
const redundancy = { 1: 1, 5: 1, 6: 2, 10: 1 } as const;

/** Lists the first bytes of these slots as bad, where stale bytes are then, as a refused write leaves them. */
async function withBadPlaces(
  shape: (typeof shapes)[number],
  slots: readonly number[],
  bitmap: 'internal' | 'none' = 'none',
): Promise<{ folder: string; content: Uint8Array }> {
  const folder = newFolder();
  const places: [string, number][] = [];
  await using array = await createArray(folder, { ...shape, ...quiet, diskSize: '4M', bitmap });
  const content = new Uint8Array(array.limits.sizeBytes).map((_, index) => 1 + ((index >> 12) % 250));
  await array.write(0, content);
  for (const slot of slots) {
    const { name, descriptor } = memberIn(array, slot);
    await array.metadata?.setBadBlocks(descriptor, [{ member: slot, offsetBytes: 0, lengthBytes: BAD }]);
    const md = array.metadata?.array.members.find((each) => each.descriptor === descriptor);
    places.push([join(folder, `${name}.img`), (md?.superblock.dataOffsetSectors ?? 0) * 512]);
  }
  await array.close();
  for (const [path, at] of places) {
    const fd = openSync(path, 'r+');
    writeSync(fd, filled(BAD, 0xee), 0, BAD, at);
    closeSync(fd);
  }
  return { folder, content };
}

function memberIn(array: RaidArray, slot: number): RaidArray['members'][number] {
  const found = array.members.find(({ state }) => state.state === 'in_sync' && state.slot === slot);
  if (found === undefined) throw new Error(`nobody in slot ${slot}`);
  return found;
}

async function rebuilt(array: RaidArray): Promise<void> {
  for await (const _ of array.rebuild());
}

/** All slots but this one that the array can do without, from the first on, so that what it holds is needed. */
async function failOthers(array: RaidArray, level: keyof typeof redundancy, slot: number): Promise<void> {
  const others = level === 10 ? [slot ^ 1] : [0, 1, 2, 3].filter((each) => each !== slot);
  for (const other of others.slice(0, redundancy[level])) await array.fail(memberIn(array, other).name);
}

describe.each(shapes)('raid$level of $disks', (shape) => {
  test.each([
    ['in order', false],
    ['from the last', true],
  ])('writes at once, %s, each over a part of a bad place, make all of it good', async (_how, isReversed) => {
    const { folder, content } = await withBadPlaces(shape, [1]);
    await using array = await openArray(folder, quiet);
    // All of the first row, which has the bad place, whatever the level.
    const pieces = Array.from({ length: 64 }, (_, index) => index * 4 * KIB);
    if (isReversed) pieces.reverse();
    await Promise.all(pieces.map((at) => array.write(at, content.subarray(at, at + 4 * KIB))));
    expect(array.health.erased).toEqual([]);
    await failOthers(array, shape.level, 1);
    expectSame(await bytesOf(array), content);
  });

  test('what replaces a member with a bad place has none: it holds what the others know', async () => {
    const { folder, content } = await withBadPlaces(shape, [1]);
    {
      await using array = await openArray(folder, quiet);
      expect(array.health.erased).toEqual([{ member: 1, offsetBytes: 0, lengthBytes: BAD }]);
      await array.add(new MemoryDevice({ sizeBytes: 4 * MIB }), 'fresh');
      await array.replace(1, 'fresh');
      await rebuilt(array);
      expect(memberIn(array, 1).name).toBe('fresh');
      expect(array.health.erased).toEqual([]);
      await failOthers(array, shape.level, 1);
      expectSame(await bytesOf(array), content);
    }
  });

  test('a member that comes back has the bad places that it had when it went, until they are written', async () => {
    const { folder, content } = await withBadPlaces(shape, [1], 'internal');
    const listed = [{ member: 1, offsetBytes: 0, lengthBytes: BAD }];
    {
      await using array = await openArray(folder, quiet);
      const { name } = memberIn(array, 1);
      await array.fail(name);
      expect(array.health.erased).toEqual([]);
      await array.reAdd(await array.remove(name), name);
      await rebuilt(array);
      expect(memberIn(array, 1).name).toBe(name);
      expect(array.health.erased).toEqual(listed);
      expectSame(await bytesOf(array), content);
    }
    await using array = await openArray(folder, quiet);
    expect(array.health.erased).toEqual(listed);
    expectSame(await bytesOf(array), content);
  });
});

test('what a replacement could not get is bad on it, in its log too, from before it takes the place', async () => {
  const { folder, content } = await withBadPlaces(shapes[1], [1, 2]);
  await using array = await openArray(folder, quiet);
  const fresh = new MemoryDevice({ sizeBytes: 4 * MIB });
  const { descriptor } = await array.add(fresh, 'fresh');
  const whole = async (): Promise<Uint8Array> => await bytesOf(array);
  await expect(whole()).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
  await array.replace(1, 'fresh');
  await rebuilt(array);
  expect(memberIn(array, 1).name).toBe('fresh');
  const bad = array.health.erased.filter(({ member }) => member === 1);
  expect(bad.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)).toBe(BAD);
  const md = array.metadata?.array;
  const superblock = md?.members.find((each) => each.descriptor === descriptor)?.superblock;
  if (md === undefined || superblock === undefined) throw new Error('it has a superblock');
  const logged = await badPlacesOn(fresh, superblock, md.sizeSectors, 1);
  expect(logged.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)).toBe(BAD);
  await expect(whole()).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
  await array.write(0, content);
  expect(array.health.erased).toEqual([]);
  expectSame(await whole(), content);
});

test('where there is no list, a place that was made good again is no reason to end a later recovery', async () => {
  const folder = newFolder();
  await using array = await createArray(folder, { ...shapes[1], ...quiet, diskSize: '4M', bitmap: 'none' });
  await array.metadata?.update((md) => ({
    ...md,
    events: md.events + 1,
    members: md.members.map((each) => ({
      ...each,
      superblock: { ...each.superblock, bblogSectors: 0, bblogOffsetSectors: 0, bblogShift: 0 },
    })),
  }));
  const content = filled(array.limits.sizeBytes, 7);
  await array.write(0, content);
  await array.close();
  let refuses = false;
  const wrap = (device: Device, name: string): Device => {
    const write = device.write.bind(device);
    device.write = (...args) =>
      refuses && name === 'disk0' && args[0] >= 1 * MIB
        ? Promise.reject(new RaidError('WRITE_FAILED', `${name} refuses`, { device: name }))
        : write(...args);
    return device;
  };
  await using again = await openArray(folder, { ...quiet, wrap });
  await again.fail('disk2');
  refuses = true;
  await expect(again.write(0, content.subarray(0, 4 * KIB))).rejects.toMatchObject({
    code: 'REDUNDANCY_LOST',
  });
  refuses = false;
  expect(again.health.erased).not.toEqual([]);
  await again.write(0, content);
  expect(again.health.erased).toEqual([]);
  for (const [gone, come] of [
    ['disk2', 'new2'],
    ['disk0', 'new0'],
  ] as const) {
    if (gone === 'disk0') await again.fail(gone);
    await again.add(new MemoryDevice({ sizeBytes: 4 * MIB }), come);
    await rebuilt(again);
    expect(again.members.find(({ name }) => name === come)?.state.state).toBe('in_sync');
  }
  expectSame(await bytesOf(again), content);
});

/** As superblocks may say that nobody here wrote: how far before the data the list is, how long and how coarse. */
const oddLists = [
  { what: 'on the data', beforeData: 0, bblogSectors: 8, bblogShift: 0, isListed: false },
  { what: 'partly on the data', beforeData: 4, bblogSectors: 8, bblogShift: 0, isListed: false },
  { what: 'behind the end', beforeData: -20_000, bblogSectors: 8, bblogShift: 0, isListed: false },
  { what: 'of one sector, before the data', beforeData: 1, bblogSectors: 1, bblogShift: 0, isListed: true },
  { what: 'in units of 4 KiB', beforeData: 8, bblogSectors: 8, bblogShift: 3, isListed: true },
  { what: 'in units of 4 GiB', beforeData: 8, bblogSectors: 8, bblogShift: 23, isListed: true },
  { what: 'in units that nobody reads', beforeData: 8, bblogSectors: 8, bblogShift: 33, isListed: false },
  { what: 'in the largest units', beforeData: 8, bblogSectors: 8, bblogShift: 32, isListed: true },
];

test.each(oddLists)('a list $what is written nowhere else', async ({ beforeData, isListed, ...odd }) => {
  const folder = newFolder();
  await using array = await createArray(folder, { ...shapes[1], ...quiet, diskSize: '4M', bitmap: 'none' });
  await array.metadata?.update((md) => ({
    ...md,
    events: md.events + 1,
    members: md.members.map((each) => {
      const { dataOffsetSectors, superSector } = each.superblock;
      const bblogOffsetSectors = dataOffsetSectors - superSector - beforeData;
      const { bblogSectors, bblogShift } = odd;
      return { ...each, superblock: { ...each.superblock, bblogSectors, bblogShift, bblogOffsetSectors } };
    }),
  }));
  const content = filled(array.limits.sizeBytes, 7);
  await array.write(0, content);
  await array.close();
  await using again = await openArray(folder, quiet);
  const { descriptor } = memberIn(again, 0);
  const bad = [{ member: 0, offsetBytes: 8 * KIB, lengthBytes: BAD }];
  expect(await again.metadata?.setBadBlocks(descriptor, bad)).toBe(isListed);
  await again.close();
  await using third = await openArray(folder, quiet);
  expectSame(await bytesOf(third), content);
  const listed = third.health.erased.filter(({ member }) => member === 0);
  expect(listed.length > 0).toBe(isListed);
  const covers = ({ offsetBytes, lengthBytes }: (typeof listed)[number]): boolean =>
    offsetBytes <= 8 * KIB && 8 * KIB + BAD <= offsetBytes + lengthBytes;
  if (isListed) expect(listed.some(covers)).toBe(true);
});

test('a replacement whose original fails has no bad places when it has recovered the slot, in its log neither', async () => {
  const { folder, content } = await withBadPlaces(shapes[1], [0, 1]);
  await using array = await openArray(folder, { ...quiet, windowBytes: 64 * KIB });
  const fresh = new MemoryDevice({ sizeBytes: 4 * MIB });
  const { descriptor } = await array.add(fresh, 'fresh');
  await array.replace(1, 'fresh');
  let steps = 0;
  for await (const _ of array.rebuild({ limitBytesPerSecond: 200_000 })) {
    steps += 1;
    if (steps === 2) break;
  }
  await array.fail('disk1');
  // What disk0 lacks is written, and so there is nothing left that could not be computed.
  await array.write(0, content);
  await rebuilt(array);
  expect(memberIn(array, 1).name).toBe('fresh');
  const md = array.metadata?.array;
  const superblock = md?.members.find((each) => each.descriptor === descriptor)?.superblock;
  if (md === undefined || superblock === undefined) throw new Error('it has a superblock');
  expect(await badPlacesOn(fresh, superblock, md.sizeSectors, 1)).toEqual([]);
  expect(array.health.erased).toEqual([]);
});

test('a place that is refused again and again is listed once', async () => {
  const { folder, content } = await withBadPlaces(shapes[1], []);
  let isBad = false;
  const wrap = (device: Device, name: string): Device => {
    const write = device.write.bind(device);
    device.write = (...args) =>
      isBad && name === 'disk0' && args[0] >= 1 * MIB
        ? Promise.reject(new RaidError('WRITE_FAILED', `${name} refuses`, { device: name }))
        : write(...args);
    return device;
  };
  await using array = await openArray(folder, { ...quiet, wrap });
  await array.fail('disk2');
  isBad = true;
  for (let times = 0; times < 20; times += 1)
    await array.write(0, content.subarray(0, 128 * KIB)).catch(() => undefined);
  expect(array.health.erased).toEqual([{ member: 0, offsetBytes: 0, lengthBytes: 64 * KIB }]);
  isBad = false;
  await array.write(0, content.subarray(0, 128 * KIB));
  expect(array.health.erased).toEqual([]);
});

describe('the log of bad places', () => {
  /** Refuses writes of `name` to its metadata, or to its data, or its flushes, while these say so. */
  function refusing(name: string) {
    const is = { log: false, data: false, flush: false };
    const refuse = (): Promise<never> =>
      Promise.reject(new RaidError('WRITE_FAILED', `${name} refuses`, { device: name }));
    const wrap = (device: Device, of: string): Device => {
      if (of !== name) return device;
      const write = device.write.bind(device);
      const flush = device.flush.bind(device);
      device.write = (...args) =>
        (args[0] < 1 * MIB ? is.log && args[0] > 8 * KIB : is.data) ? refuse() : write(...args);
      device.flush = () => (is.flush ? refuse() : flush());
      return device;
    };
    return { is, wrap };
  }

  test('that a member does not take is a member that fails, and nobody’s write', async () => {
    const { folder, content } = await withBadPlaces(shapes[1], [1]);
    const { is, wrap } = refusing('disk1');
    await using array = await openArray(folder, { ...quiet, wrap });
    is.log = true;
    await array.write(0, content);
    is.log = false;
    expect(array.members.find(({ name }) => name === 'disk1')?.state.state).toBe('faulty');
    expectSame(await bytesOf(array), content);
  });

  test.each(shapes)(
    'that a member of raid$level does not take fails no request that waits for that record',
    async (shape) => {
      const { folder, content } = await withBadPlaces(shape, [1]);
      const refuser = refusing('disk1');
      const held: (() => void)[] = [];
      let isHolding = false;
      const wrap = (device: Device, name: string): Device => {
        const refused = refuser.wrap(device, name);
        const write = refused.write.bind(refused);
        refused.write = async (...args) => {
          const isSuperblock = args[0] === 4 * KIB;
          if (isSuperblock && isHolding) await new Promise<void>((resolve) => held.push(resolve));
          if (!isSuperblock && refuser.is.log && args[0] < 1 * MIB && held.length === 0) {
            // Something else is on its way to the record when the list is refused.
            isHolding = true;
            meanwhile.push(array.metadata?.update(confirm));
            await until(() => held.length > 0);
          }
          await write(...args);
        };
        return refused;
      };
      const meanwhile: (Promise<void> | undefined)[] = [];
      await using array = await openArray(folder, { ...quiet, wrap });
      await array.write(512 * KIB, content.subarray(512 * KIB, 516 * KIB));
      refuser.is.log = true;
      meanwhile.push(array.write(0, content.subarray(0, 128 * KIB)));
      await until(() => array.members.some(({ state }) => state.state === 'faulty'));
      const flush = array.flush();
      flush.catch(() => undefined);
      await turns(20);
      isHolding = false;
      for (const release of held) release();
      await Promise.all([flush, ...meanwhile]);
      expect(array.members.find(({ name }) => name === 'disk1')?.state.state).toBe('faulty');
      expectSame(await bytesOf(array), content);
    },
  );

  test('names damage, though the member does not flush any more', async () => {
    const { folder, content } = await withBadPlaces(shapes[1], []);
    const { is, wrap } = refusing('disk0');
    {
      const array = await openArray(folder, { ...quiet, wrap });
      await array.fail('disk2');
      is.data = true;
      is.flush = true;
      await expect(array.write(0, content.subarray(0, 128 * KIB))).rejects.toMatchObject({
        code: 'REDUNDANCY_LOST',
      });
      await array.close().catch(() => undefined);
    }
    await using array = await openArray(folder, { ...quiet, run: true, force: true });
    expect(array.health.erased).toEqual([{ member: 0, offsetBytes: 0, lengthBytes: 64 * KIB }]);
  });

  test.each([
    ['cannot be read', 'MEDIUM_ERROR'],
    ['makes no sense', 'SUPERBLOCK_BROKEN'],
  ] as const)('that %s costs the member, and not the array', async (_what, code) => {
    const { folder, content } = await withBadPlaces(shapes[1], [1]);
    const wrap = (device: Device, name: string): Device => {
      const read = device.read.bind(device);
      device.read = async (at, target) => {
        await read(at, target);
        const isLog = at > 8 * KIB && at < 1 * MIB && 'byteLength' in target && target.byteLength === 4 * KIB;
        if (name !== 'disk1' || !isLog) return;
        if (code === 'MEDIUM_ERROR') throw new RaidError(code, 'a bad sector', { device: name });
        (target as Uint8Array).fill(0x7f);
      };
      return device;
    };
    for (const readOnly of [true, false]) {
      await using array = await openArray(folder, { ...quiet, wrap, readOnly });
      expect(array.members.find(({ name }) => name === 'disk1')?.state).toMatchObject({
        state: 'faulty',
        because: { code },
      });
      expectSame(await bytesOf(array), content);
    }
  });

  test('of a member that cannot be missed has to be read', async () => {
    const { folder } = await withBadPlaces(shapes[1], [0, 1]);
    const wrap = (device: Device, name: string): Device => {
      const read = device.read.bind(device);
      device.read = (at, target) =>
        name !== 'disk2' && at > 8 * KIB && at < 1 * MIB
          ? Promise.reject(new RaidError('MEDIUM_ERROR', 'a bad sector', { device: name }))
          : read(at, target);
      return device;
    };
    await expect(openArray(folder, { ...quiet, wrap, run: true })).rejects.toMatchObject({
      code: 'MEDIUM_ERROR',
      message: expect.stringContaining('nobody knows which of its places are bad'),
    });
  });
});

test('bytes are written to a part of a bad sector where the rest of it can be had, and nowhere else', async () => {
  const { folder, content } = await withBadPlaces(shapes[1], [0]);
  const { offsetBytes } = (await openArray(folder, quiet).then(async (array) => {
    const cell = array.layout.kind === 'parity' ? array.layout.row(0).data.indexOf(0) : 0;
    await array.close();
    return { offsetBytes: cell * 64 * KIB };
  })) as { offsetBytes: number };
  const piece = filled(700, 9);
  for (const isDegraded of [false, true]) {
    if (isDegraded) await rm(join(folder, 'disk2.img'));
    await using array = await openArray(folder, { ...quiet, run: true });
    if (isDegraded) {
      await expect(array.write(offsetBytes + 2148, piece)).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
      continue;
    }
    await array.write(offsetBytes + 100, piece);
    content.set(piece, offsetBytes + 100);
    expectSame(await bytesOf(array), content);
    await array.close();
    await using again = await openArray(folder, quiet);
    expectSame(await bytesOf(again), content);
  }
});

describe.each(['0', 'linear'] as const)('%s, which has each byte once', (level) => {
  const shape = { level, disks: 2, diskSize: '4M', ...(level === '0' ? { chunk: '64K' } : {}), ...quiet };
  const patterned = (lengthBytes: number, seed: number): Uint8Array =>
    new Uint8Array(lengthBytes).map((_, index) => 1 + (((index >> 9) * seed) % 250));

  test.each([false, true])(
    'a member is copied, and gives way to its copy; closed in the middle: %s',
    async (isClosed) => {
      const folder = newFolder();
      let content: Uint8Array;
      {
        await using array = await createArray(folder, shape);
        content = patterned(array.limits.sizeBytes, 7);
        await array.write(0, content);
        await array.add(await FileDevice.create(join(folder, 'disk2.img'), 4 * MIB), 'disk2');
        await array.replace(0, 'disk2');
        await joinManifest(folder, join(folder, 'disk2.img'), () => Promise.resolve());
        const later = patterned(100 * KIB, 3);
        await array.write(8 * KIB, later);
        content.set(later, 8 * KIB);
        if (!isClosed) await rebuilt(array);
      }
      {
        await using array = await openArray(folder, quiet);
        if (isClosed) await rebuilt(array);
        expect(memberIn(array, 0).name).toBe('disk2');
        expect(array.members.find(({ name }) => name === 'disk0')?.state.state ?? 'not a member').toMatch(
          /faulty|not/,
        );
        await array.write(0, content.subarray(0, 4 * KIB));
        expectSame(await bytesOf(array), content);
      }
      await using array = await openArray(folder, quiet);
      expectSame(await bytesOf(array), content);
    },
  );

  /** Of two disks and a spare, full, on the caller's thread. */
  async function formed() {
    const memories = [0, 1, 2].map(() => new SharedArrayBuffer(4 * MIB));
    const sources = (): { device: FaultDevice; name: string; identity: string }[] =>
      memories.map((memory, index) => {
        const device = new FaultDevice(new MemoryDevice({ sizeBytes: 4 * MIB, memory }));
        return { device, name: `m${index}`, identity: `m${index}` };
      });
    const first = sources();
    const disks = first.map(({ device }) => device);
    const { diskSize: _, ...kind } = shape;
    const array = await formArray(first.slice(0, 2), { ...kind, name: 'demo' });
    const content = patterned(array.limits.sizeBytes, 7);
    await array.write(0, content);
    await array.add(disks[2]!, 'm2');
    return { array, disks, content, sources };
  }

  /** Where on the disk of slot 0 the array begins. */
  const placeIn = (array: RaidArray): { offsetBytes: number; lengthBytes: number } => {
    const { descriptor } = memberIn(array, 0);
    const md = array.metadata?.array.members.find((each) => each.descriptor === descriptor);
    return { offsetBytes: (md?.superblock.dataOffsetSectors ?? 0) * 512, lengthBytes: BAD };
  };

  test('what cannot be read of it is lost, on record, and no more than that', async () => {
    const { array, disks, content, sources } = await formed();
    const fault = { kind: 'error', code: 'MEDIUM_ERROR' } as const;
    disks[0]!.add({ on: 'read', range: placeIn(array), fault });
    await array.replace(0, 'm2');
    await rebuilt(array);
    expect(memberIn(array, 0).name).toBe('m2');
    await array.close();
    const { array: again } = await assembleDevices(sources().slice(1), { name: 'demo', ...quiet });
    await expect(again.read(0, new Uint8Array(BAD))).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
    const rest = new Uint8Array(content.byteLength - BAD);
    await again.read(BAD, rest);
    expectSame(rest, content.subarray(BAD));
    await again.write(0, content.subarray(0, BAD));
    expectSame(await bytesOf(again), content);
    await again.close();
  });

  test('where no list can say so, the copy does not take the place', async () => {
    const { array, disks, content } = await formed();
    if (array.metadata !== null) array.metadata.setBadBlocks = () => Promise.resolve(false);
    const fault = { kind: 'error', code: 'MEDIUM_ERROR' } as const;
    disks[0]!.add({ on: 'read', range: placeIn(array), fault, clearedByWrite: true });
    await array.replace(0, 'm2');
    await expect(rebuilt(array)).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
    expect(memberIn(array, 0).name).toBe('m0');
    await array.write(0, content.subarray(0, BAD));
    await rebuilt(array);
    expect(memberIn(array, 0).name).toBe('m2');
    expectSame(await bytesOf(array), content);
    await array.close();
  });
});

/** A disk that says when something is written to it. */
class HeardDisk extends MemoryDevice {
  heard: (offsetBytes: number) => void = () => undefined;

  override get direct(): null {
    return null;
  }

  protected override async doWrite(...args: Parameters<MemoryDevice['doWrite']>): Promise<void> {
    await super.doWrite(...args);
    this.heard(args[0]);
  }
}

function memoryDisks(memories: readonly SharedArrayBuffer[]) {
  return memories.map((memory, index) => {
    const device = new HeardDisk({ sizeBytes: memory.byteLength, memory });
    return { device, name: `m${index}`, identity: `m${index}` };
  });
}

test('parity that a log could not make is on record, also where what assembly decided waits for snapshots', async () => {
  const memories = [0, 1, 2].map(() => new SharedArrayBuffer(8 * MIB));
  const still = { ...quiet, name: 'demo', driver: 'event-loop' } as const;
  {
    const kind = { level: 5, chunk: '64K', consistencyPolicy: 'ppl', assumeClean: true } as const;
    const array = await formArray(memoryDisks(memories), { ...still, ...kind });
    await array.write(0, filled(array.limits.sizeBytes, 7));
    const { descriptor } = memberIn(array, 0);
    await array.metadata?.setBadBlocks(descriptor, [{ member: 0, offsetBytes: 0, lengthBytes: BAD }]);
    await array.close();
  }
  // Power goes when one of two chunks of a row has its new bytes, and parity not: of the other nobody knows anything.
  let left: SharedArrayBuffer[] = [];
  const disks = memoryDisks(memories);
  const { array } = await assembleDevices(disks, still);
  const start = array.metadata?.array.members[1]?.superblock.dataOffsetSectors ?? 0;
  disks[1]!.device.heard = (offsetBytes) => {
    if (offsetBytes >= start * 512 && left.length === 0) left = memories.map((memory) => memory.slice(0));
  };
  await array.write(0, filled(128 * KIB, 9));
  expect(left).toHaveLength(3);
  new Uint8Array(left[0]!).fill(0xee, start * 512, start * 512 + BAD);
  new Uint8Array(left[2]!).fill(7 ^ 7, start * 512, start * 512 + 64 * KIB);

  for (const life of [1, 2]) {
    const { array: next } = await assembleDevices(memoryDisks(left), { ...still, leaveUpdate: true });
    if (life === 1) {
      const folder = newFolder();
      await next.keepSnapshots(folder, join(folder, 'snapshots.store'), false);
    }
    await expect(next.read(0, new Uint8Array(BAD))).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
    expect(new Set(next.health.erased.map(({ member }) => member))).toEqual(new Set([0, 2]));
    const rest = new Uint8Array(64 * KIB);
    await next.read(64 * KIB, rest);
    expectSame(rest, filled(64 * KIB, 9));
    await next.write(1 * MIB, filled(4 * KIB, 5));
    await next.close();
  }
});

test('where the list of a member that is being replaced cannot be read, its replacement takes the slot', async () => {
  const memories = [0, 1, 2, 3].map(() => new SharedArrayBuffer(4 * MIB));
  let content: Uint8Array;
  let listAt = 0;
  {
    const disks = memoryDisks(memories);
    const kind = { level: 5, chunk: '64K', assumeClean: true, spares: 1, windowBytes: 64 * KIB } as const;
    const array = await formArray(disks, { ...quiet, ...kind, name: 'demo' });
    content = new Uint8Array(array.limits.sizeBytes).map((_, index) => 1 + ((index >> 12) % 250));
    await array.write(0, content);
    const { descriptor } = memberIn(array, 0);
    await array.metadata?.setBadBlocks(descriptor, [{ member: 0, offsetBytes: 0, lengthBytes: BAD }]);
    const { superSector, bblogOffsetSectors } = array.metadata!.array.members[0]!.superblock;
    listAt = (superSector + bblogOffsetSectors) * 512;
    await array.replace(0);
    let steps = 0;
    for await (const _ of array.rebuild({ limitBytesPerSecond: MIB })) {
      steps += 1;
      if (steps === 4) break;
    }
    await array.close();
  }
  const disks = memoryDisks(memories);
  const unreadable = new FaultDevice(disks[0]!.device);
  const fault = { kind: 'error', code: 'MEDIUM_ERROR' } as const;
  unreadable.add({ on: 'read', range: { offsetBytes: listAt, lengthBytes: 4 * KIB }, fault });
  const sources = [{ ...disks[0]!, device: unreadable }, ...disks.slice(1)];
  const { array } = await assembleDevices(sources, { ...quiet, name: 'demo' });
  await rebuilt(array);
  expect(memberIn(array, 0).name).toBe('m3');
  expectSame(await bytesOf(array), content);
  await array.close();
});

describe('a row that was torn by a disk which takes nothing any more, where another is missing: no list can have it', () => {
  const still = { ...quiet, name: 'demo', driver: 'event-loop' } as const;
  const kind = { level: 5, chunk: '64K', consistencyPolicy: 'ppl', assumeClean: true } as const;

  /** The first rows of which slot 1 has the parity, by the places of the chunks of slots 0 and 2 in the array. */
  function rowsOf(array: RaidArray): readonly { readonly own: number; readonly missing: number }[] {
    const { layout } = array;
    if (layout.kind !== 'parity') throw new Error('raid5 has parity');
    const rows = Array.from({ length: 9 }, (_, index) => ({ index, row: layout.row(index) }));
    return rows
      .filter(({ row }) => row.p === 1)
      .map(({ index, row }) => {
        const at = (member: number): number => (2 * index + row.data.indexOf(member)) * 64 * KIB;
        return { own: at(0), missing: at(2) };
      });
  }

  async function torn(range?: { readonly offsetBytes: number; readonly lengthBytes: number }) {
    const memories = [0, 1, 2].map(() => new SharedArrayBuffer(8 * MIB));
    const sources = memoryDisks(memories);
    const disk = new FaultDevice(sources[0]!.device);
    const array = await formArray([{ ...sources[0]!, device: disk }, ...sources.slice(1)], {
      ...still,
      ...kind,
    });
    const content = new Uint8Array(array.limits.sizeBytes).map((_, index) => 1 + ((index >> 9) % 250));
    await array.write(0, content);
    await array.fail('m2');
    const [first, second] = rowsOf(array);
    if (first === undefined || second === undefined) throw new Error('two such rows');
    const refuses = disk.add({
      on: 'write',
      fault: { kind: 'error', code: 'WRITE_FAILED' },
      ...(range === undefined ? {} : { range }),
    });
    await expect(array.write(first.own, filled(64 * KIB, 0xab))).rejects.toMatchObject({
      code: 'REDUNDANCY_LOST',
    });
    const write = async (at: number, value: number, lengthBytes = 64 * KIB): Promise<void> => {
      await array.write(at, filled(lengthBytes, value));
      content.fill(value, at, at + lengthBytes);
    };
    const heal = (): void => disk.remove(refuses);
    /** The power goes; what has been written is all there. */
    const next = async () => {
      const left = memoryDisks(memories.slice(0, 2).map((memory) => memory.slice(0)));
      return await assembleDevices(left, { ...still, run: true });
    };
    return { array, content, first, second, write, heal, next };
  }

  test('its log puts it right after a power cut', async () => {
    const { content, next } = await torn();
    const { array } = await next();
    expectSame(await bytesOf(array), content);
  });

  test('no log that has moved on vouches for it', async () => {
    const { second, write, next } = await torn();
    await write(second.missing, 0xcd);
    await expect(next()).rejects.toMatchObject({ code: 'DIRTY_DEGRADED' });
  });

  test('where it has been written again, logs vouch for everything', async () => {
    const { content, first, second, write, heal, next } = await torn();
    await write(second.missing, 0xcd);
    heal();
    await write(Math.min(first.own, first.missing), 0xef, 128 * KIB);
    await write(second.missing, 0xdc);
    const { array } = await next();
    expectSame(await bytesOf(array), content);
  });

  test('where only data is refused a list has it, and logs vouch for all else', async () => {
    const data = { offsetBytes: 2 * MIB, lengthBytes: 6 * MIB };
    const { content, first, second, write, next } = await torn(data);
    await write(second.missing, 0xcd);
    await write(second.missing, 0xdc);
    const { array } = await next();
    const lost = { offsetBytes: Math.min(first.own, first.missing), lengthBytes: 128 * KIB };
    await expect(bytesOf(array)).rejects.toMatchObject({ code: 'REDUNDANCY_LOST', place: lost });
    const behind = lost.offsetBytes + lost.lengthBytes;
    const rest = new Uint8Array(array.limits.sizeBytes - behind);
    await array.read(behind, rest);
    expectSame(rest, content.subarray(behind));
  });
});

test('a disk that is given the number of another one starts with nothing listed: its first place is listed without a flush', async () => {
  const disks = [0, 1, 2, 3].map((at) => new MemoryDevice({ sizeBytes: 4 * MIB, name: `m${at}` }));
  const first = new FaultDevice(disks[0]!);
  const sources = [first, disks[1]!].map((device, at) => ({ device, name: `m${at}`, identity: `m${at}` }));
  const array = await formArray(sources, { ...quiet, name: 'demo', level: 1, assumeClean: true });
  await array.write(0, filled(64 * KIB, 7));
  const data = array.metadata!.array.members[0]!.superblock.dataOffsetSectors * 512;
  const unreadable = (lengthBytes: number) =>
    first.add({
      on: 'read',
      range: { offsetBytes: data + 4 * KIB, lengthBytes },
      fault: { kind: 'error', code: 'MEDIUM_ERROR' },
    });

  await array.fail('m1');
  await array.remove('m1');
  const whole = unreadable(8 * KIB);
  const { descriptor } = await array.add(disks[2]!, 'm2');
  await rebuilt(array);
  expect(array.health.erased).toMatchObject([{ member: 1 }, { member: 1 }]);
  await array.fail('m2');
  await array.remove('m2');

  first.remove(whole);
  unreadable(4 * KIB);
  // From where the copy meets it on; superblocks have been flushed by then.
  const read = first.read.bind(first);
  first.read = (offsetBytes, target) => {
    if (offsetBytes >= data + 4 * KIB)
      first.add({ on: 'flush', fault: { kind: 'error', code: 'FLUSH_FAILED' } });
    return read(offsetBytes, target);
  };
  expect((await array.add(disks[3]!, 'm3')).descriptor).toBe(descriptor);
  await expect(rebuilt(array)).rejects.toBeInstanceOf(RaidError);
  const md = array.metadata!.array;
  const { superblock } = md.members.find((each) => each.descriptor === descriptor)!;
  expect(await badPlacesOn(disks[3]!, superblock, md.sizeSectors, 1)).toEqual([
    { member: 1, offsetBytes: 4 * KIB, lengthBytes: 4 * KIB },
  ]);
  await array.close().catch(() => undefined);
});
