/** Hosts, switches and controllers on a clock of their own, with a multipath device over all paths to one LUN. */
import { DelayDevice } from '../../lib/device/delay.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { Settings } from '../../lib/multipath/conf.ts';
import { MultipathDevice, type MultipathOptions, type Path } from '../../lib/multipath/device.ts';
import { type ComponentKind, type Condition, Fabric, type FabricLun } from '../../lib/multipath/fabric.ts';
import { longestStallMs, pathsTo, type Topology } from '../../lib/multipath/topology.ts';
import { Clock, Process } from '../../lib/sim/clock.ts';
import { type Random, runSeed, withSeed } from '../conformance/seed.ts';
import { type Exercise, exercise, type History, SIZE, settings } from './history.ts';
import { BLOCK_BYTES } from './wire.ts';

export const LUN = 'lun0';

/** Every way of joining two HBAs and two controllers that is seen in practice, and some that should not be. */
export const twoByTwo: Readonly<Record<string, Topology>> = {
  'two fabrics': of(['sw0', 'sw1'], 2, 'hba0-sw0 hba1-sw1 sw0-ctl0p0 sw0-ctl1p0 sw1-ctl0p1 sw1-ctl1p1'),
  'two fabrics, one port each': of(['sw0', 'sw1'], 1, 'hba0-sw0 hba1-sw1 sw0-ctl0p0 sw1-ctl1p0'),
  'two switches, linked': of(['sw0', 'sw1'], 1, 'hba0-sw0 hba1-sw1 sw0-sw1 sw0-ctl0p0 sw1-ctl1p0'),
  'one switch': of(['sw0'], 1, 'hba0-sw0 hba1-sw0 sw0-ctl0p0 sw0-ctl1p0'),
  'one switch, two ports': of(['sw0'], 2, 'hba0-sw0 hba1-sw0 sw0-ctl0p0 sw0-ctl0p1 sw0-ctl1p0 sw0-ctl1p1'),
  'no switch, crossed': of([], 2, 'hba0-ctl0p0 hba0-ctl1p0 hba1-ctl0p1 hba1-ctl1p1'),
  'no switch, in parallel': of([], 1, 'hba0-ctl0p0 hba1-ctl1p0'),
};

function of(switches: readonly string[], ports: number, cables: string): Topology {
  return {
    hbas: ['hba0', 'hba1'],
    switches,
    controllers: ['ctl0', 'ctl1'].map((name) => ({
      name,
      ports: Array.from({ length: ports }, (_, port) => `${name}p${port}`),
    })),
    cables: cables.split(' ').map((cable) => cable.split('-') as [string, string]),
    luns: [{ identity: LUN }],
  };
}

export const accesses: Readonly<Record<string, Omit<FabricLun, 'identity'>>> = {
  symmetric: {},
  asymmetric: { preferred: 'ctl0' },
  standby: { preferred: 'ctl0', secondary: 'standby' },
};

export interface San {
  readonly clock: Clock;
  readonly fabric: Fabric;
  readonly memory: MemoryDevice;
  readonly paths: readonly Path[];
  readonly device: MultipathDevice;
  /** By the state of each path, in their order. */
  states(): string;
  links(): string;
  named(kind: ComponentKind): readonly string[];
}

export type SanOptions = Partial<Omit<MultipathOptions, 'host' | 'settings'>> & {
  readonly topology?: Topology;
  readonly lun?: Omit<FabricLun, 'identity'>;
  readonly transitionMs?: number;
  readonly wrap?: (path: Path) => Path;
  /** How long the LUN takes for a request, at most. */
  readonly lunMs?: number;
};

export async function san(seed: number, conf: Settings, options: SanOptions = {}): Promise<San> {
  const {
    topology = twoByTwo['two fabrics'] as Topology,
    lun = {},
    transitionMs = 0,
    wrap,
    lunMs = 0,
  } = options;
  const clock = new Clock(seed);
  const host = new Process(clock);
  const fabric = new Fabric(topology, { host, transitionMs });
  const memory = new MemoryDevice({ sizeBytes: SIZE, blockBytes: BLOCK_BYTES });
  const delayMs = lunMs === 0 ? 0 : (): number => clock.random(lunMs);
  const backing = new DelayDevice(memory, { host, delayMs });
  const attached = fabric.attach({ identity: LUN, ...lun }, backing, conf);
  const paths = wrap === undefined ? attached : attached.map(wrap);
  const device = await clock.drive(
    MultipathDevice.open(paths, { host, settings: conf, ioTimeoutMs: 2000, tickMs: 250, ...options }),
  );
  const states = (): string => {
    const all = device.status().groups.flatMap((group) => group.paths);
    return paths.map(({ name }) => all.find((path) => path.name === name)?.state ?? '?').join(' ');
  };
  return {
    clock,
    fabric,
    memory,
    paths,
    device,
    states,
    links: () => paths.map(({ name }) => fabric.linkState(name)).join(' '),
    named: (kind) =>
      fabric
        .components()
        .filter((each) => each.kind === kind)
        .map(({ name }) => name),
  };
}

/** Whether a path is left without these components. */
export function survives(topology: Topology, failed: readonly string[]): boolean {
  const paths = pathsTo(topology, LUN);
  const reversed = failed.map((name) => name.split('-').toReversed().join('-'));
  return paths.some(
    ({ hba, port, components }) =>
      ![...failed, ...reversed].some((name) => [...components, `${hba}:${port}:${LUN}`, LUN].includes(name)),
  );
}

export const quick = [
  'polling_interval 1',
  'max_polling_interval 2',
  'checker_timeout 1',
  'fast_io_fail_tmo 1',
];

export const breakages: Readonly<Record<string, Partial<Condition>>> = {
  failed: { state: 'failed' },
  hung: { state: 'hung' },
  flapping: { flap: { upMs: 700, downMs: 1300 } },
  'slow, narrow and shallow': { delayMs: 30, bytesPerSecond: 64_000, queueDepth: 2 },
};

/** What is under way when something breaks; the whole of it takes as long as the writers do. */
async function breakWhileWriting(
  w: San,
  random: Random,
  name: string,
  change: Partial<Condition>,
  steps: number,
): Promise<Exercise> {
  const { clock, fabric, device } = w;
  // In the midst of requests: without it, nothing takes time.
  for (const hba of w.named('hba')) fabric.set(hba, { delayMs: 40 });
  clock.after(500 + random(40), () => fabric.set(name, change));
  clock.after(9_000 + random(40), () => fabric.restore(name));
  const seen = await clock.drive(exercise(clock, random, device, steps), 3_600_000);
  await clock.drive(device.close());
  fabric.close();
  return seen;
}

/**
 * One component after another breaks, and comes back; no request may fail. Without queueing only where a path is left. With
 * standby controllers a host may know no path for a moment, while two of them change roles: there it tries again.
 */
export async function breakEach(
  topology: Topology,
  access: string,
  breakage: string,
  { steps, isQueueing }: { readonly steps: number; readonly isQueueing: boolean },
): Promise<void> {
  const lun = accesses[access] ?? {};
  const all = (await san(1, settings(), { topology, lun })).fabric.components().map(({ name }) => name);
  const retry = isQueueing ? 'queue' : access === 'standby' ? '10' : 'fail';
  for (const name of all) {
    if (!isQueueing && !survives(topology, [name])) continue;
    await withSeed(runSeed, async (random) => {
      const w = await san(random(2 ** 31), settings(...quick, `no_path_retry ${retry}`), { topology, lun });
      const seen = await breakWhileWriting(w, random, name, breakages[breakage] ?? {}, steps);
      if (seen.failed > 0)
        throw new Error(`${name} ${breakage} (${access}, ${retry}): ${seen.failed} requests failed`);
    });
  }
}

/** Everything may break at any moment, and everything is whole in the end. */
export async function ordeal(
  random: Random,
  retry: string,
  wrap?: (path: Path) => Path,
): Promise<History & { readonly refusedLate: number }> {
  const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T;
  const topology = pick(Object.values(twoByTwo));
  const lun = pick(Object.values(accesses));
  const conf = settings(
    `no_path_retry ${retry}`,
    'polling_interval 1',
    'max_polling_interval 2',
    'checker_timeout 1',
    `fast_io_fail_tmo ${pick(['1', '3', 'off'])}`,
    `dev_loss_tmo ${pick(['4', '20', 'infinity'])}`,
    `path_grouping_policy ${pick(['failover', 'multibus', 'group_by_prio', 'group_by_node_name'])}`,
    `path_selector "${pick(['round-robin', 'queue-length', 'service-time', 'historical-service-time'])} 0"`,
    `path_checker ${pick(['tur', 'directio'])}`,
    `prio ${pick(['const', 'alua'])}`,
    `failback ${pick(['immediate', 'manual', 'followover'])}`,
  );
  const w = await san(random(2 ** 31), conf, {
    topology,
    lun,
    transitionMs: pick([0, 300]),
    ...(wrap === undefined ? {} : { wrap }),
  });
  const { clock, fabric, device } = w;
  const names = fabric.components().map(({ name }) => name);
  let isOver = false;
  const fate = async (): Promise<void> => {
    for (const hba of w.named('hba')) fabric.set(hba, { delayMs: pick([0, 5, 80]) });
    while (!isOver) {
      await new Promise<void>((resolve) => clock.after(random(1200), resolve));
      const name = pick(names);
      if (random(3) === 0) fabric.set(name, pick(Object.values(breakages)));
      else if (random(2) === 0) fabric.restore(name);
      else fabric.set(name, { state: pick(['up', 'failed', 'hung'] as const) });
      if (random(8) === 0) void fabric.setAlua(LUN, pick(['ctl0', 'ctl1']), 'active/optimized');
      if (random(10) === 0) for (const each of names) fabric.restore(each);
    }
    for (const each of names) fabric.restore(each);
  };
  const run = async (): Promise<Exercise> => {
    const ended = fate();
    clock.after(120_000, () => {
      isOver = true;
    });
    const seen = await exercise(clock, random, device, 25);
    isOver = true;
    await ended;
    await device.close();
    fabric.close();
    return seen;
  };
  const seen = await clock.drive(run(), 3_600_000);
  const boundMs = longestStallMs({
    settings: conf,
    paths: w.paths.length,
    standby: lun.secondary === 'standby' ? w.paths.length : 0,
    ioTimeoutMs: 2000,
    tickMs: 250,
    fenceMs: 400,
  });
  return { ...seen, boundMs, refusedLate: fabric.refusedLate };
}
