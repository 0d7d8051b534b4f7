/**
 * Carries out what an array is asked, over members that are devices, and says what it met on the way. It knows layouts
 * and health; it does not know superblocks, spares or policy: those are the array's.
 *
 * A request is cut at stripe-group boundaries into jobs, each with a buffer in the arena, and each given to the lane
 * that owns the group. The caller's bytes are copied once, here, at the seam: after `write` has returned its promise the
 * caller may do with the buffer what they like, and parity is computed from the very bytes that are written. Only who has
 * borrowed arena memory (`lend`) reads into it and writes from it in place, and leaves it alone until the promise settles. A small
 * read that is one place of one member needs neither job nor buffer, where it can be had at once (`readNow`).
 *
 * Drivers
 *   lanes        members that a thread can reach by itself (files, shared memory), more than one core
 *   inline       the same, on the caller's thread
 *   event-loop   any members: remote, filtered, delayed. Jobs on the same stripe group are kept in order by a gate
 *
 * An idle array does not pay for threads: crossing to a lane and back costs 15 µs and more when both sleep, a 4 KiB read
 * from the page cache 3. So a small request that finds its lane idle, and no other request in this same turn, is run
 * right here. That is safe because only this thread submits: a lane without jobs touches no stripe. A second request
 * before the caller has seen the first one's answer is the sign of depth, and goes to the lane; a read only where there are
 * several. Members that turn out to be slow (a disk, not the cache) switch it off for a while, since it blocks the event loop.
 */
import { type Device, type Lender, totalBytes } from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import { assert, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import type { Layout } from '../layout/layout.ts';
import { selectKernels } from '../parity/select.ts';
import { type ErasedRange, type Health, replacementOf } from '../plan/plan.ts';
import { GIB, MIB, roundDown, roundUp, SECTOR_BYTES } from '../units.ts';
import type { Crew } from './crew.ts';
import { DirectDriver, type Driver, EVENT_LOOP_WIDTH, EventLoopDriver, type SyncOp } from './drivers.ts';
import type { LogShape } from './log.ts';
import { Arena, createMemory, memoryBytesFor, PAGE_BYTES } from './memory.ts';
import type { Death } from './message.ts';
import { COMMIT_SLOTS, type Job, tableAddress } from './ring.ts';
import {
  bothErrors,
  type Correction,
  type Exclusion,
  isWithout,
  type Mismatch,
  type Report,
  without,
} from './run.ts';
import { stripeBytes } from './territory.ts';
import { threads } from './thread.ts';

export type DriverKind = 'lanes' | 'inline' | 'event-loop';

export interface Recording {
  /** Whether some of it is not on record. */
  isOwed(): boolean;
  /** Until it is. Rejects where that cannot be, after one attempt of its own. */
  settled(): Promise<void>;
}

export interface EngineOptions {
  readonly layout: Layout;
  /**
   * By slot, then replacements by theirs; null where there is none. A device begins where the member's data begins. With
   * `log`, as many again: where each has its partial parity log.
   */
  readonly members: readonly (Device | null)[];
  /** What writes are logged in first. Every area holds an empty header of generation 1 before the first write. */
  readonly log?: LogShape | null | undefined;
  /** Of what the array knows of failures. Only asked where there is a log. */
  readonly record?: Recording | undefined;
  readonly health: Health;
  readonly host: Host;
  /** Default: lanes where threads can reach all members by themselves and there is more than one core. */
  readonly driver?: DriverKind | undefined;
  readonly lanes?: number | undefined;
  /** Who lanes are; default: threads. */
  readonly crew?: Crew | undefined;
  readonly cores: number;
  readonly heapBytes?: number | undefined;
  /** Overrides RAIDSIM_KERNEL. */
  readonly kernel?: string | undefined;
  /** What cannot be read is recomputed, but not rewritten. */
  readonly readOnly?: boolean | undefined;
  /**
   * Members that failed, as soon as it is known. No write that relies on their absence is acknowledged before the
   * promise resolves: the array records the exclusion durably first (I5). Where it rejects, so do the writes that waited for it. Until
   * it resolves, whoever would rely on it asks again, with no news: what was not recorded is still to be.
   */
  readonly onExclusion: (exclusions: readonly Exclusion[]) => Promise<void>;
  readonly onCorrection: (corrections: readonly Correction[]) => void;
  /**
   * Places where a member that cannot be missed did not take a write: what is computed from them is garbage, and a copy is older
   * than what another has shown. They are erased in the health that is set before this returns, until they have been written.
   */
  readonly onDamage: (ranges: readonly ErasedRange[]) => void;
}

export interface CheckResult {
  readonly mismatchCount: number;
  readonly mismatches: readonly Mismatch[];
}

/** Jobs are about this long; longer where a stripe is. Long enough that a system call's cost vanishes in it. */
export const JOB_BYTES = MIB;
export const HEAP_BYTES = 64 * MIB;

/** Member bytes that one job of a recovery or a check covers at most: less where a territory ends. */
export const SYNC_JOB_BYTES = MIB;

export class Engine implements Lender {
  readonly kind: DriverKind;
  readonly kernelName: string;
  readonly #layout: Layout;
  readonly #options: EngineOptions;
  readonly #arena: Arena;
  readonly #bytes: Uint8Array;
  /** Memory that is lent: none of what requests take, however long it is kept. */
  readonly #lendable: Arena;
  readonly #driver: Driver;
  /** Array bytes of one job at most: whole stripes where a stripe is not too large. */
  readonly #pieceBytes: number;
  #health: Health;
  /** Resolves when every exclusion so far is durable; null when that has been tried. */
  #hold: Promise<void> | null = null;
  /** Whether there are exclusions that could not be recorded when it was tried last. */
  #isUnrecorded = false;
  readonly #requests = new InFlight();
  #isClosed = false;

  constructor(options: EngineOptions) {
    this.#options = options;
    this.#layout = options.layout;
    this.#health = options.health;
    this.kind =
      options.driver ??
      defaultDriver(
        options.members.filter((device) => device !== null),
        options.cores,
        options.crew,
      );
    const heapBytes = options.heapBytes ?? HEAP_BYTES;
    const rowBytes = stripeBytes(this.#layout);
    const quarterBytes = roundDown(Math.floor(heapBytes / 4), PAGE_BYTES);
    this.#pieceBytes =
      rowBytes > quarterBytes
        ? quarterBytes
        : Math.max(rowBytes, roundDown(Math.min(JOB_BYTES, quarterBytes), rowBytes));

    const lanes = this.#hasLog ? 1 : (options.lanes ?? Math.max(1, options.cores - 1));
    const laneCount = this.kind === 'lanes' ? lanes : 0;
    const slots = this.kind === 'event-loop' ? EVENT_LOOP_WIDTH : laneCount;
    checkOptions(options, this.kind, heapBytes, slots);
    const lendableBytes = this.#hasLog ? 0 : lendableBeside(slots, heapBytes);
    const whole = createMemory(slots, roundUp(heapBytes, MIB) + lendableBytes);
    const map = { ...whole, heapBytes: roundUp(heapBytes, MIB) };
    this.#arena = new Arena(map);
    this.#lendable = new Arena({
      ...whole,
      heapAddress: map.heapAddress + map.heapBytes,
      heapBytes: lendableBytes,
    });
    this.#bytes = new Uint8Array(map.memory.buffer);
    const kernels = selectKernels(map.memory, tableAddress(slots), options.kernel);
    this.kernelName = kernels.name;
    const make = {
      ...options,
      map,
      kernels,
      laneCount,
      territoryBytes: Math.max(this.#pieceBytes, rowBytes),
      readOnly: options.readOnly === true,
      log: options.log ?? null,
      isRecording: () => this.#isRecording(),
      onReport: (report: Report) => this.#account(report),
    };
    this.#driver = this.kind === 'event-loop' ? new EventLoopDriver(make) : new DirectDriver(make);
  }

  /** Whom the engine trusts: what it was told, less whom it has met failing since. */
  get health(): Health {
    return this.#health;
  }

  get laneCount(): number {
    return this.#driver.laneCount;
  }

  get laneDeaths(): number {
    return this.#driver.laneDeaths;
  }

  get bytesInFlight(): number {
    return this.#arena.bytesUsed;
  }

  lend(lengthBytes: number): Uint8Array | null {
    const address = this.#lendable.tryAcquire(lengthBytes);
    return address === null ? null : this.#bytes.subarray(address, address + lengthBytes);
  }

  takeBack(lent: Uint8Array): void {
    this.#lendable.release(lent.byteOffset, lent.byteLength);
  }

  /** Array bytes in; `targets` are filled when the promise resolves. */
  read(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const lent = this.#lentAmong(targets);
    if (lent !== null) return this.#inPlace('read', offsetBytes, lent);
    const lengthBytes = totalBytes(targets);
    const [only] = targets;
    const isOneBuffer = targets.length === 1 && only !== undefined;
    if (isOneBuffer && !this.#isClosed && this.#driver.readNow(offsetBytes, only)) return answered;
    const isOneJob =
      lengthBytes <= PAGE_BYTES && lengthBytes <= this.#driver.pieceAt(offsetBytes, this.#pieceBytes);
    if (isOneJob && !this.#isClosed) {
      // Without the machinery of many pieces.
      const address = this.#arena.tryAcquire(lengthBytes);
      if (address !== null) {
        this.#requests.begin();
        return new Promise((resolve, reject) => {
          this.#driver.submit({ op: 'read', offsetBytes, lengthBytes, address, member: 0 }, (report) => {
            if (report.error === null) this.#copyOut(address, targets, 0, lengthBytes);
            this.#arena.release(address, lengthBytes);
            this.#requests.end();
            if (report.error === null) resolve();
            else reject(report.error);
          });
        });
      }
    }
    return this.#pieces('read', offsetBytes, lengthBytes, (address, from, count) =>
      this.#copyOut(address, targets, from, count),
    );
  }

  /**
   * The bytes are copied before this returns. Where the arena is full, what does not fit is set aside for the time being:
   * copied twice, which is what a caller pays who writes faster than the members do.
   */
  write(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    const lent = this.#lentAmong(sources);
    if (lent !== null) return this.#inPlace('write', offsetBytes, lent);
    const lengthBytes = totalBytes(sources);
    const isOneJob = lengthBytes <= this.#driver.pieceAt(offsetBytes, this.#pieceBytes);
    // What is logged is whole sectors, and has a buffer that is larger.
    const address = isOneJob && !this.#isClosed && !this.#hasLog ? this.#arena.tryAcquire(lengthBytes) : null;
    if (address !== null) {
      this.#copyIn(address, sources, 0, lengthBytes);
      return this.#writeWhole(offsetBytes, lengthBytes, address);
    }
    let held = sources;
    let heldFrom = 0;
    return this.#pieces(
      'write',
      offsetBytes,
      lengthBytes,
      (address, from, count) => this.#copyIn(address, held, from - heldFrom, count),
      (from) => {
        const rest: Uint8Array[] = [];
        eachPart(held, from, lengthBytes - from, (part) => rest.push(part.slice()));
        [held, heldFrom] = [rest, from];
      },
    );
  }

  /** What is here in the arena, as one job, without the machinery of many pieces. */
  #writeWhole(offsetBytes: number, lengthBytes: number, address: number): Promise<void> {
    this.#requests.begin();
    return new Promise((resolve, reject) => {
      this.#driver.submit({ op: 'write', offsetBytes, lengthBytes, address, member: 0 }, ({ error }) => {
        this.#arena.release(address, lengthBytes);
        if (error === null && this.#isSettled) {
          this.#requests.end();
          resolve();
          return;
        }
        this.#answer('write', error)
          .finally(() => this.#requests.end())
          .then(resolve, reject);
      });
    });
  }

  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#pieces('write', offsetBytes, lengthBytes, (address, _from, count) => {
      this.#bytes.fill(0, address, address + count);
    });
  }

  /** Recomputes what `member` holds in this range of its data, and writes it there. */
  async recover(member: number, offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#sync('recover', member, offsetBytes, lengthBytes);
  }

  /** Copies what `member` holds in this range to its replacement. */
  async replace(member: number, offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#sync('replace', member, offsetBytes, lengthBytes);
  }

  /** Compares redundancy with data; positions are the layout's sync positions. */
  check(offsetBytes: number, lengthBytes: number): Promise<CheckResult> {
    return this.#sync('check', 0, offsetBytes, lengthBytes);
  }

  /** As `check`, and rewrites redundancy where it does not agree. The result says what was wrong before. */
  repair(offsetBytes: number, lengthBytes: number): Promise<CheckResult> {
    return this.#sync('repair', 0, offsetBytes, lengthBytes);
  }

  /**
   * Resolves when no job goes by the old health any more: those submitted before have ended, or have lost their lane. What a
   * dead lane had is done by its successor, by the new health; with a log it is asked for again.
   */
  setHealth(health: Health): Promise<void> {
    this.#health = health;
    return this.#driver.setHealth(health);
  }

  /**
   * Whether no byte is lost without these members, whatever the lanes have met and not told yet. If so they count as
   * excluded, and a health that says so is set next.
   */
  canMiss(members: readonly number[]): boolean {
    return this.#driver.canMiss(members);
  }

  /** Throws where the driver could not get at it. */
  checkReach(device: Device): void {
    checkReach(this.kind, device, this.#options.crew);
  }

  /**
   * The slot's device from now on, and its log, which holds an empty header and zeros. Only while its health is `missing`:
   * no job may be using the old one.
   */
  setMember(member: number, device: Device | null, log: Device | null = null): Promise<void> {
    if (!isWithout(this.#health, member)) {
      throw new RaidError('BUSY', `member ${member} is in use; fail it first`, { member });
    }
    if (device !== null) this.checkReach(device);
    return this.#driver.setMember(member, device, log);
  }

  /**
   * The replacement of a slot is its member from now on. Both hold the same; `health` says so, and has no replacement
   * there any more. It is asked when the jobs of before have ended: others may have failed meanwhile.
   */
  async promote(
    slot: number,
    device: Device,
    health: () => Health,
    log: Device | null = null,
  ): Promise<void> {
    await this.#driver.setMember(slot, device, log);
    await this.setHealth(health());
    await this.#driver.setMember(replacementOf(this.#layout.memberCount, slot), null, null);
  }

  /** Exclusions met so far are durable. Rejects where they cannot be made so, after one attempt of its own. */
  async settled(): Promise<void> {
    while (!this.#isSettled) await (this.#hold ?? this.#record([]));
  }

  get #isSettled(): boolean {
    return this.#hold === null && !this.#isUnrecorded;
  }

  /** Nothing is under way, and every exclusion met so far is durable. */
  async idle(): Promise<void> {
    await this.#requests.whenIdle();
    await this.settled();
  }

  /** Refuses what comes after it, and resolves when what came before has ended: then nobody uses the members. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#requests.whenIdle();
    // An exclusion that could not be recorded has been told to all whom it concerned.
    await this.settled().catch(() => undefined);
    await this.#driver.close();
  }

  /** For tests. */
  killLane(lane: number, when: Death): Promise<void> {
    return this.#driver.killLane(lane, when);
  }

  async #pieces(
    op: 'read' | 'write',
    offsetBytes: number,
    lengthBytes: number,
    copy: (address: number, from: number, count: number) => void,
    /** Called once, before the first wait: what `copy` will want from here on must not be the caller's any more. */
    setAside: (from: number) => void = () => undefined,
  ): Promise<void> {
    this.#begin();
    try {
      let failed: RaidError | null = null;
      const under: Promise<void>[] = [];
      let isAside = false;
      for (const { from, start, count } of this.#cuts(offsetBytes, lengthBytes)) {
        // What is logged is whole sectors, and the runner fills up the first and the last.
        const isWhole = op === 'write' && this.#hasLog;
        const head = isWhole ? start % SECTOR_BYTES : 0;
        const roomBytes = isWhole ? roundUp(head + count, SECTOR_BYTES) : count;
        let room = this.#arena.tryAcquire(roomBytes);
        if (room === null) {
          if (!isAside) setAside(from);
          isAside = true;
          room = await this.#arena.acquire(roomBytes);
        }
        const acquired = room;
        const address = acquired + head;
        if (op === 'write') copy(address, from, count);
        under.push(
          this.#carryOut({ op, offsetBytes: start, lengthBytes: count, address, member: 0 }).then(
            (report) => {
              if (op === 'read' && report.error === null) copy(address, from, count);
              this.#arena.release(acquired, roomBytes);
              failed = bothErrors(failed, report.error);
            },
            (error: unknown) => {
              this.#arena.release(acquired, roomBytes);
              throw error;
            },
          ),
        );
      }
      await Promise.all(under);
      await this.#answer(op, failed);
    } finally {
      this.#requests.end();
    }
  }

  #cuts(offsetBytes: number, lengthBytes: number): readonly Cut[] {
    return cutsOf(offsetBytes, lengthBytes, (start) => this.#driver.pieceAt(start, this.#pieceBytes));
  }

  /** How a request ends. A write may rely on a member's absence. */
  async #answer(op: 'read' | 'write', failed: RaidError | null): Promise<void> {
    if (failed !== null) throw failed;
    if (op === 'write') await this.settled();
  }

  #lentAmong(buffers: readonly Uint8Array[]): Uint8Array | null {
    const [first] = buffers;
    return buffers.length === 1 && first?.buffer === this.#bytes.buffer ? first : null;
  }

  async #inPlace(op: 'read' | 'write', offsetBytes: number, lent: Uint8Array): Promise<void> {
    this.#begin();
    try {
      const jobs: Job[] = [];
      for (const { from, start, count } of this.#cuts(offsetBytes, lent.byteLength)) {
        const address = lent.byteOffset + from;
        jobs.push({ op, offsetBytes: start, lengthBytes: count, address, member: 0 });
      }
      const reports = await Promise.all(jobs.map((job) => this.#submit(job)));
      const failed = reports.reduce<RaidError | null>((before, { error }) => bothErrors(before, error), null);
      await this.#answer(op, failed);
    } finally {
      this.#requests.end();
    }
  }

  #begin(): void {
    if (this.#isClosed) throw new RaidError('CLOSED', 'the array is closed');
    this.#requests.begin();
  }

  async #sync(op: SyncOp, member: number, offsetBytes: number, lengthBytes: number): Promise<CheckResult> {
    this.#begin();
    try {
      return await this.#cutAndSync(op, member, offsetBytes, lengthBytes);
    } finally {
      this.#requests.end();
    }
  }

  async #cutAndSync(
    op: SyncOp,
    member: number,
    offsetBytes: number,
    lengthBytes: number,
  ): Promise<CheckResult> {
    const jobs: Job[] = [];
    const pieceAt = (start: number): number =>
      this.#driver.syncPieceAt(op, member, start, this.#syncJobBytes());
    for (const { start, count } of cutsOf(offsetBytes, lengthBytes, pieceAt))
      jobs.push({ op, offsetBytes: start, lengthBytes: count, address: 0, member });
    const reports = await Promise.all(jobs.map((job) => this.#carryOut(job)));
    // First what the array does about failures: whoever sees the error sees what has become of the member too.
    await this.settled();
    const failed = reports.reduce<RaidError | null>((before, { error }) => bothErrors(before, error), null);
    if (failed !== null) throw failed;
    return {
      mismatchCount: reports.reduce((sum, report) => sum + report.mismatchCount, 0),
      mismatches: reports.flatMap((report) => report.mismatches),
    };
  }

  #syncJobBytes(): number {
    const chunk = this.#layout.kind === 'parity' ? this.#layout.chunkBytes : 0;
    return Math.max(chunk, SYNC_JOB_BYTES);
  }

  get #hasLog(): boolean {
    return (this.#options.log ?? null) !== null;
  }

  /** Whether anything is known of failures that is not on record yet. */
  #isRecording(): boolean {
    return this.#hold !== null || this.#isUnrecorded || this.#options.record?.isOwed() === true;
  }

  /** Where there is a log, nothing is written without a member before it is on record that it is out: see run.ts. */
  #carryOut(job: Job): Promise<Report> {
    const isLogged = this.#hasLog && (job.op === 'write' || job.op === 'repair');
    return isLogged ? this.#carryOutLogged(job) : this.#submit(job);
  }

  async #carryOutLogged(job: Job): Promise<Report> {
    const before: Report[] = [];
    for (;;) {
      while (this.#isRecording()) {
        await this.settled();
        await this.#options.record?.settled();
      }
      const report = await this.#submit(job);
      if (!report.again) {
        return {
          ...report,
          mismatches: [...before, report].flatMap(({ mismatches }) => mismatches),
          mismatchCount: [...before, report].reduce((sum, { mismatchCount }) => sum + mismatchCount, 0),
        };
      }
      before.push(report);
    }
  }

  #submit(job: Job): Promise<Report> {
    return new Promise((resolve) => this.#driver.submit(job, resolve));
  }

  /** Called at once when a report arrives, before anything that came after it is acknowledged. */
  #account(report: Report): void {
    if (report.corrections.length > 0) this.#options.onCorrection(report.corrections);
    if (report.damaged.length > 0) this.#options.onDamage(report.damaged);
    const news = report.exclusions.filter(({ member }) => !isWithout(this.#health, member));
    if (news.length === 0) return;
    this.#health = without(this.#health, new Set(news.map(({ member }) => member)));
    void this.#driver.setHealth(this.#health);
    // Called now, not when its turn comes: what the array says of its health must never again count on these members.
    this.#record(news);
  }

  #record(news: readonly Exclusion[]): Promise<void> {
    // What is asked for from here on is everything that was not recorded, and if that fails it is so again.
    this.#isUnrecorded = false;
    const end = (isUnrecorded: boolean): void => {
      if (isUnrecorded) this.#isUnrecorded = true;
      if (this.#hold === hold) this.#hold = null;
    };
    const hold = Promise.all([this.#hold, this.#options.onExclusion(news)]).then(
      () => end(false),
      (error: unknown) => {
        end(true);
        throw error;
      },
    );
    // Whoever awaits it hears of a failure; nobody else need.
    hold.catch(() => undefined);
    this.#hold = hold;
    return hold;
  }

  #copyIn(address: number, sources: readonly Uint8Array[], from: number, count: number): void {
    let at = address;
    eachPart(sources, from, count, (part) => {
      this.#bytes.set(part, at);
      at += part.byteLength;
    });
  }

  #copyOut(address: number, targets: readonly Uint8Array[], from: number, count: number): void {
    let at = address;
    eachPart(targets, from, count, (part) => {
      part.set(this.#bytes.subarray(at, at + part.byteLength));
      at += part.byteLength;
    });
  }
}

/** What a request returns that has ended before its caller goes on. */
export const answered: Promise<void> = Promise.resolve();

interface Cut {
  /** Counted from where the request begins. */
  readonly from: number;
  readonly start: number;
  readonly count: number;
}

/** What a request is cut into, each as long as `pieceAt` lets it be where it starts. */
function cutsOf(
  offsetBytes: number,
  lengthBytes: number,
  pieceAt: (start: number) => number,
): readonly Cut[] {
  const cuts: Cut[] = [];
  for (let from = 0; from < lengthBytes; ) {
    const start = offsetBytes + from;
    const count = Math.min(lengthBytes - from, pieceAt(start));
    cuts.push({ from, start, count });
    from += count;
  }
  return cuts;
}

/** Calls `each` for the parts of the buffers that hold bytes [from, from + count) of their concatenation. */
function eachPart(
  buffers: readonly Uint8Array[],
  from: number,
  count: number,
  each: (part: Uint8Array) => void,
): void {
  let start = 0;
  for (const buffer of buffers) {
    const end = start + buffer.byteLength;
    if (end > from && start < from + count) {
      const low = Math.max(from, start) - start;
      const high = Math.min(from + count, end) - start;
      each(low === 0 && high === buffer.byteLength ? buffer : buffer.subarray(low, high));
    }
    start = end;
  }
}

function checkOptions(options: EngineOptions, kind: DriverKind, heapBytes: number, slots: number): void {
  const { layout } = options;
  // One sector's copies, and those of replacements, are one commit; `copiesMax` has seen to it.
  assert(layout.kind !== 'copies' || layout.copyCount * 2 <= COMMIT_SLOTS, 'all copies fit into one commit');
  if (kind === 'lanes' && !(Number.isSafeInteger(slots) && slots >= 1)) {
    throw new RaidError('BAD_ARGUMENT', `${slots} lanes are not possible; take 1 or more`);
  }
  if (!Number.isSafeInteger(heapBytes) || heapBytes < MIB || memoryBytesFor(slots, heapBytes) > 4 * GIB) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `a heap of ${heapBytes} bytes with ${slots} lanes is not possible; take 1 MiB or more, and 4 GiB at most together with 17 MiB for each lane`,
    );
  }
  for (const device of options.members) {
    if (device !== null) checkReach(kind, device, options.crew);
  }
}

/** As much again as the heap. With a log there is none: it wants whole sectors, and room for them in the buffers of writes. */
function lendableBeside(slots: number, heapBytes: number): number {
  const leftBytes = 4 * GIB - memoryBytesFor(slots, heapBytes);
  return Math.min(HEAP_BYTES, roundUp(heapBytes, MIB), roundDown(leftBytes, MIB));
}

/** Threads, and synchronous calls on this one, reach a member only where it is open to them. */
function canReach(kind: DriverKind, { direct }: Device, crew: Crew): boolean {
  if (kind === 'event-loop') return true;
  return direct !== null && (kind === 'inline' || crew.reaches.includes(direct.kind));
}

export function checkReach(kind: DriverKind, device: Device, crew: Crew = threads): void {
  if (canReach(kind, device, crew)) return;
  const how = device.direct === null ? 'through its own operations only' : 'by one thread only';
  const other = device.direct === null ? 'event-loop' : 'inline or event-loop';
  throw new RaidError(
    'BAD_ARGUMENT',
    device.isClosed
      ? `${device.name} is closed`
      : `${device.name} can be reached ${how}, and not by the driver ${kind}; take ${other}`,
    { device: device.name },
  );
}

/** For these members, now or later. */
export function defaultDriver(devices: readonly Device[], cores: number, crew: Crew = threads): DriverKind {
  if (devices.some(({ direct }) => direct === null)) return 'event-loop';
  return cores > 1 && devices.every((device) => canReach('lanes', device, crew)) ? 'lanes' : 'inline';
}
