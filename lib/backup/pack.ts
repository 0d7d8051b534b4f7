/**
 * A pack: many chunks in one file. All numbers are little-endian.
 *
 *   0    8        "RAIDPACK"
 *   8    ...      chunks, compressed and sealed: chunk i is piece i
 *        41*n     the table: an entry for each chunk, and zeros up to the size that padding wants; sealed as piece 2^32-2
 *        24       where the table begins (4), how long it is (4), entries (4), 0 (4), the sum of the table as it lies there
 *                 (8); sealed as piece 2^32-1
 *   -8   8        the sum of the file
 *
 *   entry:  32  SHA-256 of the chunk        1  codec        4  bytes in the pack        4  bytes of the chunk
 *
 * Chunks lie one behind the other, so an entry needs no offset. A pack can be told without the rest of the repository: what
 * is in it (read its end first), and with the sum, whether it is whole.
 *
 * The name is 16 random bytes in hex, and is the salt of its key. A name made from the content would need a second
 * SHA-256 over everything, and would tell nothing that the sum and the chunks' own hashes do not.
 */
import { assert } from '../errors.ts';
import { KIB, roundUp } from '../units.ts';
import {
  hasSum,
  type ObjectCodec,
  type RepositoryKey,
  type RunningSum,
  type Sealer,
  SUM_BYTES,
  type Sum,
  sealerFor,
  viewOf,
} from './seal.ts';
import { hexOf, hexSum } from './settings.ts';
import type { Range } from './store.ts';

export const ID_BYTES = 32;
export const ENTRY_BYTES = ID_BYTES + 9;
export const NAME_BYTES = 16;

const MAGIC = Buffer.from('RAIDPACK', 'latin1');
const FOOTER_BYTES = 24;
const TABLE_PIECE = 2 ** 32 - 2;
const FOOTER_PIECE = 2 ** 32 - 1;
/** Of an encrypted pack, so that its size tells no more than it must. */
const PADDING_BYTES = 64 * KIB;

/** A chunk within its pack. */
export interface Entry {
  readonly piece: number;
  readonly codec: number;
  /** Where its sealed bytes are. */
  readonly range: Range;
  readonly rawBytes: number;
}

/** The table of a pack: `ENTRY_BYTES` for each chunk, as they stand in the file. */
export class PackTable {
  readonly bytes: Uint8Array;
  /** Entry i lies from `#offsets[i]` to `#offsets[i + 1]`. */
  readonly #offsets: Float64Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#offsets = new Float64Array(this.count + 1);
    const view = viewOf(bytes);
    let offset = MAGIC.byteLength;
    for (let index = 0; index < this.count; index += 1) {
      this.#offsets[index] = offset;
      offset += view.getUint32(index * ENTRY_BYTES + ID_BYTES + 1, true);
    }
    this.#offsets[this.count] = offset;
  }

  get count(): number {
    return this.bytes.byteLength / ENTRY_BYTES;
  }

  /** Where the chunks end: what a table claims, to be held against the size of the file. */
  get endBytes(): number {
    return this.#offsets[this.count]!;
  }

  id(index: number): Uint8Array {
    return this.bytes.subarray(index * ENTRY_BYTES, index * ENTRY_BYTES + ID_BYTES);
  }

  entry(index: number): Entry {
    const view = viewOf(this.bytes);
    const at = index * ENTRY_BYTES + ID_BYTES;
    const offsetBytes = this.#offsets[index]!;
    return {
      piece: index,
      codec: view.getUint8(at),
      range: { offsetBytes, lengthBytes: this.#offsets[index + 1]! - offsetBytes },
      rawBytes: view.getUint32(at + 5, true),
    };
  }
}

export interface PackFile {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly table: PackTable;
  /** xxHash64 of the whole file, its own sum included. */
  readonly sum: string;
}

export function packPath(name: string): string {
  return `packs/${name}`;
}

export function packSealer(key: RepositoryKey, name: string): Sealer {
  return sealerFor(key, Buffer.from(name, 'hex'), packPath(name));
}

/** Each part of it is touched once, while it is in the processor's cache: sealed into its place, and summed there. */
export class PackBuilder {
  readonly name: string;
  readonly #isPadded: boolean;
  readonly #sealer: Sealer;
  readonly #sum: Sum;
  readonly #running: RunningSum;
  readonly #entries: Uint8Array[] = [];
  #bytes: Uint8Array;
  #sizeBytes = 0;

  /** `room`: where it is put together; it takes a larger one when it needs it. */
  constructor({ key, sum }: ObjectCodec, name: Uint8Array, room: Uint8Array) {
    this.name = hexOf(name);
    this.#isPadded = key !== null;
    this.#sealer = packSealer(key, this.name);
    this.#sum = sum;
    this.#running = sum.start();
    this.#bytes = room;
    this.#append(MAGIC);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get isEmpty(): boolean {
    return this.#entries.length === 0;
  }

  /** The bytes are copied. */
  add(id: Uint8Array, codec: number, rawBytes: number, compressed: Uint8Array): void {
    assert(id.byteLength === ID_BYTES, 'an id is a SHA-256');
    const sealedBytes = this.#seal(this.#entries.length, compressed).byteLength;
    const entry = new Uint8Array(ENTRY_BYTES);
    entry.set(id);
    const view = viewOf(entry);
    view.setUint8(ID_BYTES, codec);
    view.setUint32(ID_BYTES + 1, sealedBytes, true);
    view.setUint32(ID_BYTES + 5, rawBytes, true);
    this.#entries.push(entry);
  }

  finish(): PackFile {
    const { extraBytes } = this.#sealer;
    const tableBytes = this.#entries.length * ENTRY_BYTES;
    const bareBytes = this.#sizeBytes + tableBytes + FOOTER_BYTES + 2 * extraBytes + SUM_BYTES;
    const fileBytes = this.#isPadded ? roundUp(bareBytes, PADDING_BYTES) : bareBytes;

    const table = new Uint8Array(tableBytes + fileBytes - bareBytes);
    this.#entries.forEach((entry, index) => {
      table.set(entry, index * ENTRY_BYTES);
    });
    const footer = new Uint8Array(FOOTER_BYTES);
    const view = viewOf(footer);
    view.setUint32(0, this.#sizeBytes, true);
    const sealedTable = this.#seal(TABLE_PIECE, table);
    view.setUint32(4, sealedTable.byteLength, true);
    view.setUint32(8, this.#entries.length, true);
    view.setBigUint64(16, this.#sum(sealedTable), true);
    this.#seal(FOOTER_PIECE, footer);
    const sum = new Uint8Array(SUM_BYTES);
    viewOf(sum).setBigUint64(0, this.#running.digest(), true);
    this.#append(sum);

    assert(this.#sizeBytes === fileBytes, 'the parts of a pack fill it');
    return {
      name: this.name,
      bytes: this.#bytes.subarray(0, fileBytes),
      table: new PackTable(table.subarray(0, tableBytes)),
      sum: hexSum(this.#running.digest()),
    };
  }

  /** The piece as it lies in the pack. */
  #seal(piece: number, plain: Uint8Array): Uint8Array {
    const target = this.#room(plain.byteLength + this.#sealer.extraBytes);
    const sealed = target.subarray(0, this.#sealer.sealInto(piece, plain, target));
    return this.#took(sealed);
  }

  #append(part: Uint8Array): void {
    const target = this.#room(part.byteLength);
    target.set(part);
    this.#took(target.subarray(0, part.byteLength));
  }

  #took(part: Uint8Array): Uint8Array {
    this.#running.update(part);
    this.#sizeBytes += part.byteLength;
    return part;
  }

  #room(lengthBytes: number): Uint8Array {
    const end = this.#sizeBytes + lengthBytes;
    if (end > this.#bytes.byteLength) {
      const larger = new Uint8Array(Math.max(end, 2 * this.#bytes.byteLength));
      larger.set(this.#bytes.subarray(0, this.#sizeBytes));
      this.#bytes = larger;
    }
    return this.#bytes.subarray(this.#sizeBytes);
  }
}

/** Whether the file is as it was written. */
export function isWholePack(bytes: Uint8Array, sum: Sum): boolean {
  return bytes.byteLength >= MAGIC.byteLength + FOOTER_BYTES + SUM_BYTES && hasSum(bytes, sum);
}

/** Whether it is also the file of this pack, as far as its table (null: not known) tells: whole files get wrong names, too. */
export async function isWholePackOf(
  codec: ObjectCodec,
  { name, table }: { readonly name: string; readonly table: PackTable | null },
  bytes: Uint8Array,
): Promise<boolean> {
  if (!isWholePack(bytes, codec.sum)) return false;
  const own = await tableOf(codec, name, bytes);
  return own !== null && (table === null || Buffer.compare(own.bytes, table.bytes) === 0);
}

/** The table, read from the end of the file with two reads. Null where there is none, or it is not whole. */
export async function readTable(
  { key, sum }: ObjectCodec,
  name: string,
  fileBytes: number,
  read: (range: Range) => Promise<Uint8Array | null>,
): Promise<PackTable | null> {
  const sealer = packSealer(key, name);
  const footerBytes = FOOTER_BYTES + sealer.extraBytes;
  const footerAt = fileBytes - SUM_BYTES - footerBytes;
  if (footerAt < MAGIC.byteLength) return null;
  const sealedFooter = await read({ offsetBytes: footerAt, lengthBytes: footerBytes });
  const footer = sealedFooter?.byteLength === footerBytes ? sealer.open(FOOTER_PIECE, sealedFooter) : null;
  if (footer === null) return null;
  const view = viewOf(footer);
  const [offsetBytes, lengthBytes, count] = [0, 4, 8].map((at) => view.getUint32(at, true)) as [
    number,
    number,
    number,
  ];
  if (view.getUint32(12, true) !== 0 || offsetBytes + lengthBytes !== footerAt) return null;
  if (count * ENTRY_BYTES + sealer.extraBytes > lengthBytes) return null;
  const sealedTable = await read({ offsetBytes, lengthBytes });
  if (sealedTable?.byteLength !== lengthBytes || sum(sealedTable) !== view.getBigUint64(16, true))
    return null;
  const plain = sealer.open(TABLE_PIECE, sealedTable);
  if (plain === null) return null;
  const table = new PackTable(new Uint8Array(plain.subarray(0, count * ENTRY_BYTES)));
  return table.endBytes === offsetBytes ? table : null;
}

export async function tableOf(
  codec: ObjectCodec,
  name: string,
  bytes: Uint8Array,
): Promise<PackTable | null> {
  return await readTable(codec, name, bytes.byteLength, ({ offsetBytes, lengthBytes }) =>
    Promise.resolve(bytes.subarray(offsetBytes, offsetBytes + lengthBytes)),
  );
}
