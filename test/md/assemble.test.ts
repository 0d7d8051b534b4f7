/**
 * The decision tables as theorems: every combination of facts is decided by exactly one row, and every row is reached
 * by a story told with superblocks.
 */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import {
  type ArrayFacts,
  type AssembleOptions,
  type Assembly,
  arrayRows,
  assemble,
  type Candidate,
  isEnough,
  type MemberFacts,
  matches,
  memberRows,
  type Row,
} from '../../lib/md/assemble.ts';
import { claimOf } from '../../lib/md/member.ts';
import { newArray } from '../../lib/md/placement.ts';
import type { PplVerdict } from '../../lib/md/ppl.ts';
import {
  decodeSuperblock1,
  encodeSuperblock1,
  features,
  packPplArea,
  ROLE_FAULTY,
  ROLE_JOURNAL,
  ROLE_SPARE,
  type Superblock1,
  superblock1Faults,
} from '../../lib/md/superblock1.ts';
import { assertMdArray } from '../../lib/md/update.ts';
import { someTime, uuidOf } from './images.ts';

type Domain<F> = { readonly [K in keyof F]: readonly F[K][] };

const memberDomain: Domain<MemberFacts> = {
  readable: ['yes', 'no'],
  again: ['yes', 'no'],
  array: ['ours', 'foreign'],
  shape: ['agrees', 'differs'],
  rival: ['none', 'equal', 'fresher'],
  own: ['slot', 'spare', 'faulty', 'journal'],
  behind: ['none', 'one', 'more', 'ahead'],
  listed: ['same', 'other', 'none', 'faulty'],
  knows: ['yes', 'no'],
  recovering: ['yes', 'no'],
};

const arrayDomain: Domain<ArrayFacts> = {
  arrays: ['one', 'several'],
  freshest: ['yes', 'no'],
  usable: ['yes', 'no'],
  copies: ['none', 'some'],
  forks: ['none', 'some'],
  enough: ['yes', 'stale', 'no'],
  complete: ['yes', 'no'],
  hole: ['yes', 'no'],
  expected: ['here', 'missing'],
  force: ['yes', 'no'],
  run: ['yes', 'no'],
};

function* everyCombination<F extends object>(domain: Domain<F>): Generator<F> {
  const names = Object.keys(domain) as (keyof F)[];
  const total = names.reduce((product, name) => product * domain[name].length, 1);
  for (let number = 0; number < total; number += 1) {
    let rest = number;
    const facts: Partial<F> = {};
    for (const name of names) {
      const values = domain[name];
      facts[name] = values[rest % values.length] as F[keyof F];
      rest = Math.floor(rest / values.length);
    }
    yield facts as F;
  }
}

function undecided<F extends object>(rows: readonly Row<F, string>[], domain: Domain<F>): readonly string[] {
  const wrong: string[] = [];
  for (const facts of everyCombination(domain)) {
    const hits = rows.filter(({ pattern }) => matches(pattern, facts));
    if (hits.length !== 1)
      wrong.push(`${JSON.stringify(facts)}: ${hits.map(({ label }) => label).join(' and ')}`);
  }
  return wrong;
}

describe('the tables', () => {
  test('every combination of facts about a member is decided by exactly one row', () => {
    expect(undecided(memberRows, memberDomain)).toEqual([]);
  });

  test('every combination of facts about an array is decided by exactly one row', () => {
    expect(undecided(arrayRows, arrayDomain)).toEqual([]);
  });

  test('labels are unique', () => {
    for (const rows of [memberRows, arrayRows])
      expect(new Set(rows.map(({ label }) => label)).size).toBe(rows.length);
  });
});

const MEMBER_SECTORS = 32768;
const seen = new Set<string>();

type Change = (superblock: Superblock1) => Partial<Superblock1>;

/** Members at events 20, all in sync and clean; `changes` are applied to the member of that index. */
function members(
  level: number,
  count: number,
  changes: Readonly<Record<number, Change>> = {},
  raidDisks = count,
): Candidate[] {
  const { array } = newArray({
    version: '1.2',
    numbers: {
      level,
      layout: { 5: 2, 6: 2, 10: 0x102, 0: 1 }[level] ?? 0,
      raidDisks,
      chunkSectors: level === 1 ? 0 : 128,
    },
    consistency: { policy: 'resync' },
    memberSectors: Array.from({ length: count }, () => MEMBER_SECTORS),
    setUuid: uuidOf(1),
    setName: 'host:t',
    ctime: someTime,
    deviceUuids: Array.from({ length: count }, (_, index) => uuidOf(10 + index)),
    firstSync: 'clean',
  });
  return array.members.map(({ superblock }, index) => {
    const at20 = { ...superblock, events: 20 };
    return candidate(`m${index}`, { ...at20, ...changes[index]?.(at20) });
  });
}

function candidate(name: string, superblock: Superblock1): Candidate {
  const read = decodeSuperblock1(encodeSuperblock1(superblock));
  const [fault] = superblock1Faults(read, { version: '1.2', memberSectors: MEMBER_SECTORS });
  return {
    name,
    identity: name,
    claim: fault ?? claimOf({ version: '1.2', superblock: read }, MEMBER_SECTORS),
  };
}

function roles(change: Readonly<Record<number, number>>): Change {
  return ({ devRoles }) => ({ devRoles: devRoles.map((role, number) => change[number] ?? role) });
}

function both(first: Change, second: Change): Change {
  return (superblock) => {
    const changed = first(superblock);
    return { ...changed, ...second({ ...superblock, ...changed }) };
  };
}

function events(count: number): Change {
  return () => ({ events: count });
}

const dirty: Change = () => ({ resyncOffsetSectors: 0 });

function recovering(sectors: number): Change {
  return ({ featureMap }) => ({
    featureMap: featureMap | features.RECOVERY_OFFSET,
    recoveryOffsetSectors: sectors,
  });
}

function told(candidates: readonly Candidate[], options: AssembleOptions = {}): Assembly & { story: string } {
  const assembly = assemble(candidates, options);
  seen.add(assembly.row);
  for (const member of assembly.members) seen.add(member.row);
  const how =
    assembly.kind === 'start' ? 'starts' : `${assembly.error.code} (${assembly.needs ?? 'nothing helps'})`;
  return { ...assembly, story: `${how}: ${assembly.members.map(({ joins }) => joins).join(' ')}` };
}

describe('members', () => {
  test('in step, and one that missed only the last update', () => {
    expect(told(members(5, 3)).story).toBe('starts: in_sync in_sync in_sync');
    expect(told(members(5, 3, { 2: events(19) })).story).toBe('starts: in_sync in_sync in_sync');
  });

  test('one behind, and the others say that it failed, was dropped, or moved', () => {
    const others = (role: number): Record<number, Change> => ({
      0: roles({ 2: role }),
      1: roles({ 2: role }),
      2: events(19),
    });
    expect(told(members(5, 3, others(ROLE_FAULTY))).story).toBe('starts: in_sync in_sync stale');
    expect(told(members(5, 3, others(ROLE_SPARE))).story).toBe('starts: in_sync in_sync spare');
    expect(told(members(5, 3, others(1)), { run: true }).story).toBe('starts: in_sync in_sync stale');
  });

  test('equal events, but accused: stale, whatever its slot', () => {
    const accused = roles({ 0: ROLE_FAULTY });
    const story = told(members(5, 3, { 1: accused, 2: accused }));
    expect(story.story).toBe('starts: stale in_sync in_sync');
    expect(story.members[0]?.row).toBe('@N accused');
  });

  test('two behind is stale, and the array is not started by accident without it', () => {
    expect(told(members(5, 3, { 2: events(18) })).story).toBe('MEMBERS_MISSING (run): in_sync in_sync stale');
    expect(told(members(5, 3, { 2: events(18) }), { run: true }).story).toBe('starts: in_sync in_sync stale');
  });

  test('being recovered: in step, one behind, alone ahead, and a spare that was just given its slot', () => {
    const rebuilt = { 2: recovering(4096) };
    const story = told(members(5, 3, rebuilt));
    expect(story.story).toBe('starts: in_sync in_sync recovering');
    expect(story.kind === 'start' && story.array.slots[2]?.recoveredSectors).toBe(4096);
    expect(told(members(5, 3, { 2: both(recovering(4096), events(19)) })).story).toBe(
      'starts: in_sync in_sync recovering',
    );
    expect(told(members(5, 3, { 2: both(recovering(4096), events(21)) })).story).toBe(
      'starts: in_sync in_sync recovering',
    );
    const without = roles({ 2: ROLE_SPARE });
    expect(told(members(5, 3, { 0: without, 1: without, 2: both(recovering(0), events(21)) })).story).toBe(
      'starts: in_sync in_sync spare',
    );
  });

  test('spares join whatever their events, unless the array has noted their failure', () => {
    const spare = (change: Change): Candidate[] => members(5, 4, { 3: change }, 3);
    for (const count of [0, 19, 20, 109])
      expect(told(spare(events(count))).story).toMatch(/^starts: .* spare$/);
    const given = members(5, 3, { 2: both(events(19), roles({ 2: ROLE_SPARE })) });
    expect(told(given).story).toBe('starts: in_sync in_sync spare');
    const failed = roles({ 3: ROLE_FAULTY });
    const noted = members(5, 4, { 0: failed, 1: failed, 2: failed, 3: events(18) }, 3);
    expect(told(noted).story).toBe('starts: in_sync in_sync in_sync faulty');
  });

  test('faulty by its own account, a journal, a foreigner, a contradiction, something unreadable, the same file', () => {
    const fault = new RaidError('SUPERBLOCK_BROKEN', 'sb_csum');
    const others: Record<number, Change> = { 0: roles({ 2: ROLE_SPARE }), 1: roles({ 2: ROLE_SPARE }) };
    const third = (change: Change): string => told(members(5, 3, { ...others, 2: change })).story;
    expect(third(roles({ 2: ROLE_FAULTY }))).toBe('starts: in_sync in_sync faulty');
    expect(third(roles({ 2: ROLE_JOURNAL }))).toBe(
      'UNSUPPORTED_FEATURE (nothing helps): in_sync in_sync out',
    );
    expect(third(() => ({ chunkSectors: 256 }))).toBe('starts: in_sync in_sync out');
    const two = members(5, 3, others).slice(0, 2);
    expect(told([...two, { name: 'x', identity: 'x', claim: fault }]).members[2]?.because).toBe('sb_csum');
    expect(told([...two, { ...(two[0] as Candidate), name: 'm0-again' }]).story).toBe(
      'starts: in_sync in_sync out',
    );
    const foreign = members(5, 3, { 2: () => ({ setUuid: uuidOf(2) }) });
    expect(told(foreign).story).toBe('SEVERAL_ARRAYS (nothing helps): in_sync in_sync out');
    expect(told(foreign, { setUuid: uuidOf(1), run: true }).story).toBe('starts: in_sync in_sync out');
  });

  test('an image and its copy: nobody can tell, unless one is older', () => {
    const [m0, m1] = members(1, 2) as [Candidate, Candidate];
    expect(told([m0, m1, { ...m1, name: 'copy', identity: 'copy' }]).story).toBe(
      'DUPLICATE_MEMBER (nothing helps): in_sync out out',
    );
    const older = members(1, 2, { 1: events(18) })[1] as Candidate;
    expect(told([m0, m1, { ...older, name: 'old', identity: 'old' }]).story).toBe(
      'starts: in_sync in_sync out',
    );
  });

  test('two halves of a mirror, each started alone: a person chooses', () => {
    const halves = members(1, 2, {
      0: both(events(25), roles({ 1: ROLE_FAULTY })),
      1: both(events(23), roles({ 0: ROLE_FAULTY })),
    });
    expect(told(halves).story).toBe('FORKED_HISTORY (force): in_sync out');
    expect(told(halves, { force: true }).story).toBe('starts: in_sync out');
    expect(told(halves.slice(1)).story).toBe('starts: in_sync');
    const equal = members(1, 2, { 0: roles({ 1: ROLE_FAULTY }), 1: roles({ 0: ROLE_FAULTY }) });
    expect(told(equal).story).toBe('FORKED_HISTORY (force): in_sync out');
  });

  test('a replacement copies while its original works, and takes the slot when it is gone', () => {
    const roleOf3 = roles({ 3: 1 });
    const copying: Change = (superblock) => ({
      ...roleOf3(superblock),
      featureMap: features.REPLACEMENT | features.RECOVERY_OFFSET,
      recoveryOffsetSectors: 640,
    });
    const all = members(5, 4, { 0: roleOf3, 1: roleOf3, 2: roleOf3, 3: copying }, 3);
    const together = told(all);
    expect(together.story).toBe('starts: in_sync in_sync in_sync replacement');
    expect(together.kind === 'start' && together.array.replacements[0]).toMatchObject({
      slot: 1,
      recoveredSectors: 640,
    });
    const alone = told(
      all.filter(({ name }) => name !== 'm1'),
      { run: true },
    );
    expect(alone.kind === 'start' && alone.array.slots[1]?.recoveredSectors).toBe(640);
  });
});

describe('arrays', () => {
  test('dirty and complete resyncs from where it was; equally fresh members that disagree count as dirty', () => {
    const all = told(members(5, 3, { 0: dirty, 1: dirty, 2: dirty }));
    expect(all.kind === 'start' && all.array.resyncOffsetSectors).toBe(0);
    const one = told(members(1, 2, { 1: () => ({ resyncOffsetSectors: 512 }) }));
    expect(one.kind === 'start' && one.array.resyncOffsetSectors).toBe(512);
  });

  test('dirty and degraded is refused in parity levels, forced clean, fine in mirrors', () => {
    const gone = (level: number, count: number, change: Change = dirty): Candidate[] => {
      const without = both(change, roles({ 0: ROLE_SPARE }));
      return members(
        level,
        count,
        Object.fromEntries(Array.from({ length: count }, (_, index) => [index, without])),
      ).slice(1);
    };
    expect(told(gone(5, 3)).story).toMatch('DIRTY_DEGRADED (force)');
    expect(told(gone(6, 4)).story).toMatch('DIRTY_DEGRADED (force)');
    expect(told(gone(4, 3), { run: true }).story).toMatch('DIRTY_DEGRADED (force)');
    const forced = told(gone(5, 3), { force: true });
    expect(forced.kind === 'start' && forced.array).toMatchObject({
      resyncOffsetSectors: Infinity,
      forced: [/declared clean/].map(() => expect.stringMatching('declared clean')),
    });
    expect(told(gone(1, 2)).story).toBe('starts: in_sync');
    expect(told(gone(10, 4)).story).toBe('starts: in_sync in_sync in_sync');
  });

  describe('partial parity logs', () => {
    const logged: Change = () => ({ featureMap: features.MULTI_PPL, consistencyArea: packPplArea(8, 264) });
    const dirty: Change = () => ({ resyncOffsetSectors: 0 });
    const halfSynced: Change = () => ({ resyncOffsetSectors: 64 });
    const cells = [
      { dataSector: 0, heightSectors: 1, chunkCount: 1, parityMember: 2, partialParity: new Uint8Array(512) },
    ];
    const fine: PplVerdict = { says: 'all-but', cells: [], torn: [], isMarked: true };
    const used: PplVerdict = { ...fine, cells };
    const started = (logs: readonly PplVerdict[], change = dirty, options: AssembleOptions = {}): string => {
      const all = members(5, 3, {
        0: both(change, logged),
        1: both(change, logged),
        2: both(change, logged),
      });
      const candidates = logs.map((log, index) => ({ ...(all[index] as Candidate), log }));
      const verdict = assemble(candidates, { run: true, ...options });
      if (verdict.kind === 'refuse') return verdict.error.code;
      const { resyncOffsetSectors, replay, atRisk } = verdict.array;
      return `${resyncOffsetSectors === Infinity ? 'clean' : `resync from ${resyncOffsetSectors}`}, ${replay === null ? 'no' : replay.length} cells, ${atRisk === null ? 'nothing' : `from ${atRisk.fromSector}`} at risk`;
    };
    const nothing: PplVerdict = { says: 'nothing', because: 'it is gone' };
    const due: PplVerdict = { says: 'only', cells };
    const torn: PplVerdict = { ...used, torn: cells };
    const tornByLinux: PplVerdict = { ...torn, isMarked: false };
    const unmarked: PplVerdict = { ...fine, isMarked: false };

    test.each<[string, readonly PplVerdict[], string]>([
      [
        'complete: what is in the logs, and it is clean',
        [fine, used, fine],
        'clean, 1 cells, nothing at risk',
      ],
      ['complete, and nothing was under way', [fine, fine, fine], 'clean, 0 cells, nothing at risk'],
      ['degraded: the same', [fine, used], 'clean, 1 cells, nothing at risk'],
      [
        'complete, one log gone: a resync, and what the others know before it',
        [fine, used, nothing],
        'resync from 0, 1 cells, nothing at risk',
      ],
      ['complete, a resync was due', [due, due, due], 'resync from 0, 3 cells, nothing at risk'],
      [
        'complete, a resync was due, of one alone',
        [fine, due, used],
        'resync from 0, 2 cells, nothing at risk',
      ],
      ['complete, nothing is known', [nothing, nothing, nothing], 'resync from 0, no cells, nothing at risk'],
      [
        'complete, one torn: its rows are computed as well',
        [fine, torn, fine],
        'clean, 2 cells, nothing at risk',
      ],
      [
        'complete, one of Linux torn: a resync may have been due',
        [fine, tornByLinux, fine],
        'resync from 0, 1 cells, nothing at risk',
      ],
      ['degraded, one torn: its rows had not begun', [fine, torn], 'clean, 1 cells, nothing at risk'],
      [
        'complete, none begun: a resync may have been due',
        [unmarked, unmarked, unmarked],
        'resync from 0, no cells, nothing at risk',
      ],
      ['complete, some not begun', [unmarked, used, unmarked], 'clean, 1 cells, nothing at risk'],
      ['degraded, one log gone: refused', [fine, nothing], 'DIRTY_DEGRADED'],
      ['degraded, a resync was due: refused', [fine, due], 'DIRTY_DEGRADED'],
    ])('%s', (_, logs, expected) => {
      expect(started(logs)).toBe(expected);
    });

    test('forced all the same, everything is at risk', () => {
      expect(started([fine, nothing], dirty, { force: true })).toBe('clean, no cells, from 0 at risk');
      expect(started([used, nothing], dirty, { force: true })).toBe('clean, 1 cells, from 0 at risk');
      expect(started([used, due], dirty, { force: true })).toBe('clean, 2 cells, from 0 at risk');
    });

    test('a resync that was under way is not what logs speak of', () => {
      expect(started([fine, used, fine], halfSynced)).toBe('resync from 64, no cells, nothing at risk');
      expect(started([fine, used], halfSynced)).toBe('DIRTY_DEGRADED');
      expect(started([fine, used], halfSynced, { force: true })).toBe('clean, no cells, from 64 at risk');
    });
  });

  test('too few; too many stale, of which force takes the freshest, and no more than it needs', () => {
    expect(told(members(5, 3).slice(0, 1), { force: true }).story).toBe(
      'NOT_ENOUGH_MEMBERS (nothing helps): in_sync',
    );
    expect(told(members(0, 2).slice(0, 1)).story).toBe('NOT_ENOUGH_MEMBERS (nothing helps): in_sync');
    const stale = members(5, 4, { 2: events(12), 3: events(15) });
    expect(told(stale).story).toBe('EVENTS_DISAGREE (force): in_sync in_sync stale stale');
    const forced = told(stale, { force: true });
    expect(forced.story).toBe('starts: in_sync in_sync stale in_sync');
    expect(forced.kind === 'start' && forced.array.forced).toEqual([
      'm3 is taken for current, 5 events behind',
    ]);
    expect(forced.members[3]?.row).toBe('@T stale, forced');
    // Not the freshest by itself: it has a copy in sync, and two that differ would be read in turns.
    const mirrored = members(10, 4, { 1: events(15), 2: events(12), 3: events(10) });
    expect(told(mirrored, { force: true }).story).toBe('starts: in_sync stale in_sync stale');
  });

  test('nobody, several, unsupported', () => {
    expect(told([]).story).toBe('NOT_ENOUGH_MEMBERS (nothing helps): ');
    expect(told(members(5, 4, {}, 3).slice(3)).story).toBe('NOT_ENOUGH_MEMBERS (nothing helps): spare');
    const reshaping: Change = () => ({ featureMap: features.RESHAPE });
    expect(told(members(5, 3, { 0: reshaping, 1: reshaping, 2: reshaping })).story).toMatch(
      'RESHAPE_IN_PROGRESS',
    );
  });

  test('what the array counted on has to be here, or run', () => {
    expect(told(members(1, 2).slice(1)).story).toBe('MEMBERS_MISSING (run): in_sync');
    const alone = told(members(1, 2).slice(1), { run: true });
    expect(alone.kind === 'start' && alone.array.md).toMatchObject({ hasUnrecordedLoss: true, events: 20 });
    expect(told(members(1, 2).slice(1), { force: true }).story).toBe('starts: in_sync');
    const forks = members(1, 3, {
      0: both(events(25), roles({ 1: ROLE_FAULTY })),
      1: both(events(25), roles({ 0: ROLE_FAULTY })),
      2: both(events(25), roles({ 1: ROLE_FAULTY })),
    });
    expect(told(forks, { force: true }).story).toBe('starts: in_sync stale in_sync');
  });

  test('a fork is left out, and what remains is judged as if it were not here', () => {
    const forked = members(5, 3, { 1: both(events(19), roles({ 0: ROLE_SPARE })) });
    expect(told(forked, { run: true }).story).toBe('FORKED_HISTORY (force): in_sync out in_sync');
    expect(told(forked.slice(0, 2), { force: true }).story).toBe(
      'NOT_ENOUGH_MEMBERS (nothing helps): in_sync out',
    );
    const copying: Change = both(both(events(19), roles({ 0: ROLE_SPARE, 2: 1 })), () => ({
      featureMap: features.REPLACEMENT,
    }));
    expect(told(members(1, 3, { 2: copying }, 2), { force: true }).story).toBe('starts: in_sync in_sync out');
  });

  test('of two with equal events the one that the other counts out is not the freshest', () => {
    for (const out of [ROLE_FAULTY, ROLE_SPARE]) {
      const oneSided = members(1, 2, { 1: roles({ 0: out }) });
      expect(told(oneSided, { run: true }).story).toBe('starts: stale in_sync');
    }
  });

  test('raid10 has enough while one of each set of copies is here', () => {
    const shape = (layout: number, raidDisks: number) => ({ level: 10, layout, raidDisks });
    expect(isEnough(shape(0x102, 4), [true, false, false, true])).toBe(true);
    expect(isEnough(shape(0x102, 4), [true, true, false, false])).toBe(false);
    expect(isEnough(shape(0x102, 3), [true, false, true])).toBe(true);
    expect(isEnough(shape(0x201, 4), [true, false, true, false])).toBe(true);
    expect(isEnough(shape(0x201, 4), [true, false, false, true])).toBe(false);
  });

  test('the geometry, and the places of the members by slot', () => {
    const story = told(members(5, 3).toReversed());
    expect(story.kind === 'start' && story.array).toMatchObject({
      geometry: { level: 'raid5', layout: 'left-symmetric', memberCount: 3, chunkBytes: 65536 },
      slots: [{ candidate: 2 }, { candidate: 1 }, { candidate: 0 }],
      freshest: 2,
      version: '1.2',
    });
  });
});

describe('members from strangers', () => {
  const extreme = fc.constantFrom(
    0,
    1,
    2,
    3,
    19,
    20,
    21,
    127,
    128,
    0xfeff,
    0xfffd,
    0xfffe,
    0xffff,
    2 ** 31,
    2 ** 32 - 1,
  );
  const change = fc.record(
    {
      events: fc.constantFrom(0, 1, 18, 19, 20, 21, 22, 2 ** 53 - 1),
      featureMap: fc.nat(0x1fff),
      raidDisks: extreme,
      layout: extreme,
      chunkSectors: extreme,
      level: fc.constantFrom(-5, -4, -1, 0, 1, 4, 5, 6, 10, 11),
      sizeSectors: fc.constantFrom(0, 1, 8, 127, 128, 8192, 2 ** 53 - 1),
      descriptor: extreme,
      recoveryOffsetSectors: fc.constantFrom(0, 8, 2 ** 40, Infinity),
      resyncOffsetSectors: fc.constantFrom(0, 8, 2 ** 40, Infinity),
      devRoles: fc.array(fc.constantFrom(0, 1, 2, 3, 4, ROLE_SPARE, ROLE_FAULTY, ROLE_JOURNAL), {
        minLength: 0,
        maxLength: 8,
      }),
    },
    { requiredKeys: [] },
  );
  const maybe = fc.oneof({ weight: 3, arbitrary: fc.constant(null) }, { weight: 1, arbitrary: change });
  /** Half of the changes are to all members alike, so that they agree and the array is looked at. */
  const set = fc.record({
    level: fc.constantFrom(0, 1, 5, 6, 10),
    everyone: maybe,
    each: fc.array(maybe, { minLength: 4, maxLength: 4 }),
    force: fc.boolean(),
    run: fc.boolean(),
  });

  test('whatever they claim, assembly decides, and what it starts is an array', () => {
    const started = { start: 0, refuse: 0 };
    fc.assert(
      fc.property(set, ({ level, everyone, each, force, run }) => {
        const alike: Change = () => everyone ?? {};
        const changes = each.map((own): Change => both(alike, () => own ?? {}));
        const assembly = assemble(members(level, 4, changes), { force, run });
        started[assembly.kind] += 1;
        if (assembly.kind === 'refuse' || assembly.array.md === null) return;
        assertMdArray(assembly.array.md);
        expect(assembly.array.slots).toHaveLength(assembly.array.md.raidDisks);
      }),
      { numRuns: 1500 },
    );
    expect(started.start).toBeGreaterThan(50);
    expect(started.refuse).toBeGreaterThan(100);
  });
});

test('every row has had its story, but for the impossible one', () => {
  const rows = [...memberRows, ...arrayRows].map(({ label }) => label);
  expect(rows.filter((label) => !seen.has(label))).toEqual(['@W impossible']);
});
