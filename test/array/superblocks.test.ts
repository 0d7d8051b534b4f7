/** A superblock is found wherever a member has one, whatever else of it cannot be read. */
import { expect, test } from 'vitest';
import { findSuperblock } from '../../lib/array/superblocks.ts';
import { FaultDevice, type FaultRule } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { superblockPlaces } from '../../lib/md/member.ts';
import type { Version1 } from '../../lib/md/superblock1.ts';
import { fixtureImages } from '../md/fixtures.ts';
import { MEMBER_SECTORS, startOf } from '../md/histories.ts';
import { writeSuperblock } from '../md/images.ts';

const versions = ['1.2', '1.1', '1.0', '0.90'] as const;
type Version = (typeof versions)[number];

function imageWith(version: Version | null): Uint8Array {
  if (version === '0.90') return fixtureImages('raid1-0.90')[0] as Uint8Array;
  const image = new Uint8Array(MEMBER_SECTORS * 512);
  const member = version === null ? undefined : startOf(1, 2, 0, version).members[0];
  if (member !== undefined) writeSuperblock(image, member.superblock);
  return image;
}

function faulty(image: Uint8Array, rules: readonly FaultRule[]): FaultDevice {
  const memory = new SharedArrayBuffer(image.byteLength);
  new Uint8Array(memory).set(image);
  return new FaultDevice(new MemoryDevice({ sizeBytes: image.byteLength, blockBytes: 512, memory }), {
    rules,
  });
}

function placeIn(image: Uint8Array, version: Version): { offsetBytes: number; lengthBytes: number } {
  const place = superblockPlaces(image.byteLength / 512).find((each) => each.version === version);
  if (place === undefined) throw new Error(`no place for ${version}`);
  return place;
}

async function outcomeOf(device: FaultDevice): Promise<string> {
  try {
    return (await findSuperblock(device)).version;
  } catch (error) {
    if (error instanceof RaidError) return error.code;
    throw error;
  }
}

const bad = { kind: 'error', code: 'MEDIUM_ERROR' } as const;

test.each([null, ...versions])('with a superblock of %s, and any of the places unreadable', async (held) => {
  const image = imageWith(held);
  for (let lost = 0; lost < 2 ** versions.length; lost += 1) {
    const unreadable = versions.filter((_, bit) => (lost & (1 << bit)) !== 0);
    const rules = unreadable.map(
      (version): FaultRule => ({ on: 'read', range: placeIn(image, version), fault: bad }),
    );
    const isThere = held !== null && !unreadable.includes(held);
    const otherwise = unreadable.length === 0 ? 'BAD_MAGIC' : 'MEDIUM_ERROR';
    expect(await outcomeOf(faulty(image, rules)), unreadable.join()).toBe(isThere ? held : otherwise);
  }
});

test.each(versions)('a place of %s that fails once is read again', async (version) => {
  const image = imageWith(version);
  const rule: FaultRule = { on: 'read', range: placeIn(image, version), when: 'once', fault: bad };
  expect(await outcomeOf(faulty(image, [rule]))).toBe(version);
});

test.each(['1.2', '1.1', '1.0'] as const)(
  'a bad sector behind a superblock of %s leaves it whole',
  async (version) => {
    const image = imageWith(version);
    const { offsetBytes } = placeIn(image, version);
    const at = (sector: number): FaultRule => {
      return { on: 'read', range: { offsetBytes: offsetBytes + sector * 512, lengthBytes: 512 }, fault: bad };
    };
    expect(await outcomeOf(faulty(image, [at(1)]))).toBe(version);
    expect(await outcomeOf(faulty(image, [at(0)]))).toBe('MEDIUM_ERROR');
  },
);

test('bytes that begin like a superblock elsewhere do not hide the one that is there', async () => {
  const image = imageWith('1.2');
  const nonsense = new DataView(image.buffer, placeIn(image, '1.0').offsetBytes);
  nonsense.setUint32(0, 0xa92b4efc, true);
  nonsense.setUint32(4, 1, true);
  nonsense.setUint32(220, 5000, true);
  expect(await outcomeOf(faulty(image, []))).toBe('1.2' satisfies Version1);
});
