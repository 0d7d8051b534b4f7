/**
 * What is lost with a member although the layout could do without it: its bytes are the last ones, because what would
 * make up for them is bad on others. `survives` (layout) asks about members; this asks about places.
 */
import type { Layout } from '../layout/layout.ts';
import { divCeil } from '../units.ts';
import { joinRanges } from './draft.ts';
import { compileHealth } from './health.ts';
import { type ArrayRange, type ErasedRange, type Health, isLost } from './plan.ts';
import { planRead } from './planner.ts';

/** What can be read now, and could not without these members. In order, without overlaps, neighbours joined. */
export function lostWithout(layout: Layout, health: Health, gone: readonly number[]): readonly ArrayRange[] {
  if (health.erased.length === 0) return [];
  const members = health.members.map((member, slot) =>
    gone.includes(slot) ? { state: 'missing' as const } : member,
  );
  const now = compileHealth(layout, health);
  const then = compileHealth(layout, { ...health, members });
  const concerned = joinRanges(health.erased.flatMap((place) => rowsOf(layout, place)));
  return concerned.flatMap(({ offsetBytes, lengthBytes }) => {
    const plan = planRead(layout, then, offsetBytes, lengthBytes);
    if (!isLost(plan)) return [];
    const before = planRead(layout, now, offsetBytes, lengthBytes);
    return isLost(before) ? outside(plan.lost, before.lost) : plan.lost;
  });
}

/** The bytes of the array that this place has a part in. */
export function rowsOf(
  layout: Layout,
  { member, offsetBytes, lengthBytes }: ErasedRange,
): readonly ArrayRange[] {
  const end = Math.min(offsetBytes + lengthBytes, layout.memberBytes[member] ?? 0);
  if (end <= offsetBytes) return [];
  if (layout.kind === 'parity') {
    const rowBytes = layout.chunkBytes * layout.dataCount;
    const first = Math.floor(offsetBytes / layout.chunkBytes);
    const rows = divCeil(end, layout.chunkBytes) - first;
    return [{ offsetBytes: first * rowBytes, lengthBytes: rows * rowBytes }];
  }
  const ranges: ArrayRange[] = [];
  for (let at = offsetBytes; at < end; ) {
    const content = layout.contentAt(member, at);
    const bytes = Math.min(content.lengthBytes, end - at);
    if (content.arrayOffsetBytes !== null)
      ranges.push({ offsetBytes: content.arrayOffsetBytes, lengthBytes: bytes });
    at += bytes;
  }
  return ranges;
}

/** What is left of ranges without others; both in order and without overlaps. */
function outside(ranges: readonly ArrayRange[], others: readonly ArrayRange[]): readonly ArrayRange[] {
  return ranges.flatMap((range) => {
    const end = range.offsetBytes + range.lengthBytes;
    const left: ArrayRange[] = [];
    let at = range.offsetBytes;
    for (const other of [...others, { offsetBytes: end, lengthBytes: 0 }]) {
      const to = Math.min(end, other.offsetBytes);
      if (to > at) left.push({ offsetBytes: at, lengthBytes: to - at });
      at = Math.max(at, other.offsetBytes + other.lengthBytes);
    }
    return left;
  });
}
