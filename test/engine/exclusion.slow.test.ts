/**
 * Threads that exclude members at the same moment: whatever they do, in whatever order, the members that somebody does
 * without can all be missed together.
 */
import { describe, expect, test } from 'vitest';
import { createMemory } from '../../lib/engine/memory.ts';
import { ExclusionNotes, LaneControl } from '../../lib/engine/ring.ts';
import { SharedHealth, without } from '../../lib/engine/run.ts';
import { RaidError } from '../../lib/errors.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import { survives } from '../../lib/layout/survives.ts';
import type { Health } from '../../lib/plan/plan.ts';
import { MIB } from '../../lib/units.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { allInSync } from './members.ts';
import { geometryNamed } from './world.ts';

const error = new RaidError('WRITE_FAILED', 'it failed');

/** Lanes 0 and 1, then the main thread, as drivers.ts wires them. */
function threads(name: string) {
  const geometry = geometryNamed(name);
  const layout = compileLayout(geometry);
  const map = createMemory(2, MIB);
  const state = { health: allInSync(geometry) };
  const boards = [0, 1, 2].map((slot) => new ExclusionNotes(map, slot));
  const lanes = [0, 1].map((slot) => new SharedHealth(layout, state.health, boards[slot]));
  let missing: number[] = [];
  const main = new SharedHealth(layout, state.health, {
    note: (excluded, suspects) => boards[2]?.note([...missing, ...excluded], suspects),
    isNotedElsewhere: (member) => boards[2]?.isNotedElsewhere(member) ?? false,
  });
  const setMain = (health: Health): void => {
    state.health = health;
    missing = health.members.flatMap((member, slot) => (member.state === 'missing' ? [slot] : []));
    main.set(health);
  };
  return { layout, map, state, all: [...lanes, main], lanes, main, setMain };
}

function gone(health: SharedHealth): number[] {
  return health.compiled.health.members.flatMap((member, slot) => (member.state === 'in_sync' ? [] : [slot]));
}

describe('members that threads exclude by themselves', () => {
  for (const name of ['raid5', 'raid6', 'raid10 near', 'raid1']) {
    test(`can be missed together, whatever the order in which all hear of it (${name})`, () =>
      withSeed(runSeed, async (random) => {
        for (let round = 0; round < 200; round += 1) {
          const { layout, state, all, lanes, setMain } = threads(name);
          /** Healths that main has sent, and how many of them each lane has heard. */
          const sent: Health[] = [];
          const heard = [0, 0];
          for (let step = 0; step < 30; step += 1) {
            const lane = random(2);
            const next = sent[heard[lane] ?? 0];
            if (random(3) === 0 && next !== undefined) {
              lanes[lane]?.set(next);
              heard[lane] = (heard[lane] ?? 0) + 1;
              continue;
            }
            const thread = random(3);
            const member = random(layout.memberCount);
            const health = all[thread];
            if (health === undefined) continue;
            if (random(3) === 0) health.suspect([member]);
            if (!gone(health).includes(member) && health.canMiss([member])) health.exclude({ member, error });
            health.settle();
            // Main hears of some of them now.
            const reported = all.flatMap((each) => (random(2) === 0 ? gone(each) : []));
            if (reported.some((slot) => state.health.members[slot]?.state !== 'missing')) {
              setMain(without(state.health, new Set(reported)));
              sent.push(state.health);
            }
            const union = new Set(all.flatMap(gone));
            expect(survives(layout, (slot) => union.has(slot))).toBe(true);
          }
        }
      }));
  }

  test('are no longer refused when what another thread suspected is settled', () => {
    const { lanes } = threads('raid5');
    const [first, second] = lanes;
    first?.suspect([0]);
    expect(second?.canMiss([1])).toBe(false);
    expect(first?.canMiss([0])).toBe(true);
    first?.settle();
    expect(second?.canMiss([1])).toBe(true);
  });

  test('are told to the successor of a lane: those that it did without first', () => {
    const { lanes, map } = threads('raid6');
    lanes[0]?.exclude({ member: 3, error });
    lanes[0]?.suspect([1]);
    expect(new LaneControl(map, 0).excluded()).toEqual([3, 1]);
    lanes[0]?.settle();
    expect(new LaneControl(map, 0).excluded()).toEqual([3]);
  });
});
