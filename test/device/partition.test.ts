/** What is found of tables that are right, and what a broken disk makes of them. */
import { crc32 } from 'node:zlib';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { type Partition, readPartitions } from '../../lib/device/partition.ts';
import { type Extent, gptDisk, mbrDisk, putMbrEntry } from './tables.ts';

const SECTORS = 2048;
const DISK_BYTES = SECTORS * 512;

async function partitionsIn(bytes: Uint8Array): Promise<readonly Partition[]> {
  const disk = new MemoryDevice({ sizeBytes: bytes.byteLength });
  await disk.write(0, bytes);
  return await readPartitions(disk);
}

function inBytes(extents: readonly Extent[], sectorBytes = 512): readonly Partition[] {
  return extents.map(({ number, first, sectors }) => ({
    number,
    startBytes: first * sectorBytes,
    lengthBytes: sectors * sectorBytes,
  }));
}

const some: readonly Extent[] = [
  { number: 1, first: 64, sectors: 100 },
  { number: 2, first: 200, sectors: 1 },
  { number: 5, first: 1000, sectors: 900 },
];

describe('GPT', () => {
  test.each([512, 4096])('sectors of %i bytes: every entry under its number', async (sectorBytes) => {
    expect(await partitionsIn(gptDisk(some, SECTORS, sectorBytes))).toEqual(inBytes(some, sectorBytes));
  });

  test('one bit that has flipped in header or list is seen, and the copy at the end tells the same', async () => {
    const disk = gptDisk(some, SECTORS);
    for (let bit = 512 * 8; bit < (512 + 92) * 8; bit += 1) {
      const broken = Buffer.from(disk);
      broken[bit >> 3]! ^= 1 << (bit & 7);
      expect(await partitionsIn(broken), `bit ${bit}`).toEqual(inBytes(some));
    }
    for (let at = 1024; at < 1024 + 5 * 128; at += 1) {
      const broken = Buffer.from(disk);
      broken[at]! ^= 0x10;
      expect(await partitionsIn(broken), `byte ${at}`).toEqual(inBytes(some));
    }
  });

  test('both copies broken: no partitions, rather than wrong ones', async () => {
    const broken = gptDisk(some, SECTORS);
    broken[512 + 80]! ^= 1;
    broken[(SECTORS - 1) * 512 + 88]! ^= 1;
    expect(await partitionsIn(broken)).toEqual([]);
  });

  test('a header that was meant for another sector is none', async () => {
    const moved = gptDisk(some, SECTORS);
    moved.copy(moved, 512, (SECTORS - 1) * 512, SECTORS * 512);
    moved.fill(0, (SECTORS - 1) * 512);
    expect(await partitionsIn(moved)).toEqual([]);
  });

  test('a table that was made later counts, though the copy of the former one is still at the end', async () => {
    const disk = gptDisk(some, SECTORS);
    disk.fill(0, 0, 40 * 512);
    expect(await partitionsIn(disk), 'nothing in its place').toEqual(inBytes(some));
    putMbrEntry(disk, 0, 0xfd, 63, 1000);
    expect(await partitionsIn(disk)).toEqual(inBytes([{ number: 1, first: 63, sectors: 1000 }]));
  });

  test('sectors of a table that cannot be read are made up for by its copy', async () => {
    for (const sector of [0, 1, 2, SECTORS - 1]) {
      const disk = new MemoryDevice({ sizeBytes: DISK_BYTES });
      await disk.write(0, gptDisk(some, SECTORS));
      const broken = new FaultDevice(disk, {
        rules: [
          {
            on: 'read',
            range: { offsetBytes: sector * 512, lengthBytes: 512 },
            fault: { kind: 'error', code: 'MEDIUM_ERROR' },
          },
        ],
      });
      expect(await readPartitions(broken), `sector ${sector}`).toEqual(inBytes(some));
    }
  });

  test('a table without entries has no partitions', async () => {
    const disk = gptDisk([], SECTORS);
    for (const at of [512, (SECTORS - 1) * 512]) {
      const header = disk.subarray(at, at + 92);
      header.writeUInt32LE(0, 80);
      header.writeUInt32LE(crc32(Buffer.alloc(0)), 88);
      header.writeUInt32LE(0, 16);
      header.writeUInt32LE(crc32(header), 16);
    }
    expect(await partitionsIn(disk)).toEqual([]);
  });

  test('an image that was cut short still has the first copy', async () => {
    expect(await partitionsIn(gptDisk(some, SECTORS).subarray(0, DISK_BYTES / 2))).toEqual(inBytes(some));
  });
});

describe('MBR', () => {
  test('primary ones', async () => {
    const primary = some.filter(({ number }) => number < 5);
    expect(await partitionsIn(mbrDisk(primary, null, [], SECTORS))).toEqual(inBytes(primary));
  });

  test('any number of logical ones, counted from 5', async () => {
    for (let count = 0; count < 20; count += 1) {
      const room = { number: 2, first: 300, sectors: 1500 };
      const logical = Array.from({ length: count }, (_, index) => ({
        number: 5 + index,
        first: 301 + index * 40,
        sectors: 30 + index,
      }));
      const primary = [{ number: 1, first: 63, sectors: 200 }];
      const found = await partitionsIn(mbrDisk(primary, room, logical, SECTORS));
      expect(found).toEqual(inBytes([...primary, room, ...logical]));
    }
  });

  test('a chain that leads back ends there', async () => {
    const room = { number: 1, first: 300, sectors: 1500 };
    const logical = [400, 500].map((first, index) => ({ number: 5 + index, first, sectors: 10 }));
    const disk = mbrDisk([], room, logical, SECTORS);
    putMbrEntry(disk.subarray(499 * 512, 500 * 512), 1, 0x05, 399 - 300, 11);
    expect(await partitionsIn(disk)).toEqual(inBytes([room, ...logical]));
  });

  test('a chain of links without a partition ends, however long it is', async () => {
    const room = { number: 1, first: 300, sectors: 1500 };
    const disk = mbrDisk([], room, [], SECTORS);
    for (let at = 300; at < 1700; at += 1)
      putMbrEntry(disk.subarray(at * 512, (at + 1) * 512), 1, 0x05, at + 1 - 300, 1);
    expect(await partitionsIn(disk)).toEqual(inBytes([room]));
  });

  test('the boot sector of a file system has none', async () => {
    const disk = Buffer.alloc(DISK_BYTES);
    disk.fill(0x41, 446, 510);
    disk.writeUInt16BE(0x55aa, 510);
    expect(await partitionsIn(disk)).toEqual([]);
  });
});

test('whatever is there, something is answered, and numbers are told once', async () => {
  const tables = [
    gptDisk(some, SECTORS),
    mbrDisk(some.slice(0, 2), { number: 3, first: 300, sectors: 1000 }, [], SECTORS),
  ];
  const junk = fc.array(fc.tuple(fc.nat(2047), fc.nat(255)), { maxLength: 40 });
  await fc.assert(
    fc.asyncProperty(fc.nat(1), junk, fc.integer({ min: 0, max: 64 }), async (table, bytes, sectors) => {
      const disk = Buffer.from(tables[table]!);
      for (const [at, byte] of bytes) disk[at] = byte;
      const found = await partitionsIn(disk.subarray(0, Math.max(1, DISK_BYTES / 512 - sectors) * 512));
      expect(new Set(found.map(({ number }) => number)).size).toBe(found.length);
      for (const { startBytes, lengthBytes } of found) {
        expect(startBytes).toBeGreaterThanOrEqual(0);
        expect(lengthBytes).toBeGreaterThan(0);
        expect(Number.isSafeInteger(startBytes + lengthBytes)).toBe(true);
      }
    }),
    { numRuns: 500 },
  );
});
