/**
 * A fabric comes true (paths.ts): the shipping MultipathDevice, fabric and, in some cases, array, in virtual time. What
 * must hold, whatever breaks:
 *
 *   - every sector is a register (registers.ts): no write is lost, comes late, or overtakes another one (I21)
 *   - a request is at no time on its way by two paths, and is given only to a path that works: no ghost, none that is down
 *   - what waited for a path goes out in the order in which it was asked for, and fails in it
 *   - with `queue` no request fails, and all of them end once a path is back; without, none takes longer than
 *     `longestStallMs` says, and fails with MEMBER_GONE (L1)
 *   - an array over such members loses the ones to which no way is left, and no request; they come back and are recovered
 *   - in the end everything works again: every path, every member, every sector, and no parity disagrees
 *
 * The array's budget. A member that loses all its ways is expelled (without `queue`), so a break, a lie or a hand is let
 * through only while the members that would be left with no sound path, and those that are not in sync, are not more than the
 * level survives. A sound path is one that the device counts as up and of which no part is broken.
 */

import type { RaidArray } from '../array/array.ts';
import { assembleDevices, formArray, type Source } from '../array/form.ts';
import { DelayDevice } from '../device/delay.ts';
import type { Device } from '../device/device.ts';
import { MemoryDevice } from '../device/memory.ts';
import { assert, InvariantViolation, RaidError } from '../errors.ts';
import { MultipathDevice } from '../multipath/device.ts';
import { type Condition, Fabric, soundCondition } from '../multipath/fabric.ts';
import { longestStallMs, pathsTo } from '../multipath/topology.ts';
import { MIB, SECTOR_BYTES } from '../units.ts';
import { Clock, Process, Stuck } from './clock.ts';
import { type Lie, lunNames, type PathCase, type PathConfig, type PathStep, pathSettings } from './paths.ts';
import { type Asked, Wire } from './paths-wire.ts';
import { Registers, type Write } from './registers.ts';
import { emptyTally, type Failure, type FailureKind, type Outcome } from './world.ts';

export interface PathOutcome extends Outcome {
  /** Of a request to the device; what `longestStallMs` says of it. */
  readonly longestMs: number;
  readonly boundMs: number;
  /** Frames of a fenced path that came to the LUN, and were refused. */
  readonly refusedLate: number;
  /** Requests for which there was no path when they were asked for, and one in time. */
  readonly waited: number;
}

export async function runPathCase(one: PathCase): Promise<PathOutcome> {
  return await new PathWorld(one).run();
}

class Wrong extends Error {
  readonly kind: FailureKind;
  constructor(kind: FailureKind, message: string) {
    super(message);
    this.kind = kind;
  }
}

/** Some ten times what a case takes in virtual time. */
const PATIENCE_MS = 3_600_000;
/** Until paths that were removed are found, and those that kept failing are taken back. */
const QUIET_MS = 120_000;
const TIMING = { ioTimeoutMs: 2000, tickMs: 250 } as const;
/** A path by way of a part that is no slower than this is sound. */
const SOUND_DELAY_MS = 20;
const PIECE_SECTORS = 256;
/** Of so many requests one, where no path is standby: what a device says of itself costs more than a request. */
const STATES_LOOKED_AT = 16;

const events = { step: 1, write: 2, zero: 3, read: 4, flush: 5, done: 6, failed: 7, landed: 8, fault: 9 };
const operations = { read: 1, write: 2, flush: 3, discard: 4, writeZeroes: 5, blockStatus: 6, resize: 7 };

interface Lun {
  readonly index: number;
  readonly identity: string;
  readonly memory: MemoryDevice;
  readonly wires: readonly Wire[];
  /** By path: the parts that it goes by, itself and the LUN among them, and its controller. */
  readonly ways: ReadonlyMap<string, { readonly parts: ReadonlySet<string>; readonly controller: string }>;
  device: MultipathDevice | null;
  /** Faults that reached it. */
  troubles: number;
}

class PathWorld {
  readonly #case: PathCase;
  readonly #config: PathConfig;
  readonly #clock: Clock;
  readonly #process: Process;
  readonly #fabric: Fabric;
  readonly #settings: ReturnType<typeof pathSettings>;
  readonly #isQueueing: boolean;
  readonly #luns: Lun[] = [];
  readonly #parts: readonly string[];
  readonly #tally = emptyTally();
  readonly #asked = new Map<Uint8Array, Asked>();
  /** By part: which break holds, so that one that ends does not mend the next. */
  readonly #breaks = new Map<string, number>();
  readonly #lied = new Map<Wire, number>();
  #fault = 0;
  #registers = new Registers(1);
  #device: Device | null = null;
  #array: RaidArray | null = null;
  #next = 0;
  #underWay = 0;
  #freed: (() => void)[] = [];
  #control: Promise<void> | null = null;
  #fail: (error: unknown) => void = () => undefined;
  #count = 0;
  /** A client whose request has failed waits a while: else it would fail with the next one at the same moment. */
  #failedNow = false;
  /** The last request that waited for a path and was given one, or failed without. */
  #released = { atMs: -1, number: -1 };
  #refused = { atMs: -1, number: -1 };
  #longestMs = 0;
  #waited = 0;

  constructor(one: PathCase) {
    this.#case = one;
    const { config } = one;
    this.#config = config;
    this.#clock = new Clock(one.seed);
    this.#process = new Process(this.#clock);
    this.#settings = pathSettings(config);
    this.#isQueueing = this.#settings.noPathRetry.kind === 'queue';
    const { topology, transitionMs } = config;
    this.#fabric = new Fabric(topology, { host: this.#process, transitionMs });
    for (const identity of lunNames(config)) this.#luns.push(this.#makeLun(identity));
    this.#parts = this.#fabric.components().map(({ name }) => name);
    for (const hba of topology.hbas) this.#fabric.set(hba, { delayMs: config.hbaMs });
  }

  async run(): Promise<PathOutcome> {
    let failure: Failure | null = null;
    try {
      await this.#clock.drive(this.#form(), PATIENCE_MS);
      const life = new Promise<void>((resolve, reject) => {
        this.#fail = reject;
        this.#live().then(resolve, reject);
      });
      await this.#clock.drive(life, PATIENCE_MS);
    } catch (error) {
      failure = this.#failureOf(error);
    }
    this.#process.kill();
    this.#tally.events = this.#clock.eventCount;
    return {
      failure,
      hash: this.#clock.digest(),
      tally: this.#tally,
      longestMs: this.#longestMs,
      boundMs: this.#boundMs,
      refusedLate: this.#fabric.refusedLate,
      waited: this.#waited,
    };
  }

  #failureOf(error: unknown): Failure {
    const at = { step: this.#next, atMs: this.#clock.nowMs };
    if (error instanceof Wrong) return { kind: error.kind, message: error.message, ...at };
    if (error instanceof Stuck)
      return { kind: 'stuck', message: `${error.message}: ${this.#underWay} requests`, ...at };
    if (error instanceof RaidError && !(error instanceof InvariantViolation))
      return { kind: 'error', message: `${error.code}: ${error.message}`, ...at };
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { kind: error instanceof InvariantViolation ? 'violation' : 'error', message: text, ...at };
  }

  // Making.

  #makeLun(identity: string): Lun {
    const { preferred, secondary, lunBytes, lunMs, topology } = this.#config;
    const index = this.#luns.length;
    const memory = new MemoryDevice({ sizeBytes: lunBytes, blockBytes: SECTOR_BYTES, name: identity });
    const delayMs = ({ op }: { readonly op: keyof typeof operations }): number => {
      this.#clock.note(events.landed, operations[op], index);
      return lunMs === 0 ? 0 : (this.#clock.random(1000) / 1000) * lunMs;
    };
    const backing = new DelayDevice(memory, { host: this.#process, delayMs });
    const lun = { identity, ...(preferred === null ? {} : { preferred, secondary }) };
    const wires = this.#fabric
      .attach(lun, backing, this.#settings)
      .map((path) => new Wire(path, this.#watch));
    // A cable is named by its ends, and by which one a path comes first is not how it is called.
    const backwards = new Map(topology.cables.map(([a, b]) => [`${b}-${a}`, `${a}-${b}`]));
    const ways = new Map(
      pathsTo({ ...topology, luns: [lun] }, identity).map(({ hba, port, controller, components }) => {
        const name = `${hba}:${port}:${identity}`;
        const parts = [...components, name, identity].map((part) => backwards.get(part) ?? part);
        return [name, { controller, parts: new Set(parts) }] as const;
      }),
    );
    return { index, identity, memory, wires, ways, device: null, troubles: 0 };
  }

  readonly #watch = {
    asked: (buffers: readonly Uint8Array[]): Asked | undefined => {
      const [first] = buffers;
      return first === undefined ? undefined : this.#asked.get(first);
    },
    arrived: (wire: Wire, asked: Asked): void => this.#judgeArrival(wire, asked),
    fenced: (wire: Wire, left: () => Asked | undefined): void =>
      this.#process.turn(() => {
        const asked = left();
        if (asked === undefined) return;
        this.#fail(
          new Wrong(
            'violation',
            `${wire.name} was fenced, and request ${asked.number} is still on its way by it`,
          ),
        );
      }),
  };

  async #open(lun: Lun): Promise<MultipathDevice> {
    assert(lun.device === null, 'a LUN is opened once');
    const device = await MultipathDevice.open(lun.wires, {
      host: this.#process,
      settings: this.#settings,
      name: lun.identity,
      ...TIMING,
    });
    lun.device = device;
    return device;
  }

  async #sourceOf(lun: Lun): Promise<Source> {
    return { device: await this.#open(lun), name: lun.identity, identity: lun.identity };
  }

  async #form(): Promise<void> {
    const { array } = this.#config;
    if (array === null) {
      this.#device = await this.#open(this.#lun(0));
    } else {
      const sources: Source[] = [];
      for (const lun of this.#luns) sources.push(await this.#sourceOf(lun));
      this.#array = await formArray(sources, {
        name: 'paths',
        level: array.level,
        assumeClean: array.assumeClean,
        host: this.#process,
        heapBytes: MIB,
        ...(array.level === 'raid1' ? {} : { chunk: 4096 }),
        ...(array.bitmap ? { bitmap: 'internal' as const, bitmapChunk: 4096 } : {}),
      });
      this.#device = this.#array;
    }
    this.#registers = new Registers(this.#device.limits.sizeBytes / SECTOR_BYTES);
  }

  #lun(which: number): Lun {
    const lun = this.#luns[which % this.#luns.length];
    assert(lun !== undefined, 'there is a LUN');
    return lun;
  }

  get #top(): Device {
    assert(this.#device !== null, 'there is a device');
    return this.#device;
  }

  // Playing.

  async #live(): Promise<void> {
    for (const step of this.#case.steps) {
      this.#next += 1;
      this.#clock.note(events.step, this.#next);
      await this.#perform(step);
    }
    await this.#becomeWhole();
  }

  async #perform(step: PathStep): Promise<void> {
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
        return await this.#process.sleep(step.ms);
      case 'break':
        return this.#break(step);
      case 'lie':
        return this.#lieOn(step);
      case 'alua':
        return this.#giveTo(step);
      case 'hand':
        return this.#byHand(step);
      case 'return': {
        if (this.#control !== null) await this.#control;
        const lun = this.#luns.filter((each) => this.#isOut(each) && this.#canBeReached(each))[0];
        if (lun === undefined) return;
        this.#control = this.#bringBack(lun)
          .catch((error: unknown) => this.#fail(error))
          .finally(() => {
            this.#control = null;
          });
      }
    }
  }

  async #room(): Promise<void> {
    while (this.#underWay >= this.#config.depth)
      await new Promise<void>((resolve) => this.#freed.push(resolve));
    if (!this.#failedNow) return;
    this.#failedNow = false;
    await this.#process.sleep(1 + this.#clock.random(400));
  }

  // Requests.

  #place(sector: number, sectors: number): { readonly sector: number; readonly sectors: number } {
    const { sectorCount } = this.#registers;
    const count = Math.min(sectors, sectorCount);
    return { sector: sector % (sectorCount - count + 1), sectors: count };
  }

  #begin(kind: 'write' | 'zero' | 'read' | 'flush', buffer: Uint8Array | null, a = 0, b = 0): Asked {
    this.#clock.note(events[kind], a, b);
    this.#tally.operations[kind] = (this.#tally.operations[kind] ?? 0) + 1;
    this.#underWay += 1;
    this.#count += 1;
    const { nowMs } = this.#clock;
    // By its buffer a path knows it again. An array takes buffers of its own down.
    const isKnown = buffer !== null && this.#array === null;
    const asked = { number: this.#count, sinceMs: nowMs, firstAtMs: isKnown ? null : nowMs, on: 0 };
    if (isKnown) this.#asked.set(buffer, asked);
    return asked;
  }

  #end(asked: Asked, buffer: Uint8Array | null, failure: unknown): void {
    if (buffer !== null) this.#asked.delete(buffer);
    this.#clock.note(failure === null ? events.done : events.failed, asked.number);
    if (asked.on > 0)
      this.#fail(new Wrong('violation', `request ${asked.number} ended and is still on its way by a path`));
    const tookMs = this.#clock.nowMs - asked.sinceMs;
    this.#longestMs = Math.max(this.#longestMs, tookMs);
    if (tookMs > this.#boundMs && this.#array === null)
      this.#fail(new Wrong('stuck', `a request took ${tookMs} ms, and the settings say ${this.#boundMs}`));
    if (failure !== null) this.#failed(asked, failure);
    this.#underWay -= 1;
    const freed = this.#freed;
    this.#freed = [];
    for (const wake of freed) wake();
  }

  #failed(asked: Asked, failure: unknown): void {
    this.#failedNow = true;
    this.#tally.losses.L1 += 1;
    if (!(failure instanceof RaidError) || failure instanceof InvariantViolation) {
      this.#fail(failure);
      return;
    }
    const { code, message } = failure;
    if (this.#array !== null)
      this.#fail(
        new Wrong('error', `a request to an array that has members left failed: ${code}: ${message}`),
      );
    else if (this.#isQueueing)
      this.#fail(new Wrong('error', `a request failed although it may wait for ever: ${code}: ${message}`));
    else if (code !== 'MEMBER_GONE')
      this.#fail(new Wrong('error', `for want of a path a request failed with ${code}: ${message}`));
    if (asked.firstAtMs === null && this.#clock.nowMs > asked.sinceMs)
      this.#inOrder(this.#refused, asked, 'failed');
  }

  /** Those that waited and go at one moment go as they came. */
  #inOrder(last: { atMs: number; number: number }, { number }: Asked, did: string): void {
    // Who waits for a standby path to become active is not in the queue yet.
    const mayMix = this.#config.secondary === 'standby' && this.#config.preferred !== null;
    if (last.atMs === this.#clock.nowMs && number < last.number && !mayMix)
      this.#fail(
        new Wrong(
          'violation',
          `request ${last.number} waited for a path and ${did} before request ${number}`,
        ),
      );
    last.atMs = this.#clock.nowMs;
    last.number = number;
  }

  #judgeArrival(wire: Wire, asked: Asked): void {
    const { nowMs } = this.#clock;
    if (asked.on > 0)
      this.#fail(
        new Wrong('violation', `request ${asked.number} is on its way by ${wire.name} and another path`),
      );
    if (asked.firstAtMs === null) {
      asked.firstAtMs = nowMs;
      if (nowMs > asked.sinceMs) {
        this.#waited += 1;
        this.#inOrder(this.#released, asked, 'went');
      }
    }
    const isOdd = this.#config.secondary === 'standby' || asked.number % STATES_LOOKED_AT === 0;
    const status = isOdd ? this.#luns[0]?.device?.status() : undefined;
    if (status === undefined) return;
    const state = status.groups.flatMap(({ paths }) => paths).find(({ name }) => name === wire.name)?.state;
    if (state !== 'up' && state !== 'shaky')
      this.#fail(
        new Wrong('violation', `request ${asked.number} was given to ${wire.name}, which is ${state}`),
      );
  }

  #write({ do: kind, fua, ...where }: Extract<PathStep, { do: 'write' | 'zero' }>): void {
    const registers = this.#registers;
    const { sector, sectors } = this.#place(where.sector, where.sectors);
    // Nothing loses its power here, so what is acknowledged is there.
    const write = registers.begin(sector, sectors, { isZero: kind === 'zero', isFua: true });
    const [offsetBytes, lengthBytes] = [sector * SECTOR_BYTES, sectors * SECTOR_BYTES];
    if (kind === 'zero') {
      const asked = this.#begin(kind, null, sector, sectors);
      this.#settle(this.#top.writeZeroes(offsetBytes, lengthBytes, { fua }), asked, write, null);
      return;
    }
    const bytes = new Uint8Array(lengthBytes);
    registers.fill(write, bytes);
    const asked = this.#begin(kind, bytes, sector, sectors);
    this.#settle(this.#top.write(offsetBytes, bytes, { fua }), asked, write, bytes);
  }

  #settle(done: Promise<void>, asked: Asked, write: Write, bytes: Uint8Array | null): void {
    // The buffer is its giver's again: who still looks at it sees nonsense.
    done.then(
      () => {
        this.#registers.acknowledged(write);
        bytes?.fill(0xee);
        this.#end(asked, bytes, null);
      },
      (error: unknown) => {
        this.#registers.failed(write);
        bytes?.fill(0xee);
        this.#end(asked, bytes, error);
      },
    );
  }

  #read(first: number, count: number): void {
    const registers = this.#registers;
    const { sector, sectors } = this.#place(first, count);
    const target = new Uint8Array(sectors * SECTOR_BYTES);
    const inv = registers.beginRead();
    const asked = this.#begin('read', target, sector, sectors);
    this.#top.read(sector * SECTOR_BYTES, target).then(
      () => {
        this.#judge(sector, target, inv);
        registers.endRead(inv);
        this.#end(asked, target, null);
      },
      (error: unknown) => {
        registers.endRead(inv);
        this.#end(asked, target, error);
      },
    );
  }

  #judge(sector: number, content: Uint8Array, inv: number): void {
    const wrong = this.#registers.check(sector, content, inv);
    if (wrong !== null) this.#fail(new Wrong('wrong data', wrong));
  }

  #flush(): void {
    const asked = this.#begin('flush', null);
    this.#top.flush().then(
      () => this.#end(asked, null, null),
      (error: unknown) => this.#end(asked, null, error),
    );
  }

  get #boundMs(): number {
    const { preferred, secondary, lunMs } = this.#config;
    const paths = this.#luns[0]?.wires.length ?? 0;
    return longestStallMs({
      settings: this.#settings,
      paths,
      standby: preferred !== null && secondary === 'standby' ? paths : 0,
      fenceMs: 400 + lunMs,
      ...TIMING,
    });
  }

  // Faults.

  #hit(name: string): void {
    const faults: Record<string, number> = this.#tally.faults;
    faults[name] = (faults[name] ?? 0) + 1;
    this.#fault += 1;
    this.#clock.note(events.fault, this.#fault);
  }

  #break({ part, how, forMs }: Extract<PathStep, { do: 'break' }>): void {
    if (!this.#parts.includes(part)) return;
    if (!this.#spend((_, { parts }) => parts.has(part))) return;
    const { state, flap, delayMs } = how;
    this.#hit(
      flap !== undefined ? 'flap' : state !== undefined ? state : delayMs !== undefined ? 'slow' : 'narrow',
    );
    const number = this.#fault;
    this.#breaks.set(part, number);
    this.#fabric.set(part, { ...soundCondition, ...how });
    this.#clock.after(forMs, () => {
      if (this.#breaks.get(part) === number) this.#mend(part);
    });
  }

  #mend(part: string): void {
    this.#breaks.delete(part);
    const { topology, hbaMs } = this.#config;
    const sound: Condition = { ...soundCondition, delayMs: topology.hbas.includes(part) ? hbaMs : 0 };
    this.#fabric.set(part, sound);
  }

  #lieOn({ lun: index, which, lie, forMs }: Extract<PathStep, { do: 'lie' }>): void {
    const lun = this.#lun(index);
    const wire = lun.wires[which % lun.wires.length];
    if (wire === undefined || !this.#spend((name) => name === wire.name)) return;
    this.#hit('lie');
    const number = this.#fault;
    const set = (now: Lie | null): void => {
      wire.lie = now;
    };
    set(lie);
    this.#lied.set(wire, number);
    this.#clock.after(forMs, () => {
      if (this.#lied.get(wire) === number) set(null);
    });
  }

  #giveTo({ lun, controller }: Extract<PathStep, { do: 'alua' }>): void {
    const { identity, ways } = this.#lun(lun);
    const isThere = [...ways.values()].some((way) => way.controller === controller);
    if (!isThere || this.#breaks.has(controller)) return;
    this.#hit('alua');
    void this.#fabric.setAlua(identity, controller, 'active/optimized');
  }

  #byHand({ lun: index, which, act }: Extract<PathStep, { do: 'hand' }>): void {
    const lun = this.#lun(index);
    const { device, wires } = lun;
    const name = wires[which % wires.length]?.name;
    if (device === null || device.isClosed || name === undefined) return;
    if (act === 'fail' && !this.#spend((other) => other === name)) return;
    this.#hit(`hand ${act}`);
    if (act === 'fail') device.failPath(name);
    else if (act === 'reinstate') device.reinstatePath(name);
    else {
      try {
        device.switchGroup(name);
      } catch (error) {
        // No path of that group works.
        if (!(error instanceof RaidError) || error.code !== 'BAD_ARGUMENT') throw error;
      }
    }
  }

  // The array's budget.

  /** Whether what a fault takes away, by path, is no more than may be lost; it is, from now on. */
  #spend(
    takes: (
      path: string,
      way: { readonly parts: ReadonlySet<string>; readonly controller: string },
    ) => boolean,
  ): boolean {
    const reached = this.#luns.filter(({ ways }) => [...ways].some(([name, way]) => takes(name, way)));
    const { array } = this.#config;
    if (array !== null && !this.#isQueueing) {
      const lost = this.#luns.filter((lun) => this.#isOut(lun) || !this.#hasWay(lun, takes));
      const survives = { raid1: array.members - 1, raid5: 1, raid6: 2, raid10: 1 }[array.level];
      if (lost.length > survives) return false;
    }
    for (const lun of reached) lun.troubles += 1;
    return true;
  }

  /** Whether a sound path is left that is not taken. */
  #hasWay(
    lun: Lun,
    takes: (
      path: string,
      way: { readonly parts: ReadonlySet<string>; readonly controller: string },
    ) => boolean,
  ): boolean {
    const states = new Map(
      lun.device?.status().groups.flatMap(({ paths }) => paths.map(({ name, state }) => [name, state])),
    );
    const alua = this.#fabric.alua(lun.identity);
    return [...lun.ways].some(([name, way]) => {
      const access = alua[way.controller];
      const isOpen = access === 'active/optimized' || access === 'active/non-optimized';
      return states.get(name) === 'up' && isOpen && !takes(name, way) && this.#isSound(lun, name, way.parts);
    });
  }

  #isSound(lun: Lun, name: string, parts: ReadonlySet<string>): boolean {
    if (lun.wires.find((wire) => wire.name === name)?.lie !== null) return false;
    return this.#fabric.components().every(({ name: part, condition, isDown }) => {
      if (!parts.has(part)) return true;
      const { state, flap, delayMs, bytesPerSecond, queueDepth } = condition;
      const isFast = delayMs <= SOUND_DELAY_MS && bytesPerSecond === null && queueDepth === null;
      return state === 'up' && flap === null && isFast && !isDown;
    });
  }

  /** The array does without it, or would as soon as another one goes. */
  #isOut({ identity }: Lun): boolean {
    const member = this.#array?.members.find(({ name }) => name === identity);
    return this.#array !== null && member?.state.state !== 'in_sync';
  }

  #canBeReached(lun: Lun): boolean {
    return [...lun.ways].some(([name, { parts }]) => this.#isSound(lun, name, parts));
  }

  // Members.

  async #bringBack(lun: Lun): Promise<void> {
    const array = this.#array;
    if (array === null) return;
    const { identity, troubles } = lun;
    const member = array.members.find(({ name }) => name === identity);
    if (member !== undefined && member.state.state !== 'faulty') return;
    if (member !== undefined) await array.remove(identity);
    await closeLun(lun);
    try {
      const device = await this.#open(lun);
      try {
        await array.reAdd(device, identity);
      } catch (error) {
        if (!(error instanceof RaidError)) throw error;
        if (error.reaction !== 'ask-operator' && error.reaction !== 'refuse') throw error;
        await array.add(device, identity);
      }
      this.#tally.recoveries.assembled += 1;
    } catch (error) {
      // It was taken away again meanwhile.
      if (!(error instanceof RaidError) || lun.troubles === troubles) throw error;
      await closeLun(lun);
    }
  }

  // The end.

  async #becomeWhole(): Promise<void> {
    // What waits for ever waits for this.
    for (const part of this.#parts) this.#mend(part);
    this.#breaks.clear();
    for (const { wires } of this.#luns) for (const wire of wires) wire.lie = null;
    this.#lied.clear();
    while (this.#underWay > 0) await new Promise<void>((resolve) => this.#freed.push(resolve));
    if (this.#control !== null) await this.#control;
    await this.#process.sleep(QUIET_MS);
    this.#checkPaths();
    const array = this.#array;
    if (array !== null) await this.#completeSlots(array);
    await this.#readAll(this.#top);
    if (array === null) {
      // Past all paths: nothing was kept from the LUN, and nothing has come to it since.
      await this.#readAll(this.#lun(0).memory);
      await this.#closeAll();
      return;
    }
    for await (const { mismatches } of array.scrub()) {
      if (mismatches.length === 0) continue;
      throw new Wrong('mismatch', `a scrub found ${JSON.stringify(mismatches[0])} (I9)`);
    }
    await this.#closeAll();
    const sources: Source[] = [];
    for (const lun of this.#luns) sources.push(await this.#sourceOf(lun));
    const again = await assembleDevices(sources, { name: 'paths', host: this.#process, heapBytes: MIB });
    if (again.array.state !== 'clean' || again.array.degraded > 0)
      throw new Wrong('not idle', `an array that was closed whole opens as ${again.array.state}`);
    await this.#readAll(again.array);
    this.#array = again.array;
    this.#device = again.array;
    await this.#closeAll();
  }

  #checkPaths(): void {
    const { checker } = this.#settings;
    for (const { device, identity, ways } of this.#luns) {
      const paths = device?.status().groups.flatMap((group) => group.paths) ?? [];
      const alua = this.#fabric.alua(identity);
      const bad = paths.find(({ name, state }) => {
        // Reading tells a standby path from no broken one; asking does.
        const isStandby = alua[ways.get(name)?.controller ?? ''] === 'standby';
        return state !== 'up' && state !== 'ghost' && !(isStandby && checker !== 'tur');
      });
      if (bad !== undefined)
        throw new Wrong(
          'not idle',
          `${identity}: all works again, and ${bad.name} is ${bad.state}: ${bad.why}`,
        );
    }
  }

  async #completeSlots(array: RaidArray): Promise<void> {
    for (let round = 0; ; round += 1) {
      for (const lun of this.#luns) if (this.#isOut(lun)) await this.#bringBack(lun);
      const before = array.degraded;
      for await (const _ of array.rebuild());
      if (array.degraded < before) this.#tally.recoveries.recovered += before - array.degraded;
      if (array.degraded === 0 && array.health.unsyncedFromBytes === undefined) return;
      if (round === 3) throw new Wrong('not idle', `with all paths back the array stays ${array.state}`);
    }
  }

  async #readAll(device: Device): Promise<void> {
    const { sectorCount } = this.#registers;
    for (let sector = 0; sector < sectorCount; sector += PIECE_SECTORS) {
      const inv = this.#registers.beginRead();
      const content = new Uint8Array(Math.min(PIECE_SECTORS, sectorCount - sector) * SECTOR_BYTES);
      await device.read(sector * SECTOR_BYTES, content);
      this.#registers.endRead(inv);
      const wrong = this.#registers.check(sector, content, inv);
      if (wrong !== null) throw new Wrong('wrong data', `in the end ${wrong}`);
    }
  }

  async #closeAll(): Promise<void> {
    await this.#top.close();
    for (const lun of this.#luns) await closeLun(lun);
    this.#array = null;
    this.#device = null;
  }
}

async function closeLun(lun: Lun): Promise<void> {
  await lun.device?.close();
  lun.device = null;
}
