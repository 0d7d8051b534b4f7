/** What a backup or an image is made of, and where a backup goes: an array, a file, a block device. */
import { basename, resolve } from 'node:path';
import {
  type Backup,
  type Device,
  FileDevice,
  RaidError,
  type Repository,
  type RestoreOptions,
  writeNewFile,
} from '../lib/index.ts';
import { checkFolder, open, statOf } from './array.ts';

export interface Source {
  readonly device: Device;
  readonly name: string;
  readonly uuid: string | null;
  readonly close: () => Promise<void>;
}

/** An array, which stays this process's own until it is closed: nobody writes to it meanwhile. Or a file. */
export async function openSource(path: string): Promise<Source> {
  const found = await statOf(path);
  if (found !== null && (found.isFile() || found.isBlockDevice()) && basename(path) !== 'raidsim.json') {
    const device = await FileDevice.open(path, { readOnly: true });
    return { device, name: basename(path), uuid: null, close: () => device.close() };
  }
  const { array } = await open(path);
  return { device: array, name: array.name, uuid: array.status().uuid, close: () => array.close() };
}

/** False where it was asked to stop. */
export async function restoreTo(
  repository: Repository,
  backup: Backup,
  to: string,
  options: RestoreOptions,
): Promise<boolean> {
  const found = await statOf(to);
  if (found?.isDirectory() === true) {
    await checkFolder(to);
    const { array } = await open(to, { writes: true });
    try {
      return await repository.restore(backup.id, array, options);
    } finally {
      await array.close();
    }
  }
  if (found?.isBlockDevice() === true) {
    await using device = await FileDevice.open(to);
    return await repository.restore(backup.id, device, options);
  }
  return await restoreToFile(repository, backup, to, options);
}

/** A file that gets its name when it is whole; where data is lost, the rest of it is kept beside. */
async function restoreToFile(
  repository: Repository,
  backup: Backup,
  to: string,
  options: RestoreOptions,
): Promise<boolean> {
  let lost: RaidError | null = null;
  const outcome = await writeNewFile(resolve(to), backup.sizeBytes, async (target) => {
    try {
      const isDone = await repository.restore(backup.id, target, { ...options, isBlank: true });
      return isDone ? 'whole' : 'discard';
    } catch (error) {
      if (!(error instanceof RaidError) || error.code !== 'REDUNDANCY_LOST') throw error;
      lost = error;
      return 'keep partial';
    }
  });
  if (lost !== null) throw lost;
  return outcome === 'whole';
}
