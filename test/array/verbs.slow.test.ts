/**
 * Verbs that come together: whatever two of them are asked for within one breath, at whatever moment, and whoever fails
 * meanwhile, the array ends as some order of them would have left it. It never throws what is not a `RaidError`, never hangs,
 * and what is on its members is what it says.
 */
import { describe, expect, test } from 'vitest';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, type FormOptions, formArray, type Source } from '../../lib/array/form.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { KIB, MIB } from '../../lib/units.ts';

const DISK_BYTES = 2 * MIB;

interface World {
  readonly array: RaidArray;
  readonly disks: Disk[];
  readonly content: Uint8Array;
}

class Disk extends FaultDevice {
  readonly memory: SharedArrayBuffer;

  constructor(name: string, memory = new SharedArrayBuffer(DISK_BYTES)) {
    super(new MemoryDevice({ sizeBytes: DISK_BYTES, memory, name }));
    this.memory = memory;
  }
}

function sourceOf(device: Device): Source {
  return { device, name: device.name, identity: device.name };
}

async function make(
  count: number,
  options: Partial<FormOptions> & { readonly level: string },
): Promise<World> {
  const disks = Array.from({ length: count }, (_, index) => new Disk(`disk${index}`));
  const array = await formArray(disks.map(sourceOf), {
    name: 'array',
    assumeClean: true,
    ...(options.level === '1' ? {} : { chunk: '16K' }),
    ...options,
  });
  const content = new Uint8Array(Math.min(array.limits.sizeBytes, 512 * KIB)).map(
    (_, index) => (index * 7 + (index >> 9)) & 0xff,
  );
  await array.write(0, content);
  return { array, disks, content };
}

async function microtasks(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await Promise.resolve();
}

/** Syncs to the end, then everything agrees: what is read, redundancy, and the array with its own record. */
async function expectSound({ array, disks, content }: World): Promise<void> {
  for await (const progress of array.rebuild()) expect(progress.totalBytes).toBeGreaterThan(0);
  const seen = new Uint8Array(content.length);
  await array.read(0, seen);
  expect(Buffer.compare(seen, content)).toBe(0);
  for await (const progress of array.scrub()) expect(progress.mismatchCount).toBe(0);
  const recorded = (array.metadata?.array.members ?? []).map(
    (member) => `${member.descriptor} ${member.state} ${'slot' in member ? member.slot : '-'}`,
  );
  const said = array.members.map(({ descriptor, state }) =>
    state.state === 'faulty' || state.state === 'spare'
      ? `${descriptor} ${state.state} -`
      : `${descriptor} ${state.state} ${state.slot}`,
  );
  expect(said.sort()).toEqual(recorded.sort());
  expect(new Set(array.members.map(({ descriptor }) => descriptor)).size).toBe(array.members.length);
  const gone = new Set(
    array.members.filter(({ state }) => state.state === 'faulty').map(({ device }) => device.name),
  );
  const { degraded } = array;
  await array.close();
  const names = new Set(array.members.map(({ device }) => device.name));
  const again = disks.filter(({ name }) => names.has(name) && !gone.has(name));
  const { array: after } = await assembleDevices(
    again.map(({ name, memory }) => sourceOf(new Disk(name, memory))),
    { name: 'array' },
  );
  expect(after.degraded).toBe(degraded);
  await after.read(0, seen);
  expect(Buffer.compare(seen, content)).toBe(0);
  await after.close();
}

type Verb = readonly [string, (world: World) => Promise<unknown>];

const verbs: readonly Verb[] = [
  ['fail disk1', ({ array }) => array.fail('disk1')],
  ['replace disk1', ({ array }) => array.replace('disk1')],
  ['replace disk2', ({ array }) => array.replace('disk2')],
  ['remove the spare', ({ array, disks }) => array.remove(disks[4]?.name ?? '')],
  [
    'add a disk',
    (world) => {
      const added = new Disk(`new${world.disks.length}`);
      world.disks.push(added);
      return world.array.add(added);
    },
  ],
  [
    'a write that disk1 does not take',
    ({ array, disks, content }) => {
      disks[1]?.add({ on: 'write', fault: { kind: 'error', code: 'WRITE_FAILED' } });
      return array.write(0, content);
    },
  ],
  [
    'a write',
    ({ array, content }) => {
      content.fill(0x5a, 0, 100_000);
      return array.write(0, content.subarray(0, 100_000));
    },
  ],
];

describe.each([
  ['raid5', { level: '5', spares: 1 }],
  ['raid10 with a bitmap', { level: '10', spares: 1, bitmap: 'internal' as const }],
])('%s: two verbs within one breath', (_, shape) => {
  test.each(verbs)('%s is done where nothing else is', async (_name, run) => {
    const world = await make(5, shape);
    await run(world);
    await expectSound(world);
  });

  for (const [first, doFirst] of verbs) {
    test(`${first}, then any other, at any moment`, async () => {
      for (const [second, doSecond] of verbs) {
        for (const gap of [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89]) {
          const world = await make(5, shape);
          const both = [doFirst(world)];
          await microtasks(gap);
          both.push(doSecond(world));
          const outcomes = await Promise.allSettled(both);
          try {
            for (const outcome of outcomes)
              if (outcome.status === 'rejected') expect(outcome.reason).toBeInstanceOf(RaidError);
            await expectSound(world);
          } catch (error) {
            throw new Error(`${first}, and ${gap} microtasks later ${second}: ${error}`, { cause: error });
          }
        }
      }
    });
  }
});

describe('a device that is a member', () => {
  test('is not added again', async () => {
    const { array, disks } = await make(3, { level: '5' });
    const [known] = disks;
    if (known !== undefined) await expect(array.add(known)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    await array.close();
  });

  test('is not taken twice when the array is made', async () => {
    const one = new Disk('one');
    const options = { name: 'array', level: '1' };
    await expect(formArray([one, one].map(sourceOf), options)).rejects.toMatchObject({
      code: 'BAD_ARGUMENT',
    });
  });
});

describe('the last copy', () => {
  for (const [name, level, count, options] of [
    ['raid1', '1', 2, {}],
    ['raid5', '5', 3, {}],
    ['raid10', '10', 4, {}],
    ['raid1 with a bitmap', '1', 2, { bitmap: 'internal' }],
    ['raid5 with a bitmap', '5', 3, { bitmap: 'internal' }],
    ['raid10 with a bitmap', '10', 4, { bitmap: 'internal' }],
  ] as const) {
    test(`stays when it does not take its superblock or its bitmap, and the write says why (${name})`, async () => {
      for (const where of [4096, 8192]) {
        const { array, disks, content } = await make(count, { level, ...options });
        await array.fail('disk1');
        await array.flush();
        disks[0]?.add({
          on: 'write',
          range: { offsetBytes: where, lengthBytes: 4096 },
          fault: { kind: 'error', code: 'WRITE_FAILED' },
        });
        const far = array.limits.sizeBytes - 64 * KIB;
        const outcome = await array.write(far, new Uint8Array(4096)).catch((error: unknown) => error);
        if (outcome !== undefined) expect(outcome).toMatchObject({ code: 'ARRAY_FAILED' });
        const seen = new Uint8Array(content.length);
        await array.read(0, seen);
        expect(Buffer.compare(seen, content)).toBe(0);
        expect(array.members[0]?.state.state).toBe('in_sync');
        await array.close().catch(() => undefined);
        expect(array.metadata?.array.members[0]?.state).toBe('in_sync');
      }
    });
  }
});
