import { expect, test } from 'vitest';
import { instantName, isLeftBehind } from '../../cli/instants.ts';
import type { Holder, Witness } from '../../lib/index.ts';

const here: Holder = { host: 'h', pid: 42, startTime: '9', bootId: 'b', pidNamespace: 'pid:[1]' };
const NOW = 1_800_000_000_000;

/** This process, on a machine on which these processes run. */
function witnessOf(self: Holder, alive: readonly Holder[]): Witness {
  return {
    self: () => Promise.resolve(self),
    isAlive: (holder) => {
      if (holder.host !== self.host || holder.pidNamespace !== self.pidNamespace)
        return Promise.resolve('unknown');
      if (holder.bootId !== self.bootId) return Promise.resolve(false);
      const found = alive.find(({ pid }) => pid === holder.pid);
      return Promise.resolve(found !== undefined && found.startTime === holder.startTime);
    },
  };
}

test('a name fits into a store, and is that of a process that runs, is gone, or cannot be known', async () => {
  const name = instantName(NOW, { ...here, pid: 2 ** 22, startTime: '99999999999' });
  expect(name).toMatch(/^[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,127}$/);
  const witness = witnessOf({ ...here, pid: 7, startTime: '70' }, [here]);
  const verdicts: readonly [Partial<Holder>, boolean][] = [
    [{}, false],
    [{ startTime: '8' }, true],
    [{ pid: 43 }, true],
    [{ bootId: 'earlier' }, true],
    [{ host: 'elsewhere' }, false],
    [{ pidNamespace: 'pid:[2]' }, false],
  ];
  for (const [differs, isLeft] of verdicts) {
    const theirs = instantName(NOW, { ...here, ...differs });
    expect(await isLeftBehind(theirs, true, witness), JSON.stringify(differs)).toBe(isLeft);
    // Nobody had the array open.
    expect(await isLeftBehind(theirs, false, witness)).toBe(true);
  }
});

test('what people call a snapshot is theirs', async () => {
  const witness = witnessOf(here, []);
  for (const name of [
    'backup',
    'backup-20261121T213900.123Z',
    'backup-monday',
    `my-${instantName(NOW, here)}`,
  ])
    expect(await isLeftBehind(name, false, witness), name).toBe(false);
});
