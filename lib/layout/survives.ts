/**
 * Which members an array can miss and still hold every byte. A question to the layout alone: whether each array byte
 * is still on some member, or can be computed from what is.
 *
 * For parity levels it is a count. For copies it depends on *which* members: a raid10 of 4 near=2 survives the loss of
 * members 0 and 2 but not of 0 and 1. Placement repeats, so it is enough to look at one period of chunks.
 */
import type { Layout } from './layout.ts';

/** True while no array byte is lost when exactly these members are missing. */
export function survives(layout: Layout, isMissing: (member: number) => boolean): boolean {
  let missingCount = 0;
  for (let member = 0; member < layout.memberCount; member += 1) {
    if (isMissing(member)) missingCount += 1;
  }
  if (missingCount === 0) return true;
  if (layout.kind === 'parity') return missingCount <= layout.parityCount;
  if (missingCount < layout.copyCount) return true;
  return copySets(layout).every((members) => members.some((member) => !isMissing(member)));
}

const setsOfLayout = new WeakMap<Layout, readonly (readonly number[])[]>();

/** The distinct sets of members that hold the same bytes. */
function copySets(layout: Layout & { kind: 'copies' }): readonly (readonly number[])[] {
  const known = setsOfLayout.get(layout);
  if (known !== undefined) return known;
  const sets = new Map<string, readonly number[]>();
  // Linear and raid0 have one copy: every member that holds a byte is a set of its own. For raid1 the first extent is
  // all there is. In raid10 chunk k and chunk k + memberCount sit on the same members: (k * near) mod n repeats.
  if (layout.copyCount === 1) {
    for (const [member, bytes] of layout.memberBytes.entries())
      if (bytes > 0) sets.set(`${member}`, [member]);
  } else {
    let offset = 0;
    for (let chunk = 0; chunk < layout.memberCount && offset < layout.arrayBytes; chunk += 1) {
      const extent = layout.locate(offset);
      const members = extent.copies.map((place) => place.member).sort((a, b) => a - b);
      sets.set(members.join(), members);
      offset += extent.lengthBytes;
    }
  }
  const found = [...sets.values()];
  setsOfLayout.set(layout, found);
  return found;
}
