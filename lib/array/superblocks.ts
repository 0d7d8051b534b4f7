/** Finding the superblock of a device: all places where one can be are read, and md/member.ts judges. */
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import type { Candidate } from '../md/assemble.ts';
import {
  chooseSuperblock,
  claimOf,
  type FoundSuperblock,
  readSuperblock,
  superblockPlaces,
} from '../md/member.ts';
import type { Superblock1 } from '../md/superblock1.ts';
import { SECTOR_BYTES } from '../units.ts';

/** Throws a typed error where there is none, or none that can be believed. */
export async function findSuperblock(device: Device): Promise<FoundSuperblock> {
  const memberSectors = Math.floor(device.limits.sizeBytes / SECTOR_BYTES);
  const findings = [];
  for (const place of superblockPlaces(memberSectors)) {
    const bytes = new Uint8Array(place.lengthBytes);
    await device.read(place.offsetBytes, bytes);
    findings.push(readSuperblock(place.version, bytes, memberSectors));
  }
  return chooseSuperblock(findings);
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
