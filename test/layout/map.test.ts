import { expect, test } from 'vitest';
import type { Geometry } from '../../lib/layout/geometry.ts';
import { drawLayout, formatMap } from '../../lib/layout/map.ts';

const chunkBytes = 4096;

function picture(geometry: Geometry, rows: number): string[] {
  return formatMap(drawLayout(geometry, rows)).split('\n');
}

test('a parity map shows array chunks, P and Q', () => {
  const shape = { memberCount: 5, chunkBytes, memberBytes: 3 * chunkBytes };
  expect(picture({ level: 'raid6', layout: 'ddf-N-continue', ...shape }, 9)).toEqual([
    '       m0  m1  m2  m3  m4',
    'row 0  D0  D1  D2  Q   P',
    'row 1  D4  D5  Q   P   D3',
    'row 2  D8  Q   P   D6  D7',
  ]);
});

test('a far map begins every section, and says where it leaves rows out', () => {
  const shape = { memberCount: 4, chunkBytes, memberBytes: 16 * chunkBytes, offset: false } as const;
  expect(picture({ level: 'raid10', near: 1, far: 2, farSets: 0, ...shape }, 2)).toEqual([
    '       m0   m1   m2   m3',
    'row 0  D0   D1   D2   D3',
    'row 1  D4   D5   D6   D7',
    '...',
    "row 8  D3'  D0'  D1'  D2'",
    "row 9  D7'  D4'  D5'  D6'",
    '...',
  ]);
});

test('a chunk that nothing uses is a dash', () => {
  const shape = { memberCount: 3, chunkBytes, memberBytes: chunkBytes, offset: false } as const;
  expect(picture({ level: 'raid10', near: 2, far: 1, farSets: 0, ...shape }, 1)).toEqual([
    '       m0  m1   m2',
    "row 0  D0  D0'  -",
  ]);
});

test('a raid0 map begins every zone and leaves blank what is past the end of a member', () => {
  const memberBytes = [1, 3, 3].map((chunks) => chunks * chunkBytes);
  expect(picture({ level: 'raid0', chunkBytes, layout: 'original', memberBytes }, 1)).toEqual([
    '       m0  m1  m2',
    'row 0  D0  D1  D2',
    'row 1      D4  D3',
    '...',
  ]);
});

test('levels without chunks are drawn in a unit that divides them', () => {
  const map = drawLayout({ level: 'linear', chunkBytes: 0, memberBytes: [8192, 12288] }, 9);
  expect(map.unitBytes).toBe(4096);
  expect(formatMap(map).split('\n')).toEqual([
    '       m0  m1',
    'row 0  D0  D2',
    'row 1  D1  D3',
    'row 2      D4',
  ]);
  expect(drawLayout({ level: 'raid1', memberCount: 2, memberBytes: 2 ** 30 }, 1).unitBytes).toBe(65536);
});

test('many copies stay apart', () => {
  const map = drawLayout({ level: 'raid1', memberCount: 6, memberBytes: 4096 }, 1);
  expect(map.rows[0]!.cells.map((cell) => cell.label)).toEqual([
    'D0',
    "D0'",
    "D0''",
    "D0'''",
    "D0'4",
    "D0'5",
  ]);
});
