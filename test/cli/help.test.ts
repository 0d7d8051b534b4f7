/** Help says what there is, and answers before the library is loaded. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { describe, expect, test } from 'vitest';
import { verbs } from '../../cli/verbs.ts';
import { raidsim, Scratch } from './raidsim.ts';

const cli = fileURLToPath(new URL('../../cli/', import.meta.url));

/** Verbs that measure or show off: their work is all they are called for. */
const eager = new Set(['demo', 'bench', 'kernels']);

async function helpOf(name: string): Promise<string> {
  const row = verbs.find((verb) => verb.name === name);
  const command = new Command(name);
  (await row?.load())?.define(command);
  let text = '';
  command.configureOutput({
    writeOut: (part) => {
      text += part;
    },
  });
  command.outputHelp();
  return text;
}

describe('every verb', () => {
  const ours = verbs.filter(({ name }) => !eager.has(name));

  test.each(ours.map(({ name }) => name))(
    '%s has help with examples, and says what its options do',
    async (name) => {
      const text = await helpOf(name);
      expect(text.split('\nExamples:\n')[1]).toContain(`raidsim ${name} `);
      const command = new Command(name);
      (await verbs.find((verb) => verb.name === name)?.load())?.define(command);
      for (const option of command.options) expect(option.description).not.toBe('');
      for (const argument of command.registeredArguments) {
        if (name !== 'completion') expect(argument.description).not.toBe('');
      }
    },
  );

  test('has a file, and every file a verb', () => {
    const files = readdirSync(join(cli, 'commands')).map((file) => file.replace(/\.ts$/, ''));
    expect(files.toSorted()).toEqual(verbs.map(({ name }) => name).toSorted());
  });

  test('fits on a line of help', () => {
    for (const { name, summary } of verbs) expect(`  ${name.padEnd(13)}  ${summary}`.length).toBeLessThan(80);
  });
});

describe('what is loaded before a verb works', () => {
  /** Imports that are carried out when the file is: not types, not `import()`. */
  function importsOf(path: string): readonly string[] {
    const text = readFileSync(path, 'utf8');
    return [...text.matchAll(/^import (?!type )[^;]*?from '(\.[^']+)'/gm)].map((match) =>
      resolve(dirname(path), match[1] ?? ''),
    );
  }

  function closure(path: string, seen = new Set<string>()): Set<string> {
    if (seen.has(path)) return seen;
    seen.add(path);
    for (const next of importsOf(path)) closure(next, seen);
    return seen;
  }

  test.each([
    'main',
    'program',
    ...verbs
      .map(({ name }) => name)
      .filter((name) => !eager.has(name))
      .map((name) => `commands/${name}`),
  ])('%s does not load the library: help and wrong calls answer at once', (name) => {
    const loaded = [...closure(join(cli, `${name}.ts`))].map((path) => path.slice(cli.length));
    expect(loaded.filter((path) => path.startsWith('../') || path.includes('lib/'))).toEqual([]);
  });
});

test('help and version end with 0, and no verb at all with 2', async () => {
  const [help, version, nothing, verb] = await Promise.all([
    raidsim(['--help']),
    raidsim(['--version']),
    raidsim([]),
    raidsim(['help', 'create']),
  ]);
  expect(help.code).toBe(0);
  for (const { name, summary } of verbs) expect(help.stdout).toContain(`  ${name.padEnd(13)}  ${summary}`);
  expect(version).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) });
  expect(nothing).toMatchObject({ code: 2, stdout: '' });
  expect(verb).toMatchObject({
    code: 0,
    stdout: expect.stringContaining('Usage: raidsim create [options] <array> [file...]'),
  });
});

test('no colour but on a terminal', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 1 -n 2 -z 8M -q');
  const { stdout } = await raidsim(['status', 'demo'], { NO_COLOR: undefined }, { cwd: scratch.folder });
  expect(stdout).not.toContain('\u001b');
});
