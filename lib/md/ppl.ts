/**
 * The partial parity log of raid5: before a stripe is changed, the XOR of the data that is *not* being written is made
 * durable on the stripe's parity member. After a crash parity = that XOR, new data read from the members: right
 * whatever of the new data arrived, so a missing member can be computed even from a dirty array.
 *
 * Area: sector super_offset + ppl.offset on each member. A header of 4096 bytes, then the partial parity of its entries
 * in order; with MULTI_PPL the next header follows, or begins again at the start when it would not fit.
 *
 *     0  512B  all ones                          entry, 24 bytes
 *   512  u32   signature, ~crc32c(set_uuid)        0  u64  data_sector, first array sector written
 *   516  u32   0                                   8  u32  pp_size, bytes of partial parity; 0 for whole stripes
 *   520  u64   generation, +1 per header          12  u32  data_size, bytes written in all chunks of the entry
 *   528  u32   entries_count, at most 148         16  u32  parity_disk, slot
 *   532  u32   checksum, ~crc32c(header)          20  u32  checksum, ~crc32c(partial parity)
 *   536  entries
 *
 * An entry covers m rows of one stripe, in c adjacent data chunks: data_size = m c, pp_size = m (bytes). Linux writes
 * whole blocks of 4 KiB; it recovers by sectors, so an entry may cover just the sectors that are written. That is what
 * raidsim logs: a sector that shares a block with one being written then keeps its content, whoever is lost.
 *
 * Only the newest header can describe unfinished rows: the next one is written when all that the last one covers is
 * durable, data and parity. The newest is found by walking from the start of the area, header by header, while
 * generations rise. (Never by searching: partial parity is the user's data, and may look like a header.)
 *
 * What a cut-off write leaves, a sector being old or new
 *   header torn            no header: the one before it is the newest, and all that it covers was durable
 *   partial parity torn    the checksum of the entry does not match: it is passed over. Nothing that it covers had begun.
 *                          (Linux resyncs a complete array then. We do where Linux wrote the log; in ours a resync that is
 *                          due is marked, and the rows of the entry are computed from their data)
 *   at the start again     a new lap over old headers: with some sectors of it new and some old, an old header may be
 *                          found whole, and rows recovered that have changed since. So a lap begins with an empty header,
 *                          durably (it differs from the empty one there in a single sector, which is old or new), then
 *                          zeros in all that follows, durably: what comes after the newest header is always zeros.
 *                          (Linux begins a lap with entries, over old ones.)
 *
 * A dirty superblock does not say whether a resync was due besides. Where one is, or a row is torn that no list of bad
 * places has (by a disk of a degraded array that takes nothing any more), every header that we write has an entry more:
 * of no bytes, with a checksum that cannot be. Linux counts a mismatch and resyncs the array, which is right; we know it
 * by sight (`RESYNC_DUE`), and make what its other entries know before the resync.
 *
 * Worked vector: set_uuid 00 01 ... 0f has the signature d9c908eb, and its empty header of generation 0 the checksum
 * a68b68c7.
 */
import { assert, RaidError } from '../errors.ts';
import { roundDown } from '../units.ts';
import { crc32c } from './crc32c.ts';
import { type Fields, parseUuid, type RecordOf, readRecord, viewOf, writeRecord } from './record.ts';

export const PPL_HEADER_BYTES = 4096;
export const PPL_ENTRIES_MAX = 148;
const ENTRIES_AT = 536;
const ENTRY_BYTES = 24;
const CHECKSUM_AT = 532;

const headerFields = {
  signature: [512, 'u32'],
  generation: [520, 'u64'],
  entryCount: [528, 'u32'],
} as const satisfies Fields;

const entryFields = {
  dataSector: [0, 'u64'],
  parityBytes: [8, 'u32'],
  dataBytes: [12, 'u32'],
  parityMember: [16, 'u32'],
  checksum: [20, 'u32'],
} as const satisfies Fields;

export type PplEntry = RecordOf<typeof entryFields>;

export interface PplHeader {
  readonly signature: number;
  readonly generation: number;
  readonly entries: readonly PplEntry[];
}

export function pplSignatureOf(setUuid: string): number {
  return pplChecksumOf(parseUuid(setUuid));
}

/** Of a header with its field 0, or of an entry's partial parity. Of nothing: 0. */
export function pplChecksumOf(bytes: Uint8Array): number {
  return ~crc32c(bytes) >>> 0;
}

/** Null when there is no header here, or one that was torn or belongs to another array: a log ends so. */
export function decodePplHeader(source: Uint8Array, signature: number): PplHeader | null {
  if (source.byteLength < PPL_HEADER_BYTES || viewOf(source).getUint32(512, true) !== signature) return null;
  const bytes = source.slice(0, PPL_HEADER_BYTES);
  const view = viewOf(bytes);
  const checksum = view.getUint32(CHECKSUM_AT, true);
  view.setUint32(CHECKSUM_AT, 0, true);
  if (pplChecksumOf(bytes) !== checksum) return null;

  const { generation, entryCount } = readRecord(headerFields, bytes, 'PPL header');
  if (entryCount > PPL_ENTRIES_MAX) throw broken(`${entryCount} entries are more than a header holds`);
  const entries = Array.from({ length: entryCount }, (_, index) => {
    const at = ENTRIES_AT + index * ENTRY_BYTES;
    return readRecord(entryFields, bytes.subarray(at, at + ENTRY_BYTES), 'PPL entry');
  });
  return { signature, generation, entries };
}

export function encodePplHeader(header: PplHeader): Uint8Array {
  assert(header.entries.length <= PPL_ENTRIES_MAX, 'a PPL header holds at most 148 entries');
  const bytes = new Uint8Array(PPL_HEADER_BYTES);
  bytes.fill(0xff, 0, 512);
  const { signature, generation, entries } = header;
  writeRecord(headerFields, bytes, { signature, generation, entryCount: entries.length });
  for (const [index, entry] of entries.entries()) {
    const at = ENTRIES_AT + index * ENTRY_BYTES;
    writeRecord(entryFields, bytes.subarray(at, at + ENTRY_BYTES), entry);
  }
  viewOf(bytes).setUint32(CHECKSUM_AT, pplChecksumOf(bytes), true);
  return bytes;
}

/** What the log holds at its start after every assembly: Linux begins with generation 0, we with 1. */
export function emptyPplHeader(setUuid: string, generation = 0): PplHeader {
  return { signature: pplSignatureOf(setUuid), generation, entries: [] };
}

/** Bytes of an area that md uses. */
export function pplUsableBytes(areaSectors: number): number {
  return areaSectors < 8 ? 0 : (8 + roundDown(areaSectors - 8, 8)) * 512;
}

export interface PplLogEntry extends PplEntry {
  /** Null when it does not match its checksum: the entry cannot be used, and the array needs a resync. */
  readonly partialParity: Uint8Array | null;
}

/** The newest header in an area and the partial parity of its entries; null when there is none. */
export function newestPpl(
  area: Uint8Array,
  setUuid: string,
): { readonly header: PplHeader; readonly entries: readonly PplLogEntry[] } | null {
  const { newest } = walk(area, pplSignatureOf(setUuid));
  if (newest === null) return null;

  const { header } = newest;
  let at = newest.atByte + PPL_HEADER_BYTES;
  const entries = header.entries.map((entry): PplLogEntry => {
    const parity = area.subarray(at, at + entry.parityBytes);
    at += entry.parityBytes;
    const whole = parity.byteLength === entry.parityBytes && pplChecksumOf(parity) === entry.checksum;
    return { ...entry, partialParity: whole ? parity.slice() : null };
  });
  return { header, entries };
}

interface Walk {
  readonly first: PplHeader | null;
  readonly newest: { readonly header: PplHeader; readonly atByte: number } | null;
  /** Where there is no header any more. */
  readonly atByte: number;
}

function walk(area: Uint8Array, signature: number): Walk {
  let first: Walk['first'] = null;
  let newest: Walk['newest'] = null;
  let atByte = 0;
  while (atByte + PPL_HEADER_BYTES <= area.byteLength) {
    const header = decodePplHeader(area.subarray(atByte), signature);
    if (header === null || (newest !== null && header.generation < newest.header.generation)) break;
    first ??= header;
    newest = { header, atByte };
    atByte += PPL_HEADER_BYTES + parityBytesOf(header);
  }
  return { first, newest, atByte };
}

/** In every header while parity may be wrong anywhere: see the top. */
export const RESYNC_DUE: PplEntry = {
  dataSector: 0,
  parityBytes: 0,
  dataBytes: 0,
  parityMember: 0,
  checksum: 1,
};

function isResyncMark(entry: PplEntry): boolean {
  return entry.dataBytes === 0 && entry.parityBytes === 0 && entry.checksum !== 0;
}

/** The cells of an entry: so many sectors of so many data chunks that follow each other in a row. */
export interface PplCells {
  readonly dataSector: number;
  readonly heightSectors: number;
  readonly chunkCount: number;
  readonly parityMember: number;
  /** Null: all data of these columns is written, and parity is its XOR. */
  readonly partialParity: Uint8Array | null;
}

/** What the log of a member says of the rows whose parity it holds, if the array was not stopped cleanly. */
export type PplVerdict =
  /**
   * Parity is right everywhere but in `cells`. `isMarked`: its writer says so where a resync is due; an entry that does not match,
   * or an empty log, of somebody else may stand for one. `torn`: the whole rows of entries that were passed over, to be computed
   * where all of their data is there.
   */
  | {
      readonly says: 'all-but';
      readonly cells: readonly PplCells[];
      readonly torn: readonly PplCells[];
      readonly isMarked: boolean;
    }
  /**
   * A resync was due: parity may be wrong anywhere, but for what was written since it was: there it is right, in `cells` once it is
   * made. Until the resync has come by that is all that a disk which fails meanwhile can be computed from.
   */
  | { readonly says: 'only'; readonly cells: readonly PplCells[] }
  /** Parity may be wrong anywhere. */
  | { readonly says: 'nothing'; readonly because: string };

/** Whether the walk from header to header ends within the bytes that have been read from an area's start. */
export function isWholePpl(bytes: Uint8Array, setUuid: string): boolean {
  try {
    return walk(bytes, pplSignatureOf(setUuid)).atByte + PPL_HEADER_BYTES <= bytes.byteLength;
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    return true;
  }
}

/** `area` null: it could not be read. `member` is the slot of whose log this is. */
export function judgePpl(
  area: Uint8Array | null,
  setUuid: string,
  shape: { readonly chunkSectors: number; readonly raidDisks: number; readonly sizeSectors: number },
  member: number,
): PplVerdict {
  if (area === null) return { says: 'nothing', because: 'its log cannot be read' };
  try {
    const newest = newestPpl(area, setUuid);
    if (newest === null) return { says: 'nothing', because: 'its log is gone' };
    const isResyncDue = newest.entries.some(isResyncMark);
    const cells: PplCells[] = [];
    const torn: PplCells[] = [];
    for (const entry of newest.entries) {
      if (isResyncMark(entry)) continue;
      if (entry.parityMember !== member)
        throw broken(`an entry is about the parity of slot ${entry.parityMember}`);
      const place = pplCellsOf(entry, shape.chunkSectors, shape.raidDisks);
      const row = Math.floor(place.dataSector / shape.chunkSectors / (shape.raidDisks - 1));
      if ((row + 1) * shape.chunkSectors > shape.sizeSectors) throw broken('an entry lies beyond the array');
      if (entry.partialParity === null) torn.push(wholeRowsOf(place, shape));
      else cells.push({ ...place, partialParity: entry.parityBytes === 0 ? null : entry.partialParity });
    }
    if (isResyncDue) return { says: 'only', cells };
    return { says: 'all-but', cells, torn, isMarked: isMarking(area, setUuid) };
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    return { says: 'nothing', because: error.message };
  }
}

/**
 * Whether who wrote this log marks it where a resync is due. Each lap of ours begins with a header of no rows, of a generation above
 * 0; of Linux's only the first does, of generation 0.
 */
function isMarking(area: Uint8Array, setUuid: string): boolean {
  const { first } = walk(area, pplSignatureOf(setUuid));
  return first !== null && first.generation > 0 && first.entries.every(isResyncMark);
}

/** All data of the rows that some chunks belong to. */
function wholeRowsOf(
  { dataSector, heightSectors, parityMember }: Omit<PplCells, 'partialParity'>,
  { chunkSectors, raidDisks }: { readonly chunkSectors: number; readonly raidDisks: number },
): PplCells {
  const chunkCount = raidDisks - 1;
  return {
    dataSector: roundDown(dataSector, chunkSectors * chunkCount) + (dataSector % chunkSectors),
    heightSectors,
    chunkCount,
    parityMember,
    partialParity: null,
  };
}

/** Refuses an entry that no stripe of this array can have. */
export function pplCellsOf(
  entry: PplEntry,
  chunkSectors: number,
  raidDisks: number,
): Omit<PplCells, 'partialParity'> {
  const { parityBytes, dataBytes, dataSector, parityMember } = entry;
  const dataCount = raidDisks - 1;
  const chunkCount = parityBytes === 0 ? dataCount : dataBytes / parityBytes;
  const heightSectors = dataBytes / chunkCount / 512;
  const firstChunk = Math.floor(dataSector / chunkSectors) % dataCount;
  const fits =
    Number.isInteger(chunkCount) &&
    chunkCount >= 1 &&
    firstChunk + chunkCount <= dataCount &&
    parityMember < raidDisks &&
    Number.isInteger(heightSectors) &&
    heightSectors > 0 &&
    (dataSector % chunkSectors) + heightSectors <= chunkSectors;
  if (!fits) {
    throw broken(`an entry of ${dataBytes} bytes at ${dataSector} with ${parityBytes} of parity cannot be`);
  }
  return { dataSector, heightSectors, chunkCount, parityMember };
}

function parityBytesOf(header: PplHeader): number {
  return header.entries.reduce((total, entry) => total + entry.parityBytes, 0);
}

function broken(why: string): RaidError {
  return new RaidError('SUPERBLOCK_BROKEN', `partial parity log: ${why}`);
}
