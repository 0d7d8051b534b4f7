/**
 * The md codecs against reality: mdadm and the kernel, booted over image files.
 *
 * Twins: each array is created twice with the same parameters and the same uuid, once by mdadm and once by us. Both run
 * in the kernel, which checks their redundancy; then every field of every superblock is compared.
 * Verdicts: superblocks changed by hand; the kernel and mdadm assemble them, and so do we.
 */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type AssembleOptions, assemble } from '../../lib/md/assemble.ts';
import { decodeBitmapSuperblock, newBitmapArea } from '../../lib/md/bitmap.ts';
import { examineText } from '../../lib/md/examine.ts';
import type { LevelNumbers } from '../../lib/md/levels.ts';
import {
  type ConsistencyPolicy,
  defaultConsistency,
  type FirstSync,
  newArray,
  placeArray,
} from '../../lib/md/placement.ts';
import {
  bitmapOffsetOf,
  checkSuperblock1,
  decodeSuperblock1,
  encodeSuperblock1,
  features,
  ROLE_FAULTY,
  ROLE_SPARE,
  type Superblock1,
  superSectorOf,
  type Version1,
} from '../../lib/md/superblock1.ts';
import { startRecovery } from '../../lib/md/update.ts';
import { candidateOf, someTime, superblock1In, superblockIn, uuidOf, writeSuperblock } from '../md/images.ts';
import { inKernel, kernelOrSkip, runInKernel } from './kernel.ts';

const work = mkdtempSync(join(tmpdir(), 'raidsim-md-'));
afterAll(() => rmSync(work, { recursive: true, force: true }));

const kernel = kernelOrSkip() ? describe : describe.skip;

interface Spec {
  readonly name: string;
  readonly numbers: Omit<LevelNumbers, 'sizeSectors' | 'hasRaid0Layout'>;
  readonly mdadm: string;
  readonly memberSectors: readonly number[];
  readonly consistency?: ConsistencyPolicy;
  readonly firstSync: FirstSync;
}

const MIB = 2048;

function spec(
  name: string,
  level: number,
  raidDisks: number,
  mdadm: string,
  more: Partial<Spec> & { layout?: number; chunk?: number; spares?: number } = {},
): Spec {
  const { layout = 0, chunk = level === 1 ? 0 : 128, spares = 0, ...rest } = more;
  const common = `--level=${level === -1 ? 'linear' : level} --raid-devices=${raidDisks} ${spares > 0 ? `--spare-devices=${spares}` : ''}`;
  return {
    name,
    numbers: { level, layout, raidDisks, chunkSectors: chunk },
    mdadm: `${common} ${chunk === 0 ? '' : `--chunk=${chunk / 2}`} ${mdadm}`,
    memberSectors: Array.from({ length: raidDisks + spares }, () => 8 * MIB),
    firstSync: 'resync',
    ...rest,
  };
}

const bitmap: ConsistencyPolicy = { policy: 'bitmap', chunkBytes: null };
/** Two boots for each metadata version, at most 16 members each. */
const batches: readonly (readonly Spec[])[] = [
  [
    spec('linear', -1, 2, '', { chunk: 0, memberSectors: [8 * MIB, 9 * MIB + 8], firstSync: 'clean' }),
    spec('raid0', 0, 3, '', {
      layout: 1,
      memberSectors: [8 * MIB, 10 * MIB, 9 * MIB + 104],
      firstSync: 'clean',
    }),
    spec('raid1', 1, 2, '--bitmap=internal', {
      consistency: bitmap,
      memberSectors: [10 * MIB + 24, 9 * MIB + 40],
    }),
    spec('raid4', 4, 3, '', { firstSync: 'recover-last' }),
    spec('raid5', 5, 3, '', {
      layout: 2,
      spares: 1,
      firstSync: 'recover-last',
      memberSectors: [8 * MIB, 9 * MIB, 8 * MIB + 56, 8 * MIB],
    }),
  ],
  [
    spec('raid5 forced', 5, 3, '--force --layout=ra', { layout: 1, chunk: 1024 }),
    spec('raid6', 6, 4, '--bitmap=internal --bitmap-chunk=4K', {
      layout: 2,
      consistency: { policy: 'bitmap', chunkBytes: 4096 },
    }),
    spec('raid10', 10, 3, '--bitmap=internal', { layout: 0x102, consistency: bitmap }),
    spec('raid10 far', 10, 3, '--layout=f2', { layout: 0x201 }),
    spec('raid10 offset', 10, 3, '--layout=o2', { layout: 0x10201 }),
  ],
  [
    spec('raid5 with ppl', 5, 3, '--consistency-policy=ppl --assume-clean', {
      layout: 2,
      consistency: { policy: 'ppl' },
      firstSync: 'clean',
    }),
    spec('raid0 alike', 0, 2, '', { layout: 1, firstSync: 'clean' }),
    spec('raid1 clean', 1, 2, '--assume-clean', { firstSync: 'clean' }),
    spec('raid6 parity last', 6, 4, '--layout=parity-last', { layout: 5 }),
    spec('raid6 ddf', 6, 5, '--layout=ddf-N-continue', { layout: 10, chunk: 64 }),
  ],
];

function imagePath(...parts: readonly (string | number)[]): string {
  return join(work, `${parts.join('-').replaceAll(' ', '_')}.img`);
}

function blankImages(paths: readonly string[], sizes: readonly number[]): void {
  for (const [index, path] of paths.entries())
    writeFileSync(path, new Uint8Array((sizes[index] as number) * 512));
}

function makeOurs(each: Spec, version: Version1, setUuid: string, paths: readonly string[]): void {
  const { array: created, placement } = newArray({
    version,
    numbers: each.numbers,
    consistency: each.consistency ?? { policy: 'resync' },
    memberSectors: each.memberSectors,
    setUuid,
    setName: 'lab:twin',
    ctime: someTime,
    deviceUuids: each.memberSectors.map((_, index) => uuidOf(100 + index)),
    firstSync: each.firstSync,
  });
  // What the kernel does by itself; of two spares it would pick the other one, since mdadm hands them over by number.
  const { raidDisks } = each.numbers;
  const last = each.memberSectors.length;
  const array =
    each.firstSync === 'recover-last' ? startRecovery(created, last, raidDisks - 1, someTime)[1] : created;
  for (const { superblock } of array.members) {
    const index = each.memberSectors.findIndex((_, number) => superblock.deviceUuid === uuidOf(100 + number));
    const image = new Uint8Array((each.memberSectors[index] as number) * 512);
    writeSuperblock(image, superblock);
    if (placement.bitmap !== null) {
      const { offsetSectors, chunkBytes, syncSectors } = placement.bitmap;
      const owner = { setUuid: array.setUuid, events: array.events, syncSectors };
      image.set(newBitmapArea(owner, chunkBytes), (superblock.superSector + offsetSectors) * 512);
    }
    writeFileSync(paths[index] as string, image);
  }
}

const env = { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin`, TZ: 'UTC', LC_ALL: 'C' };

function mdadmExamine(path: string): string {
  return execFileSync('mdadm', ['--examine', path], { env, encoding: 'utf8' })
    .split('\n')
    .slice(1)
    .join('\n');
}

function oursExamine(path: string): string {
  const image = new Uint8Array(readFileSync(path));
  const found = superblockIn(image);
  const offset = found.version === '0.90' ? null : bitmapOffsetOf(found.superblock);
  const at =
    found.version === '0.90' || offset === null ? null : (found.superblock.superSector + offset) * 512;
  const bits = at === null ? null : decodeBitmapSuperblock(image.subarray(at));
  return examineText({ found, memberSectors: image.byteLength / 512, bitmap: bits });
}

/** Whatever does not depend on when and how often the array was written. */
function comparable(superblock: Superblock1): Record<string, unknown> {
  const { bytes: _, ctime, utime, events, deviceUuid, setName, ...fields } = superblock;
  return { ...fields, setName: setName.replace(/^.*:/, '') };
}

kernel.each(['1.0', '1.1', '1.2'] as const)('twins, metadata %s', (version) => {
  test.each(batches.map((batch) => [batch.map(({ name }) => name).join(', '), batch] as const))(
    '%s',
    async (_, batch) => {
      const members = (who: string): readonly (readonly string[])[] =>
        batch.map(({ name, memberSectors }) =>
          memberSectors.map((_, index) => imagePath(who, version, name, index)),
        );
      const [theirs, ours] = [members('mdadm'), members('ours')];
      for (const [number, each] of batch.entries()) {
        blankImages(theirs[number] as readonly string[], each.memberSectors);
        makeOurs(each, version, uuidOf(77 + number), ours[number] as readonly string[]);
        for (const path of ours[number] as readonly string[]) {
          expect(mdadmExamine(path)).toMatch(/Checksum : [0-9a-f]+ - correct/);
          expect(oursExamine(path)).toBe(mdadmExamine(path));
        }
      }
      const run = (start: (each: Spec, number: number, disks: string) => string): string => {
        let next = 0;
        const starts = batch.map((each, number) => {
          const disks = each.memberSectors.map(() => `$D${next++}`).join(' ');
          return start(each, number, disks);
        });
        return `${starts.join('\n')}
settle
for md in /sys/block/md*/md; do [ -e $md/sync_action ] && echo check >$md/sync_action; done
settle
for n in ${batch.map((_, number) => number).join(' ')}; do
  echo "$n $(cat /sys/block/md$n/md/level) $(cat /sys/block/md$n/md/degraded) $(cat /sys/block/md$n/md/mismatch_cnt) $(cat /sys/block/md$n/size)"
done
mdadm --stop --scan`;
      };
      const creation = inKernel({
        images: theirs.flat(),
        script: run((each, number, disks) => {
          const identity = `--metadata=${version} --uuid=${uuidOf(77 + number)} --name=twin`;
          return `mdadm --create /dev/md${number} --run ${identity} ${each.mdadm} ${disks} </dev/null || exit 1`;
        }),
      });
      const assembly = inKernel({
        images: ours.flat(),
        script: run((_, number, disks) => `mdadm --assemble /dev/md${number} --run ${disks} || exit 1`),
      });
      // A guest waits for half of its time.
      const [created, assembled] = await Promise.all([creation, assembly]);
      expect(assembled).toBe(created);
      expect(created).not.toMatch(/raid\d+ [1-9]/);

      for (const [number, each] of batch.entries()) {
        for (const [index, path] of (theirs[number] as readonly string[]).entries()) {
          const [mdadms, ownOne] = [path, ours[number]?.[index] as string].map((file) =>
            superblock1In(new Uint8Array(readFileSync(file))),
          );
          expect({ [`${each.name} ${index}`]: comparable(ownOne as Superblock1) }).toEqual({
            [`${each.name} ${index}`]: comparable(mdadms as Superblock1),
          });
          const bitmaps = [path, ours[number]?.[index] as string].map((file) =>
            bitmapAt(file, mdadms as Superblock1),
          );
          expect(bitmaps[1]).toEqual(bitmaps[0]);
          expect(oursExamine(path)).toBe(mdadmExamine(path));
        }
      }
    },
  );
});

kernel('the harness', () => {
  test('returns what the script says, cuts the power, and does not wait for ever', async () => {
    const image = imagePath('harness');
    writeFileSync(image, new Uint8Array(MIB * 512));
    const said = await runInKernel({ script: 'echo out; echo err >&2; exit 3' });
    expect(said).toMatchObject({ ended: 'returned', exitStatus: 3, stdout: 'out\n', stderr: 'err\n' });
    const beganMs = performance.now();
    const cut = await runInKernel({
      images: [image],
      // The device stays open: the last one to close it would flush it.
      script:
        'exec 3<>$D0; echo durable | dd of=$D0 conv=fsync; echo lost | dd of=$D0 bs=512 seek=8; power-cut',
    });
    const cutMs = performance.now() - beganMs;
    expect(cut.ended).toBe('power-cut');
    const bytes = readFileSync(image);
    expect([bytes.toString('latin1', 0, 7), bytes.toString('latin1', 4096, 4100)]).toEqual([
      'durable',
      '\0\0\0\0',
    ]);
    // Time enough to begin, on a machine that took as long as that for all of the last one.
    const timeoutMs = 10_000 + 2 * cutMs;
    const late = await runInKernel({ script: 'echo begun; sync -f /run/lab; sleep 600', timeoutMs });
    expect(late).toMatchObject({ ended: 'timeout', exitStatus: null, stdout: 'begun\n' });
  });
});

/** Sparse images, one member each: where things go depends on the size in steps that only large members reach. */
kernel.each(['1.0', '1.2'] as const)('large members, metadata %s', (version) => {
  const GIB = 2 ** 21;
  const sizes = [
    5 * MIB,
    GIB - 8,
    GIB,
    8 * GIB,
    8 * GIB + 8,
    90 * GIB,
    128 * GIB,
    201 * GIB,
    3072 * GIB + 24,
  ];

  test('are placed as mdadm places them', async () => {
    const made = sizes.flatMap((sectors, index) => [
      {
        sectors,
        consistency: { policy: 'resync' } as ConsistencyPolicy,
        path: imagePath('large', version, index),
      },
      { sectors, consistency: bitmap, path: imagePath('large', version, index, 'bitmap') },
    ]);
    for (const half of [made.slice(0, 10), made.slice(10)]) {
      for (const { path, sectors } of half) {
        writeFileSync(path, '');
        truncateSync(path, sectors * 512);
      }
      const create = `mdadm --create --run --metadata=${version} --level=1 --raid-devices=1 --force --assume-clean`;
      const script = half.map(({ consistency: { policy } }, index) => {
        const asked = policy === 'bitmap' ? 'internal' : 'none';
        return `${create} --bitmap=${asked} --name=x --uuid=${uuidOf(index + 1)} /dev/md${index} $D${index} </dev/null || exit 1`;
      });
      await inKernel({
        images: half.map(({ path }) => path),
        script: `${script.join('\n')}\nmdadm --stop --scan`,
      });
      for (const [index, { path, sectors, consistency }] of half.entries()) {
        const { array, placement } = newArray({
          version,
          numbers: { level: 1, layout: 0, raidDisks: 1, chunkSectors: 0 },
          consistency,
          memberSectors: [sectors],
          setUuid: uuidOf(index + 1),
          setName: 'lab:x',
          ctime: someTime,
          deviceUuids: [uuidOf(9)],
          firstSync: 'clean',
        });
        const theirs = superblock1At(path, version, sectors);
        expect({ sectors, ...comparable(theirs) }).toEqual({
          sectors,
          ...comparable(array.members[0]?.superblock as Superblock1),
        });
        if (placement.bitmap !== null) {
          const { chunkBytes, syncSectors } = placement.bitmap;
          expect(bitmapAt(path, theirs)).toMatchObject({ chunkBytes, syncSectors });
        }
      }
      for (const { path } of half) rmSync(path);
    }
  });
});

kernel.each(['1.0', '1.2'] as const)('a bitmap that nobody has asked for, metadata %s', (version) => {
  const STEP = 128;
  const shapeOf = (level: 1 | 5, sectors: number) => ({
    version,
    numbers: { level, layout: level === 5 ? 2 : 0, raidDisks: 3, chunkSectors: level === 5 ? STEP : 0 },
    memberSectors: [sectors, sectors, sectors],
  });

  test('is there from the same size of member on as with mdadm', async () => {
    const made = ([1, 5] as const).flatMap((level) => {
      let sectors = 100 * 2 ** 21;
      const held = (): number =>
        placeArray({ ...shapeOf(level, sectors), consistency: { policy: 'resync' } }).sizeSectors;
      while (held() <= 100 * 2 ** 21) sectors += STEP;
      return [sectors - STEP, sectors].map((size) => ({
        shape: shapeOf(level, size),
        paths: [0, 1, 2].map((index) => imagePath('default', version, level, size, index)),
      }));
    });
    for (const { paths, shape } of made) {
      for (const path of paths) {
        writeFileSync(path, '');
        truncateSync(path, (shape.memberSectors[0] ?? 0) * 512);
      }
    }
    const creations = made.map(({ shape: { numbers } }, index) => {
      const disks = [0, 1, 2].map((disk) => `$D${3 * index + disk}`).join(' ');
      const chunk = numbers.level === 5 ? '--chunk=64' : '';
      return `mdadm --create /dev/md${index} --run --metadata=${version} --level=${numbers.level} --raid-devices=3 ${chunk} --assume-clean ${disks} </dev/null || exit 1`;
    });
    await inKernel({
      images: made.flatMap(({ paths }) => paths),
      script: `${creations.join('\n')}\nmdadm --stop --scan`,
    });
    const theirs = made.map(({ shape, paths }) => {
      const { featureMap } = superblock1At(paths[0] as string, version, shape.memberSectors[0] as number);
      return (featureMap & features.BITMAP) === 0 ? 'resync' : 'bitmap';
    });
    expect(theirs).toEqual(['resync', 'bitmap', 'resync', 'bitmap']);
    expect(made.map(({ shape }) => defaultConsistency(shape).policy)).toEqual(theirs);
    for (const path of made.flatMap(({ paths }) => paths)) rmSync(path);
  });
});

function superblock1At(path: string, version: Version1, sectors: number): Superblock1 {
  const superblock = decodeSuperblock1(bytesAt(path, superSectorOf(version, sectors) as number));
  checkSuperblock1(superblock, { version, memberSectors: sectors });
  return superblock;
}

/** What a bitmap is like, whatever its bits and events; null without one. */
function bitmapAt(path: string, superblock: Superblock1): unknown {
  const offset = bitmapOffsetOf(superblock);
  if (offset === null) return null;
  const {
    bytes: _,
    events: __,
    eventsCleared: ___,
    ...like
  } = decodeBitmapSuperblock(bytesAt(path, superblock.superSector + offset));
  return like;
}

function bytesAt(path: string, sector: number): Uint8Array {
  const bytes = new Uint8Array(4096);
  const file = openSync(path, 'r');
  readSync(file, bytes, 0, 4096, sector * 512);
  closeSync(file);
  return bytes;
}

type Change = (superblock: Superblock1) => Partial<Superblock1>;

interface Case {
  readonly name: string;
  readonly level: number;
  readonly count: number;
  readonly raidDisks?: number;
  readonly changes: Readonly<Record<number, Change>>;
  readonly options?: AssembleOptions;
  /** Members that are not offered. */
  readonly absent?: readonly number[];
  /** Where we decide otherwise, on purpose: what the kernel makes of it. */
  readonly kernelSays?: string;
}

function roles(change: Readonly<Record<number, number>>): Change {
  return ({ devRoles }) => ({ devRoles: devRoles.map((role, number) => change[number] ?? role) });
}
const events =
  (count: number): Change =>
  () => ({ events: count });
const dirty: Change = () => ({ resyncOffsetSectors: 0 });
const both =
  (first: Change, second: Change): Change =>
  (superblock) => {
    const changed = { ...superblock, ...first(superblock) };
    return { ...changed, ...second(changed) };
  };
const everyone = (count: number, change: Change): Record<number, Change> =>
  Object.fromEntries(Array.from({ length: count }, (_, index) => [index, change]));
const recovering =
  (sectors: number, bits: number = features.RECOVERY_OFFSET): Change =>
  () => ({
    featureMap: bits,
    recoveryOffsetSectors: sectors,
  });

/** Device 3 is a second member of slot 1. */
function replacing(name: string, bits: number): Case {
  const table = roles({ 3: 1 });
  const changes = { ...everyone(4, table), 3: both(table, recovering(2048, bits)) };
  return { name, level: 5, count: 4, raidDisks: 3, changes };
}

const cases: readonly Case[] = [
  { name: 'in step', level: 5, count: 3, changes: {} },
  { name: 'one behind, still counted on', level: 5, count: 3, changes: { 2: events(19) } },
  {
    name: 'one behind, called faulty',
    level: 5,
    count: 3,
    changes: { 0: roles({ 2: ROLE_FAULTY }), 1: roles({ 2: ROLE_FAULTY }), 2: events(19) },
  },
  {
    name: 'one behind, dropped',
    level: 5,
    count: 3,
    changes: { 0: roles({ 2: ROLE_SPARE }), 1: roles({ 2: ROLE_SPARE }), 2: events(19) },
  },
  { name: 'two behind', level: 5, count: 3, changes: { 2: events(18) } },
  { name: 'two behind, run', level: 5, count: 3, changes: { 2: events(18) }, options: { run: true } },
  { name: 'one absent', level: 5, count: 3, changes: {}, absent: [1] },
  { name: 'one absent, run', level: 5, count: 3, changes: {}, absent: [1], options: { run: true } },
  {
    name: 'one absent, as known',
    level: 5,
    count: 3,
    changes: everyone(3, roles({ 1: ROLE_SPARE })),
    absent: [1],
  },
  { name: 'faulty by its own account', level: 5, count: 3, changes: everyone(3, roles({ 2: ROLE_FAULTY })) },
  { name: 'dirty and complete', level: 5, count: 3, changes: everyone(3, dirty) },
  {
    name: 'dirty and degraded',
    level: 5,
    count: 3,
    changes: everyone(3, both(dirty, roles({ 1: ROLE_SPARE }))),
    absent: [1],
  },
  {
    name: 'dirty and degraded, run',
    level: 5,
    count: 3,
    changes: everyone(3, dirty),
    absent: [1],
    options: { run: true },
  },
  {
    name: 'dirty and degraded, force',
    level: 5,
    count: 3,
    changes: everyone(3, dirty),
    absent: [1],
    options: { force: true },
  },
  {
    name: 'raid6 dirty, one missing',
    level: 6,
    count: 4,
    changes: everyone(4, both(dirty, roles({ 1: ROLE_SPARE }))),
    absent: [1],
  },
  {
    name: 'raid6 clean, two missing',
    level: 6,
    count: 4,
    changes: everyone(4, roles({ 1: ROLE_SPARE, 2: ROLE_SPARE })),
    absent: [1, 2],
  },
  {
    name: 'raid6, three missing',
    level: 6,
    count: 4,
    changes: {},
    absent: [0, 1, 2],
    options: { force: true },
  },
  {
    name: 'raid1 dirty and degraded',
    level: 1,
    count: 2,
    changes: everyone(2, both(dirty, roles({ 0: ROLE_SPARE }))),
    absent: [0],
  },
  {
    name: 'two stale, force',
    level: 5,
    count: 4,
    changes: { 2: events(12), 3: events(15) },
    options: { force: true },
  },
  { name: 'two stale', level: 5, count: 4, changes: { 2: events(12), 3: events(15) } },
  { name: 'being recovered', level: 5, count: 3, changes: { 2: recovering(2048) } },
  {
    name: 'being recovered, one behind',
    level: 5,
    count: 3,
    changes: { 2: both(recovering(2048), events(19)) },
  },
  { name: 'a spare that slept long', level: 5, count: 4, raidDisks: 3, changes: { 3: events(3) } },
  { name: 'a spare with more events', level: 5, count: 4, raidDisks: 3, changes: { 3: events(109) } },
  {
    ...replacing(
      'a complete replacement beside its original: mdadm counts four and wants --run',
      features.REPLACEMENT,
    ),
    kernelSays: 'does not run',
  },
  { ...replacing('the same, run', features.REPLACEMENT), options: { run: true } },
  {
    ...replacing('a replacement without its original', features.REPLACEMENT | features.RECOVERY_OFFSET),
    absent: [1],
  },
  {
    ...replacing('the same, run', features.REPLACEMENT | features.RECOVERY_OFFSET),
    absent: [1],
    options: { run: true },
  },
  {
    name: 'raid10, one of each pair',
    level: 10,
    count: 4,
    changes: everyone(4, roles({ 0: ROLE_SPARE, 3: ROLE_SPARE })),
    absent: [0, 3],
  },
  {
    name: 'raid10, a whole pair gone',
    level: 10,
    count: 4,
    changes: {},
    absent: [0, 1],
    options: { force: true },
  },
  { name: 'raid0, one gone', level: 0, count: 3, changes: {}, absent: [1], options: { force: true } },
  {
    name: 'two halves of a mirror: we ask, mdadm takes the fresher',
    level: 1,
    count: 2,
    changes: {
      0: both(events(25), roles({ 1: ROLE_FAULTY })),
      1: both(events(23), roles({ 0: ROLE_FAULTY })),
    },
    kernelSays: 'runs: 0 in_sync',
  },
  {
    name: 'the same, forced: the fresher',
    level: 1,
    count: 2,
    changes: {
      0: both(events(25), roles({ 1: ROLE_FAULTY })),
      1: both(events(23), roles({ 0: ROLE_FAULTY })),
    },
    options: { force: true },
  },
  {
    name: 'a spare whose slot the others noted first: we recover it, the kernel takes it for in sync',
    level: 5,
    count: 3,
    changes: { 2: both(events(19), roles({ 2: ROLE_SPARE })) },
    options: { run: true },
    kernelSays: 'runs: 0 in_sync, 1 in_sync, 2 in_sync',
  },
  {
    name: 'the same, but it said before that it is not whole: how we promote a spare',
    level: 5,
    count: 3,
    changes: { 2: both(recovering(0), both(events(19), roles({ 2: ROLE_SPARE }))) },
    options: { run: true },
    kernelSays: 'runs: 0 in_sync, 1 in_sync, 2 recovering',
  },
  {
    name: 'equal events, accused: we leave it out',
    level: 5,
    count: 3,
    changes: { 0: roles({ 2: ROLE_FAULTY }), 1: roles({ 2: ROLE_FAULTY }) },
    kernelSays: 'runs: 0 in_sync, 1 in_sync, 2 in_sync',
  },
  {
    name: 'a spare told of its slot first: we keep the array, mdadm believes the spare',
    level: 5,
    count: 3,
    changes: { 0: roles({ 2: ROLE_SPARE }), 1: roles({ 2: ROLE_SPARE }), 2: both(recovering(0), events(21)) },
    kernelSays: 'does not run',
  },
];

const CASE_MEMBER = 6 * MIB;

function caseImages(each: Case, number: number): readonly string[] {
  const count = each.count;
  const { array } = newArray({
    version: '1.2',
    numbers: {
      level: each.level,
      layout: { 0: 1, 5: 2, 6: 2, 10: 0x102 }[each.level] ?? 0,
      raidDisks: each.raidDisks ?? count,
      chunkSectors: each.level === 1 ? 0 : 128,
    },
    consistency: { policy: 'resync' },
    memberSectors: Array.from({ length: count }, () => CASE_MEMBER),
    setUuid: uuidOf(500 + number),
    setName: 'lab:case',
    ctime: someTime,
    deviceUuids: Array.from({ length: count }, (_, index) => uuidOf(600 + index)),
    firstSync: 'clean',
  });
  const paths: string[] = [];
  for (const [index, { superblock }] of array.members.entries()) {
    if (each.absent?.includes(index) === true) continue;
    const at20 = { ...superblock, events: 20 };
    const image = new Uint8Array(CASE_MEMBER * 512);
    image.set(encodeSuperblock1({ ...at20, ...each.changes[index]?.(at20) }), superblock.superSector * 512);
    const path = imagePath('case', number, index);
    writeFileSync(path, image);
    paths.push(path);
  }
  return paths;
}

/** `runs: 0 in_sync, 2 spare`: slots and what is in them; a member that is being recovered counts as spare in sysfs. */
function ourVerdict(paths: readonly string[], options: AssembleOptions): string {
  const assembly = assemble(
    paths.map((path) => candidateOf(path, new Uint8Array(readFileSync(path)))),
    options,
  );
  if (assembly.kind === 'refuse') return 'does not run';
  const { slots, replacements } = assembly.array;
  const filled = slots.flatMap((member, slot) => {
    if (member === null) return [];
    return [`${slot} ${member.recoveredSectors === Infinity ? 'in_sync' : 'recovering'}`];
  });
  const copies = replacements.map(
    ({ slot, recoveredSectors }) => `${slot}r ${recoveredSectors === Infinity ? 'in_sync' : 'recovering'}`,
  );
  return `runs: ${[...filled, ...copies].sort().join(', ')}`;
}

kernel('verdicts', () => {
  const groups: { each: Case; number: number }[][] = [[]];
  let used = 0;
  for (const [number, each] of cases.entries()) {
    const needs = each.count - (each.absent?.length ?? 0);
    if (used + needs > 16) {
      groups.push([]);
      used = 0;
    }
    used += needs;
    groups.at(-1)?.push({ each, number });
  }

  test.each(groups.map((group) => [group.map(({ each }) => each.name).join('; '), group] as const))(
    '%s',
    async (_, group) => {
      const images: string[] = [];
      // Recovery is held back, so that what is seen is what assembly decided and not what came of it.
      let script =
        'echo 0 >/proc/sys/dev/raid/speed_limit_min; echo 0 >/proc/sys/dev/raid/speed_limit_max; echo 1 >/sys/module/md_mod/parameters/start_ro\n';
      const expected: Record<string, string> = {};
      for (const { each, number } of group) {
        const paths = caseImages(each, number);
        expected[`${number} ${each.name}`] = ourVerdict(paths, each.options ?? {});
        const disks = paths.map((_, index) => `$D${images.length + index}`).join(' ');
        images.push(...paths);
        const flags = `${each.options?.force === true ? '--force' : ''} ${each.options?.run === true ? '--run' : ''}`;
        script += `mdadm --assemble /dev/md${number} ${flags} ${disks} >&2 2>&1
echo "case ${number} $(cat /sys/block/md${number}/md/array_state)"
for slot in /sys/block/md${number}/md/dev-*; do [ -e $slot/slot ] && echo "$(cat $slot/slot) $(cat $slot/state) $(cat $slot/recovery_start)"; done\n`;
      }
      const said = (await inKernel({ images, script: `${script}\nexit 0` })).split(/^case /m).slice(1);
      const kernelSaid: Record<string, string> = {};
      for (const [index, { each, number }] of group.entries()) {
        const [head, ...lines] = (said[index] as string).trim().split('\n');
        expect(head).toMatch(new RegExp(`^${number}\\b`));
        const isRunning = / (clean|active|read-auto|readonly|write-pending|active-idle)$/.test(
          head as string,
        );
        const filled = lines
          .map((line) => /^(\d+) (\S+) (\S+)$/.exec(line))
          .filter((match) => match !== null)
          .map(([, slot, state, start]) => {
            const copy = (state as string).split(',').includes('replacement') ? 'r' : '';
            return `${slot}${copy} ${start === 'none' ? 'in_sync' : 'recovering'}`;
          });
        kernelSaid[`${number} ${each.name}`] = isRunning
          ? `runs: ${filled.sort().join(', ')}`
          : 'does not run';
      }
      const wanted = Object.fromEntries(
        group.map(({ each, number }) => {
          const name = `${number} ${each.name}`;
          return [name, each.kernelSays ?? expected[name]];
        }),
      );
      expect(kernelSaid).toEqual(wanted);
      for (const { each, number } of group) {
        const ours = expected[`${number} ${each.name}`];
        if (each.kernelSays !== undefined) expect(ours, each.name).not.toBe(each.kernelSays);
      }
    },
  );
});
