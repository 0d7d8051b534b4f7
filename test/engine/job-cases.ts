/**
 * One job with members that fail in each of the ways there are, and what must be true afterwards. The oracle knows
 * nothing of plans: it compares the members, byte by byte, with what an independent encoder says they must hold.
 */
import type { Job, JobOp } from '../../lib/engine/ring.ts';
import type { Layout } from '../../lib/layout/layout.ts';
import { survives } from '../../lib/layout/survives.ts';
import type { MemberHealth } from '../../lib/plan/plan.ts';
import { syncBytes } from '../../lib/plan/planner.ts';
import { KIB } from '../../lib/units.ts';
import { type Random, randomBytes } from '../conformance/seed.ts';
import { failure, overlaps, type Script, Scripted } from './scripted.ts';
import { imagesOf, isReadable } from './world.ts';

const PAGE = 4 * KIB;

type Op = Exclude<JobOp, 'control'>;
export const ops: readonly Op[] = ['read', 'write', 'recover', 'check', 'repair'];

/**
 * The ways in which a member fails. A page is the second of the member, a sector one of its eight, for each member
 * another; `once` is a fault that a second try heals.
 */
const faults = {
  none: { reads: null, writes: null },
  'read once': { reads: 'once', writes: null },
  'one page, until written': { reads: 'page', writes: null },
  'one sector, until written': { reads: 'sector', writes: null },
  'reads for ever': { reads: 'forever', writes: null },
  'gone for reads': { reads: 'gone', writes: null },
  'gone altogether': { reads: 'gone', writes: 'forever' },
  'writes for ever': { reads: null, writes: 'forever' },
  'one write': { reads: null, writes: 'once' },
  everything: { reads: 'forever', writes: 'forever' },
} as const;
export type FaultName = keyof typeof faults;
export const faultNames = Object.keys(faults) as FaultName[];

/** What of a member cannot be read until it is written, if anything. */
function badOf(member: number, name: FaultName): { offsetBytes: number; lengthBytes: number } | null {
  const { reads } = faults[name];
  if (reads === 'page') return { offsetBytes: PAGE, lengthBytes: PAGE };
  return reads === 'sector' ? { offsetBytes: PAGE + (member % 8) * 512, lengthBytes: 512 } : null;
}

/** A script of one fault for each member; says which pages are healed. */
function scriptOf(of: readonly FaultName[]): Script {
  const done = of.map(() => ({ read: false, write: false }));
  const healed = new Set<string>();
  return (direction, transfer) => {
    const { member } = transfer;
    const name = of[member] ?? 'none';
    const fault = faults[name];
    const seen = done[member];
    if (seen === undefined) return null;
    if (direction === 'write') {
      if (fault.writes === 'forever' || (fault.writes === 'once' && !seen.write)) {
        seen.write = true;
        return failure('WRITE_FAILED');
      }
      for (let sector = 0; sector < transfer.lengthBytes; sector += 512)
        healed.add(`${member}:${transfer.offsetBytes + sector}`);
      return null;
    }
    if (fault.reads === 'gone') return failure('MEMBER_GONE');
    if (fault.reads === 'forever') return failure('MEDIUM_ERROR');
    if (fault.reads === 'once' && !seen.read) {
      seen.read = true;
      return failure('MEDIUM_ERROR');
    }
    const bad = badOf(member, name);
    if (bad !== null && overlaps(transfer, bad)) {
      for (let at = bad.offsetBytes; at < bad.offsetBytes + bad.lengthBytes; at += 512) {
        const inside = at < transfer.offsetBytes + transfer.lengthBytes && transfer.offsetBytes < at + 512;
        if (inside && !healed.has(`${member}:${at}`)) return failure('MEDIUM_ERROR');
      }
    }
    return null;
  };
}

/** All healths with at most two members that are not in sync and that the array survives. */
export function healthsOf(layout: Layout): MemberHealth[][] {
  const all: MemberHealth[][] = [];

  const troubles: MemberHealth[] = [{ state: 'missing' }, { state: 'recovering', recoveredBytes: PAGE }];
  const base = Array.from({ length: layout.memberCount }, (): MemberHealth => ({ state: 'in_sync' }));
  all.push(base);
  for (let a = 0; a < layout.memberCount; a += 1) {
    for (const trouble of troubles) {
      const one = base.with(a, trouble);
      if (survives(layout, (slot) => one[slot]?.state !== 'in_sync')) all.push(one);
      for (let b = a + 1; b < layout.memberCount; b += 1) {
        const two = one.with(b, { state: 'missing' });
        if (survives(layout, (slot) => two[slot]?.state !== 'in_sync')) all.push(two);
      }
    }
  }
  return all;
}

export function jobOf(layout: Layout, op: Op, random: Random, health: readonly MemberHealth[]): Job | null {
  const within = (total: number, unit: number): { offsetBytes: number; lengthBytes: number } => {
    const units = Math.floor(total / unit);
    const first = random(units);
    return { offsetBytes: first * unit, lengthBytes: (1 + random(units - first)) * unit };
  };
  switch (op) {
    case 'read':
    case 'write': {
      const unit = [1, 512, PAGE][random(3)] ?? 512;
      return { op, ...within(layout.arrayBytes, unit), address: 0, member: 0 };
    }
    case 'recover': {
      const member = health.findIndex(({ state }) => state === 'recovering');
      if (member < 0) return null;
      return { op, ...within(layout.memberBytes[member] ?? 0, PAGE), address: 0, member };
    }
    default:
      return syncBytes(layout) === 0
        ? null
        : { op, ...within(syncBytes(layout), PAGE), address: 0, member: 0 };
  }
}

interface Case {
  readonly layout: Layout;
  readonly health: readonly MemberHealth[];
  readonly job: Job;
  readonly faults: readonly FaultName[];
  readonly before: Uint8Array;
  readonly images: readonly Uint8Array[];
  readonly request: Uint8Array;
  readonly scratchBytes?: number;
}

/** Carries out one case; what is wrong with the outcome, or null. `isNow`: without steps, where that can be. */
function wrong(given: Case, isNow: boolean): string | null {
  const { layout, health, job, before, images, request } = given;
  // A recovering member holds garbage beyond its frontier, a missing one everywhere.
  const start = images.map((image, slot) => {
    const state = health[slot];
    if (state === undefined || state.state === 'in_sync') return image;
    const copy = image.slice();
    return copy.fill(0xcc, state.state === 'recovering' ? state.recoveredBytes : 0);
  });
  const script = scriptOf(given.faults);
  const scripted = new Scripted({
    layout,
    images: start,
    health: { members: health, erased: [] },
    script,
    ...(given.scratchBytes === undefined ? {} : { scratchBytes: given.scratchBytes, batchesMax: 4000 }),
  });
  const { report, answer } = scripted.run(job, job.op === 'write' ? request : undefined, isNow);
  const { error } = report;
  const isWhole = health.every(({ state }) => state === 'in_sync');
  const canAllBeRead = given.faults.every((name) => faults[name].reads === null);
  const hasRoom = given.scratchBytes === undefined;
  if (isNow && isWhole && canAllBeRead && hasRoom && scripted.writtenNow === 0)
    return 'nothing stood in the way of the write, and it took steps';
  if (!isWhole && scripted.writtenNow > 0) return 'the write went without steps, and not all are in sync';

  const after = scripted.health.compiled.health.members;
  const missing = (slot: number): boolean => after[slot]?.state !== 'in_sync';
  if (!survives(layout, missing)) return 'the last copy was excluded';
  for (const { member } of report.exclusions) {
    if (after[member]?.state !== 'missing') return `${member} was reported as excluded, and is trusted`;
    if ((given.faults[member] ?? 'none') === 'none') return `${member} was excluded, and has no fault`;
  }
  for (const [slot, { state }] of after.entries()) {
    const reported = report.exclusions.filter(({ member }) => member === slot).length;
    const left = state === 'missing' && health[slot]?.state !== 'missing';
    if (reported !== Number(left)) return `${slot} left ${Number(left)} times, reported ${reported}`;
  }

  if (error !== null) {
    // Which faults could have made it so: those in the way of this operation.
    const culprits = given.faults.filter(
      (name, slot) => name !== 'none' && health[slot]?.state !== 'missing',
    );
    if (culprits.length === 0) return `failed without a fault: ${error.message}`;
    if (error.code !== 'REDUNDANCY_LOST' && !(job.op === 'recover' && error.code === 'MEMBER_GONE'))
      return `an error of code ${error.code}: ${error.message}`;
    const unreadable = (slot: number, at: number): boolean => {
      const state = health[slot];
      if (state === undefined || state.state === 'missing') return true;
      if (state.state === 'recovering' && at >= state.recoveredBytes) return true;
      const name = given.faults[slot] ?? 'none';
      const bad = badOf(slot, name);
      const { reads } = faults[name];
      return (
        reads === 'forever' ||
        reads === 'gone' ||
        (bad !== null && at >= bad.offsetBytes && at < bad.offsetBytes + bad.lengthBytes)
      );
    };
    if (job.op === 'read') {
      const { place } = error;
      const lost = place.lost ?? [
        { offsetBytes: place.offsetBytes ?? -1, lengthBytes: place.lengthBytes ?? 0 },
      ];
      const end = job.offsetBytes + job.lengthBytes;
      const isNamed = (at: number): boolean =>
        lost.some((range) => range.offsetBytes <= at && at < range.offsetBytes + range.lengthBytes);
      for (let at = job.offsetBytes; at < end; at += 1)
        if (isNamed(at) === isReadable(layout, at, unreadable))
          return `the error ${isNamed(at) ? 'names' : 'does not name'} ${at}, which can${isNamed(at) ? '' : 'not'} be had`;
      if (
        lost.some(
          (range) => range.offsetBytes < job.offsetBytes || range.offsetBytes + range.lengthBytes > end,
        )
      )
        return 'the error names what was not asked for';
    }
    return job.op === 'write' ? collateral(given, scripted) : null;
  }

  const content = before.slice();
  if (job.op === 'write') content.set(request, job.offsetBytes);
  if (job.op === 'read') {
    const expected = content.subarray(job.offsetBytes, job.offsetBytes + job.lengthBytes);
    if (Buffer.compare(answer, expected) !== 0) return 'the answer is wrong';
  }
  if (report.mismatchCount > 0) return `${report.mismatchCount} mismatches where all was in order`;
  const ideal = job.op === 'write' ? imagesOf(layout, content) : images;
  for (const [slot, state] of after.entries()) {
    if (state.state === 'missing') continue;
    const image = scripted.images[slot] ?? new Uint8Array();
    const right = ideal[slot] ?? new Uint8Array();
    const from = 0;
    let to = right.byteLength;
    if (state.state === 'recovering') {
      to = state.recoveredBytes;
      if (job.op === 'recover' && slot === job.member) {
        const end = job.offsetBytes + job.lengthBytes;
        const same = Buffer.compare(
          image.subarray(job.offsetBytes, end),
          right.subarray(job.offsetBytes, end),
        );
        if (same !== 0) return `member ${slot} was not recovered`;
      }
    }
    if (Buffer.compare(image.subarray(from, to), right.subarray(from, to)) !== 0)
      return `member ${slot} does not hold what it should`;
  }
  return null;
}

/**
 * After a write that failed: what lies outside its range reads as before or not at all, and inside, each sector is old
 * or new or cannot be read. Never anything else.
 */
function collateral({ layout, job, before, request }: Case, scripted: Scripted): string | null {
  const end = job.offsetBytes + job.lengthBytes;
  for (let at = 0; at < layout.arrayBytes; at += PAGE / 2) {
    scripted.batches = 0;
    const lengthBytes = Math.min(PAGE / 2, layout.arrayBytes - at);
    const { report, answer } = scripted.run({ op: 'read', offsetBytes: at, lengthBytes, member: 0 });
    if (report.error !== null) continue;
    for (let index = 0; index < lengthBytes; index += 1) {
      const byte = at + index;
      const isOld = answer[index] === before[byte];
      const isNew =
        byte >= job.offsetBytes && byte < end && answer[index] === request[byte - job.offsetBytes];
      if (!isOld && !isNew) return `after the error, byte ${byte} is neither old nor new`;
    }
  }
  return null;
}

function titleOf({ health, job, faults: of }: Case): string {
  const states = health.map(({ state }) => state).join(' ');
  return `${job.op} ${job.offsetBytes}+${job.lengthBytes} of ${job.member}; ${states}; ${of.join(', ')}`;
}

export function check(given: Case): void {
  let complaint: string | null;
  try {
    complaint = wrong(given, false);
    if (given.job.op === 'write') complaint ??= wrong(given, true);
  } catch (thrown) {
    complaint = `it threw ${thrown instanceof Error ? (thrown.stack ?? thrown.message) : thrown}`;
  }
  if (complaint !== null) throw new Error(`${complaint}\n  (${titleOf(given)})`);
}

/** Content, the members that hold it, and bytes to write. */
export function poolOf(layout: Layout, random: Random): Pick<Case, 'before' | 'images' | 'request'> {
  const before = randomBytes(random, layout.arrayBytes);
  return { before, images: imagesOf(layout, before), request: randomBytes(random, layout.arrayBytes) };
}

/** A case with two faults, at random, some of them with scratch for a page of every member only. */
export function checkTwoFaults(layout: Layout, pool: ReturnType<typeof poolOf>, random: Random): void {
  const healths = healthsOf(layout);
  const health = healths[random(healths.length)] ?? [];
  const job = jobOf(layout, ops[random(ops.length)] ?? 'read', random, health);
  if (job === null) return;
  const of = health.map((): FaultName => 'none');
  for (let fault = 0; fault < 2; fault += 1)
    of[random(of.length)] = faultNames[random(faultNames.length)] ?? 'none';
  const request = pool.request.subarray(0, job.lengthBytes);
  const tiny = random(2) === 0 ? {} : { scratchBytes: (layout.memberCount + 2) * PAGE };
  check({ layout, health, job, faults: of, ...pool, request, ...tiny });
}

/** Every health, member, fault and operation; of them, by chance, one in `outOf`. */
export function checkOneFault(
  layout: Layout,
  pool: ReturnType<typeof poolOf>,
  random: Random,
  outOf: number,
): number {
  let count = 0;
  for (const health of healthsOf(layout)) {
    for (let slot = 0; slot < layout.memberCount; slot += 1) {
      for (const name of faultNames) {
        for (const op of ops) {
          if (random(outOf) > 0) continue;
          const job = jobOf(layout, op, random, health);
          if (job === null) continue;
          const of = health.map((_, member): FaultName => (member === slot ? name : 'none'));
          check({
            layout,
            health,
            job,
            faults: of,
            ...pool,
            request: pool.request.subarray(0, job.lengthBytes),
          });
          count += 1;
        }
      }
    }
  }
  return count;
}
