/**
 * `create`, `grow` and changes of members, cut short at every moment: what reaches the members is written down in the order in which it was
 * begun and ended, and for every moment, and every choice of what was under way then, the members are put together as a kill
 * would have left them.
 *
 *   create   either no array at all, which assembly says, or one that agrees with itself once its resync is done
 *   grow     the array in its old shape or its new one, with all that was in it, and whole again after its resync
 *   change   of members, by hand: the array starts by itself with all that was in it, whole again after its recovery. Nobody is
 *            said to be missing who is here
 */
import { expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, type FormOptions, formArray, type Source } from '../../lib/array/form.ts';
import type { GrowOptions } from '../../lib/array/grow.ts';
import type { Device } from '../../lib/device/device.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RecordDevice } from '../../lib/device/record.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes } from '../conformance/seed.ts';

interface Write {
  readonly member: number;
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
}

/** What a member was told, in one list that all share. */
type Moment = { readonly event: 'start' | 'done'; readonly write: Write };

class Witness extends RecordDevice {
  readonly #member: number;
  readonly #moments: Moment[];

  constructor(below: Device, member: number, moments: Moment[]) {
    super(below);
    this.#member = member;
    this.#moments = moments;
  }

  protected override doWrite(offset: number, sources: readonly Uint8Array[], fua: boolean): Promise<void> {
    return this.#witness(offset, Buffer.concat(sources), () => super.doWrite(offset, sources, fua));
  }

  protected override doWriteZeroes(
    offset: number,
    lengthBytes: number,
    options: { fua: boolean; mayUnmap: boolean },
  ): Promise<void> {
    return this.#witness(offset, new Uint8Array(lengthBytes), () =>
      super.doWriteZeroes(offset, lengthBytes, options),
    );
  }

  async #witness(offsetBytes: number, bytes: Uint8Array, run: () => Promise<void>): Promise<void> {
    const write = { member: this.#member, offsetBytes, bytes: bytes.slice() };
    this.#moments.push({ event: 'start', write });
    await run();
    this.#moments.push({ event: 'done', write });
  }
}

type Images = readonly Uint8Array[];

function sourcesOf(images: Images, wrap: (device: Device, member: number) => Device): Source[] {
  return images.map((image, member) => {
    const memory = new SharedArrayBuffer(image.byteLength);
    new Uint8Array(memory).set(image);
    const name = `m${member}`;
    const device = new MemoryDevice({ sizeBytes: image.byteLength, memory, name });
    return { device: wrap(device, member), name, identity: name };
  });
}

const plain = (device: Device): Device => device;

/** Every state of the members that a kill may have left. */
function* cuts(before: Images, moments: readonly Moment[]): Generator<{ images: Images; says: string }> {
  const images = before.map((image) => image.slice());
  let underWay: Write[] = [];
  const put = (into: Images, { member, offsetBytes, bytes }: Write): void => {
    into[member]?.set(bytes, offsetBytes);
  };
  for (let at = 0; at <= moments.length; at += 1) {
    for (let choice = 0; choice < 1 << underWay.length; choice += 1) {
      const left = images.map((image) => image.slice());
      for (const [index, write] of underWay.entries()) if (choice & (1 << index)) put(left, write);
      yield { images: left, says: `moment ${at} of ${moments.length}, choice ${choice}` };
    }
    const moment = moments[at];
    if (moment?.event === 'start') underWay.push(moment.write);
    if (moment?.event === 'done') {
      put(images, moment.write);
      underWay = underWay.filter((write) => write !== moment.write);
    }
  }
}

async function assembled(images: Images): Promise<RaidArray> {
  const { array } = await assembleDevices(sourcesOf(images, plain), { name: 'cut', autoSync: false });
  return array;
}

async function contentOf(array: RaidArray): Promise<Uint8Array> {
  const content = new Uint8Array(array.limits.sizeBytes);
  await array.read(0, content);
  return content;
}

async function expectWhole(array: RaidArray, says: string): Promise<void> {
  for await (const _ of array.rebuild());
  expect(array.degraded, says).toBe(0);
  for await (const { mismatchCount } of array.scrub()) expect(mismatchCount, says).toBe(0);
}

type Shape = Partial<FormOptions> & { readonly level: string };

const shapes: readonly (readonly [name: string, shape: Shape, members: number])[] = [
  ['raid1', { level: '1' }, 2],
  ['raid1 with a bitmap and a spare', { level: '1', bitmap: 'internal', spares: 1 }, 3],
  ['raid5, metadata 1.0', { level: '5', chunk: '64K', metadata: '1.0' }, 3],
  ['raid5 with a bitmap', { level: '5', chunk: '64K', bitmap: 'internal' }, 3],
  ['raid6, metadata 1.1', { level: '6', chunk: '16K', metadata: '1.1' }, 4],
  ['raid10', { level: '10', chunk: '16K', layout: 'n2' }, 3],
];

/** Each says that members are missing; the last one, of an array that has still to be resynced. */
const REFUSALS = ['NOT_ENOUGH_MEMBERS', 'MEMBERS_MISSING', 'DIRTY_DEGRADED'];

test.each(shapes)('create, %s: no array, or one that agrees with itself', async (_, shape, count) => {
  const random = seededRandom(count);
  for (const content of ['zeros', 'noise', 'another array'] as const) {
    let before: Images = Array.from({ length: count }, () =>
      content === 'zeros' ? new Uint8Array(2 * MIB) : randomBytes(random, 2 * MIB),
    );
    if (content === 'another array') {
      const sources = sourcesOf(before, plain);
      const old = await formArray(sources, { name: 'old', level: '1', assumeClean: true, autoSync: false });
      const memories = sources.map(({ device }) => (device as MemoryDevice).memory);
      await old.close();
      before = memories.map((memory) => new Uint8Array(memory).slice());
    }
    const moments: Moment[] = [];
    const array = await formArray(
      sourcesOf(before, (device, member) => new Witness(device, member, moments)),
      { name: 'new', autoSync: false, assumeClean: content === 'zeros', ...shape },
    );
    const uuid = array.metadata?.array.setUuid;
    // Before it is closed, since nobody is told that it is made before that.
    const made = moments.slice();
    await array.close();

    const seen = { refused: 0, old: 0, whole: 0 };
    for (const { images, says } of cuts(before, made)) {
      try {
        const found = await assembled(images);
        if (found.metadata?.array.setUuid === uuid) {
          seen.whole += 1;
          await expectWhole(found, `${content}, ${says}`);
        } else seen.old += 1;
        await found.close();
      } catch (error) {
        if (!(error instanceof RaidError)) throw error;
        const wanted = content === 'another array' ? [...REFUSALS, 'SEVERAL_ARRAYS'] : REFUSALS;
        expect(wanted, `${content}, ${says}: ${error.message}`).toContain(error.code);
        seen.refused += 1;
      }
    }
    // Of the last moment at least, an array is to be had.
    expect(seen.whole, content).toBeGreaterThan(0);
    expect(seen.refused + seen.old, content).toBeGreaterThan(0);
  }
});

const growths: readonly (readonly [name: string, shape: Shape, members: number, growth: GrowOptions])[] = [
  ['raid1 to more of each member', { level: '1' }, 2, { size: 'max' }],
  ['raid1 to one leg more', { level: '1' }, 2, { disks: 3 }],
  ['raid1 with a bitmap', { level: '1', bitmap: 'internal', bitmapChunk: '64K' }, 2, { size: 'max' }],
  ['raid5', { level: '5', chunk: '16K' }, 3, { size: 'max' }],
  ['raid6, metadata 1.1', { level: '6', chunk: '16K', metadata: '1.1' }, 4, { size: 'max' }],
  ['raid10', { level: '10', chunk: '16K', layout: 'n2' }, 3, { size: 'max' }],
];

test.each(growths)(
  'grow, %s: the old shape or the new one, and nothing is lost',
  async (_, shape, count, growth) => {
    const random = seededRandom(count);
    // What the members have beyond the old shape is noise: only a resync makes it agree.
    const small = sourcesOf(
      Array.from({ length: count }, () => new Uint8Array(2 * MIB)),
      plain,
    );
    const array = await formArray(small, { name: 'grows', autoSync: false, assumeClean: true, ...shape });
    const oldBytes = array.limits.sizeBytes;
    const content = randomBytes(random, oldBytes);
    await array.write(0, content);
    await array.close();
    const before = small.map(({ device }) =>
      Buffer.concat([new Uint8Array((device as MemoryDevice).memory), randomBytes(random, 512 * KIB)]),
    );

    const moments: Moment[] = [];
    const { array: growing } = await assembleDevices(
      sourcesOf(before, (device, member) => new Witness(device, member, moments)),
      { name: 'grows', autoSync: false },
    );
    await growing.grow(growth);
    await growing.close();

    const seen = { old: 0, grown: 0 };
    for (const { images, says } of cuts(before, moments)) {
      const found = await assembled(images);
      const slots = found.layout.memberCount;
      const isOld = found.limits.sizeBytes === oldBytes && slots === count;
      seen[isOld ? 'old' : 'grown'] += 1;
      const read = async (): Promise<number> =>
        Buffer.compare((await contentOf(found)).subarray(0, oldBytes), content);
      expect(await read(), says).toBe(0);
      if (growth.disks === undefined) {
        await expectWhole(found, says);
        expect(await read(), says).toBe(0);
      } else expect(found.degraded, says).toBe(isOld ? 0 : growth.disks - count);
      await found.close();
    }
    expect(seen.old).toBeGreaterThan(0);
    expect(seen.grown).toBeGreaterThan(0);
  },
);

/** What is done to an array that is whole and has a spare, or that lacks `m0` and has been written without it. */
const changes: readonly (readonly [
  name: string,
  lacking: boolean,
  change: (array: RaidArray, beside: Device) => Promise<unknown>,
])[] = [
  ['a member fails', false, (array) => array.fail('m0')],
  ['a member is replaced', false, (array) => array.replace('m0').then(() => rebuilt(array))],
  ['a former member returns', true, (array, beside) => array.reAdd(beside)],
  [
    'a former member returns and recovers',
    true,
    (array, beside) => array.reAdd(beside).then(() => rebuilt(array)),
  ],
  ['a new disk comes and recovers', true, (array, beside) => array.add(beside).then(() => rebuilt(array))],
];

const bitmapped = { bitmap: 'internal', bitmapChunk: '64K' } as const;
const changed: readonly (readonly [name: string, shape: Shape, members: number])[] = [
  ['raid1', { level: '1', ...bitmapped }, 3],
  ['raid5', { level: '5', chunk: '16K', ...bitmapped }, 3],
  ['raid6', { level: '6', chunk: '16K', ...bitmapped }, 4],
  ['raid10', { level: '10', chunk: '16K', layout: 'n2', ...bitmapped }, 4],
];

const rebuilt = async (array: RaidArray): Promise<void> => {
  for await (const _ of array.rebuild());
};

test.each(
  changed.flatMap(([title, ...shape]) =>
    changes.map((change) => [`${title}: ${change[0]}`, shape, change] as const),
  ),
)(
  '%s: cut short, it starts by itself, and nothing is lost',
  async (_, [shape, count], [, lacking, change]) => {
    const options = { name: 'changes', autoSync: false };
    const memories = (sources: readonly Source[]): Images =>
      sources.map(({ device }) => new Uint8Array((device as MemoryDevice).memory).slice());
    const random = seededRandom(count);
    const spares = lacking ? 0 : 1;
    const blank = Array.from({ length: count + spares }, () => new Uint8Array(1280 * KIB));
    const made = sourcesOf(blank, plain);
    const array = await formArray(made, { ...options, assumeClean: true, ...shape, spares });
    const content = randomBytes(random, array.limits.sizeBytes);
    await array.write(0, content);
    await array.close();
    let before = memories(made);
    if (lacking) {
      const sources = sourcesOf(before, plain);
      const { array: whole } = await assembleDevices(sources, options);
      await whole.fail('m0');
      const missed = randomBytes(random, 64 * KIB);
      content.set(missed, 128 * KIB);
      await whole.write(128 * KIB, missed);
      await whole.close();
      before = memories(sources);
    }

    const moments: Moment[] = [];
    const sources = sourcesOf(before, (device, member) => new Witness(device, member, moments));
    const { array: changing } = await assembleDevices(lacking ? sources.slice(1) : sources, options);
    await change(changing, sources[0]!.device);
    await changing.close();
    expect(moments.length).toBeGreaterThan(0);

    for (const { images, says } of cuts(before, moments)) {
      const found = await assembled(images);
      expect(Buffer.compare(await contentOf(found), content), says).toBe(0);
      for (const { name, state } of found.members) if (state.state === 'faulty') await found.remove(name);
      await rebuilt(found);
      for await (const { mismatchCount } of found.scrub()) expect(mismatchCount, says).toBe(0);
      expect(Buffer.compare(await contentOf(found), content), says).toBe(0);
      await found.close();
    }
  },
);
