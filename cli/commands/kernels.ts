/** Which parity kernels there are: kernel-table.ts measures and prints them. */
import type { Command } from 'commander';

export function define(command: Command): void {
  command
    .option('--json', 'one JSON document')
    .addHelpText(
      'after',
      `
RAIDSIM_KERNEL chooses: a name from this table, fastest (the default), or cycle (all in turn, for tests).
GB/s are bytes read plus bytes written, over 4 chunks of 64 KiB. npm run bench compares more operations and sizes.`,
    )
    .action(async (options: { json?: boolean }) => {
      const { printKernels } = await import('../kernel-table.ts');
      printKernels({ json: options.json === true });
    });
}
