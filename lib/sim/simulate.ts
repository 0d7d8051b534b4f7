/**
 * Case after case, until the time or the number of runs is over or one fails; and what there is to tell about them.
 *
 * Cases are numbered by their seeds, from the first on, and each stands for itself: the hash of the whole is the hash of
 * theirs in order. The event loop gets its turn between cases, so that a caller can show progress and stop.
 */
import { createHash } from 'node:crypto';
import { RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { parseLevel } from '../layout/levels.ts';
import { type PathCase, pickPathCase } from './paths.ts';
import { runPathCase } from './paths-world.ts';
import { type Case, type Mode, modes, pickCase } from './swarm.ts';
import { emptyTally, type Failure, type Outcome, runCase, type Tally } from './world.ts';

/** An array on disks that fail, or the paths to a disk. */
export type AnyCase = Case | PathCase;

export interface SimulateOptions {
  /** Of the first case; the next has the next number. */
  readonly seed: number;
  /** So many cases, or as many as there is time for. */
  readonly runs?: number | undefined;
  readonly seconds?: number | undefined;
  /** Only arrays of this level, as `create` takes it. */
  readonly level?: string | number | undefined;
  readonly mode?: Mode | undefined;
  /** Of fabrics (paths.ts), and not of disks. */
  readonly paths?: boolean | undefined;
  /** At most so many steps in a case. */
  readonly steps?: number | undefined;
  readonly host?: Pick<Host, 'now' | 'turn'> | undefined;
}

/** After each case. */
export interface SimulateStep {
  readonly one: AnyCase;
  readonly outcome: Outcome;
  readonly cases: number;
  /** Of all cases so far. */
  readonly tally: Tally;
  readonly operations: number;
  readonly seconds: number;
  readonly hash: string;
}

/** Goes on after a case that failed: who does not want that stops asking. */
export async function* simulate(options: SimulateOptions): AsyncGenerator<SimulateStep> {
  const { seed, runs = Number.POSITIVE_INFINITY, seconds = Number.POSITIVE_INFINITY } = options;
  const host = options.host ?? realHost;
  const wishes = {
    steps: options.steps,
    mode: options.mode,
    level: options.level === undefined ? undefined : parseLevel(options.level),
  };
  const start = host.now();
  const tally = emptyTally();
  const hash = createHash('sha256');
  const elapsed = (): number => (host.now() - start) / 1000;
  for (let cases = 0; cases < runs && elapsed() < seconds; ) {
    const one = options.paths === true ? pickPathCase(seed + cases, wishes) : pickCase(seed + cases, wishes);
    const outcome = await runAlone(one, host);
    cases += 1;
    hash.update(outcome.hash);
    addTo(tally, outcome.tally);
    yield {
      one,
      outcome,
      cases,
      tally,
      operations: operationsIn(tally),
      seconds: elapsed(),
      hash: hash.copy().digest('hex').slice(0, 32),
    };
  }
}

/** One case, and a turn of the event loop: a promise that was rejected and that nobody heard of shows only then. */
export async function runAlone(one: AnyCase, host: Pick<Host, 'turn'> = realHost): Promise<Outcome> {
  const unheard: unknown[] = [];
  const note = (reason: unknown): void => {
    unheard.push(reason);
  };
  process.on('unhandledRejection', note);
  try {
    const outcome = one.mode === 'paths' ? await runPathCase(one) : await runCase(one);
    await new Promise<void>((resolve) => host.turn(resolve));
    const [first] = unheard;
    if (first === undefined || outcome.failure !== null) return outcome;
    const text = first instanceof Error ? (first.stack ?? first.message) : String(first);
    const failure: Failure = {
      kind: 'violation',
      message: `a rejection that nobody heard of, which would end the process: ${text}`,
      step: one.steps.length,
      atMs: 0,
    };
    return { ...outcome, failure };
  } finally {
    process.off('unhandledRejection', note);
  }
}

export function operationsIn(tally: Tally): number {
  return Object.values(tally.operations).reduce((sum, count) => sum + count, 0);
}

/** What a replay file holds. */
export interface SavedCase {
  readonly raidsim: 'case';
  readonly failure: Pick<Failure, 'kind' | 'message'>;
  readonly hash: string;
  readonly case: AnyCase;
}

export function saveCase(one: AnyCase, outcome: Outcome): string {
  const { failure, hash } = outcome;
  const saved: SavedCase = {
    raidsim: 'case',
    failure: { kind: failure?.kind ?? 'error', message: failure?.message.split('\n')[0] ?? '' },
    hash,
    case: one,
  };
  const { steps, ...rest } = one;
  // One line a step: that is how people read, and cut, histories.
  const lines = steps.map((step) => `      ${JSON.stringify(step)}`).join(',\n');
  const head = JSON.stringify({ ...saved, case: { ...rest, steps: [] } }, null, 2);
  return `${head.replace('"steps": []', () => `"steps": [\n${lines}\n    ]`)}\n`;
}

export function parseCase(text: string): SavedCase {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new RaidError('BAD_ARGUMENT', 'this is not a case that raidsim saved: it is no JSON', { cause });
  }
  const saved = value as Partial<SavedCase> | null;
  const one = saved?.case;
  const isOurs =
    saved?.raidsim === 'case' &&
    typeof one?.seed === 'number' &&
    Array.isArray(one.steps) &&
    (one.mode === 'paths'
      ? Array.isArray(one.config?.conf)
      : typeof one.config?.level === 'string' && modes.includes(one.mode));
  if (!isOurs) throw new RaidError('BAD_ARGUMENT', 'this is not a case that raidsim saved');
  return saved as SavedCase;
}

function addTo(sum: Tally, more: Tally): void {
  addCounts(sum.operations, more.operations);
  addCounts(sum.faults, more.faults);
  addCounts(sum.crashes, more.crashes);
  addCounts(sum.recoveries, more.recoveries);
  addCounts(sum.losses, more.losses);
  sum.events += more.events;
}

function addCounts<Key extends string>(
  sum: Partial<Record<Key, number>>,
  more: Partial<Record<Key, number>>,
): void {
  for (const [key, count] of Object.entries(more) as [Key, number][]) sum[key] = (sum[key] ?? 0) + count;
}
