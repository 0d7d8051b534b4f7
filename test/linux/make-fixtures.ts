/**
 * Makes fixtures/md anew: images of members as real mdadm and the real kernel leave them, what mdadm says of each, and
 * what the kernel read from the array. Run after a build: `node dist/test/linux/make-fixtures.js`. The results differ in
 * uuids and times from run to run, so they are kept, and made again only to add a state.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { runInKernel } from './kernel.ts';

interface State {
  readonly name: string;
  readonly says: string;
  /** Sectors of each image. */
  readonly members: readonly number[];
  /** $MD is the array, $SYS its place in sysfs; $M0, $M1, ... and $M its members. */
  readonly script: string;
  /** The array is left running when the power goes. */
  readonly dirty?: true;
}

const MEMBER = 6144;
const alike = (count: number): readonly number[] => Array.from({ length: count }, () => MEMBER);

const states: readonly State[] = [
  {
    name: 'raid1',
    says: 'clean, metadata 1.2',
    members: alike(2),
    script: 'create --level=1 --raid-devices=2 $M; settle $MD; fill; stop',
  },
  {
    name: 'raid5-failed',
    says: 'm1 failed, then the array was written: m1 is stale',
    members: alike(3),
    script:
      'create --level=5 --chunk=64 --raid-devices=3 $M; settle $MD; mdadm $MD --fail $M1; settle $MD; fill; stop',
  },
  {
    name: 'raid6',
    says: 'clean',
    members: alike(4),
    script: 'create --level=6 --chunk=64 --raid-devices=4 $M; settle $MD; fill; stop',
  },
  {
    name: 'raid10-far',
    says: 'clean, far=2 on three members',
    members: alike(3),
    script: 'create --level=10 --layout=f2 --chunk=64 --raid-devices=3 $M; settle $MD; fill; stop',
  },
  {
    name: 'raid5-recovering',
    says: 'stopped while m2 was being recovered, 1024 sectors in',
    members: alike(3),
    script:
      'create --level=5 --chunk=64 --raid-devices=3 $M0 $M1 missing; fill; echo 1024 >$SYS/sync_max; ' +
      'mdadm $MD --add $M2; sleep 2; stop',
  },
  {
    name: 'raid1-0.90',
    says: 'clean, metadata 0.90',
    members: alike(2),
    script: 'create --metadata=0.90 --level=1 --raid-devices=2 $M; settle $MD; fill; stop',
  },
  {
    name: 'raid1-badblocks',
    says: 'metadata 1.1, two bad ranges on m1',
    members: alike(2),
    script:
      'create --metadata=1.1 --level=1 --raid-devices=2 $M; settle $MD; fill; bb=$SYS/dev-$(basename $M1)/bad_blocks; ' +
      'echo 2056 8 >$bb; echo 2600 24 >$bb; sleep 1; stop',
  },
  {
    name: 'raid0-unequal',
    says: 'two zones, original layout',
    members: [MEMBER, 8192, 7168],
    script: 'create --level=0 --chunk=64 --raid-devices=3 $M; fill; stop',
  },
  {
    name: 'linear',
    says: 'two members',
    members: [MEMBER, 7168],
    script: 'create --level=linear --raid-devices=2 $M; fill; stop',
  },
  {
    name: 'raid5-replacing',
    says: 'stopped while m3 was copying m1, 1024 sectors in',
    members: alike(4),
    script:
      'create --level=5 --chunk=64 --raid-devices=3 --spare-devices=1 $M; settle $MD; fill; echo 1024 >$SYS/sync_max; ' +
      'mdadm $MD --replace $M1; sleep 2; stop',
  },
  {
    name: 'raid5-dirty',
    says: 'power cut just after a write',
    members: alike(3),
    script: 'create --level=5 --chunk=64 --raid-devices=3 $M; settle $MD; fill; read_all; keep_writing',
    dirty: true,
  },
  {
    name: 'raid1-bitmap',
    says: 'metadata 1.0, write-intent bitmap with 4 KiB chunks, power cut just after a write',
    members: alike(2),
    script:
      'create --metadata=1.0 --level=1 --bitmap=internal --bitmap-chunk=4K --raid-devices=2 $M; settle $MD; fill; read_all; keep_writing',
    dirty: true,
  },
  {
    name: 'raid5-ppl',
    says: 'partial parity log, power cut just after a write',
    members: alike(3),
    script:
      'create --level=5 --chunk=64 --consistency-policy=ppl --raid-devices=3 $M; settle $MD; fill; read_all; keep_writing',
    dirty: true,
  },
  {
    name: 'raid5-journal',
    says: 'm3 is a journal: not supported',
    members: [...alike(3), 16384],
    script:
      'create --level=5 --chunk=64 --raid-devices=3 --write-journal $M3 $M0 $M1 $M2; settle $MD; fill; stop',
  },
  {
    name: 'raid5-reshaping',
    says: 'stopped while growing from three members to four: not supported',
    members: [12288, 12288, 12288, 12288],
    script:
      'create --level=5 --chunk=64 --raid-devices=3 $M0 $M1 $M2; settle $MD; mdadm $MD --add $M3; ' +
      'echo 0 >/proc/sys/dev/raid/speed_limit_min; echo 300 >/proc/sys/dev/raid/speed_limit_max; mdadm --grow $MD --raid-devices=4; sleep 3; stop',
  },
];

/** Sector n of the array holds n as a u32, 128 times; the first 256 KiB and the last 64 KiB are written. */
const prelude = `
create() { mdadm --create $MD --run --name=\${NAME} "$@" </dev/null; }
numbers() { perl -e 'binmode STDOUT; print pack("V", $_) x 128 for $ARGV[0] .. $ARGV[1]' $1 $2; }
fill() {
  size=$(cat /sys/block/\${MD#/dev/}/size); tail=$((size / 128 * 128 - 128))
  numbers 0 511 | dd of=$MD bs=64k conv=fsync,notrunc iflag=fullblock
  numbers $tail $((tail + 127)) | dd of=$MD bs=64k seek=$((tail / 128)) conv=fsync,notrunc iflag=fullblock
}
read_all() { sync; echo 3 >/proc/sys/vm/drop_caches; echo "$NAME $(cat /sys/block/\${MD#/dev/}/size) $(sha256sum <$MD | cut -d' ' -f1)" >>/run/lab/out-sums; }
keep_writing() { while :; do overwrite; done >/dev/null 2>&1 & }
overwrite() { numbers 0 511 | dd of=$MD bs=64k oflag=direct conv=notrunc iflag=fullblock; }
stop() { read_all; sleep 0.5; mdadm --stop $MD; }
`;

function boots(): readonly (readonly State[])[] {
  const groups: State[][] = [];
  for (const state of states.toSorted((a, b) => Number(a.dirty ?? false) - Number(b.dirty ?? false))) {
    const last = groups.at(-1);
    const used = last?.reduce((sum, each) => sum + each.members.length, 0) ?? 0;
    if (
      last === undefined ||
      used + state.members.length > 16 ||
      (last[0]?.dirty ?? false) !== (state.dirty ?? false)
    ) {
      groups.push([state]);
    } else {
      last.push(state);
    }
  }
  return groups;
}

/** mdadm finds a bitmap inside a member only on a block device, so this takes a boot of its own. */
async function examineBitmaps(images: readonly string[]): Promise<ReadonlyMap<string, string>> {
  const script = images
    .map((_, index) => `echo "=== ${index}"; mdadm --examine-bitmap $D${index}`)
    .join('\n');
  const { stdout } = await runInKernel({ script, images });
  const [, ...parts] = stdout.split(/^=== \d+\n/m);
  return new Map(images.map((image, index) => [image, parts[index] ?? '']));
}

async function main(): Promise<void> {
  const target = new URL('../../../fixtures/md/', import.meta.url).pathname;
  const work = mkdtempSync(join(tmpdir(), 'raidsim-fixtures-'));
  const manifest: Record<string, unknown> = {};
  for (const group of boots()) {
    const images: string[] = [];
    let script = `${prelude}\n`;
    for (const [number, state] of group.entries()) {
      mkdirSync(join(work, state.name));
      const first = images.length;
      for (const [index, sectors] of state.members.entries()) {
        const image = join(work, state.name, `m${index}.img`);
        writeFileSync(image, '');
        truncateSync(image, sectors * 512);
        images.push(image);
      }
      const names = state.members.map((_, index) => `M${index}=$D${first + index}`).join(' ');
      const all = state.members.map((_, index) => `$M${index}`).join(' ');
      script += `NAME=${state.name} MD=/dev/md${number} SYS=/sys/block/md${number}/md; ${names}; M="${all}"\n${state.script}\n`;
    }
    script +=
      group[0]?.dirty === true ? 'cat /run/lab/out-sums; sleep 0.5; power-cut' : 'cat /run/lab/out-sums';
    const result = await runInKernel({ script, images });
    console.error(`${result.ended} ${result.exitStatus}\n${result.stderr}`);
    const bitmaps = await examineBitmaps(images);
    const sums = new Map(result.stdout.split('\n').map((line) => [line.split(' ')[0], line.split(' ')]));
    for (const state of group)
      manifest[state.name] = keep(
        state,
        join(work, state.name),
        join(target, state.name),
        sums.get(state.name),
        bitmaps,
      );
  }
  const versions = {
    mdadm: execFileSync('mdadm', ['--version'], { stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8' }),
    kernel: execFileSync('linux.uml', ['--version'], { encoding: 'utf8' }).trim().split('\n').at(-1),
  };
  writeFileSync(
    join(target, 'manifest.json'),
    `${JSON.stringify({ ...versions, states: manifest }, null, 1)}\n`,
  );
  rmSync(work, { recursive: true });
}

function keep(
  state: State,
  from: string,
  to: string,
  sum: readonly string[] | undefined,
  bitmaps: ReadonlyMap<string, string>,
): unknown {
  rmSync(to, { recursive: true, force: true });
  mkdirSync(to, { recursive: true });
  const texts: Record<string, string> = {};
  const members = state.members.map((sectors, index) => {
    const name = `m${index}.img`;
    const bytes = readFileSync(join(from, name));
    writeFileSync(join(to, `${name}.gz`), gzipSync(bytes, { level: 9 }));
    texts[`${name} --examine-bitmap`] = bitmaps.get(join(from, name)) ?? '';
    for (const question of ['--examine', '--examine-badblocks']) {
      texts[`${name} ${question}`] = mdadm(question, name, from);
    }
    return {
      file: `${state.name}/${name}.gz`,
      sizeBytes: sectors * 512,
      sha256: createHash('sha256').update(bytes).digest('hex'),
    };
  });
  writeFileSync(join(to, 'mdadm.json'), `${JSON.stringify(texts, null, 1)}\n`);
  const array = sum === undefined ? null : { sizeBytes: Number(sum[1]) * 512, sha256: sum[2] };
  return { says: state.says, commands: state.script, array, members };
}

function mdadm(question: string, name: string, cwd: string): string {
  try {
    const env = { PATH: `${process.env['PATH']}:/usr/sbin:/sbin`, TZ: 'UTC', LC_ALL: 'C' };
    return execFileSync('mdadm', [question, name], {
      cwd,
      env,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
  } catch {
    return '';
  }
}

await main();
