/** What is lost with members, against the question itself: which bytes can be read with them, and not without. */
import { expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import type { Layout } from '../../lib/layout/layout.ts';
import { compileHealth } from '../../lib/plan/health.ts';
import { lostWithout } from '../../lib/plan/last-copy.ts';
import { type Health, isLost, type MemberHealth } from '../../lib/plan/plan.ts';
import { planRead } from '../../lib/plan/planner.ts';
import { KIB, SECTOR_BYTES } from '../../lib/units.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

const chunkBytes = 4 * KIB;
const memberBytes = 16 * KIB;
const geometries: readonly Geometry[] = [
  { level: 'raid1', memberCount: 2, memberBytes },
  { level: 'raid1', memberCount: 3, memberBytes },
  { level: 'raid4', memberCount: 3, memberBytes, chunkBytes },
  { level: 'raid5', layout: 'left-symmetric', memberCount: 4, memberBytes, chunkBytes },
  { level: 'raid6', layout: 'left-symmetric', memberCount: 5, memberBytes, chunkBytes },
  { level: 'raid10', farSets: 0, near: 2, far: 1, offset: false, memberCount: 3, memberBytes, chunkBytes },
  { level: 'raid10', farSets: 0, near: 1, far: 2, offset: false, memberCount: 4, memberBytes, chunkBytes },
  { level: 'raid10', farSets: 0, near: 1, far: 2, offset: true, memberCount: 4, memberBytes, chunkBytes },
];

/** By sector of the array. */
function unreadable(layout: Layout, health: Health): ReadonlySet<number> {
  const compiled = compileHealth(layout, health);
  const sectors = Array.from({ length: layout.arrayBytes / SECTOR_BYTES }, (_, sector) => sector);
  return new Set(sectors.filter((at) => isLost(planRead(layout, compiled, at * SECTOR_BYTES, SECTOR_BYTES))));
}

function without(health: Health, slot: number): Health {
  const members = health.members.map((each, at) => (at === slot ? { state: 'missing' as const } : each));
  return { ...health, members };
}

test.each(geometries)('of $level, $memberCount members', async (geometry) => {
  await withSeed(runSeed, (random) => {
    const layout = compileLayout(geometry);
    for (let round = 0; round < 300; round += 1) {
      const members = layout.memberBytes.map((bytes): MemberHealth => {
        if (random(5) > 0) return { state: 'in_sync' };
        return random(2) === 0
          ? { state: 'missing' }
          : { state: 'recovering', recoveredBytes: random(bytes / SECTOR_BYTES) * SECTOR_BYTES };
      });
      const erased = Array.from({ length: 1 + random(4) }, () => {
        const member = random(layout.memberCount);
        const sectors = (layout.memberBytes[member] ?? 0) / SECTOR_BYTES;
        const from = random(sectors);
        const count = 1 + random(Math.min(12, sectors - from));
        return { member, offsetBytes: from * SECTOR_BYTES, lengthBytes: count * SECTOR_BYTES };
      });
      const health: Health = { members, erased };
      const slot = random(layout.memberCount);
      const now = unreadable(layout, health);
      const wanted = [...unreadable(layout, without(health, slot))].filter((sector) => !now.has(sector));
      // What a member takes with it for the layout's sake alone is `survives`'s to say.
      const plain = { members, erased: [] };
      const anyway = unreadable(layout, without(plain, slot));
      const found = lostWithout(layout, health, [slot]).flatMap(({ offsetBytes, lengthBytes }) =>
        Array.from({ length: lengthBytes / SECTOR_BYTES }, (_, at) => offsetBytes / SECTOR_BYTES + at),
      );
      expect(found.filter((sector) => !anyway.has(sector))).toEqual(
        wanted.filter((sector) => !anyway.has(sector)),
      );
      expect(found.every((sector) => wanted.includes(sector))).toBe(true);
    }
  });
});
