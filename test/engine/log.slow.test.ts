/**
 * Goal: whatever moment the power goes, and whatever sectors of what was not flushed have arrived, the newest header in
 * a log covers all that may be half written of the rows it is there for, and nothing older: through many laps of a small
 * area. (A covered row that has changed since would be given the parity of long ago.)
 * Method: the log's own steps are carried out on areas that remember what is durable; rows are only counted.
 */
import { expect, test } from 'vitest';
import type { Batch, Failure, Flush, LogRequest } from '../../lib/engine/batch.ts';
import { logOf, PartialParityLog } from '../../lib/engine/log.ts';
import { createMemory } from '../../lib/engine/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { emptyPplHeader, encodePplHeader, judgePpl, pplSignatureOf } from '../../lib/md/ppl.ts';
import type { Health } from '../../lib/plan/plan.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../lib/units.ts';

const UUID = '00010203:04050607:08090a0b:0c0d0e0f';
const MEMBERS = 3;
const AREA = 24 * KIB;
const CHUNK_SECTORS = 128;
const map = createMemory(0, MIB);
const memory = new Uint8Array(map.memory.buffer);

interface Area {
  durable: Uint8Array;
  pending: { readonly offsetBytes: number; readonly bytes: Uint8Array }[];
}

/** Rows by the sector that names them; `owed`: members that have not been flushed since they were written to. */
interface Row {
  readonly slot: number;
  readonly dataSector: number;
  readonly owed: Set<number>;
}

class Ground {
  readonly areas: Area[];
  readonly log = new PartialParityLog(map, { signature: pplSignatureOf(UUID), areaBytes: AREA }, MEMBERS);
  readonly random: (below: number) => number;
  health: Health = { members: Array.from({ length: MEMBERS }, () => ({ state: 'in_sync' })), erased: [] };
  /** Logged; its rows have begun. The newest of each slot last. */
  readonly rows: Row[] = [];
  /** By slot: the round that is being written, or was written last. */
  readonly rounds: { begun: readonly number[]; done: readonly number[] }[];
  mayBeMarked = false;
  cuts = 0;
  laps = 0;
  #next = 0;

  constructor(seed: number) {
    this.random = seededRandom(seed);
    const empty = new Uint8Array(AREA);
    empty.set(encodePplHeader(emptyPplHeader(UUID, 1)));
    this.areas = Array.from({ length: 2 * MEMBERS }, () => ({ durable: empty.slice(), pending: [] }));
    this.rounds = Array.from({ length: MEMBERS }, () => ({ begun: [], done: [] }));
    this.log.begin();
  }

  perform(asked: Batch | Flush): readonly Failure[] | null {
    if (asked.direction === 'flush') {
      for (const member of asked.members) {
        const area = this.areas[member]!;
        for (const { offsetBytes, bytes } of area.pending) area.durable.set(bytes, offsetBytes);
        area.pending = [];
        for (const row of this.rows) row.owed.delete(member);
      }
    } else {
      for (const { member, offsetBytes, lengthBytes, address } of asked.transfers) {
        expect(member).toBeGreaterThanOrEqual(logOf(MEMBERS, 0));
        expect(offsetBytes + lengthBytes).toBeLessThanOrEqual(AREA);
        if (offsetBytes === 0) this.laps += 1;
        const bytes = memory.slice(address, address + lengthBytes);
        this.areas[member - 2 * MEMBERS]!.pending.push({ offsetBytes, bytes });
      }
    }
    this.cut();
    return null;
  }

  /** The power goes: each sector that was not flushed is old or new. */
  cut(): void {
    for (let turn = 0; turn < 3; turn += 1) {
      for (let slot = 0; slot < MEMBERS; slot += 1) {
        const { durable, pending } = this.areas[slot]!;
        const left = durable.slice();
        for (const { offsetBytes, bytes } of pending) {
          for (let at = 0; at < bytes.byteLength; at += SECTOR_BYTES) {
            if (turn === 0 || (turn === 1 && this.random(2) === 0))
              left.set(bytes.subarray(at, at + SECTOR_BYTES), offsetBytes + at);
          }
        }
        this.#judge(left, slot);
      }
    }
  }

  #judge(area: Uint8Array, slot: number): void {
    this.cuts += 1;
    const verdict = judgePpl(
      area,
      UUID,
      { chunkSectors: CHUNK_SECTORS, raidDisks: MEMBERS, sizeSectors: 2 ** 30 },
      slot,
    );
    if (verdict.says === 'nothing') throw new Error(`slot ${slot}: ${verdict.because}`);
    if (verdict.says === 'only' && !this.mayBeMarked) throw new Error(`slot ${slot}: no resync is due`);
    const covered = new Set(verdict.cells.map(({ dataSector }) => dataSector));
    for (const row of this.rows) {
      if (row.slot === slot && row.owed.size > 0 && !covered.has(row.dataSector))
        throw new Error(`slot ${slot}: row ${row.dataSector} is half written and in no log`);
    }
    const { begun, done } = this.rounds[slot]!;
    for (const dataSector of covered) {
      if (!begun.includes(dataSector) && !done.includes(dataSector))
        throw new Error(`slot ${slot}: row ${dataSector} is of long ago`);
    }
  }

  round(): void {
    const slots = Array.from({ length: MEMBERS }, (_, slot) => slot).filter(() => this.random(3) > 0);
    if (slots.length === 0) return;
    const entries = slots.flatMap((parityMember) =>
      Array.from({ length: 1 + this.random(2) }, () => {
        this.#next += 1;
        const lengthBytes = (1 + this.random(8)) * SECTOR_BYTES;
        const isWhole = this.random(4) === 0;
        const address = map.heapAddress + this.random(64) * SECTOR_BYTES;
        for (let at = 0; at < lengthBytes; at += 1) memory[address + at] = this.random(256);
        const arrayOffsetBytes = this.#next * 2 * CHUNK_SECTORS * SECTOR_BYTES;
        return {
          parityMember,
          arrayOffsetBytes,
          lengthBytes,
          chunkCount: isWhole ? 2 : 1,
          address: isWhole ? null : address,
        };
      }),
    );
    const touched = [0, 1, 2].filter(() => this.random(3) > 0);
    const request: LogRequest = { direction: 'log', entries, touched };
    for (const slot of slots) {
      const mine = entries.filter((entry) => entry.parityMember === slot);
      this.rounds[slot]!.begun = mine.map(({ arrayOffsetBytes }) => arrayOffsetBytes / SECTOR_BYTES);
    }
    const failures = this.#drive(request);
    if (failures !== null) return;
    for (const slot of slots) {
      const round = this.rounds[slot]!;
      round.done = round.begun;
      for (const dataSector of round.done) this.rows.push({ slot, dataSector, owed: new Set(touched) });
    }
    this.cut();
  }

  #drive(request: LogRequest): readonly Failure[] | null {
    const steps = this.log.write([request], this.health);
    let step = steps.next(null);
    while (step.done !== true) {
      // Now and then a write fails before it is tried, as after the death of a worker.
      if (this.random(40) === 0 && step.value.direction === 'write') {
        const [transfer] = step.value.transfers;
        const error = new RaidError('WRITE_FAILED', 'scripted');
        step = steps.next(transfer === undefined ? null : [{ transfer, error }]);
      } else {
        step = steps.next(this.perform(step.value));
      }
    }
    return step.value;
  }
}

test.each([1, 2, 3, 4])('laps of a small area, cut off everywhere (seed %i)', (seed) => {
  const ground = new Ground(seed);
  for (let round = 0; round < 60; round += 1) {
    ground.round();
    if (round % 30 === 20) ground.health = { ...ground.health, replacing: round % 60 === 20 ? [1] : [] };
    if (ground.random(10) === 0) ground.perform({ direction: 'flush', members: [ground.random(MEMBERS)] });
  }
  expect(ground.laps).toBeGreaterThan(10);
  expect(ground.cuts).toBeGreaterThan(1500);
});

test('while a resync is due every log says so, and none does when it is over', () => {
  const ground = new Ground(9);
  const { health } = ground;
  ground.health = { ...health, unsyncedFromBytes: 0 };
  ground.mayBeMarked = true;
  const marked = (): number =>
    [0, 1, 2].filter((slot) => {
      const area = ground.areas[slot]!;
      const verdict = judgePpl(
        area.durable,
        UUID,
        { chunkSectors: CHUNK_SECTORS, raidDisks: MEMBERS, sizeSectors: 2 ** 30 },
        slot,
      );
      return verdict.says === 'only';
    }).length;
  for (let round = 0; round < 12; round += 1) ground.round();
  expect(marked()).toBe(3);
  ground.health = health;
  for (let round = 0; round < 4; round += 1) ground.round();
  expect(marked()).toBe(0);
});

test('an area has room for what it is asked for, or says that it has not', () => {
  const { log } = new Ground(10);
  const entry = (lengthBytes: number, address: number | null = 0) => ({
    parityMember: 0,
    lengthBytes,
    address,
  });
  expect(log.fits([entry(AREA - 12 * KIB)])).toBe(true);
  expect(log.fits([entry(AREA - 12 * KIB + SECTOR_BYTES)])).toBe(false);
  expect(log.fits([entry(MIB, null)])).toBe(true);
  expect(log.fits(Array.from({ length: 147 }, () => entry(0)))).toBe(true);
  expect(log.fits(Array.from({ length: 148 }, () => entry(0)))).toBe(false);
});
