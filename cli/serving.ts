/**
 * An array that is open for others: NBD clients, and verbs that come by its control socket.
 *
 * Faults. A lane, and the thread that answers small requests on the spot, go to a member's file directly; nothing can come
 * between. So the array is served with nothing in between, until somebody asks for the first fault: then it is closed and
 * opened again with a filter on each member, on the event loop, while the clients' requests wait (0.1 s or so, and what the
 * flushes of a clean stop take); and again, without, when all faults are cleared. Filters from the start would be paid by
 * everybody: on the event loop a 4 KiB read takes several times the processor time.
 */
import { basename, join, resolve } from 'node:path';
import {
  type ArraySnapshots,
  CONTROL_SOCKET,
  ControlServer,
  DelayDevice,
  type Device,
  FaultDevice,
  type FaultRule,
  type FaultWhen,
  type Hold,
  type NbdEvent,
  NbdServer,
  type NbdTls,
  openArray,
  type RaidArray,
  RaidError,
  readManifest,
  realHost,
} from '../lib/index.ts';
import { checkFolder, findDisk, type Opened, pathIn, slotsOf, withNextStep } from './array.ts';
import { inspectLive, type OperationName, operations } from './operations.ts';

export interface ServeOptions {
  readonly readOnly: boolean;
  readonly socket: string;
  readonly listen: { readonly host: string; readonly port?: number } | null;
  readonly exportName: string | null;
  /** Exported too, for reading, as ARRAY@NAME. */
  readonly snapshots: readonly string[];
  /** Snapshots of which a clone is exported, for writing, as ARRAY@NAME@clone. */
  readonly clones: readonly string[];
  readonly tls: NbdTls | null;
  readonly insecure: boolean;
  readonly onEvent: (event: NbdEvent) => void;
}

/** Bytes of a disk's data, as md counts them: from where its data begins. */
interface Where {
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

export type FaultAsked =
  | {
      readonly kind: 'error';
      readonly on: 'read' | 'write' | 'flush' | 'any';
      readonly where: Where | null;
      readonly when: FaultWhen;
    }
  | { readonly kind: 'latent' | 'corrupt'; readonly where: Where }
  | { readonly kind: 'delay'; readonly delayMs: number }
  | { readonly kind: 'hang' };

export interface FaultTold {
  readonly disk: string;
  readonly fault: FaultAsked;
  readonly words: string;
  /** Requests that it met; null where that is not counted. */
  readonly hits: number | null;
}

const codes = {
  read: 'MEDIUM_ERROR',
  write: 'WRITE_FAILED',
  flush: 'FLUSH_FAILED',
  any: 'MEMBER_GONE',
} as const;

/** What is exported beside the array. */
interface Beside {
  readonly exportName: string;
  readonly description: string;
  readonly open: (array: RaidArray, how?: { readonly mayBeInvalid: boolean }) => Promise<Device>;
  device: Device;
}

/** The filters on one member, and what they were told to do. */
interface Filters {
  readonly fault: FaultDevice;
  readonly delay: DelayDevice;
}

interface Injected {
  readonly disk: string;
  readonly asked: FaultAsked;
  /** In the filter that is there now. */
  rule: number | null;
  hold: Hold | null;
}

export class Serving {
  readonly folder: string;
  readonly #options: ServeOptions;
  readonly #exportName: string;
  readonly #server: NbdServer;
  readonly #beside: readonly Beside[];
  #opened: Opened;
  #control: ControlServer | null = null;
  /** Of each member; none while nobody wants faults. */
  #filters = new Map<string, Filters>();
  #injected: Injected[] = [];
  /** The exchange that is under way, if one is: operations wait for it. */
  #exchanging: Promise<void> = Promise.resolve();

  private constructor(
    folder: string,
    options: ServeOptions,
    opened: Opened,
    exportName: string,
    beside: readonly Beside[],
  ) {
    this.folder = folder;
    this.#options = options;
    this.#opened = opened;
    this.#exportName = exportName;
    this.#beside = beside;
    const { array } = opened;
    this.#server = new NbdServer({
      exports: [
        {
          name: this.#exportName,
          device: array,
          description: `${array.layout.geometry.level} ${array.name}`,
        },
        ...beside.map(({ exportName: name, device, description }) => ({ name, device, description })),
      ],
      tls: options.tls ?? undefined,
      insecure: options.insecure,
      onEvent: options.onEvent,
    });
  }

  static async start(folder: string, options: ServeOptions): Promise<Serving> {
    await checkFolder(folder);
    const opened = await openToServe(folder, options.readOnly);
    const exportName = options.exportName ?? exportNameOf(folder);
    const beside: Beside[] = [];
    let serving: Serving;
    try {
      for (const each of besideOf(opened.array.name, exportName, options))
        beside.push({ ...each, device: await each.open(opened.array) });
      serving = new Serving(folder, options, opened, exportName, beside);
    } catch (error) {
      for (const { device } of beside) await device.close();
      await opened.array.close();
      throw error;
    }
    try {
      serving.#control = await ControlServer.listen(join(folder, CONTROL_SOCKET), serving.#operations());
      await serving.#server.listenUnix(options.socket);
      if (options.listen !== null) await serving.#server.listenTcp(options.listen.host, options.listen.port);
    } catch (error) {
      await serving.close(0);
      throw error;
    }
    return serving;
  }

  get array(): RaidArray {
    return this.#opened.array;
  }

  get uris(): readonly string[] {
    return this.#server.uris;
  }

  /** Nobody is let in any more, what is in flight is answered, and the array is closed clean. */
  async close(graceMs?: number): Promise<void> {
    // Whoever hangs because he was told to would hang for ever.
    this.#disarm(() => true);
    await this.#control?.close();
    await this.#server.close(graceMs);
    await this.#exchanging.catch(() => undefined);
    // A clone makes durable here where its bytes are.
    const closing = await Promise.allSettled(this.#beside.map(({ device }) => device.close()));
    await this.#opened.array.close();
    for (const outcome of closing) if (outcome.status === 'rejected') throw outcome.reason;
  }

  #operations(): Operations {
    const table: Record<string, Operation> = {};
    for (const name of Object.keys(operations) as OperationName[]) {
      table[name] = (input, { cwd }) => this.#carryOut(name, input, cwd);
    }
    return {
      ...table,
      inspect: (_input, { cwd }) => this.#inspect(cwd),
      fault: (input: { readonly disk: string; readonly asked: FaultAsked }, { cwd }) =>
        this.#fault(input.disk, input.asked, cwd),
      faults: () => this.#faults(),
      clear: (input: { readonly disk: string | null }, { cwd }) => this.#clear(input.disk, cwd),
    };
  }

  async *#carryOut(name: OperationName, input: never, cwd: string): AsyncGenerator<unknown, unknown> {
    const operation = operations[name] as (opened: Opened, input: never) => AsyncGenerator<unknown, unknown>;
    return yield* operation(await this.#openedFor(cwd), input);
  }

  // biome-ignore lint/correctness/useYield: nothing happens on the way.
  async *#inspect(cwd: string): AsyncGenerator<never, unknown> {
    return await inspectLive(await this.#openedFor(cwd), this.uris[0] ?? null);
  }

  async *#fault(text: string, asked: FaultAsked, cwd: string): AsyncGenerator<string> {
    const disk = await this.#diskOf(text, cwd);
    if (!this.#filters.has(disk)) await this.#reopen(true);
    const filters = this.#filters.get(disk);
    if (filters === undefined || !this.array.members.some(({ name }) => name === disk)) {
      throw new RaidError('NO_SUCH_MEMBER', `${disk} is not in use: nothing can go wrong with it`, {
        device: disk,
      });
    }
    const injected: Injected = { disk, asked, rule: null, hold: null };
    this.#arm(injected, filters);
    this.#injected.push(injected);
    yield `${disk}: ${wordsOf(asked)}`;
  }

  async *#faults(): AsyncGenerator<never, readonly FaultTold[]> {
    return this.#injected.map(({ disk, asked, rule }) => {
      const hits = rule === null ? null : (this.#filters.get(disk)?.fault.hits(rule) ?? null);
      return { disk, fault: asked, words: wordsOf(asked), hits };
    });
  }

  async *#clear(text: string | null, cwd: string): AsyncGenerator<string> {
    // Waits for no exchange: that may wait for what hangs until it is cleared here.
    const disk = text === null ? null : diskIn(await this.#openedNow(cwd), text);
    const cleared = this.#disarm((each) => disk === null || each.disk === disk);
    if (this.#injected.length === 0 && this.#filters.size > 0) await this.#reopen(false);
    const faults = cleared === 1 ? '1 fault is' : `${cleared} faults are`;
    yield disk === null ? `${faults} cleared` : `${faults} cleared on ${disk}`;
  }

  async #diskOf(text: string, cwd: string): Promise<string> {
    return diskIn(await this.#openedFor(cwd), text);
  }

  /** Closed and opened again, with or without filters, while requests and operations wait. */
  #reopen(withFilters: boolean): Promise<void> {
    const exchange = this.#exchanging.catch(() => undefined).then(() => this.#exchangeFrom(0, withFilters));
    this.#exchanging = exchange;
    return exchange;
  }

  /** Those beside the array from this one on, and within them the array. */
  #exchangeFrom(index: number, withFilters: boolean): Promise<void> {
    const beside = this.#beside[index];
    if (beside === undefined)
      return this.#server.exchange(this.#exportName, () => this.#openAgain(withFilters));
    return this.#server.exchange(beside.exportName, async (device) => {
      // Before the array under it.
      await device.close();
      await this.#exchangeFrom(index + 1, withFilters);
      // Clients are connected to it: of one that was given up meanwhile they are told as before.
      beside.device = await beside.open(this.array, { mayBeInvalid: true });
      return beside.device;
    });
  }

  async #openAgain(withFilters: boolean): Promise<RaidArray> {
    await this.#opened.array.close();
    this.#filters = new Map();
    const wrap = (device: Device, name: string): Device => this.#wrap(device, name);
    // One that was asked for since they were all cleared is to go on.
    const isFiltered = withFilters || this.#injected.length > 0;
    this.#opened = await openToServe(this.folder, this.#options.readOnly, isFiltered ? wrap : undefined);
    for (const injected of this.#injected) {
      const filters = this.#filters.get(injected.disk);
      if (filters !== undefined) this.#arm(injected, filters);
    }
    return this.#opened.array;
  }

  #wrap(device: Device, name: string): Device {
    const delay = new DelayDevice(device, { host: realHost });
    const fault = new FaultDevice(delay);
    this.#filters.set(name, { fault, delay });
    return fault;
  }

  #arm(injected: Injected, { fault, delay }: Filters): void {
    const { asked, disk } = injected;
    if (asked.kind === 'delay') delay.setDelay(asked.delayMs);
    else if (asked.kind === 'hang') injected.hold = delay.hold();
    else injected.rule = fault.add(ruleOf(asked, this.#dataOffsetOf(disk)));
  }

  /** How many there were. */
  #disarm(isMeant: (injected: Injected) => boolean): number {
    const gone = this.#injected.filter(isMeant);
    this.#injected = this.#injected.filter((each) => !isMeant(each));
    for (const { disk, hold } of gone) {
      hold?.release();
      const filters = this.#filters.get(disk);
      filters?.fault.clear();
      filters?.delay.setDelay(0);
    }
    return gone.length;
  }

  #dataOffsetOf(disk: string): number {
    const descriptor = this.array.members.find(({ name }) => name === disk)?.descriptor;
    const member = this.array.metadata?.array.members.find((each) => each.descriptor === descriptor);
    return (member?.superblock.dataOffsetSectors ?? 0) * 512;
  }

  async #openedFor(cwd: string): Promise<Opened> {
    await this.#exchanging.catch(() => undefined);
    return await this.#openedNow(cwd);
  }

  /**
   * With the manifest as it is now, and the folder by a name that is good where the caller is. The array may be about to be
   * exchanged, and take no requests: it still says who its members are.
   */
  async #openedNow(cwd: string): Promise<Opened> {
    const folder = cwd === process.cwd() ? this.folder : resolve(this.folder);
    const manifest = await readManifest(folder);
    return {
      array: this.array,
      folder,
      manifest,
      pathOf: (source) => pathIn(folder, source),
      clientCount: () => this.#server.clientCount,
    };
  }
}

function diskIn(opened: Opened, text: string): string {
  return findDisk(text, opened, slotsOf(opened.array)).name;
}

function besideOf(
  array: string,
  exportName: string,
  { snapshots, clones }: ServeOptions,
): readonly Omit<Beside, 'device'>[] {
  const snapshotOf =
    (name: string): Beside['open'] =>
    async (opened, how) =>
      snapshotsOf(opened).openSnapshot(name, how);
  const cloneOf =
    (name: string): Beside['open'] =>
    (opened, how) =>
      snapshotsOf(opened).openClone(name, how);
  return [
    ...snapshots.map((name) => ({
      exportName: `${exportName}@${name}`,
      description: `snapshot ${name} of ${array}`,
      open: snapshotOf(name),
    })),
    ...clones.map((name) => ({
      exportName: `${exportName}@${name}@clone`,
      description: `clone of snapshot ${name} of ${array}`,
      open: cloneOf(name),
    })),
  ];
}

function snapshotsOf(array: RaidArray): ArraySnapshots {
  if (array.snapshots !== null) return array.snapshots;
  throw new RaidError(
    'NOT_SUPPORTED',
    `${array.name} is open for reading only, or writes to an overlay: its snapshots are left alone`,
  );
}

type Operations = Parameters<typeof ControlServer.listen>[1];
type Operation = Operations[string];

function exportNameOf(folder: string): string {
  const name = basename(resolve(folder)).replaceAll(/[^A-Za-z0-9._-]/g, '-');
  return name.slice(0, 64) || 'array';
}

function ruleOf(asked: Exclude<FaultAsked, { kind: 'delay' | 'hang' }>, dataOffsetBytes: number): FaultRule {
  const rangeOf = ({ offsetBytes, lengthBytes }: Where): Where => ({
    offsetBytes: dataOffsetBytes + offsetBytes,
    lengthBytes,
  });
  switch (asked.kind) {
    case 'error':
      return {
        on: asked.on,
        when: asked.when,
        fault: { kind: 'error', code: codes[asked.on] },
        ...(asked.where === null ? {} : { range: rangeOf(asked.where) }),
      };
    case 'latent':
      return {
        on: 'read',
        range: rangeOf(asked.where),
        fault: { kind: 'error', code: 'MEDIUM_ERROR' },
        clearedByWrite: true,
      };
    case 'corrupt':
      return { on: 'read', range: rangeOf(asked.where), fault: { kind: 'flip' }, clearedByWrite: true };
  }
}

function wordsOf(asked: FaultAsked): string {
  const at = ({ offsetBytes, lengthBytes }: Where): string => `${lengthBytes} bytes at ${offsetBytes}`;
  switch (asked.kind) {
    case 'error': {
      const on = asked.on === 'any' ? 'every request fails' : `each ${asked.on} fails`;
      return `${on}${asked.where === null ? '' : `, of ${at(asked.where)}`}${whenWords(asked.when)}`;
    }
    case 'latent':
      return `${at(asked.where)} cannot be read until they are rewritten`;
    case 'corrupt':
      return `${at(asked.where)} read wrong until they are rewritten`;
    case 'delay':
      return `each request takes ${asked.delayMs} ms more`;
    case 'hang':
      return 'requests hang until this is cleared';
  }
}

function whenWords(when: FaultWhen): string {
  if (when === 'forever') return '';
  if (when === 'once') return ', once';
  if ('nth' in when) return `, number ${when.nth} only`;
  if ('every' in when) return `, one in ${when.every}`;
  if ('after' in when) return `, after the first ${when.after}`;
  return `, ${when.chance} in ${when.outOf} by chance`;
}

async function openToServe(
  folder: string,
  readOnly: boolean,
  wrap?: (device: Device, name: string) => Device,
): Promise<Opened> {
  const manifest = await readManifest(folder);
  try {
    const array = await openArray(folder, {
      run: true,
      ...(readOnly ? { readOnly: true } : {}),
      ...(wrap === undefined ? {} : { wrap, driver: 'event-loop' as const }),
    });
    return { array, folder, manifest, pathOf: (source) => pathIn(folder, source) };
  } catch (error) {
    throw withNextStep(error, folder);
  }
}
