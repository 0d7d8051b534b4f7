/**
 * What an array does to the life of its process: an idle one does not keep it alive, a request under way does, and so
 * does closing. Each claim is a program of its own, which prints what it has seen; a program that hangs fails by the
 * time limit of the test.
 */
import { spawn } from 'node:child_process';
import { resolve } from 'node:path';
import { describe, expect, test } from 'vitest';

const dist = resolve(import.meta.dirname, '../../dist/lib');

function run(
  body: string,
  driver: string,
): Promise<{ readonly code: number | null; readonly output: string }> {
  const program = `
    import { RaidArray } from ${JSON.stringify(`${dist}/array/array.js`)};
    import { MemoryDevice } from ${JSON.stringify(`${dist}/device/memory.js`)};
    import { DelayDevice } from ${JSON.stringify(`${dist}/device/delay.js`)};
    const MIB = 2 ** 20;
    const host = { sleep: (ms) => new Promise((wake) => setTimeout(wake, ms)) };
    const geometry = { level: 'raid5', layout: 'left-symmetric', memberCount: 4, chunkBytes: 65536, memberBytes: 8 * MIB };
    const memory = () => new MemoryDevice({ sizeBytes: 8 * MIB });
    const slow = () => new DelayDevice(memory(), { host, delayMs: 2 });
    const make = (member = ${driver === 'event-loop' ? 'slow' : 'memory'}) =>
      new RaidArray({ geometry, members: [1, 2, 3, 4].map(() => member()), driver: '${driver}', lanes: 2 });
    ${body}
  `;
  return new Promise((done) => {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    child.stdout.on('data', (bytes: Buffer) => {
      output += bytes;
    });
    child.stderr.on('data', (bytes: Buffer) => {
      output += bytes;
    });
    child.on('close', (code) => done({ code, output }));
  });
}

// Side by side: most of the time of each is the start of Node.
describe.concurrent('a program with an array on lanes', () => {
  test('that has not been used ends by itself', async () => {
    expect(await run(`make();`, 'lanes')).toEqual({ code: 0, output: '' });
  });

  test('ends by itself when all has been done, though it was not closed', async () => {
    const program = `
        const array = make();
        await Promise.all([array.write(0, new Uint8Array(8 * MIB)), array.read(0, new Uint8Array(100))]);
        await array.fail(1);
        array.add(memory());
        for await (const progress of array.rebuild());
        console.log(array.state);`;
    // Without lanes a spare is as good through its own operations.
    expect(await run(program, 'lanes')).toEqual({ code: 0, output: 'clean\n' });
  });

  test('does not end while a request is under way that nobody waits for', async () => {
    const program = `
        const array = make();
        const target = new Uint8Array(8 * MIB);
        void array.write(0, new Uint8Array(8 * MIB).fill(7))
          .then(() => array.read(0, target))
          .then(() => console.log(target.every((byte) => byte === 7)));`;
    expect(await run(program, 'lanes')).toEqual({ code: 0, output: 'true\n' });
  });

  test('does not end before it is closed, when it closes idle or busy', async () => {
    const program = `
        const idle = make();
        await idle.write(0, new Uint8Array(MIB));
        await new Promise((wake) => setTimeout(wake, 20));
        await idle.close();
        const busy = make();
        const writes = [0, 1, 2, 3].map((at) => busy.write(at * MIB, new Uint8Array(MIB)));
        const unused = make();
        await Promise.all([...writes, busy.close(), unused.close()]);
        console.log('closed');`;
    expect(await run(program, 'lanes')).toEqual({ code: 0, output: 'closed\n' });
  });
});

describe.concurrent('a program with an array', () => {
  for (const driver of ['inline', 'event-loop']) {
    test(`on ${driver} ends when all is done and not before, closed or not`, async () => {
      const program = `
        make();
        const array = make();
        const target = new Uint8Array(8 * MIB);
        void array.write(0, new Uint8Array(8 * MIB).fill(7))
          .then(() => array.read(0, target))
          .then(() => console.log(target.every((byte) => byte === 7)));
        const busy = make();
        void Promise.all([busy.write(0, new Uint8Array(MIB)), busy.close()]).then(() => console.log('closed'));`;
      const { code, output } = await run(program, driver);
      expect({ code, lines: output.trim().split('\n').sort() }).toEqual({
        code: 0,
        lines: ['closed', 'true'],
      });
    });
  }

  test('on lanes does not end when a worker dies under the request that it lives for', async () => {
    const program = `
      const array = make();
      await array.killLane(0, 'in-commit');
      await array.killLane(1, 'in-commit');
      array.write(0, new Uint8Array(8 * MIB).fill(3)).then(async () => {
        let found = 0;
        for await (const progress of array.scrub()) found = progress.mismatchCount;
        console.log(array.engine.laneDeaths, found);
      });`;
    expect(await run(program, 'lanes')).toEqual({ code: 0, output: '2 0\n' });
  });
});
