import { expect, test } from 'vitest';
import { Clock, Process, Stuck } from '../../lib/sim/clock.ts';

/** Three tasks that wait and hand on, as a trace. */
async function traceOf(seed: number): Promise<string> {
  const clock = new Clock(seed);
  const process = new Process(clock);
  const trace: string[] = [];
  const task = async (name: string): Promise<void> => {
    for (let step = 0; step < 4; step += 1) {
      await process.sleep(10);
      await Promise.resolve();
      trace.push(`${name}${step}@${process.now()}`);
      clock.note(name.charCodeAt(0), step);
    }
  };
  await clock.drive(Promise.all([task('a'), task('b'), task('c')]));
  return `${trace.join(' ')} ${clock.digest()}`;
}

test('one seed is one history, and another seed orders events of one moment differently', async () => {
  expect(await traceOf(1)).toBe(await traceOf(1));
  const others = await Promise.all([2, 3, 4, 5].map(traceOf));
  expect(new Set(others).size).toBe(4);
});

test('every promise that can go on has gone on before time moves', async () => {
  const clock = new Clock(1);
  const process = new Process(clock);
  let steps = 0;
  const chain = async (): Promise<void> => {
    for (; steps < 1000; steps += 1) await Promise.resolve();
  };
  const seen: number[] = [];
  await clock.drive(
    (async () => {
      void process.sleep(1).then(chain);
      await process.sleep(1.001);
      seen.push(steps);
    })(),
  );
  expect(seen).toEqual([1000]);
});

test('a turn comes after all that goes on at this moment, and before time moves', async () => {
  const clock = new Clock(1);
  const process = new Process(clock);
  const trace: string[] = [];
  await clock.drive(
    new Promise<void>((resolve) => {
      void process.sleep(0).then(() => trace.push('event'));
      process.turn(() => trace.push(`turn at ${process.now()}`));
      queueMicrotask(() => trace.push('microtask'));
      void process.sleep(5).then(resolve);
    }),
  );
  expect(trace).toEqual(['microtask', 'turn at 0', 'event']);
});

test('who waits for what cannot come is told so, and not left waiting', async () => {
  const clock = new Clock(1);
  await expect(clock.drive(new Promise(() => undefined))).rejects.toBeInstanceOf(Stuck);
  const process = new Process(clock);
  await expect(clock.drive(process.sleep(1000), 10)).rejects.toBeInstanceOf(Stuck);
  await clock.drive(process.sleep(1));
});

test('who comes on has patience anew, but not for ever', async () => {
  const clock = new Clock(1);
  const process = new Process(clock);
  const comingOn = async (rounds: number): Promise<void> => {
    for (let round = 0; round < rounds; round += 1) {
      await process.sleep(1000);
      clock.renew(1500);
    }
  };
  await clock.drive(comingOn(100), 1500);
  await expect(clock.drive(comingOn(100_000), 1500)).rejects.toBeInstanceOf(Stuck);
});

test('a process that was killed hears of nothing any more', async () => {
  const clock = new Clock(1);
  const [dead, alive] = [new Process(clock), new Process(clock)];
  let heard = false;
  void dead.sleep(1).then(() => {
    heard = true;
  });
  dead.kill();
  await clock.drive(alive.sleep(2));
  expect(heard).toBe(false);
});

test('who asks for more and more while time stands still is told so, in microtasks and in events', async () => {
  const clock = new Clock(1);
  const inMicrotasks = async (): Promise<void> => {
    for (;;) {
      clock.after(1, () => undefined);
      await Promise.resolve();
    }
  };
  await expect(clock.drive(inMicrotasks())).rejects.toBeInstanceOf(Stuck);
  const other = new Clock(2);
  const inEvents = async (): Promise<void> => {
    for (const idle = new Process(other); ; ) await idle.sleep(0);
  };
  await expect(other.drive(inEvents())).rejects.toBeInstanceOf(Stuck);
});
