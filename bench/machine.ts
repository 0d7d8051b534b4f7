/** Where a comparison ran: numbers without their machine mean nothing. */
import { constants } from 'node:fs';
import { access, mkdtemp, statfs } from 'node:fs/promises';
import { availableParallelism, cpus, loadavg, release, tmpdir, totalmem, type } from 'node:os';
import { join } from 'node:path';
import { errnoName } from '../lib/device/errno.ts';
import { RaidError } from '../lib/errors.ts';
import { formatSize } from '../lib/units.ts';

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly node: string;
  /** The operating system's. */
  readonly kernel: string;
  readonly platform: string;
  /** Where the members were, and on what kind of file system. */
  readonly directory: string;
  readonly fileSystem: string;
  /** Of the last minute, before and after. */
  readonly loadBefore: number;
  readonly loadAfter: number;
}

export function describeMachine(folder: Folder, loadBefore: number): Machine {
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    node: process.versions.node,
    kernel: `${type()} ${release()}`,
    platform: `${process.platform} ${process.arch}`,
    directory: folder.parent,
    fileSystem: folder.fileSystem,
    loadBefore,
    loadAfter: currentLoad(),
  };
}

export function currentLoad(): number {
  return loadavg()[0] ?? 0;
}

export interface Folder {
  readonly parent: string;
  readonly path: string;
  readonly fileSystem: string;
}

const MEMORY_FOLDER = '/dev/shm';

/**
 * A new folder for members. By default on tmpfs, where the I/O costs least and so RAID shows most; where there is none, or
 * too little of it (containers often have 64 MiB), wherever temporary files go.
 */
export async function makeFolder(wanted: string | undefined, neededBytes: number): Promise<Folder> {
  const candidates = wanted === undefined ? [MEMORY_FOLDER, tmpdir()] : [wanted];
  const reasons: string[] = [];
  for (const parent of candidates) {
    try {
      await access(parent, constants.W_OK);
      const { bavail, bsize, type: magic } = await statfs(parent);
      if (bavail * bsize < neededBytes) {
        reasons.push(
          `${parent} has ${formatSize(bavail * bsize)} free, and ${formatSize(neededBytes)} are needed`,
        );
        continue;
      }
      return { parent, path: await mkdtemp(join(parent, 'raidsim-bench-')), fileSystem: nameOf(magic) };
    } catch (cause) {
      reasons.push(`${parent} cannot be used (${errnoName(cause) ?? String(cause)})`);
    }
  }
  throw new RaidError(
    'BAD_ARGUMENT',
    `there is no place for the members: ${reasons.join('; ')}. Name another with --dir, or compare fewer members`,
  );
}

/** `f_type` of statfs(2). */
const fileSystems: Readonly<Record<number, string>> = {
  16914836: 'tmpfs',
  61267: 'ext4',
  1481003842: 'xfs',
  2435016766: 'btrfs',
  2035054128: 'overlayfs',
  26985: 'nfs',
};

function nameOf(magic: number): string {
  return fileSystems[magic] ?? `file system 0x${magic.toString(16)}`;
}
