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
  const { addDisk } = await import('../adding.ts');
  const { tell } = await import('../afterwards.ts');
  const { findDisk, findDiskOrNull, open, slotsOf } = await import('../array.ts');

  const opened = await open(folder, { light: true, writes: true, others: [disk] });
  const { array } = opened;
  const done: string[] = [];
  try {
    const { name } = findDisk(disk, opened, slotsOf(array));
    let spare: string | undefined;
    if (options.with !== undefined) {
      const known = findDiskOrNull(options.with, opened, slotsOf(array));
      const member = array.members.find((each) => each.name === known?.name);
      if (member === undefined) {
        const before = new Set(array.members.map((each) => each.name));
        done.push(await addDisk(opened, options.with, { force: options.force === true }));
        spare = array.members.find((each) => !before.has(each.name))?.name;
      } else spare = member.name;
    }
    await array.replace(name, spare);
    const copy = array.members.find(({ state }) => state.state === 'replacement')?.name ?? 'the spare';
    done.push(`${copy} becomes a copy of ${name}, and then takes its place`);
  } finally {
    await array.close();
  }
  await tell(opened, options, done);
}
