/** A comparison as tables for a terminal: levels are rows, works are columns, and under each value its share of the bound. */
import { formatSize } from '../lib/units.ts';
import { type Comparison, DISTURBED, type Result } from './compare.ts';
import { type Aim, works } from './works.ts';

/** Marks a share or a value that does not reach its aim; colour says it too, where there is any. */
export const BELOW = '▾';

/** Marks what was measured while others used the machine too. */
export const DOUBTFUL = '~';

/** How to show what reaches its aim, what does not, and what matters less. The default changes nothing. */
export interface Ink {
  readonly reached: (text: string) => string;
  readonly below: (text: string) => string;
  readonly dim: (text: string) => string;
  readonly strong: (text: string) => string;
}

const plain = (text: string): string => text;
export const noInk: Ink = { reached: plain, below: plain, dim: plain, strong: plain };

export function comparisonText(comparison: Comparison, ink: Ink = noInk): string {
  const { machine, setting } = comparison;
  const lanes = setting.lanes === 1 ? '1 lane' : `${setting.lanes} lanes`;
  const parts = [
    [
      ink.strong(
        `${setting.members} members of ${formatSize(setting.memberBytes)}, ${formatSize(setting.chunkBytes)} chunks`,
      ),
      `${machine.cpu}, ${machine.cores} cores; ${machine.kernel}; Node ${machine.node}`,
      `members on ${machine.directory} (${machine.fileSystem}); driver ${setting.driver}, ${lanes}; parity kernel ${setting.kernel}`,
      loadText(comparison, ink),
    ].join('\n'),
    levelTable(comparison.results, ink),
    ink.dim(
      [
        'Second lines: the share of what the same member I/O reaches without RAID, measured in turns with it.',
        `seq: depth ${depthOf('seq')}; rand: 4 KiB, depth ${depthOf('rand')}; alone: depth 1, less is better; degr.: one member missing.`,
        `check: member bytes read; recov.: bytes of the new member. ${BELOW} does not reach its aim (below).`,
      ].join('\n'),
    ),
    aimsText(comparison.results, ink),
  ];
  if (comparison.drivers.length > 0) parts.push(driverTable(comparison.drivers, ink));
  return `${parts.filter((part) => part !== '').join('\n\n')}\n`;
}

function depthOf(short: string): number {
  return works.find((work) => work.short[0] === short)?.depth ?? 0;
}

function loadText({ machine, setting, results, drivers }: Comparison, ink: Ink): string {
  const text = `load ${machine.loadBefore.toFixed(1)} before, ${machine.loadAfter.toFixed(1)} after; ${setting.seconds.toFixed(0)} s`;
  const warning = disturbanceText([...results, ...drivers]);
  return warning === null ? text : `${text}\n${ink.below(warning)}`;
}

/** Null when nobody disturbed. */
export function disturbanceText(results: readonly Result[]): string | null {
  const count = results.filter(({ others }) => others > DISTURBED).length;
  if (count === 0) return null;
  return `${DOUBTFUL} ${count} of ${results.length} rows were measured while other processes used the machine: their shares are too low`;
}

export function levelTable(results: readonly Result[], ink: Ink = noInk): string {
  const columns = works.filter((work) => results.some((result) => result.work === work.name));
  const labels = [...new Set(results.map(({ label }) => label))];
  const rows: Cell[][] = [
    [cell('', ink.dim), ...columns.map(({ short }) => cell(short[0], ink.dim))],
    [cell('', ink.dim), ...columns.map(({ short }) => cell(short[1], ink.dim))],
    [cell('', ink.dim), ...columns.map(({ unit }) => cell(unit, ink.dim))],
  ];
  for (const label of labels) {
    const found = columns.map((work) =>
      results.find((result) => result.label === label && result.work === work.name),
    );
    rows.push([cell(label, ink.strong), ...found.map((result) => valueCell(result, ink))]);
    rows.push([cell('', ink.dim), ...found.map((result) => ratioCell(result, ink))]);
  }
  return aligned(rows);
}

export function driverTable(drivers: readonly Result[], ink: Ink = noInk): string {
  const depths = [...new Set(drivers.map(({ depth }) => depth))];
  const kinds = [...new Set(drivers.map(({ driver }) => driver))];
  const rows: Cell[][] = [
    [cell('4 KiB reads', ink.dim), ...depths.map((depth) => cell(`depth ${depth}`, ink.dim))],
    [
      cell(`of ${drivers[0]?.label ?? ''}, by driver`, ink.dim),
      ...depths.map((depth) => cell(drivers.find((row) => row.depth === depth)?.unit ?? '', ink.dim)),
    ],
  ];
  for (const kind of kinds) {
    const found = depths.map((depth) => drivers.find((row) => row.driver === kind && row.depth === depth));
    rows.push([cell(kind, ink.strong), ...found.map((result) => valueCell(result, ink))]);
    rows.push([cell('', ink.dim), ...found.map((result) => ratioCell(result, ink))]);
  }
  const aims = aimsText(drivers, ink);
  return aims === '' ? aligned(rows) : `${aligned(rows)}\n\n${aims}`;
}

/** One line for each work that has an aim: what it is, and who does not reach it. */
export function aimsText(results: readonly Result[], ink: Ink = noInk): string {
  const names = [...new Set(results.filter(({ aim }) => aim !== null).map(({ work }) => work))];
  const lines = names.map((name) => {
    const rows = results.filter(({ work }) => work === name);
    const aim = rows[0]?.aim;
    if (aim === null || aim === undefined) return '';
    const missed = rows.filter(({ reached }) => reached === false);
    const list = missed.map((row) => `${row.label} ${figureFor(aim, row)}`).join(', ');
    const verdict = missed.length === 0 ? ink.reached('reached') : ink.below(`${BELOW} ${list}`);
    return `  ${name.padEnd(38)}${aimText(aim, rows[0]?.unit ?? '').padEnd(16)}${verdict}`;
  });
  return lines.length === 0 ? '' : [ink.dim('aims'), ...lines].join('\n');
}

export function aimText({ measure, sense, limit }: Aim, unit: string): string {
  const sign = sense === 'at least' ? '≥' : '≤';
  return measure === 'ratio' ? `${sign} ${limit} of bound` : `${sign} ${limit} ${unit}`;
}

function figureFor(aim: Aim, { ratio, value }: Result): string {
  return aim.measure === 'ratio' ? ratio.toFixed(2) : formatValue(value);
}

/** Three figures that matter. */
export function formatValue(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value.toFixed(value >= 10 ? 1 : 2);
}

interface Cell {
  readonly text: string;
  readonly ink: (text: string) => string;
}

function cell(text: string, ink: (text: string) => string): Cell {
  return { text, ink };
}

function valueCell(result: Result | undefined, ink: Ink): Cell {
  if (result === undefined) return cell('·', ink.dim);
  const text = formatValue(result.value);
  if (result.aim?.measure !== 'value' || result.reached !== false) return cell(text, plain);
  return cell(text + BELOW, ink.below);
}

function ratioCell(result: Result | undefined, ink: Ink): Cell {
  if (result === undefined) return cell('', plain);
  const text = (result.others > DISTURBED ? DOUBTFUL : '') + result.ratio.toFixed(2);
  if (result.aim?.measure !== 'ratio') return cell(text, ink.dim);
  return result.reached === false ? cell(text + BELOW, ink.below) : cell(text, ink.reached);
}

function aligned(rows: readonly (readonly Cell[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [index, { text }] of row.entries()) widths[index] = Math.max(widths[index] ?? 0, text.length);
  }
  return rows
    .map((row) =>
      row
        .map(({ text, ink }, index) => {
          const padding = ' '.repeat((widths[index] ?? 0) - text.length);
          return index === 0 ? ink(text) + padding : padding + ink(text);
        })
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}
