/**
 * A history and its slots on a device: commits are durable when they resolve, and what comes back after a crash is
 * what was committed (format.ts says why).
 *
 * Commits gather. While one batch is on its way to the disk, everything else that is asked for waits and goes with the next, so
 * that many writers share one flush.
 *
 * A commit that fails leaves the disk in a state that nobody knows. The store then takes nothing more until it is opened again;
 * what it holds can still be read.
 */
import { crc32 } from 'node:zlib';
import type { Device } from '../device/device.ts';
import { assert, InvariantViolation, RaidError } from '../errors.ts';
import { roundUp } from '../units.ts';
import {
  decodeFrame,
  decodeHeader,
  encodeFrame,
  encodeHeader,
  entryBytes,
  type Frame,
  type Header,
  halfBytesFor,
  slotOffset,
  storeBytesFor,
  UNIT_BYTES,
} from './format.ts';
import { type Copy, type Entry, History } from './history.ts';

/** Entries of one batch: with the checkpoint before it, it always fits into a half. */
const BATCH_BYTES = 32 * 1024;

interface Waiting {
  readonly entries: readonly Entry[];
  readonly resolve: () => void;
  readonly reject: (cause: unknown) => void;
}

/** A half that begins with a checkpoint; `frames` has it first, then the batches. */
interface Half {
  readonly index: number;
  readonly generation: number;
  readonly frames: readonly Frame[];
}

export class SnapshotStore {
  readonly header: Header;
  readonly history: History;
  readonly #device: Device;
  readonly #free: number[];
  /** Where the next frame goes. */
  #half: number;
  #generation: number;
  #sequence = 0;
  #position = 0;
  #waiting: Waiting[] = [];
  #running: Promise<void> | null = null;
  #failure: Error | null = null;

  private constructor(device: Device, header: Header, history: History, last: Position) {
    this.header = header;
    this.history = history;
    this.#device = device;
    this.#half = last.half;
    this.#generation = last.generation;
    this.#free = freeSlots(history, header);
  }

  /** Makes a store on a device that begins with zeros, and opens it. */
  static async create(device: Device, header: Header): Promise<SnapshotStore> {
    const first = Buffer.alloc(UNIT_BYTES);
    await device.read(0, first);
    if (first.some((byte) => byte !== 0)) {
      throw new RaidError('HOLDS_DATA', `${device.name} is not empty; nothing was changed`, {
        device: device.name,
      });
    }
    // Written and not left sparse: a full file system must not be what keeps an invalidation from being recorded.
    await device.writeZeroes(UNIT_BYTES, 2 * halfBytesFor(header.slotCount), { mayUnmap: false });
    const store = new SnapshotStore(device, header, new History(), { half: 1, generation: 0 });
    await store.#checkpoint();
    await device.write(0, encodeHeader(header), { fua: true });
    return store;
  }

  static async open(device: Device): Promise<SnapshotStore> {
    const { header, last } = await load(device);
    const history = await replay(device, header, last.frames);
    const position = { half: last.index, generation: last.generation };
    const store = new SnapshotStore(device, header, history, position);
    // Nothing is ever appended behind what a crash may have torn.
    await store.#checkpoint();
    return store;
  }

  /** What a store holds, without a byte being written to it: for whoever only looks, also while another has it open. */
  static async peek(device: Device): Promise<{ readonly header: Header; readonly history: History }> {
    const { header, last } = await load(device);
    return { header, history: await replay(device, header, last.frames) };
  }

  get name(): string {
    return this.#device.name;
  }

  /** Why it takes nothing more, or null. */
  get failure(): Error | null {
    return this.#failure;
  }

  get freeSlots(): number {
    return this.#free.length;
  }

  /** Lowest first, where the store has been used in order; null where there are not so many. */
  takeSlots(count: number): number[] | null {
    if (this.#free.length < count) return null;
    return Array.from({ length: count }, () => this.#free.pop() as number);
  }

  /** Slots that were taken and never committed. */
  giveBack(slots: readonly number[]): void {
    // One by one: there may be a million, and a call does not take so many arguments.
    for (let index = slots.length - 1; index >= 0; index -= 1) this.#free.push(slots[index] as number);
  }

  /** Puts chunks into slots. It is the next commit that makes them durable. */
  async writeSlots(slots: readonly number[], chunks: readonly Uint8Array[]): Promise<void> {
    const writes: Promise<void>[] = [];
    for (let first = 0; first < slots.length; ) {
      let end = first + 1;
      while (end < slots.length && slots[end] === (slots[end - 1] as number) + 1) end += 1;
      const at = slotOffset(this.header, slots[first] as number);
      writes.push(this.#device.write(at, chunks.slice(first, end)));
      first = end;
    }
    const outcomes = await Promise.allSettled(writes);
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
  }

  /** False where the bytes are not those that were saved. */
  async readSlot({ slot, crc }: Copy, target: Uint8Array): Promise<boolean> {
    await this.#device.read(slotOffset(this.header, slot), target);
    return crc32(target) === crc;
  }

  /** Resolves when the entries are durable and in the history. All of them are, after a crash, or none. */
  commit(entries: readonly Entry[]): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ entries, resolve, reject });
      this.#running ??= this.#run();
    });
  }

  /** It has failed, and whoever opens it next will believe nothing of it: so does everybody here. */
  abandon(): void {
    assert(this.#failure !== null, 'a store is abandoned that takes nothing more');
    for (const { id, state } of [...this.history.snapshots]) {
      if (state !== 'invalid')
        this.history.apply({ op: 'become', id, state: state === 'valid' ? 'invalid' : 'gone' });
    }
  }

  /** Waits for what is being committed, seals, and closes the device. */
  async close(): Promise<void> {
    const sealing = await Promise.allSettled(this.#failure === null ? [this.commit([{ op: 'seal' }])] : []);
    await this.#running;
    await this.#device.close();
    for (const outcome of sealing) if (outcome.status === 'rejected') throw outcome.reason;
  }

  async #run(): Promise<void> {
    while (this.#waiting.length > 0) {
      const batch = this.#nextBatch();
      try {
        await this.#append(batch.flatMap(({ entries }) => entries));
        for (const { resolve } of batch) resolve();
      } catch (cause) {
        const failure = this.#fail(cause);
        for (const { reject } of [...batch, ...this.#waiting.splice(0)]) reject(failure);
      }
    }
    // In the same step in which nothing waits any more: whoever comes next starts it again.
    this.#running = null;
  }

  #nextBatch(): Waiting[] {
    let bytes = 0;
    let count = 0;
    for (const { entries } of this.#waiting) {
      bytes += entries.reduce((sum, entry) => sum + entryBytes(entry), 0);
      if (count > 0 && bytes > BATCH_BYTES) break;
      count += 1;
    }
    return this.#waiting.splice(0, count);
  }

  async #append(entries: readonly Entry[]): Promise<void> {
    const { uuid, slotCount } = this.header;
    const encode = () =>
      encodeFrame(uuid, {
        kind: 'batch',
        generation: this.#generation,
        sequence: this.#sequence,
        entries,
      });
    let bytes = encode();
    if (this.#position + bytes.byteLength > halfBytesFor(slotCount)) {
      await this.#checkpoint();
      bytes = encode();
    }
    assert(this.#position + bytes.byteLength <= halfBytesFor(slotCount), 'a batch fits behind a checkpoint');
    await this.#device.write(this.#halfOffset(this.#half) + this.#position, bytes);
    await this.#device.flush();
    this.#position += bytes.byteLength;
    this.#sequence += 1;
    const freed: number[] = [];
    for (const entry of entries) for (const slot of this.history.apply(entry)) freed.push(slot);
    if (freed.length > 0) await this.#release(freed);
  }

  /** Into the other half. What it says is durable already: it is made of commits. */
  async #checkpoint(): Promise<void> {
    const { uuid, slotCount } = this.header;
    const generation = this.#generation + 1;
    const half = 1 - this.#half;
    const entries = [...this.history.entries()];
    const bytes = encodeFrame(uuid, { kind: 'checkpoint', generation, sequence: 0, entries });
    assert(bytes.byteLength + BATCH_BYTES <= halfBytesFor(slotCount), 'a checkpoint leaves room for a batch');
    await this.#device.write(this.#halfOffset(half), bytes);
    await this.#device.flush();
    const superseded = encodeFrame(uuid, { kind: 'superseded', generation, sequence: 0, entries: [] });
    await this.#device.write(this.#halfOffset(this.#half), superseded);
    this.#half = half;
    this.#generation = generation;
    this.#position = bytes.byteLength;
    this.#sequence = 1;
  }

  /** Space that is not given back to the file system is only space: an error there is none here. */
  async #release(freed: readonly number[]): Promise<void> {
    const slots = [...freed].sort((a, b) => a - b);
    const discards: Promise<void>[] = [];
    for (let first = 0; first < slots.length; ) {
      let end = first + 1;
      while (end < slots.length && slots[end] === (slots[end - 1] as number) + 1) end += 1;
      const at = slotOffset(this.header, slots[first] as number);
      discards.push(this.#device.discard(at, (end - first) * this.header.chunkBytes));
      first = end;
    }
    await Promise.allSettled(discards);
    this.giveBack(slots);
  }

  #halfOffset(half: number): number {
    return UNIT_BYTES + half * halfBytesFor(this.header.slotCount);
  }

  #fail(cause: unknown): Error {
    this.#failure =
      cause instanceof RaidError
        ? new RaidError(
            'WRITE_FAILED',
            `${this.name} does not record what snapshots need: ${cause.message}; open it again, or delete it with all its snapshots`,
            { device: this.name, cause },
          )
        : new InvariantViolation('a snapshot store failed in a way that it does not know', { cause });
    return this.#failure;
  }
}

interface Position {
  readonly half: number;
  readonly generation: number;
}

/** The header, and the half that counts. */
async function load(device: Device): Promise<{ readonly header: Header; readonly last: Half }> {
  const { name } = device;
  const { sizeBytes } = device.limits;
  const first = Buffer.alloc(UNIT_BYTES);
  if (sizeBytes >= UNIT_BYTES) await device.read(0, first);
  const header = decodeHeader(first, name);
  if (sizeBytes < storeBytesFor(header)) {
    throw new RaidError(
      'SUPERBLOCK_BROKEN',
      `${name} has ${sizeBytes} bytes, and the snapshot store in it has ${storeBytesFor(header)}: it was cut off`,
      { device: name },
    );
  }
  const halves = [await readHalf(device, header, 0), await readHalf(device, header, 1)];
  return { header, last: newest(halves, name) };
}

/** null: superseded, never used, or broken. The other half has to tell, or nobody can. */
async function readHalf(device: Device, header: Header, index: number): Promise<Half | null> {
  const halfBytes = halfBytesFor(header.slotCount);
  const bytes = Buffer.alloc(halfBytes);
  await device.read(UNIT_BYTES + index * halfBytes, bytes);
  const first = decodeFrame(bytes, 0, header.uuid);
  if (first?.frame.kind !== 'checkpoint') return null;
  const { generation } = first.frame;
  const frames = [first.frame];
  let at = first.lengthBytes;
  for (;;) {
    const next = decodeFrame(bytes, at, header.uuid);
    const { frame } = next ?? {};
    if (next === null || frame?.kind !== 'batch') break;
    if (frame.generation !== generation || frame.sequence !== frames.length) break;
    frames.push(frame);
    at += next.lengthBytes;
  }
  for (; at < halfBytes; at += UNIT_BYTES) {
    const beyond = decodeFrame(bytes, at, header.uuid);
    if (beyond === null || beyond.frame.generation !== generation) continue;
    throw new RaidError(
      'SUPERBLOCK_BROKEN',
      `${device.name}: batch ${frames.length} of the snapshot store is damaged, and ${beyond.frame.sequence} is there`,
      { device: device.name },
    );
  }
  return { index, generation, frames };
}

function newest(halves: readonly (Half | null)[], name: string): Half {
  const [newer] = halves
    .filter((half) => half !== null)
    .sort((left, right) => right.generation - left.generation);
  if (newer === undefined) {
    throw new RaidError(
      'SUPERBLOCK_BROKEN',
      `${name}: the journal of the snapshot store is damaged, and what its snapshots hold cannot be known`,
      { device: name },
    );
  }
  return newer;
}

/**
 * Without the last batch, where one of its slots is not what it says. A slot that the same batch gives up is not asked: it may
 * have been used again already, for a batch that never came.
 */
async function replay(device: Device, header: Header, frames: readonly Frame[]): Promise<History> {
  const history = historyOf(frames, header);
  const last = frames.length === 1 ? undefined : frames.at(-1);
  const used = new Set(history.slots());
  const chunk = new Uint8Array(header.chunkBytes);
  for (const entry of last?.entries ?? []) {
    if (entry.op !== 'copy' || !used.has(entry.slot)) continue;
    await device.read(slotOffset(header, entry.slot), chunk);
    if (crc32(chunk) !== entry.crc) return historyOf(frames.slice(0, -1), header);
  }
  return history;
}

function historyOf(frames: readonly Frame[], header: Header): History {
  const history = new History();
  for (const { entries } of frames) {
    for (const entry of entries) {
      refuseOutside(entry, header);
      history.apply(entry);
    }
  }
  return history;
}

function refuseOutside(entry: Entry, { slotCount, originBytes, chunkBytes }: Header): void {
  const isOutside =
    (entry.op === 'copy' && entry.slot >= slotCount) ||
    ((entry.op === 'copy' || entry.op === 'mark' || entry.op === 'lost') &&
      entry.chunk >= roundUp(originBytes, chunkBytes) / chunkBytes);
  if (isOutside) {
    throw new RaidError('SUPERBLOCK_BROKEN', 'a record of a snapshot store names a place that is not there');
  }
}

/** Highest first, so that the lowest is taken first. */
function freeSlots(history: History, header: Header): number[] {
  const isUsed = new Uint8Array(header.slotCount);
  for (const slot of history.slots()) {
    if (isUsed[slot] === 1) {
      throw new RaidError('SUPERBLOCK_BROKEN', 'a snapshot store gives one place to two chunks');
    }
    isUsed[slot] = 1;
  }
  const free: number[] = [];
  for (let slot = header.slotCount - 1; slot >= 0; slot -= 1) if (isUsed[slot] === 0) free.push(slot);
  return free;
}
