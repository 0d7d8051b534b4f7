/** The rings and the commit record: against queues, across the wrap of their indices, and with two real threads. */
import { resolve } from 'node:path';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from 'vitest';
import { CONTROL_BYTES, controlAddress, createMemory, type MemoryMap } from '../../lib/engine/memory.ts';
import {
  COMMIT_SLOTS,
  type CommitEntry,
  type Job,
  jobOps,
  LaneControl,
  RING_SLOTS,
  TABLE_BYTES,
  tableAddress,
} from '../../lib/engine/ring.ts';
import { workAreaBytes } from '../../lib/parity/kernels.ts';
import { MIB } from '../../lib/units.ts';
import { type Random, runSeed, withSeed } from '../conformance/seed.ts';

const map = createMemory(2, MIB);

/** Both rings empty, with all four indices at `index`: they run freely, so any value is one that comes about. */
function controlAt(index: number): LaneControl {
  const words = new Int32Array(map.memory.buffer, controlAddress(1), CONTROL_BYTES / 4);
  words.fill(0);
  for (const at of [0, 16, 32, 48]) words[at] = index | 0;
  return new LaneControl(map, 1);
}

function someJob(random: Random): Job {
  return {
    op: jobOps[random(jobOps.length)] ?? 'read',
    offsetBytes: random(2) === 0 ? random(2 ** 31) : 2 ** 52 - 1 - random(2 ** 31),
    lengthBytes: 1 + random(2 ** 31) * (random(2) === 0 ? 1 : 2 ** 20),
    address: random(2) === 0 ? random(2 ** 31) : 2 ** 32 - 1 - random(2 ** 20),
    member: random(2000),
  };
}

const starts = [0, 2 ** 31 - 700, 2 ** 31 - 1, 2 ** 32 - 700, 2 ** 32 - 1];

describe('the rings', () => {
  for (const start of starts) {
    test(`are queues, with indices from ${start} on`, () =>
      withSeed(runSeed, (random) => {
        const control = controlAt(start);
        const submitted: { id: number; job: Job }[] = [];
        const finished: { id: number; status: number }[] = [];
        let nextId = 0;
        for (let step = 0; step < 4000; step += 1) {
          const busy = submitted.length + finished.length;
          const dice = random(10);
          if (dice < 5) {
            // As in use: an id is free again only when its completion was seen.
            const job = someJob(random);
            if (busy >= RING_SLOTS) continue;
            expect(control.trySubmit(nextId, job)).toBe(true);
            submitted.push({ id: nextId, job });
            nextId += 1;
          } else if (dice < 9) {
            expect(control.hasSubmissions()).toBe(submitted.length > 0);
            const next = submitted[0];
            if (next === undefined) continue;
            expect(control.peek()).toEqual(next);
            const status = random(2);
            control.finish(next.id, status);
            submitted.shift();
            finished.push({ id: next.id, status });
          } else {
            expect(control.hasCompletions()).toBe(finished.length > 0);
            const seen: { id: number; status: number }[] = [];
            expect(control.drain((id, status) => seen.push({ id, status }))).toBe(finished.length);
            expect(seen).toEqual(finished);
            finished.length = 0;
          }
        }
      }));

    test(`take exactly ${RING_SLOTS} jobs, with indices from ${start} on`, () => {
      const control = controlAt(start);
      const job: Job = { op: 'read', offsetBytes: 0, lengthBytes: 1, address: 0, member: 0 };
      for (let id = 0; id < RING_SLOTS; id += 1) expect(control.trySubmit(id, job)).toBe(true);
      expect(control.trySubmit(999, job)).toBe(false);
      expect(control.peek().id).toBe(0);
      for (let id = 0; id < RING_SLOTS; id += 1) {
        expect(control.peek().id).toBe(id);
        control.finish(id, 0);
      }
      expect(control.hasSubmissions()).toBe(false);
      let next = 0;
      control.drain((id) => {
        expect(id).toBe(next);
        next += 1;
      });
      expect(next).toBe(RING_SLOTS);
    });
  }

  test('a doorbell is taken exactly once for each time it was asked for', () => {
    const control = controlAt(0);
    expect(control.takeDoorbell()).toBe(false);
    control.arm();
    expect(control.takeDoorbell()).toBe(true);
    expect(control.takeDoorbell()).toBe(false);
    control.arm();
    control.disarm();
    expect(control.takeDoorbell()).toBe(false);
  });

  test('a lane that finds work does not fall asleep, whether it was told before or after it announced sleep', () => {
    const control = controlAt(0);
    control.trySubmit(1, { op: 'read', offsetBytes: 0, lengthBytes: 1, address: 0, member: 0 });
    control.waitForSubmission(0);
    control.waitForSubmission(10);
    expect(control.peek().id).toBe(1);
  });

  test('the reset of a lane leaves nothing of its predecessor', () => {
    const control = controlAt(7);
    control.trySubmit(1, { op: 'read', offsetBytes: 0, lengthBytes: 1, address: 0, member: 0 });
    control.beginCommit([{ member: 0, offsetBytes: 0, lengthBytes: 1, address: 0 }]);
    control.arm();
    control.reset();
    expect(control.hasSubmissions()).toBe(false);
    expect(control.hasCompletions()).toBe(false);
    expect(control.unfinishedCommit()).toEqual([]);
    expect(control.takeDoorbell()).toBe(false);
  });

  test('two threads pass four thousand jobs with sleeping, waking and full rings, none lost or twice or out of order', async () => {
    const count = 4_000;
    const shared = createMemory(1, MIB);
    const control = new LaneControl(shared, 0);
    const ring = resolve(import.meta.dirname, '../../dist/lib/engine/ring.js');
    const worker = new Worker(
      `const { workerData } = require('node:worker_threads');
       import(workerData.ring).then(({ LaneControl }) => {
         const control = new LaneControl(workerData.map, 0);
         let state = 12345;
         for (let expected = 0; expected < workerData.count; expected += 1) {
           control.waitForSubmission(expected % 3 === 0 ? 0 : 50);
           const { id, job } = control.peek();
           const right = job.offsetBytes === expected * 4294967 && job.lengthBytes === expected + 1;
           // Now and then slow, so that the ring fills up.
           state = (Math.imul(state, 1103515245) + 12345) >>> 0;
           if (state % 64 === 0) for (let spin = 0; spin < 20000; spin += 1) Atomics.load(new Int32Array(4), 0);
           control.finish(id, right ? expected % 2 : 2);
         }
       });`,
      { eval: true, workerData: { map: shared satisfies MemoryMap, ring, count } },
    );
    const failed = new Promise<never>((_, reject) => worker.once('error', reject));
    failed.catch(() => undefined);
    const free = Array.from({ length: RING_SLOTS }, (_, id) => id);
    const order: number[] = [];
    let submitted = 0;
    let finished = 0;
    let full = 0;
    while (finished < count) {
      // At first more than there is room for, before the worker can have begun. Then bursts of different sizes, and a turn of
      // the loop in which it may catch up and fall asleep.
      const most = submitted === 0 ? RING_SLOTS + 1 : 1 + (submitted % 37);
      for (let burst = most; burst > 0 && submitted < count; burst -= 1) {
        const id = free.pop();
        if (id === undefined) {
          full += 1;
          break;
        }
        const job: Job = {
          op: 'write',
          offsetBytes: submitted * 4294967,
          lengthBytes: submitted + 1,
          address: 0,
          member: 0,
        };
        // A job is heard of as done just before its place is free.
        if (!control.trySubmit(id, job)) {
          free.push(id);
          break;
        }
        order.push(id);
        submitted += 1;
      }
      control.wake();
      control.drain((id, status) => {
        if (id !== order[finished] || status !== finished % 2) throw new Error(`job ${finished} went wrong`);
        free.push(id);
        finished += 1;
      });
      if (submitted % 11 === 0) {
        await Promise.race([new Promise((next) => setImmediate(next)), failed]);
      }
    }
    expect(control.hasSubmissions()).toBe(false);
    expect(full).toBeGreaterThan(0);
    await worker.terminate();
  });
});

describe('the commit record', () => {
  test('gives back what was put in: places beyond 2^32 on a member, addresses beyond 2^31, members by the thousand', () =>
    withSeed(runSeed, (random) => {
      const control = controlAt(0);
      for (let round = 0; round < 50; round += 1) {
        const entries = Array.from({ length: random(40) }, (): CommitEntry => {
          const job = someJob(random);
          return {
            member: job.member,
            offsetBytes: job.offsetBytes,
            lengthBytes: 1 + random(2 ** 31),
            address: job.address,
          };
        });
        control.beginCommit(entries);
        expect(control.unfinishedCommit()).toEqual(entries);
        control.endCommit();
        expect(control.unfinishedCommit()).toEqual([]);
      }
    }));

  test('holds COMMIT_SLOTS entries without touching anything else', () => {
    const control = controlAt(3);
    const words = new Int32Array(map.memory.buffer, controlAddress(1), CONTROL_BYTES / 4);
    const job: Job = { op: 'write', offsetBytes: 1, lengthBytes: 2, address: 3, member: 4 };
    for (let id = 0; id < RING_SLOTS; id += 1) control.trySubmit(id, job);
    const table = words.subarray((tableAddress(1) - controlAddress(1)) / 4);
    table.fill(0x5a5a5a5a);
    const entry = {
      member: -1 >>> 1,
      offsetBytes: 2 ** 53 - 1,
      lengthBytes: 2 ** 32 - 1,
      address: 2 ** 32 - 1,
    };
    control.beginCommit(Array.from({ length: COMMIT_SLOTS }, () => entry));
    expect(table.every((word) => word === 0x5a5a5a5a)).toBe(true);
    expect(control.unfinishedCommit()).toHaveLength(COMMIT_SLOTS);
    for (let id = 0; id < RING_SLOTS; id += 1) {
      expect(control.peek()).toEqual({ id, job });
      control.finish(id, 0);
    }
    expect(() => control.beginCommit(Array.from({ length: COMMIT_SLOTS + 1 }, () => entry))).toThrow();
    expect(TABLE_BYTES).toBeGreaterThanOrEqual(workAreaBytes);
    expect(tableAddress(1) % 64).toBe(0);
  });
});
