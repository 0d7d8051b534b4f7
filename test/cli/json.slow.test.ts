/** What programs read: the keys of interface.md, one by one, in their order. */
import { readFile, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { Scratch, sampleBytes } from './raidsim.ts';

type Json = Record<string, unknown>;

const statusKeys = [
  'name',
  'uuid',
  'level',
  'layout',
  'chunkBytes',
  'sizeBytes',
  'metadata',
  'events',
  'state',
  'degraded',
  'consistencyPolicy',
  'members',
  'sync',
  'mismatches',
  'served',
];

function parsed(text: string): Json {
  return JSON.parse(text) as Json;
}

function lines(text: string): readonly Json[] {
  return text.trimEnd().split('\n').map(parsed);
}

test('one document where one is asked for, lines where it goes on, and errors on standard error', async () => {
  await using scratch = await Scratch.make();
  await writeFile(scratch.path('data.bin'), sampleBytes(2_000_000));

  const made = parsed(await scratch.done('create demo -l 5 -n 4 -z 16M -c 64K --seed 7 --json'));
  expect(Object.keys(made)).toEqual(statusKeys);
  expect(made).toMatchObject({
    name: 'demo',
    level: 'raid5',
    layout: 'left-symmetric',
    chunkBytes: 65536,
    sizeBytes: 3 * 15 * 1024 * 1024,
    metadata: '1.2',
    state: 'clean',
    degraded: 0,
    consistencyPolicy: 'resync',
    sync: null,
    mismatches: 0,
    served: null,
  });
  expect(made['uuid']).toMatch(/^[\da-f]{8}(:[\da-f]{8}){3}$/);
  expect(made['events']).toEqual(expect.any(Number));
  const members = made['members'] as readonly Json[];
  expect(members).toHaveLength(4);
  expect(Object.keys(members[0] ?? {})).toEqual(['name', 'source', 'slot', 'state', 'errors']);
  expect(members[0]).toEqual({
    name: 'disk0',
    source: 'disk0.img',
    slot: 0,
    state: 'in_sync',
    errors: { read: 0, write: 0, corrected: 0 },
  });

  const written = parsed(await scratch.done('write demo --from data.bin --offset 4K --json'));
  expect(written).toEqual({
    offsetBytes: 4096,
    lengthBytes: 2_000_000,
    seconds: expect.any(Number),
    interrupted: false,
  });
  const read = await scratch.run('read demo --offset 4K --length 1000 --json --to -');
  expect(read.stdout).toBe(Buffer.from(sampleBytes(1000)).toString('utf8'));
  expect(Object.keys(parsed(read.stderr))).toEqual(['offsetBytes', 'lengthBytes', 'seconds', 'interrupted']);
  await scratch.done('read demo --offset 4K --length 2000000 --to copy.bin --json');
  const copy = await readFile(scratch.path('copy.bin'));
  expect(Buffer.compare(copy, sampleBytes(2_000_000))).toBe(0);

  const failed = parsed(await scratch.done('fail demo disk2 --json'));
  expect(Object.keys(failed)).toEqual(statusKeys);
  expect(failed).toMatchObject({ state: 'degraded', degraded: 1 });
  expect(failed['members']).toContainEqual(
    expect.objectContaining({ name: '-', source: null, slot: 2, state: 'missing' }),
  );
  expect(failed['members']).toContainEqual(
    expect.objectContaining({ name: 'disk2', slot: null, state: 'faulty' }),
  );

  const spared = parsed(await scratch.done('add demo demo/disk4.img --json'));
  expect(spared['state']).toBe('recovering');
  expect(Object.keys(spared['sync'] as Json)).toEqual([
    'action',
    'doneBytes',
    'totalBytes',
    'bytesPerSecond',
    'etaSeconds',
  ]);
  expect(spared['sync']).toMatchObject({ action: 'recover', totalBytes: 15 * 1024 * 1024 });

  const rebuilt = lines(await scratch.done('rebuild demo --json'));
  const [progress, summary] = [rebuilt[0] ?? {}, rebuilt.at(-1) ?? {}];
  expect(Object.keys(progress)).toEqual([
    'type',
    'action',
    'doneBytes',
    'totalBytes',
    'bytesPerSecond',
    'etaSeconds',
  ]);
  expect(summary).toEqual({
    type: 'summary',
    state: 'clean',
    degraded: 0,
    interrupted: false,
    seconds: expect.any(Number),
  });

  const scrubbed = lines(await scratch.done('scrub demo --json'));
  expect(scrubbed.at(-1)).toEqual({
    type: 'summary',
    action: 'check',
    fromBytes: 0,
    doneBytes: 15 * 1024 * 1024,
    totalBytes: 15 * 1024 * 1024,
    comparedBytes: 15 * 1024 * 1024,
    mismatches: 0,
    remaining: 0,
    interrupted: false,
    seconds: expect.any(Number),
  });

  const listed = JSON.parse(await scratch.done('list --json')) as readonly Json[];
  expect(listed).toHaveLength(1);
  expect(Object.keys(listed[0] ?? {})).toEqual(['folder', 'status', 'error']);

  const examined = JSON.parse(await scratch.done('examine demo/disk0.img --json')) as readonly Json[];
  expect(examined[0]).toMatchObject({
    file: 'demo/disk0.img',
    version: '1.2',
    level: 'raid5',
    raidDevices: 4,
    role: 0,
    checksumCorrect: true,
  });

  const plan = parsed(await scratch.done('explain demo write --offset 0 --length 4K --json'));
  expect(Object.keys(plan)).toEqual(['request', 'offsetBytes', 'lengthBytes', 'plan', 'lost']);
  const map = parsed(await scratch.done('explain demo layout --stripes 2 --json'));
  expect(map).toMatchObject({ level: 'raid5', memberCount: 4, unitBytes: 65536 });

  const wrong = await scratch.type('fail demo disk9 --json');
  expect({ code: wrong.code, stdout: wrong.stdout }).toEqual({ code: 2, stdout: '' });
  expect(parsed(wrong.stderr)).toMatchObject({
    type: 'error',
    code: 'NO_SUCH_MEMBER',
    exitCode: 2,
    reaction: 'fix-call',
    message: expect.stringContaining('disk9'),
  });
  const unknown = await scratch.type('status demo --json --wat');
  expect(parsed(unknown.stderr)).toMatchObject({ type: 'error', code: 'BAD_ARGUMENT', exitCode: 2 });
});
