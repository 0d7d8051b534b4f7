/**
 * Repositories that were made when the format was: they open, and are written again as they are. A format cannot drift
 * without one of these noticing.
 */
import { cp, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { DirectoryStore } from '../../lib/backup/directory.ts';
import { PackBuilder, tableOf } from '../../lib/backup/pack.ts';
import { decodeParity, encodeParity, type ParityRole } from '../../lib/backup/parity.ts';
import { decodeBackup, encodeBackup } from '../../lib/backup/record.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { decodeObject, encodeObject, loadSum, SALT_BYTES, sealerFor } from '../../lib/backup/seal.ts';
import { decodeSettings, encodeSettings, unlock } from '../../lib/backup/settings.ts';
import { goldenImages, goldenKinds, PASSPHRASE } from './golden.ts';
import { contentOf, expectSame, restored } from './world.ts';

const fixtures = join(import.meta.dirname, '../../fixtures/backup');
const scratch = await mkdtemp(join(tmpdir(), 'raidsim-golden-'));
afterAll(() => rm(scratch, { recursive: true }));
const sum = await loadSum();

type Title = keyof typeof goldenKinds;

describe.each(Object.keys(goldenKinds) as Title[])('%s', (title) => {
  const folder = join(fixtures, title);
  const filesIn = async (name: string): Promise<[string, Uint8Array][]> => {
    const names = await readdir(join(folder, name));
    return await Promise.all(
      names.map(
        async (file): Promise<[string, Uint8Array]> => [file, await readFile(join(folder, name, file))],
      ),
    );
  };
  const site = async () => {
    const settings = decodeSettings(await readFile(join(folder, 'settings.0')), sum, folder)!;
    return { settings, sum, key: await unlock(settings, PASSPHRASE, folder) };
  };

  test('is read: every byte, and nothing is written to it', async () => {
    const repository = await Repository.open(new DirectoryStore(folder), { passphrase: PASSPHRASE });
    const backups = await repository.list();
    expect(backups.map(({ array, uuid, point, number }) => [array, uuid, point, number])).toEqual([
      ['first', 'u', 'first', 1],
      ['second', 'u', 'second', 2],
    ]);
    for (const [index, [, image]] of goldenImages().entries()) {
      expectSame(await restored(repository, backups[index]!), image, `backup ${index}`);
      await using device = await repository.openBackup(backups[index]!.id);
      expectSame(await contentOf(device), image, `backup ${index} as a device`);
    }
    expect(await repository.verify({ readPercent: 100 })).toMatchObject({
      damaged: [],
      lost: [],
      unprotected: [],
    });
  });

  test('goes on: what is in it is not stored again, and prune leaves what stays', async () => {
    const path = join(scratch, title);
    await cp(folder, path, { recursive: true });
    const repository = await Repository.open(new DirectoryStore(path), { passphrase: PASSPHRASE });
    const { deviceOf } = await import('./world.ts');
    const [, image] = goldenImages()[1]!;
    const again = await repository.createBackup({ source: deviceOf(image), array: 'third' });
    expect(again).toMatchObject({ addedBytes: 0, storedBytes: 0, number: 3 });
    await repository.prune({ keep: { last: 1 }, remove: [(await repository.list())[0]!.id] });
    const left = await repository.list();
    expect(left.map(({ array }) => array)).toEqual(['second', 'third']);
    for (const backup of left) expectSame(await restored(repository, backup), image, backup.array);
  });

  test('every file of it is written today as it was then', async () => {
    const { settings, key } = await site();
    const codec = { key, sum };
    const settingsFile = await readFile(join(folder, 'settings.0'));
    expectSame(encodeSettings(settings, sum), settingsFile, 'settings');
    const seen = new Set<number>();
    for (const [name, bytes] of await filesIn('packs')) {
      const table = (await tableOf(codec, name, bytes))!;
      const sealer = sealerFor(key, Buffer.from(name, 'hex'), `packs/${name}`);
      const builder = new PackBuilder(codec, Buffer.from(name, 'hex'), new Uint8Array(10));
      for (let index = 0; index < table.count; index += 1) {
        const { piece, codec: how, range, rawBytes } = table.entry(index);
        seen.add(how);
        const sealed = bytes.subarray(range.offsetBytes, range.offsetBytes + range.lengthBytes);
        builder.add(table.id(index), how, rawBytes, sealer.open(piece, sealed)!);
      }
      expectSame(builder.finish().bytes, bytes, name);
    }
    expect([...seen].sort()).toEqual([0, goldenKinds[title].codec]);
    for (const [name, bytes] of await filesIn('backups')) {
      const id = name.slice(0, 16);
      const record = decodeBackup(codec, id, bytes, settings)!;
      expectSame(encodeBackup(codec, record, bytes.subarray(8, 8 + SALT_BYTES)), bytes, name);
    }
    for (const [file, bytes] of await filesIn('index')) {
      const name = `index/${file}`;
      const body = decodeObject(codec, 'RAIDINDX', name, bytes)!;
      const salt = bytes.subarray(8, 8 + SALT_BYTES);
      expectSame(encodeObject(codec, 'RAIDINDX', name, salt, body), bytes, name);
    }
    if (settings.redundancy === 0) return;
    for (const [name, bytes] of await filesIn('parity')) {
      const [group = '', role = ''] = name.split('.');
      const file = decodeParity(group, role as ParityRole, bytes, sum)!;
      expectSame(encodeParity(file, sum), bytes, name);
    }
  });
});
