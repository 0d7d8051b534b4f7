/**
 * What an error comes to on the command line. Its class decides the exit code (lib/errors.ts); what the operating
 * system refused before the library could put a name to it is put into words here.
 */

export interface Failure {
  /** Null for a fault of raidsim itself. */
  readonly code: string | null;
  readonly message: string;
  readonly exitCode: number;
  /** Where it happened, for programs. */
  readonly details: Readonly<Record<string, unknown>>;
}

const UNEXPECTED = 1;
const NEEDS_A_PERSON = 4;

const words: Readonly<Record<string, string>> = {
  EACCES: 'permission denied',
  EPERM: 'the system does not permit it',
  EROFS: 'the file system is read-only',
  ENOENT: 'no such file or folder',
  ENOTDIR: 'it is a file, and a folder is needed',
  EISDIR: 'it is a folder, and a file is needed',
  EEXIST: 'it is there already',
  ENAMETOOLONG: 'the name is too long',
  ELOOP: 'its links lead in a circle',
  ENOSPC: 'the file system is full; make room and try again',
  EDQUOT: 'the quota is used up',
  EFBIG: 'the file system takes no file of this size',
};

/** The library is loaded here only: if it threw, it is loaded already. */
export async function failure(error: unknown): Promise<Failure> {
  const { exitCodeOf, RaidError } = await import('../lib/index.ts');
  const found = error instanceof RaidError ? error : fromSystem(error, RaidError);
  if (found !== null) {
    const { code, message: said, ...details } = found.toRecord();
    const { cause } = found;
    // What lies behind it, where that is another kind of thing: a full file system behind lost redundancy.
    const isNews = cause instanceof RaidError && cause.code !== code && !said.includes(cause.message);
    const message = isNews ? `${said}\n  because: ${cause.message}` : said;
    return {
      code,
      message: inWords(message),
      // No data is lost for want of room: an array's own write that finds none is told as what it has cost (5).
      exitCode: code === 'NO_SPACE' ? NEEDS_A_PERSON : exitCodeOf(code),
      details: { reaction: found.reaction, ...details },
    };
  }
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return { code: null, message, exitCode: UNEXPECTED, details: {} };
}

/** What the system says, `EACCES: permission denied, open 'x'`, as a person would. */
export function inWords(text: string): string {
  return text.replace(
    /\b(E[A-Z]+): [^,\n]*(?:, \w+(?: '[^'\n]*')?)?/g,
    (said, name: string) => words[name] ?? said,
  );
}

type RaidErrorClass = typeof import('../lib/index.ts').RaidError;

function fromSystem(error: unknown, RaidError: RaidErrorClass): InstanceType<RaidErrorClass> | null {
  if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'string') return null;
  const said = words[error.code];
  if (said === undefined) return null;
  const path = 'path' in error && typeof error.path === 'string' ? error.path : 'a file';
  const isFull = error.code === 'ENOSPC' || error.code === 'EDQUOT';
  return new RaidError(isFull ? 'NO_SPACE' : 'BAD_ARGUMENT', `${path}: ${said}`, { cause: error });
}
