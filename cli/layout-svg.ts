/**
 * The map of chunks as a picture. A hue is a row of the array's data, so that copies look like what they are copies of;
 * and everything that a hue says is said again without it: parity is hatched (P one way, Q crosswise), copies have
 * dashed borders, and every cell has its label.
 */
import type { LayoutMap, MapCell, MapRow } from '../lib/index.ts';

export interface PictureOptions {
  readonly title: string;
  /** In slot order. */
  readonly members: readonly { readonly name: string; readonly state: string }[];
}

const CELL_WIDTH = 84;
const CELL_HEIGHT = 34;
const GAP = 8;
const LEFT = 88;
const TOP = 108;
const MARGIN = 24;
const BREAK_HEIGHT = 26;
const LEGEND_HEIGHT = 64;
/** Neighbouring rows differ much; after eight rows the hues come again, and by then are far apart. */
const HUES = [212, 28, 145, 330, 52, 265, 178, 0] as const;

/** Without variables: not every program that shows SVG has them. */
const style = `
    text { fill: #1b1f24; font-size: 14px; font-family: "Segoe UI", Helvetica, Arial, sans-serif; }
    .page { fill: #ffffff; }
    .title { font-size: 18px; font-weight: 600; }
    .label, .head { text-anchor: middle; font-weight: 600; }
    .soft, .row { fill: #59636e; font-size: 12px; }
    .row { text-anchor: end; }
    .warn { fill: #b42318; font-size: 12px; }
    .cell { stroke: #59636e; stroke-width: 1; }
    .copy { stroke-dasharray: 5 4; stroke-width: 1.5; }
    .parity { fill: #eef0f2; stroke-width: 1.5; }
    .plate { fill: #eef0f2; }
    .unused { fill: none; stroke-dasharray: 1 4; }
    .hatch { stroke: #59636e; stroke-width: 1.2; opacity: 0.55; fill: none; }
    .away { opacity: 0.45; }
${hueRules(62, 30, 88)}
    @media (prefers-color-scheme: dark) {
      text { fill: #eef1f4; }
      .page { fill: #14171b; }
      .soft, .row { fill: #9aa4af; }
      .warn { fill: #ff8a80; }
      .cell, .hatch { stroke: #9aa4af; }
      .parity, .plate { fill: #262b31; }
${hueRules(42, 28, 27)}
    }`;

function hueRules(saturation: number, ofCopies: number, lightness: number): string {
  return HUES.map(
    (hue, index) =>
      `    .h${index} { fill: hsl(${hue}, ${saturation}%, ${lightness}%); } .h${index}.copy { fill: hsl(${hue}, ${ofCopies}%, ${lightness}%); }`,
  ).join('\n');
}

export function layoutSvg(map: LayoutMap, options: PictureOptions): string {
  const hues = huesOf(map);
  const parts: string[] = [];
  let y = TOP;
  let next = 0;
  for (const row of map.rows) {
    if (row.rowIndex !== next) {
      parts.push(ellipsis(map, y));
      y += BREAK_HEIGHT;
    }
    parts.push(drawRow(row, y, hues, options));
    y += CELL_HEIGHT + GAP;
    next = row.rowIndex + 1;
  }
  if (next !== map.rowCount) {
    parts.push(ellipsis(map, y));
    y += BREAK_HEIGHT;
  }
  const width = Math.max(LEFT + map.memberCount * (CELL_WIDTH + GAP) + MARGIN, 480);
  const height = y + LEGEND_HEIGHT;
  const kind = map.layoutName === null ? map.level : `${map.level} ${map.layoutName}`;
  const what = `${kind}, ${map.memberCount} disks, a row is ${map.unitBytes / 1024} KiB of each`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-labelledby="t d">
  <title id="t">${escaped(`Layout of ${options.title}`)}</title>
  <desc id="d">${escaped(what)}</desc>
  <style>${style}
  </style>
  <defs>
    <pattern id="p" width="8" height="8" patternUnits="userSpaceOnUse"><path class="hatch" d="M-2 10 10 -2M-2 2 2 -2M6 10 10 6"/></pattern>
    <pattern id="q" width="8" height="8" patternUnits="userSpaceOnUse"><path class="hatch" d="M0 0 8 8M8 0 0 8"/></pattern>
  </defs>
  <rect class="page" width="${width}" height="${height}"/>
  <text class="title" x="${MARGIN}" y="34">${escaped(options.title)}</text>
  <text class="soft" x="${MARGIN}" y="54">${escaped(what)}</text>
${options.members.map((member, slot) => header(member, slot)).join('\n')}
${parts.join('\n')}
${legend(map, y)}
</svg>
`;
}

/** By chunk: the number of the hue of the row in which its first copy is. */
function huesOf(map: LayoutMap): (cell: MapCell & { readonly kind: 'data' }, rowIndex: number) => number {
  const rowOfChunk = new Map<number, number>();
  for (const row of map.rows) {
    for (const cell of row.cells) {
      if (cell.kind === 'data' && cell.copy === 0) rowOfChunk.set(cell.chunk, row.rowIndex);
    }
  }
  return (cell, rowIndex) => (rowOfChunk.get(cell.chunk) ?? rowIndex) % HUES.length;
}

function drawRow(
  row: MapRow,
  y: number,
  hueOf: ReturnType<typeof huesOf>,
  { members }: PictureOptions,
): string {
  const cells = row.cells.map((cell, slot) => {
    const away = members[slot]?.state === 'in_sync' ? '' : ' class="away"';
    return `    <g${away}>${drawCell(cell, LEFT + slot * (CELL_WIDTH + GAP), y, () => (cell.kind === 'data' ? hueOf(cell, row.rowIndex) : 0))}</g>`;
  });
  return `  <g>
    <text class="row" x="${LEFT - 14}" y="${y + CELL_HEIGHT / 2 + 4}">row ${row.rowIndex}</text>
${cells.join('\n')}
  </g>`;
}

function drawCell(cell: MapCell, x: number, y: number, hue: () => number): string {
  const box = `x="${x}" y="${y}" width="${CELL_WIDTH}" height="${CELL_HEIGHT}" rx="5"`;
  const label = `<text class="label" x="${x + CELL_WIDTH / 2}" y="${y + CELL_HEIGHT / 2 + 5}">${escaped(cell.label)}</text>`;
  switch (cell.kind) {
    case 'data':
      return `<rect class="cell h${hue()}${cell.copy === 0 ? '' : ' copy'}" ${box}/>${label}`;
    case 'p':
    case 'q': {
      const plate = `<rect class="plate" x="${x + CELL_WIDTH / 2 - 12}" y="${y + 7}" width="24" height="${CELL_HEIGHT - 14}" rx="4"/>`;
      return `<rect class="cell parity" ${box}/><rect ${box} fill="url(#${cell.kind})"/>${plate}${label}`;
    }
    case 'unused':
      return `<rect class="cell unused" ${box}/>`;
    case 'end':
      return '';
  }
}

function header({ name, state }: PictureOptions['members'][number], slot: number): string {
  const x = LEFT + slot * (CELL_WIDTH + GAP) + CELL_WIDTH / 2;
  const short = name.length > 11 ? `${name.slice(0, 10)}…` : name;
  const note =
    state === 'in_sync' ? '' : `<text class="warn head" x="${x}" y="${TOP - 26}">${escaped(state)}</text>`;
  return `  ${note}<text class="head" x="${x}" y="${TOP - 10}">${escaped(short)}</text>`;
}

function ellipsis(map: LayoutMap, y: number): string {
  const x = LEFT + (map.memberCount * (CELL_WIDTH + GAP) - GAP) / 2;
  return `  <text class="soft head" x="${x}" y="${y + 14}">⋮</text>`;
}

function legend(map: LayoutMap, y: number): string {
  const cells = map.rows.flatMap((row) => row.cells);
  const entries: [MapCell, string][] = [[{ kind: 'data', label: 'D5', chunk: 0, copy: 0 }, 'chunk 5']];
  if (cells.some((cell) => cell.kind === 'data' && cell.copy > 0))
    entries.push([{ kind: 'data', label: "D5'", chunk: 0, copy: 1 }, 'its copy']);
  if (cells.some(({ kind }) => kind === 'p')) entries.push([{ kind: 'p', label: 'P' }, 'parity']);
  if (cells.some(({ kind }) => kind === 'q')) entries.push([{ kind: 'q', label: 'Q' }, 'second parity']);
  return entries
    .map(([cell, text], index) => {
      const x = MARGIN + index * 190;
      return `  <g>${drawCell(cell, x, y + 14, () => 0)}<text class="soft" x="${x + CELL_WIDTH + 10}" y="${y + 14 + CELL_HEIGHT / 2 + 4}">${text}</text></g>`;
    })
    .join('\n');
}

function escaped(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}
