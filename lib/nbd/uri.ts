/**
 * NBD URIs, after the public text (github.com/NetworkBlockDevice/nbd, doc/uri.md):
 *
 *   nbd://host[:port]/export            TCP, in clear
 *   nbds://host[:port]/export           TCP, TLS or nothing
 *   nbd+unix:///export?socket=PATH      a unix socket, in clear
 *   nbds+unix:///export?socket=PATH     a unix socket, TLS or nothing
 *
 * The export is all of the path but its first slash, so `nbd://host//disk` means `/disk`, and dots mean themselves: that
 * is why `URL`, which tidies paths, does not read these. In the query: `socket`, and for TLS `tls-type` (x509, psk),
 * `tls-hostname`, and as libnbd has them `tls-certificates` (a folder with ca-cert.pem, client-cert.pem, client-key.pem)
 * and `tls-psk-file` (lines `user:hexkey`). What is not known is refused: a parameter that is ignored is one that somebody
 * relies on.
 *
 * What is plain stays plain: the text lets a client try TLS on `nbd:` too, but whoever sits in between could talk it out
 * of that. And a certificate that is not checked is no protection: `tls-verify-peer=0` and `tls-type=anon` are refused.
 */
import { createHash } from 'node:crypto';
import { basename, resolve } from 'node:path';
import { RaidError } from '../errors.ts';
import { DEFAULT_PORT, limits } from './protocol.ts';

export type NbdAddress =
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string };

export type TlsChoice =
  /** `folder`: of certificates; null for those that the system trusts, and none of our own. */
  | { readonly kind: 'x509'; readonly folder: string | null; readonly hostname: string | null }
  | { readonly kind: 'psk'; readonly file: string; readonly user: string };

export interface NbdUri {
  /** The one way to write it: what a manifest holds. Paths in it are absolute. */
  readonly text: string;
  readonly address: NbdAddress;
  readonly exportName: string;
  readonly tls: TlsChoice | null;
  /** Equal for two URIs that name one export at one address. Two addresses may still be one server. */
  readonly identity: string;
  /** What people call it, when no other has the same name. */
  readonly shortName: string;
}

const schemes: ReadonlyMap<string, { readonly unix: boolean; readonly tls: boolean }> = new Map([
  ['nbd', { unix: false, tls: false }],
  ['nbds', { unix: false, tls: true }],
  ['nbd+unix', { unix: true, tls: false }],
  ['nbds+unix', { unix: true, tls: true }],
]);

const parameters = new Set([
  'socket',
  'tls-type',
  'tls-hostname',
  'tls-verify-peer',
  'tls-certificates',
  'tls-psk-file',
]);

/** RFC 3986, appendix B. */
const parts = /^([^:/?#]+):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?$/s;

/** Whether a word is meant as a URI rather than as a path: decided by its look, so that a slip is told and not made a file. */
export function isUri(text: string): boolean {
  return /^[A-Za-z][\w+.-]*:\/\//.test(text);
}

/** Throws BAD_ARGUMENT, which says what is wrong and how it is written. Relative paths are meant from here. */
export function parseNbdUri(text: string): NbdUri {
  const wrong = (why: string): RaidError =>
    new RaidError('BAD_ARGUMENT', `${text}: ${why}`, { device: text });
  const match = parts.exec(text);
  const [, schemeText = '', authority = '', path = '', query = '', fragment] = match ?? [];
  const schemeName = schemeText.toLowerCase();
  const scheme = schemes.get(schemeName);
  if (match === null || scheme === undefined) {
    throw wrong(
      `not a URI of NBD; those begin with ${[...schemes.keys()].map((each) => `${each}://`).join(', ')}`,
    );
  }
  const decoded = (part: string, what: string): string => {
    let value: string;
    try {
      value = decodeURIComponent(part);
    } catch {
      throw wrong(`${what} has a % that is not followed by the two digits of a byte of UTF-8`);
    }
    if (value.includes('\0')) throw wrong(`${what} has a zero byte in it`);
    if (/\p{Surrogate}/u.test(value)) throw wrong(`${what} has half a character in it`);
    return value;
  };
  if (fragment !== undefined) throw wrong('a # begins a fragment, which means nothing here; write it as %23');
  if (path !== '' && !path.startsWith('/')) throw wrong('the export comes behind a slash');
  const exportName = decoded(path.slice(1), 'the export');
  if (Buffer.byteLength(exportName) > limits.textBytes) {
    throw wrong(`the name of an export has ${limits.textBytes} bytes at most`);
  }

  const given = new Map<string, string>();
  for (const item of query === '' ? [] : query.split('&')) {
    const [key = '', ...rest] = item.split('=');
    const name = decoded(key, 'a parameter');
    if (!parameters.has(name)) throw wrong(`there is no parameter ${JSON.stringify(name)}`);
    if (given.has(name)) throw wrong(`${name} is given twice`);
    given.set(name, decoded(rest.join('='), name));
  }

  const at = authority.lastIndexOf('@');
  const user = at < 0 ? null : decoded(authority.slice(0, at), 'the user');
  const place = at < 0 ? authority : authority.slice(at + 1);
  const socket = given.get('socket');
  let address: NbdAddress;
  if (scheme.unix) {
    if (place !== '') {
      throw wrong(
        `a unix socket is at no host, but this names ${place}; the export comes behind three slashes: ${schemeName}:///export?socket=PATH`,
      );
    }
    if (socket === undefined || socket === '') throw wrong(`it does not say which socket: ?socket=PATH`);
    address = { kind: 'unix', path: resolve(socket) };
    if (Buffer.byteLength(address.path) > SOCKET_PATH_BYTES) {
      throw wrong(`the path of a unix socket has ${SOCKET_PATH_BYTES} bytes at most`);
    }
  } else {
    if (socket !== undefined) throw wrong(`a socket goes with ${schemeName}+unix://`);
    address = { kind: 'tcp', ...hostAndPort(place, wrong) };
  }
  const tls = scheme.tls ? tlsOf(given, user, wrong) : null;
  if (tls === null) {
    const odd = [...given.keys()].find((name) => name.startsWith('tls-'));
    if (odd !== undefined) throw wrong(`${odd} goes with TLS: ${schemeName.replace('nbd', 'nbds')}://`);
  }
  if (user !== null && tls?.kind !== 'psk') throw wrong('a user goes with tls-type=psk only');
  return {
    text: textOf(schemeName, address, exportName, tls),
    address,
    exportName,
    tls,
    identity: identityOf(address, exportName),
    shortName: shortNameOf(address, exportName),
  };
}

/** `sun_path`, with its zero. */
const SOCKET_PATH_BYTES = 107;

function hostAndPort(
  place: string,
  wrong: (why: string) => RaidError,
): { readonly host: string; readonly port: number } {
  const match = /^(?:\[([\da-fA-F:.]+(?:%25[\w.~-]+)?)\]|([^:[\]]*))(?::(\d*))?$/.exec(place);
  if (match === null) throw wrong(`${place} is not HOST, HOST:PORT or [IPv6]:PORT`);
  const host = (match[1]?.replace('%25', '%') ?? match[2] ?? '').toLowerCase();
  if (host === '') throw wrong('it names no host: nbd://HOST/export');
  if (!/^[\w.:%~-]+$/.test(host)) throw wrong(`${host} is no name of a host`);
  const digits = match[3] ?? '';
  const port = digits === '' ? DEFAULT_PORT : Number(digits);
  if (!(port >= 1 && port <= 65_535)) throw wrong(`${digits} is no port; those are 1 to 65535`);
  return { host, port };
}

function tlsOf(
  given: ReadonlyMap<string, string>,
  user: string | null,
  wrong: (why: string) => RaidError,
): TlsChoice {
  const pskFile = given.get('tls-psk-file');
  const folder = given.get('tls-certificates');
  const type = given.get('tls-type') ?? (pskFile === undefined ? 'x509' : 'psk');
  if (type === 'anon')
    throw wrong('tls-type=anon protects against nobody who can change what is sent; take x509 or psk');
  if (type !== 'x509' && type !== 'psk') throw wrong(`tls-type is x509 or psk, not ${JSON.stringify(type)}`);
  const verify = given.get('tls-verify-peer') ?? '1';
  if (verify === '0')
    throw wrong('tls-verify-peer=0 would believe any server; name its certificates: tls-certificates=DIR');
  if (verify !== '1') throw wrong(`tls-verify-peer is 1, not ${JSON.stringify(verify)}`);
  if (type === 'psk') {
    if (pskFile === undefined || pskFile === '')
      throw wrong('tls-type=psk needs the keys: tls-psk-file=FILE');
    if (folder !== undefined) throw wrong('tls-certificates goes with tls-type=x509');
    if (given.has('tls-hostname')) throw wrong('tls-hostname goes with tls-type=x509');
    if (user === null) throw wrong('tls-type=psk needs to know whose key: nbds://USER@HOST/export');
    return { kind: 'psk', file: resolve(pskFile), user };
  }
  if (pskFile !== undefined) throw wrong('tls-psk-file goes with tls-type=psk');
  return {
    kind: 'x509',
    folder: folder === undefined ? null : resolve(folder),
    hostname: given.get('tls-hostname') ?? null,
  };
}

function textOf(scheme: string, address: NbdAddress, exportName: string, tls: TlsChoice | null): string {
  const query: string[] = [];
  if (address.kind === 'unix') query.push(`socket=${encoded(address.path)}`);
  if (tls?.kind === 'x509') {
    if (tls.folder !== null) query.push(`tls-certificates=${encoded(tls.folder)}`);
    if (tls.hostname !== null) query.push(`tls-hostname=${encoded(tls.hostname)}`);
  }
  if (tls?.kind === 'psk') query.push('tls-type=psk', `tls-psk-file=${encoded(tls.file)}`);
  const user = tls?.kind === 'psk' ? `${encodeURIComponent(tls.user)}@` : '';
  const place = address.kind === 'unix' ? '' : hostText(address);
  return `${scheme}://${user}${place}/${encoded(exportName)}${query.length === 0 ? '' : `?${query.join('&')}`}`;
}

function hostText({ host, port }: { readonly host: string; readonly port: number }): string {
  const name = host.includes(':') ? `[${host.replace('%', '%25')}]` : host;
  return port === DEFAULT_PORT ? name : `${name}:${port}`;
}

/** Slashes stay: they are what makes a path readable. */
function encoded(text: string): string {
  return encodeURIComponent(text).replaceAll('%2F', '/');
}

/** Of one length, since it becomes part of the name of a lock; with or without TLS it is the same export. */
function identityOf(address: NbdAddress, exportName: string): string {
  const key = JSON.stringify([address.kind === 'unix' ? address.path : hostText(address), exportName]);
  return `nbd:${createHash('sha256').update(key).digest('hex').slice(0, 32)}`;
}

function shortNameOf(address: NbdAddress, exportName: string): string {
  if (exportName !== '') return exportName;
  return address.kind === 'unix' ? basename(address.path).replace(/\.sock(et)?$/, '') : hostText(address);
}
