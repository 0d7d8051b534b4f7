/** What a store comes back as, after whatever a crash may leave and after what only rot can. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { expect, test } from 'vitest';
import { FileDevice } from '../../lib/device/file.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RecordDevice } from '../../lib/device/record.ts';
import {
  type Header,
  halfBytesFor,
  slotOffset,
  storeBytesFor,
  UNIT_BYTES,
} from '../../lib/snapshot/format.ts';
import type { Copy, Entry } from '../../lib/snapshot/history.ts';
import { SnapshotStore } from '../../lib/snapshot/store.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { scratchFolder } from '../device/scratch.ts';
import { codeOf } from './world.ts';

const CHUNK = 4 * KIB;
const header: Header = {
  uuid: new Uint8Array(16).fill(7),
  originBytes: MIB,
  chunkBytes: CHUNK,
  slotCount: 64,
  origin: 'array',
};
const old = new Uint8Array(CHUNK).fill(1);
const snapshot = (id: number): Entry => ({
  op: 'snapshot',
  id,
  name: `s${id}`,
  createdAtMs: 0,
  nonce: '0123456789abcdef',
  state: 'valid',
});
const copy = (chunk: number, id: number, slot: number): Entry => ({
  op: 'copy',
  chunk,
  id,
  slot,
  crc: crc32(old),
});

async function make(): Promise<{ store: SnapshotStore; memory: SharedArrayBuffer }> {
  const device = new MemoryDevice({ sizeBytes: storeBytesFor(header) });
  return { store: await SnapshotStore.create(device, header), memory: device.memory };
}

/** As if the power had gone, with everything kept. */
function reopen(memory: SharedArrayBuffer): Promise<SnapshotStore> {
  const kept = new SharedArrayBuffer(memory.byteLength);
  Buffer.from(kept).set(Buffer.from(memory));
  return SnapshotStore.open(new MemoryDevice({ sizeBytes: kept.byteLength, memory: kept }));
}

test('a last batch whose slot is not all there is dropped as a whole', async () => {
  const { store, memory } = await make();
  await store.commit([snapshot(1)]);
  await store.writeSlots([0], [old]);
  await store.commit([copy(0, 1, 0), copy(1, 1, 1)]);
  const again = await reopen(memory);
  expect(again.history.isValid(1)).toBe(true);
  expect([...again.history.slots()]).toEqual([]);
  expect(again.freeSlots).toBe(64);
});

test('a slot that the last batch itself gives up may hold anything', async () => {
  const { store, memory } = await make();
  await store.commit([snapshot(1)]);
  await store.commit([copy(0, 1, 0), { op: 'become', id: 1, state: 'gone' }]);
  const again = await reopen(memory);
  expect(again.history.snapshots).toEqual([]);
});

test('a slot of an earlier batch that is not what it was has rotted: the batch stays, and reading it says so', async () => {
  const { store, memory } = await make();
  await store.commit([snapshot(1)]);
  await store.writeSlots([0], [old]);
  await store.commit([copy(0, 1, 0)]);
  await store.commit([snapshot(2)]);
  Buffer.from(memory)[slotOffset(header, 0)] = 9;
  const again = await reopen(memory);
  const found = again.history.lookup(1, 0) as Copy;
  expect(found.slot).toBe(0);
  expect(await again.readSlot(found, new Uint8Array(CHUNK))).toBe(false);
});

test('it comes back as it was after every one of so many commits that the journal changes halves again and again', async () => {
  const { store, memory } = await make();
  await store.commit([snapshot(1)]);
  await store.writeSlots([0], [old]);
  await store.commit([copy(0, 1, 0)]);
  for (let id = 2; id < 150; id += 1) {
    await store.commit([snapshot(id)]);
    if (id > 20) await store.commit([{ op: 'become', id: id - 18, state: 'gone' }]);
    if (id % 7 !== 0) continue;
    const again = await reopen(memory);
    expect([...again.history.entries()]).toEqual([...store.history.entries()]);
  }
});

test('damage to a batch that is not the last, or to the newest checkpoint, is refused; an unused half may hold anything', async () => {
  const { store, memory } = await make();
  await store.commit([snapshot(1)]);
  await store.commit([snapshot(2)]);
  const bytes = Buffer.from(memory);
  const spoil = async (at: number) => {
    const before = bytes[at] as number;
    bytes[at] = before ^ 1;
    const code = await codeOf(() => reopen(memory));
    bytes[at] = before;
    return code;
  };
  // The first checkpoint is in half 0, the batches behind it.
  expect(await spoil(UNIT_BYTES + 70)).toBe('SUPERBLOCK_BROKEN');
  expect(await spoil(2 * UNIT_BYTES + 70)).toBe('SUPERBLOCK_BROKEN');
  expect(await spoil(3 * UNIT_BYTES + 70)).toBe('done');
  expect(await spoil(UNIT_BYTES + halfBytesFor(64))).toBe('done');
});

test('a newest checkpoint that is damaged is refused, and not replaced by the one before it', async () => {
  const { store, memory } = await make();
  await store.commit([snapshot(1)]);
  await store.close();
  const again = await SnapshotStore.open(new MemoryDevice({ sizeBytes: memory.byteLength, memory }));
  await again.commit([snapshot(2)]);
  // It moved to half 1 when it was opened.
  const at = UNIT_BYTES + halfBytesFor(64) + 70;
  Buffer.from(memory)[at] = (Buffer.from(memory)[at] as number) ^ 1;
  expect(await codeOf(() => reopen(memory))).toBe('SUPERBLOCK_BROKEN');
});

test('a device that holds something is not made a store', async () => {
  const { memory } = await make();
  const device = new MemoryDevice({ sizeBytes: memory.byteLength, memory });
  expect(await codeOf(() => SnapshotStore.create(device, header))).toBe('HOLDS_DATA');
});

test('commits that come while one is on its way share one flush', async () => {
  const device = new RecordDevice(new MemoryDevice({ sizeBytes: storeBytesFor(header) }));
  const store = await SnapshotStore.create(device, header);
  device.clear();
  await Promise.all(Array.from({ length: 50 }, (_, index) => store.commit([snapshot(index + 1)])));
  const flushes = device.log.filter(({ event, operation }) => event === 'start' && operation.op === 'flush');
  expect(flushes).toHaveLength(2);
  expect(store.history.snapshots).toHaveLength(50);
  await store.close();
});

test('whoever only looks writes nothing, and sees what is there while it is open', async () => {
  const { store, memory } = await make();
  await store.commit([snapshot(1), { op: 'witness', text: 'w' }]);
  const before = Buffer.from(Buffer.from(memory));
  const { history } = await SnapshotStore.peek(
    new MemoryDevice({ sizeBytes: memory.byteLength, memory, readOnly: true }),
  );
  expect([history.snapshots.length, history.witnesses]).toEqual([1, ['w']]);
  expect(Buffer.compare(before, Buffer.from(memory))).toBe(0);
});

test('a snapshot of more chunks than a call has arguments is let go of, every slot of it', async () => {
  const folder = await scratchFolder();
  const slotCount = 150_000;
  const large = { ...header, originBytes: slotCount * CHUNK, slotCount };
  try {
    const file = await FileDevice.create(join(folder, 'store'), storeBytesFor(large));
    const store = await SnapshotStore.create(file, large);
    await store.commit([snapshot(1)]);
    const slots = store.takeSlots(slotCount) ?? [];
    for (let first = 0; first < slotCount; first += 50_000) {
      const entries = slots.slice(first, first + 50_000).map((slot) => copy(slot, 1, slot));
      await store.commit(entries);
    }
    await store.commit([{ op: 'become', id: 1, state: 'gone' }]);
    expect([store.failure, store.freeSlots]).toEqual([null, slotCount]);
    await store.close();
  } finally {
    await rm(folder, { recursive: true });
  }
});
