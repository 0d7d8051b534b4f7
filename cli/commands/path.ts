/** Several paths to every disk: what there is, and what breaks on cue. */
import { type Command, InvalidArgumentError } from 'commander';
import type { Condition } from '../../lib/index.ts';
import { actionArgument, count, examples, jsonOption, quietOption, SIZES } from '../options.ts';

const actions = ['list', 'fail', 'restore', 'hang', 'delay', 'flap', 'limit', 'switch', 'lint'] as const;
type Action = (typeof actions)[number];

interface Options {
  readonly stats?: boolean;
  readonly up?: number;
  readonly down?: number;
  readonly bandwidth?: string;
  readonly depth?: number;
  readonly hbas?: number;
  readonly controllers?: number;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** What an action takes besides: an option that it does not know is a mistake, not something to be passed over. */
const taken: Readonly<Record<Action, readonly (keyof Options)[]>> = {
  list: ['stats'],
  fail: [],
  restore: [],
  hang: [],
  delay: [],
  flap: ['up', 'down'],
  limit: ['bandwidth', 'depth'],
  switch: [],
  lint: ['hbas', 'controllers'],
};

export function define(command: Command): void {
  command
    .addArgument(actionArgument('path', actions, { ls: 'list', show: 'list' }))
    .argument('<array>', 'folder of the array; lint: or a multipath.conf, or a raidsim.json')
    .argument(
      '[name...]',
      'components (hba0, sw0, ctl1, ctl1p0, hba0-sw0, disk2), paths; delay: and the time',
    )
    .optionsGroup('Options of list:')
    .option('--stats', 'requests, share, errors and latency of each path')
    .optionsGroup('Options of flap:')
    .option('--up <time>', 'how long it works (default: 1s)', milliseconds)
    .option('--down <time>', 'how long it is away (default: 1s)', milliseconds)
    .optionsGroup('Options of limit:')
    .option('--bandwidth <size>', 'so many bytes a second, each way')
    .option('--depth <n>', 'so many requests at a time', count)
    .optionsGroup('Options of lint, for a multipath.conf without an array:')
    .option('--hbas <n>', 'HBAs of the host (default: 2)', count)
    .option('--controllers <n>', 'controllers of the storage (default: 2)', count)
    .optionsGroup('Options:')
    .addOption(jsonOption('one JSON document: the paths afterwards'))
    .addOption(quietOption())
    .action(async (action: Action, folder: string, names: readonly string[], options: Options) => {
      await run(action, folder, names, options);
    });
  examples(
    command,
    [
      'raidsim create demo --level 5 --disks 4 --hbas 2 --controllers 2',
      'raidsim path list demo --stats',
      'raidsim path fail demo hba0',
      'raidsim path fail demo hba1:ctl0p1:disk2',
      'raidsim path delay demo sw1 20ms',
      'raidsim path flap demo ctl0p0 --up 10s --down 500ms',
      'raidsim path switch demo ctl1',
      'raidsim path restore demo',
      'raidsim path lint /etc/multipath.conf',
    ],
    `HBA, PORT and disk make a path: hba0:ctl1p0:disk2, or hba0:ctl1p0 for all disks. What is done to a component lasts until
it is restored; restore without a name restores everything. A served array notices at once.

A file multipath.conf in the folder of the array says how its paths are used. lint says what that means in time: stalls,
failures survived, single points of failure, also of members that several NBD URIs lead to; it ends with 3 where a file has errors.

TIME: 20ms, 1.5s. ${SIZES}`,
  );
}

function milliseconds(text: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s)$/.exec(text) ?? [];
  if (number === undefined) throw new InvalidArgumentError('Write a time, for example 20ms or 1.5s.');
  return Number(number) * (unit === 's' ? 1000 : 1);
}

async function run(
  action: Action,
  folder: string,
  names: readonly string[],
  options: Options,
): Promise<void> {
  const { RaidError } = await import('../../lib/index.ts');
  const strange = (Object.keys(options) as (keyof Options)[]).find(
    (name) => name !== 'json' && name !== 'quiet' && !taken[action].includes(name),
  );
  if (strange !== undefined) throw new RaidError('BAD_ARGUMENT', `path ${action} has no option --${strange}`);
  if (action === 'lint') return await lint(folder, names, options);
  const { checkFolder } = await import('../array.ts');
  await checkFolder(folder, names);
  if (action === 'list') {
    if (names.length > 0) throw new RaidError('BAD_ARGUMENT', 'path list takes an array, and no names');
    return await list(folder, options);
  }
  if (names.length === 0 && action !== 'restore')
    throw new RaidError('BAD_ARGUMENT', `say what: path ${action} ${folder} hba0`);
  const said =
    action === 'switch' ? await switchTo(folder, names) : await change(folder, action, names, options);
  if (options.json === true) await list(folder, options);
  else if (options.quiet !== true)
    process.stdout.write(`${said.length === 0 ? 'there was nothing to restore' : said.join('\n')}\n`);
}

async function list(folder: string, options: Options): Promise<void> {
  const { readManifest } = await import('../../lib/index.ts');
  const { listing, pathsFound } = await import('../paths.ts');
  const { printJson } = await import('../progress.ts');
  const { connect, resultOf } = await import('../reach.ts');
  const manifest = await readManifest(folder);
  const control = await connect(folder);
  await using _control = control;
  const live = control === null ? null : ((await resultOf(control.call('paths', null))) as SanStatusOrNull);
  const status = live ?? (await pathsFound(folder));
  if (options.json === true) return printJson({ isLive: live !== null, ...status });
  process.stdout.write(`${listing(status, manifest, { withStatistics: options.stats === true })}\n`);
}

type SanStatusOrNull = import('../../lib/index.ts').SanStatus | null;

async function change(
  folder: string,
  action: Exclude<Action, 'list' | 'lint' | 'switch'>,
  words: readonly string[],
  options: Options,
): Promise<readonly string[]> {
  const { RaidError, parseSize } = await import('../../lib/index.ts');
  const { changePaths } = await import('../paths.ts');
  const { connect } = await import('../reach.ts');
  let names = words;
  let wanted: Partial<Condition>;
  switch (action) {
    case 'fail':
      wanted = { state: 'failed' };
      break;
    case 'hang':
      wanted = { state: 'hung' };
      break;
    case 'restore':
      wanted = { state: 'up', flap: null, delayMs: 0, bytesPerSecond: null, queueDepth: null };
      break;
    case 'flap':
      wanted = { flap: { upMs: options.up ?? 1000, downMs: options.down ?? 1000 } };
      break;
    case 'delay': {
      const time = words.at(-1) ?? '';
      if (words.length < 2 || !/^\d/.test(time))
        throw new RaidError('BAD_ARGUMENT', `say what, and how long: path delay ${folder} hba0 20ms`);
      names = words.slice(0, -1);
      wanted = { delayMs: delayOf(time, RaidError) };
      break;
    }
    case 'limit':
      if (options.bandwidth === undefined && options.depth === undefined)
        throw new RaidError('BAD_ARGUMENT', 'say how much: --bandwidth 100M, --depth 8');
      wanted = {
        ...(options.bandwidth === undefined ? {} : { bytesPerSecond: parseSize(options.bandwidth) }),
        ...(options.depth === undefined ? {} : { queueDepth: options.depth }),
      };
      break;
  }
  const input = { names, change: wanted };
  const control = await connect(folder);
  if (control === null) return await changePaths(folder, null, input);
  await using serving = control;
  const said: string[] = [];
  for await (const line of serving.call('path', input)) said.push(String(line));
  return said;
}

function delayOf(text: string, Refusal: typeof import('../../lib/index.ts').RaidError): number {
  try {
    return milliseconds(text);
  } catch {
    throw new Refusal('BAD_ARGUMENT', `"${text}" is no time; write 20ms or 1.5s`);
  }
}

async function switchTo(folder: string, names: readonly string[]): Promise<readonly string[]> {
  const { RaidError } = await import('../../lib/index.ts');
  const { commandLine } = await import('../array.ts');
  const { connect } = await import('../reach.ts');
  const control = await connect(folder);
  if (control === null) {
    throw new RaidError(
      'NOT_SUPPORTED',
      `${folder} is not served: which group is in use is known to the process that has the array open. In another terminal:${commandLine('serve', folder)}`,
    );
  }
  await using serving = control;
  const said: string[] = [];
  for await (const line of serving.call('pathSwitch', { names })) said.push(String(line));
  return said;
}

async function lint(target: string, names: readonly string[], options: Options): Promise<void> {
  const { RaidError } = await import('../../lib/index.ts');
  if (names.length > 0) throw new RaidError('BAD_ARGUMENT', 'path lint takes one file or one array');
  const { lintPaths, lintWords } = await import('../path-lint.ts');
  const { printJson } = await import('../progress.ts');
  const report = await lintPaths(target, options);
  if (options.json === true) printJson(report);
  else {
    const words = lintWords(report, options.quiet === true);
    if (words !== '') process.stdout.write(`${words}\n`);
  }
  if (report.diagnostics.some(({ kind }) => kind === 'error')) process.exitCode = 3;
}
