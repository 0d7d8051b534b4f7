import { expect, test } from 'vitest';
import { inUnit, isReached } from '../../bench/compare.ts';
import { median, quantile, summarise } from '../../bench/pairs.ts';

test('the median of an even count lies between the two in the middle', () => {
  expect(median([4, 1, 3, 2])).toBe(2.5);
  expect(quantile([4, 1, 3, 2], 0.25)).toBe(1.75);
  expect(median([7])).toBe(7);
  expect(() => median([])).toThrow(RangeError);
});

test('a pair that was disturbed as a whole does not move the ratio', () => {
  const calm = { arrayMs: 10, boundMs: 9 };
  const summary = summarise([calm, calm, { arrayMs: 40, boundMs: 36 }, calm]);
  expect(summary).toEqual({
    arrayMs: 10,
    boundMs: 9,
    ratio: 0.9,
    ratioLow: 0.9,
    ratioHigh: 0.9,
    pairs: 4,
  });
});

test('one pair of which only half was disturbed does not move the median ratio either', () => {
  const calm = { arrayMs: 10, boundMs: 8 };
  expect(summarise([calm, { arrayMs: 100, boundMs: 8 }, calm]).ratio).toBe(0.8);
});

test('units: bytes become GB/s, requests thousands a second or microseconds each', () => {
  expect(inUnit('GB/s', 32e6, 8)).toBe(4);
  expect(inUnit('k/s', 2000, 8)).toBe(250);
  expect(inUnit('µs', 2000, 8)).toBe(4);
});

test('an aim is reached at its limit, to two decimals', () => {
  expect(isReached(null, 1, 1)).toBe(null);
  const aim = { measure: 'ratio', sense: 'at least', limit: 0.85 } as const;
  expect(isReached(aim, 0, 0.8451)).toBe(true);
  expect(isReached(aim, 0, 0.8449)).toBe(false);
  const latency = { measure: 'value', sense: 'at most', limit: 25 } as const;
  expect(isReached(latency, 25, 0.1)).toBe(true);
  expect(isReached(latency, 25.1, 1)).toBe(false);
});
