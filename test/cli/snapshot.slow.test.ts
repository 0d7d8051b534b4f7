/**
 * Snapshots through kills, served, exported and backed up: every verb that writes leaves them as they are, and a backup
 * reads only what has changed, or all where that is not known.
 */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { NbdDevice, type RaidError, seededRandom } from '../../lib/index.ts';
import { rollbackDueIn } from '../../lib/snapshot/origin.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { Live } from './live.ts';
import { Scratch, sampleBytes, startRaidsim } from './raidsim.ts';

const program = promisify(execFile);
const MIB = 1024 * 1024;
const create = '--level 5 --disks 3 --size 16M --chunk 64K';

interface Status {
  readonly sizeBytes: number;
  readonly snapshots?: readonly { readonly name: string; readonly state: string }[];
}

async function statusOf(scratch: Scratch): Promise<Status> {
  return JSON.parse(await scratch.done('status demo --json')) as Status;
}

/** The whole array, or a snapshot of it. */
async function imageOf(scratch: Scratch, snapshot: string | null = null): Promise<Buffer> {
  await scratch.done(`${snapshot === null ? 'read demo' : `snapshot read demo ${snapshot}`} --to image -q`);
  return await readFile(scratch.path('image'));
}

function expectSame(found: Uint8Array, wanted: Uint8Array): void {
  expect(Buffer.compare(found, wanted)).toBe(0);
}

/** An array that is full, and the bytes of it. */
async function fullArray(scratch: Scratch, options = create): Promise<Buffer> {
  await scratch.done(`create demo ${options} -q`);
  const { sizeBytes } = await statusOf(scratch);
  const content = Buffer.from(sampleBytes(sizeBytes));
  await writeFile(scratch.path('content'), content);
  await scratch.done('write demo --from content -q');
  return content;
}

test('a life with every verb that writes leaves the snapshot as it was', async () => {
  await using scratch = await Scratch.make();
  const content = await fullArray(scratch, `${create} --spares 1`);
  await scratch.done('backup create content --repo repo --chunk 64K -q');
  await scratch.done('snapshot create demo one --limit 64M -q');
  await writeFile(scratch.path('other'), sampleBytes(5 * MIB).reverse());
  await scratch.done('write demo --from other --offset 777 -q');
  expectSame(await imageOf(scratch, 'one'), content);
  await scratch.run('fail demo disk1');
  await scratch.done('write demo --from other --offset 6000000 -q');
  await scratch.done('rebuild demo -q');
  await scratch.done('scrub demo --repair -q');
  expectSame(await imageOf(scratch, 'one'), content);
  const changed = await imageOf(scratch);
  await scratch.done('snapshot create demo two -q');
  await scratch.done('backup restore latest --repo repo --to demo -q');
  expectSame(await imageOf(scratch), content);
  expectSame(await imageOf(scratch, 'one'), content);
  expectSame(await imageOf(scratch, 'two'), changed);
  await scratch.done('snapshot rollback demo two -q');
  expectSame(await imageOf(scratch), changed);
  expectSame(await imageOf(scratch, 'one'), content);
  await scratch.done('snapshot delete demo two -q');
  await scratch.done('snapshot rollback demo one -q');
  expectSame(await imageOf(scratch), content);
  expect(await scratch.done('scrub demo')).toContain('no mismatch');
});

test('killed in the midst of writing, ten times: the snapshot is valid, and what it was', () =>
  withSeed(runSeed, async () => {
    const random = seededRandom(runSeed);
    await using scratch = await Scratch.make();
    const content = await fullArray(scratch);
    const other = content.toReversed();
    await scratch.done('snapshot create demo one --limit 64M -q');
    let resyncs = 0;
    for (let kill = 0; kill < 10; kill += 1) {
      const writer = startRaidsim(['write', 'demo', '--from', '-'], scratch.folder);
      const ended = once(writer, 'exit');
      // More than a pipe holds. It waits for the rest when it is killed, whatever the machine does.
      const given = other.subarray(0, MIB + random(other.byteLength - MIB));
      await new Promise((taken) => writer.stdin?.write(given, taken));
      writer.kill('SIGKILL');
      expect(await ended).toEqual([null, 'SIGKILL']);
      if (kill % 3 === 2) expectSame(await imageOf(scratch, 'one'), content);
      const { code, stdout } = await scratch.type('status demo --json');
      if (code === 10) resyncs += 1;
      const { snapshots } = JSON.parse(stdout) as Status;
      expect(snapshots).toMatchObject([{ name: 'one', state: 'valid' }]);
    }
    expect(resyncs).toBeGreaterThan(0);
    await scratch.done('snapshot rollback demo one -q');
    expectSame(await imageOf(scratch), content);
  }));

test('killed in the midst of a rollback: whoever comes next finds what was rolled back to, or what was there', () =>
  withSeed(runSeed, async () => {
    const random = seededRandom(runSeed);
    await using scratch = await Scratch.make();
    const content = await fullArray(scratch);
    const other = content.toReversed();
    await writeFile(scratch.path('other'), other);
    await scratch.done('snapshot create demo one --limit 64M -q');
    let midst = 0;
    // How long a rollback takes is the machine's; kills that come too late come sooner.
    let waitMs = 40;
    for (let kill = 0; kill < 6 || midst < 2; kill += 1) {
      await scratch.done('write demo --from other -q');
      const rolling = startRaidsim(['snapshot', 'rollback', 'demo', 'one'], scratch.folder);
      let isOver = false;
      const ended = once(rolling, 'exit').then(() => {
        isOver = true;
      });
      while (!isOver && (await halfWayTo(scratch)) === null) await sleep(1);
      await sleep(random(waitMs));
      rolling.kill('SIGKILL');
      await ended;
      const isMidst = (await halfWayTo(scratch)) !== null;
      if (isMidst) midst += 1;
      else waitMs = Math.ceil(waitMs / 2);
      const image = await imageOf(scratch);
      const isBefore = !isMidst && Buffer.compare(image, other) === 0;
      if (!isBefore) expectSame(image, content);
      expectSame(await imageOf(scratch, 'one'), content);
    }
  }));

/** As a bystander sees it, who may look in the midst of an update. */
async function halfWayTo(scratch: Scratch): Promise<string | null> {
  return await rollbackDueIn(scratch.path('demo', 'snapshots.store')).catch(() => null);
}

test('served: verbs do what they do here, an export shows the snapshot, and clients are not rolled back under', async () => {
  await using scratch = await Scratch.make();
  const content = await fullArray(scratch);
  await scratch.done('snapshot create demo one --limit 64M -q');
  await using live = await Live.serve(scratch, ['--snapshot', 'one']);
  const uri = (name: string): string => `nbd+unix:///${name}?socket=${scratch.path('demo', 'nbd.sock')}`;
  {
    await using shown = await NbdDevice.open(uri('demo@one'));
    expect(shown.limits).toMatchObject({ readOnly: true, sizeBytes: content.byteLength });
    await using client = await NbdDevice.open(uri('demo'));
    await client.write(MIB, content.subarray(0, 3 * MIB));
    await client.flush();
    await live.done('snapshot create demo two');
    const taken = Buffer.alloc(content.byteLength);
    await client.read(0, taken);
    await client.write(0, content.subarray(7 * MIB, 9 * MIB));
    // Under the same clients the array is closed, and opened with filters.
    await live.done('fault demo disk1 delay 1ms');
    const image = Buffer.alloc(content.byteLength);
    await shown.read(0, image);
    expectSame(image, content);
    expectSame(await imageOf(scratch, 'two'), taken);
    // As programs see it that are not ours.
    await program('nbdcopy', [uri('demo@one'), scratch.path('copied')]);
    expectSame(await readFile(scratch.path('copied')), content);
    await program('qemu-img', [
      'compare',
      '-f',
      'raw',
      '-F',
      'raw',
      scratch.path('content'),
      uri('demo@one'),
    ]);
    const busy = await live.run('snapshot rollback demo two');
    expect([busy.code, busy.stderr]).toEqual([4, expect.stringContaining('--force')]);
    await live.done('fault demo clear');
    await live.done('snapshot rollback demo two --force');
    await client.read(0, image);
    expectSame(image, taken);
    expect(await live.run('snapshot delete demo one')).toMatchObject({ code: 4 });
  }
  await live.until(async () => (await live.run('snapshot rollback demo one')).code === 0);
  expectSame(await imageOf(scratch), content);
  expect((await statusOf(scratch)).snapshots?.map(({ name }) => name)).toEqual(['one', 'two']);
  await live.stop('SIGKILL');
  expectSame(await imageOf(scratch, 'one'), content);
  expectSame(await imageOf(scratch), content);
  for (const [line, code, text] of [
    ['serve demo --snapshot three', 2, 'has no snapshot three'],
    ['serve demo --snapshot one --readonly', 2, 'reading only'],
  ] as const) {
    const outcome = await scratch.run(line);
    expect([line, outcome.code, outcome.stderr]).toEqual([line, code, expect.stringContaining(text)]);
  }
});

test('a backup is of one instant, the next one reads only what changed, and all where that is not known', async () => {
  await using scratch = await Scratch.make();
  const content = await fullArray(scratch);
  const backup = async (options = ''): Promise<{ id: string; readBytes: number }> =>
    JSON.parse(await scratch.done(`backup create demo --repo repo --json${options}`)) as never;
  const restored = async (id: string): Promise<Buffer> => {
    await scratch.done(`backup restore ${id} --repo repo --to restored -q`);
    return await readFile(scratch.path('restored'));
  };
  expect((await backup(' --chunk 64K')).readBytes).toBe(content.byteLength);
  expect((await backup()).readBytes).toBe(0);
  await writeFile(scratch.path('small'), sampleBytes(100_000).reverse());
  await scratch.done('write demo --from small --offset 1M -q');
  const second = await backup();
  expect(second.readBytes).toBe(128 * 1024);
  expectSame(await restored(second.id), await imageOf(scratch));

  // Served, with somebody who writes all the while; and killed, which loses nothing that was tracked.
  const live = await Live.serve(scratch);
  await using _live = live;
  await scratch.done('snapshot create demo kept -q');
  await using client = await NbdDevice.open(`nbd+unix:///demo?socket=${scratch.path('demo', 'nbd.sock')}`);
  let isOver = false;
  const writing = (async () => {
    for (let turn = 0; !isOver; turn += 1)
      await client.write((turn % 20) * 65_536, content.subarray(turn % 7, (turn % 7) + 4096));
  })();
  const third = await backup(' --snapshot kept');
  const fourth = await backup();
  isOver = true;
  await writing;
  expect(third.readBytes).toBe(0);
  expectSame(await restored(third.id), await imageOf(scratch, 'kept'));
  expect(fourth.readBytes).toBeLessThanOrEqual(20 * 65_536);
  await live.stop('SIGKILL');
  const fifth = await backup();
  expect(fifth.readBytes).toBeLessThanOrEqual(20 * 65_536);
  expectSame(await restored(fifth.id), await imageOf(scratch));
  expect((await statusOf(scratch)).snapshots?.map(({ name }) => name)).toEqual(['kept']);

  // Written past the store: what changed is not known.
  await scratch.done('assemble elsewhere demo/disk0.img demo/disk1.img demo/disk2.img -q');
  await scratch.done('write elsewhere --from small --offset 9M -q');
  const sixth = await backup();
  expect(sixth.readBytes).toBe(content.byteLength);
  expectSame(await restored(sixth.id), await imageOf(scratch));
  await scratch.done('snapshot delete demo --all -q');
  expect((await backup(' --no-snapshot')).readBytes).toBe(content.byteLength);
  expect((await statusOf(scratch)).snapshots).toBe(undefined);
});

test.each(['nobody has open', 'is served'])(
  'a backup that is killed, of an array that %s, leaves a snapshot, and the next lets go of it',
  async (how) => {
    await using scratch = await Scratch.make();
    const content = await fullArray(scratch, '--level 5 --disks 3 --size 48M --chunk 64K');
    await using live = how === 'is served' ? await Live.serve(scratch) : null;
    expect(live === null).toBe(how !== 'is served');
    await scratch.done('snapshot create demo mine --limit 64M -q');
    let left: string[] = [];
    for (let time = 0; left.length === 0 && time < 10; time += 1) {
      const backup = startRaidsim(
        ['backup', 'create', 'demo', '--repo', `killed${time}`, '-q'],
        scratch.folder,
      );
      const ended = once(backup, 'exit');
      const isOver = ended.then(() => true);
      const packs = () => readdir(scratch.path(`killed${time}/packs`)).catch(() => []);
      while ((await packs()).length === 0 && !(await Promise.race([isOver, sleep(2, false)])));
      backup.kill('SIGKILL');
      await ended;
      const { snapshots = [] } = await statusOf(scratch);
      left = snapshots.map(({ name }) => name).filter((name) => name !== 'mine');
    }
    expect(left).toMatchObject([expect.stringMatching(/^backup-/)]);
    await scratch.done('backup create demo --repo repo -q');
    expect((await statusOf(scratch)).snapshots).toMatchObject([{ name: 'mine', state: 'valid' }]);
    await scratch.done('backup restore latest --repo repo --to copy -q');
    expectSame(await readFile(scratch.path('copy')), content);
  },
);

test('a clone is written to, also after a restart and while faults come and go, and array and snapshot stay as they are', async () => {
  await using scratch = await Scratch.make();
  const content = await fullArray(scratch);
  await scratch.done('snapshot create demo one --limit 64M -q');
  const other = content.toReversed();
  await writeFile(scratch.path('other'), other);
  await scratch.done('write demo --from other -q');
  const uri = (name: string) => `nbd+unix:///${name}?socket=${scratch.path('demo', 'nbd.sock')}`;
  const wanted = Buffer.from(content);
  const image = Buffer.alloc(content.byteLength);
  const random = seededRandom(1);
  for (let life = 0; life < 2; life += 1) {
    const live = await Live.serve(scratch, ['--clone', 'one', '--snapshot', 'one']);
    try {
      await using client = await NbdDevice.open(uri('demo@one@clone'));
      for (let turn = 0; turn < 20; turn += 1) {
        const piece = sampleBytes(1 + random(9000)).map((byte) => byte ^ (turn + 20 * life));
        const at = random(wanted.byteLength - piece.byteLength);
        await client.write(at, piece);
        wanted.set(piece, at);
        if (turn === 7) await scratch.done('fault demo disk0 delay 1ms');
        if (turn === 14) await scratch.done('fault demo clear');
      }
      await client.read(0, image);
      expectSame(image, wanted);
      await using shown = await NbdDevice.open(uri('demo@one'));
      await shown.read(0, image);
      expectSame(image, content);
    } catch (error) {
      await live.stop();
      throw error;
    }
    for (const [line, text] of [
      ['snapshot delete demo one', 'is being read'],
      ['snapshot delete demo one --clone', 'is in use'],
      ['snapshot delete demo --all --force', 'is being read'],
    ] as const)
      expect(await live.run(line)).toMatchObject({ code: 4, stderr: expect.stringContaining(text) });
    await live.until(async () =>
      (await live.run('snapshot merge demo one')).stderr.includes('is being read'),
    );
    expectSame(await imageOf(scratch), other);
    await live.stop();
  }
  for (const line of ['snapshot delete demo one', 'snapshot merge demo one']) {
    const { code, stderr } = await scratch.run(line);
    expect([line, code, stderr]).toEqual([line, 4, expect.stringContaining('delete demo one --clone')]);
  }
  expect(await scratch.run('snapshot delete demo --all')).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('have clones (one)'),
  });
  expectSame(await imageOf(scratch), other);
  expectSame(await imageOf(scratch, 'one'), content);
  expect(await scratch.done('snapshot delete demo one --clone')).toBe(
    'the clone of snapshot one of demo is deleted\n',
  );
  expect(await scratch.done('snapshot merge demo one')).toContain('which is deleted');
  expectSame(await imageOf(scratch), content);
  await scratch.done('snapshot create demo two -q');
  const live = await Live.serve(scratch, ['--clone', 'two']);
  {
    await using client = await NbdDevice.open(uri('demo@two@clone'));
    await client.write(0, other.subarray(0, 4096));
  }
  await live.stop();
  await scratch.done('snapshot delete demo --all --force');
  expect((await readdir(scratch.path('demo'))).filter((file) => /clone|snapshots/.test(file))).toEqual([]);
  for (const [line, text] of [
    ['serve demo --clone two', 'has no snapshot two'],
    ['serve demo --clone two --readonly', 'reading only'],
  ] as const)
    expect(await scratch.run(line)).toMatchObject({ code: 2, stderr: expect.stringContaining(text) });
});

test('faults come and go though a snapshot that is served was given up, and whoever reads it is told so, and its clone keeps what it has', async () => {
  await using scratch = await Scratch.make();
  const content = await fullArray(scratch);
  await scratch.done('snapshot create demo one --limit 64K -q');
  const live = await Live.serve(scratch, ['--snapshot', 'one', '--clone', 'one']);
  try {
    const uri = (name: string) => `nbd+unix:///${name}?socket=${scratch.path('demo', 'nbd.sock')}`;
    await using snapshot = await NbdDevice.open(uri('demo@one'));
    await using clone = await NbdDevice.open(uri('demo@one@clone'));
    const page = content.subarray(0, 4096);
    await clone.write(8192, page);
    await writeFile(scratch.path('other'), content.toReversed());
    await scratch.done('write demo --from other -q');
    const look = async (): Promise<readonly string[]> => {
      const held = new Uint8Array(4096);
      await clone.read(8192, held);
      expectSame(held, page);
      const told = async (read: Promise<void>): Promise<string> =>
        await read.then(
          () => 'read',
          (error: RaidError) => error.code,
        );
      return [await told(snapshot.read(0, held)), await told(clone.read(0, held))];
    };
    const seen = [await look()];
    for (const line of ['fault demo disk0 delay 1ms', 'fault demo clear']) {
      expect([line, await live.run(line)]).toMatchObject([line, { code: 0, stderr: '' }]);
      seen.push(await look());
    }
    expect(seen).toEqual(seen.map(() => ['MEDIUM_ERROR', 'MEDIUM_ERROR']));
  } finally {
    await live.stop();
  }
});
