/** What every level asks of a geometry before it is compiled. Each refusal says what is wrong and what would be right. */
import { RaidError } from '../errors.ts';
import { formatSize, SECTOR_BYTES } from '../units.ts';
import type { Level } from './geometry.ts';
import { levels } from './levels.ts';

/** md keeps the chunk size as a signed 32-bit count of sectors. */
const chunkSectorsMax = 2 ** 31 - 1;

/** The smallest piece that md's stripe cache and raid10 handle: a page. */
const pageBytes = 4096;

export function refuse(detail: string): never {
  throw new RaidError('BAD_GEOMETRY', detail);
}

export function checkMemberCount(level: Level, memberCount: number): void {
  const { membersMin, membersMax } = levels[level];
  if (!Number.isInteger(memberCount) || memberCount < membersMin) {
    refuse(`${level} needs ${membersMin} members or more, not ${memberCount}`);
  }
  if (memberCount > membersMax) refuse(`${level} has ${membersMax} members at most, not ${memberCount}`);
}

export function checkChunk(level: Level, chunkBytes: number): void {
  const rule = levels[level].chunk;
  if (rule === 'none' || (rule === 'rounding' && chunkBytes === 0)) return;

  if (rule === 'power-of-two') {
    // log2 of a power of two is exact, and `&` would wrap at 2 GiB.
    if (!Number.isInteger(Math.log2(chunkBytes)) || chunkBytes < pageBytes) {
      const right = nearbyPowers(chunkBytes);
      refuse(
        `a chunk of ${sizeText(chunkBytes)} is not possible at ${level}: it is a power of two, 4 KiB or more; take ${right}`,
      );
    }
  } else if (!isSectors(chunkBytes) || chunkBytes === 0) {
    const right = Math.max(1, Math.round(chunkBytes / SECTOR_BYTES) || 1) * SECTOR_BYTES;
    refuse(
      `a chunk of ${sizeText(chunkBytes)} is not possible at ${level}: it is a multiple of 512 bytes; take ${sizeText(right)}`,
    );
  }
  if (chunkBytes / SECTOR_BYTES > chunkSectorsMax) {
    refuse(`a chunk of ${sizeText(chunkBytes)} is not possible: md counts to 1 TiB; take 512 KiB`);
  }
}

/** `memberBytes` as a superblock could say it. */
export function checkMemberBytes(level: Level, memberBytes: number, member: number | null): void {
  if (!isSectors(memberBytes)) {
    const which = member === null ? 'members' : `member ${member}`;
    refuse(`${which} of ${memberBytes} bytes are not possible at ${level}: sizes are multiples of 512 bytes`);
  }
}

export function checkAtLeast(
  level: Level,
  memberBytes: number,
  leastBytes: number,
  member: number | null,
): void {
  if (memberBytes >= leastBytes) return;
  const which = member === null ? 'members' : `member ${member}`;
  refuse(
    `${which} of ${sizeText(memberBytes)} are too small for ${level}: ${sizeText(leastBytes)} is the least`,
  );
}

export function checkArrayBytes(arrayBytes: number): void {
  if (!Number.isSafeInteger(arrayBytes))
    refuse('an array of 8 PiB or more is too large; use smaller members');
}

function isSectors(bytes: number): boolean {
  return Number.isSafeInteger(bytes) && bytes >= 0 && bytes % SECTOR_BYTES === 0;
}

function nearbyPowers(bytes: number): string {
  if (!(bytes > pageBytes)) return '4 KiB';
  const below = 2 ** Math.floor(Math.log2(bytes));
  return `${sizeText(below)} or ${sizeText(below * 2)}`;
}

/** Exact where `formatSize` would round. */
function sizeText(bytes: number): string {
  const text = formatSize(bytes);
  return text.includes('.') ? `${bytes} bytes` : text;
}
