/** Compares RAID levels on this machine: a table here, JSON and a page for elsewhere. */
import type { Command } from 'commander';
import type { Comparison } from '../../bench/compare.ts';
import type { Ink } from '../../bench/text.ts';
import { type BenchLevel, benchLevels, parseBenchLevel } from '../../bench/works.ts';
import { count } from '../options.ts';
import { paint, progressLine } from '../render.ts';

interface Options {
  readonly level?: readonly string[];
  readonly members: number;
  readonly chunk: string;
  readonly size?: string;
  readonly quick?: boolean;
  readonly dir?: string;
  readonly json?: string;
  readonly html?: string;
  readonly quiet?: boolean;
}

const INTERRUPTED = 130;

export function define(command: Command): void {
  const names = benchLevels.map(({ label }) => label.replace(' ', '-')).join(', ');
  command
    .option('-l, --level <level...>', `only these: ${names}, or as mdadm writes them`)
    .option('-n, --members <count>', 'members of each array', count, 4)
    .option('-c, --chunk <size>', 'chunk size', '64K')
    .option('-z, --size <size>', 'of each member (default: 32M, 16M with --quick)')
    .option('--quick', 'few repetitions: under half a minute, and less certain')
    .option('--dir <directory>', 'where the members are made (default: /dev/shm where it will do)')
    .option('--json <file>', 'all figures as JSON; - for standard output')
    .option('--html <file>', 'one page with charts, to look at and to share')
    .option('--quiet', 'no table, no progress')
    .addHelpText(
      'after',
      `
Every figure stands beside its bound: the same reads and writes of the members, with no RAID, measured in turns with
it. The ratio says how much of the possible is reached. bench/README.md says how bounds are made.

Examples:
  raidsim bench --quick
  raidsim bench --level raid5 raid6 --members 8 --html levels.html
  raidsim bench --quick --level raid5 --size 1G
  raidsim bench --dir /mnt/disk --json - | jq '.results[] | select(.work == "recover")'`,
    )
    .action(async (options: Options) => {
      await run(options);
    });
}

async function run(options: Options): Promise<void> {
  const { compare } = await import('../../bench/compare.ts');
  const { parseSize } = await import('../../lib/index.ts');

  const interrupt = new AbortController();
  const onInterrupt = (): void => interrupt.abort();
  process.once('SIGINT', onInterrupt);
  const showsProgress = options.quiet !== true && process.stderr.isTTY;
  try {
    const comparison = await compare({
      levels: wantedLevels(options.level),
      members: options.members,
      chunkBytes: parseSize(options.chunk),
      ...(options.size === undefined ? {} : { memberBytes: parseSize(options.size) }),
      quick: options.quick === true,
      signal: interrupt.signal,
      ...(options.dir === undefined ? {} : { directory: options.dir }),
      ...(showsProgress ? { onProgress: ({ done, total, what }) => progressLine(done / total, what) } : {}),
    });
    if (showsProgress) progressLine(null, '');
    await show(comparison, options);
    if (comparison.interrupted) process.exitCode = INTERRUPTED;
  } finally {
    process.off('SIGINT', onInterrupt);
  }
}

async function show(comparison: Comparison, options: Options): Promise<void> {
  const { writeFile } = await import('node:fs/promises');
  const { comparisonHtml } = await import('../../bench/html.ts');
  const { comparisonText } = await import('../../bench/text.ts');
  const { formatSize } = await import('../../lib/index.ts');

  const says: string[] = [];
  const json = `${JSON.stringify(comparison, null, 2)}\n`;
  if (options.json === '-') process.stdout.write(json);
  else if (options.json !== undefined) {
    await writeFile(options.json, json);
    says.push(`all figures: ${options.json}`);
  }
  if (options.html !== undefined) {
    const page = comparisonHtml(comparison);
    await writeFile(options.html, page);
    says.push(`the page: ${options.html} (${formatSize(page.length)})`);
  }
  if (options.quiet === true || options.json === '-') return;
  if (comparison.results.length > 0) process.stdout.write(`${comparisonText(comparison, ink)}`);
  if (comparison.interrupted) process.stdout.write('\ninterrupted: what was measured until then\n');
  if (says.length > 0) process.stdout.write(`\n${says.join('\n')}\n`);
}

const ink: Ink = {
  reached: (text) => paint('green', text),
  below: (text) => paint('yellow', text),
  dim: (text) => paint('dim', text),
  strong: (text) => paint('bold', text),
};

function wantedLevels(texts: readonly string[] | undefined): readonly BenchLevel[] {
  if (texts === undefined) return benchLevels;
  const wanted = texts.flatMap((text) => text.split(',')).flatMap(parseBenchLevel);
  return benchLevels.filter((level) => wanted.includes(level));
}
