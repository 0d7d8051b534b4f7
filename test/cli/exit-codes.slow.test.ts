/** The exit codes of interface.md, frozen: each as a user comes by it, and the whole table from error to code. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { open, rm, truncate } from 'node:fs/promises';
import { describe, expect, test } from 'vitest';
import { failure } from '../../cli/failure.ts';
import { type ErrorCode, errorCodes, RaidError } from '../../lib/index.ts';
import { program, Scratch, startRaidsim } from './raidsim.ts';

const table: Readonly<Record<ErrorCode, number>> = {
  OUT_OF_RANGE: 2,
  UNALIGNED: 2,
  ZERO_LENGTH: 2,
  READ_ONLY: 2,
  CLOSED: 2,
  BAD_ARGUMENT: 2,
  BAD_GEOMETRY: 2,
  NO_SUCH_ARRAY: 2,
  NO_SUCH_MEMBER: 2,
  NOT_SUPPORTED: 2,
  NO_SUCH_REPOSITORY: 2,
  NO_SUCH_BACKUP: 2,
  WRONG_PASSPHRASE: 2,
  MEDIUM_ERROR: 5,
  SHORT_READ: 5,
  WRITE_FAILED: 5,
  FLUSH_FAILED: 5,
  // A file that finds no room; an array's own write that finds none is REDUNDANCY_LOST.
  NO_SPACE: 4,
  MEMBER_GONE: 5,
  PROTOCOL_VIOLATION: 5,
  REDUNDANCY_LOST: 5,
  ARRAY_FAILED: 5,
  READ_ABANDONED: 5,
  BAD_MANIFEST: 3,
  BAD_MAGIC: 3,
  SUPERBLOCK_BROKEN: 3,
  UNSUPPORTED_FEATURE: 3,
  BAD_REPOSITORY: 3,
  RESHAPE_IN_PROGRESS: 3,
  LAST_COPY: 4,
  BUSY: 4,
  HOLDS_DATA: 4,
  SEVERAL_ARRAYS: 4,
  ALREADY_IN_ARRAY: 4,
  DUPLICATE_MEMBER: 4,
  FORKED_HISTORY: 4,
  MEMBERS_MISSING: 4,
  EVENTS_DISAGREE: 4,
  STORE_FAILED: 4,
  NOT_ENOUGH_MEMBERS: 4,
  DIRTY_DEGRADED: 4,
  WRITE_MAYBE_APPLIED: 6,
};

test.each(errorCodes)('%s ends with its code', async (code) => {
  const { exitCode, message } = await failure(new RaidError(code, 'what happened'));
  expect({ exitCode, message }).toEqual({ exitCode: table[code], message: 'what happened' });
});

test('what nobody has foreseen ends with 1, and asks to be reported', async () => {
  expect(await failure(new TypeError('undefined is not a function'))).toMatchObject({
    code: null,
    exitCode: 1,
  });
});

test('what waits for something that never comes ends with 1 too, and not without a word', () => {
  const never =
    "import fs from 'node:fs/promises'; import { syncBuiltinESMExports } from 'node:module'; fs.stat = () => new Promise(() => {}); syncBuiltinESMExports();";
  const patch = `data:text/javascript,${encodeURIComponent(never)}`;
  const { status, stderr } = spawnSync(process.execPath, ['--import', patch, program, 'status', 'demo'], {
    encoding: 'utf8',
  });
  expect([status, stderr]).toEqual([1, expect.stringContaining('ended before it was done')]);
});

test('what the system refuses is told in words', async () => {
  const denied = Object.assign(new Error("EACCES: permission denied, open '/x'"), {
    code: 'EACCES',
    path: '/x',
  });
  expect(await failure(denied)).toMatchObject({ exitCode: 2, message: '/x: permission denied' });
  const full = Object.assign(new Error('ENOSPC: no space left on device, write'), {
    code: 'ENOSPC',
    path: '/x',
  });
  expect(await failure(full)).toMatchObject({ code: 'NO_SPACE', exitCode: 4 });
});

test('what lies behind an error is told, too', async () => {
  const cause = new RaidError('NO_SPACE', 'disk1.img: the file system is full');
  const { message } = await failure(new RaidError('REDUNDANCY_LOST', 'too few disks took it', { cause }));
  expect(message).toBe('too few disks took it\n  because: disk1.img: the file system is full');
});

describe.concurrent('as a user comes by them', () => {
  test('0 healthy, 10 degraded and recovering, 4 last copy, 11 failed', async () => {
    await using scratch = await Scratch.make();
    await scratch.done('create demo -l 5 -n 3 -z 8M -c 64K -q');
    expect((await scratch.run('status demo -q')).code).toBe(0);
    await scratch.done('fail demo disk0 -q');
    expect(await scratch.type('status demo -q')).toEqual({ code: 10, stdout: '', stderr: '' });
    expect((await scratch.type('fail demo disk1')).code).toBe(4);
    expect((await scratch.type('rebuild demo -q')).code).toBe(10);
    await rm(scratch.path('demo', 'disk1.img'));
    expect((await scratch.run('status demo --quiet')).code).toBe(11);
  });

  test('2 wrong call, 3 not what it claims, and nothing is left behind', async () => {
    await using scratch = await Scratch.make();
    expect((await scratch.run('create demo --level 5 --disks many')).code).toBe(2);
    expect((await scratch.type('create demo -l 5 -n 3 -z 1K')).code).toBe(2);
    expect((await scratch.type('status demo')).code).toBe(2);
    expect((await scratch.run(`examine ${process.execPath}`)).code).toBe(3);
  });

  test('4 what is there would be lost', async () => {
    await using scratch = await Scratch.make();
    await scratch.done('create demo -l 1 -n 2 -z 8M -q');
    const again = 'create other demo/disk0.img demo/disk1.img -l 1';
    const { code, stderr } = await scratch.run(again);
    expect({ code, names: stderr.includes('disk0.img') }).toEqual({ code: 4, names: true });
    await scratch.done(`${again} --force --assume-clean -q`);
  });

  test('5 data lost: a truncated disk of an array without redundancy', async () => {
    await using scratch = await Scratch.make();
    await scratch.done('create demo -l linear -n 2 -z 8M -q');
    const slow = startRaidsim(['read', 'demo', '--to', '-'], scratch.folder);
    // Truncated under a reader that has to wait for us: earlier, the array would not start.
    await once(slow.stdout ?? process.stdin, 'readable');
    await truncate(scratch.path('demo', 'disk1.img'), 1024 * 1024);
    slow.stdout?.resume();
    const [code] = await once(slow, 'close');
    expect(code).toBe(5);
  });

  test('12 mismatches remain, until they are repaired', async () => {
    await using scratch = await Scratch.make();
    await scratch.done('create demo -l 5 -n 3 -z 8M -c 64K -q');
    const disk = await open(scratch.path('demo', 'disk1.img'), 'r+');
    await disk.write(new Uint8Array([1]), 0, 1, 3 * 1024 * 1024);
    await disk.close();
    expect((await scratch.run('scrub demo -q')).code).toBe(12);
    expect((await scratch.type('scrub demo --repair -q')).code).toBe(0);
    expect((await scratch.type('scrub demo -q')).code).toBe(0);
  });

  test('130 interrupted: it says where it stopped, keeps others out while it runs, and goes on there', async () => {
    await using scratch = await Scratch.make();
    await scratch.done('create demo -l 1 -n 2 -z 64M -q');
    await scratch.done('fail demo disk1 -q');
    const slow = startRaidsim(
      ['rebuild', 'demo', '--onto', 'new.img', '--limit', '1M', '--json'],
      scratch.folder,
    );
    slow.stdout?.setEncoding('utf8');
    let lines = '';
    while (!/"doneBytes":[1-9]/.test(lines)) lines += (await once(slow.stdout ?? process.stdin, 'data'))[0];

    const other = await scratch.type('fail demo disk0');
    expect(other.code).toBe(4);
    expect(other.stderr).toContain(`process ${slow.pid}`);
    const status = await scratch.type('status demo');
    expect(status.stdout).toContain(`in use by process ${slow.pid}`);

    slow.kill('SIGINT');
    slow.stdout?.on('data', (text: string) => {
      lines += text;
    });
    const [code] = await once(slow, 'close');
    expect(code).toBe(130);
    const summary = JSON.parse(lines.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown>;
    expect(summary).toMatchObject({ type: 'summary', interrupted: true, state: 'recovering' });
    const after = JSON.parse((await scratch.type('status demo --json')).stdout) as {
      sync: { doneBytes: number };
    };
    expect(after.sync.doneBytes).toBeGreaterThan(0);
    expect((await scratch.type('rebuild demo')).stdout).toContain('demo is clean again');
  });

  test('130 interrupted: a scrub says where it stopped and how to go on, and there it goes on', async () => {
    await using scratch = await Scratch.make();
    // Sparse, and long enough to be met in the middle.
    await scratch.done('create demo -l 1 -n 2 -z 64G -q');
    const slow = startRaidsim(['scrub', 'demo', '--json'], scratch.folder);
    slow.stdout?.setEncoding('utf8');
    let said = '';
    slow.stdout?.on('data', (text: string) => {
      said += text;
    });
    await once(slow.stdout ?? process.stdin, 'data');
    slow.kill('SIGINT');
    const [code] = await once(slow, 'close');
    expect(code).toBe(130);
    const summary = JSON.parse(said.trimEnd().split('\n').at(-1) ?? '') as { doneBytes: number };
    expect(summary).toMatchObject({ type: 'summary', interrupted: true });
    expect(summary.doneBytes).toBeGreaterThan(0);
    const almost = 68_600_000_000;
    expect(summary.doneBytes).toBeLessThan(almost);
    const lines = (await scratch.done(`scrub demo --from ${almost} --json`)).trimEnd().split('\n');
    expect(JSON.parse(lines.at(-1) ?? '')).toMatchObject({ fromBytes: almost, mismatches: 0 });
  });
});
