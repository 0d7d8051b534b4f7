/**
 * Several paths to the same data as one device: what fails on one path is done on another.
 *
 *   request ──▶ group in use ──selector──▶ path ──▶ answer
 *      ▲                                    │ path error, silence, or a checker that says down
 *      └── another path ◀── fence ◀─────────┘
 *
 * Which errors are the path's. MEMBER_GONE, CLOSED, PROTOCOL_VIOLATION, WRITE_MAYBE_APPLIED, and silence. Everything else
 * (a sector that cannot be read, a full disk, a failed flush) is the word of what is behind all paths, and another
 * path would say the same: it goes to the caller.
 *
 * Why nothing is done twice in a harmful way. A request that was given to a path that failed may have happened, or may
 * yet happen: its frames lie in some queue. Done again with the same bytes it does no harm, but a *late* first attempt could
 * land on top of something newer. So the path is fenced: its connection is destroyed, until nothing that was handed to it
 * can take effect any more, neither on the data nor, for a read, in the caller's buffers. Only then is the request sent by
 * another path, and only then may it fail. A request is at no time under way on two paths. Hence: when a
 * request settles, no attempt of it is left anywhere, and a later request cannot be overtaken by it.
 * A path that cannot be fenced ends the device: going on would be a guess (lib/nbd/client.ts says why silence is no fence).
 *
 * What the paths must share. What one of them has acknowledged is read by all of them, and a flush on one covers what
 * was acknowledged by any: one array with one cache behind them, as a LUN is. Two servers that each cache one file are not.
 *
 * Time. Once in a tick (a second, as multipathd) everything is looked at: paths due for a check, requests and checks
 * without an answer, requests that wait for a path, failback. Ages are counted in ticks, so that a process that was
 * stopped does not take its own sleep for the silence of others. `longestStallMs`
 * (topology.ts) says what all of this comes to for one request.
 */
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import { assert, type ErrorCode, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import { KIB, MIB, roundUp } from '../units.ts';
import { Chain, type Linked } from './chain.ts';
import type { Settings } from './conf.ts';
import { Latencies, type LatencySummary } from './latency.ts';
import {
  bestGroup,
  groupPaths,
  makeSelector,
  type PathFacts,
  type PathGroup,
  prioOfPath,
  type RankedPath,
  type Selector,
} from './select.ts';

/** One way to the data. */
export interface Path {
  readonly name: string;
  /** Asked with every check, since ALUA states change. */
  facts?(): Omit<PathFacts, 'name' | 'latenciesMs'>;
  /**
   * Fails while there is no way through. With WRITE_MAYBE_APPLIED where something that it has written by itself cannot be
   * fenced: that ends the device. When `unwanted` is aborted nobody waits for it any more, and it fails as soon as it safely can.
   */
  connect(unwanted?: AbortSignal): Promise<PathConnection>;
}

export interface PathConnection {
  readonly device: Device;
  /** Of the data, and the same by whichever path one comes: a WWID. */
  readonly identity: string;
  /** What the other end says of itself without touching data (TEST UNIT READY); `ghost`: there, but standby. */
  ready?(): Promise<'up' | 'ghost' | 'down'>;
  /** Has the other end make a ghost path an active one (SET TARGET PORT GROUPS); asked when no other path works. */
  activate?(): Promise<void>;
  /**
   * Ends the connection for good, and resolves when nothing that was handed to it can take effect any more, on the data
   * or in the buffers of requests. It must end. Rejects where that cannot be had for the data; the buffers are free even so.
   */
  fence(): Promise<void>;
}

/**
 * `pending`: the first verdict is still to come. `ghost`: standby. `shaky`: it keeps failing, and is used when nothing
 * else is there. `delayed`: it keeps failing, and is kept out for a while although it seems to work.
 */
export type PathState = 'up' | 'down' | 'ghost' | 'shaky' | 'pending' | 'delayed';

export interface PathStatus {
  readonly name: string;
  readonly state: PathState;
  readonly prio: number;
  /** Why it is not up, if something is known. */
  readonly why: string | null;
  readonly inFlight: number;
  readonly requests: number;
  readonly errors: number;
  /** Times that it went from working to not working. */
  readonly failures: number;
  /** Of the requests that it has done; null where it has done none. */
  readonly latencyMs: LatencySummary | null;
}

export interface MultipathStatus {
  readonly groups: readonly {
    readonly paths: readonly PathStatus[];
    readonly isActive: boolean;
    readonly isMarginal: boolean;
  }[];
  /** Requests that wait for a path. */
  readonly queued: number;
  readonly selector: string;
  /** Whether requests may wait where no path works. */
  readonly isQueueing: boolean;
}

export interface MultipathOptions {
  readonly host: Host;
  readonly settings: Settings;
  readonly name?: string;
  /** Silence after which a request's path has failed (default 30 s, as SCSI commands have). */
  readonly ioTimeoutMs?: number;
  readonly tickMs?: number;
  /** Of the requests that wait for a path; those beyond it fail even with `queue` (default 64 MiB). */
  readonly maxQueuedBytes?: number;
  /** When nothing of it is under way any more: for what lies behind all paths. */
  readonly onClosed?: () => Promise<void>;
}

/**
 * A device as a path: its `close` is the fence, which every device's is for what it does itself (the contract: everything
 * in flight has settled). Where requests go on to somebody else, a server say, closing does not call them back, and
 * such a path needs a fence of its own. It cannot be asked how it is: for the checker `tur` it is up as long as it can be
 * opened, and `directio` reads.
 */
export function pathOver(
  name: string,
  identity: string,
  open: () => Promise<Device>,
  facts: Omit<PathFacts, 'name' | 'latenciesMs'> = {},
): Path {
  return {
    name,
    facts: () => facts,
    connect: async () => {
      const device = await open();
      return { device, identity, fence: () => device.close() };
    },
  };
}

const pathErrors: ReadonlySet<ErrorCode> = new Set([
  'MEMBER_GONE',
  'CLOSED',
  'PROTOCOL_VIOLATION',
  'WRITE_MAYBE_APPLIED',
]);

function isPathError(failure: unknown): boolean {
  return failure instanceof RaidError && pathErrors.has(failure.code);
}

/** One connection from its beginning to its fence. */
class Nexus {
  readonly connection: PathConnection;
  /** Requests that were given to it and not answered. */
  readonly attempts = new Chain<Attempt>();
  /** The same of checks: called when it is fenced. */
  readonly abandon = new Set<() => void>();
  #fenced: Promise<void> | null = null;

  constructor(connection: PathConnection) {
    this.connection = connection;
  }

  /** Any number of times, and is done once. */
  fence(): Promise<void> {
    if (this.#fenced === null) {
      this.#fenced = (async () => this.connection.fence())();
      const end = (): void => {
        for (const abandon of this.abandon) abandon();
        for (const attempt of this.attempts.items()) attempt.abandon();
      };
      this.#fenced.then(end, end);
    }
    return this.#fenced;
  }
}

interface Attempt extends Linked<Attempt> {
  readonly sinceTick: number;
  readonly startedMs: number;
  isOver: boolean;
  /** Called when its path is fenced. */
  readonly abandon: () => void;
}

/** Why an attempt came to nothing, where the path is to blame and is fenced by now. */
class PathFailed {
  readonly path: number;

  constructor(path: number) {
    this.path = path;
  }
}

interface Check {
  readonly sinceTick: number;
  /** Aborted when nobody waits for it any more. */
  readonly unwanted: AbortController;
}

interface PathLife {
  readonly index: number;
  readonly path: Path;
  nexus: Nexus | null;
  state: PathState;
  why: string | null;
  prio: number;
  /** A check or an attempt to connect that is under way. */
  check: Check | null;
  checkEveryMs: number;
  nextCheckMs: number;
  requests: number;
  errors: number;
  failures: number;
  /** san_path_err: failures not yet forgotten, and good checks until the next one is. */
  remembered: number;
  checksToForget: number;
  /** marginal_path: when it failed last. */
  failedAtMs: number;
  /** Kept out, or in the marginal group, until then; null: it is not marginal. */
  marginalUntilMs: number | null;
  /** marginal_path: reads of the sample under way, and how many of them failed. */
  sample: { readonly untilMs: number; reads: number; errors: number } | null;
  latenciesMs: number[];
  readonly done: Latencies;
  /** What it shows has been held against what another path shows. */
  isCompared: boolean;
}

interface Waiter {
  readonly queuedBytes: number;
  readonly expiresMs: number;
  readonly goOn: () => void;
  readonly fail: (error: RaidError) => void;
}

interface Request<T> {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
  readonly run: (device: Device) => Promise<T>;
}

/** What a request without data counts for in the queue, and the least that any does. */
const QUEUED_MIN_BYTES = 4 * KIB;

/** Times that the ends of a path are compared with those of another that is being written. */
const COMPARED_MOST = 4;

/** Reads per second while a marginal path is watched. */
const SAMPLE_HZ = 10;

export class MultipathDevice extends Device {
  override readonly name: string;
  override readonly direct = null;
  #limits: Limits;
  readonly #host: Host;
  readonly #settings: Settings;
  readonly #identity: string;
  readonly #ioTimeoutTicks: number;
  readonly #checkerTimeoutTicks: number;
  readonly #tickMs: number;
  readonly #maxQueuedBytes: number;
  readonly #onClosed: () => Promise<void>;
  readonly #lives: readonly PathLife[];
  readonly #inFlight = new InFlight();
  readonly #stop = new AbortController();
  /** Under way. */
  readonly #fences = new Set<Promise<void>>();
  #groups: readonly PathGroup[] = [];
  #ranked: readonly RankedPath[] = [];
  #ranking = '';
  #selector: Selector;
  /** A path of the group in use; -1: none is. Groups are made anew, paths stay. */
  #activePath = -1;
  #failbackAtMs: number | null = null;
  /** What `#candidates` has found; null after every change of a path's state, of groups, or of the one in use. */
  #usable: readonly number[] | null = null;
  #waiters: Waiter[] = [];
  #queuedBytes = 0;
  #noPathSinceMs: number | null = null;
  #activation: Promise<void> | null = null;
  #tick = 0;
  /** A path could not be fenced. */
  #failure: RaidError | null = null;

  /**
   * Connects every path. Those that cannot be reached are down and tried again; at least one must be reached, and all that
   * are must lead to the same data. Once one is up the others have a tick: what has not answered by then is `pending`, and
   * is compared when it answers.
   */
  static async open(paths: readonly Path[], options: MultipathOptions): Promise<MultipathDevice> {
    const { name = 'multipath' } = options;
    if (paths.length === 0)
      throw new RaidError('BAD_ARGUMENT', `${name} has no path at all`, { device: name });
    const twice = paths.find((path, index) => paths.findIndex((other) => other.name === path.name) < index);
    if (twice !== undefined)
      throw new RaidError('BAD_ARGUMENT', `${name} has two paths named ${twice.name}`, { device: name });
    const probes = await probeAll(paths, options);
    try {
      checkSameData(name, paths, probes);
      const first = probes.find(({ connection }) => connection !== null)?.connection ?? null;
      if (first === null) {
        throw new RaidError(
          'MEMBER_GONE',
          `${name}: none of its ${paths.length} paths works: ${probes[0]?.why}`,
          {
            device: name,
          },
        );
      }
      return new MultipathDevice(paths, probes, first, options);
    } catch (refusal) {
      await Promise.allSettled(probes.map(({ connection }) => connection?.device.close()));
      throw refusal;
    }
  }

  private constructor(
    paths: readonly Path[],
    probes: readonly Probe[],
    first: PathConnection,
    options: MultipathOptions,
  ) {
    super();
    const { host, settings, name = 'multipath', ioTimeoutMs = 30_000, tickMs = 1000 } = options;
    this.name = name;
    this.#limits = first.device.limits;
    this.#identity = first.identity;
    this.#host = host;
    this.#settings = settings;
    this.#tickMs = tickMs;
    this.#ioTimeoutTicks = Math.ceil(ioTimeoutMs / tickMs);
    this.#checkerTimeoutTicks = Math.ceil(settings.checkerTimeoutMs / tickMs);
    this.#maxQueuedBytes = options.maxQueuedBytes ?? 64 * MIB;
    this.#onClosed = options.onClosed ?? (async () => undefined);
    const now = host.now();
    this.#lives = paths.map((path, index) => {
      const { connection, state, why, ends } = probes[index] as Probe;
      return {
        index,
        path,
        nexus: connection === null ? null : new Nexus(connection),
        state,
        why,
        prio: 0,
        check: null,
        checkEveryMs: settings.pollingMs,
        nextCheckMs: now + settings.pollingMs,
        requests: 0,
        errors: 0,
        failures: 0,
        remembered: 0,
        checksToForget: settings.sanPathErr?.forgetChecks ?? 0,
        failedAtMs: Number.NEGATIVE_INFINITY,
        marginalUntilMs: null,
        sample: null,
        latenciesMs: [],
        done: new Latencies(),
        isCompared: ends !== null,
      };
    });
    this.#selector = this.#newSelector();
    this.#regroup();
    for (const life of this.#lives) if (life.state === 'pending') this.#check(life);
    void this.#keepTime();
  }

  override get limits(): Limits {
    return this.#limits;
  }

  /** As `multipathd resize map`: the size that all connected paths show by now. It only grows, and all must agree. */
  rescan(): void {
    const sizes = this.#lives.flatMap(({ nexus }) =>
      nexus === null ? [] : [nexus.connection.device.limits.sizeBytes],
    );
    const [sizeBytes = 0] = sizes;
    if (sizeBytes < this.#limits.sizeBytes || sizes.some((size) => size !== sizeBytes)) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${this.name} has ${this.#limits.sizeBytes} bytes, and its paths show ${sizes.join(', ') || 'none'}`,
        { device: this.name },
      );
    }
    this.#limits = { ...this.#limits, sizeBytes };
  }

  /** Of the data: what all paths that are used have said. */
  get identity(): string {
    return this.#identity;
  }

  status(): MultipathStatus {
    const active = this.#activeGroup();
    return {
      queued: this.#waiters.length,
      selector: this.#settings.selector,
      isQueueing: this.#settings.noPathRetry.kind !== 'fail',
      groups: this.#groups.map((group) => ({
        isActive: group === active,
        isMarginal: group.isMarginal,
        paths: group.paths.map((index) => {
          const { path, state, prio, why, nexus, requests, errors, failures, done } = this.#life(index);
          return {
            name: path.name,
            state,
            prio,
            why,
            inFlight: nexus?.attempts.size ?? 0,
            requests,
            errors,
            failures,
            latencyMs: done.summary(),
          };
        }),
      })),
    };
  }

  /** By hand, as `multipathd fail path`: the next check may take it back. */
  failPath(name: string): void {
    this.#fail(this.#named(name), 'it was failed by hand');
  }

  /** By hand: checked now, and no longer kept out for having failed before. */
  reinstatePath(name: string): void {
    const life = this.#named(name);
    life.marginalUntilMs = null;
    life.sample = null;
    life.remembered = 0;
    life.nextCheckMs = this.#host.now();
    this.#check(life);
  }

  /** Every path that has a connection is checked now; resolves when all have answered, or their time is up. */
  async check(): Promise<void> {
    await Promise.all(
      this.#lives.map(async (life) => {
        const { nexus } = life;
        if (nexus !== null && life.check === null)
          await this.#during(life, nexus, () => this.#ask(life, nexus));
      }),
    );
    this.#regroup();
  }

  /** The group of this path is used from now on; the next failback may move on. */
  switchGroup(name: string): void {
    const life = this.#named(name);
    const group = this.#groups.find(({ paths }) => paths.includes(life.index));
    if (group?.paths.some((index) => this.#works(index)) !== true) {
      throw new RaidError('BAD_ARGUMENT', `${this.name}: no path of the group of ${name} works`, {
        device: this.name,
      });
    }
    this.#use(life.index);
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#perform(offsetBytes, totalBytes(targets), (device) => device.read(offsetBytes, targets));
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    return this.#perform(offsetBytes, totalBytes(sources), (device) =>
      device.write(offsetBytes, sources, { fua }),
    );
  }

  protected override doFlush(): Promise<void> {
    return this.#perform(0, 0, (device) => device.flush());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#perform(offsetBytes, 0, (device) => device.discard(offsetBytes, lengthBytes));
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#perform(offsetBytes, 0, (device) => device.writeZeroes(offsetBytes, lengthBytes, options));
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#perform(offsetBytes, 0, (device) => device.blockStatus(offsetBytes, lengthBytes));
  }

  protected override doResize(): Promise<void> {
    throw new RaidError('NOT_SUPPORTED', `${this.name} has the size of what its paths lead to`, {
      device: this.name,
    });
  }

  protected override async doClose(): Promise<void> {
    this.#stop.abort();
    const before = this.#failure;
    this.#expire(Number.POSITIVE_INFINITY, () => this.#closedError());
    const closing = Promise.all(this.#lives.map((life) => this.#closePath(life)));
    await this.#inFlight.whenIdle();
    await closing;
    await Promise.all(this.#fences);
    await this.#onClosed();
    if (this.#failure !== before) throw this.#failure;
  }

  /** A path that does not answer is fenced: at once where only a check waits for it, which nobody wants to know of any more. */
  async #closePath(life: PathLife): Promise<void> {
    const { nexus } = life;
    if (nexus === null) {
      this.#giveUp(life);
      return;
    }
    const { device } = nexus.connection;
    const isOnlyChecked = nexus.attempts.size === 0 && (life.check !== null || nexus.abandon.size > 0);
    if (!isOnlyChecked) {
      const closed = new AbortController();
      await new Promise<void>((resolve) => {
        const end = (): void => {
          closed.abort();
          resolve();
        };
        device.close().then(end, end);
        void this.#host.sleep(this.#ioTimeoutTicks * this.#tickMs, closed.signal).then(resolve);
      });
      if (closed.signal.aborted) return;
    }
    this.#fence(life, nexus, 'it was not answered when it was closed');
  }

  // ── Requests ───────────────────────────────────────────────────────────────────────────────────────────────────────

  /**
   * A request costs one promise here as long as nothing goes wrong: this is passed by every request to every member. What goes
   * wrong goes on in `#untilDone`.
   */
  #perform<T>(offsetBytes: number, lengthBytes: number, run: (device: Device) => Promise<T>): Promise<T> {
    const request: Request<T> = { offsetBytes, lengthBytes, run };
    this.#inFlight.begin();
    return new Promise((resolve, reject) => {
      const done = (value: T): void => {
        this.#inFlight.end();
        resolve(value);
      };
      const fail = (failure: unknown): void => {
        this.#inFlight.end();
        reject(failure);
      };
      try {
        const candidates = this.#failure === null ? this.#candidates() : [];
        if (candidates.length === 0) this.#untilDone(request, new Set()).then(done, fail);
        else
          this.#attempt(request, candidates, done, (failure) => {
            if (failure instanceof PathFailed)
              this.#untilDone(request, new Set([failure.path])).then(done, fail);
            else fail(failure);
          });
      } catch (bug) {
        fail(bug);
      }
    });
  }

  /** `tried`: paths that have failed it. */
  async #untilDone<T>(request: Request<T>, tried: Set<number>): Promise<T> {
    /** When it first failed or had to wait: its patience counts from there, however often a path comes back. */
    let troubleSinceMs = tried.size > 0 ? this.#host.now() : Number.POSITIVE_INFINITY;
    for (;;) {
      if (this.isClosed && tried.size > 0) throw this.#closedError();
      if (this.#failure !== null) throw this.#failure;
      const candidates = this.#candidates();
      const { noPathRetry } = this.#settings;
      if (candidates.length === 0) {
        troubleSinceMs = Math.min(troubleSinceMs, this.#host.now());
        if (await this.#activateGhost()) continue;
        await this.#waitForPath(request.lengthBytes, troubleSinceMs);
        continue;
      }
      // A checker that lies brings a path back again and again: that must not keep a request for ever.
      const patienceMs = noPathRetry.kind === 'retries' ? noPathRetry.count * this.#settings.pollingMs : 0;
      const fresh = this.#untried(candidates, tried);
      if (
        fresh.length === 0 &&
        noPathRetry.kind !== 'queue' &&
        this.#host.now() - troubleSinceMs >= patienceMs
      ) {
        throw this.#noPathError();
      }
      try {
        return await new Promise<T>((resolve, reject) =>
          this.#attempt(request, fresh.length > 0 ? fresh : candidates, resolve, reject),
        );
      } catch (failure) {
        if (!(failure instanceof PathFailed)) throw failure;
        tried.add(failure.path);
        troubleSinceMs = Math.min(troubleSinceMs, this.#host.now());
      }
    }
  }

  /** One of both is called, once. A `PathFailed` comes when the path is fenced; all else is the word of the data's side. */
  #attempt<T>(
    { offsetBytes, lengthBytes, run }: Request<T>,
    candidates: readonly number[],
    done: (value: T) => void,
    fail: (failure: unknown) => void,
  ): void {
    const startedMs = this.#host.now();
    const selector = this.#selector;
    const path = selector.select({ candidates, offsetBytes, lengthBytes, nowMs: startedMs });
    const life = this.#life(path);
    const { nexus } = life;
    assert(nexus !== null, 'a path that works has a connection');
    const attempt: Attempt = {
      sinceTick: this.#tick,
      startedMs,
      isOver: false,
      abandon: () =>
        lose(new RaidError('MEMBER_GONE', `${life.path.name} was fenced`, { device: this.name })),
      before: null,
      after: null,
      isLinked: false,
    };
    const lose = (failure: unknown): void => {
      if (attempt.isOver) return;
      attempt.isOver = true;
      if (!isPathError(failure)) {
        this.#ended(life, nexus, attempt, lengthBytes, selector, true);
        fail(failure);
        return;
      }
      life.errors += 1;
      if (life.nexus === nexus) this.#fail(life, (failure as RaidError).message);
      const go = (): void => {
        this.#ended(life, nexus, attempt, lengthBytes, selector, true);
        fail(this.isClosed ? this.#closedError() : new PathFailed(path));
      };
      // Where it cannot be fenced, #fence has made the device end, and said why.
      nexus.fence().then(go, go);
    };
    nexus.attempts.add(attempt);
    life.requests += 1;
    run(nexus.connection.device).then((value) => {
      if (attempt.isOver) return;
      attempt.isOver = true;
      this.#ended(life, nexus, attempt, lengthBytes, selector, false);
      done(value);
    }, lose);
  }

  #ended(
    { index, done }: PathLife,
    nexus: Nexus,
    attempt: Attempt,
    lengthBytes: number,
    selector: Selector,
    failed: boolean,
  ): void {
    nexus.attempts.delete(attempt);
    const { startedMs } = attempt;
    const nowMs = this.#host.now();
    if (!failed) done.add(nowMs - startedMs);
    selector.end(index, { lengthBytes, startedMs, nowMs, failed });
  }

  /** Of the group in use; where it has none, of the first group that has: the one in use may have come back meanwhile. */
  #untried(candidates: readonly number[], tried: ReadonlySet<number>): readonly number[] {
    const fresh = candidates.filter((index) => !tried.has(index));
    if (fresh.length > 0) return fresh;
    for (const { paths } of this.#groups) {
      const others = paths.filter((index) => this.#works(index) && !tried.has(index));
      if (others.length > 0) return others;
    }
    return [];
  }

  #waitForPath(lengthBytes: number, troubleSinceMs: number): Promise<void> {
    const { noPathRetry, pollingMs } = this.#settings;
    if (this.isClosed) throw this.#closedError();
    const now = this.#host.now();
    this.#noPathSinceMs ??= now;
    const sinceMs = Math.min(this.#noPathSinceMs, troubleSinceMs);
    const expiresMs =
      noPathRetry.kind === 'queue'
        ? Number.POSITIVE_INFINITY
        : sinceMs + (noPathRetry.kind === 'retries' ? noPathRetry.count * pollingMs : 0);
    if (expiresMs <= now) throw this.#noPathError();
    const queuedBytes = Math.max(lengthBytes, QUEUED_MIN_BYTES);
    if (this.#queuedBytes + queuedBytes > this.#maxQueuedBytes) {
      throw this.#noPathError(`, and ${this.#waiters.length} requests wait for one already`);
    }
    this.#queuedBytes += queuedBytes;
    return new Promise((goOn, fail) => this.#waiters.push({ queuedBytes, expiresMs, goOn, fail }));
  }

  /** In the order in which they came. */
  #release(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    this.#queuedBytes = 0;
    for (const { goOn } of waiters) goOn();
  }

  #expire(nowMs: number, error: () => RaidError): void {
    const isOver = ({ expiresMs }: Waiter): boolean =>
      nowMs === Number.POSITIVE_INFINITY || expiresMs <= nowMs;
    const over = this.#waiters.filter(isOver);
    if (over.length === 0) return;
    this.#waiters = this.#waiters.filter((waiter) => !isOver(waiter));
    for (const { queuedBytes, fail } of over) {
      this.#queuedBytes -= queuedBytes;
      fail(error());
    }
  }

  #noPathError(more = ''): RaidError {
    return new RaidError('MEMBER_GONE', `${this.name}: no path works${more}`, { device: this.name });
  }

  #closedError(): RaidError {
    return new RaidError('CLOSED', `${this.name} is closed`, { device: this.name });
  }

  // ── Groups ─────────────────────────────────────────────────────────────────────────────────────────────────────────

  #life(index: number): PathLife {
    return this.#lives[index] as PathLife;
  }

  #named(name: string): PathLife {
    const life = this.#lives.find(({ path }) => path.name === name);
    if (life === undefined)
      throw new RaidError('BAD_ARGUMENT', `${this.name} has no path ${name}`, { device: this.name });
    return life;
  }

  #works(index: number): boolean {
    const { state, nexus } = this.#life(index);
    return (state === 'up' || state === 'shaky') && nexus !== null;
  }

  #activeGroup(): PathGroup | undefined {
    return this.#groups.find(({ paths }) => paths.includes(this.#activePath));
  }

  /** The working paths of the group in use; another group comes into use where it has none. */
  #candidates(): readonly number[] {
    this.#usable ??= this.#findCandidates();
    return this.#usable;
  }

  #findCandidates(): readonly number[] {
    const inUse = this.#activeGroup()?.paths.filter((index) => this.#works(index)) ?? [];
    if (inUse.length > 0) return inUse;
    // At first the best; afterwards the next in order, as the kernel does by itself. To the best leads failback.
    const next =
      this.#activePath < 0
        ? this.#groups[this.#bestGroup()]
        : this.#groups.find(({ paths }) => paths.some((index) => this.#works(index)));
    if (next === undefined) return [];
    this.#use(next.paths[0] ?? -1);
    return next.paths.filter((index) => this.#works(index));
  }

  /** The group of this path. */
  #use(path: number): void {
    this.#activePath = path;
    this.#failbackAtMs = null;
    this.#usable = null;
  }

  #bestGroup(): number {
    return bestGroup(this.#groups, this.#ranked, (index) => this.#works(index));
  }

  /** Priorities and groups as paths are at this moment; nothing happens where nothing has changed. */
  #regroup(): void {
    const { prio, groupingPolicy } = this.#settings;
    this.#ranked = this.#lives.map((life) => {
      const facts: PathFacts = {
        ...life.path.facts?.(),
        name: life.path.name,
        latenciesMs: life.latenciesMs,
      };
      // A lot is drawn once: drawn again with every check, groups would never hold still.
      if (prio.kind !== 'random' || life.prio === 0) {
        life.prio = prioOfPath(prio, facts, (below) => this.#host.random(below));
      }
      return {
        ...facts,
        prio: life.prio,
        isMarginal: life.marginalUntilMs !== null && this.#settings.marginalGroups,
      };
    });
    const ranking = this.#ranked
      .map((path) => `${path.prio} ${path.isMarginal} ${path.serial} ${path.nodeName}`)
      .join();
    if (ranking === this.#ranking) return;
    this.#ranking = ranking;
    this.#groups = groupPaths(groupingPolicy, this.#ranked);
    this.#usable = null;
    if (this.#settings.rrWeight === 'priorities') this.#selector = this.#newSelector();
  }

  #newSelector(): Selector {
    return makeSelector({
      settings: this.#settings,
      paths: this.#lives.map(({ path, prio }) => ({ name: path.name, prio })),
    });
  }

  /** A better group than the one in use: whether to move there, and when. */
  #failback(cameBack: PathLife | null): void {
    const best = this.#groups[this.#bestGroup()];
    if (best === undefined || this.#activeGroup() === undefined) return;
    if (best === this.#activeGroup()) {
      this.#failbackAtMs = null;
      return;
    }
    const { failback } = this.#settings;
    const now = this.#host.now();
    const move = (): void => this.#use(best.paths[0] ?? -1);
    switch (failback.kind) {
      case 'immediate':
        move();
        break;
      case 'manual':
        break;
      case 'followover': {
        const isFirst =
          cameBack !== null &&
          best.paths.includes(cameBack.index) &&
          best.paths.every((index) => index === cameBack.index || !this.#works(index));
        if (isFirst) move();
        break;
      }
      case 'deferred':
        this.#failbackAtMs ??= now + failback.afterMs;
        if (now >= this.#failbackAtMs) move();
        break;
    }
  }

  // ── The life of a path ─────────────────────────────────────────────────────────────────────────────────────────────

  #fail(life: PathLife, why: string): void {
    const { nexus } = life;
    const hadWorked = this.#works(life.index);
    life.nexus = null;
    this.#usable = null;
    life.state = 'down';
    life.why = why;
    this.#giveUp(life);
    life.checkEveryMs = this.#settings.pollingMs;
    life.nextCheckMs = this.#host.now() + this.#settings.pollingMs;
    if (hadWorked) this.#countFailure(life);
    if (nexus !== null) this.#fence(life, nexus, why);
    this.#takeBackLast();
    if (!this.#lives.some(({ index }) => this.#works(index))) this.#noPathSinceMs ??= this.#host.now();
    this.#failback(null);
  }

  #fence(life: PathLife, nexus: Nexus, why: string): void {
    const fence = nexus.fence().catch((cause: unknown) => this.#endFor(life, why, cause));
    this.#fences.add(fence);
    void fence.finally(() => this.#fences.delete(fence));
  }

  #endFor({ path }: PathLife, why: string, cause: unknown): void {
    this.#failure ??= new RaidError(
      'MEMBER_GONE',
      `${this.name}: path ${path.name} failed (${why}) and could not be fenced; what it was given may still happen`,
      { device: this.name, cause },
    );
    this.#expire(Number.POSITIVE_INFINITY, () => this.#failure as RaidError);
  }

  #countFailure(life: PathLife): void {
    life.failures += 1;
    const { sanPathErr, marginalPath } = this.#settings;
    const now = this.#host.now();
    if (sanPathErr !== null) {
      life.remembered += 1;
      if (life.remembered > sanPathErr.threshold) life.marginalUntilMs = now + sanPathErr.recoveryMs;
    }
    if (marginalPath !== null && life.marginalUntilMs === null) {
      if (now - life.failedAtMs <= marginalPath.doubleFailedMs)
        this.#beginSample(life, marginalPath.sampleMs);
    }
    life.failedAtMs = now;
  }

  #beginSample(life: PathLife, sampleMs: number): void {
    const untilMs = this.#host.now() + sampleMs;
    life.marginalUntilMs = untilMs;
    life.sample = { untilMs, reads: 0, errors: 0 };
    void this.#watch(life, life.sample);
  }

  /** Reads a marginal path ten times a second, and counts what fails. Without a connection a read has failed. */
  async #watch(life: PathLife, sample: NonNullable<PathLife['sample']>): Promise<void> {
    const block = new Uint8Array(this.#probeBytes);
    const isOn = (): boolean => !this.isClosed && life.sample === sample && this.#host.now() < sample.untilMs;
    while (isOn()) {
      await this.#host.sleep(1000 / SAMPLE_HZ, this.#stop.signal);
      if (!isOn()) return;
      sample.reads += 1;
      const { nexus } = life;
      if (nexus === null) {
        sample.errors += 1;
        this.#check(life);
        continue;
      }
      try {
        await this.#within(nexus, (device) => device.read(0, block));
      } catch (failure) {
        sample.errors += 1;
        if (life.nexus === nexus && isPathError(failure) && !this.isClosed)
          this.#fail(life, (failure as Error).message);
      }
    }
  }

  /** Ends, at the latest, when the connection is fenced. */
  #within<T>(nexus: Nexus, run: (device: Device) => Promise<T>): Promise<T> {
    let abandon = (): void => undefined;
    return new Promise<T>((resolve, reject) => {
      abandon = () => reject(new RaidError('MEMBER_GONE', 'the path was fenced', { device: this.name }));
      nexus.abandon.add(abandon);
      run(nexus.connection.device).then(resolve, reject);
    }).finally(() => nexus.abandon.delete(abandon));
  }

  get #probeBytes(): number {
    return Math.min(this.limits.sizeBytes, roundUp(4 * KIB, this.limits.blockBytes));
  }

  /** Time is up for a path that was marginal: whether it has become good. */
  #judgeMarginal(life: PathLife): void {
    const { marginalPath } = this.#settings;
    const { sample } = life;
    if (life.marginalUntilMs === null || this.#host.now() < life.marginalUntilMs) return;
    if (sample !== null && marginalPath !== null) {
      life.sample = null;
      if (sample.errors * 1000 > sample.reads * marginalPath.errorsPermille) {
        life.marginalUntilMs = this.#host.now() + marginalPath.recheckGapMs;
        return;
      }
    } else if (marginalPath !== null) {
      this.#beginSample(life, marginalPath.sampleMs);
      return;
    }
    life.marginalUntilMs = null;
    life.remembered = 0;
    if (life.nexus !== null && (life.state === 'delayed' || life.state === 'shaky')) this.#takeBack(life);
    this.#regroup();
  }

  #check(life: PathLife): void {
    if (life.check !== null || this.isClosed || this.#failure !== null) return;
    const check = this.#newCheck();
    life.check = check;
    // Nobody waits for it: close does not, either, and a connection that comes too late is closed.
    void (life.nexus === null ? this.#reconnect(life, check) : this.#ask(life, life.nexus))
      .catch((failure: unknown) => {
        if (life.check === check)
          this.#fail(life, failure instanceof Error ? failure.message : String(failure));
      })
      .finally(() => {
        if (life.check === check) life.check = null;
      });
  }

  #newCheck(): Check {
    return { sinceTick: this.#tick, unwanted: new AbortController() };
  }

  #giveUp(life: PathLife): void {
    life.check?.unwanted.abort();
    life.check = null;
  }

  async #reconnect(life: PathLife, check: Check): Promise<void> {
    const connection = await life.path.connect(check.unwanted.signal).catch((cause: unknown) => {
      if (cause instanceof RaidError && cause.code === 'WRITE_MAYBE_APPLIED')
        this.#endFor(life, cause.message, cause);
      throw cause;
    });
    const isLate = life.check !== check || this.isClosed;
    const same =
      connection.identity === this.#identity && connection.device.limits.sizeBytes === this.limits.sizeBytes;
    if (isLate || !same) {
      await connection.device.close();
      if (isLate) return;
      throw new RaidError('MEMBER_GONE', `it leads to ${connection.identity} and not to ${this.#identity}`, {
        device: this.name,
      });
    }
    const nexus = new Nexus(connection);
    life.nexus = nexus;
    this.#usable = null;
    if (life.state === 'down') life.state = 'pending';
    await this.#ask(life, nexus);
  }

  async #ask(life: PathLife, nexus: Nexus): Promise<void> {
    const startedMs = this.#host.now();
    const verdict = await this.#verdict(nexus);
    if (life.nexus !== nexus || this.isClosed) return;
    if (verdict === 'down')
      throw new RaidError('MEMBER_GONE', `its checker says down`, { device: this.name });
    const { prio } = this.#settings;
    if (prio.kind === 'path_latency') {
      life.latenciesMs = [...life.latenciesMs, this.#host.now() - startedMs].slice(-prio.ioCount);
    }
    if (verdict === 'ghost') {
      life.state = 'ghost';
      this.#usable = null;
      life.why = 'it is standby';
      this.#failback(null);
    } else {
      if (!life.isCompared) await this.#compare(life, nexus);
      if (life.nexus !== nexus || this.isClosed) return;
      this.#forgetOne(life);
      // A shaky one works; it is only no longer so where somebody has said that it is not marginal.
      const isForgiven = life.state === 'shaky' && life.marginalUntilMs === null;
      if (isForgiven || !this.#works(life.index)) this.#takeBack(life);
    }
    life.checkEveryMs = Math.min(2 * life.checkEveryMs, this.#settings.maxPollingMs);
    life.nextCheckMs = startedMs + life.checkEveryMs;
  }

  /**
   * The ends of the data, as when it was opened. Another path is read before and after: where that is not the same twice,
   * somebody writes there, and nothing is known. Where no other path works there is nothing to compare with.
   */
  async #compare(life: PathLife, nexus: Nexus): Promise<void> {
    for (let round = 0; round < COMPARED_MOST; round += 1) {
      const other = this.#lives.find((each) => each !== life && each.isCompared && this.#works(each.index));
      const known = other?.nexus ?? null;
      if (known === null) return;
      const before = await this.#within(known, endsOf).catch(() => null);
      const found = await this.#within(nexus, endsOf);
      const after = await this.#within(known, endsOf).catch(() => null);
      // Those sectors cannot be read, or the path that was known has failed meanwhile.
      if (before === null || after === null || found === null) return;
      if (Buffer.compare(before, found) === 0) {
        life.isCompared = true;
        return;
      }
      if (Buffer.compare(before, after) !== 0) continue;
      throw new RaidError('MEMBER_GONE', 'it leads to other data: its first or last bytes differ', {
        device: this.name,
      });
    }
    throw new RaidError(
      'MEMBER_GONE',
      'whether it leads to the same data is not known yet: the ends are written',
      {
        device: this.name,
      },
    );
  }

  /** No path works, and one is only standby: it is made active. False: there is none, or it does not become so. */
  async #activateGhost(): Promise<boolean> {
    for (const { paths } of this.#groups) {
      for (const life of paths.map((index) => this.#life(index))) {
        const { nexus } = life;
        if (life.state !== 'ghost' || nexus?.connection.activate === undefined) continue;
        this.#activation ??= this.#activate(life, nexus).finally(() => {
          this.#activation = null;
        });
        await this.#activation;
        return this.#lives.some(({ index }) => this.#works(index));
      }
    }
    return false;
  }

  /** What does not become active is down until its next check. Ends when the checker's time is up, at the latest. */
  #activate(life: PathLife, nexus: Nexus): Promise<void> {
    return this.#during(life, nexus, async () => {
      await this.#within(nexus, () => nexus.connection.activate?.() ?? Promise.resolve());
      await this.#ask(life, nexus);
      if (life.state === 'ghost')
        throw new RaidError('MEMBER_GONE', 'it stays standby', { device: this.name });
    });
  }

  /** As a check, whose time is limited; if it fails, so does the path. */
  async #during(life: PathLife, nexus: Nexus, work: () => Promise<void>): Promise<void> {
    const check = this.#newCheck();
    life.check = check;
    try {
      await work();
    } catch (failure) {
      if (life.nexus === nexus && !this.isClosed) this.#fail(life, (failure as Error).message);
    } finally {
      if (life.check === check) life.check = null;
    }
  }

  #verdict(nexus: Nexus): Promise<'up' | 'ghost' | 'down'> {
    return this.#within(nexus, async (device) => {
      const { checker } = this.#settings;
      if (checker === 'directio' || checker === 'readsector0') {
        await device.read(0, new Uint8Array(this.#probeBytes));
      } else if (checker === 'tur') {
        return (await nexus.connection.ready?.()) ?? 'up';
      }
      return 'up';
    });
  }

  #forgetOne(life: PathLife): void {
    const { sanPathErr } = this.#settings;
    if (sanPathErr === null || life.remembered === 0) return;
    life.checksToForget -= 1;
    if (life.checksToForget > 0) return;
    life.checksToForget = sanPathErr.forgetChecks;
    life.remembered -= 1;
  }

  /** It works. A marginal one comes back late, or into the marginal group, or at once where nothing else works. */
  #takeBack(life: PathLife): void {
    const isMarginal = life.marginalUntilMs !== null;
    this.#usable = null;
    const isAlone = !this.#lives.some(({ index }) => this.#works(index));
    if (isMarginal && !this.#settings.marginalGroups && !isAlone) {
      life.state = 'delayed';
      life.why = 'it kept failing';
      return;
    }
    life.state = isMarginal ? 'shaky' : 'up';
    life.why = isMarginal ? 'it kept failing' : null;
    life.checkEveryMs = this.#settings.pollingMs;
    this.#selector.cameBack(life.index);
    this.#regroup();
    this.#failback(life);
    this.#noPathSinceMs = null;
    this.#release();
  }

  /** The last path that worked is gone: one that is only kept out is better than none. */
  #takeBackLast(): void {
    if (this.#lives.some(({ index }) => this.#works(index))) return;
    const delayed = this.#lives.find(({ state, nexus }) => state === 'delayed' && nexus !== null);
    if (delayed !== undefined) this.#takeBack(delayed);
  }

  async #keepTime(): Promise<void> {
    while (!this.isClosed) {
      await this.#host.sleep(this.#tickMs, this.#stop.signal);
      if (this.isClosed) return;
      this.#tick += 1;
      this.#look();
    }
  }

  #isOverdue(
    { nexus }: PathLife,
    isSilent: (since: { readonly sinceTick: number }, ticks: number) => boolean,
  ): boolean {
    if (nexus === null) return false;
    return nexus.attempts.some((attempt) => isSilent(attempt, this.#ioTimeoutTicks));
  }

  #look(): void {
    const now = this.#host.now();
    for (const life of this.#lives) {
      const isSilent = (since: { readonly sinceTick: number }, ticks: number): boolean =>
        this.#tick - since.sinceTick > ticks;
      if (this.#isOverdue(life, isSilent)) {
        this.#fail(life, 'a request was not answered');
      } else if (life.check !== null && isSilent(life.check, this.#checkerTimeoutTicks)) {
        this.#fail(
          life,
          life.nexus === null ? 'it could not be reached in time' : 'its checker was not answered',
        );
      }
      this.#judgeMarginal(life);
      if (life.nextCheckMs <= now) this.#check(life);
    }
    this.#takeBackLast();
    this.#regroup();
    this.#failback(null);
    this.#expire(now, () => this.#noPathError());
  }
}

/** What a path has shown of itself when the device was opened. */
interface Probe {
  readonly connection: PathConnection | null;
  readonly state: PathState;
  readonly why: string | null;
  /** The first and the last bytes; null where they cannot be read. */
  readonly ends: Uint8Array | null;
}

/** Ends a tick after one path was found up, or when all have answered or their time is over. */
function probeAll(paths: readonly Path[], options: MultipathOptions): Promise<readonly Probe[]> {
  const { host, tickMs = 1000 } = options;
  /** What those do who are not waited for any longer. */
  const leaving: (() => void)[] = [];
  const over = new AbortController();
  let isUp = false;
  const probes = paths.map(async (path) => {
    const found = await probe(path, options, (leave) => leaving.push(leave));
    if (found.state === 'up' && !isUp) {
      isUp = true;
      void host.sleep(tickMs, over.signal).then(() => {
        for (const leave of leaving) leave();
      });
    }
    return found;
  });
  return Promise.all(probes).finally(() => over.abort());
}

/**
 * Never rejects. A path that does not answer in the time that its checker has is down, and pending where others do not wait
 * so long; what comes later is closed.
 */
function probe(
  path: Path,
  { host, settings }: MultipathOptions,
  whenEnough: (leave: () => void) => void,
): Promise<Probe> {
  const without = (state: PathState, why: string): Probe => ({ connection: null, state, why, ends: null });
  const says = (failure: unknown): string => (failure instanceof Error ? failure.message : String(failure));
  return new Promise((resolve) => {
    let connection: PathConnection | null = null;
    let isLate = false;
    const answered = new AbortController();
    const unwanted = new AbortController();
    const look = async (): Promise<Probe> => {
      connection = await path.connect(unwanted.signal);
      if (isLate) throw new RaidError('MEMBER_GONE', 'it came too late');
      const verdict = settings.checker === 'tur' ? ((await connection.ready?.()) ?? 'up') : 'up';
      if (verdict === 'down') throw new RaidError('MEMBER_GONE', 'its checker says down');
      if (verdict === 'ghost') return { connection, state: 'ghost', why: 'it is standby', ends: null };
      return { connection, state: 'up', why: null, ends: await endsOf(connection.device) };
    };
    look()
      .then(
        (found) => {
          if (!isLate) resolve(found);
        },
        async (failure: unknown) => {
          if (!isLate) await connection?.device.close();
          resolve(without('down', says(failure)));
        },
      )
      .finally(async () => {
        answered.abort();
        if (isLate) await connection?.device.close();
      });
    const leave = (state: PathState, why: string): void => {
      if (answered.signal.aborted || isLate) return;
      isLate = true;
      unwanted.abort();
      resolve(without(state, why));
      void connection?.device.close();
    };
    whenEnough(() => leave('pending', 'it has not answered yet'));
    void host
      .sleep(settings.checkerTimeoutMs, answered.signal)
      .then(() => leave('down', 'it did not answer in time'));
  });
}

/** The same identity, the same shape, and, as far as both ends of it tell, the same content. */
function checkSameData(name: string, paths: readonly Path[], probes: readonly Probe[]): void {
  const found = probes.flatMap(({ connection, ends }, index) =>
    connection === null ? [] : [{ connection, ends, path: paths[index]?.name ?? '' }],
  );
  const [first, ...others] = found;
  if (first === undefined) return;
  const { identity, device } = first.connection;
  const { sizeBytes, blockBytes, readOnly } = device.limits;
  const witness = found.find(({ ends }) => ends !== null);
  for (const { connection, ends, path } of others) {
    const { limits } = connection.device;
    const refuse = (than: string, what: string): RaidError =>
      new RaidError(
        'BAD_ARGUMENT',
        `${name}: the paths ${than} and ${path} lead to different data: ${what}`,
        {
          device: name,
        },
      );
    if (connection.identity !== identity) throw refuse(first.path, `${identity} and ${connection.identity}`);
    if (limits.sizeBytes !== sizeBytes || limits.blockBytes !== blockBytes || limits.readOnly !== readOnly) {
      const shape = (of: Limits): string =>
        `${of.sizeBytes} bytes in blocks of ${of.blockBytes}${of.readOnly ? ', read-only' : ''}`;
      throw refuse(first.path, `${shape(device.limits)}; ${shape(limits)}`);
    }
    if (ends === null || witness === undefined || witness.ends === null) continue;
    if (Buffer.compare(witness.ends, ends) !== 0) {
      throw refuse(witness.path, `both say ${identity}, and their first or last bytes differ`);
    }
  }
}

/** A sector that cannot be read is the same by every path, and no reason to do without them. */
async function endsOf(device: Device): Promise<Uint8Array | null> {
  const { sizeBytes, blockBytes } = device.limits;
  const lengthBytes = Math.min(sizeBytes, roundUp(4 * KIB, blockBytes));
  const ends = new Uint8Array(2 * lengthBytes);
  try {
    await device.read(0, ends.subarray(0, lengthBytes));
    await device.read(sizeBytes - lengthBytes, ends.subarray(lengthBytes));
    return ends;
  } catch (failure) {
    if (isPathError(failure)) throw failure;
    return null;
  }
}
