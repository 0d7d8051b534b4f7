/** What logs make of parity where it cannot be made: nothing, and nobody computes from it. And what becomes of entries that lie. */
import { expect, test } from 'vitest';
import { assembleDevices, formArray, type Source } from '../../lib/array/form.ts';
import { parityPatches } from '../../lib/array/replay.ts';
import { superblockOn } from '../../lib/array/superblocks.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import { encodePplHeader, type PplEntry, pplSignatureOf, RESYNC_DUE } from '../../lib/md/ppl.ts';
import { pplAreaOf } from '../../lib/md/superblock1.ts';
import { replayOf } from '../../lib/plan/replay.ts';
import { MIB } from '../../lib/units.ts';
import { expectSame, quiet } from './snapshot-folders.ts';

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
      const { patches, unmade } = await parityPatches(layout, [cells], sources, [place], true);
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

/** Of a raid5 of three, dirty, with these entries in the newest header of each log. */
async function crashed(entriesOf: (slot: number) => readonly PplEntry[]) {
  const memories = [0, 1, 2].map(() => new SharedArrayBuffer(4 * MIB));
  const sources = (of: readonly SharedArrayBuffer[]): Source[] =>
    of.map((memory, slot) => {
      const device = new MemoryDevice({ sizeBytes: memory.byteLength, memory, name: `m${slot}` });
      return { device, name: `m${slot}`, identity: `m${slot}` };
    });
  const shape = { level: 5, chunk: CHUNK, consistencyPolicy: 'ppl', assumeClean: true } as const;
  const array = await formArray(sources(memories), { ...quiet, ...shape, name: 'demo' });
  const content = new Uint8Array(12 * CHUNK).map((_, index) => 1 + ((index >> 9) % 250));
  await array.write(0, content);
  await array.flush();
  const left = memories.map((memory) => memory.slice(0));
  await array.close();
  for (const [slot, { device }] of sources(left).entries()) {
    const superblock = await superblockOn(device);
    const area = superblock === null ? null : pplAreaOf(superblock);
    if (superblock === null || area === null) throw new Error('an array with logs has them');
    const signature = pplSignatureOf(superblock.setUuid);
    const header = encodePplHeader({ signature, generation: 1000, entries: entriesOf(slot) });
    await device.write((superblock.superSector + area.offsetSectors) * SECTOR, header);
  }
  return { sources: sources(left), content };
}

test.each([0, 1, 2, 3, 4, 5])(
  'an entry about row %i in the log of a member that has not its parity costs nothing where a resync follows; else the logs are not believed',
  async (row) => {
    const dataBytes = 2 * CHUNK;
    const forged = (slot: number): PplEntry => ({
      dataSector: (row * dataBytes) / SECTOR,
      parityBytes: 0,
      dataBytes,
      parityMember: slot,
      checksum: 0,
    });
    const { sources, content } = await crashed((slot) => [RESYNC_DUE, forged(slot)]);
    const { array } = await assembleDevices(sources, { ...quiet, name: 'demo' });
    expect(array.state).toBe('resyncing');
    for await (const _ of array.rebuild());
    let mismatches = 0;
    for await (const { mismatchCount } of array.scrub()) mismatches = mismatchCount;
    expect(mismatches).toBe(0);
    const read = new Uint8Array(content.byteLength);
    await array.read(0, read);
    expectSame(read, content);
    await array.close();

    // Nor where somebody is missing and it is forced, which takes all parity as it is.
    const degraded = await crashed((slot) => [RESYNC_DUE, forged(slot)]);
    const two = degraded.sources.slice(0, 2);
    const started = await assembleDevices(two, { ...quiet, name: 'demo', run: true, force: true });
    expect(started.array.degraded).toBe(1);
    await started.array.close();

    const believed = await crashed((slot) => [forged(slot)]);
    await expect(assembleDevices(believed.sources, { ...quiet, name: 'demo' })).rejects.toMatchObject({
      code: 'SUPERBLOCK_BROKEN',
    });
  },
);
