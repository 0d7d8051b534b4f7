/**
 * Sizes as people write and read them. Inside, everything is bytes in a `number` (exact to 8 PiB); a sector is
 * 512 bytes wherever the word appears. Letters mean powers of 1024: `64K`, `64KiB` and `65536` are one size.
 */
import { RaidError } from './errors.ts';

export const SECTOR_BYTES = 512;
export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;

const suffixes = ['', 'K', 'M', 'G', 'T', 'P'] as const;
const pattern = /^\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?\s*$/i;

/** The number of bytes that `text` names; numbers pass through. Refuses what is not a whole number of bytes. */
export function parseSize(text: string | number): number {
  const match = pattern.exec(String(text));
  const bytes =
    match === null
      ? Number.NaN
      : Number(match[1]) * 1024 ** suffixes.indexOf((match[2] ?? '').toUpperCase() as '');
  if (!Number.isSafeInteger(bytes)) {
    throw new RaidError('BAD_ARGUMENT', `"${text}" is not a size; write for example 4096, 64K, 256M or 1G`);
  }
  return bytes;
}

/** `1.5 GiB`: at most one decimal, none where it would be zero. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let index = 0;
  while (value >= 1024 && index < suffixes.length - 1) {
    value /= 1024;
    index += 1;
  }
  const digits = Number.isInteger(value) ? value.toString() : value.toFixed(1);
  return index === 0 ? `${digits} B` : `${digits} ${suffixes[index]}iB`;
}

export function divCeil(dividend: number, divisor: number): number {
  return Math.ceil(dividend / divisor);
}

export function roundDown(value: number, multiple: number): number {
  return value - (value % multiple);
}

export function roundUp(value: number, multiple: number): number {
  return roundDown(value + multiple - 1, multiple);
}
