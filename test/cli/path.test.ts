/** `path` where nobody has the array open: what is kept in the manifest, how it is shown, and what lint says. */
import { readFile, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { Scratch } from './raidsim.ts';

interface Paths {
  readonly isLive: boolean;
  readonly luns: readonly {
    readonly name: string;
    readonly groups: readonly {
      readonly paths: readonly { readonly name: string; readonly state: string }[];
    }[];
  }[];
}

async function statesOf(scratch: Scratch): Promise<Readonly<Record<string, string>>> {
  const { luns, isLive } = JSON.parse(await scratch.done('path list demo --json')) as Paths;
  expect(isLive).toBe(false);
  const paths = luns.flatMap(({ groups }) => groups.flatMap((group) => group.paths));
  return Object.fromEntries(paths.map(({ name, state }) => [name, state]));
}

test('components are failed and restored, and the paths show it', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 1 -n 2 -z 8M --hbas 2 --controllers 2 -q');
  expect((await scratch.done('path list demo')).split('\n').slice(0, 8)).toEqual([
    'disk0 (disk0.img) raidsim,disk',
    "size=8MiB features='0' hwhandler='1 alua' wp=rw",
    "|-+- policy='service-time 0' prio=50 status=enabled",
    '| |- 0:0:0:0 hba0:ctl0p0 active ready running',
    '| `- 1:0:1:0 hba1:ctl0p1 active ready running',
    "`-+- policy='service-time 0' prio=10 status=enabled",
    '  |- 0:0:2:0 hba0:ctl1p0 active ready running',
    '  `- 1:0:3:0 hba1:ctl1p1 active ready running',
  ]);
  expect(await scratch.done('path fail demo hba0')).toBe('hba0: failed\n');
  expect(await scratch.done('path delay demo sw1 ctl1 20ms')).toBe('sw1: 20 ms slower\nctl1: 20 ms slower\n');
  expect(await scratch.done('path limit demo sw1 --bandwidth 10M --depth 4')).toBe(
    'sw1: 20 ms slower, 10 MiB a second, 4 requests at a time\n',
  );
  expect(await scratch.done('path hang demo hba1:ctl0p1')).toBe(
    'hba1:ctl0p1:disk0: hangs\nhba1:ctl0p1:disk1: hangs\n',
  );
  expect(await statesOf(scratch)).toEqual({
    'hba0:ctl0p0:disk0': 'down',
    'hba1:ctl0p1:disk0': 'down',
    'hba0:ctl1p0:disk0': 'down',
    'hba1:ctl1p1:disk0': 'up',
    'hba0:ctl1p0:disk1': 'down',
    'hba1:ctl1p1:disk1': 'up',
    'hba0:ctl0p0:disk1': 'down',
    'hba1:ctl0p1:disk1': 'down',
  });
  expect(await scratch.done('path restore demo sw0-hba0 hba0')).toBe('hba0-sw0: works\nhba0: works\n');
  expect((await scratch.done('path restore demo')).split('\n')).toHaveLength(5);
  expect(new Set(Object.values(await statesOf(scratch)))).toEqual(new Set(['up']));
  expect(await scratch.done('path restore demo')).toBe('there was nothing to restore\n');
});

test('status of an array that no path leads to says so, and what to do', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 1 -n 2 -z 8M --hbas 1 --controllers 2 -q');
  await scratch.done('path fail demo ctl0');
  expect(await scratch.done('status demo')).not.toContain('problem');
  await scratch.done('path fail demo ctl1');
  const told = await scratch.done('status demo');
  expect(told).toContain('problem: disk0: no path leads to it\n');
  expect(told).toContain('do now: raidsim path restore demo');
  expect(told).not.toContain('safe');
  await scratch.done('path restore demo');
  expect(await scratch.done('status demo')).toContain('safe: any disk may fail');
});

test('what cannot be is refused, with what was probably meant', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 1 -n 2 -z 8M --hbas 2 --controllers 1 -q');
  await scratch.done('create plain -l 1 -n 2 -z 8M -q');
  const refusals: Readonly<Record<string, string>> = {
    'path fail demo disk7': 'demo has no component or path disk7; there are hba0, hba1',
    'path fail demo hba0-sw9': 'did you mean hba',
    'path fail demo': 'say what: path fail demo hba0',
    'path fail demo hba0 --depth 3': 'path fail has no option --depth',
    'path limit demo hba0': 'say how much',
    'path delay demo hba0': 'say what, and how long',
    'path delay demo hba0 20': '"20" is no time',
    'path switch demo ctl0': 'demo is not served',
    'path list plain': 'plain has no fabric',
    'path lint plain': 'plain has no fabric, and no member that several NBD URIs lead to',
    'path lint nowhere.conf': 'there is no array, raidsim.json or multipath.conf nowhere.conf',
    'path lint demo --hbas 3': 'says itself',
  };
  for (const [line, text] of Object.entries(refusals)) {
    const { code, stderr } = await scratch.type(line);
    expect(code, line).toBe(2);
    expect(stderr, line).toContain(text);
  }
});

test('lint says what a configuration means, and where it is wrong', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 1 -n 2 -z 8M --hbas 1 --controllers 2 -q');
  await writeFile(scratch.path('demo/multipath.conf'), 'defaults {\n  no_path_retry 12\n  colour red\n}\n');
  expect((await scratch.done('path lint demo')).split('\n').slice(0, 3)).toEqual([
    'unknown demo/multipath.conf:3:3: "colour" is no keyword of multipath.conf; it is left out',
    'disk0, disk1: 2 paths, survives no failure; single points of failure: hba0, hba0-sw0, sw0',
    '  longest stall of a request: 154 s',
  ]);
  await scratch.done('create remote -l 1 -n 2 -z 8M -q');
  const manifest = JSON.parse(await readFile(scratch.path('remote/raidsim.json'), 'utf8'));
  manifest.members = [
    'nbd://10.0.0.1:10809/a|nbd://10.0.0.2:10809/a',
    'nbd://10.0.0.1:10809/b|nbd://10.0.0.1:10810/b|nbd+unix:///b?socket=/run/b.sock',
    'nbd://10.0.0.1:10809/c|nbd://10.0.0.1:10810/c',
    'disk3.img',
  ];
  await writeFile(scratch.path('remote/raidsim.json'), JSON.stringify(manifest));
  await writeFile(scratch.path('remote/multipath.conf'), 'defaults {\n  no_path_retry fail\n}\n');
  const words = (await scratch.done('path lint remote')).split('\n');
  expect(words.filter((line) => !line.startsWith(' ') && line !== '')).toEqual([
    expect.stringMatching(/: 2 paths, survives any 1$/),
    expect.stringMatching(/: 3 paths, survives any 1$/),
    expect.stringMatching(/: 2 paths, survives no failure; single points of failure: host 10\.0\.0\.1$/),
  ]);
  expect(words.slice(1, 4)).toEqual([
    '  longest stall of a request: 62 s',
    '  a server ends: its requests go on by another path at once',
    '  a server falls silent: after 31 s; with a change unanswered nobody knows what becomes of it: the member has failed',
  ]);
  await writeFile(scratch.path('wrong.conf'), 'defaults {\n  no_path_retry maybe\n}\n');
  const { code, stdout } = await scratch.type('path lint wrong.conf');
  expect(code).toBe(3);
  expect(stdout).toBe(
    'error wrong.conf:2:17: no_path_retry: "maybe" is no whole number from 0 to 2147483647, nor fail or queue\n',
  );
  const report = JSON.parse((await scratch.type('path lint wrong.conf --json')).stdout) as {
    diagnostics: unknown;
  };
  expect(report.diagnostics).toMatchObject([{ file: 'wrong.conf', kind: 'error', line: 2, column: 17 }]);
});
