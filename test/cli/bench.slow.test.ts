import { mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { remove } from 'fs-extra/esm';
import { afterAll, expect, test } from 'vitest';
import type { Comparison } from '../../bench/compare.ts';
import { benchLevels, works } from '../../bench/works.ts';
import { raidsim } from './raidsim.ts';

const folder = mkdtempSync(join(tmpdir(), 'raidsim-bench-test-'));
afterAll(() => remove(folder));

test('bench --quick --json - measures every level at every work beside its bound, and cleans up', async () => {
  const html = join(folder, 'levels.html');
  const { code, stdout } = await raidsim([
    'bench',
    '--quick',
    '--json',
    '-',
    '--html',
    html,
    '--dir',
    folder,
  ]);
  expect(code).toBe(0);
  const comparison = JSON.parse(stdout) as Comparison;
  expect(new Set(comparison.results.map(({ label }) => label))).toEqual(
    new Set(benchLevels.map(({ label }) => label)),
  );
  expect(new Set(comparison.results.map(({ work }) => work))).toEqual(new Set(works.map(({ name }) => name)));
  for (const row of [...comparison.results, ...comparison.drivers]) {
    expect(row.value).toBeGreaterThan(0);
    expect(row.bound).toBeGreaterThan(0);
    expect(row.ratio).toBeGreaterThan(0);
    expect(row.ratioLow).toBeLessThanOrEqual(row.ratio);
    expect(row.ratioHigh).toBeGreaterThanOrEqual(row.ratio);
    expect(row.pairs).toBeGreaterThanOrEqual(3);
    expect(row.others).toBeLessThanOrEqual(1);
  }
  expect(comparison.drivers.map(({ driver }) => driver)).toEqual(
    ['lanes', 'inline', 'event-loop'].flatMap((driver) => [driver, driver, driver]),
  );
  expect(comparison.kernels.length).toBeGreaterThan(0);
  expect(comparison.machine.directory).toBe(folder);
  expect(readFileSync(html, 'utf8')).toContain('<figure>');
  expect(readdirSync(folder)).toEqual(['levels.html']);
});

test('bench compares only what it was asked for, with as many members', async () => {
  const { code, stdout } = await raidsim([
    'bench',
    '--quick',
    '-l',
    'mirror',
    'raid10-f2',
    '-n',
    '3',
    '-c',
    '16K',
    '--json',
    '-',
  ]);
  expect(code).toBe(0);
  const { results, setting } = JSON.parse(stdout) as Comparison;
  expect([...new Set(results.map(({ label }) => label))]).toEqual(['raid1', 'raid10 f2']);
  expect(setting).toMatchObject({ members: 3, chunkBytes: 16384 });
});
