/**
 * What is done to the bytes of a chunk, on whichever thread: they are hashed; and those that the repository has not got are
 * compressed, sealed and put into a pack. All of it is work for a processor, and nothing here waits.
 *
 * A pack is put together in a room, memory that comes from outside with the name of the pack and goes out with the finished
 * pack: whoever hands out rooms bounds the memory, and new memory costs a page fault for every 4 KiB.
 */
import { createHash } from 'node:crypto';
import { compress } from './codec.ts';
import { ID_BYTES, PackBuilder, type PackFile } from './pack.ts';
import type { Cut } from './packer-message.ts';
import type { ObjectCodec } from './seal.ts';

/** Where a pack is put together, and what it is called. */
export interface Room {
  readonly name: Uint8Array;
  readonly memory: Uint8Array;
}

/** The ids of chunks, one behind the other. */
export function hashAll(bytes: Uint8Array, cuts: readonly Cut[]): Uint8Array {
  const ids = new Uint8Array(cuts.length * ID_BYTES);
  for (const [index, { at, lengthBytes }] of cuts.entries()) {
    const chunk = bytes.subarray(at, at + lengthBytes);
    ids.set(createHash('sha256').update(chunk).digest(), index * ID_BYTES);
  }
  return ids;
}

export class Packer {
  readonly #codec: ObjectCodec;
  /** A pack is closed when it has grown to this. */
  readonly #packBytes: number;
  #builder: PackBuilder | null = null;

  constructor(codec: ObjectCodec, packBytes: number) {
    this.#codec = codec;
    this.#packBytes = packBytes;
  }

  /** Nothing can be added before it has been given one. */
  get needsRoom(): boolean {
    return this.#builder === null;
  }

  open({ name, memory }: Room): void {
    this.#builder = new PackBuilder(this.#codec, name, memory);
  }

  /** The pack, where this has filled it. */
  add(id: Uint8Array, raw: Uint8Array): PackFile | null {
    const { codec, bytes } = compress(raw);
    this.#builder!.add(id, codec, raw.byteLength, bytes);
    return this.#builder!.sizeBytes >= this.#packBytes ? this.finish() : null;
  }

  /** Null where nothing is in it. */
  finish(): PackFile | null {
    const builder = this.#builder;
    if (builder === null || builder.isEmpty) return null;
    this.#builder = null;
    return builder.finish();
  }
}
