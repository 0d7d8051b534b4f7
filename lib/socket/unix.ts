/**
 * A Unix socket that only its owner can reach.
 *
 * Node cannot ask who is at the other end (SO_PEERCRED), so that who may come is decided by the file system alone: the
 * socket is made with umask 077, in a folder that nobody else can write to, so that nobody can put another one in its
 * place. A folder that is not there is made, for its owner only (0700).
 *
 * What already has the name is not removed, but for one case: a socket of ours at which nobody listens any more, left by
 * a process that was killed. A link is never followed.
 */
import { lstat, mkdir, open, stat, unlink } from 'node:fs/promises';
import { createConnection, type Server, type Socket } from 'node:net';
import { dirname, join, resolve } from 'node:path';
import { assert, RaidError } from '../errors.ts';

/** `sun_path` less its zero byte: of a longer name the system would take the beginning, or nothing. */
export const SOCKET_PATH_BYTES = 107;

export interface UnixSocket {
  readonly path: string;
  /** Closes the server, which removes the name, and resolves when its last connection is gone. */
  close(): Promise<void>;
}

/** Makes `server` listen at this path. */
export async function listenAt(server: Server, path: string): Promise<UnixSocket> {
  const absolute = resolve(path);
  await prepareFolder(dirname(absolute), absolute);
  await makeWay(absolute);
  // Open as long as the server: it removes the name that it was given, whatever that name leads to by then.
  const short = await shortened(absolute);
  try {
    await listen(server, short.path);
  } catch (error) {
    await short.close();
    throw error;
  }
  const made = await lstat(absolute);
  assert(
    made.isSocket() && (made.mode & 0o077) === 0,
    'a socket that was made under umask 077 is its owner’s',
  );
  return {
    path: absolute,
    async close() {
      await new Promise<void>((done) => server.close(() => done()));
      await short.close();
    },
  };
}

/** A connection to who listens at this path; null when nobody does. */
export async function connectTo(path: string): Promise<Socket | null> {
  const absolute = resolve(path);
  const short = await shortened(absolute).catch(() => null);
  if (short === null) return null;
  try {
    return await new Promise((done, reject) => {
      const socket = createConnection(short.path);
      socket.once('connect', () => {
        socket.removeAllListeners('error');
        done(socket);
      });
      socket.once('error', (error: NodeJS.ErrnoException) => {
        const isNobody =
          error.code === 'ENOENT' || error.code === 'ECONNREFUSED' || error.code === 'ENOTSOCK';
        if (isNobody) done(null);
        else reject(new RaidError('BUSY', `${path}: cannot connect (${error.code})`, { cause: error }));
      });
    });
  } finally {
    await short.close();
  }
}

async function prepareFolder(folder: string, path: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const found = await stat(folder);
  const isOpenToOthers = (found.mode & 0o022) !== 0 && (found.mode & 0o1000) === 0;
  const isOthers = process.getuid !== undefined && found.uid !== process.getuid() && found.uid !== 0;
  if (isOpenToOthers || isOthers) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${path}: others can write to ${folder}, and could put a socket of theirs in its place; use a folder of your own (chmod go-w ${folder})`,
    );
  }
}

async function makeWay(path: string): Promise<void> {
  const found = await lstat(path).catch(() => null);
  if (found === null) return;
  if (!found.isSocket()) {
    const what = found.isSymbolicLink() ? 'a link' : 'something that is no socket';
    throw new RaidError('BUSY', `${path} is ${what}, and stays; give another path for the socket`);
  }
  const peer = await connectTo(path);
  if (peer !== null) {
    peer.destroy();
    throw new RaidError('BUSY', `somebody listens at ${path} already`);
  }
  if (process.getuid !== undefined && found.uid !== process.getuid()) {
    throw new RaidError('BUSY', `${path} is a socket of another user, and stays`);
  }
  await unlink(path);
}

/** The same file under a name that is short enough: on Linux by way of its folder's descriptor. */
async function shortened(
  path: string,
): Promise<{ readonly path: string; readonly close: () => Promise<void> }> {
  if (Buffer.byteLength(path) <= SOCKET_PATH_BYTES) return { path, close: () => Promise.resolve() };
  if (process.platform !== 'linux') {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${path}: a socket's path has no more than ${SOCKET_PATH_BYTES} bytes; give a shorter one`,
    );
  }
  const folder = await open(dirname(path), 'r');
  const name = path.slice(dirname(path).length + 1);
  return { path: join('/proc/self/fd', String(folder.fd), name), close: () => folder.close() };
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((done, reject) => {
    const fail = (error: NodeJS.ErrnoException): void => {
      reject(new RaidError('BAD_ARGUMENT', `${path}: cannot listen (${error.code})`, { cause: error }));
    };
    server.once('error', fail);
    // The name is made before `listen` returns.
    const before = process.umask(0o077);
    try {
      server.listen({ path }, () => {
        server.off('error', fail);
        done();
      });
    } finally {
      process.umask(before);
    }
  });
}
