/** Our client and our server, end to end: each would forgive the other's mistakes no more than a stranger's. */

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { createArray } from '../../lib/array/folder.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { NbdDevice } from '../../lib/nbd/client.ts';
import { NbdServer } from '../../lib/nbd/server.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { conformance } from '../conformance/suite.ts';
import { scratchFolder } from '../device/scratch.ts';
import { wire } from './client-world.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

const served = (blockBytes: number, readOnly: boolean) => async () => {
  const below = new MemoryDevice({ sizeBytes: 192 * KIB, blockBytes, readOnly });
  const server = new NbdServer({ exports: [{ name: 'disk', device: below }] });
  const device = await NbdDevice.open({
    name: 'nbd://here/disk',
    identity: 'nbd:here',
    exportName: 'disk',
    secure: null,
    dial: async () => {
      const [near, far] = wire();
      server.accept(far);
      return near;
    },
  });
  return { device, dispose: () => server.close() };
};

conformance('memory behind our server and our client', served(512, false), { requests: 40 });
conformance('read-only memory behind our server and our client', served(1, true), { readOnly: true });

test('an array over our own server goes on when that is restarted, and without one that is not', async () => {
  await withSeed(runSeed, async (random) => {
    const memories = Array.from(
      { length: 3 },
      () => new MemoryDevice({ sizeBytes: 4 * MIB, blockBytes: 512 }),
    );
    const sockets = memories.map((_, index) => join(folder, `m${index}.sock`));
    const start = async (index: number): Promise<NbdServer> => {
      const { memory } = memories[index]!;
      const device = new MemoryDevice({ sizeBytes: 4 * MIB, blockBytes: 512, memory });
      const server = new NbdServer({ exports: [{ name: 'disk', device }] });
      await server.listenUnix(sockets[index]!);
      return server;
    };
    const servers = await Promise.all(memories.map((_, index) => start(index)));
    const members = await Promise.all(
      sockets.map((socket) =>
        NbdDevice.open(`nbd+unix:///disk?socket=${socket}`, { retryMs: [0, 10, 100, 500] }),
      ),
    );
    const array = await createArray('own', { level: 5, chunk: '64K', members, assumeClean: true });
    const model = Buffer.alloc(array.limits.sizeBytes);
    const writeSome = async (): Promise<void> => {
      const writes: Promise<void>[] = [];
      for (let place = 0; place < 16; place += 1) {
        const bytes = randomBytes(random, 4 * KIB * (1 + random(16)));
        const offsetBytes = place * 128 * KIB + 4 * KIB * random(16);
        model.set(bytes, offsetBytes);
        writes.push(array.write(offsetBytes, bytes));
      }
      await Promise.all(writes);
    };
    const expectAll = async (): Promise<void> => {
      const seen = Buffer.alloc(model.byteLength);
      await array.read(0, seen);
      expect(Buffer.compare(seen, model)).toBe(0);
    };
    await writeSome();
    const writing = writeSome();
    await servers[1]!.close(0);
    servers[1] = await start(1);
    await writing;
    await expectAll();
    expect(array.degraded).toBe(0);

    const more = writeSome();
    await servers[2]!.close(0);
    await more;
    await expectAll();
    expect(array.degraded).toBe(1);
    await array.close();
    await Promise.all(servers.map((server) => server.close()));
  });
});
