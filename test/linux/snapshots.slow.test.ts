/** Linux writes to an array that has snapshots, past their store: raidsim notices, and none of them is silently wrong (I17). */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { createArray, openArray } from '../../lib/array/folder.ts';
import { inKernel, kernelOrSkip } from './kernel.ts';

const shapes = [
  { level: 1, disks: 2 },
  { level: 5, disks: 3 },
  { level: 5, disks: 3, consistencyPolicy: 'bitmap' },
  { level: 10, disks: 4 },
] as const;

describe.runIf(kernelOrSkip())('snapshots', () => {
  test('are invalid after Linux has assembled, written and stopped the array, and valid where it has not', async () => {
    const scratch = await mkdtemp(join(tmpdir(), 'raidsim-linux-snapshots-'));
    try {
      const images: string[] = [];
      const steps: string[] = [];
      for (const [index, shape] of shapes.entries()) {
        const folder = join(scratch, `a${index}`);
        const made = await createArray(folder, { ...shape, diskSize: '8M', chunk: '64K', cores: 1 });
        await using array = made;
        await array.write(0, new Uint8Array(1_000_000).fill(1));
        await array.snapshots?.create('one');
        const disks = Array.from({ length: shape.disks }, (_, number) => {
          images.push(join(folder, `disk${number}.img`));
          return `$D${images.length - 1}`;
        });
        steps.push(
          `mdadm --assemble /dev/md${index} ${disks.join(' ')}`,
          `dd if=/dev/zero of=/dev/md${index} bs=4096 count=1 seek=3 oflag=direct`,
          // Long enough for Linux to call it clean again, with the count of events as it was.
          'settle; sleep 1',
          `mdadm --stop /dev/md${index}`,
        );
      }
      const alone = join(scratch, 'alone');
      await createArray(alone, { level: 1, disks: 2, diskSize: '8M', cores: 1 }).then(async (array) => {
        await array.snapshots?.create('one');
        await array.close();
      });
      await inKernel({ images, script: `set -e\n${steps.join('\n')}\n` });
      const states: (string | undefined)[] = [];
      for (const folder of [...shapes.map((_, index) => join(scratch, `a${index}`)), alone]) {
        await using array = await openArray(folder, { cores: 1, autoSync: false });
        states.push(array.snapshots?.list()[0]?.state);
      }
      expect(states).toEqual([...shapes.map(() => 'invalid'), 'valid']);
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  });
});
