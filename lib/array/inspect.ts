/**
 * What the array in a folder is, found out without touching it: its members are opened for reading only, nothing is
 * locked, and what assembly would decide is told and not done. So it also answers for an array that cannot start, that
 * nobody may write, or that another process has in hand at this moment; of that one it sees what is on disk, which
 * trails what its owner knows.
 */
import { basename, join, resolve } from 'node:path';
import type { Device } from '../device/device.ts';
import { OverlayDevice } from '../device/overlay.ts';
import { type ErrorRecord, RaidError } from '../errors.ts';
import { realHost } from '../host.ts';
import { compileLayout } from '../layout/compile.ts';
import type { Geometry } from '../layout/geometry.ts';
import type { Layout } from '../layout/layout.ts';
import { layoutName, levelFromNumber } from '../layout/levels.ts';
import { survives } from '../layout/survives.ts';
import type { Assembly, Candidate, MemberVerdict } from '../md/assemble.ts';
import { decodeBitmapSuperblock } from '../md/bitmap.ts';
import { type Examined, examineJson, examineText, layoutName as mdLayoutName } from '../md/examine.ts';
import { geometryOf } from '../md/levels.ts';
import { type Claim, correctedSectorsOf } from '../md/member.ts';
import { bitmapOffsetOf, features } from '../md/superblock1.ts';
import { witnessOf } from '../md/update.ts';
import { syncBytes } from '../plan/planner.ts';
import { peekSnapshots, type SnapshotInfo, type SnapshotUsage } from '../snapshot/origin.ts';
import { formatSize, SECTOR_BYTES } from '../units.ts';
import { readManifest, type Scrubbed } from './folder.ts';
import { judge, type Source } from './form.ts';
import { type Owner, Ownership } from './ownership.ts';
import { SNAPSHOT_STORE, unfinished } from './snapshots.ts';
import {
  isThere,
  locksOfDevice,
  type MemberDevice,
  memberNames,
  openNamed,
  openSource,
  unreadOf,
  wholeSource,
} from './source.ts';
import { type ArrayStatus, type MemberStatus, type SyncStatus, snapshotsOf } from './status.ts';
import { findSuperblock } from './superblocks.ts';

export interface Inspection {
  /** As `RaidArray.status()` tells it; `inactive` for an array that does not start without a word from a person. */
  readonly status: ArrayStatus;
  /** Slots; 0 when no member says. */
  readonly memberCount: number;
  /** So many members more may fail, whichever they are. */
  readonly sparedFailures: number;
  /** Why it does not start; null when it does. */
  readonly refusal: RaidError | null;
  /** With this word to `assemble` it would start. */
  readonly needs: 'force' | 'run' | null;
  /** The process that has the array open. */
  readonly owner: Owner | null;
  readonly geometry: Geometry | null;
  /** Of the last scrub that came to its end; null where nobody has noted one. */
  readonly scrubbed: Scrubbed | null;
  /** How much room their copies take; null where there is no store for them, or nobody can read it. */
  readonly snapshotUsage: SnapshotUsage | null;
  /** Why the snapshots that are there cannot be used, or the array not before a rollback has been finished. */
  readonly snapshotProblem: ErrorRecord | null;
}

/** One file or export of the manifest, as far as it could be opened. */
interface Look {
  /** As the manifest has it. */
  readonly source: string;
  readonly name: string;
  readonly device: Device | null;
  readonly problem: RaidError | null;
  /** What could not be read of the disk when it was copied; '' where all was. */
  readonly lacks: string;
  readonly identity: string;
}

/** Whoever looks waits less long for an export than whoever works with it. */
const patience = { connectMs: 3000, timeoutMs: 5000 };

export async function inspectArray(folder: string): Promise<Inspection> {
  const manifest = await readManifest(folder);
  const looks: Look[] = [];
  try {
    const names = memberNames(manifest.members);
    for (const [index, source] of manifest.members.entries()) {
      const path = wholeSource(source, folder);
      looks.push(await look(path, source, names[index] ?? source, manifest.overlay === true ? folder : null));
    }
    const owner = await ownerOf(folder, looks);
    const { inspection, witness } = await told(
      basename(resolve(folder)),
      looks,
      owner,
      manifest.scrubbed ?? null,
    );
    const isBeside = manifest.readOnly === true || manifest.overlay === true;
    return isBeside ? inspection : await withSnapshots(folder, inspection, witness);
  } finally {
    await Promise.all(looks.map(({ device }) => device?.close()));
  }
}

export interface MemberExamination {
  /** What `mdadm --examine` prints. */
  readonly text: string;
  readonly json: Record<string, unknown>;
}

/** The md metadata on one file, block device or export. */
export async function examineMember(path: string): Promise<MemberExamination> {
  const device = await openNamed(path, { ...patience, readOnly: true });
  try {
    const found = await findSuperblock(device);
    const memberSectors = Math.floor(device.limits.sizeBytes / SECTOR_BYTES);
    let bitmap: Examined['bitmap'] = null;
    const offset = found.version === '0.90' ? null : bitmapOffsetOf(found.superblock);
    if (offset !== null && found.version !== '0.90') {
      const bytes = new Uint8Array(512);
      await device.read((found.superblock.superSector + offset) * SECTOR_BYTES, bytes);
      // A broken bitmap is no reason to keep the superblock from whoever looks.
      try {
        bitmap = decodeBitmapSuperblock(bytes.subarray(0, 256));
      } catch (error) {
        if (!(error instanceof RaidError)) throw error;
      }
    }
    const examined: Examined = { found, memberSectors, bitmap };
    return { text: `${path}:\n${examineText(examined)}`, json: { file: path, ...examineJson(examined) } };
  } catch (error) {
    if (!(error instanceof RaidError) || error.message.startsWith(path)) throw error;
    throw new RaidError(error.code, `${path}: ${error.message}`, { ...error.place, cause: error });
  } finally {
    await device.close();
  }
}

function describeUnread(device: MemberDevice): string {
  const unread = unreadOf(device);
  return unread === null
    ? ''
    : `${formatSize(unread.bytes)} could not be read from the disk (${unread.mapPath})`;
}

async function look(path: string, source: string, name: string, overlayFolder: string | null): Promise<Look> {
  const nothing = { source, name, device: null, lacks: '', identity: `path:${path}` };
  if (!(await isThere(path))) return { ...nothing, problem: null };
  try {
    const file = await openSource(path, { ...patience, readOnly: true });
    const overlay = overlayFolder === null ? null : join(overlayFolder, `${name}.overlay`);
    const device =
      overlay !== null && (await isThere(overlay)) ? await OverlayDevice.open(file, overlay) : file;
    const identity = locksOfDevice(file)[0]?.identity ?? '';
    return { source, name, device, problem: null, lacks: describeUnread(file), identity };
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    return { ...nothing, problem: error };
  }
}

async function ownerOf(folder: string, looks: readonly Look[]): Promise<Owner | null> {
  const members = looks.filter(({ device }) => device !== null);
  const ownership = await Ownership.take({
    folder,
    members: members.map(({ source, identity }) => ({ path: source, identity })),
    host: realHost,
    mode: 'read',
  });
  const { owner } = ownership;
  await ownership.release();
  return owner;
}

async function told(
  name: string,
  looks: readonly Look[],
  owner: Owner | null,
  scrubbed: Scrubbed | null,
): Promise<{ readonly inspection: Inspection; readonly witness: string | null }> {
  const sources: Source[] = [];
  const looked: Look[] = [];
  for (const each of looks) {
    if (each.device === null) continue;
    looked.push(each);
    sources.push({ device: each.device, name: each.name, identity: each.identity });
  }
  const { verdict, candidates } = await judge(sources, { run: true });
  const claim = claimThatSpeaks(verdict, candidates);
  const geometry = geometryIn(verdict, candidates, claim);
  const layout = geometry === null ? null : compileLayout(geometry);
  const here = looked.map((each, index) =>
    memberStatus(each, verdict.members[index], candidates[index]?.claim),
  );
  const gone = looks.filter(({ device }) => device === null).map(missingStatus);
  const memberCount = claim?.raidDisks ?? 0;
  const members = inOrder(withEmptySlots([...here, ...gone], memberCount));
  const inSync = new Set(members.filter(({ state }) => state === 'in_sync').map(({ slot }) => slot));
  const state = stateOf(verdict, owner !== null);
  const status: ArrayStatus = {
    name,
    uuid: claim?.setUuid ?? null,
    level: geometry?.level ?? levelFromNumber(claim?.level ?? Number.NaN) ?? 'unknown',
    layout:
      geometry === null
        ? claim === null
          ? null
          : mdLayoutName(claim.level, claim.layout)
        : layoutName(geometry),
    chunkBytes: claim === null || claim.level === 1 ? 0 : claim.chunkSectors * SECTOR_BYTES,
    sizeBytes: layout?.arrayBytes ?? 0,
    metadata: claim?.found.version ?? null,
    events: claim?.events ?? null,
    state,
    degraded: memberCount - inSync.size,
    consistencyPolicy: policyOf(claim, layout),
    members,
    sync: syncOf(verdict, layout, state),
    mismatches: scrubbed?.mismatches ?? 0,
    served: null,
  };
  const inspection: Inspection = {
    status,
    memberCount,
    sparedFailures: layout === null ? 0 : sparedFailures(layout, (slot) => !inSync.has(slot)),
    refusal: verdict.kind === 'refuse' ? verdict.error : null,
    needs: verdict.kind === 'refuse' ? verdict.needs : null,
    owner,
    geometry,
    scrubbed,
    snapshotUsage: null,
    snapshotProblem: null,
  };
  const md = verdict.kind === 'start' ? verdict.array.md : null;
  return { inspection, witness: md === null ? null : witnessOf(md) };
}

/** As whoever opens the array next will find them: see snapshots.ts. */
async function withSnapshots(folder: string, found: Inspection, witness: string | null): Promise<Inspection> {
  const path = join(folder, SNAPSHOT_STORE);
  if (!(await isThere(path))) return found;
  try {
    const { list, usage, witnesses, rollbackTo } = await peekSnapshots(path);
    const isAsLeft = witness === null || found.owner !== null || witnesses.includes(witness);
    const known = isAsLeft ? list : list.map((each) => asInvalid(each));
    const due = found.owner === null ? rollbackTo : null;
    const snapshotProblem =
      due === null ? null : unfinished(folder, found.status.name, due, !isAsLeft).toRecord();
    const rollback = due === null ? {} : { rollbackTo: due };
    const status = { ...found.status, ...snapshotsOf(known), ...rollback };
    return { ...found, status, snapshotUsage: usage, snapshotProblem };
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    // While another process writes to it, what is read need not fit together.
    return found.owner === null ? { ...found, snapshotProblem: error.toRecord() } : found;
  }
}

function asInvalid(info: SnapshotInfo): SnapshotInfo {
  if (info.state !== 'valid') return info;
  return { ...info, state: 'invalid', uniqueBytes: 0, sharedBytes: 0, lostBytes: 0 };
}

/** Of the freshest member; where nothing starts, of any that can be read. */
function claimThatSpeaks(verdict: Assembly, candidates: readonly Candidate[]): Claim | null {
  const claims = candidates.flatMap(({ claim }) => (claim instanceof RaidError ? [] : [claim]));
  if (verdict.kind === 'start') {
    const claim = candidates[verdict.array.freshest]?.claim;
    return claim === undefined || claim instanceof RaidError ? null : claim;
  }
  return claims.toSorted((left, right) => right.events - left.events)[0] ?? null;
}

function geometryIn(
  verdict: Assembly,
  candidates: readonly Candidate[],
  claim: Claim | null,
): Geometry | null {
  if (verdict.kind === 'start') return verdict.array.geometry;
  if (claim === null) return null;
  try {
    const dataSectors = candidates.flatMap((candidate) =>
      candidate.claim instanceof RaidError ? [] : [candidate.claim.dataSectors],
    );
    return geometryOf(
      { ...claim, hasRaid0Layout: (claim.featureMap & features.RAID0_LAYOUT) !== 0 },
      dataSectors,
    );
  } catch (error) {
    if (!(error instanceof RaidError)) throw error;
    return null;
  }
}

/** Of errors only what a superblock counts is known: the rest is with whoever has the array open. */
function memberStatus(
  each: Look,
  verdict: MemberVerdict | undefined,
  claim: Candidate['claim'] | undefined,
): MemberStatus {
  const { name, source, lacks } = each;
  const corrected = claim === undefined || claim instanceof RaidError ? 0 : correctedSectorsOf(claim);
  const errors = { read: 0, write: 0, corrected };
  const joins = verdict?.joins ?? 'out';
  const slot = verdict?.slot ?? null;
  switch (joins) {
    case 'in_sync':
    case 'recovering':
    case 'replacement':
      return { name, source, slot, state: joins, errors, ...(lacks === '' ? {} : { because: lacks }) };
    case 'spare':
      return { name, source, slot: null, state: 'spare', errors };
    case 'stale':
    case 'faulty':
    case 'out':
      return { name, source, slot: null, state: 'faulty', errors, because: becauseOf(verdict) };
  }
}

/** Of members that the array once had: they failed, or were failed. */
function becauseOf(verdict: MemberVerdict | undefined): string {
  if (verdict === undefined || verdict.because === '') return 'the array does not count on it';
  if (verdict.row.startsWith('@F')) return 'out of use: another disk has its place';
  return verdict.joins === 'stale' ? 'out of use: the array went on without it' : verdict.because;
}

function missingStatus({ name, source, problem }: Look): MemberStatus {
  return {
    name,
    source,
    slot: null,
    state: 'missing',
    errors: { read: 0, write: 0, corrected: 0 },
    because: problem === null ? 'its file is not there' : problem.message,
  };
}

/** A slot that nobody fills is missing, too. Where one file is not there and one slot empty, they are each other's. */
function withEmptySlots(members: readonly MemberStatus[], memberCount: number): readonly MemberStatus[] {
  const filled = new Set(members.map(({ slot }) => slot));
  const empty = Array.from({ length: memberCount }, (_, slot) => slot).filter((slot) => !filled.has(slot));
  const gone = members.filter(({ state }) => state === 'missing');
  const isFaulty = members.some(({ state }) => state === 'faulty');
  const [slot] = empty;
  if (empty.length === 1 && gone.length === 1 && !isFaulty && slot !== undefined) {
    return members.map((member) => (member === gone[0] ? { ...member, slot } : member));
  }
  const rows = empty.map(
    (each): MemberStatus => ({
      name: '-',
      source: null,
      slot: each,
      state: 'missing',
      errors: { read: 0, write: 0, corrected: 0 },
    }),
  );
  return [...members, ...rows];
}

function inOrder(members: readonly MemberStatus[]): readonly MemberStatus[] {
  const rank = ({ slot, state }: MemberStatus): number =>
    slot === null ? 1e6 + Number(state !== 'spare') : slot + (state === 'replacement' ? 0.5 : 0);
  return members.toSorted((left, right) => rank(left) - rank(right));
}

function stateOf(verdict: Assembly, isOwned: boolean): string {
  if (verdict.kind === 'refuse') {
    const { code } = verdict.error;
    return code === 'NOT_ENOUGH_MEMBERS' || code === 'EVENTS_DISAGREE' ? 'failed' : 'inactive';
  }
  const { slots, resyncOffsetSectors } = verdict.array;
  if (slots.some((member) => member !== null && member.recoveredSectors !== Number.POSITIVE_INFINITY))
    return 'recovering';
  if (slots.includes(null)) return 'degraded';
  if (resyncOffsetSectors === Number.POSITIVE_INFINITY) return 'clean';
  // Not clean on disk is what an array looks like that is being written; without an owner it was cut off.
  return isOwned && resyncOffsetSectors === 0 ? 'active' : 'resyncing';
}

function syncOf(verdict: Assembly, layout: Layout | null, state: string): SyncStatus | null {
  if (verdict.kind === 'refuse' || layout === null) return null;
  const unknown = { bytesPerSecond: null, etaSeconds: null };
  const { slots, replacements, resyncOffsetSectors } = verdict.array;
  const inSlots = slots.flatMap((member, slot) => (member === null ? [] : [{ ...member, slot }]));
  for (const { slot, recoveredSectors } of [...inSlots, ...replacements]) {
    const totalBytes = layout.memberBytes[slot] ?? 0;
    const doneBytes = Math.min(recoveredSectors * SECTOR_BYTES, totalBytes);
    if (recoveredSectors !== Number.POSITIVE_INFINITY)
      return { action: 'recover', doneBytes, totalBytes, ...unknown };
  }
  if (state !== 'resyncing') return null;
  return {
    action: 'resync',
    doneBytes: Math.min(resyncOffsetSectors * SECTOR_BYTES, syncBytes(layout)),
    totalBytes: syncBytes(layout),
    ...unknown,
  };
}

function policyOf(claim: Claim | null, layout: Layout | null): ArrayStatus['consistencyPolicy'] {
  if (claim === null || claim.level <= 0 || (layout?.kind === 'copies' && layout.copyCount === 1))
    return 'none';
  if ((claim.featureMap & (features.PPL | features.MULTI_PPL)) !== 0) return 'ppl';
  return (claim.featureMap & features.BITMAP) !== 0 ? 'bitmap' : 'resync';
}

/** What redundancy promises, and beyond that what trying shows: in raid10 it depends on which are missing already. */
/** How many members more may fail, whichever they are. */
export function sparedFailures(layout: Layout, isMissing: (slot: number) => boolean): number {
  const slots = Array.from({ length: layout.memberCount }, (_, slot) => slot);
  const present = slots.filter((slot) => !isMissing(slot));
  const most = layout.kind === 'parity' ? layout.parityCount : layout.copyCount - 1;
  let spared = Math.max(0, most - (slots.length - present.length));
  const isHeld = (lost: readonly number[]): boolean =>
    survives(layout, (slot) => isMissing(slot) || lost.includes(slot));
  while (spared < most && everyChoice(present, spared + 1, isHeld)) spared += 1;
  return spared;
}

function everyChoice(
  from: readonly number[],
  count: number,
  isHeld: (choice: readonly number[]) => boolean,
  chosen: readonly number[] = [],
): boolean {
  if (count === 0) return isHeld(chosen);
  return from.every((slot, index) =>
    everyChoice(from.slice(index + 1), count - 1, isHeld, [...chosen, slot]),
  );
}
