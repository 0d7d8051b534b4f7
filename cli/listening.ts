/** Whoever listens for NBD clients beyond a Unix socket: the options, and what they come to. Nothing loads the library before it is used. */
import type { Command } from 'commander';
import type { NbdTls } from '../lib/index.ts';
import { address } from './options.ts';

export interface ListenOptions {
  readonly listen?: { readonly host: string; readonly port?: number };
  readonly tlsCertificates?: string;
  readonly tlsVerifyClient?: boolean;
  readonly tlsPsk?: string;
  readonly insecure?: boolean;
}

export const LISTENING: readonly (keyof ListenOptions)[] = [
  'listen',
  'tlsCertificates',
  'tlsVerifyClient',
  'tlsPsk',
  'insecure',
];

export function listenOptions(command: Command, insecure: string): Command {
  return command
    .option('--listen <host:port>', 'TCP too; off this machine only with TLS, or --insecure', address)
    .option('--tls-certificates <dir>', 'TLS with server-cert.pem and server-key.pem in there')
    .option('--tls-verify-client', 'and only for clients with a certificate of ca-cert.pem in there')
    .option('--tls-psk <file>', 'TLS with shared keys: lines of NAME:HEX')
    .option('--insecure', insecure);
}

export async function tlsOf(options: ListenOptions): Promise<NbdTls | null> {
  const { readFile } = await import('node:fs/promises');
  const { join } = await import('node:path');
  const { RaidError } = await import('../lib/index.ts');
  const { tlsCertificates: folder, tlsPsk } = options;
  if (options.tlsVerifyClient === true && folder === undefined)
    throw new RaidError(
      'BAD_ARGUMENT',
      '--tls-verify-client needs --tls-certificates DIR: ca-cert.pem in there says whose clients',
    );
  if (folder === undefined && tlsPsk === undefined) return null;
  const read = (name: string): Promise<string> => readFile(join(folder ?? '', name), 'utf8');
  const sharedKeys = new Map<string, Uint8Array>();
  if (tlsPsk !== undefined) {
    for (const line of (await readFile(tlsPsk, 'utf8')).split('\n')) {
      if (line.trim() === '' || line.startsWith('#')) continue;
      const [, name, key] = /^([^:]+):((?:[0-9a-fA-F]{2})+)\s*$/.exec(line) ?? [];
      if (name === undefined || key === undefined) {
        throw new RaidError('BAD_ARGUMENT', `${tlsPsk}: a line is not NAME:HEX`);
      }
      sharedKeys.set(name, Buffer.from(key, 'hex'));
    }
  }
  return {
    ...(folder === undefined
      ? {}
      : { certificate: await read('server-cert.pem'), key: await read('server-key.pem') }),
    ...(options.tlsVerifyClient === true ? { clientAuthority: await read('ca-cert.pem') } : {}),
    ...(tlsPsk === undefined ? {} : { sharedKeys }),
  };
}
