/**
 * Sectors that cannot be read: what is done without is they, and not their neighbours. A page that is given up for one
 * sector takes seven others with it, which may be the only ones of their kind (another member cannot read its own
 * there), or the ones that answer for their place (copies that differ until a resync has passed).
 */
import { assert, describe, expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import { replacementOf } from '../../lib/plan/plan.ts';
import { syncBytes } from '../../lib/plan/planner.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { failure, overlaps, type Script, Scripted } from './scripted.ts';
import { imagesOf, shapes } from './world.ts';

const SECTOR = 512;
const SECTORS = 8;
const PAGE = SECTORS * SECTOR;
/** Poisoned before each job: little of it is quick. */
const scratchBytes = 64 * 1024;

interface Place {
  readonly member: number;
  readonly sector: number;
}

/** These sectors cannot be read until they are written, in whatever transfer they are. */
function unreadable(places: readonly Place[]): Script {
  const left = new Set(places);
  return (direction, transfer) => {
    for (const place of left) {
      const range = { offsetBytes: place.sector * SECTOR, lengthBytes: SECTOR };
      if (place.member !== transfer.member || !overlaps(transfer, range)) continue;
      if (direction === 'read') return failure('MEDIUM_ERROR');
      left.delete(place);
    }
    return null;
  };
}

function redundant(kinds: readonly Geometry['level'][]): readonly (readonly [string, Geometry])[] {
  return shapes.filter(([, { level }]) => kinds.includes(level));
}

/** All of it, sector by sector. */
function contentOf(
  scripted: Scripted,
  arrayBytes: number,
  except: number | null,
): readonly (string | null)[] {
  return Array.from({ length: arrayBytes / SECTOR }, (_, sector) => {
    if (sector === except) return null;
    const { report, answer } = scripted.run({
      op: 'read',
      offsetBytes: sector * SECTOR,
      lengthBytes: SECTOR,
      member: 0,
    });
    return report.error === null ? Buffer.from(answer).toString('hex', 0, 16) : report.error.code;
  });
}

describe('a sector that cannot be read', () => {
  for (const [title, geometry] of redundant(['raid1', 'raid10'])) {
    const layout = compileLayout(geometry);
    assert(layout.kind === 'copies');
    test(`on ${title}, copies differing: what is read of any other before the resync is read after it`, () =>
      withSeed(runSeed, (random) => {
        const images = Array.from({ length: layout.memberCount }, (_, slot) =>
          randomBytes(random, layout.memberBytes[slot] ?? 0),
        );
        const members = images.map(() => ({ state: 'in_sync' as const }));
        for (let member = 0; member < layout.memberCount; member += 1) {
          for (let sector = 0; sector < 2 * SECTORS; sector += 1) {
            const { arrayOffsetBytes } = layout.contentAt(member, sector * SECTOR);
            const scripted = new Scripted({
              layout,
              images,
              health: { members, erased: [], unsyncedFromBytes: 0 },
              script: unreadable([{ member, sector }]),
              scratchBytes,
            });
            const except = arrayOffsetBytes === null ? null : arrayOffsetBytes / SECTOR;
            const before = contentOf(scripted, layout.arrayBytes, except);
            const job = { op: 'repair', offsetBytes: 0, lengthBytes: syncBytes(layout), member: 0 } as const;
            expect(scripted.run(job).report.error).toBeNull();
            const after = contentOf(scripted, layout.arrayBytes, except);
            expect(after, `sector ${sector} of member ${member}`).toEqual(before);
          }
        }
      }));
  }

  for (const [title, geometry] of redundant(['raid1', 'raid4', 'raid5', 'raid6', 'raid10'])) {
    const layout = compileLayout(geometry);
    const pairs = Array.from({ length: layout.memberCount ** 2 }, (_, index) => ({
      a: { member: index % layout.memberCount, sector: 3 },
      b: { member: Math.floor(index / layout.memberCount), sector: 4 },
    })).filter(({ a, b }) => a.member !== b.member);

    test(`on ${title}, and its neighbour on another member: all can be read, checked and repaired`, () =>
      withSeed(runSeed, (random) => {
        const content = randomBytes(random, layout.arrayBytes);
        const images = imagesOf(layout, content);
        const members = images.map(() => ({ state: 'in_sync' as const }));
        for (const { a, b } of pairs) {
          for (const op of ['read', 'check', 'repair'] as const) {
            const health = { members, erased: [] };
            const scripted = new Scripted({
              layout,
              images,
              health,
              script: unreadable([a, b]),
              scratchBytes,
            });
            const lengthBytes = op === 'read' ? layout.arrayBytes : syncBytes(layout);
            const { report, answer } = scripted.run({ op, offsetBytes: 0, lengthBytes, member: 0 });
            const who = `${op}, members ${a.member} and ${b.member}`;
            expect(report.error, who).toBeNull();
            expect(report.mismatchCount, who).toBe(0);
            if (op === 'read') expect(Buffer.compare(answer, content), who).toBe(0);
            for (const [slot, image] of scripted.images.entries())
              expect(Buffer.compare(image, images[slot] ?? image), who).toBe(0);
          }
        }
      }));

    test(`on ${title}, and its neighbour on another member: a replacement gets all of either`, () =>
      withSeed(runSeed, (random) => {
        const images = imagesOf(layout, randomBytes(random, layout.arrayBytes));
        const members = images.map(() => ({ state: 'in_sync' as const }));
        for (const { a, b } of pairs) {
          const target = replacementOf(layout.memberCount, a.member);
          const original = images[a.member] ?? new Uint8Array();
          const all = [...images];
          all[target] = new Uint8Array(original.byteLength).fill(0xcc);
          const scripted = new Scripted({
            layout,
            images: Array.from(all, (image) => image ?? new Uint8Array()),
            health: { members, erased: [], replacing: [a.member] },
            script: unreadable([a, b]),
            scratchBytes,
          });
          const lengthBytes = layout.memberBytes[a.member] ?? 0;
          const { report } = scripted.run({ op: 'replace', offsetBytes: 0, lengthBytes, member: a.member });
          const who = `of member ${a.member}, with ${b.member} bad beside it`;
          expect(report.error, who).toBeNull();
          expect(Buffer.compare(scripted.images[target] ?? original.subarray(0, 0), original), who).toBe(0);
        }
      }));
  }

  test('on disks whose blocks are pages costs the page, which is rewritten whole', () =>
    withSeed(runSeed, (random) => {
      for (const [title, geometry] of redundant(['raid1', 'raid5', 'raid6', 'raid10'])) {
        const layout = compileLayout(geometry);
        const content = randomBytes(random, layout.arrayBytes);
        const images = imagesOf(layout, content);
        const bad = unreadable([{ member: 1, sector: 3 }]);
        const writes: string[] = [];
        const scripted = new Scripted({
          layout,
          images,
          health: { members: images.map(() => ({ state: 'in_sync' as const })), erased: [] },
          script: (direction, transfer) => {
            if (transfer.offsetBytes % PAGE !== 0 || transfer.lengthBytes % PAGE !== 0)
              return failure(direction === 'read' ? 'MEDIUM_ERROR' : 'WRITE_FAILED');
            if (direction === 'write') writes.push(`${transfer.member}: ${transfer.offsetBytes}`);
            return bad(direction, transfer);
          },
        });
        const job = { op: 'check', offsetBytes: 0, lengthBytes: syncBytes(layout), member: 0 } as const;
        const { report } = scripted.run(job);
        expect(report, title).toMatchObject({ error: null, exclusions: [], mismatchCount: 0 });
        expect(writes, title).toEqual(['1: 0']);
        expect(report.corrections, title).toEqual([{ member: 1, offsetBytes: 0, lengthBytes: PAGE }]);
      }
    }));
});
