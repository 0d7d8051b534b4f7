import { expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import { failuresSurvived } from '../../lib/layout/levels.ts';
import { survives } from '../../lib/layout/survives.ts';
import { refusalOf } from './laws.ts';

const chunkBytes = 4096;

function* copiesGeometries(): Generator<Geometry> {
  for (let memberCount = 1; memberCount <= 6; memberCount += 1) {
    const memberBytes = 4 * memberCount * chunkBytes;
    const each = new Array<number>(memberCount).fill(memberBytes);
    yield { level: 'linear', chunkBytes: 0, memberBytes: each };
    yield { level: 'raid0', chunkBytes, layout: 'original', memberBytes: each };
    yield { level: 'raid1', memberCount, memberBytes };
    for (let near = 1; near <= memberCount; near += 1) {
      for (let far = 1; near * far <= memberCount; far += 1) {
        for (const offset of [false, true]) {
          for (const farSets of [0, 1, 2] as const) {
            const geometry = {
              level: 'raid10',
              memberCount,
              chunkBytes,
              memberBytes,
              near,
              far,
              offset,
              farSets,
            } as const;
            if (refusalOf(() => compileLayout(geometry)) === null) yield geometry;
          }
        }
      }
    }
  }
}

/** Members as bits, every set of members that is missing. */
test('an array of copies survives exactly while each of its chunks is on some member that is there', () => {
  for (const geometry of copiesGeometries()) {
    const layout = compileLayout(geometry);
    if (layout.kind !== 'copies') continue;
    const holders = new Set<number>();
    for (let at = 0; at < layout.arrayBytes; at += chunkBytes) {
      holders.add(layout.locate(at).copies.reduce((bits, place) => bits | (1 << place.member), 0));
    }
    let always = layout.memberCount;
    for (let missing = 0; missing < 1 << layout.memberCount; missing += 1) {
      const isWhole = [...holders].every((bits) => (bits & ~missing) !== 0);
      const name = `${JSON.stringify(geometry)} without ${missing.toString(2)}`;
      expect(
        survives(layout, (member) => (missing & (1 << member)) !== 0),
        name,
      ).toBe(isWhole);
      if (!isWhole) always = Math.min(always, missing.toString(2).replaceAll('0', '').length - 1);
    }
    expect(failuresSurvived(geometry), JSON.stringify(geometry)).toBe(always);
  }
});

test('an array with parity survives as many failures as it has parity chunks, whichever they are', () => {
  const shape = { memberCount: 6, chunkBytes, memberBytes: 8 * chunkBytes };
  const geometries: Geometry[] = [
    { level: 'raid4', ...shape },
    { level: 'raid5', layout: 'left-symmetric', ...shape },
    { level: 'raid6', layout: 'ddf-N-restart', ...shape },
  ];
  for (const geometry of geometries) {
    const layout = compileLayout(geometry);
    for (let missing = 0; missing < 1 << 6; missing += 1) {
      const count = missing.toString(2).replaceAll('0', '').length;
      expect(survives(layout, (member) => (missing & (1 << member)) !== 0)).toBe(
        count <= failuresSurvived(geometry),
      );
    }
  }
});
