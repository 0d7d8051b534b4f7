/**
 * Who is wrong, where redundancy does not agree with itself.
 *
 * Parity. The differences of a row are a row. With P' and Q' computed from the data as it is:
 *
 *   deltaP = P + P'        deltaQ = Q + Q'
 *
 * If only data chunk z is wrong, by an error E, then P' is off by E and Q' by 2^z*E: deltaP = E, deltaQ = 2^z*E. That is what P
 * and Q would be of a row whose only data is E, in place z. If only P is wrong, deltaQ is zero; if only Q is, deltaP is.
 * So each suspicion is put to the test as a row of its own, over all bytes at once, and one that holds is a verdict:
 *
 *   deltaQ = 0, deltaP not             P
 *   deltaP = 0, deltaQ not             Q
 *   deltaQ = 2^z*deltaP                data chunk z
 *   none of these                      more than one is wrong; nobody can say which
 *
 * By hand, with D0=01 D1=02 D2=80 P=83 Q=3f (reference.ts): D1 reads as 07. P' = 86, Q' = 01 + 2*07 + 3a = 35, so deltaP = 05 and
 * deltaQ = 0a = 2^1*05: chunk 1 is wrong.
 *
 * How sure is it? One wrong chunk is always named. Two wrong chunks x and y can look like one innocent third. A byte that
 * only x has wrong accuses x and a byte that only y has wrong accuses y, which is no verdict; so they must be wrong in the very
 * same bytes. In such a byte the accusation depends on the ratio of the two errors, of which there are 255: one for
 * each innocent chunk, none for x or y, and the rest accuse nobody. With n data chunks n of the n + 2 are innocent, and for m
 * such bytes with errors at random the chance of a wrong name is n / 255^m: 3 bytes among 10 chunks, one in 2 million.
 *
 * From 255 data chunks on, coefficients repeat, and chunks 0 and 255 accuse each other: no verdict.
 *
 * Copies. More than half that agree are right. Otherwise, and always with two copies, nobody can say.
 */
import type { Kernels } from './kernels.ts';

/** A data chunk by its place in Q order. */
export type Suspect =
  | { readonly kind: 'data'; readonly place: number }
  | { readonly kind: 'p' }
  | { readonly kind: 'q' };

/** Addresses of a row, of which everything is there. */
export interface WholeRow {
  /** In Q order; null is a chunk of zeros, which is never suspected. */
  readonly data: readonly (number | null)[];
  readonly p: number;
  readonly q: number;
  /** Room for deltaP and deltaQ. */
  readonly deltaP: number;
  readonly deltaQ: number;
}

/** The one chunk that is wrong in these bytes; null where it is none, or not one alone. */
export function suspectOf(kernels: Kernels, row: WholeRow, lengthBytes: number): Suspect | null {
  const { data, p, q, deltaP, deltaQ } = row;
  kernels.syndrome(data, deltaP, deltaQ, lengthBytes);
  kernels.xor([deltaP, p], deltaP, lengthBytes);
  kernels.xor([deltaQ, q], deltaQ, lengthBytes);
  const pAgrees = kernels.isZero(deltaP, lengthBytes);
  const qAgrees = kernels.isZero(deltaQ, lengthBytes);
  if (pAgrees && qAgrees) return null;
  if (qAgrees) return { kind: 'p' };
  if (pAgrees) return { kind: 'q' };

  const suspects = data.flatMap((address, place) => {
    if (address === null) return [];
    const alone = data.slice(0, place + 1).fill(null);
    alone[place] = deltaP;
    return kernels.verify(alone, deltaP, deltaQ, lengthBytes) < 0 ? [place] : [];
  });
  const [place] = suspects;
  return place === undefined || suspects.length > 1 ? null : { kind: 'data', place };
}

/** Which copies differ from the others; `outvoted`, or where there is no majority, from the first one. */
export interface OddCopies {
  readonly places: readonly number[];
  readonly outvoted: boolean;
}

export function oddCopiesOf(kernels: Kernels, copies: readonly number[], lengthBytes: number): OddCopies {
  // The first copy that each one is equal to.
  const like: number[] = [];
  for (const [place, address] of copies.entries()) {
    const same = like.findIndex(
      (first, other) => first === other && kernels.compare(copies[other]!, address, lengthBytes) < 0,
    );
    like.push(same < 0 ? place : same);
  }
  const voters = (first: number): number => like.filter((other) => other === first).length;
  const majority = like.find((first) => 2 * voters(first) > copies.length);
  const right = majority ?? 0;
  const places = copies.flatMap((_, place) => (like[place] === right ? [] : [place]));
  return { places, outvoted: majority !== undefined };
}
