import { expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import { type ParityGeometry, raid5Layouts, raid6Layouts } from '../../lib/layout/geometry.ts';
import { type DirectRow, refusalOf, violationOfParity } from './laws.ts';

const chunkBytes = 4096;

/** P and data of a raid5 layout, by md's number. */
function directRaid5(layout: number, n: number, r: number): { p: number; data: number[] } {
  const x = r % n;
  const p = [n - 1 - x, x, n - 1 - x, x, 0, n - 1][layout]!;
  const data = Array.from({ length: n - 1 }, (_, j) => {
    if (layout === 4) return j + 1;
    if (layout === 5) return j;
    return layout < 2 ? (j < p ? j : j + 1) : (p + 1 + j) % n;
  });
  return { p, data };
}

function directRaid6(layout: number, n: number, r: number): DirectRow {
  const x = r % n;
  let p: number;
  let q: number;
  let data: number[];
  if (layout >= 16) {
    ({ p, data } = directRaid5(layout - 16, n - 1, r));
    q = n - 1;
  } else {
    p = { 1: x, 3: x, 4: 0, 5: n - 2, 8: x, 9: n - 1 - ((r + 1) % n) }[layout] ?? n - 1 - x;
    q = layout === 10 ? (p + n - 1) % n : (p + 1) % n;
    data = Array.from({ length: n - 2 }, (_, j) => {
      if (layout === 2 || layout === 3) return (p + 2 + j) % n;
      if (layout === 4) return j + 2;
      if (layout === 5) return j;
      if (layout === 10) return (p + 1 + j) % n;
      if (p === n - 1) return j + 1;
      return j < p ? j : j + 2;
    });
  }

  const indexAt = (member: number): number | null =>
    member === p || member === q ? null : data.indexOf(member);
  const isDdf = layout >= 8 && layout <= 10;
  const qOrder = Array.from({ length: n }, (_, i) => indexAt(isDdf ? i : (q + 1 + i) % n));
  return { p, q, data, qOrder: isDdf ? qOrder : qOrder.filter((index) => index !== null) };
}

function direct(geometry: ParityGeometry, r: number): DirectRow {
  const n = geometry.memberCount;
  if (geometry.level === 'raid6') return directRaid6(raid6Layouts[geometry.layout], n, r);
  const { p, data } = directRaid5(geometry.level === 'raid4' ? 5 : raid5Layouts[geometry.layout], n, r);
  return { p, q: null, data, qOrder: data.map((_, j) => j) };
}

function* geometries(): Generator<ParityGeometry> {
  for (let memberCount = 2; memberCount <= 9; memberCount += 1) {
    // Two periods and a bit, and a bit more that is no whole chunk.
    const shape = { memberCount, chunkBytes, memberBytes: (2 * memberCount + 1) * chunkBytes + 512 };
    yield { level: 'raid4', ...shape };
    for (const layout of Object.keys(raid5Layouts) as (keyof typeof raid5Layouts)[]) {
      yield { level: 'raid5', layout, ...shape };
    }
    if (memberCount < 4) continue;
    for (const layout of Object.keys(raid6Layouts) as (keyof typeof raid6Layouts)[]) {
      yield { level: 'raid6', layout, ...shape };
    }
  }
}

test('raid4, raid5 and raid6 deal every row as md does, in all layouts and with 2 to 9 members', () => {
  let arrays = 0;
  for (const geometry of geometries()) {
    const layout = compileLayout(geometry);
    const rows = Array.from({ length: layout.rowCount }, (_, row) => row);
    expect(
      violationOfParity(layout, rows, (row) => direct(geometry, row)),
      JSON.stringify(geometry),
    ).toBeNull();

    const parityCount = geometry.level === 'raid6' ? 2 : 1;
    expect(layout.rowCount).toBe(2 * geometry.memberCount + 1);
    expect(layout.arrayBytes).toBe(layout.rowCount * chunkBytes * (geometry.memberCount - parityCount));
    expect(layout.memberBytes).toEqual(new Array(geometry.memberCount).fill(layout.rowCount * chunkBytes));
    expect([layout.dataCount, layout.parityCount]).toEqual([geometry.memberCount - parityCount, parityCount]);
    arrays += 1;
  }
  expect(arrays).toBe(8 * 7 + 6 * 14);
});

test('rows far beyond 32 bits follow the same rule', () => {
  const far = 2 ** 36;
  for (const geometry of geometries()) {
    const layout = compileLayout({ ...geometry, memberBytes: 2 ** 49 });
    const rows = Array.from({ length: 2 * geometry.memberCount }, (_, row) => far + row);
    expect(
      violationOfParity(layout, rows, (row) => direct(geometry, row)),
      JSON.stringify(geometry),
    ).toBeNull();
  }
});

test('a pattern of rows is one object, wherever it comes again', () => {
  for (const geometry of geometries()) {
    const layout = compileLayout(geometry);
    const distinct = new Set(Array.from({ length: layout.rowCount }, (_, row) => layout.row(row)));
    expect(distinct.size).toBeLessThanOrEqual(geometry.memberCount);
  }
});

test('raid5 left-symmetric can be checked by hand', () => {
  const layout = compileLayout({
    level: 'raid5',
    layout: 'left-symmetric',
    memberCount: 4,
    chunkBytes,
    memberBytes: 4 * chunkBytes,
  });
  expect(layout.row(1)).toEqual({ data: [3, 0, 1], p: 2, q: null, qOrder: [0, 1, 2] });
  expect([0, 1, 2, 3].map((member) => layout.cellAt(member, 1))).toEqual([
    { kind: 'data', index: 1 },
    { kind: 'data', index: 2 },
    { kind: 'p' },
    { kind: 'data', index: 0 },
  ]);
});

test('the ddf layouts leave the places of P and Q empty in Q order', () => {
  const shape = { memberCount: 5, chunkBytes, memberBytes: 5 * chunkBytes };
  const layout = compileLayout({ level: 'raid6', layout: 'ddf-N-continue', ...shape });
  expect(layout.row(1)).toEqual({ data: [4, 0, 1], p: 3, q: 2, qOrder: [1, 2, null, null, 0] });
});

test('raid6 holds 254 data chunks and no more, in ddf layouts 253', () => {
  const shape = { chunkBytes, memberBytes: chunkBytes };
  expect(
    compileLayout({ level: 'raid6', layout: 'left-symmetric', memberCount: 256, ...shape }).dataCount,
  ).toBe(254);
  expect(
    compileLayout({ level: 'raid6', layout: 'ddf-N-restart', memberCount: 255, ...shape }).dataCount,
  ).toBe(253);
  expect(
    refusalOf(() => compileLayout({ level: 'raid6', layout: 'ddf-N-restart', memberCount: 256, ...shape })),
  ).toContain('255 members at most');
});
