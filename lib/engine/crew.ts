/**
 * Who carries out what lanes are given: threads (thread.ts), or whoever works in the same memory as if it were one. What
 * becomes of jobs when one of them dies is lanes.ts's, whoever they are.
 */
import type { DirectAccess } from '../device/device.ts';
import type { ControlMessage, LaneTask, ReportMessage } from './message.ts';

export interface Crew {
  /** Members that can be reached so are carried out by it. */
  readonly reaches: readonly DirectAccess['kind'][];
  hire(task: LaneTask, hears: Hears): Hand;
  /** Calls back soon, when others have had their turn. */
  soon(look: () => void): void;
}

/** What a hand says, each after the call that hired it has returned. */
export interface Hears {
  /** A report, or a doorbell; whatever was taken with `receive` does not come again. */
  posted(message: ReportMessage | null): void;
  /** An exception: a programming error. */
  broke(error: Error): void;
  /** It is gone, and touches nothing any more. */
  died(): void;
}

export interface Hand {
  post(message: ControlMessage): void;
  /** The oldest that it has posted and nobody has heard; undefined where there is none. */
  receive(): ReportMessage | null | undefined;
  /** There is a new job in the ring. */
  wake(): void;
  /** Gone between two instructions, or after a system call that it was in. */
  kill(): Promise<void>;
  /** Nothing that it posts is heard any more. */
  leave(): void;
  /** Whether the process goes on for its sake, and for that of what it may post. */
  ref(): void;
  unref(): void;
  refPosts(): void;
  unrefPosts(): void;
}
