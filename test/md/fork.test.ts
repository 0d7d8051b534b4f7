/** Who is a member, of all that ever were (I12): what was left behind is no fork, and two histories never become one. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { assemble } from '../../lib/md/assemble.ts';
import { ROLE_SLOT_MAX, ROLE_SPARE, type Superblock1 } from '../../lib/md/superblock1.ts';
import {
  failMember,
  judgeReAdd,
  level,
  type MdArray,
  markDirty,
  recordLoss,
  superblocksToWrite,
} from '../../lib/md/update.ts';
import { advance, candidatesOn, type Disks, type Step, startOf, writeAll } from './histories.ts';
import { someTime as now } from './images.ts';

const shapes = [
  [1, 2, 2],
  [1, 3, 1],
  [5, 3, 2],
  [6, 5, 1],
  [10, 4, 2],
] as const;
/** Mostly failures and rebuilds: what makes members former ones. */
const kind = fc.constantFrom<Step>(
  ...(['fail', 'add', 'recover', 'finish', 'fail', 'add', 'recover', 'finish', 'remove'] as const),
  ...(['return', 'replace', 'dirty', 'clean', 'progress'] as const),
);
const step = fc.tuple(kind, fc.nat(7));

function live(
  from: MdArray,
  steps: readonly (readonly [Step, number])[],
  disks: Disks,
  firstNew = 0,
): MdArray {
  let array = from;
  writeAll(disks, array);
  for (const [at, [kind, pick]] of steps.entries()) {
    for (const next of advance(array, kind, firstNew + at, disks, pick)) {
      array = next;
      writeAll(disks, array);
    }
  }
  return array;
}

describe('one history', () => {
  test('starts without force, whatever former members are offered with it', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...shapes),
        fc.array(step, { minLength: 12, maxLength: 48 }),
        ([level, raidDisks, spares], steps) => {
          const disks: Disks = new Map();
          const array = live(startOf(level, raidDisks, spares), steps, disks);
          const assembly = assemble(candidatesOn(disks), { run: true });
          const isHole = [5, 6].includes(level) && array.resyncOffsetSectors !== Infinity;
          if (assembly.kind === 'refuse' && !(isHole && assembly.error.code === 'DIRTY_DEGRADED'))
            throw new Error(`${assembly.row}: ${assembly.error.message}`);
        },
      ),
      { numRuns: 300 },
    );
  });

  test('two failures and a rebuild, with the first disks offered again', () => {
    for (const [level, raidDisks] of [
      [1, 3],
      [6, 5],
    ] as const) {
      const disks: Disks = new Map();
      const steps = [
        ['fail', 0],
        ['fail', 1],
        ['recover', 0],
        ['finish', 0],
      ] as const;
      const array = live(startOf(level, raidDisks, 1), steps, disks);
      expect(array.members.map(({ state }) => state).slice(0, 3)).toEqual(['faulty', 'in_sync', 'faulty']);
      expect(assemble(candidatesOn(disks)).kind).toBe('start');
    }
  });

  test('a member whose every companion has been replaced since was left behind', () => {
    const disks: Disks = new Map();
    const round = [
      ['add', 0],
      ['recover', 0],
      ['finish', 0],
      ['remove', 0],
    ] as const;
    live(startOf(1, 2, 0), [['fail', 1], ...round, ['fail', 0], ...round], disks);
    const verdict = assemble(candidatesOn(disks));
    expect(verdict.members.map(({ joins }) => joins).slice(0, 2)).not.toContain('in_sync');
    expect(verdict.kind).toBe('start');
  });
});

/**
 * Lives that end before their first write, one after the other: each opens the array with some of its disks, and is cut off
 * while it levels them, records who is missing or says that it is not clean. Nothing was written to what they opened, so
 * all of it is as good as before, but for whom a life that came to its first write did without.
 */
describe('lives that end early', () => {
  /** What an assembly writes before the first byte of data, update by update. */
  function* opening(found: MdArray): Generator<MdArray> {
    let array = level(found);
    yield array;
    if (array.hasUnrecordedLoss) {
      for (const next of recordLoss(array, now)) {
        array = next;
        yield array;
      }
    }
    if (array.level > 0 && array.resyncOffsetSectors === Infinity) yield markDirty(array, now);
  }

  const shape = fc.constantFrom(
    ...([
      [1, 2],
      [1, 3],
      [6, 4],
      [6, 5],
      [10, 4],
    ] as const),
  );
  /** Who is offered, after how many updates it is cut off, and whom the last of them reached. */
  const life = fc.record({ offered: fc.nat(0xff), cut: fc.nat(5), reached: fc.nat(0xff) });

  test('are no fork while nobody accuses one who accuses him, and who joins lacks no write', () => {
    let cutOff = 0;
    fc.assert(
      fc.property(
        shape,
        fc.array(life, { minLength: 1, maxLength: 5 }),
        fc.nat(0xff),
        ([level_, count], lives, last) => {
          const disks: Disks = new Map();
          writeAll(disks, startOf(level_, count, 0));
          const names = [...disks.keys()];
          /** The newest write that each disk has. */
          const wrote = new Map(names.map((name) => [name, 0]));
          const offer = (choice: number): Disks =>
            new Map([...disks].filter((_, index) => (choice & (1 << index)) !== 0));
          const newest = (): number => Math.max(...wrote.values());
          const judge = (offered: Disks): MdArray | null => {
            // Whoever offers only disks that are out of date starts another history, and knows it.
            // One that a life took for a spare holds nothing any more.
            const holds = ({ devRoles, descriptor }: Superblock1): boolean =>
              (devRoles[descriptor] ?? ROLE_SPARE) <= ROLE_SLOT_MAX;
            if (![...offered].some(([name, disk]) => holds(disk) && wrote.get(name) === newest()))
              return null;
            const assembly = assemble(candidatesOn(offered), { run: true });
            if (assembly.kind === 'refuse') {
              if (assembly.error.code === 'FORKED_HISTORY') expect(feudIn(offered)).toBe(true);
              return null;
            }
            for (const { name, joins } of assembly.members)
              if (joins === 'in_sync') expect(wrote.get(name)).toBe(newest());
            return assembly.array.md;
          };
          for (const { offered, cut, reached } of lives) {
            const found = judge(offer(offered));
            if (found === null) continue;
            const updates = [...opening(found)];
            let before = found;
            for (const array of updates.slice(0, cut)) {
              writeAll(disks, array);
              before = array;
            }
            const array = updates[cut];
            if (array === undefined) {
              const number = newest() + 1;
              for (const { state, superblock } of before.members)
                if (state === 'in_sync') wrote.set(superblock.deviceUuid, number);
              continue;
            }
            cutOff += 1;
            for (const [index, { superblock }] of superblocksToWrite(before, array).entries())
              if ((reached & (1 << index)) !== 0) disks.set(superblock.deviceUuid, superblock);
          }
          judge(offer(last));
          judge(disks);
        },
      ),
      {
        numRuns: 2000,
        examples: [
          [
            [1, 3],
            [
              { offered: 75, cut: 4, reached: 0 },
              { offered: 5, cut: 1, reached: 3 },
              { offered: 187, cut: 2, reached: 0 },
            ],
            6,
          ],
        ],
      },
    );
    expect(cutOff).toBeGreaterThan(1000);
  });

  /** Whether two of them say of each other that they are out. */
  function feudIn(disks: Disks): boolean {
    const all = [...disks.values()];
    const accuses = (from: Superblock1, of: Superblock1): boolean =>
      (from.devRoles[of.descriptor] ?? 0) > ROLE_SLOT_MAX;
    return all.some((one) => all.some((other) => accuses(one, other) && accuses(other, one)));
  }
});

describe('two histories', () => {
  /** The members of one side go on without those of the other. */
  function alone(array: MdArray, side: ReadonlySet<number>): MdArray {
    const members = array.members.filter(({ descriptor }) => side.has(descriptor));
    return recordLoss({ ...array, members, hasUnrecordedLoss: true }, now)[1];
  }

  const sides = fc.record({
    raidDisks: fc.constantFrom(2, 3, 4),
    before: fc.array(step, { maxLength: 12 }),
    left: fc.array(step, { maxLength: 12 }),
    right: fc.array(step, { maxLength: 12 }),
    choice: fc.nat(0xffff),
  });

  test('of a mirror whose members were started apart never join in one array', () => {
    let forks = 0;
    fc.assert(
      fc.property(sides, ({ raidDisks, before, left, right, choice }) => {
        const common: Disks = new Map();
        const array = live(startOf(1, raidDisks, 1), before, common);
        const whole = array.members.filter(({ state }) => state === 'in_sync').map((each) => each.descriptor);
        const first = new Set(whole.filter((_, at) => (choice & (1 << at)) !== 0));
        const second = new Set(whole.filter((each) => !first.has(each)));
        if (first.size === 0 || second.size === 0) return;
        const [a, b]: [Disks, Disks] = [new Map(), new Map()];
        live(alone(array, first), left, a, 200);
        live(alone(array, second), right, b, 300);
        const both: Disks = new Map([...a, ...b]);
        const assembly = assemble(candidatesOn(both), { run: true, force: true });
        if (assembly.kind === 'refuse') return;
        const joined = assembly.members.filter(({ joins }) => joins === 'in_sync' || joins === 'recovering');
        forks += 1;
        const of = (disks: Disks): number => joined.filter(({ name }) => disks.has(name)).length;
        expect(Math.min(of(a), of(b))).toBe(0);
      }),
      { numRuns: 300 },
    );
    expect(forks).toBeGreaterThan(60);
  });

  test('are told as a fork while nobody new has joined either', () => {
    const known = fc.tuple(fc.constantFrom('dirty', 'clean', 'fail', 'progress', 'finish'), fc.nat(7));
    fc.assert(
      fc.property(
        fc.record({ raidDisks: fc.constantFrom(2, 3, 4), choice: fc.nat(0xffff) }),
        fc.array(known, { maxLength: 12 }),
        fc.array(known, { maxLength: 12 }),
        ({ raidDisks, choice }, left, right) => {
          const array = startOf(1, raidDisks, 0);
          const first = new Set([0, ...[1, 2].filter((each) => (choice & (1 << each)) !== 0)]);
          const second = new Set(
            array.members.map((each) => each.descriptor).filter((each) => !first.has(each)),
          );
          if (second.size === 0) return;
          const disks: Disks = new Map();
          live(alone(array, first), left, disks);
          live(alone(array, second), right, disks);
          const assembly = assemble(candidatesOn(disks), { run: true });
          expect(assembly.kind === 'refuse' && assembly.error.code).toBe('FORKED_HISTORY');
        },
      ),
      { numRuns: 200 },
    );
  });

  test('a member of the other does not come back by the bitmap', () => {
    const array = startOf(1, 2, 0);
    const mine = alone(array, new Set([0]));
    const theirs = alone(array, new Set([1])).members[0]?.superblock;
    expect(judgeReAdd(mine, theirs as never, 0)).toBe('no');
    const [, failed] = failMember(array, 1, now);
    expect(judgeReAdd(failed, array.members[1]?.superblock as never, 0)).toBe('via-bitmap');
  });
});
