/**
 * `npm run bench:paths`: what several paths to a disk cost, and bring.
 *
 *   cost       4 KiB reads at depth 32 of a file, and of the same file behind a fabric by four paths, in which nothing is
 *              slow. In turns, 1000 reads each; the ratio is the median of the ratios of such pairs (pairs.ts). Once on a
 *              disk, past the page cache, and once in memory, where a read takes less than what any layer adds.
 *   gain       The same load where each path takes 100 µs and one request at a time: four paths, and one. The disk behind
 *              them answers at once, so one path does 10 000 a second at best.
 *   fail-over  An HBA dies under that load. From then to the end of the longest request, less fast_io_fail_tmo: that is
 *              how long the transport takes to know, by its settings.
 */
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { outputFile, remove } from 'fs-extra/esm';
import type { Device } from '../lib/device/device.ts';
import { FileDevice } from '../lib/device/file.ts';
import { MemoryDevice } from '../lib/device/memory.ts';
import { RaidError } from '../lib/errors.ts';
import { type Host, realHost } from '../lib/host.ts';
import { parseConf, type Settings, selectorNames, settingsFor } from '../lib/multipath/conf.ts';
import { MultipathDevice } from '../lib/multipath/device.ts';
import { Fabric } from '../lib/multipath/fabric.ts';
import { defaultTopology } from '../lib/multipath/topology.ts';
import { KIB, MIB } from '../lib/units.ts';
import { currentLoad, describeMachine, type Machine, makeFolder } from './machine.ts';
import { median, type Pair, quantile, summarise } from './pairs.ts';

const DEPTH = 32;
const BLOCK_BYTES = 4 * KIB;
const FILE_BYTES = 64 * MIB;
const PATH_MS = 0.1;

const AIMS = { cost: 0.85, gain: 3.5, failOverMs: 10 } as const;

/** To a tenth of a millisecond, where timers go by whole ones: what is due is looked for in every turn. */
class FineHost implements Host {
  readonly now = realHost.now;
  readonly wallClock = realHost.wallClock;
  readonly turn = realHost.turn;
  readonly random = realHost.random;
  readonly randomBytes = realHost.randomBytes;
  #sleepers: { readonly atMs: number; readonly wake: () => void }[] = [];

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (ms >= 5) return realHost.sleep(ms, signal);
    return new Promise((wake) => {
      if (this.#sleepers.length === 0) this.turn(this.#look);
      this.#sleepers.push({ atMs: this.now() + ms, wake });
    });
  }

  readonly #look = (): void => {
    const nowMs = this.now();
    const due = this.#sleepers.filter(({ atMs }) => atMs <= nowMs);
    this.#sleepers = this.#sleepers.filter(({ atMs }) => atMs > nowMs);
    for (const { wake } of due) wake();
    if (this.#sleepers.length > 0) this.turn(this.#look);
  };
}

interface Bundle {
  readonly device: MultipathDevice;
  readonly fabric: Fabric;
  readonly paths: readonly string[];
  close(): Promise<void>;
}

/** Over two HBAs and two controllers, or one of each. */
async function bundle(backing: Device, host: Host, conf: Settings, isOne = false): Promise<Bundle> {
  const count = isOne ? 1 : 2;
  const fabric = new Fabric(defaultTopology(count, count, 'lun'), { host });
  const paths = fabric.attach({ identity: 'lun' }, backing, conf);
  const device = await MultipathDevice.open(paths, { host, settings: conf });
  return {
    device,
    fabric,
    paths: paths.map(({ name }) => name),
    close: async () => {
      await device.close();
      fabric.close();
    },
  };
}

function settings(...lines: readonly string[]): Settings {
  return settingsFor(parseConf(`defaults {\n${lines.join('\n')}\n}`), { wwid: 'lun' });
}

/** Reads at random until the time is over; how long each took is told. */
async function load(device: Device, forMs: number, tell: (tookMs: number) => void): Promise<void> {
  const blocks = Math.floor(device.limits.sizeBytes / BLOCK_BYTES);
  const endMs = performance.now() + forMs;
  const worker = async (): Promise<void> => {
    const target = new Uint8Array(BLOCK_BYTES);
    while (performance.now() < endMs) {
      const startMs = performance.now();
      await device.read(realHost.random(blocks) * BLOCK_BYTES, target);
      tell(performance.now() - startMs);
    }
  };
  await Promise.all(Array.from({ length: DEPTH }, worker));
}

/** Milliseconds for so many reads. */
async function batch(device: Device, count: number): Promise<number> {
  const blocks = Math.floor(device.limits.sizeBytes / BLOCK_BYTES);
  let left = count;
  const startMs = performance.now();
  const worker = async (): Promise<void> => {
    const target = new Uint8Array(BLOCK_BYTES);
    while (left > 0) {
      left -= 1;
      await device.read(realHost.random(blocks) * BLOCK_BYTES, target);
    }
  };
  await Promise.all(Array.from({ length: DEPTH }, worker));
  return performance.now() - startMs;
}

interface Cost {
  readonly single: number;
  readonly paths: number;
  readonly ratio: number;
  readonly ratioLow: number;
  readonly ratioHigh: number;
}

async function cost(path: string, direct: boolean, selector: string, pairCount: number): Promise<Cost> {
  const file = await FileDevice.open(path, { direct });
  const conf = settings('path_grouping_policy multibus', `path_selector "${selector} 0"`);
  const many = await bundle(file, realHost, conf);
  const pairs: Pair[] = [];
  const count = 1000;
  for (let warm = 0; warm < 5; warm += 1) {
    await batch(file, count);
    await batch(many.device, count);
  }
  for (let pair = 0; pair < pairCount; pair += 1) {
    const first = pair % 2 === 0 ? await batch(file, count) : null;
    const arrayMs = await batch(many.device, count);
    pairs.push({ arrayMs, boundMs: first ?? (await batch(file, count)) });
  }
  await many.close();
  await file.close();
  const { arrayMs, boundMs, ratio, ratioLow, ratioHigh } = summarise(pairs);
  return { single: (count / boundMs) * 1000, paths: (count / arrayMs) * 1000, ratio, ratioLow, ratioHigh };
}

async function costs(folder: string, direct: boolean, pairCount: number): Promise<Record<string, Cost>> {
  const path = join(folder, 'disk.img');
  const file = await open(path, 'w');
  const content = new Uint8Array(4 * MIB).fill(0x5a);
  for (let at = 0; at < FILE_BYTES; at += content.byteLength)
    await file.write(content, 0, content.byteLength, at);
  await file.sync();
  await file.close();
  const found: Record<string, Cost> = {};
  for (const selector of selectorNames) found[selector] = await cost(path, direct, selector, pairCount);
  return found;
}

/** Requests a second by one path and by four, each with 100 µs and a queue of one. */
async function gain(
  seconds: number,
): Promise<{ readonly one: number; readonly four: number; readonly ratio: number }> {
  const conf = settings('path_grouping_policy multibus', 'path_selector "queue-length 0"');
  const rate = async (isOne: boolean): Promise<number> => {
    const host = new FineHost();
    const { device, fabric, paths, close } = await bundle(
      new MemoryDevice({ sizeBytes: MIB }),
      host,
      conf,
      isOne,
    );
    for (const path of paths) fabric.set(path, { delayMs: PATH_MS, queueDepth: 1 });
    await batch(device, 1000);
    let done = 0;
    await load(device, seconds * 1000, () => {
      done += 1;
    });
    await close();
    return done / seconds;
  };
  const rates: { readonly one: number; readonly four: number }[] = [];
  for (let round = 0; round < 3; round += 1) rates.push({ one: await rate(true), four: await rate(false) });
  return {
    one: median(rates.map(({ one }) => one)),
    four: median(rates.map(({ four }) => four)),
    ratio: median(rates.map(({ one, four }) => four / one)),
  };
}

interface FailOver {
  readonly detectionMs: number;
  /** Beyond it. */
  readonly medianMs: number;
  readonly maxMs: number;
  /** The longest request where nothing fails: Node's own pauses. */
  readonly quietMs: number;
  readonly times: number;
}

async function failOver(fastIoFail: number, times: number): Promise<FailOver> {
  const conf = settings(
    `fast_io_fail_tmo ${fastIoFail}`,
    'path_grouping_policy multibus',
    'polling_interval 1',
  );
  const host = new FineHost();
  const beyond: number[] = [];
  const quiet: number[] = [];
  for (let time = 0; time < times; time += 1) {
    const { device, fabric, paths, close } = await bundle(new MemoryDevice({ sizeBytes: MIB }), host, conf);
    // So that something is on its way when it happens.
    for (const path of paths) fabric.set(path, { delayMs: PATH_MS });
    await load(device, 100, () => undefined);
    let quietMs = 0;
    await load(device, 200, (tookMs) => {
      quietMs = Math.max(quietMs, tookMs);
    });
    quiet.push(quietMs);
    let longestMs = 0;
    setTimeout(() => fabric.fail('hba0'), 50);
    await load(device, 200 + fastIoFail * 1000, (tookMs) => {
      longestMs = Math.max(longestMs, tookMs);
    });
    beyond.push(Math.max(0, longestMs - fastIoFail * 1000));
    await close();
  }
  return {
    detectionMs: fastIoFail * 1000,
    medianMs: median(beyond),
    maxMs: quantile(beyond, 1),
    quietMs: median(quiet),
    times,
  };
}

interface Result {
  readonly machine: Machine;
  readonly depth: number;
  readonly onDisk: Readonly<Record<string, Cost>> | null;
  readonly inMemory: Readonly<Record<string, Cost>>;
  readonly gain: Awaited<ReturnType<typeof gain>>;
  readonly failOver: readonly FailOver[];
  readonly aims: typeof AIMS;
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { quick: { type: 'boolean' }, json: { type: 'string' } } });
  const isQuick = values.quick === true;
  const loadBefore = currentLoad();
  const folder = await makeFolder(undefined, FILE_BYTES);
  const disk = await makeFolder(tmpdir(), FILE_BYTES);
  try {
    const inMemory = await costs(folder.path, false, isQuick ? 20 : 100);
    const onDisk = await costs(disk.path, true, isQuick ? 10 : 40).catch((error: unknown) => {
      // Where nothing can be opened past the page cache.
      if (!(error instanceof RaidError) || error.code !== 'NOT_SUPPORTED') throw error;
      return null;
    });
    const result: Result = {
      depth: DEPTH,
      onDisk,
      inMemory,
      gain: await gain(isQuick ? 0.5 : 2),
      failOver: [await failOver(0, isQuick ? 5 : 20), await failOver(1, isQuick ? 2 : 5)],
      aims: AIMS,
      machine: describeMachine(folder, loadBefore),
    };
    process.stdout.write(`${textOf(result)}\n`);
    // dist/bench/paths.js: the package is two folders up.
    const results = values.json ?? fileURLToPath(new URL('../../bench/results/paths.json', import.meta.url));
    await outputFile(results, `${JSON.stringify(result, null, 2)}\n`);
    process.stdout.write(`\nall of it: ${results}\n`);
  } finally {
    await remove(folder.path);
    await remove(disk.path);
  }
}

function textOf({ machine, onDisk, inMemory, gain, failOver }: Result): string {
  const thousands = (rate: number): string => `${(rate / 1000).toFixed(1)} k/s`;
  const missed = (isReached: boolean): string => (isReached ? '' : ' ▾');
  const rows = (costs: Readonly<Record<string, Cost>>, aim: number): readonly string[] =>
    Object.entries(costs).map(([selector, { single, paths, ratio, ratioLow, ratioHigh }]) => {
      const addsUs = 1e6 / paths - 1e6 / single;
      return `  ${selector.padEnd(24)} ${thousands(single).padStart(10)} ${thousands(paths).padStart(10)}   ${ratio.toFixed(2)} (${ratioLow.toFixed(2)} to ${ratioHigh.toFixed(2)}), ${addsUs.toFixed(1)} µs a read more${missed(ratio >= aim)}`;
    });
  return [
    `${machine.cpu}, ${machine.cores} cores, ${machine.kernel}, Node ${machine.node}, in memory: ${machine.fileSystem}; load ${machine.loadBefore.toFixed(1)} before, ${machine.loadAfter.toFixed(1)} after`,
    '',
    `4 KiB reads, depth ${DEPTH}: a file on a disk, and by four paths (aim: ${AIMS.cost} of it)`,
    ...(onDisk === null ? ['  nothing here can be read past the page cache'] : rows(onDisk, AIMS.cost)),
    `4 KiB reads, depth ${DEPTH}: a file in memory, and by four paths`,
    ...rows(inMemory, 0),
    `100 µs and one request at a time by each path: one ${thousands(gain.one)}, four ${thousands(gain.four)}: ${gain.ratio.toFixed(2)} times (aim: ${AIMS.gain})${missed(gain.ratio >= AIMS.gain)}`,
    ...failOver.map(
      ({ detectionMs, medianMs, maxMs, quietMs, times }) =>
        `an HBA dies, fast_io_fail_tmo ${detectionMs / 1000} s: the longest request took ${medianMs.toFixed(1)} ms more (aim: ${AIMS.failOverMs})${missed(medianMs <= AIMS.failOverMs)}, ${maxMs.toFixed(1)} at most of ${times}; where nothing fails, ${quietMs.toFixed(1)}`,
    ),
  ].join('\n');
}

await main();
