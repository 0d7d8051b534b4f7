/** Brings former disks back. */
import type { Command } from 'commander';
import { examples, jsonOption, quietOption } from '../options.ts';

interface Options {
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .argument('<disk...>', 'name (disk1) or path')
    .addOption(jsonOption())
    .addOption(quietOption())
    .action(async (folder: string, disks: readonly string[], options: Options) => {
      await run(folder, disks, options);
    });
  examples(
    command,
    ['raidsim re-add demo disk1'],
    `With a bitmap (create --bitmap internal) a disk that was away gets only what was written meanwhile. Where that cannot
be known it is refused, exit 4, and has to be added as a new disk.`,
  );
}

async function run(folder: string, disks: readonly string[], options: Options): Promise<void> {
  const { reAddDisk } = await import('../adding.ts');
  const { tell } = await import('../afterwards.ts');
  const { open } = await import('../array.ts');

  const opened = await open(folder, { light: true, writes: true, others: disks });
  const done: string[] = [];
  try {
    for (const disk of disks) done.push(await reAddDisk(opened, disk));
  } finally {
    await opened.array.close();
  }
  await tell(opened, options, done);
}
