/**
 * An array over devices: who is a member in which state, and what follows from a failure. A `RaidArray` is a `Device`.
 *
 *                       takeSlot                 finishRecovery
 *           spare ──────────────▶ recovering ───────────────────▶ in_sync
 *             │                       │                              │
 *             │ expel                 │ expel                        │ expel: failed by hand, or by an error of
 *             ▼                       ▼                              ▼        write or flush
 *           faulty ◀──────────────────────────────────────────────────
 *             │ remove
 *             ▼
 *         (the caller's device again)
 *
 * A spare may also become the *replacement* of a member that still works: it gets every write of that slot and, in the
 * background, a copy of the rest; then the two change places, and redundancy was whole all the time.
 *
 * The engine finds out about failures and stops trusting a member at once; the array decides what it means, and until
 * it has recorded that, nothing that relies on it is acknowledged (I5).
 *
 * With metadata the array is a Linux md array: every transition above is a change of its superblocks (record.ts), and
 * it says "clean" only while that is true (activity.ts). Without, it is an array for the time being, as a test wants
 * one: the same in every respect, but for what it leaves behind.
 *
 * Spares take over by themselves: whenever a slot is empty and a spare there, or redundancy is due after a crash, a
 * sync runs in the background (sync.ts), and `rebuild` watches it.
 */
import { Device, type Extent, type Limits } from '../device/device.ts';
import { FileDevice } from '../device/file.ts';
import { canReach, type DriverKind, Engine, unreachableBy } from '../engine/engine.ts';
import type { Death } from '../engine/message.ts';
import type { Correction, Exclusion, Mismatch } from '../engine/run.ts';
import { stripeBytes } from '../engine/territory.ts';
import { assert, RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { compileLayout } from '../layout/compile.ts';
import type { Geometry } from '../layout/geometry.ts';
import type { Layout } from '../layout/layout.ts';
import { survives } from '../layout/survives.ts';
import { compileHealth } from '../plan/health.ts';
import { type ErasedRange, type Health, isLost, type MemberHealth, replacementOf } from '../plan/plan.ts';
import { planWrite, syncBytes } from '../plan/planner.ts';
import { KIB, MIB, roundDown } from '../units.ts';
import { type GrowOptions, recordGrowth } from './grow.ts';
import type { Metadata } from './metadata.ts';
import { type ArrayStatus, statusOf } from './status.ts';
import { Sync, type SyncProgress } from './sync.ts';

export interface ErrorCounts {
  read: number;
  write: number;
  /** Places that could not be read, were recomputed from the others and rewritten. */
  corrected: number;
}

export type MemberState =
  | { readonly state: 'in_sync'; readonly slot: number }
  /** True content below `recoveredBytes`. `viaBitmap`: beyond it too, except where the bitmap has a bit. */
  | {
      readonly state: 'recovering';
      readonly slot: number;
      readonly recoveredBytes: number;
      readonly viaBitmap: boolean;
    }
  /** Becomes a copy of the member in its slot, which still works; then takes its place. */
  | { readonly state: 'replacement'; readonly slot: number; readonly recoveredBytes: number }
  | { readonly state: 'spare' }
  | { readonly state: 'faulty'; readonly formerSlot: number | null; readonly because: RaidError };

/** A device in the array. */
export interface Member {
  readonly name: string;
  /** Its data: what the layout speaks of. */
  readonly device: Device;
  /** md's device number; -1 without metadata. */
  readonly descriptor: number;
  readonly errors: ErrorCounts;
  state: MemberState;
}

export interface ScrubProgress {
  readonly action: 'check' | 'repair';
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** Of the whole scrub so far. */
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
  readonly cores?: number | undefined;
  readonly heapBytes?: number | undefined;
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

/** An array whose members are known already, with their metadata: what assembly and creation end in. */
export interface AssembledOptions extends EngineChoice {
  readonly name: string;
  readonly geometry: Geometry;
  readonly seeds: readonly Omit<Member, 'errors'>[];
  /** Null for one that is only read. */
  readonly metadata: Metadata | null;
  readonly readOnly: boolean;
  /** Sync position from which redundancy may be wrong; Infinity when none is. */
  readonly unsyncedFromBytes: number;
  readonly erased: readonly ErasedRange[];
}

/** One step of a scrub, or of a sync; between steps others may come in. */
const SCRUB_WINDOW_BYTES = 4 * MIB;
const SYNC_WINDOW_BYTES = 4 * MIB;
/** The unit in which what cannot be recovered is listed. */
const BAD_BLOCK_BYTES = 4 * KIB;

export class RaidArray extends Device {
  readonly name: string;
  readonly limits: Limits;
  /** An array computes: nobody may go round it. */
  readonly direct = null;
  readonly layout: Layout;
  readonly #engine: Engine;
  readonly #host: Host;
  readonly #members: Member[] = [];
  readonly #metadata: Metadata | null;
  readonly #sync: Sync;
  readonly #autoSync: boolean;
  #names = 0;
  #unsyncedFromBytes: number;
  #erased: readonly ErasedRange[];
  #lastMismatchCount = 0;
  /** Resolves when every failure so far is on record; null when there is none to wait for. */
  #recording: Promise<void> | null = null;

  constructor(options: RaidArrayOptions | AssembledOptions) {
    super();
    this.layout = compileLayout(options.geometry);
    this.name = options.name ?? 'array';
    this.#host = options.host ?? realHost;
    this.#autoSync = options.autoSync !== false;
    if ('seeds' in options) {
      for (const seed of options.seeds)
        this.#members.push({ ...seed, errors: { read: 0, write: 0, corrected: 0 } });
      this.#metadata = options.metadata;
      this.#unsyncedFromBytes = options.unsyncedFromBytes;
      this.#erased = options.erased;
    } else {
      this.#adoptAll(options);
      this.#metadata = null;
      this.#unsyncedFromBytes = Number.POSITIVE_INFINITY;
      this.#erased = [];
    }
    const devices = this.#members.map((member) => member.device);
    this.limits = {
      sizeBytes: this.layout.arrayBytes,
      blockBytes: Math.max(1, ...devices.map((device) => device.limits.blockBytes)),
      preferredBytes: stripeBytes(this.layout),
      readOnly:
        ('readOnly' in options && options.readOnly) || devices.some((device) => device.limits.readOnly),
    };
    this.#checkBlocks();
    const isDirect = devices.every((device) => device.direct !== null);
    const driver = options.driver ?? (isDirect ? undefined : 'event-loop');
    if (driver !== undefined) for (const device of devices) checkReach(driver, device);
    if (!survives(this.layout, (slot) => this.#trusted(slot) === null)) {
      throw new RaidError('ARRAY_FAILED', `${this.name}: so many members are missing that data is too`);
    }
    this.#engine = new Engine({
      layout: this.layout,
      members: this.#devicesInUse(),
      health: this.#health(),
      host: this.#host,
      driver,
      lanes: options.lanes,
      cores: options.cores ?? 1,
      heapBytes: options.heapBytes,
      kernel: options.kernel,
      readOnly: this.limits.readOnly,
      onExclusion: (exclusions) => this.#excluded(exclusions),
      onCorrection: (corrections) => this.#corrected(corrections),
      onDamage: (ranges) => this.#damaged(ranges),
    });
    this.#sync = new Sync(this.#host, () => this.#nextSyncStep());
    this.#metadata?.attach({
      flush: () => this.#flushMembers(),
      failed: (descriptor, error) => this.#failedWhileRecording(descriptor, error),
      resyncedBytes: () => this.#unsyncedFromBytes,
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

  get members(): readonly Readonly<Member>[] {
    return this.#members;
  }

  get state(): ArrayState {
    if (!survives(this.layout, (slot) => this.#trusted(slot) === null)) return 'failed';
    if (this.#members.some((member) => member.state.state === 'recovering')) return 'recovering';
    if (this.degraded > 0) return 'degraded';
    if (this.#unsyncedFromBytes !== Number.POSITIVE_INFINITY) return 'resyncing';
    return this.#metadata?.isActive === true ? 'active' : 'clean';
  }

  /** Slots without a member in sync. */
  get degraded(): number {
    let count = 0;
    for (let slot = 0; slot < this.layout.memberCount; slot += 1)
      if (this.#trusted(slot) === null) count += 1;
    return count;
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

  /** What the last scrub found. */
  get mismatchCount(): number {
    return this.#lastMismatchCount;
  }

  /**
   * The member is not used from now on, as if it had failed by itself. Refused where that would lose data: the last copy
   * is never taken.
   */
  async fail(which: string | number, because?: RaidError): Promise<void> {
    this.#checkOpen();
    const member = this.#find(which);
    const { state } = member;
    if (state.state === 'faulty') return;
    if (state.state === 'in_sync') {
      const { slot } = state;
      const isLost = (other: number): boolean => other === slot || this.#trusted(other) === null;
      if (!survives(this.layout, isLost) || !this.#engine.canMiss([slot])) {
        throw new RaidError(
          'LAST_COPY',
          `${member.name} holds the last copy of data in ${this.name}; add a disk and rebuild before failing it`,
          { device: member.name, member: slot },
        );
      }
    }
    this.#expel(member, because ?? new RaidError('MEMBER_GONE', `${member.name} was failed by hand`));
    // No job that relied on it is under way when its failure is recorded, and none that needs the record is answered.
    await this.#recorded(async () => {
      await this.#engine.setHealth(this.#health());
      await this.#metadata?.fail(member.descriptor);
    });
    this.#startSync();
  }

  /** A faulty member or a spare leaves. Its device is the caller's again. */
  async remove(which: string | number): Promise<Device> {
    this.#checkOpen();
    const member = this.#find(which);
    if (member.state.state !== 'faulty' && member.state.state !== 'spare') {
      throw new RaidError('BUSY', `${member.name} is ${member.state.state}; fail it before removing it`, {
        device: member.name,
      });
    }
    this.#members.splice(this.#members.indexOf(member), 1);
    await this.#metadata?.remove(member.descriptor);
    return member.device;
  }

  /** A new spare; it takes over an empty slot by itself. With metadata, the whole device, which gets a superblock. */
  async add(device: Device, name?: string): Promise<Readonly<Member>> {
    this.#checkOpen();
    checkReach(this.#engine.kind, device);
    if (this.#members.some((member) => member.device === device)) {
      throw new RaidError('BAD_ARGUMENT', `${device.name} is in ${this.name} already`, {
        device: device.name,
      });
    }
    let data = device;
    let descriptor = -1;
    if (this.limits.blockBytes % device.limits.blockBytes !== 0) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${device.name} takes blocks of ${device.limits.blockBytes} bytes, and ${this.name} has blocks of ${this.limits.blockBytes}`,
        { device: device.name },
      );
    }
    if (this.#metadata === null) this.#checkSpare(device);
    else ({ data, descriptor } = await this.#metadata.add(device));
    const member = this.#adopt(data, { state: 'spare' }, descriptor, name);
    this.#startSync();
    return member;
  }

  /**
   * A former member comes back to its slot, and gets only what it has missed. Throws EVENTS_DISAGREE where that cannot
   * be known: then it must be added as a new disk.
   */
  async reAdd(device: Device, name?: string): Promise<Readonly<Member>> {
    this.#checkOpen();
    checkReach(this.#engine.kind, device);
    if (this.#metadata === null) {
      throw new RaidError(
        'NOT_SUPPORTED',
        'an array without metadata does not know its former members; add the device',
      );
    }
    const { data, descriptor, slot } = await this.#metadata.judgeReAdd(device);
    const old = this.#members.findIndex((member) => member.descriptor === descriptor);
    if (old >= 0) this.#members.splice(old, 1);
    await this.#engine.setHealth(this.#health());
    await this.#engine.setMember(slot, data);
    const how = await this.#metadata.reAdd(device);
    // One that has missed nothing has nothing left to recover: the sync only puts that on record.
    const recoveredBytes = how === 'at-once' ? (this.layout.memberBytes[slot] ?? 0) : 0;
    const state: MemberState = { state: 'recovering', slot, recoveredBytes, viaBitmap: how === 'via-bitmap' };
    const member = this.#adopt(data, state, descriptor, name);
    await this.#engine.setHealth(this.#health());
    this.#startSync();
    return member;
  }

  /**
   * A spare becomes a copy of a member that still works (but should not be trusted for long), and then takes its place.
   * Redundancy is kept all the while. The copying is part of the sync: `rebuild` watches it.
   */
  async replace(which: string | number, spareName?: string): Promise<void> {
    const member = this.#find(which);
    const { state } = member;
    if (state.state !== 'in_sync') {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${member.name} is ${state.state}; only a member in sync is replaced`,
        {
          device: member.name,
        },
      );
    }
    if (this.#replacementOf(state.slot) !== null) {
      throw new RaidError('BUSY', `${member.name} is being replaced already`, { device: member.name });
    }
    const spares = this.#members.filter((other) => other.state.state === 'spare');
    const spare = spareName === undefined ? spares[0] : spares.find((other) => other.name === spareName);
    if (spare === undefined) {
      throw new RaidError(
        'NO_SUCH_MEMBER',
        spareName === undefined
          ? `${this.name} has no spare to replace ${member.name} with; add a disk first`
          : `${spareName} is no spare of ${this.name}`,
      );
    }
    const { slot } = state;
    await this.#engine.setMember(replacementOf(this.layout.memberCount, slot), spare.device);
    await this.#metadata?.startReplacement(spare.descriptor, slot);
    spare.state = { state: 'replacement', slot, recoveredBytes: 0 };
    await this.#engine.setHealth(this.#health());
    this.#startSync();
  }

  /** Records a larger shape, which the array takes on when it is opened next (grow.ts says what can grow). */
  async grow(options: GrowOptions): Promise<void> {
    this.#unsyncedFromBytes = await recordGrowth(this, options);
  }

  /**
   * Watches the sync until nothing is left to do: redundancy after a crash first, then empty slots from spares. Starts it
   * where it does not run. Leaving the iteration does not stop it.
   */
  async *rebuild(options: { readonly limitBytesPerSecond?: number } = {}): AsyncGenerator<SyncProgress> {
    this.#checkWritable();
    this.#sync.limitBytesPerSecond = options.limitBytesPerSecond ?? Number.POSITIVE_INFINITY;
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
    let mismatchCount = 0;
    for (let doneBytes = roundDown(fromBytes, SCRUB_WINDOW_BYTES); doneBytes < totalBytes; ) {
      const lengthBytes = Math.min(SCRUB_WINDOW_BYTES, totalBytes - doneBytes);
      const from = doneBytes;
      const found = await (action === 'repair'
        ? this.#whileActive(from, lengthBytes, () => this.#engine.repair(from, lengthBytes))
        : this.#engine.check(from, lengthBytes));
      doneBytes += lengthBytes;
      mismatchCount += found.mismatchCount;
      this.#lastMismatchCount = mismatchCount;
      yield { action, doneBytes, totalBytes, mismatchCount, mismatches: found.mismatches };
    }
    this.#lastMismatchCount = mismatchCount;
  }

  /** For tests of what a lane's death does. */
  killLane(lane: number, when: Death): Promise<void> {
    return this.#engine.killLane(lane, when);
  }

  protected doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#engine.read(offsetBytes, targets);
  }

  protected doWrite(offsetBytes: number, sources: readonly Uint8Array[], fua: boolean): Promise<void> {
    const lengthBytes = sources.length === 1 ? (sources[0]?.byteLength ?? 0) : total(sources);
    return this.#change(
      offsetBytes,
      lengthBytes,
      sources,
      (bytes) => this.#engine.write(offsetBytes, bytes),
      fua,
    );
  }

  /** A flush that relies on a member being out is not acknowledged before that is recorded, as no write is (I5). */
  protected async doFlush(): Promise<void> {
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
    options: { fua: boolean },
  ): Promise<void> {
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
  protected async doClose(): Promise<void> {
    try {
      await this.#sync.stop();
      await this.#engine.idle();
      if (!this.limits.readOnly && this.state !== 'failed') {
        await this.#flushMembers();
        await this.#metadata?.stop();
      }
    } finally {
      await this.#engine.close();
      await Promise.all(this.#members.map((member) => member.device.close()));
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
    if (metadata === null && this.#erased.length === 0) {
      return fua ? write(sources).then(() => this.doFlush()) : write(sources);
    }
    const ready = metadata?.enter(offsetBytes, lengthBytes) ?? null;
    const kept = ready === null ? sources : sources.map((source) => source.slice());
    const written = (ready === null ? write(kept) : ready.then(() => write(kept)))
      .then(() => (this.#recording === null ? undefined : this.#untilRecorded()))
      .then(() => this.#clearErased(offsetBytes, lengthBytes))
      .finally(() => metadata?.leave(offsetBytes, lengthBytes));
    return fua ? written.then(() => this.doFlush()) : written;
  }

  async #untilRecorded(): Promise<void> {
    while (this.#recording !== null) await this.#recording;
  }

  /**
   * Puts on record that members are out. From the call on, and not only when its turn comes, nothing is acknowledged
   * until that is durable (I5): what is written now goes without them.
   */
  #recorded(work: () => Promise<void>): Promise<void> {
    const all = Promise.all([this.#recording, work()]).then(() => undefined);
    const recording = all.finally(() => {
      if (this.#recording === recording) this.#recording = null;
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
    await this.#metadata?.enterSync(syncOffsetBytes, lengthBytes);
    try {
      return await work();
    } finally {
      this.#metadata?.leaveSync(syncOffsetBytes, lengthBytes);
    }
  }

  /** Every member's own flush; one that fails is a member that fails, and the others' flush is what counts. */
  async #flushMembers(): Promise<void> {
    const used = this.#members.filter(({ state }) => takesWrites(state));
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
    const out = exclusions.map(({ member }) => member);
    const isLost = (slot: number): boolean => out.includes(slot) || this.#trusted(slot) === null;
    if (!survives(this.layout, isLost) || !this.#engine.canMiss(out)) {
      throw new RaidError(
        'REDUNDANCY_LOST',
        `members of ${this.name} did not make their writes durable, and too few remain that did; what was written since the last flush may be lost`,
        { cause: exclusions[0]?.error },
      );
    }
    const recorded = this.#excluded(exclusions);
    await this.#engine.setHealth(this.#health());
    await recorded;
  }

  /** By slot, then the replacements by theirs. */
  #devicesInUse(): (Device | null)[] {
    const slots = Array.from({ length: this.layout.memberCount }, (_, slot) => slot);
    return [
      ...slots.map((slot) => this.#memberIn(slot)?.device ?? null),
      ...slots.map((slot) => this.#replacementOf(slot)?.device ?? null),
    ];
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
      this.#checkSize(device, this.layout.memberBytes[slot]);
      this.#adopt(device, { state: 'in_sync', slot });
    }
    for (const device of options.spares ?? []) {
      this.#checkSpare(device);
      this.#adopt(device, { state: 'spare' });
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
    if (!this.limits.readOnly) return;
    throw new RaidError('READ_ONLY', `${this.name} is open for reading only`, { device: this.name });
  }

  #adopt(device: Device, state: MemberState, descriptor = -1, name?: string): Member {
    if (this.#members.some((member) => isSameDevice(member.device, device))) {
      throw new RaidError('BAD_ARGUMENT', `${device.name} is in ${this.name} already`, {
        device: device.name,
      });
    }
    if (device.isClosed) throw new RaidError('CLOSED', `${device.name} is closed`, { device: device.name });
    const taken = new Set(this.#members.map((member) => member.name));
    while (taken.has(`disk${this.#names}`)) this.#names += 1;
    const member: Member = {
      name: name ?? `disk${this.#names}`,
      device,
      descriptor,
      errors: { read: 0, write: 0, corrected: 0 },
      state,
    };
    this.#members.push(member);
    return member;
  }

  #find(which: string | number): Member {
    const found =
      typeof which === 'number'
        ? this.#memberIn(which)
        : this.#members.find((member) => member.name === which || member.device.name === which);
    if (found === null || found === undefined) {
      const names = this.#members.map((member) => member.name).join(', ');
      throw new RaidError('NO_SUCH_MEMBER', `${this.name} has no member ${which}; it has ${names}`);
    }
    return found;
  }

  /** Who takes part in I/O in this slot. */
  #memberIn(slot: number): Member | null {
    return (
      this.#members.find(
        ({ state }) => (state.state === 'in_sync' || state.state === 'recovering') && state.slot === slot,
      ) ?? null
    );
  }

  #replacementOf(slot: number): Member | null {
    return this.#members.find(({ state }) => state.state === 'replacement' && state.slot === slot) ?? null;
  }

  #trusted(slot: number): Member | null {
    const member = this.#memberIn(slot);
    return member?.state.state === 'in_sync' ? member : null;
  }

  #health(): Health {
    const members = Array.from({ length: this.layout.memberCount }, (_, slot): MemberHealth => {
      const state = this.#memberIn(slot)?.state;
      if (state?.state === 'in_sync') return { state: 'in_sync' };
      if (state?.state === 'recovering') return { state: 'recovering', recoveredBytes: state.recoveredBytes };
      return { state: 'missing' };
    });
    const unsynced = this.#unsyncedFromBytes;
    const replacing = this.#members.flatMap(({ state }) =>
      state.state === 'replacement' ? [state.slot] : [],
    );
    return {
      members,
      erased: this.#erased,
      replacing,
      ...(unsynced === Number.POSITIVE_INFINITY ? {} : { unsyncedFromBytes: unsynced }),
    };
  }

  #expel(member: Member, because: RaidError): void {
    const { state } = member;
    if (state.state === 'faulty') return;
    const formerSlot = state.state === 'spare' ? null : state.slot;
    member.state = { state: 'faulty', formerSlot, because };
    if (formerSlot === null || state.state === 'replacement') return;
    this.#erased = this.#erased.filter((range) => range.member !== formerSlot);
    // It may already have missed writes that its original did not take either: what it has counts for nothing.
    const replacement = this.#replacementOf(formerSlot);
    if (replacement !== null) replacement.state = { state: 'spare' };
  }

  /** The engine met failures; it goes on without these members already, and waits with its answers until we are done. */
  async #excluded(exclusions: readonly Exclusion[]): Promise<void> {
    const expelled: Member[] = [];
    const { memberCount } = this.layout;
    for (const { member: number, error } of exclusions) {
      const member =
        number < memberCount ? this.#memberIn(number) : this.#replacementOf(number - memberCount);
      if (member === null) continue;
      if (error.code === 'MEDIUM_ERROR' || error.code === 'SHORT_READ') member.errors.read += 1;
      else member.errors.write += 1;
      this.#expel(member, error);
      expelled.push(member);
    }
    if (expelled.length > 0) {
      await this.#recorded(async () => {
        for (const member of expelled) await this.#metadata?.fail(member.descriptor);
      });
    }
    this.#startSync();
  }

  /** A member did not take its superblock, or its bitmap: that it failed is being recorded already. */
  #failedWhileRecording(descriptor: number, error: RaidError): void {
    const member = this.#members.find((each) => each.descriptor === descriptor);
    if (member === undefined || member.state.state === 'faulty') return;
    member.errors.write += 1;
    this.#expel(member, error);
    void this.#engine.setHealth(this.#health());
    // Not awaited: what is being recorded may wait for us.
    this.#recorded(async () => {
      await this.#metadata?.settled();
    }).catch(() => undefined);
    this.#startSync();
  }

  #damaged(ranges: readonly ErasedRange[]): void {
    const before = this.#erased;
    this.#erased = [...before, ...ranges];
    void this.#engine.setHealth(this.#health());
    this.#recordBadBlocks(before).catch(() => undefined);
  }

  #corrected(corrections: readonly Correction[]): void {
    for (const { member: slot, offsetBytes, lengthBytes } of corrections) {
      const member = this.#memberIn(slot);
      if (member === null) continue;
      member.errors.read += 1;
      member.errors.corrected += 1;
      this.#dropErased(slot, offsetBytes, lengthBytes);
    }
  }

  /** What a write has covered on a member is readable there again. */
  async #clearErased(offsetBytes: number, lengthBytes: number): Promise<void> {
    if (this.#erased.length === 0) return;
    const before = this.#erased;
    for (const place of writtenPlaces(this.layout, this.#health(), offsetBytes, lengthBytes)) {
      this.#dropErased(place.member, place.offsetBytes, place.lengthBytes);
    }
    if (this.#erased === before) return;
    await this.#engine.setHealth(this.#health());
    await this.#recordBadBlocks(before);
  }

  #dropErased(slot: number, offsetBytes: number, lengthBytes: number): void {
    const end = offsetBytes + lengthBytes;
    if (
      !this.#erased.some(
        (range) =>
          range.member === slot &&
          range.offsetBytes < end &&
          offsetBytes < range.offsetBytes + range.lengthBytes,
      )
    ) {
      return;
    }
    this.#erased = this.#erased.flatMap((range) => {
      if (range.member !== slot) return [range];
      const rangeEnd = range.offsetBytes + range.lengthBytes;
      const left = Math.min(rangeEnd, offsetBytes) - range.offsetBytes;
      const right = rangeEnd - Math.max(range.offsetBytes, end);
      const kept: ErasedRange[] = [];
      if (left > 0) kept.push({ ...range, lengthBytes: left });
      if (right > 0) kept.push({ ...range, offsetBytes: rangeEnd - right, lengthBytes: right });
      return kept;
    });
  }

  /** The bad-block logs of the members whose list has changed. */
  async #recordBadBlocks(before: readonly ErasedRange[]): Promise<void> {
    const slots = new Set([...before, ...this.#erased].map((range) => range.member));
    for (const slot of slots) {
      const member = this.#memberIn(slot);
      if (member === null) continue;
      const ranges = this.#erased.filter((range) => range.member === slot);
      await this.#metadata?.setBadBlocks(member.descriptor, ranges);
    }
  }

  #startSync(): void {
    if (this.#autoSync && !this.limits.readOnly && this.#syncIsDue()) this.#sync.start();
  }

  #syncIsDue(): boolean {
    if (this.layout.kind === 'copies' && this.layout.copyCount === 1) return false;
    if (this.#unsyncedFromBytes !== Number.POSITIVE_INFINITY) return true;
    if (this.#members.some(({ state }) => state.state === 'recovering' || state.state === 'replacement'))
      return true;
    return this.#emptySlot() !== null && this.#members.some(({ state }) => state.state === 'spare');
  }

  #emptySlot(): number | null {
    for (let slot = 0; slot < this.layout.memberCount; slot += 1)
      if (this.#memberIn(slot) === null) return slot;
    return null;
  }

  /** What the sync does next, for Sync: one window, or null when there is nothing left to do. */
  async #nextSyncStep(): Promise<SyncProgress | null> {
    if (!this.#syncIsDue()) return null;
    const member = this.#members.find(({ state }) => state.state === 'recovering');
    // A resync needs all redundancy to be there; what is missing is recomputed anyway when its slot is recovered.
    if (member !== undefined) return await this.#recoverStep(member);
    if (this.#unsyncedFromBytes !== Number.POSITIVE_INFINITY) return await this.#resyncStep();
    const slot = this.#emptySlot();
    const spare = this.#members.find(({ state }) => state.state === 'spare');
    if (slot !== null && spare !== undefined) {
      await this.#takeSlot(spare, slot);
      return { action: 'recover', doneBytes: 0, totalBytes: this.layout.memberBytes[slot] ?? 0 };
    }
    const replacement = this.#members.find(({ state }) => state.state === 'replacement');
    return replacement === undefined ? null : await this.#replaceStep(replacement);
  }

  async #replaceStep(member: Member): Promise<SyncProgress> {
    assert(member.state.state === 'replacement', 'only a replacement copies its original');
    const { slot, recoveredBytes } = member.state;
    const totalBytes = this.layout.memberBytes[slot] ?? 0;
    const lengthBytes = Math.min(SYNC_WINDOW_BYTES, totalBytes - recoveredBytes);
    if (lengthBytes > 0) await this.#engine.replace(slot, recoveredBytes, lengthBytes);
    const doneBytes = recoveredBytes + lengthBytes;
    const progress: SyncProgress = { action: 'recover', doneBytes, totalBytes };
    if (stateOf(member).state !== 'replacement') return progress;
    member.state = { state: 'replacement', slot, recoveredBytes: doneBytes };
    if (doneBytes < totalBytes) {
      await this.#metadata?.checkpointRecovery(member.descriptor, doneBytes);
      return progress;
    }
    await this.#flushMembers();
    if (stateOf(member).state !== 'replacement') return progress;
    // From this record on the new one is the member; until the change of places below both still get every write.
    await this.#metadata?.finishReplacement(member.descriptor);
    const original = this.#memberIn(slot);
    if (original !== null) {
      const because = new RaidError('MEMBER_GONE', `${original.name} was replaced by ${member.name}`);
      original.state = { state: 'faulty', formerSlot: slot, because };
    }
    member.state = { state: 'in_sync', slot };
    await this.#engine.promote(slot, member.device);
    await this.#engine.setHealth(this.#health());
    return progress;
  }

  /** A spare enters an empty slot: from now on it gets every write. */
  async #takeSlot(spare: Member, slot: number): Promise<void> {
    await this.#engine.setHealth(this.#health());
    await this.#engine.setMember(slot, spare.device);
    await this.#metadata?.startRecovery(spare.descriptor, slot);
    // It may have been removed, or failed, meanwhile.
    if (spare.state.state !== 'spare' || !this.#members.includes(spare)) return;
    spare.state = { state: 'recovering', slot, recoveredBytes: 0, viaBitmap: false };
    await this.#engine.setHealth(this.#health());
  }

  async #recoverStep(member: Member): Promise<SyncProgress | null> {
    assert(member.state.state === 'recovering', 'only a recovering member is recovered');
    const { slot, recoveredBytes, viaBitmap } = member.state;
    const totalBytes = this.layout.memberBytes[slot] ?? 0;
    const from = viaBitmap ? this.#nextDirtyOn(slot, recoveredBytes, totalBytes) : recoveredBytes;
    const lengthBytes = Math.min(SYNC_WINDOW_BYTES, totalBytes - from);
    if (lengthBytes > 0) await this.#recoverWindow(member, slot, from, lengthBytes);
    // It may have failed, or been failed, meanwhile.
    const now = stateOf(member);
    if (now.state !== 'recovering') return { action: 'recover', doneBytes: from, totalBytes };
    const doneBytes = from + lengthBytes;
    member.state = { ...now, recoveredBytes: doneBytes };
    await this.#engine.setHealth(this.#health());
    if (doneBytes < totalBytes) {
      await this.#metadata?.checkpointRecovery(member.descriptor, doneBytes);
    } else {
      await this.#flushMembers();
      if (stateOf(member).state !== 'recovering') return { action: 'recover', doneBytes, totalBytes };
      await this.#metadata?.finishRecovery(member.descriptor);
      if (stateOf(member).state !== 'recovering') return { action: 'recover', doneBytes, totalBytes };
      member.state = { state: 'in_sync', slot };
      await this.#engine.setHealth(this.#health());
    }
    return { action: 'recover', doneBytes, totalBytes };
  }

  /**
   * One window onto a recovering member. Where a part of it cannot be recomputed, because another member has a bad place
   * there, the rest goes on: the part is listed as bad on the new member, and named to whoever reads it.
   */
  async #recoverWindow(
    member: Member,
    slot: number,
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<void> {
    try {
      await this.#engine.recover(slot, offsetBytes, lengthBytes);
    } catch (error) {
      if (stateOf(member).state !== 'recovering') return;
      if (!(error instanceof RaidError) || error.code !== 'REDUNDANCY_LOST') throw error;
      if (lengthBytes > BAD_BLOCK_BYTES) {
        const half = Math.max(
          BAD_BLOCK_BYTES,
          Math.floor(lengthBytes / 2 / BAD_BLOCK_BYTES) * BAD_BLOCK_BYTES,
        );
        await this.#recoverWindow(member, slot, offsetBytes, half);
        await this.#recoverWindow(member, slot, offsetBytes + half, lengthBytes - half);
        return;
      }
      const before = this.#erased;
      this.#erased = [...before, { member: slot, offsetBytes, lengthBytes }];
      await this.#engine.setHealth(this.#health());
      await this.#recordBadBlocks(before);
    }
  }

  async #resyncStep(): Promise<SyncProgress> {
    const totalBytes = syncBytes(this.layout);
    const from = this.#nextDirty(this.#unsyncedFromBytes, totalBytes);
    const lengthBytes = Math.min(SYNC_WINDOW_BYTES, totalBytes - from);
    if (lengthBytes > 0) {
      await this.#metadata?.enterResync(from, lengthBytes);
      try {
        await this.#engine.repair(from, lengthBytes);
      } finally {
        this.#metadata?.leaveResync(from, lengthBytes);
      }
    }
    const doneBytes = from + lengthBytes;
    this.#unsyncedFromBytes = doneBytes < totalBytes ? doneBytes : Number.POSITIVE_INFINITY;
    await this.#engine.setHealth(this.#health());
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

function checkReach(driver: DriverKind, device: Device): void {
  if (!canReach(driver, device)) throw unreachableBy(driver, device);
}

/** One object, or two that have opened one file. */
function isSameDevice(a: Device, b: Device): boolean {
  return a === b || (a instanceof FileDevice && b instanceof FileDevice && a.identity === b.identity);
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
): readonly { readonly member: number; readonly offsetBytes: number; readonly lengthBytes: number }[] {
  const plan = planWrite(layout, compileHealth(layout, health), offsetBytes, lengthBytes);
  return isLost(plan) ? [] : plan.writes;
}

function total(buffers: readonly Uint8Array[]): number {
  return buffers.reduce((sum, buffer) => sum + buffer.byteLength, 0);
}
