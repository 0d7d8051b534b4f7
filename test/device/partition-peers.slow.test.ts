/** Partition tables as sfdisk writes them, found where sfdisk and nbdkit find them. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { FileDevice } from '../../lib/device/file.ts';
import { PartitionDevice, readPartitions } from '../../lib/device/partition.ts';
import { seededRandom } from '../../lib/host.ts';
import { programPath } from '../linux/kernel.ts';
import { needPeer } from '../peer.ts';

const work = mkdtempSync(join(tmpdir(), 'raidsim-partitions-'));
afterAll(() => rmSync(work, { recursive: true, force: true }));

const SECTORS = 16 * 2048;
const env = { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` };

/** In order and apart, each with a sector before it for a chain of logical ones. */
function extents(random: (below: number) => number, count: number, from: number, to: number): string[] {
  const room = Math.floor((to - from) / count);
  return Array.from({ length: count }, (_, index) => {
    const first = from + index * room + 2048 + random(100);
    return `start=${first}, size=${1 + random(room - 2048 - 200)}`;
  });
}

function scriptOf(label: 'gpt' | 'dos', random: (below: number) => number): string {
  if (label === 'gpt') {
    const count = 1 + random(12);
    const numbers = Array.from({ length: 40 }, (_, index) => index + 1).sort(() => random(3) - 1);
    const lines = extents(random, count, 2048, SECTORS - 2048);
    return ['label: gpt', ...lines.map((line, index) => `${numbers[index]} : ${line}`)].join('\n');
  }
  const primary = extents(random, 1 + random(3), 0, SECTORS / 4);
  const at = primary.length + 1;
  const logical = extents(random, random(9), SECTORS / 4, SECTORS - 2048);
  return [
    'label: dos',
    ...primary.map((line, index) => `${index + 1} : ${line}, type=fd`),
    `${at} : start=${SECTORS / 4}, size=${(SECTORS * 3) / 4}, type=f`,
    ...logical.map((line, index) => `${index + 5} : ${line}, type=fd`),
  ].join('\n');
}

interface Listed {
  readonly partitiontable: {
    readonly partitions?: readonly { readonly node: string; readonly start: number; readonly size: number }[];
  };
}

for (const label of ['gpt', 'dos'] as const)
  test(`${label}: the partitions that sfdisk lists, and no others`, async (context) => {
    needPeer(programPath('sfdisk') !== null, { program: 'sfdisk', from: 'fdisk' }, context);
    for (let seed = 1; seed <= 12; seed += 1) {
      const path = join(work, `${label}${seed}.img`);
      writeFileSync(path, '');
      truncateSync(path, SECTORS * 512);
      const script = scriptOf(label, seededRandom(seed));
      execFileSync('sfdisk', ['--quiet', path], { env, input: `${script}\n` });
      const { partitiontable } = JSON.parse(
        execFileSync('sfdisk', ['--json', path], { env, encoding: 'utf8' }),
      ) as Listed;
      const theirs = (partitiontable.partitions ?? []).map(({ node, start, size }) => ({
        number: Number(node.slice(path.length)),
        startBytes: start * 512,
        lengthBytes: size * 512,
      }));
      await using disk = await FileDevice.open(path, { readOnly: true });
      const ours = [...(await readPartitions(disk))].sort((left, right) => left.number - right.number);
      expect(ours, `${label}, seed ${seed}:\n${script}`).toEqual(theirs);
      expect(ours.length).toBeGreaterThan(0);
    }
  });

test('a partition has the bytes that nbdkit serves of it', async (context) => {
  needPeer(programPath('sfdisk') !== null, { program: 'sfdisk', from: 'fdisk' }, context);
  needPeer(programPath('nbdkit') !== null, { program: 'nbdkit', from: 'nbdkit libnbd-bin' }, context);
  const path = join(work, 'served.img');
  const random = seededRandom(3);
  writeFileSync(
    path,
    Uint8Array.from({ length: SECTORS * 512 }, () => random(256)),
  );
  execFileSync('sfdisk', ['--quiet', path], { env, input: `${scriptOf('dos', seededRandom(5))}\n` });
  await using disk = await FileDevice.open(path, { readOnly: true });
  for (const { number, lengthBytes } of await readPartitions(disk)) {
    // nbdkit has nothing to do with the room of logical ones.
    if (lengthBytes === (SECTORS * 512 * 3) / 4) continue;
    const run = 'nbdcopy "$uri" -';
    const theirs = execFileSync(
      'nbdkit',
      ['-U', '-', '--filter=partition', 'file', path, `partition=${number}`, '--run', run],
      { env, maxBuffer: SECTORS * 512 },
    );
    await using partition = await PartitionDevice.open(
      await FileDevice.open(path, { readOnly: true }),
      number,
    );
    const ours = Buffer.alloc(partition.limits.sizeBytes);
    await partition.read(0, ours);
    expect(Buffer.compare(ours, theirs), `partition ${number}`).toBe(0);
  }
});
