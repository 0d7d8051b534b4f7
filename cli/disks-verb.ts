/** Verbs that do the same to one disk after the other. */
import type { Command } from 'commander';
import { examples, jsonOption, quietOption } from './options.ts';

interface Options {
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export interface DisksVerb {
  readonly operation: 'fail' | 'remove' | 'reAdd';
  /** What names a disk here. */
  readonly words: string;
  readonly lines: readonly string[];
  readonly notes: string;
}

/** The `define` of a verb's file. */
export function disksVerb({ operation, words, lines, notes }: DisksVerb): (command: Command) => void {
  return (command) => {
    command
      .argument('<array>', 'folder of the array')
      .argument('<disk...>', words)
      .addOption(jsonOption())
      .addOption(quietOption())
      .action(async (folder: string, disks: readonly string[], options: Options) => {
        await run(operation, folder, disks, options);
      });
    examples(command, lines, notes);
  };
}

async function run(
  operation: DisksVerb['operation'],
  folder: string,
  disks: readonly string[],
  options: Options,
): Promise<void> {
  const { RaidError } = await import('../lib/index.ts');
  const { tell } = await import('./afterwards.ts');
  const { reach } = await import('./reach.ts');

  const reached = await reach(folder, { light: true, writes: true, others: disks });
  const done: string[] = [];
  try {
    const words = await Promise.all(disks.map(reached.word));
    for await (const said of reached.run(operation, { disks: words })) done.push(said);
  } catch (error) {
    if (!(error instanceof RaidError) || done.length === 0) throw error;
    throw new RaidError(error.code, `${error.message}; before that, ${done.join(', ')}`, {
      ...error.place,
      cause: error,
    });
  } finally {
    await reached.close();
  }
  await tell(reached, options, done);
}
