/** Serves an array over NBD, and to the other verbs. */
import type { Command } from 'commander';
import type { ArrayStatus, NbdEvent } from '../../lib/index.ts';
import { type ListenOptions, listenOptions, tlsOf } from '../listening.ts';
import { examples, jsonOption, quietOption } from '../options.ts';

interface Options extends ListenOptions {
  readonly socket?: string;
  readonly readonly?: boolean;
  readonly export?: string;
  readonly snapshot?: readonly string[];
  readonly clone?: readonly string[];
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** How often the array is looked at for news. */
const LOOK_MS = 200;
/** An array that cannot be closed, since a disk does not answer, is not waited for any longer. */
const CLOSE_MS = 30_000;

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .option(
      '--socket <path>',
      'the Unix socket of NBD clients (default: nbd.sock in the folder of the array)',
    )
    .option('--readonly', 'nobody writes, and no disk is written to')
    .option('--export <name>', 'the name of the export (default: that of the folder)')
    .option(
      '--snapshot <name>',
      'this snapshot too, read-only, as ARRAY@NAME; more than once for more of them',
      (name: string, before: readonly string[] = []) => [...before, name],
    )
    .option(
      '--clone <name>',
      'a clone of this snapshot too, to be written to, as ARRAY@NAME@clone; more than once for more of them',
      (name: string, before: readonly string[] = []) => [...before, name],
    );
  listenOptions(command, 'let everybody read and write who can reach --listen')
    .addOption(jsonOption('what happens as JSON lines'))
    .addOption(quietOption('only the line "ready"'))
    .action(async (folder: string, options: Options) => {
      await run(folder, options);
    });
  examples(
    command,
    [
      'raidsim serve demo',
      'raidsim serve demo --listen 127.0.0.1:10809',
      'raidsim serve demo --listen 0.0.0.0:10809 --tls-certificates pki',
      'raidsim serve demo --snapshot before-upgrade',
      'raidsim serve demo --clone before-upgrade',
      "nbdinfo 'nbd+unix:///?socket=demo/nbd.sock'",
      "nbdcopy 'nbd+unix:///demo@before-upgrade?socket=demo/nbd.sock' before.img",
    ],
    `Prints "ready URI" when clients may connect, and then what happens, until Ctrl-C: then what is in flight is finished,
and the array is stopped clean. Meanwhile the other verbs work on it as ever: raidsim fail demo disk1, raidsim status demo.

A clone begins as the snapshot. What is written to it goes to a file in the folder of the array, NAME.clone, and is there again the
next time; array and snapshot stay as they are. raidsim snapshot delete ARRAY NAME --clone throws it away.`,
  );
}

async function run(folder: string, options: Options): Promise<void> {
  const { join } = await import('node:path');
  const { Serving } = await import('../serving.ts');
  const { stopAsked } = await import('../signals.ts');

  // Whoever read our output may go; the array stays served.
  process.stdout.removeAllListeners('error');
  process.stdout.on('error', () => undefined);
  // Everything made from here on is for its owner only: sockets, and disks that are added.
  process.umask(0o077);
  const stop = stopAsked();
  const teller = new Teller(options);
  const serving = await Serving.start(folder, {
    readOnly: options.readonly === true,
    socket: options.socket ?? join(folder, 'nbd.sock'),
    listen: options.listen ?? null,
    exportName: options.export ?? null,
    snapshots: [...new Set(options.snapshot ?? [])],
    clones: [...new Set(options.clone ?? [])],
    tls: await tlsOf(options),
    insecure: options.insecure === true,
    onEvent: (event) => teller.client(event),
  });
  teller.ready(serving.uris);
  teller.array(serving.array.status());
  const looking = setInterval(() => {
    if (!serving.array.isClosed) teller.array(serving.array.status());
  }, LOOK_MS);
  const signal = await stop;
  clearInterval(looking);
  teller.say({ type: 'stopping', signal }, `stopping (${signal})`);
  const alarm = setTimeout(() => {
    process.stderr.write('a disk does not answer: the array is left as it is, and is not marked clean\n');
    process.exit(1);
  }, CLOSE_MS);
  await serving.close();
  clearTimeout(alarm);
  teller.say({ type: 'stopped' }, 'stopped');
}

/** What happens, a line each: `ready` first. */
class Teller {
  readonly #options: Options;
  #before: ArrayStatus | null = null;

  constructor(options: Options) {
    this.#options = options;
  }

  ready(uris: readonly string[]): void {
    const [first, ...others] = uris;
    if (this.#options.json === true) this.#print(JSON.stringify({ type: 'ready', uris, pid: process.pid }));
    else this.#print([`ready ${first}`, ...others.map((uri) => `also ${uri}`)].join('\n'));
  }

  client(event: NbdEvent): void {
    const { event: type, ...rest } = event;
    const because = event.event === 'disconnected' && event.because !== null ? `: ${event.because}` : '';
    this.say({ type, ...rest }, `client ${event.client} ${type} (${event.peer})${because}`);
  }

  /** What is new since it was looked at last. */
  array(now: ArrayStatus): void {
    const before = this.#before;
    this.#before = now;
    for (const member of now.members) {
      const old = before?.members.find(({ name }) => name === member.name);
      if (before === null || member.name === '-' || old?.state === member.state) continue;
      const { name, state, because } = member;
      this.say(
        { type: 'member', name, state, because },
        `${name} is ${state}${because === undefined ? '' : `: ${because}`}`,
      );
    }
    if (before === null || before.sync?.action !== now.sync?.action) {
      const { sync } = now;
      if (sync !== null) this.say({ type: 'sync', ...sync }, `${sync.action} begins`);
      else if (before !== null) this.say({ type: 'sync', action: null }, `${before.sync?.action} ends`);
    }
    // Between clean and active it goes back and forth with every write.
    const word = (state: string): string => (state === 'active' ? 'clean' : state);
    if (before === null || word(before.state) !== word(now.state)) {
      const { state, degraded } = now;
      this.say({ type: 'state', state: word(state), degraded }, `${now.name} is ${word(state)}`);
    }
  }

  say(json: object, text: string): void {
    if (this.#options.json === true) this.#print(JSON.stringify(json));
    else if (this.#options.quiet !== true) this.#print(text);
  }

  #print(line: string): void {
    if (!process.stdout.destroyed) process.stdout.write(`${line}\n`);
  }
}
