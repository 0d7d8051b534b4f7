/** An array whose folder is on a disk without room: what needs the manifest is refused as a whole, and can be done when there is room. */
import { readdir, symlink } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { Scratch } from './raidsim.ts';

test('a disk that finds no room in the manifest does not come into the array, and nothing else is lost', async (context) => {
  context.skip(process.platform !== 'linux', 'there is no /dev/full');
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 5 -n 3 -z 8M --bitmap internal -q');
  const files = async (): Promise<readonly string[]> => (await readdir(scratch.path('demo'))).sort();
  const members = async (): Promise<unknown> =>
    JSON.parse((await scratch.type('status demo --json')).stdout).members;
  /** As it is with the next manifest on a disk that is full. */
  const whenFull = async (line: string) => {
    await symlink('/dev/full', scratch.path('demo', 'raidsim.json.new'));
    return await scratch.type(line);
  };
  const refused = {
    code: 4,
    stderr: expect.stringContaining('NO_SPACE: demo/raidsim.json cannot be written'),
  };
  const unchanged = async (lines: readonly string[]): Promise<void> => {
    const before = [await files(), await members()];
    for (const line of lines) {
      expect([line, await whenFull(line)]).toMatchObject([line, refused]);
      expect([line, [await files(), await members()]]).toEqual([line, before]);
    }
  };
  await unchanged(['add demo demo/disk3.img', 'replace demo disk1 --with demo/disk3.img']);
  await scratch.done('fail demo disk1');
  await unchanged(['add demo demo/disk3.img', 'rebuild demo --onto demo/disk3.img', 'remove demo disk1']);
  await scratch.done('remove demo disk1');
  await unchanged(['re-add demo demo/disk1.img', 'add demo demo/disk1.img', 'add demo demo/disk3.img']);
  expect(await scratch.done('add demo demo/disk1.img')).toContain('disk1 is back');
  await scratch.done('rebuild demo -q');
  expect(await whenFull('scrub demo')).toMatchObject({
    code: 0,
    stdout: expect.stringContaining('no mismatch'),
  });
  expect(await scratch.done('add demo demo/disk3.img')).toContain('disk3 is added');
  expect((await scratch.type('status demo')).code).toBe(0);
});
