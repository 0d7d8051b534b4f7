import { describe, expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import { type Ask, Exchange } from '../../lib/nbd/client-exchange.ts';
import { ClientMemory } from '../../lib/nbd/client-memory.ts';
import { commandFlags, commands } from '../../lib/nbd/protocol.ts';

const SIZE_BYTES = 48;

/** Bytes are the number of the write that they came from, modulo 256; zeros are a write like any other. */
interface Change {
  readonly number: number;
  readonly ask: Ask;
}

function numberAt(changes: readonly Change[], ask: Ask, place: number): number {
  const at = place - ask.offsetBytes;
  const value = ask.command === commands.WRITE ? ask.buffers[0]?.[at] : 0;
  const found = changes.findLast(
    (change) =>
      change.ask.offsetBytes <= place &&
      place < change.ask.offsetBytes + change.ask.lengthBytes &&
      (change.ask.command === commands.WRITE ? change.number % 256 : 0) === value,
  );
  if (found === undefined) throw new Error(`nobody wrote ${value} at ${place}`);
  return found.number;
}

describe('what is written again over a new connection', () => {
  test('is all that was acknowledged, and at no moment older than what was durable', () => {
    let written = 0;
    for (let seed = 0; seed < 300; seed += 1) {
      const random = seededRandom(seed);
      const memory = new ClientMemory(1 << 20);
      const changes: Change[] = [];
      const latest = new Array<number>(SIZE_BYTES).fill(0);
      let durable = [...latest];
      for (let step = 1; step <= 20; step += 1) {
        if (random(8) === 0) {
          memory.flushed(memory.acknowledged);
          durable = [...latest];
          continue;
        }
        const offsetBytes = random(SIZE_BYTES);
        const lengthBytes = 1 + random(Math.min(16, SIZE_BYTES - offsetBytes));
        const isDurable = random(3) === 0;
        const isZeros = random(5) === 0;
        const ask: Ask = {
          command: isZeros ? commands.WRITE_ZEROES : commands.WRITE,
          flags: isDurable ? commandFlags.FUA : 0,
          offsetBytes,
          lengthBytes,
          buffers: isZeros ? [] : [new Uint8Array(lengthBytes).fill(step)],
        };
        changes.push({ number: step, ask });
        const exchange = new Exchange(ask, () => undefined);
        memory.sending(exchange);
        memory.changed(exchange, isDurable);
        for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += 1) {
          latest[at] = step;
          if (isDurable) durable[at] = step;
        }

        expect(memory.canReturn).toBe(true);
        // The power goes where all that was not durable is lost, and again after each of these.
        const there = [...durable];
        for (const again of memory.kept) {
          written += 1;
          for (let at = again.offsetBytes; at < again.offsetBytes + again.lengthBytes; at += 1) {
            there[at] = numberAt(changes, again, at);
            expect(there[at], `seed ${seed}, step ${step}, byte ${at}`).toBeGreaterThanOrEqual(
              durable[at] ?? 0,
            );
          }
        }
        expect(there, `seed ${seed}, step ${step}`).toEqual(latest);
      }
    }
    expect(written).toBeGreaterThan(1000);
  });

  test('costs no more than it may, however small the pieces are into which it is cut', () => {
    const boundBytes = 8192;
    const memory = new ClientMemory(boundBytes);
    const change = (offsetBytes: number, lengthBytes: number, isDurable: boolean): void => {
      const buffers = [new Uint8Array(lengthBytes).fill(1)];
      const ask = { command: commands.WRITE, flags: 0, offsetBytes, lengthBytes, buffers };
      const exchange = new Exchange(ask, () => undefined);
      memory.sending(exchange);
      memory.changed(exchange, isDurable);
    };
    change(0, 4096, false);
    let pieces = 0;
    for (let at = 1; at < 4096 && memory.canReturn; at += 2) {
      change(at, 1, true);
      expect(memory.keptBytes).toBeLessThanOrEqual(boundBytes);
      pieces = Math.max(pieces, memory.kept.length);
    }
    expect(pieces).toBeGreaterThan(10);
    // It says so where it had to let go of it, and after a flush all is well.
    expect([memory.canReturn, memory.kept.length, memory.keptBytes]).toEqual([false, 0, 0]);
    memory.flushed(memory.acknowledged);
    expect(memory.canReturn).toBe(true);
  });
});
