import { describe, expect, test } from 'vitest';
import { type Walk, Windows } from '../../lib/array/sync.ts';
import { realHost, seededRandom } from '../../lib/host.ts';

interface Begun {
  readonly fromBytes: number;
  readonly lengthBytes: number;
  readonly end: (error?: Error) => void;
}

/** A walk whose windows end when they are told to. */
function held(totalBytes: number, skip: (afterBytes: number) => number = (afterBytes) => afterBytes) {
  const begun: Begun[] = [];
  const walk: Walk<number> = {
    from: (afterBytes) => Math.min(totalBytes, skip(afterBytes)),
    totalBytes,
    work: (fromBytes, lengthBytes) =>
      new Promise((resolve, reject) => {
        const end = (error?: Error): void => (error === undefined ? resolve(fromBytes) : reject(error));
        begun.push({ fromBytes, lengthBytes, end });
      }),
  };
  return { walk, begun };
}

const settled = (): Promise<void> => new Promise((resolve) => realHost.turn(resolve));

describe('windows of a walk', () => {
  test('cover everything there is to do, once, in order, with one begun ahead and never more', async () => {
    for (let seed = 1; seed <= 200; seed += 1) {
      const random = seededRandom(seed);
      const windowBytes = 1 + random(8);
      const totalBytes = 1 + random(40);
      const idle = new Set(Array.from({ length: random(12) }, () => random(40)));
      const skip = (afterBytes: number): number => {
        let at = afterBytes;
        while (at < totalBytes && idle.has(at)) at += 1;
        return at;
      };
      const { walk, begun } = held(totalBytes, skip);
      const windows = new Windows<number>(windowBytes);
      const covered: number[] = [];
      let ended = 0;
      for (let doneBytes = 0; doneBytes < totalBytes; ) {
        const next = windows.next(walk, doneBytes, 'same');
        await settled();
        const here = begun[ended];
        const end = here === undefined ? totalBytes : here.fromBytes + here.lengthBytes;
        const isLast = skip(end) === totalBytes;
        expect(begun.length - ended, `seed ${seed}`).toBe(here === undefined ? 0 : isLast ? 1 : 2);
        here?.end();
        const done = await next;
        windows.precedes('same');
        expect(done.endBytes, `seed ${seed}`).toBe(end);
        if (here !== undefined) {
          expect(done, `seed ${seed}`).toMatchObject({ fromBytes: here.fromBytes, result: here.fromBytes });
          for (let at = done.fromBytes; at < done.endBytes; at += 1) covered.push(at);
          ended += 1;
        }
        doneBytes = done.endBytes;
      }
      const inOrder = [...new Set(covered)].sort((a, b) => a - b);
      expect(covered, `seed ${seed}`).toEqual(inOrder);
      const left = Array.from({ length: totalBytes }, (_, at) => at).filter((at) => !covered.includes(at));
      expect(
        left.filter((at) => !idle.has(at)),
        `seed ${seed}`,
      ).toEqual([]);
    }
  });

  test('what was begun ahead is waited for and done again when things have changed since', async () => {
    const { walk, begun } = held(12);
    const windows = new Windows<number>(4);
    const first = windows.next(walk, 0, 'before');
    await settled();
    begun[0]?.end();
    await first;
    windows.precedes('before');
    const again = windows.next(walk, 4, 'after');
    await settled();
    expect(begun.map(({ fromBytes }) => fromBytes)).toEqual([0, 4]);
    begun[1]?.end();
    await settled();
    expect(begun.map(({ fromBytes }) => fromBytes)).toEqual([0, 4, 4, 8]);
    begun[2]?.end();
    expect(await again).toEqual({ fromBytes: 4, endBytes: 8, result: 4 });
    begun[3]?.end();
    await windows.drain();
  });

  test('a failure is told of its own window, when the one ahead has ended', async () => {
    const { walk, begun } = held(12);
    const windows = new Windows<number>(4);
    let outcome = '';
    const first = windows.next(walk, 0, 'same').catch((error: Error) => {
      outcome = error.message;
    });
    await settled();
    begun[0]?.end(new Error('the first'));
    await settled();
    expect(outcome).toBe('');
    begun[1]?.end(new Error('the one ahead'));
    await first;
    expect(outcome).toBe('the first');
    expect(begun.length).toBe(2);
  });
});
