/**
 * Finding md on a device, whatever the metadata version, and what a member says of its array in one form.
 *
 * A device may carry more than one superblock: the old one of a 0.90 array lies where no later format writes. The
 * order is 1.2, 1.1, 1.0, 0.90, and two valid ones that name different arrays are an error that only a person can
 * resolve: picking one could start an array that was dissolved years ago.
 */
import { RaidError } from '../errors.ts';
import {
  beginsSuperblock1,
  decodeSuperblock1,
  features,
  hasFeature,
  ownRoleOf,
  ROLE_FAULTY,
  ROLE_JOURNAL,
  ROLE_SPARE,
  SUPERBLOCK_BYTES_MAX,
  type Superblock1,
  superblock1Faults,
  superSectorOf,
  unsupportedOf,
  type Version1,
} from './superblock1.ts';
import {
  beginsSuperblock090,
  decodeSuperblock090,
  diskStates090,
  resyncOffset090Of,
  SUPERBLOCK090_BYTES,
  type Superblock090,
  states090,
  superblock090Faults,
  superSector090Of,
} from './superblock090.ts';
import { type ArrayFields, arrayFieldsOf } from './update.ts';

export type Version = '0.90' | Version1;
export type FoundSuperblock =
  | { readonly version: '0.90'; readonly superblock: Superblock090 }
  | { readonly version: Version1; readonly superblock: Superblock1 };

/** Bytes to read when looking for superblocks. */
export interface SuperblockPlace {
  readonly version: Version;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** A superblock that decodes, with everything that forbids its use. */
export type Finding = FoundSuperblock & { readonly faults: readonly RaidError[] };

/** What a member claims about its array and itself. */
export interface Claim extends ArrayFields {
  readonly found: FoundSuperblock;
  readonly events: number;
  readonly resyncOffsetSectors: number;
  readonly featureMap: number;
  /** By device number: slots and the ROLE_ values. */
  readonly devRoles: readonly number[];
  readonly descriptor: number;
  /** Its entry in its own table; a slot beyond the array counts as spare. */
  readonly ownRole: number;
  /** Null when it is not being recovered. */
  readonly recoveredSectors: number | null;
  readonly dataOffsetSectors: number;
  readonly dataSectors: number;
  readonly unsupported: RaidError | null;
}

/** Sectors that were rewritten because they could not be read, since the member came into the array; 0.90 does not count. */
export function correctedSectorsOf({ found }: Claim): number {
  return found.version === '0.90' ? 0 : found.superblock.correctedReads;
}

/** Where superblocks can be on a device of this size, in the order in which they are believed. */
export function superblockPlaces(memberSectors: number): readonly SuperblockPlace[] {
  const places: SuperblockPlace[] = [];
  const add = (version: Version, sector: number | null, bytesMax: number): void => {
    if (sector === null) return;
    const lengthBytes = Math.min(bytesMax, (memberSectors - sector) * 512);
    places.push({ version, offsetBytes: sector * 512, lengthBytes });
  };
  add('1.2', superSectorOf('1.2', memberSectors), SUPERBLOCK_BYTES_MAX);
  add('1.1', superSectorOf('1.1', memberSectors), SUPERBLOCK_BYTES_MAX);
  add('1.0', superSectorOf('1.0', memberSectors), SUPERBLOCK_BYTES_MAX);
  add('0.90', superSector090Of(memberSectors), SUPERBLOCK090_BYTES);
  return places;
}

/**
 * What the bytes at one place are: a superblock with its faults, or null when there is none. Throws for one that is
 * too broken to decode.
 */
export function readSuperblock(version: Version, bytes: Uint8Array, memberSectors: number): Finding | null {
  // Not by the error of who decodes it: most places hold none, and an error takes longer than all the rest.
  if (version === '0.90') {
    if (!beginsSuperblock090(bytes)) return null;
    const superblock = decodeSuperblock090(bytes);
    return { version, superblock, faults: superblock090Faults(superblock, memberSectors) };
  }
  if (!beginsSuperblock1(bytes)) return null;
  const superblock = decodeSuperblock1(bytes);
  return { version, superblock, faults: superblock1Faults(superblock, { version, memberSectors }) };
}

/** The superblock to use, of what was found at all places; throws when there is none, or none without fault. */
export function chooseSuperblock(findings: readonly (Finding | null)[]): FoundSuperblock {
  const found = findings.filter((finding) => finding !== null);
  const valid = found.filter((finding) => finding.faults.length === 0);
  const [first] = valid;
  if (first === undefined) {
    throw found[0]?.faults[0] ?? new RaidError('BAD_MAGIC', 'there is no md superblock on the device');
  }
  const other = valid.find((finding) => finding.superblock.setUuid !== first.superblock.setUuid);
  if (other !== undefined) {
    throw new RaidError(
      'SEVERAL_ARRAYS',
      `the device carries superblocks of two arrays: ${first.version} of ${first.superblock.setUuid} and ` +
        `${other.version} of ${other.superblock.setUuid}; erase the wrong one`,
    );
  }
  return first;
}

export function claimOf(found: FoundSuperblock, memberSectors: number): Claim {
  return found.version === '0.90' ? claimOf090(found.superblock, memberSectors) : claimOf1(found);
}

function claimOf1(found: Extract<FoundSuperblock, { version: Version1 }>): Claim {
  const { superblock } = found;
  const role = ownRoleOf(superblock);
  const { events, resyncOffsetSectors, featureMap, devRoles, descriptor, dataOffsetSectors, dataSectors } =
    superblock;
  return {
    ...arrayFieldsOf(superblock),
    found,
    events,
    resyncOffsetSectors,
    featureMap,
    devRoles,
    descriptor,
    ownRole: withinArray(role, superblock.raidDisks),
    recoveredSectors: hasFeature(superblock, 'RECOVERY_OFFSET') ? superblock.recoveryOffsetSectors : null,
    dataOffsetSectors,
    dataSectors,
    unsupported: unsupportedOf(superblock),
  };
}

/** In 0.90 the table is the list of disks; a rebuild is not recorded, so who is not in sync is a spare. */
function claimOf090(superblock: Superblock090, memberSectors: number): Claim {
  const devRoles = superblock.disks.map((disk) => {
    if ((disk.state & diskStates090.FAULTY) !== 0) return ROLE_FAULTY;
    const isActive = (disk.state & diskStates090.ACTIVE) !== 0 && (disk.state & diskStates090.SYNC) !== 0;
    return isActive && disk.slot < superblock.raidDisks ? disk.slot : ROLE_SPARE;
  });
  const descriptor = superblock.thisDisk.number;
  return {
    setUuid: superblock.setUuid,
    ctime: { seconds: superblock.ctimeSeconds, microseconds: 0 },
    level: superblock.level,
    layout: superblock.layout,
    sizeSectors: superblock.level > 0 ? superblock.sizeKib * 2 : 0,
    chunkSectors: superblock.chunkBytes / 512,
    raidDisks: superblock.raidDisks,
    found: { version: '0.90', superblock },
    events: superblock.events,
    resyncOffsetSectors: resyncOffset090Of(superblock),
    featureMap: (superblock.state & states090.BITMAP) === 0 ? 0 : features.BITMAP,
    devRoles,
    descriptor,
    ownRole: devRoles[descriptor] ?? ROLE_SPARE,
    recoveredSectors: null,
    dataOffsetSectors: 0,
    dataSectors: superSector090Of(memberSectors) ?? 0,
    unsupported:
      superblock.minorVersion === 91
        ? new RaidError('RESHAPE_IN_PROGRESS', 'a reshape was interrupted; let mdadm finish it first')
        : null,
  };
}

function withinArray(role: number, raidDisks: number): number {
  return role >= raidDisks && role < ROLE_JOURNAL ? ROLE_SPARE : role;
}
