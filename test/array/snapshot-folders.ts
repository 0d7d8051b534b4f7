/** Arrays in folders, with snapshots, as tests of them want them. */
import { cpSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { createArray } from '../../lib/array/folder.ts';
import type { Device } from '../../lib/device/device.ts';
import { MIB } from '../../lib/units.ts';

const scratch = await mkdtemp(join(tmpdir(), 'raidsim-snapshots-'));
afterAll(() => rm(scratch, { recursive: true, force: true }));
let folders = 0;

export function newFolder(): string {
  folders += 1;
  return join(scratch, `a${folders}`);
}

export const small = { level: 5, disks: 3, diskSize: '4M', chunk: '64K', driver: 'event-loop' } as const;
export const quiet = { driver: 'event-loop', autoSync: false } as const;

export async function bytesOf(device: Device): Promise<Uint8Array> {
  const bytes = new Uint8Array(device.limits.sizeBytes);
  await device.read(0, bytes);
  return bytes;
}

export async function bytesAt(array: RaidArray, name: string): Promise<Uint8Array> {
  await using snapshot = snapshotsOf(array).openSnapshot(name);
  return await bytesOf(snapshot);
}

export function snapshotsOf(array: RaidArray): NonNullable<RaidArray['snapshots']> {
  if (array.snapshots === null) throw new Error('an array that can have snapshots');
  return array.snapshots;
}

export function expectSame(found: Uint8Array, wanted: Uint8Array): void {
  expect(Buffer.compare(found, wanted)).toBe(0);
}

export function filled(lengthBytes: number, value: number): Uint8Array {
  return new Uint8Array(lengthBytes).fill(value);
}

/** An array with content, and a snapshot `one` of it. */
export async function withSnapshot(folder: string, options: object = small): Promise<Uint8Array> {
  await using array = await createArray(folder, options as typeof small);
  const words = new Uint32Array(array.limits.sizeBytes / 4).map((_, index) => Math.imul(index, 2654435761));
  const content = new Uint8Array(words.buffer);
  await array.write(0, content);
  await snapshotsOf(array).create('one', { limitBytes: 16 * MIB });
  return content;
}

/** Synchronously, as a power cut has it: what is under way stands still. */
export function copyFolder(from: string, to: string): void {
  cpSync(from, to, { recursive: true, filter: (path) => !path.includes('lock') && !path.endsWith('.sock') });
}
