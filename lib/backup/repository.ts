/**
 * A repository of backups: any number of them, of any number of arrays, in a folder or a bucket. What several of them have
 * in common is stored once.
 *
 *   settings.0-2     what kind of repository this is, and its key, in three copies       settings.ts
 *   packs/           chunks, compressed, encrypted                                      pack.ts
 *   parity/          P and Q over groups of packs                                       parity.ts
 *   index/           copies of the packs' tables                                        catalog.ts
 *   backups/         a record for each backup, in redundancy + 1 copies                 record.ts
 *   locks/           who is writing                                                     lock.ts
 *   mounts/          who reads a backup for long                                        hold.ts
 *   going/           which backups a prune is about to delete                           hold.ts
 *   tmp/             files that are not finished, in a folder only                      directory.ts
 *
 * A file is written once and never changed; only repair puts one in the place of another, and then what was there before.
 * Reading needs no lock, and one that only reads never writes, but for a file that says which backup is read for long.
 */
import { availableParallelism } from 'node:os';
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { Catalog } from './catalog.ts';
import { settingsPath } from './copies.ts';
import { type CreateBackupOptions, createBackup } from './create.ts';
import { Hold } from './hold.ts';
import { Lock, processWitness, type Witness } from './lock.ts';
import { BackupDevice, changedBetween } from './mount.ts';
import { type PruneOptions, type PruneReport, pruneRepository } from './prune.ts';
import { ChunkReader } from './reader.ts';
import { type Backup, type BackupRecord, withoutPages } from './record.ts';
import { readRecords } from './records.ts';
import { type RepairOptions, type RepairReport, repairRepository } from './repair.ts';
import { type RestoreOptions, restoreBackup } from './restore.ts';
import { KEY_BYTES, loadSum, SALT_BYTES, type ScryptCost, type Sum, scryptCost } from './seal.ts';
import {
  checkShape,
  decodeSettings,
  defaultShape,
  encodeSettings,
  encrypt,
  hexOf,
  type Redundancy,
  SETTINGS_COPIES,
  type Settings,
  unlock,
} from './settings.ts';
import { getOrNull, type Site, type Threads } from './site.ts';
import type { Range, Store } from './store.ts';
import { type VerifyOptions, type VerifyReport, verifyRepository } from './verify.ts';

export interface OpenRepositoryOptions {
  readonly passphrase?: string;
  readonly host?: Host;
  readonly witness?: Witness;
  /** Told what is waited for, where that takes more than a minute. */
  readonly notice?: (text: string) => void;
  /**
   * So many threads hash, compress and encrypt what is stored. Default: the caller's and one for each further core, where there is
   * enough to do. 0: the caller's.
   */
  readonly threads?: number;
}

/** A backup that is read for long is held: `prune` lets it stay, whoever calls that, wherever. That writes a small file into the repository. */
export interface HoldOptions {
  /** Called where nothing can be written there (READ_ONLY, NO_SPACE): what is read all the same is not held. */
  readonly unheld?: (why: RaidError) => void;
}

export interface OpenBackupOptions extends HoldOptions {
  /** Until it is closed; without `unheld` it is opened so, or not at all. */
  readonly hold?: boolean;
}

export interface RestoreBackupOptions extends RestoreOptions, HoldOptions {}

export interface CreateRepositoryOptions extends OpenRepositoryOptions {
  /** Parity files for each group of packs (default 0). */
  readonly redundancy?: Redundancy;
  readonly chunkBytes?: number;
  readonly pageChunks?: number;
  readonly packBytes?: number;
  readonly groupPacks?: number;
  /** What an attacker pays for each guess of the passphrase. */
  readonly scrypt?: ScryptCost;
}

/** As it is listed now that nobody takes it away. */
interface Held {
  readonly record: BackupRecord;
  readonly release: () => Promise<void>;
}

export class Repository {
  readonly settings: Settings;
  readonly #site: Site;
  readonly #witness: Witness;
  readonly #notice: OpenRepositoryOptions['notice'];

  private constructor(site: Site, { witness = processWitness, notice }: OpenRepositoryOptions) {
    this.settings = site.settings;
    this.#site = site;
    this.#witness = witness;
    this.#notice = notice;
  }

  /** A new repository where there is nothing: no file of any kind. */
  static async create(store: Store, options: CreateRepositoryOptions = {}): Promise<Repository> {
    const { host = realHost, passphrase } = options;
    const shape = {
      chunkBytes: options.chunkBytes ?? defaultShape.chunkBytes,
      pageChunks: options.pageChunks ?? defaultShape.pageChunks,
      packBytes: options.packBytes ?? defaultShape.packBytes,
      redundancy: options.redundancy ?? defaultShape.redundancy,
      groupPacks: options.groupPacks ?? defaultShape.groupPacks,
    };
    checkShape(shape);
    if (passphrase === '') throw new RaidError('BAD_ARGUMENT', 'an empty passphrase protects nothing');
    const [found] = await store.list('');
    if (found !== undefined) {
      throw new RaidError(
        'HOLDS_DATA',
        `${store.name} is not empty (${found.name}): a repository is made where there is nothing`,
        { device: store.name },
      );
    }
    const key = passphrase === undefined ? null : host.randomBytes(KEY_BYTES);
    const settings: Settings = {
      id: hexOf(host.randomBytes(16)),
      createdAt: new Date(host.wallClock()).toISOString(),
      ...shape,
      encryption:
        passphrase === undefined || key === null
          ? null
          : await encrypt(passphrase, key, host.randomBytes(SALT_BYTES), options.scrypt ?? scryptCost),
    };
    const sum = await loadSum();
    const bytes = encodeSettings(settings, sum);
    for (let copy = 0; copy < SETTINGS_COPIES; copy += 1) {
      // Whoever made copy 0 made the repository.
      if (await store.put(settingsPath(copy), bytes)) continue;
      if ((await getOrNull(store, settingsPath(copy))) === null) {
        throw new RaidError(
          'BUSY',
          `${settingsPath(copy)} in ${store.name} is an empty file: somebody else is making a repository there, or was when it was ended; in that case delete the file and try again`,
          { device: store.name },
        );
      }
      throw new RaidError('BUSY', `somebody else is making a repository in ${store.name}`, {
        device: store.name,
      });
    }
    return new Repository({ store, settings, key, sum, host, threads: threadsFor(options) }, options);
  }

  static async open(store: Store, options: OpenRepositoryOptions = {}): Promise<Repository> {
    const sum = await loadSum();
    const settings = await readSettings(store, sum);
    const key = await unlock(settings, options.passphrase, store.name);
    const host = options.host ?? realHost;
    return new Repository({ store, settings, key, sum, host, threads: threadsFor(options) }, options);
  }

  get name(): string {
    return this.#site.store.name;
  }

  /** Oldest first. Backups whose records cannot be read are not among them: `verify` names those. */
  async list(): Promise<readonly Backup[]> {
    return (await readRecords(this.#site)).records.map(withoutPages);
  }

  /** By its id, the beginning of its id, or `latest`. */
  async find(text: string): Promise<Backup> {
    return withoutPages(await this.#record(text));
  }

  /** Null where `signal` asked to stop. */
  async createBackup(options: CreateBackupOptions): Promise<Backup | null> {
    return await this.#locked(async (lock) => {
      const [{ records }, reader] = await Promise.all([readRecords(this.#site), this.#reader()]);
      return await createBackup(this.#site, reader, lock, records, options);
    });
  }

  /** The backup as a device that can be read. */
  async openBackup(text: string, options: OpenBackupOptions = {}): Promise<BackupDevice> {
    const record = await this.#record(text);
    if (options.hold !== true) return new BackupDevice(record, await this.#reader());
    const { record: held, release } = await this.#held(record.id, options.unheld);
    try {
      return new BackupDevice(held, await this.#reader(), release);
    } catch (error) {
      await release().catch(() => undefined);
      throw error;
    }
  }

  /** Where the newer one differs, in whole chunks. */
  async changedBetween(
    older: string,
    newer: string,
    options: OpenBackupOptions = {},
  ): Promise<readonly Range[]> {
    await using before = await this.openBackup(older, options);
    await using after = await this.openBackup(newer, options);
    return await changedBetween(before, after, this.settings.chunkBytes);
  }

  /** The backup is held meanwhile. False where `signal` asked to stop. What is lost is REDUNDANCY_LOST, after all else was written. */
  async restore(text: string, target: Device, options: RestoreBackupOptions = {}): Promise<boolean> {
    const { id } = await this.#record(text);
    const { record, release } = await this.#held(id, options.unheld ?? (() => undefined));
    try {
      return await restoreBackup(await this.#reader(), record, target, options);
    } finally {
      // What stays holds nothing once this process is gone.
      await release().catch(() => undefined);
    }
  }

  /** Null where `signal` asked to stop. */
  async verify(options: VerifyOptions = {}): Promise<VerifyReport | null> {
    return await verifyRepository(this.#site, options);
  }

  async repair(options: RepairOptions = {}): Promise<RepairReport> {
    return await this.#locked((lock) => repairRepository(this.#site, lock, options));
  }

  async prune(options: PruneOptions = {}): Promise<PruneReport> {
    if (options.dryRun === true) return await pruneRepository(this.#site, null, this.#witness, options);
    return await this.#locked((lock) => pruneRepository(this.#site, lock, this.#witness, options));
  }

  async #reader(): Promise<ChunkReader> {
    return new ChunkReader(this.#site, await Catalog.load(this.#site));
  }

  async #held(id: string, unheld: HoldOptions['unheld']): Promise<Held> {
    let hold: Hold;
    try {
      hold = await Hold.take(this.#site, this.#witness, id);
    } catch (error) {
      const isReadOnly =
        error instanceof RaidError && (error.code === 'READ_ONLY' || error.code === 'NO_SPACE');
      if (!isReadOnly || unheld === undefined) throw error;
      unheld(error);
      return { record: await this.#record(id), release: () => Promise.resolve() };
    }
    try {
      return { record: await this.#record(id), release: () => hold.release() };
    } catch (error) {
      await hold.release().catch(() => undefined);
      throw error;
    }
  }

  async #record(text: string): Promise<BackupRecord> {
    const { records, unreadable } = await readRecords(this.#site);
    const found = text === 'latest' ? records.slice(-1) : records.filter(({ id }) => id.startsWith(text));
    const [record, ...others] = found;
    if (record !== undefined && others.length === 0 && text !== '') return record;
    if (record !== undefined) {
      throw new RaidError(
        'NO_SUCH_BACKUP',
        `${found.length} backups in ${this.name} begin with "${text}": ${found.map(({ id }) => id).join(', ')}; write more of the id`,
      );
    }
    if (unreadable.some((id) => id.startsWith(text))) {
      throw new RaidError(
        'BAD_REPOSITORY',
        `the record of backup ${text} in ${this.name} cannot be read; verify says what else is wrong`,
      );
    }
    throw new RaidError(
      'NO_SUCH_BACKUP',
      records.length === 0
        ? `there is no backup in ${this.name}`
        : `there is no backup ${text} in ${this.name}; the newest is ${records.at(-1)?.id}`,
    );
  }

  async #locked<T>(work: (lock: Lock) => Promise<T>): Promise<T> {
    const { store, host } = this.#site;
    const lock = await Lock.take(store, host, this.#witness, this.#notice);
    let result: T;
    try {
      result = await work(lock);
    } catch (error) {
      // What went wrong first is what is told; a lock that stays is found stale.
      await lock.release().catch(() => undefined);
      throw error;
    }
    await lock.release();
    return result;
  }
}

/** More than these wait for the one that reads and writes. */
const THREADS_MOST = 8;

function threadsFor({ threads }: OpenRepositoryOptions): Threads {
  if (threads !== undefined) {
    if (!Number.isInteger(threads) || threads < 0 || threads > THREADS_MOST)
      throw new RaidError('BAD_ARGUMENT', `${threads} threads: 0 to ${THREADS_MOST} are possible`);
    return { count: threads, from: 'always' };
  }
  return { count: Math.min(availableParallelism() - 1, THREADS_MOST), from: 'much' };
}

async function readSettings(store: Store, sum: Sum): Promise<Settings> {
  let isThere = false;
  for (let copy = 0; copy < SETTINGS_COPIES; copy += 1) {
    const bytes = await getOrNull(store, settingsPath(copy));
    isThere ||= bytes !== null;
    const settings = bytes === null ? null : decodeSettings(bytes, sum, store.name);
    if (settings !== null) return settings;
  }
  if (isThere) {
    throw new RaidError(
      'BAD_REPOSITORY',
      `none of the ${SETTINGS_COPIES} copies of the settings of ${store.name} is whole`,
      { device: store.name },
    );
  }
  const isEmpty = (await store.list('')).length === 0;
  throw new RaidError(
    'NO_SUCH_REPOSITORY',
    isEmpty
      ? `there is no backup repository in ${store.name}`
      : `${store.name} is not empty, and is no backup repository: it has no settings`,
    { device: store.name },
  );
}
