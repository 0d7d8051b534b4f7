/**
 * How long requests took, in buckets that grow by a fifth: whatever comes, it takes the same memory, and a percentile is
 * told to within 10 %.
 */
export interface LatencySummary {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

const GROWTH = 1.2;
/** The first bucket ends here; 128 of them reach beyond an hour. */
const FIRST_MS = 0.001;
const BUCKETS = 128;
const PER_LOG = 1 / Math.log(GROWTH);

export class Latencies {
  readonly #counts = new Uint32Array(BUCKETS);
  #total = 0;
  #maxMs = 0;

  add(ms: number): void {
    const bucket = Math.ceil(Math.log(Math.max(ms, FIRST_MS) / FIRST_MS) * PER_LOG);
    const at = Math.min(bucket, BUCKETS - 1);
    this.#counts[at] = (this.#counts[at] ?? 0) + 1;
    this.#total += 1;
    this.#maxMs = Math.max(this.#maxMs, ms);
  }

  summary(): LatencySummary | null {
    if (this.#total === 0) return null;
    return { p50: this.#percentile(0.5), p99: this.#percentile(0.99), max: this.#maxMs };
  }

  #percentile(share: number): number {
    let left = Math.ceil(this.#total * share);
    for (let bucket = 0; bucket < BUCKETS; bucket += 1) {
      left -= this.#counts[bucket] ?? 0;
      // In the middle of the bucket, as ratios go; and never beyond what was seen.
      if (left <= 0) return Math.min(this.#maxMs, FIRST_MS * GROWTH ** (bucket - 0.5));
    }
    return this.#maxMs;
  }
}
