/** Members as bytes in memory, for tests: a whole image in, what md says about it out; and fixed identities. */
import { RaidError } from '../../lib/errors.ts';
import type { Candidate } from '../../lib/md/assemble.ts';
import {
  chooseSuperblock,
  claimOf,
  type FoundSuperblock,
  readSuperblock,
  superblockPlaces,
} from '../../lib/md/member.ts';
import { formatUuid } from '../../lib/md/record.ts';
import { encodeSuperblock1, type Superblock1 } from '../../lib/md/superblock1.ts';

/** The superblock to use; throws what `chooseSuperblock` throws. */
export function superblockIn(image: Uint8Array): FoundSuperblock {
  const memberSectors = image.byteLength / 512;
  const findings = superblockPlaces(memberSectors).map(({ version, offsetBytes, lengthBytes }) =>
    readSuperblock(version, image.subarray(offsetBytes, offsetBytes + lengthBytes), memberSectors),
  );
  return chooseSuperblock(findings);
}

export function superblock1In(image: Uint8Array): Superblock1 {
  const found = superblockIn(image);
  if (found.version === '0.90') throw new Error('a version-1 superblock was expected');
  return found.superblock;
}

export function candidateOf(name: string, image: Uint8Array): Candidate {
  try {
    const claim = claimOf(superblockIn(image), image.byteLength / 512);
    return { name, identity: name, claim };
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    return { name, identity: name, claim: error };
  }
}

/** As it reads back from disk: what tests compare must have gone through the codec. */
export function writeSuperblock(image: Uint8Array, superblock: Superblock1): void {
  image.set(encodeSuperblock1(superblock), superblock.superSector * 512);
}

/** A uuid that says which one it is; never zero. */
export function uuidOf(number: number): string {
  return formatUuid(
    Uint8Array.from({ length: 16 }, (_, index) => (index < 2 ? (number >> (8 * index)) & 0xff : index)),
  );
}

export const someTime = { seconds: 1_700_000_000, microseconds: 0 };
