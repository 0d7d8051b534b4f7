/**
 * Parity over packs: as raid5 and raid6 over members, with files in the place of chunks.
 *
 * A group is up to `groupPacks` packs, each at an index. Its parity files hold
 *
 *   P = D0 + D1 + ... + Dk-1          Q = 2^0*D0 + 2^1*D1 + ... + 2^(k-1)*Dk-1          (lib/parity)
 *
 * where Di is the file of pack i, with zeros behind it up to the length of the longest. Any one lost file with P, any two
 * with P and Q are computed from what is left, and cut to their length. All of it works on the files as they lie there:
 * encrypted, and without the key.
 *
 *   parity/<group>.p, .q
 *   0   8    "RAIDPRTY"
 *   8   4    length of the header
 *   12       header, JSON: { group, role, members: [{ name, sizeBytes, sum }] }
 *            P or Q
 *   -8  8    sum of the file
 *
 * Both files say who belongs to the group: with either of them lost, the other knows. With both lost no pack is lost that
 * they could have helped with, and the packs get into a new group.
 *
 * Two groups become one without reading a pack. With k packs in the first, those of the second come behind them, and
 *
 *   P = P1 + P2          Q = Q1 + 2^k*Q2
 *
 * The merged group is new files under a new name; the old ones go when the new are durable. So a pack may be in two groups
 * for a moment, or after a crash until somebody tidies up; each of them is right.
 */
import { assert } from '../errors.ts';
import { type Erasure, type Kernels, workAreaBytes } from '../parity/kernels.ts';
import { selectKernels } from '../parity/select.ts';
import { KIB, roundUp } from '../units.ts';
import { hasSum, putSum, SUM_BYTES, type Sum, viewOf } from './seal.ts';
import { hexSum, isRecord } from './settings.ts';

export type ParityRole = 'p' | 'q';
export const parityRoles: readonly ParityRole[] = ['p', 'q'];

export interface GroupMember {
  readonly name: string;
  readonly sizeBytes: number;
  /** xxHash64 of the whole file, its own sum included. */
  readonly sum: string;
}

export interface ParityFile {
  readonly group: string;
  readonly role: ParityRole;
  readonly members: readonly GroupMember[];
  readonly parity: Uint8Array;
}

const MAGIC = Buffer.from('RAIDPRTY', 'latin1');
const HEADER_AT = 12;

export function parityPath(group: string, role: ParityRole): string {
  return `parity/${group}.${role}`;
}

export function encodeParity({ group, role, members, parity }: ParityFile, sum: Sum): Uint8Array {
  const header = Buffer.from(JSON.stringify({ group, role, members }));
  const bytes = new Uint8Array(HEADER_AT + header.byteLength + parity.byteLength + SUM_BYTES);
  bytes.set(MAGIC);
  viewOf(bytes).setUint32(8, header.byteLength, true);
  bytes.set(header, HEADER_AT);
  bytes.set(parity, HEADER_AT + header.byteLength);
  putSum(bytes, sum);
  return bytes;
}

/** Null where it is not whole, or not what its name says. */
export function decodeParity(
  group: string,
  role: ParityRole,
  bytes: Uint8Array,
  sum: Sum,
): ParityFile | null {
  const members = membersOf(group, role, bytes);
  if (members === null || !hasSum(bytes, sum)) return null;
  const start = HEADER_AT + viewOf(bytes).getUint32(8, true);
  const parity = bytes.subarray(start, bytes.byteLength - SUM_BYTES);
  return parity.byteLength === longest(members) ? { group, role, members, parity } : null;
}

/** As much of a parity file as says who is in the group; `bytes` may end behind the header. */
export function membersOf(group: string, role: ParityRole, bytes: Uint8Array): readonly GroupMember[] | null {
  const end = headerEnd(bytes);
  if (end === null || end > bytes.byteLength) return null;
  let header: unknown;
  try {
    header = JSON.parse(Buffer.from(bytes.subarray(HEADER_AT, end)).toString('utf8'));
  } catch {
    return null;
  }
  if (!isRecord(header) || header['group'] !== group || header['role'] !== role) return null;
  const found: unknown = header['members'];
  return Array.isArray(found) && found.length > 0 && found.length < 255 && found.every(isMember)
    ? found
    : null;
}

/** Where the header ends, from the first 12 bytes; null where there is none. */
export function headerEnd(bytes: Uint8Array): number | null {
  if (bytes.byteLength < HEADER_AT || Buffer.compare(bytes.subarray(0, 8), MAGIC) !== 0) return null;
  const length = viewOf(bytes).getUint32(8, true);
  return length > 64 * KIB ? null : HEADER_AT + length;
}

function isMember(found: unknown): found is GroupMember {
  if (!isRecord(found)) return false;
  const { name, sizeBytes, sum } = found;
  return (
    typeof name === 'string' &&
    /^[0-9a-f]{32}$/.test(name) &&
    Number.isSafeInteger(sizeBytes) &&
    Number(sizeBytes) > 0 &&
    typeof sum === 'string'
  );
}

export function longest(members: readonly GroupMember[]): number {
  return Math.max(...members.map(({ sizeBytes }) => sizeBytes));
}

export function memberOf(name: string, bytes: Uint8Array, sum: Sum): GroupMember {
  return { name, sizeBytes: bytes.byteLength, sum: hexSum(sum(bytes)) };
}

export function isMemberFile(member: GroupMember, bytes: Uint8Array, sum: Sum): boolean {
  return bytes.byteLength === member.sizeBytes && hexSum(sum(bytes)) === member.sum;
}

/** Files are put through the kernels strip by strip, in a memory of their own. */
const STRIP_BYTES = 64 * KIB;
const WASM_PAGE_BYTES = 64 * KIB;

class Bench {
  readonly kernels: Kernels;
  readonly #bytes: Uint8Array;

  constructor(strips: number) {
    const pages =
      roundUp(workAreaBytes, WASM_PAGE_BYTES) / WASM_PAGE_BYTES + (strips * STRIP_BYTES) / WASM_PAGE_BYTES;
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    this.kernels = selectKernels(memory, 0);
    this.#bytes = new Uint8Array(memory.buffer);
  }

  address(strip: number): number {
    return roundUp(workAreaBytes, WASM_PAGE_BYTES) + strip * STRIP_BYTES;
  }

  /** What the file has at this offset, and zeros where it has ended. */
  load(strip: number, file: Uint8Array, offset: number, lengthBytes: number): void {
    const part = file.subarray(Math.min(offset, file.byteLength), offset + lengthBytes);
    const start = this.address(strip);
    this.#bytes.set(part, start);
    this.#bytes.fill(0, start + part.byteLength, start + lengthBytes);
  }

  store(strip: number, file: Uint8Array, offset: number, lengthBytes: number): void {
    const count = Math.min(lengthBytes, file.byteLength - offset);
    if (count > 0) file.set(this.#bytes.subarray(this.address(strip), this.address(strip) + count), offset);
  }
}

let adding: Bench | null = null;

/** P and Q of a group that grows, pack by pack. */
export class GroupParity {
  readonly members: GroupMember[] = [];
  readonly #roles: readonly ParityRole[];
  readonly #sums = new Map<ParityRole, Uint8Array>();

  constructor(roles: readonly ParityRole[]) {
    this.#roles = roles;
  }

  /** Goes on with a group whose parity files are all there. */
  static from(files: readonly ParityFile[]): GroupParity {
    const grown = new GroupParity(files.map(({ role }) => role));
    grown.members.push(...(files[0]?.members ?? []));
    for (const { role, parity } of files) grown.#sums.set(role, new Uint8Array(parity));
    return grown;
  }

  get sizeBytes(): number {
    return longest(this.members);
  }

  add(member: GroupMember, file: Uint8Array): void {
    assert(file.byteLength === member.sizeBytes, 'a member is as long as it says');
    const index = this.members.length;
    this.members.push(member);
    this.#grow();
    this.#accumulate(this.#roles, file, index);
  }

  /** All packs of another group, whose parity has the same roles, behind its own. */
  merge(other: GroupParity): void {
    const index = this.members.length;
    this.members.push(...other.members);
    this.#grow();
    for (const role of this.#roles) this.#accumulate([role], other.#sums.get(role)!, index);
  }

  #grow(): void {
    const { sizeBytes } = this;
    for (const role of this.#roles) {
      const sum = this.#sums.get(role);
      if (sum?.byteLength === sizeBytes) continue;
      const longer = new Uint8Array(sizeBytes);
      if (sum !== undefined) longer.set(sum);
      this.#sums.set(role, longer);
    }
  }

  /** P += file, and Q += 2^index * file. */
  #accumulate(roles: readonly ParityRole[], file: Uint8Array, index: number): void {
    adding ??= new Bench(2 + parityRoles.length);
    const bench = adding;
    const sums = roles.map((role, turn) => ({ strip: 2 + turn, sum: this.#sums.get(role)! }));
    const targetOf = (role: ParityRole): number | null =>
      roles.includes(role) ? bench.address(2 + roles.indexOf(role)) : null;
    const [zeros, data, p, q] = [bench.address(0), bench.address(1), targetOf('p'), targetOf('q')];
    bench.kernels.fill(zeros, 0, STRIP_BYTES);
    for (let offset = 0; offset < file.byteLength; offset += STRIP_BYTES) {
      const length = Math.min(STRIP_BYTES, file.byteLength - offset);
      bench.load(1, file, offset, length);
      for (const { strip, sum } of sums) bench.load(strip, sum, offset, length);
      bench.kernels.update(zeros, data, index, p, q, length);
      for (const { strip, sum } of sums) bench.store(strip, sum, offset, length);
    }
  }

  files(group: string): readonly ParityFile[] {
    return this.#roles.map((role) => ({
      group,
      role,
      members: [...this.members],
      parity: this.#sums.get(role) ?? new Uint8Array(0),
    }));
  }
}

/** What is left of a group: the files of its packs by index, null where they are lost, and its parity. */
export interface Remains {
  readonly members: readonly GroupMember[];
  readonly packs: readonly (Uint8Array | null)[];
  readonly p: Uint8Array | null;
  readonly q: Uint8Array | null;
}

/** What to do about what is lost, or null: nothing is, or too much. Parity files are made anew, not recovered. */
export function erasureOf({ packs, p, q }: Remains): Erasure | null {
  const lost = packs.flatMap((file, index) => (file === null ? [index] : []));
  const [x, y, ...more] = lost;
  if (x === undefined || more.length > 0) return null;
  if (y !== undefined) return p !== null && q !== null ? { kind: 'DD', x, y } : null;
  if (p !== null) return { kind: 'D', x };
  return q !== null ? { kind: 'DP', x } : null;
}

/**
 * The files of the lost packs, by index, or null where too much is lost. Whoever wants them checks their sums: that proves
 * that nothing of the group was wrong without being known to be.
 */
export function recoverPacks(remains: Remains): ReadonlyMap<number, Uint8Array> | null {
  const erasure = erasureOf(remains);
  if (erasure === null) return null;
  const { members, packs, p, q } = remains;
  const count = members.length;
  const bench = new Bench(count + 2);
  const data = members.map((_, index) => bench.address(index));
  const [addressP, addressQ] = [bench.address(count), bench.address(count + 1)];
  const recovered = new Map<number, Uint8Array>();
  packs.forEach((file, index) => {
    if (file === null) recovered.set(index, new Uint8Array(members[index]!.sizeBytes));
  });
  const sizeBytes = longest(members);
  for (let offset = 0; offset < sizeBytes; offset += STRIP_BYTES) {
    const length = Math.min(STRIP_BYTES, sizeBytes - offset);
    packs.forEach((file, index) => {
      if (file !== null) bench.load(index, file, offset, length);
    });
    if (p !== null) bench.load(count, p, offset, length);
    if (q !== null) bench.load(count + 1, q, offset, length);
    const needsQ = erasure.kind !== 'D';
    bench.kernels.recover(data, p === null ? null : addressP, needsQ ? addressQ : null, erasure, length);
    for (const [index, file] of recovered) bench.store(index, file, offset, length);
  }
  return recovered;
}
