import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Where a machine that runs the tests wants the counts, as JSON. */
const results = process.env['RAIDSIM_TEST_RESULTS'];

/** What takes longer than a minute of one core, the longest first. */
const longest = [
  'sim/crash-points',
  'linux/interop-states',
  'linux/interop',
  'conformance/arrays',
  'sim/mutants',
  'linux/md',
  'sim/simulate',
  'crash/kill',
  'array/model',
  'cli/snapshot',
  'backup/kill',
  'engine/run',
  'linux/ppl',
  'multipath/serving',
  'array/paths',
  'snapshot/crash',
  'cli/bench',
].map((name) => `/test/${name}.slow.test.ts`);

/** A long file that begins late goes on alone. A fresh clone knows no durations, and length in lines says nothing of them. */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const rankOf = ({ moduleId }: TestSpecification): number => {
      const rank = longest.findIndex((end) => moduleId.endsWith(end));
      return rank < 0 ? longest.length : rank;
    };
    return (await super.sort(files)).toSorted((a, b) => rankOf(a) - rankOf(b));
  }
}

/**
 * Two projects, one tree. `quick` runs on every `npm run check`; `slow` holds what takes
 * minutes or needs programs from outside, and its files end in `.slow.test.ts`.
 * The build comes first: worker threads load from `dist/` (Node 20 cannot start a worker from a .ts file).
 */
export default defineConfig({
  test: {
    // Left to itself, vitest keeps one core of two free.
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    reporters: results === undefined ? ['default'] : ['default', ['json', { outputFile: results }]],
    projects: [
      {
        test: {
          name: 'quick',
          include: ['test/**/*.test.ts'],
          exclude: ['test/**/*.slow.test.ts'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          name: 'slow',
          include: ['test/**/*.slow.test.ts'],
          testTimeout: 600_000,
          // Before the tests of a file all that they look at is done: hundreds of boots, kills, hunts, crash points.
          hookTimeout: 3_600_000,
        },
      },
    ],
  },
});
