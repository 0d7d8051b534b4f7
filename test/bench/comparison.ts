/** A comparison that nobody measured: every level and work, with figures that are easy to recognise. */
import { type Comparison, isReached, type Result } from '../../bench/compare.ts';
import { benchLevels, works } from '../../bench/works.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import { KIB, MIB } from '../../lib/units.ts';

export function inventedComparison(): Comparison {
  const shape = { members: 4, chunkBytes: 64 * KIB, memberBytes: 32 * MIB };
  const results = benchLevels.flatMap((level, row) =>
    works
      .filter((work) => work.applies(level, compileLayout(level.geometry(shape))))
      .map((work, column): Result => {
        const ratio = 0.6 + ((row + column) % 5) / 10;
        const value = 10 + row + column / 10;
        return {
          level: level.level,
          layout: level.layout,
          label: level.label,
          work: work.name,
          value,
          unit: work.unit,
          bound: value / ratio,
          ratio,
          ratioLow: ratio - 0.05,
          ratioHigh: ratio + 0.05,
          pairs: 12,
          others: 0,
          depth: work.depth,
          driver: 'lanes',
          boundThreads: 1,
          aim: work.aim,
          reached: isReached(work.aim, value, ratio),
        };
      }),
  );
  const [sample] = results;
  if (sample === undefined) throw new Error('there are levels and works');
  return {
    schema: 'raidsim.bench/1',
    machine: {
      cpu: 'Invented <CPU> & "Co"',
      cores: 2,
      memoryBytes: 8 * 1024 * MIB,
      node: '20.0.0',
      kernel: 'Linux 6.0',
      platform: 'linux x64',
      directory: '/dev/shm',
      fileSystem: 'tmpfs',
      loadBefore: 0.1,
      loadAfter: 1.1,
    },
    setting: { ...shape, quick: false, driver: 'lanes', lanes: 1, kernel: 'simd', seconds: 100 },
    results,
    drivers: [{ ...sample, label: 'raid5', work: 'random read 4 KiB, depth 1, lanes', depth: 1, unit: 'µs' }],
    kernels: [
      {
        kernel: 'simd',
        operation: 'xor',
        lengthBytes: 64 * KIB,
        movedBytes: 320 * KIB,
        gigabytesPerSecond: 50,
        copyGigabytesPerSecond: 60,
        ratio: 0.83,
      },
    ],
    interrupted: false,
  };
}
