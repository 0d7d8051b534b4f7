/**
 * Copies that are unlike each other, since a write failed on some of them and the array cannot do without those: which of
 * them are set apart (damaged: not read until they are written), so that no read takes back what another has shown (I3).
 *
 * Whoever took the write has the new bytes; whoever refused it has the old ones, the new, or a part of each, and no two of
 * those need be the same. The write is answered with an error, and nobody has read the place since. So either may stay, the new or one
 * of the others, but for ever: from now on all that is ever read there has to be the same. And not only those copies are
 * read sooner or later that can be read now:
 *
 *   copy                                         read        because
 *   sound: in sync, and good here                now         it counts, in the superblocks too
 *   recovering, and below the frontier           now         but after a crash the frontier may be lower
 *   in doubt: sound, but another thread is       perhaps     if that thread finds that the array can do without it, it is out
 *     about to exclude it, or has
 *   recovering, and beyond the frontier          later       recovery may have copied this very place and not accounted for it
 *                                                            yet: it is a window behind, and so is its frontier
 *   the replacement of a member                  later       it takes over what it has
 *   bad here                                     later       an earlier write, done already, may still be about to say that it
 *                                                            has made the place good
 *
 * One party stays, and all the others are set apart, once more where they are bad already. That party is the first of these
 * that there is; its copies are alike, or there is one.
 *
 *   1  the sound copies that took it, and with them everybody who did
 *   2  one sound copy that did not: the first, which is the one that is read where a resync has still to pass
 *   3  as 1, of those that can be read now without being sound
 *   4  as 2, of those
 *   5  everybody who took it: nobody can be read, but these will be alike
 *
 * 2 before 3, although that gives up new bytes for old ones: what is not sound can be excluded at any moment, and is no
 * longer counted on after a crash; were it the only one that is left, the place would go with it.
 */
import type { CopiesExtent, CopiesLayout } from '../layout/layout.ts';
import { sameForAll } from './copies.ts';
import { joinRanges } from './draft.ts';
import { type CompiledHealth, stateAt } from './health.ts';
import { rowsOf } from './last-copy.ts';
import { type ArrayRange, type ErasedRange, replacementOf } from './plan.ts';

interface Holder {
  /** A slot, or `replacementOf` one. */
  readonly member: number;
  readonly offsetBytes: number;
  readonly refused: boolean;
  /** 2: sound. 1: can be read now. 0: not now. */
  readonly standing: 0 | 1 | 2;
}

/**
 * `refused`: where members and replacements that stay have not taken what was written; all others that are in the array took it, or had
 * it. `isInDoubt`: whether another thread may exclude this member.
 */
export function setApart(
  layout: CopiesLayout,
  health: CompiledHealth,
  refused: readonly ErasedRange[],
  isInDoubt: (member: number) => boolean,
): readonly ErasedRange[] {
  const { memberCount } = layout;
  const apart = new Map<number, ArrayRange[]>();
  const concerned = joinRanges(
    refused.flatMap((place) => rowsOf(layout, { ...place, member: place.member % memberCount })),
  );
  for (const { offsetBytes, lengthBytes } of concerned) {
    const endBytes = offsetBytes + lengthBytes;
    for (let at = offsetBytes; at < endBytes; ) {
      const extent = layout.locate(at);
      const holders = holdersOf(layout, health, extent, refused, isInDoubt);
      const pieceBytes = sameForAll(health, extent, Math.min(extent.lengthBytes, endBytes - at));
      const sameBytes = Math.min(pieceBytes, ...holders.map((holder) => toEdge(holder, refused)));
      for (const holder of outsideOf(partyThatStays(holders), holders)) {
        const ranges = apart.get(holder.member) ?? [];
        ranges.push({ offsetBytes: holder.offsetBytes, lengthBytes: sameBytes });
        apart.set(holder.member, ranges);
      }
      at += sameBytes;
    }
  }
  return [...apart].flatMap(([member, ranges]) => joinRanges(ranges).map((range) => ({ member, ...range })));
}

function partyThatStays(holders: readonly Holder[]): readonly Holder[] {
  const took = holders.filter((holder) => !holder.refused);
  for (const standing of [2, 1] as const) {
    if (took.some((holder) => holder.standing === standing)) return took;
    const first = holders.find((holder) => holder.standing === standing);
    if (first !== undefined) return [first];
  }
  return took;
}

function outsideOf(party: readonly Holder[], holders: readonly Holder[]): readonly Holder[] {
  // Where nobody refused, nobody is unlike the others.
  return holders.some(({ refused }) => refused) ? holders.filter((holder) => !party.includes(holder)) : [];
}

/** Everybody who is written where the extent begins. */
function holdersOf(
  layout: CopiesLayout,
  { health, members }: CompiledHealth,
  extent: CopiesExtent,
  refused: readonly ErasedRange[],
  isInDoubt: (member: number) => boolean,
): readonly Holder[] {
  const { replacing = [] } = health;
  return extent.copies.flatMap(({ member, offsetBytes }): Holder[] => {
    const line = members[member]!;
    if (!line.writable) return [];
    const isSound = health.members[member]?.state === 'in_sync' && !isInDoubt(member);
    const standing = stateAt(line, offsetBytes) !== 'good' ? 0 : isSound ? 2 : 1;
    const own: Holder = { member, offsetBytes, refused: isIn(refused, member, offsetBytes), standing };
    if (!replacing.includes(member)) return [own];
    const number = replacementOf(layout.memberCount, member);
    return [own, { member: number, offsetBytes, refused: isIn(refused, number, offsetBytes), standing: 0 }];
  });
}

function isIn(places: readonly ErasedRange[], member: number, offsetBytes: number): boolean {
  return places.some(
    (place) =>
      place.member === member &&
      place.offsetBytes <= offsetBytes &&
      offsetBytes < place.offsetBytes + place.lengthBytes,
  );
}

/** From where this holder is to the next place where a refusal of its begins or ends. */
function toEdge({ member, offsetBytes }: Holder, refused: readonly ErasedRange[]): number {
  const edges = refused
    .filter((place) => place.member === member)
    .flatMap((place) => [place.offsetBytes, place.offsetBytes + place.lengthBytes]);
  return Math.min(
    Number.POSITIVE_INFINITY,
    ...edges.map((edge) => edge - offsetBytes).filter((bytes) => bytes > 0),
  );
}
