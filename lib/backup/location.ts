/** Where a repository is, as people write it: a folder, or `s3:https://host/bucket/prefix`. */
import { RaidError } from '../errors.ts';
import { DirectoryStore } from './directory.ts';
import type { Store } from './store.ts';

export interface StoreCredentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
  readonly region?: string;
}

/** Other programs' `s3://bucket/prefix` does not say which host. */
export function isObjectStore(location: string): boolean {
  return /^s3:(?!\/\/)/i.test(location);
}

/** The client of object stores is loaded only for one. */
export async function openStore(location: string, credentials?: StoreCredentials): Promise<Store> {
  if (!isObjectStore(location)) {
    // Or there would be a folder of that name.
    if (/^[a-z][a-z\d+.-]+:\/\//i.test(location)) {
      throw new RaidError(
        'BAD_ARGUMENT',
        `${location} is an address: a repository is a folder, or a bucket, s3:https://HOST/BUCKET/PREFIX`,
      );
    }
    return new DirectoryStore(location);
  }
  const { S3Store } = await import('./s3.ts');
  return await S3Store.open({
    url: location.slice('s3:'.length),
    accessKeyId: credentials?.accessKeyId ?? '',
    secretAccessKey: credentials?.secretAccessKey ?? '',
    ...(credentials?.sessionToken === undefined ? {} : { sessionToken: credentials.sessionToken }),
    ...(credentials?.region === undefined ? {} : { region: credentials.region }),
  });
}
