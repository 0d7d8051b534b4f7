/** A recovery that cannot have a part: listed as bad, or the member is not in sync; never wrong bytes in a next life. */
import { expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { createArray, openArray } from '../../lib/array/folder.ts';
import type { Device } from '../../lib/device/device.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { KIB } from '../../lib/units.ts';
import { copyFolder, newFolder, quiet, small } from './snapshot-folders.ts';

const BLOCK = 4 * KIB;

/** Blocks that are an error, where all others are what was written. */
async function badBlocks(array: RaidArray): Promise<number> {
  let bad = 0;
  for (let at = 0; at < array.limits.sizeBytes; at += BLOCK) {
    const block = new Uint8Array(BLOCK);
    try {
      await array.read(at, block);
    } catch (error) {
      expect(error).toMatchObject({ code: 'REDUNDANCY_LOST' });
      bad += 1;
      continue;
    }
    const wanted = 1 + ((at / BLOCK) % 250);
    expect(block.every((byte) => byte === wanted)).toBe(true);
  }
  return bad;
}

test.each([
  ['with a list of bad places: it is in sync, and lists them', true],
  ['without one: it is not in sync', false],
])('a spare recovered from a member with a bad place, %s', async (_what, hasList) => {
  const folder = newFolder();
  const image = newFolder();
  {
    await using array = await createArray(folder, { ...small, spares: 1, bitmap: 'none' });
    const content = new Uint8Array(array.limits.sizeBytes);
    for (let at = 0; at < content.length; at += BLOCK) content.fill(1 + ((at / BLOCK) % 250), at, at + BLOCK);
    await array.write(0, content);
    if (!hasList) {
      const none = { bblogSectors: 0, bblogOffsetSectors: 0, bblogShift: 0 };
      await array.metadata?.update((md) => ({
        ...md,
        events: md.events + 1,
        members: md.members.map((each) => ({ ...each, superblock: { ...each.superblock, ...none } })),
      }));
    }
  }
  let bad: number | null = null;
  const wrap = (device: Device, name: string): Device => {
    const read = device.read.bind(device);
    device.read = (at, target) => {
      const lengthBytes =
        'byteLength' in target ? target.byteLength : target.reduce((sum, each) => sum + each.byteLength, 0);
      if (name === 'disk1' && bad !== null && at <= bad && bad < at + lengthBytes)
        return Promise.reject(
          new RaidError('MEDIUM_ERROR', `${name} cannot be read at ${bad}`, { device: name }),
        );
      return read(at, target);
    };
    return device;
  };
  {
    await using array = await openArray(folder, { driver: 'event-loop', wrap });
    const start = array.metadata?.array.members[1]?.superblock.dataOffsetSectors ?? 0;
    bad = start * 512 + 256 * KIB;
    await array.fail('disk0');
    const rebuilt = (async () => {
      for await (const _step of array.rebuild());
    })();
    if (hasList) await rebuilt;
    else await expect(rebuilt).rejects.toThrow(/no room to list that/);
    const spare = array.members.find(({ name }) => name === 'disk3');
    expect(spare?.state.state).toBe(hasList ? 'in_sync' : 'recovering');
    expect(await badBlocks(array)).toBeGreaterThan(0);
    copyFolder(folder, image);
  }
  bad = null;
  for (const each of [folder, image]) {
    await using array = await openArray(each, quiet);
    // The place can be read again, and so nothing is lost.
    expect(await badBlocks(array)).toBe(0);
  }
});

test('a new disk is filled though another one lists more than its own log could, a page at a time', async () => {
  const folder = newFolder();
  const lengthBytes = 640 * BLOCK;
  {
    await using array = await createArray(folder, { ...small, diskSize: '8M', bitmap: 'none' });
    await array.metadata?.setBadBlocks(0, [{ member: 0, offsetBytes: 0, lengthBytes }]);
    await array.fail('disk1');
  }
  await using array = await openArray(folder, { ...quiet, run: true });
  await array.add(new MemoryDevice({ sizeBytes: 8 * 1024 * KIB }), 'fresh');
  for await (const _step of array.rebuild());
  expect(array.members.find(({ name }) => name === 'fresh')?.state).toEqual({ state: 'in_sync', slot: 1 });
});
