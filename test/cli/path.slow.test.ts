/** `path` on an array that another process serves: components fail under clients, and nothing is lost. */
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { runSeed, withSeed } from '../conformance/seed.ts';
import { Scratch, sampleBytes, startRaidsim } from './raidsim.ts';

interface Paths {
  readonly isLive: boolean;
  readonly luns: readonly {
    readonly alua: Readonly<Record<string, string>>;
    readonly groups: readonly {
      readonly isActive: boolean;
      readonly paths: readonly {
        readonly name: string;
        readonly state: string;
        readonly link: string;
        readonly requests: number;
        readonly errors: number;
        readonly share: number;
        readonly latencyMs: { readonly p50: number; readonly p99: number; readonly max: number } | null;
      }[];
    }[];
  }[];
}

/** A raid5 of three, each by four paths, that a process serves; ends with both. */
async function withServed(work: (scratch: Scratch) => Promise<void>): Promise<void> {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 5 -n 3 -z 16M -c 64K --hbas 2 --controllers 2 -q');
  await writeFile(
    scratch.path('demo/multipath.conf'),
    'defaults {\nfast_io_fail_tmo 1\npolling_interval 1\nmax_polling_interval 1\nno_path_retry 10\n}\n',
  );
  const server = startRaidsim(['serve', 'demo'], scratch.folder);
  const ended = once(server, 'exit');
  try {
    let said = '';
    server.stdout?.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    for (const end = performance.now() + 30_000; !said.includes('ready'); await sleep(20))
      if (performance.now() > end) throw new Error(`it is not served: ${said}`);
    await work(scratch);
  } finally {
    server.kill('SIGTERM');
  }
  expect((await ended)[0]).toBe(0);
}

async function pathsOf(scratch: Scratch): Promise<Paths> {
  const paths = JSON.parse(await scratch.done('path list demo --json')) as Paths;
  expect(paths.isLive).toBe(true);
  return paths;
}

test('components fail one after another under reads and writes: no error, and every byte is there', async () => {
  await withServed(async (scratch) => {
    await withSeed(runSeed, async (random) => {
      const components = ['hba0', 'hba1', 'sw0', 'sw1', 'ctl0', 'ctl1', 'hba0-sw0', 'sw1-ctl0p1', 'ctl1p0'];
      const stalls: number[] = [];
      for (let round = 0; round < 6; round += 1) {
        const name = components[random(components.length)] ?? 'hba0';
        const data = sampleBytes(1_000_000 + random(500_000)).slice(random(1000));
        await writeFile(scratch.path('data.bin'), data);
        await scratch.done(`path fail demo ${name}`);
        const startedMs = performance.now();
        await scratch.done('write demo --from data.bin --offset 64K -q');
        await scratch.done(`read demo --offset 64K --length ${data.byteLength} --to back.bin -q`);
        stalls.push(performance.now() - startedMs);
        expect(Buffer.compare(await readFile(scratch.path('back.bin')), data), name).toBe(0);
        await scratch.done('path restore demo');
        // Until the checkers have found out: a second failure would be one too many.
        for (;;) {
          const states = (await pathsOf(scratch)).luns.flatMap(({ groups }) =>
            groups.flatMap(({ paths }) => paths.map(({ state }) => state)),
          );
          if (states.every((state) => state === 'up')) break;
          await sleep(100);
        }
      }
      const status = JSON.parse((await scratch.run('status demo --json')).stdout) as { degraded: number };
      expect(status.degraded).toBe(0);
      // fast_io_fail_tmo, and generous time for all else on a machine that does other things too.
      expect(Math.max(...stalls)).toBeLessThan(20_000);
    });
  });
});

test('statistics add up, and a controller takes over when it is told to', async () => {
  await withServed(async (scratch) => {
    await writeFile(scratch.path('data.bin'), sampleBytes(2_000_000));
    await scratch.done('write demo --from data.bin -q');
    for (const { groups } of (await pathsOf(scratch)).luns) {
      const paths = groups.flatMap((group) => group.paths);
      expect(paths.reduce((sum, { share }) => sum + share, 0)).toBeCloseTo(1, 9);
      for (const { requests, latencyMs } of paths) {
        expect(latencyMs === null).toBe(requests === 0);
        if (latencyMs === null) continue;
        expect(latencyMs.p50).toBeLessThanOrEqual(latencyMs.p99);
        expect(latencyMs.p99).toBeLessThanOrEqual(latencyMs.max);
      }
    }
    await scratch.done('path switch demo ctl1');
    await scratch.done('write demo --from data.bin -q');
    for (const { alua, groups } of (await pathsOf(scratch)).luns) {
      expect(alua).toEqual({ ctl0: 'active/non-optimized', ctl1: 'active/optimized' });
      const active = groups.find(({ isActive }) => isActive);
      expect(active?.paths.every(({ name }) => name.includes(':ctl1p'))).toBe(true);
    }
  });
});
