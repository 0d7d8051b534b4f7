import { describe, expect, test } from 'vitest';
import { DelayDevice, type DelayOptions } from '../../lib/device/delay.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { describeLog, RecordDevice } from '../../lib/device/record.ts';

/** A clock that moves when it is told to. */
function fakeHost() {
  let now = 0;
  let sleepers: { readonly until: number; readonly wake: () => void }[] = [];
  return {
    sleep: (ms: number) =>
      new Promise<void>((wake) => {
        sleepers.push({ until: now + ms, wake });
      }),
    async advance(ms: number): Promise<void> {
      now += ms;
      const due = sleepers
        .filter(({ until }) => until <= now)
        .sort((left, right) => left.until - right.until);
      sleepers = sleepers.filter(({ until }) => until > now);
      for (const { wake } of due) {
        wake();
        await turn();
      }
    },
  };
}

/** Lets everything that can go on without time or I/O go on. */
const turn = () => new Promise((resolve) => setImmediate(resolve));

function stack(options: Omit<DelayOptions, 'host'> = {}) {
  const host = fakeHost();
  const memory = new MemoryDevice({ sizeBytes: 4096 });
  const record = new RecordDevice(memory);
  const device = new DelayDevice(record, { ...options, host });
  return { host, record, device, bytes: new Uint8Array(memory.memory) };
}

const bytesOf = (value: number) => new Uint8Array(16).fill(value);

describe('DelayDevice', () => {
  test('lets a request down only when its delay has passed', async () => {
    const { host, record, device } = stack({ delayMs: 10 });
    const read = device.read(0, bytesOf(0));
    await host.advance(9);
    expect(record.log).toEqual([]);
    await host.advance(1);
    await read;
    expect(describeLog(record.log)).toEqual(['1 > read 0+16', '1 < read 0+16: done']);
  });

  test('delays by kind, and by what a function says', async () => {
    const { host, record, device } = stack({ delayMs: { write: 10 } });
    await device.flush();
    const write = device.write(0, bytesOf(1));
    await device.read(0, bytesOf(0));
    device.setDelay((operation) => (operation.op === 'read' && operation.offsetBytes === 32 ? 5 : 0));
    const slow = device.read(32, bytesOf(0));
    await device.read(0, bytesOf(0));
    await host.advance(5);
    await slow;
    await host.advance(5);
    await write;
    expect(describeLog(record.log).filter((line) => line.includes('>'))).toEqual([
      '1 > flush',
      '2 > read 0+16',
      '3 > read 0+16',
      '4 > read 32+16',
      '5 > write 0+16',
    ]);
  });

  test('asks a delay function once for each request', async () => {
    let calls = 0;
    const { device } = stack({
      delayMs: () => {
        calls += 1;
        return 0;
      },
    });
    await device.write(0, bytesOf(1));
    expect(calls).toBe(1);
  });

  test('hangs what a hold matches until it is released, and nothing else', async () => {
    const { record, device } = stack();
    const hold = device.hold({ only: ({ op }) => op === 'write' });
    const writes = [device.write(0, bytesOf(1)), device.write(16, bytesOf(2))];
    await device.read(0, bytesOf(0));
    await turn();
    expect(hold.waiting).toEqual([
      { op: 'write', offsetBytes: 0, lengthBytes: 16, fua: false },
      { op: 'write', offsetBytes: 16, lengthBytes: 16, fua: false },
    ]);
    hold.release();
    await Promise.all(writes);
    expect(hold.waiting).toEqual([]);
    await device.write(32, bytesOf(3));
    expect(describeLog(record.log).filter((line) => line.includes('>'))).toEqual([
      '1 > read 0+16',
      '2 > write 0+16',
      '3 > write 16+16',
      '4 > write 32+16',
    ]);
  });

  test('a zombie write lands late, over what came after it, with the bytes it was sent with', async () => {
    const { device, bytes } = stack();
    const hold = device.hold();
    const buffer = bytesOf(1);
    const zombie = device.write(0, buffer);
    hold.release();
    const held = device.hold({ only: ({ op }) => op === 'write' });
    const late = device.write(16, buffer);
    await zombie;
    buffer.fill(9);
    expect(bytes[16]).toBe(0);
    held.release();
    await late;
    expect(bytes[16]).toBe(1);
  });

  test('a hold on the answer lets the request happen', async () => {
    const { device, bytes } = stack();
    const hold = device.hold({ when: 'after' });
    let answered = false;
    const write = device.write(0, bytesOf(7)).then(() => {
      answered = true;
    });
    await turn();
    expect(bytes[0]).toBe(7);
    expect(answered).toBe(false);
    hold.release();
    await write;
  });

  test('a hold released before a slow request gets to it does not hang it', async () => {
    const { host, device } = stack({ delayMs: 10 });
    const hold = device.hold();
    const read = device.read(0, bytesOf(0));
    hold.release();
    await host.advance(10);
    await read;
  });

  test('closing fails what has not gone down and answers what has', async () => {
    const { device, record } = stack({ delayMs: { read: 10 } });
    const outcomes: string[] = [];
    const note = (name: string, request: Promise<unknown>) =>
      request.then(
        () => outcomes.push(`${name} done`),
        (cause) => outcomes.push(`${name} ${cause.code}`),
      );
    note('asleep', device.read(0, bytesOf(0)));
    device.hold({ only: ({ op }) => op === 'write' });
    note('held', device.write(0, bytesOf(1)));
    device.hold({ only: ({ op }) => op === 'flush', when: 'after' });
    note('happened', device.flush());
    await turn();
    await device.close();
    expect(outcomes.sort()).toEqual(['asleep CLOSED', 'happened done', 'held CLOSED']);
    expect(describeLog(record.log)).toEqual(['1 > flush', '1 < flush: done']);
  });

  test('closing wakes a hang further down', async () => {
    const host = fakeHost();
    const lower = new DelayDevice(new MemoryDevice({ sizeBytes: 4096 }), { host });
    const upper = new DelayDevice(lower, { host });
    lower.hold();
    const read = upper.read(0, bytesOf(0)).catch((cause) => cause.code);
    await turn();
    await upper.close();
    expect(await read).toBe('CLOSED');
  });
});
