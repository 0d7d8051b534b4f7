/** The tour: what it does is in tour.ts. */
import type { Command } from 'commander';

export function define(command: Command): void {
  command
    .option('--keep', 'leave the disk images where they are, and say where')
    .option('--quiet', 'only the exit code')
    .addHelpText(
      'after',
      '\nExamples:\n  raidsim demo\n  raidsim demo --keep   # then: raidsim status FOLDER, mdadm --examine FOLDER/disk0.img\n',
    )
    .action(async (options: { keep?: boolean; quiet?: boolean }) => {
      const { takeTour } = await import('../tour.ts');
      await takeTour(options);
    });
}
