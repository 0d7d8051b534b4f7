/** What logs make of parity where a chunk that was being written cannot be read: nothing, and nobody computes from it. */
import { expect, test } from 'vitest';
import { parityPatches } from '../../lib/array/replay.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import { replayOf } from '../../lib/plan/replay.ts';

const CHUNK = 4096;
const SECTOR = 512;

test('parity over a bad place of what was being written is not made, and bad itself; all else is made', async () => {
  const layout = compileLayout({
    level: 'raid5',
    layout: 'left-symmetric',
    memberCount: 3,
    chunkBytes: CHUNK,
    memberBytes: 4 * CHUNK,
  });
  if (layout.kind !== 'parity') throw new Error('raid5 has parity');
  const { parity, written } = replayOf(layout, { arrayOffsetBytes: 0, chunkCount: 2 });
  const sources = [];
  for (let slot = 0; slot < 3; slot += 1) {
    const data = new MemoryDevice({ sizeBytes: 4 * CHUNK, name: `m${slot}` });
    await data.write(0, new Uint8Array(4 * CHUNK).fill(1 << slot));
    sources.push({ data, trustedBytes: Number.POSITIVE_INFINITY });
  }
  const cells = {
    dataSector: 0,
    chunkCount: 2,
    heightSectors: 8,
    parityMember: parity.member,
    partialParity: null,
  };
  for (let bad = 0; bad < 8; bad += 1) {
    for (const { member, offsetBytes } of written) {
      const place = { member, offsetBytes: offsetBytes + bad * SECTOR + 100, lengthBytes: 10 };
      const { patches, unmade } = await parityPatches(layout, [cells], sources, [place]);
      expect(unmade).toEqual([
        { member: parity.member, offsetBytes: parity.offsetBytes + bad * SECTOR, lengthBytes: SECTOR },
      ]);
      const made = new Set<number>();
      for (const { offsetBytes: at, bytes } of patches.get(parity.member) ?? []) {
        expect(
          bytes.every((byte) => byte === written.reduce((sum, each) => sum ^ (1 << each.member), 0)),
        ).toBe(true);
        for (let done = 0; done < bytes.length; done += SECTOR)
          made.add((at + done - parity.offsetBytes) / SECTOR);
      }
      expect([...made].sort()).toEqual([0, 1, 2, 3, 4, 5, 6, 7].filter((sector) => sector !== bad));
    }
  }
});
