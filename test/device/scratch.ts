/** Folders and file systems that the tests of devices need. */
import { mkdtemp, realpath } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FileDevice } from '../../lib/device/file.ts';
import { RaidError } from '../../lib/errors.ts';

export async function scratchFolder(): Promise<string> {
  return await realpath(await mkdtemp(join(tmpdir(), 'raidsim-device-')));
}

export type DirectSupport =
  | { readonly works: true; readonly blockBytes: readonly (512 | 4096)[] }
  | { readonly works: false; readonly why: string };

/** Whether files in a folder can be opened with O_DIRECT, and in which blocks. */
export async function directFolder(folder: string): Promise<DirectSupport> {
  try {
    await using probe = await FileDevice.create(join(folder, 'direct-probe.img'), 64 * 1024, {
      direct: true,
    });
    return { works: true, blockBytes: probe.limits.blockBytes === 512 ? [512, 4096] : [4096] };
  } catch (cause) {
    if (!(cause instanceof RaidError) || cause.code !== 'NOT_SUPPORTED') throw cause;
    return { works: false, why: cause.message };
  }
}
