/**
 * The life of an array as md's superblocks tell it: a value, and one pure function for everything that can happen to
 * it. Each returns the next value, in which every member that takes part carries the superblock to write. The array
 * room does the I/O: `superblocksToWrite(before, after)`, in the order that the event calls for.
 *
 *                     startRecovery            finishRecovery
 *      addSpare ──► spare ─────────► recovering ──────────► in_sync ──┐
 *                     │   reAdd ─────────▲                     ▲      │ failMember (from any state)
 *                     └───────────► replacement ───────────────┘      ▼
 *                 startReplacement          finishReplacement       faulty ──► removeMember
 *
 *      clean ──markDirty──► dirty (resync_offset 0) ──checkpointResync──► ... ──markClean──► clean
 *
 * `events` counts updates. md lowers it when an idle array goes back to clean, so that sleeping spares need not be
 * written; ours only rises, which md accepts and which leaves no value that means two things.
 *
 * An update can be cut off with any of the members written and the others not, and then too assembly must come to one
 * of the two states: test/md/update.test.ts cuts histories at every update.
 *
 * A member one event behind is let in by md, and by older kernels in the slot that its *own* superblock claims. So what
 * excludes a member (`failMember`, `finishReplacement`, `recordLoss`) is **two** updates, one after the other, and only
 * then may a write be acknowledged that the member missed: two behind, it is out everywhere (I5). One update that raises
 * events by two would not do: cut off halfway, the members not yet written would be two behind as well, and a raid5
 * with one failed member and one such survivor would not start.
 *
 * A faulty member is never written again: its superblock stays as it was when it failed.
 *
 * What this order protects (the array room keeps it):
 *   markDirty    durable on all members, then the first data write
 *   failMember   both updates durable on all survivors, then the acknowledgement of a write that the failed one missed
 *   checkpoint*  only of data that all members have flushed (I7, I11)
 *   markClean    only after all members flushed (I7)
 */
import { assert, RaidError } from '../errors.ts';
import type { Time } from './record.ts';
import {
  features,
  MEMBER_FEATURES,
  ROLE_FAULTY,
  ROLE_SPARE,
  type Superblock1,
  superblockBytesOf,
  superSectorOf,
  type Version1,
} from './superblock1.ts';

export type MdMemberState =
  | { readonly state: 'in_sync'; readonly slot: number }
  /** Valid for data sectors below `recoveredSectors`; `viaBitmap`: beyond it, only where the bitmap has a bit it is not. */
  | {
      readonly state: 'recovering';
      readonly slot: number;
      readonly recoveredSectors: number;
      readonly viaBitmap: boolean;
    }
  /** Becomes a copy of the member in the same slot, which still works. */
  | { readonly state: 'replacement'; readonly slot: number; readonly recoveredSectors: number }
  | { readonly state: 'spare' }
  | { readonly state: 'faulty' };

export type MdMember = MdMemberState & {
  /** md's device number: for life, while slots come and go. */
  readonly descriptor: number;
  readonly superblock: Superblock1;
};

/** What is alike in the superblocks of all members. */
export type ArrayFields = Pick<
  Superblock1,
  'setUuid' | 'ctime' | 'level' | 'layout' | 'sizeSectors' | 'chunkSectors' | 'raidDisks'
>;

export interface MdArray extends ArrayFields {
  readonly version: Version1;
  /** The feature bits of the array as a whole. */
  readonly featureMap: number;
  readonly events: number;
  /** In sync below; Infinity is clean. Member sectors, but array sectors in raid10. */
  readonly resyncOffsetSectors: number;
  /** Somebody was missing at assembly, and no superblock says so yet: `recordLoss` comes before any other update. */
  readonly hasUnrecordedLoss: boolean;
  /** By descriptor, rising. */
  readonly members: readonly MdMember[];
}

export function arrayFieldsOf(source: ArrayFields): ArrayFields {
  const { setUuid, ctime, level, layout, sizeSectors, chunkSectors, raidDisks } = source;
  return { setUuid, ctime, level, layout, sizeSectors, chunkSectors, raidDisks };
}

/** How many slots have no member that is in sync. */
export function degradedCount(array: MdArray): number {
  return array.raidDisks - array.members.filter((member) => member.state === 'in_sync').length;
}

export function memberIn(array: MdArray, slot: number): MdMember | null {
  const holds = (member: MdMember): boolean =>
    (member.state === 'in_sync' || member.state === 'recovering') && member.slot === slot;
  return array.members.find(holds) ?? null;
}

/**
 * What an update changes for certain: two states of an array with the same witness have no update between them. The count
 * alone would not do: Linux takes one back when an array that was written goes to rest, and then only the time differs.
 */
export function witnessOf(array: MdArray): string {
  const freshest = array.members.find(
    ({ state, superblock }) => state !== 'faulty' && superblock.events === array.events,
  );
  const { seconds, microseconds } = freshest?.superblock.utime ?? { seconds: 0, microseconds: 0 };
  return `${array.events} ${seconds}.${microseconds}`;
}

/** The members whose superblock differs, as values, between two states of an array: those to write. */
export function superblocksToWrite(before: MdArray, after: MdArray): readonly MdMember[] {
  const old = new Map(before.members.map((member) => [member.descriptor, member.superblock]));
  return after.members.filter((member) => member.superblock !== old.get(member.descriptor));
}

/** Before the first write after being clean. Spares sleep on. */
export function markDirty(array: MdArray, utime: Time): MdArray {
  assert(array.level > 0, 'raid0 and linear have no clean and dirty');
  return update(array, { resyncOffsetSectors: 0 }, utime, { spares: false });
}

/** Everything below `inSyncSectors` is in sync, and nothing is in flight there. */
export function checkpointResync(array: MdArray, inSyncSectors: number, utime: Time): MdArray {
  return update(array, { resyncOffsetSectors: inSyncSectors }, utime, { spares: false });
}

export function markClean(array: MdArray, utime: Time): MdArray {
  return checkpointResync(array, Infinity, utime);
}

/**
 * The last update before the members are let go, with how far the array is in sync (Infinity when no resync was
 * cut short). A clean array is left alone: md writes nothing then.
 */
export function stopArray(array: MdArray, inSyncSectors: number, utime: Time): MdArray {
  if (array.resyncOffsetSectors === inSyncSectors) return array;
  return update(array, { resyncOffsetSectors: inSyncSectors }, utime);
}

/** Several updates: each is durable on every member that it concerns before the next is written. */
export type TwoUpdates = readonly [first: MdArray, second: MdArray];
export type ThreeUpdates = readonly [first: MdArray, second: MdArray, third: MdArray];

/** Excludes a member in whatever state. That this is not the last copy is the caller's to know. */
export function failMember(array: MdArray, descriptor: number, utime: Time): TwoUpdates {
  const failed = memberOf(array, descriptor);
  assert(failed.state !== 'faulty', 'a member fails once');
  let members = replaced(array, descriptor, { state: 'faulty' });
  if (failed.state === 'in_sync') members = members.map((member) => promoted(member, failed.slot));
  return twice(update(array, { members }, utime), utime);
}

/** Notes on the members that are here who is not, before the first write that the others miss. */
export function recordLoss(array: MdArray, utime: Time): TwoUpdates {
  return twice(update({ ...array, hasUnrecordedLoss: false }, {}, utime), utime);
}

/** Forgets a member that no slot needs. Its entry becomes that of an unused number. */
export function removeMember(array: MdArray, descriptor: number, utime: Time): MdArray {
  const { state } = memberOf(array, descriptor);
  assert(state === 'spare' || state === 'faulty', 'only a spare or a faulty member is removed');
  return update(
    array,
    { members: array.members.filter((member) => member.descriptor !== descriptor) },
    utime,
  );
}

export interface NewMember {
  readonly memberSectors: number;
  readonly deviceUuid: string;
}

/** The lowest free number from raid_disks on, as md gives out; the same data offset as the others. */
export function addSpare(array: MdArray, added: NewMember, utime: Time): MdArray {
  const taken = new Set(array.members.map((member) => member.descriptor));
  let descriptor = array.raidDisks;
  while (taken.has(descriptor)) descriptor += 1;

  const superblock = { ...superblockForNewcomer(array, added), descriptor };
  const spare: MdMember = { state: 'spare', descriptor, superblock };
  const members = [...array.members, spare].sort((left, right) => left.descriptor - right.descriptor);
  return update(array, { members }, utime);
}

/**
 * Gives an empty slot to a spare. Nothing of it is valid yet, and its own superblock says so *before* any table gives it
 * the slot: the kernel asks the freshest table for the slot of a member one event behind, but the member itself whether
 * it is whole, so a spare that was not reached by the update which promotes it would be in sync with nothing on it.
 */
export function startRecovery(array: MdArray, descriptor: number, slot: number, utime: Time): TwoUpdates {
  assert(memberIn(array, slot) === null, 'a slot is recovered only while it is empty');
  const state: MdMemberState = { state: 'recovering', slot, recoveredSectors: 0, viaBitmap: false };
  return promoteSpare(array, descriptor, state, features.RECOVERY_OFFSET, utime);
}

/**
 * A spare begins to copy the member in a slot that still works. In raid0 and linear what each member gives says where the bytes
 * of the array are: there the spare gives what the original does, however large it is.
 */
export function startReplacement(array: MdArray, descriptor: number, slot: number, utime: Time): TwoUpdates {
  const original = memberIn(array, slot);
  assert(original?.state === 'in_sync', 'only a member in sync is replaced; an empty slot is recovered');
  assert(hasRoomFor(array, descriptor, slot), 'a replacement has room for what its original holds');
  const state: MdMemberState = { state: 'replacement', slot, recoveredSectors: 0 };
  const bits = features.RECOVERY_OFFSET | features.REPLACEMENT;
  if (array.level > 0) return promoteSpare(array, descriptor, state, bits, utime);
  const { dataSectors } = original.superblock;
  const members = array.members.map((each) =>
    each.descriptor === descriptor ? { ...each, superblock: { ...each.superblock, dataSectors } } : each,
  );
  return promoteSpare({ ...array, members }, descriptor, state, bits, utime);
}

/** Whether a spare could replace the member in a slot; above raid0 and linear every spare is large enough. */
export function hasRoomFor(array: MdArray, descriptor: number, slot: number): boolean {
  const needed = memberIn(array, slot)?.superblock.dataSectors ?? 0;
  return array.level > 0 || memberOf(array, descriptor).superblock.dataSectors >= needed;
}

function promoteSpare(
  array: MdArray,
  descriptor: number,
  state: MdMemberState,
  bits: number,
  utime: Time,
): TwoUpdates {
  const spare = memberOf(array, descriptor);
  assert(spare.state === 'spare', 'only a spare takes a slot');
  const featureMap = (spare.superblock.featureMap & ~MEMBER_FEATURES) | bits;
  const told = { ...spare, superblock: { ...spare.superblock, featureMap } };
  const first = update(
    array,
    { members: array.members.map((each) => (each === spare ? told : each)) },
    utime,
  );
  return [first, update(first, { members: replaced(first, descriptor, state) }, utime)];
}

/**
 * Notes how far recovery has come. Behind the progress, not ahead: data below it is flushed on the member (I11).
 */
export function checkpointRecovery(
  array: MdArray,
  descriptor: number,
  recoveredSectors: number,
  utime: Time,
): MdArray {
  const member = memberOf(array, descriptor);
  assert(
    member.state === 'recovering' || member.state === 'replacement',
    'only a recovering member progresses',
  );
  assert(recoveredSectors >= member.recoveredSectors, 'recovery does not go back');
  const { superblock: _, descriptor: __, ...state } = member;
  return update(array, { members: replaced(array, descriptor, { ...state, recoveredSectors }) }, utime);
}

export function finishRecovery(array: MdArray, descriptor: number, utime: Time): MdArray {
  const member = memberOf(array, descriptor);
  assert(member.state === 'recovering', 'only a recovering member is finished');
  const members = replaced(array, descriptor, { state: 'in_sync', slot: member.slot });
  return update(array, { members }, utime);
}

/**
 * The replacement takes the slot, and the old member is faulty from then on. First the replacement's own superblock
 * says that it is whole: if the power went with the old member declared faulty and this not yet written, an array
 * without redundancy left would have lost both.
 */
export function finishReplacement(array: MdArray, descriptor: number, utime: Time): ThreeUpdates {
  const member = memberOf(array, descriptor);
  assert(member.state === 'replacement', 'only a replacement takes over');
  const { slot } = member;
  const old = memberIn(array, slot);
  assert(old !== null, 'a replacement has an original');
  const whole: MdMemberState = { state: 'replacement', slot, recoveredSectors: Infinity };
  const first = update(array, { members: replaced(array, descriptor, whole) }, utime);
  const withoutOld = { ...first, members: replaced(first, old.descriptor, { state: 'faulty' }) };
  const members = replaced(withoutOld, descriptor, { state: 'in_sync', slot });
  return [first, ...twice(update(first, { members }, utime), utime)];
}

export type ReAdd =
  /** It missed nothing. */
  | 'at-once'
  /** It missed only what the bitmap has bits for. */
  | 'via-bitmap'
  /** It has to be added as a new spare. */
  | 'no';

/** Whether a former member can take its slot again; `eventsCleared` is the bitmap's, null without a bitmap. */
export function judgeReAdd(array: MdArray, stale: Superblock1, eventsCleared: number | null): ReAdd {
  const slot = stale.devRoles[stale.descriptor] ?? ROLE_SPARE;
  const free = slot < array.raidDisks && memberIn(array, slot) === null;
  const taken = array.members.some(
    (member) => member.descriptor === stale.descriptor && member.state !== 'faulty',
  );
  const wasInSync = (stale.featureMap & features.RECOVERY_OFFSET) === 0;
  if (stale.setUuid !== array.setUuid || !free || taken || !wasInSync) return 'no';
  // Away while the array grew: of what has come to be since then it has nothing, and the bitmap need not say so.
  if (stale.sizeSectors !== array.sizeSectors) return 'no';
  if (stale.events > array.events) return 'no';
  // Nor has the bitmap bits for what it was given in a history of its own: it has to count on somebody who is in sync.
  const isOfOneHistory = array.members.some(
    (member) => member.state === 'in_sync' && stale.devRoles[member.descriptor] === member.slot,
  );
  if (!isOfOneHistory) return 'no';
  if (stale.events === array.events) return 'at-once';
  return eventsCleared !== null && stale.events >= eventsCleared ? 'via-bitmap' : 'no';
}

/**
 * A former member returns to its slot and number, to recover the chunks that the bitmap names, or nothing. Even then it
 * is `recovering` for one update: `finishRecovery` follows when all others have heard of it.
 */
export function reAdd(array: MdArray, stale: Superblock1, how: Exclude<ReAdd, 'no'>, utime: Time): MdArray {
  const { descriptor } = stale;
  const slot = stale.devRoles[descriptor] ?? ROLE_SPARE;
  assert(slot < array.raidDisks && memberIn(array, slot) === null, 'a member returns to its own empty slot');
  const viaBitmap = how === 'via-bitmap';
  const recoveredSectors = viaBitmap ? 0 : array.sizeSectors;
  const state: MdMemberState = { state: 'recovering', slot, recoveredSectors, viaBitmap };
  const others = array.members.filter((member) => member.descriptor !== descriptor);
  const members = [...others, { ...state, descriptor, superblock: stale }].sort(
    (left, right) => left.descriptor - right.descriptor,
  );
  return update(array, { members }, utime);
}

/** Whether the member's bad-block log has entries; the log itself is written in the same step. */
export function setBadBlocks(
  array: MdArray,
  descriptor: number,
  hasBadBlocks: boolean,
  utime: Time,
): MdArray {
  const logged = memberOf(array, descriptor);
  const members = array.members.map((member) => {
    if (member !== logged) return member;
    const bits = member.superblock.featureMap & ~features.BADBLOCKS;
    const featureMap = hasBadBlocks ? bits | features.BADBLOCKS : bits;
    return { ...member, superblock: { ...member.superblock, featureMap } };
  });
  return update(array, { members }, utime, { spares: false });
}

/**
 * The same events on every member that takes part, before any update raises them: a life may begin with some members one
 * event behind, which the update that was cut off did not reach. Left there, they would be two behind, and out, if
 * the next update were cut off as well; and while they say "clean", what is written must not trust them to say "dirty".
 * They get the freshest member's words, and its table but for who is here: that may be one whom a table that was cut off
 * had already dropped, and who was let in all the same. Whoever is missing is put on record after this.
 */
export function level(array: MdArray): MdArray {
  const freshest = array.members.find(
    (member) => member.state !== 'faulty' && member.superblock.events === array.events,
  );
  assert(freshest !== undefined, 'events are those of a member');
  const told = withSuperblocks(array, freshest.superblock.utime).members;
  const { resyncOffsetSectors } = freshest.superblock;
  const known = devRolesOf(array);
  const here = new Set(array.members.map(({ descriptor }) => descriptor));
  const devRoles = known.map((role, number) =>
    here.has(number) ? role : (freshest.superblock.devRoles[number] ?? role),
  );
  const members = array.members.map((member, at) => {
    const superblock = told[at]?.superblock;
    if (member.state === 'faulty' || member.state === 'spare' || superblock === undefined) return member;
    const { events, devRoles: own, featureMap, recoveryOffsetSectors } = member.superblock;
    // A copy that starts over is on record as one before what its original holds changes.
    const isKnown =
      featureMap === superblock.featureMap && recoveryOffsetSectors === superblock.recoveryOffsetSectors;
    const isLevel =
      events === array.events &&
      (isKnown || member.state !== 'replacement') &&
      devRoles.every((role, number) => role === (own[number] ?? ROLE_SPARE));
    return isLevel ? member : { ...member, superblock: { ...superblock, devRoles, resyncOffsetSectors } };
  });
  return { ...array, members };
}

/**
 * A later step of a change, when these members have failed while an earlier one was written, and that is on record: `now` is what is. Whom
 * the step puts out for one of them stays: a replacement that fails as it takes over leaves its original, which may be the last copy.
 */
export function withoutMembers(
  step: MdArray,
  descriptors: readonly number[],
  now: MdArray,
  utime: Time,
): MdArray {
  let { members } = step;
  for (const descriptor of descriptors) {
    const failed = members.find((member) => member.descriptor === descriptor);
    if (failed === undefined || failed.state === 'faulty') continue;
    members = replaced({ ...step, members }, descriptor, { state: 'faulty' });
    if (failed.state !== 'in_sync') continue;
    const { slot } = failed;
    const original = now.members.find((member) => member.state === 'in_sync' && member.slot === slot);
    members = members.map((member) =>
      member.descriptor === original?.descriptor ? original : promoted(member, slot),
    );
  }
  return update({ ...step, events: now.events }, { members }, utime);
}

/** Writes the state as it is once more: the first update after an assembly that changed something. */
export function confirm(array: MdArray, utime: Time): MdArray {
  return update(array, {}, utime);
}

/** The roles table that every member carries. */
export function devRolesOf(array: MdArray): readonly number[] {
  const highest = array.members.reduce((max, member) => Math.max(max, member.descriptor), 0);
  const lengths = array.members.map((member) => member.superblock.devRoles.length);
  const roles = Array.from({ length: Math.max(maxDevFor(highest + 1), ...lengths) }, () => ROLE_SPARE);
  for (const member of array.members) {
    if (member.state === 'faulty') roles[member.descriptor] = ROLE_FAULTY;
    else if (member.state !== 'spare') roles[member.descriptor] = member.slot;
  }
  return roles;
}

/** The table's length as mdadm makes it: whole sectors, so 128 up to 128 devices. */
export function maxDevFor(deviceCount: number): number {
  return (superblockBytesOf(deviceCount) - 256) / 2;
}

/** Every structural claim about an array in one place; called after each transition. */
export function assertMdArray(array: MdArray): void {
  const slots = new Set<number>();
  let last = -1;
  for (const member of array.members) {
    assert(member.descriptor > last, 'members are in order of their numbers, and no number occurs twice');
    last = member.descriptor;
    if (member.state === 'in_sync' || member.state === 'recovering') {
      assert(member.slot >= 0 && member.slot < array.raidDisks, 'a slot is below raid_disks');
      assert(!slots.has(member.slot), 'a slot has one member');
      slots.add(member.slot);
    }
  }
  for (const member of array.members) {
    if (member.state === 'replacement') {
      assert(slots.has(member.slot), 'a replacement has an original');
    }
  }
  assert(Number.isSafeInteger(array.events), 'events is a count');
}

interface UpdateOptions {
  /** False for a change between clean and dirty, which sleeping spares need not hear of. */
  readonly spares?: boolean;
}

type Changes = Partial<Pick<MdArray, 'resyncOffsetSectors' | 'members'>>;

function update(array: MdArray, changes: Changes, utime: Time, options: UpdateOptions = {}): MdArray {
  assert(!array.hasUnrecordedLoss, 'a loss is recorded before anything else');
  const changed: MdArray = { ...array, ...changes, events: array.events + 1 };
  assertMdArray(changed);
  return withSuperblocks(changed, utime, options.spares ?? true);
}

function twice(first: MdArray, utime: Time): TwoUpdates {
  return [first, update(first, {}, utime)];
}

/** The array with the superblocks that tell its state; also how a new array gets its first ones. */
export function withSuperblocks(array: MdArray, utime: Time, spares = true): MdArray {
  const devRoles = devRolesOf(array);
  const shared = arrayFieldsOf(array);
  const members = array.members.map((member) => {
    if (member.state === 'faulty' || (member.state === 'spare' && !spares)) return member;
    const superblock: Superblock1 = {
      ...member.superblock,
      ...shared,
      featureMap: (array.featureMap & ~MEMBER_FEATURES) | memberFeatures(member),
      recoveryOffsetSectors: recoveryOffsetOf(member),
      descriptor: member.descriptor,
      events: array.events,
      resyncOffsetSectors: array.resyncOffsetSectors,
      utime,
      devRoles,
    };
    return { ...member, superblock };
  });
  return { ...array, members };
}

function memberFeatures(member: MdMember): number {
  const kept = member.superblock.featureMap & (features.BADBLOCKS | features.NEW_OFFSET);
  switch (member.state) {
    case 'recovering':
      return kept | features.RECOVERY_OFFSET | (member.viaBitmap ? features.RECOVERY_BITMAP : 0);
    case 'replacement': {
      const copying = member.recoveredSectors === Infinity ? 0 : features.RECOVERY_OFFSET;
      return kept | features.REPLACEMENT | copying;
    }
    case 'spare':
      // Set while it is about to take a slot.
      return kept | (member.superblock.featureMap & (features.RECOVERY_OFFSET | features.REPLACEMENT));
    default:
      return kept;
  }
}

function recoveryOffsetOf(member: MdMember): number {
  if (member.state !== 'recovering' && member.state !== 'replacement') return 0;
  return member.recoveredSectors === Infinity ? 0 : member.recoveredSectors;
}

function memberOf(array: MdArray, descriptor: number): MdMember {
  const member = array.members.find((each) => each.descriptor === descriptor);
  if (member === undefined)
    throw new RaidError('NO_SUCH_MEMBER', `the array has no device number ${descriptor}`);
  return member;
}

function replaced(array: MdArray, descriptor: number, state: MdMemberState): readonly MdMember[] {
  return array.members.map((member) =>
    member.descriptor === descriptor ? { ...state, descriptor, superblock: member.superblock } : member,
  );
}

/**
 * A replacement whose original is gone goes on as the member of that slot. What it has copied counts for nothing, unless it is whole:
 * writes of the moment of failure may have reached neither, and until the array gives it the slot others pass it by.
 */
function promoted(member: MdMember, slot: number): MdMember {
  if (member.state !== 'replacement' || member.slot !== slot) return member;
  const { descriptor, superblock, recoveredSectors } = member;
  if (recoveredSectors === Infinity) return { state: 'in_sync', slot, descriptor, superblock };
  return { state: 'recovering', slot, recoveredSectors: 0, viaBitmap: false, descriptor, superblock };
}

/** Placed like an existing member. `bitmap_offset` and the like are relative to the superblock, so they carry over. */
function superblockForNewcomer(array: MdArray, added: NewMember): Superblock1 {
  const model = array.members.find((member) => member.state === 'in_sync');
  if (model === undefined)
    throw new RaidError(
      'ARRAY_FAILED',
      'no member is in sync: nobody is left who says what a member is like',
    );
  const superSector = superSectorOf(array.version, added.memberSectors);
  const { dataOffsetSectors } = model.superblock;
  const roomSectors =
    (superSector === null ? 0 : dataEndOf(array, model, superSector, added)) - dataOffsetSectors;
  if (superSector === null || roomSectors < Math.max(array.sizeSectors, 10)) {
    const neededSectors = dataOffsetSectors + array.sizeSectors;
    throw new RaidError(
      'BAD_ARGUMENT',
      `the device has ${added.memberSectors} sectors, too few: a member of this array needs ${neededSectors} and its metadata`,
      { device: added.deviceUuid },
    );
  }
  return {
    ...model.superblock,
    superSector,
    dataSectors: roomSectors,
    deviceUuid: added.deviceUuid,
    featureMap: model.superblock.featureMap & ~MEMBER_FEATURES,
    correctedReads: 0,
    flags: 0,
  };
}

/** 1.0 keeps its areas between data and superblock, 1.1 and 1.2 before the data. */
function dataEndOf(array: MdArray, model: MdMember, superSector: number, added: NewMember): number {
  if (array.version !== '1.0') return added.memberSectors;
  const { superSector: modelSuper, dataOffsetSectors, dataSectors } = model.superblock;
  return superSector - (modelSuper - dataOffsetSectors - dataSectors);
}

/**
 * More of each member is used from now on. `syncedSectors`: up to where redundancy is known to be right. In two updates:
 * a member that misses the second then has the room that the new shape needs, and can follow it (`hasYetToGrow`).
 */
export function growSize(
  array: MdArray,
  sizeSectors: number,
  dataSectorsOf: (member: MdMember) => number,
  syncedSectors: number,
  utime: Time,
): TwoUpdates {
  assert(sizeSectors >= array.sizeSectors, 'an array that grows does not shrink');
  const members = array.members.map((member) => ({
    ...member,
    superblock: { ...member.superblock, dataSectors: dataSectorsOf(member) },
  }));
  const roomy = update({ ...array, members }, {}, utime);
  return [roomy, update({ ...roomy, sizeSectors }, { resyncOffsetSectors: syncedSectors }, utime)];
}

/** Whether a member that describes the array otherwise has only missed the update in which the array grew. */
export function hasYetToGrow(
  member: ArrayFields & { readonly events: number; readonly dataSectors: number },
  array: ArrayFields & { readonly events: number },
): boolean {
  return (
    member.events === array.events - 1 &&
    array.level > 0 &&
    member.sizeSectors <= array.sizeSectors &&
    array.sizeSectors <= member.dataSectors &&
    (member.raidDisks === array.raidDisks || (array.level === 1 && member.raidDisks < array.raidDisks))
  );
}

/** A mirror with more slots; the new ones are empty until a spare takes them. */
export function addSlots(array: MdArray, raidDisks: number, utime: Time): MdArray {
  assert(array.level === 1 && raidDisks > array.raidDisks, 'only a mirror gets slots without a reshape');
  return update({ ...array, raidDisks }, {}, utime);
}
