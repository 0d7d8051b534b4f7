/** The gate against its law: no two that exclude each other inside at once, in order of arrival, and nobody starves. */
import { describe, expect, test } from 'vitest';
import { Gate } from '../../lib/engine/gate.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

interface Job {
  readonly id: number;
  readonly from: number;
  readonly to: number;
  readonly exclusive: boolean;
  leave: (() => void) | null;
  left: boolean;
}

function excludes(a: Job, b: Job): boolean {
  return (a.exclusive || b.exclusive) && a.from < b.to && b.from < a.to;
}

/** Lets every promise reaction run. */
async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

async function violation(jobs: readonly Job[], width: number): Promise<string | null> {
  await settle();
  const inside = jobs.filter((job) => job.leave !== null && !job.left);
  if (inside.length > width) return `${inside.length} inside, the width is ${width}`;
  for (const job of jobs) {
    const blockers = jobs.filter((other) => other.id < job.id && !other.left && excludes(other, job));
    if (job.leave !== null && !job.left && blockers.length > 0)
      return `${job.id} passed ${blockers.map((other) => other.id)}`;
    if (job.leave === null && blockers.length === 0 && inside.length < width)
      return `${job.id} waits for nothing`;
  }
  return null;
}

describe('the gate', () => {
  for (const width of [1, 3, 16]) {
    test(`of width ${width} admits exactly those whom nobody earlier excludes`, () =>
      withSeed(runSeed, async (random) => {
        const gate = new Gate(width);
        const jobs: Job[] = [];
        for (let step = 0; step < 300; step += 1) {
          const inside = jobs.filter((job) => job.leave !== null && !job.left);
          if (random(2) === 0 || inside.length === 0) {
            const from = random(30);
            const job: Job = {
              id: jobs.length,
              from,
              to: random(20) === 0 ? Number.POSITIVE_INFINITY : from + random(8),
              exclusive: random(2) === 0,
              leave: null,
              left: false,
            };
            jobs.push(job);
            void gate.enter(job.from, job.to, job.exclusive).then((leave) => {
              job.leave = leave;
            });
          } else {
            const job = inside[random(inside.length)];
            if (job?.leave) {
              job.left = true;
              job.leave();
            }
          }
          expect(await violation(jobs, width)).toBe(null);
        }
        for (;;) {
          await settle();
          const job = jobs.find((other) => other.leave !== null && !other.left);
          if (job === undefined) break;
          job.left = true;
          job.leave?.();
        }
        expect(jobs.every((job) => job.left)).toBe(true);
      }));
  }

  test('lets a write in through an endless stream of reads', async () => {
    const gate = new Gate(4);
    let written = false;
    const readers = [await gate.enter(0, 10, false)];
    void gate.enter(5, 6, true).then((leave) => {
      written = true;
      leave();
    });
    for (let turn = 0; turn < 20 && !written; turn += 1) {
      const next = gate.enter(0, 10, false);
      readers.shift()?.();
      readers.push(await next);
    }
    expect(written).toBe(true);
  });

  test('a job that touches nothing waits for nobody', async () => {
    const gate = new Gate(2);
    await gate.enter(0, 10, true);
    const leave = await gate.enter(0, 0, true);
    leave();
  });

  test('admits the next of many waiting ones in the same time whatever their number', async () => {
    // Ten thousand that wait for the width alone: each leave must not look at all of them. It would be 10^8 steps.
    const gate = new Gate(1);
    let passed = 0;
    const all = Array.from({ length: 10_000 }, (_, index) =>
      gate.enter(index, index + 1, true).then((leave) => {
        passed += 1;
        leave();
      }),
    );
    await Promise.all(all);
    expect(passed).toBe(10_000);
  });
});
