import { describe, expect, test } from 'vitest';
import { MultipathDevice } from '../../lib/multipath/device.ts';
import { Clock, Process } from '../../lib/sim/clock.ts';
import { KIB } from '../../lib/units.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { block, codeOf, history, SIZE, settings, type World, world } from './history.ts';
import { BLOCK_BYTES, Lun, Wire } from './wire.ts';

/** Which wire each of so many writes goes by. */
async function route({ clock, device, wires }: World, count: number): Promise<string> {
  let way = '';
  for (let made = 0; made < count; made += 1) {
    const before = wires.map(({ requests }) => requests);
    await clock.drive(device.write(0, block(made)));
    way += wires.findIndex(({ requests }, index) => requests > (before[index] ?? 0));
  }
  return way;
}

describe('paths that do not belong together', () => {
  const open = (wires: readonly Wire[], clock: Clock): Promise<string> =>
    clock.drive(
      MultipathDevice.open(wires, { host: new Process(clock), settings: settings() }).then(
        () => 'opened',
        (failure: Error) => failure.message,
      ),
    );

  test('are refused, with what differs: identity, size, content, name; and so are none', async () => {
    const clock = new Clock(1);
    const one = new Lun(SIZE);
    const wire = (name: string, lun: Lun): Wire => new Wire(name, lun, { clock });
    expect(await open([], clock)).toBe('multipath has no path at all');
    expect(await open([wire('a', one), wire('a', one)], clock)).toBe('multipath has two paths named a');
    expect(await open([wire('a', one), wire('b', new Lun(SIZE, 'other'))], clock)).toBe(
      'multipath: the paths a and b lead to different data: lun and other',
    );
    expect(await open([wire('a', one), wire('b', new Lun(2 * SIZE))], clock)).toContain(
      'different data: 65536 bytes',
    );
    const impostor = new Lun(SIZE);
    await impostor.memory.write(SIZE - BLOCK_BYTES, block(1));
    expect(await open([wire('a', one), wire('b', impostor)], clock)).toBe(
      'multipath: the paths a and b lead to different data: both say lun, and their first or last bytes differ',
    );
    expect(await open([wire('a', one), wire('b', one)], clock)).toBe('opened');
  });

  test('are not waited for when opening: broken and silent ones are down, and one is enough', async () => {
    const clock = new Clock(1);
    const lun = new Lun(SIZE);
    const wires = ['a', 'b', 'c'].map((name) => new Wire(name, lun, { clock }));
    const [a, b] = wires as [Wire, Wire];
    a.health = 'silent';
    b.health = 'error';
    const device = await clock.drive(
      MultipathDevice.open(wires, { host: new Process(clock), settings: settings('checker_timeout 3') }),
    );
    expect(clock.nowMs).toBeLessThan(1100);
    const states = (): readonly unknown[] => device.status().groups.map(({ paths }) => paths[0]?.state);
    expect(states()).toEqual(['pending', 'down', 'up']);
    expect(await clock.drive(codeOf(device.write(0, block(1))))).toBe('done');
    await clock.pass(6_000);
    expect(states()).toEqual(['down', 'down', 'up']);
    for (const wire of wires) wire.health = 'error';
    expect(await open(wires, clock)).toBe('multipath: none of its 3 paths works: a is broken');
  });

  test('that were not there when it was opened are compared when they come, also while somebody writes', async () => {
    const clock = new Clock(1);
    const lun = new Lun(SIZE);
    const impostor = new Lun(SIZE);
    const wires = ['a', 'b', 'c'].map((name) => new Wire(name, name === 'c' ? impostor : lun, { clock }));
    const [, b, c] = wires as [Wire, Wire, Wire];
    b.health = 'silent';
    c.health = 'silent';
    const device = await clock.drive(
      MultipathDevice.open(wires, {
        host: new Process(clock),
        settings: settings('polling_interval 1', 'checker_timeout 3'),
      }),
    );
    for (let round = 0; round < 50; round += 1) await clock.drive(device.write(0, block(round + 1)));
    b.health = 'fine';
    c.health = 'fine';
    for (let round = 0; round < 2000; round += 1) {
      await clock.drive(device.write(0, block(round + 1)));
      await clock.pass(10);
    }
    const paths = device.status().groups.flatMap((group) => group.paths);
    expect(paths.map(({ state }) => state)).toEqual(['up', 'up', 'down']);
    expect(paths[2]?.why).toBe('it leads to other data: its first or last bytes differ');
    expect(c.written).toEqual([]);
  });

  test('a path that comes back leading elsewhere is not taken back', async () => {
    const w = await world(1, 2, settings());
    w.device.failPath('p0');
    w.wire(0).identity = 'other';
    await w.clock.pass(60_000);
    expect(w.states()).toBe('dU');
    const status = w.device.status().groups.flatMap(({ paths }) => paths);
    expect(status.find(({ name }) => name === 'p0')?.why).toBe('it leads to other and not to lun');
    w.wire(0).identity = 'lun';
    await w.clock.pass(10_000);
    expect(w.states()).toBe('UU');
  });
});

describe('a path that fails', () => {
  test('fails nothing: the request is done on another, and the path is taken back when its checker says so', async () => {
    const w = await world(1, 2, settings('polling_interval 5'));
    expect(await route(w, 2)).toBe('00');
    w.wire(0).health = 'error';
    await w.clock.drive(w.device.write(0, block(9)));
    expect(w.states()).toBe('dU');
    w.wire(0).health = 'fine';
    await w.clock.pass(4_000);
    expect(w.states()).toBe('dU');
    await w.clock.pass(3_000);
    expect(w.states()).toBe('UU');
  });

  test.each(['directio', 'readsector0', 'tur'])(
    'is found by %s without any request, also when it is silent',
    async (checker) => {
      for (const health of ['error', 'silent'] as const) {
        const w = await world(1, 2, settings(`path_checker ${checker}`, 'checker_timeout 3'));
        w.wire(1).health = health;
        await w.clock.pass(11_000);
        expect(w.states(), health).toBe('Ud');
        expect(
          w.device
            .status()
            .groups.flatMap(({ paths }) => paths)
            .map(({ requests }) => requests),
        ).toEqual([0, 0]);
      }
    },
  );

  test.each(['error', 'silent'] as const)(
    'is fenced before anything is sent again, or given up (%s)',
    async (health) => {
      const w = await world(3, 2, settings());
      w.wire(0).health = health;
      await w.clock.drive(w.device.write(0, block(9)));
      const [fencedAtMs = Number.NaN] = w.wire(0).fencedAtMs;
      expect(w.wire(1).sentAtMs.at(-1)).toBeGreaterThanOrEqual(fencedAtMs);
      w.wire(1).health = health;
      expect(await w.clock.drive(codeOf(w.device.write(0, block(9))))).toBe('MEMBER_GONE');
      expect(w.clock.nowMs).toBeGreaterThanOrEqual(w.wire(1).fencedAtMs[0] ?? Number.NaN);
    },
  );

  test('is not failed again, once it is back, by what still waits for its old connection to be fenced', async () => {
    const w = await world(1, 2, settings('polling_interval 1', 'checker_timeout 1'), {
      wire: () => ({ fenceMs: 20_000 }),
    });
    w.wire(0).health = 'silent';
    const write = w.device.write(0, block(1));
    await w.clock.pass(3_500);
    expect(w.states()).toBe('dU');
    w.wire(0).health = 'fine';
    await w.clock.pass(12_000);
    expect(w.states()).toBe('UU');
    await w.clock.drive(write);
    const failures = w.device.status().groups.flatMap(({ paths }) => paths.map((path) => path.failures));
    expect(failures).toEqual([1, 0]);
  });

  test('stalls a request no longer than silence is borne, plus a tick and the fence', async () => {
    const w = await world(1, 3, settings('path_grouping_policy failover', 'polling_interval 100'));
    w.wire(0).health = 'silent';
    w.wire(1).health = 'silent';
    const before = w.clock.nowMs;
    await w.clock.drive(w.device.write(0, block(1)));
    expect(w.clock.nowMs - before).toBeGreaterThan(2 * 2000);
    expect(w.clock.nowMs - before).toBeLessThan(2 * (2000 + 1000 + 80) + 10);
    expect(w.states()).toBe('ddU');
  });

  test('is asked less and less often while it works, from polling_interval to max_polling_interval', async () => {
    const w = await world(
      1,
      1,
      settings('polling_interval 5', 'max_polling_interval 40', 'path_checker directio'),
    );
    const { sentAtMs } = w.wire(0);
    const opened = sentAtMs.length;
    await w.clock.pass(160_000);
    const gapsMs = sentAtMs
      .slice(opened + 1)
      .map((atMs, index) => Math.round(atMs - (sentAtMs[opened + index] ?? 0)));
    expect(gapsMs).toEqual([10_000, 20_000, 40_000, 40_000, 40_000]);
  });

  test('what the data itself says is no failure of a path, and goes to the caller', async () => {
    const w = await world(1, 2, settings());
    expect(await codeOf(w.device.resize(SIZE * 2))).toBe('NOT_SUPPORTED');
    expect(w.states()).toBe('UU');
  });

  test.each([
    ['a check', 'closed', 100],
    ['a read', 'CLOSED', 2_100],
    ['a write', 'CLOSED', 2_100],
  ] as const)('and keeps %s for itself does not keep the device open', async (what, outcome, withinMs) => {
    const w = await world(1, 2, settings(), { wire: () => ({ closeWaits: true }) });
    w.wire(0).health = 'silent';
    const pending =
      what === 'a check'
        ? w.clock.pass(6_000).then(() => 'closed')
        : codeOf(what === 'a read' ? w.device.read(0, block(1)) : w.device.write(0, block(1)));
    if (what === 'a check') await pending;
    const fromMs = w.clock.nowMs;
    await w.clock.drive(w.device.close());
    expect(w.clock.nowMs - fromMs).toBeLessThan(withinMs);
    expect(await pending).toBe(outcome);
    expect(w.wire(0).fencedAtMs.length).toBe(1);
  });

  test('and can neither be closed nor fenced: whoever closes the device is told', async () => {
    const w = await world(1, 2, settings(), { wire: () => ({ closeWaits: true, fenceFails: true }) });
    w.wire(0).health = 'silent';
    const write = codeOf(w.device.write(0, block(1)));
    expect(await w.clock.drive(codeOf(w.device.close()))).toBe('MEMBER_GONE');
    expect(await write).toBe('CLOSED');
  });

  test('and cannot be fenced ends the device: nothing newer is written', async () => {
    const w = await world(1, 2, settings('no_path_retry queue'), { wire: () => ({ fenceFails: true }) });
    w.wire(0).health = 'silent';
    expect(await w.clock.drive(codeOf(w.device.write(0, block(1))))).toBe('MEMBER_GONE');
    expect(await w.clock.drive(codeOf(w.device.write(0, block(2))))).toBe('MEMBER_GONE');
    expect(await w.clock.drive(codeOf(w.device.read(0, block(2))))).toBe('MEMBER_GONE');
    expect(w.wire(1).requests).toBe(2);
  });
});

describe('without any path', () => {
  const cut = (w: World): void => {
    for (const wire of w.wires) wire.health = 'error';
  };
  const mend = (w: World): void => {
    for (const wire of w.wires) wire.health = 'fine';
  };

  test('fail: requests fail at once, until a path is back', async () => {
    const w = await world(1, 2, settings());
    cut(w);
    const before = w.clock.nowMs;
    expect(await w.clock.drive(codeOf(w.device.write(0, block(1))))).toBe('MEMBER_GONE');
    expect(w.clock.nowMs - before).toBeLessThan(200);
    expect(await w.clock.drive(codeOf(w.device.read(0, block(1))))).toBe('MEMBER_GONE');
    mend(w);
    await w.clock.pass(7_000);
    expect(await w.clock.drive(codeOf(w.device.write(0, block(1))))).toBe('done');
  });

  test('queue: they wait, however long, and are done in the order in which they came', async () => {
    const w = await world(1, 2, settings('no_path_retry queue'));
    cut(w);
    for (const { name } of w.wires) w.device.failPath(name);
    const requests = [5, 1, 4, 2, 3].map((at) => w.device.write(at * BLOCK_BYTES, block(at)));
    await w.clock.pass(7200_000);
    expect(w.device.status().queued).toBe(5);
    requests.push(w.device.write(0, block(6)));
    mend(w);
    await w.clock.drive(Promise.all(requests));
    expect(w.wires.flatMap(({ written }) => written).map((offset) => offset / BLOCK_BYTES)).toEqual([
      5, 1, 4, 2, 3, 0,
    ]);
    const found = new Uint8Array(6 * BLOCK_BYTES);
    await w.clock.drive(w.device.read(0, found));
    expect([0, 1, 2, 3, 4, 5].map((index) => found[index * BLOCK_BYTES])).toEqual([6, 1, 2, 3, 4, 5]);
  });

  test('N: they wait for N polling intervals and a tick, and fail in order; later ones fail at once', async () => {
    const w = await world(1, 2, settings('no_path_retry 3', 'polling_interval 5'));
    cut(w);
    for (const { name } of w.wires) w.device.failPath(name);
    const order: number[] = [];
    const before = w.clock.nowMs;
    const requests = [3, 1, 2].map(async (fill) => {
      const code = await codeOf(w.device.write(0, block(fill)));
      order.push(fill);
      return code;
    });
    expect(await w.clock.drive(Promise.all(requests))).toEqual(['MEMBER_GONE', 'MEMBER_GONE', 'MEMBER_GONE']);
    const stallMs = w.clock.nowMs - before;
    expect(stallMs).toBeGreaterThanOrEqual(15_000);
    expect(stallMs).toBeLessThanOrEqual(16_000);
    expect(order).toEqual([3, 1, 2]);
    const again = w.clock.nowMs;
    expect(await w.clock.drive(codeOf(w.device.write(0, block(4))))).toBe('MEMBER_GONE');
    expect(w.clock.nowMs).toBe(again);
  });

  test('no more waits than has room; the rest fails even with queue', async () => {
    const w = await world(1, 1, settings('no_path_retry queue'), { maxQueuedBytes: 16 * KIB });
    cut(w);
    w.device.failPath('p0');
    const codes = [1, 2, 3, 4, 5, 6].map((fill) => codeOf(w.device.write(0, block(fill))));
    expect(await w.clock.drive(Promise.all(codes.slice(4)))).toEqual(['MEMBER_GONE', 'MEMBER_GONE']);
    expect(w.device.status().queued).toBe(4);
    mend(w);
    expect(await w.clock.drive(Promise.all(codes.slice(0, 4)))).toEqual(['done', 'done', 'done', 'done']);
  });

  test('closing ends those who wait', async () => {
    const w = await world(1, 1, settings('no_path_retry queue'));
    cut(w);
    const code = codeOf(w.device.write(0, block(1)));
    await w.clock.pass(3_000);
    await w.clock.drive(w.device.close());
    expect(await code).toBe('CLOSED');
  });

  test.each(['fail', '3', 'queue'])(
    'a checker that lies does not keep a request for ever (no_path_retry %s)',
    async (retry) => {
      const w = await world(1, 2, settings(`no_path_retry ${retry}`, 'polling_interval 5'));
      for (const wire of w.wires) wire.lies = true;
      cut(w);
      const before = w.clock.nowMs;
      const code = codeOf(w.device.write(0, block(1)));
      if (retry === 'queue') {
        await w.clock.pass(3600_000);
        mend(w);
        expect(await w.clock.drive(code)).toBe('done');
      } else {
        expect(await w.clock.drive(code)).toBe('MEMBER_GONE');
        // 3 polling intervals, and what the attempt under way at their end takes.
        expect(w.clock.nowMs - before).toBeLessThan(retry === '3' ? 15_000 + 7_000 : 500);
      }
      // Each path is tried at most once per check: no hot loop.
      for (const wire of w.wires) expect(wire.requests).toBeLessThan(4 + (w.clock.nowMs / 1000) * 2);
    },
  );
});

describe('failback', () => {
  const optimized = { state: 'active/optimized', isPreferred: false } as const;
  const other = { state: 'active/non-optimized', isPreferred: false } as const;
  /** Paths 0 and 1 are the better group, 2 and 3 the other. */
  const groups = (failback: string): Promise<World> =>
    world(
      1,
      4,
      settings(
        'path_grouping_policy group_by_prio',
        'prio alua',
        `failback ${failback}`,
        'polling_interval 5',
      ),
      {
        wire: (index) => ({ facts: { alua: index < 2 ? optimized : other } }),
      },
    );
  const active = (w: World): string[] =>
    w.device
      .status()
      .groups.find(({ isActive }) => isActive)
      ?.paths.map(({ name }) => name) ?? [];
  const lose = async (w: World): Promise<void> => {
    await route(w, 1);
    expect(active(w)).toEqual(['p0', 'p1']);
    for (const index of [0, 1]) w.wire(index).health = 'error';
    await route(w, 1);
    expect(active(w)).toEqual(['p2', 'p3']);
  };
  const bring = async (w: World, index: number): Promise<void> => {
    w.wire(index).health = 'fine';
    await w.clock.pass(7_000);
  };

  test('immediate: with the first path that comes back', async () => {
    const w = await groups('immediate');
    await lose(w);
    await bring(w, 1);
    expect(active(w)).toEqual(['p0', 'p1']);
    expect(await route(w, 3)).toBe('111');
  });

  test('manual: never by itself, until somebody switches', async () => {
    const w = await groups('manual');
    await lose(w);
    await bring(w, 0);
    await bring(w, 1);
    await w.clock.pass(600_000);
    expect(active(w)).toEqual(['p2', 'p3']);
    w.device.switchGroup('p1');
    expect(await route(w, 4)).toBe('0101');
  });

  test('N: so many seconds after the better group works again', async () => {
    const w = await groups('60');
    await lose(w);
    await bring(w, 0);
    await w.clock.pass(50_000);
    expect(active(w)).toEqual(['p2', 'p3']);
    await w.clock.pass(12_000);
    expect(active(w)).toEqual(['p0', 'p1']);
  });

  test('followover: only when the first path of the group comes back, not when another node moved the LUN', async () => {
    const w = await groups('followover');
    await lose(w);
    await bring(w, 0);
    expect(active(w)).toEqual(['p0', 'p1']);
    const still = await groups('followover');
    await route(still, 1);
    for (const index of [0, 1]) still.wire(index).alua = { state: 'standby', isPreferred: false };
    await still.clock.pass(25_000);
    still.device.switchGroup('p2');
    for (const index of [0, 1]) still.wire(index).alua = optimized;
    await still.clock.pass(25_000);
    expect(active(still)).toEqual(['p2', 'p3']);
  });

  test('a standby path is a ghost: there, and not used', async () => {
    const w = await world(1, 2, settings());
    w.wire(0).says = 'ghost';
    await w.clock.pass(6_000);
    expect(w.states()).toBe('gU');
    expect(await route(w, 2)).toBe('11');
    w.wire(0).says = 'up';
    await w.clock.pass(30_000);
    expect(w.states()).toBe('UU');
  });
});

describe('a path that keeps failing', () => {
  const flap = async (w: World, index: number, times: number): Promise<void> => {
    for (let time = 0; time < times; time += 1) {
      w.wire(index).health = 'error';
      await w.clock.pass(500);
      w.device.failPath(`p${index}`);
      w.wire(index).health = 'fine';
      await w.clock.pass(6_500);
    }
  };
  const san = [
    'san_path_err_threshold 2',
    'san_path_err_forget_rate 100',
    'san_path_err_recovery_time 60',
    'max_polling_interval 5',
  ];

  test('is kept out for san_path_err_recovery_time once it failed more often than the threshold', async () => {
    const w = await world(1, 2, settings(...san));
    await flap(w, 0, 2);
    expect(w.states()).toBe('UU');
    await flap(w, 0, 1);
    expect(w.states()).toBe('wU');
    await w.clock.pass(50_000);
    expect(w.states()).toBe('wU');
    await w.clock.pass(10_000);
    expect(w.states()).toBe('UU');
  });

  test('is forgiven what lies san_path_err_forget_rate checks back', async () => {
    const w = await world(1, 2, settings(...san, 'san_path_err_forget_rate 2'));
    for (let time = 0; time < 6; time += 1) {
      await flap(w, 0, 1);
      expect(w.states()).toBe('UU');
      await w.clock.pass(15_000);
    }
  });

  test('is taken all the same when nothing else works, at once', async () => {
    const w = await world(1, 2, settings(...san));
    await flap(w, 0, 3);
    expect(w.states()).toBe('wU');
    w.wire(1).health = 'error';
    expect(await w.clock.drive(codeOf(w.device.write(0, block(1))))).toBe('done');
    expect(w.states()).toBe('sd');
  });

  test('is a group of its own with marginal_pathgroups, tried last', async () => {
    const w = await world(
      1,
      2,
      settings(...san, 'marginal_pathgroups on', 'path_grouping_policy multibus', 'failback immediate'),
    );
    await flap(w, 0, 3);
    expect(w.states()).toBe('sU');
    expect(w.device.status().groups.map(({ isMarginal, paths }) => [isMarginal, paths[0]?.name])).toEqual([
      [false, 'p1'],
      [true, 'p0'],
    ]);
    expect(await route(w, 3)).toBe('111');
    await w.clock.pass(70_000);
    expect(w.device.status().groups.length).toBe(1);
  });

  test('is up again, and no longer marginal, when somebody reinstates it', async () => {
    const w = await world(
      1,
      2,
      settings(...san, 'marginal_pathgroups on', 'path_grouping_policy multibus', 'failback immediate'),
    );
    await flap(w, 0, 3);
    expect(w.states()).toBe('sU');
    w.device.reinstatePath('p0');
    await w.clock.pass(100);
    expect(w.states()).toBe('UU');
    expect(w.device.status().groups.length).toBe(1);
  });

  const marginal = [
    'marginal_path_double_failed_time 60',
    'marginal_path_err_sample_time 120',
    'marginal_path_err_rate_threshold 50',
    'marginal_path_err_recheck_gap_time 300',
    'max_polling_interval 5',
  ];

  test('after two failures in a row is read ten times a second, and taken back when few of the reads fail', async () => {
    const w = await world(1, 2, settings(...marginal));
    await flap(w, 0, 1);
    expect(w.states()).toBe('UU');
    await flap(w, 0, 1);
    expect(w.states()).toBe('wU');
    const before = w.wire(0).requests;
    await w.clock.pass(60_000);
    expect(w.wire(0).requests - before).toBeGreaterThan(500);
    expect(w.states()).toBe('wU');
    await w.clock.pass(60_000);
    expect(w.states()).toBe('UU');
  });

  test('and is kept out for the recheck gap, then watched again, when too many of them fail', async () => {
    const w = await world(1, 2, settings(...marginal));
    await flap(w, 0, 2);
    w.wire(0).health = 'error';
    await w.clock.pass(60_000);
    w.wire(0).health = 'fine';
    await w.clock.pass(62_000);
    expect(w.states()).toBe('wU');
    await w.clock.pass(290_000);
    expect(w.states()).toBe('wU');
    await w.clock.pass(135_000);
    expect(w.states()).toBe('UU');
  });
});

describe('over random path failures', () => {
  test.each(['queue', '2', 'fail'] as const)(
    'no write is lost or overtaken, and every request ends (no_path_retry %s)',
    (retry) =>
      withSeed(runSeed, async (random) => {
        let failed = 0;
        for (let round = 0; round < 25; round += 1) {
          const seen = await history(random, retry);
          failed += seen.failed;
          expect(seen.longestMs).toBeLessThanOrEqual(seen.boundMs);
        }
        if (retry === 'queue') expect(failed).toBe(0);
        else expect(failed).toBeGreaterThan(0);
      }),
  );

  test('a fence that lets things slip is found', () =>
    withSeed(runSeed, async (random) => {
      let found = 0;
      for (let round = 0; round < 20 && found === 0; round += 1) {
        try {
          await history(random, 'queue', true);
        } catch (failure) {
          if (!/overwritten|changed after/.test((failure as Error).message)) throw failure;
          found += 1;
        }
      }
      expect(found).toBe(1);
    }));
});
