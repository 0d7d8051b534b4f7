/** Takes disks out of use. */
import type { Command } from 'commander';
import type { RaidArray } from '../../lib/index.ts';
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
  const { RaidError } = await import('../../lib/index.ts');
  const { tell } = await import('../afterwards.ts');
  const { findDisk, letSpareIn, open, slotsOf } = await import('../array.ts');

  const opened = await open(folder, { light: true, writes: true, others: disks });
  const { array } = opened;
  const done: string[] = [];
  try {
    const found = disks.map((text) => findDisk(text, opened, slotsOf(array)));
    try {
      for (const { name } of found) done.push(await failDisk(array, name));
    } finally {
      const spare = await letSpareIn(array);
      if (spare !== null) done.push(`${spare}, a spare, takes over`);
    }
  } catch (error) {
    if (!(error instanceof RaidError) || done.length === 0) throw error;
    throw new RaidError(error.code, `${error.message}; before that, ${done.join(', ')}`, {
      ...error.place,
      cause: error,
    });
  } finally {
    await array.close();
  }
  await tell(opened, options, done);
}

/** Says what was done. */
async function failDisk(array: RaidArray, name: string): Promise<string> {
  const { RaidError } = await import('../../lib/index.ts');

  const member = array.members.find((each) => each.name === name);
  if (member === undefined || member.state.state === 'faulty') return `${name} is out of use already`;
  if (array.status().consistencyPolicy === 'none') {
    throw new RaidError(
      'LAST_COPY',
      `${array.name} is a ${array.layout.geometry.level}, which keeps nothing twice: without ${name} its data is lost`,
      { device: name },
    );
  }
  await array.fail(name);
  return `${name} is failed`;
}
