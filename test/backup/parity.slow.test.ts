/** Groups that take longer than those of parity.test.ts: parity-world.ts says what must hold. */
import { describe, test } from 'vitest';
import { loseAll } from './parity-world.ts';

describe.each([1, 2] as const)('redundancy %i', (redundancy) => {
  test.each([3, 4, 5, 6, 7, 8])(
    'a group of %i packs: any so many files lost or rotten are read through, and made again',
    (packs) => loseAll(packs, redundancy),
  );
});
