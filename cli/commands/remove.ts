/** Lets go of disks. */
import { disksVerb } from '../disks-verb.ts';

export const define = disksVerb({
  operation: 'remove',
  words: 'name (disk1) or path',
  lines: ['raidsim remove demo disk1', 'raidsim fail demo disk1 && raidsim remove demo disk1'],
  notes: 'A disk that is in use has to be failed first. Its file stays, with what it holds.',
});
