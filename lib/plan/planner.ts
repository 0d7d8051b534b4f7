/**
 * The door of this room: one function for each thing an array does. Each returns a plan, or names the array ranges
 * that stand in its way.
 *
 *   reads and writes       by array offset
 *   recover                by member offset: what this member should hold there
 *   check and repair       by *sync position*, which runs from 0 to `syncBytes(layout)`: the unit in which redundancy
 *                          is walked, as in md. Member bytes for raid1, 4, 5 and 6 (all members keep the same row
 *                          at the same place), array bytes for raid10 (they do not). 0 without redundancy.
 */
import { assert } from '../errors.ts';
import type { Layout } from '../layout/layout.ts';
import { checkCopies, readCopies, recoverCopies, repairCopies, writeCopies } from './copies.ts';
import type { CompiledHealth } from './health.ts';
import { checkParity, readParity, recoverParity, repairParity, writeParity } from './parity.ts';
import { isLost, type Lost, type Plan } from './plan.ts';

const nothing: Plan = { requestBytes: 0, scratchBytes: 0, reads: [], compute: [], inspect: [], writes: [] };

/** How far check, repair and resync go. */
export function syncBytes(layout: Layout): number {
  if (layout.kind === 'parity') return layout.rowCount * layout.chunkBytes;
  return layout.copyCount === 1 ? 0 : layout.arrayBytes;
}

/** Fills the request from the array. */
export function planRead(
  layout: Layout,
  health: CompiledHealth,
  offsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  assertInside(offsetBytes, lengthBytes, layout.arrayBytes);
  return layout.kind === 'parity'
    ? readParity(layout, health, offsetBytes, lengthBytes)
    : readCopies(layout, health, offsetBytes, lengthBytes);
}

/**
 * Puts the request into the array. The request itself is only read. `isLogged`: the array keeps a partial parity log, and
 * the plan says what goes there first; the request is then whole sectors.
 */
export function planWrite(
  layout: Layout,
  health: CompiledHealth,
  offsetBytes: number,
  lengthBytes: number,
  isLogged = false,
): Plan | Lost {
  assertInside(offsetBytes, lengthBytes, layout.arrayBytes);
  return layout.kind === 'parity'
    ? writeParity(layout, health, offsetBytes, lengthBytes, isLogged)
    : writeCopies(layout, health, offsetBytes, lengthBytes);
}

/**
 * Recomputes what `member` holds in this range and writes it there, never relying on what it holds now: rebuilds
 * a recovering member, and rewrites a bad area of an in_sync one.
 */
export function planRecover(
  layout: Layout,
  health: CompiledHealth,
  member: number,
  memberOffsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  assertInside(memberOffsetBytes, lengthBytes, layout.memberBytes[member] ?? 0);
  return layout.kind === 'parity'
    ? recoverParity(layout, health, member, memberOffsetBytes, lengthBytes)
    : recoverCopies(layout, health, member, memberOffsetBytes, lengthBytes);
}

/**
 * Reads everything readable and inspects what there is redundancy left to inspect. Never refused: a range that has
 * lost too much is only looked at. Writes nothing. Empty where there is no redundancy, as is a repair.
 */
export function planCheck(
  layout: Layout,
  health: CompiledHealth,
  syncOffsetBytes: number,
  lengthBytes: number,
): Plan {
  if (syncBytes(layout) === 0) return nothing;
  assertInside(syncOffsetBytes, lengthBytes, syncBytes(layout));
  const plan =
    layout.kind === 'parity'
      ? checkParity(layout, health, syncOffsetBytes, lengthBytes)
      : checkCopies(layout, health, syncOffsetBytes, lengthBytes);
  assert(!isLost(plan), 'a check is never refused');
  return plan;
}

/** How much of a range a check compares; the rest has lost so much that nothing is left to compare it with. */
export function comparedBytes(
  layout: Layout,
  health: CompiledHealth,
  syncOffsetBytes: number,
  lengthBytes: number,
): number {
  if (health.usual) return syncBytes(layout) === 0 ? 0 : lengthBytes;
  const { inspect } = planCheck(layout, health, syncOffsetBytes, lengthBytes);
  return inspect.reduce((sum, step) => sum + step.lengthBytes, 0);
}

/**
 * Makes redundancy agree with the data: parity is recomputed, other copies are overwritten from the first good one.
 * Every writable cell in the range is right afterwards. Unconditional: who writes only on a mismatch
 * checks first and repairs what differed.
 */
export function planRepair(
  layout: Layout,
  health: CompiledHealth,
  syncOffsetBytes: number,
  lengthBytes: number,
  isLogged = false,
): Plan | Lost {
  if (syncBytes(layout) === 0) return nothing;
  assertInside(syncOffsetBytes, lengthBytes, syncBytes(layout));
  return layout.kind === 'parity'
    ? repairParity(layout, health, syncOffsetBytes, lengthBytes, isLogged)
    : repairCopies(layout, health, syncOffsetBytes, lengthBytes);
}

function assertInside(offsetBytes: number, lengthBytes: number, endBytes: number): void {
  assert(offsetBytes >= 0 && lengthBytes > 0 && offsetBytes + lengthBytes <= endBytes, 'the range is inside');
}
