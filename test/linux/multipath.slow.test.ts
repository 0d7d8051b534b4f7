/**
 * dm-multipath, which the rules here are those of: the same table, the same failures, the same reads, and the same path
 * must take each of them. `dmsetup status` and the counters of the devices below say which one Linux took.
 *
 * Paths are linear devices over one disk. One fails when an error target takes its place, and a path whose device is
 * suspended holds what it is given, so that requests can be under way for as long as a test wants.
 */
import { rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'vitest';
import { DelayDevice } from '../../lib/device/delay.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { MultipathDevice, type Path } from '../../lib/multipath/device.ts';
import { makeSelector } from '../../lib/multipath/select.ts';
import { Clock, Process } from '../../lib/sim/clock.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../lib/units.ts';
import { type Random, runSeed, withSeed } from '../conformance/seed.ts';
import { settings } from '../multipath/history.ts';
import { needPeer } from '../peer.ts';
import { inKernel, kernelOrSkip, programPath } from './kernel.ts';

const DISK_BYTES = 8 * MIB;
const SECTORS = DISK_BYTES / SECTOR_BYTES;
const MODULES = ['dm-multipath', 'dm-round-robin', 'dm-queue-length', 'dm-service-time'];

async function inLinux(script: readonly string[]): Promise<readonly string[]> {
  const image = join(tmpdir(), `raidsim-multipath-${process.pid}.img`);
  writeFileSync(image, '');
  truncateSync(image, DISK_BYTES);
  try {
    const said = await inKernel({ images: [image], modules: MODULES, script: `${script.join('\n')}\n` });
    return said.trimEnd().split('\n');
  } finally {
    rmSync(image);
  }
}

/** Number n is dm-n, so that nobody needs its name. */
function makePaths(count: number): readonly string[] {
  return Array.from(
    { length: count },
    (_, index) => `dmsetup create p${index} --table "0 ${SECTORS} linear $D0 0"`,
  );
}

function become(path: number, target: 'linear $D0 0' | 'error'): readonly string[] {
  return [
    `dmsetup suspend --noflush --nolockfs p${path}`,
    `dmsetup reload p${path} --table "0 ${SECTORS} ${target}"`,
    `dmsetup resume p${path}`,
  ];
}

// ── Groups and turns ─────────────────────────────────────────────────────────────────────────────────────────────────

type Step = { readonly kind: 'read' } | { readonly kind: 'break' | 'mend' | 'switch'; readonly path: number };

interface Shape {
  /** How many paths each group has. */
  readonly groups: readonly number[];
}

/** After each step: who took the read (-1: it failed; null: it was no read), and which paths count as failed. */
type Trace = readonly (readonly [taken: number | null, failed: string])[];

function pathsIn({ groups }: Shape): number {
  return groups.reduce((sum, size) => sum + size, 0);
}

function groupOf({ groups }: Shape, path: number): number {
  let end = 0;
  return groups.findIndex((size) => {
    end += size;
    return path < end;
  });
}

/** Draws steps, and does them; one that makes no sense (a switch to a group without a path) is left out. */
async function here(
  shape: Shape,
  random: Random,
  count: number,
): Promise<{ readonly steps: readonly Step[]; readonly trace: Trace }> {
  const pathCount = pathsIn(shape);
  const clock = new Clock(1);
  const broken = new Set<number>();
  let taken = -1;
  const paths = Array.from({ length: pathCount }, (_, index): Path => {
    const answer = (): number => {
      if (broken.has(index)) throw new RaidError('MEMBER_GONE', `p${index} is broken`);
      taken = index;
      return 0;
    };
    return {
      name: `p${index}`,
      facts: () => ({ serial: String(groupOf(shape, index)) }),
      connect: async () => ({
        device: new DelayDevice(new MemoryDevice({ sizeBytes: 64 * KIB }), {
          host: new Process(clock),
          delayMs: answer,
        }),
        identity: 'disk',
        fence: async () => undefined,
      }),
    };
  });
  const conf = settings(
    'path_grouping_policy group_by_serial',
    'path_selector "round-robin 0"',
    'path_checker none',
    'failback manual',
    'no_path_retry fail',
  );
  const host = new Process(clock);
  const device = await clock.drive(MultipathDevice.open(paths, { host, settings: conf }));
  const failed = (): string => {
    const all = device.status().groups.flatMap((group) => group.paths);
    const isUp = (name: string): boolean => all.find((path) => path.name === name)?.state === 'up';
    return paths.map(({ name }) => (isUp(name) ? 'A' : 'F')).join('');
  };
  const steps: Step[] = [];
  const trace: (readonly [number | null, string])[] = [];
  const page = new Uint8Array(4 * KIB);
  while (steps.length < count) {
    const step = drawStep(random, pathCount);
    taken = -1;
    if (step.kind === 'read') {
      await clock.drive(device.read(0, page).catch(() => undefined));
    } else if (step.kind === 'break') broken.add(step.path);
    else if (step.kind === 'mend') {
      broken.delete(step.path);
      device.reinstatePath(`p${step.path}`);
      await clock.drive(device.check());
    } else {
      try {
        device.switchGroup(`p${step.path}`);
      } catch (error) {
        if (!(error instanceof RaidError)) throw error;
        continue;
      }
    }
    steps.push(step);
    trace.push([step.kind === 'read' ? taken : null, failed()]);
  }
  await clock.drive(device.close());
  return { steps, trace };
}

function drawStep(random: Random, paths: number): Step {
  const path = random(paths);
  switch (random(8)) {
    case 0:
      return { kind: 'break', path };
    case 1:
      return { kind: 'mend', path };
    case 2:
      return { kind: 'switch', path };
    default:
      return { kind: 'read' };
  }
}

/** As multipath(8) makes it: with the best group in use at first. Each path: its device, and what the selector is told. */
function tableOf(selector: string, groups: readonly (readonly string[])[]): string {
  const sizes = groups.map((paths) => paths.length);
  const lists = groups.map((paths) => {
    const words = (paths[0] ?? '').split(' ').length - 1;
    return `${selector} 0 ${paths.length} ${words} ${paths.join(' ')}`;
  });
  const first = sizes.indexOf(Math.max(...sizes)) + 1;
  return `0 ${SECTORS} multipath 2 queue_mode bio 0 ${groups.length} ${first} ${lists.join(' ')}`;
}

const numbers = (count: number): readonly number[] => Array.from({ length: count }, (_, index) => index);

function scriptOf(shape: Shape, steps: readonly Step[]): readonly string[] {
  const paths = numbers(pathsIn(shape));
  const groups = shape.groups.map((_, group) =>
    paths.filter((path) => groupOf(shape, path) === group).map((path) => `253:${path} 1`),
  );
  return [
    ...makePaths(paths.length),
    `dmsetup create mp --table "${tableOf('round-robin', groups)}"`,
    // How many reads each path has done; then what Linux says of the paths.
    `told() { for n in ${paths.join(' ')}; do read -r reads rest </sys/block/dm-$n/stat; echo -n "$reads "; done; dmsetup status mp; }`,
    'told',
    ...steps.flatMap((step) => [...commandsOf(shape, step), 'told']),
    'dmsetup remove mp',
    ...paths.map((path) => `dmsetup remove p${path}`),
  ];
}

function commandsOf(shape: Shape, step: Step): readonly string[] {
  switch (step.kind) {
    case 'read':
      return [`dd if=/dev/dm-${pathsIn(shape)} of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null`];
    case 'break':
      return become(step.path, 'error');
    case 'mend':
      return [...become(step.path, 'linear $D0 0'), `dmsetup message mp 0 reinstate_path 253:${step.path}`];
    case 'switch':
      return [`dmsetup message mp 0 switch_group ${groupOf(shape, step.path) + 1}`];
  }
}

function traceOf(lines: readonly string[], steps: readonly Step[], pathCount: number): Trace {
  const told = lines.map((line) => ({
    reads: line.split(' ').slice(0, pathCount).map(Number),
    failed: [...line.matchAll(/253:\d+ ([AF]) /g)].map(([, state = '']) => state).join(''),
  }));
  return steps.map((step, index) => {
    const [before, after] = [told[index], told[index + 1]];
    if (before === undefined || after === undefined) throw new Error(`nothing was told of step ${index}`);
    const taken = after.reads.findIndex((count, path) => count !== before.reads[path]);
    return [step.kind === 'read' ? taken : null, after.failed];
  });
}

/** Throws at the first step in which they differ, with what led there. */
function expectSame(steps: readonly unknown[], ours: readonly unknown[], theirs: readonly unknown[]): void {
  const [here, linux] = [ours, theirs].map((trace) => trace.map((each) => JSON.stringify(each)));
  const differs = steps.findIndex((_, index) => here?.[index] !== linux?.[index]);
  if (differs < 0) return;
  const lines = steps
    .slice(0, differs + 1)
    .map((step, index) => `${index} ${JSON.stringify(step)}: here ${here?.[index]}, Linux ${linux?.[index]}`);
  throw new Error(lines.join('\n'));
}

// ── Selectors with requests under way ────────────────────────────────────────────────────────────────────────────────

type Move =
  | { readonly kind: 'begin'; readonly bytes: number }
  /** Everything that the path has. */
  | { readonly kind: 'end' | 'fail' | 'reinstate'; readonly path: number };

interface Loads {
  readonly selector: 'queue-length' | 'service-time';
  readonly throughputs: readonly number[];
}

const PATHS = 4;

/** What is under way by each path after each move: requests, or bytes. */
function loadsHere(
  { selector, throughputs }: Loads,
  random: Random,
  count: number,
): { readonly moves: readonly Move[]; readonly loads: readonly (readonly number[])[] } {
  const chooser = makeSelector({
    settings: settings(`path_selector "${selector} 0"`),
    paths: throughputs.map((throughput, index) => ({ name: `p${index}`, prio: 1, throughput })),
  });
  const flying: number[][] = throughputs.map(() => []);
  const works = new Set(throughputs.keys());
  const moves: Move[] = [];
  const loads: (readonly number[])[] = [];
  while (moves.length < count) {
    const path = random(PATHS);
    const lot = random(12);
    const move: Move =
      lot < 7
        ? { kind: 'begin', bytes: 4 * KIB * (1 + random(4)) }
        : { kind: lot < 10 ? 'end' : lot < 11 ? 'fail' : 'reinstate', path };
    const total = flying.flat().length;
    if (move.kind === 'begin' ? works.size === 0 || total >= 24 : false) continue;
    if (move.kind === 'end' && flying[path]?.length === 0) continue;
    if (move.kind === 'fail' && !works.has(path)) continue;
    if (move.kind === 'reinstate' && works.has(path)) continue;
    moves.push(move);
    if (move.kind === 'begin') {
      const candidates = [...works].toSorted((a, b) => a - b);
      const taken = chooser.select({ candidates, offsetBytes: 0, lengthBytes: move.bytes, nowMs: 0 });
      flying[taken]?.push(move.bytes);
    } else if (move.kind === 'end') {
      for (const lengthBytes of flying[path] ?? [])
        chooser.end(path, { lengthBytes, startedMs: 0, nowMs: 0, failed: false });
      flying[path] = [];
    } else if (move.kind === 'fail') works.delete(path);
    else {
      works.add(path);
      chooser.cameBack(path);
    }
    loads.push(
      flying.map((list) =>
        selector === 'queue-length' ? list.length : list.reduce((sum, each) => sum + each, 0),
      ),
    );
  }
  return { moves, loads };
}

function loadsScript(
  { selector, throughputs }: Loads,
  moves: readonly Move[],
  loads: readonly (readonly number[])[],
): readonly string[] {
  const words = throughputs.map(
    (throughput, path) => `253:${path} 1${selector === 'service-time' ? ` ${throughput}` : ''}`,
  );
  const suspend = (path: number): string => `dmsetup suspend --noflush --nolockfs p${path}`;
  const totals = loads.map((each) => each.reduce((sum, load) => sum + load, 0));
  return [
    ...makePaths(PATHS),
    `dmsetup create mp --table "${tableOf(selector, [words])}"`,
    ...numbers(PATHS).map(suspend),
    // The loads of all paths; `reach` waits until they come to so much.
    'loads() { set -- $(dmsetup status mp); while [ $# -gt 0 ]; do case $1 in 253:*) echo -n "$4 ";; esac; shift; done; echo; }',
    'reach() { while :; do t=0; for l in $(loads); do t=$((t+l)); done; [ $t = $1 ] && break; done; loads; }',
    ...moves.flatMap((move, index): readonly string[] => {
      const reach = `reach ${totals[index]}`;
      switch (move.kind) {
        case 'begin':
          return [
            `dd if=/dev/dm-${PATHS} of=/dev/null bs=${move.bytes} count=1 iflag=direct 2>/dev/null &`,
            reach,
          ];
        case 'end':
          return [`dmsetup resume p${move.path}`, reach, suspend(move.path)];
        default:
          return [`dmsetup message mp 0 ${move.kind}_path 253:${move.path}`, reach];
      }
    }),
    ...numbers(PATHS).map((path) => `dmsetup resume p${path}`),
    'wait',
    'dmsetup remove mp',
    ...numbers(PATHS).map((path) => `dmsetup remove p${path}`),
  ];
}

describe.runIf(kernelOrSkip())('dm-multipath', () => {
  test('switches groups, fails paths and takes turns as it is done here', async (context) => {
    needPeer(programPath('dmsetup') !== null, { program: 'dmsetup', from: 'dmsetup' }, context);
    await withSeed(runSeed, async (random) => {
      const shapes: readonly Shape[] = [[2, 2], [1, 2, 3], [4]].map((groups) => ({ groups }));
      const runs: { readonly shape: Shape; readonly steps: readonly Step[]; readonly trace: Trace }[] = [];
      for (const shape of shapes) runs.push({ shape, ...(await here(shape, random, 45)) });
      const lines = [...(await inLinux(runs.flatMap(({ shape, steps }) => scriptOf(shape, steps))))];
      for (const { shape, steps, trace } of runs) {
        const there = traceOf(lines.splice(0, steps.length + 1), steps, pathsIn(shape));
        expectSame(steps, trace, there);
      }
    });
  });

  test('chooses by queue and by service time as it is done here, whatever is under way', async (context) => {
    needPeer(programPath('dmsetup') !== null, { program: 'dmsetup', from: 'dmsetup' }, context);
    await withSeed(runSeed, async (random) => {
      const kinds: readonly Loads[] = [
        { selector: 'queue-length', throughputs: [1, 1, 1, 1] },
        { selector: 'service-time', throughputs: [1, 1, 1, 1] },
        { selector: 'service-time', throughputs: [1, 2, 5, 0] },
      ];
      const runs = kinds.map((kind) => ({ kind, ...loadsHere(kind, random, 45) }));
      const lines = [
        ...(await inLinux(runs.flatMap(({ kind, moves, loads }) => loadsScript(kind, moves, loads)))),
      ];
      for (const { kind, moves, loads } of runs) {
        const there = lines.splice(0, moves.length).map((line) => line.trim().split(' ').map(Number));
        expectSame([kind, ...moves], [kind, ...loads], [kind, ...there]);
      }
    });
  });
});
