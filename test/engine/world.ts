/**
 * Arrays as bytes, written out independently of plans and engine: what every member must hold for a given content of
 * the array (`imagesOf`), and which array bytes are beyond redundancy when certain places cannot be read (`isReadable`).
 * Parity is made from the definition.
 */
import { compileLayout } from '../../lib/layout/compile.ts';
import { type Geometry, memberCountOf } from '../../lib/layout/geometry.ts';
import type { Layout } from '../../lib/layout/layout.ts';
import { multiplyByDefinition, powerByDefinition } from '../../lib/parity/reference.ts';
import { KIB } from '../../lib/units.ts';

export const CHUNK = 4 * KIB;

const raid10 = (memberCount: number, near: number, far: number, offset: boolean): Geometry => ({
  level: 'raid10',
  memberCount,
  chunkBytes: CHUNK,
  memberBytes: 4 * CHUNK,
  near,
  far,
  offset,
  farSets: 0,
});

/** Small arrays of every kind, a few rows each. */
export const shapes: readonly (readonly [string, Geometry])[] = [
  ['linear', { level: 'linear', chunkBytes: CHUNK, memberBytes: [3 * CHUNK, 4 * CHUNK, 2 * CHUNK] }],
  [
    'raid0',
    {
      level: 'raid0',
      layout: 'alternate',
      chunkBytes: CHUNK,
      memberBytes: [2 * CHUNK, 4 * CHUNK, 3 * CHUNK],
    },
  ],
  ['raid1', { level: 'raid1', memberCount: 3, memberBytes: 4 * CHUNK }],
  ['raid4', { level: 'raid4', memberCount: 4, chunkBytes: CHUNK, memberBytes: 3 * CHUNK }],
  [
    'raid5',
    { level: 'raid5', layout: 'left-symmetric', memberCount: 4, chunkBytes: CHUNK, memberBytes: 4 * CHUNK },
  ],
  [
    'raid6',
    { level: 'raid6', layout: 'left-symmetric', memberCount: 5, chunkBytes: CHUNK, memberBytes: 3 * CHUNK },
  ],
  [
    'raid6 ddf',
    { level: 'raid6', layout: 'ddf-N-continue', memberCount: 6, chunkBytes: CHUNK, memberBytes: 2 * CHUNK },
  ],
  ['raid10 near', raid10(4, 2, 1, false)],
  ['raid10 far', raid10(3, 1, 2, false)],
  ['raid10 offset', raid10(5, 1, 2, true)],
];

export function geometryNamed(name: string): Geometry {
  const found = shapes.find(([title]) => title === name);
  if (found === undefined) throw new RangeError(`there is no shape ${name}`);
  return found[1];
}

/** The geometry with members of about this many bytes. */
export function sized(geometry: Geometry, memberBytes: number): Geometry {
  return typeof geometry.memberBytes === 'number'
    ? ({ ...geometry, memberBytes } as Geometry)
    : ({ ...geometry, memberBytes: geometry.memberBytes.map(() => memberBytes) } as Geometry);
}

export function memberBytesOf(geometry: Geometry, slot: number): number {
  return typeof geometry.memberBytes === 'number' ? geometry.memberBytes : (geometry.memberBytes[slot] ?? 0);
}

export function slotsOf(geometry: Geometry): readonly number[] {
  return Array.from({ length: memberCountOf(geometry) }, (_, slot) => slot);
}

const table = Array.from({ length: 256 }, (_, exponent) => {
  const factor = powerByDefinition(2, exponent);
  return Uint8Array.from({ length: 256 }, (_, byte) => multiplyByDefinition(factor, byte));
});

/** What every member holds when the array holds `content`. Bytes that the layout does not use are 0. */
export function imagesOf(layout: Layout, content: Uint8Array): Uint8Array[] {
  const images = layout.memberBytes.map((bytes) => new Uint8Array(bytes));
  if (layout.kind === 'copies') {
    for (let at = 0; at < layout.arrayBytes; ) {
      const extent = layout.locate(at);
      for (const { member, offsetBytes } of extent.copies) {
        images[member]?.set(content.subarray(at, at + extent.lengthBytes), offsetBytes);
      }
      at += extent.lengthBytes;
    }
    return images;
  }
  const { chunkBytes, dataCount } = layout;
  for (let rowIndex = 0; rowIndex < layout.rowCount; rowIndex += 1) {
    const row = layout.row(rowIndex);
    const p = new Uint8Array(chunkBytes);
    const q = new Uint8Array(chunkBytes);
    for (let index = 0; index < dataCount; index += 1) {
      const start = (rowIndex * dataCount + index) * chunkBytes;
      const chunk = content.subarray(start, start + chunkBytes);
      images[row.data[index] ?? -1]?.set(chunk, rowIndex * chunkBytes);
      const times = table[row.qOrder.indexOf(index)] ?? new Uint8Array(256);
      for (let byte = 0; byte < chunkBytes; byte += 1) {
        const value = chunk[byte] ?? 0;
        p[byte] = (p[byte] ?? 0) ^ value;
        q[byte] = (q[byte] ?? 0) ^ (times[value] ?? 0);
      }
    }
    images[row.p]?.set(p, rowIndex * chunkBytes);
    if (row.q !== null) images[row.q]?.set(q, rowIndex * chunkBytes);
  }
  return images;
}

/** Whether an array byte is held or can be computed when `isLost` says which member bytes cannot be had. */
export function isReadable(
  layout: Layout,
  at: number,
  isLost: (member: number, offsetBytes: number) => boolean,
): boolean {
  if (layout.kind === 'copies') {
    return layout.locate(at).copies.some(({ member, offsetBytes }) => !isLost(member, offsetBytes));
  }
  const { chunkBytes, dataCount } = layout;
  const rowIndex = Math.floor(at / (chunkBytes * dataCount));
  const index = Math.floor(at / chunkBytes) % dataCount;
  const row = layout.row(rowIndex);
  const column = rowIndex * chunkBytes + (at % chunkBytes);
  if (!isLost(row.data[index] ?? -1, column)) return true;
  const cells = [...row.data, row.p, ...(row.q === null ? [] : [row.q])];
  return cells.filter((member) => isLost(member, column)).length <= layout.parityCount;
}

export function layoutOf(name: string): Layout {
  return compileLayout(geometryNamed(name));
}
