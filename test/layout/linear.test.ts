import { expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import { listsOf, refusalOf, SECTOR, violationOfCopies } from './laws.ts';

test('linear joins members end to end, each rounded down to whole chunks', () => {
  let arrays = 0;
  for (const chunk of [0, 1, 3, 8]) {
    for (const memberCount of [1, 2, 3, 4]) {
      for (const sizes of listsOf([8, 9, 16, 23, 31], memberCount)) {
        const used = sizes.map((size) => (chunk === 0 ? size : size - (size % chunk)));
        const layout = compileLayout({
          level: 'linear',
          chunkBytes: chunk * SECTOR,
          memberBytes: sizes.map((size) => size * SECTOR),
        });
        const violation = violationOfCopies(layout, (sector) => {
          let member = 0;
          while (sector >= used[member]!) sector -= used[member++]!;
          return [[member, sector]];
        });
        expect(violation, `${sizes} chunk ${chunk}`).toBeNull();
        expect(layout.arrayBytes).toBe(used.reduce((a, b) => a + b) * SECTOR);
        expect(layout.memberBytes).toEqual(used.map((sectors) => sectors * SECTOR));
        arrays += 1;
      }
    }
  }
  expect(arrays).toBe(4 * (5 + 25 + 125 + 625));
});

test('an extent of linear runs to the end of its member, whatever the chunk', () => {
  const layout = compileLayout({ level: 'linear', chunkBytes: 16384, memberBytes: [102400, 65536, 81920] });
  expect(layout.locate(0).lengthBytes).toBe(98304);
  expect(layout.locate(98304)).toEqual({
    arrayOffsetBytes: 98304,
    lengthBytes: 65536,
    copies: [{ member: 1, offsetBytes: 0 }],
  });
});

test('linear refuses a member that would give nothing', () => {
  const refusal = refusalOf(() =>
    compileLayout({ level: 'linear', chunkBytes: 65536, memberBytes: [131072, 65024] }),
  );
  expect(refusal).toContain('member 1');
  expect(refusal).toContain('64 KiB');
  expect(refusalOf(() => compileLayout({ level: 'linear', chunkBytes: 0, memberBytes: [0] }))).toContain(
    'member 0',
  );
  expect(refusalOf(() => compileLayout({ level: 'linear', chunkBytes: 0, memberBytes: [] }))).toContain(
    '1 member',
  );
});
