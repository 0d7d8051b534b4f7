/**
 * Every world of the explorer of crash points, two at a time, each in a process of its own; the figures are printed. A
 * violation names its world and script: `node dist/test/sim/crash-child.js '{"world":"…","options":{"script":n}}'`
 * finds it again.
 *
 * Each script once, and one life after a crash of it crashed again (`nestedOf`). At one moment there are fewer choices of what survives
 * of superblocks than `thorough` has, and fewer pairs of members that are missing, which takes more than an hour of two cores; but not the
 * same ones at all moments, so that each of them has its turn.
 */
import { spawn } from 'node:child_process';
import { resolve } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import type { Findings } from '../../lib/sim/crash-points.ts';
import { type World, worlds } from '../../lib/sim/crash-worlds.ts';
import type { CrashTask } from './crash-child.ts';

const program = resolve(import.meta.dirname, '../../dist/test/sim/crash-child.js');
/** Distinct states in all. */
const WANTED = 1_000_000;
/** Of these, after a crash in a recovery. */
const WANTED_NESTED = 60_000;
const PROCESSES = 2;
const options = { metadataChoices: 8, metadataChoicesDegraded: 3, pairsInTurn: true, dataChoices: 8192 };

/** What a log holds matters to the life after next (`logged` in md/assemble.ts): two of a small array with one, none of a large one. */
function nestedOf({ shape, members }: World): readonly number[] {
  if (shape.consistencyPolicy !== 'ppl') return [1, 0];
  return members === 3 ? [2, 0] : [0];
}

/** About proportional to the time that it takes. */
function effortOf({ shape, members, dataBytes }: World): number {
  return members * dataBytes * (shape.consistencyPolicy === 'ppl' ? 4 : 1);
}

interface Result {
  readonly findings: Findings | null;
  readonly seconds: number;
  readonly said: string;
}

function run(task: CrashTask): Promise<Result> {
  const start = performance.now();
  return new Promise((done) => {
    const child = spawn(process.execPath, [program, JSON.stringify(task)], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const parts: Buffer[] = [];
    const errors: Buffer[] = [];
    child.stdout.on('data', (part: Buffer) => parts.push(part));
    child.stderr.on('data', (part: Buffer) => errors.push(part));
    child.once('close', () => {
      const said = Buffer.concat(parts).toString();
      const findings = said.startsWith('{') ? (JSON.parse(said) as Findings) : null;
      const seconds = (performance.now() - start) / 1000;
      done({ findings, seconds, said: said + Buffer.concat(errors).toString() });
    });
  });
}

const results = new Map<string, Result>();

beforeAll(async () => {
  // The longest first, so that both processes end at about the same time.
  const waiting = worlds.toSorted((a, b) => effortOf(b) - effortOf(a));
  await Promise.all(
    Array.from({ length: PROCESSES }, async () => {
      for (let world = waiting.shift(); world !== undefined; world = waiting.shift())
        results.set(
          world.title,
          await run({ world: world.title, options: { ...options, nested: nestedOf(world) } }),
        );
    }),
  );
});

describe('at every moment of every script, whatever survived of the unflushed writes', () => {
  test.each(worlds.map(({ title }) => title))('%s starts, holds what it promised, and agrees', (title) => {
    const result = results.get(title);
    expect(result?.findings, result?.said).not.toBeNull();
    expect(result?.findings?.violations).toEqual([]);
  });

  test('a million distinct states were judged, tens of thousands of them after a crash in a recovery', () => {
    const all = [...results.values()].flatMap(({ findings }) => (findings === null ? [] : [findings]));
    const sum = (of: (findings: Findings) => number): number =>
      all.reduce((total, each) => total + of(each), 0);
    const lines = [...results].map(([title, { findings, seconds }]) =>
      findings === null
        ? `${title}: nothing`
        : `${title.padEnd(36)} ${String(findings.distinct).padStart(8)} states, ${String(findings.distinctNested).padStart(7)} of a crash in a recovery; ${String(findings.whole).padStart(7)} recoveries, ${seconds.toFixed(0)} s`,
    );
    const lives = [0, 1, 2].map((depth) => sum((findings) => findings.lives[depth] ?? 0));
    process.stdout.write(
      [
        '',
        ...lines,
        `crash points: ${sum((each) => each.distinct)} distinct states (${sum((each) => each.distinctNested)} after a crash in a recovery) at ${sum((each) => each.moments)} moments of ${lives.join(' + ')} lives`,
        `  ${sum((each) => each.judged)} judgements; ${sum((each) => each.whole)} by the whole recovery, the others by parts, of which ${sum((each) => each.crossChecked)} were checked against the whole`,
        `  dirty and degraded, refused and then forced: ${sum((each) => each.refused)}; sectors forgiven: ${sum((each) => each.forgivenWriteHole)} in the write hole, ${sum((each) => each.forgivenInFlight)} in flight`,
        '',
      ].join('\n'),
    );
    expect(sum((each) => each.distinct)).toBeGreaterThan(WANTED);
    expect(sum((each) => each.distinctNested)).toBeGreaterThan(WANTED_NESTED);
  });
});
