import { describe, expect, test } from 'vitest';
import { RaidError } from '../../lib/errors.ts';
import {
  type Diagnostic,
  describeDiagnostic,
  parseConf,
  posixExpression,
  readConf,
  type Settings,
  settingsFor,
} from '../../lib/multipath/conf.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

const golden = `# A file such as an administrator has.
defaults {
	user_friendly_names yes
	polling_interval 10
	path_selector "round-robin 0"   ! a comment
	no_path_retry 12
	features "2 queue_mode bio"
	rr_min_io 100
}
blacklist {
	devnode "!^(sd[a-z]|nvme[0-9])"
	device {
		vendor "ACME"
		product "local"
	}
}
devices {
	device {
		vendor "^NET"
		product "LUN( C-Mode)?$"
		path_grouping_policy group_by_prio
		failback immediate
		prio alua
		dev_loss_tmo infinity
	}
	device {
		vendor "NET"
		product "*"
		failback 30
	}
}
multipaths {
	multipath {
		wwid 3600a098
		alias data
		no_path_retry fail
		frobnicate 3
	}
}
overrides {
	checker_timeout 5
	fast_io_fail_tmo 7
	protocol {
		type "nvme:tcp"
		fast_io_fail_tmo off
	}
}
`;

const plain: Settings = {
  groupingPolicy: 'failover',
  selector: 'service-time',
  prio: { kind: 'const' },
  checker: 'tur',
  failback: { kind: 'manual' },
  noPathRetry: { kind: 'fail' },
  rrMinIo: 1,
  rrWeight: 'uniform',
  pollingMs: 5_000,
  maxPollingMs: 20_000,
  checkerTimeoutMs: 30_000,
  fastIoFailMs: 5_000,
  devLossMs: null,
  sanPathErr: null,
  marginalPath: null,
  marginalGroups: false,
};

const lun = { wwid: '1', vendor: 'NETAPP', product: 'LUN C-Mode' };

function said(text: string): string[] {
  return readConf(text).diagnostics.map((each) => `${each.kind} ${describeDiagnostic(each, 'm')}`);
}

function errorsIn(text: string): readonly Diagnostic[] {
  return readConf(text).diagnostics.filter(({ kind }) => kind === 'error');
}

function inDefaults(...lines: readonly string[]): string {
  return `defaults {\n${lines.join('\n')}\n}\n`;
}

function settingsIn(...lines: readonly string[]): Settings {
  return settingsFor(parseConf(inDefaults(...lines)), { wwid: '1' });
}

describe('a multipath.conf', () => {
  test('without a word in it means what multipath.conf(5) gives as defaults', () => {
    expect(settingsFor(parseConf(''), { wwid: '1' })).toEqual(plain);
  });

  test('names every keyword that it leaves out, with line and column', () => {
    expect(said(golden)).toEqual([
      'ignored m:3:2: "user_friendly_names" has no effect here',
      'ignored m:10:1: "blacklist" says which devices are no paths; here paths are named, and it is left out',
      'ignored m:35:3: "alias" has no effect here',
      'unknown m:37:3: "frobnicate" is no keyword of multipath.conf; it is left out',
      'unknown m:41:2: "checker_timeout" has no place in "overrides"; it is left out',
    ]);
  });

  test('is resolved from multipaths over overrides over devices, last first, over defaults', () => {
    const conf = parseConf(golden);
    const common: Settings = {
      ...plain,
      selector: 'round-robin',
      pollingMs: 10_000,
      maxPollingMs: 40_000,
      rrMinIo: 100,
      fastIoFailMs: 7_000,
    };
    const retries = { kind: 'retries', count: 12 } as const;
    expect(settingsFor(conf, { wwid: '1', vendor: 'ACME' })).toEqual({ ...common, noPathRetry: retries });
    const matched: Settings = {
      ...common,
      noPathRetry: retries,
      groupingPolicy: 'group_by_prio',
      prio: { kind: 'alua', exclusivePrefBit: false },
      failback: { kind: 'deferred', afterMs: 30_000 },
      devLossMs: Number.POSITIVE_INFINITY,
    };
    expect(settingsFor(conf, lun)).toEqual(matched);
    expect(settingsFor(conf, { ...lun, protocol: 'nvme:tcp' })).toEqual({ ...matched, fastIoFailMs: null });
    expect(settingsFor(conf, { ...lun, wwid: '3600a098' })).toEqual({
      ...matched,
      noPathRetry: { kind: 'fail' },
    });
    expect(settingsFor(conf, { ...lun, wwid: '3600a0981' })).toEqual(matched);
  });

  test('lets ALUA be detected, unless it says no', () => {
    const alua = { wwid: '1', alua: true };
    const found = settingsFor(parseConf(inDefaults('path_checker directio')), alua);
    expect(found.groupingPolicy).toBe('group_by_prio');
    expect(found.prio).toEqual({ kind: 'alua', exclusivePrefBit: false });
    expect(found.checker).toBe('tur');
    const off = inDefaults('detect_prio no', 'detect_checker no', 'path_checker directio', 'prio random');
    expect(settingsFor(parseConf(off), alua)).toEqual({
      ...plain,
      checker: 'directio',
      prio: { kind: 'random' },
    });
  });

  test('turns a method for flapping paths on only with all of its keywords, and the newer one first', () => {
    const san = ['san_path_err_threshold 3', 'san_path_err_forget_rate 4', 'san_path_err_recovery_time 60'];
    const marginal = [
      'marginal_path_double_failed_time 60',
      'marginal_path_err_sample_time 120',
      'marginal_path_err_rate_threshold 10',
      'marginal_path_err_recheck_gap_time 300',
    ];
    expect(settingsIn(...san).sanPathErr).toEqual({ threshold: 3, forgetChecks: 4, recoveryMs: 60_000 });
    for (const missing of san) expect(settingsIn(...san.filter((each) => each !== missing))).toEqual(plain);
    for (const missing of marginal) {
      expect(settingsIn(...marginal.filter((each) => each !== missing))).toEqual(plain);
    }
    const both = settingsIn(...san, ...marginal);
    expect(both.sanPathErr).toBeNull();
    expect(both.marginalPath).toEqual({
      doubleFailedMs: 60_000,
      sampleMs: 120_000,
      errorsPermille: 10,
      recheckGapMs: 300_000,
    });
  });

  test.each<[string, Partial<Settings>]>([
    ['no_path_retry queue', { noPathRetry: { kind: 'queue' } }],
    ['no_path_retry 0', {}],
    ['features "1 queue_if_no_path"', { noPathRetry: { kind: 'queue' } }],
    ['features "1 queue_if_no_path"\nno_path_retry fail', {}],
    ['rr_min_io_rq 7', { rrMinIo: 7 }],
    ['rr_min_io 7', {}],
    ['failback followover', { failback: { kind: 'followover' } }],
    ['path_selector "hash 0"', { selector: 'hash' }],
    ['max_polling_interval 5', { maxPollingMs: 5_000 }],
    ['dev_loss_tmo 600', { devLossMs: 600_000 }],
    [
      'prio path_latency\nprio_args "io_num=20 base_num=10"',
      { prio: { kind: 'path_latency', ioCount: 20, base: 10 } },
    ],
    ['prio alua\nprio_args exclusive_pref_bit', { prio: { kind: 'alua', exclusivePrefBit: true } }],
    ['marginal_pathgroups on', { marginalGroups: true }],
    ['polling_interval "5"', {}],
    ['failback manual # or immediate', {}],
  ])('takes %j for what multipath.conf(5) says', (line, differs) => {
    expect(settingsIn(line)).toEqual({ ...plain, ...differs });
  });

  test('takes the last of two settings, and says so of the first', () => {
    expect(settingsIn('failback manual', 'failback immediate').failback).toEqual({ kind: 'immediate' });
    expect(said(inDefaults('failback manual', 'failback immediate'))).toEqual([
      'ignored m:2:10: failback is set again at line 3, and that one counts',
    ]);
  });

  test('reads two quotes within quotes as one, and what stands in quotes as no comment', () => {
    const conf = parseConf(
      'devices {\n device {\n vendor "2.5"" # SSD!"\n product x{2}$\n failback immediate\n}\n}',
    );
    const settings = settingsFor(conf, { wwid: '1', vendor: 'a 2.5" # SSD! b', product: 'xx' });
    expect(settings.failback).toEqual({ kind: 'immediate' });
    expect(settingsFor(conf, { wwid: '1', vendor: '2.5', product: 'xx' })).toEqual(plain);
  });

  test.each<[string, string]>([
    [inDefaults('\tfailback soon'), '2:11: failback: "soon" is no whole number from 1'],
    [inDefaults('failback 0'), '2:10: failback: "0" is no whole number from 1'],
    [inDefaults('no_path_retry -1'), '2:15: no_path_retry: "-1" is no whole number'],
    [inDefaults('polling_interval 1e3'), '2:18: polling_interval: "1e3" is no whole number'],
    [inDefaults('polling_interval ""'), '2:18: polling_interval: "" is no whole number'],
    [
      inDefaults('path_selector round-robin 0'),
      '2:27: path_selector takes one value; write several words as "round-robin 0"',
    ],
    [
      inDefaults('path_selector "round-robin"'),
      '2:15: path_selector: "round-robin" should be "round-robin 0"',
    ],
    [inDefaults('path_selector "fastest 0"'), '2:15: path_selector: "fastest 0" is none of'],
    [
      inDefaults('path_grouping_policy group_by_luck'),
      '2:22: path_grouping_policy: "group_by_luck" is none of',
    ],
    [
      inDefaults('features "3 queue_if_no_path"'),
      '2:10: features: "3 queue_if_no_path" should begin with the number',
    ],
    [inDefaults('features "1 quantum"'), '2:10: features: "1 quantum" has "quantum"'],
    [inDefaults('prio weightedpath'), '2:6: prio weightedpath needs prio_args'],
    [inDefaults('prio weightedpath', 'prio_args "hbtl 1:. x"'), '3:11: prio weightedpath needs prio_args'],
    [inDefaults('prio weightedpath', 'prio_args "hbtl [ 1"'), '3:11: "[" is no expression'],
    [inDefaults('prio path_latency', 'prio_args "io_num=1 base_num=10"'), '3:11: prio path_latency needs'],
    [
      inDefaults('marginal_path_err_sample_time 60'),
      '2:31: marginal_path_err_sample_time: "60" is no whole number from 120',
    ],
    [inDefaults('max_polling_interval 3'), '2:22: max_polling_interval is less than polling_interval'],
    [inDefaults('dev_loss_tmo 5'), '2:14: dev_loss_tmo must be more than fast_io_fail_tmo'],
    [inDefaults('failback'), '2:1: "failback" has no value'],
    [inDefaults('failback "manual'), '2:10: the quote that begins here does not end'],
    [inDefaults('"failback" manual'), '2:1: a keyword is not quoted'],
    ['defaults', '1:1: "defaults" has no value'],
    ['defaults\n{\n}', '1:1: "defaults" has no value'],
    ['defaults { failback manual\n}', '1:12: nothing may follow "{"'],
    ['defaults {\n} # end\n}', '3:1: "}" ends nothing'],
    ['defaults {\n} }', '2:3: nothing may follow "}"'],
    ['  defaults {\nfailback manual', '1:3: "defaults" begins here and does not end'],
    ['failback manual', '1:1: "failback" stands outside every section'],
    ['devices {\n device {\n vendor a\n }\n}', '2:2: a section "device" must have product'],
    [
      'devices {\n device {\n vendor [\n product b\n }\n}',
      '3:9: "[" is no expression: a bracket does not end',
    ],
    ['multipaths {\n multipath {\n }\n}', '2:2: a section "multipath" must have wwid'],
    ['multipaths {\n multipath {\n wwid ""\n }\n}', '3:7: wwid is empty'],
  ])('%j is refused at the place: %s', (text, complaint) => {
    expect(said(text).join('\n')).toContain(`error m:${complaint}`);
    expect(() => parseConf(text, { file: 'm' })).toThrow(RaidError);
  });

  test('calls a section that nobody knows by name, and takes nothing from it', () => {
    const text = 'settings {\n failback nonsense\n device {\n failback immediate\n}\n}\n';
    expect(said(text)).toEqual([
      'unknown m:1:1: a file has no section "settings"; all of it is left out',
      'unknown m:3:2: "settings" has no section "device"; all of it is left out',
    ]);
    for (const inherited of ['constructor', 'toString', '__proto__']) {
      expect(said(`${inherited} {\n}\ndefaults {\n${inherited} 1\n}`)).toEqual([
        `unknown m:1:1: a file has no section "${inherited}"; all of it is left out`,
        `unknown m:4:1: "${inherited}" is no keyword of multipath.conf; it is left out`,
      ]);
    }
  });

  test('whose sections contradict each other only for one LUN is refused for that one', () => {
    const device = 'devices {\n device {\n vendor A\n product .\n dev_loss_tmo 10\n }\n}\n';
    const text = `${device}overrides {\n protocol {\n type scsi:fcp\n fast_io_fail_tmo 20\n }\n}\n`;
    const conf = parseConf(text);
    const facts = { wwid: '1', vendor: 'A', product: 'b' };
    expect(settingsFor(conf, facts).devLossMs).toBe(10_000);
    expect(() => settingsFor(conf, { ...facts, protocol: 'scsi:fcp' })).toThrow(
      'multipath.conf:5:15: dev_loss_tmo must be more than fast_io_fail_tmo',
    );
  });
});

describe('an expression of regex(7)', () => {
  test.each<[string, string, boolean]>([
    ['bar', 'rhabarber', true],
    ['bar', 'Barbie', false],
    ['^bar$', 'barbie', false],
    ['*', 'anything', true],
    ['*:0:0:.', 'x*:0:0:1', true],
    ['[[:digit:]]+x', 'a12x', true],
    ['[^[:alpha:]]', 'abc', false],
    ['[]a]', ']', true],
    ['[\\d]', 'd', true],
    ['[\\d]', '5', false],
    ['a\\.b', 'acb', false],
    ['\\d', 'd', true],
    ['a{2}', 'xaax', true],
    ['(a|b)+c', 'abac', true],
  ])('%j on %j: %s', (expression, text, matches) => {
    expect(posixExpression(expression).test(text)).toBe(matches);
  });
});

test('whatever the text, reading it ends with places inside it, and without an error it has a meaning', async () => {
  const words = [
    ...golden.split(/(\s+)/),
    ...[
      '{',
      '}',
      '"',
      '#',
      '!',
      '\n',
      '\n',
      '\n',
      ' ',
      'defaults {',
      'multipath {',
      '[',
      '\\',
      '\0',
      'é',
      '""',
      '\r',
    ],
  ];
  await withSeed(runSeed, (random) => {
    for (let round = 0; round < 1200; round += 1) {
      let text = '';
      if (round % 2 === 0) {
        for (let count = random(40); count > 0; count -= 1) text += words[random(words.length)];
      } else {
        const at = random(golden.length);
        text = golden.slice(0, at) + words[random(words.length)] + golden.slice(at + random(6));
      }
      const { conf, diagnostics } = readConf(text);
      const lines = text.split('\n');
      for (const { line, column } of diagnostics) {
        expect(line >= 1 && line <= lines.length, text).toBe(true);
        expect(column >= 1 && column <= (lines[line - 1]?.length ?? 0), text).toBe(true);
      }
      if (errorsIn(text).length > 0) continue;
      try {
        expect(Object.keys(settingsFor(conf, lun)).sort()).toEqual(Object.keys(plain).sort());
      } catch (failure) {
        expect(failure, text).toBeInstanceOf(RaidError);
      }
    }
  });
});
