/** Bytes out of an array. */
import type { Command } from 'commander';
import { examples, jsonOption, quietOption, type ReadingOptions, readingOptions, SIZES } from '../options.ts';

export function define(command: Command): void {
  readingOptions(command.argument('<array>', 'folder of the array'))
    .addOption(
      jsonOption(
        'what was read as one JSON document; on standard error where the bytes go to standard output',
      ),
    )
    .addOption(quietOption())
    .action(async (folder: string, options: ReadingOptions) => {
      const { takeOut } = await import('../reading.ts');
      await takeOut(folder, options, null);
    });
  examples(
    command,
    [
      'raidsim read demo --to copy.img',
      'raidsim read demo | sha256sum',
      'raidsim read demo --offset 1M --length 4K --to - | xxd | head',
      'raidsim read demo --to rescued.img --keep-going',
    ],
    `A degraded array is read as any other: what is missing is computed. Where that cannot be, nothing is made up: exit 5,
and exactly the lost range is named. --keep-going reads the rest as well: zeros stand for what is lost, which is listed on
standard error, and still exit 5.

${SIZES}`,
  );
}
