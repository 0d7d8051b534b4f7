/** As parity.test.ts: the widest rows with every health, and every request that a resync has still to pass. */
import { expect, test } from 'vitest';
import { isLost } from '../../lib/plan/plan.ts';
import { planWrite } from '../../lib/plan/planner.ts';
import { bitCount } from './algebra.ts';
import { judge } from './parity-judge.ts';
import { GOOD, ParityWorld } from './parity-world.ts';
import { CHUNK, everyInterval, everyMask, everyParityLayout, HALF, parityLayout } from './shapes.ts';

test('raid6 of 6: every health, every request in two rows', () => {
  const layout = parityLayout('raid6', 'left-symmetric', 6, 2);
  const world = new ParityWorld(layout, HALF);
  for (const health of everyMask(6, 6)) {
    world.setHealth(health);
    for (const [from, to] of everyInterval(layout.arrayBytes / HALF))
      judge(world, 'raid6', health, from, to, true);
  }
});

test('where a resync has still to pass, a write relies on parity only for data that is lost', () => {
  for (const { name, layout } of everyParityLayout(3, [2, 3, 5], [4, 6])) {
    const world = new ParityWorld(layout, HALF);
    for (const mask of everyMask(layout.memberCount, 1)) {
      const health = { ...mask, unsyncedFromBytes: 1.5 * CHUNK };
      world.setHealth(health);
      for (const [from, to] of everyInterval(layout.arrayBytes / HALF)) {
        if ((from + to) % 3 > 0) continue;
        judge(world, name, health, from, to);
        const plan = planWrite(layout, world.health, from * HALF, (to - from) * HALF);
        if (isLost(plan)) continue;
        for (const { member, offsetBytes, lengthBytes } of plan.reads) {
          for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += HALF) {
            if (at < health.unsyncedFromBytes || isData(world, member, at)) continue;
            const lost = layout.dataCount - goodData(world, at);
            if (lost === 0) expect.fail(`${name} ${from}..${to} ${JSON.stringify(health)}`);
          }
        }
      }
    }
  }
});

function isData(world: ParityWorld, member: number, offsetBytes: number): boolean {
  return world.memberOf[Math.floor(offsetBytes / CHUNK)]!.indexOf(member) < world.layout.dataCount;
}

function goodData(world: ParityWorld, offsetBytes: number): number {
  const row = Math.floor(offsetBytes / CHUNK);
  const good = world.cellsIn(GOOD, row, (offsetBytes % CHUNK) / HALF);
  return bitCount(good & ((1 << world.layout.dataCount) - 1));
}
