/** Takes disks out of use. */
import { disksVerb } from '../disks-verb.ts';

export const define = disksVerb({
  operation: 'fail',
  words: 'name (disk1), path or slot number',
  lines: [
    'raidsim fail demo disk1',
    'raidsim fail demo 2',
    'raidsim fail demo demo/disk0.img demo/disk3.img',
  ],
  notes:
    'The last copy of data is never taken: that is refused, exit 4. A spare takes over at once; rebuild then fills it.',
});
