/**
 * Which places of a member are bad (I22), held against a model that knows every sector by itself: when it was listed, and
 * nothing else. Writes overlap, begin and end in any order, and replacements change places with their originals meanwhile.
 */
import { expect, test } from 'vitest';
import { Members } from '../../lib/array/members.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { RaidError } from '../../lib/errors.ts';
import { compileLayout } from '../../lib/layout/compile.ts';
import { type ErasedRange, replacementOf } from '../../lib/plan/plan.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

const SLOTS = 2;
const PLACES = 12;
const layout = compileLayout({ level: 'raid1', memberCount: SLOTS, memberBytes: 512 });

function placesOf(ranges: readonly ErasedRange[], number: number): boolean[] {
  const places = new Array<boolean>(PLACES).fill(false);
  for (const { member, offsetBytes, lengthBytes } of ranges)
    if (member === number) places.fill(true, offsetBytes, offsetBytes + lengthBytes);
  return places;
}

/** By number of a member or replacement, and place: when it was listed last; 0 where it was not. */
type Model = number[][];

test('a place is bad from when it is listed until something that began later has been written there, for any history', () =>
  withSeed(runSeed, (random) => {
    for (let history = 0; history < 300; history += 1) {
      const members = new Members(layout, 'array', []);
      const join = (slot: number) =>
        members.adopt(new MemoryDevice({ sizeBytes: 4096 }), { state: 'in_sync', slot });
      const current = [join(0), join(1)];
      const model: Model = Array.from({ length: 2 * SLOTS }, () => new Array<number>(PLACES).fill(0));
      const replaced = (slot: number): number => replacementOf(SLOTS, slot);
      let clock = 0;
      const writes: { slot: number; from: number; count: number; began: number; moment: number }[] = [];
      let changing: number | null = null;

      for (let step = 0; step < 40; step += 1) {
        clock += 1;
        const slot = random(SLOTS);
        const from = random(PLACES);
        const count = 1 + random(PLACES - from);
        const replacement = members.replacementOf(slot);
        switch (random(6)) {
          case 0: {
            const number = replacement !== null && random(2) === 0 ? replaced(slot) : slot;
            members.damage([{ member: number, offsetBytes: from, lengthBytes: count }]);
            model[number]?.fill(clock, from, from + count);
            break;
          }
          case 1:
          case 2:
            writes.push({ slot, from, count, began: clock, moment: members.moment });
            break;
          case 3: {
            const [write] = writes.splice(random(Math.max(1, writes.length)), 1);
            if (write === undefined) break;
            members.mend(write.slot, write.from, write.count, write.moment);
            for (const number of [write.slot, replaced(write.slot)])
              for (let at = write.from; at < write.from + write.count; at += 1) {
                const places = model[number];
                if (places !== undefined && (places[at] ?? 0) < write.began) places[at] = 0;
              }
            break;
          }
          case 4:
            if (replacement === null && changing === null)
              members.adopt(new MemoryDevice({ sizeBytes: 4096 }), {
                state: 'replacement',
                slot,
                recoveredBytes: 0,
              });
            break;
          default: {
            if (changing !== null) {
              members.endChange(changing);
              model[changing] = model[replaced(changing)] ?? [];
              model[replaced(changing)] = new Array<number>(PLACES).fill(0);
              changing = null;
              break;
            }
            const original = current[slot];
            if (replacement === null || original === undefined) break;
            if (random(3) === 0) {
              members.expel(replacement, new RaidError('WRITE_FAILED', 'it takes no writes'));
              members.leave(replacement);
              model[replaced(slot)]?.fill(0);
              break;
            }
            original.state = {
              state: 'faulty',
              formerSlot: slot,
              because: new RaidError('MEMBER_GONE', 'it was replaced'),
            };
            members.leave(original);
            replacement.state = { state: 'in_sync', slot };
            current[slot] = replacement;
            members.beginChange(slot);
            changing = slot;
          }
        }
        for (let number = 0; number < 2 * SLOTS; number += 1) {
          const wanted = model[number]?.map((since) => since > 0);
          expect(placesOf(members.bad, number), `history ${history}, step ${step}`).toEqual(wanted);
        }
        for (let each = 0; each < SLOTS; each += 1) {
          const wanted = placesOf(members.bad, each);
          if (changing === each)
            for (const [at, isBad] of placesOf(members.bad, replaced(each)).entries())
              wanted[at] = wanted[at] === true || isBad;
          const { erased, replacing } = members.health(Number.POSITIVE_INFINITY);
          expect(placesOf(erased, each), `history ${history}, step ${step}`).toEqual(wanted);
          // Who changes places is written on both sides, until nobody makes use of the original any more.
          const isWrittenTwice = changing === each || members.replacementOf(each) !== null;
          expect(replacing?.includes(each), `history ${history}, step ${step}`).toBe(isWrittenTwice);
        }
      }
    }
  }));

test('what a write leaves of a place while that is being listed is on the list too', () => {
  const members = new Members(layout, 'array', []);
  const member = members.adopt(new MemoryDevice({ sizeBytes: 4096 }), { state: 'in_sync', slot: 0 });
  members.damage([{ member: 0, offsetBytes: 2, lengthBytes: 8 }]);
  const listed = members.badOf(member);
  members.mend(0, 4, 2);
  members.damage([{ member: 0, offsetBytes: 9, lengthBytes: 2 }]);
  members.recorded(listed);
  const hidden = members.badOf(member).filter(({ isOnRecord }) => !isOnRecord);
  expect(hidden).toMatchObject([{ offsetBytes: 9, lengthBytes: 2 }]);
  members.recorded(members.badOf(member));
  expect(members.hidesDamage()).toBe(false);
});
