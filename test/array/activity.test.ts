/** An array that nobody writes to becomes clean by itself, whatever became of those who wanted to write. */
import { expect, test } from 'vitest';
import { Activity } from '../../lib/array/activity.ts';
import { type Host, realHost } from '../../lib/host.ts';

const DELAY_MS = 200;
const steps = ['enter', 'leave', 'marked', 'refused', 'wait'] as const;
type Step = (typeof steps)[number];

function* historiesOf(length: number): Generator<readonly Step[]> {
  if (length === 0) yield [];
  else for (const before of historiesOf(length - 1)) for (const step of steps) yield [...before, step];
}

/** Time that goes on when it is told to. */
class Clock {
  #now = 0;
  #sleepers: { readonly until: number; readonly wake: () => void }[] = [];
  readonly host: Host = {
    ...realHost,
    now: () => this.#now,
    sleep: (ms) =>
      new Promise((wake) => {
        this.#sleepers.push({ until: this.#now + ms, wake });
      }),
  };

  async wait(ms: number): Promise<void> {
    this.#now += ms;
    const due = this.#sleepers.filter(({ until }) => until <= this.#now);
    this.#sleepers = this.#sleepers.filter(({ until }) => until > this.#now);
    for (const { wake } of due) wake();
    await calm();
  }
}

/** All that follows without waiting has happened. */
async function calm(): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) await Promise.resolve();
}

test('whoever comes and goes, before it is active or after, the array is clean in the end', async () => {
  for (const history of historiesOf(6)) {
    const clock = new Clock();
    const marking: { readonly resolve: () => void; readonly reject: (error: Error) => void }[] = [];
    const activity = new Activity({
      host: clock.host,
      delayMs: DELAY_MS,
      markActive: () => new Promise((resolve, reject) => marking.push({ resolve, reject })),
      markClean: () => Promise.resolve(true),
    });
    let inside = 0;
    const take = async (step: Step): Promise<void> => {
      if (step === 'enter') {
        inside += 1;
        activity.enter()?.catch(() => undefined);
      } else if (step === 'leave' && inside > 0) {
        inside -= 1;
        activity.leave();
      } else if (step === 'marked') marking.shift()?.resolve();
      else if (step === 'refused') marking.shift()?.reject(new Error('no'));
      else if (step === 'wait') await clock.wait(DELAY_MS);
      await calm();
    };
    for (const step of history) await take(step);
    while (inside > 0 || marking.length > 0) {
      await take('marked');
      await take('leave');
    }
    for (let turn = 0; turn < 3; turn += 1) await clock.wait(DELAY_MS);
    expect([history, activity.isActive]).toEqual([history, false]);
  }
});

test('who comes while the array tries in vain to rest is let in when it has tried', async () => {
  const clock = new Clock();
  let refuse: (error: Error) => void = () => undefined;
  const activity = new Activity({
    host: clock.host,
    delayMs: DELAY_MS,
    markActive: () => Promise.resolve(),
    markClean: () =>
      new Promise((_resolve, reject) => {
        refuse = reject;
      }),
  });
  await activity.enter();
  activity.leave();
  await clock.wait(DELAY_MS);
  const entered = [activity.enter(), activity.enter()];
  refuse(new Error('somebody does not flush'));
  await expect(Promise.all(entered)).resolves.toBeDefined();
  expect(activity.isActive).toBe(true);
  for (const _ of entered) activity.leave();
  await calm();
  // Who asked for it hears of it.
  await clock.wait(DELAY_MS - 1);
  const stopped = activity.stop();
  await calm();
  refuse(new Error('somebody does not flush'));
  await expect(stopped).rejects.toThrow('does not flush');
});
