/** Worlds of wires and a device over them, on a clock of their own; and random histories in them, held against plain memory. */
import type { Device } from '../../lib/device/device.ts';
import { RaidError } from '../../lib/errors.ts';
import {
  groupingPolicies,
  parseConf,
  type Settings,
  selectorNames,
  settingsFor,
} from '../../lib/multipath/conf.ts';
import { MultipathDevice, type MultipathOptions, type PathState } from '../../lib/multipath/device.ts';
import { longestStallMs } from '../../lib/multipath/topology.ts';
import { Clock, Process } from '../../lib/sim/clock.ts';
import { KIB } from '../../lib/units.ts';
import { type Random, randomBytes } from '../conformance/seed.ts';
import { BLOCK_BYTES, Lun, Wire, type WireOptions } from './wire.ts';

export const SIZE = 64 * KIB;

export function settings(...lines: readonly string[]): Settings {
  return settingsFor(parseConf(`defaults {\n${lines.join('\n')}\n}`), { wwid: 'lun' });
}

export interface World {
  readonly clock: Clock;
  readonly lun: Lun;
  readonly wires: readonly Wire[];
  readonly device: MultipathDevice;
  states(): string;
  wire(index: number): Wire;
}

export type WorldOptions = Partial<Omit<MultipathOptions, 'host' | 'settings'>> & {
  readonly wire?: (index: number) => Partial<WireOptions>;
};

const short: Readonly<Record<PathState, string>> = {
  up: 'U',
  down: 'd',
  ghost: 'g',
  shaky: 's',
  pending: 'p',
  delayed: 'w',
};

export async function world(
  seed: number,
  count: number,
  of: Settings,
  options: WorldOptions = {},
): Promise<World> {
  const clock = new Clock(seed);
  const lun = new Lun(SIZE);
  const wires = Array.from(
    { length: count },
    (_, index) => new Wire(`p${index}`, lun, { clock, ...options.wire?.(index) }),
  );
  const host = new Process(clock);
  const device = await clock.drive(
    MultipathDevice.open(wires, { host, settings: of, ioTimeoutMs: 2000, ...options }),
  );
  const states = (): string => {
    const all = device.status().groups.flatMap(({ paths }) => paths);
    return wires.map(({ name }) => short[all.find((path) => path.name === name)?.state ?? 'down']).join('');
  };
  return { clock, lun, wires, device, states, wire: (index) => wires[index] as Wire };
}

export const block = (fill: number): Uint8Array => new Uint8Array(BLOCK_BYTES).fill(fill);

export async function codeOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return 'done';
  } catch (failure) {
    if (failure instanceof RaidError) return failure.code;
    throw failure;
  }
}

export interface History extends Readonly<Exercise> {
  readonly boundMs: number;
}

const WORKERS = 6;
const REGION_BLOCKS = 4;

/** What writers have seen, so far. */
export interface Exercise {
  requests: number;
  failed: number;
  longestMs: number;
}

/**
 * Several writers, each with blocks of its own. A block holds what was acknowledged last; after a failed write it holds the
 * old or the new, and then stays so. No buffer changes once its request has settled.
 */
export async function exercise(
  clock: Clock,
  random: Random,
  device: Device,
  steps: number,
): Promise<Exercise> {
  const seen: Exercise = { requests: 0, failed: 0, longestMs: 0 };
  const timed = async <T>(request: Promise<T>): Promise<T> => {
    const startedMs = clock.nowMs;
    try {
      return await request;
    } finally {
      seen.longestMs = Math.max(seen.longestMs, clock.nowMs - startedMs);
    }
  };
  const settled: { readonly buffer: Uint8Array; readonly copy: Uint8Array }[] = [];
  const worker = async (index: number): Promise<void> => {
    const startBytes = index * REGION_BLOCKS * BLOCK_BYTES;
    /** By block: what it may hold. */
    const may: Uint8Array[][] = Array.from({ length: REGION_BLOCKS }, () => [block(0)]);
    const look = async (at: number): Promise<void> => {
      const buffer = block(0xee);
      seen.requests += 1;
      try {
        await timed(device.read(startBytes + at * BLOCK_BYTES, buffer));
      } catch (failure) {
        if (!(failure instanceof RaidError)) throw failure;
        seen.failed += 1;
        settled.push({ buffer, copy: buffer.slice() });
        return;
      }
      settled.push({ buffer, copy: buffer.slice() });
      const holds = may[at]?.filter((each) => Buffer.compare(each, buffer) === 0) ?? [];
      if (holds.length === 0)
        throw new Error(
          `block ${at} of writer ${index} holds ${buffer[0]},${buffer[1]}, which was overwritten`,
        );
      may[at] = [holds[0] as Uint8Array];
    };
    for (let step = 0; step < steps; step += 1) {
      const at = random(REGION_BLOCKS);
      if (random(3) === 0) await look(at);
      else {
        const bytes = randomBytes(random, BLOCK_BYTES);
        seen.requests += 1;
        try {
          await timed(device.write(startBytes + at * BLOCK_BYTES, bytes, { fua: random(4) === 0 }));
          may[at] = [bytes];
        } catch (failure) {
          if (!(failure instanceof RaidError)) throw failure;
          seen.failed += 1;
          may[at] = [...(may[at] ?? []), bytes];
        }
      }
      if (random(4) === 0) await new Promise<void>((resolve) => clock.after(random(2000), resolve));
      if (random(20) === 0) await device.flush().catch(() => undefined);
    }
    // What a fence let slip has had time to land by then.
    await new Promise<void>((resolve) => clock.after(20_000, resolve));
    for (let at = 0; at < REGION_BLOCKS; at += 1) await look(at);
  };

  await Promise.all(Array.from({ length: WORKERS }, (_, index) => worker(index)));
  for (const { buffer, copy } of settled) {
    if (Buffer.compare(buffer, copy) !== 0) throw new Error('a buffer changed after its request had settled');
  }
  return seen;
}

/** Writers, while wires break, fall silent, lie and are mended. */
export async function history(
  random: Random,
  retry: 'fail' | 'queue' | '2',
  fenceLies = false,
): Promise<History> {
  const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
  const count = 1 + random(4);
  const of = settings(
    `no_path_retry ${retry}`,
    `path_grouping_policy ${pick(groupingPolicies)}`,
    `path_selector "${pick(selectorNames)} 0"`,
    `path_checker ${pick(['tur', 'directio', 'none'])}`,
    `prio ${pick(['const', 'random'])}`,
    `failback ${pick(['immediate', 'manual', 'followover', '3'])}`,
    'polling_interval 1',
    'max_polling_interval 2',
    'checker_timeout 1',
    ...(random(3) === 0
      ? ['san_path_err_threshold 2', 'san_path_err_forget_rate 4', 'san_path_err_recovery_time 20']
      : []),
    `marginal_pathgroups ${pick(['on', 'off'])}`,
  );
  const w = await world(random(2 ** 31), count, of, {
    tickMs: 250,
    ioTimeoutMs: 1000,
    wire: () => ({ fenceLies, latencyMs: pick([0.1, 1, 20]) }),
  });
  const { clock, device, wires } = w;
  let isOver = false;

  const fate = async (): Promise<void> => {
    while (!isOver) {
      await new Promise<void>((resolve) => clock.after(random(1500), resolve));
      const wire = pick(wires);
      wire.health = pick(['fine', 'fine', 'error', 'silent'] as const);
      wire.lies = random(4) === 0;
      if (random(12) === 0) for (const each of wires) each.health = pick(['error', 'silent'] as const);
    }
    for (const wire of wires) wire.health = 'fine';
  };

  const run = async (): Promise<Exercise> => {
    const ended = fate();
    // With `queue` a request may wait for as long as every path is down: fate mends them after a while.
    clock.after(120_000, () => {
      isOver = true;
    });
    const seen = await exercise(clock, random, device, 30);
    isOver = true;
    await ended;
    await device.close();
    return seen;
  };
  const seen = await clock.drive(run(), 3_600_000);
  const boundMs = longestStallMs({ settings: of, paths: count, ioTimeoutMs: 1000, tickMs: 250, fenceMs: 80 });
  return { ...seen, boundMs };
}
