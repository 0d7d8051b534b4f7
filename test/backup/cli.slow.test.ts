/** `backup` and `export` as a user calls them. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { DirectoryStore } from '../../lib/backup/directory.ts';
import { Lock, processWitness } from '../../lib/backup/lock.ts';
import { loadSum } from '../../lib/backup/seal.ts';
import { hexSum } from '../../lib/backup/settings.ts';
import { realHost } from '../../lib/host.ts';
import { Live } from '../cli/live.ts';
import { raidsim, Scratch, sampleBytes, startRaidsim } from '../cli/raidsim.ts';
import { expectSame } from './world.ts';

type Json = Record<string, unknown>;

test('an array is backed up, lost, and brought back; and the repository repairs itself', async () => {
  await using scratch = await Scratch.make();
  const data = sampleBytes(3_000_000);
  await writeFile(scratch.path('data.bin'), data);
  await scratch.done('create demo -l 5 -n 3 -z 8M -c 64K -q');
  await scratch.done('write demo --from data.bin -q');
  const before = JSON.parse(await scratch.done('status demo --json')) as Json;

  const made = JSON.parse(await scratch.done('backup create demo --repo repo --redundancy 2 --json')) as Json;
  expect(made).toMatchObject({
    array: 'demo',
    uuid: before['uuid'],
    sizeBytes: before['sizeBytes'],
    number: 1,
  });
  await scratch.done('backup create demo --repo repo -q');
  const { backups } = JSON.parse(await scratch.done('backup list --repo repo --json')) as { backups: Json[] };
  expect(backups).toHaveLength(2);
  expect(backups[0]).toMatchObject({
    id: made['id'],
    array: 'demo',
    createdAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/),
    sizeBytes: before['sizeBytes'],
  });
  expect(backups[1]).toMatchObject({ number: 2, addedBytes: 0 });

  // A pack rots, and is read through, named, and made again.
  const [pack = ''] = await readdir(scratch.path('repo', 'packs'));
  const bytes = await readFile(scratch.path('repo', 'packs', pack));
  await writeFile(
    scratch.path('repo', 'packs', pack),
    bytes.map((byte, index) => (index === 5000 ? byte ^ 1 : byte)),
  );
  await scratch.done(`backup restore ${String(made['id'])} --repo repo --to copy.img -q`);
  expectSame(
    (await readFile(scratch.path('copy.img'))).subarray(0, data.byteLength),
    data,
    'the restored file',
  );
  const damaged = await scratch.type('backup verify --repo repo --read-data');
  expect(damaged).toMatchObject({ code: 12, stdout: expect.stringContaining(`packs/${pack}`) });
  expect(await scratch.done('backup repair --repo repo')).toContain(`made again: packs/${pack}`);
  expectSame(await readFile(scratch.path('repo', 'packs', pack)), bytes, 'the repaired pack');
  await scratch.done('backup verify --repo repo --read-data');

  // Onto an array that holds something else.
  await scratch.done('create other -l 1 -n 2 -z 24M -q');
  await writeFile(scratch.path('junk.bin'), new Uint8Array(5_000_000).fill(0xee));
  await scratch.done('write other --from junk.bin -q');
  await scratch.done('backup restore latest --repo repo --to other -q');
  await scratch.done(`read other --length ${String(before['sizeBytes'])} --to back.img -q`);
  expectSame(
    await readFile(scratch.path('back.img')),
    await readFile(scratch.path('copy.img')),
    'the other array',
  );

  expect(await scratch.done('backup prune --repo repo --keep-last 1 --dry-run')).toContain(
    'would be removed',
  );
  await scratch.done('backup prune --repo repo --keep-last 1');
  expect(JSON.parse(await scratch.done('backup list --repo repo --json'))).toMatchObject({
    backups: [{ number: 2 }],
  });
});

test('an encrypted repository wants its passphrase', async () => {
  await using scratch = await Scratch.make();
  await writeFile(scratch.path('disk.img'), sampleBytes(100_000));
  await writeFile(scratch.path('secret'), 'open sesame\n');
  const cwd = scratch.folder;
  const made = await raidsim(
    ['backup', 'create', 'disk.img', '--repo', 'repo'],
    { RAIDSIM_PASSPHRASE: 'open sesame' },
    { cwd },
  );
  expect(made).toMatchObject({ code: 0, stderr: expect.stringContaining('encrypted') });
  const none = await scratch.type('backup list --repo repo');
  expect(none).toMatchObject({ code: 2, stderr: expect.stringContaining('--passphrase-file') });
  await scratch.done('backup restore latest --repo repo --passphrase-file secret --to out.img -q');
  expectSame(await readFile(scratch.path('out.img')), sampleBytes(100_000), 'the restored file');
});

test('images of arrays and backups are what the array holds, incremental ones too', async () => {
  await using scratch = await Scratch.make();
  const run = (program: string, ...args: string[]) =>
    promisify(execFile)(program, args, { cwd: scratch.folder });
  await writeFile(scratch.path('data.bin'), sampleBytes(3_000_000));
  await scratch.done('create demo -l 1 -n 2 -z 8M -q');
  await scratch.done('write demo --from data.bin -q');
  await scratch.done('backup create demo --repo repo --chunk 64K -q');
  await scratch.done('export latest --repo repo --to mon.qcow2 -q');
  // It was held meanwhile, and is no more.
  expect(await readdir(scratch.path('repo/mounts'))).toEqual([]);
  const [first] = (JSON.parse(await scratch.done('backup list --repo repo --json')) as { backups: Json[] })
    .backups;
  await scratch.done('write demo --from data.bin --offset 1M --length 100K -q');
  await scratch.done('backup create demo --repo repo -q');
  await scratch.done(
    `export latest --repo repo --to tue.qcow2 --since ${String(first?.['id'])} --backing mon.qcow2 -q`,
  );
  await scratch.done('export demo --to demo.img -q');
  await scratch.done('export demo --to demo.qcow2 -q');
  await scratch.done('read demo --to read.img -q');
  expectSame(
    await readFile(scratch.path('demo.img')),
    await readFile(scratch.path('read.img')),
    'the raw image',
  );
  for (const image of ['tue.qcow2', 'demo.qcow2']) {
    await run('qemu-img', 'check', image);
    await run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', image, 'read.img');
  }
  expect((await readFile(scratch.path('tue.qcow2'))).byteLength).toBeLessThan(600_000);
});

test('a backup is mounted: nbdcopy and qemu-img read what was backed up, nobody writes', async () => {
  await using scratch = await Scratch.make();
  const run = promisify(execFile);
  const data = sampleBytes(3_000_000);
  // A whole number of sectors: other programs round.
  await writeFile(
    scratch.path('image'),
    Buffer.concat([data, new Uint8Array(8 * 2 ** 20 - data.byteLength)]),
  );
  await scratch.done('backup create image --repo repo --chunk 64K -q');
  await writeFile(scratch.path('later'), new Uint8Array(2 ** 20).fill(3));
  const mount = startRaidsim(
    ['backup', 'mount', 'latest', '--repo', 'repo', '--socket', 'b.sock', '--json'],
    scratch.folder,
  );
  const ended = once(mount, 'exit');
  const [line] = (await once(mount.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
  const { id, uris, sizeBytes } = JSON.parse(line.toString()) as {
    id: string;
    uris: string[];
    sizeBytes: number;
  };
  expect(sizeBytes).toBe(8 * 2 ** 20);
  const [uri = ''] = uris;
  await run('nbdcopy', [uri, scratch.path('copied')]);
  expectSame(await readFile(scratch.path('copied')), await readFile(scratch.path('image')), 'nbdcopy');
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', scratch.path('image'), uri]);
  await expect(run('nbdcopy', [scratch.path('later'), uri])).rejects.toThrow();
  // Backups are made meanwhile.
  await scratch.done('backup create later --repo repo -q');
  const remove = `backup prune --repo repo --remove ${id}`;
  const busy = await scratch.type(remove);
  expect(busy.stderr).toMatch(new RegExp(`^error BUSY: .*is read by process ${mount.pid} on`));
  mount.kill('SIGTERM');
  expect((await ended)[0]).toBe(0);
  expect(await readdir(scratch.folder)).not.toContain('b.sock');
  expect(await scratch.done(remove)).toContain(`removed: ${id}`);
  // Off this machine a backup is as secret as an array, and offers as much.
  const open = 'backup mount latest --repo repo --listen 0.0.0.0:0';
  const refused = await scratch.type(open);
  expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining('--tls-psk')]);
  await writeFile(scratch.path('keys'), `me:${'ab'.repeat(32)}\n`);
  const secret = startRaidsim([...open.split(' '), '--tls-psk', 'keys', '--json'], scratch.folder);
  const over = once(secret, 'exit');
  const [ready] = (await once(secret.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
  const [address = ''] = (JSON.parse(ready.toString()) as { uris: string[] }).uris;
  const { host } = new URL(address.replace('0.0.0.0', '127.0.0.1').replace(/^\w+:/, 'http:'));
  const keys = encodeURIComponent(scratch.path('keys'));
  const found = await run('nbdinfo', ['--size', `nbds://me@${host}/?tls-psk-file=${keys}`]);
  expect(found.stdout.trim()).toBe(String(2 ** 20));
  await expect(run('nbdinfo', ['--size', `nbd://${host}/`])).rejects.toThrow();
  secret.kill('SIGTERM');
  expect((await over)[0]).toBe(0);
});

test('prune that would keep nothing by its rules lets nothing go', async () => {
  await using scratch = await Scratch.make();
  await writeFile(scratch.path('disk.img'), sampleBytes(1000));
  await scratch.done('backup create disk.img --repo repo -q');
  for (const rules of ['--keep-last 0', '--keep-daily 0 --keep-weekly 0']) {
    const outcome = await scratch.type(`backup prune --repo repo ${rules}`);
    expect(outcome).toMatchObject({ code: 2, stderr: expect.stringContaining('would let all of them go') });
  }
  expect(await scratch.done('backup list --repo repo')).toContain('disk.img');
  expect(await scratch.done('backup prune --repo repo --keep-last 0 --keep-daily 1')).toContain('(daily)');
});

test('who finds another process writing is told which, and loses nothing', async () => {
  await using scratch = await Scratch.make();
  await writeFile(scratch.path('disk.img'), sampleBytes(200_000));
  await scratch.done('backup create disk.img --repo repo -q');
  const lock = await Lock.take(new DirectoryStore(scratch.path('repo')), realHost, processWitness);
  for (const line of ['create disk.img', 'prune --keep-last 1', 'repair']) {
    const { code, stderr } = await scratch.type(`backup ${line} --repo repo`);
    expect([line, code, stderr]).toEqual([
      line,
      4,
      expect.stringMatching(`is being written by process ${process.pid} `),
    ]);
  }
  // Who only reads waits for nobody.
  await scratch.done('backup verify --repo repo --read-data');
  await lock.release();
  await scratch.done('backup create disk.img --repo repo -q');
  expect(JSON.parse(await scratch.done('backup list --repo repo --json'))).toMatchObject({
    backups: [{ number: 1 }, { number: 2 }],
  });
});

test('a repository of a newer raidsim is left alone', async () => {
  await using scratch = await Scratch.make();
  await writeFile(scratch.path('disk.img'), sampleBytes(1000));
  await scratch.done('backup create disk.img --repo repo -q');
  const sum = await loadSum();
  for (const copy of [0, 1, 2]) {
    const path = scratch.path('repo', `settings.${copy}`);
    const text = (await readFile(path, 'utf8')).slice(0, -17).replace('"version": 1', '"version": 2');
    await writeFile(path, `${text}${hexSum(sum(Buffer.from(text)))}\n`);
  }
  const before = await filesOf(scratch.path('repo'));
  for (const line of [
    'create disk.img',
    'list',
    'restore latest --to out.img',
    'verify',
    'prune',
    'repair',
  ]) {
    const { code, stderr } = await scratch.type(`backup ${line} --repo repo`);
    expect([line, code, stderr]).toEqual([line, 3, expect.stringContaining('use a newer raidsim')]);
  }
  expect(await filesOf(scratch.path('repo'))).toEqual(before);
  expect(await readdir(scratch.folder)).toEqual(['disk.img', 'repo']);
});

async function filesOf(folder: string): Promise<readonly string[]> {
  return (await readdir(folder, { recursive: true })).sort();
}
test('an array that is served: whoever wants it to himself is told which verbs do the same, and they do', async () => {
  await using live = await Live.make('-l 1 -n 2 -z 8M');
  const data = sampleBytes(600_000);
  await live.done('write demo -q', data);
  const advised = async (line: string): Promise<readonly string[]> => {
    const { code, stderr } = await live.run(line);
    expect([code, stderr]).toEqual([4, expect.stringContaining('BUSY: demo is served')]);
    return stderr.split('\n').flatMap((each) => /do: raidsim (.*)/.exec(each)?.[1] ?? []);
  };
  const exporting = await advised('export demo --to out.img');
  expect(exporting).toHaveLength(2);
  for (const line of exporting) await live.done(`${line} -q`);
  const exported = await readFile(live.scratch.path('out.img'));
  expectSame(exported.subarray(0, data.byteLength), data, 'the image');
  await live.done('write demo -q', new Uint8Array(600_000));
  const restoring = await advised('backup restore latest --repo REPO --to demo');
  expect(restoring).toHaveLength(2);
  for (const line of restoring) await live.done(`${line} -q`);
  await live.done('read demo --to back -q');
  expectSame(await readFile(live.scratch.path('back')), exported, 'what was restored');
  expect(await live.stop()).toBe(0);
});
