/** Takes disks out of use. */
import type { Command } from 'commander';
import { examples, jsonOption, quietOption } from '../options.ts';

interface Options {
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .argument('<disk...>', 'name (disk1), path or slot number')
    .addOption(jsonOption())
    .addOption(quietOption())
    .action(async (folder: string, disks: readonly string[], options: Options) => {
      await run(folder, disks, options);
    });
  examples(
    command,
    ['raidsim fail demo disk1', 'raidsim fail demo 2', 'raidsim fail demo demo/disk0.img demo/disk3.img'],
    `The last copy of data is never taken: that is refused, exit 4. A spare takes over at once; rebuild then fills it.`,
  );
}

async function run(folder: string, disks: readonly string[], options: Options): Promise<void> {
  const { tell } = await import('../afterwards.ts');
  const { findDisk, letSpareIn, open, slotsOf } = await import('../array.ts');

  const opened = await open(folder, { light: true, others: disks });
  const { array } = opened;
  const done: string[] = [];
  try {
    const found = disks.map((text) => findDisk(text, opened, slotsOf(array)));
    for (const { name } of found) {
      const member = array.members.find((each) => each.name === name);
      if (member === undefined || member.state.state === 'faulty') {
        done.push(`${name} is out of use already`);
        continue;
      }
      await array.fail(name);
      done.push(`${name} is failed`);
    }
    const spare = await letSpareIn(array);
    if (spare !== null) done.push(`${spare}, a spare, takes over`);
  } finally {
    await array.close();
  }
  await tell(opened, options, done);
}
