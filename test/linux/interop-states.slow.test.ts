/**
 * Handing an array over in the middle of its life: degraded, half recovered, dirty, with spares, with bad blocks, with
 * a member that has missed something. Either side must take up what the other left, and believe no member that it
 * should not.
 *
 * Each test is a *story*: steps on our side and in the guest, in turns. Stories advance together, so that one boot
 * serves as many of them as have disks for it; a story whose step cuts the power shares its boot only with others that
 * do. What a step expects it checks itself, and the story's test tells.
 */
import { closeSync, copyFileSync, openSync, readSync, writeSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { formArray } from '../../lib/array/form.ts';
import { findSuperblock } from '../../lib/array/superblocks.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { RaidError } from '../../lib/errors.ts';
import { encodeSuperblock1, type Superblock1 } from '../../lib/md/superblock1.ts';
import { KIB, MIB } from '../../lib/units.ts';
import {
  type Answers,
  contentOf,
  examine,
  fillWith,
  form,
  inTurns,
  Lab,
  Model,
  type OurShape,
  type Patch,
  pack,
  patchWith,
  patchWords,
  randomPatches,
  reassemble,
  scrubOf,
  settled,
  sourcesOf,
  sumOf,
} from './interop.ts';
import { kernelOrSkip } from './kernel.ts';

/** No array here is smaller. */
const SMALLEST_BYTES = 6 * MIB;

/** What a story knows about itself. */
class Scene {
  readonly id: string;
  readonly lab: Lab;
  readonly images: readonly string[];
  readonly seed: number;
  /** Of the last boot. */
  answers: Answers | null = null;
  #model: Model | null = null;
  readonly #early: Patch[] = [];
  #patches = 0;
  log = '';

  constructor(id: string, lab: Lab, images: readonly string[], seed: number) {
    this.id = id;
    this.lab = lab;
    this.images = images;
    this.seed = seed;
  }

  get skip(): number {
    return (this.seed * 101 * 4096) % (16 * MIB);
  }

  /** What the array should hold; once it is known how large it is. */
  modelOf(sizeBytes: number): Model {
    if (this.#model === null) {
      this.#model = new Model(this.lab.pool, this.skip, sizeBytes);
      this.#model.apply(this.#early);
    }
    return this.#model;
  }

  /** Also before the model is there: then when it is. */
  apply(patches: readonly Patch[]): void {
    if (this.#model === null) this.#early.push(...patches);
    else this.#model.apply(patches);
  }

  get model(): Model {
    if (this.#model === null) throw new Error('the model is made when the size is known');
    return this.#model;
  }

  /** The array has become larger, and holds this. */
  grow(content: Buffer): void {
    this.#model = Model.of(this.lab.pool, content);
  }

  /** New places to write, each time it is asked. */
  patches(count = 5): readonly Patch[] {
    this.#patches += 1;
    const sizeBytes = this.#model === null ? SMALLEST_BYTES : this.#model.bytes.byteLength;
    return randomPatches(this.seed * 100 + this.#patches, sizeBytes, count);
  }

  image(index: number): string {
    const path = this.images[index];
    if (path === undefined) throw new Error(`no image ${index}`);
    return path;
  }

  said(key: string): string {
    if (this.answers === null) throw new Error('nothing was asked yet');
    return this.answers.get(this.id, key);
  }

  /** Expects what an `assemble`, `sum` and a check in the guest came to. */
  linuxAgrees(expected: { degraded?: number; mismatches?: number } = {}): void {
    expect(
      {
        sum: this.said('sum'),
        degraded: Number(this.said('degraded')),
        mismatches: Number(this.said('mismatches')),
      },
      this.log,
    ).toEqual({ sum: this.model.sum, degraded: 0, mismatches: 0, ...expected });
  }
}

interface HostStep {
  readonly host: (scene: Scene) => Promise<void>;
}
interface GuestStep {
  readonly guest: (scene: Scene) => string;
  /** The power goes when all stories of the boot have had their turn. */
  readonly cut?: true;
}
type Step = HostStep | GuestStep;

interface Story {
  readonly title: string;
  readonly sizesMib: readonly number[];
  readonly steps: readonly Step[];
}

const host = (work: (scene: Scene) => Promise<void>): HostStep => ({ host: work });
const guest = (script: string | ((scene: Scene) => string)): GuestStep => ({
  guest: typeof script === 'string' ? () => script : script,
});
const alike = (count: number, mib = 8): readonly number[] => Array.from({ length: count }, () => mib);

async function withArray(
  opening: Promise<RaidArray>,
  work: (array: RaidArray) => Promise<void>,
): Promise<void> {
  const array = await opening;
  try {
    await work(array);
  } catch (error) {
    // The first error is the one to hear of.
    await array.close().catch(() => undefined);
    throw error;
  }
  await array.close();
}

/** Reads and scrubs, and expects what the model says; nothing else is changed. */
async function weAgree(array: RaidArray, scene: Scene): Promise<void> {
  expect(await sumOf(array), scene.log).toBe(scene.model.sum);
  expect(await scrubOf(array), scene.log).toBe(0);
}

// Levels that have redundancy: how both sides make them, and which members can be missing together.

interface Level {
  readonly name: string;
  readonly count: number;
  readonly shape: OurShape;
  /** Words of mdadm. */
  readonly create: string;
  readonly gone: readonly number[];
}

function level(
  name: string,
  count: number,
  number: string,
  layout: string | null,
  chunk: string | null,
  gone: readonly number[],
): Level {
  return {
    name,
    count,
    gone,
    shape: {
      level: number,
      ...(layout === null ? {} : { layout }),
      ...(chunk === null ? {} : { chunk }),
      assumeClean: true,
    },
    create: `--level=${number} ${layout === null ? '' : `--layout=${layout}`} ${chunk === null ? '' : `--chunk=${chunk}`}`,
  };
}

const raid1 = level('raid1', 3, '1', null, null, [0]);
const raid5 = level('raid5', 4, '5', 'left-symmetric', '64K', [1]);
const raid6 = level('raid6', 5, '6', 'left-symmetric', '16K', [1, 3]);
const raid10near = level('raid10 near=2', 4, '10', 'n2', '64K', [0, 2]);
const raid10far = level('raid10 far=2', 3, '10', 'f2', '64K', [1]);
const raid10offset = level('raid10 offset=2', 5, '10', 'o2', '32K', [2]);
const raid10odd = level('raid10 near=2 on 3', 3, '10', 'n2', '16K', [0]);

const members = (list: readonly number[]): string => list.map((index) => `$M${index}`).join(' ');

const CHECK = 'start_check; settle $N; end_check';
const LOOK = `assemble $M; settle $N; say degraded $(cat $SYS/degraded); sum; ${CHECK}; stop`;

function createWords(each: Level, more = ''): string {
  return `create ${each.create} --raid-devices=${each.count} ${more} $M; settle $N; say size $(size)`;
}

/** Linux makes and fills it, and then does this to it. Only afterwards is it known how large the array is. */
function linuxMakes(
  each: Level,
  then: string | ((scene: Scene) => string),
  options: { readonly more?: string; readonly cut?: true } = {},
): Step[] {
  const end = options.cut === true ? '' : '; sleep 0.3; stop';
  const made: GuestStep = {
    guest: (scene) =>
      `${createWords(each, options.more)}; fill ${scene.skip}; ${typeof then === 'string' ? then : then(scene)}${end}`,
    ...(options.cut === true ? { cut: true } : {}),
  };
  return [
    made,
    host(async (scene) => {
      expect(scene.said('created'), scene.log).toBe('yes');
      scene.modelOf(Number(scene.said('size')));
    }),
  ];
}

/** A patch in the guest, on the model too. */
function guestPatch(scene: Scene, patches = scene.patches()): string {
  scene.apply(patches);
  return `patch ${patchWords(patches)}`;
}

async function weMake(scene: Scene, shape: OurShape): Promise<RaidArray> {
  const array = await form(scene.images, shape);
  await fillWith(array, scene.modelOf(array.limits.sizeBytes).bytes);
  return array;
}

const stories: Story[] = [];
const story = (title: string, sizesMib: readonly number[], ...steps: Step[]): void => {
  stories.push({ title, sizesMib, steps });
};

// Degraded.

for (const each of [raid1, raid5, raid6, raid10near, raid10far, raid10offset]) {
  story(
    `${each.name}: degraded by raidsim, Linux ignores the stale members that it is offered, and recovers them`,
    alike(each.count),
    host((scene) =>
      withArray(weMake(scene, each.shape), async (array) => {
        for (const slot of each.gone) await array.fail(slot);
        await patchWith(array, scene.model, scene.patches());
      }),
    ),
    guest(
      (scene) =>
        `assemble $M; say degraded $(cat $SYS/degraded); sum; ${guestPatch(scene)}; mdadm --zero-superblock ${members(each.gone)}; mdadm $MD --add ${members(each.gone)} 2>&1; settle $N; say now $(cat $SYS/degraded); sum after; ${CHECK}; sleep 0.3; stop`,
    ),
    host(async (scene) => {
      expect(scene.said('degraded'), scene.log).toBe(String(each.gone.length));
      expect(scene.said('now'), scene.log).toBe('0');
      expect(scene.said('after')).toBe(scene.model.sum);
      expect(scene.said('mismatches')).toBe('0');
      await withArray(reassemble(scene.images), async (array) => {
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
  );

  story(
    `${each.name}: degraded by Linux, raidsim ignores the stale members that it is offered, and recovers them`,
    alike(each.count),
    ...linuxMakes(
      each,
      (scene) => `mdadm $MD --fail ${members(each.gone)} >/dev/null 2>&1; ${guestPatch(scene)}`,
    ),
    host(async (scene) => {
      await withArray(reassemble(scene.images), async (array) => {
        expect(array.degraded).toBe(each.gone.length);
        expect(await sumOf(array), scene.log).toBe(scene.model.sum);
        await patchWith(array, scene.model, scene.patches());
        for (const index of each.gone) await array.add(await FileDevice.open(scene.image(index)));
        await patchWith(array, scene.model, scene.patches());
        await settled(array);
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
    guest(LOOK),
    host(async (scene) => scene.linuxAgrees()),
  );
}

// Stale.

/** Sets the events of a member's superblock, and makes its checksum right. */
async function setEvents(path: string, eventsOf: (own: Superblock1) => number): Promise<void> {
  const device = await FileDevice.open(path);
  const found = await findSuperblock(device);
  if (found.version === '0.90') throw new Error('only version 1');
  const { superblock } = found;
  const bytes = encodeSuperblock1({ ...superblock, events: eventsOf(superblock) });
  await device.write(superblock.superSector * 512, bytes);
  await device.close();
}

async function eventsOn(path: string): Promise<number> {
  const device = await FileDevice.open(path);
  const found = await findSuperblock(device);
  await device.close();
  return found.version === '0.90' ? 0 : found.superblock.events;
}

for (const each of [raid1, raid5, raid10near]) {
  const stale = each.gone[0] ?? 0;
  const fresh = each.count - 1;
  story(
    `${each.name}: failed by raidsim and only one event behind, Linux does not believe the member`,
    alike(each.count),
    host(async (scene) => {
      await withArray(weMake(scene, each.shape), async (array) => {
        await array.fail(stale);
        await patchWith(array, scene.model, scene.patches());
      });
      const events = await eventsOn(scene.image(fresh));
      await setEvents(scene.image(stale), () => events - 1);
    }),
    guest('assemble $M; say degraded $(cat $SYS/degraded); sum; stop'),
    host(async (scene) => {
      expect(scene.said('sum'), scene.log).toBe(scene.model.sum);
      expect(scene.said('degraded')).toBe('1');
    }),
  );
  story(
    `${each.name}: failed by Linux and only one event behind, raidsim does not believe the member`,
    alike(each.count),
    ...linuxMakes(each, (scene) => `mdadm $MD --fail $M${stale} >/dev/null 2>&1; ${guestPatch(scene)}`),
    host(async (scene) => {
      const events = await eventsOn(scene.image(fresh));
      await setEvents(scene.image(stale), () => events - 1);
      await withArray(reassemble(scene.images), async (array) => {
        expect(array.degraded).toBe(1);
        expect(await sumOf(array), scene.log).toBe(scene.model.sum);
      });
    }),
  );
  story(
    `${each.name}: a member that only missed the last update is in sync for raidsim and for Linux`,
    alike(each.count),
    host(async (scene) => {
      await withArray(weMake(scene, each.shape), () => Promise.resolve());
      await setEvents(scene.image(stale), ({ events }) => events - 1);
    }),
    guest(LOOK),
    host(async (scene) => {
      scene.linuxAgrees();
      await withArray(reassemble(scene.images), async (array) => {
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
  );
}

story(
  'raid1: two halves that Linux started one without the other, raidsim mixes neither and refuses both',
  alike(2),
  ...linuxMakes({ ...raid1, count: 2 }, 'true'),
  guest((scene) => {
    const [a, b] = [scene.patches(), scene.patches()];
    return `mdadm --assemble --run $MD $M0 >/dev/null 2>&1; patch ${patchWords(a)}; sleep 0.3; stop; mdadm --assemble --run $MD $M1 >/dev/null 2>&1; patch ${patchWords(b)}; sleep 0.3; stop`;
  }),
  host(async (scene) => {
    const refused = await reassemble(scene.images).then(
      () => null,
      (error: unknown) => error,
    );
    expect(refused).toBeInstanceOf(RaidError);
    expect((refused as RaidError).code).toBe('FORKED_HISTORY');
  }),
);

// Half way.

/** Stops the guest's sync after so many sectors. */
const PAUSE_AT = 4096;

/** An array that was said to be in sync, is not, and begins to be: with nothing known to be right. */
const resyncUpToPause = `echo frozen >$SYS/sync_action; echo 0 >$SYS/resync_start; echo ${PAUSE_AT} >$SYS/sync_max; echo idle >$SYS/sync_action`;
const waitForPause = `for i in $(seq 100); do read -r done rest <$SYS/sync_completed; [ "$done" = ${PAUSE_AT} ] && break; sleep 0.05; done; sleep 0.3; say paused $(cat $SYS/sync_completed)`;

for (const each of [raid1, raid5, raid6, raid10near, raid10far]) {
  const slot = each.gone[0] ?? 0;
  story(
    `${each.name}: a recovery that Linux was stopped in goes on in raidsim where it was`,
    alike(each.count),
    ...linuxMakes(
      each,
      (scene) =>
        `mdadm $MD --fail $M${slot} >/dev/null 2>&1; sleep 0.3; mdadm $MD --remove $M${slot} >/dev/null 2>&1; ${guestPatch(scene)}; mdadm --zero-superblock $M${slot}; echo ${PAUSE_AT} >$SYS/sync_max; mdadm $MD --add $M${slot} >/dev/null 2>&1; ${waitForPause}`,
    ),
    host(async (scene) => {
      expect(scene.said('paused'), scene.log).toMatch(new RegExp(`^${PAUSE_AT} /`));
      await withArray(reassemble(scene.images, { autoSync: false }), async (array) => {
        const recovering = array.members.find(({ state }) => state.state === 'recovering')?.state;
        expect(recovering).toMatchObject({ slot, recoveredBytes: PAUSE_AT * 512 });
        await patchWith(array, scene.model, scene.patches());
        await settled(array);
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
    guest(LOOK),
    host(async (scene) => scene.linuxAgrees()),
  );

  story(
    `${each.name}: a recovery that raidsim was closed in goes on in Linux where it was`,
    alike(each.count, 20),
    host(async (scene) => {
      await withArray(weMake(scene, { ...each.shape, assumeClean: true }), async (array) => {
        await array.fail(slot);
        await patchWith(array, scene.model, scene.patches());
        await array.remove(array.members.find(({ state }) => state.state === 'faulty')?.name ?? '');
        await array.add(await FileDevice.open(scene.image(slot)));
        await syncUntil(array, 8 * MIB);
        await patchWith(array, scene.model, scene.patches());
      });
      expect(await recoveredOn(scene.image(slot))).toBeGreaterThanOrEqual(8 * MIB);
      expect(await recoveredOn(scene.image(slot))).toBeLessThan(18 * MIB);
    }),
    guest(
      `assemble --readonly $M; say start $(cat $SYS/dev-$(basename $M${slot})/recovery_start); mdadm --readwrite $MD; settle $N; say degraded $(cat $SYS/degraded); sum; ${CHECK}; stop`,
    ),
    host(async (scene) => {
      scene.linuxAgrees();
      expect(Number(scene.said('start')) * 512).toBeGreaterThanOrEqual(8 * MIB);
      await withArray(reassemble(scene.images), (array) => weAgree(array, scene));
    }),
  );
}

/** From there the sync all but stands still: it must not be over before the array is closed, however busy the host is. */
async function syncUntil(array: RaidArray, bytes: number): Promise<void> {
  for await (const { doneBytes } of array.rebuild({ limitBytesPerSecond: 16 * MIB }))
    if (doneBytes >= bytes) break;
  void array
    .rebuild({ limitBytesPerSecond: 1 })
    .next()
    .catch(() => undefined);
}

async function recoveredOn(path: string): Promise<number> {
  const device = await FileDevice.open(path);
  const found = await findSuperblock(device);
  await device.close();
  return found.version === '0.90' ? 0 : found.superblock.recoveryOffsetSectors * 512;
}

/** Members that hold different things: a resync has something to do. */
function junk(scene: Scene): void {
  for (const [index, path] of scene.images.entries()) {
    const fd = openSync(path, 'r+');
    const from = (index + 3) * 4 * MIB;
    writeSync(fd, scene.lab.pool, from, 6 * MIB, 2 * MIB);
    closeSync(fd);
  }
}

for (const each of [raid1, raid6, raid10near, raid10far]) {
  story(
    `${each.name}: a resync that Linux was stopped in is finished by raidsim`,
    alike(each.count),
    host(async (scene) => junk(scene)),
    guest(
      `create ${each.create} --assume-clean --raid-devices=${each.count} $M; say size $(size); ${resyncUpToPause}; ${waitForPause}; sum; stop`,
    ),
    host(async (scene) => {
      expect(scene.said('paused'), scene.log).toMatch(new RegExp(`^${PAUSE_AT} /`));
      await withArray(reassemble(scene.images, { autoSync: false }), async (array) => {
        expect(array.state).toBe('resyncing');
        expect(array.metadata?.array.resyncOffsetSectors).toBe(PAUSE_AT);
        const model = scene.modelOf(array.limits.sizeBytes);
        model.bytes.set(await contentOf(array));
        expect(model.sum).toBe(scene.said('sum'));
        await patchWith(array, model, scene.patches());
        await settled(array);
        await weAgree(array, scene);
      });
    }),
    guest(LOOK),
    host(async (scene) => scene.linuxAgrees()),
  );

  story(
    `${each.name}: a resync that raidsim was closed in is finished by Linux`,
    alike(each.count, 20),
    host(async (scene) => {
      junk(scene);
      await withArray(form(scene.images, { ...each.shape, assumeClean: false }), async (array) => {
        await syncUntil(array, 8 * MIB);
        scene.modelOf(array.limits.sizeBytes).bytes.set(await contentOf(array));
        await patchWith(array, scene.model, scene.patches());
      });
    }),
    guest(
      `assemble --readonly $M; say start $(cat $SYS/resync_start); mdadm --readwrite $MD; settle $N; say degraded $(cat $SYS/degraded); sum; ${CHECK}; stop`,
    ),
    host(async (scene) => {
      scene.linuxAgrees();
      expect(Number(scene.said('start')) * 512).toBeGreaterThanOrEqual(8 * MIB);
    }),
  );
}

// Dirty.

/**
 * The guest writes the first MiB again and again, with two contents, until the power goes; it goes on from here when the
 * array has become active, and on a busy host a pause between two writes does not make it clean again.
 */
const CHURN_BYTES = MIB;
const churnPools = [40 * MIB, 48 * MIB] as const;
const churn = `perl -MIO::Handle -e 'open P, "<", "/run/pool/bytes" or die; open M, "+<", shift or die; for (@ARGV) { sysseek P, $_, 0; sysread P, $b, ${CHURN_BYTES}; push @all, $b } for (;;) { for $b (@all) { sysseek M, 0, 0; syswrite M, $b; M->sync } }' $MD ${churnPools.join(' ')} >/dev/null 2>&1 & state=/sys/block/$(basename $MD)/md; echo 60 > $state/safe_mode_delay; until grep -q '^active$' $state/array_state; do sleep 0.02; done;`;

/** Each sector is one of those it can be, and everything beyond is what it was. */
function expectChurned(scene: Scene, content: Buffer): void {
  const { model, lab } = scene;
  for (let at = 0; at < CHURN_BYTES; at += 512) {
    const sector = content.subarray(at, at + 512);
    const choices = [
      model.bytes.subarray(at, at + 512),
      ...churnPools.map((from) => lab.pool.subarray(from + at, from + at + 512)),
    ];
    if (!choices.some((choice) => choice.equals(sector)))
      throw new Error(`the sector at ${at} is none that was ever written`);
  }
  expect(content.subarray(CHURN_BYTES).equals(model.bytes.subarray(CHURN_BYTES))).toBe(true);
}

/** Spoils 4 KiB of a member's data, far behind what is being written. */
async function spoil(path: string, dataOffsetBytes: number): Promise<void> {
  const device = await FileDevice.open(path);
  const found = await findSuperblock(device);
  if (found.version === '0.90') throw new Error('only version 1');
  const at = found.superblock.dataOffsetSectors * 512 + dataOffsetBytes;
  const bytes = new Uint8Array(4 * KIB);
  await device.read(at, bytes);
  await device.write(
    at,
    bytes.map((byte) => byte ^ 0xff),
  );
  await device.close();
}

const FAR_BYTES = 5 * MIB;

for (const each of [raid1, raid5, raid6, raid10near]) {
  for (const bitmap of [null, '64K']) {
    const more = bitmap === null ? '' : `--bitmap=internal --bitmap-chunk=${bitmap}`;
    story(
      `${each.name}, ${bitmap === null ? 'no bitmap' : 'bitmap'}: after a power cut in Linux, raidsim resyncs ${bitmap === null ? 'everything' : 'what the bitmap names and nothing else'}`,
      alike(each.count),
      // Stopped once, so that the bitmap has no bits left from filling it.
      ...linuxMakes(each, `stop; assemble $M; ${churn} sleep 0.6`, { more, cut: true }),
      host(async (scene) => {
        const victim = each.count - 1;
        await spoil(scene.image(victim), FAR_BYTES);
        const array = await reassemble(scene.images, { autoSync: false });
        try {
          expect(array.state).toBe('resyncing');
          if (bitmap !== null) {
            const bits = array.metadata?.bitmap?.bits;
            expect(bits?.count()).toBeGreaterThan(0);
            expect(bits?.count()).toBeLessThan(40);
          }
          await settled(array);
          const found = await scrubOf(array);
          if (bitmap === null) expect(found).toBe(0);
          else expect(found).toBeGreaterThan(0);
          // Which of the copies a mismatch is resolved to is not the point here: the spoiled one may win.
          if (bitmap !== null) {
            await spoil(scene.image(victim), FAR_BYTES);
            expect(await scrubOf(array)).toBe(0);
            const content = await contentOf(array);
            expectChurned(scene, content);
            scene.model.bytes.set(content);
          } else scene.model.bytes.set(await contentOf(array));
        } finally {
          await array.close();
        }
      }),
      guest(LOOK),
      host(async (scene) => scene.linuxAgrees()),
    );

    story(
      `${each.name}, ${bitmap === null ? 'no bitmap' : 'bitmap'}: after raidsim died, Linux resyncs ${bitmap === null ? 'everything' : 'what the bitmap names and nothing else'}`,
      alike(each.count),
      host(async (scene) => {
        const shape: OurShape = {
          ...each.shape,
          ...(bitmap === null ? {} : { bitmap: 'internal', bitmapChunk: bitmap }),
        };
        await withArray(weMake(scene, shape), () => Promise.resolve());
        const array = await reassemble(scene.images);
        // Until the first write after 200 ms of peace the members say "active": as they are now they would be found
        // after a kill.
        await patchWith(array, scene.model, [
          { offsetBytes: 0, lengthBytes: 256 * KIB, poolBytes: 40 * MIB },
        ]);
        for (const path of scene.images) copyFileSync(path, `${path}.dead`);
        await array.close();
        for (const path of scene.images) copyFileSync(`${path}.dead`, path);
        // A write that reached only some members, and damage where nobody was writing.
        await spoil(scene.image(each.count - 1), 8 * KIB);
        await spoil(scene.image(each.count - 1), FAR_BYTES);
      }),
      // Asked for a check before it has begun to resync, the kernel checks first, and the resync then forgets what the check has found.
      guest(
        `assemble $M; echo idle >$SYS/sync_action; settle $N; say degraded $(cat $SYS/degraded); ${CHECK}; stop`,
      ),
      host(async (scene) => {
        expect(scene.said('degraded')).toBe('0');
        if (bitmap === null) expect(scene.said('mismatches'), scene.log).toBe('0');
        // 4 KiB that differ, in one stripe or two copies; the kernel counts in units of its own.
        else {
          expect(Number(scene.said('mismatches')), scene.log).toBeGreaterThan(0);
          expect(Number(scene.said('mismatches')), scene.log).toBeLessThanOrEqual(128);
        }
      }),
    );
  }
}

// Spares.

for (const each of [raid1, raid5, raid10near]) {
  const slot = each.gone[0] ?? 0;
  story(
    `${each.name}: a spare that raidsim added takes over in Linux`,
    alike(each.count + 1),
    host((scene) =>
      withArray(weMake(scene, { ...each.shape, spares: 1 }), async (array) => {
        expect(array.members.some(({ state }) => state.state === 'spare')).toBe(true);
      }),
    ),
    guest(
      (scene) =>
        `assemble $M; mdadm $MD --fail $M${slot} >/dev/null 2>&1; ${guestPatch(scene)}; settle $N; say degraded $(cat $SYS/degraded); sum; ${CHECK}; sleep 0.3; stop`,
    ),
    host(async (scene) => {
      scene.linuxAgrees();
      await withArray(reassemble(scene.images), async (array) => {
        expect(array.degraded).toBe(0);
        expect(array.members.find(({ name }) => name === `m${each.count}`)?.state).toMatchObject({
          state: 'in_sync',
          slot,
        });
        await weAgree(array, scene);
      });
    }),
  );
  story(
    `${each.name}: a spare that mdadm added takes over in raidsim`,
    alike(each.count + 1),
    guest(
      (scene) =>
        `create ${each.create} --raid-devices=${each.count} --spare-devices=1 $M; settle $N; say size $(size); fill ${scene.skip}; sleep 0.3; stop`,
    ),
    host(async (scene) => {
      scene.modelOf(Number(scene.said('size')));
      await withArray(reassemble(scene.images), async (array) => {
        await array.fail(slot);
        await patchWith(array, scene.model, scene.patches());
        await settled(array);
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
    guest(LOOK),
    host(async (scene) => scene.linuxAgrees()),
  );
}

// Bad blocks.

for (const each of [raid1, raid5, raid10near]) {
  const bad = each.count - 1;
  story(
    `${each.name}: bad blocks that Linux recorded are not read by raidsim, and forgotten when written`,
    alike(each.count),
    ...linuxMakes(each, (scene) => {
      // The log is written with the next update, and the next update comes with the next write.
      const elsewhere = { offsetBytes: 6 * MIB, lengthBytes: 512, poolBytes: 50 * MIB };
      return `off=$(cat $SYS/dev-$(basename $M${bad})/offset); echo $((off + 16)) 8 >$SYS/dev-$(basename $M${bad})/bad_blocks; echo $((off + 2048)) 24 >$SYS/dev-$(basename $M${bad})/bad_blocks; ${guestPatch(scene, [elsewhere])}; sleep 0.5`;
    }),
    host(async (scene) => {
      // What is there now is wrong, and must not be read.
      await spoil(scene.image(bad), 16 * 512);
      await spoil(scene.image(bad), 2048 * 512);
      await withArray(reassemble(scene.images), async (array) => {
        expect(array.health.erased.length).toBe(2);
        expect(await sumOf(array), scene.log).toBe(scene.model.sum);
        // Enough of the array that both places are written over.
        const patch = { offsetBytes: 0, lengthBytes: 6 * MIB, poolBytes: 50 * MIB };
        await patchWith(array, scene.model, [patch]);
        expect(array.health.erased).toEqual([]);
        await weAgree(array, scene);
      });
    }),
    guest(
      `assemble $M; settle $N; say bad $(cat $SYS/dev-$(basename $M${bad})/bad_blocks | wc -l); say degraded $(cat $SYS/degraded); sum; ${CHECK}; stop`,
    ),
    host(async (scene) => {
      scene.linuxAgrees();
      expect(scene.said('bad')).toBe('0');
    }),
  );
}

story(
  'raid5: what raidsim could not recover is on the bad-block log for Linux, and the rest is right',
  alike(4),
  host(async (scene) => {
    const sources = await sourcesOf(scene.images.slice(0, 3));
    const spare = await FileDevice.open(scene.image(3));
    const faulty = sources.map(({ device, ...source }) => ({ ...source, device: new FaultDevice(device) }));
    const array = await formArray(faulty, { ...raid5.shape, name: 'ours', cores: 2 });
    await fillWith(array, scene.modelOf(array.limits.sizeBytes).bytes);
    await array.fail(0);
    const offset = array.metadata?.array.members[1]?.superblock.dataOffsetSectors ?? 0;
    // Sectors of the second member, in its data from 1 MiB on, cannot be read any more.
    faulty[1]?.device.add({
      on: 'read',
      range: { offsetBytes: offset * 512 + MIB, lengthBytes: 4 * KIB },
      fault: { kind: 'error', code: 'MEDIUM_ERROR' },
    });
    await array.add(spare);
    await settled(array);
    expect(array.degraded).toBe(0);
    expect(array.health.erased.length).toBeGreaterThan(0);
    await array.close();
  }),
  guest(
    'assemble $M1 $M2 $M3; settle $N; say degraded $(cat $SYS/degraded); for m in $M1 $M2 $M3; do say bad $(cat $SYS/dev-$(basename $m)/bad_blocks | tr "\\n" " "); done; dd if=$MD of=/dev/null bs=512 count=1024 status=none && say read yes; stop',
  ),
  host(async (scene) => {
    expect(scene.said('degraded'), scene.log).toBe('0');
    expect(scene.said('read'), scene.log).toBe('yes');
    // The new member is the last one asked; its log names 8 sectors at 1 MiB of its data.
    expect(scene.said('bad'), scene.log).toMatch(/^\d+ 8\s*$/);
  }),
);

// Replaced.

for (const each of [raid1, raid5, raid10near]) {
  story(
    `${each.name}: a replacement that Linux was stopped in goes on in raidsim`,
    alike(each.count + 1),
    guest(
      (scene) =>
        `create ${each.create} --raid-devices=${each.count} --spare-devices=1 $M; settle $N; say size $(size); fill ${scene.skip}; echo ${PAUSE_AT} >$SYS/sync_max; mdadm $MD --replace $M0 >/dev/null 2>&1; ${waitForPause}; stop`,
    ),
    host(async (scene) => {
      scene.modelOf(Number(scene.said('size')));
      expect(scene.said('paused'), scene.log).toMatch(new RegExp(`^${PAUSE_AT} /`));
      await withArray(reassemble(scene.images, { autoSync: false }), async (array) => {
        expect(array.degraded).toBe(0);
        const copying = array.members.find(({ state }) => state.state === 'replacement')?.state;
        expect(copying).toMatchObject({ slot: 0, recoveredBytes: PAUSE_AT * 512 });
        await patchWith(array, scene.model, scene.patches());
        await settled(array);
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
    guest(LOOK),
    host(async (scene) => scene.linuxAgrees()),
  );
  story(
    `${each.name}: a replacement that raidsim was closed in goes on in Linux`,
    alike(each.count + 1, 20),
    host((scene) =>
      withArray(weMake(scene, { ...each.shape, spares: 1 }), async (array) => {
        await array.replace('m0');
        await syncUntil(array, 8 * MIB);
        await patchWith(array, scene.model, scene.patches());
      }),
    ),
    guest(
      `assemble --readonly $M; say start $(cat $SYS/dev-$(basename $M${each.count})/recovery_start); mdadm --readwrite $MD; settle $N; say degraded $(cat $SYS/degraded); say original $(cat $SYS/dev-$(basename $M0)/state); sum; ${CHECK}; stop`,
    ),
    host(async (scene) => {
      scene.linuxAgrees();
      expect(Number(scene.said('start')) * 512).toBeGreaterThanOrEqual(8 * MIB);
      expect(scene.said('original')).toMatch(/faulty/);
      await withArray(reassemble(scene.images), async (array) => {
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
  );
}

// Grown.

/** Takes the model to what the array holds now that it is larger; what was there must be there still. */
async function takeGrowth(array: RaidArray, scene: Scene): Promise<void> {
  const content = await contentOf(array);
  expect(content.byteLength).toBeGreaterThan(scene.model.bytes.byteLength);
  expect(content.subarray(0, scene.model.bytes.byteLength).equals(scene.model.bytes)).toBe(true);
  scene.grow(content);
}

for (const each of [raid1, raid5, raid6, raid10near]) {
  for (const bitmap of [null, '64K']) {
    const name = bitmap === null ? each.name : `${each.name} with a bitmap`;
    const shape: OurShape = {
      ...each.shape,
      ...(bitmap === null ? {} : { bitmap: 'internal', bitmapChunk: bitmap }),
    };
    story(
      `${name}: members that raidsim made larger are as large in Linux`,
      alike(each.count),
      host(async (scene) => {
        await withArray(weMake(scene, shape), () => Promise.resolve());
        await withArray(reassemble(scene.images), (array) => array.grow({ size: '12M' }));
        await withArray(reassemble(scene.images), async (array) => {
          await takeGrowth(array, scene);
          await patchWith(array, scene.model, scene.patches());
          await settled(array);
          await weAgree(array, scene);
        });
      }),
      guest(LOOK),
      host(async (scene) => {
        scene.linuxAgrees();
        expect(scene.said('size')).toBe(String(scene.model.bytes.byteLength));
      }),
    );
  }
  story(
    `${each.name}: members that Linux made larger are as large in raidsim`,
    alike(each.count, 12),
    guest(
      (scene) =>
        `create ${each.create} --size=7M --raid-devices=${each.count} $M; settle $N; say size $(size); fill ${scene.skip}; mdadm --grow $MD --size=max >/dev/null 2>&1; settle $N; say grown $(size); sleep 0.3; stop`,
    ),
    host(async (scene) => {
      scene.modelOf(Number(scene.said('size')));
      await withArray(reassemble(scene.images), async (array) => {
        expect(String(array.limits.sizeBytes)).toBe(scene.said('grown'));
        await takeGrowth(array, scene);
        await patchWith(array, scene.model, scene.patches());
        await weAgree(array, scene);
      });
    }),
    guest(LOOK),
    host(async (scene) => scene.linuxAgrees()),
  );
}

story(
  'raid1: a leg that raidsim added is a leg in Linux',
  alike(3),
  host(async (scene) => {
    const two = scene.images.slice(0, 2);
    const array = await form(two, raid1.shape);
    await fillWith(array, scene.modelOf(array.limits.sizeBytes).bytes);
    await array.close();
    await withArray(reassemble(two), (open) => open.grow({ disks: 3 }));
    await withArray(reassemble(two), async (open) => {
      await open.add(await FileDevice.open(scene.image(2)));
      await patchWith(open, scene.model, scene.patches());
      await settled(open);
      expect(open.degraded).toBe(0);
    });
  }),
  guest(LOOK),
  host(async (scene) => scene.linuxAgrees()),
);

// Re-add.

for (const each of [raid1, raid5, raid6, raid10near, raid10far, raid10odd]) {
  const slot = each.gone[0] ?? 0;
  const bitmap = '--bitmap=internal --bitmap-chunk=64K';
  story(
    `${each.name}: a member that Linux failed comes back in raidsim by the bitmap`,
    alike(each.count),
    ...linuxMakes(
      each,
      (scene) =>
        `mdadm $MD --fail $M${slot} >/dev/null 2>&1; sleep 0.3; mdadm $MD --remove $M${slot} >/dev/null 2>&1; ${guestPatch(scene)}`,
      { more: bitmap },
    ),
    host(async (scene) => {
      await withArray(reassemble(scene.images.filter((_, index) => index !== slot)), async (array) => {
        expect(await sumOf(array), scene.log).toBe(scene.model.sum);
        await patchWith(array, scene.model, scene.patches());
        await array.reAdd(await FileDevice.open(scene.image(slot)));
        await patchWith(array, scene.model, scene.patches());
        await settled(array);
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
    guest(LOOK),
    host(async (scene) => scene.linuxAgrees()),
  );
  story(
    `${each.name}: a member that raidsim failed comes back in Linux by the bitmap`,
    alike(each.count),
    host((scene) =>
      withArray(weMake(scene, { ...each.shape, bitmap: 'internal', bitmapChunk: '64K' }), async (array) => {
        await array.fail(slot);
        await patchWith(array, scene.model, scene.patches());
      }),
    ),
    guest(
      (scene) =>
        `assemble ${scene.images.map((_, index) => (index === slot ? '' : `$M${index}`)).join(' ')}; sum; ${guestPatch(scene)}; mdadm $MD --re-add $M${slot} >/tmp/said 2>&1; say back $(cat /tmp/said); settle $N; say degraded $(cat $SYS/degraded); sum; ${CHECK}; sleep 0.3; stop`,
    ),
    host(async (scene) => {
      expect(scene.said('back'), scene.log).toMatch(/re-added/);
      scene.linuxAgrees();
      await withArray(reassemble(scene.images), async (array) => {
        expect(array.degraded).toBe(0);
        await weAgree(array, scene);
      });
    }),
  );
}

story(
  'raid1: only what the bitmap names is copied to a member that comes back',
  alike(2),
  host(async (scene) => {
    const shape: OurShape = { ...raid1.shape, bitmap: 'internal', bitmapChunk: '64K' };
    // Closed once, so that the bitmap has no bits left from filling it.
    await withArray(weMake(scene, shape), () => Promise.resolve());
    await withArray(reassemble(scene.images), async (array) => {
      await array.fail(1);
      await patchWith(array, scene.model, [{ offsetBytes: 0, lengthBytes: 64 * KIB, poolBytes: 0 }]);
      await array.remove('m1');
      await spoil(scene.image(1), FAR_BYTES);
      await array.reAdd(await FileDevice.open(scene.image(1)));
      await settled(array);
      // The damage was not copied over: nobody had written there.
      expect(await scrubOf(array)).toBeGreaterThan(0);
    });
    await spoil(scene.image(1), FAR_BYTES);
  }),
  guest(LOOK),
  host(async (scene) => scene.linuxAgrees()),
);

function bytesOf(path: string, offset: number, length: number): Buffer {
  const fd = openSync(path, 'r');
  const bytes = Buffer.alloc(length);
  readSync(fd, bytes, 0, length, offset);
  closeSync(fd);
  return bytes;
}

story(
  'raid5: opened read-only, a dirty array of Linux keeps every byte of its members',
  alike(4),
  ...linuxMakes(raid5, `${churn} sleep 0.6`, { cut: true }),
  host(async (scene) => {
    const before = scene.images.map((path) => bytesOf(path, 0, 8 * MIB));
    await withArray(reassemble(scene.images, { readOnly: true }), async (array) => {
      expectChurned(scene, await contentOf(array));
    });
    for (const [index, path] of scene.images.entries())
      expect(bytesOf(path, 0, 8 * MIB).equals(before[index] ?? Buffer.alloc(0))).toBe(true);
  }),
);

// The machinery.

interface Running {
  readonly story: Story;
  readonly scene: Scene;
  readonly imageCount: number;
  next: number;
  error: unknown;
}

/** All host steps up to the next step in the guest, or the end. */
async function advance(running: Running): Promise<void> {
  for (;;) {
    const step = running.story.steps[running.next];
    if (running.error !== null || step === undefined || !('host' in step)) return;
    running.next += 1;
    try {
      await step.host(running.scene);
      checkSuperblocks(running.scene);
    } catch (error) {
      running.error = error;
    }
  }
}

/** mdadm reads whatever state we left it in. */
function checkSuperblocks(scene: Scene): void {
  for (const path of scene.images) {
    const examined = examine(path);
    const checksum = examined.get('Checksum');
    if (checksum !== undefined) expect(checksum).toMatch(/- correct$/);
  }
}

async function bootTogether(lab: Lab, group: readonly Running[], cut: boolean): Promise<void> {
  const arrays = group.map(({ scene }) => scene);
  const lines = group.map(({ story: { steps }, scene, next }) => {
    const step = steps[next];
    return `use_${scene.id}; ${step !== undefined && 'guest' in step ? step.guest(scene) : ''}`;
  });
  for (const running of group) running.next += 1;
  try {
    const answers = await lab.boot(arrays, `${lines.join('\n')}\n${cut ? 'power-cut' : ''}`);
    for (const { scene } of group) {
      scene.answers = answers;
      scene.log += `${answers.about(scene.id)}\n--\n`;
    }
  } catch (error) {
    for (const running of group) running.error ??= error;
  }
}

describe.runIf(kernelOrSkip())('arrays handed over between raidsim and Linux', () => {
  const runs: Running[] = [];
  let lab: Lab | null = null;

  beforeAll(async () => {
    const start = performance.now();
    const here = new Lab('states');
    lab = here;
    for (const [index, each] of stories.entries()) {
      const scene = new Scene(`t${index}`, here, here.images(each.sizesMib), index + 1);
      runs.push({ story: each, scene, imageCount: each.sizesMib.length, next: 0, error: null });
    }
    for (;;) {
      await inTurns(runs, 2, advance);
      const waiting = runs.filter(
        ({ story: { steps }, next, error }) => error === null && next < steps.length,
      );
      if (waiting.length === 0) break;
      const isCut = ({ story: { steps }, next }: Running): boolean => {
        const step = steps[next];
        return step !== undefined && 'cut' in step;
      };
      const groups = [
        ...pack(waiting.filter((run) => !isCut(run))).map((group) => ({ group, cut: false })),
        ...pack(waiting.filter(isCut)).map((group) => ({ group, cut: true })),
      ];
      await inTurns(groups, 3, ({ group, cut }) => bootTogether(here, group, cut));
    }
    const seconds = ((performance.now() - start) / 1000).toFixed(0);
    console.log(`interop states: ${stories.length} cells, ${here.boots} boots, ${seconds} s`);
  });

  afterAll(() => lab?.remove());

  test.each(stories.map(({ title }, index) => ({ title, index })))('$title', ({ index }) => {
    const run = runs[index];
    if (run?.error !== null && run !== undefined) {
      const { error } = run;
      const message = error instanceof Error ? error.message : String(error);
      throw new Error(`${message}\n--- what the guest said\n${run.scene.log}`, { cause: error });
    }
    expect(run?.next).toBe(stories[index]?.steps.length);
  });
});
