/** What a person wants to know of an array at a glance: is my data safe, what is wrong, what to do now. */
import { type ArrayStatus, formatSize, type Inspection, type MemberStatus, realHost } from '../lib/index.ts';
import { shellWord } from './array.ts';
import { inWords } from './failure.ts';
import type { Pace } from './progress.ts';
import { bar, keyed, paint, paintState, percent, slotMap, table } from './render.ts';

const HEALTHY = 0;
const DEGRADED = 10;
const FAILED = 11;
const BAR_WIDTH = 24;
const SLOTS_NAMED = 16;
const SNAPSHOTS_SHOWN = 5;

export function exitCodeOfState(state: string): number {
  if (state === 'clean' || state === 'active') return HEALTHY;
  return state === 'failed' || state === 'inactive' ? FAILED : DEGRADED;
}

export interface StateOptions {
  /** How the array was called, for commands to type. */
  readonly folder: string;
  /** A path for a new disk, to be named in such a command. */
  readonly newDisk: string;
  /** Disks that are sound, and that whoever opens the array would not reach. */
  readonly unreached?: readonly string[];
  readonly readOnly?: boolean;
  /** How fast a sync that somebody else does is seen to be. */
  readonly pace?: Pace | null;
}

export function stateText(inspection: Inspection, options: StateOptions): string {
  const { status } = inspection;
  const { unreached = [] } = options;
  const rows: (readonly [string, string])[] = [
    ['array', `${paint('bold', status.name)}  ${paint('dim', shapeOf(inspection))}`],
    [
      'state',
      `${paintState(status.state, status.state.toUpperCase())}${mapOf(inspection)}${ownerOf(inspection)}${options.readOnly === true ? paint('dim', '  read-only') : ''}`,
    ],
    ['data', unreached.length > 0 ? 'on disks that cannot all be reached' : dataLine(inspection)],
  ];
  const problems = [...unreached.map((name) => `${name}: no path leads to it`), ...problemsOf(inspection)];
  if (problems.length > 0) rows.push(['problem', problems.join('\n')]);
  const action = actionOf(inspection, options);
  if (action !== null) rows.push(['do now', action]);
  if (status.sync !== null) rows.push(['sync', syncLine(status.sync, inspection, options.pace ?? null)]);
  if (status.sizeBytes > 0) rows.push(['size', formatSize(status.sizeBytes)]);
  if (status.snapshots !== undefined) rows.push(['snapshots', snapshotLines(inspection)]);
  return `${keyed(rows)}\n\n${membersTable(status.members)}\n`;
}

function shapeOf({ status, memberCount }: Inspection): string {
  const parts = [status.level, `${memberCount} ${memberCount === 1 ? 'disk' : 'disks'}`];
  if (status.chunkBytes > 0) parts.push(`${formatSize(status.chunkBytes)} chunks`);
  if (status.layout !== null) parts.push(status.layout);
  if (status.consistencyPolicy === 'bitmap') parts.push('bitmap');
  if (status.metadata !== null) parts.push(`md ${status.metadata}`);
  return parts.join(', ');
}

function mapOf({ status, memberCount }: Inspection): string {
  if (memberCount === 0) return '';
  return `  ${slotMap(
    Array.from({ length: memberCount }, (_, slot) =>
      status.members.some((member) => member.slot === slot && member.state === 'in_sync'),
    ),
  )}`;
}

function ownerOf({ owner }: Inspection): string {
  if (owner === null) return '';
  return paint(
    'dim',
    owner.pid === null ? '  in use by another process' : `  in use by process ${owner.pid}`,
  );
}

function dataLine(inspection: Inspection): string {
  const { status, sparedFailures, refusal } = inspection;
  switch (status.state) {
    case 'failed':
      return refusal?.code === 'EVENTS_DISAGREE'
        ? 'not available: too few disks are up to date'
        : 'not available: too few disks are here';
    case 'inactive':
      return 'not available until a person decides';
    default:
      if (status.members.some(({ state, because }) => state === 'in_sync' && because !== undefined))
        return `${paint('yellow', 'what too many disks lack in the same place is lost')}: raidsim read --keep-going names it`;
      if (status.consistencyPolicy === 'none')
        return 'complete, with no redundancy: a disk that fails takes data with it';
      if (status.state === 'resyncing')
        return `complete, but ${paint('yellow', 'until it is in sync again')} a disk that fails may take what was written last`;
      if (sparedFailures === 0)
        return `complete, but ${paint('yellow', 'the next disk that fails may take data with it')}`;
      return `safe: any ${sparedFailures === 1 ? 'disk' : `${sparedFailures} disks`} may fail`;
  }
}

/** The newest ones: name, age, and what it alone takes. */
function snapshotLines({ status, snapshotUsage }: Inspection): string {
  const snapshots = status.snapshots ?? [];
  const lines = snapshots
    .slice(-SNAPSHOTS_SHOWN)
    .map(({ name, createdAt, state, uniqueBytes, lostBytes }) => {
      const age = Math.max(0, (realHost.wallClock() - Date.parse(createdAt)) / 1000);
      const own = state === 'valid' ? formatSize(uniqueBytes) : paint('red', 'invalid');
      const what = lostBytes > 0 ? `${own}, ${paint('red', `${formatSize(lostBytes)} lost`)}` : own;
      return `${name}  ${ageOf(age)} ago  ${what}`;
    });
  const more = snapshots.length - lines.length;
  if (more > 0) lines.unshift(`${more} older ones: raidsim snapshot list`);
  if (snapshotUsage !== null) {
    const { usedBytes, limitBytes } = snapshotUsage;
    lines.push(paint('dim', `copies take ${formatSize(usedBytes)} of ${formatSize(limitBytes)}`));
  }
  return lines.join('\n');
}

/** In the largest unit of which there are two. */
function ageOf(seconds: number): string {
  const units = [
    ['days', 86_400],
    ['h', 3600],
    ['min', 60],
  ] as const;
  for (const [unit, length] of units)
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  return `${Math.floor(seconds)} s`;
}

function problemsOf({ status, refusal, scrubbed, snapshotProblem }: Inspection): readonly string[] {
  const lines: string[] = [];
  if (refusal !== null) lines.push(refusal.message.split('\n')[0] ?? '');
  for (const { name, state, because, slot } of status.members) {
    if (
      state === 'faulty' ||
      (state === 'missing' && name !== '-') ||
      (state === 'in_sync' && because !== undefined)
    )
      lines.push(`${name}${slot === null ? '' : ` (slot ${slot})`}: ${because ?? state}`);
  }
  const unnamed = status.members.filter(({ name, state }) => name === '-' && state === 'missing');
  const explained = status.members.filter(
    ({ name, slot, state }) => name !== '-' && slot === null && state !== 'spare',
  );
  if (unnamed.length > explained.length) {
    const shown = unnamed.slice(0, SLOTS_NAMED).map(({ slot }) => slot);
    const more = unnamed.length - shown.length;
    const slots = `${shown.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
    lines.push(`slot${unnamed.length === 1 ? '' : 's'} ${slots}: no disk`);
  }
  if (status.state === 'resyncing')
    lines.push(
      'redundancy may be out of date: it has never been brought in sync, or was not stopped cleanly',
    );
  if (status.mismatches > 0) {
    const count = status.mismatches === 1 ? '1 mismatch' : `${status.mismatches} mismatches`;
    lines.push(`the last scrub found ${count}${scrubbed === null ? '' : `, on ${scrubbed.at}`}`);
  }
  if (snapshotProblem !== null) lines.push(snapshotProblem.message);
  const said = lines.map(inWords);
  return said.length <= 6 ? said : [...said.slice(0, 5), `and ${said.length - 5} more`];
}

/** The one command that gets on. */
function actionOf(
  inspection: Inspection,
  { folder, newDisk, readOnly, unreached = [] }: StateOptions,
): string | null {
  const { status, refusal, needs, owner } = inspection;
  const array = shellWord(folder);
  const command = (text: string, why = ''): string =>
    `${paint('bold', `raidsim ${text}`)}${why === '' ? '' : paint('dim', `   ${why}`)}`;
  // Without them it would be opened as degraded, and they would miss what is written.
  if (unreached.length > 0) return command(`path restore ${array}`, 'before it is opened without them');
  if (refusal !== null) {
    if (needs !== null) {
      const why =
        refusal.code === 'DIRTY_DEGRADED'
          ? 'what was written last may be damaged'
          : 'what the stale disks have missed is lost';
      return command(`assemble ${array} --${needs}`, needs === 'force' ? why : '');
    }
    return refusal.code === 'NOT_ENOUGH_MEMBERS'
      ? `bring the missing disks back, then ${command(`status ${array}`)}`
      : null;
  }
  if (readOnly === true) return null;
  const isDue = status.sync !== null;
  if (isDue) return owner === null ? command(`rebuild ${array}`, 'it goes on where it was') : null;
  if (status.state !== 'degraded' || status.consistencyPolicy === 'none') {
    const out = status.members.find(({ state, name, slot }) => isOut(state) && name !== '-' && slot === null);
    return out === undefined ? null : command(`remove ${array} ${shellWord(out.name)}`, 'to let go of it');
  }
  const spare = status.members.find(({ state }) => state === 'spare');
  if (spare !== undefined) return command(`rebuild ${array}`, `onto ${spare.name}, the spare`);
  return command(`rebuild ${array} --onto ${shellWord(newDisk)}`, 'a new disk');
}

function isOut(state: string): boolean {
  return state === 'faulty' || state === 'missing';
}

function syncLine(sync: NonNullable<ArrayStatus['sync']>, { owner }: Inspection, pace: Pace | null): string {
  const fraction = sync.totalBytes === 0 ? 1 : sync.doneBytes / sync.totalBytes;
  const parts = [
    `${sync.action} ${bar(fraction, BAR_WIDTH)} ${percent(fraction)}`,
    `${formatSize(sync.doneBytes)} of ${formatSize(sync.totalBytes)}`,
  ];
  if (owner === null) parts.push('nobody is at it');
  else if (pace !== null) parts.push(...pace.words(sync.totalBytes - sync.doneBytes));
  return parts.join('  ');
}

/**
 * Slots without a disk are not told again where disks without a slot are listed that were in them. Of errors only those
 * that superblocks count are shown: the others are known to nobody but the process that has the array open.
 */
function membersTable(members: readonly MemberStatus[]): string {
  const unnamed = members.filter(({ name }) => name === '-').length;
  const out = members.filter(({ name, slot, state }) => name !== '-' && slot === null && isOut(state)).length;
  const empty = out >= unnamed ? [] : members.filter(({ name }) => name === '-').slice(0, SLOTS_NAMED);
  const listed = members.filter((member) => member.name !== '-' || empty.includes(member));
  const rows = listed.map(({ name, slot, state, errors, source }) => {
    const count = (value: number): string => {
      if (state === 'missing') return '-';
      return value === 0 ? '0' : paint('red', String(value));
    };
    return [
      `  ${name}`,
      slot === null ? '-' : String(slot),
      paintState(state),
      count(errors.corrected),
      source ?? '',
    ];
  });
  return table(
    [
      { title: '  DISK' },
      { title: 'SLOT', align: 'right' },
      { title: 'STATE' },
      { title: 'FIXED', align: 'right' },
      { title: 'SOURCE' },
    ],
    rows,
  );
}
