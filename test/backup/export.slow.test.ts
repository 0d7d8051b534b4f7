/** Images that QEMU, which did not write them, finds whole and the same. */
import { execFile } from 'node:child_process';
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, describe, expect, test } from 'vitest';
import { exportImage } from '../../lib/backup/export.ts';
import type { Backing, ExportProgress } from '../../lib/backup/qcow2.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { OverlayDevice } from '../../lib/device/overlay.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { deviceOf, imageOf, MemoryStore, newRepository } from './world.ts';

const run = promisify(execFile);
const folder = await mkdtemp(join(tmpdir(), 'raidsim-export-'));
afterAll(() => rm(folder, { recursive: true }));
const inFolder = (name: string): string => join(folder, name);

async function expectImage(image: string, wanted: Uint8Array): Promise<void> {
  const raw = `${image}.wanted`;
  const padded = new Uint8Array(Math.ceil(wanted.byteLength / 512) * 512);
  padded.set(wanted);
  await writeFile(raw, padded);
  await run('qemu-img', ['check', '-f', 'qcow2', image]);
  await run('qemu-img', ['compare', '-F', 'raw', '-f', 'qcow2', image, raw]);
  // To compare, an end of zeros is no difference.
  const { stdout } = await run('qemu-img', ['info', '--output=json', image]);
  expect((JSON.parse(stdout) as Record<string, unknown>)['virtual-size']).toBe(padded.byteLength);
}

function disk(random: (below: number) => number, sizeBytes: number): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  for (let at = 0; at < sizeBytes; at += 64 * KIB) {
    const length = Math.min(64 * KIB, sizeBytes - at);
    const kind = random(4);
    if (kind === 0) bytes.set(randomBytes(random, length), at);
    if (kind === 1) bytes.set(imageOf(random, Math.min(length, 5000)), at + length - Math.min(length, 5000));
  }
  return bytes;
}

describe('a qcow2 image', () => {
  test.each([1, 511, 512, 64 * KIB, 64 * KIB + 1, 3 * MIB + 4096 + 77])(
    'of %i bytes is clean, and holds what the device holds',
    (size) =>
      withSeed(runSeed, async (random) => {
        const bytes = disk(random, size);
        const path = inFolder(`size-${size}.qcow2`);
        expect(await exportImage(deviceOf(bytes), path, { format: 'qcow2' })).toBe(true);
        await expectImage(path, bytes);
      }),
  );

  test('of zeros takes a few clusters, whatever its size, and several L2 tables are right', async () => {
    const path = inFolder('zeros.qcow2');
    await using file = await FileDevice.create(inFolder('zeros.img'), 1200 * MIB);
    await using source = await OverlayDevice.open(file, inFolder('zeros.overlay'), { create: true });
    const mark = new Uint8Array(4096).fill(0xa5);
    for (const at of [0, 512 * MIB - 4096, 512 * MIB, 1200 * MIB - 4096]) await source.write(at, mark);
    await exportImage(source, path, { format: 'qcow2' });
    expect((await stat(path)).size).toBeLessThan(20 * 64 * KIB);
    const raw = inFolder('zeros.raw');
    await exportImage(source, raw, { format: 'raw' });
    await run('qemu-img', ['check', path]);
    await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, raw]);
    expect((await stat(raw)).blocks * 512).toBeLessThan(MIB);
  });

  test('on top of another holds what changed, zeros over data too, and a device that grew', () =>
    withSeed(runSeed, async (random) => {
      const repository = await newRepository(new MemoryStore(), { chunkBytes: 4096, packBytes: MIB });
      let bytes = disk(random, 2 * MIB);
      bytes.fill(7, 128 * KIB, 512 * KIB);
      const steps: (readonly [string, Uint8Array])[] = [];
      let before: string | null = null;
      for (const turn of [0, 1, 2, 3]) {
        const backup = await repository.createBackup({ source: deviceOf(bytes), array: 'demo' });
        await using device = await repository.openBackup(backup!.id);
        const path = inFolder(`chain-${turn}.qcow2`);
        const backing: Backing | undefined =
          before === null
            ? undefined
            : {
                path: `chain-${turn - 1}.qcow2`,
                format: 'qcow2',
                changed: await repository.changedBetween(before, backup!.id),
              };
        await exportImage(device, path, { format: 'qcow2', ...(backing === undefined ? {} : { backing }) });
        steps.push([path, bytes]);
        before = backup!.id;
        const next = new Uint8Array(bytes.byteLength + (turn === 1 ? 300_000 : 0));
        next.set(bytes);
        next.fill(0, 130 * KIB + turn * 64 * KIB, 230 * KIB + turn * 64 * KIB);
        next.set(randomBytes(random, 5000), random(next.byteLength - 5000));
        bytes = next;
      }
      for (const [path, wanted] of steps) await expectImage(path, wanted);
      const sizes = await Promise.all(steps.map(async ([path]) => (await stat(path)).size));
      expect(sizes[1]).toBeLessThan(12 * 64 * KIB);
    }));

  test('that was interrupted, or whose device fails, is not there, and what had its name still is', async () => {
    const path = inFolder('kept.qcow2');
    await writeFile(path, 'precious');
    const bytes = new Uint8Array(MIB).fill(1);
    const stop = new AbortController();
    const progress = ({ doneBytes }: ExportProgress): void => {
      if (doneBytes > 300 * KIB) stop.abort();
    };
    expect(await exportImage(deviceOf(bytes), path, { format: 'qcow2', signal: stop.signal, progress })).toBe(
      false,
    );
    const faulty = new FaultDevice(deviceOf(bytes));
    faulty.add({
      on: 'read',
      range: { offsetBytes: 500 * KIB, lengthBytes: 512 },
      fault: { kind: 'error', code: 'MEDIUM_ERROR' },
    });
    await expect(exportImage(faulty, path, { format: 'raw' })).rejects.toMatchObject({
      code: 'MEDIUM_ERROR',
    });
    expect((await stat(path)).size).toBe('precious'.length);
    expect((await readdir(folder)).filter((name) => name.endsWith('.partial'))).toEqual([]);
  });
});
