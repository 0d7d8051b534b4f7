/**
 * A device that fails on cue. Rules say what goes wrong, where and when; they are added, counted and taken away while
 * the device works.
 *
 *   to be had                                        rule
 *   a sector that cannot be read until rewritten     on read, range, error MEDIUM_ERROR, clearedByWrite
 *   a disk that is pulled                            on any, error MEMBER_GONE
 *   a disk that dies at its 100th write              on write, when { after: 99 }, error WRITE_FAILED
 *   a write that failed, but happened (half)         on write, error WRITE_FAILED, applied all (prefix)
 *   a read that stops short                          on read, error SHORT_READ, applied prefix
 *   bit rot; a wrong sector                          on read, range, flip; replace (clearedByWrite: until rewritten)
 *   a lost write: acknowledged, never done           on write, lost
 *   a cache that lies about flushes                  on flush, lost
 *   a write that lands elsewhere                     on write, misdirected
 *
 * Which request a rule hits is decided when the request arrives, in the order of arrival, and chance comes from a
 * seeded source: one order of calls is one history of faults. Every rule that matches counts the request; the first
 * that fires and takes it over (anything but flip and replace, which add up) ends the walk.
 *
 * `writeZeroes` is a write. A write with `fua` is a write and then a flush, so rules on `flush` meet it too. Status
 * and size are never faulted: what a disk says about itself is not where disks fail.
 *
 * A flush that was made to fail stays failed, as the contract of every device demands (`forgets` is for showing what
 * a disk does that does not keep it); `clear` ends that too, like opening the disk again.
 *
 * It owns the device below: closing it closes that. No rule gets in the way of closing.
 */
import { type ErrorCode, RaidError } from '../errors.ts';
import { seededRandom } from '../host.ts';
import { roundDown } from '../units.ts';
import { viewsOf } from './buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from './device.ts';
import { InFlight } from './in-flight.ts';

export type FaultTarget = 'read' | 'write' | 'flush' | 'discard';

export interface FaultRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

/** Counted over the requests that match the rule, from 1. */
export type FaultWhen =
  | 'forever'
  | 'once'
  | { readonly nth: number }
  | { readonly every: number }
  /** All but the first so many. */
  | { readonly after: number }
  | { readonly chance: number; readonly outOf: number };

/** How much of a request that fails was done all the same; `prefix` is half, in whole blocks. */
export type FaultApplied = 'none' | 'prefix' | 'all';

export type Fault =
  | {
      readonly kind: 'error';
      readonly code: ErrorCode;
      readonly applied?: FaultApplied;
      /** Only for flush: a later flush may succeed. */
      readonly forgets?: boolean;
    }
  /** XORs every byte that the rule's range and the request share (default mask: 1). */
  | { readonly kind: 'flip'; readonly mask?: number }
  /** Puts these bytes, repeated from the start of the rule's range, in place of what was read. */
  | { readonly kind: 'replace'; readonly bytes: Uint8Array }
  | { readonly kind: 'lost' }
  /** To or from so many bytes further on; past an end of the device it stops at the end. */
  | { readonly kind: 'misdirected'; readonly byBytes: number };

export interface FaultRule {
  readonly on: FaultTarget | 'any';
  /** Requests that share a byte with it; flushes have no place and match only rules without a range. */
  readonly range?: FaultRange;
  readonly when?: FaultWhen;
  readonly fault: Fault;
  /** What is written inside the range is healed, byte by byte, as a disk remaps a bad sector. Needs a range. */
  readonly clearedByWrite?: boolean;
}

export interface FaultStatus {
  readonly id: number;
  readonly rule: FaultRule;
  /** Requests that matched. */
  readonly seen: number;
  /** Requests that it did something to. */
  readonly hits: number;
  /** It will not fire again. */
  readonly spent: boolean;
}

export interface FaultOptions {
  readonly name?: string;
  readonly rules?: readonly FaultRule[];
  /** Default: seeded with 1. */
  readonly random?: (below: number) => number;
}

interface ArmedRule {
  readonly id: number;
  readonly rule: FaultRule;
  /** What is left of the range; null: everywhere. */
  ranges: readonly FaultRange[] | null;
  seen: number;
  hits: number;
  spent: boolean;
}

type Takeover = Exclude<Fault, { kind: 'flip' | 'replace' }>;
type Corruption = Extract<Fault, { kind: 'flip' | 'replace' }>;

interface Verdict {
  readonly takeover: Takeover | null;
  /** What to spoil, with the places fixed when the request arrived. */
  readonly corruptions: readonly {
    readonly fault: Corruption;
    readonly anchorBytes: number;
    readonly places: readonly FaultRange[];
  }[];
}

const harmless: Verdict = { takeover: null, corruptions: [] };

export class FaultDevice extends Device {
  override readonly name: string;
  override readonly direct = null;
  readonly #below: Device;
  readonly #random: (below: number) => number;
  readonly #inFlight = new InFlight();
  #rules: ArmedRule[] = [];
  #nextId = 1;
  #flushFailure: RaidError | null = null;

  constructor(below: Device, options: FaultOptions = {}) {
    super();
    this.name = options.name ?? below.name;
    this.#below = below;
    this.#random = options.random ?? seededRandom(1);
    for (const rule of options.rules ?? []) this.add(rule);
  }

  override get limits(): Limits {
    return this.#below.limits;
  }

  /** Returns the id by which the rule can be removed. */
  add(rule: FaultRule): number {
    this.#checkRule(rule);
    const id = this.#nextId;
    this.#nextId += 1;
    const ranges = rule.range === undefined ? null : [rule.range];
    this.#rules.push({ id, rule, ranges, seen: 0, hits: 0, spent: false });
    return id;
  }

  rules(): readonly FaultStatus[] {
    return this.#rules.map(({ id, rule, seen, hits, spent }) => ({ id, rule, seen, hits, spent }));
  }

  /** How often a rule did something; of all rules together without an id. */
  hits(id?: number): number {
    let sum = 0;
    for (const armed of this.#rules) if (id === undefined || armed.id === id) sum += armed.hits;
    return sum;
  }

  remove(id: number): void {
    this.#rules = this.#rules.filter((armed) => armed.id !== id);
  }

  /** From here on nothing goes wrong, and a flush that had failed is forgotten. */
  clear(): void {
    this.#rules = [];
    this.#flushFailure = null;
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#inFlight.run(async () => {
      const lengthBytes = totalBytes(targets);
      const { takeover, corruptions } = this.#judge('read', offsetBytes, lengthBytes);
      if (takeover?.kind === 'error') {
        const partBytes = this.#appliedBytes(takeover.applied, lengthBytes);
        if (partBytes > 0) await this.#below.read(offsetBytes, viewsOf(targets, 0, partBytes));
        throw this.#failure(takeover.code, 'read', offsetBytes, lengthBytes);
      }
      await this.#below.read(this.#landing(takeover, offsetBytes, lengthBytes), targets);
      for (const { fault, anchorBytes, places } of corruptions) {
        for (const place of places) {
          corrupt(
            fault,
            viewsOf(targets, place.offsetBytes - offsetBytes, place.lengthBytes),
            place.offsetBytes - anchorBytes,
          );
        }
      }
    });
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    return this.#inFlight.run(async () => {
      const lengthBytes = totalBytes(sources);
      const { takeover } = this.#judge('write', offsetBytes, lengthBytes);
      if (takeover?.kind === 'lost') return;
      const durable = fua ? this.#judgeFlush() : harmless;
      if (takeover?.kind === 'error') {
        const partBytes = this.#appliedBytes(takeover.applied, lengthBytes);
        if (partBytes > 0) await this.#below.write(offsetBytes, viewsOf(sources, 0, partBytes));
        throw this.#failure(takeover.code, 'write', offsetBytes, lengthBytes);
      }
      const landing = this.#landing(takeover, offsetBytes, lengthBytes);
      await this.#below.write(landing, sources, { fua: fua && durable.takeover === null });
      this.#heal(landing, lengthBytes);
      if (fua) this.#failIfFlushFails(durable);
    });
  }

  protected override doFlush(): Promise<void> {
    return this.#inFlight.run(async () => {
      const verdict = this.#judgeFlush();
      const { takeover } = verdict;
      if (takeover?.kind === 'error' && takeover.applied === 'all') await this.#below.flush();
      this.#failIfFlushFails(verdict);
      if (takeover?.kind !== 'lost') await this.#below.flush();
    });
  }

  protected override doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#inFlight.run(async () => {
      const { takeover } = this.#judge('discard', offsetBytes, lengthBytes);
      if (takeover?.kind === 'lost') return;
      if (takeover?.kind === 'error') {
        const partBytes = this.#appliedBytes(takeover.applied, lengthBytes);
        if (partBytes > 0) await this.#below.discard(offsetBytes, partBytes);
        throw this.#failure(takeover.code, 'discard', offsetBytes, lengthBytes);
      }
      await this.#below.discard(this.#landing(takeover, offsetBytes, lengthBytes), lengthBytes);
    });
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    options: Required<ZeroOptions>,
  ): Promise<void> {
    return this.#inFlight.run(async () => {
      const { takeover } = this.#judge('write', offsetBytes, lengthBytes);
      if (takeover?.kind === 'lost') return;
      const durable = options.fua ? this.#judgeFlush() : harmless;
      if (takeover?.kind === 'error') {
        const partBytes = this.#appliedBytes(takeover.applied, lengthBytes);
        if (partBytes > 0) await this.#below.writeZeroes(offsetBytes, partBytes, { ...options, fua: false });
        throw this.#failure(takeover.code, 'writeZeroes', offsetBytes, lengthBytes);
      }
      const landing = this.#landing(takeover, offsetBytes, lengthBytes);
      await this.#below.writeZeroes(landing, lengthBytes, {
        ...options,
        fua: options.fua && durable.takeover === null,
      });
      this.#heal(landing, lengthBytes);
      if (options.fua) this.#failIfFlushFails(durable);
    });
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#below.blockStatus(offsetBytes, lengthBytes);
  }

  protected override doResize(sizeBytes: number): Promise<void> {
    return this.#below.resize(sizeBytes);
  }

  protected override async doClose(): Promise<void> {
    const closed = this.#below.close();
    await this.#inFlight.whenIdle();
    await closed;
  }

  #judgeFlush(): Verdict {
    return this.#judge('flush', 0, 0);
  }

  #judge(target: FaultTarget, offsetBytes: number, lengthBytes: number): Verdict {
    if (this.#rules.length === 0) return harmless;
    const request = { offsetBytes, lengthBytes };
    const corruptions: Verdict['corruptions'][number][] = [];
    for (const armed of this.#rules) {
      const { on, range, fault } = armed.rule;
      if (armed.spent || (on !== 'any' && on !== target)) continue;
      const places = armed.ranges === null ? [request] : overlaps(armed.ranges, request);
      if (places.length === 0) continue;
      armed.seen += 1;
      if (!this.#fires(armed)) continue;
      armed.hits += 1;
      if (fault.kind === 'flip' || fault.kind === 'replace') {
        corruptions.push({ fault, anchorBytes: range?.offsetBytes ?? 0, places });
      } else {
        return { takeover: fault, corruptions: [] };
      }
    }
    return { takeover: null, corruptions };
  }

  #fires(armed: ArmedRule): boolean {
    const when = armed.rule.when ?? 'forever';
    if (when === 'forever') return true;
    if (when === 'once') {
      armed.spent = true;
      return true;
    }
    if ('nth' in when) {
      armed.spent = armed.seen >= when.nth;
      return armed.seen === when.nth;
    }
    if ('every' in when) return armed.seen % when.every === 0;
    if ('after' in when) return armed.seen > when.after;
    return this.#random(when.outOf) < when.chance;
  }

  #appliedBytes(applied: FaultApplied | undefined, lengthBytes: number): number {
    if (applied === 'all') return lengthBytes;
    return applied === 'prefix' ? roundDown(Math.floor(lengthBytes / 2), this.limits.blockBytes) : 0;
  }

  #landing(takeover: Takeover | null, offsetBytes: number, lengthBytes: number): number {
    if (takeover?.kind !== 'misdirected') return offsetBytes;
    const last = this.limits.sizeBytes - lengthBytes;
    return Math.min(Math.max(offsetBytes + takeover.byBytes, 0), last);
  }

  #heal(offsetBytes: number, lengthBytes: number): void {
    for (const armed of this.#rules) {
      if (armed.rule.clearedByWrite !== true || armed.ranges === null) continue;
      armed.ranges = armed.ranges.flatMap((range) => without(range, { offsetBytes, lengthBytes }));
      if (armed.ranges.length === 0) armed.spent = true;
    }
  }

  #failIfFlushFails({ takeover }: Verdict): void {
    if (this.#flushFailure !== null) {
      throw new RaidError(
        this.#flushFailure.code,
        `${this.name} failed an earlier flush, and what that one did not write may be lost`,
        { device: this.name, cause: this.#flushFailure, injected: true },
      );
    }
    if (takeover?.kind !== 'error') return;
    const failure = this.#failure(takeover.code, 'flush');
    if (takeover.forgets !== true) this.#flushFailure = failure;
    throw failure;
  }

  #failure(code: ErrorCode, operation: string, offsetBytes?: number, lengthBytes?: number): RaidError {
    const where = offsetBytes === undefined ? '' : ` of ${lengthBytes} bytes at ${offsetBytes}`;
    return new RaidError(code, `${this.name}: ${operation}${where} was made to fail (${code})`, {
      device: this.name,
      ...(offsetBytes === undefined ? {} : { offsetBytes }),
      ...(lengthBytes === undefined ? {} : { lengthBytes }),
      injected: true,
    });
  }

  #checkRule(rule: FaultRule): void {
    const complaint = complaintAbout(rule, this.limits.blockBytes);
    if (complaint !== null) {
      throw new RaidError('BAD_ARGUMENT', `${this.name}: ${complaint}`, { device: this.name });
    }
  }
}

/** A rule that could never do what it says is a mistake in the test that made it. */
function complaintAbout(
  { on, range, when, fault, clearedByWrite }: FaultRule,
  blockBytes: number,
): string | null {
  if ((fault.kind === 'flip' || fault.kind === 'replace') && on !== 'read') {
    return `${fault.kind} spoils what is read: it goes on read, not on ${on}`;
  }
  if (fault.kind === 'replace' && fault.bytes.byteLength === 0) return 'replace needs bytes';
  if (fault.kind === 'flip' && ((fault.mask ?? 1) & 0xff) === 0) return 'this mask flips nothing';
  if (fault.kind === 'lost' && (on === 'read' || on === 'any')) {
    return `nothing can be lost on ${on}: say write, flush or discard`;
  }
  if (fault.kind === 'misdirected' && (on === 'flush' || on === 'any')) {
    return `only a request with a place can be misdirected, not ${on}`;
  }
  if (fault.kind === 'misdirected' && (fault.byBytes === 0 || fault.byBytes % blockBytes !== 0)) {
    return `misdirected by ${fault.byBytes} bytes, in blocks of ${blockBytes}`;
  }
  if (range !== undefined && on === 'flush') return 'a flush has no place, so a range matches none';
  if (range !== undefined && !(range.offsetBytes >= 0 && range.lengthBytes > 0)) return 'the range is empty';
  if (clearedByWrite === true && range === undefined) return 'clearedByWrite needs the range that is bad';
  if (when !== undefined && !canCome(when)) return `${JSON.stringify(when)} never comes`;
  return null;
}

function canCome(when: FaultWhen): boolean {
  if (typeof when === 'string') return true;
  if ('nth' in when) return when.nth >= 1;
  if ('every' in when) return when.every >= 1;
  if ('after' in when) return when.after >= 0;
  return when.chance > 0 && when.outOf >= 1;
}

function corrupt(fault: Corruption, views: readonly Uint8Array[], fromAnchorBytes: number): void {
  let position = fromAnchorBytes;
  for (const view of views) {
    for (let index = 0; index < view.byteLength; index += 1, position += 1) {
      const byte = view[index] ?? 0;
      view[index] =
        fault.kind === 'flip'
          ? byte ^ (fault.mask ?? 1)
          : (fault.bytes[position % fault.bytes.byteLength] ?? 0);
    }
  }
}

function overlaps(ranges: readonly FaultRange[], request: FaultRange): FaultRange[] {
  const shared: FaultRange[] = [];
  for (const range of ranges) {
    const start = Math.max(range.offsetBytes, request.offsetBytes);
    const end = Math.min(endOf(range), endOf(request));
    if (start < end) shared.push({ offsetBytes: start, lengthBytes: end - start });
  }
  return shared;
}

/** What remains of a range when a hole is cut into it: nothing, one piece or two. */
function without(range: FaultRange, hole: FaultRange): FaultRange[] {
  const pieces: FaultRange[] = [];
  const before = Math.min(endOf(range), hole.offsetBytes);
  if (before > range.offsetBytes) {
    pieces.push({ offsetBytes: range.offsetBytes, lengthBytes: before - range.offsetBytes });
  }
  const after = Math.max(range.offsetBytes, endOf(hole));
  if (after < endOf(range)) pieces.push({ offsetBytes: after, lengthBytes: endOf(range) - after });
  return pieces;
}

function endOf(range: FaultRange): number {
  return range.offsetBytes + range.lengthBytes;
}
