/**
 * A plan in words: every step on a line, cells called as in the layout drawings, so that a reader can follow it on paper.
 * D5 is array chunk 5, P1 and Q1 are the parities of row 1, `D5+2K` begins 2 KiB into the chunk; + between cells is
 * XOR. Writing 4 KiB at 256K to a raid5 of 5 members with 64K chunks:
 *
 *   1  read     disk4 +64K 4K      old D4
 *   2  read     disk3 +64K 4K      old P1
 *   3  compute  new P1 = old P1 + old D4 + new D4
 *   4  write    disk4 +64K 4K      new D4
 *   5  write    disk3 +64K 4K      new P1
 *   2 reads (8K), 2 writes (8K), 8K of memory beside the request
 */
import { unreachable } from '../errors.ts';
import type { Layout, ParityLayout, Row } from '../layout/layout.ts';
import { type Compute, type Inspect, isLost, type Lost, type Plan, type Transfer } from './plan.ts';

export interface ExplainOptions {
  /** What members are called; `disk0`, `disk1`, ... when absent. */
  readonly memberName?: (member: number) => string;
}

export function explain(answer: Plan | Lost, layout: Layout, options: ExplainOptions = {}): string {
  if (isLost(answer)) {
    return answer.lost
      .map(
        ({ offsetBytes, lengthBytes }) =>
          `refused: array bytes ${sizeText(offsetBytes)} to ${sizeText(offsetBytes + lengthBytes)} have lost more than redundancy covers`,
      )
      .join('\n');
  }
  const memberName = options.memberName ?? ((member) => `disk${member}`);
  const names = nameCells(answer, layout);
  const steps = [
    ...answer.reads.map((read) => `read     ${transferText(read, memberName)}${names.read(read)}`),
    ...answer.compute.flatMap((step) => computeTexts(step, names).map((text) => `compute  ${text}`)),
    ...answer.inspect.map((step) => inspectText(step, names, memberName)),
    ...answer.writes.map((write) => `write    ${transferText(write, memberName)}${names.written(write)}`),
  ];
  const width = String(steps.length).length;
  const lines = steps.map((step, index) => `${String(index + 1).padStart(width)}  ${step}`);
  return [...lines, sumText(answer)].join('\n');
}

/** 65536 is `64K`, 66048 is `66048`: exact, or left in bytes. */
function sizeText(bytes: number): string {
  let value = bytes;
  let index = 0;
  while (value !== 0 && value % 1024 === 0 && index < 4) {
    value /= 1024;
    index += 1;
  }
  return `${value}${['', 'K', 'M', 'G', 'T'][index]}`;
}

function transferText(transfer: Transfer, memberName: (member: number) => string): string {
  const { member, offsetBytes, lengthBytes } = transfer;
  return `${memberName(member)} +${sizeText(offsetBytes)} ${sizeText(lengthBytes)}`.padEnd(19);
}

function sumText(plan: Plan): string {
  const sum = (what: string, transfers: readonly Transfer[]): string => {
    const bytes = transfers.reduce((total, { lengthBytes }) => total + lengthBytes, 0);
    return `${transfers.length} ${what}${transfers.length === 1 ? '' : 's'} (${sizeText(bytes)})`;
  };
  const parts = [sum('read', plan.reads), sum('write', plan.writes)];
  if (plan.scratchBytes > 0) parts.push(`${sizeText(plan.scratchBytes)} of memory beside the request`);
  return parts.join(', ');
}

interface Names {
  read(transfer: Transfer): string;
  written(transfer: Transfer): string;
  /** Names for the operands of one step, all in one row: by place in Q order, and the parities. */
  operands(step: RowStep): Operands;
}

interface Operands {
  /** Null where Q order keeps a place for no chunk. */
  data(place: number): string | null;
  readonly p: string;
  readonly q: string;
  readonly newP: string;
  readonly newQ: string;
}

type RowStep =
  | (Compute & { readonly op: 'syndrome' | 'update' | 'recover' })
  | (Inspect & { readonly op: 'verify' });

/**
 * Memory has no names of its own; an address is called after the place it was read from or will be written to. `old`
 * and `new` are said where a request changes a cell.
 */
function nameCells(plan: Plan, layout: Layout): Names {
  const isWrite = plan.requestBytes > 0 && plan.writes.length > 0;
  const places = new Map<number, Transfer>();
  for (const transfer of [...plan.writes, ...plan.reads]) places.set(transfer.address, transfer);
  const written = new Set(plan.writes.map(({ member, offsetBytes }) => `${member} ${offsetBytes}`));
  const replaced = (member: number, offsetBytes: number): string =>
    isWrite && written.has(`${member} ${offsetBytes}`) ? 'old ' : '';
  const fresh = isWrite ? 'new ' : '';

  return {
    read: ({ member, offsetBytes }) =>
      `${replaced(member, offsetBytes)}${cellName(layout, member, offsetBytes)}`,
    written: ({ member, offsetBytes }) => `${fresh}${cellName(layout, member, offsetBytes)}`,
    operands: (step) => {
      const addresses = addressesOf(step);
      const place = addresses
        .map((address) => (address === null ? undefined : places.get(address)))
        .find(Boolean);
      if (layout.kind === 'copies' || place === undefined) return anonymous;
      const { offsetBytes } = place;
      const row = layout.row(Math.floor(offsetBytes / layout.chunkBytes));
      const of = (member: number | null): string =>
        member === null ? 'Q' : cellName(layout, member, offsetBytes);
      const age = (member: number | null): string => (member === null ? '' : replaced(member, offsetBytes));
      return {
        data: (at) => {
          const member = dataMember(row, at);
          if (member === null) return null;
          const address = addresses[at] ?? null;
          const isNew = isWrite && address !== null && address < plan.requestBytes;
          return `${isNew ? 'new ' : age(member)}${of(member)}`;
        },
        p: `${age(row.p)}${of(row.p)}`,
        q: `${age(row.q)}${of(row.q)}`,
        newP: `${fresh}${of(row.p)}`,
        newQ: `${fresh}${of(row.q)}`,
      };
    },
  };
}

const anonymous: Operands = { data: (place) => `D[${place}]`, p: 'P', q: 'Q', newP: 'P', newQ: 'Q' };

/** Data by place in Q order first, so that an index into it is a place. */
function addressesOf(step: RowStep): readonly (number | null)[] {
  if (step.op !== 'update') return [...step.data, step.p, step.q];
  const data = new Array<number | null>(step.index + 1).fill(null);
  data[step.index] = step.newData;
  return [...data, step.oldData, step.p, step.q];
}

function dataMember(row: Row, place: number): number | null {
  const index = row.qOrder[place];
  return index === null || index === undefined ? null : row.data[index]!;
}

function cellName(layout: Layout, member: number, offsetBytes: number): string {
  if (layout.kind === 'parity') return parityCellName(layout, member, offsetBytes);
  const { arrayOffsetBytes } = layout.contentAt(member, offsetBytes);
  if (arrayOffsetBytes === null) return 'nothing';
  const { geometry } = layout;
  if (geometry.level === 'raid1' || geometry.level === 'linear')
    return `array bytes at ${sizeText(arrayOffsetBytes)}`;
  return withColumn(
    `D${Math.floor(arrayOffsetBytes / geometry.chunkBytes)}`,
    arrayOffsetBytes % geometry.chunkBytes,
  );
}

function parityCellName(layout: ParityLayout, member: number, offsetBytes: number): string {
  const rowIndex = Math.floor(offsetBytes / layout.chunkBytes);
  const cell = layout.cellAt(member, rowIndex);
  const name =
    cell.kind === 'data'
      ? `D${rowIndex * layout.dataCount + cell.index}`
      : `${cell.kind === 'p' ? 'P' : 'Q'}${rowIndex}`;
  return withColumn(name, offsetBytes % layout.chunkBytes);
}

function withColumn(name: string, columnBytes: number): string {
  return columnBytes === 0 ? name : `${name}+${sizeText(columnBytes)}`;
}

/** One line for each cell that is computed. */
function computeTexts(step: Compute, names: Names): string[] {
  switch (step.op) {
    case 'copy':
      return [`copy ${sizeText(step.lengthBytes)} in memory`];
    case 'zero':
      return [`zero ${sizeText(step.lengthBytes)} of memory`];
    case 'update': {
      const { data, p, q, newP, newQ } = names.operands(step);
      const cell = String(data(step.index));
      const change = `${cell.replace(/^new /, 'old ')} + ${cell}`;
      const texts: string[] = [];
      if (step.p !== null) texts.push(`${newP} = ${p} + ${change}`);
      if (step.q !== null) texts.push(`${newQ} = ${q} + 2^${step.index} (${change})`);
      return texts;
    }
    case 'syndrome': {
      const { newP, newQ } = names.operands(step);
      const texts: string[] = [];
      if (step.p !== null) texts.push(`${newP} = ${sumOfData(step, names, false)}`);
      if (step.q !== null) texts.push(`${newQ} = ${sumOfData(step, names, true)}`);
      return texts;
    }
    case 'recover':
      return recoverTexts(step, names);
    default:
      return unreachable(step);
  }
}

function recoverTexts(step: Compute & { readonly op: 'recover' }, names: Names): string[] {
  const { data, p, q } = names.operands(step);
  const { erasure } = step;
  switch (erasure.kind) {
    case 'D':
      return [`${data(erasure.x)} = ${p} + ${sumOfData(step, names, false, [erasure.x])}`];
    case 'DQ':
      return [
        `${data(erasure.x)} = ${p} + ${sumOfData(step, names, false, [erasure.x])}`,
        ...(step.q === null ? [] : [`${q} = ${sumOfData(step, names, true)}`]),
      ];
    case 'DP':
      return [
        `${data(erasure.x)} from ${q} = ${sumOfData(step, names, true)}`,
        ...(step.p === null ? [] : [`${p} = ${sumOfData(step, names, false)}`]),
      ];
    case 'DD': {
      const both = `${data(erasure.x)} and ${data(erasure.y)}`;
      return [
        `${both} from ${p} = ${sumOfData(step, names, false)}`,
        `${' '.repeat(both.length)}  and ${q} = ${sumOfData(step, names, true)}`,
      ];
    }
    case 'P':
      return [`${p} = ${sumOfData(step, names, false)}`];
    case 'Q':
      return [`${q} = ${sumOfData(step, names, true)}`];
    case 'PQ':
      return [`${p} = ${sumOfData(step, names, false)}`, `${q} = ${sumOfData(step, names, true)}`];
    default:
      return unreachable(erasure);
  }
}

function sumOfData(
  step: RowStep & { readonly data: readonly (number | null)[] },
  names: Names,
  weighted: boolean,
  except: readonly number[] = [],
): string {
  const { data } = names.operands(step);
  const terms: string[] = [];
  step.data.forEach((_, place) => {
    const name = data(place);
    if (name === null || except.includes(place)) return;
    terms.push(weighted ? `2^${place} ${name}` : name);
  });
  return terms.length === 0 ? '0' : terms.join(' + ');
}

function inspectText(step: Inspect, names: Names, memberName: (member: number) => string): string {
  if (step.op === 'compare') {
    const places = step.copies.map(
      ({ member, offsetBytes }) => `${memberName(member)} +${sizeText(offsetBytes)}`,
    );
    return `compare  ${places.join(' with ')}`;
  }
  const { p, q } = names.operands(step);
  const claims = [`${p} = ${sumOfData(step, names, false)}`];
  if (step.q !== null) claims.push(`${q} = ${sumOfData(step, names, true)}`);
  return `verify   ${claims.join(', ')}`;
}
