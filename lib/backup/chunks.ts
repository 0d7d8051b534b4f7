/**
 * Which chunk is where: a hash table with open addressing over the tables of all packs. An id is a SHA-256, so its first
 * four bytes are as good a hash as any. A slot is two numbers, (pack, entry), and the ids stay in the tables that they came
 * in: some 60 bytes a chunk in all, where a `Map` of strings takes 200. A tebibyte of chunks of 256 KiB is 4 Mi chunks.
 */
import { ENTRY_BYTES, ID_BYTES, type PackTable } from './pack.ts';
import { hexOf } from './settings.ts';

export interface Place {
  readonly pack: number;
  readonly entry: number;
}

export class ChunkTable {
  /** Packs by number; null for one whose chunks have not been put in. */
  readonly #tables: (PackTable | null)[] = [];
  /** Pack + 1 and entry of slot i at 2i; 0 where it is free. */
  #slots = new Uint32Array(2 * 1024);
  #count = 0;
  /** Where chunks are besides, by id: few have a second place, and only where a prune or a backup was cut off. */
  readonly #others = new Map<string, readonly Place[]>();

  get count(): number {
    return this.#count;
  }

  /** Chunks that are known already keep their place. */
  addPack(pack: number, table: PackTable): void {
    this.#tables[pack] = table;
    for (let entry = 0; entry < table.count; entry += 1) {
      if (4 * (this.#count + 1) > this.#slots.length) this.#grow();
      const slot = this.#slotOf(table.bytes, entry * ENTRY_BYTES);
      if (this.#slots[slot] !== 0) {
        const key = hexOf(table.id(entry));
        this.#others.set(key, [...(this.#others.get(key) ?? []), { pack, entry }]);
        continue;
      }
      this.#slots[slot] = pack + 1;
      this.#slots[slot + 1] = entry;
      this.#count += 1;
    }
  }

  /** The id that begins at `at`. */
  has(ids: Uint8Array, at: number): boolean {
    return this.#slots[this.#slotOf(ids, at)] !== 0;
  }

  find(id: Uint8Array): Place | null {
    const slot = this.#slotOf(id, 0);
    const pack = this.#slots[slot]!;
    return pack === 0 ? null : { pack: pack - 1, entry: this.#slots[slot + 1]! };
  }

  /** All that there are: first the one that `find` finds. */
  places(id: Uint8Array): readonly Place[] {
    const first = this.find(id);
    return first === null ? [] : [first, ...(this.#others.get(hexOf(id)) ?? [])];
  }

  /** The slot that has the id, or the free one where it belongs. Half of them are free. */
  #slotOf(ids: Uint8Array, at: number): number {
    const mask = this.#slots.length - 1;
    const hash = ids[at]! | (ids[at + 1]! << 8) | (ids[at + 2]! << 16) | (ids[at + 3]! << 24);
    let slot = (hash * 2) & mask;
    for (;;) {
      const pack = this.#slots[slot]!;
      if (pack === 0) return slot;
      if (isAt(this.#tables[pack - 1]!.bytes, this.#slots[slot + 1]! * ENTRY_BYTES, ids, at)) return slot;
      slot = (slot + 2) & mask;
    }
  }

  #grow(): void {
    const old = this.#slots;
    this.#slots = new Uint32Array(old.length * 2);
    for (let slot = 0; slot < old.length; slot += 2) {
      const pack = old[slot]!;
      if (pack === 0) continue;
      const entry = old[slot + 1]!;
      const to = this.#slotOf(this.#tables[pack - 1]!.bytes, entry * ENTRY_BYTES);
      this.#slots[to] = pack;
      this.#slots[to + 1] = entry;
    }
  }
}

/** A backup asks this of each chunk of its source: nothing is made for it. */
function isAt(bytes: Uint8Array, at: number, ids: Uint8Array, from: number): boolean {
  for (let index = 0; index < ID_BYTES; index += 1) {
    if (bytes[at + index] !== ids[from + index]) return false;
  }
  return true;
}

export function sameId(left: Uint8Array, right: Uint8Array): boolean {
  return Buffer.compare(left, right) === 0;
}

/** Stands in a map for a chunk of zeros, of which nothing is stored; no SHA-256 is known to come to it. */
const zeroId = new Uint8Array(32);

export function isZeroId(id: Uint8Array): boolean {
  return sameId(id, zeroId);
}
