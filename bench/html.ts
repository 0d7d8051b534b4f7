/**
 * A comparison as one page that needs nothing else: no network, no other file. A chart for each work (a bar for each level, a
 * mark where the bound is), then the same figures as tables, which are all there is where scripts do not run.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { levels } from '../lib/layout/levels.ts';
import { formatSize } from '../lib/units.ts';
import { type Comparison, DISTURBED, type Result } from './compare.ts';
import { script, style } from './page.ts';
import { aimText, BELOW, DOUBTFUL, disturbanceText, formatValue } from './text.ts';
import { works } from './works.ts';

/** One bar, as the page's script wants it. */
interface Bar {
  readonly label: string;
  readonly family: 'copies' | 'parity';
  readonly value: number;
  readonly bound: number;
  readonly ratio: number;
  readonly reached: boolean | null;
  readonly doubtful: boolean;
}

export function comparisonHtml(comparison: Comparison): string {
  const { results, machine, setting } = comparison;
  const plot = plotFiles();
  const measured = works.filter((work) => results.some((result) => result.work === work.name));
  const perWork = measured.map((work) => results.filter((result) => result.work === work.name));
  const bars = perWork.map((rows) => rows.map(barOf));
  const disturbed = disturbanceText([...results, ...comparison.drivers]);
  const lanes = setting.lanes === 1 ? '1 lane' : `${setting.lanes} lanes`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>raidsim bench: RAID levels compared</title>
<style>${plot.css}${style}</style>
<noscript><style>.charts, .key { display: none }</style></noscript>
</head>
<body>
<main>
<h1>RAID levels compared</h1>
<p>${escapeHtml(`${setting.members} members of ${formatSize(setting.memberBytes)} with ${formatSize(setting.chunkBytes)} chunks, on ${machine.cpu}, ${machine.cores} cores.`)}</p>
<p class="quiet">The mark is the bound: the same reads and writes of the members, without any RAID, measured in turns with
the array in the same run. The percentage says how much of it the array reaches.</p>
${disturbed === null ? '' : `<p class="busy">${escapeHtml(disturbed)}</p>`}
<ul class="key">
<li><i style="background:var(--copies)"></i>striping and copies</li>
<li><i style="background:var(--parity)"></i>parity</li>
<li><i class="mark"></i>the bound</li>
<li>${BELOW} does not reach its aim</li>
</ul>
<div class="charts">
${perWork.map((rows, index) => figure(rows, index)).join('\n')}
</div>
<h2>All figures</h2>
${levelTables(
  measured.map(({ name }) => name),
  results,
)}
${driverSection(comparison.drivers)}
${kernelSection(comparison)}
<h2>The machine</h2>
<dl>
${facts([
  ['processor', `${machine.cpu}, ${machine.cores} cores`],
  ['memory', formatSize(machine.memoryBytes)],
  ['system', `${machine.kernel} (${machine.platform})`],
  ['Node', machine.node],
  ['members on', `${machine.directory} (${machine.fileSystem})`],
  ['driver', `${setting.driver}, ${lanes}`],
  ['parity kernel', setting.kernel],
  ['load', `${machine.loadBefore.toFixed(2)} before, ${machine.loadAfter.toFixed(2)} after`],
  [
    'took',
    `${setting.seconds.toFixed(0)} s${setting.quick ? ', quick: few repetitions' : ''}${comparison.interrupted ? ', interrupted' : ''}`,
  ],
])}
</dl>
</main>
<script type="application/json" id="data">${JSON.stringify(bars).replaceAll('<', '\\u003c')}</script>
<script>${plot.js}</script>
<script>${script}</script>
</body>
</html>
`;
}

/** The comments with the project's address are dropped: nothing in the page is a link to anywhere. */
function plotFiles(): { readonly js: string; readonly css: string } {
  const folder = dirname(createRequire(import.meta.url).resolve('uplot'));
  const read = (name: string): string => readFileSync(join(folder, name), 'utf8');
  const js = read('uPlot.iife.min.js').replace(/^\/\*![^*]*\*\//, '/*! uPlot, MIT licence */');
  return { js: js.replaceAll('</script', '<\\/script'), css: read('uPlot.min.css') };
}

function barOf({ label, level, value, bound, ratio, reached, others }: Result): Bar {
  const { family } = levels[level];
  return { label, family, value, bound, ratio, reached, doubtful: others > DISTURBED };
}

function figure(rows: readonly Result[], index: number): string {
  const [first] = rows;
  if (first === undefined) return '';
  const better = first.unit === 'µs' ? '; less is better' : '';
  const aim = first.aim === null ? '' : `; aim ${aimText(first.aim, first.unit)}`;
  const depth = first.depth === 1 ? '' : `, depth ${first.depth}`;
  const said = rows.map(
    (row) => `${row.label} ${formatValue(row.value)} ${row.unit}, ${percent(row)} of the bound`,
  );
  return `<figure>
<figcaption>${escapeHtml(first.work)}<span>${escapeHtml(`${unitInWords(first)}${depth}${better}${aim}`)}</span></figcaption>
<div class="chart" role="img" aria-label="${escapeHtml(`${first.work}: ${said.join('; ')}`)}" data-chart="${index}" style="min-height:${rows.length * 26 + 34}px"></div>
</figure>`;
}

function unitInWords({ unit, work }: Result): string {
  if (unit === 'k/s') return 'thousands a second';
  if (unit === 'µs') return 'µs a request';
  if (work === 'check') return 'GB/s of all members';
  return work === 'recover' ? 'GB/s of the new member' : 'GB/s';
}

function levelTables(names: readonly string[], results: readonly Result[]): string {
  const labels = [...new Set(results.map(({ label }) => label))];
  const head = names.map((name) => {
    const unit = results.find(({ work }) => work === name)?.unit ?? '';
    return `<th scope="col">${escapeHtml(name)}<br>${escapeHtml(unit)}</th>`;
  });
  const rows = labels.map((label) => {
    const cells = names.map((name) =>
      cellOf(results.find((row) => row.label === label && row.work === name)),
    );
    return `<tr><th scope="row">${escapeHtml(label)}</th>${cells.join('')}</tr>`;
  });
  return tableOf(
    'Below each figure: the share of the bound, and the bound itself.',
    `<th scope="col">level</th>${head.join('')}`,
    rows,
  );
}

function driverSection(drivers: readonly Result[]): string {
  if (drivers.length === 0) return '';
  const depths = [...new Set(drivers.map(({ depth }) => depth))];
  const kinds = [...new Set(drivers.map(({ driver }) => driver))];
  const head = depths.map((depth) => {
    const unit = drivers.find((row) => row.depth === depth)?.unit ?? '';
    return `<th scope="col">depth ${depth}<br>${escapeHtml(unit)}</th>`;
  });
  const rows = kinds.map((kind) => {
    const cells = depths.map((depth) =>
      cellOf(drivers.find((row) => row.driver === kind && row.depth === depth)),
    );
    return `<tr><th scope="row">${escapeHtml(kind)}</th>${cells.join('')}</tr>`;
  });
  return `<h2>Promises and messages</h2>
${tableOf(`Random 4 KiB reads of a ${drivers[0]?.label ?? ''} by each driver: what it costs to cross threads, or not to.`, `<th scope="col">driver</th>${head.join('')}`, rows)}`;
}

function kernelSection({ kernels, setting }: Comparison): string {
  if (kernels.length === 0) return '';
  const lengths = [...new Set(kernels.map(({ lengthBytes }) => lengthBytes))];
  const keys = [...new Set(kernels.map(({ kernel, operation }) => `${kernel} ${operation}`))];
  const head = lengths.map((length) => `<th scope="col">${formatSize(length)} chunks<br>GB/s</th>`);
  const rows = keys.map((key) => {
    const cells = lengths.map((length) => {
      const row = kernels.find(
        (each) => `${each.kernel} ${each.operation}` === key && each.lengthBytes === length,
      );
      if (row === undefined) return '<td class="none">–</td>';
      return `<td>${formatValue(row.gigabytesPerSecond)}<small>${(row.ratio * 100).toFixed(0)} % of ${formatValue(row.copyGigabytesPerSecond)}</small></td>`;
    });
    return `<tr><th scope="row">${escapeHtml(key)}</th>${cells.join('')}</tr>`;
  });
  return `<h2>Parity kernels</h2>
${tableOf(`Bytes moved, beside a plain copy that moves as many. Active here: ${setting.kernel}.`, `<th scope="col">kernel</th>${head.join('')}`, rows)}`;
}

function cellOf(row: Result | undefined): string {
  if (row === undefined) return '<td class="none">–</td>';
  const judged = row.aim?.measure === 'ratio' || row.reached === false;
  const className = judged ? (row.reached === false ? ' class="below"' : ' class="good"') : '';
  const mark = row.reached === false ? ` ${BELOW}` : '';
  return `<td>${formatValue(row.value)}<small${className}>${percent(row)}${mark} of ${formatValue(row.bound)}</small></td>`;
}

function tableOf(caption: string, head: string, rows: readonly string[]): string {
  return `<div class="scroll" tabindex="0" role="region" aria-label="${escapeHtml(caption)}"><table><caption>${escapeHtml(caption)}</caption>
<thead><tr>${head}</tr></thead>
<tbody>
${rows.join('\n')}
</tbody></table></div>`;
}

function facts(pairs: readonly (readonly [string, string])[]): string {
  return pairs.map(([name, text]) => `<dt>${escapeHtml(name)}</dt><dd>${escapeHtml(text)}</dd>`).join('\n');
}

function percent({ ratio, others }: Result): string {
  return `${others > DISTURBED ? DOUBTFUL : ''}${(ratio * 100).toFixed(0)} %`;
}

function escapeHtml(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
