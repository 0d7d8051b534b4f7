/**
 * What an errno means to RAID. The same errno asks for different reactions on different paths: EIO on a read is one
 * bad place that peers can stand in for, EIO on a write is a member that no longer holds what the array thinks it holds.
 *
 *            EIO, other     ENOSPC EDQUOT EFBIG   EINVAL         ENODEV ENXIO EBADF ...
 *   open     see the table  NO_SPACE              BAD_ARGUMENT   MEMBER_GONE
 *   read     MEDIUM_ERROR   MEDIUM_ERROR          UNALIGNED      MEMBER_GONE
 *   write    WRITE_FAILED   NO_SPACE              UNALIGNED      MEMBER_GONE
 *   flush    FLUSH_FAILED   FLUSH_FAILED          FLUSH_FAILED   MEMBER_GONE
 *
 * A flush that meets a full file system is FLUSH_FAILED: the pages are gone from the cache, and making space does not
 * bring them back. EINVAL on a transfer can only be O_DIRECT refusing an address, an offset or a length: a bug or a
 * wrong block size of ours, not a reason to fail a member. EACCES, EPERM and EROFS on an open descriptor (a file
 * system remounted read-only after errors) are the member's failure, not the caller's.
 */
import { constants } from 'node:os';
import { type ErrorCode, type ErrorPlace, RaidError, unreachable } from '../errors.ts';

export type FileOperation = 'open' | 'read' | 'write' | 'flush';

const gone = new Set([
  'ENODEV',
  'ENXIO',
  'EBADF',
  'ESTALE',
  'ENOTCONN',
  'ESHUTDOWN',
  'ETIMEDOUT',
  'EHOSTDOWN',
  'EHOSTUNREACH',
  'ECONNRESET',
]);

const full = new Set(['ENOSPC', 'EDQUOT', 'EFBIG']);

const openCodes: ReadonlyMap<string, ErrorCode> = new Map<string, ErrorCode>([
  ['EROFS', 'READ_ONLY'],
  ['EBUSY', 'BUSY'],
  ['ETXTBSY', 'BUSY'],
  ['EMFILE', 'BUSY'],
  ['ENFILE', 'BUSY'],
  ['ENOMEM', 'BUSY'],
  ['EIO', 'MEMBER_GONE'],
]);

/**
 * The typed error for what a file operation, synchronous or not, threw. A RaidError passes through; what no system
 * call raised is a bug of this program and is thrown on, so that it cannot pass for a failing disk.
 */
export function errorFromErrno(cause: unknown, operation: FileOperation, place: ErrorPlace = {}): RaidError {
  if (cause instanceof RaidError) return cause;
  const name = errnoName(cause);
  if (name === null) throw cause;
  const detail = cause instanceof Error ? cause.message : name;
  return new RaidError(codeFor(name, operation), `${subject(operation, place)}: ${detail}`, {
    ...place,
    cause,
  });
}

/** `EDQUOT`, also where libuv has no name for it and says "Unknown system error -122"; null if it is no errno. */
export function errnoName(cause: unknown): string | null {
  if (!(cause instanceof Error) || !('errno' in cause) || typeof cause.errno !== 'number') return null;
  const code = 'code' in cause ? cause.code : undefined;
  if (typeof code === 'string' && /^E[A-Z0-9]+$/.test(code)) return code;
  const number = Math.abs(cause.errno);
  for (const [name, value] of Object.entries(constants.errno)) if (value === number) return name;
  return `errno ${number}`;
}

function codeFor(name: string, operation: FileOperation): ErrorCode {
  if (gone.has(name)) return 'MEMBER_GONE';
  switch (operation) {
    case 'open':
      return full.has(name) ? 'NO_SPACE' : (openCodes.get(name) ?? 'BAD_ARGUMENT');
    case 'read':
      return name === 'EINVAL' ? 'UNALIGNED' : 'MEDIUM_ERROR';
    case 'write':
      if (name === 'EINVAL') return 'UNALIGNED';
      return full.has(name) ? 'NO_SPACE' : 'WRITE_FAILED';
    case 'flush':
      return 'FLUSH_FAILED';
    default:
      return unreachable(operation);
  }
}

function subject(operation: FileOperation, place: ErrorPlace): string {
  const who = place.device ?? (place.member === undefined ? 'a device' : `member ${place.member}`);
  const length = place.lengthBytes === undefined ? '' : ` ${place.lengthBytes} bytes`;
  const where = place.offsetBytes === undefined ? '' : ` at ${place.offsetBytes}`;
  return `${who}: cannot ${operation}${length}${where}`;
}
