/** Lets go of disks. */
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
    ['raidsim remove demo disk1', 'raidsim fail demo disk1 && raidsim remove demo disk1'],
    'A disk that is in use has to be failed first. Its file stays, with what it holds.',
  );
}

async function run(folder: string, disks: readonly string[], options: Options): Promise<void> {
  const { tell } = await import('../afterwards.ts');
  const { RaidError } = await import('../../lib/index.ts');
  const { commandLine, dropFromManifest, findDisk, open, slotsOf } = await import('../array.ts');

  const opened = await open(folder, { light: true, writes: true, others: disks });
  const { array } = opened;
  const done: string[] = [];
  try {
    for (const { name, source } of disks.map((text) => findDisk(text, opened, slotsOf(array)))) {
      const member = array.members.find((each) => each.name === name);
      if (member !== undefined) {
        const { state } = member.state;
        if (state !== 'faulty' && state !== 'spare') {
          throw new RaidError(
            'BUSY',
            `${name} is in use (${state}); fail it first:${commandLine('fail', folder, name)}`,
            {
              device: source,
            },
          );
        }
        const device = await array.remove(name);
        await device.close();
      }
      await dropFromManifest(folder, source);
      done.push(`${name} is removed; its file ${opened.pathOf(source)} stays as it is`);
    }
  } finally {
    await array.close();
  }
  await tell(opened, options, done);
}
