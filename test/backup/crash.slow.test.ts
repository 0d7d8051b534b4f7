/** Killed at every operation on the store: crash-world.ts says what must hold. */
import { describe, expect, test } from 'vitest';
import { casesFor, killEverywhere } from './crash-world.ts';

const all = [...casesFor(0), ...casesFor(1), ...casesFor(2), ...casesFor(2, 'sesame')];

describe.each(all)('$title', (testCase) => {
  test('is killed at every operation, and nothing is lost', async () => {
    const { operations, stores } = await killEverywhere(testCase);
    expect(operations).toBeGreaterThan(25);
    expect(stores).toBeGreaterThan(8);
  });
});
