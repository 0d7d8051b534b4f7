/**
 * Arrays of every level, on every driver, against a plain memory model (history.ts), and no byte may ever differ. A
 * failure prints the seed and the path of fast-check;
 * `RAIDSIM_SEED=n RAIDSIM_PATH=p npx vitest run test/array/model.test.ts -t '<title>'` replays it.
 */
import { describe, test } from 'vitest';
import { drivers } from '../engine/members.ts';
import { neverDiffers, shapes } from './history.ts';

for (const driver of drivers) {
  describe(`on ${driver}`, () => {
    for (const [title, geometry] of shapes) {
      test(`${title} never differs from plain memory`, () =>
        neverDiffers(geometry, driver, driver === 'lanes' ? 1 : 6));
    }
  });
}
