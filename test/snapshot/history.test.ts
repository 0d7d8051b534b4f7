/** The theory of lib/snapshot/history.ts against one that keeps every image, over all short histories and random long ones. */
import { expect, test } from 'vitest';
import { type Entry, History } from '../../lib/snapshot/history.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

const CHUNKS = 2;
const NONCE = '0123456789abcdef';

type Act =
  | { readonly act: 'write'; readonly chunk: number }
  /** A write over what cannot be read. */
  | { readonly act: 'lose'; readonly chunk: number }
  | { readonly act: 'take' }
  | { readonly act: 'become'; readonly nth: number; readonly state: 'gone' | 'tracking' | 'invalid' };

const acts: readonly Act[] = [
  { act: 'write', chunk: 0 },
  { act: 'write', chunk: 1 },
  { act: 'lose', chunk: 0 },
  { act: 'take' },
  ...([0, 1] as const).flatMap((nth) =>
    (['gone', 'tracking', 'invalid'] as const).map((state): Act => ({ act: 'become', nth, state })),
  ),
];

/** As a content. */
const LOST = -1;

/** Contents are numbers that never come again; slots hold them. */
class Both {
  history = new History();
  readonly content = new Array<number>(CHUNKS).fill(0);
  readonly images = new Map<number, readonly number[]>();
  /** Points since which changes are known: an invalid snapshot never becomes one again. */
  readonly tracked = new Set<number>();
  readonly slots = new Map<number, number>();
  readonly everTaken: { readonly id: number; readonly image: readonly number[] }[] = [];
  #next = 1;
  #nextSlot = 0;

  do(step: Act): void {
    if (step.act === 'write' || step.act === 'lose') this.#write(step.chunk, step.act === 'lose');
    else if (step.act === 'take') {
      const id = this.history.nextId;
      this.#apply({ op: 'snapshot', id, name: `s${id}`, createdAtMs: 0, nonce: NONCE, state: 'valid' });
      this.images.set(id, [...this.content]);
      this.tracked.add(id);
      this.everTaken.push({ id, image: [...this.content] });
    } else {
      const found = this.history.snapshots[step.nth];
      if (found === undefined) return;
      const { id } = found;
      const wasValid = this.images.delete(id);
      if (step.state === 'gone' || (step.state === 'invalid' && wasValid)) this.tracked.delete(id);
      this.#apply({ op: 'become', id, state: step.state });
    }
  }

  #write(chunk: number, isUnreadable: boolean): void {
    const { history, content } = this;
    const needs = history.needs(chunk);
    const id = history.newestPoint;
    if (needs === 'mark') this.#apply({ op: 'mark', chunk, id });
    if (needs === 'copy' && isUnreadable) {
      this.#apply({ op: 'lost', chunk, id });
      for (const [each, image] of this.images) {
        if (image[chunk] === content[chunk]) this.images.set(each, image.with(chunk, LOST));
      }
    } else if (needs === 'copy') {
      const slot = this.#nextSlot++;
      this.slots.set(slot, content[chunk] as number);
      this.#apply({ op: 'copy', chunk, id, slot, crc: 0 });
    }
    content[chunk] = this.#next++;
  }

  #apply(entry: Entry): void {
    for (const slot of this.history.apply(entry)) expect(this.slots.delete(slot)).toBe(true);
  }

  judge(): void {
    const { history } = this;
    for (const [id, image] of this.images) {
      const seen = image.map((_, chunk) => {
        const copy = history.lookup(id, chunk);
        if (copy === 'lost') return LOST;
        return copy === null ? this.content[chunk] : this.slots.get(copy.slot);
      });
      expect(seen).toEqual(image);
    }
    expect([...history.slots()].sort()).toEqual([...this.slots.keys()].sort());
    this.#judgeTracking();
    this.#judgeUsage();
  }

  /** Exact: no content comes twice, so a chunk has changed where its content is another. */
  #judgeTracking(): void {
    const { history } = this;
    const known = this.everTaken.filter(({ id }) => this.tracked.has(id));
    expect(history.snapshots.filter(({ state }) => state !== 'invalid').map(({ id }) => id)).toEqual(
      known.map(({ id }) => id),
    );
    for (const { id, image } of known) {
      const differs = (other: readonly number[]) =>
        image.flatMap((each, chunk) => (each === other[chunk] ? [] : [chunk]));
      expect(history.changed(id)).toEqual(differs(this.content));
      for (const later of known.filter((each) => each.id > id))
        expect(history.changed(id, later.id)).toEqual(differs(later.image));
    }
    const lost = [...history.entries()].filter(({ op }) => op === 'lost').length;
    if (known.length === 0) expect(history.markCount).toBe(0);
    if (known.every(({ id }) => history.isValid(id))) expect(history.markCount).toBe(lost);
  }

  #judgeUsage(): void {
    const usage = this.history.usage();
    for (const [id, image] of this.images) {
      expect(usage.get(id)?.lostChunks).toBe(image.filter((content) => content === LOST).length);
      const before = this.slots.size;
      const copy = copyOf(this.history);
      const freed = copy.apply({ op: 'become', id, state: 'gone' }).length;
      expect(usage.get(id)?.uniqueSlots).toBe(freed);
      expect((usage.get(id)?.uniqueSlots ?? 0) + (usage.get(id)?.sharedSlots ?? 0)).toBeLessThanOrEqual(
        before,
      );
    }
  }
}

function copyOf(history: History): History {
  const copy = new History();
  for (const entry of history.entries()) copy.apply(entry);
  return copy;
}

function expectCopied(history: History): void {
  expect([...copyOf(history).entries()]).toEqual([...history.entries()]);
}

test('of witnesses the last two are known, each once, and they outlive everything else', () => {
  const history = new History();
  for (const text of ['a', 'b', 'b', 'c', 'c']) history.apply({ op: 'witness', text });
  history.apply({ op: 'snapshot', id: 1, name: 's', createdAtMs: 0, nonce: NONCE, state: 'valid' });
  history.apply({ op: 'become', id: 1, state: 'gone' });
  expect(history.witnesses).toEqual(['b', 'c']);
  expect(copyOf(history).witnesses).toEqual(['b', 'c']);
  expectCopied(history);
});

test('every history of up to six steps: images, freed slots, changes and accounts are those of plain copies', () => {
  let count = 0;
  const walk = (steps: readonly Act[]): void => {
    const both = new Both();
    for (const step of steps) both.do(step);
    both.judge();
    count += 1;
    if (steps.length < 6) for (const step of acts) walk([...steps, step]);
  };
  // Before the first snapshot nothing is to be kept: all begin with one, and one chunk written.
  walk([{ act: 'take' }, { act: 'write', chunk: 0 }]);
  expect(count).toBe(1 + 10 + 100 + 1000 + 10000);
});

test('long random histories agree with plain copies after every step, and their entries make them again', async () => {
  await withSeed(runSeed, (random) => {
    for (let round = 0; round < 12; round += 1) {
      const both = new Both();
      for (let step = 0; step < 60; step += 1) {
        const act = acts[random(acts.length)] as Act;
        both.do(act.act === 'become' ? { ...act, nth: random(6) } : act);
        if (random(4) === 0) both.do({ act: 'take' });
        both.judge();
        if (step % 7 === 0) {
          expectCopied(both.history);
          both.history = copyOf(both.history);
        }
      }
    }
  });
});

test('a write saves a chunk once after the newest snapshot, however many there are', () => {
  for (const snapshots of [1, 10, 1000]) {
    const history = new History();
    for (let id = 1; id <= snapshots; id += 1)
      history.apply({ op: 'snapshot', id, name: `s${id}`, createdAtMs: 0, nonce: NONCE, state: 'valid' });
    expect(history.needs(0)).toBe('copy');
    history.apply({ op: 'copy', chunk: 0, id: history.newestPoint, slot: 0, crc: 0 });
    expect(history.needs(0)).toBe('nothing');
    expect([...history.slots()]).toEqual([0]);
    for (let id = 1; id <= snapshots; id += 1) expect(history.lookup(id, 0)).toEqual({ slot: 0, crc: 0 });
  }
});

test('two who ask something of one snapshot at once end in a state that is true, in either order', () => {
  const wanted = ['gone', 'invalid', 'tracking'] as const;
  const after = (first: (typeof wanted)[number], second: (typeof wanted)[number]): string => {
    const history = new History();
    history.apply({ op: 'snapshot', id: 1, name: 's1', createdAtMs: 0, nonce: NONCE, state: 'valid' });
    history.apply({ op: 'become', id: 1, state: first });
    history.apply({ op: 'become', id: 1, state: second });
    return history.snapshot(1)?.state ?? 'gone';
  };
  expect(wanted.map((first) => wanted.map((second) => after(first, second)))).toEqual([
    ['gone', 'gone', 'gone'],
    ['gone', 'invalid', 'gone'],
    ['gone', 'tracking', 'tracking'],
  ]);
});
