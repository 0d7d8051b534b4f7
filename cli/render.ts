/** All that has to do with how things look on a terminal. Colours and widths are nowhere else. */
import { styleText } from 'node:util';
import type { Failure } from './failure.ts';

export type Style = Parameters<typeof styleText>[0];

/** A line of an error's message that begins so is a command to type. */
export const COMMAND_MARK = '  $ ';

/** Coloured on a terminal that wants it; plain in a pipe, and where NO_COLOR is set. */
export function paint(style: Style, text: string, stream: NodeJS.WriteStream = process.stdout): string {
  const wants = stream.isTTY && process.env['NO_COLOR'] === undefined && stream.hasColors();
  return wants ? styleText(style, text) : text;
}

export interface Column {
  readonly title: string;
  readonly align?: 'left' | 'right';
}

/** Aligned columns without borders, as storage tools print them. Widths ignore colour codes. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const widths = columns.map((column, index) =>
    Math.max(column.title.length, ...rows.map((row) => visibleLength(row[index] ?? ''))),
  );
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, index) => {
        const padding = ' '.repeat(Math.max(0, (widths[index] ?? 0) - visibleLength(cell)));
        return columns[index]?.align === 'right' ? padding + cell : cell + padding;
      })
      .join('  ')
      .trimEnd();
  const head = line(columns.map((column) => column.title));
  return [paint('dim', head), ...rows.map(line)].join('\n');
}

function visibleLength(text: string): number {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is what a colour code starts with.
  return text.replace(/\u001b\[[0-9;]*m/g, '').length;
}

/** `[██████░░░░░░]` of `width` characters. */
export function bar(fraction: number, width: number): string {
  const full = Math.round(Math.max(0, Math.min(1, fraction)) * width);
  return `[${'█'.repeat(full)}${'░'.repeat(width - full)}]`;
}

/** `key: text` with the colons below each other; further lines of a text below its first. */
export function keyed(rows: readonly (readonly [key: string, text: string])[]): string {
  const width = Math.max(...rows.map(([key]) => key.length));
  const indent = ' '.repeat(width + 4);
  return rows
    .map(([key, text]) => {
      const label = paint('dim', `${' '.repeat(width - key.length)}${key}:`);
      return `  ${label} ${text.split('\n').join(`\n${indent}`)}`;
    })
    .join('\n');
}

const stateStyles: Readonly<Record<string, Style>> = {
  clean: 'green',
  active: 'green',
  in_sync: 'green',
  spare: 'cyan',
  journal: 'cyan',
  degraded: 'yellow',
  recovering: 'yellow',
  resyncing: 'yellow',
  reshaping: 'yellow',
  replacement: 'yellow',
  inactive: 'red',
  failed: 'red',
  faulty: 'red',
  missing: 'red',
};

/** The colour of an array's or a member's state. Never the only sign: the word says the same. */
export function paintState(state: string, text = state): string {
  return paint(stateStyles[state] ?? 'reset', text);
}

const SLOTS_SHOWN = 64;

/** md's `[4/3] [UU_U]`, of many slots the first. */
export function slotMap(isUp: readonly boolean[]): string {
  const shown = isUp
    .slice(0, SLOTS_SHOWN)
    .map((up) => (up ? paint('green', 'U') : paint(['bold', 'red'], '_')));
  const letters = `${shown.join('')}${isUp.length > SLOTS_SHOWN ? '...' : ''}`;
  return `[${isUp.length}/${isUp.filter(Boolean).length}] [${letters}]`;
}

/** `1h02m`, `4m10s`, `15 s`, `0.4 s`. */
export function duration(seconds: number): string {
  if (seconds < 9.95) return `${Math.max(0.1, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 100) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${String(whole % 60).padStart(2, '0')}s`;
  const minutes = Math.round(whole / 60);
  return `${Math.floor(minutes / 60)}h${String(minutes % 60).padStart(2, '0')}m`;
}

export function percent(fraction: number): string {
  // Not 100 before it is.
  const floor = Math.floor(Math.max(0, Math.min(1, fraction)) * 1000) / 10;
  return `${floor.toFixed(1)}%`;
}

/** A cell of a layout map: parity and copies stand out, and their labels say the same. */
export function paintCell(cell: {
  readonly kind: string;
  readonly label: string;
  readonly copy?: number;
}): string {
  if (cell.kind === 'p') return paint('yellow', cell.label);
  if (cell.kind === 'q') return paint('magenta', cell.label);
  return cell.copy === undefined || cell.copy === 0 ? cell.label : paint('cyan', cell.label);
}

/** Clears the terminal and puts the text there, for something that is shown again and again. */
export function redraw(text: string): void {
  process.stdout.write(`\u001b[H${text.replaceAll('\n', '\u001b[K\n')}\u001b[J`);
}

export function clearScreen(): void {
  process.stdout.write('\u001b[2J\u001b[H');
}

const PROGRESS_BAR = 24;

/** One line on a terminal's standard error that the next one overwrites, never longer than the terminal; null wipes it. */
export function progressLine(fraction: number | null, text: string): void {
  if (fraction === null) {
    process.stderr.write('\r\u001b[K');
    return;
  }
  const columns = process.stderr.columns ?? 80;
  const line = columns < 2 * PROGRESS_BAR ? text : `${bar(fraction, PROGRESS_BAR)} ${text}`;
  process.stderr.write(`\r${line.slice(0, columns - 1)}\u001b[K`);
}

/** What happened, to what, and what to do now: on standard error, as one JSON object where JSON was asked for. */
export function reportError(failure: Failure, options: { readonly json: boolean }): void {
  const { code, message, exitCode, details } = failure;
  if (options.json) {
    const object = { type: 'error', code: code ?? 'UNEXPECTED', exitCode, message, ...details };
    process.stderr.write(`${JSON.stringify(object)}\n`);
    return;
  }
  const [first, ...rest] = message.split('\n');
  const head = paint(['bold', 'red'], 'error', process.stderr);
  if (code === null) {
    process.stderr.write(`${head}: this is a fault of raidsim itself, please report it\n${message}\n`);
    return;
  }
  const lines = rest.map((line) =>
    line.startsWith(COMMAND_MARK)
      ? `  do: ${paint('bold', line.slice(COMMAND_MARK.length), process.stderr)}`
      : line,
  );
  process.stderr.write(`${[`${head} ${code}: ${first}`, ...lines].join('\n')}\n`);
}
