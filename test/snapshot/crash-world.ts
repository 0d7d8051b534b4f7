/**
 * Histories on simulated disks, cut short by the power after any request to a disk, and judged after each opening.
 *
 * What must hold: a snapshot that was taken is its image, to the byte, or, where the store is small, invalid; one whose taking or
 * deletion was under way is that or is not there. Of the origin every sector is what was last flushed or something
 * written since. A rollback that was under way has not begun, or is complete. What differs from a point is named, or
 * the answer is `unknown`.
 */
import { InvariantViolation } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { Clock, Process, Stuck } from '../../lib/sim/clock.ts';
import { Disk, type Keep } from '../../lib/sim/disk.ts';
import { SnapshotOrigin } from '../../lib/snapshot/origin.ts';
import { KIB } from '../../lib/units.ts';
import type { Random } from '../conformance/seed.ts';
import { contentOf, expectSame, imageOf, randomPiece, unlessInvalid } from './world.ts';

const SIZE = 62 * KIB;
const SECTOR = 512;
const ID = { origin: 'array' };

/** What a power cut keeps of what was not flushed, on the origin and on the store. */
export const cuts = [
  'nothing',
  'everything',
  'origin only',
  'store only',
  'some sectors',
  'some writes',
] as const;
export type Cut = (typeof cuts)[number];

/** Broken on purpose: a world that judges must catch each. */
export const mutants = [
  'what a write saves is not flushed',
  'the origin is not flushed',
  'a flush leaves out what is held',
] as const;
export type Mutant = (typeof mutants)[number];

export interface Plan {
  readonly seed: number;
  readonly mutant?: Mutant | undefined;
  readonly limitBytes: number;
  readonly steps: number;
  /** Requests to disks after which the power goes, one number for each life but the last. */
  readonly crashes: readonly number[];
  readonly cut: Cut;
}

export interface Outcome {
  /** Lives that did end in a crash. */
  readonly crashed: number;
  readonly invalid: number;
}

interface Kept {
  readonly image: Buffer;
  /** Being taken or deleted when the power went. */
  isSettled: boolean;
}

class Countdown {
  left = Number.POSITIVE_INFINITY;
  process: Process | null = null;

  tick(): void {
    this.left -= 1;
    if (this.left === 0) this.process?.kill();
  }
}

class CrashWorld {
  readonly clock: Clock;
  readonly random: Random;
  readonly countdown = new Countdown();
  readonly disks: readonly [Disk, Disk];
  readonly plan: Plan;
  /** What the origin reads as, if nothing is lost. */
  readonly model = Buffer.alloc(SIZE);
  /** Of each sector what a crash may leave, besides the model. */
  readonly older: Buffer[][] = Array.from({ length: SIZE / SECTOR }, () => []);
  readonly kept = new Map<string, Kept>();
  readonly points = new Map<string, Buffer>();
  rollingBackTo: Buffer | null = null;
  isWriting = false;
  origin!: SnapshotOrigin;
  #names = 0;

  constructor(plan: Plan) {
    this.plan = plan;
    this.random = seededRandom(plan.seed);
    this.clock = new Clock(plan.seed);
    const disk = (name: string, sizeBytes: number) => {
      const made = new Disk({ clock: this.clock, name, sizeBytes });
      const write = made.write.bind(made);
      const flush = made.flush.bind(made);
      made.write = (flight, fua) => {
        write(flight, fua);
        this.countdown.tick();
      };
      made.flush = () => {
        flush();
        this.countdown.tick();
      };
      return made;
    };
    this.disks = [disk('origin', SIZE), disk('store', 1024 * KIB)];
  }

  get #devices() {
    const process = this.countdown.process as Process;
    const [origin, store] = [this.disks[0].open(process), this.disks[1].open(process)];
    if (this.plan.mutant === 'what a write saves is not flushed') {
      const flush = store.flush.bind(store);
      store.flush = () => (this.isWriting ? Promise.resolve() : flush());
    }
    if (this.plan.mutant === 'the origin is not flushed') origin.flush = () => Promise.resolve();
    return [origin, store, process] as const;
  }

  /** False where the power went. */
  async live(requests: number, work: () => Promise<void>): Promise<boolean> {
    this.countdown.process = new Process(this.clock);
    this.countdown.left = requests;
    try {
      await this.clock.drive(work(), 60_000);
      return true;
    } catch (cause) {
      if (cause instanceof Stuck && !this.countdown.process.isAlive) return false;
      throw cause;
    }
  }

  async create(): Promise<void> {
    const { limitBytes } = this.plan;
    const made = await SnapshotOrigin.create(...this.#devices, { ...ID, limitBytes });
    await made.close();
  }

  async open(): Promise<void> {
    const devices = this.#devices;
    this.origin = await SnapshotOrigin.open(...devices, ID);
    if (this.plan.mutant === 'a flush leaves out what is held') this.origin.flush = () => devices[0].flush();
    await this.judge();
  }

  async run(): Promise<void> {
    if (this.kept.size === 0) await this.#take();
    for (let step = 0; step < this.plan.steps; step += 1) await this.#step();
    await this.origin.close();
  }

  async #step(): Promise<void> {
    const { random, origin, kept } = this;
    const names = [...kept.keys()];
    const name = names[random(names.length)] ?? '';
    const known = kept.get(name);
    const dice = random(100);
    if (dice < 50) {
      this.isWriting = true;
      await Promise.all(this.#writes());
      this.isWriting = false;
    } else if (dice < 56) {
      await origin.flush();
      this.#settle();
    } else if (dice < 74 || known === undefined) {
      await this.#take();
    } else if (dice < 86) {
      known.isSettled = false;
      const deleting = origin.delete(name, { keepTracking: random(2) === 0 });
      await Promise.all([deleting, ...(random(2) === 0 ? this.#writes() : [])]);
      kept.delete(name);
    } else {
      this.rollingBackTo = known.image;
      if (await unlessInvalid(() => origin.rollback(name))) {
        this.model.set(known.image);
        this.#settle();
      }
      this.rollingBackTo = null;
    }
  }

  /** Over each other too, as long as they write the same. */
  #writes(): Promise<void>[] {
    const { offsetBytes, bytes } = randomPiece(this.random, SIZE, SECTOR);
    for (let at = 0; at < bytes.byteLength; at += SECTOR) {
      const place = offsetBytes + at;
      this.older[place / SECTOR]?.push(Buffer.from(this.model.subarray(place, place + SECTOR)));
    }
    this.model.set(bytes, offsetBytes);
    const half = Math.floor(bytes.byteLength / 2 / SECTOR) * SECTOR;
    const writes = [this.origin.write(offsetBytes, bytes)];
    if (half > 0) writes.push(this.origin.write(offsetBytes, bytes.subarray(0, half)));
    if (this.random(3) === 0) writes.push(this.origin.write(offsetBytes + half, bytes.subarray(half)));
    return writes;
  }

  async #take(): Promise<void> {
    if (this.kept.size > 5) return;
    this.#names += 1;
    const name = `s${this.#names}`;
    // Writes that are under way when it is asked for are in it.
    const writes = this.random(2) === 0 ? this.#writes() : [];
    const kept: Kept = { image: Buffer.from(this.model), isSettled: false };
    this.kept.set(name, kept);
    const { point } = await this.origin.take(name);
    await Promise.all(writes);
    kept.isSettled = true;
    this.points.set(point, kept.image);
    this.#settle();
  }

  #settle(): void {
    for (const older of this.older) older.length = 0;
  }

  cutPower(): void {
    const { cut } = this.plan;
    const { random } = this;
    for (const [index, disk] of this.disks.entries()) {
      const all: Keep = () => true;
      const none: Keep = () => false;
      const lots = new Map<number, boolean>();
      const byWrite: Keep = ({ bytes }) => {
        const key = bytes.byteOffset + bytes.byteLength;
        if (!lots.has(key)) lots.set(key, random(2) === 0);
        return lots.get(key) as boolean;
      };
      const keeps: Readonly<Record<Cut, Keep>> = {
        nothing: none,
        everything: all,
        'origin only': index === 0 ? all : none,
        'store only': index === 1 ? all : none,
        'some sectors': () => random(2) === 0,
        'some writes': byWrite,
      };
      disk.powerCut(keeps[cut]);
    }
  }

  /** After an opening: what is there is possible, and from here on it is what must stay. */
  async judge(): Promise<void> {
    const { origin, model, kept } = this;
    const seen = await contentOf(origin);
    const hasArrived = this.rollingBackTo !== null && Buffer.compare(seen, this.rollingBackTo) === 0;
    for (let at = 0; at < SIZE && !hasArrived; at += SECTOR) {
      const sector = seen.subarray(at, at + SECTOR);
      const possible = [model.subarray(at, at + SECTOR), ...(this.older[at / SECTOR] ?? [])];
      if (!possible.some((each) => each.equals(sector)))
        throw new InvariantViolation(`the origin holds at ${at} what was never written there`);
    }
    model.set(seen);
    this.rollingBackTo = null;
    this.#settle();
    await this.#judgeSnapshots();
    for (const [point, image] of this.points) {
      const changed = origin.changedSince(point);
      if (changed === 'unknown') continue;
      const rest = Buffer.from(seen);
      for (const { offsetBytes, lengthBytes } of changed)
        rest.set(image.subarray(offsetBytes, offsetBytes + lengthBytes), offsetBytes);
      expectSame(`not named as changed since ${point}`, rest, image);
    }
    for (const { name, state } of origin.list()) {
      if (state !== 'tracking' && !kept.has(name)) throw new InvariantViolation(`${name} came back`);
    }
  }

  async #judgeSnapshots(): Promise<void> {
    for (const [name, each] of this.kept) {
      const info = this.origin.list().find((found) => found.name === name && found.state !== 'tracking');
      if (info === undefined) {
        if (each.isSettled) throw new InvariantViolation(`${name} is not there any more`);
        this.kept.delete(name);
        continue;
      }
      each.isSettled = true;
      this.points.set(info.point, each.image);
      const seen = await imageOf(this.origin, name);
      if (seen !== null) expectSame(name, seen, each.image);
    }
  }

  get invalid(): number {
    return this.origin.list().filter(({ state }) => state === 'invalid').length;
  }
}

export async function runCrash(plan: Plan): Promise<Outcome> {
  const world = new CrashWorld(plan);
  try {
    return await runPlan(world, plan);
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`${message}\n\nplan: ${JSON.stringify(plan)}`, { cause });
  }
}

async function runPlan(world: CrashWorld, plan: Plan): Promise<Outcome> {
  let crashed = 0;
  await world.live(Number.POSITIVE_INFINITY, () => world.create());
  for (const requests of plan.crashes) {
    const isDone = await world.live(requests, async () => {
      await world.open();
      await world.run();
    });
    if (isDone) break;
    crashed += 1;
    world.cutPower();
  }
  let invalid = 0;
  await world.live(Number.POSITIVE_INFINITY, async () => {
    await world.open();
    ({ invalid } = world);
    await world.origin.close();
  });
  return { crashed, invalid };
}

/** A cut after every request to a disk, until the history comes to its end; the life after it is cut short as well. */
export async function everyCrash(
  seed: number,
  limitBytes: number,
  steps: number,
  tried: readonly Cut[] = cuts,
  mutant?: Mutant,
): Promise<Outcome> {
  const sum = { crashed: 0, invalid: 0 };
  for (const cut of tried) {
    for (let requests = 1; ; requests += 1) {
      const second = 1 + ((seed + requests * 7) % 40);
      const plan: Plan = { seed, mutant, limitBytes, steps, crashes: [requests, second], cut };
      const { crashed, invalid } = await runCrash(plan);
      sum.crashed += crashed;
      sum.invalid += invalid;
      if (crashed === 0) break;
    }
  }
  return sum;
}
