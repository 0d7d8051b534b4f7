import { copyFile, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { afterAll, describe, expect, test } from 'vitest';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { OverlayDevice, overlayBytesFor } from '../../lib/device/overlay.ts';
import { happenedBefore, RecordDevice, type RecordEntry } from '../../lib/device/record.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { type Random, randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { scratchFolder } from './scratch.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

let count = 0;
const nextPath = () => `${folder}/overlay${count++}`;
const BLOCK = 4 * KIB;
const HEADER = 4 * KIB;
const SIZE = MIB;
/** Of an overlay over `SIZE` bytes: one page of bitmap behind the header. */
const DATA = 8 * KIB;

/** A disk whose bytes say where they are and that nobody can write to. */
function origin(sizeBytes = SIZE): MemoryDevice {
  const memory = new SharedArrayBuffer(sizeBytes);
  Buffer.from(memory).set(pattern(sizeBytes));
  return new MemoryDevice({ sizeBytes, memory, readOnly: true, name: 'disk0' });
}

function pattern(sizeBytes: number): Uint8Array {
  let bytes = patterns.get(sizeBytes);
  if (bytes === undefined) {
    bytes = new Uint8Array(sizeBytes);
    for (let at = 0; at < sizeBytes; at += 512) bytes.fill(1 + ((at / 512) % 100), at, at + 512);
    patterns.set(sizeBytes, bytes);
  }
  return bytes;
}

const patterns = new Map<number, Uint8Array>();

async function contentOf(device: Device): Promise<Buffer> {
  const bytes = Buffer.alloc(device.limits.sizeBytes, 0xa5);
  await device.read(0, bytes);
  return bytes;
}

const filled = (lengthBytes: number, value: number) => new Uint8Array(lengthBytes).fill(value);

describe('what it keeps', () => {
  test('what was written outlives it, and the disk below has not changed by a byte', async () => {
    const path = nextPath();
    const below = origin();
    const expected = Buffer.from(pattern(SIZE));
    {
      await using overlay = await OverlayDevice.open(below, path, { create: true });
      for (const [at, length] of [
        [0, 1],
        [4095, 2],
        [70_000, 20_000],
        [SIZE - 3, 3],
      ] as const) {
        await overlay.write(at, filled(length, 200));
        expected.fill(200, at, at + length);
      }
      await overlay.writeZeroes(100_000, 300_000);
      expected.fill(0, 100_000, 400_000);
      expect(Buffer.compare(await contentOf(overlay), expected)).toBe(0);
    }
    expect(Buffer.compare(Buffer.from(below.memory), pattern(SIZE))).toBe(0);
    await using again = await OverlayDevice.open(origin(), path);
    expect(Buffer.compare(await contentOf(again), expected)).toBe(0);
  });

  test('its file takes the space of what was written, not of the disk', async () => {
    const path = nextPath();
    await using overlay = await OverlayDevice.open(new MemoryDevice({ sizeBytes: 256 * MIB }), path, {
      create: true,
    });
    await overlay.write(100 * MIB, filled(10, 1), { fua: true });
    expect(overlay.divergedBytes).toBe(BLOCK);
    const { size, blocks } = await stat(path);
    expect(size).toBe(overlayBytesFor(256 * MIB));
    expect(blocks * 512).toBeLessThan(MIB);
  });

  test('partial writes into one block that is not here yet, all at once, all arrive', async () => {
    await using overlay = await OverlayDevice.open(origin(), nextPath(), { create: true });
    const expected = Buffer.from(pattern(SIZE));
    const writes: Promise<void>[] = [];
    for (let index = 0; index < 32; index += 1) {
      // Every other 100 bytes of 6400: four in each block, some across two.
      const at = BLOCK + index * 200;
      writes.push(overlay.write(at, filled(100, 201 + (index % 50))));
      expected.fill(201 + (index % 50), at, at + 100);
    }
    await Promise.all([...writes, overlay.flush()]);
    expect(Buffer.compare(await contentOf(overlay), expected)).toBe(0);
  });

  test('a discard does not bring back what is below', async () => {
    await using overlay = await OverlayDevice.open(origin(), nextPath(), { create: true });
    await overlay.write(0, filled(2 * BLOCK, 200));
    await overlay.discard(0, SIZE);
    const bytes = await contentOf(overlay);
    expect(bytes.subarray(0, 2 * BLOCK).every((byte) => byte === 200 || byte === 0)).toBe(true);
    expect(Buffer.compare(bytes.subarray(2 * BLOCK), pattern(SIZE).subarray(2 * BLOCK))).toBe(0);
  });

  test('extents below show through where nothing was written', async () => {
    const below = new MemoryDevice({ sizeBytes: 16 * BLOCK, readOnly: true });
    await using overlay = await OverlayDevice.open(below, nextPath(), { create: true });
    await overlay.write(5 * BLOCK, filled(BLOCK, 1));
    await overlay.write(7 * BLOCK, filled(1, 1));
    const extents = await overlay.blockStatus(0, 16 * BLOCK);
    expect(extents.map(({ lengthBytes, zero }) => [lengthBytes / BLOCK, zero])).toEqual([
      [5, true],
      [1, false],
      [1, true],
      [1, false],
      [8, true],
    ]);
  });
});

describe('a damaged disk below', () => {
  const unreadable = () =>
    new FaultDevice(origin(), {
      rules: [
        {
          on: 'read',
          range: { offsetBytes: BLOCK + 512, lengthBytes: 512 },
          fault: { kind: 'error', code: 'MEDIUM_ERROR' },
        },
      ],
    });

  test('a whole block over an unreadable sector heals it', async () => {
    await using overlay = await OverlayDevice.open(unreadable(), nextPath(), { create: true });
    await expect(contentOf(overlay)).rejects.toMatchObject({ code: 'MEDIUM_ERROR' });
    await overlay.write(BLOCK, filled(BLOCK, 200));
    const expected = Buffer.from(pattern(SIZE)).fill(200, BLOCK, 2 * BLOCK);
    expect(Buffer.compare(await contentOf(overlay), expected)).toBe(0);
  });

  test('part of a block beside an unreadable sector is a write that fails, and changes nothing', async () => {
    await using overlay = await OverlayDevice.open(unreadable(), nextPath(), { create: true });
    await expect(overlay.write(2 * BLOCK - 512, filled(1024, 200))).rejects.toMatchObject({
      code: 'WRITE_FAILED',
      injected: true,
    });
    expect(overlay.divergedBytes).toBe(0);
    const seen = new Uint8Array(1024);
    await overlay.read(2 * BLOCK - 512, seen);
    expect(seen).toEqual(pattern(SIZE).subarray(2 * BLOCK - 512, 2 * BLOCK + 512));
  });
});

describe('crashes', () => {
  test('killed without a flush, it reads as below; after a flush, as it did', async () => {
    const path = nextPath();
    await using overlay = await OverlayDevice.open(origin(), path, { create: true });
    await overlay.write(BLOCK, filled(BLOCK, 200), { fua: true });
    await overlay.write(4 * BLOCK, filled(BLOCK, 201));
    // What the file holds now is what the next process finds.
    await copyFile(path, `${path}.killed`);
    await using after = await OverlayDevice.open(origin(), `${path}.killed`);
    const expected = Buffer.from(pattern(SIZE)).fill(200, BLOCK, 2 * BLOCK);
    expect(Buffer.compare(await contentOf(after), expected)).toBe(0);
  });

  test('a flush makes data durable, then bits, then the bits durable', async () => {
    const { overlay, record } = await recorded();
    await overlay.write(3 * BLOCK + 7, filled(10, 1));
    await overlay.flush();
    const data = (operation: { op: string; offsetBytes?: number }) =>
      operation.op === 'write' && (operation.offsetBytes ?? 0) >= DATA;
    const bits = (operation: { op: string; offsetBytes?: number }) =>
      operation.op === 'write' && operation.offsetBytes === HEADER;
    const flush = (operation: { op: string }) => operation.op === 'flush';
    expect(happenedBefore(record.log, data, bits)).toBe(true);
    const order = record.log.filter((entry) => entry.event === 'start').map((entry) => entry.operation.op);
    expect(order).toEqual(['write', 'flush', 'write', 'flush']);
    record.clear();
    await overlay.write(3 * BLOCK, filled(BLOCK, 2));
    await overlay.flush();
    expect(record.log.filter((entry) => entry.event === 'start' && flush(entry.operation))).toHaveLength(1);
    await overlay.close();
  });

  /**
   * A history of writes and flushes over a recorded file, cut at every entry of the record. Of what was not durable
   * by then, each byte of the bitmap and each sector of data is new or old, by chance: harsher than any disk. Each
   * sector must then read as one of those that were written to it since the last flush, or as at that flush; one that was
   * never written to, as below.
   */
  test('at every cut, every sector reads as it did at the last flush or as it was written since', async () => {
    await withSeed(runSeed, async (random) => {
      const { overlay, record, image } = await recorded();
      const start = Buffer.from(new Uint8Array(image));
      const marks: { readonly at: number; readonly allowed: readonly (readonly number[])[] }[] = [];
      const sectors = 64;
      let allowed = Array.from({ length: sectors }, (_, sector) => [1 + (sector % 100)]);
      const note = () => marks.push({ at: record.log.length, allowed: allowed.map((values) => [...values]) });
      note();
      for (let step = 0; step < 60; step += 1) {
        if (random(5) === 0) {
          await overlay.flush();
          allowed = allowed.map((values) => values.slice(-1));
        } else {
          const first = random(sectors);
          const end = Math.min(sectors, first + 1 + random(20));
          const value = 101 + (step % 150);
          for (let sector = first; sector < end; sector += 1) allowed[sector]?.push(value);
          // It may be found from the moment it is begun.
          note();
          await overlay.write(first * 512, filled((end - first) * 512, value));
        }
        note();
      }
      await overlay.close();
      for (let cut = 0; cut <= record.log.length; cut += 1) {
        const mark = marks.findLast(({ at }) => at <= cut);
        const found = crash(start, record.log.slice(0, cut), random);
        await using after = await OverlayDevice.over(origin(), new MemoryDevice({ ...found }));
        const bytes = await contentOf(after);
        for (let sector = 0; sector < 2 * sectors; sector += 1) {
          const seen = bytes.subarray(sector * 512, (sector + 1) * 512);
          const values = mark?.allowed[sector] ?? [1 + (sector % 100)];
          const value = seen[0] ?? -1;
          if (!seen.every((byte) => byte === value) || !values.includes(value)) {
            throw new Error(`cut ${cut}: sector ${sector} reads ${value}, allowed are ${values.join(' ')}`);
          }
        }
      }
    });
  });

  async function recorded() {
    const sizeBytes = overlayBytesFor(SIZE);
    const memory = new MemoryDevice({ sizeBytes });
    const record = new RecordDevice(memory, { capture: true });
    const overlay = await OverlayDevice.over(origin(), record, { create: true });
    record.clear();
    return { overlay, record, image: memory.memory };
  }

  function crash(start: Buffer, log: readonly RecordEntry[], random: Random) {
    const sizeBytes = start.byteLength;
    const memory = new SharedArrayBuffer(sizeBytes);
    const bytes = Buffer.from(memory);
    bytes.set(start);
    const finished = new Set<number>();
    let durable = new Set<number>();
    const atFlush = new Map<number, Set<number>>();
    for (const { event, request, operation } of log) {
      if (event === 'start' && operation.op === 'flush') atFlush.set(request, new Set(finished));
      if (event === 'finish' && operation.op === 'write') finished.add(request);
      if (event === 'finish' && operation.op === 'flush') durable = atFlush.get(request) ?? durable;
    }
    for (const entry of log) {
      if (entry.event !== 'start' || entry.operation.op !== 'write' || entry.data === undefined) continue;
      const { offsetBytes } = entry.operation;
      const unit = offsetBytes < DATA ? 1 : 512;
      for (let done = 0; done < entry.data.byteLength; ) {
        const take = Math.min(unit - ((offsetBytes + done) % unit), entry.data.byteLength - done);
        if (durable.has(entry.request) || random(2) === 0) {
          bytes.set(entry.data.subarray(done, done + take), offsetBytes + done);
        }
        done += take;
      }
    }
    return { memory, sizeBytes };
  }

  test('a flush that failed fails for ever, and the overlay says so when it is closed', async () => {
    const faulty = new FaultDevice(new MemoryDevice({ sizeBytes: overlayBytesFor(SIZE) }));
    const overlay = await OverlayDevice.over(origin(), faulty, { create: true });
    await overlay.write(0, filled(10, 1));
    // The bitmap.
    faulty.add({
      on: 'write',
      when: 'once',
      range: { offsetBytes: HEADER, lengthBytes: 4096 },
      fault: { kind: 'error', code: 'WRITE_FAILED' },
    });
    await expect(overlay.flush()).rejects.toMatchObject({ code: 'FLUSH_FAILED' });
    await expect(overlay.flush()).rejects.toMatchObject({ code: 'FLUSH_FAILED' });
    await expect(overlay.write(0, filled(10, 2), { fua: true })).rejects.toMatchObject({
      code: 'FLUSH_FAILED',
    });
    await overlay.write(8192, filled(10, 2));
    await expect(overlay.close()).rejects.toMatchObject({ code: 'FLUSH_FAILED' });
    expect(faulty.isClosed).toBe(true);
  });

  test('where the bitmap finds no room, each flush says so until there is some, and nothing is lost', async () => {
    const memory = new SharedArrayBuffer(overlayBytesFor(SIZE));
    const faulty = new FaultDevice(new MemoryDevice({ sizeBytes: memory.byteLength, memory }));
    const overlay = await OverlayDevice.over(origin(), faulty, { create: true });
    const full = faulty.add({
      on: 'write',
      when: 'forever',
      range: { offsetBytes: HEADER, lengthBytes: 4096 },
      fault: { kind: 'error', code: 'NO_SPACE' },
    });
    const expected = Buffer.from(pattern(SIZE));
    for (const [turn, fua] of [false, true, false].entries()) {
      expected.fill(turn + 200, turn * 8192, turn * 8192 + 10);
      const write = overlay.write(turn * 8192, filled(10, turn + 200), { fua });
      const flush = () => overlay.flush();
      for (const refused of fua ? [write, flush()] : [write.then(flush), write.then(flush)])
        await expect(refused).rejects.toMatchObject({ code: 'FLUSH_FAILED' });
    }
    faulty.remove(full);
    await overlay.flush();
    // Killed then.
    const store = new MemoryDevice({ sizeBytes: memory.byteLength, memory });
    await using again = await OverlayDevice.over(origin(), store);
    expect(Buffer.compare(await contentOf(again), expected)).toBe(0);
  });
});

describe('thrown away', () => {
  test('discardAll reads as below again, at once and when it is opened again', async () => {
    const path = nextPath();
    {
      await using overlay = await OverlayDevice.open(origin(), path, { create: true });
      await overlay.write(0, filled(SIZE, 200), { fua: true });
      await overlay.discardAll();
      expect(overlay.divergedBytes).toBe(0);
      expect(Buffer.compare(await contentOf(overlay), pattern(SIZE))).toBe(0);
      // Around old content of the file, a block is whole again.
      await overlay.write(BLOCK + 5, filled(1, 7));
    }
    await using again = await OverlayDevice.open(origin(), path);
    const expected = Buffer.from(pattern(SIZE)).fill(7, BLOCK + 5, BLOCK + 6);
    expect(Buffer.compare(await contentOf(again), expected)).toBe(0);
  });

  test('discardAll waits for what is in flight, and what comes meanwhile comes after', async () => {
    await using overlay = await OverlayDevice.open(origin(), nextPath(), { create: true });
    const before = overlay.write(5, filled(BLOCK, 200));
    const discarding = overlay.discardAll();
    const after = overlay.write(8 * BLOCK, filled(10, 201));
    const twice = overlay.discardAll();
    const last = overlay.write(9 * BLOCK, filled(10, 202));
    await Promise.all([before, discarding, after, twice, last]);
    const expected = Buffer.from(pattern(SIZE)).fill(202, 9 * BLOCK, 9 * BLOCK + 10);
    const bytes = await contentOf(overlay);
    // The order of the write and the second discardAll, which both waited, is not promised.
    if (bytes[8 * BLOCK] === 201) expected.fill(201, 8 * BLOCK, 8 * BLOCK + 10);
    expect(Buffer.compare(bytes, expected)).toBe(0);
  });

  test('cut between its two steps, discardAll has happened', async () => {
    const path = nextPath();
    {
      await using overlay = await OverlayDevice.open(origin(), path, { create: true });
      await overlay.write(0, filled(SIZE, 200));
    }
    await truncate(path, HEADER);
    await using after = await OverlayDevice.open(origin(), path);
    expect(Buffer.compare(await contentOf(after), pattern(SIZE))).toBe(0);
  });

  test('delete leaves no file, closes both, and what follows is CLOSED', async () => {
    const path = nextPath();
    const below = origin();
    const overlay = await OverlayDevice.open(below, path, { create: true });
    await overlay.write(0, filled(10, 1));
    await overlay.delete();
    await expect(stat(path)).rejects.toThrow('ENOENT');
    expect(below.isClosed).toBe(true);
    await expect(overlay.read(0, filled(1, 0))).rejects.toMatchObject({ code: 'CLOSED' });
    await expect(overlay.discardAll()).rejects.toMatchObject({ code: 'CLOSED' });
  });
});

describe('refusals', () => {
  async function madeFor(sizeBytes = SIZE, of?: string): Promise<string> {
    const path = nextPath();
    await using overlay = await OverlayDevice.open(origin(sizeBytes), path, { create: true, origin: of });
    await overlay.write(0, filled(10, 200));
    return path;
  }

  async function expectRefused(path: string, code: string, options = {}): Promise<void> {
    const before = await readFile(path);
    const below = origin();
    for (const create of [false, true]) {
      await expect(OverlayDevice.open(below, path, { create, ...options })).rejects.toMatchObject({ code });
    }
    expect(below.isClosed).toBe(false);
    expect(Buffer.compare(await readFile(path), before)).toBe(0);
  }

  test('no file is made unless asked', async () => {
    const path = nextPath();
    await expect(OverlayDevice.open(origin(), path)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    await expect(stat(path)).rejects.toThrow('ENOENT');
  });

  test('a file that is no overlay is left as it is', async () => {
    for (const lengthBytes of [1, 100, HEADER, HEADER + 1, overlayBytesFor(SIZE)]) {
      const path = nextPath();
      await writeFile(path, filled(lengthBytes, 1));
      await expectRefused(path, 'BAD_MAGIC');
    }
    const zeros = nextPath();
    await writeFile(zeros, filled(SIZE, 0));
    await expectRefused(zeros, 'BAD_MAGIC');
  });

  test('an overlay over a disk of another size, or another disk, is not opened', async () => {
    await expectRefused(await madeFor(2 * SIZE), 'BAD_ARGUMENT');
    await expectRefused(await madeFor(SIZE, 'uuid 1'), 'BAD_ARGUMENT', { origin: 'uuid 2' });
    await using same = await OverlayDevice.open(origin(), await madeFor(SIZE, 'uuid 1'), {
      origin: 'uuid 1',
    });
    expect(same.divergedBytes).toBe(BLOCK);
  });

  test('any flipped bit of the header is noticed', async () => {
    const path = await madeFor(SIZE, 'uuid');
    const good = await readFile(path);
    for (let byte = 0; byte < 60; byte += 1) {
      const bad = Buffer.from(good);
      bad[byte] = (bad[byte] ?? 0) ^ (1 << (byte % 8));
      await writeFile(path, bad);
      const code = byte < 16 ? 'BAD_MAGIC' : byte < 20 ? 'UNSUPPORTED_FEATURE' : 'SUPERBLOCK_BROKEN';
      await expect(OverlayDevice.open(origin(), path)).rejects.toMatchObject({ code });
    }
  });

  test('a file that was cut off is not opened', async () => {
    for (const lengthBytes of [HEADER + 1, DATA, overlayBytesFor(SIZE) - 1, overlayBytesFor(SIZE) + 1]) {
      const path = await madeFor();
      await truncate(path, lengthBytes);
      await expectRefused(path, 'SUPERBLOCK_BROKEN');
    }
  });

  test('a create that a crash cut short is done again', async () => {
    for (const lengthBytes of [0, overlayBytesFor(SIZE)]) {
      const path = nextPath();
      await writeFile(path, filled(lengthBytes, 0));
      await using overlay = await OverlayDevice.open(origin(), path, { create: true });
      expect(Buffer.compare(await contentOf(overlay), pattern(SIZE))).toBe(0);
    }
  });

  test('blocks that do not fit into those of the overlay are refused before a file is made', async () => {
    const path = nextPath();
    const below = new MemoryDevice({ sizeBytes: 520 * 100, blockBytes: 520 });
    const opening = OverlayDevice.open(below, path, { create: true });
    await expect(opening).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    await expect(stat(path)).rejects.toThrow('ENOENT');
  });

  test('random bytes in the bitmap show zeros or other data, and break nothing', async () => {
    await withSeed(runSeed, async (random) => {
      const path = await madeFor();
      const bytes = await readFile(path);
      bytes.set(randomBytes(random, DATA - HEADER), HEADER);
      await writeFile(path, bytes);
      await using overlay = await OverlayDevice.open(origin(), path);
      await contentOf(overlay);
      await overlay.write(0, filled(SIZE, 3));
      expect(Buffer.compare(await contentOf(overlay), filled(SIZE, 3))).toBe(0);
      expect(overlay.divergedBytes).toBe(SIZE);
    });
  });
});
