/** Bitmap, bad-block log and partial parity log: vectors, laws, and bytes from strangers. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import {
  type BadRange,
  BBLOG_ENTRIES_MAX,
  decodeBadBlocks,
  encodeBadBlocks,
} from '../../lib/md/badblocks.ts';
import {
  Bits,
  bitCountOf,
  bitmapAreaBytes,
  checkBitmap,
  decodeBitmapSuperblock,
  encodeBitmapSuperblock,
  isStale,
  newBitmapArea,
  newBitmapSuperblock,
  withEvents,
} from '../../lib/md/bitmap.ts';
import { crc32c } from '../../lib/md/crc32c.ts';
import {
  decodePplHeader,
  emptyPplHeader,
  encodePplHeader,
  judgePpl,
  newestPpl,
  type PplEntry,
  pplCellsOf,
  pplChecksumOf,
  pplSignatureOf,
  pplUsableBytes,
  RESYNC_DUE,
} from '../../lib/md/ppl.ts';
import { uuidOf } from './images.ts';

const countingUuid = '00010203:04050607:08090a0b:0c0d0e0f';

function ascii(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/** Anything but a RaidError is a bug. */
function tolerates(action: () => void): void {
  try {
    action();
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
  }
}

describe('crc32c', () => {
  test('has the check value, inverted as PPL stores it', () => {
    expect(~crc32c(ascii('123456789')) >>> 0).toBe(0xe3069283);
  });

  test('is what its definition says, of any bytes, wherever they begin and whatever came before', () => {
    const from = fc.integer({ min: 0, max: 0xffff_ffff });
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 80 }), fc.nat(7), from, (bytes, skip, before) => {
        let crc = before;
        for (const byte of bytes.subarray(skip)) {
          crc ^= byte;
          for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ ((crc & 1) * 0x82f63b78);
        }
        expect(crc32c(bytes.subarray(skip), before)).toBe(crc >>> 0);
      }),
    );
  });

  test('can be continued', () => {
    fc.assert(
      fc.property(fc.uint8Array(), fc.uint8Array(), (left, right) => {
        expect(crc32c(right, crc32c(left))).toBe(crc32c(new Uint8Array([...left, ...right])));
      }),
    );
  });
});

describe('write-intent bitmap', () => {
  const owner = { setUuid: uuidOf(1), events: 17, syncSectors: 40960 };
  const chunkBytes = 4 * 1024 * 1024;

  test('a new one reads back, covers all, and has every bit set', () => {
    const area = newBitmapArea(owner, chunkBytes);
    const superblock = decodeBitmapSuperblock(area);
    expect(superblock).toMatchObject({
      version: 4,
      uuid: owner.setUuid,
      events: 17,
      syncSectors: 40960,
      chunkBytes,
    });
    expect(area.byteLength).toBe(4096);
    expect(new Bits(area, 40960, chunkBytes).count()).toBe(5);
    checkBitmap(superblock, owner);
    expect(encodeBitmapSuperblock(superblock)).toEqual(area.slice(0, 256));
  });

  test('bits and sectors: each sector has the bit whose range it lies in', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 200_000 }),
        fc.integer({ min: 9, max: 20 }),
        fc.nat(),
        fc.nat(),
        (syncSectors, log, a, b) => {
          const bits = Bits.empty(syncSectors, 2 ** log);
          const fromSector = a % syncSectors;
          const toSector = fromSector + 1 + (b % (syncSectors - fromSector));
          const { firstBit, lastBit } = bits.bitsOf({ fromSector, toSector });
          expect(bits.rangeOf(firstBit).fromSector).toBeLessThanOrEqual(fromSector);
          expect(bits.rangeOf(firstBit).toSector).toBeGreaterThan(fromSector);
          expect(bits.rangeOf(lastBit).fromSector).toBeLessThan(toSector);
          expect(bits.rangeOf(lastBit).toSector).toBeGreaterThanOrEqual(toSector);
          expect(bits.rangeOf(bits.bitCount - 1).toSector).toBe(syncSectors);
          expect(bits.pageOf(lastBit) * 4096).toBeLessThan(bits.area.byteLength);
        },
      ),
    );
  });

  test('set bits come back as ranges that cover exactly them', () => {
    fc.assert(
      fc.property(fc.uniqueArray(fc.nat(99)), (chosen) => {
        const bits = Bits.empty(99 * 8 + 3, 4096);
        for (const bit of chosen) expect(bits.set(bit)).toBe(true);
        const covered = [...bits.dirtyRanges()].flatMap((range) => {
          const { firstBit, lastBit } = bits.bitsOf(range);
          return Array.from({ length: lastBit - firstBit + 1 }, (_, index) => firstBit + index);
        });
        expect(covered).toEqual(chosen.toSorted((left, right) => left - right));
        for (const bit of chosen) expect(bits.clear(bit)).toBe(true);
        expect(bits.count()).toBe(0);
      }),
    );
  });

  test('the first page of bits ends after bit 30719', () => {
    const bits = Bits.empty(40_000, 512);
    expect(bits.pageOf(30_719)).toBe(0);
    expect(bits.pageOf(30_720)).toBe(1);
  });

  test('events_cleared stands still while a member is missing', () => {
    const fresh = newBitmapSuperblock(owner, chunkBytes);
    expect(withEvents(fresh, 20, false)).toMatchObject({ events: 20, eventsCleared: 17 });
    expect(withEvents(fresh, 20, true)).toMatchObject({ events: 20, eventsCleared: 20 });
    expect(isStale(fresh, { ...owner, events: 18 })).toBe(true);
    expect(isStale(fresh, owner)).toBe(false);
    expect(isStale({ ...fresh, state: 2 }, owner)).toBe(true);
  });

  test.each([
    [{ version: 5 }, 'UNSUPPORTED_FEATURE'],
    [{ version: 6 }, 'UNSUPPORTED_FEATURE'],
    [{ version: 7 }, 'SUPERBLOCK_BROKEN'],
    [{ chunkBytes: 256 }, 'SUPERBLOCK_BROKEN'],
    [{ chunkBytes: 0 }, 'SUPERBLOCK_BROKEN'],
    [{ chunkBytes: 3 * 4096 }, 'SUPERBLOCK_BROKEN'],
    [{ daemonSleepSeconds: 0 }, 'SUPERBLOCK_BROKEN'],
    [{ writeBehind: 16384 }, 'SUPERBLOCK_BROKEN'],
    [{ uuid: uuidOf(2) }, 'SUPERBLOCK_BROKEN'],
  ])('refuses %o', (change, code) => {
    const changed = { ...newBitmapSuperblock(owner, chunkBytes), ...change };
    expect(() => checkBitmap(changed, owner)).toThrow(expect.objectContaining({ code }));
  });

  test('bytes from strangers', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 0, maxLength: 300 }), (bytes) => {
        bytes.set(new Uint8Array([0x62, 0x69, 0x74, 0x6d]).subarray(0, Math.min(4, bytes.byteLength)));
        tolerates(() => checkBitmap(decodeBitmapSuperblock(bytes), owner));
      }),
      { numRuns: 2000 },
    );
  });

  test('area sizes', () => {
    expect(bitCountOf(1, 512)).toBe(1);
    expect(bitmapAreaBytes(30_720, 512)).toBe(4096);
    expect(bitmapAreaBytes(30_721, 512)).toBe(8192);
  });
});

describe('bad-block log', () => {
  const ranges = fc
    .uniqueArray(fc.nat(50), { maxLength: 20 })
    .map((places) => places.map((at): BadRange => ({ fromSector: at * 100, lengthSectors: 1 + (at % 90) })));

  test('what is written reads back, long runs split into 512', () => {
    fc.assert(
      fc.property(ranges, (written) => {
        const bytes = encodeBadBlocks(written, 0) as Uint8Array;
        expect(decodeBadBlocks(bytes, 0, 100_000)).toEqual(
          written.toSorted((a, b) => a.fromSector - b.fromSector),
        );
      }),
    );
    const long = encodeBadBlocks([{ fromSector: 7, lengthSectors: 1100 }], 0) as Uint8Array;
    expect(decodeBadBlocks(long, 0, 100_000)).toEqual([
      { fromSector: 7, lengthSectors: 512 },
      { fromSector: 519, lengthSectors: 512 },
      { fromSector: 1031, lengthSectors: 76 },
    ]);
  });

  test('what overlaps or touches is one entry: the log covers these sectors, each once', () => {
    const range = fc.record({ fromSector: fc.nat(60), lengthSectors: fc.integer({ min: 1, max: 20 }) });
    fc.assert(
      fc.property(fc.array(range), (written) => {
        const sectors = new Set<number>();
        for (const { fromSector, lengthSectors } of written)
          for (let at = 0; at < lengthSectors; at += 1) sectors.add(fromSector + at);
        const log = decodeBadBlocks(encodeBadBlocks(written, 0) as Uint8Array, 0, 100_000);
        const covered = log.flatMap((entry) =>
          Array.from({ length: entry.lengthSectors }, (_, index) => entry.fromSector + index),
        );
        expect(covered).toEqual([...sectors].sort((a, b) => a - b));
        const gaps = covered.filter((at, index) => index > 0 && at !== (covered[index - 1] ?? 0) + 1).length;
        expect(log.length).toBe(covered.length === 0 ? 0 : gaps + 1);
      }),
    );
  });

  test('has an end, and says when it is full', () => {
    const many = Array.from({ length: BBLOG_ENTRIES_MAX + 1 }, (_, index) => ({
      fromSector: index * 2,
      lengthSectors: 1,
    }));
    expect(encodeBadBlocks(many.slice(1), 0)).not.toBeNull();
    expect(encodeBadBlocks(many, 0)).toBeNull();
  });

  test('bytes from strangers', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), fc.nat(32), (bytes, shift) => {
        tolerates(() => decodeBadBlocks(bytes, shift, 100_000));
      }),
      { numRuns: 2000 },
    );
    expect(() => decodeBadBlocks(new Uint8Array(8), 0, 100)).toThrow(RaidError);
  });
});

describe('partial parity log', () => {
  const parity = Uint8Array.from({ length: 8192 }, (_, index) => index);
  const entry: PplEntry = {
    dataSector: 256,
    parityBytes: 8192,
    dataBytes: 16384,
    parityMember: 2,
    checksum: pplChecksumOf(parity),
  };

  function log(...headers: readonly Uint8Array[]): Uint8Array {
    return Uint8Array.from(headers.flatMap((bytes) => [...bytes]));
  }

  test('the vectors: signature and the checksum of an empty header', () => {
    expect(pplSignatureOf(countingUuid)).toBe(0xd9c908eb);
    const bytes = encodePplHeader(emptyPplHeader(countingUuid));
    expect(new DataView(bytes.buffer).getUint32(532, true)).toBe(0xa68b68c7);
    expect(pplChecksumOf(new Uint8Array())).toBe(0);
  });

  test('a header reads back, and one changed byte makes it no header', () => {
    const signature = pplSignatureOf(countingUuid);
    const header = { signature, generation: 7, entries: [entry, { ...entry, dataSector: 512 }] };
    const bytes = encodePplHeader(header);
    expect(decodePplHeader(bytes, signature)).toEqual(header);
    expect(decodePplHeader(bytes, signature + 1)).toBeNull();
    for (let at = 0; at < 600; at += 1) {
      bytes[at] = (bytes[at] as number) ^ 1;
      expect(decodePplHeader(bytes, signature)).toBeNull();
      bytes[at] = (bytes[at] as number) ^ 1;
    }
  });

  test('the newest header is the last good one of rising generations', () => {
    const signature = pplSignatureOf(countingUuid);
    const header = (generation: number): Uint8Array =>
      encodePplHeader({ signature, generation, entries: [entry] });
    const ring = log(header(5), parity, header(6), parity, header(3), parity);
    expect(newestPpl(ring, countingUuid)?.header.generation).toBe(6);
    expect(newestPpl(ring, countingUuid)?.entries[0]?.partialParity).toEqual(parity);
    ring[4096 + 8192] = 0;
    expect(newestPpl(ring, countingUuid)?.header.generation).toBe(5);
    ring[5000] = (ring[5000] as number) ^ 1;
    expect(newestPpl(ring, countingUuid)?.entries[0]?.partialParity).toBeNull();
    ring[0] = 0;
    expect(newestPpl(ring, countingUuid)).toBeNull();
  });

  test('cells: sixteen sectors of two chunks, and a whole stripe without partial parity', () => {
    const cells = { dataSector: 128, heightSectors: 16, chunkCount: 2, parityMember: 2 };
    expect(pplCellsOf({ ...entry, dataSector: 128 }, 128, 4)).toEqual(cells);
    expect(pplCellsOf({ ...entry, dataSector: 0, parityBytes: 0, dataBytes: 3 * 4096 }, 128, 4)).toEqual({
      ...cells,
      dataSector: 0,
      heightSectors: 8,
      chunkCount: 3,
    });
    for (const wrong of [
      { dataBytes: 0 },
      { parityBytes: 8191, dataBytes: 2 * 8191 },
      { parityMember: 4 },
      { dataBytes: 16384 * 4 },
      { dataSector: 256, dataBytes: 8192 * 2 },
      { dataSector: 120 },
      { parityBytes: 0, dataBytes: 3 * 4096 },
    ]) {
      expect(() => pplCellsOf({ ...entry, dataSector: 128, ...wrong }, 128, 4)).toThrow(RaidError);
    }
  });

  describe('what a log says after a crash', () => {
    const shape = { chunkSectors: 128, raidDisks: 4, sizeSectors: 1024 };
    const signature = pplSignatureOf(countingUuid);
    const good = { ...entry, dataSector: 128 };
    const judged = (area: Uint8Array | null) => judgePpl(area, countingUuid, shape, 2);
    const header = (entries: readonly PplEntry[], generation = 7): Uint8Array =>
      encodePplHeader({ signature, generation, entries });

    test('rows of its newest header are to be made anew', () => {
      expect(judged(log(header([good]), parity))).toMatchObject({
        says: 'all-but',
        torn: [],
        cells: [{ dataSector: 128, heightSectors: 16, chunkCount: 2, partialParity: parity }],
      });
    });

    test('an empty one: nothing, and whether somebody has begun it', () => {
      const empty = { says: 'all-but', cells: [], torn: [] };
      expect(judged(header([]))).toEqual({ ...empty, isMarked: true });
      expect(judged(header([], 0))).toEqual({ ...empty, isMarked: false });
    });

    test('one that begins with entries is of somebody who does not say that a resync is due', () => {
      expect(judged(log(header([good]), parity))).toMatchObject({ isMarked: false });
      const lap = log(header([], 6), header([good]), parity);
      expect(judged(lap)).toMatchObject({ isMarked: true, cells: [{ dataSector: 128 }] });
    });

    test('partial parity that is torn is passed over, and its rows are known', () => {
      const torn = parity.with(9, 0xff);
      expect(judged(log(header([{ ...good, dataSector: 128 + 5 }]), torn))).toMatchObject({
        says: 'all-but',
        cells: [],
        torn: [{ dataSector: 5, heightSectors: 16, chunkCount: 3, parityMember: 2, partialParity: null }],
      });
    });

    test('it cannot vouch: unreadable, gone, not of this slot, or not of this shape', () => {
      const rest = parity;
      for (const area of [
        null,
        new Uint8Array(65536),
        log(header([{ ...good, parityMember: 1 }]), rest),
        log(header([{ ...good, dataSector: 120 }]), rest),
        log(header([{ ...good, dataSector: 8 * 3 * 128 }]), rest),
        log(header([RESYNC_DUE, { ...good, parityMember: 1 }]), rest),
      ]) {
        expect(judged(area)).toMatchObject({ says: 'nothing' });
      }
    });

    test('where a resync was due it knows of its own rows alone, and of none that was torn', () => {
      const torn = log(header([RESYNC_DUE, good]), new Uint8Array(parity.byteLength));
      const [{ cells }] = [judged(log(header([good]), parity)) as { cells: readonly unknown[] }];
      expect(cells).toHaveLength(1);
      expect(judged(log(header([RESYNC_DUE, good]), parity))).toEqual({ says: 'only', cells });
      expect(judged(torn)).toEqual({ says: 'only', cells: [] });
      expect(judged(header([RESYNC_DUE]))).toEqual({ says: 'only', cells: [] });
    });

    test('Linux would count the mark of a resync that is due as an entry that does not match', () => {
      const newest = newestPpl(header([RESYNC_DUE]), countingUuid);
      expect(newest?.entries.map(({ partialParity }) => partialParity)).toEqual([null]);
    });
  });

  test('bytes from strangers, with the checksum set right', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 24, maxLength: 600 }), fc.nat(0xffff_ffff), (garbage, count) => {
        const signature = pplSignatureOf(countingUuid);
        const bytes = encodePplHeader({ signature, generation: 1, entries: [] });
        const view = new DataView(bytes.buffer);
        bytes.set(garbage, 536);
        view.setUint32(528, count % 3 === 0 ? count : count % 20, true);
        view.setUint32(532, 0, true);
        view.setUint32(532, pplChecksumOf(bytes), true);
        tolerates(() => {
          const newest = newestPpl(log(bytes, parity), countingUuid);
          for (const each of newest?.entries ?? []) pplCellsOf(each, 128, 4);
        });
      }),
      { numRuns: 1000 },
    );
  });

  test('usable room', () => {
    expect([0, 7, 8, 15, 16, 2048].map(pplUsableBytes)).toEqual([0, 0, 4096, 4096, 8192, 2048 * 512]);
  });
});
