/**
 * A repository in a folder.
 *
 * A new file is written under `tmp/`, fsynced, and then gets its name by link(2): which fails where the name is taken, and
 * otherwise is all or nothing. Then the folder is fsynced, since a name is durable only when its folder is. Replacing does
 * the same with rename(2).
 *
 * File systems without links (FAT, exFAT, some network shares) get the name in two steps: an empty file made with O_EXCL
 * decides who is first, and the finished file is renamed over it. Between the two, a crash leaves an empty file. No file of a
 * repository is empty, so that one means nothing, and is read as if it were not there.
 */
import { constants, type Stats } from 'node:fs';
import { type FileHandle, link, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { errnoName } from '../device/errno.ts';
import { RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { checkName, isFileName, ofEach, type Range, type Store, type StoredFile } from './store.ts';

export interface DirectoryOptions {
  readonly host?: Pick<Host, 'randomBytes'>;
  /** Default: wherever the file system has them. */
  readonly links?: 'try' | 'never';
}

const UNFINISHED = 'tmp';
/** A sweep takes away the folder of unfinished files under somebody's hands: then once more. */
const ATTEMPTS = 4;

const noLinks = new Set(['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK', 'EINVAL']);

export class DirectoryStore implements Store {
  readonly name: string;
  readonly #host: Pick<Host, 'randomBytes'>;
  readonly #folders = new Set<string>();
  #links: boolean;

  constructor(folder: string, options: DirectoryOptions = {}) {
    this.name = folder;
    this.#host = options.host ?? realHost;
    this.#links = options.links !== 'never';
  }

  async get(name: string, range?: Range): Promise<Uint8Array | null> {
    checkName(name);
    const path = join(this.name, name);
    let file: FileHandle;
    try {
      file = await open(path, 'r');
    } catch (cause) {
      if (isAbsent(cause)) return null;
      throw readError(cause, path);
    }
    try {
      const { size } = await file.stat();
      if (size === 0) return null;
      const start = Math.min(range?.offsetBytes ?? 0, size);
      const bytes = new Uint8Array(Math.min(range?.lengthBytes ?? size, size - start));
      for (let done = 0; done < bytes.byteLength; ) {
        const { bytesRead } = await file.read(bytes, done, bytes.byteLength - done, start + done);
        if (bytesRead === 0) return bytes.subarray(0, done);
        done += bytesRead;
      }
      return bytes;
    } catch (cause) {
      throw readError(cause, path);
    } finally {
      await file.close();
    }
  }

  async put(name: string, bytes: Uint8Array): Promise<boolean> {
    checkName(name);
    // The link below decides. This spares the bytes that would be written, and the disk that would be waited for.
    if (((await this.#stat(name))?.size ?? 0) > 0) return false;
    return await this.#place(name, bytes, (from, to) => this.#putName(from, to));
  }

  async replace(name: string, bytes: Uint8Array): Promise<void> {
    await this.#place(name, bytes, async (from, to) => {
      await rename(from, to);
      return true;
    });
  }

  async list(prefix: string): Promise<readonly StoredFile[]> {
    const folder = prefix.includes('/') ? dirname(`${prefix}x`) : '';
    const folders = folder === '' ? ['', ...(await this.#subfolders(prefix))] : [folder];
    const entries = await ofEach(folders, async (inside) =>
      (await this.#entries(inside)).map((entry) => (inside === '' ? entry : `${inside}/${entry}`)),
    );
    const names = entries.flat().filter((name) => name.startsWith(prefix) && isFileName(name));
    const found = await ofEach(names.sort(), async (name): Promise<readonly StoredFile[]> => {
      const stats = await this.#stat(name);
      return stats?.isFile() === true && stats.size > 0 ? [{ name, sizeBytes: stats.size }] : [];
    });
    return found.flat();
  }

  async delete(name: string): Promise<void> {
    checkName(name);
    const path = join(this.name, name);
    try {
      await rm(path);
      await syncFolder(dirname(path));
    } catch (cause) {
      if (!isAbsent(cause)) throw writeError(cause, path);
    }
  }

  async #place(
    name: string,
    bytes: Uint8Array,
    give: (from: string, to: string) => Promise<boolean>,
  ): Promise<boolean> {
    checkName(name);
    const path = join(this.name, name);
    for (let attempt = 1; ; attempt += 1) {
      const unfinished = join(this.name, UNFINISHED, Buffer.from(this.#host.randomBytes(16)).toString('hex'));
      try {
        await this.#makeFolder(dirname(unfinished));
        await this.#makeFolder(dirname(path));
        const opening = openFolder(dirname(path));
        opening.catch(() => undefined);
        let isGiven: boolean;
        try {
          await writeWhole(unfinished, bytes);
          isGiven = await give(unfinished, path);
          const sync = async (): Promise<void> => await (await opening)?.sync();
          await Promise.all([rm(unfinished, { force: true }), isGiven ? sync() : null]);
        } finally {
          await (await opening)?.close();
        }
        return isGiven;
      } catch (cause) {
        await rm(unfinished, { force: true }).catch(() => undefined);
        this.#folders.clear();
        if (attempt < ATTEMPTS && errnoName(cause) === 'ENOENT') continue;
        throw writeError(cause, path);
      }
    }
  }

  async #putName(from: string, to: string): Promise<boolean> {
    if (this.#links) {
      try {
        await link(from, to);
        return true;
      } catch (cause) {
        const name = errnoName(cause) ?? '';
        if (name === 'EEXIST') return false;
        if (!noLinks.has(name)) throw cause;
        this.#links = false;
      }
    }
    try {
      await (await open(to, 'wx', 0o600)).close();
    } catch (cause) {
      if (errnoName(cause) === 'EEXIST') return false;
      throw cause;
    }
    await rename(from, to);
    return true;
  }

  /** Made with its name durable, and only looked for once. */
  async #makeFolder(folder: string): Promise<void> {
    if (this.#folders.has(folder)) return;
    await makeFolder(folder);
    this.#folders.add(folder);
  }

  /** In which there may be names that begin so. */
  async #subfolders(prefix: string): Promise<readonly string[]> {
    const entries = (await this.#entries('')).filter((entry) => `${entry}/`.startsWith(prefix));
    const found = await ofEach(entries, async (entry) =>
      (await this.#stat(entry))?.isDirectory() === true ? [entry] : [],
    );
    return found.flat();
  }

  async #entries(folder: string): Promise<readonly string[]> {
    const path = join(this.name, folder);
    try {
      return await readdir(path);
    } catch (cause) {
      if (isAbsent(cause)) return [];
      throw storeError(cause, path);
    }
  }

  async #stat(name: string): Promise<Stats | null> {
    const path = join(this.name, name);
    try {
      return await stat(path);
    } catch (cause) {
      if (isAbsent(cause)) return null;
      throw storeError(cause, path);
    }
  }
}

async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  const file = await open(path, 'wx', 0o600);
  try {
    // `writeFile` goes back and forth for every half MiB.
    for (let done = 0; done < bytes.byteLength; ) {
      done += (await file.write(bytes, done, bytes.byteLength - done, done)).bytesWritten;
    }
    await file.sync();
  } finally {
    await file.close();
  }
}

/**
 * With those above it. Not by Node's `recursive`, which says ENOENT where a file system is read-only, and in a folder that
 * takes no names (/proc) tries for ever.
 */
async function makeFolder(folder: string): Promise<void> {
  const above = dirname(folder);
  try {
    await mkdir(folder, { mode: 0o700 });
  } catch (cause) {
    if (await isFolder(folder)) return;
    if (errnoName(cause) !== 'ENOENT' || above === folder || (await isFolder(above))) throw cause;
    await makeFolder(above);
    return await makeFolder(folder);
  }
  await syncFolder(above);
}

async function isFolder(path: string): Promise<boolean> {
  return await stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await openFolder(folder);
  try {
    await handle?.sync();
  } finally {
    await handle?.close();
  }
}

/** Null on Windows, which cannot open a folder: its file systems journal names themselves. */
async function openFolder(folder: string): Promise<FileHandle | null> {
  return process.platform === 'win32' ? null : await open(folder, constants.O_RDONLY);
}

function isAbsent(cause: unknown): boolean {
  const name = errnoName(cause);
  return name === 'ENOENT' || name === 'ENOTDIR';
}

/** One file that cannot be read is damage, whatever the reason; one that we may not read is not. */
function readError(cause: unknown, path: string): RaidError {
  const name = errnoName(cause);
  if (name === 'EIO' || name === 'EISDIR' || name === 'EUCLEAN' || name === 'EBADMSG') {
    return new RaidError('MEDIUM_ERROR', `${path} cannot be read: ${name}`, { device: path, cause });
  }
  return storeError(cause, path);
}

function writeError(cause: unknown, path: string): RaidError {
  return storeError(cause, path);
}

function storeError(cause: unknown, path: string): RaidError {
  if (cause instanceof RaidError) return cause;
  const name = errnoName(cause);
  if (name === null) throw cause;
  const place = { device: path, cause };
  switch (name) {
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG':
      return new RaidError('NO_SPACE', `${path} cannot be written: the file system is full`, place);
    case 'EROFS':
      return new RaidError('READ_ONLY', `${path} cannot be written: the file system is read-only`, place);
    case 'EACCES':
    case 'EPERM':
      return new RaidError('READ_ONLY', `${path}: the system does not permit it (${name})`, place);
    default:
      return new RaidError(
        'STORE_FAILED',
        `${path}: ${cause instanceof Error ? cause.message : name}`,
        place,
      );
  }
}
