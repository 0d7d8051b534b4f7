/**
 * raid0: chunks dealt out over all members. Where members differ in size, the array goes on over those that still have
 * room: that is a new zone.
 *
 *   members of 2, 4 and 3 chunks
 *
 *              original                     alternate
 *              m0   m1   m2                 m0   m1   m2
 *   zone 0     D0   D1   D2                 D0   D1   D2
 *              D3   D4   D5                 D3   D4   D5
 *   zone 1     -    D6   D7                 -    D6   D7
 *   zone 2     -    D8   -                  -    D8   -
 *
 *   members of 1, 3 and 3 chunks
 *              D0   D1   D2                 D0   D1   D2
 *   zone 1     -    D4   D3                 -    D3   D4
 *              -    D6   D5                 -    D5   D6
 *
 * In a zone of k members that begins at array chunk Z, alternate deals its chunk i to member i % k of the zone;
 * original deals by the chunk's number in the whole array, (Z + i) % k. So original is alternate over a list of members
 * rotated by Z % k, and after that one rule serves both. Above, zone 1 of the second array has Z = 3, k = 2: rotated
 * by 1. (Linux dealt as original up to 3.13 and as alternate from 3.14 to 5.3; since then the superblock says which.)
 *
 * The chunk is any multiple of a sector. Where it is not a power of two, md still rounds each member with a bit mask when
 * it adds up the array's size, and so loses the end of the array; places do not move. Two members of 10 chunks of 24
 * sectors (12 KiB) count 240 & ~23 = 224 sectors each: of 480, the last 32 can never be addressed, which are chunk 19
 * and the end of chunk 18.
 */
import { assert } from '../errors.ts';
import { roundDown, SECTOR_BYTES } from '../units.ts';
import { checkArrayBytes, checkAtLeast, checkChunk, checkMemberBytes, checkMemberCount } from './checks.ts';
import type { Raid0 } from './geometry.ts';
import type { CopiesExtent, CopiesLayout, CopyContent } from './layout.ts';

/** A range of member offsets over which the same members take part. */
export interface Zone {
  readonly arrayStartBytes: number;
  readonly memberStartBytes: number;
  readonly memberEndBytes: number;
  /** Member of each of the zone's first chunks: chunk i of the zone is on `dealt[i % dealt.length]`. */
  readonly dealt: readonly number[];
}

export function compileRaid0(geometry: Raid0): CopiesLayout {
  const { level, chunkBytes } = geometry;
  const memberCount = geometry.memberBytes.length;
  checkMemberCount(level, memberCount);
  checkChunk(level, chunkBytes);
  geometry.memberBytes.forEach((bytes, member) => {
    checkMemberBytes(level, bytes, member);
    checkAtLeast(level, bytes, chunkBytes, member);
  });

  const memberBytes = geometry.memberBytes.map((bytes) => roundDown(bytes, chunkBytes));
  const arrayBytes = memberBytes.reduce((sum, bytes) => sum + maskedBytes(bytes, chunkBytes), 0);
  checkArrayBytes(arrayBytes);
  const zones = zonesOf(geometry);
  const turns = zones.map(({ dealt }) =>
    Array.from({ length: memberCount }, (_, member) => dealt.indexOf(member)),
  );

  function locate(arrayOffsetBytes: number): CopiesExtent {
    assert(arrayOffsetBytes >= 0 && arrayOffsetBytes < arrayBytes, 'an array offset lies inside the array');
    let index = zones.length - 1;
    while (zones[index]!.arrayStartBytes > arrayOffsetBytes) index -= 1;
    const { arrayStartBytes, memberStartBytes, dealt } = zones[index]!;

    const chunk = Math.floor((arrayOffsetBytes - arrayStartBytes) / chunkBytes);
    const insideBytes = arrayOffsetBytes - arrayStartBytes - chunk * chunkBytes;
    const row = Math.floor(chunk / dealt.length);
    const member = dealt[chunk - row * dealt.length]!;
    return {
      arrayOffsetBytes,
      lengthBytes: Math.min(chunkBytes - insideBytes, arrayBytes - arrayOffsetBytes),
      copies: [{ member, offsetBytes: memberStartBytes + row * chunkBytes + insideBytes }],
    };
  }

  function contentAt(
    member: number,
    offsetBytes: number,
  ): CopyContent | { readonly arrayOffsetBytes: null; readonly lengthBytes: number } {
    assert(member >= 0 && member < memberCount, 'a member number lies inside the array');
    assert(
      offsetBytes >= 0 && offsetBytes < memberBytes[member]!,
      'a place lies inside what is used of its member',
    );
    let index = 0;
    while (zones[index]!.memberEndBytes <= offsetBytes) index += 1;
    const { arrayStartBytes, memberStartBytes, dealt } = zones[index]!;

    const row = Math.floor((offsetBytes - memberStartBytes) / chunkBytes);
    const insideBytes = offsetBytes - memberStartBytes - row * chunkBytes;
    const turn = turns[index]![member]!;
    const arrayOffsetBytes = arrayStartBytes + (row * dealt.length + turn) * chunkBytes + insideBytes;
    const lengthBytes = chunkBytes - insideBytes;
    if (arrayOffsetBytes >= arrayBytes) return { arrayOffsetBytes: null, lengthBytes };
    return { arrayOffsetBytes, lengthBytes: Math.min(lengthBytes, arrayBytes - arrayOffsetBytes), copy: 0 };
  }

  return {
    kind: 'copies',
    geometry,
    memberCount,
    arrayBytes,
    copyCount: 1,
    memberBytes: Object.freeze(memberBytes),
    locate,
    contentAt,
  };
}

export function zonesOf(geometry: Raid0): readonly Zone[] {
  const { chunkBytes, layout } = geometry;
  const memberBytes = geometry.memberBytes.map((bytes) => roundDown(bytes, chunkBytes));
  const heights = [...new Set(memberBytes)].sort((a, b) => a - b);

  const zones: Zone[] = [];
  let arrayStartBytes = 0;
  let memberStartBytes = 0;
  for (const memberEndBytes of heights) {
    const members: number[] = [];
    memberBytes.forEach((bytes, member) => {
      if (bytes > memberStartBytes) members.push(member);
    });
    const turned = layout === 'original' ? (arrayStartBytes / chunkBytes) % members.length : 0;
    const dealt = [...members.slice(turned), ...members.slice(0, turned)];
    zones.push({ arrayStartBytes, memberStartBytes, memberEndBytes, dealt });
    arrayStartBytes += members.length * (memberEndBytes - memberStartBytes);
    memberStartBytes = memberEndBytes;
  }
  return zones;
}

/**
 * Whether original and alternate place anything differently; if not, it is no loss that a superblock does not say which.
 * md asks more coarsely: for it any second zone of two or more members matters.
 */
export function layoutMatters(geometry: Raid0): boolean {
  const original = zonesOf({ ...geometry, layout: 'original' });
  const alternate = zonesOf({ ...geometry, layout: 'alternate' });
  return original.some((zone, index) =>
    zone.dealt.some((member, turn) => member !== alternate[index]!.dealt[turn]),
  );
}

/** `memberBytes` in sectors, AND NOT (chunk sectors - 1). */
function maskedBytes(memberBytes: number, chunkBytes: number): number {
  const sectors = memberBytes / SECTOR_BYTES;
  // `&` sees the low 32 bits only, which is enough: the mask has 31.
  return (sectors - (sectors & (chunkBytes / SECTOR_BYTES - 1))) * SECTOR_BYTES;
}
