/**
 * An NBD export as a device: a member on another machine, or in another program. Many requests are in flight over one
 * connection, and answers come in any order.
 *
 * A connection that was lost
 *
 *   the server closed it        connect again, a bounded number of times; then
 *                               1. the export must be what it was: size, abilities, and the witnesses (client-memory.ts)
 *                               2. what was acknowledged and not flushed is written again
 *                               3. what was not answered is sent again, in the order in which it was sent
 *   it fell silent              the device has failed. Every request ends with MEMBER_GONE, now and later, and nothing
 *   it broke the protocol       connects again: whoever wants it back opens a new device
 *
 * Why a write may be sent twice. It was not answered, so nobody relies on the old or the new; it has the same bytes at
 * the same place, so done twice is done once. What must not be is that the first sending comes about *late*, over
 * something newer. NBD has nothing to forbid that: no token, no generation, and the bytes of a destroyed socket may still
 * lie in the server's queues. What is left is the server's own word: it closes a connection when it has ended its
 * requests (it must after DISC, a process that dies has ended them all), and only then are they sent again.
 * Silence says nothing: a server that hangs may do everything when it wakes up. Therefore a timeout is never followed by
 * another try, here or by who holds the device; the array fails the member, on record, and a member that is brought back gets
 * what it has missed. Limits: a proxy or firewall that closes one side speaks for a server that has not, a server that
 * closes before its own writes have ended gives a word that it does not keep; and a server that hung should be ended
 * before its export is added again, since its late writes would land in the new life.
 *
 * What a flush says. A flush covers what was acknowledged, on whichever connection: step 2 comes before a flush is sent
 * again, so the server that says "durable" has been given everything anew. Where that cannot be done, because more was
 * unflushed than is kept, or a write had failed, the device fails at once rather than at the next flush: until then reads
 * would have brought back what was there before the lost writes. A flush that the server refuses fails for ever after.
 *
 * Time. Every request is to be answered within `timeoutMs` of its being sent. That is counted in ticks of a clock of our own,
 * eight to the timeout, and not read from one: when this process was stopped, or too busy to look, it is one tick older and
 * no more, so its own sleep never convicts a server. The same holds for the time in which a connection is to be made, looked
 * at and fenced.
 *
 * A trim leaves, says NBD, content of which nothing may be assumed, and a discard here leaves what was or zeros. So a discard
 * is sent as zeros to be written if that is fast (FAST_ZERO, which releases the space), and not at all where a server lacks that.
 */

import { crc32 } from 'node:zlib';
import { viewsOf } from '../device/buffers.ts';
import { Device, type Extent, type Limits, totalBytes, type ZeroOptions } from '../device/device.ts';
import { InFlight } from '../device/in-flight.ts';
import { assert, RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { KIB, MIB, roundDown } from '../units.ts';
import { Connection, type Ending, type Owner, type Terms, TICKS, waitedFor } from './client-connection.ts';
import { type Endpoint, endpointOf } from './client-dial.ts';
import { type Ask, addExtent, describeAsk, Exchange, extentsOf } from './client-exchange.ts';
import { ClientMemory } from './client-memory.ts';
import { commandFlags, commands, limits as protocol, transmissionFlags } from './protocol.ts';
import { parseNbdUri } from './uri.ts';

export interface NbdOptions {
  readonly readOnly?: boolean | undefined;
  /** How long a request may take (default 30 s); then the device has failed. */
  readonly timeoutMs?: number | undefined;
  /** How long a connection may take to be made, handshake included (default 10 s). */
  readonly connectMs?: number | undefined;
  /** The waits before each attempt to connect again; as many attempts as there are waits. Empty: none. */
  readonly retryMs?: readonly number[] | undefined;
  /** How much of what is not flushed is kept to be written again (default 32 MiB). 0: nothing. */
  readonly keepBytes?: number | undefined;
  /** Shared by all connections to one export, where somebody keeps several (lib/array/paths.ts). */
  readonly memory?: ClientMemory | undefined;
  readonly host?: Host | undefined;
}

/** Together 4.75 s: a server that is restarted is back by then. */
const RETRY_MS: readonly number[] = [0, 50, 100, 200, 400, 800, 1600, 1600];
const TIMEOUT_MS = 30_000;
export const CONNECT_MS = 10_000;
const KEEP_BYTES = 32 * MIB;
/** What a server may take to end what it has and close, when it is asked to. */
const FENCE_MS = 5000;
const EVERYWHERE = { offsetBytes: 0, lengthBytes: Number.MAX_SAFE_INTEGER };

/** One request that loses its connection so often is what the server dies of. */
const SENDS = 4;
/** Requests longer than this are cut: the server works at the parts together. */
const PIECE_BYTES = MIB;
const IN_FLIGHT = 64;
/** Little enough that the last of them is answered in time over a line of 1 MB/s. */
const IN_FLIGHT_BYTES = 16 * MIB;
/** One block status asks about so much. */
const STATUS_BYTES = 1024 * MIB;
/** Extents of one request; what lies behind them is said to be data. */
const EXTENTS = 65_536;

/** A server that is asked for its block sizes, and does not say, has to take these. */
const UNTOLD = { minimumBytes: 1, preferredBytes: 4 * KIB, maximumPayloadBytes: protocol.payloadBytes };

const zeros = new Uint8Array(PIECE_BYTES);

type Link =
  | { readonly state: 'up'; readonly connection: Connection }
  /** Lost; whoever asks for something next brings it back. */
  | { readonly state: 'down' }
  | { readonly state: 'returning' }
  | { readonly state: 'failed'; readonly error: RaidError };

export class NbdDevice extends Device {
  override readonly name: string;
  override readonly limits: Limits;
  override readonly direct = null;
  /** Equal for two devices that are known to be one export. */
  readonly identity: string;
  readonly #endpoint: Endpoint;
  readonly #host: Host;
  readonly #timeoutMs: number;
  readonly #connectMs: number;
  readonly #retryMs: readonly number[];
  /** As agreed at first; later connections must offer no less. */
  readonly #terms: Terms;
  readonly #pieceBytes: number;
  readonly #memory: ClientMemory;
  readonly #requests = new InFlight();
  /** Ends every sleep. */
  readonly #over = new AbortController();
  #link: Link;
  #generation = 1;
  /** Attempts to connect again since a request was last answered. */
  #attempts = 0;
  /** Not sent yet; from `#next` on. */
  #queue: Exchange[] = [];
  #next = 0;
  /** The connection that is watched: that of `#link`, or the one that is being made ready. */
  #watched: Connection | null = null;
  #isWatching = false;
  #tick = 0;
  #leavingTick = 0;
  #flushFailure: RaidError | null = null;
  /** A connection ended by our doing while changes were under way: they may still happen. */
  #isOpenEnded = false;
  #fenced: Promise<void> | null = null;
  /** Why nothing new is taken, and nothing sent again. */
  #fencing: RaidError | null = null;
  /** Whoever waits for the connection to end. */
  #whenLost: (() => void) | null = null;

  private constructor(endpoint: Endpoint, connection: Connection, options: NbdOptions) {
    super();
    this.name = endpoint.name;
    this.identity = endpoint.identity;
    this.#endpoint = endpoint;
    this.#host = options.host ?? realHost;
    this.#timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
    this.#connectMs = options.connectMs ?? CONNECT_MS;
    this.#retryMs = options.retryMs ?? RETRY_MS;
    this.#memory = options.memory ?? new ClientMemory(options.keepBytes ?? KEEP_BYTES);
    this.#terms = connection.terms;
    this.limits = limitsOf(this.name, this.#terms, options.readOnly === true);
    const { maximumPayloadBytes } = this.#terms.sizes ?? UNTOLD;
    this.#pieceBytes = roundDown(Math.min(maximumPayloadBytes, PIECE_BYTES), this.limits.blockBytes);
    this.#link = { state: 'up', connection };
    this.#watched = connection;
    connection.own(this.#owner(connection));
  }

  /**
   * Connects. MEMBER_GONE where nobody is there or answers, BAD_ARGUMENT where the URI, or the server that is there, cannot
   * be used, PROTOCOL_VIOLATION where it is no NBD server.
   */
  static async open(where: string | Endpoint, options: NbdOptions = {}): Promise<NbdDevice> {
    const endpoint = typeof where === 'string' ? endpointOf(parseNbdUri(where)) : where;
    const connection = await Connection.open(endpoint, options.host ?? realHost, {
      withinMs: options.connectMs ?? CONNECT_MS,
      generation: 0,
    });
    if (!(connection instanceof Connection)) throw connection.error;
    try {
      return new NbdDevice(endpoint, connection, options);
    } catch (refusal) {
      await connection.leave();
      throw refusal;
    }
  }

  /**
   * Before anything else is asked of it: it must hold what others that share its memory were told it holds. `isOnly`: none of
   * these is connected, so what was written and not flushed may be lost, and is written again.
   */
  async resume({ isOnly }: { readonly isOnly: boolean }): Promise<void> {
    if (this.#link.state !== 'up') throw this.failure ?? this.#gone('the connection was lost');
    const { connection } = this.#link;
    const inTime = new AbortController();
    void waitedFor(this.#host, this.#connectMs, inTime.signal).then((isOver) => {
      if (isOver) connection.breakOff(this.#gone(`it did not answer within ${this.#connectMs} ms`));
    });
    const lost = 'what was written since the last flush may be lost, and cannot be written again';
    const ending =
      isOnly && !this.#memory.canReturn
        ? { error: this.#gone(lost) }
        : await this.#makeReady(connection, isOnly);
    inTime.abort();
    if (ending !== null) {
      connection.breakOff(ending.error);
      this.#fail(ending.error);
      throw ending.error;
    }
    connection.own(this.#owner(connection));
  }

  /** Whether it has failed for good; what it then throws. */
  get failure(): RaidError | null {
    return this.#link.state === 'failed' ? this.#link.error : null;
  }

  /** Whether the server says that nobody may write; `limits.readOnly` is also that it was opened so. */
  get isWriteProtected(): boolean {
    return this.#can('READ_ONLY');
  }

  /** Whether the server says that what one connection has written all others read, and that a flush covers all of it. */
  get sharesCache(): boolean {
    return this.limits.readOnly || this.#can('CAN_MULTI_CONN');
  }

  /**
   * Ends it for good: every request fails, and its buffers are free. Resolves when nothing that was sent can take effect any
   * more: no change was without an answer, or the server has closed the connection after it was asked to, and by that said
   * that it has ended what it had. Rejects where the server is silent: then nobody knows.
   */
  fence(withinMs = FENCE_MS): Promise<void> {
    this.#fenced ??= this.#fence(withinMs);
    return this.#fenced;
  }

  async #fence(withinMs: number): Promise<void> {
    const fenced = new RaidError('CLOSED', `${this.name} was fenced`, { device: this.name });
    this.#fencing = fenced;
    if (this.#link.state === 'up') {
      const { connection } = this.#link;
      if (connection.isChanging(EVERYWHERE)) {
        connection.goodbye();
        const isOver = new AbortController();
        this.#whenLost = () => isOver.abort();
        await waitedFor(this.#host, withinMs, isOver.signal);
      }
      connection.breakOff(fenced);
    }
    this.#fail(fenced);
    if (!this.#isOpenEnded) return;
    throw this.#gone('the server has not said what has become of the changes that it was sent');
  }

  protected override doRead(offsetBytes: number, targets: readonly Uint8Array[]): Promise<void> {
    return this.#requests.run(() =>
      this.#askInPieces(commands.READ, 0, offsetBytes, totalBytes(targets), targets),
    );
  }

  protected override doWrite(
    offsetBytes: number,
    sources: readonly Uint8Array[],
    fua: boolean,
  ): Promise<void> {
    return this.#change(commands.WRITE, 0, offsetBytes, totalBytes(sources), sources, fua);
  }

  protected override doFlush(): Promise<void> {
    return this.#requests.run(() => this.#flush());
  }

  protected override async doDiscard(offsetBytes: number, lengthBytes: number): Promise<void> {
    if (!this.#can('SEND_WRITE_ZEROES') || !this.#can('SEND_FAST_ZERO')) return;
    const { WRITE_ZEROES } = commands;
    try {
      await this.#change(WRITE_ZEROES, commandFlags.FAST_ZERO, offsetBytes, lengthBytes, null, false);
    } catch (error) {
      if (!(error instanceof RaidError) || error.code !== 'NOT_SUPPORTED') throw error;
    }
  }

  protected override doWriteZeroes(
    offsetBytes: number,
    lengthBytes: number,
    { fua, mayUnmap }: Required<ZeroOptions>,
  ): Promise<void> {
    if (!this.#can('SEND_WRITE_ZEROES')) {
      return this.#change(commands.WRITE, 0, offsetBytes, lengthBytes, null, fua);
    }
    const hole = mayUnmap ? 0 : commandFlags.NO_HOLE;
    return this.#change(commands.WRITE_ZEROES, hole, offsetBytes, lengthBytes, null, fua);
  }

  protected override doBlockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    return this.#requests.run(async () => {
      const extents: Extent[] = [];
      const end = offsetBytes + lengthBytes;
      let at = offsetBytes;
      while (at < end && this.#terms.contextId !== null && extents.length < EXTENTS) {
        const asked = { offsetBytes: at, lengthBytes: Math.min(end - at, STATUS_BYTES) };
        const found = await this.#blockStatus(asked.offsetBytes, asked.lengthBytes);
        for (const { offsetBytes: from, lengthBytes: length, allocated, zero } of found) {
          addExtent(extents, from, from + length, (allocated ? 0 : 1) | (zero ? 2 : 0));
          at = from + length;
        }
        if (found.length === 0) break;
      }
      if (at < end) addExtent(extents, at, end, 0);
      return extents;
    });
  }

  protected override doResize(): Promise<void> {
    throw new RaidError('NOT_SUPPORTED', `${this.name}: the size of an export is the server's`, {
      device: this.name,
    });
  }

  protected override async doClose(): Promise<void> {
    await this.#requests.whenIdle();
    this.#over.abort();
    if (this.#link.state === 'up') await this.#link.connection.leave();
  }

  // From operations to requests.

  #can(ability: keyof typeof transmissionFlags): boolean {
    return (this.#terms.flags & transmissionFlags[ability]) !== 0;
  }

  /** Without buffers, a write is one of zeros. */
  #change(
    command: number,
    flags: number,
    offsetBytes: number,
    lengthBytes: number,
    buffers: readonly Uint8Array[] | null,
    fua: boolean,
  ): Promise<void> {
    // A server that cannot flush is given nothing that would need it.
    const durable = this.#can('SEND_FUA') && (fua || !this.#can('SEND_FLUSH')) ? commandFlags.FUA : 0;
    return this.#requests.run(async () => {
      await this.#askInPieces(command, flags | durable, offsetBytes, lengthBytes, buffers);
      if (fua && durable === 0) await this.#flush();
    });
  }

  async #flush(): Promise<void> {
    if (this.#flushFailure !== null) throw this.#again(this.#flushFailure);
    if (this.#link.state === 'failed') throw this.#link.error;
    // Nothing was written, or nothing that was not durable at once.
    if (!this.#can('SEND_FLUSH')) return;
    try {
      await this.#ask({ command: commands.FLUSH, flags: 0, offsetBytes: 0, lengthBytes: 0, buffers: [] });
    } catch (error) {
      if (error instanceof RaidError && error.code === 'FLUSH_FAILED') this.#flushFailure ??= error;
      throw error;
    }
  }

  /** Settles when all pieces have: the buffers are free then. */
  async #askInPieces(
    command: number,
    flags: number,
    offsetBytes: number,
    lengthBytes: number,
    buffers: readonly Uint8Array[] | null,
  ): Promise<void> {
    const cutBytes = this.#pieceBytes;
    if (lengthBytes <= cutBytes && buffers !== null) {
      await this.#ask({ command, flags, offsetBytes, lengthBytes, buffers });
      return;
    }
    const pieces: Promise<Exchange>[] = [];
    const end = offsetBytes + lengthBytes;
    for (let at = offsetBytes; at < end; ) {
      const pieceBytes = Math.min(end - at, cutBytes - (at % cutBytes));
      let views: readonly Uint8Array[] = [];
      if (buffers !== null) views = viewsOf(buffers, at - offsetBytes, pieceBytes);
      else if (command === commands.WRITE) views = [zeros.subarray(0, pieceBytes)];
      pieces.push(this.#ask({ command, flags, offsetBytes: at, lengthBytes: pieceBytes, buffers: views }));
      at += pieceBytes;
    }
    for (const outcome of await Promise.allSettled(pieces)) {
      if (outcome.status === 'rejected') throw outcome.reason;
    }
  }

  async #blockStatus(offsetBytes: number, lengthBytes: number): Promise<readonly Extent[]> {
    const { BLOCK_STATUS } = commands;
    const answer = await this.#ask({
      command: BLOCK_STATUS,
      flags: 0,
      offsetBytes,
      lengthBytes,
      buffers: [],
    });
    return extentsOf(answer.descriptors ?? [], offsetBytes, lengthBytes, this.limits.blockBytes);
  }

  #ask(ask: Ask): Promise<Exchange> {
    return new Promise((resolve, reject) => {
      const exchange: Exchange = new Exchange(ask, (error) => {
        if (error === null) resolve(exchange);
        else reject(error);
      });
      this.#submit(exchange);
    });
  }

  // Sending.

  #submit(exchange: Exchange): void {
    const refusal = this.failure ?? this.#fencing;
    if (refusal !== null) {
      exchange.settle(this.#failureOf(exchange, refusal));
      return;
    }
    this.#queue.push(exchange);
    this.#pump();
  }

  #pump(): void {
    if (this.#link.state === 'down' && this.#next < this.#queue.length) void this.#return();
    if (this.#link.state !== 'up') return;
    const { connection } = this.#link;
    while (this.#next < this.#queue.length && !connection.isLeaving) {
      const exchange = this.#queue[this.#next]!;
      const { count, payloadBytes } = connection.inFlight;
      if (count >= IN_FLIGHT) return;
      if (count > 0 && payloadBytes + exchange.payloadBytes > IN_FLIGHT_BYTES) return;
      // Two changes of one place, one after the other: so it is known which of them stands.
      if (exchange.isMutation && connection.isChanging(exchange)) return;
      this.#next += 1;
      if (this.#next === this.#queue.length) {
        this.#queue.length = 0;
        this.#next = 0;
      } else if (this.#next > 1024) {
        this.#queue = this.#queue.slice(this.#next);
        this.#next = 0;
      }
      if (exchange.isMutation) this.#memory.sending(exchange);
      else
        exchange.mark = exchange.command === commands.FLUSH ? this.#memory.acknowledged : this.#memory.state;
      connection.send(exchange, this.#tick);
      this.#watch();
    }
  }

  #owner(connection: Connection): Owner {
    return {
      answered: (exchange, outcome) => {
        if (outcome === 'again') this.#sendAgain(connection, exchange);
        else this.#answered(exchange, outcome);
        this.#pump();
      },
      ended: (ending, unanswered) => this.#lost(ending, unanswered),
    };
  }

  #answered(exchange: Exchange, error: RaidError | null): void {
    this.#attempts = 0;
    const memory = this.#memory;
    if (exchange.isMutation) {
      const isDurable = (exchange.flags & commandFlags.FUA) !== 0;
      if (error === null) memory.changed(exchange, isDurable);
      else if (error.code === 'NOT_SUPPORTED') memory.undone();
      else memory.failed();
    } else if (error === null) {
      if (exchange.command === commands.FLUSH) memory.flushed(exchange.mark);
      if (exchange.command === commands.READ) memory.seen(exchange, exchange.mark);
    }
    exchange.settle(error);
  }

  /** The server is shutting down. It ends what it has and closes; this is for the next one. */
  #sendAgain(connection: Connection, exchange: Exchange): void {
    if (!connection.isLeaving) this.#leavingTick = this.#tick;
    if (exchange.isMutation) this.#memory.lost(1);
    this.#putBack([exchange]);
    if (exchange.sends >= SENDS) {
      connection.breakOff(this.#deadly(exchange, 'the server is being shut down'));
    } else {
      connection.goodbye();
      this.#watch();
    }
  }

  /** Before everything that has not been sent yet, in the order in which it was sent. */
  #putBack(exchanges: readonly Exchange[]): void {
    this.#queue = [...exchanges, ...this.#queue.slice(this.#next)];
    this.#next = 0;
  }

  // The end of a connection.

  #lost(ending: Ending, unanswered: readonly Exchange[]): void {
    this.#watched = null;
    const changes = unanswered.filter(({ isMutation }) => isMutation).length;
    if (!ending.mayReturn && changes > 0) this.#isOpenEnded = true;
    this.#putBack(unanswered);
    const end = this.#fencing ?? this.#endOf(ending, unanswered);
    this.#memory.lost(changes);
    if (end === null) {
      this.#link = { state: 'down' };
      this.#pump();
    } else this.#fail(end);
    this.#whenLost?.();
  }

  /** Why it cannot be made good that this connection was lost; null where it can. */
  #endOf(ending: Ending, unanswered: readonly Exchange[]): RaidError | null {
    const why = ending.error.message;
    if (!ending.mayReturn) return ending.error;
    if (!this.#memory.canReturn) {
      return this.#gone(
        `${why}; what was written since the last flush may be lost, and cannot be written again`,
      );
    }
    const deadly = unanswered.find(({ sends }) => sends >= SENDS);
    return deadly === undefined ? null : this.#deadly(deadly, why);
  }

  #fail(error: RaidError): void {
    if (this.#link.state === 'failed') return;
    this.#link = { state: 'failed', error };
    this.#over.abort();
    const waiting = this.#queue.slice(this.#next);
    this.#queue = [];
    this.#next = 0;
    for (const exchange of waiting) exchange.settle(this.#failureOf(exchange, error));
  }

  async #return(): Promise<void> {
    this.#link = { state: 'returning' };
    let why = this.#gone('the connection was lost');
    while (this.#attempts < this.#retryMs.length) {
      await this.#host.sleep(this.#retryMs[this.#attempts]!, this.#over.signal);
      this.#attempts += 1;
      const connection = await Connection.open(this.#endpoint, this.#host, {
        withinMs: this.#connectMs,
        generation: this.#generation,
      });
      this.#generation += 1;
      const ending = connection instanceof Connection ? await this.#makeReady(connection) : connection;
      if (this.#fencing !== null) {
        if (connection instanceof Connection) connection.breakOff(this.#fencing);
        return;
      }
      if (ending === null) {
        this.#link = { state: 'up', connection: connection as Connection };
        (connection as Connection).own(this.#owner(connection as Connection));
        this.#pump();
        return;
      }
      this.#watched = null;
      if (!ending.mayReturn) {
        this.#fail(ending.error);
        return;
      }
      why = ending.error;
    }
    this.#fail(
      this.#gone(`${why.message}; ${this.#retryMs.length} attempts to connect again came to nothing`),
    );
  }

  /** Whether it is what it was, and what was not durable is written again; null, or how the connection has ended. */
  async #makeReady(connection: Connection, isOnly = true): Promise<Ending | null> {
    const other = difference(this.#terms, connection.terms, this.limits);
    if (other !== null) return this.#leaveStranger(connection, other);
    this.#watched = connection;
    const witnesses = this.#memory.witnesses;
    const seen = witnesses.map(({ lengthBytes }) => new Uint8Array(lengthBytes));
    const looks = witnesses.map(
      ({ offsetBytes, lengthBytes }, index): Ask => ({
        command: commands.READ,
        flags: 0,
        offsetBytes,
        lengthBytes,
        buffers: [seen[index]!],
      }),
    );
    const unread = await this.#askOver(connection, looks);
    if (unread !== null) return unread;
    const liar = witnesses.find(({ crc }, index) => crc32(seen[index]!) !== crc);
    if (liar !== undefined) {
      return this.#leaveStranger(connection, `it holds something else, for example at ${liar.offsetBytes}`);
    }
    return isOnly ? await this.#askOver(connection, this.#memory.kept) : null;
  }

  #leaveStranger(connection: Connection, why: string): Ending {
    const error = this.#gone(`the export that came back is not the one that was lost: ${why}`);
    connection.breakOff(error);
    return { mayReturn: false, error };
  }

  /** All of these, over a connection that nobody else uses yet; null when all are done. */
  #askOver(connection: Connection, asks: readonly Ask[]): Promise<Ending | null> {
    return new Promise((resolve) => {
      let next = 0;
      let pending = 0;
      const go = (): void => {
        while (next < asks.length && connection.ending === null && !connection.isLeaving) {
          const ask = asks[next]!;
          const { count, payloadBytes } = connection.inFlight;
          if (count >= IN_FLIGHT || (count > 0 && payloadBytes >= IN_FLIGHT_BYTES)) return;
          if (connection.isChanging(ask)) return;
          next += 1;
          pending += 1;
          connection.send(new Exchange(ask, () => undefined), this.#tick);
          this.#watch();
        }
        if (next === asks.length && pending === 0) resolve(null);
      };
      connection.own({
        answered: (_exchange, outcome) => {
          pending -= 1;
          if (outcome === null) {
            go();
            return;
          }
          const error =
            outcome === 'again' ? this.#gone('the server is being shut down') : this.#gone(outcome.message);
          const ending = { mayReturn: outcome === 'again', error };
          connection.breakOff(error);
          resolve(ending);
        },
        ended: (ending, unanswered) => {
          if (!ending.mayReturn && unanswered.some(({ isMutation }) => isMutation)) this.#isOpenEnded = true;
          resolve(ending);
        },
      });
      if (connection.ending === null) go();
    });
  }

  // The watch.

  #watch(): void {
    if (this.#isWatching) return;
    this.#isWatching = true;
    void this.#watchOver();
  }

  async #watchOver(): Promise<void> {
    while (!this.#over.signal.aborted) {
      await this.#host.sleep(this.#timeoutMs / TICKS, this.#over.signal);
      this.#tick += 1;
      const connection = this.#watched;
      const oldest = connection?.oldest ?? null;
      if (connection === null || (oldest === null && !connection.isLeaving)) break;
      const since = oldest?.sentTick ?? this.#leavingTick;
      if (this.#tick - since <= TICKS) continue;
      // What has come by now is looked at before anybody is convicted.
      await new Promise<void>((resolve) => this.#host.turn(resolve));
      if (connection.oldest !== oldest || connection.ending !== null) continue;
      const what = oldest === null ? 'close the connection' : describeAsk(oldest);
      connection.breakOff(this.#gone(`the server did not ${what} within ${this.#timeoutMs} ms`));
    }
    this.#isWatching = false;
  }

  // Errors.

  #gone(why: string): RaidError {
    const text = why.startsWith(this.name) ? why : `${this.name}: ${why}`;
    return new RaidError('MEMBER_GONE', text, { device: this.name });
  }

  #deadly(ask: Ask, why: string): RaidError {
    return this.#gone(`${why}, ${SENDS} times when it was to ${describeAsk(ask)}`);
  }

  /** Each request has its own, with its place. */
  #failureOf(exchange: Exchange, cause: RaidError): RaidError {
    const { offsetBytes, lengthBytes } = exchange;
    const place = exchange.command === commands.FLUSH ? {} : { offsetBytes, lengthBytes };
    return new RaidError(cause.code, cause.message, { device: this.name, ...place, cause });
  }

  #again(failure: RaidError): RaidError {
    return new RaidError(
      failure.code,
      `${this.name} failed an earlier flush, and what that one did not write may be lost`,
      { device: this.name, cause: failure },
    );
  }
}

function limitsOf(name: string, terms: Terms, readOnly: boolean): Limits {
  const { minimumBytes, preferredBytes } = terms.sizes ?? UNTOLD;
  const has = (flag: number): boolean => (terms.flags & flag) !== 0;
  const sizeBytes = roundDown(terms.sizeBytes, minimumBytes);
  if (sizeBytes === 0) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${name}: the export has ${terms.sizeBytes} bytes, which is no device`,
      {
        device: name,
      },
    );
  }
  const isReadOnly = readOnly || has(transmissionFlags.READ_ONLY);
  if (!isReadOnly && !has(transmissionFlags.SEND_FLUSH) && !has(transmissionFlags.SEND_FUA)) {
    throw new RaidError(
      'NOT_SUPPORTED',
      `${name}: the server has neither flush nor FUA, so nobody could know when a write is durable; export it with one of them (nbd-server: flush = true), or open it for reading only`,
      { device: name },
    );
  }
  assert(preferredBytes % minimumBytes === 0, 'powers of two divide each other');
  return { sizeBytes, blockBytes: minimumBytes, preferredBytes, readOnly: isReadOnly };
}

const abilities = ['SEND_FLUSH', 'SEND_FUA', 'SEND_WRITE_ZEROES', 'SEND_FAST_ZERO'] as const;

/** What makes the export that is there now another one than the one that was; null where nothing does. */
function difference(before: Terms, now: Terms, limits: Limits): string | null {
  if (before.sizeBytes !== now.sizeBytes) {
    return `it has ${now.sizeBytes} bytes, and had ${before.sizeBytes}`;
  }
  if (!limits.readOnly && (now.flags & transmissionFlags.READ_ONLY) !== 0) return 'it is read-only now';
  const { minimumBytes, maximumPayloadBytes } = now.sizes ?? UNTOLD;
  if (minimumBytes > limits.blockBytes) return `it takes blocks of ${minimumBytes} bytes only`;
  if (maximumPayloadBytes < Math.min(PIECE_BYTES, (before.sizes ?? UNTOLD).maximumPayloadBytes)) {
    return `it takes ${maximumPayloadBytes} bytes at most`;
  }
  if (before.contextId !== null && now.contextId === null) return 'it no longer knows base:allocation';
  for (const ability of abilities) {
    const flag = transmissionFlags[ability];
    if ((before.flags & flag) !== 0 && (now.flags & flag) === 0) return `it no longer has ${ability}`;
  }
  return null;
}
