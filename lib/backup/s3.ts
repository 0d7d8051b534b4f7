/**
 * A repository in a bucket of an S3-compatible object store, below a prefix.
 *
 * `put` is a PUT with `If-None-Match: *`: 412 where there is one already. The answer to a PUT can be lost after it was
 * done, and the next attempt is then told 412 for its own object: so a 412 that follows an attempt without an answer is
 * settled by looking whether the object is what was to be written.
 *
 * What is sent carries its SHA-256, which the store checks; what comes back carries its length, which is checked here, since
 * connections break in the middle. All else that could be wrong with it, chunks and sums find.
 *
 * Asked for: that list shows what was put before it (S3 since 2020; every store of today that is known), and reads what was
 * written. Not asked for: locks, versions, multipart uploads, any order of time.
 */
import { createHash } from 'node:crypto';
import { RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { checkName, isFileName, type Range, type Store, type StoredFile } from './store.ts';

export interface S3Options {
  /** `https://host/bucket/prefix` */
  readonly url: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
  readonly region?: string;
  readonly host?: Pick<Host, 'sleep' | 'random'>;
}

type Signer = import('aws4fetch').AwsClient;

const ATTEMPTS = 6;
const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 10_000;

/** `fetch` and WebCrypto refuse memory that another thread sees, which is where packs are put together. */
function unshared(bytes: Uint8Array): Uint8Array {
  return bytes.buffer instanceof ArrayBuffer ? bytes : new Uint8Array(bytes);
}

export class S3Store implements Store {
  readonly name: string;
  readonly #signer: Signer;
  readonly #host: Pick<Host, 'sleep' | 'random'>;
  readonly #bucket: string;
  readonly #prefix: string;

  private constructor(signer: Signer, bucket: string, prefix: string, host: Pick<Host, 'sleep' | 'random'>) {
    this.#signer = signer;
    this.#bucket = bucket;
    this.#prefix = prefix;
    this.#host = host;
    this.name = `s3:${bucket}/${prefix}`;
  }

  static async open(options: S3Options): Promise<S3Store> {
    const { AwsClient } = await import('aws4fetch').catch((cause: unknown) => {
      throw new RaidError(
        'NOT_SUPPORTED',
        'object stores need the package aws4fetch: npm install aws4fetch',
        {
          cause,
        },
      );
    });
    const { bucket, prefix } = placeOf(options.url);
    const signer = new AwsClient({
      accessKeyId: options.accessKeyId,
      secretAccessKey: options.secretAccessKey,
      ...(options.sessionToken === undefined ? {} : { sessionToken: options.sessionToken }),
      service: 's3',
      region: options.region ?? 'us-east-1',
    });
    return new S3Store(signer, bucket, prefix, options.host ?? realHost);
  }

  async get(name: string, range?: Range): Promise<Uint8Array | null> {
    checkName(name);
    if (range?.lengthBytes === 0) return new Uint8Array(0);
    const headers: Record<string, string> = {};
    if (range !== undefined)
      headers['Range'] = `bytes=${range.offsetBytes}-${range.offsetBytes + range.lengthBytes - 1}`;
    const answer = await this.#ask({ method: 'GET', name, headers, expect: [200, 206, 404, 416] });
    if (answer.status === 404) return null;
    // The range begins behind the end.
    if (answer.status === 416) return new Uint8Array(0);
    // Some servers know no ranges, and send all of it.
    if (range !== undefined && answer.status === 200)
      return answer.body.subarray(range.offsetBytes, range.offsetBytes + range.lengthBytes);
    return answer.body;
  }

  async put(name: string, bytes: Uint8Array): Promise<boolean> {
    checkName(name);
    const answer = await this.#ask({
      method: 'PUT',
      name,
      headers: { 'If-None-Match': '*' },
      body: unshared(bytes),
      expect: [200, 201, 204, 412],
    });
    if (answer.status !== 412) return true;
    if (!answer.isRepeated) return false;
    const found = await this.get(name);
    return found !== null && Buffer.compare(found, bytes) === 0;
  }

  async replace(name: string, bytes: Uint8Array): Promise<void> {
    checkName(name);
    await this.#ask({ method: 'PUT', name, headers: {}, body: unshared(bytes), expect: [200, 201, 204] });
  }

  async list(prefix: string): Promise<readonly StoredFile[]> {
    const found: StoredFile[] = [];
    for (let token: string | null = ''; token !== null; ) {
      const query = new URLSearchParams({ 'list-type': '2', prefix: `${this.#prefix}${prefix}` });
      if (token !== '') query.set('continuation-token', token);
      const answer = await this.#ask({ method: 'GET', name: null, query, headers: {}, expect: [200] });
      const page = Buffer.from(answer.body).toString('utf8');
      if (!page.includes('<ListBucketResult')) throw this.#failed('list', 'the answer is no list of objects');
      for (const [, entry = ''] of page.matchAll(/<Contents>([\s\S]*?)<\/Contents>/g)) {
        const [key, size] = [textIn(entry, 'Key'), textIn(entry, 'Size')];
        if (key === null || size === null || !key.startsWith(this.#prefix)) continue;
        const name = key.slice(this.#prefix.length);
        if (isFileName(name)) found.push({ name, sizeBytes: Number(size) });
      }
      token = textIn(page, 'IsTruncated') === 'true' ? textIn(page, 'NextContinuationToken') : null;
    }
    return found.sort((left, right) => (left.name < right.name ? -1 : 1));
  }

  async delete(name: string): Promise<void> {
    checkName(name);
    await this.#ask({ method: 'DELETE', name, headers: {}, expect: [200, 204, 404] });
  }

  /** Until there is an answer that is one of those expected; what may pass is tried again, after a while. */
  async #ask(request: S3Request): Promise<Answer> {
    let isRepeated = false;
    for (let attempt = 1; ; attempt += 1) {
      const found = await this.#attempt(request);
      if (typeof found !== 'string') return { ...found, isRepeated };
      if (attempt === ATTEMPTS) throw this.#failed(request.name ?? 'list', found);
      isRepeated = true;
      const pause = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (attempt - 1));
      await this.#host.sleep(pause / 2 + this.#host.random(pause / 2));
    }
  }

  /** An answer, or why there is none that could be relied on. */
  async #attempt({
    method,
    name,
    query,
    headers,
    body,
    expect,
  }: S3Request): Promise<{ status: number; body: Uint8Array } | string> {
    const url =
      name === null
        ? `${this.#bucket}/?${query ?? ''}`
        : `${this.#bucket}/${encodePath(this.#prefix + name)}`;
    const request = await this.#signer.sign(url, {
      method,
      headers: {
        ...headers,
        'X-Amz-Content-Sha256': createHash('sha256')
          .update(body ?? '')
          .digest('hex'),
      },
      ...(body === undefined ? {} : { body }),
    });
    let response: Response;
    let bytes: Uint8Array;
    try {
      response = await fetch(request);
      bytes = new Uint8Array(await response.arrayBuffer());
    } catch (cause) {
      return reasonOf(cause);
    }
    const { status } = response;
    const length = response.headers.get('content-length');
    if (length !== null && Number(length) !== bytes.byteLength)
      return `the answer broke off after ${bytes.byteLength} of ${length} bytes`;
    if (expect.includes(status) && !isNoSuchBucket(status, bytes)) return { status, body: bytes };
    const said = textIn(Buffer.from(bytes).toString('utf8'), 'Code') ?? `HTTP ${status}`;
    // 409: two conditional writes at once, none of which was decided.
    if (status >= 500 || status === 429 || status === 408 || status === 409) return said;
    throw this.#refused(name ?? 'list', status, said);
  }

  #refused(name: string, status: number, said: string): RaidError {
    const place = { device: this.name };
    if (status === 401 || status === 403) {
      return new RaidError('READ_ONLY', `${this.name}: ${name} is not permitted (${said})`, place);
    }
    if (status === 507) return new RaidError('NO_SPACE', `${this.name}: the store is full (${said})`, place);
    return this.#failed(name, said);
  }

  #failed(name: string, why: string): RaidError {
    return new RaidError('STORE_FAILED', `${this.name}: ${name}: ${why}; nothing is known to be lost`, {
      device: this.name,
    });
  }
}

interface S3Request {
  readonly method: 'GET' | 'PUT' | 'DELETE';
  readonly name: string | null;
  readonly query?: URLSearchParams;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
  readonly expect: readonly number[];
}

interface Answer {
  readonly status: number;
  readonly body: Uint8Array;
  /** There was an attempt before it whose outcome nobody knows. */
  readonly isRepeated: boolean;
}

function placeOf(text: string): { readonly bucket: string; readonly prefix: string } {
  const refuse = (): never => {
    throw new RaidError('BAD_ARGUMENT', `s3:${text} names no bucket; write s3:https://HOST/BUCKET/PREFIX`);
  };
  const url = URL.canParse(text) ? new URL(text) : refuse();
  if (!/^https?:$/.test(url.protocol) || url.search !== '' || url.username !== '') refuse();
  const [bucket = '', ...rest] = decodeURIComponent(url.pathname)
    .split('/')
    .filter((part) => part !== '');
  if (bucket === '') refuse();
  return { bucket: `${url.origin}/${encodePath(bucket)}`, prefix: rest.map((part) => `${part}/`).join('') };
}

/** As S3 wants it: each part by RFC 3986. */
function encodePath(path: string): string {
  const encode = (part: string): string =>
    encodeURIComponent(part).replace(
      /[!'()*]/g,
      (sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`,
    );
  return path.split('/').map(encode).join('/');
}

function textIn(xml: string, tag: string): string | null {
  const found = new RegExp(`<${tag}>([^<]*)</${tag}>`).exec(xml)?.[1];
  return found === undefined ? null : decodeEntities(found);
}

const entities: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" };

function decodeEntities(text: string): string {
  return text.replace(/&(?:#x([0-9a-fA-F]+)|#(\d+)|(\w+));/g, (whole, hex, decimal, name) => {
    if (hex !== undefined) return String.fromCodePoint(Number.parseInt(hex, 16));
    if (decimal !== undefined) return String.fromCodePoint(Number(decimal));
    return entities[name] ?? whole;
  });
}

/** 404 for an object is an answer; for the bucket it is none. */
function isNoSuchBucket(status: number, body: Uint8Array): boolean {
  return status === 404 && textIn(Buffer.from(body).toString('utf8'), 'Code') === 'NoSuchBucket';
}

function reasonOf(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause);
  const { cause: inner } = cause;
  return inner instanceof Error && inner.message !== ''
    ? `${cause.message}: ${inner.message}`
    : cause.message;
}
