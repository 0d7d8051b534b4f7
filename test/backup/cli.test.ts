/** `backup` and `export` where they cannot do what they are asked; cli.slow.test.ts has what they do. */
import { readdir, rm, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { Scratch, sampleBytes } from '../cli/raidsim.ts';

test('what is lost is named with exit code 5, and what is left of a file is kept beside', async () => {
  await using scratch = await Scratch.make();
  await writeFile(scratch.path('disk.img'), sampleBytes(600_000));
  await scratch.done('backup create disk.img --repo repo --chunk 64K -q');
  for (const pack of await readdir(scratch.path('repo', 'packs')))
    await rm(scratch.path('repo', 'packs', pack));
  // The map itself was stored with the chunks: all of it is lost.
  const restored = await scratch.type('backup restore latest --repo repo --to out.img');
  expect(restored).toMatchObject({ code: 5, stderr: expect.stringContaining('600000 bytes at 0') });
  expect(await readdir(scratch.folder)).toEqual(['disk.img', 'out.img.partial', 'repo']);
  expect(await scratch.type('backup verify --repo repo')).toMatchObject({ code: 5 });
});

test('wrong calls say what is wrong, and do nothing', async () => {
  await using scratch = await Scratch.make();
  await writeFile(scratch.path('photo.jpg'), 'x');
  await writeFile(scratch.path('raidsim.json'), '{}');
  await writeFile(scratch.path('disk.img'), sampleBytes(1000));
  const cases: readonly (readonly [string, number, string])[] = [
    ['backup create', 2, 'say what to back up'],
    ['backup create disk.img', 2, '--repo'],
    ['backup create disk.img --repo .', 4, 'is not empty'],
    ['backup list --repo nowhere', 2, 'backup create ARRAY --repo nowhere'],
    ['backup list --repo .', 2, 'no backup repository'],
    ['backup list --repo nowhere --keep-last 3', 2, 'does not take --keep-last'],
    ['backup restore latest --repo nowhere', 2, '--to'],
    ['backup list --repo https://localhost/bucket', 2, 's3:https://HOST/BUCKET/PREFIX'],
    ['backup create disk.img --repo nbd://localhost/disk', 2, 'a repository is a folder'],
    ['backup prune latest --repo nowhere', 2, '--remove latest'],
    ['backup verify latest --repo nowhere', 2, '--repo DIR'],
    ['backup forget latest --repo nowhere', 2, 'Did you mean prune?'],
    ['backup frobnicate', 2, 'It is one of create, list, restore'],
    ['backup create disk.img --repo new --redundancy 3', 2, '0, 1 or 2'],
    ['backup create disk.img --repo s3:https://localhost/bucket', 2, 'AWS_ACCESS_KEY_ID'],
    ['backup create disk.img --repo s3://bucket/prefix', 2, 's3:https://HOST/BUCKET/PREFIX'],
    ['export disk.img', 2, '--to FILE'],
    ['export raidsim.json --to x.raw', 2, 'an array is called by its folder'],
    ['export disk.img --to x.raw --since abc', 2, 'belong together'],
  ];
  for (const [line, code, words] of cases) {
    const outcome = await scratch.type(line);
    expect(outcome.stderr, line).toContain(words);
    expect(outcome.code, line).toBe(code);
  }
  expect(await readdir(scratch.folder)).toEqual(['disk.img', 'photo.jpg', 'raidsim.json']);
});
