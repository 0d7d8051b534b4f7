import { defineConfig } from 'vitest/config';

/** Where a machine that runs the tests wants the counts, as JSON. */
const results = process.env['RAIDSIM_TEST_RESULTS'];

/**
 * Two projects, one tree. `quick` runs on every `npm run check`; `slow` holds what takes
 * minutes or needs programs from outside, and its files end in `.slow.test.ts`.
 * The build comes first: worker threads load from `dist/` (Node 20 cannot start a worker from a .ts file).
 */
export default defineConfig({
  test: {
    // Left to itself, vitest keeps one core of two free.
    maxWorkers: 2,
    reporters: results === undefined ? ['default'] : ['default', ['json', { outputFile: results }]],
    projects: [
      {
        test: {
          name: 'quick',
          include: ['test/**/*.test.ts'],
          exclude: ['test/**/*.slow.test.ts'],
          testTimeout: 30_000,
        },
      },
      {
        test: {
          name: 'slow',
          include: ['test/**/*.slow.test.ts'],
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
    ],
  },
});
