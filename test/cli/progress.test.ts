/** An honest ETA: none before there is something to go by, an interval while the speed varies, one figure when it does not. */
import { expect, test } from 'vitest';
import { Pace } from '../../cli/progress.ts';
import { duration, percent } from '../../cli/render.ts';

const MIB = 1024 * 1024;

function after(pace: Pace, seconds: number, speed: (second: number) => number): Pace {
  let bytes = 0;
  for (let ms = 0; ms <= seconds * 1000; ms += 250) {
    pace.note(bytes, ms);
    bytes += (speed(ms / 1000) * MIB) / 4;
  }
  return pace;
}

test('nothing is said of the end before it can be known', () => {
  const pace = after(new Pace(), 1, () => 100);
  expect(pace.etaSeconds(1000 * MIB)).toBeNull();
  expect(pace.words(1000 * MIB)).toEqual(['100 MiB/s']);
  expect(new Pace().words(1000 * MIB)).toEqual([]);
});

test('a steady speed gives one figure', () => {
  const pace = after(new Pace(), 8, () => 100);
  expect(pace.words(3000 * MIB)).toEqual(['100 MiB/s', '30 s left']);
});

test('a speed that varies gives an interval that holds both', () => {
  const pace = after(new Pace(), 9, (second) => (Math.floor(second) % 2 === 0 ? 50 : 150));
  expect(pace.words(3000 * MIB)[1]).toBe('20 s to 60 s left');
});

test('what stands still has no end, and no speed', () => {
  const pace = after(new Pace(), 8, () => 0);
  expect(pace.words(3000 * MIB)).toEqual([]);
});

test('only the last seconds count, and a new beginning is one', () => {
  const pace = after(new Pace(), 30, (second) => (second < 15 ? 1000 : 10));
  expect(pace.words(300 * MIB)).toEqual(['10 MiB/s', '30 s left']);
  pace.note(0, 40_000);
  expect(pace.bytesPerSecond).toBeNull();
});

test('durations and percentages read well, and 100% is never said before it is true', () => {
  expect([0.04, 3.14, 9.96, 15, 99, 130, 3600, 9000].map(duration)).toEqual([
    '0.1 s',
    '3.1 s',
    '10 s',
    '15 s',
    '99 s',
    '2m10s',
    '1h00m',
    '2h30m',
  ]);
  expect([0, 0.37249, 0.9999, 1].map(percent)).toEqual(['0.0%', '37.2%', '99.9%', '100.0%']);
});
