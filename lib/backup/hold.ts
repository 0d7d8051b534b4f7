/**
 * Who reads a backup for long (mounts, restores, exports it), and must not lose it meanwhile: a file for each of them, `mounts/<backup>.<drawn>`, that says which process on
 * which machine it is. Prune keeps what is held. Nothing is locked: backups are made, and others pruned.
 *
 *   hold      put the file; then look for `going/<backup>`, the mark of a prune: where there is one, take the file back and have nothing;
 *             and only then look whether the backup is there
 *   prune     mark what is to go, then look who holds. Of what nobody holds it deletes the records; where something is held, nothing is
 *             deleted, and it begins anew. It marks and looks again where it has slept, or taken, so long that its marks may count for nothing.
 *             Then the marks go
 *   gone      the process is, as lock.ts finds out; or nobody can tell, and nothing was heard for half an hour. Such files go with the next
 *             prune. A clock that is half an hour wrong, on either machine, makes of one who reads one who is gone: unlike the holder of a
 *             lock, who reads does not look again, and finds chunks lost
 *   unreadable the file of one who reads holds for that half hour, and the mark of a prune for as long as it is there
 *
 * Each says what it is about to do before it looks at what the other said: so one of them sees the other, and a backup that somebody has is
 * never let go of, wherever either is killed. They may see each other, and then nobody has the backup, and it stays. Marks of a prune that is
 * gone mean nothing, and go with the next.
 */
import { RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import {
  type Claim,
  encodeClaim,
  HEARTBEAT_MS,
  isOfThisBoot,
  isOurs,
  nameOf,
  readClaim,
  STALE_MS,
  verdictOn,
  type Witness,
} from './lock.ts';
import { hexOf } from './settings.ts';
import type { Site } from './site.ts';
import { ofEach, type Store } from './store.ts';

type Place = Pick<Site, 'store' | 'host'>;

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

  static async take({ store, host }: Place, witness: Witness, backup: string): Promise<Hold> {
    const holder = await witness.self();
    const nonce = hexOf(host.randomBytes(16));
    const path = `mounts/${backup}.${nonce}`;
    const claim: Claim = { holder, nonce, heardMs: host.wallClock() };
    await store.put(path, await encodeClaim(claim));
    const hold = new Hold(store, host, path, claim);
    try {
      await refuseIfGoing({ store, host }, witness, backup);
    } catch (error) {
      await hold.release().catch(() => undefined);
      throw error;
    }
    return hold;
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
      const file = await encodeClaim({ ...claim, heardMs: host.wallClock() });
      await this.#store.replace(this.#path, file).catch(() => undefined);
    }
  }
}

/** For each backup that is held, by whom. With `tidy` the files of those who are gone are deleted. */
export async function holdersOf(
  { store, host }: Place,
  witness: Witness,
  tidy: boolean,
): Promise<ReadonlyMap<string, readonly string[]>> {
  const holders = new Map<string, string[]>();
  await ofEach(await store.list('mounts/'), async ({ name }) => {
    const backup = pattern.exec(name)?.[1];
    if (backup === undefined) return;
    const claim = await readClaim(store, name);
    if (claim === null) return;
    const isHeld = claim === 'unreadable' || (await isThere(claim, host, witness));
    if (claim === 'unreadable' && tidy) await setStandIn({ store, host }, name);
    if (isHeld) {
      const holder = claim === 'unreadable' ? null : claim.holder;
      const who = holder === null ? `somebody unknown (${name} was damaged; ${GONE})` : nameOf(holder);
      holders.set(backup, [...(holders.get(backup) ?? []), who]);
    } else if (tidy) await store.delete(name);
  });
  return holders;
}

/** In doubt whoever was heard of not long ago: who reads has nothing to go by when it was taken for gone. */
async function isThere(claim: Claim, host: Host, witness: Witness): Promise<boolean> {
  const { holder, heardMs } = claim;
  if (holder !== null) {
    if ((await verdictOn(claim, host, witness)) !== false) return true;
    if (isOfThisBoot(holder, await witness.self())) return false;
  }
  return host.wallClock() - heardMs <= STALE_MS;
}

const GONE = `gone if nothing is heard for ${STALE_MS / 60_000} minutes`;

/** In the place of a file that nobody can read: whoever wrote that writes it again within a minute, and who does not is gone in time. */
async function setStandIn({ store, host }: Place, name: string): Promise<void> {
  const file = await encodeClaim({
    holder: null,
    nonce: hexOf(host.randomBytes(16)),
    heardMs: host.wallClock(),
  });
  try {
    await store.replace(name, file);
  } catch (error) {
    // It holds until there is room.
    if (!(error instanceof RaidError) || error.code !== 'NO_SPACE') throw error;
  }
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

const markOf = (backup: string): string => `going/${backup}`;

/** By the nonces of their marks: prunes of this process that are under way. A mark may outlive one that failed. */
const pruning = new Set<string>();

/** Of a prune. */
export interface Marks {
  readonly backups: readonly string[];
  /** To be asked before each step that relies on them: a process that slept since it looked who holds has to look again. */
  readonly areBelieved: () => boolean;
}

/** Runs with marks that these backups are about to go, or as many of them as there is room for, and time. Only who has the lock does that. */
export async function whileGoing<Result>(
  { store, host }: Place,
  witness: Witness,
  backups: readonly string[],
  work: (marks: Marks) => Promise<Result>,
): Promise<Result> {
  const saidMs = host.wallClock();
  const nonce = hexOf(host.randomBytes(16));
  pruning.add(nonce);
  try {
    const holder = await witness.self();
    let noRoom: RaidError | null = null;
    const isAge = (ms: number): boolean => Math.abs(host.wallClock() - saidMs) >= ms;
    const marks = await ofEach(backups, async (backup) => {
      if (isAge(STALE_MS / 4)) return [];
      try {
        const mark = await encodeClaim({ holder, nonce, heardMs: host.wallClock() });
        await store.replace(markOf(backup), mark);
      } catch (error) {
        if (!(error instanceof RaidError) || error.code !== 'NO_SPACE') throw error;
        noRoom = error;
        return [];
      }
      return [backup];
    });
    const marked = marks.flat();
    if (noRoom !== null && marked.length === 0) throw noRoom;
    return await work({
      backups: marked,
      areBelieved: () => !isAge(STALE_MS / 2),
    });
  } finally {
    // All that there are: a prune before may have been killed. What stays means nothing once this one is over.
    await ofEach(await store.list('going/').catch(() => []), ({ name }) =>
      store.delete(name).catch(() => undefined),
    );
    pruning.delete(nonce);
  }
}

async function refuseIfGoing({ store, host }: Place, witness: Witness, backup: string): Promise<void> {
  const claim = await readClaim(store, markOf(backup));
  if (claim === 'unreadable') {
    throw new RaidError(
      'BUSY',
      `backup ${backup} in ${store.name} may be being let go of: ${markOf(backup)} cannot be read; wait until whoever prunes is done, or prune: that takes the file away`,
      { device: store.name },
    );
  }
  if (claim?.holder == null) return;
  const isGoing = isOurs(claim.holder, await witness.self())
    ? pruning.has(claim.nonce)
    : await isThere(claim, host, witness);
  if (!isGoing) return;
  throw new RaidError(
    'BUSY',
    `backup ${backup} in ${store.name} is being let go of by ${nameOf(claim.holder)}, which prunes; look again when that is done`,
    { device: store.name },
  );
}
