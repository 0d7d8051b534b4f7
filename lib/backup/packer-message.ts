/**
 * What a thread that packs (packer-thread.ts) and its master (packer-threads.ts) tell each other.
 *
 * Chunks lie in memory that both see, in trays of equal size, and so do packs, in rooms. A tray or a room belongs to one of
 * them at a time, and every message that names it hands it over: nothing is locked. What comes several at a time is told in one
 * message, which costs some 10 µs on either side.
 */
import type { RepositoryKey } from './seal.ts';

/** A chunk within a tray. */
export interface Cut {
  readonly at: number;
  readonly lengthBytes: number;
}

/** A chunk that is new. */
export interface NewCut extends Cut {
  readonly id: Uint8Array;
}

export interface PackerBirth {
  readonly trays: SharedArrayBuffer;
  readonly trayBytes: number;
  readonly rooms: readonly SharedArrayBuffer[];
  readonly key: RepositoryKey;
  readonly packBytes: number;
}

export type PackerOrder =
  | { readonly kind: 'room'; readonly room: number; readonly name: Uint8Array }
  | { readonly kind: 'hash'; readonly tray: number; readonly cuts: readonly Cut[] }
  | { readonly kind: 'store'; readonly tray: number; readonly cuts: readonly NewCut[] }
  /** Everything that was to be stored before this is in a pack when `finished` comes back. */
  | { readonly kind: 'finish' };

export type PackerAnswer =
  | { readonly kind: 'ready' }
  /** Their ids, one behind the other. */
  | { readonly kind: 'hashed'; readonly tray: number; readonly ids: Uint8Array }
  | { readonly kind: 'stored'; readonly tray: number }
  | {
      readonly kind: 'pack';
      readonly room: number;
      readonly name: string;
      readonly fileBytes: number;
      /** Null where it lies in its room. */
      readonly outgrown: Uint8Array | null;
      readonly table: Uint8Array;
      readonly sum: string;
    }
  | { readonly kind: 'finished' };
