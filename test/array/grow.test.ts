/** Growing: what cannot be opened in its new shape is refused before that shape is on any disk (I13). */
import { expect, test } from 'vitest';
import { assembleDevices, formArray, type Source } from '../../lib/array/form.ts';
import { MdRecord } from '../../lib/array/record.ts';
import { superblockOn } from '../../lib/array/superblocks.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { InvariantViolation } from '../../lib/errors.ts';
import { realHost } from '../../lib/host.ts';
import { copiesMax } from '../../lib/layout/levels.ts';
import { addSlots } from '../../lib/md/update.ts';
import { MIB } from '../../lib/units.ts';

function memories(): readonly SharedArrayBuffer[] {
  return [0, 1].map(() => new SharedArrayBuffer(4 * MIB));
}

function sourcesOn(on: readonly SharedArrayBuffer[]): Source[] {
  return on.map((memory, at) => {
    const device = new MemoryDevice({ sizeBytes: memory.byteLength, memory, name: `disk${at}` });
    return { device, name: device.name, identity: device.name };
  });
}

const options = { name: 'g', level: 1, autoSync: false, driver: 'event-loop', assumeClean: true } as const;

test.each([copiesMax + 1, 1921, 5000, 2 ** 31])(
  'a mirror of %i disks is refused, and nothing of it is written',
  async (count) => {
    const disks = memories();
    const array = await formArray(sourcesOn(disks), options);
    await expect(array.grow({ disks: count })).rejects.toMatchObject({ code: 'BAD_GEOMETRY' });
    await array.close();
    for (const { device } of sourcesOn(disks)) expect((await superblockOn(device)).raidDisks).toBe(2);
  },
);

test('a mirror of as many disks as can be opens again', async () => {
  const disks = memories();
  const array = await formArray(sourcesOn(disks), options);
  await array.grow({ disks: copiesMax });
  await array.close();
  const { array: grown } = await assembleDevices(sourcesOn(disks), { ...options, run: true });
  expect(grown.layout.memberCount).toBe(copiesMax);
  await grown.close();
});

test('no superblock is written that its own reader would refuse, on any member', async () => {
  const disks = memories();
  const array = await formArray(sourcesOn(disks), options);
  const md = array.metadata?.array;
  await array.close();
  if (md === undefined) throw new Error('an array with metadata');
  const record = new MdRecord({
    array: md,
    devices: new Map(sourcesOn(disks).map(({ device }, number) => [number, device])),
    host: realHost,
    mayMiss: () => true,
    onFailure: () => undefined,
  });
  await expect(record.change((now, utime) => addSlots(now, 5000, utime))).rejects.toThrow(InvariantViolation);
  for (const { device } of sourcesOn(disks)) expect((await superblockOn(device)).raidDisks).toBe(2);
  expect(record.array.raidDisks).toBe(2);
});

test('an array that has grown on record takes no writes, syncs or members until it is opened in its new shape', async () => {
  const disks = memories();
  {
    const array = await formArray(sourcesOn(disks), options);
    await array.write(0, new Uint8Array(array.limits.sizeBytes).fill(7));
    await array.close();
  }
  // As disks that were larger from the start, and used before.
  const larger = disks.map((memory, at) => {
    const grown = new SharedArrayBuffer(2 * memory.byteLength);
    new Uint8Array(grown).fill(0xee * at);
    new Uint8Array(grown).set(new Uint8Array(memory));
    return grown;
  });
  const { array } = await assembleDevices(sourcesOn(larger), { ...options, run: true });
  const before = array.limits.sizeBytes;
  await array.grow({ size: 'max' });
  const again = { code: 'BUSY', message: expect.stringContaining('open it again') };
  const rebuild = async (): Promise<void> => {
    for await (const _ of array.rebuild());
  };
  for (const refused of [
    () => array.write(0, new Uint8Array(512)),
    () => array.writeZeroes(0, 512),
    () => array.fail('disk1'),
    () => array.add(new MemoryDevice({ sizeBytes: 8 * MIB }), 'new'),
    rebuild,
  ])
    await expect(refused()).rejects.toMatchObject(again);
  const content = new Uint8Array(before);
  await array.read(0, content);
  expect(content.every((byte) => byte === 7)).toBe(true);
  await array.close();
  const { array: grown } = await assembleDevices(sourcesOn(larger), { ...options, run: true });
  expect(grown.limits.sizeBytes).toBeGreaterThan(before);
  for await (const _ of grown.rebuild());
  for await (const { mismatchCount } of grown.scrub()) expect(mismatchCount).toBe(0);
  await grown.close();
});

/** Bits of 4 KiB: more than one page of them, and no log behind, so that there is room for more. */
const many = { ...options, bitmap: 'internal', bitmapChunk: '4K' } as const;

async function roomy(): Promise<readonly SharedArrayBuffer[]> {
  const disks = [0, 1].map(() => new SharedArrayBuffer(100 * MIB));
  const array = await formArray(sourcesOn(disks), many);
  await array.metadata?.update((md) => ({
    ...md,
    events: md.events + 1,
    members: md.members.map((each) => ({
      ...each,
      superblock: { ...each.superblock, bblogSectors: 0, bblogOffsetSectors: 0, bblogShift: 0 },
    })),
  }));
  await array.close();
  return disks.map((memory) => {
    const larger = new SharedArrayBuffer(180 * MIB);
    new Uint8Array(larger).set(new Uint8Array(memory));
    return larger;
  });
}

test('all bits of what is new are set, in pages that there were not, on every member', async () => {
  const larger = await roomy();
  const { array } = await assembleDevices(sourcesOn(larger), { ...many, run: true });
  const oldBits = array.metadata?.bitmap?.bits.bitCount ?? 0;
  await array.grow({ size: 'max' });
  await array.close();
  for (const memory of larger) {
    // Each by itself, as who reads this one's copy first would find it.
    const { array: half } = await assembleDevices(
      sourcesOn([memory]).map((source) => ({ ...source, name: `only ${source.name}` })),
      { ...many, run: true },
    );
    const bits = half.metadata?.bitmap?.bits;
    expect(bits?.bitCount).toBeGreaterThan(oldBits);
    expect(bits?.area.byteLength).toBeGreaterThan(4096);
    let clear = 0;
    for (let bit = oldBits; bit < (bits?.bitCount ?? 0); bit += 1) clear += bits?.has(bit) === true ? 0 : 1;
    expect(clear).toBe(0);
    await half.close();
  }
});

test('a bit that is set while a replacement gets its bitmap is in its copy too, whatever page it is on', async () => {
  const disks = await roomy();
  const { array: small } = await assembleDevices(sourcesOn(disks), { ...many, run: true });
  await small.grow({ size: 'max' });
  await small.close();
  const { array } = await assembleDevices(sourcesOn(disks), { ...many, run: true });
  for await (const _ of array.rebuild());
  await array.write(0, new Uint8Array(512));
  const place = 170 * MIB;
  const bits = array.metadata?.bitmap?.bits;
  const bit = bits?.bitsOf({ fromSector: place / 512, toSector: place / 512 + 8 }).firstBit ?? 0;
  expect(bits?.pageOf(bit)).toBe(1);
  const memory = new SharedArrayBuffer(180 * MIB);
  const fresh = new MemoryDevice({ sizeBytes: memory.byteLength, memory, name: 'fresh' });
  const write = fresh.write.bind(fresh);
  let written: Promise<void> | null = null;
  fresh.write = async (...args) => {
    await write(...args);
    const isArea = 'byteLength' in args[1] && args[1].byteLength === bits?.area.byteLength;
    if (isArea) written ??= array.write(place, new Uint8Array(512).fill(1));
  };
  const { descriptor } = await array.add(fresh, 'fresh');
  await array.replace(0, 'fresh');
  expect(written).not.toBeNull();
  await written;
  const superblock = array.metadata?.array.members.find((each) => each.descriptor === descriptor)?.superblock;
  const at = ((superblock?.superSector ?? 0) + (superblock?.consistencyArea ?? 0)) * 512;
  const byte = new Uint8Array(memory)[at + 256 + (bit >> 3)] ?? 0;
  expect((byte >> (bit & 7)) & 1).toBe(1);
  await array.close();
});
