/** What `status --json` prints: the array as a plain object with stable keys. */
import { layoutName } from '../layout/levels.ts';
import type { SnapshotInfo } from '../snapshot/origin.ts';
import type { RaidArray } from './array.ts';
import type { ErrorCounts, Member } from './members.ts';

export interface MemberStatus {
  readonly name: string;
  /** The file or URI; null for a slot whose member is not here. */
  readonly source: string | null;
  readonly slot: number | null;
  readonly state: 'in_sync' | 'recovering' | 'replacement' | 'spare' | 'faulty' | 'missing';
  /** `read` and `write` since the array was opened; told by one that is not open, they are 0. */
  readonly errors: Readonly<ErrorCounts>;
  /** Why it failed, or what it lacks. */
  readonly because?: string;
}

export interface SyncStatus {
  readonly action: 'recover' | 'resync' | 'check' | 'repair';
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** Null while nothing is running: only the position is known. */
  readonly bytesPerSecond: number | null;
  readonly etaSeconds: number | null;
}

export interface SnapshotStatus {
  readonly name: string;
  /** ISO 8601, UTC. */
  readonly createdAt: string;
  /** Of an invalid one nothing can be read any more. */
  readonly state: 'valid' | 'invalid';
  /** What deleting it would free. */
  readonly uniqueBytes: number;
  /** What it shares with other snapshots. */
  readonly sharedBytes: number;
  /** What of it cannot be read: the array could not read it when it was overwritten. */
  readonly lostBytes: number;
}

export interface ArrayStatus {
  readonly name: string;
  readonly uuid: string | null;
  readonly level: string;
  readonly layout: string | null;
  readonly chunkBytes: number;
  readonly sizeBytes: number;
  readonly metadata: string | null;
  readonly events: number | null;
  readonly state: string;
  readonly degraded: number;
  readonly consistencyPolicy: 'none' | 'resync' | 'bitmap' | 'ppl';
  readonly members: readonly MemberStatus[];
  readonly sync: SyncStatus | null;
  readonly mismatches: number;
  readonly served: string | null;
  /** Oldest first; absent where there are none. */
  readonly snapshots?: readonly SnapshotStatus[];
  /** The snapshot that the array is half-way back to, and neither that nor what it was; absent where it is not. */
  readonly rollbackTo?: string;
}

export function statusOf(array: RaidArray): ArrayStatus {
  const { geometry } = array.layout;
  const md = array.metadata?.array ?? null;
  const { snapshots } = array;
  const status: ArrayStatus = {
    name: array.name,
    uuid: md?.setUuid ?? null,
    level: geometry.level,
    layout: layoutName(geometry),
    chunkBytes: 'chunkBytes' in geometry ? geometry.chunkBytes : 0,
    sizeBytes: array.limits.sizeBytes,
    metadata: md?.version ?? null,
    events: md?.events ?? null,
    state: array.state,
    degraded: array.degraded,
    consistencyPolicy: policyOf(array),
    members: membersOf(array),
    sync: syncOf(array),
    mismatches: array.mismatchCount,
    served: null,
  };
  if (snapshots === null || snapshots.count === 0) return status;
  const interrupted = snapshots.origin?.interrupted ?? null;
  return {
    ...status,
    ...(interrupted === null ? {} : { rollbackTo: interrupted.name }),
    // Made when somebody looks: it counts every copy, and whoever serves an array asks for its status all the time.
    get snapshots() {
      return snapshotsOf(snapshots.list()).snapshots ?? [];
    },
  };
}

export function snapshotsOf(list: readonly SnapshotInfo[]): Pick<ArrayStatus, 'snapshots'> {
  const snapshots = list.flatMap(({ name, createdAtMs, state, uniqueBytes, sharedBytes, lostBytes }) => {
    if (state === 'tracking') return [];
    const createdAt = new Date(createdAtMs).toISOString();
    return [{ name, createdAt, state, uniqueBytes, sharedBytes, lostBytes }];
  });
  return snapshots.length === 0 ? {} : { snapshots };
}

function policyOf(array: RaidArray): ArrayStatus['consistencyPolicy'] {
  const { layout } = array;
  if (layout.kind === 'copies' && layout.copyCount === 1) return 'none';
  if (array.metadata === null) return 'resync';
  if (array.metadata.logShape !== null) return 'ppl';
  return array.metadata.bitmap === null ? 'resync' : 'bitmap';
}

function membersOf(array: RaidArray): readonly MemberStatus[] {
  const here = array.members.map(memberStatus);
  const missing: MemberStatus[] = [];
  for (let slot = 0; slot < array.layout.memberCount; slot += 1) {
    if (here.some((member) => member.slot === slot && member.state !== 'faulty')) continue;
    missing.push({
      name: '-',
      source: null,
      slot,
      state: 'missing',
      errors: { read: 0, write: 0, corrected: 0 },
    });
  }
  const order = (member: MemberStatus): number =>
    member.slot === null || member.state === 'faulty' ? 1e6 : member.slot;
  return [...here, ...missing].sort((a, b) => order(a) - order(b));
}

function memberStatus(member: Readonly<Member>): MemberStatus {
  const { name, device, errors, state } = member;
  const slot = 'slot' in state ? state.slot : null;
  const common = { name, source: device.name, slot, state: state.state, errors: { ...errors } };
  return state.state === 'faulty' ? { ...common, because: state.because.message } : common;
}

function syncOf(array: RaidArray): SyncStatus | null {
  const { syncProgress, scrubProgress } = array;
  if (syncProgress !== null) return { ...syncProgress, ...array.syncRate };
  if (scrubProgress !== null) {
    const { action, doneBytes, totalBytes } = scrubProgress;
    return { action, doneBytes, totalBytes, bytesPerSecond: null, etaSeconds: null };
  }
  const state = array.members.map((member) => member.state).find((each) => 'recoveredBytes' in each);
  if (state === undefined || !('recoveredBytes' in state)) return null;
  return {
    action: 'recover',
    doneBytes: state.recoveredBytes,
    totalBytes: array.layout.memberBytes[state.slot] ?? 0,
    bytesPerSecond: null,
    etaSeconds: null,
  };
}
