/**
 * A LUN and wires to it, as bad as wires can be: a request lands on the data at one moment and is answered at another. What
 * a broken wire was given may land late, whether its sender was told of an error or of nothing at all; and a late read lands in
 * the buffer that it was given. Only a fence (or a close) keeps what has not landed from landing.
 */
import { scatter } from '../../lib/device/buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from '../../lib/device/device.ts';
import { InFlight } from '../../lib/device/in-flight.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import type { Path, PathConnection } from '../../lib/multipath/device.ts';
import type { PathFacts } from '../../lib/multipath/select.ts';
import type { Clock } from '../../lib/sim/clock.ts';

export const BLOCK_BYTES = 512;

export class Lun {
  readonly memory: MemoryDevice;
  readonly identity: string;

  constructor(sizeBytes: number, identity = 'lun') {
    this.memory = new MemoryDevice({ sizeBytes, blockBytes: BLOCK_BYTES });
    this.identity = identity;
  }
}

/** `error`: requests fail soon; `silent`: they are never answered. Either way they may land. */
export type Health = 'fine' | 'error' | 'silent';

export interface WireOptions {
  readonly clock: Clock;
  readonly latencyMs?: number;
  readonly facts?: Omit<PathFacts, 'name'>;
  /** What has not landed lands all the same. */
  readonly fenceLies?: boolean;
  readonly fenceFails?: boolean;
  /** Closing waits for what was not answered, as with a server that may be only slow. */
  readonly closeWaits?: boolean;
  /** Default: up to 80. */
  readonly fenceMs?: number;
}

export class Wire implements Path {
  readonly name: string;
  readonly lun: Lun;
  readonly clock: Clock;
  readonly options: WireOptions;
  health: Health = 'fine';
  /** It can be connected and says that it is up, whatever its health: a checker that lies. */
  lies = false;
  says: 'up' | 'ghost' | 'down' = 'up';
  alua: PathFacts['alua'];
  latencyMs: number;
  /** Requests that reached it. */
  requests = 0;
  connects = 0;
  /** Where writes went, in the order in which it got them. */
  readonly written: number[] = [];
  readonly sentAtMs: number[] = [];
  readonly fencedAtMs: number[] = [];
  identity: string;

  constructor(name: string, lun: Lun, options: WireOptions) {
    this.name = name;
    this.lun = lun;
    this.clock = options.clock;
    this.options = options;
    this.latencyMs = options.latencyMs ?? 1;
    this.alua = options.facts?.alua;
    this.identity = lun.identity;
  }

  facts(): Omit<PathFacts, 'name'> {
    return { ...this.options.facts, ...(this.alua === undefined ? {} : { alua: this.alua }) };
  }

  async connect(): Promise<PathConnection> {
    this.connects += 1;
    if (this.health === 'error' && !this.lies) throw new RaidError('MEMBER_GONE', `${this.name} is broken`);
    if (this.health === 'silent' && !this.lies) return new Promise(() => undefined);
    const device = new WireDevice(this);
    return {
      device,
      identity: this.identity,
      ready: async () => {
        if (this.lies || this.health === 'fine') return this.says;
        return this.health === 'error' ? 'down' : new Promise(() => undefined);
      },
      fence: () => device.fence(),
    };
  }
}

interface Frame {
  hasLanded: boolean;
  readonly fail: (error: RaidError) => void;
}

class WireDevice extends Device {
  override readonly direct = null;
  readonly #wire: Wire;
  readonly #frames = new Set<Frame>();
  readonly #inFlight = new InFlight();
  #isCut = false;

  constructor(wire: Wire) {
    super();
    this.#wire = wire;
  }

  override get name(): string {
    return this.#wire.name;
  }

  override get limits(): Limits {
    return this.#wire.lun.memory.limits;
  }

  async fence(): Promise<void> {
    const { clock, options } = this.#wire;
    await new Promise<void>((resolve) => clock.after(options.fenceMs ?? clock.random(80), resolve));
    this.#wire.fencedAtMs.push(clock.nowMs);
    if (options.fenceLies !== true) this.#cut();
    if (options.fenceFails === true)
      throw new RaidError('MEMBER_GONE', 'the array does not know this command');
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#send(async (memory) => {
      const bytes = new Uint8Array(totalBytes(targets));
      await memory.read(offsetBytes, bytes);
      scatter(bytes, targets, 0);
    });
  }

  protected override doWrite(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    this.#wire.written.push(offsetBytes);
    // As it is at this moment: a wire has sent it.
    const sent = sources.map((source) => source.slice());
    return this.#send((memory) => memory.write(offsetBytes, sent));
  }

  protected override doFlush(): Promise<void> {
    return this.#send((memory) => memory.flush());
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#send((memory) => memory.discard(offsetBytes, lengthBytes));
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#send((memory) => memory.writeZeroes(offsetBytes, lengthBytes, options));
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#send((memory) => memory.blockStatus(offsetBytes, lengthBytes));
  }

  protected override doResize(): Promise<void> {
    throw new RaidError('NOT_SUPPORTED', 'a LUN has the size that it has');
  }

  protected override async doClose(): Promise<void> {
    if (this.#wire.options.closeWaits !== true) this.#cut();
    await this.#inFlight.whenIdle();
  }

  #cut(): void {
    this.#isCut = true;
    for (const frame of this.#frames) frame.fail(new RaidError('CLOSED', `${this.name} was cut`));
    this.#frames.clear();
  }

  #send<T>(land: (memory: MemoryDevice) => Promise<T>): Promise<T> {
    const wire = this.#wire;
    const { clock } = wire;
    wire.requests += 1;
    wire.sentAtMs.push(clock.nowMs);
    return this.#inFlight.run(
      () =>
        new Promise<T>((resolve, reject) => {
          const frame: Frame = { hasLanded: false, fail: reject };
          this.#frames.add(frame);
          const landsInMs =
            wire.health === 'fine'
              ? (wire.latencyMs * (1 + clock.random(1000) / 1000)) / 2
              : clock.random(clock.random(2) === 0 ? 100 : 6000);
          if (wire.health === 'error') {
            clock.after(clock.random(3), () => {
              // Whoever is told that it failed does not know that it is still on its way.
              reject(new RaidError('MEMBER_GONE', `${wire.name} is broken`, { injected: true }));
            });
          }
          clock.after(landsInMs, async () => {
            const isLost = wire.health !== 'fine' && clock.random(2) === 0;
            if ((this.#isCut && wire.options.fenceLies !== true) || isLost) return;
            const result = await land(wire.lun.memory);
            clock.after(wire.latencyMs / 2, () => {
              if (this.#isCut || wire.health === 'silent') return;
              this.#frames.delete(frame);
              if (wire.health === 'error') reject(new RaidError('MEMBER_GONE', `${wire.name} is broken`));
              else resolve(result);
            });
          });
        }),
    );
  }
}
