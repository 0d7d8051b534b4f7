#!/usr/bin/env node
import { runCommandLine } from './program.ts';

for (const stream of [process.stdout, process.stderr]) {
  // A reader that goes away (`raidsim ... | head`) is no error.
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    throw error;
  });
}

await runCommandLine(process.argv.slice(2));
