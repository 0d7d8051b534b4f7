/**
 * A member that several NBD URIs lead to: `nbd://a/disk|nbd://b/disk`. Each is a path of one `MultipathDevice`, with a
 * connection of its own; when a server dies, what it had not answered is done by another.
 *
 * Whether they lead to the same data. NBD has no WWID. When the member is opened the md superblocks that the paths show must be
 * of one device of one array, and the first and last bytes the same. Where they show none there is nothing to compare:
 * blank disks are all alike; whoever takes a disk in writes through one path, and reads through all others
 * (`proveOneDisk`). A path that comes back must show the superblock that another path shows at that moment, and hold what
 * was last read and written through any (client-memory.ts). What nobody can tell is two copies that are equal to the byte.
 *
 * What they must share. What one server has acknowledged all must read, and a flush on one must cover it: one cache behind all of
 * them, say the page cache of one machine. A server says so of its own connections with CAN_MULTI_CONN, and one that does
 * not is refused as a path. Of two servers only whoever writes the URIs knows; the proof by writing shows that reads agree, and not
 * that flushes do. Where all paths were lost at once, that cache may have been: what was not flushed is written again
 * before the first path that comes back is used.
 *
 * The fence (`NbdDevice.fence`). A client cannot call requests back. It is sure that they are over if none of those that change
 * something was unanswered; or if the server closes the connection, which it does when it has ended them: after it was
 * asked to (DISC), or since it has died, for a process's sockets are closed when its last thread has left its system calls. A
 * server that is silent with changes unanswered has said nothing. Then no other path is tried: the member has failed, and
 * what is behind it must be ended before it is brought back.
 */
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import { type Host, realHost } from '../host.ts';
import { type Conf, parseConf, readConf, type Settings, settingsFor } from '../multipath/conf.ts';
import { MultipathDevice, type Path, type PathConnection } from '../multipath/device.ts';
import { type LintReport, lintRemote, type RemoteLun } from '../multipath/lint.ts';
import type { SanLun } from '../multipath/san.ts';
import { CONNECT_MS, NbdDevice, type NbdOptions } from '../nbd/client.ts';
import { waitedFor } from '../nbd/client-connection.ts';
import { ClientMemory } from '../nbd/client-memory.ts';
import { isUri, parseNbdUri } from '../nbd/uri.ts';
import { KIB, MIB, roundDown } from '../units.ts';
import { findSuperblock } from './superblocks.ts';

/** Not a character of a URI: in one it is written %7C. */
const BETWEEN = '|';

/** The URIs of a member, as they are always written; of one that is not several, one. */
export function urisOf(source: string): readonly string[] {
  const parts = source.split(BETWEEN);
  if (parts.length === 1) return [parseNbdUri(source).text];
  const uris = parts.map((part) => {
    if (!isUri(part))
      throw new RaidError(
        'BAD_ARGUMENT',
        `${source}: of several paths each is the URI of an export; ${JSON.stringify(part)} is none`,
        {
          device: source,
        },
      );
    return parseNbdUri(part);
  });
  const twice = uris.find(
    ({ identity }, index) => uris.findIndex((other) => other.identity === identity) < index,
  );
  if (twice !== undefined)
    throw new RaidError(
      'BAD_ARGUMENT',
      `${source}: ${twice.text} is named twice; each path is one of its own`,
      {
        device: source,
      },
    );
  return uris.map(({ text }) => text);
}

export function joined(uris: readonly string[]): string {
  return uris.join(BETWEEN);
}

export function hasPaths(source: string): boolean {
  return isUri(source) && source.includes(BETWEEN);
}

/** What is not flushed and kept to be written again where all paths are lost. */
const KEEP_BYTES = 32 * MIB;
/** Of requests time is kept by the MultipathDevice, so that a fence comes before a connection is given up. */
const NEVER_MS = 86_400_000;

export interface PathsOptions extends Pick<NbdOptions, 'readOnly' | 'connectMs' | 'timeoutMs'> {
  /** How paths are used; what multipathd does without a file where it is not said. */
  readonly conf?: Conf | undefined;
}

/** For those who must look at one path alone. */
const connectionsOf = new WeakMap<Device, () => readonly NbdDevice[]>();

/**
 * The paths of a member that several URIs lead to, as a fabric tells of those that it has; null for any other device. They
 * have no parts that are known.
 */
export function pathsOf(device: Device, name: string): SanLun | null {
  const connections = connectionsOf.get(device);
  if (!(device instanceof MultipathDevice) || connections === undefined) return null;
  const { groups, ...status } = device.status();
  const total = groups.flatMap((group) => group.paths).reduce((sum, { requests }) => sum + requests, 0);
  return {
    ...status,
    name,
    sizeBytes: device.limits.sizeBytes,
    // The disk's own, however it was opened.
    readOnly: connections().some(({ isWriteProtected }) => isWriteProtected),
    isGone: false,
    alua: {},
    groups: groups.map(({ isActive, paths }) => ({
      isActive,
      prio: Math.max(0, ...paths.map(({ prio }) => prio)),
      paths: paths.map((path) => ({
        ...path,
        hbtl: '',
        hba: '',
        controller: '',
        port: '',
        link: path.state === 'down' ? 'offline' : 'running',
        share: total === 0 ? 0 : path.requests / total,
      })),
    })),
  };
}

function settingsOfPaths(source: string, conf: Conf): Settings {
  const [first = ''] = urisOf(source);
  return settingsFor(conf, { wwid: parseNbdUri(first).shortName, vendor: 'NBD', product: 'export' });
}

/** BAD_ARGUMENT where the paths lead to different data, or a server cannot be one of several; MEMBER_GONE where none answers. */
export async function openPaths(source: string, options: PathsOptions = {}): Promise<MultipathDevice> {
  const uris = urisOf(source);
  const { conf = parseConf(''), timeoutMs, ...remote } = options;
  const host = realHost;
  const ways = new Ways(source, remote);
  const settings = settingsOfPaths(source, conf);
  const paths = uris.map((uri): Path => ({ name: uri, connect: (unwanted) => ways.connect(uri, unwanted) }));
  const opened = await MultipathDevice.open(paths, {
    host,
    settings,
    name: source,
    ...(timeoutMs === undefined ? {} : { ioTimeoutMs: timeoutMs }),
  }).catch((error: unknown) => {
    throw ways.refusal ?? error;
  });
  if (ways.refusal !== null) {
    await opened.close();
    throw ways.refusal;
  }
  ways.opened(opened.identity);
  connectionsOf.set(opened, () => ways.alive);
  return opened;
}

/** What a multipath.conf means for members that several URIs lead to. Two ports of one host are not two hosts. */
export function lintSources(
  text: string,
  members: readonly { readonly name: string; readonly source: string }[],
): LintReport {
  const { conf, diagnostics } = readConf(text);
  if (diagnostics.some(({ kind }) => kind === 'error')) return { diagnostics, luns: [] };
  const remote = members.map(({ name, source }): RemoteLun => {
    const paths = urisOf(source).map((uri) => {
      const { address } = parseNbdUri(uri);
      if (address.kind === 'unix') return { components: [address.path] };
      return { components: [`host ${address.host}`, `${address.host}:${address.port}`] };
    });
    return { name, settings: settingsOfPaths(source, conf), paths };
  });
  return { diagnostics, luns: lintRemote(remote) };
}

/** For whoever has just named them: a path that does not work is a slip, and not a failure. Closes the device then. */
export async function checkPaths(device: MultipathDevice): Promise<void> {
  const paths = device.status().groups.flatMap((group) => group.paths);
  const down = paths.find(({ state }) => state !== 'up');
  if (down === undefined) return;
  await device.close();
  throw new RaidError('BAD_ARGUMENT', `${device.name}: the path ${down.name} does not work: ${down.why}`, {
    device: device.name,
  });
}

/**
 * That its paths lead to one disk, by writing a block through one, and reading it through the others; it is put back. Before
 * a member is taken in that holds nothing yet. Nothing is done to a device that is none of paths.
 */
export async function proveOneDisk(device: Device): Promise<void> {
  const [first, ...others] = connectionsOf.get(device)?.() ?? [];
  if (first === undefined || others.length === 0) return;
  const { sizeBytes, blockBytes } = first.limits;
  const lengthBytes = Math.max(4 * KIB, blockBytes);
  // Amid the data, where no superblock is that somebody may be reading.
  const at = roundDown(Math.floor(sizeBytes / 2), lengthBytes);
  const before = new Uint8Array(lengthBytes);
  await first.read(at, before);
  const mark = realHost.randomBytes(lengthBytes);
  await first.write(at, mark);
  try {
    for (const other of others) {
      const found = new Uint8Array(lengthBytes);
      await other.read(at, found);
      if (Buffer.compare(found, mark) === 0) continue;
      throw new RaidError(
        'BAD_ARGUMENT',
        `${device.name}: the paths ${first.name} and ${other.name} lead to different data: what is written by one is not read by the other`,
        { device: device.name },
      );
    }
  } finally {
    await first.write(at, before, { fua: true });
  }
}

/** The connections to one member, and what they have shown of it. */
class Ways {
  /** A server that cannot be one of several; whatever the others are. */
  refusal: RaidError | null = null;
  /** What the member was when it was opened, and what it has shown since; null until then. */
  #identity: string | null = null;
  #shown = '';
  readonly #source: string;
  readonly #options: NbdOptions & { readonly host: Host; readonly connectMs: number };
  /** Until they are fenced: before that what they were given may still be happening. */
  readonly #connections = new Set<NbdDevice>();
  /** Why no path may be used any more. */
  #end: RaidError | null = null;
  /** One after the other: what one writes again must not land on what another has been given since. */
  #turn: Promise<unknown> = Promise.resolve();

  constructor(source: string, options: NbdOptions) {
    this.#source = source;
    this.#options = {
      ...options,
      host: realHost,
      connectMs: options.connectMs ?? CONNECT_MS,
      timeoutMs: NEVER_MS,
      retryMs: [],
      memory: new ClientMemory(KEEP_BYTES),
    };
  }

  opened(identity: string): void {
    this.#identity = identity;
    this.#shown = identity;
  }

  get alive(): readonly NbdDevice[] {
    for (const device of this.#connections) if (device.isClosed) this.#connections.delete(device);
    return [...this.#connections];
  }

  async connect(uri: string, unwanted?: AbortSignal): Promise<PathConnection> {
    if (this.#end !== null) throw this.#end;
    const device = await NbdDevice.open(uri, this.#options);
    // Its requests fail then, and what waits for them comes to its end.
    const leave = (): void => void this.#giveUp(device);
    unwanted?.addEventListener('abort', leave);
    if (unwanted?.aborted === true) leave();
    try {
      if (!device.sharesCache) {
        this.refusal ??= new RaidError(
          'BAD_ARGUMENT',
          `${uri}: the server does not say that its connections see what each other writes (CAN_MULTI_CONN; qemu-nbd: --shared=0), and so cannot be one of several paths`,
          { device: this.#source },
        );
        throw this.refusal;
      }
      // Nothing was written yet that could be written again: all are looked at together, and nobody waits for one that is silent.
      const identity = this.#identity ?? (await contentOf(device, this.#source));
      if (this.#identity === null) this.#connections.add(device);
      else await this.#inTurn(device);
      return {
        device,
        identity,
        ready: async () => {
          await this.#look(device);
          return 'up';
        },
        fence: () => device.fence().finally(() => this.#connections.delete(device)),
      };
    } catch (failure) {
      await this.#giveUp(device);
      throw this.#end ?? failure;
    } finally {
      unwanted?.removeEventListener('abort', leave);
    }
  }

  /** Fenced within its turn: the next one must not begin while what this one wrote again may still land. */
  #inTurn(device: NbdDevice): Promise<void> {
    const turn = this.#turn.then(() =>
      this.#admit(device).catch(async (failure: unknown) => {
        await this.#giveUp(device);
        throw failure;
      }),
    );
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  /** What was to be written again may still be on its way, and must not meet anything newer. */
  async #giveUp(device: NbdDevice): Promise<void> {
    await device.fence().catch((cause: RaidError) => {
      this.#end ??= new RaidError(
        'WRITE_MAYBE_APPLIED',
        `${device.name} was lost while it was written again what was not flushed, and could not be fenced`,
        { device: this.#source, cause },
      );
    });
  }

  /** When it is the same data, and is as new as it must be. */
  async #admit(device: NbdDevice): Promise<void> {
    if (this.#end !== null) throw this.#end;
    if (device.failure !== null) throw device.failure;
    // One that is lost and not fenced yet does not answer: then this path has to wait.
    const [other] = this.alive;
    await device.resume({ isOnly: other === undefined });
    // `resume` ends in time, and so must this: behind a server that is silent others wait that are well.
    const inTime = new AbortController();
    const { host, connectMs } = this.#options;
    void waitedFor(host, connectMs, inTime.signal).then((isOver) => {
      if (isOver) void this.#giveUp(device);
    });
    const contents = [device, other ?? null].map((each) =>
      each === null ? this.#shown : contentOf(each, this.#source),
    );
    const [content = '', there = ''] = await Promise.all(contents).finally(() => inTime.abort());
    // Nothing, when it was last looked at: it may have become a member since.
    const isKnown = other !== undefined || there !== nothingOn(this.#source);
    if (isKnown && content !== there) throw strangers(device, content, there);
    this.#shown = content;
    this.#connections.add(device);
  }

  async #look(device: NbdDevice): Promise<void> {
    const content = await contentOf(device, this.#source);
    if (this.#identity === null || content === this.#shown) return;
    // It has become a member, or another one, a moment ago; or the disk behind this path has been changed.
    for (const other of this.alive) {
      const there = await contentOf(other, this.#source);
      if (there !== content) throw strangers(device, content, there);
    }
    this.#shown = content;
  }
}

/** What tells a member from all others. */
async function contentOf(device: NbdDevice, source: string): Promise<string> {
  try {
    const found = await findSuperblock(device);
    if (found.version === '0.90') return 'a member of version 0.90';
    const { setUuid, deviceUuid } = found.superblock;
    return `device ${deviceUuid} of array ${setUuid}`;
  } catch (error) {
    const isOfPath = !(error instanceof RaidError) || device.isClosed || device.failure !== null;
    if (isOfPath) throw error;
    return nothingOn(source);
  }
}

/** Of this member; that of others is another nothing. */
function nothingOn(source: string): string {
  return `nothing on ${source}`;
}

function strangers(device: NbdDevice, here: string, there: string): RaidError {
  return new RaidError('MEMBER_GONE', `${device.name} leads to ${here}, and not to ${there}`, {
    device: device.name,
  });
}
