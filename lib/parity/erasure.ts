/** What an erasure asks of the arguments that come with it; the same for every implementation. */
import { assert } from '../errors.ts';
import type { Erasure } from './kernels.ts';

type Addresses = readonly (number | null)[];

export function checkErasure(data: Addresses, p: number | null, q: number | null, erasure: Erasure): void {
  const lost: (number | null)[] = [];
  if ('x' in erasure) {
    assert(erasure.x >= 0 && erasure.x < data.length, 'a lost chunk is one of the stripe');
    lost.push(data[erasure.x]!);
  }
  if (erasure.kind === 'DD') {
    assert(erasure.y > erasure.x && erasure.y < data.length, 'two lost chunks come in Q order');
    assert(erasure.y < 255, 'from 255 on, coefficients of Q repeat');
    lost.push(data[erasure.y]!);
  }
  if (erasure.kind === 'P' || erasure.kind === 'PQ' || erasure.kind === 'DP') lost.push(p);
  if (erasure.kind === 'Q' || erasure.kind === 'PQ' || erasure.kind === 'DQ') lost.push(q);
  assert(
    lost.some((address) => address !== null),
    'a recovery has somewhere to put an answer',
  );
}

/** The data with zeros for what is lost. */
export function withoutLost(data: Addresses, erasure: Erasure): (number | null)[] {
  const left = [...data];
  if ('x' in erasure) left[erasure.x] = null;
  if (erasure.kind === 'DD') left[erasure.y] = null;
  return left;
}

/** A parity that is there, because the erasure does not name it. */
export function known(parity: number | null): number {
  assert(parity !== null, 'a parity that is not lost has an address');
  return parity;
}
