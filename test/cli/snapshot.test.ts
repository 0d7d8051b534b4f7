/** `snapshot`: taken, read, gone back to and deleted, as a user does it. */
import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { type CloneInfo, type OverlayDevice, openArray } from '../../lib/index.ts';
import { Scratch, sampleBytes } from './raidsim.ts';

const SIZE = 300_000;

async function made(): Promise<{ readonly scratch: Scratch; readonly first: Uint8Array }> {
  const scratch = await Scratch.make();
  await scratch.done('create demo -l 1 -n 2 -z 4M -q');
  const first = sampleBytes(SIZE);
  await writeFile(scratch.path('first'), first);
  await writeFile(scratch.path('second'), first.toReversed());
  await scratch.done('write demo --from first -q');
  return { scratch, first };
}

test('what was overwritten is read from the snapshot, rolled back to, and let go of', async () => {
  const { scratch, first } = await made();
  await using _scratch = scratch;
  const told = await scratch.done('snapshot create demo one --limit 1M');
  expect(told).toBe('snapshot one of demo is taken; copies take 0 B of 1 MiB\n');
  await scratch.done('write demo --from second -q');
  await scratch.done(`snapshot read demo one --length ${SIZE} --to out -q`);
  expect(Buffer.compare(await readFile(scratch.path('out')), first)).toBe(0);
  const status = JSON.parse(await scratch.done('status demo --json'));
  expect(status.snapshots).toMatchObject([
    { name: 'one', state: 'valid', uniqueBytes: 303_104, sharedBytes: 0 },
  ]);
  expect(await scratch.done('status demo')).toMatch(/snapshots: one {2}\d+ s ago {2}296 KiB/);
  expect(await scratch.done('snapshot rollback demo one')).toBe(
    'demo is what it was at snapshot one; 296 KiB written back\n',
  );
  await scratch.done(`read demo --length ${SIZE} --to out -q`);
  expect(Buffer.compare(await readFile(scratch.path('out')), first)).toBe(0);
  for (const [line, code, text] of [
    ['snapshot create demo one', 2, 'has a snapshot one already'],
    ['snapshot create demo two --limit 2M', 2, 'have a store already'],
    ['snapshot create demo a/b', 2, 'no name for a snapshot'],
    ['snapshot read demo onr --to x', 2, 'did you mean one?'],
    ['snapshot rollback demo', 2, 'raidsim snapshot rollback demo NAME'],
    ['snapshot list demo --force', 2, 'does not take --force'],
    ['snapshot list demo one', 2, 'tells of all of them, and takes no name, "one"'],
    ['snapshot delete demo one --all', 2, 'deletes all of them, and takes no name, "one"'],
    ['snapshot delete demo one --force', 2, 'takes --force with --all only'],
    // Without the folder nobody says whose certificates these are: no client would be asked for one.
    ['serve demo --listen 127.0.0.1:0 --tls-verify-client', 2, 'needs --tls-certificates'],
    ['snapshot squeeze demo one', 2, 'create, list, read, rollback, merge, delete'],
    ['snapshot delete demo --all --clone', 2, 'and not both'],
    ['snapshot delete demo one --clone', 2, 'raidsim serve demo --clone one'],
    ['snapshot rollback demo one --clone', 2, 'does not take --clone'],
    ['snapshot crate demo one', 2, 'Did you mean create?'],
    ['snapshot revert demo one', 2, 'Did you mean rollback?'],
    ['snapshot clone demo one', 2, 'Did you mean `raidsim serve ARRAY --clone NAME`?'],
    ['snapshot mount demo one', 2, 'Did you mean `raidsim serve ARRAY --snapshot NAME`?'],
    [
      'snapshot demo delete',
      2,
      'raidsim snapshot ACTION demo ... It is one of create, list, read, rollback, merge, delete',
    ],
    ['backup creat demo', 2, 'Did you mean create?'],
    ['path lst demo', 2, 'Did you mean list?'],
    ['snapshot create nowhere one', 2, 'there is no folder nowhere'],
  ] as const) {
    const outcome = await scratch.type(line);
    expect([line, outcome.code, outcome.stderr]).toEqual([line, code, expect.stringContaining(text)]);
  }
  const listed = JSON.parse(await scratch.done('snapshot list demo --json'));
  expect(listed).toMatchObject({ snapshots: [{ name: 'one' }], usage: { limitBytes: 1048576 } });
  expect(await scratch.done('snapshot delete demo one')).toBe('snapshot one of demo is deleted\n');
  expect((await scratch.type('snapshot list demo')).stderr).toContain('demo has no snapshots');
});

test('a store that is full gives up the oldest snapshot, and the array goes on', async () => {
  const { scratch } = await made();
  await using _scratch = scratch;
  await scratch.done('snapshot create demo one --limit 64K -q');
  await scratch.done('write demo --from second -q');
  expect(await scratch.done('snapshot list demo')).toMatch(/^one .* invalid /m);
  const { code, stderr } = await scratch.type('snapshot read demo one --to out');
  expect([code, stderr]).toEqual([5, expect.stringContaining('one of demo is invalid')]);
  expect((await scratch.type('status demo')).code).toBe(0);
  await scratch.done('snapshot delete demo --all');
  expect(JSON.parse(await scratch.done('status demo --json'))).not.toHaveProperty('snapshots');
});

test('says by what it would be noticed if something wrote past the snapshots: for raid0 and linear by nothing', async () => {
  await using scratch = await Scratch.make();
  const seen: unknown[] = [];
  for (const level of ['5', '0', 'linear']) {
    await scratch.run(`create a${level} --level ${level} --disks 3 --size 4M -q`);
    const { code, stderr } = await scratch.run(`snapshot create a${level} one`);
    const { witness } = JSON.parse((await scratch.run(`snapshot list a${level} --json`)).stdout) as {
      witness: unknown;
    };
    const { stdout } = await scratch.run(`snapshot list a${level}`);
    seen.push([level, code, witness, stderr.includes('nothing tells'), stdout.includes('nothing tells')]);
  }
  expect(seen).toEqual([
    ['5', 0, 'superblocks', false, false],
    ['0', 0, null, true, true],
    ['linear', 0, null, true, true],
  ]);
});

test('of an array that has failed there is neither a snapshot nor a backup, nothing is made, and it is said what to do', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo --level 5 --disks 3 --size 8M -q');
  for (const disk of ['disk1.img', 'disk2.img']) await rm(scratch.path('demo', disk));
  const before = await readdir(scratch.path('demo'));
  for (const line of [
    'snapshot create demo one',
    'backup create demo --repo repo',
    'export demo --to image',
  ]) {
    const { code, stderr } = await scratch.type(line);
    expect([line, code, stderr]).toEqual([line, 4, expect.stringContaining('NOT_ENOUGH_MEMBERS')]);
    expect(stderr).toContain('do: raidsim status demo');
  }
  expect(await readdir(scratch.path('demo'))).toEqual(before);
  expect(await readdir(scratch.folder)).toEqual(['demo']);
});

test('whoever writes is told which snapshots that has cost', async () => {
  const { scratch } = await made();
  await using _scratch = scratch;
  await scratch.done('snapshot create demo one --limit 64K -q');
  expect((await scratch.type('write demo --from second --length 4K -q')).stderr).toBe('');
  const lost = await scratch.type('write demo --from second');
  expect(lost).toMatchObject({ code: 0, stderr: expect.stringContaining('snapshot one became invalid') });
  await scratch.done('snapshot create demo two');
  const told = JSON.parse(await scratch.done('write demo --from first --json'));
  expect(told).toMatchObject({ invalidSnapshots: ['two'] });
});

test('merged, the array is what the snapshot held, which is gone then, and others stay', async () => {
  const { scratch, first } = await made();
  await using _scratch = scratch;
  await scratch.done('snapshot create demo one --limit 4M -q');
  await scratch.done('write demo --from second -q');
  await scratch.done('snapshot create demo two -q');
  expect(await scratch.done('snapshot merge demo one')).toBe(
    'demo is what it was at snapshot one, which is deleted; 296 KiB written back\n',
  );
  await scratch.done(`read demo --length ${SIZE} --to out -q`);
  expect(Buffer.compare(await readFile(scratch.path('out')), first)).toBe(0);
  const { snapshots } = JSON.parse(await scratch.done('snapshot list demo --json'));
  expect(snapshots).toMatchObject([{ name: 'two' }]);
  await scratch.done(`snapshot read demo two --length ${SIZE} --to out -q`);
  expect(Buffer.compare(await readFile(scratch.path('out')), first.toReversed())).toBe(0);
  expect(JSON.parse(await scratch.done('snapshot merge demo two --json'))).toEqual({
    name: 'two',
    writtenBytes: 303_104,
    lostBytes: 0,
  });
});

test('clones are listed with what they take, those too whose snapshot is gone', async () => {
  const { scratch } = await made();
  await using _scratch = scratch;
  await scratch.done('snapshot create demo one --limit 4M -q');
  await scratch.done('snapshot create demo two -q');
  expect(await scratch.done('snapshot list demo')).not.toContain('CLONE');
  {
    await using array = await openArray(scratch.path('demo'));
    for (const name of ['one', 'gone']) {
      if (name === 'gone') await array.snapshots?.create(name);
      await using clone = (await array.snapshots?.openClone(name)) as OverlayDevice;
      await clone.write(0, sampleBytes(65_536));
    }
  }
  await rename(scratch.path('demo', 'gone.clone'), scratch.path('demo', 'away'));
  await scratch.done('snapshot delete demo gone -q');
  await rename(scratch.path('demo', 'away'), scratch.path('demo', 'gone.clone'));
  const { stdout, stderr } = await scratch.type('snapshot list demo');
  expect(stdout).toMatch(/ CLONE\none .* KiB\ntwo .* 0 B *\ncopies/);
  expect(stderr).toMatch(/clone of gone, which is gone; .* raidsim snapshot delete demo gone --clone\n/);
  const { clones } = JSON.parse(await scratch.done('snapshot list demo --json'));
  expect(clones).toEqual([
    { snapshot: 'gone', takenBytes: expect.any(Number) },
    { snapshot: 'one', takenBytes: expect.any(Number) },
  ]);
  expect(Math.min(...clones.map(({ takenBytes }: CloneInfo) => takenBytes))).toBeGreaterThanOrEqual(65_536);
  await scratch.done('snapshot delete demo gone --clone -q');
  await scratch.done('snapshot delete demo one --clone -q');
  expect(JSON.parse(await scratch.done('snapshot list demo --json'))).toMatchObject({ clones: [] });
});
