/** The judge of the crash tests is judged itself: what it lets pass, and what it must not. */
import { describe, expect, test } from 'vitest';
import { formatLine, type Line, parseLines, Registers, SECTOR_BYTES, sectorsOfWrite } from './history.ts';

const write = (id: number, sector: number, count = 1): Line => ({ event: 'write', id, sector, count });
const done = (id: number): Line => ({ event: 'done', id });

/** An array of four sectors, each with the write named, 0 for none. */
function contentOf(...ids: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(ids.length * SECTOR_BYTES);
  for (const [sector, id] of ids.entries())
    if (id !== 0) bytes.set(sectorsOfWrite(id, sector, 1), sector * SECTOR_BYTES);
  return bytes;
}

function judged(lines: readonly Line[]): Registers {
  const registers = new Registers(4);
  registers.follow(lines);
  return registers;
}

const passes = (registers: Registers, content: Uint8Array): boolean =>
  registers.check(content, { pin: false }).length === 0;

describe('a sector holds', () => {
  test('the write that was acknowledged, and neither what was before it nor nothing', () => {
    const registers = judged([write(1, 0), done(1), write(2, 0), done(2)]);
    expect(passes(registers, contentOf(2, 0, 0, 0))).toBe(true);
    expect(passes(registers, contentOf(1, 0, 0, 0))).toBe(false);
    expect(passes(registers, contentOf(0, 0, 0, 0))).toBe(false);
  });

  test('either of two that were under way together, though one was acknowledged first', () => {
    const registers = judged([write(1, 0), write(2, 0), done(2), done(1)]);
    expect(passes(registers, contentOf(1, 0, 0, 0))).toBe(true);
    expect(passes(registers, contentOf(2, 0, 0, 0))).toBe(true);
  });

  test('one that was never acknowledged, or what was there before it', () => {
    const registers = judged([write(1, 0), done(1), write(2, 0, 2)]);
    for (const content of [contentOf(1, 0, 0, 0), contentOf(2, 2, 0, 0), contentOf(1, 2, 0, 0)])
      expect(passes(registers, content)).toBe(true);
    expect(passes(registers, contentOf(0, 2, 0, 0))).toBe(false);
  });

  test('after it was pinned, what was seen then', () => {
    const registers = judged([write(1, 0)]);
    expect(registers.check(contentOf(1, 0, 0, 0), { pin: true })).toEqual([]);
    expect(passes(registers, contentOf(0, 0, 0, 0))).toBe(false);
  });

  test('no sector of another place, no torn one, no garbage', () => {
    const registers = judged([write(1, 0, 2), done(1)]);
    const right = contentOf(1, 1, 0, 0);
    expect(passes(registers, right)).toBe(true);
    const moved = right.slice();
    moved.set(right.subarray(0, SECTOR_BYTES), SECTOR_BYTES);
    expect(passes(registers, moved)).toBe(false);
    const torn = right.slice();
    torn[300] = 9;
    expect(passes(registers, torn)).toBe(false);
  });

  test('anything, where that was allowed, and until it is written again', () => {
    const registers = judged([write(1, 0), done(1)]);
    const garbage = contentOf(1, 0, 0, 0).fill(7, 0, SECTOR_BYTES);
    expect(registers.check(garbage, { pin: true, exempt: (sector) => sector === 0 })).toEqual([]);
    expect(passes(registers, contentOf(0, 0, 0, 0))).toBe(true);
    registers.follow([write(2, 0), done(2)]);
    expect(passes(registers, garbage)).toBe(false);
    expect(passes(registers, contentOf(2, 0, 0, 0))).toBe(true);
  });
});

test('lines come back as they went; one that is cut off did not happen', () => {
  const lines: readonly Line[] = [write(7, 3, 2), done(7), { event: 'note', text: 'fail 1' }];
  const text = lines.map(formatLine).join('');
  expect(parseLines(text)).toEqual(lines);
  expect(parseLines(`${text}d 1`)).toEqual(lines);
});
