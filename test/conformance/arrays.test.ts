/**
 * An array is a device: the suite that judges all devices judges arrays of every level, clean and degraded. Here
 * every level inline and one on the event loop; arrays.slow.test.ts runs all of them on all drivers.
 */
import { arrayNames, conformanceOfArray } from './array-subjects.ts';

for (const name of ['raid5', 'raid6', 'raid10 near'])
  conformanceOfArray(name, 'inline', { only: 'degraded', requests: 30 });
for (const name of arrayNames) {
  conformanceOfArray(name, 'inline', { blockBytes: name === 'raid6' ? 512 : 1, requests: 30, only: 'clean' });
}
conformanceOfArray('raid6', 'event-loop', { requests: 30, only: 'degraded' });
