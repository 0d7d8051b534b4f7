/**
 * `npm run bench:snapshots`: what snapshots cost a random 4 KiB write, against the same write to an array that has none.
 *
 *   first     to blocks that nobody has written since the newest snapshot: what is there is saved before
 *   second    to the same blocks again
 *   tracking  as `first`, with no snapshot left but the memory of one: what changed is recorded, and nothing is saved
 *
 * Two arrays of four files, made alike, take the same requests in turns, a batch each, as pairs.ts has it; who goes first changes. A batch ends
 * with a flush, on both: a write that waits in memory is done when the flush is over, and not before. All three are done to the same
 * blocks in this order, and no block twice, so that a first write is one. `--dir` says where the members are: on a disk the flush
 * of the store is most of what a first write costs, in memory it is nothing, and only the code is left.
 */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { outputFile, remove } from 'fs-extra/esm';
import type { RaidArray } from '../lib/array/array.ts';
import { createArray } from '../lib/array/folder.ts';
import type { ArraySnapshots } from '../lib/array/snapshots.ts';
import { assert } from '../lib/errors.ts';
import { seededRandom } from '../lib/host.ts';
import { KIB, MIB } from '../lib/units.ts';
import { currentLoad, describeMachine, type Folder, type Machine, makeFolder } from './machine.ts';
import { type Pair, type Summary, summarise } from './pairs.ts';

const works = ['first', 'second', 'tracking'] as const;
type Work = (typeof works)[number];

/** Of the rate without snapshots. */
const AIMS: Readonly<Record<Work, number>> = { first: 0.4, second: 0.9, tracking: 0.4 };
const REQUEST_BYTES = 4 * KIB;
const DEPTH = 32;
const MEMBER_BYTES = 192 * MIB;
const LIMIT_BYTES = 512 * MIB;
const LEVELS = [5, 1] as const;

interface Row {
  readonly level: number;
  readonly snapshots: number;
  readonly work: Work;
  readonly summary: Summary;
}

interface Result {
  readonly machine: Machine;
  readonly depth: number;
  readonly batch: number;
  readonly rows: readonly Row[];
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean' },
      dir: { type: 'string' },
      batch: { type: 'string', default: '2000' },
      json: { type: 'string' },
    },
  });
  const batch = Number(values.batch);
  const rounds = values.quick === true ? 5 : 15;
  const loadBefore = currentLoad();
  const folder = await makeFolder(values.dir, 8 * MEMBER_BYTES + LIMIT_BYTES);
  const rows: Row[] = [];
  try {
    for (const level of LEVELS) rows.push(...(await measureLevel(folder, level, batch, rounds)));
  } finally {
    await remove(folder.path);
  }
  const machine = describeMachine(folder, loadBefore);
  const result: Result = { machine, depth: DEPTH, batch, rows };
  process.stdout.write(`${textOf(result)}\n`);
  // dist/bench/snapshots.js: the package is two folders up.
  const path = values.json ?? fileURLToPath(new URL('../../bench/results/snapshots.json', import.meta.url));
  await outputFile(path, `${JSON.stringify(result, null, 2)}\n`);
  process.stdout.write(`\nall of it: ${path}\n`);
}

async function measureLevel(folder: Folder, level: 1 | 5, batch: number, rounds: number): Promise<Row[]> {
  await using plain = await filledArray(join(folder.path, `plain${level}`), level);
  await using saved = await filledArray(join(folder.path, `saved${level}`), level);
  const snapshots = saved.snapshots;
  assert(snapshots !== null, 'an array in a folder can have snapshots');
  const rows: Row[] = [];
  for (const count of [1, 10]) {
    const pairs: Record<Work, Pair[]> = { first: [], second: [], tracking: [] };
    // One more than is counted: the first finds cold code.
    for (let round = 0; round <= rounds; round += 1) {
      process.stderr.write(`raid${level}, ${count} snapshots, round ${round} of ${rounds}\n`);
      const places = randomPlaces(plain, batch, round);
      for (let number = 0; number < count; number += 1) await makeSnapshot(snapshots, `s${number}`, saved);
      for (const work of works) {
        if (work === 'tracking') await leaveTracking(snapshots);
        const pair = await measurePair(plain, saved, places, round % 2 === 0);
        if (round > 0) pairs[work].push(pair);
      }
      await forgetAll(snapshots);
    }
    for (const work of works) {
      if (work === 'tracking' && count > 1) continue;
      rows.push({ level, snapshots: count, work, summary: summarise(pairs[work]) });
    }
  }
  return rows;
}

/** Older ones have something of their own: a chain of snapshots in which nothing was written is one of one. */
async function makeSnapshot(snapshots: ArraySnapshots, name: string, array: RaidArray): Promise<void> {
  const isFirst = snapshots.origin === null;
  await snapshots.create(name, isFirst ? { limitBytes: LIMIT_BYTES } : {});
  for (let at = 0; at < 64; at += 1) await array.write(at * REQUEST_BYTES, new Uint8Array(REQUEST_BYTES));
}

async function leaveTracking(snapshots: ArraySnapshots): Promise<void> {
  for (const { name } of snapshots.list()) await snapshots.delete(name);
  const { point } = await snapshots.create('tracked');
  await snapshots.delete('tracked', { keepTracking: true });
  points.push(point);
}

const points: string[] = [];

async function forgetAll(snapshots: ArraySnapshots): Promise<void> {
  for (const { name } of snapshots.list()) await snapshots.delete(name);
  for (const point of points.splice(0)) await snapshots.forget(point);
}

async function filledArray(path: string, level: 1 | 5): Promise<RaidArray> {
  const disks = level === 5 ? 4 : 2;
  const array = await createArray(path, { level, disks, diskSize: MEMBER_BYTES });
  const content = new Uint8Array(MIB).fill(0x5a);
  for (let at = 0; at + MIB <= array.limits.sizeBytes; at += MIB) await array.write(at, content);
  await array.flush();
  return array;
}

/** All different, and none where snapshots have been told apart. */
function randomPlaces(array: RaidArray, count: number, seed: number): Float64Array {
  const random = seededRandom(seed);
  const blocks = Math.floor(array.limits.sizeBytes / REQUEST_BYTES);
  const places = new Set<number>();
  while (places.size < count) places.add(64 + random(blocks - 64));
  return Float64Array.from(places, (block) => block * REQUEST_BYTES);
}

async function measurePair(
  plain: RaidArray,
  saved: RaidArray,
  places: Float64Array,
  isPlainFirst: boolean,
): Promise<Pair> {
  const early = await timed(isPlainFirst ? plain : saved, places);
  const late = await timed(isPlainFirst ? saved : plain, places);
  return isPlainFirst ? { boundMs: early, arrayMs: late } : { boundMs: late, arrayMs: early };
}

async function timed(array: RaidArray, places: Float64Array): Promise<number> {
  const begin = performance.now();
  let next = 0;
  const client = async (): Promise<void> => {
    const source = new Uint8Array(REQUEST_BYTES).fill(next);
    for (let index = next++; index < places.length; index = next++) {
      await array.write(places[index] as number, source);
    }
  };
  await Promise.all(Array.from({ length: DEPTH }, client));
  await array.flush();
  return performance.now() - begin;
}

function textOf({ machine, depth, batch, rows }: Result): string {
  const lines = rows.map(({ level, snapshots, work, summary }) => {
    const { arrayMs, boundMs, ratio, ratioLow, ratioHigh } = summary;
    const rate = (ms: number): string => `${(batch / ms).toFixed(1)} k/s`.padStart(11);
    const isBelow = ratio < AIMS[work];
    return [
      `raid${level}`.padEnd(6),
      String(work === 'tracking' ? 0 : snapshots).padStart(9),
      work.padEnd(9),
      rate(boundMs),
      rate(arrayMs),
      `${ratio.toFixed(2)}  ${ratioLow.toFixed(2)}-${ratioHigh.toFixed(2)}${isBelow ? ` < ${AIMS[work]}` : ''}`,
    ].join('  ');
  });
  return [
    `${machine.cpu}, ${machine.cores} cores, ${machine.kernel}, Node ${machine.node}, on ${machine.fileSystem} (${machine.directory})`,
    `random writes of 4 KiB, ${depth} under way, ${batch} and a flush; ${rows[0]?.summary.pairs ?? 0} pairs; load ${machine.loadBefore.toFixed(1)} before, ${machine.loadAfter.toFixed(1)} after`,
    '',
    'level   snapshots  write          without         with  ratio',
    ...lines,
  ].join('\n');
}

await main();
