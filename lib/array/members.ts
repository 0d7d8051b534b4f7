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
 *
 * A *bad place* is a part of a member that does not hold what it should, until it is written. It is listed at some moment,
 * and what is written makes good only what was listed before the write began: a place that another write has damaged
 * meanwhile may have been damaged after this one wrote there. Bad places belong to a device: those of a replacement are
 * kept beside its original's, under `replacementOf` the slot, and count from when the two begin to change places.
 */
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import type { Layout } from '../layout/layout.ts';
import { survives } from '../layout/survives.ts';
import { type ErasedRange, type Health, type MemberHealth, replacementOf } from '../plan/plan.ts';
import { isLocal } from './source.ts';

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

export interface BadPlace extends ErasedRange {
  readonly since: number;
  /** On the device too: the next life will hear of it. */
  readonly isOnRecord: boolean;
}

export class Members {
  readonly #layout: Layout;
  /** Of the array, for messages. */
  readonly #name: string;
  readonly #list: Member[] = [];
  #names = 0;
  #bad: readonly BadPlace[] = [];
  #erased: readonly ErasedRange[] = [];
  #moment = 0;
  /** Slots whose member is giving way to its replacement. */
  readonly #changing = new Set<number>();

  constructor(layout: Layout, name: string, bad: readonly ErasedRange[]) {
    this.#layout = layout;
    this.#name = name;
    this.damage(bad, true);
  }

  get list(): readonly Member[] {
    return this.#list;
  }

  /** All bad places, those of replacements under their numbers; another list whenever it changes. */
  get bad(): readonly ErasedRange[] {
    return this.#bad;
  }

  /** Later than all that is listed, and not later than what will be. */
  get moment(): number {
    return this.#moment;
  }

  /** Those of this member, as its device has them. */
  badOf(member: Member): readonly BadPlace[] {
    const { state } = member;
    if (!('slot' in state)) return [];
    const isNew = state.state === 'replacement' || this.#changing.has(state.slot);
    const number = isNew ? this.#replacementNumber(state.slot) : state.slot;
    return this.#bad.filter((place) => place.member === number);
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
    const copying = this.#list.flatMap(({ state }) => (state.state === 'replacement' ? [state.slot] : []));
    const replacing = [...copying, ...this.#changing];
    return {
      members,
      erased: this.#erased,
      replacing,
      ...(this.hidesDamage() ? { hidesDamage: true } : {}),
      ...(unsyncedFromBytes === Number.POSITIVE_INFINITY ? {} : { unsyncedFromBytes }),
    };
  }

  expel(member: Member, because: RaidError): void {
    const { state } = member;
    if (state.state === 'faulty') return;
    const formerSlot = state.state === 'spare' ? null : state.slot;
    member.state = { state: 'faulty', formerSlot, because };
    if (formerSlot === null) return;
    const gone = [this.#replacementNumber(formerSlot)];
    if (state.state !== 'replacement') gone.push(formerSlot);
    this.#setBad(this.#bad.filter((place) => !gone.includes(place.member)));
    if (state.state === 'replacement') return;
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

  /** What was listed there before is listed as of now. */
  damage(ranges: readonly ErasedRange[], isOnRecord = false): void {
    if (ranges.length === 0) return;
    this.#moment += 1;
    const since = this.#moment;
    const others = ranges.reduce(
      (bad, { member, offsetBytes, lengthBytes }) => outside(bad, [member], offsetBytes, lengthBytes),
      this.#bad,
    );
    this.#setBad([...others, ...ranges.map((range) => ({ ...range, since, isOnRecord }))]);
  }

  /** These are on their device's list, and so is what writes have left of them meanwhile. */
  recorded(ranges: readonly BadPlace[]): void {
    const isListed = (place: BadPlace): boolean =>
      ranges.some((range) => range.since === place.since && contains(range, place));
    this.#setBad(this.#bad.map((place) => (isListed(place) ? { ...place, isOnRecord: true } : place)));
  }

  /** Whether there are bad places that the next life would not hear of: on this one, or on any. */
  hidesDamage(number: number | null = null): boolean {
    return this.#bad.some(({ member, isOnRecord }) => !isOnRecord && (number ?? member) === member);
  }

  /** Of these places, in members in sync, those that have become bad since `began`, and that the next life would take for good. */
  hiddenAmong(places: readonly ErasedRange[], began: number): readonly ErasedRange[] {
    const hidden = this.#bad.filter(
      (bad) => bad.since > began && !bad.isOnRecord && this.trusted(bad.member) !== null,
    );
    return places.filter((place) => hidden.some((bad) => meets(bad, place)));
  }

  /**
   * These places have been written, by something that began at `began`, or just now: what was listed then is as it should
   * be. `member`: a slot, whose replacement is written with it, or a replacement alone.
   */
  mend(member: number, offsetBytes: number, lengthBytes: number, began = this.#moment): void {
    const written = [member];
    if (member < this.#layout.memberCount) written.push(this.#replacementNumber(member));
    const kept = outside(this.#bad, written, offsetBytes, lengthBytes, began);
    if (kept !== this.#bad) this.#setBad(kept);
  }

  /** Whatever is listed in this slot is not on the device that was in it any more. */
  forget(slot: number): void {
    this.#setBad(this.#bad.filter((place) => place.member !== slot));
  }

  /**
   * From now on both lists count in this slot, since nobody knows of which of the two devices a job makes use; and both
   * devices are written until the end of it.
   */
  beginChange(slot: number): void {
    this.#changing.add(slot);
    this.#setBad(this.#bad);
  }

  /** Nobody makes use of the original any more, and its bad places are nobody's. */
  endChange(slot: number): void {
    this.#changing.delete(slot);
    const number = this.#replacementNumber(slot);
    const kept = this.#bad.filter((place) => place.member !== slot);
    this.#setBad(kept.map((place) => (place.member === number ? { ...place, member: slot } : place)));
  }

  #replacementNumber(slot: number): number {
    return replacementOf(this.#layout.memberCount, slot);
  }

  #setBad(bad: readonly BadPlace[]): void {
    this.#bad = bad;
    const { memberCount } = this.#layout;
    this.#erased = bad.flatMap(({ member, offsetBytes, lengthBytes }) => {
      if (member < memberCount) return [{ member, offsetBytes, lengthBytes }];
      const slot = member - memberCount;
      return this.#changing.has(slot) ? [{ member: slot, offsetBytes, lengthBytes }] : [];
    });
  }
}

/** What is left of these places outside this range of these members, of those that were listed by `began`. */
function outside(
  bad: readonly BadPlace[],
  members: readonly number[],
  offsetBytes: number,
  lengthBytes: number,
  began = Number.POSITIVE_INFINITY,
): readonly BadPlace[] {
  const end = offsetBytes + lengthBytes;
  let isChanged = false;
  const kept = bad.flatMap((place) => {
    const placeEnd = place.offsetBytes + place.lengthBytes;
    const overlaps = members.includes(place.member) && place.offsetBytes < end && offsetBytes < placeEnd;
    if (!overlaps || place.since > began) return [place];
    isChanged = true;
    const left = { ...place, lengthBytes: offsetBytes - place.offsetBytes };
    const right = { ...place, offsetBytes: end, lengthBytes: placeEnd - end };
    return [left, right].filter((part) => part.lengthBytes > 0);
  });
  return isChanged ? kept : bad;
}

function contains(outer: ErasedRange, inner: ErasedRange): boolean {
  const end = inner.offsetBytes + inner.lengthBytes;
  return (
    outer.member === inner.member &&
    outer.offsetBytes <= inner.offsetBytes &&
    end <= outer.offsetBytes + outer.lengthBytes
  );
}

function meets(a: ErasedRange, b: ErasedRange): boolean {
  return (
    a.member === b.member &&
    a.offsetBytes < b.offsetBytes + b.lengthBytes &&
    b.offsetBytes < a.offsetBytes + a.lengthBytes
  );
}

/** One object, or two that have opened one file, or one partition of it. */
function isSameDevice(a: Device, b: Device): boolean {
  return a === b || (isLocal(a) && isLocal(b) && a.identity === b.identity);
}
