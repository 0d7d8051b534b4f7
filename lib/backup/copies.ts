/** The copies of the settings: all of them should be there, and be alike. */
import { decodeSettings, SETTINGS_COPIES } from './settings.ts';
import { getOrNull, type Site } from './site.ts';

export function settingsPath(copy: number): string {
  return `settings.${copy}`;
}

export interface SettingsCopies {
  /** The first that is whole: what the repository was opened with. */
  readonly whole: Uint8Array | null;
  /** Paths of those that are there and are not that. */
  readonly bad: readonly string[];
  readonly missing: readonly string[];
}

export async function readSettingsCopies({
  store,
  sum,
}: Pick<Site, 'store' | 'sum'>): Promise<SettingsCopies> {
  let whole: Uint8Array | null = null;
  const bad: string[] = [];
  const missing: string[] = [];
  const listed = new Set((await store.list('settings.')).map(({ name }) => name));
  for (let copy = 0; copy < SETTINGS_COPIES; copy += 1) {
    const path = settingsPath(copy);
    const bytes = await getOrNull(store, path);
    const isWhole = bytes !== null && decodeSettings(bytes, sum, store.name) !== null;
    if (isWhole) whole ??= bytes;
    if (bytes === null && !listed.has(path)) missing.push(path);
    else if (!isWhole || Buffer.compare(bytes, whole!) !== 0) bad.push(path);
  }
  return { whole, bad, missing };
}
