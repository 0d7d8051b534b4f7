/** An array whose members lie behind a fabric: what the manifest says, what breaks, and who holds what. */
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import {
  assembleArray,
  createArray,
  growArray,
  MANIFEST_NAME,
  openArray,
  readManifest,
  writeManifest,
} from '../../lib/array/folder.ts';
import { sanOf } from '../../lib/array/san.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { seededRandom } from '../../lib/host.ts';
import { planWith } from '../../lib/multipath/san.ts';
import { randomBytes, runSeed } from '../conformance/seed.ts';
import { scratchFolder } from '../device/scratch.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

const bytes = randomBytes(seededRandom(runSeed), 300_000);

async function make(name: string): Promise<string> {
  const path = join(folder, name);
  const shape = { level: 5, disks: 3, diskSize: '4M', chunk: '64K', hbas: 2, controllers: 2 } as const;
  const array = await createArray(path, { ...shape, autoSync: false });
  await array.write(0, bytes);
  await array.close();
  await writeFile(
    join(path, 'multipath.conf'),
    'defaults {\nfast_io_fail_tmo 0\npolling_interval 1\nno_path_retry fail\n}\n',
  );
  return path;
}

async function holds(array: Awaited<ReturnType<typeof openArray>>): Promise<boolean> {
  const found = new Uint8Array(bytes.byteLength);
  await array.read(0, found);
  return Buffer.compare(found, bytes) === 0;
}

test('whichever HBA, switch or controller fails under it, no member is lost and nothing is wrong', async () => {
  const path = await make('survives');
  for (const name of ['hba0', 'sw1', 'ctl0', 'ctl1p0', 'hba1-sw1']) {
    const array = await openArray(path, { autoSync: false });
    sanOf(array)?.set(name, { state: 'failed' });
    await array.write(0, bytes);
    expect(await holds(array), name).toBe(true);
    expect(array.degraded, name).toBe(0);
    await array.close();
  }
});

test('a member whose paths have all failed is out like a disk that fails, and what was acknowledged is there', async () => {
  const path = await make('degrades');
  const array = await openArray(path, { autoSync: false });
  sanOf(array)?.set('disk1', { state: 'failed' });
  await array.write(0, bytes);
  expect(array.degraded).toBe(1);
  expect(await holds(array)).toBe(true);
  await array.close();
});

describe('what the manifest says of a component', () => {
  test('holds from the first moment; a member that no path leads to is missing, and its file is free', async () => {
    const path = await make('remembered');
    const manifest = await readManifest(path);
    const fabric = planWith(manifest.fabric ?? expect.fail('it has a fabric'), 'disk2', { state: 'failed' });
    await writeManifest(path, { ...manifest, fabric });
    const array = await openArray(path, { autoSync: false });
    expect(array.degraded).toBe(1);
    expect(await holds(array)).toBe(true);
    expect(
      sanOf(array)
        ?.status()
        .luns.map(({ name, isGone }) => [name, isGone]),
    ).toEqual([
      ['disk0', false],
      ['disk1', false],
      ['disk2', true],
    ]);
    await array.close();
  });

  test('is refused, with where and why, if it makes no sense', async () => {
    const path = await make('nonsense');
    const manifest = await readFile(join(path, MANIFEST_NAME), 'utf8');
    await writeFile(
      join(path, MANIFEST_NAME),
      manifest.replace('"hba0",\n        "sw0"', '"hba0",\n        "sw7"'),
    );
    await expect(openArray(path)).rejects.toMatchObject({
      code: 'BAD_MANIFEST',
      message: expect.stringContaining('there is no HBA, switch or port sw7'),
    });
  });

  test('and so is a multipath.conf with an error, at line and column', async () => {
    const path = await make('conf');
    await writeFile(join(path, 'multipath.conf'), 'defaults {\n  no_path_retry maybe\n}\n');
    await expect(openArray(path)).rejects.toMatchObject({
      message: expect.stringContaining('multipath.conf:2:17: no_path_retry'),
    });
  });
});

test('assembling it again leaves the fabric as it was', async () => {
  const path = await make('again');
  const { fabric } = await readManifest(path);
  const files = [0, 1, 2].map((index) => join(path, `disk${index}.img`));
  const array = await assembleArray(path, files, { autoSync: false });
  expect(sanOf(array)?.status().luns).toHaveLength(3);
  await array.close();
  expect((await readManifest(path)).fabric).toEqual(fabric);
});

test('its members grow at their array, and hosts see it when they look again', async () => {
  const path = await make('grows');
  const before = await openArray(path, { autoSync: false });
  const { sizeBytes } = before.limits;
  await before.close();
  const array = await growArray(path, { size: '8M' }, { autoSync: false });
  expect(array.limits.sizeBytes).toBe(sizeBytes + 2 * 4 * 2 ** 20);
  expect(
    sanOf(array)
      ?.status()
      .luns.map((lun) => lun.sizeBytes),
  ).toEqual([0, 1, 2].map(() => 8 * 2 ** 20));
  expect(await holds(array)).toBe(true);
  await array.write(sizeBytes, bytes);
  for await (const _step of array.rebuild());
  await array.close();
  const again = await growArray(path, { size: 'max' }, { autoSync: false });
  expect(again.limits.sizeBytes).toBe(array.limits.sizeBytes);
  await again.close();
});

test('its files are held while it is open, and free afterwards', async () => {
  const path = await make('held');
  const array = await openArray(path, { autoSync: false });
  await expect(openArray(path)).rejects.toMatchObject({ code: 'BUSY' });
  await array.close();
  await (await openArray(path, { autoSync: false })).close();
});

test('devices are refused, and so are numbers that make no fabric', async () => {
  const members = [1, 2].map(() => new MemoryDevice({ sizeBytes: 4 * 2 ** 20 }));
  await expect(createArray('x', { level: 1, members, hbas: 2 })).rejects.toMatchObject({
    code: 'BAD_ARGUMENT',
  });
  for (const hbas of [0, -1, 1.5, 65]) {
    const made = createArray(join(folder, 'none'), { level: 1, disks: 2, diskSize: '4M', hbas });
    await expect(made).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
  }
});
