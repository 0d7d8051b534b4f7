/**
 * Checksums and encryption of the files of a repository.
 *
 * Every file ends in the xxHash64 of all that comes before, in clear: rot is found, and parity computed, without the key.
 *
 * Encryption. A passphrase becomes a key by scrypt, and that key opens one thing only: the repository's own random key, in
 * the settings. So a passphrase can be changed without touching data. Each file is encrypted with a key of its own,
 *
 *   HKDF-SHA-256(repository key, salt = the file's 16 random bytes, info = "raidsim backup file")
 *
 * by AES-256-GCM. The discipline of nonces: a nonce is the number of the piece within its file, and a file is written once,
 * under a salt that was drawn for it. So no key ever meets a nonce twice, however many files there are, whoever is killed,
 * and whatever is done again; there is no counter to keep and none to lose. What can go wrong is that two files draw the
 * same 128-bit salt: 2^-65 with 2^32 files. In one file there are fewer than 2^32 pieces, far from GCM's limits.
 *
 * The name of the file is authenticated with each piece: a piece is good in its file and at its place, and nowhere else.
 *
 * Hidden: names and sizes of what is backed up, the sizes of its pieces, and which of them are shared. Visible to whoever
 * sees the store: how many backups there are, how much is stored (padded), when it was written, who holds the lock,
 * and who reads which backup.
 */
import { createCipheriv, createDecipheriv, hkdfSync, scrypt } from 'node:crypto';
import { promisify } from 'node:util';
import xxhash from 'xxhash-wasm';

export const SALT_BYTES = 16;
export const KEY_BYTES = 32;
export const TAG_BYTES = 16;
export const SUM_BYTES = 8;

/** xxHash64. */
export interface Sum {
  (bytes: Uint8Array): bigint;
  /** Of bytes that come one part after the other. */
  start(): RunningSum;
}

export interface RunningSum {
  update(bytes: Uint8Array): unknown;
  /** Of all so far; more may come. */
  digest(): bigint;
}

let loading: Promise<Sum> | null = null;

/** What returns it must be loaded first, once. */
export function loadSum(): Promise<Sum> {
  loading ??= xxhash().then(({ h64Raw, create64 }) =>
    Object.assign((bytes: Uint8Array) => h64Raw(bytes), { start: () => create64() }),
  );
  return loading;
}

/** Puts the sum of all that is before them into the last 8 bytes. */
export function putSum(bytes: Uint8Array, sum: Sum): void {
  const end = bytes.byteLength - SUM_BYTES;
  viewOf(bytes).setBigUint64(end, sum(bytes.subarray(0, end)), true);
}

export function hasSum(bytes: Uint8Array, sum: Sum): boolean {
  const end = bytes.byteLength - SUM_BYTES;
  return end >= 0 && viewOf(bytes).getBigUint64(end, true) === sum(bytes.subarray(0, end));
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** What a repository's files are encrypted with; null for a repository in clear. */
export type RepositoryKey = Uint8Array | null;

/** Encrypts the pieces of one file, or leaves them as they are. */
export interface Sealer {
  /** What a piece grows by. */
  readonly extraBytes: number;
  seal(piece: number, plain: Uint8Array): Uint8Array;
  /** The same into the front of `target`, which has room for it; how many bytes it came to. */
  sealInto(piece: number, plain: Uint8Array, target: Uint8Array): number;
  /** Null where the piece is not what was sealed. */
  open(piece: number, sealed: Uint8Array): Uint8Array | null;
}

const inClear: Sealer = {
  extraBytes: 0,
  seal: (_, plain) => plain,
  sealInto: (_, plain, target) => {
    target.set(plain);
    return plain.byteLength;
  },
  open: (_, sealed) => sealed,
};

export function sealerFor(key: RepositoryKey, salt: Uint8Array, name: string): Sealer {
  if (key === null) return inClear;
  const fileKey = new Uint8Array(hkdfSync('sha256', key, salt, 'raidsim backup file', KEY_BYTES));
  return sealerWith(fileKey, name);
}

export function sealerWith(key: Uint8Array, name: string): Sealer {
  const authenticated = Buffer.from(name);
  const sealInto: Sealer['sealInto'] = (piece, plain, target) => {
    const cipher = createCipheriv('aes-256-gcm', key, nonceOf(piece));
    cipher.setAAD(authenticated);
    target.set(cipher.update(plain));
    cipher.final();
    target.set(cipher.getAuthTag(), plain.byteLength);
    return plain.byteLength + TAG_BYTES;
  };
  return {
    extraBytes: TAG_BYTES,
    seal(piece, plain) {
      const sealed = new Uint8Array(plain.byteLength + TAG_BYTES);
      sealInto(piece, plain, sealed);
      return sealed;
    },
    sealInto,
    open(piece, sealed) {
      const end = sealed.byteLength - TAG_BYTES;
      if (end < 0) return null;
      const decipher = createDecipheriv('aes-256-gcm', key, nonceOf(piece), { authTagLength: TAG_BYTES });
      decipher.setAAD(authenticated);
      decipher.setAuthTag(sealed.subarray(end));
      const plain = decipher.update(sealed.subarray(0, end));
      try {
        decipher.final();
      } catch {
        return null;
      }
      return plain;
    },
  };
}

function nonceOf(piece: number): Uint8Array {
  const nonce = new Uint8Array(12);
  viewOf(nonce).setUint32(8, piece, false);
  return nonce;
}

export interface ScryptCost {
  /** N, a power of two. */
  readonly cost: number;
  readonly blockSize: number;
  readonly parallelization: number;
}

/** 128 MiB and about half a second: what an attacker pays for each guess. */
export const scryptCost: ScryptCost = { cost: 2 ** 17, blockSize: 8, parallelization: 1 };

const derive = promisify<string, Uint8Array, number, object, Buffer>(scrypt);

export async function keyFromPassphrase(
  passphrase: string,
  salt: Uint8Array,
  { cost, blockSize, parallelization }: ScryptCost,
): Promise<Uint8Array> {
  // Node refuses at its own limit of memory, which is below what these parameters need.
  const maxmem = 256 * cost * blockSize;
  // One spelling for what looks the same on different keyboards.
  return await derive(passphrase.normalize('NFKC'), salt, KEY_BYTES, {
    N: cost,
    r: blockSize,
    p: parallelization,
    maxmem,
  });
}

/**
 * A small file that is always read as a whole: indexes and backups.
 *
 *   0   8   what it is
 *   8   16  salt
 *   24      body, sealed as piece 0
 *   -8  8   sum
 */
export type ObjectKind = 'RAIDINDX' | 'RAIDBKUP';

const OBJECT_HEADER = 8 + SALT_BYTES;

export interface ObjectCodec {
  readonly key: RepositoryKey;
  readonly sum: Sum;
}

export function encodeObject(
  { key, sum }: ObjectCodec,
  kind: ObjectKind,
  name: string,
  salt: Uint8Array,
  body: Uint8Array,
): Uint8Array {
  const sealed = sealerFor(key, salt, name).seal(0, body);
  const bytes = new Uint8Array(OBJECT_HEADER + sealed.byteLength + SUM_BYTES);
  bytes.set(Buffer.from(kind, 'latin1'));
  bytes.set(salt, 8);
  bytes.set(sealed, OBJECT_HEADER);
  putSum(bytes, sum);
  return bytes;
}

/** Null where it is not whole, or not this. */
export function decodeObject(
  { key, sum }: ObjectCodec,
  kind: ObjectKind,
  name: string,
  bytes: Uint8Array,
): Uint8Array | null {
  if (bytes.byteLength < OBJECT_HEADER + SUM_BYTES || !hasSum(bytes, sum)) return null;
  if (Buffer.from(bytes.subarray(0, 8)).toString('latin1') !== kind) return null;
  const sealed = bytes.subarray(OBJECT_HEADER, bytes.byteLength - SUM_BYTES);
  return sealerFor(key, bytes.subarray(8, OBJECT_HEADER), name).open(0, sealed);
}
