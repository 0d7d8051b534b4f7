import fc from 'fast-check';
import { expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Raid10 } from '../../lib/layout/geometry.ts';
import { type DirectPlaces, refusalOf, SECTOR, violationOfCopies } from './laws.ts';

const chunk = 8;
const chunkBytes = chunk * SECTOR;

interface Direct {
  readonly arrayChunks: number;
  readonly usedChunks: number;
  readonly places: DirectPlaces;
}

/** md's rule as it steps, in sectors, with nothing precomputed. */
function direct({ memberCount: n, near, far, offset, farSets, memberBytes }: Raid10): Direct {
  const perMember = Math.floor(memberBytes / chunkBytes);
  const arrayChunks = Math.floor((Math.floor(perMember / far) * n) / near);
  const usedChunks = Math.ceil((arrayChunks * near * far) / n);
  const stride = offset ? chunk : Math.floor(usedChunks / far) * chunk;
  const setSize = [n, Math.floor(n / far), near * far][farSets]!;
  const last = (Math.floor(n / setSize) - 1) * setSize;
  const lastSize = setSize + (n % setSize);

  function places(sector: number): [number, number][] {
    const k = Math.floor(sector / chunk);
    let row = Math.floor((k * near) / n);
    let dev = (k * near) % n;
    if (offset) row *= far;
    let base = row * chunk + (sector % chunk);
    const copies: [number, number][] = [];
    for (let side = 0; side < near; side += 1) {
      let d = dev;
      let address = base;
      copies.push([d, address]);
      for (let step = 1; step < far; step += 1) {
        const set = Math.floor(d / setSize);
        d += near;
        if (n % setSize !== 0 && d > last) d = ((d - last) % lastSize) + last;
        else d = (d % setSize) + setSize * set;
        address += stride;
        copies.push([d, address]);
      }
      dev += 1;
      if (dev === n) {
        dev = 0;
        base += chunk;
      }
    }
    return copies;
  }
  return { arrayChunks, usedChunks, places };
}

/** Whether md's rule, run over the array, ever puts two things in one place or two copies on one member. */
function isSound(geometry: Raid10): boolean {
  const { arrayChunks, usedChunks, places } = direct(geometry);
  const taken = new Set<string>();
  for (let k = 0; k < arrayChunks; k += 1) {
    const copies = places(k * chunk);
    if (new Set(copies.map(([member]) => member)).size !== copies.length) return false;
    for (const [member, address] of copies) {
      const place = `${member}:${address}`;
      if (taken.has(place) || address >= usedChunks * chunk) return false;
      taken.add(place);
    }
  }
  return true;
}

function* geometries(): Generator<Raid10> {
  for (let memberCount = 2; memberCount <= 9; memberCount += 1) {
    for (let near = 1; near <= memberCount; near += 1) {
      for (let far = 1; near * far <= memberCount; far += 1) {
        if (near * far < 2) continue;
        for (const offset of [false, true]) {
          for (const farSets of [0, 1, 2] as const) {
            // Rows repeat after `near`: two periods, and what does not divide.
            for (const more of [0, 1, far - 1]) {
              const memberBytes = (far * (2 * near + (more === 1 ? 1 : 0)) + more) * chunkBytes + 512;
              yield { level: 'raid10', memberCount, chunkBytes, memberBytes, near, far, offset, farSets };
            }
          }
        }
      }
    }
  }
}

test('raid10 places all copies as md does: every near, far, offset and far set with 2 to 9 members', () => {
  let compiled = 0;
  let refused = 0;
  for (const geometry of geometries()) {
    const name = JSON.stringify(geometry);
    if (!isSound(geometry)) {
      expect(
        refusalOf(() => compileLayout(geometry)),
        name,
      ).not.toBeNull();
      refused += 1;
      continue;
    }
    const layout = compileLayout(geometry);
    const { arrayChunks, usedChunks, places } = direct(geometry);
    expect(violationOfCopies(layout, places), name).toBeNull();
    expect(layout.arrayBytes, name).toBe(arrayChunks * chunkBytes);
    expect(layout.copyCount).toBe(geometry.near * geometry.far);
    expect(layout.memberBytes, name).toEqual(new Array(geometry.memberCount).fill(usedChunks * chunkBytes));
    compiled += 1;
  }
  expect(compiled).toBeGreaterThan(600);
  expect(refused).toBeGreaterThan(100);
});

test('every layout that mdadm can name is sound, with any number of members', () => {
  for (let memberCount = 2; memberCount <= 12; memberCount += 1) {
    for (let copies = 2; copies <= memberCount; copies += 1) {
      const shape = {
        level: 'raid10',
        memberCount,
        chunkBytes,
        memberBytes: 4 * copies * chunkBytes,
        farSets: 0,
      } as const;
      compileLayout({ ...shape, near: copies, far: 1, offset: false });
      compileLayout({ ...shape, near: 1, far: copies, offset: false });
      compileLayout({ ...shape, near: 1, far: copies, offset: true });
    }
  }
});

test('the inverse of locate is right at any size', () => {
  const geometry = fc
    .record({
      level: fc.constant('raid10' as const),
      memberCount: fc.integer({ min: 2, max: 40 }),
      chunkBytes: fc.integer({ min: 12, max: 24 }).map((power) => 2 ** power),
      memberBytes: fc.integer({ min: 2 ** 20, max: 2 ** 37 }).map((sectors) => sectors * SECTOR),
      near: fc.integer({ min: 1, max: 4 }),
      far: fc.integer({ min: 1, max: 4 }),
      offset: fc.boolean(),
      farSets: fc.constantFrom(0 as const, 1 as const, 2 as const),
    })
    .filter((shape) => refusalOf(() => compileLayout(shape)) === null);
  fc.assert(
    fc.property(geometry, fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (shape, part) => {
      const layout = compileLayout(shape);
      const at = Math.floor((layout.arrayBytes / SECTOR) * part) * SECTOR;
      const extent = layout.locate(at);
      for (const [copy, place] of extent.copies.entries()) {
        const content = layout.contentAt(place.member, place.offsetBytes);
        expect(content).toEqual({ arrayOffsetBytes: at, lengthBytes: extent.lengthBytes, copy });
      }
    }),
    { numRuns: 300 },
  );
});

test('raid10 says why a shape is refused and what would do', () => {
  const shape = {
    level: 'raid10',
    chunkBytes,
    memberBytes: 64 * chunkBytes,
    offset: false,
    farSets: 0,
  } as const;
  const refusal = (more: Partial<Raid10> & Pick<Raid10, 'memberCount' | 'near' | 'far'>) =>
    refusalOf(() => compileLayout({ ...shape, ...more }));

  expect(refusal({ memberCount: 4, near: 1, far: 1 })).toContain('take near=2, or raid0');
  expect(refusal({ memberCount: 3, near: 2, far: 2 })).toContain(
    'has 4 copies and needs as many members, not 3',
  );
  expect(refusal({ memberCount: 5, near: 2, far: 2, offset: true })).toContain(
    'a number of members that 2 divides',
  );
  expect(refusal({ memberCount: 6, near: 1, far: 3, farSets: 1 })).toContain('two copies on one member');
  expect(refusal({ memberCount: 4, near: 1.5, far: 2 })).toContain('whole numbers');
  expect(refusal({ memberCount: 4, near: 1, far: 3, memberBytes: 2 * chunkBytes })).toContain(
    '12 KiB is the least',
  );
});
