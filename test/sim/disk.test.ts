import { expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import { Clock, Process } from '../../lib/sim/clock.ts';
import { Disk, type DiskDevice } from '../../lib/sim/disk.ts';
import { KIB } from '../../lib/units.ts';
import { conformance } from '../conformance/suite.ts';

const SECTOR = 512;

conformance('a simulated disk', async () => {
  const clock = new Clock(1, { runsByItself: true });
  const disk = new Disk({ clock, name: 'disk', sizeBytes: 256 * KIB });
  return { device: disk.open(new Process(clock)) };
});

interface World {
  readonly clock: Clock;
  readonly disk: Disk;
  readonly device: DiskDevice;
  readonly process: Process;
}

function world(seed = 1): World {
  const clock = new Clock(seed);
  const process = new Process(clock);
  const disk = new Disk({ clock, name: 'disk', sizeBytes: 64 * KIB });
  return { clock, disk, process, device: disk.open(process) };
}

function sectors(count: number, byte: number): Uint8Array {
  return new Uint8Array(count * SECTOR).fill(byte);
}

/** The first byte of each of the first sectors. */
function bytesOf(disk: Disk, count: number): number[] {
  return Array.from({ length: count }, (_, sector) => disk.peek(sector * SECTOR, 1)[0] as number);
}

test('a power cut leaves what was flushed, and of each sector one of the writes since, or none', async () => {
  const seen = new Set<string>();
  for (let seed = 0; seed < 200; seed += 1) {
    const { clock, disk, device } = world();
    const random = seededRandom(seed);
    await clock.drive(device.write(0, sectors(2, 1)));
    await clock.drive(device.flush());
    await clock.drive(device.write(0, sectors(2, 2)));
    await clock.drive(device.write(SECTOR, sectors(1, 3)));
    expect(bytesOf(disk, 2)).toEqual([2, 3]);
    disk.powerCut(() => random(2) === 0);
    seen.add(bytesOf(disk, 2).join());
  }
  expect([...seen].sort()).toEqual(['1,1', '1,2', '1,3', '2,1', '2,2', '2,3']);
});

test('what was written with fua is never lost, and nothing older comes back over it', async () => {
  for (let seed = 0; seed < 50; seed += 1) {
    const { clock, disk, device } = world();
    const random = seededRandom(seed);
    await clock.drive(device.write(0, sectors(1, 1)));
    await clock.drive(device.write(0, sectors(1, 2), { fua: true }));
    disk.powerCut(() => random(2) === 0);
    expect(bytesOf(disk, 1)).toEqual([2]);
  }
});

test('a write under way at a power cut is torn at sectors', async () => {
  const { clock, disk, device, process } = world();
  void device.write(0, sectors(4, 7));
  process.kill();
  disk.powerCut((_, sector) => sector === 1 || sector === 3);
  expect(bytesOf(disk, 4)).toEqual([0, 7, 0, 7]);
  await clock.pass(100);
  expect(bytesOf(disk, 4)).toEqual([0, 7, 0, 7]);
});

test('a fault of a span is met from its beginning to its end, and no oftener than it may be', async () => {
  const { clock, disk, device } = world();
  const hits: number[] = [];
  const refused = { on: 'write', kind: 'error', code: 'WRITE_FAILED', applied: 'none' } as const;
  disk.arm(refused, null, () => hits.push(clock.nowMs), { fromMs: 10, untilMs: 20, times: 3 });
  const answers: boolean[] = [];
  for (const untilMs of [5, 12, 14, 16, 18, 25]) {
    await clock.pass(untilMs - clock.nowMs);
    answers.push(
      await clock.drive(
        device.write(0, sectors(1, 1)).then(
          () => true,
          () => false,
        ),
      ),
    );
  }
  expect(answers).toEqual([true, false, false, false, true, true]);
  expect(hits).toHaveLength(3);
  disk.arm(refused, null, () => undefined, { fromMs: 0, untilMs: clock.nowMs, times: 3 });
  await clock.drive(device.write(0, sectors(1, 1)));
});

test('a process that is killed takes its cache not with it', async () => {
  const { clock, disk, device, process } = world();
  await clock.drive(device.write(0, sectors(2, 5)));
  void device.write(0, sectors(2, 6));
  process.kill();
  disk.processKilled((_, sector) => sector === 0);
  expect(bytesOf(disk, 2)).toEqual([6, 5]);
  disk.powerCut(() => false);
  expect(bytesOf(disk, 2)).toEqual([0, 0]);
});

test('a flush that failed stays failed for who has the disk open, and lies to who opens it next', async () => {
  const { clock, disk, device, process } = world();
  await clock.drive(device.write(0, sectors(16, 4)));
  disk.arm({ on: 'flush', kind: 'error', code: 'FLUSH_FAILED' });
  await expect(clock.drive(device.flush())).rejects.toMatchObject({ code: 'FLUSH_FAILED', injected: true });
  await expect(clock.drive(device.flush())).rejects.toMatchObject({ code: 'FLUSH_FAILED' });
  await clock.drive(disk.open(process).flush());
  expect(bytesOf(disk, 16)).toEqual(Array.from({ length: 16 }, () => 4));
  disk.powerCut(() => true);
  const left = bytesOf(disk, 16);
  expect(left).toContain(0);
  expect(left).toContain(4);
});

test('bad sectors are read again once they were written', async () => {
  const { clock, disk, device } = world();
  disk.addLatent(2, 2);
  const target = new Uint8Array(8 * SECTOR);
  await expect(clock.drive(device.read(0, target))).rejects.toMatchObject({ code: 'MEDIUM_ERROR' });
  await clock.drive(device.write(2 * SECTOR, sectors(2, 1)));
  await clock.drive(device.read(0, target));
});

test('a fault meets one request, in its zone', async () => {
  const { clock, disk, device } = world();
  let hits = 0;
  const zone = { offsetBytes: 4096, lengthBytes: 4096 };
  disk.arm({ on: 'write', kind: 'lost' }, zone, () => {
    hits += 1;
  });
  await clock.drive(device.write(0, sectors(1, 1)));
  expect(hits).toBe(0);
  await clock.drive(device.write(4096, sectors(1, 1)));
  await clock.drive(device.write(4096 + SECTOR, sectors(1, 1)));
  expect(hits).toBe(1);
  expect(bytesOf(disk, 10)).toEqual([1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
});

test('a write that is late lands after its failure was told, and before its device is closed', async () => {
  const { clock, disk, device } = world();
  disk.arm({ on: 'write', kind: 'error', code: 'MEMBER_GONE', applied: 'late' });
  await expect(clock.drive(device.write(0, sectors(1, 9)))).rejects.toMatchObject({ code: 'MEMBER_GONE' });
  expect(bytesOf(disk, 1)).toEqual([0]);
  await clock.drive(device.close());
  expect(bytesOf(disk, 1)).toEqual([9]);
});

test('what lands late, or is in the cache of a clone, stays what it was while the disk is flushed and written again', async () => {
  const { clock, disk, device } = world();
  await clock.drive(device.write(SECTOR, sectors(1, 7)));
  const copy = disk.clone();
  await clock.drive(device.flush());
  disk.arm({ on: 'write', kind: 'error', code: 'MEMBER_GONE', applied: 'late' });
  await expect(clock.drive(device.write(0, sectors(1, 9)))).rejects.toMatchObject({ code: 'MEMBER_GONE' });
  await clock.drive(device.flush());
  disk.poke(0, sectors(1, 1));
  await clock.drive(device.write(2 * SECTOR, sectors(2, 5)));
  await clock.drive(device.close());
  expect(bytesOf(disk, 4)).toEqual([9, 7, 5, 5]);
  copy.powerCut(() => true);
  expect(bytesOf(copy, 4)).toEqual([0, 7, 0, 0]);
});

test('clones share content until one of them is written', async () => {
  const { clock, disk, device } = world();
  await clock.drive(device.write(0, sectors(8, 1)));
  const copy = disk.clone();
  await clock.drive(device.write(0, sectors(1, 2)));
  copy.poke(SECTOR, sectors(1, 3));
  expect(bytesOf(disk, 3)).toEqual([2, 1, 1]);
  expect(bytesOf(copy, 3)).toEqual([1, 3, 1]);
  copy.powerCut(() => false);
  expect(bytesOf(copy, 3)).toEqual([0, 3, 0]);
  expect(bytesOf(disk, 3)).toEqual([2, 1, 1]);
});
