/**
 * Writes that wait in memory until what they overwrite is safe.
 *
 * What has to be durable when. Old bytes and the record of them must be durable before the new ones *can* be: from the moment in which
 * these are given to the origin, the kernel may put them on the disk whenever it likes. They need not be durable before the write
 * is acknowledged, since a write that was not flushed may be lost in a power cut. So a first write is acknowledged when its bytes are
 * here, and many of them share one flush of the store:
 *
 *   write ──▶ gathering ──┐  while the batch before it is on its way:
 *                         ▼
 *             leaving:  old bytes into slots ▶ one record ▶ one flush ▶ the new bytes into the origin ▶ gone
 *
 *   Example. A flush takes 3.5 ms, and 20 000 first writes come in a second: 70 in each batch, 50 µs of flush for each.
 *   One flush for each would be 285 writes a second from one client, 9000 from 32.
 *
 * It is the origin's volatile cache, and behaves as one: reads see it, a flush empties it, and no instant between writes (a
 * snapshot, a rollback) lies between a write and its bytes. No timer: a batch leaves as soon as the one before it is
 * gone, so that nothing is here for longer than two batches take.
 *
 * What fails after the acknowledgement loses nothing: the bytes stay, reads see them, and who flushes is told, each time, until it works.
 *
 *   the store records nothing   nothing new is taken meanwhile
 *   the origin takes no write   these bytes are _stuck_, and all others go on: what snapshots need of them is on record already. Who
 *                               writes over them writes to the origin itself, and is answered as the origin answers; what that
 *                               has taken is stuck no longer
 *
 * What can fail before, does: old bytes are read before a write is acknowledged.
 */
import { gather } from '../device/buffers.ts';
import { totalBytes } from '../device/device.ts';
import { assert } from '../errors.ts';

/** In one batch; there are two at most. A record of them fits into a batch of the journal. */
const BATCH_CHUNKS = 512;
const BATCH_BYTES = 2 * 1024 * 1024;
/** Written to the origin at once, where chunks are neighbours. */
const RUN_BYTES = 1024 * 1024;
/** Kept for the next. A new buffer costs more than what is done with it: half of a first write, measured. */
const SPARE_BYTES = 4 * BATCH_BYTES;

/** New bytes of a part of a chunk; `at` counts from where the chunk begins. Nobody changes the bytes. */
export interface Piece {
  readonly chunk: number;
  readonly at: number;
  readonly bytes: Uint8Array;
}

export interface HeldChunk {
  readonly chunk: number;
  /** The whole chunk, as snapshots want it; null where they only want to know that it changed. */
  readonly old: Uint8Array | null;
  /** Rising, apart. */
  readonly pieces: readonly Piece[];
}

interface Chunk extends HeldChunk {
  pieces: readonly Piece[];
  /** On its way to the origin, which may not copy what it is given. */
  isLeaving: boolean;
  /** Why the origin did not take it. */
  refusal: unknown;
}

interface Batch {
  readonly chunks: Chunk[];
  /** Rejects where something of it could not leave. */
  readonly gone: Promise<void>;
  readonly settle: (failure: unknown) => void;
}

export interface HeldParts {
  readonly chunkBytes: number;
  /** Returns when nothing that snapshots need of these chunks is in the origin alone. They rise. */
  readonly save: (chunks: readonly HeldChunk[]) => Promise<void>;
  readonly write: (offsetBytes: number, sources: readonly Uint8Array[]) => Promise<void>;
}

export class HeldWrites {
  readonly #parts: HeldParts;
  readonly #chunks = new Map<number, Chunk>();
  readonly #batchChunks: number;
  /** Of a chunk's length, used by nobody. */
  readonly #spare: Uint8Array[] = [];
  #gathering: Batch | null = null;
  #leaving: Batch | null = null;
  #reserved = 0;
  /** Ends when nothing is reserved. */
  #arrival: { readonly ended: Promise<void>; readonly end: () => void } | null = null;
  #isRunning = false;
  #hasFailed = false;
  /** The origin is asked again, and written past, one after the other: what is older never comes last. */
  #turn: Promise<unknown> = Promise.resolve();
  #stuckCount = 0;

  constructor(parts: HeldParts) {
    this.#parts = parts;
    this.#batchChunks = Math.max(1, Math.min(BATCH_CHUNKS, BATCH_BYTES / parts.chunkBytes));
  }

  /** How many chunks are held. */
  get size(): number {
    return this.#chunks.size;
  }

  /** False where something could not leave: whoever writes has to do with it himself. */
  get accepts(): boolean {
    return !this.#hasFailed;
  }

  /** For so many chunks besides those that places are kept for. */
  hasRoomFor(count: number): boolean {
    return (this.#gathering?.chunks.length ?? 0) + this.#reserved + count <= this.#batchChunks;
  }

  /** Places for chunks whose old bytes are being read: writes that come together would else find room for all of them. */
  reserve(count: number): void {
    this.#reserved += count;
  }

  /** They are going to be held at once, or never. */
  giveBackPlaces(count: number): void {
    this.#reserved -= count;
    if (this.#reserved > 0) return;
    this.#arrival?.end();
    this.#arrival = null;
  }

  has(chunk: number): boolean {
    return this.#chunks.has(chunk);
  }

  chunks(): Iterable<number> {
    return this.#chunks.keys();
  }

  /** Whether something is to leave, and may. */
  leavesWithin(first: number, end: number): boolean {
    return this.#within(first, end).some((held) => !isStuck(held));
  }

  /** Whether the origin has refused something, and was not given anything else for it. */
  isStuckWithin(offsetBytes: number, lengthBytes: number): boolean {
    return this.#stuckCount > 0 && this.#stuckWithin(offsetBytes, lengthBytes).length > 0;
  }

  /** A copy of what is held between two places: the buffers have other content as soon as it has left. */
  piecesWithin(offsetBytes: number, endBytes: number): readonly Piece[] {
    const { chunkBytes } = this.#parts;
    const held = this.#within(Math.floor(offsetBytes / chunkBytes), Math.ceil(endBytes / chunkBytes));
    return held.flatMap(({ pieces }) =>
      pieces.map(({ chunk, at, bytes }) => ({ chunk, at, bytes: bytes.slice() })),
    );
  }

  /** A buffer of a chunk's length with any content. It comes back by itself when what is in it has left. */
  buffer(): Uint8Array {
    return this.#spare.pop() ?? new Uint8Array(this.#parts.chunkBytes);
  }

  /** Copies of the bytes, cut where chunks begin. */
  piecesOf(offsetBytes: number, sources: readonly Uint8Array[]): readonly Piece[] {
    const { chunkBytes } = this.#parts;
    const pieces: Piece[] = [];
    const lengthBytes = totalBytes(sources);
    for (let done = 0; done < lengthBytes; ) {
      const chunk = Math.floor((offsetBytes + done) / chunkBytes);
      const at = offsetBytes + done - chunk * chunkBytes;
      const length = Math.min(lengthBytes - done, chunkBytes - at);
      const bytes = length === chunkBytes ? this.buffer() : new Uint8Array(length);
      gather(sources, done, bytes);
      pieces.push({ chunk, at, bytes });
      done += length;
    }
    return pieces;
  }

  /** A chunk that is not held yet. */
  hold(old: Uint8Array | null, piece: Piece): void {
    const { chunk } = piece;
    assert(!this.#chunks.has(chunk), 'a chunk is held once');
    const held: Chunk = { chunk, old, pieces: [piece], isLeaving: false, refusal: null };
    this.#chunks.set(chunk, held);
    this.#gathering ??= newBatch();
    this.#gathering.chunks.push(held);
    if (this.accepts) this.#start();
  }

  /** Onto what is held of the chunk already; false where that is nothing, or on its way to the origin. */
  put(piece: Piece): boolean {
    const held = this.#chunks.get(piece.chunk);
    if (held === undefined || held.isLeaving || isStuck(held)) return false;
    held.pieces = over(held.pieces, piece);
    return true;
  }

  /** When a batch has left, or has failed to; where there is none, when those have come that places are kept for. */
  async untilLeft(): Promise<void> {
    const batch = this.#leaving ?? this.#gathering;
    if (batch !== null) return await batch.gone.catch(() => undefined);
    if (this.#reserved === 0) return;
    if (this.#arrival === null) {
      let end = (): void => undefined;
      const ended = new Promise<void>((resolve) => {
        end = resolve;
      });
      this.#arrival = { ended, end };
    }
    await this.#arrival.ended;
  }

  /** Everything that is held when it is called has left, or is stuck. */
  async untilGone(): Promise<void> {
    for (const batch of [this.#leaving, this.#gathering]) {
      if (batch === null) continue;
      this.#start();
      await batch.gone;
    }
  }

  /** Everything that is held when it is called has left. */
  async empty(): Promise<void> {
    await this.untilGone();
    if (this.#stuckCount === 0) return;
    await this.#inTurn(async () => {
      // Each alone: what was refused together need not be refused.
      await this.#write([...this.#chunks.values()].filter(isStuck), 0);
      const [left] = [...this.#chunks.values()].filter(isStuck);
      if (left !== undefined) throw left.refusal;
    });
  }

  /** Without anything being saved: for when no snapshot is left to save it for. */
  async release(): Promise<void> {
    assert(!this.#isRunning, 'nothing is on its way');
    const batch = this.#gathering;
    this.#gathering = null;
    await this.#write(batch?.chunks ?? []);
    batch?.settle(null);
    await this.empty();
  }

  /** Whoever writes to a range of the origin itself. What is stuck there is older. */
  past(offsetBytes: number, lengthBytes: number, write: () => Promise<void>): Promise<void> {
    if (!this.isStuckWithin(offsetBytes, lengthBytes)) return write();
    return this.#inTurn(async () => {
      await write();
      for (const held of this.#stuckWithin(offsetBytes, lengthBytes)) {
        const at = offsetBytes - held.chunk * this.#parts.chunkBytes;
        held.pieces = without(held.pieces, at, at + lengthBytes);
        if (held.pieces.length === 0) this.#forget(held);
      }
    });
  }

  /** What is stuck is not to reach anybody any more. */
  dropStuck(): void {
    for (const held of [...this.#chunks.values()].filter(isStuck)) this.#forget(held);
  }

  #start(): void {
    if (this.#isRunning) return;
    this.#isRunning = true;
    void this.#run();
  }

  async #run(): Promise<void> {
    let failure: unknown = null;
    while (this.#gathering !== null && failure === null) {
      const batch = this.#gathering;
      this.#leaving = batch;
      this.#gathering = null;
      failure = await this.#leave(batch);
      this.#leaving = null;
      this.#hasFailed = failure !== null;
      if (failure !== null) this.#stay(batch);
      batch.settle(failure);
    }
    this.#isRunning = false;
  }

  async #leave({ chunks }: Batch): Promise<unknown> {
    chunks.sort((one, other) => one.chunk - other.chunk);
    for (const held of chunks) held.isLeaving = true;
    try {
      await this.#parts.save(chunks);
    } catch (failure) {
      return failure;
    }
    await this.#write(chunks);
    return null;
  }

  /** What arrived is not held any longer; what did not is stuck. One promise for all of them: there are many. */
  #write(chunks: readonly Chunk[], runBytes = RUN_BYTES): Promise<void> {
    const runs = runsOf(chunks, this.#parts.chunkBytes, runBytes);
    const refusals = new Map<number, unknown>();
    let left = runs.length;
    return new Promise((resolve) => {
      const end = (): void => {
        left -= 1;
        if (left > 0) return;
        for (const held of chunks) {
          if (refusals.has(held.chunk)) this.#stick(held, refusals.get(held.chunk));
          else this.#forget(held);
        }
        resolve();
      };
      if (runs.length === 0) resolve();
      for (const { offsetBytes, first, sources } of runs) {
        this.#parts.write(offsetBytes, sources).then(end, (cause: unknown) => {
          const bytes = totalBytes(sources);
          const last = Math.ceil((offsetBytes + bytes) / this.#parts.chunkBytes);
          for (let chunk = first; chunk < last; chunk += 1) refusals.set(chunk, cause);
          end();
        });
      }
    });
  }

  #stick(held: Chunk, refusal: unknown): void {
    if (!isStuck(held)) this.#stuckCount += 1;
    held.isLeaving = false;
    held.refusal = refusal;
  }

  #forget(held: Chunk): void {
    const { chunk, old, pieces } = held;
    if (isStuck(held)) this.#stuckCount -= 1;
    this.#chunks.delete(chunk);
    if (old !== null) this.#giveBack(old);
    for (const { bytes } of pieces) this.#giveBack(bytes);
  }

  #giveBack(bytes: Uint8Array): void {
    const { chunkBytes } = this.#parts;
    // Parts of a buffer are not one: the rest of it may be held as well.
    if (bytes.byteLength === chunkBytes && this.#spare.length * chunkBytes < SPARE_BYTES)
      this.#spare.push(bytes);
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => undefined);
    return result;
  }

  #stuckWithin(offsetBytes: number, lengthBytes: number): Chunk[] {
    const { chunkBytes } = this.#parts;
    const end = Math.ceil((offsetBytes + lengthBytes) / chunkBytes);
    return this.#within(Math.floor(offsetBytes / chunkBytes), end).filter(isStuck);
  }

  #within(first: number, end: number): Chunk[] {
    const found: Chunk[] = [];
    if (end - first > this.#chunks.size) {
      for (const held of this.#chunks.values()) if (held.chunk >= first && held.chunk < end) found.push(held);
    } else {
      for (let chunk = first; chunk < end; chunk += 1) {
        const held = this.#chunks.get(chunk);
        if (held !== undefined) found.push(held);
      }
    }
    return found;
  }

  /** Before what has come since: it is tried again when somebody asks. */
  #stay({ chunks }: Batch): void {
    this.#gathering ??= newBatch();
    this.#gathering.chunks.unshift(...chunks);
  }
}

/** Copies pieces over what was read from `offsetBytes` on. */
export function overlay(
  pieces: readonly Piece[],
  chunkBytes: number,
  offsetBytes: number,
  targets: readonly Uint8Array[],
): void {
  for (const { chunk, at, bytes } of pieces) {
    let from = offsetBytes;
    const start = chunk * chunkBytes + at;
    const end = start + bytes.byteLength;
    for (const target of targets) {
      const low = Math.max(from, start);
      const high = Math.min(from + target.byteLength, end);
      if (low < high) target.set(bytes.subarray(low - start, high - start), low - from);
      from += target.byteLength;
    }
  }
}

/** What of a range no piece covers. */
export function gapsOf(
  pieces: readonly Piece[],
  chunkBytes: number,
  offsetBytes: number,
  lengthBytes: number,
): readonly { readonly offsetBytes: number; readonly lengthBytes: number }[] {
  const gaps: { readonly offsetBytes: number; readonly lengthBytes: number }[] = [];
  const endBytes = offsetBytes + lengthBytes;
  let from = offsetBytes;
  const until = (to: number): void => {
    if (to > from) gaps.push({ offsetBytes: from, lengthBytes: to - from });
  };
  const placed = pieces.map(({ chunk, at, bytes }) => ({ start: chunk * chunkBytes + at, bytes }));
  // Within a chunk they rise, but chunks come in the order in which they were held.
  for (const { start, bytes } of placed.sort((one, other) => one.start - other.start)) {
    until(Math.min(start, endBytes));
    from = Math.max(from, start + bytes.byteLength);
  }
  until(endBytes);
  return gaps;
}

/** What of the pieces is still to be seen, and the new one. */
function over(pieces: readonly Piece[], piece: Piece): readonly Piece[] {
  const kept = without(pieces, piece.at, piece.at + piece.bytes.byteLength);
  const before = kept.filter(({ at }) => at < piece.at);
  return [...before, piece, ...kept.slice(before.length)];
}

/** What of the pieces is not between two places of the chunk. */
function without(pieces: readonly Piece[], start: number, end: number): readonly Piece[] {
  const left: Piece[] = [];
  const right: Piece[] = [];
  for (const { chunk, at, bytes } of pieces) {
    const stop = at + bytes.byteLength;
    if (at < start) left.push({ chunk, at, bytes: bytes.subarray(0, Math.min(stop, start) - at) });
    if (stop > end) {
      const from = Math.max(at, end);
      right.push({ chunk, at: from, bytes: bytes.subarray(from - at) });
    }
  }
  return [...left, ...right];
}

function isStuck({ refusal }: Chunk): boolean {
  return refusal !== null;
}

interface Run {
  readonly offsetBytes: number;
  readonly first: number;
  readonly sources: Uint8Array[];
}

/** Neighbours together. */
function runsOf(chunks: readonly Chunk[], chunkBytes: number, runBytes: number): readonly Run[] {
  const runs: Run[] = [];
  let last: Run | null = null;
  let end = -1;
  let length = 0;
  for (const { chunk, pieces } of chunks) {
    for (const { at, bytes } of pieces) {
      const start = chunk * chunkBytes + at;
      if (start === end && length < runBytes && last !== null) last.sources.push(bytes);
      else {
        last = { offsetBytes: start, first: chunk, sources: [bytes] };
        runs.push(last);
        length = 0;
      }
      end = start + bytes.byteLength;
      length += bytes.byteLength;
    }
  }
  return runs;
}

function newBatch(): Batch {
  let settle: Batch['settle'] = () => undefined;
  const gone = new Promise<void>((resolve, reject) => {
    settle = (failure) => (failure === null ? resolve() : reject(failure));
  });
  // Whoever waits for it is told; nobody has to.
  gone.catch(() => undefined);
  return { chunks: [], gone, settle };
}
