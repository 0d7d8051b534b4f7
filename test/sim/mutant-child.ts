/**
 * Hunts a mutant, or the engine as it is: explores the crash points named, or random fabrics or lanes, one after the other, until
 * something is violated; or one saved case. Run from the dist of the mutant, with the hunts, and where the sources are. Prints the first violation, if any, and exits
 * with 10 then: 1 is that of a program that does not even load.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseLevel } from '../../lib/layout/levels.ts';
import { explore, thorough } from '../../lib/sim/crash-points.ts';
import { worlds } from '../../lib/sim/crash-worlds.ts';
import { parseCase, runAlone, simulate } from '../../lib/sim/simulate.ts';
import { pickCase } from '../../lib/sim/swarm.ts';
import type { Hunt, LanesHunt } from './mutants.ts';

Error.stackTraceLimit = 5;

/** What is wrong in the first random fabric in which something is. */
async function brokenFabric({ seed, runs }: { readonly seed: number; readonly runs: number }) {
  for await (const { one, outcome } of simulate({ seed, runs, paths: true })) {
    const { failure } = outcome;
    if (failure !== null)
      return `paths, seed ${one.seed}: ${failure.kind}: ${failure.message.split('\n')[0]}`;
  }
  return null;
}

/** What is wrong in the first array in which something is, of those that have lanes. */
async function brokenLanes(of: LanesHunt) {
  const level = parseLevel(of.level);
  const { mode = 'safe' } = of;
  for (let seed = of.seed; seed < of.seed + of.runs; seed += 1) {
    // What these hunt is seldom met, and more seldom by a disk that works again.
    const one = pickCase(seed, { level, mode, refusals: false });
    if (one.config.lanes === undefined) continue;
    const { failure } = await runAlone(one);
    if (failure !== null)
      return `lanes of a ${of.level}, seed ${seed}: ${failure.kind}: ${failure.message.split('\n')[0]}`;
  }
  return null;
}

/** What is wrong in a saved case: it outlives changes that give each seed another history. */
async function brokenCase(name: string): Promise<string | null> {
  const path = join(process.argv[3] ?? '', 'test/sim/cases', `${name}.json`);
  const { failure } = await runAlone(parseCase(readFileSync(path, 'utf8')).case);
  return failure === null ? null : `${name}: ${failure.kind}: ${failure.message.split('\n')[0]}`;
}

for (const hunt of JSON.parse(process.argv[2] ?? '') as readonly Hunt[]) {
  if (!('world' in hunt)) {
    const what =
      'paths' in hunt
        ? await brokenFabric(hunt.paths)
        : 'lanes' in hunt
          ? await brokenLanes(hunt.lanes)
          : await brokenCase(hunt.saved);
    if (what === null) continue;
    process.stdout.write(`${what}\n`);
    process.exitCode = 10;
    break;
  }
  const { world: title, script, options } = hunt;
  const world = worlds.find((each) => each.title === title);
  if (world === undefined) throw new Error(`there is no world ${title}`);
  const few = { nested: [], dataChoices: 64, metadataChoices: 32, violationsMost: 1 };
  const what = await explore(world, { ...thorough, ...few, ...options, script }).then(
    ({ violations }) => violations[0]?.what,
    (error: unknown) => `the explorer cannot go on: ${String(error)}`,
  );
  if (what === undefined) continue;
  process.stdout.write(`${title}, script ${script}: ${what}\n`);
  process.exitCode = 10;
  break;
}
