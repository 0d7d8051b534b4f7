/**
 * A life of an array with metadata, made up from a seed: verbs one after the other, writes that are on their way meanwhile,
 * syncs half done, the array closed and opened, or its process gone. What is read is always what was written (I1); nothing
 * that comes out is anything but a `RaidError` that the situation allows; nothing hangs (I16); and in the end a check finds
 * nothing (I9).
 *
 * Members are memories. Those of half of the lives answer after a few turns of the event loop, each time others: that is
 * what brings one thing into the middle of another.
 */
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, type FormOptions, formArray, type Source } from '../../lib/array/form.ts';
import { MemoryDevice, type MemoryOptions } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { KIB, MIB } from '../../lib/units.ts';
import type { Random } from '../conformance/seed.ts';

const HANG_MS = 20_000;

const shapes = [
  { level: 1, disks: 2 },
  { level: 1, disks: 3 },
  { level: 4, disks: 4 },
  { level: 5, disks: 3 },
  { level: 5, disks: 4 },
  { level: 6, disks: 5 },
  { level: 10, disks: 3 },
  { level: 10, disks: 4 },
] as const;

/** What a verb may say no with, since lives are made up without asking whether a verb makes sense. */
const allowed = new Set([
  'LAST_COPY',
  'BUSY',
  'NO_SUCH_MEMBER',
  'BAD_ARGUMENT',
  'EVENTS_DISAGREE',
  'ALREADY_IN_ARRAY',
]);

class Disk extends MemoryDevice {
  readonly #random: Random | null;

  constructor(options: MemoryOptions, random: Random | null) {
    super(options);
    this.#random = random;
  }

  override get direct(): MemoryDevice['direct'] {
    return this.#random === null ? super.direct : null;
  }

  protected override async doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    await this.#dawdle();
    await super.doRead(offsetBytes, targets);
  }

  protected override async doWrite(offsetBytes: number, sources: readonly Uint8Array[]): Promise<void> {
    await this.#dawdle();
    await super.doWrite(offsetBytes, sources);
  }

  async #dawdle(): Promise<void> {
    if (this.#random === null) return;
    for (let turns = this.#random(6); turns > 0; turns -= 1) await Promise.resolve();
    if (this.#random(20) === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

interface Flight {
  readonly offset: number;
  readonly length: number;
  readonly done: Promise<void>;
}

export class Life {
  /** What has happened, for whoever has to find out why. */
  readonly story: string[] = [];
  readonly #random: Random;
  readonly #isSlow: boolean;
  readonly #options: Pick<FormOptions, 'name' | 'driver' | 'heapBytes' | 'windowBytes' | 'autoSync'>;
  readonly #shape: (typeof shapes)[number];
  readonly #diskBytes: number;
  #array!: RaidArray;
  #model!: Buffer;
  #members: Disk[];
  /** Former members. */
  #out: Disk[] = [];
  #flights: Flight[] = [];
  #made = 0;

  constructor(random: Random) {
    this.#random = random;
    this.#shape = shapes[random(shapes.length)] as (typeof shapes)[number];
    this.#diskBytes = (5 + random(3)) * MIB;
    this.#isSlow = random(2) === 0;
    this.#options = {
      name: 'array',
      driver: this.#isSlow ? 'event-loop' : 'inline',
      heapBytes: 8 * MIB,
      // A sync of many steps: what happens between two of them happens here.
      windowBytes: 256 * KIB,
      autoSync: random(2) === 0,
    };
    this.#members = Array.from({ length: this.#shape.disks }, () => this.#newDisk());
  }

  async run(steps: number): Promise<void> {
    await this.#begin();
    for (let step = 0; step < steps; step += 1) await this.#step();
    await this.#settle();
    await this.#inTime('the last rebuild', this.#rebuild());
    await this.#expectContent('at the end');
    let mismatches = 0;
    for await (const { mismatchCount } of this.#array.scrub()) mismatches = mismatchCount;
    if (mismatches > 0) throw new Error(`${mismatches} mismatches at the end`);
    await this.#inTime('close', this.#array.close());
  }

  async #begin(): Promise<void> {
    const { level } = this.#shape;
    const layout = level === 10 ? ['n2', 'f2', 'o2'][this.#random(3)] : undefined;
    const bitmap = this.#random(3) > 0 ? 'internal' : 'none';
    this.#tell(
      `raid${level} ${layout ?? ''} of ${this.#shape.disks}, bitmap ${bitmap}, ${JSON.stringify(this.#options)}`,
    );
    this.#array = await formArray(this.#members.map(sourceOf), {
      ...this.#options,
      level,
      layout,
      bitmap,
      ...(level === 1 ? {} : { chunk: '16K' }),
      ...(bitmap === 'internal' ? { bitmapChunk: '64K' } : {}),
      assumeClean: true,
    });
    this.#model = Buffer.alloc(this.#array.limits.sizeBytes);
  }

  async #step(): Promise<void> {
    const steps = [
      ...[this.#write, this.#write, this.#write, this.#write],
      ...[this.#fail, this.#remove, this.#return, this.#add, this.#replace],
      ...[this.#rebuildSome, this.#rebuildAll, this.#flush, this.#check, this.#reopen, this.#crash],
    ];
    try {
      await (steps[this.#random(steps.length)] as () => Promise<void>).call(this);
    } catch (error) {
      if (!(error instanceof RaidError) || !allowed.has(error.code)) throw error;
      this.#tell(`  ${error.code}`);
    }
  }

  async #write(): Promise<void> {
    for (let count = 0; count < 2; count += 1) {
      const length = 1 + this.#random(this.#random(3) === 0 ? 400_000 : 40_000);
      const offset = this.#random(Math.max(1, this.#model.byteLength - length));
      const meets = (flight: Flight): boolean =>
        offset < flight.offset + flight.length && flight.offset < offset + length;
      if (this.#flights.some(meets)) return;
      const first = this.#random(256);
      const bytes = Buffer.alloc(length);
      for (let index = 0; index < length; index += 1) bytes[index] = first + index * 13 + (index >> 9);
      bytes.copy(this.#model, offset);
      const flight: Flight = { offset, length, done: this.#array.write(offset, bytes) };
      flight.done.catch(() => undefined);
      this.#flights.push(flight);
    }
  }

  async #fail(): Promise<void> {
    const { members } = this.#array;
    const name = members[this.#random(members.length)]?.name ?? '';
    this.#tell(`fail ${name}`);
    await this.#inTime('fail', this.#array.fail(name));
  }

  async #remove(): Promise<void> {
    const takesSpare = this.#random(4) === 0;
    const member = this.#array.members.find(
      ({ state }) => state.state === 'faulty' || (takesSpare && state.state === 'spare'),
    );
    if (member === undefined) return;
    this.#tell(`remove ${member.name}`);
    const device = (await this.#inTime('remove', this.#array.remove(member.name))) as Disk;
    this.#members = this.#members.filter((disk) => disk !== device);
    this.#out.push(device);
  }

  async #return(): Promise<void> {
    const disk = this.#out[this.#random(Math.max(1, this.#out.length))];
    if (disk === undefined) return;
    this.#tell(`re-add ${disk.name}`);
    try {
      await this.#inTime('re-add', this.#array.reAdd(disk, disk.name));
    } catch (error) {
      if (!(error instanceof RaidError) || error.code !== 'EVENTS_DISAGREE') throw error;
      this.#tell('  it missed too much: add');
      await this.#inTime('add', this.#array.add(disk, disk.name));
    }
    this.#out = this.#out.filter((other) => other !== disk);
    this.#members.push(disk);
  }

  async #add(): Promise<void> {
    if (this.#members.length > this.#shape.disks + 2) return;
    const disk = this.#newDisk();
    this.#tell(`add ${disk.name}`);
    await this.#inTime('add', this.#array.add(disk, disk.name));
    this.#members.push(disk);
  }

  async #replace(): Promise<void> {
    const whole = this.#array.members.filter(({ state }) => state.state === 'in_sync');
    const name = whole[this.#random(Math.max(1, whole.length))]?.name;
    if (name === undefined) return;
    this.#tell(`replace ${name}`);
    await this.#inTime('replace', this.#array.replace(name));
  }

  async #rebuildSome(): Promise<void> {
    this.#tell('rebuild some');
    await this.#inTime('rebuild', this.#rebuild(1 + this.#random(4)));
  }

  async #rebuildAll(): Promise<void> {
    this.#tell('rebuild all');
    await this.#inTime('rebuild', this.#rebuild());
  }

  async #rebuild(stepsMax = Number.POSITIVE_INFINITY): Promise<void> {
    let steps = 0;
    for await (const progress of this.#array.rebuild()) {
      if (progress.doneBytes > progress.totalBytes) throw new Error('more is done than there is to do');
      steps += 1;
      if (steps >= stepsMax) return;
    }
  }

  async #flush(): Promise<void> {
    this.#tell('flush');
    await this.#inTime('flush', this.#array.flush());
  }

  async #check(): Promise<void> {
    this.#tell('read all');
    await this.#settle();
    await this.#expectContent('while it runs');
  }

  async #reopen(): Promise<void> {
    this.#tell('close and open');
    await this.#settle();
    await this.#inTime('close', this.#array.close());
    await this.#open(this.#members.map(this.#again), this.#out.map(this.#again), this.#random(2) === 0);
    await this.#expectContent('after it was closed');
  }

  /** Everything that was written is on the members, but nobody has said that it is. */
  async #crash(): Promise<void> {
    this.#tell('kill');
    await this.#settle();
    const old = this.#array;
    const [members, out] = [this.#members.map(this.#again), this.#out.map(this.#again)];
    await this.#inTime('close', old.close());
    await this.#open(members, out, false);
    await this.#expectContent('after it was killed');
  }

  async #open(members: Disk[], out: Disk[], offersFormer: boolean): Promise<void> {
    const sources = [...members, ...(offersFormer ? out : [])].map(sourceOf);
    const open = async (force: boolean): Promise<RaidArray> =>
      (await assembleDevices(sources, { ...this.#options, run: true, force })).array;
    try {
      this.#array = await open(false);
    } catch (error) {
      // Nothing else is a reason to refuse: nobody here has lost more than redundancy covers, or started halves apart.
      if (!(error instanceof RaidError) || error.code !== 'DIRTY_DEGRADED')
        throw new Error(`it does not open again: ${String(error)}`, { cause: error });
      this.#tell('  by force');
      this.#array = await open(true);
    }
    const isTaken = (disk: Disk): boolean => this.#array.members.some(({ name }) => name === disk.name);
    this.#members = [...members, ...(offersFormer ? out.filter(isTaken) : [])];
    this.#out = offersFormer ? out.filter((disk) => !isTaken(disk)) : out;
    this.#tell(`  ${this.#array.state}`);
  }

  /** The same disk with the same content, for another process. */
  readonly #again = (disk: Disk): Disk => this.#diskOn(disk.name, disk.memory.slice(0));

  #newDisk(): Disk {
    this.#made += 1;
    return this.#diskOn(`m${this.#made - 1}`, new SharedArrayBuffer(this.#diskBytes));
  }

  #diskOn(name: string, memory: SharedArrayBuffer): Disk {
    return new Disk({ sizeBytes: memory.byteLength, name, memory }, this.#isSlow ? this.#random : null);
  }

  async #settle(): Promise<void> {
    const flights = this.#flights;
    this.#flights = [];
    for (const { done } of flights) await this.#inTime('a write', done);
  }

  async #expectContent(when: string): Promise<void> {
    const content = Buffer.alloc(this.#model.byteLength);
    await this.#inTime('a read', this.#array.read(0, content));
    if (Buffer.compare(content, this.#model) === 0) return;
    const at = content.findIndex((byte, index) => byte !== this.#model[index]);
    throw new Error(
      `wrong bytes ${when}: byte ${at}, in the piece of 16 KiB number ${Math.floor(at / (16 * KIB))}`,
    );
  }

  #tell(event: string): void {
    this.story.push(event);
  }

  async #inTime<T>(what: string, work: Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error(`${what} has not ended in ${HANG_MS / 1000} s`)), HANG_MS);
    });
    try {
      return await Promise.race([work, late]);
    } finally {
      clearTimeout(timer);
    }
  }
}

function sourceOf(device: Disk): Source {
  return { device, name: device.name, identity: device.name };
}

/** One life; what it throws tells what had happened. */
export async function live(random: Random): Promise<void> {
  const life = new Life(random);
  const unhandled: unknown[] = [];
  const note = (error: unknown): number => unhandled.push(error);
  process.on('unhandledRejection', note);
  try {
    await life.run(25 + random(25));
    if (unhandled.length > 0) throw unhandled[0];
  } catch (error) {
    const message = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
    throw new Error(`${message}\n  ${life.story.join('\n  ')}`, { cause: error });
  } finally {
    process.off('unhandledRejection', note);
  }
}
