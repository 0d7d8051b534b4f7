/** Finding the superblock of a device: all places where one can be are read, and md/member.ts judges. */
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import type { Candidate } from '../md/assemble.ts';
import { decodeBadBlocks } from '../md/badblocks.ts';
import {
  type Claim,
  chooseSuperblock,
  claimOf,
  type Finding,
  type FoundSuperblock,
  readSuperblock,
  type SuperblockPlace,
  superblockPlaces,
} from '../md/member.ts';
import { isWholePpl, judgePpl, type PplVerdict, pplUsableBytes } from '../md/ppl.ts';
import { features, pplAreaOf, type Superblock1 } from '../md/superblock1.ts';
import type { ErasedRange } from '../plan/plan.ts';
import { KIB, SECTOR_BYTES } from '../units.ts';

const LOG_PIECE_BYTES = 16 * KIB;

/**
 * Throws a typed error where there is none, or none that can be believed. Of the places all but one hold data or nothing,
 * so one that cannot be read, or makes no sense, counts only where no other has a good superblock: a bad sector there
 * is not the loss of a member.
 */
export async function findSuperblock(device: Device): Promise<FoundSuperblock> {
  const memberSectors = Math.floor(device.limits.sizeBytes / SECTOR_BYTES);
  const findings: (Finding | null)[] = [];
  const failures: RaidError[] = [];
  for (const place of superblockPlaces(memberSectors)) {
    try {
      const bytes = await readPlace(device, place);
      findings.push(readSuperblock(place.version, bytes, memberSectors));
    } catch (error) {
      if (!(error instanceof RaidError) || error.code === 'CLOSED') throw error;
      failures.push(error);
    }
  }
  try {
    return chooseSuperblock(findings);
  } catch (error) {
    if (error instanceof RaidError && error.code === 'BAD_MAGIC') throw failures[0] ?? error;
    throw error;
  }
}

/** A read that fails is worth a second one; then the good blocks count, since a superblock may end before the bad one. */
async function readPlace(device: Device, place: SuperblockPlace): Promise<Uint8Array> {
  const bytes = new Uint8Array(place.lengthBytes);
  try {
    await device.read(place.offsetBytes, bytes);
    return bytes;
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
  }
  const blockBytes = Math.max(SECTOR_BYTES, device.limits.blockBytes);
  for (let at = 0; at < bytes.byteLength; at += blockBytes) {
    try {
      await device.read(place.offsetBytes + at, bytes.subarray(at, at + blockBytes));
    } catch (error) {
      if (at === 0 || !(error instanceof RaidError)) throw error;
      const good = bytes.subarray(0, at);
      if (isCutOff(place, good)) throw error;
      return good;
    }
  }
  return bytes;
}

/** Whether what was read begins a superblock, and does not end it. */
function isCutOff({ version }: SuperblockPlace, bytes: Uint8Array): boolean {
  try {
    readSuperblock(version, bytes, 0);
    return false;
  } catch {
    return true;
  }
}

/** For arrays that are changed: 1.x. */
export async function superblockOn(device: Device): Promise<Superblock1> {
  const found = await findSuperblock(device);
  if (found.version === '0.90') {
    throw new RaidError('UNSUPPORTED_FEATURE', `${device.name} has metadata 0.90, which is only read`, {
      device: device.name,
    });
  }
  return found.superblock;
}

/** What the member's partial parity log says; undefined where it keeps none. */
export async function logOn(device: Device, claim: Claim): Promise<PplVerdict | undefined> {
  const { found } = claim;
  const area = found.version === '0.90' ? null : pplAreaOf(found.superblock);
  if (found.version === '0.90' || area === null) return undefined;
  const at = (found.superblock.superSector + area.offsetSectors) * SECTOR_BYTES;
  const areaBytes = pplUsableBytes(area.lengthSectors);
  let bytes: Uint8Array | null = null;
  // Mostly it is short.
  for (let count = LOG_PIECE_BYTES; ; count *= 4) {
    bytes = new Uint8Array(Math.min(count, areaBytes));
    try {
      await device.read(at, bytes);
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
      bytes = null;
    }
    if (bytes === null || bytes.byteLength === areaBytes || isWholePpl(bytes, claim.setUuid)) break;
  }
  return judgePpl(bytes, claim.setUuid, claim, claim.ownRole);
}

/** What the device says of itself, as assembly wants to hear it. `identity` tells two names of one file apart. */
export async function candidateOf(device: Device, name: string, identity: string): Promise<Candidate> {
  try {
    const found = await findSuperblock(device);
    return { name, identity, claim: claimOf(found, Math.floor(device.limits.sizeBytes / SECTOR_BYTES)) };
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    return { name, identity, claim: error };
  }
}

/** The bad places that a member lists, in its data of `sizeSectors` (0: all that there is, as in raid0), as places of the member `number`. */
export async function badPlacesOn(
  device: Device,
  superblock: Superblock1,
  sizeSectors: number,
  number: number,
): Promise<readonly ErasedRange[]> {
  if ((superblock.featureMap & features.BADBLOCKS) === 0 || superblock.bblogSectors === 0) return [];
  const log = new Uint8Array(superblock.bblogSectors * SECTOR_BYTES);
  await device.read((superblock.superSector + superblock.bblogOffsetSectors) * SECTOR_BYTES, log);
  const memberSectors = Math.floor(device.limits.sizeBytes / SECTOR_BYTES);
  return decodeBadBlocks(log, superblock.bblogShift, memberSectors).flatMap((range) => {
    const from = Math.max(range.fromSector - superblock.dataOffsetSectors, 0);
    const end = range.fromSector + range.lengthSectors - superblock.dataOffsetSectors;
    const to = Math.min(end, sizeSectors === 0 ? superblock.dataSectors : sizeSectors);
    if (to <= from) return [];
    return [{ member: number, offsetBytes: from * SECTOR_BYTES, lengthBytes: (to - from) * SECTOR_BYTES }];
  });
}
