/**
 * A process that explores the crash points of one world and prints what it found as JSON: the explorer uses one core, and
 * a mutant of the library must be loaded by a process of its own. Run from dist; the task is its only argument. Exit
 * code 1 where something was violated.
 */
import { type ExploreOptions, explore, thorough } from '../../lib/sim/crash-points.ts';
import { worlds } from '../../lib/sim/crash-worlds.ts';

export interface CrashTask {
  readonly world: string;
  readonly options: Partial<ExploreOptions>;
}

// Refusals are expected, thousands of them: nobody reads their stacks.
Error.stackTraceLimit = 0;

const task = JSON.parse(process.argv[2] ?? '') as CrashTask;
const world = worlds.find(({ title }) => title === task.world);
if (world === undefined) throw new Error(`there is no world ${task.world}`);
const findings = await explore(world, { ...thorough, ...task.options });
process.stdout.write(`${JSON.stringify(findings)}\n`);
process.exitCode = findings.violations.length > 0 ? 1 : 0;
