/**
 * What the tests of interoperability share: arrays on image files on our side, the same arrays in the guest on the
 * other, and content that both can make without telling each other.
 *
 * All content comes from one *pool*: a file of pseudo-random bytes that the guest mounts. "What the array holds" is a
 * `Model`: a buffer filled from the pool, and changed by *patches*, each of which copies a piece of the pool to a
 * place. Both sides apply the same patches, so that the model's hash is known before anybody has read the array.
 *
 * A guest's script answers in lines `ARRAY KEY VALUE...`; `Answers` looks them up.
 */
import { spawnSync } from 'node:child_process';
import { createCipheriv, createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { RaidArray } from '../../lib/array/array.ts';
import {
  type AssembleDevicesOptions,
  assembleDevices,
  formArray,
  type ShapeOptions,
  type Source,
} from '../../lib/array/form.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { seededRandom } from '../../lib/host.ts';
import { MIB } from '../../lib/units.ts';
import { inKernel } from './kernel.ts';

export const POOL_BYTES = 96 * MIB;

/** A folder for one test file: in memory where there is some, since a test writes gigabytes and keeps nothing. */
export class Lab {
  readonly folder: string;
  readonly pool: Buffer;
  #names = 0;
  boots = 0;

  constructor(name: string) {
    const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
    this.folder = mkdtempSync(join(base, `raidsim-${name}-`));
    const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, 7), Buffer.alloc(16));
    this.pool = cipher.update(Buffer.alloc(POOL_BYTES));
    // A folder of its own: it is what the guest mounts.
    mkdirSync(join(this.folder, 'pool'));
    writeFileSync(join(this.folder, 'pool', 'bytes'), this.pool);
  }

  /** New empty images, sparse. */
  images(sizesMib: readonly number[]): string[] {
    this.#names += 1;
    const folder = join(this.folder, `set${this.#names}`);
    mkdirSync(folder);
    return sizesMib.map((sizeMib, index) => {
      const path = join(folder, `m${index}.img`);
      writeFileSync(path, '');
      // Whole sectors, and not only whole pages.
      truncateSync(path, Math.floor((sizeMib * MIB) / 512) * 512);
      return path;
    });
  }

  /** Boots with these arrays; see `guestPrelude` for what the script can call. */
  async boot(arrays: readonly GuestArray[], script: string, timeoutMs = 240_000): Promise<Answers> {
    this.boots += 1;
    const images = arrays.flatMap((array) => array.images);
    const out = await inKernel({
      script: `${guestPrelude(this.folder, arrays)}\n${script}\nexit 0\n`,
      images,
      timeoutMs,
    });
    return new Answers(out);
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export interface GuestArray {
  readonly id: string;
  readonly images: readonly string[];
}

export class Answers {
  readonly text: string;
  readonly #lines: readonly string[];

  constructor(text: string) {
    this.text = text;
    this.#lines = text.split('\n');
  }

  /** The last answer; null when there was none. */
  find(id: string, key: string): string | null {
    const start = `${id} ${key} `;
    return (
      this.#lines
        .filter((line) => `${line} `.startsWith(start))
        .at(-1)
        ?.slice(start.length) ?? null
    );
  }

  get(id: string, key: string): string {
    const found = this.find(id, key);
    if (found === null) throw new Error(`the guest did not say ${key} of ${id}; it said\n${this.text}`);
    return found;
  }

  /** Everything said of one array, for a failure's message. */
  about(id: string): string {
    return this.#lines.filter((line) => line.startsWith(`${id} `)).join('\n');
  }
}

/**
 * `use_ID` makes an array the current one: MD its device, SYS its place in sysfs, M its members, M0, M1 ... one by one.
 * Everything else is about the current one.
 */
function guestPrelude(folder: string, arrays: readonly GuestArray[]): string {
  let disk = 0;
  const uses = arrays.map(({ id, images }, number) => {
    const members = images.map((_, index) => `M${index}=$D${disk + index}`).join(' ');
    const all = images.map((_, index) => `$M${index}`).join(' ');
    disk += images.length;
    return `use_${id}() { ID=${id} N=md${number} MD=/dev/md${number} SYS=/sys/block/md${number}/md; ${members}; M="${all}"; }`;
  });
  return `
mkdir -p /run/pool; mount -n -t hostfs -o ${join(folder, 'pool')} none /run/pool
${uses.join('\n')}
say() { echo "$ID $*"; }
size() { echo $(( $(cat /sys/block/$N/size) * 512 )); }
create() { mdadm --create $MD --run --name=$ID "$@" </dev/null >/tmp/said 2>&1 && say created yes || say created no $(cat /tmp/said | tr '\\n' ' '); }
assemble() { if mdadm --assemble $MD "$@" >/tmp/said 2>&1; then say assembled yes; else say assembled no; fi; say said $(cat /tmp/said | tr '\\n' ' '); say size $(size); say degraded $(cat $SYS/degraded 2>/dev/null); }
stop() { for try in 1 2 3 4 5; do mdadm --stop $MD >/dev/null 2>&1 && return; sleep 0.2; done; say stop failed; }
fill() { dd if=/run/pool/bytes of=$MD bs=1M iflag=skip_bytes,count_bytes,fullblock skip=$1 count=$(size) conv=notrunc,fsync status=none || say fill failed; }
sum() { say \${1:-sum} $(dd if=$MD bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1); }
patch() { perl -e '$md = shift; open P, "<", "/run/pool/bytes" or die; open M, "+<", $md or die; for (@ARGV) { ($o, $l, $p) = split /:/; sysseek P, $p, 0; sysread(P, $b, $l) == $l or die; sysseek M, $o, 0; syswrite(M, $b) == $l or die }' $MD "$@" || say patch failed; blockdev --flushbufs $MD; }
start_check() { [ -e $SYS/sync_action ] && echo check >$SYS/sync_action; }
end_check() { [ -e $SYS/sync_action ] && say mismatches $(cat $SYS/mismatch_cnt); }
state() { say state $(cat $SYS/array_state) $(cat $SYS/degraded 2>/dev/null) $(cat $SYS/sync_action 2>/dev/null); }
`;
}

/** One line for each array: `use_ID; COMMANDS`. */
export function forEach(arrays: readonly GuestArray[], commands: string | ((id: string) => string)): string {
  return arrays
    .map(({ id }) => `use_${id}; ${typeof commands === 'string' ? commands : commands(id)}`)
    .join('\n');
}

/** Copies `lengthBytes` from a place in the pool to a place in the array. */
export interface Patch {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly poolBytes: number;
}

export function patchWords(patches: readonly Patch[]): string {
  return patches
    .map(({ offsetBytes, lengthBytes, poolBytes }) => `${offsetBytes}:${lengthBytes}:${poolBytes}`)
    .join(' ');
}

/** Places of all sizes, in whole sectors; the last sector of the array is always among them. */
export function randomPatches(seed: number, arrayBytes: number, count = 6): readonly Patch[] {
  const random = seededRandom(seed);
  const sectors = arrayBytes / 512;
  const patches: Patch[] = [];
  for (let index = 0; index < count; index += 1) {
    const length = 1 + random(index % 2 === 0 ? 16 : 2048);
    const offset = index === 0 ? sectors - length : random(Math.max(1, sectors - length));
    patches.push({
      offsetBytes: offset * 512,
      lengthBytes: length * 512,
      poolBytes: random((POOL_BYTES - length * 512) / 512) * 512,
    });
  }
  return patches;
}

/** What an array should hold. */
export class Model {
  bytes: Buffer;
  readonly #pool: Buffer;

  constructor(pool: Buffer, skipBytes: number, sizeBytes: number) {
    this.#pool = pool;
    if (skipBytes + sizeBytes > pool.byteLength)
      throw new Error(`the pool is too small for ${sizeBytes} bytes`);
    this.bytes = Buffer.from(pool.subarray(skipBytes, skipBytes + sizeBytes));
  }

  static of(pool: Buffer, content: Uint8Array): Model {
    const model = new Model(pool, 0, 0);
    model.bytes = Buffer.from(content);
    return model;
  }

  /** What a patch writes. */
  data({ poolBytes, lengthBytes }: Patch): Buffer {
    return this.#pool.subarray(poolBytes, poolBytes + lengthBytes);
  }

  apply(patches: readonly Patch[]): void {
    for (const patch of patches) this.bytes.set(this.data(patch), patch.offsetBytes);
  }

  get sum(): string {
    return createHash('sha256').update(this.bytes).digest('hex');
  }
}

// Our side.

export async function sourcesOf(paths: readonly string[]): Promise<Source[]> {
  return await Promise.all(
    paths.map(async (path, index) => {
      const device = await FileDevice.open(path);
      return { device, name: `m${index}`, identity: device.identity };
    }),
  );
}

export interface OurShape extends ShapeOptions {
  readonly spares?: number;
  readonly assumeClean?: boolean;
}

export async function form(paths: readonly string[], shape: OurShape): Promise<RaidArray> {
  return await formArray(await sourcesOf(paths), { name: 'ours', cores: 2, ...shape });
}

/** Assembles; closes what it opened when the array does not start. */
export async function reassemble(
  paths: readonly string[],
  options: Partial<AssembleDevicesOptions> = {},
): Promise<RaidArray> {
  const sources = await sourcesOf(paths);
  try {
    const { array } = await assembleDevices(sources, { name: 'ours', cores: 2, ...options });
    return array;
  } catch (error) {
    await Promise.all(sources.map(({ device }) => device.close()));
    throw error;
  }
}

const STEP_BYTES = 4 * MIB;

export async function fillWith(array: RaidArray, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.byteLength; at += STEP_BYTES)
    await array.write(at, bytes.subarray(at, at + STEP_BYTES));
}

export async function patchWith(array: RaidArray, model: Model, patches: readonly Patch[]): Promise<void> {
  for (const patch of patches) await array.write(patch.offsetBytes, model.data(patch));
  model.apply(patches);
}

export async function contentOf(array: RaidArray): Promise<Buffer> {
  // Not zeros: what is not read must show.
  const bytes = Buffer.alloc(array.limits.sizeBytes, 0xa5);
  for (let at = 0; at < bytes.byteLength; at += STEP_BYTES)
    await array.read(at, bytes.subarray(at, at + STEP_BYTES));
  return bytes;
}

export async function sumOf(array: RaidArray): Promise<string> {
  return createHash('sha256')
    .update(await contentOf(array))
    .digest('hex');
}

/** Mismatches found by our scrub; 0 where there is no redundancy. */
export async function scrubOf(array: RaidArray): Promise<number> {
  for await (const _ of array.scrub()) {
    // Only the sum at the end counts.
  }
  return array.mismatchCount;
}

/** All redundancy that is due has been restored. */
export async function settled(array: RaidArray): Promise<void> {
  for await (const _ of array.rebuild()) {
    // Only the end counts.
  }
}

// mdadm, on the host: it reads plain files.

export type Examined = ReadonlyMap<string, string>;

/** What `mdadm --examine` prints, by key; nothing for a file without a superblock. */
export function examine(path: string): Examined {
  const env = {
    PATH: `${process.env['PATH']}:/usr/sbin:/sbin`,
    TZ: 'UTC',
    LC_ALL: 'C',
    MDADM_NO_SYSTEMCTL: '1',
  };
  const { stdout: out } = spawnSync('mdadm', ['--examine', path], {
    env,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const found = new Map<string, string>();
  for (const line of out.split('\n')) {
    const match = /^\s*([A-Z][A-Za-z -]*?) : (.*)$/.exec(line);
    if (match?.[1] !== undefined && match[2] !== undefined) found.set(match[1], match[2].trim());
  }
  return found;
}

// Packing boots.

/** First fit, the largest first: few groups whose members have at most `most` images together. */
export function pack<Item extends { readonly imageCount: number }>(
  items: readonly Item[],
  most = 16,
): Item[][] {
  const groups: { left: number; items: Item[] }[] = [];
  for (const item of items.toSorted((a, b) => b.imageCount - a.imageCount)) {
    const group = groups.find(({ left }) => left >= item.imageCount);
    if (group === undefined) groups.push({ left: most - item.imageCount, items: [item] });
    else {
      group.left -= item.imageCount;
      group.items.push(item);
    }
  }
  return groups.map((group) => group.items);
}

/** So many at a time; a guest is one thread. */
export async function inTurns<Item>(
  items: readonly Item[],
  width: number,
  run: (item: Item) => Promise<void>,
): Promise<void> {
  const left = [...items];
  const worker = async (): Promise<void> => {
    for (let item = left.shift(); item !== undefined; item = left.shift()) await run(item);
  };
  await Promise.all(Array.from({ length: width }, worker));
}
