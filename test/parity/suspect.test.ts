/**
 * Goal: one wrong chunk of a row is always named, and two wrong ones are named as somebody else no more often than the
 * top of suspect.ts says.
 * Method: every row of up to 16 members, every member wrong. For pairs, one byte and every ratio of the two errors: what is
 * XORed and multiplied by a constant stays as true, so ratios are all there is.
 */
import { describe, expect, test } from 'vitest';
import { workAreaBytes } from '../../lib/parity/kernels.ts';
import { selectKernels } from '../../lib/parity/select.ts';
import { oddCopiesOf, type Suspect, suspectOf, type WholeRow } from '../../lib/parity/suspect.ts';

const SECTOR = 512;
const memory = new WebAssembly.Memory({ initial: 4, maximum: 4, shared: true });
const bytes = new Uint8Array(memory.buffer);
const kernels = selectKernels(memory, 64, 'fastest');
const base = 64 + workAreaBytes;

function addressOf(index: number): number {
  return base + index * SECTOR;
}

/** `holds` in Q order: which places have a chunk. Filled with what looks random; the parities are right. */
function layOut(holds: readonly boolean[], lengthBytes: number, seed: number): WholeRow {
  const data = holds.map((there, place) => (there ? addressOf(place) : null));
  const [p, q, deltaP, deltaQ] = [0, 1, 2, 3].map((index) => addressOf(holds.length + index)) as [
    number,
    number,
    number,
    number,
  ];
  const random = randomBytes(seed);
  for (const address of data) {
    if (address !== null) for (let k = 0; k < lengthBytes; k += 1) bytes[address + k] = random();
  }
  kernels.syndrome(data, p, q, lengthBytes);
  return { data, p, q, deltaP, deltaQ };
}

function randomBytes(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) | 0;
    return (state >>> 16) & 0xff;
  };
}

function everyone(row: WholeRow): { suspect: Suspect; address: number }[] {
  const data = row.data.flatMap((address, place) =>
    address === null ? [] : [{ suspect: { kind: 'data', place } as const, address }],
  );
  return [...data, { suspect: { kind: 'p' }, address: row.p }, { suspect: { kind: 'q' }, address: row.q }];
}

function isSame(a: Suspect | null, b: Suspect): boolean {
  return a?.kind === b.kind && (a.kind !== 'data' || b.kind !== 'data' || a.place === b.place);
}

/** All rows of up to 16 members, with and without the gaps that ddf layouts have in their Q order. */
const solidRows = Array.from({ length: 14 }, (_, index) => new Array<boolean>(index + 1).fill(true));
const rows = solidRows.flatMap((solid) => {
  const middle = solid.length >> 1;
  return [solid, [...solid.slice(0, middle), false, ...solid.slice(middle), false]];
});

describe('rows of up to 16 members', () => {
  test('a row that is right accuses nobody', () => {
    for (const holds of rows)
      expect(suspectOf(kernels, layOut(holds, SECTOR, holds.length), SECTOR)).toBeNull();
  });

  test('the example by hand: D1 reads as 07 instead of 02', () => {
    const row = layOut([true, true, true], 1, 1);
    for (const [place, value] of [0x01, 0x02, 0x80].entries()) bytes[addressOf(place)] = value;
    kernels.syndrome(row.data, row.p, row.q, 1);
    bytes[addressOf(1)] = 0x07;
    expect(suspectOf(kernels, row, 1)).toEqual({ kind: 'data', place: 1 });
    expect([bytes[row.deltaP], bytes[row.deltaQ]]).toEqual([0x05, 0x0a]);
  });

  test('one wrong chunk is always named, in one bit or in every byte', () => {
    for (const [index, holds] of rows.entries()) {
      for (const lengthBytes of [1, 17, SECTOR]) {
        const seed = index * 3 + lengthBytes;
        const row = layOut(holds, lengthBytes, seed);
        const random = randomBytes(seed + 1);
        for (const { suspect, address } of everyone(row)) {
          const before = bytes.slice(address, address + lengthBytes);
          const claim = `${JSON.stringify(suspect)} of ${JSON.stringify(holds)}, seed ${seed}`;
          bytes[address + (random() % lengthBytes)]! ^= 1 << (random() & 7);
          if (!isSame(suspectOf(kernels, row, lengthBytes), suspect)) expect.fail(`one bit: ${claim}`);
          for (let k = 0; k < lengthBytes; k += 1) bytes[address + k] = before[k]! ^ random();
          bytes[address]! = before[0]! ^ 0x80;
          if (!isSame(suspectOf(kernels, row, lengthBytes), suspect)) expect.fail(`many bytes: ${claim}`);
          bytes.set(before, address);
        }
      }
    }
  });

  test('two wrong chunks, one byte: each innocent is accused by one ratio of 255, the guilty by none', () => {
    for (const holds of [...solidRows, [true, false, true, false, false, true]]) {
      const row = layOut(holds, 1, holds.length);
      const all = everyone(row);
      for (const [index, first] of all.entries()) {
        for (const second of all.slice(index + 1)) {
          const accused = new Map<string, number>();
          const [firstByte, secondByte] = [bytes[first.address]!, bytes[second.address]!];
          bytes[first.address] = firstByte ^ 1;
          for (let error = 1; error < 256; error += 1) {
            bytes[second.address] = secondByte ^ error;
            const suspect = suspectOf(kernels, row, 1);
            if (suspect === null) continue;
            const name = JSON.stringify(suspect);
            accused.set(name, (accused.get(name) ?? 0) + 1);
          }
          bytes[first.address] = firstByte;
          bytes[second.address] = secondByte;
          const innocent = all.filter((each) => each !== first && each !== second);
          const isLaw =
            accused.size === innocent.length &&
            innocent.every(({ suspect }) => accused.get(JSON.stringify(suspect)) === 1);
          if (!isLaw)
            expect.fail(`${JSON.stringify([holds, first, second])}: ${JSON.stringify([...accused])}`);
        }
      }
    }
  });

  test('two wrong chunks that are not wrong in the very same bytes are never named', () => {
    for (const holds of rows) {
      const row = layOut(holds, 3, holds.length);
      const all = everyone(row);
      const random = randomBytes(holds.length);
      for (const [index, first] of all.entries()) {
        for (const second of all.slice(index + 1)) {
          const before = bytes.slice(base, addressOf(holds.length + 2));
          bytes[first.address]! ^= 1 + (random() % 255);
          bytes[first.address + 1]! ^= random();
          bytes[second.address + 1]! ^= random();
          bytes[second.address + 2]! ^= 1 + (random() % 255);
          const suspect = suspectOf(kernels, row, 3);
          bytes.set(before, base);
          if (suspect !== null) expect.fail(`${JSON.stringify([holds, first, second, suspect])}`);
        }
      }
    }
  });
});

test('where coefficients repeat, chunks 0 and 255 accuse each other, and neither is named', () => {
  const holds = new Array<boolean>(256).fill(true);
  const row = layOut(holds, 1, 7);
  bytes[addressOf(255)]! ^= 0x10;
  expect(suspectOf(kernels, row, 1)).toBeNull();
  bytes[addressOf(255)]! ^= 0x10;
  bytes[addressOf(254)]! ^= 0x10;
  expect(suspectOf(kernels, row, 1)).toEqual({ kind: 'data', place: 254 });
});

test.each<[string, readonly number[], boolean]>([
  ['aa', [], true],
  ['ab', [1], false],
  ['aab', [2], true],
  ['aba', [1], true],
  ['baa', [0], true],
  ['abc', [1, 2], false],
  ['aabb', [2, 3], false],
  ['abbb', [0], true],
  ['abba', [1, 2], false],
  ['abcbb', [0, 2], true],
])('copies %s: %j differ, by majority: %s', (contents, places, outvoted) => {
  const copies = [...contents].map((letter, index) => {
    const address = addressOf(index);
    bytes.fill(0x55, address, address + SECTOR);
    bytes[address + SECTOR - 1] = letter.charCodeAt(0);
    return address;
  });
  expect(oddCopiesOf(kernels, copies, SECTOR)).toEqual({ places, outvoted });
});
