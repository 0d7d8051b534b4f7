/** Verbs on an array that another process serves: they do what they do on one that nobody has open. */
import { once } from 'node:events';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { Live } from './live.ts';
import { type Outcome, raidsim, Scratch, sampleBytes, startRaidsim } from './raidsim.ts';

const MIB = 1024 * 1024;

const raid5 = '--level 5 --disks 4 --spares 1 --size 32M --chunk 64K';

test('a life: written, degraded, rebuilt, scrubbed, replaced and stopped clean', async () => {
  await using live = await Live.make(raid5);
  expect(await live.status()).toMatchObject({
    state: 'clean',
    served: `nbd+unix:///?socket=${live.scratch.path('demo', 'nbd.sock')}`,
  });
  const bytes = sampleBytes(20 * MIB + 777);
  await live.done('write demo --offset 5000', bytes);
  await live.done(`read demo --offset 5000 --length ${bytes.byteLength} --to out`);
  expect(Buffer.compare(await readFile(live.scratch.path('out')), bytes)).toBe(0);

  expect(await live.done('fail demo disk1')).toContain('disk1 is failed');
  await live.done('rebuild demo');
  // How long it stays active after a write is longer than a quick machine takes to get here.
  await live.until(async () => (await live.status()).state !== 'active');
  const after = await live.status();
  expect(after).toMatchObject({ degraded: 0, state: 'clean', sync: null });
  expect(after.members.find(({ name }) => name === 'disk4')).toMatchObject({ slot: 1, state: 'in_sync' });
  expect(after.members.find(({ name }) => name === 'disk1')).toMatchObject({
    slot: null,
    state: 'faulty',
    source: 'disk1.img',
    because: 'disk1 was failed by hand',
  });
  expect(await live.done('scrub demo')).toContain('no mismatch');

  expect(await live.done('remove demo disk1')).toContain('disk1 is removed');
  expect(await live.done('add demo demo/disk1.img --force')).toContain('disk1 is added');
  expect(await live.done('replace demo disk0')).toContain('disk1 becomes a copy of disk0');
  await live.done('rebuild demo');
  expect((await live.status()).members.find(({ name }) => name === 'disk1')).toMatchObject({ slot: 0 });
  const lines = (await live.done('scrub demo --json')).trim().split('\n');
  expect(JSON.parse(lines.at(-1) ?? '')).toMatchObject({ type: 'summary', mismatches: 0 });

  expect(await live.stop('SIGINT')).toBe(0);
  expect(live.said).toContain('stopped\n');
  const offline = await live.status();
  expect(offline).toMatchObject({ state: 'clean', served: null });
  await live.done(`read demo --offset 5000 --length ${bytes.byteLength} --to again`);
  expect(Buffer.compare(await readFile(live.scratch.path('again')), bytes)).toBe(0);
});

test('with a bitmap a disk comes back, and gets what it has missed', async () => {
  await using live = await Live.make('--level 1 --disks 2 --size 32M --bitmap internal');
  await live.done('fail demo disk1');
  await live.done('write demo', sampleBytes(100_000));
  await live.done('remove demo disk1');
  expect(await live.done('re-add demo demo/disk1.img')).toMatch(/disk1 is back/);
  await live.done('rebuild demo');
  expect((await live.status()).degraded).toBe(0);
  expect(await live.done('scrub demo')).toContain('no mismatch');
});

describe('errors', () => {
  test('have the code and the exit status that they would have here', async () => {
    await using live = await Live.make('--level 5 --disks 3 --size 16M');
    await live.run('fail demo disk0');
    for (const [line, code, error] of [
      ['fail demo disk1', 4, 'LAST_COPY'],
      ['fail demo disk9', 2, 'NO_SUCH_MEMBER'],
      ['remove demo disk1', 4, 'BUSY'],
      ['read demo --offset 1T --to -', 2, 'OUT_OF_RANGE'],
      ['serve demo', 4, 'BUSY'],
      ['grow demo --size max', 4, 'BUSY'],
    ] as const) {
      const outcome = await live.run(`${line} --json`);
      const told = JSON.parse(outcome.stderr.trim().split('\n').at(-1) ?? '') as { code: string };
      expect([line, outcome.code, told.code]).toEqual([line, code, error]);
    }
    expect((await live.run('status demo')).code).toBe(10);
    expect((await live.run('rebuild demo')).code).toBe(10);
  });

  test('a fault needs a process that has the array open', async () => {
    await using scratch = await Scratch.make();
    await scratch.done('create demo --level 1 --disks 2 --size 8M -q');
    const { code, stderr } = await scratch.run('fault demo disk0 hang');
    expect([code, stderr]).toEqual([2, expect.stringContaining('raidsim serve demo')]);
  });
});

test('Ctrl-C of who watches a rebuild leaves the rebuild going on', async () => {
  await using live = await Live.make('--level 5 --disks 4 --spares 1 --size 64M');
  // The limit comes first: else there would be nothing left to watch. With it the rest takes a minute.
  const watcher = startRaidsim(['rebuild', 'demo', '--limit', '1M', '--json'], live.scratch.folder);
  await once(watcher, 'exit');
  await live.done('fail demo disk0');
  const second = startRaidsim(['rebuild', 'demo', '--limit', '1M', '--json'], live.scratch.folder);
  let heard = '';
  let errors = '';
  second.stdout?.on('data', (chunk: Buffer) => {
    heard += chunk.toString();
  });
  second.stderr?.on('data', (chunk: Buffer) => {
    errors += chunk.toString();
  });
  await live.until(() => heard.includes('"type":"progress"'));
  second.kill('SIGINT');
  const [code] = (await once(second, 'exit')) as unknown[];
  expect([code, errors]).toEqual([130, '']);
  const at = (await live.status()).sync?.doneBytes ?? 0;
  expect(at).toBeLessThan(60 * MIB);
  await live.until(async () => ((await live.status()).sync?.doneBytes ?? Number.POSITIVE_INFINITY) > at);
  await live.done('rebuild demo');
  expect((await live.status()).degraded).toBe(0);
});

test('from another folder, files and disks are still those that were typed', async () => {
  await using live = await Live.make('--level 1 --disks 2 --size 16M');
  const elsewhere = live.scratch.path('elsewhere');
  await mkdir(elsewhere);
  const from = (line: string): Promise<Outcome> => raidsim(line.split(' '), {}, { cwd: elsewhere });
  expect(await from('add ../demo new.img')).toMatchObject({ code: 0 });
  expect((await live.status()).members.find(({ name }) => name === 'new')).toMatchObject({
    source: join(elsewhere, 'new.img'),
  });
  expect(await from('fail ../demo ../demo/disk0.img')).toMatchObject({ code: 0 });
  expect(await from('rebuild ../demo')).toMatchObject({ code: 0 });
  expect((await live.status()).degraded).toBe(0);
});

describe('faults', () => {
  const lines = async (live: Live): Promise<{ disk: string; hits: number | null }[]> =>
    JSON.parse(await live.done('fault demo list --json')) as { disk: string; hits: number | null }[];

  test('sectors that cannot be read are recomputed and rewritten, and counted', async () => {
    await using live = await Live.make(raid5);
    const bytes = sampleBytes(8 * MIB);
    await live.done('write demo', bytes);
    await live.done('fault demo disk1 latent --offset 64K --length 64K');
    await live.done('read demo --length 8M --to out');
    expect(Buffer.compare(await readFile(live.scratch.path('out')), bytes)).toBe(0);
    expect((await lines(live))[0]?.hits).toBeGreaterThan(0);
    const { members } = await live.status();
    expect(members.find(({ name }) => name === 'disk1')?.errors.corrected).toBe(128);
    expect(await live.done('fault demo clear')).toContain('1 fault is cleared');
    expect(await lines(live)).toEqual([]);
    expect(await live.done('scrub demo')).toContain('no mismatch');
  });

  test('a disk whose writes fail is out, and the spare takes over', async () => {
    await using live = await Live.make(raid5);
    await live.done('fault demo disk2 error --on write');
    await live.done('write demo', sampleBytes(1 * MIB));
    await live.done('rebuild demo');
    const { members, degraded } = await live.status();
    expect(degraded).toBe(0);
    expect(members.find(({ name }) => name === 'disk2')).toMatchObject({ state: 'faulty' });
    expect(members.find(({ name }) => name === 'disk4')).toMatchObject({ slot: 2 });
    await live.until(() => live.said.includes('disk2 is faulty'));
    // Gone from the array, and back as a new disk.
    await live.done('fault demo clear');
    await live.done('remove demo disk2');
    await live.done('add demo demo/disk2.img --force');
    expect((await live.status()).members.find(({ name }) => name === 'disk2')).toMatchObject({
      state: 'spare',
    });
  });

  test('a scrub finds what reads wrong, and nothing once that is cleared', async () => {
    await using live = await Live.make(raid5);
    await live.done('fault demo disk0 corrupt --offset 1M');
    expect((await live.run('scrub demo')).code).toBe(12);
    await live.done('fault demo disk0 clear');
    expect((await live.run('scrub demo')).code).toBe(0);
  });

  test('a disk that hangs holds up who needs it, and nobody once that is cleared', async () => {
    await using live = await Live.make(raid5);
    await live.done('fault demo disk3 hang');
    const writing = live.run('write demo', sampleBytes(2 * MIB));
    await live.until(async () => (await live.status()).state === 'active');
    expect(await live.done('fault demo list')).toContain('disk3: requests hang');
    await live.done('fault demo disk3 clear');
    expect((await writing).code).toBe(0);
    expect(await live.done('scrub demo')).toContain('no mismatch');
  });

  test('a server that is stopped while a disk hangs still stops clean', async () => {
    await using live = await Live.make(raid5);
    await live.done('fault demo disk3 hang');
    const writing = live.run('write demo', sampleBytes(2 * MIB));
    await live.until(async () => (await live.status()).state === 'active');
    expect(await live.stop()).toBe(0);
    await writing;
    expect(await live.status()).toMatchObject({ state: 'clean', served: null });
  });
});

test('a server that was killed leaves nothing in the way', async () => {
  await using scratch = await Scratch.make();
  await scratch.done(`create demo ${raid5} -q`);
  const killed = await Live.serve(scratch);
  await killed.stop('SIGKILL');
  expect((await scratch.run('status demo')).code).toBe(0);
  expect((await scratch.run('fail demo disk0')).code).toBe(0);
  const again = await Live.serve(scratch);
  expect((await again.status()).served).not.toBeNull();
  expect(await again.stop()).toBe(0);
});
