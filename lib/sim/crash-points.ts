/**
 * The exhaustive explorer of crash points. A script runs on a small array, the shipping code on virtual time, and all
 * that its disks are given is noted (crash-trace.ts). Then, for every moment at which the power may go, every set of the
 * unflushed sectors that is looked at (crash-states.ts), and every set of members that may be missing, the array is
 * assembled and recovered by the shipping code, and everything is read and judged:
 *
 *   it starts           unless it is dirty and degraded, in a parity level; then force starts it
 *   every sector        holds what the registers admit (crash-registers.ts), before the recovery and after it the same
 *   copies and parity   agree afterwards; superblocks say clean, with right checksums, and it assembles once more
 *
 * A recovery is a life of an array like any other: some are noted and explored in turn, with the crash that came
 * before as their start, and so on to the depth that is asked for.
 *
 * What may be lost, and nothing else (L3 and L4 of the fault model): in an array that was forced, sectors of a member that
 * is not in sync, in columns that were being written; with a partial parity log, without force, only those of them that
 * were themselves being written.
 *
 * Factoring
 *   A state is M × C1 × C2 ...: what the areas outside of the data hold on all members that are there (superblocks,
 *   bitmaps, bad-block lists, logs), and the columns of data (crash-columns.ts). What assembly decides, and which ranges
 *   it resyncs or replays, it decides by M alone: it reads nothing else before. What then becomes of a column is computed
 *   from the same bytes of that column only: plans work byte by byte, which test/plan proves for every plan. So the outcome
 *   of a column is a function of (members present, force, M, which column, its sectors), and a state all of whose columns
 *   have been through a whole recovery, each in some state with this same M, is judged by what came out there. A state with
 *   anything new goes through the whole recovery itself. That the factoring holds is not only argued: one in so many of
 *   the states that could be judged by parts goes through the whole recovery too, and any difference is a violation.
 *
 * Counting
 *   `distinct` counts states with different bytes on the members that are there (or other members there), over all
 *   scripts of a world; each has been judged at every moment at which it can occur. `whole` counts recoveries that were run.
 */
import type { RaidArray } from '../array/array.ts';
import { assembleDevices, formArray, type Source } from '../array/form.ts';
import type { Device } from '../device/device.ts';
import { MemoryDevice } from '../device/memory.ts';
import { assert, InvariantViolation, RaidError, unreachable } from '../errors.ts';
import { seededRandom } from '../host.ts';
import type { Layout } from '../layout/layout.ts';
import { KIB, MIB, SECTOR_BYTES } from '../units.ts';
import { Clock, Process } from './clock.ts';
import { agrees, type Columns, columnsOf, type SlotSector } from './crash-columns.ts';
import { Contents, KnownContents, Registers } from './crash-registers.ts';
import {
  applyChoice,
  type Choice,
  choicesOf,
  type FreeWrite,
  type Place,
  Prefixes,
  placeKey,
  thinned,
} from './crash-states.ts';
import { Trace, TracedDevice, type TraceEvent } from './crash-trace.ts';
import {
  describe,
  type Script,
  type Step,
  scriptsAfterCrash,
  scriptsFor,
  toleratedBy,
  type World,
} from './crash-worlds.ts';
import { Disk } from './disk.ts';

export interface ExploreOptions {
  readonly seed: number;
  /** Recoveries of a script, and recoveries of each of those, and so on, that are explored in turn. */
  readonly nested: readonly number[];
  /** Subsets of unflushed data writes, and of unflushed metadata writes, at one moment. */
  readonly dataChoices: number;
  readonly metadataChoices: number;
  /** The latter where a member is missing. */
  readonly metadataChoicesDegraded: number;
  /** Whether at one moment only some pairs of members are missing, each member in about one of them, and at the next ones others. */
  readonly pairsInTurn: boolean;
  /** One in so many states judged by parts goes through the whole recovery too. */
  readonly crossCheck: number;
  /** Different violations, after which it ends. */
  readonly violationsMost: number;
  /** Only the script of this number. */
  readonly script?: number | undefined;
  /** Whether what a forced start may lose is held against it: then the write hole is found. */
  readonly forgivesNothing?: boolean | undefined;
}

export const thorough: ExploreOptions = {
  seed: 1,
  nested: [2, 1],
  dataChoices: 1024,
  metadataChoices: 64,
  metadataChoicesDegraded: 12,
  pairsInTurn: false,
  crossCheck: 400,
  violationsMost: 5,
};

export interface Violation {
  readonly world: string;
  readonly script: number;
  /** What was done, crash after crash. */
  readonly lives: readonly string[];
  readonly moment: number;
  /** Disks that are there. */
  readonly present: readonly number[];
  readonly forced: boolean;
  readonly what: string;
  /** So many states were wrong in the same way; this is the first. */
  count: number;
}

export interface Findings {
  readonly world: string;
  scripts: number;
  /** Lives that were explored, by how many crashes had come before. */
  readonly lives: number[];
  /** Moments at which the power was cut. */
  moments: number;
  /** Judgements: a state at a moment. */
  judged: number;
  distinct: number;
  /** Distinct states after a crash during a recovery. */
  distinctNested: number;
  whole: number;
  crossChecked: number;
  /** Judgements of states that were refused for being dirty and degraded, and then forced. */
  refused: number;
  /** Sectors of which anything was allowed, in the judgements that needed it, by reason. */
  forgivenWriteHole: number;
  forgivenInFlight: number;
  readonly violations: Violation[];
}

const ZEROS = new Uint8Array(4 * KIB);
/** Longer than anything that a script does. */
const LIMIT_MS = 100_000;

/** What a life starts from. */
interface Start {
  readonly depth: number;
  readonly lives: readonly string[];
  readonly images: readonly Uint8Array[];
  /** Disks that are given to assembly. */
  readonly present: readonly boolean[];
  readonly liveSlots: readonly number[];
  /** What watched sectors of the array may hold. */
  readonly admitted: ReadonlyMap<number, ReadonlySet<number>>;
  /** Places that are not what they were when the world was made. */
  readonly places: readonly { readonly disk: number; readonly sector: number }[];
  readonly unsettled: ReadonlySet<number>;
  readonly inFlight: ReadonlySet<number>;
}

interface ColumnOutcome {
  readonly values: readonly number[];
  /** Why it is wrong whatever is admitted. */
  readonly flaw: string | null;
}

/** What became of the array in whole recoveries from states with the same metadata. */
interface Outcome {
  /** Null: it started. */
  readonly refusal: RaidError | null;
  /** Slots that were not in sync at the start. */
  readonly lacking: ReadonlySet<number>;
  /** By watched column, then by its sectors as a code. */
  readonly columns: readonly Map<number, ColumnOutcome>[];
  readonly flaw: string | null;
}

/** A set of numbers below 2^53 that grows to many millions. */
class NumberSet {
  size = 0;
  #slots = new Float64Array(1 << 16).fill(-1);

  add(value: number): boolean {
    if (this.size * 2 > this.#slots.length) this.#grow();
    if (!put(this.#slots, value)) return false;
    this.size += 1;
    return true;
  }

  #grow(): void {
    const larger = new Float64Array(this.#slots.length * 2).fill(-1);
    for (const value of this.#slots) if (value >= 0) put(larger, value);
    this.#slots = larger;
  }
}

function put(slots: Float64Array, value: number): boolean {
  let at = ((value % 0x7fff_ffff) * 3) & (slots.length - 1);
  for (;;) {
    const there = slots[at] as number;
    if (there === value) return false;
    if (there < 0) {
      slots[at] = value;
      return true;
    }
    at = (at + 1) & (slots.length - 1);
  }
}

/** 32 bits of a, b and c. */
function mix(a: number, b: number, c: number): number {
  let hash = Math.imul(a + 0x7ed55d16, 0x9e3779b1) ^ Math.imul(b + 0x165667b1, 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 15) ^ Math.imul(c + 0x27d4eb2f, 0x2545f491), 0xc2b2ae35);
  hash = Math.imul(hash ^ (hash >>> 13), 0x27d4eb2f);
  return hash ^ (hash >>> 16);
}

/** A world as it was made: clean, full of known bytes. */
class Made {
  readonly world: World;
  readonly layout: Layout;
  readonly images: readonly Uint8Array[];
  /** What the array holds. */
  readonly plain: Uint8Array;
  readonly columns: Columns;
  readonly contents = new Contents();
  readonly dataSector: number;
  readonly superSectors: readonly number[];

  private constructor(made: Pick<Made, 'world' | 'layout' | 'images' | 'plain'>) {
    this.world = made.world;
    this.layout = made.layout;
    this.images = made.images;
    this.plain = made.plain;
    this.columns = columnsOf(made.layout, made.world.spares + made.world.loose > 0);
    this.superSectors = made.images.map((image) => superSectorIn(made.world, image.byteLength));
    const first = viewOf(made.images[0] as Uint8Array, (this.superSectors[0] as number) * SECTOR_BYTES);
    this.dataSector = Number(first.getBigUint64(128, true));
  }

  static async make(world: World): Promise<Made> {
    const count = world.members + world.spares + world.loose;
    const memories = Array.from({ length: count }, () => new SharedArrayBuffer(diskBytesFor(world)));
    const host = new Process(new Clock(count, { runsByItself: true }));
    const formed = world.members + world.spares;
    const array = await formArray(sourcesOver(memories).slice(0, formed), {
      ...world.shape,
      name: 'crash',
      spares: world.spares,
      assumeClean: true,
      host,
      driver: 'inline',
      heapBytes: MIB,
    });
    const plain = new Uint8Array(array.limits.sizeBytes);
    for (let sector = 0; sector < plain.byteLength / SECTOR_BYTES; sector += 1)
      plain.set(sectorOf(0, sector), sector * SECTOR_BYTES);
    await array.write(0, plain);
    const { layout } = array;
    await array.close();
    const images = memories.map((memory) => new Uint8Array(memory).slice());
    if (hasLog(world.shape)) for (const image of images) emptyLogIn(world, image);
    return new Made({ world, layout, plain, images });
  }

  /** The slot that a disk had when the world was made; null for spares and others. */
  slotOf(disk: number): number | null {
    return disk < this.world.members ? disk : null;
  }

  contentAt(disk: number, sector: number): number {
    return this.contents.idOf(this.images[disk] as Uint8Array, sector * SECTOR_BYTES);
  }

  columnOf({ disk, sector }: { disk: number; sector: number }): number | null {
    if (sector < this.dataSector) return null;
    return this.columns.columnAt(this.slotOf(disk), sector - this.dataSector);
  }
}

/** The content of a sector: which write, and where, 64 times. */
function sectorOf(write: number, sector: number): Uint8Array {
  const words = new Uint32Array(SECTOR_BYTES / 4);
  for (let index = 0; index < words.length; index += 2) {
    words[index] = sector + 1;
    words[index + 1] = write * 64 + index + 1;
  }
  return new Uint8Array(words.buffer);
}

/**
 * Where the layout breaks the promise of its level, which is asked of it here and nowhere else: every choice of members
 * that may be missing leaves all data, and the default layout of raid5 is what it is by definition.
 */
function misplacementIn({ world, layout, columns }: Made): string | null {
  const slots = Array.from({ length: layout.memberCount }, (_, slot) => slot);
  const subsets = Array.from({ length: 2 ** slots.length }, (_, bits) =>
    slots.filter((slot) => ((bits >> slot) & 1) === 1),
  );
  for (const missing of subsets.filter(({ length }) => length <= toleratedBy(world, layout))) {
    if (!columns.holdsAll((slot) => !missing.includes(slot)))
      return `without the members ${missing} data is missing, and should not be`;
  }
  if (layout.kind !== 'parity' || world.shape.level !== 5 || world.shape.layout !== undefined) return null;
  for (let row = 0; row < layout.rowCount; row += 1) {
    const p = layout.memberCount - 1 - (row % layout.memberCount);
    const data = layout.row(row).data.every((slot, index) => slot === (p + 1 + index) % layout.memberCount);
    if (layout.row(row).p !== p || !data) return `row ${row} is not left-symmetric`;
  }
  return null;
}

/** What follows the header in the log of a clean array means nothing, and as zeros it is nothing to remember either. */
function emptyLogIn(world: World, image: Uint8Array): void {
  const sector = superSectorIn(world, image.byteLength);
  const view = viewOf(image, sector * SECTOR_BYTES);
  if (view.getUint32(0, true) !== MAGIC) return;
  const from = sector + view.getInt16(96, true);
  const to = from + view.getUint16(98, true);
  image.fill(0, from * SECTOR_BYTES + 4 * KIB, to * SECTOR_BYTES);
}

function viewOf(image: Uint8Array, offsetBytes: number): DataView {
  return new DataView(image.buffer, image.byteOffset + offsetBytes);
}

function superSectorIn({ shape }: World, imageBytes: number): number {
  if (shape.metadata === '1.1') return 0;
  if (shape.metadata !== '1.0') return 8;
  const sector = imageBytes / SECTOR_BYTES - 16;
  return sector - (sector % 8);
}

/** Room for the data, and for what md puts before it (after it, in 1.0). */
function diskBytesFor({ shape, dataBytes }: World): number {
  const log = hasLog(shape) ? MIB : 0;
  if (shape.metadata === '1.0') return dataBytes + 24 * KIB + log;
  return dataBytes + MIB + log;
}

function hasLog({ consistencyPolicy }: World['shape']): boolean {
  return consistencyPolicy !== undefined && !['resync', 'bitmap'].includes(consistencyPolicy);
}

function sourcesOver(memories: readonly SharedArrayBuffer[]): readonly Source[] {
  return memories.map((memory, disk) => ({
    device: new MemoryDevice({
      sizeBytes: memory.byteLength,
      memory,
      blockBytes: SECTOR_BYTES,
      name: nameOf(disk),
    }),
    name: nameOf(disk),
    identity: nameOf(disk),
  }));
}

function nameOf(disk: number): string {
  return `disk${disk}`;
}

function diskOf(name: string): number {
  return Number(name.slice('disk'.length));
}

/** By disk, as in a trace. */
function liveSlotsOf(array: RaidArray, disks: number): readonly number[] {
  const slots = Array.from({ length: disks }, () => -1);
  for (const { state, device } of array.members) {
    if (state.state === 'in_sync') slots[diskOf(device.name)] = state.slot;
    if (state.state === 'replacement') slots[diskOf(device.name)] = -2 - state.slot;
  }
  return slots;
}

export async function explore(world: World, options: ExploreOptions): Promise<Findings> {
  const made = await Made.make(world);
  return await new Explorer(made, options).run();
}

/** What is alike at all moments of one life: which sectors matter, and how states of them are named. */
class Room {
  readonly made: Made;
  readonly images: readonly Uint8Array[];
  readonly places: readonly Place[];
  /** Columns of the layout that have a place. */
  readonly columns: readonly number[];
  /** By place: an index into `columns`, or -1 for metadata. */
  readonly columnOfPlace: readonly number[];
  /** By place: what it held when the world was made. */
  readonly origins: readonly number[];
  readonly #views = new Map<string, View>();
  readonly #indexes: ReadonlyMap<number, number>;

  constructor(
    made: Made,
    images: readonly Uint8Array[],
    places: readonly Place[],
    columns: readonly number[],
  ) {
    this.made = made;
    this.images = images;
    this.places = places;
    this.columns = columns;
    const indexOf = new Map(columns.map((column, index) => [column, index]));
    this.columnOfPlace = places.map((place) => {
      const column = made.columnOf(place);
      return column === null ? -1 : (indexOf.get(column) as number);
    });
    this.origins = places.map(({ disk, sector }) => made.contentAt(disk, sector));
    this.#indexes = new Map(places.map(({ disk, sector }, index) => [placeKey(disk, sector), index]));
  }

  viewOf(present: readonly boolean[]): View {
    const key = present.join();
    const known = this.#views.get(key);
    if (known !== undefined) return known;
    const view = new View(this, present);
    this.#views.set(key, view);
    return view;
  }

  /** Whether a disk ever was the array's. One that was not is blank: it makes no difference whether it is there. */
  hasHeld(disk: number): boolean {
    const { world } = this.made;
    return disk < world.members + world.spares || this.places.some((place) => place.disk === disk);
  }

  /** What a sector of a disk holds in a state. */
  bytesAt(disk: number, sector: number, versions: readonly number[]): Uint8Array {
    const index = this.#indexes.get(placeKey(disk, sector)) ?? -1;
    const place = this.places[index];
    if (place !== undefined) return place.versions[versions[index] as number] as Uint8Array;
    const image = this.images[disk] as Uint8Array;
    return image.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
  }
}

/** A room as those disks know it that are there: what is on the others makes no difference. */
class View {
  readonly present: readonly boolean[];
  readonly outcomes = new Map<string, Outcome>();
  readonly metadataPlaces: readonly number[];
  /** By column: its places here, and what one version more is worth in its code. */
  readonly #columns: readonly { readonly places: number[]; readonly strides: number[] }[];
  /** By place and version: what it adds to the two halves of a state's hash. 0 for what was there from the beginning. */
  readonly #high: readonly (readonly number[])[];
  readonly #low: readonly (readonly number[])[];
  readonly #salt: number;

  constructor(room: Room, present: readonly boolean[]) {
    this.present = present;
    const { places, columnOfPlace, origins } = room;
    const here = places.flatMap(({ disk }, index) => (present[disk] === true ? [index] : []));
    this.metadataPlaces = here.filter((index) => columnOfPlace[index] === -1);
    this.#columns = room.columns.map(() => ({ places: [], strides: [] }));
    const sizes = room.columns.map(() => 1);
    for (const index of here) {
      const column = columnOfPlace[index] as number;
      if (column < 0) continue;
      const stride = sizes[column] as number;
      this.#columns[column]?.places.push(index);
      this.#columns[column]?.strides.push(stride);
      sizes[column] = stride * (places[index] as Place).versions.length;
    }
    assert(sizes.every(Number.isSafeInteger), 'the states of a column can be counted');
    this.#salt = mix(
      3,
      present.reduce((bits, isThere, disk) => bits | (Number(isThere) << disk), 0),
      0,
    );
    const parts = (salt: number): readonly (readonly number[])[] =>
      places.map(({ disk, sector, contents }, index) => {
        const first = origins[index];
        if (present[disk] !== true) return contents.map(() => 0);
        return contents.map((content) => (content === first ? 0 : mix(salt + disk, sector, content)));
      });
    this.#high = parts(101);
    this.#low = parts(7001);
  }

  metadataKey(versions: readonly number[]): string {
    let key = '';
    for (const place of this.metadataPlaces) key += `${versions[place]},`;
    return key;
  }

  codeOf(column: number, versions: readonly number[]): number {
    const { places, strides } = this.#columns[column] as { places: number[]; strides: number[] };
    let code = 0;
    for (let index = 0; index < places.length; index += 1)
      code += (versions[places[index] as number] as number) * (strides[index] as number);
    return code;
  }

  /** Two halves of the hash of these places. */
  hashOf(places: readonly number[], versions: readonly number[]): readonly [number, number] {
    let high = 0;
    let low = 0;
    for (const place of places) {
      const version = versions[place] as number;
      high = (high + (this.#high[place]?.[version] as number)) | 0;
      low = (low + (this.#low[place]?.[version] as number)) | 0;
    }
    return [high, low];
  }

  /** Below 2^53. */
  number(halves: readonly (readonly [number, number])[]): number {
    let high = this.#salt;
    let low = this.#salt;
    for (const half of halves) {
      high = (high + half[0]) | 0;
      low = (low + half[1]) | 0;
    }
    return (high >>> 0) * 2 ** 21 + (low >>> 11);
  }

  /** Places here that belong to these columns. */
  placesOf(columns: readonly number[]): readonly number[] {
    return columns.flatMap((column) => this.#columns[column]?.places ?? []);
  }
}

/** A moment at which the power goes. */
class Moment {
  readonly start: Start;
  readonly room: Room;
  readonly at: number;
  readonly durable: readonly number[];
  readonly free: readonly FreeWrite[];
  readonly liveSlots: readonly number[];
  /** Columns of which something was being written, here or at a crash from which nobody has recovered since. */
  readonly unsettled: ReadonlySet<number>;
  /** The array sectors that were themselves being written. */
  readonly inFlight: ReadonlySet<number>;
  readonly hasLog: boolean;
  readonly #made: Made;
  readonly #registers: Registers;
  readonly #admitted = new Map<number, ReadonlySet<number>>();
  readonly #watched: Iterable<number>;

  constructor(
    start: Start,
    room: Room,
    prefixes: Prefixes,
    registers: Registers,
    watched: Iterable<number>,
    liveSlots: readonly number[],
  ) {
    const { made } = room;
    this.#made = made;
    this.start = start;
    this.room = room;
    this.#registers = registers;
    this.#watched = watched;
    this.at = prefixes.moment;
    this.durable = [...prefixes.durable];
    this.free = prefixes.free();
    this.liveSlots = liveSlots.map((slot, disk) => (slot < 0 || this.#isOnRecord(disk, slot) ? slot : -1));
    this.hasLog = hasLog(made.world.shape);
    const unsettled = new Set(start.unsettled);
    const inFlight = new Set(start.inFlight);
    for (const { places } of this.free) {
      for (const index of places) {
        const place = room.places[index] as Place;
        const column = room.columnOfPlace[index] as number;
        if (column < 0) continue;
        unsettled.add(column < 0 ? column : (room.columns[column] as number));
        const slot = made.slotOf(place.disk);
        const sector =
          slot === null ? null : made.columns.arraySectorAt(slot, place.sector - made.dataSector);
        if (sector !== null) inFlight.add(sector);
      }
    }
    this.unsettled = unsettled;
    this.inFlight = inFlight;
  }

  admitted(arraySector: number): ReadonlySet<number> {
    const known = this.#admitted.get(arraySector);
    if (known !== undefined) return known;
    const admitted = this.#registers.admitted(arraySector, this.at);
    this.#admitted.set(arraySector, admitted);
    return admitted;
  }

  /**
   * Who may be there: all, and all but one or two without whom the array is still whole; and without a stale one. `turn`: of all pairs
   * only those whose numbers have this sum, modulo the number of disks; null: all.
   */
  presences(turn: number | null): readonly (readonly boolean[])[] {
    const disks = this.liveSlots.map((_, disk) => disk);
    const found: (readonly boolean[])[] = [];
    const take = (...missing: readonly number[]): void => {
      const isThere = (slot: number): boolean =>
        disks.some((disk) => this.liveSlots[disk] === slot && !missing.includes(disk));
      if (missing.length > 0 && !this.#made.columns.holdsAll(isThere)) return;
      found.push(disks.map((disk) => !missing.includes(disk)));
    };
    const isLive = (disk: number): boolean => (this.liveSlots[disk] as number) >= 0;
    take();
    for (const disk of disks) if (isLive(disk) || this.room.hasHeld(disk)) take(disk);
    for (const disk of disks) {
      for (const other of disks) {
        if (disk >= other || !isLive(disk) || !isLive(other)) continue;
        if (turn === null || (disk + other - turn) % disks.length === 0) take(disk, other);
      }
    }
    return found;
  }

  /** Dirty and degraded, in a parity level without a log: nobody can know what the missing member held. */
  mayRefuse(present: readonly boolean[], versions: readonly number[], error: RaidError): boolean {
    const { made } = this.room;
    if (error.code !== 'DIRTY_DEGRADED' || made.layout.kind !== 'parity' || this.hasLog) return false;
    const isDirty = made.images.some((_, disk) => {
      if (present[disk] !== true) return false;
      const bytes = this.room.bytesAt(disk, made.superSectors[disk] as number, versions);
      const view = viewOf(bytes, 0);
      return view.getUint32(0, true) === MAGIC && view.getBigUint64(208, true) !== CLEAN;
    });
    const slots = Array.from({ length: made.layout.memberCount }, (_, slot) => slot);
    const isDegraded =
      slots.some((slot) => !this.liveSlots.some((live, disk) => live === slot && present[disk] === true)) ||
      this.#countsOnOther(present, versions);
    return isDirty && isDegraded;
  }

  /**
   * Whether the freshest superblock gives a slot to somebody who is not there. While a replacement takes over, that may
   * be its original, or itself, whatever the array says of the two at that moment.
   */
  #countsOnOther(present: readonly boolean[], versions: readonly number[]): boolean {
    const { made } = this.room;
    const views = made.images.flatMap((_, disk) => {
      const view = viewOf(this.room.bytesAt(disk, made.superSectors[disk] as number, versions), 0);
      return present[disk] === true && view.getUint32(0, true) === MAGIC ? [view] : [];
    });
    const here = new Set(views.map((view) => view.getUint32(160, true)));
    const newest = views.toSorted((a, b) => Number(b.getBigUint64(200, true) - a.getBigUint64(200, true)))[0];
    if (newest === undefined) return false;
    const roles = newest.getUint32(220, true);
    for (let number = 0; number < Math.min(roles, 128); number += 1)
      if (newest.getUint16(256 + 2 * number, true) < made.layout.memberCount && !here.has(number))
        return true;
    return false;
  }

  /** Who takes a slot over counts for it when its own superblock says so, and not when the array has decided it. */
  #isOnRecord(disk: number, slot: number): boolean {
    const { made } = this.room;
    const bytes = this.room.bytesAt(disk, made.superSectors[disk] as number, this.durable);
    const view = viewOf(bytes, 0);
    const isCopying = (view.getUint32(8, true) & (RECOVERY_OFFSET | REPLACEMENT)) !== 0;
    return !isCopying && view.getUint16(256 + 2 * view.getUint32(160, true), true) === slot;
  }

  /** The state, as what another life starts from. */
  startFrom(present: readonly boolean[], versions: readonly number[]): Start {
    const { places, images } = this.room;
    const crashed = images.map((image) => image.slice());
    for (const [index, { disk, sector, versions: bytes }] of places.entries())
      crashed[disk]?.set(bytes[versions[index] as number] as Uint8Array, sector * SECTOR_BYTES);
    return {
      depth: this.start.depth + 1,
      lives: [
        ...this.start.lives.slice(0, -1),
        `${this.start.lives.at(-1)} | cut at ${this.at}, then disks ${numbersOf(present)}`,
      ],
      images: crashed,
      present,
      liveSlots: this.liveSlots.map((slot, disk) => (present[disk] === true ? slot : -1)),
      admitted: new Map([...this.#watched].map((sector) => [sector, this.admitted(sector)])),
      places,
      unsettled: this.unsettled,
      inFlight: this.inFlight,
    };
  }
}

/** Hundreds of thousands at a moment: what they hold is made of the choice when it is needed. */
interface DataState {
  readonly choice: Choice;
  readonly codes: readonly number[];
  readonly hash: readonly [number, number];
}

class Explorer {
  readonly #made: Made;
  readonly #options: ExploreOptions;
  readonly #random: (below: number) => number;
  readonly #findings: Findings;
  readonly #distinct = new NumberSet();
  readonly #distinctNested = new NumberSet();
  readonly #stage: Stage;
  /** Violations by what they say, numbers aside. */
  readonly #kinds = new Map<string, Violation>();
  #script = 0;

  constructor(made: Made, options: ExploreOptions) {
    this.#made = made;
    this.#options = options;
    this.#random = seededRandom(options.seed);
    this.#stage = new Stage(made);
    this.#findings = {
      world: made.world.title,
      scripts: 0,
      lives: [],
      moments: 0,
      judged: 0,
      distinct: 0,
      distinctNested: 0,
      whole: 0,
      crossChecked: 0,
      refused: 0,
      forgivenWriteHole: 0,
      forgivenInFlight: 0,
      violations: [],
    };
  }

  async run(): Promise<Findings> {
    const { images, world, layout } = this.#made;
    const misplaced = misplacementIn(this.#made);
    if (misplaced !== null) throw new InvariantViolation(misplaced);
    for (const [number, script] of scriptsFor(world, layout).entries()) {
      if (this.#options.script !== undefined && this.#options.script !== number) continue;
      if (this.#isEnough()) break;
      this.#script = number;
      this.#findings.scripts += 1;
      await this.#explore(
        {
          depth: 0,
          lives: [],
          images,
          present: images.map((_, disk) => disk < world.members + world.spares),
          liveSlots: images.map((_, disk) => this.#made.slotOf(disk) ?? -1),
          admitted: new Map(),
          places: [],
          unsettled: new Set(),
          inFlight: new Set(),
        },
        script,
      );
    }
    this.#findings.distinct = this.#distinct.size;
    this.#findings.distinctNested = this.#distinctNested.size;
    return this.#findings;
  }

  #isEnough(): boolean {
    return this.#findings.violations.length >= this.#options.violationsMost;
  }

  async #explore(from: Start, script: Script): Promise<void> {
    const start = { ...from, lives: [...from.lives, describe(script)] };
    this.#findings.lives[start.depth] = (this.#findings.lives[start.depth] ?? 0) + 1;
    const life = new Life(this.#made, start, this.#random(2 ** 31));
    try {
      await life.live(script);
    } catch (error) {
      this.#violate(
        start,
        life.trace.events.length,
        start.present,
        false,
        `the script failed: ${text(error)}`,
      );
      return;
    }
    const roots = await this.#judgeAll(start, life.trace.events);
    const count = this.#options.nested[start.depth] ?? 0;
    const scripts = scriptsAfterCrash(this.#made.layout);
    for (let index = 0; index < count && roots.length > 0 && !this.#isEnough(); index += 1) {
      const root = roots[Math.floor(((index + this.#random(1000) / 1000) * roots.length) / count)];
      const next = scripts[(index + start.depth + this.#script) % scripts.length];
      if (root !== undefined && next !== undefined) await this.#explore(root(), next);
    }
  }

  #violate(start: Start, moment: number, present: readonly boolean[], forced: boolean, what: string): void {
    const kind = what.replaceAll(/\d+/g, 'n');
    const known = this.#kinds.get(kind);
    if (known !== undefined) {
      known.count += 1;
      return;
    }
    const violation: Violation = {
      world: this.#made.world.title,
      script: this.#script,
      lives: start.lives,
      moment,
      present: numbersOf(present),
      forced,
      what,
      count: 1,
    };
    this.#kinds.set(kind, violation);
    this.#findings.violations.push(violation);
  }

  /** Judges every state at every moment of a life. Returns crashes that can be the start of another. */
  async #judgeAll(start: Start, events: readonly TraceEvent[]): Promise<readonly (() => Start)[]> {
    const made = this.#made;
    const prefixes = new Prefixes(events, start.images, made.contents, start.places);
    const columns = [...new Set(prefixes.places.map((place) => made.columnOf(place)))].filter(
      (column) => column !== null,
    );
    const before = new Map<number, ReadonlySet<number>>();
    for (const column of columns) {
      for (const { arraySector } of made.columns.columns[column]?.cells ?? []) {
        const plain = new Set([made.contents.idOf(made.plain, arraySector * SECTOR_BYTES)]);
        before.set(arraySector, start.admitted.get(arraySector) ?? plain);
      }
    }
    const registers = new Registers(events, made.contents, before);
    const room = new Room(made, start.images, prefixes.places, columns);
    this.#stage.enter(room);
    const roots: (() => Start)[] = [];
    let liveSlots = start.liveSlots;
    let isDue = true;
    const cut = async (): Promise<void> => {
      if (!isDue || this.#isEnough()) return;
      isDue = false;
      this.#findings.moments += 1;
      const moment = new Moment(start, room, prefixes, registers, [...before.keys()], liveSlots);
      const turn = this.#options.pairsInTurn ? this.#findings.moments : null;
      for (const present of moment.presences(turn)) await this.#judgeMoment(moment, present, roots);
    };
    for (const event of events) {
      // Before what ends states, or widens what is admitted: what follows would be judged by less.
      if (event.what !== 'write' && event.what !== 'flush') await cut();
      prefixes.advance();
      if (event.what === 'live') liveSlots = event.slots;
      const isNew = event.what === 'write' || event.what === 'live';
      // What is admitted now is less than before.
      if (isNew || event.what === 'answered' || event.what === 'synced') isDue = true;
    }
    await cut();
    this.#stage.leave();
    return roots;
  }

  async #judgeMoment(moment: Moment, present: readonly boolean[], roots: (() => Start)[]): Promise<void> {
    if (this.#isEnough()) return;
    const { room, durable } = moment;
    const view = room.viewOf(present);
    const free = moment.free.filter((write) => present[write.disk] === true);
    const columnOf = (place: number | undefined): number => room.columnOfPlace[place as number] as number;
    const metadata = free.filter(({ places }) => columnOf(places[0]) < 0);
    const data = free.filter(({ places }) => columnOf(places[0]) >= 0);
    const varying = [...new Set(data.flatMap(({ places }) => places.map(columnOf)))];
    const isVarying = new Set(varying);
    const quiet = room.columns.flatMap((_, index) => (isVarying.has(index) ? [] : [index]));
    const quietCodes = quiet.map((column) => view.codeOf(column, durable));
    const quietHash = view.hashOf(view.placesOf(quiet), durable);
    const varyingPlaces = view.placesOf(varying);

    const dataStates = new Map<string, DataState>();
    const versions = [...durable];
    for (const choice of choicesOf(data, this.#random, this.#options.dataChoices)) {
      for (const place of varyingPlaces) versions[place] = durable[place] as number;
      applyChoice(data, choice, versions);
      const codes = varying.map((column) => view.codeOf(column, versions));
      const key = codes.join();
      if (dataStates.has(key)) continue;
      dataStates.set(key, { choice, codes, hash: view.hashOf(varyingPlaces, versions) });
    }
    const seen = new Set<string>();
    const { metadataChoices, metadataChoicesDegraded } = this.#options;
    const cap = present.includes(false) ? metadataChoicesDegraded : metadataChoices;
    for (const choice of thinned(
      choicesOf(metadata, this.#random, thorough.metadataChoices),
      metadata,
      cap,
    )) {
      const applied = [...durable];
      applyChoice(metadata, choice, applied);
      const key = view.metadataKey(applied);
      if (seen.has(key)) continue;
      seen.add(key);
      const hash = view.hashOf(view.metadataPlaces, applied);
      const stateOf = (state: DataState): number[] => {
        const whole = [...applied];
        applyChoice(data, state.choice, whole);
        return whole;
      };
      const isStarted = await this.#judgeStates({
        moment,
        view,
        key,
        forced: false,
        states: dataStates.values(),
        stateOf,
        varying,
        quiet,
        quietCodes,
        hashes: [quietHash, hash],
        roots,
      });
      if (isStarted || this.#isEnough()) continue;
      this.#findings.refused += dataStates.size;
      await this.#judgeStates({
        moment,
        view,
        key,
        forced: true,
        states: dataStates.values(),
        stateOf,
        varying,
        quiet,
        quietCodes,
        hashes: [quietHash, hash],
        roots,
      });
    }
  }

  /** All states with one metadata. False where the array, rightly, does not start. */
  async #judgeStates(all: {
    readonly moment: Moment;
    readonly view: View;
    readonly key: string;
    readonly forced: boolean;
    readonly states: Iterable<DataState>;
    readonly stateOf: (state: DataState) => number[];
    readonly varying: readonly number[];
    readonly quiet: readonly number[];
    readonly quietCodes: readonly number[];
    readonly hashes: readonly (readonly [number, number])[];
    readonly roots: (() => Start)[];
  }): Promise<boolean> {
    const { moment, view, forced, varying, quiet, quietCodes } = all;
    const { present } = view;
    const key = `${all.key}${forced}`;
    const isKnown = (outcome: Outcome, columns: readonly number[], codes: readonly number[]): boolean => {
      for (let index = 0; index < columns.length; index += 1)
        if (outcome.columns[columns[index] as number]?.has(codes[index] as number) !== true) return false;
      return true;
    };
    const passed = varying.map(() => new Set<number>());
    let isQuietJudged = false;
    for (const state of all.states) {
      let outcome = view.outcomes.get(key) ?? null;
      const isWhole =
        outcome === null ||
        (outcome.refusal === null &&
          !(isKnown(outcome, varying, state.codes) && isKnown(outcome, quiet, quietCodes)));
      if (isWhole) {
        const versions = all.stateOf(state);
        outcome = await this.#stage.recover(view, forced, versions, outcome);
        view.outcomes.set(key, outcome);
        this.#findings.whole += 1;
        if (outcome.refusal === null && !forced && all.roots.length < 4096)
          all.roots.push(() => moment.startFrom(present, versions));
      } else if (outcome?.refusal === null && this.#random(this.#options.crossCheck) === 0) {
        await this.#crossCheck(moment, view, forced, all.stateOf(state), outcome);
      }
      assert(outcome !== null, 'there is an outcome now');
      this.#findings.judged += 1;
      if (outcome.flaw !== null) {
        this.#violate(moment.start, moment.at, present, forced, outcome.flaw);
        return true;
      }
      if (outcome.refusal !== null) {
        if (!forced && moment.mayRefuse(present, all.stateOf(state), outcome.refusal)) return false;
        const { code, message } = outcome.refusal;
        this.#violate(moment.start, moment.at, present, forced, `it does not start: ${code} ${message}`);
        return true;
      }
      const number = view.number([...all.hashes, state.hash]);
      this.#distinct.add(number);
      if (moment.start.depth > 0) this.#distinctNested.add(number);
      const judge = (column: number, code: number): boolean => {
        const what = this.#verdict(moment, forced, outcome as Outcome, column, code);
        if (what !== null) this.#violate(moment.start, moment.at, present, forced, what);
        return what === null;
      };
      for (let index = 0; index < varying.length; index += 1) {
        const code = state.codes[index] as number;
        if (passed[index]?.has(code) === true) continue;
        if (!judge(varying[index] as number, code)) return true;
        passed[index]?.add(code);
      }
      if (isQuietJudged) continue;
      isQuietJudged = true;
      for (let index = 0; index < quiet.length; index += 1)
        if (!judge(quiet[index] as number, quietCodes[index] as number)) return true;
    }
    return true;
  }

  async #crossCheck(
    moment: Moment,
    view: View,
    forced: boolean,
    versions: readonly number[],
    known: Outcome,
  ): Promise<void> {
    const whole = await this.#stage.recover(view, forced, versions, null);
    this.#findings.whole += 1;
    this.#findings.crossChecked += 1;
    for (const [column, found] of whole.columns.entries()) {
      for (const [code, { values, flaw }] of found) {
        const before = known.columns[column]?.get(code);
        if (before !== undefined && before.flaw === flaw && before.values.join() === values.join()) continue;
        const what = `column ${column} does not depend on its own sectors alone: ${before?.values} before, ${values} now`;
        this.#violate(moment.start, moment.at, view.present, forced, what);
      }
    }
  }

  #verdict(moment: Moment, forced: boolean, outcome: Outcome, index: number, code: number): string | null {
    const found = outcome.columns[index]?.get(code);
    assert(found !== undefined, 'every column of a state that started has an outcome');
    const column = moment.room.columns[index] as number;
    if (found.flaw !== null) return `${found.flaw} (column ${column})`;
    const cells = this.#made.columns.columns[column]?.cells ?? [];
    for (const [at, { arraySector, copies }] of cells.entries()) {
      const value = found.values[at] as number;
      if (moment.admitted(arraySector).has(value)) continue;
      const isLacking =
        this.#made.layout.kind === 'parity' && outcome.lacking.has((copies[0] as SlotSector).slot);
      if (isLacking && this.#options.forgivesNothing !== true) {
        if (forced && moment.unsettled.has(column)) {
          this.#findings.forgivenWriteHole += 1;
          continue;
        }
        if (moment.hasLog && moment.inFlight.has(arraySector)) {
          this.#findings.forgivenInFlight += 1;
          continue;
        }
      }
      const admitted = [...moment.admitted(arraySector)].join(' or ');
      const was = moment.inFlight.has(arraySector) ? 'being written' : 'not being written';
      return `array sector ${arraySector}, which was ${was}, holds content ${value}; admitted: ${admitted}`;
    }
    return null;
  }
}

/** One life of an array: assembled, used by a script, and noted. */
class Life {
  readonly trace: Trace;
  readonly #made: Made;
  readonly #start: Start;
  readonly #clock: Clock;
  readonly #process: Process;
  readonly #disks: readonly Disk[];
  #array: RaidArray | null = null;
  #writes: number;

  constructor(made: Made, start: Start, seed: number) {
    this.#made = made;
    this.#start = start;
    this.#clock = new Clock(seed);
    this.#process = new Process(this.#clock);
    this.#writes = 1000 * (start.depth + 1);
    this.#disks = start.images.map((image, number) => {
      const disk = new Disk({
        clock: this.#clock,
        name: nameOf(number),
        sizeBytes: image.byteLength,
        number,
      });
      for (let at = 0; at < image.byteLength; at += 4 * KIB) {
        const page = image.subarray(at, at + 4 * KIB);
        if (Buffer.compare(page, ZEROS.subarray(0, page.byteLength)) !== 0) disk.poke(at, page);
      }
      return disk;
    });
    this.trace = new Trace(() =>
      this.#array === null ? start.liveSlots : liveSlotsOf(this.#array, this.#disks.length),
    );
  }

  async live(script: Script): Promise<void> {
    await this.#clock.drive(this.#all(script), LIMIT_MS);
    this.#process.kill();
  }

  async #all(script: Script): Promise<void> {
    const sources = this.#disks.flatMap((_, disk): Source[] =>
      this.#start.present[disk] === true
        ? [{ device: this.#open(disk), name: nameOf(disk), identity: nameOf(disk) }]
        : [],
    );
    const { array } = await assembleDevices(sources, {
      name: 'crash',
      host: this.#process,
      driver: 'event-loop',
      heapBytes: MIB,
      windowBytes: this.#made.world.windowBytes,
      run: true,
    });
    this.#array = array;
    for (const step of script) await this.#perform(array, step);
  }

  #open(disk: number): Device {
    return new TracedDevice((this.#disks[disk] as Disk).open(this.#process), this.trace, disk);
  }

  async #perform(array: RaidArray, step: Step): Promise<void> {
    switch (step[0]) {
      case 'write':
      case 'fua':
        return await this.#write(array, step[1], step[2], step[0] === 'fua');
      case 'zero': {
        const [, sector, count] = step;
        const bytes = new Uint8Array(count * SECTOR_BYTES);
        const id = this.trace.begin({ what: 'ask', sector, bytes, fua: false });
        await array.writeZeroes(sector * SECTOR_BYTES, bytes.byteLength);
        this.trace.end('answered', id);
        return;
      }
      case 'flush': {
        const id = this.trace.begin({ what: 'sync' });
        await array.flush();
        this.trace.end('synced', id);
        return;
      }
      case 'idle':
        return await this.#process.sleep(500);
      case 'close': {
        const id = this.trace.begin({ what: 'sync' });
        await array.close();
        this.trace.end('synced', id);
        return;
      }
      case 'together': {
        await Promise.all(step[1].map((each) => this.#perform(array, each)));
        return;
      }
      case 'fail':
        return await array.fail(nameOf(step[1]));
      case 'remove': {
        await array.fail(nameOf(step[1]));
        const device = await array.remove(nameOf(step[1]));
        return await device.close();
      }
      case 're-add':
        await array.reAdd(this.#open(step[1]), nameOf(step[1]));
        return;
      case 'add':
        await array.add(this.#open(step[1]), nameOf(step[1]));
        return;
      case 'replace':
        return await array.replace(nameOf(step[1]));
      case 'refuse-data': {
        const zone = {
          offsetBytes: this.#made.dataSector * SECTOR_BYTES,
          lengthBytes: Math.max(...this.#made.layout.memberBytes),
        };
        const fault = { on: 'write', kind: 'error', code: 'WRITE_FAILED', applied: 'none' } as const;
        (this.#disks[step[1]] as Disk).arm(fault, zone);
        return;
      }
      case 'refuse-writes':
        (this.#disks[step[1]] as Disk).refusesWrites = 'WRITE_FAILED';
        return;
      case 'refuse-flush':
        (this.#disks[step[1]] as Disk).arm({ on: 'flush', kind: 'error', code: 'FLUSH_FAILED' });
        return;
      case 'bad-sector':
        (this.#disks[step[1]] as Disk).addLatent(this.#made.dataSector + step[2], 1);
        return;
      case 'rebuild':
        for await (const _progress of array.rebuild());
        return;
      case 'repair':
        for await (const _progress of array.scrub({ repair: true }));
        return;
      default:
        unreachable(step);
    }
  }

  async #write(array: RaidArray, sector: number, count: number, fua: boolean): Promise<void> {
    this.#writes += 1;
    const bytes = new Uint8Array(count * SECTOR_BYTES);
    for (let index = 0; index < count; index += 1)
      bytes.set(sectorOf(this.#writes, sector + index), index * SECTOR_BYTES);
    const id = this.trace.begin({ what: 'ask', sector, bytes, fua });
    await array.write(sector * SECTOR_BYTES, bytes, { fua });
    this.trace.end('answered', id);
  }
}

/** Where states become bytes, and the shipping recovery is run on them. */
class Stage {
  readonly #made: Made;
  readonly #host: Process;
  readonly #memories: readonly SharedArrayBuffer[];
  readonly #disks: readonly Buffer[];
  readonly #before: Uint8Array;
  readonly #after: Uint8Array;
  readonly #contentsBefore: KnownContents;
  /** What is on the disks, again. */
  readonly #words: readonly Int32Array[];
  #room: Room | null = null;
  /** What a recovery may change besides places: restored before the next one. */
  readonly #zones: readonly Range[];
  /** Zones and places, as a room has them. */
  #restored: readonly { readonly disk: number; readonly at: number; readonly bytes: Uint8Array }[] = [];
  #plainRanges: readonly Range[] = [];
  #unwatched: readonly Range[] = [];

  constructor(made: Made) {
    this.#made = made;
    this.#host = new Process(new Clock(2, { runsByItself: true }));
    this.#memories = made.images.map((image) => new SharedArrayBuffer(image.byteLength));
    this.#disks = this.#memories.map((memory) => Buffer.from(memory));
    this.#before = new Uint8Array(made.plain.byteLength);
    this.#after = new Uint8Array(made.plain.byteLength);
    this.#contentsBefore = new KnownContents(made.contents, new Int32Array(this.#before.buffer));
    this.#words = this.#memories.map((memory) => new Int32Array(memory));
    const dataStart = made.dataSector * SECTOR_BYTES;
    const dataEnd = dataStart + Math.max(...made.layout.memberBytes);
    const size = made.images[0]?.byteLength ?? 0;
    this.#zones = [{ from: dataStart, to: dataEnd }, ...endsOf(0, dataStart), ...endsOf(dataEnd, size)];
  }

  enter(room: Room): void {
    this.#room = room;
    for (const [disk, image] of room.images.entries()) this.#disks[disk]?.set(image);
    this.#restored = room.images.flatMap((image, disk) => {
      const places = room.places.filter((place) => place.disk === disk);
      const ranges = places.map(({ sector }) => ({
        from: sector * SECTOR_BYTES,
        to: (sector + 1) * SECTOR_BYTES,
      }));
      const joined = joinedOf([...this.#zones, ...ranges]);
      return joined.map(({ from, to }) => ({ disk, at: from, bytes: image.subarray(from, to) }));
    });
    const { made } = room;
    const watched = new Set(
      room.columns.flatMap((column) =>
        (made.columns.columns[column]?.cells ?? []).map(({ arraySector }) => arraySector),
      ),
    );
    this.#plainRanges = gapsOf(watched, made.plain.byteLength / SECTOR_BYTES);
    const sectors = Math.max(...made.layout.memberBytes) / SECTOR_BYTES;
    const isWatched = new Set(room.columns);
    const places = new Set<number>();
    for (let sector = 0; sector < sectors; sector += 1) {
      const slots = Array.from({ length: made.layout.memberCount }, (_, slot) => slot);
      const columns = slots.map((slot) => made.columns.columnAt(slot, sector));
      if (columns.some((column) => column === null || isWatched.has(column))) places.add(sector);
    }
    this.#unwatched = gapsOf(places, sectors);
  }

  /** Nothing outside of the zones has changed: else states were not what they were said to be. */
  leave(): void {
    const room = this.#room as Room;
    this.#restore();
    for (const [disk, image] of room.images.entries()) {
      const isSame = Buffer.compare(this.#disks[disk] as Buffer, image) === 0;
      assert(isSame, 'a recovery changes what is restored after it, and nothing else');
    }
  }

  async recover(
    view: View,
    forced: boolean,
    versions: readonly number[],
    known: Outcome | null,
  ): Promise<Outcome> {
    const room = this.#room as Room;
    this.#restore();
    for (let index = 0; index < room.places.length; index += 1) {
      const version = versions[index] as number;
      // The first is what the image holds.
      if (version === 0) continue;
      const { disk, sector, versions: bytes } = room.places[index] as Place;
      this.#disks[disk]?.set(bytes[version] as Uint8Array, sector * SECTOR_BYTES);
    }
    const columns = known?.columns ?? room.columns.map(() => new Map<number, ColumnOutcome>());
    const sources = sourcesOver(this.#memories).filter((_, disk) => view.present[disk]);
    const { windowBytes } = this.#made.world;
    const options = {
      name: 'crash',
      host: this.#host,
      driver: 'inline',
      heapBytes: MIB,
      windowBytes,
      run: true,
    } as const;
    let array: RaidArray;
    try {
      ({ array } = await assembleDevices(sources, { ...options, force: forced, autoSync: false }));
    } catch (error) {
      if (error instanceof RaidError) return { refusal: error, lacking: new Set(), columns, flaw: null };
      return { refusal: null, lacking: new Set(), columns, flaw: `assembly failed: ${text(error)}` };
    }
    const lacking = new Set<number>();
    const liveSlots = liveSlotsOf(array, this.#disks.length);
    for (let slot = 0; slot < this.#made.layout.memberCount; slot += 1)
      if (!liveSlots.includes(slot)) lacking.add(slot);
    let flaw: string | null;
    let inSync: readonly number[] = [];
    try {
      await array.read(0, this.#before);
      if (array.layout.kind === 'parity' || array.layout.copyCount > 1)
        for await (const _progress of array.rebuild());
      await array.read(0, this.#after);
      inSync = liveSlotsOf(array, this.#disks.length);
      flaw = this.#stateFlaw(array, inSync);
      await array.close();
      flaw ??= this.#superblockFlaw(inSync) ?? this.#unwatchedFlaw(inSync);
    } catch (error) {
      flaw = `the recovery failed: ${text(error)}`;
    }
    if (flaw === null) this.#judgeColumns(room, view, versions, columns, inSync);
    return { refusal: null, lacking, columns, flaw };
  }

  #judgeColumns(
    room: Room,
    view: View,
    versions: readonly number[],
    columns: readonly Map<number, ColumnOutcome>[],
    inSync: readonly number[],
  ): void {
    const { made } = room;
    const diskOfSlot = new Map(inSync.flatMap((slot, disk) => (slot < 0 ? [] : [[slot, disk] as const])));
    const sectorAt = ({ slot, sector }: SlotSector): Int32Array | null => {
      const disk = diskOfSlot.get(slot);
      if (disk === undefined) return null;
      const at = ((made.dataSector + sector) * SECTOR_BYTES) / 4;
      return (this.#words[disk] as Int32Array).subarray(at, at + SECTOR_BYTES / 4);
    };
    const isKept = Buffer.compare(this.#before, this.#after) === 0;
    for (const [index, number] of room.columns.entries()) {
      const code = view.codeOf(index, versions);
      if (columns[index]?.has(code) === true) continue;
      const column = made.columns.columns[number];
      if (column === undefined) continue;
      const values = column.cells.map(({ arraySector }) => this.#contentsBefore.idAt(arraySector));
      const after = isKept
        ? values
        : column.cells.map(({ arraySector }) => made.contents.idOf(this.#after, arraySector * SECTOR_BYTES));
      const flaw = values.some((value, at) => value !== after[at])
        ? `the recovery changed what is read: ${values} before, ${after} after`
        : agrees(column, sectorAt)
          ? null
          : 'copies or parity do not agree after the recovery';
      columns[index]?.set(code, { values, flaw });
    }
  }

  #stateFlaw(array: RaidArray, inSync: readonly number[]): string | null {
    const { memberCount } = this.#made.layout;
    const slots = new Set(inSync.filter((slot) => slot >= 0));
    const isWhole = slots.size === memberCount;
    // Active until it is closed.
    const wanted = isWhole ? ['clean', 'active'] : ['degraded'];
    if (!wanted.includes(array.state)) return `after the recovery the array is ${array.state}`;
    const idle = array.members.find(({ state }) => state.state === 'spare');
    if (!isWhole && idle !== undefined) return `the spare ${idle.name} was not used`;
    for (const { from, to } of this.#plainRanges) {
      const plain = this.#made.plain.subarray(from * SECTOR_BYTES, to * SECTOR_BYTES);
      for (const read of [this.#before, this.#after]) {
        if (Buffer.compare(read.subarray(from * SECTOR_BYTES, to * SECTOR_BYTES), plain) === 0) continue;
        return `something in array sectors ${from} to ${to} has changed, which nobody wrote`;
      }
    }
    return null;
  }

  /**
   * By the raw bytes: checksums are right, the freshest say clean, and nobody is more than one update behind them: a
   * member that did not get the last one before the crash is let in, and gets no other until something changes.
   */
  #superblockFlaw(inSync: readonly number[]): string | null {
    if (this.#made.layout.kind === 'copies' && this.#made.layout.copyCount === 1) return null;
    const members = inSync.flatMap((slot, disk) => (slot < 0 ? [] : [disk]));
    const views = members.map((disk) =>
      viewOf(this.#disks[disk] as Buffer, (this.#made.superSectors[disk] as number) * SECTOR_BYTES),
    );
    const events = views.map((view) => Number(view.getBigUint64(200, true)));
    const newest = Math.max(...events);
    for (const [index, view] of views.entries()) {
      const disk = members[index];
      if (view.getUint32(0, true) !== MAGIC) return `disk ${disk} has no superblock after the recovery`;
      if (view.getUint32(216, true) !== checksumOf(view))
        return `the superblock of disk ${disk} has a wrong checksum`;
      if ((events[index] as number) < newest - 1)
        return `disk ${disk} has events ${events[index]} after the recovery, and another ${newest}`;
      if (events[index] === newest && view.getBigUint64(208, true) !== CLEAN)
        return `the superblock of disk ${disk} does not say clean after the recovery`;
    }
    return null;
  }

  /** Sectors that nobody has written are on every member in sync what its slot always held. */
  #unwatchedFlaw(inSync: readonly number[]): string | null {
    const start = this.#made.dataSector * SECTOR_BYTES;
    for (const [disk, slot] of inSync.entries()) {
      if (slot < 0) continue;
      for (const { from, to } of this.#unwatched) {
        const [a, b] = [start + from * SECTOR_BYTES, start + to * SECTOR_BYTES];
        const first = this.#made.images[slot] as Uint8Array;
        if (Buffer.compare((this.#disks[disk] as Buffer).subarray(a, b), first.subarray(a, b)) === 0)
          continue;
        return `disk ${disk}: something in sectors ${from} to ${to} of its data is not what slot ${slot} held`;
      }
    }
    return null;
  }

  #restore(): void {
    for (const { disk, at, bytes } of this.#restored) this.#disks[disk]?.set(bytes, at);
  }
}

const MAGIC = 0xa92b4efc;
/** Bits of the feature map. */
const RECOVERY_OFFSET = 2;
const REPLACEMENT = 16;
const CLEAN = 0xffff_ffff_ffff_ffffn;
/** So much at both ends of an area that is not data. */
const END_BYTES = 32 * KIB;

interface Range {
  readonly from: number;
  readonly to: number;
}

/** As few as they can be. */
function joinedOf(ranges: readonly Range[]): readonly Range[] {
  const joined: { from: number; to: number }[] = [];
  for (const { from, to } of ranges.toSorted((a, b) => a.from - b.from)) {
    const last = joined.at(-1);
    if (last !== undefined && from <= last.to) last.to = Math.max(last.to, to);
    else if (to > from) joined.push({ from, to });
  }
  return joined;
}

function endsOf(from: number, to: number): Range[] {
  if (to - from <= 2 * END_BYTES) return [{ from, to }];
  return [
    { from, to: from + END_BYTES },
    { from: to - END_BYTES, to },
  ];
}

/** Runs of numbers below `end` that are not in the set. */
function gapsOf(set: ReadonlySet<number>, end: number): readonly Range[] {
  const gaps: { from: number; to: number }[] = [];
  for (let number = 0; number < end; number += 1) {
    if (set.has(number)) continue;
    const last = gaps.at(-1);
    if (last?.to === number) last.to += 1;
    else gaps.push({ from: number, to: number + 1 });
  }
  return gaps;
}

/** Of a version-1 superblock: the sum of its words, without the checksum itself, folded once. */
function checksumOf(view: DataView): number {
  const words = (256 + 2 * view.getUint32(220, true)) / 4;
  let sum = 0;
  for (let word = 0; word < words; word += 1) if (word !== 54) sum += view.getUint32(word * 4, true);
  return ((sum % 2 ** 32) + Math.floor(sum / 2 ** 32)) >>> 0;
}

function numbersOf(present: readonly boolean[]): readonly number[] {
  return present.flatMap((isThere, disk) => (isThere ? [disk] : []));
}

function text(error: unknown): string {
  return error instanceof Error ? `${error.name} ${error.message}` : String(error);
}
