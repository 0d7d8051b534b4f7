/**
 * The law of lanes: everything that can touch a stripe runs on one lane, whatever the operation, the layout and the
 * number of lanes; and the jobs of a request cover it exactly. Held against the drivers themselves, cut by cut.
 */
import { describe, expect, test } from 'vitest';
import { memberRun, stripeBytes, territoryOf } from '../../lib/engine/territory.ts';
import { RaidError } from '../../lib/errors.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import { type Geometry, raid5Layouts, raid6Layouts } from '../../lib/layout/geometry.ts';
import type { Layout } from '../../lib/layout/layout.ts';
import { syncBytes } from '../../lib/plan/planner.ts';
import { KIB } from '../../lib/units.ts';
import { CHUNK } from './world.ts';

function isPossible(geometry: Geometry): boolean {
  try {
    compileLayout(geometry);
    return true;
  } catch (refusal) {
    if (refusal instanceof RaidError && refusal.code === 'BAD_GEOMETRY') return false;
    throw refusal;
  }
}

const geometries: Geometry[] = [
  { level: 'linear', chunkBytes: 0, memberBytes: [7 * CHUNK + 512, 5 * CHUNK, 9 * CHUNK] },
  { level: 'raid0', layout: 'original', chunkBytes: CHUNK, memberBytes: [9, 4, 7].map((k) => k * CHUNK) },
  { level: 'raid0', layout: 'alternate', chunkBytes: 3 * 512, memberBytes: [30, 12, 21].map((k) => k * 512) },
  { level: 'raid1', memberCount: 3, memberBytes: 40 * CHUNK },
  { level: 'raid4', memberCount: 4, chunkBytes: CHUNK, memberBytes: 12 * CHUNK },
];
for (const layout of Object.keys(raid5Layouts) as (keyof typeof raid5Layouts)[])
  geometries.push({ level: 'raid5', layout, memberCount: 4, chunkBytes: CHUNK, memberBytes: 12 * CHUNK });
for (const layout of Object.keys(raid6Layouts) as (keyof typeof raid6Layouts)[])
  geometries.push({ level: 'raid6', layout, memberCount: 5, chunkBytes: CHUNK, memberBytes: 12 * CHUNK });
for (const memberCount of [2, 3, 4, 5, 6]) {
  for (const [near, far, offset] of [
    [2, 1, false],
    [1, 2, false],
    [1, 2, true],
    [2, 2, false],
    [2, 2, true],
    [3, 1, false],
    [1, 3, true],
  ] as const) {
    if (near * far > memberCount) continue;
    for (const farSets of [0, 1, 2] as const) {
      if (farSets > 0 && far === 1) continue;
      const size = { memberCount, chunkBytes: CHUNK, memberBytes: 12 * CHUNK };
      const geometry: Geometry = { level: 'raid10', ...size, near, far, offset, farSets };
      if (isPossible(geometry)) geometries.push(geometry);
    }
  }
}

function titleOf(geometry: Geometry): string {
  const { memberBytes: _, ...rest } = geometry;
  return Object.values(rest).join(' ');
}

/** The stripes that a member's bytes belong to, by the layout alone: for copies a stripe is one array sector. */
function stripesOfMember(layout: Layout, member: number, from: number, to: number): Set<number> {
  const stripes = new Set<number>();
  for (let at = from; at < to; at += 512) {
    if (layout.kind === 'parity') {
      stripes.add(Math.floor(at / layout.chunkBytes));
      continue;
    }
    const content = layout.contentAt(member, at);
    if (content.arrayOffsetBytes !== null) stripes.add(Math.floor(content.arrayOffsetBytes / 512));
  }
  return stripes;
}

function stripesOfArray(layout: Layout, from: number, to: number): Set<number> {
  const unit = layout.kind === 'parity' ? stripeBytes(layout) : 512;
  const stripes = new Set<number>();
  for (let at = from; at < to; at += 512) stripes.add(Math.floor(at / unit));
  return stripes;
}

describe('territories', () => {
  for (const geometry of geometries) {
    for (const territoryStripes of [1, 3]) {
      test(`${titleOf(geometry)}, dealt out by ${territoryStripes}: one stripe, one owner, for every operation`, () => {
        const layout = compileLayout(geometry);
        const territoryBytes = stripeBytes(layout) * territoryStripes;
        const owner = new Map<number, number>();
        const claim = (op: string, offsetBytes: number, lengthBytes: number, member: number): void => {
          const job = { op, offsetBytes, lengthBytes, address: 0, member } as Parameters<
            typeof territoryOf
          >[1];
          const stripes =
            op === 'recover' || (layout.kind === 'parity' && op !== 'read' && op !== 'write')
              ? stripesOfMember(layout, member, offsetBytes, offsetBytes + lengthBytes)
              : stripesOfArray(layout, offsetBytes, offsetBytes + lengthBytes);
          const territory = territoryOf(layout, job);
          const lane = Math.floor(territory.from / territoryBytes);
          for (const stripe of stripes) {
            const known = owner.get(stripe) ?? lane;
            if (known !== lane)
              throw new Error(`${op} ${offsetBytes}+${lengthBytes}: stripe ${stripe} of ${known} on ${lane}`);
            owner.set(stripe, lane);
          }
          // And the gate's range covers every stripe, and so keeps them in order.
          const unit = layout.kind === 'parity' ? stripeBytes(layout) : 512;
          for (const stripe of stripes) {
            if (
              territory.from > stripe * unit ||
              territory.to < Math.min((stripe + 1) * unit, layout.arrayBytes)
            )
              throw new Error(`${op} ${offsetBytes}+${lengthBytes}: stripe ${stripe} outside its territory`);
          }
        };

        // Reads and writes: as the driver cuts them.
        for (const limitBytes of [territoryBytes, 2 * KIB + 512]) {
          for (let at = 0; at < layout.arrayBytes; ) {
            const count = Math.min(
              limitBytes,
              territoryBytes - (at % territoryBytes),
              layout.arrayBytes - at,
            );
            claim('read', at, count, 0);
            claim('write', at, count, 0);
            at += count;
          }
        }
        // Recovery: all of every member, from every kind of start, the pieces following each other exactly.
        for (let member = 0; member < layout.memberCount; member += 1) {
          const memberBytes = layout.memberBytes[member] ?? 0;
          for (const limitBytes of [256 * KIB, CHUNK, 3 * 512]) {
            let at = 0;
            while (at < memberBytes) {
              const count = Math.min(
                memberBytes - at,
                memberRun(layout, member, at, limitBytes, territoryBytes),
              );
              if (!(count > 0 && count <= limitBytes)) throw new Error(`a run of ${count} at ${at}`);
              claim('recover', at, count, member);
              at += count;
            }
            expect(at).toBe(memberBytes);
          }
        }
        // Check and repair.
        const total = syncBytes(layout);
        for (let at = 0; at < total; ) {
          const limit = 256 * KIB;
          const count = Math.min(
            total - at,
            layout.kind === 'parity'
              ? memberRun(layout, 0, at, limit, territoryBytes)
              : Math.min(limit, territoryBytes - (at % territoryBytes)),
          );
          claim('check', at, count, 0);
          claim('repair', at, count, 0);
          at += count;
        }
      });
    }
  }
});
