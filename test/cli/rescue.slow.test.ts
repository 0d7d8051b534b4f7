/** What is left of an array that has lost some of its data comes out, and what has not is named. */
import { readFile, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { FaultDevice, FileDevice, openArray } from '../../lib/index.ts';
import { Scratch, sampleBytes } from './raidsim.ts';

const MIB = 1024 * 1024;
const DATA_AT = MIB;
const PAGE = 4096;

/** A mirror of one disk, which has a place of two pages that cannot be read, and was copied from one that had it too. */
async function damaged(scratch: Scratch, content: Uint8Array): Promise<void> {
  await writeFile(scratch.path('data.bin'), content);
  await scratch.done('create demo -l 1 -n 2 -z 8M -q');
  await scratch.done('write demo --from data.bin -q');
  await scratch.done('fail demo disk0 -q');
  const bad = { offsetBytes: DATA_AT + 5 * MIB, lengthBytes: 2 * PAGE };
  const array = await openArray(scratch.path('demo'), {
    driver: 'event-loop',
    wrap: (below) =>
      new FaultDevice(below, {
        rules: [{ on: 'read', range: bad, fault: { kind: 'error', code: 'MEDIUM_ERROR' } }],
      }),
  });
  const spare = await FileDevice.create(scratch.path('disk2.img'), 8 * MIB);
  await array.add(spare, 'disk2');
  for await (const { doneBytes, totalBytes } of array.rebuild())
    expect(doneBytes).toBeLessThanOrEqual(totalBytes);
  await array.close();
  await scratch.done('assemble rescue disk2.img --run -q');
}

test('read --keep-going writes zeros for what is lost, lists it, and ends with 5', async () => {
  await using scratch = await Scratch.make();
  const content = sampleBytes(7 * MIB);
  await damaged(scratch, content);
  const stopped = await scratch.type('read rescue --to stopped.bin');
  expect(stopped).toMatchObject({ code: 5, stderr: expect.stringContaining('REDUNDANCY_LOST') });

  const lost = { offsetBytes: 5 * MIB, lengthBytes: 2 * PAGE };
  const expected = content.slice().fill(0, lost.offsetBytes, lost.offsetBytes + lost.lengthBytes);
  const { code, stderr } = await scratch.type('read rescue --to rescued.bin --keep-going -q');
  expect({ code, stderr }).toEqual({
    code: 5,
    stderr: `lost: ${lost.lengthBytes} bytes at ${lost.offsetBytes}\n`,
  });
  expect(Buffer.compare(await readFile(scratch.path('rescued.bin')), expected)).toBe(0);

  const json = await scratch.type('read rescue --to rescued.bin --keep-going --json');
  expect({ code: json.code, document: JSON.parse(json.stdout) }).toMatchObject({
    code: 5,
    document: { lost: [lost] },
  });
  const rest = await scratch.type('read rescue --to rest.bin --offset 6M --keep-going --json');
  expect({ code: rest.code, document: JSON.parse(rest.stdout) }).toMatchObject({
    code: 0,
    document: { lost: [] },
  });
});

test('a scrub that has nothing to compare with says so, and is no agreement', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 5 -n 3 -z 8M -c 64K -q');
  await scratch.done('fail demo disk0 -q');
  for (const verb of ['scrub demo', 'scrub demo --repair']) {
    const { code, stdout } = await scratch.type(verb);
    expect({ code, stdout }).toEqual({
      code: 10,
      stdout: 'nothing could be compared: demo is degraded, and has no redundancy left\n',
    });
  }
  const { code, stdout } = await scratch.type('scrub demo --json');
  const summary = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as object;
  expect({ code, summary }).toMatchObject({ code: 10, summary: { comparedBytes: 0, mismatches: 0 } });
});

test('status remembers what the last scrub has left', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 5 -n 3 -z 8M -c 64K -q');
  const disk = await readFile(scratch.path('demo', 'disk1.img'));
  disk[3 * MIB] = 1;
  await writeFile(scratch.path('demo', 'disk1.img'), disk);
  const mismatches = async (): Promise<unknown> =>
    (JSON.parse(await scratch.done('status demo --json')) as { mismatches: unknown }).mismatches;
  expect(await mismatches()).toBe(0);
  expect((await scratch.type('scrub demo -q')).code).toBe(12);
  expect(await mismatches()).toBe(1);
  expect(await scratch.done('status demo')).toMatch(/the last scrub found 1 mismatch, on \d{4}-\d\d-\d\dT/);
  await scratch.done('scrub demo --repair -q');
  expect(await mismatches()).toBe(0);
});
