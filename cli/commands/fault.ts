/** Breaks disks of an array that is served, on cue. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { FaultWhen } from '../../lib/index.ts';
import { examples, jsonOption, quietOption, SIZES } from '../options.ts';
import type { FaultAsked, FaultTold } from '../serving.ts';

interface Options {
  readonly on: 'read' | 'write' | 'flush' | 'any';
  readonly offset?: string;
  readonly length?: string;
  readonly when: FaultWhen;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of an array that is served')
    .argument('<disk>', 'name (disk1), path or slot number; or list, clear')
    .argument('[what]', 'error, latent, corrupt, delay, hang, clear')
    .argument('[time]', 'of a delay: 20ms, 0.5s')
    .addOption(
      new Option('--on <request>', 'which requests an error is for')
        .choices(['read', 'write', 'flush', 'any'])
        .default('read'),
    )
    .option('--offset <size>', 'of error, latent, corrupt: where, in the data of the disk')
    .option('--length <size>', 'and how many bytes (default: 4K)')
    .option('--when <when>', 'of an error: forever, once, nth=3, every=10, after=100', when, 'forever')
    .addOption(jsonOption('one JSON document'))
    .addOption(quietOption())
    .action(
      async (
        folder: string,
        disk: string,
        what: string | undefined,
        time: string | undefined,
        options: Options,
      ) => {
        await run(folder, disk, what ?? null, time ?? null, options);
      },
    );
  examples(
    command,
    [
      'raidsim fault demo disk1 error --on write --when after=100',
      'raidsim fault demo disk1 latent --offset 1M --length 64K',
      'raidsim fault demo disk2 corrupt --offset 2M',
      'raidsim fault demo disk0 delay 20ms',
      'raidsim fault demo disk0 hang',
      'raidsim fault demo list',
      'raidsim fault demo disk0 clear',
      'raidsim fault demo clear',
    ],
    `error: requests fail, with --offset those that touch the range. latent: sectors cannot be read until they are
rewritten. corrupt: they read wrong until they are rewritten. The images stay as they are. For the first fault the array
is opened anew, with filters on its disks; it is slower until the last one is cleared.

${SIZES}`,
  );
}

function when(text: string): FaultWhen {
  if (text === 'forever' || text === 'once') return text;
  const [, word, number] = /^(nth|every|after)=(\d{1,9})$/.exec(text) ?? [];
  const count = Number(number);
  if (word === 'nth' && count > 0) return { nth: count };
  if (word === 'every' && count > 0) return { every: count };
  if (word === 'after') return { after: count };
  throw new InvalidArgumentError('Write forever, once, nth=3, every=10 or after=100.');
}

async function run(
  folder: string,
  disk: string,
  what: string | null,
  time: string | null,
  options: Options,
): Promise<void> {
  const { RaidError } = await import('../../lib/index.ts');
  const { checkFolder, commandLine } = await import('../array.ts');
  const { printJson } = await import('../progress.ts');
  const { connect, resultOf } = await import('../reach.ts');

  await checkFolder(folder, [disk]);
  const isForAll = what === null && (disk === 'list' || disk === 'clear');
  const asked = isForAll || what === 'clear' ? null : await askedFault(what, time, options);
  const control = await connect(folder);
  if (control === null) {
    throw new RaidError(
      'NOT_SUPPORTED',
      `${folder} is not served: a fault lasts as long as the process that has the array open. In another terminal:${commandLine('serve', folder)}`,
    );
  }
  await using serving = control;
  const told = async (): Promise<readonly FaultTold[]> =>
    (await resultOf(serving.call('faults', null))) as readonly FaultTold[];
  const said: string[] = [];
  if (asked !== null)
    for await (const line of serving.call('fault', { disk, asked })) said.push(String(line));
  else if (!(isForAll && disk === 'list')) {
    for await (const line of serving.call('clear', { disk: isForAll ? null : disk })) said.push(String(line));
  } else {
    const list = await told();
    if (list.length === 0) said.push('there are no faults');
    for (const { disk: name, words, hits } of list) {
      said.push(
        `${name}: ${words}${hits === null ? '' : ` (${hits === 1 ? '1 request' : `${hits} requests`} so far)`}`,
      );
    }
  }
  if (options.json === true) printJson(await told());
  else if (options.quiet !== true) process.stdout.write(`${said.join('\n')}\n`);
}

async function askedFault(what: string | null, time: string | null, options: Options): Promise<FaultAsked> {
  const { parseSize, RaidError } = await import('../../lib/index.ts');
  const { closest } = await import('../closest.ts');

  const where =
    options.offset === undefined && options.length === undefined
      ? null
      : { offsetBytes: parseSize(options.offset ?? '0'), lengthBytes: parseSize(options.length ?? '4K') };
  const kinds = ['error', 'latent', 'corrupt', 'delay', 'hang', 'clear'];
  switch (what) {
    case 'error':
      return { kind: 'error', on: options.on, where, when: options.when };
    case 'latent':
    case 'corrupt':
      if (where === null) {
        throw new RaidError('BAD_ARGUMENT', `say where the disk is to be ${what}: --offset 1M --length 64K`);
      }
      return { kind: what, where };
    case 'delay': {
      const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s)$/.exec(time ?? '') ?? [];
      if (number === undefined)
        throw new RaidError('BAD_ARGUMENT', 'say how long a request is to take: delay 20ms');
      return { kind: 'delay', delayMs: Number(number) * (unit === 's' ? 1000 : 1) };
    }
    case 'hang':
      return { kind: 'hang' };
    default: {
      const close = what === null ? null : closest(what, kinds);
      const hint = close === null ? `there are ${kinds.join(', ')}` : `did you mean ${close}?`;
      throw new RaidError(
        'BAD_ARGUMENT',
        `${what === null ? 'say what is to go wrong' : `"${what}" is no fault`}; ${hint}`,
      );
    }
  }
}
