/**
 * The settings of a repository: the only file that is read in clear, always there in three copies (`settings.0` to
 * `settings.2`) since without them, and the key that they hold, nothing else can be read. One JSON document and the
 * xxHash64 of it on a line of its own. They never change.
 */
import { RaidError } from '../errors.ts';
import { formatSize, GIB, KIB, MIB } from '../units.ts';
import {
  KEY_BYTES,
  keyFromPassphrase,
  type RepositoryKey,
  SALT_BYTES,
  type ScryptCost,
  type Sum,
  sealerWith,
  TAG_BYTES,
} from './seal.ts';

export const SETTINGS_COPIES = 3;
const FORMAT = 'raidsim backup repository';
export const FORMAT_VERSION = 1;

export type Redundancy = 0 | 1 | 2;

export interface Settings {
  readonly id: string;
  readonly createdAt: string;
  /** What is cut into chunks is cut every so many bytes. */
  readonly chunkBytes: number;
  /** Chunks whose ids fit on one page of a backup's map. */
  readonly pageChunks: number;
  /** A pack is closed when it has grown to this. */
  readonly packBytes: number;
  /** Parity files for each group of packs; every file that no parity protects has as many further copies. */
  readonly redundancy: Redundancy;
  /** The most packs that share parity. */
  readonly groupPacks: number;
  readonly encryption: Encryption | null;
}

export interface Encryption extends ScryptCost {
  readonly salt: string;
  /** The repository's key, sealed with what scrypt makes of the passphrase. */
  readonly key: string;
}

export const defaultShape = {
  chunkBytes: 256 * KIB,
  pageChunks: 4096,
  packBytes: 16 * MIB,
  redundancy: 0,
  groupPacks: 8,
} as const;

/** Beyond 254 data packs, coefficients of Q repeat; beyond some dozens, reading a group costs more than it saves. */
const GROUP_PACKS_MAX = 64;

type RepositoryShape = Omit<Settings, 'id' | 'createdAt' | 'encryption'>;

export function checkShape(shape: RepositoryShape): void {
  const { chunkBytes, pageChunks, packBytes, redundancy, groupPacks } = shape;
  const refuse = (detail: string): never => {
    throw new RaidError('BAD_ARGUMENT', detail);
  };
  if (!isWhole(chunkBytes, 512, 16 * MIB) || (chunkBytes & (chunkBytes - 1)) !== 0)
    refuse(`chunks of ${chunkBytes} bytes: a power of two from 512 to ${formatSize(16 * MIB)} is possible`);
  if (!isWhole(pageChunks, 1, 65_536)) refuse(`${pageChunks} chunks on a page: 1 to 65536 are possible`);
  if (!isWhole(packBytes, 512, GIB))
    refuse(`packs of ${packBytes} bytes: up to ${formatSize(GIB)} are possible`);
  if (![0, 1, 2].includes(redundancy)) refuse(`redundancy ${redundancy}: 0, 1 and 2 are possible`);
  if (!isWhole(groupPacks, 1, GROUP_PACKS_MAX))
    refuse(`groups of ${groupPacks} packs: 1 to ${GROUP_PACKS_MAX} are possible`);
}

function isWhole(value: unknown, least: number, most: number): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most;
}

export function encodeSettings(settings: Settings, sum: Sum): Uint8Array {
  const text = `${JSON.stringify({ format: FORMAT, version: FORMAT_VERSION, ...settings }, null, 2)}\n`;
  return Buffer.from(`${text}${hexSum(sum(Buffer.from(text)))}\n`);
}

/** Null where these bytes are not whole, or not settings at all; UNSUPPORTED_FEATURE where a newer raidsim made them. */
export function decodeSettings(bytes: Uint8Array, sum: Sum, where: string): Settings | null {
  const text = Buffer.from(bytes).toString('utf8');
  const document = text.slice(0, -17);
  if (text.slice(-17) !== `${hexSum(sum(Buffer.from(document)))}\n`) return null;
  let found: unknown;
  try {
    found = JSON.parse(document);
  } catch {
    return null;
  }
  if (!isRecord(found) || found['format'] !== FORMAT) return null;
  if (found['version'] !== FORMAT_VERSION) {
    throw new RaidError(
      'UNSUPPORTED_FEATURE',
      `${where} has format ${String(found['version'])} of backup repositories, and this raidsim knows format ${FORMAT_VERSION}; use a newer raidsim`,
      { device: where },
    );
  }
  return settingsFrom(found);
}

function settingsFrom(found: Readonly<Record<string, unknown>>): Settings | null {
  const { id, createdAt, chunkBytes, pageChunks, packBytes, redundancy, groupPacks, encryption } = found;
  if (typeof id !== 'string' || typeof createdAt !== 'string') return null;
  const shape = { chunkBytes, pageChunks, packBytes, redundancy, groupPacks } as RepositoryShape;
  try {
    checkShape(shape);
  } catch {
    return null;
  }
  if (encryption !== null && !isEncryption(encryption)) return null;
  return { id, createdAt, ...shape, encryption };
}

/** Of 128 bytes each: 1 GiB. */
const SCRYPT_MOST = 2 ** 23;

function isEncryption(found: unknown): found is Encryption {
  if (!isRecord(found)) return false;
  const { cost, blockSize, parallelization, salt, key } = found;
  // Bounds, so that a forged file does not take all memory.
  return (
    isWhole(cost, 2, 2 ** 20) &&
    (cost & (cost - 1)) === 0 &&
    isWhole(blockSize, 1, 32) &&
    cost * blockSize <= SCRYPT_MOST &&
    isWhole(parallelization, 1, 16) &&
    isHex(salt, SALT_BYTES) &&
    isHex(key, KEY_BYTES + TAG_BYTES)
  );
}

function isHex(found: unknown, bytes: number): found is string {
  return typeof found === 'string' && found.length === 2 * bytes && /^[0-9a-f]*$/.test(found);
}

export function isRecord(found: unknown): found is Record<string, unknown> {
  return typeof found === 'object' && found !== null && !Array.isArray(found);
}

export function hexSum(sum: bigint): string {
  return sum.toString(16).padStart(16, '0');
}

export function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex');
}

/** The key is sealed with a key that scrypt makes from a salt drawn for this, and with nothing else ever. */
export async function encrypt(
  passphrase: string,
  repositoryKey: Uint8Array,
  salt: Uint8Array,
  cost: ScryptCost,
): Promise<Encryption> {
  const outer = await keyFromPassphrase(passphrase, salt, cost);
  const key = sealerWith(outer, FORMAT).seal(0, repositoryKey);
  return { ...cost, salt: hexOf(salt), key: hexOf(key) };
}

export async function unlock(
  { encryption }: Settings,
  passphrase: string | undefined,
  where: string,
): Promise<RepositoryKey> {
  if (encryption === null) return null;
  if (passphrase === undefined) {
    throw new RaidError('WRONG_PASSPHRASE', `${where} is encrypted: it needs its passphrase`, {
      device: where,
    });
  }
  const outer = await keyFromPassphrase(passphrase, Buffer.from(encryption.salt, 'hex'), encryption);
  const key = sealerWith(outer, FORMAT).open(0, Buffer.from(encryption.key, 'hex'));
  if (key === null) {
    throw new RaidError(
      'WRONG_PASSPHRASE',
      `${where} is encrypted, and not with this passphrase; without the right one nothing in it can be read`,
      { device: where },
    );
  }
  return key;
}
