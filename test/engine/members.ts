/** Members that engines of every kind can use, and that fail in ways that lanes meet too: by their file descriptors. */
import { closeSync, openSync } from 'node:fs';
import { FileDevice } from '../../lib/device/file.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import type { DriverKind } from '../../lib/engine/engine.ts';
import { type Geometry, memberCountOf } from '../../lib/layout/geometry.ts';
import type { Health } from '../../lib/plan/plan.ts';
import { memberBytesOf, slotsOf } from './world.ts';

export const drivers: readonly DriverKind[] = ['inline', 'lanes', 'event-loop'];

export function memoryMembers(geometry: Geometry, blockBytes = 1): MemoryDevice[] {
  return slotsOf(geometry).map(
    (slot) =>
      new MemoryDevice({ sizeBytes: memberBytesOf(geometry, slot), name: `memory${slot}`, blockBytes }),
  );
}

export function fileMembers(folder: string, geometry: Geometry): Promise<FileDevice[]> {
  files += 1;
  const prefix = `${folder}/${files}`;
  return Promise.all(
    slotsOf(geometry).map((slot) =>
      FileDevice.create(`${prefix}-${slot}.img`, memberBytesOf(geometry, slot)),
    ),
  );
}
let files = 0;

export function allInSync(geometry: Geometry): Health {
  return {
    members: Array.from({ length: memberCountOf(geometry) }, () => ({ state: 'in_sync' })),
    erased: [],
  };
}

/** The descriptor's number, from now on open for reading only: every write fails with EBADF, every read works. */
export function refuseWrites(device: FileDevice): void {
  reopen(device, 'r');
}

export function acceptWrites(device: FileDevice): void {
  reopen(device, 'r+');
}

/** The descriptor's number, from now on of a file that cannot be read: every read fails with EBADF. */
export function refuseReads(device: FileDevice): void {
  reopen(device, 'a');
}

/**
 * The lowest free number is the one that an open is given, so that what is below is filled first. Node has no dup2:
 * between the close and the open the number is anybody's, and so no thread may be opening anything meanwhile: no lane may be
 * in its birth, when it loads its modules. There are none yet, or all have answered a request.
 */
function reopen(device: FileDevice, flags: string): void {
  const fd = device.direct?.kind === 'file' ? device.direct.fd : -1;
  closeSync(fd);
  const below: number[] = [];
  try {
    for (;;) {
      const opened = openSync(device.name, flags);
      if (opened === fd) break;
      below.push(opened);
      if (opened > fd) throw new Error(`another thread was given descriptor ${fd} while it was free`);
    }
  } finally {
    for (const opened of below) closeSync(opened);
  }
}

/** So many turns of the event loop: enough for everything that does not wait for something else. */
export async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** A promise that the test settles. */
export interface Deferred {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export function deferred(): Deferred {
  let resolve = (): void => undefined;
  let reject = (_error: Error): void => undefined;
  const promise = new Promise<void>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** Until it is true, turn by turn; by the clock, since on a busy machine a thread may be started very much later. */
export async function until(isTrue: () => boolean): Promise<void> {
  for (const end = performance.now() + 20_000; performance.now() < end; await turns(1)) if (isTrue()) return;
  throw new Error('it never came true');
}
