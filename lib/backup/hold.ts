/**
 * Who reads a backup for long (mounts, restores, exports it), and must not lose it meanwhile: a file for each of them, `mounts/<backup>.<drawn>`, that says which process on
 * which machine it is. Prune keeps what is held. Nothing is locked: backups are made, and others pruned.
 *
 *   hold      put the file, and only then look whether the backup is there
 *   prune     look who holds, delete records, look again, and put back the record of what is held by now. Who put a file before the second
 *             look has the backup; who puts it later finds none
 *   gone      the process is, as lock.ts finds out; or nobody can tell, and nothing was heard for half an hour. Such files go with the next prune
 */
import { RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import {
  type Claim,
  decodeClaim,
  encodeClaim,
  HEARTBEAT_MS,
  nameOf,
  verdictOn,
  type Witness,
} from './lock.ts';
import { hexOf } from './settings.ts';
import { getOrNull, type Site } from './site.ts';
import { ofEach, type Store } from './store.ts';

const pattern = /^mounts\/([0-9a-f]{16})\.[0-9a-f]{32}$/;

export class Hold {
  readonly #store: Store;
  readonly #path: string;
  readonly #ending = new AbortController();
  readonly #telling: Promise<void>;

  private constructor(store: Store, host: Host, path: string, claim: Claim) {
    this.#store = store;
    this.#path = path;
    this.#telling = this.#tell(host, claim);
  }

  static async take({ store, host }: Site, witness: Witness, backup: string): Promise<Hold> {
    const holder = await witness.self();
    const nonce = hexOf(host.randomBytes(16));
    const path = `mounts/${backup}.${nonce}`;
    const claim: Claim = { holder, nonce, heardMs: host.wallClock() };
    await store.put(path, encodeClaim(claim));
    return new Hold(store, host, path, claim);
  }

  async release(): Promise<void> {
    this.#ending.abort();
    await this.#telling;
    await this.#store.delete(this.#path);
  }

  /** That it is there, for those who cannot ask. What fails once is told again a minute later. */
  async #tell(host: Host, claim: Claim): Promise<void> {
    const { signal } = this.#ending;
    for (;;) {
      await host.sleep(HEARTBEAT_MS, signal);
      if (signal.aborted) return;
      const file = encodeClaim({ ...claim, heardMs: host.wallClock() });
      await this.#store.replace(this.#path, file).catch(() => undefined);
    }
  }
}

/** For each backup that is held, by whom. With `tidy` the files of those who are gone are deleted. */
export async function holdersOf(
  { store, host }: Site,
  witness: Witness,
  tidy: boolean,
): Promise<ReadonlyMap<string, readonly string[]>> {
  const holders = new Map<string, string[]>();
  await ofEach(await store.list('mounts/'), async ({ name }) => {
    const backup = pattern.exec(name)?.[1];
    if (backup === undefined) return;
    const claim = decodeClaim(await getOrNull(store, name));
    const verdict = claim === null ? false : await verdictOn(claim, host, witness);
    if (claim?.holder != null && verdict !== false)
      holders.set(backup, [...(holders.get(backup) ?? []), nameOf(claim.holder)]);
    else if (tidy) await store.delete(name);
  });
  return holders;
}

export function refuseIfHeld(
  where: string,
  backup: string,
  holders: ReadonlyMap<string, readonly string[]>,
): void {
  const who = holders.get(backup);
  if (who === undefined) return;
  throw new RaidError(
    'BUSY',
    `backup ${backup} in ${where} is read by ${who.join(', ')}; wait until that is done, end it, or let the backup stay`,
    { device: where },
  );
}
