/** The last disk of a place is replaced, and the new one fails in the moment when it takes over: the record keeps to the one that has everything. */
import { expect, test } from 'vitest';
import { assembleDevices, formArray, type Source } from '../../lib/array/form.ts';
import { DelayDevice } from '../../lib/device/delay.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { realHost } from '../../lib/host.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { turns, until } from '../engine/members.ts';

const SUPERBLOCK = { offsetBytes: 4 * KIB, lengthBytes: 512 };
const refusal = { on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } } as const;
const quiet = { name: 'array', driver: 'event-loop', autoSync: false } as const;
const shapes = [
  { level: 0, count: 2, chunk: '64K' },
  { level: 1, count: 2, bitmap: 'none' },
  { level: 5, count: 3, chunk: '64K', consistencyPolicy: 'ppl' },
  { level: 10, count: 4, chunk: '64K', bitmap: 'internal' },
] as const;
const ways = ['its superblock', 'its superblock, once', 'a write'] as const;

const source = (device: Device, index: number): Source => ({
  device,
  name: `m${index}`,
  identity: `m${index}`,
});
const cases = shapes.flatMap((shape) => ways.map((what) => ({ ...shape, what })));

test.each(cases)('raid$level of $count: it refuses $what', async ({ count, what, ...shape }) => {
  const memories = Array.from({ length: count + 1 }, () => new SharedArrayBuffer(4 * MIB));
  const disks = (): MemoryDevice[] =>
    memories.map((memory, index) => new MemoryDevice({ sizeBytes: 4 * MIB, memory, name: `m${index}` }));
  const members = disks();
  const faulty = new FaultDevice(members.pop() as MemoryDevice);
  const target = new DelayDevice(faulty, { host: realHost });
  const array = await formArray(members.map(source), { ...quiet, ...shape, assumeClean: true });
  const content = new Uint8Array(array.limits.sizeBytes).map((_, index) => 1 + ((index >> 12) % 250));
  await array.write(0, content);
  await array.add(target, 'new');
  await array.replace('m0', 'new');
  if (shape.level !== 0) await array.fail('m1');
  const flush = target.hold({ only: ({ op }) => op === 'flush' });
  const finished = (async () => {
    for await (const _ of array.rebuild());
  })().catch(() => undefined);
  await until(() => flush.waiting.length > 0);
  const late = content.slice(0, 128 * KIB).fill(251);
  if (what === 'a write') {
    const held = target.hold({ only: ({ op }) => op === 'write' });
    const written = array.write(0, late);
    await until(() => held.waiting.length > 0);
    flush.release();
    await turns(20);
    faulty.add({ ...refusal, when: 'once' });
    held.release();
    await written.then(() => content.set(late)).catch(() => undefined);
  } else {
    faulty.add({ ...refusal, range: SUPERBLOCK, when: what.endsWith('once') ? 'once' : 'forever' });
    flush.release();
  }
  await finished;
  await array
    .write(0, late)
    .then(() => content.set(late))
    .catch(() => undefined);
  await array.flush().catch(() => undefined);
  await array.close().catch(() => undefined);
  const { array: again } = await assembleDevices(disks().map(source), { ...quiet, run: true });
  const found = new Uint8Array(content.byteLength);
  await again.read(0, found);
  // What was written meanwhile, and not acknowledged, may be there or not.
  const isSame = (from: number, to: number): boolean =>
    Buffer.compare(found.subarray(from, to), content.subarray(from, to)) === 0;
  expect(isSame(late.byteLength, content.byteLength)).toBe(true);
  for (let page = 0; page < late.byteLength; page += 4 * KIB)
    expect(isSame(page, page + 4 * KIB) || found[page] === 251, `page at ${page}`).toBe(true);
  await again.close();
});
