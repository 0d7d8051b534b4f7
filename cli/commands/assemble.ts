/** Opens disks that are there already. */
import type { Command } from 'commander';
import { InvalidArgumentError } from 'commander';
import { examples, jsonOption, quietOption } from '../options.ts';

/** Of ranges at risk. */
const RANGES_SHOWN = 8;

interface Options {
  readonly readonly?: boolean;
  readonly force?: boolean;
  readonly run?: boolean;
  readonly overlay?: boolean;
  readonly partition?: number;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder for the manifest, raidsim.json; made if it is not there')
    .argument('[file...]', 'the disks (default: those of the manifest, or all in the folder that are disks)')
    .option('--readonly', 'never write a byte to the disks, now or later')
    .option('--overlay', 'all writes go to files beside the manifest, to be thrown away or kept')
    .option(
      '--partition <n>',
      'the files are whole disks: take this partition of each (FILE#N takes it of one)',
      partitionNumber,
    )
    .option('--run', 'start although disks are missing that the array still counted on')
    .option('-f, --force', 'take stale disks for current, or a dirty degraded array for clean, as mdadm')
    .addOption(jsonOption())
    .addOption(quietOption())
    .action(async (folder: string, files: readonly string[], options: Options) => {
      await run(folder, files, options);
    });
  examples(
    command,
    [
      'raidsim assemble nas /images/sd[abcd].img --overlay',
      'raidsim assemble nas /images/sd[abcd].img --partition 3 --readonly',
      'raidsim assemble demo demo/*.img',
      'raidsim assemble demo --run',
    ],
    'Disks are told by their superblocks: in which order they are given does not matter.',
  );
}

async function run(folder: string, named: readonly string[], options: Options): Promise<void> {
  const { assembleArray, formatSize, isUri, RaidError, sourceIn } = await import('../../lib/index.ts');
  const { checkFile, checkNewFolder, commandLine, dropFromManifest, inspectFolder } = await import(
    '../array.ts'
  );
  const { partitionHint } = await import('../partitions.ts');
  const { printJson } = await import('../progress.ts');
  const { paint } = await import('../render.ts');

  await checkNewFolder(folder, 'assemble');
  const { partition } = options;
  if (
    partition !== undefined &&
    (named.length === 0 || named.some((file) => isUri(file) || file.includes('#')))
  ) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `--partition ${partition} is for images of whole disks; name these, without a partition behind them`,
    );
  }
  const given = partition === undefined ? named : named.map((file) => `${file}#${partition}`);
  for (const file of given) await checkFile(file);
  const files = given.length > 0 ? given : await disksOf(folder);
  const words = [folder, ...given];
  try {
    const array = await assembleArray(folder, files, {
      readOnly: options.readonly,
      overlay: options.overlay,
      force: options.force,
      run: options.run,
      autoSync: false,
      cores: 1,
    });
    const report = array.assembly!;
    await array.close();
    if (given.length > 0) {
      for (const [index, { row }] of report.members.entries()) {
        const file = given[index];
        if (file !== undefined && isStranger(row)) await dropFromManifest(folder, sourceIn(folder, file));
      }
    }
    const inspection = await inspectFolder(folder);
    const { status } = inspection;
    const atRisk = [...report.atRisk()];
    if (options.json === true) printJson(atRisk.length === 0 ? status : { ...status, atRisk });
    else if (options.quiet !== true) {
      const out = report.members
        .filter(({ because }) => because !== '')
        .map(({ name, row, because }) => `  ${name}${isStranger(row) ? ' is left out' : ''}: ${because}`);
      for (const { name, because } of status.members.filter(({ state }) => state === 'in_sync'))
        if (because !== undefined) out.push(`  ${name}: ${because}`);
      const forced = report.forced.map((text) => `  ${paint('yellow', 'forced')}: ${text}`);
      if (atRisk.length > 0) {
        const bytes = atRisk.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
        const some = atRisk
          .slice(0, RANGES_SHOWN)
          .map(({ offsetBytes, lengthBytes }) => `    ${lengthBytes} bytes at ${offsetBytes}`);
        const rest =
          atRisk.length > RANGES_SHOWN
            ? [`    and ${atRisk.length - RANGES_SHOWN} ranges more: --json lists all`]
            : [];
        forced.push(
          `  ${paint('yellow', 'at risk')}: what was being written when it stopped may have changed anything in ${formatSize(bytes)} of the missing disk:`,
          ...some,
          ...rest,
        );
      }
      const how =
        options.overlay === true
          ? ', writes go to an overlay'
          : options.readonly === true
            ? ', read-only'
            : '';
      const inSync = status.members.filter(({ state }) => state === 'in_sync').length;
      const head = `${paint('bold', status.name)}: ${status.level}, ${inSync} of ${inspection.memberCount} disks, ${status.state}${how}`;
      process.stdout.write(`${[head, ...forced, ...out].join('\n')}\n`);
    }
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    if (error.code === 'NOT_ENOUGH_MEMBERS' && error.message.includes('too few')) {
      const said = error.message.replace('too few to start', 'too few to start; give the other disks too');
      throw new RaidError(error.code, said, { ...error.place, cause: error });
    }
    const flags = (['readonly', 'overlay', 'run', 'force'] as const)
      .filter((flag) => options[flag] === true)
      .map((flag) => `--${flag}`);
    const hint = / {2}--(run|force) starts it all the same$/.exec(error.message);
    const said =
      hint === null
        ? `${error.message}${await partitionHint(given, (sources) => commandLine('assemble', folder, ...sources, ...flags))}`
        : `${error.message.slice(0, hint.index).trimEnd()}${commandLine('assemble', ...words, ...flags, `--${hint[1]}`)}`;
    throw new RaidError(error.code, said, { ...error.place, cause: error });
  }
}

function partitionNumber(text: string): number {
  if (!/^[1-9][0-9]{0,3}$/.test(text)) throw new InvalidArgumentError('Write its number, for example 3.');
  return Number(text);
}

/** Not a member of this array, by the row of md/assemble.ts that says so: it is not to be asked for again. */
function isStranger(row: string): boolean {
  return /^@[ABC] /.test(row);
}

/** Those that the manifest has; without one, the files in the folder that say they are members. */
async function disksOf(folder: string): Promise<readonly string[]> {
  const { examineMember, MANIFEST_NAME, RaidError, readManifest } = await import('../../lib/index.ts');
  const { pathIn, statOf } = await import('../array.ts');
  const { readdir } = await import('node:fs/promises');
  const { join } = await import('node:path');

  if ((await statOf(join(folder, MANIFEST_NAME))) !== null)
    return (await readManifest(folder)).members.map((source) => pathIn(folder, source));
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  const found: string[] = [];
  for (const entry of entries
    .filter((each) => each.isFile())
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    try {
      await examineMember(path);
      found.push(path);
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
    }
  }
  if (found.length > 0) return found;
  throw new RaidError(
    'BAD_ARGUMENT',
    `say which files are the disks: none in ${folder} has an md superblock`,
  );
}
