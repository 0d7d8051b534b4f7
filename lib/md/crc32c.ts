/**
 * CRC-32C as md's logs use it: reflected Castagnoli polynomial 0x82f63b78, start value all ones and **no** final
 * inversion, so that a checksum can be continued: `crc32c(b, crc32c(a))` is that of a and b joined. PPL stores the
 * inverse. Check value: ~crc32c("123456789") = e3069283.
 */
const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ ((crc & 1) * 0x82f63b78);
  return crc;
});

export function crc32c(bytes: Uint8Array, from = 0xffff_ffff): number {
  let crc = from;
  for (let index = 0; index < bytes.byteLength; index += 1) {
    crc = (crc >>> 8) ^ (table[(crc ^ (bytes[index] as number)) & 0xff] as number);
  }
  return crc >>> 0;
}
