/** Orders that cross from one process to another, as they would be given and taken inside one. */
import { lstat, mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { failure } from '../../cli/failure.ts';
import { ControlClient, ControlServer, type Operations } from '../../lib/control/control.ts';
import { RaidError } from '../../lib/errors.ts';
import { connectTo, listenAt } from '../../lib/socket/unix.ts';
import { deferred } from '../engine/members.ts';

class Stage implements AsyncDisposable {
  readonly path: string;
  readonly #folder: string;
  server: ControlServer | null = null;

  private constructor(folder: string) {
    this.#folder = folder;
    this.path = join(folder, 'control.sock');
  }

  static async make(operations: Operations | null): Promise<Stage> {
    const stage = new Stage(await mkdtemp(join(tmpdir(), 'raidsim-control-')));
    if (operations !== null) stage.server = await ControlServer.listen(stage.path, operations);
    return stage;
  }

  async connect(): Promise<ControlClient> {
    const client = await ControlClient.connect(this.path);
    if (client === null) throw new Error('nobody listens');
    return client;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server?.close();
    await rm(this.#folder, { recursive: true });
  }
}

async function all(steps: AsyncGenerator<unknown, unknown>): Promise<{ steps: unknown[]; result: unknown }> {
  const seen: unknown[] = [];
  for (;;) {
    const { done, value } = await steps.next();
    if (done === true) return { steps: seen, result: value };
    seen.push(value);
  }
}

async function* counting(input: { readonly to: number }): AsyncGenerator<number, string> {
  for (let number = 1; number <= input.to; number += 1) yield number;
  return `counted to ${input.to}`;
}

async function* failing(): AsyncGenerator<string> {
  yield 'begun';
  throw new RaidError('LAST_COPY', 'disk1 holds the last copy', { device: 'disk1', member: 1 });
}

test('steps, the result and errors are what they would be here', async () => {
  await using stage = await Stage.make({ counting, failing });
  await using client = await stage.connect();
  expect(await all(client.call('counting', { to: 3 }))).toEqual({ steps: [1, 2, 3], result: 'counted to 3' });
  const failed = client.call('failing', null);
  expect((await failed.next()).value).toBe('begun');
  await expect(failed.next()).rejects.toMatchObject({
    code: 'LAST_COPY',
    message: 'disk1 holds the last copy',
    place: { device: 'disk1', member: 1 },
    reaction: 'ask-operator',
  });
});

test('what the system refuses is known by its name for that, and is no fault of the program', async () => {
  const path = join(tmpdir(), 'nobody', 'has', 'made', 'this');
  // biome-ignore lint/correctness/useYield: it fails before.
  async function* reading(): AsyncGenerator<never, Buffer> {
    return await readFile(path);
  }
  await using stage = await Stage.make({ reading });
  await using client = await stage.connect();
  const failed = await client
    .call('reading', null)
    .next()
    .catch((error: unknown) => error);
  expect(failed).toMatchObject({ code: 'ENOENT', path });
  expect(await failure(failed)).toMatchObject({
    code: 'BAD_ARGUMENT',
    exitCode: 2,
    message: `${path}: no such file or folder`,
  });
});

test('several are under way at once, on one connection and on many', async () => {
  await using stage = await Stage.make({ counting });
  await using one = await stage.connect();
  await using other = await stage.connect();
  const calls = [5, 3, 8].flatMap((to) => [one, other].map((client) => all(client.call('counting', { to }))));
  const results = (await Promise.all(calls)).map(({ steps }) => steps.length);
  expect(results).toEqual([5, 5, 3, 3, 8, 8]);
});

test('large answers to who has few calls under way never end the connection, however many there are', async () => {
  const large = 'x'.repeat(2 ** 20);
  async function* reading(input: { readonly inSteps: boolean }): AsyncGenerator<string, string> {
    if (input.inSteps) yield large;
    return large;
  }
  await using stage = await Stage.make({ reading });
  await using client = await stage.connect();
  let left = 64;
  const reader = async (): Promise<void> => {
    while (left > 0) {
      left -= 1;
      const { result } = await all(client.call('reading', { inSteps: left > 60 }));
      expect(result === large).toBe(true);
    }
  };
  await Promise.all(Array.from({ length: 4 }, reader));
});

test('an operation that nobody knows, or that every object has, is refused by name', async () => {
  await using stage = await Stage.make({ counting });
  await using client = await stage.connect();
  for (const name of ['nothing', 'constructor', '__proto__', 'toString']) {
    await expect(client.call(name, null).next()).rejects.toMatchObject({ code: 'NOT_SUPPORTED' });
  }
});

test('who stops listening, or goes, leaves the operation as by break', async () => {
  const left: string[] = [];
  const [stopped, gone] = [deferred(), deferred()];
  async function* endless(input: { readonly name: string }): AsyncGenerator<number> {
    try {
      for (let number = 0; ; number += 1) {
        yield number;
        await new Promise((resolve) => setImmediate(resolve));
      }
    } finally {
      left.push(input.name);
      (input.name === 'stopped' ? stopped : gone).resolve();
    }
  }
  await using stage = await Stage.make({ endless, counting });
  const client = await stage.connect();
  for await (const _step of client.call('endless', { name: 'stopped' })) break;
  await stopped.promise;
  expect(left).toEqual(['stopped']);
  // The connection is as good as before.
  expect((await all(client.call('counting', { to: 1 }))).result).toBe('counted to 1');
  await client.call('endless', { name: 'gone' }).next();
  await client.close();
  await gone.promise;
  expect(left).toEqual(['stopped', 'gone']);
});

test('a server that goes in the middle leaves an outcome that is not known', async () => {
  async function* hanging(): AsyncGenerator<string> {
    yield 'begun';
    await new Promise(() => undefined);
  }
  await using stage = await Stage.make({ hanging });
  const client = await stage.connect();
  const steps = client.call('hanging', null);
  await steps.next();
  const next = steps.next();
  await stage.server?.close();
  await expect(next).rejects.toMatchObject({ code: 'WRITE_MAYBE_APPLIED' });
  await expect(client.call('hanging', null).next()).rejects.toMatchObject({ code: 'WRITE_MAYBE_APPLIED' });
});

test('another version is refused on both sides, with what to do', async () => {
  await using stage = await Stage.make(null);
  const other = createServer((socket) => socket.resume().write('{"raidsimControl":2,"cwd":"/"}\n'));
  const listening = await listenAt(other, stage.path);
  await expect(ControlClient.connect(stage.path)).rejects.toMatchObject({
    code: 'NOT_SUPPORTED',
    message: expect.stringContaining('version 2'),
  });
  await listening.close();
  stage.server = await ControlServer.listen(stage.path, { counting });
  const socket = await raw(stage.path);
  socket.write('{"raidsimControl":2,"cwd":"/"}\n{"id":1,"do":"counting","with":{"to":1}}\n');
  expect(await heard(socket)).toMatch(/^\{"raidsimControl":1,[^\n]*\n$/);
});

test.each([
  ['no JSON', 'hello\n'],
  ['JSON that is no call', '{"raidsimControl":1,"cwd":"/"}\n[1,2]\n'],
  ['a call without a number', '{"raidsimControl":1,"cwd":"/"}\n{"do":"counting"}\n'],
  ['a line without an end', `{"raidsimControl":1,"cwd":"/"}\n${'x'.repeat(5 * 1024 * 1024)}`],
])('%s ends the connection, and only that', async (_what, text) => {
  await using stage = await Stage.make({ counting });
  await using client = await stage.connect();
  const socket = await raw(stage.path);
  socket.write(text);
  await heard(socket);
  expect((await all(client.call('counting', { to: 2 }))).steps).toEqual([1, 2]);
});

test('the socket is its owner’s, and nobody is there when nobody is', async () => {
  await using stage = await Stage.make(null);
  expect(await ControlClient.connect(stage.path)).toBeNull();
  stage.server = await ControlServer.listen(stage.path, {});
  expect((await lstat(stage.path)).mode & 0o077).toBe(0);
  await stage.server.close();
  expect(await ControlClient.connect(stage.path)).toBeNull();
});

async function raw(path: string): Promise<Socket> {
  const socket = await connectTo(path);
  if (socket === null) throw new Error('nobody listens');
  socket.on('error', () => undefined);
  return socket;
}

function heard(socket: Socket): Promise<string> {
  return new Promise((resolve) => {
    let text = '';
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
    socket.on('close', () => resolve(text));
  });
}
