/**
 * One writer at a time, on stores that can do no more than decide who makes a file first.
 *
 * The lock is a row of files, `locks/<number>`, and the highest number tells who holds it:
 *
 *   take      the highest is free, or its holder is gone: put the next number. Many may try, one `put` is told true. Then look
 *             again: only who finds its own number the highest holds the lock
 *   hold      say so in the file once a minute
 *   release   put the next number, "free", and delete the ones before
 *
 * Numbers only rise, and the highest is never deleted. So whoever was held up between looking and putting, for an hour if
 * need be, either finds the number taken or finds a higher one behind it, and in both cases has not got the lock. There is
 * no file to be removed under somebody's hands, which is where locks of this kind go wrong.
 *
 * Whose process is gone:
 *
 *   this machine     no process with that number that started when it says, or the machine has booted since
 *   another machine, nobody can be asked. Gone if nothing has been heard for half an hour, by this machine's clock: holders
 *   or container     write the time every minute, in a bucket or on a network share too. A clock that is half an hour
 *                    wrong can break a lock that is held: therefore
 *
 * the holder looks before it makes a backup appear, and while it deletes things once a minute, whether the lock is still its own. And who
 * has taken a lock from somebody who is not known for sure to be gone (no process of this boot of this machine) waits for longer than that.
 *
 * What is in the file has a sum. One that cannot be read may be a lock that is held and has a bit that flipped, as well as one that is
 * free: it is taken over like that of somebody who may be there. Its holder goes by its number, which nobody else can have put.
 *
 * A number can be taken by a file without a byte, which tells nothing and is in no list: a folder without hard links makes one before it
 * gives a name to what was written (directory.ts), and who is killed between leaves it for ever. The taker sees it stay so for some seconds,
 * goes past it to the number behind, and then looks at it once more. Who left it may be slow, and not dead: either he wrote before that look,
 * and the taker takes its own number back; or after it, and finds the higher number, and has not got the lock.
 *
 * Some object stores take no condition and let every `put` win. That is found out by putting one's number twice; there, the
 * taker waits, and looks whether it is still its own words that stand there.
 */
import { readFileSync } from 'node:fs';
import { readlink } from 'node:fs/promises';
import { hostname } from 'node:os';
import { errnoName } from '../device/errno.ts';
import { RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import { loadSum } from './seal.ts';
import { hexOf, hexSum, isRecord } from './settings.ts';
import type { Store } from './store.ts';

/** Who holds a lock: which run of which process on which machine. Null where a platform does not tell. */
export interface Holder {
  readonly host: string;
  readonly pid: number;
  readonly startTime: string | null;
  readonly bootId: string | null;
  readonly pidNamespace: string | null;
}

/** Knows about processes: this one, and whether another is still there. */
export interface Witness {
  self(): Promise<Holder>;
  isAlive(holder: Holder): Promise<boolean | 'unknown'>;
}

export const HEARTBEAT_MS = 60_000;
export const STALE_MS = 30 * 60_000;
/** Longer than a holder goes on without looking whether the lock is still its own. */
const DOUBT_MS = 1.5 * HEARTBEAT_MS;
const SETTLE_MS = 3000;
const ATTEMPTS = 5;

/** What is in the file of a lock, of a backup that is held, or of the mark of a prune (hold.ts). */
export interface Claim {
  readonly holder: Holder | null;
  readonly nonce: string;
  readonly heardMs: number;
}

/** Locks of this process that somebody holds: another that names this process is of work that has failed and ended. */
const held = new Set<string>();

export class Lock {
  readonly #store: Store;
  readonly #host: Host;
  readonly #number: number;
  readonly #holder: Holder;
  readonly #nonce: string;
  #toldMs: number;
  /** Whether the store lets the first `put` of a name win, and no other. */
  #isDecidedByPut = false;
  /** Those before it go while there is work to do: nobody looks at them any more. What stays goes with the next. */
  #tidying: Promise<unknown> = Promise.resolve();

  private constructor(store: Store, host: Host, number: number, holder: Holder, nonce: string) {
    this.#store = store;
    this.#host = host;
    this.#number = number;
    this.#holder = holder;
    this.#nonce = nonce;
    this.#toldMs = host.wallClock();
  }

  /** `notice` is told what is waited for, if that is for long. */
  static async take(
    store: Store,
    host: Host,
    witness: Witness,
    notice: (text: string) => void = () => undefined,
  ): Promise<Lock> {
    const holder = await witness.self();
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
      const highest = (await lockNumbers(store)).at(-1);
      const state = highest === undefined ? 'free' : await stateOf(store, host, witness, highest);
      if (state === 'changed') continue;
      const nonce = hexOf(host.randomBytes(16));
      const file = await encodeClaim({ holder, nonce, heardMs: host.wallClock() });
      // Before anybody can read it: this process would be told that nobody here holds it.
      held.add(nonce);
      let isTaken = false;
      try {
        const empty: number[] = [];
        let number = (highest ?? 0) + 1;
        let isPut = await store.put(lockPath(number), file);
        while (!isPut && (await staysEmpty(store, host, number))) {
          empty.push(number);
          number += 1;
          isPut = await store.put(lockPath(number), file);
        }
        if (!isPut) continue;
        const lock = new Lock(store, host, number, holder, nonce);
        const [isOverwritten, found] = await Promise.all([store.put(lockPath(number), file), lock.#holds()]);
        if (isOverwritten) await host.sleep(SETTLE_MS);
        const numbers = isOverwritten ? await lock.#holds() : found;
        if (numbers === null) continue;
        const claims = await Promise.all(empty.map((each) => store.get(lockPath(each))));
        if (claims.some((claim) => claim !== null)) {
          await store.delete(lockPath(number));
          continue;
        }
        lock.#isDecidedByPut = !isOverwritten;
        if (state === 'doubtful') {
          notice(
            `whoever wrote to ${store.name} last did not end well, and may still be there: waiting for ${DOUBT_MS / 1000} s to be sure`,
          );
          await host.sleep(DOUBT_MS);
          if ((await lock.#holds()) === null) continue;
        }
        lock.#tidying = deleteBelow(store, [...empty, ...numbers], number).catch(() => undefined);
        isTaken = true;
        return lock;
      } finally {
        if (!isTaken) held.delete(nonce);
      }
    }
    throw new RaidError('BUSY', `the lock of ${store.name} changes hands all the time; try again`, {
      device: store.name,
    });
  }

  /** To be called now and then while working: tells others that the holder is there. */
  async touch(): Promise<void> {
    const now = this.#host.wallClock();
    if (Math.abs(now - this.#toldMs) < HEARTBEAT_MS) return;
    this.#toldMs = now;
    await this.check();
    await this.#store.replace(
      lockPath(this.#number),
      await encodeClaim({ holder: this.#holder, nonce: this.#nonce, heardMs: now }),
    );
  }

  /** Throws BUSY where somebody took the lock over: a process that slept may have been given up. */
  async check(): Promise<void> {
    if ((await this.#holds()) !== null) return;
    throw new RaidError(
      'BUSY',
      `${this.#store.name}: somebody else took the lock over while this process did not answer; nothing is lost, start again`,
      { device: this.#store.name },
    );
  }

  async release(): Promise<void> {
    await this.#tidying;
    held.delete(this.#nonce);
    // Where somebody took it over, the next number is taken, or less than the highest and so of no meaning.
    if (!this.#isDecidedByPut && (await this.#holds()) === null) return;
    const free = await encodeClaim({
      holder: null,
      nonce: hexOf(this.#host.randomBytes(16)),
      heardMs: this.#host.wallClock(),
    });
    if (await this.#store.put(lockPath(this.#number + 1), free))
      await this.#store.delete(lockPath(this.#number));
  }

  /** The numbers that there are, if this one is the highest; else null. */
  async #holds(): Promise<readonly number[] | null> {
    const [numbers, claim] = await Promise.all([
      lockNumbers(this.#store),
      readClaim(this.#store, lockPath(this.#number)),
    ]);
    const isMine = claim === 'unreadable' ? this.#isDecidedByPut : claim?.nonce === this.#nonce;
    return numbers.at(-1) === this.#number && isMine ? numbers : null;
  }
}

function lockPath(number: number): string {
  return `locks/${String(number).padStart(12, '0')}`;
}

/** The highest last. */
async function lockNumbers(store: Store): Promise<readonly number[]> {
  return (await store.list('locks/'))
    .map(({ name }) => Number(name.slice('locks/'.length)))
    .filter((number) => Number.isSafeInteger(number))
    .sort((left, right) => left - right);
}

async function deleteBelow(store: Store, numbers: readonly number[], number: number): Promise<void> {
  for (const old of numbers) if (old < number) await store.delete(lockPath(old));
}

/** Whether a number is taken by a file without a byte, by nobody who is about to write them. */
async function staysEmpty(store: Store, host: Host, number: number): Promise<boolean> {
  const isEmpty = async (): Promise<boolean> =>
    (await store.get(lockPath(number))) === null && ((await lockNumbers(store)).at(-1) ?? 0) < number;
  if (!(await isEmpty())) return false;
  await host.sleep(SETTLE_MS);
  return await isEmpty();
}

/** Refuses where it is held. `changed`: it has gone, so that another is the highest. `doubtful`: whoever held it may still be there. */
async function stateOf(
  store: Store,
  host: Host,
  witness: Witness,
  number: number,
): Promise<'free' | 'doubtful' | 'changed'> {
  const file = await readClaim(store, lockPath(number));
  if (file === null) return 'changed';
  if (file === 'unreadable') return 'doubtful';
  if (file.holder === null) return 'free';
  const { holder, nonce } = file;
  const self = await witness.self();
  const verdict = isOurs(holder, self) ? held.has(nonce) : await verdictOn(file, host, witness);
  if (verdict === false) return isOfThisBoot(holder, self) ? 'free' : 'doubtful';
  const silentMs = host.wallClock() - file.heardMs;
  const advice =
    verdict === 'unknown'
      ? `it was heard of ${Math.max(0, Math.round(silentMs / 1000))} s ago; if it is gone, its lock ends ${STALE_MS / 60_000} minutes after that`
      : 'wait until it is done, or end it and try again';
  throw new RaidError('BUSY', `${store.name} is being written by ${nameOf(holder)}; ${advice}`, {
    device: store.name,
  });
}

/** Whether this process said it: then it knows by itself whether that still holds. */
export function isOurs(holder: Holder, self: Holder): boolean {
  return (
    holder.pid === self.pid &&
    holder.startTime === self.startTime &&
    holder.bootId === self.bootId &&
    holder.host === self.host
  );
}

/** Then it is known whether it is there. Machines have names, and clocks, that are not theirs alone. */
export function isOfThisBoot(holder: Holder, self: Holder): boolean {
  return holder.bootId !== null && holder.bootId === self.bootId && holder.pidNamespace === self.pidNamespace;
}

/** Whether whoever said this is still there; `unknown` only where it was heard of not long ago. */
export async function verdictOn(
  { holder, heardMs }: Claim,
  host: Host,
  witness: Witness,
): Promise<boolean | 'unknown'> {
  if (holder === null) return false;
  const verdict = await witness.isAlive(holder);
  return verdict === 'unknown' && host.wallClock() - heardMs > STALE_MS ? false : verdict;
}

export function nameOf({ pid, host }: Holder): string {
  return `process ${pid} on ${JSON.stringify(host)}`;
}

export async function encodeClaim(file: Claim): Promise<Uint8Array> {
  return Buffer.from(`${JSON.stringify({ ...file, sum: await sumOf(file) })}\n`);
}

/** Of a claim as it is written, but for the sum. */
async function sumOf(file: object): Promise<string> {
  return hexSum((await loadSum())(Buffer.from(JSON.stringify(file))));
}

/** Null where there is none. */
export async function readClaim(store: Store, name: string): Promise<Claim | 'unreadable' | null> {
  let bytes: Uint8Array | null;
  try {
    bytes = await store.get(name);
  } catch (error) {
    if (error instanceof RaidError && error.code === 'MEDIUM_ERROR') return 'unreadable';
    throw error;
  }
  return bytes === null ? null : ((await decodeClaim(bytes)) ?? 'unreadable');
}

/** There are claims of older versions, which have no sum. */
async function decodeClaim(bytes: Uint8Array): Promise<Claim | null> {
  let found: unknown;
  try {
    found = JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch {
    return null;
  }
  if (!isRecord(found)) return null;
  const { sum, ...claim } = found;
  if (sum !== undefined && sum !== (await sumOf(claim))) return null;
  const { holder, nonce, heardMs } = claim;
  if (typeof nonce !== 'string' || typeof heardMs !== 'number') return null;
  if (holder !== null && !isHolder(holder)) return null;
  return { holder, nonce, heardMs };
}

function isHolder(found: unknown): found is Holder {
  if (!isRecord(found)) return false;
  const { host, pid, startTime, bootId, pidNamespace } = found;
  return (
    typeof host === 'string' &&
    typeof pid === 'number' &&
    [startTime, bootId, pidNamespace].every((value) => value === null || typeof value === 'string')
  );
}

/**
 * Whether a holder is there, from what it said of itself, what this process is, and when a process with its number started
 * here (null: there is none; `some`: there is one, and no more is known).
 *
 *   boot         machine     pid namespace    process                alive
 *   the same     any         the same         started when it says   yes
 *   the same     any         the same         did not, or is none    no
 *   the same     any         another          any                    unknown
 *   another      the same    any              any                    no: booted since
 *   another      another     any              any                    unknown
 *   not known    the same    any              some                   yes
 *   not known    the same    any              none                   no
 *   not known    another     any              any                    unknown
 */
export function judgeHolder(holder: Holder, here: Holder, started: string | null): boolean | 'unknown' {
  const sameMachine = holder.host === here.host;
  if (holder.bootId === null || here.bootId === null) return sameMachine ? started !== null : 'unknown';
  if (holder.bootId !== here.bootId) return sameMachine ? false : 'unknown';
  if (holder.pidNamespace !== here.pidNamespace) return 'unknown';
  return started !== null && (holder.startTime === null || started === holder.startTime);
}

export const processWitness: Witness = {
  async self() {
    const bootId = textOf('/proc/sys/kernel/random/boot_id').trim();
    return {
      host: hostname(),
      pid: process.pid,
      startTime: startTimeOf(process.pid),
      bootId: bootId === '' ? null : bootId,
      pidNamespace: await readlink('/proc/self/ns/pid').catch(() => null),
    };
  },
  async isAlive(holder) {
    const here = await processWitness.self();
    return judgeHolder(
      holder,
      here,
      here.startTime === null ? someStart(holder.pid) : startTimeOf(holder.pid),
    );
  },
};

function someStart(pid: number): string | null {
  try {
    process.kill(pid, 0);
    return 'some';
  } catch (cause) {
    return errnoName(cause) === 'EPERM' ? 'some' : null;
  }
}

/** Field 22 of /proc/<pid>/stat; null for a process that is gone, or dead and not yet reaped. */
function startTimeOf(pid: number): string | null {
  const stat = textOf(`/proc/${pid}/stat`);
  // The name in field 2 may hold anything: fields count from its last `)`.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const state = fields[0] ?? '';
  return state === '' || state === 'Z' || state === 'X' ? null : (fields[19] ?? null);
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
