/**
 * From devices to an array: creating one, and assembling one that is there. What is decided, md/ decides (placement.ts,
 * assemble.ts); here its answers become superblocks on devices, and a `RaidArray` over them.
 */
import type { Device } from '../device/device.ts';
import { PatchDevice } from '../device/patch.ts';
import { LOG_MEMBERS } from '../engine/memory.ts';
import { assert, RaidError } from '../errors.ts';
import { realHost } from '../host.ts';
import { checkChunk } from '../layout/checks.ts';
import { compileLayout } from '../layout/compile.ts';
import type { Geometry } from '../layout/geometry.ts';
import type { Layout } from '../layout/layout.ts';
import { layoutNumber, levelNumber, levels, parseLayout, parseLevel } from '../layout/levels.ts';
import { survives } from '../layout/survives.ts';
import {
  type AssembledArray,
  type Assembly,
  assemble,
  type Candidate,
  type MemberVerdict,
} from '../md/assemble.ts';
import {
  BITMAP_SUPERBLOCK_BYTES,
  type BitmapOwner,
  type BitmapSuperblock,
  Bits,
  bitmapAreaBytes,
  checkBitmap,
  decodeBitmapSuperblock,
  encodeBitmapSuperblock,
  isStale,
  newBitmapSuperblock,
} from '../md/bitmap.ts';
import { arraySectorsOf, geometryOf, levelNumbersOf } from '../md/levels.ts';
import { correctedSectorsOf, superblockPlaces } from '../md/member.ts';
import {
  type ConsistencyPolicy,
  defaultConsistency,
  type FirstSync,
  newArray,
  type Placement,
  setNameOf,
} from '../md/placement.ts';
import { emptyPplHeader, encodePplHeader, type PplCells } from '../md/ppl.ts';
import { formatUuid } from '../md/record.ts';
import {
  bitmapOffsetOf,
  encodeSuperblock1,
  ROLES_MAX,
  SUPERBLOCK_MAGIC,
  type Superblock1,
  type Version1,
} from '../md/superblock1.ts';
import { confirm, type MdArray, type MdMember, markDirty, witnessOf } from '../md/update.ts';
import { type ArrayRange, type ErasedRange, replacementOf } from '../plan/plan.ts';
import { parseSize, SECTOR_BYTES } from '../units.ts';
import { type EngineChoice, RaidArray, type Seed } from './array.ts';
import type { MemberState } from './members.ts';
import { dataDevice, type Hold, type LoadedBitmap, Metadata } from './metadata.ts';
import { parityPatches, writePatches } from './replay.ts';
import { type RowRange, rangesAtRisk } from './risk.ts';
import { badPlacesOn, candidateOf, logOn } from './superblocks.ts';

/** A device with what it is called, and what tells it from all others. */
export interface Source {
  readonly device: Device;
  /** `disk0`. */
  readonly name: string;
  /** Equal for two names of the same bytes. */
  readonly identity: string;
  /** What the manifest calls it; the device's own name where there is none. */
  readonly source?: string;
}

export interface ShapeOptions {
  /** `5`, `raid5`, `mirror` ... */
  readonly level: string | number;
  /** Default 512 KiB, as mdadm. */
  readonly chunk?: string | number | undefined;
  /** `left-symmetric`, `near=2`, `f2` ... */
  readonly layout?: string | undefined;
  readonly metadata?: Version1 | undefined;
  readonly bitmap?: 'internal' | 'none' | undefined;
  readonly bitmapChunk?: string | number | undefined;
  /**
   * What makes redundancy right after a crash; `ppl`, for raid5, also where a member is missing then. Default, as mdadm: `bitmap` where
   * members hold more than 100 GiB each, otherwise `resync`.
   */
  readonly consistencyPolicy?: 'resync' | 'bitmap' | 'ppl' | undefined;
  /** The array's own name, written into its superblocks. */
  readonly setName?: string | undefined;
  readonly homehost?: string | undefined;
}

export interface FormOptions extends ShapeOptions, EngineChoice {
  readonly name: string;
  /** How many of the sources are spares: the last ones. */
  readonly spares?: number | undefined;
  /** The members are known to agree: all zeros, or all parity right. Otherwise a resync makes them agree. */
  readonly assumeClean?: boolean | undefined;
  readonly hold?: Hold | undefined;
}

/** What an array of members of these sizes would be. Refuses what cannot be, before anything is touched. */
export function shapeArray(memberBytes: readonly number[], options: FormOptions): Shape {
  const host = options.host ?? realHost;
  const level = parseLevel(options.level);
  const choice = parseLayout(level, options.layout ?? 'default');
  checkCount(options.spares, 'spares');
  const raidDisks = memberBytes.length - (options.spares ?? 0);
  if (raidDisks < levels[level].membersMin) {
    throw new RaidError(
      'BAD_GEOMETRY',
      `${level} needs at least ${levels[level].membersMin} disks, and ${raidDisks} were given`,
    );
  }
  const chunkBytes = options.chunk === undefined ? levels[level].chunkBytesDefault : parseSize(options.chunk);
  const numbers = {
    level: levelNumber(level),
    layout: layoutNumber(choice),
    chunkSectors: levels[level].chunk === 'none' ? 0 : chunkBytes / SECTOR_BYTES,
    raidDisks,
  };
  checkChunk(level, chunkBytes);
  const firstSync: FirstSync = options.assumeClean === true || numbers.level <= 0 ? 'clean' : 'resync';
  const setName = options.setName ?? options.name;
  const shape = {
    version: options.metadata ?? '1.2',
    numbers,
    memberSectors: memberBytes.map((bytes) => Math.floor(bytes / SECTOR_BYTES)),
  };
  const { array, placement } = newArray({
    ...shape,
    consistency: consistencyOf(options, numbers) ?? defaultConsistency(shape, bitmapChunkOf(options)),
    setUuid: formatUuid(host.randomBytes(16)),
    setName:
      options.homehost === undefined
        ? setNameOf('', setName).replace(/^:/, '')
        : setNameOf(options.homehost, setName),
    ctime: { seconds: Math.floor(host.wallClock() / 1000), microseconds: 0 },
    deviceUuids: memberBytes.map(() => formatUuid(host.randomBytes(16))),
    firstSync,
  });
  const slots = array.members.filter((member) => member.state === 'in_sync');
  const geometry = geometryOf(
    { ...numbers, sizeSectors: placement.sizeSectors, hasRaid0Layout: true },
    slots.map((member) => member.superblock.dataSectors),
  );
  return { array, placement, geometry, layout: compileLayout(geometry), firstSync };
}

/** Whole, and no more than a superblock has numbers for. */
export function checkCount(count: number | undefined, what: 'disks' | 'spares'): void {
  if (count === undefined || (Number.isInteger(count) && count >= 0 && count <= ROLES_MAX)) return;
  throw new RaidError(
    'BAD_ARGUMENT',
    `${count} ${what} are not possible; take a whole number up to ${ROLES_MAX}`,
  );
}

/** Who shapes an array knows its members by number. */
function namingMember<T>(sources: readonly Source[], shape: () => T): T {
  try {
    return shape();
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    const source = sources[error.place.member ?? -1];
    if (source === undefined) throw error;
    const { name } = source.device;
    throw new RaidError(error.code, `${name}: ${error.message}`, {
      ...error.place,
      device: name,
      cause: error,
    });
  }
}

interface Shape {
  readonly array: MdArray;
  readonly placement: Placement;
  readonly geometry: Geometry;
  readonly layout: Layout;
  readonly firstSync: FirstSync;
}

/** Writes superblocks to devices, and returns the array that they are now. */
export async function formArray(sources: readonly Source[], options: FormOptions): Promise<RaidArray> {
  const host = options.host ?? realHost;
  const twice = sources.find(({ device }, at) => sources.findIndex((other) => other.device === device) < at);
  if (twice !== undefined) {
    throw new RaidError('BAD_ARGUMENT', `${twice.name} is given twice; each member is a disk of its own`, {
      device: twice.name,
    });
  }
  const sizes = sources.map(({ device }) => device.limits.sizeBytes);
  const { array, placement, geometry, layout, firstSync } = namingMember(sources, () =>
    shapeArray(sizes, options),
  );
  const devices = new Map(
    array.members.map((member) => [member.descriptor, sourceOf(sources, member).device]),
  );

  const bitmap =
    placement.bitmap === null
      ? null
      : newBitmap(array, placement.bitmap.syncSectors, placement.bitmap.chunkBytes, firstSync);
  for (const member of array.members) {
    const { device } = sourceOf(sources, member);
    await eraseSuperblocks(device, member.superblock);
    if (bitmap !== null) {
      const offset = bitmapOffsetOf(member.superblock);
      assert(offset !== null, 'a new array with a bitmap has a place for it');
      await device.write((member.superblock.superSector + offset) * SECTOR_BYTES, bitmap.bits.area);
    }
    if (placement.ppl !== null) {
      const at = (member.superblock.superSector + placement.ppl.offsetSectors) * SECTOR_BYTES;
      await device.write(at, encodePplHeader(emptyPplHeader(array.setUuid)));
    }
    await device.write(
      member.superblock.superSector * SECTOR_BYTES,
      sectorsOf(encodeSuperblock1(member.superblock)),
    );
    await device.flush();
  }
  const metadata = new Metadata({
    array,
    layout,
    host,
    devices,
    bitmap,
    hold: options.hold ?? null,
  });
  return new RaidArray({
    ...options,
    geometry,
    metadata,
    readOnly: false,
    seeds: array.members.map((member) => {
      const { name, device } = sourceOf(sources, member);
      return { ...seedOf(name, device, member, layout), log: metadata.logOf(device, member.superblock) };
    }),
    unsyncedFromBytes: array.resyncOffsetSectors * SECTOR_BYTES,
    erased: [],
    unlisted: [],
  });
}

export interface AssembleDevicesOptions extends EngineChoice {
  readonly name: string;
  readonly readOnly?: boolean | undefined;
  readonly force?: boolean | undefined;
  /** Start degraded, although members are missing that the array still counted on. */
  readonly run?: boolean | undefined;
  readonly raid0Layout?: 'original' | 'alternate' | undefined;
  readonly hold?: Hold | undefined;
  /** The update with which an assembly records what it decided is the caller's to make, before anything is written. */
  readonly leaveUpdate?: boolean | undefined;
}

/** What assembly decided, whether the array started or not. */
export interface AssemblyReport {
  /** One for each source, in their order. */
  readonly members: readonly MemberVerdict[];
  /** Sources that the array does not use: stale, foreign, faulty. They are the caller's to close. */
  readonly left: readonly number[];
  readonly forced: readonly string[];
  /** What the superblocks said before this assembly changed them; null where they are not of a kind that is written. */
  readonly witness: string | null;
  /** Superblocks are yet to be updated with what was decided beyond what they say (`leaveUpdate`). */
  readonly isUpdateDue: boolean;
  /** Array ranges that may hold anything, since `force` has declared the array clean: each time anew, in order. */
  readonly atRisk: () => Iterable<ArrayRange>;
}

/** Finds out what devices are to each other, without changing them. */
export async function judge(
  sources: readonly Source[],
  options: Pick<AssembleDevicesOptions, 'force' | 'run' | 'raid0Layout'> = {},
): Promise<{ readonly verdict: Assembly; readonly candidates: readonly Candidate[] }> {
  const candidates = await withLogs(
    await Promise.all(sources.map(({ device, name, identity }) => candidateOf(device, name, identity))),
    sources,
  );
  const verdict = assemble(candidates, {
    ...(options.force === true ? { force: true } : {}),
    ...(options.run === true ? { run: true } : {}),
    ...(options.raid0Layout === undefined ? {} : { raid0Layout: options.raid0Layout }),
  });
  return { verdict, candidates };
}

/** Of arrays that were not stopped cleanly. A member that missed the last update says clean, and has a log all the same. */
async function withLogs(
  candidates: readonly Candidate[],
  sources: readonly Source[],
): Promise<readonly Candidate[]> {
  const dirty = new Set(
    candidates.flatMap(({ claim }) =>
      claim instanceof RaidError || claim.resyncOffsetSectors === Number.POSITIVE_INFINITY
        ? []
        : [claim.setUuid],
    ),
  );
  return await Promise.all(
    candidates.map(async (candidate, index) => {
      const { claim } = candidate;
      const source = sources[index];
      if (claim instanceof RaidError || source === undefined || !dirty.has(claim.setUuid)) return candidate;
      const log = await logOn(source.device, claim);
      return log === undefined ? candidate : { ...candidate, log };
    }),
  );
}

/** Starts the array that these devices are. Throws what `judge` refused, naming every member that stood in the way. */
export async function assembleDevices(
  sources: readonly Source[],
  options: AssembleDevicesOptions,
): Promise<{ readonly array: RaidArray; readonly report: AssemblyReport }> {
  const { verdict, candidates } = await judge(sources, options);
  if (verdict.kind === 'refuse') throw refusal(verdict);
  const { array: found, members } = verdict;
  const layout = compileLayout(found.geometry);
  const md = found.md;
  const witness = md === null ? null : witnessOf(md);
  const readOnly = options.readOnly === true || md === null;
  const seeds: Seed[] = [];
  const devices = new Map<number, Device>();
  const taken = new Set<number>();
  const take = (
    candidate: number,
    state: MemberState,
    place: { dataOffsetSectors: number; dataSectors: number },
  ): void => {
    const source = sources[candidate];
    taken.add(candidate);
    assert(source !== undefined, 'assembly speaks of the devices it was given');
    const descriptor = descriptorOf(candidates, candidate);
    devices.set(descriptor, source.device);
    const claim = candidates[candidate]?.claim;
    const correctedSectors =
      claim === undefined || claim instanceof RaidError ? 0 : correctedSectorsOf(claim);
    const device = dataDevice(source.device, place, layout);
    seeds.push({ name: source.name, device, descriptor, state, correctedSectors });
  };
  for (const [slot, member] of found.slots.entries()) {
    if (member === null) continue;
    const state: MemberState =
      member.recoveredSectors === Number.POSITIVE_INFINITY
        ? { state: 'in_sync', slot }
        : {
            state: 'recovering',
            slot,
            recoveredBytes: member.recoveredSectors * SECTOR_BYTES,
            viaBitmap: member.viaBitmap,
          };
    take(member.candidate, state, member);
  }
  // What was being written when the last life ended may have reached only one of a member and its replacement, and neither
  // a resync nor a log compares the two: the copy starts over. Raid0 and linear never say that nothing was.
  const startsOver =
    (layout.kind === 'copies' && layout.copyCount === 1) ||
    found.replay !== null ||
    found.atRisk !== null ||
    found.resyncOffsetSectors !== Number.POSITIVE_INFINITY;
  for (const member of found.replacements) {
    const recoveredBytes = startsOver
      ? 0
      : Math.min(member.recoveredSectors * SECTOR_BYTES, layout.memberBytes[member.slot] ?? 0);
    take(member.candidate, { state: 'replacement', slot: member.slot, recoveredBytes }, member);
  }
  for (const candidate of found.spares) {
    const claimed = md?.members.find((member) => member.descriptor === descriptorOf(candidates, candidate));
    if (claimed !== undefined) take(candidate, { state: 'spare' }, claimed.superblock);
  }
  const listed = md === null ? noLists : await loadBadBlocks(md, devices, layout.memberCount);
  leaveWithoutLists(layout, found, seeds, listed.unread);
  const replayed =
    found.replay === null
      ? { refusing: [], unmade: [] }
      : await recoverFromLogs(layout, found, found.replay, seeds, listed.bad, readOnly);
  let unlisted = replayed.unmade;
  const leaving = [...listed.unread.keys(), ...replayed.refusing];
  const rows = md === null || found.atRisk === null ? [] : await rowsAtRisk(md, found, layout, devices);
  const bitmap = md === null || readOnly ? null : await loadBitmap(md, layout.geometry, devices);
  const metadata =
    md === null || readOnly
      ? null
      : new Metadata({
          array: startsOver ? withNewReplacements(md) : md,
          layout,
          host: options.host ?? realHost,
          devices,
          bitmap,
          hold: options.hold ?? null,
        });
  // Nor may some of the members go on without knowing how large the array is: mdadm would not take them together.
  const isUneven = md?.members.some(
    ({ superblock }) => superblock.sizeSectors !== md.sizeSectors || superblock.raidDisks !== md.raidDisks,
  );
  const isNews = found.forced.length > 0 || found.replay !== null || isUneven === true || leaving.length > 0;
  const isUpdateDue = metadata !== null && isNews && leaving.length === 0 && options.leaveUpdate === true;
  if (metadata !== null && isNews && !isUpdateDue) {
    for (const slot of new Set(replayed.unmade.map(({ member }) => member))) {
      const holder = holderOf(seeds, slot);
      const places = [...listed.bad, ...replayed.unmade].filter(({ member }) => member === slot);
      if (holder !== undefined && (await metadata.setBadBlocks(holder.descriptor, places)))
        unlisted = unlisted.filter(({ member }) => member !== slot);
    }
    if (leaving.length === 0) await metadata.update(unlisted.length > 0 ? markDirty : confirm);
    for (const descriptor of leaving) await metadata.fail(descriptor);
    // Who did not take the bitmap with that is recorded behind it, and nobody else would hear of it.
    await metadata.settled();
    noteFailures(seeds, metadata.array);
  }
  for (const seed of seeds) {
    const member = md?.members.find(({ descriptor }) => descriptor === seed.descriptor);
    const device = devices.get(seed.descriptor);
    if (member !== undefined && device !== undefined)
      seed.log = metadata?.logOf(device, member.superblock) ?? null;
  }
  const left = sources.flatMap((_, index) => (taken.has(index) ? [] : [index]));
  const isMissing = (slot: number): boolean =>
    found.slots[slot]?.recoveredSectors !== Number.POSITIVE_INFINITY;
  const atRisk = (): Iterable<ArrayRange> =>
    layout.kind === 'parity' ? rangesAtRisk(layout, isMissing, rows) : [];
  const report: AssemblyReport = { members, left, forced: found.forced, witness, isUpdateDue, atRisk };
  const array = new RaidArray({
    ...options,
    geometry: found.geometry,
    seeds,
    metadata,
    readOnly,
    unsyncedFromBytes: found.resyncOffsetSectors * SECTOR_BYTES,
    erased: listed.bad,
    unlisted,
    assembly: report,
  });
  return { array, report };
}

/**
 * Parity that the logs have to make is made, and durable; where nothing may be written, the members in `seeds` are given
 * a layer over them that shows it. A member that does not take its parity cannot be in the array as it is: the answer is
 * who has to leave. What it lacks is parity alone, so nothing is lost as long as it is the first one.
 */
async function recoverFromLogs(
  layout: Layout,
  { isVouchedFor }: Pick<AssembledArray, 'isVouchedFor'>,
  cells: readonly PplCells[],
  seeds: Seed[],
  erased: readonly ErasedRange[],
  readOnly: boolean,
): Promise<{ readonly refusing: readonly number[]; readonly unmade: readonly ErasedRange[] }> {
  assert(layout.kind === 'parity', 'only raid5 keeps logs');
  const holders = Array.from({ length: layout.memberCount }, (_, slot) => holderOf(seeds, slot));
  const sources = holders.map((seed) => {
    if (seed === undefined) return null;
    const { state, device } = seed;
    const trustedBytes = state.state === 'recovering' ? state.recoveredBytes : Number.POSITIVE_INFINITY;
    return { data: device, trustedBytes };
  });
  const { patches, unmade } = await parityPatches(layout, cells, sources, erased, isVouchedFor);
  let isWhole = holders.every((seed) => seed?.state.state === 'in_sync');
  const refusing: number[] = [];
  for (const [slot, list] of patches) {
    const holder = holders[slot];
    if (holder === undefined || list.length === 0) continue;
    if (readOnly) {
      holder.device = new PatchDevice(holder.device, list);
      continue;
    }
    try {
      await writePatches(holder.device, list);
    } catch (error) {
      const isItsOwn = error instanceof RaidError && error.reaction === 'fail-member';
      const mayLeave = isWhole || holder.state.state !== 'in_sync';
      if (!isItsOwn || !mayLeave) throw error;
      isWhole = false;
      refusing.push(holder.descriptor);
    }
  }
  return { refusing, unmade };
}

function holderOf(seeds: readonly Seed[], slot: number): Seed | undefined {
  return seeds.find(
    ({ state }) => (state.state === 'in_sync' || state.state === 'recovering') && state.slot === slot,
  );
}

function withNewReplacements(md: MdArray): MdArray {
  const members = md.members.map((member) =>
    member.state === 'replacement' ? { ...member, recoveredSectors: 0 } : member,
  );
  return { ...md, members };
}

/** Where the array was being written: what the bitmap says, or anywhere from where a resync had come to. */
async function rowsAtRisk(
  md: MdArray,
  { atRisk }: AssembledArray,
  layout: Layout,
  devices: ReadonlyMap<number, Device>,
): Promise<readonly RowRange[]> {
  const fromBytes = (atRisk?.fromSector ?? 0) * SECTOR_BYTES;
  const bitmap = await loadBitmap(md, layout.geometry, devices);
  if (bitmap === null) return [{ fromBytes, toBytes: md.sizeSectors * SECTOR_BYTES }];
  return [...bitmap.bits.dirtyRanges()]
    .map(({ fromSector, toSector }) => ({
      fromBytes: Math.max(fromBytes, fromSector * SECTOR_BYTES),
      toBytes: toSector * SECTOR_BYTES,
    }))
    .filter((range) => range.fromBytes < range.toBytes);
}

/** Who did not take the first update of this life is out before it begins, and what was to replace it starts over. */
function noteFailures(seeds: Seed[], md: MdArray): void {
  const isOut = ({ descriptor }: Seed): boolean =>
    md.members.some((member) => member.descriptor === descriptor && member.state === 'faulty');
  for (const seed of seeds.filter(isOut)) {
    if (seed.state.state === 'faulty') continue;
    const because = new RaidError(
      'WRITE_FAILED',
      `${seed.name} did not take what had to be written at the start`,
    );
    leave(seeds, seed, because);
  }
}

/** As `Members.expel` has it: what was to replace it is a spare again. */
function leave(seeds: readonly Seed[], seed: Seed, because: RaidError): void {
  const formerSlot = 'slot' in seed.state ? seed.state.slot : null;
  const isMember = seed.state.state === 'in_sync';
  seed.state = { state: 'faulty', formerSlot, because };
  for (const other of seeds) {
    const { state } = other;
    if (isMember && state.state === 'replacement' && state.slot === formerSlot)
      other.state = { state: 'spare' };
  }
}

/** The refusal, with what each member has against it: an operator must not have to guess which disk is meant. */
function refusal(verdict: Extract<Assembly, { kind: 'refuse' }>): RaidError {
  const lines = verdict.members
    .filter((member) => member.because !== '')
    .map((member) => `  ${member.name}: ${member.because}`);
  const hint = verdict.needs === null ? [] : [`  --${verdict.needs} starts it all the same`];
  const { error } = verdict;
  return new RaidError(error.code, [error.message, ...lines, ...hint].join('\n'), {
    ...error.place,
    cause: error,
  });
}

function descriptorOf(candidates: readonly Candidate[], index: number): number {
  const claim = candidates[index]?.claim;
  assert(claim !== undefined && !(claim instanceof RaidError), 'a member that joins has said who it is');
  return claim.descriptor;
}

/** Null where nothing is said of it. */
function consistencyOf(
  options: ShapeOptions,
  numbers: { readonly level: number; readonly raidDisks: number },
): ConsistencyPolicy | null {
  const { bitmap, consistencyPolicy } = options;
  if (bitmap === 'internal' && consistencyPolicy !== undefined && consistencyPolicy !== 'bitmap') {
    throw new RaidError(
      'BAD_ARGUMENT',
      `an array has a bitmap or the consistency policy ${consistencyPolicy}, not both; leave one out`,
    );
  }
  if (bitmap === 'none' && consistencyPolicy === 'bitmap') {
    throw new RaidError(
      'BAD_ARGUMENT',
      'the consistency policy bitmap needs a bitmap; leave one of them out',
    );
  }
  if (consistencyPolicy === 'ppl') {
    if (numbers.level !== 5) {
      throw new RaidError(
        'BAD_ARGUMENT',
        'only raid5 has a partial parity log; take the consistency policy resync or bitmap',
      );
    }
    if (numbers.raidDisks > LOG_MEMBERS) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `an array with a partial parity log has ${LOG_MEMBERS} disks at most`,
      );
    }
    return { policy: 'ppl' };
  }
  if (bitmap === 'internal' || consistencyPolicy === 'bitmap') {
    return { policy: 'bitmap', chunkBytes: bitmapChunkOf(options) };
  }
  return bitmap === 'none' || consistencyPolicy === 'resync' ? { policy: 'resync' } : null;
}

function bitmapChunkOf({ bitmapChunk }: ShapeOptions): number | null {
  return bitmapChunk === undefined ? null : parseSize(bitmapChunk);
}

function sourceOf(sources: readonly Source[], member: MdMember): Source {
  const source = sources[member.descriptor];
  assert(source !== undefined, 'a new array numbers its members in the order given');
  return source;
}

function seedOf(name: string, device: Device, member: MdMember, layout: Layout): Seed {
  const state: MemberState =
    member.state === 'in_sync' ? { state: 'in_sync', slot: member.slot } : { state: 'spare' };
  return {
    name,
    device: dataDevice(device, member.superblock, layout),
    descriptor: member.descriptor,
    state,
  };
}

/** Older superblocks of any version, so that nobody finds two arrays on one device. */
async function eraseSuperblocks(device: Device, own: Superblock1): Promise<void> {
  const memberSectors = Math.floor(device.limits.sizeBytes / SECTOR_BYTES);
  for (const place of superblockPlaces(memberSectors)) {
    if (place.offsetBytes === own.superSector * SECTOR_BYTES) continue;
    const bytes = new Uint8Array(place.lengthBytes);
    await device.read(place.offsetBytes, bytes);
    const magic = new DataView(bytes.buffer).getUint32(0, true);
    if (magic === SUPERBLOCK_MAGIC) await device.writeZeroes(place.offsetBytes, place.lengthBytes);
  }
}

function sectorsOf(bytes: Uint8Array): Uint8Array {
  const whole = new Uint8Array(Math.ceil(bytes.byteLength / 4096) * 4096);
  whole.set(bytes);
  return whole;
}

function ownerOf(array: MdArray, geometry: Geometry): BitmapOwner {
  const syncSectors = array.level === 10 ? arraySectorsOf(levelNumbersOf(geometry)) : array.sizeSectors;
  return { setUuid: array.setUuid, events: array.events, syncSectors };
}

function newBitmap(
  array: MdArray,
  syncSectors: number,
  chunkBytes: number,
  firstSync: FirstSync,
): { readonly superblock: BitmapSuperblock; readonly bits: Bits } {
  const superblock = newBitmapSuperblock(
    { setUuid: array.setUuid, events: array.events, syncSectors },
    chunkBytes,
  );
  const bits = Bits.empty(syncSectors, chunkBytes);
  // The tail beyond the last bit is ones, as mdadm leaves it; nobody reads it.
  bits.setAll();
  if (firstSync === 'clean') for (let bit = 0; bit < bits.bitCount; bit += 1) bits.clear(bit);
  bits.area.set(encodeBitmapSuperblock(superblock));
  return { superblock, bits };
}

/** The bitmap of the first member in sync that can be read there; the other copies follow it from now on. */
async function loadBitmap(
  array: MdArray,
  geometry: Geometry,
  devices: ReadonlyMap<number, Device>,
): Promise<LoadedBitmap | null> {
  let unreadable: RaidError | null = null;
  for (const { state, descriptor, superblock } of array.members) {
    const device = devices.get(descriptor);
    const offset = bitmapOffsetOf(superblock);
    if (state !== 'in_sync' || device === undefined) continue;
    if (offset === null) return null;
    try {
      return await bitmapOn(
        device,
        (superblock.superSector + offset) * SECTOR_BYTES,
        ownerOf(array, geometry),
      );
    } catch (error) {
      // One that is broken is not passed over; one that cannot be read is what the other copies are for.
      if (!(error instanceof RaidError) || error.reaction === 'refuse') throw error;
      unreadable ??= error;
    }
  }
  if (unreadable !== null) throw unreadable;
  return null;
}

async function bitmapOn(device: Device, at: number, owner: BitmapOwner): Promise<LoadedBitmap> {
  const head = new Uint8Array(Math.max(BITMAP_SUPERBLOCK_BYTES, 512));
  await device.read(at, head);
  const superblock = decodeBitmapSuperblock(head.subarray(0, BITMAP_SUPERBLOCK_BYTES));
  checkBitmap(superblock, owner);
  const area = new Uint8Array(bitmapAreaBytes(owner.syncSectors, superblock.chunkBytes));
  await device.read(at, area);
  const bits = new Bits(area, owner.syncSectors, superblock.chunkBytes);
  if (isStale(superblock, owner)) bits.setAll();
  // Of an array that has grown: nobody has written what lies behind the bits that there were.
  if (superblock.syncSectors < owner.syncSectors) bits.setFrom(superblock.syncSectors);
  return { superblock: { ...superblock, syncSectors: owner.syncSectors }, bits, mayDiffer: true };
}

interface Lists {
  readonly bad: readonly ErasedRange[];
  /** Members whose list cannot be had, and why: nobody knows which of their places are bad. */
  readonly unread: ReadonlyMap<number, RaidError>;
}

const noLists: Lists = { bad: [], unread: new Map() };

/** Of the members, and of what is to replace them, under its numbers. */
async function loadBadBlocks(
  array: MdArray,
  devices: ReadonlyMap<number, Device>,
  memberCount: number,
): Promise<Lists> {
  const bad: ErasedRange[] = [];
  const unread = new Map<number, RaidError>();
  for (const member of array.members) {
    const device = devices.get(member.descriptor);
    if (device === undefined || !('slot' in member)) continue;
    const { state, slot, superblock } = member;
    const number = state === 'replacement' ? replacementOf(memberCount, slot) : slot;
    try {
      bad.push(...(await badPlacesOn(device, superblock, array.sizeSectors, number)));
    } catch (error) {
      if (!(error instanceof RaidError) || error.code === 'CLOSED') throw error;
      unread.set(member.descriptor, error);
    }
  }
  return { bad, unread };
}

/** Who cannot say what is bad on it is out, as if it were not there; refused where the array needs it. */
function leaveWithoutLists(
  layout: Layout,
  found: AssembledArray,
  seeds: Seed[],
  unread: ReadonlyMap<number, RaidError>,
): void {
  if (unread.size === 0) return;
  const leaving = seeds.filter(({ descriptor }) => unread.has(descriptor));
  const isMissing = (slot: number): boolean =>
    found.slots[slot]?.recoveredSectors !== Number.POSITIVE_INFINITY ||
    leaving.some(({ state }) => state.state === 'in_sync' && state.slot === slot);
  for (const seed of leaving) {
    const because = unread.get(seed.descriptor);
    assert(because !== undefined, 'who leaves has a reason');
    const why = `the list of bad places on ${seed.name} cannot be read: ${because.message}`;
    if (!survives(layout, isMissing))
      throw new RaidError(
        because.code,
        `${why}; nobody knows which of its places are bad, and the array needs it`,
        {
          ...because.place,
          device: seed.name,
          cause: because,
        },
      );
    leave(seeds, seed, new RaidError(because.code, why, because.place));
  }
}
