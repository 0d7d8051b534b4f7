/**
 * Chance in tests. A run draws a new seed, so that every run tries something new; a failure prints the seed and the
 * command that brings it back. `RAIDSIM_SEED` fixes it for the whole run.
 */
import { relative } from 'node:path';
import { expect } from 'vitest';
import { realHost, seededRandom } from '../../lib/host.ts';

export type Random = (below: number) => number;

const fixed = process.env['RAIDSIM_SEED'];
export const runSeed = fixed === undefined ? realHost.random(2 ** 31) : Number(fixed);

/** Runs a test body; what it throws says how to run it again. */
export async function withSeed(seed: number, run: (random: Random) => Promise<void> | void): Promise<void> {
  try {
    await run(seededRandom(seed));
  } catch (failure) {
    const { currentTestName = '', testPath = '' } = expect.getState();
    const name = currentTestName.split(' > ').at(-1) ?? '';
    const command = `RAIDSIM_SEED=${seed} npx vitest run ${relative(process.cwd(), testPath)} -t '${name}'`;
    const message = failure instanceof Error ? failure.message : String(failure);
    throw new Error(`${message}\n\nreplay: ${command}\n(in: ${currentTestName})`, { cause: failure });
  }
}

export function randomBytes(random: Random, lengthBytes: number): Uint8Array {
  const bytes = new Uint8Array(lengthBytes);
  const words = new Uint32Array(bytes.buffer, 0, lengthBytes >> 2);
  let state = random(2 ** 31) | 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state;
  };
  for (let index = 0; index < words.length; index += 1) words[index] = next();
  for (let index = words.length * 4; index < lengthBytes; index += 1) bytes[index] = next();
  return bytes;
}
