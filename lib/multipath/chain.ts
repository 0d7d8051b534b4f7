/**
 * What is under way, in the order in which it began. Items are linked to each other, so nothing is allocated when one comes
 * or goes. A Set to which requests are added and from which they are deleted all the time makes itself a new table again and
 * again; those that have become old keep alive what they held until the next full collection, and 70 % of the processor's
 * time went there.
 */
export interface Linked<Item> {
  before: Item | null;
  after: Item | null;
  isLinked: boolean;
}

export class Chain<Item extends Linked<Item>> {
  #first: Item | null = null;
  #last: Item | null = null;
  #size = 0;

  get size(): number {
    return this.#size;
  }

  add(item: Item): void {
    item.isLinked = true;
    item.before = this.#last;
    if (this.#last === null) this.#first = item;
    else this.#last.after = item;
    this.#last = item;
    this.#size += 1;
  }

  /** False: it was not there any more. */
  delete(item: Item): boolean {
    if (!item.isLinked) return false;
    const { before, after } = item;
    if (before === null) this.#first = after;
    else before.after = after;
    if (after === null) this.#last = before;
    else after.before = before;
    item.isLinked = false;
    // What an old item points to would live as long as that.
    item.before = null;
    item.after = null;
    this.#size -= 1;
    return true;
  }

  /** As it is at this moment: what is done with them may change it. */
  items(): readonly Item[] {
    const items: Item[] = [];
    for (let item = this.#first; item !== null; item = item.after) items.push(item);
    return items;
  }

  some(is: (item: Item) => boolean): boolean {
    for (let item = this.#first; item !== null; item = item.after) if (is(item)) return true;
    return false;
  }
}
