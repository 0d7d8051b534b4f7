/**
 * What is said about a row of measurements. A shared machine slows down and speeds up by tens of percent within
 * seconds, so array and bound are measured in turns, and every statement about their relation is made of pairs that are
 * neighbours in time:
 *
 *   array ms   10    10    20    10          the machine was busy during the third pair
 *   bound ms    9     9    18     9
 *   share     0.9   0.9   0.9   0.9          and that did not matter
 *
 * The median, because one interrupted pair says nothing about the others.
 */
export interface Pair {
  readonly arrayMs: number;
  readonly boundMs: number;
}

export interface Summary {
  readonly arrayMs: number;
  readonly boundMs: number;
  /** How much of the bound the array reaches: 1 is all of it. */
  readonly ratio: number;
  /** Half of all pairs lie between these. */
  readonly ratioLow: number;
  readonly ratioHigh: number;
  readonly pairs: number;
}

export function summarise(pairs: readonly Pair[]): Summary {
  const ratios = pairs.map(({ arrayMs, boundMs }) => boundMs / arrayMs);
  return {
    arrayMs: median(pairs.map(({ arrayMs }) => arrayMs)),
    boundMs: median(pairs.map(({ boundMs }) => boundMs)),
    ratio: median(ratios),
    ratioLow: quantile(ratios, 0.25),
    ratioHigh: quantile(ratios, 0.75),
    pairs: pairs.length,
  };
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** Between neighbours, in proportion: of 1, 2, 3, 4 the median is 2.5 and the quartiles are 1.75 and 3.25. */
export function quantile(values: readonly number[], fraction: number): number {
  if (values.length === 0) throw new RangeError('nothing was measured');
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * fraction;
  const low = sorted[Math.floor(at)] ?? 0;
  const high = sorted[Math.ceil(at)] ?? low;
  return low + (high - low) * (at - Math.floor(at));
}
