/** All of what arrays.test.ts runs a part of, with longer histories. */
import { drivers } from '../engine/members.ts';
import { arrayNames, conformanceOfArray } from './array-subjects.ts';

for (const driver of drivers) {
  for (const name of arrayNames) {
    for (const blockBytes of [1, 4096]) conformanceOfArray(name, driver, { blockBytes, requests: 150 });
  }
}
