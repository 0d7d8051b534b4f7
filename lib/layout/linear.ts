/**
 * linear: members one after the other.
 *
 *   three members of 100, 64 and 80 KiB, no rounding:
 *
 *   array  0 ............ 100 ...... 164 ........ 244 KiB
 *          |    m0         |    m1    |    m2      |
 *
 *   array 120 KiB  ->  member 1, 20 KiB        member 2, 0 KiB  ->  array 164 KiB
 *
 * With a chunk size (md calls it rounding here) each member gives whole chunks only: with 16 KiB the three
 * give 96, 64 and 80, and the array has 240 KiB. There is no other use of the chunk: an extent runs to the end of its member.
 */
import { assert } from '../errors.ts';
import { roundDown } from '../units.ts';
import { checkArrayBytes, checkAtLeast, checkChunk, checkMemberBytes, checkMemberCount } from './checks.ts';
import type { Linear } from './geometry.ts';
import type { CopiesExtent, CopiesLayout, CopyContent } from './layout.ts';

export function compileLinear(geometry: Linear): CopiesLayout {
  const { level, chunkBytes } = geometry;
  const memberCount = geometry.memberBytes.length;
  checkMemberCount(level, memberCount);
  checkChunk(level, chunkBytes);

  const memberBytes: number[] = [];
  const starts: number[] = [];
  let arrayBytes = 0;
  geometry.memberBytes.forEach((bytes, member) => {
    checkMemberBytes(level, bytes, member);
    checkAtLeast(level, bytes, Math.max(chunkBytes, 512), member);
    starts.push(arrayBytes);
    memberBytes.push(chunkBytes === 0 ? bytes : roundDown(bytes, chunkBytes));
    arrayBytes += memberBytes[member]!;
  });
  checkArrayBytes(arrayBytes);

  function locate(arrayOffsetBytes: number): CopiesExtent {
    assert(arrayOffsetBytes >= 0 && arrayOffsetBytes < arrayBytes, 'an array offset lies inside the array');
    let member = memberCount - 1;
    while (starts[member]! > arrayOffsetBytes) member -= 1;
    const offsetBytes = arrayOffsetBytes - starts[member]!;
    return {
      arrayOffsetBytes,
      lengthBytes: memberBytes[member]! - offsetBytes,
      copies: [{ member, offsetBytes }],
    };
  }

  function contentAt(member: number, offsetBytes: number): CopyContent {
    assert(member >= 0 && member < memberCount, 'a member number lies inside the array');
    assert(
      offsetBytes >= 0 && offsetBytes < memberBytes[member]!,
      'a place lies inside what is used of its member',
    );
    return {
      arrayOffsetBytes: starts[member]! + offsetBytes,
      lengthBytes: memberBytes[member]! - offsetBytes,
      copy: 0,
    };
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
