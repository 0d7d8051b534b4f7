// Packages that are loaded only when they are needed: as much of them as is used.

declare module 'aws4fetch' {
  export class AwsClient {
    constructor(options: {
      accessKeyId: string;
      secretAccessKey: string;
      sessionToken?: string;
      service?: string;
      region?: string;
    });
    sign(url: string, init: RequestInit): Promise<Request>;
  }
}

declare module 'fzstd' {
  /** Fills `target` where it is given. */
  export function decompress(source: Uint8Array, target?: Uint8Array): Uint8Array;
}
