/**
 * An array over devices: what is asked of it, and what follows from a failure. A `RaidArray` is a `Device`.
 * members.ts has the states that a device goes through; here is what makes it go.
 *
 * The engine finds out about failures and stops trusting a member at once; the array decides what it means, and until
 * it has recorded that, nothing that relies on it is acknowledged (I5).
 *
 * With metadata the array is a Linux md array: every transition above is a change of its superblocks (record.ts), and
 * it says "clean" only while that is true (activity.ts). Without, it is an array for the time being, as a test wants
 * one: the same in every respect, but for what it leaves behind.
 *
 * Who is who changes in one turn after the other: each verb below, and each step of the sync that moves a member, decides on
 * what the last one has left and is on record before the next begins. Only a failure waits for nobody. So whoever
 * has waited for something within a turn looks again at whether its members still are what they were.
 *
 * Spares take over by themselves: whenever a slot is empty and a spare there, or redundancy is due after a crash, a
 * sync runs in the background (sync.ts), and `rebuild` watches it.
 */
import {
  Device,
  type Extent,
  type Lender,
  type Limits,
  totalBytes,
  type ZeroOptions,
} from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import type { Crew } from '../engine/crew.ts';
import {
  answered,
  type CheckResult,
  checkReach,
  type DriverKind,
  defaultDriver,
  Engine,
} from '../engine/engine.ts';
import type { Death } from '../engine/message.ts';
import type { Correction, Exclusion, Mismatch } from '../engine/run.ts';
import { stripeBytes } from '../engine/territory.ts';
import { assert, RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { compileLayout } from '../layout/compile.ts';
import type { Geometry } from '../layout/geometry.ts';
import type { Layout } from '../layout/layout.ts';
import { confirm, markDirty } from '../md/update.ts';
import { compileHealth } from '../plan/health.ts';
import { lostWithout } from '../plan/last-copy.ts';
import { type ErasedRange, type Health, isLost, replacementOf } from '../plan/plan.ts';
import { comparedBytes, planWrite, syncBytes } from '../plan/planner.ts';
import { divCeil, KIB, roundDown, roundUp, SECTOR_BYTES } from '../units.ts';
import type { AssemblyReport } from './form.ts';
import { type GrowOptions, recordGrowth } from './grow.ts';
import { type BadPlace, type Member, type MemberState, Members } from './members.ts';
import type { Metadata } from './metadata.ts';
import { ArraySnapshots } from './snapshots.ts';
import { type ArrayStatus, statusOf } from './status.ts';
import { Sync, type SyncProgress, type Walk, WINDOW_BYTES, Windows } from './sync.ts';

export interface ScrubProgress {
  readonly action: 'check' | 'repair';
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** Of the whole scrub so far: the rest, up to `doneBytes`, lacks the members that it would be compared with. */
  readonly comparedBytes: number;
  readonly mismatchCount: number;
  /** Found in this step. */
  readonly mismatches: readonly Mismatch[];
}

export type ArrayState = 'clean' | 'active' | 'degraded' | 'recovering' | 'resyncing' | 'failed';

export interface EngineChoice {
  readonly host?: Host | undefined;
  /** Default: lanes for members that threads can reach by themselves and more than one core; see engine.ts. */
  readonly driver?: DriverKind | undefined;
  readonly lanes?: number | undefined;
  /** Who lanes are; default: threads. */
  readonly crew?: Crew | undefined;
  readonly cores?: number | undefined;
  readonly heapBytes?: number | undefined;
  /** Of each member, that a sync or a scrub does in one step; default 4 MiB. */
  readonly windowBytes?: number | undefined;
  readonly kernel?: string | undefined;
  /** Spares take over by themselves, and a resync that is due runs; default true. */
  readonly autoSync?: boolean | undefined;
}

export interface RaidArrayOptions extends EngineChoice {
  readonly name?: string | undefined;
  readonly geometry: Geometry;
  /** By slot; null for a slot that is empty from the start. */
  readonly members: readonly (Device | null)[];
  readonly spares?: readonly Device[] | undefined;
}

/** A member as it comes in; `correctedSectors` is what its superblock has counted. */
export interface Seed {
  readonly name: string;
  device: Device;
  log?: Device | null;
  readonly descriptor: number;
  state: MemberState;
  readonly correctedSectors?: number;
}

/** An array whose members are known already, with their metadata: what assembly and creation end in. */
export interface AssembledOptions extends EngineChoice {
  readonly name: string;
  readonly geometry: Geometry;
  readonly seeds: readonly Seed[];
  /** Null for one that is only read. */
  readonly metadata: Metadata | null;
  readonly readOnly: boolean;
  /** Sync position from which redundancy may be wrong; Infinity when none is. */
  readonly unsyncedFromBytes: number;
  readonly erased: readonly ErasedRange[];
  /** Erased, and on no list yet. */
  readonly unlisted: readonly ErasedRange[];
  /** Absent for an array that has just been created. */
  readonly assembly?: AssemblyReport | undefined;
}

interface Compared extends CheckResult {
  readonly comparedBytes: number;
}

/** Of the array. */
interface Stretch {
  readonly fromBytes: number;
  readonly toBytes: number;
}

/** The unit in which what cannot be recovered is listed. */
const BAD_BLOCK_BYTES = 4 * KIB;
/** So often the end of a recovery or replacement waits for what writes have left bad on the new member. */
const PUT_OFF_AT_MOST = 3;

export class RaidArray extends Device {
  readonly name: string;
  readonly limits: Limits;
  /** An array computes: nobody may go round it. */
  readonly direct = null;
  readonly layout: Layout;
  /** What assembly found on each of the devices; null for an array that was not assembled. */
  readonly assembly: AssemblyReport | null;
  readonly #engine: Engine;
  readonly #host: Host;
  readonly #members: Members;
  readonly #metadata: Metadata | null;
  readonly #sync: Sync;
  #autoSync: boolean;
  readonly #windowBytes: number;
  /** Null for one that cannot have any: it is not in a folder, is only read, or writes to an overlay. */
  #snapshots: ArraySnapshots | null = null;
  /** Why its content is nobody's to read or write. */
  #unfit: RaidError | null = null;
  /** Its superblocks are to say, or say, another shape than this object has: it can only be read, and closed. */
  #outgrown: RaidError | null = null;
  /** Writes of any kind, from the call on. */
  #changes = new InFlight();
  /** Resolves when the last of the turns asked for has ended. */
  #lastTurn: Promise<unknown> = Promise.resolve();
  #unsyncedFromBytes: number;
  #lastMismatchCount = 0;
  /** Of the scrub that is under way. */
  #scrub: ScrubProgress | null = null;
  /** What the bad-block logs say. Not by device number: that of a disk that has left goes to another, whose log is empty. */
  readonly #lists = new WeakMap<Member, readonly ErasedRange[]>();
  /** The moment at which this life has begun to fill a member (bad places of before are its own), and how often the end has been put off. */
  readonly #filling = new WeakMap<Member, { readonly since: number; putOff: number }>();
  /** Resolves when the last of the lists asked for has been written, or could not be. */
  #lastList: Promise<void> = Promise.resolve();
  /** Has just become the member of its slot; requests of before know it as a replacement still. */
  #promoted: Member | null = null;
  /** Have become the members of their slots, and it is not on record yet; by each, the one that it replaces. */
  readonly #takingOver = new Map<Member, Member>();
  /** Until the record of the last of them is there, or could not be written. */
  #takeover: Promise<void> | null = null;
  /** From the first byte to the last that was written meanwhile: of one range, however often somebody tries. */
  #onlyThere: Stretch | null = null;
  /** Writes under way: those that a takeover finds when it begins may be on one of the two alone. */
  readonly #writing = new Set<Stretch>();
  /** Resolves when every failure so far is on record; null when that has been tried. */
  #recording: Promise<void> | null = null;
  /** Whether there are failures that could not be put on record when it was tried last. */
  #isUnrecorded = false;

  constructor(options: RaidArrayOptions | AssembledOptions) {
    super();
    this.layout = compileLayout(options.geometry);
    this.name = options.name ?? 'array';
    this.assembly = ('assembly' in options ? options.assembly : null) ?? null;
    this.#host = options.host ?? realHost;
    this.#autoSync = options.autoSync !== false;
    this.#windowBytes = options.windowBytes ?? WINDOW_BYTES;
    const isAssembled = 'seeds' in options;
    this.#members = new Members(this.layout, this.name, isAssembled ? options.erased : []);
    this.#metadata = isAssembled ? options.metadata : null;
    this.#unsyncedFromBytes = isAssembled ? options.unsyncedFromBytes : Number.POSITIVE_INFINITY;
    if (isAssembled) {
      for (const { correctedSectors = 0, ...seed } of options.seeds)
        this.#members.join({ ...seed, errors: { read: 0, write: 0, corrected: correctedSectors } });
      for (const member of this.#members.list) this.#lists.set(member, this.#members.badOf(member));
      this.#members.damage(options.unlisted);
    } else this.#adoptAll(options);
    const devices = this.#members.list.map((member) => member.device);
    this.limits = {
      sizeBytes: this.layout.arrayBytes,
      blockBytes: Math.max(1, ...devices.map((device) => device.limits.blockBytes)),
      preferredBytes: stripeBytes(this.layout),
      readOnly:
        ('readOnly' in options && options.readOnly) || devices.some((device) => device.limits.readOnly),
    };
    this.#checkBlocks();
    const cores = options.cores ?? 1;
    const driver = options.driver ?? defaultDriver(devices, cores, options.crew);
    for (const device of devices) checkReach(driver, device, options.crew);
    if (!this.#members.surviveWithout()) {
      throw new RaidError('ARRAY_FAILED', `${this.name}: so many members are missing that data is too`);
    }
    this.#engine = new Engine({
      layout: this.layout,
      members: this.#members.devicesInUse((this.#metadata?.logShape ?? null) !== null),
      health: this.#health(),
      host: this.#host,
      driver,
      lanes: options.lanes,
      crew: options.crew,
      cores,
      heapBytes: options.heapBytes,
      kernel: options.kernel,
      readOnly: this.limits.readOnly,
      log: this.limits.readOnly ? null : (this.#metadata?.logShape ?? null),
      record: { isOwed: () => !this.#isRecorded, settled: () => this.#untilRecorded() },
      onExclusion: (exclusions) => this.#excluded(exclusions),
      onCorrection: (corrections) => this.#corrected(corrections),
      onDamage: (ranges) => this.#damaged(ranges),
    });
    this.#sync = new Sync(this.#host, this.#windowBytes, () => this.#nextSyncStep());
    this.#metadata?.attach({
      flush: () => this.#flushMembers(),
      isOut: (descriptor) =>
        this.#members.list.some((each) => each.descriptor === descriptor && each.state.state === 'faulty'),
      isRecording: () => this.#recording !== null,
      untilRecorded: () => this.#untilRecorded(),
      failed: (descriptor, error) => this.#failedWhileRecording(descriptor, error),
      resyncedBytes: () => (this.#hidesDamage() ? 0 : this.#unsyncedFromBytes),
      mayMiss: (descriptor) => this.#mayMiss(descriptor),
    });
    this.#startSync();
  }

  get engine(): {
    readonly driver: DriverKind;
    readonly lanes: number;
    readonly laneDeaths: number;
    readonly kernel: string;
  } {
    return {
      driver: this.#engine.kind,
      lanes: this.#engine.laneCount,
      laneDeaths: this.#engine.laneDeaths,
      kernel: this.#engine.kernelName,
    };
  }

  get metadata(): Metadata | null {
    return this.#metadata;
  }

  get snapshots(): ArraySnapshots | null {
    return this.#snapshots;
  }

  /**
   * The array has its snapshots in this file, if it has any: before anybody else has the array, and before it begins to sync,
   * since `assembly` speaks of superblocks as they were found.
   */
  async keepSnapshots(folder: string, path: string, autoSync: boolean): Promise<void> {
    const metadata = this.#metadata;
    assert(metadata !== null && this.#snapshots === null, 'an array that is written has one snapshot store');
    this.#snapshots = new ArraySnapshots({
      folder,
      path,
      name: this.name,
      limits: this.limits,
      host: this.#host,
      metadata,
      below: {
        read: (offsetBytes, targets) => this.#engine.read(offsetBytes, targets),
        write: (offsetBytes, sources, fua) => this.#write(offsetBytes, sources, fua),
        writeZeroes: (offsetBytes, lengthBytes, options) =>
          this.#writeZeroes(offsetBytes, lengthBytes, options),
        flush: () => this.#flush(),
        settled: async () => {
          const changes = this.#changes;
          this.#changes = new InFlight();
          await changes.whenIdle();
        },
        close: () => this.#close(),
      },
    });
    const { assembly } = this;
    await this.#snapshots.open({
      witness: assembly?.witness ?? null,
      isForced: (assembly?.forced ?? []).length > 0,
      update: async () => {
        if (assembly?.isUpdateDue !== true) return;
        // What is bad is listed before superblocks say that the array is clean.
        if (this.#members.hidesDamage()) await this.#recordBadBlocks([]);
        await metadata.update(this.#members.hidesDamage() ? markDirty : confirm);
      },
    });
    this.#autoSync = autoSync;
    this.#startSync();
  }

  /** Everything but what members are is refused with this from here on. */
  refuseRequests(because: RaidError): void {
    this.#unfit = because;
  }

  get members(): readonly Readonly<Member>[] {
    return this.#members.list;
  }

  override get lender(): Lender {
    return this.#engine;
  }

  get state(): ArrayState {
    if (!this.#members.surviveWithout()) return 'failed';
    if (this.#members.list.some((member) => member.state.state === 'recovering')) return 'recovering';
    if (this.degraded > 0) return 'degraded';
    if (this.#unsyncedFromBytes !== Number.POSITIVE_INFINITY) return 'resyncing';
    return this.#metadata?.isActive === true ? 'active' : 'clean';
  }

  /** Slots without a member in sync. */
  get degraded(): number {
    return this.#members.degraded;
  }

  get health(): Health {
    return this.#health();
  }

  /** What the sync that runs, or was last interrupted, has done; null when none is due. */
  get syncProgress(): SyncProgress | null {
    return this.#sync.progress;
  }

  get syncRate(): { readonly bytesPerSecond: number | null; readonly etaSeconds: number | null } {
    const bytesPerSecond = this.#sync.bytesPerSecond;
    const progress = this.#sync.progress;
    if (bytesPerSecond === null || progress === null) return { bytesPerSecond: null, etaSeconds: null };
    return { bytesPerSecond, etaSeconds: (progress.totalBytes - progress.doneBytes) / bytesPerSecond };
  }

  /** The object that `status --json` prints. */
  status(): ArrayStatus {
    return statusOf(this);
  }

  /** Of a scrub that is under way. */
  get scrubProgress(): ScrubProgress | null {
    return this.#scrub;
  }

  /** What the last scrub found. */
  get mismatchCount(): number {
    return this.#lastMismatchCount;
  }

  /**
   * The member is not used from now on, as if it had failed by itself. Refused where that would lose data: the last copy
   * is never taken.
   */
  fail(which: string | number, because?: RaidError): Promise<void> {
    return this.#verb(async () => {
      const member = this.#members.named(which);
      const { state } = member;
      if (state.state === 'faulty') return;
      if (state.state === 'in_sync') this.#refuseLastCopy(member, state.slot);
      this.#members.expel(
        member,
        because ?? new RaidError('MEMBER_GONE', `${member.name} was failed by hand`),
      );
      // No job that relied on it is under way when its failure is recorded, and none that needs the record is answered.
      await this.#recorded(async () => {
        await this.#engine.setHealth(this.#health());
        await this.#metadata?.fail(member.descriptor);
      });
      this.#startSync();
    });
  }

  #refuseLastCopy(member: Member, slot: number): void {
    const place = { device: member.name, member: slot };
    const isSpared = this.#members.surviveWithout([slot]);
    const lost = isSpared ? lostWithout(this.layout, this.#health(), [slot]) : [];
    if (lost.length > 0) {
      const said = lost.slice(0, 3).map((each) => `${each.lengthBytes} bytes at ${each.offsetBytes}`);
      if (lost.length > 3) said.push(`${lost.length - 3} more places`);
      throw new RaidError(
        'LAST_COPY',
        `${member.name} holds the last copy of ${said.join(', ')} in ${this.name}, which others list as bad; replace it, or write there, before failing it`,
        { ...place, ...lost[0], ...(lost.length > 1 ? { lost } : {}) },
      );
    }
    if (this.#canMiss([slot])) return;
    throw new RaidError(
      'LAST_COPY',
      `${member.name} holds the last copy of data in ${this.name}; add a disk and rebuild before failing it`,
      place,
    );
  }

  /** A faulty member or a spare leaves. Its device, the whole of it, is the caller's again. */
  remove(which: string | number): Promise<Device> {
    return this.#verb(async () => {
      const member = this.#members.named(which);
      if (member.state.state !== 'faulty' && member.state.state !== 'spare') {
        throw new RaidError('BUSY', `${member.name} is ${member.state.state}; fail it before removing it`, {
          device: member.name,
        });
      }
      // That it failed may still be on its way into the record.
      await this.#untilRecorded();
      const whole = this.#metadata?.deviceOf(member.descriptor) ?? member.device;
      await this.#metadata?.remove(member.descriptor);
      this.#members.leave(member);
      return whole;
    });
  }

  /**
   * A new spare; it takes over an empty slot by itself. With metadata, the whole device, which gets a superblock. `toReplace`: a
   * member that it is to `replace` next; a device that could not is refused, and is no spare then.
   */
  add(
    device: Device,
    name?: string,
    { toReplace }: { readonly toReplace?: string | undefined } = {},
  ): Promise<Readonly<Member>> {
    return this.#verb(async () => {
      const replaced = toReplace === undefined ? null : this.#replaceable(toReplace);
      this.#engine.checkReach(device);
      this.#checkStranger(device);
      if (this.state === 'failed')
        throw new RaidError(
          'ARRAY_FAILED',
          `${this.name} has failed; a new disk has nothing to be rebuilt from`,
        );
      let data = device;
      let log: Device | null = null;
      let descriptor = -1;
      if (this.limits.blockBytes % device.limits.blockBytes !== 0) {
        throw new RaidError(
          'BAD_ARGUMENT',
          `${device.name} takes blocks of ${device.limits.blockBytes} bytes, and ${this.name} has blocks of ${this.limits.blockBytes}`,
          { device: device.name },
        );
      }
      if (this.#metadata === null) this.#checkSpare(device);
      else {
        if (replaced !== null && !this.#metadata.wouldHaveRoomFor(device, replaced.slot))
          throw this.#tooSmallFor(replaced.member, replaced.slot, name ?? device.name);
        ({ data, log, descriptor } = await this.#metadata.add(device));
      }
      const member = this.#members.adopt(data, { state: 'spare' }, descriptor, name, log);
      this.#startSync();
      return member;
    });
  }

  /**
   * A former member comes back to its slot, and gets only what it has missed. Throws EVENTS_DISAGREE where that cannot
   * be known: then it must be added as a new disk.
   */
  reAdd(device: Device, name?: string): Promise<Readonly<Member>> {
    return this.#verb(async () => {
      this.#engine.checkReach(device);
      const metadata = this.#metadata;
      if (metadata === null) {
        throw new RaidError(
          'NOT_SUPPORTED',
          'an array without metadata does not know its former members; add the device',
        );
      }
      const { data, log, descriptor, slot, bad } = await metadata.judgeReAdd(device);
      const former = this.#members.list.find((member) => member.descriptor === descriptor);
      this.#checkStranger(device, former);
      await this.#engine.setHealth(this.#health());
      await this.#engine.setMember(slot, data, log);
      if (former !== undefined) this.#members.leave(former);
      // Every write goes there before it is judged what it has missed: nothing can be missed in between.
      const state: MemberState = { state: 'recovering', slot, recoveredBytes: 0, viaBitmap: false };
      const member = this.#members.adopt(data, state, descriptor, name, log);
      // What it lacks it lacked when it went.
      this.#members.damage(bad, true);
      this.#lists.set(member, bad);
      await this.#engine.setHealth(this.#health());
      try {
        const how = await metadata.reAdd(device);
        // One that has missed nothing has nothing left to recover: the sync only puts that on record.
        const recoveredBytes = how === 'at-once' ? (this.layout.memberBytes[slot] ?? 0) : 0;
        if (stateOf(member).state === 'recovering')
          member.state = { state: 'recovering', slot, recoveredBytes, viaBitmap: how === 'via-bitmap' };
      } catch (error) {
        this.#members.leave(member);
        this.#members.forget(slot);
        if (former !== undefined) this.#members.join(former);
        await this.#engine.setHealth(this.#health());
        await this.#engine.setMember(slot, null);
        throw error;
      }
      const md = metadata.array.members.find((each) => each.descriptor === descriptor);
      member.errors.corrected = md?.superblock.correctedReads ?? 0;
      await this.#engine.setHealth(this.#health());
      this.#startSync();
      return member;
    });
  }

  /**
   * A spare becomes a copy of a member that still works (but should not be trusted for long), and then takes its place.
   * Redundancy is kept all the while. The copying is part of the sync: `rebuild` watches it.
   */
  replace(which: string | number, spareName?: string): Promise<void> {
    return this.#verb(async () => {
      const { member, slot } = this.#replaceable(which);
      const spares = this.#spares().filter((other) => this.#promisedSlotOf(other) === null);
      const fits = (other: Member): boolean => this.#metadata?.hasRoomFor(other.descriptor, slot) !== false;
      const spare =
        spareName === undefined
          ? (spares.find(fits) ?? spares[0])
          : spares.find((other) => other.name === spareName);
      if (spare === undefined) {
        throw new RaidError(
          'NO_SUCH_MEMBER',
          spareName === undefined
            ? `${this.name} has no spare to replace ${member.name} with; add a disk first`
            : `${spareName} is no spare of ${this.name}`,
        );
      }
      if (!fits(spare)) throw this.#tooSmallFor(member, slot, spare.name);
      await this.#engine.setMember(
        replacementOf(this.layout.memberCount, slot),
        spare.device,
        spare.log ?? null,
      );
      const isOnRecord = (await this.#metadata?.startReplacement(spare.descriptor, slot)) !== false;
      this.#lists.delete(spare);
      if (stateOf(member).state !== 'in_sync' || stateOf(spare).state !== 'spare' || !isOnRecord) {
        // What the record says of the spare by now is what it says when an original fails.
        this.#startSync();
        throw new RaidError(
          'BUSY',
          `${member.name} or ${spare.name} has just failed; see what is to be done now`,
          {
            device: member.name,
          },
        );
      }
      spare.state = { state: 'replacement', slot, recoveredBytes: 0 };
      await this.#engine.setHealth(this.#health());
      this.#startSync();
    });
  }

  #replaceable(which: string | number): { readonly member: Member; readonly slot: number } {
    const member = this.#members.named(which);
    const { state } = member;
    if (state.state !== 'in_sync') {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${member.name} is ${state.state}; only a member in sync is replaced`,
        { device: member.name },
      );
    }
    if (this.#members.replacementOf(state.slot) !== null) {
      throw new RaidError('BUSY', `${member.name} is being replaced already`, { device: member.name });
    }
    return { member, slot: state.slot };
  }

  #tooSmallFor(member: Member, slot: number, name: string): RaidError {
    return new RaidError(
      'BAD_ARGUMENT',
      `${name} is smaller than ${member.name}, whose place in ${this.layout.geometry.level} only a disk as large can take`,
      { device: name, member: slot },
    );
  }

  /** Records a larger shape, which the array takes on when it is opened next (grow.ts says what can grow). */
  grow(options: GrowOptions): Promise<void> {
    return this.#verb(async () => {
      const shape = shapeOnRecord(this.#metadata);
      this.#outgrown = new RaidError(
        'BUSY',
        `${this.name} grows; close it, and open it again in its new shape`,
      );
      try {
        await this.#changes.whenIdle();
        this.#unsyncedFromBytes = await recordGrowth(this, options);
      } finally {
        if (shapeOnRecord(this.#metadata) === shape) this.#outgrown = null;
      }
    });
  }

  /**
   * Watches the sync until nothing is left to do: redundancy after a crash first, then empty slots from spares. Starts it
   * where it does not run. Leaving the iteration does not stop it. A limit of null leaves the one there is.
   */
  async *rebuild(
    options: { readonly limitBytesPerSecond?: number | null } = {},
  ): AsyncGenerator<SyncProgress> {
    this.#checkWritable();
    const { limitBytesPerSecond = Number.POSITIVE_INFINITY } = options;
    if (limitBytesPerSecond !== null) this.#sync.limitBytesPerSecond = limitBytesPerSecond;
    this.#sync.start();
    yield* this.#sync.watch();
  }

  /**
   * Compares redundancy with data over the whole array, and with `repair` makes it agree again. `fromBytes`: where an
   * earlier one stopped (its `doneBytes`); what lies before is left out, and not counted.
   */
  async *scrub(
    options: { readonly repair?: boolean; readonly fromBytes?: number } = {},
  ): AsyncGenerator<ScrubProgress> {
    const action = options.repair === true ? 'repair' : 'check';
    if (action === 'repair') this.#checkWritable();
    const totalBytes = syncBytes(this.layout);
    const { fromBytes = 0 } = options;
    if (!(fromBytes >= 0 && fromBytes <= totalBytes)) {
      throw new RaidError(
        'OUT_OF_RANGE',
        `a scrub of ${this.name} begins between 0 and ${totalBytes}, not at ${fromBytes}`,
      );
    }
    try {
      yield* this.#scrubFrom(roundDown(fromBytes, this.#windowBytes), action, totalBytes);
    } finally {
      this.#scrub = null;
    }
  }

  async *#scrubFrom(
    fromBytes: number,
    action: 'check' | 'repair',
    totalBytes: number,
  ): AsyncGenerator<ScrubProgress> {
    this.#lastMismatchCount = 0;
    let mismatchCount = 0;
    let compared = 0;
    const walk: Walk<Compared> = {
      from: (afterBytes) => afterBytes,
      totalBytes,
      work: async (from, lengthBytes) => {
        const health = compileHealth(this.layout, this.#health());
        const found = await (action === 'repair'
          ? this.#whileActive(from, lengthBytes, () => this.#engine.repair(from, lengthBytes))
          : this.#engine.check(from, lengthBytes));
        return { ...found, comparedBytes: comparedBytes(this.layout, health, from, lengthBytes) };
      },
    };
    const windows = new Windows<Compared>(this.#windowBytes);
    try {
      for (let doneBytes = fromBytes; doneBytes < totalBytes; ) {
        const { endBytes, result } = await windows.next(walk, doneBytes, action);
        windows.precedes(action);
        doneBytes = endBytes;
        compared += result?.comparedBytes ?? 0;
        mismatchCount += result?.mismatchCount ?? 0;
        this.#lastMismatchCount = mismatchCount;
        const mismatches = result?.mismatches ?? [];
        this.#scrub = { action, doneBytes, totalBytes, comparedBytes: compared, mismatchCount, mismatches };
        yield this.#scrub;
      }
    } finally {
      await windows.drain();
    }
  }

  /** For tests of what a lane's death does. */
  killLane(lane: number, when: Death): Promise<void> {
    return this.#engine.killLane(lane, when);
  }

  // Where there are snapshots, what is asked goes by way of them, and comes back below: see snapshots.ts.

  protected doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const snapshots = this.#snapshots;
    if (snapshots === null) {
      return this.#unfit === null ? this.#read(offsetBytes, targets) : Promise.reject(this.#unfit);
    }
    if (snapshots.problemOfReads !== null) return Promise.reject(snapshots.problemOfReads);
    const { origin } = snapshots;
    // Snapshots may come at any time. The gate is here and not below, where what a takeover is recorded with may wait for a read.
    return origin === null
      ? this.#read(offsetBytes, targets)
      : origin.read(offsetBytes, targets).then(() => this.#seen(offsetBytes, targets));
  }

  #read(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const reading = this.#engine.read(offsetBytes, targets);
    if (reading === answered && this.#takingOver.size === 0) return reading;
    return reading.then(() => this.#seen(offsetBytes, targets));
  }

  /**
   * While a replacement takes over, a read may have seen what only it has; should the process die before that is on record, its
   * original, which is sound, would answer with what was there before (I3). Where it could not be put on record, what lies between the
   * first and the last byte written since is read when it can be, and all else, which both have, as ever.
   */
  #seen(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> | undefined {
    if (this.#takingOver.size === 0) return undefined;
    if (this.#takeover !== null) return this.#takeover.then(() => this.#seen(offsetBytes, targets));
    const range = this.#onlyThere;
    const endBytes = offsetBytes + totalBytes(targets);
    const isShared = range === null || endBytes <= range.fromBytes || offsetBytes >= range.toBytes;
    return isShared ? undefined : this.#untilRecorded();
  }

  /** While a replacement takes over: of each write that goes to the engine, and of those that were there when it began. */
  #noteOnlyThere({ fromBytes, toBytes }: Stretch): void {
    if (this.#takingOver.size === 0) return;
    const known = this.#onlyThere;
    this.#onlyThere = {
      fromBytes: Math.min(fromBytes, known?.fromBytes ?? fromBytes),
      toBytes: Math.max(toBytes, known?.toBytes ?? toBytes),
    };
  }

  protected doWrite(offsetBytes: number, sources: readonly Uint8Array[], fua: boolean): Promise<void> {
    const refusal = this.#unfit ?? this.#outgrown;
    if (refusal !== null) return Promise.reject(refusal);
    if (this.#snapshots === null) return this.#write(offsetBytes, sources, fua);
    const { origin } = this.#snapshots;
    const problem = this.#snapshots.problem ?? this.#snapshots.problemOfReads;
    if (problem !== null) return Promise.reject(problem);
    return origin === null
      ? this.#write(offsetBytes, sources, fua)
      : origin.write(offsetBytes, sources, { fua });
  }

  #write(offsetBytes: number, sources: readonly Uint8Array[], fua: boolean): Promise<void> {
    const lengthBytes = sources.length === 1 ? (sources[0]?.byteLength ?? 0) : total(sources);
    return this.#change(
      offsetBytes,
      lengthBytes,
      sources,
      (bytes) => this.#engine.write(offsetBytes, bytes),
      fua,
    );
  }

  /** Where the store cannot be used, nothing is held by it. */
  protected doFlush(): Promise<void> {
    return this.#snapshots?.origin?.flush() ?? this.#flush();
  }

  /** A flush that relies on a member being out is not acknowledged before that is recorded, as no write is (I5). */
  async #flush(): Promise<void> {
    const recorded = this.limits.readOnly ? null : this.#metadata?.beginFlush();
    if (recorded != null) await recorded;
    await this.#flushMembers();
    await this.#engine.settled();
    await this.#untilRecorded();
  }

  /** Nothing is released below: parity would have to follow, member by member. The content stays as it was. */
  protected doDiscard(): Promise<void> {
    return Promise.resolve();
  }

  protected doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    const refusal = this.#unfit ?? this.#outgrown;
    if (refusal !== null) return Promise.reject(refusal);
    if (this.#snapshots === null) return this.#writeZeroes(offsetBytes, lengthBytes, options);
    const { origin } = this.#snapshots;
    const problem = this.#snapshots.problem ?? this.#snapshots.problemOfReads;
    if (problem !== null) return Promise.reject(problem);
    return origin === null
      ? this.#writeZeroes(offsetBytes, lengthBytes, options)
      : origin.writeZeroes(offsetBytes, lengthBytes, options);
  }

  #writeZeroes(offsetBytes: number, lengthBytes: number, options: { fua: boolean }): Promise<void> {
    return this.#change(
      offsetBytes,
      lengthBytes,
      [],
      () => this.#engine.writeZeroes(offsetBytes, lengthBytes),
      options.fua,
    );
  }

  protected doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return Promise.resolve([{ offsetBytes, lengthBytes, allocated: true, zero: false }]);
  }

  protected doResize(): Promise<void> {
    return Promise.reject(
      new RaidError('NOT_SUPPORTED', `the size of ${this.name} follows from its members`),
    );
  }

  /** Flushes, records that the array is clean, then closes the members too. */
  protected doClose(): Promise<void> {
    return this.#snapshots === null ? this.#close() : this.#snapshots.close();
  }

  async #close(): Promise<void> {
    try {
      await this.#sync.stop();
      await this.#lastTurn;
      // A write that waits for the array to become active is not with the engine yet.
      await this.#changes.whenIdle();
      await this.#engine.idle();
      await this.#lastList;
      if (!this.limits.readOnly && this.state !== 'failed') {
        await this.#flushMembers();
        await this.#untilRecorded();
        await this.#metadata?.stop();
      }
    } finally {
      await this.#engine.close();
      await Promise.all(this.#members.list.map((member) => member.log?.close()));
      await Promise.all(this.#members.list.map((member) => member.device.close()));
      await this.#metadata?.close();
    }
  }

  /**
   * A write of any kind. On an array that is active already it goes straight to the engine; else the array first stops
   * saying that it is clean, and the bytes are copied here, since the caller may change them as soon as we return.
   */
  #change(
    offsetBytes: number,
    lengthBytes: number,
    sources: readonly Uint8Array[],
    write: (sources: readonly Uint8Array[]) => Promise<void>,
    fua: boolean,
  ): Promise<void> {
    const metadata = this.#metadata;
    if (metadata === null && this.#members.bad.length === 0) {
      return fua ? write(sources).then(() => this.#flush()) : write(sources);
    }
    const began = this.#members.moment;
    const changes = this.#changes;
    changes.begin();
    const ready = metadata?.enter(offsetBytes, lengthBytes) ?? null;
    const edges = this.#edgesAreThere(offsetBytes, lengthBytes);
    const kept = ready === null && edges === null ? sources : sources.map((source) => source.slice());
    const isReady = edges === null ? ready : Promise.all([ready, edges]);
    const stretch: Stretch = { fromBytes: offsetBytes, toBytes: offsetBytes + lengthBytes };
    const submit = (): Promise<void> => {
      this.#writing.add(stretch);
      this.#noteOnlyThere(stretch);
      return write(kept);
    };
    const end = (): void => {
      this.#writing.delete(stretch);
      metadata?.leave(offsetBytes, lengthBytes);
      changes.end();
    };
    const written = (isReady === null ? submit() : isReady.then(submit)).then(
      () => {
        // Nearly always there is nothing more to wait for, and each wait is a promise or two.
        if (this.#isRecorded && this.#members.bad.length === 0) return end();
        return this.#untilRecorded()
          .then(() => this.#madeGood(began, offsetBytes, lengthBytes))
          .finally(end);
      },
      (error: unknown) => {
        end();
        throw error;
      },
    );
    return fua ? written.then(() => this.#flush()) : written;
  }

  /**
   * Where there are bad places, a sector of which a write has only a part must be there already: of one that is not, the
   * rest would go on being lost, and with it, since lists speak of sectors, what was written. Rejects with what is lost.
   */
  #edgesAreThere(offsetBytes: number, lengthBytes: number): Promise<unknown> | null {
    if (this.#members.bad.length === 0) return null;
    const end = offsetBytes + lengthBytes;
    const partial = new Set([offsetBytes, end].filter((at) => at % SECTOR_BYTES !== 0));
    if (partial.size === 0) return null;
    const sectors = new Set([...partial].map((at) => roundDown(at, SECTOR_BYTES)));
    return Promise.all(
      [...sectors].map((at) => {
        const sector = new Uint8Array(Math.min(SECTOR_BYTES, this.limits.sizeBytes - at));
        return this.#engine.read(at, [sector]);
      }),
    );
  }

  #verb<Result>(work: () => Promise<Result>): Promise<Result> {
    return this.#inTurn(() => {
      this.#checkWritable();
      return work();
    });
  }

  /** Alone among all that change who is who: see the top of the file. */
  #inTurn<Result>(work: () => Promise<Result>): Promise<Result> {
    const turn = this.#lastTurn.then(work);
    this.#lastTurn = turn.catch(() => undefined);
    return turn;
  }

  /** No byte is lost without these slots, whatever else fails just now. If so, the caller expels their members at once. */
  #canMiss(slots: readonly number[]): boolean {
    return this.#members.surviveWithout(slots) && this.#engine.canMiss(slots);
  }

  #mayMiss(descriptor: number): boolean {
    const state = this.#members.list.find((member) => member.descriptor === descriptor)?.state;
    return state?.state !== 'in_sync' || this.#canMiss([state.slot]);
  }

  get #isRecorded(): boolean {
    return this.#recording === null && !this.#isUnrecorded;
  }

  /** Rejects where that cannot be, after one attempt of its own. */
  async #untilRecorded(): Promise<void> {
    while (!this.#isRecorded) await (this.#recording ?? this.#recordAgain());
  }

  /** Everybody who is out by now, and whatever else of the record was cut off. */
  #recordAgain(): Promise<void> {
    this.#isUnrecorded = false;
    return this.#recorded(async () => {
      for (const member of this.#takingOver.keys())
        if (member !== this.#promoted) await this.#recordTakeover(member);
      // One that is still on its way to its slot puts itself on record when it is there, and its original after that.
      const waiting = new Set(this.#takingOver.values());
      const faulty = this.#members.list.filter(
        (member) => member.state.state === 'faulty' && !waiting.has(member),
      );
      for (const { descriptor } of faulty) await this.#metadata?.fail(descriptor);
      await this.#metadata?.begin();
    });
  }

  /**
   * Puts on record that members are out. From the call on, and not only when its turn comes, nothing is acknowledged
   * until that is durable (I5): what is written now goes without them. Rejects when all that is being recorded has ended, and not
   * with the first of it that fails: who tries again would meet the rest half done, a member between two slots.
   */
  #recorded(work: () => Promise<void>): Promise<void> {
    const all = Promise.allSettled([this.#recording, work()]).then((ends) => {
      for (const end of ends) if (end.status === 'rejected') throw end.reason;
    });
    const end = (): void => {
      if (this.#recording === recording) this.#recording = null;
    };
    const recording = all.then(end, (error: unknown) => {
      this.#isUnrecorded = true;
      end();
      throw error;
    });
    // Whoever awaits it hears of a failure; nobody else need.
    recording.catch(() => undefined);
    this.#recording = recording;
    return recording;
  }

  async #whileActive<Result>(
    syncOffsetBytes: number,
    lengthBytes: number,
    work: () => Promise<Result>,
  ): Promise<Result> {
    try {
      await this.#metadata?.enterSync(syncOffsetBytes, lengthBytes);
      return await work();
    } finally {
      this.#metadata?.leaveSync(syncOffsetBytes, lengthBytes);
    }
  }

  /** Every member's own flush; one that fails is a member that fails, and the others' flush is what counts. */
  async #flushMembers(): Promise<void> {
    const used = this.#members.list.filter(({ state }) => takesWrites(state));
    const answers = await Promise.allSettled(used.map((member) => member.device.flush()));
    const exclusions: Exclusion[] = [];
    for (const [index, answer] of answers.entries()) {
      const member = used[index];
      if (answer.status === 'fulfilled' || member === undefined) continue;
      const { state } = member;
      // Expelled meanwhile: its flush no longer matters.
      if (!takesWrites(state)) continue;
      const cause: unknown = answer.reason;
      if (!(cause instanceof RaidError)) throw cause;
      const { memberCount } = this.layout;
      const number = state.state === 'replacement' ? replacementOf(memberCount, state.slot) : state.slot;
      exclusions.push({ member: number, error: cause });
    }
    if (exclusions.length === 0) return;
    if (!this.#canMiss(exclusions.map(({ member }) => member))) {
      throw new RaidError(
        'REDUNDANCY_LOST',
        `members of ${this.name} did not make their writes durable, and too few remain that did; what was written since the last flush may be lost`,
        { cause: exclusions[0]?.error },
      );
    }
    await this.#without(exclusions);
  }

  /** Resolves when nobody makes use of these members any more, and that is on record. */
  async #without(exclusions: readonly Exclusion[]): Promise<void> {
    const recorded = this.#excluded(exclusions);
    // Both at once: the record may be refused before all lanes have heard.
    await Promise.all([this.#engine.setHealth(this.#health()), recorded]);
  }

  #adoptAll(options: RaidArrayOptions): void {
    if (options.members.length !== this.layout.memberCount) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${this.layout.geometry.level} was described with ${this.layout.memberCount} members, but ${options.members.length} devices were given`,
      );
    }
    for (const [slot, device] of options.members.entries()) {
      if (device === null) continue;
      this.#checkStranger(device);
      this.#checkSize(device, this.layout.memberBytes[slot]);
      this.#members.adopt(device, { state: 'in_sync', slot });
    }
    for (const device of options.spares ?? []) {
      this.#checkStranger(device);
      this.#checkSpare(device);
      this.#members.adopt(device, { state: 'spare' });
    }
  }

  #checkSize(device: Device, needed = Math.max(...this.layout.memberBytes)): void {
    if (device.limits.sizeBytes >= needed) return;
    throw new RaidError(
      'BAD_ARGUMENT',
      `${device.name} has ${device.limits.sizeBytes} bytes, too few: a member of ${this.name} needs ${needed}`,
      { device: device.name },
    );
  }

  #checkSpare(device: Device): void {
    this.#checkSize(device);
    if (device.limits.readOnly) {
      throw new RaidError('READ_ONLY', `${device.name} is open for reading only, and a spare is written to`, {
        device: device.name,
      });
    }
  }

  /** Chunks and members are whole blocks: else what is whole for the array would not be for a member. */
  #checkBlocks(): void {
    const { blockBytes } = this.limits;
    const { geometry, memberBytes, arrayBytes } = this.layout;
    const chunkBytes = 'chunkBytes' in geometry ? geometry.chunkBytes : 0;
    const odd = [chunkBytes, arrayBytes, ...memberBytes].find((bytes) => bytes % blockBytes !== 0);
    if (odd === undefined) return;
    throw new RaidError(
      'BAD_GEOMETRY',
      `a member of ${this.name} takes blocks of ${blockBytes} bytes only, and ${odd} bytes of its layout are not whole blocks; use a chunk and members that are`,
    );
  }

  #checkOpen(): void {
    if (this.isClosed) throw new RaidError('CLOSED', `${this.name} is closed`, { device: this.name });
  }

  #checkWritable(): void {
    this.#checkOpen();
    if (this.#outgrown !== null) throw this.#outgrown;
    if (!this.limits.readOnly) return;
    throw new RaidError('READ_ONLY', `${this.name} is open for reading only`, { device: this.name });
  }

  /** The engine met failures; it goes on without these members already, and waits with its answers until we are done. */
  async #excluded(exclusions: readonly Exclusion[]): Promise<void> {
    const expelled: Member[] = [];
    for (const { member: number, error } of exclusions) {
      const member = this.#numbered(number);
      if (member === null) continue;
      if (error.code === 'MEDIUM_ERROR' || error.code === 'SHORT_READ') member.errors.read += 1;
      else member.errors.write += 1;
      this.#members.expel(member, error);
      expelled.push(member);
    }
    if (expelled.length > 0) {
      await this.#recorded(async () => {
        for (const member of expelled) await this.#metadata?.fail(member.descriptor);
      });
    }
    if (this.#isUnrecorded) await this.#untilRecorded();
    this.#startSync();
  }

  /** By the number of a slot or a replacement. */
  #numbered(number: number): Member | null {
    const { memberCount } = this.layout;
    return number < memberCount ? this.#members.in(number) : this.#replacementOf(number - memberCount);
  }

  #replacementOf(slot: number): Member | null {
    const promoted = this.#promoted?.state;
    const isIt = promoted?.state === 'in_sync' && promoted.slot === slot;
    return this.#members.replacementOf(slot) ?? (isIt ? this.#promoted : null);
  }

  /** A member did not take its superblock, or its bitmap: that it failed is being recorded already. */
  #failedWhileRecording(descriptor: number, error: RaidError): void {
    const member = this.#members.list.find((each) => each.descriptor === descriptor);
    if (member === undefined || member.state.state === 'faulty') return;
    member.errors.write += 1;
    this.#members.expel(member, error);
    void this.#engine.setHealth(this.#health());
    // Not awaited: what is being recorded may wait for us.
    this.#recorded(async () => {
      await this.#metadata?.settled();
      if (this.#metadata?.isOnRecord(descriptor) !== false) return;
      throw new RaidError('ARRAY_FAILED', `that ${member.name} failed could not be put on record`);
    }).catch(() => undefined);
    this.#startSync();
  }

  #damaged(ranges: readonly ErasedRange[]): void {
    const before = this.#members.bad;
    // Of who is out by now nothing is to be kept: it may have been in doubt on one lane, and excluded by another.
    this.#members.damage(ranges.filter(({ member }) => this.#numbered(member) !== null));
    void this.#engine.setHealth(this.#health());
    this.#recordBadBlocks(before).catch(() => undefined);
  }

  /**
   * Whether there is damage that the next life would not hear of. What is computed from such a place is wrong, so on
   * record redundancy is not to be trusted: a degraded array is then not started as if it were clean.
   */
  #hidesDamage(): boolean {
    return this.#members.hidesDamage();
  }

  #corrected(corrections: readonly Correction[]): void {
    for (const { member: slot, offsetBytes, lengthBytes } of corrections) {
      const member = this.#members.in(slot);
      if (member === null) continue;
      member.errors.read += 1;
      member.errors.corrected += divCeil(lengthBytes, SECTOR_BYTES);
      this.#metadata?.countCorrected(member.descriptor, divCeil(lengthBytes, SECTOR_BYTES));
      // A log speaks of sectors: one that is good in part stays on the list.
      const from = roundUp(offsetBytes, SECTOR_BYTES);
      const to = roundDown(offsetBytes + lengthBytes, SECTOR_BYTES);
      if (to > from) this.#members.mend(slot, from, to - from);
    }
  }

  /** What a write that began at `began` has covered on members is readable there again; what they refused of it is on record. */
  async #madeGood(began: number, offsetBytes: number, lengthBytes: number): Promise<void> {
    if (this.#members.bad.length === 0) return;
    const end = offsetBytes + lengthBytes;
    // What is logged is written in whole sectors; and a log of bad places speaks of sectors.
    const isLogged = (this.#metadata?.logShape ?? null) !== null;
    const from = isLogged ? roundDown(offsetBytes, SECTOR_BYTES) : roundUp(offsetBytes, SECTOR_BYTES);
    const to = isLogged ? roundUp(end, SECTOR_BYTES) : roundDown(end, SECTOR_BYTES);
    if (to > from) await this.#mend(began, writtenPlaces(this.layout, this.#health(), from, to - from));
    if (this.#members.hidesDamage()) await this.#untilListed(began, offsetBytes, lengthBytes);
  }

  /**
   * A member that did not take its part of a write has a bad place now, and the write counts when that is on record: until then the
   * next life would take old bytes for new. Where it cannot be recorded the member is out; the write is on the others.
   */
  async #untilListed(began: number, offsetBytes: number, lengthBytes: number): Promise<void> {
    if (this.#metadata === null) return;
    const members = this.layout.memberBytes.map(() => ({ state: 'in_sync' as const }));
    const places = writtenPlaces(this.layout, { members, erased: [] }, offsetBytes, lengthBytes);
    const hidden = (): readonly number[] =>
      this.#members.hiddenAmong(places, began).map(({ member }) => member);
    for (let list: Promise<void> | null = null; list !== this.#lastList && hidden().length > 0; ) {
      list = this.#lastList;
      await list;
    }
    await this.#untilRecorded();
    for (const slot of new Set(hidden())) {
      const member = this.#members.trusted(slot);
      if (member === null) continue;
      const error = new RaidError(
        this.#canMiss([slot]) ? 'WRITE_FAILED' : 'REDUNDANCY_LOST',
        `${member.name} did not take a write, and has no list that says so`,
        { device: member.name, member: slot, offsetBytes, lengthBytes },
      );
      if (error.code === 'REDUNDANCY_LOST') throw error;
      await this.#without([{ member: slot, error }]);
    }
  }

  async #mend(began: number, places: readonly ErasedRange[]): Promise<void> {
    const before = this.#members.bad;
    for (const { member, offsetBytes, lengthBytes } of places)
      this.#members.mend(member, offsetBytes, lengthBytes, began);
    if (this.#members.bad === before) return;
    await this.#engine.setHealth(this.#health());
    await this.#recordBadBlocks(before);
  }

  /** The bad-block logs of the members whose list has changed, one list after the other: the newest is what stays. */
  #recordBadBlocks(before: readonly ErasedRange[]): Promise<void> {
    const numbers = new Set([...before, ...this.#members.bad].map((range) => range.member));
    const listed = this.#lastList.then(async () => {
      for (const number of numbers) await this.#listBadBlocks(number);
    });
    this.#lastList = listed.catch(() => undefined);
    return listed;
  }

  /**
   * `number`: of a slot or a replacement. What is new is listed at once. What is bad no more leaves the list behind a flush,
   * since it has to be listed still where the write that made it good is lost with the power; where members do not flush, it
   * stays there.
   */
  async #listBadBlocks(number: number): Promise<void> {
    const member = this.#numbered(number);
    if (member === null || this.#metadata === null) return;
    const ranges = this.#members.badOf(member);
    const before = this.#lists.get(member) ?? [];
    if (!isCovered(before, ranges)) {
      if (!isCovered(ranges, before)) await this.#list(member, [...before, ...ranges], ranges);
      if (!(await this.#haveFlushed())) return;
    }
    await this.#list(member, ranges, ranges);
  }

  async #list(member: Member, places: readonly ErasedRange[], bad: readonly BadPlace[]): Promise<void> {
    if ((await this.#metadata?.setBadBlocks(member.descriptor, places)) !== true) return;
    this.#lists.set(member, places);
    this.#members.recorded(bad);
    void this.#engine.setHealth(this.#health());
  }

  async #haveFlushed(): Promise<boolean> {
    try {
      await this.#flushMembers();
      return true;
    } catch (error) {
      if (error instanceof RaidError) return false;
      throw error;
    }
  }

  #health(): Health {
    return this.#members.health(this.#unsyncedFromBytes);
  }

  /** Refuses a device that is a member, other than the one that it comes back as. */
  #checkStranger(device: Device, former?: Member): void {
    const known = this.#members.thatIs(
      device,
      (member) => this.#metadata?.deviceOf(member.descriptor) ?? member.device,
      former,
    );
    if (known === null) return;
    throw new RaidError('BAD_ARGUMENT', `${device.name} is in ${this.name} already, as ${known.name}`, {
      device: device.name,
    });
  }

  #startSync(): void {
    if (this.#outgrown !== null) return;
    if (this.#autoSync && !this.limits.readOnly && this.#syncIsDue()) this.#sync.start();
  }

  #syncIsDue(): boolean {
    if (this.#members.list.some(({ state }) => state.state === 'replacement')) return true;
    // A member can be copied while it can be read; without it there is nothing to copy from.
    if (this.layout.kind === 'copies' && this.layout.copyCount === 1) return false;
    if (this.#unsyncedFromBytes !== Number.POSITIVE_INFINITY) return true;
    if (this.#members.list.some(({ state }) => state.state === 'recovering')) return true;
    return (
      this.#members.emptySlot !== null && this.#members.list.some(({ state }) => state.state === 'spare')
    );
  }

  /** What the sync does next, for Sync: one window, or null when there is nothing left to do. */
  async #nextSyncStep(): Promise<SyncProgress | null> {
    if (!this.#syncIsDue()) return null;
    await this.#metadata?.begin();
    const member = this.#members.list.find(({ state }) => state.state === 'recovering');
    // A resync needs all redundancy to be there; what is missing is recomputed anyway when its slot is recovered.
    if (member !== undefined) return await this.#recoverStep(member);
    if (this.#unsyncedFromBytes !== Number.POSITIVE_INFINITY) return await this.#resyncStep();
    const taken = await this.#inTurn(() => this.#takeSlot());
    if (taken !== null) {
      return { action: 'recover', doneBytes: 0, totalBytes: this.layout.memberBytes[taken] ?? 0 };
    }
    const replacement = this.#members.list.find(({ state }) => state.state === 'replacement');
    return replacement === undefined ? null : await this.#replaceStep(replacement);
  }

  async #replaceStep(member: Member): Promise<SyncProgress> {
    assert(member.state.state === 'replacement', 'only a replacement copies its original');
    const { slot, recoveredBytes } = member.state;
    this.#fillingOf(member);
    const totalBytes = this.layout.memberBytes[slot] ?? 0;
    const walk: Walk<void> = {
      from: (afterBytes) => afterBytes,
      totalBytes,
      work: (from, lengthBytes) => this.#fill(member, 'replace', slot, from, lengthBytes),
    };
    const { endBytes: doneBytes } = await this.#sync.windows.next(walk, recoveredBytes, member.state);
    const progress: SyncProgress = { action: 'recover', doneBytes, totalBytes };
    if (stateOf(member).state !== 'replacement') return progress;
    member.state = { state: 'replacement', slot, recoveredBytes: doneBytes };
    this.#sync.windows.precedes(member.state);
    if (doneBytes < totalBytes) {
      await this.#metadata?.checkpointRecovery(member.descriptor, { state: 'replacement', bytes: doneBytes });
      return progress;
    }
    const { moment } = this.#members;
    await this.#fillBad(member, 'replace', slot);
    await this.#flushMembers();
    await this.#inTurn(() => this.#finishReplacement(member, moment));
    return progress;
  }

  /**
   * The two change places. The engine's members change first, and from then on the old one misses what is written; so
   * nothing is acknowledged until that is on record. If the new one fails meanwhile, the old one is out all the same.
   * `filled`: when its bad places had last been seen to. One that a write has left since would be lost with the original.
   */
  async #finishReplacement(member: Member, filled: number): Promise<void> {
    if (member.state.state !== 'replacement') return;
    if (this.#putsOff(member, filled)) return;
    const { slot } = member.state;
    const original = this.#members.in(slot);
    assert(original !== null, 'a replacement has an original');
    const because = new RaidError('MEMBER_GONE', `${original.name} was replaced by ${member.name}`);
    original.state = { state: 'faulty', formerSlot: slot, because };
    member.state = { state: 'in_sync', slot };
    this.#promoted = member;
    this.#takingOver.set(member, original);
    for (const stretch of this.#writing) this.#noteOnlyThere(stretch);
    this.#members.beginChange(slot);
    const recorded = this.#recorded(async () => {
      await this.#engine.setHealth(this.#health());
      await this.#engine.promote(
        slot,
        member.device,
        () => {
          this.#members.endChange(slot);
          return this.#health();
        },
        member.log ?? null,
      );
      this.#promoted = null;
      await this.#recordTakeover(member);
      await this.#metadata?.fail(original.descriptor);
    });
    this.#takeover = recorded.catch(() => undefined);
    try {
      await recorded;
    } finally {
      this.#takeover = null;
    }
  }

  /**
   * Before its original is recorded as faulty: of one that is not said to be whole nothing would be kept. Where it has failed, and the
   * original was the last copy, the record keeps to that: all that has been acknowledged is there, and the next life begins with it.
   */
  async #recordTakeover(member: Member): Promise<void> {
    await this.#metadata?.finishReplacement(member.descriptor);
    if (member.state.state === 'faulty' && !this.#members.surviveWithout()) {
      throw new RaidError(
        'ARRAY_FAILED',
        `${member.name} failed as it took the place of ${this.#takingOver.get(member)?.name}, which has everything; close ${this.name}, and open it again`,
        { device: member.name, cause: member.state.because },
      );
    }
    this.#takingOver.delete(member);
    if (this.#takingOver.size === 0) this.#onlyThere = null;
  }

  /** A spare enters an empty slot: from now on it gets every write. The slot, or null where there is none for any. */
  async #takeSlot(): Promise<number | null> {
    const spares = this.#spares();
    const promised = spares.find((each) => this.#promisedSlotOf(each) !== null);
    const spare = promised ?? spares[0];
    const slot = promised === undefined ? this.#members.emptySlot : this.#promisedSlotOf(promised);
    if (spare === undefined || slot === null || this.#members.in(slot) !== null) return null;
    await this.#engine.setHealth(this.#health());
    await this.#engine.setMember(slot, spare.device, spare.log ?? null);
    const isOnRecord = (await this.#metadata?.startRecovery(spare.descriptor, slot)) !== false;
    // Its list is emptied with that: it may have been a replacement.
    this.#lists.delete(spare);
    // It may have failed meanwhile.
    if (spare.state.state !== 'spare' || !isOnRecord) {
      await this.#engine.setMember(slot, null);
      return null;
    }
    spare.state = { state: 'recovering', slot, recoveredBytes: 0, viaBitmap: false };
    await this.#engine.setHealth(this.#health());
    return slot;
  }

  #spares(): Member[] {
    return this.#members.list.filter(({ state }) => state.state === 'spare');
  }

  /** On record, the replacement of a member that failed has its slot already: it is no spare for another. */
  #promisedSlotOf(spare: Member): number | null {
    return this.#metadata?.recoveringSlotOf(spare.descriptor) ?? null;
  }

  async #recoverStep(member: Member): Promise<SyncProgress | null> {
    assert(member.state.state === 'recovering', 'only a recovering member is recovered');
    const { slot, recoveredBytes, viaBitmap } = member.state;
    this.#fillingOf(member);
    const totalBytes = this.layout.memberBytes[slot] ?? 0;
    const walk: Walk<void> = {
      from: (afterBytes) => (viaBitmap ? this.#nextDirtyOn(slot, afterBytes, totalBytes) : afterBytes),
      totalBytes,
      work: (from, lengthBytes) => this.#fill(member, 'recover', slot, from, lengthBytes),
    };
    const { endBytes: doneBytes, fromBytes } = await this.#sync.windows.next(
      walk,
      recoveredBytes,
      member.state,
    );
    // It may have failed, or been failed, meanwhile.
    const now = stateOf(member);
    if (now.state !== 'recovering') return { action: 'recover', doneBytes: fromBytes, totalBytes };
    member.state = { ...now, recoveredBytes: doneBytes };
    this.#sync.windows.precedes(member.state);
    // Not waited for: it comes to pass behind the window that is under way, and until then there is less to read from.
    void this.#engine.setHealth(this.#health());
    if (doneBytes < totalBytes) {
      await this.#metadata?.checkpointRecovery(member.descriptor, { state: 'recovering', bytes: doneBytes });
    } else {
      const { moment } = this.#members;
      await this.#fillBad(member, 'recover', slot);
      await this.#flushMembers();
      await this.#inTurn(() => this.#finishRecovery(member, moment));
    }
    return { action: 'recover', doneBytes, totalBytes };
  }

  async #finishRecovery(member: Member, filled: number): Promise<void> {
    if (member.state.state !== 'recovering') return;
    if (this.#putsOff(member, filled)) return;
    if (this.#metadata !== null && this.#members.hidesDamage(member.state.slot)) {
      throw new RaidError(
        'REDUNDANCY_LOST',
        `${member.name} has bad places that are on no list, and is not in sync`,
        { device: member.name, member: member.state.slot },
      );
    }
    await this.#metadata?.finishRecovery(member.descriptor);
    const now = stateOf(member);
    if (now.state !== 'recovering') return;
    member.state = { state: 'in_sync', slot: now.slot };
    await this.#engine.setHealth(this.#health());
  }

  /**
   * A range of a new member: `recover` or `replace`. Where a part of it cannot be had, because other members have a
   * bad place there, the rest goes on: the part is listed as bad on the new one, and named to whoever reads it. Where it cannot be
   * listed the copy ends before it, as in md: a member that lacks it in silence never becomes one in sync.
   */
  async #fill(
    member: Member,
    op: 'recover' | 'replace',
    slot: number,
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<void> {
    const began = this.#members.moment;
    const number = op === 'recover' ? slot : replacementOf(this.layout.memberCount, slot);
    try {
      await this.#engine[op](slot, offsetBytes, lengthBytes);
      // What writes had left behind there has been computed after all.
      await this.#mend(began, [{ member: number, offsetBytes, lengthBytes }]);
    } catch (error) {
      // It, or what it was to become a copy of, has failed: that is dealt with already.
      if (stateOf(member).state !== (op === 'recover' ? 'recovering' : 'replacement')) return;
      if (!(error instanceof RaidError) || error.code !== 'REDUNDANCY_LOST') throw error;
      if (lengthBytes > BAD_BLOCK_BYTES) {
        const half = Math.max(BAD_BLOCK_BYTES, roundDown(lengthBytes / 2, BAD_BLOCK_BYTES));
        await this.#fill(member, op, slot, offsetBytes, half);
        await this.#fill(member, op, slot, offsetBytes + half, lengthBytes - half);
        return;
      }
      const before = this.#members.bad;
      const isOnly = !this.#members.hidesDamage(number);
      this.#members.damage([{ member: number, offsetBytes, lengthBytes }]);
      await this.#engine.setHealth(this.#health());
      await this.#recordBadBlocks(before);
      if (this.#metadata === null || !this.#members.hidesDamage(number)) return;
      // It is a place that has not been recovered yet, and no damage: redundancy elsewhere can be trusted.
      if (isOnly) {
        this.#members.mend(number, offsetBytes, lengthBytes);
        await this.#engine.setHealth(this.#health());
      }
      throw new RaidError(
        'REDUNDANCY_LOST',
        `${member.name} cannot be filled from byte ${offsetBytes} on: other members are bad there too, and it has no room to list that (${error.message})`,
        { device: member.name, member: slot, offsetBytes, lengthBytes, cause: error },
      );
    }
  }

  /**
   * Once more, what writes have left bad on a new member since it is being filled: where `#fill` had come by already. What cannot be
   * had now either stays bad, and on the list that has it.
   */
  async #fillBad(member: Member, op: 'recover' | 'replace', slot: number): Promise<void> {
    const { since } = this.#fillingOf(member);
    for (const place of this.#members.badOf(member).filter((bad) => bad.since > since))
      await this.#fillAgain(member, op, slot, place.offsetBytes, place.lengthBytes);
  }

  async #fillAgain(
    member: Member,
    op: 'recover' | 'replace',
    slot: number,
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<void> {
    if (stateOf(member).state !== (op === 'recover' ? 'recovering' : 'replacement')) return;
    const number = op === 'recover' ? slot : replacementOf(this.layout.memberCount, slot);
    const began = this.#members.moment;
    try {
      await this.#engine[op](slot, offsetBytes, lengthBytes);
      await this.#mend(began, [{ member: number, offsetBytes, lengthBytes }]);
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
      if (stateOf(member).state !== (op === 'recover' ? 'recovering' : 'replacement')) return;
      if (error.code !== 'REDUNDANCY_LOST') throw error;
      if (lengthBytes <= BAD_BLOCK_BYTES) return;
      const half = Math.max(BAD_BLOCK_BYTES, roundDown(lengthBytes / 2, BAD_BLOCK_BYTES));
      await this.#fillAgain(member, op, slot, offsetBytes, half);
      await this.#fillAgain(member, op, slot, offsetBytes + half, lengthBytes - half);
    }
  }

  #fillingOf(member: Member): { readonly since: number; putOff: number } {
    const known = this.#filling.get(member) ?? { since: this.#members.moment, putOff: 0 };
    this.#filling.set(member, known);
    return known;
  }

  /**
   * Whether a write has left it a bad place since that moment, when they had last been seen to; the end waits for that once more.
   * But not for ever: somebody may try the same write over and over, and the new member takes it when it alone is asked.
   */
  #putsOff(member: Member, moment: number): boolean {
    const filling = this.#fillingOf(member);
    if (!this.#members.badOf(member).some(({ since }) => since > moment)) return false;
    filling.putOff += 1;
    return filling.putOff <= PUT_OFF_AT_MOST;
  }

  async #resyncStep(): Promise<SyncProgress> {
    const totalBytes = syncBytes(this.layout);
    const walk: Walk<void> = {
      from: (afterBytes) => this.#nextDirty(afterBytes, totalBytes),
      totalBytes,
      work: async (from, lengthBytes) => {
        try {
          await this.#metadata?.enterResync(from, lengthBytes);
          await this.#engine.repair(from, lengthBytes);
        } finally {
          this.#metadata?.leaveResync(from, lengthBytes);
        }
      },
    };
    const { endBytes: doneBytes } = await this.#sync.windows.next(walk, this.#unsyncedFromBytes, 'resync');
    this.#sync.windows.precedes('resync');
    this.#unsyncedFromBytes = doneBytes < totalBytes ? doneBytes : Number.POSITIVE_INFINITY;
    void this.#engine.setHealth(this.#health());
    await this.#metadata?.checkpointResync();
    return { action: 'resync', doneBytes, totalBytes };
  }

  /** The same for places on a member, which in raid10 are not what the bitmap counts in. */
  #nextDirtyOn(slot: number, fromBytes: number, totalBytes: number): number {
    const { layout } = this;
    if (layout.kind !== 'copies' || layout.geometry.level !== 'raid10')
      return this.#nextDirty(fromBytes, totalBytes);
    for (let at = fromBytes; at < totalBytes; ) {
      const { arrayOffsetBytes, lengthBytes } = layout.contentAt(slot, at);
      if (arrayOffsetBytes !== null && this.#metadata?.isDirty(arrayOffsetBytes, lengthBytes) !== false)
        return at;
      at += lengthBytes;
    }
    return totalBytes;
  }

  /** Where the bitmap says that work is left, from here on; here, without one. */
  #nextDirty(fromBytes: number, totalBytes: number): number {
    return Math.min(totalBytes, this.#metadata?.nextDirty(fromBytes) ?? fromBytes);
  }
}

/** Who gets what is written to its slot. */
function takesWrites(
  state: MemberState,
): state is Extract<MemberState, { state: 'in_sync' | 'recovering' | 'replacement' }> {
  return state.state === 'in_sync' || state.state === 'recovering' || state.state === 'replacement';
}

function shapeOnRecord(metadata: Metadata | null): string {
  return `${metadata?.array.sizeSectors} ${metadata?.array.raidDisks}`;
}

/** Whether these places lie within those others, all on one device. */
function isCovered(places: readonly ErasedRange[], others: readonly ErasedRange[]): boolean {
  return places.every((place) => {
    const end = place.offsetBytes + place.lengthBytes;
    let at = place.offsetBytes;
    for (const other of others.toSorted((a, b) => a.offsetBytes - b.offsetBytes)) {
      if (other.offsetBytes <= at) at = Math.max(at, other.offsetBytes + other.lengthBytes);
    }
    return at >= end;
  });
}

/** Read anew: states change while one waits, which the compiler's narrowing does not know. */
function stateOf(member: Member): MemberState {
  return member.state;
}

/** Which places on members a write to this range has made good. */
function writtenPlaces(
  layout: Layout,
  health: Health,
  offsetBytes: number,
  lengthBytes: number,
): readonly ErasedRange[] {
  const plan = planWrite(layout, compileHealth(layout, health), offsetBytes, lengthBytes);
  return isLost(plan) ? [] : plan.writes;
}

function total(buffers: readonly Uint8Array[]): number {
  return buffers.reduce((sum, buffer) => sum + buffer.byteLength, 0);
}
