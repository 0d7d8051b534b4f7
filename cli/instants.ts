/**
 * Snapshots that `backup create` takes for itself, and what is left of them when it is killed.
 *
 *   backup-20261121T213900.123Z-4242.88123.1f0c9a.5b77e1.c04d22
 *          when                 │    │     └ sketches of host, boot and pid namespace: the same here, or not
 *                               │    └ when the process started, as /proc has it; 0 where nobody tells
 *                               └ process
 *
 * The name alone says whose it is, so that it is known also where the repository of that backup is not. One is left behind
 * if its process is gone. Where the array was nobody's until now, every one of them is: a backup that runs has the array
 * open, or speaks with the process that has. What cannot be known (another machine, another container) is left alone.
 */
import { createHash } from 'node:crypto';
import type { Holder, Witness } from '../lib/index.ts';

const NAME = /^backup-\d{8}T\d{6}\.\d{3}Z-(\d+)\.(\d+)\.([0-9a-f]{6})\.([0-9a-f]{6})\.([0-9a-f]{6})$/;

export function instantName(wallClockMs: number, self: Holder): string {
  const when = new Date(wallClockMs).toISOString().replaceAll(/[-:]/g, '');
  const where = [self.host, self.bootId, self.pidNamespace].map(sketch);
  return `backup-${when}-${self.pid}.${self.startTime ?? 0}.${where.join('.')}`;
}

export async function isLeftBehind(name: string, isLive: boolean, witness: Witness): Promise<boolean> {
  const found = NAME.exec(name);
  if (found === null) return false;
  if (!isLive) return true;
  const self = await witness.self();
  const [, pid, startTime, ...where] = found;
  // What looks like this one's is; else it is another, and which does not matter.
  const same = (text: string | null, index: number): string | null =>
    sketch(text) === where[index] ? text : `not ${text}`;
  const holder: Holder = {
    host: same(self.host, 0) ?? '',
    pid: Number(pid),
    startTime: startTime === '0' || startTime === undefined ? null : startTime,
    bootId: same(self.bootId, 1),
    pidNamespace: same(self.pidNamespace, 2),
  };
  return (await witness.isAlive(holder)) === false;
}

function sketch(text: string | null): string {
  return createHash('sha256')
    .update(text ?? '')
    .digest('hex')
    .slice(0, 6);
}
