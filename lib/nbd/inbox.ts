/**
 * Memory that a connection is read into: a few chunks, used again and again. Payload is handed on as views of them, so that a
 * chunk is held as long as there is one that somebody uses. What comes next goes behind what has come, and only where nobody
 * holds the chunk it begins anew: so what a slow device holds is in proportion to what it was given, however small
 * the pieces are in which it came.
 */
import { KIB } from '../units.ts';

/** As much as one read of a Unix socket brings at most, where nobody has changed its buffer: 208 KiB. */
const CHUNK_BYTES = 256 * KIB;
/** With less room than this the next chunk is begun. */
const ROOM_BYTES = 64 * KIB;
/** More than two of them are free when much was held up, and then is no longer. */
const FREE_CHUNKS = 2;

export interface Chunk {
  readonly bytes: Buffer;
  userCount: number;
}

export class Inbox {
  readonly #chunks = new Map<ArrayBufferLike, Chunk>();
  readonly #free: Chunk[] = [];
  #current: Chunk;
  #usedBytes = 0;
  /** Chunks with bytes that nobody has looked at yet. */
  #unread = new Set<Chunk>();

  /** `firstBytes`: what a handshake needs. */
  constructor(firstBytes: number) {
    this.#current = this.#make(firstBytes);
  }

  room(leastBytes = ROOM_BYTES): Uint8Array {
    if (this.#current.userCount === 0) this.#usedBytes = 0;
    if (this.#current.bytes.byteLength - this.#usedBytes < leastBytes) {
      const full = this.#current;
      this.#current = this.#free.pop() ?? this.#make(CHUNK_BYTES);
      this.#usedBytes = 0;
      if (full.userCount === 0) this.#chunks.delete(full.bytes.buffer);
    }
    return this.#current.bytes.subarray(this.#usedBytes);
  }

  /** So much of the room was filled. */
  filled(lengthBytes: number): void {
    this.#usedBytes += lengthBytes;
  }

  /** The chunk in which these bytes are is held until `release`; null where they are in none. */
  hold(bytes: Uint8Array): Chunk | null {
    const chunk = this.#chunks.get(bytes.buffer);
    if (chunk === undefined) return null;
    chunk.userCount += 1;
    return chunk;
  }

  release(chunk: Chunk): void {
    chunk.userCount -= 1;
    if (chunk.userCount > 0 || chunk === this.#current) return;
    const isSmall = chunk.bytes.byteLength < CHUNK_BYTES;
    if (isSmall || this.#free.length >= FREE_CHUNKS) this.#chunks.delete(chunk.bytes.buffer);
    else this.#free.push(chunk);
  }

  /** Whether all that has come was looked at: else it stays where it is. */
  setRead(isAllRead: boolean): void {
    if (isAllRead) {
      if (this.#unread.size === 0) return;
      const read = this.#unread;
      this.#unread = new Set();
      for (const chunk of read) this.release(chunk);
    } else if (!this.#unread.has(this.#current)) {
      this.#unread.add(this.#current);
      this.#current.userCount += 1;
    }
  }

  #make(lengthBytes: number): Chunk {
    // Zeros, and its memory its own: `allocUnsafe` would share with others what is handed to devices.
    const chunk: Chunk = { bytes: Buffer.alloc(lengthBytes), userCount: 0 };
    this.#chunks.set(chunk.bytes.buffer, chunk);
    return chunk;
  }
}
