/**
 * What an array may hold after its process was killed. Each sector is a register:
 *
 *   inv(w)  the write was asked for          ack(w)  it was acknowledged; never, for one that was under way at the kill
 *
 * `kill -9` takes the process, not the page cache: every write that was acknowledged has been done, flushed or not. So a
 * sector may hold any write that no acknowledged one came after:
 *
 *   V(s) = { w : there is no acknowledged w' with inv(w') > ack(w) }
 *
 * That is stricter than what a flush promises (the floor is the newest acknowledged write, not the newest flushed one),
 * and includes it. What was there before counts as acknowledged before everything.
 *
 * Every sector says which write it is from and where it belongs, 64 times over: a sector in the wrong place, a torn
 * one and one that is nobody's show at once.
 */
export const SECTOR_BYTES = 512;
/** In place of a write: the sector may hold anything until it is written. */
const LOST = -2;
const WORDS = SECTOR_BYTES / 4;

/** A record of the history, one line each: what the child asked for, and what it was told. */
export type Line =
  /** Asked for a write of so many sectors. */
  | { readonly event: 'write'; readonly id: number; readonly sector: number; readonly count: number }
  | { readonly event: 'done'; readonly id: number }
  /** Anything else, for people. */
  | { readonly event: 'note'; readonly text: string }
  /** Something that must not happen. */
  | { readonly event: 'bug'; readonly text: string };

export function formatLine(line: Line): string {
  switch (line.event) {
    case 'write':
      return `w ${line.id} ${line.sector} ${line.count}\n`;
    case 'done':
      return `d ${line.id}\n`;
    case 'note':
      return `n ${line.text.replaceAll('\n', ' ')}\n`;
    case 'bug':
      return `b ${line.text.replaceAll('\n', ' ')}\n`;
  }
}

/** The last line may be cut off: its event had not happened yet. */
export function parseLines(text: string): Line[] {
  const whole = text.slice(0, text.lastIndexOf('\n') + 1);
  return whole
    .split('\n')
    .filter((line) => line !== '')
    .map((line): Line => {
      const [kind, first = '', sector, count] = line.split(' ');
      switch (kind) {
        case 'w':
          return { event: 'write', id: Number(first), sector: Number(sector), count: Number(count) };
        case 'd':
          return { event: 'done', id: Number(first) };
        case 'b':
          return { event: 'bug', text: line.slice(2) };
        default:
          return { event: 'note', text: line.slice(2) };
      }
    });
}

/** The content of a write. */
export function sectorsOfWrite(id: number, sector: number, count: number): Uint8Array {
  const words = new Uint32Array(count * WORDS);
  for (let index = 0; index < words.length; index += 2) {
    words[index] = sector + Math.floor(index / WORDS);
    words[index + 1] = id;
  }
  return new Uint8Array(words.buffer);
}

/** The write that a sector is from; 0 for a sector of zeros; null for one that no write has made, or not here. */
function writeIn(words: Uint32Array, at: number, sector: number): number | null {
  const place = words[at];
  const id = words[at + 1] as number;
  for (let index = 0; index < WORDS; index += 2) {
    if (words[at + index] !== place || words[at + index + 1] !== id) return null;
  }
  if (place === 0 && id === 0) return 0;
  return place === sector ? id : null;
}

export interface Unfinished {
  readonly id: number;
  readonly sector: number;
  readonly count: number;
}

export class Registers {
  readonly #sectorCount: number;
  /** What is known to be there; -1 where there are several candidates. */
  readonly #known: Int32Array;
  readonly #several = new Map<number, readonly number[]>();
  nextId = 1;

  constructor(sectorCount: number) {
    this.#sectorCount = sectorCount;
    this.#known = new Int32Array(sectorCount);
  }

  get undecided(): number {
    return this.#several.size;
  }

  /** Takes in what one child did until it was killed. Returns what was under way then. */
  follow(lines: readonly Line[]): readonly Unfinished[] {
    interface Write {
      readonly id: number;
      readonly sector: number;
      readonly count: number;
      readonly inv: number;
      ack: number;
    }
    const writes = new Map<number, Write>();
    for (const [at, line] of lines.entries()) {
      if (line.event === 'write') {
        writes.set(line.id, { ...line, inv: at, ack: Number.POSITIVE_INFINITY });
        this.nextId = Math.max(this.nextId, line.id + 1);
      } else if (line.event === 'done') {
        const write = writes.get(line.id);
        if (write !== undefined) write.ack = at;
      }
    }
    const bySector = new Map<number, Write[]>();
    for (const write of writes.values()) {
      for (let sector = write.sector; sector < write.sector + write.count; sector += 1) {
        const list = bySector.get(sector);
        if (list === undefined) bySector.set(sector, [write]);
        else list.push(write);
      }
    }
    for (const [sector, list] of bySector) {
      const acknowledged = list.filter(({ ack }) => ack !== Number.POSITIVE_INFINITY);
      const newest = acknowledged.reduce((latest, { inv }) => Math.max(latest, inv), -1);
      const candidates = list.filter(({ ack }) => ack > newest).map(({ id }) => id);
      this.#decide(sector, newest < 0 ? [...this.candidates(sector), ...candidates] : candidates);
    }
    return [...writes.values()].filter(({ ack }) => ack === Number.POSITIVE_INFINITY);
  }

  candidates(sector: number): readonly number[] {
    return this.#several.get(sector) ?? [this.#known[sector] as number];
  }

  /**
   * Every sector that holds what it may not, described; empty when all is well. What is `exempt` may hold anything.
   * With `pin`, what was seen is what must be seen from now on.
   */
  check(
    content: Uint8Array,
    options: { readonly pin: boolean; readonly exempt?: (sector: number) => boolean },
  ): string[] {
    const words = new Uint32Array(content.buffer, content.byteOffset, content.byteLength / 4);
    const wrong: string[] = [];
    for (let sector = 0; sector < this.#sectorCount; sector += 1) {
      const found = writeIn(words, sector * WORDS, sector);
      const isExempt = options.exempt?.(sector) === true;
      const candidates = this.candidates(sector);
      if (candidates.includes(LOST)) continue;
      const isRight = found !== null && candidates.includes(found);
      if (!isRight && !isExempt) {
        const holds = found === null ? 'what nobody wrote there' : `write ${found}`;
        wrong.push(`sector ${sector} holds ${holds}; it may hold ${candidates.join(' or ')}`);
      } else if (options.pin) {
        this.#decide(sector, [isRight ? found : LOST]);
      }
    }
    return wrong;
  }

  #decide(sector: number, candidates: readonly number[]): void {
    const [only] = candidates;
    if (candidates.length === 1 && only !== undefined) {
      this.#known[sector] = only;
      this.#several.delete(sector);
    } else {
      this.#known[sector] = -1;
      this.#several.set(sector, candidates);
    }
  }
}
