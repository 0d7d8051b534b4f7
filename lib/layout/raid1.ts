/**
 * raid1: the same bytes at the same place on every member.
 *
 *            m0   m1   m2
 *   0        A    A'   A''
 *   4096     B    B'   B''
 *
 *   array 4096  ->  offset 4096 on members 0, 1 and 2, and back
 *
 * There are no chunks: an extent runs to the end of the array. Copies are in slot order; which leg a read prefers (the nearest head,
 * not a write-mostly one) is a matter of health and load, not of layout.
 */
import { assert } from '../errors.ts';
import { checkArrayBytes, checkAtLeast, checkMemberBytes, checkMemberCount } from './checks.ts';
import type { Raid1 } from './geometry.ts';
import type { CopiesExtent, CopiesLayout, CopyContent, Place } from './layout.ts';

export function compileRaid1(geometry: Raid1): CopiesLayout {
  const { level, memberCount } = geometry;
  const arrayBytes = geometry.memberBytes;
  checkMemberCount(level, memberCount);
  checkMemberBytes(level, arrayBytes, null);
  checkAtLeast(level, arrayBytes, 512, null);
  checkArrayBytes(arrayBytes);

  function locate(arrayOffsetBytes: number): CopiesExtent {
    assert(arrayOffsetBytes >= 0 && arrayOffsetBytes < arrayBytes, 'an array offset lies inside the array');
    const copies: Place[] = [];
    for (let member = 0; member < memberCount; member += 1)
      copies.push({ member, offsetBytes: arrayOffsetBytes });
    return { arrayOffsetBytes, lengthBytes: arrayBytes - arrayOffsetBytes, copies };
  }

  function contentAt(member: number, offsetBytes: number): CopyContent {
    assert(member >= 0 && member < memberCount, 'a member number lies inside the array');
    assert(offsetBytes >= 0 && offsetBytes < arrayBytes, 'a place lies inside what is used of its member');
    return { arrayOffsetBytes: offsetBytes, lengthBytes: arrayBytes - offsetBytes, copy: member };
  }

  return {
    kind: 'copies',
    geometry,
    memberCount,
    arrayBytes,
    copyCount: memberCount,
    memberBytes: Object.freeze(new Array<number>(memberCount).fill(arrayBytes)),
    locate,
    contentAt,
  };
}
