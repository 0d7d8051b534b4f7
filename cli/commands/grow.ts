/** Makes an array larger. */
import type { Command } from 'commander';
import { count, examples, jsonOption, quietOption, SIZES } from '../options.ts';

interface Options {
  readonly size?: string;
  readonly disks?: number;
  readonly level?: string;
  readonly chunk?: string;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .option('-z, --size <size>', 'of each disk; files are made larger, max uses what the disks have')
    .option('-n, --disks <n>', 'disks in all: more legs for a mirror', count)
    .option('-l, --level <level>', 'another level: not yet')
    .option('-c, --chunk <size>', 'another chunk size: not yet')
    .addOption(jsonOption())
    .addOption(quietOption())
    .action(async (folder: string, options: Options) => {
      await run(folder, options);
    });
  examples(
    command,
    ['raidsim grow demo --size 512M', 'raidsim grow demo --size max', 'raidsim grow mirror --disks 3'],
    SIZES,
  );
}

async function run(folder: string, options: Options): Promise<void> {
  const { formatSize, growArray, RaidError, readManifest } = await import('../../lib/index.ts');
  const { tell } = await import('../afterwards.ts');
  const { checkFolder, commandLine, inspectFolder, pathIn } = await import('../array.ts');

  if (options.level !== undefined || options.chunk !== undefined) {
    throw new RaidError(
      'NOT_SUPPORTED',
      'another level or chunk size is a reshape, which raidsim does not do yet; mdadm --grow does',
    );
  }
  const { size, disks } = options;
  if (size === undefined && disks === undefined) {
    throw new RaidError('BAD_ARGUMENT', `say what grows:${commandLine('grow', folder, '--size', '512M')}`);
  }
  await checkFolder(folder);
  const before = (await inspectFolder(folder)).status.sizeBytes;
  const array = await growArray(folder, { size, disks }, { autoSync: false, cores: 1 });
  const after = array.limits.sizeBytes;
  await array.close();
  const manifest = await readManifest(folder);
  const opened = { folder, manifest, array, pathOf: (source: string) => pathIn(folder, source) };
  await tell(opened, options, [
    before === after
      ? `it has ${formatSize(after)}, as before`
      : `it has ${formatSize(after)} now, and had ${formatSize(before)}`,
  ]);
}
