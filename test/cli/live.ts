/** An array that another process serves, as tests of verbs want one. */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Outcome, Scratch, startRaidsim } from './raidsim.ts';

/** An array in a folder of its own, and the process that serves it. */
export class Live implements AsyncDisposable {
  readonly scratch: Scratch;
  readonly #process: ChildProcess;
  readonly #ended: Promise<unknown>;
  said = '';

  private constructor(scratch: Scratch, args: readonly string[]) {
    this.scratch = scratch;
    this.#process = startRaidsim(['serve', 'demo', ...args], scratch.folder);
    // By then all that it said has been heard.
    this.#ended = once(this.#process, 'close');
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      stream?.on('data', (chunk: Buffer) => {
        this.said += chunk.toString();
      });
    }
  }

  static async make(create: string, args: readonly string[] = []): Promise<Live> {
    const scratch = await Scratch.make();
    await scratch.done(`create demo ${create} -q`);
    const live = await Live.serve(scratch, args);
    return live;
  }

  static async serve(scratch: Scratch, args: readonly string[] = []): Promise<Live> {
    const live = new Live(scratch, args);
    await live.until(() => live.said.includes('ready'));
    return live;
  }

  async until(isSo: () => boolean | Promise<boolean>): Promise<void> {
    for (const end = performance.now() + 60_000; !(await isSo()); await sleep(20)) {
      if (performance.now() > end) throw new Error(`it did not come to that; the server said:\n${this.said}`);
    }
  }

  /** Words as in a shell without quotes; a process of its own. */
  run(line: string, input?: Uint8Array): Promise<Outcome> {
    return this.scratch.run(line, input);
  }

  async done(line: string, input?: Uint8Array): Promise<string> {
    const { code, stdout, stderr } = await this.run(line, input);
    if (code !== 0) throw new Error(`raidsim ${line} ended with ${code}: ${stderr}`);
    return stdout;
  }

  async status(): Promise<Status> {
    return JSON.parse((await this.run('status demo --json')).stdout) as Status;
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<unknown> {
    this.#process.kill(signal);
    const [code] = (await this.#ended) as unknown[];
    return code;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) await this.stop();
    await this.scratch[Symbol.asyncDispose]();
  }
}

export interface Status {
  readonly state: string;
  readonly degraded: number;
  readonly served: string | null;
  readonly sync: { readonly doneBytes: number } | null;
  readonly members: readonly {
    readonly name: string;
    readonly source: string;
    readonly slot: number | null;
    readonly state: string;
    readonly errors: { readonly corrected: number };
    readonly because?: string;
  }[];
}
