/**
 * Compares levels, each with what the same member I/O costs without RAID. README.md says how the bound is made and what a
 * ratio means.
 *
 * For each level there are two sets of member files of the same size: the array's, and the bound's. Not one, because the
 * bound writes too, and an array whose members are written behind its back has wrong parity.
 *
 * tinybench decides how often a row is repeated; each repetition is a pair: a batch of work by the array, and the same
 * batch by the bound, the one going first that went second before.
 */
import { closeSync, openSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { remove } from 'fs-extra/esm';
import { Bench } from 'tinybench';
import { RaidArray } from '../lib/array/array.ts';
import { FileDevice } from '../lib/device/file.ts';
import type { DriverKind } from '../lib/engine/engine.ts';
import { createMemory, type MemoryMap } from '../lib/engine/memory.ts';
import { assert } from '../lib/errors.ts';
import { realHost, seededRandom } from '../lib/host.ts';
import { compileLayout } from '../lib/layout/compile.ts';
import type { Level } from '../lib/layout/geometry.ts';
import { type KernelMeasurement, measureKernels } from '../lib/parity/measure.ts';
import { syncBytes } from '../lib/plan/planner.ts';
import { KIB, MIB } from '../lib/units.ts';
import { BareThreads } from './bare-threads.ts';
import { type CallLists, callsOfCheck, callsOfRecover, callsOfRequests, type Setting } from './calls.ts';
import { currentLoad, describeMachine, type Folder, type Machine, makeFolder } from './machine.ts';
import { OthersWatch } from './others.ts';
import { type Pair, summarise } from './pairs.ts';
import { Replay } from './replay.ts';
import {
  type Aim,
  type BenchLevel,
  batchesOf,
  benchLevels,
  checkMembers,
  type Request,
  type Shape,
  type Unit,
  type Work,
  works,
} from './works.ts';

export interface CompareOptions {
  /** Default: all. */
  readonly levels?: readonly BenchLevel[];
  /** Default 4. */
  readonly members?: number;
  /** Default 64 KiB. */
  readonly chunkBytes?: number;
  /** Of each member; default 32 MiB, and half of that when `quick`. */
  readonly memberBytes?: number;
  readonly quick?: boolean;
  /** Default: tmpfs if there is one. */
  readonly directory?: string;
  readonly onProgress?: (progress: Progress) => void;
  /** Ends after the row that is being measured; what there is by then is returned. */
  readonly signal?: AbortSignal;
}

export interface Progress {
  readonly done: number;
  readonly total: number;
  readonly what: string;
}

export interface Result {
  readonly level: Level;
  readonly layout: string | null;
  /** Level and layout, short. */
  readonly label: string;
  readonly work: string;
  readonly value: number;
  readonly unit: Unit;
  /** In the same unit. */
  readonly bound: number;
  /** The share of the bound that is reached, by the median pair: 1 is all of it, also where less is better. */
  readonly ratio: number;
  /** The quartiles of all pairs. */
  readonly ratioLow: number;
  readonly ratioHigh: number;
  readonly pairs: number;
  /** Of the machine, what other processes took meanwhile. Above `DISTURBED` the row is not to be relied on. */
  readonly others: number;
  readonly depth: number;
  readonly driver: DriverKind;
  /** Threads of the bound. */
  readonly boundThreads: number;
  readonly aim: Aim | null;
  readonly reached: boolean | null;
}

export interface Comparison {
  readonly schema: 'raidsim.bench/1';
  readonly machine: Machine;
  readonly setting: {
    readonly members: number;
    readonly chunkBytes: number;
    readonly memberBytes: number;
    readonly quick: boolean;
    readonly driver: DriverKind;
    readonly lanes: number;
    readonly kernel: string;
    readonly seconds: number;
  };
  /** Every level doing every work. */
  readonly results: readonly Result[];
  /** One level, the same reads by each driver. */
  readonly drivers: readonly Result[];
  readonly kernels: readonly KernelMeasurement[];
  readonly interrupted: boolean;
}

/** Other processes took more of the machine than this: the row says so. */
export const DISTURBED = 0.05;

interface Effort {
  readonly memberBytes: number;
  readonly pairsMin: number;
  readonly rowMs: number;
  readonly kernelRowMs: number;
  /** For measuring disturbed rows again, over all rows. */
  readonly patienceMs: number;
}

/** Members large enough that four of them do not fit the caches of most processors, but a container's memory. */
const fullEffort: Effort = {
  memberBytes: 32 * MIB,
  pairsMin: 12,
  rowMs: 1000,
  kernelRowMs: 40,
  patienceMs: 50_000,
};
const quickEffort: Effort = {
  memberBytes: 16 * MIB,
  pairsMin: 3,
  rowMs: 100,
  kernelRowMs: 10,
  patienceMs: 0,
};

/**
 * A row that others disturbed is measured again, and the least disturbed try stands: chosen by what others did, never by
 * what came out.
 */
const RETRIES = 2;

/** The member that fails: a data member at raid4. */
const VICTIM = 1;

const driverLevel = 'raid5';
const driverKinds: readonly DriverKind[] = ['lanes', 'inline', 'event-loop'];
const driverDepths = [1, 8, 32] as const;

export async function compare(options: CompareOptions = {}): Promise<Comparison> {
  const effort = options.quick === true ? quickEffort : fullEffort;
  const shape: Shape = {
    members: options.members ?? 4,
    chunkBytes: options.chunkBytes ?? 64 * KIB,
    memberBytes: options.memberBytes ?? effort.memberBytes,
  };
  const levels = options.levels ?? benchLevels;
  // Refused before anything is made.
  for (const level of levels) {
    checkMembers(level, shape.members);
    compileLayout(level.geometry(shape));
  }
  const started = realHost.now();
  const loadBefore = currentLoad();
  const folder = await makeFolder(options.directory, 2 * shape.members * (shape.memberBytes + MIB));
  const results: Result[] = [];
  const drivers: Result[] = [];
  const kernels: KernelMeasurement[] = [];
  let engine: RaidArray['engine'] | null = null;
  const isOver = (): boolean => options.signal?.aborted === true;
  const driverRows = levels.some(({ level }) => level === driverLevel) ? driverKinds : [];
  const total = levels.length + driverRows.length + 1;
  let done = 0;
  let patienceMs = effort.patienceMs;
  const measureRow = async (subject: Subject, work: Work): Promise<Result> => {
    let best = await measure(subject, work, effort);
    for (
      let retry = 0;
      retry < RETRIES && best.others > DISTURBED && patienceMs > 0 && !isOver();
      retry += 1
    ) {
      const start = realHost.now();
      const next = await measure(subject, work, effort);
      patienceMs -= realHost.now() - start;
      if (next.others < best.others) best = next;
    }
    return best;
  };
  const progress = (what: string): void => options.onProgress?.({ done, total, what });
  try {
    for (const level of levels) {
      await using subject = await Subject.create(folder, level, shape, undefined);
      engine = subject.array.engine;
      for (const work of works) {
        if (isOver() || !work.applies(level, subject.array.layout)) continue;
        progress(`${level.label}: ${work.name}`);
        results.push(await measureRow(subject, work));
      }
      done += 1;
    }
    for (const driver of driverRows) {
      const level = benchLevels.find((candidate) => candidate.level === driverLevel);
      if (isOver() || level === undefined) break;
      await using subject = await Subject.create(folder, level, shape, driver);
      for (const depth of driverDepths) {
        const work = randomReads(driver, depth);
        progress(`${level.label}: ${work.name}`);
        drivers.push(await measureRow(subject, work));
      }
      done += 1;
    }
    if (!isOver()) {
      progress('parity kernels');
      const rows = measureKernels({
        now: realHost.now,
        millisecondsPerRow: effort.kernelRowMs,
        ...(options.quick === true ? { operations: ['xor', 'syndrome', 'recover DD'] as const } : {}),
      });
      kernels.push(...rows);
    }
  } finally {
    await remove(folder.path);
  }
  return {
    schema: 'raidsim.bench/1',
    machine: describeMachine(folder, loadBefore),
    setting: {
      ...shape,
      quick: options.quick === true,
      driver: engine?.driver ?? 'lanes',
      lanes: engine?.lanes ?? 0,
      kernel: engine?.kernel ?? '',
      seconds: (realHost.now() - started) / 1000,
    },
    results,
    drivers,
    kernels,
    interrupted: isOver(),
  };
}

function randomReads(driver: DriverKind, depth: number): Work {
  const aims: Readonly<Record<number, Aim>> = {
    1: { measure: 'value', sense: 'at most', limit: 25 },
    32: { measure: 'value', sense: 'at least', limit: 250 },
  };
  return {
    name: `random read 4 KiB, depth ${depth}, ${driver}`,
    short: ['', ''],
    does: { kind: 'random', op: 'read' },
    degraded: false,
    unit: depth === 1 ? 'µs' : 'k/s',
    depth,
    // Of the driver that is taken where files and cores allow it.
    aim: driver === 'lanes' ? (aims[depth] ?? null) : null,
    applies: () => true,
  };
}

/** An array over files, and as many files again for the bound. */
class Subject implements AsyncDisposable {
  readonly level: BenchLevel;
  readonly array: RaidArray;
  /** Of the bound's files, by member. */
  readonly descriptors: readonly number[];
  readonly threads: number;
  readonly map: MemoryMap;
  readonly bare: BareThreads;
  readonly #paths: readonly string[];

  private constructor(
    level: BenchLevel,
    array: RaidArray,
    descriptors: readonly number[],
    paths: readonly string[],
  ) {
    this.level = level;
    this.array = array;
    this.descriptors = descriptors;
    this.#paths = paths;
    this.threads = Math.max(1, array.engine.lanes);
    this.map = createMemory(this.threads, 64 * MIB);
    this.bare = new BareThreads(this.threads, this.map.memory, descriptors);
  }

  static async create(
    folder: Folder,
    level: BenchLevel,
    shape: Shape,
    driver: DriverKind | undefined,
  ): Promise<Subject> {
    const slots = Array.from({ length: shape.members }, (_, slot) => slot);
    const own = slots.map((slot) => join(folder.path, `disk${slot}.img`));
    const twins = slots.map((slot) => join(folder.path, `bare${slot}.img`));
    const openArray = async (paths: readonly string[]): Promise<RaidArray> =>
      new RaidArray({
        geometry: level.geometry(shape),
        members: await Promise.all(paths.map((path) => FileDevice.create(path, shape.memberBytes))),
        cores: availableParallelism(),
        // A recovery begins when its time is taken, not when there is a spare.
        autoSync: false,
        ...(driver === undefined ? {} : { driver }),
      });
    const array = await openArray(own);
    // Through an array as well, and in turns with it: files that grow side by side lie otherwise in memory than one that
    // grows after the other, and what is filled first lay 10 to 15 % slower than what was filled last.
    await using twin = await openArray(twins);
    await fill([array, twin]);
    return new Subject(
      level,
      array,
      twins.map((path) => openSync(path, 'r+')),
      [...own, ...twins],
    );
  }

  get setting(): Setting {
    return { layout: this.array.layout, threads: this.threads, map: this.map };
  }

  isWhole(): boolean {
    return this.array.degraded === 0;
  }

  /** Without the victim from now on. */
  async degrade(): Promise<void> {
    if (this.isWhole()) await this.array.fail(VICTIM);
  }

  /** The victim's device is a spare again, and its slot empty. */
  async offerSpare(): Promise<void> {
    await this.degrade();
    const faulty = this.array.members.find(({ state }) => state.state === 'faulty');
    assert(faulty !== undefined, 'a member has failed');
    await this.array.add(await this.array.remove(faulty.name));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.array.close();
    await this.bare.close();
    for (const descriptor of this.descriptors) closeSync(descriptor);
    for (const path of this.#paths) await remove(path);
  }
}

/** Every page of them written: what was never written costs nothing to read. */
async function fill(arrays: readonly RaidArray[]): Promise<void> {
  const random = seededRandom(1);
  const words = Uint32Array.from({ length: MIB / 4 }, () => random(2 ** 32));
  const bytes = new Uint8Array(words.buffer);
  const sizeBytes = Math.max(...arrays.map(({ limits }) => limits.sizeBytes));
  for (let offset = 0; offset < sizeBytes; offset += bytes.byteLength) {
    for (const array of arrays)
      await array.write(offset, bytes.subarray(0, Math.min(bytes.byteLength, sizeBytes - offset)));
  }
}

/** A work made ready for one subject: batches to repeat in turn. */
interface Prepared {
  readonly batches: readonly CallLists[];
  /** What a batch amounts to, in bytes or requests. */
  readonly amounts: readonly number[];
  readonly before: () => Promise<void>;
  readonly run: (batch: number) => Promise<void>;
}

async function measure(subject: Subject, work: Work, effort: Effort): Promise<Result> {
  const { level, array } = subject;
  if (work.degraded && work.does.kind !== 'recover') await subject.degrade();
  const prepared = prepare(subject, work);
  const bound = await boundOf(subject, work, prepared.batches);
  const amount = Math.max(...prepared.amounts);

  let pairs: Pair[] = [];
  let turn = 0;
  let watch = new OthersWatch();
  const bench = new Bench({
    name: level.label,
    iterations: effort.pairsMin,
    time: effort.rowMs,
    warmupIterations: Math.max(2, prepared.batches.length),
    warmupTime: 0,
    throws: true,
  });
  bench.add(
    work.name,
    async () => {
      turn += 1;
      const batch = turn % prepared.batches.length;
      // Of batches of different lengths each counts for as much as the longest would have taken.
      const scale = amount / (prepared.amounts[batch] ?? amount);
      const boundFirst = turn % 2 === 0;
      const before = boundFirst ? await bound(batch) : 0;
      const start = realHost.now();
      await prepared.run(batch);
      const arrayMs = (realHost.now() - start) * scale;
      const boundMs = (boundFirst ? before : await bound(batch)) * scale;
      pairs.push({ arrayMs, boundMs });
      return { overriddenDuration: arrayMs, overriddenIterationCost: arrayMs + boundMs };
    },
    {
      async: true,
      beforeAll: () => {
        pairs = [];
        watch = new OthersWatch();
      },
      beforeEach: () => prepared.before(),
    },
  );
  await bench.run();
  const others = watch.share();

  const { arrayMs, boundMs, ...shares } = summarise(pairs);
  const value = inUnit(work.unit, amount, arrayMs);
  const measured = {
    level: level.level,
    layout: level.layout,
    label: level.label,
    work: work.name,
    value,
    unit: work.unit,
    bound: inUnit(work.unit, amount, boundMs),
    ...shares,
    others,
    depth: work.depth,
    driver: array.engine.driver,
    boundThreads: isInline(subject, work) ? 1 : subject.threads,
    aim: work.aim,
  };
  return { ...measured, reached: isReached(work.aim, value, shares.ratio) };
}

/** To two decimals, as it is shown: what reads 0.85 reaches 0.85. */
export function isReached(aim: Aim | null, value: number, ratio: number): boolean | null {
  if (aim === null) return null;
  const measured = Math.round((aim.measure === 'ratio' ? ratio : value) * 100) / 100;
  return aim.sense === 'at least' ? measured >= aim.limit : measured <= aim.limit;
}

/** `amount` is bytes, or requests where those are counted. */
export function inUnit(unit: Unit, amount: number, milliseconds: number): number {
  switch (unit) {
    case 'GB/s':
      return amount / milliseconds / 1e6;
    case 'k/s':
      return amount / milliseconds;
    case 'µs':
      return (milliseconds * 1000) / amount;
  }
}

function prepare(subject: Subject, work: Work): Prepared {
  const { array, setting } = subject;
  const nothing = async (): Promise<void> => undefined;
  if (work.does.kind === 'check') {
    return {
      batches: [callsOfCheck(setting)],
      amounts: [checkedBytes(array)],
      before: nothing,
      run: async () => {
        for await (const { mismatchCount } of array.scrub()) {
          assert(mismatchCount === 0, 'what was compared is right');
        }
      },
    };
  }
  if (work.does.kind === 'recover') {
    return {
      batches: [callsOfRecover(setting, VICTIM)],
      amounts: [array.layout.memberBytes[VICTIM] ?? 0],
      before: () => subject.offerSpare(),
      run: async () => {
        for await (const _progress of array.rebuild());
        assert(subject.isWhole(), 'the member was recovered');
      },
    };
  }
  const batches = batchesOf(work.does, array.layout);
  const longest = Math.max(...batches.flat().map(({ lengthBytes }) => lengthBytes));
  const buffers = Array.from({ length: work.depth }, () => new Uint8Array(longest).fill(1));
  return {
    batches: batches.map((requests) =>
      callsOfRequests(setting, requests, work.depth, work.degraded ? VICTIM : null),
    ),
    amounts: batches.map((requests) =>
      work.unit === 'GB/s'
        ? requests.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)
        : requests.length,
    ),
    before: nothing,
    run: (batch) => request(array, batches[batch] ?? [], buffers),
  };
}

/** Of all members: what a check reads. */
function checkedBytes(array: RaidArray): number {
  const { layout } = array;
  return layout.kind === 'parity'
    ? syncBytes(layout) * layout.memberCount
    : syncBytes(layout) * layout.copyCount;
}

/** As a caller would: so many requests under way as there are buffers, the next as soon as one is done. */
async function request(
  array: RaidArray,
  requests: readonly Request[],
  buffers: readonly Uint8Array[],
): Promise<void> {
  let next = 0;
  const caller = async (whole: Uint8Array): Promise<void> => {
    for (;;) {
      const wanted = requests[next];
      next += 1;
      if (wanted === undefined) return;
      if (wanted.op === 'read') await array.read(wanted.offsetBytes, whole);
      else await array.write(wanted.offsetBytes, whole);
    }
  };
  await Promise.all(buffers.map(caller));
}

/** Works that the engine carries out on the caller's own thread. */
function isInline(subject: Subject, work: Work): boolean {
  return (work.depth === 1 && work.does.kind === 'random') || subject.array.engine.driver === 'inline';
}

async function boundOf(
  subject: Subject,
  work: Work,
  batches: readonly CallLists[],
): Promise<(batch: number) => Promise<number>> {
  if (isInline(subject, work)) {
    const { memory } = subject.map;
    const replays = batches.map((lists) => new Replay(memory, subject.descriptors, lists.flat()));
    return async (batch) => replays[batch]?.run() ?? 0;
  }
  await subject.bare.load(batches);
  return (batch) => subject.bare.run(batch);
}
