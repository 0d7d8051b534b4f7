/** The metadata on disks, field by field. */
import type { Command } from 'commander';
import { examples, jsonOption } from '../options.ts';

export function define(command: Command): void {
  command
    .argument('<file...>', 'files, block devices or nbd:// URIs')
    .addOption(jsonOption('one JSON document: a list with one entry for each file'))
    .action(async (files: readonly string[], options: { json?: boolean }) => {
      await run(files, options.json === true);
    });
  examples(
    command,
    ['raidsim examine demo/disk0.img', "raidsim examine demo/*.img --json | jq '.[].events'"],
    'In the fields, the order and the words of mdadm --examine; times are UTC. Nothing is written.',
  );
}

async function run(files: readonly string[], json: boolean): Promise<void> {
  const { examineMember, RaidError } = await import('../../lib/index.ts');
  const { checkFile, commandLine } = await import('../array.ts');
  const { failure } = await import('../failure.ts');
  const { partitionHint } = await import('../partitions.ts');
  const { printJson } = await import('../progress.ts');
  const { reportError } = await import('../render.ts');

  const documents: object[] = [];
  for (const file of files) {
    try {
      await checkFile(file);
      const { text, json: document } = await examineMember(file);
      documents.push(document);
      if (!json) process.stdout.write(text);
    } catch (error) {
      // One that cannot be read does not hide the others.
      if (!(error instanceof RaidError)) throw error;
      const partitions = await partitionHint([file], (sources) => commandLine('examine', ...sources));
      const told = new RaidError(error.code, `${error.message}${partitions}`, {
        ...error.place,
        cause: error,
      });
      const found = await failure(told);
      process.exitCode = found.exitCode;
      reportError(found, { json });
    }
  }
  if (json) printJson(documents);
}
