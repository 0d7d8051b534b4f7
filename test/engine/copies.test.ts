/**
 * What copies hold after a write that some of them refused: every state that two and three of them can be in, and every
 * way in which they may take the write or not (plan/set-apart.ts). Whoever is read from afterwards, now or when recovery, a
 * replacement or an earlier write has come by, shows the same bytes.
 */
import { expect, test } from 'vitest';
import { isWithout, SharedHealth } from '../../lib/engine/run.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import type { Geometry } from '../../lib/layout/geometry.ts';
import type { CopiesLayout } from '../../lib/layout/layout.ts';
import { survives } from '../../lib/layout/survives.ts';
import { compileHealth, stateAt } from '../../lib/plan/health.ts';
import {
  type ErasedRange,
  type Health,
  isLost,
  type MemberHealth,
  replacementOf,
} from '../../lib/plan/plan.ts';
import { planWrite } from '../../lib/plan/planner.ts';
import { KIB } from '../../lib/units.ts';
import { failure, Scripted } from './scripted.ts';

const memberBytes = 8 * KIB;
const UNIT = 64;
/** The write: two units of every copy, and room before and after them. */
const FROM = 2 * UNIT;
const UNITS = 2;
const NEW = 0xcc;

interface Situation {
  readonly name: string;
  readonly state: MemberHealth;
  readonly bad?: { readonly from: number; readonly units: number };
  readonly isInDoubt?: true;
  /** Whether it has a replacement, and that one takes the write. */
  readonly replacement?: 'takes' | 'refuses';
}

const inSync: MemberHealth = { state: 'in_sync' };
const situations: readonly Situation[] = [
  { name: 'sound', state: inSync },
  { name: 'sound, being replaced', state: inSync, replacement: 'takes' },
  { name: 'sound, its replacement refuses', state: inSync, replacement: 'refuses' },
  { name: 'in doubt', state: inSync, isInDoubt: true },
  { name: 'bad', state: inSync, bad: { from: 0, units: 2 } },
  { name: 'bad in part', state: inSync, bad: { from: 1, units: 1 } },
  { name: 'bad, being replaced', state: inSync, bad: { from: 0, units: 2 }, replacement: 'takes' },
  { name: 'below the frontier', state: { state: 'recovering', recoveredBytes: FROM + 2 * UNIT } },
  { name: 'across the frontier', state: { state: 'recovering', recoveredBytes: FROM + UNIT } },
  { name: 'beyond the frontier', state: { state: 'recovering', recoveredBytes: UNIT } },
  { name: 'missing', state: { state: 'missing' } },
];

interface Copy {
  readonly situation: Situation;
  readonly refuses: boolean;
}

function* everyCopy(): Generator<Copy> {
  for (const situation of situations) {
    yield { situation, refuses: false };
    if (situation.state.state !== 'missing') yield { situation, refuses: true };
  }
}

function* everyRow(count: number): Generator<readonly Copy[]> {
  if (count === 0) yield [];
  else for (const copy of everyCopy()) for (const rest of everyRow(count - 1)) yield [copy, ...rest];
}

function said(copies: readonly Copy[]): string {
  return copies.map(({ situation, refuses }) => `${situation.name}${refuses ? ' !' : ''}`).join(', ');
}

/** The members of the copies of what is written, in md's order; the others of the array are as `others` says. */
function world(layout: CopiesLayout, copies: readonly Copy[], others: MemberHealth, offsetBytes: number) {
  const places = layout.locate(offsetBytes).copies;
  const of = (slot: number): Copy | undefined => copies[places.findIndex(({ member }) => member === slot)];
  const slots = Array.from({ length: layout.memberCount }, (_, slot) => slot);
  const erased = places.flatMap(({ member, offsetBytes: at }): ErasedRange[] => {
    const bad = of(member)?.situation.bad;
    return bad === undefined
      ? []
      : [{ member, offsetBytes: at + bad.from * UNIT, lengthBytes: bad.units * UNIT }];
  });
  const health: Health = {
    members: slots.map((slot) => shifted(of(slot)?.situation.state ?? others, places, slot)),
    replacing: slots.filter((slot) => of(slot)?.situation.replacement !== undefined),
    erased,
  };
  const refuses = (member: number): boolean => {
    const copy = of(member % layout.memberCount);
    return member < layout.memberCount ? copy?.refuses === true : copy?.situation.replacement === 'refuses';
  };
  return { places, health, refuses, isInDoubt: (slot: number) => of(slot)?.situation.isInDoubt === true };
}

/** Frontiers are told from where the first copy is written. */
function shifted(
  state: MemberHealth,
  places: readonly { member: number; offsetBytes: number }[],
  slot: number,
): MemberHealth {
  if (state.state !== 'recovering') return state;
  const at = places.find(({ member }) => member === slot)?.offsetBytes ?? FROM;
  return { ...state, recoveredBytes: at - FROM + state.recoveredBytes };
}

/** What is wrong afterwards; null where nothing is, undefined where there is no such array. */
function faultOf(
  layout: CopiesLayout,
  copies: readonly Copy[],
  others: MemberHealth,
  offsetBytes: number,
): string | null | undefined {
  const { places, health, refuses, isInDoubt } = world(layout, copies, others, offsetBytes);
  const lengthBytes = UNITS * UNIT;
  const before = compileHealth(layout, health);
  if (!survives(layout, (slot) => health.members[slot]?.state !== 'in_sync')) return undefined;
  if (isLost(planWrite(layout, before, offsetBytes, lengthBytes))) return undefined;
  const { memberCount } = layout;
  const images = Array.from({ length: 2 * memberCount }, (_, member) =>
    new Uint8Array(layout.memberBytes[member % memberCount] ?? 0).fill(0x10 + member),
  );
  // Copies that can be read agree; of the others nobody knows.
  for (const { member, offsetBytes: at } of places) {
    for (let unit = at; unit < at + lengthBytes; unit += UNIT)
      if (stateAt(before.members[member]!, unit) === 'good') images[member]?.fill(1, unit, unit + UNIT);
  }
  const scripted = new Scripted({
    ...{ layout, health, images, tears: true, scratchBytes: 64 * KIB },
    board: { note: () => undefined, isNotedElsewhere: isInDoubt },
    script: (direction, { member }) =>
      direction === 'write' && refuses(member) ? failure('WRITE_FAILED') : null,
  });
  const request = new Uint8Array(lengthBytes).fill(NEW);
  const { report } = scripted.run({ op: 'write', offsetBytes, lengthBytes, member: 0 }, request);
  const after = scripted.health.compiled.health;

  for (let unit = 0; unit < UNITS; unit += 1) {
    // With an original that is out its replacement becomes a spare.
    const staying = places.flatMap(({ member: slot, offsetBytes: start }) => {
      if (isWithout(after, slot)) return [];
      const replacement = replacementOf(memberCount, slot);
      const numbers = health.replacing?.includes(slot) ? [slot, replacement] : [slot];
      const at = start + unit * UNIT;
      return numbers
        .filter((number) => !isWithout(after, number))
        .map((number) => ({ number, slot, at, isSound: number === slot && isSound(slot, at) }));
    });
    const vouched = staying.filter(
      ({ number, at }) =>
        !report.damaged.some(
          (place) =>
            place.member === number && place.offsetBytes <= at && at < place.offsetBytes + place.lengthBytes,
        ),
    );
    const held = new Set(
      vouched.flatMap(({ number, at }) => [
        ...(scripted.images[number] as Uint8Array).subarray(at, at + UNIT),
      ]),
    );
    if (held.size > 1) return 'what may be read is not all the same';
    if (report.error === null && !held.has(NEW)) return 'what is acknowledged is not there';
    if (report.error === null && staying.some(({ number }) => refuses(number)) && !vouched.some(counts))
      return 'what is acknowledged although it was refused is not on a copy that counts';
    if (
      report.error !== null &&
      staying.some((each) => each.isSound) &&
      !vouched.some((each) => each.isSound)
    )
      return 'no sound copy stays readable';
    if (report.damaged.length > 0 && !staying.some(({ number }) => refuses(number)))
      return 'places are bad, and nobody who refused has stayed';
  }
  return null;

  /** It is there after a crash too, and nobody goes on without it. */
  function counts({ number, slot }: { readonly number: number; readonly slot: number }): boolean {
    return number === slot && health.members[slot]?.state === 'in_sync' && !isInDoubt(slot);
  }

  function isSound(slot: number, at: number): boolean {
    return counts({ number: slot, slot }) && stateAt(before.members[slot]!, at) === 'good';
  }
}

const laws: readonly {
  name: string;
  geometry: Geometry;
  count: number;
  offsetBytes: number;
  others: MemberHealth;
}[] = [
  {
    name: 'a mirror of two',
    geometry: { level: 'raid1', memberCount: 2, memberBytes },
    count: 2,
    offsetBytes: FROM,
    others: inSync,
  },
  {
    name: 'a mirror of three',
    geometry: { level: 'raid1', memberCount: 3, memberBytes },
    count: 3,
    offsetBytes: FROM,
    others: inSync,
  },
  // Chunk 1 has its copies on members 1 and 2; without member 0 neither of them can be missed.
  ...([inSync, { state: 'missing' }] as const).map((others) => ({
    name: `two copies far apart, member 0 is ${others.state}`,
    geometry: {
      level: 'raid10' as const,
      memberCount: 3,
      memberBytes,
      chunkBytes: 4 * KIB,
      near: 1,
      far: 2,
      offset: false,
      farSets: 0 as const,
    },
    count: 2,
    offsetBytes: 4 * KIB + FROM,
    others,
  })),
];

test.each(laws)(
  '$name: whoever refuses a write, no two copies are read to differ',
  ({ geometry, count, offsetBytes, others }) => {
    const layout = compileLayout(geometry);
    if (layout.kind !== 'copies') throw new Error('copies');
    const broken: string[] = [];
    let tried = 0;
    for (const copies of everyRow(count)) {
      const fault = faultOf(layout, copies, others, offsetBytes);
      if (fault !== undefined) tried += 1;
      if (typeof fault === 'string') broken.push(`${said(copies)}: ${fault}`);
    }
    expect(broken).toEqual([]);
    expect(tried).toBeGreaterThan(100);
  },
);

test('what was bad on a member that is out is not bad on who comes into its slot', () => {
  const layout = compileLayout({ level: 'raid1', memberCount: 2, memberBytes });
  const whole: Health = { members: [inSync, inSync], erased: [] };
  const shared = new SharedHealth(layout, whole);
  shared.damage({ member: 1, offsetBytes: 0, lengthBytes: UNIT });
  shared.set(whole);
  expect(shared.compiled.usual).toBe(false);
  shared.set({ ...whole, members: [inSync, { state: 'missing' }] });
  shared.set(whole);
  expect(shared.compiled.usual).toBe(true);
});
