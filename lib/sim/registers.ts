/**
 * What an array may hold: each of its sectors is a register, and a write is known by its number.
 *
 *   inv(w)   the write was asked for
 *   end(w)   it was acknowledged, or failed, or its process was cut off; infinite while it is under way
 *
 * A write that failed, or was cut off, is *indeterminate*: it may have happened or not. While the array lives, and after
 * the death of its process alone, a read may see w unless some acknowledged w' came after it:
 *
 *   live(s) = { w : no acknowledged w' with end(w') <= inv(read) and inv(w') > end(w) }
 *
 * and once a read has seen one of several, no later read sees another that had ended before that read began: a sector
 * does not change by itself. After a power cut the floor counts instead, the newest write that was acknowledged before
 * the last acknowledged flush was asked for (or acknowledged with fua):
 *
 *   V(s) = { floor } + { w : not end(w) < inv(floor) }
 *
 * So what was acknowledged and not flushed may be there or not, sector by sector; what is older than the floor may not.
 * What a read saw is no promise beyond the power cut.
 *
 * Every sector says which write it is from and where it belongs, and is filled to its last byte with what follows from
 * both: a sector in the wrong place, a torn one, one that is nobody's and one computed from the wrong parity all show.
 */
import { assert } from '../errors.ts';
import { SECTOR_BYTES } from '../units.ts';

const WORDS = SECTOR_BYTES / 4;

/** Numbers of what nobody wrote: a sector whose content is lost, and one that there has not been before. */
const LOST = -1;
const NEW = -2;

export interface Write {
  /** 0: zeros. */
  readonly id: number;
  readonly inv: number;
  readonly isFua: boolean;
  readonly firstSector: number;
  readonly sectorCount: number;
  /** No register promises anything while this is a candidate: an allowed loss, or a sector that has never been written. */
  readonly isAnything: boolean;
  end: number;
  isAcknowledged: boolean;
  /** A disk has forgotten that it has yet to be made durable: no later flush covers it. */
  isForgotten: boolean;
}

interface Pin {
  readonly write: Write;
  /** The read that saw it: when it was asked for, and when it answered. */
  readonly inv: number;
  readonly end: number;
}

/** Lists are looked through for what a flush has settled when they get longer than this. */
const LIST_LONG = 4;

export class Registers {
  #sectorCount: number;
  /** By sector, in the order of `inv`: whatever a read or a power cut may bring up. Never empty. */
  readonly #candidates: Write[][];
  readonly #pins = new Map<number, Pin>();
  /** Reads that were asked for before pin nothing: they may have seen what has changed since. */
  #unpinned = 0;
  readonly #underWay = new Set<Write>();
  /** Reads under way: what they may bring up is kept for them. */
  readonly #reading = new Set<number>();
  /** Writes that no flush has covered yet. */
  #unflushed: Write[] = [];
  #clock = 0;
  #ids = 0;
  /** Sectors that were read while they were lost, and held what they may not. */
  lostSeen = 0;
  /** When the newest acknowledged flush was asked for. */
  #flushed = 0;

  constructor(sectorCount: number) {
    this.#sectorCount = sectorCount;
    const zeros = this.#record(0, sectorCount, 0, true);
    zeros.end = this.now();
    zeros.isAcknowledged = true;
    this.#candidates = Array.from({ length: sectorCount }, () => [zeros]);
  }

  get sectorCount(): number {
    return this.#sectorCount;
  }

  /** Of the sectors that come on top nothing is known until they are written. */
  extend(sectorCount: number): void {
    const write = this.#record(this.#sectorCount, sectorCount - this.#sectorCount, NEW, false, true);
    write.end = this.now();
    for (let sector = this.#sectorCount; sector < sectorCount; sector += 1) this.#candidates.push([write]);
    this.#sectorCount = sectorCount;
  }

  /** A moment, later than all before. */
  now(): number {
    this.#clock += 1;
    return this.#clock;
  }

  /** The moment at which a read is asked for that may take longer than many writes. */
  beginRead(): number {
    const inv = this.now();
    this.#reading.add(inv);
    return inv;
  }

  endRead(inv: number): void {
    this.#reading.delete(inv);
  }

  begin(
    firstSector: number,
    sectorCount: number,
    how: { readonly isZero: boolean; readonly isFua: boolean },
  ): Write {
    if (!how.isZero) this.#ids += 1;
    const id = how.isZero ? 0 : this.#ids;
    const write = this.#record(firstSector, sectorCount, id, how.isFua);
    this.#underWay.add(write);
    this.#unflushed.push(write);
    this.#add(write);
    return write;
  }

  acknowledged(write: Write): void {
    this.#underWay.delete(write);
    write.end = this.now();
    write.isAcknowledged = true;
  }

  failed(write: Write): void {
    this.#underWay.delete(write);
    write.end = this.now();
  }

  /** A flush that was asked for at `inv` has been acknowledged. */
  flushed(inv: number): void {
    this.#flushed = Math.max(this.#flushed, inv);
    this.#unflushed = this.#unflushed.filter((write) => write.end > inv);
  }

  /**
   * The flush of a disk that nothing replaces has failed, and who writes was told. What was not flushed can be read until
   * the power goes, and no flush that is acknowledged later has made it durable.
   */
  flushFailed(): void {
    for (const write of this.#unflushed) write.isForgotten = true;
  }

  /** Writes under way, or ended since the last flush: where redundancy may be wrong after a crash. */
  get unflushed(): readonly Write[] {
    return this.#unflushed;
  }

  /** The process is gone. What disks have in their caches stays. */
  killed(): void {
    const now = this.now();
    for (const write of this.#underWay) write.end = now;
    this.#underWay.clear();
    this.#reading.clear();
  }

  /** The power is gone, and all caches with it. */
  powerCut(): void {
    this.killed();
    const now = this.now();
    const open = new Set<Write>();
    for (const candidates of this.#candidates) {
      if (candidates.length === 1) continue;
      this.#settle(candidates);
      if (candidates.length > 1) for (const write of candidates) open.add(write);
    }
    for (const write of open) {
      // None of them is after another any more.
      write.end = now;
      write.isAcknowledged = false;
    }
    this.#pins.clear();
  }

  /** What was seen there may change, within what is allowed: another copy answers now. */
  unpin(sector: number): void {
    this.#pins.delete(sector);
    this.#unpinned = this.now();
  }

  /** From now until it is written, the sector may hold anything. */
  lose(sector: number): void {
    const candidates = this.#candidates[sector];
    assert(candidates !== undefined, 'only sectors of the array can be lost');
    if (candidates.at(-1)?.isAnything === true) return;
    const write = this.#record(sector, 1, LOST, false, true);
    write.end = this.now();
    candidates.push(write);
    this.#pins.delete(sector);
  }

  /** Fills a buffer with what this write writes. */
  fill(write: Write, target: Uint8Array): void {
    const words = new Uint32Array(target.buffer, target.byteOffset, target.byteLength / 4);
    if (write.id === 0) {
      words.fill(0);
      return;
    }
    for (let index = 0; index < write.sectorCount; index += 1) {
      fillSector(words, index * WORDS, write.id, write.firstSector + index);
    }
  }

  /**
   * Judges what a read that was asked for at `inv` has returned: null, or the first sector that is wrong, in words.
   * What is seen is remembered where it is `isFirm`. `isExempt` sectors are not judged.
   */
  check(
    firstSector: number,
    content: Uint8Array,
    inv: number,
    isExempt: (sector: number) => boolean = () => false,
    isFirm: (sector: number) => boolean = () => true,
  ): string | null {
    const words = new Uint32Array(content.buffer, content.byteOffset, content.byteLength / 4);
    for (let index = 0; index * WORDS < words.length; index += 1) {
      const sector = firstSector + index;
      const candidates = this.#candidates[sector];
      assert(candidates !== undefined, 'a read lies inside the array');
      const only = candidates[0];
      if (candidates.length === 1 && only !== undefined && holds(words, index * WORDS, only, sector))
        continue;
      if (!this.#judge(sector, candidates, words, index * WORDS, inv, isFirm) && !isExempt(sector)) {
        return this.#describe(sector, candidates, words, index * WORDS, inv);
      }
    }
    return null;
  }

  #judge(
    sector: number,
    candidates: readonly Write[],
    words: Uint32Array,
    at: number,
    inv: number,
    isFirm: (sector: number) => boolean,
  ): boolean {
    let isLost = false;
    for (let index = candidates.length - 1; index >= 0; index -= 1) {
      const write = candidates[index] as Write;
      if (!this.#mayBeSeen(sector, candidates, write, inv)) continue;
      isLost ||= write.isAnything;
      if (!holds(words, at, write, sector)) continue;
      if (!isLost && inv > this.#unpinned && isFirm(sector))
        this.#pins.set(sector, { write, inv, end: this.now() });
      return true;
    }
    if (candidates.some(({ id }) => id === LOST)) this.lostSeen += 1;
    return isLost;
  }

  #mayBeSeen(sector: number, candidates: readonly Write[], write: Write, inv: number): boolean {
    for (const other of candidates) {
      if (other.isAcknowledged && other.end <= inv && other.inv > write.end) return false;
    }
    const pin = this.#pins.get(sector);
    return (
      pin === undefined || pin.end > inv || pin.write === write || write.end > pin.inv || write.isAnything
    );
  }

  #describe(
    sector: number,
    candidates: readonly Write[],
    words: Uint32Array,
    at: number,
    inv: number,
  ): string {
    const allowed = candidates.filter((write) => this.#mayBeSeen(sector, candidates, write, inv));
    const name = ({ id }: Write): string => (id === 0 ? 'zeros' : `write ${id}`);
    const older = candidates.find((write) => holds(words, at, write, sector));
    const [id = 0, place = 0] = words.subarray(at, at + 2);
    const isWhole = holdsPattern(words, at, id, place);
    const found =
      older !== undefined
        ? `${name(older)}, which is out of date`
        : isWhole
          ? `write ${id} of sector ${place}`
          : `what nobody wrote (${[...words.subarray(at, at + 4)].map((word) => word.toString(16)).join(' ')}...)`;
    return `sector ${sector} holds ${found}; it may hold ${allowed.map(name).join(' or ')}`;
  }

  #record(firstSector: number, sectorCount: number, id: number, isFua: boolean, isAnything = false): Write {
    return {
      id,
      inv: this.now(),
      isFua,
      firstSector,
      sectorCount,
      isAnything,
      end: Number.POSITIVE_INFINITY,
      isAcknowledged: false,
      isForgotten: false,
    };
  }

  #add(write: Write): void {
    const end = write.firstSector + write.sectorCount;
    for (let sector = write.firstSector; sector < end; sector += 1) {
      const candidates = this.#candidates[sector];
      assert(candidates !== undefined, 'a write lies inside the array');
      if (candidates.length >= LIST_LONG) this.#settle(candidates);
      candidates.push(write);
    }
  }

  /** Drops what is older than the floor. */
  #settle(candidates: Write[]): void {
    let floor = -1;
    let oldest = Number.POSITIVE_INFINITY;
    for (const inv of this.#reading) oldest = Math.min(oldest, inv);
    for (const write of candidates) {
      const isDurable = write.isFua || (write.end <= this.#flushed && !write.isForgotten);
      if (write.isAcknowledged && isDurable && write.end <= oldest) floor = Math.max(floor, write.inv);
    }
    let kept = 0;
    for (const write of candidates) {
      if (write.end < floor) continue;
      candidates[kept] = write;
      kept += 1;
    }
    candidates.length = kept;
  }
}

function seedOf(id: number, sector: number): number {
  return (Math.imul(id, 0x9e3779b1) ^ Math.imul(sector + 1, 0x85ebca77)) >>> 0;
}

function fillSector(words: Uint32Array, at: number, id: number, sector: number): void {
  words[at] = id;
  words[at + 1] = sector;
  let state = seedOf(id, sector);
  for (let index = at + 2; index < at + WORDS; index += 1) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    words[index] = state;
  }
}

function holds(words: Uint32Array, at: number, write: Write, sector: number): boolean {
  if (write.isAnything) return false;
  if (write.id !== 0)
    return words[at] === write.id && words[at + 1] === sector && holdsPattern(words, at, write.id, sector);
  for (let index = at; index < at + WORDS; index += 1) if (words[index] !== 0) return false;
  return true;
}

function holdsPattern(words: Uint32Array, at: number, id: number, sector: number): boolean {
  let state = seedOf(id, sector);
  for (let index = at + 2; index < at + WORDS; index += 1) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    if (words[index] !== state >>> 0) return false;
  }
  return true;
}
