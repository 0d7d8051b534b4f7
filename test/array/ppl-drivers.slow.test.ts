/**
 * The same log under every driver: what is written reads back, parity is right, any byte can be addressed, and an array
 * that is dropped in the middle of its life starts again degraded with everything in it. And what a member that fails
 * at its log, or the death of a worker between log and rows, leaves behind.
 */
import { describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, formArray } from '../../lib/array/form.ts';
import { logOn, superblockOn } from '../../lib/array/superblocks.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { Death } from '../../lib/engine/message.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { claimOf } from '../../lib/md/member.ts';
import { replayOf } from '../../lib/plan/replay.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { parityLayout } from '../plan/shapes.ts';
import { contentOf, stillHost } from './ppl-world.ts';

const SIZE = 4 * MIB;
const drivers = ['inline', 'event-loop', 'lanes'] as const;

function disksOf(count: number): MemoryDevice[] {
  return Array.from(
    { length: count },
    (_, index) => new MemoryDevice({ name: `m${index}`, sizeBytes: SIZE }),
  );
}

/** The same bytes, as another process would find them. */
function again(disks: readonly MemoryDevice[]): MemoryDevice[] {
  return disks.map(({ name, memory }) => new MemoryDevice({ name, sizeBytes: SIZE, memory: copyOf(memory) }));
}

function copyOf(memory: SharedArrayBuffer): SharedArrayBuffer {
  const copy = new SharedArrayBuffer(memory.byteLength);
  new Uint8Array(copy).set(new Uint8Array(memory));
  return copy;
}

const sourcesOf = (disks: readonly { name: string }[]) =>
  disks.map((device) => ({ device: device as MemoryDevice, name: device.name, identity: device.name }));

async function make(
  disks: readonly { name: string }[],
  driver: (typeof drivers)[number],
  spares = 0,
): Promise<RaidArray> {
  return await formArray(sourcesOf(disks), {
    ...{ name: 'logged', level: 5, chunk: 16 * KIB, consistencyPolicy: 'ppl', assumeClean: true, spares },
    ...{ driver, lanes: 3, cores: 2, heapBytes: 4 * MIB, autoSync: false },
  });
}

async function start(disks: readonly MemoryDevice[], readOnly = false): Promise<RaidArray> {
  const { array } = await assembleDevices(sourcesOf(disks), {
    ...{ name: 'logged', run: true, host: stillHost(2), heapBytes: 4 * MIB, autoSync: false, readOnly },
  });
  return array;
}

async function mismatches(array: RaidArray): Promise<number> {
  for await (const _ of array.scrub()) {
    // Only the sum counts.
  }
  return array.mismatchCount;
}

/** Writes of all sizes at any byte, some of them together. */
async function scribble(array: RaidArray, model: Uint8Array, seed: number, rounds: number): Promise<void> {
  const random = seededRandom(seed);
  for (let round = 0; round < rounds; round += 1) {
    // Beside each other, so that the order among them does not matter.
    const share = Math.floor(model.byteLength / 4);
    await Promise.all(
      Array.from({ length: 4 }, async (_, part) => {
        const offset = part * share + random(share - 1);
        const room = (part + 1) * share - offset;
        const length = 1 + random(Math.min(room, [30, 700, 40_000, 300_000][random(4)]!));
        const bytes = Uint8Array.from({ length }, () => random(256));
        model.set(bytes, offset);
        await array.write(offset, bytes);
      }),
    );
  }
}

describe.each(drivers)('%s', (driver) => {
  test('writes at any byte read back, parity is right, and what was dropped starts again without any one disk', async () => {
    const disks = disksOf(4);
    const array = await make(disks, driver);
    expect(array.status().consistencyPolicy).toBe('ppl');
    const model = new Uint8Array(array.limits.sizeBytes);
    await scribble(array, model, 5, 8);
    expect(Buffer.compare(await contentOf(array), model)).toBe(0);
    expect(await mismatches(array)).toBe(0);
    for (const missing of [null, 0, 1, 2, 3]) {
      const left = again(disks).filter((_, index) => index !== missing);
      const found = await start(left);
      expect(Buffer.compare(await contentOf(found), model)).toBe(0);
      expect(found.state).toBe(missing === null ? 'clean' : 'degraded');
      if (missing === null) expect(await mismatches(found)).toBe(0);
    }
    await array.close();
    const closed = await start(again(disks));
    expect(closed.state).toBe('clean');
    expect(Buffer.compare(await contentOf(closed), model)).toBe(0);
  });

  test('a degraded array goes on logging, a spare takes over with a log of its own', async () => {
    const disks = disksOf(5);
    const array = await make(disks, driver, 1);
    const model = new Uint8Array(array.limits.sizeBytes);
    await scribble(array, model, 6, 3);
    await array.fail('m1');
    await scribble(array, model, 7, 3);
    const cut = await start(again(disks).filter((_, index) => index !== 1));
    expect(Buffer.compare(await contentOf(cut), model)).toBe(0);
    for await (const _ of array.rebuild()) {
      // Until it is whole.
    }
    await scribble(array, model, 8, 2);
    expect(array.degraded).toBe(0);
    expect(await mismatches(array)).toBe(0);
    for (const missing of [0, 4]) {
      const found = await start(again(disks).filter((_, index) => index !== 1 && index !== missing));
      expect(Buffer.compare(await contentOf(found), model)).toBe(0);
    }
    await array.close();
  });

  test('a replacement has the log of its slot from the first write on', async () => {
    const disks = disksOf(5);
    const array = await make(disks, driver, 1);
    const model = new Uint8Array(array.limits.sizeBytes);
    await scribble(array, model, 9, 4);
    await array.replace('m2');
    await scribble(array, model, 10, 4);
    for await (const _ of array.rebuild()) {
      // Until they have changed places.
    }
    await scribble(array, model, 11, 4);
    for (const missing of [3, 4]) {
      const found = await start(again(disks).filter((_, index) => index !== 2 && index !== missing));
      expect(Buffer.compare(await contentOf(found), model)).toBe(0);
    }
    expect(await mismatches(array)).toBe(0);
    await array.close();
  });
});

describe('lanes', () => {
  test.each<Death>(['before-commit', 'in-commit', 'after-commit'])(
    'a worker that dies %s leaves rows that are whole, and a log that is',
    async (when) => {
      const disks = disksOf(4);
      const array = await make(disks, 'lanes');
      const model = new Uint8Array(array.limits.sizeBytes);
      const random = seededRandom(12);
      for (let turn = 0; turn < 4; turn += 1) {
        await array.killLane(0, when);
        const bytes = Uint8Array.from({ length: 40_000 }, () => random(256));
        const offset = random(model.byteLength - bytes.byteLength);
        model.set(bytes, offset);
        await array.write(offset, bytes);
      }
      expect(array.engine.laneDeaths).toBeGreaterThan(2);
      expect(Buffer.compare(await contentOf(array), model)).toBe(0);
      expect(await mismatches(array)).toBe(0);
      for (const missing of [0, 1, 2, 3]) {
        const found = await start(again(disks).filter((_, index) => index !== missing));
        expect(Buffer.compare(await contentOf(found), model)).toBe(0);
      }
      await array.close();
    },
  );
});

describe('a member that does not take its log', () => {
  test.each(['write', 'flush'] as const)(
    'is out when its %s fails, on record before anything is written without it',
    async (on) => {
      const disks = disksOf(4);
      const faulty = new FaultDevice(disks[1]!);
      const array = await make([disks[0]!, faulty, disks[2]!, disks[3]!], 'event-loop');
      const model = new Uint8Array(array.limits.sizeBytes);
      await scribble(array, model, 13, 3);
      faulty.add({ on, fault: { kind: 'error', code: on === 'write' ? 'WRITE_FAILED' : 'FLUSH_FAILED' } });
      await scribble(array, model, 14, 3);
      expect(array.degraded).toBe(1);
      expect(Buffer.compare(await contentOf(array), model)).toBe(0);
      // The one that failed comes back with the others, and is not believed.
      const found = await start(again(disks));
      expect(found.degraded).toBe(1);
      expect(Buffer.compare(await contentOf(found), model)).toBe(0);
      await array.close();
    },
  );

  test('a second one is an error, and nothing was written', async () => {
    const disks = disksOf(3);
    const faulty = new FaultDevice(disks[1]!);
    const array = await make([disks[0]!, faulty, disks[2]!], 'event-loop');
    const model = new Uint8Array(array.limits.sizeBytes);
    await scribble(array, model, 15, 3);
    await array.fail('m0');
    faulty.add({ on: 'flush', fault: { kind: 'error', code: 'FLUSH_FAILED' } });
    const results = await Promise.allSettled(
      [0, 1, 2, 3].map((chunk) => array.write(chunk * 16 * KIB, new Uint8Array(512).fill(1))),
    );
    expect(results.some(({ status }) => status === 'rejected')).toBe(true);
    for (const result of results)
      if (result.status === 'rejected') expect(result.reason).toBeInstanceOf(RaidError);
  });
});

/** Garbage in the parity of all rows that the newest headers cover: what a power cut may leave of it. */
async function tearParity(disks: readonly MemoryDevice[]): Promise<number> {
  let rows = 0;
  for (const [slot, disk] of disks.entries()) {
    const superblock = await superblockOn(disk);
    const claim = claimOf({ version: '1.2', superblock }, SIZE / 512);
    const log = await logOn(disk, claim);
    if (log?.says !== 'all-but') throw new Error('the log of a running array says what is under way');
    for (const { dataSector, heightSectors, chunkCount } of log.cells) {
      const { parity } = replayOf(layout, { arrayOffsetBytes: dataSector * 512, chunkCount });
      expect(parity.member).toBe(slot);
      const at = superblock.dataOffsetSectors * 512 + parity.offsetBytes;
      new Uint8Array(disk.memory, at, heightSectors * 512).fill(0xee);
      rows += 1;
    }
  }
  return rows;
}

const layout = parityLayout('raid5', 'left-symmetric', 4, 128, 16 * KIB);

test('parity that is torn is made from the log; read-only too, where not a byte is written', async () => {
  const disks = disksOf(4);
  const array = await make(disks, 'inline');
  const model = new Uint8Array(array.limits.sizeBytes);
  await scribble(array, model, 16, 4);
  const left = again(disks);
  expect(await tearParity(left)).toBeGreaterThan(3);
  const before = left.map(({ memory }) => Buffer.from(new Uint8Array(memory)));
  for (const missing of [null, 0, 1, 2, 3]) {
    const found = await start(
      left.filter((_, index) => index !== missing),
      true,
    );
    const content = await contentOf(found);
    // What was being written, on the disk that is missing, may be anything; the last round of writes was.
    const whole = missing === null || Buffer.compare(content, model) === 0;
    if (!whole) expect(differing(content, model, missing)).toEqual([]);
    if (missing === null) expect(await mismatches(found)).toBe(0);
  }
  for (const [index, { memory }] of left.entries())
    expect(Buffer.compare(Buffer.from(new Uint8Array(memory)), before[index]!)).toBe(0);
  for (const missing of [null, 0, 1, 2, 3]) {
    const found = await start(again(left).filter((_, index) => index !== missing));
    expect(differing(await contentOf(found), model, missing)).toEqual([]);
    if (missing === null) expect(await mismatches(found)).toBe(0);
  }
});

/** Sectors that differ though they are not the missing disk's. */
function differing(content: Uint8Array, model: Uint8Array, missing: number | null): number[] {
  const found: number[] = [];
  for (let sector = 0; sector < model.byteLength / 512; sector += 1) {
    const [from, to] = [sector * 512, (sector + 1) * 512];
    if (Buffer.compare(content.subarray(from, to), model.subarray(from, to)) === 0) continue;
    const chunk = Math.floor(from / layout.chunkBytes);
    const member = layout.row(Math.floor(chunk / 3)).data[chunk % 3];
    if (member !== missing) found.push(sector);
  }
  return found;
}
