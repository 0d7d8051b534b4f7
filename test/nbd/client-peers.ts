/** NBD servers that others wrote, as processes that a test starts, stops, kills and starts again. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  watch,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const kit = { program: 'nbdkit', from: 'nbdkit', isThere: runs('nbdkit', '--version') };
export const qemu = { program: 'qemu-nbd', from: 'qemu-utils', isThere: runs('qemu-nbd', '--version') };
export const openssl = { program: 'openssl', from: 'openssl', isThere: runs('openssl', 'version') };

function runs(program: string, ...args: readonly string[]): boolean {
  return spawnSync(program, args).status === 0;
}

export class PeerServer {
  readonly uri: string;
  readonly #folder: string;
  readonly #program: string;
  readonly #args: readonly string[];
  readonly #socket: string;
  readonly #pidFile: string;
  #child: ChildProcess | null = null;

  constructor(folder: string, name: string, program: 'nbdkit' | 'qemu-nbd', args: readonly string[]) {
    this.#folder = folder;
    this.#socket = join(folder, `${name}.sock`);
    this.#pidFile = join(folder, `${name}.pid`);
    this.#program = program;
    this.#args =
      program === 'nbdkit'
        ? ['-f', '--exit-with-parent', '-U', this.#socket, '--pidfile', this.#pidFile, ...args]
        : ['--persistent', '--shared=0', '-k', this.#socket, `--pid-file=${this.#pidFile}`, ...args];
    this.uri = `nbd+unix:///?socket=${this.#socket}`;
  }

  /** Resolves when clients may connect: both programs write their number only then. */
  async start(): Promise<void> {
    rmSync(this.#socket, { force: true });
    rmSync(this.#pidFile, { force: true });
    await new Promise<void>((resolve, reject) => {
      const watcher = watch(this.#folder, () => {
        if (!existsSync(this.#pidFile) || !readFileSync(this.#pidFile, 'utf8').endsWith('\n')) return;
        watcher.close();
        resolve();
      });
      const child = spawn(this.#program, this.#args, { stdio: ['ignore', 'ignore', 'inherit'] });
      child.once('exit', (code) => {
        watcher.close();
        reject(new Error(`${this.#program} ${this.#args.join(' ')} ended with ${code}`));
      });
      this.#child = child;
    });
  }

  signal(name: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): void {
    this.#child?.kill(name);
    if (name === 'SIGSTOP') while (!this.#isStopped());
    if (name === 'SIGKILL') this.#child = null;
  }

  /** A stop begins when one thread takes the signal; until it has had its turn the others go on, and answer. */
  #isStopped(): boolean {
    const tasks = `/proc/${this.#child?.pid}/task`;
    if (!existsSync(tasks)) return true;
    return readdirSync(tasks).every((task) =>
      /\) [TtZX] /.test(readFileSync(`${tasks}/${task}/stat`, 'utf8')),
    );
  }
}

/** A folder, in memory where there is some, and the servers in it. */
export class Lab {
  readonly folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'raidsim-nbd-'));
  readonly #servers: PeerServer[] = [];
  #count = 0;

  nbdkit(...args: readonly string[]): Promise<PeerServer> {
    return this.#add('nbdkit', args);
  }

  qemu(...args: readonly string[]): Promise<PeerServer> {
    return this.#add('qemu-nbd', args);
  }

  /** A file of zeros. */
  file(sizeBytes: number): string {
    this.#count += 1;
    const path = join(this.folder, `file${this.#count}.img`);
    writeFileSync(path, '');
    truncateSync(path, sizeBytes);
    return path;
  }

  remove(): void {
    for (const server of this.#servers) server.signal('SIGKILL');
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #add(program: 'nbdkit' | 'qemu-nbd', args: readonly string[]): Promise<PeerServer> {
    this.#count += 1;
    const server = new PeerServer(this.folder, `s${this.#count}`, program, args);
    this.#servers.push(server);
    await server.start();
    return server;
  }
}
