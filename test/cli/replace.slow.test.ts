/** `replace --with` a file that is not in the array yet: a disk takes over, or nothing has changed. */
import { readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { Scratch } from './raidsim.ts';

const MIB = 1024 * 1024;

/** The mark of an XFS file system, and something else all over. */
function held(lengthMib: number): Uint8Array {
  const bytes = new Uint8Array(lengthMib * MIB).fill(0xa5);
  bytes.set(Buffer.from('XFSB'));
  return bytes;
}

async function stateOf(scratch: Scratch): Promise<unknown> {
  const { members } = JSON.parse((await scratch.type('status demo --json')).stdout) as { members: unknown };
  const manifest = await readFile(scratch.path('demo', 'raidsim.json'), 'utf8');
  return { members, manifest, files: (await readdir(scratch.path('demo'))).sort() };
}

/** The smallest file that can take the place of the disk of 10 MiB or, in slot 1, of 12 MiB. */
const smallest = {
  // Each of them gives the array all that it has.
  linear: [10, 12],
  '0': [10, 12],
  // Of each the array takes what the smallest has.
  '1': [10, 10],
  '4': [10, 10],
  '5': [10, 10],
  '10': [10, 10],
} as const;

const places = Object.entries(smallest).flatMap(([level, sizes]) =>
  sizes.flatMap((mib, slot) =>
    [mib - 1, mib, mib + 1].map((size) => ({ level, slot, size, fits: size >= mib })),
  ),
);

test.each(places)(
  'level $level, slot $slot: a file of $size MiB takes over or is left alone ($fits)',
  async ({ level, slot, size, fits }) => {
    await using scratch = await Scratch.make();
    for (const [index, mib] of [10, 12, 14].entries()) {
      await writeFile(scratch.path(`d${index}`), '');
      await truncate(scratch.path(`d${index}`), mib * MIB);
    }
    await scratch.done(`create demo -l ${level} d0 d1 d2 --assume-clean -q`);
    await writeFile(scratch.path('new'), held(size));
    const before = await stateOf(scratch);

    const asked = await scratch.type(`replace demo ${slot} --with new`);
    expect(asked).toMatchObject({ code: 4, stderr: expect.stringContaining('HOLDS_DATA') });
    expect(asked.stderr).toContain(`raidsim replace demo ${slot} --with new --force`);
    expect(await stateOf(scratch)).toEqual(before);

    const { code, stderr } = await scratch.type(`replace demo ${slot} --with new --force`);
    expect({ code, stderr }).toMatchObject(
      fits
        ? { code: 0 }
        : { code: 2, stderr: expect.stringMatching(/BAD_ARGUMENT: .*(too small|smaller than)/) },
    );
    if (fits) {
      expect(await stateOf(scratch)).not.toEqual(before);
      return;
    }
    expect(await stateOf(scratch)).toEqual(before);
    expect(Buffer.compare(await readFile(scratch.path('new')), held(size))).toBe(0);
  },
);

test('a disk that cannot be replaced just then costs no new one', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 6 -n 5 -z 8M -q');
  const refused = async (line: string, code: number, error: string): Promise<void> => {
    const before = await stateOf(scratch);
    const outcome = await scratch.type(line);
    expect([line, outcome]).toMatchObject([line, { code, stderr: expect.stringContaining(error) }]);
    expect([line, await stateOf(scratch)]).toEqual([line, before]);
  };
  await scratch.done('replace demo disk2 --with demo/disk5.img');
  await refused('replace demo disk2 --with demo/disk6.img', 4, 'BUSY');
  await refused('replace demo disk5 --with demo/disk6.img', 2, 'disk5 is replacement');
  await scratch.done('fail demo disk1');
  await refused('replace demo disk1 --with demo/disk6.img', 2, 'has no member disk1');
});

test('what refuses the file names the command that asked for it', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 1 -n 2 -z 8M -q');
  await writeFile(scratch.path('new.img'), held(8));
  for (const [line, hint] of [
    ['add demo new.img', 'raidsim add demo new.img --force'],
    ['replace demo disk1 --with new.img', 'raidsim replace demo disk1 --with new.img --force'],
    ['rebuild demo --onto new.img', 'raidsim rebuild demo --onto new.img --force'],
    ['add demo other', 'raidsim add demo demo/other.img'],
    ['replace demo disk1 --with other', 'raidsim replace demo disk1 --with demo/other.img'],
    ['rebuild demo --onto other', 'raidsim rebuild demo --onto demo/other.img'],
  ] as const) {
    const { code, stderr } = await scratch.type(line);
    expect([line, code]).not.toEqual([line, 0]);
    expect(stderr).toContain(`${hint}\n`);
  }
});
