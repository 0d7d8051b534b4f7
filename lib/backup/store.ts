/**
 * Where the files of a repository are: a folder, or a bucket of an object store. Five methods, and no more is asked of
 * either.
 *
 *   get      the whole file or a range of it; null if there is none
 *   put      all of a new file or nothing, durable when it resolves; false, and nothing changed, where the name is taken
 *   replace  the same over whatever has the name: before, the old file; after, the new one; never a mixture, never neither
 *   list     names and sizes; what was put or deleted before the call is or is not in it, truthfully
 *   delete   durable when it resolves; a file that is not there is deleted already
 *
 * `put` decides who is first, and everything that must be decided between two writers is a `put` (lock.ts).
 *
 * A call that fails may have happened nevertheless: an answer can be lost. So files are written under names that nobody has
 * used before, and whoever meets the leftovers of a call that "failed" finds a whole file.
 *
 * What is wrong with one file is MEDIUM_ERROR: redundancy can stand in. What is wrong with the store as a whole is
 * STORE_FAILED, READ_ONLY or NO_SPACE: nothing is known to be lost then, and nothing may be concluded from it.
 */
import { assert } from '../errors.ts';

export interface Range {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export interface StoredFile {
  readonly name: string;
  readonly sizeBytes: number;
}

export interface Store {
  /** For messages: a path or a URL. */
  readonly name: string;
  /** Fewer bytes than asked for where the file ends before the range does. */
  get(name: string, range?: Range): Promise<Uint8Array | null>;
  put(name: string, bytes: Uint8Array): Promise<boolean>;
  replace(name: string, bytes: Uint8Array): Promise<void>;
  /** Files whose name begins so, sorted by name. */
  list(prefix: string): Promise<readonly StoredFile[]>;
  delete(name: string): Promise<void>;
}

/** Small files that are asked for at a time: what one of them takes is mostly waiting. */
const AT_ONCE = 16;

/** What `ask` says of each, in their order. None is under way any more when it fails. */
export async function ofEach<T, R>(items: readonly T[], ask: (item: T) => Promise<R>): Promise<R[]> {
  const answers: R[] = [];
  let next = 0;
  const work = async (): Promise<void> => {
    while (next < items.length) {
      const index = next++;
      try {
        answers[index] = await ask(items[index]!);
      } catch (error) {
        next = items.length;
        throw error;
      }
    }
  };
  const works = Array.from({ length: Math.min(AT_ONCE, items.length) }, work);
  const failed = (await Promise.allSettled(works)).find(({ status }) => status === 'rejected');
  if (failed?.status === 'rejected') throw failed.reason;
  return answers;
}

const pattern = /^(?:[a-z]+\/)?[0-9a-z]+(?:\.[0-9a-z]+)?$/;

/** Names are made here and nowhere else: at most one folder deep, nothing that any file system or URL would take amiss. */
export function checkName(name: string): void {
  assert(pattern.test(name), 'names of files in a store are plain');
}

export function isFileName(name: string): boolean {
  return pattern.test(name);
}
