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
 * An entry covers m rows of 4 KiB in one stripe, in c adjacent data chunks: data_size = m c 4096, pp_size = m 4096.
 * Only the newest header can describe unfinished stripes: the next one is written when all of them are done.
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
const BLOCK_BYTES = 4096;

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
  if (source.byteLength < PPL_HEADER_BYTES) return null;
  const bytes = source.slice(0, PPL_HEADER_BYTES);
  const view = viewOf(bytes);
  const checksum = view.getUint32(CHECKSUM_AT, true);
  view.setUint32(CHECKSUM_AT, 0, true);
  if (pplChecksumOf(bytes) !== checksum || view.getUint32(512, true) !== signature) return null;

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

/** What the log holds at its start after every assembly. */
export function emptyPplHeader(setUuid: string): PplHeader {
  return { signature: pplSignatureOf(setUuid), generation: 0, entries: [] };
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
  const signature = pplSignatureOf(setUuid);
  let newest: { header: PplHeader; atByte: number } | null = null;
  let atByte = 0;
  while (atByte + PPL_HEADER_BYTES <= area.byteLength) {
    const header = decodePplHeader(area.subarray(atByte), signature);
    if (header === null || (newest !== null && header.generation < newest.header.generation)) break;
    newest = { header, atByte };
    atByte += PPL_HEADER_BYTES + parityBytesOf(header);
  }
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

/**
 * The places whose new data, XORed together and with the partial parity, are the parity: for each block of 4 KiB from
 * the first, offsets from `dataSector` in array sectors. Refuses an entry that no stripe of this array can have.
 */
export function pplBlocksOf(
  entry: PplEntry,
  chunkSectors: number,
  raidDisks: number,
): readonly (readonly number[])[] {
  const { parityBytes, dataBytes, dataSector } = entry;
  const wholeStripes = parityBytes === 0;
  const chunkCount = wholeStripes ? raidDisks - 1 : dataBytes / parityBytes;
  const heightBytes = wholeStripes ? dataBytes / chunkCount : parityBytes;
  const fits =
    Number.isInteger(chunkCount) &&
    chunkCount >= 1 &&
    chunkCount < raidDisks &&
    entry.parityMember < raidDisks;
  const aligned = heightBytes > 0 && heightBytes % BLOCK_BYTES === 0 && dataSector % 8 === 0;
  if (!fits || !aligned || heightBytes > chunkSectors * 512) {
    throw broken(`an entry of ${dataBytes} bytes at ${dataSector} with ${parityBytes} of parity cannot be`);
  }
  return Array.from({ length: heightBytes / BLOCK_BYTES }, (_, block) =>
    Array.from({ length: chunkCount }, (_, chunk) => block * 8 + chunk * chunkSectors),
  );
}

function parityBytesOf(header: PplHeader): number {
  return header.entries.reduce((total, entry) => total + entry.parityBytes, 0);
}

function broken(why: string): RaidError {
  return new RaidError('SUPERBLOCK_BROKEN', `partial parity log: ${why}`);
}
