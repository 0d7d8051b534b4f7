import { describe, expect, test } from 'vitest';
import { FaultDevice } from '../../lib/device/fault.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { describeLog, happenedBefore, RecordDevice } from '../../lib/device/record.ts';

const at = (offset: number) => (operation: { op: string; offsetBytes?: number }) =>
  operation.op === 'write' && operation.offsetBytes === offset;
const bytesOf = (value: number) => new Uint8Array(16).fill(value);

describe('RecordDevice', () => {
  test('writes down every operation, its start and its outcome, in order', async () => {
    const device = new RecordDevice(new MemoryDevice({ sizeBytes: 4096, capacityBytes: 8192 }));
    await device.write(0, [bytesOf(1), bytesOf(2)], { fua: true });
    await Promise.all([device.read(0, bytesOf(0)), device.flush()]);
    await device.discard(0, 16);
    await device.writeZeroes(16, 16, { mayUnmap: false });
    await device.blockStatus(0, 4096);
    await device.resize(8192);
    expect(describeLog(device.log)).toEqual([
      '1 > write 0+32 fua',
      '1 < write 0+32 fua: done',
      '2 > read 0+16',
      '3 > flush',
      '2 < read 0+16: done',
      '3 < flush: done',
      '4 > discard 0+16',
      '4 < discard 0+16: done',
      '5 > writeZeroes 16+16',
      '5 < writeZeroes 16+16: done',
      '6 > blockStatus 0+4096',
      '6 < blockStatus 0+4096: done',
      '7 > resize 8192',
      '7 < resize 8192: done',
    ]);
    expect(structuredClone(device.log)).toEqual(device.log);
    device.clear();
    expect(device.log).toEqual([]);
  });

  test('does not write down what the contract refuses', async () => {
    const device = new RecordDevice(new MemoryDevice({ sizeBytes: 4096 }));
    await expect(device.read(4096, bytesOf(0))).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    expect(device.log).toEqual([]);
  });

  test('with capture, keeps the bytes as they were', async () => {
    const device = new RecordDevice(new MemoryDevice({ sizeBytes: 4096 }), { capture: true });
    const buffer = bytesOf(1);
    await device.write(0, buffer);
    buffer.fill(0xa5);
    await device.read(0, buffer);
    buffer.fill(9);
    const data = device.log.flatMap((entry) => (entry.data === undefined ? [] : [entry.data]));
    expect(data).toEqual([bytesOf(1), bytesOf(1)]);
  });

  test('says how a request failed', async () => {
    const faulty = new FaultDevice(new MemoryDevice({ sizeBytes: 4096 }), {
      rules: [{ on: 'write', fault: { kind: 'error', code: 'NO_SPACE' } }],
    });
    const device = new RecordDevice(faulty);
    await expect(device.write(0, bytesOf(1))).rejects.toMatchObject({ code: 'NO_SPACE' });
    expect(device.log.at(-1)).toMatchObject({ event: 'finish', outcome: 'NO_SPACE' });
  });
});

describe('happenedBefore', () => {
  async function logOf(run: (device: RecordDevice) => Promise<unknown>) {
    const faulty = new FaultDevice(new MemoryDevice({ sizeBytes: 4096 }), {
      rules: [
        {
          on: 'write',
          range: { offsetBytes: 1024, lengthBytes: 1 },
          fault: { kind: 'error', code: 'NO_SPACE' },
        },
      ],
    });
    const device = new RecordDevice(faulty);
    await run(device);
    return device.log;
  }

  test('holds when the first was done before the other was started', async () => {
    const log = await logOf(async (device) => {
      await device.write(0, bytesOf(1));
      await device.write(512, bytesOf(2));
    });
    expect(happenedBefore(log, at(0), at(512))).toBe(true);
    expect(happenedBefore(log, at(512), at(0))).toBe(false);
  });

  test('does not hold for requests that were in flight together', async () => {
    const log = await logOf((device) =>
      Promise.all([device.write(0, bytesOf(1)), device.write(512, bytesOf(2))]),
    );
    expect(happenedBefore(log, at(0), at(512))).toBe(false);
  });

  test('does not hold when the first failed', async () => {
    const log = await logOf(async (device) => {
      await device.write(1024, bytesOf(1)).catch(() => {});
      await device.write(512, bytesOf(2));
    });
    expect(happenedBefore(log, at(1024), at(512))).toBe(false);
  });

  test('does not hold when either never happened', async () => {
    const log = await logOf((device) => device.write(0, bytesOf(1)));
    expect(happenedBefore(log, at(0), at(512))).toBe(false);
    expect(happenedBefore(log, at(512), at(0))).toBe(false);
  });
});
