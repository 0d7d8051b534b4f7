/**
 * Every error raidsim raises, in one table.
 *
 * The class of an error is the *reaction* it calls for: a code exists only where some caller would act
 * differently on it. Exit codes of the CLI and errno values of NBD derive from the reaction, so the three
 * cannot drift apart.
 *
 *   reaction         who acts                               CLI exit   NBD errno
 *   fix-call         the caller                             2          EINVAL (EPERM, ENOSPC where said)
 *   retry            the same layer, bounded                -          (hidden)
 *   other-path       multipath                              -          (hidden)
 *   reconstruct      the engine: rebuild from peers         -          (hidden)
 *   fail-member      the array: exclude it, degrade         -          (hidden)
 *   give-up          nobody below: exactly this range       5          EIO
 *   refuse           bytes on disk are not what they claim  3          -
 *   ask-operator     a person with --force                  4          -
 *   unknown-outcome  the caller re-reads or re-writes       6          EIO
 *
 * Programmer errors are not in the table: `assert` throws an `InvariantViolation`, which has no code and is
 * never caught on purpose.
 */
export type Reaction =
  | 'fix-call'
  | 'retry'
  | 'other-path'
  | 'reconstruct'
  | 'fail-member'
  | 'give-up'
  | 'refuse'
  | 'ask-operator'
  | 'unknown-outcome';

interface ErrorRow {
  readonly reaction: Reaction;
  readonly says: string;
  readonly nbd?: 'EPERM' | 'ENOSPC' | 'EINVAL' | 'EIO' | 'ENOTSUP';
}

const errors = {
  // The call itself.
  OUT_OF_RANGE: { reaction: 'fix-call', says: 'the range lies outside the device' },
  UNALIGNED: { reaction: 'fix-call', says: 'offset or length is not a multiple of the block size' },
  ZERO_LENGTH: { reaction: 'fix-call', says: 'the request is empty' },
  READ_ONLY: { reaction: 'fix-call', says: 'the device is read-only', nbd: 'EPERM' },
  CLOSED: { reaction: 'fix-call', says: 'the device is closed' },
  BAD_ARGUMENT: { reaction: 'fix-call', says: 'an argument has a value that cannot be used' },
  BAD_GEOMETRY: { reaction: 'fix-call', says: 'no array can have this shape' },
  NO_SUCH_ARRAY: { reaction: 'fix-call', says: 'there is no array of that name' },
  NO_SUCH_MEMBER: { reaction: 'fix-call', says: 'the array has no such member' },
  NOT_SUPPORTED: { reaction: 'fix-call', says: 'the device cannot do this', nbd: 'ENOTSUP' },
  NO_SUCH_REPOSITORY: { reaction: 'fix-call', says: 'there is no backup repository there' },
  NO_SUCH_BACKUP: { reaction: 'fix-call', says: 'the repository has no such backup' },
  WRONG_PASSPHRASE: { reaction: 'fix-call', says: 'the repository is encrypted with another passphrase' },

  // One member, one place: peers can stand in.
  MEDIUM_ERROR: { reaction: 'reconstruct', says: 'a part of one member cannot be read' },
  SHORT_READ: { reaction: 'reconstruct', says: 'a member returned fewer bytes than it holds' },

  // One member as a whole.
  WRITE_FAILED: { reaction: 'fail-member', says: 'a member did not take a write' },
  FLUSH_FAILED: { reaction: 'fail-member', says: 'a member did not make its writes durable' },
  NO_SPACE: { reaction: 'fail-member', says: 'the file system below a member is full', nbd: 'ENOSPC' },
  MEMBER_GONE: { reaction: 'fail-member', says: 'a member stopped answering' },
  PROTOCOL_VIOLATION: { reaction: 'fail-member', says: 'the other end does not keep to the protocol' },

  // Beyond redundancy: exactly this range.
  REDUNDANCY_LOST: { reaction: 'give-up', says: 'more is missing than redundancy covers' },
  ARRAY_FAILED: { reaction: 'give-up', says: 'the array has lost more members than it can miss' },
  READ_ABANDONED: { reaction: 'give-up', says: 'a read was given up, though nothing is known to be lost' },

  // The bytes on disk are not what they claim: nothing is written.
  BAD_MANIFEST: { reaction: 'refuse', says: 'the manifest of an array is not readable' },
  BAD_MAGIC: { reaction: 'refuse', says: 'there is no md superblock here' },
  SUPERBLOCK_BROKEN: { reaction: 'refuse', says: 'md metadata contradicts itself or the device it is on' },
  UNSUPPORTED_FEATURE: { reaction: 'refuse', says: 'the array uses a feature that raidsim does not have' },
  BAD_REPOSITORY: { reaction: 'refuse', says: 'files of a backup repository are not what they claim' },
  RESHAPE_IN_PROGRESS: { reaction: 'refuse', says: 'the array stopped in the middle of a reshape' },

  // A person must decide.
  LAST_COPY: { reaction: 'ask-operator', says: 'this would take the last copy of data' },
  BUSY: { reaction: 'ask-operator', says: 'something else is using it' },
  HOLDS_DATA: { reaction: 'ask-operator', says: 'what is there already would be lost' },
  SEVERAL_ARRAYS: { reaction: 'ask-operator', says: 'the members belong to more than one array' },
  ALREADY_IN_ARRAY: { reaction: 'ask-operator', says: 'the device already belongs to an array' },
  DUPLICATE_MEMBER: { reaction: 'ask-operator', says: 'two devices claim to be the same member' },
  FORKED_HISTORY: { reaction: 'ask-operator', says: 'parts of the array went on without each other' },
  MEMBERS_MISSING: { reaction: 'ask-operator', says: 'members that the array still had are not offered' },
  EVENTS_DISAGREE: { reaction: 'ask-operator', says: 'too many members are behind the others' },
  STORE_FAILED: { reaction: 'ask-operator', says: 'the store of a backup repository does not answer' },
  NOT_ENOUGH_MEMBERS: { reaction: 'ask-operator', says: 'too few members to start, whatever is forced' },
  DIRTY_DEGRADED: { reaction: 'ask-operator', says: 'the array is degraded and was not stopped cleanly' },

  // Nobody can know.
  WRITE_MAYBE_APPLIED: { reaction: 'unknown-outcome', says: 'a write may or may not have happened' },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof errors;

export const errorCodes = Object.keys(errors) as readonly ErrorCode[];

/** Where it happened; only what is known. */
export interface ErrorPlace {
  readonly device?: string;
  readonly member?: number;
  readonly offsetBytes?: number;
  readonly lengthBytes?: number;
  /** All of what is lost, in order, where it is more than one place. */
  readonly lost?: readonly LostRange[];
}

export interface LostRange {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface RaidErrorOptions extends ErrorPlace {
  readonly cause?: unknown;
  /** True for a fault that a `FaultDevice` or the simulator made. */
  readonly injected?: boolean;
}

/** An error as it crosses threads: structured clone drops subclasses and their fields. */
export interface ErrorRecord extends ErrorPlace {
  readonly code: ErrorCode;
  readonly message: string;
  readonly injected: boolean;
}

export class RaidError extends Error {
  readonly code: ErrorCode;
  readonly place: ErrorPlace;
  readonly injected: boolean;

  /** `detail` says what happened, to what, and what to do now; the code says what kind of thing it is. */
  constructor(code: ErrorCode, detail: string, options: RaidErrorOptions = {}) {
    const { cause, injected, ...place } = options;
    super(detail === '' ? errors[code].says : detail, cause === undefined ? undefined : { cause });
    this.name = 'RaidError';
    this.code = code;
    this.place = place;
    this.injected = injected ?? (cause instanceof RaidError && cause.injected);
  }

  get reaction(): Reaction {
    return errors[this.code].reaction;
  }

  toRecord(): ErrorRecord {
    return { code: this.code, message: this.message, injected: this.injected, ...this.place };
  }

  static fromRecord(record: ErrorRecord): RaidError {
    const { code, message, ...rest } = record;
    return new RaidError(code, message, rest);
  }
}

export function reactionOf(code: ErrorCode): Reaction {
  return errors[code].reaction;
}

/** The exit code that the CLI ends with when this error reaches it. */
export function exitCodeOf(code: ErrorCode): number {
  const reaction = reactionOf(code);
  switch (reaction) {
    case 'fix-call':
      return 2;
    case 'refuse':
      return 3;
    case 'ask-operator':
      return 4;
    case 'give-up':
    case 'reconstruct':
    case 'fail-member':
      return 5;
    case 'unknown-outcome':
      return 6;
    case 'retry':
    case 'other-path':
      return 1;
    default:
      return unreachable(reaction);
  }
}

/** What an NBD client is told when this error ends its request. */
export function nbdErrorOf(code: ErrorCode): NonNullable<ErrorRow['nbd']> {
  const row: ErrorRow = errors[code];
  return row.nbd ?? (row.reaction === 'fix-call' ? 'EINVAL' : 'EIO');
}

/** A claim about the program itself does not hold. Nothing catches it: going on could write wrong bytes. */
export class InvariantViolation extends Error {
  override readonly name = 'InvariantViolation';
}

/** Always on. `claim` is a fixed string: no interpolation on hot paths. */
export function assert(condition: boolean, claim: string): asserts condition {
  if (!condition) throw new InvariantViolation(claim);
}

export function unreachable(value: never): never {
  throw new InvariantViolation(`unreachable: ${JSON.stringify(value)}`);
}
