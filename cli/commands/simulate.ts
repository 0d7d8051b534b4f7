/** Arrays in a world of failing disks and power cuts, where one seed is one history. */
import { readFile, writeFile } from 'node:fs/promises';
import { setFlagsFromString } from 'node:v8';
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { SavedCase, SimFailure, SimMode, SimTally, SimulateStep } from '../../lib/index.ts';
import { count, examples, jsonOption, quietOption, seconds } from '../options.ts';

interface Options {
  readonly seed?: number;
  readonly runs?: number;
  readonly time?: number;
  readonly level?: string;
  readonly beyond?: boolean;
  readonly paths?: boolean;
  readonly replay?: string;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const FAILED = 1;
const RUNS_DEFAULT = 200;
/** For making a case smaller: Ctrl-C ends it sooner. */
const SHRINK_MS = 120_000;
const SEED_MAX = 2 ** 31;
/**
 * How much of a function is run, in bytes of bytecode, before V8 compiles it for speed: nine times what it does by itself.
 * A simulation runs nearly all there is, and little of it often: of its processor time a third went into compiling.
 */
const COMPILED_AFTER_BYTES = 600_000;

export function define(command: Command): void {
  command
    .option('--seed <n>', 'of the first case; the others follow (default: by chance)', seed)
    .option('--runs <n>', `so many cases (default ${RUNS_DEFAULT}, or as many as there is time for)`, count)
    .option('--time <seconds>', 'as many cases as there is time for', seconds)
    .option('-l, --level <level>', 'only arrays of this level')
    .option('--beyond', 'more failures than arrays survive: what is lost must be refused, never wrong')
    .addOption(
      new Option(
        '--paths',
        'paths to disks, and not the disks: random fabrics in which everything breaks, alone and below arrays',
      ).conflicts(['level', 'beyond']),
    )
    .addOption(
      new Option('--replay <file>', 'one case, as it was saved when it failed').conflicts([
        'seed',
        'runs',
        'time',
        'level',
        'beyond',
        'paths',
      ]),
    )
    .addOption(jsonOption('the summary as one JSON document'))
    .addOption(quietOption('no progress, and a summary only if something is wrong'))
    .action(async (options: Options) => {
      await run(options);
    });
  examples(
    command,
    [
      'raidsim simulate --time 60',
      'raidsim simulate --seed 7 --runs 100 --level raid6',
      'raidsim simulate --paths --time 60',
      'raidsim simulate --replay raidsim-case-7.json',
    ],
    `The array, its planner and its metadata are the ones that work on real disks; disks, clock and chance are simulated. The
same seed and number of cases is the same history, to the last event: the hash says so. A case that fails is made
smaller, saved in this folder, and the command that replays it is printed.

Exit codes: 0 nothing was lost that may not be, 1 a case failed, 130 interrupted.`,
  );
}

function seed(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value >= SEED_MAX)
    throw new InvalidArgumentError(`Write a whole number below ${SEED_MAX}.`);
  return value;
}

async function run(options: Options): Promise<void> {
  if (options.replay !== undefined) return await replay(options.replay, options);
  setFlagsFromString(`--interrupt-budget=${COMPILED_AFTER_BYTES}`);
  const { realHost, simulate } = await import('../../lib/index.ts');
  const { Interrupt, INTERRUPTED } = await import('../progress.ts');
  const { duration, progressLine } = await import('../render.ts');

  using interrupt = new Interrupt();
  const first = options.seed ?? realHost.random(SEED_MAX);
  const runs = options.runs ?? (options.time === undefined ? RUNS_DEFAULT : undefined);
  const mode: SimMode | undefined = options.beyond === true ? 'beyond' : undefined;
  const isDrawn = options.quiet !== true && options.json !== true && process.stderr.isTTY;
  let last: SimulateStep | null = null;
  let drawnMs = 0;
  for await (const step of simulate({
    seed: first,
    runs,
    seconds: options.time,
    level: options.level,
    mode,
    paths: options.paths,
  })) {
    last = step;
    if (isDrawn && realHost.now() - drawnMs > 100) {
      drawnMs = realHost.now();
      const fraction = Math.max(
        step.cases / (runs ?? Number.POSITIVE_INFINITY),
        step.seconds / (options.time ?? Number.POSITIVE_INFINITY),
      );
      const rate = Math.round(step.operations / step.seconds);
      progressLine(
        fraction,
        `seed ${step.one.seed}  ${step.cases} cases in ${duration(step.seconds)}  ${rate} operations/s`,
      );
    }
    if (step.outcome.failure !== null || interrupt.isAsked) break;
  }
  if (isDrawn) progressLine(null, '');
  if (last === null) return;
  const failed =
    last.outcome.failure === null ? null : await keep(last, last.outcome.failure, options, interrupt);
  if (interrupt.isAsked) process.exitCode = INTERRUPTED;
  if (failed !== null) process.exitCode = FAILED;
  await tell(first, last, failed, options);
}

/** A case that failed, as small as it gets. */
interface Kept {
  readonly path: string;
  readonly failure: SimFailure;
  readonly steps: number;
}

async function keep(
  step: SimulateStep,
  failure: SimFailure,
  options: Options,
  interrupt: { readonly isAsked: boolean },
): Promise<Kept> {
  const { realHost, runCase, saveCase, shrinkCase } = await import('../../lib/index.ts');
  const { progressLine } = await import('../render.ts');
  const isDrawn = options.quiet !== true && options.json !== true && process.stderr.isTTY;
  const start = realHost.now();
  const { smallest } = await shrinkCase(step.one, failure, {
    isEnough: () => interrupt.isAsked || realHost.now() - start > SHRINK_MS,
    onProgress: (runs, steps) => {
      if (isDrawn)
        progressLine(runs / 2000, `seed ${step.one.seed} failed; making it smaller: ${steps} steps`);
    },
  });
  if (isDrawn) progressLine(null, '');
  const outcome = await runCase(smallest);
  const path = `raidsim-case-${step.one.seed}.json`;
  await writeFile(path, saveCase(smallest, outcome));
  return { path, failure: outcome.failure ?? failure, steps: smallest.steps.length };
}

async function replay(path: string, options: Options): Promise<void> {
  const { parseCase, runCase } = await import('../../lib/index.ts');
  const { printJson } = await import('../progress.ts');
  const saved: SavedCase = parseCase(await readFile(path, 'utf8'));
  const { failure, hash, tally } = await runCase(saved.case);
  const isSame = hash === saved.hash;
  if (failure !== null) process.exitCode = FAILED;
  if (options.json === true) {
    return printJson({ replay: path, hash, sameHistory: isSame, failure, ...figuresOf(tally) });
  }
  const { seed, steps } = saved.case;
  const subject =
    saved.case.mode === 'paths'
      ? `paths${saved.case.config.array === null ? '' : ` below ${saved.case.config.array.level}`}`
      : saved.case.config.level;
  const what = `${subject}, ${steps.length} steps, seed ${seed}`;
  if (failure === null) {
    process.stdout.write(
      `${path} (${what}) does not fail here: it was "${saved.failure.message}"\nhash ${hash}\n`,
    );
    return;
  }
  process.stdout.write(`${path} (${what}) ${isSame ? 'fails as it did' : 'fails, in a history that is not the saved one: the code is another'}
${failure.kind}, step ${failure.step}, ${failure.atMs.toFixed(3)} ms: ${failure.message}
hash ${hash}
`);
}

/** What may be lost, and why that is no fault of the array. */
const reasons: Readonly<Record<string, string>> = {
  L1: 'more failed than redundancy covers: refused with an error',
  L3: 'sectors read wrong, of a member that was missing after a crash, in rows that were being written (the write hole)',
  L7: 'sectors read wrong that a disk had lied about, or computed from one',
};

function figuresOf(tally: SimTally): Readonly<Record<string, unknown>> {
  const { operations, faults, crashes, recoveries, losses } = tally;
  const allowed = Object.entries(losses).flatMap(([number, times]) =>
    times === 0 ? [] : [{ number, times, reason: reasons[number] ?? '' }],
  );
  return { operations, faults, crashes, recoveries, losses: { allowed } };
}

async function tell(first: number, last: SimulateStep, failed: Kept | null, options: Options): Promise<void> {
  const { printJson } = await import('../progress.ts');
  const { duration, keyed, paint } = await import('../render.ts');
  const { cases, tally, hash, operations } = last;
  const rate = Math.round(operations / last.seconds);
  if (options.json === true) {
    const notAllowed =
      failed === null
        ? []
        : [{ seed: last.one.seed, ...failed.failure, steps: failed.steps, file: failed.path }];
    const { losses, ...figures } = figuresOf(tally);
    return printJson({
      seed: first,
      cases,
      seconds: Math.round(last.seconds * 1000) / 1000,
      operationsPerSecond: rate,
      ...figures,
      losses: { ...(losses as object), notAllowed },
      hash,
    });
  }
  if (options.quiet === true && failed === null) return;
  const counts = (of: Readonly<Record<string, number>>): string =>
    Object.entries(of)
      .filter(([, times]) => times > 0)
      .toSorted(([, a], [, b]) => b - a)
      .map(([name, times]) => `${times} ${name}`)
      .join(', ') || 'none';
  const total = (of: Readonly<Record<string, number>>): number =>
    Object.values(of).reduce((sum, each) => sum + each, 0);
  const losses = Object.entries(tally.losses).filter(([, times]) => times > 0);
  const allowed = losses.map(([number, times]) => `${number}: ${times}, ${reasons[number]}`);
  process.stdout.write(
    `${keyed([
      ['seeds', `${first} to ${last.one.seed}: ${cases} cases in ${duration(last.seconds)}`],
      ['operations', `${operations}, ${rate} a second\n${counts(tally.operations)}`],
      ['faults', `${total(tally.faults)}\n${counts(tally.faults)}`],
      ['crashes', counts(tally.crashes)],
      ['recoveries', counts(tally.recoveries)],
      ['losses allowed', allowed.length === 0 ? 'none' : allowed.join('\n')],
      [
        'not allowed',
        failed === null ? paint('green', 'none') : paint(['bold', 'red'], `seed ${last.one.seed}`),
      ],
      ['hash', hash],
    ])}\n`,
  );
  if (failed === null) return;
  const { kind, message } = failed.failure;
  process.stdout.write(
    `\nseed ${last.one.seed} failed: ${kind}: ${message}\nsaved with ${failed.steps} steps; to replay it: ${paint('bold', `raidsim simulate --replay ${failed.path}`)}\n`,
  );
}
