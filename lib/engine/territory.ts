/**
 * Which stripes a job touches, as a range of array bytes: what a gate keeps in order, and what lanes are dealt out by.
 *
 *   parity   whole rows: any two requests in one row share its parity
 *   copies   the array bytes themselves; a job on a member's range touches the array bytes that it holds there
 */
import type { CopiesLayout, Layout } from '../layout/layout.ts';
import { divCeil, roundDown } from '../units.ts';
import { PAGE_BYTES } from './memory.ts';
import type { Job } from './ring.ts';

export interface Territory {
  readonly from: number;
  readonly to: number;
}

/** Data bytes of a row, or of a chunk where there are no rows; a page where there are no chunks either. */
export function stripeBytes(layout: Layout): number {
  if (layout.kind === 'parity') return layout.chunkBytes * layout.dataCount;
  const { geometry } = layout;
  if (geometry.level === 'raid1') return PAGE_BYTES;
  if (geometry.level === 'linear') return PAGE_BYTES;
  // A chunk on every member: what a large request is best cut into.
  return geometry.chunkBytes * layout.memberCount;
}

export function territoryOf(layout: Layout, job: Job): Territory {
  const { offsetBytes, lengthBytes } = job;
  if (layout.kind === 'copies') {
    if (job.op === 'recover' || job.op === 'replace')
      return held(layout, job.member, offsetBytes, lengthBytes);
    return { from: offsetBytes, to: offsetBytes + lengthBytes };
  }
  const rowBytes = stripeBytes(layout);
  const unit = job.op === 'read' || job.op === 'write' ? rowBytes : layout.chunkBytes;
  return {
    from: Math.floor(offsetBytes / unit) * rowBytes,
    to: divCeil(offsetBytes + lengthBytes, unit) * rowBytes,
  };
}

/** The smallest range of array bytes around all that a range of a member holds. */
function held(layout: CopiesLayout, member: number, offsetBytes: number, lengthBytes: number): Territory {
  let from = Number.POSITIVE_INFINITY;
  let to = 0;
  const end = offsetBytes + lengthBytes;
  for (let at = offsetBytes; at < end; ) {
    const content = layout.contentAt(member, at);
    const count = Math.min(content.lengthBytes, end - at);
    if (content.arrayOffsetBytes !== null) {
      from = Math.min(from, content.arrayOffsetBytes);
      to = Math.max(to, content.arrayOffsetBytes + count);
    }
    at += count;
  }
  return from > to ? { from: 0, to: 0 } : { from, to };
}

/**
 * How far a job on a member's range may go from `offsetBytes` and stay on one lane's territory, at most `limitBytes`.
 * With lanes dealt out by `territoryBytes` of the array, neighbouring chunks of a member may belong to different lanes.
 */
export function memberRun(
  layout: Layout,
  member: number,
  offsetBytes: number,
  limitBytes: number,
  territoryBytes: number,
): number {
  if (layout.kind === 'parity') {
    const rowsBytes = (territoryBytes / stripeBytes(layout)) * layout.chunkBytes;
    return Math.min(limitBytes, roundDown(offsetBytes, rowsBytes) + rowsBytes - offsetBytes);
  }
  const end = Math.min(limitBytes, (layout.memberBytes[member] ?? 0) - offsetBytes);
  let owner: number | null = null;
  let count = 0;
  while (count < end) {
    const content = layout.contentAt(member, offsetBytes + count);
    if (content.arrayOffsetBytes !== null) {
      const here = Math.floor(content.arrayOffsetBytes / territoryBytes);
      if (owner !== null && here !== owner) break;
      owner = here;
      const inside = territoryBytes - (content.arrayOffsetBytes % territoryBytes);
      if (inside < content.lengthBytes) {
        count += inside;
        break;
      }
    }
    count += content.lengthBytes;
  }
  return Math.min(end, count);
}
