/**
 * From a seed to a fabric in which everything breaks: a case is plain data, as in swarm.ts, and any step of it can be left
 * out. paths-world.ts makes it come true.
 *
 *   topology   one to three HBAs, switches (linked, shared, or none) and controllers; from one path to a dozen
 *   policy     lines of multipath.conf: groups, selector, checker, priorities, failback, timeouts, no_path_retry
 *   on top     nothing, and every sector of the device is a register; or an array, of which every member is such a device
 *
 * What breaks (`Break`): a part is slow, narrow or shallow (F16); it hangs and lets go of what it has later (F17, F18); it
 * fails, and what was in it is lost, executed or not; it flaps, alone or with others that come back in another order than
 * they went (F19); every way is gone for a while. A path's checker lies. Controllers change roles. Somebody fails paths by
 * hand. Whatever is broken comes back by itself: a step less never leaves a case without an end.
 */
import { RaidError } from '../errors.ts';
import { seededRandom } from '../host.ts';
import { groupingPolicies, parseConf, type Settings, selectorNames, settingsFor } from '../multipath/conf.ts';
import type { Condition } from '../multipath/fabric.ts';
import { complaintAboutTopology, pathsTo, type Topology } from '../multipath/topology.ts';
import { KIB, SECTOR_BYTES } from '../units.ts';

/** On a LUN each; an array over them. */
export interface PathArray {
  readonly level: 'raid1' | 'raid5' | 'raid6' | 'raid10';
  readonly members: number;
  /** With a write-intent bitmap. */
  readonly bitmap: boolean;
  readonly assumeClean: boolean;
}

export interface PathConfig {
  readonly topology: Omit<Topology, 'luns'>;
  /** The controller at which LUNs are at home; null: all are alike. */
  readonly preferred: string | null;
  readonly secondary: 'active/non-optimized' | 'standby';
  readonly transitionMs: number;
  /** Lines of the defaults of a multipath.conf. */
  readonly conf: readonly string[];
  readonly array: PathArray | null;
  /** Of each LUN. */
  readonly lunBytes: number;
  /** Requests under way at once. */
  readonly depth: number;
  /** What a LUN takes for a request at most, and an HBA there and back. */
  readonly lunMs: number;
  readonly hbaMs: number;
}

/** How a checker's lie looks to a request: failed and not done, failed and done, failed while it is done, or silence. */
export const lies = ['not done', 'done', 'late', 'silent'] as const;
export type Lie = (typeof lies)[number];

/** `which` and `lun` are taken modulo what there is to choose from; what is named and not there is passed over. */
export type PathStep =
  | { readonly do: 'write'; readonly sector: number; readonly sectors: number; readonly fua: boolean }
  | { readonly do: 'zero'; readonly sector: number; readonly sectors: number; readonly fua: boolean }
  | { readonly do: 'read'; readonly sector: number; readonly sectors: number }
  | { readonly do: 'flush' }
  /** Time passes, whatever is under way. */
  | { readonly do: 'wait'; readonly ms: number }
  | {
      readonly do: 'break';
      readonly part: string;
      readonly how: Partial<Condition>;
      readonly forMs: number;
    }
  | {
      readonly do: 'lie';
      readonly lun: number;
      readonly which: number;
      readonly lie: Lie;
      readonly forMs: number;
    }
  /** A LUN is given to another controller. */
  | { readonly do: 'alua'; readonly lun: number; readonly controller: string }
  | {
      readonly do: 'hand';
      readonly lun: number;
      readonly which: number;
      readonly act: 'fail' | 'reinstate' | 'switch';
    }
  /** A member that the array does without, and that can be reached, comes back. */
  | { readonly do: 'return'; readonly which: number };

export interface PathCase {
  /** Of all that is not said below: lots, latencies, the order of events. */
  readonly seed: number;
  readonly mode: 'paths';
  readonly config: PathConfig;
  readonly steps: readonly PathStep[];
}

type Random = (below: number) => number;

function pick<T>(random: Random, from: readonly T[]): T {
  return from[random(from.length)] as T;
}

export function lunNames(config: PathConfig): readonly string[] {
  return Array.from({ length: config.array?.members ?? 1 }, (_, index) => `lun${index}`);
}

export function pathSettings(config: PathConfig): Settings {
  return settingsFor(parseConf(`defaults {\n${config.conf.join('\n')}\n}`), { wwid: 'lun' });
}

export function pickPathCase(seed: number, wishes: { readonly steps?: number | undefined } = {}): PathCase {
  const random = seededRandom(seed ^ 0x9a7b5);
  // Mixed first: neighbouring seeds begin alike.
  for (let count = 0; count < 4; count += 1) random(2);
  const config = pickConfig(random);
  const steps = pickSteps(random, config);
  return { seed, mode: 'paths', config, steps: steps.slice(0, wishes.steps) };
}

function pickConfig(random: Random): PathConfig {
  const topology = pickTopology(random);
  const controllers = [
    ...new Set(pathsTo({ ...topology, luns: [{ identity: 'lun0' }] }, 'lun0').map((path) => path.controller)),
  ];
  const array = random(4) === 0 ? pickArray(random) : null;
  const retry = pick(random, ['queue', 'queue', '3', 'fail', 'fail']);
  const chunkBytes = 4 * KIB;
  return {
    topology,
    preferred: random(3) === 0 ? null : pick(random, controllers),
    // A host may know no path for a moment while two controllers change roles: without a queue a member is lost by that.
    secondary: random(2) === 0 || (array !== null && retry !== 'queue') ? 'active/non-optimized' : 'standby',
    transitionMs: pick(random, [0, 0, 300]),
    conf: [
      `no_path_retry ${retry}`,
      'polling_interval 1',
      'max_polling_interval 2',
      'checker_timeout 1',
      `fast_io_fail_tmo ${pick(random, ['0', '1', '3', 'off'])}`,
      `dev_loss_tmo ${pick(random, ['4', '20', 'infinity'])}`,
      `path_grouping_policy ${pick(random, groupingPolicies)}`,
      `path_selector "${pick(random, selectorNames)} 0"`,
      `path_checker ${pick(random, ['tur', 'directio', 'readsector0'])}`,
      `prio ${pick(random, ['const', 'alua', 'alua', 'random'])}`,
      `failback ${pick(random, ['immediate', 'manual', 'followover', '3'])}`,
      `marginal_pathgroups ${pick(random, ['on', 'off'])}`,
      ...(random(3) === 0
        ? ['san_path_err_threshold 2', 'san_path_err_forget_rate 4', 'san_path_err_recovery_time 20']
        : []),
    ],
    array,
    lunBytes: array === null ? 96 * SECTOR_BYTES : 1280 * KIB + chunkBytes * random(12),
    depth: pick(random, [2, 8, 12, 16]),
    lunMs: pick(random, [0, 0.5, 5, 30]),
    hbaMs: pick(random, [0, 0.1, 1, 20]),
  };
}

function pickArray(random: Random): PathArray {
  const level = pick(random, ['raid1', 'raid5', 'raid5', 'raid6', 'raid10'] as const);
  const least = { raid1: 2, raid5: 3, raid6: 4, raid10: 4 }[level];
  return {
    level,
    members: least + random(2),
    bitmap: random(2) === 0,
    assumeClean: random(3) !== 0,
  };
}

/** Switches may be linked, and shared, or not there at all. */
function pickTopology(random: Random): Omit<Topology, 'luns'> {
  for (;;) {
    const many = (name: string, least: number, most: number): readonly string[] =>
      Array.from({ length: least + random(most - least + 1) }, (_, index) => `${name}${index}`);
    const hbas = many('hba', 1, 3);
    const switches = many('sw', 0, 3);
    const controllers = many('ctl', 1, 3).map((name) => ({
      name,
      ports: Array.from({ length: 1 + random(2) }, (_, port) => `${name}p${port}`),
    }));
    const ports = controllers.flatMap((controller) => controller.ports);
    const cables: [string, string][] = [];
    for (const hba of hbas) {
      if (switches.length === 0) cables.push([hba, pick(random, ports)]);
      else for (const name of switches) if (random(2) === 0) cables.push([hba, name]);
    }
    for (const port of ports) if (switches.length > 0) cables.push([pick(random, switches), port]);
    if (switches.length > 1 && random(3) === 0) cables.push(['sw0', 'sw1']);
    const topology = { hbas, switches, controllers, cables };
    const withLun = { ...topology, luns: [{ identity: 'lun0' }] };
    if (complaintAboutTopology(withLun) !== null) continue;
    const { length } = pathsTo(withLun, 'lun0');
    if (length >= 1 && length <= 12) return topology;
  }
}

const LONGEST_SECTORS = 8;

function pickSteps(random: Random, config: PathConfig): readonly PathStep[] {
  const luns = lunNames(config);
  const paths = luns.flatMap((identity) =>
    pathsTo({ ...config.topology, luns: [{ identity }] }, identity).map(
      ({ hba, port }) => `${hba}:${port}:${identity}`,
    ),
  );
  const { hbas, switches, controllers, cables } = config.topology;
  const names = controllers.map(({ name }) => name);
  const parts = [
    ...hbas,
    ...switches,
    ...names,
    ...controllers.flatMap(({ ports }) => ports),
    ...cables.map(([a, b]) => `${a}-${b}`),
    ...paths,
    ...luns,
  ];
  const place = (): { readonly sector: number; readonly sectors: number } => ({
    sector: random(2 ** 16),
    sectors: 1 + random(LONGEST_SECTORS),
  });
  const forMs = (): number => pick(random, [50, 400, 1500, 4000, 12_000]) * (0.5 + random(100) / 100);
  const breakOf = (part: string): PathStep => ({
    do: 'break',
    part,
    how: pickTrouble(random),
    forMs: forMs(),
  });
  /** Every way is gone, and they come back one by one in any order. */
  const cut = (ways: readonly string[]): readonly PathStep[] => {
    const leastMs = random(20_000);
    return ways.map((part) => ({
      do: 'break',
      part,
      how: { state: 'failed' },
      forMs: leastMs + random(1 + ways.length * 500),
    }));
  };
  const waitMs = pick(random, [20, 200, 1000]);
  const isCalm = random(8) === 0;
  const lieing = random(3) === 0;
  const byHand = random(3) === 0;
  const make = (): readonly PathStep[] => {
    const lot = random(1000);
    if (lot < 500) return [{ do: 'write', ...place(), fua: random(8) === 0 }];
    if (lot < 540) return [{ do: 'zero', ...place(), fua: random(8) === 0 }];
    if (lot < 900) return [{ do: 'read', ...place() }];
    if (lot < 930) return [{ do: 'flush' }];
    if (lot < 970) return [{ do: 'wait', ms: 1 + random(waitMs) }];
    if (lot < 985) return [isCalm ? { do: 'flush' } : breakOf(pick(random, parts))];
    if (lot < 987) return isCalm ? [] : cut(pick(random, [hbas, names, paths, luns.slice(0, 1)]));
    if (lot < 990)
      return lieing
        ? [{ do: 'lie', lun: random(16), which: random(16), lie: pick(random, lies), forMs: forMs() }]
        : [];
    if (lot < 993)
      return config.preferred === null
        ? []
        : [{ do: 'alua', lun: random(16), controller: pick(random, names) }];
    if (lot < 996)
      return byHand
        ? [
            {
              do: 'hand',
              lun: random(16),
              which: random(16),
              act: pick(random, ['fail', 'reinstate', 'switch'] as const),
            },
          ]
        : [];
    return config.array === null ? [] : [{ do: 'return', which: random(16) }];
  };
  return Array.from({ length: 1000 + random(3000) }, make).flat();
}

function pickTrouble(random: Random): Partial<Condition> {
  switch (random(6)) {
    case 0:
      return { delayMs: pick(random, [1, 10, 100, 1000]) };
    case 1:
      return { bytesPerSecond: pick(random, [20_000, 1_000_000]), queueDepth: 1 + random(4) };
    case 2:
      return { flap: { upMs: 100 + random(3000), downMs: 50 + random(3000) } };
    case 3:
    case 4:
      return { state: 'failed' };
    default:
      return { state: 'hung' };
  }
}

/** Plainer ones, one change each; smaller first. */
export function plainerFabrics(config: PathConfig): readonly PathConfig[] {
  const plainer: PathConfig[] = [];
  const offer = (change: Partial<PathConfig>): void => {
    const next = { ...config, ...change };
    if (JSON.stringify(next) !== JSON.stringify(config) && hasMeaning(next)) plainer.push(next);
  };
  offer({ depth: 1 });
  offer({ depth: 2 });
  offer({ transitionMs: 0 });
  offer({ preferred: null });
  offer({ secondary: 'active/non-optimized' });
  offer({ hbaMs: 0 });
  offer({ lunMs: 0 });
  for (const line of config.conf) offer({ conf: config.conf.filter((other) => other !== line) });
  return plainer;
}

function hasMeaning(config: PathConfig): boolean {
  try {
    pathSettings(config);
    return true;
  } catch (error) {
    if (error instanceof RaidError) return false;
    throw error;
  }
}

export function plainerPathSteps(step: PathStep): readonly PathStep[] {
  switch (step.do) {
    case 'write':
    case 'zero':
      return [
        ...(step.fua ? [{ ...step, fua: false }] : []),
        ...(step.sectors > 1 ? [{ ...step, sectors: 1 }] : []),
        ...(step.sector > 0 ? [{ ...step, sector: 0 }] : []),
      ];
    case 'read':
      return [
        ...(step.sectors > 1 ? [{ ...step, sectors: 1 }] : []),
        ...(step.sector > 0 ? [{ ...step, sector: 0 }] : []),
      ];
    case 'break':
      return step.how.state === 'failed' || step.how.state === 'hung'
        ? []
        : [{ ...step, how: { state: 'failed' } }];
    case 'lie':
      return step.lie === 'not done' ? [] : [{ ...step, lie: 'not done' }];
    default:
      return [];
  }
}
