/** Adds disks. */
import type { Command } from 'commander';
import { examples, jsonOption, quietOption } from '../options.ts';

interface Options {
  readonly force?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .argument(
      '<file...>',
      'files, block devices or nbd:// URIs; a file that is not there is made, as large as the others',
    )
    .option('-f, --force', 'take a disk that holds something; what it holds is lost')
    .addOption(jsonOption())
    .addOption(quietOption())
    .action(async (folder: string, files: readonly string[], options: Options) => {
      await run(folder, files, options);
    });
  examples(
    command,
    ['raidsim add demo demo/disk4.img', 'raidsim add demo /dev/vdc', 'raidsim add demo disk1'],
    `Where a slot is empty the disk takes it, and rebuild fills it; otherwise it waits as a spare. A former disk that has
not missed too much comes back with what it has missed, as with re-add.`,
  );
}

async function run(folder: string, files: readonly string[], options: Options): Promise<void> {
  const { tell } = await import('../afterwards.ts');
  const { reach } = await import('../reach.ts');

  const reached = await reach(folder, { light: true, writes: true, others: files });
  const done: string[] = [];
  try {
    const words = await Promise.all(files.map(reached.word));
    const steps = reached.run('add', { files: words, force: options.force === true });
    for await (const said of steps) done.push(said);
  } finally {
    await reached.close();
  }
  await tell(reached, options, done);
}
