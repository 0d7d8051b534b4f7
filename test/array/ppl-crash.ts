/**
 * The power cuts of ppl-world.ts: every moment, many subsets, every member missing; and once more during recovery. What a recovery
 * makes of disks depends on their bytes alone (time stands still, and lots are drawn from one seed), so that disks that were left with the
 * same bytes are judged once for the same values.
 */
import { createHash } from 'node:crypto';
import type { RaidArray } from '../../lib/array/array.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import type { ParityLayout } from '../../lib/layout/layout.ts';
import { SECTOR_BYTES } from '../../lib/units.ts';
import { CrashDisk, contentOf, DISK_BYTES, type Event, makeArray, put, startAgain } from './ppl-world.ts';

export type Step =
  | { readonly op: 'write'; readonly sector: number; readonly count: number }
  | { readonly op: 'flush' }
  | {
      readonly op: 'together';
      readonly writes: readonly { readonly sector: number; readonly count: number }[];
    };

export interface Workload {
  readonly disks: number;
  readonly layout?: string;
  readonly steps: readonly Step[];
}

type Sectors = Map<number, Uint8Array>;

/** What the array may hold, sector by sector, as the workload goes on. */
interface Moment {
  readonly events: number;
  /** By array sector: values that a read may return; the first is what a flush has made sure of. */
  readonly values: readonly (readonly number[])[];
}

export interface Tally {
  /** All that were left by a cut. */
  states: number;
  /** Those of them that differ in what is on the disks that are there, or in what may be read. */
  different: number;
  refused: number;
}

function bytesOf(value: number, count = 1): Uint8Array {
  return new Uint8Array(count * SECTOR_BYTES).fill(value);
}

export async function run(work: Workload): Promise<{
  readonly events: readonly Event[];
  readonly formed: number;
  readonly moments: readonly Moment[];
  readonly layout: ParityLayout;
  readonly array: RaidArray;
  readonly disks: readonly CrashDisk[];
}> {
  const events: Event[] = [];
  const disks = Array.from({ length: work.disks }, (_, index) => new CrashDisk(index, DISK_BYTES, events));
  const array = await makeArray(disks, { layout: work.layout });
  if (array.layout.kind !== 'parity') throw new Error('it is raid5');
  const formed = events.length;
  const sectors = array.limits.sizeBytes / SECTOR_BYTES;
  let values: (readonly number[])[] = Array.from({ length: sectors }, () => [0]);
  const moments: Moment[] = [{ events: events.length, values: [...values] }];
  let next = 1;
  const begin = (sector: number, count: number): Promise<void> => {
    const value = next++;
    for (let at = sector; at < sector + count; at += 1) values[at] = [...(values[at] ?? []), value];
    return array.write(sector * SECTOR_BYTES, bytesOf(value, count));
  };
  for (const step of work.steps) {
    if (step.op === 'flush') {
      await array.flush();
      values = values.map((some) => [some.at(-1) ?? 0]);
    } else {
      const writes = step.op === 'write' ? [step] : step.writes;
      const all = writes.map(({ sector, count }) => begin(sector, count));
      moments.push({ events: events.length, values: [...values] });
      await Promise.all(all);
    }
    moments.push({ events: events.length, values: [...values] });
  }
  await array.flush();
  return { events, formed, moments, layout: array.layout, array, disks };
}

/** Which value sets hold when the power goes after so many events: those of the last step begun by then. */
function valuesAt(moments: readonly Moment[], events: number): readonly (readonly number[])[] {
  let found = moments[0]!;
  for (const moment of moments) if (moment.events <= events) found = moment;
  return found.values;
}

interface Pending {
  readonly disk: number;
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
}

/** Where a disk stands: what is durable, and what is not. */
export function* cuts(
  events: readonly Event[],
  from: number,
  base: readonly Sectors[],
): Generator<{ at: number; durable: readonly Sectors[]; pending: readonly Pending[] }> {
  const durable = base.map((sectors) => new Map(sectors));
  let pending: Pending[] = [];
  for (const [at, event] of events.entries()) {
    if (at >= from) yield { at, durable, pending };
    if (event.kind === 'write') {
      pending.push(event);
    } else {
      for (const write of pending.filter(({ disk }) => disk === event.disk))
        put(durable[event.disk]!, write.offsetBytes, write.bytes);
      pending = pending.filter(({ disk }) => disk !== event.disk);
    }
  }
  yield { at: events.length, durable, pending };
}

/** Subsets of what was not flushed, whole writes and torn ones; at most so many. */
function* survivors(pending: readonly Pending[], most: number, seed: number): Generator<readonly Pending[]> {
  const random = seededRandom(seed);
  const all = 2 ** pending.length;
  if (all <= most) {
    for (let mask = 0; mask < all; mask += 1) yield pending.filter((_, index) => (mask >> index) & 1);
  } else {
    yield [];
    yield pending;
    for (let turn = 2; turn < most; turn += 1) yield pending.filter(() => random(2) === 0);
  }
  if (pending.length === 0) return;
  // Torn: of each write some sectors, of the last one too.
  for (let turn = 0; turn < Math.max(2, most / 4); turn += 1) {
    yield pending.flatMap((write) => {
      const count = write.bytes.byteLength / SECTOR_BYTES;
      const parts: Pending[] = [];
      const how = random(4);
      const cut = random(count + 1);
      for (let sector = 0; sector < count; sector += 1) {
        const isKept =
          how === 0 ? sector < cut : how === 1 ? sector >= cut : how === 2 ? random(2) === 0 : true;
        if (!isKept) continue;
        const start = sector * SECTOR_BYTES;
        parts.push({
          ...write,
          offsetBytes: write.offsetBytes + start,
          bytes: write.bytes.subarray(start, start + SECTOR_BYTES),
        });
      }
      return parts;
    });
  }
}

async function mismatches(array: RaidArray): Promise<number> {
  for await (const _ of array.scrub()) {
    // Only the sum counts.
  }
  return array.mismatchCount;
}

/** Starts what is left, and holds every sector against what it may be. Throws what is wrong. */
async function judge(
  images: readonly Sectors[],
  missing: number | null,
  values: readonly (readonly number[])[],
  layout: ParityLayout,
  events: Event[] = [],
): Promise<void> {
  const disks = images.flatMap((sectors, index) =>
    index === missing ? [] : [new CrashDisk(index, DISK_BYTES, events, sectors)],
  );
  const array = await startAgain(disks);
  const content = await contentOf(array);
  const rowSectors = (layout.chunkBytes * layout.dataCount) / SECTOR_BYTES;
  const chunkSectors = layout.chunkBytes / SECTOR_BYTES;
  for (const [sector, allowed] of values.entries()) {
    const bytes = content.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
    const [value = -1] = bytes;
    const isWhole = bytes.every((byte) => byte === value);
    if (isWhole && allowed.includes(value)) continue;
    const row = Math.floor(sector / rowSectors);
    const member = layout.row(row).data[Math.floor((sector % rowSectors) / chunkSectors)];
    if (member === missing && allowed.length > 1) continue;
    throw new Error(
      `sector ${sector} (disk ${member}) is ${value}${isWhole ? '' : '...'}, not one of ${allowed}`,
    );
  }
  if (missing === null && array.state !== 'resyncing') {
    const found = await mismatches(array);
    if (found > 0) throw new Error(`${found} mismatches in an array that is ${array.state}`);
  }
}

/** Whether such a state comes for the first time. */
class Seen {
  readonly #keys = new Set<string>();
  readonly #numbers = new Map<unknown, number>();

  isNew(images: readonly Sectors[], missing: number | null, values: unknown, more = ''): boolean {
    const number = this.#numbers.get(values) ?? this.#numbers.size;
    this.#numbers.set(values, number);
    const hash = createHash('sha256').update(`${missing} ${number} ${more}`);
    for (const [disk, sectors] of images.entries()) {
      if (disk === missing) continue;
      hash.update(`disk ${disk} `);
      for (const [sector, bytes] of [...sectors].sort(([a], [b]) => a - b))
        hash.update(`${sector} `).update(bytes);
    }
    const key = hash.digest('hex');
    if (this.#keys.has(key)) return false;
    this.#keys.add(key);
    return true;
  }
}

export async function crashEverywhere(
  work: Workload,
  options: { readonly subsets: number; readonly again?: number; readonly stride?: number },
): Promise<Tally> {
  const { events, moments, layout } = await run(work);
  const tally: Tally = { states: 0, different: 0, refused: 0 };
  const blank = Array.from({ length: work.disks }, (): Sectors => new Map());
  const slots = Array.from({ length: work.disks }, (_, slot) => slot);
  const formed = moments[0]!.events;
  const seen = new Seen();
  for (const { at, durable, pending } of cuts(events, formed, blank)) {
    if ((at - formed) % (options.stride ?? 1) !== 0) continue;
    const values = valuesAt(moments, at);
    for (const kept of survivors(pending, options.subsets, at)) {
      const images = durable.map((sectors) => new Map(sectors));
      for (const { disk, offsetBytes, bytes } of kept) put(images[disk]!, offsetBytes, bytes);
      for (const missing of [null, ...slots]) {
        tally.states += 1;
        const isCutAgain = options.again !== undefined && at % options.again === 0;
        if (!seen.isNew(images, missing, values, isCutAgain ? 'cut again' : '')) continue;
        tally.different += 1;
        const recovery: Event[] = [];
        try {
          await judge(images, missing, values, layout, recovery);
        } catch (error) {
          const where = `event ${at}, ${kept.length} of ${pending.length} writes kept, disk ${missing} missing`;
          throw new Error(`${where}: ${(error as Error).message}`, { cause: error });
        }
        if (!isCutAgain) continue;
        for (const second of cuts(recovery, 1, images)) {
          for (const left of survivors(second.pending, 4, at)) {
            const twice = second.durable.map((sectors) => new Map(sectors));
            for (const { disk, offsetBytes, bytes } of left) put(twice[disk]!, offsetBytes, bytes);
            tally.states += 1;
            if (!seen.isNew(twice, missing, values)) continue;
            tally.different += 1;
            await judge(twice, missing, values, layout).catch((error: unknown) => {
              throw new Error(
                `event ${at}, disk ${missing} missing, and event ${second.at} of the recovery: ${(error as Error).message}`,
                { cause: error },
              );
            });
          }
        }
      }
    }
  }
  return tally;
}

/** The power goes when a close has reached some members, and again at every moment of the first write of the life after that. */
export async function crashInTheNextLife(
  work: Workload,
  reached: readonly number[],
  next: { readonly sector: number; readonly count: number },
  options: { readonly subsets: number; readonly stride?: number },
): Promise<Tally> {
  const { moments, layout, array, disks } = await run(work);
  const written = moments.at(-1)!.values.map((some) => some.at(-1) ?? 0);
  const before = disks.map(({ sectors }) => new Map(sectors));
  await array.close();
  const base = disks.map(({ sectors }, slot) => (reached.includes(slot) ? sectors : before[slot]!));
  const events: Event[] = [];
  const left = base.map((sectors, index) => new CrashDisk(index, DISK_BYTES, events, sectors));
  const again = await startAgain(left);
  await again.write(next.sector * SECTOR_BYTES, bytesOf(255, next.count));
  const values = written.map((value, sector) =>
    sector >= next.sector && sector < next.sector + next.count ? [value, 255] : [value],
  );
  const slots = Array.from({ length: work.disks }, (_, slot) => slot);
  const tally: Tally = { states: 0, different: 0, refused: 0 };
  const seen = new Seen();
  for (const { at, durable, pending } of cuts(events, 0, base)) {
    if (at % (options.stride ?? 1) !== 0) continue;
    for (const kept of survivors(pending, options.subsets, at)) {
      const images = durable.map((sectors) => new Map(sectors));
      for (const { disk, offsetBytes, bytes } of kept) put(images[disk]!, offsetBytes, bytes);
      for (const missing of [null, ...slots]) {
        tally.states += 1;
        if (!seen.isNew(images, missing, values)) continue;
        tally.different += 1;
        await judge(images, missing, values, layout).catch((error: unknown) => {
          const where = `event ${at} of the next life, ${kept.length} of ${pending.length} writes kept, disk ${missing} missing`;
          throw new Error(`${where}: ${(error as Error).message}`, { cause: error });
        });
      }
    }
  }
  return tally;
}

export function isRefusal(error: unknown): error is RaidError {
  return error instanceof RaidError;
}
