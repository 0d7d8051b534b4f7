/** Arrays of every level, clean and degraded as far as each goes, on a driver: for the conformance suite. */
import { RaidArray } from '../../lib/array/array.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import type { DriverKind } from '../../lib/engine/engine.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { memoryMembers } from '../engine/members.ts';
import { geometryNamed, shapes, sized } from '../engine/world.ts';
import { type Capabilities, conformance } from './suite.ts';

/** Slots that are empty: as many as the array survives, a data chunk's among them. */
const missing: Readonly<Record<string, readonly (readonly number[])[]>> = {
  raid1: [[0], [0, 2]],
  raid4: [[1]],
  raid5: [[2]],
  raid6: [[0], [1, 3]],
  'raid6 ddf': [[2, 5]],
  'raid10 near': [[0, 3]],
  'raid10 far': [[1]],
  'raid10 offset': [[4]],
};

export const arrayNames = shapes.map(([name]) => name);

export function conformanceOfArray(
  name: string,
  driver: DriverKind,
  options: {
    readonly blockBytes?: number;
    readonly requests?: number;
    readonly only?: 'clean' | 'degraded';
  } = {},
): void {
  const { blockBytes = 1, requests = 60, only } = options;
  const geometry = sized(geometryNamed(name), 96 * KIB);
  const capabilities: Capabilities = { copies: true, requests };
  const holes = [...(only === 'degraded' ? [] : [[]]), ...(only === 'clean' ? [] : (missing[name] ?? []))];
  for (const empty of holes) {
    const state = empty.length === 0 ? 'clean' : `without ${empty.join(' and ')}`;
    conformance(
      `${name} ${state}, in blocks of ${blockBytes}, on ${driver}`,
      async () => {
        const memories = memoryMembers(geometry, blockBytes);
        // Behind a filter on the event loop, as members there are.
        const members = driver === 'event-loop' ? memories.map((each) => new FaultDevice(each)) : memories;
        const array = new RaidArray({
          geometry,
          members: members.map((member, slot) => (empty.includes(slot) ? null : member)),
          driver,
          lanes: 2,
          heapBytes: 16 * MIB,
        });
        return { device: array };
      },
      capabilities,
    );
  }
}
