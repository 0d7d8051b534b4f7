import { describe, expect, test } from 'vitest';
import type { Path } from '../../lib/multipath/device.ts';
import { complaintAboutCondition, Fabric } from '../../lib/multipath/fabric.ts';
import { type Topology, transportTimes } from '../../lib/multipath/topology.ts';
import { Clock, Process } from '../../lib/sim/clock.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { block, codeOf, settings } from './history.ts';
import { breakages, breakEach, LUN, ordeal, quick, type San, san, survives, twoByTwo } from './san.ts';
import { BLOCK_BYTES } from './wire.ts';

describe.each(Object.entries(twoByTwo))('two HBAs, two controllers, %s', (_name, topology) => {
  test('whichever component fails or hangs, nothing is lost or overtaken', async () => {
    for (const breakage of ['failed', 'hung'])
      await breakEach(topology, 'asymmetric', breakage, { steps: 4, isQueueing: false });
  });

  test('a single point of failure, and nothing else, takes all paths away', async () => {
    const all = (await san(1, settings(), { topology })).fabric.components();
    for (const { name } of all) {
      const w = await san(1, settings(...quick, 'no_path_retry fail'), { topology });
      w.fabric.fail(name);
      const code = await w.clock.drive(codeOf(w.device.write(0, block(1))));
      expect(code, name).toBe(survives(topology, [name]) ? 'done' : 'MEMBER_GONE');
    }
  });
});

describe('random histories in random fabrics', () => {
  test.each(['queue', '3', 'fail'])(
    'no write is lost or overtaken, and every request ends (no_path_retry %s)',
    async (retry) => {
      let refusedLate = 0;
      for (let round = 0; round < 20; round += 1) {
        await withSeed(runSeed + round, async (random) => {
          const seen = await ordeal(random, retry);
          refusedLate += seen.refusedLate;
          expect(seen.longestMs).toBeLessThanOrEqual(seen.boundMs);
          if (retry === 'queue') expect(seen.failed).toBe(0);
        });
      }
      expect(refusedLate).toBeGreaterThan(0);
    },
  );

  test('one seed is one history', async () => {
    const tell = async (): Promise<string> => {
      let told = '';
      await withSeed(runSeed, async (random) => {
        told = JSON.stringify(await ordeal(random, '3'));
      });
      return told;
    };
    expect(await tell()).toBe(await tell());
  });

  test('a fence that does nothing is found out', async () => {
    const wrap = (path: Path): Path => ({
      ...path,
      connect: async () => ({ ...(await path.connect()), fence: async () => undefined }),
    });
    let found = 0;
    for (let round = 0; round < 40 && found === 0; round += 1) {
      await withSeed(runSeed + round, async (random) => {
        await ordeal(random, 'queue', wrap).catch((failure: Error) => {
          expect(failure.message).toMatch(/which was overwritten|buffer changed/);
          found += 1;
        });
      });
    }
    expect(found).toBeGreaterThan(0);
  });
});

describe('a write that hangs (I21)', () => {
  test('is refused by the LUN when it comes late, after its retry and what was written on top of that', async () => {
    const w = await san(1, settings(...quick, 'path_grouping_policy failover'));
    const [first] = w.paths;
    w.fabric.set('sw0', { state: 'hung' });
    await w.clock.drive(w.device.write(0, block(1)));
    expect(w.device.status().groups.find(({ isActive }) => isActive)?.paths[0]?.name).not.toBe(first?.name);
    await w.clock.drive(w.device.write(0, block(2)));
    expect(w.fabric.refusedLate).toBe(0);
    w.fabric.restore('sw0');
    await w.clock.pass(30_000);
    expect(w.fabric.refusedLate).toBeGreaterThan(0);
    const found = block(0);
    await w.memory.read(0, found);
    expect(found[0]).toBe(2);
    expect(w.states()).toBe('up up up up');
  });

  test('is not acknowledged elsewhere while the LUN is still at it', async () => {
    const w = await san(1, settings(...quick, 'path_grouping_policy failover'));
    let land = (): void => undefined;
    const { memory, clock, device, fabric } = w;
    const write = memory.write.bind(memory);
    let writes = 0;
    memory.write = async (offsetBytes, source, options) => {
      writes += 1;
      if (writes === 1)
        await new Promise<void>((resolve) => {
          land = resolve;
        });
      await write(offsetBytes, source, options);
    };
    let isDone = false;
    const request = device.write(0, block(1)).then(() => {
      isDone = true;
    });
    clock.after(100, () => fabric.fail('hba0'));
    await clock.pass(20_000);
    expect([isDone, writes]).toEqual([false, 1]);
    land();
    await clock.drive(request);
    expect(writes).toBe(2);
  });
});

describe('one connection, as a device', () => {
  const connected = async (...lines: readonly string[]) => {
    const w = await san(1, settings('fast_io_fail_tmo 1', ...lines));
    const { device } = await w.clock.drive((w.paths[0] as Path).connect());
    return { ...w, device, path: w.paths[0] as Path };
  };
  /** The first write to the LUN lasts until `land` is called. */
  const slowLun = (w: Pick<San, 'memory'>) => {
    const write = w.memory.write.bind(w.memory);
    const lun = { writes: 0, land: (): void => undefined };
    w.memory.write = async (offsetBytes, source, options) => {
      lun.writes += 1;
      if (lun.writes === 1)
        await new Promise<void>((resolve) => {
          lun.land = resolve;
        });
      await write(offsetBytes, source, options);
    };
    return lun;
  };
  const held = async (w: Pick<San, 'memory'>): Promise<number | undefined> => {
    const found = block(0);
    await w.memory.read(0, found);
    return found[0];
  };

  test('a login ends the one before: what that one sent is refused, and sent again', async () => {
    const w = await connected();
    w.fabric.set('ctl0p0', { delayMs: 2000 });
    const first = w.device.write(0, block(1));
    await w.clock.pass(10);
    w.fabric.set('ctl0p0', { delayMs: 0 });
    w.fabric.fail('hba0');
    w.fabric.restore('hba0');
    await w.clock.drive(first);
    await w.clock.drive(w.device.write(0, block(2)));
    expect(w.clock.nowMs).toBeLessThan(100);
    await w.clock.pass(5000);
    expect(w.fabric.refusedLate).toBe(1);
    expect(await held(w)).toBe(2);
  });

  test('a login waits for what the LUN has begun for the one before', async () => {
    const w = await connected();
    const lun = slowLun(w);
    const request = w.device.write(0, block(1));
    w.fabric.fail('hba0');
    w.fabric.restore('hba0');
    await w.clock.pass(5000);
    expect(lun.writes).toBe(1);
    lun.land();
    await w.clock.drive(request);
    expect(lun.writes).toBe(2);
  });

  test('a request that the LUN has begun does not fail before that has ended: its buffers are in use', async () => {
    const w = await connected();
    const lun = slowLun(w);
    let code = 'pending';
    const request = codeOf(w.device.write(0, block(1))).then((said) => {
      code = said;
    });
    w.fabric.fail('hba0');
    await w.clock.pass(5000);
    expect([code, w.fabric.linkState(w.path.name)]).toEqual(['pending', 'offline']);
    lun.land();
    await w.clock.drive(request);
    expect(code).toBe('MEMBER_GONE');
  });

  test('buffers are free once a request has failed, although its frame is still under way', async () => {
    const w = await connected();
    w.fabric.set('sw0', { state: 'hung' });
    const sent = block(1);
    const target = block(1);
    const requests = [codeOf(w.device.write(0, sent)), codeOf(w.device.read(0, target))];
    w.fabric.fail('hba0');
    expect(await w.clock.drive(Promise.all(requests))).toEqual(['MEMBER_GONE', 'MEMBER_GONE']);
    sent.fill(9);
    target.fill(9);
    w.fabric.restore('sw0');
    await w.clock.pass(5000);
    // Late, as nobody has fenced it; but what was sent.
    expect(await held(w)).toBe(1);
    expect(target[0]).toBe(9);
  });

  test('closing it ends what hangs in it', async () => {
    const w = await connected();
    w.fabric.set('sw0', { state: 'hung' });
    const request = codeOf(w.device.write(0, block(1)));
    await w.clock.drive(w.device.close());
    expect(await w.clock.drive(request)).toBe('CLOSED');
    w.fabric.restore('sw0');
    await w.clock.pass(5000);
    expect(await held(w)).toBe(0);
  });
});

describe('fast_io_fail_tmo and dev_loss_tmo', () => {
  const on = (w: San, index = 0) => w.clock.drive((w.paths[index] as Path).connect());

  test('requests on a path whose light goes out wait, and fail after fast_io_fail_tmo; new ones at once', async () => {
    const w = await san(1, settings('fast_io_fail_tmo 7', 'dev_loss_tmo 30'));
    const { device } = await on(w);
    const startMs = w.clock.nowMs;
    w.fabric.fail('hba0');
    expect(w.links()).toBe('blocked blocked running running');
    expect(await w.clock.drive(codeOf(device.write(0, block(1))))).toBe('MEMBER_GONE');
    expect(w.clock.nowMs - startMs).toBe(7000);
    await w.clock.pass(1);
    expect(w.links()).toBe('offline offline running running');
    expect(await w.clock.drive(codeOf(device.read(0, block(0))))).toBe('MEMBER_GONE');
    expect(w.clock.nowMs - startMs).toBe(7001);
    await w.clock.pass(22_998);
    expect(w.links()).toBe('offline offline running running');
    await w.clock.pass(2);
    expect(w.links()).toBe('removed removed running running');
  });

  test('a path that comes back in time answers what was asked before, and nobody has noticed', async () => {
    const w = await san(1, settings('fast_io_fail_tmo 7'), { ioTimeoutMs: 30_000 });
    w.fabric.set('hba0', { delayMs: 100 });
    w.fabric.set('hba1', { delayMs: 100 });
    w.clock.after(20, () => w.fabric.fail('sw0'));
    w.clock.after(4_000, () => w.fabric.restore('sw0'));
    const startMs = w.clock.nowMs;
    await w.clock.drive(w.device.write(0, block(1)));
    expect(w.clock.nowMs - startMs).toBeGreaterThan(4_000);
    expect(
      w.device
        .status()
        .groups.flatMap(({ paths }) => paths)
        .reduce((sum, { errors }) => sum + errors, 0),
    ).toBe(0);
  });

  test('off: they wait until dev_loss_tmo', async () => {
    const w = await san(1, settings('fast_io_fail_tmo off', 'dev_loss_tmo 30'));
    const { device } = await on(w);
    const startMs = w.clock.nowMs;
    w.fabric.fail('hba0');
    expect(await w.clock.drive(codeOf(device.write(0, block(1))))).toBe('MEMBER_GONE');
    expect(w.clock.nowMs - startMs).toBe(30_000);
    await w.clock.pass(1);
    expect(w.links()).toBe('removed removed running running');
  });

  test('a path that was removed is another one when it is found again; one that was only offline is the same', async () => {
    const w = await san(1, settings('fast_io_fail_tmo 2', 'dev_loss_tmo 10'));
    const { device } = await on(w);
    for (const [outageMs, code] of [
      [5_000, 'done'],
      [15_000, 'MEMBER_GONE'],
    ] as const) {
      w.fabric.fail('hba0');
      await w.clock.pass(outageMs);
      w.fabric.restore('hba0');
      await w.clock.pass(1);
      expect(await w.clock.drive(codeOf(device.write(0, block(1))))).toBe(code);
    }
    expect(await w.clock.drive(codeOf((await on(w)).device.write(0, block(2))))).toBe('done');
  });

  test('a path that is down when the host starts is not there, and is not waited for', async () => {
    const clock = new Clock(1);
    const host = new Process(clock);
    const fabric = new Fabric(twoByTwo['two fabrics'] as Topology, { host });
    fabric.fail('hba0');
    const w = await san(1, settings());
    const [path] = fabric.attach({ identity: LUN }, w.memory, settings());
    expect(await clock.drive(codeOf((path as Path).connect()))).toBe('MEMBER_GONE');
    expect(clock.nowMs).toBe(0);
  });

  test('are what multipathd makes of them', () => {
    const times = (...lines: string[]) => {
      const { fastIoFailMs, devLossMs } = transportTimes(settings(...lines));
      return [fastIoFailMs, devLossMs];
    };
    expect(times()).toEqual([5000, 600_000]);
    expect(times('dev_loss_tmo 30')).toEqual([5000, 30_000]);
    expect(times('dev_loss_tmo infinity')).toEqual([5000, Number.POSITIVE_INFINITY]);
    expect(times('dev_loss_tmo 30', 'no_path_retry 12', 'polling_interval 5')).toEqual([5000, 60_000]);
    expect(times('dev_loss_tmo 90', 'no_path_retry 12', 'polling_interval 5')).toEqual([5000, 90_000]);
    expect(times('no_path_retry queue')).toEqual([5000, Number.POSITIVE_INFINITY]);
    expect(times('fast_io_fail_tmo off', 'dev_loss_tmo infinity')).toEqual([null, 600_000]);
  });
});

describe('ALUA', () => {
  const asymmetric = { lun: { preferred: 'ctl0' } };
  const standby = { lun: { preferred: 'ctl0', secondary: 'standby' as const } };
  const byPrio = ['prio alua', 'path_grouping_policy group_by_prio', 'failback immediate'];
  const active = ({ device }: San): string =>
    device
      .status()
      .groups.find(({ isActive }) => isActive)
      ?.paths.map(({ name }) => name.split(':')[1])
      .join(' ') ?? 'none';

  test('implicit: when the preferred controller fails the other takes its LUNs, and gives them back', async () => {
    const w = await san(1, settings(...quick, ...byPrio), { ...asymmetric, transitionMs: 1500 });
    await w.clock.drive(w.device.write(0, block(1)));
    expect(active(w)).toBe('ctl0p0 ctl0p1');
    w.fabric.fail('ctl0');
    expect(w.fabric.alua(LUN)).toEqual({ ctl0: 'unavailable', ctl1: 'transitioning' });
    await w.clock.drive(w.device.write(0, block(2)));
    await w.clock.pass(5_000);
    expect(active(w)).toBe('ctl1p0 ctl1p1');
    expect(w.fabric.alua(LUN)).toEqual({ ctl0: 'unavailable', ctl1: 'active/optimized' });
    w.fabric.restore('ctl0');
    await w.clock.pass(20_000);
    expect(w.fabric.alua(LUN)).toEqual({ ctl0: 'active/optimized', ctl1: 'active/non-optimized' });
    expect(active(w)).toBe('ctl0p0 ctl0p1');
  });

  test('explicit: a host that has only standby paths left has the array make them active', async () => {
    const w = await san(1, settings(...quick, ...byPrio, 'no_path_retry fail'), {
      ...standby,
      topology: twoByTwo['no switch, crossed'] as Topology,
      transitionMs: 300,
    });
    expect(w.states()).toBe('up ghost up ghost');
    // Not the controller: it would give its LUNs away by itself.
    w.fabric.fail('ctl0p0');
    w.fabric.fail('ctl0p1');
    await w.clock.drive(w.device.write(0, block(1)));
    expect(w.fabric.alua(LUN)).toEqual({ ctl0: 'standby', ctl1: 'active/optimized' });
    expect(active(w)).toContain('ctl1p');
  });

  test('a controller that is standby or unavailable takes no data, and says so to a checker', async () => {
    const w = await san(1, settings(), asymmetric);
    const { device, ready } = await w.clock.drive((w.paths[0] as Path).connect());
    for (const [state, verdict] of [
      ['standby', 'ghost'],
      ['unavailable', 'down'],
      ['offline', 'down'],
    ] as const) {
      await w.fabric.setAlua(LUN, 'ctl0', state);
      expect(await w.clock.drive(ready?.() ?? Promise.reject())).toBe(verdict);
      expect(await w.clock.drive(codeOf(device.write(0, block(1))))).toBe('MEMBER_GONE');
    }
    await w.fabric.setAlua(LUN, 'ctl0', 'active/non-optimized');
    expect(await w.clock.drive(codeOf(device.write(0, block(1))))).toBe('done');
  });

  test('transitioning: requests wait for it to end', async () => {
    const w = await san(1, settings(), { ...asymmetric, transitionMs: 1200 });
    const startMs = w.clock.nowMs;
    void w.fabric.setAlua(LUN, 'ctl1', 'active/optimized');
    await w.clock.drive(w.device.write(0, block(1)));
    expect(w.clock.nowMs - startMs).toBe(1200);
  });
});

describe('components', () => {
  const connected = async (): Promise<readonly [San, Awaited<ReturnType<Path['connect']>>['device']]> => {
    const w = await san(1, settings());
    return [w, (await w.clock.drive((w.paths[0] as Path).connect())).device];
  };

  test('a delay is what a request takes longer', async () => {
    const [w, device] = await connected();
    w.fabric.set('sw0', { delayMs: 20 });
    w.fabric.set('ctl0', { delayMs: 5 });
    const startMs = w.clock.nowMs;
    await w.clock.drive(device.read(0, block(0)));
    expect(w.clock.nowMs - startMs).toBe(25);
  });

  test('bandwidth is shared by all that go one way, and the other way is another', async () => {
    const [w, device] = await connected();
    w.fabric.set('ctl0p0', { bytesPerSecond: 10 * BLOCK_BYTES });
    const startMs = w.clock.nowMs;
    const at = [0, 1, 2, 3].map((index) => index * BLOCK_BYTES);
    await w.clock.drive(Promise.all(at.map((offset) => device.write(offset, block(1)))));
    expect(w.clock.nowMs - startMs).toBeCloseTo(400, 6);
    await w.clock.drive(Promise.all([device.read(BLOCK_BYTES, block(0)), device.write(0, block(1))]));
    expect(w.clock.nowMs - startMs).toBeCloseTo(500, 6);
  });

  test('no more requests are under way than the queue depth, and the others follow in order', async () => {
    const [w, device] = await connected();
    w.fabric.set('ctl0', { queueDepth: 2, delayMs: 10 });
    const startMs = w.clock.nowMs;
    const ends: string[] = [];
    const requests = [0, 1, 2, 3, 4].map(async (index) => {
      await device.write(index * BLOCK_BYTES, block(1));
      ends.push(`${index}@${w.clock.nowMs - startMs}`);
    });
    await w.clock.drive(Promise.all(requests));
    expect(ends.map((end) => end.split('@')[1])).toEqual(['10', '10', '20', '20', '30']);
    expect(ends.map((end) => end.split('@')[0]).toSorted()).toEqual(['0', '1', '2', '3', '4']);
    expect(ends.at(-1)?.startsWith('4')).toBe(true);
  });

  test('one that flaps is down and up by turns, until it is restored', async () => {
    const w = await san(1, settings());
    w.fabric.set('sw0', { flap: { upMs: 300, downMs: 200 } });
    const seen: string[] = [];
    for (let at = 0; at < 10; at += 1) {
      seen.push(w.fabric.components().find(({ name }) => name === 'sw0')?.isDown === true ? 'd' : 'u');
      await w.clock.pass(100);
      await w.clock.pass(0.001);
    }
    expect(seen.join('')).toBe('dduuudduuu');
    w.fabric.restore('sw0');
    await w.clock.pass(5_000);
    expect(w.links()).toBe('running running running running');
  });

  test('a cable has two ends, and is called by either', async () => {
    const w = await san(1, settings());
    w.fabric.fail('sw0-hba0');
    expect(w.links()).toBe('blocked blocked running running');
    w.fabric.restore('hba0-sw0');
    expect(w.links()).toBe('running running running running');
  });

  test('conditions that make no sense are refused, with what is wrong', () => {
    expect(complaintAboutCondition({})).toBe(null);
    for (const change of Object.values(breakages)) expect(complaintAboutCondition({ ...change })).toBe(null);
    expect(complaintAboutCondition({ colour: 1 })).toBe('a component has no "colour"');
    expect(complaintAboutCondition({ state: 'down' })).toBe('state "down" is none of up, failed, hung');
    expect(complaintAboutCondition({ delayMs: -1 })).toBe('delayMs is no time up to a day');
    expect(complaintAboutCondition({ delayMs: Number.NaN })).toBe('delayMs is no time up to a day');
    expect(complaintAboutCondition({ bytesPerSecond: 0 })).toBe('bytesPerSecond is no number from 1 on');
    expect(complaintAboutCondition({ queueDepth: 1.5 })).toBe('queueDepth is no whole number from 1 on');
    expect(complaintAboutCondition({ flap: { upMs: 1 } })).toContain('flap needs upMs and downMs');
  });

  test('a component or a LUN that nobody knows is named', async () => {
    const w = await san(1, settings());
    expect(() => w.fabric.fail('sw9')).toThrow('there is no component sw9');
    expect(() => w.fabric.attach({ identity: 'hba0' }, w.memory, settings())).toThrow('named hba0');
    expect(() => w.fabric.attach({ identity: LUN }, w.memory, settings())).toThrow(`two LUNs are ${LUN}`);
  });
});
