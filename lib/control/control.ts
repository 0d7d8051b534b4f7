/**
 * Live control: the process that has an array open carries out what others ask of it. Lines of JSON over a Unix socket in
 * the array's folder, which only its owner can open (lib/socket).
 *
 *   both ends   {"raidsimControl":1,"cwd":"/home/me"}               the first line
 *   client      {"id":1,"do":"rebuild","with":{...}}
 *   server      {"id":1,"step":...}                                 any number of them, then one of
 *               {"id":1,"done":...}    {"id":1,"error":{"code":"BUSY","message":"..."}}
 *   client      {"id":1,"stop":true}                                it no longer listens
 *
 * What may be asked is a table of operations, each of which yields steps and returns a result; what a client calls looks the
 * same as what the server carries out. An operation whose client has gone is left as an iteration is left by `break`: it may
 * clean up, and what it watched goes on.
 *
 * Both ends are the same user and mostly the same program, but not always the same version: a number says which language is
 * spoken, and another one is refused. A line has its limits, and what is no request ends the connection.
 */
import { createServer, type Socket } from 'node:net';
import { errnoName } from '../device/errno.ts';
import { type ErrorRecord, RaidError } from '../errors.ts';
import { connectTo, listenAt, type UnixSocket } from '../socket/unix.ts';
import { MIB } from '../units.ts';

export const CONTROL_SOCKET = 'control.sock';

const VERSION = 1;
/** A piece of data in a line is a mebibyte, and a third more as base64. */
const LINE_BYTES = 4 * MIB;
const CONNECTIONS = 64;
const CALLS = 16;

export type Operation = (input: never, client: Caller) => AsyncGenerator<unknown, unknown>;

export interface Caller {
  /** Where relative paths of the client begin. */
  readonly cwd: string;
}

export type Operations = Readonly<Record<string, Operation>>;

interface Greeting {
  readonly raidsimControl: number;
  readonly cwd: string;
}

interface Call {
  readonly id: number;
  readonly do: string;
  readonly with: unknown;
}

type Answer = { readonly id: number } & (
  | { readonly step: unknown }
  | { readonly done: unknown }
  | { readonly error: CrossingError }
);

/** `code` null: what the system refused, by its name for that, or a fault of the program itself. */
type CrossingError =
  | ErrorRecord
  | { readonly code: null; readonly message: string; readonly system?: SystemError };

interface SystemError {
  readonly code: string;
  readonly path?: string;
}

export class ControlServer implements AsyncDisposable {
  readonly #operations: Operations;
  readonly #connections = new Set<Connection>();
  #socket: UnixSocket | null = null;
  #closing: Promise<void> | null = null;

  private constructor(operations: Operations) {
    this.#operations = operations;
  }

  static async listen(path: string, operations: Operations): Promise<ControlServer> {
    const control = new ControlServer(operations);
    const server = createServer((socket) => control.#accept(socket));
    server.on('error', () => undefined);
    control.#socket = await listenAt(server, path);
    return control;
  }

  /** Operations under way are left. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      const closed = this.#socket?.close();
      for (const connection of this.#connections) connection.destroy();
      await closed;
    })();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #accept(socket: Socket): void {
    if (this.#closing !== null || this.#connections.size >= CONNECTIONS) {
      socket.destroy();
      return;
    }
    const connection = new Connection(socket, this.#operations, () => this.#connections.delete(connection));
    this.#connections.add(connection);
  }
}

/** The server's side of one client. */
class Connection {
  readonly #socket: Socket;
  readonly #operations: Operations;
  readonly #calls = new Map<number, AsyncGenerator<unknown, unknown>>();
  #cwd: string | null = null;
  /** While the client has more to read than the socket holds. */
  #room: Promise<void> | null = null;

  constructor(socket: Socket, operations: Operations, ended: () => void) {
    this.#socket = socket;
    this.#operations = operations;
    socket.on('error', () => undefined);
    socket.on('close', () => {
      ended();
      this.#leaveAll();
    });
    readLines(socket, (line) => this.#take(line));
    sendLine(socket, greeting());
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #take(line: unknown): void {
    if (this.#cwd === null) {
      // Whoever speaks another version has had our greeting, and says so to its user.
      if (!isGreeting(line) || line.raidsimControl !== VERSION) this.destroy();
      else this.#cwd = line.cwd;
      return;
    }
    if (isStop(line)) {
      leave(this.#calls.get(line.id));
      this.#calls.delete(line.id);
    } else if (isCall(line) && !this.#calls.has(line.id) && this.#calls.size < CALLS) {
      void this.#carryOut(line, { cwd: this.#cwd });
    } else this.destroy();
  }

  async #carryOut(call: Call, caller: Caller): Promise<void> {
    const { id } = call;
    try {
      const operation = Object.hasOwn(this.#operations, call.do) ? this.#operations[call.do] : undefined;
      if (operation === undefined) {
        throw new RaidError('NOT_SUPPORTED', `the process that serves the array does not know "${call.do}"`);
      }
      // The table says what each takes; a client of the same version sends that.
      const steps = operation(call.with as never, caller);
      this.#calls.set(id, steps);
      for (;;) {
        const { done, value } = await steps.next();
        if (!this.#calls.has(id)) return;
        if (done === true) {
          this.#end(id, { id, done: value ?? null });
          return;
        }
        await this.#say({ id, step: value });
      }
    } catch (error) {
      this.#end(id, { id, error: crossing(error) });
    }
  }

  /** The call is over when its answer is written, not when it is read: who has read it may have asked the next one already. */
  #end(id: number, answer: Answer): void {
    this.#calls.delete(id);
    void this.#say(answer);
  }

  /**
   * Resolves when there is room for more. Until then nothing is heard from a client that does not read: what it has been told and
   * not taken is kept here, and must not grow.
   */
  #say(answer: Answer): Promise<void> {
    if (this.#socket.destroyed || sendLine(this.#socket, answer)) return Promise.resolve();
    this.#room ??= new Promise<void>((goOn) => {
      const once = (): void => {
        this.#socket.off('drain', once);
        this.#socket.off('close', once);
        this.#room = null;
        this.#socket.resume();
        goOn();
      };
      this.#socket.pause();
      this.#socket.on('drain', once);
      this.#socket.on('close', once);
    });
    return this.#room;
  }

  #leaveAll(): void {
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const steps of calls) leave(steps);
  }
}

/** As `break` leaves an iteration; a step that is under way ends first. */
function leave(steps: AsyncGenerator<unknown, unknown> | undefined): void {
  steps?.return(undefined).catch(() => undefined);
}

/** The client's side: what is called here is carried out there. */
export class ControlClient implements AsyncDisposable {
  readonly #socket: Socket;
  readonly #calls = new Map<number, Listening>();
  /** Where relative paths of the server begin. */
  #cwd = '';
  #lastId = 0;
  #lost: RaidError | null = null;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('error', () => undefined);
  }

  /** Null where nobody listens. */
  static async connect(path: string): Promise<ControlClient | null> {
    const socket = await connectTo(path);
    if (socket === null) return null;
    const client = new ControlClient(socket);
    await client.#greet(path);
    return client;
  }

  get cwd(): string {
    return this.#cwd;
  }

  async *call(operation: string, input: unknown): AsyncGenerator<unknown, unknown> {
    if (this.#lost !== null) throw this.#lost;
    this.#lastId += 1;
    const id = this.#lastId;
    const listening = new Listening();
    this.#calls.set(id, listening);
    sendLine(this.#socket, { id, do: operation, with: input ?? null });
    try {
      for (;;) {
        const answer = await listening.next();
        if ('step' in answer) yield answer.step;
        else if ('done' in answer) return answer.done;
        else throw uncrossed(answer.error);
      }
    } finally {
      this.#calls.delete(id);
      if (!listening.isOver && !this.#socket.destroyed) sendLine(this.#socket, { id, stop: true });
    }
  }

  async close(): Promise<void> {
    if (this.#socket.destroyed) return;
    await new Promise<void>((done) => {
      this.#socket.once('close', () => done());
      this.#socket.destroySoon();
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #greet(path: string): Promise<void> {
    return new Promise((done, reject) => {
      const refuse = (why: string): void => {
        this.#socket.destroy();
        reject(new RaidError('NOT_SUPPORTED', `${path}: ${why}`));
      };
      this.#socket.once('close', () => {
        refuse('the process that serves the array hung up');
        this.#lose('the process that served the array is gone');
      });
      let isGreeted = false;
      readLines(this.#socket, (line) => {
        if (isGreeted) {
          if (isAnswer(line)) this.#calls.get(line.id)?.take(line);
          return;
        }
        isGreeted = true;
        if (!isGreeting(line)) refuse('who listens there is not raidsim');
        else if (line.raidsimControl !== VERSION) {
          refuse(
            `the process that serves the array speaks version ${line.raidsimControl} of live control, and this one version ${VERSION}; use the same raidsim for both`,
          );
        } else {
          this.#cwd = line.cwd;
          done();
        }
      });
      sendLine(this.#socket, greeting());
    });
  }

  #lose(why: string): void {
    // What was asked may have been done, or not.
    const { code, message } = new RaidError(
      'WRITE_MAYBE_APPLIED',
      `${why}; what it was doing may be done, or not`,
    );
    this.#lost = new RaidError(code, message);
    for (const [id, listening] of this.#calls) {
      listening.take({ id, error: { code, message, injected: false } });
    }
  }
}

/** Answers that have come and are not taken yet. */
class Listening {
  readonly #answers: Answer[] = [];
  #wake: (() => void) | null = null;
  isOver = false;

  take(answer: Answer): void {
    this.isOver ||= !('step' in answer);
    this.#answers.push(answer);
    this.#wake?.();
  }

  async next(): Promise<Answer> {
    for (;;) {
      const answer = this.#answers.shift();
      if (answer !== undefined) return answer;
      await new Promise<void>((wake) => {
        this.#wake = wake;
      });
    }
  }
}

function greeting(): Greeting {
  return { raidsimControl: VERSION, cwd: process.cwd() };
}

/** False when the socket has more than enough to send. */
function sendLine(socket: Socket, line: Greeting | Answer | object): boolean {
  return socket.write(`${JSON.stringify(line)}\n`);
}

/** Each line as what it says; the connection ends at one that is too long, or no JSON. */
function readLines(socket: Socket, take: (line: unknown) => void): void {
  let parts: Buffer[] = [];
  let bytes = 0;
  socket.on('data', (chunk: Buffer) => {
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
      parts.push(chunk.subarray(start, end));
      start = end + 1;
      const text = Buffer.concat(parts).toString('utf8');
      parts = [];
      bytes = 0;
      const line = parsed(text);
      if (line === undefined) {
        socket.destroy();
        return;
      }
      take(line);
    }
    if (start === chunk.byteLength) return;
    parts.push(chunk.subarray(start));
    bytes += chunk.byteLength - start;
    if (bytes > LINE_BYTES) socket.destroy();
  });
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isObject(line: unknown): line is Record<string, unknown> {
  return typeof line === 'object' && line !== null;
}

function isGreeting(line: unknown): line is Greeting {
  return isObject(line) && typeof line['raidsimControl'] === 'number' && typeof line['cwd'] === 'string';
}

function isCall(line: unknown): line is Call {
  return isObject(line) && Number.isSafeInteger(line['id']) && typeof line['do'] === 'string';
}

function isStop(line: unknown): line is { readonly id: number } {
  return isObject(line) && Number.isSafeInteger(line['id']) && line['stop'] === true;
}

function isAnswer(line: unknown): line is Answer {
  return (
    isObject(line) &&
    Number.isSafeInteger(line['id']) &&
    ('step' in line || 'done' in line || isObject(line['error']))
  );
}

function crossing(error: unknown): CrossingError {
  if (error instanceof RaidError) return error.toRecord();
  const code = errnoName(error);
  if (code !== null) {
    const { message, path } = error as NodeJS.ErrnoException;
    return { code: null, message, system: { code, ...(path === undefined ? {} : { path }) } };
  }
  return { code: null, message: error instanceof Error ? (error.stack ?? error.message) : String(error) };
}

function uncrossed(error: CrossingError): Error {
  if (error.code !== null) return RaidError.fromRecord(error);
  const found = new Error(`in the process that serves the array: ${error.message}`);
  return Object.assign(found, error.system);
}
