/**
 * The array's memory: its md superblocks on the members, and the one queue in which they change.
 *
 * Every change is a pure function from the array's state to the next (md/update.ts). It becomes true in two steps: all
 * superblocks that it concerns are written, and all members written are flushed. Only then has the change happened, and
 * only then does the caller's promise resolve: that is what "recorded durably" means everywhere in this room.
 *
 * A member that comes in, or comes back, is told before those that are here. Cut short between, it is the freshest, and
 * they are one update behind, which is taken for what it is. The other way round their tables would count on one whose own
 * superblock is of the time when it left: an array with a member missing, which does not start by itself.
 *
 * A member whose superblock cannot be written has failed. Its failure is a further change, recorded on those that
 * remain before this one counts as done; so a change either is on every member that the roles table calls good, or
 * those are fewer.
 *
 * One that cannot be missed is *owed* its superblock, and the change rejects: it is cut off. Before anything else the next change
 * makes up for that. Who is owed one is given what the others have, and then all are given one update more, since what was
 * cut off may have been the second of two, which leave a member behind for good.
 *
 * The first change of a life finds members that an update did not reach, and perhaps a slot whose loss nobody has put on
 * record. Both come before it (`level`, `recordLoss`), and so before the first byte of data: see `begin`. And before
 * these a flush of all members: what was read at assembly may be in a cache only, where a process that was killed within an
 * update has left it. Without it, members that were seen to say "not clean", or who has failed, could after a power cut
 * say what they said before, of data written since.
 *
 * Changes are written one after the other: two that overlapped could leave the newer `events` on one member and the older
 * on another, and both would be believed by somebody.
 */
import type { Device } from '../device/device.ts';
import { assert, RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import type { Time } from '../md/record.ts';
import {
  decodeSuperblock1,
  encodeSuperblock1,
  superblock1Faults,
  superblockBytesOf,
} from '../md/superblock1.ts';
import {
  confirm,
  failMember,
  level,
  type MdArray,
  type MdMember,
  recordLoss,
  superblocksToWrite,
  withoutMembers,
} from '../md/update.ts';
import { roundUp, SECTOR_BYTES } from '../units.ts';

/** A change of the array's state: one update, or several, each durable before the next begins. */
export type Change = (array: MdArray, utime: Time) => MdArray | readonly MdArray[];

export interface RecordOptions {
  readonly array: MdArray;
  /** The whole device of a member, superblock and all, by device number. */
  readonly devices: ReadonlyMap<number, Device>;
  readonly host: Host;
  /** What has to be on disk before the superblocks that say so: the bitmap's superblock follows `events`. */
  readonly before?: (next: MdArray) => Promise<void>;
  /** Whether a member that did not take its superblock can be missed; if so, `onFailure` follows. */
  readonly mayMiss: (descriptor: number) => boolean;
  /** Members that failed while a change was written; recorded already. */
  readonly onFailure: (descriptor: number, error: RaidError) => void;
}

interface Failure {
  readonly descriptor: number;
  readonly error: RaidError;
}

export class MdRecord {
  readonly #options: RecordOptions;
  readonly #devices: Map<number, Device>;
  /** By device number, since assembly. */
  readonly #correctedSectors = new Map<number, number>();
  #array: MdArray;
  #isLevel = false;
  /** Members, by device number, that may not say what `#array` does. */
  readonly #owed = new Set<number>();
  #isCutOff = false;
  #hear: ((next: MdArray) => Promise<void>) | null = null;
  #last: Promise<void> = Promise.resolve();

  constructor(options: RecordOptions) {
    this.#options = options;
    this.#array = options.array;
    this.#devices = new Map(options.devices);
  }

  /** What is durable now. */
  get array(): MdArray {
    return this.#array;
  }

  /** A device that a later change brings in. */
  adopt(descriptor: number, device: Device): void {
    this.#devices.set(descriptor, device);
    this.#correctedSectors.delete(descriptor);
  }

  release(descriptor: number): void {
    this.#devices.delete(descriptor);
    this.#correctedSectors.delete(descriptor);
  }

  /** A statistic: it goes with the next superblock that is written, and is not worth one of its own, as in md. */
  countCorrected(descriptor: number, sectors: number): void {
    this.#correctedSectors.set(descriptor, (this.#correctedSectors.get(descriptor) ?? 0) + sectors);
  }

  /** Resolves when the change is durable. Changes are made in the order of the calls. */
  change(change: Change): Promise<void> {
    const done = this.#last.then(() => this.#make(change));
    this.#last = done.catch(() => undefined);
    return done;
  }

  /** Whether every member in use says what the array's memory says. */
  get hasBegun(): boolean {
    return this.#isLevel && !this.#array.hasUnrecordedLoss && !this.#isCutOff;
  }

  /** Whether the last change ended after some of its updates: the next one makes up for it. */
  get isCutOff(): boolean {
    return this.#isCutOff;
  }

  /** Brings the members level, and records whom they lack: what has to come before anything is written to them. */
  begin(): Promise<void> {
    return this.change((array) => array);
  }

  /** Before each change from here on, and once for what is durable now. */
  follow(hear: (array: MdArray) => Promise<void>): Promise<void> {
    const done = this.#last.then(async () => {
      await hear(this.#array);
      this.#hear = hear;
    });
    this.#last = done.catch(() => undefined);
    return done;
  }

  /** All changes so far are durable, or have failed. */
  settled(): Promise<void> {
    return this.#last;
  }

  async #make(change: Change): Promise<void> {
    if (this.#isCutOff) await this.#makeUp();
    if (!this.#isLevel) {
      const failures = await this.#flush();
      const even = level(this.#array);
      if (superblocksToWrite(this.#array, even).length > 0) await this.#applyAll([even]);
      await this.#failAll(failures, 'does not make durable what it holds');
      this.#isLevel = true;
    }
    // Who is not here is put on record before anything that they will have missed.
    if (this.#array.hasUnrecordedLoss) await this.#applyAll(recordLoss(this.#array, this.#now()));
    const changed = change(this.#array, this.#now());
    if (changed === this.#array) return;
    await this.#applyAll('members' in changed ? [changed] : changed);
  }

  async #makeUp(): Promise<void> {
    const owed = this.#array.members.filter(
      ({ state, descriptor }) => state !== 'faulty' && this.#owed.has(descriptor),
    );
    await this.#failAll(await this.#write(owed), 'does not take its superblock');
    // Cut off before who is missing was on record, the next update is the one that says so.
    if (!this.#array.hasUnrecordedLoss) await this.#applyAll([confirm(this.#array, this.#now())]);
    this.#owed.clear();
    this.#isCutOff = false;
  }

  /** Steps that were made one from the other. Who fails while one is written is missing from those after it. */
  async #applyAll(steps: readonly MdArray[]): Promise<readonly number[]> {
    const before = this.#array;
    const failed: number[] = [];
    try {
      for (const step of steps) {
        const next = failed.length === 0 ? step : withoutMembers(step, failed, this.#array, this.#now());
        failed.push(...(await this.#apply(next)));
      }
    } catch (error) {
      if (this.#array !== before) this.#isCutOff = true;
      throw error;
    }
    return failed;
  }

  /** Returns who failed meanwhile. */
  async #apply(next: MdArray): Promise<readonly number[]> {
    await this.#options.before?.(next);
    await this.#hear?.(next);
    const toWrite = superblocksToWrite(this.#array, next);
    const isKnown = ({ descriptor }: MdMember): boolean =>
      this.#array.members.some((member) => member.descriptor === descriptor && member.state !== 'faulty');
    const newcomers = toWrite.filter((member) => !isKnown(member));
    const failures = newcomers.length > 0 ? [...(await this.#write(newcomers))] : [];
    failures.push(...(await this.#write(toWrite.filter(isKnown))));
    this.#array = next;
    if (failures.length === 0) return [];
    // Until these are out on record nobody may go by what memory says: no superblock may say so yet.
    const wasCutOff = this.#isCutOff;
    this.#isCutOff = true;
    try {
      const gone = await this.#failAll(failures, 'does not take its superblock');
      this.#isCutOff = wasCutOff;
      return gone;
    } catch (error) {
      for (const { descriptor } of failures) this.#owed.add(descriptor);
      throw error;
    }
  }

  async #failAll(failures: readonly Failure[], what: string): Promise<readonly number[]> {
    const gone: number[] = [];
    for (const { descriptor, error } of failures) {
      const failed = this.#array.members.find((member) => member.descriptor === descriptor);
      if (failed === undefined || failed.state === 'faulty') continue;
      if (failed.state === 'in_sync' && !this.#options.mayMiss(descriptor)) {
        throw new RaidError(
          'ARRAY_FAILED',
          `${this.#devices.get(descriptor)?.name ?? `device number ${descriptor}`} ${what}, and the array cannot do without it; nothing can be written until it does`,
          { cause: error },
        );
      }
      this.#options.onFailure(descriptor, error);
      const utime = this.#now();
      // The members may just be brought level, and a loss from before not be on record yet.
      const loss = this.#array.hasUnrecordedLoss ? recordLoss(this.#array, utime) : [];
      const steps = [...loss, ...failMember(loss.at(-1) ?? this.#array, descriptor, utime)];
      gone.push(descriptor, ...(await this.#applyAll(steps)));
    }
    return gone;
  }

  /** All members that superblocks count on. */
  async #flush(): Promise<readonly Failure[]> {
    const failures: Failure[] = [];
    await Promise.all(
      this.#array.members.map(async ({ state, descriptor }) => {
        if (state === 'faulty' || state === 'spare') return;
        try {
          await this.#devices.get(descriptor)?.flush();
        } catch (error) {
          if (!(error instanceof RaidError)) throw error;
          failures.push({ descriptor, error });
        }
      }),
    );
    return failures;
  }

  async #write(members: readonly MdMember[]): Promise<readonly Failure[]> {
    const failures: Failure[] = [];
    const encoded = members.map((member) => ({ ...member, bytes: this.#encode(member) }));
    await Promise.all(
      encoded.map(async ({ descriptor, superblock, bytes }) => {
        const device = this.#devices.get(descriptor);
        try {
          if (device === undefined)
            throw new RaidError('MEMBER_GONE', `device number ${descriptor} is not open`);
          // Whole blocks of the device; what follows the superblock in the last one is read back and kept.
          const block = Math.max(SECTOR_BYTES, device.limits.blockBytes);
          const whole = new Uint8Array(roundUp(superblockBytesOf(superblock.devRoles.length), block));
          const at = superblock.superSector * SECTOR_BYTES;
          if (whole.byteLength > bytes.byteLength) await device.read(at, whole);
          whole.set(bytes);
          await device.write(at, whole, { fua: true });
        } catch (error) {
          if (!(error instanceof RaidError)) throw error;
          failures.push({ descriptor, error });
        }
      }),
    );
    return failures;
  }

  /**
   * What is written is what our own reader takes, and that is asked before any member is touched: an array is not locked
   * out of its own disks by a shape that could be recorded and not be opened.
   */
  #encode({ descriptor, superblock }: MdMember): Uint8Array {
    const correctedReads = superblock.correctedReads + (this.#correctedSectors.get(descriptor) ?? 0);
    const bytes = encodeSuperblock1({
      ...superblock,
      correctedReads: Math.min(correctedReads, 0xffff_ffff),
    });
    const device = this.#devices.get(descriptor);
    if (device === undefined) return bytes;
    const memberSectors = Math.floor(device.limits.sizeBytes / SECTOR_BYTES);
    const [fault] = superblock1Faults(decodeSuperblock1(bytes), {
      version: this.#array.version,
      memberSectors,
    });
    assert(
      fault === undefined,
      `device number ${descriptor} can be read with the superblock it gets: ${fault?.message}`,
    );
    return bytes;
  }

  #now(): Time {
    const ms = this.#options.host.wallClock();
    return { seconds: Math.floor(ms / 1000), microseconds: 0 };
  }
}
