/**
 * Makes the golden repositories of fixtures/backup. Run from dist, once for a format: what it made is never made again, or
 * it would prove nothing. The recipe is in fixtures/backup/RECIPE.md.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { DirectoryStore } from '../../lib/backup/directory.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { goldenImages, goldenKinds } from './golden.ts';
import { cheapScrypt, deviceOf } from './world.ts';

const [folder = '', ...titles] = process.argv.slice(2);

for (const title of titles) {
  const path = join(folder, title);
  await mkdir(path, { recursive: true });
  const { options } = goldenKinds[title as keyof typeof goldenKinds];
  const repository = await Repository.create(new DirectoryStore(path), {
    chunkBytes: 1024,
    pageChunks: 4,
    packBytes: 4000,
    groupPacks: 3,
    scrypt: cheapScrypt,
    ...options,
  });
  for (const [array, image] of goldenImages())
    await repository.createBackup({ source: deviceOf(image), array, uuid: 'u', point: array });
}
