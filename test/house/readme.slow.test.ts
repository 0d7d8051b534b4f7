/** README.md's programs and commands do what they show. */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, describe, expect, test } from 'vitest';
import { needPeer } from '../peer.ts';

const run = promisify(execFile);
const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const program = join(root, 'cli/raidsim.js');
const readme = readFileSync(join(root, 'README.md'), 'utf8');
const folder = await mkdtemp(join(tmpdir(), 'raidsim-readme-'));
afterAll(() => rm(folder, { recursive: true, force: true }));

function blocks(language: string): readonly string[] {
  return [...readme.matchAll(/^```(\w*)\n(.*?)^```$/gms)]
    .filter(([, of]) => of === language)
    .map(([, , text = '']) => text);
}

/** A folder for one example, where `raidsim` is installed. */
async function project(name: string): Promise<string> {
  const where = join(folder, name);
  await mkdir(join(where, 'node_modules'), { recursive: true });
  await symlink(root, join(where, 'node_modules/raidsim'));
  await symlink(join(root, 'node_modules/@types'), join(where, 'node_modules/@types'));
  return where;
}

/** The commands of a block, typed into one shell; what they print. */
async function typed(block: string, where: string): Promise<string> {
  const lines = block.split('\n').filter((line) => line.startsWith('$ '));
  const script = lines.map((line) => line.slice(2)).join('\n');
  const shell = `set -e -o pipefail; npx() { shift; "${process.execPath}" "${program}" "$@"; }\n${script}\n`;
  const environment = { ...process.env, NO_COLOR: '1' };
  return (await run('bash', ['-c', shell], { cwd: where, env: environment })).stdout;
}

function blockWith(text: string): string {
  const block = blocks('').find((each) => each.includes(text));
  if (block === undefined) throw new Error(`no block of README.md has "${text}"`);
  return block;
}

describe('README.md', () => {
  test.each(blocks('ts').map((code, at) => [at + 1, code] as const))(
    'program %i runs, and prints what it says',
    async (at, code) => {
      const where = await project(`program${at}`);
      await writeFile(join(where, 'program.mts'), code.replaceAll('/tmp/box', where));
      // Not every Node knows `await using`; and the types are a part of what is said.
      const compiler = join(root, 'node_modules/typescript/bin/tsc');
      const options =
        '--strict --skipLibCheck --module nodenext --target es2022 --lib es2023,esnext.disposable --types node';
      await run(process.execPath, [compiler, 'program.mts', ...options.split(' ')], { cwd: where });
      const { stdout } = await run(process.execPath, ['program.mjs'], { cwd: where });
      const [, said] = /console\.log\(.*\); \/\/ (.*)\n$/.exec(code) ?? [];
      if (said !== undefined) expect(stdout.trimEnd().split('\n').at(-1)).toBe(said);
    },
  );

  test('the 60 seconds go as they are shown', async (context) => {
    const block = blockWith('hello, parity');
    const [shown] = block.split('\n').filter((line) => line !== '' && !line.startsWith('$ '));
    const isThere = await run('mdadm', ['--version']).then(
      () => true,
      () => false,
    );
    needPeer(isThere, { program: 'mdadm', from: 'mdadm' }, context);
    const said = await typed(block, await project('seconds'));
    expect(said.split('\n')).toContain(shown);
    expect(said).toContain('no mismatch');
    expect(said).toMatch(/Raid Level : raid5/);
  });

  test('a dead NAS is read as they show it', async () => {
    const where = await project('nas');
    const disks = ['sda3.img', 'sdb3.img', 'sdc3.img', 'sdd3.img'].join(' ');
    const made = `$ for disk in ${disks}; do truncate -s 8M $disk; done
$ npx raidsim create made ${disks} --level 5 --chunk 64K --assume-clean -q
$ head -c 1000000 /dev/urandom > data.bin
$ npx raidsim write made --from data.bin -q
$ rm -r made`;
    await typed(made, where);
    expect(await typed(blockWith('npx raidsim assemble nas'), where)).toContain('read-only');
    expect(await typed('$ cmp -n 1000000 data.bin volume.img', where)).toBe('');
  });
});
