/**
 * CRC-32C as md's logs use it: reflected Castagnoli polynomial 0x82f63b78, start value all ones and **no** final
 * inversion, so that a checksum can be continued: `crc32c(b, crc32c(a))` is that of a and b joined. PPL stores the
 * inverse. Check value: ~crc32c("123456789") = e3069283.
 */

/** By how many bytes follow: what a byte does to the checksum once these are in it too. So four bytes cost one step. */
const tables = [0, 1, 2, 3].map((following) =>
  Int32Array.from({ length: 256 }, (_, byte) => after(byte, 1 + following)),
);
const [last, third, second, first] = tables as [Int32Array, Int32Array, Int32Array, Int32Array];

function after(byte: number, byteCount: number): number {
  let crc = byte;
  for (let bit = 0; bit < 8 * byteCount; bit += 1) crc = (crc >>> 1) ^ ((crc & 1) * 0x82f63b78);
  return crc;
}

export function crc32c(bytes: Uint8Array, from = 0xffff_ffff): number {
  const { byteLength } = bytes;
  let crc = from | 0;
  let index = 0;
  for (; index + 4 <= byteLength; index += 4) {
    const a = crc ^ (bytes[index] as number);
    const b = (crc >>> 8) ^ (bytes[index + 1] as number);
    const c = (crc >>> 16) ^ (bytes[index + 2] as number);
    const d = (crc >>> 24) ^ (bytes[index + 3] as number);
    crc =
      (first[a & 0xff] as number) ^
      (second[b & 0xff] as number) ^
      (third[c & 0xff] as number) ^
      (last[d] as number);
  }
  for (; index < byteLength; index += 1) {
    crc = (crc >>> 8) ^ (last[(crc ^ (bytes[index] as number)) & 0xff] as number);
  }
  return crc >>> 0;
}
