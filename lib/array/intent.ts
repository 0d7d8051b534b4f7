/**
 * The write-intent bitmap at work: a bit is on disk before the first write to its chunk begins (I4), and stays until
 * every member has flushed what was written there (I6). After a crash only chunks with a set bit need a resync; after a
 * member's absence only they need to be copied to it.
 *
 * While a member is missing no bit is cleared, and `events_cleared` stands still: together they are what the member
 * will have missed. It may come back by them if its own events have reached `events_cleared`.
 *
 * Writers that set bits at the same time share one update: bits collect while one is being written, and all of them go
 * with the next.
 */
import { assert } from '../errors.ts';
import {
  type BitmapSuperblock,
  type Bits,
  encodeBitmapSuperblock,
  grownBits,
  type SectorRange,
  withEvents,
} from '../md/bitmap.ts';

/** The unit in which the bitmap is written: a page of the area, as Linux does. */
const PAGE_BYTES = 4096;

export interface IntentOptions {
  readonly superblock: BitmapSuperblock;
  readonly bits: Bits;
  /** The members' copies may differ, from each other and from this: all pages are written before anybody counts on them. */
  readonly mayDiffer?: boolean;
  /** Writes these bytes of the area to every member that holds a slot, durably. */
  readonly write: (offsetBytes: number, bytes: Uint8Array) => Promise<void>;
  /** Resolves when whoever did not take what was written is said to be out; null where all have taken it. */
  readonly untilTold?: () => Promise<void> | null;
}

export class Intent {
  readonly #options: IntentOptions;
  readonly #bits: Bits;
  #superblock: BitmapSuperblock;
  /** Writes under way, by bit. */
  readonly #writers = new Map<number, number>();
  /** Bits that are set in memory, but not on disk yet. */
  readonly #unwritten = new Set<number>();
  #update: Promise<void> | null = null;
  #mayDiffer: boolean;
  /** By page: the write under way, and the one that everybody who came since then waits for. */
  readonly #pages = new Map<number, { current: Promise<void>; next: Promise<void> | null }>();

  constructor(options: IntentOptions) {
    this.#options = options;
    this.#bits = options.bits;
    this.#superblock = options.superblock;
    this.#mayDiffer = options.mayDiffer === true;
  }

  get superblock(): BitmapSuperblock {
    return this.#superblock;
  }

  get bits(): Bits {
    return this.#bits;
  }

  /** Before a write to the range. Null when all of its bits are on disk already. */
  enter(range: SectorRange): Promise<void> | null {
    const { firstBit, lastBit } = this.#bits.bitsOf(range);
    let mustWait = false;
    for (let bit = firstBit; bit <= lastBit; bit += 1) {
      this.#writers.set(bit, (this.#writers.get(bit) ?? 0) + 1);
      if (this.#bits.set(bit)) this.#unwritten.add(bit);
      mustWait ||= this.#unwritten.has(bit);
    }
    return mustWait ? this.#becomeDurable(firstBit, lastBit) : null;
  }

  leave(range: SectorRange): void {
    const { firstBit, lastBit } = this.#bits.bitsOf(range);
    for (let bit = firstBit; bit <= lastBit; bit += 1) {
      const count = this.#writers.get(bit);
      assert(count !== undefined, 'who leaves has entered');
      if (count === 1) this.#writers.delete(bit);
      else this.#writers.set(bit, count - 1);
    }
  }

  /**
   * Clears what no writer uses. Only for an array whose members are all there and have all flushed; `keep` names bits
   * that a resync has still to pass.
   */
  async clear(keep: (bit: number) => boolean): Promise<void> {
    const pages = new Set<number>();
    for (let bit = 0; bit < this.#bits.bitCount; bit += 1) {
      if (this.#writers.has(bit) || keep(bit) || !this.#bits.clear(bit)) continue;
      pages.add(this.#bits.pageOf(bit));
    }
    await this.#writePages(pages);
  }

  get mayDiffer(): boolean {
    return this.#mayDiffer;
  }

  /** The same bits on every member, before anything is written that counts on one of them being set. */
  async level(): Promise<void> {
    if (!this.#mayDiffer) return;
    await this.#writePages(this.#allPages());
    this.#mayDiffer = false;
  }

  /** The superblock that goes with these events; `isComplete`: no member is missing. */
  async follow(events: number, isComplete: boolean): Promise<void> {
    await this.level();
    this.#superblock = withEvents(this.#superblock, events, isComplete);
    this.#bits.area.set(encodeBitmapSuperblock(this.#superblock));
    await this.#writePages(new Set([0]));
  }

  /** All of it, for a member that has none yet. */
  areaFor(): Uint8Array {
    return this.#bits.area.slice();
  }

  /**
   * Durably on every member, a bitmap of the array as it will be when its superblocks say that it has grown: all of what
   * is new, from there on, is to be made to agree: a new bitmap of raid10 covers more than the array, as mdadm makes it. Until then
   * nobody reads that far.
   */
  async grow(fromSector: number, syncSectors: number): Promise<void> {
    await this.level();
    const { area } = grownBits(this.#bits, fromSector, syncSectors);
    this.#superblock = { ...this.#superblock, syncSectors };
    area.set(encodeBitmapSuperblock(this.#superblock));
    this.#bits.area.set(area.subarray(0, this.#bits.area.byteLength));
    await this.writeAll();
    const known = this.#bits.area.byteLength;
    if (area.byteLength > known) await this.#options.write(known, area.subarray(known));
  }

  /** Everything once more: a member that has just got its copy may have missed what was set since. */
  async writeAll(): Promise<void> {
    await this.#writePages(this.#allPages());
  }

  #allPages(): ReadonlySet<number> {
    return new Set(Array.from({ length: this.#bits.area.byteLength / PAGE_BYTES }, (_, page) => page));
  }

  async #becomeDurable(firstBit: number, lastBit: number): Promise<void> {
    const isWaiting = (): boolean => {
      for (let bit = firstBit; bit <= lastBit; bit += 1) if (this.#unwritten.has(bit)) return true;
      return false;
    };
    while (isWaiting()) {
      this.#update ??= this.#writeUnwritten().finally(() => {
        this.#update = null;
      });
      await this.#update;
    }
  }

  async #writeUnwritten(): Promise<void> {
    // A turn of the microtask queue: requests submitted together set their bits together.
    await Promise.resolve();
    const bits = [...this.#unwritten];
    await this.#writePages(new Set(bits.map((bit) => this.#bits.pageOf(bit))));
    const told = this.#options.untilTold?.() ?? null;
    if (told !== null) await told;
    for (const bit of bits) this.#unwritten.delete(bit);
  }

  async #writePages(pages: ReadonlySet<number>): Promise<void> {
    // To the last, also when one fails: see `allEnded` in metadata.ts.
    const answers = await Promise.allSettled([...pages].map((page) => this.#writePage(page)));
    for (const answer of answers) if (answer.status === 'rejected') throw answer.reason;
  }

  /**
   * The page as it is now, or newer. One write of a page at a time: of two, the older could land last, and take a bit
   * away that its writer believes to be on disk.
   */
  #writePage(page: number): Promise<void> {
    const under = this.#pages.get(page);
    if (under === undefined) return this.#startPage(page);
    const start = (): Promise<void> => this.#startPage(page);
    under.next ??= under.current.then(start, start);
    return under.next;
  }

  #startPage(page: number): Promise<void> {
    const offsetBytes = page * PAGE_BYTES;
    const bytes = this.#bits.area.slice(offsetBytes, offsetBytes + PAGE_BYTES);
    const under = { current: this.#options.write(offsetBytes, bytes), next: null };
    this.#pages.set(page, under);
    const ended = (): void => {
      if (under.next === null) this.#pages.delete(page);
    };
    under.current.then(ended, ended);
    return under.current;
  }
}
