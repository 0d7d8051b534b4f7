/**
 * `kill -9` at random moments of writes, failures, recoveries and status changes, on real files: what was acknowledged is
 * there, whatever happened to be under way, and what redundancy says can be relied on again.
 *
 *   child      assembles the images, writes, fails members, brings them back; is killed after 0 to 400 ms
 *   judge      reads all of it read-only (nothing is repaired yet) against what the history admits;
 *              or opens it, lets it recover, reads again (nothing may have changed), scrubs (0 mismatches), closes
 *   the kernel now and then gets the images as the kill left them, resyncs them, and must hold the same
 *
 * A dirty array of level 5 or 6 that is degraded is refused, as it must be; the judge then forces it, and only sectors of
 * the missing member in stripes that were being written may be lost: the write hole, and not a sector more.
 *
 * A failure prints its seed; RAIDSIM_SEED=n brings back the same workload, though not the same moment of the kill.
 */
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import type { Layout } from '../../lib/layout/layout.ts';
import { runSeed } from '../conformance/seed.ts';
import {
  contentOf,
  forEach,
  form,
  inTurns,
  Lab,
  type OurShape,
  reassemble,
  scrubOf,
  settled,
  sumOf,
} from '../linux/interop.ts';
import { kernelOrSkip } from '../linux/kernel.ts';
import type { Task } from './child.ts';
import { type Line, parseLines, Registers, SECTOR_BYTES, type Unfinished } from './history.ts';

const program = resolve(import.meta.dirname, '../../dist/test/crash/child.js');
const KILLS_PER_PHASE = 8;
const PHASES = 2;
const MEMBER_MIB = 6;

interface Kind {
  readonly title: string;
  readonly members: number;
  readonly shape: OurShape;
}

const kinds: readonly Kind[] = [
  { title: 'raid1', members: 3, shape: { level: '1', spares: 1 } },
  { title: 'raid5', members: 4, shape: { level: '5', chunk: '16K', spares: 1 } },
  { title: 'raid6', members: 5, shape: { level: '6', chunk: '16K', spares: 1 } },
  { title: 'raid10', members: 4, shape: { level: '10', chunk: '16K', layout: 'n2' } },
].flatMap((kind) => [
  kind,
  {
    ...kind,
    title: `${kind.title} with a bitmap`,
    shape: { ...kind.shape, bitmap: 'internal' as const, bitmapChunk: '16K' },
  },
]);

interface Series {
  readonly kind: Kind;
  readonly id: string;
  readonly images: readonly string[];
  readonly random: (below: number) => number;
  readonly seed: number;
  registers: Registers | null;
  kills: number;
  /** What was seen at kills: to show that they came at interesting moments. */
  readonly seen: Map<string, number>;
  error: unknown;
  log: string;
}

const count = (series: Series, what: string): void => {
  series.seen.set(what, (series.seen.get(what) ?? 0) + 1);
};

function registersOf(series: Series): Registers {
  if (series.registers === null) throw new Error('the array is formed first');
  return series.registers;
}

/** Runs a child until it is killed. Returns what was under way. */
async function runAndKill(series: Series, lab: Lab, changes: boolean): Promise<readonly Unfinished[]> {
  const registers = registersOf(series);
  const historyPath = join(lab.folder, `${series.id}.history`);
  rmSync(historyPath, { force: true });
  const task: Task = {
    paths: series.images,
    historyPath,
    seed: series.random(2 ** 31),
    firstId: registers.nextId,
    cores: 1 + series.random(2),
    changes,
    force: false,
  };
  const child = spawn(process.execPath, [program, JSON.stringify(task)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const gone = new Promise<void>((done) => child.once('exit', () => done()));
  // One in eight is killed before it says that it is ready: while it assembles, or just after.
  const early = series.random(8) === 0;
  const ready = new Promise<void>((done) => child.stdout.once('data', () => done()));
  await Promise.race([
    early ? new Promise((done) => setTimeout(done, 80 + series.random(150))) : ready,
    gone,
  ]);
  await Promise.race([new Promise((done) => setTimeout(done, series.random(400))), gone]);
  const ended = child.exitCode;
  child.kill('SIGKILL');
  await gone;
  const lines = existsSync(historyPath) ? parseLines(readFileSync(historyPath, 'utf8')) : [];
  const notes = lines.flatMap((line: Line) => (line.event === 'note' ? [line.text] : []));
  series.log = notes.slice(-12).join('\n');
  const bug = lines.find(({ event }) => event === 'bug');
  if (bug !== undefined || ended !== null)
    throw new Error(`the child ended by itself (${ended}): ${bug?.event === 'bug' ? bug.text : ''}`);
  series.kills += 1;
  return registers.follow(lines);
}

/** Whether a sector lies on a slot that is not in sync, in a stripe that was being written. */
function writeHole(
  layout: Layout,
  isMissing: (slot: number) => boolean,
  unfinished: readonly Unfinished[],
): (sector: number) => boolean {
  if (layout.kind !== 'parity') return () => false;
  const rowSectors = (layout.chunkBytes * layout.dataCount) / SECTOR_BYTES;
  const chunkSectors = layout.chunkBytes / SECTOR_BYTES;
  const rows = new Set<number>();
  for (const { sector, count: length } of unfinished)
    for (
      let row = Math.floor(sector / rowSectors);
      row <= Math.floor((sector + length - 1) / rowSectors);
      row += 1
    )
      rows.add(row);
  return (sector) => {
    const row = Math.floor(sector / rowSectors);
    if (!rows.has(row)) return false;
    const member = layout.row(row).data[Math.floor((sector % rowSectors) / chunkSectors)];
    return member !== undefined && isMissing(member);
  };
}

function expectNothingWrong(wrong: readonly string[], series: Series, when: string): void {
  if (wrong.length === 0) return;
  throw new Error(
    `${when}: ${wrong.length} sectors are wrong\n${wrong.slice(0, 8).join('\n')}\n--- the child's last notes\n${series.log}`,
  );
}

/** Opens what a kill left, and checks it. With `recover`, it is whole, clean and closed afterwards. */
async function judge(
  series: Series,
  unfinished: readonly Unfinished[],
  recover: boolean,
): Promise<'open' | 'refused'> {
  const registers = registersOf(series);
  let forced = false;
  let array: RaidArray;
  try {
    array = await reassemble(series.images, { readOnly: !recover, autoSync: false });
  } catch (error) {
    if (!(error instanceof RaidError) || error.code !== 'DIRTY_DEGRADED') throw error;
    count(series, 'dirty and degraded');
    if (!recover) return 'refused';
    forced = true;
    array = await reassemble(series.images, { force: true, autoSync: false });
  }
  try {
    count(series, array.state);
    const inSync = new Set(
      array.members.flatMap(({ state }) => (state.state === 'in_sync' ? [state.slot] : [])),
    );
    const exempt = forced ? writeHole(array.layout, (slot) => !inSync.has(slot), unfinished) : () => false;
    const first = await contentOf(array);
    expectNothingWrong(
      registers.check(first, { pin: recover, exempt }),
      series,
      `after kill ${series.kills}`,
    );
    if (!recover) return 'open';
    if (forced) for await (const _ of array.scrub({ repair: true }));
    await bringBack(array, series);
    await settled(array);
    expect(array.degraded, series.log).toBe(0);
    const second = await contentOf(array);
    if (!second.equals(first)) {
      const at = second.findIndex((byte, index) => byte !== first[index]);
      throw new Error(
        `recovery changed what was read, at sector ${Math.floor(at / SECTOR_BYTES)}\n${series.log}`,
      );
    }
    expect(await scrubOf(array), `mismatches after kill ${series.kills}\n${series.log}`).toBe(0);
  } finally {
    await array.close();
  }
  return 'open';
}

/** Every image that is not in the array becomes a spare. */
async function bringBack(array: RaidArray, series: Series): Promise<void> {
  for (const member of array.members.filter(({ state }) => state.state === 'faulty')) {
    const device = await array.remove(member.name);
    await device.close();
  }
  const used = new Set(array.members.map(({ device }) => device.name));
  for (const path of series.images) if (!used.has(path)) await array.add(await FileDevice.open(path));
}

async function killOften(series: Series, lab: Lab, fail: boolean): Promise<void> {
  let pending: readonly Unfinished[] = [];
  for (let round = 0; round < KILLS_PER_PHASE; round += 1) {
    const isLast = round === KILLS_PER_PHASE - 1;
    const unfinished = await runAndKill(series, lab, fail);
    pending = [...pending, ...unfinished];
    // Now and then it is only looked at, and the next child goes on with it as it is.
    const recover = isLast || series.random(3) > 0;
    if ((await judge(series, pending, recover)) === 'refused') await judge(series, pending, true);
    else if (!recover) continue;
    pending = [];
  }
}

describe('kill -9', () => {
  const list: Series[] = [];
  let lab: Lab | null = null;
  let boots = 0;
  const hasKernel = kernelOrSkip();

  beforeAll(async () => {
    const start = performance.now();
    const here = new Lab('kill');
    lab = here;
    for (const [index, kind] of kinds.entries()) {
      const seed = runSeed + index;
      const images = here.images(Array.from({ length: kind.members }, () => MEMBER_MIB));
      list.push({
        kind,
        id: `k${index}`,
        images,
        random: seededRandom(seed),
        seed,
        registers: null,
        kills: 0,
        seen: new Map(),
        error: null,
        log: '',
      });
    }
    const attempt = async (series: Series, work: () => Promise<void>): Promise<void> => {
      if (series.error !== null) return;
      await work().catch((error: unknown) => {
        series.error = error;
      });
    };
    for (const series of list) {
      await attempt(series, async () => {
        const array = await form(series.images, { ...series.kind.shape, assumeClean: true });
        series.registers = new Registers(array.limits.sizeBytes / SECTOR_BYTES);
        await array.close();
      });
    }
    for (let phase = 0; phase < PHASES; phase += 1) {
      await inTurns(list, 2, (series) => attempt(series, () => killOften(series, here, true)));
      if (hasKernel) await inTurns([0, 1], 2, (half) => askKernel(here, half, attempt));
    }
    boots = here.boots;
    const kills = list.reduce((sum, series) => sum + series.kills, 0);
    const seconds = ((performance.now() - start) / 1000).toFixed(0);
    console.log(`kill -9: ${kills} kills, ${boots} boots, ${seconds} s, seed ${runSeed}`);
    for (const { kind, seen } of list)
      console.log(`  ${kind.title}: ${[...seen].map(([what, times]) => `${times} ${what}`).join(', ')}`);
  });

  /** One more kill each, of a complete array; and what it leaves goes to the kernel as it is. */
  async function askKernel(
    here: Lab,
    half: number,
    attempt: (series: Series, work: () => Promise<void>) => Promise<void>,
  ): Promise<void> {
    const mine = list.filter((_, index) => index % 2 === half);
    for (const series of mine) {
      await attempt(series, async () => {
        await runAndKill(series, here, false);
        await judge(series, [], false);
      });
    }
    const alive = mine.filter(({ error }) => error === null);
    const answers = await here.boot(
      alive,
      [
        forEach(alive, 'assemble $M'),
        'settle',
        forEach(alive, 'say degraded $(cat $SYS/degraded); sum; start_check'),
        'settle',
        forEach(alive, 'end_check; stop'),
      ].join('\n'),
    );
    for (const series of alive) {
      await attempt(series, async () => {
        const { id } = series;
        const told = answers.about(id);
        expect(
          { degraded: answers.get(id, 'degraded'), mismatches: answers.get(id, 'mismatches') },
          told,
        ).toEqual({
          degraded: '0',
          mismatches: '0',
        });
        const array = await reassemble(series.images);
        try {
          expect(await sumOf(array), told).toBe(answers.get(id, 'sum'));
          const content = await contentOf(array);
          expectNothingWrong(registersOf(series).check(content, { pin: true }), series, 'after the kernel');
        } finally {
          await array.close();
        }
      });
    }
  }

  afterAll(() => lab?.remove());

  test.each(kinds.map(({ title }, index) => ({ title, index })))(
    '$title: whatever the moment, all that was acknowledged is there, and redundancy is right again',
    ({ index }) => {
      const series = list[index];
      if (series === undefined) throw new Error('every kind has its series');
      const { error } = series;
      if (error !== null) {
        const message = error instanceof Error ? error.message : String(error);
        throw new Error(`${message}\nseed ${series.seed} (RAIDSIM_SEED=${runSeed})`, { cause: error });
      }
      expect(series.kills).toBe(PHASES * (KILLS_PER_PHASE + (hasKernel ? 1 : 0)));
    },
  );

  test('at least 100 processes were killed, and the kernel agreed with what they left', () => {
    expect(list.reduce((sum, series) => sum + series.kills, 0)).toBeGreaterThanOrEqual(100);
    if (hasKernel) expect(boots).toBe(2 * PHASES);
  });
});
