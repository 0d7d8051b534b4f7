/**
 * What the disks may hold after a power cut: for a prefix of a trace, every write that is not durable yet may be there or
 * not, on each disk independently, and be torn at sectors.
 *
 *   durable      answered with FUA, or answered before a flush that was answered was begun
 *   superseded   answered before an overlapping write was begun that is durable: it cannot come back
 *   free         all others, under way or answered; applied in the order in which they were begun
 *
 * Sectors that were ever written are *places*, and what they held one after the other is numbered: a state is one small
 * number for each place, and nothing is copied until a state has to be materialised.
 *
 * Of k free writes all 2^k subsets are taken while k is at most 8. Beyond that: none, all, each alone, all but each,
 * prefixes, and subsets drawn from the seed. Each of these with every write torn in turn, one at a time: after each of
 * its sectors, before each of them, and in patterns drawn from the seed.
 */
import { SECTOR_BYTES } from '../units.ts';
import type { Contents } from './crash-registers.ts';
import type { TraceEvent } from './crash-trace.ts';

/** One sector of one disk that was written. */
export interface Place {
  readonly disk: number;
  readonly sector: number;
  /** What it held: at the start, then what each write made of it; each content once. */
  readonly versions: Uint8Array[];
  /** Content numbers of the versions. */
  readonly contents: number[];
}

export interface FreeWrite {
  readonly disk: number;
  /** In the order in which writes were begun. */
  readonly order: number;
  places: readonly number[];
  versions: readonly number[];
  /** The moment of the answer; Infinity while it is under way. */
  answered: number;
}

/** Which sectors of which free writes survived. */
export interface Choice {
  /** By write: a bit for each of its groups of sectors. */
  readonly masks: readonly number[];
}

const NEVER = Number.POSITIVE_INFINITY;
const SUBSETS_OF_AT_MOST = 8;
/** Torn in so many pieces at most. */
const GROUPS = 30;

/** As a key of maps. */
export function placeKey(disk: number, sector: number): number {
  return sector * 64 + disk;
}

export class Prefixes {
  readonly places: Place[] = [];
  /** What is on the disks for certain, by place: a version. */
  readonly durable: number[] = [];
  readonly #indexes = new Map<number, number>();
  readonly #events: readonly TraceEvent[];
  readonly #writes = new Map<number, FreeWrite & { readonly begun: number; readonly isFua: boolean }>();
  readonly #durableOrder: number[] = [];
  #free: FreeWrite[] = [];
  readonly #flushes = new Map<number, readonly FreeWrite[]>();
  #at = 0;

  /** `extra`: places that are of interest though this trace may not write them. */
  constructor(
    events: readonly TraceEvent[],
    images: readonly Uint8Array[],
    contents: Contents,
    extra: Iterable<{ readonly disk: number; readonly sector: number }>,
  ) {
    this.#events = events;
    const add = (disk: number, sector: number): number => {
      const key = placeKey(disk, sector);
      const known = this.#indexes.get(key);
      if (known !== undefined) return known;
      const image = images[disk] as Uint8Array;
      const bytes = image.slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
      const index = this.places.length;
      this.places.push({ disk, sector, versions: [bytes], contents: [contents.idOf(bytes)] });
      this.durable.push(0);
      this.#durableOrder.push(-1);
      this.#indexes.set(key, index);
      return index;
    };
    for (const { disk, sector } of extra) add(disk, sector);
    let order = 0;
    for (const [at, event] of events.entries()) {
      if (event.what !== 'write') continue;
      const places: number[] = [];
      const versions: number[] = [];
      for (let from = 0; from < event.bytes.byteLength; from += SECTOR_BYTES) {
        const index = add(event.disk, (event.offsetBytes + from) / SECTOR_BYTES);
        const place = this.places[index] as Place;
        const bytes = event.bytes.subarray(from, from + SECTOR_BYTES);
        const content = contents.idOf(bytes);
        let version = place.contents.indexOf(content);
        if (version < 0) {
          version = place.versions.length;
          place.versions.push(bytes);
          place.contents.push(content);
        }
        places.push(index);
        versions.push(version);
      }
      const { disk, fua } = event;
      this.#writes.set(event.id, { disk, order, places, versions, answered: NEVER, begun: at, isFua: fua });
      order += 1;
    }
  }

  /** So many events have happened. */
  get moment(): number {
    return this.#at;
  }

  /** Takes in one more event. */
  advance(): void {
    const at = this.#at;
    const event = this.#events[at] as TraceEvent;
    this.#at += 1;
    switch (event.what) {
      case 'write':
        this.#free.push(this.#writes.get(event.id) as FreeWrite);
        return;
      case 'written': {
        const write = this.#writes.get(event.id);
        if (write === undefined) return;
        write.answered = at;
        if (write.isFua) this.#settle([write]);
        return;
      }
      case 'flush':
        this.#flushes.set(
          event.id,
          this.#free.filter((write) => write.disk === event.disk && write.answered < at),
        );
        return;
      case 'flushed':
        this.#settle(this.#flushes.get(event.id) ?? []);
        return;
      default:
    }
  }

  /** Writes of which something may or may not be there, with only those sectors of which that matters. */
  free(): readonly FreeWrite[] {
    const count = new Map<number, number>();
    for (const { places } of this.#free)
      for (const place of places) count.set(place, (count.get(place) ?? 0) + 1);
    return this.#free.flatMap((write) => {
      const places: number[] = [];
      const versions: number[] = [];
      for (const [index, place] of write.places.entries()) {
        const version = write.versions[index] as number;
        if (version === this.durable[place] && count.get(place) === 1) continue;
        places.push(place);
        versions.push(version);
      }
      return places.length === 0 ? [] : [{ ...write, places, versions }];
    });
  }

  #settle(writes: readonly FreeWrite[]): void {
    const settled = new Set(writes.map(({ order }) => order));
    for (const { order, places, versions } of writes.toSorted((a, b) => a.order - b.order)) {
      for (const [index, place] of places.entries()) {
        if (order < (this.#durableOrder[place] as number)) continue;
        this.#durableOrder[place] = order;
        this.durable[place] = versions[index] as number;
      }
    }
    this.#free = this.#free.filter(({ order }) => !settled.has(order));
    // What was answered before a write that is durable now was begun, lies below it.
    const begun = new Map<number, number>();
    for (const write of this.#writes.values())
      if (settled.has(write.order)) for (const place of write.places) begun.set(place, write.begun);
    for (const write of this.#free) {
      const isAbove = (place: number): boolean => !(write.answered < (begun.get(place) ?? -1));
      if (write.places.every(isAbove)) continue;
      write.versions = write.versions.filter((_, index) => isAbove(write.places[index] as number));
      write.places = write.places.filter(isAbove);
    }
  }
}

/** The subsets of free writes that are looked at, each once; at most about `cap` of them. */
export function choicesOf(
  writes: readonly FreeWrite[],
  random: (below: number) => number,
  cap: number,
): readonly Choice[] {
  const groups = writes.map(({ places }) => Math.min(GROUPS, places.length));
  const all = groups.map((count) => 2 ** count - 1);
  const found = new Map<string, Choice>();
  const take = (masks: readonly number[]): void => {
    const key = masks.join();
    if (found.size < cap && !found.has(key)) found.set(key, { masks });
  };
  // The plainest first: a cap takes what comes last away.
  for (const isIn of wholeSubsets(writes.length, random)) take(all.map((mask, at) => (isIn(at) ? mask : 0)));
  const wholes = [...found.values()].map(({ masks }) => masks);
  const torn = groups.map((count, index) => tornMasks(count, all[index] as number, random));
  // Round by round, so that a cap leaves something of everything.
  const rounds = Math.max(0, ...torn.map((masks) => masks.length));
  for (let round = 0; round < rounds && found.size < cap; round += 1) {
    for (const [index, masks] of torn.entries()) {
      const mask = masks[round];
      if (mask === undefined) continue;
      for (const whole of wholes) take(whole.with(index, mask));
    }
  }
  return [...found.values()];
}

/**
 * At most so many of these choices: nothing and everything, and of the others, which go from plain to torn, some from all over.
 * Other writes get others: what is left out at one moment is taken at another.
 */
export function thinned(
  choices: readonly Choice[],
  writes: readonly FreeWrite[],
  most: number,
): readonly Choice[] {
  if (choices.length <= most) return choices;
  const others = choices.slice(2);
  const turn = writes.reduce((sum, { order }) => sum + order, 0);
  const step = others.length / (most - 2);
  const drawn = Array.from(
    { length: most - 2 },
    (_, index) => (turn + Math.floor(index * step)) % others.length,
  );
  return [...choices.slice(0, 2), ...drawn.map((at) => others[at] as Choice)];
}

function wholeSubsets(
  count: number,
  random: (below: number) => number,
): readonly ((index: number) => boolean)[] {
  const subsets: ((index: number) => boolean)[] = [() => false, () => true];
  for (let one = 0; one < count; one += 1)
    subsets.push(
      (index) => index === one,
      (index) => index !== one,
    );
  if (count <= SUBSETS_OF_AT_MOST) {
    for (let bits = 0; bits < 2 ** count; bits += 1) subsets.push((index) => ((bits >> index) & 1) === 1);
    return subsets;
  }
  for (let one = 0; one < count; one += 1)
    subsets.push(
      (index) => index < one,
      (index) => index >= one,
    );
  for (let each = 0; each < 64; each += 1) {
    const drawn = Array.from({ length: count }, () => random(2) === 1);
    subsets.push((index) => drawn[index] === true);
  }
  return subsets;
}

function tornMasks(count: number, all: number, random: (below: number) => number): readonly number[] {
  const masks = new Set<number>();
  if (count > 1) {
    masks.add(1).add(2 ** (count - 1));
    for (let cut = 1; cut < count; cut += 1) masks.add(2 ** cut - 1).add(all - (2 ** cut - 1));
    for (let each = 0; each < 4; each += 1) masks.add(1 + random(all - 1));
  }
  masks.delete(all);
  return [...masks];
}

/** Applies a choice to versions by place. */
export function applyChoice(writes: readonly FreeWrite[], { masks }: Choice, versions: number[]): void {
  for (const [index, { places, versions: to }] of writes.entries()) {
    const mask = masks[index] as number;
    if (mask === 0) continue;
    const groups = Math.min(GROUPS, places.length);
    for (const [at, place] of places.entries()) {
      const group = Math.floor((at * groups) / places.length);
      if (Math.floor(mask / 2 ** group) % 2 === 1) versions[place] = to[at] as number;
    }
  }
}
