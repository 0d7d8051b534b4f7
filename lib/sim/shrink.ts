/**
 * A smaller case that fails in the same way: fewer kinds of steps, fewer steps, then plainer ones and a plainer array. Whatever still fails
 * is kept, and tried again from there, until nothing smaller does or the budget of runs is spent.
 *
 * "In the same way" is the kind of failure and its words without their numbers: a history that is cut shorter must not
 * slide into another bug on the way.
 */

import { type PathStep, plainerFabrics, plainerPathSteps } from './paths.ts';
import { type AnyCase, runAlone } from './simulate.ts';
import type { Config, Step } from './swarm.ts';
import type { Failure } from './world.ts';

/** For each smaller case, in the end. */
const SEEDS_TRIED = 4;

export interface Shrunk {
  readonly smallest: AnyCase;
  readonly failure: Failure;
  readonly runs: number;
}

/** What has to stay the same about a failure. */
function signatureOf(failure: Failure): string {
  return `${failure.kind} ${failure.message.split('\n')[0]?.replace(/\d+/g, '#').slice(0, 60)}`;
}

export async function shrink(
  one: AnyCase,
  failure: Failure,
  options: {
    readonly runs?: number;
    /** Asked before each run: the smallest so far will do. */
    readonly isEnough?: () => boolean;
    readonly onProgress?: (runs: number, steps: number) => void;
  } = {},
): Promise<Shrunk> {
  const most = options.runs ?? 2000;
  const goesOn = (): boolean => runs < most && options.isEnough?.() !== true;
  const wanted = signatureOf(failure);
  // What comes after the step at which it failed cannot matter, unless it failed after all of them.
  let smallest = withSteps(one, (index) => index < failure.step);
  let found = failure;
  let runs = 0;
  // A step less is another order of everything after it: what depends on timing may need another seed. That is dear, and
  // left for when the first seed has nothing more to give.
  let seeds = 1;
  const attempt = async (candidate: AnyCase): Promise<boolean> => {
    for (let other = 0; other < seeds && goesOn(); other += 1) {
      runs += 1;
      const seeded = { ...candidate, seed: candidate.seed + other };
      const { failure: next } = await runAlone(seeded);
      if (next === null || signatureOf(next) !== wanted) continue;
      smallest = withSteps(seeded, (index) => index < next.step);
      found = next;
      options.onProgress?.(runs, smallest.steps.length);
      return true;
    }
    return false;
  };
  if (!(await attempt(smallest))) smallest = one;
  for (let before = ''; goesOn(); ) {
    const now = JSON.stringify(smallest);
    if (now === before && seeds === SEEDS_TRIED) break;
    seeds = now === before ? SEEDS_TRIED : 1;
    before = now;
    for (const kind of new Set([...smallest.steps].map(kindOf))) {
      const { steps } = smallest;
      await attempt(withSteps(smallest, (index) => kindOf(steps[index] as Step | PathStep) !== kind));
    }
    await fewerSteps(() => smallest, attempt);
    for (const plainer of plainerConfigs(smallest)) await attempt(plainer);
    for (let index = 0; index < smallest.steps.length; index += 1) {
      for (const plainer of plainerAt(smallest, index)) if (await attempt(plainer)) break;
    }
  }
  return { smallest, failure: found, runs };
}

function withSteps(one: AnyCase, isKept: (index: number) => boolean): AnyCase {
  return one.mode === 'paths'
    ? { ...one, steps: one.steps.filter((_, index) => isKept(index)) }
    : { ...one, steps: one.steps.filter((_, index) => isKept(index)) };
}

function plainerConfigs(one: AnyCase): readonly AnyCase[] {
  return one.mode === 'paths'
    ? plainerFabrics(one.config).map((config) => ({ ...one, config }))
    : plainerArrays(one.config).map((config) => ({ ...one, config }));
}

function plainerAt(one: AnyCase, index: number): readonly AnyCase[] {
  if (one.mode === 'paths') {
    const { steps } = one;
    return plainerPathSteps(steps[index] as PathStep).map((step) => ({
      ...one,
      steps: steps.with(index, step),
    }));
  }
  const { steps } = one;
  return plainerSteps(steps[index] as Step).map((step) => ({ ...one, steps: steps.with(index, step) }));
}

function kindOf(step: Step | PathStep): string {
  if (step.do === 'refuse') return `refused ${step.calls}`;
  return step.do === 'fault' ? step.fault : step.do;
}

/** Leaves out runs of steps, from halves down to single ones, from the end on: what came last is needed most seldom. */
async function fewerSteps(
  now: () => AnyCase,
  attempt: (candidate: AnyCase) => Promise<boolean>,
): Promise<void> {
  for (let size = Math.max(1, now().steps.length >> 1); ; size >>= 1) {
    for (let at = now().steps.length - size; at >= 0; ) {
      const [from, to] = [at, at + size];
      await attempt(withSteps(now(), (index) => index < from || index >= to));
      at = Math.min(at, now().steps.length) - size;
    }
    if (size <= 1) return;
  }
}

function plainerArrays(config: Config): readonly Config[] {
  const plainer: Config[] = [];
  const offer = (change: Partial<Config>): void => {
    const next = { ...config, ...change };
    if (JSON.stringify(next) !== JSON.stringify(config)) plainer.push(next);
  };
  offer({ depth: 1 });
  offer({ spares: 0 });
  offer({ bitmapChunkBytes: null });
  offer({ assumeClean: true });
  offer({ windowBytes: undefined });
  offer({ metadata: '1.2' });
  return plainer;
}

function plainerSteps(step: Step): readonly Step[] {
  switch (step.do) {
    case 'write':
    case 'zero':
      return [
        ...(step.fua ? [{ ...step, fua: false }] : []),
        ...(step.sectors > 1
          ? [
              { ...step, sectors: 1 },
              { ...step, sectors: 8 },
            ].filter(isOther(step))
          : []),
        ...(step.sector > 0 ? [{ ...step, sector: 0 }] : []),
      ];
    case 'read':
      return step.sectors > 1 ? [{ ...step, sectors: 1 }] : [];
    case 'crash':
      return [
        ...(step.againInMs === null ? [] : [{ ...step, againInMs: null }]),
        ...(step.absent === null ? [] : [{ ...step, absent: null }]),
        ...(step.inMs === 0 ? [] : [{ ...step, inMs: 0 }]),
      ];
    case 'stop':
      return step.absent === null ? [] : [{ ...step, absent: null }];
    case 'fault':
      return [
        ...(step.sectors > 1 ? [{ ...step, sectors: 1 }] : []),
        ...(step.sector > 0 ? [{ ...step, sector: 0 }] : []),
        ...(step.kind > 0 ? [{ ...step, kind: 0 }] : []),
      ];
    case 'refuse':
      return [
        ...(step.applied === 'none' ? [] : [{ ...step, applied: 'none' as const }]),
        ...(step.inMs === 0 ? [] : [{ ...step, inMs: 0 }]),
        ...(step.times === 1 ? [] : [{ ...step, times: 1 }]),
      ];
    case 'grow':
      return step.isByLeg ? [{ ...step, isByLeg: false }] : [];
    case 'scrub':
      return step.repair ? [{ ...step, repair: false }] : [];
    default:
      return [];
  }
}

function isOther(than: Step): (step: Step) => boolean {
  const text = JSON.stringify(than);
  return (step) => JSON.stringify(step) !== text;
}
