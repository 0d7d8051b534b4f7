/**
 * A batch is the I/O of one phase of one plan: all of its reads, or all of its writes. The logic in run.ts yields
 * batches and learns which transfers failed; who carries them out, and whether it waits or blocks, is the driver's
 * affair.
 *
 * Transfers that follow each other on a member become one `preadv` or `pwritev`, whatever their order in the plan: in
 * a sequential write the chunks of one member lie in successive rows, and one system call of 320 KiB costs a
 * fifth of five of 64 KiB on tmpfs.
 */
import { fdatasyncSync, readSync, readvSync, writeSync, writevSync } from 'node:fs';
import type { Device, DirectAccess } from '../device/device.ts';
import { errorFromErrno } from '../device/errno.ts';
import { RaidError } from '../errors.ts';
import type { LogEntry, Transfer } from '../plan/plan.ts';

export interface Batch {
  readonly direction: 'read' | 'write';
  readonly transfers: readonly Transfer[];
  /** Virtual addresses below this are in the request's buffer, the rest in scratch. */
  readonly requestBytes: number;
  readonly requestAddress: number;
  readonly scratchAddress: number;
}

/** These members, or replacements, make durable what they have been given. */
export interface Flush {
  readonly direction: 'flush';
  readonly members: readonly number[];
}

/** What has to be in the partial parity log, durably, before the next commit: log.ts. */
export interface LogRequest {
  readonly direction: 'log';
  /** With real addresses. */
  readonly entries: readonly LogEntry[];
  /** Members that the commit writes to. */
  readonly touched: readonly number[];
}

/** The commit that was logged has been carried out, as far as it could be. */
export interface LogRelease {
  readonly direction: 'release';
}

/** All that a runner can ask of its driver. */
export type Request = Batch | Flush | LogRequest | LogRelease;

/** `transfer` has no bytes where the member failed as a whole, in a flush. */
export interface Failure {
  readonly transfer: Transfer;
  readonly error: RaidError;
}

/** The real address of a virtual one. */
export function addressIn(batch: Omit<Batch, 'direction' | 'transfers'>, address: number): number {
  return address < batch.requestBytes
    ? batch.requestAddress + address
    : batch.scratchAddress + (address - batch.requestBytes);
}

/** Transfers of one member that follow each other on it. */
export interface Run {
  readonly member: number;
  readonly offsetBytes: number;
  readonly transfers: readonly Transfer[];
}

/** Linux takes 1024 buffers a call; more than this gains nothing. */
const RUN_TRANSFERS = 256;

export function runsOf(transfers: readonly Transfer[]): readonly Run[] {
  const sorted = [...transfers].sort((a, b) => a.member - b.member || a.offsetBytes - b.offsetBytes);
  const runs: Run[] = [];
  let current: Transfer[] = [];
  let end = -1;
  let member = -1;
  for (const transfer of sorted) {
    if (transfer.member !== member || transfer.offsetBytes !== end || current.length === RUN_TRANSFERS) {
      current = [];
      runs.push({ member: transfer.member, offsetBytes: transfer.offsetBytes, transfers: current });
    }
    current.push(transfer);
    member = transfer.member;
    end = transfer.offsetBytes + transfer.lengthBytes;
  }
  return runs;
}

/** Buffers for a run; neighbours in memory become one. */
function viewsOf(memory: WebAssembly.Memory, batch: Batch, run: Run): Uint8Array[] {
  const views: Uint8Array[] = [];
  let start = -1;
  let end = -1;
  for (const transfer of run.transfers) {
    const address = addressIn(batch, transfer.address);
    if (address !== end) {
      if (start >= 0) views.push(new Uint8Array(memory.buffer, start, end - start));
      start = address;
    }
    end = address + transfer.lengthBytes;
  }
  if (start >= 0) views.push(new Uint8Array(memory.buffer, start, end - start));
  return views;
}

export function gone(member: number): RaidError {
  return new RaidError('MEMBER_GONE', `member ${member} is not there`, { member });
}

/** Carries out batches synchronously: in a lane, or on the main thread when it runs a plan itself. */
export class SynchronousIo {
  readonly #memory: WebAssembly.Memory;
  readonly #bytes: Uint8Array;
  readonly #members: (DirectAccess | null)[];

  constructor(memory: WebAssembly.Memory, members: readonly (DirectAccess | null)[]) {
    this.#memory = memory;
    this.#bytes = new Uint8Array(memory.buffer);
    this.#members = [...members];
  }

  setMember(member: number, access: DirectAccess | null): void {
    this.#members[member] = access;
  }

  /** Null when everything succeeded. All transfers are tried, whatever fails. */
  perform(batch: Batch | Flush): readonly Failure[] | null {
    if (batch.direction === 'flush') return this.#flush(batch.members);
    const only = batch.transfers[0];
    if (batch.transfers.length === 1 && only !== undefined) {
      const error = this.#one(batch, only);
      return error === null ? null : [{ transfer: only, error }];
    }
    let failures: Failure[] | null = null;
    for (const run of runsOf(batch.transfers)) {
      // One by one, to learn which of them it was.
      if (!this.#together(batch, run)) failures = this.#oneByOne(batch, run.transfers, failures);
    }
    return failures;
  }

  /** Adds to what has failed before. */
  #oneByOne(batch: Batch, transfers: readonly Transfer[], before: Failure[] | null): Failure[] | null {
    let failures = before;
    for (const transfer of transfers) {
      const error = this.#one(batch, transfer);
      if (error === null) continue;
      failures ??= [];
      failures.push({ transfer, error });
    }
    return failures;
  }

  /** Into memory of the caller's. False where anything is not as it should be: `perform` says then what it is. */
  readInto(member: number, offsetBytes: number, target: Uint8Array): boolean {
    const access = this.#members[member];
    if (access === null || access === undefined) return false;
    const position = access.offsetBytes + offsetBytes;
    const { byteLength } = target;
    if (access.kind === 'memory') {
      if (position + byteLength > access.memory.byteLength) return false;
      target.set(new Uint8Array(access.memory, position, byteLength));
      return true;
    }
    try {
      if (access.kind === 'file') return readSync(access.fd, target, 0, byteLength, position) === byteLength;
      access.calls.read(position, target);
      return true;
    } catch {
      return false;
    }
  }

  #flush(members: readonly number[]): readonly Failure[] | null {
    const failures: Failure[] = [];
    for (const member of members) {
      const access = this.#members[member];
      if (access?.kind === 'memory') continue;
      const transfer = wholeMember(member);
      try {
        if (access === null || access === undefined) throw gone(member);
        if (access.kind === 'calls') {
          access.calls.flush();
          continue;
        }
        fdatasyncSync(access.fd);
      } catch (cause) {
        const error = cause instanceof RaidError ? cause : errorFromErrno(cause, 'flush', { member });
        failures.push({ transfer, error });
      }
    }
    return failures.length === 0 ? null : failures;
  }

  #together(batch: Batch, run: Run): boolean {
    const access = this.#members[run.member];
    if (access?.kind !== 'file' || run.transfers.length === 1) return false;
    const views = viewsOf(this.#memory, batch, run);
    let expected = 0;
    for (const view of views) expected += view.byteLength;
    const position = access.offsetBytes + run.offsetBytes;
    try {
      const done =
        batch.direction === 'read'
          ? readvSync(access.fd, views, position)
          : writevSync(access.fd, views, position);
      // A short count is left to the one-by-one path, which loops.
      return done === expected;
    } catch {
      return false;
    }
  }

  #one(batch: Batch, transfer: Transfer): RaidError | null {
    const access = this.#members[transfer.member];
    if (access === null || access === undefined) return gone(transfer.member);
    const address = addressIn(batch, transfer.address);
    const position = access.offsetBytes + transfer.offsetBytes;
    if (access.kind === 'memory')
      return this.#copy(batch.direction, access.memory, position, address, transfer);
    let done = 0;
    try {
      if (access.kind === 'calls') {
        const bytes = this.#bytes.subarray(address, address + transfer.lengthBytes);
        access.calls[batch.direction](position, bytes);
        return null;
      }
      while (done < transfer.lengthBytes) {
        const count =
          batch.direction === 'read'
            ? readSync(access.fd, this.#bytes, address + done, transfer.lengthBytes - done, position + done)
            : writeSync(access.fd, this.#bytes, address + done, transfer.lengthBytes - done, position + done);
        if (count === 0) {
          return new RaidError(
            batch.direction === 'read' ? 'SHORT_READ' : 'WRITE_FAILED',
            `member ${transfer.member} ends at byte ${position + done} of its file, where it should hold data`,
            transferPlace(transfer),
          );
        }
        done += count;
      }
      return null;
    } catch (cause) {
      if (cause instanceof RaidError) return cause;
      return errorFromErrno(cause, batch.direction, transferPlace(transfer));
    }
  }

  #copy(
    direction: 'read' | 'write',
    memory: SharedArrayBuffer,
    position: number,
    address: number,
    transfer: Transfer,
  ): RaidError | null {
    if (position + transfer.lengthBytes > memory.byteLength) {
      return new RaidError('SHORT_READ', `member ${transfer.member} is too small`, transferPlace(transfer));
    }
    const member = new Uint8Array(memory, position, transfer.lengthBytes);
    if (direction === 'read') this.#bytes.set(member, address);
    else member.set(new Uint8Array(this.#memory.buffer, address, transfer.lengthBytes));
    return null;
  }
}

function wholeMember(member: number): Transfer {
  return { member, offsetBytes: 0, lengthBytes: 0, address: 0 };
}

function transferPlace(transfer: Transfer): { member: number; offsetBytes: number; lengthBytes: number } {
  return { member: transfer.member, offsetBytes: transfer.offsetBytes, lengthBytes: transfer.lengthBytes };
}

/** Carries out batches through the members' own asynchronous operations, all runs at once. */
export class AsynchronousIo {
  readonly #memory: WebAssembly.Memory;
  readonly #members: (Device | null)[];

  constructor(memory: WebAssembly.Memory, members: readonly (Device | null)[]) {
    this.#memory = memory;
    this.#members = [...members];
  }

  setMember(member: number, device: Device | null): void {
    this.#members[member] = device;
  }

  async perform(batch: Batch | Flush): Promise<readonly Failure[] | null> {
    const failures: Failure[] = [];
    if (batch.direction === 'flush') {
      await Promise.all(
        batch.members.map(async (member) => {
          const error = await this.#attemptFlush(member);
          if (error !== null) failures.push({ transfer: wholeMember(member), error });
        }),
      );
      return failures.length === 0 ? null : failures;
    }
    await Promise.all(
      runsOf(batch.transfers).map(async (run) => {
        const error = await this.#attempt(batch, run);
        if (error === null) return;
        // A write that failed may still land, late: it is not tried again, so that whoever goes without the member from now
        // on writes nothing there that it could fall on.
        if (batch.direction === 'write' || run.transfers.length === 1) {
          for (const transfer of run.transfers) failures.push({ transfer, error });
          return;
        }
        for (const transfer of run.transfers) {
          const alone = { member: run.member, offsetBytes: transfer.offsetBytes, transfers: [transfer] };
          const error = await this.#attempt(batch, alone);
          if (error !== null) failures.push({ transfer, error });
        }
      }),
    );
    return failures.length === 0 ? null : failures;
  }

  async #attemptFlush(member: number): Promise<RaidError | null> {
    const device = this.#members[member];
    if (device === null || device === undefined) return gone(member);
    try {
      await device.flush();
      return null;
    } catch (cause) {
      return cause instanceof RaidError ? cause : errorFromErrno(cause, 'flush', { member });
    }
  }

  async #attempt(batch: Batch, run: Run): Promise<RaidError | null> {
    const device = this.#members[run.member];
    if (device === null || device === undefined) return gone(run.member);
    const views = viewsOf(this.#memory, batch, run);
    try {
      if (batch.direction === 'read') await device.read(run.offsetBytes, views);
      else await device.write(run.offsetBytes, views);
      return null;
    } catch (cause) {
      if (cause instanceof RaidError) return cause;
      return errorFromErrno(cause, batch.direction, { member: run.member, offsetBytes: run.offsetBytes });
    }
  }
}
