/**
 * An object store in this process, as strict as a real one where it matters, and with faults to order: it checks signatures
 * (AWS Signature Version 4, written here from its specification and not with the client's library) and the hash of what is
 * sent, honours `If-None-Match: *`, and lists in pages.
 */
import { createHash, createHmac } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export const ACCESS_KEY = 'AKIDEXAMPLE';
export const SECRET_KEY = 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY';

export type Fault =
  /** 503, and nothing happened. */
  | 'unavailable'
  /** Done, and the connection breaks before the answer. */
  | 'lost answer'
  /** The connection breaks in the middle of the answer. */
  | 'broken body'
  /** The answer is said to be longer than it is. */
  | 'slow down';

export interface ServerOptions {
  /** Asked for every request, in order: what goes wrong with it, or null. */
  readonly fault?: (request: { method: string; path: string; count: number }) => Fault | null;
  /** Default true; false: `If-None-Match` is ignored, as by some servers. */
  readonly conditional?: boolean;
  readonly pageSize?: number;
}

export class S3Server implements AsyncDisposable {
  readonly objects = new Map<string, Uint8Array>();
  readonly refusals: string[] = [];
  requests = 0;
  readonly #server: Server;
  readonly #options: ServerOptions;

  private constructor(options: ServerOptions) {
    this.#options = options;
    this.#server = createServer((request, response) => {
      void this.#serve(request, response);
    });
  }

  static async start(options: ServerOptions = {}): Promise<S3Server> {
    const server = new S3Server(options);
    await new Promise<void>((resolve) => server.#server.listen(0, '127.0.0.1', resolve));
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    const body = Buffer.concat(parts);
    const { method = '' } = request;
    const url = new URL(request.url ?? '', this.url);
    this.requests += 1;
    const refusal = refusalOf(request, url, body);
    if (refusal !== null) {
      this.refusals.push(refusal);
      return this.#answer(response, 403, error(refusal));
    }
    const fault = this.#options.fault?.({ method, path: url.pathname, count: this.requests }) ?? null;
    if (fault === 'unavailable') return this.#answer(response, 500, error('InternalError'));
    if (fault === 'slow down') return this.#answer(response, 503, error('SlowDown'));
    const { status, bytes } = this.#perform(method, request, url, body);
    if (fault === 'lost answer') {
      request.socket.destroy();
      return;
    }
    if (fault === 'broken body' && bytes.byteLength > 1) {
      response.writeHead(status, { 'content-length': bytes.byteLength });
      response.write(bytes.subarray(0, bytes.byteLength >> 1), () => request.socket.destroy());
      return;
    }
    this.#answer(response, status, bytes);
  }

  #perform(
    method: string,
    request: IncomingMessage,
    url: URL,
    body: Buffer,
  ): { status: number; bytes: Uint8Array } {
    const [, bucket, ...rest] = decodeURIComponent(url.pathname).split('/');
    const key = rest.join('/');
    if (bucket !== 'bucket') return { status: 404, bytes: error('NoSuchBucket') };
    if (method === 'GET' && key === '') return { status: 200, bytes: this.#list(url.searchParams) };
    if (method === 'PUT') {
      const isConditional = this.#options.conditional !== false && request.headers['if-none-match'] === '*';
      if (isConditional && this.objects.has(key)) return { status: 412, bytes: error('PreconditionFailed') };
      this.objects.set(key, body);
      return { status: 200, bytes: new Uint8Array(0) };
    }
    if (method === 'DELETE') {
      this.objects.delete(key);
      return { status: 204, bytes: new Uint8Array(0) };
    }
    const object = this.objects.get(key);
    if (object === undefined) return { status: 404, bytes: error('NoSuchKey') };
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    if (range === null) return { status: 200, bytes: object };
    const [start, end] = [Number(range[1]), Number(range[2])];
    if (start >= object.byteLength) return { status: 416, bytes: error('InvalidRange') };
    return { status: 206, bytes: object.subarray(start, end + 1) };
  }

  #list(query: URLSearchParams): Uint8Array {
    const { pageSize = 3 } = this.#options;
    const after = query.get('continuation-token') ?? '';
    const keys = [...this.objects.keys()]
      .filter((key) => key.startsWith(query.get('prefix') ?? '') && key > after)
      .sort();
    const page = keys.slice(0, pageSize);
    const isTruncated = keys.length > page.length;
    const contents = page.map(
      (key) =>
        `<Contents><Key>${escapeXml(key)}</Key><Size>${this.objects.get(key)?.byteLength}</Size></Contents>`,
    );
    const next = isTruncated
      ? `<NextContinuationToken>${escapeXml(page.at(-1) ?? '')}</NextContinuationToken>`
      : '';
    return Buffer.from(
      `<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>${isTruncated}</IsTruncated>${contents.join('')}${next}</ListBucketResult>`,
    );
  }

  #answer(response: ServerResponse, status: number, bytes: Uint8Array): void {
    const headers = status === 204 ? {} : { 'content-length': bytes.byteLength };
    response.writeHead(status, headers);
    response.end(status === 204 ? undefined : bytes);
  }
}

function error(code: string): Uint8Array {
  return Buffer.from(`<?xml version="1.0"?><Error><Code>${code}</Code></Error>`);
}

function escapeXml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');
}

/** Why a request is not to be believed; null where it is. */
function refusalOf(request: IncomingMessage, url: URL, body: Buffer): string | null {
  const authorization =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})$/.exec(
      request.headers.authorization ?? '',
    );
  if (authorization === null) return 'AccessDenied';
  const [, key, day = '', region = '', signed = '', signature] = authorization;
  if (key !== ACCESS_KEY) return 'InvalidAccessKeyId';
  const bodyHash = String(request.headers['x-amz-content-sha256'] ?? '');
  if (bodyHash !== sha256(body)) return 'XAmzContentSHA256Mismatch';
  for (const needed of ['host', 'x-amz-content-sha256', 'x-amz-date']) {
    if (!signed.split(';').includes(needed)) return 'AccessDenied';
  }
  const query = [...url.searchParams]
    .map(([name, value]) => `${encode(name)}=${encode(value)}`)
    .sort()
    .join('&');
  const headers = signed
    .split(';')
    .map((name) => `${name}:${String(request.headers[name] ?? '').trim()}\n`)
    .join('');
  const canonical = [request.method, url.pathname, query, headers, signed, bodyHash].join('\n');
  const scope = `${day}/${region}/s3/aws4_request`;
  const text = [
    'AWS4-HMAC-SHA256',
    request.headers['x-amz-date'],
    scope,
    sha256(Buffer.from(canonical)),
  ].join('\n');
  let secret: string | Buffer = `AWS4${SECRET_KEY}`;
  for (const part of [day, region, 's3', 'aws4_request'])
    secret = createHmac('sha256', secret).update(part).digest();
  const wanted = createHmac('sha256', secret).update(text).digest('hex');
  return wanted === signature ? null : 'SignatureDoesNotMatch';
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function encode(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    (sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}
