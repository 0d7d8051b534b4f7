/**
 * Whether redundancy agrees with the data, looked up on the disks themselves, past the array: slow, short and
 * independent of the code that made it.
 *
 *   P = D0 + D1 + ...     Q = D0 + 2 D1 + 4 D2 + ...   by Horner, four bytes of GF(2^8) mod 0x11d at a time
 */
import type { Layout } from '../layout/layout.ts';
import { SECTOR_BYTES } from '../units.ts';

/** Reads from the data of a slot. */
export type Peek = (slot: number, offsetBytes: number, lengthBytes: number) => Uint8Array;

/** Null, or the first place that does not agree, in words. */
export function disagreement(layout: Layout, peek: Peek): string | null {
  if (layout.kind === 'copies') {
    for (let offset = 0; offset < layout.arrayBytes; ) {
      const { copies, lengthBytes } = layout.locate(offset);
      const [first, ...others] = copies.map(({ member, offsetBytes }) =>
        peek(member, offsetBytes, lengthBytes),
      );
      for (const [index, other] of others.entries()) {
        if (first === undefined || Buffer.compare(first, other) === 0) continue;
        return `copy ${index + 1} of array byte ${offset} differs from the first`;
      }
      offset += lengthBytes;
    }
    return null;
  }
  const { chunkBytes } = layout;
  for (let index = 0; index < layout.rowCount; index += 1) {
    const row = layout.row(index);
    const chunkOf = (slot: number): Uint32Array => {
      const bytes = peek(slot, index * chunkBytes, chunkBytes);
      return new Uint32Array(bytes.buffer, bytes.byteOffset, chunkBytes / 4);
    };
    const data = row.data.map(chunkOf);
    const p = chunkOf(row.p);
    const q = row.q === null ? null : chunkOf(row.q);
    // From the highest power down; a place without a disk counts as zeros.
    const order =
      q === null ? data : row.qOrder.map((which) => (which === null ? null : (data[which] ?? null)));
    order.reverse();
    for (let word = 0; word < p.length; word += 1) {
      let sumP = 0;
      let sumQ = 0;
      for (const chunk of order) {
        const value = chunk === null ? 0 : (chunk[word] as number);
        sumP ^= value;
        sumQ = doubled(sumQ) ^ value;
      }
      if (sumP >>> 0 !== p[word]) return wrong('P', index, word);
      if (q !== null && sumQ >>> 0 !== q[word]) return wrong('Q', index, word);
    }
  }
  return null;
}

function wrong(parity: string, row: number, word: number): string {
  return `${parity} of row ${row} does not agree with the data, in sector ${Math.floor((word * 4) / SECTOR_BYTES)} of the chunk`;
}

function doubled(four: number): number {
  return ((four << 1) & 0xfefefefe) ^ (((four >>> 7) & 0x01010101) * 0x1d);
}
