/**
 * The bug bank: engines broken on purpose, each by one change of the shipping sources, and each to be caught by the
 * checkers of the simulator. A mutant that survives is a hole in them.
 *
 * `find` is exact text of the file and occurs there once (mutants.test.ts holds the sources to that, so that the bank does
 * not rot). `hunts` are tried in order until one catches the mutant; on the sources as they are, all of them pass.
 */
import type { ExploreOptions } from '../../lib/sim/crash-points.ts';
import type { Mode } from '../../lib/sim/swarm.ts';

/**
 * Crash points of one script of one world (lib/sim/crash-worlds.ts), random fabrics (lib/sim/paths.ts), or random arrays whose
 * lanes die (lib/sim/swarm.ts).
 */
export type Hunt =
  | { readonly world: string; readonly script: number; readonly options?: Partial<ExploreOptions> }
  | { readonly paths: { readonly seed: number; readonly runs: number } }
  | { readonly lanes: LanesHunt }
  /** A case of test/sim/cases, without its ending. */
  | { readonly saved: string };

export interface LanesHunt {
  readonly level: string;
  readonly seed: number;
  readonly runs: number;
  /** Default: safe. */
  readonly mode?: Mode;
}

export interface Mutant {
  readonly name: string;
  readonly file: string;
  readonly find: string;
  readonly replace: string;
  /** More changes, where one alone does no harm, since another barrier stands behind it. */
  readonly and?: readonly { readonly file: string; readonly find: string; readonly replace: string }[];
  /** The invariants of ARCHITECTURE.md that it breaks. */
  readonly breaks: string;
  readonly hunts: readonly Hunt[];
}

const on = (world: string, ...scripts: readonly number[]): readonly Hunt[] =>
  scripts.map((script) => ({ world, script }));

const raid1 = (...scripts: readonly number[]): readonly Hunt[] => on('raid1 of 2', ...scripts);
const raid5 = (...scripts: readonly number[]): readonly Hunt[] => on('raid5 of 3', ...scripts);
const raid6 = (...scripts: readonly number[]): readonly Hunt[] => on('raid6 of 4', ...scripts);
const raid10 = (...scripts: readonly number[]): readonly Hunt[] => on('raid10 of 4, n2', ...scripts);
const mirrorBitmap = (...scripts: readonly number[]): readonly Hunt[] => on('raid1 of 2, bitmap', ...scripts);
const raid5Bitmap = (...scripts: readonly number[]): readonly Hunt[] => on('raid5 of 3, bitmap', ...scripts);
const raid5Log = (...scripts: readonly number[]): readonly Hunt[] => on('raid5 of 3, ppl', ...scripts);

const paths = (seed: number, runs: number): readonly Hunt[] => [{ paths: { seed, runs } }];
const lanes = (level: string, seed: number, runs: number): readonly Hunt[] => [
  { lanes: { level, seed, runs } },
];

const array = 'lib/array/array.ts';
const sync = 'lib/array/sync.ts';
const metadata = 'lib/array/metadata.ts';
const record = 'lib/array/record.ts';
const intent = 'lib/array/intent.ts';
const activity = 'lib/array/activity.ts';
const form = 'lib/array/form.ts';
const update = 'lib/md/update.ts';
const assemble = 'lib/md/assemble.ts';
const bitmap = 'lib/md/bitmap.ts';
const superblock = 'lib/md/superblock1.ts';
const engine = 'lib/engine/engine.ts';
const run = 'lib/engine/run.ts';
const lanesFile = 'lib/engine/lanes.ts';
const work = 'lib/engine/work.ts';
const parity = 'lib/plan/parity.ts';
const copies = 'lib/plan/copies.ts';
const ppl = 'lib/md/ppl.ts';
const pplWriter = 'lib/engine/log.ts';
const multipath = 'lib/multipath/device.ts';
const fabric = 'lib/multipath/fabric.ts';

export const mutants: readonly Mutant[] = [
  // Clean and dirty.
  {
    name: 'clean before the members are flushed',
    file: metadata,
    find: '    await this.#attached?.flush();\n    const resynced = this.#resyncedSectors();\n    const isComplete',
    replace: '    const resynced = this.#resyncedSectors();\n    const isComplete',
    breaks: 'I7',
    hunts: [...raid5(0, 3), ...raid1(0)],
  },
  {
    name: 'writes do not wait for the array to be marked dirty',
    file: activity,
    find: "return this.#state === 'active' ? null : this.#becomeActive();",
    replace: "if (this.#state !== 'active') void this.#becomeActive();\n    return null;",
    breaks: 'I7',
    hunts: raid5(0, 1),
  },
  {
    name: 'never marked dirty',
    file: update,
    find: 'return update(array, { resyncOffsetSectors: 0 }, utime, { spares: false });',
    replace: 'return update(array, {}, utime, { spares: false });',
    breaks: 'I7, I9',
    hunts: raid5(0, 1),
  },
  {
    name: 'superblocks are not durable when their update counts as done',
    file: record,
    find: 'await device.write(at, whole, { fua: true });',
    replace: 'await device.write(at, whole);',
    breaks: 'I5, I7',
    hunts: raid5(0, 1),
  },
  {
    name: 'an update counts as done before it is written',
    file: record,
    find: '    failures.push(...(await this.#write(toWrite.filter(isKnown))));',
    replace: '    void this.#write(toWrite.filter(isKnown));',
    breaks: 'I5, I7',
    hunts: raid5(0, 1),
  },
  {
    name: 'close does not flush',
    file: array,
    find: '        await this.#flushMembers();\n        await this.#untilRecorded();',
    replace: '        await this.#untilRecorded();',
    breaks: 'I7',
    hunts: [...raid5(7, 0), ...on('raid0 of 2', 7, 0), ...raid1(7)],
  },
  {
    name: 'a window that is only begun counts as done',
    file: sync,
    find: 'return { fromBytes, endBytes, result: await window.result };',
    replace:
      'return { fromBytes, endBytes: this.#ahead?.window.endBytes ?? endBytes, result: await window.result };',
    breaks: 'I11',
    hunts: raid1(15, 16),
  },
  {
    name: 'a crash is not followed by a resync',
    file: form,
    find: '    unsyncedFromBytes: found.resyncOffsetSectors * SECTOR_BYTES,',
    replace: '    unsyncedFromBytes: Number.POSITIVE_INFINITY,',
    breaks: 'I9',
    hunts: raid5(1),
  },
  {
    name: 'a resync starts one chunk late',
    file: array,
    find: 'from: (afterBytes) => this.#nextDirty(afterBytes, totalBytes),',
    replace: 'from: (afterBytes) => this.#nextDirty(afterBytes + 4096, totalBytes),',
    breaks: 'I9',
    hunts: raid5(1),
  },
  {
    name: 'dirty and degraded starts without force',
    file: assemble,
    find: '  return level === 4 || level === 5 || level === 6;',
    replace: '  return level === 4;',
    breaks: 'I9, L3',
    hunts: raid5(1),
  },
  // Flushes and acknowledgements.
  {
    name: 'flush is acknowledged without flushing',
    file: array,
    find: '    await this.#flushMembers();\n    await this.#engine.settled();',
    replace: '    await this.#engine.settled();',
    breaks: 'I2',
    hunts: [...raid1(1), ...raid5(1)],
  },
  {
    name: 'flush leaves one member out',
    file: array,
    find: 'const used = this.#members.list.filter(({ state }) => takesWrites(state));',
    replace: 'const used = this.#members.list.filter(({ state }) => takesWrites(state)).slice(1);',
    breaks: 'I2, I7',
    hunts: raid1(1),
  },
  {
    name: 'fua is forgotten',
    file: array,
    find: 'return fua ? written.then(() => this.#flush()) : written;',
    replace: 'return written;',
    breaks: 'I2',
    hunts: raid1(4),
  },
  {
    name: 'a flush that failed is a flush',
    file: array,
    find: "if (answer.status === 'fulfilled' || member === undefined) continue;",
    replace: 'if (answer !== undefined) continue;',
    breaks: 'I2, I5',
    hunts: [...raid1(12), ...raid5(12)],
  },
  // Failures.
  {
    name: 'acknowledged before the exclusion is on record, by write and by flush',
    file: array,
    find: 'return this.#untilRecorded()\n          .then(() => this.#madeGood',
    replace: 'return Promise.resolve()\n          .then(() => this.#madeGood',
    and: [
      {
        file: engine,
        find: "    if (op === 'write') await this.settled();",
        replace: '',
      },
      {
        file: array,
        find: '    await this.#engine.settled();\n    await this.#untilRecorded();',
        replace: '',
      },
    ],
    breaks: 'I5',
    hunts: [...raid1(19, 11), ...raid5(19, 11)],
  },
  {
    name: 'a failure is not recorded',
    file: metadata,
    find: "if (member === undefined || member.state === 'faulty') return array;\n      return failMember",
    replace: 'if (member !== undefined) return array;\n      return failMember',
    breaks: 'I5',
    hunts: [...raid1(9, 10), ...raid5(9)],
  },
  {
    name: 'the least fresh member describes the array',
    file: assemble,
    find: 'const top = holders.filter((claim) => claim.events === events);',
    replace: 'const top = holders;',
    breaks: 'I12',
    hunts: [...raid1(9, 10, 0), ...raid5(10)],
  },
  {
    name: 'writes still go to nobody in place of an excluded member: its error is dropped',
    file: run,
    find: '    let fatal: RaidError | null = null;\n',
    replace: '    if (failures.length > 0) return null;\n    let fatal: RaidError | null = null;\n',
    breaks: 'I5, I9',
    hunts: [...raid1(19), ...raid5(19)],
  },
  // Bitmap.
  {
    name: 'data does not wait for its bit',
    file: intent,
    find: 'return mustWait ? this.#becomeDurable(firstBit, lastBit) : null;',
    replace: 'if (mustWait) void this.#becomeDurable(firstBit, lastBit);\n    return null;',
    breaks: 'I4',
    hunts: [...mirrorBitmap(22), ...raid5Bitmap(22)],
  },
  {
    name: 'bits are not durable when they count as set',
    file: metadata,
    find: 'await device.write(bitmapStart(member) + offsetBytes, bytes, { fua: true });',
    replace: 'await device.write(bitmapStart(member) + offsetBytes, bytes);',
    breaks: 'I4',
    hunts: [...mirrorBitmap(22), ...raid5Bitmap(22)],
  },
  {
    name: 'bits are cleared before the members are flushed',
    file: metadata,
    find: '  async #becomeClean(): Promise<boolean> {\n',
    replace:
      '  async #becomeClean(): Promise<boolean> {\n    if (this.#intent !== null) await this.#intent.clear(() => false);\n',
    breaks: 'I6',
    hunts: [...raid5Bitmap(0, 3), ...mirrorBitmap(0, 3)],
  },
  {
    name: 'bits are cleared while a member is missing',
    file: metadata,
    find: 'if (this.#intent !== null && isComplete) {',
    replace: 'if (this.#intent !== null) {',
    breaks: 'I6',
    hunts: [...mirrorBitmap(23), ...raid5Bitmap(23)],
  },
  {
    name: 'events_cleared rises while a member is missing',
    file: bitmap,
    find: 'eventsCleared: isComplete ? events : Math.min(bitmap.eventsCleared, events) };',
    replace: 'eventsCleared: events };',
    breaks: 'I6',
    hunts: [...mirrorBitmap(19, 20), ...raid5Bitmap(19, 20)],
  },
  {
    name: 'a member returns by the bitmap and is not resynced',
    file: update,
    find: 'const recoveredSectors = viaBitmap ? 0 : array.sizeSectors;',
    replace: 'const recoveredSectors = array.sizeSectors;',
    breaks: 'I11',
    hunts: [...mirrorBitmap(19, 20), ...raid5Bitmap(19)],
  },
  {
    name: 'a member returns at once whatever it has missed',
    file: update,
    find: "  if (stale.events === array.events) return 'at-once';",
    replace: "  if (stale.events <= array.events) return 'at-once';",
    breaks: 'I11',
    hunts: [...mirrorBitmap(19, 20), ...raid5Bitmap(19)],
  },
  {
    name: 'a member that returns skips the first dirty chunk',
    file: array,
    find: 'from: (afterBytes) => (viaBitmap ? this.#nextDirtyOn(slot, afterBytes, totalBytes) : afterBytes),',
    replace:
      'from: (afterBytes) => (viaBitmap ? this.#nextDirtyOn(slot, afterBytes + 4096, totalBytes) : afterBytes),',
    breaks: 'I11',
    hunts: [...mirrorBitmap(19, 20), ...raid5Bitmap(19)],
  },
  // Recovery.
  {
    name: 'a recovery starts one chunk in',
    file: array,
    find: "spare.state = { state: 'recovering', slot, recoveredBytes: 0, viaBitmap: false };",
    replace: "spare.state = { state: 'recovering', slot, recoveredBytes: 4096, viaBitmap: false };",
    breaks: 'I11',
    hunts: [...raid1(15, 16), ...raid5(15)],
  },
  {
    name: 'the recovery is recorded as done before it is flushed',
    file: array,
    find: '      await this.#flushMembers();\n      await this.#inTurn(() => this.#finishRecovery(member, moment));',
    replace: '      await this.#inTurn(() => this.#finishRecovery(member, moment));',
    breaks: 'I11',
    hunts: [...raid1(15, 16), ...raid5(15)],
  },
  {
    name: 'a spare is in sync as soon as it has the slot',
    file: update,
    find: "const state: MdMemberState = { state: 'recovering', slot, recoveredSectors: 0, viaBitmap: false };\n  return promoteSpare",
    replace: "const state: MdMemberState = { state: 'in_sync', slot };\n  return promoteSpare",
    breaks: 'I11',
    hunts: [...raid1(15, 16), ...raid5(15)],
  },
  {
    name: 'the recovery checkpoint is ahead of the data',
    file: update,
    find: '  return member.recoveredSectors === Infinity ? 0 : member.recoveredSectors;',
    replace: '  return member.recoveredSectors === Infinity ? 0 : member.recoveredSectors + 8;',
    breaks: 'I11',
    hunts: [...raid1(15, 16), ...raid5(15, 16)],
  },
  {
    name: 'a superblock does not say that its member is being recovered',
    file: update,
    find: 'return kept | features.RECOVERY_OFFSET | (member.viaBitmap ? features.RECOVERY_BITMAP : 0);',
    replace: 'return kept;',
    breaks: 'I11',
    hunts: [...raid1(15, 16), ...raid5(15)],
  },
  {
    name: 'a recovering member is read beyond its mark',
    file: 'lib/plan/health.ts',
    find: "if (member.state === 'recovering') extend(Number.POSITIVE_INFINITY, 'behind');",
    replace: "if (member.state === 'recovering') extend(Number.POSITIVE_INFINITY, 'good');",
    breaks: 'I1, I11',
    hunts: [...raid1(15, 16), ...raid5(15, 16)],
  },
  {
    name: 'a recovering member takes no writes',
    file: 'lib/plan/health.ts',
    find: 'return { edges, states, writable: true, trustedBytes };',
    replace: "return { edges, states, writable: member.state !== 'recovering', trustedBytes };",
    breaks: 'I9, I11',
    hunts: [...raid1(16, 15), ...raid5(16, 15)],
  },
  {
    name: 'a recovery skips its last sector',
    file: array,
    find: "work: (from, lengthBytes) => this.#fill(member, 'recover', slot, from, lengthBytes),",
    replace: "work: (from, lengthBytes) => this.#fill(member, 'recover', slot, from, lengthBytes - 512),",
    breaks: 'I11',
    hunts: [...raid1(15, 16), ...raid5(15)],
  },
  // Plans.
  {
    name: 'parity is not written',
    file: parity,
    find: '  if (p !== null) draft.writes.push({ member: row.p, offsetBytes, lengthBytes, address: p });\n  if (q !== null)',
    replace: '  if (q !== null)',
    breaks: 'I9',
    hunts: raid5(0, 1),
  },
  {
    name: 'Q is not written',
    file: parity,
    find: '  if (q !== null) draft.writes.push({ member: row.q!, offsetBytes, lengthBytes, address: q });\n}',
    replace: '}',
    breaks: 'I9',
    hunts: raid6(0, 1),
  },
  {
    name: 'a repair leaves parity as it is',
    file: parity,
    find: '  if (decision.p) draft.writes.push({ member: row.p, offsetBytes, lengthBytes, address: p! });',
    replace: '  void p;',
    breaks: 'I9',
    hunts: raid5(1),
  },
  {
    name: 'the second copy is not written',
    file: copies,
    find: '      if (!line.writable) continue;\n      heldBytes',
    replace: '      if (!line.writable || member % 2 === 1) continue;\n      heldBytes',
    breaks: 'I9',
    hunts: [...raid1(0, 1), ...raid10(1)],
  },
  {
    name: 'a resync copies from the last copy, a read comes from the first',
    file: copies,
    find: '    const first = extent.copies.find(',
    replace: '    const first = extent.copies.toReversed().find(',
    breaks: 'I3',
    hunts: [...raid1(1), ...raid10(1)],
  },
  {
    name: 'a resync of copies stops after the second',
    file: copies,
    find: '      for (const { member, offsetBytes } of others) {',
    replace: '      for (const { member, offsetBytes } of others.slice(1)) {',
    breaks: 'I9',
    hunts: [...raid1(1), ...raid10(1)],
  },
  {
    name: 'an unsynced range is read from any copy',
    file: copies,
    find: 'if (arrayOffsetBytes >= health.unsyncedFromBytes) return good[0]!;',
    replace: 'if (arrayOffsetBytes >= health.unsyncedFromBytes) return good.at(-1)!;',
    breaks: 'I3',
    hunts: [...raid1(1), ...raid10(1)],
  },
  {
    name: 'a full stripe keeps the old parity',
    file: parity,
    find: "    draft.compute.push({ op: 'syndrome', data: inQOrder(row, data), p, q, lengthBytes });\n  }\n  if (p !== null)",
    replace: '    void data;\n  }\n  if (p !== null)',
    breaks: 'I9',
    hunts: raid5(3, 1),
  },
  {
    name: 'bytes of a write go one sector too far',
    file: 'lib/device/slice.ts',
    find: 'this.#below.write(this.#startBytes + offsetBytes, sources, durable ? fua : undefined),',
    replace:
      'this.#below.write(this.#startBytes + offsetBytes + (offsetBytes % 4096 === 3584 ? 512 : 0), sources, durable ? fua : undefined),',
    breaks: 'I1, I10',
    hunts: [...raid1(2), ...raid5(2)],
  },
  // Healing.
  // Superblocks.
  {
    name: 'the checksum leaves the roles out',
    file: superblock,
    find: 'view.setUint32(MAX_DEV_AT, devRoles.length, true);',
    replace: 'view.setUint32(MAX_DEV_AT, devRoles.length - 1, true);',
    breaks: 'I13',
    hunts: raid1(0, 1),
  },
  {
    name: 'the superblock is written where the data is',
    file: record,
    find: 'const at = superblock.superSector * SECTOR_BYTES;',
    replace: 'const at = superblock.dataOffsetSectors * SECTOR_BYTES;',
    breaks: 'I15',
    hunts: raid1(0, 1),
  },
  // The partial parity log.
  {
    name: 'the log is not flushed before the data is written',
    file: pplWriter,
    find: '    return yield* this.#flush([...new Set(mirrored.map(({ member }) => member - 2 * count))]);',
    replace: '    return null;',
    breaks: 'I8',
    hunts: raid5Log(1, 6),
  },
  {
    name: 'a log moves on before the rows of its last entries are flushed',
    file: pplWriter,
    find: 'const unpaid = yield* this.#flush(paying);',
    replace: 'void paying;\n    const unpaid = yield* this.#flush([]);',
    breaks: 'I8',
    hunts: raid5Log(2, 6, 1),
  },
  {
    name: 'an entry does not say what stays',
    file: parity,
    find: '  log(draft, layout, slice, first, end - first, staying);',
    replace: '  log(draft, layout, slice, 0, layout.dataCount, null);',
    breaks: 'I8',
    hunts: raid5Log(1, 6),
  },
  {
    name: 'an entry names the chunk before',
    file: parity,
    find: 'const arrayOffsetBytes = (rowIndex * layout.dataCount + first) * layout.chunkBytes + lo;',
    replace: 'const arrayOffsetBytes = rowIndex * layout.dataCount * layout.chunkBytes + lo;',
    breaks: 'I8',
    hunts: raid5Log(2, 6, 7),
  },
  {
    name: 'a torn entry is replayed',
    file: ppl,
    find: 'partialParity: whole ? parity.slice() : null',
    replace: 'partialParity: whole || true ? parity.slice() : null',
    breaks: 'I8',
    hunts: raid5Log(1, 3, 2),
  },
  {
    name: 'the oldest header of a log counts',
    file: ppl,
    find: '    newest = { header, atByte };',
    replace: '    newest ??= { header, atByte };',
    breaks: 'I8',
    hunts: raid5Log(1, 6),
  },
  {
    name: 'logs are read, and nothing comes of it',
    file: form,
    find: '      await writePatches(holder.device, list);',
    replace: '      void writePatches;',
    breaks: 'I8',
    hunts: raid5Log(1, 6),
  },
  {
    name: 'a spare that was never recovered counts as complete',
    file: form,
    find: 'member.recoveredSectors === Number.POSITIVE_INFINITY\n        ? { state',
    replace: 'member.recoveredSectors >= 0\n        ? { state',
    breaks: 'I11',
    hunts: [...raid1(15, 16), ...raid5(15, 16)],
  },
  {
    name: 'zeroes are written as what was there',
    file: engine,
    find: '      this.#bytes.fill(0, address, address + count);',
    replace: '      this.#bytes.fill(1, address, address + count);',
    breaks: 'I1',
    hunts: [...raid1(5), ...raid5(5)],
  },
  {
    name: 'the last sector of a write is left out',
    file: engine,
    find: "if (op === 'write') copy(address, from, count);",
    replace: "if (op === 'write') copy(address, from, Math.max(512, count - 512));",
    and: [
      {
        file: engine,
        find: 'this.#copyIn(address, sources, 0, lengthBytes);',
        replace: 'this.#copyIn(address, sources, 0, Math.max(512, lengthBytes - 512));',
      },
    ],
    breaks: 'I1',
    hunts: [...raid1(1, 3), ...raid5(1, 3)],
  },
  {
    name: 'stale by one is accepted, and a failure raises events by one',
    file: assemble,
    find: "['@Q failed just now",
    replace:
      "['@Q',              'in_sync',      'yes',   'no',  'ours',    'agrees',  'none',    'slot',    'one',   'faulty',  __,    __],\n  ['@Q failed just now",
    and: [
      {
        file: update,
        find: '  return twice(update(array, { members }, utime), utime);\n}\n\n/** Notes',
        replace: '  const once = update(array, { members }, utime);\n  return [once, once];\n}\n\n/** Notes',
      },
    ],

    breaks: 'I5, I12',
    hunts: [...raid1(9, 10), ...raid5(9, 10)],
  },
  {
    name: 'no number of events makes a member stale, nor does it when it is called faulty',
    file: assemble,
    find: "  if (behind < 0) return 'ahead';",
    replace: "  if (behind > 0) return 'none';\n  if (behind < 0) return 'ahead';",
    and: [
      {
        file: update,
        find: "if (member.state === 'faulty') roles[member.descriptor] = ROLE_FAULTY;",
        replace: "if (member.state === 'faulty') roles[member.descriptor] = member.descriptor;",
      },
    ],

    breaks: 'I12',
    hunts: [...raid1(9, 10), ...raid5(9, 10)],
  },
  {
    name: 'events do not rise, and the role table still counts on a failed member',
    file: update,
    find: 'events: array.events + 1 };',
    replace: 'events: array.events };',
    and: [
      {
        file: update,
        find: "if (member.state === 'faulty') roles[member.descriptor] = ROLE_FAULTY;",
        replace: "if (member.state === 'faulty') roles[member.descriptor] = member.descriptor;",
      },
    ],

    breaks: 'I12',
    hunts: [...raid1(9, 10), ...raid5(9, 10)],
  },
  {
    name: 'a failed member is forgotten and not called faulty, and missing many updates is no matter',
    file: update,
    find: "if (member.state === 'faulty') roles[member.descriptor] = ROLE_FAULTY;",
    replace: "if (member.state === 'faulty') roles[member.descriptor] = member.descriptor;",
    and: [
      {
        file: assemble,
        find: "return behind === 1 ? 'one' : 'more';",
        replace: "return behind <= 20 ? 'one' : 'more';",
      },
    ],

    breaks: 'I12',
    hunts: [...raid1(9, 10), ...raid5(9, 10)],
  },
  {
    name: 'healing rewrites what was never computed',
    file: run,
    find: "    this.#compute(plan, 0);\n    const failures = yield this.#batch('write', this.#mirrored(plan.writes), plan.requestBytes, 0);",
    replace:
      "    const failures = yield this.#batch('write', this.#mirrored(plan.writes), plan.requestBytes, 0);",
    breaks: 'I1, I11',
    hunts: raid5(13),
  },
  {
    name: 'parity rotates one row off',
    file: 'lib/layout/raid456.ts',
    find: '      return width - 1 - phase;',
    replace: '      return width - 1 - ((phase + 1) % width);',
    breaks: 'I13',
    hunts: raid5(0),
  },
  {
    name: 'the inverse of the rotation is one row off',
    file: 'lib/layout/raid456.ts',
    find: 'cells[phase] ??= cellsOf(row(phase), memberCount, dataCells);',
    replace: 'cells[phase] ??= cellsOf(row((phase + 1) % periodRows), memberCount, dataCells);',
    breaks: 'I1, I11',
    hunts: raid5(15),
  },
  {
    name: 'raid10 puts the second copy where the first is',
    file: 'lib/layout/raid10.ts',
    find: 'copies.push({ member: members[slot]!, offsetBytes: baseBytes + offsets[slot]! });',
    replace: 'copies.push({ member: members[first]!, offsetBytes: baseBytes + offsets[first]! });',
    breaks: 'I9',
    hunts: raid10(1),
  },
  {
    name: 'a bit covers the chunk after',
    file: bitmap,
    find: 'const bitOf = (sector: number): number => Math.floor(sector / this.chunkSectors);',
    replace:
      'const bitOf = (sector: number): number => Math.min(this.bitCount - 1, Math.floor(sector / this.chunkSectors) + 1);',
    breaks: 'I4',
    hunts: [...mirrorBitmap(1), ...raid5Bitmap(1)],
  },
  // Many paths.
  {
    name: 'a request is tried by another path before the first one is fenced',
    file: multipath,
    find: '      nexus.fence().then(go, go);',
    replace: '      go();',
    breaks: 'I21',
    hunts: paths(1, 100),
  },
  {
    name: 'a fence keeps nothing from landing',
    file: fabric,
    find: 'if (this.#isFenced || login !== this.#taken) {',
    replace: 'if (login !== this.#taken) {',
    breaks: 'I21',
    hunts: paths(1, 100),
  },
  {
    name: 'a fence does not wait for what the LUN has begun',
    file: fabric,
    find: `    this.#link.connections.delete(this);
    await this.#executing.whenIdle();`,
    replace: '    this.#link.connections.delete(this);',
    breaks: 'I21',
    hunts: paths(1, 100),
  },
  {
    name: 'what a path failed to do is acknowledged before it was tried by another',
    file: multipath,
    find: 'this.#untilDone(request, new Set([failure.path])).then(done, fail);',
    replace: `{
                done(undefined as T);
                this.#untilDone(request, new Set([failure.path])).catch(() => undefined);
              }`,
    breaks: 'I21',
    hunts: paths(1, 100),
  },
  {
    name: 'what waited for a path goes out in the wrong order',
    file: multipath,
    find: 'for (const { goOn } of waiters) goOn();',
    replace: 'for (const { goOn } of waiters.toReversed()) goOn();',
    breaks: 'the order of the queue',
    hunts: paths(1, 100),
  },
  {
    name: 'what waited for a path is forgotten when it comes',
    file: multipath,
    find: 'for (const { goOn } of waiters) goOn();',
    replace: 'waiters.at(0)?.goOn();',
    breaks: 'I16',
    hunts: paths(1, 100),
  },
  {
    name: 'a ghost path is used for requests',
    file: multipath,
    find: "return (state === 'up' || state === 'shaky') && nexus !== null;",
    replace: "return (state === 'up' || state === 'shaky' || state === 'ghost') && nexus !== null;",
    breaks: 'a ghost takes no requests',
    hunts: paths(1, 100),
  },
  {
    name: 'a path that is silent is waited for',
    file: multipath,
    find: 'return nexus.attempts.some((attempt) => isSilent(attempt, this.#ioTimeoutTicks));',
    replace: 'void isSilent;\n    return false;',
    breaks: 'I16',
    hunts: paths(1, 100),
  },
  {
    name: 'a path that failed is not looked at again',
    file: multipath,
    find: 'life.nextCheckMs = this.#host.now() + this.#settings.pollingMs;',
    replace: 'life.nextCheckMs = Number.POSITIVE_INFINITY;',
    breaks: 'a path comes back by itself',
    hunts: paths(1, 100),
  },
  {
    name: 'without a path requests fail although they may wait',
    file: multipath,
    find: '    if (expiresMs <= now) throw this.#noPathError();',
    replace: '    throw this.#noPathError();',
    breaks: 'no_path_retry queue',
    hunts: paths(1, 100),
  },

  // Deaths of lanes.
  {
    name: 'a successor does not finish the commit',
    file: lanesFile,
    find: 'const entries = this.#control.unfinishedCommit();',
    replace: 'const entries = this.#control.unfinishedCommit().slice(0, 0);',
    breaks: 'I9',
    hunts: lanes('raid5', 1, 200),
  },
  {
    name: 'the note of a commit goes before its writes are done',
    file: work,
    find: '        failures = yield asked;\n        this.#endCommit',
    replace: '        this.control.endCommit();\n        failures = yield asked;\n        this.#endCommit',
    breaks: 'I9',
    hunts: lanes('raid5', 1, 20),
  },
  {
    name: 'a write without steps is in no note of a commit',
    file: work,
    find: '      this.#beginCommit(asked);\n      if',
    replace: '      if',
    breaks: 'I9',
    hunts: lanes('raid5', 1, 200),
  },
  {
    name: 'jobs of a lane that died are forgotten',
    file: lanesFile,
    find: '    const isOver = this.#stopped',
    replace: '    waiting.length = Math.min(1, waiting.length);\n    const isOver = this.#stopped',
    breaks: 'I16',
    hunts: lanes('raid5', 1, 60),
  },
  {
    name: 'a job is given up with the first lane that dies',
    file: lanesFile,
    find: 'this.#lives < LIVES_OF_A_JOB',
    replace: 'this.#lives < 1',
    breaks: 'I2',
    hunts: lanes('raid5', 1, 60),
  },
  {
    name: 'copies that a write has left unlike are all read',
    file: run,
    find: "if (fatal !== null && this.#layout.kind === 'copies')",
    replace: "if (fatal === null && this.#layout.kind === 'copies')",
    breaks: 'I3',
    hunts: [{ saved: 'a-copy-read-that-did-not-take-what-another-copy-has-shown' }],
  },
  {
    name: 'what the last members did not take from a lane that died is not told',
    file: lanesFile,
    find: '      } else kept.push(member);',
    replace: '      }',
    breaks: 'I1',
    hunts: [{ lanes: { level: 'raid5', seed: 150, runs: 100, mode: 'beyond' } }],
  },
];
