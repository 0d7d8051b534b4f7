/**
 * The one way by which a verb comes to an array: opened here, or in the process that serves it. Which of the two, the verb
 * does not see: it calls operations (operations.ts), whose steps, results and errors are the same.
 */
import { join, resolve } from 'node:path';
import {
  CONTROL_SOCKET,
  ControlClient,
  type Inspection,
  type Manifest,
  RaidError,
  readManifest,
} from '../lib/index.ts';
import { checkFolder, inspectFolder, knownDisks, type Opened, type OpenHow, open, statOf } from './array.ts';
import {
  type Facts,
  type InputOf,
  type OperationName,
  operations,
  type Range,
  type ResultOf,
  type StepOf,
  telling,
} from './operations.ts';

/** Bytes of the array, or of a snapshot of it, as `Device` has them. */
export interface ReadableBytes {
  readonly name: string;
  readonly limits: { readonly sizeBytes: number; readonly preferredBytes: number };
  read(offsetBytes: number, target: Uint8Array): Promise<void>;
}

export interface SnapshotBytes extends ReadableBytes {
  /** What `changedSince` is asked with. */
  readonly point: string;
  close(): Promise<void>;
}

export interface Bytes extends ReadableBytes {
  write(offsetBytes: number, source: Uint8Array): Promise<void>;
  flush(): Promise<void>;
}

export interface Reached {
  readonly folder: string;
  readonly manifest: Manifest;
  readonly facts: Facts;
  readonly bytes: Bytes;
  /** Another process has it open: what is begun there goes on when this one ends. */
  readonly isLive: boolean;
  /** A disk or a file as it was typed here, to be given to an operation. */
  word(text: string): Promise<string>;
  run<Name extends OperationName>(
    name: Name,
    input: InputOf<Name>,
  ): AsyncGenerator<StepOf<Name>, ResultOf<Name>>;
  /** While it is open here, it cannot be deleted; there, whoever reads it is told when it is gone. */
  openSnapshot(name: string): Promise<SnapshotBytes>;
  close(): Promise<void>;
}

/** Data that crosses in one piece. */
const PIECE_BYTES = 1024 * 1024;

export async function reach(folder: string, how: OpenHow = {}): Promise<Reached> {
  await checkFolder(folder, how.others);
  const control = await connect(folder);
  return control === null ? await here(await open(folder, how)) : await there(folder, control);
}

/** What the array is like now, from whoever knows best. */
export async function inspect(folder: string): Promise<Inspection> {
  const control = await connect(folder);
  if (control === null) return await inspectFolder(folder);
  await using serving = control;
  return (await resultOf(serving.call('inspect', null))) as Inspection;
}

export async function connect(folder: string): Promise<ControlClient | null> {
  return await ControlClient.connect(join(folder, CONTROL_SOCKET));
}

/** Of an operation whose steps nobody wants to see. */
export async function resultOf<Result>(steps: AsyncGenerator<unknown, Result>): Promise<Result> {
  for (;;) {
    const { done, value } = await steps.next();
    if (done === true) return value;
  }
}

async function here(opened: Opened): Promise<Reached> {
  const { array, folder, manifest } = opened;
  const run: Reached['run'] = (name, input) => {
    const operation = operations[name] as (opened: Opened, input: unknown) => never;
    return operation(opened, input);
  };
  return {
    folder,
    manifest,
    facts: await resultOf(operations.facts(opened)),
    // Not by way of the operations, in which data is text.
    bytes: {
      name: array.name,
      limits: array.limits,
      read: (offsetBytes, target) => telling(array, array.read(offsetBytes, target)),
      write: (offsetBytes, source) => telling(array, array.write(offsetBytes, source)),
      flush: () => telling(array, array.flush()),
    },
    isLive: false,
    word: (text) => Promise.resolve(text),
    run,
    openSnapshot: async (name) => {
      const { point } = await resultOf(operations.snapshotFind(opened, { name }));
      const device = array.snapshots?.openSnapshot(name);
      if (device === undefined) throw new RaidError('CLOSED', `${array.name} is closed`);
      return {
        name: device.name,
        limits: array.limits,
        point,
        read: (offsetBytes, target) => telling(array, device.read(offsetBytes, target)),
        close: () => device.close(),
      };
    },
    close: () => array.close(),
  };
}

async function there(folder: string, control: ControlClient): Promise<Reached> {
  const run: Reached['run'] = (name, input) => control.call(name, input) as never;
  try {
    const facts = await resultOf(run('facts', undefined));
    const manifest = await readManifest(folder);
    return {
      folder,
      manifest,
      facts,
      bytes: bytesThere(facts, run),
      isLive: true,
      word: (text) => wordThere(text, manifest, control.cwd),
      run,
      openSnapshot: async (name) => {
        const { point } = await resultOf(run('snapshotFind', { name }));
        const { sizeBytes, preferredBytes } = facts;
        const label = `${facts.name}@${name}`;
        return {
          name: label,
          limits: { sizeBytes, preferredBytes },
          point,
          read: (offsetBytes, target) =>
            readPieces(label, offsetBytes, target, (range) => run('snapshotRead', { name, point, ...range })),
          close: () => Promise.resolve(),
        };
      },
      close: () => control.close(),
    };
  } catch (error) {
    await control.close();
    throw error;
  }
}

/** What is a path here is one there too, of a file that is yet to be made as well; names and slots are the same everywhere. */
async function wordThere(text: string, manifest: Manifest, cwd: string): Promise<string> {
  const isKnown = knownDisks(manifest).some(({ name, source }) => name === text || source === text);
  if (cwd === process.cwd() || isKnown) return text;
  return /[./]/.test(text) || (await statOf(text)) !== null ? resolve(text) : text;
}

function pieces(total: number): { from: number; length: number }[] {
  return Array.from({ length: Math.ceil(total / PIECE_BYTES) }, (_, index) => ({
    from: index * PIECE_BYTES,
    length: Math.min(PIECE_BYTES, total - index * PIECE_BYTES),
  }));
}

async function readPieces(
  name: string,
  offsetBytes: number,
  target: Uint8Array,
  read: (range: Range) => AsyncGenerator<unknown, string>,
): Promise<void> {
  for (const { from, length } of pieces(target.byteLength)) {
    const data = await resultOf(read({ offsetBytes: offsetBytes + from, lengthBytes: length }));
    const bytes = Buffer.from(data, 'base64');
    if (bytes.byteLength !== length) {
      throw new RaidError(
        'PROTOCOL_VIOLATION',
        `${name}: ${bytes.byteLength} bytes came where ${length} were asked for`,
      );
    }
    target.set(bytes, from);
  }
}

function bytesThere(facts: Facts, run: Reached['run']): Bytes {
  const { name, sizeBytes, preferredBytes } = facts;
  return {
    name,
    limits: { sizeBytes, preferredBytes },
    read: (offsetBytes, target) => readPieces(name, offsetBytes, target, (range) => run('read', range)),
    async write(offsetBytes, source) {
      for (const { from, length } of pieces(source.byteLength)) {
        const data = Buffer.from(source.buffer, source.byteOffset + from, length).toString('base64');
        await resultOf(run('write', { offsetBytes: offsetBytes + from, data }));
      }
    },
    flush: () => resultOf(run('flush', undefined)),
  };
}
