/** What an array does for a request, and where its chunks live. */
import { type Command, Option } from 'commander';
import type { Opened } from '../array.ts';
import { count, examples, jsonOption, SIZES } from '../options.ts';

interface Options {
  readonly offset: string;
  readonly length: string;
  readonly stripes: number;
  readonly svg?: string;
  readonly json?: boolean;
}

/** More steps than anybody reads. */
const STEPS_MAX = 200;

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .argument('<what>', 'read or write: the plan step by step; layout: the map of chunks, parity and copies')
    .option('--offset <size>', 'of the request, in the array', '0')
    .option('--length <size>', 'of the request', '4K')
    .option('--stripes <n>', 'of the map: so many rows of every section', count, 8)
    .addOption(new Option('--svg <file>', 'the map as a picture'))
    .addOption(jsonOption('one JSON document'))
    .action(async (folder: string, what: string, options: Options) => {
      await run(folder, what, options);
    });
  examples(
    command,
    [
      'raidsim explain demo write --offset 256K --length 4K',
      'raidsim explain demo read --length 1M',
      'raidsim explain demo layout --stripes 4',
      'raidsim explain demo layout --svg layout.svg',
    ],
    `The plan is the one that would be carried out now: with a disk missing, it computes what was there. D5 is chunk 5 of
the array, P1 and Q1 are the parities of row 1, D5' is a copy of D5; + is XOR.

${SIZES}`,
  );
}

async function run(folder: string, what: string, options: Options): Promise<void> {
  const { RaidError } = await import('../../lib/index.ts');
  const { open } = await import('../array.ts');
  const { closest } = await import('../closest.ts');

  const kinds = ['read', 'write', 'layout'];
  if (!kinds.includes(what)) {
    const close = closest(what, kinds);
    throw new RaidError(
      'BAD_ARGUMENT',
      `"${what}" cannot be explained; ${close === null ? `there are ${kinds.join(', ')}` : `did you mean ${close}?`}`,
    );
  }
  const opened = await open(folder, { readOnly: true, light: true });
  try {
    if (what === 'layout') await layout(opened, options);
    else await plan(opened, what, options);
  } finally {
    await opened.array.close();
  }
}

async function plan({ array }: Opened, what: string, options: Options): Promise<void> {
  const { compileHealth, explain, formatSize, parseSize, planRead, planWrite, RaidError } = await import(
    '../../lib/index.ts'
  );
  const { slotsOf } = await import('../array.ts');
  const { printJson } = await import('../progress.ts');

  const offsetBytes = parseSize(options.offset);
  const lengthBytes = parseSize(options.length);
  const { sizeBytes } = array.limits;
  if (lengthBytes === 0 || offsetBytes + lengthBytes > sizeBytes) {
    throw new RaidError(
      'OUT_OF_RANGE',
      `${lengthBytes} bytes at ${offsetBytes}: ${array.name} has ${sizeBytes} bytes (${formatSize(sizeBytes)})`,
    );
  }
  const health = compileHealth(array.layout, array.health);
  const decide = what === 'read' ? planRead : planWrite;
  const answer = decide(array.layout, health, offsetBytes, lengthBytes);
  if (options.json === true) {
    const lost = 'lost' in answer ? answer.lost : null;
    printJson({ request: what, offsetBytes, lengthBytes, plan: lost === null ? answer : null, lost });
  } else {
    const inSlot = slotsOf(array);
    const text = explain(answer, array.layout, { memberName: (slot) => inSlot(slot) ?? `slot${slot}` });
    const lines = text.split('\n');
    const left = lines.length - STEPS_MAX - 1;
    const shown =
      left > 0
        ? [...lines.slice(0, STEPS_MAX), `... ${left} steps more; --json has all`, lines.at(-1)]
        : lines;
    process.stdout.write(`${shown.join('\n')}\n`);
  }
  if ('lost' in answer) process.exitCode = 5;
}

async function layout({ array, folder }: Opened, options: Options): Promise<void> {
  const { drawLayout, formatSize, RaidError } = await import('../../lib/index.ts');
  const { slotsOf } = await import('../array.ts');
  const { layoutSvg } = await import('../layout-svg.ts');
  const { printJson } = await import('../progress.ts');
  const { paintCell, table } = await import('../render.ts');
  const { writeFile } = await import('node:fs/promises');

  if (options.stripes === 0) throw new RaidError('BAD_ARGUMENT', '--stripes 0 leaves nothing to draw');
  const map = drawLayout(array.layout.geometry, options.stripes);
  const inSlot = slotsOf(array);
  const members = Array.from({ length: map.memberCount }, (_, slot) => {
    const member = array.members.find(({ state }) => 'slot' in state && state.slot === slot);
    return { name: inSlot(slot) ?? `slot ${slot}`, state: member?.state.state ?? 'missing' };
  });
  if (options.json === true) printJson({ ...map, members });
  if (options.svg !== undefined) {
    await writeFile(options.svg, layoutSvg(map, { title: array.name, members }));
    if (options.json !== true) process.stdout.write(`the picture: ${options.svg}\n`);
    return;
  }
  if (options.json === true) return;
  const rows: string[][] = [];
  let next = 0;
  for (const row of map.rows) {
    if (row.rowIndex !== next) rows.push(['...']);
    rows.push([`row ${row.rowIndex}`, ...row.cells.map((cell) => paintCell(cell))]);
    next = row.rowIndex + 1;
  }
  if (next !== map.rowCount) rows.push(['...']);
  const grid = table([{ title: '' }, ...members.map(({ name }) => ({ title: name }))], rows);
  const kind = map.layoutName === null ? map.level : `${map.level} ${map.layoutName}`;
  const out = members.filter(({ state }) => state !== 'in_sync');
  const lines = [
    `${folder}: ${kind}, ${map.memberCount} disks, a row is ${formatSize(map.unitBytes)} of each`,
    '',
    grid,
    '',
    legend(map.rows.flatMap((row) => row.cells.map((cell) => cell.label))),
    ...out.map(({ name, state }) => `${name} is ${state}`),
  ];
  process.stdout.write(`${lines.join('\n')}\n`);
}

function legend(labels: readonly string[]): string {
  const parts = ['D5: chunk 5 of the array'];
  if (labels.includes('P'))
    parts.push(labels.includes('Q') ? 'P, Q: the parities of the row' : 'P: the parity of the row');
  if (labels.some((label) => label.includes("'"))) parts.push("D5': a copy of D5");
  if (labels.includes('-')) parts.push('-: nothing');
  return parts.join('   ');
}
