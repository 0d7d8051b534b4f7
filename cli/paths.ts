/** The paths to an array's members: what is there, and what is done to it, live where somebody has the array open. */
import {
  type Condition,
  componentNames,
  componentsNamed,
  type FabricPlan,
  formatSize,
  hasPaths,
  type Manifest,
  MemoryDevice,
  memberNames,
  openPaths,
  pathsOf,
  planWith,
  RaidError,
  readManifest,
  readMultipathConf,
  San,
  type SanLun,
  type SanPath,
  type SanStatus,
  SimClock,
  SimProcess,
  updateManifest,
} from '../lib/index.ts';
import { commandLine, knownDisks, pathIn, statOf } from './array.ts';
import { closest } from './closest.ts';
import { paint } from './render.ts';

/** Longer than any checker waits that somebody has set with sense. */
const PENDING_MOST_MS = 600_000;

export interface PathChange {
  /** Components and paths, as they were typed; none: all that are not sound. */
  readonly names: readonly string[];
  readonly change: Partial<Condition>;
}

/** Kept in the manifest, so that it holds whenever the array is opened, and done at once where it is open already. */
export async function changePaths(
  folder: string,
  san: San | null,
  { names, change }: PathChange,
): Promise<readonly string[]> {
  const manifest = await readManifest(folder);
  const plan = planOf(folder, manifest);
  const members = memberNames(manifest.members);
  const found =
    names.length === 0
      ? Object.keys(plan.conditions ?? {})
      : names.flatMap((name) => namedIn(folder, plan, members, name));
  await updateManifest(folder, (before) => ({
    ...before,
    fabric: found.reduce((now, name) => planWith(now, name, change), before.fabric ?? plan),
  }));
  for (const name of found) san?.set(name, change);
  const changed = (await readManifest(folder)).fabric?.conditions ?? {};
  return found.map((name) => `${name}: ${conditionWords(changed[name] ?? {})}`);
}

/** The names that a word stands for, or a refusal with the one that was probably meant. */
function namedIn(
  folder: string,
  plan: FabricPlan,
  members: readonly string[],
  word: string,
): readonly string[] {
  const found = componentsNamed(plan, members, word);
  if (found.length > 0) return found;
  const names = componentNames(plan, members);
  const close = closest(word, names);
  const parts = names.filter((name) => !name.includes(':') && !name.includes('-'));
  const hint = close === null ? `there are ${parts.join(', ')}` : `did you mean ${close}?`;
  throw new RaidError('BAD_ARGUMENT', `${folder} has no component or path ${word}; ${hint}`);
}

export function planOf(folder: string, manifest: Manifest): FabricPlan {
  if (manifest.fabric !== undefined) return manifest.fabric;
  throw new RaidError(
    'NOT_SUPPORTED',
    `${folder} has no fabric. To make an array with one, and several paths to each disk:${commandLine('create', 'ARRAY', '--level', '5', '--disks', '4', '--hbas', '2', '--controllers', '2')}`,
  );
}

/**
 * As a host would find the paths if it opened the array at this moment: the same fabric, over devices that hold nothing, and
 * on a clock of its own, so that what hangs need not be waited for.
 */
export async function pathsFound(folder: string): Promise<SanStatus> {
  const manifest = await readManifest(folder);
  const real = knownDisks(manifest).filter(({ source }) => hasPaths(source));
  if (manifest.fabric === undefined && real.length > 0) {
    const luns = await Promise.all(real.map((disk) => realPathsFound(folder, disk)));
    return { luns, components: [], refusedLate: 0 };
  }
  const plan = planOf(folder, manifest);
  const clock = new SimClock(1);
  const san = new San(plan, { host: new SimProcess(clock), conf: await readMultipathConf(folder) });
  const sizes = new Map<string, number>();
  for (const [index, { name, source }] of knownDisks(manifest).entries()) {
    sizes.set(name, (await statOf(pathIn(folder, source)))?.size ?? 0);
    const stand = new MemoryDevice({ sizeBytes: 4096 });
    await clock.drive(san.attach(name, index, stand)).catch((error: unknown) => {
      if (!(error instanceof RaidError) || error.code !== 'MEMBER_GONE') throw error;
    });
  }
  // What hangs is given up by its checker, in this clock's time, and shown as it is then.
  const isPending = (): boolean =>
    san
      .status()
      .luns.some(({ groups }) => groups.some(({ paths }) => paths.some(({ state }) => state === 'pending')));
  for (let passedMs = 0; isPending() && passedMs < PENDING_MOST_MS; passedMs += 1000) await clock.pass(1000);
  const status = san.status();
  await clock.drive(san.close());
  return {
    ...status,
    luns: status.luns.map((lun) => ({ ...lun, sizeBytes: sizes.get(lun.name) ?? lun.sizeBytes })),
  };
}

/** Paths to servers can only be found by going there. */
async function realPathsFound(
  folder: string,
  { name, source }: { readonly name: string; readonly source: string },
): Promise<SanLun> {
  const gone = { sizeBytes: 0, readOnly: false, isGone: true, alua: {}, queued: 0, groups: [] };
  try {
    const device = await openPaths(source, { readOnly: true, conf: await readMultipathConf(folder) });
    await using _device = device;
    const found = pathsOf(device, name);
    if (found !== null) return found;
  } catch (error) {
    if (!(error instanceof RaidError) || error.code !== 'MEMBER_GONE') throw error;
  }
  return { name, selector: '-', isQueueing: false, ...gone };
}

/** As `multipath -ll` shows it. */
export function listing(
  status: SanStatus,
  manifest: Manifest,
  { withStatistics }: { readonly withStatistics: boolean },
): string {
  const sources = new Map(knownDisks(manifest).map(({ name, source }) => [name, source]));
  const lines = status.luns.flatMap((lun) => lunLines(lun, sources.get(lun.name) ?? '', withStatistics));
  const flawed = status.components.flatMap(({ name, kind, condition }) => {
    const words = conditionWords(condition);
    return words === SOUND ? [] : [`${kind} ${name}: ${words}`];
  });
  return [...lines, ...flawed].join('\n');
}

function lunLines(lun: SanLun, source: string, withStatistics: boolean): readonly string[] {
  const features = lun.isQueueing ? '1 queue_if_no_path' : '0';
  const isAlua = Object.values(lun.alua).some((state) => state !== 'active/optimized');
  const waiting = lun.queued === 0 ? '' : ` queued=${lun.queued}`;
  const last = lun.groups.length - 1;
  return [
    `${paint('bold', lun.name)} (${source}) raidsim,disk${lun.isGone ? paint('red', ' no path: the array does without it') : ''}`,
    `size=${formatSize(lun.sizeBytes).replace(' ', '')} features='${features}' hwhandler='${isAlua ? '1 alua' : '0'}' wp=${lun.readOnly ? 'ro' : 'rw'}${waiting}`,
    ...lun.groups.flatMap((group, index) => {
      const stem = index === last ? '`' : '|';
      const under = index === last ? ' ' : '|';
      return [
        `${stem}-+- policy='${lun.selector} 0' prio=${group.prio} status=${group.isActive ? 'active' : 'enabled'}`,
        ...group.paths.map((path, at) => {
          const branch = at === group.paths.length - 1 ? '`' : '|';
          return `${under} ${branch}- ${pathLine(path)}${withStatistics ? statistics(path) : ''}`;
        }),
      ];
    }),
  ];
}

const checkerWords: Readonly<Record<SanPath['state'], string>> = {
  up: 'ready',
  down: 'faulty',
  ghost: 'ghost',
  shaky: 'shaky',
  pending: 'i/o pending',
  delayed: 'delayed',
};

function pathLine({ name, hbtl, hba, port, state, link }: SanPath): string {
  const works = state === 'up' || state === 'shaky' || state === 'ghost';
  const words = `${works ? 'active' : 'failed'} ${checkerWords[state]} ${link}`;
  const way = hba === '' ? name : `${hbtl} ${hba}:${port}`;
  return `${way} ${works && link === 'running' ? words : paint('red', words)}`;
}

function statistics({ requests, share, errors, latencyMs }: SanPath): string {
  const percent = `${(share * 100).toFixed(0)}%`;
  const latency =
    latencyMs === null
      ? ''
      : ` p50=${latencyMs.p50.toFixed(2)}ms p99=${latencyMs.p99.toFixed(2)}ms max=${latencyMs.max.toFixed(2)}ms`;
  return ` io=${requests} share=${percent} errors=${errors}${latency}`;
}

const SOUND = 'works';

function conditionWords({
  state = 'up',
  flap = null,
  delayMs = 0,
  bytesPerSecond = null,
  queueDepth = null,
}: Partial<Condition>): string {
  const words = [
    ...(state === 'failed' ? ['failed'] : state === 'hung' ? ['hangs'] : []),
    ...(flap === null ? [] : [`flaps: ${flap.downMs} ms down, ${flap.upMs} ms up`]),
    ...(delayMs === 0 ? [] : [`${delayMs} ms slower`]),
    ...(bytesPerSecond === null ? [] : [`${formatSize(bytesPerSecond)} a second`]),
    ...(queueDepth === null ? [] : [`${queueDepth} requests at a time`]),
  ];
  return words.length === 0 ? SOUND : words.join(', ');
}
