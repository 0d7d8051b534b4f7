/** The law of log-law.ts for every layout of raid5, on 3 to 5 members, every range of sectors in two rows. */
import { describe, expect, test } from 'vitest';
import { COLUMNS, judgeShape, names } from './log-law.ts';

describe.each(names)('%s', (name) => {
  test.each([3, 4, 5])('of %i: every crash of every logged write leaves rows that the log mends', (count) => {
    // On five members only ranges that begin and end near the edge of a chunk, or in its middle.
    const isAsked = (...ends: number[]): boolean =>
      count < 5 || ends.every((at) => [0, 1, 4, COLUMNS - 1].includes(at % COLUMNS));
    expect(judgeShape(name, count, isAsked)).toBeGreaterThan(50_000);
  });
});
