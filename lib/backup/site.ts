/** What any work on a repository needs. */
import { RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import type { ObjectCodec } from './seal.ts';
import type { Settings } from './settings.ts';
import type { Range, Store } from './store.ts';

/** Threads beside the caller's: how many, and whether there must be enough for them to do. */
export interface Threads {
  readonly count: number;
  readonly from: 'much' | 'always';
}

export interface Site extends ObjectCodec {
  readonly store: Store;
  readonly settings: Settings;
  readonly host: Host;
  readonly threads: Threads;
}

/** The file, or null where it is not there or cannot be read: redundancy may stand in for both. */
export async function getOrNull(store: Store, name: string, range?: Range): Promise<Uint8Array | null> {
  try {
    return await store.get(name, range);
  } catch (error) {
    if (error instanceof RaidError && error.code === 'MEDIUM_ERROR') return null;
    throw error;
  }
}
