/**
 * A repository in an object store that others wrote (s3rver). It ignores the conditions of puts, as S3 itself did until 2024: so
 * here it is the lock that keeps a second writer out. What a store does that fails is in stores.slow.test.ts.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type Outcome, raidsim, Scratch, sampleBytes } from '../cli/raidsim.ts';
import { needPeer } from '../peer.ts';

const MIB = 1024 * 1024;
const credentials = { AWS_ACCESS_KEY_ID: 'S3RVER', AWS_SECRET_ACCESS_KEY: 'S3RVER' };

/** Says where it listens. */
async function serve(folder: string): Promise<{ readonly url: string; readonly stop: () => Promise<void> }> {
  const args = ['-d', folder, '-a', '127.0.0.1', '-p', '0', '--no-vhost-buckets', '--configure-bucket', 'b'];
  const server = spawn('s3rver', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(server, 'exit');
  let said = '';
  let port: string | undefined;
  while (port === undefined) {
    const [text] = (await Promise.race([once(server.stdout, 'data'), ended])) as [Buffer | number | null];
    if (!Buffer.isBuffer(text)) throw new Error(`s3rver has ended: ${said}`);
    said += text.toString();
    port = /:(\d+)\s*$/m.exec(said)?.[1];
  }
  return {
    url: `s3:http://127.0.0.1:${port}/b/backups`,
    stop: async () => {
      server.kill();
      await ended;
    },
  };
}

test('a server of S3 that others wrote: backups, one that is lost in part, a prune, and two writers at once', async (context) => {
  needPeer(
    spawnSync('s3rver', ['--version']).error === undefined,
    { program: 's3rver', from: 'npm (npm install -g --ignore-scripts s3rver@3.7.1)' },
    context,
  );
  await using scratch = await Scratch.make();
  const { url, stop } = await serve(scratch.path('store'));
  try {
    const run = (line: string): Promise<Outcome> =>
      raidsim([...line.split(' '), '--repo', url], credentials, { cwd: scratch.folder });
    const done = async (line: string): Promise<string> => {
      const { code, stdout, stderr } = await run(line);
      if (code !== 0) throw new Error(`raidsim ${line} ended with ${code}: ${stderr}`);
      return stdout;
    };
    const first = Buffer.from(sampleBytes(12 * MIB));
    await writeFile(scratch.path('image'), first);
    await done('backup create image --redundancy 2 -q');
    const second = Buffer.from(first);
    second.fill(7, 5 * MIB, 6 * MIB);
    await writeFile(scratch.path('image'), second);
    const { addedBytes } = JSON.parse(await done('backup create image --json')) as { addedBytes: number };
    expect(addedBytes).toBeLessThan(2 * MIB);

    const { backups } = JSON.parse(await done('backup list --json')) as { backups: { id: string }[] };
    for (const [index, content] of [first, second].entries()) {
      await done(`backup restore ${backups[index]?.id} --to back -q`);
      expect(Buffer.compare(await readFile(scratch.path('back')), content)).toBe(0);
    }

    const packs = join(scratch.path('store'), 'b', 'backups', 'packs');
    const [pack = ''] = (await readdir(packs)).filter((name) => name.endsWith('_S3rver_object')).sort();
    const name = pack.slice(0, pack.indexOf('._S3rver'));
    for (const file of await readdir(packs)) if (file.startsWith(`${name}.`)) await rm(join(packs, file));
    expect(await run('backup verify --read-data')).toMatchObject({
      code: 12,
      stdout: expect.stringContaining(name),
    });
    expect(await done('backup repair')).toContain(name);

    await writeFile(scratch.path('other'), sampleBytes(8 * MIB).toReversed());
    const together = await Promise.all([
      run('backup create image -q'),
      run('backup create other -q'),
      run('backup prune --keep-last 1'),
    ]);
    for (const { code, stderr } of together) expect([0, 4], stderr).toContain(code);
    await done('backup prune --keep-last 1');
    await done('backup verify --read-data');
    await done('backup create image -q');
    await done('backup restore latest --to back -q');
    expect(Buffer.compare(await readFile(scratch.path('back')), second)).toBe(0);
  } finally {
    await stop();
  }
});
