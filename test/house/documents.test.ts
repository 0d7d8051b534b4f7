/** What the documents say is so: their links lead somewhere, their numbers are cited, what they say of every verb holds. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { expect, test } from 'vitest';
import { verbs } from '../../cli/verbs.ts';
import { filesBelow } from './files.ts';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

test('every verb but demo and completion takes --json', async () => {
  for (const { name, load } of verbs) {
    const command = new Command(name);
    (await load()).define(command);
    const takesJson = command.options.some(({ long }) => long === '--json');
    expect(takesJson, name).toBe(!['demo', 'completion'].includes(name));
  }
});

test('what packed documents link to is packed as well, and there', () => {
  const { files } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { files: string[] };
  const documents = ['README.md', ...files.filter((file) => file.endsWith('.md'))];
  const isPacked = (path: string): boolean =>
    documents.includes(path) || files.some((file) => path.startsWith(`${file}/`));
  const wrong = documents.flatMap((document) => {
    const text = readFileSync(join(root, document), 'utf8');
    return [...text.matchAll(/\]\((?!https?:|#)([^)#]+)/g)]
      .map(([, link = '']) => relative(root, resolve(root, dirname(document), link)))
      .filter((path) => !isPacked(path) || !existsSync(join(root, path)))
      .map((path) => `${document} links to ${path}`);
  });
  expect(wrong).toEqual([]);
  expect(files.some((file) => file === 'dist' || file.startsWith('dist/test'))).toBe(false);
});

test('every invariant of ARCHITECTURE.md is cited by a test that attacks it', () => {
  const table = readFileSync(join(root, 'ARCHITECTURE.md'), 'utf8');
  const numbers = [...table.matchAll(/^\| (I\d+) /gm)].map(([, number = '']) => number);
  expect(numbers.length).toBeGreaterThan(10);
  const cited = new Set(
    filesBelow(join(root, 'test')).flatMap((path) => readFileSync(path, 'utf8').match(/\bI\d+\b/g) ?? []),
  );
  expect(numbers.filter((number) => !cited.has(number))).toEqual([]);
});
