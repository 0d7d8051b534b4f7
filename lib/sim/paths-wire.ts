/**
 * A path with somebody who looks: what is given to it, by whom, and whether it is over. And who can make its checker lie:
 * then it connects, says that it is ready and reads its first page, and all else fails, done or not, or is never answered.
 */
import { Device, type Extent, type Limits, type ZeroOptions } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import type { Path, PathConnection } from '../multipath/device.ts';
import { KIB } from '../units.ts';
import type { Lie } from './paths.ts';

/** A request of a client; no checker's. */
export interface Asked {
  /** In the order in which they were asked for. */
  readonly number: number;
  readonly sinceMs: number;
  /** When a path was given it first. */
  firstAtMs: number | null;
  /** Paths that were given it and at which it is not over. */
  on: number;
}

export interface Watch {
  /** The request that these buffers belong to, if it is a client's. */
  asked(buffers: readonly Uint8Array[]): Asked | undefined;
  arrived(wire: Wire, asked: Asked): void;
  /** The fabric has fenced the path; before time moves, nothing may be left of what it was given. */
  fenced(wire: Wire, left: () => Asked | undefined): void;
}

/** What a checker reads. */
const CHECKED_BYTES = 4 * KIB;

export class Wire implements Path {
  readonly below: Path;
  readonly watch: Watch;
  lie: Lie | null = null;

  constructor(below: Path, watch: Watch) {
    this.below = below;
    this.watch = watch;
  }

  get name(): string {
    return this.below.name;
  }

  facts(): ReturnType<NonNullable<Path['facts']>> {
    return this.below.facts?.() ?? {};
  }

  async connect(): Promise<PathConnection> {
    const below = await this.below.connect();
    const device = new WireDevice(this, below.device);
    const { identity } = below;
    return {
      device,
      identity,
      ready: async () => (this.lie === null ? ((await below.ready?.()) ?? 'up') : 'up'),
      activate: async () => await below.activate?.(),
      fence: () => below.fence().finally(() => device.fenced()),
    };
  }
}

class WireDevice extends Device {
  override readonly direct = null;
  readonly #wire: Wire;
  readonly #below: Device;
  /** Requests that are on their way here, and what was given to the fabric and has not come back. */
  readonly #asked = new Set<Asked>();
  readonly #given = new Set<Asked>();
  readonly #unanswered = new Set<(error: RaidError) => void>();

  constructor(wire: Wire, below: Device) {
    super();
    this.#wire = wire;
    this.#below = below;
  }

  override get name(): string {
    return this.#wire.name;
  }

  override get limits(): Limits {
    return this.#below.limits;
  }

  fenced(): void {
    const given = [...this.#given];
    this.cut();
    this.#wire.watch.fenced(this.#wire, () => given.find((asked) => this.#given.has(asked)));
  }

  /** Nothing of what it was given is left anywhere. */
  cut(): void {
    for (const asked of this.#asked) asked.on -= 1;
    this.#asked.clear();
    const gone = new RaidError('CLOSED', `${this.name} was cut`, { device: this.name });
    for (const fail of this.#unanswered) fail(gone);
    this.#unanswered.clear();
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    const run = (): Promise<void> => this.#below.read(offsetBytes, targets);
    const [first] = targets;
    const isChecker = offsetBytes === 0 && first !== undefined && first.byteLength <= CHECKED_BYTES;
    return this.#give(targets, run, !isChecker);
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    return this.#give(sources, () => this.#below.write(offsetBytes, sources, { fua }));
  }

  protected override doFlush(): Promise<void> {
    return this.#give([], () => this.#below.flush());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#give([], () => this.#below.discard(offsetBytes, lengthBytes));
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#give([], () => this.#below.writeZeroes(offsetBytes, lengthBytes, options));
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#below.blockStatus(offsetBytes, lengthBytes);
  }

  protected override doResize(): Promise<void> {
    throw new RaidError('NOT_SUPPORTED', `${this.name} has the size of what it leads to`);
  }

  protected override async doClose(): Promise<void> {
    const closed = this.#below.close();
    this.cut();
    await closed;
  }

  #give(buffers: readonly Uint8Array[], run: () => Promise<void>, isLiedAbout = true): Promise<void> {
    const asked = this.#wire.watch.asked(buffers);
    if (asked !== undefined) {
      this.#wire.watch.arrived(this.#wire, asked);
      asked.on += 1;
      this.#asked.add(asked);
      this.#given.add(asked);
    }
    const lie = isLiedAbout ? this.#wire.lie : null;
    const done = lie === 'not done' ? Promise.resolve() : run();
    const over = (): void => {
      if (asked === undefined) return;
      this.#given.delete(asked);
      if (this.#asked.delete(asked)) asked.on -= 1;
    };
    done.then(over, over);
    return lie === null ? done : this.#lied(lie, done);
  }

  #lied(lie: Lie, done: Promise<void>): Promise<void> {
    const error = new RaidError('MEMBER_GONE', `${this.name} works, and fails`, {
      device: this.name,
      injected: true,
    });
    if (lie === 'silent') return new Promise((_, fail) => this.#unanswered.add(fail));
    const fail = (): never => {
      throw error;
    };
    return lie === 'late' ? Promise.reject(error) : done.then(fail, fail);
  }
}
