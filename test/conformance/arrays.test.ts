/**
 * An array is a device: the suite that judges all devices judges arrays of every level, clean and degraded. Every level
 * inline and on the event loop; on lanes, where each check costs the birth of two workers, one of each family.
 * arrays.slow.test.ts runs all of them on all drivers.
 */
import { arrayNames, conformanceOfArray } from './array-subjects.ts';

for (const name of arrayNames) {
  conformanceOfArray(name, 'inline', { blockBytes: name === 'raid6' ? 512 : 1, requests: 40 });
  conformanceOfArray(name, 'event-loop', { requests: 30, only: name === 'raid5' ? 'degraded' : 'clean' });
}
conformanceOfArray('raid5', 'lanes', { only: 'degraded', requests: 30 });
conformanceOfArray('raid10 far', 'lanes', { blockBytes: 512, only: 'clean', requests: 30 });
