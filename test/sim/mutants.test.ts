/** The bug bank fits the sources: every mutant can be made. mutants.slow.test.ts hunts them. */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { worlds } from '../../lib/sim/crash-worlds.ts';
import { mutants } from './mutants.ts';

const root = resolve(import.meta.dirname, '../..');

describe('the bug bank', () => {
  test('has at least 60 broken engines, each with a name of its own and something to break', () => {
    expect(mutants.length).toBeGreaterThanOrEqual(60);
    expect(new Set(mutants.map(({ name }) => name)).size).toBe(mutants.length);
    expect(mutants.filter(({ hunts }) => hunts.length === 0)).toEqual([]);
    expect(mutants.filter(({ find, replace }) => find === replace)).toEqual([]);
  });

  test('every change fits its source exactly once', () => {
    const changes = mutants.flatMap(({ name, file, find, and }) => [
      { name, file, find },
      ...(and ?? []).map((change) => ({ name, ...change })),
    ]);
    const misfits = changes.flatMap(({ name, file, find }) => {
      const count = readFileSync(resolve(root, file), 'utf8').split(find).length - 1;
      return count === 1 ? [] : [`${name}: ${file} has its text ${count} times`];
    });
    expect(misfits).toEqual([]);
  });

  test('every hunt is for a world that there is', () => {
    const titles = new Set(worlds.map(({ title }) => title));
    const strangers = mutants.flatMap(({ hunts }) =>
      hunts.filter((hunt) => 'world' in hunt && !titles.has(hunt.world)),
    );
    expect(strangers).toEqual([]);
  });
});
