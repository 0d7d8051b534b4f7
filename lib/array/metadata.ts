/**
 * What an array keeps on its members besides data: superblocks, write-intent bitmap, bad-block logs. It decides nothing
 * about members; it makes durable what the array decided, in the order that keeps it true after a power cut:
 *
 *   first write  [superblocks: all members alike] → [partial parity logs: empty]
 *   write        [superblocks: not clean; once in a life, whatever they said] → [bitmap bits] → [partial parity, by the engine] → data and parity
 *   idle, close  flush all members → [bitmap bits off] → [superblocks: clean]; neither while they count on one who is out
 *   failure      [superblocks of the survivors, events + 2] → answers that rely on it
 *   recovery     data → flush → [superblock: recovered up to here]
 *
 * What stands in brackets is flushed before the arrow after it.
 */
import type { Device } from '../device/device.ts';
import { SliceDevice } from '../device/slice.ts';
import { LOG_AREA_MIN, type LogShape } from '../engine/log.ts';
import { assert, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import type { Layout } from '../layout/layout.ts';
import { survives } from '../layout/survives.ts';
import { type BadRange, encodeBadBlocks } from '../md/badblocks.ts';
import type { BitmapSuperblock, Bits, SectorRange } from '../md/bitmap.ts';
import {
  emptyPplHeader,
  encodePplHeader,
  PPL_HEADER_BYTES,
  pplSignatureOf,
  pplUsableBytes,
  RESYNC_DUE,
} from '../md/ppl.ts';
import { formatUuid } from '../md/record.ts';
import { bblogAreaOf, bitmapOffsetOf, features, pplAreaOf, type Superblock1 } from '../md/superblock1.ts';
import {
  addSpare,
  checkpointRecovery,
  checkpointResync,
  confirm,
  degradedCount,
  failMember,
  finishRecovery,
  finishReplacement,
  hasRoomFor,
  judgeReAdd,
  type MdArray,
  type MdMember,
  markClean,
  markDirty,
  memberIn,
  type NewMember,
  reAdd,
  removeMember,
  setBadBlocks,
  startRecovery,
  startReplacement,
  stopArray,
} from '../md/update.ts';
import type { ErasedRange } from '../plan/plan.ts';
import { divCeil, KIB, MIB, SECTOR_BYTES } from '../units.ts';
import { Activity } from './activity.ts';
import { Intent } from './intent.ts';
import { type Change, MdRecord } from './record.ts';
import { badPlacesOn, superblockOn } from './superblocks.ts';

export interface LoadedBitmap {
  readonly superblock: BitmapSuperblock;
  readonly bits: Bits;
  /** Whether the members' copies may differ from this one. */
  readonly mayDiffer?: boolean;
}

export interface MetadataOptions {
  readonly array: MdArray;
  readonly layout: Layout;
  readonly host: Host;
  /** The whole device of every member that is open, by device number. */
  readonly devices: ReadonlyMap<number, Device>;
  readonly bitmap: LoadedBitmap | null;
  /** Null where nobody else could come by the members. */
  readonly hold: Hold | null;
}

/** The array's hold on its members, so that nobody else writes to them: see ownership.ts. */
export interface Hold {
  claim(device: Device): Promise<void>;
  unclaim(device: Device): Promise<void>;
  release(): Promise<void>;
}

/** How much of a member that becomes one is there, and as what it becomes one. */
interface Progress {
  readonly state: 'recovering' | 'replacement';
  readonly bytes: number;
}

/** The array, as its metadata sees it. */
export interface Attachment {
  /** All members have made durable what they were given. */
  flush(): Promise<void>;
  /** Whether the array does without this member: what is on record of that comes later. */
  isOut(descriptor: number): boolean;
  /** Whether something of that kind is on its way to the record. */
  isRecording(): boolean;
  /** All of that is on record; rejects where it cannot be. */
  untilRecorded(): Promise<void>;
  /** This member did not take its metadata, and is recorded as failed. */
  failed(descriptor: number, error: RaidError): void;
  /** Sync position up to which redundancy is right; Infinity when all of it is. */
  resyncedBytes(): number;
  /** Whether no data is lost without this member; if so, `failed` follows at once. */
  mayMiss(descriptor: number): boolean;
}

/** md's safe_mode_delay. */
const CLEAN_DELAY_MS = 200;
/** A checkpoint of a sync costs a flush and an update of all superblocks: not oftener than this. */
const CHECKPOINT_BYTES = 64 * MIB;
const CHECKPOINT_MS = 1000;
/** Linux's measure: twice 128 KiB of partial parity with a header. */
const MANY_HEADERS_BYTES = 2 * (128 * KIB + PPL_HEADER_BYTES);

export class Metadata {
  readonly #options: MetadataOptions;
  readonly #devices: Map<number, Device>;
  readonly #record: MdRecord;
  /** Null for raid0 and linear, which have no clean and dirty. */
  readonly #activity: Activity | null;
  readonly #intent: Intent | null;
  /** Null where the array keeps no partial parity log. */
  readonly logShape: LogShape | null;
  /** Resolves when every log is empty; null before the first write. */
  #logsBegun: Promise<void> | null = null;
  #areLogsBegun = false;
  /** Whether superblocks have changed in this life: by that, who keeps watch elsewhere knows that it may have written. */
  #isAnnounced = false;
  #announcing: Promise<void> | null = null;
  #attached: Attachment | null = null;
  /** Members on their way into the record as failed, because they did not take what is kept on them. */
  readonly #failing = new Set<number>();
  #isFailing = false;
  /** Resolves when all of them are on record, or one cannot be. */
  #failures: Promise<void> = Promise.resolve();
  /** How far each member is that becomes one, written or not; and as what, since it begins anew when that changes. */
  readonly #recovered = new Map<number, Progress>();
  #checkpointBytes = 0;
  #checkpointMs = 0;

  constructor(options: MetadataOptions) {
    this.#options = options;
    const { host } = options;
    this.#devices = new Map(options.devices);
    this.logShape = logShapeOf(options.array);
    const array = this.logShape === null ? options.array : withManyHeaders(options.array, this.logShape);
    this.#intent =
      options.bitmap === null
        ? null
        : new Intent({
            ...options.bitmap,
            write: (offsetBytes, bytes) => this.#writeBitmap(offsetBytes, bytes),
            untilTold: () => this.#untilNobodyIsOut(),
          });
    this.#record = new MdRecord({
      array,
      devices: this.#devices,
      host,
      before: async (next) => {
        await this.#intent?.follow(next.events, degradedCount(next) === 0);
      },
      mayMiss: (descriptor) => this.#mayMiss(descriptor),
      onFailure: (descriptor, error) => this.#attached?.failed(descriptor, error),
    });
    this.#activity =
      array.level <= 0
        ? null
        : new Activity({
            host,
            delayMs: CLEAN_DELAY_MS,
            markActive: async () => {
              await this.#beginLogs();
              await this.#intent?.level();
              await this.#record.change((array, utime) =>
                array.resyncOffsetSectors === 0 && this.#isAnnounced ? array : markDirty(array, utime),
              );
              this.#isAnnounced = true;
            },
            markClean: () => this.#becomeClean(),
          });
    this.#checkpointMs = host.now();
  }

  /** What is durable. */
  get array(): MdArray {
    return this.#record.array;
  }

  get isActive(): boolean {
    return this.#activity?.isActive ?? false;
  }

  get bitmap(): { readonly bits: Bits; readonly superblock: BitmapSuperblock } | null {
    return this.#intent === null ? null : { bits: this.#intent.bits, superblock: this.#intent.superblock };
  }

  /** To be called before the superblocks say so. */
  async growBitmap(fromSector: number, syncSectors: number): Promise<void> {
    await this.#intent?.grow(fromSector, syncSectors);
  }

  /** Before anything but a write of a caller is written to members. Null when it may be at once. */
  begin(): Promise<void> | null {
    if (this.#record.hasBegun && this.#intent?.mayDiffer !== true) return null;
    return (this.#intent?.level() ?? Promise.resolve()).then(() => this.#record.begin());
  }

  /**
   * Before a flush is acknowledged that is the first thing a life does. What a killed process had written may be in caches
   * still, and becomes durable on the members that are here; one that is away has not heard of it, and may come back with
   * what was there before. Where they say "clean", everything had been flushed. Null when there is nothing to record.
   */
  beginFlush(): Promise<void> | null {
    const mayHoldBack = this.array.members.some(
      ({ state, superblock }) =>
        state !== 'faulty' &&
        state !== 'spare' &&
        superblock.resyncOffsetSectors !== Number.POSITIVE_INFINITY,
    );
    return this.array.hasUnrecordedLoss && mayHoldBack ? this.begin() : null;
  }

  /** For changes of the array's shape, and for what assembly decided beyond what the superblocks say. */
  update(change: Change): Promise<void> {
    return this.#record.change(change);
  }

  /** Where a member has its partial parity log; null where it has none. */
  logOf(device: Device, superblock: Superblock1): Device | null {
    return this.logShape === null ? null : logDevice(device, superblock, this.logShape);
  }

  /** The whole device of a member. */
  deviceOf(descriptor: number): Device | null {
    return this.#devices.get(descriptor) ?? null;
  }

  /** Hears of every change before it is written, and at once of what is durable now. */
  follow(hear: (array: MdArray) => Promise<void>): Promise<void> {
    return this.#record.follow(hear);
  }

  attach(attached: Attachment): void {
    this.#attached = attached;
  }

  // Writes.

  /** Before a write to a range of the array. Null when it may start at once. */
  enter(offsetBytes: number, lengthBytes: number): Promise<void> | null {
    return this.#enter(this.#intent === null ? null : this.#coveredByArray(offsetBytes, lengthBytes));
  }

  leave(offsetBytes: number, lengthBytes: number): void {
    this.#leave(this.#intent === null ? null : this.#coveredByArray(offsetBytes, lengthBytes));
  }

  /** Before redundancy is rewritten in a range of sync positions. */
  async enterSync(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#enter(this.#intent === null ? null : sectorRange(offsetBytes, lengthBytes));
  }

  leaveSync(offsetBytes: number, lengthBytes: number): void {
    this.#leave(this.#intent === null ? null : sectorRange(offsetBytes, lengthBytes));
  }

  /**
   * The same for a resync: superblocks say already that redundancy may be wrong from here on, and saying "active" too
   * would keep its progress from being recorded.
   */
  async enterResync(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#intent?.enter(sectorRange(offsetBytes, lengthBytes));
  }

  leaveResync(offsetBytes: number, lengthBytes: number): void {
    this.#intent?.leave(sectorRange(offsetBytes, lengthBytes));
  }

  /** Every change asked for so far is on record. */
  async settled(): Promise<void> {
    await Promise.all([this.#record.settled(), this.#failures]);
  }

  /** Whether nobody counts on this member any more. */
  isOnRecord(descriptor: number): boolean {
    const member = this.array.members.find((each) => each.descriptor === descriptor);
    return !this.#record.isCutOff && (member === undefined || member.state === 'faulty');
  }

  // Members.

  /** Sectors of a member that could not be read and were rewritten. */
  countCorrected(descriptor: number, sectors: number): void {
    this.#record.countCorrected(descriptor, sectors);
  }

  fail(descriptor: number): Promise<void> {
    this.#recovered.delete(descriptor);
    return this.#record.change((array, utime) => {
      const member = array.members.find((each) => each.descriptor === descriptor);
      if (member === undefined || member.state === 'faulty') return array;
      return failMember(array, descriptor, utime);
    });
  }

  async remove(descriptor: number): Promise<void> {
    await this.#record.change((array, utime) => {
      const member = array.members.find((each) => each.descriptor === descriptor);
      if (member?.state === 'recovering') {
        // A replacement whose original has failed: on record it has the slot, and the array has yet to give it.
        const steps = failMember(array, descriptor, utime);
        return [...steps, removeMember(steps[1], descriptor, utime)];
      }
      if (member?.state !== 'spare' && member?.state !== 'faulty') {
        throw new RaidError('ARRAY_FAILED', 'that this member failed could not be put on record; it stays');
      }
      return removeMember(array, descriptor, utime);
    });
    this.#record.release(descriptor);
    const device = this.#devices.get(descriptor);
    this.#devices.delete(descriptor);
    if (device !== undefined) await this.#options.hold?.unclaim(device);
  }

  /** The device gets a superblock as a spare. */
  async add(
    device: Device,
  ): Promise<{ readonly data: Device; readonly log: Device | null; readonly descriptor: number }> {
    const added = this.#newMember(device);
    // Tried on the value first: a device that is too small is refused before anything is written.
    const { newcomer } = this.#withSpare(added);
    const { descriptor } = newcomer;
    await this.#refuseAlias(device);
    await this.#options.hold?.claim(device);
    this.#record.adopt(descriptor, device);
    this.#devices.set(descriptor, device);
    await this.#record.change((array, utime) => addSpare(array, added, utime));
    // Nobody has it yet to whom its failure could be told.
    if (this.array.members.find((each) => each.descriptor === descriptor)?.state !== 'spare') {
      await this.remove(descriptor);
      throw new RaidError('MEMBER_GONE', `${device.name} failed while it was being added`, {
        device: device.name,
      });
    }
    const { superblock } = newcomer;
    return { data: this.#dataOf(device, superblock), log: this.logOf(device, superblock), descriptor };
  }

  #newMember(device: Device): NewMember {
    return {
      memberSectors: Math.floor(device.limits.sizeBytes / SECTOR_BYTES),
      deviceUuid: formatUuid(this.#options.host.randomBytes(16)),
    };
  }

  #withSpare(added: NewMember): { readonly array: MdArray; readonly newcomer: MdMember } {
    const taken = new Set(this.array.members.map((member) => member.descriptor));
    const array = addSpare({ ...this.array, hasUnrecordedLoss: false }, added, this.array.ctime);
    const newcomer = array.members.find((member) => !taken.has(member.descriptor));
    assert(newcomer !== undefined, 'a spare that was added is there');
    return { array, newcomer };
  }

  /** Two paths to one file are told by the file. Two addresses of one export are told by nothing but what it holds. */
  async #refuseAlias(device: Device): Promise<void> {
    const { members, setUuid } = this.array;
    const own = await superblockOn(device).catch((error: unknown) => {
      if (error instanceof RaidError) return null;
      throw error;
    });
    if (own === null || own.setUuid !== setUuid) return;
    const same = members.find(
      ({ state, superblock }) => state !== 'faulty' && superblock.deviceUuid === own.deviceUuid,
    );
    if (same === undefined) return;
    const name = this.#devices.get(same.descriptor)?.name ?? `device ${same.descriptor}`;
    throw new RaidError(
      'DUPLICATE_MEMBER',
      `${device.name} says that it is ${name}, which is in the array: another way to the same disk, or a copy of it; a copy can be added when its superblock is gone (mdadm --zero-superblock)`,
      { device: device.name },
    );
  }

  /** Whether a former member may return; throws where it may not. Writes nothing. */
  async judgeReAdd(device: Device): Promise<{
    readonly data: Device;
    readonly log: Device | null;
    readonly descriptor: number;
    readonly slot: number;
    readonly isComplete: boolean;
    readonly bad: readonly ErasedRange[];
  }> {
    const stale = await superblockOn(device);
    const how = judgeReAdd(this.array, stale, this.#intent?.superblock.eventsCleared ?? null);
    if (how === 'no') {
      throw new RaidError(
        'EVENTS_DISAGREE',
        `${device.name} cannot return by what it has missed (its events ${stale.events}, the array's ${this.array.events}); add it as a new disk`,
        { device: device.name },
      );
    }
    const slot = stale.devRoles[stale.descriptor] ?? 0;
    return {
      data: this.#dataOf(device, stale),
      log: this.logOf(device, stale),
      descriptor: stale.descriptor,
      slot,
      isComplete: how === 'at-once',
      bad: await badPlacesOn(device, stale, this.array.sizeSectors, slot),
    };
  }

  /** How it came back, as judged when it did. */
  async reAdd(device: Device): Promise<'at-once' | 'via-bitmap'> {
    const before = this.array;
    const stale = await superblockOn(device);
    const early = judgeReAdd(before, stale, this.#intent?.superblock.eventsCleared ?? null);
    let taken: 'at-once' | 'via-bitmap' = 'via-bitmap';
    await this.#options.hold?.claim(device);
    this.#record.adopt(stale.descriptor, device);
    this.#devices.set(stale.descriptor, device);
    if (this.#intent !== null) await this.#giveBitmap(device, stale);
    await this.#emptyLog(device, stale);
    await this.#record.change((array, utime) => {
      // That it was missing has only now been put on record, and nothing else: it still has everything.
      const missedNothing =
        early === 'at-once' &&
        before.hasUnrecordedLoss &&
        array.events === before.events + 2 &&
        this.#activity?.hasBegun === false;
      const how = missedNothing
        ? early
        : judgeReAdd(array, stale, this.#intent?.superblock.eventsCleared ?? null);
      if (how === 'no')
        throw new RaidError('EVENTS_DISAGREE', `${device.name} has just become too old to return`);
      taken = how;
      return reAdd(array, stale, how, utime);
    });
    await this.#intent?.writeAll();
    const now = this.array.members.find((member) => member.descriptor === stale.descriptor);
    if (now?.state !== 'recovering')
      throw new RaidError('MEMBER_GONE', `${device.name} failed while its return was being recorded`, {
        device: device.name,
      });
    return taken;
  }

  /** False when there is nothing to recover there: the spare has failed, or the slot has a member on record. */
  async startRecovery(descriptor: number, slot: number): Promise<boolean> {
    const device = this.#devices.get(descriptor);
    const member = this.array.members.find((each) => each.descriptor === descriptor);
    if (this.#intent !== null && device !== undefined && member !== undefined) {
      await this.#giveBitmap(device, member.superblock);
    }
    if (device !== undefined && member !== undefined) await this.#emptyLog(device, member.superblock);
    await this.#forgetBadPlaces(descriptor);
    this.#recovered.set(descriptor, { state: 'recovering', bytes: 0 });
    await this.#record.change((array, utime) => {
      const now = array.members.find((each) => each.descriptor === descriptor);
      // A replacement whose original failed has the slot already; and a spare may have failed.
      return now?.state === 'spare' && memberIn(array, slot) === null
        ? startRecovery(array, descriptor, slot, utime)
        : array;
    });
    await this.#intent?.writeAll();
    return memberIn(this.array, slot)?.descriptor === descriptor;
  }

  /** The slot that a member is to fill: on record, a replacement whose original failed has its slot at once. */
  recoveringSlotOf(descriptor: number): number | null {
    const member = this.array.members.find((each) => each.descriptor === descriptor);
    return member?.state === 'recovering' ? member.slot : null;
  }

  /** Whether a spare is large enough for what the member in this slot holds. */
  hasRoomFor(descriptor: number, slot: number): boolean {
    return hasRoomFor(this.array, descriptor, slot);
  }

  /** The same of a device that is no spare yet; what could not even be one is refused. */
  wouldHaveRoomFor(device: Device, slot: number): boolean {
    const { array, newcomer } = this.#withSpare(this.#newMember(device));
    return hasRoomFor(array, newcomer.descriptor, slot);
  }

  /** False when there is nothing to replace there: either of the two has failed. */
  async startReplacement(descriptor: number, slot: number): Promise<boolean> {
    const device = this.#devices.get(descriptor);
    const member = this.array.members.find((each) => each.descriptor === descriptor);
    if (this.#intent !== null && device !== undefined && member !== undefined) {
      await this.#giveBitmap(device, member.superblock);
    }
    if (device !== undefined && member !== undefined) await this.#emptyLog(device, member.superblock);
    await this.#forgetBadPlaces(descriptor);
    this.#recovered.set(descriptor, { state: 'replacement', bytes: 0 });
    await this.#record.change((array, utime) => {
      // Either may have failed by now.
      const isThere = (state: MdMember['state'], sought: (member: MdMember) => boolean): boolean =>
        array.members.some((member) => member.state === state && sought(member));
      return isThere('spare', (member) => member.descriptor === descriptor) &&
        isThere('in_sync', (member) => member.state === 'in_sync' && member.slot === slot)
        ? startReplacement(array, descriptor, slot, utime)
        : array;
    });
    // Of what was set meanwhile it may have got nothing.
    await this.#intent?.writeAll();
    return this.array.members.some(
      (each) => each.descriptor === descriptor && each.state === 'replacement' && each.slot === slot,
    );
  }

  async finishReplacement(descriptor: number): Promise<void> {
    this.#recovered.delete(descriptor);
    this.#checkpointBytes = 0;
    await this.#record.change((array, utime) => {
      const member = array.members.find((each) => each.descriptor === descriptor);
      // The member it replaces did not take a superblock meanwhile: with that on record, this one has the slot, and is
      // said to be recovering, though it is whole.
      if (member?.state === 'recovering') return finishRecovery(array, descriptor, utime);
      return member?.state === 'replacement' ? finishReplacement(array, descriptor, utime) : array;
    });
  }

  /** Notes the progress, and now and then makes it durable. */
  async checkpointRecovery(descriptor: number, progress: Progress): Promise<void> {
    this.#recovered.set(descriptor, progress);
    if (!this.#isCheckpointDue(progress.bytes)) return;
    await this.#attached?.flush();
    await this.#record.change((array, utime) => this.#withProgress(array, utime));
  }

  async finishRecovery(descriptor: number): Promise<void> {
    this.#recovered.delete(descriptor);
    this.#checkpointBytes = 0;
    await this.#record.change((array, utime) => {
      const member = array.members.find((each) => each.descriptor === descriptor);
      return member?.state === 'recovering' ? finishRecovery(array, descriptor, utime) : array;
    });
  }

  /** As for a recovery; while writes are under way the superblocks keep saying that nothing is certain. */
  async checkpointResync(): Promise<void> {
    const resyncedBytes = this.#attached?.resyncedBytes() ?? 0;
    const isDone = resyncedBytes === Number.POSITIVE_INFINITY;
    if (!isDone && !this.#isCheckpointDue(resyncedBytes)) return;
    if (isDone) this.#checkpointBytes = 0;
    await this.#activity?.checkpoint();
  }

  /** False when there is no log to list them in, no room in it, or it is not taken. */
  async setBadBlocks(descriptor: number, ranges: readonly ErasedRange[]): Promise<boolean> {
    const device = this.#devices.get(descriptor);
    const member = this.array.members.find((each) => each.descriptor === descriptor);
    if (device === undefined || member === undefined) return true;
    const { superblock } = member;
    const area = bblogAreaOf(
      superblock,
      Math.floor(device.limits.sizeBytes / SECTOR_BYTES),
      (this.bitmap?.bits.area.byteLength ?? 0) / SECTOR_BYTES,
    );
    if (area === null) return false;
    // No shift of 32 bits: a unit may be larger.
    const unit = SECTOR_BYTES * 2 ** superblock.bblogShift;
    const start = superblock.dataOffsetSectors * SECTOR_BYTES;
    const bad = ranges.map((range): BadRange => {
      const from = Math.floor((start + range.offsetBytes) / unit);
      const to = divCeil(start + range.offsetBytes + range.lengthBytes, unit);
      return { fromSector: (from * unit) / SECTOR_BYTES, lengthSectors: ((to - from) * unit) / SECTOR_BYTES };
    });
    const log = encodeBadBlocks(bad, superblock.bblogShift, area.lengthSectors * SECTOR_BYTES);
    const because =
      log === null
        ? new RaidError('WRITE_FAILED', `${device.name} has more bad places than its log holds`)
        : await refusalOf(() =>
            device.write((superblock.superSector + area.offsetSectors) * SECTOR_BYTES, log, {
              fua: true,
            }),
          );
    if (because !== null) {
      // A list that is not what it should be: the member is no good, unless it is all that there is.
      if (member.state === 'in_sync' && !this.#mayMiss(descriptor)) return false;
      const recorded = this.fail(descriptor);
      // After that: what the array waits for from here on is the end of all changes asked for.
      this.#attached?.failed(descriptor, because);
      await recorded;
      return true;
    }
    await this.#record.change((array, utime) => setBadBlocks(array, descriptor, bad.length > 0, utime));
    return true;
  }

  // Sync.

  /** The next place from here on that a sync has to visit. */
  nextDirty(fromBytes: number): number {
    if (this.#intent === null) return fromBytes;
    const { bits } = this.#intent;
    const fromSector = Math.floor(fromBytes / SECTOR_BYTES);
    for (const range of bits.dirtyRanges()) {
      if (range.toSector > fromSector) return Math.max(fromBytes, range.fromSector * SECTOR_BYTES);
    }
    return Number.POSITIVE_INFINITY;
  }

  /** Whether the bitmap has a bit in a range of what it covers. */
  isDirty(offsetBytes: number, lengthBytes: number): boolean {
    if (this.#intent === null) return true;
    const { bits } = this.#intent;
    const { firstBit, lastBit } = bits.bitsOf(sectorRange(offsetBytes, lengthBytes));
    for (let bit = firstBit; bit <= lastBit; bit += 1) if (bits.has(bit)) return true;
    return false;
  }

  // The end.

  /** All members are flushed, and nothing is under way. */
  async stop(): Promise<void> {
    await this.#activity?.stop();
    await this.#record.settled();
    if (this.#recovered.size > 0)
      await this.#record.change((array, utime) => this.#withProgress(array, utime));
    if (this.array.level > 0) {
      const resynced = this.#resyncedSectors();
      while (!(await this.#unlessOneIsOut((array, utime) => stopArray(array, resynced, utime))))
        await this.#attached?.untilRecorded();
    }
    // Who did not take what was written last is out, and members are closed when that is on record.
    await this.#attached?.untilRecorded();
  }

  async close(): Promise<void> {
    await this.#record.settled();
    await this.#options.hold?.release();
  }

  /** Before anybody is attached, no member is in use, and the record itself tells of a failure. */
  #mayMiss(descriptor: number): boolean {
    if (this.#attached !== null) return this.#attached.mayMiss(descriptor);
    const isThere = (slot: number): boolean =>
      this.array.members.some(
        (each) => each.state === 'in_sync' && each.slot === slot && each.descriptor !== descriptor,
      );
    return survives(this.#options.layout, (slot) => !isThere(slot));
  }

  #enter(range: SectorRange | null): Promise<void> | null {
    // An array that was not clean when it was opened is active from the start.
    const logs = this.logShape === null || this.#areLogsBegun ? null : this.#beginLogs();
    const active = this.#activity === null ? this.#announce() : this.#activity.enter();
    const intent = this.#intent === null || range === null ? null : this.#intent.enter(range);
    const all = [logs, active, intent].filter((each) => each !== null);
    return all.length > 1 ? Promise.all(all).then(() => undefined) : (all[0] ?? null);
  }

  /** raid0 and linear: no more than an update before the first write. Null when it is on record. */
  #announce(): Promise<void> | null {
    if (this.#isAnnounced) return null;
    this.#announcing ??= this.#record.change(confirm).then(
      () => {
        this.#isAnnounced = true;
      },
      (error: unknown) => {
        this.#announcing = null;
        throw error;
      },
    );
    return this.#announcing;
  }

  #leave(range: SectorRange | null): void {
    if (this.#intent !== null && range !== null) this.#intent.leave(range);
    this.#activity?.leave();
  }

  async #becomeClean(): Promise<boolean> {
    await this.#attached?.flush();
    const resynced = this.#resyncedSectors();
    const isComplete = degradedCount(this.array) === 0 && !this.#countsOneWhoIsOut(this.array);
    if (this.#intent !== null && isComplete) {
      const { bits } = this.#intent;
      await this.#intent.clear((bit) => bits.rangeOf(bit).toSector > resynced);
    }
    return await this.#unlessOneIsOut((array, utime) =>
      resynced === Number.POSITIVE_INFINITY
        ? markClean(array, utime)
        : checkpointResync(array, resynced, utime),
    );
  }

  /** False where superblocks count on one who is out, and that is on its way to the record; rejects where it is not. */
  async #unlessOneIsOut(change: Change): Promise<boolean> {
    let isDone = true;
    await this.#record.change((array, utime) => {
      isDone = !this.#countsOneWhoIsOut(array);
      return isDone ? change(array, utime) : array;
    });
    if (!isDone && this.#attached?.isRecording() !== true) throw unrecorded();
    return isDone;
  }

  /**
   * Whether superblocks count on a member that the array does without. It lacks what the others have been given, or have flushed, so
   * with it nothing is right for certain: neither may bits go, nor may the array be called clean, until that is on record.
   */
  #countsOneWhoIsOut(array: MdArray): boolean {
    return array.members.some(
      ({ state, descriptor }) => state === 'in_sync' && this.#attached?.isOut(descriptor) === true,
    );
  }

  /**
   * Where superblocks count on one who is out, until they do not: one who has refused bits may be whom the next life reads them from.
   * Null where they count on nobody who is. After a change that was cut off some say so, and some do not.
   */
  #untilNobodyIsOut(): Promise<void> | null {
    if (this.#record.isCutOff) return this.#record.begin().then(() => this.#attached?.untilRecorded());
    return this.#countsOneWhoIsOut(this.array) ? (this.#attached?.untilRecorded() ?? null) : null;
  }

  #resyncedSectors(): number {
    const bytes = this.#attached?.resyncedBytes() ?? Number.POSITIVE_INFINITY;
    return bytes === Number.POSITIVE_INFINITY ? bytes : Math.floor(bytes / SECTOR_BYTES);
  }

  #isCheckpointDue(doneBytes: number): boolean {
    const now = this.#options.host.now();
    if (doneBytes - this.#checkpointBytes < CHECKPOINT_BYTES && now - this.#checkpointMs < CHECKPOINT_MS)
      return false;
    this.#checkpointBytes = doneBytes;
    this.#checkpointMs = now;
    return true;
  }

  #withProgress(array: MdArray, utime: MdArray['ctime']): MdArray {
    let next = array;
    for (const [descriptor, { state, bytes }] of this.#recovered) {
      const member = array.members.find((each) => each.descriptor === descriptor);
      const sectors = Math.floor(bytes / SECTOR_BYTES);
      const isUnderWay = member?.state === 'recovering' || member?.state === 'replacement';
      if (isUnderWay && member.state === state && member.recoveredSectors < sectors) {
        next = checkpointRecovery(next, descriptor, sectors, utime);
      }
    }
    return next;
  }

  /** The units of the bitmap: member sectors, but array sectors in raid10. */
  #coveredByArray(offsetBytes: number, lengthBytes: number): SectorRange {
    const { layout } = this.#options;
    if (layout.kind === 'copies') return sectorRange(offsetBytes, lengthBytes);
    const rowBytes = layout.chunkBytes * layout.dataCount;
    const first = Math.floor(offsetBytes / rowBytes);
    const end = divCeil(offsetBytes + lengthBytes, rowBytes);
    return sectorRange(first * layout.chunkBytes, (end - first) * layout.chunkBytes);
  }

  async #writeBitmap(offsetBytes: number, bytes: Uint8Array): Promise<void> {
    await allEnded(
      this.array.members.map(async (member) => {
        const device = this.#devices.get(member.descriptor);
        if (device === undefined || member.state === 'faulty' || member.state === 'spare') return;
        try {
          await device.write(bitmapStart(member) + offsetBytes, bytes, { fua: true });
        } catch (error) {
          if (!(error instanceof RaidError)) throw error;
          if (member.state === 'in_sync' && !this.#mayMiss(member.descriptor)) {
            throw new RaidError(
              'ARRAY_FAILED',
              `${device.name} does not take its bitmap, and the array cannot do without it; nothing can be written until it does`,
              { cause: error },
            );
          }
          this.#failSoon(member.descriptor, error);
        }
      }),
    );
  }

  /**
   * Once, before the first write: what is in the logs by then is of no use to anybody. All members have to say so first: one that
   * did not get the last life's "clean" would, with another missing, need its log again.
   */
  #beginLogs(): Promise<void> {
    if (this.logShape === null) return Promise.resolve();
    const emptying = (): Promise<void> => this.#record.begin().then(() => this.#emptyLogs());
    this.#logsBegun ??= emptying().then(
      () => {
        this.#areLogsBegun = true;
      },
      (error: unknown) => {
        this.#logsBegun = null;
        throw error;
      },
    );
    return this.#logsBegun;
  }

  async #emptyLogs(): Promise<void> {
    await allEnded(
      this.array.members.map(async (member) => {
        const device = this.#devices.get(member.descriptor);
        if (device === undefined || member.state === 'faulty' || member.state === 'spare') return;
        try {
          await this.#emptyLog(device, member.superblock);
        } catch (error) {
          if (!(error instanceof RaidError)) throw error;
          if (member.state === 'in_sync' && !this.#mayMiss(member.descriptor)) {
            throw new RaidError(
              'ARRAY_FAILED',
              `${device.name} does not take its partial parity log, and the array cannot do without it; nothing can be written until it does`,
              { cause: error },
            );
          }
          this.#failSoon(member.descriptor, error);
        }
      }),
    );
  }

  /**
   * Not awaited: this may be part of a change, and changes wait for each other. The array hears of it at once. The change
   * that fails a member writes the bitmap too: where it cannot be made, it and those of others would ask for each other
   * again, for ever. So one after the other is tried, and not again before somebody else's change meets the failure.
   */
  #failSoon(descriptor: number, error: RaidError): void {
    this.#failing.add(descriptor);
    if (!this.#isFailing) {
      this.#isFailing = true;
      this.#failures = this.#failAll().catch(() => undefined);
    }
    // After that: what the array waits for from here on is the end of all changes asked for.
    this.#attached?.failed(descriptor, error);
  }

  async #failAll(): Promise<void> {
    try {
      // A set is walked to the end, with what is added meanwhile.
      for (const descriptor of this.#failing) await this.fail(descriptor);
    } finally {
      this.#failing.clear();
      this.#isFailing = false;
    }
  }

  /** First it is no log any more, then zeros, then an empty log: a power cut in between leaves none that is believed. */
  async #emptyLog(device: Device, superblock: Superblock1): Promise<void> {
    if (this.logShape === null) return;
    const log = logDevice(device, superblock, this.logShape);
    const isSynced = this.#resyncedSectors() === Number.POSITIVE_INFINITY;
    const header = encodePplHeader({
      ...emptyPplHeader(this.array.setUuid, 1),
      entries: isSynced ? [] : [RESYNC_DUE],
    });
    const { areaBytes } = this.logShape;
    await log.write(0, new Uint8Array(PPL_HEADER_BYTES), { fua: true });
    await log.write(PPL_HEADER_BYTES, new Uint8Array(areaBytes - PPL_HEADER_BYTES), { fua: true });
    await log.write(0, header, { fua: true });
  }

  /** A spare may have been on its way into a slot before, and what it had not got then, it is to get now. */
  async #forgetBadPlaces(descriptor: number): Promise<void> {
    const member = this.array.members.find((each) => each.descriptor === descriptor);
    if (member === undefined || (member.superblock.featureMap & features.BADBLOCKS) === 0) return;
    await this.setBadBlocks(descriptor, []);
  }

  async #giveBitmap(device: Device, superblock: Superblock1): Promise<void> {
    const offset = bitmapOffsetOf({ ...superblock, featureMap: this.array.featureMap });
    if (this.#intent === null || offset === null) return;
    await device.write((superblock.superSector + offset) * SECTOR_BYTES, this.#intent.areaFor(), {
      fua: true,
    });
  }

  #dataOf(device: Device, superblock: Superblock1): Device {
    return dataDevice(device, superblock, this.#options.layout);
  }
}

/** What a member has against a write; null when it has taken it. */
async function refusalOf(write: () => Promise<void>): Promise<RaidError | null> {
  try {
    await write();
    return null;
  } catch (error) {
    if (error instanceof RaidError && error.code !== 'CLOSED') return error;
    throw error;
  }
}

function logShapeOf(array: MdArray): LogShape | null {
  const model = array.members.find((member) => member.state === 'in_sync');
  const area = model === undefined ? null : pplAreaOf({ ...model.superblock, featureMap: array.featureMap });
  if (area === null) return null;
  const areaBytes = pplUsableBytes(area.lengthSectors);
  if (areaBytes < LOG_AREA_MIN) {
    throw new RaidError(
      'UNSUPPORTED_FEATURE',
      `the array has ${areaBytes} bytes on each member for its partial parity log, too few to write with; open it for reading only`,
    );
  }
  return { signature: pplSignatureOf(array.setUuid), areaBytes };
}

/** mdadm says PPL, and the kernel MULTI_PPL from its first update on, where there is room for two of its largest. */
function withManyHeaders(array: MdArray, { areaBytes }: LogShape): MdArray {
  if (areaBytes < MANY_HEADERS_BYTES) return array;
  return { ...array, featureMap: (array.featureMap & ~features.PPL) | features.MULTI_PPL };
}

function logDevice(device: Device, superblock: Superblock1, { areaBytes }: LogShape): Device {
  // The place is alike on all members, whatever their own feature bits say at the moment.
  const area = pplAreaOf({ ...superblock, featureMap: features.MULTI_PPL });
  assert(area !== null, 'a member of an array with logs has a place for its own');
  return new SliceDevice(device, {
    offsetBytes: (superblock.superSector + area.offsetSectors) * SECTOR_BYTES,
    lengthBytes: areaBytes,
    name: device.name,
    shared: true,
  });
}

/** The member's data as the layout sees it. */
export function dataDevice(
  device: Device,
  superblock: { dataOffsetSectors: number; dataSectors: number },
  layout: Layout,
): Device {
  const offsetBytes = superblock.dataOffsetSectors * SECTOR_BYTES;
  const needed = Math.max(...layout.memberBytes);
  const lengthBytes = Math.min(superblock.dataSectors * SECTOR_BYTES, device.limits.sizeBytes - offsetBytes);
  return new SliceDevice(device, {
    offsetBytes,
    lengthBytes: Math.max(Math.min(lengthBytes, needed), 1),
    name: device.name,
  });
}

function unrecorded(): RaidError {
  return new RaidError(
    'ARRAY_FAILED',
    'that a member has failed is not on record, so the array is not recorded as clean',
  );
}

/**
 * Rejects only when all have ended: a member that fails late fails within the change that it belongs to, and not after it,
 * when it would be taken for a new failure (`failSoon`).
 */
async function allEnded(work: readonly Promise<void>[]): Promise<void> {
  for (const answer of await Promise.allSettled(work)) if (answer.status === 'rejected') throw answer.reason;
}

function bitmapStart(member: MdMember): number {
  const offset = bitmapOffsetOf(member.superblock);
  assert(offset !== null, 'a member of an array with a bitmap has a place for it');
  return (member.superblock.superSector + offset) * SECTOR_BYTES;
}

function sectorRange(offsetBytes: number, lengthBytes: number): SectorRange {
  return {
    fromSector: Math.floor(offsetBytes / SECTOR_BYTES),
    toSector: divCeil(offsetBytes + lengthBytes, SECTOR_BYTES),
  };
}
