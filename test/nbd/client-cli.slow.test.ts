/** Arrays over NBD exports on the command line, from creation to a member that is replaced. */
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { seededRandom } from '../../lib/host.ts';
import { MIB } from '../../lib/units.ts';
import { raidsim, startRaidsim } from '../cli/raidsim.ts';
import { randomBytes } from '../conformance/seed.ts';
import { needPeer } from '../peer.ts';
import { kit, Lab } from './client-peers.ts';

const lab = new Lab();
afterAll(() => lab.remove());

test('create, write, fail, add, rebuild, assemble: a URI goes wherever a file does', async (context) => {
  needPeer(kit.isThere, kit, context);
  const servers = await Promise.all(Array.from({ length: 4 }, () => lab.nbdkit('file', lab.file(16 * MIB))));
  const [a = '', b = '', c = '', spare = ''] = servers.map(({ uri }) => uri);
  const array = join(lab.folder, 'array');
  const run = async (code: number, ...args: readonly string[]): Promise<string> => {
    const outcome = await raidsim(args);
    expect(outcome.code, `${args.join(' ')}\n${outcome.stderr}`).toBe(code);
    return outcome.stdout + outcome.stderr;
  };
  const data = randomBytes(seededRandom(1), 3 * MIB + 1);
  const from = join(lab.folder, 'from');
  const to = join(lab.folder, 'to');
  await writeFile(from, data);
  const expectData = async (): Promise<void> => {
    rmSync(to, { force: true });
    await run(0, 'read', array, '--length', String(data.byteLength), '--to', to);
    expect(Buffer.compare(await readFile(to), data)).toBe(0);
  };

  await run(0, 'create', array, '--level', '5', '--chunk', '64K', a, b, c, '--assume-clean');
  const manifest = JSON.parse(await readFile(join(array, 'raidsim.json'), 'utf8')) as { members: string[] };
  expect(manifest.members).toEqual([a, b, c]);
  await run(0, 'write', array, '--from', from);
  await expectData();
  expect(await run(0, 'examine', b)).toContain('raid5');

  await run(0, 'fail', array, b);
  expect(await run(10, 'status', array)).toContain('DEGRADED');
  await expectData();
  await run(0, 'add', array, spare);
  await run(0, 'rebuild', array);
  await run(0, 'remove', array, b);
  await run(0, 'scrub', array);

  rmSync(array, { recursive: true });
  await run(0, 'assemble', array, c, spare, a);
  await run(0, 'status', array);
  await expectData();

  servers[0]?.signal('SIGKILL');
  expect(await run(10, 'status', array)).toContain('cannot be reached');
  await expectData();
});

test('path list: the servers of a member of several, of an array at rest and in use, and which of them is gone', async (context) => {
  needPeer(kit.isThere, kit, context);
  const disk = lab.file(16 * MIB);
  const servers = await Promise.all([1, 2].map(() => lab.nbdkit('file', disk)));
  const [a = '', b = ''] = servers.map(({ uri }) => uri);
  const array = join(lab.folder, 'paths');
  const list = async (): Promise<string> => {
    const { code, stdout, stderr } = await raidsim(['path', 'list', array]);
    expect(code, stderr).toBe(0);
    return stdout;
  };
  const created = await raidsim([
    'create',
    array,
    '--level',
    '1',
    `${a}|${b}`,
    lab.file(16 * MIB),
    '--force',
  ]);
  expect(created.code, created.stderr).toBe(0);
  const atRest = await list();
  for (const uri of [a, b]) expect(atRest).toContain(`${uri} active ready running`);
  expect(atRest).toContain("policy='service-time 0'");
  // Nobody has it open, and who lists it does not write; the disk may be written all the same.
  expect(atRest).toContain('wp=rw');

  const serving = startRaidsim(['serve', array], lab.folder);
  const ended = once(serving, 'exit');
  await once(serving.stdout as NodeJS.ReadableStream, 'data');
  for (const uri of [a, b]) expect(await list()).toContain(`${uri} active ready running`);
  await servers[0]?.signal('SIGKILL');
  const from = join(lab.folder, 'block');
  await writeFile(from, new Uint8Array(MIB).fill(1));
  const written = await raidsim(['write', array, '--from', from]);
  expect(written.code, written.stderr).toBe(0);
  const live = await list();
  expect(live).toContain(`${a} failed faulty offline`);
  expect(live).toContain(`${b} active ready running`);
  serving.kill('SIGTERM');
  expect((await ended)[0]).toBe(0);
  expect(await list()).toContain(`${a} failed faulty offline`);
  await servers[1]?.signal('SIGKILL');
  expect(await list()).toContain('no path: the array does without it');
});

test('what cannot be a member is refused before anything is made, and says why', async (context) => {
  needPeer(kit.isThere, kit, context);
  const server = await lab.nbdkit('file', lab.file(16 * MIB));
  const folder = join(lab.folder, 'refused');
  const refusals: readonly (readonly [number, string, string])[] = [
    [4, server.uri, 'twice'],
    [2, 'nbd+unix:///?socket=/nowhere/x.sock', 'cannot be reached'],
    [2, 'nbd://127.0.0.1:1/x', 'cannot be reached'],
    [2, 'nbd+unix://x?socket=/s', 'three slashes'],
    [2, 'http://host/disk', 'not a URI of NBD'],
  ];
  for (const [code, other, says] of refusals) {
    const outcome = await raidsim(['create', folder, '--level', '1', server.uri, other]);
    expect([outcome.code, outcome.stderr.includes(says)], outcome.stderr).toEqual([code, true]);
  }
});
