/**
 * fallocate(2), which Node does not have, through the `fallocate` program of util-linux.
 *
 * The file is handed over as descriptor 3 of the child and named `/proc/self/fd/3` there: no path is involved that
 * could have changed hands since the file was opened, no name needs quoting, and no shell runs.
 *
 * Hazard: a child outlives this process if that is killed in between, and punches a moment later. Whoever opens the
 * file again within those milliseconds and writes to the range can lose that write.
 */
import { spawn } from 'node:child_process';

export type HoleMode = 'punch-hole' | 'zero-range' | 'allocate';

/** Which way space is released, and why. */
export type Punch =
  | { readonly via: 'untried' }
  | { readonly via: 'fallocate' }
  | { readonly via: 'none'; readonly why: string };

/** A TRIM of a whole array arrives as a flood; each child is a process. */
const CHILDREN_MAX = 4;
let children = 0;
const queue: (() => void)[] = [];

/** One for each open file. The first use of a mode is its probe: opening a file must not cost a process. */
export class HolePuncher {
  readonly #fd: number;
  readonly #refused = new Map<HoleMode, string>();
  #worked = false;

  constructor(fd: number) {
    this.#fd = fd;
    if (process.platform !== 'linux') {
      const why = `Node cannot release space on ${process.platform}`;
      for (const mode of ['punch-hole', 'zero-range', 'allocate'] as const) this.#refused.set(mode, why);
    }
  }

  get punch(): Punch {
    const why = this.#refused.get('punch-hole');
    if (why !== undefined) return { via: 'none', why };
    return this.#worked ? { via: 'fallocate' } : { via: 'untried' };
  }

  /**
   * Null when it was done, else why not: then the range may have changed in part, only ever to zeros, and the caller
   * does it another way.
   * "Not supported" is remembered; any other failure (no memory for a process, a full disk) holds for this once.
   */
  async run(mode: HoleMode, offsetBytes: number, lengthBytes: number): Promise<string | null> {
    const refusal = this.#refused.get(mode);
    if (refusal !== undefined) return refusal;
    if (children < CHILDREN_MAX) children += 1;
    else await new Promise<void>((resolve) => queue.push(resolve));
    const failure = await fallocate(this.#fd, mode, offsetBytes, lengthBytes);
    // The next in line inherits the place, so that nobody slips in between.
    const next = queue.shift();
    if (next === undefined) children -= 1;
    else next();
    if (failure === null) {
      if (mode === 'punch-hole') this.#worked = true;
    } else if (/not supported|ENOENT|ENOSYS/i.test(failure)) {
      this.#refused.set(mode, failure);
    }
    return failure;
  }
}

/** What went wrong, or null. */
function fallocate(
  fd: number,
  mode: HoleMode,
  offsetBytes: number,
  lengthBytes: number,
): Promise<string | null> {
  const flags = mode === 'allocate' ? [] : [`--${mode}`];
  const args = [...flags, '--offset', `${offsetBytes}`, '--length', `${lengthBytes}`, '/proc/self/fd/3'];
  return new Promise((resolve) => {
    try {
      const child = spawn('fallocate', args, {
        stdio: ['ignore', 'ignore', 'pipe', fd],
        // The reason is read from its message, so that one must not be translated.
        env: { PATH: process.env['PATH'], LC_ALL: 'C' },
      });
      let said = '';
      child.stderr?.on('data', (text) => {
        if (said.length < 1000) said += text;
      });
      child.on('error', (error) => resolve(`fallocate did not start: ${error.message}`));
      child.on('close', (status) =>
        resolve(status === 0 ? null : said.trim() || `fallocate ended with ${status}`),
      );
    } catch (cause) {
      resolve(`fallocate did not start: ${cause}`);
    }
  });
}
