/**
 * Health, compiled for looking up: every member is a line of bytes cut at *edges* into stretches of one state.
 *
 *   recovering up to 64K, erased 16K..20K:
 *
 *       edges            16K      20K      64K
 *       states    good  | erased | good   | behind
 *
 *   state      read   write   read once written   because
 *   good       yes    yes     yes                 in_sync, or recovering and below the frontier
 *   erased     no     yes     yes                 a medium error in what would be good
 *   behind     no     yes     no                  recovering and beyond the frontier: recovery has not been there
 *   missing    no     no      no
 *
 * Between two edges nothing changes, so whoever cuts a request at the edges may treat each piece as a whole.
 */
import { assert } from '../errors.ts';
import type { Layout } from '../layout/layout.ts';
import type { ErasedRange, Health, MemberHealth } from './plan.ts';

export type CellState = 'good' | 'erased' | 'behind' | 'missing';

export interface CompiledHealth {
  readonly health: Health;
  /** Every member in sync, nothing erased, no resync due: the one question of the fast paths. */
  readonly usual: boolean;
  readonly members: readonly MemberLine[];
  /** Infinity when no resync is due. */
  readonly unsyncedFromBytes: number;
}

export interface MemberLine {
  /** Increasing; `states[i]` holds below `edges[i]` and from the edge before it, the last state to the end. */
  readonly edges: readonly number[];
  readonly states: readonly CellState[];
  readonly writable: boolean;
  /** Up to here what is written can be read afterwards. */
  readonly trustedBytes: number;
}

const inSync: MemberLine = {
  edges: [],
  states: ['good'],
  writable: true,
  trustedBytes: Number.POSITIVE_INFINITY,
};
const missing: MemberLine = { edges: [], states: ['missing'], writable: false, trustedBytes: 0 };

/** Cheap enough to be done anew whenever a frontier moves. */
export function compileHealth(layout: Layout, health: Health): CompiledHealth {
  assert(health.members.length === layout.memberCount, 'health speaks of every member');
  const erased: ErasedRange[][] = health.members.map(() => []);
  for (const range of health.erased) {
    const list = erased[range.member];
    assert(list !== undefined, 'an erased range names a member');
    assert(range.offsetBytes >= 0 && range.lengthBytes > 0, 'an erased range is a range');
    list.push(range);
  }
  return {
    health,
    usual:
      health.erased.length === 0 &&
      health.unsyncedFromBytes === undefined &&
      health.members.every((member) => member.state === 'in_sync'),
    members: health.members.map((member, index) => compileMember(member, erased[index]!)),
    unsyncedFromBytes: health.unsyncedFromBytes ?? Number.POSITIVE_INFINITY,
  };
}

export function stateAt(line: MemberLine, offsetBytes: number): CellState {
  return line.states[edgesUpTo(line.edges, offsetBytes)]!;
}

/** Where the state that holds at `offsetBytes` ends. */
export function stateEnd(line: MemberLine, offsetBytes: number): number {
  return line.edges[edgesUpTo(line.edges, offsetBytes)] ?? Number.POSITIVE_INFINITY;
}

export function isGoodThroughout(line: MemberLine, offsetBytes: number, lengthBytes: number): boolean {
  if (line.edges.length === 0) return line.states[0] === 'good';
  const index = edgesUpTo(line.edges, offsetBytes);
  return (
    line.states[index] === 'good' &&
    (line.edges[index] ?? Number.POSITIVE_INFINITY) >= offsetBytes + lengthBytes
  );
}

/** Adds to `cuts` the edges strictly inside the range, less `originBytes`. */
export function collectEdges(
  line: MemberLine,
  offsetBytes: number,
  endBytes: number,
  originBytes: number,
  cuts: number[],
): void {
  const { edges } = line;
  for (let index = edgesUpTo(edges, offsetBytes); index < edges.length; index += 1) {
    const edge = edges[index]!;
    if (edge >= endBytes) return;
    cuts.push(edge - originBytes);
  }
}

function edgesUpTo(edges: readonly number[], offsetBytes: number): number {
  let low = 0;
  let high = edges.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (edges[middle]! <= offsetBytes) low = middle + 1;
    else high = middle;
  }
  return low;
}

function compileMember(member: MemberHealth, erased: readonly ErasedRange[]): MemberLine {
  if (member.state === 'missing') return missing;
  if (member.state === 'in_sync' && erased.length === 0) return inSync;

  const trustedBytes = member.state === 'recovering' ? member.recoveredBytes : Number.POSITIVE_INFINITY;
  const edges: number[] = [];
  const states: CellState[] = [];
  let position = 0;
  const extend = (endBytes: number, state: CellState): void => {
    if (endBytes <= position) return;
    if (states.at(-1) === state) edges.pop();
    else states.push(state);
    edges.push(endBytes);
    position = endBytes;
  };
  for (const range of erased.toSorted((a, b) => a.offsetBytes - b.offsetBytes)) {
    extend(Math.min(range.offsetBytes, trustedBytes), 'good');
    extend(Math.min(range.offsetBytes + range.lengthBytes, trustedBytes), 'erased');
  }
  extend(trustedBytes, 'good');
  if (member.state === 'recovering') extend(Number.POSITIVE_INFINITY, 'behind');
  edges.pop();
  return { edges, states, writable: true, trustedBytes };
}
