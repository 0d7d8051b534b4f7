/**
 * An array is a device: the suite that judges all devices judges arrays of every level, clean and degraded. Here
 * every level inline, some on the event loop, and one on lanes, where each check costs the birth of two workers;
 * arrays.slow.test.ts runs all of them on all drivers.
 */
import { arrayNames, conformanceOfArray } from './array-subjects.ts';

for (const name of ['raid5', 'raid6', 'raid10 near'])
  conformanceOfArray(name, 'inline', { only: 'degraded', requests: 30 });
for (const name of arrayNames) {
  conformanceOfArray(name, 'inline', { blockBytes: name === 'raid6' ? 512 : 1, requests: 30, only: 'clean' });
}
for (const name of ['linear', 'raid1', 'raid6', 'raid10 offset'])
  conformanceOfArray(name, 'event-loop', { requests: 30, only: name === 'raid6' ? 'degraded' : 'clean' });
conformanceOfArray('raid5', 'lanes', { only: 'degraded', requests: 30 });
