import { expect, test } from 'vitest';
import { Chain, type Linked } from '../../lib/multipath/chain.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';

interface Item extends Linked<Item> {
  readonly name: number;
}

test('a chain holds what was added and not deleted, in the order in which it came', () =>
  withSeed(runSeed, async (random) => {
    const chain = new Chain<Item>();
    let model: Item[] = [];
    const gone: Item[] = [];
    for (let name = 0; name < 2000; name += 1) {
      if (random(2) === 0 || model.length === 0) {
        // One that has left may come again, as the last.
        const item = gone.length > 0 && random(3) === 0 ? gone.pop() : undefined;
        const added = item ?? { name, before: null, after: null, isLinked: false };
        chain.add(added);
        model.push(added);
      } else {
        const item = model[random(model.length)] as Item;
        expect(chain.delete(item)).toBe(true);
        expect(chain.delete(item)).toBe(false);
        expect([item.before, item.after]).toEqual([null, null]);
        model = model.filter((other) => other !== item);
        gone.push(item);
      }
      expect(chain.size).toBe(model.length);
      expect(chain.items().map((item) => item.name)).toEqual(model.map((item) => item.name));
      const wanted = random(2000);
      expect(chain.some((item) => item.name === wanted)).toBe(model.some((item) => item.name === wanted));
    }
  }));
