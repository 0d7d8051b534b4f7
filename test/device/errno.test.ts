import { constants } from 'node:os';
import { describe, expect, test } from 'vitest';
import { errnoName, errorFromErrno, type FileOperation } from '../../lib/device/errno.ts';
import { type ErrorCode, RaidError } from '../../lib/errors.ts';

/** As libuv raises it: a name where it knows one, else "Unknown system error". */
function systemError(name: keyof typeof constants.errno, known = true): Error {
  const errno = -constants.errno[name];
  const code = known ? name : `Unknown system error ${errno}`;
  return Object.assign(new Error(`${code}: something, read`), { errno, code, syscall: 'read' });
}

const table: readonly (readonly [FileOperation, keyof typeof constants.errno, ErrorCode])[] = [
  ['read', 'EIO', 'MEDIUM_ERROR'],
  ['read', 'EILSEQ', 'MEDIUM_ERROR'],
  ['read', 'ENODEV', 'MEMBER_GONE'],
  ['read', 'EBADF', 'MEMBER_GONE'],
  ['read', 'EINVAL', 'UNALIGNED'],
  ['write', 'EIO', 'WRITE_FAILED'],
  ['write', 'EROFS', 'WRITE_FAILED'],
  ['write', 'EPERM', 'WRITE_FAILED'],
  ['write', 'EACCES', 'WRITE_FAILED'],
  ['write', 'ENOSPC', 'NO_SPACE'],
  ['write', 'EDQUOT', 'NO_SPACE'],
  ['write', 'EFBIG', 'NO_SPACE'],
  ['write', 'ENXIO', 'MEMBER_GONE'],
  ['write', 'ESTALE', 'MEMBER_GONE'],
  ['write', 'EINVAL', 'UNALIGNED'],
  ['flush', 'EIO', 'FLUSH_FAILED'],
  ['flush', 'ENOSPC', 'FLUSH_FAILED'],
  ['flush', 'EINVAL', 'FLUSH_FAILED'],
  ['flush', 'ENODEV', 'MEMBER_GONE'],
  ['open', 'ENOENT', 'BAD_ARGUMENT'],
  ['open', 'EACCES', 'BAD_ARGUMENT'],
  ['open', 'EEXIST', 'BAD_ARGUMENT'],
  ['open', 'EROFS', 'READ_ONLY'],
  ['open', 'EBUSY', 'BUSY'],
  ['open', 'EMFILE', 'BUSY'],
  ['open', 'ENOSPC', 'NO_SPACE'],
  ['open', 'ENXIO', 'MEMBER_GONE'],
  ['open', 'EIO', 'MEMBER_GONE'],
];

describe('errorFromErrno', () => {
  test.each(table)('%s that meets %s is %s', (operation, name, code) => {
    expect(errorFromErrno(systemError(name), operation).code).toBe(code);
  });

  test('knows what libuv has no name for by its number', () => {
    const cause = systemError('EDQUOT', false);
    expect(errnoName(cause)).toBe('EDQUOT');
    expect(errorFromErrno(cause, 'write').code).toBe('NO_SPACE');
  });

  test('keeps the place and the cause, and says what happened to what', () => {
    const cause = systemError('EIO');
    const place = { device: 'disk0.img', offsetBytes: 4096, lengthBytes: 512 };
    const error = errorFromErrno(cause, 'read', place);
    expect(error.place).toEqual(place);
    expect(error.cause).toBe(cause);
    expect(error.injected).toBe(false);
    expect(error.message).toMatch(/^disk0\.img: cannot read 512 bytes at 4096: EIO/);
    expect(errorFromErrno(cause, 'write', { member: 2 }).message).toMatch(/^member 2: cannot write: EIO/);
  });

  test('passes a RaidError through', () => {
    const error = new RaidError('BUSY', 'taken');
    expect(errorFromErrno(error, 'write')).toBe(error);
  });

  test('throws on what no system call raised: a bug must not pass for a failing disk', () => {
    const bug = new TypeError('undefined is not a function');
    expect(() => errorFromErrno(bug, 'write')).toThrow(bug);
    const invalid = Object.assign(new RangeError('out of range'), { code: 'ERR_OUT_OF_RANGE' });
    expect(() => errorFromErrno(invalid, 'read')).toThrow(invalid);
  });
});
