/**
 * From an address to a stream of bytes, and from that to one over TLS.
 *
 * TLS begins within the NBD connection (STARTTLS), on the stream that is there. The other end's certificate is always
 * checked, against the name in the URI; there is no way to say that it should not be.
 */
import { readFile } from 'node:fs/promises';
import net from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import tls from 'node:tls';
import { RaidError } from '../errors.ts';
import type { NbdUri, TlsChoice } from './uri.ts';

/** Where an export is, for `NbdDevice`: a URI, or anything else that has a stream to a server. */
export interface Endpoint {
  readonly name: string;
  /** Equal for two endpoints that are known to be one. */
  readonly identity: string;
  readonly exportName: string;
  /** A stream that is connected, or a rejection with the system's error. The signal ends the attempt. */
  readonly dial: (signal: AbortSignal) => Promise<Duplex>;
  /** Null where TLS is not asked for. The stream that is handed in is its own from then on. */
  readonly secure: ((wire: Duplex) => Promise<Duplex>) | null;
}

export function endpointOf(uri: NbdUri): Endpoint {
  const { address, tls: choice } = uri;
  return {
    name: uri.text,
    identity: uri.identity,
    exportName: uri.exportName,
    dial: (signal) =>
      connect(
        address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port },
        signal,
      ),
    secure:
      choice === null
        ? null
        : async (wire) =>
            await startTls(wire, await tlsOptions(choice, address.kind === 'unix' ? null : address.host)),
  };
}

function connect(where: net.NetConnectOpts, signal: AbortSignal): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ ...where, noDelay: true, signal } as net.NetConnectOpts);
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(socket);
    });
  });
}

function startTls(wire: Duplex, options: tls.ConnectionOptions): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const secured = tls.connect({ ...options, socket: wire });
    wire.on('error', () => undefined);
    const failed = (cause?: Error): void => {
      secured.destroy();
      wire.destroy();
      reject(cause instanceof Error ? cause : cutOff());
    };
    if (wire.destroyed) failed();
    // Of the stream below, errors come through the one above; when it ends early they do not.
    wire.once('close', failed);
    secured.once('error', failed);
    secured.once('secureConnect', () => {
      wire.off('close', failed);
      secured.off('error', failed);
      resolve(secured);
    });
  });
}

/** As the system says it of a connection that the other end has dropped. */
function cutOff(): Error {
  return Object.assign(new Error('the connection ended in the middle of the TLS handshake'), {
    code: 'ECONNRESET',
  });
}

async function tlsOptions(choice: TlsChoice, host: string | null): Promise<tls.ConnectionOptions> {
  if (choice.kind === 'psk') {
    const psk = await keyOf(choice.file, choice.user);
    return {
      minVersion: 'TLSv1.2',
      ciphers: 'PSK+AESGCM:PSK+CHACHA20:TLS_AES_128_GCM_SHA256',
      pskCallback: () => ({ psk, identity: choice.user }),
      // With a shared key nobody shows a certificate; that the other end has the key is the proof.
      checkServerIdentity: () => undefined,
    };
  }
  const name = choice.hostname ?? host;
  if (name === null) {
    throw new RaidError(
      'BAD_ARGUMENT',
      'a unix socket has no host whose certificate could be checked; say which name it must have: tls-hostname=NAME',
    );
  }
  const base: tls.ConnectionOptions = {
    minVersion: 'TLSv1.2',
    rejectUnauthorized: true,
    // An address is no name to ask a server for, but a certificate may be made out to it.
    ...(net.isIP(name) === 0 ? { servername: name } : {}),
    checkServerIdentity: (_asked, certificate) => tls.checkServerIdentity(name, certificate),
  };
  if (choice.folder === null) return base;
  const ca = await fileIn(choice.folder, 'ca-cert.pem');
  if (ca === null) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${choice.folder} has no ca-cert.pem, by which the server would be known`,
    );
  }
  const cert = await fileIn(choice.folder, 'client-cert.pem');
  const key = await fileIn(choice.folder, 'client-key.pem');
  if ((cert === null) !== (key === null)) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${choice.folder} has one of client-cert.pem and client-key.pem; both are needed, or none`,
    );
  }
  return {
    ...base,
    ca,
    ...(cert === null || key === null ? {} : { cert, key }),
  };
}

async function fileIn(folder: string, name: string): Promise<Buffer | null> {
  return await readFile(join(folder, name)).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return null;
    throw new RaidError('BAD_ARGUMENT', `${join(folder, name)} cannot be read: ${cause.message}`, { cause });
  });
}

/** The key itself is in no message. */
async function keyOf(file: string, user: string): Promise<Buffer> {
  const text = await readFile(file, 'utf8').catch((cause: Error) => {
    throw new RaidError('BAD_ARGUMENT', `${file} cannot be read: ${cause.message}`, { cause });
  });
  for (const line of text.split('\n')) {
    const colon = line.lastIndexOf(':');
    if (colon < 0 || line.slice(0, colon) !== user) continue;
    const digits = line.slice(colon + 1).trim();
    if (/^(?:[\da-fA-F]{2})+$/.test(digits)) return Buffer.from(digits, 'hex');
    throw new RaidError('BAD_ARGUMENT', `${file}: the key of ${user} is not in hexadecimal digits`);
  }
  throw new RaidError('BAD_ARGUMENT', `${file} has no key of ${user}`);
}
