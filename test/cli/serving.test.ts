/** Faults of an array that is served: what one of them holds up can always be let go of. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { connect, resultOf } from '../../cli/reach.ts';
import { Serving } from '../../cli/serving.ts';
import { createArray } from '../../lib/array/folder.ts';
import { newFolder, quiet } from '../array/snapshot-folders.ts';
import { until } from '../engine/members.ts';

test('a disk that hangs is let go of also while a fault of a new disk waits for it', async () => {
  const folder = newFolder();
  await (await createArray(folder, { ...quiet, level: 5, disks: 3, diskSize: '4M' })).close();
  const serving = await Serving.start(folder, {
    readOnly: false,
    socket: join(folder, 'nbd.sock'),
    listen: null,
    exportName: null,
    snapshots: [],
    clones: [],
    tls: null,
    insecure: false,
    onEvent: () => undefined,
  });
  try {
    const ask = async (operation: string, input: unknown): Promise<unknown[]> => {
      await using control = await connect(folder);
      if (control === null) throw new Error('it is served');
      const said: unknown[] = [];
      for await (const line of control.call(operation, input)) said.push(line);
      return said;
    };
    const told = async (): Promise<unknown> => {
      await using control = await connect(folder);
      return await resultOf(control?.call('faults', null) ?? expect.unreachable('it is served'));
    };
    await ask('fault', { disk: 'disk0', asked: { kind: 'delay', delayMs: 1 } });
    await ask('add', { files: [join(folder, 'disk3.img')], force: false });
    await ask('fault', { disk: 'disk1', asked: { kind: 'hang' } });
    const before = serving.array;
    // It has no filter yet: the array is opened again, and is closed first, for which it waits for disk1.
    const added = ask('fault', { disk: 'disk3', asked: { kind: 'delay', delayMs: 1 } });
    await until(() => before.isClosed);
    expect(await ask('clear', { disk: 'disk1' })).toEqual(['1 fault is cleared on disk1']);
    expect(await added).toEqual(['disk3: each request takes 1 ms more']);
    expect(serving.array).not.toBe(before);

    // Of all faults that there are, while another is being asked for: that one is in force then.
    await ask('add', { files: [join(folder, 'disk4.img')], force: false });
    await ask('fault', { disk: 'disk1', asked: { kind: 'hang' } });
    const again = serving.array;
    const asked = { kind: 'error', on: 'flush', where: null, when: { nth: 1000 } } as const;
    const last = ask('fault', { disk: 'disk4', asked });
    await until(() => again.isClosed);
    expect(await ask('clear', { disk: null })).toEqual(['3 faults are cleared']);
    await last;
    expect(await told()).toMatchObject([{ disk: 'disk4', hits: 0 }]);
    expect(serving.array.engine.driver).toBe('event-loop');
  } finally {
    await serving.close(0);
  }
});
