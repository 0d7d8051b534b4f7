/**
 * What people run: fio, which verifies what it reads, over NBD on a raid5 whose disks lie behind a fabric, for a minute in which
 * one part of the fabric after another fails, or hangs, and comes back. What each of these costs is measured by writers of our own
 * beside it, each with a block of its own in every disk's part of a stripe, so that every disk is asked all the time.
 */
import { execFile, spawnSync } from 'node:child_process';
import { open, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { createArray, openArray, readManifest } from '../../lib/array/folder.ts';
import { sanOf } from '../../lib/array/san.ts';
import { lintConf } from '../../lib/multipath/lint.ts';
import { componentNames, type FabricPlan, type San } from '../../lib/multipath/san.ts';
import { NbdServer } from '../../lib/nbd/server.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { scratchFolder } from '../device/scratch.ts';
import { needPeer } from '../peer.ts';

const run = promisify(execFile);

const CONF = `defaults {
  polling_interval 1
  max_polling_interval 1
  checker_timeout 1
  fast_io_fail_tmo 1
  no_path_retry fail
}
`;
const DISKS = 4;
const CHUNK = 64 * KIB;
const STRIPE = (DISKS - 1) * CHUNK;
const RUN_MS = 62_000;

interface Seen {
  readonly startMs: number;
  readonly endMs: number;
}

/**
 * Turns that this process gets: of its event loop, and of the threads that read files, as every request needs some of both. A busy
 * machine gives few in a second; who waits for a timer lets hundreds go by. So how late a request is, is counted in them.
 */
class Turns {
  isOver = false;
  readonly #endsMs: number[] = [];

  async take(path: string): Promise<void> {
    const file = await open(path);
    const bytes = new Uint8Array(4 * KIB);
    while (!this.isOver) {
      await sleep(1);
      await file.read(bytes, 0, bytes.byteLength, 0);
      this.#endsMs.push(performance.now());
    }
    await file.close();
  }

  between(fromMs: number, toMs: number): number {
    return this.#endsMs.filter((endMs) => endMs > fromMs && endMs <= toMs).length;
  }
}

/** Writes and reads back, each request with its times. */
class Writers {
  readonly seen: Seen[] = [];
  isOver = false;
  readonly #array: RaidArray;
  readonly #fromBytes: number;

  constructor(array: RaidArray, fromBytes: number) {
    this.#array = array;
    this.#fromBytes = fromBytes;
  }

  async work(index: number, random: Parameters<typeof randomBytes>[0]): Promise<void> {
    const chunk = this.#fromBytes + (index % (DISKS - 1)) * CHUNK;
    // One row for each, in which parity is on another disk.
    const at = chunk + Math.floor(index / (DISKS - 1)) * STRIPE;
    while (!this.isOver) {
      const wrote = randomBytes(random, 4 * KIB);
      await this.#timed(this.#array.write(at, wrote));
      const found = new Uint8Array(wrote.byteLength);
      await this.#timed(this.#array.read(at, found));
      if (Buffer.compare(found, wrote) !== 0) throw new Error(`${at} does not hold what was written last`);
      await sleep(2);
    }
  }

  /** Of the requests that were under way in this time. */
  longest(fromMs: number, toMs: number): Seen {
    const then = this.seen.filter(({ startMs, endMs }) => endMs >= fromMs && startMs <= toMs);
    const [longest = { startMs: fromMs, endMs: fromMs }] = then.toSorted((a, b) => msOf(b) - msOf(a));
    return longest;
  }

  async #timed(request: Promise<unknown>): Promise<void> {
    const startMs = performance.now();
    await request;
    this.seen.push({ startMs, endMs: performance.now() });
  }
}

function msOf({ startMs, endMs }: Seen): number {
  return endMs - startMs;
}

interface Stall {
  readonly name: string;
  readonly how: 'failed' | 'hung';
  readonly ms: number;
  /** Turns of this process after the time that the settings give it. */
  readonly lateTurns: number;
}

/** On an idle machine a quarter of a second, or more. */
const TURNS_MOST = 100;

/** Every disk is reached again by every path: checkers have taken them back. */
async function allBack(san: San, withinMs: number): Promise<void> {
  const isBack = (): boolean =>
    san
      .status()
      .luns.every(({ groups }) => groups.every(({ paths }) => paths.every(({ state }) => state === 'up')));
  for (const end = performance.now() + withinMs; !isBack(); await sleep(20)) {
    if (performance.now() > end) throw new Error(JSON.stringify(san.status().luns));
  }
}

function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0;
}

function describe(what: string, times: readonly number[]): string {
  const sorted = times.toSorted((a, b) => a - b);
  const [median, p99, max] = [0.5, 0.99, 1].map((share) => percentile(sorted, share).toFixed(0));
  return `${what}: ${sorted.length}, median ${median} ms, p99 ${p99} ms, max ${max} ms`;
}

/** Parts and single paths. While one of them is away every disk has a path. */
function breakable(plan: FabricPlan, members: readonly string[]): readonly string[] {
  return componentNames(plan, members).filter((name) => !members.includes(name));
}

test('fio finds nothing wrong while every part of the fabric fails and comes back, and no stall is longer than the settings say', async (context) => {
  const isThere = spawnSync('fio', ['--version']).error === undefined;
  needPeer(isThere, { program: 'fio', from: 'fio' }, context);
  await withSeed(runSeed, async (random) => {
    const folder = await scratchFolder();
    const path = join(folder, 'array');
    const shape = { level: 5, disks: DISKS, diskSize: '32M', chunk: CHUNK, hbas: 2, controllers: 2 } as const;
    await (await createArray(path, shape)).close();
    await writeFile(join(path, 'multipath.conf'), CONF);
    const array = await openArray(path, { autoSync: false });
    const server = new NbdServer({ exports: [{ name: 'disk', device: array }] });
    try {
      const uri = await server.listenUnix(join(folder, 'nbd.sock'));
      const san = sanOf(array) ?? expect.fail('it has a fabric');
      const members = san.status().luns.map(({ name }) => name);
      const plan = (await readManifest(path)).fabric ?? expect.fail('it has a fabric');
      const half = Math.floor((array.limits.sizeBytes - 4 * STRIPE) / 2 / MIB);
      const fio = run(
        'fio',
        [
          ...['--name=mixed', '--ioengine=nbd', `--uri=${uri}`, '--verify_state_save=0'],
          ...['--rw=randrw', '--rwmixread=30', '--bsrange=512-64k', '--iodepth=16', '--numjobs=2'],
          ...[`--size=${half}M`, `--offset_increment=${half}M`, '--verify=crc32c', '--verify_backlog=64'],
          ...['--verify_fatal=1', '--time_based', `--runtime=${RUN_MS / 1000}`, `--randseed=${runSeed}`],
          '--output-format=json',
        ],
        { maxBuffer: 2 ** 26 },
      );
      const writers = new Writers(
        array,
        array.limits.sizeBytes - 2 * STRIPE - (array.limits.sizeBytes % STRIPE),
      );
      const work = Promise.all([0, 1, 2, 3, 4, 5].map((index) => writers.work(index, random)));
      const turns = new Turns();
      const taken = turns.take(join(path, 'multipath.conf'));
      const stalls: Stall[] = [];
      const calm: number[] = [];
      const [said] = lintConf(CONF, plan, members).luns;
      const { failOverMs, foundByCheckerMs } = said ?? expect.fail('lint knows these disks');
      expect([failOverMs, foundByCheckerMs]).toEqual([1000, 4000]);
      const boundMs = { failed: failOverMs ?? 0, hung: foundByCheckerMs ?? 0 };
      const beganMs = performance.now();
      let left: string[] = [];
      while (performance.now() - beganMs < RUN_MS - 10_000) {
        if (left.length === 0) left = [...breakable(plan, members)];
        const [name = ''] = left.splice(random(left.length), 1);
        const how = random(5) === 0 ? 'hung' : 'failed';
        const sinceMs = performance.now();
        san.set(name, { state: how });
        // For longer than it takes to notice, or for a moment: then the same frames are sent again.
        await sleep(random(3) === 0 ? 20 + random(400) : boundMs[how] + random(500));
        san.set(name, { state: 'up' });
        const untilMs = performance.now();
        // All paths are back before the next part fails, so that no disk is ever without one.
        await allBack(san, 10_000);
        const longest = writers.longest(sinceMs, untilMs);
        const lateTurns = turns.between(longest.startMs + boundMs[how], longest.endMs);
        stalls.push({ name, how, ms: msOf(longest), lateTurns });
        const calmFromMs = performance.now();
        await sleep(200);
        calm.push(msOf(writers.longest(calmFromMs, performance.now())));
      }
      const { stdout } = await fio;
      writers.isOver = true;
      turns.isOver = true;
      await Promise.all([work, taken]);
      const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as {
        jobs: {
          error: number;
          read: { total_ios: number };
          write: { total_ios: number; clat_ns: { max: number } };
        }[];
      };
      expect(jobs.map(({ error }) => error)).toEqual([0, 0]);
      expect(array.degraded).toBe(0);
      let mismatches = 0;
      for await (const step of array.scrub()) mismatches = step.mismatchCount;
      expect(mismatches).toBe(0);
      const timesOf = (how: Stall['how']): readonly number[] =>
        stalls.filter((stall) => stall.how === how).map(({ ms }) => ms);
      const longestOfFioMs = Math.max(...jobs.map(({ write }) => write.clat_ns.max / 1e6));
      console.log(
        [
          describe(`stalls, parts that failed (fast_io_fail_tmo ${failOverMs} ms)`, timesOf('failed')),
          describe(`stalls, parts that hung (checkers: ${foundByCheckerMs} ms)`, timesOf('hung')),
          describe('nothing failing', calm),
          `turns after that time, at most: ${Math.max(...stalls.map(({ lateTurns }) => lateTurns))}`,
          `fio: ${jobs.map(({ read, write }) => read.total_ios + write.total_ios).join(' + ')} requests, longest write ${longestOfFioMs.toFixed(0)} ms; seed ${runSeed}`,
        ].join('\n'),
      );
      // What a request takes on a busy machine comes on top; stall.test.ts has it to the millisecond.
      const ordinaryMs = Math.max(...calm) + 250;
      expect(stalls.length).toBeGreaterThan(15);
      const late = stalls.filter(
        ({ how, ms, lateTurns }) => ms > boundMs[how] + ordinaryMs && lateTurns > TURNS_MOST,
      );
      expect(late).toEqual([]);
      for (const { read, write } of jobs)
        expect(Math.min(read.total_ios, write.total_ios)).toBeGreaterThan(1000);
    } finally {
      await server.close(1000);
      await array.close();
      await rm(folder, { recursive: true });
    }
  });
});
