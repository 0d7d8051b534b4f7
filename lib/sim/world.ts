/**
 * A case comes true: the shipping array, engine, planner and md code, on simulated disks, in virtual time. Replaced are
 * devices, clock, chance and scheduling; the driver is the event loop's, or lanes that are no threads (lanes.ts).
 *
 *   safety     the steps. Requests run side by side, up to the depth; one change of members at a time, beside them.
 *              A crash comes when its time comes, in the middle of whatever goes on, assembly included
 *   liveness   faults off, disks exchanged where they are missing: everything must become whole, idle, clean and
 *              readable, without a mismatch, and be so again after being closed and assembled
 *
 * Every read is judged by registers.ts. What may be lost all the same is named with the number that it has in the table
 * of allowed losses:
 *
 *   L1  more failed than redundancy covers (only `beyond`): refused with an error, never wrong
 *   L3  a crash, and a member missing before redundancy was made again: chunks of that member in rows written since the
 *       last flush. The array must refuse to start so; it is forced
 *   L7  a disk that lies, without checksums: the sector itself, and what is computed from it
 */
import type { RaidArray } from '../array/array.ts';
import { type AssemblyReport, assembleDevices, formArray, type Source } from '../array/form.ts';
import type { Death } from '../engine/message.ts';
import type { Mismatch } from '../engine/run.ts';
import { InvariantViolation, RaidError } from '../errors.ts';
import { arraySectorsOf } from '../md/levels.ts';
import {
  bblogAreaOf,
  bitmapOffsetOf,
  checkSuperblock1,
  decodeSuperblock1,
  pplAreaOf,
  ROLE_SPARE,
  type Superblock1,
  superSectorOf,
} from '../md/superblock1.ts';
import { KIB, MIB, SECTOR_BYTES } from '../units.ts';
import { columnOf, type Damage, mayLose, maySpoil, rowOf, sectorsOn } from './atlas.ts';
import { Clock, Process, Stuck } from './clock.ts';
import { type Applied, Disk, type DiskDevice, type DiskFault, type Keep, type Zone } from './disk.ts';
import { SimulatedCrew } from './lanes.ts';
import { disagreement } from './redundancy.ts';
import { Registers, type Write } from './registers.ts';
import {
  type Case,
  type FaultName,
  type RefusableCalls,
  type Step,
  shapeOptionsOf,
  silentFaults,
} from './swarm.ts';

export type FailureKind =
  | 'wrong data' // a read returned what it may not
  | 'error' // something failed that had to work
  | 'stuck' // something never ends
  | 'violation' // an invariant that the code asserts by itself
  | 'mismatch' // redundancy does not agree with the data where it must
  | 'not idle'; // the array does not come to rest

export interface Failure {
  readonly kind: FailureKind;
  readonly message: string;
  /** Which step was the last to begin; the number of steps in the liveness phase. */
  readonly step: number;
  readonly atMs: number;
}

export type RefusalName = `refused-${RefusableCalls}`;

/** What happened, counted. */
export interface Tally {
  operations: Record<string, number>;
  faults: Partial<Record<FaultName | RefusalName, number>>;
  crashes: { kill: number; power: number; lane: number };
  /** Assemblies, growths, recoveries and resyncs that were completed. */
  recoveries: {
    assembled: number;
    grown: number;
    recovered: number;
    resynced: number;
    corrected: number;
    /** Assemblies that had to be told whom to leave out. */
    forksInDoubt: number;
    /** Requests that were given up since two lanes died: their outcome is not known. */
    abandoned: number;
  };
  /** Allowed losses that were met, by their number: reads of sectors that held what they should not; L1: refusals. */
  losses: { L1: number; L3: number; L7: number };
  events: number;
}

export interface Outcome {
  readonly failure: Failure | null;
  /** Of the log of everything that happened on the disks, and when. */
  readonly hash: string;
  readonly tally: Tally;
}

export function emptyTally(): Tally {
  return {
    operations: {},
    faults: {},
    crashes: { kill: 0, power: 0, lane: 0 },
    recoveries: {
      assembled: 0,
      grown: 0,
      recovered: 0,
      resynced: 0,
      corrected: 0,
      forksInDoubt: 0,
      abandoned: 0,
    },
    losses: { L1: 0, L3: 0, L7: 0 },
    events: 0,
  };
}

export async function runCase(one: Case): Promise<Outcome> {
  return await new World(one).run();
}

/** A disk in the cabinet. */
interface Unit {
  readonly disk: Disk;
  /** Open, by the array or to be added; null: nobody uses it. */
  device: DiskDevice | null;
  /** Not offered at the next assembly. */
  isAbsent: boolean;
  /** It will be expelled, or was, for a fault that was put into it. */
  isTroubled: boolean;
  /** What it refuses for a while, or did in this life of the array: as long as that, it may be expelled. */
  refusals: Refusal[];
  /** A member in sync when the array was last seen. */
  isCurrent: boolean;
  /** Lanes have been told that it is in sync, and have no job left from before. */
  isTrusted: boolean;
  /** The slot in which lanes may still use it, though it is out: they have jobs left from before. */
  leftSlot: number | null;
  /** Until then no read fails once more: one that fails twice is no transient error. */
  readsUntilMs: number;
}

interface Refusal {
  readonly calls: RefusableCalls;
  readonly untilMs: number;
  timesLeft: number;
  isHit: boolean;
}

type CrashStep = Extract<Step, { do: 'crash' }>;

/** How a segment of the history ends. */
type Ending = { readonly kind: 'done' } | { readonly kind: 'crash'; readonly step: CrashStep };

/** Thrown by checks, and kept. */
class Wrong extends Error {
  readonly kind: FailureKind;
  constructor(kind: FailureKind, message: string) {
    super(message);
    this.kind = kind;
  }
}

/** Without a step, or a window of a sync or scrub, that was begun: beyond all patience, in virtual time. */
const PATIENCE_MS = 600_000;
const HEAP_BYTES = MIB;
/** Between two reads of a disk that fail once. */
const TRANSIENT_MS = 5000;
/** Writes are shorter than this. */
const WRITE_BYTES = 128 * KIB;

/** Of a superblock, and of bitmaps as small as theirs. */
const PAGE_SECTORS = (4 * KIB) / SECTOR_BYTES;

/** Faults that expel a disk before it is whole: recovering it meets them. */
const noticedSoon: readonly FaultName[] = ['write-error', 'no-space', 'flush-error', 'gone'];

/** What the log says the world did, beside what its disks did. */
const events = { read: 0x1001, write: 0x1002, zero: 0x1003, flush: 0x1004, step: 0x1005, assembled: 0x1006 };

class World {
  readonly #case: Case;
  readonly #clock: Clock;
  readonly #units: Unit[] = [];
  readonly #tally = emptyTally();
  readonly #written = new Uint8Array(WRITE_BYTES);
  /** For reads; those that none uses. */
  readonly #targets: Uint8Array[] = [];
  #targetsFree: Uint8Array[] = [];
  #registers = new Registers(1);
  #process: Process;
  #crew: SimulatedCrew;
  #array: RaidArray | null = null;
  #next = 0;
  #failure: Failure | null = null;
  #underWay = 0;
  #freed: (() => void)[] = [];
  #control: Promise<void> | null = null;
  #interrupt: (ending: Ending) => void = () => undefined;
  #fail: (error: unknown) => void = () => undefined;
  #epoch = 0;
  /** Rows that were being written when there was a crash, and that no resync has seen since. */
  readonly #atRisk = new Set<number>();
  /** Of them, with partial parity logs, the sectors that were being written: nothing else of such a row is lost. */
  readonly #inFlight = new Set<number>();
  /** Rows that a resync has gone over, and when it was seen to have ended: until a flush after that, a power cut may undo it. */
  readonly #resynced = new Map<number, number>();
  /** The same, for good: the array was declared clean by force. */
  readonly #declared = new Set<number>();
  #declaredSeen = 0;
  /** Rows of writes that failed, whose error says that they are old or new: redundancy need not agree there. */
  readonly #torn = new Set<number>();
  /** Sectors that share their redundancy with a lie: 1 the sector itself, 2 the others. */
  readonly #tainted = new Map<number, 1 | 2>();
  /** Something was computed from redundancy since the first lie, or may have been. */
  #computes = false;
  /** What each disk was when it was last looked at, and whether redundancy was due. */
  readonly #states = new Map<string, string>();
  #wasUnsynced = false;
  /** More has failed than the array can stand. */
  #isBeyond = false;
  #eventsSeen = 0;
  #diskBytes: number;
  /** What the last growth that was acknowledged has made of the array. */
  #grown = { sizeBytes: 0, raidDisks: 0 };
  /** At the last assembly: it may be in caches only, as the death of a process left it. */
  #eventsAssembled = 0;

  constructor(one: Case) {
    this.#case = one;
    this.#diskBytes = one.config.diskBytes;
    this.#clock = new Clock(one.seed);
    this.#process = new Process(this.#clock);
    this.#crew = new SimulatedCrew(this.#process);
  }

  async run(): Promise<Outcome> {
    try {
      await this.#clock.drive(this.#form(), PATIENCE_MS);
      await this.#safety();
      await this.#liveness();
    } catch (error) {
      this.#failure = this.#failureOf(error);
    }
    this.#process.kill();
    this.#tally.crashes.lane += this.#crew.deaths;
    this.#tally.events = this.#clock.eventCount;
    this.#tally.losses.L3 = this.#registers.lostSeen + this.#declaredSeen;
    return { failure: this.#failure, hash: this.#clock.digest(), tally: this.#tally };
  }

  #failureOf(error: unknown): Failure {
    const at = { step: this.#next, atMs: this.#clock.nowMs };
    if (error instanceof Wrong) return { kind: error.kind, message: error.message, ...at };
    if (error instanceof Stuck)
      return { kind: 'stuck', message: `${error.message}${this.#whoWaits()}`, ...at };
    const isAsserted = error instanceof InvariantViolation;
    const isBug = !(error instanceof RaidError) && error instanceof Error;
    const text =
      error instanceof Error
        ? isBug
          ? (error.stack ?? error.message)
          : `${codeOf(error)}${error.message}`
        : String(error);
    return { kind: isAsserted ? 'violation' : 'error', message: text, ...at };
  }

  #whoWaits(): string {
    const state = this.#array === null ? 'no array' : `the array is ${this.#array.state}`;
    return `: ${this.#underWay} requests, ${this.#control === null ? 'no' : 'a'} change of members; ${state}`;
  }

  // Making and opening.

  #addUnit(): Unit {
    const { config } = this.#case;
    const number = this.#units.length;
    const { readMs, writeMs, flushMs } = config;
    const disk = new Disk({
      clock: this.#clock,
      name: `disk${number}`,
      number,
      sizeBytes: this.#diskBytes,
      timing: { readMs, writeMs, flushMs },
    });
    const unit: Unit = {
      disk,
      device: null,
      isAbsent: false,
      isTroubled: false,
      refusals: [],
      isCurrent: false,
      isTrusted: false,
      leftSlot: null,
      readsUntilMs: 0,
    };
    this.#units.push(unit);
    return unit;
  }

  #open(unit: Unit): DiskDevice {
    unit.device = unit.disk.open(this.#process, this.#case.config.lanes !== undefined);
    return unit.device;
  }

  #sourceOf(unit: Unit): Source {
    const { name } = unit.disk;
    return { device: this.#open(unit), name, identity: name };
  }

  async #form(): Promise<void> {
    const { config } = this.#case;
    for (let count = config.disks + config.spares; count > 0; count -= 1) this.#addUnit();
    this.#array = await formArray(
      this.#units.map((unit) => this.#sourceOf(unit)),
      { ...shapeOptionsOf(config), ...this.#engineOptions() },
    );
    this.#registers = new Registers(this.#array.limits.sizeBytes / SECTOR_BYTES);
    this.#noteTrust(true);
    this.#observe();
  }

  async #assemble(): Promise<void> {
    const offered = this.#units.filter((unit) => !unit.isAbsent);
    for (let index = offered.length - 1; index > 0; index -= 1) {
      const other = this.#clock.random(index + 1);
      [offered[index], offered[other]] = [offered[other] as Unit, offered[index] as Unit];
    }
    const opened = await this.#assembleAsAsked(offered);
    this.#array = opened.array;
    const members = new Set(opened.array.members.map(({ name }) => name));
    for (const unit of offered) {
      if (members.has(unit.disk.name)) continue;
      await unit.device?.close();
      unit.device = null;
    }
    this.#tally.recoveries.assembled += 1;
    const { events: count } = this.#md();
    this.#clock.note(events.assembled, count, opened.report.left.length);
    if (count < this.#eventsSeen && !this.#isBeyond) {
      throw new Wrong('violation', `events went back from ${this.#eventsSeen} to ${count} (I12)`);
    }
    this.#eventsAssembled = count;
    this.#noteSize();
    this.#noteTrust(true);
    // Who refused something and is a member all the same works again, and nothing of that life counts on it to be out.
    for (const unit of this.#units) unit.refusals = unit.refusals.filter((refusal) => !this.#isOver(refusal));
    // Logs have made redundancy agree with what there was; no resync will be seen to end.
    if (this.#case.config.isLogged === true) this.#exposeRisks();
    this.#observe();
    this.#exposeRisks();
  }

  /** What has grown is larger for good, once somebody has seen it so, or was told so. */
  #noteSize(): void {
    const { layout, limits } = this.#live();
    const sectorCount = limits.sizeBytes / SECTOR_BYTES;
    const known = this.#registers.sectorCount;
    const { sizeBytes, raidDisks } = this.#grown;
    if (!this.#isBeyond && (limits.sizeBytes < sizeBytes || this.#md().raidDisks < raidDisks)) {
      throw new Wrong(
        'violation',
        `it has grown to ${sizeBytes} bytes on ${raidDisks} disks, and opens with ${limits.sizeBytes} on ${this.#md().raidDisks}`,
      );
    }
    if (sectorCount < known) throw new Wrong('violation', `${known} sectors have become ${sectorCount}`);
    if (sectorCount > known) this.#registers.extend(sectorCount);
    this.#layoutKept = layout;
  }

  /** With what a person does who is told why the array does not start. */
  async #assembleAsAsked(offered: readonly Unit[]): Promise<{ array: RaidArray; report: AssemblyReport }> {
    try {
      return await this.#assembleUnits(offered, false);
    } catch (error) {
      const code = error instanceof RaidError ? error.code : null;
      const current = offered.filter((unit) => unit.isCurrent);
      if (code === 'FORKED_HISTORY' && this.#isForkInDoubt(offered, current)) {
        // Who has seen the array run knows whom to leave out, and it must start without those.
        this.#tally.recoveries.forksInDoubt += 1;
        return await this.#assembleAsAsked(current);
      }
      if (code !== 'DIRTY_DEGRADED') throw error;
      // Parity may be wrong and a member is missing: refused, as it has to be. Should the power go while it is forced,
      // what is on record may already be that the array is clean.
      for (const row of this.#atRisk) this.#declared.add(row);
      this.#computes = true;
      // Nobody forces it while one that it needs is about to answer: one that was left behind would be taken instead.
      await this.#refusalsOver();
      return await this.#assembleUnits(offered, true);
    }
  }

  /**
   * Whether one that was left behind cannot be told from one that went on by itself: it calls one faulty whose number is
   * a current member's by now, and there is nobody on whom both count. Asked of what the disks say, table by table.
   */
  #isForkInDoubt(offered: readonly Unit[], current: readonly Unit[]): boolean {
    const tables = current.flatMap(({ disk }) => this.#superblockOn(disk) ?? []);
    const newest = Math.max(...tables.map(({ events }) => events));
    const freshest = tables.find(({ events }) => events === newest);
    if (freshest === undefined) return false;
    const isSlot = (role: number | undefined): boolean => role !== undefined && role < freshest.raidDisks;
    return offered.some((unit) => {
      const stale = unit.isCurrent ? null : this.#superblockOn(unit.disk);
      if (stale === null || !isSlot(stale.devRoles[stale.descriptor])) return false;
      const isStranger = !freshest.devRoles.some(
        (slot, number) => isSlot(slot) && number !== stale.descriptor && stale.devRoles[number] === slot,
      );
      const accuses = freshest.devRoles.some(
        (slot, number) => isSlot(slot) && !isSlot(stale.devRoles[number] ?? ROLE_SPARE),
      );
      return isStranger && accuses;
    });
  }

  async #assembleUnits(
    offered: readonly Unit[],
    force: boolean,
  ): Promise<{ array: RaidArray; report: AssemblyReport }> {
    const sources = offered.map((unit) => this.#sourceOf(unit));
    return await assembleDevices(sources, {
      name: 'sim',
      ...this.#engineOptions(),
      run: true,
      ...(force ? { force: true } : {}),
    });
  }

  #engineOptions() {
    const { lanes } = this.#case.config;
    return {
      host: this.#process,
      heapBytes: HEAP_BYTES,
      windowBytes: this.#case.config.windowBytes,
      ...(lanes === undefined ? {} : { driver: 'lanes' as const, lanes, crew: this.#crew }),
    };
  }

  #md() {
    const metadata = this.#live().metadata;
    if (metadata === null) throw new Wrong('violation', 'an array that is written has metadata');
    return metadata.array;
  }

  #live(): RaidArray {
    if (this.#array === null) throw new Wrong('violation', 'there is no array');
    return this.#array;
  }

  // Safety.

  async #safety(): Promise<void> {
    for (;;) {
      const ending = await this.#clock.drive(this.#segment(), PATIENCE_MS);
      if (ending.kind === 'done') return;
      this.#crash(ending.step);
    }
  }

  #segment(): Promise<Ending> {
    return new Promise((resolve, reject) => {
      this.#interrupt = resolve;
      this.#fail = reject;
      this.#play().then(() => resolve({ kind: 'done' }), reject);
    });
  }

  async #play(): Promise<void> {
    if (this.#array === null && !(await this.#assembleOrGiveUp())) return;
    const { steps } = this.#case;
    while (this.#next < steps.length) {
      const step = steps[this.#next] as Step;
      this.#next += 1;
      this.#clock.note(events.step, this.#next);
      this.#clock.renew(PATIENCE_MS);
      await this.#perform(step);
      if (this.#array === null) return;
    }
    await this.#settled();
  }

  /** False where the array cannot start any more, as it may be beyond what it survives. */
  async #assembleOrGiveUp(): Promise<boolean> {
    if (
      this.#isBeyond &&
      !this.#units.some((unit) => unit.isCurrent && !unit.isAbsent && this.#isLegible(unit))
    ) {
      if (await this.#refusalsOver()) return await this.#assembleOrGiveUp();
      // Only stale members are left. What they say of themselves was true once, and nothing on them is wrong: that the
      // array went on without them nobody can know.
      this.#tally.losses.L1 += 1;
      this.#next = this.#case.steps.length;
      return false;
    }
    try {
      await this.#assemble();
      return true;
    } catch (error) {
      if (!this.#isBeyond || !(error instanceof RaidError)) throw error;
      if (await this.#refusalsOver()) return await this.#assembleOrGiveUp();
      this.#tally.losses.L1 += 1;
      this.#next = this.#case.steps.length;
      return false;
    }
  }

  /** Waits for disks that refuse something; false where there is none. */
  async #refusalsOver(): Promise<boolean> {
    const left = this.#units.flatMap(({ refusals }) => refusals.filter((each) => !this.#isOver(each)));
    if (left.length === 0) return false;
    await this.#process.sleep(Math.max(...left.map(({ untilMs }) => untilMs)) - this.#clock.nowMs);
    return true;
  }

  /** Whether it says of itself what it is. */
  #isLegible({ disk, refusals }: Unit): boolean {
    if (refusals.some((each) => ['any', 'read'].includes(each.calls) && !this.#isOver(each))) return false;
    return [...disk.latentSectors].length === 0 && this.#superblockOn(disk) !== null;
  }

  /** Null where it cannot be read, or is not right. */
  #superblockOn(disk: Disk): Superblock1 | null {
    if (disk.isGone) return null;
    const place = { version: this.#case.config.metadata, memberSectors: disk.sizeBytes / SECTOR_BYTES };
    const superSector = superSectorOf(place.version, place.memberSectors) ?? 0;
    try {
      const superblock = decodeSuperblock1(disk.peek(superSector * SECTOR_BYTES, 4 * KIB));
      checkSuperblock1(superblock, place);
      return superblock;
    } catch (error) {
      if (error instanceof RaidError) return null;
      throw error;
    }
  }

  async #perform(step: Step): Promise<void> {
    if (this.#case.config.lanes !== undefined) this.#noteTrust(this.#underWay === 0);
    switch (step.do) {
      case 'write':
      case 'zero':
        await this.#room();
        return this.#write(step);
      case 'read':
        await this.#room();
        return this.#read(step.sector, step.sectors);
      case 'flush':
        await this.#room();
        return this.#flush();
      case 'wait':
        await this.#settled();
        await this.#process.sleep(step.ms);
        return this.#observe();
      case 'kill-lane':
        return this.#killLane(step);
      case 'stop':
        return await this.#stop(step.absent);
      case 'grow':
        return await this.#grow(step);
      case 'crash':
        return await this.#crashSoon(step, step.inMs);
      case 'fault':
        return this.#injure(step);
      case 'refuse':
        return this.#refuse(step);
      default:
        if (this.#control !== null) await this.#control;
        this.#count(step.do);
        this.#control = this.#change(step)
          .catch((error: unknown) => this.#fail(error))
          .finally(() => {
            this.#control = null;
            this.#observe();
          });
    }
  }

  #count(operation: string): void {
    const { operations } = this.#tally;
    operations[operation] = (operations[operation] ?? 0) + 1;
  }

  async #room(): Promise<void> {
    while (this.#underWay >= this.#case.config.depth) {
      await new Promise<void>((resolve) => this.#freed.push(resolve));
    }
  }

  async #settled(): Promise<void> {
    while (this.#underWay > 0) await new Promise<void>((resolve) => this.#freed.push(resolve));
    if (this.#control !== null) await this.#control;
  }

  #end(): void {
    this.#underWay -= 1;
    const freed = this.#freed;
    if (freed.length === 0) return;
    this.#freed = [];
    for (const wake of freed) wake();
  }

  // Requests.

  #place(sector: number, sectors: number): { sector: number; sectors: number } {
    const { sectorCount } = this.#registers;
    const length = Math.min(sectors, sectorCount, WRITE_BYTES / SECTOR_BYTES);
    return { sector: Math.min(sector % sectorCount, sectorCount - length), sectors: length };
  }

  #write(step: Extract<Step, { do: 'write' | 'zero' }>): void {
    const array = this.#live();
    const { sector, sectors } = this.#place(step.sector, step.sectors);
    const isZero = step.do === 'zero';
    const deaths = this.#crew.deathsByLane;
    const registers = this.#registers;
    const write = registers.begin(sector, sectors, { isZero, isFua: step.fua });
    this.#clock.note(isZero ? events.zero : events.write, sector, sectors);
    this.#count(step.do);
    this.#underWay += 1;
    let done: Promise<void>;
    if (isZero) {
      done = array.writeZeroes(sector * SECTOR_BYTES, sectors * SECTOR_BYTES, { fua: step.fua });
    } else {
      const bytes = this.#written.subarray(0, sectors * SECTOR_BYTES);
      registers.fill(write, bytes);
      done = array.write(sector * SECTOR_BYTES, bytes, { fua: step.fua });
      // An array copies: what becomes of the buffer after the call is nobody's business.
      bytes.fill(0xee);
    }
    done.then(
      () => {
        registers.acknowledged(write);
        // All copies have it. Of a row of parity the rest may still be torn.
        if (this.#torn.size > 0 && array.layout.kind === 'copies')
          for (const row of rowsOf(array.layout, write)) this.#torn.delete(row);
        this.#end();
      },
      (error: unknown) => this.#requestFailed('write', error, write, deaths),
    );
  }

  #read(firstSector: number, count: number): void {
    const array = this.#live();
    const { sector, sectors } = this.#place(firstSector, count);
    const registers = this.#registers;
    // A part of it may wait for a lane that died while others write what its other parts have read.
    const isLong = this.#case.config.lanes !== undefined;
    const deaths = this.#crew.deathsByLane;
    const inv = isLong ? registers.beginRead() : registers.now();
    this.#clock.note(events.read, sector, sectors);
    this.#count('read');
    this.#underWay += 1;
    const buffer = this.#takeTarget();
    const target = spoiled(buffer, sectors);
    array.read(sector * SECTOR_BYTES, target).then(
      () => {
        this.#judge(sector, target, inv);
        if (isLong) registers.endRead(inv);
        this.#targetsFree.push(buffer);
        this.#end();
      },
      (error: unknown) => {
        if (isLong) registers.endRead(inv);
        this.#requestFailed('read', error, null, deaths);
      },
    );
  }

  #takeTarget(): Uint8Array {
    const free = this.#targetsFree.pop();
    if (free !== undefined) return free;
    const made = new Uint8Array(WRITE_BYTES);
    this.#targets.push(made);
    return made;
  }

  #flush(): void {
    const array = this.#live();
    if (this.#atRisk.size > 0) this.#observe();
    const inv = this.#registers.now();
    this.#clock.note(events.flush);
    this.#count('flush');
    this.#underWay += 1;
    array.flush().then(
      () => {
        this.#registers.flushed(inv);
        for (const [row, since] of this.#resynced) if (since < inv) this.#resynced.delete(row);
        this.#end();
      },
      (error: unknown) => this.#requestFailed('flush', error, null, []),
    );
  }

  #judge(sector: number, content: Uint8Array, inv: number): void {
    const wrong = this.#registers.check(sector, content, inv, this.#isExempt, this.#isFirm);
    if (wrong !== null) this.#fail(new Wrong('wrong data', wrong));
  }

  readonly #isExempt = (sector: number): boolean => {
    const taint = this.#tainted.get(sector);
    if (taint !== undefined && (taint === 1 || this.#computes)) {
      this.#tally.losses.L7 += 1;
      return true;
    }
    // Of two parities one may be right and the other not, where the array was declared clean: what was written since
    // then to a missing member is right until another member goes.
    if (this.#isDeclaredLost(sector)) {
      this.#declaredSeen += 1;
      return true;
    }
    return false;
  };

  /**
   * Between a crash and the resync copies may differ. Reads agree on one of them; when the member that has it is lost
   * before the resync has come by, the others' is what the sector holds.
   */
  readonly #isFirm = (sector: number): boolean => {
    const { layout } = this.#live();
    if (layout.kind !== 'copies') return true;
    return !this.#torn.has(sector) && (!this.#atRisk.has(sector) || this.#damage().impaired.size === 0);
  };

  #isDeclaredLost(sector: number): boolean {
    const { layout } = this.#live();
    const row = rowOf(layout, sector);
    if (layout.kind !== 'parity' || layout.parityCount === 1 || !this.#declared.has(row)) return false;
    const { impaired } = this.#damage();
    return impaired.size > 1 && [...impaired].some((slot) => sectorsOn(layout, slot, row).includes(sector));
  }

  #requestFailed(what: string, error: unknown, write: Write | null, deaths: readonly number[]): void {
    if (write !== null) this.#registers.failed(write);
    if (this.#isGivenUp(error, deaths)) {
      // Disks that cannot be missed may have refused what the dead lane's successor wrote again.
      if (write !== null && this.#isBeyond) this.#noteTorn(write);
      this.#end();
      return;
    }
    if (isLoss(error) && this.#isBeyond) {
      this.#tally.losses.L1 += 1;
      if (write !== null) this.#noteTorn(write);
    } else if (!(error instanceof RaidError) || error.code !== 'CLOSED') this.#fail(contextual(what, error));
    this.#end();
  }

  #noteTorn(write: Write): void {
    const layout = this.#layout;
    if (layout !== null) for (const row of rowsOf(layout, write)) this.#torn.add(row);
  }

  /** A lane and its successor have died since it was asked for. */
  #isGivenUp(error: unknown, deaths: readonly number[]): boolean {
    const isUnknown =
      error instanceof RaidError && (error.code === 'WRITE_MAYBE_APPLIED' || error.code === 'READ_ABANDONED');
    const isExcused = isUnknown && this.#crew.hasDiedTwiceSince(deaths);
    if (isExcused) this.#tally.recoveries.abandoned += 1;
    return isExcused;
  }

  #killLane({ which, when, isTwice }: Extract<Step, { do: 'kill-lane' }>): void {
    const array = this.#live();
    const { lanes } = array.engine;
    if (lanes === 0) return;
    const lane = which % lanes;
    const kill = (how: Death): void => {
      array.killLane(lane, how).catch((error: unknown) => this.#fail(error));
    };
    kill(when);
    if (!isTwice) return;
    const { deaths } = this.#crew;
    // When the first is dead, about when its successor begins. One that never comes to a commit is not waited for.
    const soon = (run: () => void): void =>
      this.#clock.after(0.5 + this.#clock.random(2000) / 1000, run, this.#process);
    let looks = 0;
    const again = (): void => {
      looks += 1;
      if (this.#array !== array || looks > 50) return;
      if (this.#crew.deaths === deaths) soon(again);
      else soon(() => this.#array === array && kill('now'));
    };
    soon(again);
  }

  // Changes of members.

  async #change(step: Step): Promise<void> {
    const array = this.#live();
    switch (step.do) {
      case 'fail': {
        const found = pickFrom(
          array.members.filter(({ state }) => state.state !== 'faulty'),
          step.which,
        );
        if (found === undefined) return;
        // By the time that its turn comes, a replacement may be the member of its slot.
        const unit = this.#unitNamed(found.name);
        const slot = this.#slotOf(unit) ?? this.#slotToBe(unit);
        if (slot !== null && !this.#spend(slot)) return;
        const wasTroubled = unit.isTroubled;
        unit.isTroubled = true;
        this.#computes = true;
        this.#exposeRisks();
        await this.#allowing(['LAST_COPY'], () => array.fail(found.name));
        if (found.state.state !== 'faulty') unit.isTroubled = wasTroubled;
        return;
      }
      case 'remove': {
        const found = pickFrom(
          array.members.filter(({ state }) => state.state === 'faulty' || state.state === 'spare'),
          step.which,
        );
        return found === undefined ? undefined : await this.#remove(found.name);
      }
      case 'add':
        return await this.#addNew();
      case 'return':
        return await this.#bringBack(step);
      case 'replace': {
        const found = pickFrom(
          array.members.filter(({ state }) => state.state === 'in_sync'),
          step.which,
        );
        if (found === undefined) return;
        // A spare may have gone meanwhile, and the member too; or the spare fails as it is given the slot.
        const allowed = ['NO_SUCH_MEMBER', 'BUSY', 'BAD_ARGUMENT'];
        try {
          return await this.#allowing(allowed, () => array.replace(found.name));
        } catch (error) {
          if (error instanceof RaidError && error.injected && error.reaction === 'fail-member') return;
          throw error;
        }
      }
      case 'scrub':
        return await this.#scrub(step.repair);
      case 'rebuild':
        return await this.#rebuild();
      default:
        throw new Wrong('violation', `${step.do} is no change of members`);
    }
  }

  async #allowing(codes: readonly string[], work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (error instanceof RaidError && codes.includes(error.code)) return;
      if (this.#isBeyond && isLoss(error)) return;
      throw error;
    }
  }

  #unitNamed(name: string): Unit {
    const unit = this.#units.find(({ disk }) => disk.name === name);
    if (unit === undefined) throw new Wrong('violation', `nobody knows a disk ${name}`);
    return unit;
  }

  async #remove(name: string): Promise<void> {
    const unit = this.#unitNamed(name);
    await this.#allowing(['NO_SUCH_MEMBER', 'BUSY'], async () => {
      await this.#live().remove(name);
      await unit.device?.close();
      unit.device = null;
      unit.isAbsent = true;
    });
  }

  async #addNew(): Promise<void> {
    const { config } = this.#case;
    if (this.#units.length > config.disks + config.spares + 4) return;
    const unit = this.#addUnit();
    // What was on it before is nobody's data, and must never be read.
    const garbage = new Uint8Array(64 * KIB).fill(0xdb);
    for (let at = 0; at + garbage.byteLength <= this.#diskBytes; at += 2 * garbage.byteLength)
      unit.disk.poke(at, garbage);
    await this.#bringIn(unit, (device) => this.#live().add(device, unit.disk.name));
  }

  /** A disk may fail while it is being brought in: then it is not, and who asked for it is told. */
  async #bringIn(unit: Unit, work: (device: DiskDevice) => Promise<unknown>): Promise<void> {
    const device = this.#open(unit);
    try {
      await this.#allowing([], async () => {
        await work(device);
      });
    } catch (error) {
      const isItsOwn = error instanceof RaidError && error.injected && error.place.device === unit.disk.name;
      if (!isItsOwn) throw error;
      await device.close();
      unit.device = null;
      unit.isAbsent = true;
    }
  }

  async #bringBack(step: Extract<Step, { do: 'return' }>): Promise<void> {
    const array = this.#live();
    const isUsed = ({ disk }: Unit): boolean =>
      array.members.some(({ name, state }) => name === disk.name && state.state !== 'faulty');
    const unit = pickFrom(
      this.#units.filter((each) => !isUsed(each)),
      step.which,
    );
    if (unit === undefined) return;
    const { name } = unit.disk;
    if (array.members.some((member) => member.name === name)) await this.#remove(name);
    if (unit.device !== null) await unit.device.close();
    unit.disk.heal();
    unit.isTroubled = false;
    unit.refusals = [];
    unit.readsUntilMs = 0;
    unit.isAbsent = false;
    await this.#bringIn(unit, async (device) => {
      if (!step.asNew) {
        try {
          await array.reAdd(device, name);
          return;
        } catch (error) {
          // Too old, or nothing on it says what it was: then it comes as a new one.
          if (!(error instanceof RaidError)) throw error;
          if (error.reaction !== 'ask-operator' && error.reaction !== 'refuse') throw error;
        }
      }
      await array.add(device, name);
    });
  }

  async #scrub(repair: boolean): Promise<void> {
    const array = this.#live();
    // With a lie about, or redundancy that is not made yet, mismatches are what a scrub is for.
    const mustAgree = (): boolean =>
      this.#tainted.size === 0 && this.#declared.size === 0 && array.health.unsyncedFromBytes === undefined;
    let isSure = mustAgree();
    if (repair) this.#computes = true;
    const deaths = this.#crew.deathsByLane;
    try {
      for await (const progress of array.scrub({ repair })) {
        this.#clock.renew(PATIENCE_MS);
        isSure &&= mustAgree();
        const mismatch = progress.mismatches.find((each) => !this.#isTorn(each));
        if (!isSure || mismatch === undefined) continue;
        throw new Wrong('mismatch', `a scrub found ${JSON.stringify(mismatch)} (I9)`);
      }
    } catch (error) {
      if (isClosed(error) || this.#isGivenUp(error, deaths) || (this.#isBeyond && isLoss(error))) return;
      throw error;
    }
  }

  /** Whether writes that failed explain all of it. */
  #isTorn({ member, offsetBytes, lengthBytes }: Mismatch): boolean {
    const { layout } = this.#live();
    const first = Math.floor(offsetBytes / SECTOR_BYTES);
    const count = Math.ceil((offsetBytes + lengthBytes) / SECTOR_BYTES) - first;
    return Array.from({ length: count }, (_, index) => columnOf(layout, member ?? 0, first + index)).every(
      ([sector]) => sector !== undefined && this.#torn.has(rowOf(layout, sector)),
    );
  }

  async #rebuild(): Promise<void> {
    const array = this.#live();
    const deaths = this.#deathsBeforeSync(array);
    try {
      for await (const _ of array.rebuild()) this.#clock.renew(PATIENCE_MS);
    } catch (error) {
      if (isClosed(error) || this.#isGivenUp(error, deaths) || (this.#isBeyond && isLoss(error))) return;
      // The disk that was being recovered has failed, which is its right.
      if (error instanceof RaidError && error.reaction === 'fail-member') return;
      throw error;
    }
  }

  /** Who watches a sync that is under way already may have missed the first of two deaths. */
  #deathsBeforeSync(array: RaidArray): readonly number[] {
    return array.syncProgress === null ? this.#crew.deathsByLane : [];
  }

  /** Notes what has changed by itself. */
  #observe(): void {
    const array = this.#array;
    if (array === null) return;
    const { events: count } = this.#md();
    // Where nobody takes a superblock any more, what was counted in memory was never on record.
    if (count < this.#eventsSeen && !this.#isBeyond) {
      this.#fail(new Wrong('violation', `events went back from ${this.#eventsSeen} to ${count} (I12)`));
    }
    if (count > this.#eventsAssembled) this.#eventsSeen = Math.max(this.#eventsSeen, count);
    for (const unit of this.#units) unit.isCurrent = this.#slotOf(unit) !== null;
    const isUnsynced = array.health.unsyncedFromBytes !== undefined;
    if (array.degraded > 0 || isUnsynced) this.#computes = true;
    if (!isUnsynced) {
      for (const row of this.#atRisk) this.#resynced.set(row, this.#registers.now());
      this.#atRisk.clear();
    }
    // "Clean" is on record only after a flush of all members.
    if (this.#md().resyncOffsetSectors === Number.POSITIVE_INFINITY) this.#resynced.clear();
    if (this.#atRisk.size === 0 && this.#resynced.size === 0) this.#inFlight.clear();
    const { recoveries } = this.#tally;
    if (this.#wasUnsynced && !isUnsynced) recoveries.resynced += 1;
    this.#wasUnsynced = isUnsynced;
    for (const { name, state } of array.members) {
      const before = this.#states.get(name);
      if (state.state === 'in_sync' && before !== undefined && before !== 'in_sync')
        recoveries.recovered += 1;
      this.#states.set(name, state.state);
    }
  }

  // Damage.

  /** The zone of a member's data on its disk, and the slot it fills; null where it fills none. */
  #slotOf(unit: Unit): number | null {
    const member = this.#array?.members.find(({ name }) => name === unit.disk.name);
    return member?.state.state === 'in_sync' ? member.state.slot : null;
  }

  /** The slot of the member that it is to replace; null where it replaces none. */
  #slotToBe(unit: Unit): number | null {
    const member = this.#array?.members.find(({ name }) => name === unit.disk.name);
    return member?.state.state === 'replacement' ? member.state.slot : null;
  }

  /**
   * The slot that the next life would find it in. One that has been replaced is out before that is on record, and until it
   * is, a crash makes it the member again: its replacement is not whole by then.
   */
  #slotOnRecord(unit: Unit): number | null {
    const member = this.#array?.members.find(({ name }) => name === unit.disk.name);
    const recorded = this.#md().members.find(({ descriptor }) => descriptor === member?.descriptor);
    return recorded?.state === 'in_sync' ? recorded.slot : null;
  }

  #dataZone(unit: Unit): Zone | null {
    const array = this.#array;
    const member = array?.members.find(({ name }) => name === unit.disk.name);
    if (array === null || member === undefined) return null;
    const superblock = this.#md().members.find(
      ({ descriptor }) => descriptor === member.descriptor,
    )?.superblock;
    if (superblock === undefined) return null;
    const slot = 'slot' in member.state ? member.state.slot : 0;
    return {
      offsetBytes: superblock.dataOffsetSectors * SECTOR_BYTES,
      lengthBytes: array.layout.memberBytes[slot] ?? 0,
    };
  }

  #damage(): Damage {
    const array = this.#live();
    const impaired = new Set(Array.from({ length: array.layout.memberCount }, (_, slot) => slot));
    const latent = new Map<number, Set<number>>();
    for (const unit of this.#units) {
      const slot = this.#slotOf(unit);
      const zone = this.#dataZone(unit);
      if (slot === null || zone === null) continue;
      // One that is to be absent at the next assembly still is a member while the array is being closed.
      let isSound =
        !this.#isExpected(unit) && !unit.isAbsent && !unit.disk.isGone && unit.disk.refusesWrites === null;
      for (const sector of unit.disk.latentSectors) {
        const at = sector - zone.offsetBytes / SECTOR_BYTES;
        if (at < 0 || at * SECTOR_BYTES >= zone.lengthBytes) isSound = false;
        const slots = latent.get(at);
        if (slots === undefined) latent.set(at, new Set([slot]));
        else slots.add(slot);
      }
      if (isSound) impaired.delete(slot);
    }
    // What a disk that cannot be missed refused is listed as bad there, and is so when it works again.
    for (const { member, offsetBytes, lengthBytes } of array.health.erased) {
      if (member >= array.layout.memberCount) continue;
      const end = (offsetBytes + lengthBytes) / SECTOR_BYTES;
      for (let at = Math.floor(offsetBytes / SECTOR_BYTES); at < end; at += 1) {
        const slots = latent.get(at);
        if (slots === undefined) latent.set(at, new Set([member]));
        else slots.add(member);
      }
    }
    for (const unit of this.#units) {
      const slot = this.#slotToBe(unit) ?? this.#slotOnRecord(unit);
      if (slot !== null && this.#isExpected(unit)) impaired.add(slot);
    }
    return { impaired, latent };
  }

  #noteTrust(isIdle: boolean): void {
    for (const unit of this.#units) {
      const slot = this.#slotOf(unit);
      unit.isTrusted = slot !== null && (isIdle || unit.isTrusted);
      unit.leftSlot = slot ?? (isIdle ? null : unit.leftSlot);
    }
  }

  /** What there is for new damage to come on top of: to jobs that lanes were given before, a member just in sync is not. */
  #damageSoFar(): Damage {
    const damage = this.#damage();
    if (this.#case.config.lanes === undefined) return damage;
    const impaired = new Set(damage.impaired);
    for (const unit of this.#units) {
      const slot = this.#slotOf(unit);
      if (slot !== null && !unit.isTrusted) impaired.add(slot);
    }
    return { ...damage, impaired };
  }

  /** Whether the damage budget has room for the loss of this member. Beyond it, everything goes, and is noted. */
  #spend(slot: number): boolean {
    const { layout } = this.#live();
    if (mayLose(layout, this.#damageSoFar(), slot)) return true;
    if (this.#case.mode !== 'beyond') return false;
    this.#isBeyond = true;
    return true;
  }

  /** What is computed from redundancy that a crash may have left wrong is lost: L3. */
  #exposeRisks(): void {
    if (this.#atRisk.size === 0 && this.#declared.size === 0) return;
    const { layout } = this.#live();
    const { impaired, latent } = this.#damage();
    for (const rows of [this.#atRisk, this.#declared]) {
      for (const row of rows) {
        if (layout.kind === 'copies') {
          this.#registers.unpin(row);
          continue;
        }
        const isLogged = this.#case.config.isLogged === true && rows === this.#atRisk;
        const lose = (sectors: readonly number[]): void =>
          this.#lose(isLogged ? sectors.filter((sector) => this.#inFlight.has(sector)) : sectors);
        for (const slot of impaired) lose(sectorsOn(layout, slot, row));
        for (const [at, slots] of latent) for (const slot of slots) lose(sectorsOn(layout, slot, row, at));
      }
    }
  }

  #lose(sectors: readonly number[]): void {
    for (const sector of sectors) this.#registers.lose(sector);
  }

  /** To be expelled, or it may be. */
  #isExpected(unit: Unit): boolean {
    return unit.isTroubled || unit.refusals.some((refusal) => refusal.isHit || !this.#isOver(refusal));
  }

  #isOver({ untilMs, timesLeft }: Refusal): boolean {
    return timesLeft === 0 || untilMs <= this.#clock.nowMs;
  }

  #hit(name: FaultName | RefusalName): void {
    this.#tally.faults[name] = (this.#tally.faults[name] ?? 0) + 1;
  }

  #injure(step: Extract<Step, { do: 'fault' }>): void {
    const inUse = this.#units.filter((unit) => this.#dataZone(unit) !== null && unit.device !== null);
    const unit = pickFrom(inUse, step.which);
    const zone = unit === undefined ? null : this.#dataZone(unit);
    if (unit === undefined || zone === null) return;
    const { disk } = unit;
    const slot = this.#slotOf(unit);
    const { fault, kind } = step;
    const arm = (what: DiskFault, where: Zone | null = null): void =>
      disk.arm(what, where, () => this.#hit(fault));
    const code = kind % 2 === 0 ? 'MEDIUM_ERROR' : 'SHORT_READ';
    if (silentFaults.includes(fault)) {
      this.#lie(unit, zone, step);
      return;
    }
    switch (fault) {
      case 'slow':
        disk.slowness = disk.slowness === 1 ? 2 ** (1 + (kind % 8)) : 1;
        this.#hit(fault);
        return;
      case 'hang':
        disk.hangsUntilMs = this.#clock.nowMs + 10 * 2 ** (kind % 10);
        this.#hit(fault);
        return;
      case 'read-error':
        if (this.#clock.nowMs < unit.readsUntilMs) return;
        unit.readsUntilMs = Number.POSITIVE_INFINITY;
        disk.arm({ on: 'read', kind: 'error', code: 'MEDIUM_ERROR' }, zone, () => {
          unit.readsUntilMs = this.#clock.nowMs + TRANSIENT_MS;
          this.#hit(fault);
        });
        return;
      case 'latent': {
        if (slot === null) return;
        const places = this.#placesIn(zone, step.sector, step.sectors);
        if (!this.#spendSectors(slot, places)) return;
        disk.addLatent(zone.offsetBytes / SECTOR_BYTES + (places[0] ?? 0), places.length);
        this.#computes = true;
        this.#exposeRisks();
        this.#hit(fault);
        return;
      }
      default:
        break;
    }
    // On a disk that only becomes a member, what nothing notices before it is one would come too late for the account.
    if (slot === null && !noticedSoon.includes(fault)) return;
    // All others cost the array the member; a replacement may have been flushed for the last time before it is one, and
    // what it has replaced may be the member once more after a crash, or be written by a lane that has not been told.
    const atStake = slot ?? this.#slotToBe(unit) ?? this.#slotOnRecord(unit) ?? unit.leftSlot;
    if (atStake !== null && !this.#spend(atStake)) return;
    unit.isTroubled = true;
    this.#computes = true;
    this.#exposeRisks();
    switch (fault) {
      case 'sticky-latent': {
        const [first = 0, ...rest] = this.#placesIn(zone, step.sector, step.sectors);
        disk.addLatent(zone.offsetBytes / SECTOR_BYTES + first, 1 + rest.length, false);
        this.#hit(fault);
        return;
      }
      case 'short-read':
        arm({ on: 'read', kind: 'error', code }, zone);
        return;
      case 'write-error': {
        // One that lands late does so on a disk that is out; beyond redundancy it might have to stay.
        const ways: readonly Applied[] = ['none', 'prefix', 'all', 'late'];
        // Nor does one of a thread's, which has ended when it is told of.
        const isNever = this.#case.mode === 'beyond' || this.#case.config.lanes !== undefined;
        const applied = ways[kind % (isNever ? 3 : 4)] ?? 'none';
        arm({ on: 'write', kind: 'error', code: 'WRITE_FAILED', applied });
        return;
      }
      case 'no-space':
        disk.refusesWrites = 'NO_SPACE';
        this.#hit(fault);
        return;
      case 'flush-error':
        disk.arm({ on: 'flush', kind: 'error', code: 'FLUSH_FAILED' }, null, () => {
          this.#hit(fault);
          // Where it is the last copy, it stays.
          if (this.#isBeyond) this.#registers.flushFailed();
        });
        return;
      case 'gone':
        disk.isGone = true;
        this.#hit(fault);
        return;
      case 'metadata-read':
      case 'metadata-rot':
        this.#spoilMetadata(unit, fault, kind);
        return;
    }
  }

  #spoilMetadata(unit: Unit, fault: 'metadata-read' | 'metadata-rot', kind: number): void {
    const { disk } = unit;
    const member = this.#live().members.find(({ name }) => name === disk.name);
    const found = this.#md().members.find(({ descriptor }) => descriptor === member?.descriptor);
    if (found === undefined) return;
    const { superSector } = found.superblock;
    this.#hit(fault);
    if (fault === 'metadata-read') {
      // The superblock, or the page after it: the bitmap, where there is one.
      disk.addLatent(superSector + (kind % 2 === 0 || superSector * 512 + 8192 > disk.sizeBytes ? 0 : 8), 1);
      return;
    }
    const at = superSector * SECTOR_BYTES + kind * 4;
    const bytes = disk.peek(at, 1);
    bytes[0] = (bytes[0] ?? 0) ^ (1 << (kind % 8));
    disk.poke(at, bytes);
  }

  /** The disk fails at one kind of call for a while, and then it works again, member or not. */
  #refuse({ calls, which, inMs, forMs, times, applied }: Extract<Step, { do: 'refuse' }>): void {
    const unit = pickFrom(
      this.#units.filter((each) => this.#dataZone(each) !== null && each.device !== null),
      which,
    );
    const zone = unit === undefined ? undefined : this.#zoneOf(unit, calls);
    if (unit === undefined || zone === undefined) return;
    // One that fills no slot, nor will, might do so later, unnoticed by the account.
    const atStake = this.#slotOf(unit) ?? this.#slotToBe(unit) ?? this.#slotOnRecord(unit);
    if (atStake === null || !this.#spend(atStake)) return;
    const fromMs = this.#clock.nowMs + inMs;
    const isAny = calls === 'any';
    const refusal: Refusal = {
      calls,
      untilMs: fromMs + forMs,
      timesLeft: (isAny ? null : times) ?? Number.POSITIVE_INFINITY,
      isHit: false,
    };
    unit.refusals.push(refusal);
    this.#computes = true;
    this.#exposeRisks();
    const arm = (fault: DiskFault): void =>
      unit.disk.arm(
        fault,
        zone,
        () => {
          refusal.isHit = true;
          refusal.timesLeft -= 1;
          this.#hit(`refused-${calls}`);
          if (fault.on === 'flush' && this.#isBeyond) this.#registers.flushFailed();
        },
        { fromMs, untilMs: refusal.untilMs, times: refusal.timesLeft },
      );
    if (isAny || calls === 'read')
      arm({ on: 'read', kind: 'error', code: isAny ? 'MEMBER_GONE' : 'MEDIUM_ERROR' });
    if (isAny || calls === 'flush') arm({ on: 'flush', kind: 'error', code: 'FLUSH_FAILED' });
    if (calls !== 'read' && calls !== 'flush')
      arm({ on: 'write', kind: 'error', code: isAny ? 'MEMBER_GONE' : 'WRITE_FAILED', applied });
  }

  /** Where calls of this kind go; null: anywhere; undefined: nowhere, on this disk. */
  #zoneOf(unit: Unit, calls: RefusableCalls): Zone | null | undefined {
    const member = this.#live().members.find(({ name }) => name === unit.disk.name);
    const superblock = this.#md().members.find(
      ({ descriptor }) => descriptor === member?.descriptor,
    )?.superblock;
    if (superblock === undefined) return undefined;
    const zoneAt = (offsetSectors: number, lengthSectors: number): Zone => ({
      offsetBytes: (superblock.superSector + offsetSectors) * SECTOR_BYTES,
      lengthBytes: lengthSectors * SECTOR_BYTES,
    });
    switch (calls) {
      case 'any':
      case 'read':
      case 'write':
      case 'flush':
        return null;
      case 'data':
        return this.#dataZone(unit) ?? undefined;
      case 'superblock':
        return zoneAt(0, PAGE_SECTORS);
      case 'bitmap': {
        const offsetSectors = bitmapOffsetOf(superblock);
        return offsetSectors === null ? undefined : zoneAt(offsetSectors, PAGE_SECTORS);
      }
      case 'bad-blocks': {
        const area = bblogAreaOf(superblock, unit.disk.sizeBytes / SECTOR_BYTES, PAGE_SECTORS);
        return area === null ? undefined : zoneAt(area.offsetSectors, area.lengthSectors);
      }
      case 'log': {
        const area = pplAreaOf(superblock);
        return area === null ? undefined : zoneAt(area.offsetSectors, area.lengthSectors);
      }
    }
  }

  #spendSectors(slot: number, dataSectors: readonly number[]): boolean {
    if (maySpoil(this.#live().layout, this.#damageSoFar(), slot, dataSectors)) return true;
    if (this.#case.mode !== 'beyond') return false;
    this.#isBeyond = true;
    return true;
  }

  /** Sectors of the data, from its start. */
  #placesIn(zone: Zone, sector: number, sectors: number): readonly number[] {
    const most = zone.lengthBytes / SECTOR_BYTES;
    const count = Math.min(sectors, most);
    const first = Math.min(sector % most, most - count);
    return Array.from({ length: count }, (_, index) => first + index);
  }

  /** The disk does not do what it says, and nothing in the array can tell. */
  #lie(unit: Unit, zone: Zone, step: Extract<Step, { do: 'fault' }>): void {
    const { disk } = unit;
    const slotNow = (): number | null => {
      const state = this.#array?.members.find(({ name }) => name === disk.name)?.state;
      return state !== undefined && 'slot' in state ? state.slot : null;
    };
    if (slotNow() === null) return;
    const { layout } = this.#live();
    const taint = (place: Zone): void => {
      // Who was armed in one slot may be hit in another. One that has none any more has nothing that is read.
      const slot = slotNow();
      if (slot === null) return;
      const first = (place.offsetBytes - zone.offsetBytes) / SECTOR_BYTES;
      for (let at = first; at < first + place.lengthBytes / SECTOR_BYTES; at += 1) {
        const [self, ...others] = columnOf(layout, slot, at);
        if (self !== undefined) this.#tainted.set(self, 1);
        for (const other of others) if (!this.#tainted.has(other)) this.#tainted.set(other, 2);
      }
      this.#hit(step.fault);
    };
    if (step.fault === 'rot') {
      const [first = 0, ...rest] = this.#placesIn(zone, step.sector, Math.min(step.sectors, 8));
      const place = {
        offsetBytes: zone.offsetBytes + first * SECTOR_BYTES,
        lengthBytes: (1 + rest.length) * SECTOR_BYTES,
      };
      const bytes = disk.peek(place.offsetBytes, place.lengthBytes);
      for (let at = step.kind; at < bytes.length; at += 61)
        bytes[at] = (bytes[at] ?? 0) ^ (1 + (step.kind % 255));
      disk.poke(place.offsetBytes, bytes);
      taint(place);
      return;
    }
    const byBytes = (step.kind - 32) * 8 * SECTOR_BYTES;
    if (step.fault === 'lost-write' || byBytes === 0) {
      disk.arm({ on: 'write', kind: 'lost' }, zone, (places) => {
        places.forEach(taint);
        this.#unhealed(unit, places[0]);
      });
    } else {
      disk.arm({ on: 'write', kind: 'misdirected', byBytes }, zone, (places) => {
        places.forEach(taint);
        this.#unhealed(unit, places[0]);
      });
    }
  }

  /**
   * A write that does not arrive heals nothing. What rewrites a sector that cannot be read reads it back, and expels a
   * disk that still cannot; where the array could not stand that, the sector can be read.
   */
  #unhealed(unit: Unit, place: Zone | undefined): void {
    const { disk } = unit;
    if (place === undefined || this.#isExpected(unit)) return;
    const first = place.offsetBytes / SECTOR_BYTES;
    const end = first + place.lengthBytes / SECTOR_BYTES;
    if (![...disk.latentSectors].some((sector) => sector >= first && sector < end)) return;
    const slot = this.#slotOf(unit);
    if (slot === null || !this.#spend(slot)) {
      disk.healSectors(place.offsetBytes, place.lengthBytes);
      return;
    }
    unit.isTroubled = true;
    this.#exposeRisks();
  }

  // Catastrophes.

  async #crashSoon(step: CrashStep, inMs: number): Promise<void> {
    const epoch = this.#epoch;
    // One at a time: the next waits for this one, whatever comes between goes on.
    this.#clock.after(inMs, () => {
      if (this.#epoch === epoch) this.#interrupt({ kind: 'crash', step });
    });
    if (this.#case.steps[this.#next]?.do === 'crash' || this.#next === this.#case.steps.length) {
      await this.#process.sleep(inMs + 1);
    }
  }

  /** At this moment nothing goes on: every promise waits for an event that will never come. */
  #crash(step: CrashStep): void {
    const random = this.#clock.random;
    const array = this.#array;
    this.#observe();
    this.#tally.crashes[step.how] += 1;
    this.#epoch += 1;
    this.#computes = true;
    this.#noteRisks();
    this.#chooseAbsent(step.absent);
    this.#process.kill();
    for (const { disk } of this.#units) {
      const how = random(4);
      const lot = random(8);
      const keep: Keep = (_, sector) =>
        how === 0 ? false : how === 1 ? true : how === 2 ? random(2) === 0 : sector >= lot;
      if (step.how === 'power') disk.powerCut(keep);
      else disk.processKilled(keep);
    }
    if (step.how === 'power') {
      this.#registers.powerCut();
      for (const row of this.#resynced.keys()) this.#atRisk.add(row);
      this.#resynced.clear();
    } else this.#registers.killed();
    if (array !== null) this.#tally.recoveries.corrected += correctionsOf(array);
    this.#array = null;
    this.#tally.crashes.lane += this.#crew.deaths;
    this.#process = new Process(this.#clock);
    this.#crew = new SimulatedCrew(this.#process);
    this.#underWay = 0;
    this.#freed = [];
    // No read of the dead process fills its target any more.
    this.#targetsFree = [...this.#targets];
    this.#control = null;
    for (const unit of this.#units) unit.device = null;
    if (step.againInMs !== null) void this.#crashSoon({ ...step, againInMs: null }, step.againInMs);
  }

  #noteRisks(): void {
    const layout = this.#layout;
    if (layout === null) return;
    for (const row of this.#torn) this.#atRisk.add(row);
    for (const write of this.#registers.unflushed) {
      for (const row of rowsOf(layout, write)) this.#atRisk.add(row);
      for (let index = 0; index < write.sectorCount; index += 1)
        this.#inFlight.add(write.firstSector + index);
    }
  }

  #layoutKept: RaidArray['layout'] | null = null;

  get #layout(): RaidArray['layout'] | null {
    this.#layoutKept ??= this.#array?.layout ?? null;
    return this.#layoutKept;
  }

  /** A member that works is not offered at the next assembly; who was away may be offered again. */
  #chooseAbsent(which: number | null): void {
    for (const unit of this.#units)
      if (this.#clock.random(2) === 0 && unit.device === null) unit.isAbsent = false;
    if (which === null || this.#array === null) return;
    const unit = pickFrom(
      this.#units.filter((each) => this.#slotOf(each) !== null),
      which,
    );
    const slot = unit === undefined ? null : this.#slotOf(unit);
    if (unit === undefined || slot === null || !this.#spend(slot)) return;
    unit.isAbsent = true;
    this.#computes = true;
  }

  async #stop(absent: number | null): Promise<void> {
    if (this.#control !== null) await this.#control;
    const array = this.#live();
    this.#count('stop');
    this.#observe();
    this.#tally.recoveries.corrected += correctionsOf(array);
    let isCutOff = false;
    try {
      this.#chooseAbsent(absent);
      await array.close();
    } catch (error) {
      if (!this.#isBeyond || !isLoss(error)) throw error;
      this.#tally.losses.L1 += 1;
      isCutOff = true;
    }
    while (this.#underWay > 0) await new Promise<void>((resolve) => this.#freed.push(resolve));
    // Who failed while it was closed was left behind, too.
    this.#observe();
    // It could not become clean, or leave a record of what writes have torn: as after a crash, their rows may disagree. What a
    // resync has yet to come to, further on, is no such thing.
    const isDirty = array.metadata?.array.resyncOffsetSectors === 0;
    if (isCutOff || (this.#isBeyond && isDirty)) this.#noteRisks();
    for (const unit of this.#units) {
      await unit.device?.close();
      unit.device = null;
    }
    this.#array = null;
    await this.#assembleOrGiveUp();
  }

  async #grow({ byBytes, isByLeg }: Extract<Step, { do: 'grow' }>): Promise<void> {
    await this.#settled();
    const array = this.#live();
    const { raidDisks } = this.#md();
    this.#count('grow');
    const isLeg = isByLeg && array.layout.geometry.level === 'raid1';
    if (!isLeg) this.#extendDisks(byBytes);
    const grown = this.#shapeGrown(isLeg);
    try {
      await array.grow(isLeg ? { disks: raidDisks + 1 } : { size: 'max' });
      this.#tally.recoveries.grown += 1;
      this.#grown = grown;
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
      // It is not clean, its bitmap has no room, or its far copies would move.
      if (['BUSY', 'NOT_SUPPORTED', 'BAD_ARGUMENT'].includes(error.code)) return;
      if (!this.#isBeyond || !isLoss(error)) throw error;
      this.#tally.losses.L1 += 1;
    }
    await this.#stop(null);
  }

  /** Of a disk more, or of all that each disk has for data: whole chunks, or in a mirror units of 64 KiB. */
  #shapeGrown(isLeg: boolean): { readonly sizeBytes: number; readonly raidDisks: number } {
    const { members, ...md } = this.#md();
    const { limits } = this.#live();
    if (isLeg) return { sizeBytes: limits.sizeBytes, raidDisks: md.raidDisks + 1 };
    const offsets = members.map(({ superblock }) => superblock.dataOffsetSectors);
    const roomSectors = this.#diskBytes / SECTOR_BYTES - Math.max(...offsets);
    const unit = md.level === 1 ? (64 * KIB) / SECTOR_BYTES : md.chunkSectors;
    const sizeSectors = roomSectors - (roomSectors % unit);
    const sizeBytes = arraySectorsOf({ ...md, sizeSectors, hasRaid0Layout: false }) * SECTOR_BYTES;
    return { sizeBytes, raidDisks: md.raidDisks };
  }

  /** What is there is not alike on any two. */
  #extendDisks(byBytes: number): void {
    const from = this.#diskBytes;
    this.#diskBytes += byBytes;
    for (const { disk } of this.#units) {
      disk.extend(this.#diskBytes);
      disk.poke(from, new Uint8Array(byBytes).fill(0xa0 + disk.number));
    }
  }

  // Liveness.

  async #liveness(): Promise<void> {
    this.#epoch += 1;
    await this.#clock.drive(
      new Promise<void>((resolve, reject) => {
        this.#fail = reject;
        this.#becomeWhole().then(resolve, reject);
      }),
      PATIENCE_MS,
    );
  }

  async #becomeWhole(): Promise<void> {
    for (const { disk } of this.#units) disk.heal();
    // What a slow disk was asked before takes as long as it does.
    const busyMs = Math.max(...this.#units.map(({ disk }) => disk.busyUntilMs)) - this.#clock.nowMs;
    if (this.#array !== null && busyMs > 0) await this.#process.sleep(busyMs);
    if (this.#array === null && !(await this.#assembleOrGiveUp())) return;
    const array = this.#live();
    if (this.#isBeyond) return await this.#readWhatThereIs(array);
    for (const unit of this.#units) {
      unit.isTroubled = false;
      unit.refusals = [];
    }
    const isRedundant = array.layout.kind === 'parity' || array.layout.copyCount > 1;
    if (isRedundant) await this.#completeSlots(array);
    await this.#process.sleep(2000);
    if (array.state !== 'clean')
      throw new Wrong('not idle', `two seconds after the last write the array is ${array.state}`);
    this.#observe();
    if (this.#tainted.size > 0 || this.#declared.size > 0)
      for await (const _ of array.scrub({ repair: true })) this.#clock.renew(PATIENCE_MS);
    for await (const { mismatches } of array.scrub()) {
      this.#clock.renew(PATIENCE_MS);
      if (mismatches.length === 0) continue;
      throw new Wrong(
        'mismatch',
        `a scrub of the whole and idle array found ${JSON.stringify(mismatches[0])} (I9)`,
      );
    }
    await this.#readAll(array);
    await this.#process.sleep(2000);
    this.#lookBehind(array);
    this.#tally.recoveries.corrected += correctionsOf(array);
    await array.close();
    for (const unit of this.#units) {
      await unit.device?.close();
      unit.isAbsent = false;
    }
    this.#array = null;
    await this.#assemble();
    const again = this.#live();
    if (again.state !== 'clean')
      throw new Wrong('not idle', `an array that was closed clean opens as ${again.state}`);
    await this.#readAll(again);
    await again.close();
  }

  async #completeSlots(array: RaidArray): Promise<void> {
    for (let round = 0; ; round += 1) {
      for (const { name, state } of [...array.members])
        if (state.state === 'faulty') await this.#remove(name);
      const waiting = array.members.filter(
        ({ state }) => state.state === 'spare' || state.state === 'recovering',
      ).length;
      for (let missing = array.degraded - waiting; missing > 0; missing -= 1) await this.#addSpare(array);
      const deaths = this.#deathsBeforeSync(array);
      try {
        for await (const _ of array.rebuild()) this.#clock.renew(PATIENCE_MS);
      } catch (error) {
        // Deaths that wait for a commit, and find the first one here.
        if (!this.#isGivenUp(error, deaths)) throw error;
      }
      if (array.degraded === 0 && array.health.unsyncedFromBytes === undefined) return;
      if (round === 3)
        throw new Wrong('not idle', `with new disks and no faults the array stays ${array.state}`);
    }
  }

  async #addSpare(array: RaidArray): Promise<void> {
    const unit = this.#addUnit();
    await array.add(this.#open(unit), unit.disk.name);
  }

  async #readAll(array: RaidArray): Promise<void> {
    const { sectorCount } = this.#registers;
    const piece = WRITE_BYTES / SECTOR_BYTES;
    const buffer = this.#takeTarget();
    for (let sector = 0; sector < sectorCount; sector += piece) {
      const inv = this.#registers.now();
      const content = spoiled(buffer, Math.min(piece, sectorCount - sector));
      await array.read(sector * SECTOR_BYTES, content);
      this.#judge(sector, content, inv);
    }
    this.#targetsFree.push(buffer);
  }

  /** Beyond what it survives, every sector is right, or refused. */
  async #readWhatThereIs(array: RaidArray): Promise<void> {
    const { sectorCount } = this.#registers;
    const buffer = this.#takeTarget();
    for (let sector = 0; sector < sectorCount; sector += 8) {
      const inv = this.#registers.now();
      const content = spoiled(buffer, Math.min(8, sectorCount - sector));
      try {
        await array.read(sector * SECTOR_BYTES, content);
      } catch (error) {
        if (!isLoss(error)) throw error;
        this.#tally.losses.L1 += 1;
        continue;
      }
      this.#judge(sector, content, inv);
    }
  }

  /** Past the array, on the disks themselves. */
  #lookBehind(array: RaidArray): void {
    const zones = new Map<number, { unit: Unit; zone: Zone }>();
    for (const unit of this.#units) {
      const slot = this.#slotOf(unit);
      const zone = this.#dataZone(unit);
      if (slot !== null && zone !== null) zones.set(slot, { unit, zone });
    }
    const wrong = disagreement(array.layout, (slot, offsetBytes, lengthBytes) => {
      const found = zones.get(slot);
      if (found === undefined) throw new Wrong('not idle', `slot ${slot} is empty`);
      return found.unit.disk.peek(found.zone.offsetBytes + offsetBytes, lengthBytes);
    });
    if (wrong !== null) throw new Wrong('mismatch', `${wrong} (I9, looked up on the disks)`);
  }
}

/** For a read: what it does not fill must not look like anything that was ever there. */
function spoiled(buffer: Uint8Array, sectors: number): Uint8Array {
  return buffer.subarray(0, sectors * SECTOR_BYTES).fill(0xdd);
}

function rowsOf(layout: RaidArray['layout'], { firstSector, sectorCount }: Write): ReadonlySet<number> {
  return new Set(Array.from({ length: sectorCount }, (_, index) => rowOf(layout, firstSector + index)));
}

function pickFrom<T>(from: readonly T[], which: number): T | undefined {
  return from[which % Math.max(1, from.length)];
}

function codeOf(error: unknown): string {
  return error instanceof RaidError ? `${error.code}: ` : '';
}

function contextual(what: string, error: unknown): unknown {
  if (!(error instanceof RaidError)) return error;
  return new Wrong(
    'error',
    `a ${what} failed within what the array survives: ${error.code}: ${error.message}`,
  );
}

/** An error that says that something is lost, or cannot be done for want of members. */
function isLoss(error: unknown): boolean {
  return (
    error instanceof RaidError &&
    ['give-up', 'fail-member', 'reconstruct', 'ask-operator', 'unknown-outcome'].includes(error.reaction)
  );
}

function isClosed(error: unknown): boolean {
  return error instanceof RaidError && error.code === 'CLOSED';
}

function correctionsOf(array: RaidArray): number {
  return array.members.reduce((sum, member) => sum + member.errors.corrected, 0);
}
