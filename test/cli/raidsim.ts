/** Runs the built command line as a user would. */
import { type ChildProcess, execFile, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Where {
  readonly cwd?: string;
  /** For standard input; nothing otherwise. */
  readonly input?: Uint8Array | string;
}

export const program = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const typist = fileURLToPath(new URL('../../dist/test/cli/typist.js', import.meta.url));

export function raidsim(
  args: readonly string[],
  environment: NodeJS.ProcessEnv = {},
  where: Where = {},
): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = execFile(
      process.execPath,
      [program, ...args],
      {
        env: { ...process.env, NO_COLOR: '1', ...environment },
        maxBuffer: 2 ** 26,
        ...(where.cwd === undefined ? {} : { cwd: where.cwd }),
      },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : error.code;
        if (typeof code === 'number') resolve({ code, stdout, stderr });
        else reject(error);
      },
    );
    // The program may have ended without reading what it was given.
    child.stdin?.on('error', () => undefined);
    child.stdin?.end(where.input);
  });
}

/** For what goes on until it is stopped. */
export function startRaidsim(args: readonly string[], cwd: string): ChildProcess {
  return spawn(process.execPath, [program, ...args], { cwd, env: { ...process.env, NO_COLOR: '1' } });
}

/** A folder of its own for a test. */
export class Scratch implements AsyncDisposable {
  readonly folder: string;
  #typist: ChildProcess | null = null;

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async make(): Promise<Scratch> {
    return new Scratch(await mkdtemp(join(tmpdir(), 'raidsim-cli-')));
  }

  path(...names: readonly string[]): string {
    return join(this.folder, ...names);
  }

  /** A process of its own, in this folder; words as in a shell without quotes. */
  run(line: string, input?: Uint8Array | string): Promise<Outcome> {
    const where = input === undefined ? { cwd: this.folder } : { cwd: this.folder, input };
    return raidsim(line.split(' '), {}, where);
  }

  /** The same as one of many lines in one process, one after the other. */
  async type(line: string): Promise<Outcome> {
    this.#typist ??= fork(typist, {
      cwd: this.folder,
      env: { ...process.env, NO_COLOR: '1' },
      execArgv: [],
      silent: true,
    });
    const answer = once(this.#typist, 'message') as Promise<[Outcome]>;
    this.#typist.send(line.split(' '));
    const [outcome] = await answer;
    return outcome;
  }

  /** Typed, and nothing but success is expected. */
  async done(line: string): Promise<string> {
    const { code, stdout, stderr } = await this.type(line);
    if (code !== 0) throw new Error(`raidsim ${line} ended with ${code}: ${stderr}`);
    return stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#typist?.kill();
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Bytes that differ everywhere, and are the same every time. */
export function sampleBytes(length: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  let state = 1;
  for (let index = 0; index < words.length; index += 1) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    words[index] = state;
  }
  return new Uint8Array(words.buffer, 0, length);
}
