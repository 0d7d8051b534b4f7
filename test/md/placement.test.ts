import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import { raid5Layouts, raid6Layouts } from '../../lib/layout/geometry.ts';
import { examineJson, examineText } from '../../lib/md/examine.ts';
import { arraySectorsOf, geometryOf, levelNumbersOf } from '../../lib/md/levels.ts';
import { claimOf, readSuperblock, superblockPlaces } from '../../lib/md/member.ts';
import { defaultConsistency, newArray, placeArray, setNameOf } from '../../lib/md/placement.ts';
import {
  checksumOf,
  decodeSuperblock1,
  encodeSuperblock1,
  SUPERBLOCK_MAGIC,
  superblock1Faults,
} from '../../lib/md/superblock1.ts';
import { checksum090Of, decodeSuperblock090 } from '../../lib/md/superblock090.ts';
import { fixtureImages } from './fixtures.ts';
import { someTime, superblockIn, uuidOf } from './images.ts';

const GIB = 2 ** 21;
const layouts: Readonly<Record<number, number>> = { 5: 2, 6: 2, 10: 0x102 };
const versions = ['1.0', '1.1', '1.2'] as const;

function keys<K extends string>(table: Readonly<Record<K, number>>): readonly K[] {
  return Object.keys(table) as K[];
}

describe('geometry and the numbers in superblocks', () => {
  const shape = { memberCount: 5, chunkBytes: 65536, memberBytes: 100 * 65536 };
  const all: readonly Geometry[] = [
    { level: 'linear', chunkBytes: 0, memberBytes: [4096, 8192] },
    { level: 'raid0', chunkBytes: 4096, layout: 'alternate', memberBytes: [8192, 16384, 16384] },
    { level: 'raid1', memberCount: 2, memberBytes: 65536 },
    { level: 'raid4', ...shape },
    ...keys(raid5Layouts).map((layout): Geometry => ({ level: 'raid5', layout, ...shape })),
    ...keys(raid6Layouts).map((layout): Geometry => ({ level: 'raid6', layout, ...shape })),
    ...([0, 1, 2] as const).map(
      (farSets): Geometry => ({ level: 'raid10', ...shape, near: 1, far: 2, offset: false, farSets }),
    ),
    { level: 'raid10', ...shape, near: 2, far: 1, offset: false, farSets: 0 },
    { level: 'raid10', ...shape, near: 1, far: 3, offset: true, farSets: 0 },
  ];

  test.each(all)('%o', (geometry) => {
    const data = 'memberCount' in geometry ? [] : geometry.memberBytes.map((bytes) => bytes / 512);
    expect(geometryOf(levelNumbersOf(geometry), data)).toEqual(geometry);
  });

  test('raid0 of unequal members that does not say its layout is not guessed', () => {
    const numbers = {
      level: 0,
      layout: 0,
      chunkSectors: 8,
      sizeSectors: 0,
      raidDisks: 3,
      hasRaid0Layout: false,
    };
    expect(() => geometryOf(numbers, [16, 32, 32])).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED_FEATURE' }),
    );
    expect(geometryOf(numbers, [16, 32, 32], 'alternate')).toMatchObject({ layout: 'alternate' });
    expect(geometryOf(numbers, [16, 16, 32])).toMatchObject({ layout: 'original' });
  });

  test('any numbers give a geometry or a refusal', () => {
    const some = fc.constantFrom(
      0,
      1,
      2,
      3,
      4,
      7,
      8,
      9,
      127,
      128,
      129,
      0x102,
      0x201,
      0x10202,
      0x80000,
      2 ** 31,
      2 ** 32 - 1,
    );
    fc.assert(
      fc.property(
        fc.constantFrom(-5, -1, 0, 1, 4, 5, 6, 10, 99),
        some,
        some,
        some,
        some,
        (level, layout, chunkSectors, sizeSectors, raidDisks) => {
          try {
            geometryOf(
              { level, layout, chunkSectors, sizeSectors, raidDisks, hasRaid0Layout: true },
              [1, 2, 3],
            );
          } catch (error) {
            if (!(error instanceof RaidError)) throw error;
          }
        },
      ),
      { numRuns: 5000 },
    );
  });

  test('array sizes', () => {
    const numbers = (level: number, layout: number, raidDisks: number) =>
      arraySectorsOf({
        level,
        layout,
        raidDisks,
        chunkSectors: 128,
        sizeSectors: 1290,
        hasRaid0Layout: false,
      });
    expect([
      numbers(1, 0, 2),
      numbers(5, 2, 3),
      numbers(6, 2, 4),
      numbers(10, 0x102, 3),
      numbers(10, 0x201, 3),
    ]).toEqual([1290, 2560, 2560, 1920, 1920]);
  });
});

describe('what redundancy rests on after a crash, where nobody says', () => {
  const policies = (level: number, raidDisks: number, sectors: number): unknown => {
    const numbers = { level, layout: layouts[level] ?? 0, raidDisks, chunkSectors: level === 1 ? 0 : 128 };
    const shape = {
      version: '1.2',
      numbers,
      memberSectors: new Array<number>(raidDisks).fill(sectors),
    } as const;
    const { sizeSectors } = placeArray({ ...shape, consistency: { policy: 'resync' } });
    return [sizeSectors - 100 * GIB, defaultConsistency(shape).policy];
  };

  test.each([
    [1, 2],
    [4, 3],
    [5, 3],
    [6, 4],
    [10, 2],
  ])('level %i: a bitmap from the first chunk on that a member holds beyond 100 GiB', (level, raidDisks) => {
    // 133120 sectors lie before the data of members as large as these.
    expect(policies(level, raidDisks, 100 * GIB + 133120)).toEqual([0, 'resync']);
    expect(policies(level, raidDisks, 100 * GIB + 133120 + 128)).toEqual([128, 'bitmap']);
  });

  test.each([-1, 0])('level %i: never a bitmap, since there is nothing that could disagree', (level) => {
    expect(policies(level, 2, 300 * GIB)).toEqual([expect.any(Number), 'resync']);
  });
});

describe('placement', () => {
  const place = (
    sectors: number,
    level: number,
    chunkSectors: number,
    version: (typeof versions)[number] = '1.2',
  ) =>
    placeArray({
      version,
      numbers: { level, layout: 0, raidDisks: 2, chunkSectors },
      consistency: { policy: 'resync' },
      memberSectors: [sectors, sectors],
    });

  test('the data offsets that mdadm chooses', () => {
    const offsets = (chunkSectors: number): readonly number[] =>
      [GIB / 64, GIB, 8 * GIB, 128 * GIB, 3072 * GIB].map(
        (sectors) => place(sectors, 1, chunkSectors).dataOffsetSectors,
      );
    expect(offsets(0)).toEqual([2048, 4096, 18432, 264192, 264192]);
    expect(place(GIB / 64, 5, 1024).dataOffsetSectors).toBe(4096);
  });

  test('everything fits where it is put, whatever the sizes', () => {
    const member = fc.nat(4096);
    const base = fc.integer({ min: 8 * 2048, max: 400 * GIB });
    const consistency = fc.constantFrom({ policy: 'resync' }, { policy: 'bitmap', chunkBytes: null }, {
      policy: 'ppl',
    } as const);
    fc.assert(
      fc.property(
        fc.constantFrom(...versions),
        fc.constantFrom(1, 5, 6, 10),
        consistency,
        base,
        fc.array(member, { minLength: 4, maxLength: 5 }),
        (version, level, how, least, more) => {
          const memberSectors = more.map((sectors) => least + sectors);
          const { array } = newArray({
            version,
            numbers: {
              level,
              layout: layouts[level] ?? 0,
              raidDisks: 4,
              chunkSectors: level === 1 ? 0 : 1024,
            },
            consistency: (level === 5 ? how : { policy: 'resync' }) as { policy: 'resync' },
            memberSectors,
            setUuid: uuidOf(1),
            setName: 'host:t',
            ctime: someTime,
            deviceUuids: memberSectors.map((_, index) => uuidOf(2 + index)),
            firstSync: 'resync',
          });
          for (const { superblock, descriptor } of array.members) {
            const faults = superblock1Faults(
              { ...superblock, bytes: encodeSuperblock1(superblock) },
              { version, memberSectors: memberSectors[descriptor] as number },
            );
            expect(faults).toEqual([]);
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  test('members that are too small are refused', () => {
    expect(() => place(100, 1, 0)).toThrow(RaidError);
    expect(() => place(3000, 5, 1024)).toThrow(RaidError);
    expect(() => place(16, 1, 0, '1.0')).toThrow(RaidError);
  });

  test('names', () => {
    expect(setNameOf('host', 'data')).toBe('host:data');
    expect(setNameOf('host', 'other:data')).toBe('other:data');
    expect(setNameOf('h'.repeat(30), 'data')).toBe('data');
    expect(setNameOf('host', 'ü'.repeat(20))).toBe('ü'.repeat(15));
  });
});

describe('any superblock can be examined', () => {
  test('bytes with the right magic and checksum, whatever they say', () => {
    const image = fixtureImages('raid1')[0] as Uint8Array;
    const base = encodeSuperblock1(superblockIn(image).superblock as Parameters<typeof encodeSuperblock1>[0]);
    const edit = fc.tuple(fc.integer({ min: 8, max: 300 }), fc.constantFrom(0, 1, 0x7f, 0x80, 0xff));
    fc.assert(
      fc.property(fc.array(edit, { maxLength: 30 }), (edits) => {
        const bytes = base.slice();
        for (const [at, value] of edits) if (at < 220 || at > 223) bytes[at] = value;
        new DataView(bytes.buffer).setUint32(216, checksumOf(bytes).computed, true);
        try {
          const finding = readSuperblock('1.2', bytes, image.byteLength / 512);
          if (finding === null) return;
          expect(examineText({ found: finding, memberSectors: image.byteLength / 512 })).toMatch('Events');
          JSON.stringify(examineJson({ found: finding, memberSectors: image.byteLength / 512 }));
        } catch (error) {
          if (!(error instanceof RaidError)) throw error;
        }
      }),
      { numRuns: 3000 },
    );
  });

  test('there is none exactly where who decodes it says so', () => {
    const wholeOf = (fixture: string, which: '1.2' | '0.90'): Uint8Array => {
      const image = fixtureImages(fixture)[0] as Uint8Array;
      const place = superblockPlaces(image.byteLength / 512).find(({ version }) => version === which);
      return image.slice(place?.offsetBytes, (place?.offsetBytes ?? 0) + 4096);
    };
    const whole = { '1.2': wholeOf('raid1', '1.2'), '0.90': wholeOf('raid1-0.90', '0.90') };
    const word = fc.constantFrom(SUPERBLOCK_MAGIC, 0, 1, 0xffff_ffff);
    const version = fc.constantFrom('1.2' as const, '0.90' as const);
    fc.assert(
      fc.property(version, word, word, fc.boolean(), (which, first, second, isLittle) => {
        const bytes = whole[which].slice();
        new DataView(bytes.buffer).setUint32(0, first, isLittle);
        new DataView(bytes.buffer).setUint32(4, second, isLittle);
        const decoded = codeOf(() => (which === '0.90' ? decodeSuperblock090 : decodeSuperblock1)(bytes));
        const read = codeOf(() => readSuperblock(which, bytes, 2048) ?? none());
        expect(read).toBe(decoded);
      }),
      { numRuns: 1000 },
    );
  });

  test('0.90: bytes with the right checksum, whatever they say', () => {
    const image = fixtureImages('raid1-0.90')[0] as Uint8Array;
    const memberSectors = image.byteLength / 512;
    const place = superblockPlaces(memberSectors).find(({ version }) => version === '0.90');
    const base = image.slice(place?.offsetBytes, (place?.offsetBytes ?? 0) + 4096);
    const edit = fc.tuple(
      fc.integer({ min: 2, max: 996 }),
      fc.constantFrom(0, 1, 27, 28, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff),
    );
    fc.assert(
      fc.property(
        fc.array(edit, { maxLength: 10 }),
        fc.integer({ min: 4000, max: 4096 }),
        (edits, length) => {
          const bytes = base.slice();
          const view = new DataView(bytes.buffer);
          for (const [word, value] of edits) view.setUint32(word * 4, value, true);
          view.setUint32(152, checksum090Of(bytes).computed, true);
          try {
            decodeSuperblock090(bytes.subarray(0, length));
            const finding = readSuperblock('0.90', bytes, memberSectors);
            if (finding === null) return;
            examineText({ found: finding, memberSectors });
            JSON.stringify(examineJson({ found: finding, memberSectors }));
            if (finding.faults.length === 0) claimOf(finding, memberSectors);
          } catch (error) {
            if (!(error instanceof RaidError)) throw error;
          }
        },
      ),
      { numRuns: 2000 },
    );
  });
});

function codeOf(work: () => unknown): string | null {
  try {
    work();
    return null;
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    return error.code;
  }
}

function none(): never {
  throw new RaidError('BAD_MAGIC', 'none');
}
