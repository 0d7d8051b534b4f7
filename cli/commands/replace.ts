/** Replaces a disk that still works. */
import type { Command } from 'commander';
import { examples, jsonOption, quietOption } from '../options.ts';

interface Options {
  readonly with?: string;
  readonly force?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .argument('<disk>', 'the disk to be replaced: name (disk1), path or slot number')
    .option('--with <disk>', 'a spare, or a file that is added first (default: the first spare)')
    .option('-f, --force', 'take a disk that holds something; what it holds is lost')
    .addOption(jsonOption())
    .addOption(quietOption())
    .action(async (folder: string, disk: string, options: Options) => {
      await run(folder, disk, options);
    });
  examples(
    command,
    [
      'raidsim replace demo disk1',
      'raidsim replace demo disk1 --with demo/disk5.img && raidsim rebuild demo',
    ],
    'The disk stays in use while its copy is made, so that no redundancy is given up: for one that works, but not for long.',
  );
}

async function run(folder: string, disk: string, options: Options): Promise<void> {
  const { tell } = await import('../afterwards.ts');
  const { reach } = await import('../reach.ts');

  const reached = await reach(folder, { light: true, writes: true, others: [disk] });
  const done: string[] = [];
  try {
    const onto = options.with === undefined ? null : await reached.word(options.with);
    const input = { disk: await reached.word(disk), onto, force: options.force === true };
    for await (const said of reached.run('replace', input)) done.push(said);
  } finally {
    await reached.close();
  }
  await tell(reached, options, done);
}
