/**
 * raid10: every chunk on `near` x `far` members. Three ways of placing two copies over three members:
 *
 *   near=2                far=2                 offset=2
 *          m0  m1  m2            m0  m1  m2            m0  m1  m2
 *   row 0  D0  D0' D1     row 0  D0  D1  D2     row 0  D0  D1  D2
 *   row 1  D1' D2  D2'    row 1  D3  D4  D5     row 1  D2' D0' D1'
 *                         ...                   row 2  D3  D4  D5
 *                         row h  D2' D0' D1'    row 3  D5' D3' D4'
 *                         ...   h: half of the member's rows
 *
 * near: copies lie side by side, and go on in the next row where the row ends. far: each member is cut into `far`
 * sections; the first is dealt like raid0 (and reads like it), each further one repeats it, moved `near` members on.
 * offset: as far, but the repetition comes in the row below. Near and far multiply; array chunk k has its first copy in
 *
 *   cell    k * near                         counted over rows of n
 *   row     floor(cell / n), times `far` with offset
 *   member  cell % n
 *
 * and its near copies in the cells after it. A far copy is `near` members on and one section (or row) down. It wraps round within a
 * *far set*: all n members (variant 0), n / far of them (variant 1), near * far (variant 2); what is left over
 * joins the last set. far=2 on 5 members, variant 2 has sets 0 1 and 2 3 4: D0 D1 D2 D3 D4, later D1' D0' D4' D2' D3'.
 *
 * Sizes: a member gives `sections` = floor(chunks / far) rows to each section, and the array has floor(sections * n / near)
 * chunks. As near * far <= n, these need every one of the far * sections rows, so that is also what md calls the used size.
 *
 * The pattern repeats after n / g chunks and near / g rows, g = gcd(n, near). The tables hold one period, and
 * compiling them proves that no two copies meet: some combinations that md would take place one copy over another
 * (near > 1 with offset where `near` does not divide n; far sets whose border a step of `near` jumps) or two copies on one member
 * (variant 1 with n / far < far). Those are refused.
 */
import { assert } from '../errors.ts';
import {
  checkArrayBytes,
  checkAtLeast,
  checkChunk,
  checkMemberBytes,
  checkMemberCount,
  refuse,
} from './checks.ts';
import type { Raid10 } from './geometry.ts';
import type { CopiesExtent, CopiesLayout, CopyContent, Place } from './layout.ts';
import { copiesMax, layoutName } from './levels.ts';

export function compileRaid10(geometry: Raid10): CopiesLayout {
  const { level, memberCount, chunkBytes, near, far, offset } = geometry;
  checkMemberCount(level, memberCount);
  checkCopies(geometry);
  checkChunk(level, chunkBytes);
  checkMemberBytes(level, geometry.memberBytes, null);
  checkAtLeast(level, geometry.memberBytes, far * chunkBytes, null);

  const copyCount = near * far;
  const sectionRows = Math.floor(Math.floor(geometry.memberBytes / chunkBytes) / far);
  const chunkCount = Math.floor((sectionRows * memberCount) / near);
  const usedBytes = sectionRows * far * chunkBytes;
  const arrayBytes = chunkCount * chunkBytes;
  checkArrayBytes(sectionRows * memberCount * chunkBytes);

  const { periodChunks, periodRows, members, rows, sections, chunkAt, copyAt } = periodOf(geometry);
  // With offset the sections of a period lie one below the other; else they are `sectionRows` apart.
  const periodBytes = periodRows * (offset ? far : 1) * chunkBytes;
  const offsets = rows.map((row, slot) => (row + (offset ? 0 : sections[slot]! * sectionRows)) * chunkBytes);

  function locate(arrayOffsetBytes: number): CopiesExtent {
    assert(arrayOffsetBytes >= 0 && arrayOffsetBytes < arrayBytes, 'an array offset lies inside the array');
    const chunk = Math.floor(arrayOffsetBytes / chunkBytes);
    const insideBytes = arrayOffsetBytes - chunk * chunkBytes;
    const period = Math.floor(chunk / periodChunks);
    const first = (chunk - period * periodChunks) * copyCount;
    const baseBytes = period * periodBytes + insideBytes;

    const copies: Place[] = [];
    for (let slot = first; slot < first + copyCount; slot += 1) {
      copies.push({ member: members[slot]!, offsetBytes: baseBytes + offsets[slot]! });
    }
    return { arrayOffsetBytes, lengthBytes: chunkBytes - insideBytes, copies };
  }

  function contentAt(
    member: number,
    offsetBytes: number,
  ): CopyContent | { readonly arrayOffsetBytes: null; readonly lengthBytes: number } {
    assert(member >= 0 && member < memberCount, 'a member number lies inside the array');
    assert(offsetBytes >= 0 && offsetBytes < usedBytes, 'a place lies inside what is used of its member');
    const memberChunk = Math.floor(offsetBytes / chunkBytes);
    const insideBytes = offsetBytes - memberChunk * chunkBytes;
    const section = offset ? 0 : Math.floor(memberChunk / sectionRows);
    const row = memberChunk - section * sectionRows;
    const rowsAPeriod = offset ? periodRows * far : periodRows;
    const period = Math.floor(row / rowsAPeriod);
    const cell = (section * periodRows + row - period * rowsAPeriod) * memberCount + member;

    const chunk = period * periodChunks + chunkAt[cell]!;
    const lengthBytes = chunkBytes - insideBytes;
    if (chunk >= chunkCount) return { arrayOffsetBytes: null, lengthBytes };
    return { arrayOffsetBytes: chunk * chunkBytes + insideBytes, lengthBytes, copy: copyAt[cell]! };
  }

  return {
    kind: 'copies',
    geometry,
    memberCount,
    arrayBytes,
    copyCount,
    memberBytes: Object.freeze(new Array<number>(memberCount).fill(usedBytes)),
    locate,
    contentAt,
  };
}

function checkCopies(geometry: Raid10): void {
  const { memberCount, near, far } = geometry;
  const name = layoutName(geometry);
  for (const count of [near, far]) {
    if (!Number.isInteger(count) || count < 1 || count > 255) {
      refuse(`raid10 ${name} is not possible: near and far are whole numbers from 1 to 255`);
    }
  }
  if (near * far < 2) refuse(`raid10 ${name} has only one copy; take near=2, or raid0`);
  if (near * far > copiesMax) refuse(`raid10 ${name} is not possible: ${copiesMax} copies at most`);
  if (near * far > memberCount) {
    refuse(
      `raid10 ${name} has ${near * far} copies and needs as many members, not ${memberCount}; add members or take near=2`,
    );
  }
}

interface Period {
  readonly periodChunks: number;
  readonly periodRows: number;
  /** Of copy c of chunk k of the period, at [k * copies + c]: its member, row (offset: of all sections) and section. */
  readonly members: readonly number[];
  readonly rows: readonly number[];
  readonly sections: readonly number[];
  /** The inverse, at [(section * periodRows + row) * memberCount + member]; with offset `row` counts all sections. */
  readonly chunkAt: Int32Array;
  readonly copyAt: Int32Array;
}

function periodOf(geometry: Raid10): Period {
  const { memberCount, near, far, offset } = geometry;
  const common = gcd(memberCount, near);
  const periodChunks = memberCount / common;
  const periodRows = near / common;
  const members: number[] = [];
  const rows: number[] = [];
  const sections: number[] = [];
  const chunkAt = new Int32Array(periodRows * far * memberCount).fill(-1);
  const copyAt = new Int32Array(periodRows * far * memberCount);

  for (let chunk = 0; chunk < periodChunks; chunk += 1) {
    const seen = new Set<number>();
    const firstRow = Math.floor((chunk * near) / memberCount) * (offset ? far : 1);
    const firstMember = (chunk * near) % memberCount;
    for (let side = 0; side < near; side += 1) {
      // md goes down by one row here, with offset too: the reason why some combinations overlap.
      const row = firstRow + (firstMember + side >= memberCount ? 1 : 0);
      let member = (firstMember + side) % memberCount;
      for (let section = 0; section < far; section += 1) {
        if (section > 0) member = farMember(geometry, member);
        const tableRow = offset ? row + section : section * periodRows + row;
        const cell = tableRow * memberCount + member;
        if (tableRow >= periodRows * far || chunkAt[cell] !== -1) refuseOverlap(geometry);
        if (seen.has(member)) refuseShared(geometry);
        seen.add(member);
        chunkAt[cell] = chunk;
        copyAt[cell] = side * far + section;
        members.push(member);
        rows.push(offset ? tableRow : row);
        sections.push(section);
      }
    }
  }
  return { periodChunks, periodRows, members, rows, sections, chunkAt, copyAt };
}

/** Where the next far copy of what `member` holds goes. */
function farMember(geometry: Raid10, member: number): number {
  const { memberCount, near } = geometry;
  const setSize = farSetSize(geometry);
  const set = Math.floor(member / setSize);
  const next = member + near;
  const leftOver = memberCount % setSize;
  const lastStart = (Math.floor(memberCount / setSize) - 1) * setSize;
  // `>` and not `>=`: `next` is at least one past its own member. With near > 1 md thereby mistakes the end of the
  // set before the last for the last set.
  if (leftOver !== 0 && next > lastStart) return ((next - lastStart) % (setSize + leftOver)) + lastStart;
  return (next % setSize) + set * setSize;
}

function farSetSize({ memberCount, near, far, farSets }: Raid10): number {
  switch (farSets) {
    case 0:
      return memberCount;
    case 1:
      return Math.floor(memberCount / far);
    case 2:
      return near * far;
  }
}

function refuseOverlap(geometry: Raid10): never {
  const { memberCount, near, offset } = geometry;
  const right = offset
    ? `a number of members that ${near} divides, or near and far without offset`
    : 'far-sets=0, or a number of members that the sets divide';
  return refuse(
    `raid10 ${layoutName(geometry)} on ${memberCount} members would place copies on top of each other; take ${right}`,
  );
}

function refuseShared(geometry: Raid10): never {
  return refuse(
    `raid10 ${layoutName(geometry)} on ${geometry.memberCount} members would place two copies on one member; take far-sets=0`,
  );
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}
