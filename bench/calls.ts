/**
 * The system calls of an array's work, without the array: which `pread`, `preadv`, `pwrite` and `pwritev` the engine makes
 * for a sequence of requests, in order, for each of its lanes. They come from the planner itself and are joined into
 * runs by the engine's own rule; only the cutting of requests into jobs is said again here, and
 * test/bench/calls.slow.test.ts holds the result against the calls that an array is seen to make.
 */
import { WINDOW_BYTES } from '../lib/array/sync.ts';
import { addressIn, type Batch, runsOf } from '../lib/engine/batch.ts';
import { HEAP_BYTES, JOB_BYTES, SYNC_JOB_BYTES } from '../lib/engine/engine.ts';
import { type MemoryMap, PAGE_BYTES, scratchAddress } from '../lib/engine/memory.ts';
import type { Job } from '../lib/engine/ring.ts';
import { walkSliceBytes } from '../lib/engine/run.ts';
import { memberRun, stripeBytes, territoryOf } from '../lib/engine/territory.ts';
import { assert } from '../lib/errors.ts';
import type { Layout } from '../lib/layout/layout.ts';
import { type CompiledHealth, compileHealth } from '../lib/plan/health.ts';
import { isLost, type MemberHealth, type Transfer } from '../lib/plan/plan.ts';
import { planCheck, planRead, planRecover, planWrite, syncBytes } from '../lib/plan/planner.ts';
import { roundDown, roundUp } from '../lib/units.ts';
import type { Request } from './works.ts';

export interface Call {
  readonly member: number;
  readonly direction: 'read' | 'write';
  /** `preadv` or `pwritev`: even where its buffers turn out to be neighbours in memory. */
  readonly vectored: boolean;
  readonly offsetBytes: number;
  readonly buffers: readonly { readonly address: number; readonly lengthBytes: number }[];
}

/** One list for each thread. */
export type CallLists = readonly (readonly Call[])[];

export interface Setting {
  readonly layout: Layout;
  /** How many threads do the I/O: the engine's lanes, and 1 where it has none. */
  readonly threads: number;
  /** Laid out as the engine's own memory. */
  readonly map: MemoryMap;
}

/** `missing` is the slot that is empty, if one is. Each of `depth` requests under way has a buffer of its own. */
export function callsOfRequests(
  setting: Setting,
  requests: readonly Request[],
  depth: number,
  missing: number | null,
): CallLists {
  const { layout, map } = setting;
  const health = healthWith(layout, missing, { state: 'missing' });
  const lists = emptyLists(setting);
  for (const [index, request] of requests.entries()) {
    const buffer = map.heapAddress + (index % depth) * roundUp(request.lengthBytes, PAGE_BYTES);
    assert(buffer + request.lengthBytes <= map.heapAddress + map.heapBytes, 'the buffers are in the heap');
    const end = request.offsetBytes + request.lengthBytes;
    for (let offsetBytes = request.offsetBytes; offsetBytes < end; ) {
      const lengthBytes = Math.min(end - offsetBytes, pieceAt(setting, offsetBytes));
      const address = buffer + (offsetBytes - request.offsetBytes);
      addJob(setting, health, { op: request.op, offsetBytes, lengthBytes, address, member: 0 }, lists);
      offsetBytes += lengthBytes;
    }
  }
  return lists;
}

export function callsOfCheck(setting: Setting): CallLists {
  const { layout } = setting;
  const health = healthWith(layout, null, { state: 'missing' });
  const lists = emptyLists(setting);
  forEachSyncJob(setting, 'check', 0, syncBytes(layout), (job) => addJob(setting, health, job, lists));
  return lists;
}

export function callsOfRecover(setting: Setting, member: number): CallLists {
  const { layout } = setting;
  const lists = emptyLists(setting);
  forEachSyncJob(setting, 'recover', member, layout.memberBytes[member] ?? 0, (job, recoveredBytes) => {
    const health = healthWith(layout, member, { state: 'recovering', recoveredBytes });
    addJob(setting, health, job, lists);
  });
  return lists;
}

function healthWith(layout: Layout, which: number | null, state: MemberHealth): CompiledHealth {
  const members = Array.from(
    { length: layout.memberCount },
    (_, member): MemberHealth => (member === which ? state : { state: 'in_sync' }),
  );
  return compileHealth(layout, { members, erased: [] });
}

function emptyLists({ threads }: Setting): Call[][] {
  return Array.from({ length: threads }, () => []);
}

// Cutting, as engine.ts and drivers.ts do it.

function pieceBytesOf(layout: Layout): number {
  const rowBytes = stripeBytes(layout);
  return Math.min(Math.max(roundDown(JOB_BYTES, rowBytes), rowBytes), HEAP_BYTES / 4);
}

function territoryBytesOf(layout: Layout): number {
  return Math.max(pieceBytesOf(layout), stripeBytes(layout));
}

function pieceAt({ layout, threads }: Setting, offsetBytes: number): number {
  const limitBytes = pieceBytesOf(layout);
  if (threads === 1) return roundDown(offsetBytes, limitBytes) + 2 * limitBytes - offsetBytes;
  const territoryBytes = territoryBytesOf(layout);
  return Math.min(limitBytes, territoryBytes - (offsetBytes % territoryBytes));
}

function forEachSyncJob(
  setting: Setting,
  op: 'check' | 'recover',
  member: number,
  totalBytes: number,
  each: (job: Job, windowBytes: number) => void,
): void {
  const sliceBytes = walkSliceBytes(setting.layout);
  for (let window = 0; window < totalBytes; window += WINDOW_BYTES) {
    const end = Math.min(totalBytes, window + WINDOW_BYTES);
    for (let offsetBytes = window; offsetBytes < end; ) {
      const jobEnd = Math.min(end, offsetBytes + syncPieceAt(setting, op, member, offsetBytes));
      while (offsetBytes < jobEnd) {
        const next = Math.min(jobEnd, roundDown(offsetBytes, sliceBytes) + sliceBytes);
        each({ op, offsetBytes, lengthBytes: next - offsetBytes, address: 0, member }, window);
        offsetBytes = next;
      }
    }
  }
}

function syncPieceAt(
  { layout, threads }: Setting,
  op: 'check' | 'recover',
  member: number,
  offsetBytes: number,
): number {
  const limitBytes = Math.max(layout.kind === 'parity' ? layout.chunkBytes : 0, SYNC_JOB_BYTES);
  if (threads === 1) return limitBytes;
  const territoryBytes = territoryBytesOf(layout);
  if (op === 'recover' || layout.kind === 'parity') {
    return memberRun(layout, member, offsetBytes, limitBytes, territoryBytes);
  }
  return Math.min(limitBytes, territoryBytes - (offsetBytes % territoryBytes));
}

// Planning, and joining as batch.ts does it.

function addJob(setting: Setting, health: CompiledHealth, job: Job, lists: Call[][]): void {
  const { layout, map, threads } = setting;
  const plan = planOf(layout, health, job);
  assert(!isLost(plan), 'what is compared can be done');
  const lane = Math.floor(territoryOf(layout, job).from / territoryBytesOf(layout)) % threads;
  const base = {
    requestBytes: plan.requestBytes,
    requestAddress: job.address,
    scratchAddress: scratchAddress(lane),
  };
  for (const [direction, transfers] of [
    ['read', plan.reads],
    ['write', plan.writes],
  ] as const) {
    for (const run of transfers.length > 0 ? runsOf(transfers) : []) {
      lists[lane]?.push({
        member: run.member,
        direction,
        vectored: run.transfers.length > 1,
        offsetBytes: run.offsetBytes,
        buffers: buffersOf(run.transfers, base),
      });
    }
  }
  assert(map.laneCount >= threads, 'every thread has scratch memory');
}

function planOf(layout: Layout, health: CompiledHealth, job: Job): ReturnType<typeof planRead> {
  switch (job.op) {
    case 'read':
      return planRead(layout, health, job.offsetBytes, job.lengthBytes);
    case 'write':
      return planWrite(layout, health, job.offsetBytes, job.lengthBytes);
    case 'recover':
      return planRecover(layout, health, job.member, job.offsetBytes, job.lengthBytes);
    default:
      return planCheck(layout, health, job.offsetBytes, job.lengthBytes);
  }
}

function buffersOf(
  transfers: readonly Transfer[],
  base: Omit<Batch, 'direction' | 'transfers'>,
): readonly { readonly address: number; readonly lengthBytes: number }[] {
  const buffers: { address: number; lengthBytes: number }[] = [];
  for (const transfer of transfers) {
    const address = addressIn(base, transfer.address);
    const last = buffers.at(-1);
    if (last !== undefined && last.address + last.lengthBytes === address) {
      last.lengthBytes += transfer.lengthBytes;
    } else {
      buffers.push({ address, lengthBytes: transfer.lengthBytes });
    }
  }
  return buffers;
}
