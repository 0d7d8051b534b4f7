import { describe, expect, test } from 'vitest';
import { describeDiagnostic } from '../../lib/multipath/conf.ts';
import { lintConf, lintManifest } from '../../lib/multipath/lint.ts';
import { defaultPlan } from '../../lib/multipath/san.ts';

const twice = defaultPlan(2, 2);

describe('multipath.conf', () => {
  test('is told in time: fail-over, no path, the longest stall, and what is survived', () => {
    const conf = `defaults {
      no_path_retry 12
      polling_interval 5
      fast_io_fail_tmo 3
    }`;
    const [lun, ...others] = lintConf(conf, twice, ['disk0', 'disk1']).luns;
    // Two members, which prefer different controllers, and for which all else is the same.
    expect(others).toEqual([]);
    expect(lun).toMatchObject({
      names: ['disk0', 'disk1'],
      paths: 4,
      failuresSurvived: 1,
      singlePointsOfFailure: [],
      failOverMs: 3000,
      silentFailOverMs: 31_000,
      foundByCheckerMs: 52_000,
      noPathMs: 60_000,
      longestStallMs: 5 * 31_000 + 60_000 + 1000,
    });
    expect(lun?.meaning).toEqual([
      'a component fails: its requests go on by another path after 3 s (fast_io_fail_tmo); the path is removed after 600 s',
      'a component falls silent: after 31 s; where nothing is asked of it, a checker (tur) finds out within 52 s',
      'it comes back: its paths are used again within 6 s',
      'no path is left: requests wait for one for 60 s (12 checks), then fail',
      'a better group comes back: it is used when somebody says so (path switch)',
      'a path comes and goes: it is taken back every time (no san_path_err_*, no marginal_path_*)',
    ]);
  });

  test.each([
    ['no_path_retry fail', { noPathMs: 0, longestStallMs: 124_000 }],
    ['no_path_retry queue', { noPathMs: null, longestStallMs: null }],
    ['fast_io_fail_tmo off', { failOverMs: 31_000 }],
    ['fast_io_fail_tmo off\ndev_loss_tmo 20', { failOverMs: 20_000 }],
  ])('%s', (line, meaning) => {
    expect(lintConf(`defaults {\n${line}\n}`, twice, ['disk0']).luns[0]).toMatchObject(meaning);
  });

  test('single points of failure are named, and how many failures are survived', () => {
    const pointsOf = (hbas: number, controllers: number) => {
      const [lun] = lintConf('', defaultPlan(hbas, controllers), ['disk0']).luns;
      return [lun?.failuresSurvived, lun?.singlePointsOfFailure];
    };
    expect(pointsOf(1, 1)[0]).toBe(0);
    expect(pointsOf(1, 2)).toEqual([0, ['hba0', 'hba0-sw0', 'sw0']]);
    expect(pointsOf(2, 1)).toEqual([0, ['ctl0']]);
    expect(pointsOf(3, 3)).toEqual([2, []]);
  });

  test('a LUN with a section of its own is told by itself', () => {
    const conf = 'multipaths {\nmultipath {\nwwid disk1\nno_path_retry queue\n}\n}';
    const { luns } = lintConf(conf, twice, ['disk0', 'disk1', 'disk2']);
    expect(luns.map(({ names, longestStallMs }) => [names.join(), longestStallMs])).toEqual([
      ['disk0,disk2', 124_000],
      ['disk1', null],
    ]);
  });

  test('errors are named at line and column, and then nothing is told', () => {
    const { diagnostics, luns } = lintConf('defaults {\n  no_path_retry maybe\n}', twice, ['disk0']);
    expect(diagnostics.map((each) => describeDiagnostic(each, 'm.conf'))).toEqual([
      'm.conf:2:17: no_path_retry: "maybe" is no whole number from 0 to 2147483647, nor fail or queue',
    ]);
    expect(luns).toEqual([]);
  });
});

describe('raidsim.json', () => {
  const namesOf = (members: readonly string[]) => members.map((each) => each.replace('.img', ''));
  const said = (text: string): readonly string[] =>
    lintManifest(text, namesOf).diagnostics.map((each) => describeDiagnostic(each, 'raidsim.json'));
  const manifest = (fabric: unknown) =>
    JSON.stringify({ raidsim: 1, members: ['disk0.img', 'disk1.img'], fabric }, null, 2);
  const lineOf = (text: string, part: string) => text.slice(0, text.indexOf(part)).split('\n').length;

  test('one without a fabric, and one with, is right', () => {
    expect(lintManifest(manifest(undefined), namesOf)).toEqual({
      plan: null,
      members: ['disk0', 'disk1'],
      sources: ['disk0.img', 'disk1.img'],
      diagnostics: [],
    });
    expect(lintManifest(manifest(twice), namesOf).plan).toEqual(twice);
  });

  test.each([
    ['{"members": [], x}', '1:17'],
    ['{\n  "members": [\n    "a" "b"\n  ]\n}', '3:9'],
    ['{\n  "members": ["a"', '2:18'],
    ['nonsense', '1:2'],
  ])('what is no JSON is refused where it ceases to be: %j', (text, place) => {
    expect(said(text)[0]).toMatch(new RegExp(`^raidsim\\.json:${place}: `));
    expect(said(text)[0]).not.toMatch(/position|\.\.\.|\n/);
  });

  test('a dangling cable, a circle, a stranger, nonsense: where it stands, and why', () => {
    const cases: readonly (readonly [unknown, string, string])[] = [
      [
        { ...twice, cables: [...twice.cables, ['hba9', 'sw0']] },
        '[\n        "hba9"',
        'there is no HBA, switch or port hba9',
      ],
      [
        { ...twice, cables: [...twice.cables, ['sw0', 'sw1'], ['sw1', 'sw0']] },
        '[\n        "sw1",\n        "sw0"',
        'is there already',
      ],
      [{ ...twice, luns: [{ identity: 'disk7' }] }, '{\n        "identity"', 'there is no member disk7'],
      [
        { ...twice, luns: [{ identity: 'disk0' }, { identity: 'disk0' }] },
        '{\n        "identity"',
        'two LUNs are disk0',
      ],
      [
        { ...twice, conditions: { hba0: { state: 'tired' } } },
        '{\n        "state"',
        'state "tired" is none of',
      ],
      [{ ...twice, transitionMs: -1 }, '-1', 'transitionMs is no time'],
      [{ ...twice, colour: 'red' }, '"red"', 'a fabric has no "colour"'],
      [{ ...twice, cables: [['hba0']] }, '[\n        "hba0"\n', 'is not a list of two names'],
      [{ ...twice, hbas: 'two' }, '"two"', 'hbas must be a list'],
    ];
    for (const [fabric, part, why] of cases) {
      const text = manifest(fabric);
      const [only, ...others] = said(text);
      expect(others).toEqual([]);
      expect(only).toContain(why);
      const last = why.startsWith('two LUNs') ? text.lastIndexOf(part) : text.indexOf(part);
      expect(only, text).toContain(`raidsim.json:${lineOf(text, text.slice(last))}:`);
    }
  });

  test('a condition of nobody is named, and left out', () => {
    const text = manifest({ ...twice, conditions: { hba0: { delayMs: 3 }, hba7: { state: 'failed' } } });
    const { plan, diagnostics } = lintManifest(text, namesOf);
    expect(plan).not.toBe(null);
    expect(diagnostics).toEqual([
      {
        kind: 'unknown',
        line: lineOf(text, '"hba7"'),
        column: 15,
        message: 'there is no component or path "hba7"; its condition is left out',
      },
    ]);
  });

  test('whatever JSON it is, reading it ends, and never throws', () => {
    for (const fabric of [
      null,
      1,
      [],
      {},
      { hbas: [] },
      { hbas: {}, switches: [], controllers: [], cables: [] },
    ])
      expect(said(manifest(fabric)), JSON.stringify(fabric)).toHaveLength(1);
    for (const text of ['null', '3', '[]', '{}', '{"members":[1]}']) expect(said(text), text).toHaveLength(1);
  });
});
