/** Creating an array refuses what cannot be, and what is in use, before it has touched anything. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { createArray } from '../../lib/array/folder.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { MIB } from '../../lib/units.ts';
import { scratchFolder } from '../device/scratch.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

function memories(count: number): MemoryDevice[] {
  return Array.from({ length: count }, (_, at) => new MemoryDevice({ sizeBytes: 4 * MIB, name: `m${at}` }));
}

describe('devices that hold something', () => {
  test('are refused, be it the members of an array that is running', async () => {
    const members = memories(3);
    await using array = await createArray('first', { level: 5, members, autoSync: false });
    await array.write(0, new Uint8Array(4096).fill(7));
    const before = members.map(({ memory }) => Buffer.from(memory.slice(0, 64 * 1024)));
    const again = createArray('second', { level: 1, members: members.slice(1) });
    await expect(again).rejects.toMatchObject({
      code: 'HOLDS_DATA',
      message: expect.stringContaining('m1: '),
    });
    for (const [at, { memory }] of members.entries())
      expect(Buffer.compare(Buffer.from(memory.slice(0, 64 * 1024)), before[at] as Buffer)).toBe(0);
  });

  test('are taken with force', async () => {
    const members = memories(2);
    Buffer.from((members[0] as MemoryDevice).memory).write('LABELONE', 512);
    Buffer.from((members[0] as MemoryDevice).memory).write('LVM2 001', 512 + 24);
    await expect(createArray('x', { level: 1, members })).rejects.toMatchObject({ code: 'HOLDS_DATA' });
    const array = await createArray('x', { level: 1, members, force: true, autoSync: false });
    expect(array.degraded).toBe(0);
    await array.close();
  });
});

describe('counts that are none', () => {
  test.each([
    { disks: Number.NaN },
    { disks: 2.5 },
    { disks: -3 },
    { disks: 3, spares: -1 },
    { disks: 3, spares: 0.5 },
    { disks: 3, spares: Number.POSITIVE_INFINITY },
    { disks: 2 ** 40 },
    { disks: 0, spares: 2 },
  ])('%o is refused as an argument, and nothing is made', async (counts) => {
    const made = createArray(join(folder, 'counts'), { level: 5, diskSize: '4M', ...counts });
    await expect(made).rejects.toMatchObject({ code: expect.stringMatching(/^BAD_(ARGUMENT|GEOMETRY)$/) });
  });

  test('of spares among devices, too', async () => {
    for (const spares of [-1, 0.5, 3, Number.NaN]) {
      const made = createArray('x', { level: 1, members: memories(2), spares });
      await expect(made).rejects.toMatchObject({ code: expect.stringMatching(/^BAD_(ARGUMENT|GEOMETRY)$/) });
    }
  });

  test('a file that is named twice is named in the refusal', async () => {
    const path = join(folder, 'twice.img');
    const made = createArray(join(folder, 'twice'), { level: 1, members: [path, path], diskSize: '4M' });
    await expect(made).rejects.toMatchObject({
      code: 'DUPLICATE_MEMBER',
      message: expect.stringContaining('twice.img'),
    });
  });
});
