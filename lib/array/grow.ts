/**
 * Growing without moving data: using more of each member, and adding legs to a mirror. Everything that would move data
 * is a reshape, and that is mdadm's still.
 *
 * The geometry of a running array never changes: growing opens the array, records the new shape and closes it, and the
 * next opening finds it so. What a crash in between leaves is either the old shape or the new one, since one update of
 * the superblocks separates them; files that are longer than the array knows are harmless.
 *
 * The new space is made to agree by a resync from where the old one ended. A sparse file's is zeros already, on all
 * members alike; but a member that was larger than the array needed may hold anything there.
 */
import { FileDevice } from '../device/file.ts';
import { RaidError } from '../errors.ts';
import { compileLayout } from '../layout/compile.ts';
import { bitmapAreaBytes } from '../md/bitmap.ts';
import { arraySectorsOf, geometryOf } from '../md/levels.ts';
import { bitmapOffsetOf } from '../md/superblock1.ts';
import { addSlots, growSize, type MdArray, type MdMember } from '../md/update.ts';
import { parseSize, roundDown, SECTOR_BYTES } from '../units.ts';
import type { RaidArray } from './array.ts';
import type { Metadata } from './metadata.ts';
import { sanOf } from './san.ts';

export interface GrowOptions {
  /** The new size of each member file; `max` uses what the members have. */
  readonly size?: string | number | undefined;
  /** So many disks in all: a mirror's legs. */
  readonly disks?: number | undefined;
}

/**
 * Records the new shape of an open array, which is then closed and opened again. Returns the sync position from which
 * redundancy has to be made; Infinity when none has.
 */
export async function recordGrowth(array: RaidArray, options: GrowOptions): Promise<number> {
  const { metadata } = array;
  if (metadata === null)
    throw new RaidError('NOT_SUPPORTED', `${array.name} has no metadata that could record a new shape`);
  if (array.state !== 'clean') {
    throw new RaidError(
      'BUSY',
      `${array.name} is ${array.state}; it can grow when it is clean (raidsim rebuild ${array.name})`,
    );
  }
  if (options.disks !== undefined) await growDisks(array, metadata, options.disks);
  return options.size === undefined
    ? Number.POSITIVE_INFINITY
    : await growMembers(array, metadata, options.size);
}

async function growDisks(array: RaidArray, metadata: Metadata, disks: number): Promise<void> {
  const { level, raidDisks } = metadata.array;
  if (level !== 1) {
    throw new RaidError(
      'NOT_SUPPORTED',
      `more disks in ${array.layout.geometry.level} is a reshape, which raidsim does not do; mdadm --grow does`,
    );
  }
  if (!Number.isInteger(disks) || disks <= raidDisks) {
    throw new RaidError('BAD_ARGUMENT', `${array.name} has ${raidDisks} disks already; say a larger number`);
  }
  refuseImpossible(metadata.array, { raidDisks: disks });
  await metadata.update((md, utime) => addSlots(md, disks, utime));
}

async function growMembers(array: RaidArray, metadata: Metadata, size: string | number): Promise<number> {
  const md = metadata.array;
  const { geometry } = array.layout;
  if (md.level <= 0)
    throw new RaidError('NOT_SUPPORTED', `${geometry.level} uses all of its members already`);
  if (md.version === '1.0') {
    throw new RaidError(
      'NOT_SUPPORTED',
      'metadata 1.0 lies at the end of its members, where growing them would lose it; use mdadm --grow',
    );
  }
  if (geometry.level === 'raid10' && geometry.far > 1 && !geometry.offset) {
    throw new RaidError('NOT_SUPPORTED', 'far copies move when the members grow: that is a reshape');
  }
  await refuseSnapshots(array);
  const sectorsOf = new Map<MdMember, number>();
  for (const member of md.members) {
    const seen = metadata.deviceOf(member.descriptor);
    if (seen === null) continue;
    // A LUN grows at its array, and then hosts look again.
    const san = sanOf(array);
    const device = san?.backingOf(seen) ?? seen;
    if (size !== 'max') {
      const sizeBytes = parseSize(size);
      if (sizeBytes < device.limits.sizeBytes) {
        throw new RaidError(
          'BAD_ARGUMENT',
          `${device.name} has ${device.limits.sizeBytes} bytes already, and does not shrink`,
        );
      }
      if (sizeBytes > device.limits.sizeBytes) {
        if (!(device instanceof FileDevice))
          throw new RaidError('NOT_SUPPORTED', `${device.name} cannot be made larger from here`);
        await device.resize(sizeBytes);
        await device.flush();
        san?.rescan(seen);
      }
    }
    sectorsOf.set(
      member,
      Math.floor(device.limits.sizeBytes / SECTOR_BYTES) - member.superblock.dataOffsetSectors,
    );
  }
  const sizeSectors = newSizeOf(md, [...sectorsOf.values()]);
  if (sizeSectors < md.sizeSectors)
    throw new RaidError('BAD_ARGUMENT', 'the members are smaller than what the array uses');
  refuseImpossible(md, { sizeSectors });
  const syncSectors =
    md.level === 10 ? arraySectorsOf({ ...md, sizeSectors, hasRaid0Layout: false }) : sizeSectors;
  refuseIfBitmapDoesNotFit(metadata, syncSectors);
  const synced = md.level === 10 ? arraySectorsOf({ ...md, hasRaid0Layout: false }) : md.sizeSectors;
  await metadata.growBitmap(synced, syncSectors);
  const unsyncedFrom = sizeSectors === md.sizeSectors ? Number.POSITIVE_INFINITY : synced;
  await metadata.update((now, utime) =>
    growSize(
      now,
      sizeSectors,
      (member) =>
        sectorsOf.get(md.members.find(({ descriptor }) => descriptor === member.descriptor) ?? member) ??
        member.superblock.dataSectors,
      unsyncedFrom,
      utime,
    ),
  );
  return unsyncedFrom * SECTOR_BYTES;
}

/** Snapshots are of the array's size. A store without any, which only knows what has changed, goes without a word. */
async function refuseSnapshots(array: RaidArray): Promise<void> {
  const { snapshots } = array;
  if (snapshots === null) return;
  if (snapshots.problem !== null) throw snapshots.problem;
  const names = snapshots.list().map(({ name }) => name);
  if (names.length > 0) {
    throw new RaidError(
      'BUSY',
      `${array.name} has snapshots, which are of its size; delete them first: ${names.join(', ')}`,
    );
  }
  await snapshots.deleteAll();
}

/** What no array can be is refused before anybody has read it from a superblock. */
function refuseImpossible(md: MdArray, grown: Partial<Pick<MdArray, 'raidDisks' | 'sizeSectors'>>): void {
  compileLayout(geometryOf({ ...md, ...grown, hasRaid0Layout: false }, []));
}

/** Whole chunks; in a mirror units of 64 KiB, as mdadm has it. */
function newSizeOf(md: MdArray, dataSectors: readonly number[]): number {
  const unit = md.level === 1 ? 128 : Math.max(md.chunkSectors, 2);
  return roundDown(Math.min(...dataSectors), unit);
}

function refuseIfBitmapDoesNotFit(metadata: Metadata, syncSectors: number): void {
  const { bitmap, array: md } = metadata;
  if (bitmap === null) return;
  const needed = bitmapAreaBytes(syncSectors, bitmap.superblock.chunkBytes) / SECTOR_BYTES;
  for (const { superblock } of md.members) {
    const start = superblock.superSector + (bitmapOffsetOf(superblock) ?? 0);
    const log =
      superblock.bblogSectors === 0
        ? superblock.dataOffsetSectors
        : superblock.superSector + superblock.bblogOffsetSectors;
    const end = log > start ? Math.min(log, superblock.dataOffsetSectors) : superblock.dataOffsetSectors;
    if (start + needed > end) {
      throw new RaidError(
        'NOT_SUPPORTED',
        'the write-intent bitmap has no room for so large an array; use mdadm to give it larger chunks',
      );
    }
  }
}
