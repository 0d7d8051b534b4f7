/**
 * Records of fixed layout, as tables: a field is a name, a byte offset and a type, and one reader and one writer
 * serve the superblocks, the bitmap and the logs. Everything is little-endian.
 *
 *   u8 u16 s16 u32 s32   a number
 *   u64                  a number; a value that a double cannot hold is refused, naming the field
 *   position             a sector number; all ones, md's "nothing left to do", is Infinity, so that it compares as it
 *                        means. A value that is neither is NaN: many positions count only with a feature bit, and
 *                        stale bytes without the bit are normal. Who uses a position checks it (`isPosition`).
 *   time                 40 bits of seconds, 24 of microseconds
 *   uuid                 16 bytes in order, as mdadm prints them: 00010203:04050607:08090a0b:0c0d0e0f
 *   text32               32 bytes, NUL-padded UTF-8
 *
 * Hazard: JSON turns Infinity and NaN into null.
 *
 * The writer touches only fields whose value differs from what the bytes already say. So whatever a field's decoded
 * form cannot carry (bytes after a name's NUL, a stale position) survives a round trip, and reading, changing one
 * field and writing changes that field alone.
 */
import { assert, RaidError, unreachable } from '../errors.ts';

export interface Time {
  readonly seconds: number;
  readonly microseconds: number;
}

export type FieldType =
  | 'u8'
  | 'u16'
  | 's16'
  | 'u32'
  | 's32'
  | 'u64'
  | 'position'
  | 'time'
  | 'uuid'
  | 'text32';
type Value = number | string | Time;
type ValueOf<T extends FieldType> = T extends 'time' ? Time : T extends 'uuid' | 'text32' ? string : number;

export type Fields = Readonly<Record<string, readonly [offsetBytes: number, type: FieldType]>>;
export type RecordOf<F extends Fields> = { readonly [K in keyof F]: ValueOf<F[K][1]> };

const ALL_ONES = 0xffff_ffff;

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** `what` names the record in refusals. The caller has checked that the bytes are long enough. */
export function readRecord<F extends Fields>(fields: F, bytes: Uint8Array, what: string): RecordOf<F> {
  const view = viewOf(bytes);
  const record: Record<string, Value> = {};
  for (const name in fields) {
    const [offsetBytes, type] = fields[name] as F[typeof name];
    const value = readField(view, offsetBytes, type);
    if (value === null) {
      throw new RaidError('SUPERBLOCK_BROKEN', `${what}: field ${name} is larger than any device`);
    }
    record[name] = value;
  }
  return record as RecordOf<F>;
}

export function writeRecord<F extends Fields>(fields: F, bytes: Uint8Array, record: RecordOf<F>): void {
  const view = viewOf(bytes);
  for (const name in fields) {
    const [offsetBytes, type] = fields[name] as F[typeof name];
    const value: Value = record[name];
    if (!isSame(readField(view, offsetBytes, type), value)) writeField(view, offsetBytes, type, value);
  }
}

/** True where a `position` can be used: a sector number, or Infinity. */
export function isPosition(value: number): boolean {
  return value === Infinity || Number.isSafeInteger(value);
}

const hex: readonly string[] = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'));

export function formatUuid(bytes: Uint8Array): string {
  assert(bytes.byteLength === 16, 'a uuid is 16 bytes');
  let text = '';
  for (let index = 0; index < 16; index += 1) {
    if (index > 0 && index % 4 === 0) text += ':';
    text += hex[bytes[index] as number] as string;
  }
  return text;
}

/** Accepts any grouping: colons and dashes are skipped. */
export function parseUuid(text: string): Uint8Array {
  const digits = text.replaceAll(/[:-]/g, '');
  if (!/^[0-9a-f]{32}$/i.test(digits)) {
    throw new RaidError('BAD_ARGUMENT', 'a uuid is 32 hexadecimal digits, with or without colons');
  }
  return Uint8Array.from({ length: 16 }, (_, index) =>
    Number.parseInt(digits.slice(index * 2, index * 2 + 2), 16),
  );
}

export const zeroUuid = '00000000:00000000:00000000:00000000';

const decoder = new TextDecoder();
const encoder = new TextEncoder();

function readField(view: DataView, offsetBytes: number, type: FieldType): Value | null {
  switch (type) {
    case 'u8':
      return view.getUint8(offsetBytes);
    case 'u16':
      return view.getUint16(offsetBytes, true);
    case 's16':
      return view.getInt16(offsetBytes, true);
    case 'u32':
      return view.getUint32(offsetBytes, true);
    case 's32':
      return view.getInt32(offsetBytes, true);
    case 'u64':
      return readU64(view, offsetBytes);
    case 'position': {
      const isAllOnes =
        view.getUint32(offsetBytes, true) === ALL_ONES && view.getUint32(offsetBytes + 4, true) === ALL_ONES;
      return isAllOnes ? Infinity : (readU64(view, offsetBytes) ?? Number.NaN);
    }
    case 'time': {
      const low = view.getUint32(offsetBytes, true);
      const high = view.getUint32(offsetBytes + 4, true);
      return { seconds: (high & 0xff) * 2 ** 32 + low, microseconds: high >>> 8 };
    }
    case 'uuid':
      return formatUuid(new Uint8Array(view.buffer, view.byteOffset + offsetBytes, 16));
    case 'text32': {
      let text = '';
      for (let at = offsetBytes; at < offsetBytes + 32; at += 1) {
        const code = view.getUint8(at);
        if (code === 0) break;
        if (code >= 0x80) return decodeText(view, offsetBytes);
        text += String.fromCharCode(code);
      }
      return text;
    }
    default:
      return unreachable(type);
  }
}

/** Two halves, without a bigint on the way: superblocks are coded all the time. Null where a double cannot hold it. */
function readU64(view: DataView, offsetBytes: number): number | null {
  const high = view.getUint32(offsetBytes + 4, true);
  return high > 0x1f_ffff ? null : high * 2 ** 32 + view.getUint32(offsetBytes, true);
}

function writeU64(view: DataView, offsetBytes: number, value: number): void {
  view.setUint32(offsetBytes, value % 2 ** 32, true);
  view.setUint32(offsetBytes + 4, Math.floor(value / 2 ** 32), true);
}

function decodeText(view: DataView, offsetBytes: number): string {
  const bytes = new Uint8Array(view.buffer, view.byteOffset + offsetBytes, 32);
  const end = bytes.indexOf(0);
  return decoder.decode(end === -1 ? bytes : bytes.subarray(0, end));
}

function writeField(view: DataView, offsetBytes: number, type: FieldType, value: Value): void {
  switch (type) {
    case 'u8':
      assert(isInteger(value, 0, 0xff), 'a u8 field takes 0 to 255');
      view.setUint8(offsetBytes, value);
      break;
    case 'u16':
      assert(isInteger(value, 0, 0xffff), 'a u16 field takes 0 to 65535');
      view.setUint16(offsetBytes, value, true);
      break;
    case 's16':
      assert(isInteger(value, -0x8000, 0x7fff), 'an s16 field takes -32768 to 32767');
      view.setInt16(offsetBytes, value, true);
      break;
    case 'u32':
      assert(isInteger(value, 0, 0xffff_ffff), 'a u32 field takes 0 to 2^32 - 1');
      view.setUint32(offsetBytes, value, true);
      break;
    case 's32':
      assert(isInteger(value, -0x8000_0000, 0x7fff_ffff), 'an s32 field takes -2^31 to 2^31 - 1');
      view.setInt32(offsetBytes, value, true);
      break;
    case 'u64':
      assert(isInteger(value, 0, Number.MAX_SAFE_INTEGER), 'a u64 field takes a safe integer');
      writeU64(view, offsetBytes, value);
      break;
    case 'position':
      assert(
        value === Infinity || isInteger(value, 0, Number.MAX_SAFE_INTEGER),
        'a position is a sector or Infinity',
      );
      if (value !== Infinity) {
        writeU64(view, offsetBytes, value as number);
        break;
      }
      view.setUint32(offsetBytes, ALL_ONES, true);
      view.setUint32(offsetBytes + 4, ALL_ONES, true);
      break;
    case 'time': {
      assert(typeof value === 'object', 'a time has seconds and microseconds');
      assert(isInteger(value.seconds, 0, 2 ** 40 - 1), 'the seconds of a time have 40 bits');
      assert(isInteger(value.microseconds, 0, 2 ** 24 - 1), 'the microseconds of a time have 24 bits');
      view.setUint32(offsetBytes, value.seconds % 2 ** 32, true);
      view.setUint32(offsetBytes + 4, value.microseconds * 256 + Math.floor(value.seconds / 2 ** 32), true);
      break;
    }
    case 'uuid':
      assert(typeof value === 'string', 'a uuid is text');
      new Uint8Array(view.buffer, view.byteOffset + offsetBytes, 16).set(parseUuid(value));
      break;
    case 'text32': {
      assert(typeof value === 'string', 'a name is text');
      const bytes = encoder.encode(value);
      if (bytes.byteLength > 32 || bytes.includes(0)) {
        throw new RaidError('BAD_ARGUMENT', `the name "${value}" does not fit into 32 bytes`);
      }
      const target = new Uint8Array(view.buffer, view.byteOffset + offsetBytes, 32);
      target.fill(0);
      target.set(bytes);
      break;
    }
    default:
      unreachable(type);
  }
}

function isInteger(value: Value, min: number, max: number): value is number {
  return Number.isInteger(value) && (value as number) >= min && (value as number) <= max;
}

function isSame(left: Value | null, right: Value): boolean {
  if (typeof left === 'object' && left !== null && typeof right === 'object') {
    return left.seconds === right.seconds && left.microseconds === right.microseconds;
  }
  return Object.is(left, right);
}
