/**
 * Who is in an array, in which state, and which places of its slots nobody can vouch for: what the engine's health follows
 * from. Decides nothing and waits for nothing; every transition is one call, and array.ts says when.
 *
 *                       takeSlot                 finishRecovery
 *           spare ──────────────▶ recovering ───────────────────▶ in_sync
 *             │                       │                              │
 *             │ expel                 │ expel                        │ expel: failed by hand, or by an error of
 *             ▼                       ▼                              ▼        write or flush
 *           faulty ◀──────────────────────────────────────────────────
 *             │ remove
 *             ▼
 *         (the caller's device again)
 *
 * A spare may also become the *replacement* of a member that still works: it gets every write of that slot and, in the
 * background, a copy of the rest; then the two change places, and redundancy was whole all the time.
 */
import type { Device } from '../device/device.ts';
import { FileDevice } from '../device/file.ts';
import { RaidError } from '../errors.ts';
import type { Layout } from '../layout/layout.ts';
import { survives } from '../layout/survives.ts';
import type { ErasedRange, Health, MemberHealth } from '../plan/plan.ts';

export interface ErrorCounts {
  read: number;
  write: number;
  /**
   * Sectors that could not be read, were recomputed from the others and rewritten. The only count that outlives the
   * process: md keeps it in the member's superblock.
   */
  corrected: number;
}

export type MemberState =
  | { readonly state: 'in_sync'; readonly slot: number }
  /** True content below `recoveredBytes`. `viaBitmap`: beyond it too, except where the bitmap has a bit. */
  | {
      readonly state: 'recovering';
      readonly slot: number;
      readonly recoveredBytes: number;
      readonly viaBitmap: boolean;
    }
  /** Becomes a copy of the member in its slot, which still works; then takes its place. */
  | { readonly state: 'replacement'; readonly slot: number; readonly recoveredBytes: number }
  | { readonly state: 'spare' }
  | { readonly state: 'faulty'; readonly formerSlot: number | null; readonly because: RaidError };

/** A device in the array. */
export interface Member {
  readonly name: string;
  /** Its data: what the layout speaks of. */
  readonly device: Device;
  /** Its partial parity log; null where the array keeps none. */
  readonly log?: Device | null;
  /** md's device number; -1 without metadata. */
  readonly descriptor: number;
  readonly errors: ErrorCounts;
  state: MemberState;
}

export class Members {
  readonly #layout: Layout;
  /** Of the array, for messages. */
  readonly #name: string;
  readonly #list: Member[] = [];
  #names = 0;
  #erased: readonly ErasedRange[];

  constructor(layout: Layout, name: string, erased: readonly ErasedRange[]) {
    this.#layout = layout;
    this.#name = name;
    this.#erased = erased;
  }

  get list(): readonly Member[] {
    return this.#list;
  }

  /** Places whose content is not what it should be, by slot, until they are written. */
  get erased(): readonly ErasedRange[] {
    return this.#erased;
  }

  adopt(
    device: Device,
    state: MemberState,
    descriptor = -1,
    name?: string,
    log: Device | null = null,
  ): Member {
    if (device.isClosed) throw new RaidError('CLOSED', `${device.name} is closed`, { device: device.name });
    const taken = new Set(this.#list.map((member) => member.name));
    while (taken.has(`disk${this.#names}`)) this.#names += 1;
    const member: Member = {
      name: name ?? `disk${this.#names}`,
      device,
      log,
      descriptor,
      errors: { read: 0, write: 0, corrected: 0 },
      state,
    };
    this.#list.push(member);
    return member;
  }

  join(member: Member): void {
    this.#list.push(member);
  }

  leave(member: Member): void {
    this.#list.splice(this.#list.indexOf(member), 1);
  }

  /** The member that this device is, as it is or below what stands before it. */
  thatIs(device: Device, wholeOf: (member: Member) => Device, except?: Member): Member | null {
    const isIt = (member: Member): boolean =>
      isSameDevice(member.device, device) || isSameDevice(wholeOf(member), device);
    return this.#list.find((member) => member !== except && isIt(member)) ?? null;
  }

  named(which: string | number): Member {
    const found =
      typeof which === 'number'
        ? this.in(which)
        : this.#list.find((member) => member.name === which || member.device.name === which);
    if (found === null || found === undefined) {
      const names = this.#list.map((member) => member.name).join(', ');
      throw new RaidError('NO_SUCH_MEMBER', `${this.#name} has no member ${which}; it has ${names}`);
    }
    return found;
  }

  /** Who takes part in I/O in this slot. */
  in(slot: number): Member | null {
    return (
      this.#list.find(
        ({ state }) => (state.state === 'in_sync' || state.state === 'recovering') && state.slot === slot,
      ) ?? null
    );
  }

  replacementOf(slot: number): Member | null {
    return this.#list.find(({ state }) => state.state === 'replacement' && state.slot === slot) ?? null;
  }

  trusted(slot: number): Member | null {
    const member = this.in(slot);
    return member?.state.state === 'in_sync' ? member : null;
  }

  health(unsyncedFromBytes: number): Health {
    const members = Array.from({ length: this.#layout.memberCount }, (_, slot): MemberHealth => {
      const state = this.in(slot)?.state;
      if (state?.state === 'in_sync') return { state: 'in_sync' };
      if (state?.state === 'recovering') return { state: 'recovering', recoveredBytes: state.recoveredBytes };
      return { state: 'missing' };
    });
    const replacing = this.#list.flatMap(({ state }) => (state.state === 'replacement' ? [state.slot] : []));
    return {
      members,
      erased: this.#erased,
      replacing,
      ...(unsyncedFromBytes === Number.POSITIVE_INFINITY ? {} : { unsyncedFromBytes }),
    };
  }

  expel(member: Member, because: RaidError): void {
    const { state } = member;
    if (state.state === 'faulty') return;
    const formerSlot = state.state === 'spare' ? null : state.slot;
    member.state = { state: 'faulty', formerSlot, because };
    if (formerSlot === null || state.state === 'replacement') return;
    this.#erased = this.#erased.filter((range) => range.member !== formerSlot);
    // It may already have missed writes that its original did not take either: what it has counts for nothing.
    const replacement = this.replacementOf(formerSlot);
    if (replacement !== null) replacement.state = { state: 'spare' };
  }

  get emptySlot(): number | null {
    for (let slot = 0; slot < this.#layout.memberCount; slot += 1) if (this.in(slot) === null) return slot;
    return null;
  }

  /** Slots without a member in sync. */
  get degraded(): number {
    let count = 0;
    for (let slot = 0; slot < this.#layout.memberCount; slot += 1)
      if (this.trusted(slot) === null) count += 1;
    return count;
  }

  /** Every byte is still there, without these slots too. */
  surviveWithout(slots: readonly number[] = []): boolean {
    return survives(this.#layout, (slot) => slots.includes(slot) || this.trusted(slot) === null);
  }

  /** By slot, then the replacements by theirs; where the array keeps logs, then those in the same order. */
  devicesInUse(withLogs: boolean): (Device | null)[] {
    const slots = Array.from({ length: this.#layout.memberCount }, (_, slot) => slot);
    const members = [...slots.map((slot) => this.in(slot)), ...slots.map((slot) => this.replacementOf(slot))];
    const devices = members.map((member) => member?.device ?? null);
    if (!withLogs) return devices;
    return [...devices, ...members.map((member) => member?.log ?? null)];
  }

  damage(ranges: readonly ErasedRange[]): void {
    this.#erased = [...this.#erased, ...ranges];
  }

  /** These places are as they should be again: of the ranges `among` those that are listed. */
  mend(slot: number, offsetBytes: number, lengthBytes: number, among = this.#erased): void {
    const end = offsetBytes + lengthBytes;
    const kept = this.#erased.flatMap((range) => {
      const rangeEnd = range.offsetBytes + range.lengthBytes;
      const overlaps = range.member === slot && range.offsetBytes < end && offsetBytes < rangeEnd;
      if (!overlaps || !among.includes(range)) return [range];
      const left = { ...range, lengthBytes: offsetBytes - range.offsetBytes };
      const right = { ...range, offsetBytes: end, lengthBytes: rangeEnd - end };
      return [left, right].filter((part) => part.lengthBytes > 0);
    });
    const isSame =
      kept.length === this.#erased.length && kept.every((range, at) => range === this.#erased[at]);
    if (!isSame) this.#erased = kept;
  }
}

/** One object, or two that have opened one file. */
function isSameDevice(a: Device, b: Device): boolean {
  return a === b || (a instanceof FileDevice && b instanceof FileDevice && a.identity === b.identity);
}
