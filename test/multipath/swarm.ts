/**
 * Random fabrics, random policies and everything that breaks, for as many requests as one likes: each sector is a register,
 * so a write that is lost, comes late or overtakes another one shows at the next read.
 *
 *   slow      a part takes 10 to 10 000 times as long, or lets little through, or few at a time
 *   hung      a part keeps what comes to it, and lets it go later: writes that come back from the dead
 *   failed    what was in it is lost, executed or not
 *   flapping  up and down; and several at once, which come back in another order than they went
 *   all gone  every way to the disk, for a while
 */
import type { Device } from '../../lib/device/device.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { groupingPolicies, type Settings, selectorNames } from '../../lib/multipath/conf.ts';
import { MultipathDevice, type Path } from '../../lib/multipath/device.ts';
import { type Condition, Fabric, type FabricLun } from '../../lib/multipath/fabric.ts';
import {
  complaintAboutTopology,
  longestStallMs,
  pathsTo,
  type Topology,
} from '../../lib/multipath/topology.ts';
import { Clock, Process } from '../../lib/sim/clock.ts';
import { SECTOR_BYTES } from '../../lib/units.ts';
import type { Random } from '../conformance/seed.ts';
import { settings } from './history.ts';

const SECTORS = 96;
const MOST_SECTORS = 8;
const CLIENTS = 12;
const LUN = 'lun';

function pause(clock: Clock, ms: number): Promise<void> {
  return new Promise((resolve) => clock.after(ms, resolve));
}

function pick<T>(random: Random, list: readonly T[]): T {
  return list[random(list.length)] as T;
}

/** From one path to a dozen; switches may be linked, and shared, or not there at all. */
function randomTopology(random: Random): Topology {
  for (;;) {
    const many = (name: string, least: number, most: number): readonly string[] =>
      Array.from({ length: least + random(most - least + 1) }, (_, index) => `${name}${index}`);
    const hbas = many('hba', 1, 3);
    const switches = many('sw', 0, 3);
    const controllers = many('ctl', 1, 3).map((name) => ({
      name,
      ports: Array.from({ length: 1 + random(2) }, (_, port) => `${name}p${port}`),
    }));
    const ports = controllers.flatMap((controller) => controller.ports);
    const cables: [string, string][] = [];
    for (const hba of hbas) {
      if (switches.length === 0) cables.push([hba, pick(random, ports)]);
      else for (const name of switches) if (random(2) === 0) cables.push([hba, name]);
    }
    for (const port of ports) if (switches.length > 0) cables.push([pick(random, switches), port]);
    if (switches.length > 1 && random(3) === 0) cables.push(['sw0', 'sw1']);
    const topology = { hbas, switches, controllers, cables, luns: [{ identity: LUN }] };
    if (complaintAboutTopology(topology) !== null) continue;
    const { length } = pathsTo(topology, LUN);
    if (length >= 1 && length <= 12) return topology;
  }
}

function randomSettings(random: Random, retry: string): Settings {
  return settings(
    `no_path_retry ${retry}`,
    'polling_interval 1',
    'max_polling_interval 2',
    'checker_timeout 1',
    `fast_io_fail_tmo ${pick(random, ['0', '1', '3', 'off'])}`,
    `dev_loss_tmo ${pick(random, ['4', '20', 'infinity'])}`,
    `path_grouping_policy ${pick(random, groupingPolicies)}`,
    `path_selector "${pick(random, selectorNames)} 0"`,
    `path_checker ${pick(random, ['tur', 'directio', 'readsector0'])}`,
    `prio ${pick(random, ['const', 'alua', 'random'])}`,
    `failback ${pick(random, ['immediate', 'manual', 'followover', '3'])}`,
    `marginal_pathgroups ${pick(random, ['on', 'off'])}`,
    ...(random(3) === 0
      ? ['san_path_err_threshold 2', 'san_path_err_forget_rate 4', 'san_path_err_recovery_time 20']
      : []),
  );
}

function randomTrouble(random: Random): Partial<Condition> {
  switch (random(6)) {
    case 0:
      return { delayMs: pick(random, [1, 10, 100, 1000]) };
    case 1:
      return { bytesPerSecond: pick(random, [20_000, 1_000_000]), queueDepth: 1 + random(4) };
    case 2:
      return { flap: { upMs: 100 + random(3000), downMs: 50 + random(3000) } };
    case 3:
    case 4:
      return { state: 'failed' };
    default:
      return { state: 'hung' };
  }
}

interface Write {
  /** 0: zeros. */
  readonly id: number;
  /** When it was asked for, and when its end was told. */
  readonly inv: number;
  end: number;
  isAcknowledged: boolean;
}

/** Lists are looked through for what nobody can see any more when they get longer than this. */
const LIST_LONG = 16;

/**
 * A read may see a write unless one that began after that had ended was acknowledged before the read began; and what a read has
 * seen no later one takes back. Requests may take long, so what is forgotten is judged by the oldest one under way.
 */
class Sectors {
  readonly #writes: Write[][];
  readonly #pins: { readonly id: number; readonly inv: number; readonly end: number }[] = [];
  readonly #underWay = new Set<number>();
  #clock = 0;
  #ids = 0;

  constructor(count: number) {
    this.#writes = Array.from({ length: count }, () => [{ id: 0, inv: 0, end: 0, isAcknowledged: true }]);
  }

  get count(): number {
    return this.#writes.length;
  }

  /** The moment at which a request is asked for. */
  begin(): number {
    this.#clock += 1;
    this.#underWay.add(this.#clock);
    return this.#clock;
  }

  end(inv: number): number {
    this.#underWay.delete(inv);
    this.#clock += 1;
    return this.#clock;
  }

  write(first: number, content: Uint8Array, isZero: boolean): Write {
    if (!isZero) this.#ids += 1;
    const write = {
      id: isZero ? 0 : this.#ids,
      inv: this.begin(),
      end: Number.POSITIVE_INFINITY,
      isAcknowledged: false,
    };
    wordsOf(content).fill(write.id);
    for (let sector = first; sector < first + content.byteLength / SECTOR_BYTES; sector += 1) {
      const list = this.#writes[sector] ?? [];
      if (list.length >= LIST_LONG) this.#writes[sector] = this.#stillSeen(list);
      this.#writes[sector]?.push(write);
    }
    return write;
  }

  /** Null, or what is wrong with what a read that was asked for at `inv` has brought. */
  check(first: number, content: Uint8Array, inv: number): string | null {
    const words = wordsOf(content);
    for (let at = 0; at < words.length; at += SECTOR_WORDS) {
      const sector = first + at / SECTOR_WORDS;
      const found = words.subarray(at, at + SECTOR_WORDS);
      const [id = 0] = found;
      if (found.some((word) => word !== id)) return `sector ${sector} is torn`;
      const seen = this.#writes[sector]?.findLast(
        (write) => write.id === id && this.#maySee(sector, write, inv),
      );
      if (seen === undefined)
        return `sector ${sector} holds write ${id}, which was overwritten or never there`;
      this.#pins[sector] = { id, inv, end: this.#clock };
    }
    return null;
  }

  #maySee(sector: number, write: Write, inv: number): boolean {
    const pin = this.#pins[sector];
    if (pin !== undefined && pin.end <= inv && pin.id !== write.id && write.end <= pin.inv) return false;
    return !this.#writes[sector]?.some((other) => isAfter(other, write) && other.end <= inv);
  }

  #stillSeen(list: readonly Write[]): Write[] {
    let oldest = this.#clock;
    for (const inv of this.#underWay) oldest = Math.min(oldest, inv);
    return list.filter((write) => !list.some((other) => isAfter(other, write) && other.end <= oldest));
  }
}

function isAfter(other: Write, write: Write): boolean {
  return other.isAcknowledged && other.inv > write.end;
}

const SECTOR_WORDS = SECTOR_BYTES / 4;

function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

export interface Seen {
  requests: number;
  failed: number;
  longestMs: number;
}

/** Requests to any sector at any moment, several at a time to the same one. Throws when a read brings what it may not. */
async function wear(
  clock: Clock,
  random: Random,
  device: Device,
  sectors: Sectors,
  each: number,
): Promise<Seen> {
  const seen: Seen = { requests: 0, failed: 0, longestMs: 0 };
  const timed = async (request: Promise<void>): Promise<boolean> => {
    const sinceMs = clock.nowMs;
    seen.requests += 1;
    try {
      await request;
      return true;
    } catch (failure) {
      if (!(failure instanceof RaidError)) throw failure;
      seen.failed += 1;
      return false;
    } finally {
      seen.longestMs = Math.max(seen.longestMs, clock.nowMs - sinceMs);
    }
  };
  const client = async (): Promise<void> => {
    for (let request = 0; request < each; request += 1) {
      const count = 1 + random(MOST_SECTORS);
      const first = random(sectors.count - count + 1);
      const bytes = new Uint8Array(count * SECTOR_BYTES);
      const lot = random(100);
      let isDone: boolean;
      if (lot < 40) {
        const inv = sectors.begin();
        isDone = await timed(device.read(first * SECTOR_BYTES, bytes));
        sectors.end(inv);
        const wrong = isDone ? sectors.check(first, bytes, inv) : null;
        if (wrong !== null) throw new Error(wrong);
      } else if (lot < 95) {
        const isZero = lot < 45;
        const fua = random(8) === 0;
        const write = sectors.write(first, bytes, isZero);
        isDone = await timed(
          isZero
            ? device.writeZeroes(first * SECTOR_BYTES, bytes.byteLength, { fua })
            : device.write(first * SECTOR_BYTES, bytes, { fua }),
        );
        write.isAcknowledged = isDone;
        write.end = sectors.end(write.inv);
        // The buffer is its caller's again: what still looks at it sees nonsense.
        bytes.fill(0xee);
      } else isDone = await timed(device.flush());
      // Who has failed would else ask for the next one at the same moment, and fail with that, too.
      if (!isDone || random(10) === 0) await pause(clock, random(400));
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
  return seen;
}

export interface Worn extends Seen {
  readonly boundMs: number;
  /** Requests that came to the disk after their path was fenced. */
  readonly refusedLate: number;
  readonly paths: number;
}

/** One fabric for as many requests; everything is whole in the end, and then every sector is looked at once more. */
export async function wearOut(
  random: Random,
  retry: string,
  each: number,
  wrap = (path: Path): Path => path,
): Promise<Worn> {
  const clock = new Clock(random(2 ** 31));
  const host = new Process(clock);
  const topology = randomTopology(random);
  const conf = randomSettings(random, retry);
  const reachable = [...new Set(pathsTo(topology, LUN).map(({ controller }) => controller))];
  const preferred = pick(random, reachable);
  const lun: FabricLun = {
    identity: LUN,
    ...pick(random, [{}, { preferred }, { preferred, secondary: 'standby' as const }]),
  };
  const fabric = new Fabric(topology, { host, transitionMs: pick(random, [0, 0, 300]) });
  const memory = new MemoryDevice({ sizeBytes: SECTORS * SECTOR_BYTES, blockBytes: SECTOR_BYTES });
  const paths = fabric.attach(lun, memory, conf);
  const timing = { ioTimeoutMs: 2000, tickMs: 250 };
  const device = await clock.drive(
    MultipathDevice.open(paths.map(wrap), { host, settings: conf, ...timing }),
  );
  const sectors = new Sectors(SECTORS);
  const names = fabric.components().map(({ name }) => name);
  const ofKind = (kind: string): readonly string[] =>
    fabric
      .components()
      .filter((component) => component.kind === kind)
      .map(({ name }) => name);
  let isOver = false;
  const fate = async (): Promise<void> => {
    for (const hba of ofKind('hba')) fabric.set(hba, { delayMs: pick(random, [0.1, 1, 20]) });
    while (!isOver) {
      await pause(clock, random(1500));
      const lot = random(12);
      if (lot === 0) {
        // Every way is gone, and comes back one by one.
        const ways = pick(random, [ofKind('hba'), ofKind('controller'), ofKind('path')]);
        for (const name of ways) fabric.fail(name);
        await pause(clock, random(20_000));
        for (const name of ways.toSorted(() => random(3) - 1)) {
          fabric.restore(name);
          await pause(clock, random(500));
        }
      } else if (lot < 3) for (const name of names) fabric.restore(name);
      else if (lot < 6) fabric.restore(pick(random, names));
      else if (lot === 6 && lun.preferred !== undefined)
        void fabric.setAlua(LUN, pick(random, reachable), 'active/optimized');
      else fabric.set(pick(random, names), randomTrouble(random));
    }
    for (const name of names) fabric.restore(name);
  };
  const run = async (): Promise<Seen> => {
    const ended = fate();
    const seen = await wear(clock, random, device, sectors, each);
    isOver = true;
    await ended;
    // What a fence let slip has had time to land by then.
    await pause(clock, 60_000);
    for (const from of [device, memory]) {
      const content = new Uint8Array(SECTORS * SECTOR_BYTES);
      const inv = sectors.begin();
      await from.read(0, content);
      sectors.end(inv);
      const wrong = sectors.check(0, content, inv);
      if (wrong !== null) throw new Error(`in the end ${wrong}`);
    }
    await device.close();
    fabric.close();
    return seen;
  };
  const seen = await clock.drive(run(), 86_400_000);
  const boundMs = longestStallMs({
    settings: conf,
    paths: paths.length,
    standby: lun.secondary === 'standby' ? paths.length : 0,
    fenceMs: 400,
    ...timing,
  });
  return { ...seen, boundMs, refusedLate: fabric.refusedLate, paths: paths.length };
}
