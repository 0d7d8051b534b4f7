/** What a map of ddrescue says was not read cannot be read. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { FileDevice } from '../../lib/device/file.ts';
import { findRescueMap, RescuedDevice, unreadBytes, unreadIn } from '../../lib/device/rescued.ts';

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
  from: fc.nat(300),
  length: fc.integer({ min: 1, max: 60 }),
  status: fc.constantFrom(...STATUSES),
});

describe('a map', () => {
  test('whatever it says, and in whatever order: read is what a line with + covers, and nothing else', () => {
    const size = 256;
    fc.assert(
      fc.property(fc.array(aPart, { maxLength: 20 }), fc.nat(2), (parts, base) => {
        const isRead = new Array<boolean>(size).fill(false);
        for (const { from, length, status } of parts)
          if (status === '+') isRead.fill(true, from, Math.min(size, from + length));
        const found = unreadIn(textOf(parts, base), size);
        expect(found).not.toBeNull();
        const unread = new Array<boolean>(size).fill(false);
        let end = -1;
        for (const { offsetBytes, lengthBytes } of found ?? []) {
          expect(offsetBytes).toBeGreaterThan(end);
          expect(lengthBytes).toBeGreaterThan(0);
          end = offsetBytes + lengthBytes;
          unread.fill(true, offsetBytes, end);
        }
        expect(unread).toEqual(isRead.map((is) => !is));
        for (const [from, length] of [
          [0, size],
          [17, 90],
        ] as const)
          expect(unreadBytes({ path: '', unread: found ?? [] }, from, length)).toBe(
            unread.slice(from, from + length).filter(Boolean).length,
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
    expect(unreadIn(text, 4096)).toBeNull();
  });

  test('is found by the names that it has beside its image, and by its head', async () => {
    const image = join(folder, 'sda.img');
    await writeFile(join(folder, 'sda.log'), 'Nov 23 02:21:00 what happened\n');
    expect(await findRescueMap(image, 4096)).toBeNull();
    for (const name of ['sda.mapfile', 'sda.map', 'sda.img.map']) {
      await writeFile(join(folder, name), textOf([{ from: 0, length: 4096, status: '+' }]));
      expect(await findRescueMap(image, 8192)).toEqual({
        path: join(folder, name),
        unread: [{ offsetBytes: 4096, lengthBytes: 4096 }],
      });
    }
    await writeFile(join(folder, 'sda.img.map'), `${HEAD}${STATE}broken\n`);
    await expect(findRescueMap(image, 8192)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
  });
});

test('every read that touches what was not read is refused, and says where; every other has the bytes', async () => {
  const path = join(folder, 'image');
  const bytes = Uint8Array.from({ length: 32 * 512 }, (_, index) => index >> 9);
  await writeFile(path, bytes);
  const unread = [3, 4, 9, 30].map((sector) => ({ offsetBytes: sector * 512, lengthBytes: 512 }));
  await using device = new RescuedDevice(await FileDevice.open(path, { readOnly: true }), {
    path: 'map',
    unread,
  });
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
