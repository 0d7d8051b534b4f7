/**
 * The bound is fair only if it makes the very system calls that the array makes. So the functions of node:fs that do
 * synchronous I/O are watched while an array works inline, and what they were called with is held against the bound's
 * list: same members, places, lengths, directions, number of buffers, and order.
 */
import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { remove } from 'fs-extra/esm';
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Call, callsOfCheck, callsOfRecover, callsOfRequests, type Setting } from '../../bench/calls.ts';
import { Replay } from '../../bench/replay.ts';
import { type BenchLevel, batchesOf, benchLevels, type Work, works } from '../../bench/works.ts';
import { RaidArray } from '../../lib/array/array.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { createMemory } from '../../lib/engine/memory.ts';
import { KIB, MIB } from '../../lib/units.ts';

interface Seen {
  readonly direction: 'read' | 'write';
  readonly vectored: boolean;
  readonly descriptor: number;
  readonly position: number;
  readonly lengths: readonly number[];
}

const seen = vi.hoisted(() => [] as Seen[]);

vi.mock('node:fs', async (original) => {
  const real = await original<typeof import('node:fs')>();
  const one =
    (direction: 'read' | 'write') =>
    (descriptor: number, bytes: Uint8Array, offset: number, length: number, position: number): number => {
      seen.push({ direction, vectored: false, descriptor, position, lengths: [length] });
      return direction === 'read'
        ? real.readSync(descriptor, bytes, offset, length, position)
        : real.writeSync(descriptor, bytes, offset, length, position);
    };
  const many =
    (direction: 'read' | 'write') =>
    (descriptor: number, views: Uint8Array[], position: number): number => {
      const lengths = views.map((view) => view.byteLength);
      seen.push({ direction, vectored: true, descriptor, position, lengths });
      return direction === 'read'
        ? real.readvSync(descriptor, views, position)
        : real.writevSync(descriptor, views, position);
    };
  const watched = {
    readSync: one('read'),
    writeSync: one('write'),
    readvSync: many('read'),
    writevSync: many('write'),
  };
  return { ...real, ...watched, default: { ...real, ...watched } };
});

const folder = mkdtempSync('/tmp/raidsim-calls-');
afterAll(() => remove(folder));

const shape = { members: 4, chunkBytes: 64 * KIB, memberBytes: 4 * MIB };
const VICTIM = 1;

async function arrayOf(level: BenchLevel, name: string): Promise<RaidArray> {
  const members = await Promise.all(
    Array.from({ length: shape.members }, (_, slot) =>
      FileDevice.create(join(folder, `${name}-${slot}`), shape.memberBytes, { replace: true }),
    ),
  );
  return new RaidArray({ geometry: level.geometry(shape), members, driver: 'inline', autoSync: false });
}

function settingOf(array: RaidArray): Setting {
  return { layout: array.layout, threads: 1, map: createMemory(1, 64 * MIB) };
}

/** With descriptors in place of members, so that the two lists can be compared. */
function asSeen(calls: readonly Call[], descriptors: readonly number[]): readonly Seen[] {
  return calls.map(({ direction, vectored, member, offsetBytes, buffers }) => ({
    direction,
    vectored,
    descriptor: descriptors[member] ?? -1,
    position: offsetBytes,
    lengths: buffers.map(({ lengthBytes }) => lengthBytes),
  }));
}

function descriptorsOf(array: RaidArray): readonly number[] {
  return Array.from({ length: array.layout.memberCount }, (_, slot) => {
    const member = array.members.find(({ state }) => state.state === 'in_sync' && state.slot === slot);
    const access = member?.device.direct;
    return access?.kind === 'file' ? access.fd : -1;
  });
}

const requestWorks = works.filter(({ does }) => does.kind === 'sequential' || does.kind === 'random');

async function carryOut(array: RaidArray, work: Work): Promise<readonly Call[]> {
  const [requests = []] = 'op' in work.does ? batchesOf(work.does, array.layout) : [];
  const some = requests.slice(0, 64);
  for (const { op, offsetBytes, lengthBytes } of some) {
    const bytes = new Uint8Array(lengthBytes);
    if (op === 'read') await array.read(offsetBytes, bytes);
    else await array.write(offsetBytes, bytes);
  }
  return callsOfRequests(settingOf(array), some, work.depth, work.degraded ? VICTIM : null).flat();
}

beforeEach(() => {
  seen.length = 0;
});

describe.each(benchLevels)('the bound of $label makes the calls that the array makes', (level) => {
  test.each(requestWorks)('$name', async (work) => {
    await using array = await arrayOf(level, 'request');
    if (!work.applies(level, array.layout)) return;
    const descriptors = descriptorsOf(array);
    if (work.degraded) await array.fail(VICTIM);
    seen.length = 0;
    const calls = await carryOut(array, work);
    const made = [...seen];
    expect(made.length).toBeGreaterThan(0);
    expect(asSeen(calls, descriptors)).toEqual(made);
  });

  test('check and recover', async () => {
    if (!level.redundant) return;
    await using array = await arrayOf(level, 'sync');
    const descriptors = descriptorsOf(array);
    seen.length = 0;
    for await (const { mismatchCount } of array.scrub()) expect(mismatchCount).toBe(0);
    expect(asSeen(callsOfCheck(settingOf(array)).flat(), descriptors)).toEqual([...seen]);

    await array.fail(VICTIM);
    const failed = array.members.find(({ state }) => state.state === 'faulty');
    await array.add(await array.remove(failed?.name ?? ''));
    seen.length = 0;
    for await (const _progress of array.rebuild());
    expect(array.degraded).toBe(0);
    expect(asSeen(callsOfRecover(settingOf(array), VICTIM).flat(), descriptors)).toEqual([...seen]);
  });
});

test('with several threads the same calls are dealt out among them', async () => {
  for (const level of benchLevels) {
    await using array = await arrayOf(level, 'threads');
    for (const work of requestWorks.filter(({ applies }) => applies(level, array.layout))) {
      const [requests = []] = 'op' in work.does ? batchesOf(work.does, array.layout) : [];
      const one = callsOfRequests(settingOf(array), requests, work.depth, null).flat();
      const setting = { ...settingOf(array), threads: 3, map: createMemory(3, 64 * MIB) };
      const three = callsOfRequests(setting, requests, work.depth, null);
      expect(three).toHaveLength(3);
      // Cut at other places, so only the places themselves can be compared; edges that are read twice count twice.
      if (work.does.kind === 'random') expect(places(three.flat())).toEqual(places(one));
      else expect(bytesOf(three.flat(), 'read')).toBeGreaterThanOrEqual(bytesOf(one, 'read'));
    }
  }
});

function places(calls: readonly Call[]): readonly string[] {
  return calls
    .map((call) => `${call.direction} ${call.member} ${call.offsetBytes} ${lengthOf(call)}`)
    .toSorted();
}

function bytesOf(calls: readonly Call[], direction: 'read' | 'write'): number {
  return calls.filter((call) => call.direction === direction).reduce((sum, call) => sum + lengthOf(call), 0);
}

function lengthOf({ buffers }: Call): number {
  return buffers.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
}

test('a replay makes its list of calls, and says so when bytes are missing', async () => {
  const level = benchLevels.find(({ label }) => label === 'raid5');
  if (level === undefined) throw new Error('raid5 is compared');
  await using array = await arrayOf(level, 'replay');
  const descriptors = descriptorsOf(array);
  const setting = settingOf(array);
  const calls = callsOfRequests(
    setting,
    [{ op: 'write', offsetBytes: 4 * KIB, lengthBytes: MIB }],
    1,
    null,
  ).flat();
  const replay = new Replay(setting.map.memory, descriptors, calls);
  seen.length = 0;
  expect(replay.run()).toBeGreaterThan(0);
  expect([...seen]).toEqual(asSeen(calls, descriptors));

  const beyond = calls.map((call) => ({
    ...call,
    direction: 'read' as const,
    offsetBytes: shape.memberBytes,
  }));
  expect(() => new Replay(setting.map.memory, descriptors, beyond).run()).toThrow(/moved 0 bytes/);
});
