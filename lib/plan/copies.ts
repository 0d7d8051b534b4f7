/**
 * Plans for linear, raid0, raid1 and raid10: every array byte lives on one or more members, unchanged.
 *
 *   read    one good copy of each extent
 *   write   every writable copy
 *   recover read another copy, write it to the member
 *   check   read all good copies, hold them against each other
 *   repair  read the first good copy, write it to all others
 *
 * Which copy is read? Where copies lie side by side (raid1, near) the array is seen as windows of 1 MiB
 * and window w reads good copy w mod count: sequential readers stay on one member long enough to be sequential there,
 * and all members share the work. Three in_sync members of a raid1, 64 KiB read at 1.5 MiB: window 1, so member 1;
 * with member 1 missing, 1 mod 2: member 2. Where copies lie far apart the first ones are striped over all members by
 * themselves, and the others are a long seek away: the first section is preferred.
 *
 * Where a resync has still to pass, copies may differ. There all reads take the first good copy, which is
 * the one a resync keeps.
 */
import { assert } from '../errors.ts';
import type { CopiesExtent, CopiesLayout } from '../layout/layout.ts';
import { MIB } from '../units.ts';
import { append, finish, newDraft, readIntoScratch } from './draft.ts';
import { type CompiledHealth, stateAt, stateEnd } from './health.ts';
import type { Lost, Plan } from './plan.ts';

const WINDOW_BYTES = MIB;

export function readCopies(
  layout: CopiesLayout,
  health: CompiledHealth,
  offsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  const draft = newDraft(lengthBytes);
  const endBytes = offsetBytes + lengthBytes;
  for (let position = offsetBytes; position < endBytes; ) {
    const extent = layout.locate(position);
    const sameBytes = sameForAll(health, extent, Math.min(extent.lengthBytes, endBytes - position));
    const pieceBytes =
      extent.copies.length === 1 ? sameBytes : Math.min(sameBytes, WINDOW_BYTES - (position % WINDOW_BYTES));
    const copy = chooseCopy(layout, health, extent);
    if (copy === null) {
      draft.lost.push({ offsetBytes: position, lengthBytes: pieceBytes });
    } else {
      const { member, offsetBytes: memberOffset } = extent.copies[copy]!;
      append(draft.reads, {
        member,
        offsetBytes: memberOffset,
        lengthBytes: pieceBytes,
        address: position - offsetBytes,
      });
    }
    position += pieceBytes;
  }
  return finish(draft);
}

export function writeCopies(
  layout: CopiesLayout,
  health: CompiledHealth,
  offsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  const draft = newDraft(lengthBytes);
  const endBytes = offsetBytes + lengthBytes;
  for (let position = offsetBytes; position < endBytes; ) {
    const extent = layout.locate(position);
    const pieceBytes = Math.min(extent.lengthBytes, endBytes - position);
    let heldBytes = 0;
    for (const { member, offsetBytes: memberOffset } of extent.copies) {
      const line = health.members[member]!;
      if (!line.writable) continue;
      heldBytes = Math.max(heldBytes, Math.min(pieceBytes, line.trustedBytes - memberOffset));
      draft.writes.push({
        member,
        offsetBytes: memberOffset,
        lengthBytes: pieceBytes,
        address: position - offsetBytes,
      });
    }
    if (heldBytes < pieceBytes) {
      draft.lost.push({ offsetBytes: position + heldBytes, lengthBytes: pieceBytes - heldBytes });
    }
    position += pieceBytes;
  }
  return finish(draft);
}

export function recoverCopies(
  layout: CopiesLayout,
  health: CompiledHealth,
  member: number,
  memberOffsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  assert(health.members[member]!.writable, 'only a member that takes writes is recovered');
  const draft = newDraft(0);
  const endBytes = memberOffsetBytes + lengthBytes;
  for (let position = memberOffsetBytes; position < endBytes; ) {
    const content = layout.contentAt(member, position);
    if (content.arrayOffsetBytes === null) {
      position += content.lengthBytes;
      continue;
    }
    const extent = layout.locate(content.arrayOffsetBytes);
    const pieceBytes = sameForAll(
      health,
      extent,
      Math.min(content.lengthBytes, extent.lengthBytes, endBytes - position),
    );
    const other = extent.copies.find(
      (copy) => copy.member !== member && stateAt(health.members[copy.member]!, copy.offsetBytes) === 'good',
    );
    if (other === undefined) {
      draft.lost.push({ offsetBytes: content.arrayOffsetBytes, lengthBytes: pieceBytes });
    } else {
      const address = readIntoScratch(draft, other.member, other.offsetBytes, pieceBytes);
      draft.writes.push({ member, offsetBytes: position, lengthBytes: pieceBytes, address });
    }
    position += pieceBytes;
  }
  return finish(draft);
}

export function checkCopies(
  layout: CopiesLayout,
  health: CompiledHealth,
  syncOffsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  const draft = newDraft(0);
  const endBytes = syncOffsetBytes + lengthBytes;
  for (let position = syncOffsetBytes; position < endBytes; ) {
    const extent = layout.locate(position);
    const pieceBytes = sameForAll(health, extent, Math.min(extent.lengthBytes, endBytes - position));
    const good = extent.copies.filter(
      (copy) => stateAt(health.members[copy.member]!, copy.offsetBytes) === 'good',
    );
    const copies = good.map(({ member, offsetBytes }) => ({
      member,
      offsetBytes,
      address: readIntoScratch(draft, member, offsetBytes, pieceBytes),
    }));
    if (copies.length > 1) draft.inspect.push({ op: 'compare', copies, lengthBytes: pieceBytes });
    position += pieceBytes;
  }
  return finish(draft);
}

export function repairCopies(
  layout: CopiesLayout,
  health: CompiledHealth,
  syncOffsetBytes: number,
  lengthBytes: number,
): Plan | Lost {
  const draft = newDraft(0);
  const endBytes = syncOffsetBytes + lengthBytes;
  for (let position = syncOffsetBytes; position < endBytes; ) {
    const extent = layout.locate(position);
    const pieceBytes = sameForAll(health, extent, Math.min(extent.lengthBytes, endBytes - position));
    const first = extent.copies.find(
      (copy) => stateAt(health.members[copy.member]!, copy.offsetBytes) === 'good',
    );
    const others = extent.copies.filter((copy) => copy !== first && health.members[copy.member]!.writable);
    if (first === undefined) {
      draft.lost.push({ offsetBytes: position, lengthBytes: pieceBytes });
    } else if (others.length > 0) {
      const address = readIntoScratch(draft, first.member, first.offsetBytes, pieceBytes);
      for (const { member, offsetBytes } of others) {
        draft.writes.push({ member, offsetBytes, lengthBytes: pieceBytes, address });
      }
    }
    position += pieceBytes;
  }
  return finish(draft);
}

/** How far from the start of the extent, at most `lengthBytes`, no copy changes its state and the sync position is not met. */
export function sameForAll(health: CompiledHealth, extent: CopiesExtent, lengthBytes: number): number {
  if (health.usual) return lengthBytes;
  let sameBytes = lengthBytes;
  for (const { member, offsetBytes } of extent.copies) {
    sameBytes = Math.min(sameBytes, stateEnd(health.members[member]!, offsetBytes) - offsetBytes);
  }
  const toUnsynced = health.unsyncedFromBytes - extent.arrayOffsetBytes;
  return toUnsynced > 0 ? Math.min(sameBytes, toUnsynced) : sameBytes;
}

function chooseCopy(layout: CopiesLayout, health: CompiledHealth, extent: CopiesExtent): number | null {
  const { copies, arrayOffsetBytes } = extent;
  const count = copies.length;
  const far = layout.geometry.level === 'raid10' ? layout.geometry.far : 1;
  const window = Math.floor(arrayOffsetBytes / WINDOW_BYTES);
  if (health.usual) return count === 1 ? 0 : (window % (count / far)) * far;

  const good: number[] = [];
  for (let index = 0; index < count; index += 1) {
    const { member, offsetBytes } = copies[index]!;
    if (stateAt(health.members[member]!, offsetBytes) === 'good') good.push(index);
  }
  if (good.length === 0) return null;
  if (arrayOffsetBytes >= health.unsyncedFromBytes) return good[0]!;
  const firstSection = good.filter((index) => index % far === 0);
  const candidates = firstSection.length > 0 ? firstSection : good;
  return candidates[window % candidates.length]!;
}
