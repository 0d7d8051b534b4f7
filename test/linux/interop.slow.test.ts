/**
 * Our arrays and Linux's are the same arrays: every shape, both ways.
 *
 *   ours      raidsim makes and fills it ─▶ Linux assembles it, reads the same, finds no mismatch, writes
 *             ─▶ raidsim reads what Linux wrote, and finds no mismatch
 *   theirs    mdadm makes and fills it ─▶ raidsim assembles it, reads the same, writes, closes
 *             ─▶ Linux reads what raidsim wrote, and finds no mismatch
 *   examine   mdadm prints the same of our image as of its own, but for names, times and identities
 *
 * A shape in one direction is a *cell*. All cells are run first, as few boots as fit, three at a time, since guests often wait; each test then
 * looks at what was found.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MIB } from '../../lib/units.ts';
import {
  type Answers,
  type Examined,
  examine,
  fillWith,
  forEach,
  form,
  type GuestArray,
  inTurns,
  Lab,
  Model,
  pack,
  patchWith,
  patchWords,
  randomPatches,
  reassemble,
  scrubOf,
  settled,
  sumOf,
} from './interop.ts';
import { kernelOrSkip } from './kernel.ts';

interface Shape {
  readonly id: string;
  readonly level: string;
  /** As both mdadm and we call it; null where the level has none. */
  readonly layout: string | null;
  readonly chunk: string | null;
  readonly metadata: '1.0' | '1.1' | '1.2';
  /** The bitmap's chunk. */
  readonly bitmap: string | null;
  readonly sizesMib: readonly number[];
}

type Version = Shape['metadata'];

let shapeCount = 0;
function shape(
  level: string,
  layout: string | null,
  members: number | readonly number[],
  chunk: string | null,
  metadata: Version,
  bitmap: string | null = null,
): Shape {
  const sizesMib = typeof members === 'number' ? Array.from({ length: members }, () => 8) : members;
  shapeCount += 1;
  return { id: `s${shapeCount}`, level, layout, chunk, metadata, bitmap, sizesMib };
}

const alike = (count: number, mib: number): readonly number[] => Array.from({ length: count }, () => mib);

// biome-ignore format: a table
const shapes: readonly Shape[] = [
  shape('linear', null, 2, null, '1.2'),
  shape('linear', null, [8, 14, 9.5], null, '1.0'),
  shape('linear', null, [12, 8], null, '1.1'),
  shape('raid0', null, 2, '512K', '1.2'),
  shape('raid0', null, 3, '4K', '1.0'),
  shape('raid0', null, alike(4, 14), '1M', '1.1'),
  shape('raid0', 'original', [8, 14, 10], '64K', '1.2'),
  shape('raid0', 'alternate', [8, 14, 10], '64K', '1.2'),
  shape('raid0', 'alternate', [16, 8, 9, 12], '16K', '1.0'),
  shape('raid0', 'original', [12, 12, 8, 8], '128K', '1.1'),
  shape('raid1', null, 2, null, '1.2'),
  shape('raid1', null, 2, null, '1.2', '64K'),
  shape('raid1', null, 3, null, '1.0', '4K'),
  shape('raid1', null, 4, null, '1.1'),
  shape('raid1', null, [10, 12.3], null, '1.1', '1M'),
  shape('raid4', null, 3, '64K', '1.2'),
  shape('raid4', null, 4, '4K', '1.0', '256K'),
  shape('raid4', null, 5, '512K', '1.1'),
  shape('raid5', 'left-symmetric', 2, '64K', '1.2'),
  shape('raid5', 'left-symmetric', 3, '512K', '1.2', '64M'),
  shape('raid5', 'left-symmetric', alike(4, 14), '1M', '1.1'),
  shape('raid5', 'left-symmetric', 8, '16K', '1.2', '128K'),
  shape('raid5', 'left-symmetric', [10, 12, 11.3], '32K', '1.0', '16K'),
  shape('raid5', 'left-asymmetric', 4, '4K', '1.0'),
  shape('raid5', 'left-asymmetric', 5, '128K', '1.2', '4K'),
  shape('raid5', 'right-symmetric', 3, '64K', '1.1', '64K'),
  shape('raid5', 'right-symmetric', 6, '8K', '1.2'),
  shape('raid5', 'right-asymmetric', 4, '256K', '1.2'),
  shape('raid5', 'right-asymmetric', 7, '64K', '1.0'),
  shape('raid5', 'parity-first', 4, '64K', '1.2'),
  shape('raid5', 'parity-last', 3, '16K', '1.1', '32K'),
  shape('raid6', 'left-symmetric', 4, '512K', '1.2'),
  shape('raid6', 'left-symmetric', 6, '64K', '1.0', '64K'),
  shape('raid6', 'left-symmetric', alike(8, 6), '4K', '1.2'),
  shape('raid6', 'left-asymmetric', 5, '16K', '1.1'),
  shape('raid6', 'right-symmetric', 5, '64K', '1.2', '8K'),
  shape('raid6', 'right-asymmetric', 4, '128K', '1.0'),
  shape('raid6', 'parity-first', 5, '64K', '1.2'),
  shape('raid6', 'parity-last', 4, '32K', '1.1', '64K'),
  shape('raid6', 'ddf-zero-restart', 5, '64K', '1.2'),
  shape('raid6', 'ddf-N-restart', 4, '16K', '1.2'),
  shape('raid6', 'ddf-N-continue', 6, '64K', '1.0'),
  shape('raid6', 'left-symmetric-6', 5, '64K', '1.2'),
  shape('raid6', 'right-asymmetric-6', 4, '8K', '1.1'),
  shape('raid6', 'parity-first-6', 5, '64K', '1.2', '64K'),
  shape('raid10', 'n2', 2, '512K', '1.2'),
  shape('raid10', 'n2', 4, '64K', '1.2', '64K'),
  shape('raid10', 'n2', 3, '4K', '1.0'),
  shape('raid10', 'n2', 5, '64K', '1.1', '16K'),
  shape('raid10', 'n3', 3, '64K', '1.2'),
  shape('raid10', 'n3', 5, '16K', '1.2', '128K'),
  shape('raid10', 'n3', 7, '64K', '1.0'),
  shape('raid10', 'f2', 2, '64K', '1.2'),
  shape('raid10', 'f2', 3, '128K', '1.1', '64K'),
  shape('raid10', 'f2', 4, '4K', '1.0', '64K'),
  shape('raid10', 'f3', 4, '32K', '1.2'),
  shape('raid10', 'o2', 2, '64K', '1.1'),
  shape('raid10', 'o2', 4, '64K', '1.2', '32K'),
  shape('raid10', 'o2', 5, '16K', '1.0'),
  shape('raid10', 'o3', 4, '64K', '1.2'),
  shape('raid10', 'n2', alike(4, 14), '1M', '1.2'),
];

function words({ level, layout, sizesMib, chunk, metadata, bitmap }: Shape): string {
  const sizes = new Set(sizesMib).size === 1 ? `${sizesMib.length} × ${sizesMib[0]}` : sizesMib.join(', ');
  return [
    level,
    layout ?? '',
    `${sizes} MiB`,
    chunk === null ? '' : `chunk ${chunk}`,
    `metadata ${metadata}`,
    bitmap === null ? '' : `bitmap ${bitmap}`,
  ]
    .filter((word) => word !== '')
    .join(', ');
}

/** What one cell found; what was not reached stays null, and then `error` says why. */
interface Found {
  error: unknown;
  sizeBytes: number | null;
  expected: string | null;
  linuxSize: string | null;
  linuxSum: string | null;
  linuxMismatches: string | null;
  expectedAfter: string | null;
  after: string | null;
  mismatchesAfter: string | number | null;
  about: string;
  examined: readonly Examined[];
}

interface Cell {
  readonly id: string;
  readonly shape: Shape;
  readonly number: number;
  readonly direction: 'ours' | 'theirs';
  readonly imageCount: number;
  readonly images: readonly string[];
  readonly found: Found;
  model: Model | null;
}

const nothing = (): Found => ({
  error: null,
  sizeBytes: null,
  expected: null,
  linuxSize: null,
  linuxSum: null,
  linuxMismatches: null,
  expectedAfter: null,
  after: null,
  mismatchesAfter: null,
  about: '',
  examined: [],
});

/** Different arrays hold different content: an array mixed up with another must show. */
const skipOf = (number: number): number => (number * 97 * 4096) % (16 * MIB);

async function attempt(cell: Cell, work: () => Promise<void>): Promise<void> {
  if (cell.found.error !== null) return;
  try {
    await work();
  } catch (error) {
    cell.found.error = error;
  }
}

async function makeOurs(lab: Lab, cell: Cell): Promise<void> {
  const { level, layout, chunk, metadata, bitmap } = cell.shape;
  const array = await form(cell.images, {
    level,
    metadata,
    ...(layout === null ? {} : { layout }),
    ...(chunk === null ? {} : { chunk }),
    ...(bitmap === null ? {} : { bitmap: 'internal', bitmapChunk: bitmap }),
    // Half of them by a resync, which runs while the array is filled.
    assumeClean: cell.number % 2 === 0,
  });
  try {
    cell.found.sizeBytes = array.limits.sizeBytes;
    cell.model = new Model(lab.pool, skipOf(cell.number), array.limits.sizeBytes);
    await fillWith(array, cell.model.bytes);
    await settled(array);
    cell.found.expected = cell.model.sum;
  } finally {
    await array.close();
  }
  cell.found.examined = cell.images.map(examine);
}

function createCommand({ level, layout, chunk, metadata, bitmap, sizesMib }: Shape): string {
  const parts = [
    `create --level=${level.replace('raid', '')} --metadata=${metadata} --raid-devices=${sizesMib.length}`,
  ];
  if (layout !== null) parts.push(`--layout=${layout}`);
  if (chunk !== null) parts.push(`--chunk=${chunk}`);
  parts.push(bitmap === null ? '' : `--bitmap=internal --bitmap-chunk=${bitmap}`);
  return `${parts.join(' ')} $M`;
}

/** Assembled, read and checked; the array stays running. */
function assembleAndCheck(arrays: readonly GuestArray[]): string {
  if (arrays.length === 0) return '';
  return [
    forEach(arrays, 'assemble $M'),
    forEach(arrays, 'sum'),
    forEach(arrays, 'start_check'),
    'settle',
    forEach(arrays, 'end_check'),
  ].join('\n');
}

/** The first boot: ours are checked and written to, theirs are made and filled. */
async function firstBoot(lab: Lab, cells: readonly Cell[]): Promise<void> {
  const ours = cells.filter((cell) => cell.direction === 'ours' && cell.found.error === null);
  const theirs = cells.filter((cell) => cell.direction === 'theirs');
  const patches = new Map(
    ours.map((cell) => [cell.id, randomPatches(cell.number, cell.found.sizeBytes ?? 0)]),
  );
  const script = [
    forEach(theirs, (id) => createCommand(shapeOf(cells, id))),
    assembleAndCheck(ours),
    forEach(ours, (id) => `patch ${patchWords(patches.get(id) ?? [])}`),
    'settle',
    forEach(theirs, (id) => `fill ${skipOf(numberOf(cells, id))}; say size $(size); sum`),
    'sleep 0.5',
    forEach([...ours, ...theirs], 'stop'),
  ].join('\n');
  const answers = await lab.boot([...ours, ...theirs], script);
  for (const cell of ours) {
    await attempt(cell, async () => {
      readAnswers(cell, answers);
      await readOurs(cell, patches.get(cell.id) ?? []);
    });
  }
  for (const cell of theirs) {
    await attempt(cell, async () => {
      cell.found.about = answers.about(cell.id);
      if (!answers.get(cell.id, 'created').startsWith('yes')) throw new Error(answers.about(cell.id));
      cell.found.linuxSize = answers.get(cell.id, 'size');
      cell.found.linuxSum = answers.get(cell.id, 'sum');
      cell.found.examined = cell.images.map(examine);
      await takeTheirs(lab, cell);
    });
  }
}

function readAnswers(cell: Cell, answers: Answers): void {
  const { found, id } = cell;
  found.about = answers.about(id);
  found.linuxSize = answers.find(id, 'size');
  found.linuxSum = answers.find(id, 'sum');
  found.linuxMismatches = answers.find(id, 'mismatches') ?? '0';
}

async function readOurs(cell: Cell, patches: ReturnType<typeof randomPatches>): Promise<void> {
  cell.model?.apply(patches);
  cell.found.expectedAfter = cell.model?.sum ?? null;
  const array = await reassemble(cell.images);
  try {
    cell.found.after = await sumOf(array);
    cell.found.mismatchesAfter = await scrubOf(array);
  } finally {
    await array.close();
  }
}

/** Read, written to, and given back. */
async function takeTheirs(lab: Lab, cell: Cell): Promise<void> {
  const array = await reassemble(cell.images);
  try {
    const sizeBytes = array.limits.sizeBytes;
    cell.found.sizeBytes = sizeBytes;
    cell.found.expected = await sumOf(array);
    const model = new Model(lab.pool, skipOf(cell.number), sizeBytes);
    await patchWith(array, model, randomPatches(cell.number, sizeBytes));
    cell.found.expectedAfter = model.sum;
    cell.found.mismatchesAfter = await scrubOf(array);
  } finally {
    await array.close();
  }
}

async function secondBoot(lab: Lab, cells: readonly Cell[]): Promise<void> {
  const alive = cells.filter((cell) => cell.found.error === null);
  const script = [assembleAndCheck(alive), forEach(alive, 'stop')].join('\n');
  const answers = await lab.boot(alive, script);
  for (const cell of alive) {
    await attempt(cell, () => {
      cell.found.about += `\n${answers.about(cell.id)}`;
      cell.found.after = answers.get(cell.id, 'sum');
      cell.found.linuxMismatches = answers.find(cell.id, 'mismatches') ?? '0';
      return Promise.resolve();
    });
  }
}

function shapeOf(cells: readonly Cell[], id: string): Shape {
  const cell = cells.find((each) => each.id === id);
  if (cell === undefined) throw new Error(`no cell ${id}`);
  return cell.shape;
}

function numberOf(cells: readonly Cell[], id: string): number {
  return cells.find((each) => each.id === id)?.number ?? 0;
}

/** What is written at creation; times, identities and event counts are not alike, and need not be. */
const twinKeys = [
  'Magic',
  'Version',
  'Feature Map',
  'Raid Level',
  'Raid Devices',
  'Avail Dev Size',
  'Array Size',
  'Used Dev Size',
  'Data Offset',
  'Super Offset',
  'Unused Space',
  'State',
  'Internal Bitmap',
  'Bad Block Log',
  'Layout',
  'Chunk Size',
  'Rounding',
  'Device Role',
  'Array State',
] as const;

const sizeKeys: ReadonlySet<string> = new Set(['Array Size', 'Used Dev Size', 'Unused Space']);

describe.runIf(kernelOrSkip())('raidsim and Linux', () => {
  const cells: Cell[] = [];
  let lab: Lab | null = null;

  beforeAll(async () => {
    const start = performance.now();
    lab = new Lab('interop');
    for (const [index, each] of shapes.entries()) {
      for (const direction of ['ours', 'theirs'] as const) {
        cells.push({
          id: `${each.id}${direction === 'ours' ? 'o' : 't'}`,
          shape: each,
          number: index,
          direction,
          imageCount: each.sizesMib.length,
          images: lab.images(each.sizesMib),
          found: nothing(),
          model: null,
        });
      }
    }
    const here = lab;
    const mine = cells.filter((cell) => cell.direction === 'ours');
    const theirs = cells.filter((cell) => cell.direction === 'theirs');
    await inTurns(mine, 2, (cell) => attempt(cell, () => makeOurs(here, cell)));
    await inTurns(pack(cells), 3, (group) => firstBoot(here, group));
    await inTurns(pack(theirs), 3, (group) => secondBoot(here, group));
    const seconds = ((performance.now() - start) / 1000).toFixed(0);
    console.log(`interop matrix: ${cells.length} cells, ${here.boots} boots, ${seconds} s`);
  });

  afterAll(() => lab?.remove());

  const cellOf = (of: Shape, direction: Cell['direction']): Cell => {
    const cell = cells.find((each) => each.shape === of && each.direction === direction);
    if (cell === undefined) throw new Error('every shape has two cells');
    if (cell.found.error !== null)
      throw new Error(`${String(cell.found.error)}\n${cell.found.about}`, { cause: cell.found.error });
    return cell;
  };

  describe.each(shapes.map((each) => ({ title: words(each), each })))('$title', ({ each }) => {
    test('made by raidsim: Linux assembles it, reads the same bytes and finds no mismatch', () => {
      const { found } = cellOf(each, 'ours');
      expect(found, found.about).toMatchObject({
        linuxSize: String(found.sizeBytes),
        linuxSum: found.expected,
        linuxMismatches: '0',
      });
    });

    test('made by raidsim and written to by Linux: raidsim reads the same bytes and finds no mismatch', () => {
      const { found } = cellOf(each, 'ours');
      expect(found.after, found.about).toBe(found.expectedAfter);
      expect(found.after).not.toBe(found.expected);
      expect(found.mismatchesAfter).toBe(0);
    });

    test('made by mdadm: raidsim assembles it, reads the same bytes and finds no mismatch', () => {
      const { found } = cellOf(each, 'theirs');
      expect(found, found.about).toMatchObject({
        sizeBytes: Number(found.linuxSize),
        expected: found.linuxSum,
        mismatchesAfter: 0,
      });
    });

    test('made by mdadm and written to by raidsim: Linux reads the same bytes and finds no mismatch', () => {
      const { found } = cellOf(each, 'theirs');
      expect(found, found.about).toMatchObject({ after: found.expectedAfter, linuxMismatches: '0' });
    });

    test('mdadm --examine prints the same of our members as of its own', () => {
      const [ours, theirs] = [cellOf(each, 'ours'), cellOf(each, 'theirs')];
      for (const [index, mine] of ours.found.examined.entries()) {
        const twin = theirs.found.examined[index];
        for (const key of twinKeys) {
          // The kernel has lowered mdadm's size to the chunks in use, and lowers ours when it first writes.
          if (each.level === 'raid10' && sizeKeys.has(key)) continue;
          expect(`${key}: ${mine.get(key)}`).toBe(`${key}: ${twin?.get(key)}`);
        }
        expect(mine.get('Checksum')).toMatch(/- correct$/);
      }
    });
  });
});
