/**
 * Who may join, and whether the array may start: two decision tables over facts, so that every case is a row with a
 * story, and a test walks all combinations of facts and proves that each is decided by exactly one row.
 *
 * The freshest member is the one with the most events among those that hold a slot; in a tie one that is not being
 * recovered, that no equal calls faulty or gone, that is no replacement, and then the lowest slot. One exception: a
 * member being recovered that is a single update ahead of all whole ones is not the freshest. It may be a spare that was
 * told of its slot first, when the power went; whoever believed it would find that the others know nothing of it and
 * throw all of them out, the whole array for an empty disk (mdadm does). Its superblock describes the array, and its
 * table of roles is the truth about everybody else: an events counter alone is not a test for staleness, since a
 * member is let in one event behind (members are written one after the other, and power goes between).
 *
 * Members, `memberRows`:
 *
 * @A unreadable       No superblock that can be believed. The reason is kept.
 * @B same file        Given twice. Two members on one file would overwrite each other; the second is left out.
 * @C foreign          Another array's.
 * @D contradicts      Ours by uuid, but it describes another shape: ctime, level, layout, size, chunk, number of members
 *                     or version. Reading through both shapes would mix data, so it stays out; but for one that is a
 *                     single update behind, has the room, and is smaller: there the array grew, which moves nothing.
 * @E copy             Another candidate has the same number or slot with equal events: an image and its copy, or a
 *                     superblock copied by hand. Nobody can tell which one has the data; a person must.
 * @F superseded       The same, but the other is fresher: an old image of a member that is here too, or a failed
 *                     member whose slot was rebuilt on another.
 * @G journal          Holds the log of an array whose log we do not have.
 * @H faulty           Says so itself.
 * @I spare, failed    A spare whose failure the freshest has noted.
 * @J spare            Any events: sleeping spares are not written at every update. Also a spare that was being given a
 *                     slot when the power went: nothing of it was written yet, so it begins again as a spare. (The
 *                     kernel, when such a spare is one event behind, takes it for in sync. We do not.)
 * @K forked           It went on without the freshest, and the freshest without this one. Both may hold writes that the
 *                     other lacks: two halves of a mirror, each started alone. Who was merely left behind is told from it
 *                     by `wasLeftBehind`.
 * @L in step          Equal events, both agree on its slot.
 * @M in step, recovering
 * @N accused          Equal events, but the freshest's table does not give it that slot. With md's counter going back
 *                     by one on becoming clean this can be a member that failed before that update. The kernel lets
 *                     it in; we hold it stale, which costs a rebuild where the other costs data.
 * @O missed a beat    One behind, the freshest still counts on it: it only missed the last update.
 * @P missed a beat, recovering
 * @Q failed just now  One behind, and the freshest calls it faulty: writes may have been acknowledged without it.
 * @R dropped just now One behind, and its number is unused: it was removed, or the array ran without it. It is a spare and
 *                     is rebuilt in full, as the kernel does. (Older kernels trust such a member.)
 * @S moved            One behind, and its number has another slot: nothing that md does leaves this.
 * @T stale            Two or more behind. `--force` may take it, the freshest of the stale first.
 * @U ahead            Being recovered, and the only one that the last update reached.
 * @V given a slot     The same, but the last update was to give it the slot: still a spare.
 * @W impossible       Whole and fresher than the freshest.
 *
 * The array, `arrayRows`:
 *
 * @0 several arrays   Of which array was not said.
 * @1 nobody           No candidate holds a slot.
 * @2 unsupported      It uses what we do not have, or stopped within a reshape.
 * @3 ambiguous        A member and its copy (@E): the wrong one has to be taken away first.
 * @4 forked           Two histories (@K). Starting one makes the other's writes unreachable: a person chooses, by
 *                     leaving the other out, or `force`, which goes on with the freshest. (mdadm goes on by itself.)
 * @5 too few          Stale ones would not suffice either.
 * @6 too many stale   Enough only if old data is taken for current.
 * @7 forced           The same, and that is what was asked for.
 * @8 complete         Clean, or to be resynced; what logs know is made before that.
 * @9 dirty, degraded  Parity may be wrong where the crash was, and the missing member's data is computed from it: silent
 *                     garbage in sectors that nobody wrote. (Partial parity logs close this hole: where every member's
 *                     log vouches for the rows whose parity it holds, the array is not called dirty here.)
 * @10 declared clean  The same, forced; what logs know is made first. A raid6 that lacks one member has redundancy left, which
 *                     is resynced instead.
 * @11 missing         Enough, but a member that the array still counted on is not here: forgotten, more likely than
 *                     dead, and it will be stale once the array has been written. `run` says that it is meant.
 * @12 degraded        As the array was when it stopped, or `run`.
 */
import { assert, RaidError } from '../errors.ts';
import type { Geometry } from '../layout/geometry.ts';
import { raid10Copies } from '../layout/levels.ts';
import { geometryOf, type LevelNumbers } from './levels.ts';
import type { Claim, Version } from './member.ts';
import type { PplCells, PplVerdict } from './ppl.ts';
import {
  features,
  MEMBER_FEATURES,
  ROLE_FAULTY,
  ROLE_JOURNAL,
  ROLE_SLOT_MAX,
  ROLE_SPARE,
  ROLES_MAX,
} from './superblock1.ts';
import {
  type ArrayFields,
  arrayFieldsOf,
  hasYetToGrow,
  type MdArray,
  type MdMember,
  type MdMemberState,
} from './update.ts';

export interface Candidate {
  /** For messages: a path, a URI. */
  readonly name: string;
  /** Equal for two names of one file: `dev:ino`. */
  readonly identity: string;
  /** What it says, by a superblock without faults, or why it cannot be believed. */
  readonly claim: Claim | RaidError;
  /** What its partial parity log says, where the array keeps one and was not stopped cleanly. */
  readonly log?: PplVerdict;
}

export interface AssembleOptions {
  /** Which array, when candidates may belong to several. */
  readonly setUuid?: string;
  readonly force?: boolean;
  /** Start degraded although members are missing that the array still counted on. */
  readonly run?: boolean;
  /** For raid0 of unequal members made before 2019, which do not say. */
  readonly raid0Layout?: 'original' | 'alternate';
}

/** One verdict for each candidate, in the order given. */
export interface MemberVerdict {
  readonly name: string;
  /** The row of `memberRows`; `@T forced` for a stale member that `force` took. */
  readonly row: string;
  readonly joins: MdMemberState['state'] | 'stale' | 'out';
  readonly slot: number | null;
  readonly events: number | null;
  /** Why it does not simply join; empty when it does. */
  readonly because: string;
}

/** The candidate that fills a slot. */
export interface SlotMember {
  readonly candidate: number;
  /** Valid data sectors from the start; Infinity when all are. */
  readonly recoveredSectors: number;
  readonly viaBitmap: boolean;
  readonly dataOffsetSectors: number;
  readonly dataSectors: number;
}

export interface AssembledArray {
  readonly version: Version;
  readonly geometry: Geometry;
  /** By slot. */
  readonly slots: readonly (SlotMember | null)[];
  /** Candidates that wait, and those that copy a slot whose member still works. */
  readonly spares: readonly number[];
  readonly replacements: readonly (SlotMember & { readonly slot: number })[];
  /** In sync below; Infinity is clean. */
  readonly resyncOffsetSectors: number;
  /** The candidate whose superblock describes the array. */
  readonly freshest: number;
  /** To be updated and written; null for 0.90, which is only read. */
  readonly md: MdArray | null;
  /** Parity to be made from the logs before anything relies on it; null where the logs are not asked. */
  readonly replay: readonly PplCells[] | null;
  /** Whether that makes all parity right. Else a resync is due, or `force` has taken parity for right. */
  readonly isVouchedFor: boolean;
  /** Member ranges in which parity may be wrong, and with it what it says of a missing member: what `force` has risked. */
  readonly atRisk: { readonly fromSector: number } | null;
  /** What `force` took for true. When not empty, the superblocks are to be confirmed before anything else. */
  readonly forced: readonly string[];
}

export type Assembly =
  | {
      readonly kind: 'start';
      readonly row: string;
      readonly array: AssembledArray;
      readonly members: readonly MemberVerdict[];
    }
  | {
      readonly kind: 'refuse';
      readonly row: string;
      readonly error: RaidError;
      /** The option with which it would start. */
      readonly needs: 'force' | 'run' | null;
      readonly members: readonly MemberVerdict[];
    };

export interface MemberFacts {
  readonly readable: 'yes' | 'no';
  readonly again: 'yes' | 'no';
  readonly array: 'ours' | 'foreign';
  readonly shape: 'agrees' | 'differs';
  /** Another candidate with the same number, or the same slot in the same part. */
  readonly rival: 'none' | 'equal' | 'fresher';
  readonly own: 'slot' | 'spare' | 'faulty' | 'journal';
  /** Events below the freshest's. */
  readonly behind: 'none' | 'one' | 'more' | 'ahead';
  /** What the freshest's table says of its number. */
  readonly listed: 'same' | 'other' | 'none' | 'faulty';
  /** The freshest may have come of what it describes: they are of one history. */
  readonly knows: 'yes' | 'no';
  readonly recovering: 'yes' | 'no';
}

export interface ArrayFacts {
  readonly arrays: 'one' | 'several';
  readonly freshest: 'yes' | 'no';
  readonly usable: 'yes' | 'no';
  readonly copies: 'none' | 'some';
  readonly forks: 'none' | 'some';
  readonly enough: 'yes' | 'stale' | 'no';
  readonly complete: 'yes' | 'no';
  /** Not clean, in a level where that and a missing member together lose data. */
  readonly hole: 'yes' | 'no';
  /** Whether every slot that the freshest counts on is filled. */
  readonly expected: 'here' | 'missing';
  readonly force: 'yes' | 'no';
  readonly run: 'yes' | 'no';
}

export type MemberDecision =
  | 'unreadable'
  | 'again'
  | 'foreign'
  | 'contradicts'
  | 'copy'
  | 'superseded'
  | 'journal'
  | 'faulty'
  | 'spare'
  | 'forked'
  | 'in_sync'
  | 'recovering'
  | 'stale'
  | 'impossible';

export type ArrayDecision =
  | 'several'
  | 'nobody'
  | 'unsupported'
  | 'ambiguous'
  | 'forked'
  | 'too-few'
  | 'too-many-stale'
  | 'start'
  | 'start-with-stale'
  | 'dirty-degraded'
  | 'declare-clean'
  | 'missing';

/** A value, any value, or any but one. */
type Pattern<T extends string> = T | '*' | `!${T}`;
type PatternOf<F> = { readonly [K in keyof F]: Pattern<F[K] & string> };
export interface Row<F, D> {
  readonly label: string;
  readonly decision: D;
  readonly pattern: PatternOf<F>;
}

type M = MemberFacts;
type MemberColumns = readonly [
  label: string,
  decision: MemberDecision,
  readable: Pattern<M['readable']>,
  again: Pattern<M['again']>,
  array: Pattern<M['array']>,
  shape: Pattern<M['shape']>,
  rival: Pattern<M['rival']>,
  own: Pattern<M['own']>,
  behind: Pattern<M['behind']>,
  listed: Pattern<M['listed']>,
  knows: Pattern<M['knows']>,
  recovering: Pattern<M['recovering']>,
];

const __ = '*';

// biome-ignore format: a table
const memberTable: readonly MemberColumns[] = [
  //                                              readable again  array      shape      rival      own        behind   listed     knows  recovering
  ['@A unreadable',               'unreadable',   'no',    __,    __,        __,        __,        __,        __,      __,        __,    __],
  ['@B same file',                'again',        'yes',   'yes', __,        __,        __,        __,        __,      __,        __,    __],
  ['@C foreign',                  'foreign',      'yes',   'no',  'foreign', __,        __,        __,        __,      __,        __,    __],
  ['@D contradicts',              'contradicts',  'yes',   'no',  'ours',    'differs', __,        __,        __,      __,        __,    __],
  ['@E copy',                     'copy',         'yes',   'no',  'ours',    'agrees',  'equal',   __,        __,      __,        __,    __],
  ['@F superseded',               'superseded',   'yes',   'no',  'ours',    'agrees',  'fresher', __,        __,      __,        __,    __],
  ['@G journal',                  'journal',      'yes',   'no',  'ours',    'agrees',  'none',    'journal', __,      __,        __,    __],
  ['@H faulty',                   'faulty',       'yes',   'no',  'ours',    'agrees',  'none',    'faulty',  __,      __,        __,    __],
  ['@I spare, failed',            'faulty',       'yes',   'no',  'ours',    'agrees',  'none',    'spare',   __,      'faulty',  __,    __],
  ['@J spare',                    'spare',        'yes',   'no',  'ours',    'agrees',  'none',    'spare',   __,      '!faulty', __,    __],
  ['@K forked',                   'forked',       'yes',   'no',  'ours',    'agrees',  'none',    'slot',    '!ahead', __,       'no',  __],
  ['@L in step',                  'in_sync',      'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'none',  'same',    'yes', 'no'],
  ['@M in step, recovering',      'recovering',   'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'none',  'same',    'yes', 'yes'],
  ['@N accused',                  'stale',        'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'none',  '!same',   'yes', __],
  ['@O missed a beat',            'in_sync',      'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'one',   'same',    'yes', 'no'],
  ['@P missed a beat, recovering', 'recovering',  'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'one',   'same',    'yes', 'yes'],
  ['@Q failed just now',          'stale',        'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'one',   'faulty',  'yes', __],
  ['@R dropped just now',         'spare',        'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'one',   'none',    'yes', __],
  ['@S moved',                    'stale',        'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'one',   'other',   'yes', __],
  ['@T stale',                    'stale',        'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'more',  __,        'yes', __],
  ['@U ahead',                    'recovering',   'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'ahead', 'same',    __,    'yes'],
  ['@V given a slot',             'spare',        'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'ahead', '!same',   __,    'yes'],
  ['@W impossible',               'impossible',   'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'ahead', __,        __,    'no'],
];

export const memberRows: readonly Row<MemberFacts, MemberDecision>[] = memberTable.map((columns) => {
  const [label, decision, readable, again, array, shape, rival, own, behind, listed, knows, recovering] =
    columns;
  const pattern = { readable, again, array, shape, rival, own, behind, listed, knows, recovering };
  return { label, decision, pattern };
});

type A = ArrayFacts;
type ArrayColumns = readonly [
  label: string,
  decision: ArrayDecision,
  arrays: Pattern<A['arrays']>,
  freshest: Pattern<A['freshest']>,
  usable: Pattern<A['usable']>,
  copies: Pattern<A['copies']>,
  forks: Pattern<A['forks']>,
  enough: Pattern<A['enough']>,
  complete: Pattern<A['complete']>,
  hole: Pattern<A['hole']>,
  expected: Pattern<A['expected']>,
  force: Pattern<A['force']>,
  run: Pattern<A['run']>,
];

// biome-ignore format: a table
const arrayTable: readonly ArrayColumns[] = [
  //                                                   arrays     freshest usable copies  forks   enough   complete hole   expected   force  run
  ['@0 several arrays',            'several',          'several', __,      __,    __,     __,     __,      __,      __,    __,        __,    __],
  ['@1 nobody',                    'nobody',           'one',     'no',    __,    __,     __,     __,      __,      __,    __,        __,    __],
  ['@2 unsupported',               'unsupported',      'one',     'yes',   'no',  __,     __,     __,      __,      __,    __,        __,    __],
  ['@3 ambiguous',                 'ambiguous',        'one',     'yes',   'yes', 'some', __,     __,      __,      __,    __,        __,    __],
  ['@4 forked',                    'forked',           'one',     'yes',   'yes', 'none', 'some', __,      __,      __,    __,        'no',  __],
  ['@5 too few',                   'too-few',          'one',     'yes',   'yes', 'none', 'none', 'no',    __,      __,    __,        __,    __],
  ['@5 too few, forked',           'too-few',          'one',     'yes',   'yes', 'none', 'some', 'no',    __,      __,    __,        'yes', __],
  ['@6 too many stale',            'too-many-stale',   'one',     'yes',   'yes', 'none', 'none', 'stale', __,      __,    __,        'no',  __],
  ['@7 forced',                    'start-with-stale', 'one',     'yes',   'yes', 'none', __,     'stale', __,      __,    __,        'yes', __],
  ['@8 complete',                  'start',            'one',     'yes',   'yes', 'none', 'none', 'yes',   'yes',   __,    __,        __,    __],
  ['@8 complete, forked',          'start',            'one',     'yes',   'yes', 'none', 'some', 'yes',   'yes',   __,    __,        'yes', __],
  ['@9 dirty, degraded',           'dirty-degraded',   'one',     'yes',   'yes', 'none', 'none', 'yes',   'no',    'yes', __,        'no',  __],
  ['@10 declared clean',           'declare-clean',    'one',     'yes',   'yes', 'none', __,     'yes',   'no',    'yes', __,        'yes', __],
  ['@11 missing',                  'missing',          'one',     'yes',   'yes', 'none', 'none', 'yes',   'no',    'no',  'missing', 'no',  'no'],
  ['@12 degraded',                 'start',            'one',     'yes',   'yes', 'none', 'none', 'yes',   'no',    'no',  'here',    'no',  __],
  ['@12 degraded, run',            'start',            'one',     'yes',   'yes', 'none', 'none', 'yes',   'no',    'no',  'missing', 'no',  'yes'],
  ['@12 degraded, force',          'start',            'one',     'yes',   'yes', 'none', __,     'yes',   'no',    'no',  __,        'yes', __],
];

export const arrayRows: readonly Row<ArrayFacts, ArrayDecision>[] = arrayTable.map((columns) => {
  const [
    label,
    decision,
    arrays,
    freshest,
    usable,
    copies,
    forks,
    enough,
    complete,
    hole,
    expected,
    force,
    run,
  ] = columns;
  const pattern = { arrays, freshest, usable, copies, forks, enough, complete, hole, expected, force, run };
  return { label, decision, pattern };
});

export function matches<F extends object>(pattern: PatternOf<F>, facts: F): boolean {
  for (const name in pattern) {
    const wanted: string = pattern[name];
    const fact = String(facts[name]);
    if (wanted === '*' || wanted === fact) continue;
    if (!wanted.startsWith('!') || wanted === `!${fact}`) return false;
  }
  return true;
}

/** The row for these facts; the test proves that there is exactly one. */
export function rowFor<F extends object, D>(rows: readonly Row<F, D>[], facts: F): Row<F, D> {
  const row = rows.find(({ pattern }) => matches(pattern, facts));
  assert(row !== undefined, 'every combination of facts has a row');
  return row;
}

export function assemble(candidates: readonly Candidate[], options: AssembleOptions = {}): Assembly {
  const claims = readableClaims(candidates);
  const setUuid = options.setUuid ?? claims[0]?.setUuid ?? null;
  const ours = claims.filter((claim) => claim.setUuid === setUuid);
  const freshest = freshestOf(ours);
  const reference = freshest ?? ours[0] ?? null;
  const judged = candidates.map((_, index) => judgeMember(candidates, index, setUuid, reference));
  const several = options.setUuid === undefined && new Set(claims.map((claim) => claim.setUuid)).size > 1;
  return judgeArray(judged, freshest, several, options);
}

/** A candidate with the row that decided it. */
interface Judged {
  readonly candidate: Candidate;
  readonly index: number;
  readonly claim: Claim | null;
  readonly label: string;
  readonly decision: MemberDecision;
}

function readableClaims(candidates: readonly Candidate[]): readonly Claim[] {
  return candidates
    .filter((_, index) => !isRepeated(candidates, index))
    .map((candidate) => candidate.claim)
    .filter((claim): claim is Claim => !(claim instanceof RaidError));
}

function isRepeated(candidates: readonly Candidate[], index: number): boolean {
  const identity = candidates[index]?.identity;
  return candidates.slice(0, index).some((earlier) => earlier.identity === identity);
}

function isSlot(role: number): boolean {
  return role <= ROLE_SLOT_MAX;
}

function isReplacement(claim: Claim): boolean {
  return (claim.featureMap & features.REPLACEMENT) !== 0;
}

function freshestOf(claims: readonly Claim[]): Claim | null {
  const holders = claims.filter((claim) => isSlot(claim.ownRole));
  const eventsOf = (some: readonly Claim[]): number => Math.max(-1, ...some.map((claim) => claim.events));
  const whole = eventsOf(holders.filter((claim) => claim.recoveredSectors === null));
  const any = eventsOf(holders);
  const events = any === whole + 1 && whole >= 0 ? whole : any;
  const top = holders.filter((claim) => claim.events === events);
  const isAccused = (claim: Claim): boolean =>
    top.some((other) => other !== claim && callsOut(other, claim.descriptor));
  const rank = (claim: Claim): number =>
    Number(claim.recoveredSectors !== null) * 2 ** 22 +
    Number(isAccused(claim)) * 2 ** 20 +
    Number(isReplacement(claim)) * 2 ** 18 +
    claim.ownRole;
  return top.toSorted((left, right) => rank(left) - rank(right))[0] ?? null;
}

function judgeMember(
  candidates: readonly Candidate[],
  index: number,
  setUuid: string | null,
  reference: Claim | null,
): Judged {
  const candidate = candidates[index] as Candidate;
  const claim = candidate.claim instanceof RaidError ? null : candidate.claim;
  const facts = memberFacts(candidates, index, claim, setUuid, reference);
  const { label, decision } = rowFor(memberRows, facts);
  assert(decision !== 'impossible', 'nobody who holds a slot is fresher than the freshest');
  return { candidate, index, claim, label, decision };
}

function memberFacts(
  candidates: readonly Candidate[],
  index: number,
  claim: Claim | null,
  setUuid: string | null,
  reference: Claim | null,
): MemberFacts {
  const again = isRepeated(candidates, index) ? 'yes' : 'no';
  if (claim === null || reference === null || claim.setUuid !== setUuid) {
    const readable = claim === null ? 'no' : 'yes';
    return { ...factsOfStranger, readable, again };
  }
  return {
    readable: 'yes',
    again,
    array: 'ours',
    shape: contradictionOf(claim, reference) === null ? 'agrees' : 'differs',
    rival: rivalOf(candidates, index, claim, reference),
    own: ownOf(claim.ownRole),
    behind: behindOf(claim, reference),
    listed: listedOf(claim, reference),
    knows: isOfOneHistory(candidates, claim, reference) ? 'yes' : 'no',
    recovering: claim.recoveredSectors === null ? 'no' : 'yes',
  };
}

const factsOfStranger: MemberFacts = {
  readable: 'yes',
  again: 'no',
  array: 'foreign',
  shape: 'differs',
  rival: 'none',
  own: 'spare',
  behind: 'none',
  listed: 'none',
  knows: 'no',
  recovering: 'no',
};

/** The first field in which two members of one array differ although they may not; null when they agree. */
function contradictionOf(claim: Claim, reference: Claim): string | null {
  if (claim.found.version !== reference.found.version) return 'metadata version';
  const [mine, theirs] = [arrayFieldsOf(claim), arrayFieldsOf(reference)];
  const mayBeSmaller = hasYetToGrow(claim, reference);
  for (const name of Object.keys(mine) as (keyof ArrayFields)[]) {
    if (mayBeSmaller && (name === 'sizeSectors' || name === 'raidDisks')) continue;
    const same =
      name === 'ctime' ? mine.ctime.seconds === theirs.ctime.seconds : Object.is(mine[name], theirs[name]);
    if (!same) return name;
  }
  return null;
}

function rivalOf(
  candidates: readonly Candidate[],
  index: number,
  claim: Claim,
  reference: Claim,
): MemberFacts['rival'] {
  let rival: MemberFacts['rival'] = 'none';
  for (const [at, { claim: other }] of candidates.entries()) {
    if (other instanceof RaidError || at === index || isRepeated(candidates, at)) continue;
    if (other.setUuid !== claim.setUuid || contradictionOf(other, reference) !== null) continue;
    const sameSlot =
      isSlot(claim.ownRole) &&
      other.ownRole === claim.ownRole &&
      isReplacement(other) === isReplacement(claim);
    if (other.descriptor !== claim.descriptor && !sameSlot) continue;
    if (other.events > claim.events) return 'fresher';
    if (other.events === claim.events) rival = 'equal';
  }
  return rival;
}

function ownOf(role: number): MemberFacts['own'] {
  if (isSlot(role)) return 'slot';
  if (role === ROLE_FAULTY) return 'faulty';
  return role === ROLE_JOURNAL ? 'journal' : 'spare';
}

/**
 * Whether the freshest's history goes on from where this member stopped. Nearly as fresh, it has to count on the freshest
 * itself: nobody comes to hold a slot within one update. One that is further behind has missed failures and newcomers,
 * and what tells a fork from that is *whom it calls failed*: two halves that went on apart call all of each other so.
 */
function isOfOneHistory(candidates: readonly Candidate[], claim: Claim, reference: Claim): boolean {
  if (!isSlot(reference.ownRole) || claim === reference) return true;
  if (reference.events - claim.events <= 1) return countsOn(claim, reference.descriptor, reference);
  return !accuses(claim, reference) || wasLeftBehind(candidates, claim, reference);
}

function countsOn(claim: Claim, descriptor: number, other: Claim): boolean {
  const slot = other.devRoles[descriptor] ?? ROLE_SPARE;
  return isSlot(slot) && claim.devRoles[descriptor] === slot;
}

/** Whether it calls one out whom the freshest counts on. */
function accuses(claim: Claim, reference: Claim): boolean {
  return reference.devRoles.some((slot, descriptor) => isSlot(slot) && callsOut(claim, descriptor));
}

/**
 * A number that it has never heard of is a newcomer's; below raid_disks, where only the first members have theirs, an
 * unused number is that of one who was removed. (Older kernels write "faulty" for numbers never used, so this alone
 * decides nothing.)
 */
function callsOut(claim: Claim, descriptor: number): boolean {
  const said = claim.devRoles[descriptor] ?? ROLE_SPARE;
  return said === ROLE_FAULTY || (said === ROLE_SPARE && descriptor < claim.raidDisks);
}

/**
 * Whether somebody it counts on went on without it, to the freshest: one whom the freshest counts on too, or a former
 * member that is here and was left behind later, by somebody it counts on.
 */
function wasLeftBehind(candidates: readonly Candidate[], claim: Claim, reference: Claim): boolean {
  const later = candidates
    .map((candidate) => candidate.claim)
    .filter((other): other is Claim => !(other instanceof RaidError) && other.setUuid === claim.setUuid)
    .filter((other) => claim.events < other.events && other.events < reference.events)
    .toSorted((left, right) => right.events - left.events);
  const lineage: Claim[] = [];
  const descends = (from: Claim): boolean =>
    reference.devRoles.some((_, number) => number !== from.descriptor && countsOn(from, number, reference)) ||
    lineage.some((other) => other.events > from.events && countsOn(from, other.descriptor, other));
  for (const other of later) if (descends(other)) lineage.push(other);
  return descends(claim);
}

function behindOf(claim: Claim, reference: Claim): MemberFacts['behind'] {
  const behind = reference.events - claim.events;
  if (behind < 0) return 'ahead';
  if (behind === 0) return 'none';
  return behind === 1 ? 'one' : 'more';
}

function listedOf(claim: Claim, reference: Claim): MemberFacts['listed'] {
  const entry = reference.devRoles[claim.descriptor] ?? ROLE_SPARE;
  if (entry === claim.ownRole) return 'same';
  if (entry === ROLE_FAULTY) return 'faulty';
  return entry < reference.raidDisks ? 'other' : 'none';
}

/** Slots and all that stands behind a verdict on the array; `taken` are stale members that force took. */
interface Muster {
  readonly judged: readonly Judged[];
  readonly reference: Claim;
  readonly taken: readonly Judged[];
  readonly slots: readonly (SlotMember | null)[];
  readonly replacements: readonly (SlotMember & { readonly slot: number })[];
}

function muster(judged: readonly Judged[], reference: Claim, taken: readonly Judged[]): Muster {
  const joined = judged.filter(({ decision }) => decision === 'in_sync' || decision === 'recovering');
  assert(reference.raidDisks <= ROLES_MAX, 'a claim comes from a superblock without faults');
  const slots: (SlotMember | null)[] = Array.from({ length: reference.raidDisks }, () => null);
  const replacements: (SlotMember & { slot: number })[] = [];
  const originalsFirst = [...joined, ...taken].toSorted(
    (left, right) => Number(isReplacement(left.claim as Claim)) - Number(isReplacement(right.claim as Claim)),
  );
  for (const { claim, index } of originalsFirst) {
    assert(claim !== null, 'who joins has a claim');
    const member: SlotMember = {
      candidate: index,
      recoveredSectors: claim.recoveredSectors ?? Infinity,
      viaBitmap: (claim.featureMap & features.RECOVERY_BITMAP) !== 0 && claim.recoveredSectors !== null,
      dataOffsetSectors: claim.dataOffsetSectors,
      dataSectors: claim.dataSectors,
    };
    if (slots[claim.ownRole] === null) {
      slots[claim.ownRole] = member;
    } else {
      assert(isReplacement(claim), 'a slot has one member, and replacements');
      replacements.push({ ...member, slot: claim.ownRole });
    }
  }
  return { judged, reference, taken, slots, replacements };
}

function inSyncSlots(slots: readonly (SlotMember | null)[]): readonly boolean[] {
  return slots.map((member) => member !== null && member.recoveredSectors === Infinity);
}

/** Whether these slots hold all data. */
export function isEnough(numbers: LevelNumbersOfArray, present: readonly boolean[]): boolean {
  const { level, layout, raidDisks } = numbers;
  const missing = raidDisks - present.filter(Boolean).length;
  switch (level) {
    case 1:
      return missing < raidDisks;
    case 4:
    case 5:
      return missing <= 1;
    case 6:
      return missing <= 2;
    case 10:
      return isEnoughForRaid10(layout, present);
    default:
      return missing === 0;
  }
}

type LevelNumbersOfArray = Pick<LevelNumbers, 'level' | 'layout' | 'raidDisks'>;

/** The copies of a chunk are on near * far neighbours, beginning at every multiple of near. */
function isEnoughForRaid10(layout: number, present: readonly boolean[]): boolean {
  const { near, far } = raid10Copies(layout);
  const count = present.length;
  if (near * far < 1) return false;
  let first = 0;
  do {
    const copies = Array.from({ length: near * far }, (_, copy) => (first + copy) % count);
    if (!copies.some((slot) => present[slot] === true)) return false;
    first = (first + near) % count;
  } while (first !== 0);
  return true;
}

function judgeArray(
  judged: readonly Judged[],
  freshest: Claim | null,
  several: boolean,
  options: AssembleOptions,
): Assembly {
  const facts = arrayFacts(judged, freshest, several, options);
  const { label, decision } = rowFor(arrayRows, facts);
  const members = judged.map((each) => verdictOf(each, freshest));
  const refuse = (error: RaidError, needs: 'force' | 'run' | null = null): Assembly => {
    return { kind: 'refuse', row: label, error, needs, members };
  };
  const names = (wanted: MemberDecision): string => namesOf(judged, wanted);
  switch (decision) {
    case 'several':
      return refuse(
        new RaidError('SEVERAL_ARRAYS', 'the members belong to several arrays; give those of one'),
      );
    case 'nobody':
      return refuse(new RaidError('NOT_ENOUGH_MEMBERS', 'none of the devices is a member that holds a slot'));
    case 'unsupported':
      return refuse(
        freshest?.unsupported ??
          new RaidError('UNSUPPORTED_FEATURE', `${names('journal')}: a journal device`),
      );
    case 'ambiguous':
      return refuse(
        new RaidError(
          'DUPLICATE_MEMBER',
          `${names('copy')} claim to be the same member; leave the wrong one out`,
        ),
      );
    case 'forked':
      return refuse(
        new RaidError(
          'FORKED_HISTORY',
          `${names('forked')} went on without ${names('in_sync')}; leave one history out, or force the fresher one`,
        ),
        'force',
      );
    case 'too-few':
      return refuse(
        new RaidError('NOT_ENOUGH_MEMBERS', `${shortage(judged, freshest as Claim)}, too few to start`),
      );
    case 'too-many-stale':
      return refuse(
        new RaidError(
          'EVENTS_DISAGREE',
          `${shortage(judged, freshest as Claim)}; force takes the stale ${names('stale')} for current`,
        ),
        'force',
      );
    case 'dirty-degraded':
      return refuse(
        new RaidError(
          'DIRTY_DEGRADED',
          'the array was not stopped cleanly and a member is missing: parity may be wrong; force declares it clean',
        ),
        'force',
      );
    case 'missing':
      return refuse(
        new RaidError(
          'MEMBERS_MISSING',
          `${shortage(judged, freshest as Claim)}; it could run without the others`,
        ),
        'run',
      );
    case 'start':
    case 'start-with-stale':
    case 'declare-clean':
      return start(judged, freshest as Claim, facts, label, options);
  }
}

function arrayFacts(
  judged: readonly Judged[],
  freshest: Claim | null,
  several: boolean,
  options: AssembleOptions,
): ArrayFacts {
  const has = (wanted: MemberDecision): boolean => judged.some(({ decision }) => decision === wanted);
  const wishes = {
    force: options.force === true ? 'yes' : 'no',
    run: options.run === true ? 'yes' : 'no',
  } as const;
  const arrays = several ? 'several' : 'one';
  if (freshest === null) {
    return {
      ...{ arrays, freshest: 'no', usable: 'yes', copies: 'none', forks: 'none', enough: 'no' },
      ...{ complete: 'no', hole: 'no', expected: 'missing', ...wishes },
    };
  }
  const { slots } = muster(judged, freshest, []);
  const present = inSyncSlots(slots);
  const withStale = inSyncSlots(muster(judged, freshest, takeable(judged, slots)).slots);
  // A spare that was just given a slot is here. A slot that a replacement fills while still copying lacks its original.
  const spares = new Set(
    judged.filter(({ decision }) => decision === 'spare').map(({ claim }) => claim?.descriptor),
  );
  const expected = slots.every((member, slot) => {
    const counted = freshest.devRoles.filter((role, number) => role === slot && !spares.has(number)).length;
    return member === null ? counted === 0 : counted <= 1 || present[slot] === true;
  });
  return {
    arrays,
    freshest: 'yes',
    usable: freshest.unsupported === null && !has('journal') ? 'yes' : 'no',
    copies: has('copy') ? 'some' : 'none',
    forks: has('forked') ? 'some' : 'none',
    enough: isEnough(freshest, present) ? 'yes' : isEnough(freshest, withStale) ? 'stale' : 'no',
    complete: present.every(Boolean) ? 'yes' : 'no',
    hole: hasHole(judged, freshest) ? 'yes' : 'no',
    expected: expected ? 'here' : 'missing',
    ...wishes,
  };
}

/** Stale members for slots that nobody fills, freshest first. */
function takeable(judged: readonly Judged[], slots: readonly (SlotMember | null)[]): readonly Judged[] {
  const stale = judged.filter(({ decision, claim }) => {
    return decision === 'stale' && claim !== null && claim.recoveredSectors === null && !isReplacement(claim);
  });
  return stale
    .filter(({ claim }) => slots[(claim as Claim).ownRole] === null)
    .toSorted((left, right) => {
      const [a, b] = [left.claim as Claim, right.claim as Claim];
      return b.events - a.events || a.ownRole - b.ownRole;
    });
}

/** Equally fresh members that disagree about clean: the more cautious is right. */
function resyncOffsetOf(judged: readonly Judged[], freshest: Claim): number {
  if (freshest.level <= 0) return Infinity;
  const offsets = judged
    .filter(({ decision, claim }) => decision === 'in_sync' && claim?.events === freshest.events)
    .map(({ claim }) => (claim as Claim).resyncOffsetSectors);
  return Math.min(freshest.resyncOffsetSectors, ...offsets);
}

function hasHole(judged: readonly Judged[], freshest: Claim): boolean {
  if (!hasParity(freshest) || resyncOffsetOf(judged, freshest) === Infinity) return false;
  return !logged(judged, freshest, false).isAll;
}

function hasParity({ level }: Claim): boolean {
  return level === 4 || level === 5 || level === 6;
}

/** What the logs know: parity to be made, and whether it is right everywhere else. */
interface Logged {
  readonly cells: readonly PplCells[];
  readonly isAll: boolean;
}

const noLogs: Logged = { cells: [], isAll: false };

/**
 * What is to be recovered from the logs. Where a resync follows all the same it is worth its while: a member that fails before the
 * resync has come by is computed from what parity there is.
 *
 * Of a complete array more is asked than of a degraded one, since it can be resynced instead: in logs that Linux wrote an
 * entry that was passed over, or that nobody has begun, may stand for a resync that was due. In our own none does, and
 * it must not be taken for one: a resync leaves the array dirty while its next life empties its logs, and where a member is then
 * missing after another crash, nothing vouches for the others.
 */
function logged(judged: readonly Judged[], freshest: Claim, isComplete: boolean): Logged {
  const hasPpl = (freshest.featureMap & (features.PPL | features.MULTI_PPL)) !== 0;
  if (!hasPpl || resyncOffsetOf(judged, freshest) !== 0) return noLogs;
  const cells: PplCells[] = [];
  const torn: PplCells[] = [];
  let isAll = true;
  let isMarked = true;
  for (const { decision, claim, candidate } of judged) {
    if ((decision !== 'in_sync' && decision !== 'recovering') || isReplacement(claim as Claim)) continue;
    const { log } = candidate;
    if (log !== undefined && log.says !== 'nothing') cells.push(...log.cells);
    if (log?.says !== 'all-but') {
      isAll = false;
      continue;
    }
    if (isComplete && log.torn.length > 0 && !log.isMarked) isAll = false;
    isMarked &&= log.isMarked;
    torn.push(...(isComplete ? log.torn : []));
  }
  if (isComplete && cells.length + torn.length === 0 && !isMarked) isAll = false;
  return isAll ? { cells: [...cells, ...torn], isAll } : { cells, isAll };
}

/** The freshest first, and no more than it needs: of two copies of one thing, one stale, nobody could say which is read. */
function staleToTake(judged: readonly Judged[], freshest: Claim): readonly Judged[] {
  const isEnoughWith = (taken: readonly Judged[]): boolean =>
    isEnough(freshest, inSyncSlots(muster(judged, freshest, taken).slots));
  const stale = takeable(judged, muster(judged, freshest, []).slots);
  assert(isEnoughWith(stale), 'the facts said that the stale members suffice');
  return stale.reduceRight<readonly Judged[]>((taken, each) => {
    const without = taken.filter((other) => other !== each);
    return isEnoughWith(without) ? without : taken;
  }, stale);
}

/**
 * Whether rows that were being written can disagree in what is here. raid6 with one member missing computes it from P: then
 * Q has to be made to agree, or it does not fit what P says of that member, and the next loss but one reads garbage.
 */
function hasRedundancyLeft({ level }: Claim, slots: readonly (SlotMember | null)[]): boolean {
  return level === 6 && slots.filter((member) => member === null).length <= 1;
}

function start(
  judged: readonly Judged[],
  freshest: Claim,
  facts: ArrayFacts,
  row: string,
  options: AssembleOptions,
): Assembly {
  const forced: string[] = [];
  const taken = facts.enough === 'stale' ? staleToTake(judged, freshest) : [];
  for (const { claim, candidate } of taken) {
    const behind = freshest.events - (claim as Claim).events;
    forced.push(`${candidate.name} is taken for current, ${behind} events behind`);
  }
  const all = muster(judged, freshest, taken);
  const isComplete = inSyncSlots(all.slots).every(Boolean);
  let resyncOffsetSectors = resyncOffsetOf(judged, freshest);
  // A member that was away has a log of long ago.
  const logs = taken.length === 0 ? logged(judged, freshest, isComplete) : noLogs;
  let atRisk: AssembledArray['atRisk'] = null;
  if (logs.isAll) {
    resyncOffsetSectors = Infinity;
  } else if (!isComplete && hasParity(freshest) && resyncOffsetSectors !== Infinity) {
    atRisk = { fromSector: resyncOffsetSectors };
    if (hasRedundancyLeft(freshest, all.slots)) {
      forced.push('started although it was written when it stopped; what redundancy is left is resynced');
    } else {
      resyncOffsetSectors = Infinity;
      forced.push('declared clean although it was written when it stopped');
    }
  }
  const members = judged.map((each) => verdictOf(each, freshest, all));
  let geometry: Geometry;
  try {
    geometry = geometryFor(all, options);
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    return { kind: 'refuse', row, error, needs: null, members };
  }
  const array: AssembledArray = {
    version: freshest.found.version,
    geometry,
    slots: all.slots,
    spares: judged.filter(({ decision }) => decision === 'spare').map(({ index }) => index),
    replacements: all.replacements,
    resyncOffsetSectors,
    freshest: judged.findIndex(({ claim }) => claim === freshest),
    md: mdArrayOf(all, resyncOffsetSectors),
    replay: logs.isAll || logs.cells.length > 0 ? logs.cells : null,
    isVouchedFor: logs.isAll,
    atRisk,
    forced,
  };
  return { kind: 'start', row, array, members };
}

function geometryFor({ reference, slots }: Muster, options: AssembleOptions): Geometry {
  const numbers = {
    ...arrayFieldsOf(reference),
    hasRaid0Layout: (reference.featureMap & features.RAID0_LAYOUT) !== 0,
  };
  const dataSectors = slots.filter((member) => member !== null).map((member) => member.dataSectors);
  return geometryOf(numbers, dataSectors, options.raid0Layout ?? null);
}

function mdArrayOf(all: Muster, resyncOffsetSectors: number): MdArray | null {
  const { reference, judged, slots, replacements } = all;
  const { version } = reference.found;
  if (version === '0.90') return null;
  const states = new Map<number, MdMemberState>();
  for (const [slot, member] of slots.entries()) {
    if (member === null) continue;
    const { candidate, recoveredSectors, viaBitmap } = member;
    const inSync = recoveredSectors === Infinity;
    states.set(
      candidate,
      inSync ? { state: 'in_sync', slot } : { state: 'recovering', slot, recoveredSectors, viaBitmap },
    );
  }
  for (const { candidate, slot, recoveredSectors } of replacements) {
    states.set(candidate, { state: 'replacement', slot, recoveredSectors });
  }
  for (const { decision, index } of judged) if (decision === 'spare') states.set(index, { state: 'spare' });

  const members: MdMember[] = [];
  for (const [index, state] of states) {
    const claim = judged[index]?.claim;
    assert(claim?.found.version === version, 'all members have one metadata version');
    members.push({ ...state, descriptor: claim.descriptor, superblock: claim.found.superblock });
  }
  return {
    ...arrayFieldsOf(reference),
    version,
    featureMap: reference.featureMap & ~MEMBER_FEATURES,
    // Of all, so that the next update is above whatever is on any of them.
    events: Math.max(reference.events, ...members.map(({ superblock }) => superblock.events)),
    resyncOffsetSectors,
    // Somebody on whom the table counts is not here: the slot is empty, or has a replacement that was about to take over.
    hasUnrecordedLoss:
      reference.level > 0 &&
      (slots.includes(null) ||
        reference.devRoles.some(
          (role, number) => isSlot(role) && !members.some(({ descriptor }) => descriptor === number),
        )),
    members: members.sort((left, right) => left.descriptor - right.descriptor),
  };
}

function verdictOf(judged: Judged, freshest: Claim | null, all: Muster | null = null): MemberVerdict {
  const { claim, candidate, decision, index } = judged;
  const isTaken = all?.taken.includes(judged) === true;
  const isCopying = all?.replacements.some((member) => member.candidate === index) === true;
  const holdsSlot =
    claim !== null && isSlot(claim.ownRole) && ['in_sync', 'recovering', 'stale'].includes(decision);
  return {
    name: candidate.name,
    row: isTaken ? `${judged.label}, forced` : judged.label,
    joins: isTaken ? 'in_sync' : isCopying ? 'replacement' : joinsOf(decision),
    slot: holdsSlot ? (claim as Claim).ownRole : null,
    events: claim?.events ?? null,
    because: becauseOf(judged, freshest),
  };
}

function joinsOf(decision: MemberDecision): MemberVerdict['joins'] {
  switch (decision) {
    case 'in_sync':
    case 'recovering':
    case 'spare':
    case 'faulty':
    case 'stale':
      return decision;
    default:
      return 'out';
  }
}

function becauseOf({ claim, candidate, decision, label }: Judged, freshest: Claim | null): string {
  const behind = freshest === null || claim === null ? 0 : freshest.events - claim.events;
  switch (decision) {
    case 'unreadable':
      return candidate.claim instanceof RaidError ? candidate.claim.message : 'it cannot be read';
    case 'again':
      return 'it is given twice';
    case 'foreign':
      return `it belongs to the array ${claim?.setUuid}`;
    case 'contradicts':
      return `its ${claim !== null && freshest !== null ? contradictionOf(claim, freshest) : 'shape'} is not the array's`;
    case 'copy':
      return 'another device claims to be the same member';
    case 'superseded':
      return 'a fresher device is this member, or has its slot';
    case 'journal':
      return 'it is a journal device';
    case 'faulty':
      return 'it was recorded as faulty';
    case 'forked':
      return 'it went on without the others, and they without it';
    case 'stale':
      return behind > 1 ? `it is ${behind} events behind` : `the array went on without it: ${label.slice(3)}`;
    case 'spare':
      return label.startsWith('@R') ? 'it was dropped at the last update, and is rebuilt in full' : '';
    case 'in_sync':
    case 'recovering':
    case 'impossible':
      return '';
  }
}

function namesOf(judged: readonly Judged[], wanted: MemberDecision): string {
  return judged
    .filter(({ decision }) => decision === wanted)
    .map(({ candidate }) => candidate.name)
    .join(', ');
}

function shortage(judged: readonly Judged[], freshest: Claim): string {
  const present = inSyncSlots(muster(judged, freshest, []).slots).filter(Boolean).length;
  return `${present} of ${freshest.raidDisks} members are here and in sync`;
}
