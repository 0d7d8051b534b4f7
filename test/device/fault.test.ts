import { describe, expect, test } from 'vitest';
import { FaultDevice, type FaultOptions, type FaultRule } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RecordDevice } from '../../lib/device/record.ts';
import { type ErrorCode, RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';

const BLOCK = 512;
const SIZE = 64 * BLOCK;

function stack(rules: FaultRule[] = [], options: FaultOptions = {}) {
  const memory = new MemoryDevice({ sizeBytes: SIZE, blockBytes: BLOCK, name: 'disk' });
  const record = new RecordDevice(memory);
  const device = new FaultDevice(record, { ...options, rules });
  return { device, record, bytes: Buffer.from(memory.memory) };
}

const block = (value: number, count = 1) => new Uint8Array(count * BLOCK).fill(value);
const error = (code: ErrorCode) => ({ kind: 'error', code }) as const;

async function codeOf(request: Promise<unknown>): Promise<ErrorCode | 'done'> {
  return await request.then(
    () => 'done' as const,
    (failure: RaidError) => {
      expect(failure).toBeInstanceOf(RaidError);
      expect(failure.injected).toBe(true);
      return failure.code;
    },
  );
}

async function readBlock(device: FaultDevice, index: number): Promise<Uint8Array> {
  const seen = block(0xa5);
  await device.read(index * BLOCK, seen);
  return seen;
}

describe('a fault that is an error', () => {
  test('is injected, names the place, and reaches nothing below', async () => {
    const { device, record } = stack([{ on: 'read', fault: error('MEDIUM_ERROR') }]);
    const failure = await device.read(BLOCK, block(0)).catch((cause: RaidError) => cause);
    expect(failure).toMatchObject({
      code: 'MEDIUM_ERROR',
      injected: true,
      place: { device: 'disk', offsetBytes: BLOCK, lengthBytes: BLOCK },
    });
    expect(record.log).toEqual([]);
  });

  test.each(['read', 'write', 'flush', 'discard'] as const)('on %s spares everything else', async (on) => {
    const { device } = stack([{ on, fault: error('WRITE_FAILED') }]);
    const requests = {
      read: () => device.read(0, block(0)),
      write: () => device.write(0, block(1)),
      writeZeroes: () => device.writeZeroes(0, BLOCK),
      discard: () => device.discard(0, BLOCK),
      flush: () => device.flush(),
    };
    for (const [name, request] of Object.entries(requests)) {
      const hit = name === on || (name === 'writeZeroes' && on === 'write');
      expect(`${name} ${await codeOf(request())}`).toBe(`${name} ${hit ? 'WRITE_FAILED' : 'done'}`);
    }
  });

  test('on any is a disk that is pulled, and closing it still works', async () => {
    const { device } = stack([{ on: 'any', fault: error('MEMBER_GONE') }]);
    expect(await codeOf(device.read(0, block(0)))).toBe('MEMBER_GONE');
    expect(await codeOf(device.write(0, block(0)))).toBe('MEMBER_GONE');
    expect(await codeOf(device.writeZeroes(0, BLOCK))).toBe('MEMBER_GONE');
    expect(await codeOf(device.discard(0, BLOCK))).toBe('MEMBER_GONE');
    expect(await codeOf(device.flush())).toBe('MEMBER_GONE');
    await device.close();
  });

  test('hits every request that shares a byte with its range', async () => {
    const range = { offsetBytes: 2 * BLOCK + 10, lengthBytes: BLOCK };
    const { device } = stack([{ on: 'read', range, fault: error('MEDIUM_ERROR') }]);
    const hits: number[] = [];
    for (let index = 0; index < 6; index += 1) {
      if ((await codeOf(device.read(index * BLOCK, block(0)))) !== 'done') hits.push(index);
    }
    expect(hits).toEqual([2, 3]);
    expect(await codeOf(device.read(0, block(0, 8)))).toBe('MEDIUM_ERROR');
    expect(await codeOf(device.write(2 * BLOCK, block(0, 2)))).toBe('done');
  });
});

describe('when a fault fires', () => {
  async function hitsOf(when: FaultRule['when'], options: FaultOptions = {}): Promise<number[]> {
    const rule = {
      on: 'read',
      fault: error('MEDIUM_ERROR'),
      ...(when === undefined ? {} : { when }),
    } as const;
    const { device } = stack([rule], options);
    const hits: number[] = [];
    for (let index = 1; index <= 12; index += 1) {
      if ((await codeOf(device.read(0, block(0)))) !== 'done') hits.push(index);
    }
    expect(device.rules()[0]).toMatchObject({ hits: hits.length });
    return hits;
  }

  test('is always, unless said otherwise', async () => {
    expect(await hitsOf(undefined)).toHaveLength(12);
    expect(await hitsOf('forever')).toHaveLength(12);
  });
  test('once', async () => expect(await hitsOf('once')).toEqual([1]));
  test('the nth time', async () => expect(await hitsOf({ nth: 5 })).toEqual([5]));
  test('every nth time', async () => expect(await hitsOf({ every: 4 })).toEqual([4, 8, 12]));
  test('after so many', async () => expect(await hitsOf({ after: 9 })).toEqual([10, 11, 12]));

  test('by chance is the same for the same seed', async () => {
    const when = { chance: 1, outOf: 3 };
    const first = await hitsOf(when, { random: seededRandom(7) });
    expect(first.length).toBeGreaterThan(0);
    expect(first.length).toBeLessThan(12);
    expect(await hitsOf(when, { random: seededRandom(7) })).toEqual(first);
    expect(await hitsOf(when, { random: seededRandom(8) })).not.toEqual(first);
  });
});

describe('the rules of a FaultDevice', () => {
  test('are listed with what they saw and did, removed and cleared', async () => {
    const { device } = stack();
    const id = device.add({ on: 'read', when: { nth: 2 }, fault: error('MEDIUM_ERROR') });
    const other = device.add({ on: 'write', fault: error('WRITE_FAILED') });
    await codeOf(device.read(0, block(0)));
    expect(device.rules()[0]).toMatchObject({ id, seen: 1, hits: 0, spent: false });
    await codeOf(device.read(0, block(0)));
    expect(device.rules()[0]).toMatchObject({ id, seen: 2, hits: 1, spent: true });
    await codeOf(device.write(0, block(0)));
    expect(device.hits()).toBe(2);
    expect(device.hits(other)).toBe(1);
    device.remove(other);
    expect(await codeOf(device.write(0, block(0)))).toBe('done');
    device.clear();
    expect(device.rules()).toEqual([]);
  });

  test('are tried in the order in which they were added, until one takes the request over', async () => {
    const { device } = stack([
      { on: 'read', when: 'once', fault: error('SHORT_READ') },
      { on: 'read', fault: error('MEDIUM_ERROR') },
    ]);
    expect(await codeOf(device.read(0, block(0)))).toBe('SHORT_READ');
    expect(await codeOf(device.read(0, block(0)))).toBe('MEDIUM_ERROR');
    expect(device.rules().map(({ seen }) => seen)).toEqual([1, 1]);
  });

  const impossible: readonly FaultRule[] = [
    { on: 'write', fault: { kind: 'flip' } },
    { on: 'any', fault: { kind: 'replace', bytes: block(1) } },
    { on: 'read', fault: { kind: 'replace', bytes: new Uint8Array(0) } },
    { on: 'read', fault: { kind: 'flip', mask: 0x100 } },
    { on: 'read', fault: { kind: 'lost' } },
    { on: 'flush', fault: { kind: 'misdirected', byBytes: BLOCK } },
    { on: 'write', fault: { kind: 'misdirected', byBytes: 1 } },
    { on: 'flush', range: { offsetBytes: 0, lengthBytes: 1 }, fault: error('FLUSH_FAILED') },
    { on: 'read', range: { offsetBytes: 0, lengthBytes: 0 }, fault: error('MEDIUM_ERROR') },
    { on: 'read', clearedByWrite: true, fault: error('MEDIUM_ERROR') },
    { on: 'read', when: { nth: 0 }, fault: error('MEDIUM_ERROR') },
    { on: 'read', when: { chance: 0, outOf: 5 }, fault: error('MEDIUM_ERROR') },
  ];
  test.each(impossible.map((rule) => [JSON.stringify(rule), rule] as const))('refuse %s', (_text, rule) => {
    expect(() => stack([rule])).toThrow(expect.objectContaining({ code: 'BAD_ARGUMENT' }));
  });
});

describe('a bad sector that writing heals', () => {
  const bad: FaultRule = {
    on: 'read',
    range: { offsetBytes: 2 * BLOCK, lengthBytes: 3 * BLOCK },
    fault: error('MEDIUM_ERROR'),
    clearedByWrite: true,
  };

  test('is readable where it was rewritten, and only there', async () => {
    const { device } = stack([bad]);
    await device.write(3 * BLOCK, block(7));
    expect(await codeOf(device.read(2 * BLOCK, block(0)))).toBe('MEDIUM_ERROR');
    expect(await codeOf(device.read(3 * BLOCK, block(0)))).toBe('done');
    expect(await codeOf(device.read(4 * BLOCK, block(0)))).toBe('MEDIUM_ERROR');
    await device.writeZeroes(0, 8 * BLOCK);
    expect(await codeOf(device.read(0, block(0, 8)))).toBe('done');
    expect(device.rules()[0]).toMatchObject({ spent: true });
  });

  test('is not healed by a write that failed, was lost or went elsewhere', async () => {
    for (const fault of [
      error('WRITE_FAILED'),
      { kind: 'lost' } as const,
      { kind: 'misdirected', byBytes: 8 * BLOCK } as const,
    ]) {
      const { device } = stack([bad, { on: 'write', fault }]);
      await codeOf(device.write(2 * BLOCK, block(1, 3)));
      expect(await codeOf(device.read(3 * BLOCK, block(0)))).toBe('MEDIUM_ERROR');
    }
  });
});

describe('a failed request that happened all the same', () => {
  test('writes nothing, half of it or all of it', async () => {
    for (const [applied, expected] of [
      ['none', [0, 0, 0]],
      ['prefix', [1, 0, 0]],
      ['all', [1, 1, 1]],
    ] as const) {
      const { device, bytes } = stack([{ on: 'write', fault: { ...error('WRITE_FAILED'), applied } }]);
      expect(await codeOf(device.write(0, [block(1), block(1, 2)]))).toBe('WRITE_FAILED');
      expect([0, 1, 2].map((index) => bytes[index * BLOCK])).toEqual(expected);
      bytes.fill(9);
      expect(await codeOf(device.writeZeroes(0, 3 * BLOCK))).toBe('WRITE_FAILED');
      expect([0, 1, 2].map((index) => (bytes[index * BLOCK] === 0 ? 1 : 0))).toEqual(expected);
    }
  });

  test('reads a prefix and leaves the rest of the buffers alone', async () => {
    const { device, bytes } = stack([{ on: 'read', fault: { ...error('SHORT_READ'), applied: 'prefix' } }]);
    bytes.fill(7);
    const seen = block(0xa5, 4);
    expect(await codeOf(device.read(0, [seen.subarray(0, 100), seen.subarray(100)]))).toBe('SHORT_READ');
    expect(seen.lastIndexOf(7)).toBe(2 * BLOCK - 1);
    expect(seen.indexOf(0xa5)).toBe(2 * BLOCK);
  });
});

describe('silent faults', () => {
  test('flip changes the bits of exactly its range, the same at every read', async () => {
    const { device, bytes } = stack([
      { on: 'read', range: { offsetBytes: BLOCK + 5, lengthBytes: 2 }, fault: { kind: 'flip', mask: 0x80 } },
    ]);
    bytes.fill(1);
    for (let round = 0; round < 2; round += 1) {
      const seen = block(0, 3);
      await device.read(0, [seen.subarray(0, BLOCK + 6), seen.subarray(BLOCK + 6)]);
      const changed = [...seen.entries()].filter(([, byte]) => byte !== 1);
      expect(changed).toEqual([
        [BLOCK + 5, 0x81],
        [BLOCK + 6, 0x81],
      ]);
    }
    expect(bytes.every((byte) => byte === 1)).toBe(true);
  });

  test('replace puts its bytes in place, wherever a read begins', async () => {
    const { device } = stack([
      {
        on: 'read',
        range: { offsetBytes: BLOCK, lengthBytes: 2 * BLOCK },
        fault: { kind: 'replace', bytes: Uint8Array.of(1, 2, 3) },
      },
    ]);
    const whole = block(0, 4);
    await device.read(0, whole);
    expect([...whole.subarray(BLOCK - 1, BLOCK + 4)]).toEqual([0, 1, 2, 3, 1]);
    expect(whole[3 * BLOCK]).toBe(0);
    expect(await readBlock(device, 2)).toEqual(whole.subarray(2 * BLOCK, 3 * BLOCK));
  });

  test('rot that writing heals is gone once rewritten', async () => {
    const { device } = stack([
      {
        on: 'read',
        range: { offsetBytes: 0, lengthBytes: BLOCK },
        fault: { kind: 'flip' },
        clearedByWrite: true,
      },
    ]);
    expect(await readBlock(device, 0)).toEqual(block(1));
    await device.write(0, block(4));
    expect(await readBlock(device, 0)).toEqual(block(4));
  });

  test('several spoil one read together', async () => {
    const { device } = stack([
      { on: 'read', fault: { kind: 'flip', mask: 1 } },
      { on: 'read', fault: { kind: 'flip', mask: 2 } },
    ]);
    expect(await readBlock(device, 0)).toEqual(block(3));
  });

  test('a lost write is acknowledged and not done', async () => {
    const { device, record } = stack([{ on: 'write', when: 'once', fault: { kind: 'lost' } }]);
    await device.write(0, block(1), { fua: true });
    expect(record.log).toEqual([]);
    await device.write(0, block(2));
    expect(await readBlock(device, 0)).toEqual(block(2));
  });

  test('a lying cache acknowledges flushes, and fua too, and passes on neither', async () => {
    const { device, record } = stack([{ on: 'flush', fault: { kind: 'lost' } }]);
    await device.flush();
    await device.write(0, block(1), { fua: true });
    expect(record.log.map(({ operation }) => operation)).toEqual(
      new Array(2).fill({ op: 'write', offsetBytes: 0, lengthBytes: BLOCK, fua: false }),
    );
  });

  test('a misdirected write lands elsewhere and leaves its own place as it was', async () => {
    const { device, bytes } = stack([
      { on: 'write', when: 'once', fault: { kind: 'misdirected', byBytes: 3 * BLOCK } },
    ]);
    bytes.fill(9);
    await device.write(BLOCK, block(1));
    expect(await readBlock(device, 1)).toEqual(block(9));
    expect(await readBlock(device, 4)).toEqual(block(1));
  });

  test('a misdirected request stays on the device', async () => {
    const { device, bytes } = stack([
      { on: 'write', fault: { kind: 'misdirected', byBytes: 100 * BLOCK } },
      { on: 'read', fault: { kind: 'misdirected', byBytes: -100 * BLOCK } },
    ]);
    await device.write(BLOCK, block(1, 2));
    expect(bytes.indexOf(1)).toBe(SIZE - 2 * BLOCK);
    bytes[0] = 5;
    expect((await readBlock(device, 7))[0]).toBe(5);
  });
});

describe('a flush made to fail', () => {
  test('stays failed, for fua too, until it is cleared', async () => {
    const { device } = stack([{ on: 'flush', when: 'once', fault: error('FLUSH_FAILED') }]);
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
    expect(await codeOf(device.write(0, block(1), { fua: true }))).toBe('FLUSH_FAILED');
    expect(await codeOf(device.writeZeroes(0, BLOCK, { fua: true }))).toBe('FLUSH_FAILED');
    expect(await codeOf(device.write(0, block(1)))).toBe('done');
    device.clear();
    expect(await codeOf(device.flush())).toBe('done');
  });

  test('may forget, as a kernel does that reports a lost write once', async () => {
    const { device } = stack([
      { on: 'flush', when: 'once', fault: { ...error('FLUSH_FAILED'), forgets: true } },
    ]);
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
    expect(await codeOf(device.flush())).toBe('done');
  });

  test('fails a fua write whose bytes were written', async () => {
    const { device, bytes } = stack([{ on: 'flush', fault: error('FLUSH_FAILED') }]);
    expect(await codeOf(device.write(0, block(3), { fua: true }))).toBe('FLUSH_FAILED');
    expect(bytes[0]).toBe(3);
  });

  test('may have been done all the same', async () => {
    const { device, record } = stack([{ on: 'flush', fault: { ...error('FLUSH_FAILED'), applied: 'all' } }]);
    expect(await codeOf(device.flush())).toBe('FLUSH_FAILED');
    expect(record.log.at(-1)).toMatchObject({ operation: { op: 'flush' }, outcome: 'done' });
  });
});
