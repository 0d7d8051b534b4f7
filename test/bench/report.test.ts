import { describe, expect, test } from 'vitest';
import { comparisonHtml } from '../../bench/html.ts';
import { BELOW, comparisonText, DOUBTFUL, formatValue, levelTable } from '../../bench/text.ts';
import { benchLevels, works } from '../../bench/works.ts';
import { inventedComparison } from './comparison.ts';

const comparison = inventedComparison();

describe('the table', () => {
  const lines = levelTable(comparison.results).split('\n');

  test('has two lines for each level under three of heading, and fits 80 columns', () => {
    expect(lines).toHaveLength(3 + 2 * benchLevels.length);
    for (const { label } of benchLevels) expect(lines.some((line) => line.startsWith(label))).toBe(true);
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(80);
  });

  test('marks exactly the shares that do not reach their aim', () => {
    const missed = comparison.results.filter(({ reached }) => reached === false);
    expect(missed.length).toBeGreaterThan(0);
    expect(lines.join('').split(BELOW).length - 1).toBe(missed.length);
  });

  test('names every aim, and who misses it', () => {
    const text = comparisonText(comparison);
    for (const work of works.filter(({ aim }) => aim !== null)) expect(text).toContain(`  ${work.name}`);
    expect(text).toContain('≥ 0.85 of bound');
    expect(text).toContain('Invented <CPU>');
  });

  test('says which figures were disturbed by other processes', () => {
    const results = comparison.results.map((row, index) => (index < 3 ? { ...row, others: 0.4 } : row));
    const disturbed = comparisonText({ ...comparison, results });
    expect(comparisonText(comparison)).not.toContain(DOUBTFUL);
    expect(disturbed).toContain(`${DOUBTFUL} 3 of`);
    expect(disturbed.split(DOUBTFUL)).toHaveLength(5);
    expect(comparisonHtml({ ...comparison, results })).toContain(`${DOUBTFUL} 3 of`);
  });
});

test('values are shown with three figures', () => {
  expect([0.567, 5.678, 56.78, 567.8].map(formatValue)).toEqual(['0.57', '5.68', '56.8', '568']);
});

describe('the page', () => {
  const page = comparisonHtml(comparison);

  test('loads nothing: no link, no address, no import', () => {
    expect(page).not.toMatch(/https?:\/\//);
    expect(page).not.toMatch(
      /<link|<iframe|<img|@import|url\(|\bsrc=|\bhref=|import\(|fetch\(|XMLHttpRequest/,
    );
  });

  test('has every level and every work, as a chart and in the table', () => {
    for (const { label } of benchLevels) expect(page).toContain(`<th scope="row">${label}</th>`);
    for (const { name } of works) {
      expect(page).toContain(`<figcaption>${name}<span>`);
      expect(page).toMatch(new RegExp(`role="img" aria-label="${name}: [^"]+of the bound`));
    }
  });

  test('carries its data as JSON that the script can read, with the bound beside each value', () => {
    const json = /<script type="application\/json" id="data">(.*?)<\/script>/s.exec(page)?.[1] ?? '';
    const charts = JSON.parse(json) as { label: string; value: number; bound: number }[][];
    expect(charts).toHaveLength(works.length);
    expect(charts[0]?.map(({ label }) => label)).toEqual(benchLevels.map(({ label }) => label));
    for (const bar of charts.flat()) expect(bar.bound).toBeGreaterThan(0);
  });

  test('is not broken by what a machine calls itself', () => {
    expect(page).toContain('Invented &lt;CPU&gt; &amp; &quot;Co&quot;');
  });

  test('closes each script that it opens, once', () => {
    expect(page.match(/<script/g)).toHaveLength(3);
    expect(page.match(/<\/script>/g)).toHaveLength(3);
  });
});
