/**
 * A SAN that runs: frames that go through HBAs, cables, switches, ports and controllers to LUNs and back, and every one of
 * these can break.
 *
 *   path ─▶ HBA ─▶ cable ─▶ switch ─▶ cable ─▶ port ─▶ controller ─▶ LUN ─▶ backing device
 *     ◀───────────────────────── the same way back ◀─────────────────────┘
 *
 * A part that has *failed* loses what is in it and what comes to it. Both ends notice, as they do when a light goes out: the
 * path is `blocked`, and its requests wait. If the part comes back, the host logs in again and sends what was not
 * answered once more; after `fast_io_fail_tmo` they fail, and after `dev_loss_tmo` the path is removed, and has to be
 * found again. A part that *hangs* keeps what comes to it, and tells nobody: what it kept arrives when it is restored,
 * however late, unless it fails first. A slow one delays, half of it each way; one with little bandwidth lets bytes through
 * one after the other, each way by itself; one with a queue depth lets in so many requests, and the others wait in line.
 *
 * Why nothing lands late. A LUN takes requests of a login only while that login holds. A new login ends the one
 * before, and a fence ends it for good: the LUN refuses what comes of it from then on, and both wait for what the LUN has
 * begun. Frames that were fenced stay in the fabric, and are refused when they arrive (`refusedLate`): that is what a fence
 * is for, and tests see it at work.
 *
 * Whose buffers. Where the whole way is clear a request runs on the caller's buffers; else on a copy, since it may still be
 * under way when the caller has been told that it failed. What the LUN has begun ends before its request fails.
 *
 * All time is the host's. Where nothing is slow nothing waits, not even for a turn.
 */
import { copyOf, scatter } from '../device/buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import { assert, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import { Chain, type Linked } from './chain.ts';
import type { Settings } from './conf.ts';
import type { Path, PathConnection } from './device.ts';
import type { AluaState, PathFacts } from './select.ts';
import { checkedTopology, pathsTo, type Topology, transportTimes } from './topology.ts';

export type ComponentKind = 'hba' | 'cable' | 'switch' | 'port' | 'controller' | 'lun' | 'path';

/** How a component is. Plain data: it is kept in manifests. */
export interface Condition {
  readonly state: 'up' | 'failed' | 'hung';
  /** It fails and comes back by itself, beginning with a failure, while its state is `up`. */
  readonly flap: { readonly upMs: number; readonly downMs: number } | null;
  /** For each request, half of it on the way there and half on the way back. */
  readonly delayMs: number;
  readonly bytesPerSecond: number | null;
  /** Requests that are under way beyond it. */
  readonly queueDepth: number | null;
}

export const soundCondition: Condition = {
  state: 'up',
  flap: null,
  delayMs: 0,
  bytesPerSecond: null,
  queueDepth: null,
};

/** What is wrong with a condition, which may come from a file, or null. */
export function complaintAboutCondition(change: { readonly [name: string]: unknown }): string | null {
  const isTime = (value: unknown, least: number): boolean =>
    typeof value === 'number' && value >= least && value <= 86_400_000;
  const unknown = Object.keys(change).find((name) => !Object.hasOwn(soundCondition, name));
  if (unknown !== undefined) return `a component has no "${unknown}"`;
  const { state = 'up', flap = null, delayMs = 0, bytesPerSecond = null, queueDepth = null } = change;
  if (state !== 'up' && state !== 'failed' && state !== 'hung')
    return `state "${String(state)}" is none of up, failed, hung`;
  if (flap !== null) {
    const { upMs, downMs } = Object(flap) as { readonly upMs?: unknown; readonly downMs?: unknown };
    if (!isTime(upMs, 1) || !isTime(downMs, 1))
      return 'flap needs upMs and downMs, from a millisecond to a day';
  }
  if (!isTime(delayMs, 0)) return 'delayMs is no time up to a day';
  if (
    bytesPerSecond !== null &&
    !(typeof bytesPerSecond === 'number' && bytesPerSecond >= 1 && Number.isFinite(bytesPerSecond))
  )
    return 'bytesPerSecond is no number from 1 on';
  if (queueDepth !== null && !(Number.isSafeInteger(queueDepth) && (queueDepth as number) >= 1))
    return 'queueDepth is no whole number from 1 on';
  return null;
}

/** As sysfs and `multipath -ll` have it. */
export type LinkState = 'running' | 'blocked' | 'offline' | 'removed';

export interface ComponentStatus {
  readonly name: string;
  readonly kind: ComponentKind;
  readonly condition: Condition;
  /** It has failed, or is in the dark half of its flapping. */
  readonly isDown: boolean;
}

export interface FabricOptions {
  readonly host: Host;
  /** How long a controller is `transitioning` from one ALUA state to another (default 0). */
  readonly transitionMs?: number;
}

export type FabricLun = Topology['luns'][number];

/** Of a request that was lost on its way. */
const lost = Symbol('lost');

const THERE = 0;
const BACK = 1;
type Direction = typeof THERE | typeof BACK;

class Part {
  readonly name: string;
  readonly kind: ComponentKind;
  condition = soundCondition;
  isDown = false;
  /** Failures: what was in it before the last one is lost. */
  failures = 0;
  /** Of the flapping that goes on, so that the one before ends. */
  flapping = 0;
  readonly links = new Set<Link>();
  readonly #host: Host;
  readonly #freeAtMs: [number, number] = [0, 0];
  #inside = 0;
  #line: ((isIn: boolean) => void)[] = [];
  #held: (() => void)[] = [];

  constructor(name: string, kind: ComponentKind, host: Host) {
    this.name = name;
    this.kind = kind;
    this.#host = host;
  }

  /** Nothing in it takes time or makes anybody wait. */
  get isClear(): boolean {
    const { state, delayMs, bytesPerSecond, queueDepth } = this.condition;
    return !this.isDown && state === 'up' && delayMs === 0 && bytesPerSecond === null && queueDepth === null;
  }

  /** False: it has been lost. */
  pass(bytes: number, direction: Direction): boolean | Promise<boolean> {
    if (this.isClear) {
      if (direction === THERE) this.#inside += 1;
      return true;
    }
    return this.isDown ? false : this.#passSlowly(bytes, direction);
  }

  /** A request has come back, or will not. */
  leave(): void {
    this.#inside -= 1;
    this.#admit();
  }

  /** After a change of condition. */
  wake(): void {
    this.#admit();
    if (this.condition.state === 'hung' && !this.isDown) return;
    const held = this.#held;
    this.#held = [];
    for (const goOn of held) goOn();
  }

  fail(): void {
    this.isDown = true;
    this.failures += 1;
    const line = this.#line;
    this.#line = [];
    for (const enter of line) enter(false);
    this.#freeAtMs.fill(0);
    this.wake();
  }

  async #passSlowly(bytes: number, direction: Direction): Promise<boolean> {
    const { failures } = this;
    if (direction === THERE && !(await this.#enter())) return false;
    const { delayMs, bytesPerSecond } = this.condition;
    const now = this.#host.now();
    let doneAtMs = now;
    if (bytesPerSecond !== null) {
      doneAtMs = Math.max(now, this.#freeAtMs[direction]) + (bytes / bytesPerSecond) * 1000;
      this.#freeAtMs[direction] = doneAtMs;
    }
    const waitMs = doneAtMs - now + delayMs / 2;
    if (waitMs > 0) await this.#host.sleep(waitMs);
    while (this.condition.state === 'hung' && this.failures === failures)
      await new Promise<void>((goOn) => this.#held.push(goOn));
    const survives = this.failures === failures;
    if (!survives && direction === THERE) this.leave();
    return survives;
  }

  #enter(): true | Promise<boolean> {
    if (this.#line.length > 0 || this.#inside >= (this.condition.queueDepth ?? Number.POSITIVE_INFINITY))
      return new Promise((enter) => this.#line.push(enter));
    this.#inside += 1;
    return true;
  }

  #admit(): void {
    while (this.#line.length > 0 && this.#inside < (this.condition.queueDepth ?? Number.POSITIVE_INFINITY)) {
      this.#inside += 1;
      this.#line.shift()?.(true);
    }
  }
}

/** One LUN by one controller. */
interface Access {
  readonly controller: string;
  state: AluaState;
  /** Of the transition that goes on, so that the one before ends. */
  transition: number;
  waiting: (() => void)[];
}

interface Unit {
  readonly lun: FabricLun;
  readonly backing: Device;
  readonly part: Part;
  readonly accesses: readonly Access[];
  readonly links: readonly Link[];
}

export class Fabric {
  readonly #host: Host;
  readonly #transitionMs: number;
  readonly #topology: Omit<Topology, 'luns'>;
  readonly #parts = new Map<string, Part>();
  /** A cable has two ends, and so two names. */
  readonly #backwards = new Map<string, string>();
  readonly #units = new Map<string, Unit>();
  /** Kept for those that are yet to come: LUNs and their paths. */
  readonly #conditions = new Map<string, Condition>();
  readonly #stop = new AbortController();
  #lunNumber = 0;
  refusedLate = 0;

  constructor(topology: Omit<Topology, 'luns'>, { host, transitionMs = 0 }: FabricOptions) {
    this.#host = host;
    this.#transitionMs = transitionMs;
    this.#topology = topology;
    const { hbas, switches, controllers, cables } = topology;
    const named: readonly (readonly [ComponentKind, readonly string[]])[] = [
      ['hba', hbas],
      ['switch', switches],
      ['controller', controllers.map(({ name }) => name)],
      ['port', controllers.flatMap(({ ports }) => ports)],
      ['cable', cables.map(([a, b]) => `${a}-${b}`)],
    ];
    for (const [kind, names] of named) for (const name of names) this.#add(name, kind);
    for (const [a, b] of cables) this.#backwards.set(`${b}-${a}`, `${a}-${b}`);
  }

  /** The ways to a device that lies behind the fabric from now on; it stays its giver's. */
  attach(lun: FabricLun, backing: Device, settings: Settings): readonly Path[] {
    const luns = [...[...this.#units.values()].map((unit) => unit.lun), lun];
    const topology = checkedTopology({ ...this.#topology, luns });
    const { identity } = lun;
    const part = this.#add(identity, 'lun');
    const ways = pathsTo(topology, identity);
    const names = [...new Set(ways.map(({ controller }) => controller))];
    const accesses = names.map(
      (controller): Access => ({
        controller,
        state: homeState(lun, controller),
        transition: 0,
        waiting: [],
      }),
    );
    const number = this.#lunNumber;
    this.#lunNumber += 1;
    const ports = topology.controllers.flatMap((each) => each.ports);
    const links: Link[] = [];
    const unit: Unit = { lun, backing, part, accesses, links };
    for (const { hba, port, controller, components } of ways) {
      const name = `${hba}:${port}:${identity}`;
      const walk = [this.#add(name, 'path'), ...components.map((component) => this.#part(component)), part];
      const access = accesses.find((each) => each.controller === controller);
      assert(access !== undefined, 'a path leads to a controller of its LUN');
      const facts = {
        hbtl: `${topology.hbas.indexOf(hba)}:0:${ports.indexOf(port)}:${number}`,
        serial: controller,
        nodeName: controller,
        wwn: `${hba}:${hba}:${controller}:${port}`,
      };
      const link = new Link(name, walk, access, unit, facts, this.#host, transportTimes(settings), {
        refused: () => {
          this.refusedLate += 1;
        },
        activate: () => this.setAlua(identity, controller, 'active/optimized'),
      });
      links.push(link);
      for (const each of walk) each.links.add(link);
    }
    this.#units.set(identity, unit);
    for (const each of names) if (this.#part(each).isDown) this.#controllerLost(unit, each);
    for (const link of links) link.begin();
    return links.map((link) => link.path);
  }

  /** Nobody goes there any more; connections to it have been closed. */
  detach(identity: string): void {
    const unit = this.#units.get(identity);
    if (unit === undefined) return;
    this.#units.delete(identity);
    for (const link of unit.links) {
      for (const part of link.walk) part.links.delete(link);
      this.#drop(link.path.name);
      link.stop();
    }
    this.#drop(identity);
  }

  components(): readonly ComponentStatus[] {
    return [...this.#parts.values()].map(({ name, kind, condition, isDown }) => ({
      name,
      kind,
      condition,
      isDown,
    }));
  }

  /** Of a path: whether frames go through, and what has become of it if not. */
  linkState(path: string): LinkState {
    return this.#link(path).state;
  }

  alua(identity: string): Readonly<Record<string, AluaState>> {
    const { accesses } = this.#unit(identity);
    return Object.fromEntries(accesses.map(({ controller, state }) => [controller, state]));
  }

  /** What is not named stays as it is. */
  set(name: string, change: Partial<Condition>): void {
    const complaint = complaintAboutCondition({ ...change });
    if (complaint !== null) throw new RaidError('BAD_ARGUMENT', `${name}: ${complaint}`);
    const part = this.#part(name);
    part.condition = { ...part.condition, ...change };
    this.#conditions.set(part.name, part.condition);
    this.#apply(part, change.flap !== undefined || change.state !== undefined);
  }

  fail(name: string): void {
    this.set(name, { state: 'failed' });
  }

  restore(name: string): void {
    this.set(name, soundCondition);
  }

  /** By the array's operator, or by a host (SET TARGET PORT GROUPS): whoever was optimized makes way for who becomes so. */
  async setAlua(identity: string, controller: string, state: AluaState): Promise<void> {
    const { lun, accesses } = this.#unit(identity);
    const access = accesses.find((each) => each.controller === controller);
    if (access === undefined)
      throw new RaidError('BAD_ARGUMENT', `${identity} cannot be reached by ${controller}`);
    const moves = [this.#transit(access, state)];
    if (state === 'active/optimized' && lun.preferred !== undefined) {
      for (const other of accesses) {
        if (other !== access && other.state === 'active/optimized')
          moves.push(this.#transit(other, lun.secondary ?? 'active/non-optimized'));
      }
    }
    await Promise.all(moves);
  }

  /** Nothing flaps, and no timer runs, from now on. */
  close(): void {
    this.#stop.abort();
    for (const part of this.#parts.values()) part.flapping += 1;
    for (const { links } of this.#units.values()) for (const link of links) link.stop();
  }

  #add(name: string, kind: ComponentKind): Part {
    if (this.#parts.has(name))
      throw new RaidError('BAD_ARGUMENT', `topology: two components are named ${name}`);
    const part = new Part(name, kind, this.#host);
    this.#parts.set(name, part);
    const condition = this.#conditions.get(name);
    if (condition !== undefined) {
      part.condition = condition;
      this.#apply(part, true);
    }
    return part;
  }

  #drop(name: string): void {
    const part = this.#parts.get(name);
    if (part !== undefined) part.flapping += 1;
    this.#parts.delete(name);
  }

  /** Conditions of components that are to come, by name. */
  expect(conditions: Readonly<Record<string, Partial<Condition>>>): void {
    for (const [name, change] of Object.entries(conditions)) {
      if (this.#parts.has(name)) this.set(name, change);
      else this.#conditions.set(name, { ...soundCondition, ...this.#conditions.get(name), ...change });
    }
  }

  #part(name: string): Part {
    const part = this.#parts.get(name) ?? this.#parts.get(this.#backwards.get(name) ?? '');
    if (part === undefined) throw new RaidError('BAD_ARGUMENT', `there is no component ${name}`);
    return part;
  }

  #unit(identity: string): Unit {
    const unit = this.#units.get(identity);
    if (unit === undefined) throw new RaidError('BAD_ARGUMENT', `there is no LUN ${identity}`);
    return unit;
  }

  #link(name: string): Link {
    for (const { links } of this.#units.values()) {
      const link = links.find(({ path }) => path.name === name);
      if (link !== undefined) return link;
    }
    throw new RaidError('BAD_ARGUMENT', `there is no path ${name}`);
  }

  #apply(part: Part, isAnew: boolean): void {
    const { state, flap } = part.condition;
    if (isAnew) {
      part.flapping += 1;
      if (state === 'up' && flap !== null) void this.#flap(part, flap, part.flapping);
      else this.#turn(part, state === 'failed');
    }
    part.wake();
    for (const link of part.links) link.look();
  }

  async #flap(part: Part, { upMs, downMs }: NonNullable<Condition['flap']>, turn: number): Promise<void> {
    while (!this.#stop.signal.aborted) {
      for (const isDown of [true, false]) {
        if (part.flapping !== turn) return;
        this.#turn(part, isDown);
        await this.#host.sleep(isDown ? downMs : upMs, this.#stop.signal);
      }
    }
  }

  #turn(part: Part, isDown: boolean): void {
    if (part.isDown === isDown) return;
    if (isDown) part.fail();
    else {
      part.isDown = false;
      part.wake();
    }
    for (const link of part.links) link.look();
    if (part.kind !== 'controller') return;
    for (const unit of this.#units.values()) {
      if (isDown) this.#controllerLost(unit, part.name);
      else this.#controllerBack(unit, part.name);
    }
  }

  /** The array gives its LUNs to another controller by itself. */
  #controllerLost({ lun, accesses }: Unit, controller: string): void {
    const access = accesses.find((each) => each.controller === controller);
    if (access === undefined || lun.preferred === undefined) return;
    const wasOptimized = access.state === 'active/optimized' || access.state === 'transitioning';
    this.#become(access, 'unavailable');
    const heir = accesses.find((each) => !this.#part(each.controller).isDown);
    const isServed = accesses.some(
      (each) => each.state === 'active/optimized' && !this.#part(each.controller).isDown,
    );
    if (wasOptimized && heir !== undefined && !isServed) void this.#transit(heir, 'active/optimized');
  }

  #controllerBack({ lun, accesses }: Unit, controller: string): void {
    const access = accesses.find((each) => each.controller === controller);
    if (access === undefined || lun.preferred === undefined) return;
    const isServed = accesses.some(
      (each) => each !== access && each.state === 'active/optimized' && !this.#part(each.controller).isDown,
    );
    if (lun.preferred === controller || !isServed) {
      void this.setAlua(lun.identity, controller, 'active/optimized');
    } else void this.#transit(access, homeState(lun, controller));
  }

  async #transit(access: Access, to: AluaState): Promise<void> {
    if (access.state === to) return;
    if (this.#transitionMs > 0) {
      access.transition += 1;
      const { transition } = access;
      access.state = 'transitioning';
      await this.#host.sleep(this.#transitionMs, this.#stop.signal);
      if (access.transition !== transition) return;
    }
    this.#become(access, to);
  }

  #become(access: Access, state: AluaState): void {
    access.transition += 1;
    access.state = state;
    const { waiting } = access;
    access.waiting = [];
    for (const goOn of waiting) goOn();
  }
}

function homeState(
  { preferred, secondary = 'active/non-optimized' }: FabricLun,
  controller: string,
): AluaState {
  return preferred === undefined || preferred === controller ? 'active/optimized' : secondary;
}

interface LinkEvents {
  readonly refused: () => void;
  readonly activate: () => Promise<void>;
}

/** One path, as the transport below it sees it. */
class Link {
  readonly path: Path;
  readonly walk: readonly Part[];
  readonly access: Access;
  readonly unit: Unit;
  readonly events: LinkEvents;
  readonly connections = new Set<Connection>();
  readonly #host: Host;
  readonly #times: { readonly fastIoFailMs: number | null; readonly devLossMs: number };
  readonly #back: readonly Part[];
  #state: LinkState = 'running';
  #isClear = false;
  /** Of the downtime that goes on, so that the timers of the one before end. */
  #outage = 0;
  #timers: AbortController | null = null;
  #waiting: { readonly goOn: () => void; readonly fail: (error: RaidError) => void }[] = [];

  constructor(
    name: string,
    walk: readonly Part[],
    access: Access,
    unit: Unit,
    facts: Omit<PathFacts, 'name' | 'latenciesMs'>,
    host: Host,
    times: { readonly fastIoFailMs: number | null; readonly devLossMs: number },
    events: LinkEvents,
  ) {
    this.walk = walk;
    this.#back = walk.toReversed();
    this.access = access;
    this.unit = unit;
    this.#host = host;
    this.#times = times;
    this.events = events;
    this.path = {
      name,
      facts: () => ({
        ...facts,
        // Without the preferred bit, which outweighs states: a controller that gave its LUNs away would be chosen all the same.
        alua: { state: access.state, isPreferred: false },
      }),
      connect: () => this.#connect(),
    };
  }

  get state(): LinkState {
    return this.#state;
  }

  /** Nothing on the whole way takes time or makes anybody wait. */
  get isClear(): boolean {
    return this.#isClear && this.access.state !== 'transitioning';
  }

  get goneError(): RaidError {
    const down = this.walk.filter(({ isDown }) => isDown).map(({ name }) => name);
    const why = down.length === 0 ? 'it was lost for a while' : `${down.join(', ')} is down`;
    return new RaidError('MEMBER_GONE', `${this.path.name}: ${why}`, {
      device: this.path.name,
      injected: true,
    });
  }

  /** After a change of what it walks over. */
  look(): void {
    this.#isClear = this.walk.every((part) => part.isClear);
    const isDown = this.walk.some((part) => part.isDown);
    if (isDown === (this.#state !== 'running')) return;
    this.#outage += 1;
    this.#timers?.abort();
    if (isDown) {
      this.#state = 'blocked';
      this.#timers = new AbortController();
      for (const connection of this.connections) connection.disrupt();
      void this.#countDown(this.#outage, this.#timers.signal);
      return;
    }
    this.#state = 'running';
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { goOn } of waiting) goOn();
    for (const connection of this.connections) void connection.login();
  }

  /** What was never there is not waited for. */
  begin(): void {
    this.#isClear = this.walk.every((part) => part.isClear);
    if (this.walk.some((part) => part.isDown)) this.#state = 'removed';
  }

  stop(): void {
    this.#outage += 1;
    this.#timers?.abort();
  }

  async #countDown(outage: number, signal: AbortSignal): Promise<void> {
    const { fastIoFailMs, devLossMs } = this.#times;
    if (fastIoFailMs !== null) {
      await this.#host.sleep(fastIoFailMs, signal);
      if (this.#outage !== outage) return;
      this.#state = 'offline';
      this.#giveUp();
    }
    if (devLossMs === Number.POSITIVE_INFINITY) return;
    await this.#host.sleep(devLossMs - (fastIoFailMs ?? 0), signal);
    if (this.#outage !== outage) return;
    this.#state = 'removed';
    this.#giveUp();
    for (const connection of this.connections) connection.remove();
    this.connections.clear();
  }

  #giveUp(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const { fail } of waiting) fail(this.goneError);
    for (const connection of this.connections) connection.failAll(this.goneError);
  }

  async #connect(): Promise<PathConnection> {
    for (;;) {
      if (this.#state === 'blocked')
        await new Promise<void>((goOn, fail) => this.#waiting.push({ goOn, fail }));
      if (this.#state === 'offline' || this.#state === 'removed') throw this.goneError;
      const connection = new Connection(this);
      this.connections.add(connection);
      if (await connection.login()) return connection.asPath();
      await connection.fence();
    }
  }

  /** There, done, and back again. */
  async carry<T>(frame: {
    readonly bytesThere: number;
    readonly bytesBack: number;
    readonly land: () => Promise<T>;
    /** It waits where it would have to be done. */
    readonly needsAccess: boolean;
  }): Promise<T | typeof lost> {
    // Who sent it sees by its login whether a part has failed meanwhile.
    if (this.isClear) return await frame.land();
    const within: Part[] = [];
    try {
      for (const part of this.walk) {
        const passed = part.pass(frame.bytesThere, THERE);
        if (!(passed === true || (await passed))) return lost;
        within.push(part);
      }
      const controller = this.walk.find(({ kind }) => kind === 'controller');
      const failures = controller?.failures;
      while (frame.needsAccess && this.access.state === 'transitioning')
        await new Promise<void>((goOn) => this.access.waiting.push(goOn));
      if (controller?.failures !== failures) return lost;
      let answer: T | typeof lost = lost;
      let failure: unknown = null;
      try {
        answer = await frame.land();
      } catch (error) {
        failure = error;
      }
      for (const part of this.#back) {
        const passed = part.pass(frame.bytesBack, BACK);
        if (!(passed === true || (await passed))) return lost;
        within.pop();
        part.leave();
      }
      if (failure !== null) throw failure;
      return answer;
    } finally {
      for (const part of within) part.leave();
    }
  }
}

/** What is asked of a LUN. */
interface Order<T> {
  readonly bytesThere: number;
  readonly bytesBack: number;
  /** On the caller's buffers. */
  readonly run: (backing: Device) => Promise<T>;
  /** On buffers of its own, and what is to be done with them when the answer has come. */
  readonly copied: () => { readonly run: (backing: Device) => Promise<T>; readonly deliver: () => void };
}

/** An order that was not answered. */
interface Pending extends Linked<Pending> {
  readonly send: () => void;
  readonly fail: (failure: unknown) => void;
  /** While the LUN is at it. */
  executing: Promise<unknown> | null;
  /** The same order on buffers of its own, where it has been sent so. */
  own: ReturnType<Order<unknown>['copied']> | null;
}

const nothing = (): void => undefined;

/** Whether a controller in this state lets anybody at the data. */
function isOpen(state: AluaState): boolean {
  return state !== 'standby' && state !== 'unavailable' && state !== 'offline';
}

/** From its first login until it is fenced, closed or removed. */
class Connection extends Device {
  override readonly direct = null;
  readonly #link: Link;
  readonly #pending = new Chain<Pending>();
  readonly #inFlight = new InFlight();
  /** What the LUN has begun for it. */
  readonly #executing = new InFlight();
  /** Of the host: logins, and outages between them. */
  #login = 0;
  #isLoggedIn = false;
  /** At the LUN: requests of which login it takes. */
  #taken = 0;
  #isFenced = false;
  #isRemoved = false;

  constructor(link: Link) {
    super();
    this.#link = link;
  }

  override get name(): string {
    return this.#link.path.name;
  }

  override get limits(): Limits {
    return this.#link.unit.backing.limits;
  }

  asPath(): PathConnection {
    const { access, unit, events } = this.#link;
    const ask = <T>(run: () => Promise<T>): Promise<T> =>
      this.#order({ bytesThere: 0, bytesBack: 0, run, copied: () => ({ run, deliver: nothing }) }, false);
    return {
      device: this,
      identity: unit.lun.identity,
      ready: () =>
        ask(async () => {
          while (access.state === 'transitioning')
            await new Promise<void>((goOn) => access.waiting.push(goOn));
          if (access.state === 'standby') return 'ghost';
          return access.state === 'unavailable' || access.state === 'offline' ? 'down' : 'up';
        }),
      activate: () => ask(events.activate),
      fence: () => this.fence(),
    };
  }

  /** Ends what was sent by the login before, and sends what was not answered again. False: it did not get through. */
  async login(): Promise<boolean> {
    if (this.#isFenced || this.#isRemoved) return false;
    this.#login += 1;
    const login = this.#login;
    this.#isLoggedIn = false;
    const land = async (): Promise<boolean> => {
      if (this.#isFenced || login < this.#taken) return false;
      this.#taken = login;
      await this.#executing.whenIdle();
      return true;
    };
    const isDone = await this.#link.carry({ bytesThere: 0, bytesBack: 0, land, needsAccess: false });
    if (isDone !== true || this.#login !== login || this.#isFenced || this.#isRemoved) return false;
    this.#isLoggedIn = true;
    for (const pending of this.#pending.items()) pending.send();
    return true;
  }

  /** The light has gone out: answers that are still on their way are not waited for. */
  disrupt(): void {
    this.#login += 1;
    this.#isLoggedIn = false;
  }

  failAll(error: RaidError): void {
    for (const pending of this.#pending.items()) {
      this.#pending.delete(pending);
      const fail = (): void => pending.fail(error);
      if (pending.executing === null) fail();
      else pending.executing.then(fail, fail);
    }
  }

  remove(): void {
    this.#isRemoved = true;
    this.disrupt();
  }

  async fence(): Promise<void> {
    this.#isFenced = true;
    this.disrupt();
    this.#link.connections.delete(this);
    await this.#executing.whenIdle();
    this.failAll(new RaidError('CLOSED', `${this.name} was fenced`, { device: this.name }));
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const bytesBack = totalBytes(targets);
    return this.#order({
      bytesThere: 0,
      bytesBack,
      run: (backing) => backing.read(offsetBytes, targets),
      copied: () => {
        const bytes = new Uint8Array(bytesBack);
        return {
          run: (backing) => backing.read(offsetBytes, bytes),
          deliver: () => {
            scatter(bytes, targets, 0);
          },
        };
      },
    });
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    const bytesThere = totalBytes(sources);
    return this.#order({
      bytesThere,
      bytesBack: 0,
      run: (backing) => backing.write(offsetBytes, sources, { fua }),
      copied: () => {
        const sent = copyOf(sources, bytesThere);
        return { run: (backing) => backing.write(offsetBytes, sent, { fua }), deliver: nothing };
      },
    });
  }

  protected override doFlush(): Promise<void> {
    return this.#command((backing) => backing.flush());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#command((backing) => backing.discard(offsetBytes, lengthBytes));
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#command((backing) => backing.writeZeroes(offsetBytes, lengthBytes, options));
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#command((backing) => backing.blockStatus(offsetBytes, lengthBytes));
  }

  protected override doResize(): Promise<void> {
    throw new RaidError('NOT_SUPPORTED', `${this.name} has the size of what it leads to`, {
      device: this.name,
    });
  }

  protected override async doClose(): Promise<void> {
    await this.fence();
    await this.#inFlight.whenIdle();
  }

  #command<T>(run: (backing: Device) => Promise<T>): Promise<T> {
    return this.#order({ bytesThere: 0, bytesBack: 0, run, copied: () => ({ run, deliver: nothing }) });
  }

  /**
   * `needsAccess`: data is touched, which a controller that is standby refuses. Where the whole way is clear the LUN begins at
   * once, and it costs one promise: most requests in most fabrics are such.
   */
  #order<T>(order: Order<T>, needsAccess = true): Promise<T> {
    const link = this.#link;
    if (this.#isFenced)
      return Promise.reject(new RaidError('CLOSED', `${this.name} was fenced`, { device: this.name }));
    if (this.#isRemoved || link.state === 'offline' || link.state === 'removed')
      return Promise.reject(link.goneError);
    this.#inFlight.begin();
    return new Promise<T>((resolve, reject) => {
      const done = (answer: T): void => {
        this.#inFlight.end();
        resolve(answer);
      };
      const pending: Pending = {
        send: () => void this.#send(pending, order, needsAccess, done),
        fail: (failure: unknown): void => {
          this.#inFlight.end();
          reject(failure);
        },
        executing: null,
        own: null,
        before: null,
        after: null,
        isLinked: false,
      };
      this.#pending.add(pending);
      if (!this.#isLoggedIn) return;
      if (!needsAccess || !link.isClear || this.#taken !== this.#login || !isOpen(link.access.state)) {
        pending.send();
        return;
      }
      const login = this.#login;
      this.#executing.begin();
      const work = order.run(link.unit.backing);
      pending.executing = work;
      work.then(
        (answer) => {
          if (this.#isAnswered(pending, login)) done(answer);
        },
        (failure: unknown) => {
          if (this.#isAnswered(pending, login)) pending.fail(failure);
        },
      );
    });
  }

  /** Else the light has gone out meanwhile: it is sent again, or fails, with all others. */
  #isAnswered(pending: Pending, login: number): boolean {
    pending.executing = null;
    this.#executing.end();
    return login === this.#login && this.#pending.delete(pending);
  }

  async #send<T>(
    pending: Pending,
    order: Order<T>,
    needsAccess: boolean,
    done: (answer: T) => void,
  ): Promise<void> {
    const link = this.#link;
    const login = this.#login;
    // Copied at the first sending, and only where it may be under way for longer than its caller waits.
    if (pending.own === null && !link.isClear) pending.own = order.copied();
    const { run, deliver } = (pending.own as ReturnType<Order<T>['copied']> | null) ?? {
      run: order.run,
      deliver: nothing,
    };
    const land = (): Promise<T> => this.#land(pending, login, run, needsAccess);
    try {
      const { bytesThere, bytesBack } = order;
      const answer = await link.carry({ bytesThere, bytesBack, land, needsAccess });
      if (answer === lost || login !== this.#login || !this.#pending.delete(pending)) return;
      deliver();
      done(answer);
    } catch (failure) {
      if (login === this.#login && this.#pending.delete(pending)) pending.fail(failure);
    }
  }

  async #land<T>(
    pending: Pending,
    login: number,
    run: (backing: Device) => Promise<T>,
    needsAccess: boolean,
  ): Promise<T> {
    const { access, unit, events } = this.#link;
    if (this.#isFenced || login !== this.#taken) {
      events.refused();
      throw new RaidError('CLOSED', `${this.name} was fenced`, { device: this.name });
    }
    if (needsAccess && !isOpen(access.state)) {
      throw new RaidError('MEMBER_GONE', `${this.name}: ${access.controller} is ${access.state}`, {
        device: this.name,
        injected: true,
      });
    }
    if (!needsAccess) return await run(unit.backing);
    const work = this.#executing.run(() => run(unit.backing));
    pending.executing = work.catch(nothing);
    try {
      return await work;
    } finally {
      pending.executing = null;
    }
  }
}
