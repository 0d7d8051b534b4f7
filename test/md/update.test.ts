import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { InvariantViolation, RaidError } from '../../lib/errors.ts';
import { assemble } from '../../lib/md/assemble.ts';
import { newArray } from '../../lib/md/placement.ts';
import {
  decodeSuperblock1,
  encodeSuperblock1,
  features,
  ROLE_FAULTY,
  ROLE_SPARE,
  superblock1Faults,
} from '../../lib/md/superblock1.ts';
import {
  addSpare,
  checkpointRecovery,
  checkpointResync,
  degradedCount,
  failMember,
  finishRecovery,
  finishReplacement,
  judgeReAdd,
  level,
  type MdArray,
  markClean,
  markDirty,
  memberIn,
  reAdd,
  recordLoss,
  removeMember,
  setBadBlocks,
  startRecovery,
  startReplacement,
  stopArray,
  superblocksToWrite,
} from '../../lib/md/update.ts';
import { advance, candidatesOn, type Disks, kinds, MEMBER_SECTORS, startOf, writeAll } from './histories.ts';
import { someTime as now, uuidOf } from './images.ts';

function raid5(spares = 1): MdArray {
  return startOf(5, 3, spares);
}

function entries(array: MdArray): readonly number[] {
  return array.members.find(({ state }) => state === 'in_sync')?.superblock.devRoles.slice(0, 6) as number[];
}

describe('events', () => {
  test('a clean or dirty array is one update further, sleeping spares left alone', () => {
    const clean = raid5();
    const dirty = markDirty(clean, now);
    expect(dirty).toMatchObject({ events: 1, resyncOffsetSectors: 0 });
    expect(superblocksToWrite(clean, dirty).map(({ descriptor }) => descriptor)).toEqual([0, 1, 2]);
    const again = markClean(dirty, now);
    expect(again).toMatchObject({ events: 2, resyncOffsetSectors: Infinity });
    expect(stopArray(again, Infinity, now)).toBe(again);
    const stopped = stopArray(checkpointResync(dirty, 4096, now), Infinity, now);
    expect(superblocksToWrite(dirty, stopped)).toHaveLength(4);
  });

  test('a failure puts the failed member two behind, and never writes it again', () => {
    const before = markDirty(raid5(), now);
    const [first, after] = failMember(before, 1, now);
    expect([first.events, after.events]).toEqual([before.events + 1, before.events + 2]);
    expect(superblocksToWrite(before, first).map(({ descriptor }) => descriptor)).toEqual([0, 2, 3]);
    expect(superblocksToWrite(before, after).map(({ descriptor }) => descriptor)).toEqual([0, 2, 3]);
    expect(entries(after)).toEqual([0, ROLE_FAULTY, 2, ROLE_SPARE, ROLE_SPARE, ROLE_SPARE]);
    expect(degradedCount(after)).toBe(1);
    const gone = removeMember(after, 1, now);
    expect(entries(gone)[1]).toBe(ROLE_SPARE);
  });

  test('after an assembly without a member its loss is recorded before anything else', () => {
    const before = { ...raid5(), hasUnrecordedLoss: true };
    expect(() => markDirty(before, now)).toThrow(InvariantViolation);
    const [, recorded] = recordLoss(before, now);
    expect(recorded.events).toBe(before.events + 2);
    expect(markDirty(recorded, now).events).toBe(before.events + 3);
  });
});

describe('a life', () => {
  test('fail, rebuild onto the spare, finish: features and offsets on the way', () => {
    const [, failed] = failMember(markDirty(raid5(), now), 1, now);
    const [told, started] = startRecovery(failed, 3, 1, now);
    expect(told.members[3]).toMatchObject({
      state: 'spare',
      superblock: { featureMap: features.RECOVERY_OFFSET },
    });
    expect(memberIn(started, 1)?.superblock).toMatchObject({
      featureMap: features.RECOVERY_OFFSET,
      recoveryOffsetSectors: 0,
    });
    const further = checkpointRecovery(started, 3, 2048, now);
    expect(memberIn(further, 1)?.superblock.recoveryOffsetSectors).toBe(2048);
    expect(memberIn(further, 0)?.superblock.featureMap).toBe(0);
    const done = finishRecovery(further, 3, now);
    expect(memberIn(done, 1)?.superblock).toMatchObject({ featureMap: 0, recoveryOffsetSectors: 0 });
    expect(entries(done)).toEqual([0, ROLE_FAULTY, 2, 1, ROLE_SPARE, ROLE_SPARE]);
    expect(degradedCount(done)).toBe(0);
  });

  test('a replacement takes over in one update, and begins anew in its place when its original dies', () => {
    const [, started] = startReplacement(raid5(), 3, 0, now);
    expect(started.members[3]?.superblock.featureMap).toBe(features.RECOVERY_OFFSET | features.REPLACEMENT);
    const [, , done] = finishReplacement(checkpointRecovery(started, 3, Infinity, now), 3, now);
    expect(entries(done)).toEqual([ROLE_FAULTY, 1, 2, 0, ROLE_SPARE, ROLE_SPARE]);
    const [, orphaned] = failMember(checkpointRecovery(started, 3, 640, now), 0, now);
    expect(orphaned.members[3]).toMatchObject({ state: 'recovering', slot: 0, recoveredSectors: 0 });
    expect(orphaned.members[3]?.superblock.featureMap).toBe(features.RECOVERY_OFFSET);
  });

  test.each([640, Infinity])(
    'a copy that had come to %d and starts over says so before anything else is written, and others say what they said',
    (recoveredSectors) => {
      const [, started] = startReplacement(raid5(), 3, 0, now);
      const found = checkpointRecovery(started, 3, recoveredSectors, now);
      expect(superblocksToWrite(found, level(found))).toEqual([]);
      const members = found.members.map((member) =>
        member.state === 'replacement' ? { ...member, recoveredSectors: 0 } : member,
      );
      const over = level({ ...found, members });
      expect(superblocksToWrite(found, over).map(({ descriptor }) => descriptor)).toEqual([3]);
      expect(over.members[3]?.superblock).toMatchObject({
        events: found.events,
        featureMap: features.RECOVERY_OFFSET | features.REPLACEMENT,
        recoveryOffsetSectors: 0,
      });
    },
  );

  test('a new spare gets the lowest free number from raid_disks on, and a superblock of its own', () => {
    const array = addSpare(raid5(2), { memberSectors: MEMBER_SECTORS + 100, deviceUuid: uuidOf(99) }, now);
    const spare = array.members.at(-1);
    expect(spare).toMatchObject({ descriptor: 5, state: 'spare' });
    expect(spare?.superblock).toMatchObject({ deviceUuid: uuidOf(99), descriptor: 5, events: 1 });
    const place = { version: '1.2', memberSectors: MEMBER_SECTORS + 100 } as const;
    const bytes = encodeSuperblock1(spare?.superblock as never);
    expect(superblock1Faults(decodeSuperblock1(bytes), place)).toEqual([]);
    expect(() => addSpare(array, { memberSectors: 8192, deviceUuid: uuidOf(98) }, now)).toThrow(RaidError);
  });

  test('the table grows when numbers outgrow it', () => {
    const numbers = { level: 1, layout: 0, raidDisks: 2, chunkSectors: 0 };
    const sectors = Array.from({ length: 128 }, () => MEMBER_SECTORS);
    const { array } = newArray({
      ...{
        version: '1.2',
        numbers,
        consistency: { policy: 'resync' },
        memberSectors: sectors,
        setUuid: uuidOf(1),
      },
      ...{
        setName: 't',
        ctime: now,
        deviceUuids: sectors.map((_, index) => uuidOf(index)),
        firstSync: 'clean',
      },
    });
    const grown = addSpare(array, { memberSectors: MEMBER_SECTORS, deviceUuid: uuidOf(200) }, now);
    expect(array.members[0]?.superblock.devRoles).toHaveLength(128);
    expect(grown.members.map(({ superblock }) => superblock.devRoles.length)).toEqual(
      Array.from({ length: 129 }, () => 384),
    );
  });

  test('a former member returns at once, by the bitmap, or not at all', () => {
    const before = raid5(0);
    const stale = before.members[2]?.superblock as NonNullable<(typeof before.members)[0]>['superblock'];
    const now2 = removeMember(failMember(before, 2, now)[1], 2, now);
    expect(judgeReAdd(now2, stale, null)).toBe('no');
    expect(judgeReAdd(now2, stale, stale.events)).toBe('via-bitmap');
    expect(judgeReAdd(now2, stale, stale.events + 1)).toBe('no');
    expect(judgeReAdd({ ...now2, events: stale.events }, stale, null)).toBe('at-once');
    expect(judgeReAdd(now2, { ...stale, setUuid: uuidOf(7) }, 0)).toBe('no');
    const back = reAdd(now2, stale, 'via-bitmap', now);
    expect(back.members[2]?.superblock.featureMap).toBe(features.RECOVERY_OFFSET | features.RECOVERY_BITMAP);
    expect(finishRecovery(back, 2, now).members[2]).toMatchObject({ state: 'in_sync', slot: 2 });
  });

  test('bad blocks mark one member', () => {
    const array = setBadBlocks(raid5(), 1, true, now);
    expect(array.members.map(({ superblock }) => superblock.featureMap)).toEqual([
      0,
      features.BADBLOCKS,
      0,
      0,
    ]);
    expect(markDirty(array, now).members[1]?.superblock.featureMap).toBe(features.BADBLOCKS);
    expect(setBadBlocks(array, 1, false, now).members[1]?.superblock.featureMap).toBe(0);
  });

  test('a newcomer is refused where nobody in sync is left to be like', () => {
    const array = raid5(0);
    const gone = { ...array, members: array.members.map((each) => ({ ...each, state: 'faulty' as const })) };
    const added = { memberSectors: MEMBER_SECTORS, deviceUuid: uuidOf(99) };
    expect(() => addSpare(gone, added, now)).toThrow(expect.objectContaining({ code: 'ARRAY_FAILED' }));
  });

  test('what cannot be is stopped', () => {
    expect(() => finishRecovery(raid5(), 0, now)).toThrow(InvariantViolation);
    expect(() => startRecovery(raid5(), 3, 0, now)).toThrow(InvariantViolation);
    expect(() => failMember(raid5(), 9, now)).toThrow(RaidError);
  });
});

/**
 * Any history of an array, cut off after any update with any subset of the members already written: what assembly
 * makes of the superblocks never takes a member for in sync that had failed before, and never loses one that had not.
 */
describe('histories', () => {
  const steps = fc.array(fc.constantFrom(...kinds), { maxLength: 25 });

  test('cut at any update, with any members written, assembly tells the truth', () => {
    fc.assert(
      fc.property(steps, fc.nat(), fc.nat(0xffff), (history, cut, written) => {
        const states = [raid5(1)];
        const ever: Disks = new Map();
        for (const [index, step] of history.entries()) {
          const array = states.at(-1) as MdArray;
          writeAll(ever, array);
          states.push(...advance(array, step, index, ever));
        }
        const last = 1 + (cut % states.length);
        const disks: Disks = new Map();
        for (const state of states.slice(0, last)) writeAll(disks, state);
        const before = states[last - 1] as MdArray;
        const array = states[last] ?? before;
        for (const [index, member] of superblocksToWrite(before, array).entries()) {
          if ((written & (1 << index)) !== 0) disks.set(member.superblock.deviceUuid, member.superblock);
        }
        const candidates = candidatesOn(disks);
        const assembly = assemble(candidates, { run: true, force: true });
        if (assembly.kind === 'refuse') throw new Error(`${assembly.row}: ${assembly.error.message}`);
        const joined = assembly.members.filter(({ joins }) => joins === 'in_sync').map(({ name }) => name);
        const good = (state: MdArray): readonly string[] =>
          state.members.filter((each) => each.state === 'in_sync').map((each) => each.superblock.deviceUuid);
        // Between two states either may be what assembly sees; what is in sync in both has to be there.
        for (const name of joined) expect([...good(before), ...good(array)]).toContain(name);
        for (const name of good(before)) if (good(array).includes(name)) expect(joined).toContain(name);
        expect([before.sizeSectors, array.sizeSectors]).toContain(assembly.array.md?.sizeSectors);
        expect(assembly.array.slots.filter((slot) => slot !== null).length).toBeGreaterThanOrEqual(2);
      }),
      { numRuns: 600 },
    );
  });
});
