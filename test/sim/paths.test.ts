/** Random fabrics: one seed is one history, a case is data, and what is broken on purpose is found out and made small. */
import { afterEach, expect, test, vi } from 'vitest';
import { DelayDevice } from '../../lib/device/delay.ts';
import { pickPathCase } from '../../lib/sim/paths.ts';
import { runPathCase } from '../../lib/sim/paths-world.ts';
import { shrink } from '../../lib/sim/shrink.ts';
import { parseCase, runAlone, saveCase, simulate } from '../../lib/sim/simulate.ts';

afterEach(() => vi.restoreAllMocks());

const steps = 150;

test('the same seed is the same history, and another seed another one (I20)', async () => {
  const hashOf = async (seed: number): Promise<string> => {
    let hash = '';
    for await (const step of simulate({ seed, runs: 2, steps, paths: true })) hash = step.hash;
    return hash;
  };
  expect(await hashOf(7)).toBe(await hashOf(7));
  expect(await hashOf(7)).not.toBe(await hashOf(8));
});

test('no write is lost, late or out of order in a dozen short histories (I21)', async () => {
  for await (const { one, outcome } of simulate({ seed: 1, runs: 12, steps, paths: true }))
    expect(outcome.failure, `pickPathCase(${one.seed}, { steps: ${steps} })`).toBeNull();
});

test('a case is data: saved and parsed it has the same history', async () => {
  const one = pickPathCase(5, { steps });
  const outcome = await runAlone(one);
  const saved = parseCase(saveCase(one, outcome));
  expect(saved.case).toEqual(one);
  expect((await runAlone(saved.case)).hash).toBe(outcome.hash);
  expect(() => parseCase('{"raidsim":"case","case":{"seed":1,"mode":"paths","steps":[]}}')).toThrow(
    'not a case',
  );
});

test('any step can be left out, and what is named and not there is passed over', async () => {
  const one = pickPathCase(9, { steps: 400 });
  for (let from = 0; from < 4; from += 1) {
    const some = { ...one, steps: one.steps.filter((_, index) => index % 4 === from) };
    expect((await runPathCase(some)).failure).toBeNull();
  }
  const stranger = { do: 'break', part: 'nobody', how: { state: 'failed' }, forMs: 10 } as const;
  expect((await runPathCase({ ...one, steps: [stranger] })).failure).toBeNull();
});

test('a LUN that loses writes is found out, and the case is made small and fails again when it is replayed', async () => {
  const { write } = DelayDevice.prototype;
  // Which one is lost hangs on what it writes, and not on what has run before.
  vi.spyOn(DelayDevice.prototype, 'write').mockImplementation(function (
    this: DelayDevice,
    offset,
    source,
    how,
  ) {
    const first = source instanceof Uint8Array ? source : source[0];
    return first?.[0] === 9 ? Promise.resolve() : write.call(this, offset, source, how);
  });
  const one = pickPathCase(2, { steps });
  const { failure } = await runAlone(one);
  expect(failure?.kind).toBe('wrong data');
  if (failure === null) return;
  const { smallest } = await shrink(one, failure, { runs: 300 });
  expect(smallest.steps.length).toBeLessThan(one.steps.length / 2);
  const outcome = await runAlone(smallest);
  expect(outcome.failure?.kind).toBe('wrong data');
  const again = await runAlone(parseCase(saveCase(smallest, outcome)).case);
  expect(again).toEqual(outcome);
});
