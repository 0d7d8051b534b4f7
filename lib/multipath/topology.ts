/**
 * What lies between a host and its LUNs, as a graph, and what it survives. Nothing in here carries a byte.
 *
 *   HBA ──cable── switch ──cable── switch ──cable── port ── controller ── LUN
 *
 * A path is one walk from an HBA over switches to a port, and so to every LUN of the port's controller. Where switches are
 * linked, a frame takes a shortest way: longer ones are no paths. HBAs may be cabled to ports directly.
 *
 * A path works while everything on it does. So how many failures a LUN survives, whichever they are, is one less than the
 * fewest components that every path has one of; with one, that one is a single point of failure.
 */
import { RaidError } from '../errors.ts';
import type { Settings } from './conf.ts';

export interface Topology {
  readonly hbas: readonly string[];
  readonly switches: readonly string[];
  readonly controllers: readonly { readonly name: string; readonly ports: readonly string[] }[];
  /** Between two of HBAs, switches and ports. */
  readonly cables: readonly (readonly [string, string])[];
  readonly luns: readonly TopologyLun[];
}

export interface TopologyLun {
  readonly identity: string;
  /** Those that it can be reached by (default: all). */
  readonly controllers?: readonly string[];
  /** Whose paths are active/optimized (ALUA), as long as that one works; without it those of all are. */
  readonly preferred?: string;
  /** What the others' paths are: `active/non-optimized`, or `standby`. */
  readonly secondary?: 'active/non-optimized' | 'standby';
}

export interface FabricPath {
  readonly hba: string;
  readonly switches: readonly string[];
  readonly port: string;
  readonly controller: string;
  /** All that must work for it: the above, and the cables between them as `a-b`, in the order of the walk. */
  readonly components: readonly string[];
}

/** Every HBA reaches every controller: an HBA has a switch of its own, and a controller a port on each switch. */
export function defaultTopology(hbaCount: number, controllerCount: number, identity: string): Topology {
  const numbers = (count: number): readonly number[] => Array.from({ length: count }, (_, index) => index);
  const controllers = numbers(controllerCount).map((at) => ({
    name: `ctl${at}`,
    ports: numbers(hbaCount).map((port) => `ctl${at}p${port}`),
  }));
  return checkedTopology({
    hbas: numbers(hbaCount).map((at) => `hba${at}`),
    switches: numbers(hbaCount).map((at) => `sw${at}`),
    controllers,
    cables: numbers(hbaCount).flatMap((at): (readonly [string, string])[] => [
      [`hba${at}`, `sw${at}`],
      ...controllers.map(({ name }) => [`sw${at}`, `${name}p${at}`] as const),
    ]),
    luns: [{ identity }],
  });
}

/** The topology, if it makes sense; else BAD_ARGUMENT with where and why. */
export function checkedTopology(topology: Topology): Topology {
  const complaint = complaintAboutTopology(topology);
  if (complaint !== null) throw new RaidError('BAD_ARGUMENT', `topology: ${complaint}`);
  return topology;
}

/** Where and why, or null. */
export function complaintAboutTopology(topology: Topology): string | null {
  const { hbas, switches, controllers, cables, luns } = topology;
  const ports = controllers.flatMap((controller) => controller.ports);
  const names = [...hbas, ...switches, ...controllers.map(({ name }) => name), ...ports];
  const twice = names.find((name, index) => names.indexOf(name) < index);
  if (twice !== undefined) return `two components are named ${twice}`;
  const kinds = new Map<string, 'hba' | 'switch' | 'port'>([
    ...hbas.map((name) => [name, 'hba'] as const),
    ...switches.map((name) => [name, 'switch'] as const),
    ...ports.map((name) => [name, 'port'] as const),
  ]);
  for (const [index, [a, b]] of cables.entries()) {
    const where = `cables[${index}] (${a}-${b})`;
    const dangling = [a, b].find((end) => !kinds.has(end));
    if (dangling !== undefined) return `${where}: there is no HBA, switch or port ${dangling}`;
    if (a === b) return `${where}: leads to where it begins`;
    if (kinds.get(a) === kinds.get(b) && kinds.get(a) !== 'switch')
      return `${where}: joins two ${kinds.get(a)}s`;
    const before = cables.findIndex(([c, d]) => (c === a && d === b) || (c === b && d === a));
    if (before < index) return `${where}: is there already, as cables[${before}]`;
  }
  const cycle = cycleOf(switches, cables);
  if (cycle !== null) return `the switches ${cycle} are cabled in a circle`;
  for (const [index, { identity, controllers: by, preferred }] of luns.entries()) {
    if (luns.findIndex((other) => other.identity === identity) < index)
      return `luns[${index}]: two LUNs are ${identity}`;
    const named = [...(by ?? []), ...(preferred === undefined ? [] : [preferred])];
    const dangling = named.find((name) => !controllers.some((controller) => controller.name === name));
    if (dangling !== undefined) return `luns[${index}] (${identity}): there is no controller ${dangling}`;
    if (preferred !== undefined && by?.includes(preferred) === false)
      return `luns[${index}] (${identity}): it prefers ${preferred}, by which it cannot be reached`;
    if (pathsTo(topology, identity).length === 0) return `luns[${index}] (${identity}): no path leads to it`;
  }
  return luns.length === 0 ? 'there is no LUN' : null;
}

/** Switches joined by a cable whose ends were joined already. */
function cycleOf(switches: readonly string[], cables: Topology['cables']): string | null {
  const joined = new Map(switches.map((name) => [name, name]));
  const rootOf = (name: string): string => {
    const above = joined.get(name) ?? name;
    return above === name ? name : rootOf(above);
  };
  for (const [a, b] of cables) {
    if (!joined.has(a) || !joined.has(b)) continue;
    if (rootOf(a) === rootOf(b)) return `${a} and ${b}`;
    joined.set(rootOf(a), rootOf(b));
  }
  return null;
}

/** In the order of HBAs, then of controllers and their ports. Without circles there is one way between two switches. */
export function pathsTo(topology: Topology, identity: string): readonly FabricPath[] {
  const { hbas, switches, controllers, cables, luns } = topology;
  const lun = luns.find((each) => each.identity === identity);
  if (lun === undefined) return [];
  const neighbours = new Map<string, string[]>();
  for (const [a, b] of cables) {
    neighbours.set(a, [...(neighbours.get(a) ?? []), b]);
    neighbours.set(b, [...(neighbours.get(b) ?? []), a]);
  }
  const reachable = controllers.filter(({ name }) => lun.controllers?.includes(name) ?? true);
  return hbas.flatMap((hba) => {
    const walks = new Map<string, readonly string[]>([[hba, [hba]]]);
    const waiting = [hba];
    for (let at = waiting.shift(); at !== undefined; at = waiting.shift()) {
      const walk = walks.get(at) ?? [];
      // Frames pass through switches only: not through another HBA, nor through a port.
      if (at !== hba && !switches.includes(at)) continue;
      for (const next of neighbours.get(at) ?? []) {
        if (walks.has(next)) continue;
        walks.set(next, [...walk, next]);
        waiting.push(next);
      }
    }
    return reachable.flatMap((controller) =>
      controller.ports.flatMap((port) => {
        const walk = walks.get(port);
        return walk === undefined ? [] : [pathAlong(walk, controller.name)];
      }),
    );
  });
}

function pathAlong(walk: readonly string[], controller: string): FabricPath {
  const components = walk.flatMap((name, index) => {
    const next = walk[index + 1];
    return next === undefined ? [name] : [name, `${name}-${next}`];
  });
  return {
    hba: walk[0] ?? '',
    switches: walk.slice(1, -1),
    port: walk.at(-1) ?? '',
    controller,
    components: [...components, controller],
  };
}

/** Components without any of which there is no path, by name. */
export function singlePointsOfFailure(paths: readonly Pick<FabricPath, 'components'>[]): readonly string[] {
  const [first, ...others] = paths;
  if (first === undefined) return [];
  return first.components
    .filter((name) => others.every(({ components }) => components.includes(name)))
    .sort();
}

/**
 * So many components may fail, whichever they are, and a path remains. By search: a component of the first path that is
 * left must be among those that fail, so the tree is as deep as the answer and as wide as a path is long.
 */
export function failuresSurvived(paths: readonly Pick<FabricPath, 'components'>[]): number {
  const canCut = (left: typeof paths, failures: number): boolean => {
    const [first] = left;
    if (first === undefined) return true;
    if (failures === 0) return false;
    return first.components.some((name) =>
      canCut(
        left.filter(({ components }) => !components.includes(name)),
        failures - 1,
      ),
    );
  };
  let failures = 0;
  while (!canCut(paths, failures)) failures += 1;
  return failures - 1;
}

/** What the kernel waits for a port that was lost where nothing else is said. */
const DEV_LOSS_MS = 600_000;

/**
 * When the transport below a path gives up after its light has gone out: `fastIoFailMs` until requests fail, `devLossMs`
 * until the path is removed; Infinity: never. As multipathd sets them: a path must not be removed while requests may wait for
 * it, so it lasts for as long as `no_path_retry` queues; and without fast_io_fail_tmo the kernel waits 600 s at most.
 */
export function transportTimes(
  settings: Pick<Settings, 'fastIoFailMs' | 'devLossMs' | 'noPathRetry' | 'pollingMs'>,
): { readonly fastIoFailMs: number | null; readonly devLossMs: number } {
  const { fastIoFailMs, noPathRetry, pollingMs } = settings;
  const queuesForMs =
    noPathRetry.kind === 'queue'
      ? Number.POSITIVE_INFINITY
      : noPathRetry.kind === 'retries'
        ? noPathRetry.count * pollingMs
        : 0;
  const wantedMs = Math.max(settings.devLossMs ?? DEV_LOSS_MS, queuesForMs);
  if (fastIoFailMs === null) return { fastIoFailMs, devLossMs: Math.min(wantedMs, DEV_LOSS_MS) };
  return { fastIoFailMs, devLossMs: Math.max(wantedMs, fastIoFailMs) };
}

/** The longest that a request waits for a path whose light has gone out. */
export function longestBlockMs(settings: Parameters<typeof transportTimes>[0]): number {
  const { fastIoFailMs, devLossMs } = transportTimes(settings);
  return fastIoFailMs ?? devLossMs;
}

export interface StallOptions {
  readonly settings: Pick<Settings, 'noPathRetry' | 'pollingMs' | 'checkerTimeoutMs'>;
  /** How many paths there are. */
  readonly paths: number;
  /** So many of them may be standby, and have to be made active first (default 0). */
  readonly standby?: number;
  readonly ioTimeoutMs?: number;
  readonly tickMs?: number;
  /** The longest that a fence takes. */
  readonly fenceMs?: number;
}

/**
 * The longest that a request to a `MultipathDevice` can take beyond what a working path needs, whatever fails and however
 * checkers lie; Infinity where it may wait for ever.
 *
 * A path that falls silent holds a request for the timeout, a tick and the fence. Each path does that once; with retries
 * there are the waits, of which the last ends with a tick, and one more attempt that began just before their end. A standby
 * path that does not become active holds it for as long as a checker may take.
 */
export function longestStallMs(options: StallOptions): number {
  const { settings, paths, standby = 0, ioTimeoutMs = 30_000, tickMs = 1000, fenceMs = 0 } = options;
  const { noPathRetry, pollingMs, checkerTimeoutMs } = settings;
  const activationMs = standby * (checkerTimeoutMs + tickMs + fenceMs);
  const silenceMs = ioTimeoutMs + tickMs + fenceMs;
  switch (noPathRetry.kind) {
    case 'fail':
      return paths * silenceMs + activationMs;
    case 'retries':
      return (paths + 1) * silenceMs + noPathRetry.count * pollingMs + tickMs + activationMs;
    case 'queue':
      return Number.POSITIVE_INFINITY;
  }
}

export interface LunReport {
  readonly identity: string;
  readonly paths: readonly FabricPath[];
  readonly failuresSurvived: number;
  readonly singlePointsOfFailure: readonly string[];
  readonly longestStallMs: number;
}

/** What settings and topology mean together, LUN by LUN. */
export function reportOn(
  topology: Topology,
  settingsOf: (identity: string) => Settings,
  timing: Omit<StallOptions, 'settings' | 'paths'> = {},
): readonly LunReport[] {
  return checkedTopology(topology).luns.map(({ identity }) => {
    const paths = pathsTo(topology, identity);
    return {
      identity,
      paths,
      failuresSurvived: failuresSurvived(paths),
      singlePointsOfFailure: singlePointsOfFailure(paths),
      longestStallMs: longestStallMs({ ...timing, settings: settingsOf(identity), paths: paths.length }),
    };
  });
}
