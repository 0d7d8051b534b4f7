/** What takes longer than parity.test.ts: parity-world.ts says what must hold. */
import { describe, test } from 'vitest';
import { flipHeaders, loseAll } from './parity-world.ts';

describe.each([1, 2] as const)('redundancy %i', (redundancy) => {
  test.each([3, 4, 5, 6, 7, 8])(
    'a group of %i packs: any so many files lost or rotten are read through, and made again',
    (packs) => loseAll(packs, redundancy),
  );

  test('every bit of the header of a parity file flipped: that file is damaged, and nothing else', () =>
    flipHeaders(redundancy, () => [0, 1, 2, 3, 4, 5, 6, 7]));
});
