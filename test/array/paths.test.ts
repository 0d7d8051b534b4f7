/** Members with several paths over NBD: what is refused, what a path that fails costs, and who holds what. */
import { writeFile } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import { createArray, openArray, openMember, readManifest } from '../../lib/array/folder.ts';
import { openPaths, pathsOf, urisOf } from '../../lib/array/paths.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { seededRandom } from '../../lib/host.ts';
import { MIB } from '../../lib/units.ts';
import { randomBytes, runSeed } from '../conformance/seed.ts';
import { Doors, disk } from './paths.ts';

const bytes = randomBytes(seededRandom(runSeed), 300_000);

async function holds(array: Awaited<ReturnType<typeof openArray>>): Promise<boolean> {
  const found = new Uint8Array(bytes.byteLength);
  await array.read(0, found);
  return Buffer.compare(found, bytes) === 0;
}

test('servers end one after the other, and the array is whole', async () => {
  await using doors = await Doors.make();
  const disks = [disk(), disk()] as const;
  const members: string[] = [];
  for (const [index, each] of disks.entries())
    members.push(`${await doors.begin(`a${index}`, each)}|${await doors.begin(`b${index}`, each)}`);
  const path = doors.path('array');
  await (await createArray(path, { level: 1, members, autoSync: false })).close();
  expect((await readManifest(path)).members).toEqual(members);
  const array = await openArray(path, { autoSync: false });
  try {
    for (const name of ['a0', 'a1']) {
      const wrote = array.write(0, bytes);
      await doors.end(name);
      await wrote;
      await array.write(MIB, bytes);
      expect([array.degraded, await holds(array)], name).toEqual([0, true]);
    }
    await array.flush();
    // The last path to a disk: it is gone, and the array does without it.
    await doors.end('b1');
    await array.write(0, bytes);
    expect([array.degraded, await holds(array)]).toEqual([1, true]);
  } finally {
    await array.close();
  }
});

test('multipath.conf in the folder of the array says how they are used', async () => {
  await using doors = await Doors.make();
  const one = disk();
  const source = `${await doors.begin('a', one)}|${await doors.begin('b', one)}`;
  const path = doors.path('array');
  const member = await openMember(source, 0);
  await member.close();
  await (await createArray(path, { level: 1, members: [source], force: true, autoSync: false })).close();
  await writeFile(`${path}/multipath.conf`, 'defaults {\n no_path_retry maybe\n}\n');
  await expect(openArray(path)).rejects.toMatchObject({
    message: expect.stringContaining('multipath.conf:2:16'),
  });
});

describe('paths to different data are refused, with where and why', () => {
  test('blank ones, since what is written by one is not read by the other; and what was there stays', async () => {
    await using doors = await Doors.make();
    const [one, other] = [disk(), disk()];
    const source = `${await doors.begin('a', one)}|${await doors.begin('b', other)}`;
    const made = createArray(doors.path('array'), { level: 1, members: [source], force: true });
    await expect(made).rejects.toMatchObject({
      code: 'BAD_ARGUMENT',
      message: expect.stringMatching(/a\.sock and nbd.*b\.sock lead to different data/),
    });
    await expect(openMember(source, 0)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    for (const each of [one, other]) {
      const found = new Uint8Array(8 * MIB);
      await each.read(0, found);
      expect(found.every((byte) => byte === 0)).toBe(true);
    }
  });

  test('members of one array that are not the same member', async () => {
    await using doors = await Doors.make();
    const [one, other] = [disk(), disk()];
    const [a, b] = [await doors.begin('a', one), await doors.begin('b', other)];
    await (await createArray(doors.path('array'), { level: 1, members: [a, b], autoSync: false })).close();
    await expect(openPaths(`${a}|${b}`)).rejects.toMatchObject({
      code: 'BAD_ARGUMENT',
      message: expect.stringMatching(/device .* of array .* and device .* of array/),
    });
  });

  test('disks of different sizes', async () => {
    await using doors = await Doors.make();
    const source = `${await doors.begin('a', disk())}|${await doors.begin('b', disk(4 * MIB))}`;
    await expect(openPaths(source)).rejects.toMatchObject({
      code: 'BAD_ARGUMENT',
      message: expect.stringContaining('8388608 bytes'),
    });
  });
});

test('a path that nobody answers is a slip in who names it, and a failure later', async () => {
  await using doors = await Doors.make();
  const source = `${await doors.begin('a', disk())}|${doors.uri('nobody')}`;
  const made = createArray(doors.path('array'), { level: 1, members: [source], force: true });
  await expect(made).rejects.toMatchObject({
    code: 'BAD_ARGUMENT',
    message: expect.stringMatching(/nobody\.sock does not work/),
  });
  const device = await openPaths(source);
  await device.write(0, new Uint8Array(512));
  await device.close();
  await doors.end('a');
  await expect(openPaths(source)).rejects.toMatchObject({ code: 'MEMBER_GONE' });
});

test('the same path twice, a file among URIs, and a path in two members are refused', async () => {
  await using doors = await Doors.make();
  const one = disk();
  const [a, b] = [await doors.begin('a', one), await doors.begin('b', one)];
  expect(urisOf(`${a}|${b}`)).toEqual([a, b]);
  for (const [source, why] of [
    [`${a}|${a}`, 'named twice'],
    [`${a}|disk.img`, 'is none'],
    [`${a}|`, 'is none'],
  ] as const) {
    expect(() => urisOf(source)).toThrow(why);
  }
  const twice = createArray(doors.path('array'), { level: 1, members: [`${a}|${b}`, b] });
  await expect(twice).rejects.toMatchObject({ code: 'DUPLICATE_MEMBER' });
});

test('whether a disk may be written is told as its servers say it, and not as it was opened', async () => {
  await using doors = await Doors.make();
  const memory = disk().memory;
  for (const readOnly of [false, true]) {
    const each = new MemoryDevice({ sizeBytes: memory.byteLength, memory, readOnly });
    const source = `${await doors.begin(`a${readOnly}`, each)}|${await doors.begin(`b${readOnly}`, each)}`;
    await using device = await openPaths(source, { readOnly: true });
    expect(device.limits.readOnly).toBe(true);
    expect(pathsOf(device, 'disk0')?.readOnly).toBe(readOnly);
  }
});
