/** What crosses between the main thread and a lane, besides the rings: rare, and so plain messages. */
import type { MessagePort } from 'node:worker_threads';
import type { DirectAccess } from '../device/device.ts';
import { type ErrorRecord, RaidError } from '../errors.ts';
import type { Geometry } from '../layout/geometry.ts';
import type { ErasedRange, Health } from '../plan/plan.ts';
import type { LogShape } from './log.ts';
import type { MemoryMap } from './memory.ts';
import type { Correction, Mismatch, Report } from './run.ts';

/** What a lane is to work on. */
export interface LaneTask {
  readonly map: MemoryMap;
  readonly lane: number;
  readonly geometry: Geometry;
  readonly health: Health;
  readonly members: readonly (DirectAccess | null)[];
  readonly kernel: string | undefined;
  readonly readOnly: boolean;
  readonly log: LogShape | null;
}

/** What a thread is born with. */
export interface LaneBirth extends LaneTask {
  readonly port: MessagePort;
}

export type ControlMessage =
  | { readonly kind: 'health'; readonly health: Health }
  | {
      readonly kind: 'member';
      readonly member: number;
      readonly access: DirectAccess | null;
      readonly logAccess: DirectAccess | null;
    }
  | { readonly kind: 'stop' }
  | { readonly kind: 'die'; readonly when: Death };

/**
 * For tests: when a worker dies. Before its next commit, when that is logged where it is to be; in the middle of it; or
 * when it is done and nobody has been told.
 */
export type Death = 'now' | 'before-commit' | 'in-commit' | 'after-commit';

/** A report as it crosses threads: errors as records, since structured clone drops their class. */
export interface ReportMessage {
  readonly id: number;
  readonly error: ErrorRecord | null;
  readonly again: boolean;
  readonly exclusions: readonly { readonly member: number; readonly error: ErrorRecord }[];
  readonly corrections: readonly Correction[];
  readonly damaged: readonly ErasedRange[];
  readonly mismatches: readonly Mismatch[];
  readonly mismatchCount: number;
}

export function messageOf(id: number, report: Report): ReportMessage {
  return {
    ...report,
    id,
    error: report.error?.toRecord() ?? null,
    exclusions: report.exclusions.map(({ member, error }) => ({ member, error: error.toRecord() })),
  };
}

export function reportOf(message: ReportMessage): Report {
  return {
    ...message,
    error: message.error === null ? null : RaidError.fromRecord(message.error),
    exclusions: message.exclusions.map(({ member, error }) => ({
      member,
      error: RaidError.fromRecord(error),
    })),
  };
}
