/**
 * The rules of the house, checked on the sources themselves: imports point down, the world comes in through one door,
 * and some mistakes are refused by name. Each message says what to do instead.
 */
import { readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { filesBelow } from './files.ts';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

/** A file may import from rooms of a lower rank, and from its own room. */
const ranks: Readonly<Record<string, number>> = {
  'lib/units.ts': 0,
  'lib/errors.ts': 0,
  'lib/host.ts': 0,
  'lib/device': 1,
  'lib/socket': 1,
  'lib/layout': 1,
  'lib/parity': 1,
  'lib/md': 1,
  'lib/plan': 2,
  'lib/multipath': 2,
  'lib/snapshot': 2,
  'lib/backup': 2,
  'lib/nbd': 2,
  'lib/control': 2,
  'lib/engine': 3,
  'lib/array': 4,
  'lib/sim': 5,
  'lib/index.ts': 6,
  cli: 7,
  bench: 7,
  test: 8,
};

/** Of one rank, but one may know the other: a superblock describes a geometry. */
const allowedSiblings = new Set(['lib/units.ts -> lib/errors.ts', 'lib/md -> lib/layout', 'cli -> bench']);

/** Rooms that think: nothing in them waits, measures or draws lots. */
const pureRooms = ['lib/layout', 'lib/plan', 'lib/md', 'lib/units.ts', 'lib/errors.ts'];

const sources = ['lib', 'cli', 'bench', 'test'].flatMap((folder) => filesBelow(join(root, folder)));

function roomOf(path: string): string {
  const parts = relative(root, path).split('/');
  return parts[0] === 'lib' ? `lib/${parts[1]}` : (parts[0] ?? '');
}

function importsOf(path: string): string[] {
  const text = readFileSync(path, 'utf8');
  return [...text.matchAll(/(?:from|import\()\s*'([^']+)'/g)].map((match) => match[1] ?? '');
}

/** Code without comments, so that a rule can be named where it is explained. */
function codeOf(path: string): string {
  return readFileSync(path, 'utf8')
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/\/\/.*$/gm, '');
}

describe('layers', () => {
  test('every source file belongs to a room with a rank', () => {
    const homeless = sources.filter((path) => ranks[roomOf(path)] === undefined);
    expect(homeless.map((path) => relative(root, path))).toEqual([]);
  });

  test('imports point down: a lower room never knows a higher one, nor its neighbour', () => {
    const wrong: string[] = [];
    for (const path of sources) {
      const from = roomOf(path);
      for (const name of importsOf(path).filter((found) => found.startsWith('.'))) {
        const to = roomOf(resolve(dirname(path), name));
        if (from === to || allowedSiblings.has(`${from} -> ${to}`)) continue;
        if ((ranks[to] ?? 99) >= (ranks[from] ?? -1)) wrong.push(`${relative(root, path)} imports ${to}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  test('the command line and users see the library through lib/index.ts only', () => {
    const wrong: string[] = [];
    for (const path of sources.filter((found) => roomOf(found) === 'cli')) {
      for (const name of importsOf(path).filter((found) => found.startsWith('.'))) {
        const target = relative(root, resolve(dirname(path), name));
        if (target.startsWith('lib/') && target !== 'lib/index.ts')
          wrong.push(`${relative(root, path)} imports ${target}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  test('rooms that think import nothing from the world outside', () => {
    const wrong = sources
      .filter((path) => pureRooms.includes(roomOf(path)))
      .flatMap((path) =>
        importsOf(path)
          .filter((name) => !name.startsWith('.'))
          .map((name) => `${relative(root, path)} imports ${name}`),
      );
    expect(wrong).toEqual([]);
  });
});

interface Ban {
  readonly pattern: RegExp;
  readonly instead: string;
  readonly where: RegExp;
  readonly except?: RegExp;
}

const bans: readonly Ban[] = [
  {
    pattern:
      /\bMath\.random\(|\bDate\.now\(|\bnew Date\(\)|\bperformance\.now\(|\bsetTimeout\(|\bsetInterval\(/,
    instead: 'time and chance come from a Host (lib/host.ts)',
    where: /^lib\//,
    except: /^lib\/host\.ts$/,
  },
  { pattern: /\bconsole\./, instead: 'only cli/ and bench/ print', where: /^lib\// },
  {
    pattern: /\bexport default\b/,
    instead: 'named exports: one concept, one name',
    where: /^(lib|cli|bench)\//,
  },
  { pattern: /@ts-(ignore|nocheck)/, instead: 'mend the type', where: /./ },
  {
    pattern: /\bPromise\.race\(/,
    instead: 'a Host deadline: race leaves the loser running',
    where: /^lib\//,
  },
];

test('banned constructs do not appear, and the message says what to use instead', () => {
  const found: string[] = [];
  for (const path of sources) {
    const name = relative(root, path);
    if (name === 'test/house/house.test.ts') continue;
    const code = codeOf(path);
    for (const ban of bans) {
      if (ban.where.test(name) && ban.except?.test(name) !== true && ban.pattern.test(code)) {
        found.push(`${name}: ${code.match(ban.pattern)?.[0]} - use instead: ${ban.instead}`);
      }
    }
  }
  expect(found).toEqual([]);
});

test('no file is named for being miscellaneous', () => {
  const found = sources.filter((path) =>
    /(^|\/)(utils?|helpers?|misc|common)(\/|\.ts$)/.test(relative(root, path)),
  );
  expect(found).toEqual([]);
});

test('the package has no dependency with an install script, and no more than it says', () => {
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { hasInstallScript?: boolean; dev?: boolean; optional?: boolean }>;
  };
  const scripted = Object.entries(lock.packages).filter(
    ([path, entry]) => path !== '' && entry.hasInstallScript === true && entry.optional !== true,
  );
  expect(scripted.map(([path]) => path)).toEqual([]);
});
