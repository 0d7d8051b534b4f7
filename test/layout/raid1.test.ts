import { expect, test } from 'vitest';
import { compileLayout } from '../../lib/layout/compile.ts';
import { SECTOR, violationOfCopies } from './laws.ts';

test('raid1 has every sector at the same place on all members', () => {
  for (let memberCount = 1; memberCount <= 9; memberCount += 1) {
    const layout = compileLayout({ level: 'raid1', memberCount, memberBytes: 37 * SECTOR });
    const violation = violationOfCopies(layout, (sector) =>
      Array.from({ length: memberCount }, (_, member) => [member, sector] as const),
    );
    expect(violation, `${memberCount} members`).toBeNull();
    expect(layout.arrayBytes).toBe(37 * SECTOR);
    expect(layout.copyCount).toBe(memberCount);
  }
});
