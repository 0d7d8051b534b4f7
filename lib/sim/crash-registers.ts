/**
 * What the sectors of an array may hold after the power went at some moment of a trace. Every sector is a register:
 *
 *   ask(w)     a write was asked for         answered(w)   it was acknowledged; never, for one that was under way or failed
 *   durable    w was acknowledged before a flush was asked for that was acknowledged, or it was an acknowledged FUA write
 *
 *   V(s) = { w : asked for, and no durable w' was asked for after w had been acknowledged }
 *
 * So V holds the floor, the newest durable write, everything not ordered before it, and, while no write is durable, what
 * was there at the start: a set too, where the trace itself begins after a crash.
 */
import { SECTOR_BYTES } from '../units.ts';
import type { TraceEvent } from './crash-trace.ts';

/** Sector contents by number: equal bytes, equal number. */
export class Contents {
  readonly #ids = new Map<string, number>();

  idOf(bytes: Uint8Array, offsetBytes = 0): number {
    const text = Buffer.from(bytes.buffer, bytes.byteOffset + offsetBytes, SECTOR_BYTES).toString('latin1');
    const known = this.#ids.get(text);
    if (known !== undefined) return known;
    const id = this.#ids.size;
    this.#ids.set(text, id);
    return id;
  }
}

/** The same for places that hold one of few things, looked at again and again: none of them becomes a text twice. */
export class KnownContents {
  readonly #contents: Contents;
  readonly #words: Int32Array;
  readonly #known = new Map<number, { readonly id: number; readonly words: Int32Array }[]>();

  /** Of this array's bytes. */
  constructor(contents: Contents, words: Int32Array) {
    this.#contents = contents;
    this.#words = words;
  }

  idAt(arraySector: number): number {
    const words = this.#words;
    const start = (arraySector * SECTOR_BYTES) / 4;
    let known = this.#known.get(arraySector);
    if (known === undefined) {
      known = [];
      this.#known.set(arraySector, known);
    }
    for (const { id, words: before } of known) {
      let at = 0;
      while (at < before.length && before[at] === words[start + at]) at += 1;
      if (at === before.length) return id;
    }
    const bytes = new Uint8Array(words.buffer, words.byteOffset + start * 4, SECTOR_BYTES);
    const id = this.#contents.idOf(bytes);
    known.push({ id, words: words.slice(start, start + SECTOR_BYTES / 4) });
    return id;
  }
}

interface Write {
  readonly asked: number;
  readonly isFua: boolean;
  readonly contents: readonly number[];
  readonly sector: number;
  answered: number;
  durable: number;
}

const NEVER = Number.POSITIVE_INFINITY;

export class Registers {
  readonly #before: ReadonlyMap<number, ReadonlySet<number>>;
  readonly #writes: Write[] = [];
  readonly #bySector = new Map<number, { readonly write: Write; readonly content: number }[]>();

  /** `before`: what each sector may hold at the start, by content number; all sectors that are ever asked about. */
  constructor(
    events: readonly TraceEvent[],
    contents: Contents,
    before: ReadonlyMap<number, ReadonlySet<number>>,
  ) {
    this.#before = before;
    const writes = new Map<number, Write>();
    const flushes = new Map<number, number>();
    for (const [at, event] of events.entries()) {
      switch (event.what) {
        case 'ask': {
          const count = event.bytes.byteLength / SECTOR_BYTES;
          const ids = Array.from({ length: count }, (_, sector) =>
            contents.idOf(event.bytes, sector * SECTOR_BYTES),
          );
          const write: Write = {
            asked: at,
            isFua: event.fua,
            contents: ids,
            sector: event.sector,
            answered: NEVER,
            durable: NEVER,
          };
          writes.set(event.id, write);
          this.#writes.push(write);
          for (const [index, content] of ids.entries()) {
            const list = this.#bySector.get(event.sector + index) ?? [];
            list.push({ write, content });
            this.#bySector.set(event.sector + index, list);
          }
          break;
        }
        case 'answered': {
          const write = writes.get(event.id) as Write;
          write.answered = at;
          if (write.isFua) write.durable = at;
          break;
        }
        case 'sync':
          flushes.set(event.id, at);
          break;
        case 'synced': {
          const asked = flushes.get(event.id) as number;
          for (const write of this.#writes)
            if (write.answered < asked && write.durable === NEVER) write.durable = at;
          break;
        }
        default:
      }
    }
  }

  /** Sectors that were asked to be written. */
  get sectors(): Iterable<number> {
    return this.#bySector.keys();
  }

  /** V of a sector when the power went after the first `moment` events. */
  admitted(sector: number, moment: number): ReadonlySet<number> {
    const before = this.#before.get(sector) ?? new Set<number>();
    const list = this.#bySector.get(sector)?.filter(({ write }) => write.asked < moment);
    if (list === undefined || list.length === 0) return before;
    let floor = -1;
    for (const { write } of list) if (write.durable < moment) floor = Math.max(floor, write.asked);
    const admitted = new Set<number>(floor < 0 ? before : []);
    for (const { write, content } of list) {
      if (!(write.answered < moment) || write.answered > floor) admitted.add(content);
    }
    return admitted;
  }
}
