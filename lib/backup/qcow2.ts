/**
 * A qcow2 image (version 3) of a device, written in one pass, as QEMU's docs/interop/qcow2.txt has it. All numbers are
 * big-endian; everything is in clusters of 64 KiB:
 *
 *   cluster 0      the header, and the name of the backing file
 *   ...            data clusters, and behind the data of each 512 MiB its L2 table: 8192 entries of 8 bytes
 *   ...            the L1 table: where the L2 tables are
 *   ...            refcount blocks, 16 bits for each cluster, 32768 in a block; the refcount table: where those are
 *
 * Every cluster of the file is used exactly once, so every refcount is 1, and how many refcount blocks there are is known
 * when all else is written. Clusters of zeros take no space: without a backing file they are not allocated; with one, an
 * entry says that they read as zeros, since "not allocated" means "as in the backing file".
 *
 * The header is written last, and flushed after all else: what was interrupted is no image.
 */
import type { Device } from '../device/device.ts';
import type { FileDevice } from '../device/file.ts';
import { RaidError } from '../errors.ts';
import { divCeil, KIB, roundUp } from '../units.ts';
import { viewOf } from './seal.ts';
import type { Range } from './store.ts';

const CLUSTER_BITS = 16;
const CLUSTER_BYTES = 64 * KIB;
const ENTRIES_PER_TABLE = CLUSTER_BYTES / 8;
/** A block has 16 bits for each cluster. */
const REFCOUNTS_PER_BLOCK = CLUSTER_BYTES / 2;
const HEADER_BYTES = 104;
/** L2 and L1 entries of what is used once. */
const COPIED = 2n ** 63n;
const READS_AS_ZEROS = 1n;
/** QEMU takes no larger sectors, and images are whole ones. */
const SECTOR_BYTES = 512;
const NAME_BYTES_MAX = 1023;

/** What an incremental image is on top of. */
export interface Backing {
  /** As the image shall name it: relative to the image, or absolute. */
  readonly path: string;
  readonly format: 'raw' | 'qcow2';
  /** All that may differ from it. */
  readonly changed: readonly Range[];
}

export interface ExportProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly writtenBytes: number;
}

export interface ExportOptions {
  readonly signal?: AbortSignal;
  readonly progress?: (progress: ExportProgress) => void;
}

/** False where `signal` asked to stop: the file is then no image. */
export async function writeQcow2(
  source: Device,
  target: FileDevice,
  options: ExportOptions & { readonly backing?: Backing } = {},
): Promise<boolean> {
  return await new Qcow2(source, target, options.backing ?? null).write(options);
}

class Qcow2 {
  readonly #source: Device;
  readonly #target: FileDevice;
  readonly #backing: Backing | null;
  readonly #clusters: number;
  readonly #l2Tables: number[] = [];
  /** The next cluster of the file that is free. */
  #next = 1;
  #l2 = new BigUint64Array(0);

  constructor(source: Device, target: FileDevice, backing: Backing | null) {
    this.#source = source;
    this.#target = target;
    this.#backing = backing;
    this.#clusters = divCeil(source.limits.sizeBytes, CLUSTER_BYTES);
    if (backing !== null && Buffer.byteLength(backing.path) > NAME_BYTES_MAX) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${backing.path}: qcow2 takes names of up to ${NAME_BYTES_MAX} bytes`,
      );
    }
  }

  async write({ signal, progress }: ExportOptions): Promise<boolean> {
    const { sizeBytes } = this.#source.limits;
    let writtenBytes = 0;
    for (let table = 0; table < divCeil(this.#clusters, ENTRIES_PER_TABLE); table += 1) {
      this.#l2 = new BigUint64Array(ENTRIES_PER_TABLE);
      const start = table * ENTRIES_PER_TABLE * CLUSTER_BYTES;
      const end = Math.min(sizeBytes, start + ENTRIES_PER_TABLE * CLUSTER_BYTES);
      for await (const { offsetBytes, bytes } of this.#clustersOf(start, end)) {
        if (signal?.aborted === true) return false;
        const index = (offsetBytes - start) / CLUSTER_BYTES;
        if (bytes === null) this.#l2.fill(READS_AS_ZEROS, index, index + 1);
        else {
          await this.#target.write(this.#next * CLUSTER_BYTES, bytes);
          this.#l2[index] = COPIED | BigInt(this.#next * CLUSTER_BYTES);
          this.#next += 1;
          writtenBytes += bytes.byteLength;
        }
        progress?.({ doneBytes: offsetBytes, totalBytes: sizeBytes, writtenBytes });
      }
      this.#l2Tables.push(await this.#writeTable(this.#l2));
    }
    await this.#finish();
    progress?.({ doneBytes: sizeBytes, totalBytes: sizeBytes, writtenBytes });
    return true;
  }

  /** Clusters that need an entry: null for one that must read as zeros over something else. */
  async *#clustersOf(
    start: number,
    end: number,
  ): AsyncGenerator<{ readonly offsetBytes: number; readonly bytes: Uint8Array | null }> {
    const ranges =
      this.#backing === null ? [{ offsetBytes: start, lengthBytes: end - start }] : this.#backing.changed;
    let done = start;
    for (const range of sorted(ranges)) {
      // Whole clusters: a cluster that is touched is written.
      const from = Math.max(done, range.offsetBytes - (range.offsetBytes % CLUSTER_BYTES));
      const to = Math.min(end, roundUp(range.offsetBytes + range.lengthBytes, CLUSTER_BYTES));
      if (from >= to) continue;
      yield* this.#dataOf(from, to);
      done = roundUp(to, CLUSTER_BYTES);
    }
  }

  async *#dataOf(
    from: number,
    to: number,
  ): AsyncGenerator<{ readonly offsetBytes: number; readonly bytes: Uint8Array | null }> {
    for (const extent of await this.#source.blockStatus(from, to - from)) {
      const end = extent.offsetBytes + extent.lengthBytes;
      let at = extent.offsetBytes - (extent.offsetBytes % CLUSTER_BYTES);
      // The cluster in which the last extent ended was looked at with that.
      if (at < extent.offsetBytes) at += CLUSTER_BYTES;
      for (; at < end; at += CLUSTER_BYTES) {
        const bytes = extent.zero && at + CLUSTER_BYTES <= end ? null : await this.#read(at);
        if (bytes !== null) yield { offsetBytes: at, bytes };
        else if (this.#backing !== null) yield { offsetBytes: at, bytes: null };
      }
    }
  }

  /** A whole cluster, with zeros behind the end of the source; null where it is zeros. */
  async #read(at: number): Promise<Uint8Array | null> {
    const bytes = new Uint8Array(CLUSTER_BYTES);
    const length = Math.min(CLUSTER_BYTES, this.#source.limits.sizeBytes - at);
    await this.#source.read(at, bytes.subarray(0, length));
    return Buffer.compare(bytes, zeroCluster) === 0 ? null : bytes;
  }

  /** Appends a table of big-endian words; its offset. */
  async #writeTable(words: BigUint64Array): Promise<number> {
    const bytes = new Uint8Array(roundUp(words.byteLength, CLUSTER_BYTES));
    const view = viewOf(bytes);
    words.forEach((word, index) => {
      view.setBigUint64(index * 8, word, false);
    });
    return await this.#append(bytes);
  }

  async #append(bytes: Uint8Array): Promise<number> {
    const offset = this.#next * CLUSTER_BYTES;
    await this.#target.write(offset, bytes);
    this.#next += bytes.byteLength / CLUSTER_BYTES;
    return offset;
  }

  async #finish(): Promise<void> {
    const l1 = await this.#writeTable(
      BigUint64Array.from(this.#l2Tables, (offset) => COPIED | BigInt(offset)),
    );
    const { blocks, tableClusters } = refcountShape(this.#next);
    const clusters = this.#next + blocks + tableClusters;
    const firstBlock = this.#next * CLUSTER_BYTES;
    for (let block = 0; block < blocks; block += 1) {
      const bytes = new Uint8Array(CLUSTER_BYTES);
      const view = viewOf(bytes);
      const count = Math.min(REFCOUNTS_PER_BLOCK, clusters - block * REFCOUNTS_PER_BLOCK);
      for (let index = 0; index < count; index += 1) view.setUint16(index * 2, 1, false);
      await this.#append(bytes);
    }
    const table = await this.#writeTable(
      BigUint64Array.from({ length: blocks }, (_, block) => BigInt(firstBlock + block * CLUSTER_BYTES)),
    );
    await this.#target.resize(this.#next * CLUSTER_BYTES);
    await this.#target.flush();
    await this.#target.write(0, this.#header(l1, table, tableClusters));
    await this.#target.flush();
  }

  #header(l1: number, refcountTable: number, refcountClusters: number): Uint8Array {
    const bytes = new Uint8Array(CLUSTER_BYTES);
    const view = viewOf(bytes);
    const { sizeBytes } = this.#source.limits;
    view.setUint32(0, 0x514649fb, false); // "QFI\xfb"
    view.setUint32(4, 3, false);
    view.setUint32(20, CLUSTER_BITS, false);
    view.setBigUint64(24, BigInt(roundUp(sizeBytes, SECTOR_BYTES)), false);
    view.setUint32(36, this.#l2Tables.length, false);
    view.setBigUint64(40, BigInt(l1), false);
    view.setBigUint64(48, BigInt(refcountTable), false);
    view.setUint32(56, refcountClusters, false);
    view.setUint32(96, 4, false); // refcounts of 2^4 bits
    view.setUint32(100, HEADER_BYTES, false);
    let at = HEADER_BYTES;
    if (this.#backing !== null) {
      const format = Buffer.from(this.#backing.format);
      view.setUint32(at, 0xe2792aca, false); // the backing file's format
      view.setUint32(at + 4, format.byteLength, false);
      bytes.set(format, at + 8);
      at += 8 + roundUp(format.byteLength, 8);
    }
    at += 8; // the end of the extensions: type 0, length 0
    if (this.#backing !== null) {
      const name = Buffer.from(this.#backing.path);
      view.setBigUint64(8, BigInt(at), false);
      view.setUint32(16, name.byteLength, false);
      bytes.set(name, at);
    }
    return bytes;
  }
}

const zeroCluster = Buffer.alloc(CLUSTER_BYTES);

function sorted(ranges: readonly Range[]): readonly Range[] {
  return ranges.toSorted((left, right) => left.offsetBytes - right.offsetBytes);
}

/** Refcount blocks count themselves and their table: the smallest numbers that do. */
function refcountShape(used: number): { readonly blocks: number; readonly tableClusters: number } {
  let blocks = 1;
  let tableClusters = 1;
  for (;;) {
    const clusters = used + blocks + tableClusters;
    const needed = divCeil(clusters, REFCOUNTS_PER_BLOCK);
    const neededTable = divCeil(needed * 8, CLUSTER_BYTES);
    if (needed === blocks && neededTable === tableClusters) return { blocks, tableClusters };
    blocks = needed;
    tableClusters = neededTable;
  }
}

/** How large a qcow2 file can become: what the target must have room for. */
export function qcow2BytesAtMost(sizeBytes: number): number {
  const clusters = divCeil(sizeBytes, CLUSTER_BYTES);
  const tables = divCeil(clusters, ENTRIES_PER_TABLE);
  const used = 1 + clusters + tables + divCeil(tables * 8, CLUSTER_BYTES);
  const { blocks, tableClusters } = refcountShape(used);
  return (used + blocks + tableClusters) * CLUSTER_BYTES;
}
