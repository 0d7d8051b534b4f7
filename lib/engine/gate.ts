/**
 * Keeps the order that lanes have for free: of jobs whose stripes overlap, the one that came first goes first, unless
 * both only read. Needed where jobs wait for their I/O (the event loop), and so could otherwise meet in one stripe: a
 * degraded read that fetches data before a write and parity after it would compute garbage.
 *
 * First come, first served, without overtaking between overlapping ranges: a stream of reads cannot starve a write.
 */
interface Passage {
  readonly from: number;
  readonly to: number;
  readonly exclusive: boolean;
  admitted: boolean;
  readonly admit: () => void;
}

export class Gate {
  /** In order of arrival: those inside, and those who wait. */
  readonly #passages = new Set<Passage>();
  readonly #width: number;
  #inside = 0;

  /** At most `width` jobs inside at once, whatever they touch. */
  constructor(width: number) {
    this.#width = width;
  }

  /** Resolves to the function that leaves again. */
  enter(from: number, to: number, exclusive: boolean): Promise<() => void> {
    return new Promise((resolve) => {
      const passage: Passage = {
        from,
        to,
        exclusive,
        admitted: false,
        admit: () =>
          resolve(() => {
            this.#passages.delete(passage);
            this.#inside -= 1;
            this.#admitWhoMay();
          }),
      };
      this.#passages.add(passage);
      this.#admitWhoMay();
    });
  }

  #admitWhoMay(): void {
    const earlier: Passage[] = [];
    for (const passage of this.#passages) {
      if (this.#inside >= this.#width) return;
      if (!passage.admitted && !earlier.some((other) => excludes(other, passage))) {
        passage.admitted = true;
        this.#inside += 1;
        passage.admit();
      }
      earlier.push(passage);
    }
  }
}

function excludes(a: Passage, b: Passage): boolean {
  return (a.exclusive || b.exclusive) && a.from < b.to && b.from < a.to;
}
