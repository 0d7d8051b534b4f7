import { describe, expect, test } from 'vitest';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { parseConf } from '../../lib/multipath/conf.ts';
import { componentsNamed, defaultPlan, type FabricPlan, planWith, San } from '../../lib/multipath/san.ts';
import { Clock, Process } from '../../lib/sim/clock.ts';
import { KIB } from '../../lib/units.ts';
import { block, codeOf } from './history.ts';

const plan = defaultPlan(2, 2);
const members = ['disk0', 'disk1'];

function sanOver(of: FabricPlan, conf = '') {
  const clock = new Clock(1);
  const san = new San(of, { host: new Process(clock), conf: parseConf(conf) });
  const memory = new MemoryDevice({ sizeBytes: 64 * KIB, blockBytes: 512 });
  return { clock, san, memory };
}

describe('the plan', () => {
  test('remembers what is not sound, and nothing else', () => {
    const slow = planWith(plan, 'hba0', { delayMs: 20 });
    expect(slow.conditions).toEqual({ hba0: { delayMs: 20 } });
    const failed = planWith(slow, 'hba0', { state: 'failed' });
    expect(failed.conditions).toEqual({ hba0: { state: 'failed', delayMs: 20 } });
    expect(planWith(failed, 'hba0', { state: 'up', delayMs: 0 })).toEqual(plan);
    expect(planWith(plan, 'sw0', { state: 'up' })).toEqual(plan);
  });

  test('knows components by name, cables from either end, and paths to one member or to all', () => {
    const named = (word: string) => componentsNamed(plan, members, word);
    expect(named('ctl1p0')).toEqual(['ctl1p0']);
    expect(named('disk1')).toEqual(['disk1']);
    expect(named('hba0-sw0')).toEqual(['hba0-sw0']);
    expect(named('sw0-hba0')).toEqual(['hba0-sw0']);
    expect(named('hba1:ctl0p1:disk1')).toEqual(['hba1:ctl0p1:disk1']);
    expect(named('hba1:ctl0p1')).toEqual(['hba1:ctl0p1:disk0', 'hba1:ctl0p1:disk1']);
    for (const word of ['hba1:ctl0p0', 'hba', 'disk', '', ':', 'hba0:'])
      expect(named(word), word).toEqual([]);
  });
});

test('a member is closed with what was given out for it, and may come again', async () => {
  const { clock, san, memory } = sanOver(plan);
  const device = await clock.drive(san.attach('disk0', 0, memory));
  expect(san.backingOf(device)).toBe(memory);
  await clock.drive(device.write(0, block(1)));
  await clock.drive(device.close());
  expect([memory.isClosed, san.backingOf(device)]).toEqual([true, null]);
  const again = new MemoryDevice({ sizeBytes: 64 * KIB, blockBytes: 512 });
  await clock.drive(san.attach('disk0', 0, again));
  await expect(san.attach('disk0', 0, again)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
  await clock.drive(san.close());
  expect(again.isClosed).toBe(true);
});

test('one that no path leads to stays open, is told as gone, and comes when a path does', async () => {
  const { clock, san, memory } = sanOver(planWith(plan, 'disk0', { state: 'failed' }));
  expect(await clock.drive(codeOf(san.attach('disk0', 0, memory)))).toBe('MEMBER_GONE');
  expect(memory.isClosed).toBe(false);
  expect(san.status().luns.map(({ name, isGone }) => [name, isGone])).toEqual([['disk0', true]]);
  san.set('disk0', { state: 'up' });
  await clock.drive(san.attach('disk0', 0, memory));
  expect(san.status().luns.map(({ isGone }) => isGone)).toEqual([false]);
});

test('a condition is kept for a path that is yet to come', async () => {
  const { clock, san, memory } = sanOver(plan);
  san.set('hba0:ctl0p0:disk0', { state: 'failed' });
  await clock.drive(san.attach('disk0', 0, memory));
  const links = san.status().luns.flatMap(({ groups }) => groups.flatMap(({ paths }) => paths));
  expect(links.filter(({ link }) => link !== 'running').map(({ name }) => name)).toEqual([
    'hba0:ctl0p0:disk0',
  ]);
});

describe('switching', () => {
  const lun = { identity: 'disk0', preferred: 'ctl0', secondary: 'standby' } as const;
  const active = (san: San): readonly string[] =>
    san
      .status()
      .luns.flatMap(({ groups }) =>
        groups.filter(({ isActive }) => isActive).flatMap(({ paths }) => paths.map(({ port }) => port)),
      );

  test.each(['ctl1', 'hba0:ctl1p0:disk0'])(
    'to %s makes standby paths active, and the others standby',
    async (name) => {
      const { clock, san, memory } = sanOver({ ...plan, luns: [lun], transitionMs: 200 });
      const device = await clock.drive(san.attach('disk0', 0, memory));
      await clock.drive(device.write(0, block(1)));
      expect(active(san)).toEqual(['ctl0p0', 'ctl0p1']);
      expect(await clock.drive(san.switchTo(name))).toEqual(['disk0']);
      await clock.drive(device.write(0, block(2)));
      await clock.pass(20_000);
      expect(san.status().luns[0]?.alua).toEqual({ ctl0: 'standby', ctl1: 'active/optimized' });
      expect(active(san)).toEqual(['ctl1p0', 'ctl1p1']);
    },
  );

  test('to what is neither a path nor a controller is refused', async () => {
    const { san } = sanOver(plan);
    await expect(san.switchTo('sw0')).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
  });
});
