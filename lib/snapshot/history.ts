/**
 * Which old bytes a snapshot sees, as a value: who may read what, what a write must save first, and what nobody needs
 * any more. Pure; the store keeps it on disk by keeping the entries that made it.
 *
 * Points. Snapshots are numbered 1, 2, 3 … in the order in which they were taken. A *point* is an instant that something still
 * refers to: a `valid` snapshot, or a `tracking` point, which has no content any more and only knows what has changed
 * since. An `invalid` snapshot is listed, and is nothing else.
 *
 * Exceptions. Of each chunk there is a list of exceptions, by rising number:
 *
 *   copy (n, slot)   what the chunk held until its first write after point n; the bytes are in the slot
 *   lost (n)         the same, but what it held could not be read: whoever would read it is told so
 *   mark (n)         it was written after point n, and nobody needs what it held
 *
 *   Snapshot s reads the first exception whose number is at least s, and where there is none, the origin.
 *
 *   Example. Snapshots 1, 2, 3; a chunk written after 1 (copy a) and after 3 (copy b):   [(1, a), (3, b)]
 *   1 reads a; 2 and 3 read b; the origin has a third content.
 *
 * So an exception answers for the snapshots in (number of the one before it, its own number]. All else follows:
 *
 *   a write must save      where the newest point is above the last exception: it is *exposed*. A copy where a valid snapshot lies
 *                          between them, else a mark. Once for each chunk and point, however many snapshots there are
 *   a slot is needed       while a valid snapshot lies in the interval of its copy. Deleting a snapshot therefore moves nothing:
 *                          what older ones read through it stays, and the rest is free
 *   changed in [a, b)      a chunk that has an exception with such a number
 *
 * A copy, or the loss of one, that nobody needs becomes a mark, and a mark goes away when no question about points could tell the difference: no point is at
 * or below it, or none lies between it and the exception before it.
 */
import { assert, RaidError, unreachable } from '../errors.ts';

export type SnapshotState = 'valid' | 'invalid' | 'tracking';

export interface SnapshotRecord {
  readonly id: number;
  readonly name: string;
  readonly createdAtMs: number;
  /** Drawn when it was taken, in hex: in a copy of the store, or an older one put back, another has the number some day. */
  readonly nonce: string;
  readonly state: SnapshotState;
}

/** What changes a history, and what a history is made of. */
export type Entry =
  | { readonly op: 'next'; readonly id: number }
  | ({ readonly op: 'snapshot' } & SnapshotRecord)
  | {
      readonly op: 'copy';
      readonly chunk: number;
      readonly id: number;
      readonly slot: number;
      /** CRC-32 of the whole chunk, zeros behind the end of the origin. */
      readonly crc: number;
    }
  | { readonly op: 'mark' | 'lost'; readonly chunk: number; readonly id: number }
  | { readonly op: 'become'; readonly id: number; readonly state: 'invalid' | 'tracking' | 'gone' }
  /** The origin is on its way to a snapshot; 0: it is not, or has arrived. */
  | {
      readonly op: 'rollback';
      readonly id: number;
      /** What it leads to is the last use of that snapshot: elsewhere, others may have written what it shares with the origin. */
      readonly isLast?: true;
    }
  /** What the origin says of itself, in words of whoever keeps it. */
  | { readonly op: 'witness'; readonly text: string }
  /** Closed in order. */
  | { readonly op: 'seal' };

export interface Copy {
  readonly slot: number;
  readonly crc: number;
}

export interface Usage {
  /** Slots that only this snapshot needs: what deleting it would free. */
  readonly uniqueSlots: number;
  /** Slots that it shares with others. */
  readonly sharedSlots: number;
  /** Chunks of it that could not be read when they were overwritten. */
  readonly lostChunks: number;
}

interface Exception {
  readonly id: number;
  /** null: a mark. */
  readonly copy: Copy | 'lost' | null;
}

const NONE: readonly number[] = [];

export class History {
  readonly #snapshots = new Map<number, SnapshotRecord>();
  readonly #chunks = new Map<number, readonly Exception[]>();
  #nextId = 1;
  #rollbackTo = 0;
  #isLastRollback = false;
  #witnesses: readonly string[] = [];
  /** Ids, rising. */
  #valid: readonly number[] = [];
  #points: readonly number[] = [];
  #markCount = 0;

  get nextId(): number {
    return this.#nextId;
  }

  /** The snapshot that the origin is being rolled back to, or 0. */
  get rollbackTo(): number {
    return this.#rollbackTo;
  }

  /** Whether the snapshot that the origin is being rolled back to is invalid when it is there. */
  get isLastRollback(): boolean {
    return this.#isLastRollback;
  }

  /** Exceptions that have no slot. */
  get markCount(): number {
    return this.#markCount;
  }

  /** The last two: a crash can come between the record of one and what it speaks of. */
  get witnesses(): readonly string[] {
    return this.#witnesses;
  }

  /** The number that the next exception gets; 0 where there is no point. */
  get newestPoint(): number {
    return this.#points.at(-1) ?? 0;
  }

  /** By rising number. */
  get snapshots(): readonly SnapshotRecord[] {
    return [...this.#snapshots.values()];
  }

  snapshot(id: number): SnapshotRecord | null {
    return this.#snapshots.get(id) ?? null;
  }

  isValid(id: number): boolean {
    return this.#snapshots.get(id)?.state === 'valid';
  }

  /** What must be on record before the chunk is written. */
  needs(chunk: number): 'copy' | 'mark' | 'nothing' {
    const last = this.#chunks.get(chunk)?.at(-1)?.id ?? 0;
    const newest = this.newestPoint;
    if (newest <= last) return 'nothing';
    return hasWithin(this.#valid, last, newest) ? 'copy' : 'mark';
  }

  /** Where a valid snapshot has the chunk; null: in the origin. */
  lookup(id: number, chunk: number): Copy | 'lost' | null {
    const exceptions = this.#chunks.get(chunk);
    if (exceptions === undefined) return null;
    const found = exceptions[firstAbove(exceptions, id - 1, (each) => each.id)];
    if (found === undefined) return null;
    assert(found.copy !== null, 'a valid snapshot never reads a mark');
    return found.copy;
  }

  /** Chunks that were written after point `from` and before point `until`, rising. */
  changed(from: number, until = Number.POSITIVE_INFINITY): number[] {
    const chunks: number[] = [];
    for (const [chunk, exceptions] of this.#chunks) {
      const first = exceptions[firstAbove(exceptions, from - 1, (each) => each.id)];
      if (first !== undefined && first.id < until) chunks.push(chunk);
    }
    return chunks.sort((a, b) => a - b);
  }

  usage(): ReadonlyMap<number, Usage> {
    const usage = new Map(this.#valid.map((id) => [id, { uniqueSlots: 0, sharedSlots: 0, lostChunks: 0 }]));
    for (const exceptions of this.#chunks.values()) {
      let before = 0;
      for (const { id, copy } of exceptions) {
        const from = firstAbove(this.#valid, before, identity);
        const end = firstAbove(this.#valid, id, identity);
        before = id;
        if (copy === null) continue;
        for (const user of this.#valid.slice(from, end)) {
          const sum = usage.get(user);
          if (sum === undefined) continue;
          if (copy === 'lost') sum.lostChunks += 1;
          else if (end - from === 1) sum.uniqueSlots += 1;
          else sum.sharedSlots += 1;
        }
      }
    }
    return usage;
  }

  *slots(): Generator<number> {
    for (const exceptions of this.#chunks.values())
      for (const { copy } of exceptions) if (copy !== null && copy !== 'lost') yield copy.slot;
  }

  /** The entries that make this history from an empty one. */
  *entries(): Generator<Entry> {
    yield { op: 'next', id: this.#nextId };
    for (const snapshot of this.#snapshots.values()) yield { op: 'snapshot', ...snapshot };
    for (const [chunk, exceptions] of this.#chunks) {
      for (const { id, copy } of exceptions) {
        if (copy === null || copy === 'lost') yield { op: copy ?? 'mark', chunk, id };
        else yield { op: 'copy', chunk, id, ...copy };
      }
    }
    if (this.#rollbackTo !== 0) {
      const entry = { op: 'rollback', id: this.#rollbackTo } as const;
      yield this.#isLastRollback ? { ...entry, isLast: true } : entry;
    }
    for (const text of this.#witnesses) yield { op: 'witness', text };
  }

  /** Returns the slots that nobody needs any more. */
  apply(entry: Entry): readonly number[] {
    switch (entry.op) {
      case 'next':
        this.#nextId = entry.id;
        return [];
      case 'snapshot': {
        const { id, name, createdAtMs, nonce, state } = entry;
        if (this.#snapshots.has(id) || id <= (this.snapshots.at(-1)?.id ?? 0)) throw contradiction();
        this.#snapshots.set(id, { id, name, createdAtMs, nonce, state });
        this.#nextId = Math.max(this.#nextId, id + 1);
        this.#recount();
        return [];
      }
      case 'copy':
        return this.#except(entry.chunk, { id: entry.id, copy: { slot: entry.slot, crc: entry.crc } });
      case 'mark':
        return this.#except(entry.chunk, { id: entry.id, copy: null });
      case 'lost':
        return this.#except(entry.chunk, { id: entry.id, copy: 'lost' });
      case 'become': {
        const snapshot = this.#snapshots.get(entry.id);
        if (snapshot === undefined) return [];
        const state = next(snapshot.state, entry.state);
        if (state === 'gone') this.#snapshots.delete(entry.id);
        else this.#snapshots.set(entry.id, { ...snapshot, state });
        this.#recount();
        const freed: number[] = [];
        for (const chunk of this.#chunks.keys()) this.#prune(chunk, freed);
        return freed;
      }
      case 'rollback':
        if (entry.id !== 0 && !this.isValid(entry.id)) throw contradiction();
        this.#rollbackTo = entry.id;
        this.#isLastRollback = entry.isLast === true;
        return [];
      case 'witness':
        if (entry.text !== this.#witnesses.at(-1))
          this.#witnesses = [...this.#witnesses.slice(-1), entry.text];
        return [];
      case 'seal':
        return [];
      default:
        return unreachable(entry);
    }
  }

  /** A snapshot may have gone while the copy was made: then it is pruned at once. */
  #except(chunk: number, exception: Exception): readonly number[] {
    const before = this.#chunks.get(chunk) ?? [];
    if (exception.id <= (before.at(-1)?.id ?? 0) || exception.id >= this.#nextId) throw contradiction();
    this.#chunks.set(chunk, before.length === 0 ? [exception] : [...before, exception]);
    if (exception.copy === null || exception.copy === 'lost') this.#markCount += 1;
    // It changes nothing for those before it, and mostly it is needed itself.
    if (exception.copy !== null && hasWithin(this.#valid, before.at(-1)?.id ?? 0, exception.id)) return NONE;
    const freed: number[] = [];
    this.#prune(chunk, freed);
    return freed;
  }

  #prune(chunk: number, freed: number[]): void {
    const before = this.#chunks.get(chunk) ?? [];
    const needed = before.map((exception, index) => {
      const { id, copy } = exception;
      if (copy === null || hasWithin(this.#valid, before[index - 1]?.id ?? 0, id)) return exception;
      if (copy !== 'lost') freed.push(copy.slot);
      return { id, copy: null };
    });
    const after: Exception[] = [];
    for (const exception of needed) {
      if (exception.copy === null) {
        const { id } = exception;
        const left = after.at(-1);
        if (!hasWithin(this.#points, 0, id)) continue;
        if (left !== undefined && !hasWithin(this.#points, left.id, id)) continue;
      }
      after.push(exception);
    }
    this.#markCount += marksIn(after) - marksIn(before);
    if (after.length === 0) this.#chunks.delete(chunk);
    else this.#chunks.set(chunk, after);
  }

  #recount(): void {
    const all = this.snapshots;
    this.#valid = all.filter(({ state }) => state === 'valid').map(({ id }) => id);
    this.#points = all.filter(({ state }) => state !== 'invalid').map(({ id }) => id);
  }
}

/**
 * Whoever asked had seen a state that may be another when it is the turn of the entry: a write gives a snapshot up while somebody
 * deletes it. What has been given up is not tracked again, since nothing was recorded meanwhile.
 */
function next(state: SnapshotState, wanted: 'invalid' | 'tracking' | 'gone'): SnapshotState | 'gone' {
  if (state === 'valid' || wanted === 'gone') return wanted;
  if (state === 'tracking') return 'tracking';
  return wanted === 'tracking' ? 'gone' : 'invalid';
}

function marksIn(exceptions: readonly Exception[]): number {
  let count = 0;
  for (const { copy } of exceptions) if (copy === null || copy === 'lost') count += 1;
  return count;
}

/** Whether one of the rising numbers lies in (low, high]. */
function hasWithin(numbers: readonly number[], low: number, high: number): boolean {
  const found = numbers[firstAbove(numbers, low, identity)];
  return found !== undefined && found <= high;
}

function firstAbove<T>(items: readonly T[], limit: number, numberOf: (item: T) => number): number {
  let low = 0;
  let high = items.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numberOf(items[middle] as T) <= limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

function identity(value: number): number {
  return value;
}

function contradiction(): RaidError {
  return new RaidError('SUPERBLOCK_BROKEN', 'the records of a snapshot store contradict each other');
}
