/** Image n of a history in which each is mostly like the one before it. */
import { seededRandom } from '../../lib/host.ts';
import { randomBytes } from '../conformance/seed.ts';

const SIZE = 400_000;
const PIECE = 40_000;

export function imageNumber(number: number): Uint8Array {
  const image = new Uint8Array(SIZE);
  // Piece p was last changed by image number - (number - p) mod 10.
  for (let piece = 0; piece < SIZE / PIECE; piece += 1) {
    const changed = number - ((((number - piece) % 10) + 10) % 10);
    image.set(randomBytes(seededRandom(1000 + changed), PIECE - piece * 1000), piece * PIECE);
  }
  return image;
}
