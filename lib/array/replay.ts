/**
 * Recovery from partial parity logs, before an array that was not stopped cleanly is used: plan/replay.ts has the theory.
 * Finding out is reading; what comes of it are patches of parity, which are written and flushed, or, where nothing may
 * be written, laid over the member as it is read.
 *
 * Order: parity → flush → superblocks: clean, or a resync due as before → (before the first write) empty logs. A power
 * cut anywhere in between finds the same logs and makes the same parity of them again.
 */
import type { Device } from '../device/device.ts';
import type { Patch } from '../device/patch.ts';
import { RaidError } from '../errors.ts';
import type { ParityLayout } from '../layout/layout.ts';
import type { PplCells } from '../md/ppl.ts';
import type { ErasedRange } from '../plan/plan.ts';
import { replayOf } from '../plan/replay.ts';
import { SECTOR_BYTES } from '../units.ts';

export interface ReplaySource {
  readonly data: Device;
  /** True content below. */
  readonly trustedBytes: number;
}

export interface Replayed {
  /** By slot. */
  readonly patches: ReadonlyMap<number, readonly Patch[]>;
  /** Parity that cannot be made, since a chunk that was being written has a bad place there: nothing may be computed from it. */
  readonly unmade: readonly ErasedRange[];
}

/**
 * `sources` by slot; members that are missing are null. Touches nothing. An entry in the log of a member that has not the parity of
 * its row was never written by an array of this shape: nothing is made of it, and logs that vouch for all parity (`isVouchedFor`)
 * cannot vouch for the rest.
 */
export async function parityPatches(
  layout: ParityLayout,
  cells: readonly PplCells[],
  sources: readonly (ReplaySource | null)[],
  erased: readonly ErasedRange[],
  isVouchedFor: boolean,
): Promise<Replayed> {
  const patches = new Map<number, Patch[]>();
  const unmade: ErasedRange[] = [];
  for (const each of cells) {
    const lengthBytes = each.heightSectors * SECTOR_BYTES;
    const { parity, written } = replayOf(layout, {
      arrayOffsetBytes: each.dataSector * SECTOR_BYTES,
      chunkCount: each.chunkCount,
    });
    if (parity.member !== each.parityMember) {
      if (!isVouchedFor) continue;
      throw new RaidError(
        'SUPERBLOCK_BROKEN',
        `the partial parity log of member ${each.parityMember} is about a row whose parity is on member ${parity.member}`,
      );
    }
    if (sources[parity.member] === null || sources[parity.member] === undefined) continue;
    const list = patches.get(parity.member) ?? [];
    patches.set(parity.member, list);
    const made = new Uint8Array(lengthBytes);
    if (each.partialParity !== null) made.set(each.partialParity);
    const isMade = new Array<boolean>(each.heightSectors).fill(true);
    for (const { member, offsetBytes } of written) {
      const source = sources[member] ?? null;
      await addTo(made, isMade, source, member, offsetBytes, erased);
    }
    const isDoubtful = isMade.map((_, sector) =>
      written.some(({ member, offsetBytes }) =>
        isErased(erased, member, offsetBytes + sector * SECTOR_BYTES),
      ),
    );
    for (const [from, to] of runsOf(isMade)) {
      const bytes = made.slice(from * SECTOR_BYTES, to * SECTOR_BYTES);
      list.push({ offsetBytes: parity.offsetBytes + from * SECTOR_BYTES, bytes });
    }
    for (const [from, to] of runsOf(isDoubtful)) {
      const offsetBytes = parity.offsetBytes + from * SECTOR_BYTES;
      unmade.push({ member: parity.member, offsetBytes, lengthBytes: (to - from) * SECTOR_BYTES });
    }
  }
  return { patches, unmade };
}

/** From where to where they are true. */
function* runsOf(flags: readonly boolean[]): Generator<readonly [from: number, to: number]> {
  for (let from = 0; from < flags.length; from += 1) {
    if (flags[from] !== true) continue;
    let to = from + 1;
    while (flags[to] === true) to += 1;
    yield [from, to];
    from = to;
  }
}

/** Whether any of a sector is listed as bad. */
function isErased(erased: readonly ErasedRange[], member: number, at: number): boolean {
  return erased.some(
    (range) =>
      range.member === member &&
      range.offsetBytes < at + SECTOR_BYTES &&
      at < range.offsetBytes + range.lengthBytes,
  );
}

/** XORs what a member holds there into `sum`; sectors that it does not have, or that cannot be read, are not made. */
async function addTo(
  sum: Uint8Array,
  isMade: boolean[],
  source: ReplaySource | null,
  member: number,
  offsetBytes: number,
  erased: readonly ErasedRange[],
): Promise<void> {
  for (let sector = 0; sector < isMade.length; sector += 1) {
    const at = offsetBytes + sector * SECTOR_BYTES;
    if (source === null || at >= source.trustedBytes || isErased(erased, member, at)) isMade[sector] = false;
  }
  if (source === null || !isMade.includes(true)) return;
  const bytes = new Uint8Array(sum.byteLength);
  if (!(await isRead(source.data, offsetBytes, bytes))) {
    for (let sector = 0; sector < isMade.length; sector += 1) {
      const part = bytes.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
      if (!(await isRead(source.data, offsetBytes + sector * SECTOR_BYTES, part))) isMade[sector] = false;
    }
  }
  for (const [index, byte] of bytes.entries()) sum[index] = (sum[index] ?? 0) ^ byte;
}

async function isRead(device: Device, offsetBytes: number, target: Uint8Array): Promise<boolean> {
  try {
    await device.read(offsetBytes, target);
    return true;
  } catch (error) {
    if (error instanceof RaidError && error.reaction === 'reconstruct') return false;
    throw error;
  }
}

/** Durably. */
export async function writePatches(device: Device, patches: readonly Patch[]): Promise<void> {
  for (const { offsetBytes, bytes } of patches) await device.write(offsetBytes, bytes);
  await device.flush();
}
