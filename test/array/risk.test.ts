/** Forced over the write hole: what is named is what may have changed, and nothing else. */
import { describe, expect, test } from 'vitest';
import { assembleDevices } from '../../lib/array/form.ts';
import { rangesAtRisk } from '../../lib/array/risk.ts';
import { RaidError } from '../../lib/errors.ts';
import { type Raid5Layout, type Raid6Layout, raid5Layouts, raid6Layouts } from '../../lib/layout/geometry.ts';
import type { ParityLayout } from '../../lib/layout/layout.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../lib/units.ts';
import { parityLayout } from '../plan/shapes.ts';
import { CHUNK, CrashDisk, DISK_BYTES, makeArray, stillHost } from './ppl-world.ts';

/** Sector by sector, by the inverse of the layout. */
function byDefinition(layout: ParityLayout, missing: number, from: number, to: number): Set<number> {
  const found = new Set<number>();
  for (let at = from; at < to; at += SECTOR_BYTES) {
    const row = Math.floor(at / layout.chunkBytes);
    const cell = layout.cellAt(missing, row);
    if (cell.kind === 'data')
      found.add((row * layout.dataCount + cell.index) * layout.chunkBytes + (at % layout.chunkBytes));
  }
  return found;
}

test('ranges at risk are the missing member’s data in these rows, joined and in order', () => {
  const shapes = [
    ...(Object.keys(raid5Layouts) as Raid5Layout[]).map((name) => parityLayout('raid5', name, 4, 5)),
    ...(Object.keys(raid6Layouts) as Raid6Layout[]).map((name) => parityLayout('raid6', name, 5, 5)),
  ];
  for (const layout of shapes) {
    for (let missing = 0; missing < layout.memberCount; missing += 1) {
      const rows = [
        { fromBytes: SECTOR_BYTES, toBytes: 3 * SECTOR_BYTES },
        { fromBytes: layout.chunkBytes * 2, toBytes: layout.chunkBytes * 9 },
      ];
      const ranges = [...rangesAtRisk(layout, (slot) => slot === missing, rows)];
      const wanted = rows.flatMap(({ fromBytes, toBytes }) => [
        ...byDefinition(layout, missing, fromBytes, Math.min(toBytes, layout.rowCount * layout.chunkBytes)),
      ]);
      const named = ranges.flatMap(({ offsetBytes, lengthBytes }) =>
        Array.from(
          { length: lengthBytes / SECTOR_BYTES },
          (_, sector) => offsetBytes + sector * SECTOR_BYTES,
        ),
      );
      expect(named).toEqual(wanted.toSorted((a, b) => a - b));
      for (const [index, { offsetBytes }] of ranges.entries()) {
        const before = ranges[index - 1];
        if (before !== undefined)
          expect(offsetBytes).toBeGreaterThan(before.offsetBytes + before.lengthBytes);
      }
    }
  }
});

describe('dirty and degraded without a policy that covers it', () => {
  const SIZE = 4 * MIB;

  async function cutOff(policy: 'resync' | 'bitmap'): Promise<CrashDisk[]> {
    const disks = [0, 1, 2, 3].map((index) => new CrashDisk(index, SIZE, []));
    const array = await makeArray(disks, {
      consistencyPolicy: policy,
      ...(policy === 'bitmap' ? { bitmapChunk: 4 * KIB } : {}),
    });
    await array.write(9 * CHUNK, new Uint8Array(SECTOR_BYTES));
    return disks.slice(1).map((disk, index) => new CrashDisk(index + 1, SIZE, [], disk.sectors));
  }

  const start = (disks: readonly CrashDisk[], force: boolean) =>
    assembleDevices(
      disks.map((device) => ({ device, name: device.name, identity: device.name })),
      { name: 'cut', run: true, force, host: stillHost(3), heapBytes: MIB, autoSync: false },
    );

  test.each(['resync', 'bitmap'] as const)(
    '%s: refused, and forced with the ranges named',
    async (policy) => {
      const disks = await cutOff(policy);
      await expect(start(disks, false)).rejects.toMatchObject({
        code: 'DIRTY_DEGRADED',
        reaction: 'ask-operator',
      });
      const { array, report } = await start(disks, true);
      const { layout } = array;
      if (layout.kind !== 'parity') throw new Error('it is raid5');
      const named = [...report.atRisk()];
      const all = [
        ...rangesAtRisk(layout, (slot) => slot === 0, [{ fromBytes: 0, toBytes: layout.rowCount * CHUNK }]),
      ];
      if (policy === 'resync') expect(named).toEqual(all);
      else {
        // One bit, of one row: the one that was written, in which disk 0 has one chunk, of data or parity.
        const row = 3;
        const cell = layout.cellAt(0, row);
        expect(named).toEqual(
          cell.kind === 'data'
            ? [{ offsetBytes: (row * layout.dataCount + cell.index) * CHUNK, lengthBytes: CHUNK }]
            : [],
        );
      }
    },
  );

  test('nothing is at risk where logs vouch, or nothing was forced', async () => {
    const disks = [0, 1, 2, 3].map((index) => new CrashDisk(index, DISK_BYTES, []));
    const array = await makeArray(disks);
    await array.write(0, new Uint8Array(SECTOR_BYTES));
    const rest = disks.slice(1).map((disk, index) => new CrashDisk(index + 1, DISK_BYTES, [], disk.sectors));
    const { report } = await start(rest, false);
    expect([...report.atRisk()]).toEqual([]);
    expect(report.forced).toEqual([]);
  });

  test('ppl: for raid5 only, and not with a bitmap', async () => {
    const disks = () => [0, 1, 2, 3].map((index) => new CrashDisk(index, DISK_BYTES, []));
    for (const shape of [
      { level: 6 },
      { level: 1, chunk: undefined },
      { bitmap: 'internal' as const },
      { consistencyPolicy: 'resync' as const, bitmap: 'internal' as const },
      { consistencyPolicy: 'bitmap' as const, bitmap: 'none' as const },
    ]) {
      const error: unknown = await makeArray(disks(), shape).catch((failure: unknown) => failure);
      expect(error).toBeInstanceOf(RaidError);
      expect(error).toMatchObject({ code: 'BAD_ARGUMENT' });
    }
  });
});
