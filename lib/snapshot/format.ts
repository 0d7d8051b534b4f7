/**
 * The snapshot store on disk: one file beside the array. All numbers little-endian, everything in units of 4096 bytes.
 *
 *   0            header, one unit: what does not change
 *   4096         half 0 of the journal
 *   4096 + J     half 1
 *   4096 + 2 J   slots: slot s at 4096 + 2 J + s × chunk size. The file is sparse here
 *
 *   header          0   "raidsim snapshot"            frame         0   "raidsnap"
 *                  16   u32   version, 2                            8   u32   kind: 1 checkpoint, 2 batch, 3 superseded
 *                  20   u32   chunk size                           12   u32   length of the entries
 *                  24   u64   size of the origin                   16   u64   generation
 *                  32   u64   J, the length of a half              24   u64   sequence in the half, from 0
 *                  40   u32   slots                                32   u32   CRC-32 of head and entries, with this field zero
 *                  44   u32   CRC-32 with this field zero          36         uuid of the store
 *                  48         uuid, 16 bytes                       64         entries; then zeros to a whole unit
 *                  64   u32   length of the origin's id
 *                  68         the id, UTF-8, at most 1024 bytes
 *
 *   entry: u8 kind, then
 *     1 next       u8 0, u16 0, u32 id                        4 mark      u8 0, u48 chunk, u32 id
 *     2 snapshot   u8 state, u16 length of the name,          5 become    u8 state, u16 0, u32 id
 *                  u32 id, u64 milliseconds, u64 nonce, name  6 rollback  u8 last, u16 0, u32 id
 *     3 copy       u8 0, u48 chunk, u32 id,                   7 seal      u8 0, u16 0, u32 0
 *                  u32 slot, u32 CRC-32 of the chunk          8 witness   u8 0, u16 length, u32 0, text
 *                                                             9 lost      u8 0, u48 chunk, u32 id
 *                                                             states: 0 valid, 1 invalid, 2 tracking, 3 gone
 *
 * A half begins with a checkpoint, the entries that make the whole history, and goes on with batches, the entries that changed it.
 * A half that is full, and every opening, lead to a checkpoint in the other half with the next generation; when that is
 * durable, the old one is overwritten with "superseded by that generation". The highest generation counts.
 *
 * What a crash leaves. A batch and the slots that it names are written together and made durable by one flush, and the
 * next batch is written only after that. Nothing relies on a batch before its flush is over: the origin is written after it, freed
 * slots are used again after it. So only the last batch of a half can be torn, or name a slot whose bytes are
 * not all there, and it may be dropped as a whole if it is. Which it is, its checksum and those of its slots say. Bytes of earlier
 * batches cannot be torn: if they do not match, they have rotted, and that is never taken for an end. A frame of the same
 * generation behind a broken one is refused, and so is a broken checkpoint, since the one before it is superseded. Closing
 * adds a last batch, the seal, which can be missed.
 *
 *   Example: 1 MiB in chunks of 4096 and 64 slots: J = 2 × (64 + 2 × 64 × 20 + 65536) rounded up = 139264; slots from
 *   282624 on; the file has 544768 bytes.
 */
import { crc32 } from 'node:zlib';
import { RaidError } from '../errors.ts';
import { KIB, roundUp } from '../units.ts';
import type { Entry } from './history.ts';

export const UNIT_BYTES = 4 * KIB;
export const NAME_BYTES_MAX = 255;
export const UUID_BYTES = 16;
const MAGIC = 'raidsim snapshot';
const VERSION = 2;
const HEADER_CRC_AT = 44;
const ORIGIN_AT = 68;
const ORIGIN_BYTES_MAX = 1024;
const FRAME_MAGIC = 'raidsnap';
const FRAME_CRC_AT = 32;
const HEAD_BYTES = 64;
/** For the list of snapshots; tracking may use what it leaves. */
const LIST_BYTES = 64 * KIB;
const COPY_BYTES = 20;
const MARK_BYTES = 12;
const SNAPSHOT_BYTES = 24;
export const NONCE_BYTES = 8;
const SHORT_BYTES = 8;
export const WITNESS_BYTES_MAX = 64;
export const CHUNK_NUMBERS = 2 ** 48;

const states = ['valid', 'invalid', 'tracking', 'gone'] as const;
const kinds = ['checkpoint', 'batch', 'superseded'] as const;

export interface Header {
  readonly uuid: Uint8Array;
  readonly originBytes: number;
  readonly chunkBytes: number;
  readonly slotCount: number;
  readonly origin: string;
}

export interface Frame {
  readonly kind: (typeof kinds)[number];
  /** In a superseded half: the generation that took its place. */
  readonly generation: number;
  readonly sequence: number;
  readonly entries: readonly Entry[];
}

/** How long the entries of a checkpoint may become, and twice that is half a journal. */
function checkpointBytes(slotCount: number): number {
  return HEAD_BYTES + 2 * slotCount * COPY_BYTES + LIST_BYTES;
}

export function halfBytesFor(slotCount: number): number {
  return roundUp(2 * checkpointBytes(slotCount), UNIT_BYTES);
}

/** Whether a checkpoint has room for all slots, so many marks, and a list of snapshots with these names. */
export function hasRoom(slotCount: number, markCount: number, names: readonly string[]): boolean {
  const list = names.reduce((sum, name) => sum + SNAPSHOT_BYTES + Buffer.byteLength(name), 0);
  const rest =
    2 * SHORT_BYTES + 2 * (SHORT_BYTES + WITNESS_BYTES_MAX) + slotCount * COPY_BYTES + markCount * MARK_BYTES;
  return HEAD_BYTES + rest + list <= checkpointBytes(slotCount);
}

export function slotOffset(header: Header, slot: number): number {
  return UNIT_BYTES + 2 * halfBytesFor(header.slotCount) + slot * header.chunkBytes;
}

export function storeBytesFor(header: Header): number {
  return slotOffset(header, header.slotCount);
}

export function encodeHeader(header: Header): Buffer {
  const origin = Buffer.from(header.origin);
  if (origin.byteLength > ORIGIN_BYTES_MAX) {
    throw new RaidError('BAD_ARGUMENT', `the id of an origin has at most ${ORIGIN_BYTES_MAX} bytes`);
  }
  const bytes = Buffer.alloc(UNIT_BYTES);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt32LE(VERSION, 16);
  bytes.writeUInt32LE(header.chunkBytes, 20);
  bytes.writeBigUInt64LE(BigInt(header.originBytes), 24);
  bytes.writeBigUInt64LE(BigInt(halfBytesFor(header.slotCount)), 32);
  bytes.writeUInt32LE(header.slotCount, 40);
  bytes.set(header.uuid, 48);
  bytes.writeUInt32LE(origin.byteLength, 64);
  bytes.set(origin, ORIGIN_AT);
  bytes.writeUInt32LE(crc32(bytes), HEADER_CRC_AT);
  return bytes;
}

/** `name` is the store's, for messages. */
export function decodeHeader(bytes: Buffer, name: string): Header {
  const place = { device: name };
  if (bytes.byteLength < UNIT_BYTES || bytes.toString('latin1', 0, MAGIC.length) !== MAGIC) {
    throw new RaidError(
      'BAD_MAGIC',
      `${name} is not a snapshot store of raidsim; nothing was changed`,
      place,
    );
  }
  const version = bytes.readUInt32LE(16);
  if (version !== VERSION) {
    throw new RaidError(
      'UNSUPPORTED_FEATURE',
      `${name} is a snapshot store of version ${version}, and this raidsim knows version ${VERSION}`,
      place,
    );
  }
  if (checksumWithout(bytes.subarray(0, UNIT_BYTES), HEADER_CRC_AT) !== bytes.readUInt32LE(HEADER_CRC_AT)) {
    throw new RaidError(
      'SUPERBLOCK_BROKEN',
      `${name}: the header of the snapshot store has a wrong checksum`,
      place,
    );
  }
  const chunkBytes = bytes.readUInt32LE(20);
  const originBytes = Number(bytes.readBigUInt64LE(24));
  const slotCount = bytes.readUInt32LE(40);
  const idBytes = bytes.readUInt32LE(64);
  const isSound =
    chunkBytes > 0 &&
    chunkBytes % UNIT_BYTES === 0 &&
    slotCount > 0 &&
    Number.isSafeInteger(originBytes) &&
    originBytes > 0 &&
    bytes.readBigUInt64LE(32) === BigInt(halfBytesFor(slotCount)) &&
    idBytes <= ORIGIN_BYTES_MAX;
  if (!isSound) {
    throw new RaidError(
      'SUPERBLOCK_BROKEN',
      `${name}: the header of the snapshot store contradicts itself`,
      place,
    );
  }
  return {
    uuid: Uint8Array.from(bytes.subarray(48, 48 + UUID_BYTES)),
    originBytes,
    chunkBytes,
    slotCount,
    origin: bytes.toString('utf8', ORIGIN_AT, ORIGIN_AT + idBytes),
  };
}

export function entryBytes(entry: Entry): number {
  switch (entry.op) {
    case 'copy':
      return COPY_BYTES;
    case 'mark':
    case 'lost':
      return MARK_BYTES;
    case 'snapshot':
      return SNAPSHOT_BYTES + Buffer.byteLength(entry.name);
    case 'witness':
      return SHORT_BYTES + Buffer.byteLength(entry.text);
    default:
      return SHORT_BYTES;
  }
}

export function encodeFrame(uuid: Uint8Array, frame: Frame): Buffer {
  const entries = frame.entries.reduce((sum, entry) => sum + entryBytes(entry), 0);
  const bytes = Buffer.alloc(roundUp(HEAD_BYTES + entries, UNIT_BYTES));
  bytes.write(FRAME_MAGIC, 0, 'latin1');
  bytes.writeUInt32LE(1 + kinds.indexOf(frame.kind), 8);
  bytes.writeUInt32LE(entries, 12);
  bytes.writeBigUInt64LE(BigInt(frame.generation), 16);
  bytes.writeBigUInt64LE(BigInt(frame.sequence), 24);
  bytes.set(uuid, 36);
  let at = HEAD_BYTES;
  for (const entry of frame.entries) {
    writeEntry(bytes, at, entry);
    at += entryBytes(entry);
  }
  bytes.writeUInt32LE(crc32(bytes.subarray(0, at)), FRAME_CRC_AT);
  return bytes;
}

/**
 * The frame that begins there, and its length on disk; null where there is none that is whole. A frame whose checksum is right and
 * whose entries make no sense was not written by this version: that is thrown.
 */
export function decodeFrame(
  bytes: Buffer,
  start: number,
  uuid: Uint8Array,
): { readonly frame: Frame; readonly lengthBytes: number } | null {
  if (start + HEAD_BYTES > bytes.byteLength) return null;
  if (bytes.toString('latin1', start, start + FRAME_MAGIC.length) !== FRAME_MAGIC) return null;
  const end = start + HEAD_BYTES + bytes.readUInt32LE(start + 12);
  if (end > bytes.byteLength) return null;
  if (Buffer.compare(bytes.subarray(start + 36, start + 36 + UUID_BYTES), uuid) !== 0) return null;
  const whole = bytes.subarray(start, end);
  if (checksumWithout(whole, FRAME_CRC_AT) !== whole.readUInt32LE(FRAME_CRC_AT)) return null;
  const kind = kinds[whole.readUInt32LE(8) - 1];
  if (kind === undefined) throw nonsense();
  const entries: Entry[] = [];
  for (let at = HEAD_BYTES; at < whole.byteLength; ) {
    const entry = readEntry(whole, at);
    entries.push(entry);
    at += entryBytes(entry);
  }
  const generation = Number(whole.readBigUInt64LE(16));
  const sequence = Number(whole.readBigUInt64LE(24));
  return {
    frame: { kind, generation, sequence, entries },
    lengthBytes: roundUp(whole.byteLength, UNIT_BYTES),
  };
}

function writeEntry(bytes: Buffer, at: number, entry: Entry): void {
  switch (entry.op) {
    case 'next':
      bytes[at] = 1;
      bytes.writeUInt32LE(entry.id, at + 4);
      return;
    case 'snapshot': {
      const name = Buffer.from(entry.name);
      bytes[at] = 2;
      bytes[at + 1] = states.indexOf(entry.state);
      bytes.writeUInt16LE(name.byteLength, at + 2);
      bytes.writeUInt32LE(entry.id, at + 4);
      bytes.writeBigUInt64LE(BigInt(entry.createdAtMs), at + 8);
      bytes.write(entry.nonce, at + 16, NONCE_BYTES, 'hex');
      bytes.set(name, at + SNAPSHOT_BYTES);
      return;
    }
    case 'copy':
      bytes[at] = 3;
      bytes.writeUIntLE(entry.chunk, at + 2, 6);
      bytes.writeUInt32LE(entry.id, at + 8);
      bytes.writeUInt32LE(entry.slot, at + 12);
      bytes.writeUInt32LE(entry.crc, at + 16);
      return;
    case 'mark':
    case 'lost':
      bytes[at] = entry.op === 'mark' ? 4 : 9;
      bytes.writeUIntLE(entry.chunk, at + 2, 6);
      bytes.writeUInt32LE(entry.id, at + 8);
      return;
    case 'become':
      bytes[at] = 5;
      bytes[at + 1] = states.indexOf(entry.state);
      bytes.writeUInt32LE(entry.id, at + 4);
      return;
    case 'rollback':
      bytes[at] = 6;
      bytes[at + 1] = entry.isLast === true ? 1 : 0;
      bytes.writeUInt32LE(entry.id, at + 4);
      return;
    case 'seal':
      bytes[at] = 7;
      return;
    case 'witness': {
      const text = Buffer.from(entry.text);
      bytes[at] = 8;
      bytes.writeUInt16LE(text.byteLength, at + 2);
      bytes.set(text, at + SHORT_BYTES);
      return;
    }
  }
}

function readEntry(bytes: Buffer, at: number): Entry {
  const left = bytes.byteLength - at;
  if (left < SHORT_BYTES) throw nonsense();
  const id = bytes.readUInt32LE(at + 4);
  const state = states[bytes[at + 1] as number];
  switch (bytes[at]) {
    case 1:
      return { op: 'next', id };
    case 2: {
      if (left < SNAPSHOT_BYTES) throw nonsense();
      const nameEnd = SNAPSHOT_BYTES + bytes.readUInt16LE(at + 2);
      const createdAtMs = Number(bytes.readBigUInt64LE(at + 8));
      const nonce = bytes.toString('hex', at + 16, at + SNAPSHOT_BYTES);
      if (left < nameEnd || state === undefined || state === 'gone') throw nonsense();
      const name = bytes.toString('utf8', at + SNAPSHOT_BYTES, at + nameEnd);
      if (Buffer.byteLength(name) !== nameEnd - SNAPSHOT_BYTES) throw nonsense();
      return { op: 'snapshot', id, name, createdAtMs, nonce, state };
    }
    case 3:
      if (left < COPY_BYTES) throw nonsense();
      return {
        op: 'copy',
        chunk: bytes.readUIntLE(at + 2, 6),
        id: bytes.readUInt32LE(at + 8),
        slot: bytes.readUInt32LE(at + 12),
        crc: bytes.readUInt32LE(at + 16),
      };
    case 4:
    case 9:
      if (left < MARK_BYTES) throw nonsense();
      return {
        op: bytes[at] === 4 ? 'mark' : 'lost',
        chunk: bytes.readUIntLE(at + 2, 6),
        id: bytes.readUInt32LE(at + 8),
      };
    case 5:
      if (state === undefined || state === 'valid') throw nonsense();
      return { op: 'become', id, state };
    case 6:
      return bytes[at + 1] === 1 ? { op: 'rollback', id, isLast: true } : { op: 'rollback', id };
    case 7:
      return { op: 'seal' };
    case 8: {
      const textEnd = SHORT_BYTES + bytes.readUInt16LE(at + 2);
      if (left < textEnd) throw nonsense();
      const text = bytes.toString('utf8', at + SHORT_BYTES, at + textEnd);
      if (Buffer.byteLength(text) !== textEnd - SHORT_BYTES) throw nonsense();
      return { op: 'witness', text };
    }
    default:
      throw nonsense();
  }
}

function checksumWithout(bytes: Buffer, at: number): number {
  const before = crc32(bytes.subarray(0, at));
  return crc32(bytes.subarray(at + 4), crc32(Buffer.alloc(4), before));
}

function nonsense(): RaidError {
  return new RaidError(
    'SUPERBLOCK_BROKEN',
    'a record of a snapshot store is whole and makes no sense: a newer raidsim may have written it',
  );
}
