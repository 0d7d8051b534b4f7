/** Brings redundancy back. */
import type { Command } from 'commander';
import { examples, jsonOption, quietOption, SIZES } from '../options.ts';

interface Options {
  readonly onto?: string;
  readonly limit?: string;
  readonly force?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .option('--onto <file>', 'add this disk first; a file that is not there is made, as large as the others')
    .option('--limit <rate>', 'bytes a second, such as 50M (default: as fast as it goes)')
    .option('-f, --force', 'with --onto: take a disk that holds something; what it holds is lost')
    .addOption(jsonOption('progress as JSON lines, and a last one of type "summary"'))
    .addOption(quietOption())
    .action(async (folder: string, options: Options) => {
      await run(folder, options);
    });
  examples(
    command,
    [
      'raidsim rebuild demo',
      'raidsim rebuild demo --onto demo/disk4.img',
      'raidsim rebuild demo --limit 50M',
      'raidsim rebuild demo --json | jq -c "{action, doneBytes, etaSeconds}"',
    ],
    `First what a crash may have left out of step, then empty slots, from spares. Interrupted, it goes on where it was.

${SIZES}
Exit codes: 0 all redundancy is there, 10 a disk is still missing, 130 interrupted.`,
  );
}

async function run(folder: string, options: Options): Promise<void> {
  const { formatSize, parseSize, RaidError } = await import('../../lib/index.ts');
  const { commandLine, newDiskPath, shellWord } = await import('../array.ts');
  const { Interrupt, INTERRUPTED, printJsonLine, Progress, untilAsked } = await import('../progress.ts');
  const { inspect, reach } = await import('../reach.ts');
  const { duration, paint } = await import('../render.ts');
  const { exitCodeOfState } = await import('../state.ts');

  const limit = options.limit === undefined ? null : parseSize(options.limit.replace(/\/s$/, ''));
  if (limit === 0)
    throw new RaidError('BAD_ARGUMENT', '--limit 0 would never end; leave it out for no limit');
  using interrupt = new Interrupt();
  const say = (text: string): void => {
    if (options.json !== true && options.quiet !== true) process.stdout.write(`${text}\n`);
  };
  const reached = await reach(folder, { writes: true });
  const { manifest } = reached;
  const progress = new Progress({ json: options.json === true, quiet: options.quiet === true });
  let doneBytes = 0;
  let startBytes: number | null = null;
  try {
    const steps = reached.run('rebuild', {
      onto: options.onto === undefined ? null : await reached.word(options.onto),
      force: options.force === true,
      limitBytesPerSecond: limit,
    });
    for await (const step of untilAsked(steps, interrupt.signal)) {
      if (step.said !== null) {
        say(step.said);
        continue;
      }
      const { action, totalBytes } = step;
      startBytes ??= step.doneBytes;
      doneBytes = Math.max(doneBytes, step.doneBytes);
      progress.show({ action, doneBytes: step.doneBytes, totalBytes });
    }
  } finally {
    progress.clear();
    await reached.close();
  }

  const inspection = await inspect(folder);
  const { status } = inspection;
  const isInterrupted = interrupt.isAsked && status.sync !== null;
  process.exitCode = isInterrupted ? INTERRUPTED : exitCodeOfState(status.state);
  if (options.json === true) {
    return printJsonLine({
      type: 'summary',
      state: status.state,
      degraded: status.degraded,
      interrupted: isInterrupted,
      seconds: Math.round(progress.seconds * 1000) / 1000,
    });
  }
  const array_ = shellWord(folder);
  if (isInterrupted) {
    const sync = status.sync;
    const at = sync === null ? '' : ` at ${formatSize(sync.doneBytes)} of ${formatSize(sync.totalBytes)}`;
    const goesOn = reached.isLive
      ? `it goes on in the process that serves ${status.name}; to watch again: raidsim rebuild ${array_}`
      : `it goes on there with: raidsim rebuild ${array_}`;
    process.stderr.write(`${reached.isLive ? 'detached' : 'interrupted'}${at}; ${goesOn}\n`);
  } else if (status.state === 'degraded') {
    if (status.consistencyPolicy === 'none') return;
    const slots = status.degraded === 1 ? 'a disk is' : `${status.degraded} disks are`;
    const { reportError } = await import('../render.ts');
    reportError(
      {
        code: 'NOT_ENOUGH_MEMBERS',
        message: `${status.name} is still degraded: ${slots} missing, and there is no spare to rebuild onto${commandLine('rebuild', folder, '--onto', newDiskPath(folder, manifest))}`,
        exitCode: exitCodeOfState(status.state),
        details: {},
      },
      { json: false },
    );
  } else if (startBytes === null) {
    say(`${paint('bold', status.name)} is ${status.state}: there is nothing to rebuild`);
  } else {
    const rate =
      progress.seconds < 0.05 || doneBytes <= startBytes
        ? ''
        : ` (${formatSize(Math.round((doneBytes - startBytes) / progress.seconds))}/s)`;
    say(`${paint('bold', status.name)} is ${status.state} again, after ${duration(progress.seconds)}${rate}`);
  }
}
