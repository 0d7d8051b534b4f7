#!/usr/bin/env node
import { runCommandLine } from './program.ts';

for (const stream of [process.stdout, process.stderr]) {
  // A reader that goes away (`raidsim ... | head`) is no error.
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    throw error;
  });
}

/** Node ends so, and without a word, when something is awaited that nothing is left to bring about. */
const AWAITED_FOR_EVER = 13;
process.on('exit', () => {
  // Not the listener's argument: Node decides on this code in a listener of its own.
  if (process.exitCode !== AWAITED_FOR_EVER) return;
  process.exitCode = 1;
  process.stderr.write(
    'error: this ended before it was done; that is a fault of raidsim itself, please report it\n',
  );
});

await runCommandLine(process.argv.slice(2));
