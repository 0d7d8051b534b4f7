/** Prune takes what nobody needs, and leaves everything else as safe as it was. */
import { describe, expect, test } from 'vitest';
import { Repository } from '../../lib/backup/repository.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { deviceOf, expectSame, imageOf, MemoryStore, newRepository, restored } from './world.ts';

const sizeOf = (store: MemoryStore, folder: string): number =>
  [...store.files].reduce((sum, [name, bytes]) => sum + (name.startsWith(folder) ? bytes.byteLength : 0), 0);

describe.each([0, 1, 2] as const)('redundancy %i', (redundancy) => {
  test('random histories: what stays is whole and protected, also when files of it are lost then', () =>
    withSeed(runSeed, async (random) => {
      for (let round = 0; round < 3; round += 1) {
        const store = new MemoryStore();
        const repository = await newRepository(store, { redundancy });
        const images = new Map<string, Uint8Array>();
        let image = imageOf(random, 12_000);
        for (let turn = 0; turn < 5; turn += 1) {
          const backup = await repository.createBackup({ source: deviceOf(image), array: 'demo' });
          images.set(backup!.id, image);
          image = image.slice();
          image.set(imageOf(random, 4000), random(8000));
        }
        const keep = { last: 1 + random(3) };
        const would = await repository.prune({ keep, dryRun: true });
        expect(await repository.list()).toHaveLength(5);
        const report = await repository.prune({ keep });
        expect(report.removed).toEqual(would.removed);
        expect(report.kept.map(({ id }) => id)).toEqual([...images.keys()].slice(5 - keep.last));
        expect(await repository.verify({ readPercent: 100 })).toMatchObject({
          backups: keep.last,
          damaged: [],
          lost: [],
          unprotected: [],
        });
        for (let lost = 0; lost < redundancy; lost += 1) {
          const packs = [...store.files.keys()].filter((name) => name.startsWith('packs/'));
          store.files.delete(packs[random(packs.length)]!);
        }
        const again = await Repository.open(store);
        for (const backup of await again.list())
          expectSame(await restored(again, backup), images.get(backup.id)!, `${backup.number} of 5`);
      }
    }));

  test('gives back the space: as much is left as a new repository of the same backup takes, and a quarter', () =>
    withSeed(runSeed, async (random) => {
      const store = new MemoryStore();
      const repository = await newRepository(store, { redundancy });
      for (let turn = 0; turn < 4; turn += 1)
        await repository.createBackup({ source: deviceOf(imageOf(random, 20_000)), array: 'demo' });
      const image = imageOf(random, 20_000);
      await repository.createBackup({ source: deviceOf(image), array: 'demo' });
      await repository.prune({ keep: { last: 1 } });
      const fresh = new MemoryStore();
      await (await newRepository(fresh, { redundancy })).createBackup({
        source: deviceOf(image),
        array: 'demo',
      });
      // 48 bytes of each pack are neither chunks nor table.
      const packs = [...store.files.keys()].filter((name) => name.startsWith('packs/')).length;
      expect(sizeOf(store, 'packs/')).toBeLessThan(sizeOf(fresh, 'packs/') / 0.75 + 48 * packs);
      expect([...store.files.keys()].filter((name) => name.startsWith('index/'))).toHaveLength(1);
      // Once more finds nothing to do.
      const before = new Map(store.files);
      expect(await repository.prune()).toMatchObject({ removed: [], packsDeleted: 0, packsRewritten: 0 });
      for (const [name, bytes] of before) {
        if (!name.startsWith('locks/')) expectSame(store.files.get(name)!, bytes, name);
      }
    }));
});

test('a backup whose map cannot be read stops it before anything goes, unless that backup goes', async () => {
  await withSeed(runSeed, async (random) => {
    const store = new MemoryStore();
    const repository = await newRepository(store);
    for (const array of ['one', 'two'])
      await repository.createBackup({ source: deviceOf(imageOf(random, 8000)), array });
    const [one] = await repository.list();
    const record = `backups/${one!.id}.0`;
    store.files.set(record, new Uint8Array(100));
    const before = new Map(store.files);
    await expect(repository.prune({ keep: { last: 1 } })).rejects.toMatchObject({ code: 'BAD_REPOSITORY' });
    for (const [name, bytes] of before) {
      if (!name.startsWith('locks/')) expectSame(store.files.get(name)!, bytes, name);
    }
    await repository.prune({ remove: [one!.id] });
    expect(store.files.has(record)).toBe(false);
    expect(await repository.verify({ readPercent: 100 })).toMatchObject({
      backups: 1,
      damaged: [],
      lost: [],
    });
  });
});
