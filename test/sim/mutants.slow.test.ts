/**
 * Every engine of the bug bank is built, run and caught. A mutant is a tree of hard links to dist with one file compiled
 * anew; its hunts run in a process of its own, two at a time. The kill table is printed.
 *
 * One that survives is a hole in the checkers; one whose hunt fails on the sources as they are proves nothing: all hunts
 * are tried on those first.
 */
import { spawn, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Hunt, type Mutant, mutants } from './mutants.ts';

const root = resolve(import.meta.dirname, '../..');
const PROCESSES = 2;
const LIMIT_MS = 60_000;
/** How a hunt that caught something exits; it does with 0 where there was nothing to catch. */
const CAUGHT = 10;

interface Catch {
  readonly isCaught: boolean;
  /** Nothing was wrong, from the first hunt to the last. */
  readonly isPassed: boolean;
  readonly seconds: number;
  readonly said: string;
}

let folder = '';
const catches = new Map<string, Catch>();
let healthy: Catch | null = null;

function changesOf(mutant: Mutant): readonly Pick<Mutant, 'file' | 'find' | 'replace'>[] {
  return [mutant, ...(mutant.and ?? [])];
}

/** All mutated sources, compiled in one go, each at the same place below a folder of its own. */
function compileAll(): void {
  const files = [...mutants.entries()].flatMap(([number, mutant]) => {
    const sources = new Map<string, string>();
    for (const { file, find, replace } of changesOf(mutant)) {
      const source = sources.get(file) ?? readFileSync(join(root, file), 'utf8');
      sources.set(
        file,
        source.replace(find, () => replace),
      );
    }
    return [...sources].map(([file, source]) => {
      const path = join(folder, 'src', String(number), file);
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, source);
      return path;
    });
  });
  const options = {
    ...JSON.parse(readFileSync(join(root, 'tsconfig.json'), 'utf8')).compilerOptions,
    rootDir: join(folder, 'src'),
    outDir: join(folder, 'out'),
    noCheck: true,
    noResolve: true,
    declaration: false,
    types: [],
  };
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions: options, files }));
  const compiler = join(root, 'node_modules/typescript/bin/tsc');
  spawnSync(process.execPath, [compiler, '-p', join(folder, 'tsconfig.json')]);
}

function linkTree(from: string, to: string): void {
  mkdirSync(to, { recursive: true });
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) linkTree(source, target);
    else if (!entry.name.endsWith('.d.ts')) linkSync(source, target);
  }
}

/** A copy of the files once, on the same file system; every mutant links to those. */
function makeOriginal(): string {
  const original = join(folder, 'original');
  const copyTree = (from: string, to: string, ending: string): void => {
    mkdirSync(to, { recursive: true });
    for (const entry of readdirSync(from, { withFileTypes: true })) {
      const [source, target] = [join(from, entry.name), join(to, entry.name)];
      if (entry.isDirectory()) copyTree(source, target, ending);
      else if (entry.name.endsWith(ending)) copyFileSync(source, target);
    }
  };
  copyTree(join(root, 'dist/lib'), join(original, 'dist/lib'), '.js');
  copyTree(join(root, 'dist/test/sim'), join(original, 'dist/test/sim'), '.js');
  copyTree(join(root, 'lib/parity'), join(original, 'lib/parity'), '.wasm');
  copyFileSync(join(root, 'package.json'), join(original, 'package.json'));
  return original;
}

function hunt(place: string, hunts: readonly Hunt[], limitMs: number): Promise<Catch> {
  const start = performance.now();
  return new Promise((done) => {
    const program = join(place, 'dist/test/sim/mutant-child.js');
    const child = spawn(process.execPath, [program, JSON.stringify(hunts), root], { timeout: limitMs });
    let said = '';
    child.stdout.on('data', (part: Buffer) => {
      said += part.toString();
    });
    child.stderr.on('data', (part: Buffer) => {
      said += part.toString();
    });
    child.once('close', (code) => {
      done({
        isCaught: code === CAUGHT,
        isPassed: code === 0,
        seconds: (performance.now() - start) / 1000,
        said,
      });
    });
  });
}

async function huntMutant(mutant: Mutant, number: number, original: string): Promise<void> {
  const place = join(folder, 'mutants', String(number));
  linkTree(original, place);
  symlinkSync(join(root, 'node_modules'), join(place, 'node_modules'));
  for (const file of new Set(changesOf(mutant).map((change) => change.file))) {
    const script = file.replace(/\.ts$/, '.js');
    rmSync(join(place, 'dist', script));
    copyFileSync(join(folder, 'out', String(number), script), join(place, 'dist', script));
  }
  catches.set(mutant.name, await hunt(place, mutant.hunts, LIMIT_MS));
  rmSync(place, { recursive: true });
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'raidsim-mutants-'));
  compileAll();
  const original = makeOriginal();
  symlinkSync(join(root, 'node_modules'), join(original, 'node_modules'));
  const all = new Map(mutants.flatMap(({ hunts }) => hunts.map((each) => [JSON.stringify(each), each])));
  healthy = await hunt(original, [...all.values()], 10 * LIMIT_MS);
  rmSync(join(original, 'node_modules'));
  const waiting = [...mutants.entries()];
  await Promise.all(
    Array.from({ length: PROCESSES }, async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift())
        await huntMutant(next[1], next[0], original);
    }),
  );
});

afterAll(() => {
  if (folder !== '') rmSync(folder, { recursive: true, force: true });
});

describe('the bug bank', () => {
  test('no hunt catches the engine as it is', () => {
    expect(healthy?.isPassed, healthy?.said).toBe(true);
  });

  test.each(mutants.map(({ name }) => name))('is caught: %s', (name) => {
    const found = catches.get(name);
    expect(found?.isCaught, found?.said).toBe(true);
  });

  test('the kill table', () => {
    const caught = [...catches.values()].filter(({ isCaught }) => isCaught);
    const lines = mutants.map(({ name, breaks }) => {
      const found = catches.get(name);
      const by = found?.isCaught === true ? (found.said.trim().split('\n')[0] ?? '') : 'survives';
      return `${(found?.seconds ?? 0).toFixed(1).padStart(6)} s  ${name} [${breaks}]: ${by}`;
    });
    process.stdout.write(
      `\n${lines.join('\n')}\nbug bank: ${caught.length} of ${mutants.length} broken engines caught\n`,
    );
    expect(caught).toHaveLength(mutants.length);
  });
});
