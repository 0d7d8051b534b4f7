/** What a map of ddrescue says was not read cannot be read. */
import { mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { FileDevice } from '../../lib/device/file.ts';
import { findRescueMap, mapIn, RescuedDevice, unreadBytes } from '../../lib/device/rescued.ts';

const folder = await mkdtemp(join(tmpdir(), 'raidsim-rescued-'));
afterAll(() => rm(folder, { recursive: true }));

const HEAD =
  '# Mapfile. Created by GNU ddrescue version 1.26\n# Command line: ddrescue /dev/sda sda.img sda.map\n';
const STATE = '0x00000000     +               1\n';
const STATUSES = '?*/-+';

interface Part {
  readonly from: number;
  readonly length: number;
  readonly status: string;
}

const numbers = [
  (value: number) => `0x${value.toString(16).toUpperCase().padStart(8, '0')}`,
  (value: number) => String(value),
  (value: number) => `0${value.toString(8)}`,
];

function textOf(parts: readonly Part[], base = 0): string {
  const write = (value: number): string => numbers[base]!(value);
  const lines = parts.map(({ from, length, status }) => `${write(from)}  ${write(length)}  ${status}`);
  return `${HEAD}# current_pos  current_status  current_pass\n${STATE}#      pos        size  status\n${lines.join('\n')}\n`;
}

const aPart = fc.record({
  from: fc.nat(3000),
  length: fc.integer({ min: 1, max: 700 }),
  status: fc.constantFrom(...STATUSES),
});

describe('a map', () => {
  test('whatever it says, and in whatever order: read is what a line with + covers of the image, and nothing else', () => {
    const image = 1024;
    fc.assert(
      fc.property(fc.array(aPart, { maxLength: 20 }), fc.nat(2), (parts, base) => {
        const ends = parts.map(({ from, length }) => from + length - ((from + length) % 512));
        const size = Math.max(image, ...ends);
        const isRead = new Array<boolean>(size).fill(false);
        for (const { from, length, status } of parts)
          if (status === '+') isRead.fill(true, from, Math.min(image, from + length));
        const { sizeBytes, unread } = mapIn(textOf(parts, base), image)!;
        expect(sizeBytes).toBe(size);
        const isUnread = new Array<boolean>(size).fill(false);
        let end = -1;
        for (const { offsetBytes, lengthBytes } of unread) {
          expect(offsetBytes).toBeGreaterThan(end);
          expect(lengthBytes).toBeGreaterThan(0);
          end = offsetBytes + lengthBytes;
          isUnread.fill(true, offsetBytes, end);
        }
        expect(isUnread).toEqual(isRead.map((is) => !is));
        for (const [from, length] of [
          [0, size],
          [170, 900],
        ] as const)
          expect(unreadBytes({ path: '', sizeBytes, unread }, from, length)).toBe(
            isUnread.slice(from, from + length).filter(Boolean).length,
          );
      }),
    );
  });

  test.each([
    ['nothing', ''],
    ['only its head', HEAD],
    ['another status', `${HEAD}${STATE}0x0 0x200 x\n`],
    ['a word more', `${HEAD}${STATE}0x0 0x200 + +\n`],
    ['a word less', `${HEAD}${STATE}0x0 0x200\n`],
    ['no number', `${HEAD}${STATE}0x0 many +\n`],
    ['no octal', `${HEAD}${STATE}08 512 +\n`],
    ['more than there is', `${HEAD}${STATE}0x0 0xFFFFFFFFFFFFFFFFFFFF +\n`],
  ])('%s is no map', (_, text) => {
    expect(mapIn(text, 4096)).toBeNull();
  });

  const whole = textOf([{ from: 0, length: 4096, status: '+' }]);
  const found = { sizeBytes: 8192, unread: [{ offsetBytes: 4096, lengthBytes: 4096 }] };

  test.each(['sda.map', 'sda.mapfile', 'sda.log', 'sda.img.map', 'sda.img.mapfile', 'mapfile'])(
    'is found as %s, also where the image is named by a link',
    async (name) => {
      const place = await mkdtemp(join(folder, 'names-'));
      await writeFile(join(place, 'sda.img'), new Uint8Array(8192));
      await symlink(join(place, 'sda.img'), join(folder, `link-${name}`));
      await writeFile(join(place, name), 'Nov 23 02:21:00 what happened\n');
      expect(await findRescueMap(join(place, 'sda.img'), 8192)).toBeNull();
      await writeFile(join(place, name), whole);
      for (const image of [join(place, 'sda.img'), join(folder, `link-${name}`)])
        expect(await findRescueMap(image, 8192)).toEqual({ path: join(place, name), ...found });
    },
  );

  test.each([
    ['broken', { 'sda.map': `${HEAD}${STATE}broken\n` }],
    [
      'of an image in which places are others',
      { 'sda.map': whole.replace('/dev/sda', '-o 0 -i 1M /dev/sda') },
    ],
    ['the same in one word', { 'sda.map': whole.replace('/dev/sda', '-fo0 -i1M /dev/sda') }],
    ['the same cut short', { 'sda.map': whole.replace('/dev/sda', '--output-pos=0 /dev/sda') }],
    ['one of two', { 'sda.map': whole, 'sda.img.map': whole }],
  ])('that is %s is refused, and the image not read without it', async (_, files) => {
    const place = await mkdtemp(join(folder, 'refused-'));
    for (const [name, text] of Object.entries(files)) await writeFile(join(place, name), text);
    await expect(findRescueMap(join(place, 'sda.img'), 8192)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
  });

  test('called mapfile may be that of another image', async () => {
    const place = await mkdtemp(join(folder, 'other-'));
    await writeFile(join(place, 'mapfile'), whole);
    await writeFile(join(place, 'sda.img'), new Uint8Array(8192));
    expect(await findRescueMap(join(place, 'sdb.img'), 8192)).toBeNull();
    await rename(join(place, 'sda.img'), join(place, 'nas.img'));
    for (const name of ['nas.img', 'sdb.img'])
      await expect(findRescueMap(join(place, name), 8192)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
  });

  test('may go on behind the end of the image: nothing of that was read', () => {
    const text = textOf([
      { from: 0, length: 4096, status: '+' },
      { from: 4096, length: 4096, status: '-' },
    ]);
    expect(mapIn(text, 4096)).toEqual(found);
    expect(mapIn(textOf([{ from: 0, length: 8192, status: '+' }]), 4096)).toEqual(found);
  });
});

test('every read that touches what was not read is refused, and says where; every other has the bytes', async () => {
  const path = join(folder, 'image');
  const bytes = Uint8Array.from({ length: 32 * 512 }, (_, index) => index >> 9);
  await writeFile(path, bytes);
  const unread = [3, 4, 9, 30].map((sector) => ({ offsetBytes: sector * 512, lengthBytes: 512 }));
  const map = { path: 'map', sizeBytes: bytes.byteLength, unread };
  await using device = new RescuedDevice(await FileDevice.open(path, { readOnly: true }), map);
  for (let from = 0; from < 32; from += 1) {
    for (let to = from + 1; to <= 32; to += 1) {
      const target = new Uint8Array((to - from) * 512);
      const read = device.read(from * 512, target);
      const isTouched = unread.some(({ offsetBytes }) => offsetBytes >= from * 512 && offsetBytes < to * 512);
      if (isTouched) await expect(read).rejects.toMatchObject({ code: 'MEDIUM_ERROR' });
      else {
        await read;
        expect(Buffer.compare(target, bytes.subarray(from * 512, to * 512))).toBe(0);
      }
    }
  }
  await expect(device.write(0, new Uint8Array(512))).rejects.toMatchObject({ code: 'READ_ONLY' });
});
