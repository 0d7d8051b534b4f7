import { spawnSync } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { whatIsOn } from '../../lib/array/signatures.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { OverlayDevice, overlayBytesFor } from '../../lib/device/overlay.ts';
import { RecordDevice } from '../../lib/device/record.ts';
import { seededRandom } from '../../lib/host.ts';
import { newArray } from '../../lib/md/placement.ts';
import { encodeSuperblock1, superSectorOf } from '../../lib/md/superblock1.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { scratchFolder } from '../device/scratch.ts';
import { fixtureImages, fixtureStates, mdadmSaid } from '../md/fixtures.ts';
import { someTime, uuidOf } from '../md/images.ts';
import { needPeer } from '../peer.ts';

const folder = await scratchFolder();
afterAll(() => rm(folder, { recursive: true }));

const SIZE = 4 * MIB;

type Patch = readonly [offsetBytes: number, content: string | readonly number[]];

/** Text is Latin-1; negative offsets count from the end. */
function deviceWith(patches: readonly Patch[], sizeBytes = SIZE, blockBytes = 512): MemoryDevice {
  const memory = new SharedArrayBuffer(sizeBytes);
  const bytes = Buffer.from(memory);
  for (const [offset, content] of patches) {
    const at = offset < 0 ? sizeBytes + offset : offset;
    bytes.set(typeof content === 'string' ? Buffer.from(content, 'latin1') : content, at);
  }
  return new MemoryDevice({ sizeBytes, memory, readOnly: true, blockBytes });
}

function deviceOf(image: Uint8Array): MemoryDevice {
  const memory = new SharedArrayBuffer(image.byteLength);
  new Uint8Array(memory).set(image);
  return new MemoryDevice({ sizeBytes: image.byteLength, memory, readOnly: true });
}

const bootSector: Patch = [510, [0x55, 0xaa]];
/** Bytes 4 to 7 count blocks, and the rest of what is looked at may be 0. */
const ext: readonly Patch[] = [
  [1028, [1]],
  [1080, [0x53, 0xef]],
];
const partition = (type: number): readonly number[] => [0x80, 0, 0, 0, type, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0];

const handMade: readonly (readonly [string, readonly Patch[]])[] = [
  ['an ext2 file system', ext],
  ['an ext2 file system "büro"', [...ext, [1144, 'b\xc3\xbcro']]],
  ['an ext3 file system', [...ext, [1116, [0x4]], [1120, [0x2]]]],
  ['an ext4 file system', [...ext, [1116, [0x4]], [1120, [0x42]]]],
  ['an ext4 file system', [...ext, [1125, [0x04]]]],
  ['an ext4 journal', [...ext, [1120, [0x8]]]],
  [
    'an XFS file system "data"',
    [
      [0, 'XFSB'],
      [108, 'data'],
    ],
  ],
  [
    'a btrfs file system "pool"',
    [
      [65_600, '_BHRfS_M'],
      [65_835, 'pool'],
    ],
  ],
  ['an F2FS file system', [[1024, [0x10, 0x20, 0xf5, 0xf2]]]],
  ['an NTFS file system', [[3, 'NTFS    '], bootSector]],
  ['an exFAT file system', [[3, 'EXFAT   '], bootSector]],
  ['a FAT file system "STICK"', [[43, 'STICK      FAT16   '], bootSector]],
  ['a FAT file system', [[71, 'NO NAME    FAT32   '], bootSector]],
  ['a SquashFS file system', [[0, 'hsqs']]],
  [
    'an ISO 9660 file system "CDROM"',
    [
      [32_769, 'CD001'],
      [32_808, 'CDROM   '],
    ],
  ],
  ['swap space', [[4086, 'SWAPSPACE2']]],
  [
    'swap space "big"',
    [
      [65_526, 'SWAPSPACE2'],
      [1052, 'big'],
    ],
  ],
  ['a hibernated system in swap space', [[4086, 'S1SUSPEND']]],
  [
    'LUKS encryption "c0ffee"',
    [
      [0, 'LUKS\xba\xbe\0\x02'],
      [168, 'c0ffee'],
    ],
  ],
  ['LUKS encryption (its second header)', [[16_384, 'SKUL\xba\xbe']]],
  [
    'an LVM physical volume',
    [
      [512, 'LABELONE'],
      [536, 'LVM2 001'],
    ],
  ],
  ['a ZFS label', [[128 * KIB + 4 * KIB, [0x0c, 0xb1, 0xba]]]],
  ['a ZFS label', [[-128 * KIB + 5, [0xba, 0xb1, 0x0c]]]],
  ['a ZFS label', [[-384 * KIB, [0x0c, 0xb1, 0xba]]]],
  ['a GPT partition table', [[512, 'EFI PART']]],
  ['a GPT partition table', [[4096, 'EFI PART']]],
  ['a backup GPT partition table', [[-512, 'EFI PART']]],
  ['the protective MBR of a GPT', [[446, partition(0xee)], bootSector]],
  ['an MBR partition table', [[462, partition(0x83)], bootSector]],
  ['a boot sector', [[0, [0xeb, 0x63, 0x90]], bootSector]],
  ['a qcow2 disk image', [[0, 'QFI\xfb\0\0\0\x03']]],
  ['Intel firmware RAID metadata', [[-1024, 'Intel Raid ISM Cfg Sig. 1.3.00']]],
  ['DDF firmware RAID metadata', [[-512, [0xde, 0x11, 0xde, 0x11]]]],
];

test.each(handMade)('%s is named, and nothing else', async (name, patches) => {
  for (const blockBytes of [1, 512, 4096]) {
    expect(await whatIsOn(deviceWith(patches, SIZE, blockBytes))).toEqual([name]);
  }
});

describe('what real tools make', () => {
  const programs: readonly (readonly [string, string, readonly string[], string])[] = [
    ['an ext2 file system "old"', 'mkfs.ext2', ['-q', '-F', '-L', 'old'], 'e2fsprogs'],
    ['an ext3 file system', 'mkfs.ext3', ['-q', '-F'], 'e2fsprogs'],
    ['an ext4 file system "new"', 'mkfs.ext4', ['-q', '-F', '-L', 'new'], 'e2fsprogs'],
    ['swap space "swap"', 'mkswap', ['-L', 'swap'], 'util-linux'],
    ['a FAT file system', 'mkfs.vfat', [], 'dosfstools'],
    ['an XFS file system', 'mkfs.xfs', ['-q', '-f'], 'xfsprogs'],
    ['a btrfs file system', 'mkfs.btrfs', ['-q', '-f'], 'btrfs-progs'],
  ];
  test.for(programs)('%s', async ([name, program, args, from], context) => {
    const path = join(folder, `${program}.img`);
    await FileDevice.create(path, 512 * MIB).then((device) => device.close());
    const made = spawnSync(program, [...args, path], {
      env: { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` },
      encoding: 'utf8',
    });
    needPeer(made.error === undefined, { program, from }, context);
    expect(made.status, made.stderr).toBe(0);
    await using device = await FileDevice.open(path, { readOnly: true });
    expect(await whatIsOn(device)).toEqual([name]);
  });

  test.each(Object.keys(fixtureStates))('the members of mdadm’s %s', async (state) => {
    for (const [index, image] of fixtureImages(state).entries()) {
      const said = mdadmSaid(state, index, '--examine');
      const version = /Version : (\S+)/.exec(said)?.[1]?.replace(/^0\.90\.\d+$/, '0.90');
      const uuid = /UUID : (\S+)/.exec(said)?.[1];
      const found = (await whatIsOn(deviceOf(image))).filter((phrase) => phrase.includes('md superblock'));
      expect(found).toHaveLength(1);
      expect(found[0]).toContain(`an md superblock ${version} of the array`);
      expect(found[0]?.replace(/[:-]/g, '')).toContain(uuid?.replaceAll(':', ''));
      expect(found[0]).not.toContain('broken');
    }
  });
});

describe('md superblocks', () => {
  function member(version: '1.0' | '1.1' | '1.2', setName = 'host:t'): Uint8Array {
    const { array } = newArray({
      version,
      numbers: { level: 1, raidDisks: 2, layout: 0, chunkSectors: 0 },
      consistency: { policy: 'resync' },
      memberSectors: [SIZE / 512, SIZE / 512],
      setUuid: uuidOf(1),
      setName,
      ctime: someTime,
      deviceUuids: [uuidOf(2), uuidOf(3)],
      firstSync: 'resync',
    });
    const image = new Uint8Array(SIZE);
    const superblock = array.members[0]?.superblock;
    if (superblock === undefined) throw new Error('an array has members');
    image.set(encodeSuperblock1(superblock), (superSectorOf(version, SIZE / 512) ?? 0) * 512);
    return image;
  }

  test.each(['1.0', '1.1', '1.2'] as const)('%s is named, with its array', async (version) => {
    expect(await whatIsOn(deviceOf(member(version)))).toEqual([
      `an md superblock ${version} of the array "host:t" (uuid ${uuidOf(1)})`,
    ]);
  });

  test('one that is broken is named all the same', async () => {
    const image = member('1.2');
    image[4096 + 300] = 1;
    expect((await whatIsOn(deviceOf(image)))[0]).toContain('broken');
    const view = new DataView(image.buffer);
    view.setUint32(4096 + 220, 0xffff_ffff, true);
    expect(await whatIsOn(deviceOf(image))).toEqual(['a broken md superblock 1.2']);
  });

  test('every one of several is named, and a file system beside them', async () => {
    const image = member('1.0');
    image.set(member('1.2').subarray(4096, 8192), 4096);
    image.set([0, 0, 0, 0, 1], 1024);
    image.set([0x53, 0xef], 1080);
    const found = await whatIsOn(deviceOf(image));
    expect(found.map((phrase) => phrase.split(' of ')[0])).toEqual([
      'an md superblock 1.2',
      'an md superblock 1.0',
      'an ext2 file system',
    ]);
  });

  test('a name with escape codes reaches nobody’s terminal', async () => {
    const [found = ''] = await whatIsOn(deviceOf(member('1.2', 'a\u001b[2J\n\u202e"\u009b')));
    expect(found).toContain('"a?[2J??\\"?"');
    expect(/\p{C}/u.test(found)).toBe(false);
  });
});

test('an overlay of raidsim is named', async () => {
  const store = new MemoryDevice({ sizeBytes: overlayBytesFor(SIZE) });
  await OverlayDevice.over(new MemoryDevice({ sizeBytes: SIZE }), store, { create: true });
  expect(await whatIsOn(store)).toEqual(['an overlay of raidsim']);
});

describe('what seems empty', () => {
  test('zeros of any size hold nothing', async () => {
    for (const sizeBytes of [
      1,
      511,
      512,
      513,
      4096,
      12_288,
      512 * KIB,
      512 * KIB + 1,
      1280 * KIB,
      SIZE + 7,
    ]) {
      expect(await whatIsOn(deviceWith([], sizeBytes, 1))).toEqual([]);
    }
  });

  test('two bytes that happen to be right are not a file system, nor a partition table', async () => {
    const noise: Patch = [0, [...randomBytes(seededRandom(1), 2048)]];
    expect(await whatIsOn(deviceWith([noise, [1080, [0x53, 0xef]]]))).toEqual([]);
    expect(await whatIsOn(deviceWith([noise, [510, [0x55, 0xaa]]]))).toEqual([]);
  });

  test('a table at the end of the first window is found on the smallest device that has it', async () => {
    for (const sizeBytes of [256 * KIB, 512 * KIB, 512 * KIB + 512, 1280 * KIB, 1280 * KIB + 512]) {
      expect(await whatIsOn(deviceWith([[-512, 'EFI PART']], sizeBytes))).toEqual([
        'a backup GPT partition table',
      ]);
    }
  });
});

describe('reading', () => {
  test('is bounded, and never writes', async () => {
    const record = new RecordDevice(new MemoryDevice({ sizeBytes: 256 * MIB, blockBytes: 4096 }));
    await whatIsOn(record);
    let readBytes = 0;
    for (const entry of record.log) {
      expect(entry.operation.op).toBe('read');
      if (entry.event === 'start' && entry.operation.op === 'read') readBytes += entry.operation.lengthBytes;
    }
    expect(readBytes).toBeLessThanOrEqual(1280 * KIB);
  });

  test('a device that cannot be read is not empty: the error passes', async () => {
    const device = new FaultDevice(deviceWith([]), {
      rules: [{ on: 'read', fault: { kind: 'error', code: 'MEDIUM_ERROR' } }],
    });
    await expect(whatIsOn(device)).rejects.toMatchObject({ code: 'MEDIUM_ERROR' });
  });

  test('every mark amid random bytes has an answer', async () => {
    await withSeed(runSeed, async (random) => {
      const noise = randomBytes(random, SIZE);
      for (const [, patches] of handMade) {
        const sizeBytes = 1 + random(SIZE);
        const memory = new SharedArrayBuffer(sizeBytes);
        const bytes = Buffer.from(memory);
        bytes.set(noise.subarray(0, sizeBytes));
        for (const [offset, content] of patches) {
          const at = offset < 0 ? sizeBytes + offset : offset;
          const mark = typeof content === 'string' ? Buffer.from(content, 'latin1') : content;
          if (at >= 0 && at + mark.length <= sizeBytes) bytes.set(mark, at);
        }
        for (const phrase of await whatIsOn(new MemoryDevice({ sizeBytes, memory, readOnly: true }))) {
          expect(/\p{C}/u.test(phrase)).toBe(false);
        }
      }
    });
  });
});

test('a file that holds nothing known is empty', async () => {
  const path = join(folder, 'text.img');
  await writeFile(path, 'hello, world\n'.repeat(1000));
  await using device = await FileDevice.open(path, { readOnly: true });
  expect(await whatIsOn(device)).toEqual([]);
});
