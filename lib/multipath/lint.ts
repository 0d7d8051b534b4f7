/**
 * What multipath.conf and a topology mean, before anything fails: how long requests may stall, how many failures are survived,
 * and which single one is not. What is wrong in a file is named at line and column, in raidsim.json as well.
 */
import { type Diagnostic, readConf, type Settings } from './conf.ts';
import { complaintAboutPlan, componentNames, type FabricPlan, settingsOf, topologyOf } from './san.ts';
import {
  failuresSurvived,
  longestStallMs,
  pathsTo,
  singlePointsOfFailure,
  transportTimes,
} from './topology.ts';

export interface LintLun {
  /** Those for which all of it is the same. */
  readonly names: readonly string[];
  readonly paths: number;
  /** Whichever they are. */
  readonly failuresSurvived: number;
  readonly singlePointsOfFailure: readonly string[];
  /** null: for ever. */
  readonly longestStallMs: number | null;
  /** From when a component fails until its requests go on by other paths; null: as long as it is away. */
  readonly failOverMs: number | null;
  /** The same where it falls silent and nobody notices. */
  readonly silentFailOverMs: number;
  /** The same where a checker meets the silence; null: there is no checker. */
  readonly foundByCheckerMs: number | null;
  /** How long requests wait for a path where there is none; null: for ever. */
  readonly noPathMs: number | null;
  /** All that settings mean in time, for people. */
  readonly meaning: readonly string[];
}

export interface LintReport {
  readonly diagnostics: readonly Diagnostic[];
  /** Empty where the file has errors. */
  readonly luns: readonly LintLun[];
}

export interface LintTiming {
  readonly ioTimeoutMs?: number;
  readonly tickMs?: number;
}

/** Of a multipath.conf. Sections for one LUN alone count as LUNs, besides those that are named. */
export function lintConf(
  text: string,
  plan: FabricPlan,
  members: readonly string[],
  timing: LintTiming = {},
): LintReport {
  const { conf, diagnostics } = readConf(text);
  if (diagnostics.some(({ kind }) => kind === 'error')) return { diagnostics, luns: [] };
  const named = conf.multipaths.map(({ wwid }) => wwid).filter((wwid) => !members.includes(wwid));
  const topology = topologyOf(plan, [...members, ...new Set(named)]);
  const luns: LintLun[] = [];
  for (const lun of topology.luns) {
    const settings = settingsOf(conf, lun);
    const paths = pathsTo(topology, lun.identity);
    add(luns, lun.identity, reportOn(settings, paths, lun.secondary === 'standby', timing));
  }
  return { diagnostics, luns };
}

/** A disk with paths that are connections to servers: each is all that must work for it. */
export interface RemoteLun {
  readonly name: string;
  readonly settings: Settings;
  readonly paths: readonly { readonly components: readonly string[] }[];
}

/** No transport tells of a server that is gone: its connections end with it, which is noticed at once. */
export function lintRemote(remote: readonly RemoteLun[], timing: LintTiming = {}): readonly LintLun[] {
  const luns: LintLun[] = [];
  for (const { name, settings, paths } of remote) {
    const atOnce = { ...settings, fastIoFailMs: 0, devLossMs: Number.POSITIVE_INFINITY };
    const report = reportOn(atOnce, paths, false, timing);
    const [, , ...others] = report.meaning;
    const first = [
      'a server ends: its requests go on by another path at once',
      `a server falls silent: after ${seconds(report.silentFailOverMs)}; with a change unanswered nobody knows what becomes of it: the member has failed`,
    ];
    add(luns, name, { ...report, meaning: [...first, ...others] });
  }
  return luns;
}

function add(luns: LintLun[], name: string, report: Omit<LintLun, 'names'>): void {
  const same = luns.findIndex(
    ({ names: _names, ...other }) => JSON.stringify(other) === JSON.stringify(report),
  );
  const before = luns[same];
  if (before === undefined) luns.push({ names: [name], ...report });
  else luns[same] = { ...before, names: [...before.names, name] };
}

/** Of the `fabric` in a raidsim.json: null where there is none, or none that can be used. */
export function lintManifest(
  text: string,
  namesOf: (members: readonly string[]) => readonly string[],
): {
  readonly plan: FabricPlan | null;
  readonly members: readonly string[];
  /** What these are: files, or URIs. */
  readonly sources: readonly string[];
  readonly diagnostics: readonly Diagnostic[];
} {
  const refuse = (offset: number, message: string) => ({
    plan: null,
    members: [],
    sources: [],
    diagnostics: [{ kind: 'error' as const, ...placeOf(text, offset), message }],
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (failure) {
    return refuse(
      syntaxErrorAt(text),
      (failure as Error).message.replace(/ in JSON at position.*|, (\.\.\.)?".*is not valid JSON$/s, ''),
    );
  }
  const { members: sources, fabric } = Object(value) as {
    readonly members?: unknown;
    readonly fabric?: unknown;
  };
  if (!Array.isArray(sources) || !sources.every((each) => typeof each === 'string'))
    return refuse(offsetOf(text, ['members']), 'a manifest has members, a list of names');
  const members = namesOf(sources);
  if (fabric === undefined) return { plan: null, members, sources, diagnostics: [] };
  const complaint = complaintAboutPlan(fabric, members);
  if (complaint !== null) return refuse(offsetOf(text, ['fabric', ...complaint.at]), complaint.text);
  const plan = fabric as FabricPlan;
  const known = componentNames(plan, members);
  const strangers = Object.keys(plan.conditions ?? {}).filter((name) => !known.includes(name));
  const diagnostics = strangers.map((name) => ({
    kind: 'unknown' as const,
    ...placeOf(text, offsetOf(text, ['fabric', 'conditions', name])),
    message: `there is no component or path "${name}"; its condition is left out`,
  }));
  return { plan, members, sources, diagnostics };
}

function reportOn(
  settings: Settings,
  paths: RemoteLun['paths'],
  isStandby: boolean,
  { ioTimeoutMs = 30_000, tickMs = 1000 }: LintTiming,
): Omit<LintLun, 'names'> {
  const { noPathRetry, pollingMs, maxPollingMs, checkerTimeoutMs, checker } = settings;
  const { fastIoFailMs, devLossMs } = transportTimes(settings);
  const foundByCheckerMs = checker === 'none' ? null : maxPollingMs + checkerTimeoutMs + 2 * tickMs;
  const silentFailOverMs = ioTimeoutMs + tickMs;
  const failOverMs = Math.min(fastIoFailMs ?? devLossMs, silentFailOverMs);
  const stallMs = longestStallMs({
    settings,
    paths: paths.length,
    standby: isStandby ? paths.length : 0,
    ioTimeoutMs,
    tickMs,
  });
  const retriesMs = noPathRetry.kind === 'retries' ? noPathRetry.count * pollingMs : 0;
  return {
    paths: paths.length,
    failuresSurvived: failuresSurvived(paths),
    singlePointsOfFailure: singlePointsOfFailure(paths),
    longestStallMs: Number.isFinite(stallMs) ? stallMs : null,
    failOverMs,
    silentFailOverMs,
    foundByCheckerMs,
    noPathMs: noPathRetry.kind === 'queue' ? null : retriesMs,
    meaning: meaningOf(settings, {
      fastIoFailMs,
      devLossMs,
      failOverMs,
      silentFailOverMs,
      foundByCheckerMs,
      tickMs,
    }),
  };
}

function meaningOf(
  settings: Settings,
  times: {
    readonly fastIoFailMs: number | null;
    readonly devLossMs: number;
    readonly failOverMs: number;
    readonly silentFailOverMs: number;
    readonly foundByCheckerMs: number | null;
    readonly tickMs: number;
  },
): readonly string[] {
  const { fastIoFailMs, devLossMs, failOverMs, silentFailOverMs, foundByCheckerMs, tickMs } = times;
  const { pollingMs, checker } = settings;
  const why =
    failOverMs === silentFailOverMs
      ? 'the time that a request has'
      : fastIoFailMs === null
        ? 'dev_loss_tmo, as fast_io_fail_tmo is off'
        : 'fast_io_fail_tmo';
  const removed = Number.isFinite(devLossMs)
    ? `the path is removed after ${seconds(devLossMs)}`
    : 'the path is never removed';
  return [
    `a component fails: its requests go on by another path after ${seconds(failOverMs)} (${why}); ${removed}`,
    `a component falls silent: after ${seconds(silentFailOverMs)}; where nothing is asked of it, ${
      foundByCheckerMs === null
        ? 'nobody finds out'
        : `a checker (${checker}) finds out within ${seconds(foundByCheckerMs)}`
    }`,
    `it comes back: its paths are used again within ${seconds(pollingMs + tickMs)}`,
    noPathMeaning(settings),
    failbackMeaning(settings),
    flappingMeaning(settings),
  ];
}

function noPathMeaning({ noPathRetry, pollingMs }: Settings): string {
  if (noPathRetry.kind === 'retries') {
    const { count } = noPathRetry;
    return `no path is left: requests wait for one for ${seconds(count * pollingMs)} (${count} checks), then fail`;
  }
  return noPathRetry.kind === 'fail'
    ? 'no path is left: requests fail at once'
    : 'no path is left: requests wait for one, for ever';
}

function failbackMeaning({ failback }: Settings): string {
  const what = 'a better group comes back: it is used';
  if (failback.kind === 'deferred') return `${what} after ${seconds(failback.afterMs)}`;
  return `${what} ${
    {
      immediate: 'at once',
      manual: 'when somebody says so (path switch)',
      followover: 'if it had no path at all before',
    }[failback.kind]
  }`;
}

function flappingMeaning({ sanPathErr, marginalPath, marginalGroups }: Settings): string {
  const kept = marginalGroups ? 'is used last' : 'is kept out';
  if (marginalPath !== null) {
    const { doubleFailedMs, sampleMs, errorsPermille, recheckGapMs } = marginalPath;
    return `a path fails twice within ${seconds(doubleFailedMs)}: it ${kept} for ${seconds(sampleMs)}, and for ${seconds(recheckGapMs)} more at a time while over ${errorsPermille} in 1000 reads fail`;
  }
  if (sanPathErr !== null) {
    const { threshold, forgetChecks, recoveryMs } = sanPathErr;
    return `a path fails more than ${threshold} times, of which one is forgotten every ${forgetChecks} checks: it ${kept} for ${seconds(recoveryMs)}`;
  }
  return 'a path comes and goes: it is taken back every time (no san_path_err_*, no marginal_path_*)';
}

function seconds(ms: number): string {
  return `${ms / 1000} s`;
}

// ── Places in JSON ───────────────────────────────────────────────────────────────────────────────────────────────────

function placeOf(text: string, offset: number): { readonly line: number; readonly column: number } {
  const before = text.slice(0, offset).split('\n');
  return { line: before.length, column: (before.at(-1)?.length ?? 0) + 1 };
}

/** Where a text that is no JSON ceases to be the beginning of one. Not every engine's message says so. */
function syntaxErrorAt(text: string): number {
  const mayGoOn = (length: number): boolean => {
    try {
      JSON.parse(text.slice(0, length));
      return true;
    } catch (failure) {
      const { message } = failure as Error;
      const [, at] = /at position (\d+)/.exec(message) ?? [];
      return /end of JSON|Unterminated/.test(message) || (at !== undefined && Number(at) >= length);
    }
  };
  let good = 0;
  let bad = text.length + 1;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    if (mayGoOn(middle)) good = middle;
    else bad = middle;
  }
  return Math.min(good, text.length);
}

/** Where a value begins in a text that is JSON; what leads nowhere ends where the way does. */
function offsetOf(text: string, at: readonly (string | number)[]): number {
  let offset = skipBlanks(text, 0);
  for (const step of at) {
    const found = typeof step === 'number' ? itemAt(text, offset, step) : memberAt(text, offset, step);
    if (found === null) break;
    offset = found;
  }
  return offset;
}

function skipBlanks(text: string, from: number): number {
  let offset = from;
  while (/\s/.test(text[offset] ?? '')) offset += 1;
  return offset;
}

function itemAt(text: string, list: number, index: number): number | null {
  if (text[list] !== '[') return null;
  let offset = skipBlanks(text, list + 1);
  for (let passed = 0; passed < index; passed += 1) {
    offset = skipBlanks(text, endOf(text, offset));
    if (text[offset] !== ',') return null;
    offset = skipBlanks(text, offset + 1);
  }
  return text[offset] === ']' ? null : offset;
}

function memberAt(text: string, object: number, key: string): number | null {
  if (text[object] !== '{') return null;
  let offset = skipBlanks(text, object + 1);
  while (text[offset] === '"') {
    const end = endOf(text, offset);
    const name = JSON.parse(text.slice(offset, end)) as string;
    const value = skipBlanks(text, skipBlanks(text, end) + 1);
    if (name === key) return value;
    offset = skipBlanks(text, endOf(text, value));
    if (text[offset] !== ',') return null;
    offset = skipBlanks(text, offset + 1);
  }
  return null;
}

function endOf(text: string, from: number): number {
  let depth = 0;
  let offset = from;
  for (;;) {
    const char = text[offset] ?? '';
    if (char === '"') {
      const string = /"(?:[^"\\]|\\.)*"/sy;
      string.lastIndex = offset;
      offset += string.exec(text)?.[0].length ?? 1;
    } else if (char === '{' || char === '[') {
      depth += 1;
      offset += 1;
    } else if (char === '}' || char === ']') {
      depth -= 1;
      offset += 1;
    } else {
      const plain = /[^"{}[\],\s]+|[\s,]+/y;
      plain.lastIndex = offset;
      offset += plain.exec(text)?.[0].length ?? 1;
    }
    if (depth <= 0 || offset >= text.length) return offset;
  }
}
