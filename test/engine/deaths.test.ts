/**
 * What becomes of a job whose lane dies, between any two things that a lane does with it: lanes whose hands are the test's
 * own, and do what is asked of them when they are told to.
 */
import { isDeepStrictEqual } from 'node:util';
import { describe, expect, test } from 'vitest';
import type { BlockingCalls, DirectAccess } from '../../lib/device/device.ts';
import { SynchronousIo } from '../../lib/engine/batch.ts';
import type { Crew, Hand, Hears } from '../../lib/engine/crew.ts';
import { Lanes } from '../../lib/engine/lanes.ts';
import { type LogShape, logOf, PartialParityLog } from '../../lib/engine/log.ts';
import { createMemory } from '../../lib/engine/memory.ts';
import type { ControlMessage, LaneTask, ReportMessage } from '../../lib/engine/message.ts';
import type { Job } from '../../lib/engine/ring.ts';
import { drive, nothingToReport, type Report, SharedHealth } from '../../lib/engine/run.ts';
import { LaneWork } from '../../lib/engine/work.ts';
import { RaidError } from '../../lib/errors.ts';
import { realHost } from '../../lib/host.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import type { Health } from '../../lib/plan/plan.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { turns } from './members.ts';

/** Rows of three data chunks; in row 0 slots 0, 1 and 2 have them, and slot 3 the parity. */
const geometry: Geometry = {
  level: 'raid5',
  layout: 'left-symmetric',
  memberCount: 4,
  chunkBytes: 4 * KIB,
  memberBytes: 16 * KIB,
};

/** Each chunk twice; chunk 1 at the start of slot 1 and in the middle of slot 2. Without slot 0 neither of those can be missed. */
const twice: Geometry = {
  ...{ level: 'raid10', memberCount: 3, chunkBytes: 4 * KIB, memberBytes: 16 * KIB },
  ...{ near: 1, far: 2, offset: false, farSets: 0 },
};

class Disk implements BlockingCalls {
  readonly bytes: Uint8Array;
  refuses = false;

  constructor(sizeBytes = 16 * KIB) {
    this.bytes = new Uint8Array(sizeBytes);
  }

  read(offsetBytes: number, target: Uint8Array): void {
    target.set(this.bytes.subarray(offsetBytes, offsetBytes + target.byteLength));
  }

  write(offsetBytes: number, source: Uint8Array): void {
    if (this.refuses) throw new RaidError('WRITE_FAILED', 'the disk takes no writes');
    this.bytes.set(source, offsetBytes);
  }

  flush(): void {}
}

/** Where it ends: when it is to write, after a half of that, with the answer unsaid, or said but not yet marked as done. */
type End = 'before' | 'half' | 'unsaid' | 'said';
const ends: readonly End[] = ['before', 'half', 'unsaid', 'said'];

class TestHand implements Hand {
  readonly #work: LaneWork;
  readonly #io: SynchronousIo;
  readonly #hears: Hears;
  readonly #inbox: ControlMessage[] = [];
  readonly #outbox: (ReportMessage | null)[] = [];
  #end: End | null = null;
  #isLeft = false;

  constructor(task: LaneTask, hears: Hears) {
    this.#hears = hears;
    this.#io = new SynchronousIo(task.map.memory, task.members);
    this.#work = new LaneWork(task, {
      io: this.#io,
      post: (message) => {
        this.#outbox.push(message);
        setImmediate(() => {
          const next = this.#isLeft ? undefined : this.#outbox.shift();
          if (next !== undefined) this.#hears.posted(next);
        });
        if (this.#end === 'said') throw new Error('dead');
      },
      exit: () => {
        throw new Error('dead');
      },
    });
  }

  /** Carries out the oldest job; to the end, or to an end of its own. */
  work(end: End | null = null): void {
    this.#end = end;
    const { control } = this.#work;
    const { id, job } = control.peek();
    try {
      let report = nothingToReport;
      if (job.op === 'control') this.#work.obey(this.#inbox.shift() as ControlMessage);
      else {
        const perform = (asked: Parameters<SynchronousIo['perform']>[0]) => this.#perform(asked);
        report = this.#work.writeNow(job, perform) ?? drive(this.#work.run(job), perform);
      }
      if (end === 'unsaid') throw new Error('dead');
      this.#work.finish(id, report);
      if (end === null) return;
    } catch (error) {
      expect(error).toMatchObject({ message: 'dead' });
    }
    this.die();
  }

  /** Everything that there is to do. */
  workAll(): void {
    while (this.#work.control.hasSubmissions()) this.work();
  }

  #perform(asked: Parameters<SynchronousIo['perform']>[0]) {
    if (asked.direction === 'write' && this.#end === 'before') throw new Error('dead');
    if (asked.direction === 'write' && this.#end === 'half') {
      this.#io.perform({ ...asked, transfers: asked.transfers.slice(0, 1) });
      throw new Error('dead');
    }
    return this.#io.perform(asked);
  }

  die(): void {
    this.#hears.died();
  }

  post(message: ControlMessage): void {
    this.#inbox.push(message);
  }

  receive(): ReportMessage | null | undefined {
    return this.#outbox.shift();
  }

  kill(): Promise<void> {
    return Promise.resolve();
  }

  leave(): void {
    this.#isLeft = true;
  }

  wake(): void {}
  ref(): void {}
  unref(): void {}
  refPosts(): void {}
  unrefPosts(): void {}
}

interface World {
  readonly lanes: Lanes;
  readonly disks: readonly Disk[];
  /** Where the slots have their partial parity logs. */
  readonly logs: readonly Disk[];
  readonly told: Report[];
  /** The one that lives. */
  hand(): TestHand;
  /** Of 4 KiB that hold this byte. */
  write(offsetBytes: number, fill: number): Promise<Report>;
  read(offsetBytes: number): Promise<{ report: Report; first: number }>;
}

const shape: LogShape = { signature: 0x5eed, areaBytes: 64 * KIB };

function accessOf(calls: Disk): DirectAccess {
  return { kind: 'calls', calls, offsetBytes: 0 };
}

function make(missing: number | null, log: LogShape | null = null, shaped = geometry): World {
  const layout = compileLayout(shaped);
  const { memberCount } = layout;
  const health: Health = {
    members: Array.from({ length: memberCount }, (_, slot) => ({
      state: slot === missing ? 'missing' : 'in_sync',
    })),
    erased: [],
  };
  const disks = Array.from({ length: memberCount }, () => new Disk());
  const logs = log === null ? [] : Array.from({ length: 4 }, () => new Disk(log.areaBytes));
  const members = disks.map((disk): DirectAccess | null => accessOf(disk));
  for (const [slot, disk] of logs.entries()) members[logOf(4, slot)] = accessOf(disk);
  const hands: TestHand[] = [];
  const crew: Crew = {
    reaches: ['file', 'memory', 'calls'],
    hire: (task, hears) => {
      const hand = new TestHand(task, hears);
      hands.push(hand);
      return hand;
    },
    soon: (look) => void setImmediate(look),
  };
  const map = createMemory(1, MIB);
  if (log !== null) new PartialParityLog(map, log, 4).begin();
  const told: Report[] = [];
  const lanes = new Lanes({
    host: realHost,
    crew,
    map,
    layout,
    health,
    members: Array.from(members, (access) => access ?? null),
    kernel: undefined,
    readOnly: false,
    log,
    mainHealth: new SharedHealth(layout, health),
    onReport: (report) => {
      told.push(report);
      if (report.damaged.length > 0)
        void lanes.tell(0, { kind: 'health', health: { ...health, erased: report.damaged } });
    },
  });
  let used = 0;
  const submit = (op: 'read' | 'write', offsetBytes: number, fill: number) => {
    const address = map.heapAddress + used;
    used += 4 * KIB;
    const bytes = new Uint8Array(map.memory.buffer, address, 4 * KIB).fill(fill);
    const job: Job = { op, offsetBytes, lengthBytes: 4 * KIB, address, member: 0 };
    const report = new Promise<Report>((done) => lanes.submit(0, { job, done }));
    return { report, bytes };
  };
  return {
    lanes,
    disks,
    logs,
    told,
    hand: () => hands.at(-1) as TestHand,
    write: (offsetBytes, fill) => submit('write', offsetBytes, fill).report,
    read: async (offsetBytes) => {
      const { report, bytes } = submit('read', offsetBytes, 0xa5);
      hands.at(-1)?.workAll();
      return { report: await report, first: bytes[0] ?? 0 };
    },
  };
}

const isAnswered = async (answer: Promise<unknown>): Promise<boolean> => {
  let answered = false;
  void answer.then(() => {
    answered = true;
  });
  await turns(5);
  return answered;
};

describe('a member that cannot be missed does not take a write', () => {
  for (const [who, slot] of [
    ['data', 1],
    ['parity', 3],
  ] as const) {
    for (const end of ends) {
      test(`of ${who}, and its lane dies (${end}): the write is answered with an error, and nothing is computed from that place`, async () => {
        const { disks, write, read, hand, told } = make(0);
        disks[0]?.bytes.fill(0x11, 0, 4 * KIB);
        disks[1]?.bytes.fill(0x22, 0, 4 * KIB);
        disks[3]?.bytes.fill(0x33, 0, 4 * KIB);
        const refusing = disks[slot] as Disk;
        refusing.refuses = true;
        const written = write(4 * KIB, 0x44);
        const behind = write(12 * KIB, 0x55);
        hand().work(end);
        expect((await written).error).toMatchObject({ code: 'REDUNDANCY_LOST', place: { member: slot } });
        const [damaged] = told.flatMap((report) => report.damaged);
        expect(damaged).toEqual({ member: slot, offsetBytes: 0, lengthBytes: 4 * KIB });
        // Slot 0 is not there, and its chunk of the row follows from nothing any more.
        expect(await isAnswered(behind)).toBe(false);
        refusing.refuses = false;
        hand().workAll();
        expect((await behind).error).toBeNull();
        expect((await read(0)).report.error).toMatchObject({ code: 'REDUNDANCY_LOST' });
      });
    }
  }

  for (const refusing of [[1], [2], [1, 2]]) {
    for (const end of ends) {
      test(`of copies (slots ${refusing}), and its lane dies (${end}): those that are read from then on are alike`, async () => {
        const { disks, write, read, hand, told } = make(0, null, twice);
        for (const disk of disks) disk.bytes.fill(0x11);
        for (const slot of refusing) (disks[slot] as Disk).refuses = true;
        const written = write(4 * KIB, 0x44);
        hand().work(end);
        expect((await written).error).toMatchObject({ code: 'REDUNDANCY_LOST' });
        for (const disk of disks) disk.refuses = false;
        const damaged = told.flatMap((report) => report.damaged);
        const copies = [
          { member: 1, offsetBytes: 0, lengthBytes: 4 * KIB },
          { member: 2, offsetBytes: 8 * KIB, lengthBytes: 4 * KIB },
        ];
        // One stays, whoever that is; from the other nothing is read.
        expect(copies.map((copy) => damaged.some((each) => isDeepStrictEqual(each, copy)))).toEqual(
          expect.arrayContaining([true, false]),
        );
        hand().workAll();
        const [kept] = copies.filter((copy) => !damaged.some((each) => isDeepStrictEqual(each, copy)));
        expect((await read(4 * KIB)).first).toBe(disks[kept?.member ?? 0]?.bytes[kept?.offsetBytes ?? 0]);
      });
    }
  }

  test('once, and takes it from the successor: the row is whole, and the write is acknowledged', async () => {
    const { disks, write, read, hand, told } = make(0);
    const written = write(4 * KIB, 0x44);
    hand().work('half');
    hand().work();
    expect((await written).error).toBeNull();
    expect(told).toEqual([]);
    expect(await read(0)).toMatchObject({ report: { error: null }, first: 0 });
    expect([disks[1]?.bytes[0], disks[3]?.bytes[0]]).toEqual([0x44, 0x44]);
  });
});

describe('a write of an array that is whole', () => {
  for (const end of ends) {
    for (const refusing of [null, 1, 3]) {
      const who = refusing === null ? 'everybody takes' : `member ${refusing} does not take`;
      test(`and that ${who}, is done by the successor of a lane that dies (${end}), and parity agrees`, async () => {
        const { disks, write, read, hand, told } = make(null);
        for (const [slot, fill] of [0x11, 0x22, 0x44, 0x77].entries())
          disks[slot]?.bytes.fill(fill, 0, 4 * KIB);
        if (refusing !== null) (disks[refusing] as Disk).refuses = true;
        const written = write(4 * KIB, 0x55);
        hand().work(end);
        hand().workAll();
        expect((await written).error).toBeNull();
        const excluded = new Set(told.flatMap(({ exclusions }) => exclusions.map(({ member }) => member)));
        expect([...excluded]).toEqual(refusing === null ? [] : [refusing]);
        expect(await read(4 * KIB)).toMatchObject({ report: { error: null }, first: 0x55 });
        const whole = [0x11, 0x55, 0x44, 0x11 ^ 0x55 ^ 0x44];
        for (const [slot, { bytes }] of disks.entries())
          if (slot !== refusing) expect(bytes[0], `slot ${slot}`).toBe(whole[slot]);
      });
    }
  }
});

describe('a job that waits behind a control message', () => {
  const message = (): ControlMessage => ({
    kind: 'health',
    health: { members: Array.from({ length: 4 }, () => ({ state: 'in_sync' })), erased: [] },
  });

  test('is not given up with the lane that died before it was begun, but with two that died of it', async () => {
    const { lanes, write, hand } = make(null);
    await Promise.resolve();
    void lanes.tell(0, message());
    const written = write(0, 0x44);
    hand().die();
    hand().work('before');
    expect(await isAnswered(written)).toBe(false);
    hand().work('before');
    expect((await written).error).toMatchObject({ code: 'WRITE_MAYBE_APPLIED' });
  });

  test('is carried out by a successor, however many die before it', async () => {
    const { lanes, write, read, hand } = make(null);
    const written = write(0, 0x44);
    void lanes.tell(0, message());
    const behind = write(4 * KIB, 0x55);
    hand().work();
    for (let deaths = 0; deaths < 3; deaths += 1) {
      hand().die();
      if (deaths < 2) void lanes.tell(0, message());
      if (deaths === 0) hand().work();
    }
    expect((await written).error).toBeNull();
    expect((await behind).error).toBeNull();
    expect((await read(4 * KIB)).first).toBe(0x55);
  });
});

describe('with a partial parity log', () => {
  test('a write behind the lane that met a failure is not begun by a successor: it is to be asked for again', async () => {
    const { disks, write, hand, told } = make(null, shape);
    const refusing = disks[1] as Disk;
    refusing.refuses = true;
    const written = write(4 * KIB, 0x44);
    const behind = write(12 * KIB, 0x55);
    hand().work('said');
    expect(await written).toMatchObject({ error: null, again: false, exclusions: [{ member: 1 }] });
    // Whoever asks again has been told before whom the record lacks.
    expect(await behind).toMatchObject({ error: null, again: true });
    expect(told.findIndex(({ exclusions }) => exclusions.length > 0)).toBeLessThan(
      told.findIndex(({ again }) => again),
    );
    hand().workAll();
    for (const disk of disks)
      expect(disk.bytes.subarray(4 * KIB, 8 * KIB).some((byte) => byte !== 0)).toBe(false);
  });

  test('the log of a new member begins at its start, though the lane died before it was told of it', async () => {
    for (const isTold of [true, false]) {
      const { lanes, logs, write, hand } = make(null, shape);
      for (let count = 0; count < 3; count += 1) {
        const written = write(0, 0x44);
        hand().workAll();
        expect((await written).error).toBeNull();
      }
      // Row 0 is logged by slot 3, where its parity is.
      expect(logs[3]?.bytes.subarray(4 * KIB).some((byte) => byte !== 0)).toBe(true);
      const fresh = new Disk();
      const empty = new Disk(shape.areaBytes);
      const told = lanes.tell(0, {
        ...{ kind: 'member', member: 3 },
        ...{ access: accessOf(fresh), logAccess: accessOf(empty) },
      });
      if (isTold) hand().workAll();
      else hand().die();
      await told;
      const written = write(0, 0x66);
      hand().workAll();
      expect((await written).error).toBeNull();
      expect(empty.bytes.subarray(0, 4 * KIB).some((byte) => byte !== 0)).toBe(true);
    }
  });
});
