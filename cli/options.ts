/** What verbs have in common when they say what they take. Nothing here loads the library. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Argument, type Command, InvalidArgumentError, Option } from 'commander';
import { closest } from './closest.ts';

export const SIZES = 'SIZE: 4096, 64K, 256M, 1G ... in powers of 1024.';

export function examples(command: Command, lines: readonly string[], notes = ''): Command {
  const before = notes === '' ? '' : `\n${notes}\n`;
  return command.addHelpText('after', `${before}\nExamples:\n${lines.map((line) => `  ${line}`).join('\n')}`);
}

export function jsonOption(what = 'the status afterwards as one JSON document'): Option {
  return new Option('--json', what);
}

export function quietOption(what = 'say nothing but errors'): Option {
  return new Option('-q, --quiet', what);
}

/** HOST:PORT. */
export function address(text: string): { readonly host: string; readonly port?: number } {
  const found = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text);
  const host = found?.[1] ?? found?.[2];
  const port = found?.[3] === undefined ? undefined : Number(found[3]);
  if (host === undefined || (port !== undefined && port > 65535)) {
    throw new InvalidArgumentError('Write HOST:PORT, for example 127.0.0.1:10809 or [::1]:10809.');
  }
  return port === undefined ? { host } : { host, port };
}

/** The first word after a verb that does several things. `others`: words for them that are no slips of a finger. */
export function actionArgument(
  verb: string,
  actions: readonly string[],
  others: Readonly<Record<string, string>> = {},
): Argument {
  const argument = new Argument('<action>', 'what to do').choices(actions);
  return argument.argParser((text) => {
    if (actions.includes(text)) return text;
    const all = `It is one of ${actions.join(', ')}.`;
    if (existsSync(join(text, 'raidsim.json')))
      throw new InvalidArgumentError(`The action comes first: raidsim ${verb} ACTION ${text} ... ${all}`);
    const meant = others[text] ?? closest(text, actions);
    throw new InvalidArgumentError(meant === null ? all : `Did you mean ${meant}? ${all}`);
  });
}

/** For `--disks` and the like: a whole number, checked where it was written. */
export function count(text: string): number {
  if (!/^\d{1,6}$/.test(text)) throw new InvalidArgumentError('Write a whole number, for example 4.');
  return Number(text);
}

export function seconds(text: string): number {
  const value = Number(text);
  if (!(value >= 0.1 && value <= 86_400))
    throw new InvalidArgumentError('Write seconds, for example 2 or 0.5.');
  return value;
}

export interface ReadingOptions {
  readonly offset?: string;
  readonly length?: string;
  readonly to?: string;
  readonly keepGoing?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** What `read` takes, and `snapshot read`. */
export function readingOptions(command: Command): Command {
  return command
    .option('--to <file>', 'where the bytes go; - for standard output (default: -, where it is a pipe)')
    .option('--offset <size>', 'the first byte (default: 0)')
    .option('--length <size>', 'so many bytes (default: to the end)')
    .option('--keep-going', 'where data is lost, write zeros, list the place and go on');
}
