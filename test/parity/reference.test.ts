import { expect, test } from 'vitest';
import type { Erasure } from '../../lib/parity/kernels.ts';
import { ReferenceKernels } from '../../lib/parity/reference.ts';
import { everyErasure, Judge, solid, tableAddress } from './stripe.ts';

const P = 10;
const Q = 11;

function byHand(): { kernels: ReferenceKernels; bytes: Uint8Array } {
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  const bytes = new Uint8Array(memory.buffer);
  bytes.set([0x01, 0x02, 0x80]);
  return { kernels: new ReferenceKernels({ memory, tableAddress }), bytes };
}

test('the example of md: D0=01 D1=02 D2=80 has P=83 and Q=3f', () => {
  const { kernels, bytes } = byHand();
  kernels.syndrome([0, 1, 2], P, Q, 1);
  expect([bytes[P], bytes[Q]]).toEqual([0x83, 0x3f]);
  expect(kernels.verify([0, 1, 2], P, Q, 1)).toBe(-1);
});

test('a gap in the Q order keeps its power of 2', () => {
  const { kernels, bytes } = byHand();
  kernels.syndrome([null, 0, null, 1, 2], P, Q, 1);
  // 2*01 + 8*02 + 10*80 = 02 + 10 + e8
  expect([bytes[P], bytes[Q]]).toEqual([0x83, 0xfa]);
});

test.each<[Erasure, number[]]>([
  [{ kind: 'D', x: 1 }, [1]],
  [{ kind: 'P' }, [P]],
  [{ kind: 'Q' }, [Q]],
  [{ kind: 'PQ' }, [P, Q]],
  [{ kind: 'DP', x: 2 }, [2, P]],
  [{ kind: 'DQ', x: 0 }, [0, Q]],
  [{ kind: 'DD', x: 0, y: 1 }, [0, 1]],
])('the example comes back from %o', (erasure, lost) => {
  const { kernels, bytes } = byHand();
  bytes[P] = 0x83;
  bytes[Q] = 0x3f;
  for (const address of lost) bytes[address] = 0xee;
  kernels.recover([0, 1, 2], P, Q, erasure, 1);
  expect([...bytes.subarray(0, 3), bytes[P], bytes[Q]]).toEqual([0x01, 0x02, 0x80, 0x83, 0x3f]);
});

test('the reference recovers every erasure of up to 16 chunks', () => {
  const judge = new Judge(2);
  for (let n = 1; n <= 16; n += 1) {
    const stripe = judge.layOut({ chunks: solid(n), lengthBytes: 3, aligned: false });
    for (const erasure of everyErasure(solid(n))) judge.checkRecovery(judge.reference, stripe, erasure);
  }
});
