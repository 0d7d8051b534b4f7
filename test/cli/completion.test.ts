/** The scripts know every verb and option, and bash's does what it says. */
import { execFileSync } from 'node:child_process';
import { chmod, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { expect, test } from 'vitest';
import { verbs } from '../../cli/verbs.ts';
import { raidsim, Scratch } from './raidsim.ts';

const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

test('every verb and every option is in every script', async () => {
  const scripts = await Promise.all(
    ['bash', 'zsh', 'fish'].map(async (shell) => (await raidsim(['completion', shell])).stdout),
  );
  for (const row of verbs) {
    const command = new Command(row.name);
    (await row.load()).define(command);
    for (const script of scripts) {
      expect(script).toContain(row.name);
      for (const option of command.options) expect(script).toContain((option.long ?? '').slice(2));
    }
  }
});

test('bash completes verbs, options, values, folders and the disks of an array', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 1 -n 2 -z 8M -q');
  await writeFile(scratch.path('raidsim'), `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`);
  await chmod(scratch.path('raidsim'), 0o755);
  const lines = [
    'raidsim sta',
    'raidsim create x --le',
    'raidsim create x --level raid1',
    'raidsim fail de',
    'raidsim fail demo dis',
  ];
  const asked = lines.map((line) => `try ${line}`).join('\n');
  const told = execFileSync(
    'bash',
    [
      '-c',
      `source <(raidsim completion bash)
      try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _raidsim; echo "\${COMPREPLY[*]}"; }
      ${asked}`,
    ],
    {
      cwd: scratch.folder,
      encoding: 'utf8',
      env: { ...process.env, PATH: `${scratch.folder}:${process.env['PATH']}` },
    },
  );
  expect(told.trimEnd().split('\n')).toEqual(['status', '--level', 'raid1 raid10', 'demo', 'disk0 disk1']);
});
