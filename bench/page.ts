/**
 * What the HTML page brings with it besides the data: its style, and the script that draws. The script is plain text,
 * for the browser: it finds its data in the page, and draws anew when the page changes its width or its colours.
 */
export const style = `
:root {
  color-scheme: light dark;
  --ground: #f7f8fa; --card: #ffffff; --ink: #1a2230; --quiet: #5c6675; --line: #dde2ea; --grid: #edf0f4;
  --copies: #3b74c4; --parity: #c2601f; --mark: #1a2230; --good: #1c7c4a; --below: #a8410b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #12161d; --card: #1a2029; --ink: #e8ecf2; --quiet: #9aa5b4; --line: #2d3644; --grid: #252d39;
    --copies: #6ea3ea; --parity: #ef9252; --mark: #f5f7fa; --good: #5cc78d; --below: #ff9d66;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1280px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 1.15rem; margin: 40px 0 8px; }
p { margin: 0 0 8px; max-width: 75ch; }
.quiet, figcaption span, caption { color: var(--quiet); }
.quiet { font-size: 0.9rem; }
.busy { color: var(--below); font-size: 0.9rem; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 16px 0; padding: 0; list-style: none; font-size: 0.9rem; }
.key i { display: inline-block; width: 22px; height: 12px; margin-right: 6px; vertical-align: -1px; border-radius: 2px; }
.key .mark { width: 3px; height: 16px; margin: 0 12px 0 8px; vertical-align: -3px; background: var(--mark); border-radius: 0; }
.charts { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
figure { margin: 0; padding: 14px 12px 6px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; min-width: 0; }
figcaption { font-weight: 600; line-height: 1.3; padding: 0 4px; }
figcaption span { display: block; font-weight: 400; font-size: 0.85rem; }
.chart { margin-top: 6px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 10px 12px; font-size: 0.9rem; }
th, td { padding: 6px 12px; text-align: right; vertical-align: top; border-top: 1px solid var(--line); }
thead th { vertical-align: bottom; font-weight: 600; font-size: 0.82rem; line-height: 1.25; }
th:first-child { text-align: left; white-space: nowrap; position: sticky; left: 0; background: var(--card); }
td small { display: block; color: var(--quiet); font-size: 0.82em; white-space: nowrap; }
td small.good { color: var(--good); }
td small.below { color: var(--below); font-weight: 600; }
td.none { color: var(--quiet); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0; font-size: 0.9rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.u-legend { display: none; }
`;

export const script = `
'use strict';
(function () {
  var data = JSON.parse(document.getElementById('data').textContent);
  var charts = [];
  var BAR = 26;

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
  }

  function figures(value) {
    return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
  }

  // Room for the words on the right: the scale goes further than the longest bar.
  function scaleEnd(rows, width) {
    var longest = Math.max.apply(null, rows.map(function (row) { return Math.max(row.value, row.bound); }));
    return longest * width / Math.max(80, width - 128);
  }

  // The share and the bound, over the bars that uPlot has drawn.
  function annotate(rows) {
    return function (u) {
      var ctx = u.ctx, ratio = window.devicePixelRatio || 1;
      ctx.save();
      ctx.textBaseline = 'middle';
      rows.forEach(function (row, index) {
        var y = u.valToPos(index, 'x', true);
        var bound = u.valToPos(row.bound, 'y', true);
        var half = BAR * 0.42 * ratio;
        ctx.fillStyle = colour('mark');
        ctx.fillRect(Math.round(bound - 1.5 * ratio), Math.round(y - half), Math.round(3 * ratio), Math.round(2 * half));
        var end = Math.max(bound, u.valToPos(row.value, 'y', true)) + 9 * ratio;
        ctx.textAlign = 'left';
        ctx.font = '600 ' + 13 * ratio + 'px system-ui, sans-serif';
        ctx.fillStyle = colour('ink');
        ctx.fillText(figures(row.value), end, y);
        var wide = ctx.measureText(figures(row.value)).width;
        ctx.font = 12 * ratio + 'px system-ui, sans-serif';
        ctx.fillStyle = row.reached === false ? colour('below') : colour('quiet');
        ctx.fillText((row.doubtful ? '~' : '') + (row.ratio * 100).toFixed(0) + ' %' + (row.reached === false ? ' \\u25be' : ''), end + wide + 8 * ratio, y);
      });
      ctx.restore();
    };
  }

  function series(rows, family, name) {
    return {
      stroke: colour(name), fill: colour(name), width: 0, points: { show: false },
      paths: uPlot.paths.bars({ size: [0.62, 18], radius: 0.12 }),
      values: rows.map(function (row) { return row.family === family ? row.value : null; })
    };
  }

  function draw(holder) {
    var rows = data[Number(holder.dataset.chart)];
    var width = holder.clientWidth;
    if (width === 0) return;
    holder.textContent = '';
    var both = [series(rows, 'copies', 'copies'), series(rows, 'parity', 'parity')];
    var end = scaleEnd(rows, width - 94);
    var axis = { stroke: colour('quiet'), font: '12px system-ui, sans-serif', ticks: { show: false } };
    var options = {
      width: width,
      height: rows.length * BAR + 34,
      padding: [0, 16, 0, 0],
      cursor: { show: false },
      legend: { show: false },
      scales: {
        x: { time: false, ori: 1, dir: -1, range: function () { return [-0.5, rows.length - 0.5]; } },
        y: { ori: 0, dir: 1, range: function () { return [0, end]; } }
      },
      axes: [
        Object.assign({}, axis, {
          side: 3, size: 78, gap: 8, grid: { show: false }, stroke: colour('ink'), font: '13px system-ui, sans-serif',
          splits: function () { return rows.map(function (_, index) { return index; }); },
          values: function (_, splits) { return splits.map(function (index) { return rows[index].label; }); }
        }),
        Object.assign({}, axis, { side: 2, size: 28, gap: 4, space: 56, grid: { stroke: colour('grid'), width: 1 } })
      ],
      series: [{}].concat(both.map(function (one) {
        return { stroke: one.stroke, fill: one.fill, width: one.width, points: one.points, paths: one.paths };
      })),
      hooks: { draw: [annotate(rows)] }
    };
    var values = [rows.map(function (_, index) { return index; })].concat(both.map(function (one) { return one.values; }));
    charts.push(new uPlot(options, values, holder));
  }

  function drawAll() {
    charts.forEach(function (chart) { chart.destroy(); });
    charts = [];
    document.querySelectorAll('[data-chart]').forEach(draw);
  }

  var width = 0, waiting = 0;
  window.addEventListener('resize', function () {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 100);
  });
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
  drawAll();
})();
`;
