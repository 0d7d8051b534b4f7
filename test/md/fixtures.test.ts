import { describe, expect, test } from 'vitest';
import { type Assembly, assemble } from '../../lib/md/assemble.ts';
import { decodeBadBlocks } from '../../lib/md/badblocks.ts';
import {
  type BitmapSuperblock,
  Bits,
  bitmapAreaBytes,
  checkBitmap,
  decodeBitmapSuperblock,
} from '../../lib/md/bitmap.ts';
import { examineBadBlocksText, examineBitmapText, examineJson, examineText } from '../../lib/md/examine.ts';
import { newestPpl } from '../../lib/md/ppl.ts';
import { bitmapOffsetOf, encodeSuperblock1, pplAreaOf, type Superblock1 } from '../../lib/md/superblock1.ts';
import { fixtureImages, fixtureStates, mdadmSaid } from './fixtures.ts';
import { candidateOf, superblock1In, superblockIn } from './images.ts';

function bitmapOf(image: Uint8Array): BitmapSuperblock | null {
  const found = superblockIn(image);
  if (found.version === '0.90') return null;
  const offset = bitmapOffsetOf(found.superblock);
  return offset === null
    ? null
    : decodeBitmapSuperblock(image.subarray((found.superblock.superSector + offset) * 512));
}

function assembled(state: string, options = {}): Assembly {
  return assemble(
    fixtureImages(state).map((image, index) => candidateOf(`m${index}`, image)),
    options,
  );
}

/** The kernel numbers devices of its own: 0.90 keeps such numbers, and mdadm looks up what has them today. */
function withoutDevices(text: string): string {
  return text.replaceAll(/ {3}\/dev\/\S+$/gm, '').replaceAll(/ +$/gm, '');
}

describe.each(Object.keys(fixtureStates))('%s', (state) => {
  const images = fixtureImages(state);

  test('examine says what mdadm says', () => {
    for (const [index, image] of images.entries()) {
      const examined = {
        found: superblockIn(image),
        memberSectors: image.byteLength / 512,
        bitmap: bitmapOf(image),
      };
      const theirs = mdadmSaid(state, index, '--examine');
      const [, ...lines] = theirs.split('\n');
      expect(withoutDevices(examineText(examined))).toBe(withoutDevices(lines.join('\n')));
      expect(examineJson(examined)).toMatchObject({ checksumCorrect: true });
    }
  });

  test('superblocks go through the codec unchanged', () => {
    for (const image of images) {
      const found = superblockIn(image);
      if (found.version === '0.90') continue;
      expect(encodeSuperblock1(found.superblock)).toEqual(found.superblock.bytes);
    }
  });
});

describe('verdicts', () => {
  const summary = (assembly: Assembly): string =>
    assembly.kind === 'start'
      ? `${assembly.row}: ${assembly.members.map(({ joins }) => joins).join(' ')}`
      : `${assembly.row}, ${assembly.error.code}: ${assembly.members.map(({ joins }) => joins).join(' ')}`;

  test.each([
    ['raid1', '@8 complete: in_sync in_sync'],
    ['raid5-failed', '@12 degraded: in_sync stale in_sync'],
    ['raid6', '@8 complete: in_sync in_sync in_sync in_sync'],
    ['raid10-far', '@8 complete: in_sync in_sync in_sync'],
    ['raid5-recovering', '@12 degraded: in_sync in_sync recovering'],
    ['raid1-0.90', '@8 complete: in_sync in_sync'],
    ['raid1-badblocks', '@8 complete: in_sync in_sync'],
    ['raid0-unequal', '@8 complete: in_sync in_sync in_sync'],
    ['linear', '@8 complete: in_sync in_sync'],
    ['raid5-replacing', '@8 complete: in_sync in_sync in_sync replacement'],
    ['raid5-dirty', '@8 complete: in_sync in_sync in_sync'],
    ['raid1-bitmap', '@8 complete: in_sync in_sync'],
    ['raid5-ppl', '@8 complete: in_sync in_sync in_sync'],
    ['raid5-journal', '@2 unsupported, UNSUPPORTED_FEATURE: in_sync in_sync in_sync out'],
    ['raid5-reshaping', '@2 unsupported, RESHAPE_IN_PROGRESS: in_sync in_sync in_sync in_sync'],
  ])('%s: %s', (state, expected) => {
    expect(summary(assembled(state))).toBe(expected);
  });

  test('geometry, recovery and dirt as they are on disk', () => {
    const array = (state: string): Extract<Assembly, { kind: 'start' }>['array'] => {
      const assembly = assembled(state);
      if (assembly.kind === 'refuse') throw assembly.error;
      return assembly.array;
    };
    expect(array('raid5-recovering').slots[2]).toMatchObject({
      recoveredSectors: 1024,
      dataOffsetSectors: 2048,
    });
    expect(array('raid5-replacing').replacements).toMatchObject([
      { slot: 1, candidate: 3, recoveredSectors: 1024 },
    ]);
    expect(array('raid5-dirty').resyncOffsetSectors).toBe(0);
    expect(array('raid1').resyncOffsetSectors).toBe(Infinity);
    expect(array('raid0-unequal').geometry).toEqual({
      level: 'raid0',
      chunkBytes: 65536,
      layout: 'original',
      memberBytes: [2097152, 3145728, 2621440],
    });
    expect(array('linear').geometry).toEqual({
      level: 'linear',
      chunkBytes: 0,
      memberBytes: [2097152, 2621440],
    });
    expect(array('raid10-far').geometry).toMatchObject({
      level: 'raid10',
      near: 1,
      far: 2,
      offset: false,
      memberCount: 3,
    });
    expect(array('raid1-0.90')).toMatchObject({
      version: '0.90',
      md: null,
      geometry: { memberBytes: 3080192 },
    });
  });
});

describe('logs', () => {
  const superblocks = (state: string): readonly (readonly [image: Uint8Array, superblock: Superblock1])[] =>
    fixtureImages(state).map((image) => [image, superblock1In(image)]);

  test('the bitmap after a power cut: mdadm counts the same dirty chunks, both copies are equal', () => {
    const dirty = superblocks('raid1-bitmap').map(([image, superblock], index) => {
      const bitmap = bitmapOf(image) as BitmapSuperblock;
      const { setUuid, events, sizeSectors } = superblock;
      checkBitmap(bitmap, { setUuid, events, syncSectors: sizeSectors });
      const at = (superblock.superSector + (bitmapOffsetOf(superblock) as number)) * 512;
      const area = image.slice(at, at + bitmapAreaBytes(sizeSectors, bitmap.chunkBytes));
      const bits = new Bits(area, sizeSectors, bitmap.chunkBytes);
      const [, ...lines] = mdadmSaid('raid1-bitmap', index, '--examine-bitmap').split('\n');
      expect(examineBitmapText(bitmap, bits.count())).toBe(lines.join('\n'));
      return [...bits.dirtyRanges()];
    });
    expect(dirty[0]).toEqual(dirty[1]);
    expect(dirty[0]?.[0]?.fromSector).toBe(0);
  });

  test('bad blocks', () => {
    for (const [index, [image, superblock]] of superblocks('raid1-badblocks').entries()) {
      const at = (superblock.superSector + superblock.bblogOffsetSectors) * 512;
      const log = image.subarray(at, at + 4096);
      const text = examineBadBlocksText(`m${index}.img`, superblock, log, image.byteLength / 512);
      expect(text.trimEnd()).toBe(mdadmSaid('raid1-badblocks', index, '--examine-badblocks').trimEnd());
      if (index === 1) {
        expect(decodeBadBlocks(log, 0, image.byteLength / 512)).toEqual([
          { fromSector: 2056, lengthSectors: 8 },
          { fromSector: 2600, lengthSectors: 24 },
        ]);
      }
    }
  });

  test('the partial parity log of every member has a newest header, with entries that a stripe can have', () => {
    const generations = superblocks('raid5-ppl').map(([image, superblock]) => {
      const area = pplAreaOf(superblock);
      if (area === null) throw new Error('the array has a PPL');
      const at = (superblock.superSector + area.offsetSectors) * 512;
      const newest = newestPpl(image.subarray(at, at + area.lengthSectors * 512), superblock.setUuid);
      expect(newest?.entries.every(({ partialParity }) => partialParity !== null)).toBe(true);
      return newest?.header.generation ?? 0;
    });
    expect(Math.max(...generations)).toBeGreaterThan(0);
  });
});
