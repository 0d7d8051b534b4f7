/**
 * A disk that is being copied from, and cannot be missed, refuses a write that the disk being filled takes (I3): wherever the
 * copying has come to, what is read there from then on stays what it is, when that disk cannot be read for a while, when
 * the other one is filled, and when it is all that there is.
 */
import { describe, expect, test } from 'vitest';
import { RaidArray } from '../../lib/array/array.ts';
import { DelayDevice } from '../../lib/device/delay.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { Operation } from '../../lib/device/operation.ts';
import { type Host, realHost } from '../../lib/host.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import { KIB } from '../../lib/units.ts';
import { until } from '../engine/members.ts';

const MEMBER = 512 * KIB;
const WINDOW = 64 * KIB;
const PAGE = 4 * KIB;

interface Copying {
  readonly array: RaidArray;
  readonly source: FaultDevice;
  readonly target: DelayDevice;
  /** Goes on to the end. */
  readonly finish: () => Promise<void>;
}

/** The first window is accounted for, the second is being copied ahead, and all that follows waits until it is told to go on. */
async function copying(geometry: Geometry, isReplacement: boolean): Promise<Copying> {
  const disks = Array.from({ length: 3 }, () => new FaultDevice(new MemoryDevice({ sizeBytes: MEMBER })));
  const [source, other, spare] = disks as [FaultDevice, FaultDevice, FaultDevice];
  const target = new DelayDevice(spare, { host: realHost });
  let wake: (() => void) | null = null;
  const host: Host = {
    ...realHost,
    sleep: () =>
      new Promise((resolve) => {
        wake = resolve;
      }),
  };
  const array = new RaidArray({
    ...{ geometry, members: [source, other], spares: [target], host },
    ...{ driver: 'event-loop', windowBytes: WINDOW, autoSync: false },
  });
  await array.write(0, new Uint8Array(array.limits.sizeBytes).fill(1));
  if (isReplacement) await array.replace(0);
  if (geometry.level === 'raid1') await array.fail(1);
  const slowly = array.rebuild({ limitBytesPerSecond: 1 });
  const filled = (async () => {
    for await (const _ of slowly);
  })();
  await until(() => wake !== null);
  return {
    array,
    source,
    target,
    finish: async () => {
      array
        .rebuild({ limitBytesPerSecond: Number.POSITIVE_INFINITY })
        .next()
        .catch(() => undefined);
      wake?.();
      await filled;
    },
  };
}

const refusal = { on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } } as const;
const unreadable = { on: 'read', fault: { kind: 'error', code: 'MEDIUM_ERROR' } } as const;

async function mismatches(array: RaidArray): Promise<number> {
  let count = 0;
  for await (const { mismatchCount } of array.scrub()) count = mismatchCount;
  return count;
}

const shapes: readonly { name: string; geometry: Geometry; isReplacement: boolean }[] = [
  {
    name: 'a mirror is rebuilt',
    geometry: { level: 'raid1', memberCount: 2, memberBytes: MEMBER },
    isReplacement: false,
  },
  {
    name: 'the last disk of a mirror is replaced',
    geometry: { level: 'raid1', memberCount: 2, memberBytes: MEMBER },
    isReplacement: true,
  },
  {
    name: 'a disk of raid0 is replaced',
    geometry: {
      ...{ level: 'raid0', layout: 'original' },
      ...{ memberBytes: [MEMBER, MEMBER], chunkBytes: MEMBER },
    },
    isReplacement: true,
  },
];

/** Of the array, of a mirror that is of its disks too; `raid0` has all of this in its first chunk. */
const places: readonly { where: string; from: number; pages: number }[] = [
  { where: 'where it has been', from: 8 * KIB, pages: 1 },
  { where: 'across where it has come to', from: WINDOW - 2 * PAGE, pages: 5 },
  { where: 'in the window that it copies ahead', from: WINDOW + PAGE, pages: 1 },
  { where: 'across the end of that window', from: 2 * WINDOW - PAGE, pages: 3 },
  { where: 'where it will be', from: 5 * WINDOW, pages: 2 },
  { where: 'over all that', from: PAGE, pages: 50 },
];

for (const { name, geometry, isReplacement } of shapes) {
  describe(`${name}, and the disk copied from refuses a write`, () => {
    async function reader(array: RaidArray, from: number, pages: number) {
      const seen = new Map<number, number>();
      return async (mayFail: boolean): Promise<void> => {
        for (let page = 0; page < pages; page += 1) {
          const bytes = new Uint8Array(PAGE);
          const failure: unknown = await array.read(from + page * PAGE, bytes).catch((why: unknown) => why);
          if (failure !== undefined) {
            expect(mayFail, `page ${page} can be read`).toBe(true);
            expect(failure).toMatchObject({ code: 'REDUNDANCY_LOST' });
            continue;
          }
          const [value = 0] = bytes;
          expect(new Set(bytes).size, 'a page is old or new').toBe(1);
          expect(value, `page ${page}`).toBe(seen.get(page) ?? value);
          seen.set(page, value);
        }
      };
    }

    test.each(places)('$where', async ({ from, pages }) => {
      const { array, source, finish } = await copying(geometry, isReplacement);
      const refusing = source.add(refusal);
      await expect(array.write(from, new Uint8Array(pages * PAGE).fill(2))).rejects.toMatchObject({
        code: 'REDUNDANCY_LOST',
      });
      source.remove(refusing);
      const look = await reader(array, from, pages);
      await look(false);
      const failing = source.add(unreadable);
      await look(true);
      source.remove(failing);
      await look(false);
      await finish();
      await look(false);
      expect(await mismatches(array)).toBe(0);
      if (isReplacement) expect(array.members[0]?.state.state).toBe('faulty');
      else await array.fail(0);
      await look(false);
      await array.close();
    });

    test('when all is copied, and only the last flush has still to come', async () => {
      const { array, source, target, finish } = await copying(geometry, isReplacement);
      const look = await reader(array, 8 * KIB, 1);
      const flush = target.hold({ only: ({ op }) => op === 'flush' });
      const finished = finish();
      await until(() => flush.waiting.length > 0);
      const refusing = source.add(refusal);
      await expect(array.write(8 * KIB, new Uint8Array(PAGE).fill(2))).rejects.toMatchObject({
        code: 'REDUNDANCY_LOST',
      });
      source.remove(refusing);
      await look(false);
      flush.release();
      await finished;
      if (isReplacement) expect(array.members[0]?.state.state).toBe('faulty');
      else await array.fail(0);
      await look(false);
      await array.close();
    });

    test('and again elsewhere while that is being copied once more: that is copied too', async () => {
      const { array, source, target, finish } = await copying(geometry, isReplacement);
      const places = [8 * KIB, 3 * WINDOW] as const;
      const looks = await Promise.all(places.map((from) => reader(array, from, 1)));
      const written = (from: number): Promise<void> => array.write(from, new Uint8Array(PAGE).fill(2));
      const flush = target.hold({ only: ({ op }) => op === 'flush' });
      const finished = finish();
      await until(() => flush.waiting.length > 0);
      let refusing = source.add(refusal);
      await expect(written(places[0])).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
      source.remove(refusing);
      await looks[0]?.(false);
      const isFirst = (operation: Operation): boolean =>
        operation.op === 'write' && operation.offsetBytes === places[0];
      const again = target.hold({ only: isFirst });
      flush.release();
      await until(() => again.waiting.length > 0);
      refusing = source.add(refusal);
      // It may even count: with a bad place on the one that is filled, what the other refuses makes one there.
      const second = written(places[1]).catch(() => undefined);
      await until(() => source.rules().some(({ id, hits }) => id === refusing && hits > 0));
      source.remove(refusing);
      again.release();
      await second;
      await looks[1]?.(false);
      await finished;
      if (isReplacement) expect(array.members[0]?.state.state).toBe('faulty');
      else await array.fail(0);
      for (const look of looks) await look(false);
      await array.close();
    });

    test('and cannot be read in one page of it: that page is lost with it, and no other', async () => {
      const { array, source, target, finish } = await copying(geometry, isReplacement);
      const flush = target.hold({ only: ({ op }) => op === 'flush' });
      const finished = finish();
      await until(() => flush.waiting.length > 0);
      const refusing = source.add(refusal);
      const [from, pages, lost] = [WINDOW, 16, 8];
      await array.write(from, new Uint8Array(pages * PAGE).fill(2)).catch(() => undefined);
      source.remove(refusing);
      source.add({ ...unreadable, range: { offsetBytes: from + lost * PAGE, lengthBytes: PAGE } });
      flush.release();
      await finished;
      const { erased } = array.health;
      expect(erased.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0)).toBe(PAGE);
      for (let page = 0; page < pages; page += 1) {
        const read = array.read(from + page * PAGE, new Uint8Array(PAGE));
        if (page === lost) await expect(read).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
        else await read;
      }
      await array.close();
    });

    test('and refuses it again before every last flush: it ends all the same', async () => {
      const { array, source, target, finish } = await copying(geometry, isReplacement);
      let flush = target.hold({ only: ({ op }) => op === 'flush' });
      let isOver = false;
      const finished = finish().then(() => {
        isOver = true;
      });
      source.add({ ...refusal, range: { offsetBytes: 0, lengthBytes: PAGE } });
      let rounds = 0;
      for (; rounds < 10; rounds += 1) {
        await until(() => isOver || flush.waiting.length > 0);
        if (isOver) break;
        await array.write(0, new Uint8Array(PAGE).fill(2)).catch(() => undefined);
        const last = flush;
        flush = target.hold({ only: ({ op }) => op === 'flush' });
        last.release();
      }
      expect(rounds).toBeGreaterThan(1);
      expect(rounds).toBeLessThan(10);
      flush.release();
      await finished;
      await array.close();
    });
  });
}
