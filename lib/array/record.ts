/**
 * The array's memory: its md superblocks on the members, and the one queue in which they change.
 *
 * Every change is a pure function from the array's state to the next (md/update.ts). It becomes true in two steps: all
 * superblocks that it concerns are written, and all members written are flushed. Only then has the change happened, and
 * only then does the caller's promise resolve: that is what "recorded durably" means everywhere in this room.
 *
 * A member whose superblock cannot be written has failed. Its failure is a further change, recorded on those that
 * remain before this one counts as done; so a change either is on every member that the roles table calls good, or
 * those are fewer.
 *
 * Changes are written one after the other: two that overlapped could leave the newer `events` on one member and the older
 * on another, and both would be believed by somebody.
 */
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import type { Time } from '../md/record.ts';
import { encodeSuperblock1, superblockBytesOf } from '../md/superblock1.ts';
import { failMember, type MdArray, type MdMember, recordLoss, superblocksToWrite } from '../md/update.ts';
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
  /** Members that failed while a change was written; recorded already. */
  readonly onFailure: (descriptor: number, error: RaidError) => void;
}

export class MdRecord {
  readonly #options: RecordOptions;
  readonly #devices: Map<number, Device>;
  #array: MdArray;
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
  }

  release(descriptor: number): void {
    this.#devices.delete(descriptor);
  }

  /** Resolves when the change is durable. Changes are made in the order of the calls. */
  change(change: Change): Promise<void> {
    const done = this.#last.then(() => this.#make(change));
    this.#last = done.catch(() => undefined);
    return done;
  }

  /** All changes so far are durable, or have failed. */
  settled(): Promise<void> {
    return this.#last;
  }

  async #make(change: Change): Promise<void> {
    const utime = this.#now();
    // Who is not here is put on record before anything that they will have missed.
    const loss = this.#array.hasUnrecordedLoss ? recordLoss(this.#array, utime) : [];
    const base = loss.at(-1) ?? this.#array;
    const changed = change(base, utime);
    if (changed === base) return;
    const steps: readonly MdArray[] = [...loss, ...('members' in changed ? [changed] : changed)];
    for (const step of steps) await this.#apply(step);
  }

  async #apply(next: MdArray): Promise<void> {
    await this.#options.before?.(next);
    const failures = await this.#write(superblocksToWrite(this.#array, next));
    this.#array = next;
    for (const { descriptor, error } of failures) {
      const failed = this.#array.members.find((member) => member.descriptor === descriptor);
      if (failed === undefined || failed.state === 'faulty') continue;
      const others = this.#array.members.filter((member) => member.state === 'in_sync' && member !== failed);
      if (others.length === 0) {
        throw new RaidError('ARRAY_FAILED', 'the last member that is in sync does not take its superblock', {
          cause: error,
        });
      }
      this.#options.onFailure(descriptor, error);
      for (const step of failMember(this.#array, descriptor, this.#now())) await this.#apply(step);
    }
  }

  async #write(members: readonly MdMember[]): Promise<{ descriptor: number; error: RaidError }[]> {
    const failures: { descriptor: number; error: RaidError }[] = [];
    await Promise.all(
      members.map(async ({ descriptor, superblock }) => {
        const device = this.#devices.get(descriptor);
        try {
          if (device === undefined)
            throw new RaidError('MEMBER_GONE', `device number ${descriptor} is not open`);
          const bytes = encodeSuperblock1(superblock);
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

  #now(): Time {
    const ms = this.#options.host.wallClock();
    return { seconds: Math.floor(ms / 1000), microseconds: 0 };
  }
}
