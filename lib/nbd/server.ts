/**
 * An NBD server: exports under names, listeners, and the connections that come.
 *
 * Who may come. On a Unix socket: who may open the file, that is, its owner (lib/socket). On TCP: everybody who reaches the
 * port, so that off loopback TLS is demanded, unless the caller spells out that it is not wanted. With TLS nothing is told in
 * the clear, not even which exports there are.
 *
 * Shutting down takes no new connection or request, lets what is in flight be answered, and after a bound cuts off whoever
 * is left: a client that hangs keeps nobody waiting.
 */
import { createServer, isIP, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { createServer as createTlsServer, type TlsOptions } from 'node:tls';
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { listenAt } from '../socket/unix.ts';
import { MIB } from '../units.ts';
import { Budget, Export, type ExportOptions, ReplyBuffers } from './export.ts';
import { DEFAULT_PORT } from './protocol.ts';
import { Session, type SessionHome } from './session.ts';

/** Certificates, or keys that both sides know; as PEM texts and bytes, not as paths. */
export interface NbdTls {
  readonly certificate?: string | undefined;
  readonly key?: string | undefined;
  /** Where given, only clients with a certificate of it may come. */
  readonly clientAuthority?: string | undefined;
  /** By the client's name. */
  readonly sharedKeys?: ReadonlyMap<string, Uint8Array> | undefined;
}

export type NbdEvent =
  | { readonly event: 'connected'; readonly client: number; readonly peer: string; readonly export: string }
  | {
      readonly event: 'disconnected';
      readonly client: number;
      readonly peer: string;
      /** Null for one that went by itself. */
      readonly because: string | null;
    };

export interface NbdServerOptions {
  readonly exports: readonly ExportOptions[];
  readonly tls?: NbdTls | undefined;
  /** Off loopback without TLS. */
  readonly insecure?: boolean | undefined;
  readonly host?: Host | undefined;
  readonly onEvent?: ((event: NbdEvent) => void) | undefined;
}

const CONNECTIONS = 100;
const CONNECTIONS_OF_ONE_PEER = 16;
const BUDGET_BYTES = 512 * MIB;
/** How often deadlines are looked at. */
const WATCH_MS = 250;
const GRACE_MS = 5_000;

interface Listener {
  readonly uri: string;
  close(): Promise<void>;
}

interface Guest {
  readonly number: number;
  readonly peer: string;
  isIn: boolean;
}

export class NbdServer implements AsyncDisposable {
  readonly #host: Host;
  readonly #options: NbdServerOptions;
  readonly #exports = new Map<string, Export>();
  /** What sessions are told in the clear, and over TLS. */
  readonly #plain: SessionHome;
  readonly #secret: SessionHome | null;
  readonly #guests = new Map<Session, Guest>();
  readonly #listeners: Listener[] = [];
  readonly #budget = new Budget(BUDGET_BYTES);
  /** Cut off, with changes that the device has not ended: until then they keep their connections (session.ts). */
  #lingering: readonly Session[] = [];
  #guestNumber = 0;
  #watching: AbortController | null = null;
  #closing: Promise<void> | null = null;
  #whenEmpty: (() => void)[] = [];

  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#host = options.host ?? realHost;
    for (const each of options.exports) {
      const made = new Export(each);
      if (this.#exports.has(made.name)) {
        throw new RaidError('BAD_ARGUMENT', `two exports are called ${made.name}`);
      }
      this.#exports.set(made.name, made);
    }
    const { tls } = options;
    this.#plain = {
      host: this.#host,
      exports: this.#exports,
      // The first: a client that names none means the one there is.
      defaultExport: this.#exports.values().next().value ?? null,
      requiresTls: false,
      startTls: null,
      budget: this.#budget,
      buffers: new ReplyBuffers(),
      entered: (session, chosen) => this.#entered(session, chosen),
      ended: (session, because) => this.#ended(session, because),
    };
    this.#secret =
      tls === undefined ? null : { ...this.#plain, requiresTls: true, startTls: upgrade(tlsOptions(tls)) };
  }

  get uris(): readonly string[] {
    return this.#listeners.map(({ uri }) => uri);
  }

  get clientCount(): number {
    return this.#guests.size;
  }

  /** Bytes that requests hold, of all connections. */
  get heldBytes(): number {
    return this.#budget.usedBytes;
  }

  /** See `Export.exchange`. */
  async exchange(name: string, make: (device: Device) => Promise<Device>): Promise<void> {
    const found = this.#exports.get(name);
    if (found === undefined) throw new RaidError('BAD_ARGUMENT', `there is no export ${name}`);
    await found.exchange(make);
  }

  /**
   * The URI by which clients find it. In the clear, unless TLS is asked for: who comes here is the owner, and what is said
   * stays on this machine.
   */
  async listenUnix(path: string, how: { readonly tls?: boolean } = {}): Promise<string> {
    const home = how.tls === true ? this.#secretHome() : this.#plain;
    const server = this.#makeServer(home, () => 'unix', false);
    const socket = await listenAt(server, path);
    const scheme = home.requiresTls ? 'nbds+unix' : 'nbd+unix';
    const uri = `${scheme}:///?socket=${encodeURI(socket.path).replaceAll('&', '%26').replaceAll('#', '%23')}`;
    this.#listeners.push({ uri, close: () => socket.close() });
    return uri;
  }

  async listenTcp(host: string, port: number = DEFAULT_PORT): Promise<string> {
    const isProtected = this.#options.tls !== undefined || this.#options.insecure === true;
    if (!isLoopback(host) && !isProtected) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${host} can be reached by others, who could read everything, and write what is not read-only; give a certificate (--tls-certificates) or shared keys (--tls-psk), or say --insecure if that is meant`,
      );
    }
    const home = this.#secret ?? this.#plain;
    const server = this.#makeServer(home, (socket) => socket.remoteAddress ?? '?', true);
    const bound = await bindTcp(server, host, port);
    const scheme = home.requiresTls ? 'nbds' : 'nbd';
    const uri = `${scheme}://${isIP(host) === 6 ? `[${host}]` : host}:${bound}`;
    this.#listeners.push({ uri, close: () => new Promise((done) => server.close(() => done())) });
    return uri;
  }

  /** A connection that somebody else has made. */
  accept(stream: Duplex, peer = 'stream', how: { readonly tls?: boolean } = {}): void {
    this.#accept(stream, peer, how.tls === true ? this.#secretHome() : this.#plain);
  }

  #accept(stream: Duplex, peer: string, home: SessionHome): void {
    if (this.#closing !== null || this.#guests.size >= CONNECTIONS) {
      stream.destroy();
      return;
    }
    this.#guestNumber += 1;
    const session = new Session(stream, home);
    this.#guests.set(session, { number: this.#guestNumber, peer, isIn: false });
    void this.#watch();
  }

  /** Idempotent. After `graceMs` nobody is waited for. The exports' devices are the caller's: they stay open. */
  close(graceMs = GRACE_MS): Promise<void> {
    this.#closing ??= this.#close(graceMs);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(graceMs: number): Promise<void> {
    const listening = Promise.all(this.#listeners.map((listener) => listener.close()));
    const endMs = this.#host.now() + graceMs;
    for (const session of [...this.#guests.keys()]) session.finish();
    while (this.#guests.size > 0 && this.#host.now() < endMs) {
      const alarm = new AbortController();
      this.#whenEmpty.push(() => alarm.abort());
      await this.#host.sleep(Math.min(WATCH_MS, graceMs), alarm.signal);
    }
    for (const session of [...this.#guests.keys()]) session.cut('the server ends');
    // A listener has closed when its last connection has. For a device that hangs nobody waits here.
    if (this.#lingering.every(({ isOver }) => isOver)) await listening;
  }

  #secretHome(): SessionHome {
    if (this.#secret === null) throw new RaidError('BAD_ARGUMENT', 'TLS needs a certificate, or shared keys');
    return this.#secret;
  }

  #makeServer(home: SessionHome, peerOf: (socket: Socket) => string, isTcp: boolean): Server {
    // Half-open: who has said all may still be told the rest.
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      const peer = peerOf(socket);
      if (isTcp && !isLoopback(peer) && this.#countOf(peer) >= CONNECTIONS_OF_ONE_PEER) socket.destroy();
      else this.#accept(socket, peer, home);
    });
    server.on('error', () => undefined);
    return server;
  }

  #countOf(peer: string): number {
    let count = 0;
    for (const guest of this.#guests.values()) if (guest.peer === peer) count += 1;
    return count;
  }

  #entered(session: Session, chosen: Export): void {
    const guest = this.#guests.get(session);
    if (guest === undefined) return;
    guest.isIn = true;
    const { number: client, peer } = guest;
    this.#options.onEvent?.({ event: 'connected', client, peer, export: chosen.name });
  }

  #ended(session: Session, because: string | null): void {
    const guest = this.#guests.get(session);
    this.#guests.delete(session);
    this.#lingering = this.#lingering.filter(({ isOver }) => !isOver);
    if (!session.isOver) this.#lingering = [...this.#lingering, session];
    if (guest !== undefined && (guest.isIn || because !== null)) {
      const { number: client, peer } = guest;
      this.#options.onEvent?.({ event: 'disconnected', client, peer, because });
    }
    if (this.#guests.size > 0) return;
    this.#watching?.abort();
    this.#watching = null;
    const waiting = this.#whenEmpty;
    this.#whenEmpty = [];
    for (const goOn of waiting) goOn();
  }

  /** As long as there are guests. */
  async #watch(): Promise<void> {
    if (this.#watching !== null) return;
    const watching = new AbortController();
    this.#watching = watching;
    while (!watching.signal.aborted) {
      await this.#host.sleep(WATCH_MS, watching.signal);
      const now = this.#host.now();
      for (const session of [...this.#guests.keys()]) session.checkDeadlines(now);
    }
  }
}

export function isLoopback(host: string): boolean {
  const address = host.startsWith('::ffff:') ? host.slice(7) : host;
  return host === 'localhost' || host === '::1' || (isIP(address) === 4 && address.startsWith('127.'));
}

function bindTcp(server: Server, host: string, port: number): Promise<number> {
  return new Promise((done, reject) => {
    const fail = (error: NodeJS.ErrnoException): void => {
      const code = error.code === 'EADDRINUSE' ? 'BUSY' : 'BAD_ARGUMENT';
      reject(new RaidError(code, `${host}:${port}: cannot listen (${error.code})`, { cause: error }));
    };
    server.once('error', fail);
    server.listen({ host, port }, () => {
      server.off('error', fail);
      const address = server.address();
      done(address !== null && typeof address === 'object' ? address.port : port);
    });
  });
}

function tlsOptions(tls: NbdTls): TlsOptions {
  const { certificate, key, clientAuthority, sharedKeys } = tls;
  const hasCertificate = certificate !== undefined && key !== undefined;
  if (!hasCertificate && sharedKeys === undefined) {
    throw new RaidError('BAD_ARGUMENT', 'TLS needs a certificate and its key, or shared keys');
  }
  return {
    minVersion: 'TLSv1.2',
    ...(hasCertificate ? { cert: certificate, key } : {}),
    ...(clientAuthority === undefined
      ? {}
      : { ca: clientAuthority, requestCert: true, rejectUnauthorized: true }),
    ...(sharedKeys === undefined
      ? {}
      : {
          // OpenSSL has shared keys by name in TLS 1.2 only, and offers no suite with them unless it is told to.
          ...(hasCertificate ? {} : { maxVersion: 'TLSv1.2' as const }),
          ciphers: hasCertificate ? 'PSK+AESGCM:PSK+CHACHA20:HIGH:!aNULL' : 'PSK+AESGCM:PSK+CHACHA20',
          pskCallback: (_socket: unknown, identity: string) => {
            const found = sharedKeys.get(identity);
            return found === undefined ? null : Buffer.from(found);
          },
        }),
  };
}

/** A TLS server for this one connection: what it takes is decided by Node's own rules, client certificates included. */
function upgrade(options: TlsOptions): (stream: Duplex) => Promise<Duplex | null> {
  return (stream) =>
    new Promise((done) => {
      const server = createTlsServer({ ...options, allowHalfOpen: true });
      server.once('secureConnection', (secret) => done(secret));
      server.once('tlsClientError', (_error, secret) => {
        secret.destroy();
        done(null);
      });
      stream.once('close', () => done(null));
      server.emit('connection', stream);
    });
}

/** Serves one device, or several: resolves when clients may connect. */
export async function serveNbd(
  what: Device | readonly ExportOptions[],
  options: Omit<NbdServerOptions, 'exports'> & {
    readonly socket?: string | undefined;
    readonly listen?: { readonly host: string; readonly port?: number } | undefined;
  },
): Promise<NbdServer> {
  const exports = 'direct' in what ? [{ name: 'export', device: what }] : what;
  const server = new NbdServer({ ...options, exports });
  try {
    if (options.socket !== undefined) await server.listenUnix(options.socket);
    if (options.listen !== undefined) await server.listenTcp(options.listen.host, options.listen.port);
    return server;
  } catch (error) {
    await server.close(0);
    throw error;
  }
}
