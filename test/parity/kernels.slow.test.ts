/**
 * Goal: every implementation is the reference, over whole input spaces. Method: the reference computes a stripe's parities;
 * an implementation then has to bring memory back to exactly that, after poison, for everything that can be lost.
 * Lengths lie around every size at which the code changes its way: vectors, blocks, and strips of 4, 8 and 32 KiB.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CycleKernels } from '../../lib/parity/cycle.ts';
import { type Kernels, maxChunks } from '../../lib/parity/kernels.ts';
import { selectKernels, supportedKernels } from '../../lib/parity/select.ts';
import { everyErasure, Judge, lostOf, solid, tableAddress } from './stripe.ts';

const judge = new Judge(40);
const names = supportedKernels();
const lengths = [1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 4095, 4096, 4097];
const stripLengths = [8191, 8192, 8193, 32_767, 32_768, 32_769];

function make(name: string): Kernels {
  return selectKernels(judge.memory, tableAddress, name);
}

function* shapes(counts: readonly number[], someLengths: readonly number[]) {
  for (const n of counts) {
    for (const lengthBytes of someLengths) {
      for (const aligned of [true, false]) yield { chunks: solid(n), lengthBytes, aligned };
    }
  }
}

function parities(p: number, q: number): readonly (readonly [number | null, number | null])[] {
  return [
    [p, q],
    [p, null],
    [null, q],
    [null, null],
  ];
}

const upTo16 = Array.from({ length: 16 }, (_, index) => index + 1);

describe.each(names.filter((name) => name !== 'reference'))('%s', (name) => {
  const kernels = make(name);

  test('recovers every erasure of up to 16 chunks at every length and alignment', () => {
    for (const shape of shapes(upTo16, lengths)) {
      const stripe = judge.layOut(shape);
      for (const erasure of everyErasure(shape.chunks)) {
        judge.checkRecovery(kernels, stripe, erasure);
      }
    }
  });

  test('recovers across strips', () => {
    for (const shape of shapes([2, 5, 9], stripLengths)) {
      const stripe = judge.layOut(shape);
      for (const erasure of everyErasure(shape.chunks)) {
        if (erasure.kind !== 'DD' || erasure.x === 0) judge.checkRecovery(kernels, stripe, erasure);
      }
    }
  });

  test('computes P and Q, either alone, with every set of gaps in the Q order of 7', () => {
    for (let mask = 0; mask < 128; mask += 1) {
      const chunks = Array.from({ length: 7 }, (_, index) => ((mask >> index) & 1) === 1);
      const stripe = judge.layOut({ chunks, lengthBytes: 193, aligned: mask % 2 === 0 });
      const { data, p, q, lengthBytes } = stripe;
      for (const [toP, toQ] of parities(p, q)) {
        judge.poison(toP, lengthBytes);
        judge.poison(toQ, lengthBytes);
        kernels.syndrome(data, toP, toQ, lengthBytes);
        judge.check(() => `${name} syndrome of gaps ${mask}`);
      }
      expect(kernels.verify(data, p, q, lengthBytes)).toBe(-1);
      expect(kernels.verify(data, p, null, lengthBytes)).toBe(-1);
      for (const erasure of everyErasure(chunks)) judge.checkRecovery(kernels, stripe, erasure);
    }
  });

  test('an answer that is not wanted goes nowhere, and the other is right', () => {
    for (const lengthBytes of [65, 8192 + 65]) {
      const stripe = judge.layOut({ chunks: solid(5), lengthBytes, aligned: true });
      for (const erasure of everyErasure(solid(5))) {
        for (const unwanted of lostOf(stripe, erasure)) {
          const keep = (address: number | null): number | null => (address === unwanted ? null : address);
          const wanted = lostOf(stripe, erasure).map(keep);
          if (wanted.every((address) => address === null)) continue;
          for (const address of wanted) judge.poison(address, lengthBytes);
          kernels.recover(stripe.data.map(keep), keep(stripe.p), keep(stripe.q), erasure, lengthBytes);
          judge.check(() => `${name} ${JSON.stringify(erasure)} without ${unwanted}`);
        }
      }
    }
  });

  test('recovery of D and P needs no Q to be there', () => {
    const { data, p, lengthBytes } = judge.layOut({ chunks: solid(4), lengthBytes: 100, aligned: true });
    for (let x = 0; x < 4; x += 1) {
      judge.poison(data[x]!, lengthBytes);
      kernels.recover(data, p, null, { kind: 'D', x }, lengthBytes);
      judge.check(() => `${name} raid5 D${x}`);
    }
    judge.poison(p, lengthBytes);
    kernels.recover(data, p, null, { kind: 'P' }, lengthBytes);
    judge.check(() => `${name} raid5 P`);
  });

  test('adds up every number of sources, into a target apart or any of them', () => {
    for (const shape of shapes([...upTo16, 33], [1, 17, 63, 64, 65, 257])) {
      const { data, extra, lengthBytes } = judge.layOut(shape);
      const sources = data.map((address) => address!);
      for (const target of [extra, ...sources]) {
        judge.checkAgrees(
          kernels,
          (which) => which.xor(sources, target, lengthBytes),
          () => `${name} xor of ${sources.length} into ${target}`,
        );
      }
    }
  });

  test('adds up across strips, into the last source too, and cancels what comes twice', () => {
    for (const shape of shapes([8], stripLengths)) {
      const { data, p, lengthBytes } = judge.layOut(shape);
      const sources = data.map((address) => address!);
      const last = sources[7]!;
      for (const list of [sources, [...sources, last, p, last], [last, last], [last]]) {
        judge.checkAgrees(
          kernels,
          (which) => which.xor(list, last, lengthBytes),
          () => `${name} xor of ${list.length} sources into the last`,
        );
      }
    }
  });

  test('takes as many chunks as the contract says, with and without gaps', () => {
    for (const n of [255, 256, maxChunks]) {
      for (const holes of [false, true]) {
        const chunks = Array.from({ length: n }, (_, index) => !holes || index % 2 === 0);
        const { data, p, q, lengthBytes, extra } = judge.layOut({ chunks, lengthBytes: 70, aligned: false });
        judge.poison(p, lengthBytes);
        judge.poison(q, lengthBytes);
        kernels.syndrome(data, p, q, lengthBytes);
        judge.check(() => `${name} syndrome of ${n}`);
        expect(kernels.verify(data, p, q, lengthBytes)).toBe(-1);
        expect(kernels.verify(data, p, null, lengthBytes)).toBe(-1);
        kernels.xor(
          data.filter((address) => address !== null),
          extra,
          lengthBytes,
        );
        expect(kernels.compare(extra, p, lengthBytes)).toBe(-1);
      }
    }
  });

  test('an update is multiplied right for all 255 coefficients and all 256 changes', () => {
    const stripe = judge.layOut({ chunks: solid(2), lengthBytes: 256 + 15, aligned: true });
    const { data, p, q, lengthBytes } = stripe;
    const [before, after] = data as [number, number];
    for (let k = 0; k < lengthBytes; k += 1) judge.bytes[after + k] = judge.bytes[before + k]! ^ k;
    judge.learn();
    for (let index = 0; index < 255; index += 1) {
      judge.checkAgrees(
        kernels,
        (which) => which.update(before, after, index, p, q, lengthBytes),
        () => `${name} update by 2^${index}`,
      );
    }
  });

  test('an update changes the parities that are there, and nothing else', () => {
    for (const shape of shapes([3], [...lengths, 8193])) {
      const { data, p, q, extra, lengthBytes } = judge.layOut(shape);
      for (const [toP, toQ] of parities(p, q)) {
        judge.checkAgrees(
          kernels,
          (which) => which.update(data[1]!, extra, 1, toP, toQ, lengthBytes),
          () => `${name} update of ${lengthBytes} bytes`,
        );
      }
    }
  });

  test('an update leads to the parities of the changed stripe', () => {
    const { data, p, q, extra, lengthBytes } = judge.layOut({
      chunks: solid(9),
      lengthBytes: 100,
      aligned: true,
    });
    for (let index = 0; index < 9; index += 1) {
      kernels.update(data[index]!, extra, index, p, q, lengthBytes);
      const changed = data.map((address, at) => (at === index ? extra : address));
      expect(judge.reference.verify(changed, p, q, lengthBytes)).toBe(-1);
      judge.restore();
    }
  });

  test('finds the first wrong byte, wherever it is', () => {
    for (const aligned of [true, false]) {
      const lengthBytes = 8192 + 130;
      const stripe = judge.layOut({ chunks: [true, true, false, true], lengthBytes, aligned });
      const { data, p, q, extra } = stripe;
      kernels.copy(p, extra, lengthBytes);
      expect(kernels.compare(p, extra, lengthBytes)).toBe(-1);
      const places = [...Array(200).keys(), 4096, 8190, 8191, 8192, 8193, lengthBytes - 2];
      for (const at of places) {
        for (const address of [data[0]!, data[3]!, p, q]) {
          judge.bytes[address + at]! ^= 0x40;
          // Both parities are also wrong at their ends: an earlier fault in one must win over a later one in the other.
          judge.bytes[p + lengthBytes - 1]! ^= 1;
          judge.bytes[q + lengthBytes - 1]! ^= 1;
          expect(kernels.verify(data, p, q, lengthBytes)).toBe(at);
          expect(kernels.verify(data, p, q, at)).toBe(-1);
          expect(kernels.verify(data, p, null, lengthBytes)).toBe(address === q ? lengthBytes - 1 : at);
          if (address === p) expect(kernels.compare(p, extra, lengthBytes)).toBe(at);
          judge.bytes[p + lengthBytes - 1]! ^= 1;
          judge.bytes[q + lengthBytes - 1]! ^= 1;
          judge.bytes[address + at]! ^= 0x40;
        }
      }
    }
  });

  test('knows zeros from anything else', () => {
    for (const aligned of [true, false]) {
      const { p, lengthBytes } = judge.layOut({ chunks: solid(1), lengthBytes: 300, aligned });
      for (let length = 0; length <= lengthBytes; length += 1) {
        judge.bytes.fill(1, p - 1, p + lengthBytes);
        judge.bytes.fill(0, p, p + length);
        expect(kernels.isZero(p, length)).toBe(true);
        expect(kernels.isZero(p, length + 1)).toBe(false);
        expect(kernels.isZero(p - 1, length + 1)).toBe(false);
      }
    }
  });

  test('copies and fills exactly', () => {
    for (const shape of shapes([1], [0, ...lengths, 8193])) {
      const { p, extra, lengthBytes } = judge.layOut(shape);
      judge.truth.copyWithin(extra, p, p + lengthBytes);
      kernels.copy(p, extra, lengthBytes);
      judge.check(() => `${name} copy`);
      judge.truth.fill(0xe7, p, p + lengthBytes);
      kernels.fill(p, 0xe7, lengthBytes);
      judge.check(() => `${name} fill`);
    }
  });

  test('a length of 0 does nothing', () => {
    const { data, p, q, extra } = judge.layOut({ chunks: solid(9), lengthBytes: 64, aligned: true });
    kernels.xor(
      data.filter((address) => address !== null),
      extra,
      0,
    );
    kernels.syndrome(data, p, q, 0);
    kernels.update(data[0]!, extra, 3, p, q, 0);
    for (const erasure of everyErasure(solid(9))) kernels.recover(data, p, q, erasure, 0);
    expect(kernels.compare(p, q, 0)).toBe(-1);
    expect(kernels.verify(data, p, q, 0)).toBe(-1);
    judge.check(() => `${name} nothing`);
  });

  test('any stripe, any two losses', () => {
    fc.assert(
      fc.property(
        fc.array(fc.boolean(), { minLength: 1, maxLength: 40 }),
        fc.integer({ min: 1, max: 700 }),
        fc.boolean(),
        fc.nat(),
        (chunks, lengthBytes, aligned, pick) => {
          const stripe = judge.layOut({ chunks, lengthBytes, aligned });
          const erasures = everyErasure(chunks);
          judge.checkRecovery(kernels, stripe, erasures[pick % erasures.length]!);
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe.each(names)('%s', (name) => {
  test('works beyond 2 GiB, where addresses no longer fit a signed word', () => {
    const pages = 32_768 + 1;
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    const high = new Uint8Array(memory.buffer, 2 ** 31 - 4096, 4096 + 65_536);
    const at = (offset: number): number => 2 ** 31 - 4096 + offset;
    const kernels = selectKernels(memory, 2 ** 31 - 4096 + 32_768, name);
    for (let k = 0; k < 5 * 1000; k += 1) high[k] = Math.imul(k + 1, 0x9e3779b1) >>> 24;
    const data = [at(0), at(1000), at(2000), at(3000), at(4000)];
    const before = Uint8Array.from(high.subarray(0, 5000));
    kernels.syndrome(data, at(5000), at(6000), 1000);
    kernels.fill(data[3]!, 0, 1000);
    kernels.fill(data[4]!, 0, 1000);
    expect(kernels.isZero(data[4]!, 1000)).toBe(true);
    kernels.recover(data, at(5000), at(6000), { kind: 'DD', x: 3, y: 4 }, 1000);
    expect(Uint8Array.from(high.subarray(0, 5000))).toEqual(before);
    expect(kernels.verify(data, at(5000), at(6000), 1000)).toBe(-1);
    kernels.copy(data[4]!, at(7000), 1000);
    high[7999]! ^= 1;
    expect(kernels.compare(data[4]!, at(7000), 1000)).toBe(999);
  });

  test('follows a memory that grows', () => {
    const memory = new WebAssembly.Memory({ initial: 1, maximum: 2, shared: true });
    const kernels = selectKernels(memory, 0, name);
    kernels.fill(65_000, 7, 16);
    memory.grow(1);
    kernels.xor([65_000, 65_000, 65_000], 70_000, 16);
    expect([...new Uint8Array(memory.buffer, 70_000, 16)]).toEqual(new Array(16).fill(7));
  });

  test('refuses what makes no sense', () => {
    const kernels = make(name);
    const data = [30_000, 31_000, 32_000];
    expect(() => kernels.xor([], 30_000, 16)).toThrow(/at least one source/);
    expect(() => kernels.recover(data, 33_000, null, { kind: 'DP', x: 0 }, 16)).toThrow(/has an address/);
    expect(() => kernels.recover(data, null, 33_000, { kind: 'D', x: 0 }, 16)).toThrow(/has an address/);
    expect(() => kernels.recover(data, 33_000, 34_000, { kind: 'DD', x: 1, y: 1 }, 16)).toThrow(/in Q order/);
    expect(() => kernels.recover(data, 33_000, 34_000, { kind: 'D', x: 3 }, 16)).toThrow(/one of the stripe/);
    expect(() => kernels.recover(data, null, null, { kind: 'PQ' }, 16)).toThrow(/somewhere to put/);
  });
});

test('cycling goes through all implementations, call by call', () => {
  const calls: string[] = [];
  const spy = (name: string): Kernels =>
    Object.assign(Object.create(judge.reference) as Kernels, {
      name,
      isZero: () => {
        calls.push(name);
        return true;
      },
    });
  const cycle = new CycleKernels(['a', 'b', 'c'].map(spy));
  for (let call = 0; call < 4; call += 1) cycle.isZero(0, 1);
  expect(calls).toEqual(['a', 'b', 'c', 'a']);
});

test('two instances with areas of their own do not disturb each other in the middle of a stripe', () => {
  const stripe = judge.layOut({ chunks: solid(6), lengthBytes: 300, aligned: true });
  const own = make('fastest');
  const other = selectKernels(judge.memory, 30 * 65_536, 'fastest');
  for (const erasure of everyErasure(solid(6))) {
    judge.checkRecovery(own, stripe, erasure);
    judge.checkRecovery(other, stripe, erasure);
  }
});
