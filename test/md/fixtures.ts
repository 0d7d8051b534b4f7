/** The images in fixtures/md, made by real mdadm and the real kernel: see RECIPE.md there. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';

export interface FixtureState {
  readonly says: string;
  /** As the kernel read it, before it was stopped or the power went. */
  readonly array: { readonly sizeBytes: number; readonly sha256: string };
  readonly members: readonly { readonly file: string; readonly sizeBytes: number; readonly sha256: string }[];
}

const base = new URL('../../fixtures/md/', import.meta.url);

export const fixtureStates: Readonly<Record<string, FixtureState>> = JSON.parse(
  readFileSync(new URL('manifest.json', base), 'utf8'),
).states;

/** The members of a state, by their place in its `members`. */
export function fixtureImages(state: string): readonly Uint8Array[] {
  return (fixtureStates[state] as FixtureState).members.map(({ file, sha256 }) => {
    const bytes = gunzipSync(readFileSync(new URL(file, base)));
    if (sha256Of(bytes) !== sha256) throw new Error(`${file} is not what the manifest says`);
    return new Uint8Array(bytes);
  });
}

/** What mdadm prints for member number `index`. */
export function mdadmSaid(
  state: string,
  index: number,
  question: '--examine' | '--examine-bitmap' | '--examine-badblocks',
): string {
  const texts: Record<string, string> = JSON.parse(
    readFileSync(new URL(`${state}/mdadm.json`, base), 'utf8'),
  );
  return texts[`m${index}.img ${question}`] ?? '';
}

export function sha256Of(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
