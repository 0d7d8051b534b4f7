/**
 * The bad-block log of one member: ranges that hold no valid data and are read from redundancy. 4 KiB of u64 at sector
 * super_offset + bblog_offset; counts only with the feature BADBLOCKS on that member, else the bytes are old.
 *
 *   entry = start << 10 | length      in units of 512 << bblog_shift bytes; length 1 to 512, longer runs are split
 *   all ones ends the list, and fills the rest
 *
 * `start` is a sector of the device, data_offset included. The order on disk is free; ours is rising.
 */
import { assert, RaidError } from '../errors.ts';
import { roundUp } from '../units.ts';
import { viewOf } from './record.ts';

export const BBLOG_BYTES = 4096;
export const BBLOG_ENTRIES_MAX = BBLOG_BYTES / 8;
const LENGTH_MAX = 512;
const END = 0xffff_ffff_ffff_ffffn;

/** On the device, not in its data. */
export interface BadRange {
  readonly fromSector: number;
  readonly lengthSectors: number;
}

/** Throws for entries that lie outside the device or cannot be. The device may end within the last unit. */
export function decodeBadBlocks(
  bytes: Uint8Array,
  shift: number,
  memberSectors: number,
): readonly BadRange[] {
  const ranges: BadRange[] = [];
  const view = viewOf(bytes);
  const count = Math.min(Math.floor(bytes.byteLength / 8), BBLOG_ENTRIES_MAX);
  for (let index = 0; index < count; index += 1) {
    const entry = view.getBigUint64(index * 8, true);
    if (entry === END) break;
    const length = Number(entry & 0x3ffn);
    // 2^54 units at most, so the product is exact enough to be compared, whatever the shift.
    const fromSector = Number(entry >> 10n) * 2 ** shift;
    const lengthSectors = length * 2 ** shift;
    const endSector = roundUp(memberSectors, 2 ** shift);
    if (length === 0 || length > LENGTH_MAX || fromSector + lengthSectors > endSector) {
      throw new RaidError(
        'SUPERBLOCK_BROKEN',
        `bad-block log: entry ${index} is ${length} sectors at ${fromSector} of ${memberSectors}`,
      );
    }
    ranges.push({ fromSector, lengthSectors });
  }
  return ranges;
}

/**
 * What overlaps or touches is one entry, in whole units. Null when the log has no room for so many: then the member has to
 * fail instead.
 */
export function encodeBadBlocks(
  ranges: readonly BadRange[],
  shift: number,
  logBytes = BBLOG_BYTES,
): Uint8Array | null {
  const unit = 2 ** shift;
  const runs: { from: number; to: number }[] = [];
  for (const { fromSector, lengthSectors } of ranges.toSorted((a, b) => a.fromSector - b.fromSector)) {
    assert(lengthSectors > 0, 'a bad range has a length');
    const from = Math.floor(fromSector / unit);
    const to = Math.ceil((fromSector + lengthSectors) / unit);
    const last = runs.at(-1);
    if (last !== undefined && from <= last.to) last.to = Math.max(last.to, to);
    else runs.push({ from, to });
  }
  const entries: bigint[] = [];
  for (const { from, to } of runs) {
    let at = from;
    let left = to - from;
    for (; left > 0; left -= LENGTH_MAX, at += LENGTH_MAX) {
      entries.push((BigInt(at) << 10n) | BigInt(Math.min(left, LENGTH_MAX)));
    }
  }
  const bytes = new Uint8Array(logBytes).fill(0xff);
  if (entries.length > bytes.byteLength / 8) return null;
  const view = viewOf(bytes);
  for (const [index, entry] of entries.entries()) view.setBigUint64(index * 8, entry, true);
  return bytes;
}
