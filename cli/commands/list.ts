/** The arrays below a folder. */
import type { Command } from 'commander';
import { examples, jsonOption } from '../options.ts';

export function define(command: Command): void {
  command
    .argument('[dir]', 'where to look, three folders deep', '.')
    .addOption(jsonOption('one JSON document: a list with the folder and the status of each'))
    .action(async (dir: string, options: { json?: boolean }) => {
      await run(dir, options.json === true);
    });
  examples(command, ['raidsim list', 'raidsim list /srv/arrays', "raidsim list --json | jq -r '.[].folder'"]);
}

async function run(dir: string, json: boolean): Promise<void> {
  const { formatSize, inspectArray, listArrays, RaidError } = await import('../../lib/index.ts');
  const { printJson } = await import('../progress.ts');
  const { paint, paintState, slotMap, table } = await import('../render.ts');

  const documents: object[] = [];
  const rows: string[][] = [];
  for (const folder of (await listArrays(dir)).toSorted()) {
    try {
      const { status, memberCount } = await inspectArray(folder);
      documents.push({ folder, status, error: null });
      const isUp = Array.from({ length: memberCount }, (_, slot) =>
        status.members.some((member) => member.slot === slot && member.state === 'in_sync'),
      );
      const size = status.sizeBytes === 0 ? '-' : formatSize(status.sizeBytes);
      rows.push([folder, status.level, size, paintState(status.state), slotMap(isUp)]);
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
      documents.push({ folder, status: null, error: error.toRecord() });
      rows.push([folder, '-', '-', paint('red', 'unreadable'), error.message.split('\n')[0] ?? '']);
    }
  }
  if (json) return printJson(documents);
  if (rows.length === 0) {
    process.stderr.write(`no arrays below ${dir}; raidsim create makes one\n`);
    return;
  }
  const grid = table(
    [
      { title: 'ARRAY' },
      { title: 'LEVEL' },
      { title: 'SIZE', align: 'right' },
      { title: 'STATE' },
      { title: 'DISKS' },
    ],
    rows,
  );
  process.stdout.write(`${grid}\n`);
}
