import { expect, test } from 'vitest';
import { parseConf, settingsFor } from '../../lib/multipath/conf.ts';
import {
  checkedTopology,
  defaultTopology,
  type FabricPath,
  failuresSurvived,
  pathsTo,
  reportOn,
  singlePointsOfFailure,
  type Topology,
} from '../../lib/multipath/topology.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

const two = defaultTopology(2, 2, 'lun');

function walk({ hba, switches, port, controller }: FabricPath): string {
  return [hba, ...switches, port, controller].join(' ');
}

test('two HBAs and two controllers make four paths, without a single point of failure', () => {
  const paths = pathsTo(two, 'lun');
  expect(paths.map(walk)).toEqual([
    'hba0 sw0 ctl0p0 ctl0',
    'hba0 sw0 ctl1p0 ctl1',
    'hba1 sw1 ctl0p1 ctl0',
    'hba1 sw1 ctl1p1 ctl1',
  ]);
  expect(paths[0]?.components).toEqual(['hba0', 'hba0-sw0', 'sw0', 'sw0-ctl0p0', 'ctl0p0', 'ctl0']);
  expect(singlePointsOfFailure(paths)).toEqual([]);
  expect(failuresSurvived(paths)).toBe(1);
});

test('one HBA is one, with its cable and its switch; three of each survive any two failures', () => {
  expect(singlePointsOfFailure(pathsTo(defaultTopology(1, 2, 'lun'), 'lun'))).toEqual([
    'hba0',
    'hba0-sw0',
    'sw0',
  ]);
  expect(singlePointsOfFailure(pathsTo(defaultTopology(2, 1, 'lun'), 'lun'))).toEqual(['ctl0']);
  expect(failuresSurvived(pathsTo(defaultTopology(3, 3, 'lun'), 'lun'))).toBe(2);
});

test('frames go over linked switches, and neither through another HBA nor through a port', () => {
  const chain: Topology = checkedTopology({
    hbas: ['h', 'i'],
    switches: ['a', 'b', 'c'],
    controllers: [
      { name: 'x', ports: ['x0'] },
      { name: 'y', ports: ['y0'] },
    ],
    cables: [
      ['h', 'a'],
      ['a', 'b'],
      ['b', 'x0'],
      ['x0', 'c'],
      ['c', 'y0'],
      ['i', 'a'],
      ['i', 'c'],
    ],
    luns: [{ identity: 'all' }, { identity: 'far', controllers: ['y'] }],
  });
  expect(pathsTo(chain, 'all').map(walk)).toEqual(['h a b x0 x', 'i c x0 x', 'i c y0 y']);
  expect(pathsTo(chain, 'far').map(walk)).toEqual(['i c y0 y']);
  expect(pathsTo(chain, 'none')).toEqual([]);
});

test.each<[string, Partial<Topology>]>([
  ['topology: two components are named hba0', { hbas: ['hba0', 'hba0'] }],
  ['topology: two components are named sw0', { hbas: ['hba0', 'sw0'] }],
  ['topology: cables[0] (hba0-swx): there is no HBA, switch or port swx', { cables: [['hba0', 'swx']] }],
  ['topology: cables[0] (hba0-ctl0): there is no HBA, switch or port ctl0', { cables: [['hba0', 'ctl0']] }],
  ['topology: cables[0] (sw0-sw0): leads to where it begins', { cables: [['sw0', 'sw0']] }],
  ['topology: cables[0] (hba0-hba1): joins two hbas', { cables: [['hba0', 'hba1']] }],
  [
    'topology: cables[6] (sw0-hba0): is there already, as cables[0]',
    { cables: [...two.cables, ['sw0', 'hba0']] },
  ],
  [
    'topology: the switches sw2 and sw0 are cabled in a circle',
    {
      switches: ['sw0', 'sw1', 'sw2'],
      cables: [...two.cables, ['sw0', 'sw1'], ['sw1', 'sw2'], ['sw2', 'sw0']],
    },
  ],
  ['topology: luns[1]: two LUNs are lun', { luns: [{ identity: 'lun' }, { identity: 'lun' }] }],
  [
    'topology: luns[0] (lun): there is no controller ctl7',
    { luns: [{ identity: 'lun', controllers: ['ctl7'] }] },
  ],
  [
    'topology: luns[0] (lun): there is no controller ctl7',
    { luns: [{ identity: 'lun', preferred: 'ctl7' }] },
  ],
  [
    'topology: luns[0] (lun): it prefers ctl1, by which it cannot be reached',
    { luns: [{ identity: 'lun', controllers: ['ctl0'], preferred: 'ctl1' }] },
  ],
  ['topology: luns[0] (lun): no path leads to it', { cables: [['hba0', 'sw0']] }],
  ['topology: there is no LUN', { luns: [] }],
])('%s', (complaint, change) => {
  expect(() => checkedTopology({ ...two, ...change })).toThrow(complaint);
});

test('failures survived: every set of so many leaves a path, and some set of one more does not', () =>
  withSeed(runSeed, (random) => {
    for (let round = 0; round < 60; round += 1) {
      const topology = defaultTopology(1 + random(3), 1 + random(3), 'lun');
      const cables = topology.cables.filter(() => random(6) > 0);
      const paths = pathsTo({ ...topology, cables }, 'lun');
      const components = [...new Set(paths.flatMap((path) => path.components))];
      const fewest = (left: readonly FabricPath[], from: number, most: number): number => {
        if (left.length === 0) return 0;
        if (most === 0) return Number.POSITIVE_INFINITY;
        let best = Number.POSITIVE_INFINITY;
        for (let at = from; at < components.length; at += 1) {
          const rest = left.filter((path) => !path.components.includes(components[at] ?? ''));
          best = Math.min(best, 1 + fewest(rest, at + 1, most - 1));
        }
        return best;
      };
      const cut = fewest(paths, 0, 3);
      expect(failuresSurvived(paths)).toBe(cut - 1);
      if (paths.length > 0) expect(singlePointsOfFailure(paths).length > 0).toBe(cut === 1);
    }
  }));

test('a report says what settings and topology mean together', () => {
  const conf = parseConf(`multipaths {
  multipath {
    wwid lun
    no_path_retry 12
  }
}
`);
  const [report] = reportOn(two, (wwid) => settingsFor(conf, { wwid }), { fenceMs: 500 });
  // Four paths and one attempt more, each silent for 30 s + 1 s + 0.5 s; 12 × 5 s; a tick.
  expect(report?.longestStallMs).toBe(5 * 31_500 + 60_000 + 1000);
  expect(report?.failuresSurvived).toBe(1);
  const [waits] = reportOn(two, () =>
    settingsFor(parseConf('defaults {\n no_path_retry queue\n}'), { wwid: 'lun' }),
  );
  expect(waits?.longestStallMs).toBe(Number.POSITIVE_INFINITY);
});
