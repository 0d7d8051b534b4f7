/** What an array is like now. */
import type { Command } from 'commander';
import type { Inspection } from '../../lib/index.ts';
import { examples, jsonOption, quietOption, seconds } from '../options.ts';

interface Options {
  readonly watch?: boolean;
  readonly interval: number;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .option('-w, --watch', 'again and again, until Ctrl-C')
    .option('-i, --interval <seconds>', 'with --watch: how often', seconds, 1)
    .addOption(jsonOption('one JSON document; with --watch, one line each time'))
    .addOption(quietOption('only the exit code'))
    .action(async (folder: string, options: Options) => {
      await run(folder, options);
    });
  examples(
    command,
    [
      'raidsim status demo',
      'raidsim status demo --watch',
      'raidsim status demo --json | jq -r .state',
      'raidsim status demo --quiet || mail -s "demo is not well" root',
    ],
    `Nothing is written, so it may be asked at any time, also while another process works on the array.

FIXED: sectors that could not be read and were rewritten, since the disk came into the array, as md counts them.

Exit codes: 0 healthy, 10 degraded or recovering, 11 failed.`,
  );
}

async function run(folder: string, options: Options): Promise<void> {
  const { checkFolder } = await import('../array.ts');
  const { inspect } = await import('../reach.ts');
  const { printJson, printJsonLine } = await import('../progress.ts');
  const { exitCodeOfState } = await import('../state.ts');

  await checkFolder(folder);
  if (options.watch === true) return await watch(folder, options, printJsonLine);
  const inspection = await inspect(folder);
  if (options.json === true) printJson(inspection.status);
  else if (options.quiet !== true) process.stdout.write(await textOf(folder, inspection));
  process.exitCode = exitCodeOfState(inspection.status.state);
}

async function watch(
  folder: string,
  options: Options,
  printJsonLine: (value: unknown) => void,
): Promise<void> {
  const { inspect } = await import('../reach.ts');
  const { Interrupt, INTERRUPTED, Pace } = await import('../progress.ts');
  const { clearScreen, redraw } = await import('../render.ts');
  const { setTimeout: sleep } = await import('node:timers/promises');

  using interrupt = new Interrupt();
  const pace = new Pace();
  const draws = process.stdout.isTTY && options.json !== true;
  for (let turn = 0; !interrupt.isAsked; turn += 1) {
    const inspection = await inspect(folder);
    const { sync } = inspection.status;
    if (sync !== null) pace.note(sync.doneBytes, performance.now());
    if (options.json === true) printJsonLine(inspection.status);
    else if (options.quiet !== true) {
      const text = await textOf(folder, inspection, pace);
      if (draws && turn === 0) clearScreen();
      if (draws) redraw(text);
      else process.stdout.write(turn === 0 ? text : `\n${text}`);
    }
    await sleep(options.interval * 1000, undefined, { signal: interrupt.signal }).catch(() => undefined);
  }
  process.exitCode = INTERRUPTED;
}

/** Disks that no path of the fabric leads to. */
async function unreachedOf(folder: string): Promise<readonly string[]> {
  const { RaidError } = await import('../../lib/index.ts');
  const { pathsFound } = await import('../paths.ts');
  try {
    const { luns } = await pathsFound(folder);
    return luns.filter(({ isGone }) => isGone).map(({ name }) => name);
  } catch (error) {
    // A multipath.conf that is wrong: the state is told all the same.
    if (!(error instanceof RaidError)) throw error;
    return [];
  }
}

async function textOf(
  folder: string,
  inspection: Inspection,
  pace: import('../progress.ts').Pace | null = null,
): Promise<string> {
  const { readManifest } = await import('../../lib/index.ts');
  const { newDiskPath } = await import('../array.ts');
  const { stateText } = await import('../state.ts');
  const manifest = await readManifest(folder);
  // Whoever has it open knows what it cannot reach, and has failed it.
  const isBroken = inspection.owner === null && Object.keys(manifest.fabric?.conditions ?? {}).length > 0;
  return stateText(inspection, {
    folder,
    unreached: isBroken ? await unreachedOf(folder) : [],
    newDisk: newDiskPath(folder, manifest),
    readOnly: manifest.readOnly === true,
    pace,
  });
}
