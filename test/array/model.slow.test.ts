/** The histories of model.test.ts, some hundred of each. */
import { describe, test } from 'vitest';
import { drivers } from '../engine/members.ts';
import { neverDiffers, shapes } from './history.ts';

for (const driver of drivers) {
  describe(`on ${driver}`, () => {
    for (const [title, geometry] of shapes) {
      test(`${title} never differs from plain memory`, () =>
        neverDiffers(geometry, driver, driver === 'lanes' ? 40 : 200));
    }
  });
}
