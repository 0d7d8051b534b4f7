/** Lives of arrays for tests, step by step: what md/update.ts can make of an array, and what its disks hold meanwhile. */
import { type Candidate, isEnough } from '../../lib/md/assemble.ts';
import { claimOf } from '../../lib/md/member.ts';
import { newArray } from '../../lib/md/placement.ts';
import {
  decodeSuperblock1,
  encodeSuperblock1,
  type Superblock1,
  type Version1,
} from '../../lib/md/superblock1.ts';
import {
  addSpare,
  checkpointRecovery,
  degradedCount,
  failMember,
  finishRecovery,
  finishReplacement,
  growSize,
  judgeReAdd,
  type MdArray,
  type MdMember,
  markClean,
  markDirty,
  memberIn,
  reAdd,
  removeMember,
  startRecovery,
  startReplacement,
} from '../../lib/md/update.ts';
import { someTime as now, uuidOf } from './images.ts';

export const MEMBER_SECTORS = 32768;
/** What the files of a history have room for: each of its steps may be one to grow by. */
export const GROWN_SECTORS = MEMBER_SECTORS + 25 * 128;

export function startOf(
  level: number,
  raidDisks: number,
  spares: number,
  version: Version1 = '1.2',
): MdArray {
  const count = raidDisks + spares;
  return newArray({
    version,
    numbers: {
      level,
      layout: { 5: 2, 6: 2, 10: 0x102 }[level] ?? 0,
      raidDisks,
      chunkSectors: level === 1 ? 0 : 128,
    },
    consistency: { policy: 'resync' },
    memberSectors: Array.from({ length: count }, () => MEMBER_SECTORS),
    setUuid: uuidOf(1),
    setName: 'host:t',
    ctime: now,
    deviceUuids: Array.from({ length: count }, (_, index) => uuidOf(10 + index)),
    firstSync: 'clean',
  }).array;
}

export const kinds = [
  'dirty',
  'clean',
  'fail',
  'remove',
  'recover',
  'progress',
  'finish',
  'add',
  'replace',
  'return',
  'grow',
] as const;
export type Step = (typeof kinds)[number];

/** By device uuid: what was last written to each disk that ever belonged to the array. */
export type Disks = Map<string, Superblock1>;

export function writeAll(disks: Disks, array: MdArray): void {
  for (const { superblock } of array.members) disks.set(superblock.deviceUuid, superblock);
}

export function candidatesOn(disks: Disks): readonly Candidate[] {
  return [...disks].map(([name, superblock]) => {
    const read = decodeSuperblock1(encodeSuperblock1(superblock));
    return { name, identity: name, claim: claimOf({ version: '1.2', superblock: read }, GROWN_SECTORS) };
  });
}

function survives(array: MdArray, failing: MdMember): boolean {
  const present = Array.from({ length: array.raidDisks }, (_, slot) =>
    array.members.some((each) => each !== failing && each.state === 'in_sync' && each.slot === slot),
  );
  return isEnough(array, present);
}

/**
 * The updates of one step, or the array as it is where the step makes no sense. `pick` chooses among the members (or
 * disks) that the step could be about, `added` names a newcomer.
 */
export function advance(
  array: MdArray,
  step: Step,
  added: number,
  disks: Disks,
  pick = 0,
): readonly MdArray[] {
  const some = <T>(from: readonly T[]): T | undefined => from[pick % Math.max(1, from.length)];
  const one = (state: MdMember['state']): MdMember | undefined =>
    some(array.members.filter((member) => member.state === state));
  const [inSync, spare, recovering, faulty] = [
    one('in_sync'),
    one('spare'),
    one('recovering'),
    one('faulty'),
  ];
  const slots = Array.from({ length: array.raidDisks }, (_, slot) => slot);
  const empty = some(slots.filter((slot) => memberIn(array, slot) === null));
  switch (step) {
    case 'dirty':
      return array.resyncOffsetSectors === Infinity ? [markDirty(array, now)] : [array];
    case 'clean':
      return array.resyncOffsetSectors === Infinity ? [array] : [markClean(array, now)];
    case 'fail':
      return inSync !== undefined && survives(array, inSync)
        ? failMember(array, inSync.descriptor, now)
        : [array];
    case 'replace': {
      const copying = array.members.find((member) => member.state === 'replacement');
      if (copying !== undefined) return finishReplacement(array, copying.descriptor, now);
      if (inSync?.state !== 'in_sync' || spare === undefined) return [array];
      return startReplacement(array, spare.descriptor, inSync.slot, now);
    }
    case 'return': {
      const present = new Set(array.members.map(({ superblock }) => superblock.deviceUuid));
      const gone = some([...disks.values()].filter((superblock) => !present.has(superblock.deviceUuid)));
      const how = gone === undefined ? 'no' : judgeReAdd(array, gone, 0);
      return gone === undefined || how === 'no' ? [array] : [reAdd(array, gone, how, now)];
    }
    case 'remove':
      return faulty === undefined ? [array] : [removeMember(array, faulty.descriptor, now)];
    case 'recover':
      return spare === undefined || empty === undefined
        ? [array]
        : startRecovery(array, spare.descriptor, empty, now);
    case 'progress':
      return recovering === undefined
        ? [array]
        : [checkpointRecovery(array, recovering.descriptor, 4096, now)];
    case 'finish':
      return recovering === undefined ? [array] : [finishRecovery(array, recovering.descriptor, now)];
    case 'add':
      return [addSpare(array, { memberSectors: GROWN_SECTORS, deviceUuid: uuidOf(100 + added) }, now)];
    case 'grow': {
      const isWhole = array.members.every(({ state }) => state === 'in_sync' || state === 'spare');
      if (!isWhole || degradedCount(array) > 0 || array.resyncOffsetSectors !== Infinity) return [array];
      const sizeSectors = array.sizeSectors + 128;
      const roomOf = ({ superblock }: MdMember): number => Math.max(superblock.dataSectors, sizeSectors);
      return growSize(array, sizeSectors, roomOf, array.sizeSectors, now);
    }
  }
}
