/**
 * The threads that pack, from their master's side. They are started when there is much to do, and ended when it is done. One
 * that dies on its own account is the end of what is being written: what it had not handed in was not stored, nobody was
 * told that it was, and the next attempt stores it.
 */
import { createRequire } from 'node:module';
import { Worker } from 'node:worker_threads';
import { assert } from '../errors.ts';
import { type PackFile, PackTable } from './pack.ts';
import type { Cut, NewCut, PackerAnswer, PackerBirth, PackerOrder } from './packer-message.ts';

/** Where chunks lie from before they are read until they are in packs. */
export interface Tray {
  readonly bytes: Uint8Array;
  /** Their ids, one behind the other. */
  hash(cuts: readonly Cut[]): Promise<Uint8Array>;
  /** Resolves when the tray may have other bytes. */
  store(cuts: readonly NewCut[]): Promise<void>;
  /** Somebody else may have it. */
  release(): void;
}

/** Enough that a thread is never without work while its master reads and hears. */
export const TRAYS = 4;
/** One to be filled while the other is written. */
const ROOMS = 2;

export interface PackerThreadOptions extends Pick<PackerBirth, 'trayBytes' | 'key' | 'packBytes'> {
  readonly roomBytes: number;
  /** The name of a pack to come. */
  readonly drawName: () => Uint8Array;
  /** The thread goes on in the same memory when the promise resolves. */
  readonly onPack: (pack: PackFile) => Promise<void>;
  /** It can be given work, or a tray of it is free. */
  readonly onFree: () => void;
  readonly onDeath: (error: Error) => void;
}

export class PackerThread {
  readonly #options: PackerThreadOptions;
  readonly #worker: Worker;
  readonly #free: Tray[] = [];
  /** By tray: who waits for an answer about it. */
  readonly #hashing: ((ids: Uint8Array) => void)[] = [];
  readonly #storing: (() => void)[] = [];
  readonly #rooms: readonly SharedArrayBuffer[];
  readonly #freeRooms: number[] = [];
  /** It has handed in a pack, and waits for where to put the next. */
  #needsRoom = false;
  #finishing: (() => void) | null = null;
  /** Of everybody who waits: called with what the thread died of. */
  readonly #failing = new Set<(error: Error) => void>();
  #isReady = false;
  /** Why nothing that is asked is answered any more. */
  #end: Error | null = null;

  constructor(options: PackerThreadOptions) {
    this.#options = options;
    const { trayBytes, key, packBytes, roomBytes } = options;
    const trays = new SharedArrayBuffer(TRAYS * trayBytes);
    this.#rooms = Array.from({ length: ROOMS }, () => new SharedArrayBuffer(roomBytes));
    const birth: PackerBirth = { trays, trayBytes, rooms: this.#rooms, key, packBytes };
    this.#worker = new Worker(createRequire(import.meta.url).resolve('#packer'), {
      name: 'raidsim packer',
      workerData: birth,
      // None of the program's own: with `node --input-type=module -e` a worker does not even start.
      execArgv: [],
    });
    for (let tray = 0; tray < TRAYS; tray += 1) {
      this.#free.push(this.#tray(tray, new Uint8Array(trays, tray * trayBytes, trayBytes)));
    }
    this.#worker.on('message', (answer: PackerAnswer) => this.#heard(answer));
    this.#worker.on('error', (error: Error) => this.#died(error));
    this.#worker.on('exit', () => this.#died(new Error('a thread that packs chunks has ended')));
    for (let room = 1; room < ROOMS; room += 1) this.#freeRooms.push(room);
    this.#giveRoom(0);
  }

  /** Trays that nobody has; none before it has started. */
  get freeTrays(): number {
    return this.#isReady ? this.#free.length : 0;
  }

  takeTray(): Tray {
    const tray = this.#free.pop();
    assert(tray !== undefined, 'who takes a tray has seen that one is free');
    return tray;
  }

  /** All that was to be stored has been handed in. */
  finish(): Promise<void> {
    return this.#ask((resolve) => {
      this.#finishing = resolve;
      this.#tell({ kind: 'finish' });
    });
  }

  async end(): Promise<void> {
    this.#over(new Error('the thread that packs chunks was ended'));
    await this.#worker.terminate();
  }

  #tray(tray: number, bytes: Uint8Array): Tray {
    const made: Tray = {
      bytes,
      hash: (cuts) =>
        this.#ask((resolve) => {
          this.#hashing[tray] = resolve;
          this.#tell({ kind: 'hash', tray, cuts });
        }),
      store: (cuts) =>
        this.#ask((resolve) => {
          this.#storing[tray] = resolve;
          this.#tell({ kind: 'store', tray, cuts });
        }),
      release: () => {
        this.#free.push(made);
        this.#options.onFree();
      },
    };
    return made;
  }

  #ask<T>(start: (resolve: (answer: T) => void) => void): Promise<T> {
    // Whoever was reading into a tray when it died asks only now.
    if (this.#end !== null) return Promise.reject(this.#end);
    return new Promise((resolve, reject) => {
      this.#failing.add(reject);
      start((answer) => {
        this.#failing.delete(reject);
        resolve(answer);
      });
    });
  }

  #tell(order: PackerOrder): void {
    this.#worker.postMessage(order);
  }

  #giveRoom(room: number): void {
    this.#tell({ kind: 'room', room, name: this.#options.drawName() });
  }

  #heard(answer: PackerAnswer): void {
    switch (answer.kind) {
      case 'ready':
        this.#isReady = true;
        this.#options.onFree();
        break;
      case 'hashed':
        this.#hashing[answer.tray]?.(answer.ids);
        break;
      case 'stored':
        this.#storing[answer.tray]?.();
        break;
      case 'pack':
        this.#took(answer);
        break;
      case 'finished':
        this.#finishing?.();
    }
  }

  #took({ room, name, fileBytes, outgrown, table, sum }: Extract<PackerAnswer, { kind: 'pack' }>): void {
    const bytes = outgrown ?? new Uint8Array(this.#rooms[room]!, 0, fileBytes);
    this.#needsRoom = true;
    void this.#options.onPack({ name, bytes, table: new PackTable(table), sum }).then(() => {
      this.#freeRooms.push(room);
      this.#supply();
    });
    this.#supply();
  }

  #supply(): void {
    const room = this.#needsRoom && this.#end === null ? this.#freeRooms.pop() : undefined;
    if (room === undefined) return;
    this.#needsRoom = false;
    this.#giveRoom(room);
  }

  #died(error: Error): void {
    if (this.#end !== null) return;
    const told = new Error(`${error.message}; nothing is lost, and what was stored is not stored again`, {
      cause: error,
    });
    this.#options.onDeath(told);
    this.#over(told);
  }

  #over(why: Error): void {
    this.#end ??= why;
    for (const fail of this.#failing) fail(why);
    this.#failing.clear();
  }
}
