/**
 * A member whose absence the layout could bear, but which has the last copy of what is bad on another: what it does not
 * take is a bad place, and not its end; and it is not failed by hand.
 */
import { describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, formArray, type Source } from '../../lib/array/form.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { bytesOf, expectSame, filled, quiet } from './snapshot-folders.ts';

const CHUNK = 64 * KIB;
const BAD = 12 * KIB;
/** With redundancy for one in a row: in slot 0 something is bad, and of whom it is the row's other. */
const shapes = [
  { level: 1, disks: 2, other: 1 },
  { level: 5, disks: 3, other: 1 },
  { level: 5, disks: 3, other: 2 },
  { level: 10, disks: 4, other: 1 },
] as const;

const still = { ...quiet, driver: 'event-loop', name: 'demo' } as const;
/** Of a member's data: what `other` refuses. */
const REFUSED = 1 * MIB;

interface Disk extends Source {
  readonly device: FaultDevice;
}

function disksOf(memories: readonly SharedArrayBuffer[]): Disk[] {
  return memories.map((memory, index) => {
    const device = new FaultDevice(new MemoryDevice({ sizeBytes: memory.byteLength, memory }));
    return { device, name: `m${index}`, identity: `m${index}` };
  });
}

const slotOf = (array: RaidArray, name: string): string =>
  array.members.find((member) => member.name === name)?.state.state ?? 'gone';

describe.each(shapes)('raid$level of $disks, $other refuses', ({ level, disks: count, other }) => {
  /** Slot 0 has a bad place at its start, which holds something else. */
  async function formed() {
    const memories = Array.from({ length: count }, () => new SharedArrayBuffer(4 * MIB));
    const kind = { level, ...(level === 1 ? {} : { chunk: CHUNK }), assumeClean: true };
    const first = await formArray(disksOf(memories), { ...still, ...kind });
    const content = new Uint8Array(first.limits.sizeBytes).map((_, index) => 1 + ((index >> 12) % 250));
    await first.write(0, content);
    await first.metadata?.setBadBlocks(0, [{ member: 0, offsetBytes: 0, lengthBytes: BAD }]);
    const superblock = first.metadata!.array.members[0]!.superblock;
    const start = superblock.dataOffsetSectors * 512;
    const listAt = (superblock.superSector + superblock.bblogOffsetSectors) * 512;
    await first.close();
    new Uint8Array(memories[0]!).fill(0xee, start, start + BAD);
    const disks = disksOf(memories);
    const { array } = await assembleDevices(disks, still);
    const refuse = (
      from: number,
      lengthBytes: number,
      code: 'WRITE_FAILED' | 'MEMBER_GONE' = 'WRITE_FAILED',
    ) =>
      disks[other]!.device.add({
        on: 'write',
        range: { offsetBytes: from, lengthBytes },
        fault: { kind: 'error', code },
      });
    return { memories, array, content, disks, start, listAt, refuse };
  }

  /** All of the array that lies in these bytes of each member. */
  function rowsAt(array: RaidArray, offsetBytes: number, lengthBytes: number): [number, number] {
    const perMember = array.limits.sizeBytes / (array.layout.memberBytes[0] ?? 1);
    return [offsetBytes * perMember, lengthBytes * perMember];
  }

  test('what it does not take is a bad place, in the next life too, and nothing is lost', async () => {
    const { memories, array, content, start, refuse } = await formed();
    refuse(start + REFUSED, CHUNK);
    const [at, length] = rowsAt(array, REFUSED, CHUNK);
    const fresh = filled(length, 77);
    await array.write(at, fresh);
    content.set(fresh, at);
    expect(slotOf(array, `m${other}`)).toBe('in_sync');
    expectSame(await bytesOf(array), content);
    const left = memories.map((memory) => memory.slice(0));
    const { array: next } = await assembleDevices(disksOf(left), still);
    expect(new Set(next.health.erased.map(({ member }) => member))).toEqual(new Set([0, other]));
    expectSame(await bytesOf(next), content);
    await next.write(0, content);
    expect(next.health.erased).toEqual([]);
    await next.close();
    await array.close();
  });

  test('where that cannot be recorded, or it is gone, it is out, and what was written is there', async () => {
    for (const how of ['no list', 'gone'] as const) {
      const { array, start, listAt, refuse } = await formed();
      if (how === 'no list') refuse(listAt, 4 * KIB);
      refuse(start + REFUSED, CHUNK, how === 'gone' ? 'MEMBER_GONE' : 'WRITE_FAILED');
      const [at, length] = rowsAt(array, REFUSED, CHUNK);
      const fresh = filled(length, 77);
      await array.write(at, fresh);
      expect(slotOf(array, `m${other}`)).toBe('faulty');
      const read = new Uint8Array(length);
      await array.read(at, read);
      expectSame(read, fresh);
      await expect(array.read(0, new Uint8Array(CHUNK))).rejects.toMatchObject({ code: 'REDUNDANCY_LOST' });
      await array.close();
    }
  });

  test('it is not failed by hand before the bad place is written', async () => {
    const { array, content } = await formed();
    await expect(array.fail(`m${other}`)).rejects.toMatchObject({
      code: 'LAST_COPY',
      message: expect.stringMatching(/of \d+ bytes at 0/),
    });
    expectSame(await bytesOf(array), content);
    await array.write(0, content.subarray(0, rowsAt(array, 0, CHUNK)[1]));
    await array.fail(`m${other}`);
    expectSame(await bytesOf(array), content);
    await array.close();
  });
});
