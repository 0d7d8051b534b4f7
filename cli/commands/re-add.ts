/** Brings former disks back. */
import { disksVerb } from '../disks-verb.ts';

export const define = disksVerb({
  operation: 'reAdd',
  words: 'name (disk1) or path',
  lines: ['raidsim re-add demo disk1'],
  notes: `With a bitmap (create --bitmap internal) a disk that was away gets only what was written meanwhile. Where that cannot
be known it is refused, exit 4, and has to be added as a new disk.`,
});
